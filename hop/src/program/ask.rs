//! The little HTTP that asking one's own admin port takes, or that of a program beside it: one request, one answer, the connection
//! closed.

use std::io::{self, Read, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use super::admin::AdminAddress;

/// A healthy program answers at once.
pub const LIMIT: Duration = Duration::from_secs(5);
/// A status page has a few kilobytes.
const ANSWER_MAX: u64 = 4 << 20;

/// Status and body of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The whole body.
    pub body: String,
}

/// Asks once. Blocks for at most some [`LIMIT`]s.
///
/// # Errors
/// What the system says, or that the answer is none.
pub fn request(admin: &AdminAddress, method: &str, path: &str) -> io::Result<Answer> {
    request_within(LIMIT, admin, method, path)
}

/// As [`request`], for an answer that takes its time: no step of it longer than `limit`.
///
/// # Errors
/// As [`request`].
pub fn request_within(limit: Duration, admin: &AdminAddress, method: &str, path: &str) -> io::Result<Answer> {
    let mut stream = admin.connect(limit)?;
    let host = admin.host();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    )?;
    answer(stream)
}

/// Asks another program's port on `address`, a host with a port. Blocks for at most some [`LIMIT`]s.
///
/// # Errors
/// As [`request`].
pub fn get(address: &str, path: &str) -> io::Result<Answer> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for at in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&at, LIMIT) {
            Ok(mut stream) => {
                stream.set_read_timeout(Some(LIMIT))?;
                stream.set_write_timeout(Some(LIMIT))?;
                // Of version 1.0, so that nobody answers in chunks.
                write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
                return answer(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn answer(stream: impl Read) -> io::Result<Answer> {
    let mut bytes = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut bytes)?;
    let text = String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData)?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let status =
        head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    Ok(Answer { status, body: body.to_owned() })
}

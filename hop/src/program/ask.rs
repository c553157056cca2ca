//! The little HTTP that asking one's own admin port takes: one request, one answer, the connection closed.

use std::io::{self, Read as _, Write as _};
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
    let mut bytes = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut bytes)?;
    let text = String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData)?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let status =
        head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    Ok(Answer { status, body: body.to_owned() })
}

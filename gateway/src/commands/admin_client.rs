//! The little HTTP that asking one's own admin port takes: one request, one answer, the connection closed.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use pithead_hop::program::{ExitCode, ProgramError};
use pithead_proto::errors::v1::ErrorReason;

/// A healthy gateway answers at once.
const LIMIT: Duration = Duration::from_secs(5);
/// A status page has a few kilobytes.
const ANSWER_MAX: u64 = 4 << 20;

/// Status and body of an answer.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
}

pub(super) fn request(admin: SocketAddr, method: &str, path: &str) -> io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&admin, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    )?;
    let mut bytes = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut bytes)?;
    let text = String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData)?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let status =
        head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    Ok(Answer { status, body: body.to_owned() })
}

fn unreachable(admin: SocketAddr, why: &str) -> ProgramError {
    ProgramError::new(ErrorReason::PeerUnreachable, format!("no gateway answers on {admin}: {why}"))
        .todo("check that it runs and that [admin] listen is the same in its configuration")
        .exit(ExitCode::PEER_UNAVAILABLE)
}

pub(super) fn statusz(admin: SocketAddr) -> Result<serde_json::Value, ProgramError> {
    let answer = request(admin, "GET", "/statusz").map_err(|error| unreachable(admin, &error.to_string()))?;
    if answer.status != 200 {
        return Err(unreachable(admin, &format!("status {}", answer.status)));
    }
    serde_json::from_str(&answer.body).map_err(|error| unreachable(admin, &error.to_string()))
}

/// A page as it is.
pub(super) fn get(admin: SocketAddr, path: &str) -> Result<String, ProgramError> {
    let answer = request(admin, "GET", path).map_err(|error| unreachable(admin, &error.to_string()))?;
    match answer.status {
        200 => Ok(answer.body),
        status => Err(unreachable(admin, &format!("status {status}"))),
    }
}

/// Who is connected; nothing if nobody answers.
pub(super) fn devices(admin: SocketAddr) -> Option<serde_json::Value> {
    let answer = request(admin, "GET", "/devices").ok().filter(|answer| answer.status == 200)?;
    serde_json::from_str(&answer.body).ok()
}

/// Gives an order to the running gateway, and gets what it says.
pub(super) fn post(admin: SocketAddr, path: &str) -> Result<String, ProgramError> {
    let answer = request(admin, "POST", path).map_err(|error| unreachable(admin, &error.to_string()))?;
    let said = answer.body.trim_end();
    match answer.status {
        200..=299 => Ok(answer.body),
        404 if said.is_empty() => Err(unreachable(admin, "it is of a version that does not know this order")),
        400..=499 => Err(ProgramError::new(ErrorReason::RequestInvalid, said).exit(ExitCode::FAILED)),
        _ => Err(ProgramError::new(ErrorReason::DiskFailed, said).exit(ExitCode::FAILED)),
    }
}

//! The running gateway, asked over its own admin port: what it says, and errors that say what to do.

use pithead_hop::program::admin::AdminAddress;
pub(super) use pithead_hop::program::ask::{request, request_within};
use pithead_hop::program::{ExitCode, ProgramError};
use pithead_proto::errors::v1::ErrorReason;

pub(super) fn unreachable(admin: &AdminAddress, why: &str) -> ProgramError {
    ProgramError::new(ErrorReason::PeerUnreachable, format!("no gateway answers on {admin}: {why}"))
        .todo("check that it runs and that [admin] listen is the same in its configuration")
        .exit(ExitCode::PEER_UNAVAILABLE)
}

pub(super) fn statusz(admin: &AdminAddress) -> Result<serde_json::Value, ProgramError> {
    let answer = request(admin, "GET", "/statusz").map_err(|error| unreachable(admin, &error.to_string()))?;
    if answer.status != 200 {
        return Err(unreachable(admin, &format!("status {}", answer.status)));
    }
    serde_json::from_str(&answer.body).map_err(|error| unreachable(admin, &error.to_string()))
}

/// A page as it is.
pub(super) fn get(admin: &AdminAddress, path: &str) -> Result<String, ProgramError> {
    let answer = request(admin, "GET", path).map_err(|error| unreachable(admin, &error.to_string()))?;
    match answer.status {
        200 => Ok(answer.body),
        status => Err(unreachable(admin, &format!("status {status}"))),
    }
}

/// Who is connected; nothing if nobody answers.
pub(super) fn devices(admin: &AdminAddress) -> Option<serde_json::Value> {
    let answer = request(admin, "GET", "/devices").ok().filter(|answer| answer.status == 200)?;
    serde_json::from_str(&answer.body).ok()
}

/// Gives an order to the running gateway, and gets what it says.
pub(super) fn post(admin: &AdminAddress, path: &str) -> Result<String, ProgramError> {
    let answer = request(admin, "POST", path).map_err(|error| unreachable(admin, &error.to_string()))?;
    let said = answer.body.trim_end();
    match answer.status {
        200..=299 => Ok(answer.body),
        404 if said.is_empty() => Err(unreachable(admin, "it is of a version that does not know this order")),
        400..=499 => Err(ProgramError::new(ErrorReason::RequestInvalid, said).exit(ExitCode::FAILED)),
        _ => Err(ProgramError::new(ErrorReason::DiskFailed, said).exit(ExitCode::FAILED)),
    }
}

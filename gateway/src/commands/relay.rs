//! `relay status | pause | resume | rate`: how the relay of the running gateway is, and what it is told.

use std::io::Write;
use std::path::Path;

use pithead_hop::program::{ExitCode, ProgramError};
use pithead_proto::errors::v1::ErrorReason;

use super::admin_client;
use crate::cli::Output;
use crate::config::Config;
use crate::envelopes::relay::control::Rate;

/// How it is. Ends with 3 while it stands still or the far end is away.
///
/// # Errors
/// When no gateway answers.
pub fn status(path: &Path, output: Output, out: &mut dyn Write) -> Result<ExitCode, ProgramError> {
    let config = Config::load(path)?;
    let mut status = admin_client::statusz(&config.admin.listen)?;
    let lamp = status["dimensions"]["relay"].take();
    let mut facts = status["relay"].take();
    facts["level"] = lamp["level"].clone();
    facts["words"] = lamp["words"].clone();
    let text = match output {
        Output::Json => super::json(&facts),
        Output::Table => super::table(&facts),
    };
    super::write(out, &text)?;
    Ok(if facts["level"] == "ok" { ExitCode::OK } else { ExitCode::DEGRADED })
}

/// It stands still until it is resumed, over restarts too. Devices are served all the same.
///
/// # Errors
/// When no gateway answers, or its disk does not take the order.
pub fn pause(path: &Path, out: &mut dyn Write) -> Result<ExitCode, ProgramError> {
    order(path, "/relay/pause", out)
}

/// It goes on.
///
/// # Errors
/// As [`pause`].
pub fn resume(path: &Path, out: &mut dyn Write) -> Result<ExitCode, ProgramError> {
    order(path, "/relay/resume", out)
}

/// Not faster than this from now on, over restarts too.
///
/// # Errors
/// As [`pause`].
pub fn rate(path: &Path, rate: &str, out: &mut dyn Write) -> Result<ExitCode, ProgramError> {
    if let Err(error) = rate.parse::<Rate>() {
        return Err(ProgramError::new(ErrorReason::RequestInvalid, error.to_string()).exit(ExitCode::USAGE));
    }
    order(path, &format!("/relay/rate/{rate}"), out)
}

fn order(path: &Path, what: &str, out: &mut dyn Write) -> Result<ExitCode, ProgramError> {
    let config = Config::load(path)?;
    let answer = admin_client::post(&config.admin.listen, what)?;
    super::done(out, &answer)
}

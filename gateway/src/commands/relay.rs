//! `relay status | pause | resume | rate`: how the relay of the running gateway is, and what it is told.

use std::io::Write;
use std::path::Path;

use pithead_hop::program::{ExitCode, ProgramError};
use pithead_proto::errors::v1::ErrorReason;
use serde_json::Value;

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
        Output::Table => super::table(&once(facts.clone())),
    };
    super::write(out, &text)?;
    Ok(if facts["level"] == "ok" { ExitCode::OK } else { ExitCode::DEGRADED })
}

/// What the words say already is not said again, for people.
fn once(mut facts: Value) -> Value {
    let said = |what: &str| {
        let rest = what.split_once(": ").map_or(what, |(_, rest)| rest);
        facts["words"].as_str().is_some_and(|words| words.ends_with(rest))
    };
    if facts["failure"].as_str().is_some_and(said) {
        facts["failure"] = Value::Null;
    }
    facts
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_code_is_said_once() {
        let words = "PH-4005 PEER_UNREACHABLE: no connection: refused";
        let facts = json!({ "failure": "PH-4005: no connection: refused", "words": words, "up": false });
        assert_eq!(once(facts)["failure"], Value::Null);
        let paused = json!({ "failure": "PH-4005: no connection: refused", "words": "paused by hand" });
        assert_eq!(once(paused.clone()), paused);
    }
}

//! `status`: how the running gateway is, with an exit code for scripts.

use std::io::Write;
use std::path::Path;

use pithead_hop::program::{ExitCode, ProgramError};
use serde_json::Value;

use super::admin_client::statusz;
use crate::cli::Output;
use crate::config::Config;

/// Asks the admin port.
///
/// # Errors
/// When nobody answers there.
pub fn print(path: &Path, output: Output, out: &mut dyn Write) -> Result<ExitCode, ProgramError> {
    let config = Config::load(path)?;
    let status = statusz(config.admin.listen)?;
    super::write(out, &if output == Output::Json { super::json(&status) } else { table(&status) })?;
    Ok(code(&status))
}

fn code(status: &Value) -> ExitCode {
    let lamps = status["dimensions"].as_object();
    let all_well = lamps.is_some_and(|lamps| lamps.values().all(|lamp| lamp["level"] == "ok"));
    match status["ready"].as_bool() {
        Some(true) if all_well => ExitCode::OK,
        Some(true) => ExitCode::DEGRADED,
        _ => ExitCode::NOT_READY,
    }
}

fn table(status: &Value) -> String {
    let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let ready = if status["ready"] == true { "ready" } else { "not ready" };
    let mut text = format!("{} at {}: {ready}\n", word(&status["gateway"]), word(&status["site"]));
    for (name, lamp) in status["dimensions"].as_object().into_iter().flatten() {
        let (level, words) = (word(&lamp["level"]), word(&lamp["words"]));
        text += &format!("  {name:7} {level:9} {:>8} s  {words}\n", lamp["for_s"]);
    }
    for section in ["ingest", "keys", "spool", "relay"] {
        text += &format!("{section}\n");
        for (name, value) in status[section].as_object().into_iter().flatten() {
            if !value.is_null() {
                text += &format!("  {name:24} {}\n", word(value));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_exit_code_says_well_degraded_or_not_ready() {
        let status = |ready: bool, relay: &str| json!({ "ready": ready, "dimensions": { "keys": { "level": "ok" }, "relay": { "level": relay } } });
        assert_eq!(code(&status(true, "ok")), ExitCode::OK);
        assert_eq!(code(&status(true, "degraded")), ExitCode::DEGRADED);
        assert_eq!(code(&status(false, "ok")), ExitCode::NOT_READY);
        assert_eq!(code(&json!({})), ExitCode::NOT_READY);
    }
}

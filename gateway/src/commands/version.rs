//! `version`: what this build is, and what it cannot do.

use std::io::Write;

use pithead_hop::program::{ExitCode, ProgramError};
use pithead_sealing::OPENER_COMPILED_IN;
use serde_json::json;

use crate::cli::Output;

/// Says the version and whether an opener of envelopes is compiled in. In a shipped gateway it is not.
///
/// # Errors
/// When the output cannot be written.
pub fn print(output: Output, out: &mut dyn Write) -> Result<ExitCode, ProgramError> {
    let version = env!("CARGO_PKG_VERSION");
    let text = match output {
        Output::Json => super::json(
            &json!({ "name": "pithead-gateway", "version": version, "opener": OPENER_COMPILED_IN }),
        ),
        Output::Table => {
            let opener = if OPENER_COMPILED_IN { "compiled in" } else { "not compiled in" };
            format!("pithead-gateway {version}\nopener: {opener}\n")
        }
    };
    super::done(out, &text)
}

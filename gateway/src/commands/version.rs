//! `version`: what this build is, what it cannot do, and what it can.

use std::io::Write;

use pithead_hop::program::{ExitCode, ProgramError, traces};
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
        Output::Json => super::json(&json!({
            "name": "pithead-gateway",
            "version": version,
            "opener": OPENER_COMPILED_IN,
            "otlp": traces::COMPILED_IN,
        })),
        Output::Table => {
            let say = |is_in| if is_in { "compiled in" } else { "not compiled in" };
            let (opener, otlp) = (say(OPENER_COMPILED_IN), say(traces::COMPILED_IN));
            format!("pithead-gateway {version}\nopener: {opener}\notlp: {otlp}\n")
        }
    };
    super::done(out, &text)
}

//! What the command line can do besides running: each answers and ends.

pub mod certificate;
pub mod check;
pub mod config;
pub mod device;
pub mod drain;
pub mod init;
pub mod key;
pub mod refused;
pub mod relay;
pub mod reload;
pub mod spool;
pub mod status;
pub mod top;
pub mod version;

mod admin_client;
mod meaning;
mod reading;

use std::io::{self, Write};

use pithead_hop::program::{ExitCode, ProgramError};
use pithead_proto::errors::v1::ErrorReason;

/// Writes a result; a reader that has gone away (`| head`) is no failure of ours.
pub(crate) fn write(out: &mut dyn Write, text: &str) -> Result<(), ProgramError> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(ProgramError::new(ErrorReason::Unspecified, format!("cannot write the result: {error}")))
        }
        _ => Ok(()),
    }
}

fn done(out: &mut dyn Write, text: &str) -> Result<ExitCode, ProgramError> {
    write(out, text).map(|()| ExitCode::OK)
}

fn json(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}

/// What a code means. Needs no configuration and no gateway.
///
/// # Errors
/// When no reason is called that.
pub fn explain(code: Option<&str>, out: &mut dyn Write) -> Result<ExitCode, ProgramError> {
    done(out, &pithead_hop::program::explain::answer(code)?)
}

/// A fact a line, with the names that JSON has: scripts look for them as well.
fn table(facts: &serde_json::Value) -> String {
    let word = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let facts = facts.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
    facts.map(|(name, value)| format!("{name:28} {}\n", word(value))).collect()
}

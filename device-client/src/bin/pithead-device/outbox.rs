//! `outbox`: what waits.

use std::path::Path;

use pithead_hop::program::{ExitCode, ProgramError};
use serde_json::json;

use crate::{config::Config, output::Output};

pub(crate) fn stat(file: &Path, output: Output) -> Result<ExitCode, ProgramError> {
    let device = Config::load(file)?.open()?;
    let stats = device.outbox().stats();
    output.print(&[
        ("envelopes", json!(stats.records)),
        ("bytes", json!(stats.bytes)),
        ("capacity_bytes", json!(stats.capacity_bytes)),
        ("available_bytes", json!(stats.available_bytes)),
        ("oldest_ms", json!(stats.oldest_ms)),
        ("corrupt", json!(stats.corrupt_records)),
    ]);
    Ok(ExitCode::OK)
}

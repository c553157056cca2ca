//! `outbox`: what waits. It only looks, so a client may be working in the folder.

use std::path::Path;

use pithead_device_client::StreamSurvey;
use pithead_hop::program::{ExitCode, ProgramError};
use serde_json::json;

use crate::{config::Config, failure, output::Output};

pub(crate) fn stat(file: &Path, output: Output) -> Result<ExitCode, ProgramError> {
    let state = Config::load(file)?.state();
    let streams = pithead_device_client::survey(&state).map_err(|error| failure::survey(&error))?;
    show(&streams, output);
    Ok(ExitCode::OK)
}

fn show(streams: &[StreamSurvey], output: Output) {
    let sum = |of: fn(&StreamSurvey) -> u64| streams.iter().map(of).sum::<u64>();
    output.print(&[
        ("envelopes", json!(sum(|stream| stream.envelopes))),
        ("records", json!(sum(|stream| stream.records))),
        ("bytes", json!(sum(|stream| stream.bytes))),
        ("oldest_ms", json!(streams.iter().filter_map(|stream| stream.oldest_ms).min())),
        ("damaged", json!(sum(|stream| stream.damaged))),
    ]);
}

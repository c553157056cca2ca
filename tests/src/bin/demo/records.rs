//! What the devices have to say: a shift that is made up, or a recording.

use std::{fs::File, io::BufReader, path::Path};

use anyhow::{Context as _, ensure};
use pithead_tests::{
    authority,
    telemetry::{Truck, read_candump},
};

/// The records of `devices` devices, `count` each; one line of a candump log is one record.
pub(crate) fn gather(
    devices: u16,
    count: usize,
    recording: Option<&Path>,
) -> anyhow::Result<Vec<Vec<String>>> {
    let Some(path) = recording else {
        let start_us = i64::try_from(authority::now().as_secs())? * 1_000_000;
        let shift =
            |number| Truck::new(u64::from(number), start_us).take(count).map(|frame| frame.to_candump());
        return Ok((1..=devices).map(|number| shift(number).collect()).collect());
    };
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let frames = read_candump(BufReader::new(file)).with_context(|| path.display().to_string())?;
    ensure!(!frames.is_empty(), "{} has no frames", path.display());
    let lines: Vec<String> = frames.iter().map(|frame| frame.to_candump()).collect();
    // Every device starts at another place of the recording, and begins again at its end.
    let from = |number: u16| usize::from(number) * lines.len() / usize::from(devices);
    let replay = |number| lines.iter().cycle().skip(from(number)).take(count).cloned().collect();
    Ok((0..devices).map(replay).collect())
}

//! `air`: bytes that cross the radio for each byte recorded: everything on the TCP connection, TLS, HTTP/2, answers and keys
//! included, through a wire that counts.
//!
//! 100-byte records at several rates, and, with `--recording FILE`, a `candump -l` recording replayed line by line, each
//! with and without zstd.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use pithead_device_client::client::{Client, StreamOptions};
use pithead_sealing::StreamName;
use pithead_tests::{
    link::{Carried, Link},
    site::{Site, SiteOptions},
    vehicle,
};
use serde::Serialize;

use crate::report::Row;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// One JSON object a line instead of a table.
    #[arg(long)]
    json: bool,
    /// Bytes of each record.
    #[arg(long, default_value_t = 100)]
    record_bytes: usize,
    /// How long each rate is held.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// A `candump -l` recording to replay.
    #[arg(long, value_name = "FILE")]
    recording: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Facts {
    payload_bytes: u64,
    envelopes: u64,
    sealed_bytes: u64,
    up: u64,
    down: u64,
    linger_ms: u64,
    zstd: bool,
}

const PATIENCE: Duration = Duration::from_secs(120);

/// What is recorded, and how.
struct Load {
    name: String,
    linger: Duration,
    zstd: bool,
}

pub(crate) async fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    let site = Site::start(SiteOptions { bits: 3072, ..SiteOptions::default() }).await?;
    let link = Link::start("127.0.0.1:0".parse()?, site.gateway_address()).await?;
    for (rate, linger_ms) in [(100_u64, 200), (100, 1_000), (1_000, 200), (1_000, 1_000), (10_000, 200)] {
        let load = Load {
            name: format!("air-{rate}/s-{linger_ms}ms"),
            linger: Duration::from_millis(linger_ms),
            zstd: false,
        };
        let record = noise(arguments.record_bytes);
        let count = rate * arguments.seconds;
        run(arguments, &site, &link, &load, async |client| {
            let stream = client.stream("can").context("the stream")?;
            let began = Instant::now();
            for number in 0..count {
                let due = Duration::from_secs_f64(number as f64 / rate as f64);
                if let Some(early) = due.checked_sub(began.elapsed()).filter(|early| early.as_millis() > 0) {
                    tokio::time::sleep(early).await;
                }
                stream.record(&record)?;
            }
            Ok(count * arguments.record_bytes as u64)
        })
        .await?;
    }
    let Some(path) = &arguments.recording else { return Ok(()) };
    let recording = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    for zstd in [false, true] {
        let name = if zstd { "air-recording-zstd" } else { "air-recording" };
        let load = Load { name: name.into(), linger: Duration::from_secs(1), zstd };
        run(arguments, &site, &link, &load, async |client| {
            let stream = client.stream("can").context("the stream")?;
            for line in recording.lines() {
                while stream.record(line.as_bytes()).is_err() {
                    stream.room().await;
                }
            }
            // Against the file as it is, line ends included.
            Ok(recording.len() as u64)
        })
        .await?;
    }
    Ok(())
}

/// Bytes that no compression makes smaller.
fn noise(bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    // Without the kernel's generator nothing here runs at all.
    let _ = getrandom::fill(&mut noise);
    noise
}

async fn run(
    arguments: &Arguments,
    site: &Site,
    link: &Link,
    load: &Load,
    record: impl AsyncFnOnce(&Client) -> anyhow::Result<u64>,
) -> anyhow::Result<()> {
    let device = site.enroll(&load.name.replace('/', "-")).await?;
    // The key comes once in a vehicle's life, and not over this wire.
    device.key().await?;
    let stream = StreamOptions::records("can".parse::<StreamName>()?).linger(load.linger);
    let stream = if load.zstd { stream.compress() } else { stream };
    let before = link.carried();
    let client = vehicle::client(&device, &[link.address()])?.stream(stream).open()?;
    let payload_bytes = record(&client).await?;
    client.finish(PATIENCE).await?;
    let status = tokio::task::spawn_blocking(move || client.close(Duration::ZERO)).await??;
    let Carried { up, down, .. } = link.carried();
    let (up, down) = (up - before.up, down - before.down);
    let of = status.streams.values().next().context("the stream")?;
    ensure!(of.waiting == 0 && of.refused == 0 && of.settled.stored == of.sealed, "not delivered: {of:?}");
    let facts = Facts {
        payload_bytes,
        envelopes: of.sealed,
        sealed_bytes: of.sealed_bytes,
        up,
        down,
        linger_ms: u64::try_from(load.linger.as_millis())?,
        zstd: load.zstd,
    };
    let value = (up + down) as f64 / payload_bytes as f64;
    Row::alone(&load.name, value, "bytes on the air per byte", facts)
        .against("sealed bytes alone", of.sealed_bytes as f64 / payload_bytes as f64)
        .print(arguments.json)
}

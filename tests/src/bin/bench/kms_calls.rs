//! `kms-calls`: how often KMS is asked to decrypt for many small records of several devices.
//!
//! The devices are processes fed through their standard input; gateway and decryptor are the shipped programs; the KMS
//! counts the requests that reach it, retries included. Delivered is what lies in the sink, each record once.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use pithead_tests::{
    device::{Device, Summary},
    kms::Operation,
    ledger::{Ledger, hash_of},
    program::PATIENCE,
    site::{Custody, Site, SiteOptions},
};
use serde::Serialize;

use crate::report::Row;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// One JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// Records of all devices together.
    #[arg(long, default_value_t = 1_000_000)]
    records: u64,
    /// How many devices.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    devices: u64,
    /// Bytes of each record.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(20..=100_000))]
    record_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Facts {
    records: u64,
    delivered: u64,
    devices: u64,
    record_bytes: u64,
    envelopes: u64,
    sessions: u64,
    seconds: f64,
}

pub(crate) async fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    let options = SiteOptions { custody: Custody::Kms, bits: 3072, ..SiteOptions::default() };
    let mut site = Site::start(options).await?;
    let mut devices = Vec::new();
    for number in 1..=arguments.devices {
        devices.push(site.enroll(&format!("truck-{number}")).await?);
    }
    let began = Instant::now();
    let measured = run(arguments, &mut site, &devices).await;
    let (ledger, calls) = measured.with_context(|| site.log_tails())?;
    let seconds = began.elapsed().as_secs_f64();
    let facts = Facts {
        records: ledger.devices.records,
        delivered: ledger.delivered_records,
        devices: arguments.devices,
        record_bytes: arguments.record_bytes,
        envelopes: ledger.devices.envelopes,
        sessions: ledger.devices.sessions,
        seconds,
    };
    Row::alone("kms_calls", calls as f64, "calls", facts)
        .against("one call per record", arguments.records as f64)
        .print(arguments.json)?;
    ensure!(
        ledger.devices.records == arguments.records,
        "the devices sealed {} records",
        ledger.devices.records
    );
    ensure!(ledger.kms_calls == calls, "the decryptor counts {} calls, KMS {calls}", ledger.kms_calls);
    ledger.check()?;
    site.stop().await
}

async fn run(arguments: &Arguments, site: &mut Site, devices: &[Device]) -> anyhow::Result<(Ledger, u64)> {
    let mut sending = tokio::task::JoinSet::new();
    for (number, device) in (0..).zip(devices) {
        // The first devices take what does not divide evenly.
        let share =
            arguments.records / arguments.devices + u64::from(number < arguments.records % arguments.devices);
        let (device, bytes) = (device.clone(), arguments.record_bytes);
        sending.spawn(async move { send(&device, number, share, bytes).await });
    }
    let mut summaries = Vec::new();
    while let Some(sent) = sending.join_next().await {
        summaries.push(sent??);
    }
    tokio::time::timeout(PATIENCE * 10, site.until_relayed())
        .await
        .context("the decryptor does not follow")??;
    let delivered = site.delivered()?;
    for (number, device) in (0..).zip(devices) {
        let got = delivered.records_of(device.name());
        let sent = (0..got.len() as u64).map(|at| record(number, at, arguments.record_bytes));
        ensure!(hash_of(&got) == hash_of(sent), "{}: what was delivered is not what was sent", device.name());
    }
    let ledger = Ledger::draw_up(&summaries, &delivered, site.decryptor()?.admin()).await?;
    let calls = site.kms.as_ref().context("the site has no KMS")?.count(Operation::Decrypt);
    Ok((ledger, calls))
}

async fn send(device: &Device, number: u64, share: u64, bytes: u64) -> anyhow::Result<Summary> {
    let mut sending = device.start_sending_with("telemetry", &["--timeout", "600s"])?;
    for at in 0..share {
        sending.record(&record(number, at, bytes)).await?;
    }
    sending.finish().await
}

/// One record of exactly `bytes` bytes, different from all others.
fn record(device: u64, at: u64, bytes: u64) -> String {
    let width = usize::try_from(bytes).unwrap_or(usize::MAX).saturating_sub(5);
    format!("{device:04} {at:0width$}")
}

//! `latency`: how long an acknowledgement takes at part of the rate that the gateway can do, beside what one sync of this
//! disk takes.

use std::time::{Duration, Instant};

use anyhow::ensure;
use pithead_tests::site::Site;
use serde::Serialize;

use crate::{
    disk,
    ingest::load::{self, Shape},
    report::{Row, note, quantile, rounded},
    site::Yard,
};

const CLIENTS: usize = 16;
const WINDOW: usize = 64;
const SIZE: usize = 1 << 10;
/// Envelopes of each client while the full rate is measured.
const FULL_EACH: usize = 6_250;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// One JSON object per line instead of a table.
    #[arg(long)]
    json: bool,
    /// Seconds at each rate.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
}

#[derive(Debug, Serialize)]
struct Facts {
    percent_of_full: u32,
    per_second: f64,
    asked_per_second: f64,
    full_per_second: f64,
    envelopes: u64,
    sync_p99_us: f64,
}

pub(crate) async fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    let mut site = Yard { spool: "16GiB", relay: false }.start().await?;
    let measured = rates(arguments, &site).await;
    measured.map_err(|error| error.context(site.log_tails()))?;
    site.stop().await
}

async fn rates(arguments: &Arguments, site: &Site) -> anyhow::Result<()> {
    let shape = Shape { size: SIZE, clients: CLIENTS, window: WINDOW, each: FULL_EACH };
    let clients = load::seal(site, shape, 1).await?;
    let full = load::send(site.gateway_address(), clients, WINDOW, None).await?;
    let full = full.acknowledged as f64 / full.seconds;
    for (run, percent) in (2..).zip([10, 50, 90]) {
        let asked = full * f64::from(percent) / 100.0;
        let each = (asked * arguments.seconds as f64 / CLIENTS as f64) as usize;
        ensure!(each > 0, "too few envelopes to measure");
        let clients = load::seal(site, Shape { each, ..shape }, run).await?;
        let pace = Duration::from_secs_f64(CLIENTS as f64 / asked);
        let syncs = disk::sync_times(&site.gateway_data(), 4096, 200)?;
        let began = Instant::now();
        let sent = load::send(site.gateway_address(), clients, WINDOW, Some(pace)).await?;
        if began.elapsed() > Duration::from_secs(arguments.seconds * 2) {
            note(format!("{percent} % of the full rate could not be kept up"));
        }
        for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
            let facts = Facts {
                percent_of_full: percent,
                per_second: rounded(sent.acknowledged as f64 / sent.seconds),
                asked_per_second: rounded(asked),
                full_per_second: rounded(full),
                envelopes: sent.acknowledged,
                sync_p99_us: quantile(&syncs, 0.99),
            };
            Row::alone(format!("latency-{percent}-{name}"), quantile(&sent.latencies, share), "us", facts)
                .against("one fdatasync of 4 KiB", quantile(&syncs, 0.5))
                .print(arguments.json)?;
        }
    }
    Ok(())
}

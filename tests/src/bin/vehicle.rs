//! A vehicle in a process of its own, which a test kills. It records numbers without an end, and says of each that it was
//! taken, and now and then how many are held: what it has said before it is killed is what was promised.
//!
//! ```text
//! taken 0
//! taken 1
//! held 2
//! ```

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Parser;
use pithead_device_client::client::{Fsync, StreamOptions};
use pithead_hop::{backoff::Policy, program};
use pithead_sealing::StreamName;
use pithead_tests::vehicle;

#[derive(Debug, Parser)]
struct Arguments {
    /// The device's folder, enrolled.
    folder: PathBuf,
    /// Its name.
    device: String,
    /// A gateway, in the order of preference.
    #[arg(long = "gateway")]
    gateways: Vec<SocketAddr>,
    /// Written to the disk so often; at once if it is not given.
    #[arg(long)]
    interval_ms: Option<u64>,
    /// How long a record waits for others.
    #[arg(long, default_value_t = 5)]
    linger_ms: u64,
    /// The first number.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Records a second.
    #[arg(long, default_value_t = 2_000)]
    rate: u32,
    /// Bytes of each.
    #[arg(long, default_value_t = 100)]
    bytes: usize,
}

/// How often it says how many are held, in records.
const TOLD_EVERY: u64 = 10;

fn main() -> anyhow::Result<()> {
    program::install_crypto();
    let arguments = Arguments::parse();
    let retry = Policy { first: Duration::from_millis(50), max: Duration::from_millis(500) };
    let sync = arguments.interval_ms.map_or(Fsync::Always, |ms| Fsync::Interval(Duration::from_millis(ms)));
    let can = StreamOptions::records(StreamName::new("can")?)
        .sync(sync)
        .linger(Duration::from_millis(arguments.linger_ms));
    let client = vehicle::client_in(&arguments.folder, &arguments.device, &arguments.gateways, retry)?
        .stream(can)
        .open()?;
    let stream = client.stream("can").context("the stream")?;
    // Line by line: what was said is in the pipe, whatever becomes of this process.
    let mut out = io::stdout().lock();
    let began = Instant::now();
    for count in 0_u32.. {
        let due = began + Duration::from_secs(1) * count / arguments.rate;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let number = arguments.first + u64::from(count);
        stream.record(vehicle::record(number, arguments.bytes).as_bytes())?;
        writeln!(out, "taken {number}")?;
        if (number + 1) % TOLD_EVERY == 0 {
            let held = client.status().streams.values().map(|stream| stream.held).sum::<u64>();
            writeln!(out, "held {held}")?;
        }
    }
    Ok(())
}

//! `drain`, `restart` and `memory`: a gateway whose cloud was away for long.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufRead as _, BufReader},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use pithead_tests::{program::Program, site::Site};
use serde::{Deserialize, Serialize};

use crate::{
    ingest::{
        load::{self, Shape},
        peers,
    },
    process,
    report::{Row, note, rounded},
    site::Yard,
};

const CLIENTS: usize = 16;
/// Envelopes sealed at a time: they are held in memory.
const PORTION_BYTES: usize = 256 << 20;
/// Patience with a drain that stands still.
const STANDSTILL: Duration = Duration::from_secs(60);
/// How often a draining gateway is looked at.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Debug, clap::Args)]
pub(crate) struct DrainArguments {
    /// One JSON object per line instead of a table.
    #[arg(long)]
    json: bool,
    /// Envelopes of 1 KiB that wait.
    #[arg(long, default_value_t = 200_000)]
    envelopes: usize,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RestartArguments {
    /// One JSON object per line instead of a table.
    #[arg(long)]
    json: bool,
    /// Envelopes of 1 KiB that wait.
    #[arg(long, default_value_t = 1_000_000)]
    envelopes: usize,
    /// Do not drain it afterwards.
    #[arg(long)]
    no_drain: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct MemoryArguments {
    /// One JSON object per line instead of a table.
    #[arg(long)]
    json: bool,
    /// With 10 GB of backlog as well: 12 GB of disk, and minutes.
    #[arg(long)]
    large: bool,
    /// Idle connections.
    #[arg(long, default_value_t = 1_000)]
    connections: usize,
}

#[derive(Debug, Serialize)]
struct DrainFacts {
    mb_s: f64,
    seconds: f64,
    envelopes: usize,
    gateway_cpu_us: f64,
    decryptor_cpu_us: f64,
    in_order: bool,
}

#[derive(Debug, Serialize)]
struct RestartFacts {
    envelopes: usize,
    bytes: u64,
    resident_mib: f64,
    resident_before_kill_mib: f64,
    bytes_of_memory_per_envelope: f64,
}

#[derive(Debug, Serialize)]
struct MemoryFacts {
    envelopes: u64,
    peak_mib: f64,
}

#[derive(Debug, Serialize)]
struct ConnectionFacts {
    connections: usize,
    handshake_cpu_ms: f64,
    peers: Vec<(&'static str, f64)>,
}

pub(crate) async fn drain(arguments: &DrainArguments) -> anyhow::Result<()> {
    let mut site = Yard { spool: "16GiB", relay: true }.start().await?;
    let measured = async {
        let filled = fill(&site, 1 << 10, arguments.envelopes, 1).await?;
        drained(&mut site, arguments.envelopes, filled, "drain").await?.print(arguments.json)
    };
    let measured = measured.await;
    measured.map_err(|error| error.context(site.log_tails()))?;
    site.stop().await
}

/// Envelopes of 1 KiB a second out of a backlog into the sink on disk, and the site that they went through.
pub(crate) async fn over_call(envelopes: usize) -> anyhow::Result<(f64, Site)> {
    let mut site = Yard { spool: "16GiB", relay: true }.start().await?;
    let measured = async {
        let filled = fill(&site, 1 << 10, envelopes, 1).await?;
        drained(&mut site, envelopes, filled, "drain").await
    };
    let row = measured.await.map_err(|error| error.context(site.log_tails()))?;
    Ok((row.value, site))
}

pub(crate) async fn restart(arguments: &RestartArguments) -> anyhow::Result<()> {
    let mut site = Yard { spool: "64GiB", relay: true }.start().await?;
    let measured = restarted(arguments, &mut site).await;
    measured.map_err(|error| error.context(site.log_tails()))?;
    site.stop().await
}

async fn restarted(arguments: &RestartArguments, site: &mut Site) -> anyhow::Result<()> {
    let filled = fill(site, 1 << 10, arguments.envelopes, 1).await?;
    let before = process::resident_mib(pid(site.gateway()?)?)?;
    site.kill_gateway().await?;
    let began = Instant::now();
    site.start_gateway().await?;
    let seconds = began.elapsed().as_secs_f64();
    let resident = process::resident_mib(pid(site.gateway()?)?)?;
    let waiting = site.gateway()?.admin().metric("pithead_spool_records").await?;
    ensure!(waiting == arguments.envelopes as f64, "{waiting} envelopes wait after the kill");
    let facts = RestartFacts {
        envelopes: arguments.envelopes,
        bytes: arguments.envelopes as u64 * 1024,
        resident_mib: rounded(resident),
        resident_before_kill_mib: rounded(before),
        bytes_of_memory_per_envelope: rounded(resident * 1_048_576.0 / arguments.envelopes as f64),
    };
    Row::alone("restart", seconds, "s", facts).against("the aim", 5.0).print(arguments.json)?;
    if arguments.no_drain {
        return Ok(());
    }
    drained(site, arguments.envelopes, filled, "restart-drain").await?.print(arguments.json)
}

pub(crate) async fn memory(arguments: &MemoryArguments) -> anyhow::Result<()> {
    let mut site = Yard { spool: "32GiB", relay: false }.start().await?;
    let measured = remembered(arguments, &mut site).await;
    measured.map_err(|error| error.context(site.log_tails()))?;
    site.stop().await
}

async fn remembered(arguments: &MemoryArguments, site: &mut Site) -> anyhow::Result<()> {
    const ENVELOPE: usize = 64 << 10;
    let gateway = pid(site.gateway()?)?;
    let empty = process::resident_mib(gateway)?;
    connections(arguments, site, gateway).await?;
    // What the connections left behind belongs to no backlog.
    site.stop_gateway().await?;
    site.start_gateway().await?;
    let gateway = pid(site.gateway()?)?;
    let print = |name: &str, envelopes: u64| -> anyhow::Result<()> {
        let facts = MemoryFacts { envelopes, peak_mib: rounded(process::peak_mib(gateway)?) };
        Row::alone(name, process::resident_mib(gateway)?, "MiB", facts)
            .against("no backlog", empty)
            .print(arguments.json)
    };
    print("memory-0g", 0)?;
    let per_gigabyte = 1_000_000_000 / ENVELOPE;
    let runs = fill(site, ENVELOPE, per_gigabyte, 1).await?.next_run;
    print("memory-1g", per_gigabyte as u64)?;
    if arguments.large {
        fill(site, ENVELOPE, 9 * per_gigabyte, runs).await?;
        print("memory-10g", 10 * per_gigabyte as u64)?;
    } else {
        note("memory-10g is left out without --large");
    }
    Ok(())
}

/// Devices that are connected with an open call and say nothing.
async fn connections(arguments: &MemoryArguments, site: &Site, gateway: u32) -> anyhow::Result<()> {
    let shape = Shape { size: 1 << 10, clients: arguments.connections, window: 1, each: 0 };
    let clients = load::seal(site, shape, 1).await?;
    let (before, cpu) = (process::resident_mib(gateway)?, process::cpu_seconds(gateway)?);
    let idle = load::idle(site.gateway_address(), clients).await?;
    let count = idle.len() as f64;
    let each = (process::resident_mib(gateway)? - before) * 1024.0 / count;
    let handshakes = process::cpu_seconds(gateway)? - cpu;
    drop(idle);
    let mut theirs = Vec::new();
    for peer in peers::PEERS {
        let connections = arguments.connections;
        match tokio::task::spawn_blocking(move || peer.idle(connections)).await? {
            Ok(kib) => theirs.push((peer.name, kib)),
            Err(error) => note(format!("{error:#}")),
        }
    }
    let best = theirs.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1));
    let facts = ConnectionFacts {
        connections: arguments.connections,
        handshake_cpu_ms: rounded(handshakes * 1000.0 / count),
        peers: theirs,
    };
    let row = Row::alone("memory-connection", each, "KiB", facts);
    match best {
        Some((name, kib)) => row.against(name, kib),
        None => row,
    }
    .print(arguments.json)
}

/// How a backlog came to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Filled {
    per_second: f64,
    size: usize,
    next_run: u64,
}

/// Sends so many envelopes to a gateway whose far end is away, portion by portion, each a run of its own.
pub(crate) async fn fill(
    site: &Site,
    size: usize,
    envelopes: usize,
    first_run: u64,
) -> anyhow::Result<Filled> {
    let (mut left, mut run, mut seconds) = (envelopes, first_run, 0.0);
    while left > 0 {
        let portion = left.min((PORTION_BYTES / size).max(1));
        // What does not divide evenly is sent by one client more.
        let clients = if portion < CLIENTS { 1 } else { CLIENTS };
        let each = portion / clients;
        let window = (8 << 20) / size;
        let shape = Shape { size, clients, window: window.clamp(1, 64), each };
        let sealed = load::seal(site, shape, run).await?;
        let sent = load::send(site.gateway_address(), sealed, shape.window, None).await?;
        ensure!(sent.acknowledged == shape.total() as u64, "{} were answered", sent.acknowledged);
        left -= shape.total();
        seconds += sent.seconds;
        run += 1;
    }
    Ok(Filled { per_second: envelopes as f64 / seconds, size, next_run: run })
}

/// Brings the far end back, and waits until it has everything.
async fn drained(
    site: &mut Site,
    envelopes: usize,
    filled: Filled,
    name: &str,
) -> anyhow::Result<Row<DrainFacts>> {
    site.start_decryptor().await?;
    let (gateway, decryptor) = (pid(site.gateway()?)?, pid(site.decryptor()?)?);
    let admin = site.gateway()?.admin();
    let relayed = async || admin.metric("pithead_relay_envelopes_total").await;
    let cpu = || Ok::<_, anyhow::Error>((process::cpu_seconds(gateway)?, process::cpu_seconds(decryptor)?));
    let (mut seen, mut moved) = (relayed().await?, Instant::now());
    // The clock starts with the first answer: how long the relay waits before it tries again is no rate.
    let mut first = None;
    loop {
        let now = relayed().await?;
        if now > seen {
            (seen, moved) = (now, Instant::now());
            if first.is_none() {
                first = Some((now, moved, cpu()?));
            }
        }
        if seen >= envelopes as f64 {
            break;
        }
        ensure!(moved.elapsed() < STANDSTILL, "the relay stands still at {seen} of {envelopes}");
        tokio::time::sleep(LOOK).await;
    }
    let (before, began, cpu_before) = first.context("everything had left before the clock was started")?;
    let seconds = began.elapsed().as_secs_f64();
    let count = seen - before;
    ensure!(count > 0.0, "everything left between two looks; wait with more --envelopes");
    let each = |seconds: f64| rounded(seconds * 1e6 / count);
    let cpu_after = cpu()?;
    let (gateway_cpu, decryptor_cpu) = (cpu_after.0 - cpu_before.0, cpu_after.1 - cpu_before.1);
    let lines = in_order(&site.sink(), envelopes)?;
    let facts = DrainFacts {
        mb_s: rounded(count / seconds * filled.size as f64 / 1e6),
        seconds: rounded(seconds),
        envelopes,
        gateway_cpu_us: each(gateway_cpu),
        decryptor_cpu_us: each(decryptor_cpu),
        in_order: lines,
    };
    let row = Row::alone(name, count / seconds, "envelopes/s", facts);
    Ok(row.against("the rate at which it was filled", filled.per_second))
}

/// Whether the sink holds `envelopes` lines, each line of a device's run once and in order.
fn in_order(sink: &Path, envelopes: usize) -> anyhow::Result<bool> {
    #[derive(Deserialize)]
    struct Delivered {
        device: String,
        run: String,
        seq: u64,
    }
    let mut newest: HashMap<(String, String), u64> = HashMap::new();
    let mut count = 0;
    for line in BufReader::new(File::open(sink).with_context(|| sink.display().to_string())?).lines() {
        let Delivered { device, run, seq } = serde_json::from_str(&line?)?;
        let last = newest.entry((device, run)).or_default();
        ensure!(seq == *last + 1, "number {seq} came after {last}");
        *last = seq;
        count += 1;
    }
    ensure!(count == envelopes, "{count} envelopes were delivered");
    Ok(true)
}

fn pid(program: &Program) -> anyhow::Result<u32> {
    program.pid().context("it has ended")
}

//! `ingest`: durable envelopes a second, as many clients as the durable peers get, in the same run.
//!
//! An envelope counts when its acknowledgement came back, which on every side means that it is on disk. Nobody
//! consumes, neither from the gateway nor from a peer. Everything goes over TLS on loopback; the gateway asks for client
//! certificates besides, reads every envelope's structure and hashes it, which no peer does.

pub(crate) mod load;
pub(crate) mod peers;
mod wire;

use pithead_tests::site::Site;
use serde::Serialize;

use crate::{
    process,
    report::{Row, median, note, quantile, rounded},
    site::Yard,
};
pub(crate) use load::Shape;
use peers::{Measured, PEERS};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// One JSON object per line instead of a table.
    #[arg(long)]
    json: bool,
    /// Only these rows: 1k, 64k, 1m, 256x1.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// How often each is measured, taking turns; the row is the one in the middle.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=99))]
    rounds: u64,
    /// The gateway alone.
    #[arg(long)]
    no_peers: bool,
    /// This many times as many envelopes.
    #[arg(long, default_value_t = 1)]
    longer: usize,
}

const ROWS: [(&str, Shape); 4] = [
    ("1k", Shape { size: 1 << 10, clients: 16, window: 64, each: 6_250 }),
    ("64k", Shape { size: 64 << 10, clients: 16, window: 16, each: 500 }),
    ("1m", Shape { size: 1 << 20, clients: 16, window: 4, each: 40 }),
    ("256x1", Shape { size: 1 << 10, clients: 256, window: 1, each: 200 }),
];

#[derive(Debug, Serialize)]
struct Facts {
    mb_s: f64,
    server_cpu_us: f64,
    client_cpu_us: f64,
    ack_p50_ms: f64,
    ack_p99_ms: f64,
    peak_mib: f64,
    size: usize,
    clients: usize,
    window: usize,
    envelopes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    baseline_cpu_us: Option<f64>,
    peers: Vec<PeerFacts>,
}

#[derive(Debug, Serialize)]
struct PeerFacts {
    peer: &'static str,
    value: f64,
    mb_s: f64,
    server_cpu_us: f64,
    ack_p50_ms: f64,
    ack_p99_ms: f64,
}

pub(crate) async fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    let mut absent = vec![arguments.no_peers; PEERS.len()];
    for (name, shape) in ROWS {
        if !arguments.rows.is_empty() && !arguments.rows.iter().any(|asked| asked == name) {
            continue;
        }
        let shape = Shape { each: shape.each * arguments.longer, ..shape };
        row(name, shape, arguments, &mut absent).await?.print(arguments.json)?;
    }
    Ok(())
}

async fn row(
    name: &str,
    shape: Shape,
    arguments: &Arguments,
    absent: &mut [bool],
) -> anyhow::Result<Row<Facts>> {
    let mut ours = Vec::new();
    let mut theirs: Vec<Vec<Measured>> = vec![Vec::new(); PEERS.len()];
    for _ in 0..arguments.rounds {
        ours.push(gateway(shape).await?);
        for (number, peer) in PEERS.iter().enumerate() {
            if absent[number] {
                continue;
            }
            match tokio::task::spawn_blocking(move || peer.measure(shape)).await? {
                Ok(measured) => theirs[number].push(measured),
                Err(error) => {
                    note(format!("{error:#}"));
                    absent[number] = true;
                }
            }
        }
    }
    ours.sort_by(|a, b| a.per_second.total_cmp(&b.per_second));
    let ours = &ours[ours.len() / 2];
    let mb_s = |per_second: f64| rounded(per_second * shape.size as f64 / 1e6);
    let peers: Vec<PeerFacts> = PEERS
        .iter()
        .zip(&theirs)
        .filter(|(_, runs)| !runs.is_empty())
        .map(|(peer, runs)| {
            let middle = |of: fn(&Measured) -> f64| median(runs.iter().map(of).collect());
            let value = middle(|run| run.msgs_s);
            PeerFacts {
                peer: peer.name,
                value,
                mb_s: mb_s(value),
                server_cpu_us: middle(|run| run.server_cpu_us_per_msg),
                ack_p50_ms: middle(|run| run.ack_p50_ms),
                ack_p99_ms: middle(|run| run.ack_p99_ms),
            }
        })
        .collect();
    let best = peers.iter().max_by(|a, b| a.value.total_cmp(&b.value)).map(|best| (best.peer, best.value));
    let facts = Facts {
        mb_s: mb_s(ours.per_second),
        server_cpu_us: ours.server_cpu_us,
        client_cpu_us: ours.client_cpu_us,
        ack_p50_ms: ours.p50_ms,
        ack_p99_ms: ours.p99_ms,
        peak_mib: ours.peak_mib,
        size: shape.size,
        clients: shape.clients,
        window: shape.window,
        envelopes: shape.total(),
        baseline_cpu_us: peers
            .iter()
            .max_by(|a, b| a.value.total_cmp(&b.value))
            .map(|best| best.server_cpu_us),
        peers,
    };
    let row = Row::alone(format!("ingest-{name}"), ours.per_second, "envelopes/s", facts);
    Ok(match best {
        Some((name, value)) => row.against(name, value),
        None => row,
    })
}

/// One run against a gateway of its own.
#[derive(Debug)]
struct Run {
    per_second: f64,
    server_cpu_us: f64,
    client_cpu_us: f64,
    p50_ms: f64,
    p99_ms: f64,
    peak_mib: f64,
}

async fn gateway(shape: Shape) -> anyhow::Result<Run> {
    let mut site = Yard { spool: "8GiB", relay: false }.start().await?;
    let clients = load::seal(&site, shape, 1).await?;
    let run = loaded(&mut site, shape, clients).await;
    let run = run.map_err(|error| error.context(site.log_tails()))?;
    site.stop().await?;
    Ok(run)
}

async fn loaded(site: &mut Site, shape: Shape, clients: Vec<load::Client>) -> anyhow::Result<Run> {
    let pid = site.gateway()?.pid().unwrap_or_default();
    let own = std::process::id();
    let calls = load::open(site.gateway_address(), clients).await?;
    let (before, own_before) = (process::cpu_seconds(pid)?, process::cpu_seconds(own)?);
    let sent = load::send_over(calls, shape.window, None).await?;
    let (server, client) = (process::cpu_seconds(pid)? - before, process::cpu_seconds(own)? - own_before);
    anyhow::ensure!(sent.acknowledged == shape.total() as u64, "{} were answered", sent.acknowledged);
    let each = |seconds: f64| rounded(seconds * 1e6 / sent.acknowledged as f64);
    Ok(Run {
        per_second: sent.acknowledged as f64 / sent.seconds,
        server_cpu_us: each(server),
        client_cpu_us: each(client),
        p50_ms: quantile(&sent.latencies, 0.5) / 1000.0,
        p99_ms: quantile(&sent.latencies, 0.99) / 1000.0,
        peak_mib: rounded(process::peak_mib(pid)?),
    })
}

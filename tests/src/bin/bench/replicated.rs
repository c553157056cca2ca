//! `replicated`: durable envelopes a second at a gateway whose spool is JetStream, beside plain publishes to the same servers, each of
//! which syncs before it acknowledges on both sides.
//!
//! JetStream syncs once for each message whatever its size. The gateway packs what waits into one message; whoever publishes each envelope by
//! itself cannot. So the ratio says what packing is worth, TLS, certificates, structure checks and hashes of the gateway included. All
//! servers share one machine and its disk here, which is harder for three of them than three machines are.

use std::{path::PathBuf, time::Instant};

use anyhow::Context as _;
use async_nats::jetstream::{self, stream};
use futures_util::StreamExt as _;
use pithead_tests::{
    nats::{Nats, NatsOptions, binary},
    program::Admin,
    site::{KeySource, Site, SiteOptions},
};
use serde::Serialize;

use crate::{
    ingest::{Shape, load},
    report::{Row, median, note, quantile, rounded},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// One JSON object per line instead of a table.
    #[arg(long)]
    json: bool,
    /// How often each is measured, taking turns; the row is the one in the middle.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=99))]
    rounds: u64,
    /// Only with so many servers: 1, 3.
    #[arg(long, value_delimiter = ',')]
    servers: Vec<usize>,
    /// Only of this load: `few` are 16 clients with 64 envelopes under way, `fleet` are 256 with 16.
    #[arg(long)]
    load: Option<Load>,
}

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
enum Load {
    Few,
    Fleet,
}

impl Load {
    /// What follows the number of servers in the name of a row.
    fn suffix(self) -> &'static str {
        match self {
            Self::Few => "",
            Self::Fleet => "-fleet",
        }
    }

    /// What goes through the gateway.
    fn sealed(self) -> Shape {
        match self {
            Self::Few => Shape { size: 1 << 10, clients: 16, window: 64, each: 10_000 },
            Self::Fleet => Shape { size: 1 << 10, clients: 256, window: 16, each: 1_000 },
        }
    }

    /// What is published plainly, which syncs each by itself: a part of the envelopes takes long enough.
    fn plain(self) -> Shape {
        match self {
            Self::Few => Shape { each: 1_000, ..self.sealed() },
            Self::Fleet => Shape { each: 100, ..self.sealed() },
        }
    }
}

#[derive(Debug, Serialize)]
struct Facts {
    ack_p50_ms: f64,
    ack_p99_ms: f64,
    envelopes_per_message: f64,
    size: usize,
    clients: usize,
    window: usize,
    envelopes: usize,
}

pub(crate) async fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    let Some(binary) = binary() else {
        note("replicated is skipped: there is no nats-server");
        return Ok(());
    };
    for servers in [1, 3] {
        if !arguments.servers.is_empty() && !arguments.servers.contains(&servers) {
            continue;
        }
        for load in [Load::Few, Load::Fleet] {
            if arguments.load.is_some_and(|only| only != load) {
                continue;
            }
            let (mut ours, mut plain) = (Vec::new(), Vec::new());
            for _ in 0..arguments.rounds {
                let (run, publishes) = round(binary.clone(), servers, load).await?;
                ours.push(run);
                plain.push(publishes);
            }
            ours.sort_by(|one, other| one.0.total_cmp(&other.0));
            let (per_second, facts) = ours.swap_remove(ours.len() / 2);
            let name = format!("replicated-r{servers}{}", load.suffix());
            let row = Row::alone(name, per_second, "envelopes/s", facts);
            row.against(format!("plain publishes, R{servers}"), median(plain)).print(arguments.json)?;
        }
    }
    Ok(())
}

/// The gateway, and plain publishes, on the same servers.
async fn round(binary: PathBuf, servers: usize, load: Load) -> anyhow::Result<((f64, Facts), f64)> {
    let folder = tempfile::Builder::new().prefix("pithead-bench-").tempdir()?;
    let options = NatsOptions { servers, ..NatsOptions::default() };
    let nats = Nats::start(binary, folder.path(), options).await?;
    let plain = publishes(&nats, load.plain()).await?;
    let gateway_lines =
        vec![("spool", "engine = \"jetstream\"".to_owned()), ("spool.jetstream", nats.section())];
    let options = SiteOptions { keys: KeySource::Bundle, gateway_lines, ..SiteOptions::default() };
    let mut site = Site::create(options).await?;
    site.start_gateway().await?;
    let gateway = site.gateway()?;
    gateway
        .until("owns the lanes", async |admin: Admin| {
            matches!(admin.metric("pithead_spool_owner").await, Ok(1.0))
        })
        .await?;
    let shape = load.sealed();
    let clients = load::seal(&site, shape, 1).await?;
    let sent = load::send(site.gateway_address(), clients, shape.window, None).await?;
    anyhow::ensure!(sent.acknowledged == shape.total() as u64, "{} were answered", sent.acknowledged);
    let admin = site.gateway()?.admin();
    let (records, groups) = (
        admin.metric("pithead_spool_appended_records_total").await?,
        admin.metric("pithead_spool_groups_total").await?,
    );
    let facts = Facts {
        ack_p50_ms: quantile(&sent.latencies, 0.5) / 1000.0,
        ack_p99_ms: quantile(&sent.latencies, 0.99) / 1000.0,
        envelopes_per_message: rounded(records / groups.max(1.0)),
        size: shape.size,
        clients: shape.clients,
        window: shape.window,
        envelopes: shape.total(),
    };
    site.stop().await?;
    Ok(((sent.acknowledged as f64 / sent.seconds, facts), plain))
}

/// As many clients as the gateway has, each with as many publishes under way.
async fn publishes(nats: &Nats, shape: Shape) -> anyhow::Result<f64> {
    let made = stream::Config {
        name: "plain".to_owned(),
        subjects: vec!["plain".to_owned()],
        num_replicas: nats.len(),
        ..stream::Config::default()
    };
    let mut clients = Vec::new();
    for _ in 0..shape.clients {
        let client = async_nats::connect(nats.client(0).to_string()).await.context("a client")?;
        clients.push(jetstream::new(client));
    }
    clients[0].create_stream(made).await.context("the stream")?;
    let payload = bytes::Bytes::from(vec![0x5a; shape.size]);
    let began = Instant::now();
    let publishing = clients.into_iter().map(|client| {
        let payload = payload.clone();
        tokio::spawn(async move {
            let each = futures_util::stream::iter(0..shape.each).map(|_| {
                let (client, payload) = (client.clone(), payload.clone());
                async move { client.publish("plain", payload).await?.await }
            });
            let mut answers = each.buffer_unordered(shape.window);
            while let Some(answer) = answers.next().await {
                answer.context("a publish")?;
            }
            Ok::<(), anyhow::Error>(())
        })
    });
    for task in publishing.collect::<Vec<_>>() {
        task.await??;
    }
    Ok(shape.total() as f64 / began.elapsed().as_secs_f64())
}

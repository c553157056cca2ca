//! `handshakes`: a whole fleet that connects at one moment, as after a power cut: how long until everybody is served, what it
//! costs the gateway, and what an idle connection holds then; beside the TLS server that every machine has.
//!
//! A device is served when it has its keys: TCP, TLS 1.3 with certificates on both sides, HTTP/2, and one call. What openssl is
//! asked for is less: TLS 1.3 with certificates of the same kind on both sides, and nothing after it; and its key exchange is
//! X25519 alone where its version knows no other, while the gateway's is X25519MLKEM768.

use std::{
    net::SocketAddr,
    path::Path,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use pithead_hop::{
    connect::{ConnectOptions, Connection, Endpoint, connect},
    keys::{Held, KeyClient},
    tls::{ClientTls, PassedExpiry, Pem, SystemClock},
};
use pithead_sealing::Site as SiteName;
use pithead_tests::{
    authority::AUTHORITY,
    certificates::Certificate,
    program::free_address,
    site::{SITE, Site},
};
use rustls::{ClientConfig, pki_types::ServerName};
use serde::Serialize;
use tokio::{process::Command, sync::Barrier, task::JoinSet};

use crate::{
    process,
    report::{Row, note, quantile, rounded},
    site::Yard,
};

/// Nobody may wait for longer than this.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long openssl's own client connects.
const OPENSSL_SECONDS: u64 = 5;
/// The aims: milliseconds of the server's CPU for a device, and KiB of an idle connection.
const AIM_CPU_MS: f64 = 0.4;
const AIM_KIB: f64 = 25.0;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// One JSON object per line instead of a table.
    #[arg(long)]
    json: bool,
    /// Devices, each with a certificate of its own.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(1..=8_000))]
    devices: u64,
}

#[derive(Debug, Serialize)]
struct Facts {
    devices: u64,
    came_again: u64,
    half_after_s: f64,
    p99_after_s: f64,
    per_second: f64,
    server_cpu_share: f64,
    aim_cpu_ms: f64,
    aim_kib: f64,
    peak_mib: f64,
}

pub(crate) async fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    let mut site = Yard { spool: "1GiB", relay: false }.create().await?;
    // All of them come from 127.0.0.1, and there are more than a site of the usual size has.
    let room = "[ingest.limits]\nconnections = 8192\nconnection_burst = 8192\n";
    Site::edit(&site.gateway_config(), "[ingest.limits]\n", room)?;
    site.start_gateway().await?;
    let measured = all_at_once(arguments, &mut site).await;
    measured.map_err(|error| error.context(site.log_tails()))?;
    site.stop().await
}

async fn all_at_once(arguments: &Arguments, site: &mut Site) -> anyhow::Result<()> {
    let count = arguments.devices;
    let mut identities = Vec::new();
    for number in 0..count {
        identities.push(site.identity_of(&format!("truck-{number}"))?);
    }
    let (to, ca) = (site.gateway_address(), site.ca.path().to_owned());
    let pid = site.gateway()?.pid().context("it has ended")?;
    // The first one has the gateway allocate what it needs once.
    served(to, &tls_of(&ca, &site.identity_of("first")?)?).await?;
    let (memory, cpu) = (process::resident_mib(pid)?, process::cpu_seconds(pid)?);
    let ready = Arc::new(Barrier::new(identities.len() + 1));
    let mut fleet = JoinSet::new();
    for identity in identities {
        let (tls, ready) = (tls_of(&ca, &identity)?, ready.clone());
        fleet.spawn(async move {
            ready.wait().await;
            let began = Instant::now();
            let (connection, came) = served(to, &tls).await?;
            Ok::<_, anyhow::Error>((connection, came, began.elapsed()))
        });
    }
    ready.wait().await;
    let began = Instant::now();
    let all = async {
        let (mut clients, mut times, mut again) = (Vec::new(), Vec::new(), 0);
        while let Some(device) = fleet.join_next().await {
            let (client, came, time) = device??;
            clients.push(client);
            times.push(time.as_millis() as u32);
            again += came - 1;
        }
        Ok::<_, anyhow::Error>((clients, times, again))
    };
    let (clients, mut times, again) =
        tokio::time::timeout(PATIENCE, all).await.context("somebody waits for ever")??;
    let seconds = began.elapsed().as_secs_f64();
    let cpu = process::cpu_seconds(pid)? - cpu;
    let each_kib = (process::resident_mib(pid)? - memory) * 1024.0 / count as f64;
    times.sort_unstable();
    let admin = site.gateway()?.admin();
    let open = admin.metric("pithead_connections").await?;
    ensure!(open >= count as f64, "{open} of {count} are still connected");
    let facts = || -> anyhow::Result<Facts> {
        Ok(Facts {
            devices: count,
            came_again: again,
            half_after_s: rounded(quantile(&times, 0.5) / 1000.0),
            p99_after_s: rounded(quantile(&times, 0.99) / 1000.0),
            per_second: rounded(count as f64 / seconds),
            server_cpu_share: rounded(cpu / seconds),
            aim_cpu_ms: AIM_CPU_MS,
            aim_kib: AIM_KIB,
            peak_mib: rounded(process::peak_mib(pid)?),
        })
    };
    drop(clients);
    Row::alone("handshakes-time", seconds, "s", facts()?).print(arguments.json)?;
    let cpu = Row::alone("handshakes-cpu", cpu * 1000.0 / count as f64, "ms", facts()?);
    match openssl(site, &site.identity_of("openssl")?).await {
        Ok(theirs) => cpu.against("openssl s_server, s_time", theirs),
        Err(error) => {
            note(format!("skipped: openssl: {error:#}"));
            cpu
        }
    }
    .print(arguments.json)?;
    Row::alone("handshakes-memory", each_kib, "KiB", facts()?)
        .against("the aim", AIM_KIB)
        .print(arguments.json)
}

/// What a device shows.
fn tls_of(ca: &Path, identity: &Certificate) -> anyhow::Result<Arc<ClientConfig>> {
    let tls = ClientTls {
        ca: Pem::read(ca)?,
        identity: Some((Pem::read(&identity.certificate)?, Pem::read(&identity.key)?)),
        clock: Arc::new(SystemClock),
        passed_expiry: PassedExpiry::Refuse,
    };
    Ok(tls.build()?)
}

/// Connects and asks for the keys, and comes again if it is cut before it has them; how often it came.
async fn served(to: SocketAddr, tls: &Arc<ClientConfig>) -> anyhow::Result<(Connection, u64)> {
    let options = ConnectOptions { connect_timeout: PATIENCE, ..ConnectOptions::default() };
    let name = ServerName::from(to.ip());
    let mut came = 0;
    loop {
        came += 1;
        let connection = match connect(&Endpoint::from(to), &name, tls.clone(), &options).await {
            Ok(connection) => connection,
            Err(error) if error.is_retryable() => continue,
            Err(error) => return Err(error.into()),
        };
        let mut keys = KeyClient::new(connection.clone(), AUTHORITY, SiteName::new(SITE)?);
        match keys.fetch(&Held::default(), PATIENCE).await {
            Ok(_) => return Ok((connection, came)),
            Err(error) if error.is_retryable() => {}
            Err(error) => anyhow::bail!("no keys: {error}"),
        }
    }
}

/// Milliseconds of CPU of `openssl s_server` for each handshake of `openssl s_time`: TLS 1.3, no tickets, P-256 certificates on
/// both sides.
async fn openssl(site: &Site, client: &Certificate) -> anyhow::Result<f64> {
    let address = free_address()?.to_string();
    let gateway = site.folder().join("gateway");
    let mut server = Command::new("openssl")
        .args([
            "s_server",
            "-accept",
            &address,
            "-tls1_3",
            "-num_tickets",
            "0",
            "-Verify",
            "1",
            "-www",
            "-quiet",
        ])
        .args(["-verify_return_error", "-alpn", "h2"])
        .arg("-cert")
        .arg(gateway.join("gateway.pem"))
        .arg("-key")
        .arg(gateway.join("gateway.key"))
        .arg("-CAfile")
        .arg(site.ca.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("it cannot be started")?;
    let pid = server.id().context("it has ended")?;
    let listening = async {
        while tokio::net::TcpStream::connect(&address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), listening).await.context("s_server does not listen")?;
    let cpu = process::cpu_seconds(pid)?;
    let said = Command::new("openssl")
        .args(["s_time", "-connect", &address, "-new", "-tls1_3", "-time", &OPENSSL_SECONDS.to_string()])
        .arg("-cert")
        .arg(&client.certificate)
        .arg("-key")
        .arg(&client.key)
        .arg("-CAfile")
        .arg(site.ca.path())
        .stdin(Stdio::null())
        .output()
        .await
        .context("s_time")?;
    let cpu = process::cpu_seconds(pid)? - cpu;
    let _ = server.kill().await;
    // "1234 connections in 1.23s; 1003.25 connections/user sec, bytes read 0", then the same in real seconds.
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let count: f64 = text
        .lines()
        .find_map(|line| line.split_once(" connections in ").and_then(|(count, _)| count.trim().parse().ok()))
        .with_context(|| format!("s_time said {text:?} {:?}", String::from_utf8_lossy(&said.stderr)))?;
    ensure!(count > 0.0, "no handshake succeeded: {:?}", String::from_utf8_lossy(&said.stderr));
    Ok(cpu * 1000.0 / count)
}

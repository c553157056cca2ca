//! `record`: what a record costs a vehicle: how many a second, processor, memory, and writes on its flash.
//!
//! The client is in a process of its own, so that its memory and processor are its own. No gateway answers: everything goes
//! to the outbox, which is what a vehicle does behind a hill. Beside it, in the same run, the same bytes are written to a file
//! of the same disk and synced once a second.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use pithead_device_client::client::{Client, Fsync, RecordError, StreamOptions, TrustAnchor, WhenFull};
use pithead_device_client::uplink::Gateways;
use pithead_hop::{backoff::Policy, connect::Endpoint, tls::Pem};
use pithead_sealing::{DeviceId, Site, StreamName, trust::Bundle};
use pithead_tests::certificates::Ca;
use serde::{Deserialize, Serialize};

use crate::{process, report::Row};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// One JSON object a line instead of a table.
    #[arg(long)]
    json: bool,
    /// Records.
    #[arg(long, default_value_t = 5_000_000)]
    records: u64,
    /// Bytes of each.
    #[arg(long, default_value_t = 100)]
    record_bytes: usize,
    /// The disk to write on; the temporary folder's if it is not given.
    #[arg(long)]
    folder: Option<PathBuf>,
}

/// The process that holds the client; `record` starts it.
#[derive(Debug, clap::Args)]
pub(crate) struct VehicleArguments {
    folder: PathBuf,
    records: u64,
    record_bytes: usize,
}

#[derive(Debug, Serialize)]
struct Facts {
    records: u64,
    record_bytes: usize,
    seconds: f64,
    behind: u64,
}

/// What the process says when it is done.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    idle_mib: f64,
    busy_mib: f64,
    seconds: f64,
    cpu_seconds: f64,
    /// Since the outbox was full for the first time.
    written: f64,
    payload: f64,
    behind: u64,
    held: u64,
    dropped: u64,
    waiting: u64,
}

const BUDGET: u64 = 256 * 1024 * 1024;

pub(crate) fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    let folder = match &arguments.folder {
        Some(folder) => tempfile::tempdir_in(folder)?,
        None => tempfile::tempdir()?,
    };
    let raw = raw(folder.path(), arguments)?;
    let device = folder.path().join("device");
    let mut child = Command::new(std::env::current_exe()?)
        .arg("vehicle")
        .arg(&device)
        .args([arguments.records.to_string(), arguments.record_bytes.to_string()])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("a pipe")?).read_line(&mut line)?;
    ensure!(child.wait()?.success(), "the vehicle failed");
    let told: Told = serde_json::from_str(&line)?;
    ensure!(told.held == arguments.records, "{} of {} records were held", told.held, arguments.records);
    let records = arguments.records as f64;
    let facts = || Facts {
        records: arguments.records,
        record_bytes: arguments.record_bytes,
        seconds: told.seconds,
        behind: told.behind,
    };
    let print = |row: Row<Facts>| row.print(arguments.json);
    print(
        Row::alone("record-rate", records / told.seconds, "records/s", facts())
            .against("the same bytes written to a file, synced once a second", raw),
    )?;
    print(
        Row::alone("record-core-rate", records / told.cpu_seconds, "records/s and core", facts())
            .against("aim", 500_000.0),
    )?;
    print(Row::alone("record-cpu", told.cpu_seconds * 1e6 / records, "s of CPU per million", facts()))?;
    print(Row::alone("client-idle", told.idle_mib, "MiB", facts()))?;
    print(Row::alone("client-busy", told.busy_mib, "MiB", facts()))?;
    print(
        Row::alone("flash", told.written / told.payload, "bytes written per byte recorded", facts())
            .against("each byte once", 1.0),
    )?;
    Ok(())
}

/// Records a second that a plain file takes.
fn raw(folder: &Path, arguments: &Arguments) -> anyhow::Result<f64> {
    let mut file = File::create(folder.join("raw"))?;
    let block = vec![7; 1 << 20];
    let total = arguments.records * arguments.record_bytes as u64;
    let (began, mut synced, mut left) = (Instant::now(), Instant::now(), total);
    while left > 0 {
        let now = left.min(block.len() as u64);
        file.write_all(&block[..now as usize])?;
        left -= now;
        if synced.elapsed() >= Duration::from_secs(1) {
            file.sync_data()?;
            synced = Instant::now();
        }
    }
    file.sync_data()?;
    Ok(arguments.records as f64 / began.elapsed().as_secs_f64())
}

#[expect(clippy::print_stdout, reason = "what the other process reads")]
pub(crate) fn vehicle(arguments: &VehicleArguments) -> anyhow::Result<()> {
    let own = std::process::id();
    let client = open(&arguments.folder)?;
    let stream = client.stream("can").context("the stream")?;
    stream.record(&[0; 100])?;
    client.sync_blocking(Duration::from_secs(60))?;
    let idle_mib = process::resident_mib(own)?;
    let record = vec![7; arguments.record_bytes];
    let mut behind = 0;
    let mut take = |count: u64| -> anyhow::Result<()> {
        for _ in 0..count {
            loop {
                match stream.record(&record) {
                    Ok(()) => break,
                    // A control loop would drop it and count; a bench waits, and tells how often.
                    Err(RecordError::Behind) => {
                        behind += 1;
                        std::thread::sleep(Duration::from_micros(200));
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    };
    let (began, cpu) = (Instant::now(), process::cpu_seconds(own)?);
    take(arguments.records - 1)?;
    client.sync_blocking(Duration::from_secs(600))?;
    let (seconds, cpu_seconds) = (began.elapsed().as_secs_f64(), process::cpu_seconds(own)? - cpu);
    let busy_mib = process::peak_mib(own)?;
    let counts = client.status();
    let counts = counts.streams.values().next().context("the stream")?;
    let (held, dropped, waiting) = (counts.held, counts.dropped_records, counts.waiting);
    // Full by now, or made so: what is written from here on goes where old bytes were.
    let full = BUDGET / arguments.record_bytes as u64 * 2;
    take(full)?;
    client.sync_blocking(Duration::from_secs(600))?;
    let before = written(own)?;
    let more = full / 2;
    take(more)?;
    client.sync_blocking(Duration::from_secs(600))?;
    let written = written(own)? - before;
    let payload = more as f64 * arguments.record_bytes as f64;
    let told =
        Told { idle_mib, busy_mib, seconds, cpu_seconds, written, payload, behind, held, dropped, waiting };
    println!("{}", serde_json::to_string(&told)?);
    client.close(Duration::ZERO)?;
    Ok(())
}

/// Bytes that this process has caused to be written to the disk.
fn written(pid: u32) -> anyhow::Result<f64> {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io"))?;
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes:")).context("write_bytes")?;
    Ok(line.trim().parse()?)
}

/// A client with a key, and a gateway that is not there.
fn open(folder: &Path) -> anyhow::Result<Client> {
    let cases: serde_json::Value =
        serde_json::from_str(include_str!("../../../../sealing/tests/vectors/trust.json"))?;
    let first = |case: &&serde_json::Value| case["name"] == "first-statement";
    let case = cases.as_array().and_then(|cases| cases.iter().find(first)).context("the vector")?;
    let bytes = |value: &serde_json::Value| hex::decode(value.as_str().unwrap_or_default());
    let step = &case["steps"][0];
    let site: Site = case["device"]["site"].as_str().context("the site")?.parse()?;
    let authority = case["device"]["authority"].as_str().context("the authority")?;
    let anchor = TrustAnchor::new(authority, bytes(&case["device"]["root"])?);
    let bundle = Bundle {
        roots: vec![],
        statement: Some(bytes(&step["stmt"])?.into()),
        spkis: vec![bytes(&step["spki"][0])?.into()],
    };
    std::fs::create_dir_all(folder)?;
    let ca = Ca::create("site", &folder.join("ca"))?;
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let gateways =
        Gateways::new(vec![Endpoint::from(nowhere)], Pem::read(ca.path())?).retry(Policy::default());
    let can = StreamOptions::records("can".parse::<StreamName>()?)
        .budget_bytes(BUDGET)
        .when_full(WhenFull::DropOldest)
        .sync(Fsync::Interval(Duration::from_secs(1)));
    let device: DeviceId = "truck-7".parse()?;
    Ok(Client::builder(folder, site, device, gateways, anchor).bundle(bundle).stream(can).open()?)
}

//! `simulate`: a fleet out of one process, over air that comes and goes: load for a gateway, with the books of every vehicle.
//!
//! ```text
//! bus ─> record() ─> client with its own identity, trust and outbox ─> air (loopback, counted, cut) ══> gateway
//! ```
//!
//! Every vehicle is a client as it is embedded, and nothing is pretended: envelopes are sealed and durable, certificates are
//! shown, connections are made anew after every shadow. Only the vehicles' buses and roads are made up.
//!
//! Ends with 1 if the books of a vehicle do not balance, and with 75 if something still waits.

mod air;
mod books;
mod bus;
mod cost;
mod coverage;
mod random;
mod vehicle;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use pithead_device_client::{
    INLINE_LIMIT_BYTES,
    client::{Fsync, StreamOptions, WhenFull},
    hop::backoff,
};
use pithead_hop::program::{ExitCode, ProgramError};
use pithead_proto::errors::v1::ErrorReason;
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::Instant};

use self::{
    books::{Latencies, Ledger, Percentiles},
    coverage::Coverage,
    vehicle::{Live, Plan, Vehicle},
};
use crate::{
    cli::{self, SimulateArgs},
    config::Config,
    delivery, moment,
    output::{Output, lines, watch_bar},
};

/// Clients that are opened at the same time: each lays out its outbox on the one disk.
const OPENING: usize = 4;
/// How often the screen is told.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// How much more than its content a file takes in the outbox, and a second one beside it.
const FILES_BUDGET: u64 = 4;

pub(crate) async fn run(arguments: &SimulateArgs, output: Output) -> Result<ExitCode, ProgramError> {
    let signals = delivery::signals()?;
    let seed = arguments.seed.unwrap_or_else(backoff::random);
    let plan = Arc::new(plan(arguments, seed)?);
    let devices = devices(&arguments.devices, arguments.vehicles)?;
    let root = Root::of(arguments.dir.as_deref())?;
    let file_bytes = arguments.file_size.map_or(0, |size| size.get().saturating_mul(FILES_BUDGET));
    let needs = cost::Needs {
        vehicles: devices.len() as u64,
        files: plan.files.is_some(),
        disk_bytes: arguments.budget.get().saturating_add(file_bytes),
    };
    needs.check(root.path())?;

    let lives: Vec<Arc<Live>> = devices.iter().map(|_| Arc::default()).collect();
    let vehicles = (0..)
        .zip(devices)
        .zip(lives.iter().cloned())
        .map(|((index, config), live)| Vehicle::start(config, root.path(), index, &plan, live));
    let vehicles: Vec<Vehicle> = stream::iter(vehicles).buffer_unordered(OPENING).try_collect().await?;

    let begun = Instant::now();
    let until = begun + arguments.duration.get();
    let mut driving = JoinSet::new();
    for vehicle in vehicles {
        driving.spawn(vehicle.drive(Arc::clone(&plan), until, arguments.drain.get(), signals.stop.clone()));
    }
    let bar = watch_bar();
    let (mut books, mut latencies) = (Vec::new(), Latencies::default());
    let mut peak_threads = 0;
    let mut tell = tokio::time::interval(TELL_EVERY);
    let mut before = Seen::of(&lives);
    loop {
        tokio::select! {
            ended = driving.join_next() => {
                let Some(ended) = ended else { break };
                let ended = ended.map_err(|error| ProgramError::new(ErrorReason::Internal, error.to_string()))?;
                let (name, ledger, took) = ended?;
                books.push((name, ledger));
                latencies.merge(took);
            }
            _ = tell.tick() => {
                peak_threads = peak_threads.max(cost::taken().0.unwrap_or(0));
                let now = Seen::of(&lives);
                bar.println(now.since(&before, begun.elapsed()));
                before = now;
            }
        }
    }
    bar.finish_and_clear();
    let recorded_for = begun.elapsed().min(arguments.duration.get());
    books.sort_by(|(one, _), (other, _)| one.cmp(other));
    let report = Report {
        arguments,
        seed,
        recorded_for,
        took: begun.elapsed(),
        peak_threads,
        seen: Seen::of(&lives),
        faults: books::faults(&books),
        ledger: books.iter().fold(Ledger::default(), |mut sum, (_, ledger)| {
            sum.add(ledger);
            sum
        }),
        vehicles: books.len(),
        void: latencies.void,
        open: latencies.open,
        beyond: latencies.beyond,
        latencies: latencies.percentiles(),
    };
    output.print_either(&report.object(), || report.table());
    report.verdict()
}

fn plan(arguments: &SimulateArgs, seed: u64) -> Result<Plan, ProgramError> {
    let refuse = |what: String| ProgramError::new(ErrorReason::ConfigInvalid, what).exit(ExitCode::USAGE);
    let record_bytes = arguments.size.get();
    if !(bus::RECORD_BYTES_MIN..=INLINE_LIMIT_BYTES / 2).contains(&record_bytes) {
        let least = bus::RECORD_BYTES_MIN;
        return Err(refuse(format!("--size: a record has {least} B to {} B", INLINE_LIMIT_BYTES / 2)));
    }
    let files = arguments.file_size.zip(arguments.file_every);
    if files.is_some_and(|(_, every)| every.is_zero()) {
        return Err(refuse("--file-every: 0 is no interval".into()));
    }
    let common = |options: StreamOptions, budget: u64| {
        let options = options
            .budget_bytes(budget)
            .when_full(match arguments.when_full {
                cli::WhenFull::Reject => WhenFull::Reject,
                cli::WhenFull::DropOldest => WhenFull::DropOldest,
            })
            .sync(arguments.sync.map_or(Fsync::Always, |interval| Fsync::Interval(interval.get())));
        compressed(options, arguments.compress)
    };
    let records = StreamOptions::records(vehicle::stream(vehicle::RECORDS)).linger(arguments.linger.get());
    let file_stream = files.map(|(size, _)| {
        let budget = size.get().saturating_mul(FILES_BUDGET);
        common(StreamOptions::files(vehicle::stream(vehicle::FILES)), budget)
    });
    Ok(Plan {
        rate: arguments.rate,
        record_bytes: usize::try_from(record_bytes).unwrap_or(usize::MAX),
        files: files.map(|(size, every)| (size.get(), every.get())),
        records: common(records, arguments.budget.get()),
        file_stream,
        coverage: arguments.coverage.as_deref().map(Coverage::read).transpose()?,
        seed,
    })
}

#[cfg(feature = "zstd")]
fn compressed(options: StreamOptions, wanted: bool) -> StreamOptions {
    if wanted { options.compress() } else { options }
}

#[cfg(not(feature = "zstd"))]
fn compressed(options: StreamOptions, wanted: bool) -> StreamOptions {
    if wanted {
        tracing::warn!(event = "simulate.not_compressed", "this program was built without zstd");
    }
    options
}

/// The devices in a folder of devices, in the order of their names.
fn devices(folder: &Path, wanted: Option<u32>) -> Result<Vec<Config>, ProgramError> {
    let what = |reason, what: String| {
        ProgramError::new(reason, format!("{}{what}", folder.display()))
            .todo("enrol devices into it: pithead-device enroll --dir DIR/NAME ...")
    };
    let entries = std::fs::read_dir(folder)
        .map_err(|error| what(ErrorReason::ConfigUnreadable, format!(": {error}")))?;
    let files = entries.filter_map(Result::ok).map(|entry| entry.path().join("device.toml"));
    let mut files: Vec<PathBuf> = files.filter(|file| file.is_file()).collect();
    files.sort();
    let there = files.len();
    let wanted = wanted.map_or(there, |wanted| wanted as usize);
    if there == 0 || there < wanted {
        return Err(what(
            ErrorReason::ConfigInvalid,
            format!(" has {there} devices, and {wanted} are asked for"),
        )
        .exit(ExitCode::USAGE));
    }
    files.iter().take(wanted).map(|file| Config::load(file)).collect()
}

/// Where the vehicles live.
enum Root {
    Given(PathBuf),
    /// Removed with everything in it.
    Temporary(PathBuf),
}

impl Root {
    fn of(dir: Option<&Path>) -> Result<Self, ProgramError> {
        let (path, given) = match dir {
            Some(dir) => (dir.to_owned(), true),
            None => (std::env::temp_dir().join(format!("pithead-fleet-{:016x}", backoff::random())), false),
        };
        std::fs::create_dir_all(&path).map_err(|error| {
            ProgramError::new(ErrorReason::DataDirUnwritable, format!("{}: {error}", path.display()))
        })?;
        Ok(if given { Self::Given(path) } else { Self::Temporary(path) })
    }

    fn path(&self) -> &Path {
        match self {
            Self::Given(path) | Self::Temporary(path) => path,
        }
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if let Self::Temporary(path) = self
            && let Err(error) = std::fs::remove_dir_all(&*path)
        {
            tracing::warn!(event = "simulate.not_removed", path = %path.display(), %error);
        }
    }
}

/// Sums over the fleet, at a moment.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    at: Option<Instant>,
    recorded: u64,
    refused: u64,
    delivered: u64,
    waiting: u64,
    connected: usize,
    up: u64,
    down: u64,
    connections: u64,
    cut: u64,
    turned_away: u64,
}

impl Seen {
    fn of(lives: &[Arc<Live>]) -> Self {
        let read =
            |of: fn(&Live) -> &AtomicU64| lives.iter().map(|live| of(live).load(Ordering::Relaxed)).sum();
        let connected: fn(&Live) -> &AtomicBool = |live| &live.connected;
        Self {
            at: Some(Instant::now()),
            recorded: read(|live| &live.recorded),
            refused: read(|live| &live.refused),
            delivered: read(|live| &live.delivered),
            waiting: read(|live| &live.waiting),
            connected: lives.iter().filter(|live| connected(live).load(Ordering::Relaxed)).count(),
            up: read(|live| &live.carried.up),
            down: read(|live| &live.carried.down),
            connections: read(|live| &live.carried.connections),
            cut: read(|live| &live.carried.cut),
            turned_away: read(|live| &live.carried.refused),
        }
    }

    /// One line for the screen.
    fn since(&self, before: &Self, elapsed: Duration) -> String {
        let span = self.at.zip(before.at).map_or(0.0, |(now, before)| (now - before).as_secs_f64()).max(1e-3);
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / span;
        format!(
            "{:>9}  {:.0} records/s, {} refused, {:.1} envelopes/s delivered, {} waiting, {} connected, {:.1} kB/s up",
            moment::span(elapsed),
            rate(self.recorded, before.recorded),
            self.refused,
            rate(self.delivered, before.delivered),
            self.waiting,
            self.connected,
            rate(self.up, before.up) / 1e3,
        )
    }
}

/// What is said at the end.
struct Report<'a> {
    arguments: &'a SimulateArgs,
    seed: u64,
    recorded_for: Duration,
    took: Duration,
    peak_threads: u64,
    seen: Seen,
    faults: Vec<String>,
    ledger: Ledger,
    vehicles: usize,
    latencies: [Option<Percentiles>; 2],
    void: u64,
    open: u64,
    beyond: u64,
}

impl Report<'_> {
    fn verdict(&self) -> Result<ExitCode, ProgramError> {
        if !self.faults.is_empty() {
            let what = format!("the books do not balance: {}", self.faults.join("; "));
            return Err(ProgramError::new(ErrorReason::Internal, what).exit(ExitCode::FAILED));
        }
        match self.ledger.waiting {
            0 => Ok(ExitCode::OK),
            waiting => Err(ProgramError::new(
                ErrorReason::PeerUnreachable,
                format!("{waiting} envelopes still wait in the vehicles' outboxes"),
            )
            .affects("the books balance; nothing is lost")
            .todo("give them longer with --drain, and look at the gateway")
            .exit(ExitCode::TRY_AGAIN)),
        }
    }

    /// Reconnections: what came after the first connection of each vehicle.
    fn reconnects(&self) -> u64 {
        self.ledger.connections.saturating_sub(self.vehicles as u64)
    }

    fn object(&self) -> Value {
        let seconds = self.recorded_for.as_secs_f64().max(1e-3);
        let per = |bytes: u64, of: u64| (of > 0).then(|| bytes as f64 / of as f64);
        let seen = &self.seen;
        let [all, connected] = &self.latencies;
        let (threads, memory) = (self.peak_threads, cost::taken().1);
        json!({
            "vehicles": self.vehicles,
            "seed": self.seed,
            "rate": self.arguments.rate,
            "size_bytes": self.arguments.size.get(),
            "recorded_for_s": seconds,
            "took_s": self.took.as_secs_f64(),
            "rates": {
                "records_per_s": self.ledger.recorded as f64 / seconds,
                "envelopes_per_s": self.ledger.sealed as f64 / seconds,
                "payload_bytes_per_s": self.ledger.payload_bytes as f64 / seconds,
            },
            "ack_latency": {
                "measured": "from a sampled record to the acknowledgement of everything durable when it first was seen durable",
                "resolution_ms": vehicle::TICK.as_millis() as u64,
                "all": all.map(|all| all.object()),
                "connected": connected.map(|connected| connected.object()),
                "void": self.void,
                "open": self.open,
                "not_kept": self.beyond,
            },
            "air": {
                "up_bytes": seen.up,
                "down_bytes": seen.down,
                "up_per_payload": per(seen.up, self.ledger.payload_bytes),
                "up_per_sealed": per(seen.up, self.ledger.sealed_bytes),
                "total_per_sealed": per(seen.up + seen.down, self.ledger.sealed_bytes),
                "connections": seen.connections,
                "cut": seen.cut,
                "turned_away": seen.turned_away,
                "reconnects": self.reconnects(),
            },
            "ledger": self.ledger.object(),
            "balanced": self.faults.is_empty(),
            "faults": self.faults,
            "cost": {"peak_threads": threads, "peak_memory_bytes": memory},
        })
    }

    fn table(&self) -> String {
        let object = self.object();
        let mut text = lines(&[
            ("vehicles", json!(self.vehicles)),
            ("seed", json!(self.seed)),
            ("recorded for", json!(moment::span(self.recorded_for))),
            ("took", json!(moment::span(self.took))),
        ]);
        for section in ["rates", "air", "ledger", "cost"] {
            text.push_str(&format!("\n{section}\n"));
            let fields = object[section].as_object().into_iter().flatten();
            let fields: Vec<(&str, Value)> =
                fields.map(|(name, value)| (name.as_str(), rounded(value))).collect();
            text.push_str(&lines(&fields));
        }
        let resolution = vehicle::TICK.as_millis();
        text.push_str(&format!(
            "\nfrom the record to the acknowledgement, in ms (sampled; up to {resolution} ms too much)\n"
        ));
        for (name, percentiles) in ["all", "connected"].iter().zip(&self.latencies) {
            text.push_str(&match percentiles {
                Some(Percentiles { samples, p50, p90, p99, max }) => format!(
                    "{name:9}  p50 {p50:.0}  p90 {p90:.0}  p99 {p99:.0}  max {max:.0}  of {samples}\n"
                ),
                None => format!("{name:9}  no samples\n"),
            });
        }
        text.push_str(&format!("void {}, open {}, not kept {}\n", self.void, self.open, self.beyond));
        text.push_str(if self.faults.is_empty() {
            "\nthe books balance\n"
        } else {
            "\nthe books do not balance\n"
        });
        text
    }
}

fn rounded(value: &Value) -> Value {
    match value.as_f64().filter(|_| value.is_f64()) {
        Some(number) => json!(format!("{number:.3}")),
        None => value.clone(),
    }
}

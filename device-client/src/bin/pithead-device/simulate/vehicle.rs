//! One vehicle: a real client with a real outbox, a bus that talks, and the air between it and its gateways.

use std::{
    collections::VecDeque,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use pithead_device_client::client::{Client, FileTicket, Stream, StreamOptions, StreamStatus};
use pithead_hop::program::ProgramError;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::{envelope::ContentType, names::StreamName};
use rustls_pki_types::ServerName;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    air::{Air, Carried},
    books::{Latencies, Ledger},
    bus::Bus,
    coverage::Coverage,
    random::Random,
};
use crate::{
    config::{Config, no_gateway},
    failure,
};

/// The streams of a simulated vehicle.
pub(super) const RECORDS: &str = "can";
pub(super) const FILES: &str = "logs";
/// How often a vehicle looks at what is due, at most: records come in small bursts, as a bus is read.
pub(super) const TICK: Duration = Duration::from_millis(20);
/// A process that did not get its processor for longer than this does not make up for it: the rate is what it is then.
const BEHIND_MAX: Duration = Duration::from_secs(1);
/// How often a record is followed to its acknowledgement; one at a time.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// How often the numbers for the screen are read.
const SHOW_EVERY: Duration = Duration::from_secs(1);
/// Files of a vehicle that are not kept yet; those that would be more are not made.
const FILES_WAITING: usize = 4;
/// How long the end waits for files that are being sealed.
const FILES_LIMIT: Duration = Duration::from_secs(30);

/// What every vehicle does.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) rate: f64,
    pub(super) record_bytes: usize,
    /// Bytes of a file, and how often there is one.
    pub(super) files: Option<(u64, Duration)>,
    pub(super) records: StreamOptions,
    pub(super) file_stream: Option<StreamOptions>,
    pub(super) coverage: Option<Coverage>,
    pub(super) seed: u64,
}

/// What can be seen of a vehicle while it drives.
#[derive(Debug, Default)]
pub(super) struct Live {
    pub(super) recorded: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) delivered: AtomicU64,
    pub(super) waiting: AtomicU64,
    pub(super) connected: AtomicBool,
    /// Times that coverage has ended, so far.
    shadows: AtomicU64,
    covered: AtomicBool,
    pub(super) carried: Arc<Carried>,
}

/// A vehicle that is ready to drive.
pub(super) struct Vehicle {
    pub(super) name: String,
    index: u64,
    client: Client,
    stream: Stream,
    airs: Vec<Air>,
    live: Arc<Live>,
    before: u64,
    /// Where its files are made.
    folder: PathBuf,
}

/// A record that is followed.
struct Sample {
    at: Instant,
    /// Which record it is, from 1.
    record: u64,
    /// The log's end once it was durable.
    end: Option<u64>,
    /// What had been given up and refused before.
    gone: u64,
    shadows: u64,
    /// There was a connection when it was recorded.
    connected: bool,
}

impl Vehicle {
    /// Copies its trust into a folder of its own, lays the air, and opens the client.
    pub(super) async fn start(
        config: Config,
        root: &Path,
        index: u64,
        plan: &Arc<Plan>,
        live: Arc<Live>,
    ) -> Result<Self, ProgramError> {
        let name = config.id().to_string();
        let folder = root.join(&name);
        let mut gateways = config.gateways()?.ok_or_else(no_gateway)?;
        gateways.server_name = Some(server_name(&name, &gateways)?);
        let mut airs = Vec::new();
        for (way, endpoint) in (0..).zip(&mut gateways.endpoints) {
            let random = Random::of(plan.seed, index * 64 + 8 + way);
            let air = Air::start(endpoint, Arc::clone(&live.carried), random).await.map_err(|error| {
                ProgramError::new(ErrorReason::Internal, format!("no port on loopback: {error}"))
            })?;
            *endpoint = air.endpoint();
            airs.push(air);
        }
        live.covered.store(true, Ordering::Relaxed);
        let (from, to, plan) = (config.state(), folder.clone(), Arc::clone(plan));
        let opened = tokio::task::spawn_blocking(move || {
            copy_trust(&from, &to)?;
            let waiting = pithead_device_client::survey(&to).map_err(|error| failure::survey(&error))?;
            let before = waiting.iter().map(|stream| stream.envelopes).sum::<u64>();
            let streams = std::iter::once(&plan.records).chain(&plan.file_stream).cloned();
            let client = config.client_in(&to, gateways, streams.collect())?;
            let client = client.open().map_err(|error| failure::open(&error))?;
            Ok::<_, ProgramError>((client, before))
        });
        let opened =
            opened.await.map_err(|error| ProgramError::new(ErrorReason::Internal, error.to_string()))?;
        let (client, before) =
            opened.map_err(|error| ProgramError { what: format!("{name}: {}", error.what), ..error })?;
        let stream = client.stream(RECORDS).expect("it was configured");
        Ok(Self { name, index, client, stream, airs, live, before, folder })
    }

    /// Drives until `until` or `stop`, comes back into coverage, gives a gateway `drain` to take what waits, and closes its
    /// books.
    pub(super) async fn drive(
        self,
        plan: Arc<Plan>,
        until: Instant,
        drain: Duration,
        stop: CancellationToken,
    ) -> Result<(String, Ledger, Latencies), ProgramError> {
        let mut latencies = Latencies::default();
        let mut shift = Shift::new(&plan, self.index);
        let mut changes = self.client.changes();
        {
            let road = self.follow(plan.coverage.as_ref(), Random::of(plan.seed, self.index * 64));
            tokio::pin!(road);
            loop {
                let wake = shift.next(Instant::now()).min(until);
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = &mut road => unreachable!("a road has no end"),
                    () = changes.changed() => shift.look(&self, &mut latencies),
                    () = tokio::time::sleep_until(wake) => {
                        if Instant::now() >= until {
                            break;
                        }
                        shift.work(&self, &plan, &mut latencies);
                    }
                }
            }
        }
        self.cover(true);
        shift.wait_for_files().await;
        {
            let finish = self.client.finish(drain);
            tokio::pin!(finish);
            loop {
                tokio::select! {
                    // What waits is in the books, whatever the reason.
                    _ = &mut finish => break,
                    () = changes.changed() => {
                        shift.look(&self, &mut latencies);
                        shift.show(&self);
                    }
                }
            }
        }
        shift.look(&self, &mut latencies);
        latencies.open += u64::from(shift.sample.is_some());
        let attempted = shift.attempted;
        let Self { name, client, before, airs, live, .. } = self;
        let closed = tokio::task::spawn_blocking(move || client.close(Duration::ZERO)).await;
        let closed = closed.map_err(|error| ProgramError::new(ErrorReason::Internal, error.to_string()))?;
        let status = closed.map_err(|error| failure::close(&error))?;
        drop(airs);
        let ledger = Ledger::of(&status, attempted, before);
        live.delivered.store(ledger.delivered(), Ordering::Relaxed);
        live.waiting.store(ledger.waiting, Ordering::Relaxed);
        live.connected.store(false, Ordering::Relaxed);
        Ok((name, ledger, latencies))
    }

    fn cover(&self, covered: bool) {
        if self.live.covered.swap(covered, Ordering::Relaxed) && !covered {
            self.live.shadows.fetch_add(1, Ordering::Relaxed);
        }
        self.airs.iter().for_each(|air| air.set_covered(covered));
    }

    async fn follow(&self, coverage: Option<&Coverage>, random: Random) {
        if let Some(coverage) = coverage {
            for (on, lasts) in coverage.drive(random) {
                self.cover(on);
                tokio::time::sleep(lasts).await;
            }
        }
        std::future::pending().await
    }
}

/// What a vehicle has done and is about to do.
struct Shift {
    bus: Bus,
    random: Random,
    payload: Vec<u8>,
    rate: f64,
    /// Records are due from here on, and so many of them are done.
    from: Instant,
    done: u64,
    worked_at: Instant,
    /// Records and kept files, and records that were taken.
    attempted: u64,
    accepted: u64,
    sample: Option<Sample>,
    sample_at: Instant,
    show_at: Instant,
    file_at: Option<Instant>,
    files: VecDeque<(FileTicket, PathBuf)>,
    files_made: u64,
}

impl Shift {
    fn new(plan: &Plan, index: u64) -> Self {
        let now = Instant::now();
        let mut random = Random::of(plan.seed, index * 64 + 1);
        let bus = Bus::new(Random::of(plan.seed, index * 64 + 2));
        // A fleet that was switched on at one moment does not record at one moment.
        let after =
            |random: &mut Random, span: Duration| now + span.mul_f64(random.below(1_000) as f64 / 1e3);
        Self {
            bus,
            payload: Vec::with_capacity(plan.record_bytes),
            rate: plan.rate,
            from: after(&mut random, Duration::from_secs_f64((1.0 / plan.rate).min(1.0))),
            done: 0,
            worked_at: now,
            attempted: 0,
            accepted: 0,
            sample: None,
            sample_at: after(&mut random, SAMPLE_EVERY),
            show_at: after(&mut random, SHOW_EVERY),
            file_at: plan.files.map(|(_, every)| after(&mut random, every)),
            files: VecDeque::new(),
            files_made: 0,
            random,
        }
    }

    /// When there is something to do.
    fn next(&self, now: Instant) -> Instant {
        let soon = self.worked_at + TICK;
        let record = self.from + Duration::from_secs_f64((self.done + 1) as f64 / self.rate);
        let mut next = record.max(soon).min(self.show_at);
        if self.sample.as_ref().is_some_and(|sample| sample.end.is_none()) {
            next = next.min(soon);
        }
        self.file_at.map_or(next, |at| next.min(at)).max(now)
    }

    fn work(&mut self, vehicle: &Vehicle, plan: &Plan, latencies: &mut Latencies) {
        let now = Instant::now();
        self.worked_at = now;
        self.record(vehicle, plan, now);
        self.look(vehicle, latencies);
        if self.file_at.is_some_and(|at| at <= now) {
            self.file(vehicle, plan, now);
        }
        if self.show_at <= now {
            self.show_at = now + SHOW_EVERY;
            self.files_kept();
            self.show(vehicle);
        }
    }

    fn record(&mut self, vehicle: &Vehicle, plan: &Plan, now: Instant) {
        let due = (now.saturating_duration_since(self.from).as_secs_f64() * self.rate) as u64;
        let behind = Duration::from_secs_f64(due.saturating_sub(self.done) as f64 / self.rate);
        if behind > BEHIND_MAX.max(Duration::from_secs_f64(2.0 / self.rate)) {
            (self.from, self.done) = (now, 0);
            return;
        }
        let accepted = self.accepted;
        for _ in self.done..due {
            let name = self.bus.record(plan.record_bytes, &mut self.payload);
            self.attempted += 1;
            self.accepted += u64::from(vehicle.stream.record_named(&name, &self.payload).is_ok());
        }
        self.done = due;
        if self.accepted > accepted && self.sample.is_none() && self.sample_at <= now {
            self.sample_at = now + SAMPLE_EVERY;
            let (status, connected) = vehicle.records_status();
            let (gone, shadows) = (gone(&status), vehicle.shadows());
            self.sample =
                Some(Sample { at: now, record: self.accepted, end: None, gone, shadows, connected });
        }
    }

    /// Whether the record that is followed has become durable, and whether what it is in was acknowledged. It is acknowledged
    /// when everything up to the log's end at the first look after it was durable is settled; looks are a tick apart, so that
    /// may be a tick too late and never too early.
    fn look(&mut self, vehicle: &Vehicle, latencies: &mut Latencies) {
        let Some(sample) = &mut self.sample else { return };
        let (status, _) = vehicle.records_status();
        if gone(&status) != sample.gone {
            latencies.void += 1;
            self.sample = None;
            return;
        }
        if sample.end.is_none() && status.held >= sample.record {
            sample.end = Some(status.end);
        }
        if sample.end.is_some_and(|end| status.settled_up_to >= end) {
            let undisturbed = sample.connected && vehicle.shadows() == sample.shadows;
            latencies.add(sample.at.elapsed(), undisturbed);
            self.sample = None;
        }
    }

    fn show(&mut self, vehicle: &Vehicle) {
        let status = vehicle.client.status();
        let live = &vehicle.live;
        live.recorded.store(self.accepted, Ordering::Relaxed);
        live.refused.store(self.attempted.saturating_sub(self.accepted + self.files_made), Ordering::Relaxed);
        let streams = status.streams.values();
        let delivered = streams.clone().map(|stream| stream.settled.stored + stream.settled.duplicates);
        live.delivered.store(delivered.sum(), Ordering::Relaxed);
        live.waiting.store(streams.map(|stream| stream.waiting).sum(), Ordering::Relaxed);
        live.connected.store(status.connected.is_some(), Ordering::Relaxed);
    }

    /// Makes a file and hands it in. One that is not taken is not made up for.
    fn file(&mut self, vehicle: &Vehicle, plan: &Plan, now: Instant) {
        let Some((bytes, every)) = plan.files else { return };
        self.file_at = Some(now + every);
        self.files_kept();
        if self.files.len() >= FILES_WAITING {
            return;
        }
        let Some(stream) = vehicle.client.files(FILES) else { return };
        let path = vehicle.folder.join(format!("made-{}.log", self.random.next()));
        let written = write_file(&path, bytes, &mut self.random);
        match written
            .ok()
            .and_then(|()| stream.send_file(&path, ContentType::new("text/plain").ok()?, None).ok())
        {
            Some(ticket) => self.files.push_back((ticket, path)),
            None => {
                let _ = fs::remove_file(&path);
            }
        }
    }

    /// Takes away what need not lie there any more.
    fn files_kept(&mut self) {
        use pithead_device_client::client::FileState;
        let (mut attempted, mut made) = (0, 0);
        self.files.retain(|(ticket, path)| {
            match ticket.state() {
                FileState::Sealing { .. } => return true,
                FileState::Failed(error) => tracing::warn!(event = "simulate.file_not_kept", %error),
                _ => (attempted, made) = (attempted + 1, made + 1),
            }
            let _ = fs::remove_file(path);
            false
        });
        self.attempted += attempted;
        self.files_made += made;
    }

    async fn wait_for_files(&mut self) {
        let waited = async {
            for (ticket, _) in &mut self.files {
                let _ = ticket.kept().await;
            }
        };
        let _ = tokio::time::timeout(FILES_LIMIT, waited).await;
        self.files_kept();
    }
}

impl Vehicle {
    /// The stream of records, and whether there is a connection.
    fn records_status(&self) -> (StreamStatus, bool) {
        let mut status = self.client.status();
        let records = status.streams.remove(self.stream.name()).unwrap_or_default();
        (records, status.connected.is_some())
    }

    fn shadows(&self) -> u64 {
        self.live.shadows.load(Ordering::Relaxed)
    }
}

/// Envelopes that end otherwise than by being delivered.
fn gone(status: &StreamStatus) -> u64 {
    let settled = &status.settled;
    status.dropped_envelopes + settled.conflicts + settled.refused + settled.lost
}

/// Text that looks like a log.
fn write_file(path: &Path, bytes: u64, random: &mut Random) -> std::io::Result<()> {
    let mut text = Vec::new();
    while (text.len() as u64) < bytes {
        text.extend_from_slice(
            format!("{:016x} engine: load {}\n", random.next(), random.below(100)).as_bytes(),
        );
    }
    text.truncate(usize::try_from(bytes).unwrap_or(usize::MAX));
    fs::write(path, text)
}

/// The trust that the device was enrolled with, in the folder that the vehicle works in; what is there already stays.
fn copy_trust(from: &Path, to: &Path) -> Result<(), ProgramError> {
    let cannot = |path: &Path, error: std::io::Error| {
        ProgramError::new(ErrorReason::DataDirUnwritable, format!("{}: {error}", path.display()))
    };
    fs::create_dir_all(to).map_err(|error| cannot(to, error))?;
    let slots = ["trust.a", "trust.b"];
    if from == to || slots.iter().any(|slot| to.join(slot).exists()) {
        return Ok(());
    }
    for slot in slots {
        let (from, to) = (from.join(slot), to.join(slot));
        if from.exists() {
            fs::copy(&from, &to).map_err(|error| cannot(&to, error))?;
        }
    }
    Ok(())
}

/// The name in the gateways' certificates: they are reached by other addresses here.
fn server_name(
    device: &str,
    gateways: &pithead_device_client::uplink::Gateways,
) -> Result<ServerName<'static>, ProgramError> {
    let mut names = gateways.endpoints.iter().map(pithead_hop::connect::Endpoint::server_name);
    let first = names.next().ok_or_else(no_gateway)?;
    match &gateways.server_name {
        Some(name) => Ok(name.clone()),
        None if names.all(|name| name == first) => Ok(first),
        None => Err(ProgramError::new(
            ErrorReason::ConfigInvalid,
            format!(
                "{device}: its gateways have names of their own, and are reached by another address here"
            ),
        )
        .todo("set gateway.server_name, or leave one endpoint in the device's file")),
    }
}

/// Which stream a name is.
pub(super) fn stream(name: &str) -> StreamName {
    StreamName::new(name).expect("a stream's name")
}

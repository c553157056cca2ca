//! How the decryptor is, in four dimensions, and what has come through it lately.
//!
//! | dimension | is well while |
//! |---|---|
//! | `intake` | gateways are served |
//! | `keys` | every statement that is served is young, somebody unwraps what is sealed to its keys, and KMS answers well |
//! | `sink` | the last group became durable, and its file system has room |
//! | `disk` | the ledger takes entries, and the file system of the data directory has room |
//!
//! With a source in a bucket, `intake` is well while the bucket and its queue are read, `sink` while output is written, and `disk`
//! while the ledger in the bucket takes entries: each says what it last heard.
//!
//! What is nobody's own to say is looked at once a second. Without keys the decryptor still serves: what cannot be unwrapped now
//! waits at its sender. Holes are counted once a minute, since all lines are gone through.

use crate::books::Books;
use crate::intake::pipeline;
use crate::intake::registry::Registry;
use crate::kms::{KmsCalls, KmsFault, KmsOperation};
use crate::metrics::{DIMENSIONS, Metrics, Outcome, SiteLabel};
use crate::source::replica::Failing;
use crate::unwrap::DataKeys;
use arc_swap::ArcSwap;
use pithead_hop::ingest::UploadStore;
use pithead_hop::program::clock;
use pithead_hop::program::disk::Room;
use pithead_hop::program::health::{Lamps, Level};
use pithead_hop::program::metrics::as_gauge;
use pithead_sealing::Site;
use pithead_sealing::trust::UnixTime;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often.
const LOOK: Duration = Duration::from_secs(1);
/// Looks between two counts of holes.
const HOLES_EVERY: u32 = 60;
/// A sample a second, and one for the second before.
const SAMPLES: usize = 61;
/// A file system with less than this share left, in percent, is not well.
const LOW_PERCENT: u64 = 5;

/// Without these nobody is to be sent here.
const NEEDED: &[&str] = &["intake", "sink", "disk"];

/// The lamps, with their metrics. Clones show the same ones.
#[derive(Debug, Clone)]
pub struct Health {
    lamps: Lamps,
    metrics: Arc<Metrics>,
}

impl Health {
    /// Everything is down until somebody says otherwise.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { lamps: Lamps::new(&DIMENSIONS, NEEDED, clock::since_boot()), metrics }
    }

    /// Says how a dimension is, and tells the log when its level changes.
    pub fn set(&self, dimension: &'static str, level: Level, words: impl Into<String>) {
        let words = words.into();
        if self.lamps.set(dimension, level, words.clone(), clock::since_boot()) {
            tracing::info!(event = "health.changed", dimension, lamp = level.name(), words);
        }
        self.metrics.health.show(dimension, level == Level::Ok, level == Level::Down);
        self.metrics.health.ready(self.lamps.is_ready());
    }

    /// Not ready from now on.
    pub fn drain(&self) {
        self.lamps.drain();
        self.metrics.health.ready(false);
    }

    /// The lamps themselves.
    #[must_use]
    pub fn lamps(&self) -> &Lamps {
        &self.lamps
    }
}

/// What is looked at.
#[derive(Debug)]
pub struct Parts {
    /// Where it is said.
    pub health: Health,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The statements.
    pub books: Arc<ArcSwap<Books>>,
    /// Who unwraps.
    pub data_keys: Arc<DataKeys>,
    /// What KMS has answered, if it is asked.
    pub kms: Option<Arc<KmsCalls>>,
    /// The lines: of all sites together, or of each by itself.
    pub registries: Vec<Arc<Mutex<Registry>>>,
    /// Large envelopes, where gateways bring them.
    pub uploads: Option<UploadStore>,
    /// The data directory.
    pub data: PathBuf,
    /// Where plaintext goes.
    pub sink: SinkOf,
}

/// Where plaintext goes, and with it, where it comes from.
#[derive(Debug)]
pub enum SinkOf {
    /// A folder or a file.
    Disk(PathBuf),
    /// A bucket, and another one that it comes from: what does not work with them at the moment.
    Bucket(Failing),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Totals {
    applied: u64,
    records: u64,
    plaintext_bytes: u64,
    unwraps: u64,
}

/// The last minute. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Rates(Arc<Mutex<VecDeque<(Duration, Totals)>>>);

impl Rates {
    fn look(&self, at: Duration, totals: Totals) {
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if samples.len() == SAMPLES {
            samples.pop_front();
        }
        samples.push_back((at, totals));
    }

    /// For the status page.
    #[must_use]
    pub fn as_json(&self) -> Value {
        let samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some((then, before)), Some((now, after))) = (samples.front(), samples.back()) else {
            return Value::Null;
        };
        let window_s = now.saturating_sub(*then).as_secs_f64();
        let per_s = |of: fn(&Totals) -> u64| {
            let grown = of(after).saturating_sub(of(before)) as f64;
            if window_s > 0.0 { (grown / window_s * 100.0).round() / 100.0 } else { 0.0 }
        };
        let calls = (after.records > 0).then(|| after.unwraps as f64 * 1e6 / after.records as f64);
        json!({
            "window_s": window_s.round() as u64,
            "applied_per_s": per_s(|totals| totals.applied),
            "records_per_s": per_s(|totals| totals.records),
            "plaintext_bytes_per_s": per_s(|totals| totals.plaintext_bytes),
            "unwraps_per_million_records": calls.map(f64::round),
        })
    }
}

/// What a look has to remember for the next.
#[derive(Debug, Default)]
struct Seen {
    at: Option<(Duration, Duration)>,
    /// Groups that the sink has made durable, and those that it has not.
    sink: (u64, u64),
    kms: Vec<u64>,
    /// What KMS has said last that was no good answer.
    fault: Option<&'static str>,
    looks: u32,
}

/// Who looks.
#[derive(Debug)]
pub struct Looks {
    parts: Arc<Parts>,
    rates: Rates,
    seen: Seen,
}

impl Looks {
    /// Looks for the first time: when this returns every lamp says how things are, so that nobody is told that the program is ready by
    /// lamps that nobody has lit.
    pub async fn begin(parts: Parts, rates: Rates) -> Self {
        let mut looks = Self { parts: Arc::new(parts), rates, seen: Seen::default() };
        looks.look().await;
        looks
    }

    /// Looks on until told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = stop.cancelled() => return,
            }
            tokio::select! {
                () = self.look() => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// It asks two file systems and goes through all lines: not on a thread that serves.
    async fn look(&mut self) {
        let (parts, rates) = (Arc::clone(&self.parts), self.rates.clone());
        let mut seen = std::mem::take(&mut self.seen);
        let looked = tokio::task::spawn_blocking(move || {
            look(&parts, &rates, &mut seen);
            seen
        });
        self.seen = looked.await.unwrap_or_default();
    }
}

fn look(parts: &Parts, rates: &Rates, seen: &mut Seen) {
    let (at, wall, metrics) = (clock::since_boot(), clock::wall(), &parts.metrics);
    rates.look(
        at,
        Totals {
            applied: metrics.envelopes_with(Outcome::Applied),
            records: metrics.records.get(),
            plaintext_bytes: metrics.plaintext_bytes.get(),
            unwraps: parts.data_keys.counters().unwraps(),
        },
    );
    if seen.at.is_some_and(|(then, wall_then)| clock::has_stepped(at, then, wall, wall_then)) {
        metrics.clock.stepped();
        tracing::warn!(
            event = "clock.stepped",
            "the wall clock was set; times of custody and screens follow it"
        );
    }
    seen.at = Some((at, wall));
    if let Some(uploads) = &parts.uploads {
        metrics.uploads.show(&uploads.stats());
    }
    metrics.disk.measure(&parts.data);
    if seen.looks.is_multiple_of(HOLES_EVERY) {
        count_holes(parts);
    }
    seen.looks = seen.looks.wrapping_add(1);
    let (level, words) = keys(parts, seen);
    parts.health.set("keys", level, words);
    match &parts.sink {
        SinkOf::Disk(sink) => {
            metrics.sink_room.measure(sink);
            look_at_sink(parts, sink, seen);
        }
        SinkOf::Bucket(failing) => return look_at_bucket(parts, failing),
    }
    let (level, words) = room("the data directory", Room::of(&parts.data).ok());
    parts.health.set("disk", level, words);
}

fn look_at_sink(parts: &Parts, path: &Path, seen: &mut Seen) {
    let metrics = &parts.metrics;
    let sink = (metrics.sink_commits.get(), metrics.sink_failures.get());
    let (before, now) = (std::mem::replace(&mut seen.sink, sink), sink);
    // Nothing new leaves it as it was said last.
    if now.1 > before.1 {
        parts.health.set(
            "sink",
            Level::Down,
            "the last group did not become durable; what it held is sent again",
        );
    } else if now.0 > before.0 || seen.looks == 1 || is_well_or_short_of_room(parts) {
        let (level, words) = room("the sink", Room::of(path).ok());
        parts.health.set("sink", level, words);
    }
}

/// Nothing of this program's is on the disk that what comes out of a bucket needs: of the data directory only the room counts.
fn look_at_bucket(parts: &Parts, failing: &Failing) {
    let failing = failing.now();
    let queue = failing.get("queue").map(|words| format!("{words}; the bucket is listed meanwhile"));
    if let Some(words) = queue.filter(|_| !failing.contains_key("source")) {
        parts.health.set("intake", Level::Degraded, words);
    } else {
        match failing.get("source") {
            Some(words) => parts.health.set("intake", Level::Down, words.clone()),
            None => parts.health.set("intake", Level::Ok, "the bucket is read"),
        }
    }
    for (dimension, part, well) in
        [("sink", "sink", "output is written"), ("disk", "ledger", "entries of the ledger are made")]
    {
        match failing.get(part) {
            Some(words) => parts.health.set(dimension, Level::Down, words.clone()),
            None => parts.health.set(dimension, Level::Ok, well),
        }
    }
    if let Some(words) = failing.get("kms") {
        parts.health.set("keys", Level::Degraded, words.clone());
    }
    parts.metrics.disk.measure(&parts.data);
}

/// Whether the sink's lamp says something of its room, which may change without anything being written.
fn is_well_or_short_of_room(parts: &Parts) -> bool {
    parts.health.lamps().report().get("sink").is_some_and(|lamp| lamp.level != Level::Down)
}

fn room(what: &str, room: Option<Room>) -> (Level, String) {
    let Some(Room { size_bytes, available_bytes }) = room else {
        return (Level::Degraded, format!("the file system of {what} cannot be asked for its room"));
    };
    let percent = available_bytes.saturating_mul(100) / size_bytes.max(1);
    let words = format!("{percent} % of the file system of {what} is left");
    (if percent < LOW_PERCENT { Level::Degraded } else { Level::Ok }, words)
}

fn keys(parts: &Parts, seen: &mut Seen) -> (Level, String) {
    if let Some(calls) = &parts.kms {
        let now: Vec<u64> = calls
            .snapshot()
            .filter(|(operation, ..)| *operation == KmsOperation::Decrypt)
            .map(|(.., count)| count)
            .collect();
        let grew = |at: usize| now.get(at) > seen.kms.get(at);
        let faults = KmsFault::ALL.into_iter().enumerate();
        // A ciphertext that is no good is its sender's fault.
        let mut faults = faults
            .filter(|(_, fault)| !matches!(fault, KmsFault::InvalidCiphertext | KmsFault::InvalidRequest));
        if let Some((_, fault)) = faults.find(|(at, _)| !seen.kms.is_empty() && grew(at + 1)) {
            seen.fault = Some(fault.label());
        } else if grew(0) {
            seen.fault = None;
        }
        seen.kms = now;
    }
    let books = parts.books.load();
    let now = UnixTime(clock::wall_s());
    if let Some(fault) = seen.fault {
        return (Level::Degraded, format!("KMS Decrypt: {fault}; what it concerns waits at its sender"));
    }
    if books.served().is_empty() {
        // With a bucket between, gateways get their keys elsewhere.
        if matches!(parts.sink, SinkOf::Bucket(_)) && !books.is_empty() {
            return (Level::Ok, "keys are known by the configuration".to_owned());
        }
        return (Level::Degraded, "no bundle was accepted: gateways get no keys from here".to_owned());
    }
    for (site, published) in books.served() {
        let statement = &published.statement;
        if now > statement.expires_at {
            return (Level::Degraded, format!("the statement of {site} has ended: issue another"));
        }
        if now > statement.refresh_by {
            return (Level::Degraded, format!("the statement of {site} is stale: issue another"));
        }
        let listed = statement.keys.iter().filter(|key| key.status.is_listed());
        if let Some(key) = listed.into_iter().find(|key| !parts.data_keys.may_unwrap(&key.arn)) {
            return (Level::Degraded, format!("nobody here unwraps what is sealed to {}", key.arn));
        }
    }
    (Level::Ok, format!("statements of {} sites are served", books.served().len()))
}

fn count_holes(parts: &Parts) {
    let (holes, gaps, policy) = {
        let (mut holes, mut gaps) = (pithead_hop::ingest::lines::Incomplete::default(), 0_u64);
        let (mut policy, mut known) = (0_u64, 0_usize);
        for registry in &parts.registries {
            let registry = pipeline::lock(registry);
            for (_, lines) in registry.sites() {
                let (incomplete, declared) = (lines.incomplete(), lines.declared());
                holes.lines += incomplete.lines;
                holes.numbers = holes.numbers.saturating_add(incomplete.numbers);
                gaps = gaps.saturating_add(declared);
            }
            let dropped = registry.all_facts().map(|(.., facts)| facts.dropped_by_policy);
            policy = policy.saturating_add(dropped.fold(0, u64::saturating_add));
            known += registry.lines();
        }
        parts.metrics.lines.set(i64::try_from(known).unwrap_or(i64::MAX));
        (holes, gaps, policy)
    };
    let metrics = &parts.metrics;
    metrics.lines_with_holes.set(as_gauge(holes.lines));
    metrics.hole_numbers.set(as_gauge(holes.numbers));
    metrics.gap_numbers.set(as_gauge(gaps));
    metrics.policy_gap_numbers.set(as_gauge(policy));
}

/// The ages of what is served for each site.
pub fn show_statements(metrics: &Metrics, books: &Books) {
    for (site, published) in books.served() {
        let label = SiteLabel { site: site.to_string() };
        let statement = &published.statement;
        let seconds = |at: UnixTime| as_gauge(at.as_secs());
        metrics.statement_issued.get_or_create(&label).set(seconds(statement.issued_at));
        metrics.statement_refresh_by.get_or_create(&label).set(seconds(statement.refresh_by));
        metrics.statement_expires.get_or_create(&label).set(seconds(statement.expires_at));
    }
}

/// What is served no longer has no age: an alert on it would be on nobody's statement.
pub fn forget_statements(metrics: &Metrics, withdrawn: &[Site]) {
    for site in withdrawn {
        let label = SiteLabel { site: site.to_string() };
        for family in [&metrics.statement_issued, &metrics.statement_refresh_by, &metrics.statement_expires] {
            family.remove(&label);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_that_runs_out_is_degraded_and_so_is_one_that_does_not_answer() {
        let of = |available_bytes| room("the sink", Some(Room { size_bytes: 1000, available_bytes }));
        assert_eq!(of(50), (Level::Ok, "5 % of the file system of the sink is left".to_owned()));
        assert_eq!(of(49).0, Level::Degraded);
        assert_eq!(room("the sink", None).0, Level::Degraded);
        assert_eq!(room("the sink", Some(Room::default())).0, Level::Degraded, "one of no size has no room");
    }

    #[test]
    fn without_keys_the_decryptor_is_ready_and_without_a_sink_it_is_not() {
        let health = Health::new(Arc::new(Metrics::new()));
        for dimension in ["intake", "sink", "disk"] {
            assert!(!health.lamps().is_ready());
            health.set(dimension, Level::Ok, "well");
        }
        assert!(health.lamps().is_ready(), "keys are down still");
        health.set("sink", Level::Down, "the disk is full");
        assert!(!health.lamps().is_ready());
        let page = health.metrics.text();
        assert!(page.contains("pithead_health_down{dimension=\"sink\"} 1"), "{page}");
        assert!(page.contains("pithead_ready 0"), "{page}");
    }

    #[test]
    fn the_bill_is_in_unwraps_per_million_records_and_rates_are_of_the_last_minute() {
        let rates = Rates::default();
        assert_eq!(rates.as_json(), Value::Null);
        for second in 0..=120 {
            let totals =
                Totals { applied: second * 2, records: second * 100, plaintext_bytes: 0, unwraps: 3 };
            rates.look(Duration::from_secs(second), totals);
        }
        let said = rates.as_json();
        assert_eq!((said["window_s"].as_u64(), said["records_per_s"].as_f64()), (Some(60), Some(100.0)));
        assert_eq!(said["unwraps_per_million_records"], 250.0);
    }
}

//! When the key statement is refreshed: in the background, with jitter, and never in a device's way.
//!
//! After a good answer the next visit is between the two intervals; after a failure it is by backoff, from a second up to
//! the longer interval. The source can say that there is something newer; then it is asked at once, but not more than
//! once a second, whatever it says. What is in force stays so through all of it: a source that is away makes it *stale*,
//! and nothing else.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pithead_hop::backoff::{Backoff, Policy, random};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::trust::{Clock, Device, KeyArn, KeyStatus, Sha256Digest, Status};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::history::History;
use super::keeper::{Keeper, TakeError, Taken};
use super::statement_source::{BundleFile, Held, SourceError, StatementSource};
use crate::clock::{GatewayClock, since_boot};
use crate::health::{Health, Level};
use crate::metrics::{Dimension, InForce, Metrics};
use pithead_hop::program::disk;
use pithead_hop::trace::TraceParent;
use pithead_hop::trace::span::{Kind, Spans};

/// Ceiling of the first delay after a failure.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// A source that cries wolf is asked once per this long.
const NEWS_FLOOR: Duration = Duration::from_secs(1);
/// Operating seconds are written down this often.
const SAVE_EVERY: Duration = Duration::from_secs(600);

/// A source that was away for so long is worth a look, however young the statement is.
const AWAY_LONG: Duration = Duration::from_secs(24 * 3600);

/// How often a source is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Intervals {
    /// At most so often.
    pub min: Duration,
    /// At least so often.
    pub max: Duration,
}

impl Intervals {
    fn after_success(self, random: u64) -> Duration {
        let span = (self.max - self.min).as_millis();
        self.min + Duration::from_millis(((span * u128::from(random)) >> 64) as u64)
    }
}

/// Why a visit brought nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RefreshError {
    /// The source did not give a bundle.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The bundle was not taken.
    #[error(transparent)]
    Take(#[from] TakeError),
}

impl RefreshError {
    /// The reason in the registry.
    #[must_use]
    pub fn reason(&self) -> ErrorReason {
        match self {
            Self::Source(error) => error.reason(),
            Self::Take(error) => error.reason(),
        }
    }
}

/// What status pages say about refreshing.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Operating time of the last visit that ended well.
    pub good_at: Option<Duration>,
    /// The last failure since then, when it was, and what it said.
    pub failure: Option<(ErrorReason, String, Duration)>,
    /// Root and statement in force, as of the last visit.
    pub in_force: InForce,
    /// How things stand, as of the last visit; none before the first.
    pub standing: Option<Standing>,
    /// Another gateway of the site serves another truth, in words.
    pub split: Option<String>,
}

/// How the statement stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Whether anything may be sealed.
    pub status: Status,
    /// The key that a device which has seen what this gateway has seen seals to.
    pub in_use: Option<(KeyArn, Sha256Digest)>,
}

/// Reads and writes the report. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct SharedReport(Arc<Mutex<Report>>);

impl SharedReport {
    /// As it stands.
    #[must_use]
    pub fn get(&self) -> Report {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether another gateway of the site serves another truth. True if that is news.
    pub fn split_view(&self, split: Option<String>) -> bool {
        let mut report = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = report.split != split;
        report.split = split;
        is_news
    }

    fn change(&self, change: impl FnOnce(&mut Report)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Where to look from now on, and how often. A reload leaves it here and wakes the task; a later one replaces it.
#[derive(Debug)]
pub struct Change {
    /// Where statements come from.
    pub source: Box<dyn StatementSource>,
    /// How often it is asked.
    pub intervals: Intervals,
}

/// Hands a [`Change`] over. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct NextChange(Arc<Mutex<Option<Change>>>);

impl NextChange {
    /// Leaves one.
    pub fn leave(&self, change: Change) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(change);
    }

    fn take(&self) -> Option<Change> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The background task of the key path.
#[derive(Debug)]
pub struct Refresh {
    /// What it keeps fresh.
    pub keeper: Keeper,
    /// Where statements come from.
    pub source: Box<dyn StatementSource>,
    /// Where `key import` leaves bundles for a running gateway.
    pub inbox: PathBuf,
    /// How often.
    pub intervals: Intervals,
    /// Operating time, and the trusted clock if there is one.
    pub clock: GatewayClock,
    /// The keys' lamp.
    pub health: Health,
    /// Counters.
    pub metrics: Metrics,
    /// For status pages.
    pub report: SharedReport,
    /// Statements known, for metrics.
    pub history: Arc<History>,
    /// Somebody wants it looked at now.
    pub poke: Arc<Notify>,
    /// What a reload has brought.
    pub next: NextChange,
    /// Where spans go.
    pub spans: Spans,
}

impl Refresh {
    /// Visits the source until it is told to stop; then writes the operating time down.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::new(Policy { first: FIRST_RETRY, max: self.intervals.max });
        let mut save = tokio::time::interval(SAVE_EVERY);
        save.tick().await;
        loop {
            if let Some(Change { source, intervals }) = self.next.take() {
                (self.source, self.intervals) = (source, intervals);
                backoff = Backoff::new(Policy { first: FIRST_RETRY, max: intervals.max });
            }
            let visit = tokio::select! {
                visit = self.visit() => visit,
                () = stop.cancelled() => break,
            };
            let delay = match &visit {
                Ok(_) => {
                    backoff.reset();
                    self.intervals.after_success(random())
                }
                Err(_) => backoff.next_delay(random(), None),
            };
            let began = tokio::time::Instant::now();
            let held = self.held();
            // News counts only after a good visit: whoever answers badly does not set our pace.
            let listens = visit.is_ok();
            let stopped = loop {
                tokio::select! {
                    () = tokio::time::sleep_until(began + delay) => break false,
                    () = self.source.changed(&held), if listens => {
                        tokio::time::sleep_until(began + NEWS_FLOOR).await;
                        break false;
                    }
                    () = self.poke.notified() => break false,
                    _ = save.tick() => self.save(),
                    () = stop.cancelled() => break true,
                }
            };
            if stopped {
                break;
            }
        }
        self.save();
    }

    /// One visit: the inbox first, then the source, then KMS about what is in force.
    ///
    /// # Errors
    /// Why nothing new is in force. What was is still.
    pub async fn visit(&mut self) -> Result<Taken, RefreshError> {
        self.empty_inbox().await;
        let clock = self.clock.now();
        let mut span = self.spans.always("keys.refresh", Kind::Client);
        let outcome = self.fetch(clock, span.at()).await;
        match &outcome {
            Ok(taken) => span.number("pithead.statement_new", u64::from(taken.statement)),
            Err(error) => span.failed(|| error.reason().name().to_owned()),
        }
        drop(span);
        let now = since_boot();
        self.metrics.key_refresh(outcome.as_ref().err().map(RefreshError::reason));
        match &outcome {
            Ok(taken) => {
                self.report.change(|report| {
                    report.good_at = Some(now);
                    report.failure = None;
                });
                self.metrics.fingerprint_mismatch(false);
                self.announce(*taken);
            }
            Err(error) => {
                let failure = (error.reason(), error.to_string(), now);
                self.report.change(|report| report.failure = Some(failure));
                self.complain(error);
            }
        }
        self.show(clock);
        outcome
    }

    async fn fetch(&mut self, clock: Clock, trace: Option<TraceParent>) -> Result<Taken, RefreshError> {
        let taken = match self.source.fetch_within(&self.held(), trace).await? {
            Some(bundle) => self.keeper.take(bundle, clock).await?,
            None => Taken::default(),
        };
        if !taken.statement {
            self.keeper.compare().await?;
        }
        Ok(taken)
    }

    /// Takes what `key import` has left. A bundle is gone from there afterwards, taken or not: the import has verified it
    /// before, so what is refused here was overtaken by something newer.
    async fn empty_inbox(&mut self) {
        let files = disk::complete_files(&self.inbox).unwrap_or_default();
        for path in files {
            let clock = self.clock.now();
            let outcome = match BundleFile::new(path.clone()).fetch(&self.held()).await {
                Ok(Some(bundle)) => self.keeper.take(bundle, clock).await.map_err(RefreshError::from),
                Ok(None) => Ok(Taken::default()),
                Err(error) => Err(error.into()),
            };
            match outcome {
                Ok(taken) => self.announce(taken),
                Err(error) => self.complain(&error),
            }
            let _ = std::fs::remove_file(&path);
        }
    }

    fn held(&self) -> Held {
        let device = self.keeper.device();
        Held {
            root_version: device.root_version(),
            statement_digest: device.statement().map(|held| *held.digest()),
        }
    }

    fn announce(&self, taken: Taken) {
        let device = self.keeper.device();
        if taken.roots > 0 {
            tracing::info!(event = "key.root_accepted", version = device.root_version(), roots = taken.roots);
        }
        if taken.statement
            && let Some(statement) = device.statement()
        {
            let (epoch, sequence) = statement.version();
            tracing::info!(event = "key.statement_accepted", epoch, sequence, digest = %statement.digest());
        }
        if taken.key_changed
            && let Ok(key) = device.verified_key(self.clock.now())
        {
            tracing::info!(event = "key.activated", arn = %key.arn(), fingerprint = %key.fingerprint());
        }
    }

    fn complain(&self, error: &RefreshError) {
        let reason = error.reason();
        let (code, name) = (reason.code(), reason.name());
        match error {
            RefreshError::Take(TakeError::Mismatch { key, stated, served }) => {
                self.metrics.fingerprint_mismatch(true);
                tracing::error!(event = "key.fingerprint_mismatch", code, arn = %key, %stated, %served);
            }
            RefreshError::Take(error) if error.is_alarm() => {
                tracing::error!(event = "key.alarm", code, reason = name, %error);
            }
            RefreshError::Take(error) => tracing::warn!(event = "key.refused", code, reason = name, %error),
            RefreshError::Source(error) => {
                tracing::warn!(event = "key.source_away", code, reason = name, %error)
            }
        }
    }

    fn show(&self, clock: Clock) {
        let now = since_boot();
        let device = self.keeper.device();
        let (epoch, sequence) = device.version();
        let in_force = in_force(device);
        self.metrics.key_in_force(&in_force);
        self.metrics.statements_known(self.history.len());
        let in_use = device.verified_key(clock).ok().map(|key| (key.arn().clone(), *key.fingerprint()));
        let standing = Standing { status: device.status(clock), in_use };
        self.report.change(|report| (report.in_force, report.standing) = (in_force, Some(standing)));
        let report = self.report.get();
        if let Some(good_at) = report.good_at {
            self.metrics.key_refresh_age(now.saturating_sub(good_at).as_secs_f64());
        }
        let since_good = report.good_at.map_or(clock.uptime_s, |at| now.saturating_sub(at).as_secs());
        let only_away = report.failure.as_ref().is_some_and(|(reason, ..)| is_only_away(*reason, since_good));
        let failure = report.failure.map(|(reason, text, _)| format!("{}: {text}", reason.code()));
        let (level, mut words) = match (device.status(clock), failure) {
            (Status::Fresh, Some(why)) if only_away => {
                (Level::Ok, format!("statement {epoch}.{sequence} in force; its source is away: {why}"))
            }
            (Status::Fresh, None) => (Level::Ok, format!("statement {epoch}.{sequence} in force")),
            (Status::Fresh, Some(why)) => (
                Level::Degraded,
                format!("statement {epoch}.{sequence} in force; the last refresh failed: {why}"),
            ),
            (Status::Stale, why) => (
                Level::Degraded,
                format!(
                    "statement {epoch}.{sequence} is stale; {}",
                    why.as_deref().unwrap_or("no newer one exists")
                ),
            ),
            // Envelopes under any known key are still taken.
            (Status::Expired | Status::NoKey, why) if !self.history.is_empty() => (
                Level::Degraded,
                format!(
                    "no key may be sealed to; {}",
                    why.as_deref().unwrap_or("the authority must issue one")
                ),
            ),
            (Status::Expired | Status::NoKey, why) => (
                Level::Down,
                format!(
                    "no statement was ever accepted; {}",
                    why.as_deref().unwrap_or("waiting for the source")
                ),
            ),
        };
        let level = if report.split.is_some() { level.max(Level::Degraded) } else { level };
        if let Some(split) = report.split {
            words = format!("split view, {}: {split}; {words}", ErrorReason::TrustEquivocation.code());
        }
        if self.health.set(Dimension::Keys, level, words.clone(), now) {
            tracing::info!(event = "health.changed", dimension = "keys", lamp = level.name(), words);
        }
    }

    fn save(&mut self) {
        if let Err(error) = self.keeper.save(self.clock.now()) {
            tracing::error!(event = "key.state_not_saved", %error);
        }
    }
}

fn in_force(device: &Device) -> InForce {
    let (epoch, sequence) = device.version();
    let root = InForce {
        root_version: device.root_version(),
        root_expires_at: device.root().expires_at.as_secs(),
        epoch,
        sequence,
        ..InForce::default()
    };
    let Some(statement) = device.statement() else { return root };
    let active = statement.keys.iter().filter(|key| key.status == KeyStatus::Active);
    InForce {
        issued_at: statement.issued_at.as_secs(),
        refresh_by: statement.refresh_by.as_secs(),
        expires_at: statement.expires_at.as_secs(),
        seal_until: active.map(|key| key.seal_until.as_secs()).max().unwrap_or(0),
        ..root
    }
}

/// WAN down is a normal state: as long as the statement is young, a source that cannot be reached is no trouble with the keys. A
/// bundle that is refused is, and so is a source that was away for [`AWAY_LONG`]: it may never have been there.
fn is_only_away(reason: ErrorReason, since_good_s: u64) -> bool {
    reason == ErrorReason::PeerUnreachable && since_good_s < AWAY_LONG.as_secs()
}

#[cfg(test)]
mod tests;

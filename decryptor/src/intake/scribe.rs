//! The one thread that writes: sink, set-aside areas, ledger; in that order, group by group.
//!
//! Whatever waits while a group is being written is the next group, so the syncs of a busy moment are shared and an idle
//! moment has no timer. The order is what makes a kill harmless:
//!
//! 1. the sink commits the group's plaintexts (idempotent by identity);
//! 2. poison and conflicts are kept beside;
//! 3. the ledger gets an entry for each, and the sink's mark, and is synced;
//! 4. the books in memory are moved on, and everybody is answered.
//!
//! Before all of that it asks of each envelope once more whether its session signature will do: it sees them one after the other,
//! so behind the first signed entry of a device there is no unsigned one in the ledger.
//!
//! Killed between 1 and 3, the envelope comes again, the sink finds it, and 3 follows. Killed between 3 and 4, it comes again
//! and is a duplicate.

use super::answer::{Again, Answer, Done};
use super::turn::Turn;
use crate::aside::{Area, Kept};
use crate::devices::{Barred, Origin};
use crate::ledger::record::{Applied, Said};
use crate::ledger::{Entry, Ledger, LedgerError};
use crate::metrics::{AreaLabel, Metrics, Outcome, ReasonLabel};
use crate::sink::{Delivery, Placed, Sink, SinkError};
use bytes::Bytes;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::{DeviceId, Identity, Site};
use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Envelopes in one group: past that a sync costs what its bytes cost.
pub const GROUP_ENVELOPES: usize = 1_024;

/// Plaintext bytes in one group.
pub const GROUP_BYTES: usize = 32 << 20;

/// Jobs that wait for the writing thread: two groups, so that it never waits for the openers.
pub const QUEUE: usize = 2 * GROUP_ENVELOPES;

/// After the disk was full: time for somebody to make room.
const FULL_RETRY: Duration = Duration::from_secs(15);
/// After another failure of the sink.
const FAILED_RETRY: Duration = Duration::from_secs(5);

/// One envelope for the writing thread.
#[derive(Debug)]
pub struct Job {
    /// Its identity.
    pub identity: Identity,
    /// SHA-256 of its sealed bytes.
    pub sha256: [u8; 32],
    /// When it was admitted.
    pub received_us: u64,
    /// The sealed bytes, to be kept if it ends beside the sink.
    pub sealed: Bytes,
    /// What to do with it.
    pub work: Work,
    /// Its place on its line, if it takes one.
    pub turn: Option<Turn>,
    /// It came as an upload, and `sealed` holds its header alone: it is not kept beside the sink, its sender keeps it.
    pub large: bool,
    /// Its share of the memory for plaintext.
    pub room: Option<OwnedSemaphorePermit>,
    /// Its share of what may be under way.
    pub share: Option<super::pipeline::Share>,
    /// Who waits.
    pub answer: oneshot::Sender<Answer>,
}

/// What to do with an envelope.
#[derive(Debug)]
pub enum Work {
    /// Make it durable.
    Deliver(Box<Opened>),
    /// Keep it beside, with its reason, and refuse it.
    Poison {
        /// Why.
        reason: ErrorReason,
        /// For a person.
        detail: Cow<'static, str>,
    },
    /// Other bytes stand under its identity: keep it beside.
    Conflict,
}

/// An opened envelope with its entry for the ledger.
#[derive(Debug)]
pub struct Opened {
    /// For the sink.
    pub delivery: Delivery,
    /// For the ledger.
    pub applied: Applied,
    /// What the batch says of its lines.
    pub said: Option<Said>,
}

/// What the writing thread tells whoever keeps the books in memory, before anybody is answered.
pub trait Books: Send {
    /// The entry is durable: the identity is used from now on.
    fn entered(&mut self, identity: &Identity, entry: &Entry);
    /// Whether an envelope of this origin is set aside, by all that was entered so far.
    fn bar(&mut self, identity: &Identity, origin: &Origin) -> Option<Barred>;
    /// Nothing was entered: the identity is free again.
    fn withdrawn(&mut self, identity: &Identity);
    /// The books as they stand, for a checkpoint.
    fn checkpoint(&mut self) -> crate::ledger::record::Checkpoint;
}

/// Why the writing thread ended before it was told to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScribeError {
    /// A sync of the sink failed.
    #[error("the sink: {0}")]
    Sink(#[from] SinkError),
    /// The ledger failed.
    #[error("the ledger: {0}")]
    Ledger(#[from] LedgerError),
}

/// The writing thread's belongings.
pub struct Scribe<B> {
    /// Where plaintext goes.
    pub sink: Box<dyn Sink>,
    /// What was applied.
    pub ledger: Ledger,
    /// Poison.
    pub refused: Area,
    /// Other bytes under used identities.
    pub conflicts: Area,
    /// The books in memory.
    pub books: B,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Cancelled when the thread cannot go on.
    pub failed: CancellationToken,
}

impl<B> std::fmt::Debug for Scribe<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scribe").field("ledger", &self.ledger).finish_non_exhaustive()
    }
}

/// The devices that have signed in one group: behind the first signed envelope of a device, an unsigned one is barred as if the first
/// had been entered already.
#[derive(Debug, Default)]
pub struct Signers(HashSet<(Site, DeviceId)>);

impl Signers {
    /// Whether the next envelope of the group is barred; `by_books` is what the books say of it, who do not know the group.
    pub fn bar(&mut self, identity: &Identity, origin: &Origin, by_books: Option<Barred>) -> Option<Barred> {
        let device = || (identity.site.clone(), identity.device.clone());
        let barred = by_books.or_else(|| match origin {
            Origin::Signed(_) => None,
            Origin::Unsigned => self.0.contains(&device()).then_some(Barred::Unsigned),
            Origin::UnknownKey(kid) => self.0.contains(&device()).then_some(Barred::UnknownKey(*kid)),
        });
        if barred.is_none() && matches!(origin, Origin::Signed(_)) {
            self.0.insert(device());
        }
        barred
    }
}

/// Counts an entry that is durable.
pub fn count(metrics: &Metrics, entry: &Entry) {
    match entry {
        Entry::Applied { applied, .. } => {
            metrics.envelope(Outcome::Applied);
            metrics.records.inc_by(u64::from(applied.records));
            metrics.sealed_bytes.inc_by(applied.sealed_bytes);
            metrics.plaintext_bytes.inc_by(applied.plaintext_bytes);
            metrics.verdict(match (applied.signed_by(), applied.unknown_key) {
                (Some(_), _) => "signed",
                (None, true) => "unknown-key",
                (None, false) => "unsigned",
            });
        }
        Entry::SetAside(aside) if aside.reason == ErrorReason::Conflict as i32 => {
            metrics.envelope(if aside.kept { Outcome::Conflict } else { Outcome::ConflictUnkept });
        }
        Entry::SetAside(aside) => {
            let reason = ErrorReason::try_from(aside.reason).unwrap_or(ErrorReason::Unspecified);
            metrics.envelope(Outcome::Refused);
            metrics.refused.get_or_create(&ReasonLabel { reason: reason.name() }).inc();
            match reason {
                ErrorReason::SignatureInvalid => metrics.verdict("invalid"),
                ErrorReason::SignatureRequired => metrics.verdict("unsigned-refused"),
                ErrorReason::SignatureRevoked => metrics.verdict("signed-by-revoked"),
                ErrorReason::SignatureKeyUnknown => metrics.verdict("unknown-key-refused"),
                _ => {}
            }
        }
    }
}

/// A job after the sink and the areas have seen it.
struct Settled {
    job: Job,
    result: Result<(Entry, Done), Again>,
}

impl<B: Books> Scribe<B> {
    /// Writes until all senders are gone (everything is then written and answered), or until the disk can no longer be
    /// believed. Blocks: it has a thread of its own.
    pub fn run(mut self, mut jobs: mpsc::Receiver<Job>) -> Result<(), ScribeError> {
        let result = self.write_groups(&mut jobs);
        if result.is_err() {
            self.failed.cancel();
            jobs.close();
            while let Some(job) = jobs.blocking_recv() {
                self.fail(job, &not_durable());
            }
        } else {
            let checkpoint = self.books.checkpoint();
            self.ledger.close(checkpoint, &self.sink.mark())?;
        }
        result
    }

    fn write_groups(&mut self, jobs: &mut mpsc::Receiver<Job>) -> Result<(), ScribeError> {
        self.show_areas();
        let mut group = Vec::with_capacity(GROUP_ENVELOPES);
        while let Some(first) = jobs.blocking_recv() {
            let mut bytes = plaintext_bytes(&first);
            group.push(first);
            while group.len() < GROUP_ENVELOPES && bytes < GROUP_BYTES {
                let Ok(job) = jobs.try_recv() else { break };
                bytes += plaintext_bytes(&job);
                group.push(job);
            }
            // Over the checkpoint as well: a disk that hangs there is one that hangs.
            let writing = self.metrics.writing.clone();
            let _at_work = writing.begin();
            self.write_group(std::mem::take(&mut group))?;
            if self.ledger.wants_checkpoint() {
                let checkpoint = self.books.checkpoint();
                self.ledger.checkpoint(checkpoint, &self.sink.mark())?;
            }
        }
        Ok(())
    }

    fn write_group(&mut self, group: Vec<Job>) -> Result<(), ScribeError> {
        let began = Instant::now();
        // A line that broke while its later envelopes were queued here: they must not overtake what failed.
        let (behind, group): (Vec<_>, Vec<_>) =
            group.into_iter().partition(|job| job.turn.as_ref().is_some_and(Turn::is_broken));
        for job in behind {
            self.fail(job, &super::behind());
        }
        if group.is_empty() {
            return Ok(());
        }
        let group = self.judge(group);
        let deliveries: Vec<Delivery> = group
            .iter()
            .filter_map(|job| match &job.work {
                Work::Deliver(opened) => Some(opened.delivery.clone()),
                Work::Poison { .. } | Work::Conflict => None,
            })
            .collect();
        let placed = if deliveries.is_empty() {
            Ok(Vec::new())
        } else {
            let began = Instant::now();
            let placed = self.sink.commit(&deliveries);
            self.metrics.sink_commit_seconds.took(began.elapsed());
            placed
        };
        drop(deliveries);
        let placed = match placed {
            Ok(placed) => Ok(placed),
            Err(error) => {
                self.metrics.sink_failures.inc();
                tracing::error!(event = "sink.failed", %error, fatal = error.is_fatal(), "nothing of this group was acknowledged");
                if error.is_fatal() {
                    for job in group {
                        self.fail(job, &not_durable());
                    }
                    return Err(error.into());
                }
                Err(sink_failed(&error))
            }
        };
        let mut places = placed.as_ref().map(|placed| placed.iter().copied());
        let settled: Vec<Settled> = group
            .into_iter()
            .map(|job| {
                let place = match (&job.work, &mut places) {
                    (Work::Deliver(_), Ok(places)) => Ok(places.next()),
                    (Work::Deliver(_), Err(again)) => Err((*again).clone()),
                    (Work::Poison { .. } | Work::Conflict, _) => Ok(None),
                };
                let result = place.and_then(|place| self.settle(&job, place));
                Settled { job, result }
            })
            .collect();
        let entries: Vec<&Entry> =
            settled.iter().filter_map(|s| s.result.as_ref().ok().map(|(entry, _)| entry)).collect();
        if !entries.is_empty()
            && let Err(error) = self.ledger.append(&entries, &self.sink.mark())
        {
            tracing::error!(event = "ledger.failed", %error, "nothing of this group was acknowledged");
            for settled in settled {
                self.fail(settled.job, &not_durable());
            }
            return Err(error.into());
        }
        self.metrics.sink_commits.inc();
        self.metrics.commit_seconds.observe(began.elapsed().as_secs_f64());
        for settled in settled {
            self.answer(settled);
        }
        Ok(())
    }

    /// Turns into poison what is barred by now, by the entries of earlier groups and by the envelopes before it in this one.
    fn judge(&mut self, mut group: Vec<Job>) -> Vec<Job> {
        let mut signers = Signers::default();
        for job in &mut group {
            let Work::Deliver(opened) = &job.work else { continue };
            let (identity, origin) = (&job.identity, opened.delivery.origin);
            let by_books = self.books.bar(identity, &origin);
            if let Some(barred) = signers.bar(identity, &origin, by_books) {
                job.work = Work::Poison { reason: barred.reason(), detail: barred.detail() };
            }
        }
        group
    }

    /// Where a job ends, once the sink has spoken.
    fn settle(&mut self, job: &Job, place: Option<Placed>) -> Result<(Entry, Done), Again> {
        match &job.work {
            Work::Deliver(opened) if place != Some(Placed::Conflict) => {
                let entry = Entry::Applied { applied: opened.applied.clone(), said: opened.said.clone() };
                Ok((entry, Done::Applied))
            }
            Work::Deliver(_) | Work::Conflict => {
                let kept = keep(&mut self.conflicts, job, ErrorReason::Conflict)? != Kept::Full;
                tracing::warn!(event = "envelope.conflict", identity = %job.identity, kept, "other bytes under a used identity");
                Ok((Entry::set_aside(job, ErrorReason::Conflict, kept), Done::Conflict { kept }))
            }
            Work::Poison { reason, detail } => {
                let kept = keep(&mut self.refused, job, *reason)? != Kept::Full;
                tracing::warn!(event = "envelope.refused", identity = %job.identity, reason = reason.name(), kept, %detail);
                let done = Done::Refused { reason: *reason, detail: detail.clone() };
                Ok((Entry::set_aside(job, *reason, kept), done))
            }
        }
    }

    fn answer(&mut self, settled: Settled) {
        let Settled { job, result } = settled;
        let (entry, done) = match result {
            Ok(entered) => entered,
            Err(again) => return self.fail(job, &again),
        };
        count(&self.metrics, &entry);
        if matches!(entry, Entry::SetAside(_)) {
            self.show_areas();
        }
        self.books.entered(&job.identity, &entry);
        // Nobody waits any more when the call was dropped: it comes again and is a duplicate.
        let _ = job.answer.send(Ok(done));
    }

    fn fail(&mut self, job: Job, again: &Again) {
        self.metrics.envelope(Outcome::Retry);
        if let Some(turn) = &job.turn {
            turn.break_line();
        }
        if !matches!(job.work, Work::Conflict) {
            // A conflict claims nothing: the identity is the first one's.
            self.books.withdrawn(&job.identity);
        }
        let _ = job.answer.send(Err(again.clone()));
    }

    fn show_areas(&self) {
        for (label, area) in [("refused", &self.refused), ("conflicts", &self.conflicts)] {
            let (envelopes, bytes) = area.totals();
            let label = AreaLabel { area: label };
            self.metrics
                .kept_envelopes
                .get_or_create(&label)
                .set(i64::try_from(envelopes).unwrap_or(i64::MAX));
            self.metrics.kept_bytes.get_or_create(&label).set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
    }
}

fn keep(area: &mut Area, job: &Job, reason: ErrorReason) -> Result<Kept, Again> {
    if job.large {
        return Ok(Kept::Full);
    }
    area.keep(&job.identity, &job.sha256, reason, &job.sealed).map_err(|error| {
        tracing::error!(event = "aside.failed", %error, "could not keep an envelope beside the sink; it has to come again");
        Again {
            reason: if error.kind() == std::io::ErrorKind::StorageFull { ErrorReason::DiskFull } else { ErrorReason::DiskFailed },
            detail: "the data directory could not take it".into(),
            retry_after: FULL_RETRY,
        }
    })
}

fn plaintext_bytes(job: &Job) -> usize {
    match &job.work {
        Work::Deliver(opened) => opened.delivery.content.plaintext().len(),
        Work::Poison { .. } | Work::Conflict => 0,
    }
}

fn not_durable() -> Again {
    Again {
        reason: ErrorReason::NotDurable,
        detail: "the disk failed before the envelope was safe; send it again".into(),
        retry_after: FAILED_RETRY,
    }
}

fn sink_failed(error: &SinkError) -> Again {
    let (detail, retry_after) = if error.is_full() {
        ("the sink's disk is full", FULL_RETRY)
    } else {
        ("the sink could not make the plaintext durable", FAILED_RETRY)
    };
    Again { reason: ErrorReason::SinkFailed, detail: detail.into(), retry_after }
}

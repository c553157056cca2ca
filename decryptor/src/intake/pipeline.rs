//! The pipeline itself: takes admitted envelopes, gives tickets.

use super::answer::Answer;
use super::open::{Parcel, Stopped};
use super::opener::Opener;
use super::registry::{Registry, Verdict};
use super::scribe::{Job, Work};
use super::turn::{Call, Turn, Turns};
use crate::books::Books;
use crate::devices::{Devices, Origin};
use crate::metrics::{Metrics, Outcome, ReasonLabel};
use crate::unwrap::DataKeys;
use arc_swap::ArcSwap;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use pithead_hop::program::clock;
use pithead_hop::status::Refusal;
use pithead_hop::trace::span::{Kind, Spans};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::{Identity, Line, Seq, Site};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Plaintext bytes between opener and sink.
const PLAINTEXT_BYTES: usize = 128 << 20;

/// Envelopes under way in all: the tasks' memory.
const UNDER_WAY: usize = 65_536;

/// When the pipeline is full or stopping.
const FULL_RETRY: Duration = Duration::from_millis(500);
pub(super) const DRAINING_RETRY: Duration = Duration::from_secs(5);

/// Resolves to how an envelope ends. Clones share it.
pub type Ticket = Shared<BoxFuture<'static, Answer>>;

/// How an offered envelope stands.
#[derive(Debug, Clone)]
pub enum Offered {
    /// Under way: the ticket tells how it ends.
    UnderWay(Ticket),
    /// The same bytes are under way already: the ticket is the first one's, and `Applied` means duplicate here.
    SameUnderWay(Ticket),
    /// It was applied before.
    Duplicate {
        /// The first one's hash is no longer kept.
        unverified: bool,
    },
}

/// What the pipeline is made of.
#[derive(Debug)]
pub struct Parts {
    /// Which keys are known.
    pub books: Arc<ArcSwap<Books>>,
    /// Data keys.
    pub data_keys: Arc<DataKeys>,
    /// Whose session signatures are believed.
    pub devices: Arc<ArcSwap<Devices>>,
    /// The lines in memory.
    pub registry: Arc<Mutex<Registry>>,
    /// To the writing thread.
    pub jobs: mpsc::Sender<Job>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Sealed bytes under way in all.
    pub under_way_bytes: usize,
    /// Where large contents are opened to.
    pub staging: PathBuf,
    /// Where spans go.
    pub spans: Spans,
}

/// See the module above.
#[derive(Debug)]
pub struct Pipeline {
    opener: Opener,
    registry: Arc<Mutex<Registry>>,
    turns: Arc<Turns>,
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    plaintext: Arc<Semaphore>,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
    draining: CancellationToken,
    under_way: Arc<Mutex<UnderWay>>,
    under_way_bytes: usize,
    staging: PathBuf,
    spans: Spans,
}

#[derive(Debug, Default)]
struct UnderWay {
    bytes: usize,
    /// When each was admitted, by a number of their own: the first is the oldest.
    since: BTreeMap<(u64, u64), ()>,
    next: u64,
}

/// One envelope's share of what may be under way. Dropping it gives it back.
#[derive(Debug)]
pub struct Share {
    all: Arc<Mutex<UnderWay>>,
    metrics: Arc<Metrics>,
    bytes: usize,
    key: (u64, u64),
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut all = lock(&self.all);
        all.bytes -= self.bytes;
        all.since.remove(&self.key);
        show(&all, &self.metrics);
    }
}

fn show(all: &UnderWay, metrics: &Metrics) {
    metrics.under_way.set(i64::try_from(all.since.len()).unwrap_or(i64::MAX));
    metrics.under_way_bytes.set(i64::try_from(all.bytes).unwrap_or(i64::MAX));
    let oldest = all.since.first_key_value().map_or(0.0, |((us, _), ())| *us as f64 / 1e6);
    metrics.oldest_under_way.set(oldest);
}

/// An identity that is claimed in the registry. Dropped unkept (a task that ended early), it is free again.
#[derive(Debug)]
struct Claim {
    registry: Arc<Mutex<Registry>>,
    identity: Identity,
    kept: bool,
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.kept {
            lock(&self.registry).withdraw(&self.identity);
        }
    }
}

impl Pipeline {
    /// A pipeline in front of the writing thread.
    #[must_use]
    pub fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            opener: Opener::new(parts.books, parts.data_keys, parts.devices, Arc::clone(&parts.metrics)),
            registry: parts.registry,
            turns: Arc::default(),
            jobs: Mutex::new(Some(parts.jobs)),
            plaintext: Arc::new(Semaphore::new(PLAINTEXT_BYTES)),
            metrics: parts.metrics,
            tasks: TaskTracker::new(),
            draining: CancellationToken::new(),
            under_way: Arc::default(),
            under_way_bytes: parts.under_way_bytes,
            staging: parts.staging,
            spans: parts.spans,
        })
    }

    /// Takes an envelope in. Envelopes of one line are applied in the order of these calls.
    ///
    /// What it starts goes on whether or not anybody waits for the ticket. Inside a tokio runtime.
    ///
    /// # Errors
    /// A refusal: retryable when the pipeline is full or stopping, or when something of this call has to be sent again; for good when the number cannot be (`SEQ_JUMP`, ...).
    pub fn offer(self: &Arc<Self>, call: &Call, parcel: Parcel) -> Result<Offered, Refusal> {
        if self.draining.is_cancelled() {
            return Err(draining());
        }
        let Some(jobs) = lock(&self.jobs).clone() else {
            return Err(draining());
        };
        let share = self.share(&parcel)?;
        let (answer, answered) = oneshot::channel::<Answer>();
        let ticket = async move { answered.await.unwrap_or_else(|_| Err(super::lost())) }.boxed().shared();
        let mut registry = lock(&self.registry);
        match registry.offer(parcel.identity(), &parcel.sha256, clock::wall_us(), &ticket) {
            Verdict::New => {
                // Under the lock: the order of turns is the order of verdicts.
                let identity = parcel.identity();
                let Some(turn) = self.turns.take(&identity.site, identity.line(), call) else {
                    registry.withdraw(identity);
                    return Err(super::behind().into());
                };
                drop(registry);
                let claim = Claim {
                    registry: Arc::clone(&self.registry),
                    identity: parcel.identity().clone(),
                    kept: false,
                };
                self.tasks.spawn(Arc::clone(self).carry(parcel, turn, claim, share, jobs, answer));
                Ok(Offered::UnderWay(ticket))
            }
            Verdict::SameUnderWay(first) => Ok(Offered::SameUnderWay(first)),
            Verdict::Duplicate { unverified } => {
                self.metrics.envelope(Outcome::Duplicate);
                Ok(Offered::Duplicate { unverified })
            }
            Verdict::Conflict => {
                drop(registry);
                let job = job(parcel, Work::Conflict, None, Some(share), answer);
                self.tasks.spawn(async move {
                    // The thread is gone only when the disk failed: then the ticket says that it has to come again.
                    let _ = jobs.send(job).await;
                });
                Ok(Offered::UnderWay(ticket))
            }
            Verdict::Refused(refusal) => {
                self.metrics.envelope(Outcome::NotAdmitted);
                self.metrics.refused.get_or_create(&ReasonLabel { reason: refusal.reason.name() }).inc();
                Err(refusal)
            }
        }
    }

    /// Whether anything would be taken now.
    ///
    /// # Errors
    /// A retryable refusal: stopping, or full.
    pub fn ready(&self) -> Result<(), Refusal> {
        if self.is_draining() {
            return Err(draining());
        }
        let all = lock(&self.under_way);
        if all.since.len() >= UNDER_WAY || all.bytes >= self.under_way_bytes {
            return Err(full());
        }
        Ok(())
    }

    /// How a large envelope stands by its header, before its bytes come. Nothing is taken by asking.
    ///
    /// # Errors
    /// As [`Pipeline::offer`].
    pub fn judge(&self, identity: &Identity, header_sha256: &[u8; 32]) -> Result<Option<Offered>, Refusal> {
        self.ready()?;
        let ticket = async { Err(super::lost()) }.boxed().shared();
        let mut registry = lock(&self.registry);
        match registry.offer(identity, header_sha256, clock::wall_us(), &ticket) {
            Verdict::New => {
                registry.withdraw(identity);
                Ok(None)
            }
            Verdict::SameUnderWay(_) => Ok(None),
            Verdict::Duplicate { unverified } => Ok(Some(Offered::Duplicate { unverified })),
            Verdict::Conflict => Err(Refusal::new(
                ErrorReason::Conflict,
                "other bytes stand under this identity, and large ones are not kept beside; begin a new run",
            )
            .with("kept", false)),
            Verdict::Refused(refusal) => Err(refusal),
        }
    }

    /// Up to which number a device need not resend a line.
    pub fn hello(&self, site: &Site, line: &Line, first_unacked: Seq) -> u64 {
        lock(&self.registry).hello(site, line, first_unacked, clock::wall_us())
    }

    fn share(&self, parcel: &Parcel) -> Result<Share, Refusal> {
        let bytes = parcel.sealed.len();
        let mut all = lock(&self.under_way);
        // One that is larger than everything allowed goes when it is alone.
        if all.since.len() >= UNDER_WAY || (all.bytes > 0 && all.bytes + bytes > self.under_way_bytes) {
            return Err(full());
        }
        all.bytes += bytes;
        all.next += 1;
        let key = (parcel.custody.received_us, all.next);
        all.since.insert(key, ());
        show(&all, &self.metrics);
        Ok(Share { all: Arc::clone(&self.under_way), metrics: Arc::clone(&self.metrics), bytes, key })
    }

    async fn carry(
        self: Arc<Self>,
        parcel: Parcel,
        mut turn: Turn,
        mut claim: Claim,
        share: Share,
        jobs: mpsc::Sender<Job>,
        answer: oneshot::Sender<Answer>,
    ) {
        let opened = self.open_in_turn(&parcel, &mut turn).await;
        let (work, room) = match opened {
            Ok((opened, room)) => {
                self.opener.saw(&parcel.profile);
                (Work::Deliver(Box::new(opened)), room)
            }
            Err(Stopped::Poison { reason, detail }) => (Work::Poison { reason, detail }, None),
            Err(Stopped::Again(again)) => {
                turn.break_line();
                self.metrics.envelope(Outcome::Retry);
                drop(claim);
                let _ = answer.send(Err(again));
                turn.come().await;
                return;
            }
        };
        // Poison waits for its turn as well: what is refused is answered in order.
        turn.come().await;
        let mut job = job(parcel, work, Some(turn), Some(share), answer);
        job.room = room;
        match jobs.reserve().await {
            Ok(place) => {
                claim.kept = true;
                // After the send: who is let go earlier could overtake it on the way into the queue.
                let held = job.turn.as_mut().and_then(Turn::hand_over);
                place.send(job);
                drop(held);
            }
            Err(_) => {
                if let Some(turn) = &job.turn {
                    turn.break_line();
                }
                drop(claim);
                let _ = job.answer.send(Err(super::lost()));
            }
        }
    }

    /// Unwraps at once, opens when everything before on the line has been handed on.
    async fn open_in_turn(
        &self,
        parcel: &Parcel,
        turn: &mut Turn,
    ) -> Result<(super::scribe::Opened, Option<tokio::sync::OwnedSemaphorePermit>), Stopped> {
        let chosen = self.opener.choose(parcel)?;
        // Of whoever causes a private operation; the others wait for that one, or have it at hand.
        let span = || {
            let mut span = self.spans.child("decryptor.unwrap", Kind::Client, parcel.trace);
            span.text("pithead.key", || chosen.key_arn().to_string());
            span
        };
        let session = tokio::select! {
            biased;
            () = turn.broken() => return Err(Stopped::Again(super::behind())),
            session = self.opener.data_key_within(&chosen, &parcel.sender, span) => session?,
        };
        turn.come().await;
        if turn.is_broken() {
            return Err(Stopped::Again(super::behind()));
        }
        // The writing thread asks the second question again: a large envelope takes its time, and what was under way before a
        // device's first signed envelope must not be entered behind it.
        let (registry, identity) = (Arc::clone(&self.registry), parcel.identity().clone());
        let bar = move |devices: &Devices, origin: &Origin| lock(&registry).bar(devices, &identity, origin);
        let judge = self.opener.judge(&parcel.profile, &session, bar);
        let span = parcel.large.as_ref().map(|large| {
            let mut span = self.spans.child("decryptor.open", Kind::Internal, parcel.trace);
            span.text("pithead.envelope", || parcel.identity().to_string());
            span.number("pithead.bytes", large.total);
            span
        });
        let opened = self.opener.open(parcel, chosen, session, &self.staging, judge).await?;
        drop(span);
        // Its turn has come, so nobody before it waits for this room.
        let bytes = opened.delivery.content.plaintext().len().min(PLAINTEXT_BYTES);
        let room =
            Arc::clone(&self.plaintext).acquire_many_owned(u32::try_from(bytes).unwrap_or(u32::MAX)).await;
        Ok((opened, Some(room.map_err(|_| Stopped::Again(super::lost()))?)))
    }

    /// Takes nothing more; resolves when everything that was taken has been handed to the writing thread, whose channel then
    /// ends. Cancel safe.
    pub async fn drain(&self) {
        self.draining.cancel();
        lock(&self.jobs).take();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Whether it takes nothing more.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }
}

fn job(
    parcel: Parcel,
    work: Work,
    turn: Option<Turn>,
    share: Option<Share>,
    answer: oneshot::Sender<Answer>,
) -> Job {
    Job {
        identity: parcel.identity().clone(),
        sha256: parcel.sha256,
        received_us: parcel.custody.received_us,
        sealed: parcel.sealed,
        large: parcel.large.is_some(),
        work,
        turn,
        room: None,
        share,
        answer,
    }
}

fn draining() -> Refusal {
    Refusal::new(ErrorReason::Draining, "the decryptor is stopping").retry_after(DRAINING_RETRY)
}

fn full() -> Refusal {
    let wait = pithead_hop::backoff::spread(FULL_RETRY, pithead_hop::backoff::random());
    Refusal::new(ErrorReason::Throttled, "as much is under way as there may be").retry_after(wait)
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

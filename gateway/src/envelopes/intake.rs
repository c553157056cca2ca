//! The spool as an intake: from an admitted envelope to a ticket that resolves when it is durable.
//!
//! In order: the device's budget of new data keys, its lines (new, resend, other bytes), its share of the disk, the spool.
//! Before a body is looked at, those who are over their share, or too fast, are told to come back. A resend of what is
//! still on its way to the disk shares the ticket of the first copy, and its fate. Nothing is acknowledged before its
//! fdatasync.
//!
//! What was appended is settled in the background, whether or not the call that brought it still lives.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::FutureExt as _;
use pithead_hop::backoff::{random, spread};
use pithead_hop::identity::{GatewayName, Peer};
use pithead_hop::ingest::intake::Durability;
use pithead_hop::ingest::{
    Admitted, AdmittedHeader, DeclaredGap, HelloLine, Hop, Intake, KnownKeys, Outcome, Pending, ShortHash,
    Standing, UploadStore, WholeUpload, pass,
};
use pithead_hop::status::Refusal;
use pithead_proto::errors::v1::ErrorReason;
use pithead_proto::keys::v1::TrustVersion;
use pithead_sealing::envelope::Profile;
use pithead_sealing::trust::{KeyArn, KeyStatus};
use pithead_sealing::{DeviceId, Identity};
use pithead_spool::{AppendError, NotDurable, Ticket};
use tokio::sync::mpsc;

use super::budgets::Budgets;
use super::copies::Copies;
use super::fate::{Deciding, undecided};
use super::followed::Followed;
use super::lanes::LANES;
use super::numbers::{Numbers, Offered, Reservation};
use super::record::{Body, Head};
use super::shares::{Over, Share, Shares};
use super::spool::EnvelopeSpool;
use crate::clock::{since_boot, wall_ms};
use crate::console::activity::{Activity, Mark};
use crate::devices::registry::{Registry, Revoked};
use crate::keys::book::Book;
use crate::keys::history::History;
use crate::metrics::{Metrics, Outcome as Counted};

/// Envelopes of a lane that are appended and not yet settled: as many as the spool's own queue holds.
const SETTLING_MAX: usize = 65_536;
/// Envelopes of one group commit that are settled at once: their numbers' lock is held for a fraction of a millisecond.
const SETTLED_AT_ONCE: usize = 1_024;
/// What a device is told to wait when the disk is full, before jitter: it drains as fast as the relay does.
const FULL_WAIT: Duration = Duration::from_secs(10);
/// What a device is told to wait that knows no other gateway: about what a take-over takes.
const ELSEWHERE_WAIT: Duration = Duration::from_secs(2);
/// When the disk has failed, somebody has to mend it.
const FAILED_WAIT: Duration = Duration::from_secs(60);

/// Takes envelopes for the spool.
#[derive(Debug)]
pub struct SpoolIntake {
    parts: Parts,
    /// One for each lane: where lanes are streams with leaders of their own, one may stand still while the others go on.
    settle: [mpsc::Sender<Settling>; LANES],
}

/// What the intake is made of.
#[derive(Debug)]
pub struct Parts {
    /// Our name, for custody.
    pub gateway: GatewayName,
    /// Every key that was ever named.
    pub history: Arc<History>,
    /// The statement in force.
    pub book: Book,
    /// How many new data keys a device may use.
    pub budgets: Budgets,
    /// What was taken before.
    pub numbers: Numbers,
    /// Who may hold how much.
    pub shares: Shares,
    /// Where envelopes go.
    pub spool: EnvelopeSpool,
    /// Where large ones are gathered, and stay.
    pub uploads: UploadStore,
    /// Where copies of them go, where several gateways share the lanes and large ones are taken.
    pub copies: Option<Copies>,
    /// What is counted.
    pub metrics: Metrics,
    /// Which devices have a certificate.
    pub registry: Arc<ArcSwap<Registry>>,
    /// What came of each device, for the console.
    pub activity: Activity,
    /// What came in calls that are followed.
    pub followed: Followed,
}

/// An envelope on its way to the disk.
struct Settling {
    ticket: Ticket,
    reservation: Reservation,
    share: Share,
    tell: Deciding,
    /// Of the envelope, wherever they lie.
    bytes: u64,
    began: Duration,
    mark: Mark,
}

impl SpoolIntake {
    /// Begins to take envelopes. Inside a tokio runtime.
    #[must_use]
    pub fn start(parts: Parts) -> Self {
        let settle = std::array::from_fn(|_| {
            let (settle, settling) = mpsc::channel(SETTLING_MAX);
            tokio::spawn(settle_all(settling, parts.metrics.clone(), parts.activity.clone()));
            settle
        });
        Self { parts, settle }
    }

    /// Pays for data keys that are new for the device.
    fn spend(&self, device: &DeviceId, edks: &[[u8; 32]]) -> Result<(), Refusal> {
        self.parts.budgets.spend(device, edks, since_boot()).map_err(|over| {
            self.parts.metrics.refused(ErrorReason::TooManySessions);
            Refusal::new(ErrorReason::TooManySessions, over.to_string())
                .retry_after(spread(over.retry_after, random()))
        })
    }

    /// Refuses where another gateway of the site takes the envelopes.
    fn is_owner(&self) -> Result<(), Refusal> {
        match self.parts.spool.elsewhere() {
            None => Ok(()),
            Some(elsewhere) => Err(Refusal::new(ErrorReason::StandingBy, elsewhere.to_string())
                .retry_after(spread(ELSEWHERE_WAIT, random()))),
        }
    }

    /// Refuses a device that this gateway's own registry turns away, where another gateway has let it in.
    fn is_let_in(&self, peer: &Peer) -> Result<(), Refusal> {
        let (Some(by), Some(device)) = (&peer.passed_on_by, peer.device()) else { return Ok(()) };
        let revoked = match self.parts.registry.load().revoked(device, peer.certificate_sha256.as_ref()) {
            None => return Ok(()),
            Some(Revoked::Device) => ErrorReason::DeviceRevoked,
            Some(Revoked::Certificate) => ErrorReason::CertificateRevoked,
        };
        Err(Refusal::new(
            revoked,
            format!("{} was let in by {}, and is revoked at {}", peer.id, by.id, self.parts.gateway),
        ))
    }

    /// Our word on an envelope that came from there.
    fn hop(&self, peer: &Peer, key_not_active: bool, conflict: bool) -> Hop {
        Hop { key_not_active, conflict, ..pass::word(&self.parts.gateway, peer.at_the_door()) }
    }

    /// Appends under a number that was reserved. Waits while the spool's queue is full: so pressure travels back.
    async fn store(
        &self,
        head: Head,
        body: Body,
        reservation: Reservation,
        tell: Deciding,
        mark: Mark,
    ) -> Result<(), Refusal> {
        let began = since_boot();
        // The place among the settling comes first: from the append on nothing may be awaited, or a call that is cut
        // there would leave a number in flight for ever.
        let lane = self.parts.spool.lane_of(&head.identity.line());
        let place = self.settle[lane.index()].reserve().await;
        let place = place.map_err(|_| refusal_of(&AppendError::Closed))?;
        let (bytes, whole, failures) = (body.len(), body.envelope_bytes(), reservation.failures());
        let device = &head.identity.device;
        let share = self.parts.shares.admit(device, lane, bytes as u64, self.parts.spool.fill(), began);
        let share = share.map_err(|over| refusal_of_share(&over))?;
        let ticket = loop {
            match self.parts.spool.append(&head, body.clone(), wall_ms(), failures) {
                Ok(ticket) => break ticket,
                Err(AppendError::QueueFull { .. }) => {
                    self.parts.spool.room(&head.identity.line(), bytes as u64).await
                }
                Err(error) => {
                    // No retry will bring it: the line goes on without it.
                    if matches!(error, AppendError::TooLarge { .. }) {
                        reservation.give_up();
                    }
                    return Err(refusal_of(&error));
                }
            }
        };
        place.send(Settling { ticket, reservation, share, tell, bytes: whole, began, mark });
        Ok(())
    }
}

/// The tickets of a lane resolve in the order of the appends, so waiting for one after the other holds nothing up. When one has resolved,
/// those of the same group commit behind it have as well, or are about to: they are settled together, and only then
/// anybody is woken.
async fn settle_all(mut settling: mpsc::Receiver<Settling>, metrics: Metrics, activity: Activity) {
    let (mut reservations, mut telling, mut marks) = (Vec::new(), Vec::new(), Vec::new());
    let mut next = settling.recv().await;
    while let Some(mut one) = next {
        let mut outcome = (&mut one.ticket).await.map(|_| ());
        let now = since_boot();
        next = loop {
            let Settling { reservation, share, tell, bytes, began, mark, .. } = one;
            match outcome {
                Ok(()) => {
                    share.keep();
                    reservations.push(reservation);
                    let took = now.saturating_sub(began);
                    metrics.stored(bytes, took.as_secs_f64());
                    marks.push((mark, took));
                }
                Err(error) => {
                    tracing::error!(event = "spool.not_durable", %error);
                    drop(reservation);
                }
            }
            telling.push((tell, outcome));
            let Ok(following) = settling.try_recv() else { break None };
            match following.ticket.answer().filter(|_| telling.len() < SETTLED_AT_ONCE) {
                Some(answer) => (one, outcome) = (following, answer.map(|_| ())),
                None => break Some(following),
            }
        };
        Reservation::all_stored(reservations.drain(..));
        // Nobody may be listening any more.
        telling.drain(..).for_each(|(tell, outcome)| tell.decide(outcome));
        activity.came(marks.drain(..), now);
        if next.is_none() {
            next = settling.recv().await;
        }
    }
}

impl Intake for SpoolIntake {
    type Call = ();

    fn keys(&self) -> &dyn KnownKeys {
        self
    }

    fn trust(&self, _peer: &Peer) -> Option<TrustVersion> {
        self.parts.book.version().map(TrustVersion::from)
    }

    fn durability(&self) -> Durability {
        self.parts.spool.durability()
    }

    fn takes_passed_on(&self) -> bool {
        self.parts.spool.is_replicated()
    }

    fn ready(&self, peer: &Peer) -> Result<(), Refusal> {
        self.is_owner().inspect_err(|refusal| self.parts.metrics.refused(refusal.reason))?;
        let room = match self.parts.spool.admit() {
            Ok(()) | Err(AppendError::QueueFull { .. }) => Ok(()),
            Err(error) => Err(refusal_of(&error)),
        };
        let share = peer.device().map_or(Ok(()), |device| self.parts.shares.ready(device, since_boot()));
        let ready = self.is_let_in(peer).and(room).and(share.map_err(|over| refusal_of_share(&over)));
        ready.inspect_err(|refusal| self.parts.metrics.refused(refusal.reason))
    }

    async fn offer(&self, peer: &Peer, (): &(), admitted: Admitted) -> Result<Pending, Refusal> {
        self.is_owner().inspect_err(|refusal| self.parts.metrics.refused(refusal.reason))?;
        let identity = admitted.identity().clone();
        let now = since_boot();
        // What a gateway of the site passes on came at its own pace there.
        if let Some(device) = peer.device() {
            self.parts.shares.charge(device, admitted.bytes().len() as u64, now);
        }
        // Of the same session as the one before it: paid for on this call.
        if !admitted.same_session {
            let edks: Vec<[u8; 32]> =
                admitted.profile().edks().iter().map(|(_, hash)| *hash.as_bytes()).collect();
            self.spend(&identity.device, &edks)?;
        }
        if admitted.key_not_active {
            self.parts.metrics.key_not_active();
        }
        if peer.passed_on_by.is_some() {
            self.parts.metrics.passed_on_to_us();
        }
        let (tell, told) = undecided();
        let bytes = admitted.bytes().len() as u64;
        let hash = ShortHash::from(&admitted.sha256);
        let failures = self.parts.spool.failures(&identity.line());
        let offered = self.parts.numbers.offer(&identity, hash, bytes, now, told.clone(), failures);
        let offered =
            offered.inspect_err(|refusal| self.parts.metrics.refused(Refusal::from(*refusal).reason))?;
        let metrics = self.parts.metrics.clone();
        let (ticket, outcome, counted) = match offered {
            Offered::Done(outcome) => {
                metrics.answered(counted_as(&outcome));
                return Ok(std::future::ready(Ok(outcome)).boxed());
            }
            Offered::Shared(ticket, outcome) => {
                let counted = counted_as(&outcome);
                (ticket, outcome, counted)
            }
            Offered::Store(reservation) => {
                let outcome = if reservation.is_conflict() {
                    Outcome::Conflict { kept: true }
                } else {
                    Outcome::Stored
                };
                if reservation.is_conflict() {
                    tracing::warn!(event = "ingest.conflict", %identity);
                }
                let mark = mark(admitted.profile(), bytes);
                if let Some(trace) = admitted.trace {
                    self.parts.followed.enter(&identity, trace);
                }
                let Admitted { envelope, sha256, key_not_active, mut hops, .. } = admitted;
                hops.push(self.hop(peer, key_not_active, reservation.is_conflict()));
                let head = Head { identity, sha256, hops, copy: None };
                let envelope = envelope.bytes().clone();
                let body = if reservation.is_conflict() {
                    Body::Conflict(envelope)
                } else {
                    Body::Envelope(envelope)
                };
                let stored = self.store(head, body, reservation, tell, mark).await;
                stored.inspect_err(|refusal| metrics.refused(refusal.reason))?;
                let counted = counted_as(&outcome);
                (told, outcome, counted)
            }
        };
        Ok(async move {
            match ticket.await {
                Ok(()) => {
                    metrics.answered(counted);
                    Ok(outcome)
                }
                // Closed too: whoever brought the first copy went away before it was appended.
                Err(error) => {
                    let refusal = refusal_of_sync(error);
                    metrics.refused(refusal.reason);
                    Err(refusal)
                }
            }
        }
        .boxed())
    }

    fn uploads(&self) -> Result<&UploadStore, Refusal> {
        self.is_owner()?;
        if self.parts.spool.is_replicated() && self.parts.copies.is_none() {
            // Their files lie on this machine: behind an acknowledgement that says "replicated" they would be a lie.
            let detail =
                "large envelopes are not taken here: [spool.jetstream.large] names no store for them";
            return Err(Refusal::new(ErrorReason::UploadsNotSupported, detail));
        }
        Ok(&self.parts.uploads)
    }

    fn judge(&self, peer: &Peer, offered: &AdmittedHeader) -> Result<Option<Outcome>, Refusal> {
        self.judge_header(peer, offered)
    }

    async fn complete(&self, peer: &Peer, whole: WholeUpload) -> Result<Outcome, Refusal> {
        self.complete_upload(peer, whole).await
    }

    fn hello(&self, _peer: &Peer, lines: &[HelloLine]) -> Vec<u64> {
        let now = since_boot();
        lines.iter().map(|hello| self.parts.numbers.hello(&hello.line, hello.first_unacked, now)).collect()
    }

    fn declared(&self, _peer: &Peer, gaps: &[DeclaredGap]) {
        let now = since_boot();
        for gap in gaps {
            self.parts.metrics.gap_declared(gap.to.get() - gap.from.get() + 1);
            self.parts.numbers.declare(&gap.line, gap.from, gap.to, now);
        }
    }

    fn refused(&self, _peer: &Peer, identity: Option<&Identity>, refusal: &Refusal) {
        self.parts.metrics.refused(refusal.reason);
        self.parts.metrics.answered(Counted::Refused);
        if let Some(identity) = identity {
            self.parts.numbers.refused(identity, since_boot());
        }
    }
}

impl KnownKeys for SpoolIntake {
    fn demands_certificate(&self, identity: &Identity) -> bool {
        self.parts.registry.load().demands_certificate(&identity.device)
    }

    fn standing(&self, arn: &KeyArn, _identity: &Identity) -> Standing {
        match self.parts.history.status_of(arn) {
            Some(KeyStatus::Active) => Standing::Active,
            Some(_) => Standing::NotActive,
            None if self.parts.history.is_empty() => Standing::NotReady,
            None => Standing::Unknown,
        }
    }
}

/// What the console is told of an envelope: nothing that its header does not say in clear.
fn mark(profile: &Profile, bytes: u64) -> Mark {
    let Identity { device, stream, .. } = profile.identity();
    let key = profile.edks().first().map(|(arn, _)| arn.clone());
    Mark { device: device.clone(), stream: stream.clone(), key, bytes }
}

fn counted_as(outcome: &Outcome) -> Counted {
    match outcome {
        Outcome::Stored => Counted::Stored,
        Outcome::Duplicate { .. } => Counted::Duplicate,
        Outcome::Conflict { .. } => Counted::Conflict,
        Outcome::Refused(_) => Counted::Refused,
    }
}

fn refusal_of(error: &AppendError) -> Refusal {
    let (reason, wait) = match error {
        AppendError::Full { .. } | AppendError::QueueFull { .. } => (ErrorReason::SpoolFull, Some(FULL_WAIT)),
        AppendError::TooLarge { .. } => (ErrorReason::EnvelopeTooLarge, None),
        AppendError::Closed => (ErrorReason::Draining, Some(FULL_WAIT)),
        AppendError::Poisoned => (ErrorReason::NotDurable, Some(FAILED_WAIT)),
        AppendError::Overtakes => (ErrorReason::NotDurable, Some(Duration::from_secs(1))),
        _ => (ErrorReason::Internal, Some(FAILED_WAIT)),
    };
    let refusal = Refusal::new(reason, error.to_string());
    match wait {
        Some(wait) => refusal.retry_after(spread(wait, random())),
        None => refusal,
    }
}

fn refusal_of_share(over: &Over) -> Refusal {
    let (reason, wait) = match over {
        Over::Rate { retry_after, .. } => (ErrorReason::Throttled, *retry_after),
        Over::Device { .. } | Over::Share { .. } | Over::Lane => (ErrorReason::SpoolFull, FULL_WAIT),
    };
    Refusal::new(reason, over.to_string()).retry_after(spread(wait, random()))
}

fn refusal_of_sync(error: NotDurable) -> Refusal {
    let (reason, wait) = match error {
        NotDurable::Full => (ErrorReason::SpoolFull, FULL_WAIT),
        NotDurable::Poisoned => (ErrorReason::NotDurable, FAILED_WAIT),
        _ => (ErrorReason::NotDurable, Duration::from_secs(1)),
    };
    Refusal::new(reason, error.to_string()).retry_after(spread(wait, random()))
}

mod uploads;

#[cfg(test)]
mod tests;

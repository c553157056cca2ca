//! The relay: from the spool to the far end, and out of the spool only what the far end has.
//!
//! One call at a time, with a window of bytes under way. An envelope may leave the spool when the far end has answered it
//! as durable, and not because of anything else that the far end says. When the call ends, whatever has no answer is
//! read from the spool again and goes out again, the same bytes. A far end that is away is the normal state of a mine:
//! the relay comes back with jitter, and nothing else waits for it.
//!
//! The first lane goes before the second, and that before the third; a lower lane has a small share all the same. What
//! is taken into the window waits for its turn on the wire as little as possible, so that something urgent that comes
//! later overtakes what was not sent.
//!
//! Large envelopes go beside the window, one at a time, from their files ([`large`]). What the far end will never take is set
//! aside with its reason, and the queue goes on. When there is no more room to
//! set aside, or when too much is refused, the relay stands still and says so: nothing is dropped. It stands still as
//! well when somebody says so, and never sends faster than it may ([`control`], [`pace`]).
//!
//! ```text
//! lanes of the spool ─ read ─> turns ─> window ─ send ─> far end
//!                                         └─ answered ─> passed on ─ checkpoint of the lines ─> acknowledged in the spool
//! ```

pub mod bundles;
pub mod control;
pub mod pace;

mod turns;

mod alarm;
#[cfg(test)]
pub(crate) mod by_hand;
mod feeds;
mod lamp;
mod large;
mod progress;
mod report;
mod settle;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pithead_hop::backoff::{Backoff, Policy, random};
use pithead_hop::connect::{ConnectError, ConnectOptions, Connection, Endpoint, connect};
use pithead_hop::ingest::send::BATCH_BYTES;
use pithead_hop::ingest::{Answered, NotTaken, SendError, SendOptions, Sender, UploadStore};
use pithead_hop::objects::{Fault, ProbeError, SettingsError, StoreError};
use pithead_hop::trace::span::Kind;
use pithead_hop::trace::{TraceParent, Traced};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::Identity;
use pithead_spool::{Lane, Position, ReadError, Record};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::alarm::Alarm;
use self::control::{Control, Orders, Pause};
use self::feeds::Feeds;
use self::large::{Large, LargeParts, LargeSent, OverCall, Small};
use self::pace::Toll;
use self::progress::Progress;
pub use self::report::{RelayReport, Report};
use super::copies::Copies;
use super::followed::Followed;
use super::lanes;
use super::numbers::Numbers;
use super::record::{Body, Head, KIND_CONFLICT};
use super::refused::{Refused, RefusedError};
use super::replicated::ReplicaError;
use super::spool::EnvelopeSpool;
use crate::clock::{since_boot, wall_us};
use crate::health::{Health, Level};
use crate::metrics::{Dimension, Metrics};

/// Taken into the window and not yet on the wire, at most: a batch that goes out and the next one. What is still in its
/// lane can be overtaken, what is here cannot.
const QUEUE_BYTES: u64 = 2 * BATCH_BYTES;
/// Envelopes under way at most, whatever their size: each costs a place in several tables.
const WINDOW_ENVELOPES: u64 = 16_384;
/// A spool holds nothing larger: one group of it.
const ENVELOPE_BYTES: u64 = 4 << 20;
/// How often a full refused area is looked at again.
const PAUSE: Duration = Duration::from_secs(30);
/// A disk that does not give a record is asked again this often, this many times, before the record counts as damaged.
const UNREADABLE_TRIES: u32 = 5;

/// Where envelopes go.
#[derive(Debug, Clone)]
pub struct Target {
    /// The far end.
    pub endpoint: Endpoint,
    /// The name in its certificate.
    pub name: ServerName<'static>,
    /// Its CA, and our certificate. The newest is used for every connection.
    pub tls: watch::Receiver<Arc<ClientConfig>>,
    /// Bytes that may be under way unanswered.
    pub window_bytes: u64,
    /// How long it may answer nothing while something is under way.
    pub answer_timeout: Duration,
}

impl Target {
    /// Whether a call to the one is a call to the other. A new certificate ends no call.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let of = |target: &Self| {
            let Self { endpoint, name, tls: _, window_bytes, answer_timeout } = target.clone();
            (endpoint, name, window_bytes, answer_timeout)
        };
        of(self) == of(other)
    }
}

/// How envelopes leave.
#[derive(Debug, Clone)]
pub enum Way {
    /// Over calls to a far end.
    OverCalls(watch::Receiver<Target>),
    /// In bundles into an object store.
    IntoStore(bundles::Sender, watch::Receiver<bundles::StoreTarget>),
}

/// The relay of one gateway.
#[derive(Debug, Clone)]
pub struct Relay {
    /// What is to be sent.
    pub spool: EnvelopeSpool,
    /// Told of what has left.
    pub numbers: Numbers,
    /// Large envelopes.
    pub uploads: UploadStore,
    /// Where copies of them are, if several gateways share the lanes.
    pub copies: Option<Copies>,
    /// Where the unwanted go.
    pub refused: Arc<Refused>,
    /// The relay's lamp.
    pub health: Health,
    /// Counters.
    pub metrics: Metrics,
    /// For status pages.
    pub report: RelayReport,
    /// What people say, and the pace.
    pub control: Control,
    /// What came in calls that are followed.
    pub followed: Followed,
}

/// A call that is open.
struct Call {
    sender: Sender<Sent>,
    feeds: Feeds,
    large: Large,
    toll: Toll,
    /// When the far end has to have answered something, if something is under way.
    answer_by: Option<Instant>,
    answer_timeout: Duration,
}

/// What an answer is matched to: enough to go on without the envelope, save for its bytes if it is refused.
#[derive(Debug, Clone)]
struct Sent {
    lane: Lane,
    position: Position,
    head: Head,
    conflict: bool,
    envelope: Bytes,
    /// The call that brought it and when it was taken, in microseconds since 1970, if that call is followed.
    followed: Option<(TraceParent, u64)>,
}

/// What outlives a call, lent to one.
struct Lent<'a, T> {
    targets: &'a mut watch::Receiver<T>,
    progress: &'a mut Progress,
    alarm: &'a mut Alarm,
    stop: &'a CancellationToken,
    /// What the disk does not give of this lane is passed over.
    tolerant: Option<Lane>,
    /// The call's span, if that is followed.
    trace: Option<TraceParent>,
}

/// A way out, call by call: what goes on between two calls is the same whichever it is.
trait Calling: Sync {
    /// Where a call goes to, and how.
    type Target: Clone + Send + Sync;

    /// Its place, for logs and traces.
    fn place(target: &Self::Target) -> String;

    /// Bytes that may be under way unanswered.
    fn window_bytes(target: &Self::Target) -> u64;

    /// One call, from the first record of each lane without an answer on.
    fn call(
        &self,
        relay: &Relay,
        target: &Self::Target,
        lent: Lent<'_, Self::Target>,
    ) -> impl Future<Output = Ended> + Send;
}

/// Over calls to a far end.
struct OverCalls;

impl Calling for OverCalls {
    type Target = Target;

    fn place(target: &Target) -> String {
        target.endpoint.to_string()
    }

    fn window_bytes(target: &Target) -> u64 {
        target.window_bytes
    }

    fn call(
        &self,
        relay: &Relay,
        target: &Target,
        lent: Lent<'_, Target>,
    ) -> impl Future<Output = Ended> + Send {
        relay.call(target, lent)
    }
}

/// What the window waits for.
enum Filled {
    /// Nothing waits in the spool.
    Nothing,
    /// Answers have to come first.
    Window,
    /// The wire has to take some of it first.
    Queue,
    /// The next envelope has to be paid for first.
    Toll(u64),
    /// A large one has to be through first.
    Large,
}

/// Why a call is over.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("no connection: {0}")]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Send(#[from] SendError),
    #[error("the spool: {0}")]
    Read(#[from] ReadError),
    #[error("{0}")]
    Refused(#[from] RefusedError),
    #[error("the far end has answered nothing for {} s", .0.as_secs())]
    Unanswered(Duration),
    #[error("{}{}", .0, advice(.0.fault))]
    Store(#[from] StoreError),
    #[error(transparent)]
    Probe(ProbeError),
    #[error("[relay.store]: {0}")]
    Settings(#[from] SettingsError),
    #[error("DATA/relay-parts: {0}")]
    Journal(#[source] io::Error),
    #[error("paused")]
    Paused,
    #[error("another far end, or other bounds")]
    Moved,
    #[error("told to stop")]
    Stopped,
}

impl Ended {
    fn reason(&self) -> Option<ErrorReason> {
        match self {
            Self::Connect(error) => Some(error.reason()),
            Self::Send(error) => error.reason(),
            Self::Read(_) => Some(ErrorReason::DiskFailed),
            Self::Refused(error) if error.is_full() => Some(ErrorReason::SpoolFull),
            Self::Refused(RefusedError::Replica(ReplicaError::NotOurs | ReplicaError::Later(_))) => {
                Some(ErrorReason::StandingBy)
            }
            Self::Refused(RefusedError::Replica(ReplicaError::TooLarge { .. })) => {
                Some(ErrorReason::SpoolUnsafe)
            }
            Self::Refused(RefusedError::Replica(_)) => Some(ErrorReason::PeerUnreachable),
            Self::Refused(_) => Some(ErrorReason::DiskFailed),
            Self::Unanswered(_) => Some(ErrorReason::PeerUnreachable),
            Self::Store(error) | Self::Probe(ProbeError::Store(error)) => Some(error.fault.reason()),
            Self::Probe(_) => Some(ErrorReason::StoreUnsuitable),
            Self::Settings(_) => Some(ErrorReason::ConfigInvalid),
            Self::Journal(_) => Some(ErrorReason::DiskFailed),
            Self::Paused | Self::Moved | Self::Stopped => None,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Send(error) => error.retry_after(),
            Self::Refused(_) | Self::Read(_) | Self::Probe(_) | Self::Settings(_) | Self::Journal(_) => {
                Some(PAUSE)
            }
            _ => None,
        }
    }
}

/// What to do about a store, where that is not to wait.
const fn advice(fault: Fault) -> &'static str {
    match fault {
        Fault::Denied => {
            "; its policy has to allow s3:PutObject, s3:GetObject and s3:AbortMultipartUpload below the prefix"
        }
        Fault::NoBucket => "; make the bucket, or correct [relay.store] url, region and endpoint",
        _ => "",
    }
}

impl From<ProbeError> for Ended {
    fn from(error: ProbeError) -> Self {
        match error {
            ProbeError::Store(error) => Self::Store(error),
            other => Self::Probe(other),
        }
    }
}

impl Relay {
    /// Sends whichever way until it is told to stop; then waits for the answers to what is under way, and writes down what was
    /// answered. Whoever awaits this sets the limit. Another target ends the call under way in the same way, and begins the next
    /// one there.
    pub async fn follow(self, way: Way, stop: CancellationToken) {
        match way {
            Way::OverCalls(targets) => self.run(targets, stop).await,
            Way::IntoStore(sender, targets) => self.run_into_store(sender, targets, stop).await,
        }
    }

    /// Over calls to a far end: as [`follow`](Self::follow).
    pub async fn run(self, targets: watch::Receiver<Target>, stop: CancellationToken) {
        self.call_on_and_on(OverCalls, targets, stop).await;
    }

    async fn call_on_and_on<C: Calling>(
        self,
        calling: C,
        mut targets: watch::Receiver<C::Target>,
        stop: CancellationToken,
    ) {
        let mut backoff = Backoff::new(Policy::default());
        let mut progress = Progress::new(
            self.spool.clone(),
            self.numbers.clone(),
            self.uploads.clone(),
            self.copies.clone(),
        );
        let mut alarm = Alarm::default();
        let mut orders = self.control.subscribe();
        // Which lane the disk does not give, and how often in a row.
        let mut unreadable: Option<(Lane, u32)> = None;
        while !stop.is_cancelled() {
            let paused = orders.borrow_and_update().paused;
            if let Some(pause) = paused {
                self.stand_still(pause, &mut orders, &stop).await;
                continue;
            }
            let before = progress.passed();
            let target = targets.borrow_and_update().clone();
            self.metrics.relay_window(C::window_bytes(&target));
            let mut span = self.followed.spans().root("relay.call", Kind::Client);
            span.text("server.address", || C::place(&target));
            let lent = Lent {
                targets: &mut targets,
                progress: &mut progress,
                alarm: &mut alarm,
                stop: &stop,
                tolerant: unreadable.filter(|(_, tries)| *tries >= UNREADABLE_TRIES).map(|(lane, _)| lane),
                trace: span.at(),
            };
            let ended = calling.call(&self, &target, lent).await;
            span.text("pithead.ended", || ended.to_string());
            if let Some(reason) = ended.reason() {
                span.failed(|| reason.name().to_owned());
            }
            drop(span);
            // A call that brought something forward was a good one: the next failure starts from the beginning.
            if progress.passed() > before {
                backoff.reset();
            }
            progress.reclaim_now().await;
            match ended {
                Ended::Stopped => break,
                Ended::Moved => {
                    let endpoint = C::place(&targets.borrow());
                    tracing::info!(event = "relay.moved", endpoint);
                    backoff.reset();
                    continue;
                }
                Ended::Paused => {
                    // Whoever lets it go on has looked at what was refused.
                    alarm.forget();
                    continue;
                }
                _ => {}
            }
            unreadable = match &ended {
                Ended::Read(ReadError::Io { lane, .. }) => {
                    let before = unreadable.filter(|(same, _)| same == lane).map_or(0, |(_, tries)| tries);
                    Some((*lane, before + 1))
                }
                _ => None,
            };
            self.down(&ended);
            let delay = backoff.next_delay(random(), ended.retry_after());
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                // A pause shows at once, and whoever lets it go on by hand does not want to wait an hour.
                _ = orders.changed() => {}
                () = is_moved(&mut targets) => backoff.reset(),
                () = stop.cancelled() => break,
            }
            if matches!(ended, Ended::Refused(_)) {
                // Somebody may have carried refused envelopes away.
                let refused = self.refused.clone();
                if let Ok(Err(error)) = tokio::task::spawn_blocking(move || refused.recount()).await {
                    tracing::warn!(event = "refused.not_counted", %error);
                }
            }
        }
        progress.reclaim_now().await;
        self.metrics.relay_up(false);
    }

    /// Until somebody lets it go on, or the program stops.
    async fn stand_still(
        &self,
        pause: Pause,
        orders: &mut watch::Receiver<Orders>,
        stop: &CancellationToken,
    ) {
        self.paused(&pause);
        tokio::select! {
            _ = orders.wait_for(|orders| orders.paused != Some(pause)) => {}
            () = stop.cancelled() => return,
        }
        if orders.borrow().paused.is_some() {
            // Somebody has made it his own pause.
            return;
        }
        self.metrics.relay_paused(None);
        self.report.change(|report| report.paused = None);
        self.health.set(Dimension::Relay, Level::Degraded, "resumed, and not yet connected", since_boot());
        tracing::info!(event = "relay.resumed");
    }

    async fn call(&self, target: &Target, lent: Lent<'_, Target>) -> Ended {
        let Lent { targets, progress, alarm, stop, tolerant, trace } = lent;
        let mut orders = self.control.subscribe();
        let opening = async {
            let options = ConnectOptions::default();
            let tls = target.tls.borrow().clone();
            let connection = connect(&target.endpoint, &target.name, tls, &options).await?;
            let mut options = SendOptions::new(concat!("pithead-gateway/", env!("CARGO_PKG_VERSION")));
            options.window.bytes = target.window_bytes;
            options.window.envelopes = WINDOW_ENVELOPES;
            options.window.envelope_bytes = ENVELOPE_BYTES;
            // A relay names no lines: its far end has its own books.
            let sender = Sender::open(Traced::new(connection.clone(), trace), &options, Vec::new()).await?;
            Ok::<(Connection, Sender<Sent>), Ended>((connection, sender))
        };
        let (connection, sender) = tokio::select! {
            opened = opening => match opened {
                Ok(opened) => opened,
                Err(ended) => return ended,
            },
            ended = called_off(&mut orders, targets, stop) => return ended,
        };
        self.up();
        let mut call = Call {
            sender,
            feeds: Feeds::new(&self.spool, |lane| progress.begin(lane), tolerant),
            large: Large::new(Arc::new(OverCall { parts: self.large_parts(), connection })),
            toll: self.control.pace().toll(),
            answer_by: None,
            answer_timeout: target.answer_timeout,
        };
        let mut ended = self.send_and_listen(&mut call, progress, alarm, &mut orders, targets, stop).await;
        if matches!(ended, Ended::Paused | Ended::Moved | Ended::Stopped) {
            ended = self.wind_down(&mut call, progress, alarm, ended).await;
        }
        if call.large.has_advanced() {
            progress.brought_forward();
        }
        self.show_in_flight(0);
        ended
    }

    /// So much is under way and not yet answered.
    fn show_in_flight(&self, bytes: u64) {
        self.metrics.relay_in_flight(usize::try_from(bytes).unwrap_or(usize::MAX));
        self.report.change(|report| report.in_flight_bytes = bytes);
    }

    fn large_parts(&self) -> LargeParts {
        LargeParts {
            uploads: self.uploads.clone(),
            copies: self.copies.clone(),
            pace: self.control.pace().clone(),
            spans: self.followed.spans().clone(),
        }
    }

    async fn send_and_listen(
        &self,
        call: &mut Call,
        progress: &mut Progress,
        alarm: &mut Alarm,
        orders: &mut watch::Receiver<Orders>,
        targets: &mut watch::Receiver<Target>,
        stop: &CancellationToken,
    ) -> Ended {
        loop {
            let filled = match self.fill_window(call, progress).await {
                Ok(filled) => filled,
                Err(ended) => return ended,
            };
            // Past what is damaged at the end of what was read.
            call.feeds.used_up().for_each(|(lane, position)| progress.reached(lane, position));
            let Call { sender, feeds, large, toll, answer_by, answer_timeout } = &mut *call;
            large.begin(|lane, position| progress.is_first(lane, position));
            let retry_at = large.retry_at();
            self.show_in_flight(sender.unanswered_bytes());
            *answer_by = (sender.unanswered() > 0)
                .then(|| answer_by.unwrap_or_else(|| Instant::now() + *answer_timeout));
            let answer_by_now = *answer_by;

            tokio::select! {
                answers = answers(sender, &filled) => match answers {
                    Ok(answers) => {
                        if !answers.is_empty() {
                            *answer_by = None;
                        }
                        if let Err(error) = self.take(answers, progress, alarm).await {
                            return error.into();
                        }
                    }
                    Err(error) => return error.into(),
                },
                readable = feeds.readable() => match readable {
                    Ok(lane) => {
                        if let Err(error) = self.read(feeds, lane).await {
                            return error.into();
                        }
                    }
                    // Closed: nothing more comes, and what is under way may still be answered.
                    Err(_) => return Ended::Stopped,
                },
                (line, ended) = large.ended() => {
                    if let Err(error) = self.take_large(large, &line, ended, progress, alarm).await {
                        return error;
                    }
                }
                () = reached(retry_at) => {}
                () = pay(toll, &filled) => {}
                () = progress.due() => progress.reclaim_now().await,
                () = reached(answer_by_now) => return Ended::Unanswered(*answer_timeout),
                ended = called_off(orders, targets, stop) => return ended,
            }
        }
    }

    async fn read(&self, feeds: &mut Feeds, lane: Lane) -> Result<(), ReadError> {
        let corrupt = feeds.read(lane).await?;
        self.report_damage(&corrupt).await;
        Ok(())
    }

    /// Whatever fits goes into the window, each lane in its order; what does not, waits.
    async fn fill_window(&self, call: &mut Call, progress: &mut Progress) -> Result<Filled, Ended> {
        let Call { sender, feeds, large, toll, .. } = call;
        let mut look = true;
        loop {
            // Before a lower lane has its turn, it has to be known that the higher ones have nothing.
            while look && let Some(lane) = feeds.at_once() {
                self.read(feeds, lane).await?;
            }
            // What waited behind a large one of its line goes first.
            let ready = large.next_ready();
            if ready.is_none() && large.is_full() {
                return Ok(Filled::Large);
            }
            let Some((lane, bytes)) = ready.or_else(|| feeds.next()) else { return Ok(Filled::Nothing) };
            match sender.room_for(usize::try_from(bytes).unwrap_or(usize::MAX)) {
                Err(NotTaken::Full) => return Ok(Filled::Window),
                _ if sender.queued_bytes() >= QUEUE_BYTES => return Ok(Filled::Queue),
                // Not sent at all, so nothing to pay for.
                Err(NotTaken::TooLarge { .. }) => {}
                _ if !toll.covers(bytes) => return Ok(Filled::Toll(bytes)),
                _ => {}
            }
            let taken = match ready {
                Some(_) => large.take_ready().map(|(_, position, record)| (position, record)),
                None => feeds.take(lane),
            };
            let Some((position, record)) = taken else { return Ok(Filled::Nothing) };
            look = feeds.is_empty(lane);
            let Some((sent, record)) =
                self.goes_now(large, (lane, position, record), ready.is_some(), progress)
            else {
                continue;
            };
            let (envelope, hops) = (record.body.clone(), sent.head.hops.clone());
            match sender.send(sent, envelope, hops) {
                Ok(()) => {
                    toll.sent(bytes);
                    progress.sent(lane, position);
                }
                Err((sent, NotTaken::TooLarge { max })) => {
                    let detail = format!("the far end takes envelopes of up to {max} bytes");
                    self.not_sent(&sent, ErrorReason::EnvelopeTooLarge, detail, progress).await?;
                }
                Err(_) => {
                    match ready {
                        Some(_) => large.put_back((lane, position, record)),
                        None => feeds.put_back(lane, position, record),
                    }
                    return Ok(Filled::Window);
                }
            }
        }
    }

    /// Looks at a record that was taken from its lane, or that has waited `behind` a large one, and gives it back if it goes out
    /// now. A large one waits for its turn, and so does what comes behind one on its line.
    fn goes_now(
        &self,
        large: &mut Large,
        (lane, position, record): Small,
        behind: bool,
        progress: &mut Progress,
    ) -> Option<(Sent, Record)> {
        if progress.is_settled(lane, position) {
            progress.reached(lane, position.next());
            return None;
        }
        let Ok(head) = Head::decode(&record.head) else {
            tracing::error!(event = "spool.foreign_record", lane = lanes::name(lane), position = position.0);
            progress.reached(lane, position.next());
            return None;
        };
        if let Some(total) = Body::large_total(&record) {
            let (record_bytes, at_ms) = (record.body.len() as u64, record.at_ms);
            large.add(LargeSent { lane, position, head, total, record_bytes, at_ms });
            progress.sent(lane, position);
            return None;
        }
        let record = match behind {
            true => record,
            false => match large.hold_back(&head.identity.line(), (lane, position, record)) {
                Ok(()) => {
                    progress.sent(lane, position);
                    return None;
                }
                Err((_, _, record)) => record,
            },
        };
        let (conflict, envelope) = (record.kind == KIND_CONFLICT, record.body.clone());
        let followed = self.followed_now(&head.identity);
        Some((Sent { lane, position, head, conflict, envelope, followed }, record))
    }

    /// The call that brought it, if that is followed, and the time.
    fn followed_now(&self, identity: &Identity) -> Option<(TraceParent, u64)> {
        self.followed.get(identity).map(|trace| (trace, wall_us()))
    }

    /// Nothing more is sent; what is under way may still be answered, within the same time as otherwise.
    async fn wind_down(
        &self,
        call: &mut Call,
        progress: &mut Progress,
        alarm: &mut Alarm,
        ended: Ended,
    ) -> Ended {
        let sender = &mut call.sender;
        sender.finish();
        while sender.unanswered() > 0 {
            match tokio::time::timeout(call.answer_timeout, sender.answers()).await {
                Ok(Ok(answers)) => {
                    if let Err(error) = self.take(answers, progress, alarm).await {
                        tracing::error!(event = "relay.refused_area", %error);
                        break;
                    }
                }
                Ok(Err(_)) | Err(_) => break,
            }
        }
        ended
    }
}

async fn answers(sender: &mut Sender<Sent>, filled: &Filled) -> Result<Vec<Answered<Sent>>, SendError> {
    match filled {
        Filled::Queue => sender.answers_or_room(BATCH_BYTES).await,
        // With nothing to put there, room on the wire is no news.
        Filled::Nothing | Filled::Window | Filled::Toll(_) | Filled::Large => sender.answers().await,
    }
}

/// Pays for the next envelope, if that is what it waits for. Cancel safe.
async fn pay(toll: &mut Toll, filled: &Filled) {
    match filled {
        Filled::Toll(bytes) => toll.pay(*bytes).await,
        Filled::Nothing | Filled::Window | Filled::Queue | Filled::Large => std::future::pending().await,
    }
}

async fn reached(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// What ends a call from outside, once it does. Cancel safe.
async fn called_off<T>(
    orders: &mut watch::Receiver<Orders>,
    targets: &mut watch::Receiver<T>,
    stop: &CancellationToken,
) -> Ended {
    tokio::select! {
        () = is_paused(orders) => Ended::Paused,
        () = is_moved(targets) => Ended::Moved,
        () = stop.cancelled() => Ended::Stopped,
    }
}

/// Cancel safe. Whoever has seen it sees it no more.
async fn is_moved<T>(targets: &mut watch::Receiver<T>) {
    if targets.changed().await.is_err() {
        // Nobody is left who could say so.
        std::future::pending().await
    }
}

async fn is_paused(orders: &mut watch::Receiver<Orders>) {
    if orders.wait_for(|orders| orders.paused.is_some()).await.is_err() {
        // Nobody is left who could say so.
        std::future::pending().await
    }
}

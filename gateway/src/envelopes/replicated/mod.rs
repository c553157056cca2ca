//! The second engine of the spool: a site's lanes are streams of NATS JetStream, on as many servers as are configured.
//!
//! # What holds
//!
//! 1. A ticket resolves when JetStream has answered, which is when a majority of the replicas has the message (and, as the servers
//!    have to be set, has synced it). An answer that was lost is never taken for one: the same bytes are sent with the same expectation
//!    until it is certain whether they stand there.
//! 2. One gateway at a time owns the lanes. Whoever takes them over fences whoever had them before: from then on nothing of the
//!    other's can be appended, acknowledged or checkpointed, however late it arrives. This rests on comparing, never on clocks. Clocks
//!    decide when somebody takes over, and nothing else.
//! 3. What was acknowledged is served by whoever owns the lanes next, in order, at its position, until the far end has it.
//! 4. The cursor may lag, so that records are delivered again; it never leads. What was delivered is remembered by a checkpoint that
//!    lies with the data, so that a take-over knows what a restart knows.
//! 5. A broker that does not compare is found out: each group names the message that it was written behind ([`group`]).
//! 6. Memory does not grow with the backlog: the queue is bounded, a reader holds some groups, and of what lies in the streams only a
//!    bounded index is known.
//! 7. What one replica that runs can read is not lost, and what none can read is named. (One that is down is not asked.) No position is
//!    given to two records, whatever cannot be read when the lanes are taken over.
//!
//! # What stands where
//!
//! ```text
//! stream PREFIX-first, PREFIX-second, PREFIX-third    a lane each: groups, one to a message; subject PREFIX.lane.first ...
//! stream PREFIX-state                                 one message to a subject, replaced by comparing:
//!        PREFIX.state.owner                           who owns the lanes, in which epoch; renewed every second
//!        PREFIX.state.cursors                         how far delivery is, and what names the positions in an object store
//!        PREFIX.state.lines, .lines.E.N.P             the checkpoint of the lines: where it is, and its pieces
//!        PREFIX.state.gateways                        how each gateway of the site is, for people ([`roster`])
//! stream PREFIX-refused                               the refused area, an entry to a subject ([`area`])
//! ```
//!
//! # Operation
//!
//! **Append** queues. One publish is under way for each lane; whatever has come meanwhile goes out in the next, as one message. There
//! is no timer. Two under way would break the fence: the second would expect the sequence of the first, and match the fence of a new
//! owner that stands there instead.
//!
//! **Positions** are dense, as the embedded engine's are, but for what is left out behind an end that did not read (see below): each group
//! says the position of its first record, and the index says in which message a position is found, or from which one to walk.
//!
//! **Acknowledge** moves the cursor in memory. It is written down a quarter of a second later, and then messages before it are purged,
//! but for the newest one: a log that was emptied would have nothing left to be appended behind.
//!
//! **Taking over**: the owner's record is replaced by one of the next epoch (of several who try, one succeeds); cursors and checkpoint are
//! taken over in the same way; in each lane a group without records is appended behind whatever stands there, and tried again if the
//! former owner was quicker. Then everything that is not acknowledged is read by its heads, as at a start.
//!
//! **What does not read.** A server says in the same words that it has no such message and that its disk does not give it, so a leader
//! with a bad disk denies what the others hold. A message counts as gone when the leader has said so again and again and so has everybody
//! else ([`owning`]): the leader since a replica that is behind denies what it has not got yet, the others since a message never changes
//! and whoever has it is right. Reading then steps over it, and the next whole group shows which positions it held: they are named as lost.
//! At the end of a lane no such group follows. Whoever takes the lanes over cannot tell how many records the unreadable messages held, and
//! begins behind the most that can have been there ([`GROUP_RECORDS`] in each): were their positions given out again, and should one of the
//! messages read after all, its records and the new ones would stand at one place, and whichever came second would be passed over as
//! delivered. What was left out is named as lost like any other range, more positions than there were records, and counts as waiting until then,
//! so nothing is removed as if all records had been read. Where everything before such a leap reads after all, nothing is missing, and
//! nothing is named: the group behind it says that it is one. Any other leap is a loss, as where a log has lost its end and the cursors know
//! better.
//!
//! **Losing it**: an owner that has not renewed its record for as long as the others wait stops by itself: what is queued is given
//! up, what is under way is not known, and its devices are told to go elsewhere. It stands by, and may take over again.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use pithead_hop::bundle::SpoolId;
use pithead_hop::program::ProgramError;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::Site;
use pithead_spool::{
    AcknowledgeError, AppendError, Closed, Lane, LaneStats, MAX_HEAD_BYTES, NotDurable, Position, Promise,
    Record, Stats, SyncTimes, Ticket,
};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

mod broker;
mod group;

mod area;
mod books;
mod cell;
mod commit;
mod keeping;
mod owning;
mod roster;
mod walk;

pub(crate) mod nats;
pub(crate) mod settings;

#[cfg(test)]
pub(super) mod model;
#[cfg(test)]
pub(super) mod stepped;
#[cfg(test)]
mod tests;

pub(crate) use area::{Gone, Replica, Turn};
pub use area::{Mark, ReplicaError};
pub(crate) use books::Books;
pub use owning::{Owner, Standing};
pub use roster::{Neighbour, Presence, Served};
pub(crate) use settings::{Sync, sync_of};
pub use walk::{Heads, Reader};

use crate::config;

use broker::Broker;
use cell::{By, Cell, Cursors};
use group::{HEAD_BYTES, encoded_bytes};

const LANES: usize = Lane::ALL.len();
/// Entries of the index of a lane, about 50 bytes each. Beyond, every second one is let go, and a reader walks further.
const INDEX_MAX: usize = 32_768;
/// What JetStream stores beside a message: its own head, the subject, the expectation.
const MESSAGE_OVERHEAD: u64 = 256;
/// The largest group: what waits is packed into messages of this size at most.
const GROUP_BYTES: usize = 4 << 20;
/// Records of a group, at most: there were never more, since no more may wait. Whoever takes over behind messages that nobody can read
/// leaves room for so many in each, so before it is raised every gateway has to leave more.
const GROUP_RECORDS: usize = 65_536;
/// Of the largest message: what its own headers take.
const HEADERS_BYTES: usize = 1_024;

/// How large it may get, and how long it waits.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// On how many servers a message is when it is acknowledged, and a majority of them has it.
    replicas: usize,
    /// The budget, of all lanes.
    capacity: u64,
    /// The largest group.
    group_bytes: usize,
    /// What may wait to be published.
    queue_bytes: u64,
    /// See `queue_bytes`.
    queue_records: usize,
    /// How often the owner's record is renewed.
    beat: Duration,
    /// Without a renewal for so long the owner stops, and the others take over.
    lease: Duration,
    /// How often each gateway tells the others how it is.
    roster: Duration,
}

impl Bounds {
    /// As the embedded engine's, where they are of the same kind.
    fn new(capacity: u64) -> Self {
        Self {
            replicas: 3,
            capacity,
            group_bytes: GROUP_BYTES,
            queue_bytes: 32 << 20,
            queue_records: GROUP_RECORDS,
            beat: Duration::from_secs(1),
            lease: Duration::from_secs(5),
            roster: Duration::from_secs(5),
        }
    }
}

/// A gateway of the site, as the others know it.
#[derive(Debug, Clone)]
struct Me {
    name: String,
    /// Where devices reach it.
    address: Option<String>,
}

/// The engine. Clones are the same; the last one to go closes it.
#[derive(Clone)]
pub(crate) struct Replicated(
    Arc<Shared>,
    #[expect(dead_code, reason = "it is dropped with the last clone")] Arc<Closer>,
);

struct Closer(Arc<Shared>);

impl Drop for Closer {
    fn drop(&mut self) {
        self.0.close();
    }
}

struct Shared {
    broker: Arc<dyn Broker>,
    runtime: Handle,
    me: Me,
    bounds: Bounds,
    state: Mutex<State>,
    /// For each lane, how often what was on its way had to be given up. Moved under the lock, read without it.
    failures: [AtomicU64; LANES],
    /// There is something to publish.
    work: [Notify; LANES],
    /// Something has become durable, was acknowledged or is over.
    moved: Notify,
    standing: watch::Sender<Standing>,
    /// No more: hand over, and end.
    closing: CancellationToken,
    /// The thread ends.
    ended: CancellationToken,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    /// The other gateways of the site.
    seen: Mutex<roster::Seen>,
    /// The latest epoch that was found in the refused area.
    later: AtomicU64,
}

#[derive(Default)]
struct State {
    term: Option<Term>,
    lanes: [LaneState; LANES],
    queued_bytes: u64,
    queued_records: usize,
    counters: Counters,
    /// The broker said that it is full, and has taken nothing since.
    full: bool,
}

/// The time in which this gateway is the owner.
struct Term {
    by: By,
    /// What names the positions, of all terms that count on.
    spool: SpoolId,
    /// Everything is loaded, and envelopes are taken.
    serving: bool,
    renewed: Instant,
    over: CancellationToken,
    cursors: Option<(Cell, Cursors)>,
    lines: books::Head,
}

#[derive(Clone, Copy, Default)]
struct Counters {
    appended_records: u64,
    groups: u64,
    failed: u64,
    corrupt_records: u64,
    times: SyncTimes,
}

#[derive(Default)]
struct LaneState {
    queue: VecDeque<Pending>,
    /// The newest message, as far as is known here.
    last: u64,
    /// The position after the newest record.
    end: u64,
    cursor: u64,
    saved: u64,
    /// Messages before this one were given back.
    purged: u64,
    /// How often in a row that was refused.
    purges_failed: u32,
    /// Of the next group of this term.
    number: u32,
    /// Messages by the position of their first record.
    index: Index,
    /// What the broker holds of it, and may.
    bytes: u64,
    max_bytes: Option<u64>,
    /// Since when a publish is under way.
    busy_since: Option<Instant>,
}

/// Records that wait to be published. (One each: nothing here is appended in batches.)
struct Pending {
    record: Record,
    bytes: usize,
    promise: Promise,
}

/// In which messages positions are found. Not each message is in it, and what it does not know is walked to.
#[derive(Default)]
struct Index(BTreeMap<u64, Place>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    sequence: u64,
    /// When its first record was appended.
    at_ms: Option<u64>,
}

impl Index {
    fn note(&mut self, first: u64, place: Place) {
        self.0.insert(first, place);
        if self.0.len() > INDEX_MAX {
            let mut odd = false;
            self.0.retain(|_, _| {
                odd = !odd;
                odd
            });
        }
    }

    /// The message that holds a position, or one before it.
    fn floor(&self, position: u64) -> Option<Place> {
        self.0.range(..=position).next_back().map(|(_, place)| *place)
    }

    fn forget_before(&mut self, position: u64) {
        if let Some((first, _)) = self.0.range(..=position).next_back() {
            let first = *first;
            self.0 = self.0.split_off(&first);
        }
    }
}

/// What somebody waits for.
#[derive(Debug, Clone, Copy)]
enum Until {
    Durable(Lane, u64),
    Room(Lane, u64),
}

/// What it takes to join a site's streams.
#[derive(Debug, Clone)]
pub struct Joining {
    pub(crate) access: nats::Access,
    pub(crate) wanted: settings::Wanted,
    /// Monitoring ports of the servers, each a host with a port.
    pub(crate) monitors: Vec<String>,
    /// This gateway's name, for the others.
    pub(crate) name: String,
    /// Where devices reach it, for the others.
    pub(crate) address: Option<String>,
}

impl Joining {
    /// As configured. `envelope_bytes` is the largest envelope that is taken inline, `refused_bytes` what the refused area may take of
    /// envelopes.
    #[must_use]
    pub fn new(
        section: &config::JetStream,
        spool: &config::Spool,
        site: &Site,
        envelope_bytes: u64,
        refused_bytes: u64,
        name: &str,
        address: Option<String>,
    ) -> Self {
        let lanes = [!spool.lanes.first.is_empty(), true, !spool.lanes.third.is_empty()];
        Self {
            access: nats::Access {
                servers: section.servers.clone(),
                credentials: section.credentials.clone(),
                ca: section.ca.clone(),
                name: format!("pithead-gateway {site} {name}"),
            },
            wanted: settings::Wanted {
                streams: settings::Streams::new(section.prefix.as_deref(), site),
                replicas: section.replicas,
                capacity: spool.max_size.get(),
                in_use: lanes,
                envelope_bytes,
                refused_bytes,
            },
            monitors: section.monitor.clone(),
            name: name.to_owned(),
            address,
        }
    }
}

impl Joining {
    /// Monitoring ports of the servers.
    pub(crate) fn monitors(&self) -> &[String] {
        &self.monitors
    }
}

/// How the streams stand before anybody joins them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inspected {
    /// How many are not there.
    pub(crate) missing: usize,
}

/// Looks at servers and streams, and changes nothing.
///
/// # Errors
/// That no server answers within `limit`, or what is not set as it has to be.
pub(crate) async fn inspect(joining: &Joining, limit: Duration) -> Result<Inspected, ProgramError> {
    let found = nats::look(&joining.access, &joining.wanted.streams, limit).await?;
    settings::check(&joining.wanted, found.infos(), found.max_payload)?;
    Ok(Inspected { missing: found.streams.iter().filter(|(_, info)| info.is_none()).count() })
}

impl Replicated {
    /// Looks whether JetStream is set as it has to be, makes the streams that are missing, and begins to stand by. Blocks.
    pub(crate) fn join(joining: &Joining) -> Result<Self, ProgramError> {
        let Joining { access, wanted, monitors, name, address } = joining.clone();
        let me = Me { name, address };
        let bounds = Bounds { replicas: wanted.replicas, ..Bounds::new(wanted.capacity) };
        Self::start(me, bounds, move || async move {
            let found = nats::look(&access, &wanted.streams, nats::START).await?;
            settings::check_syncs(&monitors)?;
            let broker = nats::JetStream::open(found, &wanted).await?;
            Ok::<Arc<dyn Broker>, ProgramError>(Arc::new(broker))
        })
    }

    /// Begins to stand by, with a thread of its own. `broker` is made there, and what it needs to live goes on there.
    fn start<F>(
        me: Me,
        bounds: Bounds,
        broker: impl FnOnce() -> F + Send + 'static,
    ) -> Result<Self, ProgramError>
    where
        F: Future<Output = Result<Arc<dyn Broker>, ProgramError>>,
    {
        let failed = |error: std::io::Error| ProgramError::new(ErrorReason::Internal, error.to_string());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let handle = runtime.handle().clone();
        let (made, is_made) = mpsc::sync_channel(1);
        let ended = CancellationToken::new();
        let until = ended.clone();
        let thread = std::thread::Builder::new().name("spool-jetstream".into()).spawn(move || {
            runtime.block_on(async {
                let is_good = match broker().await {
                    Ok(broker) => made.send(Ok(broker)).is_ok(),
                    Err(error) => made.send(Err(error)).is_err(),
                };
                if is_good {
                    until.cancelled().await;
                }
            });
            // What still waits for an answer there has nobody left who wants it.
            runtime.shutdown_background();
        });
        let thread = thread.map_err(failed)?;
        let broker = is_made.recv().unwrap_or_else(|_| {
            Err(ProgramError::new(ErrorReason::Internal, "the engine's thread has ended"))
        })?;
        let this = Self::made(me, bounds, broker, handle.clone(), ended, Some(thread));
        handle.spawn(owning::run(this.0.clone()));
        Ok(this)
    }

    /// Over a broker, and on a runtime that somebody else has. Nothing runs there yet.
    fn made(
        me: Me,
        mut bounds: Bounds,
        broker: Arc<dyn Broker>,
        runtime: Handle,
        ended: CancellationToken,
        thread: Option<std::thread::JoinHandle<()>>,
    ) -> Self {
        bounds.group_bytes = bounds.group_bytes.min(broker.message_bytes().saturating_sub(HEADERS_BYTES));
        let shared = Arc::new(Shared {
            broker,
            runtime,
            me,
            bounds,
            state: Mutex::default(),
            failures: Default::default(),
            work: Default::default(),
            moved: Notify::new(),
            standing: watch::Sender::new(Standing::StandingBy { owner: None, trouble: None }),
            closing: CancellationToken::new(),
            ended,
            thread: Mutex::new(thread),
            seen: Mutex::default(),
            later: AtomicU64::new(0),
        });
        Self(shared.clone(), Arc::new(Closer(shared)))
    }

    /// Follows who owns the lanes.
    pub(crate) fn standing(&self) -> watch::Receiver<Standing> {
        self.0.standing.subscribe()
    }

    /// From now on envelopes are taken, if this gateway is still the owner in this epoch. Whether it is.
    pub(crate) fn serve(&self, epoch: u64) -> bool {
        let mut state = self.0.lock();
        let term = state.term.as_mut().filter(|term| term.by.epoch == epoch && !term.over.is_cancelled());
        term.map(|term| term.serving = true).is_some()
    }

    /// Lets go of the lanes, if it is the owner: somebody else may do better.
    pub(crate) fn step_down(&self, epoch: u64) {
        let term = self.0.lock().term.as_ref().map(|term| (term.by, term.over.clone()));
        if let Some((by, over)) = term
            && by.epoch == epoch
        {
            over.cancel();
        }
    }

    /// Whether envelopes are taken here.
    pub(crate) fn is_owner(&self) -> bool {
        let state = self.0.lock();
        state.term.as_ref().is_some_and(|term| term.serves(&self.0.bounds))
    }

    /// What names the positions of the lanes in an object store, whichever gateway of the site owns them; while this one does.
    pub(crate) fn spool_id(&self) -> Option<SpoolId> {
        self.0.lock().term.as_ref().map(|term| term.spool)
    }

    /// What this gateway is called.
    pub(crate) fn name(&self) -> &str {
        &self.0.me.name
    }

    pub(crate) fn failures(&self, lane: Lane) -> u64 {
        self.0.failures[lane.index()].load(Ordering::Acquire)
    }

    /// Takes one record, if nothing in the lane was given up since it had failed so many times; one that belongs to a term, in that alone.
    pub(crate) fn append_since(
        &self,
        lane: Lane,
        record: Record,
        failures: u64,
        of_term: Option<u64>,
    ) -> Result<Ticket, AppendError> {
        let shared = &self.0;
        if record.head.len() > MAX_HEAD_BYTES {
            let (bytes, limit) = (record.head.len() as u64, MAX_HEAD_BYTES as u64);
            return Err(AppendError::TooLarge { bytes, limit });
        }
        let bytes = encoded_bytes(&record);
        let limit = shared.bounds.group_bytes - HEAD_BYTES;
        if bytes > limit {
            return Err(AppendError::TooLarge { bytes: bytes as u64, limit: limit as u64 });
        }
        let (promise, ticket) = Ticket::promised();
        let mut state = shared.lock();
        state.refuse(&shared.bounds, lane, bytes as u64)?;
        let is_another = |epoch: u64| state.term.as_ref().is_none_or(|term| term.by.epoch != epoch);
        if failures != self.failures(lane) || of_term.is_some_and(is_another) {
            return Err(AppendError::Overtakes);
        }
        state.queued_bytes += bytes as u64;
        state.queued_records += 1;
        state.lanes[lane.index()].queue.push_back(Pending { record, bytes, promise });
        drop(state);
        shared.work[lane.index()].notify_one();
        Ok(ticket)
    }

    pub(crate) fn admit(&self, lane: Lane) -> Result<(), AppendError> {
        self.0.lock().refuse(&self.0.bounds, lane, 0)
    }

    /// Resolves when an append of so many bytes that was refused is worth another try.
    pub(crate) fn room(&self, lane: Lane, bytes: u64) -> impl Future<Output = ()> + Send + use<> {
        let shared = self.0.clone();
        async move {
            // Over is worth a try as well: it gives the reason.
            let _ = shared.until(Until::Room(lane, bytes)).await;
        }
    }

    pub(crate) fn cursor(&self, lane: Lane) -> Position {
        Position(self.0.lock().lanes[lane.index()].cursor)
    }

    pub(crate) fn saved_cursor(&self, lane: Lane) -> Position {
        Position(self.0.lock().lanes[lane.index()].saved)
    }

    pub(crate) fn acknowledge(&self, lane: Lane, position: Position) -> Result<(), AcknowledgeError> {
        let mut state = self.0.lock();
        let here = &mut state.lanes[lane.index()];
        if position.0 >= here.end {
            return Err(AcknowledgeError::NotDurable { position, end: Position(here.end) });
        }
        here.cursor = here.cursor.max(position.0 + 1);
        Ok(())
    }

    pub(crate) fn reader(&self, lane: Lane, from: Position) -> Reader {
        Reader::new(self.0.clone(), lane, from)
    }

    pub(crate) fn heads(&self, lane: Lane, from: Position) -> Heads {
        Heads::new(self.0.clone(), lane, from)
    }

    /// Where the lines' checkpoint lies, in this term.
    pub(crate) fn books(&self) -> Option<Books> {
        let state = self.0.lock();
        let term = state.term.as_ref()?;
        Some(Books::new(self.0.clone(), term.by, term.lines.clone()))
    }

    /// What the far end refuses lies there as well.
    pub(crate) fn replica(&self) -> Replica {
        Replica::new(self.0.clone())
    }

    /// Whether what is acknowledged is on several servers.
    pub(crate) fn has_replicas(&self) -> bool {
        self.0.bounds.replicas > 1
    }

    pub(crate) fn max_bytes(&self) -> u64 {
        self.0.bounds.capacity
    }

    pub(crate) fn available_bytes(&self, lane: Lane) -> u64 {
        self.0.lock().available(&self.0.bounds, lane)
    }

    /// For how long the oldest publish has been under way.
    pub(crate) fn busy_for(&self) -> Option<Duration> {
        self.0.lock().lanes.iter().filter_map(|lane| lane.busy_since).map(|since| since.elapsed()).max()
    }

    pub(crate) fn stats(&self) -> Stats {
        let state = self.0.lock();
        let mut stats = Stats::default();
        for (here, lane) in state.lanes.iter().zip(Lane::ALL) {
            let mut picture = LaneStats::default();
            (picture.lane, picture.cursor, picture.end) = (lane, Position(here.cursor), Position(here.end));
            if here.end > here.cursor {
                picture.oldest_ms = here.index.floor(here.cursor).and_then(|place| place.at_ms);
                picture.bytes = here.bytes;
            }
            stats.lanes.push(picture);
        }
        stats.records = stats.lanes.iter().map(LaneStats::records).sum();
        stats.bytes = stats.lanes.iter().map(|lane| lane.bytes).sum();
        stats.allocated_bytes = state.stored();
        stats.capacity_bytes = self.0.bounds.capacity;
        stats.available_bytes = state.available(&self.0.bounds, Lane::First);
        stats.oldest_ms = stats.lanes.iter().filter_map(|lane| lane.oldest_ms).min();
        (stats.queued_records, stats.queued_bytes) = (state.queued_records, state.queued_bytes);
        let Counters { appended_records, groups, failed, corrupt_records, times } = state.counters;
        (stats.appended_records, stats.corrupt_records) = (appended_records, corrupt_records);
        (stats.groups, stats.syncs, stats.failed_syncs) = (groups, groups + failed, failed);
        (stats.sync_times, stats.disk_full) = (times, state.full);
        stats
    }

    /// Publishes what waits, writes the cursors down and hands the lanes over. Blocks for as long as the broker takes.
    pub(crate) fn close(&self) {
        self.0.close();
    }
}

#[cfg(test)]
impl Replicated {
    /// Over the broker in memory that belongs to a folder, as the owner, and quick. Blocks until the one before has let go.
    pub(super) fn of_folder(folder: &std::path::Path, capacity: u64) -> Self {
        let broker: Arc<dyn Broker> = Arc::new(model::Model::of(folder));
        let me = Me { name: "edge-1".to_owned(), address: None };
        let (beat, lease) = (Duration::from_millis(40), Duration::from_millis(400));
        let bounds = Bounds { beat, lease, group_bytes: 4 << 20, ..Bounds::new(capacity) };
        let this = Self::start(me, bounds, move || async move { Ok(broker) }).unwrap();
        let (began, standing) = (Instant::now(), this.standing());
        loop {
            if let Standing::Ours { epoch } = *standing.borrow() {
                this.serve(epoch);
                return this;
            }
            assert!(began.elapsed() < Duration::from_secs(20), "never becomes the owner");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Over a broker in memory that others are over as well, and quick. It stands by until it is the owner.
    pub(super) fn over_model(broker: &model::Model, name: &str, address: String) -> Self {
        let broker: Arc<dyn Broker> = Arc::new(broker.clone());
        let me = Me { name: name.to_owned(), address: Some(address) };
        let (beat, lease) = (Duration::from_millis(40), Duration::from_millis(400));
        let bounds = Bounds { beat, lease, group_bytes: 4 << 20, ..Bounds::new(64 << 20) };
        Self::start(me, bounds, move || async move { Ok(broker) }).unwrap()
    }

    /// As a process that is killed: nothing more is done, and nobody is told.
    pub(super) fn kill(&self) {
        self.0.ended.cancel();
        let thread = self.0.thread.lock().unwrap().take();
        drop(thread.map(std::thread::JoinHandle::join));
        self.0.end_term();
    }
}

impl Term {
    fn serves(&self, bounds: &Bounds) -> bool {
        self.serving && !self.over.is_cancelled() && self.renewed.elapsed() < bounds.lease
    }
}

impl State {
    fn stored(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.bytes).sum()
    }

    /// Whether, and why, an append of so many bytes is refused now.
    fn refuse(&self, bounds: &Bounds, lane: Lane, bytes: u64) -> Result<(), AppendError> {
        if !self.term.as_ref().is_some_and(|term| term.serves(bounds)) {
            return Err(AppendError::Closed);
        }
        let over =
            self.queued_records >= bounds.queue_records || self.queued_bytes + bytes > bounds.queue_bytes;
        if over && self.queued_records > 0 {
            return Err(AppendError::QueueFull { records: self.queued_records, bytes: self.queued_bytes });
        }
        let (needed, available) =
            (bytes + HEAD_BYTES as u64 + MESSAGE_OVERHEAD, self.available(bounds, lane));
        if needed > available {
            return Err(AppendError::Full { needed, available });
        }
        Ok(())
    }

    /// Bytes that an append to a lane can count on: of the budget, and of what the broker gives the lane. What waits counts as if each
    /// went out in a message of its own, and a group is kept back.
    fn available(&self, bounds: &Bounds, lane: Lane) -> u64 {
        let waits = self.queued_bytes + self.queued_records as u64 * (HEAD_BYTES as u64 + MESSAGE_OVERHEAD);
        let kept_back = bounds.group_bytes as u64 + waits;
        let here = &self.lanes[lane.index()];
        let budget = bounds.capacity.saturating_sub(self.stored());
        let log = here.max_bytes.map_or(u64::MAX, |max| max.saturating_sub(here.bytes));
        budget.min(log).saturating_sub(kept_back)
    }

    fn is_over(&self, bounds: &Bounds, until: Until) -> bool {
        match until {
            Until::Durable(lane, position) => self.term.is_none() || self.lanes[lane.index()].end > position,
            Until::Room(lane, bytes) => !matches!(
                self.refuse(bounds, lane, bytes),
                Err(AppendError::QueueFull { .. } | AppendError::Full { .. })
            ),
        }
    }
}

impl Shared {
    fn close(&self) {
        self.closing.cancel();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // It has said why, if it fell over.
            let _ = thread.join();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves when it is so, and `Closed` when it is not and never will be in this term.
    async fn until(&self, until: Until) -> Result<(), Closed> {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            {
                let state = self.lock();
                if state.is_over(&self.bounds, until) {
                    return match until {
                        Until::Durable(lane, position) if state.lanes[lane.index()].end <= position => {
                            Err(Closed)
                        }
                        _ => Ok(()),
                    };
                }
            }
            moved.await;
        }
    }

    /// Has the engine's thread do something, and waits for it. For threads of any kind; it blocks.
    fn block<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Option<T> {
        let (done, is_done) = mpsc::sync_channel(1);
        self.runtime.spawn(async move {
            // Nobody waits any more: then nobody wants it.
            let _ = done.send(work.await);
        });
        is_done.recv().ok()
    }

    /// The term is over. What is queued is given up; what is under way is answered by whoever has it.
    fn end_term(&self) {
        let mut state = self.lock();
        let Some(term) = state.term.take() else { return };
        term.over.cancel();
        // Under the lock: an append either comes before, and is given up, or finds no term.
        let given_up: Vec<Pending> = (0..LANES).flat_map(|lane| self.give_up(&mut state, lane)).collect();
        state.lanes = Default::default();
        drop(state);
        given_up.into_iter().for_each(|one| one.promise.fail(NotDurable::Closed));
        self.moved.notify_waiters();
    }

    /// What waits in a lane is not to be appended: nothing that came later may overtake what failed.
    fn give_up(&self, state: &mut State, lane: usize) -> Vec<Pending> {
        self.failures[lane].fetch_add(1, Ordering::AcqRel);
        let given_up: Vec<Pending> = state.lanes[lane].queue.drain(..).collect();
        state.queued_records -= given_up.len();
        state.queued_bytes -= given_up.iter().map(|one| one.bytes as u64).sum::<u64>();
        given_up
    }
}

impl fmt::Debug for Replicated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replicated").field("standing", &*self.0.standing.borrow()).finish_non_exhaustive()
    }
}

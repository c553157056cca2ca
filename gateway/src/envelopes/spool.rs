//! The one boundary to the spool: append and get a durable ticket, read, acknowledge, and what is still here.
//!
//! Everything else in the gateway sees envelopes, heads and three lanes by priority ([`super::lanes`]). Two engines stand behind it:
//! the embedded one, a folder on this machine ([`pithead_spool`]), and the replicated one, streams of NATS JetStream that the gateways
//! of a site share and one of them owns ([`super::replicated`]). Who does not own them stands by: nothing can be appended here then,
//! and nothing waits here.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::Either;
use pithead_hop::bundle::SpoolId;
use pithead_hop::ingest::intake::Durability;
use pithead_hop::program::ProgramError;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::{Line, StreamName};
use pithead_spool::{
    AcknowledgeError, AppendError, Batch, CloseError, Closed, Lane, OpenError, Options, Position, ReadError,
    RecordHead, Recovery, Spool, Stats, Ticket,
};
use tokio::sync::watch;

use super::lanes::{Found, LANES, Lanes, USUAL};
use super::record::{Body, Head, LargeCopy};
use super::replicated::{self, Books, Neighbour, Owner, Presence, Replica, Replicated, Standing};
use super::shares::Fill;
use crate::config;

/// The spool of envelopes. Clones are the same spool.
#[derive(Debug, Clone)]
pub struct EnvelopeSpool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    log: Engine,
    lanes: Lanes,
}

#[derive(Debug)]
enum Engine {
    Embedded(Spool),
    Replicated(Replicated),
}

/// Reads one lane from a position on, whatever the engine.
#[derive(Debug)]
pub enum Reader {
    /// Of the embedded engine.
    Embedded(pithead_spool::Reader),
    /// Of the replicated one.
    Replicated(Box<replicated::Reader>),
}

/// Goes over heads, whatever the engine.
#[derive(Debug)]
pub enum Heads {
    /// Of the embedded engine.
    Embedded(pithead_spool::Heads),
    /// Of the replicated one.
    Replicated(Box<replicated::Heads>),
}

impl Reader {
    /// The position of the next record to be returned.
    #[must_use]
    pub fn position(&self) -> Position {
        match self {
            Self::Embedded(reader) => reader.position(),
            Self::Replicated(reader) => reader.position(),
        }
    }

    /// The next durable records of at most so many bytes, but at least one if there is one. Damaged ones are stepped over and named.
    /// Blocks.
    ///
    /// # Errors
    /// When the engine does not give the bytes; the reader stays where it was.
    pub fn next_batch(&mut self, max_bytes: usize) -> Result<Batch, ReadError> {
        match self {
            Self::Embedded(reader) => reader.next_batch(max_bytes),
            Self::Replicated(reader) => reader.next_batch(max_bytes),
        }
    }

    /// Takes what the disk refuses to give, at the next call, for damaged. What a broker refuses to give it gives another time.
    pub fn skip_unreadable(&mut self) {
        match self {
            Self::Embedded(reader) => reader.skip_unreadable(),
            Self::Replicated(_) => {}
        }
    }

    /// Whether there is nothing more to be had, since the lanes are no longer this gateway's: what it returns then is no end of a lane.
    #[must_use]
    pub fn is_over(&self) -> bool {
        match self {
            Self::Embedded(_) => false,
            Self::Replicated(reader) => reader.is_over(),
        }
    }

    /// Resolves when there is something to return.
    pub fn changed(&self) -> impl Future<Output = Result<(), Closed>> + Send + use<> {
        match self {
            Self::Embedded(reader) => Either::Left(reader.changed()),
            Self::Replicated(reader) => Either::Right(Box::pin(reader.changed())),
        }
    }
}

impl Iterator for Heads {
    type Item = RecordHead;

    fn next(&mut self) -> Option<RecordHead> {
        match self {
            Self::Embedded(heads) => heads.next(),
            Self::Replicated(heads) => heads.next(),
        }
    }
}

/// Who takes envelopes, if not this gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elsewhere {
    /// The owner, if there is one and it is known.
    pub owner: Option<Owner>,
    /// Why it is not known, or why this gateway is not the owner although nobody is.
    pub trouble: Option<String>,
}

impl std::fmt::Display for Elsewhere {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.owner {
            Some(Owner { name, address: Some(address), .. }) => {
                write!(f, "{name} at {address} takes the envelopes")?
            }
            Some(Owner { name, address: None, .. }) => write!(f, "{name} takes the envelopes")?,
            None => f.write_str("no gateway of the site takes envelopes at the moment")?,
        }
        match &self.trouble {
            Some(trouble) => write!(f, " ({trouble})"),
            None => Ok(()),
        }
    }
}

/// Opens the embedded spool, and recovers what a crash has left.
///
/// # Errors
/// Why it cannot be opened, for the person in front of it.
pub fn open(folder: &Path, config: &config::Spool) -> Result<(EnvelopeSpool, Recovery), ProgramError> {
    let mut options = Options::default();
    options.max_bytes = config.max_size.get();
    options.segment_bytes = config.segment_size.get();
    options.lanes = LANES;
    let (log, recovery) = Spool::open(folder, options).map_err(open_error)?;
    Ok((EnvelopeSpool::of(Engine::Embedded(log), lanes_of(config)), recovery))
}

/// Stands by at the replicated spool. Blocks until JetStream has said how it is set.
///
/// # Errors
/// Why envelopes cannot be taken there, for the person in front of it.
pub fn join(wanted: &replicated::Joining, config: &config::Spool) -> Result<EnvelopeSpool, ProgramError> {
    let log = Replicated::join(wanted)?;
    Ok(EnvelopeSpool::of(Engine::Replicated(log), lanes_of(config)))
}

fn lanes_of(config: &config::Spool) -> Lanes {
    Lanes::new(&config.lanes.first, &config.lanes.third)
}

/// Why a spool does not open, for the person in front of it.
pub(crate) fn open_error(error: OpenError) -> ProgramError {
    let (reason, todo) = match &error {
        OpenError::Locked { .. } => {
            (ErrorReason::DataDirLocked, "stop the other gateway; two never share a spool")
        }
        OpenError::Full { .. } => (ErrorReason::DiskFull, "make room on the spool's disk"),
        OpenError::Missing { .. }
        | OpenError::NotADirectory { .. }
        | OpenError::ReadOnly { .. }
        | OpenError::Denied { .. } => {
            (ErrorReason::DataDirUnwritable, "check its owner, its permissions and how its disk is mounted")
        }
        OpenError::Options { .. } => (ErrorReason::ConfigInvalid, "correct [spool] in the configuration"),
        OpenError::Newer { .. } => {
            (ErrorReason::StateDamaged, "run the version of this program that wrote it")
        }
        _ => (ErrorReason::DiskFailed, "look at the disk and the kernel's log"),
    };
    ProgramError::new(reason, error.to_string()).affects("no envelope can be taken").todo(todo)
}

#[cfg(test)]
impl EnvelopeSpool {
    /// Over a log that was opened elsewhere.
    pub(crate) fn over(log: Spool, lanes: Lanes) -> Self {
        Self::of(Engine::Embedded(log), lanes)
    }

    /// Over a replicated log that was joined elsewhere.
    pub(crate) fn over_replicated(log: Replicated, lanes: Lanes) -> Self {
        Self::of(Engine::Replicated(log), lanes)
    }
}

impl EnvelopeSpool {
    fn of(log: Engine, lanes: Lanes) -> Self {
        Self(Arc::new(Inner { log, lanes }))
    }

    /// What an acknowledgement means here.
    #[must_use]
    pub fn durability(&self) -> Durability {
        match &self.0.log {
            Engine::Replicated(log) if log.has_replicas() => Durability::Replicated,
            Engine::Embedded(_) | Engine::Replicated(_) => Durability::Disk,
        }
    }

    /// Who takes envelopes, if it is not this gateway. With the embedded engine it always is.
    #[must_use]
    pub fn elsewhere(&self) -> Option<Elsewhere> {
        match &self.0.log {
            Engine::Embedded(_) => None,
            Engine::Replicated(log) if log.is_owner() => None,
            Engine::Replicated(log) => Some(match &*log.standing().borrow() {
                Standing::StandingBy { owner, trouble } => {
                    Elsewhere { owner: owner.clone(), trouble: trouble.clone() }
                }
                Standing::Ours { .. } => {
                    Elsewhere { owner: None, trouble: Some("this one is taking over".to_owned()) }
                }
            }),
        }
    }

    /// The name of the gateway that takes envelopes, where several share the lanes and it is known.
    #[must_use]
    pub fn owner(&self) -> Option<String> {
        let Engine::Replicated(log) = &self.0.log else { return None };
        match self.elsewhere() {
            None => Some(log.name().to_owned()),
            Some(elsewhere) => elsewhere.owner.map(|owner| owner.name),
        }
    }

    /// Follows who owns the lanes, where several gateways share them.
    #[must_use]
    pub fn standing(&self) -> Option<watch::Receiver<Standing>> {
        match &self.0.log {
            Engine::Embedded(_) => None,
            Engine::Replicated(log) => Some(log.standing()),
        }
    }

    /// What was known of this epoch is loaded: envelopes are taken from now on, if this gateway still is the owner. Whether it is.
    pub fn serve(&self, epoch: u64) -> bool {
        match &self.0.log {
            Engine::Embedded(_) => true,
            Engine::Replicated(log) => log.serve(epoch),
        }
    }

    /// Lets go of the lanes.
    pub fn step_down(&self, epoch: u64) {
        if let Engine::Replicated(log) = &self.0.log {
            log.step_down(epoch);
        }
    }

    /// What the other gateways of the site are told of this one.
    pub fn tell(&self, presence: Presence) {
        if let Engine::Replicated(log) = &self.0.log {
            log.tell(presence);
        }
    }

    /// The gateways that share the lanes, this one among them; none where they are not shared, or nothing was heard yet.
    #[must_use]
    pub fn neighbours(&self) -> Vec<Neighbour> {
        match &self.0.log {
            Engine::Embedded(_) => Vec::new(),
            Engine::Replicated(log) => log.neighbours(),
        }
    }

    /// Where the checkpoint of the lines lies, if it lies with the data.
    pub(super) fn books(&self) -> Option<Books> {
        match &self.0.log {
            Engine::Embedded(_) => None,
            Engine::Replicated(log) => log.books(),
        }
    }

    /// Where the refused area is kept as well, if what waits is not on this machine alone.
    pub(crate) fn replica(&self) -> Option<Replica> {
        match &self.0.log {
            Engine::Embedded(_) => None,
            Engine::Replicated(log) => Some(log.replica()),
        }
    }

    /// What names the positions of lanes that gateways share, while this one owns them. With the embedded engine their folder has it.
    pub(super) fn shared_id(&self) -> Option<SpoolId> {
        match &self.0.log {
            Engine::Embedded(_) => None,
            Engine::Replicated(log) => log.spool_id(),
        }
    }

    /// Whether it is the replicated engine.
    #[must_use]
    pub fn is_replicated(&self) -> bool {
        matches!(self.0.log, Engine::Replicated(_))
    }

    /// How often what was on its way to the disk in the line's lane had to be given up.
    #[must_use]
    pub fn failures(&self, line: &Line) -> u64 {
        match &self.0.log {
            Engine::Embedded(log) => log.failures(self.lane_of(line)),
            Engine::Replicated(log) => log.failures(self.lane_of(line)),
        }
    }

    /// Appends an envelope to its line's lane, unless there was a failure more than `failures`. It is durable when the ticket
    /// says so. A large one with a copy is appended in the term in which that was put, or not at all: in a later one it is an orphan.
    ///
    /// # Errors
    /// When there is no room, the disk has failed, or it would overtake what the disk did not take: nothing was taken.
    pub fn append(&self, head: &Head, body: Body, at_ms: u64, failures: u64) -> Result<Ticket, AppendError> {
        let line = head.identity.line();
        let lane = self.0.lanes.join(&line);
        let ticket = match &self.0.log {
            Engine::Embedded(log) => log.append_since(lane, head.record(body, at_ms), failures),
            Engine::Replicated(log) => {
                let of_term = head.copy.as_ref().map(LargeCopy::term);
                log.append_since(lane, head.record(body, at_ms), failures, of_term)
            }
        };
        if ticket.is_err() {
            self.0.lanes.left(&line);
        }
        ticket
    }

    /// Refuses now what an append of one envelope would refuse in every lane that is in use: for saying no before a body was received.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub fn admit(&self) -> Result<(), AppendError> {
        let mut answer = Ok(());
        for lane in self.0.lanes.in_use() {
            answer = match &self.0.log {
                Engine::Embedded(log) => log.admit(lane, 1, 0),
                Engine::Replicated(log) => log.admit(lane),
            };
            if answer.is_ok() {
                break;
            }
        }
        answer
    }

    /// Resolves when an append to this line of so many bytes that was refused is worth another try.
    pub fn room(&self, line: &Line, bytes: u64) -> impl Future<Output = ()> + Send + use<> {
        match &self.0.log {
            Engine::Embedded(log) => Either::Left(log.room(self.lane_of(line), 1, bytes)),
            Engine::Replicated(log) => Either::Right(Box::pin(log.room(self.lane_of(line), bytes))),
        }
    }

    /// Where the line's next envelope will wait.
    #[must_use]
    pub fn lane_of(&self, line: &Line) -> Lane {
        self.0.lanes.of(line)
    }

    /// The heads of everything that is not acknowledged yet: lane by lane, in order within each.
    pub fn waiting(&self) -> impl Iterator<Item = RecordHead> + use<> {
        let spool = self.clone();
        Lane::ALL.into_iter().flat_map(move |lane| spool.waiting_in(lane))
    }

    /// The heads of what is not acknowledged yet in one lane, in order.
    pub fn waiting_in(&self, lane: Lane) -> Heads {
        let cursor = self.cursor(lane);
        match &self.0.log {
            Engine::Embedded(log) => Heads::Embedded(log.heads(lane, cursor)),
            Engine::Replicated(log) => Heads::Replicated(Box::new(log.heads(lane, cursor))),
        }
    }

    /// An envelope of this line has left, or is lost to damage.
    pub fn left(&self, line: &Line) {
        self.0.lanes.left(line);
    }

    /// Whether a stream waits in a lane that is not, or not any more, its own.
    #[must_use]
    pub fn is_stray(&self, lane: Lane, stream: &StreamName) -> bool {
        self.0.lanes.is_stray(lane, stream)
    }

    /// At a start, before anything is appended: lines that were found in a lane that is not their stream's go on there, and no others.
    /// Reads all heads once more if there are any.
    pub fn keep_strays(&self, mut found: Found) {
        if found.is_empty() {
            // Of a term before there may be some: they have left meanwhile, by way of another gateway.
            self.0.lanes.set_strays(found);
            return;
        }
        for lane in Lane::ALL {
            for head in self.waiting_in(lane).filter_map(|record| Head::decode(&record.head).ok()) {
                found.count(lane, &head.identity.line(), head.identity.seq);
            }
        }
        self.0.lanes.set_strays(found);
        tracing::info!(event = "spool.lines_in_other_lanes", lines = self.0.lanes.strays_len());
    }

    /// Reads a lane from a position on.
    #[must_use]
    pub fn reader_at(&self, lane: Lane, position: Position) -> Reader {
        match &self.0.log {
            Engine::Embedded(log) => Reader::Embedded(log.reader(lane, position)),
            Engine::Replicated(log) => Reader::Replicated(Box::new(log.reader(lane, position))),
        }
    }

    /// The first position of a lane that is not acknowledged.
    #[must_use]
    pub fn cursor(&self, lane: Lane) -> Position {
        match &self.0.log {
            Engine::Embedded(log) => log.cursor(lane),
            Engine::Replicated(log) => log.cursor(lane),
        }
    }

    /// The first position of a lane that a crash cannot bring back: what lies before it is wanted by nobody.
    #[must_use]
    pub fn saved_cursor(&self, lane: Lane) -> Position {
        match &self.0.log {
            Engine::Embedded(log) => log.saved_cursor(lane),
            Engine::Replicated(log) => log.saved_cursor(lane),
        }
    }

    /// Everything in the lane up to and with `position` is elsewhere, durable: it may go from here.
    ///
    /// # Errors
    /// When nothing durable is there: somebody counts wrongly.
    pub fn acknowledge(&self, lane: Lane, position: Position) -> Result<(), AcknowledgeError> {
        match &self.0.log {
            Engine::Embedded(log) => log.acknowledge(lane, position),
            Engine::Replicated(log) => log.acknowledge(lane, position),
        }
    }

    /// How full it is, for admission. Touches no disk.
    #[must_use]
    pub fn fill(&self) -> Fill {
        let capacity = match &self.0.log {
            Engine::Embedded(log) => log.max_bytes(),
            Engine::Replicated(log) => log.max_bytes(),
        };
        Fill { used: capacity - self.available_bytes().min(capacity), capacity }
    }

    /// Bytes that envelopes of streams in no particular lane can still count on. (Each lane has a segment of its own to
    /// itself, which the others cannot use.)
    #[must_use]
    pub fn available_bytes(&self) -> u64 {
        match &self.0.log {
            Engine::Embedded(log) => log.available_bytes(USUAL),
            Engine::Replicated(log) => log.available_bytes(USUAL),
        }
    }

    /// For how long the thread that writes has been at one piece of work; nothing while it waits for some. Touches no disk.
    #[must_use]
    pub fn busy_for(&self) -> Option<Duration> {
        match &self.0.log {
            Engine::Embedded(log) => log.busy_for(),
            Engine::Replicated(log) => log.busy_for(),
        }
    }

    /// How full it is.
    #[must_use]
    pub fn stats(&self) -> Stats {
        match &self.0.log {
            Engine::Embedded(log) => log.stats(),
            Engine::Replicated(log) => log.stats(),
        }
    }

    /// Makes the last records durable and lets go of the folder, or hands the lanes over. Blocks.
    ///
    /// # Errors
    /// When the closing mark could not be written: some records will be delivered again.
    pub fn close(&self) -> Result<(), CloseError> {
        match &self.0.log {
            Engine::Embedded(log) => log.close(),
            Engine::Replicated(log) => {
                log.close();
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pithead_hop::program::health::{Lamps, Level};
    use pithead_hop::program::supervisor::{Asked, follow_with};
    use pithead_spool::Record;
    use pithead_spool::stepped::CrashDisk;
    use tokio::sync::mpsc;
    use tokio::time::timeout;
    use tokio_util::sync::CancellationToken;

    const WATCHDOG: Duration = Duration::from_millis(400);
    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_supervisor_is_not_told_that_a_gateway_lives_whose_disk_never_comes_back_from_a_sync() {
        let disk = CrashDisk::new(1);
        let mut options = Options::outbox();
        options.lanes = LANES;
        let (log, _) = disk.run(options).unwrap();
        let spool = EnvelopeSpool::over(log, Lanes::default());
        let lamps = Lamps::new(&["disk"], &["disk"], Duration::ZERO);
        lamps.set("disk", Level::Ok, "well", Duration::ZERO);
        let (tell, mut told) = mpsc::channel(1_000);
        let (writes, stop) = (spool.clone(), CancellationToken::new());
        let following = tokio::spawn(follow_with(
            Asked { watchdog: Some(WATCHDOG) },
            lamps,
            move || writes.busy_for(),
            move |states| {
                if states.iter().any(|state| state.to_string() == "WATCHDOG=1") {
                    tell.try_send(()).unwrap();
                }
            },
            stop.clone(),
        ));
        let Engine::Embedded(log) = &spool.0.log else { unreachable!() };
        let append = || log.append(USUAL, Record::new(1, 0, &b"head"[..], &b"body"[..])).unwrap();
        append().await.unwrap();
        timeout(LONG, told.recv()).await.expect("fed while the disk answers").unwrap();

        disk.hang_syncs(true);
        let stuck = append();
        // What was told before it was seen to be stuck still comes.
        timeout(LONG, async { while timeout(WATCHDOG, told.recv()).await.is_ok() {} })
            .await
            .expect("not fed for ever");
        assert!(spool.busy_for() > Some(WATCHDOG / 2));

        disk.hang_syncs(false);
        stuck.await.unwrap();
        timeout(LONG, told.recv()).await.expect("fed again when the disk is back").unwrap();
        stop.cancel();
        following.await.unwrap();
    }
}

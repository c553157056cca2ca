//! The one boundary to the spool: append and get a durable ticket, read, acknowledge, and what is still here.
//!
//! Everything else in the gateway sees envelopes, heads and three lanes by priority ([`super::lanes`]); a second engine
//! takes this file's place.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pithead_hop::program::ProgramError;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::{Line, StreamName};
use pithead_spool::{
    AcknowledgeError, AppendError, CloseError, Lane, OpenError, Options, Position, Reader, RecordHead,
    Recovery, Room, Spool, Stats, Ticket,
};

use super::lanes::{Found, LANES, Lanes, USUAL};
use super::record::{Body, Head};
use super::shares::Fill;
use crate::config;

/// The spool of envelopes. Clones are the same spool.
#[derive(Debug, Clone)]
pub struct EnvelopeSpool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    log: Spool,
    lanes: Lanes,
}

/// Opens the spool, and recovers what a crash has left.
///
/// # Errors
/// Why it cannot be opened, for the person in front of it.
pub fn open(folder: &Path, config: &config::Spool) -> Result<(EnvelopeSpool, Recovery), ProgramError> {
    let mut options = Options::default();
    options.max_bytes = config.max_size.get();
    options.segment_bytes = config.segment_size.get();
    options.lanes = LANES;
    let (log, recovery) = Spool::open(folder, options).map_err(open_error)?;
    let lanes = Lanes::new(&config.lanes.first, &config.lanes.third);
    Ok((EnvelopeSpool(Arc::new(Inner { log, lanes })), recovery))
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
        Self(Arc::new(Inner { log, lanes }))
    }
}

impl EnvelopeSpool {
    /// How often what was on its way to the disk in the line's lane had to be given up.
    #[must_use]
    pub fn failures(&self, line: &Line) -> u64 {
        self.0.log.failures(self.lane_of(line))
    }

    /// Appends an envelope to its line's lane, unless there was a failure more than `failures`. It is durable when the ticket
    /// says so.
    ///
    /// # Errors
    /// When there is no room, the disk has failed, or it would overtake what the disk did not take: nothing was taken.
    pub fn append(&self, head: &Head, body: Body, at_ms: u64, failures: u64) -> Result<Ticket, AppendError> {
        let line = head.identity.line();
        let lane = self.0.lanes.join(&line);
        let ticket = self.0.log.append_since(lane, head.record(body, at_ms), failures);
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
            answer = self.0.log.admit(lane, 1, 0);
            if answer.is_ok() {
                break;
            }
        }
        answer
    }

    /// Resolves when an append to this line of so many bytes that was refused is worth another try.
    pub fn room(&self, line: &Line, bytes: u64) -> Room {
        self.0.log.room(self.lane_of(line), 1, bytes)
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
    pub fn waiting_in(&self, lane: Lane) -> pithead_spool::Heads {
        self.0.log.heads(lane, self.cursor(lane))
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

    /// At a start, before anything is appended: lines that were found in a lane that is not their stream's go on there. Reads
    /// all heads once more if there are any.
    pub fn keep_strays(&self, mut found: Found) {
        if found.is_empty() {
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
        self.0.log.reader(lane, position)
    }

    /// The first position of a lane that is not acknowledged.
    #[must_use]
    pub fn cursor(&self, lane: Lane) -> Position {
        self.0.log.cursor(lane)
    }

    /// The first position of a lane that a crash cannot bring back: what lies before it is wanted by nobody.
    #[must_use]
    pub fn saved_cursor(&self, lane: Lane) -> Position {
        self.0.log.saved_cursor(lane)
    }

    /// Everything in the lane up to and with `position` is elsewhere, durable: it may go from here.
    ///
    /// # Errors
    /// When nothing durable is there: somebody counts wrongly.
    pub fn acknowledge(&self, lane: Lane, position: Position) -> Result<(), AcknowledgeError> {
        self.0.log.acknowledge(lane, position)
    }

    /// How full it is, for admission. Touches no disk.
    #[must_use]
    pub fn fill(&self) -> Fill {
        let capacity = self.0.log.max_bytes();
        Fill { used: capacity - self.available_bytes().min(capacity), capacity }
    }

    /// Bytes that envelopes of streams in no particular lane can still count on. (Each lane has a segment of its own to
    /// itself, which the others cannot use.)
    #[must_use]
    pub fn available_bytes(&self) -> u64 {
        self.0.log.available_bytes(USUAL)
    }

    /// For how long the thread that writes has been at one piece of work; nothing while it waits for some. Touches no disk.
    #[must_use]
    pub fn busy_for(&self) -> Option<Duration> {
        self.0.log.busy_for()
    }

    /// How full it is.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.0.log.stats()
    }

    /// Makes the last records durable and lets go of the folder. Blocks.
    ///
    /// # Errors
    /// When the closing mark could not be written: some records will be delivered again.
    pub fn close(&self) -> Result<(), CloseError> {
        self.0.log.close()
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
        let append = || spool.0.log.append(USUAL, Record::new(1, 0, &b"head"[..], &b"body"[..])).unwrap();
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

//! The spool as its users hold it.

use crate::error::{AcknowledgeError, AppendError, CloseError, OpenError};
use crate::fs::{Fs, Lock, RealFs};
use crate::options::Options;
use crate::owner::{Owner, Preparer};
use crate::read::{Heads, Reader, Scan};
use crate::record::{Lane, Position, Record};
use crate::recover::{Recovery, recover};
use crate::shared::Shared;
use crate::stats::{Stats, picture};
use crate::ticket::Ticket;
use crate::wait::{Changed, Room};
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A durable FIFO of records in up to three lanes; see the crate's documentation for what it promises.
///
/// All methods take `&self`; share it in an `Arc`. Those that do not say so neither block nor touch the disk.
pub struct Spool {
    shared: Arc<Shared>,
    threads: Mutex<Option<Threads>>,
    /// For each lane, where the oldest record was when somebody last asked.
    oldest: Mutex<Vec<Scan>>,
}

struct Threads {
    owner: JoinHandle<Result<(), io::ErrorKind>>,
    preparer: JoinHandle<()>,
    _lock: Box<dyn Lock>,
}

/// A spool without its threads.
pub(crate) struct Parts {
    pub(crate) shared: Arc<Shared>,
    pub(crate) owner: Owner,
    pub(crate) preparer: Preparer,
    pub(crate) recovery: Recovery,
    pub(crate) lock: Box<dyn Lock>,
}

/// Opens the directory, recovers what is in it, and sees to a segment for each lane.
pub(crate) fn assemble(fs: Arc<dyn Fs>, dir: &Path, options: Options) -> Result<Parts, OpenError> {
    options.check()?;
    let at = |source| OpenError::from_io(dir, source);
    if !fs.exists(dir).map_err(at)? {
        if !options.create {
            return Err(OpenError::Missing { path: dir.to_owned() });
        }
        fs.create_dir(dir).map_err(at)?;
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            // Why: the folder's own name has to survive as well.
            fs.sync_dir(parent).map_err(at)?;
        }
    }
    let lock = fs.lock(&dir.join("lock")).map_err(at)?;

    let mut recovery = Recovery::default();
    let (mut lanes, mut writers, mut allocated, mut spare_number) = (Vec::new(), Vec::new(), 0, 0);
    for lane in Lane::ALL {
        let folder = dir.join(format!("lane-{}", lane.index()));
        if !fs.exists(&folder).map_err(at)? {
            if lane.index() >= options.lanes {
                break;
            }
            fs.create_dir(&folder).map_err(at)?;
            // Why: the lane's name has to survive before anything in it is called durable.
            fs.sync_dir(dir).map_err(at)?;
        }
        let recovered = recover(&*fs, &folder, lane, &options, &mut recovery)?;
        lanes.push(recovered.state);
        writers.push(recovered.writer);
        allocated += recovered.allocated;
        spare_number = spare_number.max(recovered.spare_number);
    }

    let fresh = lanes.iter().all(|lane| lane.segments.is_empty());
    let shared = Arc::new(Shared::new(fs, dir.to_owned(), options, lanes, allocated));
    shared.lock().counters.corrupt_records = recovery.corrupt_records;
    let mut owner = Owner::new(Arc::clone(&shared), writers);
    if let Err(error) = owner.begin() {
        // With a backlog, the disk may be full of it: it has to be served to be drained. Appends try again for a segment.
        if fresh {
            return Err(at(error));
        }
    }
    let preparer = Preparer::new(Arc::clone(&shared), spare_number);
    Ok(Parts { shared, owner, preparer, recovery, lock })
}

impl Spool {
    /// Opens the spool in `dir`, and recovers what a crash or a failing disk has left of it. Blocks while it reads.
    ///
    /// # Errors
    /// See [`OpenError`]. Damage is no error: it is stepped over and named in [`Recovery`].
    pub fn open(dir: impl AsRef<Path>, options: Options) -> Result<(Self, Recovery), OpenError> {
        let dir = dir.as_ref();
        Self::run(assemble(Arc::new(RealFs), dir, options)?, dir)
    }

    /// Gives the threads their work.
    pub(crate) fn run(parts: Parts, dir: &Path) -> Result<(Self, Recovery), OpenError> {
        let spawn = |source| OpenError::Io { path: dir.to_owned(), source };
        let (owner, preparer) = (parts.owner, parts.preparer);
        let owner =
            thread::Builder::new().name("spool-owner".into()).spawn(move || owner.run()).map_err(spawn)?;
        let preparer = thread::Builder::new()
            .name("spool-prepare".into())
            .spawn(move || preparer.run())
            .map_err(spawn)?;
        let threads = Threads { owner, preparer, _lock: parts.lock };
        let spool = Self::without_threads(parts.shared);
        *spool.threads.lock().unwrap_or_else(PoisonError::into_inner) = Some(threads);
        Ok((spool, parts.recovery))
    }

    /// The half that callers hold.
    pub(crate) fn without_threads(shared: Arc<Shared>) -> Self {
        let lanes = shared.lock().lanes.len();
        let scans = Lane::ALL.into_iter().take(lanes);
        let oldest = scans.map(|lane| Scan::new(Arc::clone(&shared), lane, Position::START, false)).collect();
        Self { shared, threads: Mutex::new(None), oldest: Mutex::new(oldest) }
    }

    /// Takes a record. It is durable when the ticket says so, and not before; it lies behind everything that was appended to
    /// the lane before it.
    ///
    /// # Errors
    /// See [`AppendError`]: nothing was taken and nothing will be written.
    pub fn append(&self, lane: Lane, record: Record) -> Result<Ticket, AppendError> {
        self.shared.append_one(lane, record)
    }

    /// How often what waited in the lane had to be given up, because a sync failed or no segment was to be had.
    #[must_use]
    pub fn failures(&self, lane: Lane) -> u64 {
        self.shared.failures(lane.index())
    }

    /// As [`append`](Self::append), but only if [`failures`](Self::failures) is still what the caller saw. Between a failure and
    /// the moment at which its tickets are seen to, an append would land behind a gap: for records that must not overtake one
    /// another.
    ///
    /// # Errors
    /// As [`append`](Self::append), and [`AppendError::Overtakes`].
    pub fn append_since(&self, lane: Lane, record: Record, failures: u64) -> Result<Ticket, AppendError> {
        self.shared.append_since(lane, record, failures)
    }

    /// Takes several records in this order and without others in between. They go to the disk in one group: whatever happens,
    /// all of them become durable or none does. One ticket speaks for all: it resolves to the position of the first, and the
    /// others follow without a gap.
    ///
    /// # Errors
    /// As [`append`](Self::append). A batch that is larger than a group ([`Options::max_group_bytes`]) is `TooLarge`.
    pub fn append_all(&self, lane: Lane, records: Vec<Record>) -> Result<Ticket, AppendError> {
        self.shared.append(lane, records)
    }

    /// As [`append`](Self::append), but blocks while the queue is full instead of refusing.
    ///
    /// # Errors
    /// As [`append`](Self::append), `QueueFull` excepted.
    pub fn append_blocking(&self, lane: Lane, record: Record) -> Result<Ticket, AppendError> {
        loop {
            let bytes = record.head.len() + record.body.len();
            match self.append(lane, record.clone()) {
                Err(AppendError::QueueFull { .. }) => self.room(lane, 1, bytes as u64).wait(),
                answer => return answer,
            }
        }
    }

    /// Resolves when an append of `records` with `bytes` in all that was refused with `QueueFull` or `Full` is worth another
    /// try.
    pub fn room(&self, lane: Lane, records: usize, bytes: u64) -> Room {
        let bytes = bytes + (records * crate::format::ENTRY_BYTES) as u64;
        Room::new(Arc::clone(&self.shared), lane, records, bytes)
    }

    /// Refuses what [`append`](Self::append) would refuse now: for saying no before a body has been received.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub fn admit(&self, lane: Lane, records: usize, bytes: u64) -> Result<(), AppendError> {
        let bytes = bytes + (records * crate::format::ENTRY_BYTES) as u64;
        self.shared.lock().refuse(&self.shared.options, lane.index(), records, bytes)
    }

    /// Reads a lane from a position on; [`cursor`](Self::cursor) is where delivery goes on.
    #[must_use]
    pub fn reader(&self, lane: Lane, from: Position) -> Reader {
        Reader::new(Arc::clone(&self.shared), lane, from)
    }

    /// Goes over the heads of the durable records from a position on, without their bodies.
    #[must_use]
    pub fn heads(&self, lane: Lane, from: Position) -> Heads {
        Heads::new(Arc::clone(&self.shared), lane, from)
    }

    /// Resolves when the record at `position` is durable, and with `Closed` when it never will be.
    pub fn changed(&self, lane: Lane, position: Position) -> Changed {
        Changed::new(Arc::clone(&self.shared), lane, position)
    }

    /// The first position that is not acknowledged.
    #[must_use]
    pub fn cursor(&self, lane: Lane) -> Position {
        self.shared.cursor(lane)
    }

    /// The first position that is not acknowledged as far as the disk knows: a crash does not go back behind it. It follows
    /// [`cursor`](Self::cursor) with the next group, or soon after.
    #[must_use]
    pub fn saved_cursor(&self, lane: Lane) -> Position {
        Position(self.shared.lock().lanes.get(lane.index()).map_or(0, |lane| lane.cursor_saved))
    }

    /// The oldest position that is still kept: the cursor, or some way before it, where its segment begins.
    #[must_use]
    pub fn start(&self, lane: Lane) -> Position {
        self.shared.start(lane)
    }

    /// The position after the last durable record.
    #[must_use]
    pub fn end(&self, lane: Lane) -> Position {
        self.shared.end(lane)
    }

    /// How many lanes are open.
    #[must_use]
    pub fn lanes(&self) -> usize {
        self.shared.lanes()
    }

    /// The disk budget, [`Options::max_bytes`].
    #[must_use]
    pub fn max_bytes(&self) -> u64 {
        self.shared.options.max_bytes
    }

    /// Bytes that an append to `lane` can still count on; nothing for a lane that is not open. See also
    /// [`Stats::available_bytes`](crate::Stats::available_bytes).
    #[must_use]
    pub fn available_bytes(&self, lane: Lane) -> u64 {
        let state = self.shared.lock();
        if lane.index() < state.lanes.len() { state.available(&self.shared.options, lane.index()) } else { 0 }
    }

    /// The longest record that is taken, in bytes.
    #[must_use]
    pub fn max_record_bytes(&self) -> u64 {
        self.shared.options.max_record_bytes()
    }

    /// The records up to and with `position` are delivered and not needed any more. Acknowledging less than before changes
    /// nothing.
    ///
    /// It is written down with the next group, or soon after: a crash may forget the last acknowledgements, and the records are
    /// delivered again. It never runs ahead. Segments that are acknowledged in full are given back after it is on disk.
    ///
    /// # Errors
    /// When there is no durable record at `position`.
    pub fn acknowledge(&self, lane: Lane, position: Position) -> Result<(), AcknowledgeError> {
        let mut state = self.shared.lock();
        let Some(here) = state.lanes.get_mut(lane.index()) else {
            return Err(AcknowledgeError::NoLane { lane });
        };
        if position.0 >= here.end {
            return Err(AcknowledgeError::NotDurable { position, end: Position(here.end) });
        }
        let was_dirty = here.cursor > here.cursor_saved;
        here.cursor = here.cursor.max(position.0 + 1);
        let urgent = here.reclaimable(here.cursor);
        if state.owner_idle && (urgent || !was_dirty) {
            drop(state);
            self.shared.work.notify_one();
        }
        Ok(())
    }

    /// How full it is. Reads a few bytes of each lane, for the age of the oldest record.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut scans = self.oldest.lock().unwrap_or_else(PoisonError::into_inner);
        picture(&self.shared, &mut scans)
    }

    /// For how long the thread that writes has been at one piece of work: a group with its syncs, or the cursors. Nothing while it
    /// waits for work, however long that is. A disk that does not return shows here, and nowhere else: this touches no disk.
    #[must_use]
    pub fn busy_for(&self) -> Option<Duration> {
        self.shared.lock().busy_since.map(|since| since.elapsed())
    }

    /// Refuses new records, makes those in the queue durable, writes the closing mark, and lets go of the directory. Blocks for
    /// as long as the disk takes. Closing twice is no error.
    ///
    /// # Errors
    /// When the mark could not be written. All tickets are answered all the same.
    pub fn close(&self) -> Result<(), CloseError> {
        self.shared.lock().closing = true;
        self.shared.work.notify_all();
        self.shared.prepare.notify_all();
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(threads) = threads else { return Ok(()) };
        let answer = threads.owner.join().unwrap_or(Err(io::ErrorKind::Other));
        let _ = threads.preparer.join();
        answer.map_err(|kind| CloseError { kind })
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        // Whoever wants to know the outcome calls `close`.
        let _ = self.close();
    }
}

impl fmt::Debug for Spool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spool").field("dir", &self.shared.dir).finish_non_exhaustive()
    }
}

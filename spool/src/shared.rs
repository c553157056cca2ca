//! What appenders, readers and the owner share: one state behind one lock that is never held over a system call.

use crate::error::AppendError;
use crate::format::{ENTRY_BYTES, GROUP_HEAD_BYTES, crc, page_up};
use crate::fs::{FileRef, Fs};
use crate::options::Options;
use crate::record::{Lane, MAX_HEAD_BYTES, Position, Record};
use crate::ticket::{Promise, Ticket};
use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Instant;

pub(crate) struct Shared {
    pub(crate) fs: Arc<dyn Fs>,
    pub(crate) dir: PathBuf,
    pub(crate) options: Options,
    /// The spool is only looked at, and belongs to somebody else who may be writing.
    pub(crate) foreign: bool,
    state: Mutex<State>,
    /// For each lane, how often what waited for the disk had to be given up. Moved under the lock, read without it.
    failures: [AtomicU64; Lane::ALL.len()],
    /// The owner waits here for something to do.
    pub(crate) work: Condvar,
    /// The preparer waits here for a lane that wants a spare segment.
    pub(crate) prepare: Condvar,
    /// Blocked callers wait here for durable records, for room, for a spare and for the end.
    pub(crate) moved: Condvar,
}

pub(crate) struct State {
    pub(crate) lanes: Vec<LaneState>,
    /// Waiting for the disk or under way to it.
    pub(crate) queued_bytes: u64,
    pub(crate) queued_records: usize,
    /// The most disk that the records not yet written can take.
    pub(crate) reserved: u64,
    /// Bytes of all segment files, spares and those being made included.
    pub(crate) allocated: u64,
    /// The disk said that it is full; cleared when space is given back, and after a while.
    pub(crate) disk_full: bool,
    /// The last segment that was needed found no space: unlike `disk_full`, it holds until one does or space is given back.
    pub(crate) without_segment: bool,
    pub(crate) owner_idle: bool,
    /// Since when the owner is at what it is at; nothing while it waits for something to do.
    pub(crate) busy_since: Option<Instant>,
    pub(crate) closing: bool,
    pub(crate) closed: bool,
    pub(crate) counters: Counters,
    waiters: HashMap<u64, Waiter>,
    next_waiter: u64,
}

#[derive(Clone, Copy, Default)]
pub(crate) struct Counters {
    pub(crate) appended_records: u64,
    pub(crate) groups: u64,
    pub(crate) syncs: u64,
    pub(crate) failed_syncs: u64,
    pub(crate) sync_times: crate::stats::SyncTimes,
    pub(crate) corrupt_records: u64,
}

pub(crate) struct LaneState {
    pub(crate) dir: PathBuf,
    pub(crate) queue: VecDeque<Pending>,
    /// In order of number; the last one is written to while `room` is some.
    pub(crate) segments: VecDeque<Segment>,
    pub(crate) next_number: u64,
    /// The position after the last durable record.
    pub(crate) end: u64,
    /// The first position not acknowledged, and what of it is durable itself.
    pub(crate) cursor: u64,
    pub(crate) cursor_saved: u64,
    /// Bytes left in the segment that is written to.
    pub(crate) room: Option<u64>,
    pub(crate) spares: VecDeque<Spare>,
    pub(crate) preparing: bool,
    pub(crate) wants_spare: bool,
    /// The owner waits for the spare that is being made.
    pub(crate) hurried: bool,
    /// What was written to this segment since it was begun or opened: groups, and their bytes.
    pub(crate) groups: u64,
    pub(crate) group_bytes: u64,
    /// Making one failed; not tried again before the next segment.
    pub(crate) spare_failed: bool,
    pub(crate) poisoned: bool,
}

impl LaneState {
    /// A lane with these segments in which nothing is under way.
    pub(crate) fn found(dir: &Path, segments: VecDeque<Segment>, cursor: u64, end: u64) -> Self {
        Self {
            dir: dir.to_owned(),
            queue: VecDeque::new(),
            segments,
            next_number: 0,
            end,
            cursor,
            cursor_saved: cursor,
            room: None,
            spares: VecDeque::new(),
            preparing: false,
            wants_spare: false,
            hurried: false,
            groups: 0,
            group_bytes: 0,
            spare_failed: false,
            poisoned: false,
        }
    }
}

/// A segment as readers need it.
#[derive(Clone)]
pub(crate) struct Segment {
    pub(crate) number: u64,
    pub(crate) name: String,
    pub(crate) file: FileRef,
    pub(crate) salt: u64,
    /// Positions `first..end` are in it, in bytes up to `end_offset`.
    pub(crate) first: u64,
    pub(crate) end: u64,
    pub(crate) end_offset: u64,
    pub(crate) bytes: u64,
    /// Damaged or poisoned: removed rather than written again.
    pub(crate) spent: bool,
}

/// A file that reads as zeroes, or an old segment, ready to become the next segment.
pub(crate) struct Spare {
    pub(crate) name: String,
    pub(crate) file: FileRef,
}

/// Records that wait for the disk, and go there in one group or not at all.
pub(crate) struct Pending {
    pub(crate) records: Records<Summed>,
    /// Entries, heads and bodies.
    pub(crate) bytes: u64,
    pub(crate) reserved: u64,
    pub(crate) promise: Promise,
}

/// The records of a batch. Nearly every batch is one, and that needs no allocation.
pub(crate) enum Records<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> Records<T> {
    fn map<U>(self, map: impl Fn(T) -> U) -> Records<U> {
        match self {
            Self::One(one) => Records::One(map(one)),
            Self::Many(many) => Records::Many(many.into_iter().map(map).collect()),
        }
    }
}

impl<T> std::ops::Deref for Records<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

/// A record and its checksums.
pub(crate) struct Summed {
    pub(crate) record: Record,
    pub(crate) head_crc: u32,
    pub(crate) body_crc: u32,
}

impl From<Record> for Summed {
    fn from(record: Record) -> Self {
        Self { head_crc: crc(&record.head), body_crc: crc(&record.body), record }
    }
}

fn encoded_bytes(record: &Record) -> u64 {
    (ENTRY_BYTES + record.head.len() + record.body.len()) as u64
}

/// What somebody waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    Durable { lane: usize, position: u64 },
    Room { lane: usize, records: usize, bytes: u64 },
}

pub(crate) struct Waiter {
    until: Until,
    waker: Waker,
}

impl Shared {
    pub(crate) fn new(
        fs: Arc<dyn Fs>,
        dir: PathBuf,
        options: Options,
        lanes: Vec<LaneState>,
        allocated: u64,
    ) -> Self {
        let state = State {
            lanes,
            queued_bytes: 0,
            queued_records: 0,
            reserved: 0,
            allocated,
            disk_full: false,
            without_segment: false,
            owner_idle: false,
            busy_since: None,
            closing: false,
            closed: false,
            counters: Counters::default(),
            waiters: HashMap::new(),
            next_waiter: 0,
        };
        let (work, prepare, moved) = (Condvar::new(), Condvar::new(), Condvar::new());
        let failures = Default::default();
        Self { fs, dir, options, foreign: false, state: Mutex::new(state), failures, work, prepare, moved }
    }

    pub(crate) fn failures(&self, lane: usize) -> u64 {
        self.failures[lane].load(Ordering::Acquire)
    }

    /// What waits in the lane is given up. The caller holds the lock, and empties the queue before it lets go.
    pub(crate) fn fail(&self, lane: usize) {
        self.failures[lane].fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many lanes are open.
    pub(crate) fn lanes(&self) -> usize {
        self.lock().lanes.len()
    }

    /// The first position that is not acknowledged. Of a lane that is not open everything begins and ends at the start.
    pub(crate) fn cursor(&self, lane: Lane) -> Position {
        Position(self.lock().lanes.get(lane.index()).map_or(0, |lane| lane.cursor))
    }

    /// The oldest position that is still kept.
    pub(crate) fn start(&self, lane: Lane) -> Position {
        let state = self.lock();
        let Some(lane) = state.lanes.get(lane.index()) else { return Position::START };
        Position(lane.segments.front().map_or(lane.cursor, |front| front.first))
    }

    /// The position after the last durable record.
    pub(crate) fn end(&self, lane: Lane) -> Position {
        Position(self.lock().lanes.get(lane.index()).map_or(0, |lane| lane.end))
    }

    /// Takes one record.
    pub(crate) fn append_one(&self, lane: Lane, record: Record) -> Result<Ticket, AppendError> {
        self.take(lane, Records::One(record), None)
    }

    /// Takes the records of a batch, all or none.
    pub(crate) fn append(&self, lane: Lane, records: Vec<Record>) -> Result<Ticket, AppendError> {
        self.take(lane, Records::Many(records), None)
    }

    /// Takes one record, if nothing in the lane was given up since it had failed so many times.
    pub(crate) fn append_since(
        &self,
        lane: Lane,
        record: Record,
        failures: u64,
    ) -> Result<Ticket, AppendError> {
        self.take(lane, Records::One(record), Some(failures))
    }

    fn take(
        &self,
        lane: Lane,
        records: Records<Record>,
        failures: Option<u64>,
    ) -> Result<Ticket, AppendError> {
        let limit = self.options.max_record_bytes();
        let (count, mut bytes) = (records.len(), 0_u64);
        for record in records.iter() {
            if record.head.len() > MAX_HEAD_BYTES {
                return Err(AppendError::TooLarge {
                    bytes: record.head.len() as u64,
                    limit: MAX_HEAD_BYTES as u64,
                });
            }
            let own = (record.head.len() + record.body.len()) as u64;
            if own > limit {
                return Err(AppendError::TooLarge { bytes: own, limit });
            }
            bytes += encoded_bytes(record);
        }
        if count == 0 {
            return Err(AppendError::Empty);
        }
        // What no group could hold is not to be tried again.
        let group = self.options.max_group_bytes - GROUP_HEAD_BYTES as u64;
        if bytes > group || count > self.options.queue_records {
            return Err(AppendError::TooLarge { bytes, limit: group });
        }
        self.lock().refuse(&self.options, lane.index(), count, bytes)?;

        // Checksums are the appender's work and are done outside the lock, so they use as many cores as there are appenders.
        let (promise, ticket) = Ticket::promised();
        // At worst it lies in a group of its own.
        let reserved = page_up(bytes + GROUP_HEAD_BYTES as u64);
        let records = records.map(Summed::from);
        let pending = Pending { records, bytes, reserved, promise };

        let mut state = self.lock();
        if let Err(refusal) = state.refuse(&self.options, lane.index(), count, bytes) {
            drop(state);
            return Err(refusal);
        }
        if failures.is_some_and(|failures| failures != self.failures(lane.index())) {
            drop(state);
            return Err(AppendError::Overtakes);
        }
        state.queued_bytes += bytes;
        state.queued_records += count;
        state.reserved += reserved;
        state.lanes[lane.index()].queue.push_back(pending);
        if state.owner_idle {
            state.owner_idle = false;
            drop(state);
            self.work.notify_one();
        }
        Ok(ticket)
    }
}

impl State {
    /// Whether, and why, an append of `count` records and `bytes` encoded bytes is refused now.
    pub(crate) fn refuse(
        &self,
        options: &Options,
        lane: usize,
        count: usize,
        bytes: u64,
    ) -> Result<(), AppendError> {
        if self.closing {
            return Err(AppendError::Closed);
        }
        let Some(here) = self.lanes.get(lane) else {
            return Err(AppendError::NoLane { lane: Lane::from_index(lane).unwrap_or_default() });
        };
        if here.poisoned {
            return Err(AppendError::Poisoned);
        }
        let over = self.queued_records + count > options.queue_records
            || self.queued_bytes + bytes > options.queue_bytes;
        if over && self.queued_records > 0 {
            return Err(AppendError::QueueFull { records: self.queued_records, bytes: self.queued_bytes });
        }
        let (needed, available) = (page_up(bytes + GROUP_HEAD_BYTES as u64), self.available(options, lane));
        if needed > available {
            return Err(AppendError::Full { needed, available });
        }
        Ok(())
    }

    /// Bytes that an append to `lane` can count on.
    pub(crate) fn available(&self, options: &Options, lane: usize) -> u64 {
        // A survey of a folder that was never worked in has no lanes.
        let room = self.lanes.get(lane).and_then(|lane| lane.room).unwrap_or(0);
        let spares: usize =
            self.lanes.iter().map(|lane| lane.spares.len() + usize::from(lane.preparing)).sum();
        let unallocated = if self.disk_full {
            0
        } else {
            options.max_bytes.saturating_sub(self.allocated) / options.segment_bytes
        };
        // One segment is kept back: a group that does not fit leaves the rest of its segment unused, and what was admitted
        // must still find room.
        let segments = (spares as u64 + unallocated).saturating_sub(1);
        (room + segments * options.usable_segment_bytes()).saturating_sub(self.reserved)
    }

    /// Removes the wakers of those whose wait is over. The caller wakes them after it has let go of the lock.
    #[must_use]
    pub(crate) fn ready(&mut self, options: &Options) -> Vec<Waker> {
        if self.waiters.is_empty() {
            return Vec::new();
        }
        let over: Vec<u64> = self
            .waiters
            .iter()
            .filter(|(_, waiter)| self.is_over(options, waiter.until))
            .map(|(id, _)| *id)
            .collect();
        over.iter().filter_map(|id| self.waiters.remove(id)).map(|waiter| waiter.waker).collect()
    }

    pub(crate) fn is_over(&self, options: &Options, until: Until) -> bool {
        match until {
            Until::Durable { lane, position } => {
                self.closed || self.lanes.get(lane).is_none_or(|lane| lane.end > position)
            }
            Until::Room { lane, records, bytes } => !matches!(
                self.refuse(options, lane, records, bytes),
                Err(AppendError::QueueFull { .. } | AppendError::Full { .. })
            ),
        }
    }

    pub(crate) fn register(&mut self, id: Option<u64>, until: Until, waker: &Waker) -> u64 {
        let id = id.unwrap_or_else(|| {
            self.next_waiter += 1;
            self.next_waiter
        });
        self.waiters.insert(id, Waiter { until, waker: waker.clone() });
        id
    }

    pub(crate) fn forget(&mut self, id: u64) {
        self.waiters.remove(&id);
    }
}

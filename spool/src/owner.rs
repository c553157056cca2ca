//! The owner: the one thread that writes. It gathers what waits into a group per lane, writes the groups, syncs the lanes it
//! touched, and only then answers.

use crate::cursor::CursorFile;
use crate::error::NotDurable;
use crate::format::{
    ENTRY_BYTES, Entry, GROUP_HEAD_BYTES, GroupHead, PAGE_BYTES, SegmentHeader, crc, mix, page_up,
};
use crate::fs::FileRef;
use crate::segment::{self, Go, spare_name, take_into_use};
use crate::shared::{Pending, Segment, Shared, Spare, State, Summed};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// How long the cursor on disk may lag behind while nothing is appended (a group carries it for nothing). What lies between is
/// delivered again after a power cut; a sync per acknowledgement would double the syncs of a quiet gateway.
const CURSOR_LAG: Duration = Duration::from_millis(250);

/// How long a full disk is taken for full before a new segment is tried again, if no segment has been given back before.
const FULL_DISK_PAUSE: Duration = Duration::from_secs(1);

/// Spare segments kept per lane: one to roll to, and one for when readers catch up over a boundary.
const MAX_SPARES: usize = 2;

/// Where groups have this size and more on average, spare segments are made without zeroes. A sync that has to record which blocks were
/// written took a sixth longer at 4 KiB and two thirds longer at 1 MiB, where the zeroes had taken longer than all of that.
const LARGE_GROUP_BYTES: u64 = 256 * 1024;

/// Records of this size and more go to the disk from where they lie; smaller ones are copied together first, which costs less
/// than a slice each.
const SLICE_BYTES: u64 = 4 * 1024;

pub(crate) struct Owner {
    shared: Arc<Shared>,
    lanes: Vec<Writer>,
    /// The bytes of a group that are not written from where they lie.
    buffer: Vec<u8>,
    dirty_since: Option<Instant>,
    full_since: Option<Instant>,
}

/// The writing side of a lane.
pub(crate) struct Writer {
    pub(crate) active: Option<Active>,
    pub(crate) cursor: CursorFile,
    /// The last attempt failed; a second failure in a row poisons the lane.
    pub(crate) failing: bool,
}

/// The segment that is written to.
pub(crate) struct Active {
    pub(crate) file: FileRef,
    pub(crate) salt: u64,
    pub(crate) offset: u64,
}

/// What the owner has to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    Commit,
    Cursors,
    RetryFull,
    Close,
}

/// A group on its way.
struct Flight {
    lane: usize,
    first: u64,
    cursor: u64,
    pending: Vec<Pending>,
    bytes: u64,
    outcome: io::Result<()>,
}

impl Flight {
    fn records(&self) -> impl Iterator<Item = &Summed> {
        self.pending.iter().flat_map(|one| one.records.iter())
    }

    fn count(&self) -> usize {
        self.pending.iter().map(|one| one.records.len()).sum()
    }
}

enum RollError {
    Full,
    Disk(io::ErrorKind),
}

impl From<io::Error> for RollError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
            kind => Self::Disk(kind),
        }
    }
}

impl Owner {
    pub(crate) fn new(shared: Arc<Shared>, lanes: Vec<Writer>) -> Self {
        Self { shared, lanes, buffer: Vec::new(), dirty_since: None, full_since: None }
    }

    /// Runs until the spool is closed.
    pub(crate) fn run(mut self) -> Result<(), io::ErrorKind> {
        loop {
            match self.wait_for_work() {
                Work::Commit => self.commit(),
                Work::Cursors => {
                    self.save_cursors();
                }
                Work::RetryFull => self.retry_full(),
                Work::Close => return self.close(),
            }
        }
    }

    fn wait_for_work(&mut self) -> Work {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        state.busy_since = None;
        loop {
            if let Some(work) = self.work(&state) {
                state.busy_since = Some(Instant::now());
                return work;
            }
            let now = Instant::now();
            if !state.lanes.iter().any(|lane| lane.cursor > lane.cursor_saved) {
                self.dirty_since = None;
            } else if self.dirty_since.is_none() {
                self.dirty_since = Some(now);
            }
            let deadline = [
                self.dirty_since.map(|since| (since + CURSOR_LAG, Work::Cursors)),
                self.full_since.map(|since| (since + FULL_DISK_PAUSE, Work::RetryFull)),
            ]
            .into_iter()
            .flatten()
            .min_by_key(|(at, _)| *at);
            state.owner_idle = true;
            state = match deadline {
                Some((at, work)) if at <= now => {
                    state.owner_idle = false;
                    state.busy_since = Some(now);
                    return work;
                }
                Some((at, _)) => {
                    shared.work.wait_timeout(state, at - now).unwrap_or_else(PoisonError::into_inner).0
                }
                None => shared.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
            state.owner_idle = false;
        }
    }

    /// What is to be done at once.
    pub(crate) fn work(&self, state: &State) -> Option<Work> {
        if state.lanes.iter().any(|lane| !lane.queue.is_empty()) {
            Some(Work::Commit)
        } else if state.closing {
            Some(Work::Close)
        } else if state
            .lanes
            .iter()
            .any(|lane| lane.reclaimable(lane.cursor) && !lane.reclaimable(lane.cursor_saved))
        {
            Some(Work::Cursors)
        } else {
            None
        }
    }

    /// One group for each lane that has something waiting: write all, sync all, answer all.
    pub(crate) fn commit(&mut self) {
        let mut flights = Vec::with_capacity(self.lanes.len());
        for lane in 0..self.lanes.len() {
            if let Some(mut flight) = self.take(lane) {
                flight.outcome = self.write(&flight);
                flights.push(flight);
            }
        }
        let (mut synced, mut failed, mut took) = (0, 0, Vec::new());
        for flight in flights.iter_mut().filter(|flight| flight.outcome.is_ok()) {
            if let Some(active) = &self.lanes[flight.lane].active {
                // Why: this is what a ticket promises.
                let began = Instant::now();
                flight.outcome = active.file.sync_data();
                took.push(began.elapsed());
                synced += 1;
                failed += u64::from(flight.outcome.is_err());
            }
        }
        {
            let mut state = self.shared.lock();
            state.counters.syncs += synced;
            state.counters.failed_syncs += failed;
            took.into_iter().for_each(|time| state.counters.sync_times.add(time));
        }
        for flight in flights {
            self.land(flight);
        }
        self.reclaim();
    }

    /// Takes the next group of a lane out of its queue, with a place to write it to.
    fn take(&mut self, lane: usize) -> Option<Flight> {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        let needed = page_up(GROUP_HEAD_BYTES as u64 + state.lanes[lane].queue.front()?.bytes);
        if state.lanes[lane].room.is_none_or(|room| room < needed) {
            drop(state);
            if let Err(error) = self.roll(lane) {
                self.refuse_all(lane, &error);
                return None;
            }
            state = shared.lock();
        }
        let State { lanes, reserved, .. } = &mut *state;
        let here = &mut lanes[lane];
        let room = here.room.unwrap_or(0);
        let limit = room.min(shared.options.max_group_bytes);
        let mut bytes = GROUP_HEAD_BYTES as u64;
        let mut pending = Vec::with_capacity(here.queue.len().min(1024));
        while let Some(next) = here.queue.front() {
            if bytes + next.bytes > limit {
                break;
            }
            bytes += next.bytes;
            *reserved -= next.reserved;
            pending.extend(here.queue.pop_front());
        }
        here.room = Some(room - page_up(bytes));
        here.groups += 1;
        here.group_bytes += bytes;
        // Half of the segment is left to make the next one in.
        let low = room < shared.options.usable_segment_bytes() / 2 && !here.spare_failed;
        if low && here.spares.is_empty() && !here.wants_spare && !here.preparing {
            here.wants_spare = true;
            shared.prepare.notify_one();
        }
        let (first, cursor) = (here.end, here.cursor);
        Some(Flight { lane, first, cursor, pending, bytes, outcome: Ok(()) })
    }

    /// Lays out a group and writes it, padded to whole pages.
    fn write(&mut self, flight: &Flight) -> io::Result<()> {
        let Some(active) = &mut self.lanes[flight.lane].active else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let count = flight.count();
        let table = GROUP_HEAD_BYTES + count * ENTRY_BYTES;
        let heads: usize = flight.records().map(|one| one.record.head.len()).sum();
        let prefix = table + heads;
        // The sizes fit: a group is at most 1 GiB (checked with the options).
        let small =
            |value: usize| u32::try_from(value).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge));

        let buffer = &mut self.buffer;
        buffer.clear();
        buffer.resize(table, 0);
        let (mut head_at, mut body_at) = (table, prefix);
        for (index, one) in flight.records().enumerate() {
            let record = &one.record;
            let entry = Entry {
                position: flight.first + index as u64,
                at_ms: record.at_ms,
                kind: record.kind,
                head_at: small(head_at)?,
                head_bytes: small(record.head.len())?,
                body_at: small(body_at)?,
                body_bytes: small(record.body.len())?,
                head_crc: one.head_crc,
                body_crc: one.body_crc,
            };
            entry.encode(active.salt, &mut buffer[GROUP_HEAD_BYTES + index * ENTRY_BYTES..][..ENTRY_BYTES]);
            buffer.extend_from_slice(&record.head);
            head_at += record.head.len();
            body_at += record.body.len();
        }
        let head = GroupHead {
            salt: active.salt,
            first: flight.first,
            // All before this group is durable: it is written only now that the sync of the one before has returned.
            durable: flight.first,
            cursor: flight.cursor,
            count: small(count)?,
            bytes: small(body_at)?,
            prefix: small(prefix)?,
            entries_crc: crc(&buffer[GROUP_HEAD_BYTES..table]),
        };
        head.encode(&mut buffer[..GROUP_HEAD_BYTES]);

        let padded = page_up(flight.bytes);
        let padding = (padded - flight.bytes) as usize;
        if flight.bytes / count as u64 >= SLICE_BYTES {
            let zeroes = [0; PAGE_BYTES as usize];
            let mut slices = Vec::with_capacity(count + 2);
            slices.push(IoSlice::new(buffer));
            slices.extend(flight.records().map(|one| IoSlice::new(&one.record.body)));
            slices.push(IoSlice::new(&zeroes[..padding]));
            active.file.write_slices_at(&mut slices, active.offset)?;
        } else {
            for one in flight.records() {
                buffer.extend_from_slice(&one.record.body);
            }
            buffer.resize(buffer.len() + padding, 0);
            active.file.write_at(buffer, active.offset)?;
        }
        active.offset += padded;
        Ok(())
    }

    /// Publishes a durable group, or gives up the segment of a failed one.
    fn land(&mut self, flight: Flight) {
        let writer = &mut self.lanes[flight.lane];
        let error = match &flight.outcome {
            Ok(()) => {
                writer.failing = false;
                None
            }
            Err(error) => {
                // A failed sync is final: the kernel may have dropped the pages and called them clean, and a second sync of
                // this descriptor would say that all is well.
                writer.active = None;
                Some(error.kind())
            }
        };
        let strikes = error.is_some() && std::mem::replace(&mut writer.failing, true);
        let offset = writer.active.as_ref().map(|active| active.offset);

        let mut state = self.shared.lock();
        let count = flight.count();
        state.queued_bytes -= flight.pending.iter().map(|one| one.bytes).sum::<u64>();
        state.queued_records -= count;
        let mut dropped = VecDeque::new();
        if error.is_none() {
            state.counters.groups += 1;
            state.counters.appended_records += count as u64;
            let here = &mut state.lanes[flight.lane];
            here.end = flight.first + count as u64;
            here.cursor_saved = here.cursor_saved.max(flight.cursor);
            let end = here.end;
            if let (Some(segment), Some(offset)) = (here.segments.back_mut(), offset) {
                segment.end = end;
                segment.end_offset = offset;
            }
        } else {
            self.shared.fail(flight.lane);
            let here = &mut state.lanes[flight.lane];
            here.room = None;
            here.poisoned |= strikes;
            if let Some(segment) = here.segments.back_mut() {
                segment.spent = true;
            }
            // Those behind it in the queue waited for an order that no longer holds.
            dropped = state.empty_queue(flight.lane);
        }
        let ready = state.ready(&self.shared.options);
        drop(state);

        let why = error.map(|kind| NotDurable::Disk { kind });
        let mut position = flight.first;
        for one in flight.pending {
            let records = one.records.len() as u64;
            match why {
                None => one.promise.keep(crate::Position(position)),
                Some(why) => one.promise.fail(why),
            }
            position += records;
        }
        for one in dropped {
            one.promise.fail(why.unwrap_or(NotDurable::Closed));
        }
        self.shared.moved.notify_all();
        ready.into_iter().for_each(std::task::Waker::wake);
    }

    /// Begins the next segment of a lane.
    fn roll(&mut self, lane: usize) -> Result<(), RollError> {
        let shared = Arc::clone(&self.shared);
        if self.shared.lock().lanes[lane].poisoned {
            return Err(RollError::Disk(io::ErrorKind::Other));
        }
        let (dir, number, first, spare) = {
            let mut state = shared.lock();
            while state.lanes[lane].preparing {
                // What is left of the zeroes would take the disk longer than whoever waits for this append may have to.
                state.lanes[lane].hurried = true;
                state = shared.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let spare = state.lanes[lane].spares.pop_front();
            let here = &mut state.lanes[lane];
            let number = here.next_number;
            here.next_number += 1;
            (here.dir.clone(), number, here.end, spare)
        };
        let bytes = shared.options.segment_bytes;
        let spare = match spare {
            Some(spare) => spare,
            None => {
                self.allocate()?;
                match segment::made(&*shared.fs, &dir, "fresh", bytes, &|| Go::Enough) {
                    Ok(Some((name, file))) => Spare { name, file },
                    Ok(None) => return Err(RollError::Disk(io::ErrorKind::Interrupted)),
                    Err(error) => {
                        shared.lock().allocated -= bytes;
                        return Err(error.into());
                    }
                }
            }
        };
        let salt = mix(mix(shared.options.salt ^ number) ^ (lane as u64) << 56 ^ first);
        let header = SegmentHeader { lane: lane as u8, number, salt, first, bytes };
        let name = match take_into_use(&*shared.fs, &dir, &spare.name, &spare.file, &header) {
            Ok(name) => name,
            Err(error) => {
                // Under one name or the other; what cannot be removed now is removed at the next open.
                let _ = shared.fs.remove(&dir.join(&spare.name));
                let _ = shared.fs.remove(&dir.join(segment::segment_name(number)));
                shared.lock().allocated -= bytes;
                return Err(error.into());
            }
        };
        self.lanes[lane].active = Some(Active { file: Arc::clone(&spare.file), salt, offset: PAGE_BYTES });
        let mut state = shared.lock();
        state.without_segment = false;
        let here = &mut state.lanes[lane];
        here.room = Some(bytes - PAGE_BYTES);
        (here.groups, here.group_bytes) = (0, 0);
        here.spare_failed = false;
        let (file, end_offset) = (spare.file, PAGE_BYTES);
        here.segments.push_back(Segment {
            number,
            name,
            file,
            salt,
            first,
            end: first,
            end_offset,
            bytes,
            spent: false,
        });
        Ok(())
    }

    /// Finds room in the budget for one more segment file, in another lane's spares if need be.
    fn allocate(&self) -> Result<(), RollError> {
        let bytes = self.shared.options.segment_bytes;
        let mut state = self.shared.lock();
        if state.allocated + bytes > self.shared.options.max_bytes {
            let Some(donor) = state.lanes.iter_mut().find(|lane| !lane.spares.is_empty()) else {
                return Err(RollError::Full);
            };
            let path = donor.spares.pop_back().map(|spare| donor.dir.join(spare.name));
            drop(state);
            if let Some(path) = path {
                self.shared.fs.remove(&path)?;
            }
            return Ok(());
        }
        state.allocated += bytes;
        Ok(())
    }

    /// There is no segment to write to: fails everyone who waits in the lane.
    fn refuse_all(&mut self, lane: usize, error: &RollError) {
        let mut state = self.shared.lock();
        let why = match error {
            RollError::Full => {
                state.disk_full = true;
                state.without_segment = true;
                self.full_since = Some(Instant::now());
                NotDurable::Full
            }
            RollError::Disk(kind) => {
                state.lanes[lane].poisoned |= std::mem::replace(&mut self.lanes[lane].failing, true);
                if state.lanes[lane].poisoned {
                    NotDurable::Poisoned
                } else {
                    NotDurable::Disk { kind: *kind }
                }
            }
        };
        self.shared.fail(lane);
        let dropped = state.empty_queue(lane);
        let ready = state.ready(&self.shared.options);
        drop(state);
        for one in dropped {
            one.promise.fail(why);
        }
        self.shared.moved.notify_all();
        ready.into_iter().for_each(std::task::Waker::wake);
    }

    pub(crate) fn retry_full(&mut self) {
        self.full_since = None;
        let mut state = self.shared.lock();
        state.disk_full = false;
        let ready = state.ready(&self.shared.options);
        drop(state);
        self.shared.moved.notify_all();
        ready.into_iter().for_each(std::task::Waker::wake);
    }

    /// Writes down how far each lane has been acknowledged, and gives up what lies before.
    pub(crate) fn save_cursors(&mut self) -> Option<io::ErrorKind> {
        self.dirty_since = None;
        let mut failed = None;
        for (lane, writer) in self.lanes.iter_mut().enumerate() {
            let (cursor, saved, end) = {
                let state = self.shared.lock();
                let here = &state.lanes[lane];
                (here.cursor, here.cursor_saved, here.end)
            };
            if cursor > saved {
                match writer.cursor.save(&*self.shared.fs, cursor, end) {
                    Ok(()) => self.shared.lock().lanes[lane].cursor_saved = cursor,
                    Err(error) => failed = Some(error.kind()),
                }
            }
        }
        self.reclaim();
        failed
    }

    /// Turns fully acknowledged segments into spares, or removes them. Only a cursor that is durable itself counts: after a
    /// crash nobody must look for records that are gone.
    fn reclaim(&mut self) {
        let shared = Arc::clone(&self.shared);
        let mut freed = false;
        for lane in 0..self.lanes.len() {
            let (dir, gone, keep) = {
                let mut state = shared.lock();
                let here = &mut state.lanes[lane];
                let mut gone = Vec::new();
                while here.reclaimable(here.cursor_saved) {
                    gone.extend(here.segments.pop_front());
                }
                (here.dir.clone(), gone, MAX_SPARES.saturating_sub(here.spares.len()))
            };
            if gone.is_empty() {
                continue;
            }
            let mut kept = Vec::new();
            let mut removed = 0;
            for segment in gone {
                let path = dir.join(&segment.name);
                let spare = spare_name(segment.number);
                let again =
                    kept.len() < keep && !segment.spent && segment.bytes == shared.options.segment_bytes;
                if again && shared.fs.rename(&path, &dir.join(&spare)).is_ok() {
                    kept.push(Spare { name: spare, file: segment.file });
                } else if shared.fs.remove(&path).is_ok() {
                    removed += segment.bytes;
                }
                // Otherwise the file stays, counted, until the next open: its records are below the cursor.
            }
            // Why: a spare must not come back as a segment once its bytes are written over.
            if shared.fs.sync_dir(&dir).is_err() {
                for spare in kept.drain(..) {
                    if shared.fs.remove(&dir.join(&spare.name)).is_ok() {
                        removed += shared.options.segment_bytes;
                    }
                }
            }
            freed |= removed > 0 || !kept.is_empty();
            let mut state = shared.lock();
            state.allocated -= removed;
            state.lanes[lane].spares.extend(kept);
        }
        if freed {
            self.shared.lock().without_segment = false;
            self.retry_full();
        }
    }

    /// The end: all tickets are answered by now. Leaves a mark of what is durable, so that the next open can tell damage in
    /// the last group from a torn one.
    pub(crate) fn close(mut self) -> Result<(), io::ErrorKind> {
        let mut failed = None;
        for (lane, writer) in self.lanes.iter_mut().enumerate() {
            let (cursor, end) = {
                let state = self.shared.lock();
                (state.lanes[lane].cursor, state.lanes[lane].end)
            };
            let last = writer.cursor.last();
            if (last.cursor, last.durable) != (cursor, end) {
                match writer.cursor.save(&*self.shared.fs, cursor, end) {
                    Ok(()) => self.shared.lock().lanes[lane].cursor_saved = cursor,
                    Err(error) => failed = Some(error.kind()),
                }
            }
        }
        self.reclaim();
        failed.map_or(Ok(()), Err)
    }

    /// The first segment of each lane that has none, as far as the disk allows.
    pub(crate) fn begin(&mut self) -> io::Result<()> {
        for lane in 0..self.lanes.len() {
            if self.shared.lock().lanes[lane].segments.is_empty() {
                self.roll(lane).map_err(|error| match error {
                    RollError::Full => io::Error::from(io::ErrorKind::StorageFull),
                    RollError::Disk(kind) => kind.into(),
                })?;
            }
        }
        Ok(())
    }
}

impl Drop for Owner {
    // Also when the thread falls over: nobody waits for an owner that is gone.
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closing = true;
        state.closed = true;
        let dropped: Vec<_> = (0..state.lanes.len()).map(|lane| state.empty_queue(lane)).collect();
        let ready = state.ready(&self.shared.options);
        drop(state);
        drop(dropped);
        self.shared.moved.notify_all();
        self.shared.prepare.notify_all();
        ready.into_iter().for_each(std::task::Waker::wake);
    }
}

impl State {
    /// Takes everything out of a lane's queue. The caller answers, without the lock.
    fn empty_queue(&mut self, lane: usize) -> VecDeque<Pending> {
        let dropped = std::mem::take(&mut self.lanes[lane].queue);
        for one in &dropped {
            self.queued_bytes -= one.bytes;
            self.queued_records -= one.records.len();
            self.reserved -= one.reserved;
        }
        dropped
    }
}

impl crate::shared::LaneState {
    /// Whether the oldest segment is behind `cursor` altogether, and not the last one.
    pub(crate) fn reclaimable(&self, cursor: u64) -> bool {
        self.segments.len() > 1 && self.segments.front().is_some_and(|front| front.end <= cursor)
    }
}

/// Makes spare segments ahead of time, on a thread of its own: a segment of zeroes takes the disk longer than an append may. Where groups are
/// large it writes none: that would halve what the disk takes, and what it saves at each sync is little beside the group.
pub(crate) struct Preparer {
    shared: Arc<Shared>,
    next: u64,
}

impl Preparer {
    /// Names of spares made here have the highest bit set, those of old segments have not.
    const MADE: u64 = 1 << 63;

    pub(crate) fn new(shared: Arc<Shared>, taken: u64) -> Self {
        Self { shared, next: (taken & !Self::MADE) + 1 }
    }

    pub(crate) fn run(mut self) {
        loop {
            let shared = Arc::clone(&self.shared);
            let mut state = shared.lock();
            let lane = loop {
                if state.closing {
                    return;
                }
                if let Some(lane) = state.lanes.iter().position(|lane| lane.wants_spare) {
                    break lane;
                }
                state = shared.prepare.wait(state).unwrap_or_else(PoisonError::into_inner);
            };
            drop(state);
            self.prepare(lane);
        }
    }

    /// Makes a spare for `lane` if it wants one and the budget has room for it beside the segment that is kept back.
    pub(crate) fn prepare(&mut self, lane: usize) {
        let shared = Arc::clone(&self.shared);
        let bytes = shared.options.segment_bytes;
        let (dir, large) = {
            let mut state = shared.lock();
            let fits = state.allocated + 2 * bytes <= shared.options.max_bytes && !state.disk_full;
            let here = &mut state.lanes[lane];
            if !std::mem::take(&mut here.wants_spare) || !here.spares.is_empty() || !fits {
                return;
            }
            here.preparing = true;
            here.hurried = false;
            let large = here.groups > 0 && here.group_bytes >= here.groups * LARGE_GROUP_BYTES;
            let dir = here.dir.clone();
            state.allocated += bytes;
            (dir, large)
        };
        let go = || {
            let state = shared.lock();
            match state.lanes[lane].hurried {
                _ if state.closing => Go::Away,
                hurried if hurried || large => Go::Enough,
                _ => Go::On,
            }
        };
        let name = spare_name(Self::MADE | self.next);
        self.next += 1;
        let made = segment::made(&*shared.fs, &dir, &name, bytes, &go);
        let made = made.and_then(|made| {
            let Some((unfinished, file)) = made else { return Ok(None) };
            shared.fs.rename(&dir.join(unfinished), &dir.join(&name))?;
            Ok(Some(Spare { name, file }))
        });
        let mut state = shared.lock();
        state.lanes[lane].preparing = false;
        match made {
            Ok(Some(spare)) => state.lanes[lane].spares.push_back(spare),
            // Making one in time was a favour; whoever needs a segment meets the error himself.
            Ok(None) | Err(_) => {
                state.allocated -= bytes;
                state.lanes[lane].spare_failed = true;
            }
        }
        drop(state);
        shared.moved.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use bytes::Bytes;

    use crate::crash::CrashFs;
    use crate::options::Options;
    use crate::spool::assemble;
    use crate::{Lane, Record};

    /// What is written while a spare is made for a lane of which half a segment was filled with records of this size, one a group.
    fn written_for_a_spare(record_bytes: usize) -> (u64, u64) {
        let fs = CrashFs::new(7);
        let options = Options::outbox();
        let segment = options.segment_bytes;
        let parts = assemble(Arc::new(fs.clone()), Path::new("/spool"), options).unwrap();
        let (shared, mut owner, mut preparer) = (parts.shared, parts.owner, parts.preparer);
        let mut filled = 0;
        while filled <= segment / 2 {
            let record =
                Record { kind: 1, at_ms: 0, head: Bytes::new(), body: Bytes::from(vec![7; record_bytes]) };
            let _ticket = shared.append(Lane::from_index(0).unwrap(), vec![record]).unwrap();
            owner.commit();
            filled += record_bytes as u64;
        }
        let before = fs.disk().written;
        preparer.prepare(0);
        assert_eq!(shared.lock().lanes[0].spares.len(), 1, "none was made");
        let written = fs.disk().written - before;
        (written, segment)
    }

    #[test]
    fn an_append_that_has_overtaken_the_zeroes_does_not_wait_for_the_rest_of_them() {
        let fs = CrashFs::new(7);
        let parts = assemble(Arc::new(fs.clone()), Path::new("/spool"), Options::outbox()).unwrap();
        let (shared, mut owner, mut preparer) = (parts.shared, parts.owner, parts.preparer);
        shared.lock().lanes[0].wants_spare = true;
        let hanging = Arc::clone(&fs.disk().hanging);
        *hanging.0.lock().unwrap() = true;
        let before = fs.disk().written;
        std::thread::scope(|scope| {
            scope.spawn(|| preparer.prepare(0));
            // Its first step of zeroes hangs.
            while fs.disk().written == before {
                std::thread::yield_now();
            }
            scope.spawn(|| owner.roll(0).map_err(|_| "no segment").unwrap());
            while !shared.lock().lanes[0].hurried {
                std::thread::yield_now();
            }
            *hanging.0.lock().unwrap() = false;
            hanging.1.notify_all();
        });
        let written = fs.disk().written - before;
        assert!(written < 3 << 20, "{written} bytes: one step of zeroes and a header were enough");
    }

    #[test]
    fn spares_are_zeroed_for_small_groups_and_written_once_for_large_ones() {
        let (written, segment) = written_for_a_spare(1024);
        assert!(written >= segment, "{written} bytes are not all of it");
        let (written, _) = written_for_a_spare(512 * 1024);
        assert_eq!(written, 0);
    }
}

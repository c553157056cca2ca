//! Reading durable records in order, from a position on, without holding up the writer or the backlog's bytes.

use crate::error::ReadError;
use crate::format::PAGE_BYTES;
use crate::record::{Lane, Position, Record, RecordHead};
use crate::recover::is_still;
use crate::shared::{Segment, Shared};
use crate::wait::Changed;
use crate::walk::{Extent, Found};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::Arc;

/// The most record heads that one [`CorruptRange`] names.
pub const MAX_NAMED_HEADS: usize = 4096;

/// Positions whose records are lost to damage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CorruptRange {
    /// The lane.
    pub lane: Lane,
    /// The first lost position.
    pub from: Position,
    /// The first position after the range.
    pub to: Position,
    /// The heads that can still be read, at most [`MAX_NAMED_HEADS`]: who was lost.
    pub heads: Vec<RecordHead>,
}

impl CorruptRange {
    /// How many records are lost.
    #[must_use]
    pub const fn records(&self) -> u64 {
        self.to.0 - self.from.0
    }
}

/// Adds ranges to a list that grows by at most `room` ranges; ranges that follow each other become one. How many records
/// were lost in them, named or not.
pub(crate) fn join(ranges: &mut Vec<CorruptRange>, more: Vec<CorruptRange>, room: usize) -> u64 {
    let mut records = 0;
    for range in more {
        records += range.records();
        if let Some(last) = ranges.last_mut()
            && last.lane == range.lane
            && last.to == range.from
        {
            last.to = range.to;
            let heads = MAX_NAMED_HEADS.saturating_sub(last.heads.len());
            last.heads.extend(range.heads.into_iter().take(heads));
        } else if ranges.len() < room {
            ranges.push(range);
        }
    }
    records
}

/// Adds a damaged record to a list of ranges, which grow as long as their records follow each other.
pub(crate) fn note(ranges: &mut Vec<CorruptRange>, lane: Lane, position: u64, head: Option<RecordHead>) {
    if ranges.last().is_none_or(|last| last.to.0 != position) {
        ranges.push(CorruptRange {
            lane,
            from: Position(position),
            to: Position(position),
            heads: Vec::new(),
        });
    }
    if let Some(last) = ranges.last_mut() {
        last.to = Position(position + 1);
        if last.heads.len() < MAX_NAMED_HEADS {
            last.heads.extend(head);
        }
    }
}

/// What [`Reader::next_batch`] found. Both empty: nothing more is durable.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Batch {
    /// Records in order.
    pub records: Vec<(Position, Record)>,
    /// Records between and after those that are damaged and were stepped over.
    pub corrupt: Vec<CorruptRange>,
}

impl Batch {
    /// Nothing was found: wait with [`Reader::changed`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.corrupt.is_empty()
    }

    /// The last position that this batch speaks of, lost or not: what to acknowledge when all of it is dealt with.
    #[must_use]
    pub fn last(&self) -> Option<Position> {
        let lost = self.corrupt.last().map(|range| Position(range.to.0 - 1));
        self.records.last().map(|(position, _)| *position).max(lost)
    }
}

impl IntoIterator for Batch {
    type Item = (Position, Record);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.records.into_iter()
    }
}

/// Reads one lane from a position on. Holds at most one group in memory besides the batch it hands out. Any number of readers
/// may read at the same time; reading does not acknowledge.
///
/// Its methods read files, mostly from the page cache. An async caller that cannot afford a slow disk calls them on a thread
/// for blocking work.
pub struct Reader {
    scan: Scan,
}

impl Reader {
    pub(crate) fn new(shared: Arc<Shared>, lane: Lane, from: Position) -> Self {
        Self { scan: Scan::new(shared, lane, from, true) }
    }

    /// The position of the next record to be returned.
    #[must_use]
    pub const fn position(&self) -> Position {
        Position(self.scan.next)
    }

    /// Goes on at another position.
    pub fn seek(&mut self, position: Position) {
        self.scan.seek(position.0);
    }

    /// The next durable records, of at most `max_bytes` heads and bodies, but at least one if there is one. Damaged records
    /// are stepped over and named. Records before the oldest one that is kept are passed over without a word: they were
    /// acknowledged.
    ///
    /// # Errors
    /// When the disk does not give the bytes; the reader stays where it was. What was found before is returned first.
    pub fn next_batch(&mut self, max_bytes: usize) -> Result<Batch, ReadError> {
        let mut batch = Batch::default();
        let (mut bytes, mut lost) = (0, 0);
        loop {
            match self.scan.peek() {
                Ok(None) => break,
                Err(_) if !batch.is_empty() => break,
                Err(error) => return Err(error),
                Ok(Some(Found::Good { record, .. })) => {
                    let own = record.head.len() + record.body.len();
                    if !batch.records.is_empty() && bytes + own > max_bytes {
                        break;
                    }
                    bytes += own;
                }
                // A range is bounded like the rest, so that a ruined segment does not fill the memory with its names.
                Ok(Some(Found::Damaged { .. })) if lost >= MAX_NAMED_HEADS => break,
                Ok(Some(Found::Damaged { .. })) => lost += 1,
            }
            match self.scan.take() {
                Some(Found::Good { position, record, .. }) => {
                    batch.records.push((Position(position), record))
                }
                Some(Found::Damaged { position, head }) => {
                    note(&mut batch.corrupt, self.scan.lane, position, head)
                }
                None => break,
            }
        }
        if lost > 0 {
            self.scan.shared.lock().counters.corrupt_records += lost as u64;
        }
        Ok(batch)
    }

    /// Take what the disk refuses to give, at the next call of [`next_batch`](Self::next_batch), for damaged. For a reader
    /// that has met [`ReadError::Io`] at the same place again and again: what it steps over is lost once it is acknowledged.
    pub fn skip_unreadable(&mut self) {
        self.scan.tolerant = true;
    }

    /// Resolves when [`next_batch`](Self::next_batch) has something to return.
    pub fn changed(&self) -> Changed {
        Changed::new(Arc::clone(&self.scan.shared), self.scan.lane, self.position())
    }
}

impl Reader {
    /// How many bytes of the lane's written part lie before what was read last.
    pub(crate) fn offset(&self) -> u64 {
        self.scan.offset()
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("lane", &self.scan.lane).field("position", &self.scan.next).finish()
    }
}

/// Goes over the heads of all durable records from a position on, without reading bodies: for rebuilding what is known of
/// them. Damaged records are left out; [`Recovery`](crate::Recovery) has named them.
pub struct Heads {
    scan: Scan,
}

impl Heads {
    pub(crate) fn new(shared: Arc<Shared>, lane: Lane, from: Position) -> Self {
        let mut scan = Scan::new(shared, lane, from, false);
        scan.tolerant = true;
        Self { scan }
    }
}

impl Iterator for Heads {
    type Item = RecordHead;

    fn next(&mut self) -> Option<RecordHead> {
        loop {
            // Tolerant: what cannot be read is left out like what is damaged, so no error ends the iteration early.
            self.scan.tolerant = true;
            self.scan.peek().ok()??;
            if let Found::Good { position, record, body_bytes } = self.scan.take()? {
                let Record { kind, at_ms, head, .. } = record;
                return Some(RecordHead { position: Position(position), kind, at_ms, head, body_bytes });
            }
        }
    }
}

impl fmt::Debug for Heads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heads").field("lane", &self.scan.lane).field("position", &self.scan.next).finish()
    }
}

/// The position in a lane, where it lies on disk, and the rest of the group that was read last.
pub(crate) struct Scan {
    shared: Arc<Shared>,
    lane: Lane,
    next: u64,
    place: Option<Place>,
    loaded: VecDeque<Found>,
    bodies: bool,
    tolerant: bool,
}

/// The start of a group whose first record should have the position `expect`.
#[derive(Clone, Copy)]
struct Place {
    number: u64,
    offset: u64,
    expect: u64,
}

impl Scan {
    pub(crate) fn new(shared: Arc<Shared>, lane: Lane, from: Position, bodies: bool) -> Self {
        Self { shared, lane, next: from.0, place: None, loaded: VecDeque::new(), bodies, tolerant: false }
    }

    pub(crate) fn seek(&mut self, position: u64) {
        if position < self.next {
            self.place = None;
            self.loaded.clear();
        }
        while self.loaded.front().is_some_and(|found| found.position() < position) {
            self.loaded.pop_front();
        }
        self.next = position;
    }

    pub(crate) fn take(&mut self) -> Option<Found> {
        let found = self.loaded.pop_front()?;
        self.next = found.position() + 1;
        Some(found)
    }

    pub(crate) fn peek(&mut self) -> Result<Option<&Found>, ReadError> {
        if self.loaded.is_empty() {
            self.fill()?;
        }
        Ok(self.loaded.front())
    }

    fn offset(&self) -> u64 {
        let state = self.shared.lock();
        let Some(lane) = state.lanes.get(self.lane.index()) else { return 0 };
        // Nothing was read yet, or a segment was left behind: then the position says where.
        let here = |segment: &Segment| match &self.place {
            Some(place) => segment.number < place.number,
            None => segment.end <= self.next,
        };
        let before: u64 = lane.segments.iter().take_while(|one| here(one)).map(|one| one.end_offset).sum();
        before + self.place.map_or(0, |place| place.offset)
    }

    /// The segment that holds the next record, moving on over what was reclaimed.
    fn segment(&mut self) -> Result<Option<Segment>, ReadError> {
        let state = self.shared.lock();
        let Some(lane) = state.lanes.get(self.lane.index()) else {
            return Err(ReadError::NoLane { lane: self.lane });
        };
        // Only at the front: in between, segments follow each other without a gap. Why before looking for the segment: the
        // front one is empty when its first group failed to sync, and it would hide all that follows from who starts before it.
        self.next = self.next.max(lane.segments.front().map_or(0, |front| front.first));
        let at = lane.segments.partition_point(|segment| segment.end <= self.next);
        Ok(lane.segments.get(at).filter(|segment| segment.first < segment.end).cloned())
    }

    fn fill(&mut self) -> Result<(), ReadError> {
        while let Some(segment) = self.segment()? {
            let found = self.load(&segment);
            // A segment that was reclaimed meanwhile may already hold other bytes: what was read from it does not count. Its
            // records were acknowledged, so the way goes on behind it.
            let alive = if self.shared.foreign {
                is_still(&segment, self.lane)
            } else {
                let state = self.shared.lock();
                let segments = &state.lanes[self.lane.index()].segments;
                segments.iter().any(|one| one.number == segment.number && one.salt == segment.salt)
            };
            if !alive {
                self.place = None;
                self.next = self.next.max(segment.end);
                continue;
            }
            self.loaded = found.map_err(|source| ReadError::Io {
                lane: self.lane,
                position: Position(self.next),
                source,
            })?;
            self.tolerant = false;
            if !self.loaded.is_empty() {
                break;
            }
            // Cannot be while positions are dense; without this line it would be an endless loop.
            self.next = segment.end;
        }
        Ok(())
    }

    /// The records of the group that holds the next position, from that on.
    fn load(&mut self, segment: &Segment) -> io::Result<VecDeque<Found>> {
        let extent = Extent::of(segment, self.tolerant);
        let start = Place { number: segment.number, offset: PAGE_BYTES, expect: segment.first };
        let mut place = self
            .place
            .filter(|place| place.number == segment.number && place.expect <= self.next)
            .unwrap_or(start);
        while let Some(group) = extent.group(place.offset, place.expect)? {
            if group.end() > self.next {
                let mut found = VecDeque::from(extent.load(&group, self.bodies)?);
                while found.front().is_some_and(|one| one.position() < self.next) {
                    found.pop_front();
                }
                place.offset = group.end_offset();
                place.expect = group.end();
                self.place = Some(place);
                return Ok(found);
            }
            place.offset = group.end_offset();
            place.expect = group.end();
        }
        Ok(VecDeque::new())
    }
}

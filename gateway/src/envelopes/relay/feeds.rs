//! What goes out next: a reader per lane, some of what each has read, and whose turn it is.

use std::collections::VecDeque;

use futures_util::FutureExt as _;
use futures_util::future::{self, select_all};
use pithead_spool::{Closed, CorruptRange, Lane, Position, ReadError, Record};

use super::super::lanes::LANES;
use super::super::spool::{EnvelopeSpool, Reader};
use super::turns::Turns;

/// Read from a lane at a time: some batches of the wire.
const READ_BYTES: usize = 1 << 20;

pub(super) struct Feeds {
    lanes: [Feed; LANES],
    turns: Turns,
}

struct Feed {
    lane: Lane,
    /// Away only while it reads.
    reader: Option<Reader>,
    waiting: VecDeque<(Position, Record)>,
    /// The highest place that was taken.
    taken: Option<Position>,
}

impl Feeds {
    /// Reads each lane from where `from` says. A tolerant one takes the first record that the disk does not give for damaged.
    pub(super) fn new(
        spool: &EnvelopeSpool,
        mut from: impl FnMut(Lane) -> Position,
        tolerant: Option<Lane>,
    ) -> Self {
        let lanes = Lane::ALL.map(|lane| {
            let mut reader = spool.reader_at(lane, from(lane));
            if tolerant == Some(lane) {
                reader.skip_unreadable();
            }
            Feed { lane, reader: Some(reader), waiting: VecDeque::new(), taken: None }
        });
        Self { lanes, turns: Turns::default() }
    }

    fn first(&self) -> [Option<u64>; LANES] {
        // Custody and a place in the tables cost something even where an envelope is empty.
        self.lanes
            .each_ref()
            .map(|feed| feed.waiting.front().map(|(_, record)| record.body.len().max(1) as u64))
    }

    /// Whose turn it is, and how many bytes its first envelope has.
    pub(super) fn next(&self) -> Option<(Lane, u64)> {
        let lane = self.turns.next(&self.first())?;
        let feed = &self.lanes[lane];
        feed.waiting.front().map(|(_, record)| (feed.lane, record.body.len() as u64))
    }

    /// Takes the first envelope of a lane: it goes out.
    pub(super) fn take(&mut self, lane: Lane) -> Option<(Position, Record)> {
        self.turns.sent(lane.index(), &self.first());
        let feed = &mut self.lanes[lane.index()];
        let (position, record) = feed.waiting.pop_front()?;
        feed.taken = feed.taken.max(Some(position));
        Some((position, record))
    }

    /// True if what is taken next from a lane was taken before, and put back.
    pub(super) fn is_put_back(&self, lane: Lane) -> bool {
        let feed = &self.lanes[lane.index()];
        feed.waiting.front().is_some_and(|(position, _)| Some(*position) <= feed.taken)
    }

    /// It does not go out after all.
    pub(super) fn put_back(&mut self, lane: Lane, position: Position, record: Record) {
        self.lanes[lane.index()].waiting.push_front((position, record));
    }

    /// True if nothing of the lane has been read that was not taken.
    pub(super) fn is_empty(&self, lane: Lane) -> bool {
        self.lanes[lane.index()].waiting.is_empty()
    }

    /// A lane of which nothing is at hand, and where something can be read.
    pub(super) fn at_once(&self) -> Option<Lane> {
        self.readable().now_or_never()?.ok()
    }

    /// Resolves when something can be read of a lane of which nothing is at hand.
    pub(super) async fn readable(&self) -> Result<Lane, Closed> {
        let waits = self.lanes.iter().filter(|feed| feed.waiting.is_empty()).filter_map(|feed| {
            let lane = feed.lane;
            Some(feed.reader.as_ref()?.changed().map(move |changed| changed.map(|()| lane)))
        });
        let waits: Vec<_> = waits.collect();
        if waits.is_empty() {
            return future::pending().await;
        }
        select_all(waits).await.0
    }

    /// Reads on in a lane, off the async threads: a disk may be slow. Gives what is damaged there.
    pub(super) async fn read(&mut self, lane: Lane) -> Result<Vec<CorruptRange>, ReadError> {
        let feed = &mut self.lanes[lane.index()];
        let Some(mut reader) = feed.reader.take() else { return Ok(Vec::new()) };
        let read = tokio::task::spawn_blocking(move || {
            let batch = reader.next_batch(READ_BYTES);
            (reader, batch)
        });
        // A reader that panicked is gone, and its lane waits for the next call.
        let Ok((reader, batch)) = read.await else { return Ok(Vec::new()) };
        feed.reader = Some(reader);
        let batch = batch?;
        feed.waiting.extend(batch.records);
        Ok(batch.corrupt)
    }

    /// Lanes of which everything that was read was taken, and how far that is: past what is damaged at its end.
    pub(super) fn used_up(&self) -> impl Iterator<Item = (Lane, Position)> + '_ {
        let empty = self.lanes.iter().filter(|feed| feed.waiting.is_empty());
        empty.filter_map(|feed| Some((feed.lane, feed.reader.as_ref()?.position())))
    }
}

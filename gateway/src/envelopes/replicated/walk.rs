//! Reading a lane in order, message by message, from whatever thread.
//!
//! What does not lie where its writer meant it to is void; what is damaged or gone is stepped over, and the positions that are missing
//! then show in the next group that is whole: they are named as lost. One leap is none: whoever took over and could not read the end of the
//! lane has left room, and says so in its group ([`Stamp::room`](super::group::Stamp)); where everything before that reads after all,
//! nothing is missing.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use pithead_spool::{Batch, Closed, CorruptRange, Lane, Position, ReadError, RecordHead};

use super::broker::Fault;
use super::cell::{By, Pause};
use super::group::{Found, Group, Message};
use super::{LaneState, Place, Shared, Until};
use crate::envelopes::lanes;

/// What a lane that is gone through has in memory beside the group in hand: so many bytes, and what is on its way meanwhile.
const AHEAD_BYTES: usize = 4 << 20;
/// Messages, whatever their size.
const AHEAD_MAX: u64 = 64;
/// Messages that are on their way at one time. Each may be as large as a group gets.
const ASKED_AT_ONCE: usize = 8;
/// How often a message is asked for that the broker does not give, before whoever reads is told. It never counts as damaged: a broker that is
/// away now gives it later.
const TRIES: u32 = 10;
/// The most lost heads that are named at once.
const NAMED_MAX: usize = pithead_spool::MAX_NAMED_HEADS;

/// What was found at a place.
enum Step {
    Group(Met),
    /// Nothing more is known to stand here.
    End,
}

/// A group that was come to.
struct Met {
    sequence: u64,
    group: Group,
    /// Something between it and the group before it was stepped over, or it is the first of the walk.
    after_missing: bool,
}

/// Goes over the groups of a lane.
struct Walk {
    shared: Arc<Shared>,
    lane: Lane,
    /// The term that it belongs to: when that is over, nothing is known of the lane any more.
    by: Option<By>,
    /// The next message.
    sequence: Option<u64>,
    ahead: VecDeque<(u64, Bytes)>,
    /// Something was stepped over since the last group, or none was come to yet.
    missing: bool,
}

impl Walk {
    fn new(shared: Arc<Shared>, lane: Lane) -> Self {
        let by = shared.lock().term.as_ref().map(|term| term.by);
        Self { shared, lane, by, sequence: None, ahead: VecDeque::new(), missing: true }
    }

    /// What the term knows of the lane, if it is not over.
    fn lane<T>(&self, look: impl FnOnce(&LaneState) -> T) -> Result<T, Fault> {
        let state = self.shared.lock();
        let is_ours = self.by.is_some() && state.term.as_ref().map(|term| term.by) == self.by;
        match is_ours {
            true => Ok(look(&state.lanes[self.lane.index()])),
            false => Err(Fault::Unknown("another term has begun, or none".to_owned())),
        }
    }

    fn is_over(&self) -> bool {
        self.lane(|_| ()).is_err()
    }

    /// Has it begin anew at the message that holds a position, or at one before it.
    fn forget(&mut self) {
        self.sequence = None;
        self.ahead.clear();
        self.missing = true;
    }

    /// The next group. Blocks.
    fn step(&mut self, position: u64) -> Result<Step, Fault> {
        loop {
            let (place, last) = self.lane(|here| (here.index.floor(position), here.last))?;
            let sequence = match self.sequence {
                Some(sequence) => sequence,
                None => place.map_or(1, |place| place.sequence.max(1)),
            };
            if sequence > last {
                return Ok(Step::End);
            }
            if self.ahead.is_empty() {
                self.sequence = Some(sequence);
                self.ask(sequence, last)?;
                continue;
            }
            let Some((sequence, message)) = self.ahead.pop_front() else { continue };
            let bytes = message.len();
            let read = Message::decode(message);
            if let Message::OtherVersion(version) = read {
                // Stepped over it would be given back, and it is not lost: whoever can read it delivers it.
                self.forget();
                return Err(Fault::Unknown(format!(
                    "message {sequence} is of version {version}, which is not known here"
                )));
            }
            self.sequence = Some(sequence + 1);
            match read {
                Message::Group(group) if group.fits(self.lane, sequence) => {
                    let after_missing = std::mem::replace(&mut self.missing, false);
                    return Ok(Step::Group(Met { sequence, group, after_missing }));
                }
                Message::Group(group) => {
                    tracing::error!(
                        event = "spool.group_void",
                        lane = lanes::name(self.lane),
                        sequence,
                        expected = group.stamp.expected,
                        epoch = group.stamp.epoch,
                        "a message lies where its writer did not mean it to: the broker has appended without comparing"
                    );
                }
                Message::Damaged | Message::OtherVersion(_) => {
                    self.missing = true;
                    tracing::error!(
                        event = "spool.group_damaged",
                        lane = lanes::name(self.lane),
                        sequence,
                        bytes,
                    );
                }
            }
        }
    }

    /// Asks for the next messages, some times if the broker does not give them. What is gone is stepped over.
    fn ask(&mut self, from: u64, last: u64) -> Result<(), Fault> {
        let mut tries = 0;
        loop {
            match self.ask_once(from, last) {
                Err(_) if tries < TRIES && !self.is_over() => {
                    tries += 1;
                    let mut pause = Pause::default();
                    self.shared.block(async move { pause.wait().await });
                }
                answer => return answer,
            }
        }
    }

    fn ask_once(&mut self, from: u64, last: u64) -> Result<(), Fault> {
        let (shared, lane) = (self.shared.clone(), self.lane);
        let to = last.min(from + AHEAD_MAX - 1);
        let asked = self.shared.block(async move {
            // Asked for as they are taken.
            let reads = (from..=to).map(|sequence| shared.broker.read(lane, sequence));
            let mut reads = stream::iter(reads).buffered(ASKED_AT_ONCE);
            let (mut messages, mut bytes) = (VecDeque::new(), 0);
            let mut sequence = from;
            while bytes < AHEAD_BYTES
                && let Some(read) = reads.next().await
            {
                let message = match read {
                    Ok(Some(message)) => message,
                    // The first of them has to be there, or to be gone for good.
                    Ok(None) if messages.is_empty() => {
                        let state = shared.broker.state(lane).await?;
                        if from < state.first {
                            return Ok((state.first, VecDeque::new()));
                        }
                        let Some(message) = shared.settle(lane, from).await? else {
                            tracing::error!(
                                event = "spool.group_gone",
                                lane = lanes::name(lane),
                                sequence = from
                            );
                            return Ok((from + 1, VecDeque::new()));
                        };
                        message
                    }
                    Err(fault) if messages.is_empty() => return Err(fault),
                    // The next time it is the first.
                    Ok(None) | Err(_) => break,
                };
                bytes += message.len();
                messages.push_back((sequence, message));
                sequence += 1;
            }
            Ok((from, messages))
        });
        let (at, messages) =
            asked.unwrap_or_else(|| Err(Fault::Unknown("the engine has ended".to_owned())))?;
        // Gone, or given back by somebody.
        self.missing |= messages.is_empty();
        (self.sequence, self.ahead) = (Some(at), messages);
        Ok(())
    }
}

/// Reads one lane from a position on, for as long as the term lasts in which it was made. Holds one group, and what was asked for ahead.
pub struct Reader {
    walk: Walk,
    lane: Lane,
    next: u64,
    loaded: VecDeque<Found>,
}

impl Reader {
    /// Whether the term is over in which it was made.
    pub(crate) fn is_over(&self) -> bool {
        self.walk.is_over()
    }

    pub(super) fn new(shared: Arc<Shared>, lane: Lane, from: Position) -> Self {
        let walk = Walk::new(shared, lane);
        Self { walk, lane, next: from.0, loaded: VecDeque::new() }
    }

    /// The position of the next record to be returned.
    pub(crate) fn position(&self) -> Position {
        Position(self.next)
    }

    /// Resolves when there is something to return.
    pub(crate) fn changed(&self) -> impl Future<Output = Result<(), Closed>> + Send + use<> {
        let (shared, until) = (self.walk.shared.clone(), Until::Durable(self.lane, self.next));
        async move { shared.until(until).await }
    }

    /// As the embedded reader's. Blocks.
    pub(crate) fn next_batch(&mut self, max_bytes: usize) -> Result<Batch, ReadError> {
        let mut batch = Batch::default();
        let (mut bytes, mut lost) = (0, 0);
        loop {
            let Some(found) = self.loaded.front() else {
                match self.load(&mut batch) {
                    Ok(true) => continue,
                    Ok(false) => break,
                    Err(_) if !batch.is_empty() => break,
                    Err(error) => return Err(error),
                }
            };
            match found {
                Found::Good(_, record) => {
                    let own = record.head.len() + record.body.len();
                    if !batch.records.is_empty() && bytes + own > max_bytes {
                        break;
                    }
                    bytes += own;
                }
                Found::Damaged(..) if lost >= NAMED_MAX => break,
                Found::Damaged(..) => lost += 1,
            }
            match self.loaded.pop_front() {
                Some(Found::Good(position, record)) => {
                    self.next = position.0 + 1;
                    batch.records.push((position, record));
                }
                Some(Found::Damaged(position, head)) => {
                    self.next = position.0 + 1;
                    self.lose(&mut batch, position.0, position.0 + 1, head);
                }
                None => break,
            }
        }
        Ok(batch)
    }

    /// Takes the next group up. False if nothing more is durable.
    fn load(&mut self, batch: &mut Batch) -> Result<bool, ReadError> {
        // When the term is over nothing more is durable here, for all that is known.
        let Ok((saved, end)) = self.walk.lane(|here| (here.saved, here.end)) else { return Ok(false) };
        // Passed over without a word: it was acknowledged.
        self.next = self.next.max(saved);
        if self.next >= end {
            return Ok(false);
        }
        match self.walk.step(self.next) {
            Ok(Step::Group(met)) => {
                self.take(met, end, batch);
                Ok(true)
            }
            // Past the newest message, and something is missing: it is lost.
            Ok(Step::End) => {
                self.lose(batch, self.next, end, None);
                self.next = end;
                self.walk.forget();
                Ok(true)
            }
            Err(fault) => Err(ReadError::Io {
                lane: self.lane,
                position: Position(self.next),
                source: io::Error::other(fault),
            }),
        }
    }

    /// Takes up what a group holds from here on, and names what is missing before it.
    fn take(&mut self, met: Met, end: u64, batch: &mut Batch) {
        let Met { sequence, group, after_missing } = met;
        let (first, group_end) = (group.stamp.first, group.end());
        let place = Place { sequence, at_ms: group.at_ms() };
        self.walk.shared.found(self.lane, (first, group_end), place);
        let reach = first.min(end);
        if reach > self.next {
            if group.stamp.room && !after_missing {
                let (lane, from, to) = (lanes::name(self.lane), self.next, reach);
                tracing::info!(event = "spool.positions_unused", lane, from, to);
            } else {
                // Nothing in between was whole, or the log has lost it.
                self.lose(batch, self.next, reach, None);
            }
            self.next = reach;
        }
        if group_end > self.next {
            self.loaded.extend(group.records(self.next));
        }
    }

    fn lose(&self, batch: &mut Batch, from: u64, to: u64, head: Option<RecordHead>) {
        if from >= to {
            return;
        }
        self.walk.shared.lock().counters.corrupt_records += to - from;
        let last = batch.corrupt.last_mut().filter(|last| last.to.0 == from);
        match last {
            Some(last) => {
                last.to = Position(to);
                last.heads.extend(head);
            }
            None => {
                let mut range = CorruptRange::default();
                (range.lane, range.from, range.to) = (self.lane, Position(from), Position(to));
                range.heads.extend(head);
                batch.corrupt.push(range);
            }
        }
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("lane", &self.lane).field("position", &self.next).finish()
    }
}

/// Goes over the heads of what is durable, from a position on. What is lost is left out: a reader names it.
pub struct Heads {
    walk: Walk,
    lane: Lane,
    next: u64,
    /// Where the term had the lane end when this began.
    end: u64,
    loaded: VecDeque<RecordHead>,
}

impl Heads {
    pub(super) fn new(shared: Arc<Shared>, lane: Lane, from: Position) -> Self {
        let end = shared.lock().lanes[lane.index()].end;
        Self { walk: Walk::new(shared, lane), lane, next: from.0, end, loaded: VecDeque::new() }
    }

    fn load(&mut self) -> bool {
        while self.next < self.end {
            match self.walk.step(self.next) {
                Ok(Step::Group(Met { sequence, group, .. })) => {
                    let place = Place { sequence, at_ms: group.at_ms() };
                    self.walk.shared.found(self.lane, (group.stamp.first, group.end()), place);
                    self.loaded.extend(group.heads(self.next));
                    self.next = self.next.max(group.end());
                    if !self.loaded.is_empty() {
                        return true;
                    }
                }
                Ok(Step::End) => return false,
                // Without these nobody may take envelopes: what is here would be taken again as new. It ends with the term.
                Err(fault) => {
                    if self.walk.is_over() {
                        return false;
                    }
                    tracing::warn!(event = "spool.heads_again", lane = lanes::name(self.lane), %fault);
                    std::thread::sleep(std::time::Duration::from_millis(200));
                }
            }
        }
        false
    }
}

impl Iterator for Heads {
    type Item = RecordHead;

    fn next(&mut self) -> Option<RecordHead> {
        if self.loaded.is_empty() && !self.load() {
            return None;
        }
        self.loaded.pop_front()
    }
}

impl fmt::Debug for Heads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heads").field("lane", &self.lane).field("position", &self.next).finish()
    }
}

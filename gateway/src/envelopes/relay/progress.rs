//! How far delivery is, lane by lane, and when that is written down.
//!
//! Everything of a lane below the first record that has no answer has left, whether it was sent, stepped over because it is
//! damaged, or set aside; so one position per lane says how far delivery is. Before the spool may reclaim, the lines are
//! checkpointed: what leaves the spool is then remembered there. A checkpoint of a large fleet is megabytes, so they are
//! spaced by their size: at most a quarter of a second apart when small, and never more than about a megabyte a second.
//! Whatever was not yet written down when the power went is delivered again, and recognised at the far end.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::time::Duration;

use pithead_hop::ingest::{IntervalSet, UploadStore};
use pithead_sealing::Line;
use pithead_spool::{Lane, Position};
use tokio::time::Instant;

use super::super::copies::Copies;
use super::super::lanes::{self, LANES};
use super::super::numbers::Numbers;
use super::super::record::Head;
use super::super::spool::EnvelopeSpool;
use super::UNREADABLE_TRIES;

/// Between small checkpoints.
const SPACING: Duration = Duration::from_millis(250);
/// What checkpoints may write, in bytes a second.
const CHECKPOINT_RATE: usize = 1 << 20;

pub(super) struct Progress {
    spool: EnvelopeSpool,
    numbers: Numbers,
    uploads: UploadStore,
    copies: Option<Copies>,
    lanes: [LaneProgress; LANES],
    /// Large envelopes that are done with once their records cannot come back.
    unwanted: Vec<Unwanted>,
    forward: u64,
    /// Lines whose large envelope the disk did not give, and how often in a row.
    unreadable: HashMap<Line, u32>,
    not_before: Instant,
}

struct Unwanted {
    lane: Lane,
    position: Position,
    head: Head,
    /// The refused area has it: its file stays.
    refused: bool,
}

struct LaneProgress {
    /// Sent on this call, and not answered.
    open: BTreeSet<Position>,
    /// Answered, behind one that is not: by position and one, since intervals begin at 1. While a large envelope goes out, what
    /// has passed it is not sent again after a cut.
    done: IntervalSet,
    /// The position after the last record that was looked at.
    looked_at: Position,
    /// The first position that is not yet acknowledged in the spool.
    reclaimed: Position,
}

impl LaneProgress {
    /// The first position that may not leave yet.
    fn next(&self) -> Position {
        self.open.first().copied().unwrap_or(self.looked_at)
    }
}

impl Progress {
    pub(super) fn new(
        spool: EnvelopeSpool,
        numbers: Numbers,
        uploads: UploadStore,
        copies: Option<Copies>,
    ) -> Self {
        let lanes = Lane::ALL.map(|lane| {
            let cursor = spool.cursor(lane);
            LaneProgress {
                open: BTreeSet::new(),
                done: IntervalSet::new(),
                looked_at: cursor,
                reclaimed: cursor,
            }
        });
        Self {
            spool,
            numbers,
            uploads,
            copies,
            lanes,
            unwanted: Vec::new(),
            forward: 0,
            unreadable: HashMap::new(),
            not_before: Instant::now(),
        }
    }

    /// How many records of all lanes have left, and calls that have brought a large one forward: it grows whenever something
    /// is.
    pub(super) fn passed(&self) -> u64 {
        self.forward + self.lanes.iter().map(|lane| lane.next().0).sum::<u64>()
    }

    /// The disk did not give the first large envelope of this line; it may be passing.
    pub(super) fn unreadable(&mut self, line: &Line) {
        *self.unreadable.entry(line.clone()).or_default() += 1;
    }

    /// Whether that was so often that it does not pass.
    pub(super) fn is_unreadable(&self, line: &Line) -> bool {
        self.unreadable.get(line).is_some_and(|tries| *tries >= UNREADABLE_TRIES)
    }

    /// It is dealt with.
    pub(super) fn readable_again(&mut self, line: &Line) {
        self.unreadable.remove(line);
    }

    /// A call has brought a large one forward.
    pub(super) fn brought_forward(&mut self) {
        self.forward += 1;
    }

    /// A call begins: what the last one left open in a lane is read again. Gives where.
    pub(super) fn begin(&mut self, lane: Lane) -> Position {
        let here = &mut self.lanes[lane.index()];
        here.looked_at = here.next();
        here.open.clear();
        here.looked_at
    }

    /// The record at `position` is under way.
    pub(super) fn sent(&mut self, lane: Lane, position: Position) {
        self.lanes[lane.index()].open.insert(position);
        self.reached(lane, position.next());
    }

    /// The record at `position` is elsewhere.
    pub(super) fn answered(&mut self, lane: Lane, position: Position) {
        let here = &mut self.lanes[lane.index()];
        here.open.remove(&position);
        here.done.insert(position.0 + 1);
        let next = here.next().0;
        if next > 0 {
            here.done.remove_range(1, next);
        }
    }

    /// Whether the record at `position` is elsewhere, by an answer on this call or an earlier one.
    pub(super) fn is_settled(&self, lane: Lane, position: Position) -> bool {
        let here = &self.lanes[lane.index()];
        position < here.next() || here.done.contains(position.0 + 1)
    }

    /// Whether everything before `position` in its lane is elsewhere.
    pub(super) fn is_first(&self, lane: Lane, position: Position) -> bool {
        self.lanes[lane.index()].open.first() == Some(&position)
    }

    /// The large envelope at `position` is elsewhere: its file and its copy go when a crash cannot bring its record back; or, if it was
    /// refused, when that area says so.
    pub(super) fn release(&mut self, lane: Lane, position: Position, head: Head, refused: bool) {
        self.unwanted.push(Unwanted { lane, position, head, refused });
    }

    /// Everything before `position` was sent, set aside or found damaged.
    pub(super) fn reached(&mut self, lane: Lane, position: Position) {
        let here = &mut self.lanes[lane.index()];
        here.looked_at = here.looked_at.max(position);
    }

    /// Resolves when something is to be written down and enough time has passed. Cancel safe: it holds nothing of this.
    pub(super) fn due(&self) -> impl Future<Output = ()> + use<> {
        let not_before = self.is_dirty().then_some(self.not_before);
        async move {
            match not_before {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        }
    }

    fn is_dirty(&self) -> bool {
        self.is_behind() || !self.unwanted.is_empty()
    }

    fn is_behind(&self) -> bool {
        self.lanes.iter().any(|lane| lane.next() != lane.reclaimed)
    }

    /// Checkpoint, then acknowledge. If the disk does not take the checkpoint, nothing is acknowledged: it is tried
    /// again with the next one.
    pub(super) async fn reclaim_now(&mut self) {
        self.remove_unwanted().await;
        if !self.is_behind() {
            self.not_before = Instant::now() + SPACING;
            return;
        }
        let numbers = self.numbers.clone();
        let written = tokio::task::spawn_blocking(move || numbers.checkpoint()).await;
        let spacing = match written {
            Ok(Ok(bytes)) => {
                self.acknowledge();
                Duration::from_millis((bytes * 1000 / CHECKPOINT_RATE) as u64)
            }
            Ok(Err(error)) => {
                tracing::error!(event = "lines.checkpoint_failed", %error);
                Duration::from_secs(1)
            }
            Err(error) => {
                tracing::error!(event = "lines.checkpoint_failed", %error);
                Duration::from_secs(1)
            }
        };
        self.not_before = Instant::now() + spacing.max(SPACING);
    }

    /// Why so late: a record that comes back after a crash has to find its file.
    async fn remove_unwanted(&mut self) {
        let spool = &self.spool;
        let gone = |one: &Unwanted| spool.saved_cursor(one.lane) > one.position;
        let (gone, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.unwanted).into_iter().partition(gone);
        self.unwanted = kept;
        if gone.is_empty() {
            return;
        }
        if let Some(copies) = &self.copies {
            for one in &gone {
                match (&one.head.copy, one.refused) {
                    (Some(copy), true) => copies.was_refused(copy),
                    (Some(copy), false) => copies.let_go(copy),
                    (None, _) => {}
                }
            }
        }
        let uploads = self.uploads.clone();
        let removing = tokio::task::spawn_blocking(move || {
            for Head { identity, .. } in gone.into_iter().filter(|one| !one.refused).map(|one| one.head) {
                if let Err(error) = uploads.release(&identity) {
                    tracing::error!(event = "upload.not_removed", %identity, %error);
                }
            }
        });
        if let Err(error) = removing.await {
            tracing::error!(event = "upload.not_removed", %error);
        }
    }

    fn acknowledge(&mut self) {
        for (here, lane) in self.lanes.iter_mut().zip(Lane::ALL) {
            let next = here.next();
            if next == here.reclaimed {
                continue;
            }
            match self.spool.acknowledge(lane, Position(next.0 - 1)) {
                Ok(()) => here.reclaimed = next,
                Err(error) => {
                    tracing::error!(event = "spool.not_acknowledged", lane = lanes::name(lane), %error);
                }
            }
        }
    }
}

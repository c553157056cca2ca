//! The lines of one device, and the bounds that they share.

use std::collections::BTreeMap;
use std::time::Duration;

use pithead_sealing::{DeviceId, Line, Run, Seq, StreamName};

use super::line::{Extra, LineState, Room};
use super::{
    DECLARED_PER_DEVICE, DECLARED_PER_LINE, INTERVALS_PER_DEVICE, INTERVALS_PER_LINE, LineRefusal,
    RUNS_BURST, RUNS_PER_HOUR, RUNS_SPOKEN_OF_BURST, STREAMS_PER_DEVICE, ShortHash, Unseen, Verdict,
    WAITING_INTERVALS,
};

const RUN_PRICE: Duration = Duration::from_secs(3600 / RUNS_PER_HOUR as u64);

/// What is let go or settled at once: a bound that is met again with every envelope costs a walk over the lines each time.
const fn most_of(bound: usize) -> usize {
    bound - bound / 8
}

/// New runs, as a bucket whose content is time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    pub(super) credit: Duration,
    pub(super) at: Duration,
    /// Runs at once.
    pub(super) burst: u32,
}

impl Bucket {
    fn full(burst: u32, now: Duration) -> Self {
        Self { credit: RUN_PRICE * burst, at: now, burst }
    }

    fn spend(&mut self, now: Duration) -> Result<(), Duration> {
        self.credit = (self.credit + now.saturating_sub(self.at)).min(RUN_PRICE * self.burst);
        self.at = now;
        self.credit = self.credit.checked_sub(RUN_PRICE).ok_or_else(|| RUN_PRICE - self.credit)?;
        Ok(())
    }
}

#[derive(Debug)]
pub(super) struct Device<T> {
    pub(super) runs: BTreeMap<Run, BTreeMap<StreamName, LineState<T>>>,
    /// Lines of each stream.
    streams: BTreeMap<StreamName, usize>,
    extra: Extra,
    unseen: Unseen,
    /// Runs of which something came.
    pub(super) bucket: Bucket,
    /// Runs that the device only spoke of.
    pub(super) spoken_of: Bucket,
}

impl<T: Clone> Device<T> {
    pub(super) fn new(unseen: Unseen, now: Duration) -> Self {
        Self {
            runs: BTreeMap::new(),
            streams: BTreeMap::new(),
            extra: Extra::default(),
            unseen,
            bucket: Bucket::full(RUNS_BURST, now),
            spoken_of: Bucket::full(RUNS_SPOKEN_OF_BURST, now),
        }
    }

    pub(super) fn line(&self, line: &Line) -> Option<&LineState<T>> {
        self.runs.get(&line.run)?.get(&line.stream)
    }

    pub(super) fn lines<'a>(&'a self, name: &'a DeviceId) -> impl Iterator<Item = (Line, &'a LineState<T>)> {
        self.runs.iter().flat_map(move |(run, lines)| {
            lines.iter().map(move |(stream, state)| {
                (Line { device: name.clone(), stream: stream.clone(), run: *run }, state)
            })
        })
    }

    /// How many numbers of each line were declared and did not come.
    pub(super) fn declared(&self) -> impl Iterator<Item = u64> + '_ {
        self.runs.values().flat_map(BTreeMap::values).map(LineState::declared_in_all)
    }

    /// How many numbers each line misses.
    pub(super) fn missing(&self) -> impl Iterator<Item = u64> + '_ {
        self.runs.values().flat_map(BTreeMap::values).map(LineState::missing)
    }

    /// Numbers that nobody has explained, and numbers that were declared and never came.
    pub(super) fn unexplained(&self) -> (u64, u64) {
        let all = |numbers: &mut dyn Iterator<Item = u64>| numbers.fold(0, u64::saturating_add);
        (all(&mut self.missing()), all(&mut self.declared()))
    }

    pub(super) fn len(&self) -> usize {
        self.runs.values().map(BTreeMap::len).sum()
    }

    /// Changes a line that exists, and keeps the device's counts.
    pub(super) fn change<R>(
        &mut self,
        line: &Line,
        change: impl FnOnce(&mut LineState<T>) -> R,
    ) -> Option<R> {
        let state = self.runs.get_mut(&line.run)?.get_mut(&line.stream)?;
        Some(self.extra.follow(state, change))
    }

    /// The same for what may make more intervals of what is declared, and keeps their bounds. Nothing else settles: a number that
    /// was on its way and failed is refused, or tried again, in the next step.
    pub(super) fn change_declared<R>(
        &mut self,
        line: &Line,
        change: impl FnOnce(&mut LineState<T>) -> R,
    ) -> Option<R> {
        let result = self.change(line, |state| {
            let result = change(state);
            state.settle(DECLARED_PER_LINE);
            result
        });
        if self.extra.declared > DECLARED_PER_DEVICE {
            self.settle_oldest();
        }
        result
    }

    /// Of the oldest runs first. Every line keeps its last declared interval: how many lines there may be is bounded elsewhere.
    fn settle_oldest(&mut self) {
        for state in self.runs.values_mut().flat_map(BTreeMap::values_mut) {
            let excess = self.extra.declared.saturating_sub(most_of(DECLARED_PER_DEVICE));
            if excess == 0 {
                return;
            }
            let keep = state.declared.intervals().saturating_sub(excess).max(1);
            self.extra.follow(state, |state| state.settle(keep));
        }
    }

    /// What the line may still take. Where the far end remembers, what has nothing here makes room.
    fn room(&mut self, line: &Line) -> Room {
        let (per_line, per_device) = match self.unseen {
            Unseen::Missing => (INTERVALS_PER_LINE, INTERVALS_PER_DEVICE),
            Unseen::Elsewhere => {
                self.forget(line);
                (WAITING_INTERVALS, WAITING_INTERVALS)
            }
        };
        Room {
            per_line,
            holes: per_device.saturating_sub(self.extra.holes),
            refused: INTERVALS_PER_DEVICE.saturating_sub(self.extra.refused),
        }
    }

    fn forget(&mut self, line: &Line) {
        let of_device = self.extra.holes >= INTERVALS_PER_DEVICE;
        if let Some(state) = self.runs.get_mut(&line.run).and_then(|lines| lines.get_mut(&line.stream))
            && state.extra().holes + 1 >= INTERVALS_PER_LINE
        {
            self.extra.follow(state, |state| state.forget(most_of(INTERVALS_PER_LINE)));
        }
        if !of_device {
            return;
        }
        for state in self.runs.values_mut().flat_map(BTreeMap::values_mut) {
            let excess = self.extra.holes.saturating_sub(most_of(INTERVALS_PER_DEVICE));
            if excess == 0 {
                return;
            }
            let intervals = state.extra().holes + 1;
            if intervals > 1 {
                self.extra.follow(state, |state| state.forget(intervals.saturating_sub(excess).max(1)));
            }
        }
    }

    /// Begins a line if there is none.
    pub(super) fn open(&mut self, line: &Line, start: u64, now: Duration) -> Result<(), LineRefusal> {
        self.open_from(line, start, now, |device| &mut device.bucket)
    }

    /// Begins a line if there is none, of which nothing came: its device spoke of it, in something that did come.
    pub(super) fn open_spoken_of(
        &mut self,
        line: &Line,
        start: u64,
        now: Duration,
    ) -> Result<(), LineRefusal> {
        self.open_from(line, start, now, |device| &mut device.spoken_of)
    }

    fn open_from(
        &mut self,
        line: &Line,
        start: u64,
        now: Duration,
        bucket: impl FnOnce(&mut Self) -> &mut Bucket,
    ) -> Result<(), LineRefusal> {
        if self.line(line).is_some() {
            return Ok(());
        }
        if !self.streams.contains_key(&line.stream) && self.streams.len() >= STREAMS_PER_DEVICE {
            return Err(LineRefusal::TooManyStreams);
        }
        if !self.runs.contains_key(&line.run) {
            bucket(self).spend(now).map_err(|retry_after| LineRefusal::TooManyRuns { retry_after })?;
        }
        self.open_unbounded(line, start, now);
        Ok(())
    }

    pub(super) fn open_unbounded(&mut self, line: &Line, start: u64, now: Duration) {
        if self.line(line).is_none() {
            self.put(line, LineState::new(start, now));
        }
    }

    /// Puts a line in that is not there.
    pub(super) fn put(&mut self, line: &Line, state: LineState<T>) {
        self.extra.add(state.extra());
        *self.streams.entry(line.stream.clone()).or_default() += 1;
        self.runs.entry(line.run).or_default().insert(line.stream.clone(), state);
    }

    pub(super) fn remove(&mut self, line: &Line) -> Option<LineState<T>> {
        let lines = self.runs.get_mut(&line.run)?;
        let state = lines.remove(&line.stream)?;
        if lines.is_empty() {
            self.runs.remove(&line.run);
        }
        self.extra.subtract(state.extra());
        if let Some(count) = self.streams.get_mut(&line.stream) {
            *count -= 1;
            if *count == 0 {
                self.streams.remove(&line.stream);
            }
        }
        Some(state)
    }

    /// What [`offer`](Self::offer) would answer; none where it would take the envelope.
    pub(super) fn judge(
        &mut self,
        line: &Line,
        seq: Seq,
        hash: ShortHash,
        now: Duration,
        start: u64,
    ) -> Result<Option<Verdict<T>>, LineRefusal> {
        self.open(line, start, now)?;
        let room = self.room(line);
        self.change(line, |state| match state.seen(seq.get(), hash) {
            Some(verdict) => Ok(Some(verdict)),
            None => state.may_take(seq.get(), room, now).map(|()| None),
        })
        .expect("the line was opened above")
    }

    /// Refuses a number for good. False if there is no room to note it.
    pub(super) fn refuse(&mut self, line: &Line, seq: Seq) -> bool {
        let room = self.room(line);
        self.change_declared(line, |state| state.refused(seq.get(), room)) == Some(true)
    }

    /// Notes what the device has declared, and how many numbers that has explained. None if there is no room to note it.
    pub(super) fn declare(&mut self, line: &Line, from: Seq, to: Seq) -> Option<u64> {
        let room = self.room(line);
        self.change_declared(line, |state| state.declare(from.get(), to.get(), room)).flatten()
    }

    pub(super) fn offer(
        &mut self,
        line: &Line,
        seq: Seq,
        hash: ShortHash,
        now: Duration,
        start: u64,
        ticket: impl FnOnce() -> T,
    ) -> Result<Verdict<T>, LineRefusal> {
        self.open(line, start, now)?;
        let room = self.room(line);
        self.change(line, |state| {
            if let Some(verdict) = state.seen(seq.get(), hash) {
                state.last_used = now;
                return Ok(verdict);
            }
            state.may_take(seq.get(), room, now)?;
            let ticket = ticket();
            state.take(seq.get(), hash, ticket.clone(), now);
            Ok(Verdict::New(ticket))
        })
        .expect("the line was opened above")
    }
}

//! The lines of one device, and the bounds that they share.

use std::collections::BTreeMap;
use std::time::Duration;

use pithead_sealing::{DeviceId, Line, Run, Seq, StreamName};

use super::line::LineState;
use super::{
    INTERVALS_PER_DEVICE, LineRefusal, RUNS_BURST, RUNS_PER_HOUR, STREAMS_PER_DEVICE, ShortHash, Verdict,
};

const RUN_PRICE: Duration = Duration::from_secs(3600 / RUNS_PER_HOUR as u64);
const CREDIT_MAX: Duration = Duration::from_secs(RUN_PRICE.as_secs() * RUNS_BURST as u64);

/// New runs, as a bucket whose content is time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    pub(super) credit: Duration,
    pub(super) at: Duration,
}

impl Bucket {
    fn spend(&mut self, now: Duration) -> Result<(), Duration> {
        self.credit = (self.credit + now.saturating_sub(self.at)).min(CREDIT_MAX);
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
    extra: usize,
    pub(super) bucket: Bucket,
}

impl<T: Clone> Device<T> {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            runs: BTreeMap::new(),
            streams: BTreeMap::new(),
            extra: 0,
            bucket: Bucket { credit: CREDIT_MAX, at: now },
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

    pub(super) fn len(&self) -> usize {
        self.runs.values().map(BTreeMap::len).sum()
    }

    /// Changes a line that exists, and keeps the device's count of intervals.
    pub(super) fn change<R>(
        &mut self,
        line: &Line,
        change: impl FnOnce(&mut LineState<T>) -> R,
    ) -> Option<R> {
        let state = self.runs.get_mut(&line.run)?.get_mut(&line.stream)?;
        let before = state.extra();
        let result = change(state);
        self.extra = self.extra + state.extra() - before;
        Some(result)
    }

    /// Begins a line if there is none.
    pub(super) fn open(&mut self, line: &Line, start: u64, now: Duration) -> Result<(), LineRefusal> {
        if self.line(line).is_some() {
            return Ok(());
        }
        if !self.streams.contains_key(&line.stream) && self.streams.len() >= STREAMS_PER_DEVICE {
            return Err(LineRefusal::TooManyStreams);
        }
        if !self.runs.contains_key(&line.run) {
            self.bucket.spend(now).map_err(|retry_after| LineRefusal::TooManyRuns { retry_after })?;
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
        self.extra += state.extra();
        *self.streams.entry(line.stream.clone()).or_default() += 1;
        self.runs.entry(line.run).or_default().insert(line.stream.clone(), state);
    }

    pub(super) fn remove(&mut self, line: &Line) -> Option<LineState<T>> {
        let lines = self.runs.get_mut(&line.run)?;
        let state = lines.remove(&line.stream)?;
        if lines.is_empty() {
            self.runs.remove(&line.run);
        }
        self.extra -= state.extra();
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
        let room = INTERVALS_PER_DEVICE.saturating_sub(self.extra);
        self.change(line, |state| match state.seen(seq.get(), hash) {
            Some(verdict) => Ok(Some(verdict)),
            None => state.may_take(seq.get(), room, now).map(|()| None),
        })
        .expect("the line was opened above")
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
        let room = INTERVALS_PER_DEVICE.saturating_sub(self.extra);
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

//! One line.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::hashes::Hashes;
use super::{HASHES_KEPT, INTERVALS_PER_LINE, LineRefusal, OWED_FOR, SEQ_JUMP_MAX, ShortHash, Verdict};
use crate::ingest::intervals::IntervalSet;

/// What a line has seen, for screens and for the decryptor's books.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineView {
    /// Where the line begins here.
    pub start: u64,
    /// The highest number ever durable here; one below `start` if there was none.
    pub newest: u64,
    /// Durable here, or passed on.
    pub held: IntervalSet,
    /// Dropped by the device, by its own word, and not held.
    pub declared: IntervalSet,
    /// Refused for good, and not held.
    pub refused: IntervalSet,
    /// From `start` to `newest`, none of these.
    pub missing: IntervalSet,
    /// When something last came, by the caller's time.
    pub last_used: Duration,
}

/// `held` holds the numbers in flight as well; `spooled` and `passed` are disjoint and within `held`.
#[derive(Debug)]
pub(super) struct LineState<T> {
    pub(super) start: u64,
    pub(super) newest: u64,
    pub(super) held: IntervalSet,
    pub(super) declared: IntervalSet,
    pub(super) refused: IntervalSet,
    /// Were on their way to the disk and did not get there: the lowest of them comes before anything beyond it.
    owed: IntervalSet,
    pub(super) in_flight: BTreeMap<u64, (ShortHash, T)>,
    pub(super) spooled: Hashes,
    pub(super) passed: VecDeque<(u64, ShortHash)>,
    pub(super) last_used: Duration,
}

impl<T: Clone> LineState<T> {
    pub(super) fn new(start: u64, now: Duration) -> Self {
        Self {
            start,
            newest: start - 1,
            held: IntervalSet::new(),
            declared: IntervalSet::new(),
            refused: IntervalSet::new(),
            owed: IntervalSet::new(),
            in_flight: BTreeMap::new(),
            spooled: Hashes::default(),
            passed: VecDeque::new(),
            last_used: now,
        }
    }

    /// Intervals beyond the one that every line has.
    pub(super) fn extra(&self) -> usize {
        [&self.held, &self.declared, &self.refused].iter().map(|set| set.intervals().saturating_sub(1)).sum()
    }

    /// The highest number that anybody has spoken of.
    fn furthest(&self) -> u64 {
        let lasts = [self.held.last(), self.declared.last(), self.refused.last()];
        lasts.into_iter().flatten().fold(self.newest, u64::max)
    }

    fn beyond(&self, seq: u64) -> bool {
        seq > self.furthest().saturating_add(SEQ_JUMP_MAX)
    }

    /// What is known of a number that is held.
    pub(super) fn seen(&self, seq: u64, hash: ShortHash) -> Option<Verdict<T>> {
        if let Some((first, ticket)) = self.in_flight.get(&seq) {
            let same = *first == hash;
            return Some(if same { Verdict::InFlight(ticket.clone()) } else { Verdict::Conflict });
        }
        if !self.held.contains(seq) {
            return None;
        }
        Some(match self.hash_of(seq) {
            None => Verdict::Duplicate { unverified: true },
            Some(first) if first == hash => Verdict::Duplicate { unverified: false },
            Some(_) => Verdict::Conflict,
        })
    }

    fn hash_of(&self, seq: u64) -> Option<ShortHash> {
        let passed = || self.passed.iter().rev().find(|(number, _)| *number == seq).map(|(_, hash)| *hash);
        self.spooled.get(seq).or_else(passed)
    }

    /// `room` is how many intervals the device may still add.
    pub(super) fn may_take(&mut self, seq: u64, room: usize, now: Duration) -> Result<(), LineRefusal> {
        if now.saturating_sub(self.last_used) > OWED_FOR {
            self.owed = IntervalSet::new();
        }
        if let Some(first) = self.owed.first().filter(|first| *first < seq) {
            return Err(LineRefusal::Overtakes { first });
        }
        if self.beyond(seq) {
            return Err(LineRefusal::SeqJump { newest: self.furthest() });
        }
        let (before, after) = (self.held.intervals(), self.held.intervals_with(seq));
        // Filling a hole is always allowed: it is what makes room.
        if after > before && before > 0 && (after > INTERVALS_PER_LINE || room == 0) {
            return Err(LineRefusal::TooManyGaps { lowest_missing: self.missing().first() });
        }
        Ok(())
    }

    pub(super) fn take(&mut self, seq: u64, hash: ShortHash, ticket: T, now: Duration) {
        self.held.insert(seq);
        self.owed.remove(seq);
        self.in_flight.insert(seq, (hash, ticket));
        self.last_used = now;
    }

    pub(super) fn lost(&mut self, seq: u64) {
        if self.in_flight.contains_key(&seq) {
            self.failed(seq);
            self.owed.insert(seq);
        }
    }

    /// Everything below `first` was dealt with.
    pub(super) fn owes_nothing_before(&mut self, first: u64) {
        if first > 1 {
            self.owed.remove_range(1, first - 1);
        }
    }

    pub(super) fn stored(&mut self, seq: u64) {
        if let Some((hash, _)) = self.in_flight.remove(&seq) {
            self.spooled.insert(seq, hash);
            self.newest = self.newest.max(seq);
        }
    }

    pub(super) fn failed(&mut self, seq: u64) {
        if self.in_flight.remove(&seq).is_some() {
            self.held.remove(seq);
        }
    }

    pub(super) fn passed_on(&mut self, seq: u64) {
        // The next hop may answer before whoever waits for our own disk has had his turn to say so.
        self.stored(seq);
        if let Some(hash) = self.spooled.remove(seq) {
            if self.passed.len() >= HASHES_KEPT {
                self.passed.pop_front();
            }
            self.passed.push_back((seq, hash));
        }
    }

    pub(super) fn quarantined(&mut self, seq: u64) {
        if !self.in_flight.contains_key(&seq) && self.held.remove(seq) {
            self.spooled.remove(seq);
            self.passed.retain(|(number, _)| *number != seq);
        }
    }

    pub(super) fn recall(&mut self, seq: u64, hash: ShortHash) {
        if self.in_flight.contains_key(&seq) {
            return;
        }
        self.held.insert(seq);
        self.passed.retain(|(number, _)| *number != seq);
        self.spooled.insert(seq, hash);
        self.newest = self.newest.max(seq);
    }

    pub(super) fn refused(&mut self, seq: u64) -> bool {
        let fits = !self.beyond(seq) && self.refused.intervals_with(seq) <= INTERVALS_PER_LINE;
        self.owed.remove(seq);
        if fits {
            self.refused.insert(seq);
            self.newest = self.newest.max(seq);
        }
        fits
    }

    pub(super) fn declare(&mut self, from: u64, to: u64) -> bool {
        // One range adds at most one interval.
        let fits = from <= to && !self.beyond(to) && self.declared.intervals() < INTERVALS_PER_LINE;
        if fits {
            self.declared.insert_range(from, to);
            self.owed.subtract(&self.declared);
        }
        fits
    }

    /// The end of the unbroken durable run that begins at `first`; 0 if `first` is not durable here.
    pub(super) fn durable_from(&self, first: u64) -> u64 {
        let Some(end) = self.held.end_of_run(first) else { return 0 };
        match self.in_flight.range(first..=end).next() {
            Some((&number, _)) if number == first => 0,
            Some((&number, _)) => number - 1,
            None => end,
        }
    }

    pub(super) fn durable(&self) -> IntervalSet {
        let mut durable = self.held.clone();
        for seq in self.in_flight.keys() {
            durable.remove(*seq);
        }
        durable
    }

    fn missing(&self) -> IntervalSet {
        let mut missing: IntervalSet =
            self.held.gaps_within(self.start, self.newest.max(self.held.last().unwrap_or(0))).collect();
        missing.subtract(&self.declared);
        missing.subtract(&self.refused);
        missing
    }

    pub(super) fn view(&self) -> LineView {
        let held = self.durable();
        let mut missing: IntervalSet = held.gaps_within(self.start, self.newest).collect();
        let mut declared = self.declared.clone();
        declared.subtract(&held);
        let mut refused = self.refused.clone();
        refused.subtract(&held);
        missing.subtract(&declared);
        missing.subtract(&refused);
        LineView {
            start: self.start,
            newest: self.newest,
            held,
            declared,
            refused,
            missing,
            last_used: self.last_used,
        }
    }

    pub(super) fn is_idle(&self, before: Duration) -> bool {
        self.last_used < before && self.in_flight.is_empty() && self.spooled.is_empty()
    }
}

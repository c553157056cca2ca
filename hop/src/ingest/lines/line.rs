//! One line.
//!
//! `held`, `declared` and `refused` say what became of each number, and `accounted` is all of them together: what it leaves out is
//! missing, and nobody has explained it. The bound that refuses counts the intervals of `accounted`, so that a line in which every
//! loss is explained is one interval however often it lost something. The other sets have bounds of their own, or the price of
//! explained losses would be memory:
//!
//! - `declared`: beyond its bound the lowest ranges are *settled*: they are held from then on, for whoever asks, and their numbers
//!   are counted, so that `held` less that count is what did come.
//! - `refused`: beyond its bound a number is not noted, and stays missing. It is never settled: a refused envelope may be sent again
//!   by hand once it would be taken, and must not be answered as a duplicate.
//! - `held` is bounded by the others: between two of its intervals lies something missing, declared or refused, since the three
//!   share no number that is durable.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::hashes::Hashes;
use super::{HASHES_KEPT, INTERVALS_PER_LINE, LineRefusal, OWED_FOR, SEQ_JUMP_MAX, ShortHash, Verdict};
use crate::ingest::intervals::{Interval, IntervalSet};

/// What a line has seen, for screens and for the decryptor's books.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineView {
    /// Where the line begins here.
    pub start: u64,
    /// The highest number ever durable here; one below `start` if there was none.
    pub newest: u64,
    /// Durable here, or passed on, or settled.
    pub held: IntervalSet,
    /// How many numbers of `held` were declared so long ago that nobody can tell any more which they are. They never came.
    pub settled: u64,
    /// Dropped by the device, by its own word, and not held.
    pub declared: IntervalSet,
    /// Refused for good, and not held.
    pub refused: IntervalSet,
    /// From `start` to `newest`, none of these.
    pub missing: IntervalSet,
    /// When something last came, by the caller's time.
    pub last_used: Duration,
}

impl LineView {
    /// How many numbers did come.
    pub fn came(&self) -> u64 {
        self.held.count().saturating_sub(self.settled)
    }

    /// How many numbers the device has declared, and did not come.
    pub fn declared_in_all(&self) -> u64 {
        self.declared.count().saturating_add(self.settled)
    }
}

/// Intervals beyond the one that every line has of each: what a device's bounds count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Extra {
    /// Holes that nobody has explained.
    pub(super) holes: usize,
    pub(super) declared: usize,
    pub(super) refused: usize,
}

impl Extra {
    pub(super) fn add(&mut self, other: Self) {
        self.holes += other.holes;
        self.declared += other.declared;
        self.refused += other.refused;
    }

    pub(super) fn subtract(&mut self, other: Self) {
        self.holes -= other.holes;
        self.declared -= other.declared;
        self.refused -= other.refused;
    }

    /// Changes a line that is counted here.
    pub(super) fn follow<T: Clone, R>(
        &mut self,
        line: &mut LineState<T>,
        change: impl FnOnce(&mut LineState<T>) -> R,
    ) -> R {
        self.subtract(line.extra());
        let result = change(line);
        self.add(line.extra());
        result
    }
}

/// How many intervals may still be added, by the bounds of the device and of the line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub(super) per_line: usize,
    pub(super) holes: usize,
    pub(super) refused: usize,
}

/// `held` holds the numbers in flight as well; `spooled` and `passed` are disjoint and within `held`. What is declared or refused may
/// be in flight; else the three sets are disjoint.
#[derive(Debug)]
pub(super) struct LineState<T> {
    pub(super) start: u64,
    pub(super) newest: u64,
    pub(super) held: IntervalSet,
    pub(super) declared: IntervalSet,
    pub(super) refused: IntervalSet,
    /// All of the three.
    accounted: IntervalSet,
    /// See [`LineView::settled`].
    pub(super) settled: u64,
    /// Were on their way to the disk and did not get there: the lowest of them comes before anything beyond it.
    owed: IntervalSet,
    /// Other bytes came under a number of it. Not written down: a start learns it from the conflicts that were kept.
    pub(super) contested: bool,
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
            accounted: IntervalSet::new(),
            settled: 0,
            owed: IntervalSet::new(),
            contested: false,
            in_flight: BTreeMap::new(),
            spooled: Hashes::default(),
            passed: VecDeque::new(),
            last_used: now,
        }
    }

    /// A line out of its sets. Those of the first format may share numbers: what came wins, then what was refused.
    pub(super) fn with(mut self, held: IntervalSet, declared: IntervalSet, refused: IntervalSet) -> Self {
        self.accounted = [&held, &declared, &refused].into_iter().flat_map(IntervalSet::iter).collect();
        (self.held, self.declared, self.refused) = (held, declared, refused);
        self.refused.subtract(&self.held);
        self.declared.subtract(&self.held);
        self.declared.subtract(&self.refused);
        self
    }

    pub(super) fn extra(&self) -> Extra {
        let beyond_one = |set: &IntervalSet| set.intervals().saturating_sub(1);
        Extra {
            holes: beyond_one(&self.accounted),
            declared: beyond_one(&self.declared),
            refused: beyond_one(&self.refused),
        }
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

    pub(super) fn may_take(&mut self, seq: u64, room: Room, now: Duration) -> Result<(), LineRefusal> {
        if now.saturating_sub(self.last_used) > OWED_FOR {
            self.owed = IntervalSet::new();
        }
        if let Some(first) = self.owed.first().filter(|first| *first < seq) {
            return Err(LineRefusal::Overtakes { first });
        }
        if self.beyond(seq) {
            return Err(LineRefusal::SeqJump { newest: self.furthest() });
        }
        // Filling a hole is always allowed: it is what makes room.
        if !self.fits(self.accounted.intervals_with(seq), room) {
            return Err(LineRefusal::TooManyGaps { lowest_missing: self.lowest_missing() });
        }
        // A good copy in the middle of what was refused makes two intervals of one.
        if let Some(refused) = self.refused.around(seq)
            && refused.first < seq
            && seq < refused.last
            && (self.refused.intervals() >= INTERVALS_PER_LINE || room.refused == 0)
        {
            return Err(LineRefusal::TooManyGaps { lowest_missing: Some(refused.first) });
        }
        Ok(())
    }

    /// Whether `accounted` may become so many intervals.
    fn fits(&self, intervals: usize, room: Room) -> bool {
        let before = self.accounted.intervals();
        intervals <= before || before == 0 || (intervals <= room.per_line && room.holes > 0)
    }

    pub(super) fn take(&mut self, seq: u64, hash: ShortHash, ticket: T, now: Duration) {
        self.hold(seq);
        self.owed.remove(seq);
        self.in_flight.insert(seq, (hash, ticket));
        self.last_used = now;
    }

    fn hold(&mut self, seq: u64) {
        self.held.insert(seq);
        self.accounted.insert(seq);
    }

    /// The number is no longer held. What the device said of it stands.
    fn let_go(&mut self, seq: u64) {
        self.held.remove(seq);
        if !self.declared.contains(seq) && !self.refused.contains(seq) {
            self.accounted.remove(seq);
        }
    }

    /// It is durable: whatever was said of it, it did come.
    fn came(&mut self, seq: u64, hash: ShortHash) {
        self.declared.remove(seq);
        self.refused.remove(seq);
        self.spooled.insert(seq, hash);
        self.newest = self.newest.max(seq);
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
            self.came(seq, hash);
        }
    }

    pub(super) fn failed(&mut self, seq: u64) {
        if self.in_flight.remove(&seq).is_some() {
            self.let_go(seq);
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
        if !self.in_flight.contains_key(&seq) && self.held.contains(seq) {
            self.let_go(seq);
            self.settled = self.settled.min(self.held.count());
            self.spooled.remove(seq);
            self.passed.retain(|(number, _)| *number != seq);
        }
    }

    pub(super) fn recall(&mut self, seq: u64, hash: ShortHash) {
        if self.in_flight.contains_key(&seq) {
            return;
        }
        self.hold(seq);
        self.passed.retain(|(number, _)| *number != seq);
        self.came(seq, hash);
    }

    /// The number did come, by what is written: if it counts as settled, it was on its way when that happened.
    pub(super) fn unsettle(&mut self, seq: u64) {
        let is_told_apart = self.in_flight.contains_key(&seq) || self.hash_of(seq).is_some();
        if self.settled > 0 && !is_told_apart && self.held.contains(seq) {
            self.settled -= 1;
            self.let_go(seq);
        }
    }

    pub(super) fn refused(&mut self, seq: u64, room: Room) -> bool {
        self.owed.remove(seq);
        let is_durable = self.held.contains(seq) && !self.in_flight.contains_key(&seq);
        if is_durable || self.refused.contains(seq) {
            return true;
        }
        let (before, after) = (self.refused.intervals(), self.refused.intervals_with(seq));
        let is_noted = after <= before || before == 0 || (after <= INTERVALS_PER_LINE && room.refused > 0);
        let fits = !self.beyond(seq) && is_noted && self.fits(self.accounted.intervals_with(seq), room);
        if fits {
            self.declared.remove(seq);
            self.refused.insert(seq);
            self.accounted.insert(seq);
            self.newest = self.newest.max(seq);
        }
        fits
    }

    /// Gives how many numbers this has explained; none if there is no room.
    pub(super) fn declare(&mut self, from: u64, to: u64, room: Room) -> Option<u64> {
        let fits =
            from <= to && !self.beyond(to) && self.fits(self.accounted.intervals_with_range(from, to), room);
        if !fits {
            return None;
        }
        let mut added = 0_u64;
        let gaps: Vec<Interval> = self.declared.gaps_within(from, to).collect();
        for gap in gaps {
            for free in self.not_durable(gap) {
                let free: Vec<Interval> = self.refused.gaps_within(free.first, free.last).collect();
                for range in free {
                    added = added.saturating_add(range.last - range.first + 1);
                    self.declared.insert_range(range.first, range.last);
                }
            }
        }
        self.accounted.insert_range(from, to);
        self.owed.remove_range(from, to);
        Some(added)
    }

    /// What of a range did not come: those of it that are in flight belong to it.
    fn not_durable(&self, range: Interval) -> Vec<Interval> {
        let mut free: IntervalSet = self.held.gaps_within(range.first, range.last).collect();
        for seq in self.in_flight.range(range.first..=range.last).map(|(seq, _)| *seq) {
            free.insert(seq);
        }
        free.iter().collect()
    }

    /// Settles the lowest declared numbers until so many intervals are left, besides those of numbers that are in flight: these
    /// may still come.
    pub(super) fn settle(&mut self, keep: usize) {
        let excess = self.declared.intervals().saturating_sub(keep + self.in_flight.len());
        if excess == 0 {
            return;
        }
        let lowest: Vec<Interval> = self.declared.iter().take(excess).collect();
        for range in lowest {
            let mut first = range.first;
            let flying: Vec<u64> =
                self.in_flight.range(range.first..=range.last).map(|(seq, _)| *seq).collect();
            for seq in flying {
                if first < seq {
                    self.settle_range(first, seq - 1);
                }
                first = seq + 1;
            }
            if first <= range.last {
                self.settle_range(first, range.last);
            }
        }
    }

    fn settle_range(&mut self, first: u64, last: u64) {
        self.declared.remove_range(first, last);
        self.held.insert_range(first, last);
        self.settled = self.settled.saturating_add(last - first + 1);
    }

    /// Lets the lowest intervals go that have nothing here, until so many are left: the line begins behind them, as if they had
    /// gone elsewhere. For a receiver whose far end remembers everything.
    pub(super) fn forget(&mut self, keep: usize) {
        let excess = self.accounted.intervals().saturating_sub(keep);
        let is_here = |range: &Interval| {
            self.spooled.any_within(range.first, range.last)
                || self.in_flight.range(range.first..=range.last).next().is_some()
        };
        let gone = self.accounted.iter().take(excess).take_while(|range| !is_here(range)).last();
        let Some(last) = gone.map(|range| range.last) else { return };
        for set in [&mut self.held, &mut self.declared, &mut self.refused, &mut self.accounted] {
            set.remove_range(0, last);
        }
        self.passed.retain(|(seq, _)| *seq > last);
        self.settled = self.settled.min(self.held.count());
        self.start = self.start.max(self.accounted.first().unwrap_or(last + 1));
    }

    /// The end of the unbroken durable run that begins at `first`; 0 if `first` is not durable here. On a contested line nothing
    /// is: what is durable under a number need not be what its sender means by it, and only its bytes can tell.
    pub(super) fn durable_from(&self, first: u64) -> u64 {
        if self.contested {
            return 0;
        }
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

    fn lowest_missing(&self) -> Option<u64> {
        let last = self.newest.max(self.held.last().unwrap_or(0));
        self.accounted.gaps_within(self.start, last).next().map(|hole| hole.first)
    }

    pub(super) fn view(&self) -> LineView {
        let mut known = self.accounted.clone();
        for seq in self.in_flight.keys() {
            if !self.declared.contains(*seq) && !self.refused.contains(*seq) {
                known.remove(*seq);
            }
        }
        LineView {
            start: self.start,
            newest: self.newest,
            held: self.durable(),
            settled: self.settled,
            declared: self.declared.clone(),
            refused: self.refused.clone(),
            missing: known.gaps_within(self.start, self.newest).collect(),
            last_used: self.last_used,
        }
    }

    /// How many numbers are missing that nobody has explained; what is on its way to the disk is not.
    pub(super) fn missing(&self) -> u64 {
        let holes = self.accounted.gaps_within(self.start, self.newest);
        holes.fold(0, |all, hole| all.saturating_add(hole.last - hole.first + 1))
    }

    /// How many numbers were declared and did not come.
    pub(super) fn declared_in_all(&self) -> u64 {
        self.declared.count().saturating_add(self.settled)
    }

    pub(super) fn is_idle(&self, before: Duration) -> bool {
        self.last_used < before && self.in_flight.is_empty() && self.spooled.is_empty()
    }
}

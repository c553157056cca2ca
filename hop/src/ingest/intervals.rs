//! A set of numbers as its intervals. A healthy line is one interval, however long.
//!
//! Intervals are sorted, disjoint and never adjacent, so that a set has one form. Nothing here bounds their count: who
//! inserts what a stranger sent asks [`IntervalSet::intervals_with`] first.

/// Numbers from `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interval {
    /// The lowest.
    pub first: u64,
    /// The highest; never below `first`.
    pub last: u64,
}

/// A set of `u64`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IntervalSet {
    ranges: Vec<Interval>,
}

impl IntervalSet {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// True if nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many intervals it takes.
    pub fn intervals(&self) -> usize {
        self.ranges.len()
    }

    /// How many it would take with `number` in it.
    pub fn intervals_with(&self, number: u64) -> usize {
        let at = self.ranges.partition_point(|range| range.last < number);
        let touches_below = at > 0 && number - self.ranges[at - 1].last == 1;
        match self.ranges.get(at) {
            Some(range) if range.first <= number => self.ranges.len(),
            Some(range) if range.first - number == 1 => self.ranges.len() - usize::from(touches_below),
            _ => self.ranges.len() + usize::from(!touches_below),
        }
    }

    /// How many it would take with all of `first..=last` in it.
    pub fn intervals_with_range(&self, first: u64, last: u64) -> usize {
        if first > last {
            return self.ranges.len();
        }
        let (low, high) = self.touched(first, last);
        self.ranges.len() + 1 - (high - low)
    }

    /// The intervals in ascending order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Interval> + '_ {
        self.ranges.iter().copied()
    }

    /// How many numbers are in it, up to `u64::MAX`.
    pub fn count(&self) -> u64 {
        self.ranges
            .iter()
            .fold(0, |sum: u64, range| sum.saturating_add(range.last - range.first).saturating_add(1))
    }

    /// The lowest number.
    pub fn first(&self) -> Option<u64> {
        self.ranges.first().map(|range| range.first)
    }

    /// The highest number.
    pub fn last(&self) -> Option<u64> {
        self.ranges.last().map(|range| range.last)
    }

    /// True if `number` is in it.
    pub fn contains(&self, number: u64) -> bool {
        self.end_of_run(number).is_some()
    }

    /// The last number of the unbroken run that `number` is part of.
    pub fn end_of_run(&self, number: u64) -> Option<u64> {
        self.around(number).map(|range| range.last)
    }

    /// The interval that `number` is part of.
    pub fn around(&self, number: u64) -> Option<Interval> {
        let at = self.ranges.partition_point(|range| range.last < number);
        self.ranges.get(at).copied().filter(|range| range.first <= number)
    }

    /// Puts one number in; false if it was there.
    pub fn insert(&mut self, number: u64) -> bool {
        // In order is the rule, and then it is the last interval that grows.
        if let Some(range) = self.ranges.last_mut()
            && range.last.checked_add(1) == Some(number)
        {
            range.last = number;
            return true;
        }
        let is_new = !self.contains(number);
        if is_new {
            self.insert_range(number, number);
        }
        is_new
    }

    /// Puts all of `first..=last` in; nothing if `first` is above `last`.
    pub fn insert_range(&mut self, first: u64, last: u64) {
        if first > last {
            return;
        }
        let (low, high) = self.touched(first, last);
        if low == high {
            self.ranges.insert(low, Interval { first, last });
            return;
        }
        let merged =
            Interval { first: first.min(self.ranges[low].first), last: last.max(self.ranges[high - 1].last) };
        self.ranges[low] = merged;
        self.ranges.drain(low + 1..high);
    }

    /// The intervals that would become one with `first..=last`: from the first of the two up to the second. Equal if there is
    /// none, and then its place.
    fn touched(&self, first: u64, last: u64) -> (usize, usize) {
        let low = self.ranges.partition_point(|range| range.last.saturating_add(1) < first);
        let high = self.ranges.partition_point(|range| range.first <= last.saturating_add(1));
        (low, high)
    }

    /// Takes one number out; false if it was not there.
    pub fn remove(&mut self, number: u64) -> bool {
        let was_there = self.contains(number);
        if was_there {
            self.remove_range(number, number);
        }
        was_there
    }

    /// Takes all of `first..=last` out; nothing if `first` is above `last`.
    pub fn remove_range(&mut self, first: u64, last: u64) {
        if first > last {
            return;
        }
        let low = self.ranges.partition_point(|range| range.last < first);
        let high = self.ranges.partition_point(|range| range.first <= last);
        if low >= high {
            return;
        }
        let (below, above) = (self.ranges[low], self.ranges[high - 1]);
        let left = (below.first < first).then(|| Interval { first: below.first, last: first - 1 });
        let right = (above.last > last).then(|| Interval { first: last + 1, last: above.last });
        self.ranges.splice(low..high, left.into_iter().chain(right));
    }

    /// What of `first..=last` is not in it, in ascending order.
    pub fn gaps_within(&self, first: u64, last: u64) -> impl Iterator<Item = Interval> + '_ {
        let low = self.ranges.partition_point(|range| range.last < first);
        let mut rest = self.ranges[low..].iter();
        let mut next = (first <= last).then_some(first);
        std::iter::from_fn(move || {
            loop {
                let from = next?;
                match rest.next() {
                    Some(range) if range.first <= last => {
                        next = range.last.checked_add(1).filter(|number| *number <= last);
                        if range.first > from {
                            return Some(Interval { first: from, last: range.first - 1 });
                        }
                    }
                    _ => {
                        next = None;
                        return Some(Interval { first: from, last });
                    }
                }
            }
        })
    }

    /// Takes everything out that is in `other`.
    pub fn subtract(&mut self, other: &Self) {
        for range in &other.ranges {
            self.remove_range(range.first, range.last);
        }
    }
}

impl FromIterator<Interval> for IntervalSet {
    fn from_iter<I: IntoIterator<Item = Interval>>(ranges: I) -> Self {
        let mut set = Self::new();
        for range in ranges {
            set.insert_range(range.first, range.last);
        }
        set
    }
}

//! A bucket of bytes: so many a second in the long run, and some at once. Pure: time is an argument.
//!
//! What the bucket holds may be spent below nothing. Then the debt has to be worn off first: so whoever learns the price
//! after the fact, as of an envelope that has already come, is held to the same rate.

use std::time::Duration;

/// What may be spent, as of a moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bucket {
    /// Bytes a second.
    rate: u64,
    /// Never more than this, however long nobody spends.
    burst: u64,
    /// What it held at `at`; below 0 it is in debt.
    held: f64,
    at: Duration,
}

impl Bucket {
    /// A full bucket. A rate of nothing is taken as one byte a second, so that every wait has an end.
    #[must_use]
    pub fn full(rate: u64, burst: u64, now: Duration) -> Self {
        Self { rate: rate.max(1), burst, held: burst as f64, at: now }
    }

    /// What it holds now, in bytes.
    #[must_use]
    pub fn holds(&self, now: Duration) -> f64 {
        let earned = now.saturating_sub(self.at).as_secs_f64() * self.rate as f64;
        (self.held + earned).min(self.burst as f64)
    }

    /// True if it has never been spent from, or that is long forgotten.
    #[must_use]
    pub fn is_full(&self, now: Duration) -> bool {
        self.holds(now) >= self.burst as f64
    }

    /// Spends, into debt if need be.
    pub fn spend(&mut self, bytes: u64, now: Duration) {
        self.held = self.holds(now) - bytes as f64;
        self.at = self.at.max(now);
    }

    /// How long until it holds `bytes`; nothing if it does. More than the burst is not waited for.
    #[must_use]
    pub fn wait_for(&self, bytes: u64, now: Duration) -> Duration {
        let short = bytes.min(self.burst) as f64 - self.holds(now);
        if short <= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(short / self.rate as f64) }
    }

    /// From now on another rate and another burst. What it holds stays, as far as it fits.
    pub fn change(&mut self, rate: u64, burst: u64, now: Duration) {
        let held = self.holds(now).min(burst as f64);
        *self = Self { rate: rate.max(1), burst, held, at: self.at.max(now) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(100);

    fn after(seconds: u64) -> Duration {
        START + Duration::from_secs(seconds)
    }

    #[test]
    fn the_burst_goes_at_once_and_then_the_rate_counts() {
        let mut bucket = Bucket::full(100, 1_000, START);
        assert_eq!(bucket.wait_for(1_000, START), Duration::ZERO);
        bucket.spend(1_000, START);
        assert_eq!(bucket.wait_for(300, START), Duration::from_secs(3));
        assert_eq!(bucket.wait_for(300, after(3)), Duration::ZERO);
        assert!(!bucket.is_full(after(9)) && bucket.is_full(after(10)));
    }

    #[test]
    fn a_debt_is_worn_off_before_anything_is_held() {
        let mut bucket = Bucket::full(100, 1_000, START);
        bucket.spend(1_500, START);
        assert_eq!(bucket.wait_for(0, START), Duration::from_secs(5));
        assert_eq!(bucket.wait_for(100, after(5)), Duration::from_secs(1));
    }

    #[test]
    fn idleness_saves_no_more_than_the_burst_and_a_clock_that_stands_gives_nothing() {
        let mut bucket = Bucket::full(100, 1_000, START);
        bucket.spend(0, after(1_000_000));
        assert!(bucket.holds(after(1_000_000)) <= 1_000.0);
        bucket.spend(1_000, after(1_000_000));
        assert!(bucket.holds(START) <= 0.0, "time does not run backwards");
    }

    #[test]
    fn another_rate_counts_from_now_on() {
        let mut bucket = Bucket::full(100, 1_000, START);
        bucket.spend(1_000, START);
        bucket.change(1_000, 500, after(1));
        assert_eq!(bucket.wait_for(500, after(1)), Duration::from_millis(400));
        // What nobody can ever hold is not waited for.
        assert_eq!(bucket.wait_for(5_000, after(1)), Duration::from_millis(400));
    }
}

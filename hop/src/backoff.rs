//! When to try again: exponential, with full jitter, never before the other end said.
//!
//! Full jitter (a uniform draw between nothing and the ceiling) spreads a fleet that lost its base station at one
//! moment; a fixed delay would bring all of it back at one moment as well. The randomness is an argument: the same
//! draws give the same delays.

use std::time::Duration;

/// The longest that a `RetryInfo` is obeyed. The far end is not trusted to put us to sleep for a year.
pub const RETRY_INFO_MAX: Duration = Duration::from_secs(3600);

/// How delays grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Ceiling of the first delay.
    pub first: Duration,
    /// No ceiling is above it.
    pub max: Duration,
}

impl Default for Policy {
    /// 500 ms, doubling to 60 s: a base station that comes back finds its fleet within a minute.
    fn default() -> Self {
        Self { first: Duration::from_millis(500), max: Duration::from_secs(60) }
    }
}

/// The delays of one series of failures. [`reset`](Backoff::reset) it when something has succeeded.
#[derive(Debug, Clone)]
pub struct Backoff {
    policy: Policy,
    failures: u32,
}

impl Backoff {
    /// Nothing has failed yet.
    pub fn new(policy: Policy) -> Self {
        Self { policy, failures: 0 }
    }

    /// The delay after one more failure.
    ///
    /// `random` is uniform over all of `u64`. `retry_info`, where the other end gave one, is the floor; the jitter comes
    /// on top of it, since everybody was told the same number.
    pub fn next_delay(&mut self, random: u64, retry_info: Option<Duration>) -> Duration {
        let ceiling = self.policy.first.saturating_mul(1 << self.failures.min(31)).min(self.policy.max);
        self.failures = self.failures.saturating_add(1);
        let floor = retry_info.unwrap_or_default().min(RETRY_INFO_MAX);
        floor + fraction(ceiling, random)
    }

    /// Something succeeded: the next failure starts from the beginning.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

/// A `RetryInfo` for one of many callers: `base` to one and a half times that.
pub fn spread(base: Duration, random: u64) -> Duration {
    base + fraction(base / 2, random)
}

/// Fresh random bits for [`Backoff::next_delay`] and [`spread`]. Not for secrets.
///
/// If the kernel gives none, the answer is the middle: a retry that is not spread is better than none.
pub fn random() -> u64 {
    getrandom::u64().unwrap_or(u64::MAX / 2)
}

fn fraction(of: Duration, random: u64) -> Duration {
    let nanos = u64::try_from(of.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(((u128::from(nanos) * u128::from(random)) >> 64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const POLICY: Policy = Policy { first: Duration::from_millis(100), max: Duration::from_secs(10) };

    #[test]
    fn ceilings_double_to_the_maximum_and_start_over_after_a_success() {
        let mut backoff = Backoff::new(POLICY);
        let ceilings: Vec<u128> = (0..9).map(|_| backoff.next_delay(u64::MAX, None).as_millis()).collect();
        assert_eq!(ceilings, [99, 199, 399, 799, 1599, 3199, 6399, 9999, 9999]);
        assert_eq!(backoff.failures(), 9);
        backoff.reset();
        assert_eq!(backoff.next_delay(u64::MAX, None).as_millis(), 99);
        assert_eq!(backoff.next_delay(0, None), Duration::ZERO);
    }

    #[test]
    fn retry_info_is_the_floor_and_no_longer_than_an_hour() {
        let mut backoff = Backoff::new(POLICY);
        assert_eq!(backoff.next_delay(0, Some(Duration::from_secs(7))), Duration::from_secs(7));
        assert_eq!(backoff.next_delay(0, Some(Duration::MAX)), RETRY_INFO_MAX);
    }

    #[test]
    fn a_thousand_failures_do_not_overflow() {
        let mut backoff = Backoff::new(Policy { first: Duration::from_secs(1), max: Duration::MAX });
        for _ in 0..1000 {
            backoff.next_delay(u64::MAX, Some(Duration::MAX));
        }
        assert_eq!(backoff.failures(), 1000);
    }

    proptest! {
        #[test]
        fn a_delay_lies_between_the_floor_and_the_floor_plus_the_ceiling(
            draws in prop::collection::vec(any::<u64>(), 1..40),
            floor_ms in 0u64..10_000_000,
        ) {
            let floor = Duration::from_millis(floor_ms);
            let mut backoff = Backoff::new(POLICY);
            for draw in draws {
                let delay = backoff.next_delay(draw, Some(floor));
                prop_assert!(delay >= floor.min(RETRY_INFO_MAX));
                prop_assert!(delay < floor.min(RETRY_INFO_MAX) + POLICY.max);
            }
        }

        #[test]
        fn a_spread_stays_within_half_again(base_ms in 1u64..1_000_000, draw: u64) {
            let base = Duration::from_millis(base_ms);
            prop_assert!(spread(base, draw) >= base && spread(base, draw) < base * 3 / 2);
        }
    }
}

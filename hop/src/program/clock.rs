//! The one place where a program reads the system's clock. Everything below takes time as an argument.

#![allow(clippy::disallowed_methods, reason = "this is the clock that the ban sends everybody to")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A wall clock that moved this much more or less than operating time did was set.
const STEP: Duration = Duration::from_secs(1);

/// Time since 1970 by the system's clock; zero if that stands before 1970.
pub fn wall() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Microseconds since 1970 by the system's clock.
pub fn wall_us() -> u64 {
    u64::try_from(wall().as_micros()).unwrap_or(u64::MAX)
}

/// Seconds since 1970 by the system's clock.
pub fn wall_s() -> u64 {
    wall().as_secs()
}

/// Time since the machine started, suspended time included: a clock that nobody can set.
pub fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Whether somebody has set the wall clock between two looks: at `then` by operating time it showed `wall_then`, and at `at` it
/// shows `wall`.
pub fn has_stepped(at: Duration, then: Duration, wall: Duration, wall_then: Duration) -> bool {
    let (passed, shown) = (at.saturating_sub(then), wall.checked_sub(wall_then));
    shown.is_none_or(|shown| shown.abs_diff(passed) > STEP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_forward_or_back_has_stepped_and_one_that_drifts_has_not() {
        let s = Duration::from_secs;
        let ms = Duration::from_millis;
        assert!(!has_stepped(s(11), s(10), s(1001), s(1000)));
        assert!(!has_stepped(s(11), s(10), s(1000) + ms(1900), s(1000)));
        assert!(has_stepped(s(11), s(10), s(1002) + ms(1), s(1000)));
        assert!(has_stepped(s(11), s(10), s(999), s(1000)), "back");
        assert!(has_stepped(s(13), s(10), s(1000), s(1000)), "it stands still");
    }

    #[test]
    fn the_machine_runs_and_its_clock_stands_after_the_year_2020() {
        assert!(since_boot().as_nanos() > 0);
        assert!(wall_s() > 1_577_836_800);
        assert_eq!(wall_us() / 60_000_000, wall_s() / 60);
    }
}

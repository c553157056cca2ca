//! The one place where a program reads the system's clock. Everything below takes time as an argument.

#![allow(clippy::disallowed_methods, reason = "this is the clock that the ban sends everybody to")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

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

#[cfg(test)]
mod tests {
    #[test]
    fn the_machine_runs_and_its_clock_stands_after_the_year_2020() {
        assert!(super::since_boot().as_nanos() > 0);
        assert!(super::wall_s() > 1_577_836_800);
        assert_eq!(super::wall_us() / 60_000_000, super::wall_s() / 60);
    }
}

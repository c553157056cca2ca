//! The clocks of a device, and what each may be used for.
//!
//! - *Operating time* (`CLOCK_BOOTTIME`) counts seconds that nobody can set. Trust and session age rest on it.
//! - *Wall time* is whatever the battery-backed clock says, 1970 included. Records are stamped with it, and nothing
//!   is decided by it: it is never persisted and never moves a floor (trust document, section 4).
//! - A *trusted clock* is one that the owner vouches for (NTS, authenticated PTP, set by an operator).
//!
//! This is the one file of the crate that reads a clock; everything else is given the time.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use pithead_sealing::trust::{Clock, UnixTime};
use rustix::time::{ClockId, clock_gettime};

/// Where trusted time comes from, if the owner has such a source: seconds since 1970, or nothing while it is not
/// synchronised.
pub type TrustedClock = Arc<dyn Fn() -> Option<UnixTime> + Send + Sync>;

/// Where operating time comes from: it never runs backwards, nobody can set it, and it goes on while the machine sleeps.
pub type HourMeter = Arc<dyn Fn() -> Duration + Send + Sync>;

/// The clocks as they stand while a device is open.
pub struct DeviceClock {
    meter: HourMeter,
    opened_at: Duration,
    trusted: Option<TrustedClock>,
}

impl fmt::Debug for DeviceClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceClock")
            .field("opened_at", &self.opened_at)
            .field("trusted", &self.trusted.is_some())
            .finish()
    }
}

impl Default for DeviceClock {
    fn default() -> Self {
        Self::start()
    }
}

impl DeviceClock {
    /// Starts counting operating time, without a trusted clock: what most vehicles have.
    #[must_use]
    pub fn start() -> Self {
        Self::metered(Arc::new(Self::since_boot), None)
    }

    /// The same with a trusted clock.
    #[must_use]
    pub fn start_with(trusted: TrustedClock) -> Self {
        Self::metered(Arc::new(Self::since_boot), Some(trusted))
    }

    /// Counts operating time by `meter`: for a machine with an hour meter of its own, and for a rehearsal of what happens
    /// in a year. Age of sessions goes by `CLOCK_BOOTTIME` all the same.
    #[must_use]
    pub fn metered(meter: HourMeter, trusted: Option<TrustedClock>) -> Self {
        Self { opened_at: meter(), meter, trusted }
    }

    /// The same sources, counting operating time from now on.
    #[must_use]
    pub fn restarted(&self) -> Self {
        Self::metered(Arc::clone(&self.meter), self.trusted.clone())
    }

    /// What the trust rules are given: seconds operated since the start, and trusted time if there is any.
    #[must_use]
    pub fn now(&self) -> Clock {
        let uptime_s = (self.meter)().saturating_sub(self.opened_at).as_secs();
        Clock { uptime_s, trusted_now: self.trusted.as_ref().and_then(|read| read()) }
    }

    /// Time since the machine was booted, sleep included. Monotonic.
    #[must_use]
    pub fn since_boot() -> Duration {
        let now = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
    }

    /// Microseconds since 1970 by the system's clock, negative before; for stamping records, never for a decision.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    pub fn wall_us() -> i64 {
        let signed = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(after) => signed(after),
            Err(before) => -signed(before.duration()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operating_time_starts_at_zero_and_a_trusted_clock_is_asked_each_time() {
        assert_eq!(DeviceClock::start().now(), Clock::uptime(0));
        let synchronised = std::sync::atomic::AtomicBool::new(false);
        let clock = DeviceClock::start_with(Arc::new(move || {
            synchronised.fetch_not(std::sync::atomic::Ordering::Relaxed).then_some(UnixTime(1_800_000_000))
        }));
        assert_eq!(clock.now().trusted_now, None);
        assert_eq!(clock.now().trusted_now, Some(UnixTime(1_800_000_000)));
    }

    #[test]
    fn an_hour_meter_of_ones_own_counts_from_where_it_stood() {
        let hours = Arc::new(std::sync::atomic::AtomicU64::new(1000));
        let read = Arc::clone(&hours);
        let meter = move || Duration::from_secs(3600 * read.load(std::sync::atomic::Ordering::Relaxed));
        let clock = DeviceClock::metered(Arc::new(meter), None);
        assert_eq!(clock.now(), Clock::uptime(0));
        hours.store(1072, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(clock.now(), Clock::uptime(72 * 3600));
        assert_eq!(clock.restarted().now(), Clock::uptime(0));
    }
}

//! Time as the device can know it.
//!
//! Nothing here reads a clock. The caller says how long this process has operated and, if there is one,
//! what a *trusted* clock says: NTS, authenticated PTP or set by an operator; never the battery-backed
//! clock, plain NTP or the gateway, which all lie when somebody wants them to.

use std::fmt;

/// Seconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UnixTime(pub u64);

impl UnixTime {
    /// The second that lies `seconds` later; the end of time rather than an overflow.
    pub const fn plus(self, seconds: u64) -> UnixTime {
        UnixTime(self.0.saturating_add(seconds))
    }

    /// Seconds from `earlier` to here, 0 if it is not earlier.
    pub const fn since(self, earlier: UnixTime) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The plain number of seconds.
    pub const fn as_secs(self) -> u64 {
        self.0
    }
}

impl From<u64> for UnixTime {
    fn from(seconds: u64) -> UnixTime {
        UnixTime(seconds)
    }
}

impl fmt::Display for UnixTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What the caller knows of time at the moment of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Clock {
    /// Seconds operated since the [`Device`](super::Device) was provisioned or restored *in this process*,
    /// by a clock that nobody can set (`CLOCK_BOOTTIME`). It never falls while the `Device` lives.
    pub uptime_s: u64,
    /// The trusted clock, if there is one.
    pub trusted_now: Option<UnixTime>,
}

impl Clock {
    /// A clock of operating time alone: what most vehicles have.
    pub const fn uptime(uptime_s: u64) -> Clock {
        Clock { uptime_s, trusted_now: None }
    }

    /// Operating time and a trusted clock.
    pub const fn trusted(uptime_s: u64, now: UnixTime) -> Clock {
        Clock { uptime_s, trusted_now: Some(now) }
    }
}

//! The gateway's clocks, and what each may be used for.
//!
//! *Operating time* is monotonic and nobody can set it: trust and intervals rest on it. *Wall time* stamps custody facts
//! and screens, and decides nothing. The operator may vouch for the machine's clock (`trust.trusted_clock`); only then
//! does it take part in judging statements.

use std::time::Duration;

use pithead_hop::program::clock;
use pithead_sealing::trust::{Clock, UnixTime};

pub use clock::{since_boot, wall_us};

/// The clocks of a running gateway.
#[derive(Debug, Clone, Copy)]
pub struct GatewayClock {
    started: Duration,
    wall_is_trusted: bool,
}

impl GatewayClock {
    /// Starts counting operating time.
    #[must_use]
    pub fn start(wall_is_trusted: bool) -> Self {
        Self { started: since_boot(), wall_is_trusted }
    }

    /// What the trust rules are given.
    #[must_use]
    pub fn now(&self) -> Clock {
        let uptime_s = since_boot().saturating_sub(self.started).as_secs();
        Clock { uptime_s, trusted_now: self.wall_is_trusted.then(|| UnixTime(clock::wall_s())) }
    }
}

/// Milliseconds since 1970: for the age of what waits.
#[must_use]
pub fn wall_ms() -> u64 {
    wall_us() / 1000
}

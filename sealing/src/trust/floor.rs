//! Lower bounds of time: what must have passed, by signatures and by operating.
//!
//! A signed time that was accepted has passed, and so has every second operated since. The two floors are kept
//! apart because a stolen statement key can sign a time years ahead: raising the epoch drops the statement's
//! floor and leaves the root's, which that thief cannot move.

use super::time::UnixTime;

/// Operating seconds in a device's whole life.
pub(in crate::trust) type Operated = u64;

/// At `operated` operating seconds it was `time` or later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::trust) struct Floor {
    pub(in crate::trust) time: UnixTime,
    pub(in crate::trust) operated: Operated,
}

impl Floor {
    /// The bound after more operating.
    pub(in crate::trust) fn now(&self, operated: Operated) -> UnixTime {
        self.time.plus(operated.saturating_sub(self.operated))
    }

    /// The floor after a signed time was accepted: it moves up by signed times alone, and never down.
    pub(in crate::trust) fn raised(self, signed: UnixTime, operated: Operated) -> Floor {
        if signed > self.now(operated) { Floor { time: signed, operated } } else { self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_signed_time_does_not_take_back_what_was_operated() {
        let floor = Floor { time: UnixTime(1000), operated: 0 };
        let after = floor.raised(UnixTime(1050), 500);
        assert_eq!(after.now(500), UnixTime(1500));
        assert_eq!(floor.raised(UnixTime(9000), 500).now(600), UnixTime(9100));
    }

    #[test]
    fn the_end_of_time_is_not_an_overflow() {
        let floor = Floor { time: UnixTime(u64::MAX - 1), operated: 0 };
        assert_eq!(floor.now(u64::MAX), UnixTime(u64::MAX));
    }
}

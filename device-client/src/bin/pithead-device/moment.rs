//! Moments and spans, as people read them.
//!
//! A moment is a number of seconds since 1970 for programs and RFC 3339 in UTC for people; both are printed (see
//! [`Output::print`](crate::output::Output::print)). Ages are by the wall clock, which is shown here and believed nowhere.

use std::time::Duration;

use pithead_device_client::clock::DeviceClock;
pub(crate) use pithead_hop::program::human::span;
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// The moment in RFC 3339, UTC; the number of seconds where the calendar ends.
pub(crate) fn rfc3339(seconds: u64) -> String {
    let text = i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|moment| moment.format(&Rfc3339).ok());
    text.unwrap_or_else(|| format!("{seconds} s after 1970"))
}

/// A moment as two fields: the number, and what a table shows of it.
pub(crate) fn fields(name: &'static str, text: &'static str, seconds: u64) -> [(&'static str, Value); 2] {
    [(name, json!(seconds)), (text, json!(rfc3339(seconds)))]
}

/// How long ago that was by the wall clock; nothing if it is to come.
pub(crate) fn age_ms(at_ms: u64) -> Duration {
    Duration::from_millis(now_ms().saturating_sub(at_ms))
}

/// The wall clock, in milliseconds since 1970. For display.
pub(crate) fn now_ms() -> u64 {
    u64::try_from(DeviceClock::wall_us() / 1_000).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_read_well() {
        assert_eq!(rfc3339(1_795_731_600), "2026-11-26T22:20:00Z");
        assert_eq!(rfc3339(u64::MAX), "18446744073709551615 s after 1970");
    }
}

//! Numbers as people read them: sizes, spans, counts, rates, dates. For screens alone; programs get the number.

use std::time::Duration;

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// A size in the largest unit of which there is at least one: `512 B`, `3.2 GiB`.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // What would be printed as 1024 of a unit is 1.0 of the next.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Bytes a second: `1.5 MiB/s`.
#[must_use]
pub fn rate(bytes_per_s: f64) -> String {
    // A rate below one byte is none.
    format!("{}/s", self::bytes(if bytes_per_s.is_finite() { bytes_per_s.max(0.0) as u64 } else { 0 }))
}

/// A count with its thousands apart: `1,234,567`.
#[must_use]
pub fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// So many of something: `1 record`, `2 records`.
#[must_use]
pub fn some(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { many })
}

/// How long something takes or has waited, in its two largest units: `1 h 2 min`.
#[must_use]
pub fn span(span: Duration) -> String {
    const UNITS: [(&str, u64); 4] = [("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)];
    let seconds = span.as_secs();
    if seconds == 0 {
        return format!("{} ms", span.as_millis());
    }
    let first = UNITS.iter().position(|(_, unit)| seconds >= *unit).unwrap_or(UNITS.len() - 1);
    let (name, unit) = UNITS[first];
    let rest = seconds % unit;
    match UNITS.get(first + 1) {
        Some((second, part)) if rest >= *part => {
            format!("{} {name} {} {second}", seconds / unit, rest / part)
        }
        _ => format!("{} {name}", seconds / unit),
    }
}

/// [`span`] of whole seconds; nothing of it is said in milliseconds.
#[must_use]
pub fn seconds(seconds: u64) -> String {
    if seconds == 0 { "0 s".to_owned() } else { span(Duration::from_secs(seconds)) }
}

/// A moment in UTC: `2026-11-26T18:00:00Z`; the number of seconds where the calendar ends.
#[must_use]
pub fn moment(seconds: u64) -> String {
    let text = i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|moment| moment.format(&Rfc3339).ok());
    text.unwrap_or_else(|| format!("{seconds} s after 1970"))
}

/// A moment, and how far it is from `now`: `2026-11-26T18:00:00Z (in 3 d 2 h)`.
#[must_use]
pub fn moment_from(seconds: u64, now: u64) -> String {
    let away = self::seconds(seconds.abs_diff(now));
    if seconds >= now {
        format!("{} (in {away})", moment(seconds))
    } else {
        format!("{} ({away} ago)", moment(seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_unit_that_fits() {
        for (number, said) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (8 << 30, "8.0 GiB"),
            (u64::MAX, "16384.0 PiB"),
        ] {
            assert_eq!(bytes(number), said, "{number}");
        }
        assert_eq!(rate(1536.4), "1.5 KiB/s");
        assert_eq!(rate(-1.0), "0 B/s");
        assert_eq!(rate(f64::NAN), "0 B/s");
    }

    #[test]
    fn thousands_stand_apart() {
        for (number, said) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(number), said);
        }
        assert_eq!(some(1, "record", "records"), "1 record");
        assert_eq!(some(1000, "record", "records"), "1,000 records");
    }

    #[test]
    fn spans_and_moments_read_well() {
        for (number, said) in
            [(1, "1 s"), (60, "1 min"), (3_725, "1 h 2 min"), (90_000, "1 d 1 h"), (86_460, "1 d")]
        {
            assert_eq!(seconds(number), said);
        }
        assert_eq!((seconds(0).as_str(), span(Duration::from_millis(350)).as_str()), ("0 s", "350 ms"));
        assert_eq!(moment(1_795_731_600), "2026-11-26T22:20:00Z");
        assert_eq!(moment(u64::MAX), "18446744073709551615 s after 1970");
        assert_eq!(moment_from(1_795_731_600, 1_795_731_540), "2026-11-26T22:20:00Z (in 1 min)");
        assert_eq!(moment_from(1_795_731_600, 1_795_731_601), "2026-11-26T22:20:00Z (1 s ago)");
    }
}

//! Values that carry their unit: `"15min"`, `"200GiB"`. A bare number is refused, since nobody knows what it counts.

use std::{fmt, ops::Deref, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a value with a unit was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnitError {
    /// A number, and nothing that says what it counts.
    #[error("`{0}` has no unit; write {1}")]
    NoUnit(String, &'static str),
    /// A unit that is not known.
    #[error("`{0}` is not a unit here; write {1}")]
    UnknownUnit(String, &'static str),
    /// Not digits before the unit.
    #[error("`{0}` does not begin with a whole number; write {1}")]
    NoNumber(String, &'static str),
    /// More than can be counted.
    #[error("`{0}` is too large")]
    TooLarge(String),
}

const DURATIONS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1000), ("min", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
const DURATION_HELP: &str = "a time such as \"500ms\", \"5s\", \"15min\", \"12h\" or \"30d\"";
const SIZES: [(&str, u64); 5] =
    [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];
const SIZE_HELP: &str = "a size such as \"64KiB\", \"4MiB\", \"200GiB\" or \"1TiB\"";

fn parse(text: &str, units: &[(&str, u64)], help: &'static str) -> Result<u64, UnitError> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = (&text[..digits], text[digits..].trim_start());
    if number.is_empty() {
        return Err(UnitError::NoNumber(text.to_owned(), help));
    }
    if unit.is_empty() {
        return Err(UnitError::NoUnit(text.to_owned(), help));
    }
    let Some((_, factor)) = units.iter().find(|(name, _)| *name == unit) else {
        return Err(UnitError::UnknownUnit(unit.to_owned(), help));
    };
    let too_large = || UnitError::TooLarge(text.to_owned());
    number.parse::<u64>().map_err(|_| too_large())?.checked_mul(*factor).ok_or_else(too_large)
}

fn print(value: u64, units: &[(&str, u64)], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let fits = |(_, factor): &&(&str, u64)| value != 0 && value.is_multiple_of(*factor);
    let (name, factor) = units.iter().rev().find(fits).unwrap_or(&units[0]);
    write!(f, "{}{name}", value / factor)
}

macro_rules! textual {
    ($name:ident) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl serde::de::Visitor<'_> for Text {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($name::HELP)
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }

                    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<$name, E> {
                        Err(E::custom(UnitError::NoUnit(number.to_string(), $name::HELP)))
                    }

                    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<$name, E> {
                        Err(E::custom(UnitError::NoUnit(number.to_string(), $name::HELP)))
                    }
                }
                deserializer.deserialize_any(Text)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }
    };
}

/// A span of time in the configuration: whole `ms`, `s`, `min`, `h` or `d`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(std::time::Duration);

impl Duration {
    const HELP: &'static str = DURATION_HELP;

    /// So many milliseconds.
    pub const fn from_millis(ms: u64) -> Self {
        Self(std::time::Duration::from_millis(ms))
    }

    /// So many seconds.
    pub const fn from_secs(s: u64) -> Self {
        Self(std::time::Duration::from_secs(s))
    }

    /// The standard library's duration.
    pub const fn get(self) -> std::time::Duration {
        self.0
    }
}

impl Deref for Duration {
    type Target = std::time::Duration;

    fn deref(&self) -> &std::time::Duration {
        &self.0
    }
}

impl FromStr for Duration {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse(text, &DURATIONS, DURATION_HELP).map(Self::from_millis)
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX), &DURATIONS, f)
    }
}

textual!(Duration);

/// A size in the configuration: whole `B`, `KiB`, `MiB`, `GiB` or `TiB`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

impl ByteSize {
    const HELP: &'static str = SIZE_HELP;

    /// So many bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// So many KiB.
    pub const fn kib(kib: u64) -> Self {
        Self(kib << 10)
    }

    /// So many MiB.
    pub const fn mib(mib: u64) -> Self {
        Self(mib << 20)
    }

    /// Bytes.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Bytes, for an interface that counts in 32 bits; the largest of those if there are more.
    pub const fn get_u32(self) -> u32 {
        if self.0 > u32::MAX as u64 { u32::MAX } else { self.0 as u32 }
    }

    /// Bytes, for an interface that counts in machine words.
    pub fn get_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse(text, &SIZES, SIZE_HELP).map(Self)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(self.0, &SIZES, f)
    }
}

textual!(ByteSize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_carry_their_unit_both_ways() {
        for text in ["1ms", "1500ms", "5s", "15min", "12h", "30d", "0ms"] {
            assert_eq!(text.parse::<Duration>().expect(text).to_string(), text);
        }
        for text in ["0B", "1B", "1023B", "64KiB", "4MiB", "200GiB", "3TiB"] {
            assert_eq!(text.parse::<ByteSize>().expect(text).to_string(), text);
        }
        assert_eq!("60s".parse::<Duration>().expect("good").to_string(), "1min");
        assert_eq!(" 5 s ".parse::<Duration>().expect("good"), Duration::from_secs(5));
        assert_eq!("4MiB".parse::<ByteSize>().expect("good").get(), 4_194_304);
    }

    #[test]
    fn a_number_without_a_unit_and_a_unit_without_a_number_are_refused() {
        assert!(matches!("5".parse::<Duration>(), Err(UnitError::NoUnit(..))));
        assert!(matches!("s".parse::<Duration>(), Err(UnitError::NoNumber(..))));
        assert!(matches!("-5s".parse::<Duration>(), Err(UnitError::NoNumber(..))));
        assert!(matches!("1.5h".parse::<Duration>(), Err(UnitError::UnknownUnit(..))));
        assert!(matches!("5 sec".parse::<Duration>(), Err(UnitError::UnknownUnit(..))));
        assert!(matches!("200GB".parse::<ByteSize>(), Err(UnitError::UnknownUnit(..))));
        assert!(matches!("20000000TiB".parse::<ByteSize>(), Err(UnitError::TooLarge(..))));
        assert!(matches!("99999999999999999999s".parse::<Duration>(), Err(UnitError::TooLarge(..))));
    }
}

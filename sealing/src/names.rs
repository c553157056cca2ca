//! The names everything is filed under: site, device, stream, run, sequence number.
//!
//! Each is parsed once, at the edge, into a type that can only be right: what it holds is safe in a path, a log line
//! and an encryption context. The grammars are those of the envelope document, section 2.2 (names) and 2.1 (numbers).
//! Clones of the textual names share one allocation.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::sync::Arc;

/// Why a name or a number was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Not `[a-z0-9][a-z0-9-]{0,62}`.
    #[error("a site is 1 to 63 of a-z, 0-9 and '-', and begins with a letter or digit")]
    Site,
    /// Not `[A-Za-z0-9][A-Za-z0-9._-]{0,62}`, or it holds `..`.
    #[error(
        "a device is 1 to 63 of A-Z, a-z, 0-9, '.', '_' and '-', begins with a letter or digit and holds no '..'"
    )]
    Device,
    /// Not `[a-z0-9-]{1,32}`.
    #[error("a stream is 1 to 32 of a-z, 0-9 and '-'")]
    Stream,
    /// Zero, or not written as 16 lower-case hex digits.
    #[error("a run is a number other than 0, written as 16 lower-case hex digits")]
    Run,
    /// Zero, 2^63 or above, or not written in plain decimal digits.
    #[error("a sequence number is from 1 to 2^63 - 1, in decimal without leading zeros")]
    Seq,
}

macro_rules! textual_name {
    ($(#[$doc:meta])* $name:ident, $error:ident, $accepts:path) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            #[doc = concat!("Parses `text`; refuses with [`NameError::", stringify!($error), "`].")]
            pub fn new(text: &str) -> Result<Self, NameError> {
                if $accepts(text.as_bytes()) { Ok(Self(Arc::from(text))) } else { Err(NameError::$error) }
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

textual_name! {
    /// A site: one place with one gateway and one certificate authority. `[a-z0-9][a-z0-9-]{0,62}`.
    Site, Site, is_site
}
textual_name! {
    /// A device, as its certificate names it. `[A-Za-z0-9][A-Za-z0-9._-]{0,62}` without `..`.
    DeviceId, Device, is_device
}
textual_name! {
    /// A stream of one device. `[a-z0-9-]{1,32}`.
    StreamName, Stream, is_stream
}

fn is_site(text: &[u8]) -> bool {
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    (1..=63).contains(&text.len()) && text[0] != b'-' && text.iter().all(inner)
}

fn is_device(text: &[u8]) -> bool {
    let inner = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=63).contains(&text.len())
        && text[0].is_ascii_alphanumeric()
        && text.iter().all(inner)
        // A device's name becomes a folder at the sink: no step upwards.
        && !text.windows(2).any(|pair| pair == b"..")
}

fn is_stream(text: &[u8]) -> bool {
    (1..=32).contains(&text.len())
        && text.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

/// One opening of a device's sequence state: `u32 start counter || u32 random`, never 0.
///
/// A name with a readable order, not a lock: a cloned disk cannot repeat a number under one run.
/// Displays as 16 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Run(NonZeroU64);

impl Run {
    /// Takes the number as it stands in a message id; refuses 0.
    pub fn new(value: u64) -> Result<Self, NameError> {
        NonZeroU64::new(value).map(Self).ok_or(NameError::Run)
    }

    /// Composes a run from the device's start counter and fresh random bits; refuses 0 and 0.
    pub fn from_parts(counter: u32, random: u32) -> Result<Self, NameError> {
        Self::new(u64::from(counter) << 32 | u64::from(random))
    }

    /// The number itself.
    pub fn get(self) -> u64 {
        self.0.get()
    }

    /// The start counter, the upper half.
    pub fn counter(self) -> u32 {
        (self.0.get() >> 32) as u32
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Run({self})")
    }
}

impl FromStr for Run {
    type Err = NameError;

    /// Reads exactly 16 lower-case hex digits, so that one run has one spelling.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() != 16 || !text.bytes().all(digit) {
            return Err(NameError::Run);
        }
        u64::from_str_radix(text, 16).map_err(|_| NameError::Run).and_then(Self::new)
    }
}

/// The number of an envelope on its line, dense from 1; below 2^63.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(NonZeroU64);

impl Seq {
    /// The first of every line.
    pub const FIRST: Self = Self(NonZeroU64::MIN);
    /// The last that can be: 2^63 - 1.
    pub const LAST: Self = Self(NonZeroU64::new(i64::MAX as u64).expect("not zero"));

    /// Takes the number as it stands in a message id; refuses 0 and 2^63 or above.
    pub fn new(value: u64) -> Result<Self, NameError> {
        match NonZeroU64::new(value) {
            Some(seq) if seq <= Self::LAST.0 => Ok(Self(seq)),
            _ => Err(NameError::Seq),
        }
    }

    /// The number itself.
    pub fn get(self) -> u64 {
        self.0.get()
    }

    /// The number after this one; none after [`Seq::LAST`].
    pub fn next(self) -> Option<Self> {
        Self::new(self.get() + 1).ok()
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seq({self})")
    }
}

impl FromStr for Seq {
    type Err = NameError;

    /// Reads decimal digits without sign or leading zero, so that one number has one spelling.
    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.starts_with('0') || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(NameError::Seq);
        }
        text.parse().map_err(|_| NameError::Seq).and_then(Self::new)
    }
}

/// What an envelope is filed under, everywhere and for ever. Never its hash.
///
/// Displays as `site/device/stream/run/seq`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// The site in the encryption context.
    pub site: Site,
    /// The device in the encryption context.
    pub device: DeviceId,
    /// The stream in the encryption context.
    pub stream: StreamName,
    /// The run in the message id (or in `pithead:seq`).
    pub run: Run,
    /// The number in the message id (or in `pithead:seq`).
    pub seq: Seq,
}

impl Identity {
    /// The line that this envelope is one of.
    pub fn line(&self) -> Line {
        Line { device: self.device.clone(), stream: self.stream.clone(), run: self.run }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}/{}", self.site, self.device, self.stream, self.run, self.seq)
    }
}

/// One dense sequence: a device's stream within one run. The site is known where lines are kept.
///
/// Displays as `device/stream/run`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Line {
    /// Whose line it is.
    pub device: DeviceId,
    /// Which of the device's streams.
    pub stream: StreamName,
    /// Under which opening of the sequence state.
    pub run: Run,
}

impl Line {
    /// The identity of number `seq` on this line, at `site`.
    pub fn identity(&self, site: &Site, seq: Seq) -> Identity {
        Identity {
            site: site.clone(),
            device: self.device.clone(),
            stream: self.stream.clone(),
            run: self.run,
            seq,
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.device, self.stream, self.run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_to_their_grammar() {
        let longest = "a".repeat(63);
        for good in ["p", "pit-7", "7-", longest.as_str()] {
            assert!(Site::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-pit", "Pit", "pit_7", "pit.7", "pité", "a b", &"a".repeat(64)] {
            assert_eq!(Site::new(bad), Err(NameError::Site), "{bad}");
        }
        for good in ["truck-0042", "T.1_2-3", "7", "a."] {
            assert!(DeviceId::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".a", "-a", "_a", "a..b", "a/b", "..", "a\0", &"a".repeat(64)] {
            assert_eq!(DeviceId::new(bad), Err(NameError::Device), "{bad}");
        }
        assert!(StreamName::new("-").is_ok() && StreamName::new(&"s".repeat(32)).is_ok());
        for bad in ["", "S", "a.b", &"s".repeat(33)] {
            assert_eq!(StreamName::new(bad), Err(NameError::Stream), "{bad}");
        }
    }

    #[test]
    fn a_run_and_a_seq_have_one_spelling() {
        let run = Run::from_parts(3, 0xdead_beef).expect("not zero");
        assert_eq!(run.to_string(), "00000003deadbeef");
        assert_eq!("00000003deadbeef".parse(), Ok(run));
        for bad in ["0000000000000000", "00000003DEADBEEF", "3deadbeef", "+0000003deadbeef", ""] {
            assert_eq!(bad.parse::<Run>(), Err(NameError::Run), "{bad}");
        }
        assert_eq!("9223372036854775807".parse(), Ok(Seq::LAST));
        for bad in ["0", "01", "+1", "-1", "", "9223372036854775808", "18446744073709551616", "1 "] {
            assert_eq!(bad.parse::<Seq>(), Err(NameError::Seq), "{bad}");
        }
        assert_eq!(Seq::LAST.next(), None);
        assert_eq!(Seq::FIRST.next().map(Seq::get), Some(2));
    }
}

//! Values of the context that have a grammar of their own: media type, encoding, file name, time.

use std::fmt;
use std::sync::Arc;

/// Why a value of the context was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ValueError {
    /// Not `type/subtype` in at most 64 bytes of printable ASCII.
    #[error("a content type is type/subtype with optional parameters, at most 64 bytes")]
    ContentType,
    /// A file name that is empty, a path, or cannot be a name.
    #[error("a file name is 1 to 255 bytes, holds no '/', '\\' or control character, and is not '.' or '..'")]
    FileName,
    /// Not an RFC 3339 date and time.
    #[error("a time is RFC 3339, such as 2026-11-23T16:40:00Z")]
    Created,
}

/// Media type of the plaintext, at most 64 bytes. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ContentType(Arc<str>);

impl ContentType {
    /// The content type of a batch of records, message `pithead.batch.v1.Batch`.
    pub const BATCH: &str = "application/vnd.pithead.batch+protobuf";
    /// Bytes at most.
    pub const LEN_MAX: usize = 64;

    /// Parses a media type: two tokens (RFC 9110, 5.6.2) and optional parameters.
    pub fn new(text: &str) -> Result<Self, ValueError> {
        let (essence, parameters) = text.split_once(';').unwrap_or((text, ""));
        let (kind, subtype) = essence.split_once('/').ok_or(ValueError::ContentType)?;
        let printable = |byte: u8| (0x20..=0x7e).contains(&byte);
        let good = text.len() <= Self::LEN_MAX
            && is_token(kind)
            && is_token(subtype.trim_end_matches(' '))
            && parameters.bytes().all(printable);
        if good { Ok(Self(Arc::from(text))) } else { Err(ValueError::ContentType) }
    }

    /// The content type of batches.
    pub fn batch() -> Self {
        Self(Arc::from(Self::BATCH))
    }

    /// True if the plaintext is a batch of records.
    pub fn is_batch(&self) -> bool {
        &*self.0 == Self::BATCH
    }

    /// The media type as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

impl fmt::Display for ContentType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ContentType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentType({})", self.0)
    }
}

/// How a plaintext was compressed before it was sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Encoding {
    /// One zstd frame (RFC 8878), window at most 8 MiB.
    Zstd,
}

impl Encoding {
    /// The value of `pithead:encoding`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
        }
    }

    pub(super) fn from_name(text: &str) -> Option<Self> {
        (text == Self::Zstd.as_str()).then_some(Self::Zstd)
    }
}

/// Name of a file without any folder, kept as text and carried percent-encoded.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FileName(Box<str>);

impl FileName {
    /// Takes a plain name, as a file system gives it.
    pub fn new(name: &str) -> Result<Self, ValueError> {
        // A name sealed by a stranger must not lead a sink out of its folder, on any system.
        let steps = matches!(name, "." | "..") || name.contains(['/', '\\']);
        if name.is_empty() || name.len() > 255 || steps || name.chars().any(char::is_control) {
            return Err(ValueError::FileName);
        }
        Ok(Self(name.into()))
    }

    /// Reads the percent-encoded form (RFC 3986, 2.1; every byte but `A-Za-z0-9-._~` as `%XX`).
    pub fn from_encoded(text: &str) -> Result<Self, ValueError> {
        let mut name = Vec::with_capacity(text.len());
        let mut bytes = text.bytes();
        while let Some(byte) = bytes.next() {
            name.push(match byte {
                b'%' => {
                    let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16));
                    let (high, low) =
                        (digit().ok_or(ValueError::FileName)?, digit().ok_or(ValueError::FileName)?);
                    (high << 4 | low) as u8
                }
                byte if is_unreserved(byte) => byte,
                _ => return Err(ValueError::FileName),
            });
        }
        Self::new(std::str::from_utf8(&name).map_err(|_| ValueError::FileName)?)
    }

    /// The percent-encoded form: printable ASCII.
    pub fn to_encoded(&self) -> String {
        let mut text = String::with_capacity(self.0.len());
        for byte in self.0.bytes() {
            if is_unreserved(byte) {
                text.push(char::from(byte));
            } else {
                text.push_str(&format!("%{byte:02X}"));
            }
        }
        text
    }

    /// The plain name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// True for an RFC 3339 date and time with seconds, optional fraction, and `Z` or an offset.
pub(super) fn is_rfc3339(text: &str) -> bool {
    let bytes = text.as_bytes();
    if bytes.len() < 20 || bytes.len() > 35 || !text.is_ascii() {
        return false;
    }
    let number = |at: usize, len: usize| -> Option<u32> {
        let digits = text.get(at..at + len)?;
        digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
    };
    let separators =
        bytes[4] == b'-' && bytes[7] == b'-' && bytes[10] == b'T' && bytes[13] == b':' && bytes[16] == b':';
    let (Some(year), Some(month), Some(day)) = (number(0, 4), number(5, 2), number(8, 2)) else {
        return false;
    };
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        4 | 6 | 9 | 11 => 30,
        2 => 28 + u32::from(leap),
        _ => 31,
    };
    let below = |at: usize, bound: u32| number(at, 2).is_some_and(|value| value < bound);
    let mut rest = &text[19..];
    if let Some(fraction) = rest.strip_prefix('.') {
        let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 {
            return false;
        }
        rest = &fraction[digits..];
    }
    let at = text.len() - rest.len();
    let zone = rest == "Z"
        || (rest.len() == 6
            && matches!(rest.as_bytes()[0], b'+' | b'-')
            && rest.as_bytes()[3] == b':'
            && below(at + 1, 24)
            && below(at + 4, 60));
    // A leap second is a valid 60.
    separators
        && (1..=12).contains(&month)
        && (1..=days).contains(&day)
        && below(11, 24)
        && below(14, 60)
        && below(17, 61)
        && zone
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_media_type_is_two_tokens() {
        for good in ["a/b", ContentType::BATCH, "text/plain; charset=utf-8", "application/x-rosbag"] {
            assert_eq!(ContentType::new(good).map(|t| t.as_str().to_owned()), Ok(good.to_owned()));
        }
        for bad in
            ["", "a", "/", "a/", "/b", "a b/c", "a/b/c", "a/b;\u{7f}", &format!("a/{}", "b".repeat(63))]
        {
            assert_eq!(ContentType::new(bad), Err(ValueError::ContentType), "{bad}");
        }
    }

    #[test]
    fn a_file_name_survives_the_encoding_and_never_is_a_path() {
        for good in ["drive-0042.bag", "Fahrt über 7%.bag", "..a", "a b"] {
            let name = FileName::new(good).expect("a name");
            assert_eq!(FileName::from_encoded(&name.to_encoded()), Ok(name));
        }
        for bad in [
            "..", ".", "", "%2E%2E", "%2e", "a%2Fb", "a/b", "a%5Cb", "%00", "a%0Ab", "%", "%4", "%zz", "é",
            "%FF",
        ] {
            assert_eq!(FileName::from_encoded(bad), Err(ValueError::FileName), "{bad}");
        }
    }

    #[test]
    fn a_time_is_rfc_3339() {
        for good in
            ["2026-11-23T16:40:00Z", "2024-02-29T00:00:60.123456+05:30", "2026-11-23T16:40:00.1-00:00"]
        {
            assert!(is_rfc3339(good), "{good}");
        }
        for bad in [
            "",
            "2026-11-23",
            "2026-11-23 16:40:00Z",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-11-23T24:00:00Z",
            "2026-11-23T16:40:00",
            "2026-11-23T16:40:00.Z",
            "2026-11-23T16:40:00+24:00",
            "2026-11-23T16:40:00Zjunk",
            "+026-11-23T16:40:00Z",
        ] {
            assert!(!is_rfc3339(bad), "{bad}");
        }
    }
}

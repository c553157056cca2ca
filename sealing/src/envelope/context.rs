//! The encryption context: clear text that every part of the envelope authenticates.
//!
//! A [`Context`] is the serialised form, known to follow the format's grammar (envelope document, 1.1):
//!
//! ```text
//! u16 pairs (> 0) { u16 length, key, u16 length, value }...      keys strictly ascending by their bytes, all UTF-8
//! ```
//!
//! An empty context has no bytes at all. Which keys we accept is the profile's matter ([`super::profile`]).

use std::fmt;

use bytes::Bytes;
use sha2::{Digest, Sha384};
use subtle::ConstantTimeEq;

use super::format_error::{FormatError, HeaderFault};

/// Why pairs do not make a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ContextError {
    /// A key stands twice.
    #[error("a key stands twice")]
    Duplicate,
    /// Serialised, it would have more than 65,535 bytes or pairs.
    #[error("the context would not fit its 16-bit lengths")]
    TooLarge,
}

/// An encryption context in its serialised form, without the 2-byte length that the header puts before it.
#[derive(Clone, PartialEq, Eq)]
pub struct Context {
    wire: Bytes,
}

impl Context {
    /// The context without pairs: zero bytes.
    pub const EMPTY: Self = Self { wire: Bytes::new() };

    /// Reads the serialised form, which must fill `wire` exactly.
    ///
    /// # Errors
    /// `malformed-header` if it is unsorted, holds a key twice, is not UTF-8, or does not fill its length.
    pub fn parse(wire: Bytes) -> Result<Self, FormatError> {
        check(&wire)?;
        Ok(Self { wire })
    }

    /// What [`check`] has passed already, as a header's own reading does.
    pub(super) fn of_checked(wire: Bytes) -> Self {
        Self { wire }
    }

    /// Serialises pairs given in any order.
    ///
    /// # Errors
    /// [`ContextError`] if a key stands twice or the lengths do not fit.
    pub fn from_pairs<K: AsRef<str>, V: AsRef<str>>(
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, ContextError> {
        let mut pairs: Vec<(K, V)> = pairs.into_iter().collect();
        pairs.sort_by(|a, b| a.0.as_ref().as_bytes().cmp(b.0.as_ref().as_bytes()));
        if pairs.windows(2).any(|two| two[0].0.as_ref() == two[1].0.as_ref()) {
            return Err(ContextError::Duplicate);
        }
        if pairs.is_empty() {
            return Ok(Self::EMPTY);
        }
        let mut wire = u16::try_from(pairs.len()).map_err(|_| ContextError::TooLarge)?.to_be_bytes().to_vec();
        for (key, value) in &pairs {
            for text in [key.as_ref(), value.as_ref()] {
                let length = u16::try_from(text.len()).map_err(|_| ContextError::TooLarge)?;
                wire.extend_from_slice(&length.to_be_bytes());
                wire.extend_from_slice(text.as_bytes());
            }
        }
        if wire.len() > usize::from(u16::MAX) {
            return Err(ContextError::TooLarge);
        }
        Ok(Self { wire: wire.into() })
    }

    /// The serialised form.
    pub fn as_bytes(&self) -> &[u8] {
        &self.wire
    }

    /// Serialised length in bytes, 0 to 65,535: the `A` of the size arithmetic.
    pub fn wire_len(&self) -> usize {
        self.wire.len()
    }

    /// How many pairs there are.
    pub fn pairs(&self) -> usize {
        if self.wire.is_empty() { 0 } else { usize::from(u16::from_be_bytes([self.wire[0], self.wire[1]])) }
    }

    /// True if there is no pair.
    pub fn is_empty(&self) -> bool {
        self.wire.is_empty()
    }

    /// Pairs in ascending order of keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut rest = self.wire.get(2..).unwrap_or_default();
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            Some((take_checked(&mut rest), take_checked(&mut rest)))
        })
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.iter().find(|(k, _)| *k == key).map(|(_, value)| value)
    }

    /// This context with `key` left out, its pair count included: what a session signature covers.
    pub fn without(&self, key: &str) -> Self {
        Self::from_pairs(self.iter().filter(|(k, _)| *k != key)).unwrap_or(Self::EMPTY)
    }

    /// SHA-384 of the serialised form: what an EDK binds.
    pub fn digest(&self) -> ContextDigest {
        ContextDigest(Sha384::digest(&self.wire).into())
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// SHA-384 of a serialised context. Compares in constant time.
#[derive(Clone, Copy)]
pub struct ContextDigest(pub(super) [u8; Self::LEN]);

impl ContextDigest {
    /// Bytes of a digest.
    pub const LEN: usize = 48;

    /// The digest's bytes.
    pub fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

impl PartialEq for ContextDigest {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for ContextDigest {}

impl fmt::Debug for ContextDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ContextDigest(")?;
        self.0[..8].iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("..)")
    }
}

pub(super) fn check(wire: &[u8]) -> Result<(), HeaderFault> {
    if wire.is_empty() {
        return Ok(());
    }
    let (count, mut rest) = wire.split_first_chunk::<2>().ok_or(HeaderFault::ContextCount)?;
    let count = u16::from_be_bytes(*count);
    if count == 0 {
        return Err(HeaderFault::ContextCount);
    }
    let mut previous: Option<&str> = None;
    for _ in 0..count {
        let key = take(&mut rest)?;
        take(&mut rest)?;
        match previous {
            Some(before) if before.as_bytes() == key.as_bytes() => return Err(HeaderFault::ContextDuplicate),
            Some(before) if before.as_bytes() > key.as_bytes() => return Err(HeaderFault::ContextUnsorted),
            _ => previous = Some(key),
        }
    }
    if rest.is_empty() { Ok(()) } else { Err(HeaderFault::ContextLength) }
}

fn take<'a>(rest: &mut &'a [u8]) -> Result<&'a str, HeaderFault> {
    let (length, after) = rest.split_first_chunk::<2>().ok_or(HeaderFault::ContextLength)?;
    let (text, after) =
        after.split_at_checked(usize::from(u16::from_be_bytes(*length))).ok_or(HeaderFault::ContextLength)?;
    *rest = after;
    std::str::from_utf8(text).map_err(|_| HeaderFault::ContextUtf8)
}

fn take_checked<'a>(rest: &mut &'a [u8]) -> &'a str {
    take(rest).expect("a Context holds only bytes that were checked")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(wire: &'static [u8]) -> HeaderFault {
        match Context::parse(Bytes::from_static(wire)) {
            Err(FormatError::MalformedHeader(fault)) => fault,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn pairs_in_any_order_come_out_sorted_and_read_back() {
        let context = Context::from_pairs([("b", "2"), ("a", ""), ("é", "ü")]).expect("fits");
        assert_eq!(context.iter().collect::<Vec<_>>(), [("a", ""), ("b", "2"), ("é", "ü")]);
        assert_eq!(context.pairs(), 3);
        assert_eq!(Context::parse(Bytes::copy_from_slice(context.as_bytes())), Ok(context.clone()));
        assert_eq!(context.get("b"), Some("2"));
        assert_eq!(context.get("c"), None);
        assert_eq!(context.without("b"), Context::from_pairs([("a", ""), ("é", "ü")]).expect("fits"));
        assert!(Context::from_pairs([("a", "1")]).expect("fits").without("a").is_empty());
    }

    #[test]
    fn slack_and_disorder_are_told_apart() {
        assert_eq!(fault(b"\x00"), HeaderFault::ContextCount);
        assert_eq!(fault(b"\x00\x00"), HeaderFault::ContextCount);
        assert_eq!(fault(b"\x00\x01"), HeaderFault::ContextLength);
        assert_eq!(fault(b"\x00\x01\x00\x01a\x00\x01bc"), HeaderFault::ContextLength);
        assert_eq!(fault(b"\x00\x01\x00\x01a\x00\x02b"), HeaderFault::ContextLength);
        assert_eq!(fault(b"\x00\x01\x00\x01\xff\x00\x01b"), HeaderFault::ContextUtf8);
        assert_eq!(fault(b"\x00\x02\x00\x01a\x00\x01b\x00\x01a\x00\x01b"), HeaderFault::ContextDuplicate);
        assert_eq!(fault(b"\x00\x02\x00\x01b\x00\x01b\x00\x01a\x00\x01b"), HeaderFault::ContextUnsorted);
    }

    #[test]
    fn what_does_not_fit_is_refused_before_it_is_serialised() {
        assert_eq!(Context::from_pairs([("a", "1"), ("a", "2")]), Err(ContextError::Duplicate));
        assert_eq!(Context::from_pairs([("a", "x".repeat(65_536))]), Err(ContextError::TooLarge));
        assert_eq!(
            Context::from_pairs([("a", "x".repeat(40_000)), ("b", "x".repeat(40_000))]),
            Err(ContextError::TooLarge)
        );
    }
}

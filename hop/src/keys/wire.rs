//! `KeyBundle` on the wire and in files, and the plain [`Bundle`] that a verifier takes.

use bytes::Bytes;
use pithead_proto::{errors::v1::ErrorReason, keys::v1 as proto};
use pithead_sealing::{
    Site,
    trust::{Bundle, MAX_ROOTS, MAX_SPKI, cose::MAX_OBJECT, statement::MAX_KEYS},
};
use prost::Message as _;

use super::MESSAGE_MAX;

/// Why bytes are no bundle. Said before anything in it is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// Not the message.
    #[error("not a key bundle")]
    Malformed,
    /// Longer than a bundle may be.
    #[error("longer than {MESSAGE_MAX} bytes")]
    TooLong,
    /// No authority's name in it.
    #[error("no authority's name in it")]
    NoAuthority,
    /// The site is no site's name.
    #[error("not a site's name in it")]
    Site,
    /// More roots than one bundle may carry.
    #[error("more than {MAX_ROOTS} roots")]
    TooManyRoots,
    /// A root or the statement is longer than a signed object may be.
    #[error("a signed object of more than {MAX_OBJECT} bytes")]
    ObjectTooLong,
    /// More keys, or a longer one, than a statement can name.
    #[error("more than {MAX_KEYS} public keys, or one of more than {MAX_SPKI} bytes")]
    Spkis,
}

impl WireError {
    /// The reason in the registry: what a verifier would have said, had it come that far.
    pub fn reason(self) -> ErrorReason {
        match self {
            Self::ObjectTooLong => ErrorReason::TrustSize,
            _ => ErrorReason::TrustParse,
        }
    }
}

/// Epoch and sequence number of the statement in force: what rides on every answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TrustVersion {
    /// Raised to undo what a stolen statement key has done.
    pub epoch: u64,
    /// Rising within an epoch.
    pub sequence: u64,
}

impl From<TrustVersion> for proto::TrustVersion {
    fn from(version: TrustVersion) -> Self {
        Self { epoch: version.epoch, sequence: version.sequence }
    }
}

impl From<proto::TrustVersion> for TrustVersion {
    fn from(version: proto::TrustVersion) -> Self {
        Self { epoch: version.epoch, sequence: version.sequence }
    }
}

impl From<(u64, u64)> for TrustVersion {
    fn from((epoch, sequence): (u64, u64)) -> Self {
        Self { epoch, sequence }
    }
}

/// A bundle with the names it is filed under. An export file and a QR code hold exactly [`encode`](Self::encode).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFile {
    /// The authority that it says it is of; the root says so with a signature.
    pub authority: String,
    /// The site that it says it is for; the statement says so with a signature.
    pub site: Site,
    /// What is to be verified.
    pub bundle: Bundle,
}

impl KeyFile {
    /// The message's bytes.
    pub fn encode(&self) -> Vec<u8> {
        self.to_proto().encode_to_vec()
    }

    /// Reads the message's bytes. Roots, statement and keys share the buffer.
    pub fn decode(bytes: Bytes) -> Result<Self, WireError> {
        if bytes.len() > MESSAGE_MAX {
            return Err(WireError::TooLong);
        }
        Self::from_proto(proto::KeyBundle::decode(bytes).map_err(|_| WireError::Malformed)?)
    }

    /// As the message that services carry.
    pub fn to_proto(&self) -> proto::KeyBundle {
        proto::KeyBundle {
            authority: self.authority.clone(),
            site: self.site.to_string(),
            roots: self.bundle.roots.clone(),
            statement: self.bundle.statement.clone().unwrap_or_default(),
            spkis: self.bundle.spkis.clone(),
        }
    }

    /// Reads the message that services carry.
    pub fn from_proto(message: proto::KeyBundle) -> Result<Self, WireError> {
        let proto::KeyBundle { authority, site, roots, statement, spkis } = message;
        if authority.is_empty() {
            return Err(WireError::NoAuthority);
        }
        let site = Site::new(&site).map_err(|_| WireError::Site)?;
        if roots.len() > MAX_ROOTS {
            return Err(WireError::TooManyRoots);
        }
        if roots.iter().chain([&statement]).any(|object| object.len() > MAX_OBJECT) {
            return Err(WireError::ObjectTooLong);
        }
        if spkis.len() > MAX_KEYS || spkis.iter().any(|spki| spki.len() > MAX_SPKI) {
            return Err(WireError::Spkis);
        }
        let statement = (!statement.is_empty()).then_some(statement);
        Ok(Self { authority, site, bundle: Bundle { roots, statement, spkis } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn some(roots: usize, root_len: usize, spkis: usize) -> KeyFile {
        KeyFile {
            authority: "acme-mining/prod".into(),
            site: Site::new("pit-7").expect("a name"),
            bundle: Bundle {
                roots: vec![Bytes::from(vec![1; root_len]); roots],
                statement: Some(Bytes::from_static(b"statement")),
                spkis: vec![Bytes::from_static(b"spki"); spkis],
            },
        }
    }

    #[test]
    fn a_bundle_reads_back_from_its_file() {
        for file in [
            some(1, 10, 1),
            some(MAX_ROOTS, MAX_OBJECT, MAX_KEYS),
            KeyFile { bundle: Bundle::default(), ..some(0, 0, 0) },
        ] {
            assert_eq!(KeyFile::decode(file.encode().into()), Ok(file));
        }
    }

    #[test]
    fn what_is_too_much_is_refused_before_it_is_looked_at() {
        let decode = |file: KeyFile| KeyFile::decode(file.encode().into()).expect_err("too much");
        assert_eq!(decode(some(MAX_ROOTS + 1, 1, 1)), WireError::TooManyRoots);
        assert_eq!(decode(some(1, MAX_OBJECT + 1, 1)), WireError::ObjectTooLong);
        assert_eq!(decode(some(1, 1, MAX_KEYS + 1)), WireError::Spkis);
        assert_eq!(decode(KeyFile { authority: String::new(), ..some(1, 1, 1) }), WireError::NoAuthority);
        assert_eq!(KeyFile::decode(vec![0; MESSAGE_MAX + 1].into()), Err(WireError::TooLong));
        assert_eq!(KeyFile::decode(Bytes::from_static(b"\xff\xff")), Err(WireError::Malformed));
        assert_eq!(KeyFile::decode(Bytes::new()), Err(WireError::NoAuthority));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(file) = KeyFile::decode(bytes.into()) {
                prop_assert!(file.bundle.roots.len() <= MAX_ROOTS);
            }
        }
    }
}

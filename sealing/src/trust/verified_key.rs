//! A key that may be sealed to, and the proof of it.
//!
//! There is no constructor but verification: whoever holds a [`VerifiedKey`] holds a key that an accepted
//! statement named, whose announcement was waited for, and whose bytes hash to the signed fingerprint.
//! That holds for the moment of verification; [`usable_at`](VerifiedKey::usable_at) is asked again at
//! every session start, and a device asks [`Device::verified_key`](super::Device::verified_key), which
//! knows of a root's denylist as well.

use std::sync::Arc;

use super::arn::KeyArn;
use super::digest::Sha256Digest;
use super::error::TrustError;
use super::keys::RsaSpki;
use super::time::UnixTime;

/// A public RSA key that a verified statement allows to seal to. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedKey(Arc<Proven>);

#[derive(Debug, PartialEq, Eq)]
pub(in crate::trust) struct Proven {
    pub(in crate::trust) arn: KeyArn,
    pub(in crate::trust) fingerprint: Sha256Digest,
    pub(in crate::trust) spki: RsaSpki,
    pub(in crate::trust) statement_digest: Sha256Digest,
    pub(in crate::trust) epoch: u64,
    pub(in crate::trust) sequence: u64,
    pub(in crate::trust) seal_until: UnixTime,
    pub(in crate::trust) refresh_by: UnixTime,
    pub(in crate::trust) expires_at: UnixTime,
}

impl VerifiedKey {
    pub(in crate::trust) fn new(proven: Proven) -> VerifiedKey {
        VerifiedKey(Arc::new(proven))
    }

    /// The key's full ARN: the provider info of every envelope sealed to it.
    pub fn arn(&self) -> &KeyArn {
        &self.0.arn
    }

    /// SubjectPublicKeyInfo in DER, exactly the bytes whose hash was signed.
    pub fn spki_der(&self) -> &[u8] {
        self.0.spki.der()
    }

    /// The modulus, big-endian, without a leading zero. The exponent is always 65537.
    pub fn modulus(&self) -> &[u8] {
        self.0.spki.modulus()
    }

    /// SHA-256 of [`spki_der`](Self::spki_der).
    pub fn fingerprint(&self) -> &Sha256Digest {
        &self.0.fingerprint
    }

    /// Length of the modulus in bits: 2048, 3072 or 4096.
    pub fn modulus_bits(&self) -> u32 {
        self.0.spki.bits()
    }

    /// SHA-256 of the payload of the statement that names the key.
    pub fn statement_digest(&self) -> &[u8; 32] {
        self.0.statement_digest.as_bytes()
    }

    /// Epoch and sequence number of that statement.
    pub fn version(&self) -> (u64, u64) {
        (self.0.epoch, self.0.sequence)
    }

    /// From this second on nothing is sealed to the key (seconds since 1970).
    pub fn seal_until(&self) -> UnixTime {
        self.0.seal_until
    }

    /// Past this second the statement is stale: still sealing, flagged.
    pub fn refresh_by(&self) -> UnixTime {
        self.0.refresh_by
    }

    /// From this second on the statement is expired.
    pub fn expires_at(&self) -> UnixTime {
        self.0.expires_at
    }

    /// Whether a session may begin at `now`: `EXPIRED` past the statement, `NO_KEY` past `seal_until`.
    pub fn usable_at(&self, now: UnixTime) -> Result<(), TrustError> {
        if now >= self.0.expires_at {
            return Err(TrustError::Expired);
        }
        if now >= self.0.seal_until {
            return Err(TrustError::NoKey);
        }
        Ok(())
    }
}

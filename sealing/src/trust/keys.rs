//! Public keys, read strictly from SubjectPublicKeyInfo in DER.
//!
//! A key has exactly one encoding here, because its name is the hash of that encoding: a second spelling
//! of the same key would be a second name for it. Role keys (they sign) are P-256, uncompressed, 91 bytes,
//! or Ed25519, 44 bytes. Data keys (they are sealed to) are RSA with exponent 65537.

use std::fmt;
use std::sync::Arc;

use p256::ecdsa::signature::Verifier as _;

use super::digest::Sha256Digest;

/// Longest SPKI that is read; RSA with 4096 bits has 550 bytes.
pub const MAX_SPKI: usize = 1024;

const P256_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
const P256_SPKI: usize = 91;
const ED25519_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
const ED25519_SPKI: usize = 44;
/// AlgorithmIdentifier of rsaEncryption with its NULL parameters.
const RSA_ALGORITHM: [u8; 15] =
    [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];

/// Why bytes are not the one encoding of a supported public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpkiError {
    /// Not a canonical P-256 or Ed25519 SubjectPublicKeyInfo, or not a point on the curve.
    #[error("not a canonical P-256 or Ed25519 public key")]
    RoleKey,
    /// Not strict DER of an rsaEncryption SubjectPublicKeyInfo, or over 1024 bytes.
    #[error("not a strict DER RSA public key")]
    Rsa,
    /// An exponent other than 65537.
    #[error("the RSA exponent is not 65537")]
    Exponent,
}

/// A key's short name: the first 16 bytes of SHA-256 of its SPKI.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kid([u8; 16]);

impl Kid {
    /// The name of the key with this SPKI.
    pub fn of_spki(der: &[u8]) -> Kid {
        let digest = Sha256Digest::of(der);
        let mut kid = [0; 16];
        kid.copy_from_slice(&digest.as_bytes()[..16]);
        Kid(kid)
    }

    /// A name as it was read.
    pub const fn from_bytes(bytes: [u8; 16]) -> Kid {
        Kid(bytes)
    }

    /// The 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for Kid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Kid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kid({self})")
    }
}

/// How a role key signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// ECDSA on P-256 with SHA-256, signature r || s (COSE -9).
    Esp256,
    /// Ed25519 (COSE -19).
    Ed25519,
}

impl Algorithm {
    /// The algorithm with this COSE number, if it is one of ours.
    pub const fn from_cose(number: i64) -> Option<Algorithm> {
        match number {
            -9 => Some(Algorithm::Esp256),
            -19 => Some(Algorithm::Ed25519),
            _ => None,
        }
    }

    /// The algorithm's COSE number.
    pub const fn cose(self) -> i64 {
        match self {
            Algorithm::Esp256 => -9,
            Algorithm::Ed25519 => -19,
        }
    }
}

/// The public key of somebody who signs roots or statements.
#[derive(Clone, PartialEq, Eq)]
pub struct RoleSpki {
    der: Arc<[u8]>,
    key: RolePublic,
}

#[derive(Clone, PartialEq, Eq)]
enum RolePublic {
    P256(p256::ecdsa::VerifyingKey),
    Ed25519(Box<ed25519_dalek::VerifyingKey>),
}

impl RoleSpki {
    /// Reads the one encoding of a P-256 or Ed25519 key.
    pub fn from_der(der: &[u8]) -> Result<RoleSpki, SpkiError> {
        let key = match der.len() {
            P256_SPKI => {
                // 04: uncompressed. The compressed form would be a second name for the same key.
                let point = der.strip_prefix(&P256_PREFIX).filter(|point| point[0] == 0x04);
                let point = point.ok_or(SpkiError::RoleKey)?;
                let key =
                    p256::ecdsa::VerifyingKey::from_sec1_bytes(point).map_err(|_| SpkiError::RoleKey)?;
                RolePublic::P256(key)
            }
            ED25519_SPKI => {
                let bytes = der.strip_prefix(&ED25519_PREFIX).ok_or(SpkiError::RoleKey)?;
                let bytes = bytes.try_into().map_err(|_| SpkiError::RoleKey)?;
                let key = ed25519_dalek::VerifyingKey::from_bytes(bytes).map_err(|_| SpkiError::RoleKey)?;
                // A key of small order has signatures that hold for nearly any message.
                if key.is_weak() {
                    return Err(SpkiError::RoleKey);
                }
                RolePublic::Ed25519(Box::new(key))
            }
            _ => return Err(SpkiError::RoleKey),
        };
        Ok(RoleSpki { der: der.into(), key })
    }

    /// The encoding that was read.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The key's short name.
    pub fn kid(&self) -> Kid {
        Kid::of_spki(&self.der)
    }

    /// How this key signs; a key has one algorithm only.
    pub fn algorithm(&self) -> Algorithm {
        match self.key {
            RolePublic::P256(_) => Algorithm::Esp256,
            RolePublic::Ed25519(_) => Algorithm::Ed25519,
        }
    }

    /// Whether `signature` is this key's over `message`.
    pub(in crate::trust) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.key {
            RolePublic::P256(key) => p256::ecdsa::Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify(message, &signature).is_ok()),
            RolePublic::Ed25519(key) => ed25519_dalek::Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify_strict(message, &signature).is_ok()),
        }
    }
}

impl fmt::Debug for RoleSpki {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RoleSpki({:?} {})", self.algorithm(), self.kid())
    }
}

/// Builds the SPKI of a P-256 point in SEC1 uncompressed form.
#[cfg(feature = "authoring")]
pub(in crate::trust) fn p256_spki(uncompressed: &[u8]) -> Vec<u8> {
    [&P256_PREFIX[..], uncompressed].concat()
}

/// Builds the SPKI of an Ed25519 key.
#[cfg(feature = "authoring")]
pub(in crate::trust) fn ed25519_spki(key: &[u8; 32]) -> Vec<u8> {
    [&ED25519_PREFIX[..], key].concat()
}

/// The public key that envelopes are sealed to.
#[derive(Clone, PartialEq, Eq)]
pub struct RsaSpki {
    der: Arc<[u8]>,
    modulus_at: usize,
    modulus_len: usize,
}

impl RsaSpki {
    /// Reads strict DER: rsaEncryption with NULL, an odd positive modulus, exponent 65537, nothing left over.
    pub fn from_der(der: &[u8]) -> Result<RsaSpki, SpkiError> {
        if der.len() > MAX_SPKI {
            return Err(SpkiError::Rsa);
        }
        let mut outer = Der { rest: der };
        let spki = outer.value(0x30)?;
        outer.finish()?;
        let rest = spki.strip_prefix(&RSA_ALGORITHM).ok_or(SpkiError::Rsa)?;
        let mut spki = Der { rest };
        let bits = spki.value(0x03)?;
        spki.finish()?;
        let mut key = Der { rest: bits.strip_prefix(&[0]).ok_or(SpkiError::Rsa)? };
        let mut numbers = Der { rest: key.value(0x30)? };
        key.finish()?;
        let modulus = numbers.positive()?;
        let after_modulus = numbers.rest;
        let exponent = numbers.positive()?;
        numbers.finish()?;
        if exponent != [1, 0, 1] {
            return Err(SpkiError::Exponent);
        }
        if modulus.last().is_none_or(|last| last & 1 == 0) {
            return Err(SpkiError::Rsa);
        }
        let modulus_at = der.len() - after_modulus.len() - modulus.len();
        Ok(RsaSpki { der: der.into(), modulus_at, modulus_len: modulus.len() })
    }

    /// The encoding that was read.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The modulus, big-endian, without a leading zero.
    pub fn modulus(&self) -> &[u8] {
        &self.der[self.modulus_at..self.modulus_at + self.modulus_len]
    }

    /// Length of the modulus in bits.
    pub fn bits(&self) -> u32 {
        let first = self.modulus().first().copied().unwrap_or_default();
        (self.modulus_len * 8) as u32 - first.leading_zeros()
    }

    /// SHA-256 of the encoding.
    pub fn fingerprint(&self) -> Sha256Digest {
        Sha256Digest::of(&self.der)
    }
}

impl fmt::Debug for RsaSpki {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RsaSpki({} bits, {})", self.bits(), self.fingerprint())
    }
}

/// The little of DER that an RSA key needs: one tag byte, shortest definite lengths.
struct Der<'a> {
    rest: &'a [u8],
}

impl<'a> Der<'a> {
    fn value(&mut self, tag: u8) -> Result<&'a [u8], SpkiError> {
        let (&[found, first], rest) = self.rest.split_first_chunk::<2>().ok_or(SpkiError::Rsa)?;
        let (len, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81 => {
                let (&[len], rest) = rest.split_first_chunk::<1>().ok_or(SpkiError::Rsa)?;
                (usize::from(len), rest)
            }
            0x82 => {
                let (&len, rest) = rest.split_first_chunk::<2>().ok_or(SpkiError::Rsa)?;
                (usize::from(u16::from_be_bytes(len)), rest)
            }
            _ => return Err(SpkiError::Rsa),
        };
        let shortest = match first {
            0x81 => len >= 0x80,
            0x82 => len >= 0x100,
            _ => true,
        };
        if found != tag || !shortest || len > rest.len() {
            return Err(SpkiError::Rsa);
        }
        let (value, rest) = rest.split_at(len);
        self.rest = rest;
        Ok(value)
    }

    /// A positive INTEGER in its shortest form, without the sign byte.
    fn positive(&mut self) -> Result<&'a [u8], SpkiError> {
        match *self.value(0x02)? {
            [0, ref rest @ ..] if rest.first().is_some_and(|b| *b >= 0x80) => Ok(rest),
            [first, ..] if first == 0 || first >= 0x80 => Err(SpkiError::Rsa),
            [] => Err(SpkiError::Rsa),
            ref all => Ok(all),
        }
    }

    fn finish(self) -> Result<(), SpkiError> {
        if self.rest.is_empty() { Ok(()) } else { Err(SpkiError::Rsa) }
    }
}

//! The session signature (envelope document, 2.4): who sealed, provable to whoever can unwrap the EDK.
//!
//! ```text
//! sig = ECDSA-P256-SHA256 (FIPS 186-5; nonce by RFC 6979), r || s, over
//!       "pithead-session-v1" || 0 || u16 length, provider id || u16 length, key ARN || SHA-384(context without sig)
//! ```
//!
//! The context under the signature carries `sid`, which binds the signature to the data key, and the run.

use std::fmt;

#[cfg(feature = "open")]
use p256::ecdsa::VerifyingKey;
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{Signature, SigningKey};
use p256::pkcs8::{DecodePrivateKey, EncodePrivateKey, EncodePublicKey};
use zeroize::Zeroizing;

use super::context::Context;
use super::edk::PROVIDER;
#[cfg(feature = "open")]
use super::profile::ContextKey;
use super::random::{Entropy, EntropyError};
use crate::trust::Kid;

/// Bytes of an identity key that are no P-256 key of the expected form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a P-256 key in the expected form")]
pub struct DeviceKeyError;

/// A device's P-256 identity key, with which it signs its sessions. Cleared when dropped.
pub struct DeviceSigningKey {
    key: SigningKey,
    spki_der: Box<[u8]>,
    kid: Kid,
}

impl DeviceSigningKey {
    /// Reads an unencrypted PKCS#8 private key in DER.
    ///
    /// # Errors
    /// [`DeviceKeyError`] if it is anything else.
    pub fn from_pkcs8_der(der: &[u8]) -> Result<Self, DeviceKeyError> {
        Self::new(SigningKey::from_pkcs8_der(der).map_err(|_| DeviceKeyError)?)
    }

    /// Draws a new key.
    ///
    /// # Errors
    /// [`EntropyError`] if the source fails, or yields no valid scalar in 64 draws of which one nearly always is.
    pub fn generate(entropy: &mut dyn Entropy) -> Result<Self, EntropyError> {
        let mut scalar = Zeroizing::new([0; 32]);
        for _ in 0..64 {
            entropy.fill(scalar.as_mut_slice())?;
            if let Ok(key) = SigningKey::from_slice(scalar.as_slice()) {
                return Self::new(key).map_err(|_| EntropyError);
            }
        }
        Err(EntropyError)
    }

    fn new(key: SigningKey) -> Result<Self, DeviceKeyError> {
        let spki = key.verifying_key().to_public_key_der().map_err(|_| DeviceKeyError)?;
        Ok(Self { kid: Kid::of_spki(spki.as_bytes()), spki_der: spki.as_bytes().into(), key })
    }

    /// The private key as unencrypted PKCS#8 in DER, to be kept under the caller's protection.
    ///
    /// # Errors
    /// [`DeviceKeyError`] if it cannot be encoded, which does not happen for a valid key.
    pub fn to_pkcs8_der(&self) -> Result<Zeroizing<Vec<u8>>, DeviceKeyError> {
        let document = self.key.to_pkcs8_der().map_err(|_| DeviceKeyError)?;
        Ok(Zeroizing::new(document.as_bytes().to_vec()))
    }

    /// The public key as SubjectPublicKeyInfo in DER (91 bytes): what the decryptor's registry is given.
    pub fn spki_der(&self) -> &[u8] {
        &self.spki_der
    }

    /// The public key as PEM with `BEGIN PUBLIC KEY` (RFC 7468).
    pub fn spki_pem(&self) -> String {
        use base64ct::Encoding as _;
        let body = base64ct::Base64::encode_string(&self.spki_der);
        let mut pem = String::from("-----BEGIN PUBLIC KEY-----\n");
        let mut rest = body.as_str();
        while !rest.is_empty() {
            let (line, after) = rest.split_at(rest.len().min(64));
            pem.push_str(line);
            pem.push('\n');
            rest = after;
        }
        pem.push_str("-----END PUBLIC KEY-----\n");
        pem
    }

    /// The key's name.
    pub fn kid(&self) -> Kid {
        self.kid
    }

    /// Signs a session for `key_arn` whose context, but for the signature, is `unsigned`.
    pub(super) fn sign(&self, key_arn: &str, unsigned: &Context) -> [u8; 64] {
        let signature: Signature = self.key.sign(&signed_bytes(key_arn, unsigned));
        signature.to_bytes().into()
    }
}

impl fmt::Debug for DeviceSigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceSigningKey").field("kid", &self.kid).finish_non_exhaustive()
    }
}

/// A device's public identity key, as the decryptor's registry holds it.
#[cfg(feature = "open")]
#[derive(Clone)]
pub struct DeviceVerifyingKey {
    key: VerifyingKey,
    kid: Kid,
}

#[cfg(feature = "open")]
impl DeviceVerifyingKey {
    /// Reads SubjectPublicKeyInfo in DER: P-256, uncompressed, the canonical 91 bytes.
    ///
    /// # Errors
    /// [`DeviceKeyError`] if it is anything else.
    pub fn from_spki_der(der: &[u8]) -> Result<Self, DeviceKeyError> {
        use p256::pkcs8::DecodePublicKey;
        let key = VerifyingKey::from_public_key_der(der).map_err(|_| DeviceKeyError)?;
        // A kid is the hash of one encoding; a second spelling would be a second name.
        let canonical = key.to_public_key_der().map_err(|_| DeviceKeyError)?;
        if canonical.as_bytes() != der {
            return Err(DeviceKeyError);
        }
        Ok(Self { key, kid: Kid::of_spki(der) })
    }

    /// The key's name.
    pub fn kid(&self) -> Kid {
        self.kid
    }

    /// Whether `sig` is this key's over a session for `key_arn` with this context, which carries the signature.
    pub(super) fn verifies(&self, key_arn: &str, context: &Context, sig: &[u8; 64]) -> bool {
        use p256::ecdsa::signature::Verifier;
        let Ok(signature) = Signature::from_slice(sig) else { return false };
        let unsigned = context.without(ContextKey::Sig.as_str());
        self.key.verify(&signed_bytes(key_arn, &unsigned), &signature).is_ok()
    }
}

#[cfg(feature = "open")]
impl fmt::Debug for DeviceVerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceVerifyingKey").field("kid", &self.kid).finish_non_exhaustive()
    }
}

fn signed_bytes(key_arn: &str, unsigned: &Context) -> Vec<u8> {
    let mut bytes = b"pithead-session-v1\0".to_vec();
    for field in [PROVIDER, key_arn] {
        bytes.extend_from_slice(&(field.len() as u16).to_be_bytes());
        bytes.extend_from_slice(field.as_bytes());
    }
    bytes.extend_from_slice(unsigned.digest().as_bytes());
    bytes
}

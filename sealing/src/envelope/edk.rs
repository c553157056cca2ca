//! The encrypted data key: the one joint to the wrapping key's kind (envelope document, 1.2 and 4).
//!
//! Today's provider is `aws-kms-rsa`: RSAES-OAEP with SHA-256, MGF1 SHA-256 and an empty label (RFC 8017, 7.1) over
//! `SHA-384(context) || data key`, 80 bytes, made exactly as the AWS KMS RSA keyring makes it. Another kind of key is
//! another provider id here and nothing elsewhere.

use std::fmt;

use bytes::Bytes;
use rsa::PublicKey;
use rsa::pkcs8::DecodePublicKey;
use sha2::{Digest, Sha256};

use super::context::{Context, ContextDigest};
use super::format_error::EdkFault;
use super::keys::DataKey;
use super::random::{Entropy, EntropyError};
use crate::trust::KeyArn;

/// Provider id of the AWS KMS RSA keyring.
pub const PROVIDER: &str = "aws-kms-rsa";

/// Bytes that OAEP covers: the context's digest and the data key.
pub const PLAINTEXT_LEN: usize = ContextDigest::LEN + DataKey::LEN;

/// One encrypted data key as it stands in a header, its lengths known to follow the format.
#[derive(Clone, PartialEq, Eq)]
pub struct Edk {
    pub(super) provider_id: Bytes,
    pub(super) provider_info: Bytes,
    pub(super) ciphertext: Bytes,
}

impl Edk {
    /// The provider id's bytes; for us `aws-kms-rsa`.
    pub fn provider_id(&self) -> &[u8] {
        &self.provider_id
    }

    /// The provider info's bytes; for `aws-kms-rsa` the key's ARN.
    pub fn provider_info(&self) -> &[u8] {
        &self.provider_info
    }

    /// The ciphertext; for `aws-kms-rsa` 256, 384 or 512 bytes.
    pub fn ciphertext(&self) -> &Bytes {
        &self.ciphertext
    }

    /// True if the provider is `aws-kms-rsa`.
    pub fn is_kms_rsa(&self) -> bool {
        self.provider_id == PROVIDER.as_bytes()
    }

    /// The key it was made for: `None` for other providers, and for what is not a full key ARN.
    pub fn key_arn(&self) -> Option<KeyArn> {
        if !self.is_kms_rsa() {
            return None;
        }
        KeyArn::new(std::str::from_utf8(&self.provider_info).ok()?).ok()
    }

    /// What caches know it by.
    pub fn hash(&self) -> EdkHash {
        let mut hash = Sha256::new();
        hash.update(&self.provider_info);
        hash.update([0]);
        hash.update(&self.ciphertext);
        EdkHash(hash.finalize().into())
    }

    /// The same in bytes of its own.
    pub(super) fn detached(&self) -> Self {
        let own = |bytes: &Bytes| Bytes::copy_from_slice(bytes);
        Self {
            provider_id: own(&self.provider_id),
            provider_info: own(&self.provider_info),
            ciphertext: own(&self.ciphertext),
        }
    }

    /// Bytes of the three fields: provider id, provider info, ciphertext.
    pub(super) fn field_lens(&self) -> (usize, usize, usize) {
        (self.provider_id.len(), self.provider_info.len(), self.ciphertext.len())
    }

    /// The format's demands on an EDK of ours; other providers are skipped.
    pub(super) fn check(&self) -> Result<(), EdkFault> {
        match self.ciphertext.len() {
            256 | 384 | 512 => Ok(()),
            other => Err(EdkFault::CiphertextLength { found: other as u16 }),
        }
    }
}

impl fmt::Debug for Edk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Edk")
            .field("provider_id", &String::from_utf8_lossy(&self.provider_id))
            .field("provider_info", &String::from_utf8_lossy(&self.provider_info))
            .field("ciphertext_len", &self.ciphertext.len())
            .finish()
    }
}

/// SHA-256 of `key ARN || 0 || EDK ciphertext`: what unwrapped keys, invalid EDKs and budgets are filed under.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EdkHash([u8; 32]);

impl EdkHash {
    /// The hash's bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for EdkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for EdkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EdkHash({self})")
    }
}

/// What unwrapping an EDK gave: the digest of the context it was made for, and the data key.
///
/// This is what an opener caches, under [`Edk::hash`]. It says nothing about a message until it was compared with that
/// message's own context, which [`super::open`] does on every use.
#[cfg(feature = "open")]
#[derive(Clone)]
pub struct Unwrapped {
    pub(super) context: ContextDigest,
    pub(super) data_key: DataKey,
}

#[cfg(feature = "open")]
impl Unwrapped {
    /// Reads the 80 bytes that KMS Decrypt or a private key gave. The caller clears its own copy.
    ///
    /// # Errors
    /// [`EdkFault::PlaintextLength`] for any other length.
    pub fn read(plaintext: &[u8]) -> Result<Self, EdkFault> {
        let plaintext: &[u8; PLAINTEXT_LEN] = plaintext.try_into().map_err(|_| EdkFault::PlaintextLength)?;
        let (context, data_key) = plaintext.split_first_chunk().ok_or(EdkFault::PlaintextLength)?;
        let data_key = data_key.try_into().map_err(|_| EdkFault::PlaintextLength)?;
        Ok(Self { context: ContextDigest(*context), data_key: DataKey::from_slice(data_key) })
    }

    /// The digest of the context that the EDK was made for.
    pub fn context_digest(&self) -> &ContextDigest {
        &self.context
    }

    /// Compares in constant time with the context of a message. A mismatch condemns that message, never the EDK.
    pub(super) fn for_context(&self, context: &Context) -> Result<&DataKey, EdkFault> {
        if self.context == context.digest() { Ok(&self.data_key) } else { Err(EdkFault::ContextDigest) }
    }
}

#[cfg(feature = "open")]
impl fmt::Debug for Unwrapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unwrapped").field("context", &self.context).finish_non_exhaustive()
    }
}

/// Why a data key was not wrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WrapError {
    /// The public key is not an RSA key that OAEP can use. A verified key never is.
    #[error("the public key cannot wrap")]
    Key,
    /// No random bytes.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
}

/// Wraps `data_key` for `context` to the RSA key of `spki_der`, named by `provider_info`.
pub(super) fn wrap(
    provider_info: &str,
    spki_der: &[u8],
    context: &Context,
    data_key: &DataKey,
    entropy: &mut dyn Entropy,
) -> Result<Edk, WrapError> {
    let key = PublicKey::from_public_key_der(spki_der).map_err(|_| WrapError::Key)?;
    let mut plaintext = zeroize::Zeroizing::new([0; PLAINTEXT_LEN]);
    let (digest, secret) = plaintext.split_at_mut(ContextDigest::LEN);
    digest.copy_from_slice(context.digest().as_bytes());
    secret.copy_from_slice(data_key.expose());
    let ciphertext =
        key.oaep_encrypt_with_rng::<Sha256, _>(&mut SeedRng(entropy), plaintext.as_slice()).map_err(
            |error| if matches!(error, rsa::Error::Rng) { EntropyError.into() } else { WrapError::Key },
        )?;
    Ok(Edk {
        provider_id: Bytes::from_static(PROVIDER.as_bytes()),
        provider_info: Bytes::copy_from_slice(provider_info.as_bytes()),
        ciphertext: ciphertext.into(),
    })
}

/// Our entropy as the trait that OAEP draws its seed through.
struct SeedRng<'a>(&'a mut dyn Entropy);

impl rand_core::TryRng for SeedRng<'_> {
    type Error = EntropyError;

    fn try_next_u32(&mut self) -> Result<u32, EntropyError> {
        let mut word = [0; 4];
        self.try_fill_bytes(&mut word)?;
        Ok(u32::from_be_bytes(word))
    }

    fn try_next_u64(&mut self) -> Result<u64, EntropyError> {
        let mut word = [0; 8];
        self.try_fill_bytes(&mut word)?;
        Ok(u64::from_be_bytes(word))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), EntropyError> {
        self.0.fill(out)
    }
}

impl rand_core::TryCryptoRng for SeedRng<'_> {}

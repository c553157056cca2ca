//! Sealing again what was sealed before: for conformance vectors and tests of readers, never for data.
//!
//! Data key, message id and OAEP seed are given, the key is not verified and the profile is not applied. Two messages
//! under one data key and message id give their plaintext away.

use std::fmt;

use bytes::Bytes;

use super::context::Context;
use super::edk::{Edk, WrapError, wrap};
use super::keys::{DataKey, MessageId, MessageKeys};
use super::random::{Entropy, EntropyError};
use super::seal::{LastFrame, Material, seal_message_as};

/// An EDK of a message to be sealed again.
#[derive(Clone)]
#[non_exhaustive]
pub enum FixedEdk {
    /// Wrapped anew as `aws-kms-rsa`.
    Wrap {
        /// The provider info, an ARN.
        provider_info: String,
        /// The public key as SubjectPublicKeyInfo.
        spki_der: Vec<u8>,
        /// The seed that OAEP draws.
        oaep_seed: [u8; 32],
    },
    /// Taken as it is, of whatever provider.
    Literal {
        /// Provider id.
        provider_id: Vec<u8>,
        /// Provider info.
        provider_info: Vec<u8>,
        /// Ciphertext.
        ciphertext: Vec<u8>,
    },
}

impl fmt::Debug for FixedEdk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if matches!(self, Self::Wrap { .. }) { "Wrap { .. }" } else { "Literal { .. }" })
    }
}

/// A message to be sealed again.
#[derive(Clone)]
pub struct FixedMessage {
    /// The context.
    pub context: Context,
    /// One to three EDKs.
    pub edks: Vec<FixedEdk>,
    /// Bytes of content in a regular frame.
    pub frame_length: u32,
    /// The data key.
    pub data_key: [u8; 32],
    /// The message id.
    pub message_id: [u8; 32],
    /// True to close a plaintext that fills its frames exactly with an empty final frame, as the Python SDK does.
    pub empty_final_frame: bool,
}

impl FixedMessage {
    /// Wraps the EDKs.
    ///
    /// # Errors
    /// [`WrapError::Key`] if an SPKI is no RSA key.
    pub fn edks(&self) -> Result<Vec<Edk>, WrapError> {
        let data_key = DataKey::from_slice(&self.data_key);
        let made = |edk: &FixedEdk| match edk {
            FixedEdk::Wrap { provider_info, spki_der, oaep_seed } => {
                wrap(provider_info, spki_der, &self.context, &data_key, &mut Once(Some(*oaep_seed)))
            }
            FixedEdk::Literal { provider_id, provider_info, ciphertext } => Ok(Edk {
                provider_id: Bytes::copy_from_slice(provider_id),
                provider_info: Bytes::copy_from_slice(provider_info),
                ciphertext: Bytes::copy_from_slice(ciphertext),
            }),
        };
        self.edks.iter().map(made).collect()
    }

    /// Seals `plaintext`: the same bytes every time.
    ///
    /// # Errors
    /// [`WrapError`] as [`FixedMessage::edks`].
    pub fn seal(&self, plaintext: &[u8]) -> Result<Vec<u8>, WrapError> {
        let edks = self.edks()?;
        let material = Material {
            message_id: &MessageId::from_bytes(self.message_id),
            context: &self.context,
            edks: &edks,
            frame_length: self.frame_length,
            data_key: &DataKey::from_slice(&self.data_key),
        };
        let last = if self.empty_final_frame { LastFrame::Empty } else { LastFrame::Full };
        seal_message_as(&material, plaintext, last).ok_or(WrapError::Key)
    }

    /// The derived keys: encryption key and commitment.
    pub fn derived(&self) -> ([u8; 32], [u8; 32]) {
        let keys = MessageKeys::derive(
            &DataKey::from_slice(&self.data_key),
            &MessageId::from_bytes(self.message_id),
        );
        (*keys.encryption(), keys.commitment)
    }
}

impl fmt::Debug for FixedMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FixedMessage")
            .field("context", &self.context)
            .field("frame_length", &self.frame_length)
            .finish_non_exhaustive()
    }
}

/// Yields its bytes once and fails from then on.
struct Once(Option<[u8; 32]>);

impl Entropy for Once {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), EntropyError> {
        let seed = self.0.take().ok_or(EntropyError)?;
        if out.len() != seed.len() {
            return Err(EntropyError);
        }
        out.copy_from_slice(&seed);
        Ok(())
    }
}

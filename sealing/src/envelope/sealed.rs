//! A sealed envelope as a value.

use bytes::Bytes;

use super::format_error::FormatError;
use super::profile::ProfileError;
use super::structure::{AdmittedEnvelope, check};
use crate::names::Identity;

/// Why stored bytes are not a sealed envelope of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Not sound in structure.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// Not within the profile.
    #[error(transparent)]
    Profile(#[from] ProfileError),
}

/// An envelope in memory and what it is filed under. Made by sealing, or read back through the structure and profile
/// checks; there is no third way. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedEnvelope {
    bytes: Bytes,
    identity: Identity,
}

impl SealedEnvelope {
    pub(super) fn new(bytes: Bytes, identity: Identity) -> Self {
        Self { bytes, identity }
    }

    /// Reads back what was sealed and stored, from an outbox or a file.
    ///
    /// # Errors
    /// [`ReadError`] if the bytes are not an envelope within the profile.
    pub fn read(bytes: Bytes) -> Result<Self, ReadError> {
        Ok(check(bytes)?.admit(|_| true)?.into())
    }

    /// The envelope, byte for byte as it is sent and sent again.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// What it is filed under.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Takes it apart.
    pub fn into_parts(self) -> (Bytes, Identity) {
        (self.bytes, self.identity)
    }
}

impl From<AdmittedEnvelope> for SealedEnvelope {
    fn from(admitted: AdmittedEnvelope) -> Self {
        let (bytes, profile) = admitted.into_parts();
        Self { bytes, identity: profile.identity().clone() }
    }
}

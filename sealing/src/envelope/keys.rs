//! From the data key to the keys of one message (envelope document, 1.3; HKDF is RFC 5869 with SHA-512).
//!
//! ```text
//! PRK        = Extract(salt = message id, ikm = data key)
//! enc_key    = Expand(PRK, 04 78 || "DERIVEKEY", 32)        seals the header and the frames
//! commitment = Expand(PRK, "COMMITKEY", 32)                 stands in the header
//! sid        = Expand(Extract("pithead-session-v1", data key), "sid", 32)
//! ```

use std::fmt;

use hkdf::Hkdf;
use sha2::Sha512;
#[cfg(feature = "open")]
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::aead::MessageCipher;
#[cfg(feature = "open")]
use super::format_error::FormatError;
use super::random::{Entropy, EntropyError};
use crate::names::{NameError, Run, Seq};

/// Algorithm suite 0x0478: AES-256-GCM, HKDF-SHA512, key commitment, no signature.
pub const SUITE: u16 = 0x0478;

/// The secret of one session: 32 bytes, in memory only, cleared when dropped.
///
/// A clone is another copy in memory, cleared on its own. Never shown by `Debug`.
#[derive(Clone)]
pub struct DataKey(Zeroizing<[u8; Self::LEN]>);

impl DataKey {
    /// Bytes of a data key.
    pub const LEN: usize = 32;

    pub(super) fn draw(entropy: &mut dyn Entropy) -> Result<Self, EntropyError> {
        let mut key = Self(Zeroizing::new([0; Self::LEN]));
        entropy.fill(key.0.as_mut_slice())?;
        Ok(key)
    }

    #[cfg(feature = "open")]
    pub(super) fn from_slice(bytes: &[u8; Self::LEN]) -> Self {
        Self(Zeroizing::new(*bytes))
    }

    pub(super) fn expose(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// The public name of a session that only a holder of the data key can compute (envelope document, 2.4).
    pub(super) fn session_id(&self) -> [u8; 32] {
        let mut sid = [0; 32];
        Hkdf::<Sha512>::new(Some(b"pithead-session-v1"), self.expose())
            .expand(b"sid", &mut sid)
            .expect("32 bytes are within the limit of HKDF-SHA512");
        sid
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(..)")
    }
}

/// The message id: 16 fresh random bytes, then run and sequence number (envelope document, 2.1).
///
/// Messages sealed by a stock SDK carry 32 random bytes instead.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MessageId([u8; Self::LEN]);

impl MessageId {
    /// Bytes of a message id.
    pub const LEN: usize = 32;

    /// Takes the bytes as they stand on the wire.
    pub const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    pub(super) fn draw(run: Run, seq: Seq, entropy: &mut dyn Entropy) -> Result<Self, EntropyError> {
        let mut id = [0; Self::LEN];
        entropy.fill(&mut id[..16])?;
        id[16..24].copy_from_slice(&run.get().to_be_bytes());
        id[24..].copy_from_slice(&seq.get().to_be_bytes());
        Ok(Self(id))
    }

    /// The bytes as they stand on the wire.
    pub fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// Bytes 16 to 23 as a run; 0 is refused.
    pub fn run(&self) -> Result<Run, NameError> {
        Run::new(self.number(16))
    }

    /// Bytes 24 to 31 as a sequence number; 0 and 2^63 or above are refused.
    pub fn seq(&self) -> Result<Seq, NameError> {
        Seq::new(self.number(24))
    }

    fn number(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.0[at..at + 8].try_into().expect("eight of 32 bytes"))
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MessageId(")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(")")
    }
}

/// The keys of one message.
pub(super) struct MessageKeys {
    encryption: Zeroizing<[u8; 32]>,
    pub(super) commitment: [u8; 32],
}

impl MessageKeys {
    pub(super) fn derive(data_key: &DataKey, message_id: &MessageId) -> Self {
        let hkdf = Hkdf::<Sha512>::new(Some(message_id.as_bytes()), data_key.expose());
        let mut keys = Self { encryption: Zeroizing::new([0; 32]), commitment: [0; 32] };
        let [high, low] = SUITE.to_be_bytes();
        hkdf.expand_multi_info(&[&[high, low], b"DERIVEKEY"], keys.encryption.as_mut_slice())
            .expect("32 bytes are within the limit of HKDF-SHA512");
        hkdf.expand(b"COMMITKEY", &mut keys.commitment)
            .expect("32 bytes are within the limit of HKDF-SHA512");
        keys
    }

    /// Compares in constant time with what the header commits to; only then is there a cipher.
    #[cfg(feature = "open")]
    pub(super) fn committed(self, commitment: &[u8; 32]) -> Result<MessageCipher, FormatError> {
        if self.commitment.ct_eq(commitment).into() {
            Ok(self.cipher())
        } else {
            Err(FormatError::Commitment)
        }
    }

    pub(super) fn cipher(&self) -> MessageCipher {
        MessageCipher::new(&self.encryption)
    }

    #[cfg(feature = "open")]
    pub(super) fn encryption(&self) -> &[u8; 32] {
        &self.encryption
    }
}

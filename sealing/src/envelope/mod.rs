//! The sealed envelope: one AWS Encryption SDK message, format version 2, suite 0x0478, framed body.
//!
//! Normative to the byte is the envelope document (`docs/envelope.md`); its section numbers are named where they are
//! implemented. Whoever may decrypt with the KMS key opens an envelope with a stock AWS Encryption SDK and none of this.
//!
//! The modules stand in the order in which data meets them: what is sealed, how it is sealed, what it is then, how it is
//! checked without a key, and how it is opened.

mod aead;
mod format_error;
mod frame;
mod keys;
mod random;
mod seal;
mod sealed;
mod session;
mod session_context;
mod signature;
mod stream_seal;

pub mod context;
pub mod edk;
pub mod header;
pub mod profile;
pub mod profile_values;
pub mod sizes;
pub mod structure;

#[cfg(feature = "open")]
pub mod dangerous;
#[cfg(feature = "open")]
pub mod open;

pub use aead::AEAD;
pub use context::{Context, ContextDigest, ContextError};
pub use edk::{Edk, EdkHash, WrapError};
pub use format_error::{EdkFault, FormatError, HeaderFault};
pub use header::{Header, HeaderReader};
pub use keys::{DataKey, MessageId, SUITE};
pub use profile::{ContextKey, LastSession, Profile, ProfileError, SignatureClaim};
pub use profile_values::{ContentType, Encoding, FileName, ValueError};
pub use random::{Entropy, EntropyError, KernelEntropy};
pub use sealed::{ReadError, SealedEnvelope};
pub use session::{
    FILE_LEN_MAX, Rotation, SESSION_AGE_MAX, SESSION_BYTES_MAX, SESSION_MESSAGES_MAX, SealError, Session,
    SessionClock,
};
pub use session_context::SessionContext;
pub use signature::{DeviceKeyError, DeviceSigningKey};
pub use stream_seal::{SealedStream, StreamSealer};
pub use structure::{AdmittedEnvelope, CheckedEnvelope, Structure, StructureChecker, check};

#[cfg(feature = "open")]
pub use edk::Unwrapped;
#[cfg(feature = "open")]
pub use open::{OpenError, Opening, SessionVerdict, open_message};
#[cfg(feature = "open")]
pub use signature::DeviceVerifyingKey;

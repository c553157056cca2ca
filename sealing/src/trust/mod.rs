//! Trust: which key may be sealed to, and how a device knows.
//!
//! A device is provisioned with one trust root and from then on believes signatures alone: a chain of roots,
//! each signed by the threshold of the one before it and of itself, and statements that name the keys of a site.
//! The gateway that carries them can withhold them; it cannot change, reorder or replay them unnoticed.
//!
//! Pure: no I/O and no clock. A [`Device`] is given bytes and time ([`Clock`]) and answers with a
//! [`VerifiedKey`], a [`Status`] or a [`TrustError`]; storing its record is the caller's.
//!
//! The modules stand in the order in which data meets them.

pub mod arn;
pub mod digest;
pub mod error;
pub mod keys;
pub mod time;
pub mod verified_key;

pub use arn::{ArnError, KeyArn};
pub use digest::Sha256Digest;
pub use error::TrustError;
pub use keys::{Algorithm, Kid, RoleSpki, RsaSpki, SpkiError};
pub use time::{Clock, UnixTime};
pub use verified_key::VerifiedKey;

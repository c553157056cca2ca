//! Trust: which key may be sealed to, and how a device knows.
//!
//! A device is provisioned with one trust root and from then on believes signatures alone: a chain of roots,
//! each signed by the threshold of the one before it and of itself, and statements that name the keys of a site.
//! The gateway that carries them can withhold them; it cannot change, reorder or replay them unnoticed.
//!
//! Pure: no I/O and no clock. A [`Device`] is given bytes and time ([`Clock`]) and answers with a
//! [`VerifiedKey`], a [`Status`] or a [`TrustError`]; storing its record is the caller's.
//!
//! ```text
//! Bundle ─> cose (form) ─> root / statement (fields) ─> verify (signatures) ─> meaning ─> announced ─> VerifiedKey
//!                                                            `──────────── apply ─────────────´
//! ```
//!
//! The modules stand in the order in which data meets them.

pub mod arn;
pub mod bundle;
mod cbor;
pub mod cose;
pub mod digest;
pub mod error;
pub mod keys;
pub mod root;
pub mod statement;
pub mod time;
pub mod verify;

mod announced;
mod apply;
mod device;
mod floor;
mod meaning;
mod state;
mod verified_key;

#[cfg(feature = "authoring")]
pub mod authoring;

pub use apply::{Accepted, Applied};
pub use arn::{ArnError, KeyArn};
pub use bundle::{Bundle, MAX_ROOTS};
pub use device::{Device, Status};
pub use digest::Sha256Digest;
pub use error::TrustError;
pub use keys::{Algorithm, Kid, MAX_SPKI, RoleSpki, RsaSpki, SpkiError};
pub use root::{Custody, GatewayPins, Policy, Role, Root, RootFields, RootKey};
pub use state::MAX_STATE;
pub use statement::{KeyStatus, MAX_KEYS, SUITE_RSA_OAEP_SHA256, Statement, StatementFields, StatementKey};
pub use time::{Clock, UnixTime};
pub use verified_key::VerifiedKey;

#![warn(missing_docs)]
//! What a device embeds: trust, sealing, an outbox that survives a power cut, and the way to the gateway.
//!
//! ```text
//! bundle ─> keys ─> VerifiedKey ─┐
//! records ─> batch ──────────────┴> sealer ─> SealedEnvelope ─> outbox ══> uplink ══> gateway
//! ```
//!
//! The modules stand in the order in which data meets them. Without the default features there is no network and no
//! async runtime: trust, sealing and the outbox, for those who carry the bytes themselves.

pub mod clock;
pub mod state;

pub mod keys;
pub mod sequence;

pub mod batch;
pub mod sealer;

pub mod outbox;

pub mod device;
#[cfg(feature = "client")]
pub mod uplink;

/// The largest envelope that is sent in one piece, until uploads exist: the gateway's default inline limit.
pub const INLINE_LIMIT_BYTES: u64 = 1024 * 1024;

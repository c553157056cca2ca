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

#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "client")]
mod outbox;
#[cfg(feature = "client")]
pub mod uplink;

#[cfg(feature = "client")]
pub use outbox::{
    CloseError as OutboxCloseError, MIN_BUDGET_BYTES, OutboxError, OutboxRecovery, StreamSurvey, SurveyError,
    survey, verify,
};
/// The transport, whose endpoints, certificates and limits the [`uplink`] is given.
#[cfg(feature = "client")]
pub use pithead_hop as hop;
/// Names, trust and envelopes, as they appear all over this crate.
pub use pithead_sealing as sealing;
/// The log under the outbox, for what recovery says.
#[cfg(feature = "client")]
pub use pithead_spool as spool;

/// The largest envelope that is sent in one piece: the gateway's default inline limit. What is larger is uploaded.
pub const INLINE_LIMIT_BYTES: u64 = 1024 * 1024;

//! Keys on their way down: one contract for both hops, the same message in the answer, in an export file and in a QR
//! code.
//!
//! Nothing here believes anything: roots and statements carry their own signatures, and whoever receives a bundle
//! verifies it with `pithead_sealing::trust`. What is served was verified by who serves it ([`ServedKeys`]).

pub mod client;
pub mod served;
pub mod service;
mod text;
pub mod wire;

pub use client::{Answer, FetchError, Held, KeyClient, Watch};
pub use served::ServedKeys;
pub use service::{KeyServer, SiteKeys};
pub use text::TEXT_PREFIX;
pub use wire::{KeyFile, TrustVersion, WireError};

/// Largest message of the key service either way, in bytes.
pub const MESSAGE_MAX: usize = 1 << 20;

//! The two sealed formats of Pithead: the key statement ([`trust`]) and the envelope ([`envelope`]).
//!
//! Pure: no I/O but what a caller hands in, no async, no clock. Time and randomness are arguments. Nothing seals without
//! a verified key, nothing unverified comes out as a value, and the opener is compiled in by the feature `open` alone.
#![warn(missing_docs)]

pub mod names;
pub mod trust;

pub mod envelope;

pub use names::{DeviceId, Identity, Line, NameError, Run, Seq, Site, StreamName};

/// Whether the opener is in this build: what a program says when it is asked, and what the gateway must deny.
pub const OPENER_COMPILED_IN: bool = cfg!(feature = "open");

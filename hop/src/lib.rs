//! One hop, both halves: what a device and a gateway, or a gateway and the decryptor, say to each other.
//!
//! Whoever listens and whoever connects link the same crate, so that the contract is written once: how a program
//! starts, fails and stops ([`program`]), how a refusal travels ([`status`]), who the other end is ([`identity`]), how a
//! connection comes to be ([`tls`], [`accept`], [`connect`], [`backoff`], [`trace`]), how keys come down ([`keys`]), how
//! envelopes go up ([`ingest`]), and how they lie in a bucket where nobody listens ([`bundle`]; with the feature
//! `objects` how that is reached).
#![warn(missing_docs)]

pub mod program;
pub mod status;

mod rarely;

pub mod identity;
pub mod tls;

pub mod accept;
pub mod backoff;
pub mod connect;
pub mod trace;

pub mod keys;

pub mod ingest;

pub mod bundle;
#[cfg(feature = "objects")]
pub mod objects;

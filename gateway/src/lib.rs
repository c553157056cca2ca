//! The on-premises gateway: two paths, and what carries them.
//!
//! ```text
//! keys/       statement source, SPKI source -> history -> book -> service      what devices seal to
//! envelopes/  service -> admission -> spool -> relay                           what devices send
//! devices/    registry -> doors; enrolment                                     who devices are
//! ```
//!
//! It holds no key that opens an envelope and no key that signs a statement, and nothing in it can cause a signature.
//! Device-facing answers never wait for the cloud.

pub mod cli;
pub mod commands;
pub mod config;

pub mod clock;
pub mod health;
pub mod metrics;
pub mod rates;
pub mod vitals;

pub mod kms;

pub mod keys;

pub mod envelopes;

pub mod devices;

pub mod admin;
pub mod console;
pub mod run;

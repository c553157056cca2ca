//! One hop from outside, as another crate has it. One program of tests: what they stand on is compiled and linked once.

#![allow(clippy::unwrap_used)]

mod bundle;
mod ingest_flight;
mod ingest_intervals;
mod ingest_lines;
mod ingest_service;
mod ingest_support;
mod ingest_upload;
#[cfg(feature = "objects")]
mod objects;
mod transport;

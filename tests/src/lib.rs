//! What whole-system tests, the demo and the benchmarks stand on.

pub mod binaries;
pub mod kms;
pub mod program;

//! What whole-system tests, the demo and the benchmarks stand on.

pub mod kms;

//! Trust, from the outside: the vectors, each rule as a sentence, strictness, and what must never happen.
#![allow(clippy::unwrap_used, unreachable_pub)] // a test is a crate of its own

mod authority;
mod invariants;
mod rotation;
mod rules;
mod state;
mod strict;
mod vectors;
mod world;

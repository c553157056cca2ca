//! What whole-system tests, the demo and the benchmarks stand on: a throw-away [`site`], whose programs are the real ones,
//! the wires and the cloud around it that can fail ([`link`], [`kms`], [`s3`]), and a [`ledger`] that counts from files and metrics.

/// Whether the long versions of tests are asked for: `PITHEAD_LONG=1`, and nothing else.
#[must_use]
pub fn long() -> bool {
    std::env::var_os("PITHEAD_LONG").is_some_and(|value| value == "1")
}

pub mod authority;
pub mod binaries;
pub mod certificates;
pub mod client;
pub mod collector;
pub mod command;
pub mod device;
pub mod events;
pub mod fleet;
pub mod forge;
pub mod kms;
pub mod ledger;
pub mod link;
pub mod nats;
pub mod program;
pub mod random;
pub mod rehearsal;
pub mod rogue;
pub mod s3;
pub mod site;
pub mod sqs;
pub mod telemetry;
pub mod vehicle;

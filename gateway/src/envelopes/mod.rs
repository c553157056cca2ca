//! The envelope path: from a device's call to the far end's acknowledgement.
//!
//! ```text
//! passing on, where another gateway owns the lanes
//! hop's ingest service -> intake: budgets -> numbers (lines, conflicts) -> spool -> ticket -> ack
//!                                                                          spool -> relay -> far end -> acknowledge
//! ```

pub mod bucket;
pub mod budgets;
pub mod copies;
pub mod fate;
pub mod followed;
pub mod idle;
pub mod lanes;
pub mod numbers;
pub mod record;
pub mod replicated;
pub mod shares;
pub mod spool;

pub mod intake;
pub mod passing;

pub mod refused;
pub mod relay;
pub mod retry;
pub mod uploads;

pub mod carried;

#[cfg(test)]
mod contract;
#[cfg(test)]
pub(crate) mod testing;

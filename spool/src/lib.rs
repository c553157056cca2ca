//! A durable FIFO of opaque records.
#![warn(missing_docs)]

mod cursor;
mod error;
mod format;
mod fs;
mod options;
mod owner;
mod read;
mod record;
mod recover;
mod segment;
mod shared;
mod spool;
mod stats;
mod ticket;
mod wait;
mod walk;

#[cfg(test)]
mod crash;
#[cfg(test)]
mod model;

pub use error::{AcknowledgeError, AppendError, CloseError, Closed, NotDurable, OpenError, ReadError};
pub use options::{Options, Verify};
pub use read::{Batch, CorruptRange, Heads, MAX_NAMED_HEADS, Reader};
pub use record::{Lane, MAX_HEAD_BYTES, Position, Record, RecordHead};
pub use recover::{MAX_NAMED_RANGES, Recovery};
pub use spool::Spool;
pub use stats::{LaneStats, Stats};
pub use ticket::Ticket;
pub use wait::{Changed, Room};

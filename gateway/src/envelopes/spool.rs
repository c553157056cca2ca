//! The one boundary to the spool: append and get a durable ticket, read, acknowledge, and what is still here.
//!
//! Everything else in the gateway sees envelopes and heads; a second engine takes this file's place.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use pithead_hop::program::ProgramError;
use pithead_proto::errors::v1::ErrorReason;
use pithead_spool::{
    AcknowledgeError, AppendError, CloseError, Lane, OpenError, Options, Position, Reader, Recovery, Room,
    Spool, Stats, Ticket,
};

use super::record::Head;
use crate::config;

/// Priorities come with the configuration of streams; until then there is one lane.
const LANE: Lane = Lane::First;

/// The spool of envelopes. Clones are the same spool.
#[derive(Debug, Clone)]
pub struct EnvelopeSpool(Arc<Spool>);

/// Opens the spool, and recovers what a crash has left.
///
/// # Errors
/// Why it cannot be opened, for the person in front of it.
pub fn open(folder: &Path, config: &config::Spool) -> Result<(EnvelopeSpool, Recovery), ProgramError> {
    let mut options = Options::default();
    options.max_bytes = config.max_size.get();
    options.segment_bytes = config.segment_size.get();
    let (spool, recovery) = Spool::open(folder, options).map_err(open_error)?;
    Ok((EnvelopeSpool(Arc::new(spool)), recovery))
}

fn open_error(error: OpenError) -> ProgramError {
    let (reason, todo) = match &error {
        OpenError::Locked { .. } => {
            (ErrorReason::DataDirLocked, "stop the other gateway; two never share a spool")
        }
        OpenError::Full { .. } => (ErrorReason::DiskFull, "make room on the spool's disk"),
        OpenError::Missing { .. }
        | OpenError::NotADirectory { .. }
        | OpenError::ReadOnly { .. }
        | OpenError::Denied { .. } => {
            (ErrorReason::DataDirUnwritable, "check its owner, its permissions and how its disk is mounted")
        }
        OpenError::Options { .. } => (ErrorReason::ConfigInvalid, "correct [spool] in the configuration"),
        OpenError::Newer { .. } => {
            (ErrorReason::StateDamaged, "run the version of this program that wrote it")
        }
        _ => (ErrorReason::DiskFailed, "look at the disk and the kernel's log"),
    };
    ProgramError::new(reason, error.to_string()).affects("no envelope can be taken").todo(todo)
}

impl EnvelopeSpool {
    /// Appends an envelope. It is durable when the ticket says so.
    ///
    /// # Errors
    /// When there is no room or the disk has failed: nothing was taken.
    pub fn append(
        &self,
        head: &Head,
        envelope: Bytes,
        conflict: bool,
        at_ms: u64,
    ) -> Result<Ticket, AppendError> {
        self.0.append(LANE, head.record(envelope, conflict, at_ms))
    }

    /// Refuses now what an append of one envelope would refuse: for saying no before a body was received.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub fn admit(&self) -> Result<(), AppendError> {
        self.0.admit(LANE, 1, 0)
    }

    /// Resolves when an append of so many bytes that was refused is worth another try.
    pub fn room(&self, bytes: u64) -> Room {
        self.0.room(LANE, 1, bytes)
    }

    /// The heads of everything that is not acknowledged yet, in order.
    pub fn waiting(&self) -> pithead_spool::Heads {
        self.0.heads(LANE, self.0.cursor(LANE))
    }

    /// Reads on from the first record that is not acknowledged.
    #[must_use]
    pub fn reader(&self) -> Reader {
        self.0.reader(LANE, self.0.cursor(LANE))
    }

    /// Reads from a position on.
    #[must_use]
    pub fn reader_at(&self, position: Position) -> Reader {
        self.0.reader(LANE, position)
    }

    /// The first position that is not acknowledged.
    #[must_use]
    pub fn cursor(&self) -> Position {
        self.0.cursor(LANE)
    }

    /// Everything up to and with `position` is elsewhere, durable: it may go from here.
    ///
    /// # Errors
    /// When nothing durable is there: somebody counts wrongly.
    pub fn acknowledge(&self, position: Position) -> Result<(), AcknowledgeError> {
        self.0.acknowledge(LANE, position)
    }

    /// How full it is.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.0.stats()
    }

    /// Makes the last records durable and lets go of the folder. Blocks.
    ///
    /// # Errors
    /// When the closing mark could not be written: some records will be delivered again.
    pub fn close(&self) -> Result<(), CloseError> {
        self.0.close()
    }
}

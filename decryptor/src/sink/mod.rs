//! Where plaintext goes: a folder with one file per envelope, one file of JSON lines, or ([`objects`]) a bucket.
//!
//! What both sinks on disk promise (in a bucket the ledger comes first, so there is nothing to be idempotent about):
//! - [`Sink::commit`] returns only after everything in the group is durable (the bytes, and the names under which they are
//!   found). Nobody is acknowledged before.
//! - **Idempotent by identity.** A kill between the sink's commit and the ledger's entry brings the same envelope again:
//!   then the sink answers [`Placed::Already`] and nothing appears twice.
//! - **Never over something else.** Other content under a used identity is [`Placed::Conflict`], and what was there stays.
//! - After a failure that [`SinkError::is_fatal`], the same descriptor is never believed again: the program ends and the
//!   next start looks at what the disk really holds.

pub mod delivery;
pub mod folder;
pub mod jsonl;
pub mod objects;
pub mod staged;
#[cfg(test)]
pub(crate) mod testing;

pub use delivery::{Custody, Delivery, Hop};
pub use folder::FolderSink;
pub use jsonl::JsonLinesSink;
pub use objects::ObjectsSink;
pub use pithead_hop::identity::Assurance;
pub use staged::Staged;

use std::io;
use std::path::{Path, PathBuf};

/// What became of one envelope of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placed {
    /// Written now.
    New,
    /// It was there already, with this content; now it is certainly durable.
    Already,
    /// Something else is there under this identity. Nothing was written.
    Conflict,
}

/// Where opened envelopes are made durable. Two implementations: [`FolderSink`] and [`JsonLinesSink`]. Synchronous, with one
/// owner.
pub trait Sink: Send {
    /// Makes a group durable, in its order. One [`Placed`] for each delivery.
    ///
    /// After an error nothing of the group may be acknowledged; parts of it may be there, and a later commit of the same
    /// envelopes finds them.
    fn commit(&mut self, group: &[Delivery]) -> Result<Vec<Placed>, SinkError>;

    /// The folder for large contents before they have their name: on the sink's own file system, emptied when it is opened.
    fn staging(&self) -> PathBuf;

    /// Where the sink's end is now, in its own words. The ledger keeps it beside the entries of the group, and the next
    /// start hands it back, so that only what lies behind it has to be looked at.
    fn mark(&self) -> Vec<u8>;
}

/// What the sink was doing when the operating system refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Making the folder.
    CreateFolder,
    /// Opening or making a file.
    Open,
    /// Reading what is already there.
    Read,
    /// Writing content.
    Write,
    /// Syncing content or a folder.
    Sync,
    /// Giving the file its name.
    Rename,
    /// Cutting a torn tail.
    Truncate,
}

impl Action {
    const fn verb(self) -> &'static str {
        match self {
            Self::CreateFolder => "making the folder",
            Self::Open => "opening",
            Self::Read => "reading",
            Self::Write => "writing",
            Self::Sync => "syncing",
            Self::Rename => "naming",
            Self::Truncate => "cutting the torn end of",
        }
    }
}

/// The sink could not make a group durable.
#[derive(Debug, thiserror::Error)]
#[error("{} {}: {source}", action.verb(), path.display())]
pub struct SinkError {
    /// What was being done.
    pub action: Action,
    /// To which file or folder.
    pub path: PathBuf,
    /// What the operating system said.
    pub source: io::Error,
}

impl SinkError {
    pub(crate) fn at(action: Action, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self { action, path: path.as_ref().to_owned(), source }
    }

    /// Whether this sink may not be used again in this process. After a failed sync the kernel may have dropped the dirty
    /// pages and marked them clean: a second sync of the same descriptor would succeed and mean nothing.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        matches!(self.action, Action::Sync | Action::Truncate)
    }

    /// Whether the disk is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

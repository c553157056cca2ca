//! One error per operation. Each answers: may I try again, and may it have been stored?

use crate::record::{Lane, Position};
use std::io;
use std::path::PathBuf;

/// Why a spool could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The directory does not exist. It may be on a disk that is not mounted; see [`Options::create`](crate::Options::create).
    #[error("spool directory {} does not exist", path.display())]
    Missing {
        /// The directory.
        path: PathBuf,
    },
    /// The path is something else than a directory.
    #[error("{} is not a directory", path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// Another process (or another `Spool` of this one) has it open.
    #[error("spool {} is in use by another process", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The file system is mounted read-only.
    #[error("{} is on a read-only file system", path.display())]
    ReadOnly {
        /// What was to be written.
        path: PathBuf,
    },
    /// This process may not write there.
    #[error("no permission to write {}", path.display())]
    Denied {
        /// What was to be written.
        path: PathBuf,
    },
    /// There is no room for a first segment. A spool that has a backlog opens on a full disk, so that it can be drained.
    #[error("no space left for {}", path.display())]
    Full {
        /// What was to be written.
        path: PathBuf,
    },
    /// A segment was written by a newer version of this crate.
    #[error("{} has format version {version}, this program reads version 1", path.display())]
    Newer {
        /// The segment.
        path: PathBuf,
        /// Its version.
        version: u16,
    },
    /// The options contradict each other.
    #[error("spool options: {what}")]
    Options {
        /// What must hold and does not.
        what: &'static str,
    },
    /// Anything else that the operating system said.
    #[error("{}: {source}", path.display())]
    Io {
        /// What was being worked on.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl OpenError {
    pub(crate) fn from_io(path: impl Into<PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        match source.kind() {
            io::ErrorKind::NotFound => Self::Missing { path },
            io::ErrorKind::NotADirectory => Self::NotADirectory { path },
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { path },
            io::ErrorKind::PermissionDenied => Self::Denied { path },
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path },
            io::ErrorKind::WouldBlock => Self::Locked { path },
            _ => Self::Io { path, source },
        }
    }
}

/// Why a record was not taken. Nothing was written and nothing will be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// Too much waits for the disk. Try again when [`Spool::room`](crate::Spool::room) says so.
    #[error("the queue is full: {records} records, {bytes} bytes wait for the disk")]
    QueueFull {
        /// Records waiting.
        records: usize,
        /// Bytes waiting.
        bytes: u64,
    },
    /// The disk budget (or the disk) is used up. Try again when records have been acknowledged.
    #[error("the spool is full: {needed} bytes needed, {available} available")]
    Full {
        /// Bytes on disk that the records would take at most.
        needed: u64,
        /// Bytes that are free for records.
        available: u64,
    },
    /// Something that was appended before it has been given up meanwhile. Try again when that has been appended again.
    #[error("what was appended before it is not durable")]
    Overtakes,
    /// The record is longer than this spool takes. Trying again is useless.
    #[error("record of {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// Bytes of head or of head and body.
        bytes: u64,
        /// The limit that it broke.
        limit: u64,
    },
    /// The lane was not opened.
    #[error("{lane} is not open")]
    NoLane {
        /// The lane.
        lane: Lane,
    },
    /// A batch without records.
    #[error("a batch without records")]
    Empty,
    /// A sync failed, and so did the fresh segment after it. Only a new `open` helps.
    #[error("the disk failed; the spool must be opened again")]
    Poisoned,
    /// The spool has been closed.
    #[error("the spool is closed")]
    Closed,
}

impl AppendError {
    /// Whether the same append can succeed later on this spool.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::QueueFull { .. } | Self::Full { .. } | Self::Overtakes)
    }
}

/// Why a record that was taken is not durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotDurable {
    /// Writing or syncing the group failed. The record may or may not appear after the next `open`; it was not, and will not
    /// be, served by this spool. Append it again.
    #[error("the disk failed while the record was written ({kind})")]
    Disk {
        /// What the operating system said.
        kind: io::ErrorKind,
    },
    /// There was no space for the next segment. Nothing was written. Append it again later.
    #[error("no space for the next segment")]
    Full,
    /// The spool refuses everything until it is opened again. Nothing was written.
    #[error("the disk failed; the spool must be opened again")]
    Poisoned,
    /// The owner thread ended before it came to this record. Nothing was written.
    #[error("the spool was closed")]
    Closed,
    /// It was under way when its owner had to give the log up, and no answer came: whoever owns the log now knows. Append it
    /// again there. (A log on one disk never says so; it is for engines that are replicated.)
    #[error("it was under way when the log had to be given up")]
    Unknown,
}

impl NotDurable {
    /// Whether the bytes may be on disk all the same.
    #[must_use]
    pub const fn may_be_stored(&self) -> bool {
        matches!(self, Self::Disk { .. } | Self::Unknown)
    }
}

/// Why a batch could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The disk did not give the bytes. It may be passing; a reader that meets it again and again at one place can step over
    /// with [`Reader::skip_unreadable`](crate::Reader::skip_unreadable). (Bytes that were read and are damaged are no error:
    /// they are stepped over and named in the batch.)
    #[error("reading {lane} at position {position}: {source}")]
    Io {
        /// The lane.
        lane: Lane,
        /// The first position that could not be read.
        position: Position,
        /// The cause.
        source: io::Error,
    },
    /// The lane was not opened.
    #[error("{lane} is not open")]
    NoLane {
        /// The lane.
        lane: Lane,
    },
}

/// Why an acknowledgement was refused. The cursor has not moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AcknowledgeError {
    /// There is no durable record there yet: somebody counts wrongly.
    #[error("position {position} is not durable yet, {end} is the next to become so")]
    NotDurable {
        /// What was to be acknowledged.
        position: Position,
        /// The first position without a durable record.
        end: Position,
    },
    /// The lane was not opened.
    #[error("{lane} is not open")]
    NoLane {
        /// The lane.
        lane: Lane,
    },
}

/// The spool was closed cleanly as far as records go (all tickets are answered), but not everything could be written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("closing mark not written ({kind}): some acknowledged records will be delivered again")]
pub struct CloseError {
    /// What the operating system said.
    pub kind: io::ErrorKind,
}

/// The spool was closed; nothing more will become durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the spool is closed")]
pub struct Closed;

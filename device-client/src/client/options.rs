//! What the owner decides about a stream.

use std::time::Duration;

use pithead_sealing::names::StreamName;

use crate::{batch::BatchLimits, outbox::MIN_BUDGET_BYTES};

/// What happens to a stream whose budget is used up because no gateway takes anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenFull {
    /// New records are refused, to the caller's face: what is kept is the oldest.
    Reject,
    /// The oldest envelopes are given up, counted, and declared to the cloud: what is kept is the newest.
    DropOldest,
}

/// When what was sealed is brought to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fsync {
    /// At once: each envelope as soon as the disk has taken the one before. A cut costs what was gathered for `linger`.
    Always,
    /// At most so often: fewer writes on the flash. A cut costs what was recorded within the interval as well. What cannot
    /// wait in memory is written earlier.
    Interval(Duration),
}

/// What a stream carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Records,
    Files,
}

/// A stream of the device, and what its owner decides about it. See each method for the default.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    pub(crate) name: StreamName,
    pub(crate) kind: Kind,
    pub(crate) priority: u8,
    pub(crate) budget_bytes: u64,
    pub(crate) when_full: WhenFull,
    pub(crate) sync: Fsync,
    pub(crate) linger: Duration,
    pub(crate) limits: BatchLimits,
    pub(crate) memory_bytes: usize,
    pub(crate) compress: bool,
}

/// Priority of a stream that says nothing else.
pub const DEFAULT_PRIORITY: u8 = 100;

impl StreamOptions {
    /// A stream of records: many small ones, batched under one seal. 64 MiB on the disk, `Reject`, `Always`, 200 ms of
    /// linger, 8 MiB of memory, not compressed.
    #[must_use]
    pub fn records(name: StreamName) -> Self {
        Self {
            name,
            kind: Kind::Records,
            priority: DEFAULT_PRIORITY,
            budget_bytes: 64 * 1024 * 1024,
            when_full: WhenFull::Reject,
            sync: Fsync::Always,
            linger: Duration::from_millis(200),
            limits: BatchLimits::default(),
            memory_bytes: 8 * 1024 * 1024,
            compress: false,
        }
    }

    /// A stream of files, each an envelope of its own. 1 GiB on the disk, and the priority below the default.
    #[must_use]
    pub fn files(name: StreamName) -> Self {
        Self {
            kind: Kind::Files,
            priority: DEFAULT_PRIORITY - 50,
            budget_bytes: 1024 * 1024 * 1024,
            ..Self::records(name)
        }
    }

    /// Higher goes first, strictly: while a stream of a higher priority has something to send, the others wait. Streams of
    /// the same priority take turns by age. Default [`DEFAULT_PRIORITY`].
    #[must_use]
    pub fn priority(self, priority: u8) -> Self {
        Self { priority, ..self }
    }

    /// Bytes that the stream may take on the device's disk, sealed; at least [`MIN_BUDGET_BYTES`].
    #[must_use]
    pub fn budget_bytes(self, bytes: u64) -> Self {
        Self { budget_bytes: bytes.max(MIN_BUDGET_BYTES), ..self }
    }

    /// What happens when they are used up.
    #[must_use]
    pub fn when_full(self, when_full: WhenFull) -> Self {
        Self { when_full, ..self }
    }

    /// When records are brought to the disk.
    #[must_use]
    pub fn sync(self, sync: Fsync) -> Self {
        Self { sync, ..self }
    }

    /// How long a record may wait in memory for others to share its seal.
    #[must_use]
    pub fn linger(self, linger: Duration) -> Self {
        Self { linger, ..self }
    }

    /// When a batch is full before `linger` is over. Bytes are narrowed to what one envelope of this stream's budget holds.
    #[must_use]
    pub fn batch(self, limits: BatchLimits) -> Self {
        Self { limits, ..self }
    }

    /// Bytes of records in memory at most, while the disk is behind. Above it `record` refuses.
    #[must_use]
    pub fn memory_bytes(self, bytes: usize) -> Self {
        Self { memory_bytes: bytes, ..self }
    }

    /// Compresses with zstd before sealing. Off by default: where outsiders can choose part of the content, the length of what
    /// was compressed together with it gives the rest away.
    #[cfg(feature = "zstd")]
    #[must_use]
    pub fn compress(self) -> Self {
        Self { compress: true, ..self }
    }

    /// The stream's name.
    #[must_use]
    pub fn name(&self) -> &StreamName {
        &self.name
    }
}

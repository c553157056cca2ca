//! How full the spool is, and how old its oldest record.

use crate::record::{Lane, Position};

/// A picture of a spool.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Records that are durable and not acknowledged, in all lanes.
    pub records: u64,
    /// Bytes of the segments that hold them, and of nothing else, as far as they are written.
    pub bytes: u64,
    /// Bytes of all segment files, spares included.
    pub allocated_bytes: u64,
    /// The disk budget, [`Options::max_bytes`](crate::Options::max_bytes).
    pub capacity_bytes: u64,
    /// Bytes that an append to the first lane can still count on.
    pub available_bytes: u64,
    /// [`Record::at_ms`](crate::Record::at_ms) of the oldest record that is not acknowledged. (The oldest by position in its
    /// lane: a wall clock may have jumped.)
    pub oldest_ms: Option<u64>,
    /// Records and bytes on their way to the disk.
    pub queued_records: usize,
    /// See `queued_records`.
    pub queued_bytes: u64,
    /// Since open: records that became durable.
    pub appended_records: u64,
    /// Since open: groups written; `appended_records / groups` is the group size.
    pub groups: u64,
    /// Since open: syncs of groups, and how many of them failed.
    pub syncs: u64,
    /// See `syncs`.
    pub failed_syncs: u64,
    /// Damaged records that recovery named or readers stepped over (twice if both did).
    pub corrupt_records: u64,
    /// The disk had no space for the last segment that was needed.
    pub disk_full: bool,
    /// Lane by lane.
    pub lanes: Vec<LaneStats>,
}

/// A picture of a lane.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LaneStats {
    /// The lane.
    pub lane: Lane,
    /// The first position that is not acknowledged.
    pub cursor: Position,
    /// The position after the last durable record.
    pub end: Position,
    /// See [`Stats::oldest_ms`].
    pub oldest_ms: Option<u64>,
    /// Segment files, the one that is written to included, and spare ones.
    pub segments: usize,
    /// See `segments`.
    pub spares: usize,
    /// The lane refuses appends until the spool is opened again.
    pub poisoned: bool,
}

impl LaneStats {
    /// Records that are durable and not acknowledged.
    #[must_use]
    pub const fn records(&self) -> u64 {
        self.end.0 - self.cursor.0
    }
}

//! How full the spool is, and how old its oldest record.

use crate::read::Scan;
use crate::record::{Lane, Position};
use crate::shared::{LaneState, Shared};
use crate::walk::Found;

/// Between which times in seconds the syncs of groups are counted: from a quiet virtual disk to one that is in trouble.
pub const SYNC_BOUNDS_S: [f64; 15] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 2.0, 8.0];

/// How many syncs took how long: between the bounds, and above the last; and all of them together, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SyncTimes {
    /// One more than there are bounds.
    pub counts: [u64; SYNC_BOUNDS_S.len() + 1],
    /// Of all of them.
    pub sum_us: u64,
}

impl SyncTimes {
    /// One more sync that took so long.
    pub fn add(&mut self, took: std::time::Duration) {
        self.counts[SYNC_BOUNDS_S.partition_point(|bound| *bound < took.as_secs_f64())] += 1;
        self.sum_us = self.sum_us.saturating_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }
}

/// A picture of a spool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
    /// See `syncs`: how long they took, those that failed included.
    pub sync_times: SyncTimes,
    /// Damaged records that recovery named or readers stepped over (twice if both did).
    pub corrupt_records: u64,
    /// The disk had no space for the last segment that was needed.
    pub disk_full: bool,
    /// Lane by lane.
    pub lanes: Vec<LaneStats>,
}

/// A picture of a lane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
    /// See [`Stats::bytes`].
    pub bytes: u64,
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

/// Draws the picture. `scans` are one for each lane, and move to where its oldest record is.
pub(crate) fn picture(shared: &Shared, scans: &mut [Scan]) -> Stats {
    let oldest: Vec<Option<u64>> = scans
        .iter_mut()
        .enumerate()
        .map(|(index, scan)| {
            scan.seek(shared.lock().lanes.get(index).map_or(0, |lane| lane.cursor));
            match scan.peek() {
                Ok(Some(Found::Good { record, .. })) => Some(record.at_ms),
                Ok(Some(Found::Damaged { head, .. })) => head.as_ref().map(|head| head.at_ms),
                Ok(None) | Err(_) => None,
            }
        })
        .collect();
    let state = shared.lock();
    let kept = |lane: &LaneState| -> u64 {
        lane.segments.iter().filter(|one| one.end > lane.cursor).map(|one| one.end_offset).sum()
    };
    let lanes: Vec<LaneStats> = state
        .lanes
        .iter()
        .zip(Lane::ALL)
        .zip(&oldest)
        .map(|((here, lane), oldest)| LaneStats {
            lane,
            cursor: Position(here.cursor),
            end: Position(here.end),
            oldest_ms: *oldest,
            bytes: kept(here),
            segments: here.segments.len(),
            spares: here.spares.len(),
            poisoned: here.poisoned,
        })
        .collect();
    Stats {
        records: lanes.iter().map(LaneStats::records).sum(),
        bytes: lanes.iter().map(|lane| lane.bytes).sum(),
        allocated_bytes: state.allocated,
        capacity_bytes: shared.options.max_bytes,
        available_bytes: state.available(&shared.options, 0),
        oldest_ms: oldest.into_iter().flatten().min(),
        queued_records: state.queued_records,
        queued_bytes: state.queued_bytes,
        appended_records: state.counters.appended_records,
        groups: state.counters.groups,
        syncs: state.counters.syncs,
        failed_syncs: state.counters.failed_syncs,
        sync_times: state.counters.sync_times,
        corrupt_records: state.counters.corrupt_records,
        disk_full: state.without_segment,
        lanes,
    }
}

//! How large a spool may get, and how large its parts are.

use crate::error::OpenError;
use crate::format::{ENTRY_BYTES, GROUP_HEAD_BYTES, PAGE_BYTES};
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

const MIB: u64 = 1024 * 1024;

/// The bounds of a spool. Begin with [`Options::default`] or [`Options::outbox`] and set what differs.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// How many lanes to open, 1 to 3. Lanes that are already on disk are opened even when this names fewer, because what is
    /// in them is still to be delivered. Default 1.
    pub lanes: usize,
    /// Create the directory when it is missing (its parent must exist). Default `false`: a missing directory is more often a
    /// disk that is not mounted than a first start.
    pub create: bool,
    /// The disk budget in bytes, spare segments included. One segment of it is kept back from admission, so that what was
    /// admitted always finds room. Default 8 GiB.
    pub max_bytes: u64,
    /// Size of a segment file in bytes, a multiple of 4,096. Segments written with another size stay readable. Default
    /// 32 MiB: rolling costs about a millisecond of syncs, which this spreads over enough data not to be seen.
    pub segment_bytes: u64,
    /// The most bytes that one group (one fdatasync of one lane) carries, a multiple of 4,096; also what bounds a record.
    /// Default 4 MiB: past that an fdatasync costs what the bytes cost, and a larger group only adds latency.
    pub max_group_bytes: u64,
    /// The most bytes that wait for the disk, in all lanes. Default 32 MiB: several groups, so that the disk never waits.
    pub queue_bytes: u64,
    /// The most records that wait for the disk, in all lanes. Default 65,536: what 32 MiB holds of small records.
    pub queue_records: usize,
    /// How much is read at open.
    pub verify: Verify,
    /// Mixed into the salt of each segment. The default draws a fresh one, which is what makes bytes inside a record unable
    /// to pass for a group; only tests of the format set it.
    pub salt: u64,
}

/// How much of the backlog is checked when the spool is opened. Whatever this says, a damaged record is never served: its
/// checksum is checked again when it is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// Group heads, record entries and heads everywhere, and bodies where the log ends. Damaged bodies further up are found
    /// when they are read.
    #[default]
    Heads,
    /// Every byte of the backlog.
    Everything,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            lanes: 1,
            create: false,
            max_bytes: 8 * 1024 * MIB,
            segment_bytes: 32 * MIB,
            max_group_bytes: 4 * MIB,
            queue_bytes: 32 * MIB,
            queue_records: 65_536,
            verify: Verify::default(),
            salt: RandomState::new().hash_one(0_u64),
        }
    }
}

impl Options {
    /// Small segments and a small budget (64 MiB), for a device's outbox or a ledger. The directory is created.
    #[must_use]
    pub fn outbox() -> Self {
        Self {
            create: true,
            max_bytes: 64 * MIB,
            segment_bytes: 4 * MIB,
            max_group_bytes: 2 * MIB,
            queue_bytes: 8 * MIB,
            queue_records: 8_192,
            ..Self::default()
        }
    }

    /// The longest record (head and body together) that these options take, in bytes.
    #[must_use]
    pub const fn max_record_bytes(&self) -> u64 {
        self.max_group_bytes.saturating_sub((GROUP_HEAD_BYTES + ENTRY_BYTES) as u64)
    }

    pub(crate) const fn max_segments(&self) -> u64 {
        self.max_bytes / self.segment_bytes
    }

    /// Bytes of a segment that groups can take.
    pub(crate) const fn usable_segment_bytes(&self) -> u64 {
        self.segment_bytes - PAGE_BYTES
    }

    pub(crate) fn check(&self) -> Result<(), OpenError> {
        let wrong = |what| Err(OpenError::Options { what });
        if !(1..=3).contains(&self.lanes) {
            return wrong("lanes must be 1, 2 or 3");
        }
        if !self.max_group_bytes.is_multiple_of(PAGE_BYTES)
            || !(2 * PAGE_BYTES..=1 << 30).contains(&self.max_group_bytes)
        {
            return wrong("max_group_bytes must be a multiple of 4,096 between 8 KiB and 1 GiB");
        }
        if !self.segment_bytes.is_multiple_of(PAGE_BYTES)
            || self.segment_bytes < self.max_group_bytes + PAGE_BYTES
        {
            return wrong("segment_bytes must be a multiple of 4,096 and hold max_group_bytes and a page");
        }
        if self.max_segments() < self.lanes as u64 + 2 {
            return wrong("max_bytes must hold two segments more than there are lanes");
        }
        if self.queue_bytes < self.max_group_bytes || self.queue_records == 0 {
            return wrong("the queue must hold at least one group");
        }
        Ok(())
    }
}

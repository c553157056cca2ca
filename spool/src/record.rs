//! What goes in and comes out: records, and where they lie.

use bytes::Bytes;
use std::fmt;

/// The longest opaque head of a record, in bytes. Heads are read at every start and reported when a body is damaged, so they
/// hold identities and facts, never payload.
pub const MAX_HEAD_BYTES: usize = 64 * 1024;

/// One record: opaque to the spool, returned exactly as it was given.
///
/// Cloning is cheap (the bytes are shared), so a caller that may be refused keeps a clone.
#[derive(Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Record {
    /// What the record is, in the caller's own numbering.
    pub kind: u16,
    /// When the record was appended, in milliseconds of the caller's wall clock. The spool has no clock of its own: it
    /// stores the number, gives it back, and reports the oldest one in [`Stats`](crate::Stats).
    pub at_ms: u64,
    /// A small part with a checksum of its own, which stays readable when the body is damaged: identities, custody facts. At
    /// most [`MAX_HEAD_BYTES`].
    pub head: Bytes,
    /// The payload.
    pub body: Bytes,
}

impl Record {
    /// A record of `kind`, appended at `at_ms`.
    pub fn new(kind: u16, at_ms: u64, head: impl Into<Bytes>, body: impl Into<Bytes>) -> Self {
        Self { kind, at_ms, head: head.into(), body: body.into() }
    }
}

impl fmt::Debug for Record {
    // Lengths only: a body belongs to the caller, and does not end up in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("kind", &self.kind)
            .field("at_ms", &self.at_ms)
            .field("head_bytes", &self.head.len())
            .field("body_bytes", &self.body.len())
            .finish()
    }
}

/// A record without its body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordHead {
    /// Where the record lies in its lane.
    pub position: Position,
    /// [`Record::kind`].
    pub kind: u16,
    /// [`Record::at_ms`].
    pub at_ms: u64,
    /// [`Record::head`].
    pub head: Bytes,
    /// Length of the body in bytes.
    pub body_bytes: u32,
}

/// The place of a record in its lane: 0, 1, 2, ... without gaps. A place is given to a record when its group is written; the
/// place of a record that did not become durable is given to a later one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u64);

impl Position {
    /// The first place of a lane.
    pub const START: Self = Self(0);

    /// The place after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A lane: a log of its own, with its own positions, cursor and segments. What a lane means (a priority) is the caller's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// The lane that every spool has.
    #[default]
    First,
    /// The second lane.
    Second,
    /// The third lane.
    Third,
}

impl Lane {
    /// All lanes a spool can have, in order.
    pub const ALL: [Self; 3] = [Self::First, Self::Second, Self::Third];

    /// 0, 1 or 2.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The lane of an index, if there is one.
    #[must_use]
    pub const fn from_index(index: usize) -> Option<Self> {
        match index {
            0 => Some(Self::First),
            1 => Some(Self::Second),
            2 => Some(Self::Third),
            _ => None,
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lane {}", self.index())
    }
}

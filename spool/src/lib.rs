//! A durable FIFO of opaque records: append, read from a position, acknowledge, reclaim.
//!
//! # What holds
//!
//! 1. A [`Ticket`] resolves only after the fdatasync of its record's group has returned. There is no setting that weakens it.
//! 2. Whatever a process kill, a power cut, a full disk or a failing one leaves behind, [`Spool::open`] serves every record
//!    whose ticket resolved and that was not acknowledged, in order, at its position. What it cannot serve because its bytes
//!    are damaged it names, and goes on. It never fails for what the bytes say, and never asks for a human. (The one refusal is
//!    a segment of a newer version of this crate.)
//! 3. What was appended in one batch is durable as a whole or not at all.
//! 4. Nothing is invented: every byte handed out has passed a checksum that no other place, time or file can satisfy.
//! 5. The cursor may lag, so that records are delivered again; it never leads.
//! 6. Memory does not grow with the backlog: the queue to the disk is bounded ([`Options::queue_bytes`]), a [`Reader`] holds
//!    one group, and of what lies on disk only the segments are known, by their ends. Disk is bounded by
//!    [`Options::max_bytes`], and what does not fit is refused before anything is written.
//!
//! It knows no network, no crypto and no clock. It has one owner: a thread that does all writing, beside one that makes
//! segments ahead of time. Callers may be threads or tasks of any executor; [`Ticket`], [`Changed`] and [`Room`] are plain
//! futures that can also be waited for.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! use pithead_spool::{Lane, Options, Record, Spool};
//!
//! let (spool, recovery) = Spool::open(dir.path(), Options::outbox())?;
//! assert!(recovery.corrupt.is_empty());
//! let ticket = spool.append(Lane::First, Record::new(1, 1_700_000_000_000, &b"identity"[..], &b"payload"[..]))?;
//! let position = ticket.wait()?; // or .await
//!
//! let mut reader = spool.reader(Lane::First, spool.cursor(Lane::First));
//! let batch = reader.next_batch(1 << 20)?;
//! assert_eq!(batch.records[0].0, position);
//! spool.acknowledge(Lane::First, position)?;
//! spool.close()?;
//! # Ok(())
//! # }
//! ```
//!
//! # On disk
//!
//! ```text
//! DIRECTORY/lock                    held with flock while the spool is open
//! DIRECTORY/lane-0/seg-NNNN...      segments, 16 hexadecimal digits, counted up from 0, never used twice
//!                  spare-NNNN...    a segment to be: zeroes, or a segment that was acknowledged in full
//!                  damaged-NNNN...  a segment that could not be read at all, at most two are kept
//!                  cursor           two slots
//!                  *.tmp            half made; removed by open
//! DIRECTORY/lane-1, lane-2          if there are so many lanes
//! ```
//!
//! All numbers are little-endian; every block begins on a page of 4,096 bytes; what is not drawn is zero. A page is written
//! once: groups are padded to whole pages, so a sector that holds durable bytes is never written again, and the kernel never
//! has to read a page of a recycled segment before it is overwritten.
//!
//! ```text
//! segment   | header page | group | group | ... | old bytes or zeroes |            fixed size, new or recycled
//!
//! header     0  magic "PHSPOOL\0"       16  segment number      32  first position
//!            8  version u16 = 1         24  salt                40  size of the file
//!           10  lane u8, page bits u8   12  CRC32C of bytes 0..64, itself as zero
//!
//! group     | head 64 | entry 48 | entry | ... | record heads | record bodies | padding |
//!
//! head       0  magic "PHgr"            24  durable: every position before it was durable when this was written
//!            4  CRC32C of 8..64         32  cursor: every position before it was acknowledged
//!            8  salt of the segment     40  count u32           48  length of head, entries and record heads u32
//!           16  first position          44  length u32          52  CRC32C of all entries u32
//!
//! entry      0  CRC32C of 4..48, seeded by the salt              24  record head: offset u32, length u32
//!            4  kind u16, 0 u16         16  at_ms               32  record body: offset u32, length u32
//!            8  position                                        40  CRC32C of the head, CRC32C of the body
//!
//! slot       0  magic "PHcu"            16  cursor              (slot = sequence mod 2, a page each)
//!            4  CRC32C of 8..64         24  durable
//!            8  sequence
//! ```
//!
//! Offsets count from the start of the group. Entries lie where their index says, and carry position, offsets and checksums of
//! their own, so damage to one costs one record, and damage to a group head costs none. The salt is drawn afresh for every
//! segment and known nowhere else: the bytes that a recycled segment still holds never validate, and neither do bytes that a
//! sender has put into a body so that they look like a group. The checksum over all entries ties a group together: a crash may
//! leave sectors of an older group, cut since, at the very same place.
//!
//! # Operation
//!
//! **Append** checks the bounds, sums up the bytes on the caller's thread, and queues. The owner takes what waits, as much as a
//! group may hold, for each lane; writes the groups; syncs the lanes it touched; answers; and takes what has come in meanwhile.
//! There is no timer: an idle spool commits at once, a busy one in groups as large as the disk is slow.
//!
//! **Acknowledge** moves the cursor in memory. It is written down by the next group, or after 250 ms without one in the cursor
//! file. Segments before the cursor *on disk* become spares.
//!
//! **Recovery** tells two things apart. The next group is written only after the sync of the one before, so a sound group
//! head, a later segment, or the mark that closing leaves in the cursor file proves what lies before it to have been durable:
//! if that does not read, it is corruption, and is stepped over, named and counted. What does not read after the last proof
//! belongs to a group of which nobody was told: a torn tail, cut. Positions below a proof are never given out again.
//!
//! **A survey** ([`Survey`]) looks at a spool of somebody else's, without the lock and without a way to write: one of a dead
//! machine whose disk is mounted read-only, or one that a process is working in. It finds what recovery would find, by the
//! same code.
//!
//! **A failed sync is final.** The kernel may have dropped the pages and called them clean, and the next sync of that
//! descriptor would report success. The segment is given up where it was last durable, everyone waiting is told, and a new
//! segment begins at that very position: what the old one may still hold from there on is superseded. If that fails as well,
//! the lane refuses with [`AppendError::Poisoned`] until it is opened again.
//!
//! # Each sync and its reason
//!
//! | what | when | why |
//! |---|---|---|
//! | group | each commit, each lane touched | a ticket's promise |
//! | spare, length and blocks | once, when it is made | a length is not data, and a sync of a group keeps data alone |
//! | spare, zeroes | every 2 MiB while it is made | so that the blocks have been written when they are overwritten, and a sync of a group commits no metadata; not where groups are large or the owner waits |
//! | segment header | before the rename from spare | a file that is called a segment has a header, so an unreadable one is damage and no accident of timing |
//! | lane folder | after that rename | records are called durable under that name |
//! | cursor slot | before segments are given back, and at close | after a crash nobody may look for records that are gone |
//! | lane folder | after segments were renamed to spares or removed | a spare must not come back as a segment after its bytes were overwritten |
//! | last group, written once more | once, at open, before serving | after a kill it may be in the page cache only; after a failed sync its pages may call themselves clean, hence the writing |
//! | lane folder | once, at open | what open removed must not come back behind what is written from then on |
//! | parent folder, spool folder | when they are created | their own names |

#![warn(missing_docs)]

mod error;
mod options;
mod record;
mod spool;

// The way in.
mod cursor;
mod owner;
mod segment;
mod shared;
mod ticket;

// The bytes, and where they go.
mod format;
mod fs;

// The way out.
mod read;
mod recover;
mod stats;
mod survey;
mod wait;
mod walk;

// What a disk may do to all of it.
#[cfg(any(test, feature = "crash"))]
mod crash;
#[cfg(test)]
mod model;
#[cfg(feature = "crash")]
pub mod stepped;

pub use error::{AcknowledgeError, AppendError, CloseError, Closed, NotDurable, OpenError, ReadError};
pub use options::{Options, Verify};
pub use read::{Batch, CorruptRange, Heads, MAX_NAMED_HEADS, Reader};
pub use record::{Lane, MAX_HEAD_BYTES, Position, Record, RecordHead};
pub use recover::{MAX_NAMED_RANGES, Recovery};
pub use spool::Spool;
pub use stats::{LaneStats, SYNC_BOUNDS_S, Stats, SyncTimes};
pub use survey::{Survey, Walk};
pub use ticket::{Promise, Ticket};
pub use wait::{Changed, Room};

//! Bundles: sealed envelopes as they lie in a bucket, where nobody listens. Packed, named and read here, and never fetched or
//! put: bytes in, bytes out.
//!
//! What holds:
//! 1. A bundle is created once and never changed. Its name says site, hour, gateway, spool, lane and the place of its first
//!    entry, and nothing that a second packing could find otherwise: who packs again after a lost answer or a kill comes to
//!    the same name, finds it taken, and reads there how far it got. The hour is that of the first entry's reception.
//! 2. A reader takes nothing on trust: each length, sum and number of the index, its one spelling, and that the last byte of the
//!    last envelope is the last of the object. What it does not understand it refuses whole.
//! 3. A damaged envelope is found by its own checksum and hides none of its neighbours.
//! 4. Whoever packs and whoever reads is bounded by the same constants.
//!
//! ```text
//!   0  magic "PHBUNDL1"
//!   8  I, length of the index, u32 little-endian, at most 4 MiB
//!  12  index: pithead.bundle.v1.BundleIndex, as prost writes it
//!      SHA-256 of everything before it, 32 bytes            12 + I
//!      the envelopes, one after another                     44 + I
//!
//!   bundles/<site>/<yyyy>/<mm>/<dd>/<hh>/<gateway>-<spool>-<lane>-<first place, 16 hex digits>.bundle
//!   large/<site>/<device>/<stream>/<run>/<seq, 20 digits>-<header's SHA-256, 16 hex digits>.envelope
//! ```
//!
//! A large envelope is an object of its own, which nobody looks at before a bundle has an entry for it: so there is one way in
//! for the cloud, and a line keeps its order.

mod names;
mod pack;
mod read;

pub use names::{BundleName, CopyName, Hour, LargeName, NotAName, SpoolId};
pub use pack::{Content, Origin, PackError, Packed, Packer};
pub use read::{Bundle, BundleError, Entry, FRONT_MIN, Index, Large, Part, Stored};

/// Entries of a bundle at most: a table of so many is a few megabytes in whoever reads it.
pub const ENTRIES_MAX: usize = 65_536;

/// Bytes of an index at most: so many entries as above of ordinary length, and a tenth of them with custody of their own.
pub const INDEX_MAX: usize = 4 << 20;

/// Bytes of an envelope inside a bundle at most: what a spool holds inline at most. Larger ones are objects.
pub const ENVELOPE_MAX: u64 = 4 << 20;

/// Bytes of a bundle at most. A reader holds one whole, and no packer is configured to make a larger one.
pub const BUNDLE_MAX: u64 = 64 << 20;

/// The first bytes of every bundle.
pub const MAGIC: [u8; 8] = *b"PHBUNDL1";

/// The version of the index that is written and read.
pub const VERSION: u32 = 1;

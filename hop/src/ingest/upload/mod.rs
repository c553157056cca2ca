//! Large envelopes: gathered in a file each, at both hops, in constant memory whatever the size.
//!
//! What holds:
//! 1. A `persisted_size` that was told is on disk: the bytes first, then their checksums, each synced.
//! 2. Every byte of the structure is judged as it goes by, so a whole file is a whole envelope: in order, complete, nothing
//!    behind it. What is refused leaves no bytes here; the sender keeps them.
//! 3. An upload is named by the identity in its header, and is the same upload as long as the header is the same. The header
//!    carries 16 random bytes and its own tag, and no sender may seal twice under one message id: another header under the
//!    identity is a conflict, and another body under the header would be somebody who breaks his own seal.
//! 4. One writer at a time: whoever comes later takes over, and the earlier one is told that it was fenced.
//! 5. Bounded: open uploads in all and per device, bytes in all and per device, room promised and not yet written, and the
//!    time without progress.
//!
//! ```text
//! UPLOADS/<site>~<device>~<stream>~<run>~<seq>.part       the envelope so far, from its header on
//!                                          ....envelope   the same file when it is whole
//!                                          ....sums       what it is, and a checksum per block of 32 KiB
//!
//! sums    0  magic "PHUP"              8  version u16 = 1, 0 u16       region = 16 + length, up to whole pages of 4,096
//!         4  CRC32C of 8..region      12  length u32, then a message: total size, header, custody; zeroes
//!         region + 4 i    CRC32C of block i, all little-endian; the last block is as short as the envelope makes it
//! ```
//!
//! A checksum is written after the sync of its block has returned: what has a checksum is on disk. After a kill or a power
//! cut an upload goes on behind the last block that has one and fits it.
//!
//! Who finishes an upload is the program's: [`Intake::complete`](super::Intake::complete) at the gateway enters it into the
//! spool's log, at the decryptor opens it as a stream.

mod layout;
mod part;
mod sealed_file;
mod store;

pub use layout::{BLOCK_BYTES, is_gone};
pub use sealed_file::{SealedFile, SealedFileError};
pub use store::{BringError, Bringing, UploadLimits, UploadStats, UploadStore, WholeUpload};

pub(super) use layout::{header_hash, identity_of, upload_name};
pub(super) use part::PutError;
pub(crate) use store::UPLOAD_MAX;
pub(super) use store::{Phase, Upload, refusal_of_disk};

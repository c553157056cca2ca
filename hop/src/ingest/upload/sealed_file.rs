//! A whole envelope in its file, read block by block, no byte of it unchecked. Blocks its thread.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use bytes::Bytes;
use pithead_proto::ingest::v1::Hop;
use pithead_sealing::Identity;
use pithead_sealing::envelope::Header;

use super::layout::{BLOCK_BYTES, Meta, Paths};

/// Why bytes of a large envelope cannot be given.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealedFileError {
    /// The file, or the file of its checksums, is not there or is none of ours.
    #[error("the large envelope or its checksums are gone: {0}")]
    Gone(#[source] io::Error),
    /// A block does not fit its checksum: the disk has changed it.
    #[error("the disk has changed the bytes from {at} on")]
    Damaged {
        /// Where the block begins.
        at: u64,
    },
    /// The disk does not give the bytes; it may be passing.
    #[error(transparent)]
    Disk(#[from] io::Error),
}

impl From<SealedFileError> for io::Error {
    /// Damage is `InvalidData`.
    fn from(error: SealedFileError) -> Self {
        match error {
            SealedFileError::Disk(error) | SealedFileError::Gone(error) => error,
            damaged @ SealedFileError::Damaged { .. } => Self::new(io::ErrorKind::InvalidData, damaged),
        }
    }
}

/// A large envelope that is whole.
#[derive(Debug)]
pub struct SealedFile {
    data: File,
    sums: File,
    region: u64,
    meta: Meta,
    /// Where [`Read`] is.
    at: u64,
    /// The block that [`Read`] is in.
    block: Bytes,
}

impl SealedFile {
    /// Opens the large envelope of an identity in a folder of uploads. Reads only, so that it may lie on a dead machine's disk.
    ///
    /// # Errors
    /// [`SealedFileError::Gone`] where it is certainly not there, or none of ours; [`SealedFileError::Disk`] for whatever else
    /// may pass, such as too many open files.
    pub fn open(folder: &Path, identity: &Identity) -> Result<Self, SealedFileError> {
        let paths = Paths::new(folder, identity);
        let open = || {
            let (data, sums) = (File::open(&paths.envelope)?, File::open(&paths.sums)?);
            let (meta, region) = Meta::read(&sums)?;
            if data.metadata()?.len() != meta.total {
                return Err(io::ErrorKind::InvalidData.into());
            }
            Ok(Self { data, sums, region, meta, at: 0, block: Bytes::new() })
        };
        open().map_err(|error: io::Error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                SealedFileError::Gone(error)
            }
            _ => SealedFileError::Disk(error),
        })
    }

    /// Bytes of the whole envelope.
    pub fn total(&self) -> u64 {
        self.meta.total
    }

    /// Its header.
    pub fn header(&self) -> &Header {
        &self.meta.header
    }

    /// Custody as its sender told it.
    pub fn hops(&self) -> &[Hop] {
        &self.meta.hops
    }

    /// The bytes from `offset` to the end of its block, or of the envelope; empty at the end.
    ///
    /// # Errors
    /// [`SealedFileError`].
    pub fn block_at(&self, offset: u64) -> Result<Bytes, SealedFileError> {
        let index = offset / BLOCK_BYTES;
        let at = index * BLOCK_BYTES;
        if offset >= self.meta.total {
            return Ok(Bytes::new());
        }
        let mut block = vec![0; BLOCK_BYTES.min(self.meta.total - at) as usize];
        self.data.read_exact_at(&mut block, at)?;
        let mut sum = [0; 4];
        self.sums.read_exact_at(&mut sum, self.region + 4 * index)?;
        if u32::from_le_bytes(sum) != crc32c::crc32c(&block) {
            return Err(SealedFileError::Damaged { at });
        }
        Ok(Bytes::from(block).slice((offset - at) as usize..))
    }

    /// Bytes from `offset` on, of at most `max` bytes and at least one block's rest; empty at the end.
    ///
    /// # Errors
    /// [`SealedFileError`].
    pub fn read_from(&self, offset: u64, max: usize) -> Result<Bytes, SealedFileError> {
        let first = self.block_at(offset)?;
        if first.is_empty() || first.len() + BLOCK_BYTES as usize > max {
            return Ok(first);
        }
        let mut out = Vec::with_capacity(max);
        out.extend_from_slice(&first);
        while out.len() + BLOCK_BYTES as usize <= max {
            let block = self.block_at(offset + out.len() as u64)?;
            if block.is_empty() {
                break;
            }
            out.extend_from_slice(&block);
        }
        Ok(out.into())
    }
}

impl Read for SealedFile {
    /// Damage is `InvalidData`.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.block.is_empty() {
            self.block = self.block_at(self.at)?;
        }
        let now = self.block.split_to(buffer.len().min(self.block.len()));
        buffer[..now.len()].copy_from_slice(&now);
        self.at += now.len() as u64;
        Ok(now.len())
    }
}

//! One upload while it is gathered: bytes in, checked as they go by, made durable block by block. Blocks its thread.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use pithead_sealing::envelope::{FormatError, StructureChecker};
use rustix::fs::{FallocateFlags, fallocate};

use super::layout::{BLOCK_BYTES, Meta, Paths};
use crate::program::disk;

/// Blocks at the end that are read back when an upload is taken up again. Sums are written in order and after the sync of
/// their blocks, so only the last ones written can be torn: this is twice what one sync brings.
const TAIL_BLOCKS: u64 = 512;

/// Read at a time when an upload is taken up again.
const READ_BYTES: usize = 256 << 10;

/// Why bytes were not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PutError {
    /// They begin behind what is here.
    #[error("the bytes begin behind what is here")]
    Beyond,
    /// It is no envelope: no more of it will be taken.
    #[error(transparent)]
    Structure(#[from] FormatError),
    /// The disk did not take them; drop the [`PartFile`] and take the upload up again.
    #[error(transparent)]
    Disk(#[from] io::Error),
}

/// See the module above.
#[derive(Debug)]
pub(crate) struct PartFile {
    paths: Paths,
    data: File,
    sums: File,
    /// Where the sums begin.
    region: u64,
    header: u64,
    total: u64,
    checker: StructureChecker,
    written: u64,
    /// CRC32C of the block that is being filled.
    running: u32,
    /// Sums of blocks that are full and not synced yet.
    fresh: Vec<u8>,
    /// Bytes that are on disk with their sums: whole blocks, or everything.
    persisted: u64,
}

impl PartFile {
    /// Begins an upload: room for all of it, the header in it, and its name, all on disk.
    pub(crate) fn create(paths: &Paths, meta: &Meta) -> io::Result<Self> {
        let data = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&paths.part)?;
        // The length stays what was written: only the room is taken. A file system that cannot promise room may still have
        // it, and says so while it is written to.
        match fallocate(&data, FallocateFlags::KEEP_SIZE, 0, meta.total) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
            Err(error) => return Err(error.into()),
        }
        data.write_all_at(meta.header.wire(), 0)?;
        data.sync_all()?;
        // Syncs the folder, and so the name of the other file as well.
        meta.write(paths)?;
        Self::resume(paths, None)
    }

    /// Takes an upload up again, behind the last block that is certainly on disk: at most `persisted` bytes, where a
    /// failed sync has made everything behind them doubtful.
    ///
    /// # Errors
    /// `InvalidData` for files that are none of ours, and what the disk says.
    pub(crate) fn resume(paths: &Paths, persisted: Option<u64>) -> io::Result<Self> {
        if !paths.part.try_exists()? && paths.envelope.try_exists()? {
            // Publishing failed between the new name and the sync of the folder: it is to be published again.
            disk::publish(&paths.envelope, &paths.part)?;
        }
        let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path);
        let (data, sums) = (open(&paths.part)?, open(&paths.sums)?);
        let (meta, region) = Meta::read(&sums)?;
        let header = meta.header.wire().len() as u64;
        let told = (sums.metadata()?.len().saturating_sub(region)) / 4;
        let here = data.metadata()?.len();
        let blocks = |bytes: u64| {
            if bytes >= meta.total { meta.total.div_ceil(BLOCK_BYTES) } else { bytes / BLOCK_BYTES }
        };
        let mut count = told.min(blocks(here)).min(persisted.map_or(u64::MAX, blocks));
        let mut block = vec![0; BLOCK_BYTES as usize];
        for index in count.saturating_sub(TAIL_BLOCKS)..count {
            let at = index * BLOCK_BYTES;
            let block = &mut block[..BLOCK_BYTES.min(meta.total - at) as usize];
            data.read_exact_at(block, at)?;
            let mut sum = [0; 4];
            sums.read_exact_at(&mut sum, region + 4 * index)?;
            if u32::from_le_bytes(sum) != crc32c::crc32c(block) {
                count = index;
                break;
            }
        }
        let persisted = (count * BLOCK_BYTES).min(meta.total);
        sums.set_len(region + 4 * count)?;
        // Written anew, so that a failed sync's clean pages are dirty again; it is behind no sum if the blocks are few.
        data.write_all_at(meta.header.wire(), 0)?;
        data.sync_data()?;
        sums.sync_data()?;

        let written = persisted.max(header);
        let (mut checker, mut at) = StructureChecker::resume(meta.header.clone(), meta.total, written)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        let mut buffer = vec![0; READ_BYTES];
        while at < written {
            let chunk = &mut buffer[..(written - at).min(READ_BYTES as u64) as usize];
            data.read_exact_at(chunk, at)?;
            checker.push(chunk).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
            at += chunk.len() as u64;
        }
        let mut part = Self {
            paths: paths.clone(),
            data,
            sums,
            region,
            header,
            total: meta.total,
            checker,
            written: persisted,
            running: 0,
            fresh: Vec::new(),
            persisted,
        };
        // The header counts as written; what of it is behind the last sum goes into the sums to come.
        let rest = meta.header.wire().get(persisted as usize..).unwrap_or_default();
        part.account(rest);
        Ok(part)
    }

    /// Takes bytes that begin at `offset`; what of them is here already is passed over.
    pub(crate) fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<(), PutError> {
        let known = self.written.checked_sub(offset).ok_or(PutError::Beyond)?;
        let Some(bytes) = usize::try_from(known).ok().and_then(|known| bytes.get(known..)) else {
            return Ok(());
        };
        if bytes.is_empty() {
            return Ok(());
        }
        // Nothing is written past the room that was promised; the checker names the fault.
        if self.written + bytes.len() as u64 <= self.total {
            self.data.write_all_at(bytes, self.written)?;
        }
        self.checker.push(bytes)?;
        self.account(bytes);
        if self.written == self.total && !self.checker.is_complete() {
            return Err(FormatError::Truncated.into());
        }
        Ok(())
    }

    fn account(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = BLOCK_BYTES - self.written % BLOCK_BYTES;
            let (now, later) = bytes.split_at(bytes.len().min(room as usize));
            self.running = crc32c::crc32c_append(self.running, now);
            self.written += now.len() as u64;
            if self.written.is_multiple_of(BLOCK_BYTES) || self.written == self.total {
                self.fresh.extend(std::mem::take(&mut self.running).to_le_bytes());
            }
            bytes = later;
        }
    }

    /// Bytes that are on disk. The header is, from the beginning.
    pub(crate) fn persisted(&self) -> u64 {
        self.persisted.max(self.header)
    }

    /// Bytes taken so far, on disk or not.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// True when all bytes are here, and they are an envelope as far as can be seen without a key.
    pub(crate) fn is_whole(&self) -> bool {
        self.written == self.total && self.checker.is_complete()
    }

    /// Bytes taken that no sync has covered.
    pub(crate) fn unsynced(&self) -> u64 {
        self.fresh.len() as u64 / 4 * BLOCK_BYTES
    }

    /// Makes all full blocks durable, and the last one when everything is here. Gives the bytes that are on disk.
    ///
    /// # Errors
    /// What the disk says. A failed sync is final for these descriptors: drop this and take the upload up again from the
    /// bytes that were on disk before.
    pub(crate) fn sync(&mut self) -> io::Result<u64> {
        if self.fresh.is_empty() {
            return Ok(self.persisted());
        }
        self.data.sync_data()?;
        // Why after: a sum on disk says that its block is.
        let synced = self.persisted.div_ceil(BLOCK_BYTES);
        self.sums.write_all_at(&self.fresh, self.region + 4 * synced)?;
        self.sums.sync_data()?;
        let blocks = synced + self.fresh.len() as u64 / 4;
        self.fresh.clear();
        self.persisted = (blocks * BLOCK_BYTES).min(self.total);
        Ok(self.persisted())
    }

    /// The last byte is here: everything durable, under the name of a whole envelope.
    ///
    /// # Errors
    /// `InvalidData` if it is not whole, and what the disk says.
    pub(crate) fn publish(mut self) -> io::Result<()> {
        if !self.is_whole() || self.sync()? != self.total {
            return Err(io::ErrorKind::InvalidData.into());
        }
        disk::publish(&self.paths.part, &self.paths.envelope)
    }
}

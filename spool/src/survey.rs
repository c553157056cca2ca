//! Looking at a spool without touching it.
//!
//! Constraints:
//! - Not one byte changes and no lock is taken: the disk may be a dead machine's, mounted read-only, and the spool may belong
//!   to a process that runs. The file system that a survey is given cannot write.
//! - What it finds is what [`Spool::open`](crate::Spool::open) would find, by the same code: where lanes begin and end, what
//!   is damaged, and what is only a torn tail that nobody was told about.
//! - It sees the spool as it was when it was opened. What the owner appends later is not in it; what the owner gives back
//!   meanwhile was acknowledged, and is passed over.
//!
//! How that is safe beside an owner that writes: a segment that is taken into use again gets its new header before anything
//! else, so bytes that were read while the old header still stood are the old ones. A group that a later one proves was on
//! disk before, so a second look at it sees all of it. And which segments there are is looked at until two looks in a row
//! agree.

use crate::error::{OpenError, ReadError};
use crate::fs::{Fs, LookingFs};
use crate::options::Options;
use crate::read::{Batch, Reader, Scan, join};
use crate::record::{Lane, Position, Record};
use crate::recover::{Contents, Layout, MAX_NAMED_RANGES, Recovery};
use crate::shared::{LaneState, Shared};
use crate::stats::{Stats, picture};
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// How often a lane is looked at before its owner is called too busy. One look takes milliseconds, and an owner begins a
/// segment every few hundred of them at most.
const LOOKS: usize = 100;

/// What [`Survey::verify`] reads at a time.
const READ_BYTES: usize = 4 << 20;

/// A spool that is looked at; see the top of this file's module for what that means beside a process that works in it.
pub struct Survey {
    shared: Arc<Shared>,
    found: Recovery,
}

impl Survey {
    /// Looks at the spool in `dir`. Reads the heads of all groups.
    ///
    /// # Errors
    /// As [`Spool::open`](crate::Spool::open), except for those of writing. `WouldBlock` (as [`OpenError::Locked`]) when the
    /// owner is so busy that no two looks agreed.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, OpenError> {
        let dir = dir.as_ref();
        let fs = LookingFs;
        let at = |source| OpenError::from_io(dir, source);
        if !fs.exists(dir).map_err(at)? {
            return Err(OpenError::Missing { path: dir.to_owned() });
        }
        let mut found = Recovery::default();
        let (mut lanes, mut allocated) = (Vec::new(), 0);
        for lane in Lane::ALL {
            let folder = dir.join(format!("lane-{}", lane.index()));
            if !fs.exists(&folder).map_err(at)? {
                break;
            }
            let contents = steady(&fs, &folder, lane)?;
            allocated += contents.allocated();
            let layout = Layout::of(&contents, lane, &mut found);
            lanes.push(LaneState::found(&folder, layout.segments, layout.cursor, layout.end));
        }
        let options = Options { max_bytes: allocated, ..Options::default() };
        let mut shared = Shared::new(Arc::new(fs), dir.to_owned(), options, lanes, allocated);
        shared.foreign = true;
        // Nothing more will come: a reader that waits for it is told so.
        shared.lock().closed = true;
        Ok(Self { shared: Arc::new(shared), found })
    }

    /// What was found in opening it: records, torn groups, segments that cannot be read at all. Damaged records are found by
    /// [`verify`](Self::verify) and by walking.
    #[must_use]
    pub const fn found(&self) -> &Recovery {
        &self.found
    }

    /// How many lanes there are.
    #[must_use]
    pub fn lanes(&self) -> usize {
        self.shared.lanes()
    }

    /// The first position that is not acknowledged.
    #[must_use]
    pub fn cursor(&self, lane: Lane) -> Position {
        self.shared.cursor(lane)
    }

    /// The oldest position that is still kept: the cursor, or some way before it, where its segment begins.
    #[must_use]
    pub fn start(&self, lane: Lane) -> Position {
        self.shared.start(lane)
    }

    /// The position after the last durable record.
    #[must_use]
    pub fn end(&self, lane: Lane) -> Position {
        self.shared.end(lane)
    }

    /// How full it is. A survey knows no budget: its capacity is what lies there.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let scan = |lane| Scan::new(Arc::clone(&self.shared), lane, Position::START, false);
        let mut scans: Vec<Scan> = Lane::ALL.into_iter().take(self.lanes()).map(scan).collect();
        picture(&self.shared, &mut scans)
    }

    /// Goes over a lane from a position on, bodies included.
    #[must_use]
    pub fn walk(&self, lane: Lane, from: Position) -> Walk {
        let reader = Reader::new(Arc::clone(&self.shared), lane, from);
        let begin = reader.offset();
        let state = self.shared.lock();
        let segments = state.lanes.get(lane.index()).map(|lane| &lane.segments);
        let written: u64 = segments.into_iter().flatten().map(|segment| segment.end_offset).sum();
        drop(state);
        Walk { reader, begin, total: written.saturating_sub(begin) }
    }

    /// Bytes that [`verify`](Self::verify) will read.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        Lane::ALL.into_iter().take(self.lanes()).map(|lane| self.walk(lane, self.cursor(lane)).total()).sum()
    }

    /// Reads every byte of what is not acknowledged, and names what is damaged as a start with
    /// [`Verify::Everything`](crate::Verify::Everything) would. `progress` is told how many bytes were read so far.
    ///
    /// # Errors
    /// None that a disk can cause: what it does not give is damaged.
    pub fn verify(&self, progress: impl FnMut(u64)) -> Result<Recovery, ReadError> {
        self.verify_each(progress, |_, _, _| {})
    }

    /// The same, and shows each record that is sound to `each` with where it stands, for whoever knows more of what it should say.
    ///
    /// # Errors
    /// As [`verify`](Self::verify).
    pub fn verify_each(
        &self,
        mut progress: impl FnMut(u64),
        mut each: impl FnMut(Lane, Position, &Record),
    ) -> Result<Recovery, ReadError> {
        let mut report = self.found.clone();
        let mut before = 0;
        for lane in Lane::ALL.into_iter().take(self.lanes()) {
            let mut walk = self.walk(lane, self.cursor(lane));
            let mut ranges = Vec::new();
            let room = MAX_NAMED_RANGES.saturating_sub(report.corrupt.len());
            loop {
                let batch = walk.next_batch(READ_BYTES)?;
                if batch.is_empty() {
                    break;
                }
                batch.records.iter().for_each(|(position, record)| each(lane, *position, record));
                report.corrupt_records += join(&mut ranges, batch.corrupt, room);
                progress(before + walk.bytes());
            }
            report.corrupt.append(&mut ranges);
            before += walk.total();
            progress(before);
        }
        Ok(report)
    }
}

impl fmt::Debug for Survey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Survey").field("dir", &self.shared.dir).field("found", &self.found).finish()
    }
}

/// What lies in a lane's folder, at a moment at which its owner changes nothing about its segments: a folder that is read
/// while files are renamed in it may show neither name of one.
fn steady(fs: &dyn Fs, folder: &Path, lane: Lane) -> Result<Contents, OpenError> {
    let mut last = None;
    for _ in 0..LOOKS {
        let contents = match Contents::of(fs, folder, lane) {
            Ok(contents) => contents,
            // Renamed or removed between the folder and the file.
            Err(OpenError::Missing { .. }) => {
                last = None;
                continue;
            }
            Err(error) => return Err(error),
        };
        let generation = contents.generation();
        if last.as_ref() == Some(&generation) {
            return Ok(contents);
        }
        last = Some(generation);
    }
    Err(OpenError::from_io(folder, io::ErrorKind::WouldBlock.into()))
}

/// One way over a lane of a [`Survey`].
#[derive(Debug)]
pub struct Walk {
    reader: Reader,
    begin: u64,
    total: u64,
}

impl Walk {
    /// The next records, as [`Reader::next_batch`] gives them; empty at the end. What the disk does not give counts as
    /// damaged: there is nobody who could come back later for it.
    ///
    /// Where the positions jump and nothing is named as lost, the owner has given records back meanwhile: they were
    /// acknowledged.
    ///
    /// # Errors
    /// [`ReadError::NoLane`] alone.
    pub fn next_batch(&mut self, max_bytes: usize) -> Result<Batch, ReadError> {
        self.reader.skip_unreadable();
        self.reader.next_batch(max_bytes)
    }

    /// The position of the next record.
    #[must_use]
    pub const fn position(&self) -> Position {
        self.reader.position()
    }

    /// Bytes gone over so far, of [`total`](Self::total).
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.reader.offset().saturating_sub(self.begin).min(self.total)
    }

    /// Bytes to go over in all.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::format::{HeaderRead, PAGE, PAGE_BYTES, SegmentHeader};
    use crate::fs::{FileRef, FsFile, Lock};
    use crate::spool::Spool;
    use crate::walk::Extent;
    use std::io::IoSlice;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// A spool with so many records of its own group each, in segments of seven groups.
    fn filled(dir: &Path, records: u64) {
        let mut options = Options::outbox();
        options.segment_bytes = 8 * PAGE_BYTES;
        options.max_group_bytes = 2 * PAGE_BYTES;
        options.max_bytes = 64 * PAGE_BYTES;
        options.queue_bytes = 8 * PAGE_BYTES;
        let (spool, _) = Spool::open(dir, options).unwrap();
        for number in 0..records {
            spool
                .append(Lane::First, Record::new(1, 0, number.to_le_bytes().to_vec(), "body"))
                .unwrap()
                .wait()
                .unwrap();
        }
        spool.close().unwrap();
    }

    /// A file of which the group at `place` is written between the first look at it and the second.
    struct Late {
        bytes: Vec<u8>,
        place: u64,
        looked: AtomicBool,
    }

    impl FsFile for Late {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            let from = offset as usize;
            let found = self.bytes.get(from..from + buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            buffer.copy_from_slice(found);
            if offset == self.place && !self.looked.swap(true, Ordering::Relaxed) {
                buffer.fill(0);
            }
            Ok(())
        }

        fn write_at(&self, _bytes: &[u8], _offset: u64) -> io::Result<()> {
            Err(io::ErrorKind::ReadOnlyFilesystem.into())
        }

        fn write_slices_at(&self, _slices: &mut [IoSlice<'_>], _offset: u64) -> io::Result<()> {
            Err(io::ErrorKind::ReadOnlyFilesystem.into())
        }

        fn sync_data(&self) -> io::Result<()> {
            Err(io::ErrorKind::ReadOnlyFilesystem.into())
        }

        fn reserve(&self, _bytes: u64) -> io::Result<bool> {
            Err(io::ErrorKind::ReadOnlyFilesystem.into())
        }
    }

    #[test]
    fn a_group_that_is_written_between_two_looks_is_no_damage() {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path(), 3);
        let bytes = std::fs::read(dir.path().join("lane-0/seg-0000000000000000")).unwrap();
        let HeaderRead::Valid(SegmentHeader { salt, .. }) = SegmentHeader::decode(&bytes[..PAGE]) else {
            panic!("no header");
        };
        let limit = bytes.len() as u64;
        let file: FileRef = Arc::new(Late { bytes, place: 2 * PAGE_BYTES, looked: AtomicBool::new(false) });
        let extent = Extent { file: &file, salt, limit, known: 0, until: u64::MAX, tolerant: true };
        let group = extent.group(2 * PAGE_BYTES, 1).unwrap().unwrap();
        assert_eq!((group.first, group.count, group.head.is_some()), (1, 1, true));
    }

    /// A folder that does not show one of its segments at the first look.
    struct Flicker(AtomicBool);

    impl Fs for Flicker {
        fn list(&self, dir: &Path) -> io::Result<Vec<(String, u64)>> {
            let mut found = LookingFs.list(dir)?;
            if !self.0.swap(true, Ordering::Relaxed) {
                found.retain(|(name, _)| name != "seg-0000000000000001");
            }
            Ok(found)
        }

        fn open(&self, path: &Path) -> io::Result<FileRef> {
            LookingFs.open(path)
        }

        fn exists(&self, dir: &Path) -> io::Result<bool> {
            LookingFs.exists(dir)
        }

        fn create_dir(&self, dir: &Path) -> io::Result<()> {
            LookingFs.create_dir(dir)
        }

        fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>> {
            LookingFs.lock(path)
        }

        fn create(&self, path: &Path) -> io::Result<FileRef> {
            LookingFs.create(path)
        }

        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            LookingFs.rename(from, to)
        }

        fn remove(&self, path: &Path) -> io::Result<()> {
            LookingFs.remove(path)
        }

        fn sync_dir(&self, dir: &Path) -> io::Result<()> {
            LookingFs.sync_dir(dir)
        }
    }

    #[test]
    fn a_segment_that_is_renamed_while_the_folder_is_read_is_not_missed() {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path(), 20);
        let folder = dir.path().join("lane-0");
        let contents = steady(&Flicker(AtomicBool::new(false)), &folder, Lane::First).unwrap();
        assert_eq!(contents.generation().iter().map(|(number, _)| *number).collect::<Vec<_>>(), [0, 1, 2]);
    }

    #[test]
    fn a_survey_has_no_way_to_write() {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path(), 1);
        let path = dir.path().join("lane-0/cursor");
        let read_only = |error: io::Error| error.kind() == io::ErrorKind::ReadOnlyFilesystem;
        assert!(LookingFs.rename(&path, &dir.path().join("x")).is_err_and(read_only));
        assert!(LookingFs.remove(&path).is_err_and(read_only));
        assert!(LookingFs.create(&path).is_err_and(read_only));
        // The operating system refuses it too: the descriptor is open for reading alone.
        assert!(LookingFs.open(&path).unwrap().write_at(b"x", 0).is_err());
    }
}

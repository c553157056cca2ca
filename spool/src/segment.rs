//! Making segment files: ahead of time, of zeroes as far as that pays, named, and taken into use.

use crate::format::{PAGE_BYTES, SegmentHeader};
use crate::fs::{FileRef, Fs};
use std::io;
use std::path::Path;

const SEGMENT: &str = "seg-";
const SPARE: &str = "spare-";
const DAMAGED: &str = "damaged-";
const UNFINISHED: &str = ".tmp";

/// Zeroes are written in steps of this size, each with its own sync: one large sync would hold up the owner's for as long as
/// the disk takes for a whole segment.
const ZERO_STEP_BYTES: u64 = 2 * 1024 * 1024;
const ZERO_BLOCK_BYTES: u64 = 128 * 1024;

/// What a file in a lane's folder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    Segment(u64),
    Spare(u64),
    /// A segment whose header and first group are unreadable, set aside.
    Damaged(u64),
    /// Left behind by a crash while it was made.
    Unfinished,
    Other,
}

impl Name {
    pub(crate) fn parse(name: &str) -> Self {
        let number = |prefix| {
            let digits: &str = name.strip_prefix(prefix)?;
            (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok())?
        };
        if name.ends_with(UNFINISHED) {
            Self::Unfinished
        } else if let Some(number) = number(SEGMENT) {
            Self::Segment(number)
        } else if let Some(number) = number(SPARE) {
            Self::Spare(number)
        } else if let Some(number) = number(DAMAGED) {
            Self::Damaged(number)
        } else {
            Self::Other
        }
    }
}

pub(crate) fn segment_name(number: u64) -> String {
    format!("{SEGMENT}{number:016x}")
}

pub(crate) fn spare_name(number: u64) -> String {
    format!("{SPARE}{number:016x}")
}

pub(crate) fn damaged_name(number: u64) -> String {
    format!("{DAMAGED}{number:016x}")
}

/// What the maker of a spare is told before each step of zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Go {
    /// On, to the end.
    On,
    /// The rest need not be written, if there is room for it: somebody waits, or would not gain by it.
    Enough,
    /// The file is not wanted any more.
    Away,
}

/// A file of `bytes` that reads as zeroes, under a name that no open takes for a spare. Its blocks are its own from the beginning. Those that
/// have been written as well are overwritten in place, without the file system having to record anything at each sync; `go` says how far that
/// goes. `None` when it said `Away`.
pub(crate) fn made(
    fs: &dyn Fs,
    dir: &Path,
    name: &str,
    bytes: u64,
    go: &dyn Fn() -> Go,
) -> io::Result<Option<(String, FileRef)>> {
    let name = format!("{name}{UNFINISHED}");
    let path = dir.join(&name);
    let filled = fs.create(&path).and_then(|file| Ok(fill(&*file, bytes, go)?.then_some(file)));
    match filled {
        Ok(Some(file)) => Ok(Some((name, file))),
        Ok(None) => {
            fs.remove(&path)?;
            Ok(None)
        }
        Err(error) => {
            // On a full disk the part that was written has to go again, or it would stay full. If this fails as well, the next
            // open removes it.
            let _ = fs.remove(&path);
            Err(error)
        }
    }
}

fn fill(file: &dyn crate::fs::FsFile, bytes: u64, go: &dyn Fn() -> Go) -> io::Result<bool> {
    let reserved = file.reserve(bytes)?;
    let zeroes = vec![0; ZERO_BLOCK_BYTES.min(bytes) as usize];
    let mut at = 0;
    while at < bytes {
        match go() {
            Go::On => {}
            Go::Enough if reserved => break,
            // Without its blocks the file could not be written to its end on a full disk.
            Go::Enough => {}
            Go::Away => return Ok(false),
        }
        let step = (at + ZERO_STEP_BYTES).min(bytes);
        while at < step {
            let block = ZERO_BLOCK_BYTES.min(step - at);
            file.write_at(&zeroes[..block as usize], at)?;
            at += block;
        }
        file.sync_data()?;
    }
    Ok(true)
}

/// Turns a spare into the segment of `header`. When this returns, the segment survives a crash, with its header: a file that is
/// called a segment has always had one, so a header that does not read is damage.
pub(crate) fn take_into_use(
    fs: &dyn Fs,
    dir: &Path,
    spare: &str,
    file: &FileRef,
    header: &SegmentHeader,
) -> io::Result<String> {
    debug_assert!(header.bytes > PAGE_BYTES);
    file.write_at(&header.encode(), 0)?;
    // Why: the name must not become durable before the header is.
    file.sync_data()?;
    let name = segment_name(header.number);
    fs.rename(&dir.join(spare), &dir.join(&name))?;
    // Why: records are about to be called durable in a file whose name must survive as well.
    fs.sync_dir(dir)?;
    Ok(name)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::crash::CrashFs;
    use crate::fs::RealFs;

    const BYTES: u64 = 3 * ZERO_STEP_BYTES;

    /// Makes a spare of which so many steps of zeroes are wanted. Gives what was written.
    fn written(reserves: bool, steps: u32, then: Go) -> Option<u64> {
        let fs = CrashFs::new(7);
        fs.disk().reserves = reserves;
        let left = Cell::new(steps);
        let go = || match left.get() {
            0 => then,
            _ => {
                left.set(left.get() - 1);
                Go::On
            }
        };
        let (name, file) = made(&fs, Path::new("/spool"), "spare", BYTES, &go).unwrap()?;
        let written = fs.disk().written;
        // It is whole after a power cut, whatever of it was written.
        fs.sync_dir(Path::new("/spool")).unwrap();
        drop(file);
        fs.disk().crash();
        let file = fs.open(&Path::new("/spool").join(name)).unwrap();
        let mut found = vec![1; BYTES as usize];
        file.read_at(&mut found, 0).unwrap();
        assert!(found.iter().all(|byte| *byte == 0));
        Some(written)
    }

    #[test]
    fn whoever_waits_for_a_spare_gets_it_before_all_of_its_zeroes_are_written() {
        assert_eq!(written(true, 9, Go::On), Some(BYTES));
        assert_eq!(written(true, 1, Go::Enough), Some(ZERO_STEP_BYTES));
        assert_eq!(written(true, 0, Go::Enough), Some(0));
    }

    #[test]
    fn where_room_cannot_be_had_without_writing_all_zeroes_are_written() {
        assert_eq!(written(false, 1, Go::Enough), Some(BYTES));
    }

    #[test]
    fn a_spare_that_is_not_wanted_any_more_is_gone() {
        assert_eq!(written(true, 1, Go::Away), None);
        let fs = CrashFs::new(7);
        assert!(made(&fs, Path::new("/spool"), "spare", BYTES, &|| Go::Away).unwrap().is_none());
        assert!(fs.list(Path::new("/spool")).unwrap().is_empty());
    }

    #[test]
    fn a_disk_without_room_for_a_spare_says_so_before_anything_is_written_and_keeps_nothing_of_it() {
        let fs = CrashFs::new(7);
        fs.disk().space = Some(BYTES - 1);
        let error = made(&fs, Path::new("/spool"), "spare", BYTES, &|| Go::On).err().unwrap();
        assert_eq!((error.kind(), fs.disk().written), (io::ErrorKind::StorageFull, 0));
        assert!(fs.list(Path::new("/spool")).unwrap().is_empty());
    }

    #[test]
    fn a_real_spare_has_its_length_and_its_blocks_though_nothing_was_written() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let (name, file) = made(&RealFs, dir.path(), "spare", BYTES, &|| Go::Enough).unwrap().unwrap();
        let facts = std::fs::metadata(dir.path().join(name)).unwrap();
        assert_eq!(facts.len(), BYTES);
        assert!(facts.blocks() * 512 >= BYTES, "{} blocks", facts.blocks());
        let mut found = vec![1; PAGE_BYTES as usize];
        file.read_at(&mut found, BYTES - PAGE_BYTES).unwrap();
        assert!(found.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn names_read_back_as_what_they_are() {
        assert_eq!(Name::parse(&segment_name(0xab)), Name::Segment(0xab));
        assert_eq!(Name::parse(&spare_name(u64::MAX)), Name::Spare(u64::MAX));
        assert_eq!(Name::parse(&damaged_name(1)), Name::Damaged(1));
        assert_eq!(Name::parse("spare-0000000000000001.tmp"), Name::Unfinished);
        for other in ["seg-1", "cursor", "seg-00000000000000zz", "SEG-0000000000000001", ""] {
            assert_eq!(Name::parse(other), Name::Other, "{other}");
        }
    }
}

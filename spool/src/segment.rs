//! Making segment files: zeroed ahead of time, named, and taken into use.

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

/// A file of real zeroes. Not a hole and not fallocate: only blocks that have been written are overwritten in place, without
/// the file system having to record anything at each sync. `go_on` is asked between steps. `None` when it said no.
pub(crate) fn zeroed(
    fs: &dyn Fs,
    dir: &Path,
    name: &str,
    bytes: u64,
    go_on: &dyn Fn() -> bool,
) -> io::Result<Option<(String, FileRef)>> {
    let name = format!("{name}{UNFINISHED}");
    let path = dir.join(&name);
    let filled = fs.create(&path).and_then(|file| Ok(fill(&*file, bytes, go_on)?.then_some(file)));
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

fn fill(file: &dyn crate::fs::FsFile, bytes: u64, go_on: &dyn Fn() -> bool) -> io::Result<bool> {
    let zeroes = vec![0; ZERO_BLOCK_BYTES.min(bytes) as usize];
    let mut at = 0;
    while at < bytes {
        let step = (at + ZERO_STEP_BYTES).min(bytes);
        while at < step {
            let block = ZERO_BLOCK_BYTES.min(step - at);
            file.write_at(&zeroes[..block as usize], at)?;
            at += block;
        }
        if !go_on() {
            return Ok(false);
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
    use super::*;

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

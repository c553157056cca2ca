//! The plaintext of a large envelope in a file beside the sink, until the sink gives it its name.
//!
//! It is written by the opener, frame by frame, and synced before anybody speaks of it; the sink's commit is then a rename.
//! A file that nobody named goes with its value, and after a kill with the next start.

use super::{Action, SinkError};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Ends the names of files in a staging folder.
const ENDING: &str = "large";

/// Names of this process's files: the folder is emptied at the start, and no two are made under one number.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A large content that is whole, authentic and on disk, and has no name yet.
#[derive(Debug)]
pub struct Staged {
    path: PathBuf,
    len: u64,
}

/// A file that is being written.
#[derive(Debug)]
pub struct Staging {
    staged: Staged,
    file: File,
}

impl Staging {
    /// Begins a file in the folder that [`Sink::staging`](super::Sink::staging) names.
    pub fn begin(folder: &Path) -> io::Result<Self> {
        let path = folder.join(format!("{}.{ENDING}", NEXT.fetch_add(1, Ordering::Relaxed)));
        let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        Ok(Self { staged: Staged { path, len: 0 }, file })
    }

    /// Makes it durable. After a failure the file is gone, and nothing was promised.
    pub fn finish(self) -> io::Result<Staged> {
        self.file.sync_data()?;
        Ok(self.staged)
    }
}

impl Write for Staging {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.file.write(buffer)?;
        self.staged.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Renamed, or of no use to anybody.
        let _ = fs::remove_file(&self.path);
    }
}

impl Staged {
    /// Bytes in it.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True for an empty file.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Gives the file its name, never over another; false if there is one of that name. The caller syncs the folder.
    pub(super) fn place(&self, path: &Path) -> Result<bool, SinkError> {
        match renameat_with(CWD, &self.path, CWD, path, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::EXIST) => Ok(false),
            Err(error) => Err(SinkError::at(Action::Rename, path)(error.into())),
        }
    }

    /// Whether a file holds exactly the same.
    pub(super) fn is_in(&self, path: &Path) -> Result<bool, SinkError> {
        let open = |path: &Path| File::open(path).map_err(SinkError::at(Action::Open, path));
        let (mut ours, mut there) = (open(&self.path)?, open(path)?);
        let read = SinkError::at(Action::Read, path);
        same(&mut ours, &mut there, self.len).map_err(read)
    }
}

fn same(ours: &mut File, there: &mut File, len: u64) -> io::Result<bool> {
    if there.metadata()?.len() != len {
        return Ok(false);
    }
    let (mut a, mut b) = (vec![0; 256 << 10], vec![0; 256 << 10]);
    let mut left = len;
    while left > 0 {
        let now = left.min(a.len() as u64) as usize;
        ours.read_exact(&mut a[..now])?;
        there.read_exact(&mut b[..now])?;
        if a[..now] != b[..now] {
            return Ok(false);
        }
        left -= now as u64;
    }
    Ok(true)
}

/// Makes the folder if it is missing, and removes what a killed process has left in it.
pub(super) fn empty_folder(folder: &Path) -> Result<(), SinkError> {
    match fs::create_dir(folder) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(SinkError::at(Action::CreateFolder, folder)(error)),
    }
    for left in fs::read_dir(folder).map_err(SinkError::at(Action::Read, folder))? {
        let path = left.map_err(SinkError::at(Action::Read, folder))?.path();
        fs::remove_file(&path).map_err(SinkError::at(Action::Write, &path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::Content;
    use crate::sink::testing::delivery;
    use crate::sink::{Delivery, FolderSink, JsonLinesSink, Placed, Sink};

    fn large(sink: &dyn Sink, seq: u64, content: &[u8]) -> Delivery {
        let mut staging = Staging::begin(&sink.staging()).unwrap();
        staging.write_all(content).unwrap();
        let staged = staging.finish().unwrap();
        assert_eq!(staged.len(), content.len() as u64);
        let content = Content::staged("application/octet-stream", staged);
        Delivery { content, ..delivery("truck-1", seq, "text/plain", b"") }
    }

    fn left(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn a_large_content_gets_its_name_once_and_other_content_never_takes_it() {
        let out = tempfile::tempdir().unwrap();
        let path = out.path().join("lines.jsonl");
        let folder: Box<dyn Sink> = Box::new(FolderSink::open(out.path()).unwrap());
        let lines: Box<dyn Sink> = Box::new(JsonLinesSink::open(&path, &[]).unwrap());
        for mut sink in [folder, lines] {
            let staging = sink.staging();
            let first = large(&*sink, 1, b"a large content");
            assert_eq!(sink.commit(&[first]).unwrap(), [Placed::New]);
            assert_eq!(left(&staging), 0);
            let other = large(&*sink, 1, b"a lArge content");
            assert_eq!(sink.commit(&[other]).unwrap(), [Placed::Conflict]);
            // What nobody names is gone with its value.
            drop(large(&*sink, 2, b"nobody's"));
            assert_eq!(left(&staging), 0);
        }
        let file = out.path().join("pit-7/truck-1/can/0000000300000001/00000000000000000001.bin");
        assert_eq!(fs::read(file).unwrap(), b"a large content");
        let line: serde_json::Value =
            serde_json::from_str(fs::read_to_string(&path).unwrap().lines().next().unwrap()).unwrap();
        assert_eq!(line["content_type"], "application/octet-stream");
        assert!(line.get("data").is_none());
        let file = out.path().join("lines.jsonl.large").join(line["file"].as_str().unwrap());
        assert_eq!(fs::read(file).unwrap(), b"a large content");
    }

    #[test]
    fn after_a_kill_between_the_name_and_the_ledger_it_is_found_to_be_there() {
        let out = tempfile::tempdir().unwrap();
        let mut sink = FolderSink::open(out.path()).unwrap();
        let first = large(&sink, 1, b"content");
        sink.commit(&[first]).unwrap();
        fs::write(sink.staging().join("9.large"), b"hal").unwrap();
        let mut sink = FolderSink::open(out.path()).unwrap();
        assert_eq!(left(&sink.staging()), 0);
        let again = large(&sink, 1, b"content");
        assert_eq!(sink.commit(&[again]).unwrap(), [Placed::Already]);

        let path = out.path().join("lines.jsonl");
        let mut sink = JsonLinesSink::open(&path, &[]).unwrap();
        let first = large(&sink, 1, b"content");
        sink.commit(&[first]).unwrap();
        // The ledger has not heard of it: the mark is the one from before.
        let mut sink = JsonLinesSink::open(&path, &[]).unwrap();
        let again = large(&sink, 1, b"content");
        assert_eq!(sink.commit(&[again]).unwrap(), [Placed::Already]);
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 1);
    }
}

//! The seam to the disk: what the spool asks of a file system, and the real one.
//!
//! The second implementation is the crashing disk of the tests, the third one only looks. Everything that must be durable is synced by the caller and
//! named at the call; nothing here syncs on its own.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, IoSlice, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

pub(crate) type FileRef = Arc<dyn FsFile>;

/// Held for as long as the directory is ours.
pub(crate) trait Lock: Send + Sync {}

pub(crate) trait Fs: Send + Sync {
    fn exists(&self, dir: &Path) -> io::Result<bool>;
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Takes the exclusive lock, or says `WouldBlock`.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>>;
    /// Names and lengths of the files in a directory.
    fn list(&self, dir: &Path) -> io::Result<Vec<(String, u64)>>;
    /// A new, empty file; an old one of that name is emptied.
    fn create(&self, path: &Path) -> io::Result<FileRef>;
    fn open(&self, path: &Path) -> io::Result<FileRef>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

pub(crate) trait FsFile: Send + Sync {
    /// Fills `buffer`, or fails with `UnexpectedEof`.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    fn write_slices_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()>;
    fn sync_data(&self) -> io::Result<()>;
    /// Makes a new file `bytes` long, with blocks of its own that read as zeroes, and durably so: nothing that is written within it fails
    /// for want of room. Says whether the file system can; if not, the file is as it was.
    fn reserve(&self, bytes: u64) -> io::Result<bool>;
}

pub(crate) struct RealFs;

struct RealFile {
    file: File,
    /// `write_vectored` uses the descriptor's own offset; only the owner writes, this keeps it true.
    seeking: Mutex<()>,
}

struct RealLock(#[allow(dead_code, reason = "closing the file releases the lock")] File);

impl Lock for RealLock {}

fn real(file: File) -> FileRef {
    Arc::new(RealFile { file, seeking: Mutex::new(()) })
}

#[allow(
    clippy::disallowed_methods,
    reason = "this is the one file that renames; its callers sync the folder"
)]
impl Fs for RealFs {
    fn exists(&self, dir: &Path) -> io::Result<bool> {
        match fs::metadata(dir) {
            Ok(found) if found.is_dir() => Ok(true),
            Ok(_) => Err(io::ErrorKind::NotADirectory.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir(dir)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Box::new(RealLock(file))),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<(String, u64)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let facts = entry.metadata()?;
            if let (true, Some(name)) = (facts.is_file(), entry.file_name().to_str()) {
                found.push((name.to_owned(), facts.len()));
            }
        }
        Ok(found)
    }

    fn create(&self, path: &Path) -> io::Result<FileRef> {
        OpenOptions::new().create(true).truncate(true).read(true).write(true).open(path).map(real)
    }

    fn open(&self, path: &Path) -> io::Result<FileRef> {
        OpenOptions::new().read(true).write(true).open(path).map(real)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }
}

/// The real disk, for whoever only looks: nothing that writes gets as far as the operating system. A dead machine's disk may be
/// mounted read-only, and a spool that is looked at may belong to a process that runs.
pub(crate) struct LookingFs;

fn looking_only<T>() -> io::Result<T> {
    Err(io::ErrorKind::ReadOnlyFilesystem.into())
}

impl Fs for LookingFs {
    fn exists(&self, dir: &Path) -> io::Result<bool> {
        RealFs.exists(dir)
    }

    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        looking_only()
    }

    fn lock(&self, _path: &Path) -> io::Result<Box<dyn Lock>> {
        looking_only()
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<(String, u64)>> {
        RealFs.list(dir)
    }

    fn create(&self, _path: &Path) -> io::Result<FileRef> {
        looking_only()
    }

    fn open(&self, path: &Path) -> io::Result<FileRef> {
        File::open(path).map(real)
    }

    fn rename(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        looking_only()
    }

    fn remove(&self, _path: &Path) -> io::Result<()> {
        looking_only()
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        looking_only()
    }
}

impl FsFile for RealFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn write_slices_at(&self, mut slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        let _seeking = self.seeking.lock().unwrap_or_else(PoisonError::into_inner);
        let mut file = &self.file;
        file.seek(SeekFrom::Start(offset))?;
        while !slices.is_empty() {
            match file.write_vectored(slices) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut slices, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn reserve(&self, bytes: u64) -> io::Result<bool> {
        let whole = || rustix::fs::fallocate(&self.file, rustix::fs::FallocateFlags::empty(), 0, bytes);
        // A signal is no failing disk: two of those in a row would end the lane.
        match rustix::io::retry_on_intr(whole) {
            // Why: the length is not data, so a sync of data need not keep it.
            Ok(()) => self.file.sync_all().map(|()| true),
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

//! The data directory: it exists, it can be written, and it is ours alone.
//!
//! ```text
//! DATA/LOCK            held while a program works here
//! DATA/keys/           last known good (two slots), history/, inbox/
//! DATA/spool/          what waits for the relay
//! DATA/lines           the numbers taken per line, as of the last reclaiming
//! DATA/idle/           lines that were quiet for long
//! DATA/spool/id        names the spool in bundles; only with a relay into an object store
//! DATA/relay           what people have said to the relay
//! DATA/relay-parts/    how far large envelopes are on their way into an object store
//! DATA/uploads/        large envelopes, open and waiting
//! DATA/refused/        what the far end will never take
//! DATA/devices.toml    the registry of devices; devices.lock is held while it is changed
//! ```

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use pithead_hop::program::ProgramError;
use pithead_proto::errors::v1::ErrorReason;

use crate::devices::file::RegistryFile;
use pithead_hop::program::disk;

/// Why the directory cannot be worked in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirectoryError {
    /// It is not there. It may be on a disk that is not mounted, so nothing creates it.
    #[error("data directory {} does not exist", .0.display())]
    Missing(PathBuf),
    /// It cannot be written.
    #[error("data directory {} cannot be written: {source}", path.display())]
    Unwritable {
        /// What was being made.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another program works there.
    #[error("data directory {} is in use by another process", .0.display())]
    Locked(PathBuf),
}

impl From<DirectoryError> for ProgramError {
    fn from(error: DirectoryError) -> Self {
        let (reason, todo) = match &error {
            DirectoryError::Missing(_) => (
                ErrorReason::DataDirUnwritable,
                "mount its disk, or create it and give it to this program's user",
            ),
            DirectoryError::Unwritable { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                (ErrorReason::DiskFull, "make room on its disk")
            }
            DirectoryError::Unwritable { .. } => (
                ErrorReason::DataDirUnwritable,
                "check its owner, its permissions and how its disk is mounted",
            ),
            DirectoryError::Locked(_) => {
                (ErrorReason::DataDirLocked, "stop the other gateway; two never share one")
            }
        };
        Self::new(reason, error.to_string()).affects("nothing is served and nothing is taken").todo(todo)
    }
}

/// The directory, locked until this value is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Takes the lock and makes the folders that are missing.
    ///
    /// # Errors
    /// [`DirectoryError`].
    pub fn open(path: &Path) -> Result<Self, DirectoryError> {
        if !path.is_dir() {
            return Err(DirectoryError::Missing(path.to_owned()));
        }
        let unwritable = |at: &Path| {
            let path = at.to_owned();
            move |source| DirectoryError::Unwritable { path, source }
        };
        let lock_path = path.join("LOCK");
        let lock = File::options().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(unwritable(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DirectoryError::Locked(path.to_owned())),
            Err(TryLockError::Error(source)) => {
                return Err(DirectoryError::Unwritable { path: lock_path, source });
            }
        }
        let directory = Self { path: path.to_owned(), _lock: lock };
        for folder in [directory.keys(), directory.inbox(), directory.spool()] {
            disk::create_folder(&folder).map_err(unwritable(&folder))?;
        }
        Ok(directory)
    }

    /// The registry of devices.
    #[must_use]
    pub fn devices(&self) -> RegistryFile {
        RegistryFile::below(&self.path)
    }

    /// Key state.
    #[must_use]
    pub fn keys(&self) -> PathBuf {
        self.path.join("keys")
    }

    /// Statements ever accepted.
    #[must_use]
    pub fn history(&self) -> PathBuf {
        history_below(&self.path)
    }

    /// Bundles that `key import` leaves for the running gateway.
    #[must_use]
    pub fn inbox(&self) -> PathBuf {
        inbox_below(&self.path)
    }

    /// What waits for the relay.
    #[must_use]
    pub fn spool(&self) -> PathBuf {
        self.path.join("spool")
    }

    /// Lines as of the last reclaiming.
    #[must_use]
    pub fn lines(&self) -> PathBuf {
        self.path.join("lines")
    }

    /// Lines that were quiet for long.
    #[must_use]
    pub fn idle(&self) -> PathBuf {
        self.path.join("idle")
    }

    /// What people have said to the relay.
    #[must_use]
    pub fn orders(&self) -> PathBuf {
        self.path.join("relay")
    }

    /// How far large envelopes are on their way into an object store.
    #[must_use]
    pub fn relay_parts(&self) -> PathBuf {
        self.path.join("relay-parts")
    }

    /// Large envelopes.
    #[must_use]
    pub fn uploads(&self) -> PathBuf {
        uploads_below(&self.path)
    }

    /// What the far end will never take.
    #[must_use]
    pub fn refused(&self) -> PathBuf {
        refused_below(&self.path)
    }
}

/// The large envelopes, for whoever only reads them.
#[must_use]
pub fn uploads_below(data: &Path) -> PathBuf {
    data.join("uploads")
}

/// The refused area, for whoever only reads it.
#[must_use]
pub fn refused_below(data: &Path) -> PathBuf {
    data.join("refused")
}

/// The history, for whoever only reads it.
#[must_use]
pub fn history_below(data: &Path) -> PathBuf {
    data.join("keys").join("history")
}

/// The inbox of a gateway that holds the lock.
#[must_use]
pub fn inbox_below(data: &Path) -> PathBuf {
    data.join("keys").join("inbox")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_worked_in_by_one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let first = DataDir::open(folder.path()).unwrap();
        assert!(matches!(DataDir::open(folder.path()), Err(DirectoryError::Locked(_))));
        drop(first);
        DataDir::open(folder.path()).unwrap();
    }

    #[test]
    fn a_missing_directory_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("not-mounted");
        let error = DataDir::open(&missing).unwrap_err();
        assert!(!missing.exists());
        let error = ProgramError::from(error).to_string();
        assert!(error.starts_with("error[PH-6004] DATA_DIR_UNWRITABLE: data directory"), "{error}");
    }
}

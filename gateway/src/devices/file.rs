//! The registry on disk: `DATA/devices.toml`, replaced whole, changed by one at a time.
//!
//! The command line writes it while the gateway runs, and the gateway writes it when a token is used. Both hold
//! `DATA/devices.lock` while they read, change and replace; whoever only reads needs no lock, since the file is whole at
//! every moment.
//!
//! The lock is a witness as well: since the first change there is something in it. A registry that is missing beside such a
//! lock was lost, and is not taken for an empty one, which would forgive everybody who was revoked.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use pithead_hop::program::{ProgramError, disk};
use pithead_proto::errors::v1::ErrorReason;

use super::registry::{NotARegistry, Registry};

/// Longest registry that is read, in bytes: a hundred thousand devices with two certificates each.
const FILE_MAX: u64 = 64 << 20;

/// What stands in the lock once there has been a registry.
const WITNESS: &[u8] =
    b"devices.toml was written here. If it is gone, put it back: without it nobody is revoked.\n";

/// Why the registry cannot be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The disk, or who owns it.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// What stands there is no registry.
    #[error("{}: {source}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: NotARegistry,
    },
    /// It was there, and is not any more.
    #[error("{} is gone, and there was one: {} says so", path.display(), lock.display())]
    Gone {
        /// The file.
        path: PathBuf,
        /// The witness.
        lock: PathBuf,
    },
    /// What would be written could not be read again.
    #[error("{}: the change would not read back: {source}", path.display())]
    NotReadBack {
        /// The file.
        path: PathBuf,
        /// What would be wrong with it.
        source: NotARegistry,
    },
}

impl From<FileError> for ProgramError {
    fn from(error: FileError) -> Self {
        let what = error.to_string();
        match error {
            FileError::Io { .. } => Self::new(ErrorReason::DataDirUnwritable, what)
                .todo("check the data directory, its disk and its owner; run this as the gateway's user"),
            FileError::Content { .. } => Self::new(ErrorReason::StateDamaged, what)
                .affects("nobody can say who was revoked, so nobody is let in by a guess")
                .todo("mend the file, or put back the last good copy of it"),
            FileError::Gone { .. } => Self::new(ErrorReason::StateDamaged, what)
                .affects("nobody can say who was revoked, so nobody is let in by a guess")
                .todo("put back the last good copy of it; or remove the lock as well, and everybody who was revoked is forgiven"),
            FileError::NotReadBack { .. } => {
                Self::new(ErrorReason::Internal, what).affects("nothing has changed")
            }
        }
    }
}

/// The registry of a data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryFile {
    path: PathBuf,
    lock: PathBuf,
}

impl RegistryFile {
    /// Below this data directory.
    #[must_use]
    pub fn below(data: &Path) -> Self {
        Self { path: data.join("devices.toml"), lock: data.join("devices.lock") }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its text; none where no device was ever added.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn text(&self) -> Result<Option<String>, FileError> {
        let failed = |source| FileError::Io { path: self.path.clone(), source };
        match fs::metadata(&self.path) {
            Ok(data) if data.len() > FILE_MAX => {
                Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 64 MiB")))
            }
            Ok(_) => fs::read_to_string(&self.path).map(Some).map_err(failed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// What it says; an empty registry where no device was ever added.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn read(&self) -> Result<Registry, FileError> {
        // In this order: the file is written before its witness, so a witness that was seen has had a file.
        let witnessed = self.is_witnessed()?;
        match self.text()? {
            None if witnessed => Err(FileError::Gone { path: self.path.clone(), lock: self.lock.clone() }),
            None => Ok(Registry::default()),
            Some(text) => self.parse(&text),
        }
    }

    /// Whether there has been a registry.
    fn is_witnessed(&self) -> Result<bool, FileError> {
        match fs::metadata(&self.lock) {
            Ok(data) => Ok(data.len() > 0),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(FileError::Io { path: self.lock.clone(), source }),
        }
    }

    /// Reads a text of it.
    ///
    /// # Errors
    /// [`FileError::Content`].
    pub fn parse(&self, text: &str) -> Result<Registry, FileError> {
        Registry::parse(text).map_err(|source| FileError::Content { path: self.path.clone(), source })
    }

    /// Changes it: reads, has `change` change it, and replaces the file if that went well. Blocks while another does so.
    ///
    /// # Errors
    /// What `change` says, or [`FileError`]; then the file is as it was.
    pub fn change<T, E: From<FileError>>(
        &self,
        change: impl FnOnce(&mut Registry) -> Result<T, E>,
    ) -> Result<T, E> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| E::from(FileError::Io { path, source })
        };
        let held = self.open_lock().map_err(failed(&self.lock))?;
        held.lock().map_err(failed(&self.lock))?;
        let before = self.read()?;
        let mut after = before.clone();
        let done = change(&mut after)?;
        if after != before {
            let text = after.to_text();
            // What cannot be read again would stop the gateway for good.
            Registry::parse(&text)
                .map_err(|source| FileError::NotReadBack { path: self.path.clone(), source })?;
            let witness = if self.is_witnessed()? { None } else { Some(self.open_witness()) };
            let witness = witness.transpose().map_err(failed(&self.lock))?;
            disk::replace(&self.path, text.as_bytes()).map_err(failed(&self.path))?;
            if let Some(mut witness) = witness {
                witness.write_all(WITNESS).and_then(|()| witness.sync_all()).map_err(failed(&self.lock))?;
            }
        }
        Ok(done)
    }

    /// Opened before the registry is replaced: whoever may not write it changes nothing.
    fn open_witness(&self) -> io::Result<File> {
        File::options().write(true).open(&self.lock)
    }

    /// A lock needs no right to write: the command line may run as another user than the gateway.
    fn open_lock(&self) -> io::Result<File> {
        match File::open(&self.lock) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                File::options().read(true).write(true).create(true).truncate(false).open(&self.lock)
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use pithead_sealing::DeviceId;

    use super::*;
    use crate::devices::registry::{Mode, Stamp};

    #[test]
    fn changes_of_many_at_once_are_all_there() {
        let folder = tempfile::tempdir().unwrap();
        let file = RegistryFile::below(folder.path());
        assert_eq!(file.read().unwrap(), Registry::default());
        std::thread::scope(|scope| {
            for number in 0..8 {
                let file = file.clone();
                scope.spawn(move || {
                    let name = DeviceId::new(&format!("truck-{number}")).unwrap();
                    let add = |registry: &mut Registry| {
                        registry.add(&name, Mode::Mtls, &[], Stamp(1)).unwrap();
                        Ok::<_, FileError>(())
                    };
                    file.change(add).unwrap();
                });
            }
        });
        assert_eq!(file.read().unwrap().devices().count(), 8);
    }

    #[test]
    fn a_change_that_is_refused_and_a_file_that_is_damaged_leave_it_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let file = RegistryFile::below(folder.path());
        let refused: Result<(), FileError> = file.change(|registry| {
            registry.revoke(&DeviceId::new("truck-1").unwrap(), Stamp(1));
            Err(FileError::Io { path: "x".into(), source: io::ErrorKind::Other.into() })
        });
        assert!(refused.is_err());
        assert_eq!(file.text().unwrap(), None);

        // A time that no text can say.
        let unreadable = file.change(|registry| {
            registry.revoke(&DeviceId::new("truck-1").unwrap(), Stamp(u64::MAX));
            Ok::<_, FileError>(())
        });
        assert!(matches!(unreadable, Err(FileError::NotReadBack { .. })), "{unreadable:?}");
        assert_eq!(file.text().unwrap(), None);

        fs::write(file.path(), "version = 1\n[[device]]\n").unwrap();
        let error = file.change(|_| Ok::<_, FileError>(())).unwrap_err();
        assert!(matches!(error, FileError::Content { .. }));
        assert_eq!(ProgramError::from(error).reason, ErrorReason::StateDamaged);
        assert_eq!(file.text().unwrap().unwrap(), "version = 1\n[[device]]\n");
    }

    #[test]
    fn a_registry_that_has_gone_is_no_empty_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = RegistryFile::below(folder.path());
        let revoke = |name: &str| {
            file.change(|registry| {
                Ok::<_, FileError>(registry.revoke(&DeviceId::new(name).unwrap(), Stamp(1)))
            })
        };
        file.change(|_| Ok::<_, FileError>(())).unwrap();
        assert_eq!(file.read().unwrap(), Registry::default(), "a lock alone says nothing");
        revoke("truck-1").unwrap();
        let kept = fs::read(file.path()).unwrap();
        fs::remove_file(file.path()).unwrap();
        for error in [file.read().map(drop).unwrap_err(), revoke("truck-2").map(drop).unwrap_err()] {
            assert!(matches!(error, FileError::Gone { .. }), "{error}");
            assert_eq!(ProgramError::from(error).reason, ErrorReason::StateDamaged);
        }
        assert_eq!(file.text().unwrap(), None, "nothing was put in its place");
        fs::write(file.path(), &kept).unwrap();
        assert!(revoke("truck-2").unwrap());
        assert_eq!(file.read().unwrap().devices().count(), 2);
    }
}

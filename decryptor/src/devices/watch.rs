//! The registry's file while the program runs: read when it changes, and kept as it was when it is bad.

use super::Devices;
use super::file::{self, DevicesError};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Looks at the file.
#[derive(Debug)]
pub struct Watch {
    path: PathBuf,
    seen: Option<Stamp>,
    generation: u64,
    existed: bool,
}

/// Which state of the file was read. The commands replace it, so that the number of the file tells two changes of one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stamp {
    Absent,
    There { modified: SystemTime, bytes: u64, inode: u64 },
}

impl Watch {
    /// The registry as it stands. No file is an empty one.
    ///
    /// # Errors
    /// If there is a file, and it cannot be read or is not sound.
    pub fn open(data_dir: &Path) -> Result<(Self, Devices), DevicesError> {
        let path = data_dir.join(file::FILE);
        let stamp = stamp(&path)?;
        let mut devices = file::load(&path)?;
        devices.generation = 1;
        let existed = stamp != Stamp::Absent;
        Ok((Self { path, seen: Some(stamp), generation: 1, existed }, devices))
    }

    /// Whether there ever was a file, as far as this watch has seen.
    #[must_use]
    pub fn existed(&self) -> bool {
        self.existed
    }

    /// Looks anew at the next [`look`](Self::look), whatever the file's times say.
    pub fn forget(&mut self) {
        self.seen = None;
    }

    /// The registry, if the file has changed since. Blocks for as long as reading takes.
    ///
    /// # Errors
    /// What is wrong, once for each state of the file: the registry before stays in force. A file that is gone is wrong as well,
    /// since to empty a registry is said by a file without devices.
    pub fn look(&mut self) -> Result<Option<Devices>, DevicesError> {
        let stamp = stamp(&self.path)?;
        if self.seen == Some(stamp) {
            return Ok(None);
        }
        self.seen = Some(stamp);
        if stamp == Stamp::Absent {
            return if self.existed { Err(DevicesError::Gone { path: self.path.clone() }) } else { Ok(None) };
        }
        self.existed = true;
        let mut devices = file::load(&self.path).inspect_err(|error| {
            // What passes by itself, such as too many open files, is tried again: a revocation may be waiting there.
            if matches!(error, DevicesError::Io { .. }) {
                self.seen = None;
            }
        })?;
        self.generation += 1;
        devices.generation = self.generation;
        Ok(Some(devices))
    }
}

fn stamp(path: &Path) -> Result<Stamp, DevicesError> {
    match fs::metadata(path) {
        Ok(meta) => {
            let modified = meta.modified().map_err(file::at(path))?;
            Ok(Stamp::There { modified, bytes: meta.len(), inode: meta.ino() })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Stamp::Absent),
        Err(error) => Err(file::at(path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Change, Policy, add, remove};
    use super::*;
    use crate::devices::file::testing::{key_file, name};

    #[test]
    fn a_change_is_read_once_and_a_bad_file_is_told_once_and_changes_nothing() {
        let data = tempfile::tempdir().unwrap();
        let (mut watch, devices) = Watch::open(data.path()).unwrap();
        assert_eq!((devices.generation(), devices.counts(), watch.existed()), (1, (0, 0), false));
        assert!(watch.look().unwrap().is_none());
        watch.forget();
        assert!(watch.look().unwrap().is_none(), "nobody ever registered anything");

        let (path, _) = key_file(data.path(), "one");
        let added = add(data.path(), &name("truck-1"), Some(&path), None).unwrap();
        assert!(matches!(added, Change::Key(_)));
        let devices = watch.look().unwrap().unwrap();
        assert_eq!((devices.generation(), devices.counts()), (2, (1, 1)));
        assert!(watch.look().unwrap().is_none());
        // Both words have eight letters, and both changes fall into one moment.
        for policy in [Policy::Required, Policy::Optional, Policy::Required] {
            add(data.path(), &name("truck-1"), None, Some(policy)).unwrap();
            let devices = watch.look().unwrap().unwrap();
            let name = name("truck-1");
            assert_eq!(devices.get(&name.site, &name.device).unwrap().policy, policy);
        }

        let file = data.path().join(file::FILE);
        let good = fs::read(&file).unwrap();
        fs::write(&file, b"[[device]]\nname = 7\n").unwrap();
        assert!(matches!(watch.look(), Err(DevicesError::Malformed { .. })));
        assert!(watch.look().unwrap().is_none(), "told once");
        assert!(Watch::open(data.path()).is_err(), "and a start fails");
        fs::remove_file(&file).unwrap();
        assert!(matches!(watch.look(), Err(DevicesError::Gone { .. })));
        fs::write(&file, good).unwrap();
        assert_eq!(watch.look().unwrap().unwrap().counts(), (1, 1));
        remove(data.path(), &name("truck-1"), None).unwrap();
        assert_eq!(watch.look().unwrap().unwrap().counts(), (0, 0));
    }
}

//! A store that is a folder: what the client below leaves to whoever uses it.
//!
//! Below `NAME#1`, `NAME#2` and so on the client writes what is to become `NAME`: such names are no objects, and what a kill has left
//! there is nobody's.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use object_store::Error;
use object_store::local::LocalFileSystem;
use object_store::path::Path;

use super::settings::SettingsError;

/// See the module. Everything here blocks.
#[derive(Debug, Clone)]
pub(super) struct Folder {
    root: PathBuf,
    pub(super) files: LocalFileSystem,
}

impl Folder {
    /// Opens one that is there. It is not made: where something is mounted and is away, what was written would lie on the disk below.
    pub(super) fn open(path: PathBuf) -> Result<Self, SettingsError> {
        let opened = fs::canonicalize(&path).and_then(|root| {
            let folder = is_folder(&root)?;
            let files = LocalFileSystem::new_with_prefix(&root).map_err(io::Error::other)?.with_fsync(true);
            Ok((folder, Self { root, files }))
        });
        match opened {
            Ok((true, folder)) => Ok(folder),
            Ok((false, _)) => Err(SettingsError::Folder { path, cause: "it is no folder".to_owned() }),
            Err(error) => Err(SettingsError::Folder { path, cause: error.to_string() }),
        }
    }

    /// Whether it is still there. The client would make it anew.
    pub(super) fn is_there(&self) -> bool {
        is_folder(&self.root).unwrap_or(false)
    }

    /// Has an object that was found there on the disk, and the folders that lead to it: whoever made it may have died before its syncs.
    pub(super) fn sync(&self, object: &Path) -> Result<(), Error> {
        let path = self.files.path_to_filesystem(object)?;
        File::open(&path).and_then(|file| file.sync_all()).map_err(failed)?;
        for folder in path.ancestors().skip(1).take_while(|folder| folder.starts_with(&self.root)) {
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
        }
        Ok(())
    }

    /// Removes what attempts that were killed have left of an object. For whoever alone writes it, one attempt at a time. One that was
    /// given up while the disk stood still, and ends after all, may put what the next one has so far in place; that one then fails
    /// and is made again, and nobody reads the object before it has succeeded.
    pub(super) fn remove_unfinished(&self, object: &Path) -> Result<(), Error> {
        let path = self.files.path_to_filesystem(object)?;
        for number in 1_u64.. {
            let mut unfinished = path.clone().into_os_string();
            unfinished.push(format!("#{number}"));
            match fs::remove_file(&unfinished) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }
}

impl Folder {
    /// Names below a folder under which something was begun: those of files that end in `#` and digits, without that.
    pub(super) fn unfinished(&self, below: &str) -> Result<Vec<String>, Error> {
        let mut found = Vec::new();
        let mut folders = vec![self.root.join(below)];
        while let Some(folder) = folders.pop() {
            let entries = match fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(error)),
            };
            for entry in entries {
                let entry = entry.map_err(failed)?;
                if entry.file_type().map_err(failed)?.is_dir() {
                    folders.push(entry.path());
                    continue;
                }
                let path = entry.path();
                let name = path.strip_prefix(&self.root).ok().and_then(|path| path.to_str());
                if let Some((name, number)) = name.and_then(|name| name.rsplit_once('#'))
                    && number.bytes().all(|digit| digit.is_ascii_digit())
                {
                    found.push(name.to_owned());
                }
            }
        }
        found.dedup();
        Ok(found)
    }
}

fn is_folder(path: &std::path::Path) -> io::Result<bool> {
    Ok(fs::metadata(path)?.is_dir())
}

fn failed(error: io::Error) -> Error {
    Error::Generic { store: "folder", source: Box::new(error) }
}

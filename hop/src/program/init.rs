//! What `init` leaves behind: a folder of files, where none of them stood before.
//!
//! Nothing is written over, and a key is its owner's alone from its first byte on.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use pithead_proto::errors::v1::ErrorReason;
use zeroize::Zeroizing;

use super::{ProgramError, disk};

/// A file that is to be written, and whether it is its owner's alone.
pub struct Planned {
    name: String,
    bytes: Zeroizing<Vec<u8>>,
    private: bool,
}

impl Planned {
    /// Of these bytes.
    pub fn new(name: impl Into<String>, bytes: &[u8], private: bool) -> Self {
        Self { name: name.into(), bytes: Zeroizing::new(bytes.to_vec()), private }
    }
}

impl fmt::Debug for Planned {
    /// Without the bytes, which may be a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Planned").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Makes the folder `dir` if it is not there, the folders in it, and then the files in their order.
///
/// # Errors
/// When one of them stands there already; then nothing was written. And what the operating system says.
pub fn write(dir: &Path, folders: &[&str], files: &[Planned]) -> Result<(), ProgramError> {
    let folders: Vec<PathBuf> = folders.iter().map(|name| dir.join(name)).collect();
    let standing = files.iter().map(|file| dir.join(&file.name)).chain(folders.iter().cloned());
    if let Some(path) = standing.into_iter().find(|path| path.symlink_metadata().is_ok()) {
        return Err(ProgramError::new(ErrorReason::WouldOverwrite, format!("{} exists", path.display()))
            .affects("nothing was written")
            .todo("give another folder, or move away what is there"));
    }
    let failed = |path: &Path| {
        let what = path.display().to_string();
        move |error: io::Error| ProgramError::new(ErrorReason::DataDirUnwritable, format!("{what}: {error}"))
    };
    disk::create_folder(dir).map_err(failed(dir))?;
    for folder in &folders {
        disk::create_folder(folder).map_err(failed(folder))?;
    }
    for file in files {
        let path = dir.join(&file.name);
        create(&path, &file.bytes, file.private).map_err(failed(&path))?;
    }
    disk::sync_folder(dir).map_err(failed(dir))
}

/// A new file; one that stands there is an error.
///
/// # Errors
/// What the operating system says.
pub fn create(path: &Path, bytes: &[u8], private: bool) -> io::Result<()> {
    let mode = if private { 0o600 } else { 0o644 };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

//! Files that are whole or absent: written beside, synced, renamed, and the folder synced after.
//!
//! A rename without the first sync can leave an empty file under the final name, and without the second none at all.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

/// How large a file system is, and what of it this program may still take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Room {
    /// All of it.
    pub size_bytes: u64,
    /// What whoever is not root can still write.
    pub available_bytes: u64,
}

impl Room {
    /// Of the file system that holds this folder or file.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn of(path: &Path) -> io::Result<Self> {
        let stat = rustix::fs::statvfs(path)?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(Self { size_bytes: bytes(stat.f_blocks), available_bytes: bytes(stat.f_bavail) })
    }
}

/// Ends the names of files that are being written. What carries it after a crash is rubbish.
pub const UNFINISHED: &str = "part";

/// What a folder may be used for by whom, before the umask: the usual.
pub const FOLDER: u32 = 0o777;

/// Replaces `path` by a file of these bytes, or leaves it as it was.
///
/// # Errors
/// What the operating system says; the file under `path` is then the old one.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut staged = path.as_os_str().to_owned();
    staged.push(".");
    staged.push(UNFINISHED);
    let mut file = File::create(&staged)?;
    file.write_all(bytes)?;
    drop(file);
    publish(Path::new(&staged), path)
}

/// Gives a file that was written under another name its final one: the bytes first, then the name.
///
/// # Errors
/// What the operating system says; nothing stands under `path` that did not stand there before.
pub fn publish(staged: &Path, path: &Path) -> io::Result<()> {
    publish_all([(staged, path)], folder_of(path))
}

/// Where a name stands; a bare one stands in the working directory.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// As [`publish`] for many files of one folder: each is synced before it is renamed, and the folder once after all of them.
///
/// # Errors
/// What the operating system says; some of them may have their names then, and those are whole.
pub fn publish_all<'a>(
    staged: impl IntoIterator<Item = (&'a Path, &'a Path)>,
    folder: &Path,
) -> io::Result<()> {
    for (staged, path) in staged {
        File::open(staged)?.sync_all()?;
        #[expect(
            clippy::disallowed_methods,
            reason = "this is the helper that syncs the file before and the folder after"
        )]
        fs::rename(staged, path)?;
    }
    sync_folder(folder)
}

/// Makes the names in a folder durable.
///
/// # Errors
/// What the operating system says.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Creates a folder below an existing one and makes its name durable. That it exists already is no error, and no reason not to: whoever
/// made it may have been killed before that.
///
/// # Errors
/// What the operating system says.
pub fn create_folder(path: &Path) -> io::Result<()> {
    create_one(path, FOLDER)
}

/// As [`create_folder`], with the folders above it that are missing; whoever makes one may have `mode` of it.
///
/// # Errors
/// What the operating system says.
pub fn create_folders(path: &Path, mode: u32) -> io::Result<()> {
    match (create_one(path, mode), path.parent()) {
        (Err(error), Some(above)) if error.kind() == io::ErrorKind::NotFound && above.parent().is_some() => {
            create_folders(above, mode)?;
            create_one(path, mode)
        }
        (done, _) => done,
    }
}

fn create_one(path: &Path, mode: u32) -> io::Result<()> {
    let is_new = match fs::DirBuilder::new().mode(mode).create(path) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => false,
        Err(error) => return Err(error),
    };
    match sync_folder(folder_of(path)) {
        // What lies above a folder that was given to us may not be ours to read.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !is_new => Ok(()),
        synced => synced,
    }
}

/// The files of a folder that are complete, in the order of their names. What a crash left half written is removed.
///
/// # Errors
/// What the operating system says.
pub fn complete_files(folder: &Path) -> io::Result<Vec<std::path::PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == UNFINISHED) {
            fs::remove_file(&path)?;
        } else if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Writes a file into a folder, syncs it and takes it away again.
///
/// # Errors
/// What the operating system says: the folder cannot be worked in.
pub fn probe(folder: &Path) -> io::Result<()> {
    let path = folder.join(format!(".writable.{}", std::process::id()));
    let write = || {
        let mut file = File::create(&path)?;
        file.write_all(b"pithead")?;
        file.sync_all()
    };
    let written = write();
    let removed = fs::remove_file(&path);
    written.and(removed)
}

/// Bytes that are left on a folder's disk for whoever is not root.
///
/// # Errors
/// What the operating system says.
pub fn free_bytes(folder: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(folder)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Bytes of a folder's disk that files in it take, as far as they can be seen.
#[must_use]
pub fn taken_below(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let taken = entries.filter_map(Result::ok).map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => taken_below(&entry.path()),
        // st_blocks counts in units of 512 bytes, whatever the disk's own are.
        Ok(meta) => meta.blocks().saturating_mul(512),
        Err(_) => 0,
    });
    taken.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_what_a_crash_left_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        replace(&path, b"one").unwrap();
        replace(&path, b"two, longer").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two, longer");
        fs::write(folder.path().join("other.part"), b"half").unwrap();
        assert_eq!(complete_files(folder.path()).unwrap(), vec![path]);
        assert!(!folder.path().join("other.part").exists());
    }

    #[test]
    fn folders_above_are_made_and_what_stands_in_the_way_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for _ in 0..2 {
            create_folders(&at("a/b/c"), 0o700).unwrap();
        }
        for made in ["a", "a/b", "a/b/c"] {
            let mode =
                std::os::unix::fs::PermissionsExt::mode(&fs::metadata(at(made)).unwrap().permissions());
            assert_eq!(mode & 0o777, 0o700, "{made}");
        }
        for always in [".", "/", "./"] {
            create_folders(Path::new(always), FOLDER).unwrap();
        }
        fs::write(at("file"), b"").unwrap();
        std::os::unix::fs::symlink("nowhere", at("loose")).unwrap();
        for bad in ["file", "file/below", "loose", "loose/below"] {
            assert!(create_folders(&at(bad), FOLDER).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bare_name_stands_in_the_working_directory() {
        assert_eq!(folder_of(Path::new("stick")), Path::new("."));
        assert_eq!(folder_of(Path::new("media/stick")), Path::new("media"));
        assert_eq!(folder_of(Path::new("/stick")), Path::new("/"));
    }
}

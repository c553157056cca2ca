//! One file per envelope: `OUT/<site>/<device>/<stream>/<run, 16 hex digits>/<seq, 20 digits>.<ext>`.
//!
//! The file holds exactly what the device sealed (after inflating), so that a stock AWS Encryption SDK, opening the same
//! envelope, gives the same bytes. The path is the identity; sorted by name, a folder is a line in order. What is known of the
//! sender is in the ledger (and on each line of the other sink), not in a second file per envelope: that would double the
//! syncs.
//!
//! | media type | ext |
//! |---|---|
//! | `application/vnd.pithead.batch+protobuf` | `batch.pb` |
//! | `application/json` | `json` |
//! | `text/plain` | `txt` |
//! | `text/csv` | `csv` |
//! | anything else | `bin` |
//!
//! Order of things: content into `OUT/.tmp/`, sync, rename without replacing, sync of the folders. A group beyond
//! [`FEW`] envelopes is synced by `syncfs(2)`, once for the contents and once for the names: one journal commit costs what
//! two fdatasync cost, whatever the group carries.
//!
//! No name can step out of its folder: all parts are of types that hold neither `/` nor `..`, and no site begins with a dot.
//! Devices that differ in case alone are different devices; on a file system that does not tell case, capitals are written as
//! `=` and the small letter (`=` is in no name).

use super::staged::empty_folder;
use super::{Action, Delivery, Placed, Sink, SinkError, Staged};
use pithead_hop::program::disk::create_folder;
use pithead_sealing::{DeviceId, Identity};
use rustix::fs::{CWD, RenameFlags, renameat_with, syncfs};
use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

/// Up to this many files a group is synced file by file.
const FEW: usize = 4;

/// Folders remembered as existing and durable; beyond it all are forgotten and looked up again.
const KNOWN_FOLDERS: usize = 16_384;

const EXTENSIONS: [&str; 5] = ["batch.pb", "json", "txt", "csv", "bin"];

/// The sink that writes one file per envelope.
#[derive(Debug)]
pub struct FolderSink {
    root: PathBuf,
    temporary: PathBuf,
    next_temporary: u64,
    /// Folders whose entry in their parent is on disk.
    known: HashSet<PathBuf>,
    /// Holds the file system for `syncfs`.
    handle: File,
    tells_case: bool,
}

impl FolderSink {
    /// Opens the sink, makes its folder when it is missing (its parent must exist), and removes what a killed process left
    /// half written.
    pub fn open(root: &Path) -> Result<Self, SinkError> {
        let temporary = root.join(".tmp");
        // Its own name is synced here: what lies in it is nothing without that.
        create_folder(root).map_err(SinkError::at(Action::CreateFolder, root))?;
        empty_folder(&temporary)?;
        let probe = temporary.join("Case");
        File::create(&probe).map_err(SinkError::at(Action::Write, &probe))?;
        let tells_case = !temporary.join("cASE").exists();
        fs::remove_file(&probe).map_err(SinkError::at(Action::Write, &probe))?;
        let handle = File::open(root).map_err(SinkError::at(Action::Open, root))?;
        handle.sync_all().map_err(SinkError::at(Action::Sync, root))?;
        Ok(Self {
            root: root.to_owned(),
            temporary,
            next_temporary: 0,
            known: HashSet::new(),
            handle,
            tells_case,
        })
    }

    /// Where the content of an envelope goes.
    #[must_use]
    pub fn path_of(&self, identity: &Identity, content_type: &str) -> PathBuf {
        self.folder_of(identity).join(format!("{:020}.{}", identity.seq.get(), extension(content_type)))
    }

    fn folder_of(&self, identity: &Identity) -> PathBuf {
        let mut folder = self.root.join(identity.site.as_str());
        folder.push(self.device_name(&identity.device));
        folder.push(identity.stream.as_str());
        folder.push(identity.run.to_string());
        folder
    }

    fn device_name(&self, device: &DeviceId) -> String {
        if self.tells_case {
            return device.as_str().to_owned();
        }
        device.as_str().chars().fold(String::new(), |mut name, c| {
            if c.is_ascii_uppercase() {
                name.push('=');
            }
            name.push(c.to_ascii_lowercase());
            name
        })
    }

    /// Whatever file there is under this identity, of any media type: other content with another type is a conflict too.
    fn existing(&self, identity: &Identity) -> Result<Option<PathBuf>, SinkError> {
        let folder = self.folder_of(identity);
        for ext in EXTENSIONS {
            let path = folder.join(format!("{:020}.{ext}", identity.seq.get()));
            if path.try_exists().map_err(SinkError::at(Action::Read, &path))? {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }

    fn write_temporary(&mut self, content: &[u8], sync: bool) -> Result<PathBuf, SinkError> {
        let path = self.temporary.join(format!("{}.part", self.next_temporary));
        self.next_temporary += 1;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(SinkError::at(Action::Open, &path))?;
        file.write_all(content).map_err(SinkError::at(Action::Write, &path))?;
        if sync {
            file.sync_data().map_err(SinkError::at(Action::Sync, &path))?;
        }
        Ok(path)
    }

    /// Makes the folder and those above it up to the root; remembers which parents have a new entry to sync.
    fn ensure_folder(&mut self, folder: &Path, unsynced: &mut BTreeSet<PathBuf>) -> Result<(), SinkError> {
        if folder == self.root || self.known.contains(folder) {
            return Ok(());
        }
        let parent = folder.parent().unwrap_or(&self.root).to_owned();
        self.ensure_folder(&parent, unsynced)?;
        match fs::create_dir(folder) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(SinkError::at(Action::CreateFolder, folder)(error)),
        }
        // Also when it was there: whoever made it may have been killed before the parent was synced.
        unsynced.insert(parent);
        if self.known.len() >= KNOWN_FOLDERS {
            self.known.clear();
        }
        self.known.insert(folder.to_owned());
        Ok(())
    }

    /// A large content, which lies in a file on this file system already: one rename.
    fn place_large(&mut self, delivery: &Delivery, staged: &Staged) -> Result<Placed, SinkError> {
        let folder = self.folder_of(&delivery.identity);
        let mut unsynced = BTreeSet::from([folder.clone()]);
        self.ensure_folder(&folder, &mut unsynced)?;
        let path = match self.existing(&delivery.identity)? {
            Some(path) => path,
            None => self.path_of(&delivery.identity, delivery.content.content_type()),
        };
        let placed =
            if !path.try_exists().map_err(SinkError::at(Action::Read, &path))? && staged.place(&path)? {
                Placed::New
            } else if staged.is_in(&path)? {
                let file = File::open(&path).map_err(SinkError::at(Action::Open, &path))?;
                file.sync_data().map_err(SinkError::at(Action::Sync, &path))?;
                Placed::Already
            } else {
                // Not back at once: the folders count as known from here on, so they have to be synced in this case too.
                Placed::Conflict
            };
        for folder in unsynced {
            let handle = File::open(&folder).map_err(SinkError::at(Action::Open, &folder))?;
            handle.sync_all().map_err(SinkError::at(Action::Sync, &folder))?;
        }
        Ok(placed)
    }

    fn place(&mut self, group: &[Delivery], written: &mut Vec<PathBuf>) -> Result<Vec<Placed>, SinkError> {
        let few = group.len() <= FEW;
        let mut unsynced = BTreeSet::new();
        let mut places = Vec::with_capacity(group.len());
        let mut plan = Vec::with_capacity(group.len());
        for (index, delivery) in group.iter().enumerate() {
            if let Some(staged) = delivery.content.file() {
                places.push(self.place_large(delivery, staged)?);
                continue;
            }
            let folder = self.folder_of(&delivery.identity);
            self.ensure_folder(&folder, &mut unsynced)?;
            let content = delivery.content.plaintext();
            match self.existing(&delivery.identity)? {
                Some(path) if holds(&path, content)? => {
                    // Its writer may have been killed between the rename and the sync of the folder.
                    if few {
                        let file = File::open(&path).map_err(SinkError::at(Action::Open, &path))?;
                        file.sync_data().map_err(SinkError::at(Action::Sync, &path))?;
                    }
                    unsynced.insert(folder);
                    places.push(Placed::Already);
                }
                Some(_) => places.push(Placed::Conflict),
                None => {
                    let temporary = self.write_temporary(content, few)?;
                    written.push(temporary.clone());
                    plan.push((
                        index,
                        temporary,
                        self.path_of(&delivery.identity, delivery.content.content_type()),
                    ));
                    unsynced.insert(folder);
                    places.push(Placed::New);
                }
            }
        }
        if !few {
            self.sync_everything()?;
        }
        for (index, temporary, path) in plan {
            match renameat_with(CWD, &temporary, CWD, &path, RenameFlags::NOREPLACE) {
                Ok(()) => {}
                // Twice the same identity in one group, or a stranger writing in this folder: never over it.
                Err(rustix::io::Errno::EXIST) => {
                    places[index] = if holds(&path, group[index].content.plaintext())? {
                        Placed::Already
                    } else {
                        Placed::Conflict
                    };
                    fs::remove_file(&temporary).map_err(SinkError::at(Action::Write, &temporary))?;
                }
                Err(error) => return Err(SinkError::at(Action::Rename, &path)(error.into())),
            }
        }
        if few {
            for folder in unsynced {
                let handle = File::open(&folder).map_err(SinkError::at(Action::Open, &folder))?;
                handle.sync_all().map_err(SinkError::at(Action::Sync, &folder))?;
            }
        } else {
            self.sync_everything()?;
        }
        Ok(places)
    }

    fn sync_everything(&self) -> Result<(), SinkError> {
        syncfs(&self.handle).map_err(|error| SinkError::at(Action::Sync, &self.root)(error.into()))
    }
}

impl Sink for FolderSink {
    fn commit(&mut self, group: &[Delivery]) -> Result<Vec<Placed>, SinkError> {
        let mut written = Vec::new();
        let placed = self.place(group, &mut written);
        if placed.is_err() {
            // Folders that were made but not synced must be looked at again.
            self.known.clear();
            for temporary in written {
                // Renamed already, or to be removed at the next start.
                let _ = fs::remove_file(temporary);
            }
        }
        placed
    }

    fn staging(&self) -> PathBuf {
        self.temporary.clone()
    }

    fn mark(&self) -> Vec<u8> {
        Vec::new()
    }
}

fn extension(content_type: &str) -> &'static str {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    match essence {
        pithead_proto::batch::v1::CONTENT_TYPE => EXTENSIONS[0],
        "application/json" => EXTENSIONS[1],
        "text/plain" => EXTENSIONS[2],
        "text/csv" => EXTENSIONS[3],
        _ => EXTENSIONS[4],
    }
}

/// Whether the file holds exactly this.
fn holds(path: &Path, content: &[u8]) -> Result<bool, SinkError> {
    let mut file = File::open(path).map_err(SinkError::at(Action::Open, path))?;
    let length = file.metadata().map_err(SinkError::at(Action::Read, path))?.len();
    if length != content.len() as u64 {
        return Ok(false);
    }
    let mut rest = content;
    let mut chunk = [0_u8; 16 * 1024];
    while !rest.is_empty() {
        let read = file.read(&mut chunk).map_err(SinkError::at(Action::Read, path))?;
        if read == 0 || !rest.starts_with(&chunk[..read]) {
            return Ok(false);
        }
        rest = &rest[read..];
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::testing::{delivery, identity};

    fn files_below(root: &Path) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    found.push(path.strip_prefix(root).unwrap().to_string_lossy().into_owned());
                }
            }
        }
        found.sort();
        found
    }

    #[test]
    fn the_path_is_the_identity_and_the_file_is_the_plaintext() {
        let out = tempfile::tempdir().unwrap();
        let mut sink = FolderSink::open(out.path()).unwrap();
        let placed = sink.commit(&[delivery("Truck-1", 3, "text/plain", b"hello")]).unwrap();
        assert_eq!(placed, [Placed::New]);
        let path = "pit-7/Truck-1/can/0000000300000001/00000000000000000003.txt";
        assert_eq!(files_below(out.path()), [path]);
        assert_eq!(fs::read(out.path().join(path)).unwrap(), b"hello");
    }

    #[test]
    fn the_same_again_changes_nothing_and_other_content_never_overwrites() {
        let out = tempfile::tempdir().unwrap();
        // Small and large groups take different ways to the disk.
        for size in [1_u64, 40] {
            let mut sink = FolderSink::open(out.path()).unwrap();
            let device = format!("d{size}");
            let group: Vec<_> =
                (1..=size).map(|seq| delivery(&device, seq, "text/plain", b"first")).collect();
            assert!(sink.commit(&group).unwrap().iter().all(|p| *p == Placed::New));
            let before = files_below(out.path());
            let mut again = FolderSink::open(out.path()).unwrap();
            assert!(again.commit(&group).unwrap().iter().all(|p| *p == Placed::Already));
            let other: Vec<_> =
                (1..=size).map(|seq| delivery(&device, seq, "text/plain", b"other")).collect();
            assert!(again.commit(&other).unwrap().iter().all(|p| *p == Placed::Conflict));
            let other_type: Vec<_> =
                (1..=size).map(|seq| delivery(&device, seq, "text/csv", b"other")).collect();
            assert!(again.commit(&other_type).unwrap().iter().all(|p| *p == Placed::Conflict));
            assert_eq!(files_below(out.path()), before);
            assert_eq!(fs::read(out.path().join(&before[0])).unwrap(), b"first");
        }
    }

    #[test]
    fn what_a_killed_process_left_half_written_is_gone_after_the_next_start() {
        let out = tempfile::tempdir().unwrap();
        drop(FolderSink::open(out.path()).unwrap());
        fs::write(out.path().join(".tmp/17.part"), b"hal").unwrap();
        let mut sink = FolderSink::open(out.path()).unwrap();
        sink.commit(&[delivery("t", 1, "text/plain", b"x")]).unwrap();
        assert_eq!(files_below(out.path()).len(), 1);
    }

    #[test]
    fn one_identity_twice_in_a_group_is_one_file() {
        let out = tempfile::tempdir().unwrap();
        let mut sink = FolderSink::open(out.path()).unwrap();
        let group = [
            delivery("t", 1, "text/plain", b"x"),
            delivery("t", 1, "text/plain", b"x"),
            delivery("t", 1, "text/plain", b"y"),
        ];
        assert_eq!(sink.commit(&group).unwrap(), [Placed::New, Placed::Already, Placed::Conflict]);
        assert_eq!(files_below(out.path()).len(), 1);
    }

    #[test]
    fn where_case_is_not_told_capitals_are_spelt_out() {
        let out = tempfile::tempdir().unwrap();
        let mut sink = FolderSink::open(out.path()).unwrap();
        sink.tells_case = false;
        let upper = sink.path_of(&identity("TRUCK", 1), "text/plain");
        let lower = sink.path_of(&identity("truck", 1), "text/plain");
        assert_ne!(upper.to_string_lossy().to_lowercase(), lower.to_string_lossy().to_lowercase());
        assert!(upper.to_string_lossy().contains("=t=r=u=c=k"));
    }
}

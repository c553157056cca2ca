//! What `--after keep` has left in the folder and need not be sent again: a list in the device's state, so that the folder may
//! be one that nobody here can write to.
//!
//! ```text
//! STATE/watch/<SHA-256 of the folder's path, 16 digits>.json     {"folder": ..., "files": {NAME: [inode, bytes, written_ns]}}
//! ```
//!
//! It holds what is in the folder and no more, so the folder's bound is its own. A list that does not read back is empty: then
//! files are sent again, which costs air and loses nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use pithead_hop::program::disk;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::folder::{Candidate, Print};

#[derive(Debug, Default, Serialize, Deserialize)]
struct List {
    folder: String,
    files: BTreeMap<String, (u64, u64, i128)>,
}

#[derive(Debug)]
pub(super) struct Kept {
    /// None where nothing is to be remembered.
    path: Option<PathBuf>,
    list: List,
}

fn entry(print: &Print) -> (u64, u64, i128) {
    (print.inode, print.bytes, print.written_ns)
}

impl Kept {
    /// Of those who move or delete there is nothing to remember.
    pub(super) fn none() -> Self {
        Self { path: None, list: List::default() }
    }

    pub(super) fn open(state: &Path, dir: &Path) -> io::Result<Self> {
        let dir = fs::canonicalize(dir)?.display().to_string();
        let folder = state.join("watch");
        disk::create_folder(&folder)?;
        let name = hex::encode(&Sha256::digest(&dir)[..8]);
        let path = folder.join(format!("{name}.json"));
        let read = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<List>(&bytes).ok());
        let list = read.filter(|list| list.folder == dir).unwrap_or_default();
        Ok(Self { path: Some(path), list: List { folder: dir, ..list } })
    }

    pub(super) fn has(&self, candidate: &Candidate) -> bool {
        self.list.files.get(&candidate.name) == Some(&entry(&candidate.print))
    }

    /// It was kept: durable before this returns.
    pub(super) fn remember(&mut self, candidate: &Candidate) -> io::Result<()> {
        self.list.files.insert(candidate.name.clone(), entry(&candidate.print));
        self.save()
    }

    /// What is not in the folder any more is forgotten.
    pub(super) fn forget_all_but(&mut self, names: &BTreeSet<String>) -> io::Result<()> {
        let before = self.list.files.len();
        self.list.files.retain(|name, _| names.contains(name));
        if self.list.files.len() < before { self.save() } else { Ok(()) }
    }

    fn save(&self) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        disk::replace(path, &serde_json::to_vec(&self.list).map_err(io::Error::other)?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_was_kept_is_known_after_a_restart_until_it_changes_or_goes() {
        let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let print = Print { inode: 7, bytes: 9, written_ns: 1_795_731_600_123_456_789 };
        let file = Candidate { name: "log".into(), print };
        let open = || Kept::open(state.path(), dir.path()).unwrap();
        let mut kept = open();
        assert!(!kept.has(&file));
        kept.remember(&file).unwrap();
        assert!(open().has(&file));
        assert!(!open().has(&Candidate { print: Print { bytes: 10, ..print }, ..file.clone() }));
        open().forget_all_but(&BTreeSet::new()).unwrap();
        assert!(!open().has(&file));
    }
}

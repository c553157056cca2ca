//! Every statement that was ever accepted here, on disk, and so every key that an envelope may name.
//!
//! An envelope is admitted if its key was named by *any* of them, whatever its status is now: the plaintext is gone, and
//! refusing it would lose data to a rotation. Nothing is ever removed. A statement is one file, written whole before the
//! statement is served:
//!
//! ```text
//! DATA/keys/history/<epoch, 10 digits>-<sequence, 10 digits>-<SHA-256 of the payload, hex>.cose
//! ```
//!
//! The file holds the signed object, for auditors. A file whose payload does not hash to its name is damaged: it is
//! reported and passed over.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use std::{fs, io};

use bytes::Bytes;
use pithead_sealing::trust::{KeyArn, KeyStatus, Sha256Digest, Statement, StatementFields};

use pithead_hop::program::disk;

/// The statements accepted so far.
#[derive(Debug)]
pub struct History {
    folder: PathBuf,
    index: RwLock<Index>,
}

#[derive(Debug, Default)]
struct Index {
    /// By (epoch, sequence).
    statements: BTreeMap<(u64, u64), Sha256Digest>,
    /// What the newest statement that named a key said of it, and which one that was.
    keys: HashMap<KeyArn, ((u64, u64), KeyStatus)>,
}

/// One accepted statement, for display.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What it says.
    pub fields: StatementFields,
    /// SHA-256 of its payload.
    pub digest: Sha256Digest,
}

impl History {
    /// Reads what is there. Also says which files are damaged.
    ///
    /// # Errors
    /// When the folder cannot be read or made.
    pub fn open(folder: &Path) -> io::Result<(Self, Vec<PathBuf>)> {
        disk::create_folder(folder)?;
        let mut index = Index::default();
        let mut damaged = Vec::new();
        for path in disk::complete_files(folder)? {
            match read(&path)? {
                Some(entry) => index.add(&entry.fields, entry.digest),
                None => damaged.push(path),
            }
        }
        Ok((Self { folder: folder.to_owned(), index: RwLock::new(index) }, damaged))
    }

    /// Keeps a statement; false if it is here already. When this returns it is durable.
    ///
    /// # Errors
    /// When it could not be written: then it must not be served either, or envelopes sealed under it would be refused
    /// after a restart.
    pub fn keep(&self, statement: &Statement) -> io::Result<bool> {
        if self.index().statements.get(&statement.version()) == Some(statement.digest()) {
            return Ok(false);
        }
        let (epoch, sequence) = statement.version();
        let name = format!("{epoch:010}-{sequence:010}-{}.cose", statement.digest());
        disk::replace(&self.folder.join(name), statement.object())?;
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        index.add(statement.fields(), *statement.digest());
        Ok(true)
    }

    /// How the key stands, if any accepted statement has ever named it. A key that the newest statement passes over in
    /// silence counts as retired.
    #[must_use]
    pub fn status_of(&self, key: &KeyArn) -> Option<KeyStatus> {
        let index = self.index();
        let (named_by, status) = index.keys.get(key)?;
        let newest = index.statements.last_key_value().map(|(version, _)| version);
        Some(if newest == Some(named_by) { *status } else { (*status).max(KeyStatus::Retired) })
    }

    /// The digest of the statement that was accepted here under a number.
    #[must_use]
    pub fn digest_of(&self, version: (u64, u64)) -> Option<Sha256Digest> {
        self.index().statements.get(&version).copied()
    }

    /// How many statements there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.index().statements.len()
    }

    /// True before the first one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All statements in a folder, the oldest first, without taking part in what a running gateway does there.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn read(folder: &Path) -> io::Result<Vec<Entry>> {
        let mut paths: Vec<PathBuf> =
            fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
        paths.sort();
        let mut entries = Vec::new();
        for path in paths.iter().filter(|path| path.extension().is_some_and(|ending| ending == "cose")) {
            entries.extend(read(path)?);
        }
        Ok(entries)
    }

    fn index(&self) -> std::sync::RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Index {
    fn add(&mut self, fields: &StatementFields, digest: Sha256Digest) {
        let version = (fields.epoch, fields.sequence);
        self.statements.insert(version, digest);
        for key in &fields.keys {
            let known = self.keys.entry(key.arn.clone()).or_insert((version, key.status));
            if known.0 <= version {
                *known = (version, key.status);
            }
        }
    }
}

fn read(path: &Path) -> io::Result<Option<Entry>> {
    let object = Bytes::from(fs::read(path)?);
    let Ok((fields, digest)) = StatementFields::read_unverified(&object) else { return Ok(None) };
    let named = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.rsplit('-').next());
    Ok((named == Some(digest.to_string().as_str())).then_some(Entry { fields, digest }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::testing::{Authority, arn};

    #[test]
    fn a_key_stays_known_after_every_statement_and_every_restart() {
        let folder = tempfile::tempdir().unwrap();
        let mut authority = Authority::new();
        let (old, new) = (arn(1), arn(2));
        {
            let (history, damaged) = History::open(folder.path()).unwrap();
            assert!(damaged.is_empty());
            let first = authority.statement(&[(&old, KeyStatus::Active), (&new, KeyStatus::Next)]);
            assert!(history.keep(&first).unwrap());
            assert!(!history.keep(&first).unwrap());
            assert_eq!(history.status_of(&old), Some(KeyStatus::Active));
            history
                .keep(&authority.statement(&[(&old, KeyStatus::Retired), (&new, KeyStatus::Active)]))
                .unwrap();
            assert_eq!(history.status_of(&old), Some(KeyStatus::Retired));
            // The third no longer speaks of the old key.
            history.keep(&authority.statement(&[(&new, KeyStatus::Active)])).unwrap();
        }
        let (history, damaged) = History::open(folder.path()).unwrap();
        assert!(damaged.is_empty());
        assert_eq!(history.len(), 3);
        assert_eq!(history.status_of(&old), Some(KeyStatus::Retired));
        assert_eq!(history.status_of(&new), Some(KeyStatus::Active));
        assert_eq!(history.status_of(&arn(3)), None);
    }

    #[test]
    fn a_damaged_file_is_named_and_the_others_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut authority = Authority::new();
        let (history, _) = History::open(folder.path()).unwrap();
        history.keep(&authority.statement(&[(&arn(1), KeyStatus::Active)])).unwrap();
        history
            .keep(&authority.statement(&[(&arn(1), KeyStatus::Retired), (&arn(2), KeyStatus::Active)]))
            .unwrap();
        let first = disk::complete_files(folder.path()).unwrap().remove(0);
        let mut bytes = fs::read(&first).unwrap();
        // A byte of the payload: the encoding still reads, the digest no longer matches the name.
        let at = bytes.windows(4).position(|window| window == b"acme").unwrap();
        bytes[at] = b'b';
        fs::write(&first, bytes).unwrap();
        let (history, damaged) = History::open(folder.path()).unwrap();
        assert_eq!(damaged, vec![first]);
        assert_eq!(history.status_of(&arn(2)), Some(KeyStatus::Active));
    }
}

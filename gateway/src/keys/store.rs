//! The last known good on disk: the trust state and everything a bundle is made of, in two slots written in turn.
//!
//! ```text
//!  0          8            16       20        52
//!  | PTHKEYS1 | generation | length | SHA-256 | payload ... |
//!             | u64 BE     | u32 BE | of payload and the 12 bytes before |
//! ```
//!
//! The payload is the message [`Kept`]. A save overwrites the slot that is *not* the newest, so a power cut damages only
//! what nobody relies on yet. The newest slot that reads back whole wins.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use prost::Message as _;
use sha2::{Digest as _, Sha256};

use pithead_hop::program::disk;

const MAGIC: &[u8; 8] = b"PTHKEYS1";
const HEAD: usize = 52;
/// Roots for decades of yearly succession, and a statement with its keys.
const MAX_PAYLOAD: usize = 4 * 1024 * 1024;

/// What is kept.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Kept {
    /// `Device::encode`.
    #[prost(bytes = "bytes", tag = "1")]
    pub device: bytes::Bytes,
    /// All roots, version 1 first.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub roots: Vec<bytes::Bytes>,
    /// SubjectPublicKeyInfo DER of the keys that the statement announces or uses.
    #[prost(bytes = "bytes", repeated, tag = "3")]
    pub spkis: Vec<bytes::Bytes>,
    /// The statement that was served last. It outlives the one in force by a root that has withdrawn that: devices learn
    /// of the root beside it.
    #[prost(bytes = "bytes", tag = "4")]
    pub statement: bytes::Bytes,
}

/// What a start finds.
#[derive(Debug)]
pub enum Found {
    /// Nothing was ever stored.
    Nothing,
    /// The newest slot that reads back.
    Whole(Kept),
    /// There are slots, and none reads back.
    Damaged,
}

/// The two slots.
#[derive(Debug)]
pub struct Store {
    base: PathBuf,
    /// Index and generation of the newest slot.
    newest: Option<(usize, u64)>,
}

impl Store {
    /// Opens the slots `trust.a` and `trust.b` of a folder and reads the newest.
    ///
    /// # Errors
    /// When a slot exists and cannot be read.
    pub fn open(folder: &Path) -> io::Result<(Self, Found)> {
        let mut store = Self { base: folder.join("trust"), newest: None };
        let mut best: Option<(u64, Kept)> = None;
        let mut pieces = false;
        for slot in [0, 1] {
            let bytes = match fs::read(store.path(slot)) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            match decode(&bytes) {
                Some((generation, kept)) if best.as_ref().is_none_or(|(newest, _)| *newest < generation) => {
                    store.newest = Some((slot, generation));
                    best = Some((generation, kept));
                }
                Some(_) => {}
                None => pieces = true,
            }
        }
        let found = match best {
            Some((_, kept)) => Found::Whole(kept),
            None if pieces => Found::Damaged,
            None => Found::Nothing,
        };
        Ok((store, found))
    }

    /// Writes over the older slot. When this returns it is durable.
    ///
    /// # Errors
    /// What the disk says; the newest slot is still whole then.
    pub fn save(&mut self, kept: &Kept) -> io::Result<()> {
        let (slot, generation) = self.newest.map_or((0, 1), |(slot, generation)| (1 - slot, generation + 1));
        let payload = kept.encode_to_vec();
        if payload.len() > MAX_PAYLOAD {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let path = self.path(slot);
        let is_new = !path.exists();
        let mut file = File::options().write(true).create(true).truncate(false).open(&path)?;
        file.write_all(&encode(generation, &payload))?;
        file.set_len((HEAD + payload.len()) as u64)?;
        file.sync_all()?;
        if is_new && let Some(folder) = path.parent() {
            disk::sync_folder(folder)?;
        }
        self.newest = Some((slot, generation));
        Ok(())
    }

    fn path(&self, slot: usize) -> PathBuf {
        self.base.with_extension(["a", "b"][slot])
    }
}

fn encode(generation: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD + payload.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&generation.to_be_bytes());
    bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    let digest = digest(&bytes[8..20], payload);
    bytes.extend_from_slice(&digest);
    bytes.extend_from_slice(payload);
    bytes
}

fn decode(bytes: &[u8]) -> Option<(u64, Kept)> {
    let (head, payload) = bytes.split_at_checked(HEAD)?;
    let generation = u64::from_be_bytes(head[8..16].try_into().ok()?);
    let length = u32::from_be_bytes(head[16..20].try_into().ok()?);
    let whole = &head[..8] == MAGIC
        && usize::try_from(length).is_ok_and(|length| length == payload.len())
        && head[20..] == digest(&head[8..20], payload);
    if !whole {
        return None;
    }
    Some((generation, Kept::decode(payload).ok()?))
}

fn digest(numbers: &[u8], payload: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(numbers).chain_update(payload).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(text: &'static str) -> Kept {
        Kept { device: text.into(), roots: vec!["root".into()], ..Kept::default() }
    }

    fn found(folder: &Path) -> Kept {
        match Store::open(folder).unwrap().1 {
            Found::Whole(kept) => kept,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_was_saved_last_is_found_by_the_next_process() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(Store::open(folder.path()).unwrap().1, Found::Nothing));
        for text in ["one", "two, longer", "3"] {
            Store::open(folder.path()).unwrap().0.save(&kept(text)).unwrap();
            assert_eq!(found(folder.path()), kept(text));
        }
    }

    #[test]
    fn a_save_cut_at_any_byte_leaves_the_one_before_or_the_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _) = Store::open(folder.path()).unwrap();
        store.save(&kept("first")).unwrap();
        store.save(&kept("second")).unwrap();
        let slot = folder.path().join("trust.a");
        let old = fs::read(&slot).unwrap();
        let new = encode(3, &kept("third").encode_to_vec());
        for cut in 0..=new.len() {
            let mut torn = new[..cut].to_vec();
            torn.extend_from_slice(old.get(cut..).unwrap_or_default());
            fs::write(&slot, &torn).unwrap();
            let expected = if torn == new { "third" } else { "second" };
            assert_eq!(found(folder.path()), kept(expected), "cut at {cut}");
        }
    }

    #[test]
    fn when_no_slot_reads_back_it_says_so() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("trust.a"), b"PTHKEYS1 rubbish").unwrap();
        assert!(matches!(Store::open(folder.path()).unwrap().1, Found::Damaged));
    }
}

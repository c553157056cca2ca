//! Envelopes on their way by hand: a folder of standard envelopes and an index of who they are.
//!
//! ```text
//! FOLDER/<device>~<stream>~<run>~<seq, 20 digits>~<first 8 bytes of SHA-256>.envelope   exactly the sealed bytes
//! FOLDER/refused/<the same>                                       what a far end had refused for good
//! FOLDER/index.jsonl                                              an [`Item`] per line; there when the export is whole
//! FOLDER/*.part                                                   being written, or left behind by a cut
//! ```
//!
//! Sorted by name, the files of a line are in order. What holds when a stick is pulled out at any moment:
//! - A file under its final name is whole: it is written beside, synced, renamed, and the folder synced after.
//! - No file is without its line: the lines of a batch are on disk, in `index.jsonl.part`, before its files get their names.
//! - The next export into the folder goes on from there: what is whole and has a line is not written again, and what an
//!   earlier export brought stays.
//!
//! Files are synced in batches: a stick takes longer over one sync than over a megabyte. The index is nobody's proof: its
//! hashes find what a stick has damaged, and what it says of custody counts as a claim.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};

use pithead_hop::identity::{Assurance, GatewayName};
use pithead_hop::ingest::Hop;
use pithead_hop::ingest::admit::HOPS_MAX;
use pithead_hop::program::disk::{self, UNFINISHED};
use pithead_sealing::Identity;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::record::Head;
use super::refused::Entry;

/// The list of what is in a folder.
pub const INDEX: &str = "index.jsonl";
/// The folder of what was refused.
pub const REFUSED: &str = "refused";
/// How the names of envelopes end.
pub const ENVELOPE: &str = "envelope";

/// Files that get their names together.
const BATCH_FILES: usize = 64;
/// Bytes of them.
const BATCH_BYTES: u64 = 16 << 20;
/// Bytes of a line of the index: 8 hops with long names fit ten times.
const LINE_BYTES: u64 = 64 << 10;

/// One envelope of an export: a line of its index. Fields are added, never changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// Where its bytes are, below the folder.
    pub file: String,
    /// Identity of the envelope.
    pub site: String,
    /// Its device.
    pub device: String,
    /// Its stream.
    pub stream: String,
    /// 16 hex digits.
    pub run: String,
    /// Its number in the run.
    pub seq: u64,
    /// Of the bytes in the file.
    pub sha256: String,
    /// Length of the file.
    pub bytes: u64,
    /// When the gateway took it in, or found it refused: milliseconds since 1970 by its clock.
    pub received_ms: u64,
    /// Other bytes came under this identity before; both were kept.
    #[serde(default, skip_serializing_if = "is_false")]
    pub conflict: bool,
    /// Custody, the oldest first. What an older version had set aside has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hops: Vec<ItemHop>,
    /// Why the far end had refused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refusal>,
}

/// One gateway's word on how it got an envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemHop {
    /// Its name.
    pub gateway: String,
    /// By its clock, microseconds since 1970.
    pub received_us: u64,
    /// `claimed`, `vouched` or `signed`.
    pub assurance: String,
    /// Of the sender's certificate, in hex; empty if it had none.
    pub certificate_sha256: String,
    /// The key was retired or revoked by then.
    #[serde(default, skip_serializing_if = "is_false")]
    pub key_not_active: bool,
    /// Other bytes came under this identity before.
    #[serde(default, skip_serializing_if = "is_false")]
    pub conflict: bool,
}

/// Why a far end had refused an envelope for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The registry's name.
    pub reason: String,
    /// `PH-2011`
    pub code: String,
    /// The far end's sentence.
    pub detail: String,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// What is wrong with a line of an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ItemError {
    /// It leads out of its folder, or to no envelope.
    #[error("its file is not one of an export")]
    File,
    /// Its hash is not one.
    #[error("its hash is not a SHA-256 in hex")]
    Hash,
    /// A hop of its custody has no gateway's name, or no certificate's hash.
    #[error("its custody is malformed")]
    Custody,
}

fn file_name(identity: &Identity, sha256: &[u8; 32]) -> String {
    let Identity { device, stream, run, seq, .. } = identity;
    format!("{device}~{stream}~{run}~{:020}~{}.{ENVELOPE}", seq.get(), hex::encode(&sha256[..8]))
}

impl Item {
    /// The line of an envelope that waits in a spool.
    #[must_use]
    pub fn waiting(
        identity: &Identity,
        sha256: &[u8; 32],
        bytes: u64,
        received_ms: u64,
        conflict: bool,
        hops: &[Hop],
    ) -> Self {
        let assurance = |hop: &Hop| match Assurance::from_wire(hop.assurance) {
            Assurance::Claimed => "claimed",
            Assurance::Vouched => "vouched",
            Assurance::Signed => "signed",
        };
        Self {
            file: file_name(identity, sha256),
            site: identity.site.to_string(),
            device: identity.device.to_string(),
            stream: identity.stream.to_string(),
            run: identity.run.to_string(),
            seq: identity.seq.get(),
            sha256: hex::encode(sha256),
            bytes,
            received_ms,
            conflict,
            hops: hops
                .iter()
                .map(|hop| ItemHop {
                    gateway: hop.gateway.clone(),
                    received_us: hop.received_us,
                    assurance: assurance(hop).to_owned(),
                    certificate_sha256: hex::encode(&hop.certificate_sha256),
                    key_not_active: hop.key_not_active,
                    conflict: hop.conflict,
                })
                .collect(),
            refused: None,
        }
    }

    /// The line of an envelope of the refused area. `None` if the entry names no identity: somebody else wrote it.
    #[must_use]
    pub fn refused(entry: &Entry) -> Option<Self> {
        let Head { identity, sha256, hops, copy: _ } = entry.to_head().ok()?;
        let at_ms = entry.refused_at_ms;
        let mut item = Self::waiting(&identity, &sha256, entry.bytes, at_ms, entry.conflict, &hops);
        item.file = format!("{REFUSED}/{}", item.file);
        item.refused = Some(Refusal {
            reason: entry.reason.clone(),
            code: entry.code.clone(),
            detail: entry.detail.clone(),
        });
        Some(item)
    }

    /// `<site>/<device>/<stream>/<run>/<seq>`, as errors and logs name it.
    #[must_use]
    pub fn identity(&self) -> String {
        format!("{}/{}/{}/{}/{}", self.site, self.device, self.stream, self.run, self.seq)
    }

    /// Where its bytes lie.
    ///
    /// # Errors
    /// [`ItemError::File`]: an index may have been written by anybody, and is not led out of its folder.
    pub fn path(&self, folder: &Path) -> Result<PathBuf, ItemError> {
        let name = self.file.strip_prefix("refused/").unwrap_or(&self.file);
        let plain = !name.contains(['/', '\\', '\0']) && !name.starts_with('.');
        match name.strip_suffix(ENVELOPE).and_then(|stem| stem.strip_suffix('.')) {
            Some(stem) if plain && !stem.is_empty() => Ok(folder.join(&self.file)),
            _ => Err(ItemError::File),
        }
    }

    /// The hash that its bytes have to have.
    ///
    /// # Errors
    /// [`ItemError::Hash`].
    pub fn sha256(&self) -> Result<[u8; 32], ItemError> {
        hash_of(&self.sha256).ok_or(ItemError::Hash)
    }

    /// Custody for the next hop. Whatever the index says of how a sender was known is a claim from here on: the folder has
    /// been in anybody's pocket. `by` is who brings it in, for an envelope that has no custody of its own.
    ///
    /// # Errors
    /// [`ItemError::Custody`].
    pub fn custody(&self, by: &GatewayName) -> Result<Vec<Hop>, ItemError> {
        let claimed = Assurance::Claimed.to_wire() as i32;
        if self.hops.is_empty() {
            let received_us = self.received_ms.saturating_mul(1000);
            return Ok(vec![Hop {
                gateway: by.as_str().to_owned(),
                received_us,
                assurance: claimed,
                ..Hop::default()
            }]);
        }
        // Who takes it in adds a hop of its own; the newest ones say most.
        let hops = &self.hops[self.hops.len().saturating_sub(HOPS_MAX - 1)..];
        hops.iter()
            .map(|hop| {
                GatewayName::new(&hop.gateway).map_err(|_| ItemError::Custody)?;
                let certificate = hex::decode(&hop.certificate_sha256).map_err(|_| ItemError::Custody)?;
                if !matches!(certificate.len(), 0 | 32) {
                    return Err(ItemError::Custody);
                }
                Ok(Hop {
                    gateway: hop.gateway.clone(),
                    received_us: hop.received_us,
                    assurance: claimed,
                    certificate_sha256: certificate.into(),
                    key_not_active: hop.key_not_active,
                    conflict: hop.conflict,
                })
            })
            .collect()
    }
}

fn hash_of(text: &str) -> Option<[u8; 32]> {
    hex::decode(text).ok()?.try_into().ok()
}

/// The lines of an index, one after the other.
#[derive(Debug)]
pub struct Items {
    lines: io::Take<BufReader<File>>,
}

impl Items {
    /// Of the file; nothing if there is none.
    ///
    /// # Errors
    /// When it does not open for another reason.
    pub fn open(path: &Path) -> io::Result<Option<Self>> {
        match File::open(path) {
            Ok(file) => Ok(Some(Self { lines: BufReader::new(file).take(0) })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Iterator for Items {
    /// A line that is none: its number does not matter, there is nothing to be done about it.
    type Item = io::Result<Option<Item>>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut line = Vec::new();
        self.lines.set_limit(LINE_BYTES);
        match self.lines.read_until(b'\n', &mut line) {
            Ok(0) => None,
            // Torn off where the stick was pulled; or somebody's file without an end.
            Ok(_) if line.last() != Some(&b'\n') => Some(Ok(None)),
            Ok(_) => Some(Ok(serde_json::from_slice(&line).ok())),
            Err(error) => Some(Err(error)),
        }
    }
}

/// A folder that is being filled.
#[derive(Debug)]
pub struct Filling {
    folder: PathBuf,
    index: PathBuf,
    index_part: PathBuf,
    lines: File,
    /// The first half of the hash of each name that has a line.
    listed: HashSet<[u8; 16]>,
    batch: Vec<(PathBuf, PathBuf)>,
    batch_lines: Vec<u8>,
    batch_bytes: u64,
}

fn key_of(file: &str) -> [u8; 16] {
    let mut key = [0; 16];
    key.copy_from_slice(&Sha256::digest(file)[..16]);
    key
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    PathBuf::from(name)
}

impl Filling {
    /// Begins, or goes on where an earlier export was cut short. The folder is made; its parent must exist.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn begin(folder: &Path) -> io::Result<Self> {
        disk::create_folder(folder)?;
        disk::create_folder(&folder.join(REFUSED))?;
        let index = folder.join(INDEX);
        let index_part = with_ending(&index, UNFINISHED);
        // What has a line and is whole stays, from the last whole index and from one that was cut short. The new list is
        // made beside, so that a second cut here loses nothing either.
        let again = with_ending(&index, "again");
        let mut kept = io::BufWriter::new(File::create(&again)?);
        let mut listed = HashSet::new();
        for path in [&index, &index_part] {
            for item in Items::open(path)?.into_iter().flatten() {
                let Some(item) = item? else { continue };
                let whole = item
                    .path(folder)
                    .is_ok_and(|path| fs::metadata(path).is_ok_and(|file| file.len() == item.bytes));
                if whole && listed.insert(key_of(&item.file)) {
                    kept.write_all(&line_of(&item)?)?;
                }
            }
        }
        kept.flush()?;
        drop(kept);
        disk::publish(&again, &index_part)?;
        for below in [folder.to_owned(), folder.join(REFUSED)] {
            for entry in fs::read_dir(below)? {
                let path = entry?.path();
                if path.extension().is_some_and(|ending| ending == UNFINISHED) && path != index_part {
                    fs::remove_file(path)?;
                }
            }
        }
        let lines = File::options().append(true).open(&index_part)?;
        Ok(Self {
            folder: folder.to_owned(),
            index,
            index_part,
            lines,
            listed,
            batch: Vec::new(),
            batch_lines: Vec::new(),
            batch_bytes: 0,
        })
    }

    /// Whether the folder has it already, whole and with its line.
    #[must_use]
    pub fn has(&self, item: &Item) -> bool {
        self.listed.contains(&key_of(&item.file))
    }

    /// Puts an envelope in. Its name is given to it with the next batch. False if the bytes cannot be read, or are not those
    /// of the line: they were damaged where they came from, and nothing is put in.
    ///
    /// # Errors
    /// What the operating system says of the folder.
    pub fn put(&mut self, item: &Item, bytes: impl Read) -> io::Result<bool> {
        let Some((part, path, hash)) = self.stage(item, bytes)? else { return Ok(false) };
        if item.sha256().ok() != Some(hash) {
            fs::remove_file(&part)?;
            return Ok(false);
        }
        self.enlist(item, part, path)?;
        Ok(true)
    }

    /// The same for a large envelope, of which the spool has the hash of its header alone: it is named by that, and the hash
    /// in its line is that of its bytes as they are read here, each block under the checksum of its own.
    ///
    /// # Errors
    /// What the operating system says of the folder.
    pub fn put_large(&mut self, mut item: Item, bytes: impl Read) -> io::Result<bool> {
        let Some((part, path, hash)) = self.stage(&item, bytes)? else { return Ok(false) };
        item.sha256 = hex::encode(hash);
        self.enlist(&item, part, path)?;
        Ok(true)
    }

    /// Written beside; none if the bytes cannot be read, or are not as many as there should be.
    fn stage(&self, item: &Item, mut bytes: impl Read) -> io::Result<Option<(PathBuf, PathBuf, [u8; 32])>> {
        let path = item.path(&self.folder).map_err(io::Error::other)?;
        let part = with_ending(&path, UNFINISHED);
        let mut file = File::create(&part)?;
        let (mut hash, mut written) = (Sha256::new(), 0);
        let mut chunk = vec![0; 64 << 10];
        let whole = loop {
            match bytes.read(&mut chunk) {
                Ok(0) => break written == item.bytes,
                Ok(read) => {
                    hash.update(&chunk[..read]);
                    file.write_all(&chunk[..read])?;
                    written += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break false,
            }
        };
        if !whole {
            fs::remove_file(&part)?;
            return Ok(None);
        }
        Ok(Some((part, path, hash.finalize().into())))
    }

    fn enlist(&mut self, item: &Item, part: PathBuf, path: PathBuf) -> io::Result<()> {
        self.batch.push((part, path));
        self.batch_lines.extend(line_of(item)?);
        self.batch_bytes += item.bytes;
        self.listed.insert(key_of(&item.file));
        if self.batch.len() >= BATCH_FILES || self.batch_bytes >= BATCH_BYTES {
            self.name_batch()?;
        }
        Ok(())
    }

    fn name_batch(&mut self) -> io::Result<()> {
        // Why: no file may have a name and no line. A line without a file is nothing, and is left out the next time.
        self.lines.write_all(&self.batch_lines)?;
        self.lines.sync_data()?;
        let refused = self.folder.join(REFUSED);
        for folder in [self.folder.as_path(), &refused] {
            let here = || self.batch.iter().filter(|(_, path)| path.parent() == Some(folder));
            if here().next().is_some() {
                disk::publish_all(here().map(|(part, path)| (part.as_path(), path.as_path())), folder)?;
            }
        }
        self.batch.clear();
        self.batch_lines.clear();
        self.batch_bytes = 0;
        Ok(())
    }

    /// Gives the last files their names, and then the index its own.
    ///
    /// # Errors
    /// What the operating system says; the next export goes on from there.
    pub fn finish(mut self) -> io::Result<()> {
        self.name_batch()?;
        disk::publish(&self.index_part, &self.index)
    }
}

fn line_of(item: &Item) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(item).map_err(io::Error::other)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelopes::testing::identity;

    fn item(seq: u64, bytes: &[u8]) -> Item {
        let sha256: [u8; 32] = Sha256::digest(bytes).into();
        let hop = Hop { gateway: "edge-1".into(), received_us: 5_000, assurance: 2, ..Hop::default() };
        Item::waiting(&identity("truck.42", seq), &sha256, bytes.len() as u64, 5, false, &[hop])
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(ENVELOPE))
            .collect();
        names.sort();
        names
    }

    fn listed(folder: &Path) -> Vec<u64> {
        let items = Items::open(&folder.join(INDEX)).unwrap().unwrap();
        items.map(|item| item.unwrap().unwrap().seq).collect()
    }

    #[test]
    fn names_sort_by_number_and_every_file_has_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("stick");
        let mut filling = Filling::begin(&to).unwrap();
        for seq in [9, 10, 100] {
            let bytes = vec![seq as u8; seq as usize];
            assert!(filling.put(&item(seq, &bytes), bytes.as_slice()).unwrap());
        }
        filling.finish().unwrap();
        assert_eq!(listed(&to), [9, 10, 100]);
        let names = names(&to);
        assert_eq!(names.len(), 3);
        assert!(names[0].starts_with("truck.42~can~0000000000000007~00000000000000000009~"), "{names:?}");
        assert!(names[2].contains("~00000000000000000100~"), "{names:?}");
        assert_eq!(fs::read(to.join(&names[1])).unwrap(), vec![10; 10]);
    }

    #[test]
    fn an_export_that_was_cut_short_goes_on_where_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path();
        let mut filling = Filling::begin(to).unwrap();
        let bytes = |seq: u64| vec![seq as u8; 100];
        for seq in 1..=BATCH_FILES as u64 + 3 {
            filling.put(&item(seq, &bytes(seq)), bytes(seq).as_slice()).unwrap();
        }
        // Pulled out here: one batch has its names, three files have none, and there is no index.
        drop(filling);
        assert_eq!(names(to).len(), BATCH_FILES);
        assert!(!to.join(INDEX).exists());
        // A line that the pulling tore off.
        let mut lines = File::options().append(true).open(to.join("index.jsonl.part")).unwrap();
        lines.write_all(b"{\"file\":\"truck.42~c").unwrap();

        let mut filling = Filling::begin(to).unwrap();
        let left: Vec<u64> = (1..=70).filter(|seq| !filling.has(&item(*seq, &bytes(*seq)))).collect();
        assert_eq!(left, [65, 66, 67, 68, 69, 70]);
        for seq in left {
            filling.put(&item(seq, &bytes(seq)), bytes(seq).as_slice()).unwrap();
        }
        filling.finish().unwrap();
        assert_eq!(listed(to), (1..=70).collect::<Vec<_>>());
        assert_eq!(names(to).len(), 70);
        let parts = fs::read_dir(to).unwrap().filter(|entry| {
            entry.as_ref().unwrap().path().extension().is_some_and(|ending| ending == UNFINISHED)
        });
        assert_eq!(parts.count(), 0);
    }

    #[test]
    fn a_later_export_into_the_folder_adds_and_a_file_that_was_taken_away_is_not_listed() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path();
        for seqs in [[1_u64, 2], [2, 3]] {
            let mut filling = Filling::begin(to).unwrap();
            for seq in seqs {
                let item = item(seq, b"sealed");
                if !filling.has(&item) {
                    filling.put(&item, b"sealed".as_slice()).unwrap();
                }
            }
            filling.finish().unwrap();
        }
        assert_eq!(listed(to), [1, 2, 3]);
        fs::remove_file(item(2, b"sealed").path(to).unwrap()).unwrap();
        Filling::begin(to).unwrap().finish().unwrap();
        assert_eq!(listed(to), [1, 3]);
    }

    #[test]
    fn bytes_that_are_not_those_of_their_line_are_not_put_in() {
        let folder = tempfile::tempdir().unwrap();
        let mut filling = Filling::begin(folder.path()).unwrap();
        assert!(!filling.put(&item(1, b"sealed"), b"sealec".as_slice()).unwrap());
        filling.finish().unwrap();
        assert_eq!(listed(folder.path()), Vec::<u64>::new());
        assert_eq!(names(folder.path()), Vec::<String>::new());
    }

    #[test]
    fn custody_from_a_folder_is_a_claim_and_an_index_does_not_lead_out_of_it() {
        let by = GatewayName::new("edge-2").unwrap();
        let mut item = item(1, b"sealed");
        let claimed = Assurance::Claimed.to_wire() as i32;
        let hops = item.custody(&by).unwrap();
        assert_eq!((hops[0].gateway.as_str(), hops[0].assurance), ("edge-1", claimed));
        item.hops = vec![item.hops[0].clone(); 12];
        assert_eq!(item.custody(&by).unwrap().len(), HOPS_MAX - 1);
        item.hops[11].gateway = "no name".into();
        assert_eq!(item.custody(&by), Err(ItemError::Custody));
        item.hops.clear();
        let hops = item.custody(&by).unwrap();
        assert_eq!((hops[0].gateway.as_str(), hops[0].assurance), ("edge-2", claimed));
        for file in
            ["../x.envelope", "/etc/x.envelope", "a/b.envelope", "refused/../x.envelope", ".envelope", "x"]
        {
            item.file = file.into();
            assert_eq!(item.path(Path::new("stick")), Err(ItemError::File), "{file}");
        }
        item.file = "refused/x.envelope".into();
        assert_eq!(item.path(Path::new("stick")), Ok(PathBuf::from("stick/refused/x.envelope")));
    }
}

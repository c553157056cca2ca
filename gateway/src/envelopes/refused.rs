//! The refused area: what the far end will never take, set aside so that the queue goes on.
//!
//! ```text
//! DATA/refused/<device>~<stream>~<run>~<seq>~<first 8 bytes of SHA-256>.envelope    the bytes as they came
//! DATA/refused/<the same>.json                                                      who, why, since when
//! DATA/refused/.replica                                                             which replica this folder is in line with
//! ```
//!
//! A large envelope stays where it was gathered, in `DATA/uploads` and its budget; only its reason lies here. When that is taken
//! away, the bytes go as well ([`Refused::let_go_of_large`]).
//!
//! The envelope is written first: an entry counts when its reason is there. Names hold nothing that is not safe in a path.
//! The area is bounded, and what lies in it counts in its device's share. When it is full nothing is dropped: the relay
//! stands still and says so.
//!
//! Whoever takes an entry out to send it again ([`TakenOut`]) lets go of it only when it is durable elsewhere. If the far end
//! is quicker, and refuses it again before that, the entry stays.
//!
//! Where several gateways share the lanes, the area has a replica beside them, and this folder is that of one machine
//! ([`in_line`]).

mod in_line;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{fs, io};

use bytes::Bytes;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::{DeviceId, Identity, Run, Seq, Site, StreamName};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use self::in_line::Work;
use super::record::{Head, NotAHead};
use super::replicated::{Gone, Mark, Replica, ReplicaError};
use super::shares::Shares;
use crate::clock::since_boot;
use crate::metrics::Metrics;
use pithead_hop::program::disk;

/// Why there is an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Identity of the envelope.
    pub site: String,
    /// The device that the envelope names.
    pub device: String,
    /// Its stream.
    pub stream: String,
    /// 16 hex digits.
    pub run: String,
    /// Its number in the run.
    pub seq: u64,
    /// Of the bytes in the file beside.
    pub sha256: String,
    /// Length of that file.
    pub bytes: u64,
    /// The registry's name, such as `ENVELOPE_TRUNCATED`.
    pub reason: String,
    /// `PH-2011`
    pub code: String,
    /// The far end's sentence.
    pub detail: String,
    /// Milliseconds since 1970 by this machine's clock.
    pub refused_at_ms: u64,
    /// What the spool had as its head, in hex: custody as it was when it is sent again.
    #[serde(default)]
    pub head: String,
    /// It was kept beside other bytes.
    #[serde(default)]
    pub conflict: bool,
    /// It is large: its bytes lie in `DATA/uploads`, and `sha256` is of its header.
    #[serde(default)]
    pub large: bool,
    /// Where it stands in the replica, if it was put there. Not said there itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<Mark>,
}

impl Entry {
    /// The head for sending it again; one without custody where the entry holds none.
    ///
    /// # Errors
    /// When the entry is not one that was written here.
    pub(crate) fn to_head(&self) -> Result<Head, NotAHead> {
        if !self.head.is_empty() {
            return Head::decode(&hex::decode(&self.head).map_err(|_| NotAHead)?.into());
        }
        let names = (Site::new(&self.site), DeviceId::new(&self.device), StreamName::new(&self.stream));
        let numbers = (self.run.parse::<Run>(), Seq::new(self.seq));
        let ((Ok(site), Ok(device), Ok(stream)), (Ok(run), Ok(seq))) = (names, numbers) else {
            return Err(NotAHead);
        };
        let mut sha256 = [0; 32];
        hex::decode_to_slice(&self.sha256, &mut sha256).map_err(|_| NotAHead)?;
        Ok(Head {
            identity: Identity { site, device, stream, run, seq },
            sha256,
            hops: Vec::new(),
            copy: None,
        })
    }
}

/// What the files of an envelope are called.
fn name_of(head: &Head) -> String {
    let Identity { device, stream, run, seq, .. } = &head.identity;
    format!("{device}~{stream}~{run}~{seq}~{}", hex::encode(&head.sha256[..8]))
}

/// Whether a name is one of ours, and no path.
fn is_name(name: &str) -> bool {
    let is_ours = |byte: u8| byte.is_ascii_alphanumeric() || b"._~-".contains(&byte);
    !name.starts_with('.') && name.bytes().all(is_ours)
}

/// Why an envelope could not be set aside. It stays in the spool.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RefusedError {
    /// The area has no room for it.
    #[error("the refused area is full: {bytes} of {capacity} bytes")]
    Full {
        /// Bytes in it.
        bytes: u64,
        /// Bytes that it may take.
        capacity: u64,
    },
    /// The disk did not take it.
    #[error("{}: {source}", path.display())]
    Io {
        /// What was being written.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The replica did not take it.
    #[error(transparent)]
    Replica(#[from] ReplicaError),
}

impl RefusedError {
    /// Whether there is no room.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Replica(ReplicaError::Full(_)))
    }
}

/// Why an entry cannot be taken out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TakeError {
    /// There is none of that name.
    #[error("there is no refused envelope `{0}`; `pithead-gateway refused list` names them")]
    Missing(String),
    /// Somebody else is at it.
    #[error("`{0}` is being sent again already")]
    Busy(String),
    /// It is not what was written here.
    #[error("`{name}` is damaged: {why}; it stays where it is")]
    Damaged {
        /// The entry.
        name: String,
        /// What does not hold.
        why: &'static str,
    },
    /// The disk does not give it, or does not let it go.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The replica is not known, or does not let it go.
    #[error(transparent)]
    Replica(#[from] ReplicaError),
}

impl From<RefusedError> for TakeError {
    fn from(error: RefusedError) -> Self {
        match error {
            RefusedError::Io { path, source } => Self::Io { path, source },
            RefusedError::Replica(error) => Self::Replica(error),
            RefusedError::Full { bytes, capacity } => {
                Self::Replica(ReplicaError::Full(format!("{bytes} of {capacity} bytes")))
            }
        }
    }
}

/// The area on disk.
#[derive(Debug)]
pub struct Refused {
    folder: PathBuf,
    capacity: u64,
    state: Mutex<State>,
    metrics: Metrics,
    shares: Shares,
    /// Where the gateways of a site share it.
    replica: Option<Replica>,
    /// Whoever writes or removes here and in the replica: one at a time, for as long as that takes. Taken before the state, which is
    /// held for moments only.
    work: Mutex<Work>,
}

#[derive(Debug, Default)]
struct State {
    held: Held,
    /// Bytes of each device.
    devices: BTreeMap<DeviceId, u64>,
    /// What is being sent again, and whether it has been refused again meanwhile.
    out: HashMap<String, bool>,
    /// Large envelopes whose reason lies here.
    large: HashMap<String, Identity>,
    /// What lies in the replica and does not read there.
    doubtful: HashSet<String>,
}

/// What is in the area.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Entries.
    pub records: u64,
    /// Bytes of their envelopes.
    pub bytes: u64,
}

/// Where the bytes of an entry are.
#[derive(Debug, Clone, Copy)]
enum Kept<'a> {
    /// Here, from now on.
    Bytes(&'a Bytes),
    /// Where they were; so many.
    Elsewhere(u64),
}

/// An entry that is being sent again. It still lies in the area: dropped, it stays there.
#[derive(Debug)]
pub struct TakenOut {
    area: Arc<Refused>,
    name: String,
    /// What it is filed under, and its custody.
    pub head: Head,
    /// It was kept beside other bytes.
    pub conflict: bool,
    /// Its bytes, as they came; none of a large one.
    pub envelope: Bytes,
    /// Bytes of a large one.
    pub large: Option<u64>,
    /// Where it stood in the replica.
    mark: Option<Mark>,
}

impl TakenOut {
    /// It is durable elsewhere, and goes from here and from the replica; unless the far end has refused it again since. Blocks for a
    /// sync.
    ///
    /// # Errors
    /// When the disk or the replica does not let it go: then it is in both places, and sent again it is a duplicate.
    pub fn let_go(self) -> Result<(), TakeError> {
        self.area.remove(&self)
    }
}

impl Drop for TakenOut {
    fn drop(&mut self) {
        self.area.lock().out.remove(&self.name);
    }
}

/// What lies in an area, with names and in their order; what is half written is left out. For whoever only looks.
///
/// # Errors
/// When the folder is there and cannot be read.
pub fn list(folder: &Path) -> io::Result<Listed> {
    let mut listed = Listed::default();
    let files = match fs::read_dir(folder) {
        Ok(files) => files,
        // Nothing was ever refused.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(listed),
        Err(error) => return Err(error),
    };
    for file in files {
        let path = file?.path();
        let name =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".json"));
        let Some(name) = name else { continue };
        match fs::read(&path).map(|bytes| serde_json::from_slice(&bytes)) {
            Ok(Ok(entry)) => listed.entries.push((name.to_owned(), entry)),
            // Sent again since the folder was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Ok(Err(_)) | Err(_) => listed.unreadable.push(name.to_owned()),
        }
    }
    listed.entries.sort_by(|(left, _), (right, _)| left.cmp(right));
    listed.unreadable.sort();
    Ok(listed)
}

/// What [`list`] found.
#[derive(Debug, Default)]
pub struct Listed {
    /// By name.
    pub entries: Vec<(String, Entry)>,
    /// Names of entries whose reason does not read: the envelope is there, and who it is of is in doubt.
    pub unreadable: Vec<String>,
}

impl Refused {
    /// Opens the area and counts what is in it.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(folder: &Path, capacity: u64, metrics: Metrics, shares: Shares) -> io::Result<Self> {
        disk::create_folder(folder)?;
        let (state, work) = (Mutex::default(), Mutex::default());
        let area = Self { folder: folder.to_owned(), capacity, state, metrics, shares, replica: None, work };
        area.count(true)?;
        Ok(area)
    }

    /// With a replica: from now on the area is that of whoever owns the lanes, and this folder is in line with it while that is this
    /// gateway.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub(crate) fn with_replica(mut self, replica: Option<Replica>) -> io::Result<Self> {
        self.replica = replica;
        self.count(self.replica.is_none())?;
        Ok(self)
    }

    /// Sets an envelope aside. When this returns it is durable here, and may leave the spool. The same envelope again is
    /// the same entry.
    ///
    /// # Errors
    /// [`RefusedError`]; then it must stay in the spool.
    pub fn keep(
        &self,
        head: &Head,
        conflict: bool,
        envelope: &Bytes,
        reason: Option<ErrorReason>,
        detail: &str,
        at_ms: u64,
    ) -> Result<(), RefusedError> {
        self.enter(head, conflict, Kept::Bytes(envelope), reason, detail, at_ms)
    }

    /// Enters the reason of a large envelope, whose bytes stay where they are.
    ///
    /// # Errors
    /// [`RefusedError`]; then its record must stay in the spool.
    pub fn keep_large(
        &self,
        head: &Head,
        total: u64,
        reason: Option<ErrorReason>,
        detail: &str,
        at_ms: u64,
    ) -> Result<(), RefusedError> {
        self.enter(head, false, Kept::Elsewhere(total), reason, detail, at_ms)
    }

    /// Large envelopes whose reason somebody has taken away since the last look: their bytes are wanted no more. Blocks.
    pub fn let_go_of_large(&self) -> Vec<Identity> {
        let mut state = self.lock();
        // Only what is certainly not there: a disk that does not answer takes nothing away.
        let gone = |name: &String| matches!(self.paths(name).1.try_exists(), Ok(false));
        let names: Vec<String> = state.large.keys().filter(|name| gone(name)).cloned().collect();
        names.iter().filter_map(|name| state.large.remove(name)).collect()
    }

    /// Whether anything here, or in the replica, is of this identity, readable or not, by the names of its files.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn mentions(&self, identity: &Identity) -> io::Result<bool> {
        let Identity { device, stream, run, seq, .. } = identity;
        let prefix = format!("{device}~{stream}~{run}~{seq}~");
        if self.lock().doubtful.iter().any(|name| name.starts_with(&prefix)) {
            return Ok(true);
        }
        for file in fs::read_dir(&self.folder)? {
            if file?.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Large envelopes whose reason lies here.
    pub fn large(&self) -> Vec<Identity> {
        self.lock().large.values().cloned().collect()
    }

    fn enter(
        &self,
        head: &Head,
        conflict: bool,
        kept: Kept<'_>,
        reason: Option<ErrorReason>,
        detail: &str,
        at_ms: u64,
    ) -> Result<(), RefusedError> {
        let (in_area, bytes) = match kept {
            Kept::Bytes(envelope) => (envelope.len() as u64, envelope.len() as u64),
            Kept::Elsewhere(total) => (0, total),
        };
        let id = &head.identity;
        let mut entry = Entry {
            site: id.site.to_string(),
            device: id.device.to_string(),
            stream: id.stream.to_string(),
            run: id.run.to_string(),
            seq: id.seq.get(),
            sha256: hex::encode(head.sha256),
            bytes,
            reason: reason.map_or("UNKNOWN", ErrorReason::name).to_owned(),
            code: reason.map_or_else(String::new, ErrorReason::code),
            detail: detail.to_owned(),
            refused_at_ms: at_ms,
            head: hex::encode(head.encode()),
            conflict,
            large: matches!(kept, Kept::Elsewhere(_)),
            replica: None,
        };
        let name = name_of(head);
        let (bytes_path, reason_path) = self.paths(&name);
        let mut work = self.work();
        let turn = self.in_line(&mut work)?;
        let is_new = {
            let mut state = self.lock();
            if let Some(refused_again) = state.out.get_mut(&name) {
                *refused_again = true;
            }
            let (is_new, held) = (!reason_path.exists(), state.held);
            if is_new && held.bytes + in_area > self.capacity {
                return Err(RefusedError::Full { bytes: held.bytes, capacity: self.capacity });
            }
            is_new
        };
        let envelope = match kept {
            Kept::Bytes(envelope) => Some(envelope),
            Kept::Elsewhere(_) => None,
        };
        // There first: what lies here and was never there would be taken for an entry of before there was a replica.
        if let Some((replica, turn)) = turn {
            let kept = replica.keep(&turn, &name, &entry, envelope.map_or(&[], |envelope| &envelope[..]));
            if kept.is_err() {
                // It may lie there all the same.
                work.out_of_line();
            }
            entry.replica = Some(kept?);
        }
        let written = write_entry((&bytes_path, &reason_path), &entry, envelope);
        if let Some(mark) = entry.replica {
            match written {
                Ok(()) => work.keeps(&name, mark),
                // It lies there and not here: not as if somebody had carried it away.
                Err(_) => work.out_of_line(),
            }
        }
        written?;
        if is_new {
            let mut state = self.lock();
            state.held.records += 1;
            state.held.bytes += in_area;
            *state.devices.entry(id.device.clone()).or_default() += in_area;
            self.shares.hold(&id.device, in_area, since_boot());
            if entry.large {
                state.large.insert(name, id.clone());
            }
            self.show(state.held);
        }
        Ok(())
    }

    /// Takes an entry out to send it again. Reads and checks it; blocks.
    ///
    /// # Errors
    /// [`TakeError`].
    pub fn take_out(self: &Arc<Self>, name: &str) -> Result<TakenOut, TakeError> {
        let mut work = self.work();
        self.in_line(&mut work)?;
        let (bytes_path, reason_path) = self.paths(name);
        if !is_name(name) || !reason_path.exists() {
            return Err(TakeError::Missing(name.to_owned()));
        }
        if self.lock().out.insert(name.to_owned(), false).is_some() {
            return Err(TakeError::Busy(name.to_owned()));
        }
        let read = |path: PathBuf| fs::read(&path).map_err(|source| TakeError::Io { path, source });
        let damaged = |why| TakeError::Damaged { name: name.to_owned(), why };
        let taken = || {
            let entry: Entry = serde_json::from_slice(&read(reason_path)?)
                .map_err(|_| damaged("its reason does not read"))?;
            let head = entry.to_head().map_err(|_| damaged("its head does not read"))?;
            let (conflict, mark) = (entry.conflict, entry.replica);
            if entry.large {
                return Ok((head, conflict, mark, Bytes::new(), Some(entry.bytes)));
            }
            let envelope = Bytes::from(read(bytes_path)?);
            if Sha256::digest(&envelope).as_slice() != head.sha256 {
                return Err(damaged("its bytes are not those that were refused"));
            }
            Ok((head, conflict, mark, envelope, None))
        };
        match taken() {
            Ok((head, conflict, mark, envelope, large)) => {
                let (area, name) = (self.clone(), name.to_owned());
                Ok(TakenOut { area, name, head, conflict, envelope, large, mark })
            }
            Err(error) => {
                self.lock().out.remove(name);
                Err(error)
            }
        }
    }

    fn remove(&self, taken: &TakenOut) -> Result<(), TakeError> {
        let (name, device, bytes) = (&taken.name, &taken.head.identity.device, taken.envelope.len() as u64);
        // What is refused again waits for this, from here on finds no entry, and is a new one.
        let mut work = self.work();
        if self.lock().out.get(name) != Some(&false) {
            return Ok(());
        }
        if let Some((replica, turn)) = self.in_line(&mut work)? {
            let (_, reason_path) = self.paths(name);
            match work.mark_of(name) {
                // Not the one that was taken out: it was refused again, in a term of another gateway.
                Some(mark) if taken.mark != Some(mark) => return Ok(()),
                Some(mark) => {
                    if replica.remove(&turn, name, mark.sequence)? == Gone::Newer {
                        // One whose answer nobody waited for: it is written here before anything else is done.
                        work.out_of_line();
                        return Ok(());
                    }
                    work.let_go(name);
                }
                // Another owner has let it go, and so has this folder meanwhile.
                None if !reason_path.exists() => return Ok(()),
                // It lies here alone, or does not read there.
                None => {}
            }
        }
        // It waits in the spool again, and its bytes stay for that.
        let is_large = self.lock().large.remove(name).is_some();
        // The reason goes first: an envelope without one does not count.
        let (bytes_path, reason_path) = self.paths(name);
        for path in [reason_path, bytes_path].into_iter().take(if is_large { 1 } else { 2 }) {
            fs::remove_file(&path).map_err(|source| TakeError::Io { path, source })?;
        }
        let synced = disk::sync_folder(&self.folder);
        let mut state = self.lock();
        state.held.records = state.held.records.saturating_sub(1);
        state.held.bytes = state.held.bytes.saturating_sub(bytes);
        if let Some(held) = state.devices.get_mut(device) {
            *held = held.saturating_sub(bytes);
        }
        self.shares.left(device, bytes);
        self.show(state.held);
        synced.map_err(|source| TakeError::Io { path: self.folder.clone(), source })
    }

    /// What is in it.
    #[must_use]
    pub fn held(&self) -> Held {
        self.lock().held
    }

    /// Bytes that it may take.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Counts what lies here in its devices' shares once more, after these have forgotten what anybody holds.
    pub fn hold_again(&self) {
        for (device, bytes) in &self.lock().devices {
            self.shares.hold(device, *bytes, since_boot());
        }
    }

    /// Looks at the disk again: somebody may have carried entries away, which is how room comes back. Blocks.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn recount(&self) -> io::Result<Held> {
        let mut work = self.work();
        self.let_go_of_carried_away(&mut work);
        self.count(self.replica.is_none() || work.is_in_line())
    }

    /// Counts what lies here. What is not `ours` counts where it is: on the machine of whoever owns the lanes, if it was ever put into
    /// the replica.
    fn count(&self, ours: bool) -> io::Result<Held> {
        let mut held = Held::default();
        let mut devices: BTreeMap<DeviceId, u64> = BTreeMap::new();
        let mut large = HashMap::new();
        for path in disk::complete_files(&self.folder)? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Some(name) = name.strip_suffix(".json") else { continue };
            let bytes = fs::metadata(self.paths(name).0).map_or(0, |file| file.len());
            if bytes == 0 || !ours {
                let entry = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Entry>(&text).ok());
                if let Some(entry) = entry {
                    if entry.large
                        && let Ok(head) = entry.to_head()
                    {
                        large.insert(name.to_owned(), head.identity);
                    }
                    if !ours && entry.replica.is_some() {
                        continue;
                    }
                }
            }
            held.records += 1;
            held.bytes += bytes;
            if let Some(device) = name.split('~').next().and_then(|device| DeviceId::new(device).ok()) {
                *devices.entry(device).or_default() += bytes;
            }
        }
        let mut state = self.lock();
        for (device, bytes) in &state.devices {
            self.shares.left(device, *bytes);
        }
        for (device, bytes) in &devices {
            self.shares.hold(device, *bytes, since_boot());
        }
        (state.held, state.devices) = (held, devices);
        // Those that are gone from the disk are let go of by whoever asks for them. What was sent again while the folder was read
        // is not here any more.
        large.retain(|name, _| self.paths(name).1.exists());
        state.large.extend(large);
        self.show(held);
        Ok(held)
    }

    /// Not with_extension: a device's name may hold dots.
    fn paths(&self, name: &str) -> (PathBuf, PathBuf) {
        (self.folder.join(format!("{name}.envelope")), self.folder.join(format!("{name}.json")))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, held: Held) {
        self.metrics.refused_area(held.records, held.bytes, self.capacity);
    }
}

/// The envelope first: an entry counts when its reason is there.
fn write_entry(
    (bytes_path, reason_path): (&Path, &Path),
    entry: &Entry,
    envelope: Option<&Bytes>,
) -> Result<(), RefusedError> {
    let write = |path: &Path, bytes: &[u8]| {
        disk::replace(path, bytes).map_err(|source| RefusedError::Io { path: path.to_owned(), source })
    };
    if let Some(envelope) = envelope {
        write(bytes_path, envelope)?;
    }
    write(reason_path, &serde_json::to_vec_pretty(entry).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelopes::testing::{identity, shares};

    fn head(seq: u64) -> Head {
        Head { identity: identity("truck.42", seq), sha256: [seq as u8; 32], hops: vec![], copy: None }
    }

    #[test]
    fn what_was_refused_is_kept_with_its_reason_over_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Refused::open(folder.path(), 1_000, Metrics::new(), shares()).unwrap();
        let area = open();
        let bytes = Bytes::from_static(b"poison");
        for _ in 0..2 {
            area.keep(&head(1), false, &bytes, Some(ErrorReason::EnvelopeTruncated), "ends early", 5)
                .unwrap();
        }
        assert_eq!(area.held(), Held { records: 1, bytes: 6 });
        assert_eq!(open().held(), Held { records: 1, bytes: 6 });
        let name = "truck.42~can~0000000000000007~1~0101010101010101";
        assert_eq!(fs::read(folder.path().join(format!("{name}.envelope"))).unwrap(), b"poison");
        let entry = fs::read(folder.path().join(format!("{name}.json"))).unwrap();
        let entry: Entry = serde_json::from_slice(&entry).unwrap();
        assert_eq!((entry.reason.as_str(), entry.code.as_str()), ("ENVELOPE_TRUNCATED", "PH-2011"));
    }

    #[test]
    fn a_full_area_takes_nothing_more_until_somebody_made_room() {
        let folder = tempfile::tempdir().unwrap();
        let area = Refused::open(folder.path(), 10, Metrics::new(), shares()).unwrap();
        let bytes = Bytes::from_static(b"poison");
        area.keep(&head(1), false, &bytes, None, "", 5).unwrap();
        let full = area.keep(&head(2), false, &bytes, None, "", 5);
        assert!(matches!(full, Err(RefusedError::Full { bytes: 6, capacity: 10 })));
        for path in disk::complete_files(folder.path()).unwrap() {
            fs::remove_file(path).unwrap();
        }
        assert_eq!(area.recount().unwrap(), Held::default());
        area.keep(&head(2), false, &bytes, None, "", 5).unwrap();
    }

    fn poison(seq: u64) -> (Head, Bytes) {
        let bytes = Bytes::from(format!("poison {seq}"));
        (Head { sha256: Sha256::digest(&bytes).into(), ..head(seq) }, bytes)
    }

    fn name(seq: u64) -> String {
        let sha256 = poison(seq).0.sha256;
        format!("truck.42~can~0000000000000007~{seq}~{}", hex::encode(&sha256[..8]))
    }

    #[test]
    fn what_lies_here_counts_in_its_devices_share_also_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let truck = DeviceId::new("truck.42").unwrap();
        let shares = shares();
        let area = Arc::new(Refused::open(folder.path(), 1_000, Metrics::new(), shares.clone()).unwrap());
        let (head, bytes) = poison(1);
        area.keep(&head, false, &bytes, None, "", 5).unwrap();
        area.keep(&head, false, &bytes, None, "", 6).unwrap();
        assert_eq!(shares.held(&truck), bytes.len() as u64);
        area.recount().unwrap();
        assert_eq!(shares.held(&truck), bytes.len() as u64);
        let again = crate::envelopes::testing::shares();
        Refused::open(folder.path(), 1_000, Metrics::new(), again.clone()).unwrap();
        assert_eq!(again.held(&truck), bytes.len() as u64);
        area.take_out(&name(1)).unwrap().let_go().unwrap();
        assert_eq!((area.held(), shares.held(&truck)), (Held::default(), 0));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_entry_that_is_refused_again_before_it_was_let_go_stays() {
        let folder = tempfile::tempdir().unwrap();
        let area = Arc::new(Refused::open(folder.path(), 1_000, Metrics::new(), shares()).unwrap());
        let (head, bytes) = poison(1);
        area.keep(&head, true, &bytes, None, "first", 5).unwrap();
        let out = area.take_out(&name(1)).unwrap();
        assert_eq!((&out.head, out.conflict, &out.envelope), (&head, true, &bytes));
        assert!(matches!(area.take_out(&name(1)), Err(TakeError::Busy(_))));
        area.keep(&head, true, &bytes, None, "again", 6).unwrap();
        out.let_go().unwrap();
        assert_eq!(area.held().records, 1);
        assert_eq!(list(folder.path()).unwrap().entries[0].1.detail, "again");
        // Dropped, it stays as well, and can be taken out once more.
        drop(area.take_out(&name(1)).unwrap());
        area.take_out(&name(1)).unwrap().let_go().unwrap();
        assert_eq!(area.held(), Held::default());
    }

    #[test]
    fn a_name_is_no_path_and_bytes_that_a_disk_has_changed_are_not_sent() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("refused");
        let area = Arc::new(Refused::open(&inside, 1_000, Metrics::new(), shares()).unwrap());
        let (head, bytes) = poison(1);
        area.keep(&head, false, &bytes, None, "", 5).unwrap();
        fs::write(folder.path().join("outside.json"), b"{}").unwrap();
        for wrong in ["../outside", "", ".", "truck.42~can"] {
            assert!(matches!(area.take_out(wrong), Err(TakeError::Missing(_))), "{wrong}");
        }
        fs::write(inside.join(format!("{}.envelope", name(1))), b"poison 2").unwrap();
        assert!(matches!(area.take_out(&name(1)), Err(TakeError::Damaged { .. })));
        assert_eq!(area.held().records, 1);
    }

    #[test]
    fn an_entry_of_the_version_before_can_be_sent_again_too() {
        let folder = tempfile::tempdir().unwrap();
        let (head, bytes) = poison(1);
        let old = serde_json::json!({
            "site": "pit-7", "device": "truck.42", "stream": "can", "run": "0000000000000007", "seq": 1,
            "sha256": hex::encode(head.sha256), "bytes": bytes.len(), "reason": "KEY_UNKNOWN", "code": "PH-2030",
            "detail": "", "refused_at_ms": 5,
        });
        fs::write(folder.path().join(format!("{}.json", name(1))), old.to_string()).unwrap();
        fs::write(folder.path().join(format!("{}.envelope", name(1))), &bytes).unwrap();
        let area = Arc::new(Refused::open(folder.path(), 1_000, Metrics::new(), shares()).unwrap());
        assert_eq!(area.take_out(&name(1)).unwrap().head, head);
    }
}

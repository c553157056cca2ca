//! The folder of the refused area and its replica, where the gateways of a site share the lanes.
//!
//! What lies in the replica is the area ([`replicated::area`](crate::envelopes::replicated)); the folder of whoever owns the lanes is
//! where people and commands work with it, and holds the same. It is brought in line before anything is done in it in a term:
//!
//! - what it lacks, or has otherwise, is written from the replica;
//! - what it has and the replica has not *any more* was let go by another owner, and is removed. That it was there once its entry says
//!   (`replica`: of which stream, and where). An entry that does not say it, or says it of another stream, is from before there was a
//!   replica, from the embedded engine, or from a stream that is lost: it is put into the replica, and thrown away by nobody.
//!
//! **Carried away.** Files that a person takes away here are let go in the replica as well, by the owner alone. A folder that is gone as a
//! whole says nothing of the kind: a disk that died, or a mount that fell off, looks the same. So `.replica` lies in it, which no `rm *`
//! touches; where that is missing nothing was carried away, and the folder is brought in line once more.
//!
//! **Standing by**, a folder is as it was when its term ended. What of it was in the replica is not counted: it is the owner's.

use std::collections::{HashMap, HashSet};
use std::sync::{MutexGuard, PoisonError};
use std::{fs, io};

use bytes::Bytes;
use pithead_hop::program::disk;
use sha2::{Digest as _, Sha256};

use super::{Entry, Refused, RefusedError, is_name, name_of, write_entry};
use crate::envelopes::replicated::{Gone, Mark, Replica, ReplicaError, Turn};

/// Says in the folder which replica it is in line with.
const WITNESS: &str = ".replica";

/// What is known of the replica in a term.
#[derive(Debug, Default)]
pub(super) struct Work {
    turn: Option<Turn>,
    in_line: bool,
    /// The sequences of what lies in both. As many as there are messages in the stream, which is bounded by its bytes.
    kept: HashMap<String, u64>,
}

impl Work {
    pub(super) fn keeps(&mut self, name: &str, mark: Mark) {
        self.kept.insert(name.to_owned(), mark.sequence);
    }

    /// The mark of the entry of this name that lies in the replica.
    pub(super) fn mark_of(&self, name: &str) -> Option<Mark> {
        Some(self.turn.as_ref()?.mark(*self.kept.get(name)?))
    }

    pub(super) fn let_go(&mut self, name: &str) {
        self.kept.remove(name);
    }

    pub(super) fn is_in_line(&self) -> bool {
        self.in_line
    }

    /// It is brought in line once more before anything else is done.
    pub(super) fn out_of_line(&mut self) {
        self.in_line = false;
    }
}

/// Whether an entry and its bytes are what their name says: whoever may publish to the stream may have put anything there.
fn check(name: &str, entry: &Entry, envelope: &Bytes) -> Result<(), &'static str> {
    let head = entry.to_head().map_err(|_| "its head does not read")?;
    if !is_name(name) || name_of(&head) != name {
        return Err("it is not what its name says");
    }
    if !entry.large && Sha256::digest(envelope).as_slice() != head.sha256 {
        return Err("its bytes are not those that were refused");
    }
    Ok(())
}

/// What was done to bring a folder in line.
#[derive(Debug, Default)]
struct Brought {
    written: u64,
    removed: u64,
    put: u64,
}

impl Refused {
    pub(super) fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings the folder in line with the replica, if there is one. For whoever owns the lanes. Blocks.
    ///
    /// # Errors
    /// When the replica or the disk does not go along; what was done until then is good.
    pub(crate) fn bring_in_line(&self) -> Result<(), RefusedError> {
        self.in_line(&mut self.work()).map(|_| ())
    }

    /// This gateway owns the lanes no more. Blocks.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub(crate) fn stand_by(&self) -> io::Result<()> {
        // Whoever is still at work finds out that the term is over, and ends.
        let mut work = self.work();
        *work = Work::default();
        self.hold_again();
        self.count(self.replica.is_none()).map(|_| ())
    }

    /// Looks after what somebody has carried away from the owner's folder, or did to the folder. Blocks.
    pub(crate) fn look_after(&self) {
        // While the folder is brought in line nobody is to wait for that: the next look sees what was done meanwhile.
        let Ok(mut work) = self.work.try_lock() else { return };
        if self.let_go_of_carried_away(&mut work)
            && let Err(error) = self.count(work.is_in_line())
        {
            tracing::warn!(event = "refused.not_counted", %error);
        }
    }

    /// The replica, if there is one, when the folder is in line with it in this term.
    pub(super) fn in_line(&self, work: &mut Work) -> Result<Option<(&Replica, Turn)>, RefusedError> {
        let Some(replica) = &self.replica else { return Ok(None) };
        let turn = match work.turn.take() {
            Some(turn) if replica.is_current(&turn) => turn,
            _ => {
                *work = Work::default();
                replica.begin()?
            }
        };
        work.turn = Some(turn.clone());
        if !work.in_line {
            work.kept.clear();
            let Brought { written, removed, put } = self.bring(replica, &turn, work)?;
            work.in_line = true;
            self.count(true).map_err(|source| RefusedError::Io { path: self.folder.clone(), source })?;
            let entries = work.kept.len();
            tracing::info!(event = "refused.in_line", entries, written, removed, put);
        }
        Ok(Some((replica, turn)))
    }

    fn bring(&self, replica: &Replica, turn: &Turn, work: &mut Work) -> Result<Brought, RefusedError> {
        let failed = |source| RefusedError::Io { path: self.folder.clone(), source };
        disk::create_folder(&self.folder).map_err(failed)?;
        let mut brought = Brought::default();
        // Lies there, and is not what is written here.
        let mut doubtful = HashSet::new();
        let mut from = 1;
        while let Some(listed) = replica.next(turn, from)? {
            from = listed.sequence + 1;
            let (name, sequence) = (listed.name, listed.sequence);
            let kept = listed.kept.and_then(|kept| check(&name, &kept.entry, &kept.envelope).map(|()| kept));
            match kept {
                Ok(kept) => {
                    let mark = turn.mark(sequence);
                    let entry = Entry { replica: Some(mark), ..kept.entry };
                    if !self.has(&name, &entry) {
                        let (bytes, reason) = self.paths(&name);
                        let envelope = (!entry.large).then_some(&kept.envelope);
                        write_entry((&bytes, &reason), &entry, envelope)?;
                        brought.written += 1;
                    }
                    work.keeps(&name, mark);
                }
                Err(why) => {
                    tracing::error!(event = "refused.replica_damaged", name, sequence, why, "it stays there");
                    doubtful.insert(name);
                }
            }
        }
        self.lock().doubtful.clone_from(&doubtful);
        for path in disk::complete_files(&self.folder).map_err(failed)? {
            let name =
                path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".json"));
            let Some(name) = name.filter(|name| !work.kept.contains_key(*name) && !doubtful.contains(*name))
            else {
                continue;
            };
            // One that does not read is for a person to look at.
            let entry = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Entry>(&text).ok());
            let Some(entry) = entry else { continue };
            if entry.replica.is_some_and(|mark| turn.had(mark)) {
                self.remove_files(name, &entry).map_err(failed)?;
                brought.removed += 1;
            } else if self.put(replica, turn, name, entry, work)? {
                brought.put += 1;
            }
        }
        let (witness, words) = (self.folder.join(WITNESS), witness(turn));
        disk::replace(&witness, words.as_bytes())
            .map_err(|source| RefusedError::Io { path: witness.clone(), source })?;
        Ok(brought)
    }

    /// Puts what lies here alone into the replica. Whether it lies there now: what is damaged does not, nor what there is no room for.
    fn put(
        &self,
        replica: &Replica,
        turn: &Turn,
        name: &str,
        mut entry: Entry,
        work: &mut Work,
    ) -> Result<bool, RefusedError> {
        let (bytes_path, reason_path) = self.paths(name);
        entry.replica = None;
        // One that is damaged here does not keep the others from being in line.
        let envelope = match entry.large {
            true => Ok(Bytes::new()),
            false => fs::read(&bytes_path).map(Bytes::from).map_err(|error| error.to_string()),
        };
        let envelope = envelope.and_then(|envelope| match check(name, &entry, &envelope) {
            Ok(()) => Ok(envelope),
            Err(why) => Err(why.to_owned()),
        });
        let why = match envelope.map(|envelope| replica.keep(turn, name, &entry, &envelope)) {
            Ok(Ok(mark)) => {
                entry.replica = Some(mark);
                write_entry((&bytes_path, &reason_path), &entry, None)?;
                work.keeps(name, mark);
                return Ok(true);
            }
            Ok(Err(full @ (ReplicaError::Full(_) | ReplicaError::TooLarge { .. }))) => full.to_string(),
            Err(why) => why,
            Ok(Err(error)) => return Err(error.into()),
        };
        tracing::warn!(event = "refused.not_replicated", name, why, "it lies on this machine alone");
        Ok(false)
    }

    /// Whether an entry lies here as it lies in the replica.
    fn has(&self, name: &str, entry: &Entry) -> bool {
        let (bytes, reason) = self.paths(name);
        let held = fs::read(reason).ok().and_then(|text| serde_json::from_slice::<Entry>(&text).ok());
        let is_whole = || fs::metadata(bytes).is_ok_and(|file| file.len() == entry.bytes);
        held.is_some_and(|held| held == *entry) && (entry.large || is_whole())
    }

    fn remove_files(&self, name: &str, entry: &Entry) -> io::Result<()> {
        let (bytes, reason) = self.paths(name);
        fs::remove_file(reason)?;
        if !entry.large
            && let Err(error) = fs::remove_file(bytes)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        disk::sync_folder(&self.folder)
    }

    /// What a person has carried away from here goes from the replica too. Whether anything has changed.
    pub(super) fn let_go_of_carried_away(&self, work: &mut Work) -> bool {
        let Some(replica) = &self.replica else { return false };
        let Some(turn) = work.turn.clone().filter(|turn| replica.is_current(turn)) else { return false };
        if work.in_line && !self.is_witnessed(&turn) {
            tracing::error!(
                event = "refused.folder_gone",
                folder = %self.folder.display(),
                "it is not the folder that it was: it is made anew from the replica"
            );
            work.in_line = false;
        }
        if !work.in_line {
            if let Err(error) = self.in_line(work) {
                tracing::error!(event = "refused.not_in_line", %error);
            }
            return true;
        }
        let out: HashSet<String> = self.lock().out.keys().cloned().collect();
        // Only what is certainly not there: a disk that does not answer takes nothing away.
        let is_gone = |name: &String| matches!(self.paths(name).1.try_exists(), Ok(false));
        let gone: Vec<(String, u64)> = work
            .kept
            .iter()
            .filter(|(name, _)| !out.contains(*name) && is_gone(name))
            .map(|(name, sequence)| (name.clone(), *sequence))
            .collect();
        // A disk that fell off between the two looks takes nothing away either.
        if gone.is_empty() || !self.is_witnessed(&turn) {
            return false;
        }
        for (name, sequence) in gone {
            match replica.remove(&turn, &name, sequence) {
                Ok(Gone::Gone) => {
                    work.let_go(&name);
                    tracing::info!(event = "refused.carried_away", name);
                }
                // One whose answer nobody waited for: the next look writes it here.
                Ok(Gone::Newer) => work.in_line = false,
                Err(error) => {
                    tracing::warn!(event = "refused.not_carried_away", name, %error);
                    break;
                }
            }
        }
        true
    }

    fn is_witnessed(&self, turn: &Turn) -> bool {
        fs::read_to_string(self.folder.join(WITNESS)).is_ok_and(|words| words == witness(turn))
    }
}

fn witness(turn: &Turn) -> String {
    format!("{{\"area\":\"{:016x}\"}}\n", turn.area())
}

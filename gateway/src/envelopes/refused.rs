//! The refused area: what the far end will never take, set aside so that the queue goes on.
//!
//! ```text
//! DATA/refused/<device>~<stream>~<run>~<seq>~<first 8 bytes of SHA-256>.envelope    the bytes as they came
//! DATA/refused/<the same>.json                                                      who, why, since when
//! ```
//!
//! The envelope is written first: an entry counts when its reason is there. Names hold nothing that is not safe in a path.
//! The area is bounded. When it is full nothing is dropped: the relay stands still and says so.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::{fs, io};

use bytes::Bytes;
use pithead_proto::errors::v1::ErrorReason;
use serde::{Deserialize, Serialize};

use super::record::Head;
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
}

/// The area on disk.
#[derive(Debug)]
pub struct Refused {
    folder: PathBuf,
    capacity: u64,
    held: Mutex<Held>,
    metrics: Metrics,
}

/// What is in the area.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Entries.
    pub records: u64,
    /// Bytes of their envelopes.
    pub bytes: u64,
}

impl Refused {
    /// Opens the area and counts what is in it.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(folder: &Path, capacity: u64, metrics: Metrics) -> io::Result<Self> {
        disk::create_folder(folder)?;
        let mut held = Held::default();
        for path in disk::complete_files(folder)? {
            if path.extension().is_some_and(|ending| ending == "json") {
                held.records += 1;
                held.bytes += fs::metadata(path.with_extension("envelope")).map_or(0, |file| file.len());
            }
        }
        let area = Self { folder: folder.to_owned(), capacity, held: Mutex::new(held), metrics };
        area.show(held);
        Ok(area)
    }

    /// Sets an envelope aside. When this returns it is durable here, and may leave the spool. The same envelope again is
    /// the same entry.
    ///
    /// # Errors
    /// [`RefusedError`]; then it must stay in the spool.
    pub fn keep(
        &self,
        head: &Head,
        envelope: &Bytes,
        reason: Option<ErrorReason>,
        detail: &str,
        at_ms: u64,
    ) -> Result<(), RefusedError> {
        let id = &head.identity;
        let entry = Entry {
            site: id.site.to_string(),
            device: id.device.to_string(),
            stream: id.stream.to_string(),
            run: id.run.to_string(),
            seq: id.seq.get(),
            sha256: hex::encode(head.sha256),
            bytes: envelope.len() as u64,
            reason: reason.map_or("UNKNOWN", ErrorReason::name).to_owned(),
            code: reason.map_or_else(String::new, ErrorReason::code),
            detail: detail.to_owned(),
            refused_at_ms: at_ms,
        };
        let name =
            format!("{}~{}~{}~{}~{}", id.device, id.stream, id.run, id.seq, hex::encode(&head.sha256[..8]));
        // Not with_extension: a device's name may hold dots.
        let (bytes_path, reason_path) =
            (self.folder.join(format!("{name}.envelope")), self.folder.join(format!("{name}.json")));
        let is_new = !reason_path.exists();
        let mut held = *self.lock();
        if is_new && held.bytes + entry.bytes > self.capacity {
            return Err(RefusedError::Full { bytes: held.bytes, capacity: self.capacity });
        }
        let write = |path: &Path, bytes: &[u8]| {
            disk::replace(path, bytes).map_err(|source| RefusedError::Io { path: path.to_owned(), source })
        };
        write(&bytes_path, envelope)?;
        write(&reason_path, &serde_json::to_vec_pretty(&entry).unwrap_or_default())?;
        if is_new {
            held.records += 1;
            held.bytes += entry.bytes;
            *self.lock() = held;
            self.show(held);
        }
        Ok(())
    }

    /// What is in it.
    #[must_use]
    pub fn held(&self) -> Held {
        *self.lock()
    }

    /// Bytes that it may take.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Looks at the disk again: somebody may have carried entries away, which is how room comes back.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn recount(&self) -> io::Result<Held> {
        let held = Self::open(&self.folder, self.capacity, self.metrics.clone())?.held();
        *self.lock() = held;
        Ok(held)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn show(&self, held: Held) {
        self.metrics.refused_area(held.records, held.bytes, self.capacity);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pithead_sealing::{DeviceId, Identity, Run, Seq, Site, StreamName};

    fn head(seq: u64) -> Head {
        let identity = Identity {
            site: Site::new("pit-7").unwrap(),
            device: DeviceId::new("truck.42").unwrap(),
            stream: StreamName::new("can").unwrap(),
            run: Run::new(7).unwrap(),
            seq: Seq::new(seq).unwrap(),
        };
        Head { identity, sha256: [seq as u8; 32], hops: vec![] }
    }

    #[test]
    fn what_was_refused_is_kept_with_its_reason_over_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Refused::open(folder.path(), 1_000, Metrics::new()).unwrap();
        let area = open();
        let bytes = Bytes::from_static(b"poison");
        for _ in 0..2 {
            area.keep(&head(1), &bytes, Some(ErrorReason::EnvelopeTruncated), "ends early", 5).unwrap();
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
        let area = Refused::open(folder.path(), 10, Metrics::new()).unwrap();
        let bytes = Bytes::from_static(b"poison");
        area.keep(&head(1), &bytes, None, "", 5).unwrap();
        let full = area.keep(&head(2), &bytes, None, "", 5);
        assert!(matches!(full, Err(RefusedError::Full { bytes: 6, capacity: 10 })));
        for path in disk::complete_files(folder.path()).unwrap() {
            fs::remove_file(path).unwrap();
        }
        assert_eq!(area.recount().unwrap(), Held::default());
        area.keep(&head(2), &bytes, None, "", 5).unwrap();
    }
}

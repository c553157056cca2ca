//! Envelopes that the gateway will never take: kept with their reason, bounded, for a person to look at.
//!
//! ```text
//! FOLDER/<stream>-<run>-<seq>.envelope   the sealed bytes
//! FOLDER/<stream>-<run>-<seq>.json       why: {"identity": ..., "reason": ..., "detail": ...}
//! ```
//!
//! Both are durable before the outbox forgets the envelope. What the area has no room for is declared to the cloud as lost, and
//! delivery goes on: on a vehicle nobody looks, and evidence of a thousand refusals is enough.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use pithead_hop::program::disk;
use pithead_sealing::names::Identity;

/// Envelopes kept at most.
pub(super) const MAX_ENVELOPES: usize = 1_000;
/// Bytes of envelopes kept at most.
pub(super) const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// Bytes of large files kept at most.
pub(super) const MAX_FILE_BYTES: u64 = 1024 * 1024 * 1024;

/// Why a refused envelope could not be set aside.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RefusedError {
    /// The area is full.
    #[error(
        "{} is full ({envelopes} envelopes, {bytes} bytes): look at the reasons there, then move the files away",
        folder.display()
    )]
    Full {
        /// The area.
        folder: PathBuf,
        /// Envelopes in it.
        envelopes: usize,
        /// Bytes in it.
        bytes: u64,
    },
    /// The disk.
    #[error("{}: {source}", folder.display())]
    Io {
        /// The area.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The folder of refused envelopes.
#[derive(Clone, Debug)]
pub struct RefusedArea {
    folder: PathBuf,
}

impl RefusedArea {
    /// The area in `folder`; it is made when something is refused.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Where it is.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Keeps an envelope with its reason. Keeping it again replaces it by itself.
    pub(super) fn keep(
        &self,
        identity: &Identity,
        envelope: &Bytes,
        reason: &str,
        detail: &str,
    ) -> Result<(), RefusedError> {
        let write = |file: &Path| disk::replace(file, envelope);
        self.keep_as(identity, envelope.len() as u64, MAX_BYTES, write, reason, detail)
    }

    /// The same for an envelope in a file, which stays where it is: the area has another link to it.
    pub(super) fn keep_file(
        &self,
        identity: &Identity,
        path: &Path,
        reason: &str,
        detail: &str,
    ) -> Result<(), RefusedError> {
        let io = |source| RefusedError::Io { folder: self.folder.clone(), source };
        let bytes = fs::metadata(path).map_err(io)?.len();
        let write = |file: &Path| match fs::hard_link(path, file) {
            Ok(()) => disk::sync_folder(&self.folder),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => disk::sync_folder(&self.folder),
            // A file system without links: it moves, and nobody misses it where it was.
            Err(_) => disk::publish(path, file),
        };
        self.keep_as(identity, bytes, MAX_FILE_BYTES, write, reason, detail)
    }

    fn keep_as(
        &self,
        identity: &Identity,
        bytes: u64,
        max_bytes: u64,
        write: impl FnOnce(&Path) -> io::Result<()>,
        reason: &str,
        detail: &str,
    ) -> Result<(), RefusedError> {
        let io = |source| RefusedError::Io { folder: self.folder.clone(), source };
        disk::create_folder(&self.folder).map_err(io)?;
        // Validated names of letters, digits and dashes: nothing in them leads out of the folder.
        let name = format!("{}-{}-{}", identity.stream, identity.run, identity.seq);
        let file = self.folder.join(format!("{name}.envelope"));
        self.admit(&file, bytes, max_bytes)?;
        let why = format!(
            "{{\"identity\":{},\"reason\":{},\"detail\":{}}}\n",
            json_text(&identity.to_string()),
            json_text(reason),
            json_text(detail)
        );
        disk::replace(&self.folder.join(format!("{name}.json")), why.as_bytes()).map_err(io)?;
        write(&file).map_err(io)
    }

    fn admit(&self, file: &Path, more: u64, max_bytes: u64) -> Result<(), RefusedError> {
        let io = |source| RefusedError::Io { folder: self.folder.clone(), source };
        let (envelopes, bytes) = self.held().map_err(io)?;
        let full = envelopes >= MAX_ENVELOPES || bytes.saturating_add(more) > max_bytes;
        // One that a cut kept the outbox from forgetting is refused again, and takes no more room than it has.
        if full && !file.exists() {
            return Err(RefusedError::Full { folder: self.folder.clone(), envelopes, bytes });
        }
        Ok(())
    }

    fn held(&self) -> io::Result<(usize, u64)> {
        let (mut envelopes, mut bytes) = (0, 0);
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if entry.path().extension().is_some_and(|ending| ending == "envelope") {
                envelopes += 1;
                bytes += entry.metadata()?.len();
            }
        }
        Ok((envelopes, bytes))
    }
}

/// A JSON string. The detail is the far end's sentence: it may hold anything.
fn json_text(text: &str) -> String {
    let mut json = String::with_capacity(text.len() + 2);
    json.push('"');
    for character in text.chars() {
        match character {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            control if control.is_control() => json.push_str(&format!("\\u{:04x}", u32::from(control))),
            other => json.push(other),
        }
    }
    json.push('"');
    json
}

#[cfg(test)]
mod tests {
    use super::*;
    use pithead_sealing::names::{DeviceId, Run, Seq, Site, StreamName};

    fn identity(seq: u64) -> Identity {
        Identity {
            site: Site::new("pit-7").unwrap(),
            device: DeviceId::new("truck-7").unwrap(),
            stream: StreamName::new("can").unwrap(),
            run: Run::new(5).unwrap(),
            seq: Seq::new(seq).unwrap(),
        }
    }

    #[test]
    fn a_refused_envelope_is_kept_with_its_reason_once() {
        let folder = tempfile::tempdir().unwrap();
        let area = RefusedArea::new(folder.path().join("refused"));
        for _ in 0..2 {
            area.keep(&identity(1), &Bytes::from_static(b"sealed"), "KEY_UNKNOWN", "say \"who\"\n").unwrap();
        }
        assert_eq!(area.held().unwrap(), (1, 6));
        let why = fs::read_to_string(area.folder().join("can-0000000000000005-1.json")).unwrap();
        let why: serde_json::Value = serde_json::from_str(&why).unwrap();
        assert_eq!(why["reason"], "KEY_UNKNOWN");
        assert_eq!(why["detail"], "say \"who\"\n");
    }

    #[test]
    fn a_full_area_refuses_instead_of_forgetting() {
        let folder = tempfile::tempdir().unwrap();
        let area = RefusedArea::new(folder.path().to_owned());
        let large = Bytes::from(vec![0; 40 << 20]);
        area.keep(&identity(1), &large, "X", "").unwrap();
        let full = area.keep(&identity(2), &large, "X", "").unwrap_err();
        assert!(matches!(full, RefusedError::Full { envelopes: 1, .. }), "{full}");
        area.keep(&identity(1), &large, "X", "").expect("it is there already");
        assert_eq!(area.held().unwrap().0, 1);
    }
}

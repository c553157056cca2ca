//! Looking at an outbox without opening it: one that a client is working in, or one on the disk of a dead machine.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use pithead_sealing::{envelope::SealedEnvelope, names::StreamName};
use pithead_spool::{OpenError, ReadError, Survey};

use super::{
    files::Files,
    head::{ENVELOPE, FILE, Head},
    log::LANE,
};

/// What waits in a stream's log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamSurvey {
    /// The stream.
    pub stream: StreamName,
    /// Envelopes that wait, damaged ones included.
    pub envelopes: u64,
    /// Records in them, as far as they can be read.
    pub records: u64,
    /// Bytes of these records before they were sealed.
    pub payload_bytes: u64,
    /// Bytes on the disk, files included.
    pub bytes: u64,
    /// When the oldest was put there: milliseconds since 1970, by the device's wall clock.
    pub oldest_ms: Option<u64>,
    /// Envelopes that are damaged: their records do not read, or what reads is no envelope. Without [`verify`], as far as
    /// heads tell.
    pub damaged: u64,
}

/// Why an outbox could not be looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SurveyError {
    /// There is none, or it may not be read.
    #[error("{}: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A stream's log.
    #[error("the log of stream {stream}: {source}")]
    Log {
        /// The stream.
        stream: StreamName,
        /// Why.
        source: OpenError,
    },
    /// A stream's log could not be read.
    #[error("the log of stream {stream}: {source}")]
    Read {
        /// The stream.
        stream: StreamName,
        /// Why.
        source: ReadError,
    },
}

/// What waits in the outbox of the device whose folder this is, stream by stream. Reads heads.
///
/// # Errors
/// [`SurveyError`].
pub fn survey(folder: &Path) -> Result<Vec<StreamSurvey>, SurveyError> {
    look(folder, |_, _| {}, false)
}

/// The same, and reads every byte: each checksum, and the structure of each envelope. `progress` is told bytes read and bytes
/// to be read.
///
/// # Errors
/// [`SurveyError`]. Damage is none.
pub fn verify(folder: &Path, progress: impl FnMut(u64, u64)) -> Result<Vec<StreamSurvey>, SurveyError> {
    look(folder, progress, true)
}

fn look(
    folder: &Path,
    mut progress: impl FnMut(u64, u64),
    everything: bool,
) -> Result<Vec<StreamSurvey>, SurveyError> {
    let outbox = folder.join("outbox");
    let entries = match fs::read_dir(&outbox) {
        Ok(entries) => entries,
        // A device that never recorded anything has none.
        Err(error) if error.kind() == io::ErrorKind::NotFound && folder.is_dir() => return Ok(Vec::new()),
        Err(source) => return Err(SurveyError::Folder { path: outbox, source }),
    };
    let mut logs = Vec::new();
    for entry in entries.filter_map(Result::ok) {
        let Some(stream) = entry.file_name().to_str().and_then(|name| StreamName::new(name).ok()) else {
            continue;
        };
        let log = Survey::open(entry.path())
            .map_err(|source| SurveyError::Log { stream: stream.clone(), source })?;
        logs.push((stream, entry.path(), log));
    }
    logs.sort_by(|(one, ..), (other, ..)| one.cmp(other));
    let total = logs.iter().map(|(_, _, log)| log.bytes()).sum();
    let mut done = 0;
    let mut surveys = Vec::new();
    for (stream, path, log) in logs {
        let mut found = StreamSurvey {
            envelopes: log.end(LANE).0 - log.cursor(LANE).0,
            records: 0,
            payload_bytes: 0,
            bytes: 0,
            oldest_ms: log.stats().oldest_ms,
            damaged: 0,
            stream: stream.clone(),
        };
        if found.envelopes > 0 {
            let files = Files::open(&path);
            found.bytes = log.stats().bytes + files.bytes();
            let told = |read| progress(done + read, total);
            found
                .walk(&log, &files, told, everything)
                .map_err(|source| SurveyError::Read { stream, source })?;
        }
        done += log.bytes();
        surveys.push(found);
    }
    Ok(surveys)
}

impl StreamSurvey {
    fn walk(
        &mut self,
        log: &Survey,
        files: &Files,
        progress: impl FnMut(u64),
        everything: bool,
    ) -> Result<(), ReadError> {
        let mut progress = progress;
        let mut walk = log.walk(LANE, log.cursor(LANE));
        loop {
            let batch = walk.next_batch(1 << 20)?;
            if batch.is_empty() {
                return Ok(());
            }
            progress(walk.bytes());
            self.damaged += batch.corrupt.iter().map(|range| range.records()).sum::<u64>();
            for (_, record) in batch {
                let head = Head::decode(&record.head);
                let whole = match record.kind {
                    ENVELOPE => !everything || SealedEnvelope::read(record.body).is_ok(),
                    FILE => head.as_ref().is_some_and(|head| {
                        let length = <[u8; 8]>::try_from(&record.body[..]).map(u64::from_be_bytes);
                        length.is_ok_and(|length| files.len_of(head.line.run, head.seq) == length)
                    }),
                    _ => false,
                };
                match head.filter(|_| whole) {
                    Some(head) => {
                        self.records += u64::from(head.records);
                        self.payload_bytes += head.payload_bytes;
                    }
                    None => self.damaged += 1,
                }
            }
        }
    }
}

//! Sealed envelopes that no gateway has acknowledged yet, on the device's disk.
//!
//! # What holds
//!
//! 1. Nothing leaves the process before its record here is durable, and what is sent again is the same bytes: sealing
//!    again under a used number would be another envelope.
//! 2. After a power cut at any moment the outbox holds every envelope that was durable and is not settled.
//! 3. An envelope goes only when it is settled, or when its stream's policy gives it up; then its number is in the list of
//!    gaps, on disk, before it goes, and stays there until a gateway has taken the envelope that declares it.
//! 4. A stream's budget is a number of bytes on the disk, and a stream that is full takes nothing from another.
//!
//! # On disk
//!
//! ```text
//! FOLDER/gaps.a  gaps.b           numbers that will never come (two slots)
//! FOLDER/<stream>/                a spool of one lane
//! FOLDER/<stream>/files/          large envelopes, a file each
//! ```
//!
//! Streams that are on disk and not configured any more are still delivered.

mod files;
mod gaps;
mod head;
mod log;
#[cfg(test)]
mod model;
mod survey;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use pithead_hop::program::disk;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::{
    envelope::KernelEntropy,
    names::{Identity, Line, Seq, Site, StreamName},
};
use pithead_spool::{AcknowledgeError, Position, Recovery};
use tokio::sync::Notify;

pub use log::MIN_BUDGET_BYTES;
pub use survey::{StreamSurvey, SurveyError, survey, verify};
pub(crate) use {
    gaps::Gaps,
    head::Head,
    log::{Dropped, Log, Read, Waiting, WaitingContent, WaitingReader, inline_bytes},
};

use crate::{
    batch::Gap,
    sequence::{Sequence, SequenceError},
    state::{FileStore, StateError, lock},
};

/// Lines that a gateway is told of when a call begins: every stream in the newest runs. Of older runs it learns from the
/// envelopes themselves.
const LINES_NAMED: usize = 64;

/// Why an outbox could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutboxError {
    /// The folder cannot be made or read.
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
        source: pithead_spool::OpenError,
    },
    /// The list of what was given up.
    #[error("the list of gaps: {0}")]
    Gaps(StateError),
    /// The numbers.
    #[error(transparent)]
    Sequence(#[from] SequenceError),
}

/// Why nothing was given up: what is there stays.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GiveUpError {
    #[error("too many gaps wait to be declared")]
    TooManyGaps,
    #[error("the list of gaps: {0}")]
    Gaps(#[from] StateError),
    #[error(transparent)]
    Position(#[from] AcknowledgeError),
}

/// What opening found.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct OutboxRecovery {
    /// Stream by stream: a torn tail after a power cut, or damage.
    pub streams: BTreeMap<StreamName, Recovery>,
    /// Neither copy of the sequence state read back (`PH-6008`): a new run has begun, and of streams whose outbox was empty
    /// nobody tells the cloud how far their last run had come. See [`crate::sequence`].
    pub sequence_lost: bool,
}

/// The outbox of a device.
#[derive(Debug)]
pub(crate) struct Outbox {
    logs: BTreeMap<StreamName, Arc<Log>>,
    gaps: Mutex<Gaps>,
    sequence: Arc<Mutex<Sequence>>,
    arrived: Notify,
}

impl Outbox {
    /// Opens `folder/outbox`, with the budgets of the streams that are configured, and begins a run.
    pub(crate) fn open(
        folder: &Path,
        site: &Site,
        budgets: &BTreeMap<StreamName, u64>,
    ) -> Result<(Self, OutboxRecovery), OutboxError> {
        let outbox = folder.join("outbox");
        let error = |source| OutboxError::Folder { path: outbox.clone(), source };
        disk::create_folder(&outbox).map_err(error)?;
        let on_disk = fs::read_dir(&outbox).map_err(error)?.filter_map(Result::ok);
        let on_disk = on_disk.filter_map(|entry| StreamName::new(entry.file_name().to_str()?).ok());
        let on_disk: Vec<_> = on_disk.filter(|stream| outbox.join(stream.as_str()).is_dir()).collect();

        let mut recovery = OutboxRecovery::default();
        let mut logs = BTreeMap::new();
        let mut lines = Vec::new();
        let configured = budgets.iter().map(|(stream, budget)| (stream.clone(), Some(*budget)));
        let left =
            on_disk.into_iter().filter(|stream| !budgets.contains_key(stream)).map(|stream| (stream, None));
        for (stream, budget) in configured.chain(left) {
            let path = outbox.join(stream.as_str());
            let opened = Log::open(site, &stream, &path, budget.unwrap_or(MIN_BUDGET_BYTES));
            let (log, found) =
                opened.map_err(|source| OutboxError::Log { stream: stream.clone(), source })?;
            lines.extend(log.lines().into_iter().map(|head| (head.line, head.seq)));
            recovery.streams.insert(stream.clone(), found);
            // Nobody writes into it and nothing waits in it.
            if budget.is_none() && log.acknowledged_up_to() == log.end() {
                continue;
            }
            logs.insert(stream, Arc::new(log));
        }
        let gaps = Gaps::open(Box::new(FileStore::new(&outbox, "gaps"))).map_err(OutboxError::Gaps)?;
        let store = Box::new(FileStore::new(folder, "sequence"));
        // What was given up had a number as well: the newest runs may have nothing else left.
        let sequence = Sequence::open_above(store, lines, gaps.runs(), &mut KernelEntropy)?;
        recovery.sequence_lost = sequence.began_anew();
        if recovery.sequence_lost {
            let code = ErrorReason::StateDamaged.code();
            tracing::error!(
                event = "outbox.sequence_lost",
                code,
                "neither copy of the sequence state reads back: a new run begins, and of streams with an empty outbox nobody \
                 tells how far their last run had come"
            );
        }
        let sequence = Arc::new(Mutex::new(sequence));
        Ok((Self { logs, gaps: Mutex::new(gaps), sequence, arrived: Notify::new() }, recovery))
    }

    #[cfg(test)]
    fn over(logs: impl IntoIterator<Item = Arc<Log>>, gaps: Gaps, sequence: Sequence) -> Self {
        let logs = logs.into_iter().map(|log| (log.stream().clone(), log)).collect();
        let (gaps, sequence) = (Mutex::new(gaps), Arc::new(Mutex::new(sequence)));
        Self { logs, gaps, sequence, arrived: Notify::new() }
    }

    pub(crate) fn sequence(&self) -> &Arc<Mutex<Sequence>> {
        &self.sequence
    }

    pub(crate) fn log(&self, stream: &StreamName) -> Option<&Arc<Log>> {
        self.logs.get(stream)
    }

    pub(crate) fn logs(&self) -> impl Iterator<Item = &Arc<Log>> {
        self.logs.values()
    }

    /// Something that waits has become durable.
    pub(crate) fn rang(&self) {
        self.arrived.notify_one();
    }

    /// Resolves when something has become durable since the last time. For one listener. Cancel safe.
    pub(crate) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// The lines of what may have been sent and waits, each with its lowest waiting number. Reads record heads, a bounded number.
    pub(crate) fn lines_waiting(&self) -> BTreeMap<Line, Seq> {
        let heads = self.logs().flat_map(|log| log.first_unacknowledged());
        heads.map(|head| (head.line, head.seq)).take(LINES_NAMED).collect()
    }

    /// What the next envelope should declare.
    pub(crate) fn undeclared(&self) -> Vec<Gap> {
        lock(&self.gaps).undeclared()
    }

    /// What was given up and is not declared for good, at most as many as a batch holds: a hint for the gateway's books, which
    /// cannot read what is sealed.
    pub(crate) fn hints(&self) -> Vec<Gap> {
        lock(&self.gaps).all()
    }

    /// Something was given up, and no envelope on its way says so.
    pub(crate) fn any_undeclared(&self) -> bool {
        lock(&self.gaps).any_undeclared()
    }

    /// That envelope declares those gaps.
    pub(crate) fn carried(&self, gaps: &[Gap], by: &Identity) {
        if !gaps.is_empty() {
            lock(&self.gaps).carried(gaps, by);
        }
    }

    /// A gateway has that envelope.
    pub(crate) fn delivered(&self, identity: &Identity) {
        lock(&self.gaps).delivered(identity);
    }

    /// Nobody has that envelope, or nobody believes it.
    pub(crate) fn not_delivered(&self, identity: &Identity) {
        lock(&self.gaps).lost(identity);
    }

    /// Numbers at a position of that log that were found to be damaged, or that nobody will take and nobody keeps. False if the
    /// stream's policy has given them up meanwhile: then they are declared as what they are, and what was read of them while
    /// they were being written over says nothing.
    pub(crate) fn lose(&self, log: &Log, position: Position, gaps: &[Gap]) -> Result<bool, GiveUpError> {
        let mut kept = lock(&self.gaps);
        if position < log.acknowledged_up_to() {
            return Ok(false);
        }
        kept.add_all(gaps)?;
        Ok(true)
    }

    /// Gives up the oldest of a stream, so that `bytes` more have room. The gaps are on disk before the envelopes go.
    pub(crate) fn drop_oldest(&self, log: &Log, bytes: u64) -> Result<Dropped, GiveUpError> {
        // Until they are gone, so that nobody takes for damage what is given up here.
        let mut gaps = lock(&self.gaps);
        let dropped = log.oldest(bytes);
        gaps.add_all(&dropped.gaps)?;
        for envelope in &dropped.envelopes {
            gaps.lost(envelope);
        }
        log.give_up(&dropped)?;
        Ok(dropped)
    }

    /// Writes down where the lines stand and what is declared, and removes files that are not needed. Now and then.
    pub(crate) fn save(&self) -> Result<(), OutboxError> {
        lock(&self.sequence).save()?;
        lock(&self.gaps).save().map_err(OutboxError::Gaps)?;
        self.logs().for_each(|log| log.sweep());
        Ok(())
    }

    /// Writes everything down and lets go of the folders.
    pub(crate) fn close(&self) -> Result<(), CloseError> {
        let mut saved = self.save().map_err(CloseError::from);
        for closed in [
            lock(&self.sequence).close().map_err(OutboxError::from),
            lock(&self.gaps).close().map_err(OutboxError::Gaps),
        ] {
            saved = saved.and(closed.map_err(CloseError::from));
        }
        let closed: Vec<_> = self.logs().map(|log| log.close()).collect();
        saved?;
        Ok(closed.into_iter().collect::<Result<(), _>>()?)
    }
}

/// What could not be written down at the end. Everything that was durable stays so; envelopes that were acknowledged may be
/// sent again, which is harmless.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CloseError {
    /// Numbers or gaps.
    #[error(transparent)]
    State(#[from] OutboxError),
    /// A log's closing mark.
    #[error(transparent)]
    Log(#[from] pithead_spool::CloseError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::GapReason;
    use bytes::Bytes;
    use pithead_sealing::names::{DeviceId, Run};
    use pithead_spool::Record;

    /// While it is read, the segment is written over: what is found there is no damage.
    #[test]
    fn what_the_policy_gives_up_while_it_is_read_is_not_told_as_damage_as_well() {
        let folder = tempfile::tempdir().unwrap();
        let (site, stream) = (Site::new("pit-7").unwrap(), StreamName::new("can").unwrap());
        let budgets = BTreeMap::from([(stream.clone(), MIN_BUDGET_BYTES)]);
        let (outbox, _) = Outbox::open(folder.path(), &site, &budgets).unwrap();
        let log = outbox.log(&stream).unwrap();
        let (device, run) = (DeviceId::new("truck-7").unwrap(), Run::new(9).unwrap());
        let mut positions = Vec::new();
        for seq in 1..=10 {
            let line = Line { device: device.clone(), stream: stream.clone(), run };
            let head = Head { line, seq: Seq::new(seq).unwrap(), records: 1, payload_bytes: 1 };
            let record = Record::new(head::ENVELOPE, 0, head.encode(), Bytes::from(vec![7; 16 << 10]));
            positions.push(log.append(record, log.failures()).unwrap().wait().unwrap());
        }
        let gap = |seq: u64, reason| {
            let seq = Seq::new(seq).unwrap();
            Gap { stream: stream.clone(), run, from: seq, to: seq, reason }
        };
        // Read before the policy moved, and told after.
        let dropped = outbox.drop_oldest(log, 1).unwrap();
        let gone = dropped.envelopes.len();
        assert!((2..10).contains(&gone), "a segment's worth: {gone}");
        let damaged = gap(2, GapReason::OutboxDamaged);
        assert!(!outbox.lose(log, positions[1], std::slice::from_ref(&damaged)).unwrap());
        let declared = outbox.undeclared();
        assert_eq!(declared.len(), 1, "{declared:?}");
        assert_eq!(declared[0].reason, GapReason::DroppedByPolicy);
        // What is still there and does not read is damage.
        let damaged = gap(10, GapReason::OutboxDamaged);
        assert!(outbox.lose(log, positions[9], std::slice::from_ref(&damaged)).unwrap());
        assert!(outbox.undeclared().contains(&damaged));
    }
}

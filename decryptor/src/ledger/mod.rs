//! What was applied, for ever: the decryptor's own books on disk.
//!
//! A spool log, used as an append-only log with checkpoints. Promises:
//! - an entry is on disk when [`Ledger::append`] returns, and the sink's mark with it;
//! - [`Ledger::open`] gives back everything: the last whole checkpoint, and every entry behind it, in order;
//! - the log stays small: from time to time the books are written out as a checkpoint, and what lies before it is
//!   acknowledged to the spool and its segments are used again.
//!
//! ```text
//! [applied][applied][set aside][mark] ... [checkpoint 1/2][checkpoint 2/2] [applied][mark] ...
//!                                         ^ cursor: the next start reads from here
//! ```
//! A checkpoint that a kill has cut short is passed over, since what came before it is still there. Of a damaged entry the
//! head is read (it has a checksum of its own): the identity and the hash are there.

pub mod objects;
pub mod record;

use bytes::Bytes;
use pithead_proto::errors::v1::ErrorReason;
use pithead_spool::{
    AcknowledgeError, AppendError, Batch, CloseError, Lane, NotDurable, OpenError, Options, Position,
    ReadError, Record, RecordHead, Spool, Survey,
};
use prost::Message as _;
use record::{
    APPLIED, Applied, CHECKPOINT, Checkpoint, CheckpointPart, MARK, Mark, SET_ASIDE, Said, SetAside, Who,
};
use std::path::Path;

/// Disk that the ledger may take. A checkpoint of 100,000 lines is some 100 MiB; two of them and the entries between.
const MAX_BYTES: u64 = 4 << 30;
const SEGMENT_BYTES: u64 = 8 << 20;

/// Bytes of entries after which the books are written out anew, unless the last checkpoint was larger: so what is written
/// twice is at most as much as what is written once, and a start reads at most two checkpoints' worth.
const CHECKPOINT_AFTER: u64 = 8 << 20;

/// Bytes in one piece of a checkpoint, and in one append: well inside a group of the log.
const PIECE: usize = 512 << 10;

/// Read at once at a start.
const READ_BYTES: usize = 4 << 20;

/// Why the ledger cannot go on. Nothing that has no answer yet is in it for certain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// It does not open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It does not read back.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It took no entry.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// An entry is not durable.
    #[error(transparent)]
    NotDurable(#[from] NotDurable),
    /// A checkpoint was not acknowledged.
    #[error(transparent)]
    Acknowledge(#[from] AcknowledgeError),
    /// It did not close in order.
    #[error(transparent)]
    Close(#[from] CloseError),
    /// Its owner gave back what was being read, again and again.
    #[error("the decryptor moves its ledger on faster than it can be read")]
    Moving,
}

impl LedgerError {
    /// The reason in the registry.
    #[must_use]
    pub fn reason(&self) -> ErrorReason {
        match self {
            Self::Open(OpenError::Locked { .. }) | Self::Moving => ErrorReason::DataDirLocked,
            Self::Open(OpenError::Full { .. }) | Self::Append(AppendError::Full { .. }) => {
                ErrorReason::DiskFull
            }
            Self::Open(OpenError::Missing { .. }) => ErrorReason::DataDirUnwritable,
            Self::NotDurable(NotDurable::Full) => ErrorReason::DiskFull,
            _ => ErrorReason::DiskFailed,
        }
    }
}

/// One answer that was given for good.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    /// The sink has it.
    Applied {
        /// Who and what.
        applied: Applied,
        /// What the batch said of its device's lines.
        said: Option<Said>,
    },
    /// It went beside the sink.
    SetAside(SetAside),
}

impl Entry {
    /// The entry of a job that ends beside the sink.
    #[must_use]
    pub fn set_aside(job: &crate::intake::scribe::Job, reason: ErrorReason, kept: bool) -> Self {
        Self::SetAside(SetAside {
            who: Some(Who::of(&job.identity)),
            sha256: Bytes::copy_from_slice(&job.sha256),
            reason: reason as i32,
            kept,
            received_us: job.received_us,
        })
    }

    fn record(&self, at_ms: u64) -> Record {
        match self {
            Self::Applied { applied, said } => {
                let body = said.as_ref().map(prost::Message::encode_to_vec).unwrap_or_default();
                Record::new(APPLIED, at_ms, applied.encode_to_vec(), body)
            }
            Self::SetAside(aside) => Record::new(SET_ASIDE, at_ms, aside.encode_to_vec(), Bytes::new()),
        }
    }
}

/// What a start reads back, in order. A checkpoint stands for everything before it.
#[derive(Debug)]
pub enum Replay {
    /// The books as they stood.
    Checkpoint(Box<Checkpoint>),
    /// One entry more.
    Entry(Box<Entry>),
    /// A checkpoint that cannot be read: what it stood for is not known any more.
    Lost,
}

/// The open ledger. One owner; its methods block for as long as the disk takes.
#[derive(Debug)]
pub struct Ledger {
    spool: Spool,
    known: Known,
}

/// How often a ledger is read again because its owner has given back, meanwhile, what was to be read: a checkpoint has made
/// it needless.
const TRIES: usize = 20;

/// A ledger that was looked at.
#[derive(Debug)]
pub struct Looked<T> {
    /// What could be read.
    pub books: T,
    /// Entries, and segments of them, that could not: what they said is not in the books.
    pub damaged: u64,
}

/// Reads the ledger in `dir` without touching it, beside a decryptor that may be running: `fresh` makes the books, `replay`
/// enters what is there, `progress` is told bytes read and bytes in all.
///
/// # Errors
/// When there is no ledger, or it moves on too fast.
pub fn look<T>(
    dir: &Path,
    fresh: impl Fn() -> T,
    mut replay: impl FnMut(&mut T, Replay),
    mut progress: impl FnMut(u64, u64),
) -> Result<Looked<T>, LedgerError> {
    for _ in 0..TRIES {
        let survey = Survey::open(dir)?;
        let mut walk = survey.walk(Lane::First, survey.cursor(Lane::First));
        let (mut books, mut reading, mut expect) = (fresh(), Known::default(), walk.position().0);
        let mut damaged = survey.found().corrupt_records + survey.found().damaged_segments;
        let moved = loop {
            let batch = walk.next_batch(READ_BYTES)?;
            let lost: u64 = batch.corrupt.iter().map(pithead_spool::CorruptRange::records).sum();
            damaged += lost;
            expect += batch.records.len() as u64 + lost;
            // Positions that are neither here nor lost were given back.
            if walk.position().0 != expect {
                break true;
            }
            if batch.is_empty() {
                break false;
            }
            reading.batch(batch, &mut |one| replay(&mut books, one));
            progress(walk.bytes(), walk.total());
        };
        if !moved {
            return Ok(Looked { books, damaged });
        }
    }
    Err(LedgerError::Moving)
}

/// What is known of a ledger by reading it.
#[derive(Debug, Default)]
struct Known {
    mark: Bytes,
    checkpoints: u64,
    since_checkpoint: u64,
    last_checkpoint: u64,
    /// Duplicates in the last checkpoint: they have no entries of their own.
    duplicates: u64,
    pieces: Pieces,
}

impl Known {
    fn batch(&mut self, batch: Batch, replay: &mut impl FnMut(Replay)) {
        // Heads of damaged records stand in their place in the order.
        let mut heads: Vec<RecordHead> =
            batch.corrupt.iter().flat_map(|range| range.heads.iter().cloned()).collect();
        heads.sort_by_key(|head| head.position);
        let mut heads = heads.into_iter().peekable();
        for (position, record) in batch.records {
            while let Some(head) = heads.next_if(|head| head.position < position) {
                self.one(head.kind, &head.head, &Bytes::new(), replay);
            }
            self.one(record.kind, &record.head, &record.body, replay);
        }
        for head in heads {
            self.one(head.kind, &head.head, &Bytes::new(), replay);
        }
    }

    fn one(&mut self, kind: u16, head: &Bytes, body: &Bytes, replay: &mut impl FnMut(Replay)) {
        self.since_checkpoint += (head.len() + body.len()) as u64;
        match kind {
            APPLIED => {
                if let Ok(applied) = Applied::decode(head.clone()) {
                    let said = if body.is_empty() { None } else { Said::decode(body.clone()).ok() };
                    replay(Replay::Entry(Box::new(Entry::Applied { applied, said })));
                    return;
                }
            }
            SET_ASIDE => {
                if let Ok(aside) = SetAside::decode(head.clone()) {
                    replay(Replay::Entry(Box::new(Entry::SetAside(aside))));
                    return;
                }
            }
            MARK => {
                if let Ok(mark) = Mark::decode(head.clone()) {
                    self.mark = mark.mark;
                    return;
                }
            }
            // Why: nothing at all decodes as well, and as books in which nobody ever sent anything.
            CHECKPOINT if body.is_empty() => {
                tracing::error!(
                    event = "ledger.checkpoint_damaged",
                    "what it stood for is not known any more; what comes again of that is applied a second time, and every \
                     registered device counts as one that signs"
                );
                replay(Replay::Lost);
                return;
            }
            CHECKPOINT => {
                if let Ok(piece) = CheckpointPart::decode(body.clone()) {
                    self.checkpoints = self.checkpoints.max(piece.number);
                    if let Some(whole) = self.pieces.add(piece) {
                        self.last_checkpoint = whole.encoded_len() as u64;
                        self.since_checkpoint = 0;
                        self.mark = whole.mark.clone();
                        self.duplicates = duplicates_in(&whole);
                        replay(Replay::Checkpoint(Box::new(whole)));
                    }
                    return;
                }
            }
            _ => {}
        }
        tracing::error!(
            event = "ledger.unknown_record",
            kind,
            "a record of the ledger is not one of this version's"
        );
    }
}

fn duplicates_in(books: &Checkpoint) -> u64 {
    books.facts.iter().map(|facts| facts.duplicates).sum()
}

impl Ledger {
    /// Opens the ledger in `dir` (made when it is missing; its parent must exist) and tells `replay` what is in it.
    pub fn open(dir: &Path, mut replay: impl FnMut(Replay)) -> Result<Self, LedgerError> {
        let mut options = Options::outbox();
        options.max_bytes = MAX_BYTES;
        options.segment_bytes = SEGMENT_BYTES;
        let (spool, recovery) = Spool::open(dir, options)?;
        if recovery.corrupt_records > 0 || recovery.truncated_bytes > 0 {
            tracing::warn!(
                event = "ledger.recovered",
                records = recovery.records,
                truncated_bytes = recovery.truncated_bytes,
                corrupt_records = recovery.corrupt_records
            );
        }
        let mut known = Known::default();
        let mut reader = spool.reader(Lane::First, spool.cursor(Lane::First));
        loop {
            let batch = match reader.next_batch(READ_BYTES) {
                Ok(batch) => batch,
                Err(error) => {
                    // A sector that cannot be read must not keep the program down for ever: what it held comes again and is
                    // recognised by the sink.
                    tracing::error!(event = "ledger.unreadable", %error, "stepping over what the disk does not give");
                    reader.skip_unreadable();
                    reader.next_batch(READ_BYTES)?
                }
            };
            if batch.is_empty() {
                break;
            }
            known.batch(batch, &mut replay);
        }
        Ok(Self { spool, known })
    }

    /// Where the sink's end was after the last group that is here.
    #[must_use]
    pub fn mark(&self) -> &[u8] {
        &self.known.mark
    }

    /// Enters a group and the sink's mark; on disk when this returns.
    pub fn append(&mut self, entries: &[&Entry], mark: &[u8]) -> Result<(), LedgerError> {
        let at_ms = pithead_hop::program::clock::wall_us() / 1_000;
        let mut records: Vec<Record> = entries.iter().map(|entry| entry.record(at_ms)).collect();
        // A sink that says nothing has not moved its mark, or has none.
        if !mark.is_empty() && mark != &self.known.mark[..] {
            let record = Mark { mark: Bytes::copy_from_slice(mark) };
            records.push(Record::new(MARK, at_ms, record.encode_to_vec(), Bytes::new()));
        }
        self.write(records)?;
        if !mark.is_empty() {
            self.known.mark = Bytes::copy_from_slice(mark);
        }
        Ok(())
    }

    /// Appends in pieces, waits for all of them; gives the position of the first record.
    fn write(&mut self, records: Vec<Record>) -> Result<Option<Position>, LedgerError> {
        let mut tickets = Vec::new();
        let mut piece = Vec::new();
        let mut bytes = 0;
        for record in records {
            let size = record.head.len() + record.body.len();
            self.known.since_checkpoint += size as u64;
            if bytes + size > PIECE && !piece.is_empty() {
                tickets.push(self.append_piece(std::mem::take(&mut piece), bytes)?);
                bytes = 0;
            }
            bytes += size;
            piece.push(record);
        }
        if !piece.is_empty() {
            tickets.push(self.append_piece(piece, bytes)?);
        }
        let mut first = None;
        for ticket in tickets {
            let position = ticket.wait()?;
            first.get_or_insert(position);
        }
        Ok(first)
    }

    fn append_piece(&self, records: Vec<Record>, bytes: usize) -> Result<pithead_spool::Ticket, LedgerError> {
        loop {
            match self.spool.append_all(Lane::First, records.clone()) {
                Err(AppendError::QueueFull { .. }) => {
                    self.spool.room(Lane::First, records.len(), bytes as u64).wait()
                }
                answer => return Ok(answer?),
            }
        }
    }

    /// Whether so much was entered since the last checkpoint that another one pays.
    #[must_use]
    pub fn wants_checkpoint(&self) -> bool {
        self.known.since_checkpoint > CHECKPOINT_AFTER.max(self.known.last_checkpoint)
    }

    /// Writes the books out; what lies before is then given back.
    pub fn checkpoint(&mut self, mut books: Checkpoint, mark: &[u8]) -> Result<(), LedgerError> {
        if !mark.is_empty() {
            self.known.mark = Bytes::copy_from_slice(mark);
        }
        books.mark = self.known.mark.clone();
        let whole = Bytes::from(books.encode_to_vec());
        self.known.checkpoints += 1;
        let number = self.known.checkpoints;
        let of = u32::try_from(whole.len().div_ceil(PIECE / 2).max(1)).unwrap_or(u32::MAX);
        let at_ms = pithead_hop::program::clock::wall_us() / 1_000;
        let pieces = (0..of).map(|index| {
            let from = index as usize * (PIECE / 2);
            let bytes = whole.slice(from..whole.len().min(from + PIECE / 2));
            let part = CheckpointPart { number, index, of, bytes };
            Record::new(CHECKPOINT, at_ms, Bytes::new(), part.encode_to_vec())
        });
        let first = self.write(pieces.collect())?;
        self.known.last_checkpoint = whole.len() as u64;
        self.known.duplicates = duplicates_in(&books);
        self.known.since_checkpoint = 0;
        if let Some(before) = first.and_then(|first| first.0.checked_sub(1)) {
            self.spool.acknowledge(Lane::First, Position(before))?;
        }
        tracing::debug!(event = "ledger.checkpoint", bytes = whole.len());
        Ok(())
    }

    /// Writes the books out and closes the log.
    pub fn close(mut self, books: Checkpoint, mark: &[u8]) -> Result<(), LedgerError> {
        if self.known.since_checkpoint > 0 || duplicates_in(&books) != self.known.duplicates {
            self.checkpoint(books, mark)?;
        }
        Ok(self.spool.close()?)
    }
}

/// Pieces of the checkpoint that is being read.
#[derive(Debug, Default)]
struct Pieces {
    number: u64,
    bytes: Vec<u8>,
    next: u32,
}

impl Pieces {
    fn add(&mut self, piece: CheckpointPart) -> Option<Checkpoint> {
        if piece.index == 0 {
            *self = Self { number: piece.number, ..Self::default() };
        } else if piece.number != self.number || piece.index != self.next {
            return None;
        }
        self.next = piece.index + 1;
        self.bytes.extend_from_slice(&piece.bytes);
        if self.next < piece.of {
            return None;
        }
        Checkpoint::decode(&std::mem::take(&mut self.bytes)[..]).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::testing::batch;
    use record::LineFacts;

    fn entry(seq: u64) -> Entry {
        Entry::Applied { applied: Applied::of(&batch("t", seq, 1), 100, false, None), said: None }
    }

    fn read(dir: &Path) -> (Ledger, Vec<Replay>) {
        let mut all = Vec::new();
        let ledger = Ledger::open(dir, |replay| all.push(replay)).unwrap();
        (ledger, all)
    }

    fn seqs(all: &[Replay]) -> Vec<u64> {
        let seq = |replay: &Replay| match replay {
            Replay::Entry(entry) => match &**entry {
                Entry::Applied { applied, .. } => applied.who.as_ref().map(|who| who.seq),
                Entry::SetAside(_) => None,
            },
            Replay::Checkpoint(_) | Replay::Lost => None,
        };
        all.iter().filter_map(seq).collect()
    }

    #[test]
    fn what_was_entered_is_there_again_with_the_mark() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("ledger");
        let (mut ledger, all) = read(&dir);
        assert!(all.is_empty());
        ledger.append(&[&entry(1), &entry(2)], b"m1").unwrap();
        ledger.append(&[&entry(3)], b"").unwrap();
        drop(ledger);
        let (ledger, all) = read(&dir);
        assert_eq!(seqs(&all), [1, 2, 3]);
        assert_eq!(ledger.mark(), b"m1");
    }

    #[test]
    fn a_damaged_checkpoint_is_not_taken_for_empty_books() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("ledger");
        let (mut ledger, _) = read(&dir);
        let lines = record::SiteLines { site: "pit-7".into(), lines: vec![0xa7; 64].into() };
        ledger.checkpoint(Checkpoint { sites: vec![lines], ..Default::default() }, b"m1").unwrap();
        ledger.append(&[&entry(2)], b"").unwrap();
        drop(ledger);
        let mut hit = 0;
        for file in std::fs::read_dir(dir.join("lane-0")).unwrap().map(|file| file.unwrap().path()) {
            let mut bytes = std::fs::read(&file).unwrap();
            if let Some(at) = bytes.windows(64).position(|window| window == [0xa7; 64]) {
                bytes[at] ^= 1;
                std::fs::write(&file, bytes).unwrap();
                hit += 1;
            }
        }
        assert_eq!(hit, 1);
        let (_, all) = read(&dir);
        assert!(!all.iter().any(|replay| matches!(replay, Replay::Checkpoint(_))), "{all:?}");
        assert!(all.iter().any(|replay| matches!(replay, Replay::Lost)), "it is said: {all:?}");
        assert_eq!(seqs(&all), [2]);
    }

    #[test]
    fn a_checkpoint_of_many_pieces_stands_for_all_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("ledger");
        let (mut ledger, _) = read(&dir);
        ledger.append(&[&entry(1)], b"m1").unwrap();
        let lines = record::SiteLines { site: "pit-7".into(), lines: vec![7; 3 * PIECE].into() };
        let books =
            Checkpoint { sites: vec![lines], facts: vec![LineFacts::default()], ..Default::default() };
        ledger.checkpoint(books.clone(), b"m2").unwrap();
        ledger.append(&[&entry(2)], b"").unwrap();
        drop(ledger);
        let (ledger, all) = read(&dir);
        assert_eq!(ledger.mark(), b"m2");
        assert_eq!(seqs(&all), [2]);
        let Replay::Checkpoint(read) = &all[all.len() - 2] else { panic!("{all:?}") };
        assert_eq!(read.sites, books.sites);
        assert!(!ledger.wants_checkpoint());
    }
}

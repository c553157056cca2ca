//! The log of one stream: a spool of its own, so that a stream's budget is a number of bytes on the disk and a stream that
//! is full holds up no other.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
};

use bytes::Bytes;
use pithead_sealing::{
    envelope::SealedEnvelope,
    names::{Identity, Run, Seq, Site, StreamName},
};
use pithead_spool::{
    AcknowledgeError, AppendError, CorruptRange, Lane, LaneStats, OpenError, Options, Position, ReadError,
    Record, Recovery, Room, Spool, Ticket,
};

use super::{
    files::Files,
    head::{ENVELOPE, FILE, Head},
};
use crate::{
    INLINE_LIMIT_BYTES,
    batch::{Gap, GapReason},
    state::lock,
};

/// The one lane of a stream's log.
pub(super) const LANE: Lane = Lane::First;

/// The least budget of a stream: what is needed to write into one segment while another is on its way.
pub const MIN_BUDGET_BYTES: u64 = 1024 * 1024;

/// Segments are a sixteenth of the budget, so that dropping the oldest drops little more than it must, and within these
/// bounds: rolling costs syncs, and a large segment is zeroed in one go.
const SEGMENT_BYTES: std::ops::RangeInclusive<u64> = 64 * 1024..=4 * 1024 * 1024;
/// A group: one envelope of the largest kind with room to spare, or many small ones.
const GROUP_BYTES_MAX: u64 = 2 * 1024 * 1024;
const PAGE_BYTES: u64 = 4096;
/// Heads that are read of a log when a call begins, to name its lines: as many envelopes as a gateway lets be unanswered. What lies
/// further back was never sent, so that a Welcome could say nothing of it that counts, and a full outbox has a hundred thousand.
const HEADS_READ: usize = 4_096;

/// How a log of that budget is laid out.
pub(crate) fn layout(budget_bytes: u64) -> Options {
    let budget = budget_bytes.max(MIN_BUDGET_BYTES);
    let segment = (budget / 16).clamp(*SEGMENT_BYTES.start(), *SEGMENT_BYTES.end()) / PAGE_BYTES * PAGE_BYTES;
    let mut options = Options::outbox();
    options.max_bytes = budget;
    options.segment_bytes = segment;
    options.max_group_bytes = (segment - PAGE_BYTES).min(GROUP_BYTES_MAX);
    options.queue_bytes = 2 * options.max_group_bytes;
    options
}

/// Bytes of segments that are larger than the budget lays them out now, because it was made smaller: the largest of them, since the
/// last segment of a log is not given back while it is written to, and those that are kept for their damage. They come on top of
/// the budget for as long as this opening lasts; counted against it, they would leave no room for a segment of the size of now,
/// and the stream would take nothing for good. The other old ones count, and go as they are settled.
fn outsized(folder: &Path, segment_bytes: u64) -> u64 {
    let lane = folder.join(format!("lane-{}", LANE.index()));
    let (mut largest, mut damaged) = (0, 0);
    for entry in fs::read_dir(lane).into_iter().flatten().filter_map(Result::ok) {
        let length = entry.metadata().map_or(0, |metadata| metadata.len());
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|_| length > segment_bytes) else { continue };
        if name.starts_with("seg-") {
            largest = largest.max(length);
        } else if name.starts_with("damaged-") {
            damaged += length;
        }
    }
    largest + damaged
}

/// The largest envelope that goes into a log of that budget in one piece; what is larger is a file beside it.
pub(crate) fn inline_bytes(budget_bytes: u64) -> u64 {
    let head = 256;
    INLINE_LIMIT_BYTES.min(layout(budget_bytes).max_record_bytes() - head)
}

/// One stream's log, open.
#[derive(Debug)]
pub(crate) struct Log {
    site: Site,
    stream: StreamName,
    spool: Spool,
    files: Files,
    budget_bytes: u64,
    /// First position that is not acknowledged, ahead of the spool's own cursor.
    acknowledged: Mutex<Position>,
    /// Files that are not needed once the cursor is on disk behind them.
    leaving: Mutex<Vec<(Position, Identity)>>,
}

/// What was given up to make room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dropped {
    pub(crate) gaps: Vec<Gap>,
    /// Whose declarations are lost with them.
    pub(crate) envelopes: Vec<Identity>,
    pub(crate) records: u64,
    pub(crate) payload_bytes: u64,
    files: Vec<Identity>,
    last: Option<Position>,
}

/// An envelope that waits.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub(crate) position: Position,
    pub(crate) identity: Identity,
    /// When it was put here, by the wall clock.
    pub(crate) at_ms: u64,
    pub(crate) content: WaitingContent,
}

#[derive(Clone, Debug)]
pub(crate) enum WaitingContent {
    /// As it was sealed.
    Envelope(Bytes),
    /// In a file of that path.
    File(PathBuf),
}

/// What reading found.
#[derive(Debug)]
pub(crate) enum Read {
    Waiting(Waiting),
    /// Damaged up to and with the position, and those of the numbers that can still be told.
    Lost {
        position: Position,
        gaps: Vec<Gap>,
    },
}

impl Read {
    pub(crate) fn position(&self) -> Position {
        match self {
            Self::Waiting(waiting) => waiting.position,
            Self::Lost { position, .. } => *position,
        }
    }
}

impl Log {
    /// Opens the log in `folder` and recovers what a cut has left. Files that no record speaks of are removed.
    pub(crate) fn open(
        site: &Site,
        stream: &StreamName,
        folder: &Path,
        budget_bytes: u64,
    ) -> Result<(Self, Recovery), OpenError> {
        let mut options = layout(budget_bytes);
        options.max_bytes += outsized(folder, options.segment_bytes);
        let (spool, recovery) = Spool::open(folder, options)?;
        let log = Self::over(site, stream, folder, budget_bytes, spool);
        let waiting = log.heads(log.acknowledged_up_to());
        let kept = waiting.filter(|(kind, ..)| *kind == FILE).map(|(_, head, _)| log.identity(&head));
        let kept = kept.collect();
        // A file whose record does not read is an envelope all the same, and may be wanted by whoever looks at the damage.
        let damaged = recovery.corrupt_records > 0 || recovery.damaged_segments > 0;
        log.files.keep_only(&kept, damaged);
        Ok((log, recovery))
    }

    /// The log in an open spool.
    pub(super) fn over(
        site: &Site,
        stream: &StreamName,
        folder: &Path,
        budget_bytes: u64,
        spool: Spool,
    ) -> Self {
        Self {
            site: site.clone(),
            stream: stream.clone(),
            files: Files::open(folder),
            budget_bytes,
            acknowledged: Mutex::new(spool.cursor(LANE)),
            leaving: Mutex::default(),
            spool,
        }
    }

    pub(crate) fn stream(&self) -> &StreamName {
        &self.stream
    }

    pub(crate) fn files(&self) -> &Files {
        &self.files
    }

    pub(crate) fn budget_bytes(&self) -> u64 {
        self.budget_bytes
    }

    /// The newest lines that the log knows of, delivered or not.
    pub(crate) fn lines(&self) -> Vec<Head> {
        self.heads(self.spool.start(LANE)).map(|(_, head, _)| head).collect()
    }

    /// The lowest number of each line that waits, among the oldest [`HEADS_READ`] envelopes.
    pub(crate) fn first_unacknowledged(&self) -> Vec<Head> {
        let mut lines: Vec<Head> = Vec::new();
        for (_, head, _) in self.heads(self.acknowledged_up_to()).take(HEADS_READ) {
            match lines.iter_mut().find(|line| line.line == head.line) {
                Some(line) => line.seq = line.seq.min(head.seq),
                None => lines.push(head),
            }
        }
        lines
    }

    fn heads(&self, from: Position) -> impl Iterator<Item = (u16, Head, Position)> {
        self.spool
            .heads(LANE, from)
            .filter_map(|record| Some((record.kind, Head::decode(&record.head)?, record.position)))
            .filter(|(_, head, _)| head.line.stream == self.stream)
    }

    fn identity(&self, head: &Head) -> Identity {
        Identity {
            site: self.site.clone(),
            device: head.line.device.clone(),
            stream: head.line.stream.clone(),
            run: head.line.run,
            seq: head.seq,
        }
    }

    /// The record of an envelope, to be appended.
    pub(crate) fn record(envelope: &SealedEnvelope, head: &Head, at_ms: u64) -> Record {
        Record::new(ENVELOPE, at_ms, head.encode(), envelope.bytes().clone())
    }

    /// The record of an envelope in a file of its own, which is durable under its name.
    pub(crate) fn file_record(total: u64, head: &Head, at_ms: u64) -> Record {
        Record::new(FILE, at_ms, head.encode(), Bytes::copy_from_slice(&total.to_be_bytes()))
    }

    /// Takes a record; it may be sent when the ticket has resolved. `failures` is what [`Log::failures`] said when the first
    /// record was appended that is not durable yet: nothing overtakes what has to be appended again.
    pub(crate) fn append(&self, record: Record, failures: u64) -> Result<Ticket, AppendError> {
        self.spool.append_since(LANE, record, failures)
    }

    pub(crate) fn failures(&self) -> u64 {
        self.spool.failures(LANE)
    }

    /// Resolves when an append of so many bytes is worth another try.
    pub(crate) fn room(&self, bytes: u64) -> Room {
        self.spool.room(LANE, 1, bytes)
    }

    /// Reads from the first position that is not acknowledged.
    pub(crate) fn waiting(&self) -> WaitingReader {
        let from = self.acknowledged_up_to();
        WaitingReader { reader: self.spool.reader(LANE, from), newest: self.before(from) }
    }

    /// The number of the record before that position, if it still lies there.
    fn before(&self, position: Position) -> Option<(Run, Seq)> {
        let last = Position(position.0.checked_sub(1)?);
        let (_, head, here) = self.heads(last).next()?;
        (here == last).then_some((head.line.run, head.seq))
    }

    /// There is room for a record of so many bytes now.
    pub(crate) fn admits(&self, bytes: u64) -> bool {
        self.spool.admit(LANE, 1, bytes).is_ok()
    }

    /// What lies behind `reader`, of at most `max_bytes` but at least one if there is one. Reads and checks the bytes.
    pub(crate) fn read(&self, reader: &mut WaitingReader, max_bytes: usize) -> Result<Vec<Read>, ReadError> {
        let mut read: Vec<Read> = Vec::new();
        loop {
            let batch = reader.reader.next_batch(max_bytes)?;
            let ended = batch.is_empty();
            read.extend(batch.corrupt.iter().map(|range| self.lost(range)));
            for (position, record) in batch.records {
                read.push(self.waiting_record(position, record));
            }
            read.sort_by_key(Read::position);
            // Who was damaged is told by the one behind them, if there is one.
            if ended || !matches!(read.last(), Some(Read::Lost { .. })) {
                break;
            }
        }
        // A head may be damaged beyond reading. Numbers of a line are dense in its log, so its neighbours tell who was there.
        let mut lost = None;
        for index in 0..read.len() {
            match &read[index] {
                Read::Lost { .. } => lost = Some(index),
                Read::Waiting(waiting) => {
                    let here = (waiting.identity.run, waiting.identity.seq);
                    let before = reader.newest.replace(here);
                    if let Some(index) = lost.take()
                        && let Some(all) = self.between(before, here)
                        && let Read::Lost { gaps, .. } = &mut read[index]
                    {
                        gaps.retain(|gap| gap.run != all.run || gap.to < all.from || all.to < gap.from);
                        gaps.push(all);
                    }
                }
            }
        }
        Ok(read)
    }

    fn between(&self, before: Option<(Run, Seq)>, here: (Run, Seq)) -> Option<Gap> {
        let first = match before {
            Some((run, seq)) if run == here.0 => seq.get() + 1,
            // Of the run before, its successor's first batch tells how far it went.
            _ => 1,
        };
        let (from, to) = (Seq::new(first).ok()?, Seq::new(here.1.get() - 1).ok()?);
        let gap =
            Gap { stream: self.stream.clone(), run: here.0, from, to, reason: GapReason::OutboxDamaged };
        // Before the first record that this opening reads, what is not there may have been delivered.
        (from <= to && before.is_some()).then_some(gap)
    }

    fn waiting_record(&self, position: Position, record: Record) -> Read {
        let lost = |gaps| Read::Lost { position, gaps };
        let Some(head) = Head::decode(&record.head) else { return lost(Vec::new()) };
        let identity = self.identity(&head);
        let content = match record.kind {
            ENVELOPE => WaitingContent::Envelope(record.body),
            // Only what is not there is lost: a folder that cannot be read at the moment is another thing.
            FILE if !self.files.is_missing(&identity) => WaitingContent::File(self.files.path(&identity)),
            _ => return lost(vec![gap_of(&head, head.seq, GapReason::OutboxDamaged)]),
        };
        Read::Waiting(Waiting { position, identity, at_ms: record.at_ms, content })
    }

    fn lost(&self, range: &CorruptRange) -> Read {
        let heads = range.heads.iter().filter_map(|head| Head::decode(&head.head));
        Read::Lost {
            position: Position(range.to.0.saturating_sub(1)),
            gaps: joined(heads, GapReason::OutboxDamaged, |last, next| last.next() == Some(next)),
        }
    }

    /// The first position that is not acknowledged.
    pub(crate) fn acknowledged_up_to(&self) -> Position {
        *lock(&self.acknowledged)
    }

    /// The position after the last durable envelope: when the acknowledgements reach it, nothing waits.
    pub(crate) fn end(&self) -> Position {
        self.spool.end(LANE)
    }

    /// Everything up to and with `position` is settled and need not be kept.
    pub(crate) fn acknowledge(&self, position: Position) -> Result<(), AcknowledgeError> {
        {
            let mut acknowledged = lock(&self.acknowledged);
            *acknowledged = (*acknowledged).max(position.next());
        }
        self.spool.acknowledge(LANE, position)
    }

    /// The envelope at `position`, which is in a file, is settled: the file goes once no restart looks for it.
    pub(crate) fn leaves(&self, position: Position, identity: &Identity) {
        lock(&self.leaving).push((position, identity.clone()));
    }

    /// Bytes of files that wait for [`Log::sweep`].
    pub(crate) fn leaving_bytes(&self) -> u64 {
        lock(&self.leaving).iter().map(|(_, identity)| self.files.len(identity)).sum()
    }

    /// Removes the files of envelopes that no restart will look for any more.
    pub(crate) fn sweep(&self) {
        let saved = self.spool.saved_cursor(LANE);
        lock(&self.leaving).retain(|(position, identity)| {
            if *position < saved {
                self.files.remove(identity);
            }
            *position >= saved
        });
    }

    /// What has to be given up, oldest first, so that `bytes` more have room: at least a segment, because room comes by
    /// segments. Nothing is given up before [`Log::give_up`].
    pub(crate) fn oldest(&self, bytes: u64) -> Dropped {
        let wanted = bytes.max(layout(self.budget_bytes).segment_bytes);
        let mut freed = 0;
        let mut heads = Vec::new();
        let mut dropped = Dropped::default();
        let records = self.spool.heads(LANE, self.acknowledged_up_to());
        for record in records {
            if freed >= wanted {
                break;
            }
            dropped.last = Some(record.position);
            freed += u64::from(record.body_bytes) + 128;
            let Some(head) = Head::decode(&record.head) else { continue };
            let identity = self.identity(&head);
            if record.kind == FILE {
                freed += self.files.len(&identity);
                dropped.files.push(identity.clone());
            }
            dropped.envelopes.push(identity);
            dropped.records += u64::from(head.records);
            dropped.payload_bytes += head.payload_bytes;
            heads.push(head);
        }
        // What lies between two of them, or before the first, is damaged, and is given up with them.
        let before = self.before(self.acknowledged_up_to());
        dropped.gaps = joined(heads.into_iter(), GapReason::DroppedByPolicy, |last, next| last < next);
        if let (Some(first), Some((run, seq))) = (dropped.gaps.first_mut(), before)
            && run == first.run
        {
            first.from = first.from.min(seq.next().unwrap_or(first.from));
        }
        dropped
    }

    /// Gives up what was chosen. To be called when its gaps are on disk.
    pub(crate) fn give_up(&self, dropped: &Dropped) -> Result<(), AcknowledgeError> {
        // Acknowledged first, so that whoever finds no file knows why. After a cut in between, either nobody speaks of a file, and
        // it goes at the next opening, or a restart finds it missing, and it is in the list of gaps.
        let given_up = dropped.last.map_or(Ok(()), |last| self.acknowledge(last));
        dropped.files.iter().for_each(|identity| self.files.remove(identity));
        given_up
    }

    /// How full it is.
    pub(crate) fn stats(&self) -> LaneStats {
        self.spool.stats().lanes.swap_remove(0)
    }

    /// Lets go of the folder.
    pub(crate) fn close(&self) -> Result<(), pithead_spool::CloseError> {
        let closed = self.spool.close();
        self.sweep();
        closed
    }
}

fn gap_of(head: &Head, to: Seq, reason: GapReason) -> Gap {
    Gap { stream: head.line.stream.clone(), run: head.line.run, from: head.seq, to, reason }
}

/// Numbers in the order of a log, as ranges; `continues` says whether a number belongs to the range before it.
fn joined(
    heads: impl Iterator<Item = Head>,
    reason: GapReason,
    continues: impl Fn(Seq, Seq) -> bool,
) -> Vec<Gap> {
    let mut gaps: Vec<Gap> = Vec::new();
    for head in heads {
        match gaps.last_mut() {
            Some(last) if last.run == head.line.run && continues(last.to, head.seq) => last.to = head.seq,
            _ => gaps.push(gap_of(&head, head.seq, reason)),
        }
    }
    gaps
}

/// Reads what waits in a log, in order.
#[derive(Debug)]
pub(crate) struct WaitingReader {
    reader: pithead_spool::Reader,
    /// The newest number that was read.
    newest: Option<(Run, Seq)>,
}

impl WaitingReader {
    /// The position of the next record.
    pub(crate) fn position(&self) -> Position {
        self.reader.position()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pithead_sealing::names::{DeviceId, Line};
    use pithead_spool::AppendError;

    use super::*;

    fn stream() -> StreamName {
        StreamName::new("can").unwrap()
    }

    fn head(run: u64, seq: u64) -> Head {
        let device = DeviceId::new("truck-7").unwrap();
        let line = Line { device, stream: stream(), run: Run::new(run).unwrap() };
        Head { line, seq: Seq::new(seq).unwrap(), records: 1, payload_bytes: 1 }
    }

    fn open(folder: &Path, budget: u64) -> Log {
        Log::open(&Site::new("pit-7").unwrap(), &stream(), folder, budget).unwrap().0
    }

    /// Appends when there is room.
    async fn append(log: &Log, head: &Head, bytes: usize) -> Ticket {
        let record = Record::new(ENVELOPE, 0, head.encode(), Bytes::from(vec![7; bytes]));
        loop {
            match log.append(record.clone(), log.failures()) {
                Ok(ticket) => return ticket,
                Err(AppendError::Full { .. } | AppendError::QueueFull { .. }) => {
                    let room = tokio::time::timeout(Duration::from_secs(20), log.room(bytes as u64));
                    room.await.expect("what was settled makes room");
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Its last segment was larger than the whole budget, and was never given back.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_budget_made_smaller_than_one_of_its_old_segments_takes_records_all_the_same() {
        const BYTES: usize = 32 << 10;
        let folder = tempfile::tempdir().unwrap();
        let log = open(folder.path(), 64 << 20);
        let last = append(&log, &head(1, 1), BYTES).await.await.unwrap();
        log.acknowledge(last).unwrap();
        log.close().unwrap();
        drop(log);
        let log = open(folder.path(), MIN_BUDGET_BYTES);
        // More than the old segment holds, so that it has to go.
        for seq in 1..=200 {
            let settled = append(&log, &head(2, seq), BYTES).await.await.unwrap();
            log.acknowledge(settled).unwrap();
        }
        log.close().unwrap();
        drop(log);
        let log = open(folder.path(), MIN_BUDGET_BYTES);
        let bytes: u64 = fs::read_dir(folder.path().join("lane-0"))
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert!(bytes <= MIN_BUDGET_BYTES, "{bytes} bytes on the disk");
        drop(log);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn naming_its_lines_reads_no_more_heads_of_a_full_log_than_could_have_been_sent() {
        let folder = tempfile::tempdir().unwrap();
        let log = open(folder.path(), 64 << 20);
        let heads = (1..=HEADS_READ as u64).map(|seq| head(1, seq)).chain([head(2, 1)]);
        let mut tickets = Vec::new();
        for head in heads {
            tickets.push(append(&log, &head, 1).await);
        }
        let mut first = None;
        for ticket in tickets {
            let position = ticket.await.unwrap();
            first.get_or_insert(position);
        }
        assert_eq!(
            log.first_unacknowledged(),
            [head(1, 1)],
            "the second run lies behind what can be on its way"
        );
        log.acknowledge(first.unwrap()).unwrap();
        assert_eq!(log.first_unacknowledged(), [head(1, 2), head(2, 1)]);
    }
}

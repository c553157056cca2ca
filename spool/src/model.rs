//! Random lives of a spool on the crashing disk, against a model that is a list.
//!
//! Short by default; `PITHEAD_LONG=1` runs 100,000 lives.

#![allow(clippy::unwrap_used)]

mod cuts;
mod flips;

use crate::crash::{CrashFs, Disk};
use crate::format::mix;
use crate::fs::Lock;
use crate::owner::{Owner, Preparer, Work};
use crate::read::{CorruptRange, Reader};
use crate::recover::Recovery;
use crate::shared::Shared;
use crate::spool::assemble;
use crate::ticket::Ticket;
use crate::{AppendError, Lane, NotDurable, Options, Position, Record, Verify};
use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::Config;
use std::path::Path;
use std::sync::Arc;

use flips::filled;

/// What can happen to a spool.
#[derive(Clone, Debug)]
enum Step {
    Append {
        lane: usize,
        sizes: Vec<u16>,
    },
    Commit,
    Acknowledge {
        lane: usize,
        part: u8,
    },
    SaveCursors,
    Prepare,
    Read,
    CutPowerAfter(u8),
    FailSyncAfter(u8),
    LimitSpace(u32),
    FreeSpace,
    Kill,
    Crash,
    /// The power goes, and while the spool is opened after that, it goes again before the n-th write.
    CrashAndCutInRecovery(u8),
    /// The power goes, and while the spool is opened after that, the n-th sync fails.
    CrashAndFailInRecovery(u8),
    Close,
}

fn step() -> impl Strategy<Value = Step> {
    let lane = 0..2_usize;
    let sizes = prop::collection::vec(prop_oneof![4 => 0..900_u16, 1 => 0..16_000_u16], 1..6);
    prop_oneof![
        12 => (lane.clone(), sizes).prop_map(|(lane, sizes)| Step::Append { lane, sizes }),
        12 => Just(Step::Commit),
        4 => (lane, any::<u8>()).prop_map(|(lane, part)| Step::Acknowledge { lane, part }),
        2 => Just(Step::SaveCursors),
        2 => Just(Step::Prepare),
        2 => Just(Step::Read),
        2 => (0..12_u8).prop_map(Step::CutPowerAfter),
        1 => (0..6_u8).prop_map(Step::FailSyncAfter),
        1 => (0..200_000_u32).prop_map(Step::LimitSpace),
        1 => Just(Step::FreeSpace),
        1 => Just(Step::Kill),
        2 => Just(Step::Crash),
        1 => (0..16_u8).prop_map(Step::CrashAndCutInRecovery),
        1 => (0..4_u8).prop_map(Step::CrashAndFailInRecovery),
        1 => Just(Step::Close),
    ]
}

fn options() -> Options {
    Options {
        lanes: 2,
        segment_bytes: 40 * 1024,
        max_group_bytes: 20 * 1024,
        max_bytes: 10 * 40 * 1024,
        queue_bytes: 64 * 1024,
        queue_records: 40,
        verify: Verify::Heads,
        salt: 7,
        ..Options::default()
    }
}

/// The `id`-th record that was ever appended, with contents that follow from it.
fn record(id: u64, bytes: usize) -> Record {
    let body: Vec<u8> = (0..bytes).map(|at| mix(id ^ (at as u64 / 8) << 32).to_le_bytes()[at % 8]).collect();
    Record::new(id as u16, id, Bytes::copy_from_slice(&id.to_le_bytes()), body)
}

fn id_of(record: &Record) -> u64 {
    u64::from_le_bytes(record.head[..].try_into().unwrap())
}

fn assert_as_appended(found: &Record) {
    assert_eq!(*found, record(id_of(found), found.body.len()), "a record that was never appended");
}

struct Open {
    shared: Arc<Shared>,
    owner: Owner,
    preparer: Preparer,
    _lock: Box<dyn Lock>,
    tickets: Vec<(usize, Vec<u64>, Ticket)>,
}

impl Open {
    fn drain(&mut self) {
        loop {
            let work = self.owner.work(&self.shared.lock());
            if work != Some(Work::Commit) {
                break;
            }
            self.owner.commit();
        }
    }
}

/// What must be true of a lane.
#[derive(Default, Clone)]
struct Book {
    /// Confirmed records by position, from `start` on.
    durable: Vec<u64>,
    start: u64,
    /// The first position that was not acknowledged.
    acknowledged: u64,
}

struct Life {
    fs: CrashFs,
    open: Option<Open>,
    books: [Book; 2],
    next_id: u64,
    /// The batches that were taken, by their first and last record.
    batches: Vec<(u64, u64)>,
}

fn open_spool(fs: &CrashFs, options: Options) -> Option<(Open, Recovery)> {
    let parts = assemble(Arc::new(fs.clone()), Path::new("/spool"), options).ok()?;
    let (shared, owner, preparer) = (parts.shared, parts.owner, parts.preparer);
    Some((Open { shared, owner, preparer, _lock: parts.lock, tickets: Vec::new() }, parts.recovery))
}

fn read_all(shared: &Arc<Shared>, lane: usize) -> (Vec<(u64, Record)>, Vec<CorruptRange>) {
    let mut reader = Reader::new(Arc::clone(shared), Lane::from_index(lane).unwrap(), Position::START);
    let (mut records, mut corrupt) = (Vec::new(), Vec::new());
    loop {
        let batch = reader.next_batch(3_000).unwrap();
        if batch.is_empty() {
            return (records, corrupt);
        }
        corrupt.extend(batch.corrupt);
        records.extend(batch.records.into_iter().map(|(position, record)| (position.0, record)));
    }
}

impl Life {
    fn new(seed: u64) -> Self {
        let fs = CrashFs::new(seed);
        let mut life = Self { fs, open: None, books: Default::default(), next_id: 0, batches: Vec::new() };
        life.reopen();
        life
    }

    /// Opens, and holds what came back against the books.
    fn reopen(&mut self) {
        self.fs.disk().space = None;
        let opened = open_spool(&self.fs, options()).expect("no state of the disk makes opening fail");
        self.compare(opened);
    }

    /// Opens while the disk fails, and then, if that came to nothing, while it does not.
    fn reopen_with(&mut self, fault: impl FnOnce(&mut Disk)) {
        self.fs.disk().space = None;
        fault(&mut self.fs.disk());
        let opened = open_spool(&self.fs, options());
        if let Some(opened) = opened.filter(|_| !self.fs.disk().is_dead()) {
            self.compare(opened);
        } else {
            self.fs.disk().crash();
            self.reopen();
        }
    }

    fn compare(&mut self, (open, recovery): (Open, Recovery)) {
        assert_eq!(recovery.corrupt_records, 0, "a torn tail was taken for corruption: {recovery:?}");
        assert_eq!(recovery.damaged_segments, 0, "a file is called a segment and has no header");
        for lane in 0..2 {
            let cursor = open.shared.lock().lanes[lane].cursor;
            let book = &self.books[lane];
            assert!(cursor <= book.acknowledged, "the cursor leads");
            let (found, corrupt) = read_all(&open.shared, lane);
            assert!(corrupt.is_empty());
            let start = found.first().map_or(cursor, |(position, _)| *position);
            assert!(start <= cursor, "positions {cursor}..{start} are not acknowledged and not there");
            for (index, (position, record)) in found.iter().enumerate() {
                assert_eq!(*position, start + index as u64, "positions have a gap");
                assert_as_appended(record);
                if let Some(&id) =
                    position.checked_sub(book.start).and_then(|at| book.durable.get(at as usize))
                {
                    assert_eq!(
                        id_of(record),
                        id,
                        "position {position} of lane {lane} has changed its record"
                    );
                }
            }
            assert!(
                found.windows(2).all(|pair| id_of(&pair[0].1) < id_of(&pair[1].1)),
                "the order of appends is not kept in lane {lane}"
            );
            let ids: Vec<u64> = found.iter().map(|(_, record)| id_of(record)).collect();
            for (first, last) in &self.batches {
                let there = ids.iter().filter(|id| (first..=last).contains(id)).count() as u64;
                assert!(there == 0 || there == last - first + 1, "batch {first}..={last} is there in part");
            }
            let end = start + found.len() as u64;
            let promised = book.start + book.durable.len() as u64;
            assert!(end >= promised, "lane {lane} was promised up to {promised}, and has up to {end}");
            self.books[lane] = Book {
                durable: found.iter().map(|(_, record)| id_of(record)).collect(),
                start,
                acknowledged: cursor,
            };
        }
        self.open = Some(open);
    }

    fn settle_tickets(&mut self) {
        let Some(open) = &mut self.open else { return };
        let books = &mut self.books;
        open.tickets.retain(|(lane, ids, ticket)| match ticket.answer() {
            None => true,
            Some(Err(_)) => false,
            Some(Ok(position)) => {
                let book = &mut books[*lane];
                assert_eq!(
                    position.0,
                    book.start + book.durable.len() as u64,
                    "tickets resolve out of order"
                );
                book.durable.extend(ids);
                false
            }
        });
    }

    fn restart(&mut self, crash: bool) {
        self.end_process(crash);
        self.reopen();
    }

    fn end_process(&mut self, crash: bool) {
        self.settle_tickets();
        // What the process still holds must not touch the disk of the next one.
        if crash || self.fs.disk().is_dead() {
            self.fs.disk().crash();
        } else {
            self.fs.disk().kill();
        }
        self.open = None;
    }

    fn take(&mut self, step: &Step) {
        let Some(open) = &mut self.open else { return };
        match step {
            Step::Append { lane, sizes } => {
                let ids: Vec<u64> = (0..sizes.len() as u64).map(|index| self.next_id + index).collect();
                let records =
                    ids.iter().zip(sizes).map(|(id, size)| record(*id, usize::from(*size))).collect();
                match open.shared.append(Lane::from_index(*lane).unwrap(), records) {
                    Ok(ticket) => {
                        self.next_id += ids.len() as u64;
                        self.batches.push((ids[0], ids[ids.len() - 1]));
                        open.tickets.push((*lane, ids, ticket));
                    }
                    Err(
                        AppendError::QueueFull { .. }
                        | AppendError::Full { .. }
                        | AppendError::TooLarge { .. }
                        | AppendError::Poisoned,
                    ) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            Step::Commit => {
                let work = open.owner.work(&open.shared.lock());
                if work == Some(Work::Commit) {
                    open.owner.commit();
                }
            }
            Step::Acknowledge { lane, part } => {
                let book = &mut self.books[*lane];
                let end = book.start + book.durable.len() as u64;
                let position = book.acknowledged + (end - book.acknowledged) * u64::from(*part) / 255;
                if position > book.acknowledged {
                    book.acknowledged = position;
                    let mut state = open.shared.lock();
                    let here = &mut state.lanes[*lane];
                    here.cursor = here.cursor.max(position);
                }
            }
            Step::SaveCursors => {
                open.owner.save_cursors();
            }
            Step::Prepare => (0..2).for_each(|lane| open.preparer.prepare(lane)),
            Step::Read => self.read(),
            Step::CutPowerAfter(n) => self.fs.disk().cut_after = Some(u64::from(*n)),
            Step::FailSyncAfter(n) => self.fs.disk().fail_sync_after = Some(u64::from(*n)),
            Step::LimitSpace(bytes) => self.fs.disk().space = Some(u64::from(*bytes)),
            Step::FreeSpace => {
                self.fs.disk().space = None;
                open.owner.retry_full();
            }
            Step::Kill => self.restart(false),
            Step::Crash => self.restart(true),
            Step::CrashAndCutInRecovery(n) => {
                self.end_process(true);
                self.reopen_with(|disk| disk.cut_after = Some(u64::from(*n)));
            }
            Step::CrashAndFailInRecovery(n) => {
                self.end_process(true);
                self.reopen_with(|disk| disk.fail_sync_after = Some(u64::from(*n)));
            }
            Step::Close => {
                open.drain();
                let mut open = self.open.take().unwrap();
                open.shared.lock().closing = true;
                let _ = open.owner.close();
                for (lane, ids, ticket) in open.tickets.drain(..) {
                    let answer = ticket.answer().expect("closing answers every ticket");
                    if answer.is_ok() {
                        self.books[lane].durable.extend(ids);
                    }
                }
                drop(open._lock);
                self.restart(false);
            }
        }
        self.settle_tickets();
    }

    /// Readers see what was confirmed, and nothing else.
    fn read(&mut self) {
        let Some(open) = &self.open else { return };
        if self.fs.disk().is_dead() {
            return;
        }
        for (lane, book) in self.books.iter().enumerate() {
            let (found, corrupt) = read_all(&open.shared, lane);
            assert!(corrupt.is_empty(), "{corrupt:?}");
            let ids: Vec<u64> = found.iter().map(|(_, record)| id_of(record)).collect();
            found.iter().for_each(|(_, record)| assert_as_appended(record));
            assert!(book.durable.ends_with(&ids), "lane {lane} shows {ids:?} of {:?}", book.durable);
            let unacknowledged = book.start + book.durable.len() as u64 - book.acknowledged;
            assert!(ids.len() as u64 >= unacknowledged, "lane {lane} lost records while it was open");
        }
    }
}

fn cases(short: u32) -> u32 {
    if std::env::var_os("PITHEAD_LONG").is_some_and(|value| value == "1") { 100_000 } else { short }
}

fn live(seed: u64, steps: &[Step]) {
    let mut life = Life::new(seed);
    for step in steps {
        life.take(step);
    }
    life.restart(true);
    life.restart(false);
}

proptest! {
    #![proptest_config(Config { cases: cases(400), failure_persistence: None, ..Config::default() })]

    #[test]
    fn what_was_promised_survives_and_nothing_is_invented(
        seed in any::<u64>(),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        live(seed, &steps);
    }
}

#[test]
fn damage_in_the_last_group_without_a_closing_mark_is_a_torn_tail() {
    let (fs, written) = filled(5, false);
    let mut data_end = 0;
    {
        let (open, _) = open_spool(&fs, options()).unwrap();
        data_end = data_end.max(open.shared.lock().lanes[0].segments.back().unwrap().end_offset);
    }
    fs.disk().kill();
    fs.disk().edit("/spool/lane-0", |bytes| bytes[data_end as usize - 4096 + 70] ^= 1);
    let (open, recovery) = open_spool(&fs, options()).unwrap();
    let (found, corrupt) = read_all(&open.shared, 0);
    assert!(corrupt.is_empty() && recovery.corrupt_records == 0);
    assert!(recovery.truncated_bytes > 0 && recovery.truncated_records > 0);
    assert_eq!(found.len() as u64 + recovery.truncated_records, written[0].len() as u64);
}

#[test]
fn a_failed_sync_fails_everyone_waiting_and_a_new_segment_goes_on() {
    let fs = CrashFs::new(1);
    let (mut open, _) = open_spool(&fs, options()).unwrap();
    let append = |open: &Open, id| open.shared.append(Lane::First, vec![record(id, 100)]).unwrap();
    let first = append(&open, 0);
    open.owner.commit();
    assert_eq!(first.wait(), Ok(Position(0)));
    fs.disk().fail_sync_after = Some(0);
    let failed = append(&open, 1);
    open.owner.commit();
    assert!(matches!(failed.wait(), Err(NotDurable::Disk { .. })));
    let after = append(&open, 2);
    open.owner.commit();
    assert_eq!(after.wait(), Ok(Position(1)));
    assert_eq!(open.shared.lock().lanes[0].segments.len(), 2);
    let ids: Vec<u64> = read_all(&open.shared, 0).0.iter().map(|(_, record)| id_of(record)).collect();
    assert_eq!(ids, [0, 2]);
    // Also after a crash: the segment that failed ends where its successor begins.
    fs.disk().crash();
    let (open, _) = open_spool(&fs, options()).unwrap();
    let ids: Vec<u64> = read_all(&open.shared, 0).0.iter().map(|(_, record)| id_of(record)).collect();
    assert_eq!(ids, [0, 2]);
}

#[test]
fn an_empty_segment_at_the_front_hides_nothing_behind_it() {
    let fs = CrashFs::new(1);
    let (mut open, _) = open_spool(&fs, options()).unwrap();
    let append = |open: &mut Open, id| {
        let ticket = open.shared.append(Lane::First, vec![record(id, 20_000)]).unwrap();
        open.owner.commit();
        ticket.wait()
    };
    assert_eq!(append(&mut open, 0), Ok(Position(0)));
    // The next segment is made (two syncs), and its first group fails to sync.
    fs.disk().fail_sync_after = Some(2);
    assert!(matches!(append(&mut open, 1), Err(NotDurable::Disk { .. })));
    assert_eq!(append(&mut open, 2), Ok(Position(1)));
    // The process ends between giving back the first segment (behind a new cursor file, six operations) and the empty one.
    open.shared.lock().lanes[0].cursor = 1;
    fs.disk().cut_after = Some(7);
    open.owner.save_cursors();
    assert!(fs.disk().is_dead());
    fs.disk().kill();

    let (open, _) = open_spool(&fs, options()).unwrap();
    let segments: Vec<_> =
        open.shared.lock().lanes[0].segments.iter().map(|one| (one.first, one.end)).collect();
    assert_eq!(segments, [(1, 1), (1, 2)]);
    let (found, _) = read_all(&open.shared, 0);
    assert_eq!(found.iter().map(|(at, record)| (*at, id_of(record))).collect::<Vec<_>>(), [(1, 2)]);
}

#[test]
fn a_second_failure_in_a_row_poisons_the_lane_until_it_is_opened_again() {
    let fs = CrashFs::new(1);
    let (mut open, _) = open_spool(&fs, options()).unwrap();
    for id in 0..2 {
        // The new segment's header is synced before its first group.
        fs.disk().fail_sync_after = Some(id);
        let ticket = open.shared.append(Lane::First, vec![record(id, 100)]).unwrap();
        open.owner.commit();
        assert!(ticket.wait().is_err());
        fs.disk().fail_sync_after = None;
    }
    let refused = open.shared.append(Lane::First, vec![record(9, 100)]);
    assert!(matches!(refused, Err(AppendError::Poisoned)));
    assert!(open.shared.append(Lane::Second, vec![record(9, 100)]).is_ok(), "the other lane's file is sound");
    drop(open);
    fs.disk().kill();
    let (mut open, _) = open_spool(&fs, options()).unwrap();
    let ticket = open.shared.append(Lane::First, vec![record(10, 100)]).unwrap();
    open.owner.commit();
    assert!(ticket.wait().is_ok());
}

#[test]
fn a_full_disk_refuses_serves_and_recovers_when_it_is_drained() {
    let fs = CrashFs::new(1);
    let (mut open, _) = open_spool(&fs, options()).unwrap();
    fs.disk().space = Some(0);
    let mut promised = 0;
    let refusal = loop {
        match open.shared.append(Lane::First, vec![record(promised, 4000)]) {
            Err(error) => break error,
            Ok(ticket) => {
                open.owner.commit();
                match ticket.wait() {
                    Ok(_) => promised += 1,
                    Err(error) => assert_eq!(error, NotDurable::Full),
                }
            }
        }
    };
    assert!(matches!(refusal, AppendError::Full { .. }) && refusal.is_retryable());
    assert_eq!(read_all(&open.shared, 0).0.len() as u64, promised);
    // The disk is still full after a restart, and the backlog is served all the same.
    drop(open);
    fs.disk().kill();
    let (mut open, _) = open_spool(&fs, options()).unwrap();
    assert_eq!(read_all(&open.shared, 0).0.len() as u64, promised);
    fs.disk().space = None;
    open.owner.retry_full();
    let ticket = open.shared.append(Lane::First, vec![record(99, 4000)]).unwrap();
    open.owner.commit();
    assert_eq!(ticket.wait(), Ok(Position(promised)));
}

/// The model found it.
#[test]
fn a_group_that_fills_its_segment_and_failed_to_sync_is_written_again_after_a_kill() {
    let append = |sizes: &[u16]| Step::Append { lane: 1, sizes: sizes.to_vec() };
    let steps = [
        append(&[510, 745, 384, 7373, 621]),
        Step::FailSyncAfter(1),
        append(&[605, 154, 491, 4934]),
        append(&[12_169]),
        Step::Commit,
        Step::Commit,
        Step::Kill,
    ];
    for seed in 0..100 {
        live(seed, &steps);
    }
}

/// What two crashes in a row can leave: a page of a group that was cut, in the middle of one that was written over it.
#[test]
fn a_page_of_an_older_group_at_the_same_place_does_not_stand_in_for_the_torn_one() {
    let written = |at_ms| {
        let fs = CrashFs::new(1);
        let (mut open, _) = open_spool(&fs, Options { queue_records: 200, ..options() }).unwrap();
        let records = (0..100).map(|_| Record::new(1, at_ms, vec![], vec![])).collect();
        let ticket = open.shared.append(Lane::First, records).unwrap();
        open.drain();
        assert!(ticket.wait().is_ok());
        drop(open);
        fs.disk().kill();
        fs
    };
    // 84 entries fit into the first page, the others lie in the second, and each is sound for itself.
    let (older, newer) = (written(1), written(2));
    let mut page = Vec::new();
    older.disk().edit("/spool/lane-0", |bytes| page.extend_from_slice(&bytes[8192..12_288]));
    newer.disk().edit("/spool/lane-0", |bytes| bytes[8192..12_288].copy_from_slice(&page));
    let (open, recovery) = open_spool(&newer, options()).unwrap();
    assert!(read_all(&open.shared, 0).0.is_empty());
    assert_eq!((recovery.truncated_records, recovery.corrupt_records), (100, 0));
}

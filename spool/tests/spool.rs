//! The spool as its users see it, on a real disk and with its real threads.
#![allow(clippy::unwrap_used)]

use pithead_spool::{
    AcknowledgeError, AppendError, Closed, Lane, NotDurable, OpenError, Options, Position, Record, Spool,
    Ticket,
};
use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

const KIB: u64 = 1024;

fn small() -> Options {
    let mut options = Options::default();
    options.segment_bytes = 64 * KIB;
    options.max_group_bytes = 16 * KIB;
    options.max_bytes = 16 * 64 * KIB;
    options.queue_bytes = 32 * KIB;
    options
}

fn record(text: &str) -> Record {
    Record::new(7, 1000, text.as_bytes().to_vec(), vec![b'.'; 700])
}

fn text(record: &Record) -> String {
    String::from_utf8(record.head.to_vec()).unwrap()
}

fn append(spool: &Spool, name: &str) -> Position {
    spool.append(Lane::First, record(name)).unwrap().wait().unwrap()
}

fn all(spool: &Spool, lane: Lane) -> Vec<String> {
    let mut reader = spool.reader(lane, spool.cursor(lane));
    let mut found = Vec::new();
    loop {
        let batch = reader.next_batch(5000).unwrap();
        if batch.is_empty() {
            return found;
        }
        found.extend(batch.records.iter().map(|(_, record)| text(record)));
    }
}

/// Enough of an executor: polls when woken.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

#[test]
fn what_goes_in_comes_out_in_order_also_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, recovery) = Spool::open(dir.path(), small()).unwrap();
    assert_eq!(recovery.records, 0);
    let names: Vec<String> = (0..200).map(|number| format!("record {number}")).collect();
    for (index, name) in names.iter().enumerate() {
        assert_eq!(append(&spool, name), Position(index as u64));
    }
    assert_eq!(all(&spool, Lane::First), names);
    spool.acknowledge(Lane::First, Position(79)).unwrap();
    spool.close().unwrap();
    assert!(matches!(spool.append(Lane::First, record("late")), Err(AppendError::Closed)));

    let (spool, recovery) = Spool::open(dir.path(), small()).unwrap();
    assert_eq!((recovery.records, recovery.corrupt_records, recovery.truncated_bytes), (120, 0, 0));
    assert_eq!(all(&spool, Lane::First), names[80..]);
    let heads: Vec<_> = spool.heads(Lane::First, Position(150)).collect();
    assert_eq!(heads.len(), 50);
    assert_eq!(
        (heads[0].position, heads[0].body_bytes, &heads[0].head[..]),
        (Position(150), 700, &b"record 150"[..])
    );
    assert_eq!(append(&spool, "and on"), Position(200));
}

#[test]
fn a_ticket_can_be_awaited_and_a_reader_waits_without_polling() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(dir.path(), small()).unwrap();
    let mut reader = spool.reader(Lane::First, Position::START);
    assert!(reader.next_batch(1000).unwrap().is_empty());
    assert!(!spool.changed(Lane::First, Position(0)).wait_timeout(Duration::from_millis(1)).unwrap());
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            block_on(reader.changed()).unwrap();
            reader.next_batch(1000).unwrap()
        });
        let position = block_on(spool.append(Lane::First, record("one")).unwrap()).unwrap();
        let batch = waiting.join().unwrap();
        assert_eq!(batch.last(), Some(position));
        assert_eq!(text(&batch.records[0].1), "one");

        let forever = scope.spawn(|| block_on(spool.changed(Lane::First, Position(99))));
        spool.close().unwrap();
        assert_eq!(forever.join().unwrap(), Err(Closed));
    });
}

#[test]
fn many_appenders_share_syncs_and_each_batch_stays_together() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(dir.path(), large()).unwrap();
    thread::scope(|scope| {
        for appender in 0..8 {
            let spool = &spool;
            scope.spawn(move || {
                let tickets: Vec<Ticket> = (0..100)
                    .map(|number| {
                        let batch =
                            (0..3).map(|part| record(&format!("{appender} {number} {part}"))).collect();
                        spool.append_all(Lane::First, batch).unwrap()
                    })
                    .collect();
                let positions: Vec<Position> =
                    tickets.into_iter().map(|ticket| ticket.wait().unwrap()).collect();
                assert!(positions.is_sorted());
            });
        }
    });
    let found = all(&spool, Lane::First);
    assert_eq!(found.len(), 2400);
    for batch in found.chunks(3) {
        let (name, _) = batch[0].rsplit_once(' ').unwrap();
        let parts: Vec<String> = (0..3).map(|part| format!("{name} {part}")).collect();
        assert_eq!(batch, parts);
    }
    let stats = spool.stats();
    assert_eq!(stats.appended_records, 2400);
    assert!(stats.groups < 800, "{} groups for 800 batches: nobody shared a sync", stats.groups);
}

fn large() -> Options {
    let mut options = Options::outbox();
    options.queue_bytes = 16 * KIB * KIB;
    options
}

#[test]
fn a_full_queue_is_refused_and_says_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = large();
    options.queue_records = 4;
    let (spool, _) = Spool::open(dir.path(), options).unwrap();
    let (mut refused, mut tickets) = (0, Vec::new());
    while tickets.len() < 200 {
        match spool.append(Lane::First, record("x")) {
            Ok(ticket) => tickets.push(ticket),
            Err(error @ AppendError::QueueFull { .. }) => {
                assert!(error.is_retryable());
                refused += 1;
                block_on(spool.room(Lane::First, 1, 800));
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(refused > 0, "the queue never filled");
    for _ in 0..50 {
        tickets.push(spool.append_blocking(Lane::First, record("y")).unwrap());
    }
    assert!(tickets.into_iter().all(|ticket| ticket.wait().is_ok()));
    assert_eq!(spool.end(Lane::First), Position(250));
}

#[test]
fn a_full_spool_refuses_before_it_writes_and_takes_again_when_drained() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(dir.path(), small()).unwrap();
    let mut kept = 0;
    let refusal = loop {
        match spool.append(Lane::First, record("x")) {
            Ok(ticket) => {
                ticket.wait().unwrap();
                kept += 1;
            }
            Err(error) => break error,
        }
    };
    assert!(matches!(refusal, AppendError::Full { needed: 4096, .. }), "{refusal}");
    assert!(matches!(spool.admit(Lane::First, 1, 10), Err(AppendError::Full { .. })));
    assert!(spool.stats().allocated_bytes <= 16 * 64 * KIB);
    assert_eq!(all(&spool, Lane::First).len() as u64, kept);
    // Room comes when the cursor is on disk and a segment is given back.
    spool.acknowledge(Lane::First, Position(kept / 2)).unwrap();
    assert!(spool.room(Lane::First, 1, 800).wait_timeout(Duration::from_secs(20)));
    append(&spool, "again");
    // Segments go round: much more than the budget passes through.
    for round in 0..1000 {
        let position = append(&spool, &round.to_string());
        spool.acknowledge(Lane::First, position).unwrap();
        spool.room(Lane::First, 1, 800).wait();
    }
    assert!(spool.stats().allocated_bytes <= 16 * 64 * KIB);
    spool.close().unwrap();
}

#[test]
fn lanes_have_their_own_positions_and_a_lane_that_is_not_open_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = small();
    options.lanes = 2;
    let (spool, _) = Spool::open(dir.path(), options).unwrap();
    for name in ["a", "b"] {
        spool.append(Lane::Second, record(name)).unwrap().wait().unwrap();
    }
    assert_eq!(append(&spool, "first"), Position(0));
    assert_eq!(all(&spool, Lane::Second), ["a", "b"]);
    assert!(matches!(spool.append(Lane::Third, record("c")), Err(AppendError::NoLane { lane: Lane::Third })));
    assert!(spool.reader(Lane::Third, Position::START).next_batch(1).is_err());
    assert_eq!(spool.changed(Lane::Third, Position::START).wait(), Err(Closed));
    drop(spool);
    // A lane with a backlog is served even when the options ask for fewer.
    let (spool, _) = Spool::open(dir.path(), small()).unwrap();
    assert_eq!((spool.lanes(), all(&spool, Lane::Second).len()), (2, 2));
}

#[test]
fn acknowledging_what_is_not_durable_is_refused_and_moves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(dir.path(), small()).unwrap();
    append(&spool, "a");
    let refused = spool.acknowledge(Lane::First, Position(1));
    assert_eq!(refused, Err(AcknowledgeError::NotDurable { position: Position(1), end: Position(1) }));
    assert_eq!(spool.cursor(Lane::First), Position(0));
    spool.acknowledge(Lane::First, Position(0)).unwrap();
    spool.acknowledge(Lane::First, Position(0)).unwrap();
    assert_eq!(spool.cursor(Lane::First), Position(1));
}

#[test]
fn the_oldest_record_and_the_fill_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(dir.path(), small()).unwrap();
    assert_eq!(spool.stats().oldest_ms, None);
    for at_ms in [50, 60, 70] {
        spool.append(Lane::First, Record::new(1, at_ms, vec![], vec![0; 100])).unwrap().wait().unwrap();
    }
    let stats = spool.stats();
    assert_eq!((stats.records, stats.oldest_ms), (3, Some(50)));
    spool.acknowledge(Lane::First, Position(1)).unwrap();
    assert_eq!((spool.stats().records, spool.stats().oldest_ms), (1, Some(70)));
    spool.acknowledge(Lane::First, Position(2)).unwrap();
    assert_eq!((spool.stats().records, spool.stats().oldest_ms), (0, None));
}

#[test]
fn a_record_that_no_group_holds_is_refused_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(dir.path(), small()).unwrap();
    let limit = spool.max_record_bytes() as usize;
    let too_large = spool.append(Lane::First, Record::new(1, 0, vec![1], vec![0; limit])).unwrap_err();
    assert!(matches!(too_large, AppendError::TooLarge { .. }) && !too_large.is_retryable());
    spool.append(Lane::First, Record::new(1, 0, vec![1], vec![0; limit - 1])).unwrap().wait().unwrap();
    assert!(matches!(
        spool.append_all(Lane::First, vec![record("x"); 40]),
        Err(AppendError::TooLarge { .. })
    ));
    assert!(matches!(spool.append_all(Lane::First, vec![]), Err(AppendError::Empty)));
}

#[test]
fn dropping_the_spool_makes_what_is_queued_durable() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(dir.path(), small()).unwrap();
    let ticket = spool.append(Lane::First, record("queued")).unwrap();
    drop(spool);
    assert_eq!(ticket.wait(), Ok::<_, NotDurable>(Position(0)));
    let (spool, _) = Spool::open(dir.path(), small()).unwrap();
    assert_eq!(all(&spool, Lane::First), ["queued"]);
}

#[test]
fn one_spool_at_a_time_opens_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(dir.path(), small()).unwrap();
    let error = Spool::open(dir.path(), small()).unwrap_err();
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    assert!(error.to_string().contains("in use by another process"));
    spool.close().unwrap();
    Spool::open(dir.path(), small()).unwrap();
}

#[test]
fn a_directory_that_is_missing_a_file_or_not_writable_is_named_for_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    assert!(matches!(Spool::open(&missing, small()), Err(OpenError::Missing { .. })));
    let mut create = small();
    create.create = true;
    Spool::open(&missing, create.clone()).unwrap();
    assert!(matches!(Spool::open(dir.path().join("a/b"), create), Err(OpenError::Missing { .. })));

    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    assert!(matches!(Spool::open(&file, small()), Err(OpenError::NotADirectory { .. })));

    // A place where nobody may write, not even root.
    if Path::new("/proc/self").exists() {
        let error = Spool::open("/proc/self", small()).unwrap_err();
        assert!(!matches!(error, OpenError::Locked { .. } | OpenError::Full { .. }), "{error}");
    }

    let mut contradictory = small();
    contradictory.max_bytes = contradictory.segment_bytes;
    assert!(matches!(Spool::open(dir.path(), contradictory), Err(OpenError::Options { .. })));
}

#[test]
fn a_segment_of_a_newer_version_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    drop(Spool::open(dir.path(), small()).unwrap());
    let path = dir.path().join("lane-0/seg-0000000000000000");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[8] = 2;
    bytes[12..16].fill(0);
    let sum = crc32c::crc32c(&bytes[..64]);
    bytes[12..16].copy_from_slice(&sum.to_le_bytes());
    std::fs::write(&path, &bytes).unwrap();
    assert!(matches!(Spool::open(dir.path(), small()), Err(OpenError::Newer { version: 2, .. })));
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

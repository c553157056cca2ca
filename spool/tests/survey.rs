//! A spool that is looked at: found as a start would find it, and left as it was.
#![allow(clippy::unwrap_used)]

use pithead_spool::{Lane, OpenError, Options, Position, Record, Recovery, Spool, Survey, Verify};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

const KIB: u64 = 1024;

fn options() -> Options {
    let mut options = Options::default();
    options.create = true;
    options.segment_bytes = 64 * KIB;
    options.max_group_bytes = 16 * KIB;
    options.max_bytes = 16 * 64 * KIB;
    options.queue_bytes = 32 * KIB;
    options.verify = Verify::Everything;
    options
}

fn record(number: u64) -> Record {
    Record::new(7, 1000, number.to_le_bytes().to_vec(), vec![number as u8; 700])
}

fn number(head: &[u8]) -> u64 {
    u64::from_le_bytes(head.try_into().unwrap())
}

/// So many records, each a group of its own.
fn filled(dir: &Path, records: u64) -> Spool {
    let (spool, _) = Spool::open(dir, options()).unwrap();
    for number in 0..records {
        spool.append(Lane::First, record(number)).unwrap().wait().unwrap();
    }
    spool
}

/// Every file with its bytes.
fn tree(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    tree_of(dir, &|_| true)
}

/// Every file that holds records or places. The owner's second thread makes spares and gives them other names whenever it
/// likes, also while somebody looks.
fn tree_but_spares(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    tree_of(dir, &|name| !name.starts_with("spare-"))
}

fn tree_of(dir: &Path, wanted: &dyn Fn(&str) -> bool) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if !wanted(&name) {
            continue;
        }
        if path.is_dir() {
            let below = tree_of(&path, wanted).into_iter();
            found.extend(below.map(|(below, bytes)| (format!("{name}/{below}"), bytes)));
        } else {
            found.insert(name, fs::read(&path).unwrap());
        }
    }
    found
}

fn put(dir: &Path, tree: &BTreeMap<String, Vec<u8>>) {
    for (name, bytes) in tree {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

fn verified(dir: &Path) -> Recovery {
    let survey = Survey::open(dir).unwrap();
    let total = survey.bytes();
    let mut last = 0;
    let report = survey
        .verify(|bytes| {
            assert!(bytes >= last && bytes <= total, "{bytes} after {last} of {total}");
            last = bytes;
        })
        .unwrap();
    assert_eq!(last, total);
    report
}

fn walked(survey: &Survey, from: Position) -> Vec<u64> {
    let mut walk = survey.walk(Lane::First, from);
    let mut found = Vec::new();
    loop {
        let batch = walk.next_batch(5_000).unwrap();
        if batch.is_empty() {
            return found;
        }
        found.extend(batch.records.iter().map(|(_, record)| number(&record.head)));
    }
}

#[test]
fn a_folder_that_was_never_worked_in_is_an_empty_spool() {
    let dir = tempfile::tempdir().unwrap();
    let survey = Survey::open(dir.path()).unwrap();
    let stats = survey.stats();
    assert_eq!((stats.records, stats.bytes, stats.lanes.len()), (0, 0, 0));
    assert_eq!(survey.found().records, 0);
}

#[test]
fn a_survey_reads_what_waits_and_what_is_still_kept_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let spool = filled(dir.path(), 40);
    spool.acknowledge(Lane::First, Position(9)).unwrap();
    // The cursor is written down with the next group.
    spool.append(Lane::First, record(40)).unwrap().wait().unwrap();
    let before = tree_but_spares(dir.path());
    // Its owner holds the lock and goes on holding it.
    let survey = Survey::open(dir.path()).unwrap();
    assert_eq!(walked(&survey, survey.cursor(Lane::First)), (10..=40).collect::<Vec<_>>());
    assert_eq!(walked(&survey, survey.start(Lane::First)), (0..=40).collect::<Vec<_>>());
    let stats = survey.stats();
    assert_eq!((stats.records, stats.oldest_ms), (31, Some(1000)));
    assert_eq!(verified(dir.path()).corrupt_records, 0);
    assert_eq!(tree_but_spares(dir.path()), before);
    spool.close().unwrap();
}

#[test]
fn flips_anywhere_are_named_as_a_start_would_name_them_and_left_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let spool = filled(dir.path(), 60);
    spool.acknowledge(Lane::First, Position(4)).unwrap();
    let running = tree_but_spares(dir.path());
    spool.close().unwrap();
    let closed = tree(dir.path());
    let mut draw = 0x9e37_79b9_u64;
    let mut next = |below: usize| {
        draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (draw >> 33) as usize % below
    };
    let (mut damaged, mut torn) = (0, 0);
    for round in 0..400 {
        let mut files = if round % 2 == 0 { running.clone() } else { closed.clone() };
        let names: Vec<String> = files.keys().filter(|name| name.contains("/seg-")).cloned().collect();
        for _ in 0..=next(3) {
            let file = files.get_mut(&names[next(names.len())]).unwrap();
            // Half of the flips hit the last segment, where tails are told from damage.
            let place = next(file.len());
            file[place] ^= 1 << next(8);
            if next(2) == 0 {
                let last = files.get_mut(names.last().unwrap()).unwrap();
                let place = next(last.len());
                last[place] ^= 0xff;
            }
        }
        let copy = tempfile::tempdir().unwrap();
        put(copy.path(), &files);
        let looked = verified(copy.path());
        assert_eq!(tree(copy.path()), files, "round {round}: looking has changed something");
        let (spool, recovered) = Spool::open(copy.path(), options()).unwrap();
        spool.close().unwrap();
        assert_eq!(looked, recovered, "round {round}");
        damaged += usize::from(looked.corrupt_records > 0);
        torn += usize::from(looked.truncated_records > 0);
    }
    assert!(damaged > 50 && torn > 0, "the flips hit too little: {damaged} damaged, {torn} torn");
}

#[test]
fn a_torn_tail_is_no_damage_and_the_same_bytes_behind_a_closing_mark_are() {
    let dir = tempfile::tempdir().unwrap();
    let spool = filled(dir.path(), 5);
    let running = tree_but_spares(dir.path());
    spool.close().unwrap();
    let tear = |mut files: BTreeMap<String, Vec<u8>>| {
        let segment = files.get_mut("lane-0/seg-0000000000000000").unwrap();
        // The body of the last record: five groups of a page each, behind the page of the header.
        segment[5 * 4096 + 400] ^= 1;
        let copy = tempfile::tempdir().unwrap();
        put(copy.path(), &files);
        verified(copy.path())
    };
    let torn = tear(running);
    assert_eq!((torn.records, torn.truncated_records, torn.corrupt_records), (4, 1, 0));
    let damaged = tear(tree(dir.path()));
    assert_eq!((damaged.records, damaged.truncated_records, damaged.corrupt_records), (5, 0, 1));
    assert_eq!((damaged.corrupt[0].from, damaged.corrupt[0].to), (Position(4), Position(5)));
    assert_eq!(number(&damaged.corrupt[0].heads[0].head), 4);
}

#[test]
fn beside_an_owner_that_appends_and_gives_back_nothing_is_taken_for_damage() {
    // Some 75 segments, of which all but the last four were given back and taken into use again.
    const UNTIL: u64 = 6_000;
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(dir.path(), options()).unwrap();
    /// So that a look that fails ends the owner as well.
    struct Ends<'a>(&'a AtomicBool);
    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let _ends = Ends(&done);
        scope.spawn(|| {
            let mut next = 0;
            while !done.load(Ordering::Relaxed) {
                let records: Vec<Record> = (next..next + 8).map(record).collect();
                let first = spool.append_all(Lane::First, records).unwrap().wait().unwrap();
                assert_eq!(first, Position(next));
                next += 8;
                if next > 200 {
                    spool.acknowledge(Lane::First, Position(next - 200)).unwrap();
                }
            }
        });
        let (mut seen, mut newest) = (0_u64, 0);
        while newest < UNTIL {
            let survey = Survey::open(dir.path()).unwrap();
            let mut walk = survey.walk(Lane::First, survey.start(Lane::First));
            loop {
                let batch = walk.next_batch(20_000).unwrap();
                if batch.is_empty() {
                    break;
                }
                assert_eq!(batch.corrupt, []);
                for (position, record) in batch.records {
                    assert_eq!(number(&record.head), position.0);
                    assert!(record.body.iter().all(|byte| *byte == position.0 as u8));
                    newest = newest.max(position.0);
                    seen += 1;
                }
            }
        }
        assert!(seen > UNTIL / 2, "{seen} records were seen of {newest}");
    });
    spool.close().unwrap();
}

#[test]
fn a_directory_that_is_missing_is_said_to_be() {
    let dir = tempfile::tempdir().unwrap();
    let missing = Survey::open(dir.path().join("spool")).unwrap_err();
    assert!(matches!(missing, OpenError::Missing { .. }), "{missing}");
    // An empty one is an empty spool: nobody has worked there yet.
    assert_eq!(Survey::open(dir.path()).unwrap().lanes(), 0);
}

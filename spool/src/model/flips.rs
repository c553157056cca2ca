//! One bit is not what it was: anywhere in a spool, also where segments have been written over.
//!
//! Short by default; `PITHEAD_LONG=1` flips 10,000 bits in a new spool and 10,000 in a worn one.

use super::*;

/// How many bits are flipped in each kind of spool.
fn flips() -> u64 {
    u64::from(cases(600).min(10_000))
}

/// A new spool of some segments, closed cleanly or not, and its records by lane and position.
pub(super) fn filled(seed: u64, close: bool) -> (CrashFs, [Vec<Record>; 2]) {
    let fs = CrashFs::new(seed);
    let roomy = Options { max_bytes: 100 * 40 * 1024, ..options() };
    let (mut open, _) = open_spool(&fs, roomy).unwrap();
    let mut written: [Vec<Record>; 2] = Default::default();
    for id in 0..90 {
        let lane = usize::from(id % 3 == 0);
        let size = fs.disk().random(2500) as usize;
        written[lane].push(record(id, size));
        let ticket = open.shared.append(Lane::from_index(lane).unwrap(), vec![record(id, size)]).unwrap();
        if fs.disk().random(3) == 0 {
            open.drain();
            assert!(matches!(ticket.answer(), Some(Ok(_))));
        }
    }
    open.drain();
    if close {
        open.shared.lock().closing = true;
        open.owner.close().unwrap();
    }
    drop(open._lock);
    fs.disk().kill();
    (fs, written)
}

#[test]
fn a_flipped_bit_costs_one_record_at_most_and_is_named() {
    for seed in 0..flips() {
        let (fs, written) = filled(seed, true);
        let place = fs.disk().flip();
        let verify = if seed % 2 == 0 { Verify::Heads } else { Verify::Everything };
        let (open, recovery) = open_spool(&fs, Options { verify, ..options() }).unwrap();
        assert_eq!(recovery.truncated_bytes, 0, "{place}: the closing mark proves the last group");
        let mut lost = 0;
        for (lane, written) in written.iter().enumerate() {
            let (found, corrupt) = read_all(&open.shared, lane);
            for (position, record) in &found {
                assert_eq!(*record, written[*position as usize], "{place}: a damaged record was served");
            }
            let missing =
                (0..written.len() as u64).filter(|at| found.iter().all(|(position, _)| position != at));
            for position in missing {
                lost += 1;
                let named = |range: &CorruptRange| range.from.0 <= position && position < range.to.0;
                assert!(corrupt.iter().any(named), "{place}: position {position} is lost without a word");
                assert!(
                    verify == Verify::Heads || recovery.corrupt.iter().any(named),
                    "{place}: recovery did not name {position}"
                );
            }
        }
        assert!(lost <= 1, "{place}: one bit cost {lost} records");
    }
}

/// What was ever written to one lane of a spool that has seen some wear.
#[derive(Default)]
struct Worn {
    written: Vec<Record>,
    /// Where its last group begins.
    last_group: u64,
    acknowledged: u64,
}

/// Commits everything that waits, and notes where each lane's last group begins.
fn commit_all(open: &mut Open, lanes: &mut [Worn; 2]) {
    let ends = |open: &Open| -> [u64; 2] { std::array::from_fn(|lane| open.shared.lock().lanes[lane].end) };
    loop {
        let before = ends(open);
        if open.owner.work(&open.shared.lock()) != Some(Work::Commit) {
            return;
        }
        open.owner.commit();
        for ((worn, before), after) in lanes.iter_mut().zip(before).zip(ends(open)) {
            if after > before {
                worn.last_group = before;
            }
        }
    }
}

/// A spool that has gone through its segments several times: header, groups and cursor stand where others stood before.
fn worn(seed: u64, close: bool) -> (CrashFs, [Worn; 2]) {
    let fs = CrashFs::new(seed);
    let (mut open, _) = open_spool(&fs, options()).unwrap();
    let mut lanes: [Worn; 2] = Default::default();
    for id in 0..160 {
        let lane = usize::from(id % 3 == 0);
        let size = fs.disk().random(2500) as usize;
        let append = open.shared.append(Lane::from_index(lane).unwrap(), vec![record(id, size)]);
        let ticket = append.expect("what is acknowledged makes room");
        lanes[lane].written.push(record(id, size));
        if fs.disk().random(3) != 0 && id % 12 != 11 {
            continue;
        }
        commit_all(&mut open, &mut lanes);
        assert!(matches!(ticket.answer(), Some(Ok(_))));
        for (lane, worn) in lanes.iter_mut().enumerate() {
            let mut state = open.shared.lock();
            let here = &mut state.lanes[lane];
            // A backlog of two to four segments stays.
            here.cursor = here.cursor.max(here.end.saturating_sub(20));
            worn.acknowledged = here.cursor;
        }
        if fs.disk().random(4) == 0 {
            open.owner.save_cursors();
        }
        (0..2).for_each(|lane| open.preparer.prepare(lane));
    }
    commit_all(&mut open, &mut lanes);
    if close {
        open.shared.lock().closing = true;
        open.owner.close().unwrap();
    }
    drop(open._lock);
    fs.disk().kill();
    (fs, lanes)
}

#[test]
fn a_flipped_bit_in_a_worn_spool_costs_what_it_hit_and_brings_back_nothing_old() {
    let mut places = [0; 3];
    for seed in 0..flips() {
        let closed = seed % 3 != 0;
        let (fs, lanes) = worn(seed, closed);
        let place = fs.disk().flip();
        let kind = ["seg-", "spare-", "cursor"].iter().position(|kind| place.starts_with(kind));
        places[kind.unwrap_or_else(|| panic!("{place} is no file of a spool"))] += 1;
        let verify = if seed % 2 == 0 { Verify::Heads } else { Verify::Everything };
        let (open, recovery) = open_spool(&fs, Options { verify, ..options() }).unwrap();
        let mut lost = 0;
        for (lane, worn) in lanes.iter().enumerate() {
            let cursor = open.shared.lock().lanes[lane].cursor;
            assert!(cursor <= worn.acknowledged, "{place}: the cursor leads");
            let (found, corrupt) = read_all(&open.shared, lane);
            assert!(found.is_sorted_by_key(|(position, _)| *position), "{place}");
            for (position, record) in &found {
                assert_eq!(
                    *record, worn.written[*position as usize],
                    "{place}: a damaged or old record was served"
                );
            }
            let there: std::collections::BTreeSet<u64> =
                found.iter().map(|(position, _)| *position).collect();
            for position in (worn.acknowledged..worn.written.len() as u64).filter(|at| !there.contains(at)) {
                // Of the last group of a spool that was not closed nobody can tell damage from a torn tail; nor, when the bit
                // is one of those by which a group head is known, that there was a group.
                let torn = !closed && position >= worn.last_group;
                let named = |range: &CorruptRange| range.from.0 <= position && position < range.to.0;
                assert!(
                    torn || corrupt.iter().any(named) || recovery.corrupt.iter().any(named),
                    "{place}: position {position} of lane {lane} is lost without a word"
                );
                lost += u64::from(!torn);
            }
        }
        assert!(lost <= 1, "{place}: one bit cost {lost} records");
    }
    assert!(places.iter().all(|hits| *hits > 0), "not every kind of file was hit: {places:?}");
}

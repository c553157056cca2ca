//! Lines against a model that remembers everything, restarts included; and each bound.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pithead_hop::ingest::lines::{
    HASHES_KEPT, IDLE, INTERVALS_PER_DEVICE, INTERVALS_PER_LINE, OWED_FOR, RUNS_BURST, SEQ_JUMP_MAX,
};
use pithead_hop::ingest::{LineRefusal, Lines, ShortHash, Unseen, Verdict};
use pithead_sealing::{DeviceId, Line, Run, Seq, StreamName};
use proptest::prelude::*;

const NOW: Duration = Duration::from_secs(1_000_000_000);

fn line(device: &str, stream: &str, run: u64) -> Line {
    Line {
        device: DeviceId::new(device).unwrap(),
        stream: StreamName::new(stream).unwrap(),
        run: Run::new(run).unwrap(),
    }
}

fn can() -> Line {
    line("truck-1", "can", 7)
}

fn seq(number: u64) -> Seq {
    Seq::new(number).unwrap()
}

fn hash(value: u64) -> ShortHash {
    ShortHash(value.to_be_bytes())
}

fn offer(lines: &mut Lines<u64>, line: &Line, number: u64, value: u64) -> Result<Verdict<u64>, LineRefusal> {
    lines.offer(line, seq(number), hash(value), NOW, || value)
}

fn store(lines: &mut Lines<u64>, line: &Line, number: u64) {
    assert_eq!(offer(lines, line, number, number), Ok(Verdict::New(number)), "{number}");
    lines.stored(line, seq(number));
}

fn decryptor() -> Lines<u64> {
    Lines::new(Unseen::Missing)
}

#[derive(Debug, Clone)]
enum Op {
    Offer {
        line: usize,
        number: u64,
        hash: u64,
    },
    Stored {
        line: usize,
        number: u64,
    },
    Failed {
        line: usize,
        number: u64,
    },
    Lost {
        line: usize,
        number: u64,
    },
    PassedOn {
        line: usize,
        number: u64,
    },
    Quarantined {
        line: usize,
        number: u64,
    },
    Declare {
        line: usize,
        from: u64,
        to: u64,
    },
    Refused {
        line: usize,
        number: u64,
    },
    /// What was in flight is gone.
    RestartFromCheckpoint,
    RestartFromRecords,
}

const NUMBERS: u64 = 24;

fn op() -> impl Strategy<Value = Op> {
    let at = || (0..2usize, 1..=NUMBERS);
    prop_oneof![
        8 => (at(), 1..3u64).prop_map(|((line, number), hash)| Op::Offer { line, number, hash }),
        6 => at().prop_map(|(line, number)| Op::Stored { line, number }),
        2 => at().prop_map(|(line, number)| Op::Failed { line, number }),
        2 => at().prop_map(|(line, number)| Op::Lost { line, number }),
        3 => at().prop_map(|(line, number)| Op::PassedOn { line, number }),
        1 => at().prop_map(|(line, number)| Op::Quarantined { line, number }),
        1 => (at(), 1..=NUMBERS).prop_map(|((line, from), to)| Op::Declare { line, from, to }),
        1 => at().prop_map(|(line, number)| Op::Refused { line, number }),
        1 => Just(Op::RestartFromCheckpoint),
        1 => Just(Op::RestartFromRecords),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Held {
    InFlight(u64),
    Spooled(u64),
    Passed(u64),
}

#[derive(Debug, Default)]
struct Model {
    held: BTreeMap<u64, Held>,
    declared: BTreeSet<u64>,
    refused: BTreeSet<u64>,
    owed: BTreeSet<u64>,
    newest: u64,
}

impl Model {
    fn durable(&self) -> BTreeSet<u64> {
        self.held
            .iter()
            .filter(|(_, held)| !matches!(held, Held::InFlight(_)))
            .map(|(number, _)| *number)
            .collect()
    }

    fn missing(&self) -> BTreeSet<u64> {
        let durable = self.durable();
        let known = |n: &u64| durable.contains(n) || self.declared.contains(n) || self.refused.contains(n);
        (1..=self.newest).filter(|n| !known(n)).collect()
    }
}

fn numbers(set: &pithead_hop::ingest::IntervalSet) -> BTreeSet<u64> {
    set.iter().flat_map(|range| range.first..=range.last).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn lines_remember_what_a_model_remembers(ops in prop::collection::vec(op(), 1..80)) {
        let names = [can(), line("truck-1", "status", 7)];
        let mut lines = decryptor();
        let mut models = [Model::default(), Model::default()];
        for op in ops {
            match op {
                Op::Offer { line, number, hash } => {
                    let model = &mut models[line];
                    if let Some(&first) = model.owed.first()
                        && first < number
                        && !model.held.contains_key(&number)
                    {
                        let refused = Err(LineRefusal::Overtakes { first });
                        prop_assert_eq!(offer(&mut lines, &names[line], number, hash), refused);
                        continue;
                    }
                    model.owed.remove(&number);
                    let expected = match model.held.get(&number) {
                        None => Verdict::New(hash),
                        Some(Held::InFlight(first)) if *first == hash => Verdict::InFlight(hash),
                        Some(Held::Spooled(first) | Held::Passed(first)) if *first == hash => {
                            Verdict::Duplicate { unverified: false }
                        }
                        Some(_) => Verdict::Conflict,
                    };
                    prop_assert_eq!(offer(&mut lines, &names[line], number, hash), Ok(expected));
                    model.held.entry(number).or_insert(Held::InFlight(hash));
                }
                Op::Stored { line, number } => {
                    lines.stored(&names[line], seq(number));
                    let model = &mut models[line];
                    if let Some(held) = model.held.get_mut(&number) && let Held::InFlight(hash) = *held {
                        *held = Held::Spooled(hash);
                        model.newest = model.newest.max(number);
                    }
                }
                Op::Failed { line, number } => {
                    lines.failed(&names[line], seq(number));
                    if matches!(models[line].held.get(&number), Some(Held::InFlight(_))) {
                        models[line].held.remove(&number);
                    }
                }
                Op::Lost { line, number } => {
                    lines.lost(&names[line], seq(number));
                    if matches!(models[line].held.get(&number), Some(Held::InFlight(_))) {
                        models[line].held.remove(&number);
                        models[line].owed.insert(number);
                    }
                }
                Op::PassedOn { line, number } => {
                    lines.passed_on(&names[line], seq(number));
                    let model = &mut models[line];
                    if let Some(held) = model.held.get_mut(&number)
                        && let Held::Spooled(hash) | Held::InFlight(hash) = *held
                    {
                        // The next hop may be faster than whoever says that it is stored here.
                        *held = Held::Passed(hash);
                        model.newest = model.newest.max(number);
                    }
                }
                Op::Quarantined { line, number } => {
                    lines.quarantined(&names[line], seq(number));
                    if !matches!(models[line].held.get(&number), Some(Held::InFlight(_))) {
                        models[line].held.remove(&number);
                    }
                }
                Op::Declare { line, from, to } => {
                    prop_assert_eq!(lines.declare(&names[line], seq(from), seq(to), NOW), from <= to);
                    models[line].declared.extend(from..=to);
                    if from <= to {
                        let Model { declared, owed, .. } = &mut models[line];
                        owed.retain(|number| !declared.contains(number));
                    }
                }
                Op::Refused { line, number } => {
                    prop_assert!(lines.refused(&names[line], seq(number), NOW));
                    models[line].refused.insert(number);
                    models[line].owed.remove(&number);
                    models[line].newest = models[line].newest.max(number);
                }
                Op::RestartFromCheckpoint => {
                    lines = Lines::decode(&lines.encode(NOW), Unseen::Missing, NOW).unwrap();
                    for (name, model) in names.iter().zip(&mut models) {
                        model.owed.clear();
                        model.held.retain(|_, held| !matches!(held, Held::InFlight(_)));
                        for (number, held) in &model.held {
                            if let Held::Spooled(value) = held {
                                lines.recall(name, seq(*number), hash(*value), NOW);
                            }
                        }
                    }
                }
                Op::RestartFromRecords => {
                    lines = decryptor();
                    for (name, model) in names.iter().zip(&mut models) {
                        model.owed.clear();
                        model.held.retain(|_, held| !matches!(held, Held::InFlight(_)));
                        model.declared.clear();
                        model.refused.clear();
                        model.newest = model.held.keys().last().copied().unwrap_or(0);
                        for (number, held) in &model.held {
                            let (Held::InFlight(value) | Held::Spooled(value) | Held::Passed(value)) = held;
                            lines.recall(name, seq(*number), hash(*value), NOW);
                            if matches!(held, Held::Passed(_)) {
                                lines.passed_on(name, seq(*number));
                            }
                        }
                    }
                }
            }
            for (name, model) in names.iter().zip(&models) {
                let Some(view) = lines.view(name) else {
                    prop_assert!(model.held.is_empty());
                    continue;
                };
                prop_assert_eq!(numbers(&view.held), model.durable());
                prop_assert_eq!(numbers(&view.missing), model.missing());
                prop_assert_eq!(view.newest, model.newest);
                let durable = model.durable();
                prop_assert_eq!(numbers(&view.declared), model.declared.difference(&durable).copied().collect());
            }
        }
        for (name, model) in names.iter().zip(&models) {
            let durable = model.durable();
            for first in 1..=NUMBERS {
                let expected = (first..).take_while(|n| durable.contains(n)).last().unwrap_or(0);
                prop_assert_eq!(lines.hello(name, seq(first), NOW), expected);
            }
        }
    }

    #[test]
    fn no_bytes_make_a_checkpoint_but_those_that_were_encoded(
        at in 0usize..400, flip in 1u8..=255, cut in 0usize..400,
    ) {
        let mut lines = decryptor();
        for number in [1, 2, 5, 9] {
            store(&mut lines, &can(), number);
            store(&mut lines, &line("truck-2", "status", 8), number);
        }
        let bytes = lines.encode(NOW);
        let cut = cut % bytes.len();
        prop_assert!(Lines::<u64>::decode(&bytes[..cut], Unseen::Missing, NOW).is_err());
        let mut damaged = bytes.clone();
        let at = at % damaged.len();
        damaged[at] ^= flip;
        // It may be another checkpoint; it is never a panic, and what reads writes the same bytes again.
        if let Ok(read) = Lines::<u64>::decode(&damaged, Unseen::Missing, NOW) {
            prop_assert!(read.encode(NOW).len() == damaged.len());
        }
    }
}

#[test]
fn the_bytes_of_a_checkpoint_are_fixed() {
    let mut lines = decryptor();
    for number in [1, 2, 4] {
        store(&mut lines, &can(), number);
    }
    lines.passed_on(&can(), seq(1));
    assert!(lines.declare(&can(), seq(3), seq(3), NOW));
    let later = NOW + Duration::from_secs(2);
    let expected = [
        "50484c01",
        "00000001",
        "07",
        "747275636b2d31",
        // credit: 600 runs of a minute, less one, and two seconds
        "0000000002246e70",
        "00000001",
        "0000000000000007",
        "03",
        "63616e",
        "0000000000000001",
        "0000000000000004",
        "00000000000007d0",
        "00000002",
        "0000000000000001",
        "0000000000000002",
        "0000000000000004",
        "0000000000000004",
        "00000001",
        "0000000000000003",
        "0000000000000003",
        "00000000",
        // the hash of what has left; the others are recalled from where they wait
        "00000001",
        "0000000000000001",
        "0000000000000001",
    ]
    .concat();
    let bytes: String = lines.encode(later).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(bytes, expected);
}

#[test]
fn a_backlog_of_any_length_does_not_push_the_hashes_of_what_has_left_out_of_a_checkpoint() {
    let mut lines = decryptor();
    let waiting = 2..=HASHES_KEPT as u64 + 2;
    for number in 1..=*waiting.end() {
        store(&mut lines, &can(), number);
    }
    lines.passed_on(&can(), seq(1));
    let mut lines: Lines<u64> = Lines::decode(&lines.encode(NOW), Unseen::Missing, NOW).unwrap();
    for number in waiting {
        lines.recall(&can(), seq(number), hash(number), NOW);
    }
    assert_eq!(offer(&mut lines, &can(), 1, 0), Ok(Verdict::Conflict));
    assert_eq!(offer(&mut lines, &can(), 1, 1), Ok(Verdict::Duplicate { unverified: false }));
}

#[test]
fn a_gateway_begins_a_line_where_the_device_says() {
    let mut lines: Lines<u64> = Lines::new(Unseen::Elsewhere);
    assert_eq!(lines.hello(&can(), seq(100), NOW), 0);
    store(&mut lines, &can(), 102);
    let missing = |lines: &Lines<u64>| numbers(&lines.view(&can()).unwrap().missing);
    assert_eq!(missing(&lines), BTreeSet::from([100, 101]));
    // What comes from below is welcome, and nothing below is missing.
    store(&mut lines, &can(), 50);
    assert_eq!(missing(&lines), BTreeSet::from([100, 101]));
    // Without a Hello it begins with what came first.
    let other = line("truck-2", "can", 9);
    store(&mut lines, &other, 1 << 30);
    assert!(lines.view(&other).unwrap().missing.is_empty());
}

#[test]
fn a_number_in_flight_is_not_a_promise() {
    let mut lines = decryptor();
    store(&mut lines, &can(), 1);
    assert_eq!(offer(&mut lines, &can(), 2, 2), Ok(Verdict::New(2)));
    store(&mut lines, &can(), 3);
    assert_eq!(lines.hello(&can(), Seq::FIRST, NOW), 1);
    lines.failed(&can(), seq(2));
    assert_eq!(lines.hello(&can(), Seq::FIRST, NOW), 1);
    store(&mut lines, &can(), 2);
    assert_eq!(lines.hello(&can(), Seq::FIRST, NOW), 3);
}

#[test]
fn a_number_may_jump_by_2_to_the_32_and_no_further() {
    let mut lines = decryptor();
    let refused = |newest| Err(LineRefusal::SeqJump { newest });
    assert_eq!(offer(&mut lines, &can(), SEQ_JUMP_MAX + 1, 1), refused(0));
    assert!(lines.is_empty(), "a refusal opens no line");
    assert_eq!(offer(&mut lines, &can(), SEQ_JUMP_MAX, 1), Ok(Verdict::New(1)));
    assert_eq!(offer(&mut lines, &can(), 2 * SEQ_JUMP_MAX + 1, 1), refused(SEQ_JUMP_MAX));
    assert_eq!(offer(&mut lines, &can(), 2 * SEQ_JUMP_MAX, 1), Ok(Verdict::New(1)));
}

#[test]
fn a_gateway_takes_no_first_number_that_the_far_end_would_refuse_unless_the_hello_named_it() {
    let mut lines: Lines<u64> = Lines::new(Unseen::Elsewhere);
    assert_eq!(offer(&mut lines, &can(), SEQ_JUMP_MAX + 1, 1), Err(LineRefusal::SeqJump { newest: 0 }));
    assert_eq!(lines.hello(&can(), seq(SEQ_JUMP_MAX + 1), NOW), 0);
    assert_eq!(offer(&mut lines, &can(), SEQ_JUMP_MAX + 1, 1), Ok(Verdict::New(1)));
}

#[test]
fn a_line_with_too_many_holes_takes_what_fills_one() {
    let mut lines = decryptor();
    for number in 1..=INTERVALS_PER_LINE as u64 {
        store(&mut lines, &can(), 2 * number);
    }
    let end = 2 * INTERVALS_PER_LINE as u64;
    let refused = Err(LineRefusal::TooManyGaps { lowest_missing: Some(1) });
    assert_eq!(offer(&mut lines, &can(), end + 2, 0), refused);
    store(&mut lines, &can(), end + 1);
    store(&mut lines, &can(), 3);
    store(&mut lines, &can(), end + 3);
    // Another line of the device has its own.
    store(&mut lines, &line("truck-1", "status", 7), 2);
}

#[test]
fn a_device_has_8192_intervals_in_all_and_each_line_its_first() {
    let mut lines = decryptor();
    let mut used = 0;
    'full: for run in 1.. {
        for number in 1..=INTERVALS_PER_LINE as u64 {
            match offer(&mut lines, &line("truck-1", "can", run), 2 * number, 0) {
                Ok(_) => used += usize::from(number > 1),
                Err(refusal) => {
                    assert_eq!(refusal, LineRefusal::TooManyGaps { lowest_missing: Some(1) });
                    break 'full;
                }
            }
        }
    }
    assert_eq!(used, INTERVALS_PER_DEVICE);
    assert!(offer(&mut lines, &line("truck-1", "can", 1 << 20), 5, 0).is_ok());
    assert!(offer(&mut lines, &line("truck-2", "can", 1), 5, 0).is_ok());
}

#[test]
fn a_device_has_16_streams() {
    let mut lines = decryptor();
    for stream in 0..16 {
        store(&mut lines, &line("truck-1", &format!("s{stream}"), 7), 1);
    }
    assert_eq!(offer(&mut lines, &line("truck-1", "one-more", 7), 1, 1), Err(LineRefusal::TooManyStreams));
    store(&mut lines, &line("truck-1", "s3", 8), 1);
    store(&mut lines, &line("truck-2", "one-more", 7), 1);
}

#[test]
fn a_loop_of_one_shot_commands_works_and_a_flood_of_runs_waits() {
    let mut lines = decryptor();
    for run in 1..=u64::from(RUNS_BURST) {
        store(&mut lines, &line("truck-1", "can", run), 1);
        // A second stream of a known run costs nothing.
        store(&mut lines, &line("truck-1", "status", run), 1);
    }
    let next = line("truck-1", "can", 9_999);
    let refused = LineRefusal::TooManyRuns { retry_after: Duration::from_secs(60) };
    assert_eq!(offer(&mut lines, &next, 1, 1), Err(refused));
    // A restart gives no new burst.
    let mut lines: Lines<u64> = Lines::decode(&lines.encode(NOW), Unseen::Missing, NOW).unwrap();
    assert_eq!(offer(&mut lines, &next, 1, 1), Err(refused));
    let later = NOW + Duration::from_secs(60);
    assert_eq!(lines.offer(&next, seq(1), hash(1), later, || 1), Ok(Verdict::New(1)));
}

#[test]
fn the_last_1024_hashes_tell_a_resend_from_other_bytes() {
    let mut lines = decryptor();
    let last = HASHES_KEPT as u64 + 5;
    for number in 1..=last {
        store(&mut lines, &can(), number);
    }
    // Everything that is still here is known by its hash, whatever its number.
    assert_eq!(offer(&mut lines, &can(), 1, 1), Ok(Verdict::Duplicate { unverified: false }));
    (1..=last).for_each(|number| lines.passed_on(&can(), seq(number)));
    assert_eq!(offer(&mut lines, &can(), 5, 0), Ok(Verdict::Duplicate { unverified: true }));
    assert_eq!(offer(&mut lines, &can(), 6, 6), Ok(Verdict::Duplicate { unverified: false }));
    assert_eq!(offer(&mut lines, &can(), 6, 0), Ok(Verdict::Conflict));
    let mut lines: Lines<u64> = Lines::decode(&lines.encode(NOW), Unseen::Missing, NOW).unwrap();
    assert_eq!(offer(&mut lines, &can(), 5, 0), Ok(Verdict::Duplicate { unverified: true }));
    assert_eq!(offer(&mut lines, &can(), 6, 0), Ok(Verdict::Conflict));
}

#[test]
fn a_line_that_is_quiet_and_empty_goes_and_comes_back_with_its_memory() {
    let mut lines = decryptor();
    let (quiet, waiting) = (can(), line("truck-1", "status", 7));
    store(&mut lines, &quiet, 3);
    lines.passed_on(&quiet, seq(3));
    store(&mut lines, &waiting, 1);
    let later = NOW + IDLE + Duration::from_secs(1);
    let taken = lines.take_idle(later - IDLE, later);
    assert_eq!(taken.iter().map(|(line, _)| line).collect::<Vec<_>>(), [&quiet]);
    assert!(!lines.contains(&quiet) && lines.contains(&waiting));
    assert_eq!(lines.put_back(&taken[0].1, later), Ok(quiet.clone()));
    assert_eq!(offer(&mut lines, &quiet, 3, 3), Ok(Verdict::Duplicate { unverified: false }));
    assert!(lines.put_back(&taken[0].1[1..], later).is_err());
}

#[test]
fn what_did_not_get_to_the_disk_comes_before_what_lies_beyond_it() {
    let lost = |numbers: [u64; 2]| {
        let mut lines = decryptor();
        (1..=4).for_each(|number| store(&mut lines, &can(), number));
        for number in numbers {
            assert_eq!(offer(&mut lines, &can(), number, number), Ok(Verdict::New(number)));
        }
        numbers.into_iter().for_each(|number| lines.lost(&can(), seq(number)));
        lines
    };
    let due = |first| Err(LineRefusal::Overtakes { first });

    let mut lines = lost([5, 6]);
    assert_eq!(offer(&mut lines, &can(), 7, 7), due(5));
    assert_eq!(offer(&mut lines, &can(), 6, 6), due(5));
    // What is here already is no new number, and neither is a line of its own.
    assert_eq!(offer(&mut lines, &can(), 4, 4), Ok(Verdict::Duplicate { unverified: false }));
    assert_eq!(offer(&mut lines, &line("truck-1", "status", 7), 9, 9), Ok(Verdict::New(9)));
    for number in [5, 6, 7] {
        assert_eq!(offer(&mut lines, &can(), number, number), Ok(Verdict::New(number)));
    }

    // The device says that it is past them: it begins behind them, or has dropped them.
    let mut lines = lost([5, 6]);
    lines.hello(&can(), seq(7), NOW);
    assert_eq!(offer(&mut lines, &can(), 7, 7), Ok(Verdict::New(7)));
    let mut lines = lost([5, 6]);
    assert!(lines.declare(&can(), seq(5), seq(5), NOW));
    assert_eq!(offer(&mut lines, &can(), 7, 7), due(6));

    // Or it has given them up without a word.
    let mut lines = lost([5, 6]);
    let later = NOW + OWED_FOR + Duration::from_millis(1);
    assert_eq!(lines.offer(&can(), seq(7), hash(7), later, || 7), Ok(Verdict::New(7)));
}

#[test]
fn asking_about_an_envelope_takes_nothing_and_forgets_nothing() {
    let mut lines: Lines<u64> = Lines::new(Unseen::Elsewhere);
    store(&mut lines, &can(), 1);
    offer(&mut lines, &can(), 2, 2).unwrap();
    lines.lost(&can(), seq(2));
    let mut judge = |number, value| lines.judge(&can(), seq(number), hash(value), NOW);
    assert_eq!(judge(1, 1), Ok(Some(Verdict::Duplicate { unverified: false })));
    assert_eq!(judge(1, 9), Ok(Some(Verdict::Conflict)));
    // Twice the same answer: the number was not taken by the first.
    assert_eq!((judge(2, 2), judge(2, 7)), (Ok(None), Ok(None)));
    // And it is still owed.
    assert_eq!(judge(3, 3), Err(LineRefusal::Overtakes { first: 2 }));
    assert_eq!(offer(&mut lines, &can(), 3, 3), Err(LineRefusal::Overtakes { first: 2 }));
    assert_eq!(offer(&mut lines, &can(), 2, 2), Ok(Verdict::New(2)));
}

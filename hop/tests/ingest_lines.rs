//! Lines against a model that remembers everything, restarts included; and each bound.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pithead_hop::ingest::lines::{
    DECLARED_PER_DEVICE, DECLARED_PER_LINE, HASHES_KEPT, IDLE, INTERVALS_PER_DEVICE, INTERVALS_PER_LINE,
    OWED_FOR, RUNS_BURST, RUNS_SPOKEN_OF_BURST, SEQ_JUMP_MAX, WAITING_INTERVALS,
};
use pithead_hop::ingest::{Interval, LineRefusal, Lines, ShortHash, Unseen, Verdict};
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

/// Stored, and passed on at once.
fn deliver(lines: &mut Lines<u64>, line: &Line, number: u64) {
    store(lines, line, number);
    lines.passed_on(line, seq(number));
}

fn declare(lines: &mut Lines<u64>, line: &Line, from: u64, to: u64) -> Option<u64> {
    lines.declare(line, seq(from), seq(to), NOW)
}

fn restarted(lines: &Lines<u64>, unseen: Unseen) -> Lines<u64> {
    Lines::decode(&lines.encode(NOW), unseen, NOW).unwrap()
}

/// Bytes that a line's checkpoint takes at most beside its sets and hashes, and one set's interval.
const LINE_BYTES: usize = 200;
const INTERVAL_BYTES: usize = 16;

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
    contested: bool,
}

impl Model {
    fn durable(&self) -> BTreeSet<u64> {
        self.held
            .iter()
            .filter(|(_, held)| !matches!(held, Held::InFlight(_)))
            .map(|(number, _)| *number)
            .collect()
    }

    /// It is durable: whatever was said of it, it did come.
    fn came(&mut self, number: u64) {
        self.declared.remove(&number);
        self.refused.remove(&number);
        self.newest = self.newest.max(number);
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
                    model.contested |= expected == Verdict::Conflict;
                    prop_assert_eq!(offer(&mut lines, &names[line], number, hash), Ok(expected));
                    model.held.entry(number).or_insert(Held::InFlight(hash));
                }
                Op::Stored { line, number } => {
                    lines.stored(&names[line], seq(number));
                    let model = &mut models[line];
                    if let Some(held) = model.held.get_mut(&number) && let Held::InFlight(hash) = *held {
                        *held = Held::Spooled(hash);
                        model.came(number);
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
                        model.came(number);
                    }
                }
                Op::Quarantined { line, number } => {
                    lines.quarantined(&names[line], seq(number));
                    if !matches!(models[line].held.get(&number), Some(Held::InFlight(_))) {
                        models[line].held.remove(&number);
                    }
                }
                Op::Declare { line, from, to } => {
                    let model = &mut models[line];
                    let durable = model.durable();
                    let lost: Vec<u64> = (from..=to)
                        .filter(|n| !durable.contains(n) && !model.refused.contains(n) && !model.declared.contains(n))
                        .collect();
                    let explained = (from <= to).then_some(lost.len() as u64);
                    prop_assert_eq!(lines.declare(&names[line], seq(from), seq(to), NOW), explained);
                    model.declared.extend(lost);
                    model.owed.retain(|number| !(from..=to).contains(number));
                }
                Op::Refused { line, number } => {
                    prop_assert!(lines.refused(&names[line], seq(number), NOW));
                    let model = &mut models[line];
                    model.owed.remove(&number);
                    if !model.durable().contains(&number) {
                        model.declared.remove(&number);
                        model.refused.insert(number);
                        model.newest = model.newest.max(number);
                    }
                }
                Op::RestartFromCheckpoint => {
                    lines = Lines::decode(&lines.encode(NOW), Unseen::Missing, NOW).unwrap();
                    for (name, model) in names.iter().zip(&mut models) {
                        model.owed.clear();
                        model.contested = false;
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
                        model.contested = false;
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
                prop_assert_eq!(&numbers(&view.declared), &model.declared);
                prop_assert_eq!(&numbers(&view.refused), &model.refused);
                prop_assert_eq!((view.came(), view.declared_in_all()), (model.durable().len() as u64, model.declared.len() as u64));
            }
        }
        let unexplained: u64 = lines.unexplained().map(|(_, missing, _)| missing).sum();
        let on_its_way = |model: &Model, n: &u64| model.held.contains_key(n);
        let expected = models.iter().map(|model| model.missing().iter().filter(|n| !on_its_way(model, n)).count() as u64);
        prop_assert_eq!(unexplained, expected.sum::<u64>());
        let declared: u64 = lines.unexplained().map(|(_, _, declared)| declared).sum();
        prop_assert_eq!(declared, models.iter().map(|model| model.declared.len() as u64).sum::<u64>());
        for (name, model) in names.iter().zip(&models) {
            let durable = model.durable();
            for first in 1..=NUMBERS {
                let resent = (first..).take_while(|n| durable.contains(n) && !model.contested);
                let expected = resent.last().unwrap_or(0);
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
    assert_eq!(lines.declare(&can(), seq(3), seq(3), NOW), Some(1));
    let later = NOW + Duration::from_secs(2);
    let expected = [
        "50484c02",
        "00000001",
        "07",
        "747275636b2d31",
        // credit: 600 runs of a minute, less one, and two seconds; 2,048 spoken of, and two seconds
        "0000000002246e70",
        "00000000075307d0",
        "00000001",
        "0000000000000007",
        "03",
        "63616e",
        "0000000000000001",
        "0000000000000004",
        "00000000000007d0",
        // nothing is settled
        "0000000000000000",
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

/// Format 01, as it was written until a line had settled ranges. Here what was declared came after all, and what was refused too.
#[test]
fn a_checkpoint_of_the_first_format_reads_and_what_came_wins() {
    let line = [
        "0000000000000007",
        "03",
        "63616e",
        "0000000000000001",
        "0000000000000004",
        "00000000000007d0",
        // held 1 to 2, and 4; declared 2 to 3; refused 1 and 3
        "00000002",
        "0000000000000001",
        "0000000000000002",
        "0000000000000004",
        "0000000000000004",
        "00000001",
        "0000000000000002",
        "0000000000000003",
        "00000002",
        "0000000000000001",
        "0000000000000001",
        "0000000000000003",
        "0000000000000003",
        "00000001",
        "0000000000000001",
        "0000000000000001",
    ]
    .concat();
    let bytes = |hex: String| -> Vec<u8> {
        (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect()
    };
    let all = bytes(format!("50484c010000000107747275636b2d31{}00000001{line}", "0000000002246e70"));
    let lines: Lines<u64> = Lines::decode(&all, Unseen::Missing, NOW).unwrap();
    let view = lines.view(&can()).unwrap();
    let sets = [&view.held, &view.declared, &view.refused, &view.missing].map(numbers);
    assert_eq!(sets, [BTreeSet::from([1, 2, 4]), BTreeSet::new(), BTreeSet::from([3]), BTreeSet::new()]);
    // What was overlapping is not written so again, and read back it is the same.
    assert_eq!(restarted(&lines, Unseen::Missing).view(&can()), lines.view(&can()));
    let idle = bytes(format!("5048490107747275636b2d31{line}"));
    let mut lines = decryptor();
    assert_eq!(lines.put_back(&idle, NOW), Ok(can()));
    assert_eq!(lines.view(&can()).map(|view| view.held), Some(view.held));
    // Formats to come are not guessed at.
    let mut newer = all;
    newer[3] = 3;
    assert!(Lines::<u64>::decode(&newer, Unseen::Missing, NOW).is_err());
}

#[test]
fn a_checkpoint_whose_sets_share_a_number_or_that_settled_more_than_it_holds_is_none() {
    let mut lines = decryptor();
    (1..=3).for_each(|number| deliver(&mut lines, &can(), number));
    assert_eq!(declare(&mut lines, &can(), 4, 9), Some(6));
    let good = lines.encode(NOW);
    // From the end: hashes, their count, refused, declared.
    let declared = good.len() - 3 * 16 - 4 - 4 - INTERVAL_BYTES;
    let settled = declared - 4 - INTERVAL_BYTES - 4 - 8;
    let with = |at: usize, value: u64| {
        let mut bytes = good.clone();
        bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
        Lines::<u64>::decode(&bytes, Unseen::Missing, NOW).is_ok()
    };
    assert!(with(declared, 4) && with(settled, 3));
    assert!(!with(declared, 3) && !with(settled, 4));
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

/// A device that hears that its number is held throws the envelope away. If the answer "conflict" was lost, what is held is
/// somebody else's.
#[test]
fn of_a_line_with_a_conflict_nothing_is_said_to_be_held() {
    let mut lines = decryptor();
    for number in 1..=3 {
        store(&mut lines, &can(), number);
    }
    assert_eq!(lines.hello(&can(), seq(2), NOW), 3);
    assert_eq!(offer(&mut lines, &can(), 2, 77), Ok(Verdict::Conflict));
    assert_eq!(lines.hello(&can(), seq(2), NOW), 0);
    assert_eq!(offer(&mut lines, &can(), 3, 3), Ok(Verdict::Duplicate { unverified: false }));
    assert_eq!(lines.hello(&can(), seq(3), NOW), 0, "the next may be another's as well");
    // A start learns it from the conflict that was kept; another line is as it was.
    let mut lines = restarted(&lines, Unseen::Missing);
    store(&mut lines, &line("truck-1", "gps", 7), 1);
    lines.contest(&can());
    assert_eq!(lines.hello(&can(), seq(2), NOW), 0);
    assert_eq!(lines.hello(&line("truck-1", "gps", 7), Seq::FIRST, NOW), 1);
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
    assert_eq!(declare(&mut lines, &can(), 5, 5), Some(1));
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

/// Twenty seconds of radio in every eighty, for a hundred days: ten envelopes come, ten are dropped and declared.
#[test]
fn a_hundred_thousand_cycles_of_loss_that_is_explained_refuse_nothing_and_stay_small() {
    const CYCLES: u64 = 100_000;
    let forgotten = [10, 70_000].map(|cycle| cycle * 20 + 15);
    for unseen in [Unseen::Missing, Unseen::Elsewhere] {
        let mut lines = Lines::new(unseen);
        let mut largest = 0;
        for cycle in 0..CYCLES {
            let first = cycle * 20 + 1;
            (first..first + 10).for_each(|number| deliver(&mut lines, &can(), number));
            // Once early and once late, a number is lost and the device does not know it.
            let (from, to) = (first + 10, first + 19);
            match forgotten.into_iter().find(|number| (from..=to).contains(number)) {
                Some(hole) => {
                    assert_eq!(declare(&mut lines, &can(), from, hole - 1), Some(hole - from));
                    assert_eq!(declare(&mut lines, &can(), hole + 1, to), Some(to - hole));
                }
                None => assert_eq!(declare(&mut lines, &can(), from, to), Some(10)),
            }
            if cycle % 9_999 == 0 {
                largest = largest.max(lines.encode(NOW).len());
                lines = restarted(&lines, unseen);
            }
        }
        let most = LINE_BYTES + (2 * DECLARED_PER_LINE + 4) * INTERVAL_BYTES + HASHES_KEPT * 16;
        assert!(largest <= most, "{largest} bytes of {most}");
        deliver(&mut lines, &can(), CYCLES * 20 + 1);
        let view = lines.view(&can()).unwrap();
        assert_eq!((view.came(), view.declared_in_all()), (CYCLES * 10 + 1, CYCLES * 10 - 2));
        assert_eq!(
            numbers(&view.missing),
            BTreeSet::from(forgotten),
            "a real hole among what is settled is still named"
        );
        assert_eq!(view.declared.intervals(), DECLARED_PER_LINE);
        // The hole is filled by what comes late, a copy of what was settled is not told apart, and newer data wins.
        assert_eq!(offer(&mut lines, &can(), 12, 1), Ok(Verdict::Duplicate { unverified: true }));
        assert_eq!(offer(&mut lines, &can(), 2, 1), Ok(Verdict::Duplicate { unverified: true }));
        deliver(&mut lines, &can(), forgotten[0]);
        deliver(&mut lines, &can(), CYCLES * 20);
        let view = lines.view(&can()).unwrap();
        assert_eq!((view.came(), view.declared_in_all()), (CYCLES * 10 + 3, CYCLES * 10 - 3));
        assert_eq!(numbers(&view.missing), BTreeSet::from([forgotten[1]]));
        assert_eq!(restarted(&lines, unseen).view(&can()), Some(view));
    }
}

#[test]
fn ten_million_tiny_declared_ranges_cost_what_the_bound_says() {
    let most =
        |lines: usize, intervals: usize| lines * (LINE_BYTES + HASHES_KEPT * 16) + intervals * INTERVAL_BYTES;
    // Every second number, of nothing that came: each range is a hole more.
    let mut lines = decryptor();
    let noted = (1..=9_000_000).filter(|n| declare(&mut lines, &can(), 2 * n, 2 * n).is_some()).count();
    assert_eq!(noted, INTERVALS_PER_LINE);
    assert!(lines.encode(NOW).len() <= most(1, noted));
    // What was not noted is a hole as soon as anybody speaks of a number beyond it.
    deliver(&mut lines, &can(), 2 * noted as u64 + 1);
    let view = lines.view(&can()).unwrap();
    assert_eq!(view.declared_in_all() + view.came() + view.missing.count(), 2 * noted as u64 + 1);

    // Every second number, and what lies between came: there is no hole, in runs without an end.
    let mut lines = decryptor();
    for run in 1..=40 {
        let line = line("truck-1", "can", run);
        for n in 1..=12_500 {
            assert_eq!(declare(&mut lines, &line, 2 * n, 2 * n), Some(1));
            deliver(&mut lines, &line, 2 * n - 1);
        }
    }
    let bytes = lines.encode(NOW).len();
    assert!(bytes <= most(40, 2 * (DECLARED_PER_DEVICE + 40) + 40), "{bytes}");
    for run in 1..=40 {
        let view = lines.view(&line("truck-1", "can", run)).unwrap();
        assert_eq!(
            (view.came(), view.declared_in_all(), view.missing.count()),
            (12_500, 12_500, 0),
            "run {run}"
        );
    }
    // The oldest runs were settled first.
    let told_apart = |run| lines.view(&line("truck-1", "can", run)).unwrap().declared.intervals();
    assert_eq!((told_apart(1), told_apart(40)), (1, DECLARED_PER_LINE));

    // One range, and every second number of it after all.
    let mut lines = decryptor();
    assert_eq!(declare(&mut lines, &can(), 1, 1_000_000), Some(1_000_000));
    let mut late = 0;
    for number in (2..1_000_000).rev().step_by(2).take(50_000) {
        late += u64::from(offer(&mut lines, &can(), number, number) == Ok(Verdict::New(number)));
        lines.passed_on(&can(), seq(number));
    }
    let view = lines.view(&can()).unwrap();
    assert_eq!((view.came(), view.declared_in_all()), (late, 1_000_000 - late));
    assert!(late >= DECLARED_PER_LINE as u64);
    assert!(lines.encode(NOW).len() <= most(1, 2 * DECLARED_PER_LINE + 2));
}

#[test]
fn what_was_refused_is_never_settled_and_its_good_copies_are_taken_in_order() {
    let mut lines = decryptor();
    let last = 4 * INTERVALS_PER_LINE as u64;
    (1..=last).for_each(|number| assert!(lines.refused(&can(), seq(number), NOW)));
    assert_eq!(declare(&mut lines, &can(), 1, last), Some(0), "it is refused, and stays so");
    // Good copies of every second number would make an interval of each.
    let mut taken = 0;
    let refusal = loop {
        let number = last - 1 - 2 * taken;
        match offer(&mut lines, &can(), number, number) {
            Ok(_) => lines.passed_on(&can(), seq(number)),
            Err(refusal) => break refusal,
        }
        taken += 1;
    };
    assert_eq!(
        (taken as usize, refusal),
        (INTERVALS_PER_LINE - 1, LineRefusal::TooManyGaps { lowest_missing: Some(1) })
    );
    (1..=last / 2).for_each(|number| deliver(&mut lines, &can(), number));
    let view = lines.view(&can()).unwrap();
    assert_eq!(view.came() + view.refused.count(), last);
    // One number in two is poison, and the bound is met: the rest of it shows as missing, and good data is taken until the holes are
    // too many as well.
    let mut lines = decryptor();
    for n in 1..=INTERVALS_PER_LINE as u64 + 10 {
        assert_eq!(lines.refused(&can(), seq(2 * n), NOW), n <= INTERVALS_PER_LINE as u64);
        deliver(&mut lines, &can(), 2 * n + 1);
    }
    assert_eq!(lines.view(&can()).unwrap().missing.count(), 11, "number 1, and ten that were not noted");
}

#[test]
fn a_number_on_its_way_while_its_range_is_settled_counts_as_what_it_becomes() {
    // 1 to 3 are on their way, 4 never comes; then more ranges are declared than are told apart.
    const BEYOND: usize = DECLARED_PER_LINE + 8;
    let declare_all = |lines: &mut Lines<u64>| {
        declare(lines, &can(), 1, 4).unwrap();
        for n in (6..).step_by(2).take(BEYOND) {
            deliver(lines, &can(), n - 1);
            declare(lines, &can(), n, n).unwrap();
        }
    };
    let mut live = decryptor();
    (1..=3).for_each(|number| assert_eq!(offer(&mut live, &can(), number, number), Ok(Verdict::New(number))));
    declare_all(&mut live);
    let told_apart = numbers(&live.view(&can()).unwrap().declared);
    assert!([1, 2, 3].iter().all(|number| told_apart.contains(number)) && !told_apart.contains(&4));
    live.stored(&can(), seq(1));
    live.passed_on(&can(), seq(1));
    live.failed(&can(), seq(2));
    assert!(live.refused(&can(), seq(2), NOW));
    live.failed(&can(), seq(3));
    // What is written: the ranges, then what became of 1 and 2. A start reads it in that order.
    let mut read = decryptor();
    declare_all(&mut read);
    assert_eq!(read.view(&can()).unwrap().settled, 4 + 8);
    read.unsettle(&can(), seq(1));
    read.recall(&can(), seq(1), hash(1), NOW);
    read.passed_on(&can(), seq(1));
    // Once more is no more: it is told apart by its hash.
    read.unsettle(&can(), seq(1));
    read.unsettle(&can(), seq(2));
    assert!(read.refused(&can(), seq(2), NOW));
    for lines in [&live, &read] {
        let view = lines.view(&can()).unwrap();
        let counts = (view.came(), view.declared_in_all(), view.refused.count(), view.missing.count());
        assert_eq!(counts, (BEYOND as u64 + 1, BEYOND as u64 + 2, 1, 0));
    }
}

/// Against a model that remembers all of it: what is settled is counted, and nothing else is lost by it.
#[test]
fn whatever_comes_late_or_in_the_middle_of_a_restart_the_counts_are_exact() {
    for start in [1_u64, 7, 2_026] {
        let mut dice = start.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut roll = |sides: u64| {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            dice % sides
        };
        let mut lines = decryptor();
        let (mut came, mut declared, mut holes) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut settled_late = 0;
        let mut next = 1;
        for step in 0..20_000 {
            match roll(10) {
                0..=3 => {
                    deliver(&mut lines, &can(), next);
                    came.insert(next);
                    next += 1;
                }
                4..=6 => {
                    let to = next + roll(5);
                    assert_eq!(declare(&mut lines, &can(), next, to), Some(to - next + 1));
                    declared.extend(next..=to);
                    next = to + 1;
                }
                7 if holes.len() < 500 => {
                    holes.insert(next);
                    next += 1;
                }
                8 if !holes.is_empty() => {
                    let hole = *holes.iter().nth(roll(holes.len() as u64) as usize).unwrap();
                    holes.remove(&hole);
                    deliver(&mut lines, &can(), hole);
                    came.insert(hole);
                }
                _ if next > 1 => {
                    let number = 1 + roll(next - 1);
                    match offer(&mut lines, &can(), number, number).unwrap() {
                        Verdict::New(_) => {
                            assert!(declared.remove(&number) || holes.remove(&number), "{number} at {step}");
                            lines.passed_on(&can(), seq(number));
                            came.insert(number);
                        }
                        Verdict::Duplicate { unverified } => {
                            let is_settled = declared.contains(&number);
                            assert!(is_settled || came.contains(&number), "{number} at {step}");
                            assert!(unverified || !is_settled);
                            settled_late += u64::from(is_settled);
                        }
                        other => panic!("{other:?}"),
                    }
                }
                _ => {}
            }
            if step % 500 == 0 {
                lines = restarted(&lines, Unseen::Missing);
                let Some(view) = lines.view(&can()) else { continue };
                assert_eq!((view.came(), view.declared_in_all()), (came.len() as u64, declared.len() as u64));
                let below = |number: &&u64| **number <= view.newest;
                assert_eq!(numbers(&view.missing), holes.iter().filter(below).copied().collect());
                assert!(view.declared.intervals() <= DECLARED_PER_LINE);
            }
        }
        assert!(settled_late > 0);
    }
}

#[test]
fn a_gateway_that_is_told_of_no_gap_refuses_nothing_for_holes_and_lets_go_of_what_it_has_delivered() {
    let mut lines: Lines<u64> = Lines::new(Unseen::Elsewhere);
    for n in 1..=20_000 {
        deliver(&mut lines, &can(), 2 * n);
        if n % 500 == 0 {
            let bytes = lines.encode(NOW).len();
            assert!(bytes <= LINE_BYTES + INTERVALS_PER_LINE * INTERVAL_BYTES + HASHES_KEPT * 16, "{bytes}");
            lines = restarted(&lines, Unseen::Elsewhere);
        }
    }
    let view = lines.view(&can()).unwrap();
    assert!(
        view.start > 2 && view.missing.first() > Some(view.start),
        "where it begins now it holds something"
    );
    assert_eq!(offer(&mut lines, &can(), 40_000, 40_000), Ok(Verdict::Duplicate { unverified: false }));
    assert_eq!(offer(&mut lines, &can(), view.start, 0), Ok(Verdict::Duplicate { unverified: true }));
    // What was let go goes out again, and the far end knows it; what is between was never called missing for good.
    store(&mut lines, &can(), 2);
    store(&mut lines, &can(), 3);
    assert!(lines.is_here(&can(), seq(3)));
}

#[test]
fn what_waits_at_a_gateway_is_never_let_go_and_has_a_bound_of_its_own() {
    let mut lines: Lines<u64> = Lines::new(Unseen::Elsewhere);
    // The way on is down, in two runs.
    let (old, new) = (line("truck-1", "can", 7), line("truck-1", "can", 8));
    for n in 1..=WAITING_INTERVALS as u64 / 2 {
        store(&mut lines, &old, 2 * n);
        store(&mut lines, &new, 2 * n);
    }
    let beyond = WAITING_INTERVALS as u64 + 4;
    store(&mut lines, &new, beyond);
    store(&mut lines, &new, beyond + 2);
    let refused = Err(LineRefusal::TooManyGaps { lowest_missing: Some(3) });
    assert_eq!(offer(&mut lines, &new, beyond + 4, 0), refused);
    assert_eq!(offer(&mut lines, &old, 2, 2), Ok(Verdict::Duplicate { unverified: false }));
    // It is up again, and what has gone makes room.
    (1..=100).for_each(|n| lines.passed_on(&old, seq(2 * n)));
    store(&mut lines, &new, beyond + 4);
    assert_eq!(lines.view(&old).unwrap().start, 202);
    assert!(lines.is_here(&old, seq(202)));
}

#[test]
fn a_clear_hint_opens_no_line_at_a_gateway() {
    let mut lines: Lines<u64> = Lines::new(Unseen::Elsewhere);
    assert_eq!(declare(&mut lines, &can(), 1, 9), None);
    assert!(lines.is_empty());
    store(&mut lines, &can(), 10);
    assert_eq!(declare(&mut lines, &can(), 11, 12), Some(2));
    store(&mut lines, &can(), 13);
    assert!(lines.view(&can()).unwrap().missing.is_empty());
}

#[test]
fn a_device_that_explains_a_thousand_runs_at_once_is_noted_and_may_begin_as_many_runs_as_before() {
    let mut lines = decryptor();
    for run in 1..=u64::from(RUNS_SPOKEN_OF_BURST) {
        assert_eq!(declare(&mut lines, &line("truck-1", "can", run), 1, 3), Some(3), "run {run}");
    }
    let next = line("truck-1", "can", 9_999);
    assert_eq!(declare(&mut lines, &next, 1, 3), None);
    // A restart gives no new burst, neither of these nor of those that send.
    let mut lines = restarted(&lines, Unseen::Missing);
    assert_eq!(declare(&mut lines, &next, 1, 3), None);
    for run in 0..u64::from(RUNS_BURST) {
        store(&mut lines, &line("truck-1", "can", 10_000 + run), 1);
    }
    assert!(matches!(offer(&mut lines, &next, 1, 1), Err(LineRefusal::TooManyRuns { .. })));
    assert_eq!(
        lines.view(&line("truck-1", "can", 5)).unwrap().declared.iter().next(),
        Some(Interval { first: 1, last: 3 })
    );
}

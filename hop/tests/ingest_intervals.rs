//! `IntervalSet` against a set that holds every number by itself.

use std::collections::BTreeSet;

use pithead_hop::ingest::{Interval, IntervalSet};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Op {
    Insert(u64),
    InsertRange(u64, u64),
    Remove(u64),
    RemoveRange(u64, u64),
    Subtract(u64, u64),
}

const UNIVERSE: u64 = 48;

fn op() -> impl Strategy<Value = Op> {
    let number = 0..UNIVERSE;
    prop_oneof![
        4 => number.clone().prop_map(Op::Insert),
        1 => (number.clone(), number.clone()).prop_map(|(a, b)| Op::InsertRange(a, b)),
        3 => number.clone().prop_map(Op::Remove),
        1 => (number.clone(), number.clone()).prop_map(|(a, b)| Op::RemoveRange(a, b)),
        1 => (number.clone(), number).prop_map(|(a, b)| Op::Subtract(a, b)),
    ]
}

fn runs(numbers: impl IntoIterator<Item = u64>) -> Vec<Interval> {
    let mut runs: Vec<Interval> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some(run) if run.last + 1 == number => run.last = number,
            _ => runs.push(Interval { first: number, last: number }),
        }
    }
    runs
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_set_of_intervals_is_a_set(
        ops in prop::collection::vec(op(), 1..60),
        // At either end of the numbers there is nothing before or after.
        base in prop_oneof![Just(0), Just(7), Just(u64::MAX - UNIVERSE + 1)],
        probe in (0..UNIVERSE, 0..UNIVERSE),
    ) {
        let mut set = IntervalSet::new();
        let mut model = BTreeSet::new();
        for op in ops {
            match op {
                Op::Insert(n) => {
                    let mut with = model.clone();
                    with.insert(base + n);
                    prop_assert_eq!(set.intervals_with(base + n), runs(with.iter().copied()).len());
                    prop_assert_eq!(set.insert(base + n), model.insert(base + n));
                }
                Op::InsertRange(a, b) => {
                    let with = model.iter().copied().chain((a..=b).map(|n| base + n)).collect::<BTreeSet<_>>();
                    prop_assert_eq!(set.intervals_with_range(base + a, base + b), runs(with).len());
                    set.insert_range(base + a, base + b);
                    model.extend((a..=b).map(|n| base + n));
                }
                Op::Remove(n) => prop_assert_eq!(set.remove(base + n), model.remove(&(base + n))),
                Op::RemoveRange(a, b) => {
                    set.remove_range(base + a, base + b);
                    model.retain(|n| !(base + a..=base + b).contains(n));
                }
                Op::Subtract(a, b) => {
                    let other: IntervalSet =
                        [a, b].into_iter().map(|n| Interval { first: base + n, last: base + n }).collect();
                    set.subtract(&other);
                    model.remove(&(base + a));
                    model.remove(&(base + b));
                }
            }
            // One form: sorted, disjoint, never adjacent.
            let expected = runs(model.iter().copied());
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), expected.clone());
            prop_assert_eq!(set.intervals(), expected.len());
            prop_assert_eq!(set.count(), model.len() as u64);
            prop_assert_eq!((set.first(), set.last()), (model.first().copied(), model.last().copied()));
        }
        for n in (0..UNIVERSE).map(|n| base + n) {
            prop_assert_eq!(set.contains(n), model.contains(&n));
            let end = model.contains(&n).then(|| (n..=base + (UNIVERSE - 1)).take_while(|n| model.contains(n)).last().unwrap());
            prop_assert_eq!(set.end_of_run(n), end);
            prop_assert_eq!(set.around(n), runs(model.iter().copied()).into_iter().find(|run| run.first <= n && n <= run.last));
        }
        let (first, last) = (base + probe.0, base + probe.1);
        let gaps = if first > last { Vec::new() } else { runs((first..=last).filter(|n| !model.contains(n))) };
        prop_assert_eq!(set.gaps_within(first, last).collect::<Vec<_>>(), gaps);
    }
}

#[test]
fn a_long_line_is_one_interval() {
    let mut set = IntervalSet::new();
    (1..=100_000).for_each(|n| assert!(set.insert(n)));
    assert_eq!((set.intervals(), set.count()), (1, 100_000));
    set.insert_range(0, u64::MAX);
    assert_eq!((set.intervals(), set.count()), (1, u64::MAX));
}

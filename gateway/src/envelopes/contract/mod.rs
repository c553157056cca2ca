//! Random lives of the whole contract in one process: a device, the real gateway between its two wires, a far end.
//!
//! ```text
//! outbox ─ Sender ══wire══ IngestServer ─ SpoolIntake ─ Numbers ─ Spool on a disk that crashes, or over a broker behind a bad network
//!                                                                   └ Relay ─ Sender ══wire══ IngestServer ─ far end's lines
//! ```
//!
//! Everything between the outbox and the far end's answer is what the programs run, except for the transport: the wires carry
//! gRPC messages without TLS or sockets, lose them in either direction, break, and leave the other side in the dark. The clock
//! stands still unless the life moves it, and the disk works when the life says so: a life is its seed and its steps, so one
//! that goes wrong can be lived again, and proptest shortens it. Each one that was found stands below under its own name.
//!
//! The same lives are lived over the replicated engine, with `PITHEAD_TEST_ENGINE=replicated`: what happens to a disk happens there to
//! what is published ([`under`]), and a gateway also loses its lanes and takes them over again. (The lengths of that engine's pauses are
//! drawn afresh, so a life there is its seed and its steps but for them.)
//!
//! What holds at every step, and in the end, when all is well again and everything has drained:
//!
//! 1. What was acknowledged is in the spool or at the far end, also after every restart.
//! 2. The far end has each envelope once; the bytes are the device's.
//! 3. A line that was sent in order arrives in order.
//! 4. Of two envelopes under one number one at most is acknowledged as stored or as a duplicate. The other one is a conflict, and
//!    if it was kept, the far end gets it with the flag.
//! 5. What the gateway acknowledged once it recognises for good.
//! 6. What is missing, at the far end and here, is what the device never sent, to the number.
//!
//! Short by default; `PITHEAD_LONG=1` lives 100,000 lives, and 10,000 over the replicated engine.

mod far;
mod letters;
mod under;
mod wire;
mod world;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, TestRunner};

use super::testing::replicated;
use world::{Tally, World};

/// What can happen.
#[derive(Clone, Debug)]
enum Step {
    /// The device seals the next number of a line, and sends it if it is connected.
    Record(usize),
    /// A number is given out and never sent; with `true` the device says so.
    Skip(usize, bool),
    /// The next two numbers of a line go out the wrong way round.
    Swap(usize),
    /// Something is sent again although nobody asked for it.
    Again(u8),
    /// Other bytes under a number that was used.
    Other(u8),
    /// The device begins a call, with everything that has no answer.
    Connect,
    /// What the device says from now on is lost.
    LoseRequests,
    /// What the gateway answers from now on is lost.
    LoseReplies,
    /// The device's call breaks; with `false` the gateway does not notice.
    Break(bool),
    /// The gateway notices all calls that are broken.
    Notice,

    Commit,
    Prepare,
    SaveCursors,
    RetryFull,
    CutPowerAfter(u8),
    FailSyncAfter(u8),
    LimitSpace(u32),
    FreeSpace,
    Crash,
    Kill,
    Stop,

    /// The relay begins a call.
    Relay,
    RelayLoseRequests,
    RelayLoseReplies,
    RelayBreak(bool),

    /// The far end answers nothing until it is told to.
    FarHold,
    /// The far end applies and answers so many of what it holds.
    FarApply(u8),
    /// The far end is killed: what it has not applied it has never seen.
    FarKill,

    /// Long enough for a checkpoint to be due.
    Wait,
}

/// How far everybody gets before the next step.
#[derive(Clone, Copy, Debug)]
enum Pause {
    /// Nowhere.
    None,
    /// A few turns.
    Turns(u8),
    /// Until nobody has anything left to do.
    Settled,
}

fn step() -> impl Strategy<Value = Step> {
    let line = || 0..letters::LINES;
    prop_oneof![
        24 => line().prop_map(Step::Record),
        2 => (line(), any::<bool>()).prop_map(|(line, said)| Step::Skip(line, said)),
        2 => line().prop_map(Step::Swap),
        4 => any::<u8>().prop_map(Step::Again),
        3 => any::<u8>().prop_map(Step::Other),
        12 => Just(Step::Connect),
        3 => Just(Step::LoseRequests),
        3 => Just(Step::LoseReplies),
        4 => any::<bool>().prop_map(Step::Break),
        2 => Just(Step::Notice),
        24 => Just(Step::Commit),
        2 => Just(Step::Prepare),
        2 => Just(Step::SaveCursors),
        1 => Just(Step::RetryFull),
        3 => (0..12_u8).prop_map(Step::CutPowerAfter),
        3 => (0..4_u8).prop_map(Step::FailSyncAfter),
        1 => (0..60_000_u32).prop_map(Step::LimitSpace),
        1 => Just(Step::FreeSpace),
        3 => Just(Step::Crash),
        2 => Just(Step::Kill),
        1 => Just(Step::Stop),
        12 => Just(Step::Relay),
        2 => Just(Step::RelayLoseRequests),
        2 => Just(Step::RelayLoseReplies),
        3 => any::<bool>().prop_map(Step::RelayBreak),
        2 => Just(Step::FarHold),
        4 => any::<u8>().prop_map(Step::FarApply),
        1 => Just(Step::FarKill),
        3 => Just(Step::Wait),
    ]
}

fn pause() -> impl Strategy<Value = Pause> {
    prop_oneof![
        6 => Just(Pause::Settled),
        2 => Just(Pause::None),
        2 => (1..6_u8).prop_map(Pause::Turns),
    ]
}

fn live(seed: u64, steps: &[(Step, Pause)]) -> Tally {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut world = World::begin(seed).await;
        for (step, pause) in steps {
            world.take(step).await;
            match pause {
                Pause::None => {}
                Pause::Turns(turns) => {
                    for _ in 0..*turns {
                        tokio::task::yield_now().await;
                    }
                }
                Pause::Settled => world.settle().await,
            }
            world.check();
        }
        world.end().await
    })
}

fn cases() -> u32 {
    let long = std::env::var_os("PITHEAD_LONG").is_some_and(|value| value == "1");
    match (replicated(), long) {
        (_, false) => 1_500,
        (false, true) => 100_000,
        (true, true) => 10_000,
    }
}

fn lives() -> impl Strategy<Value = (u64, Vec<(Step, Pause)>)> {
    (any::<u64>(), prop::collection::vec((step(), pause()), 1..80))
}

proptest! {
    #![proptest_config(Config { cases: cases(), failure_persistence: None, max_shrink_iters: 20_000, ..Config::default() })]

    #[test]
    fn what_was_acknowledged_arrives_once_and_in_order_whatever_breaks((seed, steps) in lives()) {
        live(seed, &steps);
    }
}

/// A model that never meets a fault proves nothing.
#[test]
fn lives_meet_what_they_are_about() {
    let mut runner = TestRunner::deterministic();
    let mut met = Tally::default();
    // To lose the lanes and to take them over again takes several of the rarer steps.
    let lived = if replicated() { 1_600 } else { 400 };
    for _ in 0..lived {
        let (seed, steps) = lives().new_tree(&mut runner).unwrap().current();
        met.add(live(seed, &steps));
    }
    assert!(met.applied > 2_000 && met.conflicts > 10 && met.holes > 150 && met.restarts > 1_200, "{met:?}");
    for why in ["the wire broke", "SPOOL_FULL", "NOT_DURABLE"] {
        assert!(met.ended.contains_key(why), "{met:?}");
    }
    if replicated() {
        assert!(met.terms > 3, "{met:?}");
    }
}

/// Steps that settle, but for those that race.
fn settled<const N: usize>(steps: [Step; N]) -> [(Step, Pause); N] {
    steps.map(|step| (step, Pause::Settled))
}

#[test]
fn what_the_disk_did_not_take_is_not_overtaken_by_what_was_sent_behind_it() {
    let [record, connect, commit] = settled([Step::Record(2), Step::Connect, Step::Commit]);
    let [fails, behind] = [Step::FailSyncAfter(0), Step::Record(2)].map(|step| (step, Pause::None));
    live(0, &[record, connect, behind, fails, commit.clone(), commit]);
}

/// The model's own far end once applied what came behind something that it held.
#[test]
fn a_far_end_that_holds_something_back_applies_nothing_that_came_behind_it() {
    let record = || Step::Record(2);
    live(
        0,
        &settled([
            Step::Relay,
            Step::Connect,
            Step::FarHold,
            record(),
            Step::Commit,
            record(),
            Step::RelayLoseReplies,
            Step::FarApply(0),
            Step::Relay,
            Step::Commit,
            Step::Record(0),
        ]),
    );
}

/// Over the embedded engine it is a sync that fails.
#[test]
fn a_gateway_that_loses_its_lanes_with_something_under_way_and_takes_them_over_again_knows_what_it_has() {
    let record = || Step::Record(0);
    let mut steps = Vec::from(settled([
        Step::Relay,
        Step::Connect,
        record(),
        Step::Commit,
        record(),
        record(),
        Step::FailSyncAfter(0),
        Step::Commit,
        Step::Connect,
    ]));
    // A lane at a time is taken over.
    for _ in 0..6 {
        steps.extend(settled([Step::Wait, Step::Commit]));
    }
    steps.extend(settled([Step::Connect, Step::Commit, Step::Relay, record(), Step::Commit]));
    for seed in 0..12 {
        let met = live(seed, &steps);
        assert_eq!((met.applied, met.terms), (4, u64::from(replicated())), "seed {seed}: {met:?}");
    }
}

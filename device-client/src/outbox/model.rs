//! Many short lives of an outbox on a disk that crashes: what was held arrives or is declared, and nothing is claimed that
//! was not held.
//!
//! The alphabet is what a vehicle meets: records, writes, answers that come and answers that are lost, a budget that runs out,
//! a killed process, a power cut before any write. Far end and envelopes are play; log, gaps and numbers are the real ones.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use pithead_sealing::{
    envelope::KernelEntropy,
    names::{DeviceId, Identity, Run, Seq, Site, StreamName},
};
use pithead_spool::{
    AppendError, Record, Ticket,
    stepped::{CrashDisk, Steps},
};
use proptest::prelude::*;

use super::{
    Outbox,
    head::{ENVELOPE, Head},
    log::{Log, Read, WaitingReader, layout},
};
use crate::{
    batch::{Gap, LineMark},
    outbox::Gaps,
    sequence::Sequence,
    state::{StateError, StateStore, lock},
};

const BUDGET: u64 = super::MIN_BUDGET_BYTES;

/// State that is replaced as a whole, or not at all if the power is off.
#[derive(Clone, Debug)]
struct Store {
    disk: CrashDisk,
    kept: Arc<Mutex<Option<Vec<u8>>>>,
    /// Neither copy reads back, until it is written again.
    damaged: Arc<AtomicBool>,
}

impl StateStore for Store {
    fn load(&mut self) -> Result<Option<Vec<u8>>, StateError> {
        if self.damaged.load(Ordering::Relaxed) {
            return Err(StateError::Damaged { path: "state".into() });
        }
        Ok(lock(&self.kept).clone())
    }

    fn save(&mut self, state: &[u8]) -> Result<(), StateError> {
        if self.disk.is_dead() {
            let source = std::io::ErrorKind::Other.into();
            return Err(StateError::Io { path: "state".into(), source });
        }
        *lock(&self.kept) = Some(state.to_vec());
        self.damaged.store(false, Ordering::Relaxed);
        Ok(())
    }
}

/// What an envelope says besides its records.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Says {
    gaps: Vec<Gap>,
    previous: Option<LineMark>,
    heartbeat: Vec<LineMark>,
}

#[derive(Clone, Debug)]
enum Step {
    /// An envelope of so many quarters of a KiB; the oldest goes if there is no room and it may.
    Seal {
        quarters: u16,
        may_drop: bool,
    },
    Heartbeat,
    Commit,
    /// The far end takes the next; the answer of the last may be lost.
    Deliver {
        envelopes: u8,
        lost: bool,
    },
    /// What no answer came for is sent again.
    Reconnect,
    Save,
    SaveCursors,
    /// The power goes before that many further operations of the disk.
    PowerCut {
        after: u8,
    },
    Kill,
    Close,
    /// The process ends, and of its numbers neither copy reads back.
    LoseNumbers,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        16 => (1_u16..230, prop::bool::weighted(0.8))
            .prop_map(|(quarters, may_drop)| Step::Seal { quarters, may_drop }),
        1 => Just(Step::Heartbeat),
        4 => Just(Step::Commit),
        2 => (1_u8..6, prop::bool::weighted(0.3)).prop_map(|(envelopes, lost)| Step::Deliver { envelopes, lost }),
        1 => Just(Step::Reconnect),
        1 => Just(Step::Save),
        2 => Just(Step::SaveCursors),
        1 => (0_u8..12).prop_map(|after| Step::PowerCut { after }),
        1 => Just(Step::Kill),
        1 => Just(Step::Close),
        1 => Just(Step::LoseNumbers),
    ];
    prop::collection::vec(step, 1..200)
}

/// An open outbox.
struct Live {
    outbox: Outbox,
    log: Arc<Log>,
    steps: Steps,
    reader: WaitingReader,
    read: VecDeque<Read>,
    on_its_way: VecDeque<(Identity, Ticket)>,
}

struct World {
    disk: CrashDisk,
    sequence: Store,
    gaps: Store,
    live: Option<Live>,
    /// Every envelope that was ever sealed.
    sealed: BTreeMap<(Run, Seq), Says>,
    held: BTreeSet<(Run, Seq)>,
    received: BTreeSet<(Run, Seq)>,
    /// What the far end was told, by envelopes that it received.
    told: Vec<Says>,
}

fn site() -> Site {
    Site::new("pit-7").unwrap()
}

fn stream() -> StreamName {
    StreamName::new("can").unwrap()
}

fn identity(run: Run, seq: Seq) -> Identity {
    Identity { site: site(), device: DeviceId::new("truck-7").unwrap(), stream: stream(), run, seq }
}

impl World {
    fn new(seed: u64) -> Self {
        let disk = CrashDisk::new(seed);
        let store = || Store { disk: disk.clone(), kept: Arc::default(), damaged: Arc::default() };
        Self {
            sequence: store(),
            gaps: store(),
            live: None,
            sealed: BTreeMap::new(),
            held: BTreeSet::new(),
            received: BTreeSet::new(),
            told: Vec::new(),
            disk,
        }
    }

    fn live(&mut self) -> &mut Live {
        if self.live.is_none() {
            let (spool, steps, _) =
                self.disk.open(layout(BUDGET)).expect("no state of the disk makes it fail");
            let log = Arc::new(Log::over(&site(), &stream(), Path::new("/nowhere"), BUDGET, spool));
            let lines: Vec<_> = log.lines().into_iter().map(|head| (head.line, head.seq)).collect();
            let gaps = Gaps::open(Box::new(self.gaps.clone())).unwrap();
            let known = lines.iter().map(|(line, _)| line.run).chain(gaps.runs()).max();
            let store = Box::new(self.sequence.clone());
            let mut sequence = Sequence::open_above(store, lines, gaps.runs(), &mut KernelEntropy).unwrap();
            let (run, _) = sequence.next(&stream()).unwrap();
            assert!(known.is_none_or(|known| known < run), "a run begins above all that is known");
            let outbox = Outbox::over([Arc::clone(&log)], gaps, sequence);
            let reader = log.waiting();
            let (read, on_its_way) = (VecDeque::new(), VecDeque::new());
            self.live = Some(Live { outbox, log, steps, reader, read, on_its_way });
        }
        self.live.as_mut().unwrap()
    }

    /// The process ends, however; what was on its way is answered or nobody hears of it.
    fn end(&mut self) {
        self.collect();
        self.live = None;
    }

    fn seal(&mut self, bytes: usize, may_drop: bool, heartbeat: bool) {
        let live = self.live();
        let (run, seq) = lock(live.outbox.sequence()).next(&stream()).unwrap();
        let previous = lock(live.outbox.sequence()).previous(&stream());
        let heartbeat =
            if heartbeat { lock(live.outbox.sequence()).marks_with_next(&stream()) } else { Vec::new() };
        let says = Says { gaps: live.outbox.undeclared(), previous, heartbeat };
        let identity = identity(run, seq);
        let head = Head::of(&identity, 1, bytes as u64);
        let record = Record::new(ENVELOPE, 0, head.encode(), Bytes::from(vec![seq.get() as u8; bytes]));
        let failures = live.log.failures();
        let mut appended = live.log.append(record.clone(), failures);
        if let Err(AppendError::QueueFull { .. }) = appended {
            live.steps.prepare();
            live.steps.commit();
            appended = live.log.append(record.clone(), failures);
        }
        for _ in 0..4 {
            let Err(AppendError::Full { .. }) = appended else { break };
            if !may_drop
                || !live
                    .outbox
                    .drop_oldest(&live.log, bytes as u64)
                    .is_ok_and(|dropped| !dropped.envelopes.is_empty())
            {
                break;
            }
            live.steps.save_cursors();
            appended = live.log.append(record.clone(), failures);
        }
        // Without a place in the queue it was never sealed: the worker keeps it, and the model gives its number again.
        let Ok(ticket) = appended else { return };
        lock(live.outbox.sequence()).commit(&stream(), run, seq);
        // What was given up meanwhile is in the next one.
        live.outbox.carried(&says.gaps, &identity);
        live.on_its_way.push_back((identity, ticket));
        assert_eq!(self.sealed.insert((run, seq), says), None, "a number is used once");
    }

    fn collect(&mut self) {
        let Some(live) = &mut self.live else { return };
        while let Some((identity, ticket)) = live.on_its_way.front() {
            let Some(answer) = ticket.answer() else { break };
            if answer.is_err() {
                // The worker appends the same bytes again; here the process gives up, and a new run begins.
                live.on_its_way.clear();
                self.live = None;
                return;
            }
            lock(live.outbox.sequence()).held(&stream(), identity.run, identity.seq);
            self.held.insert((identity.run, identity.seq));
            live.on_its_way.pop_front();
        }
    }

    fn deliver(&mut self, envelopes: usize, lost: bool) {
        for index in 0..envelopes {
            let live = self.live();
            if live.read.is_empty() {
                let Ok(read) = live.log.read(&mut live.reader, 64 << 10) else { return };
                live.read.extend(read);
            }
            let live = self.live();
            let Some(next) = live.read.pop_front() else { return };
            let position = next.position();
            match next {
                Read::Lost { gaps, .. } => {
                    if live.outbox.lose(&live.log, position, &gaps).is_err() {
                        return;
                    }
                }
                Read::Waiting(waiting) => {
                    let key = (waiting.identity.run, waiting.identity.seq);
                    let says = self.sealed.get(&key).expect("what is read was sealed").clone();
                    if self.received.insert(key) {
                        self.told.push(says);
                    }
                    if lost && index + 1 == envelopes {
                        return;
                    }
                    self.live().outbox.delivered(&waiting.identity);
                }
            }
            // On a disk without power nothing is acknowledged for good.
            let _ = self.live().log.acknowledge(position);
        }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Seal { quarters, may_drop } => self.seal(usize::from(*quarters) * 256, *may_drop, false),
            Step::Heartbeat => self.seal(100, true, true),
            Step::Commit => {
                let live = self.live();
                live.steps.prepare();
                live.steps.commit();
                self.collect();
            }
            Step::Deliver { envelopes, lost } => self.deliver(usize::from(*envelopes), *lost),
            Step::Reconnect => {
                let live = self.live();
                live.reader = live.log.waiting();
                live.read.clear();
            }
            Step::Save => {
                let _ = self.live().outbox.save();
            }
            Step::SaveCursors => self.live().steps.save_cursors(),
            Step::PowerCut { after } => {
                self.live();
                self.disk.cut_power_after(u64::from(*after));
                self.take(&Step::Commit);
                self.end();
                self.disk.crash();
            }
            Step::Kill => {
                self.end();
                self.disk.kill();
            }
            Step::LoseNumbers => {
                self.end();
                self.disk.kill();
                self.sequence.damaged.store(true, Ordering::Relaxed);
            }
            Step::Close => {
                self.live();
                self.collect();
                let Some(live) = self.live.take() else { return };
                let _ = live.outbox.save();
                live.steps.close();
            }
        }
    }

    /// The radio is back for good: everything leaves, and the last word is a heartbeat.
    fn settle(&mut self) {
        self.take(&Step::Reconnect);
        for _ in 0..3 {
            self.deliver(10_000, false);
            self.seal(100, true, true);
            // As many groups as wait.
            while self.live().steps.commit() {
                self.live().steps.prepare();
                self.collect();
            }
            self.take(&Step::SaveCursors);
        }
        self.deliver(10_000, false);
        self.end();
    }

    fn declared(&self, run: Run, seq: u64) -> bool {
        let gaps = self.told.iter().flat_map(|says| &says.gaps);
        gaps.into_iter().any(|gap| gap.run == run && (gap.from.get()..=gap.to.get()).contains(&seq))
    }

    fn check(&self) {
        for (run, seq) in &self.held {
            let arrived = self.received.contains(&(*run, *seq));
            assert!(
                arrived || self.declared(*run, seq.get()),
                "{run}/{seq} was held, and is neither there nor declared"
            );
        }
        let claims = self.told.iter().flat_map(|says| says.previous.iter().chain(&says.heartbeat));
        for claim in claims {
            for seq in 1..=claim.last_seq {
                let key = (claim.run, Seq::new(seq).unwrap());
                let known = self.received.contains(&key) || self.declared(claim.run, seq);
                assert!(known, "{}/{seq} is claimed, and is neither there nor declared", claim.run);
            }
        }
        for gap in self.told.iter().flat_map(|says| &says.gaps) {
            for seq in gap.from.get()..=gap.to.get() {
                assert!(
                    self.sealed.contains_key(&(gap.run, Seq::new(seq).unwrap())),
                    "{gap:?} was never sealed"
                );
            }
        }
    }
}

fn live_and_check(seed: u64, steps: &[Step]) {
    let mut world = World::new(seed);
    for step in steps {
        world.take(step);
    }
    world.settle();
    world.check();
}

fn cases() -> u32 {
    // The campaign: `PITHEAD_LONG=1`, minutes.
    if std::env::var_os("PITHEAD_LONG").is_some() { 50_000 } else { 500 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn what_was_held_arrives_or_is_declared_and_nothing_else_is_claimed(seed in any::<u64>(), steps in steps()) {
        live_and_check(seed, &steps);
    }
}

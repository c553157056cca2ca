//! The engine step by step, over the broker in memory: what it publishes arrives when a test says so. It is to this engine what
//! `pithead_spool::stepped` is to the embedded one, and gives a test of what stands on an engine the same steps.
//!
//! It runs on the test's own runtime and under its clock: beats, leases and pauses take no time, and nothing becomes durable between two
//! steps.
//!
//! ```text
//! a disk                         here
//! a group is written and synced  a publish arrives and is answered
//! a sync fails                   the answer is lost, or the publish is; or the gateway loses the lanes while it is under way
//! the power is cut               no publish and no renewal arrives any more, until the gateway is another process
//! the process is gone            what was under way has arrived, or arrives after somebody else's requests, or never does
//! files cannot grow              a log takes so many bytes
//! ```
//!
//! A disk can also tear a write; a message is there as a whole or not at all. Only what the engine's own tasks ask for is lost here: a
//! thread that waits for an answer keeps a clock that is turned by hand from moving, and would wait for ever. Reads and pieces of the
//! checkpoint are lost in `life`, in the engine's own tests.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use pithead_spool::{Lane, Options};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::broker::{Asked, Broker, Fault, KeptMessage, LogState, Value};
use super::cell::OWNER;
use super::model::Model;
use super::{Bounds, Me, Replicated, Standing, owning};

const BEAT: Duration = Duration::from_millis(20);
/// Shorter than a life of the contract waits for a checkpoint: whoever waits there meets the end of a term.
const LEASE: Duration = Duration::from_millis(200);

/// What is lost of a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::envelopes) enum Trouble {
    /// The gateway loses the lanes while it is under way, and takes them over again when its lease has run out.
    Lanes,
    /// It arrives, and the answer does not.
    Answer,
    /// It does not arrive, or only when somebody else's has.
    Publish,
}

impl Trouble {
    pub(in crate::envelopes) const ALL: [Self; 3] = [Self::Lanes, Self::Answer, Self::Publish];
}

/// What becomes of a publish.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Arrives,
    AnswerLost,
    PublishLost,
}

/// The broker, and the way to it. Clones are the same.
#[derive(Debug, Clone)]
pub(in crate::envelopes) struct SteppedBroker {
    model: Model,
    way: Arc<Mutex<Way>>,
}

#[derive(Debug)]
struct Way {
    /// What is published arrives at once: at a start, and at the orderly end.
    open: bool,
    /// Publishes under way, in the order in which they were sent.
    under_way: Vec<oneshot::Sender<Fate>>,
    trouble_after: Option<(u64, Trouble)>,
    cut_after: Option<u64>,
    cut: bool,
}

impl Way {
    /// What goes wrong with the next publish, if anything does.
    fn next_trouble(&mut self) -> Option<Trouble> {
        match self.trouble_after.take() {
            Some((0, trouble)) => Some(trouble),
            Some((after, trouble)) => {
                self.trouble_after = Some((after - 1, trouble));
                None
            }
            None => None,
        }
    }

    /// Whether the next publish still arrives.
    fn is_cut(&mut self) -> bool {
        match self.cut_after.take() {
            Some(0) => self.cut = true,
            Some(after) => self.cut_after = Some(after - 1),
            None => {}
        }
        self.cut
    }
}

impl SteppedBroker {
    /// An empty one. The seed decides what becomes of publishes that nobody waits for any more.
    pub(in crate::envelopes) fn new(seed: u64) -> Self {
        let model = Model::default();
        model.loses(0, 0, seed);
        let way =
            Way { open: false, under_way: Vec::new(), trouble_after: None, cut_after: None, cut: false };
        Self { model, way: Arc::new(Mutex::new(way)) }
    }

    fn way(&self) -> MutexGuard<'_, Way> {
        self.way.lock().unwrap()
    }

    /// A gateway that begins here, and has become the owner: whoever was it before has fallen silent, or has handed the lanes over.
    pub(in crate::envelopes) async fn open(&self, options: &Options) -> (Replicated, Steps) {
        let bounds = Bounds {
            beat: BEAT,
            lease: LEASE,
            group_bytes: options.max_group_bytes as usize,
            queue_bytes: options.queue_bytes,
            queue_records: options.queue_records,
            ..Bounds::new(options.max_bytes)
        };
        let me = Me { name: "edge-1".to_owned(), address: None };
        let ended = CancellationToken::new();
        self.way().open = true;
        let log = Replicated::made(me, bounds, Arc::new(self.clone()), Handle::current(), ended, None);
        let running = tokio::spawn(owning::run(log.0.clone()));
        let mut standing = log.standing();
        let ours = standing.wait_for(|standing| matches!(standing, Standing::Ours { .. })).await;
        assert!(ours.is_ok(), "the engine has ended");
        self.way().open = false;
        (log.clone(), Steps { broker: self.clone(), log, running })
    }

    /// Something goes wrong with the n-th publish from now on that would arrive.
    pub(in crate::envelopes) fn trouble_after(&self, publishes: u64, trouble: Trouble) {
        self.way().trouble_after = Some((publishes, trouble));
    }

    /// From the n-th publish on none arrives, and no renewal either.
    pub(in crate::envelopes) fn cut_after(&self, publishes: u64) {
        self.way().cut_after = Some(publishes);
    }

    /// The gateway is cut off.
    pub(in crate::envelopes) fn is_cut(&self) -> bool {
        self.way().cut
    }

    /// A log takes so many bytes; any number with `None`.
    pub(in crate::envelopes) fn limit(&self, bytes: Option<u64>) {
        self.model.bound(bytes);
    }

    /// The gateway's process is another one, for which the way is free. What the former one has under way is decided when that is dropped.
    pub(in crate::envelopes) fn kill(&self) {
        let mut way = self.way();
        (way.trouble_after, way.cut_after, way.cut) = (None, None, false);
    }
}

/// The work of an engine, step by step. Dropping it is the end of the process: whoever waits is told.
pub(in crate::envelopes) struct Steps {
    broker: SteppedBroker,
    log: Replicated,
    running: JoinHandle<()>,
}

impl Steps {
    /// What is under way arrives: one publish of each lane that has something waiting. False if there was nothing.
    pub(in crate::envelopes) fn commit(&mut self) -> bool {
        let mut way = self.broker.way();
        way.under_way.retain(|one| !one.is_closed());
        if way.under_way.is_empty() {
            return false;
        }
        for one in std::mem::take(&mut way.under_way) {
            let fate = match way.is_cut() {
                true => Fate::PublishLost,
                false => match way.next_trouble() {
                    None => Fate::Arrives,
                    Some(Trouble::Answer) => Fate::AnswerLost,
                    Some(Trouble::Publish) => Fate::PublishLost,
                    Some(Trouble::Lanes) => {
                        // Whoever publishes lets go of it.
                        way.under_way.push(one);
                        if let Standing::Ours { epoch } = *self.log.0.standing.borrow() {
                            self.log.step_down(epoch);
                        }
                        continue;
                    }
                },
            };
            // Whoever has published it may be gone.
            let _ = one.send(fate);
        }
        true
    }

    /// The orderly end: everything that waits arrives, and the lanes are handed over.
    pub(in crate::envelopes) async fn close(mut self) {
        let under_way = {
            let mut way = self.broker.way();
            way.open = true;
            std::mem::take(&mut way.under_way)
        };
        for one in under_way {
            // Whoever has published it may be gone.
            let _ = one.send(Fate::Arrives);
        }
        self.log.close();
        // What it says when it falls over is in the output of the test.
        let _ = (&mut self.running).await;
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        self.running.abort();
        self.log.0.ended.cancel();
        self.log.0.end_term();
    }
}

/// A publish that is under way.
struct UnderWay {
    broker: SteppedBroker,
    lane: Lane,
    expected: u64,
    message: Option<Bytes>,
}

impl Drop for UnderWay {
    /// Nobody waits for it any more, and it is on its way.
    fn drop(&mut self) {
        let Some(message) = self.message.take() else { return };
        match self.broker.model.below(3) {
            0 => self.broker.model.arrive(self.lane, self.expected, &message),
            1 => self.broker.model.hold_up(self.lane, self.expected, message),
            _ => {}
        }
    }
}

impl UnderWay {
    async fn arrive(mut self, turn: Option<oneshot::Receiver<Fate>>) -> Result<u64, Fault> {
        let lost = || Fault::Unknown("lost".to_owned());
        let fate = match turn {
            None => Fate::Arrives,
            Some(turn) => turn.await.map_err(|_| lost())?,
        };
        match fate {
            Fate::Arrives | Fate::AnswerLost => {
                let message = self.message.take().ok_or_else(lost)?;
                let answer = self.broker.model.append(self.lane, self.expected, message).await;
                if matches!(fate, Fate::Arrives) { answer } else { Err(lost()) }
            }
            Fate::PublishLost => {
                let message = self.message.take().ok_or_else(lost)?;
                if self.broker.model.below(2) == 0 {
                    self.broker.model.hold_up(self.lane, self.expected, message);
                }
                Err(lost())
            }
        }
    }
}

impl SteppedBroker {
    /// Whether what is asked of a key gets nowhere.
    fn is_lost(&self, key: &str) -> bool {
        key == OWNER && self.is_cut()
    }
}

fn cut_off<'a, T: Send + 'a>() -> Asked<'a, T> {
    std::future::ready(Err(Fault::Unknown("cut off".to_owned()))).boxed()
}

impl Broker for SteppedBroker {
    fn append(&self, lane: Lane, expected: u64, message: Bytes) -> Asked<'_, u64> {
        let turn = {
            let mut way = self.way();
            let (decide, decided) = oneshot::channel();
            (!way.open).then(|| {
                way.under_way.push(decide);
                decided
            })
        };
        UnderWay { broker: self.clone(), lane, expected, message: Some(message) }.arrive(turn).boxed()
    }

    fn read(&self, lane: Lane, sequence: u64) -> Asked<'_, Option<Bytes>> {
        self.model.read(lane, sequence)
    }

    fn read_at_replica(&self, lane: Lane, sequence: u64) -> Asked<'_, Option<Bytes>> {
        self.model.read_at_replica(lane, sequence)
    }

    fn read_at_leader(&self, lane: Lane, sequence: u64) -> Asked<'_, Option<Bytes>> {
        self.model.read_at_leader(lane, sequence)
    }

    fn state(&self, lane: Lane) -> Asked<'_, LogState> {
        self.model.state(lane)
    }

    fn purge(&self, lane: Lane, sequence: u64) -> Asked<'_, ()> {
        self.model.purge(lane, sequence)
    }

    fn keep<'a>(&'a self, name: &'a str, expected: u64, message: Bytes) -> Asked<'a, u64> {
        self.model.keep(name, expected, message)
    }

    fn kept<'a>(&'a self, name: &'a str) -> Asked<'a, Option<Value>> {
        self.model.kept(name)
    }

    fn kept_from(&self, sequence: u64) -> Asked<'_, Option<KeptMessage>> {
        self.model.kept_from(sequence)
    }

    fn let_go(&self, sequence: u64) -> Asked<'_, bool> {
        self.model.let_go(sequence)
    }

    fn kept_state(&self) -> Asked<'_, LogState> {
        self.model.kept_state()
    }

    fn get<'a>(&'a self, key: &'a str) -> Asked<'a, Option<Value>> {
        if self.is_lost(key) { cut_off() } else { self.model.get(key) }
    }

    fn put<'a>(&'a self, key: &'a str, revision: u64, value: Bytes) -> Asked<'a, u64> {
        if self.is_lost(key) { cut_off() } else { self.model.put(key, revision, value) }
    }

    fn forget<'a>(&'a self, prefix: &'a str) -> Asked<'a, ()> {
        self.model.forget(prefix)
    }

    fn message_bytes(&self) -> usize {
        self.model.message_bytes()
    }
}

//! Everybody in one place: the device, the gateway and what lies under it, the far end, the wires between, and what must be true of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::FutureExt as _;
use pithead_hop::identity::{GatewayName, Peer, PeerId, Role};
use pithead_hop::ingest::send::{LineToSend, Window};
use pithead_hop::ingest::{
    Answer, IngestLimits, IngestServer, SendOptions, Sender, UploadLimits, UploadStore,
};
use pithead_proto::errors::v1::ErrorReason;
use pithead_proto::ingest::v1::Gap;
use pithead_proto::ingest::v1::ingest_service_server::IngestServiceServer;
use pithead_sealing::Seq;
use pithead_sealing::trust::KeyStatus;
use pithead_spool::RecordHead;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::super::budgets::Budgets;
use super::super::idle::Idle;
use super::super::intake::{Parts, SpoolIntake};
use super::super::numbers::Numbers;
use super::super::record::{Head, KIND_CONFLICT};
use super::super::refused::Refused;
use super::super::relay::by_hand::ByHand;
use super::super::relay::control::Control;
use super::super::relay::{Relay, RelayReport};
use super::super::replicated::Standing;
use super::super::spool::EnvelopeSpool;
use super::super::testing::{shares, truck};
use super::Step;
use super::far::Far;
use super::letters::{self, Letter, NUMBERS};
use super::under::{Steps, Under};
use super::wire::{Wire, Wired};
use crate::health::Health;
use crate::keys::book::Book as KeyBook;
use crate::keys::history::History;
use crate::keys::testing::{Authority, arn, site};
use crate::metrics::Metrics;

/// What the device can hand to a call at once.
const OUTGOING_MAX: usize = 1_024;
/// Rounds of everybody doing their work, after which a life that has not drained never will.
const ROUNDS_MAX: usize = 400;
/// More than the relay waits between two checkpoints.
const A_WHILE: Duration = Duration::from_millis(300);

/// A window of some envelopes, so that it fills up.
const WINDOW: Window = Window { bytes: 16 << 10, envelopes: 12, envelope_bytes: 8 << 10 };

/// Every life's gateway has accepted the same statement.
static HISTORY: LazyLock<Arc<History>> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let (history, _) = History::open(folder.path()).unwrap();
    history.keep(&Authority::new().statement(&[(&arn(1), KeyStatus::Active)])).unwrap();
    Arc::new(history)
});

/// Where nothing has to reach a disk: the checkpoint is a file of its own, written whole or not at all.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// What the device and the books say.
#[derive(Default)]
struct Book {
    /// Sealed and without an answer, in the order in which they are sent.
    outbox: Vec<Letter>,
    /// Answered as stored or as a duplicate, by line and number.
    acknowledged: BTreeMap<(usize, u64), Letter>,
    /// Answered as kept beside another.
    conflicts: BTreeSet<Letter>,
    connected: bool,
    /// Why calls have ended.
    ended: BTreeMap<&'static str, u64>,
    faults: Vec<String>,
}

/// What a life has met.
#[derive(Default, Debug)]
pub(super) struct Tally {
    pub(super) applied: usize,
    pub(super) conflicts: usize,
    pub(super) holes: usize,
    pub(super) restarts: u64,
    /// How often a gateway has lost the lanes and taken them over again, without a restart.
    pub(super) terms: u64,
    pub(super) ended: BTreeMap<&'static str, u64>,
}

impl Tally {
    pub(super) fn add(&mut self, other: Self) {
        self.applied += other.applied;
        self.conflicts += other.conflicts;
        self.holes += other.holes;
        self.restarts += other.restarts;
        self.terms += other.terms;
        for (why, count) in other.ended {
            *self.ended.entry(why).or_default() += count;
        }
    }
}

impl Book {
    fn answered(&mut self, letter: Letter, answer: &Answer) {
        let number = (letter.line, letter.seq);
        let before = self.acknowledged.get(&number).copied();
        let mut fault = |what: &str| self.faults.push(format!("{letter:?} was answered {answer:?}: {what}"));
        match answer {
            Answer::Stored | Answer::Duplicate { unverified: false } => {
                if before.is_some_and(|before| before != letter) {
                    fault("and other bytes under its number were acknowledged before");
                }
                if before.is_some() && *answer == Answer::Stored {
                    fault("and it was acknowledged before");
                }
                self.acknowledged.insert(number, letter);
            }
            Answer::Conflict { kept: true } => {
                if before == Some(letter) {
                    fault("and it was acknowledged before");
                }
                self.conflicts.insert(letter);
            }
            Answer::Duplicate { unverified: true }
            | Answer::Conflict { kept: false }
            | Answer::Refused { .. } => fault("for which there is no reason here"),
        }
        if let Some(at) = self.outbox.iter().position(|waits| *waits == letter) {
            self.outbox.remove(at);
        }
    }
}

enum Saying {
    Letter(Letter),
    Gap(Gap),
}

struct Talk {
    wire: Wire,
    outgoing: mpsc::Sender<Saying>,
}

type Shared<T> = Arc<Mutex<T>>;

fn locked<T>(shared: &Shared<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap()
}

async fn talk(
    service: Wired<IngestServiceServer<IngestServer<SpoolIntake>>>,
    lines: Vec<LineToSend>,
    mut outgoing: mpsc::Receiver<Saying>,
    book: Shared<Book>,
) {
    let mut options = SendOptions::new("a device");
    options.window = Window { envelopes: 4_096, bytes: 8 << 20, ..WINDOW };
    if let Ok(mut sender) = Sender::open(service, &options, lines).await {
        loop {
            tokio::select! {
                answers = sender.answers() => match answers {
                    Ok(answers) => {
                        let mut book = locked(&book);
                        answers.iter().for_each(|one| book.answered(one.token, &one.answer));
                    }
                    Err(error) => {
                        let why = error.reason().map_or("the wire broke", ErrorReason::name);
                        *locked(&book).ended.entry(why).or_default() += 1;
                        break;
                    }
                },
                Some(saying) = outgoing.recv() => match saying {
                    Saying::Letter(letter) => {
                        if sender.send(letter, letter.bytes(), Vec::new()).is_err() {
                            locked(&book).faults.push("the window is larger than a life".to_owned());
                        }
                    }
                    Saying::Gap(gap) => sender.declare([gap]),
                },
            }
        }
    }
    locked(&book).connected = false;
}

struct Device {
    book: Shared<Book>,
    talk: Option<Talk>,
    /// Calls that are over for the device, and not for the gateway.
    unnoticed: Vec<Wire>,
    /// The next number of each line.
    next: [u64; letters::LINES],
    skipped: [BTreeSet<u64>; letters::LINES],
    /// Lines in which something was sent out of order on purpose.
    disordered: [bool; letters::LINES],
}

impl Device {
    fn new() -> Self {
        let (next, skipped) = ([1; letters::LINES], Default::default());
        Self {
            book: Shared::default(),
            talk: None,
            unnoticed: Vec::new(),
            next,
            skipped,
            disordered: [false; letters::LINES],
        }
    }

    fn say(&self, saying: Saying) {
        if let Some(talk) = self.talk.as_ref().filter(|_| locked(&self.book).connected) {
            // A call that has just ended takes nothing more: it goes out with the next.
            let _ = talk.outgoing.try_send(saying);
        }
    }

    /// Takes a number, if there is one left.
    fn number(&mut self, line: usize) -> Option<u64> {
        let seq = self.next[line];
        (seq <= NUMBERS).then(|| {
            self.next[line] += 1;
            seq
        })
    }

    fn send(&self, line: usize, seq: u64) {
        let letter = Letter { line, seq, version: 0 };
        locked(&self.book).outbox.push(letter);
        self.say(Saying::Letter(letter));
    }

    fn skip(&mut self, line: usize, said: bool) {
        let Some(seq) = self.number(line) else { return };
        self.skipped[line].insert(seq);
        if said {
            let letters_line = letters::line(line);
            self.say(Saying::Gap(Gap {
                stream: letters_line.stream.to_string(),
                run: letters_line.run.get(),
                from: seq,
                to: seq,
            }));
        }
    }

    /// One of those that the call in hand has carried, or an earlier one.
    fn pick(&self, pick: u8) -> Option<Letter> {
        let book = locked(&self.book);
        let known: Vec<Letter> =
            book.acknowledged.values().copied().chain(book.outbox.iter().copied()).collect();
        (!known.is_empty() && book.connected).then(|| known[usize::from(pick) % known.len()])
    }

    fn other(&mut self, pick: u8) {
        let Some(letter) = self.pick(pick).filter(|letter| letter.version == 0) else { return };
        // Should the first never have come, the other one takes its place, and later than it.
        self.disordered[letter.line] |=
            !locked(&self.book).acknowledged.contains_key(&(letter.line, letter.seq));
        self.say(Saying::Letter(Letter { version: 1, ..letter }));
    }

    fn part(&mut self, noticed: bool) {
        locked(&self.book).connected = false;
        let Some(talk) = self.talk.take() else { return };
        talk.wire.tell_client();
        if noticed {
            talk.wire.tell_server();
        } else {
            self.unnoticed.push(talk.wire);
        }
    }

    fn notice(&mut self) {
        self.unnoticed.drain(..).for_each(|wire| wire.tell_server());
    }

    fn connect(&mut self, gateway: &Gateway) {
        if locked(&self.book).connected {
            return;
        }
        // Its own half of the last call, if the gateway ended that.
        self.part(false);
        let waiting = locked(&self.book).outbox.clone();
        let lines = (0..letters::LINES).filter_map(|number| {
            let first =
                waiting.iter().filter(|letter| letter.line == number).map(|letter| letter.seq).min()?;
            let line = letters::line(number);
            let first_unacked = Seq::new(first).unwrap();
            Some(LineToSend { stream: line.stream, run: line.run, first_unacked })
        });
        let wire = Wire::default();
        let service = Wired { server: gateway.service.clone(), peer: truck(), wire: wire.clone() };
        let (outgoing, said) = mpsc::channel(OUTGOING_MAX);
        locked(&self.book).connected = true;
        tokio::spawn(talk(service, lines.collect(), said, self.book.clone()));
        self.talk = Some(Talk { wire, outgoing });
        waiting.into_iter().for_each(|letter| self.say(Saying::Letter(letter)));
    }
}

/// A relay, and of which term.
type OfTerm = (ByHand, u64);

struct Gateway {
    spool: EnvelopeSpool,
    numbers: Numbers,
    steps: Steps,
    service: IngestServiceServer<IngestServer<SpoolIntake>>,
    /// In which term envelopes are taken, if they are.
    term: watch::Receiver<Option<u64>>,
    _following: AbortOnDropHandle<()>,
    relays: Relay,
    /// At rest between two calls.
    relay: Option<OfTerm>,
    relaying: Option<(Wire, JoinHandle<Option<OfTerm>>)>,
    relay_unnoticed: Vec<Wire>,
}

/// What begins and ends with a term, as `run::owning` has it, and how many there were. The embedded engine has one, which lasts.
async fn follow(
    spool: EnvelopeSpool,
    numbers: Numbers,
    term: watch::Sender<Option<u64>>,
    terms: Arc<AtomicU64>,
) {
    let Some(mut standing) = spool.standing() else {
        terms.fetch_add(1, Ordering::Relaxed);
        term.send_replace(Some(1));
        return term.closed().await;
    };
    loop {
        let now = standing.borrow_and_update().clone();
        let numbers = numbers.clone();
        match now {
            Standing::Ours { epoch } => {
                let begun = spawn_blocking(move || numbers.begin()).await.unwrap();
                if begun.is_ok() && spool.serve(epoch) {
                    terms.fetch_add(1, Ordering::Relaxed);
                    term.send_replace(Some(epoch));
                } else {
                    spool.step_down(epoch);
                }
            }
            Standing::StandingBy { .. } => {
                term.send_replace(None);
                spawn_blocking(move || numbers.forget()).await.unwrap().unwrap();
            }
        }
        if standing.changed().await.is_err() {
            return;
        }
    }
}

impl Gateway {
    async fn start(under: &Under, folder: &Path, terms: &Arc<AtomicU64>) -> Self {
        let (spool, steps) = under.open().await;
        let idle = Idle::open(&folder.join("idle")).unwrap();
        let uploads =
            UploadStore::open(&folder.join("uploads"), UploadLimits::default(), Duration::ZERO).unwrap();
        let numbers = Numbers::open(folder.join("lines"), idle, &spool, 1 << 20, shares(), &uploads).unwrap();
        let (name, metrics) = (GatewayName::new("edge-1").unwrap(), Metrics::new());
        let intake = SpoolIntake::start(Parts {
            registry: Arc::default(),
            gateway: name,
            history: HISTORY.clone(),
            book: KeyBook::default(),
            budgets: Budgets::default(),
            numbers: numbers.clone(),
            shares: shares(),
            spool: spool.clone(),
            uploads: uploads.clone(),
            copies: None,
            metrics: metrics.clone(),
            activity: crate::console::activity::Activity::default(),
            followed: Default::default(),
        });
        let stop = CancellationToken::new();
        let service = IngestServer::new(Arc::new(intake), IngestLimits::default(), stop).into_service();
        let refused = Refused::open(&folder.join("refused"), 1 << 20, metrics.clone(), shares()).unwrap();
        let relays = Relay {
            spool: spool.clone(),
            numbers: numbers.clone(),
            uploads,
            copies: None,
            refused: Arc::new(refused),
            health: Health::new(metrics.clone(), Duration::ZERO),
            metrics,
            report: RelayReport::default(),
            control: Control::open(folder.join("relay"), None).unwrap(),
            followed: Default::default(),
        };
        let (begins, mut term) = watch::channel(None);
        let following = follow(spool.clone(), numbers.clone(), begins, terms.clone());
        let following = AbortOnDropHandle::new(tokio::spawn(following));
        assert!(term.wait_for(Option::is_some).await.is_ok(), "it does not begin");
        Self {
            spool,
            numbers,
            steps,
            service,
            term,
            _following: following,
            relays,
            relay: None,
            relaying: None,
            relay_unnoticed: Vec::new(),
        }
    }

    fn relay(&mut self, far: &Arc<Far>) {
        if let Some((wire, task)) = &mut self.relaying {
            let Some(ended) = task.now_or_never() else { return };
            self.relay = ended.expect("the relay does not fall over");
            wire.tell_client();
            self.relay_unnoticed.push(wire.clone());
            self.relaying = None;
        }
        // Who stands by does not relay, and a new term begins at its cursors.
        let Some(now) = *self.term.borrow() else { return };
        let relay = match self.relay.take() {
            Some((relay, of)) if of == now => relay,
            _ => ByHand::new(self.relays.clone()),
        };
        let wire = Wire::default();
        let server = IngestServer::new(far.clone(), IngestLimits::default(), CancellationToken::new());
        let role = Role::Gateway(GatewayName::new("edge-1").unwrap());
        let peer = Peer { id: PeerId { site: site(), role }, ..truck() };
        let service = Wired { server: server.into_service(), peer, wire: wire.clone() };
        let mut term = self.term.clone();
        let calling = async move {
            tokio::select! {
                relay = relay.call(service, WINDOW) => Some((relay, now)),
                // Dropped, it waits for no answers that count no more.
                _ = term.wait_for(|term| *term != Some(now)) => None,
            }
        };
        self.relaying = Some((wire, tokio::spawn(calling)));
    }

    fn relay_wire(&self) -> Option<&Wire> {
        self.relaying.as_ref().map(|(wire, _)| wire)
    }

    fn relay_part(&mut self, noticed: bool) {
        let Some(wire) = self.relay_wire().cloned() else { return };
        wire.tell_client();
        if noticed {
            wire.tell_server();
        } else {
            self.relay_unnoticed.push(wire);
        }
    }
}

pub(super) struct World {
    under: Under,
    folder: tempfile::TempDir,
    device: Device,
    gateway: Option<Gateway>,
    far: Arc<Far>,
    restarts: u64,
    /// Of all gateways: each has one at its start.
    terms: Arc<AtomicU64>,
}

impl World {
    pub(super) async fn begin(seed: u64) -> Self {
        let (under, folder, terms) = (Under::new(seed), folder(), Arc::default());
        let gateway = Some(Gateway::start(&under, folder.path(), &terms).await);
        Self { under, folder, device: Device::new(), gateway, far: Far::new(), restarts: 0, terms }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    fn gateway(&mut self) -> &mut Gateway {
        self.gateway.as_mut().unwrap()
    }

    /// Until nobody has anything left to do: the clock moves on only then.
    pub(super) async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    pub(super) async fn take(&mut self, step: &Step) {
        match step {
            Step::Record(line) => {
                if let Some(seq) = self.device.number(*line) {
                    self.device.send(*line, seq);
                }
            }
            Step::Skip(line, said) => self.device.skip(*line, *said),
            Step::Swap(line) => {
                if let Some(first) = self.device.number(*line) {
                    if let Some(second) = self.device.number(*line) {
                        self.device.disordered[*line] = true;
                        self.device.send(*line, second);
                    }
                    self.device.send(*line, first);
                }
            }
            Step::Again(pick) => {
                if let Some(letter) = self.device.pick(*pick) {
                    self.device.say(Saying::Letter(letter));
                }
            }
            Step::Other(pick) => self.device.other(*pick),
            Step::Connect => {
                let Self { device, gateway, .. } = self;
                device.connect(gateway.as_ref().unwrap());
            }
            Step::LoseRequests => self.device.talk.iter().for_each(|talk| talk.wire.lose_requests()),
            Step::LoseReplies => self.device.talk.iter().for_each(|talk| talk.wire.lose_replies()),
            Step::Break(noticed) => self.device.part(*noticed),
            Step::Notice => {
                self.device.notice();
                self.gateway().relay_unnoticed.drain(..).for_each(|wire| wire.tell_server());
            }
            Step::Commit => {
                self.gateway().steps.commit();
            }
            Step::Prepare => self.gateway().steps.prepare(),
            Step::SaveCursors => self.gateway().steps.save_cursors().await,
            Step::RetryFull => self.gateway().steps.retry_full(),
            Step::CutPowerAfter(operations) => self.under.cut_after(u64::from(*operations)),
            Step::FailSyncAfter(syncs) => self.under.fail_after(*syncs),
            Step::LimitSpace(bytes) => self.under.limit(Some(u64::from(*bytes))),
            Step::FreeSpace => {
                self.under.limit(None);
                self.gateway().steps.retry_full();
            }
            Step::Crash => self.restart(End::PowerCut).await,
            Step::Kill => self.restart(End::Kill).await,
            Step::Stop => self.restart(End::Orderly).await,
            Step::Relay => {
                let far = self.far.clone();
                self.gateway().relay(&far);
            }
            Step::RelayLoseRequests => self.gateway().relay_wire().into_iter().for_each(Wire::lose_requests),
            Step::RelayLoseReplies => self.gateway().relay_wire().into_iter().for_each(Wire::lose_replies),
            Step::RelayBreak(noticed) => self.gateway().relay_part(*noticed),
            Step::FarHold => self.far.hold(true),
            Step::FarApply(count) => {
                self.far.hold(false);
                self.far.apply(usize::from(*count));
            }
            Step::FarKill => {
                self.gateway().relay_part(true);
                self.far.kill();
            }
            Step::Wait => tokio::time::sleep(A_WHILE).await,
        }
    }

    /// The gateway's process ends, and another begins where it was.
    async fn restart(&mut self, end: End) {
        self.restarts += 1;
        self.device.part(true);
        self.device.notice();
        let mut gateway = self.gateway.take().unwrap();
        gateway.relay_unnoticed.drain(..).for_each(|wire| wire.tell_server());
        if let Some((wire, task)) = gateway.relaying.take() {
            wire.tell_client();
            wire.tell_server();
            if end != End::Orderly {
                task.abort();
            }
            let _ = task.await;
        }
        let end = if self.under.is_dead() { End::PowerCut } else { end };
        match end {
            End::PowerCut => self.under.crash(),
            End::Kill => self.under.kill(),
            End::Orderly => {
                gateway.steps.close().await;
                self.under.kill();
                self.under.limit(None);
                self.settle().await;
                self.gateway = Some(Gateway::start(&self.under, &self.path(), &self.terms).await);
                return self.recovered().await;
            }
        }
        // What the old process still has under way meets a disk that is no longer its own.
        drop(gateway);
        self.settle().await;
        self.under.limit(None);
        if end == End::PowerCut && self.under.is_shared() {
            // Another machine takes the lanes over.
            self.folder = folder();
        }
        self.gateway = Some(Gateway::start(&self.under, &self.path(), &self.terms).await);
        self.recovered().await;
    }

    /// What was acknowledged is in the spool or at the far end, and so is what was kept beside.
    async fn recovered(&self) {
        let spool = self.gateway.as_ref().unwrap().spool.clone();
        let records: Vec<RecordHead> = spawn_blocking(move || spool.waiting().collect()).await.unwrap();
        let mut waits = BTreeSet::new();
        for record in records {
            let head = Head::decode(&record.head).unwrap();
            let letter = Letter::find(&head.identity, &head.sha256).expect("bytes that the device sealed");
            waits.insert((letter, record.kind == KIND_CONFLICT));
        }
        let applied: BTreeSet<Letter> = self.far.applied().into_iter().collect();
        let book = locked(&self.device.book);
        for letter in book.acknowledged.values() {
            let there = applied.contains(letter) || waits.contains(&(*letter, false));
            assert!(there, "{letter:?} was acknowledged, and after a restart it is nowhere");
        }
        for letter in &book.conflicts {
            let there = self.far.keeps(*letter) || waits.contains(&(*letter, true));
            assert!(there, "{letter:?} was kept beside, and after a restart it is nowhere");
        }
    }

    /// What is true at every step.
    pub(super) fn check(&self) {
        let faults = [locked(&self.device.book).faults.clone(), self.far.faults()].concat();
        assert!(faults.is_empty(), "{faults:#?}");
        let applied = self.far.applied();
        let numbers: BTreeSet<(usize, u64)> =
            applied.iter().map(|letter| (letter.line, letter.seq)).collect();
        assert_eq!(numbers.len(), applied.len(), "something was applied twice: {applied:?}");
        for line in (0..letters::LINES).filter(|line| !self.device.disordered[*line]) {
            let seqs: Vec<u64> =
                applied.iter().filter(|letter| letter.line == line).map(|letter| letter.seq).collect();
            assert!(seqs.is_sorted(), "line {line} was sent in order and arrived as {seqs:?}");
        }
        if let Some(gateway) = self.gateway.as_ref().filter(|_| self.under.is_shared()) {
            // What is on a disk can be damaged; of what a broker has answered for nothing may be called lost.
            assert_eq!(gateway.spool.stats().corrupt_records, 0, "something was taken for lost");
        }
    }

    /// All is well again, everything drains, and the books are closed.
    pub(super) async fn end(mut self) -> Tally {
        self.restart(End::Kill).await;
        self.far.hold(false);
        let mut rounds = 0;
        loop {
            self.far.apply(usize::MAX);
            self.take(&Step::Connect).await;
            self.take(&Step::Relay).await;
            self.settle().await;
            while self.gateway().steps.commit() {
                self.settle().await;
            }
            self.gateway().steps.save_cursors().await;
            self.gateway().steps.retry_full();
            tokio::time::sleep(A_WHILE).await;
            self.check();
            let waits = self.gateway().spool.stats().records;
            let outbox = locked(&self.device.book).outbox.len();
            if (waits, outbox) == (0, 0) {
                break;
            }
            rounds += 1;
            assert!(rounds < ROUNDS_MAX, "it never drains: {outbox} in the outbox, {waits} in the spool");
        }
        self.close_the_books();
        // And once more after a restart: the checkpoint alone knows what has left.
        self.restart(End::Kill).await;
        self.close_the_books();
        self.nothing_is_new().await;
        let book = locked(&self.device.book);
        Tally {
            applied: self.far.applied().len(),
            conflicts: book.conflicts.len(),
            holes: self.device.skipped.iter().map(BTreeSet::len).sum(),
            restarts: self.restarts,
            terms: self.terms.load(Ordering::Relaxed) - (self.restarts + 1),
            ended: book.ended.clone(),
        }
    }

    fn close_the_books(&self) {
        let gateway = self.gateway.as_ref().unwrap();
        let applied: BTreeSet<Letter> = self.far.applied().into_iter().collect();
        let book = locked(&self.device.book);
        for letter in book.acknowledged.values() {
            assert!(applied.contains(letter), "{letter:?} was acknowledged and is not at the far end");
        }
        for letter in &book.conflicts {
            assert!(self.far.keeps(*letter), "{letter:?} was kept beside and is not at the far end");
        }
        for number in 0..letters::LINES {
            let line = letters::line(number);
            let used = self.device.next[number] - 1;
            let sent: BTreeSet<u64> =
                (1..=used).filter(|seq| !self.device.skipped[number].contains(seq)).collect();
            let Some(newest) = sent.last().copied() else { continue };
            let holes: BTreeSet<u64> =
                self.device.skipped[number].iter().copied().filter(|seq| *seq < newest).collect();
            let set = |set: &pithead_hop::ingest::IntervalSet| -> BTreeSet<u64> {
                set.iter().flat_map(|range| range.first..=range.last).collect()
            };
            let far = self.far.view(&line).expect("a line that was sent");
            assert_eq!(
                (set(&far.held), set(&far.missing)),
                (sent.clone(), holes.clone()),
                "line {number}, far end"
            );
            let here = gateway.numbers.view(&line).expect("a line that was sent");
            assert_eq!(set(&here.held), sent, "line {number}, here");
            let holes: BTreeSet<u64> = holes.into_iter().filter(|seq| *seq > here.start).collect();
            let unexplained: BTreeSet<u64> =
                set(&here.missing).union(&set(&here.declared)).copied().collect();
            let unexplained = unexplained.into_iter().filter(|seq| *seq < newest && *seq > here.start);
            assert_eq!(unexplained.collect::<BTreeSet<u64>>(), holes, "line {number}, here");
        }
    }

    /// Sent again after it has long been delivered, nothing is taken for new.
    async fn nothing_is_new(&mut self) {
        self.take(&Step::Connect).await;
        let known: Vec<Letter> = locked(&self.device.book).acknowledged.values().copied().collect();
        for letter in known {
            self.device.say(Saying::Letter(letter));
        }
        self.settle().await;
        self.check();
        assert_eq!(self.gateway().spool.stats().queued_records, 0, "a resend was taken for new");
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    PowerCut,
    Kill,
    Orderly,
}

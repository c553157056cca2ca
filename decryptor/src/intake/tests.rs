//! The whole pipeline, with real envelopes, a real private key, real disks, and every kind of bad moment.

mod signatures;

use super::pipeline::{Parts, Pipeline};
use super::registry::{Registry, RegistryBooks};
use super::scribe::{self, Scribe};
use super::service::Front;
use super::turn::Call;
use crate::aside::Area;
use crate::authority::testing::{START, TestAuthority, TestKey, seal, session};
use crate::books::Books;
use crate::commands::authority::Output;
use crate::commands::verify;
use crate::devices::{Barred, Devices, Origin, Watch};
use crate::kms::KmsFault;
use crate::ledger::record::Checkpoint;
use crate::ledger::{Entry, Ledger};
use crate::metrics::{Metrics, Outcome as Counted};
use crate::sink::{Action, Delivery, FolderSink, JsonLinesSink, Placed, Sink, SinkError};
use crate::unwrap::testing::{Door, WIDE};
use crate::unwrap::{Budgets, CacheLimits, DataKeys, KeyUnwrapper};
use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::FutureExt as _;
use pithead_hop::identity::{Assurance, GatewayName, Peer, PeerId, Role};
use pithead_hop::ingest::{Intake as _, Outcome, Pending, UploadLimits, UploadStore, admit};
use pithead_hop::program::ExitCode;
use pithead_hop::status::Refusal;
use pithead_proto::batch::v1 as wire;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::envelope::LastSession;
use pithead_sealing::envelope::{
    ContentType, Encoding, KernelEntropy, Session, SessionClock, SessionContext,
};
use pithead_sealing::trust::{KeyArn, VerifiedKey};
use pithead_sealing::{DeviceId, Identity, Run, Site, StreamName};
use prost::Message as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

struct World {
    _authority: TestAuthority,
    key: TestKey,
    verified: VerifiedKey,
    dir: tempfile::TempDir,
}

async fn world() -> World {
    let (authority, key, verified) = TestAuthority::with_key().await;
    World { _authority: authority, key, verified, dir: tempfile::tempdir().unwrap() }
}

impl World {
    fn text(&self, stream: &str) -> Session {
        session(&self.verified, stream, None)
    }

    fn batches(&self, encoding: Option<Encoding>) -> Session {
        let content_type = ContentType::new(wire::CONTENT_TYPE).unwrap();
        let (site, device) = (Site::new("pit-7").unwrap(), DeviceId::new("truck-1").unwrap());
        let context = SessionContext::new(site, device, StreamName::new("can").unwrap(), content_type);
        let context = encoding.into_iter().fold(context, SessionContext::encoding);
        let clock = SessionClock { boot: Duration::ZERO, now: START };
        Session::start(&self.verified, &context, Run::new(7).unwrap(), None, clock, &mut KernelEntropy)
            .unwrap()
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn lines(&self) -> PathBuf {
        self.dir.path().join("records.jsonl")
    }

    /// Everything below a folder of the data directory or the sink, as relative paths.
    fn files(&self, below: &str) -> Vec<String> {
        let root = self.dir.path().join(below);
        let (mut folders, mut found) = (vec![root.clone()], Vec::new());
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    found.push(path.strip_prefix(&root).unwrap().display().to_string());
                }
            }
        }
        found.sort();
        found
    }
}

/// Where the process is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kill {
    Never,
    /// The sink has committed, the ledger knows nothing.
    AfterSink,
    /// The ledger has it, nobody was told.
    AfterLedger,
}

struct KilledSink {
    real: Box<dyn Sink>,
    kill: Arc<AtomicBool>,
    gate: Arc<Gate>,
}

/// Holds the sink up while it is closed, and tells when a group is there.
#[derive(Debug, Default)]
struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
    entered: Notify,
}

impl Gate {
    fn set_closed(&self, closed: bool) {
        *self.closed.lock().unwrap() = closed;
        self.opened.notify_all();
    }

    fn pass(&self) {
        self.entered.notify_one();
        drop(self.opened.wait_while(self.closed.lock().unwrap(), |closed| *closed).unwrap());
    }
}

impl Sink for KilledSink {
    fn commit(&mut self, group: &[Delivery]) -> Result<Vec<Placed>, SinkError> {
        self.gate.pass();
        let placed = self.real.commit(group)?;
        if self.kill.load(Ordering::SeqCst) {
            let source = std::io::Error::other("killed");
            return Err(SinkError { action: Action::Sync, path: PathBuf::new(), source });
        }
        Ok(placed)
    }

    fn staging(&self) -> PathBuf {
        self.real.staging()
    }

    fn mark(&self) -> Vec<u8> {
        self.real.mark()
    }
}

struct KilledBooks {
    real: RegistryBooks,
    kill: Arc<AtomicBool>,
}

impl scribe::Books for KilledBooks {
    fn entered(&mut self, identity: &Identity, entry: &Entry) {
        assert!(!self.kill.load(Ordering::SeqCst), "killed");
        self.real.entered(identity, entry);
    }

    fn bar(&mut self, identity: &Identity, origin: &Origin) -> Option<Barred> {
        self.real.bar(identity, origin)
    }

    fn withdrawn(&mut self, identity: &Identity) {
        self.real.withdrawn(identity);
    }

    fn checkpoint(&mut self) -> Checkpoint {
        self.real.checkpoint()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Folder,
    Lines,
}

/// A running decryptor without its network.
struct Rig {
    front: Front,
    pipeline: Arc<Pipeline>,
    registry: Arc<Mutex<Registry>>,
    metrics: Arc<Metrics>,
    thread: std::thread::JoinHandle<Result<(), scribe::ScribeError>>,
    kill_sink: Arc<AtomicBool>,
    kill_books: Arc<AtomicBool>,
    gate: Arc<Gate>,
    data_keys: Arc<DataKeys>,
    devices: Arc<ArcSwap<Devices>>,
    watch: Mutex<Watch>,
}

impl Rig {
    fn start(world: &World, door: &Arc<Door>, kind: Kind) -> Self {
        Self::start_allowing(world, door, kind, std::slice::from_ref(&world.key.arn))
    }

    fn start_allowing(world: &World, door: &Arc<Door>, kind: Kind, allow: &[KeyArn]) -> Self {
        let data = world.dir.path();
        let books = Books::open(data, allow).unwrap();
        let books = Arc::new(ArcSwap::from_pointee(books));
        let metrics = Arc::new(Metrics::new());
        let mut read = Registry::default();
        let ledger = Ledger::open(&data.join("ledger"), |replay| read.replay(replay)).unwrap();
        let real: Box<dyn Sink> = match kind {
            Kind::Folder => Box::new(FolderSink::open(&world.out()).unwrap()),
            Kind::Lines => {
                let mut sink = JsonLinesSink::open(&world.lines(), ledger.mark()).unwrap();
                sink.forget(|identity| read.holds(identity));
                Box::new(sink)
            }
        };
        let registry = Arc::new(Mutex::new(read));
        let (watch, registered) = Watch::open(data).unwrap();
        let devices = Arc::new(ArcSwap::from_pointee(registered));
        let gate = Arc::<Gate>::default();
        let staging = real.staging();
        let uploads =
            UploadStore::open(&data.join("uploads"), UploadLimits::default(), Duration::ZERO).unwrap();
        let (kill_sink, kill_books) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let scribe = Scribe {
            sink: Box::new(KilledSink { real, kill: Arc::clone(&kill_sink), gate: Arc::clone(&gate) }),
            ledger,
            refused: Area::open(&data.join("refused")).unwrap(),
            conflicts: Area::open(&data.join("conflicts")).unwrap(),
            books: KilledBooks {
                real: RegistryBooks::new(Arc::clone(&registry), Arc::clone(&devices), Arc::clone(&metrics)),
                kill: Arc::clone(&kill_books),
            },
            metrics: Arc::clone(&metrics),
            failed: CancellationToken::new(),
        };
        let (jobs, queue) = mpsc::channel(scribe::QUEUE);
        let thread = std::thread::spawn(move || scribe.run(queue));
        let unwrapper: Arc<dyn KeyUnwrapper> = door.clone();
        let data_keys = Arc::new(DataKeys::new(unwrapper, CacheLimits::default(), Budgets::default()));
        let pipeline = Pipeline::new(Parts {
            books: Arc::clone(&books),
            data_keys: Arc::clone(&data_keys),
            devices: Arc::clone(&devices),
            registry: Arc::clone(&registry),
            jobs,
            metrics: Arc::clone(&metrics),
            under_way_bytes: 64 << 20,
            staging,
            spans: Default::default(),
        });
        let front = Front::new(Arc::clone(&pipeline), uploads, books, Arc::clone(&metrics));
        let watch = Mutex::new(watch);
        Self {
            front,
            pipeline,
            registry,
            metrics,
            thread,
            kill_sink,
            kill_books,
            gate,
            data_keys,
            devices,
            watch,
        }
    }

    /// The registry of devices has changed.
    fn reload(&self) {
        let fresh = self.watch.lock().unwrap().look().unwrap();
        self.devices.store(Arc::new(fresh.expect("it has changed")));
    }

    /// On a call of its own.
    async fn offer(&self, envelope: &Bytes) -> Result<Pending, Refusal> {
        self.offer_on(&Call::default(), envelope).await
    }

    async fn offer_on(&self, call: &Call, envelope: &Bytes) -> Result<Pending, Refusal> {
        let peer = gateway();
        let admitted = admit(
            envelope.clone(),
            Vec::new(),
            &peer,
            self.front.keys(),
            1 << 20,
            &mut LastSession::default(),
        )
        .map_err(|not| not.refusal)?;
        self.front.offer(&peer, call, admitted).await
    }

    async fn give(&self, envelope: &Bytes) -> Result<Outcome, Refusal> {
        self.offer(envelope).await?.await
    }

    fn count(&self, outcome: Counted) -> u64 {
        self.metrics.envelopes_with(outcome)
    }

    async fn stop(self) {
        self.pipeline.drain().await;
        drop((self.front, self.pipeline));
        self.thread.join().unwrap().unwrap();
    }

    /// Gives all, killed on the way; nothing is acknowledged.
    async fn die(self, kill: Kill, envelopes: &[Bytes]) {
        self.kill_sink.store(kill == Kill::AfterSink, Ordering::SeqCst);
        self.kill_books.store(kill == Kill::AfterLedger, Ordering::SeqCst);
        let mut pending = Vec::new();
        for envelope in envelopes {
            pending.extend(self.offer(envelope).await);
        }
        for pending in pending {
            let failed = pending.await.expect_err("nobody was told yes");
            assert!(failed.is_retryable() && failed.retry_after.is_some(), "{failed}");
        }
        self.pipeline.drain().await;
        drop((self.front, self.pipeline));
        // An error, or the panic of the killed thread.
        assert!(!matches!(self.thread.join(), Ok(Ok(()))));
    }
}

fn gateway() -> Peer {
    let role = Role::Gateway(GatewayName::new("gate-1").unwrap());
    let id = PeerId { site: Site::new("pit-7").unwrap(), role };
    Peer { id, certificate_sha256: Some([1; 32]), assurance: Assurance::Vouched, passed_on_by: None }
}

fn batch(records: u8) -> wire::Batch {
    let records = (0..records).map(|n| wire::Record { dt_us: 1, data: vec![n].into(), name: "speed".into() });
    wire::Batch { base_us: 1_000, records: records.collect(), ..Default::default() }
}

fn line_keys(path: &Path) -> Vec<(u64, u64)> {
    let text = fs::read_to_string(path).unwrap();
    let parse = |line| serde_json::from_str::<serde_json::Value>(line).unwrap();
    text.lines().map(parse).map(|l| (l["seq"].as_u64().unwrap(), l["index"].as_u64().unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_envelope_is_plaintext_at_its_identity_and_a_resend_is_a_duplicate_for_ever() {
    let world = world().await;
    let door = Door::of(&world.key);
    let envelope = seal(&mut world.text("can"), 1, b"telemetry");
    let rig = Rig::start(&world, &door, Kind::Folder);
    assert_eq!(rig.give(&envelope).await.unwrap(), Outcome::Stored);
    assert_eq!(rig.give(&envelope).await.unwrap(), Outcome::Duplicate { unverified: false });
    rig.stop().await;
    let rig = Rig::start(&world, &door, Kind::Folder);
    assert_eq!(rig.give(&envelope).await.unwrap(), Outcome::Duplicate { unverified: false });
    rig.stop().await;
    let path = "pit-7/truck-1/can/0000000000000007/00000000000000000001.txt";
    assert_eq!(world.files("out"), [path]);
    assert_eq!(fs::read(world.out().join(path)).unwrap(), b"telemetry");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_each_step_every_envelope_is_applied_once() {
    for kind in [Kind::Folder, Kind::Lines] {
        for kill in [Kill::Never, Kill::AfterSink, Kill::AfterLedger] {
            let world = world().await;
            let door = Door::of(&world.key);
            let mut session = world.batches(None);
            let envelopes: Vec<Bytes> =
                (1..=12).map(|seq| seal(&mut session, seq, &batch(3).encode_to_vec())).collect();
            let rig = Rig::start(&world, &door, kind);
            for envelope in &envelopes[..4] {
                assert_eq!(rig.give(envelope).await.unwrap(), Outcome::Stored);
            }
            if kill == Kill::Never {
                rig.stop().await;
            } else {
                rig.die(kill, &envelopes[4..8]).await;
            }
            // The sender has no answer for the last four of them, and sends everything from there on again.
            let rig = Rig::start(&world, &door, kind);
            for envelope in &envelopes[2..] {
                let outcome = rig.give(envelope).await.unwrap();
                assert!(
                    matches!(outcome, Outcome::Stored | Outcome::Duplicate { .. }),
                    "{kind:?} {kill:?} {outcome:?}"
                );
            }
            rig.stop().await;
            match kind {
                Kind::Folder => assert_eq!(world.files("out").len(), 12, "{kill:?}"),
                Kind::Lines => {
                    let expected: Vec<_> =
                        (1..=12).flat_map(|seq| (0..3).map(move |index| (seq, index))).collect();
                    assert_eq!(line_keys(&world.lines()), expected, "{kill:?}");
                }
            }
            assert_eq!(world.files("conflicts"), Vec::<String>::new());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poison_is_refused_and_kept_and_its_line_goes_on() {
    let world = world().await;
    let door = Door::of(&world.key);
    let mut session = world.text("can");
    let (first, second, third) =
        (seal(&mut session, 1, b"a"), seal(&mut session, 2, b"b"), seal(&mut session, 3, b"c"));
    let mut poison = second.to_vec();
    *poison.last_mut().unwrap() ^= 1;
    let poison = Bytes::from(poison);
    let rig = Rig::start(&world, &door, Kind::Folder);
    assert_eq!(rig.give(&first).await.unwrap(), Outcome::Stored);
    for _ in 0..2 {
        let Outcome::Refused(refusal) = rig.give(&poison).await.unwrap() else { panic!("not refused") };
        assert_eq!(refusal.reason, ErrorReason::EnvelopeFrameTag);
    }
    assert_eq!(rig.give(&third).await.unwrap(), Outcome::Stored);
    let kept = world.files("refused");
    assert_eq!(kept.len(), 1, "the same poison twice is one file");
    assert!(
        kept[0].starts_with("pit-7/truck-1/can-0000000000000007-00000000000000000002-")
            && kept[0].ends_with(".PH-2009.envelope")
    );
    assert_eq!(fs::read(world.dir.path().join("refused").join(&kept[0])).unwrap(), poison);
    // Poison takes no identity: the good copy is still welcome, also after a restart.
    rig.stop().await;
    let rig = Rig::start(&world, &door, Kind::Folder);
    assert_eq!(rig.give(&second).await.unwrap(), Outcome::Stored);
    assert_eq!(rig.count(Counted::Applied), 1);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_content_that_does_not_keep_its_word_is_poison() {
    let world = world().await;
    let door = Door::of(&world.key);
    let rig = Rig::start(&world, &door, Kind::Folder);
    let mut plain = world.batches(None);
    let mut packed = world.batches(Some(Encoding::Zstd));
    let bomb = zstd::encode_all(&vec![0_u8; 70 << 20][..], 3).unwrap();
    let good = zstd::encode_all(&batch(2).encode_to_vec()[..], 3).unwrap();
    // Three bytes behind a header that asks for a window of 1 GiB.
    let wide = b"\x28\xb5\x2f\xfd\x80\xa0\x03\0\0\0\x19\0\0abc";
    for (envelope, reason) in [
        (seal(&mut plain, 1, b"\xff\xff\xff"), Some(ErrorReason::ContentMalformed)),
        (seal(&mut packed, 2, b"not zstd"), Some(ErrorReason::ContentMalformed)),
        (seal(&mut packed, 3, &bomb), Some(ErrorReason::InflateLimit)),
        (seal(&mut packed, 5, wide), Some(ErrorReason::ContentMalformed)),
        (seal(&mut packed, 4, &good), None),
    ] {
        match (rig.give(&envelope).await.unwrap(), reason) {
            (Outcome::Refused(refusal), Some(reason)) => assert_eq!(refusal.reason, reason),
            (Outcome::Stored, None) => {}
            other => panic!("{other:?}"),
        }
    }
    rig.stop().await;
    assert_eq!(world.files("refused").len(), 4, "each of them is kept beside");
    let path = world.out().join("pit-7/truck-1/can/0000000000000007/00000000000000000004.batch.pb");
    assert_eq!(fs::read(path).unwrap(), batch(2).encode_to_vec(), "inflated");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_ends_with_0_where_the_device_has_said_what_it_dropped_and_with_1_where_it_has_not() {
    let world = world().await;
    let door = Door::of(&world.key);
    let mut session = world.batches(None);
    let data = world.dir.path().to_owned();
    let verify = || {
        let (config, data_dir) = (data.join("no.toml"), Some(data.clone()));
        let (from_first, site, device, stream) = (false, None, None, None);
        let args = verify::Args { config, data_dir, from_first, site, device, stream, output: Output::Json };
        // A ledger on disk is read at once.
        verify::run(args).now_or_never().unwrap().unwrap()
    };
    let gap = |run, from, to| {
        let reason = wire::GapReason::DroppedByPolicy.into();
        wire::Gap { stream: "can".into(), run, from, to, reason }
    };
    // Of run 6 nothing came: all of it was dropped, as were two numbers of this run.
    let previous = Some(wire::Line { stream: "can".into(), run: 6, last_seq: 40 });
    let heartbeat = vec![wire::Line { stream: "can".into(), run: 7, last_seq: 4 }];
    let first = wire::Batch { previous, gaps: vec![gap(6, 1, 40)], ..batch(1) };
    let fourth = wire::Batch { heartbeat, gaps: vec![gap(7, 2, 3)], ..batch(1) };
    let rig = Rig::start(&world, &door, Kind::Folder);
    for (seq, batch) in [(1, first), (4, fourth)] {
        let envelope = seal(&mut session, seq, &batch.encode_to_vec());
        assert_eq!(rig.give(&envelope).await.unwrap(), Outcome::Stored);
    }
    assert_eq!(verify(), ExitCode::OK);
    assert_eq!(rig.give(&seal(&mut session, 6, &batch(1).encode_to_vec())).await.unwrap(), Outcome::Stored);
    assert_eq!(verify(), ExitCode::FAILED, "nobody has said what became of 5");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_bytes_under_a_used_identity_are_kept_beside_and_overwrite_nothing() {
    let world = world().await;
    let door = Door::of(&world.key);
    let (first, other) =
        (seal(&mut world.text("can"), 1, b"first"), seal(&mut world.text("can"), 1, b"other"));
    let rig = Rig::start(&world, &door, Kind::Folder);
    assert_eq!(rig.give(&first).await.unwrap(), Outcome::Stored);
    assert_eq!(rig.give(&other).await.unwrap(), Outcome::Conflict { kept: true });
    assert_eq!(rig.give(&first).await.unwrap(), Outcome::Duplicate { unverified: false });
    rig.stop().await;
    let out = world.files("out");
    assert_eq!(fs::read(world.out().join(&out[0])).unwrap(), b"first");
    let kept = world.files("conflicts");
    assert_eq!((out.len(), kept.len()), (1, 1));
    assert_eq!(fs::read(world.dir.path().join("conflicts").join(&kept[0])).unwrap(), other);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_kms_is_away_nothing_is_applied_nothing_is_lost_and_order_is_kept() {
    let world = world().await;
    let door = Door::of(&world.key);
    let mut session = world.text("can");
    let envelopes: Vec<Bytes> = (1..=5).map(|seq| seal(&mut session, seq, b"x")).collect();
    let rig = Rig::start(&world, &door, Kind::Lines);
    for (fault, reason) in [
        (KmsFault::Throttled, ErrorReason::KmsThrottled),
        (KmsFault::Unreachable, ErrorReason::KmsUnreachable),
        (KmsFault::Denied, ErrorReason::NotReady),
        (KmsFault::KeyDisabled, ErrorReason::NotReady),
    ] {
        door.fail(Some(fault));
        let mut pending = Vec::new();
        for envelope in &envelopes {
            pending.push(rig.offer(envelope).await.unwrap());
        }
        for (at, pending) in pending.into_iter().enumerate() {
            let refusal = pending.await.unwrap_err();
            assert!(refusal.is_retryable() && refusal.retry_after.is_some(), "{refusal}");
            assert!(at > 0 || refusal.reason == reason, "{refusal}");
        }
    }
    door.fail(None);
    let mut pending = Vec::new();
    for envelope in &envelopes {
        pending.push(rig.offer(envelope).await.unwrap());
    }
    for pending in pending {
        assert_eq!(pending.await.unwrap(), Outcome::Stored);
    }
    assert_eq!(line_keys(&world.lines()), (1..=5).map(|seq| (seq, 0)).collect::<Vec<_>>());
    assert_eq!(world.files("refused"), Vec::<String>::new());
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_keeps_its_order_whichever_data_key_is_there_first() {
    let world = world().await;
    let door = Door::of(&world.key);
    let rig = Rig::start(&world, &door, Kind::Lines);
    // The second session's key is warm, the first one's is still being unwrapped.
    let (mut cold, mut warm) = (world.text("can"), world.text("can"));
    assert_eq!(rig.give(&seal(&mut warm, 1, b"x")).await.unwrap(), Outcome::Stored);
    door.open.forget_permits(WIDE as usize);
    let (second, third) = (seal(&mut cold, 2, b"x"), seal(&mut warm, 3, b"x"));
    let waiting = rig.offer(&second).await.unwrap();
    let behind = rig.offer(&third).await.unwrap();
    // The same bytes meanwhile share the first one's fate.
    let mut same = Box::pin(rig.offer(&second));
    assert!(same.as_mut().now_or_never().is_none());
    assert_eq!(line_keys(&world.lines()), [(1, 0)]);
    door.open.add_permits(8);
    assert_eq!(waiting.await.unwrap(), Outcome::Stored);
    assert_eq!(behind.await.unwrap(), Outcome::Stored);
    assert_eq!(same.await.unwrap().await.unwrap(), Outcome::Duplicate { unverified: false });
    assert_eq!(rig.give(&seal(&mut world.text("gps"), 1, b"x")).await.unwrap(), Outcome::Stored);
    assert_eq!(line_keys(&world.lines()), [(1, 0), (2, 0), (3, 0), (1, 0)]);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_call_goes_on_sending_after_a_failure_is_not_applied_before_what_failed() {
    let world = world().await;
    let door = Door::of(&world.key);
    let rig = Rig::start(&world, &door, Kind::Lines);
    let (mut cold, mut warm) = (world.text("can"), world.text("can"));
    assert_eq!(rig.give(&seal(&mut warm, 1, b"x")).await.unwrap(), Outcome::Stored);
    let (second, third, fourth) =
        (seal(&mut cold, 2, b"x"), seal(&mut warm, 3, b"x"), seal(&mut warm, 4, b"x"));
    let (before, call, resent) = (Call::default(), Call::default(), Call::default());
    door.fail(Some(KmsFault::Unreachable));
    door.open.forget_permits(WIDE as usize);
    let first_copy = rig.offer_on(&before, &second).await.unwrap();
    let behind = rig.offer_on(&call, &third).await.unwrap();
    // A copy of what is under way: what follows it on its call is not taken before its fate is known.
    let mut copy = Box::pin(rig.offer_on(&resent, &second));
    assert!(copy.as_mut().now_or_never().is_none());
    door.open.add_permits(8);
    assert!(first_copy.await.unwrap_err().is_retryable());
    assert!(behind.await.unwrap_err().is_retryable());
    assert!(copy.await.err().is_some_and(|refusal| refusal.is_retryable()));
    door.fail(None);
    // Its data key is there, and nothing else is under way; but its sender does not know of the failure yet.
    for call in [&before, &call] {
        let refused = rig.offer_on(call, &fourth).await.err().expect("nothing more of this call");
        assert!(refused.is_retryable() && refused.retry_after.is_some(), "{refused}");
    }
    for envelope in [&second, &third, &fourth] {
        assert_eq!(rig.give(envelope).await.unwrap(), Outcome::Stored);
    }
    assert_eq!(line_keys(&world.lines()), [(1, 0), (2, 0), (3, 0), (4, 0)]);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_batch_says_of_its_lines_survives_a_restart() {
    let world = world().await;
    let door = Door::of(&world.key);
    let mut session = world.batches(None);
    let mut said = batch(1);
    said.gaps.push(wire::Gap { stream: "can".into(), run: 7, from: 2, to: 4, reason: 1 });
    said.previous = Some(wire::Line { stream: "can".into(), run: 6, last_seq: 99 });
    said.heartbeat.push(wire::Line { stream: "can".into(), run: 7, last_seq: 9 });
    let rig = Rig::start(&world, &door, Kind::Folder);
    assert_eq!(rig.give(&seal(&mut session, 1, &batch(2).encode_to_vec())).await.unwrap(), Outcome::Stored);
    assert_eq!(rig.give(&seal(&mut session, 7, &said.encode_to_vec())).await.unwrap(), Outcome::Stored);
    rig.stop().await;
    // Twice: once from the checkpoint of a clean stop, and once more.
    for _ in 0..2 {
        let rig = Rig::start(&world, &door, Kind::Folder);
        {
            let registry = rig.registry.lock().unwrap();
            let identity = crate::sink::testing::identity("truck-1", 1);
            let line = pithead_sealing::Line { run: Run::new(7).unwrap(), ..identity.line() };
            let facts = registry.facts_of(&identity.site, &line).unwrap();
            assert_eq!((facts.envelopes, facts.records, facts.dropped_by_policy), (2, 3, 3));
            assert_eq!((facts.heartbeat_last, facts.previous.as_ref().unwrap().last), (9, 99));
            let view = registry.lines_of(&identity.site).unwrap().view(&line).unwrap();
            assert!(view.held.contains(7) && view.declared.contains(3) && !view.missing.contains(3));
            assert!(view.missing.contains(5) && view.missing.contains(6));
        }
        rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopping_pipeline_takes_nothing_more_and_finishes_what_it_has() {
    let world = world().await;
    let door = Door::of(&world.key);
    let mut session = world.text("can");
    let rig = Rig::start(&world, &door, Kind::Folder);
    let pending = rig.offer(&seal(&mut session, 1, b"x")).await.unwrap();
    rig.pipeline.drain().await;
    let late = rig.give(&seal(&mut session, 2, b"x")).await.unwrap_err();
    assert_eq!(late.reason, ErrorReason::Draining);
    assert_eq!(pending.await.unwrap(), Outcome::Stored);
    rig.stop().await;
    assert_eq!(world.files("out").len(), 1);
}

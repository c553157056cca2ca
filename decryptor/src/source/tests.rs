//! Replicas over one bucket, with every kind of bad moment.

use super::books::{Books, LaneId};
use super::notice::{Notice, Receipt};
use super::replica::{Failing, OUTPUTS_MAX, Pace, Replica};
use super::site::{self, Fetched, Shared, SiteReplica, Taken, Turn, Waits};
use super::testing::{Fate, Faulty, Way, World, batch, bundle, bundle_of, publish, put};
use crate::authority::testing::site as site_of;
use crate::ledger::objects::Chain;
use crate::ledger::objects::record::{Decision, Verdict};
use crate::ledger::record::Who;
use crate::verify::{Filter, Report};
use base64ct::{Base64, Encoding as _};
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use pithead_hop::bundle::{BundleName, Content};
use pithead_proto::errors::v1::ErrorReason;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

/// What gateways have put into the bucket, in their order, lane by lane.
struct Traffic {
    lanes: Vec<Vec<(BundleName, Bytes)>>,
}

/// Two gateways. The first carries two trucks, sends some envelopes twice, and brings one that was damaged before the good copy of
/// it; the second carries a third truck, other bytes under one of its numbers, and a fourth that both carry.
fn traffic(world: &World) -> Traffic {
    let (mut one, mut two) = (world.session("truck-1", 7), world.session("truck-2", 7));
    let (mut three, mut four) = (world.session("truck-3", 7), world.session("truck-4", 7));
    let one: Vec<Bytes> = (1..=12).map(|seq| batch(&mut one, seq, "one")).collect();
    let two: Vec<Bytes> = (1..=6).map(|seq| batch(&mut two, seq, "two")).collect();
    let three: Vec<Bytes> = (1..=6).map(|seq| batch(&mut three, seq, "three")).collect();
    let four: Vec<Bytes> = (1..=4).map(|seq| batch(&mut four, seq, "four")).collect();
    let other = batch(&mut world.session("truck-3", 7), 2, "not three");
    let mut poison = one[4].to_vec();
    *poison.last_mut().unwrap() ^= 1;
    let first = vec![
        vec![one[0].clone(), two[0].clone(), one[1].clone()],
        vec![one[2].clone(), one[3].clone(), Bytes::from(poison), four[0].clone()],
        vec![one[4].clone(), one[5].clone(), one[0].clone(), two[1].clone()],
        vec![two[2].clone(), two[3].clone(), one[6].clone(), four[1].clone()],
        vec![one[7].clone(), one[8].clone(), one[8].clone(), two[4].clone()],
        vec![one[9].clone(), one[10].clone(), one[11].clone(), two[5].clone()],
    ];
    let second = vec![
        vec![three[0].clone(), three[1].clone(), four[0].clone()],
        vec![other, three[2].clone(), four[1].clone()],
        vec![three[3].clone(), four[2].clone()],
        vec![three[4].clone(), three[5].clone(), four[3].clone(), four[2].clone()],
    ];
    let packed = |gateway: &str, spool: u8, lists: Vec<Vec<Bytes>>| {
        let mut place = 0;
        let pack = |envelopes: Vec<Bytes>| {
            let placed: Vec<_> = envelopes
                .into_iter()
                .map(|one| {
                    place += 1;
                    (place - 1, one)
                })
                .collect();
            bundle(gateway, spool, &placed)
        };
        lists.into_iter().map(pack).collect::<Vec<_>>()
    };
    Traffic { lanes: vec![packed("gw-1", 1, first), packed("gw-2", 2, second)] }
}

async fn entries(store: &Arc<InMemory>) -> Vec<Arc<Decision>> {
    let store: Arc<dyn ObjectStore> = Arc::clone(store) as _;
    let chain = Chain::new(store, &Path::from("cloud"), site_of("pit-7"));
    let mut all = Vec::new();
    chain.follow(0, |link| all.push(link.decision)).await.unwrap();
    all
}

fn of(who: Option<&Who>) -> (String, u64) {
    let who = who.expect("it has a name");
    (who.device.clone(), who.seq)
}

/// The lines of every output, by the object's name.
async fn outputs(store: &InMemory) -> BTreeMap<String, Vec<serde_json::Value>> {
    let mut all = BTreeMap::new();
    let found: Vec<_> = store.list(Some(&Path::from("cloud/out"))).try_collect().await.unwrap();
    for object in found {
        let bytes = store.get(&object.location).await.unwrap().bytes().await.unwrap();
        let text = String::from_utf8(zstd::decode_all(&bytes[..]).unwrap()).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        all.insert(object.location.filename().unwrap().to_owned(), lines);
    }
    all
}

/// Everything that has to hold when all is quiet.
async fn assert_balanced(store: &Arc<InMemory>, whole: bool) {
    let entries = entries(store).await;
    let mut applied: Vec<(String, u64)> = Vec::new();
    let mut expected: BTreeMap<String, Vec<(String, u64)>> = BTreeMap::new();
    let mut asides = BTreeSet::new();
    let mut bundles = BTreeSet::new();
    for entry in &entries {
        assert!(bundles.insert(entry.bundle.clone().unwrap().key), "a bundle is decided once");
        for judged in &entry.envelopes {
            match judged.verdict.as_ref().unwrap() {
                Verdict::Applied(one) => {
                    let one = of(one.applied.as_ref().unwrap().who.as_ref());
                    expected.entry(format!("{:020}.jsonl.zst", entry.number)).or_default().push(one.clone());
                    applied.push(one);
                }
                Verdict::SetAside(aside) => drop(asides.insert((of(aside.who.as_ref()), aside.reason))),
                Verdict::Duplicate(_) => {}
            }
        }
    }
    let once: BTreeSet<_> = applied.iter().cloned().collect();
    assert_eq!(once.len(), applied.len(), "each is applied once");
    // In order, of the lines that come by one lane alone.
    for device in ["truck-1", "truck-2", "truck-3"] {
        let seqs: Vec<u64> = applied.iter().filter(|(of, _)| of == device).map(|(_, seq)| *seq).collect();
        assert!(seqs.is_sorted(), "{device}: {seqs:?}");
    }
    // What is in the outputs is what the entries have applied, no more and no less.
    let outputs = outputs(store).await;
    assert_eq!(outputs.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, lines) in &outputs {
        let mut seen: Vec<(String, u64)> = Vec::new();
        for line in lines {
            let one = (line["device"].as_str().unwrap().to_owned(), line["seq"].as_u64().unwrap());
            if line["index"] == 0 {
                seen.push(one);
            }
        }
        assert_eq!(&seen, &expected[name], "{name}");
        let records: u64 = seen.iter().map(|(_, seq)| seq % 3 + 1).sum();
        assert_eq!(records, lines.len() as u64);
    }
    let chain = Chain::new(Arc::clone(store) as Arc<dyn ObjectStore>, &Path::from("cloud"), site_of("pit-7"));
    // By the newest checkpoint, and by every entry from the first: the same books.
    let by_checkpoint = site::read(&chain).await.unwrap();
    let report = report(&by_checkpoint);
    let mut replayed = Books::new(site_of("pit-7"));
    chain.follow(0, |link| replayed.apply(&link).unwrap()).await.unwrap();
    assert_eq!(report.as_json(), self::report(&replayed).as_json());
    if whole {
        let all = [("truck-1", 12), ("truck-2", 6), ("truck-3", 6), ("truck-4", 4)];
        let all: BTreeSet<_> = all
            .iter()
            .flat_map(|(device, last)| (1..=*last).map(|seq| ((*device).to_owned(), seq)))
            .collect();
        assert_eq!(once, all, "everything is applied");
        assert!(report.is_proof(), "{}", report.as_text());
        let of = |device: &str, seq, reason: ErrorReason| ((device.to_owned(), seq), reason as i32);
        let expected =
            [of("truck-1", 5, ErrorReason::EnvelopeFrameTag), of("truck-3", 2, ErrorReason::Conflict)];
        assert_eq!(asides, expected.into());
        let kept: Vec<_> = store.list(Some(&Path::from("cloud/aside"))).try_collect().await.unwrap();
        assert_eq!(kept.len(), 2, "{kept:?}");
    }
}

fn report(books: &Books) -> Report {
    Report::of(&books.registry.lock().unwrap(), &Filter::default())
}

fn pace() -> Pace {
    let millis = Duration::from_millis;
    Pace { poll: millis(10), sweep: millis(10), grace: millis(10), retry_max: millis(3) }
}

/// A replica that runs, until it is killed or stopped.
struct Running {
    way: Arc<Faulty>,
    notices: mpsc::Sender<Notice>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    fn start(world: &World, store: &Arc<InMemory>, id: u8, fates: Vec<Fate>) -> Self {
        let way = Faulty::new(store);
        way.will(fates);
        let shared = world.shared(Arc::new(Way(Arc::clone(&way))), id);
        Self::with(shared, way)
    }

    fn with(shared: Arc<Shared>, way: Arc<Faulty>) -> Self {
        Self::at(pace(), shared, way)
    }

    fn at(pace: Pace, shared: Arc<Shared>, way: Arc<Faulty>) -> Self {
        let (notices, heard) = mpsc::channel(64);
        let stop = CancellationToken::new();
        let stopping = stop.clone();
        let task = tokio::spawn(async move {
            // A start that fails is tried again, as whoever starts programs does.
            let site = loop {
                match SiteReplica::open(Arc::clone(&shared), site_of("pit-7")).await {
                    Ok(site) => break Arc::new(site),
                    Err(error) => assert!(!error.is_fatal(), "{error}"),
                }
            };
            let broken = CancellationToken::new();
            let metrics = Arc::clone(&shared.metrics);
            let replica = Replica::new(
                vec![site],
                shared.replica,
                pace,
                metrics,
                Failing::default(),
                broken.clone(),
                stopping,
            );
            replica.run(heard).await;
            assert!(!broken.is_cancelled(), "a ledger was taken for damaged");
        });
        Self { way, notices, stop, task }
    }

    fn is_dead(&self) -> bool {
        self.way.is_dead()
    }

    async fn stop(self) {
        self.way.be_well();
        self.stop.cancel();
        if self.is_dead() {
            self.task.abort();
            let _ = self.task.await;
        } else {
            tokio::time::timeout(Duration::from_secs(20), self.task).await.expect("it stops").unwrap();
        }
    }
}

/// Runs until nothing is left to do: as many entries as bundles, and all of their output.
async fn until_quiet(store: &Arc<InMemory>, bundles: usize) {
    let quiet = async {
        loop {
            let entries = entries(store).await;
            let sink = crate::sink::ObjectsSink::new(Arc::clone(store) as _, Path::from("cloud"));
            let mut whole = entries.len() == bundles;
            for entry in &entries {
                whole &= sink.is_whole(entry).await.unwrap();
            }
            if whole {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), quiet).await.expect("it comes to rest");
}

#[tokio::test]
async fn one_replica_applies_a_bucket_that_was_filled_before_it_came() {
    let (world, store) = (World::new().await, Arc::new(InMemory::new()));
    let traffic = traffic(&world);
    for one in traffic.lanes.iter().flatten() {
        publish(&store, one).await;
    }
    let running = Running::start(&world, &store, 1, Vec::new());
    until_quiet(&store, 10).await;
    running.stop().await;
    assert_balanced(&store, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_replicas_apply_everything_once() {
    let (world, store) = (World::new().await, Arc::new(InMemory::new()));
    let traffic = traffic(&world);
    let running: Vec<_> = (1..=3).map(|id| Running::start(&world, &store, id, Vec::new())).collect();
    for one in traffic.lanes.iter().flatten() {
        publish(&store, one).await;
        for replica in &running {
            replica.notices.send(Notice { name: one.0.clone(), receipt: None }).await.unwrap();
        }
    }
    until_quiet(&store, 10).await;
    for replica in running {
        replica.stop().await;
    }
    assert_balanced(&store, true).await;
}

#[derive(Debug, Clone)]
enum Move {
    /// A gateway puts its next bundle into the bucket.
    Publish {
        lane: usize,
    },
    /// Somebody tells a replica of a bundle that is there: the first time, again, or out of order.
    Tell {
        replica: usize,
        bundle: usize,
    },
    /// What becomes of a replica's next requests.
    Fates {
        replica: usize,
        fates: Vec<Fate>,
    },
    /// A replica that is dead or not is started anew.
    Restart {
        replica: usize,
    },
    /// A replica is stopped in order, and started anew.
    Stop {
        replica: usize,
    },
    Wait {
        ms: u64,
    },
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        6 => Just(Fate::Well),
        2 => Just(Fate::FailsBefore),
        3 => Just(Fate::LostReply),
        1 => Just(Fate::KilledBefore),
        1 => Just(Fate::KilledAfter),
    ]
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        6 => (0..2_usize).prop_map(|lane| Move::Publish { lane }),
        4 => (0..3_usize, 0..10_usize).prop_map(|(replica, bundle)| Move::Tell { replica, bundle }),
        4 => (0..3_usize, prop::collection::vec(fate(), 1..12))
            .prop_map(|(replica, fates)| Move::Fates { replica, fates }),
        3 => (0..3_usize).prop_map(|replica| Move::Restart { replica }),
        1 => (0..3_usize).prop_map(|replica| Move::Stop { replica }),
        3 => (1..8_u64).prop_map(|ms| Move::Wait { ms }),
    ];
    prop::collection::vec(one, 4..48)
}

/// Whoever deletes messages: each handle is the key of its bundle.
struct Queue {
    done: mpsc::Sender<String>,
    told_off: mpsc::Receiver<String>,
    places: Arc<Semaphore>,
}

impl Queue {
    fn new() -> Self {
        let (done, told_off) = mpsc::channel(1_000);
        Self { done, told_off, places: Arc::new(Semaphore::new(1_000)) }
    }

    async fn notice(&self, name: &BundleName) -> Notice {
        let place = Arc::clone(&self.places).acquire_owned().await.unwrap();
        let (_, mut receipts) = Receipt::of(name.to_string(), 1, self.done.clone(), place);
        Notice { name: name.clone(), receipt: receipts.pop() }
    }

    /// No message is deleted before the output of its bundle is whole.
    async fn assert_told_off_in_time(&mut self, store: &Arc<InMemory>) {
        let sink = crate::sink::ObjectsSink::new(Arc::clone(store) as _, Path::from("cloud"));
        while let Ok(key) = self.told_off.try_recv() {
            let entries = entries(store).await;
            let entry =
                entries.iter().find(|entry| entry.bundle.as_ref().is_some_and(|named| named.key == key));
            let entry = entry.expect("what is told off is decided");
            assert!(sink.is_whole(entry).await.unwrap(), "{key}");
        }
    }
}

async fn play(world: &World, traffic: &Traffic, moves: Vec<Move>) {
    let store = Arc::new(InMemory::new());
    let mut queue = Queue::new();
    let mut ids = 0..=u8::MAX;
    let mut start = |fates| Running::start(world, &store, ids.next().expect("few are started"), fates);
    let mut replicas: Vec<Running> = (0..3).map(|_| start(Vec::new())).collect();
    let mut published: Vec<BundleName> = Vec::new();
    let mut next = [0; 2];
    for one in moves {
        match one {
            Move::Publish { lane } => {
                if let Some(bundle) = traffic.lanes[lane].get(next[lane]) {
                    publish(&store, bundle).await;
                    next[lane] += 1;
                    published.push(bundle.0.clone());
                }
            }
            Move::Tell { replica, bundle } => {
                if !published.is_empty() {
                    let name = &published[bundle % published.len()];
                    // Nobody hears it where nobody is.
                    let _ = replicas[replica].notices.try_send(queue.notice(name).await);
                }
            }
            Move::Fates { replica, fates } => replicas[replica].way.will(fates),
            Move::Restart { replica } => {
                let old = std::mem::replace(&mut replicas[replica], start(Vec::new()));
                old.way.kill();
                old.stop().await;
            }
            Move::Stop { replica } => {
                let old = std::mem::replace(&mut replicas[replica], start(Vec::new()));
                old.stop().await;
            }
            Move::Wait { ms } => tokio::time::sleep(Duration::from_millis(ms)).await,
        }
        queue.assert_told_off_in_time(&store).await;
    }
    for (lane, bundles) in traffic.lanes.iter().enumerate() {
        for bundle in &bundles[next[lane]..] {
            publish(&store, bundle).await;
        }
    }
    for replica in &mut replicas {
        replica.way.be_well();
        if replica.is_dead() {
            let old = std::mem::replace(replica, start(Vec::new()));
            old.stop().await;
        }
    }
    until_quiet(&store, 10).await;
    for replica in replicas {
        replica.stop().await;
    }
    queue.assert_told_off_in_time(&store).await;
    assert_balanced(&store, true).await;
}

/// The bucket, three replicas, and whatever may happen to them: afterwards everything is applied once, in order, and is where the
/// ledger says. `PITHEAD_LONG=1` plays for long.
#[test]
fn whatever_happens_to_replicas_everything_is_applied_once_and_in_order() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let world = runtime.block_on(World::new());
    let traffic = traffic(&world);
    let cases = if std::env::var_os("PITHEAD_LONG").is_some() { 2_000 } else { 24 };
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let played = runner.run(&moves(), |moves| {
        runtime.block_on(play(&world, &traffic, moves));
        Ok(())
    });
    if let Err(error) = played {
        panic!("{error}");
    }
}

/// Killed at each of its requests, one after the other, before and after each is done: the next one carries on.
#[test]
fn killed_at_every_request_the_next_replica_carries_on() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let world = runtime.block_on(World::new());
    let traffic = traffic(&world);
    for kill in [Fate::KilledBefore, Fate::KilledAfter, Fate::LostReply, Fate::FailsBefore] {
        for at in 0..24 {
            runtime.block_on(async {
                let store = Arc::new(InMemory::new());
                for one in traffic.lanes.iter().flatten() {
                    publish(&store, one).await;
                }
                let fates = std::iter::repeat_n(Fate::Well, at).chain([kill]).collect();
                let first = Running::start(&world, &store, 1, fates);
                match kill {
                    Fate::KilledBefore | Fate::KilledAfter => first.way.died.notified().await,
                    _ => first.way.met.notified().await,
                }
                first.stop().await;
                let second = Running::start(&world, &store, 2, Vec::new());
                until_quiet(&store, 10).await;
                second.stop().await;
                assert_balanced(&store, true).await;
            });
        }
    }
}

async fn opened(world: &World, store: &Arc<InMemory>, id: u8) -> SiteReplica {
    SiteReplica::open(world.shared(Arc::clone(store) as _, id), site_of("pit-7")).await.unwrap()
}

async fn prepared(replica: &SiteReplica, name: &BundleName) -> Box<site::Prepared> {
    match replica.prepare(name, Turn::default()).await.unwrap() {
        Fetched::Prepared(prepared) => prepared,
        Fetched::Not(taken) => panic!("{taken:?}"),
    }
}

/// Two have opened the same envelopes out of bundles of different lanes; who is second finds duplicates where it had new ones.
#[tokio::test]
async fn who_loses_the_race_for_a_number_judges_again_by_what_the_winner_has_entered() {
    let (world, store) = (World::new().await, Arc::new(InMemory::new()));
    let mut session = world.session("truck-1", 7);
    let envelopes: Vec<_> = (1..=3).map(|seq| (seq - 1, batch(&mut session, seq, "x"))).collect();
    let (one, other) = (bundle("gw-1", 1, &envelopes), bundle("gw-2", 2, &envelopes[..2]));
    for bundle in [&one, &other] {
        publish(&store, bundle).await;
    }
    let (a, b) = (opened(&world, &store, 1).await, opened(&world, &store, 2).await);
    let (of_a, of_b) = (prepared(&a, &one.0).await, prepared(&b, &other.0).await);
    assert!(matches!(a.decide(&of_a).await.unwrap(), Taken::Decided(entry) if entry.number == 1));
    // Nothing of it is new any more, so nothing has to be written.
    assert!(matches!(b.decide(&of_b).await.unwrap(), Taken::Done));
    let entries = entries(&store).await;
    let duplicates = |entry: &Decision| {
        entry.envelopes.iter().filter(|one| matches!(one.verdict, Some(Verdict::Duplicate(_)))).count()
    };
    assert_eq!(entries.iter().map(|entry| duplicates(entry)).collect::<Vec<_>>(), [0, 2]);
    assert!(matches!(a.prepare(&one.0, Turn::default()).await.unwrap(), Fetched::Not(Taken::Decided(_))));
}

/// A later bundle is heard of first, and the books cannot know that nothing is before it: it looks, and stands back.
#[tokio::test]
async fn a_bundle_stands_back_behind_an_earlier_one_that_is_in_the_bucket() {
    let (world, store) = (World::new().await, Arc::new(InMemory::new()));
    let mut session = world.session("truck-1", 7);
    let mut envelopes = (1..=6).map(|seq| (seq - 1, batch(&mut session, seq, "x"))).collect::<Vec<_>>();
    let (first, rest) = (bundle("gw-1", 1, &envelopes[..2]), envelopes.split_off(2));
    // Places 2 and 3 are under way elsewhere.
    let (later, late) = (bundle("gw-1", 1, &rest[2..]), bundle("gw-1", 1, &rest[..2]));
    publish(&store, &first).await;
    publish(&store, &later).await;
    let replica = opened(&world, &store, 1).await;
    let of_later = prepared(&replica, &later.0).await;
    let Taken::Behind(before) = replica.decide(&of_later).await.unwrap() else { panic!("one is before it") };
    assert_eq!(before, std::slice::from_ref(&first.0));
    let of_first = prepared(&replica, &first.0).await;
    assert!(matches!(replica.decide(&of_first).await.unwrap(), Taken::Decided(_)));
    // Nobody has put anything between: it need not wait for what may never come.
    assert!(matches!(replica.decide(&of_later).await.unwrap(), Taken::Decided(_)));
    // What comes after all is taken.
    publish(&store, &late).await;
    let found = replica.undecided(None).await.unwrap();
    assert_eq!(found.iter().map(|(name, _)| name).collect::<Vec<_>>(), [&late.0]);
    let of_late = prepared(&replica, &late.0).await;
    assert!(matches!(replica.decide(&of_late).await.unwrap(), Taken::Decided(_)));
    assert!(replica.undecided(None).await.unwrap().is_empty());
    assert_eq!(opened(&world, &store, 2).await.undecided(None).await.unwrap().len(), 0);
}

/// What is no bundle is decided as such, and its lane goes on.
#[tokio::test]
async fn an_object_that_is_no_bundle_is_refused_once_and_stays_where_it_is() {
    let (world, store) = (World::new().await, Arc::new(InMemory::new()));
    let mut session = world.session("truck-1", 7);
    let envelopes: Vec<_> = (1..=4).map(|seq| (seq - 1, batch(&mut session, seq, "x"))).collect();
    let (first, second) = (bundle("gw-1", 1, &envelopes[..2]), bundle("gw-1", 1, &envelopes[2..]));
    publish(&store, &(first.0.clone(), second.1.clone())).await;
    publish(&store, &second).await;
    let running = Running::start(&world, &store, 1, Vec::new());
    until_quiet(&store, 2).await;
    running.stop().await;
    let entries = entries(&store).await;
    assert_eq!(entries[0].refused, ErrorReason::BundleMalformed as i32);
    assert_eq!((entries[1].refused, entries[1].envelopes.len()), (0, 2));
    let report =
        report(&site::read(&Chain::new(store as _, &Path::from("cloud"), site_of("pit-7"))).await.unwrap());
    assert_eq!(report.missing(), 2, "what it should have held shows");
}

/// Without its key a bundle waits, and nothing is decided.
#[tokio::test]
async fn while_a_data_key_cannot_be_had_nothing_of_the_bundle_is_decided() {
    use crate::kms::{KmsError, KmsFault};
    use crate::unwrap::{KeyUnwrapper, Unwrapping};
    #[derive(Debug)]
    struct Throttled;
    impl KeyUnwrapper for Throttled {
        fn unwrap<'a>(&'a self, _: &'a pithead_sealing::trust::KeyArn, _: &'a [u8]) -> Unwrapping<'a> {
            Box::pin(async { Err(KmsError::new(KmsFault::Throttled, "on demand").into()) })
        }

        fn may_hold(&self, _: &pithead_sealing::trust::KeyArn) -> bool {
            true
        }
    }
    let (world, store) = (World::new().await, Arc::new(InMemory::new()));
    let envelopes = [(0, batch(&mut world.session("truck-1", 7), 1, "x"))];
    let one = bundle("gw-1", 1, &envelopes);
    publish(&store, &one).await;
    let keys = crate::books::Books::open(world.dir.path(), std::slice::from_ref(&world.key.arn)).unwrap();
    let shared = world.shared_with(Arc::clone(&store) as _, 1, keys, Arc::new(Throttled));
    let replica = SiteReplica::open(shared, site_of("pit-7")).await.unwrap();
    let waits = replica.prepare(&one.0, Turn::default()).await.unwrap_err();
    assert!(matches!(&waits, Waits::Again(again) if again.reason == ErrorReason::KmsThrottled), "{waits}");
    assert!(entries(&store).await.is_empty());
}

/// What was decided about a bundle that somebody has replaced since cannot be written, and is not made up.
#[tokio::test]
async fn the_output_of_a_bundle_that_was_replaced_is_not_written() {
    let (world, store) = (World::new().await, Arc::new(InMemory::new()));
    let mut session = world.session("truck-1", 7);
    let one = bundle("gw-1", 1, &[(0, batch(&mut session, 1, "x"))]);
    publish(&store, &one).await;
    let replica = opened(&world, &store, 1).await;
    let Taken::Decided(entry) = replica.decide(&*prepared(&replica, &one.0).await).await.unwrap() else {
        panic!("it is the first")
    };
    let other = bundle("gw-1", 1, &[(0, batch(&mut world.session("truck-1", 7), 1, "y"))]);
    assert_eq!(other.0, one.0);
    publish(&store, &other).await;
    let again = opened(&world, &store, 2).await;
    let waits = again.finish_one(&entry).await.unwrap_err();
    assert!(matches!(waits, Waits::Changed { number: 1, .. }), "{waits}");
    publish(&store, &one).await;
    again.finish_one(&entry).await.unwrap();
    assert_eq!(outputs(&store).await.len(), 1);
    assert!(LaneId::of(&one.0).to_string().starts_with("gw-1-"));
}

/// Nor is one of which an envelope has rotted since: no line is left out without a word.
#[tokio::test]
async fn the_output_of_a_bundle_that_has_rotted_is_not_written_without_what_has() {
    let (world, store) = (World::new().await, Arc::new(InMemory::new()));
    let mut session = world.session("truck-1", 7);
    let one = bundle("gw-1", 1, &[(0, batch(&mut session, 1, "x")), (1, batch(&mut session, 2, "x"))]);
    publish(&store, &one).await;
    let replica = opened(&world, &store, 1).await;
    let Taken::Decided(entry) = replica.decide(&*prepared(&replica, &one.0).await).await.unwrap() else {
        panic!("it is the first")
    };
    let mut rotten = one.1.to_vec();
    *rotten.last_mut().unwrap() ^= 1;
    publish(&store, &(one.0.clone(), rotten.into())).await;
    let waits = replica.finish_one(&entry).await.unwrap_err();
    assert!(matches!(waits, Waits::Changed { number: 1, .. }), "{waits}");
    assert!(outputs(&store).await.is_empty());
}

/// Large ones: one that is read as it is opened, one that fits into memory, one whose last frame is damaged, and one that is not there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_envelope_is_an_object_that_its_line_names_and_only_if_its_last_frame_was_authentic() {
    let (world, store) = (World::new().await, Arc::new(InMemory::new()));
    let content = |bytes: usize| (0..bytes).map(|at| (at / 7) as u8).collect::<Vec<u8>>();
    let (long, short) = (content(17 << 20), content(2 << 20));
    let (large, sealed) = world.file("truck-1", 1, &long);
    let (small, small_sealed) = world.file("truck-2", 1, &short);
    let (damaged, mut damaged_sealed) = {
        let (large, sealed) = world.file("truck-3", 1, &long);
        (large, sealed.to_vec())
    };
    *damaged_sealed.last_mut().unwrap() ^= 1;
    let (missing, _) = world.file("truck-4", 1, &short);
    put(&store, &large.name.to_string(), &sealed).await;
    put(&store, &small.name.to_string(), &small_sealed).await;
    put(&store, &damaged.name.to_string(), &damaged_sealed.into()).await;
    let all = [&large, &small, &damaged, &missing].map(|one| Content::Large(one.clone()));
    let one = bundle_of("gw-1", 1, (0..).zip(all).collect());
    publish(&store, &one).await;
    // Whoever has decided is gone before anything is written: the next one reads all of it again.
    let first = opened(&world, &store, 1).await;
    let of_one = prepared(&first, &one.0).await;
    assert!(matches!(first.decide(&of_one).await.unwrap(), Taken::Decided(_)));
    drop((of_one, first));
    let running = Running::start(&world, &store, 2, Vec::new());
    until_quiet(&store, 1).await;
    running.stop().await;
    let entry = entries(&store).await.remove(0);
    let reason = |at: usize| match entry.envelopes[at].verdict.as_ref().unwrap() {
        Verdict::SetAside(aside) => (aside.reason, aside.kept),
        _ => (0, true),
    };
    assert_eq!((reason(0), reason(1)), ((0, true), (0, true)));
    assert_eq!(reason(2), (ErrorReason::EnvelopeFrameTag as i32, false));
    assert_eq!(reason(3), (ErrorReason::StoreNotFound as i32, false));
    let found: Vec<_> = store.list(Some(&Path::from("cloud/out"))).try_collect().await.unwrap();
    let mut lines = Vec::new();
    for object in &found {
        if object.location.extension() == Some("zst") {
            let bytes = store.get(&object.location).await.unwrap().bytes().await.unwrap();
            let text = String::from_utf8(zstd::decode_all(&bytes[..]).unwrap()).unwrap();
            lines.extend(text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()));
        }
    }
    assert_eq!((found.len(), lines.len()), (2, 2), "{found:?}");
    let file = lines[0]["file"].as_str().unwrap();
    assert!(
        file.starts_with("out/pit-7/") && file.ends_with("/00000.large") && lines[0].get("data").is_none()
    );
    let key = file.split('/').fold(Path::from("cloud"), Path::join);
    let written = store.get(&key).await.unwrap().bytes().await.unwrap();
    assert!(written[..] == long[..], "{} bytes", written.len());
    let data = Base64::decode_vec(lines[1]["data"].as_str().unwrap()).unwrap();
    assert!(data == short && lines[1].get("file").is_none());
    let applied = match entry.envelopes[0].verdict.as_ref().unwrap() {
        Verdict::Applied(one) => one.applied.clone().unwrap(),
        other => panic!("{other:?}"),
    };
    assert_eq!((applied.plaintext_bytes, applied.sealed_bytes), (17 << 20, sealed.len() as u64));
    assert_eq!(lines[0]["envelope_sha256"], hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&sealed)));
}

/// A gateway that was killed while a large envelope was under way packs anew what it had put behind that: under another name, and with
/// more in it.
#[tokio::test]
async fn a_bundle_that_begins_inside_another_one_is_taken_for_what_is_new_in_it() {
    let (world, store) = (World::new().await, Arc::new(InMemory::new()));
    let mut session = world.session("truck-1", 7);
    let all: Vec<_> = (1..=6).map(|seq| (seq - 1, batch(&mut session, seq, "x"))).collect();
    let (first, again) = (bundle("gw-1", 1, &all[..4]), bundle("gw-1", 1, &all[2..]));
    publish(&store, &first).await;
    let one = Running::start(&world, &store, 1, Vec::new());
    until_quiet(&store, 1).await;
    publish(&store, &again).await;
    until_quiet(&store, 2).await;
    one.stop().await;
    let entries = entries(&store).await;
    let applied = |entry: &Decision| {
        entry.envelopes.iter().filter(|one| matches!(one.verdict, Some(Verdict::Applied(_)))).count()
    };
    assert_eq!(entries.iter().map(|entry| applied(entry)).collect::<Vec<_>>(), [4, 2]);
}

/// So many lanes of so many bundles, each of one envelope.
async fn fill(world: &World, store: &InMemory, lanes: u8, bundles: u64) -> usize {
    for lane in 1..=lanes {
        let mut session = world.session(&format!("truck-{lane}"), 7);
        for seq in 1..=bundles {
            let sealed = batch(&mut session, seq, "x");
            publish(store, &bundle(&format!("gw-{lane}"), lane, &[(seq - 1, sealed)])).await;
        }
    }
    usize::from(lanes) * bundles as usize
}

/// What is fetched ahead never has the memory that what comes before it waits for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_for_little_more_than_a_bundle_is_enough_for_many_lanes() {
    let (world, store) = (World::new().await, Arc::new(InMemory::new()));
    let bundles = fill(&world, &store, 8, 6).await;
    let sizes: Vec<_> = store.list(Some(&Path::from("in"))).try_collect::<Vec<_>>().await.unwrap();
    let room = sizes.iter().map(|object| object.size as usize).max().unwrap() * 3 / 2;
    let way = Faulty::new(&store);
    let running = Running::with(world.shared_in(room, Arc::new(Way(Arc::clone(&way))), 1), way);
    until_quiet(&store, bundles).await;
    running.stop().await;
}

/// A sink that takes no output: the ledger goes on so far, and the bundles stay where they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_sink_that_takes_no_output_nothing_more_is_decided_and_later_everything_is_written() {
    const LANES: usize = 2;
    let (world, store) = (World::new().await, Arc::new(InMemory::new()));
    let bundles = fill(&world, &store, LANES as u8, OUTPUTS_MAX as u64).await;
    let way = Faulty::new(&store);
    way.refuse("/out/");
    let running = Running::with(world.shared(Arc::new(Way(Arc::clone(&way))), 1), Arc::clone(&way));
    // As soon as so many are decided, what is under way in each lane may be, and no more.
    let decided = async || entries(&store).await.len();
    let waiting = async {
        while decided().await < OUTPUTS_MAX {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("so many are decided");
    // Long enough for a lane that does not wait to go through what is left.
    let looked = running.way.asked();
    while running.way.asked() < looked + 1_000 {
        tokio::task::yield_now().await;
    }
    let now = decided().await;
    assert!(now < OUTPUTS_MAX + LANES, "{now} of {bundles}");
    way.be_well();
    until_quiet(&store, bundles).await;
    running.stop().await;
    assert_eq!(outputs(&store).await.len(), bundles);
}

/// One that was decided and whose bundle is gone is nobody's to write, and holds up no other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_output_that_cannot_be_written_holds_up_none_behind_it() {
    let (world, store) = (World::new().await, Arc::new(InMemory::new()));
    let mut session = world.session("truck-1", 7);
    let all: Vec<_> =
        (1..=2).map(|seq| bundle("gw-1", 1, &[(seq - 1, batch(&mut session, seq, "x"))])).collect();
    let first = opened(&world, &store, 1).await;
    for one in &all {
        publish(&store, one).await;
        assert!(matches!(first.decide(&*prepared(&first, &one.0).await).await.unwrap(), Taken::Decided(_)));
    }
    drop(first);
    let key = all[0].0.to_string().split('/').fold(Path::from("in"), Path::join);
    store.delete(&key).await.unwrap();
    let second = Running::start(&world, &store, 2, Vec::new());
    let waiting = async {
        while outputs(&store).await.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("the second is written");
    // It is put back: by then nobody has forgotten it.
    publish(&store, &all[0]).await;
    until_quiet(&store, 2).await;
    second.stop().await;
}

/// A late word of a bundle that somebody else has decided, and a rule of the bucket has removed since.
#[tokio::test]
async fn a_bundle_that_is_decided_and_gone_is_done() {
    let (world, store) = (World::new().await, Arc::new(InMemory::new()));
    let one = bundle("gw-1", 1, &[(0, batch(&mut world.session("truck-1", 7), 1, "x"))]);
    let late = opened(&world, &store, 2).await;
    publish(&store, &one).await;
    let running = Running::start(&world, &store, 1, Vec::new());
    until_quiet(&store, 1).await;
    running.stop().await;
    store.delete(&one.0.to_string().split('/').fold(Path::from("in"), Path::join)).await.unwrap();
    let Fetched::Not(Taken::Decided(entry)) = late.prepare(&one.0, Turn::default()).await.unwrap() else {
        panic!("it is decided")
    };
    // Its output is there: nothing of the bundle is needed.
    late.finish_one(&entry).await.unwrap();
    let other = bundle("gw-1", 1, &[(1, batch(&mut world.session("truck-1", 7), 2, "x"))]);
    assert!(matches!(late.prepare(&other.0, Turn::default()).await.unwrap(), Fetched::Not(Taken::Gone)));
}

/// Nothing of a lane under a key that nobody may use is decided; neither its many bundles nor their messages take room from others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_waits_holds_no_place_of_another_however_much_lies_behind_it() {
    use crate::kms::{KmsError, KmsFault};
    use crate::unwrap::{KeyUnwrapper, LocalKeys, Unwrapping};
    /// The first key that it is asked for, for ever.
    #[derive(Debug)]
    struct DeniesOne(std::sync::OnceLock<Vec<u8>>, LocalKeys);
    impl KeyUnwrapper for DeniesOne {
        fn unwrap<'a>(
            &'a self,
            key: &'a pithead_sealing::trust::KeyArn,
            wrapped: &'a [u8],
        ) -> Unwrapping<'a> {
            if wrapped == self.0.get_or_init(|| wrapped.to_vec()) {
                return Box::pin(async { Err(KmsError::new(KmsFault::Denied, "on demand").into()) });
            }
            self.1.unwrap(key, wrapped)
        }

        fn may_hold(&self, key: &pithead_sealing::trust::KeyArn) -> bool {
            self.1.may_hold(key)
        }
    }
    const MANY: u64 = 1_200;
    let (world, store) = (World::new().await, Arc::new(InMemory::new()));
    let mut denied = world.session("truck-1", 7);
    let sealed = batch(&mut denied, 1, "x");
    let local = LocalKeys::load([(world.key.arn.clone(), world.key.pem.as_path())]).unwrap();
    let keys = crate::books::Books::open(world.dir.path(), std::slice::from_ref(&world.key.arn)).unwrap();
    let way = Faulty::new(&store);
    let unwrapper = Arc::new(DeniesOne(std::sync::OnceLock::new(), local));
    let shared = world.shared_with(Arc::new(Way(Arc::clone(&way))), 1, keys, unwrapper);
    let queue = Queue::new();
    let running = Running::with(shared, way);
    // As many as there are places for messages, and more; each is told of when there is a place.
    for place in 0..MANY {
        let one = bundle("gw-1", 1, &[(place, sealed.clone())]);
        publish(&store, &one).await;
        let notice = tokio::time::timeout(Duration::from_secs(20), queue.notice(&one.0));
        running.notices.send(notice.await.expect("a place is free")).await.unwrap();
    }
    let other = bundle("gw-2", 2, &[(0, batch(&mut world.session("truck-2", 7), 1, "x"))]);
    publish(&store, &other).await;
    let notice = tokio::time::timeout(Duration::from_secs(20), queue.notice(&other.0));
    running.notices.send(notice.await.expect("a place is free")).await.unwrap();
    until_quiet(&store, 1).await;
    running.stop().await;
    let entries = entries(&store).await;
    assert_eq!(entries[0].bundle.as_ref().unwrap().key, other.0.to_string());
}

/// A bundle of so many envelopes of a session, at these places, of this hour after midnight.
fn at_hour(
    session: &mut pithead_sealing::envelope::Session,
    places: std::ops::Range<u64>,
    hour: u64,
) -> (BundleName, Bytes) {
    let envelopes = places.map(|place| (place, batch(session, place + 1, "x"))).collect::<Vec<_>>();
    super::testing::bundle_at("gw-1", 1, &envelopes, super::testing::MIDNIGHT_US + hour * 3_600_000_000)
}

/// Decides in the order in which a later one is heard of first: what is before it has to be found.
async fn assert_stands_back(hours: [u64; 3]) {
    let (world, store) = (World::new().await, Arc::new(InMemory::new()));
    let mut session = world.session("truck-1", 7);
    let [first, between, later] = [(0..1, hours[0]), (2..3, hours[1]), (4..5, hours[2])]
        .map(|(places, hour)| at_hour(&mut session, places, hour));
    for one in [&first, &between, &later] {
        publish(&store, one).await;
    }
    let replica = opened(&world, &store, 1).await;
    let of_first = prepared(&replica, &first.0).await;
    assert!(matches!(replica.decide(&of_first).await.unwrap(), Taken::Decided(_)));
    let of_later = prepared(&replica, &later.0).await;
    let taken = replica.decide(&of_later).await.unwrap();
    let Taken::Behind(before) = taken else { panic!("{hours:?}: one is before it") };
    assert_eq!(before, [between.0], "{hours:?}");
}

#[tokio::test]
async fn a_bundle_stands_back_behind_one_in_any_hour_of_a_gap_and_behind_one_of_a_clock_that_went_back() {
    // Within two days, in the middle of a month, and in a folder that is later than its own.
    assert_stands_back([0, 30, 40]).await;
    assert_stands_back([0, 300, 700]).await;
    assert_stands_back([10, 12, 11]).await;
    assert_stands_back([10, 15, 8]).await;
}

/// What `verify` says of a bucket, by checkpoint or by every entry.
async fn proven(store: &Arc<InMemory>, from_first: bool) -> Report {
    let chain = Chain::new(Arc::clone(store) as _, &Path::from("cloud"), site_of("pit-7"));
    let (books, damage) = site::look(&chain, from_first).await;
    assert!(damage.is_none());
    let sink = crate::sink::ObjectsSink::new(Arc::clone(store) as _, Path::from("cloud"));
    Report { beside: site::beside(&books, &sink).await.unwrap(), ..report(&books) }
}

/// An entry is no proof of what nobody can read.
#[tokio::test]
async fn what_is_decided_and_not_written_is_no_proof_until_it_is() {
    let (world, store) = (World::new().await, Arc::new(InMemory::new()));
    let one = bundle("gw-1", 1, &[(0, batch(&mut world.session("truck-1", 7), 1, "x"))]);
    publish(&store, &one).await;
    let replica = opened(&world, &store, 1).await;
    let Taken::Decided(entry) = replica.decide(&*prepared(&replica, &one.0).await).await.unwrap() else {
        panic!("it is the first")
    };
    replica.close().await;
    for from_first in [true, false] {
        let report = proven(&store, from_first).await;
        assert!(report.missing() == 0 && !report.is_proof(), "{}", report.as_text());
        assert_eq!(report.as_json()["unwritten"], 1);
        assert!(report.as_text().ends_with("cannot be read yet\n"), "{}", report.as_text());
    }
    replica.finish_one(&entry).await.unwrap();
    // No later entry has said so: the sink is asked.
    assert!(proven(&store, true).await.is_proof() && proven(&store, false).await.is_proof());
}

#[tokio::test]
async fn an_object_that_was_no_bundle_is_no_proof_and_an_envelope_of_nobody_is_counted() {
    let (world, store) = (World::new().await, Arc::new(InMemory::new()));
    let mut session = world.session("truck-1", 7);
    let first = bundle("gw-1", 1, &[(0, batch(&mut session, 1, "x")), (1, batch(&mut session, 2, "x"))]);
    let mut rotten = first.1.to_vec();
    *rotten.last_mut().unwrap() ^= 1;
    publish(&store, &(first.0.clone(), rotten.into())).await;
    let replica = opened(&world, &store, 1).await;
    let taken = replica.decide(&*prepared(&replica, &first.0).await).await.unwrap();
    let Taken::Decided(entry) = taken else { panic!("{taken:?}") };
    replica.finish_one(&entry).await.unwrap();
    let report = proven(&store, true).await;
    assert!(report.is_proof(), "of what follows nobody has told: {}", report.as_text());
    assert_eq!(report.as_json()["nameless_set_aside"], 1);
    let second = bundle("gw-1", 1, &[(2, batch(&mut session, 3, "x"))]);
    publish(&store, &(second.0.clone(), Bytes::from_static(b"no bundle"))).await;
    assert!(matches!(replica.decide(&*prepared(&replica, &second.0).await).await.unwrap(), Taken::Done));
    replica.close().await;
    for from_first in [true, false] {
        let report = proven(&store, from_first).await;
        assert_eq!((report.missing(), &report.as_json()["bundles_refused"]), (0, &serde_json::json!(1)));
        assert!(!report.is_proof(), "{}", report.as_text());
    }
}

/// The replica that loses the races has nothing to write, and goes on; and it learns from the ledger when the other one has written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_are_left_to_others_are_no_outputs_under_way() {
    const EACH: u64 = OUTPUTS_MAX as u64 / 2 + 4;
    let (world, store) = (World::new().await, Arc::new(InMemory::new()));
    let mut all = Vec::new();
    for lane in 1..=2 {
        let mut session = world.session(&format!("truck-{lane}"), 7);
        for seq in 1..=EACH {
            all.push(bundle(&format!("gw-{lane}"), lane, &[(seq - 1, batch(&mut session, seq, "x"))]));
        }
    }
    let first = opened(&world, &store, 1).await;
    let mut decided = Vec::new();
    for one in &all {
        publish(&store, one).await;
        let taken = first.decide(&*prepared(&first, &one.0).await).await.unwrap();
        let Taken::Decided(entry) = taken else { panic!("{taken:?}") };
        decided.push(entry);
    }
    let mut queue = Queue::new();
    let way = Faulty::new(&store);
    let for_long = Pace { grace: Duration::from_secs(3_600), ..pace() };
    let second = Running::at(for_long, world.shared(Arc::new(Way(Arc::clone(&way))), 2), way);
    for one in &all {
        second.notices.send(queue.notice(&one.0).await).await.unwrap();
    }
    let other = bundle("gw-3", 3, &[(0, batch(&mut world.session("truck-3", 7), 1, "x"))]);
    publish(&store, &other).await;
    second.notices.send(queue.notice(&other.0).await).await.unwrap();
    let told_off = tokio::time::timeout(Duration::from_secs(60), queue.told_off.recv());
    assert_eq!(told_off.await.expect("it is decided and written"), Some(other.0.to_string()));
    // The first writes what is its own, and says so with its next entry: the second has an hour to wait for that.
    first.catch_up().await.unwrap();
    for entry in &decided {
        first.finish_one(entry).await.unwrap();
    }
    let waiting = async {
        for _ in &all {
            queue.told_off.recv().await.unwrap();
        }
    };
    // Until it is the first who decides one.
    let saying = async {
        let mut session = world.session("truck-4", 7);
        for seq in 1.. {
            let one = bundle("gw-4", 4, &[(seq - 1, batch(&mut session, seq, "x"))]);
            publish(&store, &one).await;
            if let Ok(Fetched::Prepared(prepared)) = first.prepare(&one.0, Turn::default()).await
                && let Ok(Taken::Decided(entry)) = first.decide(&prepared).await
                && entry.replica[..] == [1; 16]
            {
                break;
            }
        }
    };
    let both = async { tokio::join!(waiting, saying) };
    tokio::time::timeout(Duration::from_secs(60), both).await.expect("all are told off");
    second.stop().await;
}

/// KMS is asked for the keys of a bundle some at a time, and no further after the first that it does not give.
#[tokio::test]
async fn a_bundle_of_many_sessions_is_not_asked_for_to_its_end_while_kms_gives_nothing() {
    use crate::kms::{KmsError, KmsFault};
    use crate::unwrap::{KeyUnwrapper, Unwrapping};
    use std::sync::atomic::{AtomicU64, Ordering};
    #[derive(Debug, Default)]
    struct Throttled(AtomicU64);
    impl KeyUnwrapper for Throttled {
        fn unwrap<'a>(&'a self, _: &'a pithead_sealing::trust::KeyArn, _: &'a [u8]) -> Unwrapping<'a> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Box::pin(async { Err(KmsError::new(KmsFault::Throttled, "on demand").into()) })
        }

        fn may_hold(&self, _: &pithead_sealing::trust::KeyArn) -> bool {
            true
        }
    }
    let (world, store) = (World::new().await, Arc::new(InMemory::new()));
    let sealed =
        (0..200).map(|truck| (truck, batch(&mut world.session(&format!("truck-{truck}"), 7), 1, "x")));
    let one = bundle("gw-1", 1, &sealed.collect::<Vec<_>>());
    publish(&store, &one).await;
    let keys = crate::books::Books::open(world.dir.path(), std::slice::from_ref(&world.key.arn)).unwrap();
    let kms = Arc::new(Throttled::default());
    let shared = world.shared_with(Arc::clone(&store) as _, 1, keys, Arc::clone(&kms) as _);
    let replica = SiteReplica::open(shared, site_of("pit-7")).await.unwrap();
    replica.prepare(&one.0, Turn::default()).await.unwrap_err();
    let calls = kms.0.load(Ordering::Relaxed);
    assert!((1..=64).contains(&calls), "{calls}");
}

/// Gateways may have a new key before every replica has: what is sealed under it waits an hour, and is then set aside.
#[tokio::test]
async fn a_young_bundle_under_a_key_that_is_not_known_here_waits_and_an_old_one_is_set_aside() {
    let (world, store) = (World::new().await, Arc::new(InMemory::new()));
    let one = bundle("gw-1", 1, &[(0, batch(&mut world.session("truck-1", 7), 1, "x"))]);
    publish(&store, &one).await;
    let keys = crate::books::Books::open(world.dir.path(), &[world.other_key().arn]).unwrap();
    let local = crate::unwrap::LocalKeys::load([(world.key.arn.clone(), world.key.pem.as_path())]).unwrap();
    let shared = world.shared_with(Arc::clone(&store) as _, 1, keys, Arc::new(local));
    let replica = SiteReplica::open(Arc::clone(&shared), site_of("pit-7")).await.unwrap();
    let waits = replica.prepare(&one.0, Turn::default()).await.unwrap_err();
    assert!(matches!(&waits, Waits::Again(again) if again.reason == ErrorReason::KeyUnknown), "{waits}");
    let read = pithead_hop::bundle::Bundle::read(one.1.clone()).unwrap();
    let ready = super::judge::prepare(&shared, &replica.registry(), &read, false).await.unwrap();
    let super::judge::What::Refused { reason, .. } = &ready[0].what else { panic!("{:?}", ready[0].what) };
    assert_eq!(*reason, ErrorReason::KeyUnknown);
    // With its key the same bundle is taken.
    assert!(matches!(
        opened(&world, &store, 2).await.prepare(&one.0, Turn::default()).await,
        Ok(Fetched::Prepared(_))
    ));
}

/// A ledger that somebody has damaged stops its own site.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_whose_ledger_is_damaged_stops_and_the_others_go_on() {
    let (world, store) = (World::new().await, Arc::new(InMemory::new()));
    let shared = world.shared(Arc::clone(&store) as _, 1);
    let mut sites = Vec::new();
    for site in ["pit-7", "pit-8"] {
        sites.push(Arc::new(SiteReplica::open(Arc::clone(&shared), site_of(site)).await.unwrap()));
    }
    let key = Path::from("cloud/ledger/pit-8/00000000000000000002");
    store.put(&key, Bytes::from_static(b"x").into()).await.unwrap();
    let (failing, broken, stop) = (Failing::default(), CancellationToken::new(), CancellationToken::new());
    let metrics = Arc::clone(&shared.metrics);
    let replica =
        Replica::new(sites, shared.replica, pace(), metrics, failing.clone(), broken.clone(), stop.clone());
    let (_notices, heard) = mpsc::channel(1);
    let running = tokio::spawn(replica.run(heard));
    let says = async {
        while !failing.now().get("ledger").is_some_and(|words| words.contains("pit-8")) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), says).await.expect("it is said");
    publish(&store, &bundle("gw-1", 1, &[(0, batch(&mut world.session("truck-1", 7), 1, "x"))])).await;
    until_quiet(&store, 1).await;
    assert!(!broken.is_cancelled() && failing.now()["ledger"].contains("pit-8"));
    store
        .put(&Path::from("cloud/ledger/pit-7/00000000000000000003"), Bytes::from_static(b"x").into())
        .await
        .unwrap();
    tokio::time::timeout(Duration::from_secs(60), broken.cancelled()).await.expect("no site is left");
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(20), running).await.expect("it stops").unwrap();
}

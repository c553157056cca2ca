//! The relay into a store on loopback: packed, found again, killed at every step, refused, foreign, slow.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use bytes::Bytes;
use http::Method;
use pithead_hop::bundle::{Bundle, BundleName, Content, Hour, LargeName, Origin, Packer, Part};
use pithead_hop::ingest::{Hop, Outcome};
use pithead_hop::objects::Credentials;
use pithead_sealing::StreamName;
use pithead_sealing::envelope::{Header, Profile};
use pithead_spool::Position;
use sha2::{Digest as _, Sha256};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::super::control::Control;
use super::super::{Relay, RelayReport};
use super::*;
use crate::config;
use crate::envelopes::lanes::Lanes;
use crate::envelopes::record::Head;
use crate::envelopes::refused::Refused;
use crate::envelopes::replicated::{Replicated, Standing, model::Model};
use crate::envelopes::testing::{Door, LONG, Truck, until};
use crate::health::{Health, Level};
use crate::metrics::Metrics;

#[path = "../../../../../tests/src/s3/mod.rs"]
#[allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "the whole-system tests use all of it, from a crate of their own"
)]
mod s3;

use s3::{Fault, TestS3};

const BUCKET: &str = "pits";
/// Old enough at once.
const AT_ONCE: Duration = Duration::from_millis(5);

fn settings(s3: &TestS3) -> Settings {
    Settings {
        endpoint: Some(s3.url()),
        credentials: Credentials::Fixed { id: "test".into(), secret: zeroize::Zeroizing::new("test".into()) },
        request_timeout: Duration::from_secs(2),
        retries: 0,
        ..Settings::new("s3://pits/sealed")
    }
}

fn target(s3: &TestS3) -> StoreTarget {
    StoreTarget { settings: settings(s3), bundle_bytes: 1 << 20, bundle_delay: AT_ONCE }
}

struct Running {
    stop: CancellationToken,
    task: JoinHandle<()>,
    health: Health,
    report: RelayReport,
    control: Control,
    metrics: Metrics,
}

fn start(folder: &Path, door: &Door, target: StoreTarget) -> Running {
    start_with(folder, door, watch::Sender::new(target).subscribe(), None)
}

fn start_with(
    folder: &Path,
    door: &Door,
    targets: watch::Receiver<StoreTarget>,
    rate: Option<u64>,
) -> Running {
    let metrics = Metrics::new();
    let refused = Arc::new(
        Refused::open(&folder.join("refused"), 1 << 20, metrics.clone(), door.shares.clone()).unwrap(),
    );
    let health = Health::new(metrics.clone(), Duration::ZERO);
    let (report, control) = (RelayReport::default(), Control::open(folder.join("relay"), rate).unwrap());
    let relay = Relay {
        spool: door.spool.clone(),
        numbers: door.numbers.clone(),
        uploads: door.uploads.clone(),
        copies: door.copies.clone(),
        refused,
        health: health.clone(),
        metrics: metrics.clone(),
        report: report.clone(),
        control: control.clone(),
        followed: door.followed.clone(),
    };
    let sender = sender(folder, door);
    let stop = CancellationToken::new();
    let task = tokio::spawn(relay.run_into_store(sender, targets, stop.clone()));
    Running { stop, task, health, report, control, metrics }
}

fn sender(folder: &Path, door: &Door) -> Sender {
    Sender {
        site: crate::keys::testing::site(),
        gateway: GatewayName::new("edge-1").unwrap(),
        spool: (!door.spool.is_replicated()).then(|| spool_id(&folder.join("spool")).unwrap()),
        journals: folder.join("relay-parts"),
    }
}

impl Running {
    async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(LONG, self.task).await.expect("it stops").unwrap();
    }

    /// What a kill leaves: nothing that was in memory, and nothing that was not yet written.
    async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }

    fn words(&self) -> String {
        self.health.report()["relay"].words.to_string()
    }
}

/// Stream, run and number of everything in the bucket, bundle by bundle in the order of their names or of their coming; of large
/// ones, once they are named.
fn entries(s3: &TestS3, names: impl IntoIterator<Item = String>) -> Vec<(String, u64, u64)> {
    let objects = s3.objects(BUCKET);
    let mut found = Vec::new();
    for key in names {
        let Some(name) = key.strip_prefix("sealed/").filter(|name| name.starts_with("bundles/")) else {
            continue;
        };
        let bundle = Bundle::read(objects[&key].bytes.clone()).unwrap();
        bundle.index().is_of(&BundleName::parse(name).unwrap()).unwrap();
        for (entry, part) in bundle.parts() {
            assert!(entry.hops().last().unwrap().gateway.starts_with("edge-"));
            let identity = match part {
                Part::Envelope(envelope) => {
                    let header = Header::parse(&envelope).unwrap();
                    Profile::of(&header).unwrap().identity().clone()
                }
                Part::Large(large) => {
                    let object = &objects[&format!("sealed/{}", large.name)];
                    assert_eq!(object.bytes.len() as u64, large.total);
                    large.name.identity.clone()
                }
                Part::Damaged(_) => panic!("damaged"),
            };
            found.push((identity.stream.to_string(), identity.run.get(), identity.seq.get()));
        }
    }
    found
}

fn by_name(s3: &TestS3) -> Vec<(String, u64, u64)> {
    entries(s3, s3.objects(BUCKET).into_keys())
}

fn by_coming(s3: &TestS3) -> Vec<(String, u64, u64)> {
    entries(s3, s3.created())
}

/// Each once, in the order of its line: what is there a second time left out.
fn once_and_in_order(found: Vec<(String, u64, u64)>) -> BTreeMap<(String, u64), Vec<u64>> {
    let (mut seen, mut lines) = (BTreeSet::new(), BTreeMap::<_, Vec<u64>>::new());
    for (stream, run, seq) in found {
        if seen.insert((stream.clone(), run, seq)) {
            lines.entry((stream, run)).or_default().push(seq);
        }
    }
    lines
}

fn numbers(s3: &TestS3) -> Vec<u64> {
    by_name(s3).into_iter().map(|(_, _, seq)| seq).collect()
}

fn bundles(s3: &TestS3) -> usize {
    s3.objects(BUCKET).keys().filter(|key| key.starts_with("sealed/bundles/")).count()
}

async fn gone(door: &Door) {
    until("all have left", || door.spool.stats().records == 0).await;
}

/// Large, and the same for all tests: sealing it takes a while.
fn large_envelope() -> Bytes {
    static LARGE: LazyLock<Bytes> = LazyLock::new(|| Truck::on("lidar", 9).seal(1, &vec![5; 20 << 20]));
    LARGE.clone()
}

#[tokio::test]
async fn what_waits_is_packed_in_order_with_its_custody_and_then_leaves() {
    let folder = tempfile::tempdir().unwrap();
    let (door, s3, mut truck) = (Door::open(folder.path()), TestS3::start().await.unwrap(), Truck::new());
    for seq in 1..=20 {
        assert_eq!(door.take(truck.seal(seq, b"record")).await, Outcome::Stored);
    }
    let running = start(folder.path(), &door, target(&s3));
    gone(&door).await;
    assert_eq!(numbers(&s3), (1..=20).collect::<Vec<_>>());
    assert!(running.report.get().up && running.report.get().acknowledged == 20);
    assert_eq!(running.health.report()["relay"].level, Level::Ok);
    let page = running.metrics.page();
    assert!(page.contains("pithead_relay_envelopes_total{outcome=\"stored\"} 20"), "{page}");
    running.stop().await;
}

#[tokio::test]
async fn a_bundle_goes_out_when_it_is_full_and_what_is_left_when_it_is_old() {
    let folder = tempfile::tempdir().unwrap();
    let (door, s3, mut truck) = (Door::open(folder.path()), TestS3::start().await.unwrap(), Truck::new());
    let envelopes: Vec<Bytes> = (1..=7).map(|seq| truck.seal(seq, &[1; 30_000])).collect();
    for envelope in &envelopes {
        door.take(envelope.clone()).await;
    }
    let size = envelopes[0].len() as u64 * 3;
    let slow = StoreTarget { bundle_bytes: size, bundle_delay: Duration::from_secs(3_600), ..target(&s3) };
    let targets = watch::Sender::new(slow);
    let running = start_with(folder.path(), &door, targets.subscribe(), None);
    until("two are full", || bundles(&s3) == 2).await;
    until("they have left", || door.spool.stats().records == 1).await;
    assert_eq!(numbers(&s3), [1, 2, 3, 4, 5, 6]);
    // Another target, as a reload brings it.
    targets.send_replace(target(&s3));
    gone(&door).await;
    assert_eq!((numbers(&s3), bundles(&s3)), ((1..=7).collect(), 3));
    running.stop().await;
}

#[tokio::test]
async fn a_bundle_whose_answer_was_lost_is_found_and_put_no_second_time() {
    let folder = tempfile::tempdir().unwrap();
    let (door, s3, mut truck) = (Door::open(folder.path()), TestS3::start().await.unwrap(), Truck::new());
    s3.fail_next(Fault::DropAnswer, 1, Method::PUT, "bundles/");
    for seq in 1..=5 {
        door.take(truck.seal(seq, b"record")).await;
    }
    let running = start(folder.path(), &door, target(&s3));
    gone(&door).await;
    assert_eq!((numbers(&s3), s3.planned()), (vec![1, 2, 3, 4, 5], 0));
    let page = running.metrics.page();
    assert!(page.contains("pithead_relay_bundles_total{result=\"found\"} 1"), "{page}");
    running.stop().await;
}

#[tokio::test]
async fn after_a_kill_more_is_packed_under_the_same_name_and_only_what_is_behind_goes_up() {
    let folder = tempfile::tempdir().unwrap();
    let s3 = TestS3::start().await.unwrap();
    let mut truck = Truck::new();
    let door = Door::open(folder.path());
    for seq in 1..=4 {
        door.take(truck.seal(seq, b"record")).await;
    }
    // Carried out, and the gateway dies before it knows.
    s3.fail_next(Fault::DropAnswer, 1_000, Method::PUT, "bundles/");
    let running = start(folder.path(), &door, target(&s3));
    until("it is there", || bundles(&s3) == 1).await;
    running.kill().await;
    assert!(door.spool.stats().records > 0, "nobody has been told");
    let (first, before) = (numbers(&s3), bundles(&s3));
    s3.heal();
    for seq in 5..=9 {
        door.take(truck.seal(seq, b"record")).await;
    }
    let running = start(folder.path(), &door, target(&s3));
    gone(&door).await;
    assert_eq!(&numbers(&s3)[..first.len()], first);
    assert_eq!(numbers(&s3), (1..=9).collect::<Vec<_>>(), "each once, although nothing was written down");
    assert!(bundles(&s3) > before);
    running.stop().await;
}

#[tokio::test]
async fn killed_at_every_step_nothing_is_missing_and_nothing_comes_out_of_order() {
    let folder = tempfile::tempdir().unwrap();
    let s3 = TestS3::start().await.unwrap();
    let door = Door::open_lanes(folder.path(), 1 << 20, alarms_first());
    let mut trucks = ["alarms", "can", "can-raw"].map(|stream| Truck::on(stream, 7));
    let mut seq = 0;
    for round in 0..12_u64 {
        for _ in 0..5 {
            seq += 1;
            for truck in &mut trucks {
                door.take(truck.seal(seq, b"record")).await;
            }
        }
        let fault = [Fault::Hang, Fault::DropRequest, Fault::DropAnswer, Fault::SlowDown][round as usize % 4];
        s3.fail_next(fault, 1, Method::PUT, "bundles/");
        let puts = s3.count(&Method::PUT);
        let running = start(folder.path(), &door, target(&s3));
        // A probe, and then so many bundles: another moment in each round.
        until("it has put", || s3.count(&Method::PUT) > puts + 1 + round / 4).await;
        running.kill().await;
        s3.heal();
    }
    let running = start(folder.path(), &door, target(&s3));
    gone(&door).await;
    let all: Vec<u64> = (1..=seq).collect();
    for lines in [once_and_in_order(by_name(&s3)), once_and_in_order(by_coming(&s3))] {
        assert_eq!(lines.len(), 3);
        assert!(lines.values().all(|numbers| *numbers == all), "{lines:?}");
    }
    // No large one was among them: then nothing is there twice.
    assert_eq!(by_name(&s3).len(), 3 * all.len());
    running.stop().await;
}

/// One of several gateways of a site, as the owner of their lanes.
async fn owner(broker: &Model, name: &str, folder: &Path) -> (Door, Replicated) {
    let log = Replicated::over_model(broker, name, "127.0.0.1:1".to_owned());
    let spool = EnvelopeSpool::over_replicated(log.clone(), Lanes::default());
    let shares = crate::envelopes::testing::shares();
    let door = Door::over(folder, folder, spool, name, 1 << 20, shares, Arc::default());
    let mut standing = door.spool.standing().unwrap();
    let ours = standing.wait_for(|now| matches!(now, Standing::Ours { .. })).await.unwrap().clone();
    let Standing::Ours { epoch } = ours else { unreachable!() };
    tokio::task::block_in_place(|| door.begin(epoch));
    assert!(door.spool.serve(epoch));
    (door, log)
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_takes_shared_lanes_over_goes_on_under_the_same_names_and_puts_nothing_twice() {
    let (broker, s3, mut truck) = (Model::default(), TestS3::start().await.unwrap(), Truck::new());
    let mut spools = BTreeSet::new();
    let mut seq = 0;
    for (round, name) in ["edge-1", "edge-2", "edge-1"].into_iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let (door, log) = owner(&broker, name, folder.path()).await;
        spools.insert(door.spool.shared_id().unwrap());
        for _ in 0..4 {
            seq += 1;
            assert_eq!(door.take(truck.seal(seq, b"record")).await, Outcome::Stored);
        }
        if round < 2 {
            // What is new is put, and neither answered nor written down when the machine is lost.
            let name = format!("-1-{:016x}.bundle", 4 * round);
            s3.fail_next(Fault::DropAnswer, 1_000, Method::PUT, &name);
        }
        let (before, running) = (bundles(&s3), start(folder.path(), &door, target(&s3)));
        if round < 2 {
            until("it is there", || bundles(&s3) > before).await;
            running.kill().await;
            log.kill();
            s3.heal();
        } else {
            gone(&door).await;
            assert!(log.is_owner());
            running.stop().await;
        }
    }
    assert_eq!(numbers(&s3), (1..=seq).collect::<Vec<_>>(), "each once, and in the order of the names");
    assert_eq!(numbers(&s3), by_coming(&s3).into_iter().map(|(.., seq)| seq).collect::<Vec<_>>());
    let name = |key: &String| BundleName::parse(key.strip_prefix("sealed/")?).ok();
    let objects = s3.objects(BUCKET);
    let lanes: BTreeSet<_> = objects.keys().filter_map(name).map(|name| (name.gateway, name.spool)).collect();
    let site = GatewayName::new("pit-7").unwrap();
    assert_eq!(
        lanes,
        spools.into_iter().map(|spool| (site.clone(), spool)).collect(),
        "one lane to whoever reads"
    );
    assert_eq!(lanes.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_term_that_ends_while_a_taken_name_is_looked_at_is_no_alarm() {
    let (broker, s3, folder) =
        (Model::default(), TestS3::start().await.unwrap(), tempfile::tempdir().unwrap());
    let (door, log) = owner(&broker, "edge-1", folder.path()).await;
    door.take(Truck::new().seal(1, b"record")).await;
    s3.fail_next(Fault::DropAnswer, 1_000, Method::PUT, "bundles/");
    let running = start(folder.path(), &door, target(&s3));
    until("it is there", || bundles(&s3) == 1).await;
    running.kill().await;
    s3.heal();
    let (store, spool) = (Store::open(&settings(&s3)).await.unwrap(), door.spool.clone());
    let objects = s3.objects(BUCKET);
    let key = objects.keys().find_map(|key| BundleName::parse(key.strip_prefix("sealed/")?).ok()).unwrap();
    assert!(
        matches!(found::look(&store, &spool, &key, false).await, Ok(Found::Same(there)) if there.len() == 1)
    );
    log.kill();
    let ended = found::look(&store, &spool, &key, false).await;
    assert!(matches!(ended, Err(Ended::Stopped)), "nobody can say what it is compared with");
}

/// Alarms first, raw frames last.
fn alarms_first() -> config::Lanes {
    let stream = |name| vec![StreamName::new(name).unwrap()];
    config::Lanes { first: stream("alarms"), third: stream("can-raw") }
}

#[tokio::test]
async fn what_is_urgent_goes_before_what_waited_longer_and_the_last_lane_moves_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let door = Door::open_lanes(folder.path(), 1 << 20, alarms_first());
    let s3 = TestS3::start().await.unwrap();
    let mut size = 0;
    for stream in ["can-raw", "can", "alarms"] {
        let mut truck = Truck::on(stream, 7);
        for seq in 1..=40 {
            let envelope = truck.seal(seq, &[1; 30_000]);
            size = envelope.len() as u64;
            door.take(envelope).await;
        }
    }
    let running = start(folder.path(), &door, StoreTarget { bundle_bytes: size, ..target(&s3) });
    gone(&door).await;
    let streams: Vec<String> = by_coming(&s3).into_iter().map(|(stream, ..)| stream).collect();
    assert_eq!(streams.len(), 120);
    let last = |stream: &str| streams.iter().rposition(|other| other == stream).unwrap();
    assert!(last("alarms") < 50, "alarms waited: {streams:?}");
    assert!(streams[..last("alarms")].contains(&"can-raw".to_owned()), "the last lane starved: {streams:?}");
    assert!(last("can") < last("can-raw"), "{streams:?}");
    running.stop().await;
}

/// Puts under the name of the bundle that would go out next what `make` makes of its name and the custody of its first envelope.
fn take_next_name(
    folder: &Path,
    door: &Door,
    s3: &TestS3,
    make: impl Fn(&BundleName, &[Hop]) -> Bytes,
) -> String {
    let waiting = door.spool.waiting().next().unwrap();
    let head = Head::decode(&waiting.head).unwrap();
    let (gateway, spool) = sender(folder, door).origin(&door.spool).unwrap();
    let name = BundleName {
        site: crate::keys::testing::site(),
        hour: Hour::of_us(head.hops[0].received_us),
        gateway,
        spool,
        lane: Lane::Second,
        first: waiting.position,
    };
    let key = format!("sealed/{name}");
    s3.put(BUCKET, &key, make(&name, &head.hops));
    key
}

#[tokio::test]
async fn something_else_under_the_name_is_an_alarm_and_nothing_leaves() {
    let packed = |name: &BundleName, first: Position, hops: &[Hop], envelope: &'static [u8]| {
        let BundleName { site, gateway, spool, lane, .. } = name.clone();
        let mut packer = Packer::new(Origin { site, gateway, spool, lane }, 1 << 20);
        packer.push(first, hops, Content::Here(Bytes::from_static(envelope))).unwrap();
        packer.finish().unwrap().to_bytes()
    };
    type Make<'a> = &'a dyn Fn(&BundleName, &[Hop]) -> Bytes;
    let cases: [(&str, Make<'_>); 3] = [
        ("no bundle", &|_, _| Bytes::from_static(b"not a bundle")),
        ("the bundle of another place", &|name, hops| packed(name, name.first.next(), hops, b"sealed")),
        ("other bytes at its place, as from an image that was restored", &|name, hops| {
            packed(name, name.first, hops, b"sealed")
        }),
    ];
    for (what, make) in cases {
        let folder = tempfile::tempdir().unwrap();
        let (door, s3, mut truck) = (Door::open(folder.path()), TestS3::start().await.unwrap(), Truck::new());
        door.take(truck.seal(1, b"record")).await;
        door.take(truck.seal(2, b"record")).await;
        let key = take_next_name(folder.path(), &door, &s3, make);
        let running = start(folder.path(), &door, target(&s3));
        until(what, || running.control.orders().paused.is_some()).await;
        let cause = running.control.orders().paused.unwrap().cause;
        assert_eq!(cause, Cause::ForeignBundle { lane: 1, position: 0 }, "{what}");
        until("it says so", || running.words().contains("PH-5018")).await;
        assert_eq!((door.spool.stats().records, bundles(&s3)), (2, 1), "{what}: nothing has left");
        // Somebody has looked, and taken it away.
        s3.remove(BUCKET, &key);
        assert!(running.control.resume().unwrap());
        gone(&door).await;
        assert_eq!(numbers(&s3), [1, 2]);
        running.stop().await;
    }
}

#[tokio::test]
async fn a_store_that_writes_over_what_is_there_gets_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (door, s3, mut truck) = (Door::open(folder.path()), TestS3::start().await.unwrap(), Truck::new());
    s3.fail(Fault::WritesOver);
    door.take(truck.seal(1, b"record")).await;
    let running = start(folder.path(), &door, target(&s3));
    until("it says so", || running.words().contains("does not heed If-None-Match")).await;
    assert!(running.words().starts_with("PH-5017 STORE_UNSUITABLE"), "{}", running.words());
    assert_eq!((bundles(&s3), door.spool.stats().records), (0, 1));
    running.stop().await;
}

#[tokio::test]
async fn a_store_that_is_away_or_says_no_is_said_with_what_to_do_and_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let (door, s3, mut truck) = (Door::open(folder.path()), TestS3::start().await.unwrap(), Truck::new());
    for (seq, (fault, words)) in (1..).zip([
        (Fault::Deny, "PH-5013 STORE_DENIED"),
        (Fault::NoBucket, "make the bucket"),
        (Fault::SlowDown, "PH-5015 STORE_THROTTLED"),
        (Fault::Internal, "PH-5016 STORE_UNREACHABLE"),
        (Fault::DropRequest, "PH-5016 STORE_UNREACHABLE"),
        (Fault::Hang, "nothing within 2 s"),
    ]) {
        s3.fail(fault);
        door.take(truck.seal(seq, b"record")).await;
        let running = start(folder.path(), &door, target(&s3));
        until("it says so", || running.words().contains(words)).await;
        assert_eq!(running.health.report()["relay"].level, Level::Degraded);
        s3.heal();
        gone(&door).await;
        until("it is well again", || running.health.report()["relay"].level == Level::Ok).await;
        running.stop().await;
    }
    assert_eq!(numbers(&s3), [1, 2, 3, 4, 5, 6]);
}

#[tokio::test]
async fn a_bundle_that_failed_goes_out_again_when_it_was_paid_for_again() {
    let folder = tempfile::tempdir().unwrap();
    let (door, s3, mut truck) = (Door::open(folder.path()), TestS3::start().await.unwrap(), Truck::new());
    s3.fail_next(Fault::Internal, 1, Method::PUT, "bundles/");
    door.take(truck.seal(1, b"record")).await;
    let running = start(folder.path(), &door, target(&s3));
    gone(&door).await;
    // The relay was told, and not the client below it: twice the probe at first, and once more for the call that went on.
    assert_eq!((numbers(&s3), s3.count(&Method::PUT)), (vec![1], 5));
    running.stop().await;
}

#[tokio::test]
async fn a_conflict_in_the_making_of_two_puts_is_no_reason_to_believe_that_it_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let (door, s3, mut truck) = (Door::open(folder.path()), TestS3::start().await.unwrap(), Truck::new());
    s3.fail_next(Fault::Taken, 2, Method::PUT, "bundles/");
    door.take(truck.seal(1, b"record")).await;
    let running = start(folder.path(), &door, target(&s3));
    gone(&door).await;
    assert_eq!((numbers(&s3), s3.planned()), (vec![1], 0));
    assert!(running.control.orders().paused.is_none());
    running.stop().await;
}

#[tokio::test]
async fn conflicting_envelopes_travel_flagged_both_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let (door, s3, mut truck) = (Door::open(folder.path()), TestS3::start().await.unwrap(), Truck::new());
    door.take(truck.seal(1, b"one")).await;
    assert_eq!(door.take(truck.seal(1, b"other")).await, Outcome::Conflict { kept: true });
    let running = start(folder.path(), &door, target(&s3));
    gone(&door).await;
    let mut flags = Vec::new();
    for (key, object) in s3.objects(BUCKET) {
        if key.contains("/bundles/") {
            let bundle = Bundle::read(object.bytes).unwrap();
            flags.extend(
                bundle.index().entries.iter().map(|entry| (entry.conflict, entry.hops()[0].conflict)),
            );
        }
    }
    assert_eq!(flags, [(false, false), (true, true)]);
    running.stop().await;
}

#[tokio::test]
async fn a_pause_holds_and_a_rate_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (door, s3, mut truck) = (Door::open(folder.path()), TestS3::start().await.unwrap(), Truck::new());
    let running =
        start_with(folder.path(), &door, watch::Sender::new(target(&s3)).subscribe(), Some(200 << 10));
    until("it is up", || running.report.get().up).await;
    running.control.pause(Cause::Hand, 1).unwrap();
    until("it stands still", || running.report.get().paused.is_some()).await;
    let mut bytes = 0;
    for seq in 1..=8 {
        let envelope = truck.seal(seq, &[1; 50_000]);
        bytes += envelope.len() as u64;
        door.take(envelope).await;
    }
    assert_eq!((bundles(&s3), door.spool.stats().records), (0, 8));
    let began = Instant::now();
    running.control.resume().unwrap();
    gone(&door).await;
    // 400 kB at 200 KiB/s, less the burst of an idle link: a quarter of a second's, at least a slice.
    let least = Duration::from_secs_f64((bytes - (64 << 10)) as f64 / f64::from(200 << 10));
    assert!(began.elapsed() >= least.mul_f64(0.9), "{:?} for {bytes} bytes", began.elapsed());
    assert_eq!(numbers(&s3), (1..=8).collect::<Vec<_>>());
    running.stop().await;
}

#[tokio::test]
async fn a_large_envelope_goes_up_in_parts_and_is_named_in_its_place_in_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let (door, s3) = (Door::open(folder.path()), TestS3::start().await.unwrap());
    let (mut lidar, mut can) = (Truck::on("lidar", 9), Truck::on("can", 7));
    let large = large_envelope();
    door.take(can.seal(1, b"before")).await;
    door.upload(&large).await;
    for seq in 2..=4 {
        door.take(lidar.seal(seq, b"behind")).await;
        door.take(can.seal(seq, b"beside")).await;
    }
    // Held up once, after the others have gone: they do not wait for it.
    s3.fail_next(Fault::DropRequest, 1, Method::PUT, "large/");
    let running = start(folder.path(), &door, target(&s3));
    gone(&door).await;
    let coming = by_coming(&s3);
    let lines = once_and_in_order(coming.clone());
    assert_eq!(lines[&("lidar".to_owned(), 9)], [1, 2, 3, 4]);
    assert_eq!(lines[&("can".to_owned(), 7)], [1, 2, 3, 4]);
    assert_eq!(coming.len(), 8, "each once: {coming:?}");
    assert_eq!(once_and_in_order(by_name(&s3)), lines);
    let at = |stream: &str, seq| coming.iter().position(|(of, _, n)| of == stream && *n == seq).unwrap();
    assert!(at("can", 4) < at("lidar", 1), "others waited for it: {coming:?}");
    assert_eq!(s3.open_uploads(BUCKET), 0);
    let header = Header::parse(&large).unwrap();
    let hash: [u8; 32] = Sha256::digest(header.wire()).into();
    let name = LargeName::new(Profile::of(&header).unwrap().identity().clone(), &hash);
    assert_eq!(s3.objects(BUCKET)[&format!("sealed/{name}")].bytes, large);
    until("its file has gone", || door.uploads.stats().taken == 0).await;
    running.stop().await;
    // And with it what was written down of its way, at the next start.
    let written = || std::fs::read_dir(folder.path().join("relay-parts")).unwrap().count();
    assert_eq!(written(), 1);
    let running = start(folder.path(), &door, target(&s3));
    until("nothing of it is written down", || written() == 0).await;
    running.stop().await;
}

#[tokio::test]
async fn a_large_envelope_that_was_killed_between_its_parts_goes_on_behind_the_last() {
    let folder = tempfile::tempdir().unwrap();
    let (door, s3) = (Door::open(folder.path()), TestS3::start().await.unwrap());
    let mut lidar = Truck::on("lidar", 9);
    let large = large_envelope();
    door.upload(&large).await;
    door.take(lidar.seal(2, b"behind")).await;
    // The second part, then the third, then the end of it, then the bundle that names it: done, and the answer is lost.
    for (skip, method, of) in [
        (1, Method::PUT, "large/"),
        (1, Method::PUT, "large/"),
        (0, Method::POST, "large/"),
        (0, Method::PUT, "bundles/"),
    ] {
        s3.fail_after(skip, Fault::DropAnswer, method, of);
        let running = start(folder.path(), &door, target(&s3));
        until("the answer is lost", || s3.planned() == 0 || door.spool.stats().records == 0).await;
        running.kill().await;
        s3.heal();
    }
    let running = start(folder.path(), &door, target(&s3));
    gone(&door).await;
    let lines = once_and_in_order(by_coming(&s3));
    assert_eq!(lines[&("lidar".to_owned(), 9)], [1, 2]);
    assert_eq!(s3.open_uploads(BUCKET), 0);
    // What was written down was not sent again: of two parts the answer was lost.
    assert!(s3.put_bytes() < large.len() as u64 + (14 << 20), "{}", s3.put_bytes());
    running.stop().await;
}

#[tokio::test]
async fn what_waited_behind_a_large_one_is_before_what_came_later_in_the_order_of_names_too() {
    let folder = tempfile::tempdir().unwrap();
    let (door, s3) = (Door::open(folder.path()), TestS3::start().await.unwrap());
    let (mut lidar, mut can) = (Truck::on("lidar", 9), Truck::on("can", 7));
    let piece = [1; 30_000];
    // A bundle by itself, so that nothing is before the large one for long.
    door.take(can.seal(1, &[1; 100_000])).await;
    door.upload(&large_envelope()).await;
    // Gathered beside it, and not full. What is behind it fills more than a bundle.
    door.take(can.seal(2, &piece)).await;
    for seq in 2..=6 {
        door.take(lidar.seal(seq, &piece)).await;
    }
    let slow = StoreTarget { bundle_bytes: 100_000, bundle_delay: Duration::from_secs(3_600), ..target(&s3) };
    let targets = watch::Sender::new(slow);
    let running = start_with(folder.path(), &door, targets.subscribe(), None);
    until("all behind it is there", || by_coming(&s3).contains(&("lidar".to_owned(), 9, 6))).await;
    door.take(lidar.seal(7, &piece)).await;
    targets.send_replace(target(&s3));
    gone(&door).await;
    for lines in [once_and_in_order(by_name(&s3)), once_and_in_order(by_coming(&s3))] {
        assert_eq!(lines[&("lidar".to_owned(), 9)], [1, 2, 3, 4, 5, 6, 7]);
    }
    assert_eq!(by_name(&s3).len(), 9, "each once");
    running.stop().await;
}

#[tokio::test]
async fn killed_at_every_step_with_large_ones_under_way_nothing_is_missing_and_nothing_comes_out_of_order() {
    let folder = tempfile::tempdir().unwrap();
    let (door, s3) = (Door::open(folder.path()), TestS3::start().await.unwrap());
    let (mut lidar, mut can) = (Truck::on("lidar", 9), Truck::on("can", 7));
    let small = StoreTarget { bundle_bytes: 3_000, ..target(&s3) };
    let (rounds, mut seq) = (12_u64, 0);
    for round in 0..rounds {
        seq += 1;
        assert_eq!(door.upload(&lidar.seal(seq, &vec![5; 2 << 20])).await, Answer::Stored);
        for _ in 0..5 {
            seq += 1;
            door.take(lidar.seal(seq, b"behind")).await;
            door.take(can.seal(seq, b"beside")).await;
        }
        let fault = [Fault::DropAnswer, Fault::DropRequest, Fault::SlowDown, Fault::Hang][round as usize % 4];
        let (method, of) = match round % 3 {
            0 => (Method::PUT, "bundles/"),
            1 => (Method::PUT, "large/"),
            _ => (Method::POST, "large/"),
        };
        s3.fail_after(u32::from(round > 5), fault, method, of);
        let asked = || s3.count(&Method::PUT) + s3.count(&Method::POST);
        let before = asked();
        let running = start(folder.path(), &door, small.clone());
        // The probe, and then so many more: another moment in each round.
        until("it is under way", || asked() > before + 1 + round % 6 || door.spool.stats().records == 0)
            .await;
        running.kill().await;
        s3.heal();
    }
    let running = start(folder.path(), &door, small);
    gone(&door).await;
    for lines in [once_and_in_order(by_name(&s3)), once_and_in_order(by_coming(&s3))] {
        assert_eq!(lines[&("lidar".to_owned(), 9)], (1..=seq).collect::<Vec<_>>());
        assert_eq!(lines[&("can".to_owned(), 7)].len() as u64, rounds * 5);
        assert!(lines[&("can".to_owned(), 7)].is_sorted());
    }
    running.stop().await;
}

/// Small, small, large, and so many small ones behind it, all of one line; the bundle of the first one is there, and nobody knows.
async fn given_back_before_a_large_one(behind: u64) {
    let folder = tempfile::tempdir().unwrap();
    let (door, s3) = (Door::open(folder.path()), TestS3::start().await.unwrap());
    let mut lidar = Truck::on("lidar", 9);
    let piece = [1; 100_000];
    door.take(lidar.seal(1, &piece)).await;
    s3.fail_next(Fault::DropAnswer, 1_000, Method::PUT, "bundles/");
    let running = start(folder.path(), &door, target(&s3));
    until("it is there", || bundles(&s3) == 1).await;
    running.kill().await;
    s3.heal();
    door.take(lidar.seal(2, &piece)).await;
    assert_eq!(door.upload(&lidar.seal(3, &vec![5; 2 << 20])).await, Answer::Stored);
    for seq in 4..4 + behind {
        door.take(lidar.seal(seq, &piece)).await;
    }
    // The second one is packed behind the first, given back when that is found, and taken again with the large one at hand.
    let running = start(folder.path(), &door, target(&s3));
    gone(&door).await;
    for lines in [once_and_in_order(by_name(&s3)), once_and_in_order(by_coming(&s3))] {
        assert_eq!(lines[&("lidar".to_owned(), 9)], (1..4 + behind).collect::<Vec<_>>());
    }
    running.stop().await;
}

#[tokio::test]
async fn what_goes_out_again_before_a_large_one_of_its_line_does_not_wait_for_it() {
    given_back_before_a_large_one(1).await;
}

#[tokio::test]
async fn what_goes_out_again_goes_on_where_no_more_may_wait_behind_large_ones() {
    // 4 MiB of them may.
    given_back_before_a_large_one(60).await;
}

#[tokio::test]
async fn a_large_envelope_whose_upload_the_bucket_has_forgotten_begins_anew() {
    let folder = tempfile::tempdir().unwrap();
    let (door, s3) = (Door::open(folder.path()), TestS3::start().await.unwrap());
    door.upload(&large_envelope()).await;
    s3.fail_after(1, Fault::Hang, Method::PUT, "large/");
    let running = start(folder.path(), &door, target(&s3));
    until("a part is there, and the next under way", || s3.planned() == 0).await;
    running.kill().await;
    assert_eq!(s3.open_uploads(BUCKET), 1);
    s3.forget_uploads(BUCKET);
    let running = start(folder.path(), &door, target(&s3));
    gone(&door).await;
    assert_eq!(by_name(&s3).len(), 1);
    running.stop().await;
}

#[tokio::test]
async fn a_large_envelope_whose_parts_the_bucket_makes_nothing_of_begins_anew() {
    let folder = tempfile::tempdir().unwrap();
    let (door, s3) = (Door::open(folder.path()), TestS3::start().await.unwrap());
    door.upload(&large_envelope()).await;
    // The first POST begins it, the second one ends it.
    s3.fail_after(1, Fault::Hang, Method::POST, "large/");
    let running = start(folder.path(), &door, target(&s3));
    until("all parts are there", || s3.planned() == 0).await;
    running.kill().await;
    assert_eq!(s3.open_uploads(BUCKET), 1);
    s3.lose_parts(BUCKET);
    let running = start(folder.path(), &door, target(&s3));
    gone(&door).await;
    assert_eq!((by_name(&s3).len(), s3.open_uploads(BUCKET)), (1, 0));
    running.stop().await;
}

#[tokio::test]
async fn a_large_envelope_goes_into_a_folder_as_into_a_bucket_and_so_do_bundles() {
    let folder = tempfile::tempdir().unwrap();
    let (door, out) = (Door::open(folder.path()), folder.path().join("out"));
    let (mut can, large) = (Truck::new(), large_envelope());
    door.take(can.seal(1, b"record")).await;
    door.upload(&large).await;
    std::fs::create_dir(&out).unwrap();
    let settings = Settings::new(format!("file://{}", out.display()));
    let running =
        start(folder.path(), &door, StoreTarget { settings, bundle_bytes: 1 << 20, bundle_delay: AT_ONCE });
    gone(&door).await;
    running.stop().await;
    let (mut names, mut folders) = (Vec::new(), vec![out.join("bundles")]);
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let bundle = Bundle::read(std::fs::read(path).unwrap().into()).unwrap();
            for (_, part) in bundle.parts() {
                if let Part::Large(named) = part {
                    assert_eq!(std::fs::read(out.join(named.name.to_string())).unwrap(), large);
                    names.push("large");
                } else {
                    names.push("small");
                }
            }
        }
    }
    names.sort_unstable();
    assert_eq!(names, ["large", "small"]);
}

#[tokio::test]
async fn a_spool_has_one_name_until_it_is_begun_anew() {
    let folder = tempfile::tempdir().unwrap();
    let first = spool_id(folder.path()).unwrap();
    assert_eq!(spool_id(folder.path()).unwrap(), first);
    std::fs::write(folder.path().join("id"), "rubbish").unwrap();
    let second = spool_id(folder.path()).unwrap();
    assert_ne!(second, first);
    assert_eq!(std::fs::read_to_string(folder.path().join("id")).unwrap(), format!("{second}\n"));
}

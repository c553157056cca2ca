//! The relay against a real receiver on loopback: delivered, cut, refused, full.

use tokio::task::JoinHandle;

use super::super::record::Body;
use super::super::testing::{Cloud, Door, LONG, Truck, until};
use super::*;
use crate::config;
use pithead_hop::ingest::Answer;
use pithead_hop::ingest::Outcome;
use pithead_hop::trace::TraceParent;
use pithead_sealing::StreamName;
use pithead_sealing::envelope::{Header, Profile};
use sha2::{Digest as _, Sha256};

struct Running {
    stop: CancellationToken,
    task: JoinHandle<()>,
    refused: Arc<Refused>,
    health: Health,
    report: RelayReport,
    control: Control,
    metrics: Metrics,
}

fn relay(folder: &std::path::Path, door: &Door, cloud: &Cloud, refused_size: u64) -> Running {
    relay_to(cloud.target(), folder, door, refused_size)
}

fn relay_to(target: Target, folder: &std::path::Path, door: &Door, refused_size: u64) -> Running {
    relay_by(watch::Sender::new(target).subscribe(), folder, door, refused_size)
}

fn relay_by(
    targets: watch::Receiver<Target>,
    folder: &std::path::Path,
    door: &Door,
    refused_size: u64,
) -> Running {
    let metrics = Metrics::new();
    let refused =
        Refused::open(&folder.join("refused"), refused_size, metrics.clone(), door.shares.clone()).unwrap();
    let refused = Arc::new(refused.with_replica(door.spool.replica()).unwrap());
    let health = Health::new(metrics.clone(), Duration::ZERO);
    let report = RelayReport::default();
    let control = Control::open(folder.join("relay"), None).unwrap();
    let relay = Relay {
        spool: door.spool.clone(),
        numbers: door.numbers.clone(),
        uploads: door.uploads.clone(),
        copies: door.copies.clone(),
        refused: refused.clone(),
        health: health.clone(),
        metrics: metrics.clone(),
        report: report.clone(),
        control: control.clone(),
        followed: door.followed.clone(),
    };
    let stop = CancellationToken::new();
    let task = tokio::spawn(relay.run(targets, stop.clone()));
    Running { stop, task, refused, health, report, control, metrics }
}

/// Alarms first, raw frames last.
fn alarms_first() -> config::Lanes {
    let stream = |name| vec![StreamName::new(name).unwrap()];
    config::Lanes { first: stream("alarms"), third: stream("can-raw") }
}

/// What the far end got, as stream, run and number.
fn got(cloud: &Cloud) -> Vec<(String, u64, u64)> {
    let got = cloud.far_end.got.lock().unwrap();
    got.iter().map(|(id, _)| (id.stream.to_string(), id.run.get(), id.seq.get())).collect()
}

impl Running {
    async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(LONG, self.task).await.expect("it stops").unwrap();
    }
}

#[tokio::test]
async fn what_waits_is_delivered_in_order_with_its_custody_and_then_leaves() {
    let folder = tempfile::tempdir().unwrap();
    let (door, cloud, mut truck) = (Door::open(folder.path()), Cloud::start().await, Truck::new());
    for seq in 1..=20 {
        assert_eq!(door.take(truck.seal(seq, b"record")).await, Outcome::Stored);
    }
    let running = relay(folder.path(), &door, &cloud, 1 << 20);
    until("all have left", || door.spool.stats().records == 0).await;
    assert_eq!(cloud.far_end.seqs(), (1..=20).collect::<Vec<_>>());
    let hops = cloud.far_end.got.lock().unwrap()[0].1.clone();
    assert_eq!((hops.len(), hops[0].gateway.as_str()), (1, "edge-1"));
    assert_eq!(hops[0].certificate_sha256.as_ref(), [7; 32]);
    assert!(running.report.get().up);
    running.stop().await;
}

#[tokio::test]
async fn after_a_cut_what_had_no_answer_goes_out_again_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let (door, cloud, mut truck) = (Door::open(folder.path()), Cloud::start().await, Truck::new());
    for seq in 1..=5 {
        door.take(truck.seal(seq, b"record")).await;
    }
    let running = relay(folder.path(), &door, &cloud, 1 << 20);
    until("the first five have left", || door.spool.stats().records == 0).await;

    cloud.far_end.answers.send_replace(false);
    for seq in 6..=10 {
        door.take(truck.seal(seq, b"record")).await;
    }
    until("the next five are there", || cloud.far_end.seqs().len() == 10).await;
    assert_eq!(door.spool.stats().records, 5);
    cloud.handle.cut(|_| true);
    until("it has noticed", || running.report.get().failure.is_some()).await;
    assert_eq!(running.health.report()["relay"].level, Level::Degraded);
    cloud.far_end.answers.send_replace(true);
    until("all have left", || door.spool.stats().records == 0).await;

    let seqs = cloud.far_end.seqs();
    assert_eq!(seqs.iter().filter(|seq| **seq <= 5).count(), 5, "{seqs:?}");
    assert!((6..=10).all(|seq| seqs.contains(&seq)), "{seqs:?}");
    running.stop().await;
}

#[tokio::test]
async fn what_the_far_end_will_never_take_is_set_aside_and_the_queue_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (door, cloud, mut truck) = (Door::open(folder.path()), Cloud::start().await, Truck::new());
    cloud.far_end.poison.lock().unwrap().insert(2);
    for seq in 1..=4 {
        door.take(truck.seal(seq, b"record")).await;
    }
    let running = relay(folder.path(), &door, &cloud, 1 << 20);
    until("all have left", || door.spool.stats().records == 0).await;
    assert_eq!(cloud.far_end.seqs(), vec![1, 3, 4]);
    assert_eq!(running.refused.held().records, 1);
    running.stop().await;
}

#[tokio::test]
async fn with_no_room_to_set_aside_the_relay_stands_still_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (door, cloud, mut truck) = (Door::open(folder.path()), Cloud::start().await, Truck::new());
    cloud.far_end.poison.lock().unwrap().insert(2);
    for seq in 1..=3 {
        door.take(truck.seal(seq, b"record")).await;
    }
    let running = relay(folder.path(), &door, &cloud, 10);
    until("it says so", || running.report.get().failure.is_some()).await;
    let words = running.health.report()["relay"].words.clone();
    assert!(words.contains("the refused area is full"), "{words}");
    running.stop().await;
    // The first has left; the refused one and what was behind it still wait.
    assert_eq!(door.spool.stats().records, 2);
}

#[tokio::test]
async fn a_resend_of_what_was_delivered_before_a_restart_is_still_a_duplicate() {
    let folder = tempfile::tempdir().unwrap();
    let (cloud, mut truck) = (Cloud::start().await, Truck::new());
    let envelope = truck.seal(1, b"record");
    {
        let door = Door::open(folder.path());
        door.take(envelope.clone()).await;
        let running = relay(folder.path(), &door, &cloud, 1 << 20);
        until("it has left", || door.spool.stats().records == 0).await;
        running.stop().await;
        door.spool.close().unwrap();
    }
    let door = Door::open(folder.path());
    assert_eq!(door.take(envelope).await, Outcome::Duplicate { unverified: false });
    assert_eq!(door.take(truck.seal(1, b"other")).await, Outcome::Conflict { kept: true });
}

#[tokio::test]
async fn a_certificate_that_was_renewed_is_shown_at_the_next_connection() {
    let folder = tempfile::tempdir().unwrap();
    let (door, cloud, mut truck) = (Door::open(folder.path()), Cloud::start().await, Truck::new());
    door.take(truck.seal(1, b"record")).await;
    let good = cloud.target();
    // One that the far end does not take, as after its end.
    let tls = watch::Sender::new(Cloud::start().await.target().tls.borrow().clone());
    let running = relay_to(Target { tls: tls.subscribe(), ..good.clone() }, folder.path(), &door, 1 << 20);
    until("it is refused", || running.report.get().failure.is_some()).await;
    tls.send_replace(good.tls.borrow().clone());
    until("it has left", || door.spool.stats().records == 0).await;
    running.stop().await;
}

#[tokio::test]
async fn another_far_end_takes_over_and_what_the_first_one_has_is_not_sent_again() {
    let folder = tempfile::tempdir().unwrap();
    let (door, mut truck) = (Door::open(folder.path()), Truck::new());
    let (first, second) = (Cloud::start().await, Cloud::start().await);
    let targets = watch::Sender::new(first.target());
    let running = relay_by(targets.subscribe(), folder.path(), &door, 1 << 20);
    door.take(truck.seal(1, b"record")).await;
    until("the first has it", || door.spool.stats().records == 0).await;
    targets.send_replace(second.target());
    door.take(truck.seal(2, b"record")).await;
    until("the second has the next", || door.spool.stats().records == 0).await;
    let numbers = |cloud: &Cloud| got(cloud).into_iter().map(|(_, _, seq)| seq).collect::<Vec<_>>();
    // Which of the two the second envelope went to is the second's: the call to the first was over by then, or moved with it.
    assert_eq!(numbers(&first)[0], 1);
    let all: Vec<u64> = numbers(&first).into_iter().chain(numbers(&second)).collect();
    assert_eq!(all, [1, 2], "each once");
    door.take(truck.seal(3, b"record")).await;
    until("so has it the next", || door.spool.stats().records == 0).await;
    assert!(numbers(&second).contains(&3), "{:?}", numbers(&second));
    running.stop().await;
}

#[tokio::test]
async fn what_is_urgent_goes_before_what_waited_longer_and_the_last_lane_moves_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let door = Door::open_lanes(folder.path(), 1 << 20, alarms_first());
    let cloud = Cloud::start().await;
    for stream in ["can-raw", "can", "alarms"] {
        let mut truck = Truck::on(stream, 7);
        for seq in 1..=40 {
            assert_eq!(door.take(truck.seal(seq, b"record")).await, Outcome::Stored);
        }
    }
    let waiting = Lane::ALL.map(|lane| door.spool.waiting_in(lane).count());
    assert_eq!(waiting, [40, 40, 40]);

    let running = relay(folder.path(), &door, &cloud, 1 << 20);
    until("all have left", || door.spool.stats().records == 0).await;
    let got = got(&cloud);
    assert_eq!(got.len(), 120, "each once");
    let of = |stream: &str| -> Vec<(usize, u64)> {
        let of = got.iter().enumerate().filter(|(_, (name, ..))| name == stream);
        of.map(|(at, (_, _, seq))| (at, *seq)).collect()
    };
    for stream in ["can-raw", "can", "alarms"] {
        let seqs: Vec<u64> = of(stream).iter().map(|(_, seq)| *seq).collect();
        assert_eq!(seqs, (1..=40).collect::<Vec<_>>(), "{stream}");
    }
    let last_alarm = of("alarms")[39].0;
    assert!(last_alarm < 48, "alarms waited for others: {got:?}");
    assert!(of("can-raw")[0].0 < last_alarm, "the last lane starved: {got:?}");
    assert!(of("can")[39].0 < of("can-raw")[39].0, "{got:?}");
    running.stop().await;
}

#[tokio::test]
async fn a_line_whose_stream_was_moved_keeps_its_order_and_a_new_run_is_moved_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut before = Truck::on("alarms", 7);
    {
        let door = Door::open(folder.path());
        for seq in 1..=3 {
            door.take(before.seal(seq, b"record")).await;
        }
        door.spool.close().unwrap();
    }
    let door = Door::open_lanes(folder.path(), 1 << 20, alarms_first());
    for seq in 4..=6 {
        door.take(before.seal(seq, b"record")).await;
    }
    door.take(Truck::on("alarms", 8).seal(1, b"record")).await;
    assert_eq!(Lane::ALL.map(|lane| door.spool.waiting_in(lane).count()), [1, 6, 0]);

    let cloud = Cloud::start().await;
    let running = relay(folder.path(), &door, &cloud, 1 << 20);
    until("all have left", || door.spool.stats().records == 0).await;
    let got: Vec<(u64, u64)> = got(&cloud).into_iter().map(|(_, run, seq)| (run, seq)).collect();
    assert_eq!(got, [(8, 1), (7, 1), (7, 2), (7, 3), (7, 4), (7, 5), (7, 6)]);
    running.stop().await;
    // Nothing of it waits any more: now the old line is moved as well.
    door.take(before.seal(7, b"record")).await;
    assert_eq!(Lane::ALL.map(|lane| door.spool.waiting_in(lane).count()), [1, 0, 0]);
}

#[tokio::test]
async fn what_a_gateway_with_one_lane_has_left_is_known_and_goes_out_before_what_follows_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut truck = Truck::new();
    let first = truck.seal(1, b"record");
    std::fs::create_dir(folder.path().join("spool")).unwrap();
    {
        let mut options = pithead_spool::Options::default();
        options.segment_bytes = 8 << 20;
        options.max_bytes = 64 << 20;
        let (spool, _) = pithead_spool::Spool::open(folder.path().join("spool"), options).unwrap();
        let checked = pithead_sealing::envelope::check(first.clone()).unwrap().admit(|_| true).unwrap();
        let identity = checked.identity().clone();
        let head = Head { identity, sha256: Sha256::digest(&first).into(), hops: vec![], copy: None };
        spool.append(Lane::First, head.record(Body::Envelope(first.clone()), 1)).unwrap().wait().unwrap();
        spool.close().unwrap();
    }
    let door = Door::open(folder.path());
    assert_eq!(door.take(first).await, Outcome::Duplicate { unverified: false });
    assert_eq!(door.take(truck.seal(2, b"record")).await, Outcome::Stored);
    let cloud = Cloud::start().await;
    let running = relay(folder.path(), &door, &cloud, 1 << 20);
    until("all have left", || door.spool.stats().records == 0).await;
    assert_eq!(cloud.far_end.seqs(), [1, 2]);
    running.stop().await;
}

#[tokio::test]
async fn what_was_answered_in_any_lane_never_crosses_the_wire_again_whatever_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    let door = Door::open_lanes(folder.path(), 1 << 20, alarms_first());
    let cloud = Cloud::start().await;
    let running = relay(folder.path(), &door, &cloud, 1 << 20);
    let mut trucks = ["alarms", "can", "can-raw"].map(|stream| Truck::on(stream, 7));
    let mut sent = 0;
    for round in 1..=5 {
        // Answered, and cut before anything of it may have been written down.
        for truck in &mut trucks {
            door.take(truck.seal(2 * round - 1, b"record")).await;
            sent += 1;
        }
        until("they are answered", || running.report.get().acknowledged == sent).await;
        cloud.far_end.answers.send_replace(false);
        let before = got(&cloud).len();
        for truck in &mut trucks {
            door.take(truck.seal(2 * round, b"record")).await;
            sent += 1;
        }
        until("the next ones are there", || got(&cloud).len() == before + 3).await;
        cloud.handle.cut(|_| true);
        until("it has noticed", || !running.report.get().up).await;
        cloud.far_end.answers.send_replace(true);
        until("they are answered as well", || running.report.get().acknowledged == sent).await;
    }
    let got = got(&cloud);
    for seq in 1..=10 {
        let times = got.iter().filter(|(.., number)| *number == seq).count();
        // What had no answer when the call was cut went out twice, and what had one went out once.
        let expected = if seq % 2 == 1 { 3 } else { 6 };
        assert_eq!(times, expected, "number {seq}: {got:?}");
    }
    until("all have left", || door.spool.stats().records == 0).await;
    running.stop().await;
}

#[tokio::test]
async fn paused_by_hand_it_sends_nothing_is_degraded_and_stops_and_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (door, cloud, mut truck) = (Door::open(folder.path()), Cloud::start().await, Truck::new());
    let running = relay(folder.path(), &door, &cloud, 1 << 20);
    door.take(truck.seal(1, b"record")).await;
    until("it is answered", || running.report.get().acknowledged == 1).await;
    running.control.pause(control::Cause::Hand, 1).unwrap();
    until("it stands still", || running.report.get().paused.is_some()).await;
    let lamp = running.health.report()["relay"].clone();
    assert_eq!(lamp.level, Level::Degraded);
    assert!(lamp.words.contains("paused by hand"), "{}", lamp.words);
    assert!(running.metrics.page().contains("pithead_relay_paused{cause=\"hand\"} 1"));
    door.take(truck.seal(2, b"record")).await;
    running.stop().await;
    assert_eq!(cloud.far_end.seqs(), [1]);

    // A restart is no order to go on.
    let running = relay(folder.path(), &door, &cloud, 1 << 20);
    until("it stands still", || running.report.get().paused.is_some()).await;
    running.control.resume().unwrap();
    until("all have left", || door.spool.stats().records == 0).await;
    assert_eq!(cloud.far_end.seqs(), [1, 2]);
    assert!(running.metrics.page().contains("pithead_relay_paused{cause=\"hand\"} 0"));
    assert_eq!(running.health.report()["relay"].level, Level::Ok);
    running.stop().await;
}

#[tokio::test]
async fn a_pause_in_the_middle_takes_the_answers_to_what_is_under_way() {
    let folder = tempfile::tempdir().unwrap();
    let (door, cloud, mut truck) = (Door::open(folder.path()), Cloud::start().await, Truck::new());
    cloud.far_end.answers.send_replace(false);
    for seq in 1..=3 {
        door.take(truck.seal(seq, b"record")).await;
    }
    let running = relay(folder.path(), &door, &cloud, 1 << 20);
    until("they are under way", || cloud.far_end.seqs().len() == 3).await;
    running.control.pause(control::Cause::Hand, 1).unwrap();
    cloud.far_end.answers.send_replace(true);
    until("they have left", || door.spool.stats().records == 0).await;
    running.control.resume().unwrap();
    door.take(truck.seal(4, b"record")).await;
    until("the next one has left", || door.spool.stats().records == 0).await;
    assert_eq!(cloud.far_end.seqs(), [1, 2, 3, 4], "nothing went out twice");
    running.stop().await;
}

#[tokio::test]
async fn a_far_end_that_refuses_too_much_is_sent_nothing_more_until_somebody_has_looked() {
    let folder = tempfile::tempdir().unwrap();
    let (door, cloud, mut truck) = (Door::open(folder.path()), Cloud::start().await, Truck::new());
    cloud.far_end.poison.lock().unwrap().extend(1..=alarm::REFUSALS_MIN);
    for seq in 1..=alarm::REFUSALS_MIN {
        door.take(truck.seal(seq, b"record")).await;
    }
    let running = relay(folder.path(), &door, &cloud, 1 << 20);
    until("it stands still", || running.report.get().paused.is_some()).await;
    let lamp = running.health.report()["relay"].clone();
    assert_eq!(lamp.level, Level::Degraded);
    assert!(lamp.words.contains("refused 20 of 20 envelopes"), "{}", lamp.words);
    assert!(running.metrics.page().contains("pithead_relay_paused{cause=\"refusals\"} 1"));
    assert_eq!(running.refused.held().records, alarm::REFUSALS_MIN);
    door.take(truck.seal(21, b"record")).await;
    running.stop().await;
    assert_eq!(cloud.far_end.seqs(), [] as [u64; 0]);

    let running = relay(folder.path(), &door, &cloud, 1 << 20);
    until("it still stands still", || running.report.get().paused.is_some()).await;
    running.control.resume().unwrap();
    until("the good one has left", || door.spool.stats().records == 0).await;
    assert_eq!(cloud.far_end.seqs(), [21]);
    running.stop().await;
}

#[tokio::test]
async fn a_far_end_that_answers_nothing_for_too_long_is_left_and_reported() {
    let folder = tempfile::tempdir().unwrap();
    let (door, cloud, mut truck) = (Door::open(folder.path()), Cloud::start().await, Truck::new());
    cloud.far_end.answers.send_replace(false);
    door.take(truck.seal(1, b"record")).await;
    let target = Target { answer_timeout: Duration::from_millis(50), ..cloud.target() };
    let running = relay_to(target, folder.path(), &door, 1 << 20);
    until("it is left", || running.report.get().failure.is_some()).await;
    let (reason, words, _) = running.report.get().failure.unwrap();
    assert_eq!(reason, Some(ErrorReason::PeerUnreachable), "{words}");
    assert!(words.contains("answered nothing"), "{words}");
    cloud.far_end.answers.send_replace(true);
    until("it has left", || door.spool.stats().records == 0).await;
    running.stop().await;
}

#[tokio::test]
async fn an_idle_call_is_not_left_however_long_nothing_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let (door, cloud, mut truck) = (Door::open(folder.path()), Cloud::start().await, Truck::new());
    let target = Target { answer_timeout: Duration::from_millis(50), ..cloud.target() };
    let running = relay_to(target, folder.path(), &door, 1 << 20);
    door.take(truck.seal(1, b"record")).await;
    until("it has left", || door.spool.stats().records == 0).await;
    // Several times as long as an answer may take.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(running.report.get().failure.is_none());
    running.stop().await;
}

#[tokio::test]
async fn with_a_budget_no_more_goes_out_than_it_pays_for_and_another_rate_counts_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (door, cloud, mut truck) = (Door::open(folder.path()), Cloud::start().await, Truck::new());
    for seq in 1..=200 {
        door.take(truck.seal(seq, &[7; 500])).await;
    }
    let by_hand = Control::open(folder.path().join("relay"), None).unwrap();
    by_hand.set_rate(control::Rate::Bytes(1)).unwrap();
    let running = relay(folder.path(), &door, &cloud, 1 << 20);
    // What an idle link may send at once pays for some of them.
    until("some are answered", || running.report.get().acknowledged >= 40).await;
    running.stop().await;
    let left = door.spool.stats().records;
    assert!(left >= 50, "only {left} of 200 have waited");

    let running = relay(folder.path(), &door, &cloud, 1 << 20);
    assert_eq!(running.control.pace().rate(), Some(1), "the rate was set by hand and outlives a restart");
    running.control.set_rate(control::Rate::Unbounded).unwrap();
    until("all have left", || door.spool.stats().records == 0).await;
    running.stop().await;
}

#[tokio::test]
async fn a_slow_far_end_costs_no_memory_and_devices_are_answered_from_disk_until_that_is_full() {
    let folder = tempfile::tempdir().unwrap();
    let (door, cloud, mut truck) = (Door::open(folder.path()), Cloud::start().await, Truck::new());
    cloud.far_end.answers.send_replace(false);
    let running = relay(folder.path(), &door, &cloud, 1 << 20);
    let payload = vec![7; 300_000];
    let mut seq = 0;
    let refusal = loop {
        seq += 1;
        match door.offer(truck.seal(seq, &payload)).await {
            Ok(pending) => assert_eq!(pending.await.unwrap(), Outcome::Stored),
            Err(refusal) => break refusal,
        }
        let under_way = running.report.get().in_flight_bytes;
        assert!(under_way <= 1 << 20, "{under_way} bytes under way");
    };
    assert_eq!(refusal.reason, ErrorReason::SpoolFull);
    assert!(refusal.retry_after.is_some() && seq > 50, "{seq}: {refusal}");
    until("the window is full", || cloud.far_end.seqs().len() == 3).await;
    assert!(running.report.get().up, "slow is not away");

    cloud.far_end.answers.send_replace(true);
    until("all have left", || door.spool.stats().records == 0).await;
    assert_eq!(cloud.far_end.seqs(), (1..seq).collect::<Vec<_>>(), "in order, each once");
    // Devices are taken again as soon as segments have been given back.
    let next = truck.seal(seq, &payload);
    let deadline = tokio::time::Instant::now() + LONG;
    while let Err(refusal) = door.offer(next.clone()).await.map(drop) {
        assert!(tokio::time::Instant::now() < deadline, "{refusal}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    until("it has left as well", || cloud.far_end.seqs().len() as u64 == seq).await;
    running.stop().await;
}

#[test]
fn the_far_end_is_obeyed_for_an_hour_at_most() {
    let a_year = Duration::from_secs(365 * 86_400);
    let refusal = pithead_hop::status::Refusal::new(ErrorReason::Throttled, "later").retry_after(a_year);
    let ended = Ended::Send(tonic::Status::from(refusal).into());
    assert_eq!(ended.retry_after(), Some(a_year));
    let delay = Backoff::new(Policy::default()).next_delay(0, ended.retry_after());
    assert_eq!(delay, Duration::from_secs(3600));
}

/// A large envelope: some hundred KiB are enough to go by an upload.
fn large(truck: &mut Truck, seq: u64) -> bytes::Bytes {
    truck.seal(seq, &vec![seq as u8; 700_000])
}

fn files(folder: &std::path::Path) -> usize {
    std::fs::read_dir(folder.join("uploads")).unwrap().count()
}

#[tokio::test]
async fn a_large_envelope_keeps_its_place_in_its_line_and_others_pass_it() {
    let folder = tempfile::tempdir().unwrap();
    let (door, cloud) = (Door::open(folder.path()), Cloud::start().await);
    let (mut line, mut other) = (Truck::on("can", 7), Truck::on("can", 8));
    door.take(line.seal(1, b"before")).await;
    assert_eq!(door.upload(&large(&mut line, 2)).await, Answer::Stored);
    assert_eq!(door.upload(&large(&mut line, 3)).await, Answer::Stored);
    door.take(line.seal(4, b"behind")).await;
    door.take(other.seal(1, b"of another line")).await;
    // The far end keeps its answers to itself: what is large does not begin before what stands before it is answered.
    cloud.far_end.answers.send_replace(false);
    let running = relay(folder.path(), &door, &cloud, 1 << 20);
    until("the other line has passed", || got(&cloud).len() == 2).await;
    cloud.far_end.answers.send_replace(true);
    until("all have left", || door.spool.stats().records == 0).await;

    let own: Vec<u64> = got(&cloud).iter().filter(|(_, run, _)| *run == 7).map(|(_, _, seq)| *seq).collect();
    assert_eq!(own, [1, 2, 3, 4]);
    let hops = cloud.far_end.got.lock().unwrap().iter().map(|(_, hops)| hops.len()).collect::<Vec<_>>();
    assert!(hops.iter().all(|hops| *hops == 1), "{hops:?}");
    until("their files are gone", || files(folder.path()) == 0).await;
    running.stop().await;
}

#[tokio::test]
async fn a_large_envelope_goes_on_in_the_trace_of_the_device_that_brought_it_and_a_call_without_one_gets_none()
 {
    let folder = tempfile::tempdir().unwrap();
    let (door, cloud, mut truck) = (Door::open(folder.path()), Cloud::start().await, Truck::new());
    let (first, second) = (large(&mut truck, 1), large(&mut truck, 2));
    let parent = TraceParent::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
    cloud.far_end.large_answers.send_replace(false);
    assert_eq!(door.upload_traced(&first, Some(parent)).await, Answer::Stored);
    assert_eq!(door.upload(&second).await, Answer::Stored);
    let identity =
        |envelope: &bytes::Bytes| Profile::of(&Header::parse(envelope).unwrap()).unwrap().identity().clone();
    assert_eq!(door.uploads.trace_of(&identity(&first)), Some(parent));
    assert_eq!(door.uploads.trace_of(&identity(&second)), None);
    let running = relay(folder.path(), &door, &cloud, 1 << 20);
    let far = &cloud.far_end.uploads;
    until("the far end has it open", || far.trace_of(&identity(&first)).is_some()).await;
    let there = far.trace_of(&identity(&first)).unwrap();
    assert_eq!(there.trace(), parent.trace());
    assert_ne!(there, parent, "the relay's call is a child of the device's");
    cloud.far_end.large_answers.send_replace(true);
    until("all have left", || door.spool.stats().records == 0).await;
    assert_eq!(far.trace_of(&identity(&second)), None);
    running.stop().await;
}

#[tokio::test]
async fn a_batch_links_to_every_call_that_is_followed_and_a_large_envelope_is_a_part_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let (door, cloud, mut truck) = (Door::open(folder.path()), Cloud::start().await, Truck::new());
    let parent = |span: &str| {
        Some(TraceParent::parse(&format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{span}-01")).unwrap())
    };
    let (one, other, big) =
        (parent("00f067aa0ba902b7"), parent("00f067aa0ba902b8"), parent("00f067aa0ba902b9"));
    for (seq, trace) in [(1, one), (2, None), (3, other)] {
        door.offer_in(truck.seal(seq, b"small"), trace).await.unwrap().await.unwrap();
    }
    let envelope = large(&mut truck, 4);
    assert_eq!(door.upload_traced(&envelope, big).await, Answer::Stored);
    let running = relay(folder.path(), &door, &cloud, 1 << 20);
    until("all have left", || door.spool.stats().records == 0).await;
    running.stop().await;
    let mut ended = door.ended.lock().unwrap();
    let spans: Vec<_> = std::iter::from_fn(|| ended.try_recv().ok()).collect();
    let links: Vec<_> =
        spans.iter().filter(|span| span.name == "relay.batch").flat_map(|span| span.links.clone()).collect();
    assert_eq!(links, [one.unwrap(), other.unwrap()]);
    let upload = spans.iter().find(|span| span.name == "relay.upload").unwrap();
    assert_eq!((upload.parent, upload.failed.as_deref()), (big, None));
    // By its own choice nobody else is followed, and what has left is forgotten.
    assert_eq!(spans.len(), spans.iter().filter(|span| span.name.starts_with("relay.")).count());
    assert!(spans.iter().all(|span| span.name != "relay.call"));
    let identity = Profile::of(&Header::parse(&truck.seal(1, b"small")).unwrap()).unwrap().identity().clone();
    assert_eq!(door.followed.get(&identity), None);
}

#[tokio::test]
async fn a_large_envelope_that_waits_survives_a_restart_and_a_resend_is_a_duplicate() {
    let folder = tempfile::tempdir().unwrap();
    let envelope = large(&mut Truck::new(), 1);
    {
        let door = Door::open(folder.path());
        assert_eq!(door.upload(&envelope).await, Answer::Stored);
        door.spool.close().unwrap();
    }
    let door = Door::open(folder.path());
    assert_eq!(door.uploads.stats().taken, 1);
    assert_eq!(door.upload(&envelope).await, Answer::Duplicate { unverified: false });
    let other = large(&mut Truck::new(), 1);
    assert_eq!(door.upload(&other).await, Answer::Conflict { kept: false });
    let cloud = Cloud::start().await;
    let running = relay(folder.path(), &door, &cloud, 1 << 20);
    until("it has left", || door.spool.stats().records == 0 && files(folder.path()) == 0).await;
    assert_eq!(got(&cloud).len(), 1);
    running.stop().await;
    // Passed on and gone, it is known by its header.
    assert_eq!(door.upload(&envelope).await, Answer::Duplicate { unverified: false });
    assert_eq!(door.upload(&other).await, Answer::Conflict { kept: false });
}

#[tokio::test]
async fn a_large_envelope_that_is_refused_keeps_its_bytes_until_it_is_sent_again_or_let_go() {
    let folder = tempfile::tempdir().unwrap();
    let (door, cloud, mut truck) = (Door::open(folder.path()), Cloud::start().await, Truck::new());
    cloud.far_end.poison.lock().unwrap().extend([1, 2]);
    for seq in 1..=2 {
        assert_eq!(door.upload(&large(&mut truck, seq)).await, Answer::Stored);
    }
    door.take(truck.seal(3, b"goes on")).await;
    // The area itself is too small for one of them: their bytes stay where they were.
    let running = relay(folder.path(), &door, &cloud, 10_000);
    until("all have left", || door.spool.stats().records == 0).await;
    assert_eq!(cloud.far_end.seqs(), [3]);
    assert_eq!((running.refused.held().records, running.refused.large().len()), (2, 2));
    assert_eq!(files(folder.path()), 4, "two envelopes and their sums");

    let (numbers, spool) = (door.numbers.clone(), door.spool.clone());
    let (refused, uploads) = (running.refused.clone(), door.uploads.clone());
    let retry = super::super::retry::Retry { refused, numbers, spool, uploads, copies: door.copies.clone() };
    let names = super::super::refused::list(&folder.path().join("refused")).unwrap().entries;
    cloud.far_end.poison.lock().unwrap().clear();
    retry.send_again(&names[0].0).await.unwrap();
    until("the first has left", || cloud.far_end.seqs() == [3, 1]).await;
    until("its file is gone", || files(folder.path()) == 2).await;

    // Somebody takes the other reason away: so go the bytes.
    std::fs::remove_file(folder.path().join("refused").join(format!("{}.json", names[1].0))).unwrap();
    for identity in running.refused.let_go_of_large() {
        door.uploads.release(&identity).unwrap();
    }
    assert_eq!(files(folder.path()), 0);
    running.stop().await;
}

#[tokio::test]
async fn a_large_envelope_that_the_disk_has_changed_is_not_sent_and_a_good_copy_may_still_come() {
    let folder = tempfile::tempdir().unwrap();
    let (door, cloud, mut truck) = (Door::open(folder.path()), Cloud::start().await, Truck::new());
    let envelope = large(&mut truck, 1);
    assert_eq!(door.upload(&envelope).await, Answer::Stored);
    door.take(truck.seal(2, b"behind")).await;
    let file = std::fs::read_dir(folder.path().join("uploads")).unwrap().map(|entry| entry.unwrap().path());
    let file = file.into_iter().find(|path| path.extension().unwrap() == "envelope").unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[300_000] ^= 4;
    std::fs::write(&file, bytes).unwrap();

    let running = relay(folder.path(), &door, &cloud, 1 << 20);
    // What was acknowledged is never removed: it is set aside for a person.
    until("the spool is empty", || door.spool.stats().records == 0 && files(folder.path()) == 1).await;
    assert_eq!(cloud.far_end.seqs(), [2]);
    assert_eq!(door.upload(&envelope).await, Answer::Stored);
    until("the good copy is there", || cloud.far_end.seqs() == [2, 1]).await;
    running.stop().await;
}

#[tokio::test]
async fn what_passed_a_large_envelope_is_not_sent_again_after_a_cut() {
    let folder = tempfile::tempdir().unwrap();
    let (door, cloud) = (Door::open(folder.path()), Cloud::start().await);
    assert_eq!(door.upload(&large(&mut Truck::on("can", 7), 1)).await, Answer::Stored);
    let mut other = Truck::on("can", 8);
    for seq in 1..=3 {
        door.take(other.seal(seq, b"passes")).await;
    }
    cloud.far_end.large_answers.send_replace(false);
    let running = relay(folder.path(), &door, &cloud, 1 << 20);
    for _ in 0..3 {
        until("the small ones have passed", || got(&cloud).len() == 3 && running.report.get().up).await;
        cloud.handle.cut(|_| true);
        until("it has noticed", || !running.report.get().up).await;
    }
    // Their places are kept until the large one is through, and nothing of them crosses the wire twice.
    assert_eq!(door.spool.stats().records, 4);
    cloud.far_end.large_answers.send_replace(true);
    until("all have left", || door.spool.stats().records == 0).await;
    let small = got(&cloud).iter().filter(|(_, run, _)| *run == 8).count();
    assert_eq!(small, 3);
    running.stop().await;
}

#[tokio::test]
async fn a_large_envelope_whose_record_is_lost_is_entered_again_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let envelope = large(&mut Truck::new(), 1);
    {
        let door = Door::open(folder.path());
        assert_eq!(door.upload(&envelope).await, Answer::Stored);
        // The checkpoint says that the number is held, so nobody will ever bring it again.
        door.numbers.checkpoint().unwrap();
        door.spool.close().unwrap();
    }
    std::fs::remove_dir_all(folder.path().join("spool")).unwrap();
    let (door, cloud) = (Door::open(folder.path()), Cloud::start().await);
    assert_eq!(door.spool.stats().records, 0);
    let refused =
        Refused::open(&folder.path().join("refused"), 1 << 20, Metrics::new(), door.shares.clone()).unwrap();
    let refused = Arc::new(refused);
    let (numbers, spool, uploads) = (door.numbers.clone(), door.spool.clone(), door.uploads.clone());
    let retry = super::super::retry::Retry {
        refused: refused.clone(),
        numbers,
        spool,
        uploads,
        copies: door.copies.clone(),
    };
    let claim = async || {
        super::super::uploads::claim(&door.uploads, &door.numbers, &refused, false).unwrap();
        super::super::uploads::enter_owed(&door.uploads, &retry).await;
    };
    claim().await;
    assert_eq!((door.spool.stats().records, door.uploads.stats().taken), (1, 1));
    // Once is enough.
    claim().await;
    assert_eq!(door.spool.stats().records, 1);
    let running = relay(folder.path(), &door, &cloud, 1 << 20);
    until("it is there", || got(&cloud).len() == 1 && files(folder.path()) == 0).await;
    running.stop().await;
}

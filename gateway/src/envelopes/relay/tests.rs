//! The relay against a real receiver on loopback: delivered, cut, refused, full.

use tokio::task::JoinHandle;

use super::super::testing::{Cloud, Door, LONG, Truck, until};
use super::*;
use pithead_hop::ingest::Outcome;

struct Running {
    stop: CancellationToken,
    task: JoinHandle<()>,
    refused: Arc<Refused>,
    health: Health,
    report: RelayReport,
}

fn relay(folder: &std::path::Path, door: &Door, cloud: &Cloud, refused_size: u64) -> Running {
    relay_to(cloud.target(), folder, door, refused_size)
}

fn relay_to(target: Target, folder: &std::path::Path, door: &Door, refused_size: u64) -> Running {
    let metrics = Metrics::new();
    let refused = Arc::new(Refused::open(&folder.join("refused"), refused_size, metrics.clone()).unwrap());
    let health = Health::new(metrics.clone(), Duration::ZERO);
    let report = RelayReport::default();
    let relay = Relay {
        spool: door.spool.clone(),
        numbers: door.numbers.clone(),
        refused: refused.clone(),
        health: health.clone(),
        metrics,
        report: report.clone(),
    };
    let stop = CancellationToken::new();
    let task = tokio::spawn(relay.run(target, stop.clone()));
    Running { stop, task, refused, health, report }
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

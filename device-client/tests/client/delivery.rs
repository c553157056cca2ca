//! From the outbox to a gateway: what has no answer comes again, what has one does not.

use std::{fs, time::Duration};

use pithead_device_client::{
    client::FlushError,
    clock::DeviceClock,
    sealer::{Content, Sealer},
    uplink::{Receipt, SubmitError, Uplink},
};
use pithead_hop::{
    ingest::{IngestLimits, Lines, Unseen},
    program::units::ByteSize,
    status::Refusal,
};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::names::{DeviceId, StreamName};

use crate::world::{Act, Ca, LONG, World, keep, records, seqs, stream, until};

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_delivered_once_and_so_is_what_comes_later() {
    let world = World::new();
    let gateway = world.gateway().await;
    let client = world.client(&[gateway.address]).stream(records("can")).open().unwrap();
    for _ in 0..3 {
        keep(&client, "can", b"before").await;
    }
    client.flush(LONG).await.unwrap();
    keep(&client, "can", b"later").await;
    client.flush(LONG).await.unwrap();
    let can = stream(&client, "can");
    assert_eq!((can.settled.stored, can.settled.duplicates, can.settled.refused), (4, 0, 0));
    assert_eq!((can.recorded, can.held, can.sealed, can.waiting), (4, 4, 4, 0));
    let status = client.status();
    assert!(status.connected.is_some() && status.trouble.is_none(), "{status:?}");
    let clock = status.clock.expect("the gateway says what time it is");
    assert!(clock.ahead_us.unsigned_abs() < 5_000_000, "both are this machine's: {clock:?}");
    assert_eq!(seqs(&gateway.gate.all_offered(), "can"), [1, 2, 3, 4], "each once, in order");
    let left = client.close(LONG).unwrap();
    assert_eq!(left.streams.values().map(|stream| stream.waiting).sum::<u64>(), 0);
    assert_eq!(seqs(&gateway.gate.all_offered(), "can"), [1, 2, 3, 4, 5], "and a goodbye");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_cut_in_mid_window_brings_the_same_bytes_again_and_only_those_without_an_answer() {
    let world = World::new();
    let gateway = world.gateway().await;
    let client = world.client(&[gateway.address]).stream(records("can")).open().unwrap();
    for _ in 0..2 {
        keep(&client, "can", b"answered").await;
    }
    client.flush(LONG).await.unwrap();
    // On the gateway's disk, and the answer is lost with the connection.
    for seq in 3..=5 {
        gateway.gate.on(seq, Act::Silence);
        keep(&client, "can", b"unanswered").await;
    }
    gateway.gate.offered(5).await;
    assert_eq!(stream(&client, "can").waiting, 3, "nothing is forgotten without an answer");
    assert_eq!(gateway.port.cut(|_| true), 1);
    client.flush(LONG).await.unwrap();
    let settled = stream(&client, "can").settled;
    assert_eq!((settled.stored, settled.duplicates, settled.resumed), (2, 3, 0));
    let offered = gateway.gate.all_offered();
    assert_eq!(seqs(&offered, "can"), [1, 2, 3, 4, 5, 3, 4, 5]);
    assert_eq!(offered[2..5], offered[5..8], "the same bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_gateway_says_it_has_does_not_cross_the_air_again() {
    let world = World::new();
    let gateway = world.gateway().await;
    let client = world.client(&[gateway.address]).stream(records("can")).open().unwrap();
    for seq in 1..=3 {
        gateway.gate.on(seq, Act::Silence);
        keep(&client, "can", b"unanswered").await;
    }
    gateway.gate.offered(3).await;
    gateway.gate.script(|script| script.high_water = 2);
    assert_eq!(gateway.port.cut(|_| true), 1);
    client.flush(LONG).await.unwrap();
    let settled = stream(&client, "can").settled;
    assert_eq!((settled.stored, settled.duplicates, settled.resumed), (0, 3, 2));
    assert_eq!(seqs(&gateway.gate.all_offered(), "can"), [1, 2, 3, 3]);
}

/// Who may submit for the device can use up numbers before it gets to them. If the Welcome were believed, the device would
/// throw away what nobody has.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_never_sent_is_sent_whatever_the_welcome_says() {
    let world = World::new();
    let gateway = world.gateway().await;
    gateway.gate.script(|script| script.high_water = 1_000);
    let client = world.client(&[gateway.address]).stream(records("can")).open().unwrap();
    for _ in 0..3 {
        keep(&client, "can", b"nobody has this").await;
    }
    client.flush(LONG).await.unwrap();
    assert_eq!(stream(&client, "can").settled.stored, 3);
    assert_eq!(seqs(&gateway.gate.all_offered(), "can"), [1, 2, 3]);
}

/// What lies under the number is somebody else's. If the Welcome spoke for it, the device would take a conflict for a delivery.
#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_whose_answer_was_lost_is_met_again_and_passes_for_no_delivery() {
    let world = World::new();
    let gateway = world.gateway().await;
    gateway.gate.script(|script| script.lines = Some(Lines::new(Unseen::Elsewhere)));
    let client = world.client(&[gateway.address]).stream(records("can")).open().unwrap();
    keep(&client, "can", b"one").await;
    client.flush(LONG).await.unwrap();
    gateway.gate.on(2, Act::Stolen);
    keep(&client, "can", b"two").await;
    gateway.gate.offered(2).await;
    assert_eq!(gateway.port.cut(|_| true), 1);
    client.flush(LONG).await.unwrap();
    let settled = stream(&client, "can").settled;
    assert_eq!((settled.stored, settled.duplicates, settled.resumed, settled.refused), (1, 0, 0, 1));
    let offered = gateway.gate.all_offered();
    assert_eq!(offered[1], offered[2], "the same bytes");
    assert_eq!(fs::read(&world.in_the_area("envelope")[0]).unwrap(), offered[1].1);
    keep(&client, "can", b"three").await;
    client.flush(LONG).await.unwrap();
    let offered = gateway.gate.all_offered();
    assert!(offered[3].0.run > offered[1].0.run && offered[3].0.seq.get() == 1, "a new run: {offered:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_gateway_is_left_alone_for_as_long_as_it_asks() {
    let world = World::new();
    let gateway = world.gateway().await;
    let wait = Duration::from_millis(400);
    gateway.gate.script(|script| {
        let full = Refusal::new(ErrorReason::SpoolFull, "no room").retry_after(wait);
        script.not_ready.push_back(full);
    });
    let client = world.client(&[gateway.address]).stream(records("can")).open().unwrap();
    keep(&client, "can", b"x").await;
    let status = until(&client, "in trouble", |status| status.trouble.is_some()).await;
    let trouble = status.trouble.unwrap();
    assert_eq!((trouble.reason, trouble.retryable), (Some(ErrorReason::SpoolFull), true), "{trouble:?}");
    assert!(trouble.retry_after.is_some_and(|after| after >= wait), "{trouble:?}");
    client.flush(LONG).await.unwrap();
    assert!(client.status().trouble.is_none());
    let asked = gateway.gate.script(|script| script.asked.clone());
    assert!(asked[1] - asked[0] >= wait, "asked again after {:?}", asked[1] - asked[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_gateway_has_a_neighbour_and_the_first_is_preferred_again() {
    let world = World::new();
    let (first, second) = (world.gateway().await, world.gateway().await);
    first.gate.script(|script| {
        let full = Refusal::new(ErrorReason::SpoolFull, "no room").retry_after(Duration::from_secs(3_600));
        script.not_ready.push_back(full);
    });
    let client = world.client(&[first.address, second.address]).stream(records("can")).open().unwrap();
    keep(&client, "can", b"x").await;
    client.flush(LONG).await.unwrap();
    assert_eq!(seqs(&second.gate.all_offered(), "can"), [1], "an hour is not waited for");
    // The second goes away, and the first has room by now.
    second.stop.cancel();
    second.port.cut(|_| true);
    keep(&client, "can", b"y").await;
    client.flush(LONG).await.unwrap();
    assert_eq!(seqs(&first.gate.all_offered(), "can"), [2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_not_there_is_passed_over() {
    let world = World::new();
    let second = world.gateway().await;
    let client = world.client(&[World::nowhere(), second.address]).stream(records("can")).open().unwrap();
    keep(&client, "can", b"x").await;
    client.flush(LONG).await.unwrap();
    assert_eq!(client.status().connected.unwrap().to_string(), second.address.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_higher_priority_goes_first_whatever_was_recorded_first() {
    let world = World::new();
    let open = |at| {
        let client = world.client(&[at]).stream(records("bulk").priority(10));
        client.stream(records("can")).stream(records("alarms").priority(200)).open().unwrap()
    };
    let client = open(World::nowhere());
    for name in ["bulk", "can", "bulk", "can", "alarms"] {
        keep(&client, name, b"x").await;
    }
    client.close(Duration::ZERO).unwrap();
    let gateway = world.gateway().await;
    let client = open(gateway.address);
    client.flush(LONG).await.unwrap();
    let offered = gateway.gate.all_offered();
    let order: Vec<_> = offered.iter().map(|(identity, _)| identity.stream.as_str()).collect();
    assert_eq!(order[0], "alarms", "{order:?}");
    assert!(
        order.iter().rposition(|name| *name == "can") < order.iter().position(|name| *name == "bulk"),
        "{order:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_gateway_will_never_take_is_kept_with_its_reason_and_the_queue_goes_on() {
    let world = World::new();
    let gateway = world.gateway().await;
    gateway.gate.on(2, Act::Refuse(Refusal::new(ErrorReason::SeqJump, "too far beyond the line's end")));
    let client = world.client(&[gateway.address]).stream(records("can")).open().unwrap();
    for _ in 0..3 {
        keep(&client, "can", b"x").await;
    }
    client.flush(LONG).await.unwrap();
    let can = stream(&client, "can");
    assert_eq!((can.settled.stored, can.settled.refused, can.waiting), (2, 1, 0));
    assert_eq!(gateway.gate.stored(), [1, 3]);
    let offered = gateway.gate.all_offered();
    let refused = offered.into_iter().find(|(identity, _)| identity.seq.get() == 2).unwrap();
    let kept = world.in_the_area("envelope");
    assert_eq!(kept.len(), 1);
    assert_eq!(fs::read(&kept[0]).unwrap(), refused.1, "the sealed bytes");
    let why: serde_json::Value =
        serde_json::from_slice(&fs::read(&world.in_the_area("json")[0]).unwrap()).unwrap();
    assert_eq!(why["identity"], refused.0.to_string());
    assert_eq!(
        (why["reason"].as_str(), why["detail"].as_str()),
        (Some("SEQ_JUMP"), Some("too far beyond the line's end"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_refused_area_is_no_end_of_delivery_and_what_does_not_fit_is_declared() {
    let world = World::new();
    let gateway = world.gateway().await;
    gateway.gate.on(2, Act::Refuse(Refusal::new(ErrorReason::SeqJump, "never")));
    fs::create_dir_all(world.area()).unwrap();
    for number in 0..1_000 {
        fs::write(world.area().join(format!("older-{number}.envelope")), b"").unwrap();
    }
    let client = world.client(&[gateway.address]).stream(records("can")).open().unwrap();
    for _ in 0..3 {
        keep(&client, "can", b"x").await;
    }
    client.flush(LONG).await.unwrap();
    let can = stream(&client, "can");
    assert_eq!((can.settled.stored, can.settled.refused, can.settled.lost, can.waiting), (2, 0, 1, 0));
    assert_eq!(world.in_the_area("envelope").len(), 1_000, "what was there stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_envelope_larger_than_this_gateway_takes_is_kept_aside_and_counts_as_settled() {
    let world = World::new();
    let limits = IngestLimits { inline: ByteSize::kib(4), ..IngestLimits::default() };
    let gateway = world.gateway_with(limits).await;
    let client = world.client(&[gateway.address]).stream(records("can")).open().unwrap();
    keep(&client, "can", b"small").await;
    keep(&client, "can", &[7; 8 << 10]).await;
    client.flush(LONG).await.unwrap();
    let settled = stream(&client, "can").settled;
    assert_eq!((settled.stored, settled.refused), (1, 1));
    assert_eq!((gateway.gate.stored(), world.in_the_area("envelope").len()), (vec![1], 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_is_answered_with_a_new_run_and_is_kept_here_if_the_gateway_does_not_keep_it() {
    let world = World::new();
    let gateway = world.gateway().await;
    gateway.gate.on(1, Act::Conflict { kept: true });
    gateway.gate.on(2, Act::Conflict { kept: false });
    let open = |at| world.client(&[at]).stream(records("can")).open().unwrap();
    let client = open(World::nowhere());
    keep(&client, "can", b"one").await;
    keep(&client, "can", b"two").await;
    client.close(Duration::ZERO).unwrap();
    let client = open(gateway.address);
    client.flush(LONG).await.unwrap();
    let settled = stream(&client, "can").settled;
    assert_eq!((settled.conflicts, settled.refused), (1, 1));
    assert_eq!(world.in_the_area("envelope").len(), 1);
    // Those were of a run that is over: no new one is begun for them.
    keep(&client, "can", b"three").await;
    client.flush(LONG).await.unwrap();
    // Of the run in force it is.
    gateway.gate.on(2, Act::Conflict { kept: true });
    for data in [b"four", b"five"] {
        keep(&client, "can", data).await;
        client.flush(LONG).await.unwrap();
    }
    let offered = gateway.gate.all_offered();
    let [.., three, four, five] = &offered[..] else { panic!("{offered:?}") };
    assert_eq!((three.0.seq.get(), four.0.seq.get(), five.0.seq.get()), (1, 2, 1), "{offered:?}");
    assert!(three.0.run == four.0.run && four.0.run < five.0.run, "{offered:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_smaller_than_an_envelope_sends_it_alone_and_refuses_nothing() {
    let world = World::new();
    let gateway = world.gateway().await;
    let client =
        world.client(&[gateway.address]).stream(records("can")).window_bytes(4 << 10).open().unwrap();
    for size in [100_usize, 500_000, 100, 300_000] {
        keep(&client, "can", &vec![7; size]).await;
    }
    client.flush(LONG).await.unwrap();
    let settled = stream(&client, "can").settled;
    assert_eq!((settled.stored, settled.refused), (4, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_of_another_ca_is_a_trouble_that_no_retry_cures_and_gets_nothing() {
    let world = World::new();
    let gateway = world.gateway().await;
    let other = Ca::new("another");
    let client = world.client_believing(&[gateway.address], &other).stream(records("can")).open().unwrap();
    keep(&client, "can", b"x").await;
    let ended = client.flush(LONG).await.unwrap_err();
    let FlushError::Deadline { waiting: 1, trouble: Some(trouble) } = &ended else { panic!("{ended:?}") };
    assert_eq!((trouble.reason, trouble.retryable), (Some(ErrorReason::PeerUntrusted), false), "{trouble:?}");
    assert!(gateway.gate.all_offered().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_come_while_a_gateway_hears_them() {
    let world = World::new();
    let gateway = world.gateway().await;
    let client = world
        .client(&[gateway.address])
        .stream(records("can"))
        .heartbeat_every(Duration::from_millis(20))
        .open()
        .unwrap();
    keep(&client, "can", b"x").await;
    let beats = |status: &pithead_device_client::client::Status| status.heartbeats;
    until(&client, "heard of", |status| beats(status) >= 3).await;
    gateway.stop.cancel();
    gateway.port.cut(|_| true);
    until(&client, "cut", |status| status.connected.is_none()).await;
    let before = stream(&client, "can").sealed;
    keep(&client, "can", b"y").await;
    keep(&client, "can", b"z").await;
    assert!(stream(&client, "can").sealed <= before + 3, "one may have been under way, and no more");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_envelope_is_submitted_without_a_client_and_the_same_bytes_are_a_duplicate() {
    let world = World::new();
    let gateway = world.gateway().await;
    // Closed and not dropped: its files are free when this returns.
    world.client(&[gateway.address]).open().unwrap().close(Duration::ZERO).unwrap();
    let device = DeviceId::new("truck-7").unwrap();
    let mut sealer = Sealer::open(&world.folder(), &world.trust.site, device, DeviceClock::start()).unwrap();
    let name = StreamName::new("alarms").unwrap();
    let envelope = sealer.seal(&name, &Content::batch(), b"fire").unwrap();
    let uplink = Uplink::new(world.gateways(&[gateway.address], &world.ca), sealer.keys()).unwrap();
    assert_eq!(uplink.submit(&envelope).await.unwrap(), Receipt::Stored);
    assert_eq!(uplink.submit(&envelope).await.unwrap(), Receipt::Duplicate { unverified: false });
    let other = Uplink::new(world.gateways(&[gateway.address], &Ca::new("another")), sealer.keys()).unwrap();
    let refused = other.submit(&envelope).await.unwrap_err();
    assert!(matches!(&refused, SubmitError::Connect(error) if !error.is_retryable()), "{refused}");
}

//! From the control loop to the disk: what is refused is said, what is kept survives, what is dropped is counted.

use std::{fs, time::Duration};

use pithead_device_client::{
    MIN_BUDGET_BYTES,
    batch::BatchLimits,
    client::{Client, FlushError, Fsync, OpenError, RecordError, Status, StreamOptions, WhenFull},
    keys::KeysError,
    state::StateError,
};
use pithead_sealing::names::StreamName;

use crate::world::{LONG, World, keep, records, seqs, stream, until};

fn small(name: &str) -> StreamOptions {
    let limits = BatchLimits { records: 1_000, bytes: 16 << 10 };
    records(name).budget_bytes(MIN_BUDGET_BYTES).batch(limits)
}

/// Records as fast as it can until the policy says no, and gives how many were taken.
async fn fill(client: &Client, name: &str) -> (u64, RecordError) {
    let stream = client.stream(name).unwrap();
    let filling = async {
        let mut taken = 0;
        loop {
            match stream.record(&[7; 1_000]) {
                Ok(()) => taken += 1,
                // The disk is behind, and comes after.
                Err(RecordError::Behind) => stream.room().await,
                Err(error) => return (taken, error),
            }
        }
    };
    tokio::time::timeout(LONG, filling).await.expect("it refuses at last")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_rejects_keeps_the_oldest_and_takes_again_when_a_gateway_has_taken() {
    let world = World::new();
    let gateway = world.gateway().await;
    gateway.stop.cancel();
    let client = world.client(&[gateway.address]).stream(small("can")).stream(records("gps")).open().unwrap();
    let (_, error) = fill(&client, "can").await;
    assert!(matches!(error, RecordError::Full) && error.is_retryable(), "{error}");
    let can = stream(&client, "can");
    assert!(can.refused > 0 && can.recorded > 500 && can.dropped_records == 0, "{can:?}");
    // Of the full stream a batch waits in memory, so not everything is held; another stream has room all the same.
    client.stream("gps").unwrap().record(b"x").unwrap();
    let error = client.sync(Duration::from_millis(300)).await.unwrap_err();
    assert!(matches!(error, FlushError::NotHeld), "{error}");
    assert_eq!(stream(&client, "gps").held, 1);
    client.close(Duration::ZERO).unwrap();

    let second = world.gateway().await;
    let client = world.client(&[second.address]).stream(small("can")).open().unwrap();
    client.flush(LONG).await.unwrap();
    client.stream("can").unwrap().room().await;
    keep(&client, "can", b"room again").await;
    client.flush(LONG).await.unwrap();
    let sent = seqs(&second.gate.all_offered(), "can");
    let first_run = sent.len() - 1;
    assert_eq!(sent[..first_run], (1..=first_run as u64).collect::<Vec<_>>(), "the oldest, without a hole");
    assert_eq!(sent[first_run], 1, "and a new run");
}

/// What stands before a full outbox when the client is told to end was taken, and is not thrown away while a gateway makes
/// room.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_ends_waits_for_the_room_that_a_gateway_makes() {
    let world = World::new();
    let gateway = world.gateway().await;
    gateway.stop.cancel();
    let client = world.client(&[gateway.address]).stream(small("can")).open().unwrap();
    let (taken, _) = fill(&client, "can").await;
    assert!(stream(&client, "can").held < taken, "some of it waits in memory");
    client.close(Duration::ZERO).unwrap();
    let second = world.gateway().await;
    let client = world.client(&[second.address]).stream(small("can")).open().unwrap();
    let can = client.stream("can").unwrap();
    let mut taken = 0;
    while taken < 3_000 {
        match can.record(&[7; 1_000]) {
            Ok(()) => taken += 1,
            Err(_) => can.room().await,
        }
    }
    client.finish(LONG).await.unwrap();
    let left = stream(&client, "can");
    assert_eq!((left.held, left.in_memory, left.waiting), (3_000, 0, 0), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_drops_the_oldest_never_refuses_and_accounts_for_every_record() {
    let world = World::new();
    let client = world
        .client(&[World::nowhere()])
        .stream(small("can").when_full(WhenFull::DropOldest))
        .open()
        .unwrap();
    let can = client.stream("can").unwrap();
    for number in 0..5_000_u64 {
        while can.record(&[&number.to_be_bytes()[..], &[7; 992]].concat()).is_err() {
            can.room().await;
        }
    }
    client.sync(LONG).await.unwrap();
    let status = stream(&client, "can");
    assert_eq!((status.recorded, status.held), (5_000, 5_000));
    assert!(status.dropped_records > 3_000, "{status:?}");
    assert!(status.waiting_bytes <= MIN_BUDGET_BYTES, "{status:?}");
    let kept: u64 = pithead_device_client::survey(&world.folder()).unwrap()[0].records;
    assert_eq!(kept + status.dropped_records, 5_000);
    client.close(Duration::ZERO).unwrap();

    let gateway = world.gateway().await;
    let client = world.client(&[gateway.address]).stream(small("can")).open().unwrap();
    client.finish(LONG).await.unwrap();
    let sent = seqs(&gateway.gate.all_offered(), "can");
    let first = sent[0];
    assert_eq!(first, status.dropped_envelopes + 1, "what was dropped is the oldest, and nothing else");
    // What is left of the run, its goodbye, and the goodbye of this one, which declares the gap.
    assert!(sent[..sent.len() - 1].windows(2).all(|pair| pair[1] == pair[0] + 1), "{sent:?}");
}

/// While the thread that seals waited for room in the queue, the budget was used up, and nobody looked again.
#[tokio::test(flavor = "multi_thread")]
async fn a_budget_that_is_used_up_by_a_burst_is_noticed_without_another_record() {
    for when_full in [WhenFull::Reject, WhenFull::DropOldest] {
        let world = World::new();
        let client =
            world.client(&[World::nowhere()]).stream(small("can").when_full(when_full)).open().unwrap();
        let can = client.stream("can").unwrap();
        // Far faster than the disk, and less than the memory.
        for _ in 0..3_000 {
            if let Err(error) = can.record(&[7; 1_000]) {
                assert!(matches!((when_full, &error), (WhenFull::Reject, RecordError::Full)), "{error}");
            }
        }
        if when_full == WhenFull::DropOldest {
            client.sync(LONG).await.unwrap();
            assert_eq!(stream(&client, "can").held, 3_000);
        } else {
            let full =
                |status: &Status| matches!(status.streams[can.name()].trouble, Some(RecordError::Full));
            until(&client, "told that it is full", full).await;
        }
        client.close(Duration::ZERO).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_survives_the_process_and_begins_no_number_twice() {
    let world = World::new();
    let open = |at| world.client(&[at]).stream(records("can")).open().unwrap();
    let client = open(World::nowhere());
    for _ in 0..3 {
        keep(&client, "can", b"kept").await;
    }
    drop(client);
    let gateway = world.gateway().await;
    let client = open(gateway.address);
    keep(&client, "can", b"a new run").await;
    client.flush(LONG).await.unwrap();
    let offered = gateway.gate.all_offered();
    assert_eq!(seqs(&offered, "can"), [1, 2, 3, 4, 1], "three, a goodbye, and the next run");
    assert!(offered[3].0.run < offered[4].0.run);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_not_configured_any_more_is_still_delivered() {
    let world = World::new();
    let client = world.client(&[World::nowhere()]).stream(records("old")).open().unwrap();
    keep(&client, "old", b"x").await;
    client.close(Duration::ZERO).unwrap();
    let gateway = world.gateway().await;
    let client = world.client(&[gateway.address]).stream(records("new")).open().unwrap();
    assert!(client.stream("old").is_none());
    client.finish(LONG).await.unwrap();
    assert_eq!(seqs(&gateway.gate.all_offered(), "old"), [1, 2]);
    client.close(LONG).unwrap();
    let client = world.client(&[gateway.address]).stream(records("new")).open().unwrap();
    assert!(!client.status().streams.contains_key(&StreamName::new("old").unwrap()), "nothing waits in it");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_an_interval_what_was_recorded_is_written_together_and_a_sync_does_not_wait_for_it() {
    let world = World::new();
    let hour = Duration::from_secs(3_600);
    let client = world
        .client(&[World::nowhere()])
        .stream(records("can").sync(Fsync::Interval(hour)).batch(BatchLimits { records: 1, bytes: 1 << 10 }))
        .open()
        .unwrap();
    let can = client.stream("can").unwrap();
    can.record(b"the first interval is over at once").unwrap();
    client.sync(LONG).await.unwrap();
    for _ in 0..10 {
        can.record(b"x").unwrap();
    }
    // The last of them is not full yet, so nine are sealed; they wait for the interval.
    while stream(&client, "can").sealed < 10 {
        tokio::task::yield_now().await;
    }
    assert_eq!(stream(&client, "can").held, 1);
    client.sync(LONG).await.unwrap();
    assert_eq!(stream(&client, "can").held, 11);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_at_a_time_on_a_folder_and_who_looks_is_not_in_the_way() {
    let world = World::new();
    let client = world.client(&[World::nowhere()]).stream(records("can")).open().unwrap();
    keep(&client, "can", b"x").await;
    let refused = world.client(&[World::nowhere()]).open().unwrap_err();
    assert!(matches!(refused, OpenError::Keys(KeysError::State(StateError::Locked { .. }))), "{refused}");
    let found = pithead_device_client::survey(&world.folder()).unwrap();
    assert_eq!((found[0].envelopes, found[0].records, found[0].payload_bytes), (1, 1, 1));
    let verified = pithead_device_client::verify(&world.folder(), |_, _| {}).unwrap();
    assert_eq!((verified[0].records, verified[0].damaged), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_no_envelope_holds_is_refused_and_counted() {
    let world = World::new();
    let client = world.client(&[World::nowhere()]).stream(records("can")).open().unwrap();
    let refused = client.stream("can").unwrap().record(&vec![0; 1 << 20]).unwrap_err();
    assert!(matches!(refused, RecordError::TooLarge { .. }) && !refused.is_retryable(), "{refused}");
    keep(&client, "can", &vec![0; 900_000]).await;
    let can = stream(&client, "can");
    assert_eq!((can.refused, can.held), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_client_takes_nothing_and_leaves_no_thread() {
    let world = World::new();
    let client = world.client(&[World::nowhere()]).stream(records("can")).open().unwrap();
    let can = client.stream("can").unwrap();
    can.record(b"in memory").unwrap();
    let threads = || {
        let tasks =
            std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path().join("comm"));
        let names = tasks.filter_map(|comm| std::fs::read_to_string(comm).ok());
        names.filter(|name| name.starts_with("pithead-") || name.starts_with("spool-")).count()
    };
    let before = threads();
    let changes = client.changes();
    let closed = client.close(Duration::ZERO).unwrap();
    let of_can = &closed.streams[can.name()];
    assert_eq!((of_can.held, of_can.waiting), (1, 1), "what was gathered is on the disk");
    assert!(matches!(can.record(b"late"), Err(RecordError::Closed)));
    can.room().await;
    drop(changes);
    // Tests beside this one, in the same process, have threads of the same names.
    assert!(threads() < before, "{} of {before}", threads());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_busy_streams_end_at_once_and_with_all_that_was_recorded() {
    let world = World::new();
    let gateway = world.gateway().await;
    let client = world
        .client(&[gateway.address])
        .stream(records("can").priority(200))
        .stream(records("gps"))
        .open()
        .unwrap();
    for name in ["can", "gps"] {
        client.stream(name).unwrap().record(b"x").unwrap();
    }
    // Half of what the deadline allows would be a stall.
    tokio::time::timeout(LONG / 2, client.finish(LONG)).await.expect("nobody waits for nothing").unwrap();
    let status = client.status();
    assert!(status.streams.values().all(|stream| stream.held == 1 && stream.waiting == 0), "{status:?}");
    client.close(Duration::MAX).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn times_that_no_clock_holds_are_taken_for_never() {
    let world = World::new();
    let gateway = world.gateway().await;
    let options = StreamOptions::records(StreamName::new("can").unwrap())
        .linger(Duration::MAX)
        .sync(Fsync::Interval(Duration::MAX));
    let client =
        world.client(&[gateway.address]).stream(options).heartbeat_every(Duration::MAX).open().unwrap();
    keep(&client, "can", b"x").await;
    client.flush(Duration::MAX).await.unwrap();
    client.close(Duration::MAX).unwrap();
}

/// A heartbeat goes ahead of what waits in memory, and must not pass for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_sync_beside_heartbeats_means_what_it_says() {
    let world = World::new();
    let gateway = world.gateway().await;
    let client = world
        .client(&[gateway.address])
        .stream(records("can"))
        .heartbeat_every(Duration::from_millis(1))
        .open()
        .unwrap();
    for number in 1..=200 {
        keep(&client, "can", b"x").await;
        assert_eq!(stream(&client, "can").held, number);
    }
}

/// Every opening used to end with an error, for ever, and nobody stands beside a vehicle.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_has_lost_its_numbers_says_so_and_goes_on_above_all_that_it_still_holds() {
    let world = World::new();
    let open = |at| world.client(&[at]).stream(records("can")).open();
    let client = open(World::nowhere()).unwrap();
    for _ in 0..3 {
        keep(&client, "can", b"kept").await;
    }
    assert!(!client.status().sequence_lost);
    drop(client);
    for copy in ["sequence.a", "sequence.b"] {
        fs::write(world.folder().join(copy), b"not what was written").unwrap();
    }
    let gateway = world.gateway().await;
    let client = open(gateway.address).unwrap();
    assert!(client.status().sequence_lost && client.recovery().sequence_lost);
    keep(&client, "can", b"and on").await;
    client.flush(LONG).await.unwrap();
    let offered = gateway.gate.all_offered();
    assert_eq!(seqs(&offered, "can"), [1, 2, 3, 4, 1], "nothing of what was kept is lost");
    assert!(offered[3].0.run < offered[4].0.run, "{offered:?}");
    client.close(LONG).unwrap();
    assert!(!open(gateway.address).unwrap().status().sequence_lost, "once");
}

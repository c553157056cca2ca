//! What a device is told: stored, resent, other bytes, unknown key; before and after a restart.

use super::super::lanes::USUAL;
use super::super::record::{Head, KIND_CONFLICT};
use super::super::refused::Refused;
use super::super::retry::Retry;
use super::super::shares::Limits;
use super::super::testing::{Door, Truck, truck};
use super::*;
use crate::config;
use crate::keys::testing::{Authority, arn};
use pithead_sealing::envelope::LastSession;

#[tokio::test]
async fn an_envelope_is_stored_once_and_its_resend_is_a_duplicate_before_and_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let envelope = Truck::new().seal(1, b"record");
    {
        let door = Door::open(folder.path());
        // Both are offered before either is durable: the second shares the first one's ticket.
        let first = door.offer(envelope.clone()).await.unwrap();
        let second = door.offer(envelope.clone()).await.unwrap();
        assert_eq!(first.await.unwrap(), Outcome::Stored);
        assert_eq!(second.await.unwrap(), Outcome::Duplicate { unverified: false });
        assert_eq!(door.spool.stats().records, 1);
        door.spool.close().unwrap();
    }
    let door = Door::open(folder.path());
    assert_eq!(door.take(envelope).await, Outcome::Duplicate { unverified: false });
    assert_eq!(door.spool.stats().records, 1);
}

#[tokio::test]
async fn other_bytes_under_a_used_number_are_kept_beside_once_and_flagged() {
    let folder = tempfile::tempdir().unwrap();
    let mut truck = Truck::new();
    let (first, other) = (truck.seal(1, b"record"), truck.seal(1, b"another"));
    {
        let door = Door::open(folder.path());
        assert_eq!(door.take(first.clone()).await, Outcome::Stored);
        for _ in 0..3 {
            assert_eq!(door.take(other.clone()).await, Outcome::Conflict { kept: true });
        }
        door.spool.close().unwrap();
    }
    let door = Door::open(folder.path());
    assert_eq!(door.take(other).await, Outcome::Conflict { kept: true });
    assert_eq!(door.take(first).await, Outcome::Duplicate { unverified: false });
    let heads: Vec<_> = door.spool.waiting().collect();
    assert_eq!(heads.len(), 2);
    assert_eq!(heads[1].kind, KIND_CONFLICT);
    assert!(Head::decode(&heads[1].head).unwrap().hops[0].conflict);
}

#[tokio::test]
async fn damage_to_the_other_bytes_leaves_the_first_ones_where_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let mut truck = Truck::new();
    let (first, other) = (truck.seal(1, b"record"), truck.seal(1, b"another"));
    let door = Door::open(folder.path());
    door.take(first.clone()).await;
    door.take(other.clone()).await;
    let heads: Vec<_> = door.spool.waiting().collect();

    door.numbers.quarantined(&heads[1]);
    assert_eq!(door.take(first.clone()).await, Outcome::Duplicate { unverified: false });
    assert_eq!(door.take(other.clone()).await, Outcome::Conflict { kept: true });
    assert_eq!(door.spool.stats().records, 3, "the damaged copy was replaced");

    door.numbers.quarantined(&heads[0]);
    assert_eq!(door.take(first).await, Outcome::Stored, "and so is a damaged first one");
}

#[tokio::test]
async fn a_checkpoint_with_a_flipped_bit_calls_nothing_held_that_never_came() {
    let folder = tempfile::tempdir().unwrap();
    let mut truck = Truck::new();
    {
        let door = Door::open(folder.path());
        for seq in 1..=3 {
            door.take(truck.seal(seq, b"record")).await;
        }
        door.numbers.checkpoint().unwrap();
        door.spool.acknowledge(USUAL, pithead_spool::Position(2)).unwrap();
        door.spool.close().unwrap();
    }
    let path = folder.path().join("lines");
    let whole = std::fs::read(&path).unwrap();
    let never_came = truck.seal(4, b"record");
    let held = 3_u64.to_be_bytes();
    for at in whole.windows(8).enumerate().filter(|(_, bytes)| *bytes == held).map(|(at, _)| at) {
        let mut flipped = whole.clone();
        flipped[at + 7] ^= 4;
        std::fs::write(&path, flipped).unwrap();
        let door = Door::open(folder.path());
        assert_eq!(door.take(never_came.clone()).await, Outcome::Stored, "byte {at}");
        let last = door.spool.waiting().last().unwrap().position;
        door.spool.acknowledge(USUAL, last).unwrap();
        door.spool.close().unwrap();
    }
}

#[tokio::test]
async fn conflicts_beyond_their_bound_are_not_kept_and_good_data_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut truck = Truck::new();
    let door = Door::open_with(folder.path(), 1_000);
    door.take(truck.seal(1, b"record")).await;
    // An envelope of this kind has some 600 bytes: one fits, two do not.
    assert_eq!(door.take(truck.seal(1, b"other")).await, Outcome::Conflict { kept: true });
    assert_eq!(door.take(truck.seal(1, b"again")).await, Outcome::Conflict { kept: false });
    assert_eq!(door.take(truck.seal(2, b"record")).await, Outcome::Stored);
}

#[tokio::test]
async fn a_key_that_was_retired_since_is_taken_and_flagged_and_an_unknown_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let door = Door::open(folder.path());
    let mut authority = Authority::new();
    authority.statement(&[(&arn(1), KeyStatus::Active)]);
    let retired = authority.statement(&[(&arn(1), KeyStatus::Retired), (&arn(2), KeyStatus::Active)]);
    door.history.keep(&retired).unwrap();
    assert_eq!(door.take(Truck::new().seal(1, b"record")).await, Outcome::Stored);
    let head = door.spool.waiting().next().unwrap();
    assert!(Head::decode(&head.head).unwrap().hops[0].key_not_active);

    let elsewhere = tempfile::tempdir().unwrap();
    let (empty, _) = History::open(&elsewhere.path().join("history")).unwrap();
    let mut stranger = Door::open(elsewhere.path());
    let identity = Head::decode(&head.head).unwrap().identity;
    assert_eq!(stranger.intake.standing(&arn(9), &identity), Standing::Unknown);
    Arc::get_mut(&mut stranger.intake).unwrap().parts.history = Arc::new(empty);
    assert_eq!(stranger.intake.standing(&arn(1), &identity), Standing::NotReady);
}

#[tokio::test]
async fn a_full_spool_says_when_to_come_back_and_the_number_stays_free() {
    let folder = tempfile::tempdir().unwrap();
    let door = Door::open(folder.path());
    let mut truck = Truck::new();
    let payload = vec![7; 900_000];
    let (seq, refusal) = loop_until_refused(&door, &mut truck, &payload).await;
    assert_eq!(refusal.reason, ErrorReason::SpoolFull);
    assert!(refusal.retry_after.is_some());
    // Acknowledged: there is room again, and the same number is new.
    door.spool.acknowledge(USUAL, pithead_spool::Position(seq - 2)).unwrap();
    let envelope = truck.seal(seq, &payload);
    let deadline = tokio::time::Instant::now() + super::super::testing::LONG;
    loop {
        match door.offer(envelope.clone()).await {
            Ok(pending) => break assert_eq!(pending.await.unwrap(), Outcome::Stored),
            Err(refusal) => assert!(tokio::time::Instant::now() < deadline, "{refusal}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn an_envelope_that_the_spool_will_never_hold_does_not_hold_up_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let (door, mut sender) = (Door::open(folder.path()), Truck::new());
    let large = sender.seal(1, &vec![7; 5 << 20]);
    let peer = super::super::testing::truck();
    let admitted =
        pithead_hop::ingest::admit(large, vec![], &peer, &*door.intake, 8 << 20, &mut LastSession::default())
            .unwrap();
    let refused = door.intake.offer(&peer, &(), admitted).await.map(|_| ()).unwrap_err();
    assert_eq!(refused.reason, ErrorReason::EnvelopeTooLarge);
    assert_eq!(door.take(sender.seal(2, b"record")).await, Outcome::Stored);
}

async fn loop_until_refused(door: &Door, truck: &mut Truck, payload: &[u8]) -> (u64, Refusal) {
    for seq in 1.. {
        match door.offer(truck.seal(seq, payload)).await {
            Ok(pending) => assert_eq!(pending.await.unwrap(), Outcome::Stored),
            Err(refusal) => return (seq, refusal),
        }
    }
    unreachable!("a spool has an end")
}

/// A device may hold `device_bytes`, and send a thousand bytes a second.
fn few(device_bytes: u64) -> Shares {
    Shares::new(Limits { device_bytes, rate: 1_000, burst: 1 << 20, keeps_for_first: false }, 1)
}

fn open_few(folder: &std::path::Path, device_bytes: u64) -> Door {
    Door::open_shares(folder, 1 << 20, config::Lanes::default(), few(device_bytes))
}

#[tokio::test]
async fn a_device_that_holds_all_it_may_is_told_before_its_body_and_is_taken_again_when_some_has_left() {
    let folder = tempfile::tempdir().unwrap();
    let mut sealing = Truck::new();
    let envelopes: Vec<_> = (1..=4).map(|seq| sealing.seal(seq, &[7; 400])).collect();
    let bytes = envelopes[0].len() as u64;
    let device = truck().device().unwrap().clone();
    {
        let door = open_few(folder.path(), 3 * bytes);
        for envelope in &envelopes[..2] {
            assert_eq!(door.take(envelope.clone()).await, Outcome::Stored);
        }
        // Other bytes under a used number count as well.
        let other = sealing.seal(1, &[8; 400]);
        assert_eq!(door.take(other).await, Outcome::Conflict { kept: true });
        assert_eq!(door.shares.held(&device), 3 * bytes);
        door.spool.close().unwrap();
    }
    // And a restart knows them.
    let door = open_few(folder.path(), 3 * bytes);
    assert_eq!(door.shares.held(&device), 3 * bytes);
    let refusal = door.intake.ready(&truck()).unwrap_err();
    assert_eq!(refusal.reason, ErrorReason::SpoolFull);
    assert!(refusal.retry_after.is_some());
    let refusal = door.offer(envelopes[2].clone()).await.err().unwrap();
    assert_eq!(refusal.reason, ErrorReason::SpoolFull);
    // Its number is free all the same, and what is here already is answered.
    assert_eq!(door.take(envelopes[0].clone()).await, Outcome::Duplicate { unverified: false });

    let first = Head::decode(&door.spool.waiting().next().unwrap().head).unwrap();
    door.numbers.passed_on(&first, false, bytes);
    assert!(door.intake.ready(&truck()).is_ok());
    assert_eq!(door.take(envelopes[2].clone()).await, Outcome::Stored);
}

#[tokio::test]
async fn a_device_that_sends_too_fast_is_throttled_before_its_next_body() {
    let folder = tempfile::tempdir().unwrap();
    let door = open_few(folder.path(), 1 << 40);
    let mut sealing = Truck::new();
    assert!(door.intake.ready(&truck()).is_ok());
    // What has come is not thrown away; the next is not looked at.
    let payload = vec![7; 600_000];
    for seq in 1..=2 {
        assert_eq!(door.take(sealing.seal(seq, &payload)).await, Outcome::Stored);
    }
    let refusal = door.intake.ready(&truck()).unwrap_err();
    assert_eq!(refusal.reason, ErrorReason::Throttled);
    assert!(refusal.retry_after.unwrap() > Duration::from_secs(60), "{refusal}");
    // A gateway brings what many devices have sent.
    let mut gateway = truck();
    gateway.id.role = pithead_hop::identity::Role::Gateway(GatewayName::new("edge-2").unwrap());
    assert!(door.intake.ready(&gateway).is_ok());
}

#[tokio::test]
async fn what_the_far_end_has_refused_waits_for_it_again_and_leaves_the_area_when_it_is_durable() {
    let folder = tempfile::tempdir().unwrap();
    let door = Door::open(folder.path());
    let envelope = Truck::new().seal(1, b"record");
    assert_eq!(door.take(envelope.clone()).await, Outcome::Stored);
    let (head, bytes) = (door.spool.waiting().next().unwrap(), envelope.len() as u64);
    let (position, head) = (head.position, Head::decode(&head.head).unwrap());
    let area = Refused::open(&folder.path().join("refused"), 1 << 20, Metrics::new(), door.shares.clone());
    let refused = Arc::new(area.unwrap().with_replica(door.spool.replica()).unwrap());
    // As the relay does it.
    refused.keep(&head, false, &envelope, Some(ErrorReason::KeyUnknown), "unknown", 5).unwrap();
    door.numbers.passed_on(&head, false, bytes);
    door.numbers.checkpoint().unwrap();
    door.spool.acknowledge(USUAL, position).unwrap();
    assert_eq!((door.spool.stats().records, door.shares.held(&head.identity.device)), (0, bytes));

    let (numbers, spool, uploads) = (door.numbers.clone(), door.spool.clone(), door.uploads.clone());
    let retry = Retry { refused: refused.clone(), numbers, spool, uploads, copies: None };
    let name = super::super::refused::list(&folder.path().join("refused")).unwrap().entries[0].0.clone();
    retry.send_again(&name).await.unwrap();
    assert_eq!((door.spool.stats().records, refused.held().records), (1, 0));
    assert_eq!(door.shares.held(&head.identity.device), bytes, "it is here once");
    let again = Head::decode(&door.spool.waiting().next().unwrap().head).unwrap();
    assert_eq!(again, head, "with the custody that it had");
    assert!(retry.send_again(&name).await.is_err(), "there is nothing left to send");
    assert_eq!(door.take(envelope.clone()).await, Outcome::Duplicate { unverified: false });

    // Refused once more while it waits, as after a crash in between: it is not appended twice.
    refused.keep(&head, false, &envelope, Some(ErrorReason::KeyUnknown), "unknown", 6).unwrap();
    retry.send_again(&name).await.unwrap();
    assert_eq!((door.spool.stats().records, refused.held().records), (1, 0));
    door.numbers.passed_on(&head, false, bytes);
    assert_eq!(door.shares.held(&head.identity.device), 0);
}

#[tokio::test]
async fn on_one_call_every_session_pays_for_its_data_key() {
    let folder = tempfile::tempdir().unwrap();
    let door = Door::open(folder.path());
    let (mut first, mut second, mut last) = (Truck::new(), Truck::new(), LastSession::default());
    let device = truck().device().unwrap().clone();
    for (seq, truck_now, paid) in [(1, 1, 1), (2, 1, 1), (3, 2, 2), (4, 1, 2)] {
        let envelope = if truck_now == 1 { first.seal(seq, b"x") } else { second.seal(seq, b"x") };
        let admitted =
            pithead_hop::ingest::admit(envelope, vec![], &truck(), &*door.intake, 1 << 20, &mut last);
        let stored = door.intake.offer(&truck(), &(), admitted.unwrap()).await.unwrap();
        assert_eq!(stored.await.unwrap(), Outcome::Stored);
        assert_eq!(door.intake.parts.budgets.remembered(&device), paid, "number {seq}");
    }
}

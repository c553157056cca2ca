//! Real RSA, real envelopes, and a door that can be held shut.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::DeviceId;
use pithead_sealing::envelope::EdkFault;
use pithead_sealing::envelope::open::{Chosen, Opening};
use pithead_sealing::trust::VerifiedKey;

use super::testing::{Door, WIDE};
use super::*;
use crate::authority::testing::{TestAuthority, TestKey, arn, seal, session, site};
use crate::kms::{KmsError, KmsFault};

struct World {
    authority: TestAuthority,
    key: TestKey,
    verified: VerifiedKey,
}

async fn world() -> World {
    let (authority, key, verified) = TestAuthority::with_key().await;
    World { authority, key, verified }
}

impl World {
    fn local(&self) -> LocalKeys {
        LocalKeys::load([(self.key.arn.clone(), self.key.pem.as_path())]).unwrap()
    }

    fn envelope(&self, stream: &str) -> Bytes {
        seal(&mut session(&self.verified, stream, None), 1, b"telemetry")
    }
}

fn chosen(envelope: &Bytes) -> Chosen {
    Opening::begin(envelope).unwrap().choose(|_| true).unwrap()
}

fn sender(device: &str) -> Sender {
    Sender { site: site("pit-7"), device: DeviceId::new(device).unwrap(), gateway: Some("gate-1".into()) }
}

fn keys(door: &Arc<Door>) -> Arc<DataKeys> {
    Arc::new(DataKeys::new(door.clone(), CacheLimits::default(), Budgets::default()))
}

#[tokio::test]
async fn a_private_key_in_a_file_opens_what_a_device_sealed() {
    let world = world().await;
    let envelope = world.envelope("can");
    let chosen = chosen(&envelope);
    let unwrapped = world.local().unwrap(chosen.key_arn(), chosen.edk().ciphertext()).await.unwrap();
    let unlocked = chosen.unlock(&unwrapped).unwrap();
    let body = &envelope[unlocked.header().wire_len()..];
    assert_eq!(unlocked.open_body(body).unwrap(), b"telemetry");
}

#[tokio::test]
async fn a_wrong_key_a_wrong_length_and_an_unknown_arn_are_told_apart() {
    let world = world().await;
    let other = world.authority.key(2);
    let envelope = world.envelope("can");
    let chosen = chosen(&envelope);
    let stranger = LocalKeys::for_any_arn(&other.pem).unwrap();
    let wrong = stranger.unwrap(chosen.key_arn(), chosen.edk().ciphertext()).await.unwrap_err();
    assert!(matches!(wrong, UnwrapError::InvalidCiphertext));
    for length in [0, 1, 255, 257, 384, 512] {
        let refused = world.local().unwrap(&world.key.arn, &vec![1; length]).await.unwrap_err();
        assert!(matches!(refused, UnwrapError::InvalidCiphertext), "{length}");
    }
    let unknown = world.local().unwrap(&arn(77), chosen.edk().ciphertext()).await.unwrap_err();
    assert_eq!((unknown.reason(), unknown.class()), (ErrorReason::KmsKeyNotFound, Class::Operator));
    assert!(!world.local().may_hold(&arn(77)));
}

#[tokio::test]
async fn files_that_are_no_private_key_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key.pem");
    assert!(matches!(LocalKeys::for_any_arn(&path).unwrap_err(), KeyFileError::Read { .. }));
    std::fs::write(&path, "-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n").unwrap();
    let older = LocalKeys::for_any_arn(&path).unwrap_err();
    assert!(matches!(older, KeyFileError::Form { .. }) && older.to_string().contains("openssl pkcs8"));
    let authority = TestAuthority::new();
    let p256 = authority.dir().key_path("statement-1");
    assert!(matches!(LocalKeys::for_any_arn(&p256).unwrap_err(), KeyFileError::Kind { .. }));
}

#[tokio::test]
async fn a_session_costs_one_private_operation_however_many_messages_it_has() {
    let world = world().await;
    let door = Door::of(&world.key);
    let keys = keys(&door);
    let mut session = session(&world.verified, "can", None);
    for seq in 1..=20 {
        let envelope = seal(&mut session, seq, b"x");
        let chosen = chosen(&envelope);
        let session = keys.data_key(&chosen, &sender("truck-1")).await.unwrap();
        assert!(chosen.unlock(session.unwrapped()).is_ok());
    }
    assert_eq!(door.calls(), 1);
    assert_eq!((keys.counters().unwraps(), keys.counters().hits()), (1, 19));
}

#[tokio::test]
async fn those_who_come_at_once_share_one_flight_and_its_failure_is_forgotten() {
    let world = world().await;
    let door = Door::of(&world.key);
    let keys = keys(&door);
    let envelope = world.envelope("can");
    for (fault, expected_calls) in [(Some(KmsFault::Throttled), 1), (Some(KmsFault::Denied), 2), (None, 3)] {
        door.fail(fault);
        let held = door.open.acquire_many(WIDE).await.unwrap();
        let waiting: Vec<_> = (0..50)
            .map(|_| {
                let (keys, chosen) = (Arc::clone(&keys), chosen(&envelope));
                tokio::spawn(async move { keys.data_key(&chosen, &sender("truck-1")).await })
            })
            .collect();
        // Everybody who will wait is waiting: the leader is at the door, the others at the leader's flight.
        while door.calls() < expected_calls {
            tokio::task::yield_now().await;
        }
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        drop(held);
        for waiter in waiting {
            let result = waiter.await.unwrap();
            assert_eq!(result.as_ref().err().map(UnwrapError::reason), fault.map(KmsFault::reason));
        }
        assert_eq!(door.calls(), expected_calls);
    }
    keys.sweep().await;
    assert_eq!(keys.held(), 1);
}

#[tokio::test]
async fn a_leader_that_is_dropped_leaves_the_flight_to_the_others() {
    let world = world().await;
    let door = Door::of(&world.key);
    let keys = keys(&door);
    let envelope = world.envelope("can");
    let held = door.open.acquire_many(WIDE).await.unwrap();
    let spawn = || {
        let (keys, chosen) = (Arc::clone(&keys), chosen(&envelope));
        tokio::spawn(async move { keys.data_key(&chosen, &sender("truck-1")).await.map(drop) })
    };
    let leader = spawn();
    while door.calls() < 1 {
        tokio::task::yield_now().await;
    }
    let follower = spawn();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    leader.abort();
    drop(held);
    assert!(follower.await.unwrap().is_ok());
    assert!(door.calls() <= 2);
}

#[tokio::test]
async fn an_invalid_edk_is_remembered_and_nothing_else_is() {
    let world = world().await;
    let door = Door::of(&world.key);
    let keys = keys(&door);
    let envelope = world.envelope("can");
    let chosen = chosen(&envelope);
    for fault in [KmsFault::Throttled, KmsFault::Unreachable, KmsFault::Denied, KmsFault::KeyDisabled] {
        door.fail(Some(fault));
        let before = door.calls();
        for _ in 0..2 {
            assert_eq!(
                keys.data_key(&chosen, &sender("truck-1")).await.unwrap_err().reason(),
                fault.reason()
            );
        }
        assert_eq!(door.calls() - before, 2, "{fault:?} is asked again");
    }
    door.fail(None);
    assert!(keys.data_key(&chosen, &sender("truck-1")).await.is_ok(), "an outage poisons nothing");

    let other = world.envelope("logs");
    let poisoned = self::chosen(&other);
    door.fail(Some(KmsFault::InvalidCiphertext));
    let before = door.calls();
    for _ in 0..5 {
        let error = keys.data_key(&poisoned, &sender("truck-1")).await.unwrap_err();
        assert_eq!((error.reason(), error.class()), (ErrorReason::KmsInvalidCiphertext, Class::Poison));
    }
    assert_eq!(door.calls() - before, 1, "rubbish costs one call");
    assert!(keys.data_key(&chosen, &sender("truck-1")).await.is_ok(), "the good one is not touched");
}

#[tokio::test]
async fn a_copied_edk_condemns_the_copy_and_never_the_session() {
    let world = world().await;
    let door = Door::of(&world.key);
    let keys = keys(&door);
    let mut session = session(&world.verified, "can", None);
    let good = seal(&mut session, 1, b"x");
    // The same EDK under a context that says another truck; lengths stay as they are.
    let mut copied = good.to_vec();
    let at = copied.windows(7).position(|window| window == b"truck-1").unwrap();
    copied[at + 6] = b'2';
    let copied = Bytes::from(copied);
    for _ in 0..2 {
        let error = keys.data_key(&chosen(&copied), &sender("truck-2")).await.unwrap_err();
        assert!(matches!(error, UnwrapError::Edk(EdkFault::ContextDigest)));
        assert_eq!((error.reason(), error.class()), (ErrorReason::EnvelopeEdk, Class::Poison));
    }
    assert!(keys.data_key(&chosen(&good), &sender("truck-1")).await.is_ok());
    assert_eq!(door.calls(), 1);
}

#[tokio::test]
async fn a_device_over_its_budget_waits_and_others_do_not() {
    let world = world().await;
    let door = Door::of(&world.key);
    let budgets = Budgets { device_per_s: 0.001, device_burst: 2, ..Budgets::default() };
    let keys = DataKeys::new(door.clone(), CacheLimits::default(), budgets);
    let envelopes: Vec<Bytes> = (0..4).map(|_| world.envelope("can")).collect();
    for envelope in &envelopes[..2] {
        keys.data_key(&chosen(envelope), &sender("truck-1")).await.unwrap();
    }
    let error = keys.data_key(&chosen(&envelopes[2]), &sender("truck-1")).await.unwrap_err();
    assert_eq!(error.reason(), ErrorReason::UnwrapBudget);
    assert!(error.is_retryable() && error.retry_after().unwrap() > Duration::from_secs(60));
    assert_eq!(door.calls(), 2, "what is over budget is not asked for");
    keys.data_key(&chosen(&envelopes[0]), &sender("truck-1")).await.expect("a hit costs nothing");
    keys.data_key(&chosen(&envelopes[2]), &sender("truck-2"))
        .await
        .expect("another device has its own budget");
}

#[tokio::test]
async fn keys_are_forgotten_on_time_and_the_cache_is_bounded() {
    let world = world().await;
    let door = Door::of(&world.key);
    let limits = CacheLimits { keys: 2, key_age: Duration::from_millis(30), ..CacheLimits::default() };
    let keys = DataKeys::new(door.clone(), limits, Budgets::default());
    for _ in 0..5 {
        keys.data_key(&chosen(&world.envelope("can")), &sender("truck-1")).await.unwrap();
    }
    keys.sweep().await;
    assert!(keys.held() <= 2);
    tokio::time::sleep(Duration::from_millis(60)).await;
    keys.sweep().await;
    assert_eq!(keys.held(), 0);
}

#[test]
fn what_is_poison_and_what_is_the_operators_is_decided_once() {
    let class = |fault| UnwrapError::from(KmsError::new(fault, "")).class();
    for fault in KmsFault::ALL {
        let expected = match fault {
            KmsFault::Throttled | KmsFault::Unreachable => Class::Later(Duration::from_secs(1)),
            KmsFault::InvalidCiphertext | KmsFault::InvalidRequest => Class::Poison,
            _ => Class::Operator,
        };
        assert_eq!(class(fault), expected, "{fault:?}");
        assert_eq!(fault.is_retryable(), matches!(class(fault), Class::Later(_)));
    }
}

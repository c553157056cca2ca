//! Session signatures, with a sender who has everything but the device's key and the data keys.

use super::*;
use crate::devices::{DeviceName, Policy, add, remove, revoke};
use crate::unwrap::LocalKeys;
use pithead_sealing::envelope::dangerous::{FixedEdk, FixedMessage};
use pithead_sealing::envelope::{DeviceSigningKey, Entropy, EntropyError};
use pithead_sealing::trust::Kid;

fn truck(device: &str) -> DeviceName {
    format!("pit-7/{device}").parse().unwrap()
}

/// A device's key, with its public half in a file.
fn key_of(world: &World, stem: &str) -> (DeviceSigningKey, PathBuf) {
    let key = DeviceSigningKey::generate(&mut KernelEntropy).unwrap();
    let path = world.dir.path().join(format!("{stem}.pub"));
    fs::write(&path, key.spki_pem()).unwrap();
    (key, path)
}

/// The data key first, then the kernel's.
struct Known(Option<[u8; 32]>);

impl Entropy for Known {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), EntropyError> {
        match self.0.take() {
            Some(bytes) => out.copy_from_slice(&bytes),
            None => KernelEntropy.fill(out)?,
        }
        Ok(())
    }
}

const DATA_KEY: [u8; 32] = [0x42; 32];

fn signed(world: &World, device: &str, stream: &str, run: u64, key: &DeviceSigningKey) -> Session {
    session_with(world, device, stream, run, Some(key), &mut KernelEntropy)
}

fn unsigned(world: &World, device: &str, stream: &str, run: u64) -> Session {
    session_with(world, device, stream, run, None, &mut KernelEntropy)
}

fn session_with(
    world: &World,
    device: &str,
    stream: &str,
    run: u64,
    key: Option<&DeviceSigningKey>,
    entropy: &mut dyn Entropy,
) -> Session {
    let content_type = ContentType::new("text/plain").unwrap();
    let (site, device) = (Site::new("pit-7").unwrap(), DeviceId::new(device).unwrap());
    let context = SessionContext::new(site, device, StreamName::new(stream).unwrap(), content_type);
    let clock = SessionClock { boot: Duration::ZERO, now: START };
    Session::start(&world.verified, &context, Run::new(run).unwrap(), key, clock, entropy).unwrap()
}

/// Why it is refused; none if it is stored.
async fn judged(rig: &Rig, envelope: &Bytes) -> Option<ErrorReason> {
    match rig.give(envelope).await.unwrap() {
        Outcome::Stored => None,
        Outcome::Refused(refusal) => Some(refusal.reason),
        other => panic!("{other:?}"),
    }
}

/// Number, assurance, verdict and kid of every line in the sink.
fn verdicts(world: &World) -> Vec<(u64, String, String, Option<String>)> {
    let text = fs::read_to_string(world.lines()).unwrap();
    let parse = |line| serde_json::from_str::<serde_json::Value>(line).unwrap();
    let words = |line: serde_json::Value| {
        let word = |name: &str| line[name].as_str().map(str::to_owned);
        (line["seq"].as_u64().unwrap(), word("assurance").unwrap(), word("verdict").unwrap(), word("kid"))
    };
    text.lines().map(parse).map(words).collect()
}

fn line(seq: u64, assurance: &str, verdict: &str, kid: Option<Kid>) -> (u64, String, String, Option<String>) {
    (seq, assurance.into(), verdict.into(), kid.map(|kid| kid.to_string()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_signed_envelope_latches_and_no_kill_loosens_it() {
    for kill in [Kill::Never, Kill::AfterSink, Kill::AfterLedger] {
        let world = world().await;
        let door = Door::of(&world.key);
        let (key, public) = key_of(&world, "truck-1");
        add(world.dir.path(), &truck("truck-1"), Some(&public), None).unwrap();
        let rig = Rig::start(&world, &door, Kind::Lines);
        let mut plain = unsigned(&world, "truck-1", "gps", 7);
        assert_eq!(judged(&rig, &seal(&mut plain, 1, b"before")).await, None);
        let first = seal(&mut signed(&world, "truck-1", "can", 7, &key), 2, b"signed");
        if kill == Kill::Never {
            assert_eq!(judged(&rig, &first).await, None);
            // A clean stop writes a checkpoint, and the next start reads nothing else.
            rig.stop().await;
        } else {
            rig.die(kill, std::slice::from_ref(&first)).await;
        }
        let mut rig = Rig::start(&world, &door, Kind::Lines);
        if kill == Kill::AfterSink {
            // Nothing was entered and nobody was told: the sender brings it again.
            assert_eq!(judged(&rig, &first).await, None);
        }
        for seq in [3, 4] {
            let downgraded = seal(&mut plain, seq, b"somebody else's");
            assert_eq!(judged(&rig, &downgraded).await, Some(ErrorReason::SignatureRequired), "{kill:?}");
            rig.stop().await;
            rig = Rig::start(&world, &door, Kind::Lines);
        }
        rig.stop().await;
        let expected = [line(1, "vouched", "unsigned", None), line(2, "signed", "signed", Some(key.kid()))];
        assert_eq!(verdicts(&world), expected, "{kill:?}");
        let kept = world.files("refused");
        assert_eq!(kept.len(), 2, "{kept:?}");
        assert!(kept.iter().all(|name| name.ends_with(".PH-2111.envelope")), "{kept:?}");
        // A device that the cloud forgets is as if it had never been registered.
        remove(world.dir.path(), &truck("truck-1"), None).unwrap();
        let rig = Rig::start(&world, &door, Kind::Lines);
        assert_eq!(judged(&rig, &seal(&mut plain, 5, b"x")).await, None);
        rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_stranger_makes_of_a_signed_session_is_found_out_and_the_session_goes_on() {
    let world = world().await;
    let other_arn = KeyArn::new("arn:aws:kms:eu-central-1:111122223333:key/other").unwrap();
    let files =
        [(world.key.arn.clone(), world.key.pem.as_path()), (other_arn.clone(), world.key.pem.as_path())];
    let door = Door::before(LocalKeys::load(files).unwrap());
    let (key, public) = key_of(&world, "truck-1");
    let (other_key, other_public) = key_of(&world, "truck-2");
    add(world.dir.path(), &truck("truck-1"), Some(&public), None).unwrap();
    add(world.dir.path(), &truck("truck-2"), Some(&other_public), None).unwrap();
    let rig = Rig::start_allowing(&world, &door, Kind::Lines, &[world.key.arn.clone(), other_arn.clone()]);
    let mut session = session_with(&world, "truck-1", "can", 7, Some(&key), &mut Known(Some(DATA_KEY)));
    let context = session.context().clone();
    let edk = |arn: &KeyArn, seed: u8| FixedEdk::Wrap {
        provider_info: arn.to_string(),
        spki_der: world.key.spki.der().to_vec(),
        oaep_seed: [seed; 32],
    };
    let forge = |edks: Vec<FixedEdk>, data_key: [u8; 32], run: u64, seq: u64| {
        let mut message_id = [9; 32];
        message_id[16..24].copy_from_slice(&run.to_be_bytes());
        message_id[24..].copy_from_slice(&seq.to_be_bytes());
        let message = FixedMessage {
            context: context.clone(),
            edks,
            frame_length: 65_536,
            data_key,
            message_id,
            empty_final_frame: false,
        };
        Bytes::from(message.seal(b"forged").unwrap())
    };
    let invalid = Some(ErrorReason::SignatureInvalid);
    // The signature with a data key of one's own: all that somebody without the device's data key can seal.
    let copied = forge(vec![edk(&world.key.arn, 1)], [8; 32], 7, 1);
    assert_eq!(judged(&rig, &copied).await, invalid);
    // From here on it is somebody who knows even the data key. Another run, and another key.
    let of_another_run = forge(vec![edk(&world.key.arn, 2)], DATA_KEY, 8, 1);
    assert_eq!(judged(&rig, &of_another_run).await, invalid);
    let to_another_key = forge(vec![edk(&other_arn, 3)], DATA_KEY, 7, 1);
    assert_eq!(judged(&rig, &to_another_key).await, invalid);
    // Two data keys: the profile does not let it in.
    let two = forge(vec![edk(&world.key.arn, 4), edk(&other_arn, 5)], DATA_KEY, 7, 1);
    let refused = rig.give(&two).await.unwrap_err();
    assert_eq!(refused.reason, ErrorReason::ProfileContext);
    assert!(refused.metadata.contains(&("rule", "signature-edks".to_owned())), "{refused:?}");
    // Another run under the session's own encrypted data key, and before any message of the session: what is kept of it is said of
    // the session, and costs the device nothing.
    let honest = seal(&mut session, 1, b"honest");
    let own = pithead_sealing::envelope::check(honest.clone()).unwrap().header().edks()[0].clone();
    let literal = FixedEdk::Literal {
        provider_id: own.provider_id().to_vec(),
        provider_info: own.provider_info().to_vec(),
        ciphertext: own.ciphertext().to_vec(),
    };
    assert_eq!(judged(&rig, &forge(vec![literal.clone()], DATA_KEY, 8, 1)).await, invalid);
    assert_eq!(judged(&rig, &honest).await, None);
    let known = forge(vec![literal], DATA_KEY, 7, 2);
    assert_eq!(judged(&rig, &known).await, None, "whoever has the data key and the signature is the device");
    assert_eq!(judged(&rig, &seal(&mut session, 3, b"honest")).await, None);

    // A key that is registered, for another device: unknown for this one.
    let borrowed = seal(&mut signed(&world, "truck-1", "can", 9, &other_key), 1, b"x");
    assert_eq!(judged(&rig, &borrowed).await, Some(ErrorReason::SignatureKeyUnknown));
    // Somebody whose certificate says truck-1 too, with a key of his own.
    let (certified, _) = key_of(&world, "certified");
    let of_own_key = seal(&mut signed(&world, "truck-1", "can", 10, &certified), 1, b"x");
    assert_eq!(judged(&rig, &of_own_key).await, Some(ErrorReason::SignatureKeyUnknown));
    let numbers: Vec<u64> = verdicts(&world).iter().map(|(seq, ..)| *seq).collect();
    assert_eq!(numbers, [1, 2, 3]);
    assert!(verdicts(&world).iter().all(|(_, _, verdict, _)| verdict == "signed"));
    assert_eq!((rig.metrics.envelopes_judged("invalid"), rig.metrics.envelopes_judged("signed")), (4, 3));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_the_registry_counts_for_sessions_that_are_at_hand() {
    let world = world().await;
    let door = Door::of(&world.key);
    let data = world.dir.path();
    let (old, old_public) = key_of(&world, "old");
    let (new, new_public) = key_of(&world, "new");
    let rig = Rig::start(&world, &door, Kind::Lines);
    let mut session = signed(&world, "truck-1", "can", 7, &old);
    // Nobody has registered it: it is as good as any unsigned one, and not worse.
    assert_eq!(judged(&rig, &seal(&mut session, 1, b"x")).await, None);
    add(data, &truck("truck-1"), Some(&old_public), None).unwrap();
    rig.reload();
    assert_eq!(judged(&rig, &seal(&mut session, 2, b"x")).await, None);
    // A rotation that the cloud hears of late.
    let mut next = signed(&world, "truck-1", "can", 8, &new);
    let early = seal(&mut next, 3, b"x");
    assert_eq!(judged(&rig, &early).await, Some(ErrorReason::SignatureKeyUnknown));
    add(data, &truck("truck-1"), Some(&new_public), None).unwrap();
    rig.reload();
    assert_eq!(judged(&rig, &early).await, None, "what was refused is not lost: it is only sent again");
    // The old key is revoked in the middle of a session.
    revoke(data, &[old.kid()]).unwrap();
    rig.reload();
    let late = seal(&mut session, 4, b"x");
    assert_eq!(judged(&rig, &late).await, Some(ErrorReason::SignatureRevoked));
    assert_eq!(judged(&rig, &seal(&mut next, 5, b"x")).await, None);
    let unsigned = seal(&mut unsigned(&world, "truck-1", "can", 9), 1, b"x");
    assert_eq!(judged(&rig, &unsigned).await, Some(ErrorReason::SignatureRequired));
    // By mistake, as it turns out.
    remove(data, &truck("truck-1"), Some(&old.kid())).unwrap();
    add(data, &truck("truck-1"), Some(&old_public), None).unwrap();
    rig.reload();
    assert_eq!(judged(&rig, &late).await, None);
    assert_eq!(
        rig.data_keys.counters().unwraps(),
        3,
        "one private operation for each session, however often it was judged"
    );
    rig.stop().await;
    let expected = [
        line(1, "vouched", "unknown-key", Some(old.kid())),
        line(2, "signed", "signed", Some(old.kid())),
        line(3, "signed", "signed", Some(new.kid())),
        line(5, "signed", "signed", Some(new.kid())),
        line(4, "signed", "signed", Some(old.kid())),
    ];
    assert_eq!(verdicts(&world), expected);
    let mut reasons: Vec<_> =
        world.files("refused").iter().map(|name| name[name.len() - 16..name.len() - 9].to_owned()).collect();
    reasons.sort();
    assert_eq!(reasons, ["PH-2111", "PH-2112", "PH-2113"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_device_that_must_sign_nothing_else_is_ever_taken() {
    let world = world().await;
    let door = Door::of(&world.key);
    let (key, public) = key_of(&world, "truck-1");
    add(world.dir.path(), &truck("truck-1"), Some(&public), Some(Policy::Required)).unwrap();
    let rig = Rig::start(&world, &door, Kind::Lines);
    let mut plain = unsigned(&world, "truck-1", "can", 7);
    assert_eq!(judged(&rig, &seal(&mut plain, 1, b"x")).await, Some(ErrorReason::SignatureRequired));
    let (stranger, _) = key_of(&world, "stranger");
    let unknown = seal(&mut signed(&world, "truck-1", "can", 7, &stranger), 1, b"x");
    assert_eq!(judged(&rig, &unknown).await, Some(ErrorReason::SignatureKeyUnknown));
    // The number was not used up by any of them, and the neighbour is free to go on as before.
    let honest = seal(&mut signed(&world, "truck-1", "can", 7, &key), 1, b"x");
    assert_eq!(judged(&rig, &honest).await, None);
    assert_eq!(judged(&rig, &seal(&mut unsigned(&world, "truck-2", "can", 7), 2, b"x")).await, None);
    rig.stop().await;
    let expected = [line(1, "signed", "signed", Some(key.kid())), line(2, "vouched", "unsigned", None)];
    assert_eq!(verdicts(&world), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_under_way_beside_the_first_signed_envelope_is_not_entered_behind_it() {
    for first_is_entered in [false, true] {
        let world = world().await;
        let door = Door::of(&world.key);
        let (key, public) = key_of(&world, "truck-1");
        add(world.dir.path(), &truck("truck-1"), Some(&public), None).unwrap();
        let rig = Rig::start(&world, &door, Kind::Lines);
        let mut plain = unsigned(&world, "truck-1", "can", 7);
        let (first, second) = (
            seal(&mut signed(&world, "truck-1", "can", 7, &key), 1, b"signed"),
            seal(&mut plain, 2, b"unsigned"),
        );
        // The sink stands still, so both are judged while nothing of the device has been applied.
        rig.gate.set_closed(true);
        let ahead = if first_is_entered {
            None
        } else {
            // Another device's envelope occupies the sink: the two come into one group.
            let ahead = seal(&mut unsigned(&world, "truck-9", "can", 7), 1, b"ahead");
            Some(in_the_sink(&rig, &ahead).await)
        };
        let one =
            if first_is_entered { in_the_sink(&rig, &first).await } else { rig.offer(&first).await.unwrap() };
        let two = rig.offer(&second).await.unwrap();
        rig.pipeline.drain().await;
        rig.gate.set_closed(false);
        if let Some(ahead) = ahead {
            assert_eq!(ahead.await.unwrap(), Outcome::Stored);
        }
        assert_eq!(one.await.unwrap(), Outcome::Stored);
        let Outcome::Refused(refusal) = two.await.unwrap() else { panic!("an unsigned one got through") };
        assert_eq!(refusal.reason, ErrorReason::SignatureRequired);
        rig.stop().await;
    }
}

/// Offers it, and waits until the writing thread stands before the sink with it.
async fn in_the_sink(rig: &Rig, envelope: &Bytes) -> Pending {
    let pending = rig.offer(envelope).await.unwrap();
    rig.gate.entered.notified().await;
    pending
}

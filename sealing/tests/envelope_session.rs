//! Sessions: what they put into an envelope, when they end, and what their signature proves.
#![cfg(feature = "open")]
#![allow(clippy::unwrap_used)]

mod envelope_support;

use std::time::Duration;

use envelope_support::*;
use pithead_sealing::envelope::open::{Opening, RegisteredKey, SessionVerdict, Unlocked};
use pithead_sealing::envelope::{
    DeviceSigningKey, DeviceVerifyingKey, Entropy, EntropyError, FileName, ProfileError, Rotation,
    SESSION_MESSAGES_MAX, SealError, SealedEnvelope, Session, SessionClock, check,
};
use pithead_sealing::trust::{Kid, TrustError};
use pithead_sealing::{DeviceId, Run};

fn unlock(envelope: &SealedEnvelope) -> Unlocked {
    let chosen = Opening::begin(envelope.bytes()).unwrap().choose(|_| true).unwrap();
    let unwrapped = KEY.unwrap(chosen.edk()).unwrap();
    chosen.unlock(&unwrapped).unwrap()
}

fn signer() -> DeviceSigningKey {
    DeviceSigningKey::generate(&mut Counter(900)).unwrap()
}

fn registered(signer: &DeviceSigningKey) -> RegisteredKey {
    RegisteredKey {
        device: DeviceId::new("truck-0042").unwrap(),
        key: DeviceVerifyingKey::from_spki_der(signer.spki_der()).unwrap(),
        revoked: false,
    }
}

fn signed_session(signer: &DeviceSigningKey, run: Run) -> Session {
    Session::start(&VERIFIED, &context(), run, Some(signer), CLOCK, &mut Counter(1)).unwrap()
}

fn sealed_by(session: &mut Session, number: u64) -> SealedEnvelope {
    session.seal(seq(number), b"text", CLOCK.boot, &mut Counter(number)).unwrap()
}

#[test]
fn an_envelope_says_what_the_session_was_told() {
    let name = FileName::new("Fahrt 7.bag").unwrap();
    let facts = context().file_name(name.clone()).created("2026-11-23T16:40:00Z").unwrap().other("app", "x");
    let mut session = Session::start(&VERIFIED, &facts, run(), None, CLOCK, &mut Counter(1)).unwrap();
    let envelope = sealed_by(&mut session, 9);
    let admitted = check(envelope.bytes().clone()).unwrap().admit(|arn| *arn == KEY.arn).unwrap();
    let profile = admitted.profile();
    assert_eq!(profile.identity().to_string(), "pit-7/truck-0042/telemetry/0000000312345678/9");
    assert_eq!(profile.identity(), envelope.identity());
    assert_eq!(profile.statement().unwrap()[..], VERIFIED.statement_digest()[..16]);
    assert!(profile.content_type().is_batch());
    assert_eq!((profile.file_name(), profile.created()), (Some(&name), Some("2026-11-23T16:40:00Z")));
    assert_eq!(profile.edks(), [(KEY.arn.clone(), admitted.header().edks()[0].hash())]);
    assert_eq!(admitted.header().context().get("app"), Some("x"));
    assert_eq!(KEY.open(envelope.bytes()).unwrap().plaintext, b"text");
    assert_eq!(SealedEnvelope::read(envelope.bytes().clone()), Ok(envelope));
}

#[test]
fn messages_of_a_session_share_the_edk_and_nothing_else() {
    let mut session = session(1);
    let (one, two) = (sealed_by(&mut session, 1), sealed_by(&mut session, 2));
    let header = |envelope: &SealedEnvelope| check(envelope.bytes().clone()).unwrap().header().clone();
    assert_eq!(header(&one).edks(), header(&two).edks());
    assert_ne!(header(&one).message_id().as_bytes()[..16], header(&two).message_id().as_bytes()[..16]);
    assert_ne!(header(&one).commitment(), header(&two).commitment());
}

#[test]
fn a_session_that_has_ended_seals_nothing() {
    let mut session = session(1);
    let last = CLOCK.boot + Duration::from_secs(15 * 60 - 1);
    assert_eq!(session.needs_rotation(last), None);
    assert!(session.seal(seq(1), b"", last, &mut Counter(1)).is_ok());
    let late = last + Duration::from_secs(1);
    assert_eq!(session.needs_rotation(late), Some(Rotation::Age));
    let refused = session.seal(seq(2), b"", late, &mut Counter(2));
    assert!(matches!(refused, Err(SealError::Ended(Rotation::Age))));
    assert_eq!(session.messages(), 1);
}

#[test]
fn a_session_can_be_told_to_end_earlier_and_never_later() {
    let at = |age| CLOCK.boot + Duration::from_secs(age);
    let mut short = session(1);
    short.end_at_age(Duration::from_secs(61));
    assert_eq!(short.needs_rotation(at(60)), None);
    assert_eq!(short.needs_rotation(at(61)), Some(Rotation::Age));
    short.end_at_age(Duration::from_secs(62));
    assert_eq!(short.needs_rotation(at(61)), Some(Rotation::Age));
    let mut long = session(1);
    long.end_at_age(Duration::from_secs(24 * 3600));
    assert_eq!(long.needs_rotation(at(15 * 60)), Some(Rotation::Age));
}

#[test]
fn the_hundred_thousandth_message_is_the_last() {
    let mut session = session(1);
    for number in 1..=SESSION_MESSAGES_MAX {
        session.seal(seq(number), b"", CLOCK.boot, &mut Counter(number)).unwrap();
    }
    assert_eq!(session.needs_rotation(CLOCK.boot), Some(Rotation::Messages));
}

#[test]
fn a_stream_is_the_last_message_of_its_session() {
    let mut session = session(1);
    session.seal_stream(seq(1), CLOCK.boot, &mut Counter(1)).unwrap();
    assert_eq!(session.needs_rotation(CLOCK.boot), Some(Rotation::Bytes));
    let mut file = Session::start_file(&VERIFIED, &context(), run(), None, CLOCK, &mut Counter(1)).unwrap();
    let years = Duration::from_secs(1 << 30);
    file.seal_stream(seq(1), years, &mut Counter(1)).unwrap();
    assert!(matches!(
        file.seal_stream(seq(2), years, &mut Counter(1)),
        Err(SealError::Ended(Rotation::Messages))
    ));
}

#[test]
fn another_key_ends_a_session_and_another_statement_does_not() {
    let session = session(1);
    assert!(!session.key_changed(&verified(&KEY, 2)));
    assert!(session.key_changed(&verified(&OTHER_KEY, 1)));
}

#[test]
fn no_session_starts_under_an_expired_statement() {
    let late = SessionClock { boot: CLOCK.boot, now: NOW.plus(10_000) };
    let refused = Session::start(&VERIFIED, &context(), run(), None, late, &mut Counter(1));
    assert!(matches!(refused, Err(SealError::Key(TrustError::Expired))));
}

#[test]
fn no_session_starts_outside_the_profile_or_without_entropy() {
    let start = |facts| Session::start(&VERIFIED, &facts, run(), None, CLOCK, &mut Counter(1)).map(drop);
    let long = "x".repeat(1_000);
    for (key, value, code) in [
        ("pithead:seq", "1", "context-unknown-key"),
        ("aws-crypto-public-key", "x", "context-reserved-key"),
        ("app", "", "context-empty-text"),
        ("app", "é", "context-not-printable"),
        ("app", &long, "context-too-large"),
    ] {
        let Err(SealError::Context(error)) = start(context().other(key, value)) else {
            panic!("{key} was taken")
        };
        assert_eq!(error.code(), code);
    }
    let twice = context().other("app", "1").other("app", "2");
    assert!(matches!(start(twice), Err(SealError::Context(ProfileError::ContextTooLarge { .. }))));

    struct Broken;
    impl Entropy for Broken {
        fn fill(&mut self, _: &mut [u8]) -> Result<(), EntropyError> {
            Err(EntropyError)
        }
    }
    let refused = Session::start(&VERIFIED, &context(), run(), None, CLOCK, &mut Broken);
    assert!(matches!(refused, Err(SealError::Entropy(EntropyError))));
}

#[test]
fn no_secret_is_shown_by_debug() {
    let data_key = {
        let mut bytes = [0; 32];
        Counter(1).fill(&mut bytes).unwrap();
        bytes
    };
    let shown = format!("{:?} {:?}", session(1), signer());
    assert!(shown.contains("DataKey(..)"));
    assert!(!shown.contains(&format!("{data_key:?}")) && !shown.contains(&hex::encode(data_key)));
}

#[test]
fn neither_content_nor_a_given_data_key_is_shown_by_debug() {
    use pithead_sealing::envelope::dangerous::FixedMessage;
    let opened = KEY.open(sealed(&[0xa5; 40]).bytes()).unwrap();
    let shown = format!("{opened:?}");
    assert!(shown.contains("plaintext_len: 40") && !shown.contains("165, 165"), "{shown}");
    let message = FixedMessage {
        context: opened.header.context().clone(),
        edks: Vec::new(),
        frame_length: 128,
        data_key: [0xa5; 32],
        message_id: [1; 32],
        empty_final_frame: false,
    };
    assert!(!format!("{message:?}").contains("165"));
}

#[test]
fn a_session_signature_is_over_the_documents_bytes() {
    use base64ct::{Base64UrlUnpadded, Encoding};
    use p256::ecdsa::signature::Verifier;
    use p256::ecdsa::{Signature, VerifyingKey};
    use p256::pkcs8::DecodePublicKey;
    use sha2::{Digest, Sha384};
    let signer = signer();
    let envelope = sealed_by(&mut signed_session(&signer, run()), 1);
    let header = check(envelope.bytes().clone()).unwrap().header().clone();
    // HMAC-SHA512 by another program, of the data key that Counter(1) yields.
    assert_eq!(header.context().get("pithead:sid"), Some("hwsb56x93ggzp3ERXPOv_LF9a5EnqDghqErAYWq5qdI"));
    assert_eq!(header.context().get("pithead:run"), Some("0000000312345678"));
    let mut pairs: Vec<_> = header.context().iter().collect();
    let sig = pairs.iter().position(|(key, _)| *key == "pithead:sig").unwrap();
    let (_, sig) = pairs.remove(sig);
    let mut unsigned = (pairs.len() as u16).to_be_bytes().to_vec();
    for text in pairs.iter().flat_map(|(key, value)| [key, value]) {
        unsigned.extend((text.len() as u16).to_be_bytes());
        unsigned.extend(text.as_bytes());
    }
    let arn = KEY.arn.as_str();
    let mut signed = b"pithead-session-v1\0\0\x0baws-kms-rsa".to_vec();
    signed.extend([0, arn.len() as u8]);
    signed.extend(arn.as_bytes());
    signed.extend(Sha384::digest(&unsigned));
    let sig = Signature::from_slice(&Base64UrlUnpadded::decode_vec(sig).unwrap()).unwrap();
    let key = VerifyingKey::from_public_key_der(signer.spki_der()).unwrap();
    assert!(key.verify(&signed, &sig).is_ok());
}

#[test]
fn a_signed_session_proves_its_device() {
    let signer = signer();
    let unlocked = unlock(&sealed_by(&mut signed_session(&signer, run()), 1));
    let verdict = |key: Option<RegisteredKey>| {
        unlocked.session_verdict(|kid: &Kid| key.filter(|_| *kid == signer.kid()))
    };
    assert_eq!(verdict(Some(registered(&signer))), SessionVerdict::Signed);
    let revoked = RegisteredKey { revoked: true, ..registered(&signer) };
    assert_eq!(verdict(Some(revoked)), SessionVerdict::SignedByRevoked);
    assert_eq!(verdict(None), SessionVerdict::UnknownKey);
    let elsewhere = RegisteredKey { device: DeviceId::new("truck-0043").unwrap(), ..registered(&signer) };
    assert_eq!(verdict(Some(elsewhere)), SessionVerdict::Invalid);
    let stranger = DeviceSigningKey::generate(&mut Counter(7)).unwrap();
    assert_eq!(verdict(Some(registered(&stranger))), SessionVerdict::Invalid);
    assert_eq!(unlock(&sealed(b"")).session_verdict(|_| None), SessionVerdict::Unsigned);
}

#[test]
fn a_signature_vouches_for_its_own_run_alone() {
    use pithead_sealing::envelope::dangerous::{FixedEdk, FixedMessage};
    let signer = signer();
    let session = signed_session(&signer, run());
    // The cloud team, who can unwrap, put the signed context on a message of another run.
    let forge = |run_bytes: [u8; 8], data_key: [u8; 32]| {
        let mut message_id = [1; 32];
        message_id[16..24].copy_from_slice(&run_bytes);
        let edk = FixedEdk::Wrap {
            provider_info: KEY.arn.to_string(),
            spki_der: KEY.spki_der.clone(),
            oaep_seed: [0; 32],
        };
        let message = FixedMessage {
            context: session.context().clone(),
            edks: vec![edk],
            frame_length: 65_536,
            data_key,
            message_id,
            empty_final_frame: false,
        };
        unlock(&SealedEnvelope::read(message.seal(b"").unwrap().into()).unwrap())
    };
    let mut data_key = [0; 32];
    Counter(1).fill(&mut data_key).unwrap();
    let verdict = |unlocked: &Unlocked| unlocked.session_verdict(|_| Some(registered(&signer)));
    let own = forge(run().get().to_be_bytes(), data_key);
    assert_eq!(verdict(&own), SessionVerdict::Signed);
    assert_eq!(own.verdict_again(SessionVerdict::Signed), SessionVerdict::Signed);
    assert_eq!(own.verdict_again(SessionVerdict::Unsigned), SessionVerdict::Unsigned);
    let other_run = forge(99u64.to_be_bytes(), data_key);
    assert_eq!(verdict(&other_run), SessionVerdict::Invalid);
    assert_eq!(other_run.verdict_again(SessionVerdict::Signed), SessionVerdict::Invalid);
    // A stranger who copies the clear-text context does not know the data key that sid is made of.
    let copied = forge(run().get().to_be_bytes(), [8; 32]);
    assert_eq!(verdict(&copied), SessionVerdict::Invalid);
    // That much is seen without knowing the key as well.
    assert_eq!(copied.session_verdict(|_| None), SessionVerdict::Invalid);
    assert_eq!(other_run.session_verdict(|_| None), SessionVerdict::Invalid);
    // What is kept is said of the session: a message of another run changes nothing for those of its own.
    assert_eq!(other_run.verdict_of_session(|_| Some(registered(&signer))), SessionVerdict::Signed);
}

#[test]
fn a_device_key_survives_its_file() {
    let key = signer();
    let again = DeviceSigningKey::from_pkcs8_der(&key.to_pkcs8_der().unwrap()).unwrap();
    assert_eq!((again.kid(), again.spki_der()), (key.kid(), key.spki_der()));
    assert_eq!(key.spki_der().len(), 91);
    assert_eq!(key.kid(), Kid::of_spki(key.spki_der()));
    let pem = key.spki_pem();
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    assert!(pem.lines().all(|line| line.len() <= 64) && pem.starts_with("-----BEGIN PUBLIC KEY-----\n"));
    assert_eq!(<base64ct::Base64 as base64ct::Encoding>::decode_vec(&body).unwrap(), key.spki_der());
    assert!(DeviceSigningKey::from_pkcs8_der(&[0; 16]).is_err());
    assert!(DeviceVerifyingKey::from_spki_der(&[key.spki_der(), &[0]].concat()).is_err());
}

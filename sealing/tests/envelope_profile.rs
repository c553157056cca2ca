//! Each rule of the profile refuses by its own code, and only what breaks it.
#![cfg(feature = "open")]
#![allow(clippy::unwrap_used)]

mod envelope_support;

use envelope_support::*;
use pithead_sealing::envelope::dangerous::{FixedEdk, FixedMessage};
use pithead_sealing::envelope::{Context, Header, LastSession, Profile, ProfileError, check};

const GOOD: [(&str, &str); 6] = [
    ("pithead:v", "1"),
    ("pithead:site", "pit-7"),
    ("pithead:device", "truck-0042"),
    ("pithead:stream", "telemetry"),
    ("pithead:content-type", "text/plain"),
    ("pithead:statement", "3q2-7wAAAAAAAAAAAAAAAA"),
];

fn literal(info: &str, fill: u8) -> FixedEdk {
    FixedEdk::Literal {
        provider_id: b"aws-kms-rsa".to_vec(),
        provider_info: info.as_bytes().to_vec(),
        ciphertext: vec![fill; 256],
    }
}

fn profile_of(
    pairs: &[(&str, &str)],
    edks: Vec<FixedEdk>,
    numbers: [u64; 2],
) -> Result<Profile, ProfileError> {
    Profile::of(&header_of(pairs, edks, numbers))
}

fn header_of(pairs: &[(&str, &str)], edks: Vec<FixedEdk>, numbers: [u64; 2]) -> Header {
    let mut message_id = [0; 32];
    message_id[16..24].copy_from_slice(&numbers[0].to_be_bytes());
    message_id[24..].copy_from_slice(&numbers[1].to_be_bytes());
    let message = FixedMessage {
        context: Context::from_pairs(pairs.iter().copied()).unwrap(),
        edks,
        frame_length: 65_536,
        data_key: [1; 32],
        message_id,
        empty_final_frame: false,
    };
    check(message.seal(b"").unwrap().into()).unwrap().header().clone()
}

#[test]
fn of_a_session_that_was_read_before_nothing_else_is_said_and_one_byte_more_is_another_session() {
    let key = arn();
    let mut other = GOOD.to_vec();
    other.push(("app", "x"));
    let foreign: Vec<_> = GOOD.into_iter().chain([("pithead:seq", "00000000000000ff/7")]).collect();
    let mut last = LastSession::default();
    let headers = [
        (header_of(&GOOD, vec![literal(&key, 1)], [7, 1]), false),
        (header_of(&GOOD, vec![literal(&key, 1)], [7, 2]), true),
        (header_of(&GOOD, vec![literal(&key, 1)], [8, 1]), true),
        // Another data key, one more, another context.
        (header_of(&GOOD, vec![literal(&key, 2)], [7, 3]), false),
        (header_of(&GOOD, vec![literal(&key, 2), literal(&key, 1)], [7, 4]), false),
        (header_of(&other, vec![literal(&key, 2), literal(&key, 1)], [7, 5]), false),
        (header_of(&foreign, vec![literal(&key, 1)], [0, 0]), false),
        (header_of(&foreign, vec![literal(&key, 1)], [0, 0]), true),
    ];
    for (at, (header, same)) in headers.iter().enumerate() {
        assert_eq!(Profile::after(&mut last, header), Ok((Profile::of(header).unwrap(), *same)), "{at}");
    }
    // What is not within the profile is not remembered, and what was, stays.
    let refused = header_of(&GOOD, vec![literal("arn:aws:kms", 1)], [7, 6]);
    assert_eq!(Profile::after(&mut last, &refused), Err(ProfileError::EdkKeyArn));
    let nameless = header_of(&GOOD, vec![literal(&key, 1)], [0, 1]);
    assert_eq!(Profile::after(&mut last, &nameless), Err(ProfileError::NoIdentity));
    assert!(Profile::after(&mut last, &headers[7].0).unwrap().1);
    assert!(!Profile::after(&mut last, &headers[0].0).unwrap().1);
    assert_eq!(Profile::after(&mut last, &nameless), Err(ProfileError::NoIdentity));
}

fn arn() -> String {
    KEY.arn.to_string()
}

/// The good context with one key set to `value`, or left out.
fn changed(key: &'static str, value: Option<&'static str>) -> Result<Profile, ProfileError> {
    let mut pairs: Vec<_> = GOOD.into_iter().filter(|(name, _)| *name != key).collect();
    pairs.extend(value.map(|value| (key, value)));
    profile_of(&pairs, vec![literal(&arn(), 1)], [1, 1])
}

fn code(result: Result<Profile, ProfileError>) -> &'static str {
    result.map(|profile| panic!("{profile:?}")).map_err(|error| error.code()).unwrap_or_else(|code| code)
}

#[test]
fn required_keys_are_required_and_hold_their_grammar() {
    for (key, bad) in [
        ("pithead:site", "Pit"),
        ("pithead:device", "a..b"),
        ("pithead:stream", "a.b"),
        ("pithead:content-type", "text"),
    ] {
        assert_eq!(code(changed(key, None)), "context-missing-key");
        assert_eq!(code(changed(key, Some(bad))), "context-bad-value");
    }
    assert_eq!(code(changed("pithead:v", None)), "context-missing-key");
    assert_eq!(code(changed("pithead:v", Some("2"))), "context-version");
    assert!(changed("pithead:statement", None).unwrap().statement().is_none());
}

#[test]
fn optional_keys_hold_their_grammar() {
    for (key, good, bad) in [
        ("pithead:encoding", "zstd", "gzip"),
        ("pithead:created", "2026-11-23T16:40:00Z", "yesterday"),
        ("pithead:name", "drive%20.bag", "../up"),
        // The last character of a canonical spelling has no slack bits; a shorter one is another length.
        ("pithead:statement", "AAAAAAAAAAAAAAAAAAAAAA", "AAAAAAAAAAAAAAAAAAAAAB"),
        ("pithead:statement", "AAAAAAAAAAAAAAAAAAAAAA", "AAAA"),
        ("pithead:seq", "00000000000000ff/7", "00000000000000FF/7"),
        ("pithead:seq", "00000000000000ff/7", "0000000000000000/7"),
        ("pithead:seq", "00000000000000ff/7", "00000000000000ff/0"),
    ] {
        assert!(changed(key, Some(good)).is_ok(), "{key} {good}");
        assert_eq!(code(changed(key, Some(bad))), "context-bad-value", "{key} {bad}");
    }
    assert!(changed("app", Some("carried and ignored")).is_ok());
    assert_eq!(code(changed("pithead:other", Some("x"))), "context-unknown-key");
    assert_eq!(code(changed("aws-crypto-x", Some("x"))), "context-reserved-key");
    assert_eq!(code(changed("app", Some(""))), "context-empty-text");
    assert_eq!(code(changed("", Some("x"))), "context-empty-text");
    assert_eq!(code(changed("app", Some("\n"))), "context-not-printable");
}

#[test]
fn a_context_has_at_most_16_pairs_and_1024_bytes() {
    let with = |names: &[String], value: &str| {
        let mut pairs = GOOD.to_vec();
        pairs.extend(names.iter().map(|name| (name.as_str(), value)));
        profile_of(&pairs, vec![literal(&arn(), 1)], [1, 1])
    };
    let names: Vec<String> = (0..11).map(|number| format!("k{number}")).collect();
    assert!(with(&names[..10], "x").is_ok());
    assert_eq!(code(with(&names, "x")), "context-too-large");
    let used = Context::from_pairs(GOOD).unwrap().wire_len() + 4 + 2;
    assert!(with(&names[..1], &"x".repeat(1_024 - used)).is_ok());
    assert_eq!(code(with(&names[..1], &"x".repeat(1_025 - used))), "context-too-large");
}

#[test]
fn the_identity_comes_from_the_message_id_or_from_pithead_seq() {
    let edk = || vec![literal(&arn(), 1)];
    let from_id = profile_of(&GOOD, edk(), [5, 6]).unwrap();
    assert_eq!((from_id.identity().run.get(), from_id.identity().seq.get()), (5, 6));
    for numbers in [[0, 1], [1, 0], [1, 1 << 63]] {
        assert_eq!(code(profile_of(&GOOD, edk(), numbers)), "no-identity");
    }
    let mut foreign = GOOD.to_vec();
    foreign.push(("pithead:seq", "00000000000000ff/7"));
    // A stock SDK draws all of the message id: it may say anything.
    let profile = profile_of(&foreign, edk(), [0, u64::MAX]).unwrap();
    assert!(profile.is_foreign());
    assert_eq!((profile.identity().run.get(), profile.identity().seq.get()), (255, 7));
}

#[test]
fn every_edk_is_ours_by_full_arn_and_of_a_named_key() {
    let with = |edks| profile_of(&GOOD, edks, [1, 1]);
    let raw = FixedEdk::Literal { provider_id: b"raw".to_vec(), provider_info: vec![], ciphertext: vec![] };
    assert_eq!(code(with(vec![literal(&arn(), 1), raw])), "edk-provider");
    for info in
        ["alias/mine", "00002048-1111-4222-8333-444455556666", "arn:aws:kms:eu-west-1:111122223333:alias/x"]
    {
        assert_eq!(code(with(vec![literal(info, 1)])), "edk-key-arn", "{info}");
    }
    let two = with(vec![literal(&arn(), 1), literal(OTHER_KEY.arn.as_str(), 2)]).unwrap();
    assert_eq!(two.edks().len(), 2);
    assert_eq!(two.keys_are_named(|_| true), Ok(()));
    assert_eq!(two.keys_are_named(|named| *named == KEY.arn), Err(ProfileError::KeyUnknown));
}

#[test]
fn a_session_signature_is_whole_and_has_one_edk() {
    let (bytes16, bytes32, bytes64) = ("A".repeat(22), "A".repeat(43), "A".repeat(86));
    let mut signed = GOOD.to_vec();
    signed.push(("pithead:kid", &bytes16));
    signed.push(("pithead:run", "0000000000000001"));
    signed.push(("pithead:sid", &bytes32));
    signed.push(("pithead:sig", &bytes64));
    let edk = || literal(&arn(), 1);
    assert!(profile_of(&signed, vec![edk()], [1, 1]).unwrap().signature().is_some());
    assert_eq!(code(profile_of(&signed, vec![edk(), edk()], [1, 1])), "signature-edks");
    for missing in 6..10 {
        let mut part = signed.clone();
        part.remove(missing);
        assert_eq!(code(profile_of(&part, vec![edk()], [1, 1])), "signature-incomplete");
    }
    signed.push(("pithead:seq", "0000000000000001/1"));
    assert_eq!(code(profile_of(&signed, vec![edk()], [1, 1])), "signature-seq");
}

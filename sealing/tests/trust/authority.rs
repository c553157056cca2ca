//! Making objects: signatures from elsewhere, half-signed objects, and nothing unreadable.

use pithead_sealing::trust::authoring::{AuthoringError, Draft, SigningKey, p256_signature_from_der};
use pithead_sealing::trust::{KeyStatus, RootFields, StatementFields, TrustError};

use crate::world::*;

#[test]
fn what_is_signed_here_is_what_others_sign() {
    let world = World::new();
    let fields = world.statement();
    let by_hand = raw::signed(raw::STATEMENT, &fields.encode(), &[&world.signer, &world.spare]);
    assert_eq!(sign(&fields, &[&world.signer, &world.spare]), by_hand);
    let root = world.root();
    let by_hand = raw::signed(raw::ROOT, &root.encode(), &[&world.holders[0], &world.holders[1]]);
    assert_eq!(world.sign_root(&root), by_hand);
}

#[test]
fn a_signature_made_elsewhere_is_attached_after_it_was_verified() {
    let world = World::new();
    let mut draft = Draft::statement(&world.statement()).unwrap();
    let key = world.signer.public();
    let signature = world.signer.sign(&draft.to_be_signed(&key));
    let mut wrong = signature;
    wrong[9] ^= 1;
    assert_eq!(draft.attach(&key, &wrong), Err(AuthoringError::Signature));
    assert_eq!(draft.attach(&world.spare.public(), &signature), Err(AuthoringError::Signature));
    draft.attach(&key, &signature).unwrap();
    assert_eq!(draft.attach(&key, &signature), Err(AuthoringError::SignedAlready));
    assert_eq!(draft.finish().unwrap(), world.sign(&world.statement()));
}

/// An INTEGER of DER with that value, in its one spelling.
fn integer(value: &[u8]) -> Vec<u8> {
    let zeros = value.iter().take_while(|byte| **byte == 0).count();
    let mut bytes = value[zeros..].to_vec();
    if bytes.first().is_none_or(|first| first & 0x80 != 0) {
        bytes.insert(0, 0);
    }
    der(2, &bytes)
}

#[test]
fn a_der_signature_as_kms_answers_it_becomes_r_and_s() {
    // As long as they get, one bit shorter, and with ever more zeros in front: the shortest is one byte.
    let mut numbers = vec![[0xaa; 32], [0x7f; 32], [0x80; 32]];
    for zeros in 1..32 {
        for first in [0x01, 0x7f, 0x80, 0xff] {
            let mut number = [0x5c; 32];
            number[..zeros].fill(0);
            number[zeros] = first;
            numbers.push(number);
        }
    }
    for r in &numbers {
        for s in &numbers {
            let answer = der(0x30, &[integer(r), integer(s)].concat());
            let expected: [u8; 64] = [*r, *s].concat().try_into().unwrap();
            assert_eq!(p256_signature_from_der(&answer), Ok(expected), "{}", hex::encode(answer));
        }
    }
}

#[test]
fn a_signature_in_any_other_spelling_or_that_is_none_is_refused() {
    let number = [0x6d; 32];
    let (good, high) = (integer(&number), integer(&[0xaa; 32]));
    let sequence = |parts: &[&[u8]]| der(0x30, &parts.concat());
    // The order of the group: no r and no s is as large as that.
    let order: [u8; 32] = hex::decode("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551")
        .unwrap()
        .try_into()
        .unwrap();
    let whole = sequence(&[&good, &high]);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("an empty sequence", sequence(&[])),
        ("r alone", sequence(&[&good])),
        ("three numbers", sequence(&[&good, &high, &good])),
        ("a zero in front that need not be", sequence(&[&der(2, &[&[0], &number[..]].concat()), &high])),
        ("a zero in front of s", sequence(&[&good, &der(2, &[&[0, 0], &[0xaa; 32][..]].concat())])),
        ("a negative number", sequence(&[&good, &der(2, &[0xaa; 32])])),
        ("r is 0", sequence(&[&integer(&[0; 32]), &high])),
        ("s is 0", sequence(&[&good, &integer(&[0; 32])])),
        ("r is the order", sequence(&[&integer(&order), &high])),
        ("s is above the order", sequence(&[&good, &integer(&[0xff; 32])])),
        ("33 bytes of number", sequence(&[&good, &der(2, &[0x11; 33])])),
        ("an empty number", sequence(&[&good, &der(2, &[])])),
        ("a byte after it", [&whole[..], &[0]].concat()),
        ("a byte after s, inside", sequence(&[&good, &high, &[0]])),
        ("a byte short", whole[..whole.len() - 1].to_vec()),
        ("a length in its long form", [&[0x30, 0x81], &whole[1..]].concat()),
        ("an indefinite length", [&[0x30, 0x80], &whole[2..], &[0, 0]].concat()),
        ("a set", der(0x31, &[&good[..], &high].concat())),
        ("a bit string for s", sequence(&[&good, &der(3, &number)])),
        ("r and s without DER", [number, number].concat()),
    ];
    for (what, answer) in cases {
        assert_eq!(p256_signature_from_der(&answer), Err(AuthoringError::Key), "{what}");
    }
}

#[test]
fn a_drafted_statement_is_read_from_its_payload_alone() {
    let world = World::new();
    let drafted = Draft::statement(&world.statement()).unwrap();
    let (mut read, fields) = Draft::statement_of_payload(drafted.payload()).unwrap();
    assert_eq!((read.digest(), &fields), (drafted.digest(), &world.statement()));
    read.sign(&world.signer).unwrap();
    assert_eq!(read.finish().unwrap(), world.sign(&world.statement()));
    let root = Draft::root(&world.root()).unwrap();
    // Nothing is both, so that nobody signs the one and has signed the other.
    for refused in [Draft::statement_of_payload(root.payload()), Draft::statement_of_payload(b"")] {
        assert_eq!(refused.map(drop), Err(AuthoringError::Unreadable(TrustError::Parse)));
    }
    assert!(Draft::root_of_payload(drafted.payload()).is_err());
}

#[test]
fn a_root_travels_half_signed_from_holder_to_holder() {
    let world = World::new();
    let half = sign_root(&world.root(), &[&world.holders[0]]);
    let mut draft = Draft::reopen(&half).unwrap();
    assert_eq!(draft.signed_by().copied().collect::<Vec<_>>(), [kid(&world.holders[0])]);
    draft.sign(&world.holders[1]).unwrap();
    assert_eq!(draft.finish().unwrap(), world.sign_root(&world.root()));
    assert_eq!(Draft::reopen(b"nothing").unwrap_err(), AuthoringError::Unreadable(TrustError::Parse));
}

#[test]
fn what_no_device_could_read_is_not_drafted() {
    let world = World::new();
    let mut root = world.root();
    root.statement_role.threshold = 2;
    assert_eq!(Draft::root(&root).unwrap_err(), AuthoringError::Unreadable(TrustError::RootKeys));
    let nobody = StatementFields { sites: vec![], ..world.statement() };
    assert_eq!(Draft::statement(&nobody).unwrap_err(), AuthoringError::Unreadable(TrustError::Parse));
    let long = StatementFields { ticket: Some("t".repeat(4000)), ..world.statement() };
    assert_eq!(Draft::statement(&long).unwrap_err(), AuthoringError::Unreadable(TrustError::Parse));
    let long = RootFields { denylist: (0..90).map(fingerprint).collect(), ..world.root() };
    assert_eq!(Draft::root(&long).unwrap_err(), AuthoringError::Unreadable(TrustError::Parse));
    assert_eq!(Draft::statement(&world.statement()).unwrap().finish(), Err(AuthoringError::Unsigned));
}

#[test]
fn no_more_signatures_than_a_device_reads() {
    let mut draft = Draft::statement(&World::new().statement()).unwrap();
    for n in 100..108 {
        draft.sign(&SigningKey::ed25519(&[n; 32])).unwrap();
    }
    assert_eq!(draft.sign(&SigningKey::ed25519(&[200; 32])), Err(AuthoringError::Full));
}

#[test]
fn a_private_key_survives_its_file() {
    let world = World::new();
    for key in [&world.signer, &world.spare] {
        let der = key.to_pkcs8_der().unwrap();
        assert_eq!(SigningKey::from_pkcs8_der(&der).unwrap().public(), key.public());
    }
    assert_eq!(SigningKey::from_pkcs8_der(b"no key").unwrap_err(), AuthoringError::Key);
    assert_eq!(SigningKey::p256(&[0; 32]).unwrap_err(), AuthoringError::Key);
    assert_eq!(SigningKey::p256(&[0xff; 32]).unwrap_err(), AuthoringError::Key);
}

#[test]
fn a_typical_statement_and_its_spki_fit_a_qr_code() {
    let world = World::new();
    let (_, first) = world.enrolled();
    let two_keys = world.after(&first, vec![key(0, KeyStatus::Active), key(1, KeyStatus::Next)]);
    let object = world.sign(&two_keys);
    assert_eq!(object.len(), 511);
    assert!(object.len() + data_spki(0, 3072).len() < 1000);
}

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

#[test]
fn a_der_signature_as_kms_answers_it_becomes_r_and_s() {
    let signature = [0x7f; 64];
    let number = der(2, &[0x7f; 32]);
    assert_eq!(p256_signature_from_der(&der(0x30, &[number.clone(), number].concat())), Ok(signature));
    assert_eq!(p256_signature_from_der(&[0x30, 0]), Err(AuthoringError::Key));
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

//! One encoding for each object, and a limit for everything.

use std::sync::LazyLock;

use bytes::Bytes;
use pithead_sealing::trust::authoring::SigningKey;
use pithead_sealing::trust::verify;
use pithead_sealing::trust::{
    Clock, Custody, Device, GatewayPins, KeyStatus, RoleSpki, RootFields, RsaSpki, Sha256Digest,
    StatementFields, TrustError, UnixTime,
};

use crate::world::raw::{bstr, head, tstr};
use crate::world::*;

fn provision(object: &[u8]) -> Result<(), TrustError> {
    Device::provision(AUTHORITY, &site(), object, Clock::default()).map(|_| ())
}

fn first(object: Bytes) -> Result<bool, TrustError> {
    static NEW: LazyLock<Device> = LazyLock::new(|| World::new().device());
    offer(&mut NEW.clone(), object, up(0))
}

/// Signs a payload properly, whatever it is.
fn root_of(payload: &[u8]) -> Result<(), TrustError> {
    let world = World::new();
    provision(&raw::signed(raw::ROOT, payload, &[&world.holders[0], &world.holders[1]]))
}

fn statement_of(payload: &[u8]) -> Result<bool, TrustError> {
    first(raw::signed(raw::STATEMENT, payload, &[&World::new().signer]))
}

#[test]
fn every_single_bit_of_a_statement_matters() {
    let world = World::new();
    let object = world.sign(&world.statement());
    assert_eq!(first(object.clone()), Ok(true));
    for bit in 0..object.len() * 8 {
        let mut flipped = object.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(first(flipped.into()).is_err(), "bit {bit}");
    }
}

#[test]
fn every_single_bit_of_a_root_matters() {
    let world = World::new();
    let object = world.sign_root(&world.root());
    assert_eq!(provision(&object), Ok(()));
    for bit in 0..object.len() * 8 {
        let mut flipped = object.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(provision(&flipped).is_err(), "bit {bit}");
    }
}

#[test]
fn a_cut_or_lengthened_object_is_refused() {
    let world = World::new();
    let object = world.sign(&world.statement());
    for len in 0..object.len() {
        assert_eq!(first(object.slice(..len)), Err(TrustError::Parse), "{len}");
    }
    assert_eq!(first([&object[..], &[0]].concat().into()), Err(TrustError::Parse));
}

#[test]
fn size_comes_before_form() {
    assert_eq!(first(vec![0; 16_384].into()), Err(TrustError::Parse));
    assert_eq!(first(vec![0; 16_385].into()), Err(TrustError::Size));
    assert_eq!(provision(&[0; 16_385]), Err(TrustError::Size));
}

#[test]
fn a_payload_may_have_3072_bytes_and_not_one_more() {
    let world = World::new();
    let with_ticket = |len: usize| StatementFields { ticket: Some("t".repeat(len)), ..world.statement() };
    let room = 3072 - with_ticket(1000).encode().len() + 1000;
    let full = with_ticket(room).encode();
    assert_eq!(full.len(), 3072);
    assert_eq!(statement_of(&full), Ok(true));
    assert_eq!(statement_of(&with_ticket(room + 1).encode()), Err(TrustError::Parse));
}

#[test]
fn eight_signatures_are_read_and_neither_nine_nor_none() {
    let world = World::new();
    let payload = world.statement().encode();
    let one = raw::signature(raw::STATEMENT, &payload, &world.signer);
    let body = raw::body(raw::STATEMENT);
    let with = |count| first(raw::object(&body, &payload, &vec![one.clone(); count]));
    assert_eq!(with(8), Ok(true));
    assert_eq!(with(9), Err(TrustError::Parse));
    assert_eq!(with(0), Err(TrustError::Parse));
}

#[test]
fn another_frame_around_the_same_payload_is_refused() {
    let world = World::new();
    let payload = world.statement().encode();
    let body = raw::body(raw::STATEMENT);
    let (header, signature) = raw::signature(raw::STATEMENT, &payload, &world.signer);
    let entry = |unprotected: &[u8]| {
        [head(4, 3), bstr(&header), unprotected.to_vec(), bstr(&signature), vec![]].concat()
    };
    let frame = |tag: Vec<u8>, unprotected: Vec<u8>, entry: Vec<u8>| -> Bytes {
        [tag, head(4, 4), bstr(&body), unprotected, bstr(&payload), head(4, 1), entry].concat().into()
    };
    let empty = head(5, 0);
    assert_eq!(first(frame(head(6, 98), empty.clone(), entry(&empty))), Ok(true));
    let something = [head(5, 1), head(0, 1), head(0, 1)].concat();
    let wrong = [
        ("no tag", frame(vec![], empty.clone(), entry(&empty))),
        ("COSE_Sign1's tag", frame(head(6, 18), empty.clone(), entry(&empty))),
        ("a long tag", frame(vec![0xd9, 0, 98], empty.clone(), entry(&empty))),
        ("unprotected header", frame(head(6, 98), something.clone(), entry(&empty))),
        ("unprotected header of a signature", frame(head(6, 98), empty.clone(), entry(&something))),
        ("indefinite map", frame(head(6, 98), vec![0xbf, 0xff], entry(&empty))),
    ];
    for (what, object) in wrong {
        assert_eq!(first(object), Err(TrustError::Parse), "{what}");
    }
}

#[test]
fn headers_hold_exactly_their_labels() {
    let world = World::new();
    let payload = world.statement().encode();
    let good = raw::signature(raw::STATEMENT, &payload, &world.signer);
    let kid = world.signer.public().kid();
    let labels = |labels: &[Vec<u8>]| [head(5, labels.len() as u64), labels.concat()].concat();
    let alg = || [head(0, 1), head(1, 8)].concat();
    let kid = || [head(0, 4), bstr(kid.as_bytes())].concat();
    assert_eq!(labels(&[alg(), kid()]), good.0);
    let wrong_headers = [
        labels(&[kid(), alg()]),
        labels(&[alg()]),
        labels(&[kid()]),
        labels(&[alg(), alg(), kid()]),
        labels(&[alg(), kid(), [head(0, 5), bstr(b"iv")].concat()]),
        labels(&[alg(), [head(0, 4), bstr(&[0; 15])].concat()]),
        labels(&[[head(0, 1), tstr("ESP256")].concat(), kid()]),
        [labels(&[alg(), kid()]), vec![0]].concat(),
        vec![],
    ];
    for header in wrong_headers {
        let object = raw::object(&raw::body(raw::STATEMENT), &payload, &[(header, good.1.clone())]);
        assert_eq!(first(object), Err(TrustError::Parse));
    }
    let typ = |label| [head(0, label), tstr(raw::STATEMENT)].concat();
    for body in
        [labels(&[typ(3)]), labels(&[alg(), typ(16)]), labels(&[]), vec![], labels(&[typ(16), typ(16)])]
    {
        assert_eq!(first(raw::object(&body, &payload, std::slice::from_ref(&good))), Err(TrustError::Parse));
    }
}

#[test]
fn a_statement_with_an_unknown_missing_or_misplaced_label_is_refused() {
    let world = World::new();
    let good = StatementFields { ticket: Some("t".into()), ..world.statement() }.encode();
    assert_eq!(statement_of(&good), Ok(true));
    assert_eq!(good[0], 0xac);
    let mut unknown = [&good[..], &[14, 0]].concat();
    unknown[0] += 1;
    let mut missing = good[..good.len() - 3].to_vec();
    let mut twelve = missing.clone();
    twelve.extend([12, 0]);
    let mut swapped = missing.clone();
    swapped.splice(1..1, [13, 0x61, b't']);
    for payload in [&unknown, &missing, &twelve, &swapped] {
        assert_eq!(statement_of(payload), Err(TrustError::Parse));
    }
    missing[0] -= 1;
    assert_eq!(statement_of(&missing), Ok(true), "the ticket may be absent");
    let mut version_2 = good.clone();
    version_2[2] = 2;
    assert_eq!(statement_of(&version_2), Err(TrustError::Parse));
    let mut long_version = good;
    long_version.splice(2..3, [0x18, 1]);
    assert_eq!(statement_of(&long_version), Err(TrustError::Parse));
}

#[test]
fn a_statement_out_of_its_bounds_is_refused() {
    let world = World::new();
    let changed = |change: &dyn Fn(&mut StatementFields)| {
        let mut statement = world.statement();
        change(&mut statement);
        statement_of(&statement.encode())
    };
    let parse = Err(TrustError::Parse);
    assert_eq!(changed(&|s| s.sites.clear()), parse);
    assert_eq!(changed(&|s| s.sites = vec![site(); 17]), parse);
    assert_eq!(changed(&|s| s.keys.clear()), parse);
    assert_eq!(changed(&|s| s.keys = (0..9).map(|n| key(n, KeyStatus::Active)).collect()), parse);
    assert_eq!(changed(&|s| s.keys.push(s.keys[0].clone())), parse);
    assert_eq!(changed(&|s| s.sequence = 0), parse);
    assert_eq!(changed(&|s| s.keys = (0..5).map(|n| key(n, KeyStatus::Active)).collect()), Ok(true));
    let alias = world.statement().encode();
    let at = alias.windows(5).position(|w| w == b":key/").unwrap();
    let mut alias = alias;
    alias[at..at + 5].copy_from_slice(b":kex/");
    assert_eq!(statement_of(&alias), parse);
}

#[test]
fn a_root_that_is_not_deterministic_cbor_and_one_of_another_shape_are_told_apart() {
    let world = World::new();
    let good = world.root().encode();
    assert_eq!(root_of(&good), Ok(()));
    let mut long_version = good.clone();
    long_version.splice(2..3, [0x18, 1]);
    assert_eq!(root_of(&long_version), Err(TrustError::Parse));
    assert_eq!(root_of(&[&good[..], &[0]].concat()), Err(TrustError::Parse));
    assert_eq!(root_of(&[]), Err(TrustError::Parse));
    let mut unknown = [&good[..], &[13, 0]].concat();
    unknown[0] += 1;
    assert_eq!(root_of(&unknown), Err(TrustError::RootKeys));
    let mut version_2 = good;
    version_2[2] = 2;
    assert_eq!(root_of(&version_2), Err(TrustError::RootKeys));
    assert_eq!(root_of(&[0xa0]), Err(TrustError::RootKeys));
}

#[test]
fn a_root_out_of_its_bounds_is_refused() {
    let world = World::new();
    let changed = |change: &dyn Fn(&mut RootFields)| {
        let mut root = world.root();
        change(&mut root);
        root_of(&root.encode())
    };
    let refused = Err(TrustError::RootKeys);
    assert_eq!(changed(&|r| r.policy.suites.clear()), refused);
    assert_eq!(changed(&|r| r.statement_role.kids.clear()), refused);
    let many = |count: u8| (100..100 + count).map(|n| role_key(&SigningKey::ed25519(&[n; 32]), "more"));
    assert_eq!(changed(&|r| r.keys.extend(many(12))), Ok(()));
    assert_eq!(changed(&|r| r.keys.extend(many(13))), refused);
    let custody = |number: u8| {
        let mut root = world.root();
        root.policy.custody = Some(Custody::KeyFile);
        let mut payload = root.encode();
        let at = payload.len() - 37;
        assert_eq!(payload[at..at + 2], [5, 3]);
        payload[at + 1] = number;
        root_of(&payload)
    };
    assert_eq!((custody(1), custody(2), custody(3)), (Ok(()), Ok(()), Ok(())));
    assert_eq!((custody(0), custody(4)), (refused, refused));
}

#[test]
fn role_keys_have_one_encoding() {
    let world = World::new();
    let p256 = world.signer.public();
    let ed25519 = world.spare.public();
    assert_eq!((p256.der().len(), ed25519.der().len()), (91, 44));
    for key in [&p256, &ed25519] {
        assert_eq!(RoleSpki::from_der(key.der()).as_ref(), Ok(key));
        for at in 0..if key.der().len() == 91 { 27 } else { 12 } {
            let mut changed = key.der().to_vec();
            changed[at] ^= 1;
            assert!(RoleSpki::from_der(&changed).is_err(), "byte {at}");
        }
        assert!(RoleSpki::from_der(&[key.der(), &[0]].concat()).is_err());
        assert!(RoleSpki::from_der(&key.der()[..key.der().len() - 1]).is_err());
    }
    let mut off_the_curve = p256.der().to_vec();
    *off_the_curve.last_mut().unwrap() ^= 1;
    assert!(RoleSpki::from_der(&off_the_curve).is_err());
    // The compressed form, with lengths to match.
    let mut compressed = p256.der()[..59].to_vec();
    (compressed[1], compressed[24], compressed[26]) = (0x39, 0x22, 0x02);
    assert!(RoleSpki::from_der(&compressed).is_err());
    // The neutral element, under which nearly any signature holds.
    let mut weak = ed25519.der().to_vec();
    weak[12..].fill(0);
    weak[12] = 1;
    assert!(RoleSpki::from_der(&weak).is_err());
}

#[test]
fn an_rsa_key_has_one_encoding() {
    let der = data_spki(0, 3072);
    let key = RsaSpki::from_der(&der).unwrap();
    assert_eq!((key.bits(), key.fingerprint()), (3072, fingerprint(0)));
    // Every byte of the frame counts; those of the modulus are anybody's.
    for at in (0..32).chain(der.len() - 5..der.len()) {
        for bit in 0..8 {
            let mut changed = der.to_vec();
            changed[at] ^= 1 << bit;
            assert!(RsaSpki::from_der(&changed).is_err(), "byte {at} bit {bit}");
        }
    }
    for len in 0..der.len() {
        assert!(RsaSpki::from_der(&der[..len]).is_err());
    }
}

#[test]
fn what_is_encoded_is_read_back_the_same() {
    let world = World::new();
    let root = RootFields {
        denylist: vec![fingerprint(0), fingerprint(1)],
        gateways: Some(GatewayPins { ca_der: vec![vec![0x30, 0]], spki_sha256: vec![fingerprint(2)] }),
        ..world.root()
    };
    for pins in [root.gateways.clone(), None, Some(GatewayPins::default())] {
        let root = RootFields { gateways: pins, ..root.clone() };
        let object = world.sign_root(&root);
        assert_eq!(
            RootFields::read_unverified(&object).unwrap(),
            (root.clone(), Sha256Digest::of(&root.encode()))
        );
    }
    let mut statement = world.statement();
    statement.keys.push(key(1, KeyStatus::Revoked));
    statement.keys[1].decrypt_until = Some(UnixTime(u64::MAX));
    statement.keys[1].reason = Some("lost".into());
    statement.ticket = Some("CHG-1".into());
    let object = world.sign(&statement);
    let read = StatementFields::read_unverified(&object).unwrap();
    assert_eq!(read, (statement.clone(), Sha256Digest::of(&statement.encode())));
    assert_eq!(StatementFields::read_unverified(&world.sign_root(&root)), Err(TrustError::Type));
}

#[test]
fn a_tool_without_a_device_can_verify_and_see_who_signed() {
    let world = World::new();
    let root = verify::first_root(AUTHORITY, &world.sign_root(&world.root())).unwrap();
    let object = world.cosign(&world.statement());
    let signed = verify::statement(&root, &object).unwrap();
    assert!(signed.cosigned);
    assert_eq!(signed.statement.fields(), &world.statement());
    let (roots, statements) = verify::signers_of(&root, &object).unwrap();
    assert_eq!((roots.len(), statements), (2, vec![kid(&world.signer)]));
}

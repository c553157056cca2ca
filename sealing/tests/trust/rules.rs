//! Each rule of section 3 as a sentence.

use bytes::Bytes;
use pithead_sealing::Site;
use pithead_sealing::trust::authoring::SigningKey;
use pithead_sealing::trust::{
    Bundle, Clock, Custody, Device, KeyStatus, Role, Sha256Digest, Status, TrustError, UnixTime,
};

use crate::world::*;

fn refuses_root(change: impl FnOnce(&mut pithead_sealing::trust::RootFields)) -> TrustError {
    let world = World::new();
    let mut device = world.device();
    let mut next = world.after_root(&world.root());
    change(&mut next);
    // Signed without the library, which would not let the structure be broken.
    let object = raw::signed(raw::ROOT, &next.encode(), &[&world.holders[0], &world.holders[1]]);
    let before = device.encode(up(0));
    let error = offer_root(&mut device, object, up(0)).unwrap_err();
    assert_eq!(device.encode(up(0)), before, "a refused root leaves no trace");
    error
}

fn refuses(change: impl FnOnce(&mut pithead_sealing::trust::StatementFields)) -> TrustError {
    let world = World::new();
    let (mut device, first) = world.enrolled();
    let mut next = world.after(&first, first.keys.clone());
    change(&mut next);
    let object = raw::signed(raw::STATEMENT, &next.encode(), &[&world.signer]);
    let before = device.encode(up(0));
    let error = offer(&mut device, object, up(0)).unwrap_err();
    assert_eq!(device.encode(up(0)), before, "a refused statement leaves no trace");
    error
}

#[test]
fn a_root_of_another_authority_is_refused() {
    assert_eq!(refuses_root(|root| root.authority = "rival/prod".into()), TrustError::Authority);
}

#[test]
fn a_root_must_be_the_next_version() {
    assert_eq!(refuses_root(|root| root.version = 3), TrustError::RootVersion);
    assert_eq!(refuses_root(|root| root.version = 1), TrustError::RootVersion);
    assert_eq!(refuses_root(|root| root.version = u64::MAX), TrustError::RootVersion);
}

#[test]
fn a_root_must_name_the_digest_of_ours() {
    assert_eq!(refuses_root(|root| root.previous = Sha256Digest::ZERO), TrustError::RootPrev);
}

#[test]
fn an_epoch_rises_by_one_at_most_and_never_falls() {
    assert_eq!(refuses_root(|root| root.epoch = 3), TrustError::Epoch);
    assert_eq!(refuses_root(|root| root.epoch = 0), TrustError::Epoch);
}

#[test]
fn a_root_is_not_issued_before_ours() {
    assert_eq!(refuses_root(|root| root.issued_at = UnixTime(T0 - 1)), TrustError::Epoch);
}

#[test]
fn a_threshold_of_nobody_or_of_more_than_all_is_refused() {
    assert_eq!(refuses_root(|root| root.root_role.threshold = 0), TrustError::RootKeys);
    assert_eq!(refuses_root(|root| root.root_role.threshold = 4), TrustError::RootKeys);
    assert_eq!(refuses_root(|root| root.statement_role.threshold = 2), TrustError::RootKeys);
}

#[test]
fn a_kid_named_twice_does_not_make_two_keys() {
    let twice = |root: &mut pithead_sealing::trust::RootFields| {
        root.statement_role.threshold = 2;
        root.statement_role.kids = vec![root.statement_role.kids[0]; 2];
    };
    assert_eq!(refuses_root(twice), TrustError::RootKeys);
}

#[test]
fn a_role_may_only_name_keys_that_the_root_lists() {
    let stranger = kid(&SigningKey::ed25519(&[77; 32]));
    assert_eq!(refuses_root(|root| root.statement_role.kids[0] = stranger), TrustError::RootKeys);
}

#[test]
fn a_key_listed_twice_is_refused() {
    assert_eq!(refuses_root(|root| root.keys.push(root.keys[0].clone())), TrustError::RootKeys);
}

#[test]
fn one_key_in_both_roles_is_refused_unless_keys_are_files() {
    let both = |root: &mut pithead_sealing::trust::RootFields| {
        root.statement_role.kids = vec![root.root_role.kids[0]];
    };
    assert_eq!(refuses_root(both), TrustError::RootKeys);
    for custody in [Custody::OfflineToken, Custody::CloudHsm] {
        let error = refuses_root(|root| {
            both(root);
            root.policy.custody = Some(custody);
        });
        assert_eq!(error, TrustError::RootKeys);
    }
    let world = World::new();
    let mut device = world.device();
    let mut next = world.after_root(&world.root());
    both(&mut next);
    next.policy.custody = Some(Custody::KeyFile);
    offer_root(&mut device, world.sign_root(&next), up(0)).unwrap();
}

#[test]
fn the_old_threshold_alone_does_not_make_a_new_root() {
    let world = World::new();
    let new: Vec<_> = (20..22).map(|n| SigningKey::ed25519(&[n; 32])).collect();
    let mut next = world.after_root(&world.root());
    next.keys.truncate(0);
    next.keys.extend(new.iter().map(|key| role_key(key, "new")));
    next.keys.push(role_key(&world.signer, "signer"));
    next.root_role = Role { threshold: 2, kids: new.iter().map(kid).collect() };
    let (h, n) = (&world.holders, &new);
    for (keys, expected) in [
        (vec![&h[0], &h[1]], Err(TrustError::ThresholdNew)),
        (vec![&h[0], &h[1], &n[0]], Err(TrustError::ThresholdNew)),
        (vec![&n[0], &n[1]], Err(TrustError::ThresholdOld)),
        (vec![&h[0], &n[0], &n[1]], Err(TrustError::ThresholdOld)),
        (vec![&h[0], &h[2], &n[0], &n[1]], Ok(())),
    ] {
        assert_eq!(offer_root(&mut world.device(), sign_root(&next, &keys), up(0)), expected);
    }
}

#[test]
fn roots_that_verified_stay_though_a_later_one_or_the_statement_is_refused() {
    let world = World::new();
    let (mut device, first) = world.enrolled();
    let second = world.after_root(&world.root());
    let mut third = world.after_root(&second);
    third.version = 9;
    let bundle = Bundle {
        roots: vec![world.sign_root(&second), world.sign_root(&third)],
        statement: Some(world.sign(&first)),
        spkis: spkis(),
    };
    let revision = device.revision();
    assert_eq!(device.apply(&bundle, up(0)).unwrap_err(), TrustError::RootVersion);
    assert_eq!(device.root_version(), 2);
    assert!(device.revision() > revision, "the caller must store it");

    // The root takes the statement key away; the statement in the same bundle is signed by it.
    let mut third = world.after_root(&second);
    third.keys.pop();
    third.keys.push(role_key(&world.spare, "spare"));
    third.statement_role.kids = vec![kid(&world.spare)];
    let next = world.after(&first, first.keys.clone());
    let bundle =
        Bundle { roots: vec![world.sign_root(&third)], statement: Some(world.sign(&next)), spkis: spkis() };
    assert_eq!(device.apply(&bundle, up(0)).unwrap_err(), TrustError::Threshold);
    assert_eq!(device.root_version(), 3);
    assert_eq!(device.version(), (1, 1));
}

#[test]
fn a_device_far_behind_walks_the_chain_of_roots_but_not_more_than_the_limit_at_once() {
    let world = World::new();
    let mut device = world.device();
    let mut root = world.root();
    let mut chain = vec![];
    for _ in 0..33 {
        root = world.after_root(&root);
        chain.push(world.sign_root(&root));
    }
    let all = Bundle { roots: chain.clone(), ..Bundle::default() };
    assert_eq!(device.apply(&all, up(0)).unwrap_err(), TrustError::Parse);
    assert_eq!(device.root_version(), 1);
    assert_eq!(
        device.apply(&Bundle { roots: chain[..32].to_vec(), ..all.clone() }, up(0)).unwrap().roots,
        32
    );
    assert_eq!(device.apply(&all.newer_than(device.root_version()), up(0)).unwrap().roots, 1);
    assert_eq!(device.root_version(), 34);
}

#[test]
fn an_expired_root_stops_new_statements_but_not_new_roots() {
    let world = World::new();
    let mut root = world.root();
    root.expires_at = UnixTime(T0 + 10 * DAY);
    let mut device = world.device_with(&root);
    let mut statement = world.statement();
    statement.expires_at = root.expires_at;
    statement.refresh_by = root.expires_at;
    assert_eq!(offer(&mut device, world.sign(&statement), at(T0 + 10 * DAY)), Err(TrustError::Expired));
    let next =
        pithead_sealing::trust::RootFields { expires_at: UnixTime(T0 + YEAR), ..world.after_root(&root) };
    offer_root(&mut device, world.sign_root(&next), at(T0 + 10 * DAY)).unwrap();
}

#[test]
fn a_provisioned_root_must_be_signed_by_its_own_threshold() {
    let world = World::new();
    let provision = |object: &[u8], authority| {
        Device::provision(authority, &site(), object, Clock::default()).map(|_| ())
    };
    let root = world.root();
    let one = sign_root(&root, &[&world.holders[0]]);
    assert_eq!(provision(&one, AUTHORITY), Err(TrustError::ThresholdNew));
    assert_eq!(provision(&world.sign_root(&root), "rival/prod"), Err(TrustError::Authority));
    let chained = pithead_sealing::trust::RootFields { previous: Sha256Digest::of(b"x"), ..root };
    assert_eq!(provision(&world.sign_root(&chained), AUTHORITY), Err(TrustError::RootPrev));
}

#[test]
fn a_statement_needs_the_threshold_of_distinct_statement_keys() {
    let world = World::new();
    let mut root = world.root();
    root.keys.push(role_key(&world.spare, "spare"));
    root.statement_role = Role { threshold: 2, kids: vec![kid(&world.signer), kid(&world.spare)] };
    let payload = world.statement().encode();
    let object = |keys: &[&SigningKey]| raw::signed(raw::STATEMENT, &payload, keys);
    for (keys, expected) in [
        (vec![&world.signer], Err(TrustError::Threshold)),
        (vec![&world.signer, &world.signer, &world.signer], Err(TrustError::Threshold)),
        (vec![&world.signer, &world.holders[0], &world.holders[1]], Err(TrustError::Threshold)),
        (vec![&world.spare, &world.signer], Ok(true)),
    ] {
        assert_eq!(offer(&mut world.device_with(&root), object(&keys), up(0)), expected);
    }
}

#[test]
fn the_algorithm_is_the_roots_choice_not_the_headers() {
    let world = World::new();
    let payload = world.statement().encode();
    for alg in [-7, -19, -8, 0, 1] {
        let signature = raw::signature_as(raw::STATEMENT, &payload, &world.signer, alg, b"pithead/v1");
        let object = raw::object(&raw::body(raw::STATEMENT), &payload, &[signature]);
        assert_eq!(offer(&mut world.device(), object, up(0)), Err(TrustError::Threshold), "{alg}");
    }
}

#[test]
fn a_signature_for_another_purpose_or_type_does_not_count() {
    let world = World::new();
    let payload = world.statement().encode();
    for aad in [&b""[..], b"pithead/v2"] {
        let signature = raw::signature_as(raw::STATEMENT, &payload, &world.signer, -9, aad);
        let object = raw::object(&raw::body(raw::STATEMENT), &payload, &[signature]);
        assert_eq!(offer(&mut world.device(), object, up(0)), Err(TrustError::Threshold));
    }
    let as_root = raw::signature(raw::ROOT, &payload, &world.signer);
    let object = raw::object(&raw::body(raw::STATEMENT), &payload, &[as_root]);
    assert_eq!(offer(&mut world.device(), object, up(0)), Err(TrustError::Threshold));
    let object = raw::signed("application/vnd.pithead.other", &payload, &[&world.signer]);
    assert_eq!(offer(&mut world.device(), object, up(0)), Err(TrustError::Type));
}

#[test]
fn a_strangers_signature_harms_nothing() {
    let world = World::new();
    let stranger = SigningKey::ed25519(&[50; 32]);
    let object = sign(&world.statement(), &[&stranger, &world.signer]);
    assert_eq!(offer(&mut world.device(), object, up(0)), Ok(true));
}

#[test]
fn signatures_come_before_meaning() {
    let world = World::new();
    let mut wrong = world.statement();
    wrong.sites = vec![Site::new("kalgoorlie-1").unwrap()];
    let object = sign(&wrong, &[&world.holders[0]]);
    assert_eq!(offer(&mut world.device(), object, up(0)), Err(TrustError::Threshold));
}

#[test]
fn a_statement_is_for_its_authority_site_root_and_epoch() {
    assert_eq!(refuses(|s| s.authority = "rival/prod".into()), TrustError::Authority);
    assert_eq!(refuses(|s| s.sites = vec![Site::new("pilbara-33").unwrap()]), TrustError::Audience);
    assert_eq!(refuses(|s| s.root_version = 2), TrustError::NeedRoot);
    assert_eq!(refuses(|s| s.epoch = 2), TrustError::Epoch);
    assert_eq!(refuses(|s| s.epoch = 0), TrustError::Epoch);
}

#[test]
fn a_statement_for_several_sites_is_accepted_by_each() {
    let world = World::new();
    let mut statement = world.statement();
    statement.sites.insert(0, Site::new("kalgoorlie-1").unwrap());
    assert_eq!(offer(&mut world.device(), world.sign(&statement), up(0)), Ok(true));
}

#[test]
fn a_statement_made_under_an_older_root_is_accepted_if_it_lies_in_the_new_ones_life() {
    let world = World::new();
    let (mut device, first) = world.enrolled();
    offer_root(&mut device, world.sign_root(&world.after_root(&world.root())), up(0)).unwrap();
    let next = world.after(&first, first.keys.clone());
    assert_eq!(next.root_version, 1);
    assert_eq!(offer(&mut device, world.sign(&next), up(0)), Ok(true));
}

#[test]
fn the_sequence_neither_falls_nor_forks_nor_repeats_with_other_content() {
    assert_eq!(refuses(|s| s.previous = Sha256Digest::ZERO), TrustError::Fork);
    assert_eq!(
        refuses(|s| {
            s.sequence = 1;
            s.ticket = Some("another".into());
        }),
        TrustError::Equivocation
    );
    let world = World::new();
    let (mut device, first) = world.enrolled();
    let mut fifth = world.after(&first, first.keys.clone());
    fifth.sequence = 5;
    fifth.previous = Sha256Digest::of(b"one that this device has not seen");
    assert_eq!(offer(&mut device, world.sign(&fifth), up(0)), Ok(true));
    assert_eq!(offer(&mut device, world.sign(&fifth), up(0)), Ok(false));
    assert_eq!(offer(&mut device, world.sign(&first), up(0)), Err(TrustError::Rollback));
    assert_eq!(device.version(), (1, 5));
}

#[test]
fn the_last_sequence_number_is_not_an_overflow() {
    let world = World::new();
    let mut device = world.device();
    let last = pithead_sealing::trust::StatementFields { sequence: u64::MAX, ..world.statement() };
    assert_eq!(offer(&mut device, world.sign(&last), up(0)), Ok(true));
    assert_eq!(offer(&mut device, world.sign(&last), up(0)), Ok(false));
    assert_eq!(offer(&mut device, world.sign(&world.statement()), up(0)), Err(TrustError::Rollback));
}

#[test]
fn times_are_in_order_in_the_roots_life_and_within_policy() {
    assert_eq!(refuses(|s| s.refresh_by = UnixTime(s.issued_at.0 - 1)), TrustError::Validity);
    assert_eq!(refuses(|s| s.refresh_by = s.expires_at.plus(1)), TrustError::Validity);
    assert_eq!(refuses(|s| s.expires_at = s.issued_at.plus(401 * DAY + 1)), TrustError::Validity);
    assert_eq!(
        refuses(|s| {
            s.issued_at = UnixTime(T0 - 1);
            s.expires_at = UnixTime(T0 + 30 * DAY);
            s.refresh_by = s.expires_at;
        }),
        TrustError::Validity,
        "before the root's life"
    );
    assert_eq!(
        refuses(|s| {
            s.issued_at = UnixTime(T0 + 5 * YEAR - DAY);
            s.refresh_by = s.issued_at;
            s.expires_at = UnixTime(T0 + 5 * YEAR + 1);
        }),
        TrustError::Validity
    );
    let world = World::new();
    let longest =
        pithead_sealing::trust::StatementFields { expires_at: UnixTime(T0 + 401 * DAY), ..world.statement() };
    assert_eq!(offer(&mut world.device(), world.sign(&longest), up(0)), Ok(true));
}

#[test]
fn the_future_is_refused_by_a_trusted_clock_alone_with_300_seconds_of_slack() {
    let world = World::new();
    let mut later = world.statement();
    later.issued_at = UnixTime(T0 + DAY);
    let object = world.sign(&later);
    assert_eq!(offer(&mut world.device(), object.clone(), at(T0 + DAY - 301)), Err(TrustError::NotYetValid));
    assert_eq!(offer(&mut world.device(), object.clone(), at(T0 + DAY - 300)), Ok(true));
    assert_eq!(offer(&mut world.device(), object, up(0)), Ok(true));
}

#[test]
fn a_statement_expires_by_the_trusted_clock_or_by_operating_time() {
    let world = World::new();
    let object = world.sign(&world.statement());
    for clock in [at(T0 + 400 * DAY), up(400 * DAY)] {
        assert_eq!(offer(&mut world.device(), object.clone(), clock), Err(TrustError::Expired));
    }
    for clock in [at(T0 + 400 * DAY - 1), up(400 * DAY - 1)] {
        assert_eq!(offer(&mut world.device(), object.clone(), clock), Ok(true));
    }
}

#[test]
fn a_trusted_clock_that_is_behind_the_signatures_does_not_turn_time_back() {
    let world = World::new();
    let (device, _) = world.enrolled();
    assert_eq!(device.now(at(1000)), UnixTime(T0));
    assert_eq!(device.status(at(1000)), Status::Fresh);
}

#[test]
fn the_trusted_clock_never_moves_the_floor() {
    let world = World::new();
    let mut device = world.device();
    offer(&mut device, world.sign(&world.statement()), at(T0 + 100 * DAY)).unwrap();
    assert_eq!(device.now_lower_bound(up(0)), UnixTime(T0));
    assert_eq!(device.status(up(0)), Status::Fresh);
    assert_eq!(device.status(at(T0 + 100 * DAY)), Status::Stale);
}

#[test]
fn status_goes_from_fresh_to_stale_to_expired() {
    let (device, _) = World::new().enrolled();
    assert_eq!(device.status(at(T0 + 30 * DAY)), Status::Fresh);
    assert_eq!(device.status(at(T0 + 30 * DAY + 1)), Status::Stale);
    assert_eq!(device.status(at(T0 + 400 * DAY - 1)), Status::Stale);
    assert_eq!(device.status(at(T0 + 400 * DAY)), Status::Expired);
    assert_eq!(device.verified_key(at(T0 + 400 * DAY)).unwrap_err(), TrustError::Expired);
}

#[test]
fn keys_are_of_an_allowed_suite_and_length() {
    assert_eq!(refuses(|s| s.keys[0].suite = -40), TrustError::KeyAlg);
    assert_eq!(refuses(|s| s.keys[0].bits = 2048), TrustError::KeyBits);
    assert_eq!(refuses(|s| s.keys[0].bits = 3073), TrustError::KeyBits);
    assert_eq!(refuses(|s| s.keys[0].bits = u64::MAX), TrustError::KeyBits);
    let weak_and_retired = |s: &mut pithead_sealing::trust::StatementFields| {
        s.keys.push(key(1, KeyStatus::Retired));
        s.keys[1].bits = 2048;
    };
    assert_eq!(refuses(weak_and_retired), TrustError::KeyBits);
}

#[test]
fn an_arn_and_a_fingerprint_stay_together() {
    assert_eq!(refuses(|s| s.keys[0].fingerprint = fingerprint(1)), TrustError::KidRebind);
    assert_eq!(refuses(|s| s.keys[0].arn = arn(1)), TrustError::KidRebind);
}

#[test]
fn an_active_key_is_valid_already_and_may_still_seal() {
    assert_eq!(refuses(|s| s.keys[0].not_before = s.issued_at.plus(1)), TrustError::Validity);
    assert_eq!(refuses(|s| s.keys[0].seal_until = UnixTime(T0)), TrustError::NoActive);
    assert_eq!(refuses(|s| s.keys[0].status = KeyStatus::Retired), TrustError::NoActive);
}

#[test]
fn a_denylisted_key_is_listed_as_revoked_or_not_at_all() {
    let world = World::new();
    let (mut device, first) = world.enrolled();
    let denied = pithead_sealing::trust::RootFields {
        denylist: vec![fingerprint(1)],
        ..world.after_root(&world.root())
    };
    offer_root(&mut device, world.sign_root(&denied), up(0)).unwrap();
    for status in [KeyStatus::Next, KeyStatus::Active, KeyStatus::Retired] {
        let next = world.after(&first, vec![key(0, KeyStatus::Active), key(1, status)]);
        assert_eq!(offer(&mut device, world.sign(&next), up(0)), Err(TrustError::KeyDenylisted));
    }
    let next = world.after(&first, vec![key(0, KeyStatus::Active), key(1, KeyStatus::Revoked)]);
    assert_eq!(offer(&mut device, world.sign(&next), up(0)), Ok(true));
}

#[test]
fn a_root_that_denies_the_current_key_stops_sealing_at_once() {
    let world = World::new();
    let (mut device, _) = world.enrolled();
    assert_eq!(sealing_to(&device, up(0)), Ok(0));
    let denied = pithead_sealing::trust::RootFields {
        denylist: vec![fingerprint(0)],
        ..world.after_root(&world.root())
    };
    offer_root(&mut device, world.sign_root(&denied), up(0)).unwrap();
    assert_eq!(sealing_to(&device, up(0)), Err(TrustError::NoKey));
    assert_eq!(device.status(up(0)), Status::NoKey);
    assert_eq!(device.version(), (1, 1), "the statement itself stays");
}

#[test]
fn past_seal_until_there_is_no_key() {
    let world = World::new();
    let mut device = world.device();
    let mut short = world.statement();
    short.keys[0].seal_until = UnixTime(T0 + 10 * DAY);
    offer(&mut device, world.sign(&short), up(0)).unwrap();
    assert_eq!(device.status(up(10 * DAY - 1)), Status::Fresh);
    assert_eq!(device.status(up(10 * DAY)), Status::NoKey);
    assert_eq!(device.verified_key(up(10 * DAY)).unwrap_err(), TrustError::NoKey);
}

#[test]
fn the_spki_is_the_one_whose_hash_was_signed() {
    let world = World::new();
    let statement = Some(world.sign(&world.statement()));
    let with = |spkis: Vec<Bytes>| {
        let mut device = world.device();
        device.apply(&Bundle { roots: vec![], statement: statement.clone(), spkis }, up(0)).map(|_| ())
    };
    assert_eq!(with(vec![]), Err(TrustError::SpkiMissing));
    assert_eq!(with(vec![data_spki(1, 3072)]), Err(TrustError::SpkiMissing));
    assert_eq!(with(vec![data_spki(1, 3072), data_spki(0, 3072)]), Ok(()));
}

#[test]
fn an_spki_that_is_not_the_stated_rsa_key_is_refused_though_its_hash_was_signed() {
    let world = World::new();
    let good = data_spki(0, 3072);
    let modulus = &good[good.len() - 5 - 384..good.len() - 5];
    let mut even = modulus.to_vec();
    *even.last_mut().unwrap() &= 0xfe;
    let small = SigningKey::p256(&[60; 32]).unwrap().public().der().to_vec();
    let mut slack = good.to_vec();
    slack[0] = 0x31;
    let wrong = [
        ("bits", data_spki(0, 4096)),
        ("bits below", data_spki(0, 2048)),
        ("exponent", rsa_spki(modulus, &[3])),
        ("even", rsa_spki(&even, &[1, 0, 1])),
        ("a leading zero", rsa_spki(&[&[0, 0], modulus].concat(), &[1, 0, 1])),
        ("trailing", [&good[..], &[0]].concat().into()),
        ("not RSA", small.into()),
        ("not a sequence", slack.into()),
        ("empty", Bytes::new()),
        ("too long", rsa_spki(&[0xff; 1024], &[1, 0, 1])),
        ("PSS", {
            let mut pss = good.to_vec();
            let at = pss.windows(9).position(|w| w == hex::decode("2a864886f70d010101").unwrap()).unwrap();
            pss[at + 8] = 0x0a;
            pss.into()
        }),
    ];
    for (what, spki) in wrong {
        let mut statement = world.statement();
        statement.keys[0].fingerprint = Sha256Digest::of(&spki);
        let bundle = Bundle { roots: vec![], statement: Some(world.sign(&statement)), spkis: vec![spki] };
        assert_eq!(world.device().apply(&bundle, up(0)).unwrap_err(), TrustError::SpkiParse, "{what}");
    }
}

#[test]
fn the_verified_key_is_what_the_statement_says() {
    let world = World::new();
    let (device, first) = world.enrolled();
    let key = device.verified_key(up(0)).unwrap();
    assert_eq!(key.arn(), &arn(0));
    assert_eq!(key.spki_der(), &data_spki(0, 3072)[..]);
    assert_eq!(key.fingerprint(), &fingerprint(0));
    assert_eq!((key.modulus_bits(), key.modulus().len()), (3072, 384));
    assert_eq!(key.statement_digest(), Sha256Digest::of(&first.encode()).as_bytes());
    assert_eq!(key.version(), (1, 1));
    assert_eq!(key.usable_at(UnixTime(T0)), Ok(()));
    assert_eq!(key.usable_at(first.expires_at), Err(TrustError::Expired));
    assert_eq!(key.usable_at(key.seal_until()), Err(TrustError::Expired));
}

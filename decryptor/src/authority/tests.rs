//! The authority against the devices that believe it.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use pithead_hop::keys::KeyFile;
use pithead_sealing::trust::authoring::{Draft, SigningKey};
use pithead_sealing::trust::{
    Algorithm, Bundle, Clock, Custody, Device, KeyStatus, RootKey, TrustError, UnixTime,
};

use super::testing::{DAY, START, TestAuthority, request, site};
use super::*;

fn bundle(authority: &TestAuthority, site_name: &str) -> (KeyFile, Bundle) {
    let path = authority.dir().bundle_path(&site(site_name));
    let file = KeyFile::decode(std::fs::read(path).unwrap().into()).unwrap();
    let bundle = file.bundle.clone();
    (file, bundle)
}

#[test]
fn a_new_authority_has_a_root_of_its_own_keys_and_keeps_them_to_itself() {
    let authority = TestAuthority::new();
    let dir = authority.dir();
    let roots = dir.roots().unwrap();
    let [root] = roots.as_slice() else { panic!("{} roots", roots.len()) };
    assert_eq!((root.version, root.epoch, root.root_role.threshold, root.root_role.kids.len()), (1, 1, 2, 2));
    assert_eq!(root.policy.custody, Some(Custody::KeyFile));
    for name in ["root-1", "root-2", "statement-1"] {
        let mode = std::fs::metadata(dir.key_path(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let log = std::fs::read_to_string(dir.audit_path()).unwrap();
    assert!(log.contains(r#""act":"authority.init""#) && log.contains(&root.digest().to_string()));
}

#[test]
fn an_authority_is_made_once_and_one_works_at_a_time() {
    let authority = TestAuthority::new();
    let path = authority.folder.path().join("authority");
    let again = init(&path, &InitOptions::new("acme-mining/prod"), START);
    assert!(matches!(again.unwrap_err(), AuthorityError::Exists(_)));
    let held = authority.dir();
    assert!(matches!(AuthorityDir::open(&path).unwrap_err(), AuthorityError::Locked(_)));
    drop(held);
    let elsewhere = AuthorityDir::open(authority.folder.path());
    assert!(matches!(elsewhere.unwrap_err(), AuthorityError::Missing(_)));
}

#[test]
fn root_keys_under_a_passphrase_need_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("passphrase");
    std::fs::write(&file, "a long enough passphrase\n").unwrap();
    let options = InitOptions {
        root_passphrase: Some(Passphrase::read(&file).unwrap()),
        algorithm: Algorithm::Ed25519,
        root_keys: 1,
        root_threshold: 1,
        ..InitOptions::new("acme")
    };
    let dir = folder.path().join("dir");
    let root = init(&dir, &options, START).unwrap();
    let key = dir.join("keys/root-1.pem");
    assert!(std::fs::read_to_string(&key).unwrap().starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"));
    assert!(read_signing_key(&key, None).is_err());
    let read = read_signing_key(&key, Some(&Passphrase::read(&file).unwrap())).unwrap();
    assert_eq!(read.public().kid(), root.root_role.kids[0]);
}

#[tokio::test]
async fn a_device_follows_the_chain_of_statements_out_of_the_bundles() {
    let authority = TestAuthority::new();
    let (first, second) = (authority.key(1), authority.key(2));
    let keys = [first.offered(KeyStatus::Active), second.offered(KeyStatus::Next)];
    let one = authority.list(&keys, START).await.unwrap();
    assert_eq!((one.statement.sequence, one.statement.keys.len()), (1, 2));

    let (wire, plain) = bundle(&authority, "pit-7");
    assert_eq!(
        (wire.authority.as_str(), wire.site.as_str(), plain.roots.len()),
        ("acme-mining/prod", "pit-7", 1)
    );
    let clock = |days: u64| Clock::trusted(days * DAY, START.plus(days * DAY));
    let mut device =
        Device::provision("acme-mining/prod", &site("pit-7"), &plain.roots[0], clock(0)).unwrap();
    device.apply(&plain.newer_than(1), clock(0)).unwrap();
    assert_eq!(device.verified_key(clock(0)).unwrap().arn(), &first.arn);

    // A day later nothing is asked for: the keys are carried on, their life is extended.
    let two = authority.list(&[], START.plus(DAY)).await.unwrap();
    assert_eq!((two.statement.sequence, two.statement.previous), (2, *one.statement.digest()));
    assert_eq!(two.statement.keys[0].seal_until, START.plus(181 * DAY));
    device.apply(&bundle(&authority, "pit-7").1.newer_than(1), clock(1)).unwrap();

    // After the hold-down the next key takes over, and the first is retired with a promise.
    let mut swap = request(&[OfferedKey { arn: second.arn.clone(), spki: None, status: KeyStatus::Active }]);
    swap.retire = vec![first.arn.clone()];
    let three = authority.issue(&swap, START.plus(4 * DAY)).await.unwrap();
    assert_eq!(three.in_force.arn(), &second.arn);
    let retired = three.statement.key_by_arn(&first.arn).unwrap();
    assert_eq!(retired.status, KeyStatus::Retired);
    assert_eq!(
        retired.decrypt_until,
        Some(START.plus((1 + 180 + 180) * DAY)),
        "180 days after statement 2 expires"
    );
    device.apply(&bundle(&authority, "pit-7").1.newer_than(1), clock(4)).unwrap();
    assert_eq!(device.verified_key(clock(4)).unwrap().arn(), &second.arn);

    let log = std::fs::read_to_string(authority.dir().audit_path()).unwrap();
    assert_eq!(log.lines().filter(|line| line.contains("statement.sign")).count(), 3);
    let overview = overview(&authority.dir(), START.plus(40 * DAY)).unwrap();
    assert_eq!((overview.sites[0].sequence, overview.sites[0].state), (3, "stale"));
}

#[tokio::test]
async fn what_devices_would_refuse_is_not_written() {
    let authority = TestAuthority::new();
    let (first, second) = (authority.key(1), authority.key(2));
    authority.list(&[first.offered(KeyStatus::Active)], START).await.unwrap();
    let dir = authority.folder.path().join("authority");
    let before = files(&dir);

    let refusals: Vec<(StatementRequest, TrustError)> = vec![
        // The other key's public half under the first one's name.
        (
            request(&[OfferedKey { arn: first.arn.clone(), ..second.offered(KeyStatus::Active) }]),
            TrustError::KidRebind,
        ),
        (request(&[first.offered(KeyStatus::Next)]), TrustError::KeyTransition),
        (StatementRequest { retire: vec![first.arn.clone()], ..request(&[]) }, TrustError::NoActive),
        (
            // Swapped without an announcement: devices would wait, with no key meanwhile.
            StatementRequest {
                retire: vec![first.arn.clone()],
                ..request(&[second.offered(KeyStatus::Active)])
            },
            TrustError::Unannounced,
        ),
        (
            StatementRequest { validity: Some(Duration::from_secs(500 * DAY)), ..request(&[]) },
            TrustError::Validity,
        ),
    ];
    for (refused, code) in refusals {
        match authority.issue(&refused, START.plus(DAY)).await.unwrap_err() {
            // A new device would take the swap; one that knows the old key would not.
            AuthorityError::Refused { error, .. } => assert_eq!(error, code),
            other => panic!("{code:?}: {other}"),
        }
        assert_eq!(files(&dir), before, "{code:?}: nothing was written");
    }
    let short = testing::TestKey::generate(authority.folder.path(), 9, aws_lc_rs::rsa::KeySize::Rsa2048);
    let strict = authority.folder.path().join("strict");
    init(&strict, &InitOptions::new("acme"), START).unwrap();
    let signer = KeyFileSigner::new(read_signing_key(&strict.join("keys/statement-1.pem"), None).unwrap());
    let strict = AuthorityDir::open(&strict).unwrap();
    let listed = request(&[short.offered(KeyStatus::Active)]);
    let refused = issue(&strict, &signer, &[], &listed, START).await;
    assert!(matches!(refused.unwrap_err(), AuthorityError::Refused { error: TrustError::KeyBits, .. }));
}

#[tokio::test]
async fn what_could_not_be_taken_back_is_not_signed() {
    let authority = TestAuthority::new();
    let (first, second) = (authority.key(1), authority.key(2));
    let alone = StatementRequest { no_standby: false, ..request(&[first.offered(KeyStatus::Active)]) };
    let refused = authority.issue(&alone, START).await.unwrap_err();
    assert!(matches!(refused, AuthorityError::KeptBack(KeptBack::NoStandby)));

    let with_next = [first.offered(KeyStatus::Active), second.offered(KeyStatus::Next)];
    let pair = StatementRequest { no_standby: false, ..request(&with_next) };
    authority.issue(&pair, START).await.unwrap();
    let swap = |decrypt_until| StatementRequest {
        retire: vec![first.arn.clone()],
        decrypt_until: Some(decrypt_until),
        ..request(&[second.offered(KeyStatus::Active)])
    };
    let earliest = START.plus(360 * DAY);
    let early = authority.issue(&swap(UnixTime(earliest.0 - 1)), START.plus(5 * DAY)).await.unwrap_err();
    let AuthorityError::KeptBack(KeptBack::DecryptUntil { earliest: told, .. }) = early else {
        panic!("{early}")
    };
    assert_eq!(told, earliest);
    authority.issue(&swap(earliest), START.plus(5 * DAY)).await.unwrap();
}

#[tokio::test]
async fn an_early_activation_is_told_and_devices_stay_with_the_old_key() {
    let authority = TestAuthority::new();
    let (first, second) = (authority.key(1), authority.key(2));
    authority.list(&[first.offered(KeyStatus::Active)], START).await.unwrap();
    let early = authority.list(&[second.offered(KeyStatus::Active)], START.plus(DAY)).await.unwrap();
    assert_eq!(early.in_force.arn(), &first.arn);
    assert_eq!(early.not_yet_usable, std::slice::from_ref(&second.arn));
}

#[tokio::test]
async fn one_statement_for_sites_with_different_pasts_forks_nobody() {
    let authority = TestAuthority::new();
    let key = authority.key(1);
    let at = |name: &str| StatementRequest {
        sites: vec![site(name)],
        ..request(&[key.offered(KeyStatus::Active)])
    };
    authority.issue(&at("pit-7"), START).await.unwrap();
    authority.issue(&at("port-1"), START.plus(1)).await.unwrap();
    let both = StatementRequest { sites: vec![site("pit-7"), site("port-1")], ..request(&[]) };
    let issued = authority.issue(&both, START.plus(2)).await.unwrap();
    assert_eq!(issued.statement.sequence, 3, "both are at 1 with different digests");
    let next = authority.issue(&both, START.plus(3)).await.unwrap();
    assert_eq!((next.statement.sequence, next.statement.previous), (4, *issued.statement.digest()));
    for name in ["pit-7", "port-1"] {
        assert_eq!(bundle(&authority, name).0.site.as_str(), name);
    }
}

#[tokio::test]
async fn a_statement_can_be_made_in_the_past_for_those_who_test_expiry() {
    let authority = TestAuthority::new();
    let key = authority.key(1);
    let short = StatementRequest {
        validity: Some(Duration::from_secs(DAY)),
        ..request(&[key.offered(KeyStatus::Active)])
    };
    authority.issue(&short, START).await.unwrap();
    let (_, plain) = bundle(&authority, "pit-7");
    let later = Clock::trusted(0, START.plus(2 * DAY));
    let mut device = Device::provision("acme-mining/prod", &site("pit-7"), &plain.roots[0], later).unwrap();
    assert_eq!(device.apply(&plain.newer_than(1), later).unwrap_err(), TrustError::Expired);
}

#[tokio::test]
async fn a_damaged_statement_stops_the_authority() {
    let authority = TestAuthority::new();
    let key = authority.key(1);
    authority.list(&[key.offered(KeyStatus::Active)], START).await.unwrap();
    let path = authority.folder.path().join("authority/statements/pit-7/1.cose");
    let mut object = std::fs::read(&path).unwrap();
    *object.last_mut().unwrap() ^= 1;
    std::fs::write(&path, object).unwrap();
    let refused = authority.list(&[], START.plus(DAY)).await.unwrap_err();
    assert!(matches!(refused, AuthorityError::Damaged { .. }), "{refused}");
}

fn named(key: &SigningKey, label: &str) -> RootKey {
    RootKey { spki: key.public(), label: label.to_owned() }
}

fn new_key() -> SigningKey {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key.pem");
    new_key_file(&path, Algorithm::Esp256, None).unwrap();
    assert!(matches!(
        new_key_file(&path, Algorithm::Esp256, None).unwrap_err(),
        AuthorityError::File { action: "write", .. }
    ));
    read_signing_key(&path, None).unwrap()
}

#[tokio::test]
async fn a_root_is_signed_apart_and_in_force_when_the_old_and_the_new_threshold_are_met() {
    let authority = TestAuthority::new();
    let key = authority.key(1);
    authority.list(&[key.offered(KeyStatus::Active)], START).await.unwrap();
    let (_, before) = bundle(&authority, "pit-7");
    let at = |days: u64| Clock::trusted(days * DAY, START.plus(days * DAY));
    let mut device = Device::provision("acme-mining/prod", &site("pit-7"), &before.roots[0], at(0)).unwrap();
    device.apply(&before.newer_than(1), at(0)).unwrap();

    // Bob goes, Carol comes. Each signs on a machine of her own, which has the draft and nothing else.
    let (alice, bob, carol) = (authority.role_key("root-1"), authority.role_key("root-2"), new_key());
    let change = RootChange {
        add_root_keys: vec![named(&carol, "carol")],
        remove_root_keys: vec![bob.public().kid()],
        ..RootChange::default()
    };
    let drafted = draft(&authority.dir(), &change, START.plus(DAY)).unwrap();
    let sent = read_draft(&drafted.payload).unwrap();
    assert_eq!((sent.digest, sent.fields.version), (drafted.digest, 2));
    let [by_alice, by_bob, by_carol] = [&alice, &bob, &carol].map(|key| sign(&sent, key).unwrap());

    let dir = authority.folder.path().join("authority");
    let unchanged = files(&dir);
    let cases = [
        (vec![by_alice.clone(), by_carol.clone()], TrustError::ThresholdOld),
        (vec![by_alice.clone(), by_bob.clone(), by_alice.clone()], TrustError::ThresholdNew),
    ];
    for (signed, code) in cases {
        match accept(&authority.dir(), &signed, START.plus(DAY)).unwrap_err() {
            AuthorityError::RootRefused(error) => assert_eq!(error, code),
            other => panic!("{code:?}: {other}"),
        }
    }
    let other = draft(&authority.dir(), &change, START.plus(DAY + 1)).unwrap();
    let mixed = [by_alice.clone(), sign(&other, &bob).unwrap()];
    assert!(matches!(accept(&authority.dir(), &mixed, START), Err(AuthorityError::Request(_))));
    let stranger = [by_alice.clone(), sign(&sent, &new_key()).unwrap()];
    assert!(matches!(accept(&authority.dir(), &stranger, START), Err(AuthorityError::Request(_))));
    assert_eq!(files(&dir), unchanged, "nothing was written");

    let accepted = accept(&authority.dir(), &[by_alice, by_bob, by_carol], START.plus(DAY)).unwrap();
    assert_eq!((accepted.root.version, accepted.root.root_role.threshold), (2, 2));
    assert_eq!((accepted.sites, accepted.raised_epoch), (vec![site("pit-7")], false));
    assert_eq!(
        bundle(&authority, "pit-7").1.roots.len(),
        1,
        "a statement older than the root does not stand under it"
    );
    // It is the one that is signed under from now on.
    let next = authority.list(&[], START.plus(DAY)).await.unwrap();
    assert_eq!(next.statement.root_version, 2);
    let (_, after) = bundle(&authority, "pit-7");
    device.apply(&after.newer_than(1), at(1)).unwrap();
    assert_eq!((device.root_version(), device.verified_key(at(1)).unwrap().arn()), (2, &key.arn));
    let log = std::fs::read_to_string(authority.dir().audit_path()).unwrap();
    assert!(log.contains(r#""act":"root.accept""#), "{log}");
}

#[tokio::test]
async fn a_raised_epoch_undoes_what_a_stolen_statement_key_has_signed() {
    let authority = TestAuthority::new();
    let (good, bad) = (authority.key(1), authority.key(2));
    authority.list(&[good.offered(KeyStatus::Active)], START).await.unwrap();
    let at = |days: u64| Clock::trusted(days * DAY, START.plus(days * DAY));
    let (_, first) = bundle(&authority, "pit-7");
    let mut device = Device::provision("acme-mining/prod", &site("pit-7"), &first.roots[0], at(0)).unwrap();
    device.apply(&first.newer_than(1), at(0)).unwrap();
    // The thief announces a key of his own, under a number behind which nothing of ours would be believed again.
    let listed = authority.list(&[bad.offered(KeyStatus::Next)], START.plus(DAY)).await.unwrap();
    device.apply(&bundle(&authority, "pit-7").1.newer_than(1), at(1)).unwrap();
    let mut fields = listed.statement.fields().clone();
    (fields.sequence, fields.previous) = (1_000_000, *listed.statement.digest());
    let mut stolen = Draft::statement(&fields).unwrap();
    stolen.sign(&authority.role_key("statement-1")).unwrap();
    let (statement, spkis) = (Some(stolen.finish().unwrap()), bundle(&authority, "pit-7").1.spkis);
    device.apply(&Bundle { roots: Vec::new(), statement, spkis }, at(1)).unwrap();
    authority.list(&[], START.plus(DAY)).await.unwrap();
    let behind = device.apply(&bundle(&authority, "pit-7").1.newer_than(1), at(1)).unwrap_err();
    assert_eq!(behind, TrustError::Rollback);

    let fresh = new_key();
    let change = RootChange {
        statement_keys: vec![named(&fresh, "statement-2")],
        deny: vec![bad.spki.fingerprint()],
        raise_epoch: true,
        ..RootChange::default()
    };
    let drafted = draft(&authority.dir(), &change, START.plus(2 * DAY)).unwrap();
    let roots = [authority.role_key("root-1"), authority.role_key("root-2")];
    let signed: Vec<_> = roots.iter().map(|key| sign(&drafted, key).unwrap()).collect();
    let accepted = accept(&authority.dir(), &signed, START.plus(2 * DAY)).unwrap();
    assert_eq!((accepted.root.epoch, accepted.raised_epoch), (2, true));

    // The old key signs nothing any more, and the new one needs the root keys beside it, once.
    let now = START.plus(2 * DAY);
    let drop_it = StatementRequest { revoke: vec![(bad.arn.clone(), Some("stolen".into()))], ..request(&[]) };
    let old = authority.issue(&drop_it, now).await.unwrap_err();
    assert!(matches!(old, AuthorityError::Refused { error: TrustError::Threshold, .. }), "{old}");
    let signer = KeyFileSigner::new(fresh);
    let alone = issue(&authority.dir(), &signer, &[], &drop_it, now).await.unwrap_err();
    assert!(matches!(alone, AuthorityError::Refused { error: TrustError::Unannounced, .. }), "{alone}");
    issue(&authority.dir(), &signer, &roots, &drop_it, now).await.unwrap();
    device.apply(&bundle(&authority, "pit-7").1.newer_than(1), at(2)).unwrap();
    assert_eq!(device.verified_key(at(2)).unwrap().arn(), &good.arn);
    // A vehicle that slept meanwhile would believe nothing else, so this is said by a person who knows that there is none.
    let daily = issue(&authority.dir(), &signer, &[], &request(&[]), START.plus(3 * DAY)).await.unwrap_err();
    assert!(matches!(daily, AuthorityError::Refused { error: TrustError::Unannounced, .. }), "{daily}");
    let followed = StatementRequest { epoch_followed: true, ..request(&[]) };
    issue(&authority.dir(), &signer, &[], &followed, START.plus(3 * DAY)).await.unwrap();
    device.apply(&bundle(&authority, "pit-7").1.newer_than(2), at(3)).unwrap();
}

#[test]
fn a_draft_from_somebody_else_is_plain_text_and_of_this_time() {
    let authority = TestAuthority::new();
    let change = |label: &str| RootChange {
        add_root_keys: vec![named(&new_key(), label)],
        root_threshold: Some(1),
        ..RootChange::default()
    };
    let redraws = "\u{1b}[2J\u{1b}[Hroot version 2";
    let refused = draft(&authority.dir(), &change(redraws), START.plus(DAY)).unwrap_err();
    assert!(matches!(refused, AuthorityError::Request(_)), "{refused}");
    let good = draft(&authority.dir(), &change("carol"), START.plus(DAY)).unwrap();
    let with = |edit: &dyn Fn(&mut pithead_sealing::trust::RootFields)| {
        let mut fields = good.fields.clone();
        edit(&mut fields);
        Draft::root(&fields).unwrap().payload().to_vec()
    };
    for payload in [
        with(&|fields| fields.keys[0].label = redraws.to_owned()),
        with(&|fields| fields.authority = "acme\nroot version 2".to_owned()),
        // Alone it would be an authority of its own.
        with(&|fields| fields.version = 1),
    ] {
        assert!(matches!(read_draft(&payload).unwrap_err(), AuthorityError::Request(_)));
    }

    // A clock that is wrong by a year makes a root that no statement could stand under, and no later root undo.
    let signed = |draft: &RootDraft| -> Vec<_> {
        ["root-1", "root-2"].map(|name| sign(draft, &authority.role_key(name)).unwrap()).to_vec()
    };
    let dir = authority.folder.path().join("authority");
    let unchanged = files(&dir);
    let future = draft(&authority.dir(), &change("carol"), START.plus(365 * DAY)).unwrap();
    let (future, good) = (signed(&future), signed(&good));
    for (at, what) in [(START.plus(DAY), "in the future"), (START.plus(4 * 365 * DAY), "has expired")] {
        let refused = accept(&authority.dir(), &future, at).unwrap_err();
        assert!(refused.to_string().contains(what), "{refused}");
    }
    let early = draft(&authority.dir(), &change("carol"), UnixTime(START.0 - DAY)).unwrap_err();
    assert!(early.to_string().contains("behind"), "{early}");
    assert_eq!(files(&dir), unchanged);
    accept(&authority.dir(), &good, START.plus(DAY)).unwrap();
}

#[tokio::test]
async fn rotations_go_on_although_a_statement_has_room_for_eight_keys() {
    let authority = TestAuthority::new();
    let keys: Vec<_> = (1..=11).map(|number| authority.key(number)).collect();
    let first = [keys[0].offered(KeyStatus::Active), keys[1].offered(KeyStatus::Next)];
    authority.list(&first, START).await.unwrap();
    for (turn, next) in (1..).zip(&keys[2..]) {
        let (activated, retire) = rotation(&authority.dir(), &[site("pit-7")], None).unwrap();
        let rotate = StatementRequest { retire, ..request(&[activated, next.offered(KeyStatus::Next)]) };
        let rotated = authority.issue(&rotate, START.plus(turn * 5 * DAY)).await.unwrap();
        assert_eq!(rotated.in_force.arn(), &keys[turn as usize].arn);
        assert!(rotated.statement.keys.len() <= 8);
    }
}

#[tokio::test]
async fn a_key_that_the_root_denies_is_revoked_in_the_next_statement() {
    let authority = TestAuthority::new();
    let (stolen, fresh) = (authority.key(1), authority.key(2));
    authority.list(&[stolen.offered(KeyStatus::Active)], START).await.unwrap();
    let change = RootChange { deny: vec![stolen.spki.fingerprint()], ..RootChange::default() };
    let drafted = draft(&authority.dir(), &change, START.plus(DAY)).unwrap();
    let roots = [authority.role_key("root-1"), authority.role_key("root-2")];
    let signed: Vec<_> = roots.iter().map(|key| sign(&drafted, key).unwrap()).collect();
    accept(&authority.dir(), &signed, START.plus(DAY)).unwrap();
    let signer = KeyFileSigner::new(authority.role_key("statement-1"));
    let next = request(&[fresh.offered(KeyStatus::Active)]);
    let too_few = issue(&authority.dir(), &signer, &roots[..1], &next, START.plus(DAY)).await.unwrap_err();
    assert!(matches!(too_few, AuthorityError::Refused { .. } | AuthorityError::Request(_)), "{too_few}");
    let issued = issue(&authority.dir(), &signer, &roots, &next, START.plus(DAY)).await.unwrap();
    assert_eq!((issued.in_force.arn(), issued.not_yet_usable.len()), (&fresh.arn, 0));
    assert_eq!(issued.statement.key_by_arn(&stolen.arn).unwrap().status, KeyStatus::Revoked);
}

#[tokio::test]
async fn a_rotation_and_a_revocation_go_to_the_key_that_stood_by() {
    let authority = TestAuthority::new();
    let [first, second, third] = [1, 2, 3].map(|number| authority.key(number));
    let sites = [site("pit-7")];
    authority.list(&[first.offered(KeyStatus::Active)], START).await.unwrap();
    let none = rotation(&authority.dir(), &sites, None);
    assert!(matches!(none.unwrap_err(), AuthorityError::Request(_)), "no key stands by");
    authority.list(&[second.offered(KeyStatus::Next)], START).await.unwrap();

    let (activated, retire) = rotation(&authority.dir(), &sites, None).unwrap();
    assert_eq!((&activated.arn, retire.as_slice()), (&second.arn, std::slice::from_ref(&first.arn)));
    let rotate = StatementRequest { retire, ..request(&[activated, third.offered(KeyStatus::Next)]) };
    let early = authority.issue(&rotate, START.plus(DAY)).await.unwrap_err();
    assert!(matches!(early, AuthorityError::Refused { error: TrustError::Unannounced, .. }), "{early}");
    let rotated = authority.issue(&rotate, START.plus(4 * DAY)).await.unwrap();
    assert_eq!(rotated.in_force.arn(), &second.arn);
    let other = rotation(&authority.dir(), &sites, Some(&first.arn));
    assert!(matches!(other.unwrap_err(), AuthorityError::Request(_)), "it is retired");

    // A day later the second one is known to be stolen. The third was announced for long enough only later.
    let revoke = |to: &testing::TestKey| StatementRequest {
        revoke: vec![(second.arn.clone(), Some("stolen".into()))],
        ..request(&[OfferedKey { arn: to.arn.clone(), spki: None, status: KeyStatus::Active }])
    };
    let early = authority.issue(&revoke(&third), START.plus(5 * DAY)).await.unwrap_err();
    assert!(matches!(early, AuthorityError::Refused { error: TrustError::Unannounced, .. }), "{early}");
    let revoked = authority.issue(&revoke(&third), START.plus(8 * DAY)).await.unwrap();
    assert_eq!(revoked.in_force.arn(), &third.arn);
    let key = revoked.statement.key_by_arn(&second.arn).unwrap();
    assert_eq!((key.status, key.reason.as_deref()), (KeyStatus::Revoked, Some("stolen")));
    assert!(key.seal_until <= START.plus(8 * DAY));
    // Never back.
    let back = authority.list(&[second.offered(KeyStatus::Active)], START.plus(9 * DAY)).await.unwrap_err();
    assert!(matches!(back, AuthorityError::KeptBack(KeptBack::DecryptUntil { .. })), "{back}");
}

fn files(folder: &std::path::Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push((path.clone(), std::fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

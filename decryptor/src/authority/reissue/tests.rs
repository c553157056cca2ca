//! The daily re-issue, under a clock that the test turns.

#![allow(clippy::unwrap_used)]

use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::trust::KeyStatus;

use super::super::testing::{DAY, START, TestAuthority, TestKey, arn, request, site};
use super::super::{RootChange, accept, draft, issue, read_signing_key, sign};
use super::*;
use crate::authority::KeyFileSigner;
use crate::kms::testing::FakeKms;

const HOUR: u64 = 3600;

struct World {
    authority: TestAuthority,
    key: TestKey,
    reissuer: Reissuer,
}

async fn world() -> World {
    world_with(None).await
}

async fn world_with(check: Option<DataKeyCheck>) -> World {
    let authority = TestAuthority::new();
    let key = authority.key(1);
    authority.list(&[key.offered(KeyStatus::Active)], START).await.unwrap();
    let place = KeyPlace::File { path: authority.path().join("keys/statement-1.pem"), passphrase_file: None };
    let reissuer = Reissuer::new(authority.path(), Duration::from_secs(DAY), place, check);
    World { authority, key, reissuer }
}

impl World {
    /// A turn so many hours after the first statement, its retries as early as they may be.
    async fn turn(&mut self, hours: u64) -> Turn {
        self.reissuer.turn(START.plus(hours * HOUR), 0).await
    }

    fn last(&self, name: &str) -> Statement {
        let folder = Folder::open(&self.authority.path()).unwrap();
        folder.last_statement(&site(name), &folder.roots().unwrap()).unwrap().unwrap()
    }

    fn bundle(&self, name: &str) -> KeyFile {
        let path = self.authority.path().join(format!("bundles/{name}.pb"));
        KeyFile::decode(std::fs::read(path).unwrap().into()).unwrap()
    }
}

fn reasons(turn: &Turn) -> Vec<ErrorReason> {
    turn.failures.iter().map(|failure| failure.error.reason()).collect()
}

#[tokio::test]
async fn a_statement_is_issued_again_when_it_is_a_day_old_and_not_before() {
    let mut world = world().await;
    let early = world.turn(23).await;
    assert_eq!((early.issued.len(), early.bundles_changed, early.failures.len()), (0, false, 0));
    assert_eq!(early.look_again, START.plus(23 * HOUR + 60), "clocks are set, and people sign");
    assert_eq!(early.standing[0].due_at, START.plus(DAY));
    let sooner = world.reissuer.turn(START.plus(DAY - 7), 0).await;
    assert_eq!(sooner.look_again, START.plus(DAY));

    let turn = world.turn(24).await;
    let [issued] = turn.issued.as_slice() else { panic!("{:?}", turn.failures) };
    let (first, again) = (&world.authority.dir().roots().unwrap()[0], &issued.statement);
    assert_eq!((again.sequence, again.issued_at, again.root_version), (2, START.plus(DAY), first.version));
    assert_eq!(again.expires_at, START.plus(181 * DAY));
    assert_eq!(again.keys[0].status, KeyStatus::Active);
    assert!(turn.bundles_changed);
    assert_eq!(world.bundle("pit-7").bundle.statement.as_ref(), Some(again.object()));
    let log = std::fs::read_to_string(world.authority.path().join("audit.log")).unwrap();
    assert_eq!(log.matches("statement.sign").count(), 2);

    // A restart finds out by the statement when the next is due.
    let place =
        KeyPlace::File { path: world.authority.path().join("keys/statement-1.pem"), passphrase_file: None };
    world.reissuer = Reissuer::new(world.authority.path(), Duration::from_secs(DAY), place, None);
    assert_eq!(world.turn(47).await.issued.len(), 0);
    assert_eq!(world.turn(48).await.issued[0].statement.sequence, 3);
}

#[tokio::test]
async fn one_that_a_person_has_signed_counts_and_a_new_site_is_found() {
    let mut world = world().await;
    assert_eq!(world.turn(1).await.issued.len(), 0);
    world.authority.list(&[], START.plus(20 * HOUR)).await.unwrap();
    let port =
        StatementRequest { sites: vec![site("port-1")], ..request(&[world.key.offered(KeyStatus::Active)]) };
    world.authority.issue(&port, START.plus(30 * HOUR)).await.unwrap();
    assert_eq!(world.turn(25).await.issued.len(), 0);
    let turn = world.turn(44).await;
    assert_eq!(turn.issued[0].statement.sites, [site("pit-7")]);
    let turn = world.turn(54).await;
    assert_eq!((turn.issued.len(), &turn.issued[0].statement.sites), (1, &vec![site("port-1")]));
    assert_eq!(turn.standing.len(), 2);
}

#[tokio::test]
async fn sites_that_share_a_statement_go_on_sharing_it() {
    let mut world = world().await;
    let sites = vec![site("port-1"), site("port-2")];
    let both = StatementRequest { sites: sites.clone(), ..request(&[world.key.offered(KeyStatus::Active)]) };
    world.authority.issue(&both, START.plus(HOUR)).await.unwrap();
    let turn = world.turn(25).await;
    let shared = turn.issued.iter().find(|issued| issued.statement.sites.len() == 2).unwrap();
    assert_eq!((&shared.statement.sites, shared.statement.sequence, turn.issued.len()), (&sites, 2, 2));
    assert_eq!(world.last("port-1").digest(), world.last("port-2").digest());
}

#[tokio::test]
async fn while_somebody_holds_the_folder_it_waits_and_serves_on() {
    let mut world = world().await;
    let held = world.authority.dir();
    let turn = world.turn(24).await;
    assert_eq!((reasons(&turn), turn.bundles_changed), (vec![ErrorReason::DataDirLocked], false));
    let retry = turn.failures[0].retry_at;
    assert!(retry > START.plus(DAY) && retry <= START.plus(DAY + 60), "{retry:?}");
    assert_eq!((turn.look_again, turn.standing[0].retry_at), (retry, Some(retry)));
    drop(held);
    assert_eq!(world.turn(24).await.issued.len(), 0, "not before its time");
    let turn = world.reissuer.turn(retry, 0).await;
    assert_eq!((turn.issued.len(), turn.standing[0].retry_at), (1, None));
    // Nobody is kept out between.
    drop(world.authority.dir());
}

#[tokio::test]
async fn failures_in_a_row_come_ever_more_rarely_and_once_an_hour_at_most() {
    let mut world = world().await;
    let held = world.authority.dir();
    let (mut now, mut tries) = (START.plus(DAY), 0);
    while now < START.plus(2 * DAY) {
        let turn = world.reissuer.turn(now, u64::MAX).await;
        tries += turn.failures.len();
        now = turn.look_again;
        assert!(turn.failures.iter().all(|failure| failure.retry_at <= START.plus(3 * DAY)));
    }
    assert!((24..40).contains(&tries), "{tries} tries in a day");
    drop(held);
}

#[tokio::test]
async fn a_statement_key_that_is_away_or_not_the_roots_issues_nothing() {
    let mut world = world().await;
    let path = world.authority.path().join("keys/statement-1.pem");
    let key = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let turn = world.turn(24).await;
    assert_eq!(reasons(&turn), [ErrorReason::ConfigUnreadable]);
    std::fs::copy(world.authority.dir().key_path("root-1"), &path).unwrap();
    let turn = world.turn(25).await;
    assert_eq!(reasons(&turn), [ErrorReason::TrustThreshold]);
    std::fs::write(&path, key).unwrap();
    assert_eq!(world.turn(30).await.issued.len(), 1);
}

#[tokio::test]
async fn kms_that_denies_and_comes_back() {
    let kms = FakeKms::start().await;
    kms.add_signing_key(&arn(50), 7);
    let mut world = world().await;
    let place = KeyPlace::Kms { kms: kms.kms.clone(), arn: arn(50) };
    let signer = place.open().await.unwrap();
    let root = pithead_sealing::trust::RootKey { spki: signer.public().clone(), label: "kms".into() };
    let change = RootChange { kms_statement_keys: vec![root], ..RootChange::default() };
    accept_root(&world.authority, &change, START.plus(HOUR));
    world.reissuer = Reissuer::new(world.authority.path(), Duration::from_secs(DAY), place, None);

    kms.fail(Some(("Sign", "AccessDeniedException")));
    let turn = world.turn(24).await;
    assert_eq!((reasons(&turn), turn.bundles_changed), (vec![ErrorReason::KmsDenied], false));
    assert_eq!(world.last("pit-7").sequence, 1);
    // Asked before the folder is locked: a KMS that hangs keeps nobody out.
    kms.fail(Some(("GetPublicKey", "ThrottlingException")));
    let held = world.authority.dir();
    let turn = world.turn(26).await;
    assert_eq!(reasons(&turn), [ErrorReason::KmsThrottled]);
    drop(held);
    kms.fail(None);
    let turn = world.turn(30).await;
    assert_eq!((turn.issued[0].statement.sequence, turn.issued[0].statement.root_version), (2, 2));
}

fn accept_root(authority: &TestAuthority, change: &RootChange, at: UnixTime) {
    let drafted = draft(&authority.dir(), change, at).unwrap();
    let signed = ["root-1", "root-2"].map(|name| sign(&drafted, &authority.role_key(name)).unwrap());
    accept(&authority.dir(), &signed, at).unwrap();
}

#[tokio::test]
async fn a_data_key_that_is_not_what_it_was_in_kms_is_named_and_nothing_is_issued() {
    let kms = FakeKms::start().await;
    let elsewhere = BTreeSet::from([arn(2)]);
    let mut world = world_with(Some(DataKeyCheck { kms: kms.kms.clone(), elsewhere })).await;
    // The second one is held in a file by the decryptor: KMS has never heard of it.
    let second = world.authority.key(2);
    world.authority.list(&[second.offered(KeyStatus::Next)], START).await.unwrap();
    let (active, other) = (world.key.arn.clone(), world.authority.key(3));

    kms.set_data_key(&active, &world.key.spki, "Disabled");
    let turn = world.turn(24).await;
    let AuthorityError::DataKey { arn: named, status, .. } = &turn.failures[0].error else {
        panic!("{:?}", turn.failures)
    };
    assert_eq!((named, status), (&active, &KeyStatus::Active));
    kms.set_data_key(&active, &world.key.spki, "PendingDeletion");
    assert_eq!(reasons(&world.turn(26).await), [ErrorReason::KmsKeyPendingDeletion]);
    kms.set_data_key(&active, &other.spki, "Enabled");
    let turn = world.turn(29).await;
    assert!(matches!(&turn.failures[0].error, AuthorityError::Fingerprint(named) if *named == active));
    assert_eq!(turn.failures[0].error.reason(), ErrorReason::KmsFingerprint);
    // That KMS does not answer says nothing of the key.
    kms.fail(Some(("DescribeKey", "KMSInternalException")));
    assert_eq!(reasons(&world.turn(34).await), [ErrorReason::KmsUnreachable]);
    assert_eq!(world.last("pit-7").sequence, 2);
    kms.fail(None);
    kms.set_data_key(&active, &world.key.spki, "Enabled");
    assert_eq!(world.turn(40).await.issued.len(), 1);
}

#[tokio::test]
async fn no_key_changes_its_state_here() {
    let mut world = world().await;
    let next = world.authority.key(2);
    world.authority.list(&[next.offered(KeyStatus::Next)], START).await.unwrap();
    accept_root(
        &world.authority,
        &RootChange { deny: vec![next.spki.fingerprint()], ..RootChange::default() },
        START.plus(HOUR),
    );
    let turn = world.turn(24).await;
    assert_eq!(reasons(&turn), [ErrorReason::TrustKeyDenylisted], "a person has to revoke it");
    let revoke = StatementRequest { revoke: vec![(next.arn.clone(), None)], ..request(&[]) };
    world.authority.issue(&revoke, START.plus(25 * HOUR)).await.unwrap();
    assert_eq!(world.turn(26).await.failures.len(), 0);
    let turn = world.turn(49).await;
    assert_eq!(turn.issued[0].statement.key_by_arn(&next.arn).unwrap().status, KeyStatus::Revoked);
}

#[tokio::test]
async fn after_a_raised_epoch_people_go_on_until_they_say_that_it_is_over() {
    let mut world = world().await;
    accept_root(
        &world.authority,
        &RootChange { raise_epoch: true, ..RootChange::default() },
        START.plus(HOUR),
    );
    assert_eq!(reasons(&world.turn(24).await), [ErrorReason::TrustUnannounced]);
    let signer =
        KeyFileSigner::new(read_signing_key(&world.authority.dir().key_path("statement-1"), None).unwrap());
    let roots = ["root-1", "root-2"].map(|name| world.authority.role_key(name));
    issue(&world.authority.dir(), &signer, &roots, &request(&[]), START.plus(25 * HOUR)).await.unwrap();
    assert_eq!(reasons(&world.turn(49).await), [ErrorReason::TrustUnannounced], "vehicles may be asleep");
    let followed = StatementRequest { epoch_followed: true, ..request(&[]) };
    world.authority.issue(&followed, START.plus(50 * HOUR)).await.unwrap();
    assert_eq!(world.turn(74).await.issued.len(), 1);
    assert_eq!(world.turn(98).await.issued.len(), 1, "and on");
}

#[tokio::test]
async fn a_site_keeps_its_term_and_the_end_of_a_root_cuts_it_for_that_root_alone() {
    let mut world = world().await;
    let by_hand = StatementRequest { validity: Some(Duration::from_secs(400 * DAY)), ..request(&[]) };
    world.authority.issue(&by_hand, START).await.unwrap();
    let term = |turn: &Turn| {
        let statement = &turn.issued[0].statement;
        statement.expires_at.since(statement.issued_at) / DAY
    };
    assert_eq!(term(&world.turn(24).await), 400);
    // The root lives for 730 days.
    assert_eq!(term(&world.turn(390 * 24).await), 340);
    let late = world.turn(700 * 24).await;
    assert_eq!(term(&late), 30);
    assert_eq!(term(&world.turn(701 * 24).await), 29);
    accept_root(&world.authority, &RootChange::default(), START.plus(701 * DAY));
    assert_eq!(term(&world.turn(702 * 24).await), 400);
}

#[tokio::test]
async fn what_has_expired_is_left_to_a_person() {
    let mut world = world().await;
    let turn = world.turn(180 * 24).await;
    assert_eq!((reasons(&turn), turn.issued.len()), (vec![ErrorReason::RequestInvalid], 0));
    world.authority.list(&[], START.plus(180 * DAY)).await.unwrap();
    assert_eq!(world.turn(181 * 24).await.issued.len(), 1);
}

#[tokio::test]
async fn a_statement_that_lives_for_hours_is_issued_again_before_it_is_stale() {
    let mut world = world().await;
    let short = StatementRequest { validity: Some(Duration::from_secs(12 * HOUR)), ..request(&[]) };
    world.authority.issue(&short, START.plus(HOUR)).await.unwrap();
    let last = world.last("pit-7");
    let turn = world.turn(2).await;
    assert!(turn.standing[0].due_at <= last.refresh_by && last.refresh_by < last.expires_at.plus(1));
    assert!(turn.standing[0].due_at >= last.issued_at.plus(HOUR));
}

#[tokio::test]
async fn what_the_root_keys_have_signed_is_not_replaced_before_a_person_says_that_all_have_followed() {
    let mut world = world().await;
    let second = world.authority.key(2);
    let revoke = StatementRequest {
        keys: vec![second.offered(KeyStatus::Active)],
        revoke: vec![(world.key.arn.clone(), Some("stolen".into()))],
        ..request(&[])
    };
    world.authority.issue_cosigned(&revoke, START.plus(HOUR)).await.unwrap();
    // A vehicle that was parked meanwhile knows nothing of the second key, and would be left without any.
    let turn = world.turn(30).await;
    assert_eq!((reasons(&turn), turn.issued.len()), (vec![ErrorReason::TrustUnannounced], 0));
    let by_hand = world.authority.issue(&request(&[]), START.plus(31 * HOUR)).await;
    assert!(matches!(by_hand, Err(AuthorityError::LeftBehind { .. })), "{by_hand:?}");
    let followed = StatementRequest { cosigned_followed: true, ..request(&[]) };
    world.authority.issue(&followed, START.plus(32 * HOUR)).await.unwrap();
    assert_eq!(world.turn(60).await.issued.len(), 1);
}

#[tokio::test]
async fn a_statement_for_two_sites_that_was_cut_between_them_gives_its_number_once() {
    let mut world = world().await;
    let both = StatementRequest { sites: vec![site("pit-7"), site("pit-8")], ..request(&[]) };
    world
        .authority
        .issue(
            &StatementRequest {
                sites: vec![site("pit-8")],
                ..request(&[world.key.offered(KeyStatus::Active)])
            },
            START,
        )
        .await
        .unwrap();
    world.authority.issue(&both, START.plus(HOUR)).await.unwrap();
    let (seven, eight) = (world.last("pit-7"), world.last("pit-8"));
    assert_eq!(seven.digest(), eight.digest());
    std::fs::remove_file(world.authority.path().join(format!("statements/pit-8/{}.cose", eight.sequence)))
        .unwrap();
    assert_ne!(world.last("pit-8").digest(), seven.digest());
    for hours in [30, 31] {
        let turn = world.turn(hours).await;
        assert!(turn.failures.is_empty(), "{:?}", turn.failures);
    }
    let (seven_again, eight_again) = (world.last("pit-7"), world.last("pit-8"));
    assert!(seven_again.sequence > seven.sequence && eight_again.sequence > eight.sequence);
    let folder = Folder::open(&world.authority.path()).unwrap();
    let roots = folder.roots().unwrap();
    let at_eight = folder.statements(&site("pit-8"), &roots).unwrap();
    // Whatever was signed for pit-8, under whichever folder it lies, has its number alone.
    for statement in folder.statements(&site("pit-7"), &roots).unwrap() {
        if statement.sites.contains(&site("pit-8")) {
            let twin = at_eight.iter().find(|other| other.sequence == statement.sequence);
            assert_eq!(twin.map(Statement::digest), Some(statement.digest()), "{}", statement.sequence);
        }
    }
}

#[tokio::test]
async fn a_bundle_that_was_not_written_is_written_at_the_next_look() {
    let mut world = world().await;
    let bundle = world.authority.path().join("bundles/pit-7.pb");
    let old = std::fs::read(&bundle).unwrap();
    world.authority.list(&[], START.plus(HOUR)).await.unwrap();
    // A kill after the statement and before the bundle.
    std::fs::write(&bundle, old).unwrap();
    let turn = world.turn(2).await;
    assert!(turn.bundles_changed && turn.issued.is_empty());
    assert_eq!(world.bundle("pit-7").bundle.statement.as_ref(), Some(world.last("pit-7").object()));
    assert!(!world.turn(3).await.bundles_changed);
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_or_read_is_told_and_changes_nothing() {
    let mut world = world().await;
    let statements = world.authority.path().join("statements/pit-7");
    // A file where a folder has to be: as good as a disk that takes nothing, also for whoever may write anything.
    let log = world.authority.path().join("audit.log");
    let lines = std::fs::read(&log).unwrap();
    std::fs::remove_file(&log).unwrap();
    std::fs::create_dir(&log).unwrap();
    let turn = world.turn(24).await;
    assert_eq!((reasons(&turn), turn.bundles_changed), (vec![ErrorReason::DataDirUnwritable], false));
    assert_eq!(
        std::fs::read_dir(&statements).unwrap().count(),
        1,
        "no statement without its line in the log"
    );
    std::fs::remove_dir(&log).unwrap();
    std::fs::write(&log, lines).unwrap();

    let path = statements.join("1.cose");
    let object = std::fs::read(&path).unwrap();
    std::fs::write(&path, &object[..object.len() - 1]).unwrap();
    let turn = world.turn(26).await;
    assert_eq!(reasons(&turn), [ErrorReason::StateDamaged]);
    assert_eq!(turn.standing.len(), 1, "what was seen last");
    std::fs::write(&path, object).unwrap();
    assert_eq!(world.turn(30).await.issued.len(), 1);
}

//! What it takes for a statement to be served, and what is never served.

use std::sync::Mutex;

use futures_util::future::BoxFuture;
use pithead_sealing::trust::StatementKey;

use super::*;
use crate::keys::testing::{AUTHORITY, Authority, arn, site, spki};
use crate::kms::KmsFault;

/// A KMS that answers what it is told to.
#[derive(Debug, Default)]
struct FakeKms(Mutex<Option<Result<Bytes, KmsFault>>>);

impl FakeKms {
    fn answers(&self, answer: Result<Bytes, KmsFault>) {
        *self.0.lock().unwrap() = Some(answer);
    }
}

impl SpkiSource for FakeKms {
    fn spki<'a>(&'a self, key: &'a StatementKey) -> BoxFuture<'a, Result<Bytes, SpkiSourceError>> {
        let answer = self.0.lock().unwrap().clone().unwrap_or(Err(KmsFault::Unreachable));
        let error = |fault| KmsError { key: key.arn.clone(), fault, cause: "told to".into() };
        Box::pin(std::future::ready(answer.map_err(|fault| SpkiSourceError::Kms(error(fault)))))
    }
}

struct Site {
    folder: tempfile::TempDir,
    root: Bytes,
    kms: Option<Arc<FakeKms>>,
}

impl Site {
    fn new(authority: &Authority) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), root: authority.root.clone(), kms: None }
    }

    fn with_kms(authority: &Authority) -> (Self, Arc<FakeKms>) {
        let kms = Arc::new(FakeKms::default());
        (Self { kms: Some(kms.clone()), ..Self::new(authority) }, kms)
    }

    fn start(&self) -> (Keeper, Book, Origin) {
        let (history, _) = History::open(&self.folder.path().join("history")).unwrap();
        let book = Book::default();
        let kms = self.kms.clone().map(|kms| kms as Arc<dyn SpkiSource>);
        let opened = Keeper::open(
            self.folder.path(),
            AUTHORITY,
            &site(),
            self.root.clone(),
            Arc::new(history),
            kms,
            book.clone(),
        );
        let (keeper, origin) = opened.unwrap();
        (keeper, book, origin)
    }
}

fn sequence(book: &Book) -> Option<u64> {
    book.version().map(|version| version.sequence)
}

#[tokio::test]
async fn a_bundle_that_verifies_is_served_and_outlives_a_restart_without_its_source() {
    let mut authority = Authority::new();
    let place = Site::new(&authority);
    {
        let (mut keeper, book, origin) = place.start();
        assert_eq!((origin, sequence(&book)), (Origin::Provisioned, None));
        let taken =
            keeper.take(authority.bundle(&[(&arn(1), KeyStatus::Active)]), Clock::default()).await.unwrap();
        assert_eq!(taken, Taken { roots: 0, statement: true, key_changed: true });
        assert_eq!(sequence(&book), Some(1));
    }
    let (keeper, book, origin) = place.start();
    assert_eq!((origin, sequence(&book)), (Origin::Restored, Some(1)));
    assert_eq!(keeper.history.status_of(&arn(1)), Some(KeyStatus::Active));
    assert_eq!(keeper.bundle().spkis, vec![spki(1)]);
}

#[tokio::test]
async fn a_forged_or_rolled_back_statement_changes_nothing() {
    let mut authority = Authority::new();
    let place = Site::new(&authority);
    let (mut keeper, book, _) = place.start();
    let first = authority.bundle(&[(&arn(1), KeyStatus::Active)]);
    let second = authority.bundle(&[(&arn(1), KeyStatus::Active)]);
    keeper.take(first.clone(), Clock::default()).await.unwrap();
    keeper.take(second.clone(), Clock::default()).await.unwrap();

    let rolled_back = keeper.take(first, Clock::default()).await.unwrap_err();
    assert_eq!(rolled_back.reason(), ErrorReason::TrustRollback);

    let mut forged = authority.bundle(&[(&arn(1), KeyStatus::Active)]);
    let mut bytes = forged.statement.take().unwrap().to_vec();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    forged.statement = Some(bytes.into());
    let forged = keeper.take(forged, Clock::default()).await.unwrap_err();
    assert_eq!(forged.reason(), ErrorReason::TrustThreshold);

    assert_eq!(sequence(&book), Some(2));
    assert_eq!(keeper.history.len(), 2);
    assert_eq!(place.start().1.version().map(|version| version.sequence), Some(2));
}

#[tokio::test]
async fn when_kms_serves_another_key_it_is_an_alarm_and_the_last_good_one_stays() {
    let mut authority = Authority::new();
    let (place, kms) = Site::with_kms(&authority);
    let (mut keeper, book, _) = place.start();
    kms.answers(Ok(spki(1)));
    keeper.take(authority.bundle(&[(&arn(1), KeyStatus::Active)]), Clock::default()).await.unwrap();

    kms.answers(Ok(spki(9)));
    let error =
        keeper.take(authority.bundle(&[(&arn(1), KeyStatus::Active)]), Clock::default()).await.unwrap_err();
    assert!(error.is_alarm());
    assert_eq!(error.reason(), ErrorReason::KmsFingerprint);
    assert_eq!(keeper.compare().await.unwrap_err().reason(), ErrorReason::KmsFingerprint);
    assert_eq!(sequence(&book), Some(1));

    kms.answers(Ok(spki(1)));
    keeper.compare().await.unwrap();
}

#[tokio::test]
async fn a_key_that_kms_calls_unfit_is_refused() {
    let mut authority = Authority::new();
    let (place, kms) = Site::with_kms(&authority);
    let (mut keeper, book, _) = place.start();
    for (fault, reason) in [
        (KmsFault::Disabled, ErrorReason::KmsKeyDisabled),
        (KmsFault::PendingDeletion, ErrorReason::KmsKeyPendingDeletion),
        (KmsFault::Unsuitable, ErrorReason::KmsKeyUnsuitable),
        (KmsFault::NotFound, ErrorReason::KmsKeyNotFound),
    ] {
        kms.answers(Err(fault));
        let bundle = authority.bundle(&[(&arn(1), KeyStatus::Active)]);
        assert_eq!(keeper.take(bundle, Clock::default()).await.unwrap_err().reason(), reason);
    }
    assert_eq!(sequence(&book), None);
}

#[tokio::test]
async fn kms_away_denied_or_throttled_is_no_obstacle_when_the_bundle_has_the_key() {
    let mut authority = Authority::new();
    let (place, kms) = Site::with_kms(&authority);
    let (mut keeper, book, _) = place.start();
    for fault in [KmsFault::Unreachable, KmsFault::Denied, KmsFault::Throttled] {
        kms.answers(Err(fault));
        let bundle = authority.bundle(&[(&arn(1), KeyStatus::Active)]);
        keeper.take(bundle, Clock::default()).await.unwrap();
    }
    assert_eq!(sequence(&book), Some(3));
}

#[tokio::test]
async fn a_key_that_nobody_gives_is_named() {
    let mut authority = Authority::new();
    let (place, kms) = Site::with_kms(&authority);
    let (mut keeper, _, _) = place.start();
    kms.answers(Err(KmsFault::Throttled));
    let bundle = Bundle { spkis: vec![], ..authority.bundle(&[(&arn(1), KeyStatus::Active)]) };
    let error = keeper.take(bundle.clone(), Clock::default()).await.unwrap_err();
    assert_eq!(error.reason(), ErrorReason::KmsThrottled);
    assert!(error.to_string().contains(arn(1).as_str()), "{error}");

    // With KMS alone, without the bundle's copy, it is served all the same.
    kms.answers(Ok(spki(1)));
    assert!(keeper.take(bundle, Clock::default()).await.unwrap().statement);
}

#[tokio::test]
async fn a_public_key_that_is_here_need_not_be_brought_again_while_kms_is_away() {
    let mut authority = Authority::new();
    let (place, kms) = Site::with_kms(&authority);
    let (mut keeper, book, _) = place.start();
    kms.answers(Ok(spki(1)));
    let mut bare = || Bundle { spkis: vec![], ..authority.bundle(&[(&arn(1), KeyStatus::Active)]) };
    keeper.take(bare(), Clock::default()).await.unwrap();
    kms.answers(Err(KmsFault::Unreachable));
    keeper.take(bare(), Clock::default()).await.unwrap();
    assert_eq!(sequence(&book), Some(2));
    assert_eq!(keeper.bundle().spkis, vec![spki(1)]);
}

#[tokio::test]
async fn the_key_in_force_is_known_even_if_its_file_in_the_history_is_gone() {
    let mut authority = Authority::new();
    let place = Site::new(&authority);
    {
        let (mut keeper, _, _) = place.start();
        keeper.take(authority.bundle(&[(&arn(1), KeyStatus::Active)]), Clock::default()).await.unwrap();
    }
    std::fs::remove_dir_all(place.folder.path().join("history")).unwrap();
    let (keeper, _, _) = place.start();
    assert_eq!(keeper.history.status_of(&arn(1)), Some(KeyStatus::Active));
}

#[tokio::test]
async fn a_root_that_was_provisioned_anew_is_never_passed_over_in_silence() {
    let mut authority = Authority::new();
    let mut place = Site::new(&authority);
    {
        let (mut keeper, _, _) = place.start();
        let mut bundle = authority.bundle(&[(&arn(1), KeyStatus::Active)]);
        bundle.roots = vec![authority.next_root(vec![])];
        keeper.take(bundle, Clock::default()).await.unwrap();
    }
    let open = |root: &Bytes| {
        let (history, _) = History::open(&place.folder.path().join("history")).unwrap();
        let (history, book) = (Arc::new(history), Book::default());
        Keeper::open(place.folder.path(), AUTHORITY, &site(), root.clone(), history, None, book)
    };
    // A later root of the same chain is no other root.
    assert!(open(&authority.root).is_ok());
    let another = Authority::with_root_key(9).root;
    assert!(matches!(open(&another), Err(OpenError::AnotherRoot { .. })));
    place.root = authority.root.clone();
    assert_eq!(place.start().2, Origin::Restored);
}

#[tokio::test]
async fn a_root_stands_even_if_the_statement_after_it_is_refused_and_devices_get_it() {
    let mut authority = Authority::new();
    let place = Site::new(&authority);
    let (mut keeper, book, _) = place.start();
    keeper.take(authority.bundle(&[(&arn(1), KeyStatus::Active)]), Clock::default()).await.unwrap();
    let root = authority.next_root(vec![Sha256Digest::of(&spki(1))]);
    let mut bundle = authority.bundle(&[(&arn(1), KeyStatus::Active)]);
    bundle.roots = vec![root];
    let error = keeper.take(bundle, Clock::default()).await.unwrap_err();
    assert_eq!(error.reason(), ErrorReason::TrustKeyDenylisted);
    assert_eq!(keeper.device().root_version(), 2);
    assert_eq!(keeper.status(Clock::default()), Status::NoKey);
    assert_eq!(book.current().unwrap().root_version(), 2);
    assert_eq!(place.start().1.current().unwrap().root_version(), 2);
}

#[tokio::test]
async fn damage_of_both_copies_begins_again_and_known_keys_stay_known() {
    let mut authority = Authority::new();
    let place = Site::new(&authority);
    {
        let (mut keeper, _, _) = place.start();
        let bundle = authority.bundle(&[(&arn(1), KeyStatus::Active)]);
        keeper.take(bundle, Clock::default()).await.unwrap();
        keeper.save(Clock::uptime(600)).unwrap();
    }
    for slot in ["trust.a", "trust.b"] {
        std::fs::write(place.folder.path().join(slot), b"rubbish").unwrap();
    }
    let (keeper, book, origin) = place.start();
    assert_eq!((origin, sequence(&book)), (Origin::Damaged, None));
    assert_eq!(keeper.history.status_of(&arn(1)), Some(KeyStatus::Active));
}

#[tokio::test]
async fn operating_time_goes_on_where_the_last_run_wrote_it_down() {
    let mut authority = Authority::new();
    let place = Site::new(&authority);
    let before = {
        let (mut keeper, _, _) = place.start();
        let bundle = authority.bundle(&[(&arn(1), KeyStatus::Active)]);
        keeper.take(bundle, Clock::default()).await.unwrap();
        keeper.save(Clock::uptime(600)).unwrap();
        keeper.device().now_lower_bound(Clock::uptime(600))
    };
    let (keeper, _, _) = place.start();
    assert_eq!(keeper.device().now_lower_bound(Clock::uptime(0)), before);
}

#[test]
fn the_data_directory_of_another_site_is_refused() {
    let authority = Authority::new();
    let place = Site::new(&authority);
    let (mut keeper, _, _) = place.start();
    keeper.save(Clock::default()).unwrap();
    let (history, _) = History::open(&place.folder.path().join("history")).unwrap();
    let elsewhere = pithead_sealing::Site::new("pit-8").unwrap();
    let (root, history, book) = (place.root.clone(), Arc::new(history), Book::default());
    let opened = Keeper::open(place.folder.path(), AUTHORITY, &elsewhere, root, history, None, book);
    assert!(matches!(opened, Err(OpenError::Foreign { .. })));
}

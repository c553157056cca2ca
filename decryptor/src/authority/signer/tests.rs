//! The statement key in KMS, against a KMS in this process.

#![allow(clippy::unwrap_used)]

use pithead_sealing::trust::{Custody, KeyStatus, RootKey, TrustError};

use super::super::testing::{DAY, START, TestAuthority, TestKey, arn, request};
use super::super::*;
use super::*;
use crate::kms::KmsFault;
use crate::kms::testing::FakeKms;

struct World {
    authority: TestAuthority,
    kms: FakeKms,
    key: TestKey,
}

/// An authority that began with key files, and a KMS with a key that could sign.
async fn world() -> World {
    let authority = TestAuthority::new();
    let kms = FakeKms::start().await;
    kms.add_signing_key(&arn(50), 7);
    let key = authority.key(1);
    authority.list(&[key.offered(KeyStatus::Active)], START).await.unwrap();
    World { authority, kms, key }
}

impl World {
    async fn signer(&self) -> KmsSigner {
        KmsSigner::fetch(self.kms.kms.clone(), arn(50)).await.unwrap()
    }

    async fn public(&self) -> RootKey {
        RootKey { spki: self.signer().await.public().clone(), label: "kms".into() }
    }

    fn accept(&self, change: &RootChange, days: u64) -> Result<AcceptedRoot, AuthorityError> {
        let at = START.plus(days * DAY);
        let drafted = draft(&self.authority.dir(), change, at)?;
        let keys = ["root-1", "root-2"].map(|name| self.authority.role_key(name));
        let signed = keys.map(|key| sign(&drafted, &key).unwrap());
        accept(&self.authority.dir(), &signed, at)
    }

    async fn moved_to_kms(&self) {
        let change = RootChange { kms_statement_keys: vec![self.public().await], ..RootChange::default() };
        assert_eq!(self.accept(&change, 1).unwrap().root.policy.custody, Some(Custody::CloudHsm));
    }

    async fn issue_by(&self, signer: &dyn StatementSigner, days: u64) -> Result<Issued, AuthorityError> {
        issue(&self.authority.dir(), signer, &[], &request(&[]), START.plus(days * DAY)).await
    }
}

#[tokio::test]
async fn kms_signs_when_the_root_names_its_key_and_is_not_asked_before() {
    let world = world().await;
    let signer = world.signer().await;
    let early = world.issue_by(&signer, 1).await.unwrap_err();
    assert!(matches!(early, AuthorityError::Refused { error: TrustError::Threshold, .. }), "{early}");
    assert_eq!(world.kms.calls("Sign"), 0, "a signature in KMS is an act in somebody's log");

    world.moved_to_kms().await;
    let issued = world.issue_by(&signer, 1).await.unwrap();
    assert_eq!((issued.statement.sequence, issued.statement.root_version), (2, 2));
    assert_eq!(issued.in_force.arn(), &world.key.arn);
    assert_eq!(world.kms.calls("Sign"), 1);
}

#[tokio::test]
async fn what_kms_answers_is_verified_before_anything_is_written() {
    let world = world().await;
    world.moved_to_kms().await;
    let signer = world.signer().await;
    let folder = || std::fs::read_dir(world.authority.path().join("statements/pit-7")).unwrap().count();
    let log = || std::fs::read_to_string(world.authority.dir().audit_path()).unwrap();
    let (before, said) = (folder(), log());

    // Another key has signed: the private half behind the ARN was swapped after its public half was read.
    world.kms.add_signing_key(&arn(50), 8);
    let swapped = world.issue_by(&signer, 1).await.unwrap_err();
    assert!(matches!(swapped, AuthorityError::Authoring(AuthoringError::Signature)), "{swapped}");
    // And so is its public half, when it is read again.
    let other = world.issue_by(&world.signer().await, 1).await.unwrap_err();
    assert!(matches!(other, AuthorityError::Refused { error: TrustError::Threshold, .. }), "{other}");

    world.kms.add_signing_key(&arn(50), 7);
    for der in [Vec::new(), vec![0x30, 0], vec![0x30, 6, 2, 1, 1, 2, 1, 1], vec![0x11; 64]] {
        world.kms.answer_signatures_with(der);
        let refused = world.issue_by(&signer, 1).await.unwrap_err();
        assert!(matches!(refused, AuthorityError::Authoring(AuthoringError::Signature)), "{refused}");
    }
    assert_eq!((folder(), log()), (before, said));
}

#[tokio::test]
async fn a_kms_that_is_away_or_denies_is_told_apart() {
    let world = world().await;
    world.moved_to_kms().await;
    let signer = world.signer().await;
    for (code, fault) in [
        ("AccessDeniedException", KmsFault::Denied),
        ("ThrottlingException", KmsFault::Throttled),
        ("DisabledException", KmsFault::KeyDisabled),
        ("KMSInvalidStateException", KmsFault::KeyPendingDeletion),
        ("KMSInternalException", KmsFault::Unreachable),
    ] {
        world.kms.fail(Some(("Sign", code)));
        match world.issue_by(&signer, 1).await.unwrap_err() {
            AuthorityError::Kms(error) => assert_eq!(error.fault, fault, "{code}"),
            other => panic!("{code}: {other}"),
        }
    }
    world.kms.fail(Some(("GetPublicKey", "AccessDeniedException")));
    let denied = KmsSigner::fetch(world.kms.kms.clone(), arn(50)).await.unwrap_err();
    assert!(matches!(denied, AuthorityError::Kms(error) if error.fault == KmsFault::Denied));
    world.kms.fail(None);
    world.issue_by(&signer, 1).await.unwrap();
}

#[tokio::test]
async fn a_data_key_signs_no_statement() {
    let world = world().await;
    world.kms.set_data_key(&arn(1), &world.key.spki, "Enabled");
    let refused = KmsSigner::fetch(world.kms.kms.clone(), arn(1)).await.unwrap_err();
    assert!(matches!(refused, AuthorityError::Kms(error) if error.fault == KmsFault::KeyUnsuitable));
    let nobody = KmsSigner::fetch(world.kms.kms.clone(), arn(99)).await.unwrap_err();
    assert!(matches!(nobody, AuthorityError::Kms(error) if error.fault == KmsFault::KeyNotFound));
}

#[tokio::test]
async fn an_authority_can_begin_with_its_statement_key_in_kms() {
    let kms = FakeKms::start().await;
    kms.add_signing_key(&arn(50), 7);
    let signer = KmsSigner::fetch(kms.kms.clone(), arn(50)).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("authority");
    let options = InitOptions {
        min_rsa_bits: 2048,
        kms_statement_key: Some((arn(50), signer.public().clone())),
        ..InitOptions::new("acme")
    };
    let root = init(&path, &options, START).unwrap();
    assert_eq!(root.policy.custody, Some(Custody::CloudHsm));
    assert!(!path.join("keys/statement-1.pem").exists(), "no second key lies about");
    let key = TestKey::generate(folder.path(), 1, aws_lc_rs::rsa::KeySize::Rsa2048);
    let dir = AuthorityDir::open(&path).unwrap();
    issue(&dir, &signer, &[], &request(&[key.offered(KeyStatus::Active)]), START).await.unwrap();
    let log = std::fs::read_to_string(dir.audit_path()).unwrap();
    assert!(log.lines().next().unwrap().contains(arn(50).as_str()), "{log}");
}

#[tokio::test]
async fn a_root_that_says_cloud_hsm_goes_with_keys_that_are_there() {
    let world = world().await;
    let (in_kms, in_file) = (
        world.public().await,
        RootKey {
            spki: key_file::generate(pithead_sealing::trust::Algorithm::Esp256).unwrap().public(),
            label: "file".into(),
        },
    );
    let change = |files: &[&RootKey], kms: &[&RootKey], custody| RootChange {
        statement_keys: files.iter().copied().cloned().collect(),
        kms_statement_keys: kms.iter().copied().cloned().collect(),
        custody,
        ..RootChange::default()
    };
    let says = |change: &RootChange| {
        draft(&world.authority.dir(), change, START.plus(DAY)).map(|draft| draft.fields.policy.custody)
    };
    let hsm = Some(Custody::CloudHsm);
    // The keys stay the ones in files, whatever is said of them.
    assert!(matches!(says(&change(&[], &[], hsm)), Err(AuthorityError::Request(_))));
    assert!(matches!(
        says(&change(&[], &[&in_kms], Some(Custody::KeyFile))),
        Err(AuthorityError::Request(_))
    ));
    assert_eq!(says(&change(&[], &[&in_kms], None)).unwrap(), hsm);
    assert_eq!(
        says(&change(&[&in_file], &[&in_kms], None)).unwrap(),
        Some(Custody::KeyFile),
        "one is enough"
    );

    world.moved_to_kms().await;
    // A file instead, and nothing said of custody: the root would go on saying cloud HSM.
    assert!(matches!(says(&change(&[&in_file], &[], None)), Err(AuthorityError::Request(_))));
    assert_eq!(says(&change(&[&in_file], &[], Some(Custody::KeyFile))).unwrap(), Some(Custody::KeyFile));
    assert_eq!(says(&change(&[], &[], None)).unwrap(), hsm, "as before");
}

#[tokio::test]
async fn a_key_file_signs_nothing_under_a_root_that_says_cloud_hsm() {
    let world = world().await;
    let key = key_file::generate(pithead_sealing::trust::Algorithm::Esp256).unwrap();
    let lying = RootChange {
        statement_keys: vec![RootKey { spki: key.public(), label: "said to be in the HSM".into() }],
        custody: Some(Custody::CloudHsm),
        ..RootChange::default()
    };
    world.accept(&lying, 1).unwrap();
    let refused = world.issue_by(&KeyFileSigner::new(key), 1).await.unwrap_err();
    assert!(matches!(refused, AuthorityError::Custody), "{refused}");
    let statements = world.authority.path().join("statements/pit-7");
    assert_eq!(std::fs::read_dir(statements).unwrap().count(), 1);
}

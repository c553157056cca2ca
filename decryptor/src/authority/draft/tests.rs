//! Statements that root keys sign apart.

#![allow(clippy::unwrap_used)]

use pithead_sealing::trust::{KeyStatus, TrustError};

use super::super::testing::{DAY, START, TestAuthority, TestKey, request};
use super::super::{AuthorityError, KeyFileSigner, OfferedKey, RootChange, accept, draft, sign as sign_root};
use super::*;

struct World {
    authority: TestAuthority,
    signer: KeyFileSigner,
    first: TestKey,
    second: TestKey,
}

async fn world() -> World {
    let authority = TestAuthority::new();
    let signer = KeyFileSigner::new(authority.role_key("statement-1"));
    let (first, second) = (authority.key(1), authority.key(2));
    authority.list(&[first.offered(KeyStatus::Active)], START).await.unwrap();
    World { authority, signer, first, second }
}

impl World {
    /// The first key is stolen, and the second one, which nobody has heard of, takes its place.
    fn revocation(&self) -> StatementRequest {
        StatementRequest {
            revoke: vec![(self.first.arn.clone(), Some("stolen".into()))],
            ..request(&[self.second.offered(KeyStatus::Active)])
        }
    }

    fn drafted(&self, request: &StatementRequest, days: u64) -> StatementDraft {
        draft_statement(&self.authority.dir(), request, START.plus(days * DAY)).unwrap()
    }

    fn signed(&self, draft: &StatementDraft, names: &[&str]) -> Vec<Bytes> {
        // What travels is the payload alone.
        let read = read_statement_draft(&draft.payload).unwrap();
        names.iter().map(|name| cosign(&read, &self.authority.role_key(name)).unwrap()).collect()
    }

    async fn accept(&self, signed: &[Bytes], days: u64) -> Result<Issued, AuthorityError> {
        accept_statement(&self.authority.dir(), &self.signer, signed, START.plus(days * DAY)).await
    }

    async fn daily_when_all_have_followed(&self, days: u64) -> Issued {
        let followed = StatementRequest { cosigned_followed: true, ..request(&[]) };
        self.authority.issue(&followed, START.plus(days * DAY)).await.unwrap()
    }

    async fn daily(&self, days: u64) -> Issued {
        self.authority.list(&[], START.plus(days * DAY)).await.unwrap()
    }
}

#[tokio::test]
async fn root_keys_that_never_meet_put_an_unannounced_key_into_force_at_once() {
    let world = world().await;
    let drafted = world.drafted(&world.revocation(), 1);
    assert_eq!(read_statement_draft(&drafted.payload).unwrap().digest, drafted.digest);
    let both = world.signed(&drafted, &["root-1", "root-2"]);

    for few in [&both[..1], &[both[0].clone(), both[0].clone()][..]] {
        let refused = world.accept(few, 2).await.unwrap_err();
        assert!(refused.to_string().contains("threshold"), "{refused}");
    }
    // A key of the statement role does not stand for one of the root's.
    let stranger = [both[0].clone(), world.signed(&drafted, &["statement-1"])[0].clone()];
    assert!(world.accept(&stranger, 2).await.is_err());

    let issued = world.accept(&both, 2).await.unwrap();
    assert_eq!((issued.in_force.arn(), issued.not_yet_usable.len()), (&world.second.arn, 0));
    let revoked = issued.statement.key_by_arn(&world.first.arn).unwrap();
    assert_eq!((revoked.status, revoked.reason.as_deref()), (KeyStatus::Revoked, Some("stolen")));
    let log = std::fs::read_to_string(world.authority.dir().audit_path()).unwrap();
    let signers = log
        .lines()
        .last()
        .unwrap()
        .matches(&world.authority.role_key("root-1").public().kid().to_string())
        .count();
    assert_eq!(signers, 1, "{log}");
    // It is issued once.
    assert!(matches!(world.accept(&both, 2).await, Err(AuthorityError::Request(_))));
    let early = world.authority.list(&[], START.plus(3 * DAY)).await;
    assert!(matches!(early, Err(AuthorityError::LeftBehind { .. })), "{early:?}");
    world.daily_when_all_have_followed(3).await;
}

#[tokio::test]
async fn what_is_issued_again_while_signatures_are_on_their_way_does_not_undo_a_draft() {
    let world = world().await;
    let drafted = world.drafted(&world.revocation(), 1);
    for day in 2..30 {
        world.daily(day).await;
    }
    let both = world.signed(&drafted, &["root-1", "root-2"]);
    let issued = world.accept(&both, 30).await.unwrap();
    assert_eq!(issued.in_force.arn(), &world.second.arn);
    // And the daily one goes on behind it.
    let daily = world.daily_when_all_have_followed(31).await;
    assert_eq!(daily.statement.sequence, issued.statement.sequence + 1);
}

#[tokio::test]
async fn a_draft_does_not_outlive_what_it_stood_on() {
    let world = world().await;
    let drafted = world.drafted(&world.revocation(), 1);
    let both = world.signed(&drafted, &["root-1", "root-2"]);
    // Somebody has announced a key since: the draft would drop it without a word.
    world.authority.list(&[world.authority.key(3).offered(KeyStatus::Next)], START.plus(DAY)).await.unwrap();
    let changed = world.accept(&both, 2).await.unwrap_err();
    assert!(changed.to_string().contains("draft it again"), "{changed}");

    let drafted = world.drafted(&world.revocation(), 2);
    let both = world.signed(&drafted, &["root-1", "root-2"]);
    let future = world.accept(&both, 1).await.unwrap_err();
    assert!(future.to_string().contains("future"), "{future}");
    let late = world.accept(&both, 2 + 181).await.unwrap_err();
    assert!(matches!(late, AuthorityError::Refused { error: TrustError::Expired, .. }), "{late}");
    let root = draft(&world.authority.dir(), &RootChange::default(), START.plus(2 * DAY)).unwrap();
    let roots = ["root-1", "root-2"].map(|name| sign_root(&root, &world.authority.role_key(name)).unwrap());
    accept(&world.authority.dir(), &roots, START.plus(2 * DAY)).unwrap();
    let other_root = world.accept(&both, 2).await.unwrap_err();
    assert!(other_root.to_string().contains("another root"), "{other_root}");
}

#[tokio::test]
async fn signatures_on_different_drafts_and_on_roots_do_not_add_up() {
    let world = world().await;
    let (one, other) = (world.drafted(&world.revocation(), 1), world.drafted(&world.revocation(), 2));
    let mixed = [world.signed(&one, &["root-1"]), world.signed(&other, &["root-2"])].concat();
    assert!(matches!(world.accept(&mixed, 2).await, Err(AuthorityError::Request(_))));
    let root = draft(&world.authority.dir(), &RootChange::default(), START.plus(DAY)).unwrap();
    assert!(read_statement_draft(&root.payload).is_err(), "a root is not taken for a statement");
    assert!(super::super::read_draft(&one.payload).is_err(), "nor a statement for a root");
    let as_root = sign_root(&root, &world.authority.role_key("root-1")).unwrap();
    assert!(world.accept(&[as_root], 2).await.is_err());
}

#[tokio::test]
async fn a_rotation_is_drafted_as_it_is_signed() {
    let world = world().await;
    world.authority.list(&[world.second.offered(KeyStatus::Next)], START.plus(DAY)).await.unwrap();
    let swap = StatementRequest {
        retire: vec![world.first.arn.clone()],
        ..request(&[OfferedKey { arn: world.second.arn.clone(), spki: None, status: KeyStatus::Active }])
    };
    let drafted = world.drafted(&swap, 2);
    // The old key is listed as active for as long as the re-issues until then say, and stays able to decrypt beyond that.
    for day in 3..20 {
        world.daily(day).await;
    }
    let both = world.signed(&drafted, &["root-1", "root-2"]);
    let issued = world.accept(&both, 20).await.unwrap();
    assert_eq!(issued.in_force.arn(), &world.second.arn);
    assert_eq!(issued.statement.key_by_arn(&world.first.arn).unwrap().status, KeyStatus::Retired);
}

//! Keys over the wire: asked for, unchanged, watched, replaced.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use pithead_hop::keys::{Answer, FetchError, Held, KeyClient, KeyFile, ServedKeys, TrustVersion};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::trust::{
    KeyArn, KeyStatus, MAX_ROOTS, Policy, Role, RootFields, RootKey, SUITE_RSA_OAEP_SHA256, Sha256Digest,
    StatementFields, StatementKey, TrustError, UnixTime,
    authoring::{Draft, SigningKey},
};
use tokio::time::timeout;

use crate::transport::world::{AUTHORITY, LONG, Server, World, site};

const NOW: UnixTime = UnixTime(1_800_000_000);

/// Signs roots and statements with keys that everybody knows.
pub(crate) struct Authority {
    root_key: SigningKey,
    statement_key: SigningKey,
}

impl Authority {
    pub(crate) fn new() -> Self {
        Self { root_key: SigningKey::ed25519(&[7; 32]), statement_key: SigningKey::ed25519(&[8; 32]) }
    }

    fn roots(&self, count: u64) -> Vec<Bytes> {
        let role = |key: &SigningKey| Role { threshold: 1, kids: vec![key.public().kid()] };
        let listed = |key: &SigningKey| RootKey { spki: key.public(), label: "test".to_owned() };
        let mut previous = Sha256Digest::ZERO;
        let make = |version| {
            let fields = RootFields {
                authority: AUTHORITY.to_owned(),
                version,
                epoch: 1,
                issued_at: NOW,
                expires_at: NOW.plus(100_000_000),
                root_role: role(&self.root_key),
                statement_role: role(&self.statement_key),
                keys: vec![listed(&self.root_key), listed(&self.statement_key)],
                denylist: Vec::new(),
                policy: Policy {
                    hold_down_s: 0,
                    min_rsa_bits: 2048,
                    suites: vec![SUITE_RSA_OAEP_SHA256],
                    max_statement_validity_s: 100_000_000,
                    custody: None,
                },
                gateways: None,
                previous,
            };
            let mut draft = Draft::root(&fields).unwrap();
            previous = draft.digest();
            draft.sign(&self.root_key).unwrap();
            draft.finish().unwrap()
        };
        (1..=count).map(make).collect()
    }

    fn statement(&self, root_version: u64, sequence: u64) -> Bytes {
        let arn = "arn:aws:kms:eu-central-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab";
        let fields = StatementFields {
            authority: AUTHORITY.to_owned(),
            sites: vec![site("pit-7")],
            root_version,
            epoch: 1,
            sequence,
            issued_at: NOW,
            refresh_by: NOW.plus(1000),
            expires_at: NOW.plus(10_000),
            previous: Sha256Digest::ZERO,
            keys: vec![StatementKey {
                arn: KeyArn::new(arn).unwrap(),
                suite: SUITE_RSA_OAEP_SHA256,
                fingerprint: Sha256Digest::of(b"spki"),
                bits: 3072,
                status: KeyStatus::Active,
                not_before: NOW,
                seal_until: NOW.plus(10_000),
                decrypt_until: None,
                reason: None,
            }],
            ticket: None,
        };
        let mut draft = Draft::statement(&fields).unwrap();
        draft.sign(&self.statement_key).unwrap();
        draft.finish().unwrap()
    }
}

pub(crate) fn keys_of(authority: &Authority, roots: u64, sequence: u64) -> ServedKeys {
    let statement = authority.statement(roots, sequence);
    ServedKeys::new(site("pit-7"), authority.roots(roots), statement, vec![Bytes::from_static(b"spki")])
        .unwrap()
}

async fn client(world: &World, server: &Server, name: &str) -> KeyClient {
    KeyClient::new(server.connect(&world.truck(name)).await.unwrap(), AUTHORITY, site("pit-7"))
}

fn reason(answer: Result<Answer, FetchError>) -> (ErrorReason, Option<Duration>) {
    match answer {
        Err(FetchError::Remote(remote)) => (remote.reason.expect("a reason of ours"), remote.retry_after),
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn who_holds_nothing_gets_everything_and_who_holds_it_all_gets_nothing() {
    let world = World::new();
    let server = world.serve().await;
    let mut asking = client(&world, &server, "truck-1").await;
    let (none, wait) = reason(asking.fetch(&Held::default(), LONG).await);
    assert_eq!(none, ErrorReason::KeysNotReady);
    assert!(wait.expect("says when") >= Duration::from_secs(10));

    let served = keys_of(&Authority::new(), 3, 9);
    server.book.send_replace(Some(Arc::new(served.clone())));
    let answer = asking.fetch(&Held { root_version: 1, statement_digest: None }, LONG).await.unwrap();
    let bundle = answer.bundle.expect("there is news");
    assert_eq!(bundle.roots, Authority::new().roots(3)[1..]);
    assert_eq!(bundle.statement, Some(Authority::new().statement(3, 9)));
    assert_eq!(bundle.spkis, [Bytes::from_static(b"spki")]);
    assert_eq!(answer.time_us, 1_234_567);
    assert_eq!(answer.version, Some(TrustVersion { epoch: 1, sequence: 9 }));

    let all = Held { root_version: 3, statement_digest: Some(*served.digest()) };
    let answer = asking.fetch(&all, LONG).await.unwrap();
    assert_eq!((answer.bundle, answer.version), (None, Some(served.version())));

    let behind = asking.fetch(&Held { root_version: 2, ..all }, LONG).await.unwrap();
    assert_eq!(behind.bundle.expect("a root is missing").roots.len(), 1);
    let export = served.export();
    assert_eq!(export.bundle.roots.len(), 3);
    assert_eq!(KeyFile::decode(export.encode().into()), Ok(export));
}

#[tokio::test]
async fn a_watch_says_at_once_what_is_newer_and_then_every_change() {
    let world = World::new();
    let server = world.serve().await;
    let authority = Authority::new();
    let mut asking = client(&world, &server, "truck-1").await;
    let mut watch = asking.watch(&Held { root_version: 1, statement_digest: None }).await.unwrap();
    for sequence in [1, 2] {
        server.book.send_replace(Some(Arc::new(keys_of(&authority, 1, sequence))));
        let answer = timeout(LONG, watch.next()).await.expect("at once").unwrap();
        assert_eq!(answer.version, Some(TrustVersion { epoch: 1, sequence }));
        let bundle = answer.bundle.expect("that is the point");
        assert_eq!((bundle.roots.len(), bundle.statement), (0, Some(authority.statement(1, sequence))));
    }
    // The same again is no news; a root alone is.
    server.book.send_replace(Some(Arc::new(keys_of(&authority, 1, 2))));
    server.book.send_replace(Some(Arc::new(keys_of(&authority, 2, 3))));
    let answer = timeout(LONG, watch.next()).await.expect("at once").unwrap();
    assert_eq!(answer.bundle.expect("news").roots.len(), 1);
    assert_eq!(answer.version, Some(TrustVersion { epoch: 1, sequence: 3 }));

    // Who is up to date already is told of the next change, not of this one.
    let held = Held { root_version: 2, statement_digest: Some(*keys_of(&authority, 2, 3).digest()) };
    let mut other = client(&world, &server, "truck-2").await;
    let mut quiet = other.watch(&held).await.unwrap();
    server.book.send_replace(Some(Arc::new(keys_of(&authority, 2, 4))));
    let answer = timeout(LONG, quiet.next()).await.expect("at once").unwrap();
    assert_eq!(answer.version, Some(TrustVersion { epoch: 1, sequence: 4 }));
}

#[tokio::test]
async fn a_newer_watch_of_one_identity_ends_the_older() {
    let world = World::new();
    let server = world.serve().await;
    let mut older = client(&world, &server, "truck-1").await.watch(&Held::default()).await.unwrap();
    let mut bystander = client(&world, &server, "truck-2").await.watch(&Held::default()).await.unwrap();
    let mut newer = client(&world, &server, "truck-1").await.watch(&Held::default()).await.unwrap();
    let (why, _) = reason(timeout(LONG, older.next()).await.expect("at once"));
    assert_eq!(why, ErrorReason::WatchReplaced);
    drop(older);
    assert_eq!(server.keys.watchers(), 2);
    server.book.send_replace(Some(Arc::new(keys_of(&Authority::new(), 1, 1))));
    for watch in [&mut newer, &mut bystander] {
        timeout(LONG, watch.next()).await.expect("at once").unwrap();
    }
    drop((newer, bystander));
    timeout(LONG, async {
        while server.keys.watchers() > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .expect("watches that are gone leave nothing behind");
}

#[tokio::test]
async fn who_is_far_behind_gets_roots_first_and_then_the_statement() {
    let world = World::new();
    let server = world.serve().await;
    let count = MAX_ROOTS as u64 + 8;
    let served = keys_of(&Authority::new(), count, 1);
    server.book.send_replace(Some(Arc::new(served.clone())));
    let mut asking = client(&world, &server, "truck-1").await;
    let first = asking.fetch(&Held { root_version: 1, statement_digest: None }, LONG).await.unwrap();
    let bundle = first.bundle.expect("news");
    assert_eq!((bundle.roots.len(), bundle.statement), (MAX_ROOTS, None));
    let held = Held { root_version: 1 + MAX_ROOTS as u64, statement_digest: None };
    let second = asking.fetch(&held, LONG).await.unwrap().bundle.expect("news");
    assert_eq!((second.roots.len(), second.statement.is_some()), (7, true));

    let mut watch = asking.watch(&Held { root_version: 1, statement_digest: None }).await.unwrap();
    assert_eq!(watch.next().await.unwrap().bundle.expect("news").roots.len(), MAX_ROOTS);
    assert_eq!(timeout(LONG, watch.next()).await.expect("at once").unwrap().bundle.expect("news"), second);
}

#[tokio::test]
async fn a_caller_is_told_of_its_own_site_and_authority_alone() {
    let world = World::new();
    let server = world.serve().await;
    let connection = server.connect(&world.truck("truck-1")).await.unwrap();
    let ask = |authority: &str, name: &str| KeyClient::new(connection.clone(), authority, site(name));
    for (mut asking, expected) in [
        (ask(AUTHORITY, "pit-8"), ErrorReason::SiteMismatch),
        (ask("other/prod", "pit-7"), ErrorReason::AuthorityUnknown),
        (ask("", "pit-7"), ErrorReason::RequestInvalid),
    ] {
        assert_eq!(reason(asking.fetch(&Held::default(), LONG).await).0, expected);
    }
    let leaf = crate::transport::world::Leaf::named(vec![crate::transport::world::uri(
        "spiffe://pit-8/device/truck-1",
    )]);
    let connection = server.connect(&world.client_tls(Some(world.pit_8.issue(leaf)))).await.unwrap();
    let mut asking = KeyClient::new(connection, AUTHORITY, site("pit-8"));
    assert_eq!(reason(asking.fetch(&Held::default(), LONG).await).0, ErrorReason::SiteUnknown);
}

#[test]
fn keys_that_do_not_belong_together_are_not_served() {
    let authority = Authority::new();
    let statement = authority.statement(1, 1);
    let new = |name: &str, roots: Vec<Bytes>, statement: &Bytes| {
        ServedKeys::new(site(name), roots, statement.clone(), Vec::new()).map(drop)
    };
    assert_eq!(new("pit-7", authority.roots(2), &statement), Ok(()));
    assert_eq!(new("pit-8", authority.roots(1), &statement), Err(TrustError::Audience));
    let mut holed = authority.roots(3);
    holed.remove(1);
    assert_eq!(new("pit-7", holed, &statement), Err(TrustError::RootVersion));
    assert_eq!(new("pit-7", vec![statement.clone()], &statement), Err(TrustError::Type));
    assert!(new("pit-7", Vec::new(), &Bytes::from_static(b"rubbish")).is_err());
}

//! The upstream source against a real `KeyService` on loopback.

use pithead_sealing::trust::{KeyStatus, Sha256Digest, StatementFields};

use super::*;
use crate::envelopes::testing::{Cloud, LONG};
use crate::keys::testing::{Authority, arn, site, spki};

fn publish(cloud: &Cloud, authority: &mut Authority) -> Held {
    let statement = authority.statement_object(&[(&arn(1), KeyStatus::Active)]);
    cloud.book.publish(&site(), std::slice::from_ref(&authority.root), Some(&statement), &[spki(1)]);
    let digest: Sha256Digest = StatementFields::read_unverified(&statement).unwrap().1;
    Held { root_version: 1, statement_digest: Some(digest) }
}

#[tokio::test]
async fn an_upstream_gives_what_is_newer_and_says_when_there_is_something() {
    let (cloud, mut authority) = (Cloud::start().await, Authority::new());
    let upstream = cloud.upstream();
    let nothing = Held { root_version: 1, statement_digest: None };
    let not_ready = upstream.fetch(&nothing).await.unwrap_err();
    assert_eq!(not_ready.reason(), ErrorReason::KeysNotReady);

    let first = publish(&cloud, &mut authority);
    let bundle = upstream.fetch(&nothing).await.unwrap().expect("something newer");
    assert!(bundle.roots.is_empty() && bundle.statement.is_some());
    assert_eq!(bundle.spkis, vec![spki(1)]);
    assert_eq!(upstream.fetch(&first).await.unwrap(), None);

    let mut changed = upstream.changed(&first);
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut changed).await.is_err(), "no news");
    let second = publish(&cloud, &mut authority);
    tokio::time::timeout(LONG, changed).await.expect("news");
    assert!(upstream.fetch(&first).await.unwrap().is_some());
    assert_eq!(upstream.fetch(&second).await.unwrap(), None);
}

#[tokio::test]
async fn an_upstream_that_is_not_ours_or_not_there_is_told_apart() {
    let (cloud, stranger) = (Cloud::start().await, Cloud::start().await);
    let held = Held::default();
    let wrong_ca = Upstream { endpoint: stranger.upstream().endpoint, ..cloud.upstream() };
    assert_eq!(wrong_ca.fetch(&held).await.unwrap_err().reason(), ErrorReason::PeerUntrusted);
    let another = Upstream { authority: "somebody".into(), ..cloud.upstream() };
    assert_eq!(another.fetch(&held).await.unwrap_err().reason(), ErrorReason::AuthorityUnknown);
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let away = Upstream { endpoint: free.into(), ..cloud.upstream() };
    assert_eq!(away.fetch(&held).await.unwrap_err().reason(), ErrorReason::PeerUnreachable);
}

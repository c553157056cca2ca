//! No key, no seal; and a folder keeps its authority.

use std::time::Duration;

use pithead_device_client::{
    client::{Client, FlushError, OpenError, RecordError, TrustAnchor},
    keys::KeysError,
};
use pithead_sealing::{
    names::DeviceId,
    trust::{Status, TrustError},
};

use crate::world::{LONG, World, keep, records, stream};

#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_nothing_touches_the_disk_and_the_caller_is_told() {
    let world = World::new();
    let open = || world.client_without_key(&[World::nowhere()], &world.ca).stream(records("can"));
    let client = open().open().unwrap();
    assert_eq!(client.status().keys.status, Status::NoKey);
    let can = client.stream("can").unwrap();
    can.record(b"in memory").unwrap();
    let error = client.sync(Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(error, FlushError::NotHeld), "{error}");
    let refused = can.record(b"one more").unwrap_err();
    assert!(matches!(refused, RecordError::NoKey(TrustError::NoKey)) && refused.is_retryable(), "{refused}");
    let status = stream(&client, "can");
    assert_eq!((status.held, status.sealed, status.in_memory), (0, 0, 1), "{status:?}");
    client.close(Duration::ZERO).unwrap();
    // The same folder with a key.
    let client = open().bundle(world.trust.bundle.clone()).open().unwrap();
    keep(&client, "can", b"x").await;
    assert_eq!(client.status().keys.status, Status::Fresh);
    drop(client);
    let client = open().open().unwrap();
    keep(&client, "can", b"the key was kept").await;
    assert_eq!(client.status().sessions, 1);
    client.sync(LONG).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_believes_another_authority_is_not_taken_over_and_an_unused_one_needs_an_anchor() {
    let world = World::new();
    let gateways = || world.gateways(&[World::nowhere()], &world.ca);
    let device = || DeviceId::new("truck-7").unwrap();
    let site = || world.trust.site.clone();
    let refused = Client::enrolled(world.folder(), site(), device(), gateways()).open().unwrap_err();
    assert!(matches!(refused, OpenError::Keys(KeysError::NotEnrolled)), "{refused}");
    drop(world.client(&[World::nowhere()]).open().unwrap());
    drop(Client::enrolled(world.folder(), site(), device(), gateways()).open().unwrap());
    let anchor = TrustAnchor { authority: "somebody/else".into(), root: world.trust.root.clone() };
    let refused = Client::builder(world.folder(), site(), device(), gateways(), anchor).open().unwrap_err();
    assert!(matches!(refused, OpenError::OtherAuthority { .. }), "{refused}");
}

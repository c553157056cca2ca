//! No key, no seal; and a folder keeps its authority.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use pithead_device_client::{
    client::{Client, FlushError, OpenError, RecordError, TrustAnchor},
    clock::DeviceClock,
    keys::{Keys, KeysError},
    sealer::{Content, Sealer},
    state::{MemoryStore, StateError, StateStore},
};
use pithead_sealing::{
    envelope::{DeviceSigningKey, KernelEntropy, Profile, SignatureClaim, check},
    names::{DeviceId, StreamName},
    trust::{Status, TrustError},
};

use crate::world::{LONG, World, keep, records, stream, trust};

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
    let anchor = TrustAnchor::new("somebody/else", world.trust.root.clone());
    let refused = Client::builder(world.folder(), site(), device(), gateways(), anchor).open().unwrap_err();
    assert!(matches!(refused, OpenError::OtherAuthority { .. }), "{refused}");
}

#[test]
fn who_asks_for_keys_beside_an_open_client_moves_nothing_under_it() {
    let world = World::new();
    let client = world.client_without_key(&[World::nowhere()], &world.ca).open().unwrap();
    let mut beside = Keys::open_in(&world.folder(), &world.trust.site, DeviceClock::start()).unwrap();
    let refused = beside.apply(&world.trust.bundle).unwrap_err();
    assert!(matches!(refused, KeysError::State(StateError::Locked { .. })), "{refused}");
    assert_eq!(beside.verified_key().err(), Some(TrustError::NoKey));
    drop(client);
    let refused = beside.apply(&world.trust.bundle).unwrap_err();
    assert!(
        matches!(refused, KeysError::State(StateError::Moved { .. })),
        "it wrote its hours down: {refused}"
    );
    drop(beside);
    let mut beside = Keys::open_in(&world.folder(), &world.trust.site, DeviceClock::start()).unwrap();
    beside.apply(&world.trust.bundle).unwrap();
    assert!(world.client(&[World::nowhere()]).open().is_err(), "and it is the one that writes now");
}

/// Memory that can be full.
#[derive(Debug)]
struct Full(MemoryStore, Arc<AtomicBool>);

impl StateStore for Full {
    fn load(&mut self) -> Result<Option<Vec<u8>>, StateError> {
        self.0.load()
    }

    fn save(&mut self, state: &[u8]) -> Result<(), StateError> {
        if self.1.load(Ordering::Relaxed) {
            return Err(StateError::Io { path: "full".into(), source: io::ErrorKind::StorageFull.into() });
        }
        self.0.save(state)
    }
}

#[test]
fn a_statement_that_could_not_be_written_down_is_not_believed() {
    let trust = trust();
    let full = Arc::new(AtomicBool::new(false));
    let store = Box::new(Full(MemoryStore::default(), Arc::clone(&full)));
    let mut keys =
        Keys::enroll(&trust.authority, &trust.site, &trust.root, store, DeviceClock::start()).unwrap();
    full.store(true, Ordering::Relaxed);
    assert!(matches!(keys.apply(&trust.bundle), Err(KeysError::State(StateError::Io { .. }))));
    assert_eq!(keys.verified_key().err(), Some(TrustError::NoKey));
    full.store(false, Ordering::Relaxed);
    keys.apply(&trust.bundle).unwrap();
    keys.verified_key().unwrap();
}

fn claim_of(envelope: &Bytes) -> Option<SignatureClaim> {
    Profile::of(check(envelope.clone()).unwrap().header()).unwrap().signature().cloned()
}

#[tokio::test(flavor = "multi_thread")]
async fn with_an_identity_key_every_session_is_signed_once() {
    let world = World::new();
    let gateway = world.gateway().await;
    let key = DeviceSigningKey::generate(&mut KernelEntropy).unwrap();
    let (kid, shown) = (key.kid(), format!("{key:?}"));
    assert!(shown.starts_with("DeviceSigningKey { kid: ") && shown.ends_with(", .. }"), "{shown}");
    let client = world.client(&[gateway.address]).stream(records("can")).sign_with(key).open().unwrap();
    keep(&client, "can", b"signed").await;
    keep(&client, "can", b"by the same signature").await;
    client.flush(LONG).await.unwrap();
    assert_eq!(client.status().sessions, 1);
    let claims: Vec<_> = gateway.gate.all_offered().iter().map(|(_, envelope)| claim_of(envelope)).collect();
    assert_eq!(claims[0].as_ref().unwrap().kid, kid);
    assert_eq!(claims[0], claims[1], "once for each session, not for each message");
}

#[test]
fn a_sealer_signs_what_it_seals_and_a_file_has_a_session_of_its_own() {
    let world = World::new();
    drop(world.client(&[World::nowhere()]).open().unwrap());
    let device = DeviceId::new("truck-7").unwrap();
    let mut sealer = Sealer::open(&world.folder(), &world.trust.site, device, DeviceClock::start()).unwrap();
    let can = StreamName::new("can").unwrap();
    let unsigned = sealer.seal(&can, &Content::batch(), b"nobody signs this").unwrap();
    assert_eq!(claim_of(unsigned.bytes()), None);
    sealer.sign_with(DeviceSigningKey::generate(&mut KernelEntropy).unwrap());
    let signed = claim_of(sealer.seal(&can, &Content::batch(), b"x").unwrap().bytes()).unwrap();
    let mut file = Vec::new();
    sealer.seal_stream(&can, &Content::batch(), &mut &b"large"[..], &mut file).unwrap();
    let of_file = claim_of(&file.into()).unwrap();
    assert_eq!((of_file.kid, of_file.run, sealer.sessions_started()), (signed.kid, signed.run, 3));
    assert_ne!(of_file.sid, signed.sid);
}

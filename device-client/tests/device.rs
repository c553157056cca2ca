//! A device on a real disk: what it sealed survives, and what it did not finish leaves no hole.

#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use pithead_device_client::{
    INLINE_LIMIT_BYTES,
    batch::{BatchBuilder, BatchLimits},
    clock::DeviceClock,
    device::{AppendRefused, Device, OpenError},
    keys::{Keys, KeysError},
    sealer::{Content, SealError},
    state::{MemoryStore, StateError, StateStore},
};
use pithead_sealing::{
    envelope::{DeviceSigningKey, KernelEntropy, Profile, SignatureClaim, check},
    names::{DeviceId, Site, StreamName},
    trust::{Bundle, Status, TrustError},
};
use pithead_spool::Options;

struct Trust {
    authority: String,
    site: Site,
    root: Vec<u8>,
    bundle: Bundle,
}

/// Root, statement and key of the first conformance case: real signatures, made by another implementation.
fn trust() -> Trust {
    let cases: serde_json::Value =
        serde_json::from_str(include_str!("../../sealing/tests/vectors/trust.json")).unwrap();
    let case = cases.as_array().unwrap().iter().find(|case| case["name"] == "first-statement").unwrap();
    let bytes = |value: &serde_json::Value| hex::decode(value.as_str().unwrap()).unwrap();
    let step = &case["steps"][0];
    Trust {
        authority: case["device"]["authority"].as_str().unwrap().to_owned(),
        site: Site::new(case["device"]["site"].as_str().unwrap()).unwrap(),
        root: bytes(&case["device"]["root"]),
        bundle: Bundle {
            roots: vec![],
            statement: Some(bytes(&step["stmt"]).into()),
            spkis: vec![bytes(&step["spki"][0]).into()],
        },
    }
}

fn open(folder: &Path) -> Result<Device, OpenError> {
    let device = DeviceId::new("truck-7").unwrap();
    Device::open(folder, &trust().site, device, Options::outbox(), DeviceClock::start())
}

fn enrolled(folder: &Path) -> Device {
    let trust = trust();
    let mut keys = Device::enroll(folder, &trust.authority, &trust.site, &trust.root).unwrap();
    keys.apply(&trust.bundle).unwrap();
    drop(keys);
    open(folder).unwrap()
}

fn can() -> StreamName {
    StreamName::new("can").unwrap()
}

fn append(device: &mut Device, text: &str) -> u64 {
    let stored = device.append(&can(), &Content::batch(), text.as_bytes()).unwrap();
    let seq = stored.identity.seq.get();
    stored.wait().unwrap();
    seq
}

fn waiting(device: &Device) -> Vec<(String, Bytes)> {
    let mut reader = device.outbox().waiting();
    let mut found = Vec::new();
    loop {
        let batch = reader.next_batch(1 << 20).unwrap();
        if batch.is_empty() {
            return found;
        }
        for waiting in batch {
            let (bytes, identity) = waiting.envelope.into_parts();
            found.push((identity.to_string(), bytes));
        }
    }
}

#[test]
fn what_waits_is_sent_again_as_the_same_bytes_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut device = enrolled(folder.path());
    assert_eq!(
        [append(&mut device, "one"), append(&mut device, "two"), append(&mut device, "three")],
        [1, 2, 3]
    );
    let before = waiting(&device);
    // No close: the process is gone.
    drop(device);
    let mut device = open(folder.path()).unwrap();
    assert_eq!(waiting(&device), before);
    assert_eq!(append(&mut device, "four"), 1, "a new run counts from one");
    let all = waiting(&device);
    assert_eq!(all.len(), 4);
    assert_ne!(all[3].0.rsplit('/').nth(1), all[2].0.rsplit('/').nth(1), "and is another run");
}

#[test]
fn what_was_acknowledged_is_forgotten_and_its_line_is_remembered() {
    let folder = tempfile::tempdir().unwrap();
    let mut device = enrolled(folder.path());
    for text in ["one", "two", "three"] {
        append(&mut device, text);
    }
    let mut reader = device.outbox().waiting();
    let batch = reader.next_batch(1 << 20).unwrap();
    let run = batch[0].envelope.identity().run;
    device.outbox().acknowledge(batch[1].position).unwrap();
    assert_eq!(waiting(&device).len(), 1);
    device.outbox().acknowledge(batch[2].position).unwrap();
    device.close().unwrap();
    let device = open(folder.path()).unwrap();
    assert_eq!(waiting(&device), []);
    let previous = device.sealer().previous(&can()).expect("the run before is known");
    assert_eq!((previous.run, previous.last_seq), (run, 3));
}

#[test]
fn a_second_process_is_told_that_the_device_is_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let _first = enrolled(folder.path());
    let refused = open(folder.path()).unwrap_err();
    assert!(matches!(refused, OpenError::Keys(KeysError::State(StateError::Locked { .. }))), "{refused}");
}

#[test]
fn a_device_that_was_never_enrolled_or_has_no_key_says_so_and_uses_no_number() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(open(folder.path()), Err(OpenError::Keys(KeysError::NotEnrolled))));
    let trust = trust();
    drop(Device::enroll(folder.path(), &trust.authority, &trust.site, &trust.root).unwrap());
    let mut device = open(folder.path()).unwrap();
    let refused = device.append(&can(), &Content::batch(), b"x").unwrap_err();
    assert!(matches!(refused, AppendRefused::Seal(SealError::Key(TrustError::NoKey))), "{refused}");
    device.sealer_mut().keys_mut().apply(&trust.bundle).unwrap();
    assert_eq!(device.sealer().keys().status(), Status::Fresh);
    assert_eq!(append(&mut device, "x"), 1);
}

#[test]
fn who_asks_for_keys_beside_an_open_device_moves_nothing_under_it() {
    let folder = tempfile::tempdir().unwrap();
    let trust = trust();
    drop(Device::enroll(folder.path(), &trust.authority, &trust.site, &trust.root).unwrap());
    let device = open(folder.path()).unwrap();
    let mut beside = Device::open_keys(folder.path(), &trust.site, DeviceClock::start()).unwrap();
    let refused = beside.apply(&trust.bundle).unwrap_err();
    assert!(matches!(refused, KeysError::State(StateError::Locked { .. })), "{refused}");
    assert_eq!(beside.verified_key().err(), Some(TrustError::NoKey));
    drop(device);
    beside.apply(&trust.bundle).unwrap();
    assert!(open(folder.path()).is_err(), "and it is the one that writes now");
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

#[test]
fn an_envelope_over_the_inline_limit_is_refused_before_it_is_sealed() {
    let folder = tempfile::tempdir().unwrap();
    let mut device = enrolled(folder.path());
    let refused = device.append(&can(), &Content::batch(), &vec![0; 1 << 20]).unwrap_err();
    assert!(matches!(refused, AppendRefused::TooLarge { limit: INLINE_LIMIT_BYTES, .. }), "{refused}");
    assert_eq!(append(&mut device, "small"), 1);
}

#[test]
fn many_records_are_one_session_and_a_full_outbox_leaves_no_hole() {
    let folder = tempfile::tempdir().unwrap();
    let mut device = enrolled(folder.path());
    let mut builder = BatchBuilder::new(BatchLimits::default());
    let mut last = 0;
    let refused = loop {
        while builder.push(0, "", Bytes::from(vec![7; 100])).is_ok() {}
        let plaintext = builder.finish(None, &[]);
        match device.append(&can(), &Content::batch(), &plaintext) {
            Ok(stored) => {
                last = stored.identity.seq.get();
                stored.wait().unwrap();
            }
            Err(AppendRefused::Outbox(refused)) => break refused,
            Err(other) => panic!("{other}"),
        }
    };
    assert!(
        matches!(refused, pithead_spool::AppendError::Full { .. }) && refused.is_retryable(),
        "{refused}"
    );
    assert_eq!(device.sealer().sessions_started(), 1);
    let waiting_before = waiting(&device);
    assert_eq!(waiting_before.len() as u64, last);
    let first_batch = device.outbox().waiting().next_batch(32 << 20).unwrap();
    device.outbox().acknowledge(first_batch.last().unwrap().position).unwrap();
    device.outbox().room(1 << 20).wait();
    assert_eq!(append(&mut device, "room again"), last + 1);
}

fn claim_of(envelope: &Bytes) -> Option<SignatureClaim> {
    Profile::of(check(envelope.clone()).unwrap().header()).unwrap().signature().cloned()
}

#[test]
fn with_an_identity_key_every_session_is_signed_and_without_one_none() {
    let folder = tempfile::tempdir().unwrap();
    let mut device = enrolled(folder.path());
    append(&mut device, "nobody signs this");
    assert_eq!((device.sealer().signing_kid(), device.sealer().sessions_started()), (None, 1));
    let key = DeviceSigningKey::generate(&mut KernelEntropy).unwrap();
    let (kid, shown) = (key.kid(), format!("{key:?}"));
    assert!(shown.starts_with("DeviceSigningKey { kid: ") && shown.ends_with(", .. }"), "{shown}");
    device.sealer_mut().sign_with(key);
    append(&mut device, "signed");
    append(&mut device, "by the same signature");
    assert_eq!((device.sealer().signing_kid(), device.sealer().sessions_started()), (Some(kid), 2));
    let sealed = waiting(&device);
    let claims: Vec<_> = sealed.iter().map(|(_, envelope)| claim_of(envelope)).collect();
    assert_eq!(claims[0], None);
    let first = claims[1].as_ref().unwrap();
    assert_eq!(first.kid, kid);
    assert_eq!(claims[2].as_ref(), Some(first), "once for each session, not for each message");
    let mut file = Vec::new();
    let name = StreamName::new("files").unwrap();
    device.sealer_mut().seal_stream(&name, &Content::batch(), &mut &b"large"[..], &mut file).unwrap();
    let of_file = claim_of(&file.into()).unwrap();
    assert_eq!((of_file.kid, of_file.run), (kid, first.run));
    assert_ne!(of_file.sid, first.sid);
}

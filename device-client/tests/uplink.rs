//! The uplink against a real port: hop's own acceptor and receiving half, over TLS on loopback. Only what stands behind
//! the receiver is scripted.

#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    collections::{HashMap, VecDeque},
    fs, future,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use pithead_device_client::{
    clock::DeviceClock,
    device::Device,
    sealer::Content,
    uplink::{DeliverError, Gateways, Progress, Receipt, RefusedArea, RefusedError, SubmitError, Uplink},
};
use pithead_hop::{
    accept::{AcceptHandle, Acceptor, Limits},
    backoff::Policy,
    connect::{ConnectOptions, Endpoint},
    identity::Peer,
    ingest::{
        Admitted, IngestLimits, IngestServer, Intake, KnownKeys, Outcome, Pending, Standing,
        intake::Durability,
    },
    program::units::ByteSize,
    status::Refusal,
    tls::{CrlExpiry, Pem, ServerTls, SiteTrust},
};
use pithead_proto::{errors::v1::ErrorReason, keys::v1::TrustVersion};
use pithead_sealing::{
    names::{DeviceId, Identity, Site, StreamName},
    trust::{Bundle, KeyArn},
};
use pithead_spool::{Options, Position};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use tokio::{sync::watch, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

/// Longer than anything here may take, so that a hang is a failure with a name.
const LONG: Duration = Duration::from_secs(30);
const DEVICE: &str = "truck-7";

/// What the gateway does with an envelope that it has not stored before.
#[derive(Clone)]
enum Act {
    /// Keeps it, and the answer is never given.
    Silence,
    Refuse(Refusal),
    Conflict {
        kept: bool,
    },
}

#[derive(Default)]
struct Script {
    /// By the record's number on its line, used once; what is not named is stored.
    acts: HashMap<u64, Act>,
    /// Answers of `ready`, oldest first, and when they were given.
    not_ready: VecDeque<Refusal>,
    asked: Vec<Instant>,
    offered: Vec<(Identity, Bytes)>,
    stored: HashMap<Identity, Bytes>,
}

/// A gateway whose mind the test makes up.
#[derive(Default)]
struct Gate {
    script: Mutex<Script>,
    offered: watch::Sender<usize>,
}

impl Gate {
    fn script<T>(&self, what: impl FnOnce(&mut Script) -> T) -> T {
        what(&mut self.script.lock().unwrap())
    }

    fn on(&self, seq: u64, act: Act) {
        self.script(|script| script.acts.insert(seq, act));
    }

    async fn offered(&self, count: usize) {
        let mut offered = self.offered.subscribe();
        timeout(LONG, offered.wait_for(|offered| *offered >= count)).await.expect("offered in time").unwrap();
    }

    fn all_offered(&self) -> Vec<(Identity, Bytes)> {
        self.script(|script| script.offered.clone())
    }

    fn stored(&self) -> Vec<u64> {
        let mut seqs: Vec<_> =
            self.script(|script| script.stored.keys().map(|identity| identity.seq.get()).collect());
        seqs.sort_unstable();
        seqs
    }
}

impl KnownKeys for Gate {
    fn standing(&self, _: &KeyArn, _: &Identity) -> Standing {
        Standing::Active
    }
}

impl Intake for Gate {
    fn keys(&self) -> &dyn KnownKeys {
        self
    }

    fn trust(&self, _: &Peer) -> Option<TrustVersion> {
        Some(TrustVersion { epoch: 1, sequence: 9 })
    }

    fn durability(&self) -> Durability {
        Durability::Disk
    }

    fn ready(&self, _: &Peer) -> Result<(), Refusal> {
        self.script(|script| {
            script.asked.push(Instant::now());
            script.not_ready.pop_front().map_or(Ok(()), Err)
        })
    }

    async fn offer(&self, _: &Peer, admitted: Admitted) -> Result<Pending, Refusal> {
        let (identity, bytes) = (admitted.identity().clone(), admitted.bytes().clone());
        let answer: Result<Pending, Refusal> = self.script(|script| {
            script.offered.push((identity.clone(), bytes.clone()));
            if let Some(first) = script.stored.get(&identity) {
                assert_eq!(*first, bytes, "what comes again is the same bytes");
                return Ok(Box::pin(future::ready(Ok(Outcome::Duplicate { unverified: false }))) as Pending);
            }
            match script.acts.remove(&identity.seq.get()) {
                Some(Act::Refuse(refusal)) => Err(refusal),
                Some(Act::Conflict { kept }) => Ok(Box::pin(future::ready(Ok(Outcome::Conflict { kept })))),
                Some(Act::Silence) => {
                    script.stored.insert(identity, bytes);
                    Ok(Box::pin(future::pending()))
                }
                None => {
                    script.stored.insert(identity, bytes);
                    Ok(Box::pin(future::ready(Ok(Outcome::Stored))))
                }
            }
        });
        self.offered.send_modify(|offered| *offered += 1);
        answer
    }
}

struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> Pem {
        Pem::new("ca.pem", self.0.pem())
    }

    fn issue(&self, name: SanType) -> (Pem, Pem) {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![name];
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2100, 1, 1);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (Pem::new("leaf.pem", certificate.pem()), Pem::new("leaf.key", key.serialize_pem()))
    }
}

/// A device with an outbox, and one gateway.
struct World {
    _folder: tempfile::TempDir,
    device: Device,
    site: Site,
    ca: Ca,
    gate: Arc<Gate>,
    address: SocketAddr,
    port: AcceptHandle,
    stop: CancellationToken,
    area: RefusedArea,
    progress: watch::Sender<Progress>,
}

impl World {
    async fn new() -> Self {
        Self::with(IngestLimits::default()).await
    }

    async fn with(limits: IngestLimits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (device, site) = enrolled(folder.path().join("device"));
        let ca = Ca::new("site");
        let (certificate, key) = ca.issue(SanType::IpAddress("127.0.0.1".parse().unwrap()));
        let sites = vec![SiteTrust { site: site.clone(), ca: ca.pem(), crls: Vec::new() }];
        let tls = ServerTls { certificate, key, sites, crl_expiry: CrlExpiry::UseStale };
        let acceptor =
            Acceptor::bind("127.0.0.1:0".parse().unwrap(), tls.build().unwrap(), Limits::default())
                .await
                .unwrap();
        let (gate, stop) = (Arc::<Gate>::default(), CancellationToken::new());
        let service = IngestServer::new(Arc::clone(&gate), limits, stop.clone()).into_service();
        let (address, port) = (acceptor.local_addr(), acceptor.handle());
        tokio::spawn(acceptor.serve(Routes::new(service), stop.clone()));
        let area = RefusedArea::new(folder.path().join("refused"));
        let progress = watch::Sender::default();
        Self { _folder: folder, device, site, ca, gate, address, port, stop, area, progress }
    }

    fn uplink(&self) -> Uplink {
        self.uplink_believing(&self.ca)
    }

    fn uplink_believing(&self, ca: &Ca) -> Uplink {
        let name = format!("spiffe://{}/device/{DEVICE}", self.site);
        let gateways = Gateways {
            endpoints: vec![Endpoint::from(self.address)],
            server_name: None,
            ca: ca.pem(),
            identity: Some(self.ca.issue(SanType::URI(name.as_str().try_into().unwrap()))),
            options: ConnectOptions { connect_timeout: LONG, ..ConnectOptions::default() },
            retry: Policy { first: Duration::from_millis(5), max: Duration::from_millis(50) },
        };
        Uplink::new(gateways, self.device.sealer().keys()).unwrap()
    }

    fn append(&mut self, text: &[u8]) -> Identity {
        let stream = StreamName::new("can").unwrap();
        let stored = self.device.append(&stream, &Content::batch(), text).unwrap();
        let identity = stored.identity.clone();
        stored.wait().unwrap();
        identity
    }

    fn deliver(&self) -> JoinHandle<Result<(), DeliverError>> {
        self.deliver_by(self.uplink())
    }

    fn deliver_by(&self, uplink: Uplink) -> JoinHandle<Result<(), DeliverError>> {
        let (outbox, area) = (self.device.outbox().clone(), self.area.clone());
        let (progress, stop) = (self.progress.clone(), self.stop.clone());
        tokio::spawn(async move { uplink.deliver(&outbox, &area, &progress, &stop).await })
    }

    async fn until(&self, what: &str, is: impl Fn(&Progress) -> bool) -> Progress {
        let mut progress = self.progress.subscribe();
        match timeout(LONG, progress.wait_for(|progress| is(progress))).await {
            Ok(reached) => reached.unwrap().clone(),
            Err(_) => panic!("never {what}: {:?}", self.progress.borrow()),
        }
    }

    async fn settled(&self) -> Progress {
        let end = self.device.outbox().end();
        self.until("settled", |progress| progress.settled >= end).await
    }

    fn waiting(&self) -> Vec<u64> {
        let mut reader = self.device.outbox().waiting();
        let mut all = Vec::new();
        loop {
            let batch = reader.next_batch(1 << 20).unwrap();
            if batch.is_empty() {
                return all;
            }
            all.extend(batch.iter().map(|waiting| waiting.envelope.identity().seq.get()));
        }
    }

    fn in_the_area(&self, ending: &str) -> Vec<PathBuf> {
        let files = fs::read_dir(self.area.folder()).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|found| found == ending)).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Root, statement and key of the first conformance case: real signatures, made by another implementation.
fn enrolled(folder: PathBuf) -> (Device, Site) {
    let cases: serde_json::Value =
        serde_json::from_str(include_str!("../../sealing/tests/vectors/trust.json")).unwrap();
    let case = cases.as_array().unwrap().iter().find(|case| case["name"] == "first-statement").unwrap();
    let bytes = |value: &serde_json::Value| hex::decode(value.as_str().unwrap()).unwrap();
    let site = Site::new(case["device"]["site"].as_str().unwrap()).unwrap();
    let bundle = Bundle {
        roots: vec![],
        statement: Some(bytes(&case["steps"][0]["stmt"]).into()),
        spkis: vec![bytes(&case["steps"][0]["spki"][0]).into()],
    };
    let authority = case["device"]["authority"].as_str().unwrap();
    let mut keys = Device::enroll(&folder, authority, &site, &bytes(&case["device"]["root"])).unwrap();
    keys.apply(&bundle).unwrap();
    drop(keys);
    let id = DeviceId::new(DEVICE).unwrap();
    (Device::open(&folder, &site, id, Options::outbox(), DeviceClock::start()).unwrap(), site)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_delivered_once_and_so_is_what_comes_later() {
    let mut world = World::new().await;
    for _ in 0..3 {
        world.append(b"before");
    }
    let delivery = world.deliver();
    world.settled().await;
    world.append(b"later");
    let progress = world.settled().await;
    assert_eq!((progress.stored, progress.duplicates, progress.refused), (4, 0, 0));
    assert_eq!((progress.connected, progress.trouble.clone(), progress.trust), (true, None, Some((1, 9))));
    assert_eq!(world.gate.all_offered().len(), 4, "each once");
    assert_eq!((world.gate.stored(), world.waiting()), (vec![1, 2, 3, 4], vec![]));
    world.stop.cancel();
    timeout(LONG, delivery).await.expect("stops").unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_cut_in_mid_window_brings_the_same_bytes_again_and_only_those_without_an_answer() {
    let mut world = World::new().await;
    for _ in 0..2 {
        world.append(b"answered");
    }
    let _delivery = world.deliver();
    world.settled().await;
    // On the gateway's disk, and the answer is lost with the connection.
    for seq in 3..=5 {
        world.gate.on(seq, Act::Silence);
        world.append(b"unanswered");
    }
    world.gate.offered(5).await;
    assert_eq!(world.waiting(), [3, 4, 5], "nothing is forgotten without an answer");
    let cut = world.port.cut(|_| true);
    assert_eq!(cut, 1);
    let progress = world.settled().await;
    assert_eq!((progress.stored, progress.duplicates), (2, 3));
    let offered = world.gate.all_offered();
    let seqs: Vec<_> = offered.iter().map(|(identity, _)| identity.seq.get()).collect();
    assert_eq!(seqs, [1, 2, 3, 4, 5, 3, 4, 5]);
    assert_eq!(offered[2..5], offered[5..8], "the same bytes");
    assert!(world.waiting().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_gateway_is_left_alone_for_as_long_as_it_asks() {
    let mut world = World::new().await;
    let wait = Duration::from_millis(400);
    world.gate.script(|script| {
        let full = Refusal::new(ErrorReason::SpoolFull, "no room").retry_after(wait);
        script.not_ready.push_back(full);
    });
    world.append(b"x");
    let _delivery = world.deliver();
    let told = world.until("in trouble", |progress| progress.trouble.is_some()).await;
    let trouble = told.trouble.unwrap();
    assert_eq!((trouble.reason, trouble.retryable), (Some(ErrorReason::SpoolFull), true), "{trouble:?}");
    let progress = world.settled().await;
    assert_eq!((progress.stored, progress.trouble), (1, None));
    let asked = world.gate.script(|script| script.asked.clone());
    assert!(asked[1] - asked[0] >= wait, "asked again after {:?}", asked[1] - asked[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_gateway_will_never_take_is_kept_with_its_reason_and_the_queue_goes_on() {
    let mut world = World::new().await;
    world.gate.on(2, Act::Refuse(Refusal::new(ErrorReason::SeqJump, "too far beyond the line's end")));
    for _ in 0..3 {
        world.append(b"x");
    }
    let _delivery = world.deliver();
    let progress = world.settled().await;
    assert_eq!((progress.stored, progress.refused), (2, 1));
    assert_eq!((world.gate.stored(), world.waiting()), (vec![1, 3], vec![]));
    let refused = world.gate.all_offered().into_iter().find(|(identity, _)| identity.seq.get() == 2).unwrap();
    let kept = world.in_the_area("envelope");
    assert_eq!(kept.len(), 1);
    assert_eq!(fs::read(&kept[0]).unwrap(), refused.1, "the sealed bytes");
    let why: serde_json::Value =
        serde_json::from_slice(&fs::read(&world.in_the_area("json")[0]).unwrap()).unwrap();
    assert_eq!(why["identity"], refused.0.to_string());
    assert_eq!(
        (why["reason"].as_str(), why["detail"].as_str()),
        (Some("SEQ_JUMP"), Some("too far beyond the line's end"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_envelope_larger_than_this_gateway_takes_is_kept_aside_and_counts_as_settled() {
    let limits = IngestLimits { inline: ByteSize::kib(4), ..IngestLimits::default() };
    let mut world = World::with(limits).await;
    world.append(b"small");
    world.append(&[7; 8 << 10]);
    let _delivery = world.deliver();
    let progress = world.settled().await;
    assert_eq!((progress.stored, progress.refused), (1, 1));
    assert_eq!((world.gate.stored(), world.waiting()), (vec![1], vec![]));
    assert_eq!(world.in_the_area("envelope").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_asks_for_a_new_run_and_is_kept_here_if_the_gateway_does_not_keep_it() {
    let mut world = World::new().await;
    world.gate.on(1, Act::Conflict { kept: true });
    world.gate.on(2, Act::Conflict { kept: false });
    let old = world.append(b"one");
    world.append(b"two");
    let _delivery = world.deliver();
    let progress = world.settled().await;
    assert_eq!((progress.conflicts, progress.refused), (1, 1));
    let stream = old.stream.clone();
    assert!(progress.need_new_run.contains(&stream), "{progress:?}");
    assert_eq!(world.in_the_area("envelope").len(), 1);
    world.device.sealer_mut().begin_run(&stream).unwrap();
    let new = world.append(b"three");
    assert_ne!(new.run, old.run);
    assert_eq!(new.seq.get(), 1);
    assert_eq!(world.settled().await.stored, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_refused_area_stops_delivery_and_nothing_is_forgotten() {
    let mut world = World::new().await;
    let refusal = || Act::Refuse(Refusal::new(ErrorReason::SeqJump, "never"));
    world.gate.on(2, refusal());
    for _ in 0..3 {
        world.append(b"x");
    }
    fs::create_dir(world.area.folder()).unwrap();
    for number in 0..1_000 {
        fs::write(world.area.folder().join(format!("older-{number}.envelope")), b"").unwrap();
    }
    let ended = timeout(LONG, world.deliver()).await.expect("it stops").unwrap().unwrap_err();
    let DeliverError::Refused(RefusedError::Full { envelopes: 1_000, .. }) = &ended else {
        panic!("{ended}");
    };
    assert!(ended.to_string().contains("move the files away"), "{ended}");
    assert!(!world.progress.borrow().connected);
    assert!(world.waiting().ends_with(&[2, 3]), "{:?}", world.waiting());
    // Somebody has looked, and it goes on.
    fs::remove_dir_all(world.area.folder()).unwrap();
    world.gate.on(2, refusal());
    let _delivery = world.deliver();
    world.settled().await;
    assert_eq!((world.gate.stored(), world.waiting()), (vec![1, 3], vec![]));
    assert_eq!(world.in_the_area("envelope").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_of_another_ca_is_a_trouble_that_no_retry_cures_and_gets_nothing() {
    let mut world = World::new().await;
    world.append(b"x");
    let uplink = world.uplink_believing(&Ca::new("another"));
    let _delivery = world.deliver_by(uplink.clone());
    let progress = world.until("in trouble", |progress| progress.trouble.is_some()).await;
    let trouble = progress.trouble.unwrap();
    assert_eq!((trouble.reason, trouble.retryable), (Some(ErrorReason::PeerUntrusted), false), "{trouble:?}");
    assert_eq!((progress.settled, world.waiting()), (Position(0), vec![1]));
    assert!(world.gate.all_offered().is_empty());
    let envelope = world.device.outbox().waiting().next_batch(1 << 20).unwrap().remove(0).envelope;
    let refused = uplink.submit(&envelope).await.unwrap_err();
    assert!(matches!(&refused, SubmitError::Connect(error) if !error.is_retryable()), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_envelope_is_submitted_for_a_receipt_and_the_same_bytes_are_a_duplicate() {
    let mut world = World::new().await;
    let stream = StreamName::new("alarms").unwrap();
    let envelope = world.device.sealer_mut().seal(&stream, &Content::batch(), b"fire").unwrap();
    let uplink = world.uplink();
    assert_eq!(uplink.submit(&envelope).await.unwrap(), Receipt::Stored);
    assert_eq!(uplink.submit(&envelope).await.unwrap(), Receipt::Duplicate { unverified: false });
    assert_eq!(world.gate.stored(), [1]);
}

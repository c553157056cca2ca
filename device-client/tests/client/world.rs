//! A client, and gateways whose minds the test makes up: hop's own acceptor and receiving half, over TLS on loopback. Only
//! what stands behind the receiver is scripted.

use std::{
    collections::{HashMap, VecDeque},
    fs, future,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use pithead_device_client::{
    client::{Client, ClientBuilder, Status, StreamOptions, StreamStatus, TrustAnchor},
    uplink::Gateways,
};
use pithead_hop::{
    accept::{AcceptHandle, Acceptor, Limits},
    backoff::Policy,
    connect::{ConnectOptions, Endpoint},
    identity::Peer,
    ingest::{
        Admitted, AdmittedHeader, HelloLine, IngestLimits, IngestServer, Intake, KnownKeys, Lines, Outcome,
        Pending, ShortHash, Standing, UploadLimits, UploadStore, Verdict, WholeUpload, intake::Durability,
    },
    program::clock::since_boot,
    status::Refusal,
    tls::{CrlExpiry, Pem, ServerTls, SiteTrust},
};
use pithead_proto::errors::v1::ErrorReason;
use pithead_proto::keys::v1::TrustVersion;
use pithead_sealing::{
    names::{DeviceId, Identity, Site, StreamName},
    trust::{Bundle, KeyArn},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Barrier, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

/// Longer than anything here may take, so that a hang is a failure with a name.
pub(crate) const LONG: Duration = Duration::from_secs(30);
const DEVICE: &str = "truck-7";

/// What the gateway does with an envelope that it has not stored before.
#[derive(Clone)]
pub(crate) enum Act {
    /// Keeps it, and the answer is never given.
    Silence,
    Refuse(Refusal),
    Conflict {
        kept: bool,
    },
    /// Somebody else's bytes were there before it, under its number; and the answer is never given.
    Stolen,
}

#[derive(Default)]
pub(crate) struct Script {
    /// By the envelope's number on its line, used once; what is not named is stored.
    acts: HashMap<u64, Act>,
    /// What the Welcome says of every line, unless there are `lines`.
    pub(crate) high_water: u64,
    /// Lines as a gateway keeps them.
    pub(crate) lines: Option<Lines<()>>,
    /// Answers of `ready`, oldest first, and when they were given.
    pub(crate) not_ready: VecDeque<Refusal>,
    pub(crate) asked: Vec<Instant>,
    pub(crate) offered: Vec<(Identity, Bytes)>,
    pub(crate) stored: HashMap<Identity, Bytes>,
    /// What whoever opens an upload of a stream is told, for as long as it stands here.
    pub(crate) doors: HashMap<&'static str, Refusal>,
    /// Large files of which every byte is here, each time that it was decided what becomes of one.
    pub(crate) whole: Vec<Identity>,
    /// Large files are decided on when so many of them are whole.
    pub(crate) together: Option<Arc<Barrier>>,
}

/// A gateway whose mind the test makes up.
#[derive(Default)]
pub(crate) struct Gate {
    script: Mutex<Script>,
    offered: watch::Sender<usize>,
    uploads: Option<UploadStore>,
}

impl Gate {
    pub(crate) fn script<T>(&self, what: impl FnOnce(&mut Script) -> T) -> T {
        what(&mut self.script.lock().unwrap())
    }

    pub(crate) fn on(&self, seq: u64, act: Act) {
        self.script(|script| script.acts.insert(seq, act));
    }

    pub(crate) async fn offered(&self, count: usize) {
        let mut offered = self.offered.subscribe();
        timeout(LONG, offered.wait_for(|offered| *offered >= count)).await.expect("offered in time").unwrap();
    }

    pub(crate) fn all_offered(&self) -> Vec<(Identity, Bytes)> {
        self.script(|script| script.offered.clone())
    }

    pub(crate) fn stored(&self) -> Vec<u64> {
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
    type Call = ();

    fn keys(&self) -> &dyn KnownKeys {
        self
    }

    fn trust(&self, _: &Peer) -> Option<TrustVersion> {
        Some(TrustVersion { epoch: 1, sequence: 9 })
    }

    fn durability(&self) -> Durability {
        Durability::Disk
    }

    fn hello(&self, _: &Peer, lines: &[HelloLine]) -> Vec<u64> {
        self.script(|script| {
            let Script { lines: known, high_water, .. } = script;
            let mut say = |hello: &HelloLine| match known {
                Some(known) => known.hello(&hello.line, hello.first_unacked, Duration::ZERO),
                None => *high_water,
            };
            lines.iter().map(&mut say).collect()
        })
    }

    fn ready(&self, _: &Peer) -> Result<(), Refusal> {
        self.script(|script| {
            script.asked.push(Instant::now());
            script.not_ready.pop_front().map_or(Ok(()), Err)
        })
    }

    async fn offer(&self, _: &Peer, (): &(), admitted: Admitted) -> Result<Pending, Refusal> {
        let (identity, bytes) = (admitted.identity().clone(), admitted.bytes().clone());
        let answer: Result<Pending, Refusal> = self.script(|script| {
            script.offered.push((identity.clone(), bytes.clone()));
            if let Some(first) = script.stored.get(&identity) {
                assert_eq!(*first, bytes, "what comes again is the same bytes");
                return Ok(Box::pin(future::ready(Ok(Outcome::Duplicate { unverified: false }))) as Pending);
            }
            let act = script.acts.remove(&identity.seq.get());
            if let Some(lines) = &mut script.lines {
                let (line, ours) = (identity.line(), ShortHash::from(&admitted.sha256));
                let mut offer = |hash| {
                    let verdict = lines.offer(&line, identity.seq, hash, Duration::ZERO, || ()).unwrap();
                    lines.stored(&line, identity.seq);
                    verdict
                };
                if matches!(act, Some(Act::Stolen)) {
                    assert_eq!(offer(ShortHash([7; 8])), Verdict::New(()));
                }
                if offer(ours) == Verdict::Conflict && act.is_none() {
                    return Ok(Box::pin(future::ready(Ok(Outcome::Conflict { kept: false }))) as Pending);
                }
            }
            match act {
                Some(Act::Refuse(refusal)) => Err(refusal),
                Some(Act::Stolen) => Ok(Box::pin(future::pending())),
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

    fn uploads(&self) -> Result<&UploadStore, Refusal> {
        let none = || Refusal::new(ErrorReason::UploadsNotSupported, "inline envelopes only");
        self.uploads.as_ref().ok_or_else(none)
    }

    fn judge(&self, _: &Peer, offered: &AdmittedHeader) -> Result<Option<Outcome>, Refusal> {
        let stream = offered.profile.identity().stream.as_str();
        self.script(|script| script.doors.get(stream).cloned().map_or(Ok(None), Err))
    }

    async fn complete(&self, _: &Peer, whole: WholeUpload) -> Result<Outcome, Refusal> {
        let (act, together) = self.script(|script| {
            script.whole.push(whole.identity.clone());
            (script.acts.remove(&whole.identity.seq.get()), script.together.clone())
        });
        if let Some(together) = together {
            together.wait().await;
        }
        let silent = matches!(act, Some(Act::Silence));
        let outcome = match act {
            Some(Act::Refuse(refusal)) => Err(refusal),
            Some(Act::Conflict { kept }) => Ok(Outcome::Conflict { kept }),
            Some(Act::Silence | Act::Stolen) | None => {
                self.uploads().unwrap().taken(&whole.identity);
                Ok(Outcome::Stored)
            }
        };
        self.offered.send_modify(|offered| *offered += 1);
        if silent {
            return future::pending().await;
        }
        outcome
    }
}

pub(crate) struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn pem(&self) -> Pem {
        Pem::new("ca.pem", self.0.pem())
    }

    pub(crate) fn issue(&self, name: SanType) -> (Pem, Pem) {
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

/// A gateway on a port of its own.
pub(crate) struct Gateway {
    pub(crate) gate: Arc<Gate>,
    /// Where it gathers large files.
    pub(crate) uploads: tempfile::TempDir,
    pub(crate) address: SocketAddr,
    pub(crate) port: AcceptHandle,
    pub(crate) stop: CancellationToken,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The radio between a device and a gateway. Connections wait while it is off.
pub(crate) struct Link {
    pub(crate) address: SocketAddr,
    on: Arc<watch::Sender<bool>>,
    /// Bytes from the device.
    carried: Arc<AtomicU64>,
}

impl Link {
    /// A link that is off.
    pub(crate) async fn to(gateway: SocketAddr) -> Self {
        Self::cut_after(gateway, u64::MAX).await
    }

    /// A link that is off, and goes off again once, when so many bytes have come from the device.
    pub(crate) async fn cut_after(gateway: SocketAddr, bytes: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (on, carried) = (Arc::new(watch::Sender::new(false)), Arc::<AtomicU64>::default());
        let (switch, counted) = (Arc::clone(&on), Arc::clone(&carried));
        tokio::spawn(async move {
            let mut bytes = bytes;
            while let Ok((device, _)) = listener.accept().await {
                switch.subscribe().wait_for(|on| *on).await.unwrap();
                let gateway = TcpStream::connect(gateway).await.unwrap();
                // One connection at a time: a device has no more to a gateway.
                if carry(device, gateway, bytes, &counted).await {
                    switch.send_replace(false);
                    bytes = u64::MAX;
                }
            }
        });
        Self { address, on, carried }
    }

    pub(crate) fn on(&self) {
        self.on.send_replace(true);
    }

    /// Resolves when it has gone off.
    pub(crate) async fn is_off(&self) {
        let mut on = self.on.subscribe();
        timeout(LONG, on.wait_for(|on| !*on)).await.expect("cut in time").unwrap();
    }

    pub(crate) fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }
}

/// Carries both ways until one end is done, or so many bytes have come from the device: then it says so.
async fn carry(mut device: TcpStream, mut gateway: TcpStream, bytes: u64, counted: &AtomicU64) -> bool {
    let (mut from_device, mut to_device) = device.split();
    let (mut from_gateway, mut to_gateway) = gateway.split();
    let up = async {
        let (mut left, mut buffer) = (bytes, vec![0; 16 << 10]);
        while left > 0 {
            let Ok(read @ 1..) = from_device.read(&mut buffer).await else { return false };
            left = left.saturating_sub(read as u64);
            counted.fetch_add(read as u64, Ordering::Relaxed);
            if to_gateway.write_all(&buffer[..read]).await.is_err() {
                return false;
            }
        }
        true
    };
    tokio::select! {
        cut = up => cut,
        _ = tokio::io::copy(&mut from_gateway, &mut to_device) => false,
    }
}

/// A vehicle's folder and the site's CA; gateways come and go.
pub(crate) struct World {
    folder: tempfile::TempDir,
    pub(crate) trust: Trust,
    pub(crate) ca: Ca,
}

impl World {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), trust: trust(), ca: Ca::new("site") }
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.folder.path().join("device")
    }

    pub(crate) fn area(&self) -> PathBuf {
        self.folder().join("refused")
    }

    pub(crate) async fn gateway(&self) -> Gateway {
        self.gateway_with(IngestLimits::default()).await
    }

    pub(crate) async fn gateway_with(&self, limits: IngestLimits) -> Gateway {
        let uploads = tempfile::tempdir().unwrap();
        let store = UploadStore::open(uploads.path(), UploadLimits::default(), since_boot()).unwrap();
        self.serve(limits, Gate { uploads: Some(store), ..Gate::default() }, uploads).await
    }

    /// One that takes no large files.
    pub(crate) async fn gateway_of_small_ones(&self) -> Gateway {
        self.serve(IngestLimits::default(), Gate::default(), tempfile::tempdir().unwrap()).await
    }

    async fn serve(&self, limits: IngestLimits, gate: Gate, uploads: tempfile::TempDir) -> Gateway {
        let (certificate, key) = self.ca.issue(SanType::IpAddress("127.0.0.1".parse().unwrap()));
        let site = self.trust.site.clone();
        let sites = vec![SiteTrust { site, ca: self.ca.pem(), crls: Vec::new() }];
        let tls = ServerTls { certificate, key, sites, crl_expiry: CrlExpiry::UseStale };
        let acceptor =
            Acceptor::bind("127.0.0.1:0".parse().unwrap(), tls.build().unwrap(), Limits::default())
                .await
                .unwrap();
        let (gate, stop) = (Arc::new(gate), CancellationToken::new());
        let service = IngestServer::new(Arc::clone(&gate), limits, stop.clone()).into_service();
        let (address, port) = (acceptor.local_addr(), acceptor.handle());
        tokio::spawn(acceptor.serve(Routes::new(service), stop.clone()));
        Gateway { gate, uploads, address, port, stop }
    }

    /// A port where nobody listens.
    pub(crate) fn nowhere() -> SocketAddr {
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    pub(crate) fn gateways(&self, at: &[SocketAddr], ca: &Ca) -> Gateways {
        let name = format!("spiffe://{}/device/{DEVICE}", self.trust.site);
        let (certificate, key) = self.ca.issue(SanType::URI(name.as_str().try_into().unwrap()));
        Gateways::new(at.iter().copied().map(Endpoint::from).collect(), ca.pem())
            .identity(certificate, key)
            .options(ConnectOptions { connect_timeout: LONG, ..ConnectOptions::default() })
            .retry(Policy { first: Duration::from_millis(5), max: Duration::from_millis(50) })
    }

    /// A client of these gateways that has a key. A heartbeat comes when a test asks for one.
    pub(crate) fn client(&self, at: &[SocketAddr]) -> ClientBuilder {
        self.client_believing(at, &self.ca)
    }

    pub(crate) fn client_believing(&self, at: &[SocketAddr], ca: &Ca) -> ClientBuilder {
        self.client_without_key(at, ca).bundle(self.trust.bundle.clone())
    }

    pub(crate) fn client_without_key(&self, at: &[SocketAddr], ca: &Ca) -> ClientBuilder {
        let Trust { authority, site, root, .. } = &self.trust;
        let anchor = TrustAnchor::new(authority, root.clone());
        let device = DeviceId::new(DEVICE).unwrap();
        Client::builder(self.folder(), site.clone(), device, self.gateways(at, ca), anchor)
            .heartbeat_every(Duration::from_secs(3_600))
    }

    /// The only file of that kind in the refused area.
    pub(crate) fn in_the_area(&self, ending: &str) -> Vec<PathBuf> {
        let files = fs::read_dir(self.area()).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|found| found == ending)).collect()
    }
}

/// A stream of records that is sealed when the test says so.
pub(crate) fn records(name: &str) -> StreamOptions {
    StreamOptions::records(StreamName::new(name).unwrap()).linger(Duration::from_secs(3_600))
}

/// Records, and waits until the envelope of it is on the device's disk.
pub(crate) async fn keep(client: &Client, stream: &str, data: &[u8]) {
    client.stream(stream).unwrap().record(data).unwrap();
    client.sync(LONG).await.unwrap();
}

/// How a stream stands.
pub(crate) fn stream(client: &Client, name: &str) -> StreamStatus {
    client.status().streams[&StreamName::new(name).unwrap()].clone()
}

/// Waits until the client stands so.
pub(crate) async fn until(client: &Client, what: &str, is: impl Fn(&Status) -> bool) -> Status {
    let mut changes = client.changes();
    let reached = async {
        loop {
            let status = client.status();
            if is(&status) {
                return status;
            }
            changes.changed().await;
        }
    };
    match timeout(LONG, reached).await {
        Ok(status) => status,
        Err(_) => panic!("never {what}: {:?}", client.status()),
    }
}

/// Numbers of what was offered, of one stream, in the order in which it came.
pub(crate) fn seqs(offered: &[(Identity, Bytes)], stream: &str) -> Vec<u64> {
    let of = offered.iter().filter(|(identity, _)| identity.stream.as_str() == stream);
    of.map(|(identity, _)| identity.seq.get()).collect()
}

pub(crate) struct Trust {
    pub(crate) authority: String,
    pub(crate) site: Site,
    pub(crate) root: Vec<u8>,
    pub(crate) bundle: Bundle,
}

/// Root, statement and key of the first conformance case: real signatures, made by another implementation.
pub(crate) fn trust() -> Trust {
    let cases: serde_json::Value =
        serde_json::from_str(include_str!("../../../sealing/tests/vectors/trust.json")).unwrap();
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

/// Bytes of all files in a folder, by what they say they take.
pub(crate) fn folder_bytes(folder: &Path) -> u64 {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

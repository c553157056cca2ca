//! A device that seals for real, a gateway's intake over a real spool, and a far end on loopback that can be told to
//! misbehave.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::FutureExt as _;
use pithead_hop::accept::{AcceptHandle, Acceptor, Limits, Stopped};
use pithead_hop::connect::{ConnectOptions, connect};
use pithead_hop::identity::{GatewayName, Peer, PeerId, Role};
use pithead_hop::ingest::intake::Durability;
use pithead_hop::ingest::send::{PlainFile, UploadError, send_upload};
use pithead_hop::ingest::{
    Admitted, AdmittedHeader, Answer, Hop, IngestLimits, IngestServer, Intake, KnownKeys, Outcome, Pending,
    Standing, UploadLimits, UploadStore, WholeUpload, admit,
};
use pithead_hop::status::Refusal;
use pithead_hop::tls::{ClientTls, PassedExpiry, Pem, ServerTls, SiteTrust, SystemClock};
use pithead_hop::trace::span::{self, Ended};
use pithead_hop::trace::{TraceParent, Traced};
use pithead_proto::errors::v1::ErrorReason;
use pithead_proto::keys::v1::TrustVersion;
use pithead_sealing::envelope::LastSession;
use pithead_sealing::envelope::{ContentType, KernelEntropy, Session, SessionClock, SessionContext};
use pithead_sealing::trust::{Clock, Device, KeyArn, KeyStatus, UnixTime};
use pithead_sealing::{DeviceId, Identity, Run, Seq, StreamName};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
};
use rustls::pki_types::ServerName;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::budgets::Budgets;
use super::copies::Copies;
use super::followed::Followed;
use super::idle::Idle;
use super::intake::{Parts, SpoolIntake};
use super::lanes::Lanes;
use super::numbers::Numbers;
use super::relay::Target;
use super::replicated::{self, Replicated};
use super::shares::{self, Shares};
use super::spool::{self, EnvelopeSpool};
use crate::config;
use crate::devices::registry::Registry;
use crate::keys::book::Book;
use crate::keys::history::History;
use crate::keys::service;
use crate::keys::statement_source::Upstream;
use crate::keys::testing::{AUTHORITY, Authority, ISSUED, arn, site};
use crate::metrics::Metrics;

/// Longer than anything here may take, so that a hang is a failure with a name.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// Looks until it is so.
pub(crate) async fn until(what: &str, holds: impl Fn() -> bool) {
    let looking = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LONG, looking).await.unwrap_or_else(|_| panic!("never: {what}"));
}

pub(crate) fn truck() -> Peer {
    let id = PeerId { site: site(), role: Role::Device(DeviceId::new("truck-42").unwrap()) };
    Peer {
        id,
        certificate_sha256: Some([7; 32]),
        assurance: pithead_hop::identity::Assurance::Vouched,
        passed_on_by: None,
    }
}

/// Of an envelope on the line `can`.
pub(crate) fn identity(device: &str, seq: u64) -> Identity {
    Identity {
        site: site(),
        device: DeviceId::new(device).unwrap(),
        stream: StreamName::new("can").unwrap(),
        run: Run::new(7).unwrap(),
        seq: Seq::new(seq).unwrap(),
    }
}

/// Seals numbers of one line.
pub(crate) struct Truck(Session);

impl Truck {
    pub(crate) fn new() -> Self {
        Self::on("can", 7)
    }

    /// The same truck on another line.
    pub(crate) fn on(stream: &str, run: u64) -> Self {
        let mut authority = Authority::new();
        let mut device = Device::provision(AUTHORITY, &site(), &authority.root, Clock::default()).unwrap();
        device.apply(&authority.bundle(&[(&arn(1), KeyStatus::Active)]), Clock::default()).unwrap();
        let key = device.verified_key(Clock::default()).unwrap();
        let (name, stream) = (DeviceId::new("truck-42").unwrap(), StreamName::new(stream).unwrap());
        let content_type = ContentType::new("application/octet-stream").unwrap();
        let context = SessionContext::new(site(), name, stream, content_type);
        let clock = SessionClock { boot: Duration::ZERO, now: UnixTime(ISSUED + 60) };
        let run = Run::new(run).unwrap();
        Self(Session::start(&key, &context, run, None, clock, &mut KernelEntropy).unwrap())
    }

    pub(crate) fn seal(&mut self, seq: u64, plaintext: &[u8]) -> Bytes {
        let seq = Seq::new(seq).unwrap();
        self.0.seal(seq, plaintext, Duration::ZERO, &mut KernelEntropy).unwrap().bytes().clone()
    }
}

/// Shares that nothing here meets.
pub(crate) fn shares() -> Shares {
    let limits =
        shares::Limits { device_bytes: 1 << 40, rate: 1 << 40, burst: 1 << 40, keeps_for_first: false };
    Shares::new(limits, 1 << 40)
}

/// Whether the tests of the envelope path run over the replicated engine, with a broker in memory: `PITHEAD_TEST_ENGINE=replicated`.
pub(crate) fn replicated() -> bool {
    std::env::var_os("PITHEAD_TEST_ENGINE").is_some_and(|engine| engine == "replicated")
}

/// The envelope path of a gateway up to the spool.
pub(crate) struct Door {
    pub(crate) intake: Arc<SpoolIntake>,
    pub(crate) numbers: Numbers,
    pub(crate) shares: Shares,
    pub(crate) spool: EnvelopeSpool,
    pub(crate) uploads: UploadStore,
    /// Over the replicated engine.
    pub(crate) copies: Option<Copies>,
    pub(crate) history: Arc<History>,
    pub(crate) followed: Followed,
    pub(crate) metrics: Metrics,
    /// Spans that have ended: of calls that say their trace.
    pub(crate) ended: Mutex<tokio::sync::mpsc::Receiver<Ended>>,
}

impl Door {
    /// Opens what lies in `folder`, or begins there. The statement in force names key 1 as active.
    pub(crate) fn open(folder: &Path) -> Self {
        Self::open_with(folder, 1 << 20)
    }

    pub(crate) fn open_with(folder: &Path, conflict_bytes: u64) -> Self {
        Self::open_lanes(folder, conflict_bytes, config::Lanes::default())
    }

    pub(crate) fn open_lanes(folder: &Path, conflict_bytes: u64, lanes: config::Lanes) -> Self {
        Self::open_shares(folder, conflict_bytes, lanes, shares())
    }

    pub(crate) fn open_shares(
        folder: &Path,
        conflict_bytes: u64,
        lanes: config::Lanes,
        shares: Shares,
    ) -> Self {
        pithead_hop::program::disk::create_folder(&folder.join("spool")).unwrap();
        let sizes = config::Spool {
            max_size: pithead_hop::program::config::ByteSize::mib(64),
            segment_size: pithead_hop::program::config::ByteSize::mib(8),
            lanes,
            ..config::Spool::default()
        };
        let spool = match replicated() {
            false => spool::open(&folder.join("spool"), &sizes).unwrap().0,
            true => {
                let lanes = Lanes::new(&sizes.lanes.first, &sizes.lanes.third);
                EnvelopeSpool::over_replicated(Replicated::of_folder(folder, sizes.max_size.get()), lanes)
            }
        };
        let door = Self::over(folder, folder, spool, "edge-1", conflict_bytes, shares, Arc::default());
        if let Some(standing) = door.spool.standing()
            && let replicated::Standing::Ours { epoch } = *standing.borrow()
        {
            door.begin(epoch);
        }
        door
    }

    /// As the owner of a term does.
    pub(crate) fn begin(&self, epoch: u64) {
        let waiting = self.numbers.begin().unwrap();
        if let Some(copies) = &self.copies {
            copies.begin(epoch, waiting);
        }
    }

    /// Over a spool that was opened elsewhere. Copies of large envelopes go below `shared`, if it is of the replicated engine.
    pub(crate) fn over(
        folder: &Path,
        shared: &Path,
        spool: EnvelopeSpool,
        name: &str,
        conflict_bytes: u64,
        shares: Shares,
        registry: Arc<ArcSwap<Registry>>,
    ) -> Self {
        pithead_hop::program::disk::create_folder(&folder.join("history")).unwrap();
        let (history, _) = History::open(&folder.join("history")).unwrap();
        let history = Arc::new(history);
        history.keep(&Authority::new().statement(&[(&arn(1), KeyStatus::Active)])).unwrap();
        let idle = Idle::open(&folder.join("idle")).unwrap();
        let uploads =
            UploadStore::open(&folder.join("uploads"), UploadLimits::default(), Duration::ZERO).unwrap();
        let numbers =
            Numbers::open(folder.join("lines"), idle, &spool, conflict_bytes, shares.clone(), &uploads)
                .unwrap();
        let name = GatewayName::new(name).unwrap();
        let (book, metrics) = (Book::default(), Metrics::new());
        let copies = spool.is_replicated().then(|| Copies::below(shared, &uploads, &metrics));
        let (spans, ended, _) = span::queue(0.0);
        let followed = Followed::new(spans);
        let intake = Arc::new(SpoolIntake::start(Parts {
            registry,
            gateway: name,
            history: history.clone(),
            book,
            budgets: Budgets::default(),
            numbers: numbers.clone(),
            shares: shares.clone(),
            spool: spool.clone(),
            uploads: uploads.clone(),
            copies: copies.clone(),
            metrics: metrics.clone(),
            activity: crate::console::activity::Activity::default(),
            followed: followed.clone(),
        }));
        let ended = Mutex::new(ended);
        Self { intake, numbers, shares, spool, uploads, copies, history, followed, metrics, ended }
    }

    pub(crate) async fn offer(&self, envelope: Bytes) -> Result<Pending, Refusal> {
        self.offer_in(envelope, None).await
    }

    /// In a call of this span.
    pub(crate) async fn offer_in(
        &self,
        envelope: Bytes,
        trace: Option<TraceParent>,
    ) -> Result<Pending, Refusal> {
        let admitted = admit(envelope, vec![], &truck(), &*self.intake, 1 << 20, &mut LastSession::default());
        let mut admitted = admitted.map_err(|refused| refused.refusal)?;
        admitted.trace = trace;
        self.intake.offer(&truck(), &(), admitted).await
    }

    pub(crate) async fn take(&self, envelope: Bytes) -> Outcome {
        self.offer(envelope).await.unwrap().await.unwrap()
    }

    /// Has the truck bring a large envelope, over a real connection.
    pub(crate) async fn upload(&self, envelope: &Bytes) -> Answer {
        self.upload_traced(envelope, None).await
    }

    /// The same, by calls of this trace.
    pub(crate) async fn upload_traced(&self, envelope: &Bytes, trace: Option<TraceParent>) -> Answer {
        self.try_upload_traced(envelope, trace).await.unwrap()
    }

    pub(crate) async fn try_upload(&self, envelope: &Bytes) -> Result<Answer, UploadError> {
        self.try_upload_traced(envelope, None).await
    }

    async fn try_upload_traced(
        &self,
        envelope: &Bytes,
        trace: Option<TraceParent>,
    ) -> Result<Answer, UploadError> {
        let served = Served::start(self.intake.clone()).await;
        let target = served.target("spiffe://pit-7/device/truck-42");
        let (tls, options) = (target.tls.borrow().clone(), ConnectOptions::default());
        let connection = connect(&target.endpoint, &target.name, tls, &options).await.unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(envelope).unwrap();
        let source = Arc::new(PlainFile::open(file).unwrap());
        send_upload(Traced::new(connection, trace), source, Vec::new(), None, |_| {}).await
    }
}

/// What the far end has been told to do, and what it got.
#[derive(Debug)]
pub(crate) struct FarEnd {
    pub(crate) got: Mutex<Vec<(Identity, Vec<Hop>)>>,
    pub(crate) poison: Mutex<BTreeSet<u64>>,
    /// While this is false, nothing is answered.
    pub(crate) answers: watch::Sender<bool>,
    /// While this is false, no large envelope is.
    pub(crate) large_answers: watch::Sender<bool>,
    pub(crate) uploads: UploadStore,
    _folder: tempfile::TempDir,
}

impl FarEnd {
    pub(crate) fn seqs(&self) -> Vec<u64> {
        self.got.lock().unwrap().iter().map(|(identity, _)| identity.seq.get()).collect()
    }
}

impl KnownKeys for FarEnd {
    fn standing(&self, _arn: &KeyArn, _identity: &Identity) -> Standing {
        Standing::Active
    }
}

impl Intake for FarEnd {
    type Call = ();

    fn keys(&self) -> &dyn KnownKeys {
        self
    }

    fn trust(&self, _peer: &Peer) -> Option<TrustVersion> {
        None
    }

    fn durability(&self) -> Durability {
        Durability::Applied
    }

    fn ready(&self, _peer: &Peer) -> Result<(), Refusal> {
        Ok(())
    }

    async fn offer(&self, _peer: &Peer, (): &(), admitted: Admitted) -> Result<Pending, Refusal> {
        let identity = admitted.identity().clone();
        if self.poison.lock().unwrap().contains(&identity.seq.get()) {
            return Err(Refusal::new(ErrorReason::SignatureInvalid, "poisoned for a test"));
        }
        let mut got = self.got.lock().unwrap();
        let known = got.iter().any(|(held, _)| *held == identity);
        got.push((identity, admitted.hops));
        drop(got);
        let mut answers = self.answers.subscribe();
        Ok(async move {
            let _ = answers.wait_for(|answers| *answers).await;
            Ok(if known { Outcome::Duplicate { unverified: false } } else { Outcome::Stored })
        }
        .boxed())
    }

    fn uploads(&self) -> Result<&UploadStore, Refusal> {
        Ok(&self.uploads)
    }

    fn judge(&self, _peer: &Peer, offered: &AdmittedHeader) -> Result<Option<Outcome>, Refusal> {
        let identity = offered.profile.identity();
        if self.poison.lock().unwrap().contains(&identity.seq.get()) {
            return Err(Refusal::new(ErrorReason::SignatureInvalid, "poisoned for a test"));
        }
        let known = self.got.lock().unwrap().iter().any(|(held, _)| held == identity);
        Ok(known.then_some(Outcome::Duplicate { unverified: false }))
    }

    async fn complete(&self, _peer: &Peer, whole: WholeUpload) -> Result<Outcome, Refusal> {
        let hops = self.uploads.read(&whole.identity).unwrap().hops().to_vec();
        let _ = self.answers.subscribe().wait_for(|answers| *answers).await;
        let _ = self.large_answers.subscribe().wait_for(|answers| *answers).await;
        self.got.lock().unwrap().push((whole.identity.clone(), hops));
        self.uploads.taken(&whole.identity);
        Ok(Outcome::Stored)
    }
}

/// An intake that is served.
struct Served {
    handle: AcceptHandle,
    book: Book,
    ca: CertifiedIssuer<'static, KeyPair>,
    address: SocketAddr,
    _stop: tokio_util::sync::DropGuard,
    _task: JoinHandle<Stopped>,
}

/// A certificate with these names, and its key.
pub(crate) fn issue(ca: &CertifiedIssuer<'static, KeyPair>, names: Vec<SanType>) -> (Pem, Pem) {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names;
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, ca).unwrap();
    (Pem::new("leaf.pem", certificate.pem()), Pem::new("leaf.key", key.serialize_pem()))
}

impl Served {
    async fn start<I: Intake>(intake: Arc<I>) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let (certificate, key) = issue(&ca, vec![SanType::IpAddress("127.0.0.1".parse().unwrap())]);
        let sites = vec![SiteTrust { site: site(), ca: Pem::new("ca.pem", ca.pem()), crls: vec![] }];
        let tls = ServerTls { certificate, key, sites, crl_expiry: Default::default() }.build().unwrap();
        let acceptor = Acceptor::bind("127.0.0.1:0".parse().unwrap(), tls, Limits::default()).await.unwrap();
        let (address, handle) = (acceptor.local_addr(), acceptor.handle());
        let stop = CancellationToken::new();
        let ingest = IngestServer::new(intake, IngestLimits::default(), stop.clone());
        let book = Book::default();
        let keys = service::serve(AUTHORITY, &site(), &book, stop.clone());
        let routes = Routes::new(ingest.into_service()).add_service(keys.into_service());
        let task = tokio::spawn(acceptor.serve(routes, stop.clone()));
        Self { handle, book, ca, address, _stop: stop.drop_guard(), _task: task }
    }

    /// How somebody of this name reaches it.
    fn target(&self, uri: &str) -> Target {
        let identity = Some(issue(&self.ca, vec![SanType::URI(uri.try_into().unwrap())]));
        let ca = Pem::new("ca.pem", self.ca.pem());
        let tls =
            ClientTls { ca, identity, clock: Arc::new(SystemClock), passed_expiry: PassedExpiry::Refuse };
        Target {
            endpoint: self.address.into(),
            name: ServerName::try_from("127.0.0.1").unwrap(),
            tls: watch::Sender::new(tls.build().unwrap()).subscribe(),
            window_bytes: 1 << 20,
            answer_timeout: LONG,
        }
    }
}

/// A far end that is served.
pub(crate) struct Cloud {
    pub(crate) far_end: Arc<FarEnd>,
    pub(crate) handle: AcceptHandle,
    /// What its `KeyService` serves.
    pub(crate) book: Book,
    served: Served,
}

impl Cloud {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let uploads =
            UploadStore::open(&folder.path().join("uploads"), UploadLimits::default(), Duration::ZERO);
        let far_end = Arc::new(FarEnd {
            got: Mutex::default(),
            poison: Mutex::default(),
            answers: watch::Sender::new(true),
            large_answers: watch::Sender::new(true),
            uploads: uploads.unwrap(),
            _folder: folder,
        });
        let served = Served::start(far_end.clone()).await;
        Self { far_end, handle: served.handle.clone(), book: served.book.clone(), served }
    }

    pub(crate) fn upstream(&self) -> Upstream {
        let Target { endpoint, name, tls, .. } = self.target();
        Upstream { endpoint, name, tls, authority: AUTHORITY.into(), site: site() }
    }

    pub(crate) fn target(&self) -> Target {
        self.served.target("spiffe://pit-7/gateway/edge-1")
    }
}

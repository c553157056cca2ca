//! Real envelopes, a receiver whose disk the test commands, and a loopback between.
#![allow(unreachable_pub)]

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::Shared;
use hyper_util::rt::TokioIo;
use pithead_hop::identity::{Assurance, Peer, PeerId};
use pithead_hop::ingest::intake::Durability;
use pithead_hop::ingest::{
    Admitted, AdmittedHeader, DeclaredGap, HelloLine, IngestLimits, IngestServer, Intake, KnownKeys, Lines,
    Outcome, Pending, ShortHash, Standing, Unseen, UploadLimits, UploadStore, Verdict, WholeUpload,
};
use pithead_hop::program::clock::since_boot;
use pithead_hop::status::Refusal;
use pithead_proto::errors::v1::ErrorReason;
use pithead_proto::keys::v1::TrustVersion;
use pithead_sealing::envelope::{
    ContentType, KernelEntropy, SealedEnvelope, Session, SessionClock, SessionContext,
};
use pithead_sealing::trust::authoring::{Draft, SigningKey};
use pithead_sealing::trust::root::{Policy, Role, RootFields, RootKey};
use pithead_sealing::trust::statement::{KeyStatus, SUITE_RSA_OAEP_SHA256, StatementFields, StatementKey};
use pithead_sealing::trust::{Bundle, Clock, Device, KeyArn, Sha256Digest, UnixTime, VerifiedKey};
use pithead_sealing::{DeviceId, Identity, Run, Seq, Site, StreamName};
use tokio::sync::{Notify, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Server};

const NOW: UnixTime = UnixTime(1_800_000_000);
pub const SITE: &str = "pit-7";
pub const DEVICE: &str = "truck-0042";
pub const RUN: u64 = 0x0000_0003_1234_5678;

/// A key that a device has verified: a root and a statement are signed for it.
pub fn verified(vector: &str) -> VerifiedKey {
    use base64ct::{Base64, Encoding as _};
    let vectors = include_str!("../../../sealing/tests/vectors/envelope.json");
    let vectors: serde_json::Value = serde_json::from_str(vectors).unwrap();
    let spki = Base64::decode_vec(vectors["keys"][vector]["public_spki_der_b64"].as_str().unwrap()).unwrap();
    let arn = KeyArn::new(vectors["keys"][vector]["key_arn"].as_str().unwrap()).unwrap();
    let (owner, signer) = (SigningKey::ed25519(&[1; 32]), SigningKey::ed25519(&[2; 32]));
    let role = |key: &SigningKey| Role { threshold: 1, kids: vec![key.public().kid()] };
    let listed = |key: &SigningKey| RootKey { spki: key.public(), label: "test".to_owned() };
    let root = RootFields {
        authority: "acme-mining/test".to_owned(),
        version: 1,
        epoch: 1,
        issued_at: UnixTime(NOW.0 - 10),
        expires_at: NOW.plus(1_000_000),
        root_role: role(&owner),
        statement_role: role(&signer),
        keys: vec![listed(&owner), listed(&signer)],
        denylist: Vec::new(),
        policy: Policy {
            hold_down_s: 0,
            min_rsa_bits: 2048,
            suites: vec![SUITE_RSA_OAEP_SHA256],
            max_statement_validity_s: 1_000_000,
            custody: None,
        },
        gateways: None,
        previous: Sha256Digest::ZERO,
    };
    let statement = StatementFields {
        authority: root.authority.clone(),
        sites: vec![Site::new(SITE).unwrap(), Site::new("pit-8").unwrap()],
        root_version: 1,
        epoch: 1,
        sequence: 1,
        issued_at: NOW,
        refresh_by: NOW.plus(1_000),
        expires_at: NOW.plus(10_000),
        previous: Sha256Digest::ZERO,
        keys: vec![StatementKey {
            arn,
            suite: SUITE_RSA_OAEP_SHA256,
            fingerprint: Sha256Digest::of(&spki),
            bits: vector.trim_start_matches("rsa").parse().unwrap(),
            status: KeyStatus::Active,
            not_before: UnixTime(NOW.0 - 10),
            seal_until: NOW.plus(10_000),
            decrypt_until: None,
            reason: None,
        }],
        ticket: None,
    };
    let signed = |mut draft: Draft, key: &SigningKey| {
        draft.sign(key).unwrap();
        draft.finish().unwrap()
    };
    let clock = Clock::trusted(0, NOW);
    let root_bytes = signed(Draft::root(&root).unwrap(), &owner);
    let mut device =
        Device::provision(&root.authority, &Site::new(SITE).unwrap(), &root_bytes, clock).unwrap();
    let statement = signed(Draft::statement(&statement).unwrap(), &signer);
    let bundle = Bundle { roots: Vec::new(), statement: Some(statement), spkis: vec![spki.into()] };
    device.apply(&bundle, clock).unwrap();
    device.verified_key(clock).unwrap()
}

pub static KEY: LazyLock<VerifiedKey> = LazyLock::new(|| verified("rsa2048"));

/// Seals envelopes of one line, of any number.
pub struct Sealer(Session);

impl Sealer {
    pub fn new(key: &VerifiedKey, site: &str, device: &str, stream: &str) -> Self {
        let context = SessionContext::new(
            Site::new(site).unwrap(),
            DeviceId::new(device).unwrap(),
            StreamName::new(stream).unwrap(),
            ContentType::batch(),
        );
        let clock = SessionClock { boot: Duration::ZERO, now: NOW };
        let run = Run::new(RUN).unwrap();
        Self(Session::start(key, &context, run, None, clock, &mut KernelEntropy).unwrap())
    }

    pub fn truck() -> Self {
        Self::new(&KEY, SITE, DEVICE, "telemetry")
    }

    pub fn seal(&mut self, seq: u64, plaintext: &[u8]) -> Bytes {
        let sealed: SealedEnvelope =
            self.0.seal(Seq::new(seq).unwrap(), plaintext, Duration::ZERO, &mut KernelEntropy).unwrap();
        sealed.into_parts().0
    }
}

/// A sealed file of the truck's line `files`.
pub fn sealed_file(seq: u64, plaintext: &[u8]) -> Bytes {
    let context = SessionContext::new(
        Site::new(SITE).unwrap(),
        DeviceId::new(DEVICE).unwrap(),
        StreamName::new("files").unwrap(),
        ContentType::new("application/octet-stream").unwrap(),
    );
    let clock = SessionClock { boot: Duration::ZERO, now: NOW };
    let run = Run::new(RUN).unwrap();
    let mut session = Session::start(&KEY, &context, run, None, clock, &mut KernelEntropy).unwrap();
    let sealed = session.seal(Seq::new(seq).unwrap(), plaintext, Duration::ZERO, &mut KernelEntropy).unwrap();
    sealed.into_parts().0
}

pub fn peer(uri: &str) -> Peer {
    Peer {
        id: PeerId::from_uri(uri).unwrap(),
        certificate_sha256: Some([7; 32]),
        assurance: Assurance::Vouched,
        passed_on_by: None,
    }
}

pub fn truck() -> Peer {
    peer("spiffe://pit-7/device/truck-0042")
}

pub fn relay() -> Peer {
    peer("spiffe://pit-7/gateway/edge-1")
}

type Settled = Result<Outcome, Refusal>;
type Ticket = Shared<oneshot::Receiver<Settled>>;

struct Writing {
    identity: Identity,
    tell: oneshot::Sender<Settled>,
}

struct State {
    lines: Lines<Ticket>,
    writing: VecDeque<Writing>,
    stored: Vec<u64>,
    refused: Vec<(Option<Identity>, ErrorReason)>,
    refuse: HashMap<u64, Refusal>,
    damaged: HashMap<u64, Arc<Notify>>,
    not_ready: Option<Refusal>,
    declared: Vec<DeclaredGap>,
    hops: Vec<usize>,
    key_not_active: Vec<bool>,
    same_session: Vec<bool>,
}

/// A receiver whose disk writes when the test says so.
pub struct Disk {
    standing: Mutex<Standing>,
    /// Commits at once.
    at_once: bool,
    uploads: Option<UploadStore>,
    offered: watch::Sender<usize>,
    state: Mutex<State>,
}

impl Disk {
    fn with(at_once: bool, uploads: Option<UploadStore>) -> Arc<Self> {
        let state = State {
            lines: Lines::new(Unseen::Elsewhere),
            writing: VecDeque::new(),
            stored: Vec::new(),
            refused: Vec::new(),
            refuse: HashMap::new(),
            damaged: HashMap::new(),
            not_ready: None,
            declared: Vec::new(),
            hops: Vec::new(),
            key_not_active: Vec::new(),
            same_session: Vec::new(),
        };
        Arc::new(Self {
            standing: Mutex::new(Standing::Active),
            at_once,
            uploads,
            offered: watch::Sender::new(0),
            state: Mutex::new(state),
        })
    }

    pub fn at_once() -> Arc<Self> {
        Self::with(true, None)
    }

    /// Takes large envelopes as well, and keeps them.
    pub fn with_uploads(folder: &Path, limits: UploadLimits) -> Arc<Self> {
        let store = UploadStore::open(folder, limits, since_boot()).unwrap();
        Self::with(true, Some(store))
    }

    pub fn store(&self) -> &UploadStore {
        self.uploads.as_ref().unwrap()
    }

    pub fn when_told() -> Arc<Self> {
        Self::with(false, None)
    }

    pub fn standing(&self, standing: Standing) {
        *self.standing.lock().unwrap() = standing;
    }

    /// When the upload of that number is whole, it is found damaged and let go of, as soon as the test says so.
    pub fn find_damaged(&self, seq: u64, when: Arc<Notify>) {
        self.state.lock().unwrap().damaged.insert(seq, when);
    }

    pub fn refuse(&self, seq: u64, refusal: Refusal) {
        self.state.lock().unwrap().refuse.insert(seq, refusal);
    }

    pub fn not_ready(&self, refusal: Option<Refusal>) {
        self.state.lock().unwrap().not_ready = refusal;
    }

    /// The next `count` are durable.
    pub fn commit(&self, count: usize) {
        let mut state = self.state.lock().unwrap();
        for _ in 0..count {
            let Writing { identity, tell } = state.writing.pop_front().expect("something is being written");
            state.lines.stored(&identity.line(), identity.seq);
            state.stored.push(identity.seq.get());
            let _ = tell.send(Ok(Outcome::Stored));
        }
    }

    /// The next one is not, and will have to come again.
    pub fn fail(&self, refusal: Refusal) {
        let mut state = self.state.lock().unwrap();
        let Writing { identity, tell } = state.writing.pop_front().expect("something is being written");
        state.lines.failed(&identity.line(), identity.seq);
        let _ = tell.send(Err(refusal));
    }

    /// Resolves when this many were offered in all.
    pub async fn offered(&self, count: usize) {
        self.offered.subscribe().wait_for(|offered| *offered >= count).await.unwrap();
    }

    pub fn stored(&self) -> Vec<u64> {
        self.state.lock().unwrap().stored.clone()
    }

    pub fn refused(&self) -> Vec<(Option<Identity>, ErrorReason)> {
        self.state.lock().unwrap().refused.clone()
    }

    pub fn declared(&self) -> Vec<DeclaredGap> {
        self.state.lock().unwrap().declared.clone()
    }

    pub fn hops(&self) -> Vec<usize> {
        self.state.lock().unwrap().hops.clone()
    }

    pub fn same_session(&self) -> Vec<bool> {
        self.state.lock().unwrap().same_session.clone()
    }

    pub fn key_not_active(&self) -> Vec<bool> {
        self.state.lock().unwrap().key_not_active.clone()
    }
}

impl KnownKeys for Disk {
    fn standing(&self, arn: &KeyArn, _: &Identity) -> Standing {
        if arn == KEY.arn() { *self.standing.lock().unwrap() } else { Standing::Unknown }
    }
}

impl Intake for Disk {
    type Call = ();

    fn keys(&self) -> &dyn KnownKeys {
        self
    }

    fn trust(&self, _: &Peer) -> Option<TrustVersion> {
        Some(TrustVersion { epoch: 1, sequence: 17 })
    }

    fn durability(&self) -> Durability {
        Durability::Disk
    }

    fn ready(&self, _: &Peer) -> Result<(), Refusal> {
        self.state.lock().unwrap().not_ready.clone().map_or(Ok(()), Err)
    }

    async fn offer(&self, _: &Peer, (): &(), admitted: Admitted) -> Result<Pending, Refusal> {
        let identity = admitted.identity().clone();
        let pending = {
            let mut state = self.state.lock().unwrap();
            if let Some(refusal) = state.refuse.remove(&identity.seq.get()) {
                return Err(refusal);
            }
            state.hops.push(admitted.hops.len());
            state.key_not_active.push(admitted.key_not_active);
            state.same_session.push(admitted.same_session);
            let mut tell = None;
            let verdict = state.lines.offer(
                &identity.line(),
                identity.seq,
                ShortHash::from(&admitted.sha256),
                Duration::ZERO,
                || {
                    let (sender, ticket) = oneshot::channel();
                    tell = Some(sender);
                    ticket.shared()
                },
            )?;
            if let Some(tell) = tell {
                state.writing.push_back(Writing { identity, tell });
            }
            let ready = |outcome| std::future::ready(Ok(outcome)).boxed();
            match verdict {
                Verdict::New(ticket) => async move { ticket.await.expect("told") }.boxed(),
                Verdict::InFlight(ticket) => async move {
                    ticket.await.expect("told").map(|_| Outcome::Duplicate { unverified: false })
                }
                .boxed(),
                Verdict::Duplicate { unverified } => ready(Outcome::Duplicate { unverified }),
                Verdict::Conflict => ready(Outcome::Conflict { kept: true }),
            }
        };
        if self.at_once {
            let writing = self.state.lock().unwrap().writing.len();
            self.commit(writing);
        }
        self.offered.send_modify(|offered| *offered += 1);
        Ok(pending)
    }

    fn uploads(&self) -> Result<&UploadStore, Refusal> {
        let none = || Refusal::new(ErrorReason::UploadsNotSupported, "inline envelopes only");
        self.uploads.as_ref().ok_or_else(none)
    }

    fn judge(&self, _: &Peer, offered: &AdmittedHeader) -> Result<Option<Outcome>, Refusal> {
        let identity = offered.profile.identity();
        let mut state = self.state.lock().unwrap();
        let hash = ShortHash::from(&offered.header_sha256);
        let (_, ticket) = oneshot::channel();
        let ticket = ticket.shared();
        let verdict =
            state.lines.offer(&identity.line(), identity.seq, hash, Duration::ZERO, || ticket.clone())?;
        Ok(match verdict {
            Verdict::New(_) => {
                state.lines.failed(&identity.line(), identity.seq);
                None
            }
            Verdict::InFlight(_) => None,
            Verdict::Duplicate { unverified } => Some(Outcome::Duplicate { unverified }),
            Verdict::Conflict => Some(Outcome::Conflict { kept: false }),
        })
    }

    async fn complete(&self, _: &Peer, whole: WholeUpload) -> Result<Outcome, Refusal> {
        let damaged = self.state.lock().unwrap().damaged.remove(&whole.identity.seq.get());
        if let Some(when) = damaged {
            when.notified().await;
            self.store().release(&whole.identity).unwrap();
            return Err(Refusal::new(ErrorReason::NotDurable, "damaged"));
        }
        let mut state = self.state.lock().unwrap();
        if let Some(refusal) = state.refuse.remove(&whole.identity.seq.get()) {
            return Err(refusal);
        }
        let (line, hash) = (whole.identity.line(), ShortHash::from(&whole.header_sha256));
        let (_, ticket) = oneshot::channel();
        let ticket = ticket.shared();
        state.lines.offer(&line, whole.identity.seq, hash, Duration::ZERO, || ticket.clone())?;
        state.lines.stored(&line, whole.identity.seq);
        state.stored.push(whole.identity.seq.get());
        self.store().taken(&whole.identity);
        Ok(Outcome::Stored)
    }

    fn hello(&self, _: &Peer, lines: &[HelloLine]) -> Vec<u64> {
        let mut state = self.state.lock().unwrap();
        lines.iter().map(|line| state.lines.hello(&line.line, line.first_unacked, Duration::ZERO)).collect()
    }

    fn declared(&self, _: &Peer, gaps: &[DeclaredGap]) {
        self.state.lock().unwrap().declared.extend_from_slice(gaps);
    }

    fn refused(&self, _: &Peer, identity: Option<&Identity>, refusal: &Refusal) {
        self.state.lock().unwrap().refused.push((identity.cloned(), refusal.reason));
    }
}

/// Serves `disk` to one connection of `peer`'s; the accept layer's part is one extension.
pub async fn serve(
    disk: &Arc<Disk>,
    peer: Option<Peer>,
    limits: IngestLimits,
    stop: &CancellationToken,
) -> Channel {
    serve_to(Endpoint::from_static("http://receiver"), disk, peer, limits, stop).await
}

/// The same to a client with settings of its own.
pub async fn serve_to(
    client: Endpoint,
    disk: &Arc<Disk>,
    peer: Option<Peer>,
    limits: IngestLimits,
    stop: &CancellationToken,
) -> Channel {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let service = IngestServer::new(Arc::clone(disk), limits, stop.clone()).into_service();
    let with_peer =
        tower::util::MapRequest::new(service, move |mut request: http::Request<tonic::body::Body>| {
            if let Some(peer) = &peer {
                request.extensions_mut().insert(peer.clone());
            }
            request
        });
    let routes = Named(with_peer);
    tokio::spawn(
        Server::builder()
            .add_service(routes)
            .serve_with_incoming(tokio_stream::once(Ok::<_, std::io::Error>(theirs))),
    );
    let mut ours = Some(ours);
    client
        .connect_with_connector(tower::service_fn(move |_| {
            let stream = ours.take().ok_or_else(|| std::io::Error::other("one connection"));
            async move { stream.map(TokioIo::new) }
        }))
        .await
        .unwrap()
}

/// tonic routes by name.
#[derive(Clone)]
struct Named<S>(S);

impl<S> tonic::server::NamedService for Named<S> {
    const NAME: &'static str = "pithead.ingest.v1.IngestService";
}

impl<S: tower_service::Service<R>, R> tower_service::Service<R> for Named<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> S::Future {
        self.0.call(request)
    }
}

//! Two gateways of a site over one broker in memory, each behind a port of its own, and a truck that knows the one that stands by.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use pithead_hop::accept::{Acceptor, Limits, Stopped};
use pithead_hop::connect::{ConnectOptions, Connection, connect};
use pithead_hop::identity::{GatewayName, Peer, PeerId};
use pithead_hop::ingest::intake::Durability;
use pithead_hop::ingest::send::{PlainFile, UploadSource as _, send_upload};
use pithead_hop::ingest::{Answer, Hop, IngestLimits, IngestServer, SendError, SendOptions, Sender, pass};
use pithead_hop::status::Remote;
use pithead_hop::tls::{PeerTls, Pem, ServerTls, SiteTrust};
use pithead_proto::errors::v1::ErrorReason;
use pithead_proto::ingest::v1 as wire;
use pithead_proto::ingest::v1::ingest_service_client::IngestServiceClient;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::pki_types::ServerName;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::owner::{Parts, ToOwner};
use super::*;
use crate::devices::registry::{Mode, Registry, Stamp};
use crate::envelopes::lanes::Lanes;
use crate::envelopes::record::Head;
use crate::envelopes::replicated::{Replicated, Standing, model::Model};
use crate::envelopes::shares::{self, Shares};
use crate::envelopes::spool::EnvelopeSpool;
use crate::envelopes::testing::{Door, LONG, Truck, issue, shares, truck, until};
use crate::keys::testing::site;

type Ca = CertifiedIssuer<'static, KeyPair>;

const TRUCK: &str = "spiffe://pit-7/device/truck-42";

/// A gateway of the site, in this process.
struct Gateway {
    door: Door,
    registry: Arc<ArcSwap<Registry>>,
    to_owner: ToOwner,
    address: SocketAddr,
    /// What others are connected to with.
    tls: PeerTls,
    stop: CancellationToken,
    served: JoinHandle<Stopped>,
    _folder: tempfile::TempDir,
}

impl Gateway {
    async fn start(world: &World, name: &str, shares: Shares) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let uri = format!("spiffe://pit-7/gateway/{name}");
        // No host name and no address: gateways know each other by their names.
        let (certificate, key) = issue(&world.ca, vec![SanType::URI(uri.try_into().unwrap())]);
        let ca = Pem::new("ca.pem", world.ca.pem());
        let sites = vec![SiteTrust { site: site(), ca: ca.clone(), crls: vec![] }];
        let server = ServerTls {
            certificate: certificate.clone(),
            key: key.clone(),
            sites,
            crl_expiry: Default::default(),
        };
        let acceptor =
            Acceptor::bind("127.0.0.1:0".parse().unwrap(), server.build().unwrap(), Limits::default()).await;
        let acceptor = acceptor.unwrap();
        acceptor.gateways_bring_devices();
        let address = acceptor.local_addr();

        let log = Replicated::over_model(&world.broker, name, address.to_string());
        let spool = EnvelopeSpool::over_replicated(log, Lanes::default());
        let registry = Arc::new(ArcSwap::from_pointee(Registry::default()));
        let (of, shared) = (folder.path(), world.shared.path());
        let door = Door::over(of, shared, spool.clone(), name, 1 << 20, shares, registry.clone());
        let (stop, tls) = (CancellationToken::new(), PeerTls { ca, certificate, key });
        let to_owner = ToOwner::new(Parts {
            spool: spool.clone(),
            site: site(),
            gateway: GatewayName::new(name).unwrap(),
            tls: watch::Sender::new(tls.clone()).subscribe(),
            metrics: door.metrics.clone(),
            stop: stop.clone(),
        });
        let ingest = IngestServer::new(door.intake.clone(), IngestLimits::default(), stop.clone());
        let service = PassingOn::new(ingest, to_owner.clone()).into_service();
        let served = tokio::spawn(acceptor.serve(Routes::new(service), stop.clone()));
        let this = Self { door, registry, to_owner, address, tls, stop, served, _folder: folder };
        this.follow();
        this
    }

    /// As `run::owning` does.
    fn follow(&self) {
        let (spool, numbers) = (self.door.spool.clone(), self.door.numbers.clone());
        let copies = self.door.copies.clone().unwrap();
        let mut standing = spool.standing().unwrap();
        tokio::spawn(async move {
            loop {
                let now = standing.borrow_and_update().clone();
                if let Standing::Ours { epoch } = now {
                    let numbers = numbers.clone();
                    let waiting =
                        tokio::task::spawn_blocking(move || numbers.begin()).await.unwrap().unwrap();
                    copies.begin(epoch, waiting);
                    spool.serve(epoch);
                }
                if standing.changed().await.is_err() {
                    return;
                }
            }
        });
    }

    fn owns(&self) -> bool {
        self.door.spool.elsewhere().is_none()
    }

    async fn stands_by_behind(&self, owner: &Self) {
        until("it knows the owner", || self.to_owner.aim().is_some()).await;
        assert!(owner.owns() && !self.owns());
    }

    /// What was said of each envelope that waits here, by its number.
    fn words(&self) -> BTreeMap<u64, Vec<Hop>> {
        let heads = self.door.spool.waiting().map(|record| Head::decode(&record.head).unwrap());
        heads.map(|head| (head.identity.seq.get(), head.hops)).collect()
    }

    fn metric(&self, line: &str) -> bool {
        self.door.metrics.page().lines().any(|one| one == line)
    }

    /// Hands the lanes over, and goes on serving.
    async fn hand_over(&self) {
        let spool = self.door.spool.clone();
        tokio::task::spawn_blocking(move || spool.close()).await.unwrap().unwrap();
    }
}

struct World {
    ca: Ca,
    broker: Model,
    /// Where copies of large envelopes go.
    shared: tempfile::TempDir,
}

/// The owner, and the one that stands by.
struct Pair {
    world: World,
    owner: Gateway,
    other: Gateway,
}

impl Pair {
    async fn start() -> Self {
        Self::with(shares()).await
    }

    async fn with(shares: Shares) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let world = World { ca, broker: Model::default(), shared: tempfile::tempdir().unwrap() };
        let owner = Gateway::start(&world, "edge-1", shares).await;
        until("the first owns the lanes", || owner.owns()).await;
        let other = Gateway::start(&world, "edge-2", crate::envelopes::testing::shares()).await;
        other.stands_by_behind(&owner).await;
        Self { world, owner, other }
    }

    /// A certificate of the site for somebody.
    fn papers(&self, uri: &str) -> (Pem, Pem) {
        issue(&self.world.ca, vec![SanType::URI(uri.try_into().unwrap())])
    }

    /// Connects somebody with a certificate to a gateway.
    async fn connect_with(&self, identity: (Pem, Pem), to: &Gateway) -> Connection {
        let name = PeerId::from_certificate(&to.tls.certificate.certificates().unwrap()[0]).unwrap();
        let (certificate, key) = identity;
        let tls =
            PeerTls { ca: Pem::new("ca.pem", self.world.ca.pem()), certificate, key }.towards(name).unwrap();
        let host = ServerName::try_from("127.0.0.1").unwrap();
        connect(&to.address.into(), &host, tls, &ConnectOptions::default()).await.unwrap()
    }

    async fn connect(&self, uri: &str, to: &Gateway) -> Connection {
        self.connect_with(self.papers(uri), to).await
    }

    async fn sender(&self, to: &Gateway) -> Result<Sender<u64>, SendError> {
        Sender::open(self.connect(TRUCK, to).await, &SendOptions::new("test/1"), Vec::new()).await
    }
}

async fn answers(sender: &mut Sender<u64>, count: usize) -> Vec<(u64, Answer)> {
    let mut all = Vec::new();
    while all.len() < count {
        let some = tokio::time::timeout(LONG, sender.answers()).await.expect("answered").unwrap();
        all.extend(some.into_iter().map(|one| (one.token, one.answer)));
    }
    all
}

/// How the call ends, whatever is answered before.
async fn end(sender: &mut Sender<u64>) -> Remote {
    let ending = async {
        loop {
            match sender.answers().await {
                Ok(_) => {}
                Err(SendError::Remote(remote)) => return remote,
                Err(other) => panic!("{other:?}"),
            }
        }
    };
    tokio::time::timeout(LONG, ending).await.expect("it ends")
}

fn sha(pem: &Pem) -> Bytes {
    let certificate = pem.certificates().unwrap().remove(0);
    Peer::from_verified_certificate(&certificate).unwrap().certificate_sha256.unwrap().to_vec().into()
}

/// A call that says it is somebody's, brought by whoever is connected.
async fn submit_marked(to: Connection, gateway: &str, sender: &Peer, envelope: Bytes) -> Result<(), Remote> {
    let mut request = tonic::Request::new(wire::SubmitRequest { envelope });
    pass::mark(request.metadata_mut(), &GatewayName::new(gateway).unwrap(), sender);
    let answer = IngestServiceClient::new(to).submit(request).await;
    answer.map(drop).map_err(|status| Remote::from_status(&status))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_to_one_that_stands_by_is_the_owners_with_the_word_of_both() {
    let pair = Pair::start().await;
    let papers = pair.papers(TRUCK);
    let mut sealer = Truck::new();
    let envelopes: Vec<Bytes> = (1..=3).map(|seq| sealer.seal(seq, b"record")).collect();
    let connection = pair.connect_with(papers.clone(), &pair.other).await;
    let options = SendOptions::new("test/1");
    let mut sender = Sender::open(connection.clone(), &options, Vec::new()).await.unwrap();
    assert_eq!(sender.welcomed().durability, Durability::Replicated);
    for (seq, envelope) in (1..).zip(&envelopes) {
        sender.send(seq, envelope.clone(), Vec::new()).unwrap();
    }
    let stored: Vec<(u64, Answer)> = (1..=3).map(|seq| (seq, Answer::Stored)).collect();
    assert_eq!(answers(&mut sender, 3).await, stored);

    // One envelope alone goes the same way, and what was here before is known whichever way it comes again.
    let mut client = IngestServiceClient::new(connection);
    let single = client.submit(wire::SubmitRequest { envelope: sealer.seal(4, b"record") }).await.unwrap();
    let single = single.into_inner();
    assert_eq!((single.durability(), single.duplicate), (Durability::Replicated, None));
    let again = wire::SubmitRequest { envelope: envelopes[0].clone() };
    assert!(client.submit(again.clone()).await.unwrap().into_inner().duplicate.is_some());
    let direct = pair.connect(TRUCK, &pair.owner).await;
    assert!(IngestServiceClient::new(direct).submit(again).await.unwrap().into_inner().duplicate.is_some());

    let words = pair.owner.words();
    assert_eq!(words.keys().copied().collect::<Vec<_>>(), [1, 2, 3, 4]);
    for hops in words.values() {
        let said: Vec<_> =
            hops.iter().map(|hop| (hop.gateway.as_str(), hop.certificate_sha256.clone())).collect();
        assert_eq!(said, [("edge-2", sha(&papers.0)), ("edge-1", sha(&pair.other.tls.certificate))]);
        assert!(hops.iter().all(|hop| hop.assurance() == wire::Assurance::Vouched));
        assert!(hops[0].received_us <= hops[1].received_us);
    }
    assert!(pair.other.words().is_empty());
    let (_, given, bytes) = pair.other.to_owner.now();
    assert!(given == 5 && bytes > 0, "{given}");
    assert!(pair.other.metric("pithead_passed_on_calls_total{way=\"given\"} 3"));
    assert!(pair.owner.metric("pithead_passed_on_calls_total{way=\"taken\"} 3"));
    assert!(pair.owner.metric("pithead_passed_on_envelopes_total{way=\"taken\"} 5"));
    drop(sender);
    until("the places are free again", || pair.other.to_owner.now().0 == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_acknowledged_that_the_owner_has_not_acknowledged() {
    let pair = Pair::start().await;
    let mut sender = pair.sender(&pair.other).await.unwrap();
    let mut sealer = Truck::new();
    sender.send(1, sealer.seal(1, b"record"), Vec::new()).unwrap();
    answers(&mut sender, 1).await;
    // The owner gets it, and JetStream does not answer until the owner's lease is over.
    pair.world.broker.away(true);
    sender.send(2, sealer.seal(2, b"record"), Vec::new()).unwrap();
    let ended = tokio::time::timeout(LONG, sender.answers()).await.expect("it ends");
    let Err(SendError::Remote(remote)) = ended else { panic!("nobody has it: {ended:?}") };
    assert!(remote.is_retryable() && remote.may_have_been_stored(), "{remote:?}");
    pair.world.broker.away(false);
    until("one of them owns the lanes", || pair.owner.owns() || pair.other.owns()).await;
    // Whoever does, and whichever it comes to.
    let (owner, other) =
        if pair.owner.owns() { (&pair.owner, &pair.other) } else { (&pair.other, &pair.owner) };
    other.stands_by_behind(owner).await;
    let mut sender = pair.sender(other).await.unwrap();
    sender.send(2, sealer.seal(2, b"record"), Vec::new()).unwrap();
    let stored = answers(&mut sender, 1).await;
    assert!(stored[0].1.is_held(), "{stored:?}");
    let words = owner.words();
    assert_eq!(words.keys().copied().collect::<Vec<_>>(), [1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_owner_hands_over_the_call_ends_and_goes_on_at_the_next_one() {
    let pair = Pair::start().await;
    let mut sender = pair.sender(&pair.other).await.unwrap();
    let mut sealer = Truck::new();
    sender.send(1, sealer.seal(1, b"record"), Vec::new()).unwrap();
    answers(&mut sender, 1).await;
    pair.owner.hand_over().await;
    let ended = end(&mut sender).await;
    assert_eq!(ended.reason, Some(ErrorReason::StandingBy), "{ended}");
    until("the other takes over", || pair.other.owns()).await;
    let mut sender = pair.sender(&pair.other).await.unwrap();
    sender.send(2, sealer.seal(2, b"record"), Vec::new()).unwrap();
    answers(&mut sender, 1).await;
    assert_eq!(pair.other.words()[&2].len(), 1, "it came by no other gateway");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_nobody_reaches_is_said_to_be_so_and_one_that_stops_ends_calls_in_order() {
    let mut pair = Pair::start().await;
    let mut sender = pair.sender(&pair.other).await.unwrap();
    let mut sealer = Truck::new();
    sender.send(1, sealer.seal(1, b"record"), Vec::new()).unwrap();
    // Its port closes; the lanes are its own still. What it has got is answered first.
    pair.owner.stop.cancel();
    let mut stored = 0;
    let ended = loop {
        match tokio::time::timeout(LONG, sender.answers()).await.expect("it ends") {
            Ok(some) => stored += some.len(),
            Err(SendError::Remote(remote)) => break remote,
            Err(other) => panic!("{other:?}"),
        }
    };
    assert_eq!(stored, pair.owner.words().len());
    assert!(matches!(ended.reason, Some(ErrorReason::Draining | ErrorReason::StandingBy)), "{ended}");
    drop(sender);
    (&mut pair.owner.served).await.unwrap();
    let Err(SendError::Remote(refused)) = pair.sender(&pair.other).await else { panic!("welcomed") };
    assert_eq!((refused.reason, refused.code), (Some(ErrorReason::StandingBy), tonic::Code::Unavailable));
    assert!(refused.detail.contains("cannot be reached from here"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_stops_has_the_owner_answer_what_it_has_got_and_sends_the_device_away() {
    let pair = Pair::start().await;
    let mut sender = pair.sender(&pair.other).await.unwrap();
    let mut sealer = Truck::new();
    sender.send(1, sealer.seal(1, b"record"), Vec::new()).unwrap();
    answers(&mut sender, 1).await;
    pair.other.stop.cancel();
    let ended = end(&mut sender).await;
    assert_eq!(ended.reason, Some(ErrorReason::Draining), "{ended}");
    until("the owner has no call of it", || pair.other.to_owner.now().0 == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_is_not_who_it_is_said_to_be_gets_nothing() {
    let pair = Pair::start().await;
    // A third one takes the address of the owner for its own, as far as its record says.
    let tls = PeerTls { ca: Pem::new("ca.pem", pair.world.ca.pem()), ..pair.other.tls.clone() };
    let stranger = PeerId::from_uri("spiffe://pit-7/gateway/edge-3").unwrap();
    let host = ServerName::try_from("127.0.0.1").unwrap();
    let (at, options) = (pair.owner.address.into(), ConnectOptions::default());
    let refused = connect(&at, &host, tls.towards(stranger).unwrap(), &options).await;
    assert_eq!(refused.expect_err("it is edge-1").reason(), ErrorReason::PeerUntrusted);
    // Of another CA, under the right name.
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let other_ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let tls = PeerTls { ca: Pem::new("ca.pem", other_ca.pem()), ..pair.other.tls.clone() };
    let named = PeerId::from_uri("spiffe://pit-7/gateway/edge-1").unwrap();
    let refused = connect(&at, &host, tls.towards(named).unwrap(), &options).await;
    assert_eq!(refused.expect_err("another CA").reason(), ErrorReason::PeerUntrusted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_was_passed_on_is_not_passed_on_again() {
    let pair = Pair::start().await;
    let edge = pair.connect("spiffe://pit-7/gateway/edge-1", &pair.other).await;
    let mut sealer = Truck::new();
    let refused = submit_marked(edge, "edge-1", &truck(), sealer.seal(1, b"record")).await.unwrap_err();
    assert_eq!(refused.reason, Some(ErrorReason::StandingBy), "{refused}");
    assert!(refused.detail.contains("edge-1 at "), "{refused}");
    assert!(pair.owner.words().is_empty());
    assert!(pair.other.metric("pithead_passed_on_calls_total{way=\"given\"} 0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_no_gateway_of_the_site_brings_nobody_elses_calls() {
    let pair = Pair::start().await;
    let mut sealer = Truck::new();
    for to in [&pair.owner, &pair.other] {
        for liar in ["spiffe://pit-7/device/truck-1", TRUCK] {
            let connection = pair.connect(liar, to).await;
            let refused = submit_marked(connection, "edge-2", &truck(), sealer.seal(1, b"record")).await;
            assert_eq!(refused.unwrap_err().reason, Some(ErrorReason::PassingOnRefused), "{liar}");
        }
        let operator = pair.connect("spiffe://pit-7/operator/erin", to).await;
        let refused =
            submit_marked(operator, "edge-2", &truck(), sealer.seal(1, b"record")).await.unwrap_err();
        assert_eq!(refused.reason, Some(ErrorReason::RoleNotAllowed));
    }
    // Another gateway's word, and a device's envelope in the call of another one.
    let edge = async || pair.connect("spiffe://pit-7/gateway/edge-2", &pair.owner).await;
    let refused =
        submit_marked(edge().await, "edge-3", &truck(), sealer.seal(1, b"record")).await.unwrap_err();
    assert_eq!(refused.reason, Some(ErrorReason::RequestInvalid));
    let id = PeerId::from_uri("spiffe://pit-7/device/truck-1").unwrap();
    let other_truck = Peer { id, ..truck() };
    let refused =
        submit_marked(edge().await, "edge-2", &other_truck, sealer.seal(1, b"record")).await.unwrap_err();
    assert_eq!(refused.reason, Some(ErrorReason::DeviceMismatch));
    assert!(pair.owner.words().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_envelope_without_the_word_of_whoever_passes_it_on_ends_the_call() {
    let pair = Pair::start().await;
    let edge = pair.connect("spiffe://pit-7/gateway/edge-2", &pair.owner).await;
    let mut sealer = Truck::new();
    let good = pass::word(&GatewayName::new("edge-2").unwrap(), &truck());
    let vouches_for_more = Hop { certificate_sha256: vec![8; 32].into(), ..good.clone() };
    for hops in [vec![], vec![good.clone(), good.clone()], vec![vouches_for_more]] {
        let hello = wire::AppendRequest {
            message: Some(wire::append_request::Message::Hello(wire::Hello::default())),
        };
        let item = wire::Item { envelope: sealer.seal(1, b"record"), hops };
        let batch = wire::Batch { number: 1, items: vec![item], gaps: vec![] };
        let batch = wire::AppendRequest { message: Some(wire::append_request::Message::Batch(batch)) };
        let mut request = tonic::Request::new(futures_util::stream::iter([hello, batch]));
        pass::mark(request.metadata_mut(), &GatewayName::new("edge-2").unwrap(), &truck());
        let mut told = IngestServiceClient::new(edge.clone()).append(request).await.unwrap().into_inner();
        told.message().await.unwrap().expect("a Welcome");
        let refused = Remote::from_status(&told.message().await.unwrap_err());
        assert_eq!(refused.reason, Some(ErrorReason::RequestInvalid), "{refused}");
    }
    assert!(pair.owner.words().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_writes_no_custody_here_either() {
    let pair = Pair::start().await;
    let mut sender = pair.sender(&pair.other).await.unwrap();
    let forged = pass::word(&GatewayName::new("edge-9").unwrap(), &truck());
    sender.send(1, Truck::new().seal(1, b"record"), vec![forged]).unwrap();
    let refused = end(&mut sender).await;
    assert_eq!(refused.reason, Some(ErrorReason::RequestInvalid), "{refused}");
    assert!(pair.owner.words().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_the_owner_has_revoked_hands_in_nothing_by_another_gateway_not_even_on_a_live_call() {
    let pair = Pair::start().await;
    let mut sender = pair.sender(&pair.other).await.unwrap();
    let mut sealer = Truck::new();
    sender.send(1, sealer.seal(1, b"record"), Vec::new()).unwrap();
    answers(&mut sender, 1).await;
    let device = truck().device().unwrap().clone();
    let mut registry = Registry::default();
    registry.add(&device, Mode::Mtls, &[], Stamp(1)).unwrap();
    registry.revoke(&device, Stamp(2));
    pair.owner.registry.store(Arc::new(registry));
    sender.send(2, sealer.seal(2, b"record"), Vec::new()).unwrap();
    let refused = end(&mut sender).await;
    assert_eq!(refused.reason, Some(ErrorReason::DeviceRevoked), "{refused}");
    let Err(SendError::Remote(refused)) = pair.sender(&pair.other).await else { panic!("welcomed") };
    assert_eq!(refused.reason, Some(ErrorReason::DeviceRevoked), "{refused}");
    assert_eq!(pair.owner.words().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_devices_rate_is_its_own_at_the_owner_whoever_brings_it() {
    let limits = shares::Limits { device_bytes: 1 << 40, rate: 1, burst: 1, keeps_for_first: false };
    let pair = Pair::with(Shares::new(limits, 1 << 40)).await;
    let mut sender = pair.sender(&pair.other).await.unwrap();
    let mut sealer = Truck::new();
    sender.send(1, sealer.seal(1, b"record"), Vec::new()).unwrap();
    answers(&mut sender, 1).await;
    sender.send(2, sealer.seal(2, b"record"), Vec::new()).unwrap();
    let refused = end(&mut sender).await;
    assert_eq!(refused.reason, Some(ErrorReason::Throttled), "{refused}");
    assert!(refused.retry_after.is_some(), "the owner's word arrives whole");
    // The other device of the same gateway is not held by it.
    let pump = pair.connect("spiffe://pit-7/device/pump-1", &pair.other).await;
    Sender::<u64>::open(pump, &SendOptions::new("test/1"), Vec::new()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_device_does_not_take_the_places_of_the_others() {
    let pair = Pair::start().await;
    let connection = pair.connect(TRUCK, &pair.other).await;
    let mut calls = Vec::new();
    let refused = loop {
        assert!(calls.len() <= 8, "a ninth");
        match Sender::<u64>::open(connection.clone(), &SendOptions::new("test/1"), Vec::new()).await {
            Ok(sender) => calls.push(sender),
            Err(SendError::Remote(remote)) => break remote,
            Err(other) => panic!("{other:?}"),
        }
    };
    assert_eq!(calls.len(), 8);
    assert_eq!(refused.reason, Some(ErrorReason::Throttled), "{refused}");
    let pump = pair.connect("spiffe://pit-7/device/pump-1", &pair.other).await;
    Sender::<u64>::open(pump, &SendOptions::new("test/1"), Vec::new()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_that_do_not_listen_to_their_answers_hold_nobody_else_up() {
    let pair = Pair::start().await;
    let hello =
        wire::AppendRequest { message: Some(wire::append_request::Message::Hello(wire::Hello::default())) };
    let item = wire::Item { envelope: Bytes::from_static(b"no envelope"), hops: vec![] };
    let batch = move |number| wire::Batch { number, items: vec![item.clone(); 256], gaps: vec![] };
    let mut deaf = Vec::new();
    for number in 0..6 {
        let name = PeerId::from_uri("spiffe://pit-7/gateway/edge-2").unwrap();
        let (certificate, key) = pair.papers(&format!("spiffe://pit-7/device/pump-{number}"));
        let tls =
            PeerTls { ca: Pem::new("ca.pem", pair.world.ca.pem()), certificate, key }.towards(name).unwrap();
        let host = ServerName::try_from("127.0.0.1").unwrap();
        // It grants a byte, and then no more.
        let options = ConnectOptions { stream_window: 1, ..ConnectOptions::default() };
        let connection = connect(&pair.other.address.into(), &host, tls, &options).await.unwrap();
        let batches = (1..=64).map(batch.clone());
        let asked = batches
            .map(|batch| wire::AppendRequest { message: Some(wire::append_request::Message::Batch(batch)) });
        let asked =
            futures_util::stream::iter(std::iter::once(hello.clone()).chain(asked).collect::<Vec<_>>());
        let told = IngestServiceClient::new(connection).append(tonic::Request::new(asked)).await.unwrap();
        deaf.push(told.into_inner());
    }
    until("they have said a lot", || pair.other.to_owner.now().1 > 6 * 2_000).await;
    let connection = pair.connect(TRUCK, &pair.other).await;
    let mut sealer = Truck::new();
    for seq in 1..=200 {
        let mut client = IngestServiceClient::new(connection.clone());
        let request = wire::SubmitRequest { envelope: sealer.seal(seq, b"record") };
        tokio::time::timeout(LONG, client.submit(request)).await.expect("held up").unwrap();
    }
    assert_eq!(pair.other.to_owner.now().0, 6, "the deaf ones are there still");
    drop(deaf);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_envelope_goes_on_to_the_owner_and_lies_on_no_other_disk() {
    let pair = Pair::start().await;
    let papers = pair.papers(TRUCK);
    let mut sealer = Truck::new();
    let envelope = sealer.seal(1, &vec![7; 700_000]);
    let source = || {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &envelope).unwrap();
        Arc::new(PlainFile::open(file).unwrap())
    };
    let connection = pair.connect_with(papers.clone(), &pair.other).await;
    let send = async || send_upload(connection.clone(), source(), Vec::new(), None, |_| {}).await.unwrap();
    assert_eq!(send().await, Answer::Stored);
    assert_eq!(send().await, Answer::Duplicate { unverified: false });
    let (there, here) = (pair.owner.door.uploads.stats(), pair.other.door.uploads.stats());
    assert_eq!((there.taken, here.taken + here.open), (1, 0));
    let hops = pair.owner.words().remove(&1).unwrap();
    let said: Vec<_> =
        hops.iter().map(|hop| (hop.gateway.as_str(), hop.certificate_sha256.clone())).collect();
    assert_eq!(said, [("edge-2", sha(&papers.0)), ("edge-1", sha(&pair.other.tls.certificate))]);
    assert!(pair.other.metric("pithead_passed_on_calls_total{way=\"given\"} 3"));
    assert_eq!(pair.other.to_owner.now().0, 0, "every call has given its place back");

    // A question and an end go the same way, and what a device says of custody does not.
    let mut client = IngestServiceClient::new(connection);
    let (header, total) = (source().header().wire().clone(), envelope.len() as u64);
    let liar = wire::OpenUploadRequest { header, total_size: total, hops: vec![Hop::default()] };
    let refused = client.open_upload(liar).await.unwrap_err();
    assert_eq!(Remote::from_status(&refused).reason, Some(ErrorReason::RequestInvalid));
    let upload = "pit-7~truck-42~can~0000000000000007~00000000000000000001".to_owned();
    let asked = client.get_upload(wire::GetUploadRequest { upload: upload.clone() }).await.unwrap();
    assert_eq!(asked.into_inner().state(), wire::UploadState::Complete);
    let refused = client.abort_upload(wire::AbortUploadRequest { upload }).await.unwrap_err();
    assert_eq!(Remote::from_status(&refused).reason, Some(ErrorReason::UploadComplete));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_whose_owner_goes_in_the_middle_ends_with_a_word_and_goes_on_at_the_next_one() {
    let pair = Pair::start().await;
    let envelope = Truck::new().seal(1, &vec![7; 700_000]);
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, &envelope).unwrap();
    let source = Arc::new(PlainFile::open(file).unwrap());
    let connection = pair.connect(TRUCK, &pair.other).await;
    let mut client = IngestServiceClient::new(connection.clone());
    let (header, total_size) = (source.header().wire().clone(), source.total());
    let opened =
        client.open_upload(wire::OpenUploadRequest { header, total_size, hops: vec![] }).await.unwrap();
    let opened = opened.into_inner();
    let (requests, stream) = tokio::sync::mpsc::channel(1);
    let mut answers =
        client.write_upload(tokio_stream::wrappers::ReceiverStream::new(stream)).await.unwrap().into_inner();
    let at = opened.persisted_size as usize;
    let data = envelope.slice(at..at + 300_000);
    let crc32c = crc32c::crc32c(&data);
    let request = wire::WriteUploadRequest { upload: opened.upload, offset: at as u64, data, crc32c };
    requests.send(request).await.unwrap();
    let persisted = answers.message().await.unwrap().unwrap().persisted_size;
    assert!(persisted > at as u64, "it is on the owner's disk");
    pair.owner.hand_over().await;
    let end = loop {
        match tokio::time::timeout(LONG, answers.message()).await.expect("it ends") {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ends without a word"),
            Err(status) => break Remote::from_status(&status),
        }
    };
    assert_eq!(end.reason, Some(ErrorReason::StandingBy), "{end}");
    until("the other one owns the lanes", || pair.other.owns()).await;
    let stored = send_upload(connection, source, Vec::new(), None, |_| {}).await.unwrap();
    assert_eq!(stored, Answer::Stored);
    assert_eq!(pair.other.door.uploads.stats().taken, 1);
}

//! Ports that know their clients by certificate, by address, or not at all; and who has to go when that changes.

use std::{collections::BTreeMap, sync::Arc};

use pithead_hop::{
    accept::{AddressBook, Door, Ended, Handshake, Limits},
    connect::{CertificateRefused, ConnectError, Connection, Endpoint, Untrusted, connect},
    identity::{PeerId, spki_sha256},
    keys::{FetchError, Held, KeyClient},
    program::units,
    tls::{Denied, pinned},
};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::DeviceId;
use rustls::NamedGroup;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::transport::world::{AUTHORITY, Ca, LONG, Leaf, Server, World, site, uri};

async fn answer(connection: &Connection) -> Option<ErrorReason> {
    let mut client = KeyClient::new(connection.clone(), AUTHORITY, site("pit-7"));
    match client.fetch(&Held::default(), LONG).await {
        Err(FetchError::Remote(remote)) => remote.reason,
        other => panic!("the book is empty: {other:?}"),
    }
}

fn id(name: &str) -> PeerId {
    PeerId::from_uri(&format!("spiffe://pit-7/device/{name}")).unwrap()
}

#[tokio::test]
async fn whoever_is_denied_is_refused_as_revoked_and_only_who_would_not_be_let_in_is_cut() {
    let world = World::new();
    let mut tls = world.server_tls();
    let leaf = |serial, name| Leaf { serial, ..Leaf::named(vec![uri(name)]) };
    let listed = world.client_tls(Some(world.pit_7.issue(leaf(7, "spiffe://pit-7/device/listed"))));
    let (named, honest) = (world.truck("named"), world.truck("honest"));
    let server = world.serve_with(&tls, Limits::default()).await;
    server.handle.swap_tls(tls.gate(Denied::default()).unwrap());
    let connect_all = async || {
        let one = server.connect(&listed).await;
        (one, server.connect(&named).await, server.connect(&honest).await)
    };
    let (one, two, three) = connect_all().await;
    let (one, two, three) = (one.unwrap(), two.unwrap(), three.unwrap());
    server.until(|stats| stats.handshakes(Handshake::Ok) == 3).await;
    assert_eq!(server.handle.cut_who_is_not_admitted(), 0);

    tls.sites[0].crls = vec![world.pit_7.crl(7, 2022)];
    let denied = Denied { names: [id("named")].into(), ..Denied::default() };
    server.handle.swap_tls(tls.gate(denied).unwrap());
    assert!(!one.is_ended() && !two.is_ended(), "a swap alone cuts nobody");
    assert_eq!(server.handle.cut_who_is_not_admitted(), 2);
    for gone in [&one, &two] {
        timeout(LONG, gone.ended()).await.expect("cut");
    }
    assert!(!three.is_ended());
    let (one, two, three) = connect_all().await;
    for refused in [one, two] {
        let error = refused.expect_err("refused");
        assert_eq!(error, ConnectError::CertificateRefused(CertificateRefused::Revoked));
    }
    drop(three.unwrap());

    let certificate = server.handle.peers()[0].certificate_sha256.unwrap();
    let denied = Denied { certificates: [certificate].into(), ..Denied::default() };
    server.handle.swap_tls(tls.gate(denied).unwrap());
    let error = server.connect(&honest).await.expect_err("by its hash");
    assert_eq!(error, ConnectError::CertificateRefused(CertificateRefused::Revoked));
    server.connect(&named).await.expect("another one's list");
}

async fn without_certificate(server: &Server, fingerprint: [u8; 32]) -> Result<Connection, ConnectError> {
    let name = ServerName::try_from("any.name").unwrap();
    connect(&Endpoint::from(server.address), &name, pinned(fingerprint), &Default::default()).await
}

#[tokio::test]
async fn a_server_that_is_known_by_its_key_is_that_key_whatever_its_certificate_says() {
    let world = World::new();
    let tls = world.server_tls();
    let leaf = tls.certificate.certificates().unwrap().remove(0);
    let own = spki_sha256(&leaf).unwrap();
    let server = world.serve_with(&tls, Limits::default()).await;
    server.handle.swap_tls(Door::for_applicants(tls.build_for_anybody().unwrap(), site("pit-7")));
    let connection = without_certificate(&server, own).await.unwrap();
    assert_eq!(connection.key_exchange(), Some(NamedGroup::X25519MLKEM768));
    assert_eq!(answer(&connection).await, Some(ErrorReason::KeysNotReady), "it is served");

    // The same certificate in all but its key.
    let mut other = tls.clone();
    (other.certificate, other.key) = Ca::new("gateway").issue(World::server_leaf(2020, 2100));
    server.handle.swap_tls(Door::for_applicants(other.build_for_anybody().unwrap(), site("pit-7")));
    let error = without_certificate(&server, own).await.expect_err("another key");
    assert_eq!(error, ConnectError::Untrusted(Untrusted::Key));
    assert_eq!(error.reason(), ErrorReason::PeerUntrusted);
}

#[tokio::test]
async fn an_address_that_names_nobody_is_told_so_on_every_call_and_one_that_is_taken_away_is_cut() {
    let world = World::new();
    let tls = world.server_tls();
    let own = spki_sha256(&tls.certificate.certificates().unwrap()[0]).unwrap();
    let server = world.serve_with(&tls, Limits::default()).await;
    let door = |devices: &[(&str, &str)]| {
        let devices = devices
            .iter()
            .map(|(address, name)| (address.parse().unwrap(), DeviceId::new(name).unwrap()))
            .collect::<BTreeMap<_, _>>();
        let book = AddressBook { site: site("pit-7"), devices };
        Door::by_address(tls.build_for_anybody().unwrap(), Arc::new(book))
    };
    server.handle.swap_tls(door(&[("10.0.0.1", "elsewhere")]));
    let stranger = without_certificate(&server, own).await.unwrap();
    for _ in 0..2 {
        assert_eq!(answer(&stranger).await, Some(ErrorReason::AddressUnknown));
    }

    server.handle.swap_tls(door(&[("127.0.0.1", "pump-1")]));
    assert_eq!(server.handle.cut_who_is_not_admitted(), 1, "who was nobody is somebody now");
    let pump = without_certificate(&server, own).await.unwrap();
    assert_eq!(answer(&pump).await, Some(ErrorReason::KeysNotReady), "it is served");
    assert!(server.handle.peers().iter().any(|peer| peer.id == id("pump-1")));
    server.handle.swap_tls(door(&[("127.0.0.1", "pump-2")]));
    assert_eq!(server.handle.cut_who_is_not_admitted(), 1);
    timeout(LONG, pump.ended()).await.expect("it is not pump-1 any more");
}

#[tokio::test]
async fn an_address_that_was_told_that_it_names_nobody_does_not_stay() {
    let world = World::new();
    let tls = world.server_tls();
    let own = spki_sha256(&tls.certificate.certificates().unwrap()[0]).unwrap();
    let limits = Limits { first_request: units::Duration::from_secs(1), ..Limits::default() };
    let server = world.serve_with(&tls, limits).await;
    let book = AddressBook { site: site("pit-7"), devices: BTreeMap::new() };
    server.handle.swap_tls(Door::by_address(tls.build_for_anybody().unwrap(), Arc::new(book)));
    let stranger = without_certificate(&server, own).await.unwrap();
    assert_eq!(answer(&stranger).await, Some(ErrorReason::AddressUnknown));
    timeout(LONG, stranger.ended())
        .await
        .expect("it goes, though it may idle for a quarter of an hour elsewhere");
    server.until(|stats| stats.ended(Ended::Idle) == 1 && stats.open == 0).await;
}

#[tokio::test]
async fn who_is_revoked_in_the_middle_of_its_handshake_is_cut_at_its_end() {
    let world = World::new();
    let tls = world.server_tls();
    let server = world.serve_with(&tls, Limits::default()).await;
    server.handle.swap_tls(tls.gate(Denied::default()).unwrap());
    let config = world.truck("stolen").build().unwrap();
    let mut client =
        rustls::ClientConnection::new(config, ServerName::try_from("127.0.0.1").unwrap()).unwrap();
    let mut tcp = TcpStream::connect(server.address).await.unwrap();
    // The client's first flight, and the server's: it has chosen its door by then.
    let mut sent = Vec::new();
    client.write_tls(&mut sent).unwrap();
    tcp.write_all(&sent).await.unwrap();
    let mut heard = [0; 4096];
    while client.is_handshaking() {
        let length = timeout(LONG, tcp.read(&mut heard)).await.expect("the server's flight").unwrap();
        assert!(length > 0);
        client.read_tls(&mut &heard[..length]).unwrap();
        client.process_new_packets().unwrap();
    }

    let denied = Denied { names: [id("stolen")].into(), ..Denied::default() };
    server.handle.swap_tls(tls.gate(denied).unwrap());
    assert_eq!(server.handle.cut_who_is_not_admitted(), 0, "it is not in yet");
    let mut sent = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut sent).unwrap();
    }
    tcp.write_all(&sent).await.unwrap();
    let closed = async { while tcp.read(&mut heard).await.is_ok_and(|length| length > 0) {} };
    timeout(LONG, closed).await.expect("closed");
    server
        .until(|stats| {
            stats.handshakes(Handshake::Ok) == 1 && stats.ended(Ended::Cut) == 1 && stats.open == 0
        })
        .await;
    assert!(server.handle.connections().is_empty());
}

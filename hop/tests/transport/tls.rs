//! Who is let in, and who lets himself be talked to.

use std::{io, sync::Arc};

use pithead_hop::{
    accept::Handshake,
    connect::{CertificateRefused, ConnectError, Untrusted},
    identity::Assurance,
    program::{ExitCode, ProgramError},
    tls::{ClientTls, CrlExpiry, KnownTime, PassedExpiry, Pem, TlsError, provider},
};
use pithead_proto::errors::v1::ErrorReason;
use rustls::{ClientConfig, HandshakeKind, NamedGroup, ProtocolVersion, SupportedProtocolVersion, version};
use rustls_pki_types::ServerName;
use tokio::{io::AsyncReadExt as _, net::TcpStream};
use tokio_rustls::TlsConnector;

use crate::transport::world::{At, Ca, LONG, Leaf, Server, World, new_year, uri};

#[tokio::test]
async fn a_device_is_known_by_its_certificate() {
    let world = World::new();
    let server = world.serve().await;
    let connection = server.connect(&world.truck("truck-1")).await.unwrap();
    let peers = server.handle.peers();
    assert_eq!(peers.len(), 1);
    assert_eq!(peers[0].id.to_string(), "spiffe://pit-7/device/truck-1");
    assert_eq!(peers[0].assurance, Assurance::Vouched);
    assert!(peers[0].certificate_sha256.is_some());
    assert_eq!(connection.remote_addr(), server.address);
    assert!(connection.end_cause().is_none());
}

#[tokio::test]
async fn the_key_exchange_is_hybrid_post_quantum() {
    let world = World::new();
    let server = world.serve().await;
    let connection = server.connect(&world.truck("truck-1")).await.unwrap();
    assert_eq!(connection.key_exchange(), Some(NamedGroup::X25519MLKEM768));
}

async fn refused(server: &Server, tls: &ClientTls) -> ConnectError {
    let error =
        tokio::time::timeout(LONG, server.connect(tls)).await.expect("no hang").expect_err("must be refused");
    assert!(!error.is_retryable(), "{error}");
    error
}

#[tokio::test]
async fn a_server_of_another_ca_is_not_trusted() {
    let world = World::new();
    let server = world.serve().await;
    let tls = ClientTls { ca: Ca::new("gateway").pem(), ..world.truck("truck-1") };
    let error = refused(&server, &tls).await;
    assert_eq!(error, ConnectError::Untrusted(Untrusted::Authority));
    assert_eq!(error.reason(), ErrorReason::PeerUntrusted);
    assert_eq!(ProgramError::from(error).exit, ExitCode::IDENTITY_REFUSED);
}

#[tokio::test]
async fn a_server_of_another_name_is_not_trusted() {
    let world = World::new();
    let server = world.serve().await;
    server.connect_as(&world.truck("truck-1"), "gateway.test").await.unwrap();
    let error = server.connect_as(&world.truck("truck-1"), "decryptor.test").await.expect_err("another name");
    assert_eq!(error, ConnectError::Untrusted(Untrusted::Name));
}

#[tokio::test]
async fn a_client_without_a_certificate_is_told_so() {
    let world = World::new();
    let server = world.serve().await;
    let error = refused(&server, &world.client_tls(None)).await;
    assert_eq!(error, ConnectError::CertificateRequired);
    assert_eq!(error.reason(), ErrorReason::CertificateRequired);
    server.until(|stats| stats.handshakes(Handshake::Certificate) == 1).await;
}

#[tokio::test]
async fn a_certificate_of_an_unknown_ca_is_refused() {
    let world = World::new();
    let server = world.serve().await;
    let error = refused(&server, &world.client_tls(Some(Ca::new("pit-7").device("truck-1")))).await;
    assert_eq!(error, ConnectError::CertificateRefused(CertificateRefused::Authority));
    assert_eq!(error.reason(), ErrorReason::CertificateInvalid);
}

#[tokio::test]
async fn one_sites_ca_does_not_speak_for_another_site() {
    let world = World::new();
    let server = world.serve().await;
    // pit-8's CA is trusted here, for pit-8.
    let own = world.pit_8.issue(Leaf::named(vec![uri("spiffe://pit-8/device/truck-1")]));
    server.connect(&world.client_tls(Some(own))).await.unwrap();
    let error = refused(&server, &world.client_tls(Some(world.pit_8.device("truck-1")))).await;
    assert_eq!(error, ConnectError::CertificateRefused(CertificateRefused::Authority));
    assert_eq!(server.handle.stats().handshakes(Handshake::Ok), 1);
}

#[tokio::test]
async fn a_certificate_with_two_names_or_none_names_nobody() {
    let world = World::new();
    let server = world.serve().await;
    for names in [
        vec![uri("spiffe://pit-7/device/truck-1"), uri("spiffe://pit-7/device/truck-2")],
        vec![uri("spiffe://pit-7/device/truck-1"), uri("https://pit-7.example")],
        vec![uri("spiffe://pit-7/root/truck-1")],
        vec![],
    ] {
        let identity = world.pit_7.issue(Leaf::named(names));
        let error = refused(&server, &world.client_tls(Some(identity))).await;
        assert_eq!(error, ConnectError::CertificateRefused(CertificateRefused::Other));
    }
    assert_eq!(server.handle.stats().handshakes(Handshake::Ok), 0);
}

#[tokio::test]
async fn an_expired_certificate_is_refused_as_expired() {
    let world = World::new();
    let server = world.serve().await;
    let leaf = Leaf { to: 2021, ..Leaf::named(vec![uri("spiffe://pit-7/device/truck-1")]) };
    let error = refused(&server, &world.client_tls(Some(world.pit_7.issue(leaf)))).await;
    assert_eq!(error, ConnectError::CertificateRefused(CertificateRefused::Expired));
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_and_its_live_connection_cut() {
    let world = World::new();
    let mut tls = world.server_tls();
    let server = world.serve_with(&tls, Default::default()).await;
    let leaf = |serial, name| Leaf { serial, ..Leaf::named(vec![uri(name)]) };
    let stolen = world.client_tls(Some(world.pit_7.issue(leaf(7, "spiffe://pit-7/device/stolen"))));
    let honest = world.client_tls(Some(world.pit_7.issue(leaf(8, "spiffe://pit-7/device/honest"))));
    let live = server.connect(&stolen).await.unwrap();
    let bystander = server.connect(&honest).await.unwrap();

    // Past its nextUpdate, which locks nobody out unless configured, and revokes all the same.
    tls.sites[0].crls = vec![world.pit_7.crl(7, 2022)];
    assert!(tls.warnings(new_year(2026)).iter().any(|warning| warning.contains("site.crl")));
    server.handle.swap_tls(tls.build().unwrap());
    let error = refused(&server, &stolen).await;
    assert_eq!(error, ConnectError::CertificateRefused(CertificateRefused::Revoked));
    assert_eq!(error.reason(), ErrorReason::CertificateRevoked);
    server.connect(&honest).await.unwrap();

    assert!(!live.is_ended(), "a new list alone cuts nobody");
    assert_eq!(server.handle.cut(|peer| peer.id.to_string().ends_with("/stolen")), 1);
    tokio::time::timeout(LONG, live.ended()).await.expect("cut");
    assert!(!bystander.is_ended());

    tls.crl_expiry = CrlExpiry::Refuse;
    server.handle.swap_tls(tls.build().unwrap());
    refused(&server, &honest).await;
}

fn raw(tls: &ClientTls, versions: &[&'static SupportedProtocolVersion], alpn: &[&[u8]]) -> Arc<ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(tls.ca.certificates().unwrap().remove(0)).unwrap();
    let (certificate, key) = tls.identity.as_ref().unwrap();
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(certificate.certificates().unwrap(), key.private_key().unwrap())
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Arc::new(config)
}

async fn shake(
    server: &Server,
    config: Arc<ClientConfig>,
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(server.address).await?;
    TlsConnector::from(config).connect(ServerName::try_from("127.0.0.1").unwrap(), tcp).await
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let world = World::new();
    let server = world.serve().await;
    let error =
        shake(&server, raw(&world.truck("old"), &[&version::TLS12], &[b"h2"])).await.expect_err("refused");
    let alert = error.get_ref().unwrap().downcast_ref::<rustls::Error>().unwrap();
    assert_eq!(*alert, rustls::Error::AlertReceived(rustls::AlertDescription::ProtocolVersion));
    server.until(|stats| stats.handshakes(Handshake::Failed) == 1).await;
}

#[tokio::test]
async fn without_http_2_in_alpn_nobody_is_served() {
    let world = World::new();
    let server = world.serve().await;
    let mut stream = shake(&server, raw(&world.truck("a"), &[&version::TLS13], &[])).await.unwrap();
    let mut byte = [0];
    let end = tokio::time::timeout(LONG, stream.read(&mut byte)).await.expect("closed at once");
    assert!(matches!(end, Ok(0) | Err(_)), "nothing was served");
    server.until(|stats| stats.handshakes(Handshake::NoAlpn) == 1).await;

    let error = shake(&server, raw(&world.truck("a"), &[&version::TLS13], &[b"http/1.1"])).await;
    assert!(error.is_err());
    server.until(|stats| stats.handshakes(Handshake::NoAlpn) == 2).await;
    assert_eq!(server.handle.stats().handshakes(Handshake::Ok), 0);
}

#[tokio::test]
async fn a_session_is_never_resumed() {
    let world = World::new();
    let server = world.serve().await;
    // This client would resume if it were given a ticket, and would then send before the handshake has ended.
    let mut config = (*raw(&world.truck("a"), &[&version::TLS13], &[b"h2"])).clone();
    config.enable_early_data = true;
    let config = Arc::new(config);
    for _ in 0..2 {
        let mut stream = shake(&server, config.clone()).await.unwrap();
        // The server's SETTINGS come after any ticket.
        stream.read_exact(&mut [0; 9]).await.unwrap();
        let session = stream.get_ref().1;
        assert_eq!(session.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(session.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        assert_eq!(session.tls13_tickets_received(), 0);
        assert!(!session.is_early_data_accepted());
    }
}

async fn at(
    world: &World,
    server: &Server,
    clock: KnownTime,
    passed_expiry: PassedExpiry,
) -> Result<(), ConnectError> {
    let tls = ClientTls { clock: Arc::new(At(clock)), passed_expiry, ..world.truck("truck-1") };
    server.connect(&tls).await.map(drop)
}

#[tokio::test]
async fn a_lower_bound_of_time_proves_expiry_and_never_earliness() {
    use KnownTime::{AtLeast, Trusted};
    use PassedExpiry::{Refuse, TakeWithoutClock};
    let world = World::new();
    // Valid from 2020 to 2100.
    let server = world.serve().await;
    let expired = Err(ConnectError::Untrusted(Untrusted::Expired));

    for rule in [Refuse, TakeWithoutClock] {
        assert_eq!(at(&world, &server, AtLeast(new_year(1970)), rule).await, Ok(()), "boots in 1970");
        assert_eq!(at(&world, &server, AtLeast(new_year(2050)), rule).await, Ok(()));
        assert_eq!(at(&world, &server, Trusted(new_year(2050)), rule).await, Ok(()));
        assert_eq!(at(&world, &server, Trusted(new_year(2106)), rule).await, expired, "a clock is a clock");
        let early = Err(ConnectError::Untrusted(Untrusted::NotYetValid));
        assert_eq!(at(&world, &server, Trusted(new_year(1970)), rule).await, early);
    }
    assert_eq!(at(&world, &server, AtLeast(new_year(2106)), Refuse).await, expired);
    assert_eq!(
        at(&world, &server, AtLeast(new_year(2106)), TakeWithoutClock).await,
        Ok(()),
        "a poisoned floor is cured"
    );
}

#[tokio::test]
async fn a_passed_end_is_all_that_is_forgiven() {
    let world = World::new();
    let server = world.serve().await;
    let forgiving = ClientTls {
        clock: Arc::new(At(KnownTime::AtLeast(new_year(2106)))),
        passed_expiry: PassedExpiry::TakeWithoutClock,
        ..world.truck("truck-1")
    };
    let error = server.connect_as(&forgiving, "decryptor.test").await.expect_err("another name");
    assert_eq!(error, ConnectError::Untrusted(Untrusted::Name));
    let other_ca = ClientTls { ca: Ca::new("gateway").pem(), ..forgiving };
    let error = server.connect(&other_ca).await.expect_err("another CA");
    assert_eq!(error, ConnectError::Untrusted(Untrusted::Authority));
}

#[test]
fn what_is_wrong_with_a_file_is_said_with_its_name() {
    let world = World::new();
    let good = world.server_tls();

    let mut tls = good.clone();
    tls.key = Pem::new("other.key", rcgen::KeyPair::generate().unwrap().serialize_pem());
    let error = tls.build().unwrap_err();
    assert!(matches!(&error, TlsError::NotAPair { key, .. } if key == "other.key"), "{error}");

    let mut tls = good.clone();
    tls.certificate = Pem::new("empty.pem", "");
    assert_eq!(tls.build().unwrap_err().to_string(), "empty.pem: no CERTIFICATE in it");

    let mut tls = good.clone();
    tls.sites[0].crls = vec![Pem::new("bad.crl", "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n")];
    assert!(matches!(tls.build().unwrap_err(), TlsError::Crl { origin, .. } if origin == "bad.crl"));

    let mut tls = good.clone();
    tls.certificate = Pem::new("cut.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n");
    assert!(matches!(tls.build().unwrap_err(), TlsError::NotPem { origin, .. } if origin == "cut.pem"));

    let mut tls = good.clone();
    tls.sites[1].ca = tls.sites[0].ca.clone();
    assert!(
        matches!(tls.build().unwrap_err(), TlsError::SharedCa(..)),
        "one CA must not speak for two sites"
    );

    let mut tls = good.clone();
    tls.sites[1].site = tls.sites[0].site.clone();
    assert!(matches!(tls.build().unwrap_err(), TlsError::SiteTwice(_)));

    let mut tls = good;
    tls.sites.clear();
    assert!(matches!(tls.build().unwrap_err(), TlsError::NoSite));

    let error = Pem::read("/nowhere/gateway.pem".as_ref()).unwrap_err();
    assert!(error.to_string().starts_with("/nowhere/gateway.pem: cannot be read"));
    assert_eq!(ProgramError::from(error).exit, ExitCode::CONFIG_INVALID);
    assert!(!format!("{:?}", world.truck("a")).contains("BEGIN"), "no key in debug output");
}

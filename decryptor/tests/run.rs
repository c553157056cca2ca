//! `run` over real TLS: what is sent arrives as a file, stopping loses nothing, and each bad start says what is wrong.

#![allow(clippy::unwrap_used)]

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeySize, PrivateDecryptingKey};
use bytes::Bytes;
use pithead_decryptor::authority::{
    AuthorityDir, InitOptions, Issued, KeyFileSigner, OfferedKey, StatementRequest, init, issue,
    read_signing_key,
};
use pithead_decryptor::commands::run::{Addresses, serve};
use pithead_hop::connect::{ConnectOptions, Connection, Endpoint, connect};
use pithead_hop::keys::{Held, KeyClient};
use pithead_hop::program::{ProgramError, install_crypto};
use pithead_hop::tls::{ClientTls, PassedExpiry, Pem, SystemClock};
use pithead_proto::errors::v1::ErrorReason;
use pithead_proto::ingest::v1::{SubmitRequest, ingest_service_client::IngestServiceClient};
use pithead_sealing::envelope::{ContentType, KernelEntropy, Session, SessionClock, SessionContext};
use pithead_sealing::trust::{KeyArn, KeyStatus, RsaSpki, UnixTime};
use pithead_sealing::{DeviceId, Run, Seq, Site, StreamName};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/00000000-0000-0000-0000-000000000001";
/// 2026-11-23T00:00:00Z
const START: UnixTime = UnixTime(1_795_392_000);

struct Ca {
    certificate: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Ca {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: rcgen::Issuer::new(params, key) }
    }

    /// (certificate, key) in PEM.
    fn sign(&self, name: rcgen::SanType) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = vec![name];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// A site, a cloud and an authority in one folder.
struct World {
    dir: tempfile::TempDir,
    issued: Issued,
    site_ca: Ca,
    server_ca: Ca,
}

impl World {
    async fn new() -> Self {
        install_crypto();
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let private = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
        let der: Pkcs8V1Der<'_> = private.as_der().unwrap();
        let document = pkcs8::SecretDocument::try_from(der.as_ref()).unwrap();
        document.write_pem_file(at("private.pem"), "PRIVATE KEY", pkcs8::LineEnding::LF).unwrap();
        let spki: PublicKeyX509Der<'_> = private.public_key().as_der().unwrap();

        let authority = at("authority");
        let options = InitOptions { min_rsa_bits: 2048, ..InitOptions::new("acme-mining/prod") };
        init(&authority, &options, START).unwrap();
        let signer =
            KeyFileSigner::new(read_signing_key(&authority.join("keys/statement-1.pem"), None).unwrap());
        let authority = AuthorityDir::open(&authority).unwrap();
        let site = Site::new("pit-7").unwrap();
        let request = StatementRequest {
            keys: vec![OfferedKey {
                arn: KeyArn::new(ARN).unwrap(),
                spki: Some(RsaSpki::from_der(spki.as_ref()).unwrap()),
                status: KeyStatus::Active,
            }],
            no_standby: true,
            ..StatementRequest::to(vec![site.clone()])
        };
        let issued = issue(&authority, &signer, &[], &request, START).await.unwrap();
        fs::copy(authority.bundle_path(&site), at("bundle.pb")).unwrap();

        let (site_ca, server_ca) = (Ca::new(), Ca::new());
        let (certificate, key) = server_ca.sign(rcgen::SanType::DnsName("localhost".try_into().unwrap()));
        fs::write(at("server.pem"), certificate).unwrap();
        fs::write(at("server.key"), key).unwrap();
        fs::write(at("pit-7-ca.pem"), site_ca.certificate.pem()).unwrap();
        fs::create_dir(at("data")).unwrap();
        let world = Self { dir, issued, site_ca, server_ca };
        fs::write(world.config(), world.text()).unwrap();
        world
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("decryptor.toml")
    }

    fn text(&self) -> String {
        format!(
            r#"
[decryptor]
data_dir = "data"
certificate = "server.pem"
private_key = "server.key"
[ingest]
listen = "127.0.0.1:0"
[[site]]
name = "pit-7"
ca = "pit-7-ca.pem"
[keys]
bundles = ["bundle.pb"]
[[unwrap.local]]
arn = "{ARN}"
private_key = "private.pem"
[sink]
kind = "folder"
path = "out"
[admin]
listen = "127.0.0.1:0"
"#
        )
    }

    async fn start(&self) -> Running {
        let stop = CancellationToken::new();
        let (started, starting) = oneshot::channel();
        let (config, token) = (self.config(), stop.clone());
        let task = tokio::spawn(async move { serve(&config, token, None, started).await });
        match starting.await {
            Ok(addresses) => Running { addresses, stop, task },
            Err(_) => panic!("{}", task.await.unwrap().unwrap_err()),
        }
    }

    /// What a start that must fail says.
    async fn refused(&self) -> ProgramError {
        let (started, _) = oneshot::channel();
        serve(&self.config(), CancellationToken::new(), None, started).await.unwrap_err()
    }

    async fn connect(&self, running: &Running, ca: &Ca, uri: &str) -> Result<Connection, ErrorReason> {
        let (certificate, key) = ca.sign(rcgen::SanType::URI(uri.try_into().unwrap()));
        let tls = ClientTls {
            ca: Pem::new("server CA", self.server_ca.certificate.pem()),
            identity: Some((Pem::new("certificate", certificate), Pem::new("key", key))),
            clock: Arc::new(SystemClock),
            passed_expiry: PassedExpiry::Refuse,
        };
        let endpoint: Endpoint = format!("localhost:{}", running.addresses.ingest.port()).parse().unwrap();
        connect(&endpoint, &endpoint.server_name(), tls.build().unwrap(), &ConnectOptions::default())
            .await
            .map_err(|error| error.reason())
    }

    fn sealed(&self, device: &str, plaintext: &[u8]) -> Bytes {
        let content_type = ContentType::new("text/plain").unwrap();
        let (site, device) = (Site::new("pit-7").unwrap(), DeviceId::new(device).unwrap());
        let context = SessionContext::new(site, device, StreamName::new("can").unwrap(), content_type);
        let clock = SessionClock { boot: Duration::ZERO, now: START };
        let key = &self.issued.in_force;
        let mut session =
            Session::start(key, &context, Run::new(7).unwrap(), None, clock, &mut KernelEntropy).unwrap();
        let sealed = session.seal(Seq::FIRST, plaintext, Duration::ZERO, &mut KernelEntropy).unwrap();
        sealed.bytes().clone()
    }
}

struct Running {
    addresses: Addresses,
    stop: CancellationToken,
    task: JoinHandle<Result<(), ProgramError>>,
}

impl Running {
    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }

    async fn page(&self, path: &str) -> String {
        self.ask("GET", path, "").await
    }

    async fn ask(&self, method: &str, path: &str, header: &str) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream =
            tokio::net::TcpStream::connect(self.addresses.admin.socket_addr().unwrap()).await.unwrap();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\n{header}content-length: 0\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_fetches_keys_and_its_envelope_becomes_a_file() {
    let world = World::new().await;
    let running = world.start().await;
    assert!(running.page("/readyz").await.starts_with("HTTP/1.1 200"));
    let connection = world.connect(&running, &world.site_ca, "spiffe://pit-7/gateway/gate-1").await.unwrap();

    let site = Site::new("pit-7").unwrap();
    let mut keys = KeyClient::new(connection.clone(), "acme-mining/prod", site);
    let answer = keys.fetch(&Held::default(), Duration::from_secs(10)).await.unwrap();
    let bundle = answer.bundle.expect("who holds nothing is told everything");
    assert_eq!(bundle.statement.as_ref(), Some(world.issued.statement.object()));

    let mut client = IngestServiceClient::new(connection);
    let envelope = world.sealed("truck-1", b"telemetry");
    for again in [false, true] {
        let answer = client.submit(SubmitRequest { envelope: envelope.clone() }).await.unwrap().into_inner();
        assert_eq!(answer.duplicate.is_some(), again);
        assert_eq!(answer.trust.map(|trust| trust.sequence), Some(1));
    }
    let mut broken = world.sealed("truck-2", b"x").to_vec();
    broken.push(0);
    let status = client.submit(SubmitRequest { envelope: broken.into() }).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);

    let metrics = running.page("/metrics").await;
    for line in [
        "pithead_decryptor_envelopes_total{outcome=\"applied\"} 1",
        "pithead_decryptor_envelopes_total{outcome=\"duplicate\"} 1",
        "pithead_decryptor_refused_total{reason=\"ENVELOPE_TRAILING\"} 1",
        "pithead_unwraps_total 1",
        "pithead_statement_sequence 1",
    ] {
        assert!(metrics.contains(line), "{line} is missing from:\n{metrics}");
    }
    assert!(running.page("/statusz").await.contains("\"applied\":1"));
    running.stop().await;
    let file = world.dir.path().join("out/pit-7/truck-1/can/0000000000000007/00000000000000000001.txt");
    assert_eq!(fs::read(file).unwrap(), b"telemetry");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_speaks_for_its_own_site_and_device_alone() {
    let world = World::new().await;
    let running = world.start().await;
    let stranger = Ca::new();
    let refused = world.connect(&running, &stranger, "spiffe://pit-7/gateway/gate-1").await.unwrap_err();
    assert_eq!(refused, ErrorReason::CertificateInvalid);
    let device = world.connect(&running, &world.site_ca, "spiffe://pit-7/device/truck-2").await.unwrap();
    let request = SubmitRequest { envelope: world.sealed("truck-1", b"x") };
    let status = IngestServiceClient::new(device).submit(request).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::PermissionDenied);
    running.stop().await;
    assert!(!world.dir.path().join("out/pit-7").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_fails_says_what_is_wrong() {
    let world = World::new().await;
    let write = |from: &str, to: &str| fs::write(world.config(), world.text().replace(from, to)).unwrap();

    write("data_dir", "data_dri");
    let typo = world.refused().await;
    assert_eq!((typo.reason, typo.exit.get()), (ErrorReason::ConfigInvalid, 78));
    assert!(typo.to_string().contains("did you mean `data_dir`"), "{typo}");

    write("data_dir = \"data\"", "data_dir = \"nowhere\"");
    let missing = world.refused().await;
    assert_eq!((missing.reason, missing.exit.get()), (ErrorReason::DataDirUnwritable, 73));

    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    write(
        "[ingest]\nlisten = \"127.0.0.1:0\"",
        &format!("[ingest]\nlisten = \"{}\"", taken.local_addr().unwrap()),
    );
    assert_eq!(world.refused().await.reason, ErrorReason::PortTaken);

    write("private.pem", "server.pem");
    assert_eq!(world.refused().await.reason, ErrorReason::ConfigInvalid);

    write("path = \"out\"", "path = \"no/such/parent\"");
    let sink = world.refused().await;
    assert_eq!((sink.reason, sink.exit.get()), (ErrorReason::SinkFailed, 73));

    write("", "");
    let running = world.start().await;
    assert_eq!(world.refused().await.reason, ErrorReason::DataDirLocked);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_that_is_not_believed_changes_nothing() {
    let world = World::new().await;
    world.start().await.stop().await;
    // What was accepted once is known although its bundle is broken now: envelopes under its keys are still admitted.
    let bundle = world.dir.path().join("bundle.pb");
    let mut bytes = fs::read(&bundle).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&bundle, bytes).unwrap();
    let running = world.start().await;
    let connection = world.connect(&running, &world.site_ca, "spiffe://pit-7/gateway/gate-1").await.unwrap();
    let request = SubmitRequest { envelope: world.sealed("truck-1", b"x") };
    IngestServiceClient::new(connection).submit(request).await.unwrap();
    assert!(running.page("/metrics").await.contains("pithead_statement_sequence 0"));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_an_older_bundle_is_served_no_more_than_before_it() {
    let world = World::new().await;
    let bundle = world.dir.path().join("bundle.pb");
    let older = fs::read(&bundle).unwrap();
    let authority = AuthorityDir::open(&world.dir.path().join("authority")).unwrap();
    let signer = read_signing_key(&world.dir.path().join("authority/keys/statement-1.pem"), None).unwrap();
    let site = Site::new("pit-7").unwrap();
    let request = StatementRequest { no_standby: true, ..StatementRequest::to(vec![site.clone()]) };
    let signer = KeyFileSigner::new(signer);
    issue(&authority, &signer, &[], &request, UnixTime(START.0 + 86_400)).await.unwrap();
    let newer = fs::read(authority.bundle_path(&site)).unwrap();

    let served = async |bytes: &[u8]| {
        fs::write(&bundle, bytes).unwrap();
        let running = world.start().await;
        let metrics = running.page("/metrics").await;
        running.stop().await;
        let sequence = metrics.lines().find_map(|line| line.strip_prefix("pithead_statement_sequence "));
        sequence.unwrap().to_owned()
    };
    assert_eq!(served(&older).await, "1");
    assert_eq!(served(&newer).await, "2");
    assert_eq!(served(&older).await, "0", "a statement of the past was served");
    assert_eq!(served(&newer).await, "2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_to_reload_is_answered_and_a_bundle_that_is_not_named_any_more_is_not_served() {
    let world = World::new().await;
    let running = world.start().await;
    let connection = world.connect(&running, &world.site_ca, "spiffe://pit-7/gateway/gate-1").await.unwrap();
    let mut keys = KeyClient::new(connection.clone(), "acme-mining/prod", Site::new("pit-7").unwrap());
    assert!(keys.fetch(&Held::default(), Duration::from_secs(10)).await.unwrap().bundle.is_some());

    let write = |from: &str, to: &str| fs::write(world.config(), world.text().replace(from, to)).unwrap();
    write("[sink]", "[[sink]]");
    let refused = running.ask("POST", "/reload", "").await;
    assert!(refused.starts_with("HTTP/1.1 409") && refused.contains("CONFIG_INVALID"), "{refused}");
    let page = running.ask("POST", "/reload", "origin: http://elsewhere\r\n").await;
    assert!(page.starts_with("HTTP/1.1 403"), "{page}");

    // A name that is wrong takes nothing away, and whoever ordered it hears of it.
    write("bundle.pb", "bundel.pb");
    let taken = running.ask("POST", "/reload", "").await;
    assert!(taken.starts_with("HTTP/1.1 200") && taken.contains("PH-6002 CONFIG_UNREADABLE"), "{taken}");
    assert!(keys.fetch(&Held::default(), Duration::from_secs(10)).await.unwrap().bundle.is_some());
    assert!(
        running
            .page("/metrics")
            .await
            .contains("pithead_key_statement_expires_timestamp_seconds{site=\"pit-7\"}")
    );

    write("bundles = [\"bundle.pb\"]", &format!("bundles = []\nallow = [\"{ARN}\"]"));
    let taken = running.ask("POST", "/reload", "").await;
    assert!(taken.starts_with("HTTP/1.1 200") && taken.contains("[keys] bundles"), "{taken}");
    assert!(taken.contains("decryptor.toml"), "it says which file was read: {taken}");
    keys.fetch(&Held::default(), Duration::from_secs(10)).await.unwrap_err();
    let metrics = running.page("/metrics").await;
    let of_statements = |line: &&str| line.starts_with("pithead_key_statement_");
    assert_eq!(
        metrics.lines().filter(of_statements).collect::<Vec<_>>(),
        [""; 0],
        "no alert on what is not served"
    );
    assert!(metrics.contains("pithead_statement_sequence 0"), "{metrics}");
    // What the statement named stays known: envelopes under it are on their way.
    let request = SubmitRequest { envelope: world.sealed("truck-1", b"x") };
    IngestServiceClient::new(connection.clone()).submit(request).await.unwrap();

    write("listen = \"127.0.0.1:0\"\n[[site]]", "listen = \"127.0.0.1:9\"\n[[site]]");
    fs::remove_file(world.dir.path().join("pit-7-ca.pem")).unwrap();
    let refused = running.ask("POST", "/reload", "").await;
    assert!(refused.starts_with("HTTP/1.1 409") && refused.contains("pit-7-ca.pem"), "{refused}");
    running.stop().await;
}

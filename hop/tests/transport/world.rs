//! Certificates made on the spot, a server on a free port of loopback, and clients of it.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use pithead_hop::{
    accept::{AcceptHandle, Acceptor, Limits, Stopped},
    connect::{ConnectError, ConnectOptions, Connection, Endpoint, connect},
    keys::{KeyServer, ServedKeys, SiteKeys},
    tls::{
        ClientTls, CrlExpiry, KnownTime, PassedExpiry, Pem, ServerTls, SiteTrust, SystemClock, TimeSource,
    },
};
use pithead_sealing::Site;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber, date_time_ymd,
};
use rustls_pki_types::{ServerName, UnixTime};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

/// Longer than anything here may take, so that a hang is a failure with a name.
pub(crate) const LONG: Duration = Duration::from_secs(20);
pub(crate) const AUTHORITY: &str = "acme-mining/test";

pub(crate) fn site(name: &str) -> Site {
    Site::new(name).unwrap()
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

pub(crate) struct Ca(CertifiedIssuer<'static, KeyPair>);

/// What a test varies of a certificate.
pub(crate) struct Leaf {
    pub(crate) names: Vec<SanType>,
    pub(crate) from: i32,
    pub(crate) to: i32,
    pub(crate) serial: u8,
}

impl Leaf {
    pub(crate) fn named(names: Vec<SanType>) -> Self {
        Self { names, from: 2020, to: 2100, serial: 1 }
    }
}

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

    pub(crate) fn issue(&self, leaf: Leaf) -> (Pem, Pem) {
        let mut params = CertificateParams::default();
        params.subject_alt_names = leaf.names;
        params.not_before = date_time_ymd(leaf.from, 1, 1);
        params.not_after = date_time_ymd(leaf.to, 1, 1);
        params.serial_number = Some(SerialNumber::from_slice(&[leaf.serial]));
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (Pem::new("leaf.pem", certificate.pem()), Pem::new("leaf.key", key.serialize_pem()))
    }

    pub(crate) fn device(&self, name: &str) -> (Pem, Pem) {
        self.issue(Leaf::named(vec![uri(&format!("spiffe://pit-7/device/{name}"))]))
    }

    pub(crate) fn crl(&self, revoked: u8, next_update: i32) -> Pem {
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2021, 1, 1),
            next_update: date_time_ymd(next_update, 1, 1),
            crl_number: SerialNumber::from_slice(&[1]),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: SerialNumber::from_slice(&[revoked]),
                revocation_time: date_time_ymd(2021, 1, 1),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Pem::new("site.crl", params.signed_by(&self.0).unwrap().pem().unwrap())
    }
}

/// A time that a test sets.
#[derive(Debug)]
pub(crate) struct At(pub(crate) KnownTime);

impl TimeSource for At {
    fn now(&self) -> KnownTime {
        self.0
    }
}

/// The first of January of `year`.
pub(crate) fn new_year(year: i32) -> UnixTime {
    let seconds = date_time_ymd(year, 1, 1).unix_timestamp();
    UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(seconds).unwrap()))
}

pub(crate) struct World {
    pub(crate) gateway_ca: Ca,
    pub(crate) pit_7: Ca,
    pub(crate) pit_8: Ca,
}

impl World {
    pub(crate) fn new() -> Self {
        Self { gateway_ca: Ca::new("gateway"), pit_7: Ca::new("pit-7"), pit_8: Ca::new("pit-8") }
    }

    pub(crate) fn server_leaf(from: i32, to: i32) -> Leaf {
        let local = SanType::IpAddress("127.0.0.1".parse().unwrap());
        Leaf { names: vec![local, SanType::DnsName("gateway.test".try_into().unwrap())], from, to, serial: 1 }
    }

    pub(crate) fn server_tls(&self) -> ServerTls {
        let (certificate, key) = self.gateway_ca.issue(Self::server_leaf(2020, 2100));
        let trust = |name: &str, ca: &Ca| SiteTrust { site: site(name), ca: ca.pem(), crls: Vec::new() };
        ServerTls {
            certificate,
            key,
            sites: vec![trust("pit-7", &self.pit_7), trust("pit-8", &self.pit_8)],
            crl_expiry: CrlExpiry::UseStale,
        }
    }

    pub(crate) fn client_tls(&self, identity: Option<(Pem, Pem)>) -> ClientTls {
        ClientTls {
            ca: self.gateway_ca.pem(),
            identity,
            clock: Arc::new(SystemClock),
            passed_expiry: PassedExpiry::Refuse,
        }
    }

    pub(crate) fn truck(&self, name: &str) -> ClientTls {
        self.client_tls(Some(self.pit_7.device(name)))
    }

    pub(crate) async fn serve(&self) -> Server {
        self.serve_with(&self.server_tls(), Limits::default()).await
    }

    pub(crate) async fn serve_with(&self, tls: &ServerTls, limits: Limits) -> Server {
        let acceptor =
            Acceptor::bind("127.0.0.1:0".parse().unwrap(), tls.build().unwrap(), limits).await.unwrap();
        let (book, keys) = watch::channel(None);
        let stop = CancellationToken::new();
        let books = BTreeMap::from([(site("pit-7"), SiteKeys { authority: AUTHORITY.to_owned(), keys })]);
        let keys = KeyServer::new(books, || 1_234_567, stop.clone());
        let (address, handle) = (acceptor.local_addr(), acceptor.handle());
        let routes = Routes::new(keys.clone().into_service());
        let task = tokio::spawn(acceptor.serve(routes, stop.clone()));
        Server { address, handle, stop, task, book, keys }
    }
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) handle: AcceptHandle,
    pub(crate) stop: CancellationToken,
    pub(crate) task: JoinHandle<Stopped>,
    pub(crate) book: watch::Sender<Option<Arc<ServedKeys>>>,
    pub(crate) keys: KeyServer,
}

impl Server {
    pub(crate) async fn connect(&self, tls: &ClientTls) -> Result<Connection, ConnectError> {
        self.connect_as(tls, "127.0.0.1").await
    }

    pub(crate) async fn connect_as(&self, tls: &ClientTls, name: &str) -> Result<Connection, ConnectError> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let options = ConnectOptions { connect_timeout: LONG, ..ConnectOptions::default() };
        connect(&Endpoint::from(self.address), &name, tls.build().unwrap(), &options).await
    }

    /// Waits until the counters say so.
    pub(crate) async fn until(&self, what: impl Fn(&pithead_hop::accept::AcceptStats) -> bool) {
        let wait = async {
            while !what(&self.handle.stats()) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let stats = || self.handle.stats();
        tokio::time::timeout(LONG, wait).await.unwrap_or_else(|_| panic!("never happened: {:?}", stats()));
    }
}

//! A stolen gateway: it holds the real one's certificate and key, and answers about keys whatever the thief likes.
//!
//! Nothing of what it serves is looked at, so that it can say what no honest program would.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream::BoxStream};
use pithead_hop::{
    accept::{Acceptor, Limits},
    tls::{CrlExpiry, Pem, ServerTls, SiteTrust},
};
use pithead_proto::keys::v1::{
    GetKeyBundleRequest, GetKeyBundleResponse, KeyBundle, TrustVersion, WatchKeyBundleRequest,
    WatchKeyBundleResponse,
    key_service_server::{KeyService, KeyServiceServer},
};
use pithead_sealing::Site as SiteName;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, service::Routes};

use crate::{
    authority::AUTHORITY,
    kms::KmsKey,
    site::{SITE, Site},
};

/// The stolen gateway, on the real one's address. It is gone when dropped.
#[derive(Debug)]
pub struct Rogue {
    lie: Lie,
    root: Bytes,
    _stop: DropGuard,
}

#[derive(Clone, Debug, Default)]
struct Lie {
    /// What is said, and whether only once.
    said: Arc<Mutex<Option<(KeyBundle, bool)>>>,
    asked: Arc<AtomicU64>,
}

impl Rogue {
    /// Takes the place of the site's gateway, which does not run, with its certificate.
    pub async fn start(site: &Site) -> anyhow::Result<Self> {
        let read = |name: &str| Pem::read(&site.folder().join("gateway").join(name));
        let trust = SiteTrust { site: SiteName::new(SITE)?, ca: read("site-ca.pem")?, crls: Vec::new() };
        let tls = ServerTls {
            certificate: read("gateway.pem")?,
            key: read("gateway.key")?,
            sites: vec![trust],
            crl_expiry: CrlExpiry::UseStale,
        };
        let address: SocketAddr = site.gateway_address();
        // A test asks faster than a fleet of one.
        let limits = Limits {
            requests_per_second: u32::MAX,
            request_burst: u32::MAX,
            connection_burst_per_ip: u32::MAX,
            connections_per_second_per_ip: u32::MAX,
            ..Limits::default()
        };
        let acceptor = Acceptor::bind(address, tls.build()?, limits).await?;
        let (lie, stop) = (Lie::default(), CancellationToken::new());
        let service = KeyServiceServer::new(lie.clone());
        tokio::spawn(acceptor.serve(Routes::new(service), stop.clone()));
        let root = std::fs::read(site.authority.root())?.into();
        Ok(Self { lie, root, _stop: stop.drop_guard() })
    }

    /// Answers everybody with this statement and these public keys from now on.
    pub fn serve(&self, statement: Bytes, spkis: &[&KmsKey]) {
        let spkis = spkis.iter().map(|key| Bytes::copy_from_slice(key.spki_der())).collect();
        self.say(vec![self.root.clone()], statement, spkis);
    }

    /// Answers everybody with these bytes from now on, whatever they hold already.
    pub fn say(&self, roots: Vec<Bytes>, statement: Bytes, spkis: Vec<Bytes>) {
        let (authority, site) = (AUTHORITY.to_owned(), SITE.to_owned());
        self.lie.say(KeyBundle { authority, site, roots, statement, spkis }, false);
    }

    /// Answers the next question with this, every field of it, and says after that that nothing is new.
    pub fn say_once(&self, bundle: KeyBundle) {
        self.lie.say(bundle, true);
    }

    /// Says that there is nothing new, whatever there is.
    pub fn freeze(&self) {
        *self.lie.lock() = None;
    }

    /// Questions it was asked.
    #[must_use]
    pub fn asked(&self) -> u64 {
        self.lie.asked.load(Ordering::Relaxed)
    }
}

impl Lie {
    fn lock(&self) -> MutexGuard<'_, Option<(KeyBundle, bool)>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, bundle: KeyBundle, once: bool) {
        *self.lock() = Some((bundle, once));
    }

    fn now(&self) -> Option<KeyBundle> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let mut said = self.lock();
        if matches!(&*said, Some((_, true))) {
            return said.take().map(|(bundle, _)| bundle);
        }
        said.as_ref().map(|(bundle, _)| bundle.clone())
    }
}

#[tonic::async_trait]
impl KeyService for Lie {
    async fn get_key_bundle(
        &self,
        _request: Request<GetKeyBundleRequest>,
    ) -> Result<Response<GetKeyBundleResponse>, Status> {
        let bundle = self.now();
        // A version that no statement has: devices may ask for it, and must not believe it.
        let trust = Some(TrustVersion { epoch: u64::MAX, sequence: u64::MAX });
        let unchanged = bundle.is_none();
        Ok(Response::new(GetKeyBundleResponse { bundle, unchanged, time_us: u64::MAX, trust }))
    }

    type WatchKeyBundleStream = BoxStream<'static, Result<WatchKeyBundleResponse, Status>>;

    async fn watch_key_bundle(
        &self,
        _request: Request<WatchKeyBundleRequest>,
    ) -> Result<Response<Self::WatchKeyBundleStream>, Status> {
        let silence = futures_util::stream::pending();
        let bundle = self.now();
        let answer = WatchKeyBundleResponse { bundle, time_us: u64::MAX, trust: None };
        Ok(Response::new(futures_util::stream::iter([Ok(answer)]).chain(silence).boxed()))
    }
}

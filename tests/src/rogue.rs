//! A stolen gateway: it holds the real one's certificate and key, and serves whatever keys the thief likes.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use bytes::Bytes;
use pithead_hop::{
    accept::{Acceptor, Limits},
    keys::{KeyServer, ServedKeys, SiteKeys},
    tls::{CrlExpiry, Pem, ServerTls, SiteTrust},
};
use pithead_sealing::Site as SiteName;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::service::Routes;

use crate::{
    authority::AUTHORITY,
    kms::KmsKey,
    site::{SITE, Site},
};

/// The stolen gateway, on the real one's address. It is gone when dropped.
#[derive(Debug)]
pub struct Rogue {
    keys: watch::Sender<Option<Arc<ServedKeys>>>,
    root: Bytes,
    _stop: DropGuard,
}

impl Rogue {
    /// Takes the place of the site's gateway, which does not run, with its certificate.
    pub async fn start(site: &Site) -> anyhow::Result<Self> {
        let read = |name: &str| Pem::read(&site.folder().join("gateway").join(name));
        let name = SiteName::new(SITE)?;
        let trust = SiteTrust { site: name.clone(), ca: read("site-ca.pem")?, crls: Vec::new() };
        let tls = ServerTls {
            certificate: read("gateway.pem")?,
            key: read("gateway.key")?,
            sites: vec![trust],
            crl_expiry: CrlExpiry::UseStale,
        };
        let address: SocketAddr = site.gateway_address();
        let acceptor = Acceptor::bind(address, tls.build()?, Limits::default()).await?;
        let (keys, served) = watch::channel(None);
        let stop = CancellationToken::new();
        let books = BTreeMap::from([(name, SiteKeys { authority: AUTHORITY.to_owned(), keys: served })]);
        let server = KeyServer::new(books, || 0, stop.clone());
        tokio::spawn(acceptor.serve(Routes::new(server.into_service()), stop.clone()));
        let root = std::fs::read(site.authority.root())?.into();
        Ok(Self { keys, root, _stop: stop.drop_guard() })
    }

    /// Serves this statement with these public keys from now on.
    pub fn serve(&self, statement: Bytes, spkis: &[&KmsKey]) -> anyhow::Result<()> {
        let spkis = spkis.iter().map(|key| Bytes::copy_from_slice(key.spki_der())).collect();
        let served = ServedKeys::new(SiteName::new(SITE)?, vec![self.root.clone()], statement, spkis);
        self.keys.send_replace(Some(Arc::new(served.context("what cannot be read cannot be served")?)));
        Ok(())
    }
}

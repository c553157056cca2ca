//! Where statements come from: the upstream `KeyService`, or a bundle file that somebody carries in.
//!
//! Neither is believed. What they bring is verified against the root held here, exactly as a device does.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use pithead_hop::backoff::{self, Backoff, Policy};
use pithead_hop::connect::{ConnectError, ConnectOptions, Endpoint, connect};
use pithead_hop::keys::{FetchError, KeyClient, KeyFile, WireError};
use pithead_hop::trace::TraceParent;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::Site;
use pithead_sealing::trust::Bundle;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::sync::watch;

pub use pithead_hop::keys::Held;

/// An upstream answers from memory; what takes longer is not coming.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Between two attempts to be told of news: a WAN that is down for days costs one connection a minute.
const WATCH_AGAIN: Policy = Policy { first: Duration::from_secs(1), max: Duration::from_secs(60) };

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// No connection to the upstream.
    #[error("upstream: {0}")]
    Connect(#[from] ConnectError),
    /// The upstream refused, or answered with no bundle.
    #[error("upstream: {0}")]
    Fetch(#[from] FetchError),
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// The bundle.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is no bundle.
    #[error("{}: {source}", path.display())]
    NotABundle {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: WireError,
    },
}

impl SourceError {
    /// The reason in the registry.
    #[must_use]
    pub fn reason(&self) -> ErrorReason {
        match self {
            Self::Connect(error) => error.reason(),
            Self::Fetch(error) => error.reason(),
            Self::NotABundle { source, .. } => source.reason(),
            Self::File { .. } => ErrorReason::ConfigUnreadable,
        }
    }
}

/// Gives bundles. What it gives is not verified.
pub trait StatementSource: Send + Sync + std::fmt::Debug {
    /// What is newer than what is held; nothing if nothing is.
    fn fetch<'a>(&'a self, held: &'a Held) -> BoxFuture<'a, Result<Option<Bundle>, SourceError>>;

    /// The same, as a part of that span, where somebody else is asked.
    fn fetch_within<'a>(
        &'a self,
        held: &'a Held,
        trace: Option<TraceParent>,
    ) -> BoxFuture<'a, Result<Option<Bundle>, SourceError>> {
        let _ = trace;
        self.fetch(held)
    }

    /// Resolves when the source says that it has something newer; never, if it cannot say. Cancel safe.
    fn changed<'a>(&'a self, held: &'a Held) -> BoxFuture<'a, ()>;
}

/// The `KeyService` of the cloud, or of another gateway.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// Where it is.
    pub endpoint: Endpoint,
    /// The name in its certificate.
    pub name: ServerName<'static>,
    /// Its CA, and our certificate. The newest is used for every connection.
    pub tls: watch::Receiver<Arc<ClientConfig>>,
    /// Whose statements.
    pub authority: String,
    /// For which site.
    pub site: Site,
}

impl Upstream {
    async fn client(&self, trace: Option<TraceParent>) -> Result<KeyClient, ConnectError> {
        let options = ConnectOptions::default();
        let tls = self.tls.borrow().clone();
        let connection = connect(&self.endpoint, &self.name, tls, &options).await?;
        Ok(KeyClient::traced(connection, trace, self.authority.clone(), self.site.clone()))
    }
}

impl StatementSource for Upstream {
    fn fetch<'a>(&'a self, held: &'a Held) -> BoxFuture<'a, Result<Option<Bundle>, SourceError>> {
        self.fetch_within(held, None)
    }

    fn fetch_within<'a>(
        &'a self,
        held: &'a Held,
        trace: Option<TraceParent>,
    ) -> BoxFuture<'a, Result<Option<Bundle>, SourceError>> {
        Box::pin(async move { Ok(self.client(trace).await?.fetch(held, ANSWER_LIMIT).await?.bundle) })
    }

    fn changed<'a>(&'a self, held: &'a Held) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let mut backoff = Backoff::new(WATCH_AGAIN);
            loop {
                let told = async {
                    let mut watch = self.client(None).await?.watch(held).await?;
                    watch.next().await?;
                    Ok::<(), SourceError>(())
                };
                let Err(error) = told.await else { return };
                // An upstream that was restarted has news soon, and the next visit may be a quarter of an hour away.
                tracing::debug!(event = "key.watch_ended", %error);
                tokio::time::sleep(backoff.next_delay(backoff::random(), None)).await;
            }
        })
    }
}

/// A bundle file: what `pithead-decryptor authority statement --out` wrote.
#[derive(Debug, Clone)]
pub struct BundleFile {
    path: PathBuf,
}

impl BundleFile {
    /// The file at `path`, read anew at every visit.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }
}

impl StatementSource for BundleFile {
    fn fetch<'a>(&'a self, _held: &'a Held) -> BoxFuture<'a, Result<Option<Bundle>, SourceError>> {
        let path = || self.path.clone();
        let read = || {
            let bytes =
                std::fs::read(&self.path).map_err(|source| SourceError::File { path: path(), source })?;
            let file = KeyFile::read(Bytes::from(bytes));
            Ok(Some(file.map_err(|source| SourceError::NotABundle { path: path(), source })?.bundle))
        };
        Box::pin(std::future::ready(read()))
    }

    fn changed<'a>(&'a self, _held: &'a Held) -> BoxFuture<'a, ()> {
        Box::pin(std::future::pending())
    }
}

#[cfg(test)]
mod tests;

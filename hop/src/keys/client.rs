//! The asking half: one question, or a watch.
//!
//! What comes back is bounded and well formed, and for the authority and site that were asked for. It is not verified:
//! that is `pithead_sealing::trust::Device::apply`'s.

use std::time::Duration;

use pithead_proto::{
    errors::v1::ErrorReason,
    keys::v1::{
        GetKeyBundleRequest, Held as ProtoHeld, KeyBundle, WatchKeyBundleRequest, WatchKeyBundleResponse,
        key_service_client::KeyServiceClient,
    },
};
use pithead_sealing::{
    Site,
    trust::{Bundle, Sha256Digest},
};
use tonic::{Code, Request, Status, Streaming};

use super::{
    MESSAGE_MAX,
    wire::{KeyFile, TrustVersion, WireError},
};
use crate::trace::{TraceParent, Traced};
use crate::{connect::Connection, status::Remote};

/// What a caller holds already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    /// Version of the newest root; 0 if there is none.
    pub root_version: u64,
    /// Digest of the newest statement's payload.
    pub statement_digest: Option<Sha256Digest>,
}

/// Why there is no bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The server refused, or the connection failed.
    #[error(transparent)]
    Remote(#[from] Remote),
    /// It answered with something that is no bundle.
    #[error("the answer is not a key bundle: {0}")]
    Wire(#[from] WireError),
    /// It answered with the bundle of somebody else.
    #[error("the answer is for authority {authority} and site {site}, which nobody asked for")]
    Foreign {
        /// The authority in the answer.
        authority: String,
        /// The site in the answer.
        site: Site,
    },
    /// It did not answer in time.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
}

impl FetchError {
    /// The reason in the registry.
    pub fn reason(&self) -> ErrorReason {
        match self {
            Self::Remote(remote) => remote.reason.unwrap_or(ErrorReason::PeerUnreachable),
            Self::Wire(error) => error.reason(),
            Self::Foreign { .. } => ErrorReason::TrustAudience,
            Self::TimedOut(_) => ErrorReason::PeerUnreachable,
        }
    }

    /// True if asking again later may help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Remote(remote) => remote.is_retryable(),
            Self::TimedOut(_) => true,
            Self::Wire(_) | Self::Foreign { .. } => false,
        }
    }

    /// How long the server asks us to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Remote(remote) => remote.retry_after,
            Self::Wire(_) | Self::Foreign { .. } | Self::TimedOut(_) => None,
        }
    }
}

impl From<Status> for FetchError {
    fn from(status: Status) -> Self {
        Self::Remote(Remote::from_status(&status))
    }
}

/// What the server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What is newer than what is held, if anything is. Not verified yet.
    pub bundle: Option<Bundle>,
    /// The server's clock in microseconds since 1970: for display, never evidence.
    pub time_us: u64,
    /// Which statement the server has in force; a hint, not evidence.
    pub version: Option<TrustVersion>,
}

/// Asks one server about one site.
#[derive(Debug, Clone)]
pub struct KeyClient {
    client: KeyServiceClient<Traced<Connection>>,
    authority: String,
    site: Site,
}

impl KeyClient {
    /// Asks on this connection.
    pub fn new(connection: Connection, authority: impl Into<String>, site: Site) -> Self {
        Self::traced(connection, None, authority, site)
    }

    /// The same, as a part of that span.
    pub fn traced(
        connection: Connection,
        trace: Option<TraceParent>,
        authority: impl Into<String>,
        site: Site,
    ) -> Self {
        let service = Traced::new(connection, trace);
        let client = KeyServiceClient::new(service).max_decoding_message_size(MESSAGE_MAX);
        Self { client, authority: authority.into(), site }
    }

    /// Asks once, for at most `limit`. Cancel safe.
    pub async fn fetch(&mut self, held: &Held, limit: Duration) -> Result<Answer, FetchError> {
        let request = GetKeyBundleRequest {
            authority: self.authority.clone(),
            site: self.site.to_string(),
            have: Some(held_to_proto(held)),
        };
        let response = tokio::time::timeout(limit, self.client.get_key_bundle(Request::new(request)))
            .await
            .map_err(|_| FetchError::TimedOut(limit))??
            .into_inner();
        let bundle = if response.unchanged { None } else { response.bundle };
        Ok(Answer {
            bundle: bundle.map(|bundle| check(bundle, &self.authority, &self.site)).transpose()?,
            time_us: response.time_us,
            version: response.trust.map(TrustVersion::from),
        })
    }

    /// Is told of everything newer from now on. A server that is silent is no error: nothing has changed.
    pub async fn watch(&mut self, held: &Held) -> Result<Watch, FetchError> {
        let request = WatchKeyBundleRequest {
            authority: self.authority.clone(),
            site: self.site.to_string(),
            have: Some(held_to_proto(held)),
        };
        let stream = self.client.watch_key_bundle(Request::new(request)).await?.into_inner();
        Ok(Watch { stream, authority: self.authority.clone(), site: self.site.clone() })
    }
}

/// A watch that is open. Dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    stream: Streaming<WatchKeyBundleResponse>,
    authority: String,
    site: Site,
}

impl Watch {
    /// The next change. An error is the end: connect and watch again, with backoff. Cancel safe.
    pub async fn next(&mut self) -> Result<Answer, FetchError> {
        let message =
            self.stream.message().await?.ok_or_else(|| Status::new(Code::Unavailable, "the watch ended"))?;
        Ok(Answer {
            bundle: message.bundle.map(|bundle| check(bundle, &self.authority, &self.site)).transpose()?,
            time_us: message.time_us,
            version: message.trust.map(TrustVersion::from),
        })
    }
}

fn held_to_proto(held: &Held) -> ProtoHeld {
    ProtoHeld {
        root_version: held.root_version,
        statement_digest: held
            .statement_digest
            .map(|digest| bytes::Bytes::copy_from_slice(digest.as_bytes()))
            .unwrap_or_default(),
    }
}

fn check(bundle: KeyBundle, authority: &str, site: &Site) -> Result<Bundle, FetchError> {
    let file = KeyFile::from_proto(bundle)?;
    if file.authority != authority || &file.site != site {
        return Err(FetchError::Foreign { authority: file.authority, site: file.site });
    }
    Ok(file.bundle)
}

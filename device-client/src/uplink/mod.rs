//! The way to the gateway: keys come down, sealed envelopes go up.
//!
//! An [`Uplink`] knows the gateways in the order of the owner's preference and how to prove who we are. It holds no
//! connection of its own: [`Uplink::refresh`] asks for keys on one, [`Uplink::submit`] sends one envelope,
//! [`Uplink::upload`] one of any size. A [`crate::client::Client`] keeps one for as long as it is open.
//!
//! Needs a tokio runtime, starts no thread, installs no logger and reads no environment variable.

mod deliver;
mod follow;
mod order;
mod refused;
mod submit;
mod upload;

use std::{fmt, sync::Arc, time::Duration};

use pithead_hop::{
    backoff::Policy,
    connect::{self, ConnectError, ConnectOptions, Connection, Endpoint},
    keys::{FetchError, Held, KeyClient},
    tls::{ClientTls, KnownTime, PassedExpiry, Pem, TimeSource, TlsError},
};
use pithead_sealing::{Site, trust::Applied};
use rustls_pki_types::{ServerName, UnixTime};

use crate::{
    clock::DeviceClock,
    keys::{Keys, KeysError},
};

pub use deliver::{ClockOffset, Settled, Trouble};
pub(crate) use deliver::{Delivery, Progress};
pub use refused::{RefusedArea, RefusedError};
pub use submit::{Receipt, SubmitError};
pub use upload::UploadFailed;

/// How long a gateway may take to answer a question about keys.
const KEY_ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Answers applied in one refresh: 32 roots come at a time, and a device asleep for years needs more than one answer.
const ANSWERS_PER_REFRESH: usize = 8;

/// Where the gateways are, and who we are to them.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Gateways {
    /// In the order of preference.
    pub endpoints: Vec<Endpoint>,
    /// The name in the gateways' certificates, if it is not the host of the endpoint.
    pub server_name: Option<ServerName<'static>>,
    /// The CA of the site.
    pub ca: Pem,
    /// Our certificate with its key; none in network mode.
    pub identity: Option<(Pem, Pem)>,
    /// How connections are made and kept.
    pub options: ConnectOptions,
    /// How delays grow while no gateway takes anything.
    pub retry: Policy,
}

impl Gateways {
    /// The delays of a vehicle: doubling from half a second to 15 s, drawn at random below that. A vehicle may see the mast for 20 s
    /// at a time, and a gateway that is overrun says itself when to come back.
    pub const RETRY: Policy = Policy { first: Duration::from_millis(500), max: Duration::from_secs(15) };

    /// These gateways, in the order of preference, and the CA of the site. In network mode, under their own names, with
    /// [`Gateways::RETRY`], unless the other methods say otherwise.
    #[must_use]
    pub fn new(endpoints: Vec<Endpoint>, ca: Pem) -> Self {
        let options = ConnectOptions::default();
        Self { endpoints, server_name: None, ca, identity: None, options, retry: Self::RETRY }
    }

    /// We have a certificate, and its key.
    #[must_use]
    pub fn identity(self, certificate: Pem, key: Pem) -> Self {
        Self { identity: Some((certificate, key)), ..self }
    }

    /// The gateways' certificates have this name, and not the host's of the endpoint.
    #[must_use]
    pub fn server_name(self, name: ServerName<'static>) -> Self {
        Self { server_name: Some(name), ..self }
    }

    /// How connections are made and kept.
    #[must_use]
    pub fn options(self, options: ConnectOptions) -> Self {
        Self { options, ..self }
    }

    /// How delays grow while no gateway takes anything.
    #[must_use]
    pub fn retry(self, retry: Policy) -> Self {
        Self { retry, ..self }
    }
}

fn held(keys: &Keys) -> Held {
    Held {
        root_version: keys.trust().root_version(),
        statement_digest: keys.trust().statement().map(|statement| *statement.digest()),
    }
}

/// What a device knows of time for TLS: its trusted clock, else the largest time that has certainly passed.
struct FloorClock {
    clock: DeviceClock,
    floor_s: u64,
}

impl fmt::Debug for FloorClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FloorClock").field("floor_s", &self.floor_s).finish_non_exhaustive()
    }
}

impl TimeSource for FloorClock {
    fn now(&self) -> KnownTime {
        let now = self.clock.now();
        match now.trusted_now {
            Some(trusted) => KnownTime::Trusted(at(trusted.as_secs())),
            None => KnownTime::AtLeast(at(self.floor_s.saturating_add(now.uptime_s))),
        }
    }
}

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

/// Why keys could not be refreshed. What was believed before stands.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RefreshError {
    /// No gateway could be reached; the reason is the last one's.
    #[error("no gateway: {0}")]
    Connect(#[from] ConnectError),
    /// A gateway did not answer with a bundle.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// What it answered was refused, or could not be kept.
    #[error(transparent)]
    Keys(#[from] KeysError),
}

/// The way to the gateways of a site.
#[derive(Clone, Debug)]
pub struct Uplink {
    gateways: Arc<Gateways>,
    /// For envelopes: a certificate past its end is refused.
    tls: Arc<rustls::ClientConfig>,
    /// For keys: roots and statements carry their own signatures, and a poisoned floor must be curable.
    keys_tls: Arc<rustls::ClientConfig>,
    /// Whose keys.
    authority: Arc<str>,
    site: Site,
}

impl Uplink {
    /// Checks certificates and keys and makes the uplink. `keys` gives the lower bound of time for TLS.
    pub fn new(gateways: Gateways, keys: &Keys) -> Result<Self, TlsError> {
        let floor_s = keys.trust().now_lower_bound(keys.clock().now()).as_secs();
        let build = |passed_expiry| {
            let clock = Arc::new(FloorClock { clock: keys.clock().restarted(), floor_s });
            let (ca, identity) = (gateways.ca.clone(), gateways.identity.clone());
            ClientTls { ca, identity, clock, passed_expiry }.build()
        };
        let tls = build(PassedExpiry::Refuse)?;
        let keys_tls = build(PassedExpiry::TakeWithoutClock)?;
        Ok(Self {
            gateways: Arc::new(gateways),
            tls,
            keys_tls,
            authority: keys.trust().authority().into(),
            site: keys.trust().site().clone(),
        })
    }

    /// Asks the first gateway that answers for everything newer, verifies it and takes it in. Gives what has changed.
    ///
    /// Cancel safe: what was accepted is kept.
    pub async fn refresh(&self, keys: &mut Keys) -> Result<Applied, RefreshError> {
        let (connection, _) = self.connect(&self.keys_tls, 0).await?;
        let mut client = self.key_client(connection);
        let mut all = Applied::default();
        for _ in 0..ANSWERS_PER_REFRESH {
            let before = held(keys);
            let Some(bundle) = client.fetch(&before, KEY_ANSWER_LIMIT).await?.bundle else { break };
            let applied = keys.apply(&bundle.newer_than(before.root_version))?;
            let moved = has_moved(&applied);
            all.roots += applied.roots;
            all.statement = applied.statement.or(all.statement);
            if !moved {
                break;
            }
        }
        Ok(all)
    }

    fn key_client(&self, connection: Connection) -> KeyClient {
        KeyClient::new(connection, &*self.authority, self.site.clone())
    }

    /// A connection to the first gateway that takes us, beginning with that one, and which it is; the last one's reason if
    /// none does.
    async fn connect(
        &self,
        tls: &Arc<rustls::ClientConfig>,
        first: usize,
    ) -> Result<(Connection, usize), ConnectError> {
        let mut last = ConnectError::Unreachable(std::io::ErrorKind::NotFound);
        let endpoints = &self.gateways.endpoints;
        for index in (0..endpoints.len()).map(|step| (first + step) % endpoints.len()) {
            let endpoint = &endpoints[index];
            let name = self.gateways.server_name.clone().unwrap_or_else(|| endpoint.server_name());
            match connect::connect(endpoint, &name, Arc::clone(tls), &self.gateways.options).await {
                Ok(connection) => return Ok((connection, index)),
                Err(error) => {
                    tracing::debug!(event = "uplink.no_connection", %endpoint, %error);
                    // One that may be there later is more hope than one that will never take us.
                    if index == first || error.is_retryable() || !last.is_retryable() {
                        last = error;
                    }
                }
            }
        }
        Err(last)
    }
}

fn has_moved(applied: &Applied) -> bool {
    applied.roots > 0 || applied.statement.as_ref().is_some_and(|accepted| accepted.new)
}

//! A client that says what it likes: whole envelopes, good or bad, under any certificate.

use std::{net::SocketAddr, path::Path, sync::Arc};

use anyhow::Context as _;
use bytes::Bytes;
use pithead_hop::{
    connect::{ConnectError, ConnectOptions, Connection, Endpoint, connect},
    status::Remote,
    tls::{ClientTls, PassedExpiry, Pem, SystemClock},
};
use pithead_proto::{
    errors::v1::ErrorReason,
    ingest::v1::{SubmitRequest, SubmitResponse, ingest_service_client::IngestServiceClient},
};
use rustls::pki_types::ServerName;

use crate::{certificates::Certificate, site::Site};

/// One connection to an ingest service.
#[derive(Clone)]
pub struct Client(Connection);

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    /// Connects with a certificate, or with none. The inner result is the other end's.
    pub async fn connect(
        to: SocketAddr,
        ca: &Path,
        identity: Option<&Certificate>,
    ) -> anyhow::Result<Result<Self, ConnectError>> {
        let identity = match identity {
            Some(files) => Some((Pem::read(&files.certificate)?, Pem::read(&files.key)?)),
            None => None,
        };
        let tls = ClientTls {
            ca: Pem::read(ca)?,
            identity,
            clock: Arc::new(SystemClock),
            passed_expiry: PassedExpiry::Refuse,
        };
        let name = ServerName::try_from(to.ip().to_string()).context("an address is a server's name")?;
        let connection = connect(&Endpoint::from(to), &name, tls.build()?, &ConnectOptions::default()).await;
        Ok(connection.map(Self))
    }

    /// Connects to a site's gateway under a certificate of this device.
    pub async fn of(site: &Site, device: &str) -> anyhow::Result<Self> {
        let identity = site.identity_of(device)?;
        let client = Self::connect(site.gateway_address(), site.ca.path(), Some(&identity)).await??;
        Ok(client)
    }

    /// The connection, for calls that this client does not know.
    #[must_use]
    pub fn connection(&self) -> Connection {
        self.0.clone()
    }

    /// One envelope, one answer.
    pub async fn submit(&self, envelope: impl Into<Bytes>) -> Result<SubmitResponse, Remote> {
        let mut client = IngestServiceClient::new(self.0.clone());
        let request = SubmitRequest { envelope: envelope.into() };
        match client.submit(request).await {
            Ok(response) => Ok(response.into_inner()),
            Err(status) => Err(Remote::from_status(&status)),
        }
    }

    /// Why an envelope is refused; an error if it is not.
    pub async fn refusal(&self, envelope: impl Into<Bytes>) -> anyhow::Result<ErrorReason> {
        match self.submit(envelope).await {
            Ok(taken) => anyhow::bail!("it was taken: {taken:?}"),
            Err(remote) => remote.reason.with_context(|| format!("a refusal without a reason: {remote:?}")),
        }
    }
}

//! The connecting side: one CA for the other end, our own certificate, and time that may be only a lower bound.
//!
//! With a trusted clock this is ordinary verification. With a bound alone, a certificate is judged at the larger of that
//! bound and the newest `notBefore` in the chain that the other end shows: a lower bound can prove that something has
//! expired, never that it is too early. So a vehicle that wakes in 1970 connects, and one that slept past a renewal too.
//! What the other end can gain by a `notBefore` in the far future is that *its own* certificate counts as expired.
//!
//! Gateways of one site know each other by name ([`PeerTls`]): the one that connects says which one it wants.
//!
//! For the key service alone ([`PassedExpiry::TakeWithoutClock`]) not even a passed `notAfter` ends the handshake while
//! there is only a bound: roots and statements carry their own signatures, and a floor that somebody has poisoned must
//! be curable by the very statement that is fetched there.

use std::sync::Arc;

use rustls::{
    CertificateError, ClientConfig, Error, OtherError, RootCertStore,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    server::ParsedCertificate,
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{
    ALPN_H2, KnownTime, Pem, TimeSource, TlsError, holds_its_key, provider,
    server::{pair_error, roots},
    time::Bound,
};
use crate::identity::{self, PeerId};

/// What the connecting side is built from.
#[derive(Debug, Clone)]
pub struct ClientTls {
    /// The CA of the other end.
    pub ca: Pem,
    /// Our certificate (with the CAs above it) and its private key; none where we are known by address.
    pub identity: Option<(Pem, Pem)>,
    /// What time it is, or at least is.
    pub clock: Arc<dyn TimeSource>,
    /// What a certificate past its end means.
    pub passed_expiry: PassedExpiry,
}

/// What it means that the other end's certificate is past its `notAfter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PassedExpiry {
    /// No connection.
    #[default]
    Refuse,
    /// No connection if a trusted clock says so; if there is only a lower bound, it is taken. For the key service alone.
    TakeWithoutClock,
}

impl ClientTls {
    /// Checks everything and builds the configuration.
    pub fn build(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(roots(&self.ca)?), provider())
            .build()
            .map_err(|why| TlsError::Certificate {
                origin: self.ca.origin().to_owned(),
                why: why.to_string(),
            })?;
        let verifier = BoundVerifier { webpki, clock: self.clock.clone(), passed_expiry: self.passed_expiry };
        let builder = ClientConfig::builder_with_details(provider(), Arc::new(Bound(self.clock.clone())))
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has suites of TLS 1.3")
            // "dangerous" because one could skip verification here; this one adds a choice of time and nothing else.
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let config = match &self.identity {
            Some((certificate, key)) => builder
                .with_client_auth_cert(certificate.certificates()?, key.private_key()?)
                .map_err(|error| pair_error(error, certificate, key))?,
            None => builder.with_no_client_auth(),
        };
        Ok(finish(config))
    }
}

/// What a gateway connects with to others of its site: to each as the one that it is to be.
#[derive(Debug, Clone)]
pub struct PeerTls {
    /// The CA of the site's gateways.
    pub ca: Pem,
    /// Our certificate, with the CAs above it.
    pub certificate: Pem,
    /// Its private key.
    pub key: Pem,
}

impl PeerTls {
    /// For one connection to `peer`. Its certificate has to be of the CA and to name it; by which host name or address it is reached
    /// says nothing here.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub fn towards(&self, peer: PeerId) -> Result<Arc<ClientConfig>, TlsError> {
        let verifier = PeerVerifier { roots: roots(&self.ca)?, peer };
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has suites of TLS 1.3")
            // "dangerous" because one could skip verification here; this one compares another name than the host's.
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(self.certificate.certificates()?, self.key.private_key()?)
            .map_err(|error| pair_error(error, &self.certificate, &self.key))?;
        Ok(finish(config))
    }
}

/// HTTP/2, and no session that could be taken up again.
fn finish(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Arc::new(config)
}

#[derive(Debug)]
struct PeerVerifier {
    roots: RootCertStore,
    peer: PeerId,
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = provider().signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        match PeerId::from_certificate(end_entity) {
            Ok(named) if named == self.peer => Ok(ServerCertVerified::assertion()),
            Ok(_) | Err(_) => Err(CertificateError::NotValidForName.into()),
        }
    }

    holds_its_key!();
}

/// For a server that is known by nothing but its key: the SHA-256 of its SubjectPublicKeyInfo, told by another way. CA,
/// name and dates say nothing here; that the server holds the key is proven by the handshake. We show no certificate.
#[must_use]
pub fn pinned(spki_sha256: [u8; 32]) -> Arc<ClientConfig> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has suites of TLS 1.3")
        // "dangerous" because one could skip verification here; this one compares the key itself.
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedKey { spki_sha256 }))
        .with_no_client_auth();
    finish(config)
}

/// The server's key is not the one with the fingerprint that was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its key does not have the fingerprint that was given")]
pub(crate) struct OtherKey;

#[derive(Debug)]
struct PinnedKey {
    spki_sha256: [u8; 32],
}

impl ServerCertVerifier for PinnedKey {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match identity::spki_sha256(end_entity) {
            Ok(found) if found == self.spki_sha256 => Ok(ServerCertVerified::assertion()),
            Ok(_) => Err(CertificateError::Other(OtherError(Arc::new(OtherKey))).into()),
            Err(_) => Err(CertificateError::BadEncoding.into()),
        }
    }

    holds_its_key!();
}

#[derive(Debug)]
struct BoundVerifier {
    webpki: Arc<WebPkiServerVerifier>,
    clock: Arc<dyn TimeSource>,
    passed_expiry: PassedExpiry,
}

impl ServerCertVerifier for BoundVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verify_at =
            |now| self.webpki.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        let bound = match self.clock.now() {
            KnownTime::Trusted(now) => return verify_at(now),
            KnownTime::AtLeast(bound) => bound,
        };
        let newest = newest_not_before(end_entity, intermediates)?;
        match verify_at(bound.max(newest)) {
            Err(Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            )) if self.passed_expiry == PassedExpiry::TakeWithoutClock => {
                // Signatures, purpose and name are all verified again, at a moment when the chain was whole.
                verify_at(newest)
            }
            result => result,
        }
    }

    holds_its_key!();
}

/// The newest `notBefore` of the chain as presented. Seconds before 1970 count as 1970.
fn newest_not_before(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> Result<UnixTime, Error> {
    let mut newest = 0;
    for der in std::iter::once(end_entity).chain(intermediates) {
        let (_, certificate) = X509Certificate::from_der(der)
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        newest = newest.max(u64::try_from(certificate.validity().not_before.timestamp()).unwrap_or(0));
    }
    Ok(UnixTime::since_unix_epoch(std::time::Duration::from_secs(newest)))
}

//! TLS as every hop speaks it: version 1.3 alone, X25519MLKEM768 preferred, HTTP/2 by ALPN, certificates on both ends,
//! no resumption and no early data. A session that could be resumed would outlive a revocation.
//!
//! The server takes a client's certificate only from the CA of the site that the certificate names ([`server`]). The
//! client can live without a clock ([`time`], [`client`]).
//!
//! The one provider is aws-lc-rs, always passed by hand; `program::install_crypto` also makes it the process's default.

pub mod client;
pub mod pem;
pub mod server;
pub mod time;

use std::sync::{Arc, LazyLock};

use pithead_sealing::Site;
use rustls::crypto::CryptoProvider;

pub use client::{ClientTls, PassedExpiry, PeerTls, pinned};
pub use pem::Pem;
pub use server::{CrlExpiry, Denied, Expiries, Gate, ServerTls, SiteTrust, expiry_warnings};
pub use time::{KnownTime, SystemClock, TimeSource};

/// The protocol that both ends have to agree on.
pub const ALPN_H2: &[u8] = b"h2";

/// Why a TLS configuration cannot be built. Each names the file (or whatever it came from) and what is wrong with it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The file cannot be read.
    #[error("{origin}: cannot be read: {source}")]
    Unreadable {
        /// The file.
        origin: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// Not PEM, or damaged PEM.
    #[error("{origin}: not PEM: {why}")]
    NotPem {
        /// The file.
        origin: String,
        /// What the reader says.
        why: String,
    },
    /// PEM without what it is there for.
    #[error("{origin}: no {what} in it")]
    Missing {
        /// The file.
        origin: String,
        /// What was looked for.
        what: &'static str,
    },
    /// A certificate that cannot serve as what it is configured for.
    #[error("{origin}: {why}")]
    Certificate {
        /// The file.
        origin: String,
        /// What is wrong with it.
        why: String,
    },
    /// Certificate and key are not a pair.
    #[error("{key}: not the private key of the certificate in {certificate}")]
    NotAPair {
        /// The certificate's file.
        certificate: String,
        /// The key's file.
        key: String,
    },
    /// A revocation list that cannot be used.
    #[error("{origin}: not a usable certificate revocation list: {why}")]
    Crl {
        /// The file.
        origin: String,
        /// What is wrong with it.
        why: String,
    },
    /// No site, so no client could ever connect.
    #[error("no site is configured: no client certificate could be accepted")]
    NoSite,
    /// One site twice.
    #[error("site {0} is configured twice")]
    SiteTwice(Site),
    /// One CA for two sites: whoever holds it for one would speak for the other.
    #[error("sites {0} and {1} have the same CA key; each needs its own")]
    SharedCa(Site, Site),
}

/// The one provider of this process.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    PROVIDER.clone()
}

/// What every verifier here does alike, whatever it makes of a certificate: that the other end holds the key of the one that it
/// shows is proven by what it signs in the handshake.
macro_rules! holds_its_key {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &rustls_pki_types::CertificateDer<'_>,
            signed: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            let algorithms = $crate::tls::provider().signature_verification_algorithms;
            rustls::crypto::verify_tls12_signature(message, certificate, signed, &algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &rustls_pki_types::CertificateDer<'_>,
            signed: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            let algorithms = $crate::tls::provider().signature_verification_algorithms;
            rustls::crypto::verify_tls13_signature(message, certificate, signed, &algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            $crate::tls::provider().signature_verification_algorithms.supported_schemes()
        }
    };
}
use holds_its_key;

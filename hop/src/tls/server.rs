//! The listening side: our certificate, and for every site the CA that signs its devices, gateways and operators.
//!
//! A client's certificate says which site it is of; it is then verified against that site's CA and no other, with that
//! site's revocation lists. So a CA that was stolen from one site speaks for that site alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use pithead_sealing::Site;
use rustls::{
    CertificateError, ConfigBuilder, DistinguishedName, Error, OtherError, RootCertStore, ServerConfig,
    WantsVerifier,
    server::{
        NoServerSessionStorage, VerifierBuilderError, WantsServerCert, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{CertificateRevocationList, FromDer as _, X509Certificate};

use super::{ALPN_H2, Pem, TlsError, holds_its_key, provider};
use crate::identity::PeerId;

/// What the listening side is built from.
#[derive(Debug, Clone)]
pub struct ServerTls {
    /// Our certificate, then the CAs above it, without the root.
    pub certificate: Pem,
    /// Its private key.
    pub key: Pem,
    /// The sites whose clients may connect.
    pub sites: Vec<SiteTrust>,
    /// What a revocation list that is past its `nextUpdate` means.
    pub crl_expiry: CrlExpiry,
}

/// Whose certificates count for one site.
#[derive(Debug, Clone)]
pub struct SiteTrust {
    /// The site.
    pub site: Site,
    /// Its CA, or several while one takes over from the other.
    pub ca: Pem,
    /// Its revocation lists.
    pub crls: Vec<Pem>,
}

/// What a revocation list that is past its `nextUpdate` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum CrlExpiry {
    /// It is used as it is: a WAN outage that keeps lists from being renewed locks nobody out. See
    /// [`ServerTls::warnings`].
    #[default]
    #[serde(rename = "warn")]
    UseStale,
    /// Nobody of that site is let in until a fresh one is here.
    #[serde(rename = "refuse")]
    Refuse,
}

/// When what the listening side is built from runs out, in seconds since 1970; of several the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Expiries {
    /// Our own certificate, and those above it that we send.
    pub own: Option<i64>,
    /// The CAs of clients.
    pub client_ca: Option<i64>,
    /// The `nextUpdate` of revocation lists.
    pub crl: Option<i64>,
}

/// Whom a site's own list turns away, whatever the CA says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Denied {
    /// By name: every certificate of theirs.
    pub names: BTreeSet<PeerId>,
    /// By SHA-256 of the certificate.
    pub certificates: BTreeSet<[u8; 32]>,
}

/// Who is let in by certificate: for new handshakes as a TLS configuration, and the same judgement of those who are
/// connected already.
#[derive(Debug, Clone)]
pub struct Gate {
    /// For new handshakes.
    pub config: Arc<ServerConfig>,
    verifier: Arc<SiteVerifier>,
}

impl Gate {
    /// Whether a handshake with this chain, its holder's certificate first, would end well at `now`.
    ///
    /// # Errors
    /// Why not.
    pub fn admits(&self, chain: &[CertificateDer<'static>], now: UnixTime) -> Result<(), Error> {
        let (leaf, above) = chain.split_first().ok_or(Error::NoCertificatesPresented)?;
        self.verifier.verify_client_cert(leaf, above, now).map(drop)
    }
}

impl ServerTls {
    /// Checks everything and builds the configuration. Nothing is half built: a reload that fails leaves the old one.
    pub fn build(&self) -> Result<Arc<ServerConfig>, TlsError> {
        Ok(self.gate(Denied::default())?.config)
    }

    /// As [`ServerTls::build`], without those who are denied.
    pub fn gate(&self, denied: Denied) -> Result<Gate, TlsError> {
        let verifier = Arc::new(SiteVerifier::build(&self.sites, self.crl_expiry, denied)?);
        let config = self.finish(builder().with_client_cert_verifier(verifier.clone()))?;
        Ok(Gate { config, verifier })
    }

    /// For a listener that asks nobody for a certificate.
    pub fn build_for_anybody(&self) -> Result<Arc<ServerConfig>, TlsError> {
        self.finish(builder().with_no_client_auth())
    }

    fn finish(
        &self,
        builder: ConfigBuilder<ServerConfig, WantsServerCert>,
    ) -> Result<Arc<ServerConfig>, TlsError> {
        let mut config = builder
            .with_single_cert(self.certificate.certificates()?, self.key.private_key()?)
            .map_err(|error| pair_error(error, &self.certificate, &self.key))?;
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        // A revoked client must not resume past a new revocation list.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(Arc::new(config))
    }

    /// When each kind of file runs out.
    #[must_use]
    pub fn expiries(&self) -> Expiries {
        let end = |pem: &Pem| {
            let certificates = pem.certificates().unwrap_or_default();
            certificates
                .iter()
                .filter_map(|der| {
                    X509Certificate::from_der(der).ok().map(|(_, one)| one.validity().not_after.timestamp())
                })
                .min()
        };
        let next_update = |pem: &Pem| {
            let lists = pem.crls().unwrap_or_default();
            lists
                .iter()
                .filter_map(|der| {
                    let (_, list) = CertificateRevocationList::from_der(der).ok()?;
                    list.next_update().map(|next| next.timestamp())
                })
                .min()
        };
        Expiries {
            own: end(&self.certificate),
            client_ca: self.sites.iter().filter_map(|site| end(&site.ca)).min(),
            crl: self.sites.iter().flat_map(|site| &site.crls).filter_map(next_update).min(),
        }
    }

    /// What an operator should know at `now`: certificates and revocation lists that have run out or are about to.
    pub fn warnings(&self, now: UnixTime) -> Vec<String> {
        let authorities = self.sites.iter().map(|site| &site.ca);
        let pems = authorities.chain([&self.certificate]);
        let mut found: Vec<String> = pems.flat_map(|pem| expiry_warnings(pem, now)).collect();
        for pem in self.sites.iter().flat_map(|site| &site.crls) {
            for der in pem.crls().unwrap_or_default() {
                if let Ok((_, list)) = CertificateRevocationList::from_der(&der)
                    && let Some(next) = list.next_update()
                {
                    warn_before(next.timestamp(), "is to be renewed", pem, now, &mut found);
                }
            }
        }
        found
    }
}

fn builder() -> ConfigBuilder<ServerConfig, WantsVerifier> {
    ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has suites of TLS 1.3")
}

/// A warning begins this long before the end.
const WARN_BEFORE_S: i64 = 30 * 86_400;

/// What an operator should know of certificates: those that run out within the time that a renewal may take.
#[must_use]
pub fn expiry_warnings(pem: &Pem, now: UnixTime) -> Vec<String> {
    let mut found = Vec::new();
    for der in pem.certificates().unwrap_or_default() {
        if let Ok((_, certificate)) = X509Certificate::from_der(&der) {
            warn_before(certificate.validity().not_after.timestamp(), "expires", pem, now, &mut found);
        }
    }
    found
}

fn warn_before(end: i64, what: &str, pem: &Pem, now: UnixTime, found: &mut Vec<String>) {
    let left = end - i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let origin = pem.origin();
    if left <= 0 {
        found.push(format!("{origin}: {what}: that was {} days ago", -left / 86_400));
    } else if left < WARN_BEFORE_S {
        found.push(format!("{origin}: {what} in {} days", left / 86_400));
    }
}

pub(super) fn pair_error(error: Error, certificate: &Pem, key: &Pem) -> TlsError {
    match error {
        Error::InconsistentKeys(_) => {
            TlsError::NotAPair { certificate: certificate.origin().to_owned(), key: key.origin().to_owned() }
        }
        Error::InvalidCertificate(why) => TlsError::Certificate {
            origin: certificate.origin().to_owned(),
            why: format!("not a certificate: {why}"),
        },
        other => TlsError::Certificate {
            origin: key.origin().to_owned(),
            why: format!("not a usable key: {other}"),
        },
    }
}

pub(super) fn roots(ca: &Pem) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for certificate in ca.certificates()? {
        store.add(certificate).map_err(|error| TlsError::Certificate {
            origin: ca.origin().to_owned(),
            why: format!("not a CA certificate: {error}"),
        })?;
    }
    Ok(store)
}

/// Verifies a client against the CA of the site that its certificate names.
#[derive(Debug)]
struct SiteVerifier {
    sites: BTreeMap<Site, Arc<dyn ClientCertVerifier>>,
    denied: Denied,
    hints: Vec<DistinguishedName>,
}

impl SiteVerifier {
    fn build(trusts: &[SiteTrust], crl_expiry: CrlExpiry, denied: Denied) -> Result<Self, TlsError> {
        let mut sites = BTreeMap::new();
        let mut hints = Vec::new();
        let mut keys: BTreeMap<Vec<u8>, Site> = BTreeMap::new();
        for trust in trusts {
            let store = roots(&trust.ca)?;
            for anchor in &store.roots {
                let key = anchor.subject_public_key_info.as_ref().to_vec();
                if let Some(other) = keys.insert(key, trust.site.clone())
                    && other != trust.site
                {
                    return Err(TlsError::SharedCa(other, trust.site.clone()));
                }
            }
            hints.extend(store.subjects());
            let verifier = verifier_of(store, trust, crl_expiry)?;
            if sites.insert(trust.site.clone(), verifier).is_some() {
                return Err(TlsError::SiteTwice(trust.site.clone()));
            }
        }
        if sites.is_empty() {
            return Err(TlsError::NoSite);
        }
        Ok(Self { sites, denied, hints })
    }
}

fn verifier_of(
    store: RootCertStore,
    trust: &SiteTrust,
    crl_expiry: CrlExpiry,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider());
    for pem in &trust.crls {
        let lists = pem.crls()?;
        let unusable = |why: String| TlsError::Crl { origin: pem.origin().to_owned(), why };
        // Built once for itself, so that the error names the file.
        let probe = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&trust.ca)?), provider());
        probe.with_crls(lists.iter().cloned()).build().map_err(|error| unusable(error.to_string()))?;
        builder = builder.with_crls(lists);
    }
    // A list speaks of the certificates of its own issuer; intermediates without a list are not thereby revoked.
    builder = builder.allow_unknown_revocation_status();
    if crl_expiry == CrlExpiry::Refuse {
        builder = builder.enforce_revocation_expiration();
    }
    builder.build().map_err(|error| match error {
        VerifierBuilderError::NoRootAnchors => {
            TlsError::Missing { origin: trust.ca.origin().to_owned(), what: "CERTIFICATE" }
        }
        other => TlsError::Crl { origin: trust.site.to_string(), why: other.to_string() },
    })
}

impl ClientCertVerifier for SiteVerifier {
    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let named = PeerId::from_certificate(end_entity)
            .map_err(|why| Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(why)))))?;
        let verifier =
            self.sites.get(&named.site).ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        verifier.verify_client_cert(end_entity, intermediates, now).map_err(|error| match error {
            // A CA of the right name with another key, such as the one before `init` was run again: another issuer.
            Error::InvalidCertificate(CertificateError::BadSignature) => {
                Error::InvalidCertificate(CertificateError::UnknownIssuer)
            }
            other => other,
        })?;
        // Last, so that only a holder of a good certificate learns that its name is on the list.
        let listed = self.denied.names.contains(&named)
            || (!self.denied.certificates.is_empty()
                && self.denied.certificates.contains::<[u8; 32]>(&Sha256::digest(end_entity).into()));
        if listed {
            return Err(Error::InvalidCertificate(CertificateError::Revoked));
        }
        Ok(ClientCertVerified::assertion())
    }

    holds_its_key!();
}

//! The site's own CA, where its key lies on this machine: it names devices, and nothing else that anybody believes.
//!
//! What a thief of this key can do is to be any device of this site towards its gateways, and any gateway of it towards the
//! cloud. No envelope is read with it, and no device believes a key because of it: that takes the authority's signatures.

use std::net::IpAddr;
use std::time::Duration;

use pithead_hop::connect::HostName;
use pithead_hop::identity::{PeerId, Role, spki_sha256};
use pithead_hop::program::ProgramError;
use pithead_hop::tls::{Pem, TlsError};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::{DeviceId, Site};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
    SubjectPublicKeyInfo,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, ServerName};
use zeroize::Zeroizing;

use super::registry::{Issued, Sha, Stamp};

/// Longest certificate request that is looked at, in bytes: one with a P-256 key and nothing else has 250.
pub const REQUEST_MAX: usize = 4096;
/// How long the site's CA made by `init` lives.
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);
/// How long the gateway's own certificate made by `init` lives.
const GATEWAY_LIFE: Duration = Duration::from_secs(3 * 365 * 86_400);
/// A certificate begins this long before now: gateways behind one clock see another.
const BEFORE: Duration = Duration::from_secs(3600);

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaError {
    /// The CA's files.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Key and certificate are not a pair.
    #[error("{key}: not the private key of the CA in {certificate}")]
    NotAPair {
        /// The key's file.
        key: String,
        /// The certificate's file.
        certificate: String,
    },
    /// A key or a certificate that the library does not take.
    #[error("{origin}: {why}")]
    Unusable {
        /// What it is about.
        origin: String,
        /// What the library says.
        why: String,
    },
    /// The kernel gave no randomness.
    #[error("the kernel gives no randomness: {0}")]
    Random(String),
}

impl From<CaError> for ProgramError {
    fn from(error: CaError) -> Self {
        match error {
            CaError::Tls(error) => error.into(),
            CaError::NotAPair { .. } | CaError::Unusable { .. } => {
                Self::new(ErrorReason::ConfigInvalid, error.to_string())
                    .todo("name the CA's certificate and its own key in [enroll] `ca` and `ca_key`")
            }
            CaError::Random(_) => Self::new(ErrorReason::Internal, error.to_string()),
        }
    }
}

fn unusable(origin: &str) -> impl Fn(rcgen::Error) -> CaError {
    let origin = origin.to_owned();
    move |error| CaError::Unusable { origin: origin.clone(), why: error.to_string() }
}

/// A request whose sender holds the key in it.
#[derive(Debug)]
pub struct ProvenRequest(CertificateSigningRequestParams);

/// Why a request proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotProven {
    /// Longer than [`REQUEST_MAX`].
    #[error("longer than {REQUEST_MAX} bytes")]
    TooLong,
    /// Not PKCS#10, or its signature is not by its own key.
    #[error("not a PKCS#10 request, or not signed with the key in it")]
    Malformed,
    /// Another kind of key.
    #[error("its key is not on P-256 with SHA-256")]
    Key,
}

impl ProvenRequest {
    /// Reads a request in DER and checks that its sender holds the key. Names and extensions in it are of no concern.
    ///
    /// # Errors
    /// [`NotProven`].
    pub fn read(der: &[u8]) -> Result<Self, NotProven> {
        if der.len() > REQUEST_MAX {
            return Err(NotProven::TooLong);
        }
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der))
            .map_err(|_| NotProven::Malformed)?;
        if request.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256
            || request.public_key.der_bytes().len() != 65
        {
            return Err(NotProven::Key);
        }
        Ok(Self(request))
    }

    /// SHA-256 of its SubjectPublicKeyInfo.
    #[must_use]
    pub fn key(&self) -> Sha {
        Sha::of(&self.0.public_key.subject_public_key_info())
    }
}

/// A certificate that was just made.
#[derive(Debug)]
pub struct Signed {
    /// DER.
    pub certificate: CertificateDer<'static>,
    /// PEM.
    pub pem: String,
    /// What the registry keeps in mind of it.
    pub issued: Issued,
}

/// The CA, able to sign.
pub struct SiteCa {
    issuer: Issuer<'static, KeyPair>,
    site: Site,
    /// CAs between it and what devices and gateways trust, in DER; it may be a root itself.
    above: Vec<CertificateDer<'static>>,
    validity: Duration,
}

impl std::fmt::Debug for SiteCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SiteCa").field("site", &self.site).finish_non_exhaustive()
    }
}

impl SiteCa {
    /// Takes a CA's certificate, the first in `ca`, and its key. Certificates of devices will live for `validity`.
    ///
    /// # Errors
    /// [`CaError`].
    pub fn load(ca: &Pem, key: &Pem, site: &Site, validity: Duration) -> Result<Self, CaError> {
        let chain = ca.certificates()?;
        let leaf =
            chain.first().ok_or(TlsError::Missing { origin: ca.origin().to_owned(), what: "CERTIFICATE" })?;
        let pair = KeyPair::try_from(&key.private_key()?).map_err(unusable(key.origin()))?;
        if spki_sha256(leaf).ok() != Some(Sha::of(&pair.subject_public_key_info()).0) {
            let (key, certificate) = (key.origin().to_owned(), ca.origin().to_owned());
            return Err(CaError::NotAPair { key, certificate });
        }
        let issuer = Issuer::from_ca_cert_der(leaf, pair).map_err(unusable(ca.origin()))?;
        if !issuer.key_usages().is_empty() && !issuer.key_usages().contains(&KeyUsagePurpose::KeyCertSign) {
            let why = "its certificate is not one that signs others".to_owned();
            return Err(CaError::Unusable { origin: ca.origin().to_owned(), why });
        }
        Ok(Self { issuer, site: site.clone(), above: chain[1..].to_vec(), validity })
    }

    /// CAs that a device shows above its own certificate.
    #[must_use]
    pub fn above(&self) -> &[CertificateDer<'static>] {
        &self.above
    }

    /// A certificate for a device, for the key of a request. The name is the registry's.
    ///
    /// # Errors
    /// [`CaError`].
    pub fn for_request(
        &self,
        device: &DeviceId,
        request: &ProvenRequest,
        now: Stamp,
    ) -> Result<Signed, CaError> {
        self.device(device, &request.0.public_key, now)
    }

    /// A certificate for a device, and its key, which is made here: for a device that is given both by hand. The key is in
    /// PEM, PKCS#8.
    ///
    /// # Errors
    /// [`CaError`].
    pub fn with_key(&self, device: &DeviceId, now: Stamp) -> Result<(Signed, Zeroizing<String>), CaError> {
        let pair = KeyPair::generate().map_err(unusable("a new key"))?;
        let key = Zeroizing::new(pair.serialize_pem());
        Ok((self.device(device, &pair, now)?, key))
    }

    fn device(&self, device: &DeviceId, key: &impl PublicKeyData, now: Stamp) -> Result<Signed, CaError> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, device.as_str());
        params.subject_alt_names = vec![uri(&format!("spiffe://{}/device/{device}", self.site))?];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params, key, now, self.validity)
    }

    /// A certificate for the gateway `named`, for the key of the one in DER that it has, with the same host names. The PEM has
    /// the CAs above it, if there are any.
    ///
    /// # Errors
    /// [`CaError`].
    pub fn gateway_again(
        &self,
        old: &CertificateDer<'static>,
        named: &PeerId,
        hosts: &[ServerName<'static>],
        now: Stamp,
    ) -> Result<Signed, CaError> {
        let key = spki_of(old)?;
        let host = |host: &ServerName<'static>| match host {
            ServerName::IpAddress(address) => Some(HostName::Address(IpAddr::from(*address))),
            ServerName::DnsName(name) => Some(HostName::Name(name.as_ref().to_owned())),
            _ => None,
        };
        let hosts: Vec<HostName> = hosts.iter().filter_map(host).collect();
        let name = match &named.role {
            Role::Gateway(name) => name.as_str(),
            Role::Device(_) | Role::Operator(_) | Role::Applicant(_) => {
                let why = format!("{named} is no gateway");
                return Err(CaError::Unusable { origin: "the certificate".to_owned(), why });
            }
        };
        let mut signed = self.sign(gateway_params(&self.site, name, &hosts)?, &key, now, GATEWAY_LIFE)?;
        signed.pem += &pithead_hop::tls::pem::certificates_to_text(self.above.iter().map(AsRef::as_ref));
        Ok(signed)
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        key: &impl PublicKeyData,
        now: Stamp,
        life: Duration,
    ) -> Result<Signed, CaError> {
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let serial = dated(&mut params, now, life)?;
        let certificate = params.signed_by(key, &self.issuer).map_err(unusable("a certificate"))?;
        let issued = Issued {
            sha256: Sha::of(certificate.der()),
            serial: hex::encode(serial),
            not_after: Stamp(now.0 + life.as_secs()),
            revoked_at: None,
        };
        Ok(Signed { pem: certificate.pem(), certificate: certificate.der().clone(), issued })
    }
}

/// The public key of a certificate.
fn spki_of(certificate: &CertificateDer<'_>) -> Result<SubjectPublicKeyInfo, CaError> {
    let der = pithead_hop::identity::spki(certificate).map_err(|error| CaError::Unusable {
        origin: "the certificate".to_owned(),
        why: error.to_string(),
    })?;
    SubjectPublicKeyInfo::from_der(&der).map_err(unusable("the certificate's key"))
}

/// What a gateway's certificate says of it.
fn gateway_params(site: &Site, name: &str, hosts: &[HostName]) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = vec![uri(&format!("spiffe://{site}/gateway/{name}"))?];
    for host in hosts {
        params.subject_alt_names.push(match host {
            HostName::Name(host) => SanType::DnsName(host.as_str().try_into().map_err(unusable(host))?),
            HostName::Address(address) => SanType::IpAddress(*address),
        });
    }
    // A server for devices, and a client of the cloud.
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

fn uri(text: &str) -> Result<SanType, CaError> {
    Ok(SanType::URI(text.try_into().map_err(unusable(text))?))
}

/// Dates and a number for a certificate.
fn dated(params: &mut CertificateParams, now: Stamp, life: Duration) -> Result<[u8; 16], CaError> {
    let at = |seconds: u64| {
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        time::OffsetDateTime::from_unix_timestamp(seconds)
            .map_err(|error| CaError::Unusable { origin: "a date".to_owned(), why: error.to_string() })
    };
    params.not_before = at(now.0.saturating_sub(BEFORE.as_secs()))?;
    params.not_after = at(now.0 + life.as_secs())?;
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).map_err(|error| CaError::Random(error.to_string()))?;
    // A number is positive, and has as many bytes as any other.
    serial[0] = (serial[0] & 0x3f) | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(serial)
}

/// A new site: its CA, and its first gateway. Certificates and keys in PEM.
#[derive(Debug)]
pub struct NewSite {
    /// The CA's certificate.
    pub ca: String,
    /// The CA's key.
    pub ca_key: Zeroizing<String>,
    /// The gateway's certificate.
    pub gateway: String,
    /// The gateway's key.
    pub gateway_key: Zeroizing<String>,
    /// SHA-256 of the CA's certificate.
    pub ca_sha256: Sha,
    /// SHA-256 of the gateway's SubjectPublicKeyInfo.
    pub gateway_spki_sha256: Sha,
}

/// Makes a CA for `site`, and a certificate for its gateway `name`, which is connected to by `hosts`.
///
/// # Errors
/// [`CaError`].
pub fn new_site(site: &Site, name: &str, hosts: &[HostName], now: Stamp) -> Result<NewSite, CaError> {
    let ca_pair = KeyPair::generate().map_err(unusable("a new key"))?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, format!("{site} site CA"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    dated(&mut params, now, CA_LIFE)?;
    let ca = params.self_signed(&ca_pair).map_err(unusable("the site's CA"))?;
    let ca_key = Zeroizing::new(ca_pair.serialize_pem());
    let issuer = Issuer::new(params, ca_pair);
    let own = SiteCa { issuer, site: site.clone(), above: Vec::new(), validity: GATEWAY_LIFE };

    let pair = KeyPair::generate().map_err(unusable("a new key"))?;
    let gateway = own.sign(gateway_params(site, name, hosts)?, &pair, now, GATEWAY_LIFE)?;
    Ok(NewSite {
        ca: ca.pem(),
        ca_key,
        gateway: gateway.pem,
        gateway_key: Zeroizing::new(pair.serialize_pem()),
        ca_sha256: Sha::of(ca.der()),
        gateway_spki_sha256: Sha::of(&pair.subject_public_key_info()),
    })
}

#[cfg(test)]
mod tests {
    use pithead_hop::identity::{PeerId, end_and_serial};

    use super::*;

    const NOW: Stamp = Stamp(1_800_000_000);

    fn site() -> Site {
        Site::new("pit-7").unwrap()
    }

    fn made() -> (NewSite, SiteCa) {
        let hosts = ["gateway.test".parse().unwrap(), "10.1.2.3".parse().unwrap()];
        let made = new_site(&site(), "gw-1", &hosts, NOW).unwrap();
        let pem = |text: &str| Pem::new("a file", text);
        let ca = SiteCa::load(&pem(&made.ca), &pem(&made.ca_key), &site(), Duration::from_secs(3600));
        (made, ca.unwrap())
    }

    fn request(params: CertificateParams, pair: &KeyPair) -> Vec<u8> {
        params.serialize_request(pair).unwrap().der().to_vec()
    }

    #[test]
    fn a_certificate_names_whom_the_registry_names_whatever_the_request_says() {
        let (_, ca) = made();
        let pair = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "somebody else");
        params.subject_alt_names = vec![uri("spiffe://pit-7/gateway/gw-1").unwrap()];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let request = ProvenRequest::read(&request(params, &pair)).unwrap();
        assert_eq!(request.key(), Sha::of(&pair.subject_public_key_info()));
        let signed = ca.for_request(&DeviceId::new("truck-1").unwrap(), &request, NOW).unwrap();
        let peer = PeerId::from_certificate(&signed.certificate).unwrap();
        assert_eq!(peer.to_string(), "spiffe://pit-7/device/truck-1");
        assert_eq!(spki_sha256(&signed.certificate).unwrap(), request.key().0);
        let (end, serial) = end_and_serial(&signed.certificate).unwrap();
        assert_eq!((Stamp(end), serial), (signed.issued.not_after, signed.issued.serial));
    }

    #[test]
    fn a_request_is_signed_by_its_own_key_which_is_on_p_256() {
        let pair = KeyPair::generate().unwrap();
        let good = request(CertificateParams::default(), &pair);
        ProvenRequest::read(&good).unwrap();
        for at in [good.len() - 1, good.len() / 2] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(matches!(ProvenRequest::read(&bad), Err(NotProven::Malformed)));
        }
        for cut in [0, 1, good.len() - 1] {
            assert!(ProvenRequest::read(&good[..cut]).is_err());
        }
        assert!(matches!(ProvenRequest::read(&vec![0; REQUEST_MAX + 1]), Err(NotProven::TooLong)));
        for other in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
            let pair = KeyPair::generate_for(other).unwrap();
            let other = request(CertificateParams::default(), &pair);
            assert!(matches!(ProvenRequest::read(&other), Err(NotProven::Key)));
        }
    }

    #[test]
    fn a_site_is_made_whose_gateway_its_own_tls_takes() {
        let (made, _) = made();
        let gateway = Pem::new("gateway.pem", made.gateway.as_str());
        let leaf = gateway.certificates().unwrap().remove(0);
        assert_eq!(PeerId::from_certificate(&leaf).unwrap().to_string(), "spiffe://pit-7/gateway/gw-1");
        assert_eq!(spki_sha256(&leaf).unwrap(), made.gateway_spki_sha256.0);
        assert_eq!(pithead_hop::identity::host_names(&leaf).unwrap().len(), 2);
        let ca = Pem::new("site-ca.pem", made.ca.as_str());
        let tls = pithead_hop::tls::ServerTls {
            certificate: gateway,
            key: Pem::new("gateway.key", made.gateway_key.as_str()),
            sites: vec![pithead_hop::tls::SiteTrust { site: site(), ca, crls: vec![] }],
            crl_expiry: Default::default(),
        };
        let gate = tls.gate(Default::default()).unwrap();
        // As a client of another gateway of the site.
        let now = rustls::pki_types::UnixTime::since_unix_epoch(Duration::from_secs(NOW.0 + 60));
        gate.admits(&[leaf], now).unwrap();
    }

    #[test]
    fn a_renewed_gateway_has_the_same_key_and_names_and_other_dates() {
        let (made, ca) = made();
        let leaf = |text: &str| Pem::new("gateway.pem", text).certificates().unwrap().remove(0);
        let old = leaf(&made.gateway);
        let named = PeerId::from_certificate(&old).unwrap();
        let hosts = pithead_hop::identity::host_names(&old).unwrap();
        let later = Stamp(NOW.0 + 86_400);
        let signed = ca.gateway_again(&old, &named, &hosts, later).unwrap();
        let new = leaf(&signed.pem);
        assert_eq!(PeerId::from_certificate(&new).unwrap(), named);
        assert_eq!(pithead_hop::identity::host_names(&new).unwrap(), hosts);
        assert_eq!(spki_sha256(&new).unwrap(), made.gateway_spki_sha256.0);
        let (old, new) = (end_and_serial(&old).unwrap(), end_and_serial(&new).unwrap());
        assert_eq!(new.0 - old.0, 86_400);
        assert_ne!(new.1, old.1);
        let device = PeerId::from_uri("spiffe://pit-7/device/truck-1").unwrap();
        ca.gateway_again(&leaf(&made.gateway), &device, &hosts, later).unwrap_err();
    }

    #[test]
    fn a_key_of_another_ca_is_refused() {
        let (made, _) = made();
        let (other, _) = self::made();
        let error = SiteCa::load(
            &Pem::new("ca.pem", made.ca.as_str()),
            &Pem::new("other.key", other.ca_key.as_str()),
            &site(),
            Duration::from_secs(1),
        );
        assert!(matches!(error, Err(CaError::NotAPair { .. })));
        let not_a_ca = SiteCa::load(
            &Pem::new("gateway.pem", made.gateway.as_str()),
            &Pem::new("gateway.key", made.gateway_key.as_str()),
            &site(),
            Duration::from_secs(1),
        );
        assert!(matches!(not_a_ca, Err(CaError::Unusable { .. })));
    }
}

//! Who the other end is, out of its certificate.
//!
//! A certificate names its holder in exactly one URI: `spiffe://<site>/device/<id>`, `spiffe://<site>/gateway/<name>` or
//! `spiffe://<site>/operator/<name>`. A second URI, of whatever scheme, is a refusal: with two names somebody would
//! choose which one counts. The site in the name is the one whose CA signed: [`crate::tls`] picks the CA by it.

use std::{fmt, net::IpAddr, sync::Arc};

use pithead_proto::ingest::v1 as wire;
use pithead_sealing::{DeviceId, Site};
use rustls_pki_types::ServerName;
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// Why a certificate names nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// Not a certificate in strict DER.
    #[error("the certificate cannot be read")]
    Unreadable,
    /// No URI among its subject alternative names.
    #[error("the certificate has no URI such as spiffe://<site>/device/<id>")]
    NoName,
    /// More than one URI.
    #[error("the certificate has more than one URI; exactly one may name its holder")]
    ManyNames,
    /// A URI of another form, or with a name that is not one.
    #[error("the certificate's URI is not spiffe://<site>/<device|gateway|operator>/<name>")]
    NotSpiffe,
}

macro_rules! role_name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Parses `text`: the grammar of a device's name, `[A-Za-z0-9][A-Za-z0-9._-]{0,62}` without `..`.
            pub fn new(text: &str) -> Result<Self, IdentityError> {
                DeviceId::new(text).map(|id| Self(Arc::from(id.as_str()))).map_err(|_| IdentityError::NotSpiffe)
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

role_name! {
    /// A gateway, as its certificate names it.
    GatewayName
}
role_name! {
    /// A person or program that runs the site.
    OperatorName
}

/// What a certificate allows its holder to be. Fixed: nobody configures another one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Seals and sends its own envelopes.
    Device(DeviceId),
    /// Relays the envelopes of every device of its site.
    Gateway(GatewayName),
    /// Looks and administers; sends no envelopes.
    Operator(OperatorName),
    /// Has shown nothing, and is told apart by its address alone: it asks to be enrolled, or why it is not let in. No
    /// certificate names one.
    Applicant(IpAddr),
}

/// How sure a receiver is of who sent. Never raised on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Assurance {
    /// An address or an import, no proof.
    Claimed,
    /// A client certificate of the site's CA.
    Vouched,
    /// A session signature by the device's registered key.
    Signed,
}

impl Assurance {
    /// As it stands on the wire.
    pub fn to_wire(self) -> wire::Assurance {
        match self {
            Self::Claimed => wire::Assurance::Claimed,
            Self::Vouched => wire::Assurance::Vouched,
            Self::Signed => wire::Assurance::Signed,
        }
    }

    /// From the wire; what this version does not know is nothing but a claim.
    pub fn from_wire(value: i32) -> Self {
        match wire::Assurance::try_from(value) {
            Ok(wire::Assurance::Vouched) => Self::Vouched,
            Ok(wire::Assurance::Signed) => Self::Signed,
            Ok(wire::Assurance::Claimed | wire::Assurance::Unspecified) | Err(_) => Self::Claimed,
        }
    }
}

/// Site and role: what revocation lists, limits and logs go by. Displays as its SPIFFE URI.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId {
    /// The site whose CA signed the certificate.
    pub site: Site,
    /// What the holder may be.
    pub role: Role,
}

impl PeerId {
    /// Parses a SPIFFE URI.
    pub fn from_uri(uri: &str) -> Result<Self, IdentityError> {
        let rest = uri.strip_prefix("spiffe://").ok_or(IdentityError::NotSpiffe)?;
        let mut parts = rest.split('/');
        let (Some(site), Some(kind), Some(name), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(IdentityError::NotSpiffe);
        };
        let site = Site::new(site).map_err(|_| IdentityError::NotSpiffe)?;
        let role = match kind {
            "device" => Role::Device(DeviceId::new(name).map_err(|_| IdentityError::NotSpiffe)?),
            "gateway" => Role::Gateway(GatewayName::new(name)?),
            "operator" => Role::Operator(OperatorName::new(name)?),
            _ => return Err(IdentityError::NotSpiffe),
        };
        Ok(Self { site, role })
    }

    /// Reads the one URI of a certificate. Says nothing about who signed it.
    pub fn from_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| IdentityError::Unreadable)?;
        if !rest.is_empty() {
            return Err(IdentityError::Unreadable);
        }
        let names = certificate.subject_alternative_name().map_err(|_| IdentityError::Unreadable)?;
        let mut uris =
            names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
                GeneralName::URI(uri) => Some(*uri),
                _ => None,
            });
        match (uris.next(), uris.next()) {
            (None, _) => Err(IdentityError::NoName),
            (Some(_), Some(_)) => Err(IdentityError::ManyNames),
            (Some(uri), None) => Self::from_uri(uri),
        }
    }
}

/// The names under which the holder of a certificate can be connected to, in its order: host names and addresses. For
/// whoever connects to itself.
///
/// # Errors
/// [`IdentityError::Unreadable`].
pub fn host_names(der: &[u8]) -> Result<Vec<ServerName<'static>>, IdentityError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| IdentityError::Unreadable)?;
    let names = certificate.subject_alternative_name().map_err(|_| IdentityError::Unreadable)?;
    let names = names.iter().flat_map(|names| &names.value.general_names);
    Ok(names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => ServerName::try_from((*name).to_owned()).ok(),
            GeneralName::IPAddress(bytes) => {
                let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                let address = v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from)).ok()?;
                Some(ServerName::IpAddress(address.into()))
            }
            _ => None,
        })
        .collect())
}

/// SHA-256 of a certificate's SubjectPublicKeyInfo: what a key is known by, whoever signs for it.
///
/// # Errors
/// [`IdentityError::Unreadable`].
pub fn spki_sha256(der: &[u8]) -> Result<[u8; 32], IdentityError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| IdentityError::Unreadable)?;
    Ok(Sha256::digest(certificate.public_key().raw).into())
}

/// A certificate's SubjectPublicKeyInfo in DER.
///
/// # Errors
/// [`IdentityError::Unreadable`].
pub fn spki(der: &[u8]) -> Result<Vec<u8>, IdentityError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| IdentityError::Unreadable)?;
    Ok(certificate.public_key().raw.to_vec())
}

/// When a certificate ends, in seconds since 1970, and its serial number in lower-case hexadecimal.
///
/// # Errors
/// [`IdentityError::Unreadable`].
pub fn end_and_serial(der: &[u8]) -> Result<(u64, String), IdentityError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| IdentityError::Unreadable)?;
    let end = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    let serial: String = certificate.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((end, serial))
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.role {
            Role::Device(id) => write!(f, "spiffe://{}/device/{id}", self.site),
            Role::Gateway(name) => write!(f, "spiffe://{}/gateway/{name}", self.site),
            Role::Operator(name) => write!(f, "spiffe://{}/operator/{name}", self.site),
            Role::Applicant(address) => write!(f, "an applicant at {address}"),
        }
    }
}

/// The other end of an accepted connection. [`crate::accept`] puts it into every request's extensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// What its certificate names it, or what the configuration names its address.
    pub id: PeerId,
    /// SHA-256 of its certificate in DER; none where no certificate was shown.
    pub certificate_sha256: Option<[u8; 32]>,
    /// How that is known.
    pub assurance: Assurance,
    /// The gateway of the same site that passes the call on, if this is its word for somebody else ([`crate::ingest::pass`]).
    pub passed_on_by: Option<Arc<Peer>>,
}

impl Peer {
    /// The holder of a certificate that a handshake has verified against the CA of the site that it names.
    pub fn from_verified_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        Ok(Self {
            id: PeerId::from_certificate(der)?,
            certificate_sha256: Some(Sha256::digest(der).into()),
            assurance: Assurance::Vouched,
            passed_on_by: None,
        })
    }

    /// The device that the configuration names this address: nothing proves it.
    pub fn at_address(site: Site, device: DeviceId) -> Self {
        let id = PeerId { site, role: Role::Device(device) };
        Self { id, certificate_sha256: None, assurance: Assurance::Claimed, passed_on_by: None }
    }

    /// Somebody at this address.
    pub fn applicant(site: Site, address: IpAddr) -> Self {
        let id = PeerId { site, role: Role::Applicant(address.to_canonical()) };
        Self { id, certificate_sha256: None, assurance: Assurance::Claimed, passed_on_by: None }
    }

    /// Whoever has shown a certificate, or came from an address, on the connection itself.
    pub fn at_the_door(&self) -> &Self {
        self.passed_on_by.as_deref().unwrap_or(self)
    }

    /// Its site.
    pub fn site(&self) -> &Site {
        &self.id.site
    }

    /// Its role.
    pub fn role(&self) -> &Role {
        &self.id.role
    }

    /// Its name as a device, if it is one.
    pub fn device(&self) -> Option<&DeviceId> {
        match &self.id.role {
            Role::Device(id) => Some(id),
            Role::Gateway(_) | Role::Operator(_) | Role::Applicant(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spiffe_uri_has_one_form() {
        for good in [
            "spiffe://pit-7/device/truck-0042",
            "spiffe://pit-7/gateway/edge.1",
            "spiffe://pit-7/operator/erin",
        ] {
            assert_eq!(PeerId::from_uri(good).expect("a good name").to_string(), good);
        }
        for bad in [
            "",
            "spiffe://",
            "spiffe://pit-7",
            "spiffe://pit-7/device",
            "spiffe://pit-7/device/",
            "spiffe://pit-7/device/a/b",
            "spiffe://pit-7/device/a/",
            "spiffe://Pit-7/device/a",
            "spiffe://pit-7/Device/a",
            "spiffe://pit-7/root/a",
            "spiffe://pit-7:443/device/a",
            "spiffe://pit-7/device/..",
            "spiffe://pit-7/device/a?x=1",
            "SPIFFE://pit-7/device/a",
            "https://pit-7/device/a",
        ] {
            assert_eq!(PeerId::from_uri(bad), Err(IdentityError::NotSpiffe), "{bad}");
        }
    }

    #[test]
    fn bytes_that_are_no_certificate_name_nobody() {
        assert_eq!(PeerId::from_certificate(b""), Err(IdentityError::Unreadable));
        assert_eq!(PeerId::from_certificate(&[0x30, 0x82, 0xff, 0xff]), Err(IdentityError::Unreadable));
    }

    #[test]
    fn an_assurance_that_is_not_known_is_a_claim() {
        for all in [Assurance::Claimed, Assurance::Vouched, Assurance::Signed] {
            assert_eq!(Assurance::from_wire(all.to_wire() as i32), all);
        }
        assert_eq!(Assurance::from_wire(0), Assurance::Claimed);
        assert_eq!(Assurance::from_wire(99), Assurance::Claimed);
    }
}

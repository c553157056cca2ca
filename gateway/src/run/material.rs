//! Certificates, keys, CAs and the trust root, read and checked before anything starts.

use std::sync::Arc;

use bytes::Bytes;
use pithead_hop::identity::{GatewayName, PeerId, Role};
use pithead_hop::program::ProgramError;
use pithead_hop::tls::{ClientTls, PassedExpiry, PeerTls, Pem, ServerTls, SiteTrust, SystemClock, TlsError};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::trust::verify;
use rustls::pki_types::CertificateDer;

use crate::config::{self, Config};
use crate::devices::ca::SiteCa;

/// Everything that the configuration names by path and that has to be good.
#[derive(Debug)]
pub struct Material {
    /// This gateway's name, out of its certificate.
    pub name: GatewayName,
    /// For the ports of the devices.
    pub server: ServerTls,
    /// Who signs devices here, if somebody does.
    pub site_ca: Option<Arc<SiteCa>>,
    /// The CAs of the gateways' certificates, as enrolled devices are told them.
    pub gateway_ca: Vec<CertificateDer<'static>>,
    /// What other gateways of the site are connected to with.
    pub peers: PeerTls,
    /// For the upstream `KeyService`, if there is one.
    pub keys: Option<Arc<rustls::ClientConfig>>,
    /// For the relay, if there is one.
    pub relay: Option<Arc<rustls::ClientConfig>>,
    /// The provisioned trust root.
    pub root: Bytes,
}

impl Material {
    /// Reads and checks all of it.
    ///
    /// # Errors
    /// The first thing that is wrong, naming the file.
    pub fn load(config: &Config) -> Result<Self, ProgramError> {
        let tls = server_tls(config)?;
        // Built for itself, so that the first thing that is wrong is found here; the doors build it again.
        tls.build()?;
        let site_ca = site_ca(config)?.map(Arc::new);
        let name = own_name(config, &tls.certificate)?;
        let client = |ca: &std::path::Path, passed_expiry| -> Result<_, TlsError> {
            let identity = Some((tls.certificate.clone(), tls.key.clone()));
            ClientTls { ca: Pem::read(ca)?, identity, clock: Arc::new(SystemClock), passed_expiry }.build()
        };
        let keys = match (&config.keys.upstream, &config.keys.upstream_ca) {
            (Some(_), Some(ca)) => Some(client(ca, PassedExpiry::TakeWithoutClock)?),
            _ => None,
        };
        let relay = match config.relay.as_ref().and_then(config::Relay::peer) {
            Some(peer) => Some(client(peer.ca, PassedExpiry::Refuse)?),
            None => None,
        };
        let gateway_ca = config.enroll.as_ref().and_then(|enroll| enroll.gateway_ca.as_ref());
        let ca = Pem::read(gateway_ca.unwrap_or(&config.ingest.device_ca))?;
        let gateway_ca = ca.certificates()?;
        let peers = PeerTls { ca, certificate: tls.certificate.clone(), key: tls.key.clone() };
        Ok(Self { name, server: tls, site_ca, gateway_ca, peers, keys, relay, root: root(config)? })
    }

    /// Reads all of it again, for a reload by the gateway that is called `name`.
    ///
    /// # Errors
    /// What is wrong; then the old ones stay in force.
    pub fn reload(config: &Config, name: &GatewayName) -> Result<Self, ProgramError> {
        let material = Self::load(config)?;
        if material.name == *name {
            return Ok(material);
        }
        // Custody is told under the name that this program began with.
        let what = format!("the certificate is of gateway {}, this is {name}", material.name);
        Err(ProgramError::new(ErrorReason::CertificateInvalid, what).todo("restart to go by another name"))
    }

    /// What an operator should know: certificates and lists that run out.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        self.server.warnings(rustls::pki_types::UnixTime::now())
    }
}

/// The CA that signs devices, if its key lies here.
///
/// # Errors
/// What is wrong with its files.
pub fn site_ca(config: &Config) -> Result<Option<SiteCa>, ProgramError> {
    let Some(enroll) = &config.enroll else { return Ok(None) };
    let ca = Pem::read(enroll.ca.as_ref().unwrap_or(&config.ingest.device_ca))?;
    let key = Pem::read(&enroll.ca_key)?;
    Ok(Some(SiteCa::load(&ca, &key, &config.gateway.site, enroll.validity.get())?))
}

fn server_tls(config: &Config) -> Result<ServerTls, TlsError> {
    let site = SiteTrust {
        site: config.gateway.site.clone(),
        ca: Pem::read(&config.ingest.device_ca)?,
        crls: config.ingest.crls.iter().map(|path| Pem::read(path)).collect::<Result<_, _>>()?,
    };
    Ok(ServerTls {
        certificate: Pem::read(&config.gateway.certificate)?,
        key: Pem::read(&config.gateway.private_key)?,
        sites: vec![site],
        crl_expiry: config.ingest.crl_expiry,
    })
}

/// The name in our own certificate. It goes into every custody fact and opens the doors of the cloud, so one that is for
/// something else is found here and not at the first envelope.
fn own_name(config: &Config, certificate: &Pem) -> Result<GatewayName, ProgramError> {
    let wrong = |what: String| {
        let todo = format!("have it name spiffe://{}/gateway/<name>", config.gateway.site);
        ProgramError::new(ErrorReason::CertificateInvalid, format!("{}: {what}", certificate.origin()))
            .todo(todo)
    };
    let chain = certificate.certificates()?;
    let leaf = chain.first().map(|leaf| leaf.as_ref()).unwrap_or_default();
    let id = PeerId::from_certificate(leaf).map_err(|error| wrong(error.to_string()))?;
    if id.site != config.gateway.site {
        return Err(wrong(format!("it is of site {}, this gateway serves {}", id.site, config.gateway.site)));
    }
    match id.role {
        Role::Gateway(name) => Ok(name),
        Role::Device(_) | Role::Operator(_) | Role::Applicant(_) => Err(wrong(format!("{id} is no gateway"))),
    }
}

fn root(config: &Config) -> Result<Bytes, ProgramError> {
    let path = &config.trust.root;
    let bytes = std::fs::read(path).map_err(|error| {
        ProgramError::new(ErrorReason::ConfigUnreadable, format!("{}: {error}", path.display()))
            .affects("no statement can be verified")
            .todo("put the trust root there that the authority published, version 1")
    })?;
    let object = Bytes::from(bytes);
    verify::first_root(&config.trust.authority, &object).map_err(|error| {
        let reason = pithead_hop::status::reason_of_trust(error);
        ProgramError::new(reason, format!("{}: {error}", path.display()))
            .affects("no statement can be verified")
            .todo("compare the file and [trust] authority with what the authority published")
            .exit(pithead_hop::program::ExitCode::CONFIG_INVALID)
    })?;
    Ok(object)
}

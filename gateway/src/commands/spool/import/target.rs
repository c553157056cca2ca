//! Where an import goes, and as whom: the gateway's own port under its own certificate, or what `--to` names.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use pithead_hop::connect::Endpoint;
use pithead_hop::identity::{GatewayName, PeerId, Role, host_names};
use pithead_hop::program::{ExitCode, ProgramError};
use pithead_hop::tls::{ClientTls, PassedExpiry, Pem, SystemClock};
use pithead_proto::errors::v1::ErrorReason;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use super::Args;
use crate::config::Config;

/// Where to, and as whom.
pub(super) struct Target {
    pub(super) endpoint: Endpoint,
    pub(super) name: ServerName<'static>,
    pub(super) tls: Arc<ClientConfig>,
    pub(super) by: GatewayName,
}

impl Target {
    pub(super) fn of(args: &Args, config: &Config) -> Result<Self, ProgramError> {
        let certificate = Pem::read(&config.gateway.certificate)?;
        let chain = certificate.certificates()?;
        let leaf = chain.first().map(|leaf| leaf.as_ref()).unwrap_or_default();
        let wrong = |what: String| {
            ProgramError::new(ErrorReason::CertificateInvalid, format!("{}: {what}", certificate.origin()))
        };
        let by = match PeerId::from_certificate(leaf).map_err(|error| wrong(error.to_string()))?.role {
            Role::Gateway(name) => name,
            Role::Device(_) | Role::Operator(_) | Role::Applicant(_) => {
                return Err(wrong("it is no gateway's".into()));
            }
        };
        let named = |name: &str| {
            ServerName::try_from(name.to_owned()).map_err(|_| {
                ProgramError::new(ErrorReason::ConfigInvalid, format!("{name} is no host's name"))
                    .exit(ExitCode::USAGE)
            })
        };
        let (endpoint, name, ca) = match &args.to {
            None => {
                let own = host_names(leaf).map_err(|error| wrong(error.to_string()))?.into_iter().next();
                let own = own.ok_or_else(|| {
                    wrong("it names no host".into()).todo("give the name that devices expect with --name")
                });
                let name = args.name.as_deref().map_or(own, named)?;
                (own_port(config), name, config.ingest.device_ca.clone())
            }
            Some(endpoint) => {
                let relay_ca = config.relay.as_ref().and_then(|relay| relay.ca.clone());
                let ca = args.ca.clone().or(relay_ca).ok_or_else(|| {
                    ProgramError::new(ErrorReason::ConfigInvalid, "whose certificate --to has is not known")
                        .todo("give its CA with --ca")
                        .exit(ExitCode::USAGE)
                })?;
                // What the relay expects of the same far end holds here.
                let peer = config.relay.as_ref().and_then(|relay| relay.peer());
                let relayed = peer.filter(|peer| peer.endpoint == endpoint);
                let expected = relayed.and_then(|peer| peer.name).unwrap_or(endpoint.host());
                (endpoint.clone(), named(args.name.as_deref().unwrap_or(expected))?, ca)
            }
        };
        let key = Pem::read(&config.gateway.private_key)?;
        let tls = ClientTls {
            ca: Pem::read(&ca)?,
            identity: Some((certificate.clone(), key)),
            clock: Arc::new(SystemClock),
            passed_expiry: PassedExpiry::Refuse,
        };
        Ok(Self { endpoint, name, tls: tls.build()?, by })
    }
}

/// Where the gateway listens, as it is reached from its own machine.
fn own_port(config: &Config) -> Endpoint {
    let mut address = config.ingest.listen;
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    Endpoint::from(address)
}

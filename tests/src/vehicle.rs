//! A vehicle that embeds the client: in the test's own process, with the identity that `enroll` has made.

use std::net::SocketAddr;

use anyhow::Context as _;
use pithead_device_client::{
    client::{Client, ClientBuilder},
    uplink::Gateways,
};
use pithead_hop::{
    backoff::Policy,
    connect::{ConnectOptions, Endpoint},
    tls::Pem,
};
use pithead_sealing::{DeviceId, Site as SiteName, envelope::DeviceSigningKey};

use crate::{device::Device, site::SITE};

/// The client of an enrolled device, not open yet, with the gateways at these addresses. It signs its sessions, as `send`
/// does.
pub fn client(device: &Device, gateways: &[SocketAddr]) -> anyhow::Result<ClientBuilder> {
    let read = |name| Pem::read(&device.folder().join(name)).context(name);
    let key = read("device.key")?;
    let der = key.private_key()?;
    let signer = DeviceSigningKey::from_pkcs8_der(der.secret_der())?;
    let gateways = Gateways {
        endpoints: gateways.iter().copied().map(Endpoint::from).collect(),
        server_name: None,
        ca: read("ca.pem")?,
        identity: Some((read("device.pem")?, key)),
        options: ConnectOptions::default(),
        retry: Policy::default(),
    };
    let (site, name) = (SITE.parse::<SiteName>()?, device.name().parse::<DeviceId>()?);
    Ok(Client::enrolled(device.folder(), site, name, gateways).sign_with(signer))
}

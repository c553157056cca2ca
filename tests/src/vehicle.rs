//! A vehicle that embeds the client: in the test's own process, with the identity that `enroll` has made.

use std::{net::SocketAddr, path::Path};

use anyhow::Context as _;
use pithead_device_client::{
    client::{Client, ClientBuilder},
    uplink::Gateways,
};
use pithead_hop::{backoff::Policy, connect::Endpoint, tls::Pem};
use pithead_sealing::{DeviceId, Site as SiteName, envelope::DeviceSigningKey};

use crate::{device::Device, site::SITE};

/// The client of an enrolled device, not open yet, with the gateways at these addresses. It signs its sessions, as `send`
/// does.
pub fn client(device: &Device, gateways: &[SocketAddr]) -> anyhow::Result<ClientBuilder> {
    client_in(device.folder(), device.name(), gateways, Policy::default())
}

/// The same of the device in that folder, and with another patience while no gateway takes anything.
pub fn client_in(
    folder: &Path,
    device: &str,
    gateways: &[SocketAddr],
    retry: Policy,
) -> anyhow::Result<ClientBuilder> {
    let read = |name| Pem::read(&folder.join(name)).context(name);
    let key = read("device.key")?;
    let der = key.private_key()?;
    let signer = DeviceSigningKey::from_pkcs8_der(der.secret_der())?;
    let endpoints = gateways.iter().copied().map(Endpoint::from).collect();
    let gateways = Gateways::new(endpoints, read("ca.pem")?).identity(read("device.pem")?, key).retry(retry);
    let (site, name) = (SITE.parse::<SiteName>()?, device.parse::<DeviceId>()?);
    Ok(Client::enrolled(folder, site, name, gateways).sign_with(signer))
}

/// A record that carries its number.
#[must_use]
pub fn record(number: u64, bytes: usize) -> String {
    let mut record = format!("{number:012} ");
    let more = bytes.saturating_sub(record.len());
    record.extend(std::iter::repeat_n('.', more));
    record
}

/// The number that such a record carries.
#[must_use]
pub fn number(record: &[u8]) -> Option<u64> {
    std::str::from_utf8(record.get(..12)?).ok()?.parse().ok()
}

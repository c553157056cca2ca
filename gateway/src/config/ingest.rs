//! `[ingest]`, `[network]` and `[enroll]`: who hands in envelopes, and what of them is taken.

use std::net::SocketAddr;
use std::path::PathBuf;

use pithead_hop::accept::Limits;
use pithead_hop::connect::Endpoint;
use pithead_hop::ingest::IngestLimits;
use pithead_hop::program::config::{ByteSize, Duration};
use pithead_hop::tls::CrlExpiry;
use serde::{Deserialize, Serialize};

use crate::envelopes::budgets::Allowance;

/// `[ingest]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ingest {
    /// Where devices connect.
    pub listen: SocketAddr,
    /// PEM: the CA of the site's devices and relays.
    pub device_ca: PathBuf,
    /// PEM: certificate revocation lists of that CA.
    #[serde(default)]
    pub crls: Vec<PathBuf>,
    /// What a list that is past its `nextUpdate` means.
    #[serde(default)]
    pub crl_expiry: CrlExpiry,
    /// Whether tools such as grpcurl may ask what is served.
    #[serde(default)]
    pub reflection: bool,
    /// Bounds of what is taken at a time.
    #[serde(default)]
    pub envelopes: IngestLimits,
    /// How fast one device may send.
    #[serde(default)]
    pub per_device: PerDevice,
    /// Bounds of the open port.
    #[serde(default)]
    pub limits: Limits,
}

/// `[network]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Where such devices connect.
    pub listen: SocketAddr,
    /// Bounds of that port.
    #[serde(default)]
    pub limits: Limits,
}

/// `[enroll]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enroll {
    /// Where devices enrol over the network; without it they are given their files by hand.
    pub listen: Option<SocketAddr>,
    /// How devices reach that, for the command that is printed.
    pub address: Option<Endpoint>,
    /// PEM: the CA that signs devices, if it is not the first in `ingest.device_ca`.
    pub ca: Option<PathBuf>,
    /// PEM: its private key.
    pub ca_key: PathBuf,
    /// PEM: the CA of the gateways' certificates, if it is not `ingest.device_ca`.
    pub gateway_ca: Option<PathBuf>,
    /// Where an enrolled device finds the gateways, in the order of preference.
    #[serde(default)]
    pub endpoints: Vec<Endpoint>,
    /// The name in the gateways' certificates, if it is not the host of the endpoint.
    pub server_name: Option<String>,
    /// How long a device's certificate lives.
    #[serde(default = "validity")]
    pub validity: Duration,
}

/// `[ingest.per_device]`
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PerDevice {
    /// Bytes a second, in the long run.
    pub rate: ByteSize,
    /// Bytes at once.
    pub burst: ByteSize,
    /// New sessions an hour, in the long run: each costs the cloud one unwrapping.
    pub sessions_per_hour: u32,
    /// New sessions at once: two weeks of outbox.
    pub session_burst: u32,
}

impl PerDevice {
    pub(crate) fn sessions(&self) -> Allowance {
        Allowance { per_hour: self.sessions_per_hour, burst: self.session_burst }
    }
}

impl Default for PerDevice {
    /// 16 MiB a second is a camera and every bus of a truck, and an eighth of a gigabit that many share; 512 MiB at once is
    /// the outbox of a shift without a radio.
    fn default() -> Self {
        let sessions = Allowance::default();
        Self {
            rate: ByteSize::mib(16),
            burst: ByteSize::mib(512),
            sessions_per_hour: sessions.per_hour,
            session_burst: sessions.burst,
        }
    }
}

/// A device is enrolled again before that; a certificate that nobody renews is no key to the site for ever.
pub(super) const fn validity() -> Duration {
    Duration::from_secs(2 * 365 * 86_400)
}

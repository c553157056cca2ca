//! The configuration file, parsed into values that can only be right.
//!
//! `config template` prints [`TEMPLATE`], where every key stands with its meaning and its default. Paths are relative to
//! the file's own folder.
mod ingest;
mod relay;
mod spool;
mod store;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use pithead_hop::accept::{Limits, limits::fit_files};
use pithead_hop::connect::Endpoint;
use pithead_hop::ingest::UploadLimits;
use pithead_hop::program::admin::AdminAddress;
use pithead_hop::program::config::change::Live;
use pithead_hop::program::config::{self, ConfigError, Duration, Loaded, Sources, Wrong};
use pithead_hop::program::traces::Traces;
use pithead_sealing::Site;
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};

use crate::devices::enroll;

pub use self::ingest::{Enroll, Ingest, Network, PerDevice};
pub(crate) use self::relay::refused_size;
pub use self::relay::{Relay, RelayKind, RelayPeer, RelayStore};
pub use self::spool::{Engine, JetStream, Lanes, Spool};
pub use self::store::LargeStore;

/// The prefix of environment variables that stand for keys of the file.
pub const ENV_PREFIX: &str = "PITHEAD";

/// What a reload applies while the gateway runs. Everything else needs a restart, and is named then.
///
/// Who adds a key here has it applied in `run/reload.rs`.
pub const LIVE: Live = Live(&[
    "gateway.certificate",
    "gateway.private_key",
    "keys.upstream",
    "keys.upstream_ca",
    "keys.upstream_name",
    "keys.bundle",
    "keys.min_interval",
    "keys.max_interval",
    "ingest.device_ca",
    "ingest.crls",
    "ingest.crl_expiry",
    "ingest.per_device.*",
    "ingest.limits.*",
    "network.limits.*",
    "enroll.ca",
    "enroll.ca_key",
    "enroll.gateway_ca",
    "enroll.endpoints",
    "enroll.server_name",
    "enroll.address",
    "enroll.validity",
    "spool.per_device",
    "relay.endpoint",
    "relay.ca",
    "relay.name",
    "relay.window",
    "relay.rate",
    "relay.answer_timeout",
    "relay.store.*",
    "stop.*",
]);

/// Every key, commented.
pub const TEMPLATE: &str = include_str!("config.template.toml");

/// The whole file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Who this gateway is.
    pub gateway: Gateway,
    /// Whom it believes.
    pub trust: Trust,
    /// Where keys come from.
    pub keys: Keys,
    /// The port for devices.
    pub ingest: Ingest,
    /// The port for devices that are known by their address; absent where every device has a certificate.
    pub network: Option<Network>,
    /// How devices get their certificates; absent where another CA sees to that.
    pub enroll: Option<Enroll>,
    /// What waits on disk.
    #[serde(default)]
    pub spool: Spool,
    /// Large envelopes.
    #[serde(default)]
    pub uploads: UploadLimits,
    /// Where envelopes go; absent at a site that carries them away by hand.
    pub relay: Option<Relay>,
    /// Health and metrics.
    #[serde(default)]
    pub admin: Admin,
    /// Where spans go; absent where nobody asks for them.
    pub traces: Option<Traces>,
    /// How long each part may take to stop.
    #[serde(default)]
    pub stop: Stop,
}

/// `[gateway]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gateway {
    /// The site it serves.
    #[serde(with = "config::text")]
    pub site: Site,
    /// Where state and spool lie. It must exist.
    pub data_dir: PathBuf,
    /// PEM: its certificate chain, shown to devices and to the cloud.
    pub certificate: PathBuf,
    /// PEM: the private key of that certificate.
    pub private_key: PathBuf,
}

/// `[trust]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trust {
    /// The authority's name in the trust root.
    pub authority: String,
    /// The provisioned trust root, version 1.
    pub root: PathBuf,
    /// The machine's clock is set by NTS, authenticated PTP or the operator.
    #[serde(default)]
    pub trusted_clock: bool,
}

/// `[keys]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// The upstream `KeyService`.
    pub upstream: Option<Endpoint>,
    /// PEM: the CA of the upstream's certificate.
    pub upstream_ca: Option<PathBuf>,
    /// The name in the upstream's certificate, if it is not the endpoint's host.
    pub upstream_name: Option<String>,
    /// A bundle file that somebody carries in, instead of an upstream.
    pub bundle: Option<PathBuf>,
    /// Ask AWS KMS for the public keys as well, and compare.
    #[serde(default)]
    pub kms: bool,
    /// Not more often than this, except when the upstream says that there is something newer.
    #[serde(default = "min_interval")]
    pub min_interval: Duration,
    /// At least this often.
    #[serde(default = "max_interval")]
    pub max_interval: Duration,
}

/// `[admin]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Where health, metrics and the console are asked for. Keep it on loopback, or a socket: it has no authentication.
    pub listen: AdminAddress,
    /// Names besides those of loopback by which it may be called.
    pub names: Vec<String>,
}

/// `[stop]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Stop {
    /// For calls under way.
    pub intake: Duration,
    /// For answers to what the relay has sent.
    pub relay: Duration,
    /// For the last syncs.
    pub spool: Duration,
    /// For the admin port.
    pub admin: Duration,
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 7480)).into(), names: Vec::new() }
    }
}

impl Default for Stop {
    fn default() -> Self {
        Self {
            intake: Duration::from_secs(10),
            relay: Duration::from_secs(10),
            spool: Duration::from_secs(20),
            admin: Duration::from_secs(2),
        }
    }
}

const fn min_interval() -> Duration {
    Duration::from_secs(60)
}

const fn max_interval() -> Duration {
    Duration::from_secs(900)
}

impl Config {
    /// Reads the file and the environment, and finds what does not go together.
    ///
    /// # Errors
    /// [`ConfigError`], pointing at the place.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::read(path).map(|loaded| loaded.value)
    }

    /// As [`load`](Self::load), and where each key came from.
    ///
    /// # Errors
    /// [`ConfigError`], pointing at the place.
    pub fn read(path: &Path) -> Result<Loaded<Self>, ConfigError> {
        let mut loaded: Loaded<Self> = config::load(path, ENV_PREFIX)?;
        loaded.value.settle(&loaded.sources)?;
        loaded.value.resolve(path.parent().unwrap_or(Path::new("")));
        Ok(loaded)
    }

    /// What does not go together, and what one key says for another.
    fn settle(&mut self, sources: &Sources) -> Result<(), ConfigError> {
        self.check().map_err(|wrong| sources.fault(wrong))?;
        let network = self.network.as_ref().map(|network| ("network", network.limits.stop_grace));
        for (section, grace) in [("ingest", self.ingest.limits.stop_grace)].into_iter().chain(network) {
            // How long a port may take to stop is said once, for all of them. What `config show` prints says it twice.
            let key = format!("{section}.limits.stop_grace");
            if sources.get(&key).is_some() && grace != self.stop.intake {
                let words = format!("[{section}.limits] `stop_grace` is [stop] `intake` here; set that");
                return Err(sources.fault(Wrong::at(key, words)));
            }
        }
        self.ingest.limits.stop_grace = self.stop.intake;
        if let Some(network) = &mut self.network {
            network.limits.stop_grace = self.stop.intake;
        }
        Ok(())
    }

    /// What does not go together although each key is good by itself.
    ///
    /// # Errors
    /// What it is, and of which key it is said.
    pub fn check(&self) -> Result<(), Wrong> {
        let keys = &self.keys;
        match (&keys.upstream, &keys.bundle) {
            (None, None) => {
                return Err(Wrong::at(
                    "keys.upstream",
                    "[keys] needs `upstream` or `bundle`: statements come from somewhere",
                ));
            }
            (Some(_), Some(_)) => {
                return Err(Wrong::at("keys.bundle", "[keys] has both `upstream` and `bundle`; name one"));
            }
            (Some(_), None) if keys.upstream_ca.is_none() => {
                return Err(Wrong::at("keys.upstream", "[keys] `upstream` needs `upstream_ca`"));
            }
            (Some(_), None) | (None, Some(_)) => {}
        }
        if keys.min_interval > keys.max_interval || keys.min_interval.is_zero() {
            return Err(Wrong::at_any(
                &["keys.min_interval", "keys.max_interval"],
                "[keys] `min_interval` must be above 0 and not above `max_interval`",
            ));
        }
        self.check_ports()?;
        if let Some(enroll) = &self.enroll {
            if enroll.validity.is_zero() {
                return Err(Wrong::at("enroll.validity", "[enroll] `validity` must be above 0"));
            }
            if enroll.listen.is_some() && (enroll.endpoints.is_empty() || enroll.address.is_none()) {
                return Err(Wrong::at(
                    "enroll.listen",
                    "[enroll] `listen` needs `address`, and `endpoints`: where devices go then",
                ));
            }
        }
        let devices = &self.ingest.per_device;
        if devices.rate.get() == 0 || devices.burst < self.ingest.envelopes.inline {
            return Err(Wrong::at_any(
                match devices.rate.get() {
                    0 => &["ingest.per_device.rate"],
                    _ => &["ingest.per_device.burst", "ingest.envelopes.inline"],
                },
                "[ingest.per_device] `rate` must be above 0, and `burst` hold one envelope",
            ));
        }
        if devices.sessions_per_hour == 0 || devices.session_burst == 0 {
            return Err(Wrong::at(
                match devices.sessions_per_hour {
                    0 => "ingest.per_device.sessions_per_hour",
                    _ => "ingest.per_device.session_burst",
                },
                "[ingest.per_device] `sessions_per_hour` and `session_burst` must be at least 1",
            ));
        }
        config::check_ingest("ingest.envelopes", &self.ingest.envelopes)?;
        let network = self.network.as_ref().map(|network| ("network.limits", &network.limits));
        for (section, limits) in [("ingest.limits", &self.ingest.limits)].into_iter().chain(network) {
            config::check_port(section, limits, "ingest.envelopes", &self.ingest.envelopes)?;
        }
        if let Some(relay) = &self.relay {
            relay.check()?;
        }
        for (key, name, endpoint) in [
            ("keys.upstream_name", &keys.upstream_name, keys.upstream.is_some()),
            ("relay.name", &self.relay.as_ref().and_then(|relay| relay.name.clone()), self.relay.is_some()),
        ] {
            if let Some(name) = name.as_ref().filter(|_| endpoint)
                && ServerName::try_from(name.as_str()).is_err()
            {
                return Err(Wrong::at(key, format!("{name:?} is no host name")));
            }
        }
        let lanes = &self.spool.lanes;
        if let Some(both) = lanes.first.iter().find(|stream| lanes.third.contains(stream)) {
            return Err(Wrong::at(
                "spool.lanes.third",
                format!("[spool.lanes] has `{both}` both in `first` and in `third`"),
            ));
        }
        self.traces.as_ref().map_or(Ok(()), Traces::check)?;
        self.spool.check()?;
        if self.trust.authority.is_empty() {
            return Err(Wrong::at("trust.authority", "[trust] `authority` is empty"));
        }
        Ok(())
    }

    /// Where copies of large envelopes go, and of which lanes they are, where several gateways share them and it says where.
    #[must_use]
    pub fn large_store(&self) -> Option<(&LargeStore, String)> {
        let jetstream = self.spool.jetstream.as_ref().filter(|_| self.spool.engine == Engine::Jetstream)?;
        let set = jetstream.prefix.clone().unwrap_or_else(|| format!("pithead-{}", self.gateway.site));
        Some((jetstream.large.as_ref()?, set))
    }

    fn check_ports(&self) -> Result<(), Wrong> {
        let network = self.network.as_ref().map(|network| ("network", network.listen));
        let enroll = self.enroll.as_ref().and_then(|enroll| enroll.listen).map(|listen| ("enroll", listen));
        let admin = self.admin.listen.socket_addr().map(|listen| ("admin", listen));
        let mut taken = vec![("ingest", self.ingest.listen)];
        for (section, listen) in admin.into_iter().chain(network).chain(enroll) {
            if let Some((other, _)) = taken.iter().find(|(_, one)| *one == listen && listen.port() != 0) {
                // One port has one way of knowing who comes, or somebody would choose the weaker one.
                return Err(Wrong::at_any(
                    &[&format!("{section}.listen"), &format!("{other}.listen")],
                    format!("[{section}] and [{other}] `listen` on the same address"),
                ));
            }
            taken.push((section, listen));
        }
        Ok(())
    }

    /// The limits of the port for devices with a certificate, and of the one for devices without, as many connections as file
    /// descriptors allow; and for how many those are, if it is fewer than were asked for.
    #[must_use]
    pub fn fitted(&self, open_files: u64) -> (Limits, Option<Limits>, Option<usize>) {
        let mut certificate = self.ingest.limits.clone();
        let mut network = self.network.as_ref().map(|network| network.limits.clone());
        let enrols = self.enroll.as_ref().is_some_and(|enroll| enroll.listen.is_some());
        let reserved = if enrols { enroll::limits().connections } else { 0 };
        let mut ports: Vec<&mut Limits> = std::iter::once(&mut certificate).chain(&mut network).collect();
        let room = fit_files(&mut ports, reserved, open_files);
        (certificate, network, room)
    }

    /// Connections that both ports for devices may take together.
    #[must_use]
    pub fn asked_connections(&self) -> usize {
        let network = self.network.as_ref().map_or(0, |network| network.limits.connections);
        self.ingest.limits.connections.saturating_add(network)
    }

    fn resolve(&mut self, base: &Path) {
        let mut paths = vec![
            &mut self.gateway.data_dir,
            &mut self.gateway.certificate,
            &mut self.gateway.private_key,
            &mut self.trust.root,
            &mut self.ingest.device_ca,
        ];
        paths.extend(&mut self.ingest.crls);
        paths.extend(&mut self.keys.upstream_ca);
        paths.extend(&mut self.keys.bundle);
        if let Some(jetstream) = &mut self.spool.jetstream {
            paths.extend(&mut jetstream.credentials);
            paths.extend(&mut jetstream.ca);
            if let Some(large) = &mut jetstream.large {
                paths.extend(&mut large.ca);
                paths.extend(&mut large.credentials);
            }
        }
        if let Some(relay) = &mut self.relay {
            paths.extend(&mut relay.ca);
            if let Some(store) = &mut relay.store {
                paths.extend(&mut store.ca);
                paths.extend(&mut store.credentials);
            }
        }
        if let Some(enroll) = &mut self.enroll {
            paths.push(&mut enroll.ca_key);
            paths.extend(&mut enroll.ca);
            paths.extend(&mut enroll.gateway_ca);
        }
        for path in paths {
            *path = base.join(&*path);
        }
    }
}

#[cfg(test)]
mod tests;

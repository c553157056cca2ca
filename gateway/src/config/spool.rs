//! `[spool]`: where envelopes wait, and how much of them.

use std::path::PathBuf;

use pithead_hop::connect::Endpoint;
use pithead_hop::program::config::{self, ByteSize, Wrong};
use pithead_sealing::StreamName;
use serde::{Deserialize, Serialize};

use super::store::LargeStore;

/// What the spool stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// A folder on this machine.
    #[default]
    Embedded,
    /// Streams of NATS JetStream, which the gateways of a site share.
    Jetstream,
}

/// `[spool]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Spool {
    /// What it stands on.
    pub engine: Engine,
    /// The disk budget.
    pub max_size: ByteSize,
    /// Size of one segment file.
    pub segment_size: ByteSize,
    /// What one device may hold of it, or 5 % of it where that is more.
    pub per_device: ByteSize,
    /// Conflicts kept beside, per device.
    pub conflicts_per_device: ByteSize,
    /// Which streams go first, and which last.
    pub lanes: Lanes,
    /// Where JetStream is, for the engine of that name.
    pub jetstream: Option<JetStream>,
}

/// `[spool.jetstream]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JetStream {
    /// The servers of the cluster: URLs, or hosts with a port.
    pub servers: Vec<String>,
    /// On how many servers each stream lies.
    #[serde(default = "replicas")]
    pub replicas: usize,
    /// A `.creds` file.
    pub credentials: Option<PathBuf>,
    /// PEM: the CA of the servers' certificates.
    pub ca: Option<PathBuf>,
    /// What streams and subjects begin with, if it is not `pithead-SITE`.
    pub prefix: Option<String>,
    /// Where devices reach this gateway, if it is not `ingest.listen`. The other gateways pass on to here what devices hand in at them.
    pub address: Option<Endpoint>,
    /// The servers' monitoring ports, each a host with a port.
    #[serde(default)]
    pub monitor: Vec<String>,
    /// Where copies of large envelopes go. Without it, no large ones are taken.
    pub large: Option<LargeStore>,
}

/// `[spool.lanes]`: streams that are in neither wait in the second.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lanes {
    /// Streams that are relayed before all others.
    #[serde(with = "config::text::list")]
    pub first: Vec<StreamName>,
    /// Streams that are relayed after all others.
    #[serde(with = "config::text::list")]
    pub third: Vec<StreamName>,
}

impl Default for Spool {
    fn default() -> Self {
        Self {
            engine: Engine::default(),
            max_size: ByteSize::mib(8 << 10),
            segment_size: ByteSize::mib(32),
            per_device: ByteSize::mib(2 << 10),
            conflicts_per_device: ByteSize::mib(64),
            lanes: Lanes::default(),
            jetstream: None,
        }
    }
}

impl Spool {
    /// That what it says of JetStream goes together.
    pub(super) fn check(&self) -> Result<(), Wrong> {
        let Some(jetstream) = &self.jetstream else {
            return match self.engine {
                Engine::Embedded => Ok(()),
                Engine::Jetstream => {
                    Err(Wrong::at("spool.engine", "[spool] `engine` = \"jetstream\" needs [spool.jetstream]"))
                }
            };
        };
        let wrong = |key: &str, words: String| {
            Err(Wrong::at(format!("spool.jetstream.{key}"), format!("[spool.jetstream] {words}")))
        };
        if let Some(large) = &jetstream.large {
            if self.engine == Engine::Embedded {
                let words = "`large` is for `engine` = \"jetstream\": with the embedded engine large envelopes lie in DATA/uploads alone";
                return wrong("large", words.to_owned());
            }
            large.check()?;
        }
        if jetstream.servers.is_empty() {
            return wrong("servers", "`servers` names none".to_owned());
        }
        for (key, addresses) in [("servers", &jetstream.servers), ("monitor", &jetstream.monitor)] {
            if addresses.iter().any(|address| address.contains('@')) {
                let words = format!(
                    "[spool.jetstream] `{key}` has a user, a password or a token in an address, which `config show` and the log would say: put it into the file that `credentials` names"
                );
                return Err(Wrong::at(format!("spool.jetstream.{key}"), words).of_a_secret());
            }
        }
        for server in &jetstream.servers {
            if let Err(error) = server.parse::<async_nats::ServerAddr>() {
                return wrong("servers", format!("`servers`: {server:?}: {error}"));
            }
        }
        if ![1, 3, 5].contains(&jetstream.replicas) {
            return wrong(
                "replicas",
                "`replicas` is 1, 3 or 5: an even number outlives no more than one less".to_owned(),
            );
        }
        let is_name = |prefix: &str| {
            !prefix.is_empty() && prefix.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
        };
        if let Some(prefix) = jetstream.prefix.as_ref().filter(|prefix| !is_name(prefix)) {
            return wrong(
                "prefix",
                format!("`prefix`: {prefix:?} has other characters than letters, digits, - and _"),
            );
        }
        let has_port = |monitor: &&String| {
            monitor.rsplit_once(':').is_some_and(|(host, port)| {
                !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok()
            })
        };
        if let Some(monitor) = jetstream.monitor.iter().find(|monitor| !has_port(monitor)) {
            return wrong(
                "monitor",
                format!("`monitor`: {monitor:?} is no host with a port, such as \"10.1.0.5:8222\""),
            );
        }
        Ok(())
    }
}

/// One server may be lost, and another one be restarted meanwhile would be one too many: three is where a majority outlives one.
pub(super) const fn replicas() -> usize {
    3
}

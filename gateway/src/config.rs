//! The configuration file, parsed into values that can only be right.
//!
//! `config template` prints [`TEMPLATE`], where every key stands with its meaning and its default. Paths are relative to
//! the file's own folder.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use pithead_hop::accept::{Limits, limits::fit_files};
use pithead_hop::connect::Endpoint;
use pithead_hop::ingest::{IngestLimits, UploadLimits};
use pithead_hop::objects::{Credentials, Settings, SettingsError};
use pithead_hop::program::admin::AdminAddress;
use pithead_hop::program::config::change::Live;
use pithead_hop::program::config::{self, ByteSize, ConfigError, Duration, Loaded, Sources, Wrong};
use pithead_hop::program::traces::Traces;
use pithead_hop::tls::CrlExpiry;
use pithead_sealing::{Site, StreamName};
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};

use crate::devices::enroll;
use crate::envelopes::budgets::Allowance;

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

/// `[spool.jetstream.large]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LargeStore {
    /// `s3://bucket/prefix`, or `file:///folder`.
    pub url: String,
    /// Where S3 is, if not at AWS.
    pub endpoint: Option<String>,
    /// The region of the bucket.
    pub region: Option<String>,
    /// PEM: roots that the endpoint is believed by, beside the system's.
    pub ca: Option<PathBuf>,
    /// The bucket stands in the path and not in the host's name.
    pub path_style: Option<bool>,
    /// A file with credentials in the form of AWS's shared credentials file.
    pub credentials: Option<PathBuf>,
    /// The section of that file, or the profile of AWS's own.
    pub profile: Option<String>,
    /// For the answer to a request, beside the time that its bytes take.
    #[serde(default = "request_timeout")]
    pub request_timeout: Duration,
}

impl LargeStore {
    /// How to reach it. Reads the CA.
    ///
    /// # Errors
    /// When the CA's file cannot be read.
    pub fn settings(&self) -> std::io::Result<Settings> {
        Ok(Settings {
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
            ca_pem: self.ca.as_ref().map(std::fs::read).transpose()?,
            path_style: self.path_style,
            credentials: credentials_of(self.credentials.as_ref(), self.profile.as_ref()),
            request_timeout: self.request_timeout.get(),
            ..Settings::new(&self.url)
        })
    }

    fn check(&self) -> Result<(), Wrong> {
        const SECTION: &str = "spool.jetstream.large";
        check_store(SECTION, &self.url, self.endpoint.as_ref(), self.region.as_ref())?;
        if self.request_timeout.is_zero() {
            let key = format!("{SECTION}.request_timeout");
            return Err(Wrong::at(key, format!("[{SECTION}] `request_timeout` must be above 0")));
        }
        Ok(())
    }
}

/// Who asks a store.
fn credentials_of(file: Option<&PathBuf>, profile: Option<&String>) -> Credentials {
    match file {
        Some(path) => Credentials::File {
            path: path.clone(),
            profile: profile.cloned().unwrap_or_else(|| "default".to_owned()),
        },
        None => Credentials::Environment { profile: profile.cloned() },
    }
}

/// That a store can be where a section says it is.
fn check_store(
    section: &str,
    url: &str,
    endpoint: Option<&String>,
    region: Option<&String>,
) -> Result<(), Wrong> {
    let settings = Settings { endpoint: endpoint.cloned(), region: region.cloned(), ..Settings::new(url) };
    let Err(error) = settings.location() else { return Ok(()) };
    let key = match &error {
        SettingsError::Endpoint(_) | SettingsError::Clear(_) | SettingsError::FolderWithEndpoint => {
            "endpoint"
        }
        _ => "url",
    };
    Err(Wrong::at(format!("{section}.{key}"), format!("[{section}] {error}")))
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

/// How envelopes leave.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RelayKind {
    /// Over a call to a decryptor or to another gateway.
    #[default]
    Grpc,
    /// In bundles into an object store.
    ObjectStore,
}

/// `[relay]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Relay {
    /// How they leave.
    #[serde(default)]
    pub kind: RelayKind,
    /// Kind `grpc`: the decryptor, or another gateway.
    pub endpoint: Option<Endpoint>,
    /// Kind `grpc`, PEM: the CA of its certificate.
    pub ca: Option<PathBuf>,
    /// The name in its certificate, if it is not the endpoint's host.
    pub name: Option<String>,
    /// Bytes that may be under way unanswered.
    #[serde(default = "window")]
    pub window: ByteSize,
    /// Bytes a second that may leave this site; any amount without it.
    pub rate: Option<ByteSize>,
    /// How long the far end may answer nothing while something is under way.
    #[serde(default = "answer_timeout")]
    pub answer_timeout: Duration,
    /// What the refused area may take.
    #[serde(default = "refused_size")]
    pub refused_size: ByteSize,
    /// Kind `object_store`: where and how.
    pub store: Option<RelayStore>,
}

/// The far end of a relay over calls.
#[derive(Debug, Clone, Copy)]
pub struct RelayPeer<'a> {
    /// Where it is.
    pub endpoint: &'a Endpoint,
    /// PEM: the CA of its certificate.
    pub ca: &'a PathBuf,
    /// The name in its certificate, if it is not the endpoint's host.
    pub name: Option<&'a str>,
}

impl Relay {
    /// The far end, if this is a relay over calls.
    #[must_use]
    pub fn peer(&self) -> Option<RelayPeer<'_>> {
        match (self.kind, &self.endpoint, &self.ca) {
            (RelayKind::Grpc, Some(endpoint), Some(ca)) => {
                Some(RelayPeer { endpoint, ca, name: self.name.as_deref() })
            }
            _ => None,
        }
    }

    /// The store, if this is a relay into one.
    #[must_use]
    pub fn store(&self) -> Option<&RelayStore> {
        self.store.as_ref().filter(|_| self.kind == RelayKind::ObjectStore)
    }

    fn check(&self) -> Result<(), Wrong> {
        if self.rate.is_some_and(|rate| rate.get() == 0) {
            return Err(Wrong::at(
                "relay.rate",
                "[relay] `rate` is 0; `pithead-gateway relay pause` has the relay stand still",
            ));
        }
        if self.answer_timeout.is_zero() {
            return Err(Wrong::at("relay.answer_timeout", "[relay] `answer_timeout` must be above 0"));
        }
        match self.kind {
            RelayKind::Grpc => {
                if self.endpoint.is_none() || self.ca.is_none() {
                    return Err(Wrong::at("relay", "[relay] of kind `grpc` needs `endpoint` and `ca`"));
                }
            }
            RelayKind::ObjectStore => {
                if self.store.is_none() {
                    return Err(Wrong::at(
                        "relay",
                        "[relay] of kind `object_store` needs [relay.store] with `url`",
                    ));
                }
                let of_calls = [
                    ("relay.endpoint", self.endpoint.is_some()),
                    ("relay.ca", self.ca.is_some()),
                    ("relay.name", self.name.is_some()),
                ];
                if let Some((key, _)) = of_calls.into_iter().find(|(_, is_set)| *is_set) {
                    return Err(Wrong::at(
                        key,
                        "[relay] of kind `object_store` has that in [relay.store], if at all",
                    ));
                }
            }
        }
        self.store.as_ref().map_or(Ok(()), RelayStore::check)
    }
}

/// `[relay.store]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelayStore {
    /// `s3://bucket/prefix`, or `file:///folder`.
    pub url: String,
    /// Where S3 is, if not at AWS.
    pub endpoint: Option<String>,
    /// The region of the bucket.
    pub region: Option<String>,
    /// PEM: roots that the endpoint is believed by, beside the system's.
    pub ca: Option<PathBuf>,
    /// The bucket stands in the path and not in the host's name.
    pub path_style: Option<bool>,
    /// A file with credentials in the form of AWS's shared credentials file.
    pub credentials: Option<PathBuf>,
    /// The section of that file, or the profile of AWS's own.
    pub profile: Option<String>,
    /// For the answer to a request, beside the time that its bytes take.
    #[serde(default = "request_timeout")]
    pub request_timeout: Duration,
    /// Bytes of envelopes that make a bundle full.
    #[serde(default = "bundle_size")]
    pub bundle_size: ByteSize,
    /// A bundle that is not full goes out when its oldest envelope has waited so long.
    #[serde(default = "bundle_delay")]
    pub bundle_delay: Duration,
}

/// A bundle is held in memory by who packs and who reads it.
const BUNDLE_SIZES: std::ops::RangeInclusive<u64> = 64 << 10..=32 << 20;

impl RelayStore {
    /// How to reach it. Reads the CA.
    ///
    /// # Errors
    /// When the CA's file cannot be read.
    pub fn settings(&self) -> std::io::Result<Settings> {
        let credentials = credentials_of(self.credentials.as_ref(), self.profile.as_ref());
        Ok(Settings {
            url: self.url.clone(),
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
            ca_pem: self.ca.as_ref().map(std::fs::read).transpose()?,
            path_style: self.path_style,
            credentials,
            request_timeout: self.request_timeout.get(),
            // The WAN budget is paid for each time that bytes go out, and the relay tries again by itself.
            retries: 0,
        })
    }

    fn check(&self) -> Result<(), Wrong> {
        check_store("relay.store", &self.url, self.endpoint.as_ref(), self.region.as_ref())?;
        if !BUNDLE_SIZES.contains(&self.bundle_size.get()) {
            return Err(Wrong::at(
                "relay.store.bundle_size",
                "[relay.store] `bundle_size` is from 64KiB to 32MiB",
            ));
        }
        for (key, time) in [("bundle_delay", self.bundle_delay), ("request_timeout", self.request_timeout)] {
            if time.is_zero() {
                return Err(Wrong::at(
                    match key {
                        "bundle_delay" => "relay.store.bundle_delay",
                        _ => "relay.store.request_timeout",
                    },
                    format!("[relay.store] `{key}` must be above 0"),
                ));
            }
        }
        Ok(())
    }
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

/// One server may be lost, and another one be restarted meanwhile would be one too many: three is where a majority outlives one.
const fn replicas() -> usize {
    3
}

const fn min_interval() -> Duration {
    Duration::from_secs(60)
}

const fn max_interval() -> Duration {
    Duration::from_secs(900)
}

const fn window() -> ByteSize {
    ByteSize::mib(16)
}

/// What is paid for is the request: at 8 MiB a bundle, a terabyte is 131,072 of them.
const fn bundle_size() -> ByteSize {
    ByteSize::mib(8)
}

/// A lane that never fills a bundle makes 360 of them an hour.
const fn bundle_delay() -> Duration {
    Duration::from_secs(10)
}

const fn request_timeout() -> Duration {
    Duration::from_secs(30)
}

/// A batch takes minutes over a thin link, and an unwrapping of keys its retries: this is far above both, and it ends what
/// a far end that answers pings and nothing else would hold for ever.
const fn answer_timeout() -> Duration {
    Duration::from_secs(600)
}

/// A device is enrolled again before that; a certificate that nobody renews is no key to the site for ever.
const fn validity() -> Duration {
    Duration::from_secs(2 * 365 * 86_400)
}

pub(crate) const fn refused_size() -> ByteSize {
    ByteSize::mib(1024)
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
        self.check_jetstream()?;
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

    fn check_jetstream(&self) -> Result<(), Wrong> {
        let Some(jetstream) = &self.spool.jetstream else {
            return match self.spool.engine {
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
            if self.spool.engine == Engine::Embedded {
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
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(&path)
    }

    #[cfg(not(feature = "otlp"))]
    #[test]
    fn a_gateway_that_cannot_export_spans_refuses_to_be_asked_for_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway.toml");
        let asked = TEMPLATE.replace("#[traces]\n#endpoint", "[traces]\nendpoint");
        std::fs::write(&path, asked).unwrap();
        let error = Config::load(&path).unwrap_err();
        let said = error.to_string();
        assert_eq!(error.reason(), pithead_proto::errors::v1::ErrorReason::ConfigInvalid);
        assert!(said.contains("built with the feature `otlp`") && said.contains('^'), "{said}");
    }

    #[test]
    fn the_template_loads_and_says_the_defaults() {
        let config = load(TEMPLATE).unwrap();
        assert_eq!(config.stop.spool, Stop::default().spool);
        assert_eq!(config.spool.max_size, Spool::default().max_size);
        assert_eq!(config.keys.max_interval, max_interval());
        let relay = config.relay.unwrap();
        assert_eq!((relay.window, relay.answer_timeout, relay.rate), (window(), answer_timeout(), None));
        assert_eq!(config.admin.listen, Admin::default().listen);
        assert_eq!(config.ingest.limits, Limits::default());
        assert_eq!(config.ingest.crl_expiry, CrlExpiry::UseStale);
        assert!(config.network.is_none() && config.enroll.is_none());
    }

    #[test]
    fn every_limit_of_the_port_is_in_the_template_with_its_default() {
        // `stop_grace` is [stop] intake here.
        let rest = TEMPLATE.split("\n[ingest.limits]\n").nth(1).unwrap();
        // The next section may be one that is off.
        let section = rest.split("\n[").next().unwrap().split("\n#[").next().unwrap();
        let settings: String = section
            .lines()
            .filter_map(|line| line.strip_prefix('#'))
            .filter(|line| line.contains(" = ") && line.starts_with(|c: char| c.is_ascii_lowercase()))
            .map(|line| format!("{line}\n"))
            .collect();
        assert_eq!(toml::from_str::<Limits>(&settings).unwrap(), Limits::default());
        let written = toml::to_string(&Limits::default()).unwrap();
        for key in
            written.lines().filter_map(|line| line.split(" = ").next()).filter(|key| *key != "stop_grace")
        {
            assert!(settings.lines().any(|line| line.starts_with(&format!("{key} = "))), "{key} is missing");
        }
    }

    #[test]
    fn limits_that_make_no_sense_are_refused_with_their_section_and_key() {
        for (key, value) in [
            ("connections", "0"),
            ("stream_window", "\"4GiB\""),
            ("frame", "\"1KiB\""),
            ("keepalive_timeout", "\"0s\""),
        ] {
            let commented = TEMPLATE.lines().find(|line| line.starts_with(&format!("#{key} = "))).unwrap();
            let error =
                load(&TEMPLATE.replace(commented, &format!("{key} = {value}"))).unwrap_err().to_string();
            assert!(error.contains(&format!("[ingest.limits] `{key}`")), "{error}");
        }
        let network = |line: &str| {
            let template = TEMPLATE.replace("#request = \"4MiB\"", "request = \"5MiB\"");
            load(&format!("{template}\n[network]\nlisten = \"0.0.0.0:7445\"\n[network.limits]\n{line}\n"))
        };
        network("connections = 8").unwrap();
        for (key, value) in [("frame", "\"1KiB\""), ("connections", "0"), ("unfinished", "\"4MiB\"")] {
            let error = network(&format!("{key} = {value}")).unwrap_err().to_string();
            assert!(error.contains(&format!("[network.limits] `{key}`")), "{error}");
        }
        let error =
            load(&TEMPLATE.replace("#window = \"8MiB\"", "window = \"1KiB\"")).unwrap_err().to_string();
        assert!(error.contains("[ingest.envelopes] `window`"), "{error}");
        let error = load(&TEMPLATE.replace("#session_burst = 40320", "session_burst = 0")).unwrap_err();
        assert!(error.to_string().contains("`session_burst`"), "{error}");
    }

    /// The template with everything in it that is commented out.
    fn uncommented() -> String {
        TEMPLATE
            .lines()
            .map(|line| match line.strip_prefix("#") {
                // "#key = value" is a key, "#[name]" a section with its default, "# words" is prose.
                Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => {
                    format!("{rest}\n")
                }
                _ => format!("{line}\n"),
            })
            .collect()
    }

    /// All of it that can stand together in this build: one source of statements, and traces where they can be exported.
    fn all_on() -> String {
        let mut section = String::new();
        let lines = uncommented();
        let kept = lines.lines().filter(|line| {
            if line.starts_with('[') {
                section = (*line).to_owned();
            }
            !line.starts_with("bundle") && (cfg!(feature = "otlp") || section != "[traces]")
        });
        let on: String = kept.map(|line| format!("{line}\n")).collect();
        // A store for large envelopes is for lanes that are shared.
        on.replace("engine = \"embedded\"", "engine = \"jetstream\"")
    }

    #[test]
    fn every_key_that_is_commented_out_in_the_template_is_known() {
        let error = load(&uncommented()).map(|_| ()).map_err(|error| error.to_string());
        // All at once they contradict each other in one thing, which is found after every key was known.
        assert!(error.is_err_and(|text| text.contains("both `upstream` and `bundle`")));
    }

    #[test]
    fn the_sections_that_are_off_in_the_template_are_good_as_they_stand() {
        let config = load(&all_on()).unwrap();
        let enroll = config.enroll.unwrap();
        assert!(enroll.listen.is_some() && enroll.address.is_some() && !enroll.endpoints.is_empty());
        assert_eq!(enroll.validity, validity());
        assert_eq!(config.network.unwrap().limits, Limits::default());
    }

    #[test]
    fn all_ports_together_fit_into_the_file_descriptors() {
        let alone = load(TEMPLATE).unwrap();
        let (certificate, network, room) = alone.fitted(1024);
        assert_eq!((certificate.connections, network, room), (1024 - 128, None, Some(1024 - 128)));
        assert_eq!(alone.fitted(20_000).2, None);

        let all = load(&all_on()).unwrap();
        assert_eq!(all.asked_connections(), 2 * Limits::default().connections);
        let (certificate, network, room) = all.fitted(1024);
        let left = 1024 - 128 - enroll::limits().connections;
        assert_eq!(room, Some(left));
        assert_eq!((certificate.connections, network.unwrap().connections), (left / 2, left / 2));
        assert_eq!(all.fitted(20_000).2, None);
    }

    #[test]
    fn a_port_has_one_way_of_knowing_who_comes() {
        for section in ["network", "enroll"] {
            let more = format!("\n[{section}]\nlisten = \"0.0.0.0:7443\"\n");
            let more = if section == "enroll" { more + "ca_key = \"k\"\n" } else { more };
            let error = load(&format!("{TEMPLATE}{more}")).unwrap_err().to_string();
            assert!(error.contains("same address"), "{error}");
        }
    }

    #[test]
    fn a_misspelt_key_is_shown_with_a_caret_and_what_was_meant() {
        let error = load(&TEMPLATE.replace("data_dir", "data_dri")).unwrap_err().to_string();
        assert!(error.contains("did you mean `data_dir`?"), "{error}");
        assert!(error.contains('^'), "{error}");
    }

    #[test]
    fn a_configuration_without_a_source_of_keys_is_refused() {
        let without: String = TEMPLATE
            .lines()
            .filter(|line| !line.starts_with("upstream = "))
            .map(|line| format!("{line}\n"))
            .collect();
        let error = load(&without).unwrap_err().to_string();
        assert!(error.contains("`upstream` or `bundle`"), "{error}");
    }

    fn into_a_store(store: &str) -> Result<Config, ConfigError> {
        let begin = TEMPLATE.find("[relay]\n").unwrap();
        let end = begin + TEMPLATE[begin..].find("\n[admin]").unwrap();
        let relay = format!("[relay]\nkind = \"object_store\"\n{store}");
        load(&format!("{}{relay}{}", &TEMPLATE[..begin], &TEMPLATE[end..]))
    }

    #[test]
    fn a_relay_into_a_store_has_the_defaults_of_the_template_and_no_far_end() {
        let config =
            into_a_store("[relay.store]\nurl = \"s3://pits/sealed\"\nregion = \"eu-central-1\"").unwrap();
        let relay = config.relay.unwrap();
        assert!(relay.peer().is_none());
        let store = relay.store().unwrap();
        for (key, value) in [
            ("bundle_size", serde_json::to_string(&store.bundle_size).unwrap()),
            ("bundle_delay", serde_json::to_string(&store.bundle_delay).unwrap()),
            ("request_timeout", serde_json::to_string(&store.request_timeout).unwrap()),
        ] {
            assert!(TEMPLATE.contains(&format!("#{key} = {}\n", value.trim())), "{key} = {value}");
        }
        let settings = store.settings().unwrap();
        assert!(matches!(settings.credentials, Credentials::Environment { profile: None }));
        assert_eq!(settings.retries, 0, "nothing goes out that was not paid for");
        let relay = load(TEMPLATE).unwrap().relay.unwrap();
        assert!(relay.peer().is_some() && relay.store().is_none());
    }

    #[test]
    fn what_a_store_cannot_be_is_refused_with_its_key() {
        let region = "region = \"x\"";
        for (store, words) in [
            ("", "needs [relay.store]"),
            ("endpoint = \"a:1\"\n[relay.store]\nurl = \"file:///a\"", "has that in [relay.store]"),
            ("[relay.store]\nurl = \"ftp://a\"", "neither s3://"),
            ("[relay.store]\nurl = \"s3://pits\"", "needs `region`"),
            ("[relay.store]\nurl = \"s3://pits\"\nendpoint = \"http://10.0.0.1\"", "is not encrypted"),
            (
                &format!("[relay.store]\nurl = \"s3://pits\"\n{region}\nbundle_size = \"33MiB\""),
                "from 64KiB to 32MiB",
            ),
            (
                &format!("[relay.store]\nurl = \"s3://pits\"\n{region}\nbundle_delay = \"0s\""),
                "must be above 0",
            ),
            (&format!("[relay.store]\nurl = \"s3://pits\"\n{region}\nbucket = \"b\""), "unknown field"),
        ] {
            let said = into_a_store(store).unwrap_err().to_string();
            assert!(said.contains(words), "{said}; expected: {words}");
        }
        let without = TEMPLATE.replace("\nca = \"/etc/pithead/cloud-ca.pem\"", "");
        let said = load(&without).unwrap_err().to_string();
        assert!(said.contains("needs `endpoint` and `ca`"), "{said}");
    }

    #[test]
    fn a_stream_has_one_lane() {
        let both = TEMPLATE
            .replace("#first = []", "first = [\"alarms\"]")
            .replace("#third = []", "third = [\"alarms\"]");
        let error = load(&both).unwrap_err().to_string();
        assert!(error.contains("`alarms` both in `first` and in `third`"), "{error}");
        let wrong = TEMPLATE.replace("#first = []", "first = [\"no stream\"]");
        assert!(load(&wrong).unwrap_err().to_string().contains('^'));
    }

    #[test]
    fn an_engine_that_is_not_described_or_described_wrongly_points_at_its_line() {
        // The section as it stands in the template, switched on.
        let off = TEMPLATE.split("#[spool.jetstream]\n").nth(1).unwrap().split("\n\n").next().unwrap();
        let keys =
            off.lines().filter_map(|line| line.strip_prefix('#')).filter(|line| !line.starts_with(' '));
        let on: String = keys.map(|line| format!("{line}\n")).collect();
        let jetstream =
            load(&format!("{TEMPLATE}\n[spool.jetstream]\n{on}")).unwrap().spool.jetstream.unwrap();
        assert_eq!((jetstream.replicas, jetstream.monitor.len()), (replicas(), jetstream.servers.len()));
        let error = load(&TEMPLATE.replace("#engine = \"embedded\"", "engine = \"jetstream\"")).unwrap_err();
        assert!(error.to_string().contains("needs [spool.jetstream]"), "{error}");
        let section = |lines: &str| load(&format!("{TEMPLATE}\n[spool.jetstream]\n{lines}\n"));
        section("servers = [\"nats://127.0.0.1:4222\"]").unwrap();
        for (lines, words) in [
            ("servers = []", "`servers` names none"),
            ("servers = [\"nats://:x\"]", "`servers`: \"nats://:x\""),
            ("servers = [\"a:1\"]\nreplicas = 2", "`replicas` is 1, 3 or 5"),
            ("servers = [\"a:1\"]\nprefix = \"a.b\"", "`prefix`: \"a.b\""),
            ("servers = [\"a:1\"]\nmonitor = [\"http://a:8222\"]", "`monitor`: \"http://a:8222\""),
            ("servers = [\"a:1\"]\nmonitor = [\"a\"]", "`monitor`: \"a\""),
        ] {
            let error = section(lines).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains('^'), "{error}");
        }
        for lines in [
            "servers = [\"nats://pithead:s3cret@a:4222\"]",
            "servers = [\n  \"a:1\",\n  \"nats://s3cret@b:4222\",\n]",
            "servers = [\"a:1\"]\nmonitor = [\"s3cret@a:8222\"]",
        ] {
            let error = section(lines).unwrap_err().to_string();
            assert!(error.contains("file that `credentials` names") && error.contains('^'), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn a_store_for_large_envelopes_belongs_to_lanes_that_are_shared_and_points_at_its_line() {
        let shared = TEMPLATE.replace("#engine = \"embedded\"", "engine = \"jetstream\"");
        let with = |template: &str, lines: &str| {
            load(&format!(
                "{template}\n[spool.jetstream]\nservers = [\"a:1\"]\n[spool.jetstream.large]\n{lines}\n"
            ))
        };
        let config =
            with(&shared, "url = \"s3://pit-7/large\"\nendpoint = \"https://a\"\ncredentials = \"s3\"")
                .unwrap();
        let (large, set) = config.large_store().unwrap();
        let settings = large.settings().unwrap();
        assert_eq!((set.as_str(), settings.url.as_str()), ("pithead-pit-7", "s3://pit-7/large"));
        // Who tries again by itself pays for the bytes; here it is the site's own network.
        assert!(settings.retries > 0 && large.credentials.as_ref().unwrap().is_absolute());
        for (template, lines, words) in [
            (TEMPLATE, "url = \"file:///mnt\"", "`large` is for `engine`"),
            (&shared, "url = \"/mnt\"", "neither s3://BUCKET/PREFIX nor file:///FOLDER"),
            (&shared, "url = \"s3://pit-7\"", "needs `region`"),
            (&shared, "url = \"s3://pit-7\"\nendpoint = \"http://10.0.0.1\"", "is not encrypted"),
            (&shared, "url = \"file:///mnt\"\nrequest_timeout = \"0s\"", "must be above 0"),
        ] {
            let error = with(template, lines).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains('^'), "{error}");
        }
        assert!(load(TEMPLATE).unwrap().large_store().is_none());
    }

    #[test]
    fn a_damaged_file_is_read_or_refused_and_never_a_panic() {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut below = |bound: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) as usize % bound
        };
        // Every key with its default, so that damage meets all of them.
        let uncommented: String = TEMPLATE
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase()) => format!("{rest}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        for _ in 0..2_000 {
            let mut bytes = uncommented.clone().into_bytes();
            for _ in 0..=below(4) {
                let at = below(bytes.len());
                match below(4) {
                    0 => bytes[at] = below(128) as u8,
                    1 => drop(bytes.remove(at)),
                    2 => bytes.insert(at, b"\"'[]{}=#.\\\n09-"[below(14)]),
                    _ => bytes.swap(at, at / 2),
                }
            }
            let text = String::from_utf8(bytes).unwrap();
            match config::parse::<Config>(&text, "gateway.toml", ENV_PREFIX, []) {
                Ok(mut loaded) => drop(loaded.value.settle(&loaded.sources)),
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway.toml");
        std::fs::write(&path, TEMPLATE.replace("/etc/pithead/root.cose", "root.cose")).unwrap();
        assert_eq!(Config::load(&path).unwrap().trust.root, folder.path().join("root.cose"));
    }

    #[test]
    fn the_page_about_the_configuration_says_what_the_program_knows() {
        use pithead_hop::program::{config::reference::Reference, reference};
        let about = Reference {
            program: "pithead-gateway",
            template: TEMPLATE,
            prefix: ENV_PREFIX,
            live: Some(LIVE),
            // Said once for all ports, in [stop]; and as [ingest.limits].
            elsewhere: &["ingest.limits.stop_grace", "network.limits"],
        };
        let page = about.page::<Config>().unwrap();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/config-gateway.md");
        reference::keep(&path, &page).unwrap();
    }

    #[test]
    fn the_sample_that_is_shipped_is_read() {
        let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/gateway.toml");
        let config = Config::load(&sample).unwrap();
        assert_eq!(config.gateway.site.as_str(), "pit-7");
    }

    #[test]
    fn what_does_not_go_together_points_at_its_line() {
        let line = |text: &str| TEMPLATE.lines().position(|line| line == text).unwrap() + 1;
        for (from, to, key) in [
            ("#min_interval = \"1min\"", "min_interval = \"1h\"", "[keys] `min_interval`"),
            (
                "#validity = \"730d\"",
                "#validity = \"730d\"\n[enroll]\nca_key = \"k\"\nvalidity = \"0s\"",
                "[enroll] `validity`",
            ),
            ("#rate = \"2MiB\"", "rate = \"0B\"", "[relay] `rate`"),
            ("#frame = \"16KiB\"", "frame = \"1KiB\"", "[ingest.limits] `frame`"),
            ("#window = \"8MiB\"", "window = \"1KiB\"", "[ingest.envelopes] `window`"),
            ("#listen = \"127.0.0.1:7480\"", "listen = \"0.0.0.0:7443\"", "[admin] and [ingest] `listen`"),
            ("#unfinished = \"16MiB\"", "stop_grace = \"1s\"", "[ingest.limits] `stop_grace`"),
        ] {
            let at = line(from) + to.matches('\n').count();
            let error = load(&TEMPLATE.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(&format!("gateway.toml:{at}:")) && error.contains(key), "{error}");
            assert!(error.contains(&format!("  {at} | ")) && error.contains('^'), "{error}");
        }
        // A key that is missing points at its section.
        let section = line("[keys]");
        let without = load(&TEMPLATE.replace("upstream_ca = ", "#upstream_ca = ")).unwrap_err().to_string();
        assert!(without.contains("needs `upstream_ca`") && without.contains("upstream = "), "{without}");
        let without = load(&TEMPLATE.replace("\nupstream", "\n#upstream")).unwrap_err().to_string();
        assert!(without.contains(&format!("gateway.toml:{section}:2: [keys] needs")), "{without}");
    }
}

//! The configuration file, parsed into values that can only be right.
//!
//! `config template` prints [`TEMPLATE`], where every key stands with its meaning and its default. Paths are relative to the
//! file's own folder.

use crate::unwrap::Budgets;
use pithead_hop::accept::Limits;
use pithead_hop::ingest::{IngestLimits, UploadLimits};
use pithead_hop::objects::Settings;
use pithead_hop::program::admin::AdminAddress;
use pithead_hop::program::config::change::Live;
use pithead_hop::program::config::{self, ByteSize, ConfigError, Duration, Loaded, Wrong};
use pithead_hop::program::traces::Traces;
use pithead_sealing::Site;
use pithead_sealing::trust::KeyArn;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The prefix of environment variables that stand for keys of the file.
pub const ENV_PREFIX: &str = "PITHEAD";

/// What SIGHUP applies while the program runs. Everything else needs a restart, and is named then.
///
/// Who adds a key here has it applied in `commands/run/reload.rs`.
pub const LIVE: Live = Live(&[
    "decryptor.certificate",
    "decryptor.private_key",
    "ingest.limits.*",
    "site",
    "keys.bundles",
    "keys.allow",
    "keys.poll",
    "stop.*",
]);

/// Every key, commented.
pub const TEMPLATE: &str = include_str!("config.template.toml");

/// The whole file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What this decryptor is.
    pub decryptor: Decryptor,
    /// Where envelopes come from.
    #[serde(default)]
    pub source: Source,
    /// The port for gateways; not used with a source in a bucket.
    #[serde(default)]
    pub ingest: Ingest,
    /// Bounds of large envelopes.
    #[serde(default)]
    pub uploads: UploadLimits,
    /// The sites whose gateways and devices may connect; more of them may be added with `site add`.
    #[serde(default, rename = "site")]
    pub sites: Vec<SiteEntry>,
    /// Whose statements are served, and which keys are known.
    #[serde(default)]
    pub keys: Keys,
    /// The authority's folder, if its statements are issued again from here.
    #[serde(default)]
    pub authority: Option<Authority>,
    /// Who holds the private keys.
    pub unwrap: Unwrap,
    /// Where plaintext goes.
    pub sink: Sink,
    /// Health and metrics.
    #[serde(default)]
    pub admin: Admin,
    /// Where spans go; absent where nobody asks for them.
    #[serde(default)]
    pub traces: Option<Traces>,
    /// How long each part may take to stop.
    #[serde(default)]
    pub stop: Stop,
}

/// `[decryptor]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decryptor {
    /// Where ledger, poison, conflicts and accepted statements lie. It must exist.
    pub data_dir: PathBuf,
    /// PEM: its certificate chain. Empty where no gateway connects.
    #[serde(default)]
    pub certificate: PathBuf,
    /// PEM: the private key of that certificate.
    #[serde(default)]
    pub private_key: PathBuf,
}

/// `[source]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Source {
    /// `grpc` or `s3`.
    pub kind: SourceKind,
    /// Where `bundles/` and `large/` are: `s3://BUCKET/PREFIX`, or `file:///FOLDER`.
    pub url: Option<String>,
    /// Where S3 is, if not at AWS.
    pub endpoint: Option<String>,
    /// The bucket's region.
    pub region: Option<String>,
    /// PEM: roots that such an endpoint is believed by, beside the system's.
    pub ca: Option<PathBuf>,
    /// The address of the SQS queue that the bucket's events go to.
    pub queue: Option<String>,
    /// For how long a message of the queue is hidden from other replicas at a time; it is extended for as long as its bundle is worked on.
    pub visibility: Duration,
    /// How often the newest part of the bucket is listed; if it is not given, 10 s without a queue and 5 min beside one.
    pub poll: Option<Duration>,
    /// How often all of it is.
    pub sweep: Duration,
    /// How long an entry of another replica may be without output before this one writes it.
    pub grace: Duration,
    /// Bundles in memory, in bytes; as much again may be held of what was opened and is not written yet.
    pub under_way: ByteSize,
}

/// What kind of source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    /// Gateways connect.
    #[default]
    Grpc,
    /// Bundles lie in a bucket.
    S3,
}

impl Default for Source {
    fn default() -> Self {
        Self {
            kind: SourceKind::Grpc,
            url: None,
            endpoint: None,
            region: None,
            ca: None,
            queue: None,
            visibility: Duration::from_secs(60),
            poll: None,
            sweep: Duration::from_secs(900),
            grace: Duration::from_secs(30),
            under_way: under_way(),
        }
    }
}

impl Sink {
    /// Where it is, in a bucket; empty if the file does not say.
    #[must_use]
    pub fn url(&self) -> &str {
        self.url.as_deref().unwrap_or_default()
    }
}

impl Source {
    /// Where it is; empty if the file does not say.
    #[must_use]
    pub fn url(&self) -> &str {
        self.url.as_deref().unwrap_or_default()
    }

    /// How often the newest part of the bucket is listed.
    #[must_use]
    pub fn poll(&self) -> std::time::Duration {
        let by_queue = if self.queue.is_some() { 300 } else { 10 };
        self.poll.map_or(std::time::Duration::from_secs(by_queue), |poll| poll.get())
    }
}

/// `[ingest]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ingest {
    /// Where gateways connect.
    #[serde(default = "listen")]
    pub listen: SocketAddr,
    /// Bounds of the open port.
    #[serde(default)]
    pub limits: Limits,
    /// Sizes and windows of one call.
    #[serde(default)]
    pub calls: IngestLimits,
    /// Sealed bytes between admission and acknowledgement, over all connections.
    #[serde(default = "under_way")]
    pub under_way: ByteSize,
}

/// `[[site]]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteEntry {
    /// The site's name.
    #[serde(with = "config::text")]
    pub name: Site,
    /// PEM: the CA of its gateways and devices. Empty where none connects.
    #[serde(default)]
    pub ca: PathBuf,
    /// PEM: certificate revocation lists of that CA.
    #[serde(default)]
    pub crls: Vec<PathBuf>,
}

/// `[keys]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// Bundle files as `authority statement --out` writes them, one per site; those of `[authority]` come by themselves.
    #[serde(default)]
    pub bundles: Vec<PathBuf>,
    /// Key ARNs that may be unwrapped besides those that the statements name.
    #[serde(default, with = "config::text::list")]
    pub allow: Vec<KeyArn>,
    /// How often the bundle files are looked at.
    #[serde(default = "poll")]
    pub poll: Duration,
}

/// `[authority]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Authority {
    /// The authority's folder. This program writes statements, bundles and the audit log there.
    pub dir: PathBuf,
    /// PEM: the statement key; `DIR/keys/statement-1.pem` if neither this nor `statement_kms_key` is given.
    #[serde(default)]
    pub statement_key: Option<PathBuf>,
    /// The first line of this file opens it.
    #[serde(default)]
    pub statement_passphrase_file: Option<PathBuf>,
    /// The statement key in KMS.
    #[serde(default, with = "config::text::option")]
    pub statement_kms_key: Option<KeyArn>,
    /// How old a site's last statement becomes before it is issued again.
    #[serde(default = "every")]
    pub every: Duration,
    /// Whether KMS is asked first if active and next keys are still enabled and the same; as `unwrap.kms` if it is not given.
    #[serde(default)]
    pub check_data_keys: Option<bool>,
}

/// `[unwrap]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unwrap {
    /// With AWS KMS; endpoint and credentials from the usual AWS variables.
    #[serde(default)]
    pub kms: bool,
    /// With private keys in files: development, and those who host their own.
    #[serde(default)]
    pub local: Vec<LocalKey>,
    /// How many private operations a sender may cause.
    #[serde(default)]
    pub budgets: Budgets,
}

/// `[[unwrap.local]]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalKey {
    /// The ARN under which the statements name it.
    #[serde(with = "config::text")]
    pub arn: KeyArn,
    /// PEM: the RSA private key.
    pub private_key: PathBuf,
}

/// `[sink]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sink {
    /// `folder`, `jsonl` or `objects`.
    pub kind: SinkKind,
    /// The folder, or the file. Its parent must exist.
    #[serde(default)]
    pub path: PathBuf,
    /// Of `objects`: where output, ledger and what is set aside go.
    #[serde(default)]
    pub url: Option<String>,
    /// Where S3 is, if not at AWS.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// The bucket's region.
    #[serde(default)]
    pub region: Option<String>,
    /// PEM: roots that such an endpoint is believed by, beside the system's.
    #[serde(default)]
    pub ca: Option<PathBuf>,
}

/// What kind of sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SinkKind {
    /// One file per envelope.
    Folder,
    /// One line per record.
    Jsonl,
    /// In a bucket, an object of lines for each entry of the ledger.
    Objects,
}

/// `[admin]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Where health and metrics are asked for. Keep it on loopback, or a socket: it has no authentication.
    pub listen: AdminAddress,
}

/// `[stop]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Stop {
    /// For what was admitted and is not yet written.
    pub pipeline: Duration,
    /// For the last group and the ledger.
    pub ledger: Duration,
    /// For the admin port.
    pub admin: Duration,
}

impl Default for Keys {
    fn default() -> Self {
        Self { bundles: Vec::new(), allow: Vec::new(), poll: poll() }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 7490)).into() }
    }
}

impl Default for Stop {
    fn default() -> Self {
        Self {
            pipeline: Duration::from_secs(20),
            ledger: Duration::from_secs(20),
            admin: Duration::from_secs(2),
        }
    }
}

impl Default for Ingest {
    fn default() -> Self {
        Self {
            listen: listen(),
            limits: Limits::default(),
            calls: IngestLimits::default(),
            under_way: under_way(),
        }
    }
}

fn listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7500))
}

const fn under_way() -> ByteSize {
    ByteSize::mib(256)
}

const fn poll() -> Duration {
    Duration::from_secs(5)
}

const fn every() -> Duration {
    Duration::from_secs(86_400)
}

/// A statement each second would only fill a disk; one a month would be stale before the next.
/// Below it an extension that is late by a second would be too late; above it SQS refuses.
const VISIBILITIES: std::ops::RangeInclusive<std::time::Duration> =
    std::time::Duration::from_secs(3)..=std::time::Duration::from_secs(12 * 3600);
const EVERY_MIN: Duration = Duration::from_secs(3600);
const EVERY_MAX: Duration = Duration::from_secs(29 * 86_400);

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
        loaded.value.check().map_err(|wrong| loaded.sources.fault(wrong))?;
        loaded.value.resolve(path.parent().unwrap_or(Path::new("")));
        Ok(loaded)
    }

    /// What does not go together although each key is good by itself.
    ///
    /// # Errors
    /// What it is, and of which key it is said.
    pub fn check(&self) -> Result<(), Wrong> {
        match self.source.kind {
            SourceKind::Grpc => self.check_grpc()?,
            SourceKind::S3 => self.check_s3()?,
        }
        for (at, site) in self.sites.iter().enumerate() {
            if self.sites[..at].iter().any(|other| other.name == site.name) {
                return Err(Wrong::at(
                    format!("site[{at}].name"),
                    format!("[[site]] names {} twice", site.name),
                ));
            }
        }
        if self.keys.bundles.is_empty() && self.keys.allow.is_empty() && self.authority.is_none() {
            return Err(Wrong::at_any(
                &["keys.bundles", "keys.allow"],
                "[keys] needs `bundles` or `allow`, or there has to be [authority]: no envelope would be admitted",
            ));
        }
        if let Some(authority) = &self.authority {
            let in_file = authority.statement_key.is_some() || authority.statement_passphrase_file.is_some();
            if authority.statement_kms_key.is_some() && in_file {
                return Err(Wrong::at(
                    "authority.statement_kms_key",
                    "[authority] has `statement_kms_key` and a key file: one key signs",
                ));
            }
            if authority.every.get() < EVERY_MIN.get() || authority.every.get() > EVERY_MAX.get() {
                return Err(Wrong::at(
                    "authority.every",
                    "[authority] `every` is from 1h to 29d: a statement is stale after 30 days",
                ));
            }
        }
        if !self.unwrap.kms && self.unwrap.local.is_empty() {
            return Err(Wrong::at(
                "unwrap.kms",
                "[unwrap] needs `kms = true` or [[unwrap.local]]: somebody holds the private keys",
            ));
        }
        for (at, key) in self.unwrap.local.iter().enumerate() {
            if self.unwrap.local[..at].iter().any(|other| other.arn == key.arn) {
                return Err(Wrong::at(
                    format!("unwrap.local[{at}].arn"),
                    format!("[[unwrap.local]] names {} twice", key.arn),
                ));
            }
        }
        if let Some(key) = self.unwrap.budgets.unfit() {
            return Err(Wrong::at(
                format!("unwrap.budgets.{key}"),
                format!("[unwrap.budgets] `{key}` must be above 0: nothing could be unwrapped"),
            ));
        }
        let ingest = self.ingest.listen;
        let is_taken = self.source.kind == SourceKind::Grpc && ingest.port() != 0;
        if is_taken && self.admin.listen.socket_addr() == Some(ingest) {
            return Err(Wrong::at_any(
                &["admin.listen", "ingest.listen"],
                "[admin] and [ingest] `listen` on the same address",
            ));
        }
        self.traces.as_ref().map_or(Ok(()), Traces::check)?;
        config::check_ingest("ingest.calls", &self.ingest.calls)?;
        config::check_port("ingest.limits", &self.ingest.limits, "ingest.calls", &self.ingest.calls)?;
        if self.keys.poll.is_zero() {
            return Err(Wrong::at("keys.poll", "[keys] `poll` must be above 0"));
        }
        Ok(())
    }

    /// What is needed where gateways connect.
    fn check_grpc(&self) -> Result<(), Wrong> {
        let needed = |path: &Path, key: &str, what: &str| match path.as_os_str().is_empty() {
            true => Err(Wrong::at(key, format!("{what}: gateways connect here"))),
            false => Ok(()),
        };
        needed(&self.decryptor.certificate, "decryptor.certificate", "[decryptor] needs `certificate`")?;
        needed(&self.decryptor.private_key, "decryptor.private_key", "[decryptor] needs `private_key`")?;
        for (at, site) in self.sites.iter().enumerate() {
            needed(&site.ca, &format!("site[{at}].ca"), "[[site]] needs `ca`")?;
        }
        if self.sink.kind == SinkKind::Objects {
            return Err(Wrong::at(
                "sink.kind",
                "[sink] `objects` goes with [source] kind = \"s3\": over a call what is acknowledged has to be on disk, and the ledger beside it",
            ));
        }
        needed(&self.sink.path, "sink.path", "[sink] needs `path`")?;
        for (key, given) in
            [("source.url", self.source.url.is_some()), ("source.queue", self.source.queue.is_some())]
        {
            if given {
                return Err(Wrong::at(
                    key,
                    "[source] names a bucket, and its kind is \"grpc\": set kind = \"s3\"",
                ));
            }
        }
        Ok(())
    }

    /// What is needed where bundles lie in a bucket.
    fn check_s3(&self) -> Result<(), Wrong> {
        let source = crate::store::settings_of_source(&self.source);
        source.location().map_err(|error| Wrong::at("source.url", format!("[source] {error}")))?;
        if self.sink.kind != SinkKind::Objects {
            return Err(Wrong::at(
                "sink.kind",
                "[source] kind = \"s3\" needs [sink] kind = \"objects\": replicas share their output, and a disk is nobody's to share",
            ));
        }
        let sink = crate::store::settings_of_sink(&self.sink);
        sink.location().map_err(|error| Wrong::at("sink.url", format!("[sink] {error}")))?;
        if let Some(queue) = &self.source.queue {
            let server = crate::source::sqs::server_of(queue);
            if server.len() == queue.len() {
                return Err(Wrong::at(
                    "source.queue",
                    "[source] `queue` is the address of a queue: https://sqs.REGION.amazonaws.com/ACCOUNT/NAME",
                ));
            }
            // What holds of the server of a bucket holds of this one: in clear to this machine alone.
            let asked = Settings { endpoint: Some(server.to_owned()), ..Settings::new("s3://any") };
            asked
                .location()
                .map_err(|error| Wrong::at("source.queue", format!("[source] `queue`: {error}")))?;
        }
        let visibility = self.source.visibility.get();
        if !VISIBILITIES.contains(&visibility) || visibility.subsec_nanos() != 0 {
            return Err(Wrong::at(
                "source.visibility",
                "[source] `visibility` is in whole seconds, from 3s to 12h, which is the longest that SQS hides a message",
            ));
        }
        if self.sites.is_empty() {
            return Err(Wrong::at_any(
                &["site", "source.kind"],
                "no [[site]]: of whom are the bundles that are to be applied?",
            ));
        }
        if self.authority.is_some() {
            return Err(Wrong::at(
                "authority.dir",
                "[authority] is for one program alone, and of these there may be many: issue statements with the command line, or \
                 beside a decryptor that gateways connect to",
            ));
        }
        for (key, value) in [("source.poll", self.source.poll()), ("source.sweep", self.source.sweep.get())] {
            if value.is_zero() {
                return Err(Wrong::at(key, "[source] `poll` and `sweep` must be above 0"));
            }
        }
        Ok(())
    }

    fn resolve(&mut self, base: &Path) {
        let decryptor = &mut self.decryptor;
        let mut paths = vec![
            &mut decryptor.data_dir,
            &mut decryptor.certificate,
            &mut decryptor.private_key,
            &mut self.sink.path,
        ];
        for site in &mut self.sites {
            paths.push(&mut site.ca);
            paths.extend(&mut site.crls);
        }
        paths.extend(&mut self.keys.bundles);
        if let Some(authority) = &mut self.authority {
            paths.push(&mut authority.dir);
            paths.extend(&mut authority.statement_key);
            paths.extend(&mut authority.statement_passphrase_file);
        }
        paths.extend(self.unwrap.local.iter_mut().map(|key| &mut key.private_key));
        paths.extend(&mut self.source.ca);
        paths.extend(&mut self.sink.ca);
        // What is not given is nowhere.
        for path in paths.into_iter().filter(|path| !path.as_os_str().is_empty()) {
            *path = base.join(&*path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_loads_and_its_paths_are_the_files_neighbours() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("decryptor.toml");
        std::fs::write(&path, TEMPLATE).unwrap();
        let config = Config::load(&path).unwrap();
        assert_eq!(config.sink.kind, SinkKind::Folder);
        assert!(config.decryptor.certificate.starts_with(folder.path()));
        assert!(config.sites[0].ca.starts_with(folder.path()));
    }

    /// The keys of a section that is off in the template, as they would be if it were on.
    fn commented_out(section: &str) -> String {
        let head = format!("#[{section}]\n");
        let section = TEMPLATE.split(&head).nth(1).unwrap().split("\n\n").next().unwrap();
        section
            .lines()
            .filter_map(|line| line.strip_prefix('#'))
            .filter(|line| line.contains(" = ") && line.starts_with(|c: char| c.is_ascii_lowercase()))
            .map(|line| format!("{line}\n"))
            .collect()
    }

    #[test]
    fn every_limit_of_the_port_is_in_the_template_with_its_default() {
        let settings = commented_out("ingest.limits");
        assert_eq!(toml::from_str::<Limits>(&settings).unwrap(), Limits::default());
        let written = toml::to_string(&Limits::default()).unwrap();
        for key in written.lines().filter_map(|line| line.split(" = ").next()) {
            assert!(settings.lines().any(|line| line.starts_with(&format!("{key} = "))), "{key} is missing");
        }
    }

    #[test]
    fn every_budget_is_in_the_template_with_its_default_and_none_is_nothing() {
        let settings = commented_out("unwrap.budgets");
        assert_eq!(settings.lines().count(), 6);
        assert_eq!(toml::from_str::<Budgets>(&settings).unwrap(), Budgets::default());
        assert_eq!(Budgets::default().unfit(), None);
        for (text, key) in [
            ("device_per_s = 0", "device_per_s"),
            ("total_per_s = nan", "total_per_s"),
            ("gateway_burst = 0", "gateway_burst"),
        ] {
            assert_eq!(toml::from_str::<Budgets>(text).unwrap().unfit(), Some(key));
        }
    }

    #[test]
    fn what_does_not_go_together_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("decryptor.toml");
        let with = |from: &str, to: &str| {
            assert!(TEMPLATE.contains(from), "{from}");
            std::fs::write(&path, TEMPLATE.replace(from, to)).unwrap();
            Config::load(&path).unwrap_err().to_string()
        };
        assert!(with("kms = true", "kms = false").contains("[unwrap] needs"));
        assert!(with("bundles = [\"bundle.pb\"]", "bundles = []").contains("[keys] needs"));
        let section = with("kms = true", "kms = false");
        assert!(
            section.contains("decryptor.toml:") && section.contains("kms = false") && section.contains('^'),
            "{section}"
        );
        let limits = with("#[ingest.limits]\n#connections = 4096", "[ingest.limits]\nconnections = 0");
        assert!(limits.contains("[ingest.limits] `connections` has to be at least 1"), "{limits}");
        let typo = with("data_dir", "datadir");
        assert!(typo.contains("did you mean") && typo.contains('^'), "{typo}");
    }

    /// `[source]` as the template has it, uncommented, of kind `s3`; with `[sink]` to go with it, and these changes.
    fn in_bucket(changes: &[(&str, &str)]) -> String {
        let (before, rest) = TEMPLATE.split_once("#[source]\n").unwrap();
        let (section, after) = rest.split_once("\n\n").unwrap();
        let settings = section.lines().filter_map(|line| line.strip_prefix('#'));
        let settings = settings.filter(|line| line.contains(" = ") && !line.starts_with([' ', 'c', 'e']));
        let source: String = settings.map(|line| format!("{line}\n")).collect();
        let mut text = format!("{before}[source]\n{source}\n{after}")
            .replace("kind = \"grpc\"", "kind = \"s3\"")
            .replace(
                "kind = \"folder\"\npath = \"out\"\n",
                "kind = \"objects\"\nurl = \"s3://acme-records\"\nregion = \"x\"\n",
            );
        for (from, to) in changes {
            assert!(text.contains(from), "{from}: {text}");
            text = text.replace(from, to);
        }
        text
    }

    #[test]
    fn the_source_in_the_template_has_its_defaults() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("decryptor.toml");
        std::fs::write(&path, in_bucket(&[])).unwrap();
        let source = Config::load(&path).unwrap().source;
        let default = Source::default();
        assert_eq!(default.kind, SourceKind::Grpc);
        assert_eq!((source.visibility, source.sweep), (default.visibility, default.sweep));
        assert_eq!((source.grace, source.under_way), (default.grace, default.under_way));
        assert_eq!(source.poll(), default.poll());
        let with_queue = Source { queue: source.queue.clone(), ..default };
        assert_eq!(with_queue.poll().as_secs(), 300);
    }

    #[test]
    fn a_source_in_a_bucket_says_what_it_needs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("decryptor.toml");
        let queue = "https://sqs.eu-central-1.amazonaws.com/111122223333/pithead-bundles";
        for (changes, said) in [
            ([("url = \"s3://acme-pits\"", "")], "is neither s3://BUCKET/PREFIX"),
            ([("region = \"eu-central-1\"", "")], "needs `region`"),
            ([("kind = \"objects\"", "kind = \"jsonl\"\npath = \"x\"")], "needs [sink] kind = \"objects\""),
            ([("kind = \"s3\"", "kind = \"grpc\"")], "`objects` goes with [source]"),
            ([(queue, "pithead-bundles")], "is the address of a queue"),
            ([(queue, "http://sqs.example/1/q")], "is not encrypted"),
            ([("visibility = \"60s\"", "visibility = \"2s\"")], "from 3s to 12h"),
            ([("visibility = \"60s\"", "visibility = \"4500ms\"")], "in whole seconds"),
            ([("sweep = \"15min\"", "sweep = \"0s\"")], "must be above 0"),
        ] {
            std::fs::write(&path, in_bucket(&changes)).unwrap();
            let error = Config::load(&path).unwrap_err().to_string();
            assert!(error.contains(said), "{changes:?}: {error}");
        }
        std::fs::write(&path, in_bucket(&[(queue, "http://127.0.0.1:9324/1/q")])).unwrap();
        Config::load(&path).unwrap();
    }

    #[test]
    fn an_authority_has_one_statement_key_and_bundles_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("decryptor.toml");
        let load = |section: &str| {
            let text = TEMPLATE.replace("bundles = [\"bundle.pb\"]", "");
            std::fs::write(&path, format!("{text}\n[authority]\ndir = \"authority\"\n{section}")).unwrap();
            Config::load(&path)
        };
        let config = load("").unwrap();
        let authority = config.authority.unwrap();
        assert!(authority.dir.starts_with(folder.path()) && config.keys.bundles.is_empty());
        assert_eq!((authority.every.get().as_secs(), authority.check_data_keys), (86_400, None));
        assert!(authority.statement_key.is_none() && authority.statement_kms_key.is_none());
        let arn = "arn:aws:kms:eu-central-1:111122223333:key/33333333-3333-4333-8333-333333333333";
        let both = format!("statement_kms_key = \"{arn}\"\nstatement_key = \"key.pem\"");
        assert!(load(&both).unwrap_err().to_string().contains("one key signs"));
        assert!(load("every = \"30s\"").unwrap_err().to_string().contains("from 1h to 29d"));
        assert!(load("statement_kms_key = \"alias/x\"").is_err());
    }

    #[test]
    fn the_page_about_the_configuration_says_what_the_program_knows() {
        use pithead_hop::program::{config::reference::Reference, reference};
        let about = Reference {
            program: "pithead-decryptor",
            template: TEMPLATE,
            prefix: ENV_PREFIX,
            live: Some(LIVE),
            elsewhere: &[],
        };
        let page = about.page::<Config>().unwrap();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/config-decryptor.md");
        reference::keep(&path, &page).unwrap();
    }

    #[test]
    fn the_sample_that_is_shipped_is_read() {
        let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/decryptor.toml");
        let config = Config::load(&sample).unwrap();
        assert_eq!(config.sites[0].name.as_str(), "pit-7");
    }
}

//! The configuration file, parsed into values that can only be right.
//!
//! `config template` prints [`TEMPLATE`], where every key stands with its meaning and its default. Paths are relative to the
//! file's own folder.

use pithead_hop::accept::Limits;
use pithead_hop::ingest::{IngestLimits, UploadLimits};
use pithead_hop::program::config::{self, ByteSize, ConfigError, Duration};
use pithead_sealing::Site;
use pithead_sealing::trust::KeyArn;
use serde::{Deserialize, Deserializer, de::Error as _};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The prefix of environment variables that stand for keys of the file.
pub const ENV_PREFIX: &str = "PITHEAD";

/// Every key, commented.
pub const TEMPLATE: &str = include_str!("config.template.toml");

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What this decryptor is.
    pub decryptor: Decryptor,
    /// The port for gateways.
    pub ingest: Ingest,
    /// Bounds of large envelopes.
    #[serde(default)]
    pub uploads: UploadLimits,
    /// The sites whose gateways and devices may connect; more of them may be added with `site add`.
    #[serde(default, rename = "site")]
    pub sites: Vec<SiteEntry>,
    /// Whose statements are served, and which keys are known.
    pub keys: Keys,
    /// Who holds the private keys.
    pub unwrap: Unwrap,
    /// Where plaintext goes.
    pub sink: Sink,
    /// Health and metrics.
    #[serde(default)]
    pub admin: Admin,
    /// How long each part may take to stop.
    #[serde(default)]
    pub stop: Stop,
}

/// `[decryptor]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decryptor {
    /// Where ledger, poison, conflicts and accepted statements lie. It must exist.
    pub data_dir: PathBuf,
    /// PEM: its certificate chain.
    pub certificate: PathBuf,
    /// PEM: the private key of that certificate.
    pub private_key: PathBuf,
}

/// `[ingest]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ingest {
    /// Where gateways connect.
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
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteEntry {
    /// The site's name.
    #[serde(deserialize_with = "parsed")]
    pub name: Site,
    /// PEM: the CA of its gateways and devices.
    pub ca: PathBuf,
    /// PEM: certificate revocation lists of that CA.
    #[serde(default)]
    pub crls: Vec<PathBuf>,
}

/// `[keys]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// Bundle files as `authority statement --out` writes them, one per site.
    pub bundles: Vec<PathBuf>,
    /// Key ARNs that may be unwrapped besides those that the statements name.
    #[serde(default, deserialize_with = "parsed_all")]
    pub allow: Vec<KeyArn>,
    /// How often the bundle files are looked at.
    #[serde(default = "poll")]
    pub poll: Duration,
}

/// `[unwrap]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unwrap {
    /// With AWS KMS; endpoint and credentials from the usual AWS variables.
    #[serde(default)]
    pub kms: bool,
    /// With private keys in files: development, and those who host their own.
    #[serde(default)]
    pub local: Vec<LocalKey>,
}

/// `[[unwrap.local]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalKey {
    /// The ARN under which the statements name it.
    #[serde(deserialize_with = "parsed")]
    pub arn: KeyArn,
    /// PEM: the RSA private key.
    pub private_key: PathBuf,
}

/// `[sink]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sink {
    /// `folder` or `jsonl`.
    pub kind: SinkKind,
    /// The folder, or the file. Its parent must exist.
    pub path: PathBuf,
}

/// What kind of sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SinkKind {
    /// One file per envelope.
    Folder,
    /// One line per record.
    Jsonl,
}

/// `[admin]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Where health and metrics are asked for. Keep it on loopback: it has no authentication.
    pub listen: SocketAddr,
}

/// `[stop]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Stop {
    /// For what was admitted and is not yet written.
    pub pipeline: Duration,
    /// For the last group and the ledger.
    pub ledger: Duration,
    /// For the admin port.
    pub admin: Duration,
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 7490)) }
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

const fn under_way() -> ByteSize {
    ByteSize::mib(256)
}

const fn poll() -> Duration {
    Duration::from_secs(5)
}

impl Config {
    /// Reads the file and the environment, and finds what does not go together.
    ///
    /// # Errors
    /// [`ConfigError`], pointing at the place.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let mut config: Self = config::load(path, ENV_PREFIX)?;
        config.check().map_err(|message| ConfigError::invalid(path, message))?;
        config.resolve(path.parent().unwrap_or(Path::new("")));
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        for (at, site) in self.sites.iter().enumerate() {
            if self.sites[..at].iter().any(|other| other.name == site.name) {
                return Err(format!("[[site]] names {} twice", site.name));
            }
        }
        if self.keys.bundles.is_empty() && self.keys.allow.is_empty() {
            return Err("[keys] needs `bundles` or `allow`: no envelope would be admitted".into());
        }
        if !self.unwrap.kms && self.unwrap.local.is_empty() {
            return Err(
                "[unwrap] needs `kms = true` or [[unwrap.local]]: somebody holds the private keys".into()
            );
        }
        for (at, key) in self.unwrap.local.iter().enumerate() {
            if self.unwrap.local[..at].iter().any(|other| other.arn == key.arn) {
                return Err(format!("[[unwrap.local]] names {} twice", key.arn));
            }
        }
        if self.admin.listen == self.ingest.listen && self.admin.listen.port() != 0 {
            return Err("[admin] and [ingest] `listen` on the same address".into());
        }
        self.ingest.calls.check().map_err(|error| format!("[ingest.calls] {error}"))?;
        self.ingest.limits.check().map_err(|error| format!("[ingest.limits] {error}"))?;
        if self.ingest.limits.unfinished < self.ingest.calls.request {
            return Err("[ingest.limits] `unfinished` has to be at least [ingest.calls] `request`".into());
        }
        if self.keys.poll.is_zero() {
            return Err("[keys] `poll` must be above 0".into());
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
        paths.extend(self.unwrap.local.iter_mut().map(|key| &mut key.private_key));
        for path in paths {
            *path = base.join(&*path);
        }
    }
}

fn parsed<'de, T: FromStr<Err: fmt::Display>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

fn parsed_all<'de, T: FromStr<Err: fmt::Display>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().map(|text| text.parse().map_err(D::Error::custom)).collect()
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

    #[test]
    fn every_limit_of_the_port_is_in_the_template_with_its_default() {
        let section = TEMPLATE.split("# [ingest.limits]\n").nth(1).unwrap().split("\n\n").next().unwrap();
        let settings: String = section
            .lines()
            .filter_map(|line| line.strip_prefix("# "))
            .filter(|line| line.contains(" = ") && line.starts_with(|c: char| c.is_ascii_lowercase()))
            .map(|line| format!("{line}\n"))
            .collect();
        assert_eq!(toml::from_str::<Limits>(&settings).unwrap(), Limits::default());
        let written = toml::to_string(&Limits::default()).unwrap();
        for key in written.lines().filter_map(|line| line.split(" = ").next()) {
            assert!(settings.lines().any(|line| line.starts_with(&format!("{key} = "))), "{key} is missing");
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
        let limits = with("# [ingest.limits]\n# connections = 4096", "[ingest.limits]\nconnections = 0");
        assert!(limits.contains("[ingest.limits] `connections` has to be at least 1"), "{limits}");
        let typo = with("data_dir", "datadir");
        assert!(typo.contains("did you mean") && typo.contains('^'), "{typo}");
    }
}

//! The configuration file, parsed into values that can only be right.
//!
//! `config template` prints [`TEMPLATE`], where every key stands with its meaning and its default. Paths are relative to the
//! file's own folder.

use crate::unwrap::Budgets;
use pithead_hop::accept::Limits;
use pithead_hop::ingest::{IngestLimits, UploadLimits};
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
    /// The port for gateways.
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
    /// PEM: its certificate chain.
    pub certificate: PathBuf,
    /// PEM: the private key of that certificate.
    pub private_key: PathBuf,
}

/// `[ingest]`
#[derive(Debug, Clone, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteEntry {
    /// The site's name.
    #[serde(with = "config::text")]
    pub name: Site,
    /// PEM: the CA of its gateways and devices.
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
    /// `folder` or `jsonl`.
    pub kind: SinkKind,
    /// The folder, or the file. Its parent must exist.
    pub path: PathBuf,
}

/// What kind of sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SinkKind {
    /// One file per envelope.
    Folder,
    /// One line per record.
    Jsonl,
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
        if self.admin.listen.socket_addr() == Some(ingest) && ingest.port() != 0 {
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
        for path in paths {
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

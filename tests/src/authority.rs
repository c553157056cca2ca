//! The authority of a throw-away site: made and run with the real tool, its keys in files unless a test moves them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use base64ct::{Base64, Encoding as _};
use pithead_sealing::trust::authoring::{Draft, SigningKey};
use pithead_sealing::trust::{StatementFields, UnixTime};

use crate::{
    binaries::Binaries,
    command::{self, Finished},
};

/// The authority's name at every test site.
pub const AUTHORITY: &str = "acme-mining/test";

/// The authority's folder.
#[derive(Clone, Debug)]
pub struct Authority {
    folder: PathBuf,
    programs: Binaries,
}

impl Authority {
    /// `pithead-decryptor authority init`, at the time `at`.
    pub async fn init(
        programs: &Binaries,
        folder: &Path,
        min_rsa_bits: usize,
        hold_down: &str,
        at: UnixTime,
    ) -> anyhow::Result<Self> {
        let authority = Self { folder: folder.to_owned(), programs: programs.clone() };
        let bits = min_rsa_bits.to_string();
        let folder = folder.display().to_string();
        let first = ["authority", "init", "--authority", AUTHORITY, "--dir", &folder];
        let at = at.as_secs().to_string();
        let more = ["--min-rsa-bits", &bits, "--hold-down", hold_down, "--now", &at];
        authority.tool(&first, &more).await?.ok()?;
        Ok(authority)
    }

    /// `pithead-decryptor authority statement` for one site, with further arguments such as `--key ARN=FILE`.
    pub async fn statement(&self, site: &str, arguments: &[String]) -> anyhow::Result<Finished> {
        let folder = self.folder.display().to_string();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.tool(&["authority", "statement", "--dir", &folder, "--site", site], &arguments).await
    }

    /// Another act: `pithead-decryptor authority ACT ... --dir DIR`.
    pub async fn act(&self, act: &[&str], arguments: &[&str]) -> anyhow::Result<Finished> {
        let folder = self.folder.display().to_string();
        self.tool(&[&["authority"], act].concat(), &[&["--dir", &folder], arguments].concat()).await
    }

    /// The same with a KMS to be reached, by [`TestKms::environment`](crate::kms::TestKms::environment).
    pub async fn act_with(
        &self,
        environment: &[(&'static str, String)],
        act: &[&str],
        arguments: &[&str],
    ) -> anyhow::Result<Finished> {
        let folder = self.folder.display().to_string();
        let arguments = [&["authority"], act, &["--dir", &folder], arguments].concat();
        command::run(&self.programs.decryptor(), arguments, environment).await
    }

    /// The authority's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A key file of the authority's folder.
    #[must_use]
    pub fn key(&self, name: &str) -> PathBuf {
        self.folder.join(format!("keys/{name}.pem"))
    }

    async fn tool(&self, first: &[&str], more: &[&str]) -> anyhow::Result<Finished> {
        command::run(&self.programs.decryptor(), first.iter().chain(more), &[]).await
    }

    /// The first trust root: what devices and gateways are provisioned with.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.folder.join("roots/1.cose")
    }

    /// What gateways of a site are given.
    #[must_use]
    pub fn bundle(&self, site: &str) -> PathBuf {
        self.folder.join(format!("bundles/{site}.pb"))
    }

    /// The statement key, for tests that play the thief.
    pub fn stolen_statement_key(&self) -> anyhow::Result<SigningKey> {
        self.stolen_key("statement-1")
    }

    /// A key of the authority's folder, such as `root-1`.
    pub fn stolen_key(&self, name: &str) -> anyhow::Result<SigningKey> {
        let pem = fs::read_to_string(self.key(name))?;
        let base64: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        let der = Base64::decode_vec(&base64).ok().context("PEM body is not base64")?;
        SigningKey::from_pkcs8_der(&der).context("a key of the authority")
    }
}

/// Signs whatever it says: what somebody with the key could do, and the authority's tool refuses to.
pub fn sign(fields: &StatementFields, key: &SigningKey) -> anyhow::Result<bytes::Bytes> {
    let mut draft = Draft::statement(fields).context("a draft")?;
    draft.sign(key).context("a signature")?;
    draft.finish().context("a signed statement")
}

/// The time on this machine's clock, as far as an outside observer needs it.
#[expect(clippy::disallowed_methods, reason = "the door through which a test takes the time")]
pub fn now() -> UnixTime {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    UnixTime(since.as_secs())
}

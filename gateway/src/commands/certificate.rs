//! `certificate show | renew`: until when what this gateway shows and believes is good, and a new one for itself.
//!
//! Renewing keeps the key and the names and moves the dates: what devices and tokens know the gateway by, the SHA-256 of its
//! public key, stays the same, and so does its name in every custody fact. It takes the CA's key, which lies here where
//! `init` has made the site; elsewhere the CA that signed the certificate renews it.
//!
//! It is refused where it would lock somebody out: a certificate of another CA than the one before (devices that were enrolled
//! under the old one would take the gateway for a stranger), and a file that holds the private key as well. The new file has the
//! owner, the group and the mode of the old one, or the gateway could not read it at its next start.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pithead_hop::identity::{PeerId, Role, host_names, spki_sha256};
use pithead_hop::program::check::papers;
use pithead_hop::program::{ExitCode, ProgramError, clock, disk, human, units};
use pithead_hop::tls::{Pem, provider};
use pithead_proto::errors::v1::ErrorReason;
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use serde_json::{Value, json};

use crate::cli::Output;
use crate::config::Config;
use crate::devices::ca::Signed;
use crate::devices::registry::{Sha, Stamp};
use crate::run::material;

/// `certificate renew ...`
#[derive(Debug, clap::Args)]
pub struct RenewArgs {
    #[command(flatten)]
    config: crate::cli::ConfigArg,
    /// Does nothing unless the certificate ends within this time: for a timer that runs every week.
    #[arg(long, value_name = "TIME")]
    within: Option<units::Duration>,
}

/// Everything with a date on it that the configuration names, each file once.
pub(super) fn papers_of(config: &Config) -> Vec<(&'static str, PathBuf)> {
    let enroll = config.enroll.as_ref();
    let all = [
        ("this gateway's certificate", Some(&config.gateway.certificate)),
        ("the CA of devices", Some(&config.ingest.device_ca)),
        ("the CA that signs devices", enroll.and_then(|enroll| enroll.ca.as_ref())),
        ("the CA of gateways", enroll.and_then(|enroll| enroll.gateway_ca.as_ref())),
        ("the CA of the upstream", config.keys.upstream_ca.as_ref()),
        ("the CA of the far end", config.relay.as_ref().and_then(|relay| relay.ca.as_ref())),
    ];
    let mut papers: Vec<(&'static str, PathBuf)> = Vec::new();
    for (what, path) in all {
        if let Some(path) = path.filter(|path| papers.iter().all(|(_, other)| other != *path)) {
            papers.push((what, path.clone()));
        }
    }
    papers
}

/// Until when each of them is good. Ends with 3 if one ends within a month, or has ended.
///
/// # Errors
/// When one cannot be read.
pub fn show(path: &Path, output: Output, out: &mut dyn Write) -> Result<ExitCode, ProgramError> {
    let config = Config::load(path)?;
    let now = clock::wall_s();
    let mut rows = Vec::new();
    let mut soon = false;
    for (what, path) in papers_of(&config) {
        let pem = Pem::read(&path)?;
        let validity = papers::validity(&pem).ok_or_else(|| {
            ProgramError::new(ErrorReason::CertificateInvalid, format!("{}: no certificate", path.display()))
        })?;
        soon |= validity.until_s < now + papers::SOON_S;
        let leaf = pem.certificates()?.into_iter().next();
        let sha = leaf.and_then(|leaf| spki_sha256(&leaf).ok()).map(|sha| Sha(sha).to_string());
        rows.push(json!({
            "what": what,
            "file": path.display().to_string(),
            "from": human::moment(validity.from_s),
            "until": human::moment(validity.until_s),
            "until_s": validity.until_s,
            "public_key_sha256": sha,
        }));
    }
    let text = match output {
        Output::Json => super::json(&Value::Array(rows)),
        Output::Table => rows
            .iter()
            .map(|row| {
                let word = |name: &str| row[name].as_str().unwrap_or("-");
                let until = human::moment_from(row["until_s"].as_u64().unwrap_or(0), now);
                format!("{:26}  until {until}\n{:26}  {}\n", word("what"), "", word("file"))
            })
            .collect(),
    };
    super::write(out, &text)?;
    Ok(if soon { ExitCode::DEGRADED } else { ExitCode::OK })
}

/// A new certificate for the same key and names, in the place of the old one, which stays beside it.
///
/// # Errors
/// When the CA's key is not here, or its certificates would not be believed; then nothing has changed.
pub fn renew(args: &RenewArgs, out: &mut dyn Write) -> Result<ExitCode, ProgramError> {
    let config = Config::load(&args.config.config)?;
    let path = &config.gateway.certificate;
    let old = Pem::read(path)?;
    let now = clock::wall_s();
    let ends = papers::validity(&old).map_or(0, |validity| validity.until_s);
    if let Some(within) = args.within.filter(|within| ends > now.saturating_add(within.as_secs())) {
        let text = format!(
            "{} is good until {}: nothing to do within {within}\n",
            path.display(),
            human::moment_from(ends, now)
        );
        return super::done(out, &text);
    }
    if old.private_key().is_ok() {
        let what = format!("{} holds the private key as well", path.display());
        return Err(ProgramError::new(ErrorReason::ConfigInvalid, what)
            .affects("the old certificate is in force")
            .todo("put the key into a file of its own, and name that as private_key"));
    }
    let new = signed(&config, &old, Stamp(now))?;
    let before = unused(path);
    let cannot = |path: &Path, error: std::io::Error| {
        ProgramError::new(ErrorReason::DataDirUnwritable, format!("{}: {error}", path.display()))
            .affects("the old certificate is in force")
            .todo("give the command as the owner of the file, or as root")
    };
    let bytes = fs::read(path).map_err(|error| cannot(path, error))?;
    replace_like(path, &before, &bytes).map_err(|error| cannot(&before, error))?;
    replace_like(path, path, new.pem.as_bytes()).map_err(|error| cannot(path, error))?;
    let text = format!(
        "{} is renewed: until {}; it was until {}, and is kept as {}\nits key, its names and its fingerprint are the same\n{}\n",
        path.display(),
        human::moment_from(new.issued.not_after.0, now),
        human::moment(ends),
        before.display(),
        taken_over(&config),
    );
    super::done(out, &text)
}

/// Certificates of before that are kept: a weekly timer fills two years with them.
const KEPT_MAX: usize = 100;

/// Where the old one is kept: whoever renews twice still has the first.
fn unused(path: &Path) -> PathBuf {
    let first = path.with_extension("pem.before");
    let later = (2..KEPT_MAX).map(|number| path.with_extension(format!("pem.before.{number}")));
    // A folder full of them has its last one replaced.
    let mut all = std::iter::once(first).chain(later).filter(|candidate| !candidate.exists());
    all.next().unwrap_or_else(|| path.with_extension(format!("pem.before.{KEPT_MAX}")))
}

/// Puts `bytes` under `target`, for whoever may read `model`: with its owner, its group and its mode, whatever this process's
/// own are.
fn replace_like(model: &Path, target: &Path, bytes: &[u8]) -> io::Result<()> {
    let like = fs::metadata(model)?;
    let mut staged = target.as_os_str().to_owned();
    staged.push(".");
    staged.push(disk::UNFINISHED);
    let written = (|| {
        let mut file: File =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&staged)?;
        let ours = file.metadata()?;
        if (ours.uid(), ours.gid()) != (like.uid(), like.gid()) {
            fchown(&file, Some(like.uid()), Some(like.gid()))?;
        }
        file.set_permissions(Permissions::from_mode(like.mode() & 0o777))?;
        file.write_all(bytes)
    })();
    written.and_then(|()| disk::publish(Path::new(&staged), target)).inspect_err(|_| {
        // What could not be finished is of no use to anybody.
        let _ = fs::remove_file(&staged);
    })
}

/// Whether a gateway that runs has it already.
fn taken_over(config: &Config) -> String {
    let why = match super::reload::order(&config.admin.listen) {
        Ok(outcome) if outcome["taken"] == true => {
            return "the running gateway has taken it over; connections go on".to_owned();
        }
        Ok(outcome) => outcome["failure"]["what"].as_str().unwrap_or("it was refused").to_owned(),
        Err(error) => error.what,
    };
    format!("not in force in a gateway that runs ({why}): `pithead-gateway reload` once that is mended")
}

fn signed(config: &Config, old: &Pem, now: Stamp) -> Result<Signed, ProgramError> {
    let elsewhere = |what: &str| {
        ProgramError::new(ErrorReason::ConfigInvalid, what.to_owned())
            .affects("the old certificate is in force")
            .todo("have the CA that signed it sign it again, with the same key and names, and put it in its place")
    };
    let ca =
        material::site_ca(config)?.ok_or_else(|| elsewhere("no CA's key is here: there is no [enroll]"))?;
    let chain = old.certificates()?;
    let leaf = chain.first().ok_or_else(|| elsewhere("there is no certificate to renew"))?;
    let named = PeerId::from_certificate(leaf);
    let named = named.map_err(|error| elsewhere(&format!("{}: {error}", old.origin())))?;
    if named.site != config.gateway.site || !matches!(named.role, Role::Gateway(_)) {
        return Err(elsewhere(&format!("{} is of {named}", old.origin())));
    }
    // Devices believe gateways by these: a certificate of another CA would lock them all out.
    let enroll = config.enroll.as_ref();
    let believed = enroll.and_then(|enroll| enroll.gateway_ca.as_ref()).unwrap_or(&config.ingest.device_ca);
    let believed = Pem::read(believed)?.certificates()?;
    let ours = enroll.and_then(|enroll| enroll.ca.as_ref()).unwrap_or(&config.ingest.device_ca);
    if !Pem::read(ours)?.certificates()?.iter().any(|one| believed.contains(one)) {
        return Err(elsewhere("devices believe gateways by another CA than the one whose key is here"));
    }
    let hosts = host_names(leaf).map_err(|error| elsewhere(&error.to_string()))?;
    let began = papers::validity(old).map_or(now.0, |validity| validity.from_s);
    let signs = Pem::read(ours)?.certificates()?;
    if !signs.first().is_some_and(|ca| is_signed_by(leaf, &hosts, ca, began)) {
        return Err(elsewhere(
            "this gateway's certificate is of another CA than the one that signs here now, and devices that were enrolled before know only that one",
        ));
    }
    Ok(ca.gateway_again(leaf, &named, &hosts, now)?)
}

/// Whether this CA itself has signed it, seen from the day on which it began: it may have ended since.
fn is_signed_by(
    leaf: &CertificateDer<'static>,
    hosts: &[ServerName<'static>],
    ca: &CertificateDer<'static>,
    began_s: u64,
) -> bool {
    let mut roots = RootCertStore::empty();
    let Some(host) = hosts.first().filter(|_| roots.add(ca.clone()).is_ok()) else { return false };
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
    let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(began_s));
    verifier.is_ok_and(|verifier| verifier.verify_server_cert(leaf, &[], host, &[], at).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_before_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway.pem");
        for kept in ["gateway.pem.before", "gateway.pem.before.2", "gateway.pem.before.3"] {
            assert_eq!(unused(&path), folder.path().join(kept));
            fs::write(unused(&path), kept).unwrap();
        }
    }
}

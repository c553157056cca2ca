//! `key show | export | import | history`: the keys that devices seal to.

pub mod export;

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use pithead_hop::keys::KeyFile;
use pithead_hop::program::{ExitCode, ProgramError, clock, human};
use pithead_hop::status::reason_of_trust;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::trust::{Bundle, Clock, Device, Sha256Digest, StatementFields};
use serde_json::{Value, json};

use super::admin_client;
use crate::cli::Output;
use crate::config::Config;
use crate::keys::book::Book;
use crate::keys::history::History;
use crate::keys::keeper::Keeper;
use crate::keys::store::{Found, Kept, Store};
use crate::run::directory::{self, DataDir, DirectoryError};
use crate::run::material::Material;
use pithead_hop::program::disk;

/// The statement in force and its keys.
///
/// # Errors
/// When none was ever accepted here.
pub fn show(path: &Path, output: Output, out: &mut dyn Write) -> Result<ExitCode, ProgramError> {
    let config = Config::load(path)?;
    let (_, device) = last_known_good(&config.gateway.data_dir)?;
    let Some(statement) = device.statement() else { return Err(none_yet()) };
    let status = device.status(Clock::default());
    let mut value = describe(statement.fields(), statement.digest());
    value["status"] = json!(status.code());
    value["root_version"] = json!(device.root_version());
    let in_use = device.verified_key(Clock::default()).ok();
    value["in_use"] = json!(in_use.map(|key| key.fingerprint().to_string()));
    let text = match output {
        Output::Json => super::json(&value),
        Output::Table => table(&value),
    };
    super::done(out, &text)
}

/// What the gateway has on its disk, whether it runs or not.
pub(super) fn last_known_good(data: &Path) -> Result<(Kept, Device), ProgramError> {
    let folder = data.join("keys");
    let damaged = |what: &str| {
        ProgramError::new(ErrorReason::StateDamaged, format!("{}: {what}", folder.display()))
            .todo("start the gateway; it begins again from the provisioned root and fetches the rest")
    };
    let kept = match Store::open(&folder).map_err(|error| damaged(&error.to_string()))?.1 {
        Found::Whole(kept) => kept,
        Found::Damaged => return Err(damaged("neither copy reads back")),
        Found::Nothing => return Err(none_yet()),
    };
    let device = Device::restore(&kept.device).map_err(|error| damaged(error.code()))?;
    Ok((kept, device))
}

/// Verifies a bundle as the gateway would and takes it; hands it to a gateway that runs.
///
/// # Errors
/// Why it is refused; then nothing has changed.
pub fn import(file: &Path, path: &Path, out: &mut dyn Write) -> Result<ExitCode, ProgramError> {
    let config = Config::load(path)?;
    let material = Material::load(&config)?;
    let unreadable = |what: String| {
        ProgramError::new(ErrorReason::ConfigUnreadable, format!("{}: {what}", file.display()))
            .todo("give the file that the authority's tool exported")
            .exit(ExitCode::FAILED)
    };
    let bytes = Bytes::from(std::fs::read(file).map_err(|error| unreadable(error.to_string()))?);
    let bundle = KeyFile::read(bytes.clone()).map_err(|error| unreadable(error.to_string()))?;
    if bundle.authority != config.trust.authority || bundle.site != config.gateway.site {
        let what = format!("{} is for {} of {}", file.display(), bundle.site, bundle.authority);
        return Err(
            ProgramError::new(ErrorReason::TrustAudience, what).todo("export the bundle of this site")
        );
    }
    let data = &config.gateway.data_dir;
    match DataDir::open(data) {
        Ok(directory) => {
            let disk_error = |error: &dyn std::fmt::Display| {
                ProgramError::new(ErrorReason::DiskFailed, error.to_string()).affects("nothing was taken")
            };
            let (history, _) = History::open(&directory.history()).map_err(|error| disk_error(&error))?;
            let opened = Keeper::open(
                &directory.keys(),
                &config.trust.authority,
                &config.gateway.site,
                material.root,
                Arc::new(history),
                None,
                Book::default(),
            );
            let (mut keeper, _) = opened.map_err(|error| disk_error(&error))?;
            let now = trusted(&config);
            let taken = futures_util::future::FutureExt::now_or_never(keeper.take(bundle.bundle, now))
                .unwrap_or_else(|| unreachable!("without KMS nothing is waited for"));
            let taken = taken.map_err(|error| {
                ProgramError::new(error.reason(), error.to_string())
                    .affects("what was in force stays in force")
            })?;
            let (epoch, sequence) = keeper.device().version();
            let what = if taken.statement || taken.roots > 0 { "accepted" } else { "was here already" };
            super::done(
                out,
                &format!("statement {epoch}.{sequence} {what}; roots accepted: {}\n", taken.roots),
            )
        }
        Err(DirectoryError::Locked(_)) => {
            // Verified here as far as can be without the running gateway's state; it decides.
            let trial = trial(&config, &material, bundle.bundle.clone());
            trial.map_err(|error| {
                ProgramError::new(reason_of_trust(error), format!("{}: {error}", file.display()))
                    .affects("what is in force stays in force")
            })?;
            let name = format!("{}.pb", Sha256Digest::of(&bytes));
            disk::replace(&directory::inbox_below(data).join(name), &bytes).map_err(|error| {
                ProgramError::new(ErrorReason::DataDirUnwritable, format!("{}: {error}", data.display()))
            })?;
            let told = admin_client::request(&config.admin.listen, "POST", "/refresh").is_ok();
            let when = if told { "now" } else { "at its next refresh" };
            super::done(
                out,
                &format!("handed to the running gateway, which takes it {when}; see `key show`\n"),
            )
        }
        Err(error) => Err(error.into()),
    }
}

/// What a device with the same provisioned root would say of the bundle; and the device, with it.
pub(super) fn trial(
    config: &Config,
    material: &Material,
    bundle: Bundle,
) -> Result<Device, pithead_sealing::trust::TrustError> {
    let kept = Store::open(&config.gateway.data_dir.join("keys")).ok().and_then(|(_, found)| match found {
        Found::Whole(kept) => Device::restore(&kept.device).ok(),
        Found::Nothing | Found::Damaged => None,
    });
    let mut device = match kept {
        Some(device) => device,
        None => Device::provision(
            &config.trust.authority,
            &config.gateway.site,
            &material.root,
            Clock::default(),
        )?,
    };
    let bundle = bundle.newer_than(device.root_version());
    device.apply(&bundle, trusted(config)).map(|_| device)
}

fn trusted(config: &Config) -> Clock {
    let now = config.trust.trusted_clock.then(|| clock::wall_s().into());
    Clock { uptime_s: 0, trusted_now: now }
}

/// Every statement that was ever accepted here.
///
/// # Errors
/// When the history cannot be read.
pub fn history(path: &Path, output: Output, out: &mut dyn Write) -> Result<ExitCode, ProgramError> {
    let config = Config::load(path)?;
    let folder = directory::history_below(&config.gateway.data_dir);
    let entries = History::read(&folder).map_err(|error| {
        ProgramError::new(ErrorReason::DataDirUnwritable, format!("{}: {error}", folder.display()))
    })?;
    let values: Vec<Value> = entries.iter().map(|entry| describe(&entry.fields, &entry.digest)).collect();
    let text = match output {
        Output::Json => super::json(&Value::Array(values)),
        Output::Table => values.iter().map(table).collect(),
    };
    super::done(out, &text)
}

fn none_yet() -> ProgramError {
    ProgramError::new(ErrorReason::KeysNotReady, "no statement was ever accepted here")
        .todo("connect the source in [keys], or carry a bundle in with `key import`")
}

fn describe(statement: &StatementFields, digest: &Sha256Digest) -> Value {
    let keys: Vec<Value> = statement
        .keys
        .iter()
        .map(|key| {
            json!({
                "arn": key.arn.as_str(),
                "fingerprint": key.fingerprint.to_string(),
                "bits": key.bits,
                "status": format!("{:?}", key.status).to_lowercase(),
                "not_before": key.not_before.as_secs(),
                "seal_until": key.seal_until.as_secs(),
            })
        })
        .collect();
    json!({
        "authority": statement.authority,
        "epoch": statement.epoch,
        "sequence": statement.sequence,
        "digest": digest.to_string(),
        "issued_at": statement.issued_at.as_secs(),
        "refresh_by": statement.refresh_by.as_secs(),
        "expires_at": statement.expires_at.as_secs(),
        "keys": keys,
    })
}

fn table(value: &Value) -> String {
    let now = clock::wall_s();
    let date =
        |field: &Value| field.as_u64().map_or_else(|| "?".to_owned(), |at| human::moment_from(at, now));
    let text = |field: &Value| field.as_str().unwrap_or("-").to_owned();
    let mut lines =
        format!("statement {}.{} of {}", value["epoch"], value["sequence"], text(&value["authority"]));
    if let Some(status) = value["status"].as_str() {
        lines += &format!(", {status}");
    }
    lines += &format!("\n  digest       {}\n", text(&value["digest"]));
    for field in ["issued_at", "refresh_by", "expires_at"] {
        lines += &format!("  {field:12} {}\n", date(&value[field]));
    }
    for key in value["keys"].as_array().into_iter().flatten() {
        let mark = if key["fingerprint"] == value["in_use"] { "*" } else { " " };
        let (status, bits) = (text(&key["status"]), &key["bits"]);
        lines += &format!(
            "{mark} {status:12} RSA {bits}  {}\n    SHA-256    {}\n    {} {}\n    sealed to until {}\n",
            text(&key["arn"]),
            text(&key["fingerprint"]),
            // A key that stands by is active when a later statement says so, and not by the calendar.
            if status == "next" { "active not before" } else { "active from" },
            date(&key["not_before"]),
            date(&key["seal_until"]),
        );
    }
    lines
}

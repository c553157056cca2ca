//! `key`: what is believed, the key that is sealed to, and the key that signs.

use std::path::Path;

use pithead_device_client::keys::Keys;
use pithead_hop::program::{ExitCode, ProgramError};
use serde_json::{Value, json};

use crate::{config::Config, enroll, failure, moment, output::Output};

/// Where news about keys comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum From<'a> {
    /// The gateway, if the device has one.
    Gateway,
    /// A bundle that somebody carried here.
    File(&'a Path),
    /// What is believed is all that counts.
    Nobody,
}

pub(crate) async fn run(file: &Path, from: From<'_>, output: Output) -> Result<ExitCode, ProgramError> {
    let config = Config::load(file)?;
    let mut keys = config.open_keys()?;
    match from {
        From::Gateway => {
            if let Some(uplink) = config.uplink(&keys)? {
                uplink.refresh(&mut keys).await.map_err(|error| failure::refresh(&error))?;
            }
        }
        From::File(bundle) => {
            let carried = enroll::read_bundle(bundle)?.bundle;
            let held = keys.trust().root_version();
            keys.apply(&carried.newer_than(held)).map_err(|error| failure::keys(&error))?;
        }
        From::Nobody => {}
    }
    let mut told = facts(&keys);
    if let Some(signer) = config.signer()? {
        told.extend(signer.facts());
    }
    output.print(&told);
    match keys.verified_key() {
        Ok(_) => Ok(ExitCode::OK),
        Err(error) => Err(failure::trust(error)),
    }
}

/// Status, and the key with its fingerprint if there is one.
pub(crate) fn facts(keys: &Keys) -> Vec<(&'static str, Value)> {
    let (epoch, sequence) = keys.trust().version();
    let mut facts = vec![
        ("status", json!(keys.status().code())),
        ("root_version", json!(keys.trust().root_version())),
        ("epoch", json!(epoch)),
        ("sequence", json!(sequence)),
    ];
    if let Ok(key) = keys.verified_key() {
        facts.extend([
            ("key", json!(key.arn().to_string())),
            ("fingerprint", json!(hex::encode(key.fingerprint().as_bytes()))),
            ("bits", json!(key.modulus_bits())),
        ]);
        facts.extend(moment::fields("refresh_by", "refresh_by_text", key.refresh_by().as_secs()));
        facts.extend(moment::fields("expires_at", "expires_at_text", key.expires_at().as_secs()));
    }
    facts
}

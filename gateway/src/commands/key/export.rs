//! `key export`: what this gateway serves, for a device or another gateway that no wire reaches.
//!
//! The file, the text and the QR code are the same message that the key service answers with. Nothing in it is secret, and
//! whoever takes it verifies it.

use std::io::Write;
use std::path::{Path, PathBuf};

use pithead_hop::keys::{KeyFile, TEXT_PREFIX};
use pithead_hop::program::{ExitCode, ProgramError, disk};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::trust::{Bundle, Device, KeyStatus, RsaSpki};
use qrcode::{EcLevel, QrCode, render::unicode::Dense1x2};

use super::{last_known_good, none_yet};
use crate::commands::done;
use crate::config::Config;

/// Where it goes.
#[derive(Debug, Clone)]
pub enum Form {
    /// A file, whole: every root from version 1 and every public key that the statement names.
    File(PathBuf),
    /// A line of text, as short as it can be.
    Text,
    /// The same line as a code that a camera reads off a terminal.
    Qr,
}

/// Writes the bundle in that form. A short one leaves out the roots up to `has_root`, which its receiver has.
///
/// # Errors
/// When no statement was ever accepted here, or it does not fit.
pub fn export(
    form: &Form,
    has_root: u64,
    path: &Path,
    out: &mut dyn Write,
) -> Result<ExitCode, ProgramError> {
    let config = Config::load(path)?;
    let (kept, device) = last_known_good(&config.gateway.data_dir)?;
    if kept.statement.is_empty() {
        return Err(none_yet());
    }
    let whole = KeyFile {
        authority: device.authority().to_owned(),
        site: device.site().clone(),
        bundle: Bundle { roots: kept.roots, statement: Some(kept.statement), spkis: kept.spkis },
    };
    let fingerprint = device.verified_key(pithead_sealing::trust::Clock::default()).ok();
    let fingerprint = fingerprint.map(|key| format!("fingerprint  {}\n", key.fingerprint()));
    match form {
        Form::File(file) => {
            disk::replace(file, &whole.encode()).map_err(|error| {
                ProgramError::new(ErrorReason::DataDirUnwritable, format!("{}: {error}", file.display()))
            })?;
            let (epoch, sequence) = device.version();
            let what = format!("statement    {epoch}.{sequence}\n{}", fingerprint.unwrap_or_default());
            done(out, &format!("{what}written      {}\n", file.display()))
        }
        Form::Text => done(out, &format!("{}\n", short(whole, has_root, &device).to_text())),
        Form::Qr => {
            let text = short(whole, has_root, &device).to_text();
            let code = QrCode::with_error_correction_level(&text, EcLevel::L).map_err(|_| {
                let what = format!("{} characters are more than a QR code holds", text.len());
                ProgramError::new(ErrorReason::RequestInvalid, what)
                    .todo("say with --has-root which root the receiver has, or carry a file: --out FILE")
                    .exit(ExitCode::FAILED)
            })?;
            // Light modules are drawn as blocks: as it should be where letters are light and the ground is dark. Cameras
            // read the other one as well.
            let image = code
                .render::<Dense1x2>()
                .dark_color(Dense1x2::Light)
                .light_color(Dense1x2::Dark)
                .quiet_zone(true)
                .build();
            let about = format!("{} characters that begin with {TEXT_PREFIX}\n", text.len());
            done(out, &format!("{image}\n{}{about}", fingerprint.unwrap_or_default()))
        }
    }
}

/// What a receiver with that root needs to seal: later roots, the statement, and the keys that may be sealed to now.
fn short(mut file: KeyFile, has_root: u64, device: &Device) -> KeyFile {
    file.bundle = file.bundle.newer_than(has_root);
    file.bundle.spkis.retain(|spki| {
        let fingerprint = RsaSpki::from_der(spki).map(|spki| spki.fingerprint());
        let key = fingerprint.ok().and_then(|fingerprint| device.statement()?.key(&fingerprint));
        // One that cannot be told stays: better a long code than one that nobody can use.
        key.is_none_or(|key| key.status == KeyStatus::Active)
    });
    file
}

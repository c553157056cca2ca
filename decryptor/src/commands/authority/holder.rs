//! What a key holder does with a draft, of a root or of a statement: read it, agree on its fingerprint, sign that one and no other.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use pithead_hop::program::ProgramError;
use pithead_sealing::trust::authoring::SigningKey;
use pithead_sealing::trust::{Kid, Sha256Digest};

use crate::authority::{self, AuthorityError, Passphrase};

/// Bytes of a payload or a signed object that are read: a device reads no more of one.
const OBJECT_MAX: u64 = 16_384;

/// Who signs a draft.
#[derive(Debug, Clone, clap::Args)]
pub struct HolderArgs {
    /// The key; without it the draft is shown and nothing is signed
    #[arg(long, value_name = "PEM", requires = "out", requires = "fingerprint")]
    pub key: Option<PathBuf>,
    /// The fingerprint that was read and agreed on: another draft is not signed
    #[arg(long, value_name = "SHA256", requires = "key")]
    pub fingerprint: Option<String>,
    /// The first line of this file opens the key
    #[arg(long, value_name = "FILE", requires = "key")]
    pub passphrase_file: Option<PathBuf>,
    /// Where the signature goes; a file that is there is not written over
    #[arg(long, value_name = "FILE", requires = "key")]
    pub out: Option<PathBuf>,
}

impl HolderArgs {
    /// Signs the draft with that digest, if a key was given, and says so. `whose` names the key for people.
    pub(super) fn sign(
        &self,
        digest: &Sha256Digest,
        sign: impl FnOnce(&SigningKey) -> Result<Bytes, AuthorityError>,
        whose: impl FnOnce(&Kid) -> String,
    ) -> Result<String, ProgramError> {
        let (Some(key), Some(out), Some(read)) = (&self.key, &self.out, &self.fingerprint) else {
            return Ok("\nnothing was signed; to sign it, agree on the fingerprint and give --key PEM --fingerprint SHA256 --out \
                       FILE\n"
                .into());
        };
        // The file may be another one than the one that was read.
        if fingerprint(read)? != *digest {
            return Err(AuthorityError::Request(
                "the draft has another fingerprint than the one of --fingerprint",
            )
            .into());
        }
        let passphrase = self.passphrase_file.as_deref().map(Passphrase::read).transpose()?;
        let key = authority::read_signing_key(key, passphrase.as_ref())?;
        authority::write_new(out, &sign(&key)?, 0o644)?;
        let kid = key.public().kid();
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = writeln!(text, "\nsigned by    {kid} ({})\nsignature    {}", whose(&kid), out.display());
        Ok(text)
    }
}

/// A payload or a signed object.
pub(super) fn read(path: &Path) -> Result<Bytes, AuthorityError> {
    let failed = |error| AuthorityError::File { action: "read", path: path.into(), error };
    if fs::metadata(path).map_err(failed)?.len() > OBJECT_MAX {
        return Err(AuthorityError::KeyFile { path: path.into(), what: "longer than any root or statement" });
    }
    let failed = |error| AuthorityError::File { action: "read", path: path.into(), error };
    Ok(fs::read(path).map_err(failed)?.into())
}

pub(super) fn fingerprint(text: &str) -> Result<Sha256Digest, AuthorityError> {
    let bytes = hex::decode(text).ok().and_then(|bytes| bytes.try_into().ok());
    bytes.map(Sha256Digest::from_bytes).ok_or(AuthorityError::Request("a fingerprint is 64 hex digits"))
}

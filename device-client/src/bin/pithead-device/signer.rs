//! The identity key that signs the device's sessions, and its public half for the cloud's registry.
//!
//! ```text
//! device.toml: signing_key = "device.key"     P-256, PKCS#8 in PEM, unencrypted: mostly the certificate's key
//! device.pub beside it                         what `pithead-decryptor device add` is given
//! ```

use std::{
    fmt,
    path::{Path, PathBuf},
};

use pithead_hop::{
    program::{ProgramError, disk},
    tls::Pem,
};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::envelope::DeviceSigningKey;
use rustls_pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use zeroize::Zeroize as _;

use crate::failure;

/// The key, and where it lies.
#[derive(Debug)]
pub(crate) struct Signer {
    pub(crate) key: DeviceSigningKey,
    path: PathBuf,
}

/// Why a private key signs no sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// A key in the old form of its kind.
    NotPkcs8,
    /// PKCS#8 of another kind of key.
    NotP256,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotPkcs8 => "the key is not in PKCS#8 (openssl pkcs8 -topk8 -nocrypt makes it so)",
            Self::NotP256 => "the key is no P-256 key",
        })
    }
}

/// The key in a PEM file, if it is one that signs sessions.
pub(crate) fn key_in(pem: &Pem) -> Result<Result<DeviceSigningKey, Unfit>, ProgramError> {
    let mut key = pem.private_key().map_err(|error| failure::tls(&error))?;
    let signing = match &key {
        PrivateKeyDer::Pkcs8(der) => {
            DeviceSigningKey::from_pkcs8_der(der.secret_pkcs8_der()).map_err(|_| Unfit::NotP256)
        }
        _ => Err(Unfit::NotPkcs8),
    };
    key.zeroize();
    Ok(signing)
}

impl Signer {
    /// Reads the key that the device's file names.
    pub(crate) fn read(path: &Path) -> Result<Self, ProgramError> {
        let pem = Pem::read(path).map_err(|error| failure::tls(&error))?;
        let key = key_in(&pem)?.map_err(|unfit| {
            ProgramError::new(ErrorReason::ConfigInvalid, format!("{}: {unfit}", path.display()))
                .affects("nothing is sealed: the cloud would refuse what is not signed, once it was")
                .todo("name a P-256 key in device.signing_key, or take the line out of the device's file")
        })?;
        Ok(Self { key, path: path.to_owned() })
    }

    /// Name and public half of the key, which is written beside it if it is not there.
    pub(crate) fn facts(&self) -> Vec<(&'static str, Value)> {
        let mut facts = vec![("signing_kid", json!(self.key.kid().to_string()))];
        match self.write_public() {
            Ok(path) => facts.push(("signing_public_key", json!(path.display().to_string()))),
            // The folder may be read-only: then it was written at the enrolment, or not at all.
            Err(error) => tracing::warn!(event = "signer.public_key_not_written", %error),
        }
        facts
    }

    fn write_public(&self) -> std::io::Result<PathBuf> {
        let (path, pem) = (self.path.with_extension("pub"), self.key.spki_pem());
        if std::fs::read(&path).is_ok_and(|there| there == pem.as_bytes()) {
            return Ok(path);
        }
        disk::replace(&path, pem.as_bytes())?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn pem(algorithm: &'static rcgen::SignatureAlgorithm) -> String {
        rcgen::KeyPair::generate_for(algorithm).unwrap().serialize_pem()
    }

    #[test]
    fn a_p256_key_signs_and_its_public_half_lies_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("device.key");
        std::fs::write(&path, pem(&rcgen::PKCS_ECDSA_P256_SHA256)).unwrap();
        let signer = Signer::read(&path).unwrap();
        let facts = signer.facts();
        assert_eq!(facts[0], ("signing_kid", json!(signer.key.kid().to_string())));
        assert_eq!(std::fs::read_to_string(folder.path().join("device.pub")).unwrap(), signer.key.spki_pem());
        let shown = format!("{signer:?}");
        assert!(shown.contains(&signer.key.kid().to_string()) && !shown.contains("scalar"), "{shown}");
    }

    #[test]
    fn another_kind_of_key_is_told_with_what_it_is_not() {
        let unfit = |text: String| key_in(&Pem::new("device.key", text)).unwrap().unwrap_err();
        assert_eq!(unfit(pem(&rcgen::PKCS_ED25519)), Unfit::NotP256);
        assert_eq!(unfit(pem(&rcgen::PKCS_ECDSA_P384_SHA384)), Unfit::NotP256);
        let sec1 = pem(&rcgen::PKCS_ECDSA_P256_SHA256).replace("PRIVATE KEY", "EC PRIVATE KEY");
        assert_eq!(unfit(sec1), Unfit::NotPkcs8);
    }
}

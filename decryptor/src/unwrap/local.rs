//! The private operation with a key in a file: for development, the demo, and those who host it all themselves.
//!
//! Through aws-lc-rs, because the time that a private operation takes can be seen on the network and its
//! implementation is constant in time. Keys are PKCS#8 in PEM (`openssl genpkey -algorithm RSA ...`).

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use pithead_sealing::envelope::Unwrapped;
use pithead_sealing::trust::KeyArn;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;
use zeroize::Zeroizing;

use super::{KeyUnwrapper, UnwrapError, Unwrapping};
use crate::kms::{KmsError, KmsFault};

/// Why a private key file cannot be used. Says nothing of its content.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// The file cannot be read.
    #[error("cannot read the private key {path}: {error}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Not a PEM file with one PKCS#8 private key.
    #[error(
        "{path} holds no unencrypted PKCS#8 private key (\"BEGIN PRIVATE KEY\"); \
         `openssl pkcs8 -topk8 -nocrypt -in OLD.pem -out NEW.pem` makes one of an older form"
    )]
    Form {
        /// Which file.
        path: PathBuf,
    },
    /// A private key, but not RSA with 2048, 3072 or 4096 bits.
    #[error("{path} is no RSA key of 2048, 3072 or 4096 bits")]
    Kind {
        /// Which file.
        path: PathBuf,
    },
}

/// One private key, ready to decrypt.
#[derive(Clone)]
struct PrivateKey(Arc<OaepPrivateDecryptingKey>);

impl PrivateKey {
    fn load(path: &Path) -> Result<PrivateKey, KeyFileError> {
        let pem = std::fs::read(path)
            .map(Zeroizing::new)
            .map_err(|error| KeyFileError::Read { path: path.into(), error })?;
        PrivateKey::from_pem(&pem, path)
    }

    fn from_pem(pem: &[u8], path: &Path) -> Result<PrivateKey, KeyFileError> {
        let der =
            PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| KeyFileError::Form { path: path.into() })?;
        let kind = || KeyFileError::Kind { path: path.into() };
        let key = PrivateDecryptingKey::from_pkcs8(der.secret_pkcs8_der()).map_err(|_| kind())?;
        if ![2048, 3072, 4096].contains(&key.key_size_bits()) {
            return Err(kind());
        }
        OaepPrivateDecryptingKey::new(key).map(|key| PrivateKey(Arc::new(key))).map_err(|_| kind())
    }

    fn decrypt(&self, ciphertext: &[u8]) -> Result<Zeroizing<Vec<u8>>, UnwrapError> {
        // RFC 8017, 7.1.2: the ciphertext has the length of the modulus. The same answer as for any other ciphertext
        // that this key did not make.
        if ciphertext.len() != self.0.key_size_bytes() {
            return Err(UnwrapError::InvalidCiphertext);
        }
        let mut buffer = Zeroizing::new(vec![0; self.0.min_output_size()]);
        let plaintext = self
            .0
            .decrypt(&OAEP_SHA256_MGF1SHA256, ciphertext, &mut buffer, None)
            .map_err(|_| UnwrapError::InvalidCiphertext)?;
        Ok(Zeroizing::new(plaintext.to_vec()))
    }
}

/// Private keys out of files, by the ARN under which devices know their public halves.
#[derive(Clone)]
pub struct LocalKeys {
    by_arn: BTreeMap<KeyArn, PrivateKey>,
    for_any: Option<PrivateKey>,
}

impl LocalKeys {
    /// Reads the file of each key.
    ///
    /// # Errors
    /// [`KeyFileError`] for the first file that holds no such key.
    pub fn load<'p>(files: impl IntoIterator<Item = (KeyArn, &'p Path)>) -> Result<LocalKeys, KeyFileError> {
        let by_arn = files
            .into_iter()
            .map(|(arn, path)| Ok((arn, PrivateKey::load(path)?)))
            .collect::<Result<_, KeyFileError>>()?;
        Ok(LocalKeys { by_arn, for_any: None })
    }

    /// One key, tried for whatever ARN an envelope names: for opening a single file by hand. A wrong key cannot
    /// open anything, it can only fail.
    pub fn for_any_arn(path: &Path) -> Result<LocalKeys, KeyFileError> {
        Ok(LocalKeys { by_arn: BTreeMap::new(), for_any: Some(PrivateKey::load(path)?) })
    }

    /// RSAES-OAEP SHA-256 of anything with the one key of [`LocalKeys::for_any_arn`].
    ///
    /// # Errors
    /// When the key did not wrap it, or there is no such key.
    pub async fn decrypt(&self, ciphertext: &[u8]) -> Result<Zeroizing<Vec<u8>>, UnwrapError> {
        let Some(key) = self.for_any.clone() else {
            return Err(UnwrapError::KeyNotAllowed);
        };
        let ciphertext = ciphertext.to_vec();
        match tokio::task::spawn_blocking(move || key.decrypt(&ciphertext)).await {
            Ok(result) => result,
            Err(_) => Err(KmsError::new(KmsFault::Unreachable, "the program is stopping").into()),
        }
    }

    fn key(&self, arn: &KeyArn) -> Option<&PrivateKey> {
        self.by_arn.get(arn).or(self.for_any.as_ref())
    }
}

impl fmt::Debug for LocalKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalKeys")
            .field("arns", &self.by_arn.keys())
            .field("for_any", &self.for_any.is_some())
            .finish()
    }
}

impl KeyUnwrapper for LocalKeys {
    fn unwrap<'a>(&'a self, arn: &'a KeyArn, ciphertext: &'a [u8]) -> Unwrapping<'a> {
        Box::pin(async move {
            let Some(key) = self.key(arn).cloned() else {
                return Err(
                    KmsError::new(KmsFault::KeyNotFound, "no private key file is configured for it").into()
                );
            };
            let ciphertext = ciphertext.to_vec();
            // Milliseconds of arithmetic: not on a thread that serves connections.
            match tokio::task::spawn_blocking(move || key.decrypt(&ciphertext)).await {
                Ok(result) => Ok(Unwrapped::read(&result?)?),
                Err(_) => Err(KmsError::new(KmsFault::Unreachable, "the program is stopping").into()),
            }
        })
    }

    fn may_hold(&self, arn: &KeyArn) -> bool {
        self.key(arn).is_some()
    }
}

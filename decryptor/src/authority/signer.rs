//! Who holds the statement key: a file here, KMS elsewhere. One signature at a time, each an audited act.

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;

use pithead_sealing::trust::authoring::{AuthoringError, SigningKey, p256_signature_from_der};
use pithead_sealing::trust::{Custody, KeyArn, RoleSpki, Sha256Digest};

use super::error::AuthorityError;
use super::key_file::{Passphrase, read_signing_key};
use crate::kms::Kms;

/// What [`StatementSigner::sign`] answers with, some time later: r || s, or an Ed25519 signature.
pub type Signing<'a> = Pin<Box<dyn Future<Output = Result<[u8; 64], AuthorityError>> + Send + 'a>>;

/// A key of the statement role, wherever it is.
pub trait StatementSigner: Send + Sync + fmt::Debug {
    /// Its public half, as the root lists it.
    fn public(&self) -> &RoleSpki;

    /// Who can cause a signature of it, in the words of the root.
    fn custody(&self) -> Custody;

    /// Signs `message` (P-256: its SHA-256). Whoever calls verifies what comes back.
    fn sign<'a>(&'a self, message: &'a [u8]) -> Signing<'a>;
}

/// A statement key out of a file.
#[derive(Debug)]
pub struct KeyFileSigner {
    key: SigningKey,
    public: RoleSpki,
}

impl KeyFileSigner {
    /// Signs with this key.
    pub fn new(key: SigningKey) -> KeyFileSigner {
        KeyFileSigner { public: key.public(), key }
    }
}

impl StatementSigner for KeyFileSigner {
    fn public(&self) -> &RoleSpki {
        &self.public
    }

    fn custody(&self) -> Custody {
        Custody::KeyFile
    }

    fn sign<'a>(&'a self, message: &'a [u8]) -> Signing<'a> {
        Box::pin(std::future::ready(Ok(self.key.sign(message))))
    }
}

/// A statement key in KMS. What KMS says is its public key has to be in the root, as that of any other: who moves the private
/// key, or answers in its stead, signs nothing that is believed.
#[derive(Debug)]
pub struct KmsSigner {
    kms: Kms,
    arn: KeyArn,
    public: RoleSpki,
}

impl KmsSigner {
    /// Asks KMS for the public half.
    ///
    /// # Errors
    /// [`AuthorityError::Kms`].
    pub async fn fetch(kms: Kms, arn: KeyArn) -> Result<KmsSigner, AuthorityError> {
        let public = kms.signing_key(&arn).await?;
        Ok(KmsSigner { kms, arn, public })
    }
}

impl StatementSigner for KmsSigner {
    fn public(&self) -> &RoleSpki {
        &self.public
    }

    fn custody(&self) -> Custody {
        Custody::CloudHsm
    }

    fn sign<'a>(&'a self, message: &'a [u8]) -> Signing<'a> {
        Box::pin(async {
            let der = self.kms.sign(&self.arn, &Sha256Digest::of(message)).await?;
            // What is no strict DER is no signature, whatever it might be bent into.
            Ok(p256_signature_from_der(&der).map_err(|_| AuthoringError::Signature)?)
        })
    }
}

/// Where the statement key is, before anybody has looked.
#[derive(Debug, Clone)]
pub enum KeyPlace {
    /// In a file.
    File {
        /// Which.
        path: PathBuf,
        /// Its first line opens it.
        passphrase_file: Option<PathBuf>,
    },
    /// In KMS.
    Kms {
        /// Which KMS.
        kms: Kms,
        /// Which key.
        arn: KeyArn,
    },
}

impl KeyPlace {
    /// Reads the file, or asks KMS for the public half.
    ///
    /// # Errors
    /// [`AuthorityError::File`], [`AuthorityError::KeyFile`], [`AuthorityError::Kms`].
    pub async fn open(&self) -> Result<Box<dyn StatementSigner>, AuthorityError> {
        match self {
            KeyPlace::File { path, passphrase_file } => {
                let passphrase = passphrase_file.as_deref().map(Passphrase::read).transpose()?;
                Ok(Box::new(KeyFileSigner::new(read_signing_key(path, passphrase.as_ref())?)))
            }
            KeyPlace::Kms { kms, arn } => Ok(Box::new(KmsSigner::fetch(kms.clone(), arn.clone()).await?)),
        }
    }
}

#[cfg(test)]
mod tests;

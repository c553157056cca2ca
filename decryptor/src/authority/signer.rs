//! Who holds the statement key: a file here, KMS elsewhere. One signature at a time, each an audited act.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use pithead_sealing::trust::RoleSpki;
use pithead_sealing::trust::authoring::SigningKey;

use super::error::AuthorityError;

/// What [`StatementSigner::sign`] answers with, some time later: r || s, or an Ed25519 signature.
pub type Signing<'a> = Pin<Box<dyn Future<Output = Result<[u8; 64], AuthorityError>> + Send + 'a>>;

/// A key of the statement role, wherever it is.
pub trait StatementSigner: Send + Sync + fmt::Debug {
    /// Its public half, as the root lists it.
    fn public(&self) -> &RoleSpki;

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

    fn sign<'a>(&'a self, message: &'a [u8]) -> Signing<'a> {
        Box::pin(std::future::ready(Ok(self.key.sign(message))))
    }
}

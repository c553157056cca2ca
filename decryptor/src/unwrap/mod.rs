//! From an encrypted data key to a data key.
//!
//! ```text
//! policy: the first EDK whose key is allowed ─> cache ─┬─ hit ─────────────────────────> digest of this message ─> key
//!                                                      └─ miss ─> budgets ─> one flight ─> KeyUnwrapper ─┘
//! ```
//!
//! A session is one data key for up to 100,000 messages, and a KMS call each would be what nobody can afford. What
//! [`DataKeys`] promises is in its own documentation; the unwrappers ([`KmsUnwrapper`], [`LocalKeys`]) are two ways to
//! the same private operation and remember nothing.

mod budget;
mod cache;
mod error;
mod kms;
mod local;

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use pithead_sealing::envelope::Unwrapped;
use pithead_sealing::trust::KeyArn;

pub use budget::{Budgets, Sender};
pub use cache::{CacheLimits, DataKeys, SessionKey, UnwrapCounters};
pub use error::{BudgetOf, Class, UnwrapError};
pub use kms::KmsUnwrapper;
pub use local::{KeyFileError, LocalKeys};

/// What [`KeyUnwrapper::unwrap`] answers with, some time later.
pub type Unwrapping<'a> = Pin<Box<dyn Future<Output = Result<Unwrapped, UnwrapError>> + Send + 'a>>;

/// Whoever holds the private keys. One call is one private operation, billed or computed; nothing is remembered.
pub trait KeyUnwrapper: Send + Sync + fmt::Debug {
    /// RSAES-OAEP SHA-256 with the private key named `arn`, read as context digest and data key.
    ///
    /// Dropping the future abandons the call; whether it was made is then unknown.
    fn unwrap<'a>(&'a self, arn: &'a KeyArn, ciphertext: &'a [u8]) -> Unwrapping<'a>;

    /// Whether this unwrapper has a private key of that name at all. KMS would have to be asked, so it may.
    fn may_hold(&self, arn: &KeyArn) -> bool;
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

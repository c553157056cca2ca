//! Where the bytes of a public key come from: AWS KMS, or the bundle that named it.
//!
//! The statement's fingerprint proves a key whoever brought it. KMS is asked all the same where it can be reached,
//! because it knows what the statement cannot: that the key is enabled and fit for use *now*, and that it is still the
//! key behind the ARN. A difference there means that devices seal to a key that will not be opened, or that somebody
//! stands between: an alarm either way.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use moka::future::Cache;
use pithead_sealing::trust::{KeyArn, Sha256Digest, StatementKey};

use crate::kms::{Kms, KmsError};
use crate::metrics::Metrics;

/// KMS's answers are believed this long: refreshes and imports in between cost no call.
const KMS_ANSWER_TTL: Duration = Duration::from_secs(300);
/// A statement names at most 8 keys; a rotation in the middle of an incident, a few more.
const KMS_ANSWERS_MAX: u64 = 64;

/// Why a source gave no bytes.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SpkiSourceError {
    /// It has none for this key.
    #[error("no public key with the stated fingerprint")]
    Absent,
    /// KMS said no, or nothing.
    #[error(transparent)]
    Kms(KmsError),
}

/// Gives the SubjectPublicKeyInfo of a key that a verified statement names. The answer is not yet compared.
pub trait SpkiSource: Send + Sync + std::fmt::Debug {
    /// The DER bytes.
    fn spki<'a>(&'a self, key: &'a StatementKey) -> BoxFuture<'a, Result<Bytes, SpkiSourceError>>;
}

/// The keys that came in one bundle, found by their hash.
#[derive(Debug, Clone, Default)]
pub struct BundleSpkis(Vec<Bytes>);

impl BundleSpkis {
    /// Takes the SPKIs of a bundle.
    #[must_use]
    pub fn new(spkis: Vec<Bytes>) -> Self {
        Self(spkis)
    }
}

impl SpkiSource for BundleSpkis {
    fn spki<'a>(&'a self, key: &'a StatementKey) -> BoxFuture<'a, Result<Bytes, SpkiSourceError>> {
        let found = self.0.iter().find(|der| Sha256Digest::of(der) == key.fingerprint).cloned();
        Box::pin(std::future::ready(found.ok_or(SpkiSourceError::Absent)))
    }
}

/// AWS KMS, its answers remembered for a while; of several who ask for one key at a time, one goes.
#[derive(Debug)]
pub struct KmsSpkis {
    kms: Kms,
    answers: Cache<KeyArn, Bytes>,
    metrics: Metrics,
}

impl KmsSpkis {
    /// Over a connection to KMS.
    #[must_use]
    pub fn new(kms: Kms, metrics: Metrics) -> Self {
        let answers = Cache::builder().max_capacity(KMS_ANSWERS_MAX).time_to_live(KMS_ANSWER_TTL).build();
        Self { kms, answers, metrics }
    }
}

impl SpkiSource for KmsSpkis {
    fn spki<'a>(&'a self, key: &'a StatementKey) -> BoxFuture<'a, Result<Bytes, SpkiSourceError>> {
        Box::pin(async move {
            let ask = async {
                let answer = self.kms.public_key(&key.arn).await;
                let reason = answer.as_ref().err().map(|error| error.fault.reason());
                self.metrics.kms_lookup(reason);
                // The bundle may have the key all the same, and then nothing else says that KMS was not heard.
                if let (Err(error), Some(reason)) = (&answer, reason) {
                    tracing::warn!(event = "kms.no_key", code = reason.code(), reason = reason.name(), %error);
                }
                answer
            };
            let answer = self.answers.try_get_with(key.arn.clone(), ask).await;
            answer.map_err(|error| SpkiSourceError::Kms(KmsError::clone(&error)))
        })
    }
}

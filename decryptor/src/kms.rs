//! AWS KMS: the one file that names its SDK.
//!
//! Four operations: `Decrypt` for the decryptor's role; for the authority's, `DescribeKey` and `GetPublicKey` of data keys, and
//! `GetPublicKey` and `Sign` of its own statement key. What is promised of each call:
//!
//! - It ends: connect 2 s, one attempt 3 s, all of it 8 s. The SDK alone has no limit, and a peer that accepts and never
//!   answers would hold an unwrap for ever.
//! - It is one request: the SDK's own retries are off, so that [`KmsCalls`] counts what is billed and throttled.
//!   Whoever asks decides about coming back, by [`KmsFault::is_retryable`].
//! - Its errors are told apart by the service's **code**: throttling and denied access arrive as "unhandled" errors.
//!
//! Endpoint, region and credentials come from the usual AWS variables and files. The region asked is the one in the key's
//! ARN, so that keys of several regions can be unwrapped by one program.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, ConfigLoader, Region, SdkConfig};
use aws_sdk_kms::Client;
use aws_sdk_kms::config::http::HttpResponse;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{
    EncryptionAlgorithmSpec, KeySpec, KeyState, KeyUsageType, MessageType, SigningAlgorithmSpec,
};
use pithead_hop::program::metrics::{Durations, KMS_BOUNDS_S};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::trust::{Algorithm, KeyArn, RoleSpki, RsaSpki, Sha256Digest};
use zeroize::Zeroizing;

/// How long one call may take, in its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KmsTimeouts {
    /// Until the connection stands.
    pub connect: Duration,
    /// One request and its answer.
    pub attempt: Duration,
    /// Everything, credentials included.
    pub operation: Duration,
}

impl Default for KmsTimeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            attempt: Duration::from_secs(3),
            operation: Duration::from_secs(8),
        }
    }
}

/// What went wrong, as far as the caller acts on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum KmsFault {
    /// Refused by a policy, or there are no credentials that KMS takes.
    Denied,
    /// Over a quota.
    Throttled,
    /// No answer in time, no connection, or a fault inside KMS.
    Unreachable,
    /// The key is disabled.
    KeyDisabled,
    /// The key is waiting for its deletion (or in another state that answers nothing).
    KeyPendingDeletion,
    /// No such key in that account and region.
    KeyNotFound,
    /// The key is not what it is used as: a data key is an enabled RSA ENCRYPT_DECRYPT key with RSAES_OAEP_SHA_256, a statement
    /// key an ECC_NIST_P256 SIGN_VERIFY key.
    KeyUnsuitable,
    /// The ciphertext was not made for this key.
    InvalidCiphertext,
    /// KMS finds the request itself wrong. For Decrypt the only part that a stranger chose is the ciphertext.
    InvalidRequest,
}

impl KmsFault {
    /// The labels of counters: of success, and of every fault.
    pub const OUTCOMES: [&'static str; OUTCOMES] = {
        let mut names = ["ok"; OUTCOMES];
        let mut at = 0;
        while at < Self::ALL.len() {
            names[at + 1] = Self::ALL[at].label();
            at += 1;
        }
        names
    };

    /// Every fault, for counters.
    pub const ALL: [KmsFault; 9] = [
        KmsFault::Denied,
        KmsFault::Throttled,
        KmsFault::Unreachable,
        KmsFault::KeyDisabled,
        KmsFault::KeyPendingDeletion,
        KmsFault::KeyNotFound,
        KmsFault::KeyUnsuitable,
        KmsFault::InvalidCiphertext,
        KmsFault::InvalidRequest,
    ];

    /// The same call may succeed later without anybody's doing.
    pub const fn is_retryable(self) -> bool {
        matches!(self, KmsFault::Throttled | KmsFault::Unreachable)
    }

    /// The reason in the registry.
    pub const fn reason(self) -> ErrorReason {
        match self {
            KmsFault::Denied => ErrorReason::KmsDenied,
            KmsFault::Throttled => ErrorReason::KmsThrottled,
            KmsFault::Unreachable => ErrorReason::KmsUnreachable,
            KmsFault::KeyDisabled => ErrorReason::KmsKeyDisabled,
            KmsFault::KeyPendingDeletion => ErrorReason::KmsKeyPendingDeletion,
            KmsFault::KeyNotFound => ErrorReason::KmsKeyNotFound,
            KmsFault::KeyUnsuitable => ErrorReason::KmsKeyUnsuitable,
            KmsFault::InvalidCiphertext | KmsFault::InvalidRequest => ErrorReason::KmsInvalidCiphertext,
        }
    }

    /// The label of counters: `throttled`.
    pub const fn label(self) -> &'static str {
        match self {
            KmsFault::Denied => "denied",
            KmsFault::Throttled => "throttled",
            KmsFault::Unreachable => "unreachable",
            KmsFault::KeyDisabled => "key_disabled",
            KmsFault::KeyPendingDeletion => "key_pending_deletion",
            KmsFault::KeyNotFound => "key_not_found",
            KmsFault::KeyUnsuitable => "key_unsuitable",
            KmsFault::InvalidCiphertext => "invalid_ciphertext",
            KmsFault::InvalidRequest => "invalid_request",
        }
    }

    /// By the code in the service's answer. Codes that nobody here has heard of are refusals: retrying them blindly
    /// would bill for nothing.
    fn from_code(code: &str) -> KmsFault {
        match code {
            "ThrottlingException"
            | "Throttling"
            | "ThrottledException"
            | "TooManyRequestsException"
            | "RequestLimitExceeded"
            | "LimitExceededException"
            | "LimitExceeded" => KmsFault::Throttled,
            "KMSInternalException"
            | "KeyUnavailableException"
            | "DependencyTimeoutException"
            | "InternalFailure"
            | "InternalError"
            | "ServiceUnavailable"
            | "RequestTimeout" => KmsFault::Unreachable,
            "DisabledException" => KmsFault::KeyDisabled,
            "KMSInvalidStateException" => KmsFault::KeyPendingDeletion,
            "NotFoundException" => KmsFault::KeyNotFound,
            "InvalidKeyUsageException" | "UnsupportedOperationException" => KmsFault::KeyUnsuitable,
            "InvalidCiphertextException" | "IncorrectKeyException" => KmsFault::InvalidCiphertext,
            "ValidationException" => KmsFault::InvalidRequest,
            _ => KmsFault::Denied,
        }
    }
}

/// A call that failed. The cause is for logs: it may name roles and keys, never data.
#[derive(Clone, thiserror::Error)]
#[error("{cause}")]
pub struct KmsError {
    /// What the caller acts on.
    pub fault: KmsFault,
    cause: Arc<str>,
}

impl KmsError {
    pub(crate) fn new(fault: KmsFault, cause: impl Into<Arc<str>>) -> Self {
        Self { fault, cause: cause.into() }
    }

    /// What KMS or the connection said.
    pub fn cause(&self) -> &str {
        &self.cause
    }

    fn from_sdk<E>(error: SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let status = error.raw_response().map(|response| response.status().as_u16());
        let fault = match &error {
            SdkError::TimeoutError(_) | SdkError::ResponseError(_) => KmsFault::Unreachable,
            // Without usable credentials the request is never built, or fails before any connection is tried.
            SdkError::ConstructionFailure(_) => KmsFault::Denied,
            SdkError::DispatchFailure(failure) if failure.is_user() => KmsFault::Denied,
            SdkError::DispatchFailure(failure) if failure.is_other() && !failure.is_io() => {
                if failure.as_connector_error().is_some_and(|error| mentions_credentials(error)) {
                    KmsFault::Denied
                } else {
                    KmsFault::Unreachable
                }
            }
            SdkError::DispatchFailure(_) => KmsFault::Unreachable,
            _ => match (error.code(), status) {
                // A 5xx is a fault of the service whatever it says: a proxy between may say anything.
                (_, Some(500..)) => KmsFault::Unreachable,
                (_, Some(429)) => KmsFault::Throttled,
                (Some(code), _) => KmsFault::from_code(code),
                (None, _) => KmsFault::Denied,
            },
        };
        let cause: String = match (error.code(), error.message()) {
            (Some(code), Some(message)) => format!("{code}: {message}"),
            (Some(code), None) => code.to_owned(),
            _ => chain(&error),
        };
        // One line, whatever was said: it goes into logs and onto terminals.
        Self::new(fault, cause.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

impl fmt::Debug for KmsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KmsError({:?}: {})", self.fault, self.cause)
    }
}

/// An error and what caused it, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

fn mentions_credentials(error: &(dyn std::error::Error + 'static)) -> bool {
    let text = chain(error);
    text.contains("credential") || text.contains("identity")
}

/// What is asked of KMS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KmsOperation {
    /// `Decrypt`: what is billed per session.
    Decrypt,
    /// `DescribeKey`
    DescribeKey,
    /// `GetPublicKey`
    GetPublicKey,
    /// `Sign`: a statement.
    Sign,
}

impl KmsOperation {
    /// Every operation, for counters.
    pub const ALL: [KmsOperation; 4] =
        [KmsOperation::Decrypt, KmsOperation::DescribeKey, KmsOperation::GetPublicKey, KmsOperation::Sign];

    /// The labels of counters.
    pub const LABELS: [&'static str; 4] = [
        KmsOperation::Decrypt.label(),
        KmsOperation::DescribeKey.label(),
        KmsOperation::GetPublicKey.label(),
        KmsOperation::Sign.label(),
    ];

    /// The label of counters.
    pub const fn label(self) -> &'static str {
        match self {
            KmsOperation::Decrypt => "decrypt",
            KmsOperation::DescribeKey => "describe_key",
            KmsOperation::GetPublicKey => "get_public_key",
            KmsOperation::Sign => "sign",
        }
    }
}

const OUTCOMES: usize = KmsFault::ALL.len() + 1;

/// Requests made, by operation and outcome. One request counts once, whatever came of it.
#[derive(Debug)]
pub struct KmsCalls {
    counts: [[AtomicU64; OUTCOMES]; KmsOperation::ALL.len()],
    times: [Durations; KmsOperation::ALL.len()],
}

impl Default for KmsCalls {
    fn default() -> Self {
        let times = std::array::from_fn(|_| Durations::new(KMS_BOUNDS_S));
        Self { counts: Default::default(), times }
    }
}

impl KmsCalls {
    fn count(&self, operation: KmsOperation, fault: Option<KmsFault>, took: Duration) {
        let outcome = fault.map_or(0, |fault| 1 + fault as usize);
        self.counts[operation as usize][outcome].fetch_add(1, Ordering::Relaxed);
        self.times[operation as usize].took(took);
    }

    /// How long calls of an operation take.
    pub fn times(&self, operation: KmsOperation) -> &Durations {
        &self.times[operation as usize]
    }

    /// All requests of one operation.
    pub fn total(&self, operation: KmsOperation) -> u64 {
        self.counts[operation as usize].iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// (operation, outcome, requests) of everything that can be counted; the outcome of success is `ok`.
    pub fn snapshot(&self) -> impl Iterator<Item = (KmsOperation, &'static str, u64)> + '_ {
        KmsOperation::ALL.into_iter().flat_map(move |operation| {
            let labels = KmsFault::OUTCOMES.into_iter();
            let counts = self.counts[operation as usize].iter().map(|count| count.load(Ordering::Relaxed));
            labels.zip(counts).map(move |(label, count)| (operation, label, count))
        })
    }
}

/// A client of KMS. Cheap to clone; clones share connections and counters.
#[derive(Clone)]
pub struct Kms(Arc<Inner>);

struct Inner {
    config: SdkConfig,
    timeouts: KmsTimeouts,
    /// One client per region. Only ARNs that policy allows come here, so regions are few.
    clients: Mutex<BTreeMap<String, Client>>,
    calls: Arc<KmsCalls>,
}

impl Kms {
    /// Reads endpoint and credentials from the environment as every AWS program does. Talks to nobody yet.
    pub async fn from_environment(timeouts: KmsTimeouts) -> Kms {
        Kms::load(aws_config::defaults(BehaviorVersion::v2026_01_12()), timeouts).await
    }

    async fn load(from: ConfigLoader, timeouts: KmsTimeouts) -> Kms {
        let config = from
            .retry_config(RetryConfig::disabled())
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(timeouts.connect)
                    .operation_attempt_timeout(timeouts.attempt)
                    .operation_timeout(timeouts.operation)
                    .build(),
            )
            .load()
            .await;
        let calls = Arc::new(KmsCalls::default());
        Kms(Arc::new(Inner { config, timeouts, clients: Mutex::default(), calls }))
    }

    /// Requests made so far.
    pub fn calls(&self) -> &Arc<KmsCalls> {
        &self.0.calls
    }

    fn client(&self, arn: &KeyArn) -> Client {
        let mut clients = self.0.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(arn.region()) {
            return client.clone();
        }
        let config = aws_sdk_kms::config::Builder::from(&self.0.config)
            .region(Region::new(arn.region().to_owned()))
            .build();
        let client = Client::from_conf(config);
        clients.insert(arn.region().to_owned(), client.clone());
        client
    }

    /// Sends one request and counts it. The outer limit holds even where the SDK's own would not reach.
    async fn call<T, E>(
        &self,
        operation: KmsOperation,
        request: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    ) -> Result<T, KmsError>
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let limit = self.0.timeouts.operation + self.0.timeouts.connect;
        let began = Instant::now();
        let result = match tokio::time::timeout(limit, request).await {
            Ok(result) => result.map_err(KmsError::from_sdk),
            Err(_) => Err(KmsError::new(KmsFault::Unreachable, "no answer in time")),
        };
        self.0.calls.count(operation, result.as_ref().err().map(|error| error.fault), began.elapsed());
        result
    }

    /// RSAES-OAEP SHA-256 with the private key behind `arn`. The plaintext is cleared when dropped.
    ///
    /// # Errors
    /// [`KmsError`], one request having been made.
    pub async fn decrypt(&self, arn: &KeyArn, ciphertext: &[u8]) -> Result<Zeroizing<Vec<u8>>, KmsError> {
        let request = self
            .client(arn)
            .decrypt()
            .key_id(arn.as_str())
            .encryption_algorithm(EncryptionAlgorithmSpec::RsaesOaepSha256)
            .ciphertext_blob(Blob::new(ciphertext))
            .send();
        let answer = self.call(KmsOperation::Decrypt, request).await?;
        let plaintext = answer.plaintext.map(Blob::into_inner);
        plaintext
            .map(Zeroizing::new)
            .ok_or_else(|| KmsError::new(KmsFault::Unreachable, "KMS answered without a plaintext"))
    }

    /// The public key of a data key that may be put into a statement: enabled, ENCRYPT_DECRYPT, RSAES_OAEP_SHA_256.
    ///
    /// # Errors
    /// [`KmsFault::KeyDisabled`], [`KmsFault::KeyPendingDeletion`] or [`KmsFault::KeyUnsuitable`] for a key that may
    /// not, and everything that a call can meet.
    pub async fn sealing_key(&self, arn: &KeyArn) -> Result<RsaSpki, KmsError> {
        let client = self.client(arn);
        let described =
            self.call(KmsOperation::DescribeKey, client.describe_key().key_id(arn.as_str()).send()).await?;
        let metadata = described
            .key_metadata
            .ok_or_else(|| KmsError::new(KmsFault::Unreachable, "KMS answered without key metadata"))?;
        if metadata.arn() != Some(arn.as_str()) {
            return Err(KmsError::new(
                KmsFault::KeyUnsuitable,
                "KMS describes another key than was asked for",
            ));
        }
        match metadata.key_state() {
            Some(KeyState::Enabled) => {}
            Some(KeyState::Disabled) => {
                return Err(KmsError::new(KmsFault::KeyDisabled, "the key is disabled"));
            }
            Some(KeyState::PendingDeletion | KeyState::PendingReplicaDeletion) => {
                return Err(KmsError::new(KmsFault::KeyPendingDeletion, "the key is scheduled for deletion"));
            }
            other => {
                let state = other.map_or("unknown", KeyState::as_str);
                return Err(KmsError::new(KmsFault::KeyUnsuitable, format!("the key's state is {state}")));
            }
        }
        suitable(metadata.key_usage(), metadata.encryption_algorithms())?;
        // Some KMS hand out the public key of a disabled key: the state was asked first.
        let answer = self
            .call(KmsOperation::GetPublicKey, client.get_public_key().key_id(arn.as_str()).send())
            .await?;
        suitable(answer.key_usage(), answer.encryption_algorithms())?;
        let der = answer
            .public_key
            .map(Blob::into_inner)
            .ok_or_else(|| KmsError::new(KmsFault::Unreachable, "KMS answered without a public key"))?;
        RsaSpki::from_der(&der).map_err(|error| KmsError::new(KmsFault::KeyUnsuitable, error.to_string()))
    }

    /// The public key of a key that may sign statements: SIGN_VERIFY, ECC_NIST_P256, ECDSA_SHA_256. Whether it is enabled is
    /// seen when it signs: some KMS hand out the public key of a disabled one.
    ///
    /// # Errors
    /// [`KmsFault::KeyUnsuitable`] for a key of another kind, and everything that a call can meet.
    pub async fn signing_key(&self, arn: &KeyArn) -> Result<RoleSpki, KmsError> {
        let unsuitable = |what: String| KmsError::new(KmsFault::KeyUnsuitable, what);
        let request = self.client(arn).get_public_key().key_id(arn.as_str()).send();
        let answer = self.call(KmsOperation::GetPublicKey, request).await?;
        // AWS answers with the ARN; there are KMS that answer with its last part alone.
        if answer.key_id().is_none_or(|id| id != arn.as_str() && id != arn.key_id()) {
            return Err(unsuitable("KMS answers for another key than was asked for".into()));
        }
        if answer.key_usage() != Some(&KeyUsageType::SignVerify) {
            let usage = answer.key_usage().map_or("unknown", KeyUsageType::as_str);
            return Err(unsuitable(format!("the key's usage is {usage}, not SIGN_VERIFY")));
        }
        // Where it is left out, the public key itself says of which curve it is.
        if let Some(spec) = answer.key_spec().filter(|spec| **spec != KeySpec::EccNistP256) {
            return Err(unsuitable(format!("the key is of {}, not ECC_NIST_P256", spec.as_str())));
        }
        if !answer.signing_algorithms().contains(&SigningAlgorithmSpec::EcdsaSha256) {
            return Err(unsuitable("the key does not offer ECDSA_SHA_256".into()));
        }
        let der = answer
            .public_key
            .map(Blob::into_inner)
            .ok_or_else(|| KmsError::new(KmsFault::Unreachable, "KMS answered without a public key"))?;
        match RoleSpki::from_der(&der) {
            Ok(spki) if spki.algorithm() == Algorithm::Esp256 => Ok(spki),
            _ => Err(unsuitable("its public key is no P-256 key in its one encoding".into())),
        }
    }

    /// ECDSA on P-256 over a SHA-256 that was made here, with the private key behind `arn`: a signature in DER, which nobody has
    /// verified yet.
    ///
    /// # Errors
    /// [`KmsError`], one request having been made.
    pub async fn sign(&self, arn: &KeyArn, digest: &Sha256Digest) -> Result<Vec<u8>, KmsError> {
        let request = self
            .client(arn)
            .sign()
            .key_id(arn.as_str())
            // RAW would be hashed over there, and be bound to 4,096 bytes.
            .message_type(MessageType::Digest)
            .message(Blob::new(digest.as_bytes().as_slice()))
            .signing_algorithm(SigningAlgorithmSpec::EcdsaSha256)
            .send();
        let answer = self.call(KmsOperation::Sign, request).await?;
        answer
            .signature
            .map(Blob::into_inner)
            .ok_or_else(|| KmsError::new(KmsFault::Unreachable, "KMS answered without a signature"))
    }
}

fn suitable(usage: Option<&KeyUsageType>, algorithms: &[EncryptionAlgorithmSpec]) -> Result<(), KmsError> {
    if usage != Some(&KeyUsageType::EncryptDecrypt) {
        let usage = usage.map_or("unknown", KeyUsageType::as_str);
        return Err(KmsError::new(
            KmsFault::KeyUnsuitable,
            format!("the key's usage is {usage}, not ENCRYPT_DECRYPT"),
        ));
    }
    if !algorithms.contains(&EncryptionAlgorithmSpec::RsaesOaepSha256) {
        return Err(KmsError::new(KmsFault::KeyUnsuitable, "the key does not offer RSAES_OAEP_SHA_256"));
    }
    Ok(())
}

impl fmt::Debug for Kms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kms").field("timeouts", &self.0.timeouts).finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

//! AWS KMS, the one file that names its SDK: the public key behind an ARN, and whether it is fit to be sealed to.
//!
//! Two calls and no others: `DescribeKey`, because some endpoints still hand out the public key of a disabled one, and
//! `GetPublicKey`. Both need no more than read permission; nothing here can sign or decrypt. The endpoint and the
//! credentials come from the usual AWS variables, the region from the key's own ARN.
//!
//! Every call ends: the SDK by itself waits for ever on a peer that accepts and never answers.

use std::time::Duration;

use aws_config::{BehaviorVersion, Region, retry::RetryConfig, timeout::TimeoutConfig};
use aws_sdk_kms::Client;
use aws_sdk_kms::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_kms::types::{EncryptionAlgorithmSpec, KeyState, KeyUsageType};
use bytes::Bytes;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::trust::{KeyArn, MAX_SPKI, RsaSpki};

/// For the TCP connection and TLS.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// For one try, connection included.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(3);
/// For a call with all its tries.
const OPERATION_LIMIT: Duration = Duration::from_secs(8);
/// Tries within one call. Whoever asks comes back later in any case.
const ATTEMPTS: u32 = 3;

/// What is wrong, as far as the answer differs for the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KmsFault {
    /// The role may not make the call, or its credentials are not accepted.
    #[error("access denied")]
    Denied,
    /// Too many calls in the account.
    #[error("throttled")]
    Throttled,
    /// No answer, or not in time, or a fault on the other side.
    #[error("no answer")]
    Unreachable,
    /// The key is disabled.
    #[error("the key is disabled")]
    Disabled,
    /// The key will be deleted.
    #[error("the key is scheduled for deletion")]
    PendingDeletion,
    /// No such key.
    #[error("there is no such key")]
    NotFound,
    /// Not an RSA key for encryption with RSAES_OAEP_SHA_256, or its material is not there.
    #[error("not an enabled RSA ENCRYPT_DECRYPT key with RSAES_OAEP_SHA_256")]
    Unsuitable,
    /// The answer is of another key than the one that was asked for.
    #[error("the answer is for another key")]
    AnotherKey,
}

impl KmsFault {
    /// The reason in the registry.
    #[must_use]
    pub fn reason(self) -> ErrorReason {
        match self {
            Self::Denied => ErrorReason::KmsDenied,
            Self::Throttled => ErrorReason::KmsThrottled,
            Self::Unreachable => ErrorReason::KmsUnreachable,
            Self::Disabled => ErrorReason::KmsKeyDisabled,
            Self::PendingDeletion => ErrorReason::KmsKeyPendingDeletion,
            Self::NotFound => ErrorReason::KmsKeyNotFound,
            Self::Unsuitable => ErrorReason::KmsKeyUnsuitable,
            Self::AnotherKey => ErrorReason::KmsFingerprint,
        }
    }

    /// Whether the same call may succeed without anybody changing anything.
    #[must_use]
    pub fn is_passing(self) -> bool {
        matches!(self, Self::Throttled | Self::Unreachable)
    }
}

/// Why KMS gave no key. Cheap to clone: one flight answers several who wait.
#[derive(Debug, Clone, thiserror::Error)]
#[error("KMS, {key}: {fault} ({cause})")]
pub struct KmsError {
    /// The key that was asked for.
    pub key: KeyArn,
    /// What is wrong.
    pub fault: KmsFault,
    /// What KMS or the way to it said, for the log.
    pub cause: std::sync::Arc<str>,
}

/// A connection to KMS, made on demand.
#[derive(Debug, Clone)]
pub struct Kms {
    client: Client,
}

impl Kms {
    /// With endpoint and credentials of the environment (`AWS_ENDPOINT_URL_KMS`, `AWS_ACCESS_KEY_ID`, a profile, ...).
    /// Makes no call.
    pub async fn from_environment() -> Self {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_LIMIT)
            .operation_attempt_timeout(ATTEMPT_LIMIT)
            .operation_timeout(OPERATION_LIMIT)
            .build();
        let config = aws_config::defaults(BehaviorVersion::v2026_01_12())
            .timeout_config(timeouts)
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
            // Only a stand-in, so that nothing looks for a region on the network: each call names its key's own.
            .region(Region::from_static("us-east-1"))
            .load()
            .await;
        Self { client: Client::new(&config) }
    }

    /// The SubjectPublicKeyInfo of an enabled RSA key for encryption with OAEP and SHA-256, strict DER.
    ///
    /// # Errors
    /// [`KmsError`] with the fault; nothing is remembered of it here.
    pub async fn public_key(&self, key: &KeyArn) -> Result<Bytes, KmsError> {
        let fail = |fault, cause: &str| KmsError { key: key.clone(), fault, cause: cause.into() };
        let region = || aws_sdk_kms::config::Builder::new().region(Region::new(key.region().to_owned()));

        let described =
            self.client.describe_key().key_id(key.as_str()).customize().config_override(region()).send();
        let described = described.await.map_err(|error| fail(fault_of(&error), &text_of(&error)))?;
        let about = described.key_metadata().ok_or_else(|| fail(KmsFault::Unsuitable, "no metadata"))?;
        if about.arn().is_some_and(|arn| !names(arn, key)) {
            return Err(fail(KmsFault::AnotherKey, about.arn().unwrap_or_default()));
        }
        match about.key_state() {
            Some(KeyState::Enabled) => {}
            Some(KeyState::Disabled) => return Err(fail(KmsFault::Disabled, "DescribeKey")),
            Some(KeyState::PendingDeletion | KeyState::PendingReplicaDeletion) => {
                return Err(fail(KmsFault::PendingDeletion, "DescribeKey"));
            }
            other => return Err(fail(KmsFault::Unsuitable, other.map_or("no key state", KeyState::as_str))),
        }

        let answer =
            self.client.get_public_key().key_id(key.as_str()).customize().config_override(region()).send();
        let answer = answer.await.map_err(|error| fail(fault_of(&error), &text_of(&error)))?;
        if answer.key_id().is_some_and(|id| !names(id, key)) {
            return Err(fail(KmsFault::AnotherKey, answer.key_id().unwrap_or_default()));
        }
        if answer.key_usage() != Some(&KeyUsageType::EncryptDecrypt) {
            return Err(fail(
                KmsFault::Unsuitable,
                answer.key_usage().map_or("no key usage", KeyUsageType::as_str),
            ));
        }
        if !answer.encryption_algorithms().contains(&EncryptionAlgorithmSpec::RsaesOaepSha256) {
            return Err(fail(KmsFault::Unsuitable, "RSAES_OAEP_SHA_256 is not among its algorithms"));
        }
        let der = answer.public_key().map(AsRef::<[u8]>::as_ref).unwrap_or_default();
        if der.len() > MAX_SPKI || RsaSpki::from_der(der).is_err() {
            return Err(fail(KmsFault::Unsuitable, "its public key is not strict RSA SubjectPublicKeyInfo"));
        }
        Ok(Bytes::copy_from_slice(der))
    }
}

/// Whether an answer's key id names `key`: the full ARN, or the bare id that some emulators answer with. An answer that
/// names another key is never taken for this one's.
fn names(answered: &str, key: &KeyArn) -> bool {
    answered == key.as_str() || answered == key.key_id()
}

fn fault_of<E: ProvideErrorMetadata, R>(error: &SdkError<E, R>) -> KmsFault {
    let SdkError::ServiceError(service) = error else { return KmsFault::Unreachable };
    // Throttling and AccessDenied have no type of their own in the SDK's operations, so the code decides for all.
    match service.err().code().unwrap_or_default() {
        "AccessDeniedException"
        | "UnrecognizedClientException"
        | "InvalidSignatureException"
        | "InvalidClientTokenId"
        | "ExpiredTokenException"
        | "IncompleteSignature"
        | "MissingAuthenticationTokenException" => KmsFault::Denied,
        "ThrottlingException" | "Throttling" | "TooManyRequestsException" | "LimitExceededException" => {
            KmsFault::Throttled
        }
        "DisabledException" => KmsFault::Disabled,
        "NotFoundException" => KmsFault::NotFound,
        // The state was Enabled a moment ago: the only way out of it that ends here is deletion.
        "KMSInvalidStateException" => KmsFault::PendingDeletion,
        "InvalidArnException"
        | "ValidationException"
        | "UnsupportedOperationException"
        | "InvalidKeyUsageException" => KmsFault::Unsuitable,
        _ => KmsFault::Unreachable,
    }
}

fn text_of<E: std::error::Error + 'static, R: std::fmt::Debug>(error: &SdkError<E, R>) -> String
where
    SdkError<E, R>: std::error::Error,
{
    DisplayErrorContext(error).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_names_the_key_by_arn_or_bare_id_and_never_another() {
        let key = KeyArn::new("arn:aws:kms:ap-southeast-2:111122223333:key/1234-abcd").unwrap();
        assert!(names("arn:aws:kms:ap-southeast-2:111122223333:key/1234-abcd", &key));
        assert!(names("1234-abcd", &key));
        assert!(!names("arn:aws:kms:ap-southeast-2:999988887777:key/1234-abcd", &key));
        assert!(!names("key/1234-abcd", &key));
        assert!(!names("", &key));
    }

    #[test]
    fn only_what_passes_by_itself_is_called_passing() {
        assert!(KmsFault::Throttled.is_passing() && KmsFault::Unreachable.is_passing());
        assert!(!KmsFault::Denied.is_passing() && !KmsFault::Disabled.is_passing());
    }
}

//! Why there is no data key, and what that means for the envelope.

use std::time::Duration;

use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::envelope::EdkFault;

use crate::kms::{KmsError, KmsFault};

/// Whose budget of unwraps is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BudgetOf {
    /// The device named in the context.
    Device,
    /// The gateway that submits.
    Gateway,
    /// Everybody together: half of what the account may ask of KMS.
    Total,
}

impl std::fmt::Display for BudgetOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            BudgetOf::Device => "the device",
            BudgetOf::Gateway => "the gateway",
            BudgetOf::Total => "this decryptor",
        })
    }
}

/// What the pipeline does about a failed unwrap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// The envelope is poisoned: set it aside with its reason and go on. No retry opens it.
    Poison,
    /// Try the same again, not before the duration.
    Later(Duration),
    /// Nothing is wrong with the envelope; somebody has to mend a policy or a key. Keep it, and look again seldom.
    Operator,
}

/// Why an envelope's data key was not unwrapped.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum UnwrapError {
    /// No EDK names a key that this decryptor's policy allows.
    #[error("the envelope names no key that this decryptor may use")]
    KeyNotAllowed,
    /// The ciphertext was not made for the key. Remembered, so that resending it costs no further call.
    #[error("the encrypted data key was not made for the key that it names")]
    InvalidCiphertext,
    /// What came out is no digest and data key, or belongs to another context.
    #[error("the encrypted data key does not belong to this envelope: {0}")]
    Edk(EdkFault),
    /// Too many unwraps for now.
    #[error("{whose} has used up its unwraps; come back in {retry_after:?}")]
    Budget {
        /// Whose budget it is.
        whose: BudgetOf,
        /// When there is room again.
        retry_after: Duration,
    },
    /// KMS refused or did not answer.
    #[error(transparent)]
    Kms(KmsError),
}

/// When to come back to a KMS that throttles or does not answer. The pipeline's backoff grows from here.
const KMS_RETRY_AFTER: Duration = Duration::from_secs(1);

impl UnwrapError {
    /// The reason in the registry.
    pub fn reason(&self) -> ErrorReason {
        match self {
            UnwrapError::KeyNotAllowed => ErrorReason::KeyNotAllowed,
            UnwrapError::InvalidCiphertext => ErrorReason::KmsInvalidCiphertext,
            UnwrapError::Edk(_) => ErrorReason::EnvelopeEdk,
            UnwrapError::Budget { .. } => ErrorReason::UnwrapBudget,
            UnwrapError::Kms(error) => error.fault.reason(),
        }
    }

    /// What to do about it.
    pub fn class(&self) -> Class {
        match self {
            UnwrapError::InvalidCiphertext | UnwrapError::Edk(_) => Class::Poison,
            UnwrapError::Budget { retry_after, .. } => Class::Later(*retry_after),
            UnwrapError::KeyNotAllowed => Class::Operator,
            UnwrapError::Kms(error) => match error.fault {
                KmsFault::Throttled | KmsFault::Unreachable => Class::Later(KMS_RETRY_AFTER),
                KmsFault::Denied
                | KmsFault::KeyDisabled
                | KmsFault::KeyPendingDeletion
                | KmsFault::KeyNotFound
                | KmsFault::KeyUnsuitable => Class::Operator,
                // The ciphertext is all that a stranger put into the request. Were this the operator's, one bad
                // envelope would hold up all others.
                KmsFault::InvalidCiphertext | KmsFault::InvalidRequest => Class::Poison,
            },
        }
    }

    /// The same call may succeed later without anybody's doing.
    pub fn is_retryable(&self) -> bool {
        matches!(self.class(), Class::Later(_))
    }

    /// How long to wait before the same call makes sense, if waiting helps.
    pub fn retry_after(&self) -> Option<Duration> {
        match self.class() {
            Class::Later(wait) => Some(wait),
            Class::Poison | Class::Operator => None,
        }
    }
}

impl From<KmsError> for UnwrapError {
    fn from(error: KmsError) -> Self {
        match error.fault {
            KmsFault::InvalidCiphertext => UnwrapError::InvalidCiphertext,
            _ => UnwrapError::Kms(error),
        }
    }
}

impl From<EdkFault> for UnwrapError {
    fn from(fault: EdkFault) -> Self {
        UnwrapError::Edk(fault)
    }
}

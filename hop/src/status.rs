//! The one file that makes a [`tonic::Status`], and the one that reads it back.
//!
//! On this side a refusal is a [`Refusal`]: a reason of the registry, one sentence, and how long to wait. On the wire it
//! is a status code with one `google.rpc.ErrorInfo` (reason, domain `pithead`), `RetryInfo` where a retry can help and
//! `BadRequest` for fields. On the other side it is a [`Remote`], which answers the caller's next questions: may I
//! retry, when, and may it have been stored.

use std::{borrow::Cow, collections::HashMap, fmt, time::Duration};

use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::trust::TrustError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::connect::ConnectError;

/// What a server says instead of doing it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Which of the registry's reasons.
    pub reason: ErrorReason,
    /// One sentence for a person: what is wrong, and what to do.
    pub detail: Cow<'static, str>,
    /// Where a retry can help: how long to wait for it.
    pub retry_after: Option<Duration>,
    /// Facts for a program, such as the offset that would have been right.
    pub metadata: Vec<(&'static str, String)>,
    /// The request's fields that are wrong, each with why.
    pub fields: Vec<(&'static str, Cow<'static, str>)>,
}

impl Refusal {
    /// A refusal for this reason.
    pub fn new(reason: ErrorReason, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { reason, detail: detail.into(), retry_after: None, metadata: Vec::new(), fields: Vec::new() }
    }

    /// `REQUEST_INVALID` because of one field.
    pub fn field(name: &'static str, why: impl Into<Cow<'static, str>>) -> Self {
        let why = why.into();
        let mut refusal = Self::new(ErrorReason::RequestInvalid, format!("{name}: {why}"));
        refusal.fields.push((name, why));
        refusal
    }

    /// Says when to come back. Spread it ([`crate::backoff::spread`]): a fleet is told the same at the same moment.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// Adds a fact for a program.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl ToString) -> Self {
        self.metadata.push((key, value.to_string()));
        self
    }

    /// The status code that goes with the reason.
    pub fn code(&self) -> Code {
        code_of(self.reason)
    }

    /// True if the same bytes, sent again later, may be taken.
    pub fn is_retryable(&self) -> bool {
        is_retryable(self.reason)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.reason.code(), self.reason.name(), self.detail)
    }
}

impl std::error::Error for Refusal {}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let code = refusal.code();
        let metadata: HashMap<String, String> =
            refusal.metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let mut details = ErrorDetails::with_error_info(refusal.reason.name(), ErrorReason::DOMAIN, metadata);
        if let Some(wait) = refusal.retry_after {
            details.set_retry_info(Some(wait));
        }
        for (field, why) in refusal.fields {
            details.add_bad_request_violation(field, why);
        }
        Status::with_error_details(code, refusal.detail, details)
    }
}

/// Somebody else's refusal, or the end of the connection on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// The status code.
    pub code: Code,
    /// The reason, where the other end is a Pithead that this version understands, or the connection says why.
    pub reason: Option<ErrorReason>,
    /// How long it asks us to wait; clamp it ([`crate::backoff`] does).
    pub retry_after: Option<Duration>,
    /// The sentence, as the other end wrote it: a person may read it, a program may not. At most
    /// [`Remote::DETAIL_MAX`] bytes.
    pub detail: String,
    /// Facts for a program.
    pub metadata: HashMap<String, String>,
    answered: bool,
}

impl Remote {
    /// Bytes of a foreign sentence that are kept: enough for ours, too few to fill a log.
    pub const DETAIL_MAX: usize = 512;

    /// Reads a status back.
    pub fn from_status(status: &Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info().filter(|info| info.domain == ErrorReason::DOMAIN);
        let on_the_way = ConnectError::in_chain(status);
        let answered = info.is_some();
        Self {
            code: status.code(),
            reason: info
                .and_then(|info| ErrorReason::from_name(&info.reason))
                .or(on_the_way.as_ref().map(ConnectError::reason)),
            retry_after: details.retry_info().and_then(|retry| retry.retry_delay),
            detail: match on_the_way {
                Some(error) if !answered => error.to_string(),
                _ => printable(status.message()),
            },
            metadata: info.map(|info| info.metadata.clone()).unwrap_or_default(),
            answered,
        }
    }

    /// True if the same request, sent again later, may succeed.
    pub fn is_retryable(&self) -> bool {
        match self.reason {
            Some(reason) => is_retryable(reason),
            // A newer server's reason, a proxy's answer or a broken connection: go by the code.
            None => matches!(
                self.code,
                Code::Unavailable
                    | Code::ResourceExhausted
                    | Code::Aborted
                    | Code::DeadlineExceeded
                    | Code::Cancelled
                    | Code::Internal
                    | Code::Unknown
            ),
        }
    }

    /// True if the far end may hold what was sent although it said no: resend the same bytes, never other ones.
    pub fn may_have_been_stored(&self) -> bool {
        if !self.answered {
            // The answer was lost, or somebody between us made one up.
            return true;
        }
        match self.reason {
            Some(reason) => {
                // A gateway that stands by may have passed it on before its owner was gone.
                matches!(
                    reason,
                    ErrorReason::NotDurable
                        | ErrorReason::Internal
                        | ErrorReason::Draining
                        | ErrorReason::StandingBy
                )
            }
            None => true,
        }
    }

    /// True if it is a Pithead's own answer, and not what the connection or somebody between has made up.
    pub(crate) fn is_answer(&self) -> bool {
        self.answered
    }

    /// True if it was the connection that failed, or something on it, and not the far end that answered.
    pub fn is_connection(&self) -> bool {
        !self.answered
            && (self.reason.is_some()
                || matches!(
                    self.code,
                    Code::Unavailable
                        | Code::Unknown
                        | Code::Cancelled
                        | Code::DeadlineExceeded
                        | Code::Internal
                ))
    }
}

impl From<Status> for Remote {
    fn from(status: Status) -> Self {
        Self::from_status(&status)
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason {
            Some(reason) => write!(f, "{} {}: {}", reason.code(), reason.name(), self.detail),
            None => write!(f, "{:?}: {}", self.code, self.detail),
        }
    }
}

impl std::error::Error for Remote {}

/// The registry's reason for a refusal of trust.
pub fn reason_of_trust(error: TrustError) -> ErrorReason {
    match error {
        TrustError::NoKey => ErrorReason::NoKey,
        TrustError::State => ErrorReason::StateDamaged,
        // The codes are the registry's names: a new one is looked up, and the test below asks for all of them.
        other => {
            ErrorReason::from_name(&format!("TRUST_{}", other.code())).unwrap_or(ErrorReason::Unspecified)
        }
    }
}

/// A foreign sentence made safe for a terminal and a log line.
pub(crate) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(Remote::DETAIL_MAX));
    for c in text.chars() {
        if out.len() + c.len_utf8() > Remote::DETAIL_MAX {
            break;
        }
        out.push(if c.is_control() { ' ' } else { c });
    }
    out
}

/// The code of a reason. No wildcard: a new reason has to say which it is.
#[warn(clippy::wildcard_enum_match_arm)]
pub(crate) fn code_of(reason: ErrorReason) -> Code {
    use ErrorReason as R;
    match reason {
        R::Unspecified | R::Internal | R::NotDurable => Code::Internal,

        // What was sent is wrong in itself.
        R::TrustSize | R::TrustParse | R::TrustType | R::TrustRootKeys => Code::InvalidArgument,
        R::EnvelopeUnsupportedVersion
        | R::EnvelopeUnsupportedSuite
        | R::EnvelopeMalformedHeader
        | R::EnvelopeEdk
        | R::EnvelopeCommitment
        | R::EnvelopeHeaderTag
        | R::EnvelopeSequence
        | R::EnvelopeIv
        | R::EnvelopeFrameTag
        | R::EnvelopeFinalTooLong
        | R::EnvelopeTruncated
        | R::EnvelopeTrailing
        | R::BundleMalformed
        | R::EnvelopeTooLarge
        | R::ProfileContext
        | R::ProfileNumber
        | R::ProfileEdk
        | R::InflateLimit
        | R::ContentMalformed
        | R::KmsInvalidCiphertext
        | R::RequestInvalid
        | R::ConfigInvalid => Code::InvalidArgument,

        // Right in itself, and not as things stand here.
        R::TrustAuthority
        | R::TrustRootVersion
        | R::TrustRootPrev
        | R::TrustEpoch
        | R::TrustThresholdOld
        | R::TrustThresholdNew
        | R::TrustThreshold
        | R::TrustAudience
        | R::TrustNeedRoot
        | R::TrustRollback
        | R::TrustEquivocation
        | R::TrustFork
        | R::TrustValidity
        | R::TrustNotYetValid
        | R::TrustExpired
        | R::TrustKeyAlg
        | R::TrustKeyBits
        | R::TrustKeyDenylisted
        | R::TrustKidRebind
        | R::TrustKeyTransition
        | R::TrustNoActive
        | R::TrustUnannounced
        | R::TrustSpkiMissing
        | R::TrustSpkiParse
        | R::NoKey
        | R::KeyUnknown
        | R::SeqJump
        | R::TooManyGaps
        | R::UploadComplete
        | R::KmsKeyDisabled
        | R::KmsKeyPendingDeletion
        | R::KmsKeyNotFound
        | R::KmsKeyUnsuitable
        | R::KmsFingerprint
        | R::StoreUnsuitable
        | R::DataDirLocked
        | R::DataDirUnwritable
        | R::ConfigUnreadable
        | R::SealingFailed
        | R::WouldOverwrite
        | R::ClockWrong
        | R::SpoolUnsafe => Code::FailedPrecondition,

        R::DeviceMismatch
        | R::SiteMismatch
        | R::SignatureInvalid
        | R::SignatureRequired
        | R::SignatureRevoked
        | R::SignatureKeyUnknown
        | R::UploadNotYours
        | R::RoleNotAllowed
        | R::ModeDowngrade
        | R::DeviceRevoked
        | R::PassingOnRefused
        | R::KmsDenied
        | R::StoreDenied
        | R::KeyNotAllowed => Code::PermissionDenied,
        R::CertificateRequired
        | R::CertificateInvalid
        | R::CertificateRevoked
        | R::PeerUntrusted
        | R::AddressUnknown
        | R::EnrollTokenInvalid
        | R::EnrollTokenExpired
        | R::EnrollTokenUsed => Code::Unauthenticated,

        // A bound was reached.
        R::WindowExceeded
        | R::SpoolFull
        | R::Throttled
        | R::TooManyStreams
        | R::TooManyRuns
        | R::TooManySessions
        | R::TooManyUploads
        | R::KmsThrottled
        | R::StoreThrottled
        | R::UnwrapBudget
        | R::DiskFull
        | R::OutboxFull => Code::ResourceExhausted,

        // Not now.
        R::Draining
        | R::NotReady
        | R::StandingBy
        | R::KeysNotReady
        | R::PeerUnreachable
        | R::KmsUnreachable
        | R::StoreUnreachable
        | R::SinkFailed
        | R::DiskFailed
        | R::PortTaken => Code::Unavailable,

        R::Conflict | R::BundleForeign => Code::AlreadyExists,
        R::UploadsNotSupported => Code::Unimplemented,
        R::UploadUnknown | R::AuthorityUnknown | R::SiteUnknown | R::DeviceUnknown | R::StoreNotFound => {
            Code::NotFound
        }
        R::UploadFenced | R::WatchReplaced => Code::Aborted,
        R::UploadOffset => Code::OutOfRange,
        R::Checksum | R::StateDamaged => Code::DataLoss,
    }
}

/// Whether the same request, sent again later, may succeed. No wildcard, for the same reason.
#[warn(clippy::wildcard_enum_match_arm)]
pub fn is_retryable(reason: ErrorReason) -> bool {
    use ErrorReason as R;
    match reason {
        R::SpoolFull
        | R::Throttled
        | R::Draining
        | R::NotReady
        | R::StandingBy
        | R::NotDurable
        | R::TooManyRuns
        | R::TooManySessions
        | R::TooManyUploads
        | R::Checksum
        | R::KeysNotReady
        | R::Internal
        | R::PeerUnreachable
        | R::KmsThrottled
        | R::KmsUnreachable
        | R::StoreThrottled
        | R::StoreUnreachable
        | R::UnwrapBudget
        | R::SinkFailed
        | R::DiskFull
        | R::DiskFailed
        | R::OutboxFull
        | R::PortTaken
        | R::DataDirLocked => true,

        R::Unspecified
        | R::TrustSize
        | R::TrustParse
        | R::TrustType
        | R::TrustRootKeys
        | R::TrustAuthority
        | R::TrustRootVersion
        | R::TrustRootPrev
        | R::TrustEpoch
        | R::TrustThresholdOld
        | R::TrustThresholdNew
        | R::TrustThreshold
        | R::TrustAudience
        | R::TrustNeedRoot
        | R::TrustRollback
        | R::TrustEquivocation
        | R::TrustFork
        | R::TrustValidity
        | R::TrustNotYetValid
        | R::TrustExpired
        | R::TrustKeyAlg
        | R::TrustKeyBits
        | R::TrustKeyDenylisted
        | R::TrustKidRebind
        | R::TrustKeyTransition
        | R::TrustNoActive
        | R::TrustUnannounced
        | R::TrustSpkiMissing
        | R::TrustSpkiParse
        | R::NoKey
        | R::EnvelopeUnsupportedVersion
        | R::EnvelopeUnsupportedSuite
        | R::EnvelopeMalformedHeader
        | R::EnvelopeEdk
        | R::EnvelopeCommitment
        | R::EnvelopeHeaderTag
        | R::EnvelopeSequence
        | R::EnvelopeIv
        | R::EnvelopeFrameTag
        | R::EnvelopeFinalTooLong
        | R::EnvelopeTruncated
        | R::EnvelopeTrailing
        | R::EnvelopeTooLarge
        | R::ProfileContext
        | R::ProfileNumber
        | R::ProfileEdk
        | R::KeyUnknown
        | R::DeviceMismatch
        | R::SiteMismatch
        | R::InflateLimit
        | R::ContentMalformed
        | R::SignatureInvalid
        | R::SignatureRequired
        | R::SignatureRevoked
        | R::SignatureKeyUnknown
        | R::BundleMalformed
        | R::RequestInvalid
        | R::WindowExceeded
        | R::Conflict
        | R::SeqJump
        | R::TooManyGaps
        | R::TooManyStreams
        | R::UploadsNotSupported
        | R::UploadUnknown
        | R::UploadNotYours
        | R::UploadFenced
        | R::UploadOffset
        | R::UploadComplete
        | R::AuthorityUnknown
        | R::SiteUnknown
        | R::WatchReplaced
        | R::CertificateRequired
        | R::CertificateInvalid
        | R::CertificateRevoked
        | R::RoleNotAllowed
        | R::ModeDowngrade
        | R::PeerUntrusted
        | R::AddressUnknown
        | R::EnrollTokenInvalid
        | R::EnrollTokenExpired
        | R::EnrollTokenUsed
        | R::DeviceUnknown
        | R::DeviceRevoked
        | R::PassingOnRefused
        | R::KmsDenied
        | R::KmsKeyDisabled
        | R::KmsKeyPendingDeletion
        | R::KmsKeyNotFound
        | R::KmsKeyUnsuitable
        | R::KmsInvalidCiphertext
        | R::KmsFingerprint
        | R::StoreDenied
        | R::StoreNotFound
        | R::StoreUnsuitable
        | R::BundleForeign
        | R::KeyNotAllowed
        | R::ConfigInvalid
        | R::ConfigUnreadable
        | R::DataDirUnwritable
        | R::StateDamaged
        | R::SealingFailed
        | R::WouldOverwrite
        | R::ClockWrong
        | R::SpoolUnsafe => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_reason() -> impl Iterator<Item = ErrorReason> {
        (0..10_000).filter_map(|number| ErrorReason::try_from(number).ok())
    }

    #[test]
    fn every_reason_survives_the_wire_with_its_wait_and_its_facts() {
        let mut seen = 0;
        for reason in every_reason() {
            let refusal = Refusal::new(reason, "because")
                .retry_after(Duration::from_millis(1500))
                .with("persisted_size", 42);
            let code = refusal.code();
            assert!(!matches!(code, Code::Ok | Code::Unknown), "{reason:?}");
            let retryable = refusal.is_retryable();
            let headers = Status::from(refusal).into_http::<()>();
            let status = Status::from_header_map(headers.headers()).expect("a status was written");
            let remote = Remote::from_status(&status);
            assert_eq!((remote.code, remote.reason), (code, Some(reason)));
            assert_eq!(remote.retry_after, Some(Duration::from_millis(1500)));
            assert_eq!(remote.metadata.get("persisted_size").map(String::as_str), Some("42"));
            assert_eq!(remote.is_retryable(), retryable);
            seen += 1;
        }
        assert!(seen > 90, "only {seen} reasons");
    }

    #[test]
    fn every_refusal_of_trust_has_a_reason_of_its_own() {
        let reasons: std::collections::HashSet<_> =
            TrustError::ALL.iter().map(|error| reason_of_trust(*error)).collect();
        assert_eq!(reasons.len(), TrustError::ALL.len());
        assert!(!reasons.contains(&ErrorReason::Unspecified));
    }

    #[test]
    fn a_bad_field_is_named_in_bad_request() {
        let status = Status::from(Refusal::field("site", "is empty"));
        let details = status.get_error_details();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(details.bad_request().expect("set").field_violations[0].field, "site");
    }

    #[test]
    fn what_is_no_answer_of_a_pithead_may_have_been_stored() {
        let proxy = Remote::from_status(&Status::unavailable("503 from a proxy"));
        assert_eq!(proxy.reason, None);
        assert!(proxy.is_retryable() && proxy.may_have_been_stored() && proxy.is_connection());

        let full = Remote::from_status(&Refusal::new(ErrorReason::SpoolFull, "full").into());
        assert!(full.is_retryable() && !full.may_have_been_stored() && !full.is_connection());

        let refused = Remote::from_status(&Refusal::new(ErrorReason::ProfileContext, "no site").into());
        assert!(!refused.is_retryable() && !refused.may_have_been_stored());

        let foreign = Status::with_error_details(
            Code::PermissionDenied,
            "no",
            ErrorDetails::with_error_info("SPOOL_FULL", "example.com", HashMap::new()),
        );
        assert_eq!(Remote::from_status(&foreign).reason, None);
    }

    #[test]
    fn a_foreign_sentence_cannot_draw_on_the_terminal_or_fill_the_log() {
        let remote = Remote::from_status(&Status::internal(format!("\x1b[2J{}", "é".repeat(4000))));
        assert!(remote.detail.len() <= Remote::DETAIL_MAX && !remote.detail.contains('\x1b'));
    }
}

//! What went wrong: a number that stays, whether it may help to try again, and a sentence.

use std::{error::Error, ffi::c_char, io, time::Duration};

use pithead_device_client::{
    OutboxError,
    client::{CloseError, DiskTrouble, FileError, FlushError, OpenError, RecordError},
    hop::{keys::WireError, program::exit::chain, status::reason_of_trust, tls::TlsError},
    keys::KeysError,
    sealer::{self, SealError},
    sealing::{NameError, envelope, trust::TrustError},
    sequence::SequenceError,
    spool,
    state::StateError,
    uplink::Trouble,
};
use pithead_proto::errors::v1::ErrorReason;

use crate::border::put_text;

/// How a call ended: 0 is good. From 1001 on it is the number behind PH- in the registry of reasons, which docs/errors.md
/// explains (and `pithead-device explain PH-6009` too); what is below is the library's own. A number is never used again for
/// something else, and later versions answer with numbers that this header does not name.
pub type pithead_result = i32;

/// It was done.
pub const PITHEAD_OK: pithead_result = 0;
/// An argument is NULL, not UTF-8, or out of its range; the message names it. Nothing was done.
pub const PITHEAD_BAD_ARGUMENT: pithead_result = 1;
/// The client or the sealer is closed, or was closed while the call waited.
pub const PITHEAD_CLOSED: pithead_result = 2;
/// The time is over. What was begun goes on.
pub const PITHEAD_TIMEOUT: pithead_result = 3;
/// No stream of this name and kind was configured.
pub const PITHEAD_UNKNOWN_STREAM: pithead_result = 4;
/// More than can be taken at once: the disk is behind the records, or too many files wait to be sealed. Try again.
pub const PITHEAD_BUSY: pithead_result = 5;
/// A fault of the library itself. Close the client and report it.
pub const PITHEAD_INTERNAL: pithead_result = 6;
/// No gateway will ever take it, for a reason that this version does not know; the message has it.
pub const PITHEAD_REFUSED: pithead_result = 7;

/// PH-1029: there is no key to seal to: not enrolled, no key statement yet, or the last one has expired.
pub const PITHEAD_NO_KEY: pithead_result = 1029;
/// PH-2107: larger than one envelope of this stream can be: send it as a file.
pub const PITHEAD_TOO_LARGE: pithead_result = 2107;
/// PH-4002: the gateway does not take the device's certificate.
pub const PITHEAD_CERTIFICATE_INVALID: pithead_result = 4002;
/// PH-4003: the device's certificate was revoked.
pub const PITHEAD_CERTIFICATE_REVOKED: pithead_result = 4003;
/// PH-4006: no gateway answers.
pub const PITHEAD_PEER_UNREACHABLE: pithead_result = 4006;
/// PH-4007: the gateway's certificate is not of the expected CA or name.
pub const PITHEAD_PEER_UNTRUSTED: pithead_result = 4007;
/// PH-6001: the options contradict each other, or what is in the folder.
pub const PITHEAD_CONFIG_INVALID: pithead_result = 6001;
/// PH-6002: a file that was named cannot be read, or is not what it should be.
pub const PITHEAD_UNREADABLE: pithead_result = 6002;
/// PH-6004: the folder cannot be written.
pub const PITHEAD_FOLDER_UNWRITABLE: pithead_result = 6004;
/// PH-6005: another client or sealer is open on the folder, in this process or another.
pub const PITHEAD_FOLDER_LOCKED: pithead_result = 6005;
/// PH-6006: no room is left on the disk, though the stream's budget is not used up.
pub const PITHEAD_DISK_FULL: pithead_result = 6006;
/// PH-6007: the disk reported an error.
pub const PITHEAD_DISK_FAILED: pithead_result = 6007;
/// PH-6008: what is kept in the folder does not read back.
pub const PITHEAD_STATE_DAMAGED: pithead_result = 6008;
/// PH-6009: the stream's budget on the disk is used up, and its policy is to refuse.
pub const PITHEAD_OUTBOX_FULL: pithead_result = 6009;
/// PH-6010: sealing failed.
pub const PITHEAD_SEALING_FAILED: pithead_result = 6010;

// The numbers are the registry's.
const _: () = {
    assert!(PITHEAD_NO_KEY == ErrorReason::NoKey as i32);
    assert!(PITHEAD_TOO_LARGE == ErrorReason::EnvelopeTooLarge as i32);
    assert!(PITHEAD_CERTIFICATE_INVALID == ErrorReason::CertificateInvalid as i32);
    assert!(PITHEAD_CERTIFICATE_REVOKED == ErrorReason::CertificateRevoked as i32);
    assert!(PITHEAD_PEER_UNREACHABLE == ErrorReason::PeerUnreachable as i32);
    assert!(PITHEAD_PEER_UNTRUSTED == ErrorReason::PeerUntrusted as i32);
    assert!(PITHEAD_CONFIG_INVALID == ErrorReason::ConfigInvalid as i32);
    assert!(PITHEAD_UNREADABLE == ErrorReason::ConfigUnreadable as i32);
    assert!(PITHEAD_FOLDER_UNWRITABLE == ErrorReason::DataDirUnwritable as i32);
    assert!(PITHEAD_FOLDER_LOCKED == ErrorReason::DataDirLocked as i32);
    assert!(PITHEAD_DISK_FULL == ErrorReason::DiskFull as i32);
    assert!(PITHEAD_DISK_FAILED == ErrorReason::DiskFailed as i32);
    assert!(PITHEAD_STATE_DAMAGED == ErrorReason::StateDamaged as i32);
    assert!(PITHEAD_OUTBOX_FULL == ErrorReason::OutboxFull as i32);
    assert!(PITHEAD_SEALING_FAILED == ErrorReason::SealingFailed as i32);
};

/// Bytes of a message, its zero byte included. What is longer is cut.
pub const PITHEAD_MESSAGE_BYTES: usize = 496;

/// Why a call failed. The caller brings it, on the stack or wherever it likes, initialised or not, and it is written before the
/// call returns: cleared if the call was good. This struct never changes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct pithead_error {
    /// The call's result.
    pub code: pithead_result,
    /// 1 if the same call may succeed later without anybody mending something, else 0.
    pub retryable: u32,
    /// When that is, in milliseconds from now, if somebody has said it; else 0.
    pub retry_after_ms: u32,
    /// 0.
    pub reserved: u32,
    /// For a person, in UTF-8; no key and no plaintext is ever in it.
    pub message: [c_char; PITHEAD_MESSAGE_BYTES],
}

const _: () = assert!(size_of::<pithead_error>() == 512);

impl pithead_error {
    pub(crate) const fn none() -> Self {
        let message = [0; PITHEAD_MESSAGE_BYTES];
        Self { code: PITHEAD_OK, retryable: 0, retry_after_ms: 0, reserved: 0, message }
    }

    pub(crate) fn of(failure: &Failure) -> Self {
        let mut error = Self {
            code: failure.code,
            retryable: failure.retryable.into(),
            retry_after_ms: millis32(failure.retry_after),
            ..Self::none()
        };
        put_text(&failure.message, &mut error.message);
        error
    }

    /// Tells a caller. Of a good call no more is written than its reader looks at: it may be one of a million.
    ///
    /// # Safety
    /// `error` may be written.
    pub(crate) unsafe fn put(error: *mut Self, failure: Option<&Failure>) {
        match failure {
            // SAFETY: the caller's promise.
            Some(failure) => unsafe { error.write(Self::of(failure)) },
            // SAFETY: the caller's promise; these are places within it.
            None => unsafe {
                (&raw mut (*error).code).write(PITHEAD_OK);
                (&raw mut (*error).retryable).write(0);
                (&raw mut (*error).retry_after_ms).write(0);
                (&raw mut (*error).reserved).write(0);
                (&raw mut (*error).message).cast::<c_char>().write(0);
            },
        }
    }
}

pub(crate) fn millis32(duration: Option<Duration>) -> u32 {
    duration.map_or(0, |duration| u32::try_from(duration.as_millis()).unwrap_or(u32::MAX))
}

/// What a caller is told.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) code: pithead_result,
    pub(crate) retryable: bool,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) message: String,
}

impl Failure {
    /// One that stays so until somebody mends something.
    pub(crate) fn new(code: pithead_result, message: impl Into<String>) -> Self {
        Self { code, retryable: false, retry_after: None, message: message.into() }
    }

    pub(crate) fn closed() -> Self {
        Self::new(PITHEAD_CLOSED, "it is closed")
    }

    fn of(reason: ErrorReason, error: &dyn Error) -> Self {
        Self::new(reason as i32, chain(error))
    }

    pub(crate) fn retryable(self, retryable: bool) -> Self {
        Self { retryable, ..self }
    }

    /// Of a file that was named.
    pub(crate) fn unreadable(path: &std::path::Path, error: &io::Error) -> Self {
        Self::new(PITHEAD_UNREADABLE, format!("{}: {error}", path.display()))
    }

    /// A gateway will never take it. `reason` is the registry's name with what the gateway said, or a sentence alone where other
    /// bytes stand under the number.
    pub(crate) fn refused(reason: &str) -> Self {
        let code = match reason.split_once(": ") {
            None => ErrorReason::Conflict as i32,
            Some((name, _)) => ErrorReason::from_name(name).map_or(PITHEAD_REFUSED, |reason| reason as i32),
        };
        Self::new(code, reason)
    }

    /// What keeps delivery back.
    pub(crate) fn trouble(trouble: &Trouble) -> Self {
        Self {
            code: trouble_code(trouble),
            retryable: trouble.retryable,
            retry_after: trouble.retry_after,
            message: trouble.detail.clone(),
        }
    }

    /// Why not everything was acknowledged, or kept.
    pub(crate) fn flush(error: &FlushError) -> Self {
        match error {
            // Waiting longer is useless: somebody has to do something.
            FlushError::Deadline { trouble: Some(trouble), .. } if !trouble.retryable => {
                Self { message: error.to_string(), ..Self::trouble(trouble) }
            }
            FlushError::Deadline { trouble, .. } => Self {
                retry_after: trouble.as_ref().and_then(|trouble| trouble.retry_after),
                ..Self::new(PITHEAD_TIMEOUT, error.to_string()).retryable(true)
            },
            FlushError::NotHeld => Self::new(PITHEAD_TIMEOUT, error.to_string()).retryable(true),
            FlushError::Closed => Self::closed(),
            _ => Self::new(PITHEAD_INTERNAL, error.to_string()),
        }
    }
}

/// The registry's number of what keeps delivery back. A gateway that gave no reason that is known here is one that cannot be
/// spoken with.
pub(crate) fn trouble_code(trouble: &Trouble) -> pithead_result {
    trouble.reason.unwrap_or(ErrorReason::PeerUnreachable) as i32
}

/// The number of what keeps records back.
pub(crate) fn record_code(error: &RecordError) -> pithead_result {
    match error {
        RecordError::Full => PITHEAD_OUTBOX_FULL,
        RecordError::Disk(DiskTrouble::NoSpace) => PITHEAD_DISK_FULL,
        RecordError::Disk(_) => PITHEAD_DISK_FAILED,
        RecordError::NoKey(error) => reason_of_trust(*error) as i32,
        RecordError::Seal(error) => seal_reason(error) as i32,
        RecordError::Behind => PITHEAD_BUSY,
        RecordError::TooLarge { .. } => PITHEAD_TOO_LARGE,
        RecordError::Closed => PITHEAD_CLOSED,
        _ => PITHEAD_INTERNAL,
    }
}

fn seal_reason(error: &SealError) -> ErrorReason {
    match error {
        SealError::Key(error) => reason_of_trust(*error),
        SealError::Seal(envelope::SealError::TooLong) => ErrorReason::EnvelopeTooLarge,
        SealError::Sequence(error) => sequence_reason(error),
        _ => ErrorReason::SealingFailed,
    }
}

fn state_reason(error: &StateError) -> ErrorReason {
    match error {
        StateError::Locked { .. } | StateError::Moved { .. } => ErrorReason::DataDirLocked,
        StateError::Io { .. } => ErrorReason::DataDirUnwritable,
        _ => ErrorReason::StateDamaged,
    }
}

fn sequence_reason(error: &SequenceError) -> ErrorReason {
    match error {
        SequenceError::State(error) => state_reason(error),
        SequenceError::TooManyStreams => ErrorReason::TooManyStreams,
        SequenceError::Entropy(_) | SequenceError::UsedUp => ErrorReason::SealingFailed,
        _ => ErrorReason::StateDamaged,
    }
}

fn keys_reason(error: &KeysError) -> ErrorReason {
    match error {
        KeysError::NotEnrolled => ErrorReason::NoKey,
        KeysError::OtherSite { .. } => ErrorReason::ConfigInvalid,
        KeysError::Folder { .. } => ErrorReason::DataDirUnwritable,
        KeysError::Trust(error) => reason_of_trust(*error),
        KeysError::State(error) => state_reason(error),
        _ => ErrorReason::StateDamaged,
    }
}

fn log_reason(error: &spool::OpenError) -> ErrorReason {
    match error {
        spool::OpenError::Locked { .. } => ErrorReason::DataDirLocked,
        spool::OpenError::Full { .. } => ErrorReason::DiskFull,
        _ => ErrorReason::DataDirUnwritable,
    }
}

fn open_reason(error: &OpenError) -> Option<ErrorReason> {
    Some(match error {
        OpenError::Keys(error) | OpenError::Bundle(error) => keys_reason(error),
        OpenError::Outbox(OutboxError::Sequence(error)) => sequence_reason(error),
        OpenError::Outbox(OutboxError::Gaps(error)) => state_reason(error),
        OpenError::Outbox(OutboxError::Log { source, .. }) => log_reason(source),
        OpenError::Outbox(_) => ErrorReason::DataDirUnwritable,
        OpenError::Tls(_) => ErrorReason::ConfigUnreadable,
        OpenError::OtherAuthority { .. } | OpenError::StreamTwice(_) => ErrorReason::ConfigInvalid,
        OpenError::TooManyStreams => ErrorReason::TooManyStreams,
        _ => return None,
    })
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        match open_reason(&error) {
            Some(reason) => Self::of(reason, &error)
                .retryable(matches!(reason, ErrorReason::DataDirLocked | ErrorReason::DiskFull)),
            None => Self::new(PITHEAD_INTERNAL, chain(&error)),
        }
    }
}

impl From<sealer::OpenError> for Failure {
    fn from(error: sealer::OpenError) -> Self {
        let reason = match &error {
            sealer::OpenError::Keys(error) => keys_reason(error),
            sealer::OpenError::Sequence(error) => sequence_reason(error),
            _ => ErrorReason::StateDamaged,
        };
        Self::of(reason, &error).retryable(reason == ErrorReason::DataDirLocked)
    }
}

impl From<KeysError> for Failure {
    fn from(error: KeysError) -> Self {
        Self::of(keys_reason(&error), &error)
    }
}

impl From<TrustError> for Failure {
    fn from(error: TrustError) -> Self {
        Self::of(reason_of_trust(error), &error)
    }
}

impl From<WireError> for Failure {
    fn from(error: WireError) -> Self {
        Self::of(error.reason(), &error)
    }
}

impl From<TlsError> for Failure {
    fn from(error: TlsError) -> Self {
        Self::of(ErrorReason::ConfigUnreadable, &error)
    }
}

impl From<NameError> for Failure {
    fn from(error: NameError) -> Self {
        Self::new(PITHEAD_BAD_ARGUMENT, chain(&error))
    }
}

impl From<RecordError> for Failure {
    fn from(error: RecordError) -> Self {
        Self::new(record_code(&error), chain(&error)).retryable(error.is_retryable())
    }
}

impl From<SealError> for Failure {
    fn from(error: SealError) -> Self {
        Self::of(seal_reason(&error), &error)
    }
}

impl From<&FileError> for Failure {
    fn from(error: &FileError) -> Self {
        let (code, retryable) = match error {
            FileError::Source { .. } => (PITHEAD_UNREADABLE, false),
            // One that is larger than the budget never fits.
            FileError::Full { needed, budget, .. } => (PITHEAD_OUTBOX_FULL, needed <= budget),
            FileError::Disk(error) if error.kind() == io::ErrorKind::StorageFull => (PITHEAD_DISK_FULL, true),
            FileError::Disk(_) => (PITHEAD_DISK_FAILED, true),
            // A key may come from the gateway.
            FileError::Seal(error) => (seal_reason(error) as i32, matches!(error, SealError::Key(_))),
            FileError::Busy => (PITHEAD_BUSY, true),
            FileError::Closed => (PITHEAD_CLOSED, false),
            _ => (PITHEAD_INTERNAL, false),
        };
        Self::new(code, chain(error)).retryable(retryable)
    }
}

impl From<CloseError> for Failure {
    fn from(error: CloseError) -> Self {
        Self::of(ErrorReason::DiskFailed, &error)
    }
}

impl From<sealer::CloseError> for Failure {
    fn from(error: sealer::CloseError) -> Self {
        Self::of(ErrorReason::DiskFailed, &error)
    }
}

//! From the library's errors to a person's: code, what happened, what to do.

use pithead_device_client::{
    OutboxError, SurveyError,
    client::{CloseError, FileError, OpenError, RecordError},
    keys::KeysError,
    sealer::{self, SealError},
    sequence::SequenceError,
    spool,
    state::StateError,
    uplink::RefreshError,
};
use pithead_hop::{
    program::{ExitCode, ProgramError, config::ConfigError, exit::chain},
    status::reason_of_trust,
    tls::TlsError,
};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::trust::TrustError;

pub(crate) fn trust(error: TrustError) -> ProgramError {
    ProgramError::new(reason_of_trust(error), error.to_string())
        .affects("what was believed before stands")
        .todo("get a current key bundle from the authority, or let the device reach its gateway")
}

pub(crate) fn config(error: &ConfigError) -> ProgramError {
    ProgramError::new(error.reason(), error.to_string())
}

pub(crate) fn tls(error: &TlsError) -> ProgramError {
    ProgramError::new(ErrorReason::ConfigUnreadable, error.to_string())
        .affects("the device cannot reach its gateway")
        .todo("correct the file that is named")
}

pub(crate) fn open(error: &OpenError) -> ProgramError {
    let program = |reason| ProgramError::new(reason, chain(error));
    match error {
        OpenError::Keys(refused) => keys(refused),
        OpenError::Outbox(OutboxError::Sequence(refused)) => sequence(refused),
        OpenError::Outbox(OutboxError::Gaps(refused)) => state(refused),
        OpenError::Outbox(OutboxError::Log { source: spool::OpenError::Locked { .. }, .. }) => {
            program(ErrorReason::DataDirLocked).todo("stop the other process, or wait for it")
        }
        OpenError::Outbox(OutboxError::Log { source: spool::OpenError::Full { .. }, .. }) => {
            program(ErrorReason::DiskFull)
        }
        OpenError::Outbox(_) => program(ErrorReason::DataDirUnwritable),
        OpenError::Tls(refused) => tls(refused),
        OpenError::OtherAuthority { .. } | OpenError::StreamTwice(_) | OpenError::TooManyStreams => {
            program(ErrorReason::ConfigInvalid).todo("correct the device's file")
        }
        _ => program(ErrorReason::Internal),
    }
}

pub(crate) fn open_sealer(error: &sealer::OpenError) -> ProgramError {
    match error {
        sealer::OpenError::Keys(refused) => keys(refused),
        sealer::OpenError::Sequence(refused) => sequence(refused),
        other => ProgramError::new(ErrorReason::StateDamaged, chain(other)),
    }
}

fn sequence(error: &SequenceError) -> ProgramError {
    match error {
        SequenceError::State(refused) => state(refused),
        other => ProgramError::new(ErrorReason::StateDamaged, chain(other)),
    }
}

pub(crate) fn close(error: &CloseError) -> ProgramError {
    ProgramError::new(ErrorReason::DiskFailed, chain(error))
        .affects("what was on the disk is; what a gateway acknowledged may be sent again, which is harmless")
}

pub(crate) fn survey(error: &SurveyError) -> ProgramError {
    let reason = match error {
        SurveyError::Folder { .. } => ErrorReason::ConfigUnreadable,
        SurveyError::Log { source: spool::OpenError::Locked { .. }, .. } => ErrorReason::DataDirLocked,
        _ => ErrorReason::DiskFailed,
    };
    ProgramError::new(reason, chain(error)).todo("look at state in the device's file, and at the disk")
}

/// What the storage of trust or numbers said.
pub(crate) fn state(error: &StateError) -> ProgramError {
    let program = |reason| ProgramError::new(reason, chain(error));
    match error {
        StateError::Locked { .. } | StateError::Moved { .. } => program(ErrorReason::DataDirLocked).todo(
            "another pithead-device works in this folder and asks for keys itself: wait for it, or stop it",
        ),
        StateError::Io { .. } => program(ErrorReason::DataDirUnwritable)
            .todo("look at the disk and at who may write in the device's folder"),
        _ => program(ErrorReason::StateDamaged),
    }
}

pub(crate) fn keys(error: &KeysError) -> ProgramError {
    let program = |reason| ProgramError::new(reason, chain(error));
    match error {
        KeysError::NotEnrolled => program(ErrorReason::NoKey).todo("enrol the device: pithead-device enroll"),
        KeysError::OtherSite { .. } => program(ErrorReason::ConfigInvalid)
            .todo("correct device.site in the device's file, or enrol the device for that site"),
        KeysError::Folder { .. } => program(ErrorReason::DataDirUnwritable),
        KeysError::Trust(refused) => trust(*refused),
        KeysError::State(refused) => state(refused),
        other => ProgramError::new(ErrorReason::StateDamaged, chain(other)),
    }
}

pub(crate) fn record(error: &RecordError) -> ProgramError {
    let program = |reason| ProgramError::new(reason, chain(error)).affects("the record was not taken");
    match error {
        RecordError::NoKey(refused) => trust(*refused),
        RecordError::Seal(refused) => seal(refused),
        RecordError::TooLarge { .. } => program(ErrorReason::EnvelopeTooLarge)
            .todo("send it as a file of its own, or raise the stream's budget or outbox.max_bytes"),
        RecordError::Full | RecordError::Behind => program(ErrorReason::OutboxFull)
            .todo("let the device reach its gateway, or raise the stream's budget or outbox.max_bytes"),
        _ => program(ErrorReason::DiskFailed).todo("look at the disk, then open the device again"),
    }
}

pub(crate) fn file(error: &FileError) -> ProgramError {
    let program = |reason| ProgramError::new(reason, chain(error)).affects("the file was not taken");
    match error {
        FileError::Source { .. } => program(ErrorReason::ConfigUnreadable),
        // No waiting makes room for it.
        FileError::Full { needed, budget, .. } if needed > budget => program(ErrorReason::OutboxFull)
            .todo("raise outbox.max_bytes, or the budget of the stream")
            .exit(ExitCode::FAILED),
        FileError::Full { .. } => program(ErrorReason::OutboxFull)
            .todo("let the device reach its gateway, or raise the stream's budget or outbox.max_bytes"),
        FileError::Seal(refused) => seal(refused),
        FileError::Disk(_) => program(ErrorReason::DiskFailed).todo("look at the disk"),
        _ => program(ErrorReason::Internal),
    }
}

pub(crate) fn seal(error: &SealError) -> ProgramError {
    match error {
        SealError::Key(refused) => trust(*refused),
        other => ProgramError::new(ErrorReason::SealingFailed, chain(other)).affects("nothing was sealed"),
    }
}

pub(crate) fn refresh(error: &RefreshError) -> ProgramError {
    match error {
        RefreshError::Connect(connect) => ProgramError::new(connect.reason(), error.to_string())
            .todo("check the gateway's address and certificate; what was believed before stands"),
        RefreshError::Fetch(fetch) => {
            ProgramError::new(fetch.reason(), error.to_string()).affects("what was believed before stands")
        }
        RefreshError::Keys(refused) => keys(refused),
        other => ProgramError::new(ErrorReason::StateDamaged, chain(other)),
    }
}

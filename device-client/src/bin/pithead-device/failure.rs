//! From the library's errors to a person's: code, what happened, what to do.

use std::error::Error;

use pithead_device_client::{
    device::{AppendRefused, OpenError},
    keys::KeysError,
    sealer::SealError,
    sequence::SequenceError,
    state::StateError,
    uplink::{DeliverError, RefreshError},
};
use pithead_hop::{
    program::{ProgramError, config::ConfigError},
    status::reason_of_trust,
    tls::TlsError,
};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::trust::TrustError;
use pithead_spool::AppendError;

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
        OpenError::Keys(KeysError::NotEnrolled) => {
            program(ErrorReason::NoKey).todo("enrol the device: pithead-device enroll")
        }
        OpenError::Keys(KeysError::Trust(refused)) => trust(*refused),
        OpenError::Keys(KeysError::State(refused)) | OpenError::Sequence(SequenceError::State(refused)) => {
            state(refused)
        }
        OpenError::Keys(KeysError::OtherSite { .. }) => program(ErrorReason::ConfigInvalid)
            .todo("correct device.site in the device's file, or enrol the device for that site"),
        OpenError::Outbox(pithead_spool::OpenError::Locked { .. }) => {
            program(ErrorReason::DataDirLocked).todo("stop the other process, or wait for it")
        }
        OpenError::Outbox(pithead_spool::OpenError::Full { .. }) => program(ErrorReason::DiskFull),
        OpenError::Folder { .. } | OpenError::Outbox(_) => program(ErrorReason::DataDirUnwritable),
        _ => program(ErrorReason::StateDamaged),
    }
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
    match error {
        KeysError::Trust(refused) => trust(*refused),
        KeysError::State(refused) => state(refused),
        other => ProgramError::new(ErrorReason::StateDamaged, chain(other)),
    }
}

pub(crate) fn append(error: &AppendRefused) -> ProgramError {
    let program = |reason| ProgramError::new(reason, chain(error)).affects("nothing of it was stored");
    match error {
        AppendRefused::Seal(refused) => seal(refused),
        AppendRefused::TooLarge { .. } => program(ErrorReason::EnvelopeTooLarge)
            .todo("seal it to a file with `pithead-device seal`, and send that with `pithead-device upload`"),
        AppendRefused::Outbox(AppendError::Full { .. } | AppendError::QueueFull { .. }) => {
            program(ErrorReason::OutboxFull)
                .todo("let the device reach its gateway, or raise outbox.max_bytes")
        }
        _ => program(ErrorReason::DiskFailed).todo("look at the disk, then open the device again"),
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

pub(crate) fn deliver(error: &DeliverError) -> ProgramError {
    let reason = match error {
        DeliverError::Refused(_) => ErrorReason::DataDirUnwritable,
        _ => ErrorReason::DiskFailed,
    };
    ProgramError::new(reason, chain(error)).affects("what is not acknowledged stays in the outbox")
}

/// An error with its causes, in one line, each said once.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

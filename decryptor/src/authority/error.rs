//! Why the authority did nothing.

use std::path::PathBuf;

use pithead_hop::program::ProgramError;
use pithead_hop::status::reason_of_trust;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::Site;
use pithead_sealing::trust::authoring::AuthoringError;
use pithead_sealing::trust::{KeyArn, KeyStatus, TrustError, UnixTime};

use super::show::rfc3339;
use crate::kms::KmsError;

/// A statement that could not be taken back once vehicles hold it, and so is not signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeptBack {
    /// No key stands by: a stolen active key could be revoked only through the root.
    #[error("no key is announced as next, so that the active one could not be revoked without the root keys")]
    NoStandby,
    /// Envelopes sealed in good faith might arrive after the key is gone.
    #[error(
        "{arn} must stay able to decrypt until {}: 180 days after the last statement that lists it as active expires",
        rfc3339(*.earliest)
    )]
    DecryptUntil {
        /// Which key.
        arn: KeyArn,
        /// The earliest time that may be promised.
        earliest: UnixTime,
    },
}

/// Why the authority did nothing. Nothing was signed, or nothing that left this program.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// A file could not be read or written.
    #[error("cannot {action} {}: {error}", .path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        error: std::io::Error,
    },
    /// `init` where an authority is already.
    #[error("{} holds an authority already", .0.display())]
    Exists(PathBuf),
    /// No root in the folder.
    #[error("{} holds no authority: there is no roots/1.cose", .0.display())]
    Missing(PathBuf),
    /// Another process is at work in the folder.
    #[error("another process is using {}", .0.display())]
    Locked(PathBuf),
    /// A kept object that does not verify any more.
    #[error("{} does not verify: {error}", .path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What a device would say.
        error: TrustError,
    },
    /// A file that holds no such key.
    #[error("{}: {what}", .path.display())]
    KeyFile {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// What was asked contradicts itself.
    #[error("{0}")]
    Request(&'static str),
    /// An ARN that is neither listed already nor came with a public key.
    #[error("{0} is not in the last statement; give its public key as well: --key ARN=SPKI.pem")]
    UnknownKey(KeyArn),
    /// Listing it again would take a step back that no device follows.
    #[error("what is signed for the sites {0} and {1} differs; issue their statements one at a time")]
    SitesDiffer(Site, Site),
    /// It could not be taken back.
    #[error(transparent)]
    KeptBack(#[from] KeptBack),
    /// Devices would refuse it.
    #[error("devices of {site} would refuse it: {error}")]
    Refused {
        /// Of which site.
        site: Site,
        /// With which code.
        error: TrustError,
    },
    /// A vehicle that has not taken what the root keys signed last would refuse it, and gateways serve nothing else.
    #[error(
        "a vehicle of {site} that has missed the last statement of the root keys would refuse this one: {error}"
    )]
    LeftBehind {
        /// Of which site.
        site: Site,
        /// With which code.
        error: TrustError,
    },
    /// The root in force tells everybody that statement keys are in a cloud HSM.
    #[error("the root says that statements are signed in a cloud HSM, and this statement key is a file")]
    Custody,
    /// A key that the statement goes on listing is not what it was in KMS.
    #[error("{arn} ({status}) in KMS: {error}", status = super::show::status_name(*.status))]
    DataKey {
        /// Which key.
        arn: KeyArn,
        /// Next or active.
        status: KeyStatus,
        /// Why.
        error: KmsError,
    },
    /// KMS has another public key under the ARN than the statement.
    #[error("{0} in KMS has another public key than the statement says")]
    Fingerprint(KeyArn),
    /// A device that reads the root refuses it.
    #[error("devices would refuse the root: {0}")]
    RootRefused(TrustError),
    /// The object cannot be made.
    #[error(transparent)]
    Authoring(#[from] AuthoringError),
    /// The public key could not be had from KMS, or is not one to seal to.
    #[error(transparent)]
    Kms(#[from] KmsError),
    /// The kernel gave no randomness.
    #[error("the kernel gave no randomness")]
    Entropy,
}

impl AuthorityError {
    pub(super) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> AuthorityError {
        let path = path.into();
        move |error| AuthorityError::File { action, path, error }
    }

    /// The reason in the registry.
    pub fn reason(&self) -> ErrorReason {
        match self {
            AuthorityError::File { action: "read", .. } => ErrorReason::ConfigUnreadable,
            AuthorityError::File { error, .. } if error.kind() == std::io::ErrorKind::StorageFull => {
                ErrorReason::DiskFull
            }
            AuthorityError::File { .. } => ErrorReason::DataDirUnwritable,
            AuthorityError::Missing(_) | AuthorityError::KeyFile { .. } => ErrorReason::ConfigUnreadable,
            AuthorityError::Locked(_) => ErrorReason::DataDirLocked,
            AuthorityError::Damaged { .. } => ErrorReason::StateDamaged,
            AuthorityError::Exists(_)
            | AuthorityError::Request(_)
            | AuthorityError::UnknownKey(_)
            | AuthorityError::SitesDiffer(..)
            | AuthorityError::Custody
            | AuthorityError::KeptBack(_) => ErrorReason::RequestInvalid,
            AuthorityError::Refused { error, .. }
            | AuthorityError::LeftBehind { error, .. }
            | AuthorityError::RootRefused(error) => reason_of_trust(*error),
            AuthorityError::Authoring(AuthoringError::Unreadable(error)) => reason_of_trust(*error),
            AuthorityError::Authoring(_) | AuthorityError::Entropy => ErrorReason::SealingFailed,
            AuthorityError::Kms(error) | AuthorityError::DataKey { error, .. } => error.fault.reason(),
            AuthorityError::Fingerprint(_) => ErrorReason::KmsFingerprint,
        }
    }

    fn todo(&self) -> Option<&'static str> {
        match self {
            AuthorityError::Exists(_) => Some("choose another --dir; an authority is made once"),
            AuthorityError::Missing(_) => {
                Some("make one with `pithead-decryptor authority init --dir DIR --authority NAME`")
            }
            AuthorityError::Damaged { .. } => {
                Some("restore the folder from its backup before anything is signed")
            }
            AuthorityError::KeptBack(KeptBack::NoStandby) => Some(
                "announce a second key with --next-key ARN=SPKI.pem, or accept the risk with --no-standby",
            ),
            AuthorityError::Refused { error: TrustError::Unannounced, .. } => Some(
                "announce the key as next first, and activate it when the hold-down is over; or have the threshold of root \
                 keys sign as well: --cosign ROOT.pem=PASSPHRASE-FILE, once for each",
            ),
            AuthorityError::Refused { error: TrustError::NoActive, .. } => Some(
                "name the key that takes its place with --to ARN; if none stands by, give a new one with its public key, --to \
                 ARN=SPKI.pem, and have the threshold of root keys sign as well: --cosign ROOT.pem",
            ),
            AuthorityError::Refused { error: TrustError::Threshold, .. } => Some(
                "sign with a statement key that the root in force lists: --statement-key PEM or --statement-kms-key ARN",
            ),
            AuthorityError::LeftBehind { .. } => Some(
                "have the threshold of root keys sign this one too, --cosign ROOT.pem; or, when every vehicle has followed, say so: \
                 --cosigned-followed",
            ),
            AuthorityError::Custody => Some(
                "sign with --statement-kms-key ARN; or make a root that says what is so: authority root draft --custody key-file",
            ),
            AuthorityError::Refused { error: TrustError::KeyDenylisted, .. } => {
                Some("the root denies a key that is still listed: authority revoke ARN")
            }
            AuthorityError::RootRefused(TrustError::ThresholdOld | TrustError::ThresholdNew) => Some(
                "collect more signatures: the threshold of the old root's keys and that of the new one's are both needed",
            ),
            AuthorityError::Refused { error: TrustError::Validity | TrustError::Expired, .. } => {
                Some("shorten --validity, or extend the root with a new version")
            }
            AuthorityError::Refused { error: TrustError::KeyBits, .. } => {
                Some("use a longer key; the shortest that the root allows is set at `authority init`")
            }
            _ => None,
        }
    }
}

impl From<AuthorityError> for ProgramError {
    fn from(error: AuthorityError) -> ProgramError {
        let program =
            ProgramError::new(error.reason(), error.to_string()).affects("nothing was signed or written");
        match error.todo() {
            Some(todo) => program.todo(todo),
            None => program,
        }
    }
}

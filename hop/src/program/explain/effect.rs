//! What a reason affects, and what it leaves alone: the second question of whoever reads a code at night.

use pithead_proto::errors::v1::ErrorReason;

/// In a sentence. A new reason has to say it, or this does not compile.
pub(super) fn affects(reason: ErrorReason) -> &'static str {
    use ErrorReason as R;
    match reason {
        R::Unspecified => "Whatever the message beside it names.",
        R::TrustExpired | R::NoKey => {
            "Nothing new is sealed there until a current statement comes. What was sealed before is kept, taken and relayed."
        }
        R::TrustSize
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
        | R::TrustKeyAlg
        | R::TrustKeyBits
        | R::TrustKeyDenylisted
        | R::TrustKidRebind
        | R::TrustKeyTransition
        | R::TrustNoActive
        | R::TrustUnannounced
        | R::TrustSpkiMissing
        | R::TrustSpkiParse => {
            "What was offered is not believed; what was believed before stays in force until its statement expires."
        }
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
        | R::ProfileContext
        | R::ProfileNumber
        | R::ProfileEdk
        | R::InflateLimit
        | R::ContentMalformed
        | R::KmsInvalidCiphertext => {
            "This envelope alone: it is not taken, or set aside with its reason. All others go on."
        }
        R::BundleMalformed => {
            "Nothing of that object is applied; what it should have held shows as missing. All others go on."
        }
        R::SignatureInvalid | R::SignatureRequired | R::SignatureRevoked | R::SignatureKeyUnknown => {
            "These envelopes are not believed to be the device's, and are set aside with their reason. All others go on."
        }
        R::KeyUnknown | R::EnvelopeTooLarge | R::DeviceMismatch | R::SiteMismatch => {
            "The envelope is not taken, and stays with its sender. All others go on."
        }
        R::Conflict => {
            "The envelope that came first stands; the other is kept beside it, as far as there is room."
        }
        R::RequestInvalid | R::WindowExceeded | R::SeqJump | R::Internal => {
            "That call. What was acknowledged is safe, and what was not stays with its sender."
        }
        R::SpoolFull
        | R::Throttled
        | R::Draining
        | R::NotReady
        | R::StandingBy
        | R::NotDurable
        | R::TooManyGaps
        | R::TooManyStreams
        | R::TooManyRuns
        | R::TooManySessions
        | R::Checksum => {
            "Nothing is lost: what was not taken stays with its sender, which has to come again."
        }
        R::UploadsNotSupported
        | R::UploadUnknown
        | R::UploadNotYours
        | R::UploadFenced
        | R::UploadOffset
        | R::UploadComplete
        | R::TooManyUploads => {
            "That upload: it stands where it stood, and the sender has the file. Other envelopes go on."
        }
        R::KeysNotReady => "Nobody is told of a key from here. Devices that know one go on sealing to it.",
        R::AuthorityUnknown | R::SiteUnknown => "Whoever asked gets nothing from here for that name.",
        R::WatchReplaced => "The older connection is told no more; the newer one is.",
        R::CertificateRequired
        | R::CertificateInvalid
        | R::CertificateRevoked
        | R::RoleNotAllowed
        | R::ModeDowngrade
        | R::AddressUnknown
        | R::DeviceRevoked
        | R::PassingOnRefused => {
            "Whoever came is turned away, and keeps what it has. Nobody else is affected."
        }
        R::PeerUnreachable | R::PeerUntrusted => {
            "Nothing passes between the two. What waits is kept here, as far as there is room."
        }
        R::EnrollTokenInvalid | R::EnrollTokenExpired | R::EnrollTokenUsed => {
            "No certificate was made. A device that is enrolled goes on as it is."
        }
        R::DeviceUnknown => "Nothing was changed.",
        R::KmsDenied
        | R::KmsThrottled
        | R::KmsUnreachable
        | R::KmsKeyDisabled
        | R::KmsKeyPendingDeletion
        | R::KmsKeyNotFound
        | R::KmsKeyUnsuitable
        | R::KeyNotAllowed
        | R::UnwrapBudget => {
            "Nothing that was sealed to the key is opened meanwhile: it waits at the gateways. Nothing is signed either, where the \
             key would sign."
        }
        R::KmsFingerprint => {
            "No statement is signed or renewed with that key until it is known which one is right."
        }
        R::StoreDenied | R::StoreNotFound | R::StoreThrottled | R::StoreUnreachable | R::StoreUnsuitable => {
            "Nothing passes through the store meanwhile. What waits is kept on this side, as far as there is room."
        }
        R::BundleForeign => {
            "This gateway puts nothing more into the bucket, and removes nothing from its spool. Devices are served."
        }
        R::SinkFailed => "Nothing is acknowledged to gateways: they keep it, and send it again.",
        R::ConfigInvalid | R::ConfigUnreadable => {
            "The program does not start; one that runs goes on with what it has."
        }
        R::PortTaken | R::DataDirUnwritable | R::DataDirLocked => {
            "The program does not start. What is on the disk is not touched."
        }
        R::DiskFull => "Nothing new is taken. What was acknowledged is safe.",
        R::DiskFailed => "Nothing more is acknowledged. What was acknowledged before was synced.",
        R::StateDamaged => "What the file held, as far as there is no good copy of it.",
        R::SpoolUnsafe => "No envelope is taken by that gateway. What lies in the streams stays there.",
        R::WouldOverwrite => "Nothing was written.",
        R::ClockWrong => {
            "Dates and ages on screens; certificates may be refused. Sealing, keeping and relaying go on."
        }
        R::OutboxFull | R::SealingFailed => "The record was not taken, and the caller still has it.",
    }
}

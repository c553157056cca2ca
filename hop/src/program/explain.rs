//! `explain CODE`: what a reason means and what to do about it, out of the binary, for a site that cannot open a URL.
//!
//! The meaning is the registry's own comment (`pithead.errors.v1`), so that the wire contract, the page in the documents and
//! the screen say the same. What to do is said here, once for every program.

mod effect;

use std::fmt::Write as _;

use pithead_proto::errors::{REGISTRY, v1::ErrorReason};

use super::{ExitCode, ProgramError};
use crate::status;

/// What is known of one reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Explanation {
    /// The reason.
    pub reason: ErrorReason,
    /// What it is about, as a heading: `Trust`.
    pub section: &'static str,
    /// What it means, in sentences.
    pub meaning: &'static str,
    /// What it affects, and what it leaves alone.
    pub affects: &'static str,
    /// What to do about it.
    pub todo: &'static str,
}

impl Explanation {
    /// What is known of `reason`.
    #[must_use]
    pub fn of(reason: ErrorReason) -> Option<Self> {
        all().find(|explanation| explanation.reason == reason)
    }
}

impl std::fmt::Display for Explanation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { reason, section, meaning, affects, todo } = self;
        let again = if status::is_retryable(*reason) { "yes" } else { "no" };
        writeln!(f, "{} {}  ({section})\n", reason.code(), reason.name())?;
        for line in meaning.lines() {
            writeln!(f, "  {}", line.trim().trim_start_matches("//").trim())?;
        }
        writeln!(f, "\n  what to do   {todo}")?;
        writeln!(f, "  affects      {affects}")?;
        writeln!(f, "  gRPC         {:?}", status::code_of(*reason))?;
        writeln!(f, "  retry helps  {again}")?;
        writeln!(f, "  exit code    {}", ExitCode::of(*reason).get())
    }
}

/// Every reason, in the order of the registry.
pub fn all() -> impl Iterator<Item = Explanation> {
    let body = REGISTRY.split_once("enum ErrorReason {").map_or("", |(_, body)| body);
    let mut section = "";
    body.split("\n\n").filter_map(move |paragraph| {
        let paragraph = paragraph.trim();
        let Some((comment, value)) = paragraph.rsplit_once("ERROR_REASON_") else {
            // A comment alone opens a section: its first words are the heading.
            let words = paragraph.trim_start_matches("//").trim();
            section = words.split([':', '.']).next().unwrap_or(words);
            return None;
        };
        let (name, _) = value.split_once(" = ")?;
        let reason = ErrorReason::from_name(name).filter(|reason| *reason != ErrorReason::Unspecified)?;
        Some(Explanation {
            reason,
            section,
            meaning: comment.trim(),
            affects: effect::affects(reason),
            todo: todo(reason),
        })
    })
}

/// What a person asked for, `PH-1014`, `1014` or `TRUST_ROLLBACK` in any case; everything in short if it was nothing.
///
/// # Errors
/// When no reason is called that; it says which may have been meant.
pub fn answer(asked: Option<&str>) -> Result<String, ProgramError> {
    let Some(asked) = asked else {
        let mut text = String::new();
        let mut section = "";
        for one in all() {
            if one.section != section {
                section = one.section;
                // Writing to a String does not fail.
                let _ = writeln!(text, "{}{section}", if text.is_empty() { "" } else { "\n" });
            }
            let _ = writeln!(text, "  {} {}", one.reason.code(), one.reason.name());
        }
        return Ok(text);
    };
    let name = asked.trim().to_ascii_uppercase().replace(['-', ' '], "_");
    let name = name.strip_prefix("ERROR_REASON_").unwrap_or(&name);
    let number = name.strip_prefix("PH_").unwrap_or(name).parse::<i32>().ok();
    let called = |one: &Explanation| Some(one.reason as i32) == number || one.reason.name() == name;
    if let Some(found) = all().find(called) {
        return Ok(found.to_string());
    }
    let near = all()
        .map(|one| (strsim::damerau_levenshtein(one.reason.name(), name), one.reason))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, _)| *distance <= name.len() / 3);
    let error = ProgramError::new(ErrorReason::RequestInvalid, format!("no reason is called {asked:?}"))
        .exit(ExitCode::USAGE);
    Err(match near {
        Some((_, reason)) => error.todo(format!("did you mean {} {}?", reason.code(), reason.name())),
        None => error.todo("`explain` without a code lists all of them"),
    })
}

/// What to do about a reason. A new reason has to say it, or this does not compile.
fn todo(reason: ErrorReason) -> &'static str {
    use ErrorReason as R;
    match reason {
        R::Unspecified => "Look at the message beside it: an older or newer program has said it.",
        R::TrustSize | R::TrustParse | R::TrustType | R::TrustRootKeys => {
            "Fetch the bundle again from the authority and compare the file's SHA-256. If the authority's own file is refused, \
             report it: its tool checks before it writes."
        }
        R::TrustAuthority => {
            "Compare the authority's name in the configuration, in the provisioned root and in the bundle. A device moves to \
             another authority only by being enrolled again."
        }
        R::TrustRootVersion | R::TrustRootPrev => {
            "Give the whole bundle of the authority, which has every root from version 1. If that is refused, somebody has made \
             another history: raise the alarm with the authority."
        }
        R::TrustEpoch => {
            "Give the newest bundle, roots included. After a raised epoch only statements of that epoch are believed."
        }
        R::TrustThresholdOld | R::TrustThresholdNew | R::TrustThreshold => {
            "Ask the authority which keys have signed. If it did not issue this object, somebody else made it: raise the alarm."
        }
        R::TrustAudience => "Export the bundle of this very site: authority export --site SITE.",
        R::TrustNeedRoot => "Give the roots too: the whole bundle, not the statement alone.",
        R::TrustRollback => {
            "Nothing, if an old file was carried in by mistake. If a gateway offers it again and again, it replays the past: look \
             at that gateway."
        }
        R::TrustEquivocation | R::TrustFork => {
            "Alarm: the statement key has signed two histories. Tell the authority; it compares with its log, replaces the \
             statement key by a new root, and raises the epoch if the key was stolen."
        }
        R::TrustValidity => "Ask the authority for a new statement; it judges these rules before it signs.",
        R::TrustNotYetValid => "Check the trusted clock of this machine against another one.",
        R::TrustExpired => {
            "Bring a current bundle here: over the WAN, or by hand with `key import`. Envelopes sealed before are taken and \
             relayed all the same."
        }
        R::TrustKeyAlg | R::TrustKeyBits => {
            "Ask the authority for a key that the root's policy allows, or for a root that allows the key."
        }
        R::TrustKeyDenylisted => "Ask the authority: it lists a key that its own root has condemned.",
        R::TrustKidRebind | R::TrustKeyTransition => {
            "Alarm if the authority did not mean it: a new key needs a new ARN, and a status never goes back."
        }
        R::TrustNoActive => {
            "Ask the authority for a statement with an active key; after a revocation it names a successor."
        }
        R::TrustUnannounced => {
            "Wait, if the authority has rotated: the key is used when it was announced for as long as the root says, counted from \
             the first statement with it that was accepted here. If the authority has announced nothing: have its root keys sign \
             the statement as well. If it knows nothing of the key: alarm, its statement key is stolen."
        }
        R::TrustSpkiMissing | R::TrustSpkiParse => {
            "Give the authority's bundle unchanged: the public key in this one is not the one that was stated."
        }
        R::NoKey => {
            "Let the device reach its gateway, or give it a bundle: `pithead-device key --bundle FILE`. Until then nothing is \
             sealed, and nothing that was sealed is lost."
        }
        R::EnvelopeUnsupportedVersion
        | R::EnvelopeUnsupportedSuite
        | R::EnvelopeMalformedHeader
        | R::EnvelopeSequence
        | R::EnvelopeIv
        | R::EnvelopeFinalTooLong
        | R::EnvelopeTruncated
        | R::EnvelopeTrailing => {
            "Look at the program that sealed it, with `pithead-decryptor inspect FILE` and docs/envelope.md. The same bytes will \
             always be refused."
        }
        R::EnvelopeEdk => {
            "Look with `inspect` which key it names. If that is right, the envelope was put together from two."
        }
        R::EnvelopeCommitment | R::EnvelopeHeaderTag | R::EnvelopeFrameTag => {
            "The bytes were changed after sealing, by a fault or by somebody. They are kept aside: compare with the sender's \
             copy, and look at what lies between."
        }
        R::ProfileContext | R::ProfileNumber | R::ProfileEdk => {
            "Look at the program that sealed it, with `pithead-decryptor inspect FILE` and docs/envelope.md, section 2."
        }
        R::KeyUnknown => {
            "Bring here the statement that names the key (`key history` shows those that are known), then let the device send \
             again: nothing is lost."
        }
        R::DeviceMismatch | R::SiteMismatch => {
            "Compare the certificate's name with the device's and the site's. A device sends its own envelopes alone."
        }
        R::EnvelopeTooLarge => "Send it as an upload: `pithead-device upload FILE`.",
        R::InflateLimit | R::ContentMalformed => {
            "Look at the envelope in the decryptor's refused folder, and at the program that sealed it."
        }
        R::SignatureInvalid => {
            "Alarm: the bytes were put together from two, or somebody without the device's key has sealed in its name. The \
             envelope is kept aside as evidence; look at what lies between the device and the decryptor."
        }
        R::SignatureRequired => {
            "The device has signed before, or is registered so. If it really has stopped signing, register that; if not, somebody \
             else has sealed in its name."
        }
        R::SignatureRevoked => {
            "Nothing, if the key was revoked because the device is gone: this is what it was revoked for. If the device is back, \
             give it a new key and register that."
        }
        R::SignatureKeyUnknown => {
            "Register the device's key at the decryptor: `pithead-decryptor device add`. What was refused before waits in the \
             gateway's refused area: `pithead-gateway refused retry` sends it again."
        }
        R::BundleMalformed => {
            "Look at who may write below bundles/ in the bucket. The object stays where it is, and the ledger names it; put what it \
             should have been beside it under another place, or have the gateway send the envelopes again."
        }
        R::RequestInvalid => {
            "Mend the client program: the message says which rule of the contract it breaks."
        }
        R::WindowExceeded => "Mend the client program: it sends more than the Welcome allows.",
        R::SpoolFull => {
            "Nothing on the device: it comes back by itself. On the gateway, see why it does not drain (`relay status`), or give \
             it more room ([spool] max_size)."
        }
        R::Throttled => {
            "Nothing, if it is rare. If one device is meant to be so fast, raise [ingest.per_device]."
        }
        R::Draining => "Wait. If it stays so, see `status` on that machine.",
        R::StandingBy => {
            "Nothing, if the device knows the other gateways of its site: it goes to the one that the message names. If none takes \
             envelopes, see `status` on each, and the NATS servers."
        }
        R::NotReady => {
            "Wait. If the message names a second code, that is what is waited for: explain it. If it stays so, see `status` on that \
             machine."
        }
        R::NotDurable => {
            "See the gateway's disk (`status`, the system's log). The device sends again by itself."
        }
        R::Conflict => {
            "Nothing, if a disk was restored from a copy: the device begins a new run. If not, two machines use one name: find \
             the other."
        }
        R::SeqJump => {
            "Begin a new run on the device. A number this far ahead is a fault of the client program."
        }
        R::TooManyGaps => "Let the device send its lowest missing number first, or declare the gaps.",
        R::TooManyStreams | R::TooManyRuns => {
            "Use fewer; a device that restarts all the time needs looking at."
        }
        R::TooManySessions => {
            "Wait; if it stays so, the device makes a data key for every message: look at the client program."
        }
        R::UploadsNotSupported => "Send smaller envelopes to this server.",
        R::UploadUnknown | R::UploadOffset | R::UploadFenced => {
            "Ask for the upload's state and go on from there; two writers of one upload take it from each other."
        }
        R::UploadNotYours => "Open an upload of its own for this device.",
        R::UploadComplete => "Nothing: it is all there.",
        R::TooManyUploads => "Finish or abort others first, or raise [uploads].",
        R::Checksum => {
            "Send the part again. If it comes often, look at the memory and the wire of the sender."
        }
        R::KeysNotReady => "Connect the source in [keys], or carry a bundle in with `key import`.",
        R::AuthorityUnknown | R::SiteUnknown => {
            "Compare the names in the configurations of both ends; a decryptor learns of a site by `site add`."
        }
        R::WatchReplaced => "Nothing: a newer connection of the same identity has taken over.",
        R::Internal => "Report it with the log of that program around this time.",
        R::CertificateRequired => "Give the program its certificate and key.",
        R::CertificateInvalid => {
            "Compare the certificate's CA, dates and name with what the other end expects; issue a new one if need be."
        }
        R::CertificateRevoked => {
            "Find out why it was revoked. If it was a mistake, issue a new certificate: a revoked one stays revoked."
        }
        R::RoleNotAllowed => "Use a certificate of the right role: device, gateway or operator.",
        R::ModeDowngrade => {
            "Connect with the device's certificate. If somebody else has come from that address, find out who."
        }
        R::AddressUnknown => {
            "Register the device's address (`pithead-gateway device add NAME --mode network`), or find out who comes from there."
        }
        R::EnrollTokenInvalid | R::EnrollTokenExpired => {
            "Compare what was typed; if it is right, ask for another token: `pithead-gateway device add`."
        }
        R::EnrollTokenUsed => {
            "If it was used by the same device after its folder was lost, ask for another token. If it was not, somebody else has \
             enrolled in its name: `pithead-gateway device revoke`."
        }
        R::DeviceUnknown => "See `device list` for the names that are known.",
        R::PassingOnRefused => {
            "If a gateway passes calls on here: give both the same site, a certificate of the site's CA that names it as a gateway, and the \
             spool engine `jetstream`. If it was a device: it claims to be another one. Look at it."
        }
        R::DeviceRevoked => "Give the vehicle another name: what was revoked is not given out again.",
        R::PeerUnreachable => "Check the address, that the other end runs, and what lies between.",
        R::PeerUntrusted => {
            "Compare the CA file and the expected name with the other end's certificate. If they should fit: somebody is in \
             between."
        }
        R::KmsDenied => "Check credentials, the role's policy and the key's policy.",
        R::KmsThrottled => "Wait; if it stays so, raise the account's quota of RSA operations.",
        R::KmsUnreachable => "Check the way to KMS: endpoint, DNS, proxy.",
        R::KmsKeyDisabled => "Enable the key until nothing that was sealed to it waits any more.",
        R::KmsKeyPendingDeletion => {
            "Cancel the deletion now (`aws kms cancel-key-deletion`): with the key everything sealed to it is gone."
        }
        R::KmsKeyNotFound => {
            "Compare the ARN with the account and region; a key that was deleted does not come back. Where private keys are files: \
             an [[unwrap.local]] for this ARN is missing, and the decryptor reads it at its start."
        }
        R::KmsKeyUnsuitable => "Make an RSA key with ENCRYPT_DECRYPT; its use cannot be changed later.",
        R::KmsInvalidCiphertext => {
            "The envelope is poison: look at it with `inspect`. If many are, look at the program that sealed them."
        }
        R::KmsFingerprint => {
            "Alarm: KMS and the authority name two keys. Find out which is wrong before anything else; devices seal to the one \
             that was signed."
        }
        R::KeyNotAllowed => "Allow the key ([keys] in the decryptor's configuration) if it is yours.",
        R::UnwrapBudget => {
            "Wait. If one device is behind it, it makes too many sessions: look at its program."
        }
        R::StoreDenied => {
            "Check the credentials, the machine's clock, and that their policy allows what the how-to on relaying through S3 lists."
        }
        R::StoreNotFound => "Make the bucket, or correct `url`, `region` and `endpoint`.",
        R::StoreThrottled => {
            "Wait; it is tried again with backoff. If it stays so, send larger bundles, or spread the sites over more prefixes."
        }
        R::StoreUnreachable => "Check the endpoint and the way to it. It is tried again by itself.",
        R::StoreUnsuitable => "Use a store that supports conditional writes (PUT with If-None-Match).",
        R::BundleForeign => {
            "Alarm: look who else writes there. If this spool was copied or restored from an older image, delete DATA/spool/id while the \
             gateway stands: it draws another one, and sends again what the cloud may have. Where gateways share their lanes, it lies with \
             these: see docs/how-to/replicate-a-site.md."
        }
        R::SinkFailed => "See the sink's disk or bucket. Nothing is lost: it is tried again.",
        R::ConfigInvalid | R::ConfigUnreadable => "Mend the file at the place that is shown.",
        R::PortTaken => "Stop the other program, or listen on another port.",
        R::DataDirUnwritable => "Mount the disk, or give the folder to the program's user.",
        R::DataDirLocked => "Stop the other process, or give each one a folder of its own.",
        R::DiskFull => "Make room. What is acknowledged is safe.",
        R::DiskFailed => "Look at the disk and the system's log; restart the program when it is mended.",
        R::StateDamaged => {
            "Start the program: it goes on from its last good copy where there is one. Then look at the disk."
        }
        R::SpoolUnsafe => {
            "Change the settings that the message names: of a stream with `nats stream edit`, of a server in its own file. A stream \
             that has to be made anew is removed when nothing waits in it; the gateway makes it at its next start."
        }
        R::WouldOverwrite => "Choose another folder, or move away what stands there.",
        R::ClockWrong => {
            "Set the clock, and have it kept right (chrony, systemd-timesyncd, PTP). Devices go on sealing, and what waits is \
             relayed: only dates that people read are wrong, and certificates may be refused."
        }
        R::OutboxFull => "Let the device reach its gateway, or raise [outbox] max_bytes.",
        R::SealingFailed => "Look at `pithead-device key`: a session needs a key that may be sealed to.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_explained_by_its_number_and_its_name() {
        let known: Vec<ErrorReason> =
            (1..10_000).filter_map(|number| ErrorReason::try_from(number).ok()).collect();
        assert_eq!(all().count(), known.len());
        for reason in known {
            let explained = Explanation::of(reason).expect("explained");
            assert!(explained.meaning.starts_with("// ") && explained.todo.ends_with('.'), "{reason:?}");
            assert!(!explained.section.is_empty(), "{reason:?}");
            assert!(explained.affects.ends_with('.') && explained.affects.len() > 10, "{reason:?}");
            let by_number = answer(Some(&reason.code())).expect("found");
            assert!(by_number.contains(reason.name()) && !by_number.contains("//"), "{by_number}");
            assert_eq!(answer(Some(&reason.name().to_lowercase())).as_ref(), Ok(&by_number));
        }
    }

    #[test]
    fn who_mistypes_is_told_what_may_have_been_meant() {
        let meant = answer(Some("trust_rolback")).expect_err("no such reason").to_string();
        assert!(meant.contains("did you mean PH-1014 TRUST_ROLLBACK?"), "{meant}");
        assert!(answer(Some("PH-9999")).is_err() && answer(Some("")).is_err());
        assert!(answer(None).expect("all").starts_with("Trust\n  PH-1001 TRUST_SIZE\n"));
    }

    #[test]
    fn an_explanation_says_what_it_is_and_what_to_do() {
        let text = answer(Some("1014")).expect("known");
        assert!(text.starts_with("PH-1014 TRUST_ROLLBACK  (Trust)\n"), "{text}");
        assert!(text.contains("  The statement is older than one already accepted: a replay.\n"), "{text}");
        assert!(text.contains("what to do   Nothing, if an old file was carried in by mistake."), "{text}");
        assert!(
            text.contains("gRPC         FailedPrecondition") && text.contains("exit code    1"),
            "{text}"
        );
    }
}

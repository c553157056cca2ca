//! Admission: from bytes and who sent them to an [`Admitted`] envelope. The one admission, at every hop.
//!
//! In order: size, custody, structure (strict, without a key), profile, the sender's right to speak for that device, and
//! whether the key was ever named in a statement accepted here. A key that has been retired or revoked since refuses
//! nothing, since the plaintext is gone: it is flagged. Nothing here remembers anything; duplicates are [`super::lines`]'.

use std::time::Duration;

use bytes::Bytes;
use pithead_proto::errors::v1::ErrorReason;
use pithead_proto::ingest::v1::Hop;
use pithead_sealing::Identity;
use pithead_sealing::envelope::{
    AdmittedEnvelope, FormatError, Header, LastSession, Profile, ProfileError, check,
};
use pithead_sealing::trust::KeyArn;
use sha2::{Digest as _, Sha256};

use super::pass;
use super::upload::{UPLOAD_MAX, header_hash};
use crate::backoff;
use crate::identity::{Assurance, GatewayName, Peer, Role};
use crate::status::Refusal;
use crate::trace::TraceParent;

/// Hops on the way here at most: sites can be chained, and a longer chain is a loop.
pub const HOPS_MAX: usize = 8;

/// What a sender is told to wait when there is no statement yet, before jitter.
const NOT_READY_WAIT: Duration = Duration::from_secs(10);

/// What the statements accepted here say of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Named, and active in the statement in force.
    Active,
    /// Named at some time, and not active now.
    NotActive,
    /// No accepted statement has ever named it.
    Unknown,
    /// No statement was accepted here yet: nobody can say. A refusal for good would cost the device its data.
    NotReady,
}

/// Every key that a statement accepted here has named: the gateway's key book, the decryptor's books.
pub trait KnownKeys: Send + Sync {
    /// What is known of this key for envelopes of `identity`'s site.
    fn standing(&self, arn: &KeyArn, identity: &Identity) -> Standing;

    /// True if that device is registered with a certificate: then a mere address does not speak for it.
    fn demands_certificate(&self, identity: &Identity) -> bool {
        let _ = identity;
        false
    }
}

/// An envelope that this hop may take. No constructor but [`admit`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Admitted {
    /// The envelope: bytes, header, profile, identity.
    pub envelope: AdmittedEnvelope,
    /// SHA-256 of the bytes, computed once, here.
    pub sha256: [u8; 32],
    /// A key of it is not active in the statement in force.
    pub key_not_active: bool,
    /// Custody as the sender tells it, the oldest first. It counts under the sender's certificate only.
    pub hops: Vec<Hop>,
    /// The last one that was admitted on this call is of the same session: its data keys are not new.
    pub same_session: bool,
    /// The span that it came in, if that is followed.
    pub trace: Option<TraceParent>,
}

impl Admitted {
    /// The envelope's bytes.
    pub fn bytes(&self) -> &Bytes {
        self.envelope.bytes()
    }

    /// What it is filed under.
    pub fn identity(&self) -> &Identity {
        self.envelope.identity()
    }

    /// What it says of itself.
    pub fn profile(&self) -> &Profile {
        self.envelope.profile()
    }

    /// True if a gateway on the way has seen other bytes under this identity.
    pub fn is_flagged_conflict(&self) -> bool {
        self.hops.iter().any(|hop| hop.conflict)
    }
}

/// Why an envelope was not admitted, and whose it says it is, as far as that could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotAdmitted {
    /// What the sender is told.
    pub refusal: Refusal,
    /// Present where structure and profile hold and the sender may speak for the device: the number counts as used.
    pub identity: Option<Box<Identity>>,
}

impl From<Refusal> for NotAdmitted {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, identity: None }
    }
}

/// Takes an envelope in, after those before it on the same call. `inline_max` is the largest one in bytes.
///
/// # Errors
/// [`NotAdmitted`]. `REQUEST_INVALID` is the client program's fault and ends its call; `KEYS_NOT_READY` is to be tried
/// again; everything else is for good.
pub fn admit(
    bytes: Bytes,
    hops: Vec<Hop>,
    peer: &Peer,
    keys: &dyn KnownKeys,
    inline_max: u64,
    last: &mut LastSession,
) -> Result<Admitted, NotAdmitted> {
    if bytes.is_empty() {
        return Err(Refusal::field("envelope", "is empty").into());
    }
    if bytes.len() as u64 > inline_max {
        let detail = format!("the envelope has {} bytes, above {inline_max}; use an upload", bytes.len());
        return Err(Refusal::new(ErrorReason::EnvelopeTooLarge, detail)
            .with("inline_bytes", inline_max)
            .into());
    }
    check_hops(&hops, peer)?;
    let checked = check(bytes).map_err(|error| refusal_of_format(&error))?;
    let (envelope, same_session) = checked.admit_after(last).map_err(|error| refusal_of_profile(&error))?;
    // Nothing is known of the session of one that is not admitted.
    let key_not_active =
        admit_profile(envelope.profile(), peer, keys).inspect_err(|_| *last = LastSession::default())?;
    let sha256 = Sha256::digest(envelope.bytes()).into();
    Ok(Admitted { envelope, sha256, key_not_active, hops, same_session, trace: None })
}

/// A large envelope that this hop may take, as far as its header tells. No constructor but [`admit_header`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AdmittedHeader {
    /// The header; claims until its tag holds.
    pub header: Header,
    /// What it says of the envelope.
    pub profile: Profile,
    /// SHA-256 of the header's bytes: what a large envelope is compared by.
    pub header_sha256: [u8; 32],
    /// Bytes of the whole envelope.
    pub total: u64,
    /// A key of it is not active in the statement in force.
    pub key_not_active: bool,
    /// Custody as the sender tells it, the oldest first.
    pub hops: Vec<Hop>,
}

/// Takes the header of a large envelope in; its structure is judged while it comes. The same rules as [`admit`].
///
/// # Errors
/// As [`admit`].
pub fn admit_header(
    bytes: Bytes,
    total: u64,
    hops: Vec<Hop>,
    peer: &Peer,
    keys: &dyn KnownKeys,
) -> Result<AdmittedHeader, NotAdmitted> {
    if bytes.is_empty() {
        return Err(Refusal::field("header", "is empty").into());
    }
    if total > UPLOAD_MAX {
        let detail = format!("the envelope has {total} bytes, above {UPLOAD_MAX}");
        return Err(Refusal::new(ErrorReason::EnvelopeTooLarge, detail).into());
    }
    check_hops(&hops, peer)?;
    let header = Header::parse(&bytes).map_err(|error| refusal_of_format(&error))?;
    if header.wire_len() != bytes.len() {
        return Err(Refusal::field("header", "goes on behind the header's tag").into());
    }
    header.sizes().of_total(total).map_err(|error| refusal_of_format(&error))?;
    let profile = Profile::of(&header).map_err(|error| refusal_of_profile(&error))?;
    let key_not_active = admit_profile(&profile, peer, keys)?;
    let header_sha256 = header_hash(&header);
    Ok(AdmittedHeader { header, profile, header_sha256, total, key_not_active, hops })
}

/// Whether the peer may send it, and whether its keys were ever named; true if one of them is not active now.
fn admit_profile(profile: &Profile, peer: &Peer, keys: &dyn KnownKeys) -> Result<bool, NotAdmitted> {
    let identity = profile.identity();
    no_downgrade(peer, identity, keys)?;
    may_speak(peer, identity)?;
    let mut key_not_active = false;
    for (arn, _) in profile.edks() {
        match keys.standing(arn, identity) {
            Standing::Active => {}
            Standing::NotActive => key_not_active = true,
            Standing::Unknown => {
                let refusal = refusal_of_profile(&ProfileError::KeyUnknown);
                return Err(NotAdmitted { refusal, identity: Some(Box::new(identity.clone())) });
            }
            Standing::NotReady => {
                let detail = "no key statement was accepted here yet; the envelope cannot be judged";
                let wait = backoff::spread(NOT_READY_WAIT, backoff::random());
                return Err(Refusal::new(ErrorReason::KeysNotReady, detail).retry_after(wait).into());
            }
        }
    }
    Ok(key_not_active)
}

/// A device tells no custody, a gateway tells it in a form that can be shown and stored, and one that passes a device's call on tells its own.
fn check_hops(hops: &[Hop], peer: &Peer) -> Result<(), Refusal> {
    if let Some(by) = &peer.passed_on_by {
        return pass::check_word(hops, peer, by);
    }
    if hops.is_empty() {
        return Ok(());
    }
    if peer.device().is_some() {
        // A device that could write custody could claim to come by a gateway that never saw it.
        return Err(Refusal::field("hops", "a device has none"));
    }
    if hops.len() > HOPS_MAX {
        return Err(Refusal::field("hops", "more than 8: is there a loop?"));
    }
    for hop in hops {
        if GatewayName::new(&hop.gateway).is_err() {
            return Err(Refusal::field("hops.gateway", "is not a gateway's name"));
        }
        if !matches!(hop.certificate_sha256.len(), 0 | 32) {
            return Err(Refusal::field("hops.certificate_sha256", "is not 32 bytes"));
        }
    }
    Ok(())
}

/// A device that has a certificate is not spoken for by an address, neither by its own nor by another device's. What a
/// gateway passes on is judged by the custody that travels with it.
fn no_downgrade(peer: &Peer, identity: &Identity, keys: &dyn KnownKeys) -> Result<(), Refusal> {
    let by_address = peer.assurance == Assurance::Claimed && peer.device().is_some();
    if !by_address || !keys.demands_certificate(identity) {
        return Ok(());
    }
    let detail = format!(
        "device {} is registered with a certificate; it is not taken from an address that names {}",
        identity.device, peer.id
    );
    Err(Refusal::new(ErrorReason::ModeDowngrade, detail))
}

/// A device for itself, a gateway for every device of its site, nobody else.
pub(super) fn may_speak(peer: &Peer, identity: &Identity) -> Result<(), Refusal> {
    if *peer.site() != identity.site {
        let detail =
            format!("the envelope is of site {}, the certificate of site {}", identity.site, peer.site());
        return Err(Refusal::new(ErrorReason::SiteMismatch, detail));
    }
    match peer.role() {
        Role::Device(device) if *device == identity.device => Ok(()),
        Role::Device(device) => {
            let detail =
                format!("the envelope is of device {}, the certificate of device {device}", identity.device);
            Err(Refusal::new(ErrorReason::DeviceMismatch, detail))
        }
        Role::Gateway(_) => Ok(()),
        Role::Operator(_) => {
            Err(Refusal::new(ErrorReason::RoleNotAllowed, "an operator's certificate sends no envelopes"))
        }
        Role::Applicant(_) => {
            Err(Refusal::new(ErrorReason::RoleNotAllowed, "who is not enrolled sends no envelopes"))
        }
    }
}

/// The refusal for bytes that are no envelope.
pub fn refusal_of_format(error: &FormatError) -> Refusal {
    Refusal::new(reason_of_format(error), error.to_string())
}

/// The refusal for an envelope that is not one of ours.
pub fn refusal_of_profile(error: &ProfileError) -> Refusal {
    Refusal::new(reason_of_profile(error), error.to_string()).with("rule", error.code())
}

/// The registry's reason for a class of the reader's refusals.
pub fn reason_of_format(error: &FormatError) -> ErrorReason {
    let name = error.class().to_ascii_uppercase().replace('-', "_");
    // The classes are the registry's names: the test below asks for all of them.
    ErrorReason::from_name(&format!("ENVELOPE_{name}")).unwrap_or(ErrorReason::Internal)
}

/// The registry's reason for a rule of the profile.
pub fn reason_of_profile(error: &ProfileError) -> ErrorReason {
    match error {
        ProfileError::KeyUnknown => ErrorReason::KeyUnknown,
        ProfileError::NoIdentity => ErrorReason::ProfileNumber,
        ProfileError::BadValue(pithead_sealing::envelope::ContextKey::Seq) => ErrorReason::ProfileNumber,
        ProfileError::EdkProvider | ProfileError::EdkKeyArn => ErrorReason::ProfileEdk,
        // Every other rule is about the context.
        _ => ErrorReason::ProfileContext,
    }
}

#[cfg(test)]
mod tests {
    use pithead_sealing::envelope::{EdkFault, HeaderFault};

    use super::*;

    #[test]
    fn every_class_of_the_reader_has_its_reason() {
        let classes = [
            FormatError::UnsupportedVersion { found: 1 },
            FormatError::UnsupportedSuite { found: 1 },
            FormatError::MalformedHeader(HeaderFault::ContextUtf8),
            FormatError::Edk(EdkFault::NoneOurs),
            FormatError::Commitment,
            FormatError::HeaderTag,
            FormatError::Sequence { expected: 1, found: 2 },
            FormatError::Iv { frame: 1 },
            FormatError::FrameTag { frame: 1 },
            FormatError::FinalTooLong { length: 2, frame_length: 1 },
            FormatError::Truncated,
            FormatError::Trailing,
        ];
        let mut reasons: Vec<_> = classes.iter().map(|error| reason_of_format(error) as i32).collect();
        reasons.sort_unstable();
        reasons.dedup();
        assert_eq!(reasons, (2001..=2012).collect::<Vec<_>>());
    }

    /// One device has a certificate.
    struct Registered;

    impl KnownKeys for Registered {
        fn standing(&self, _: &KeyArn, _: &Identity) -> Standing {
            Standing::Active
        }

        fn demands_certificate(&self, identity: &Identity) -> bool {
            identity.device.as_str() == "truck-1"
        }
    }

    #[test]
    fn an_address_speaks_for_no_device_that_has_a_certificate_not_even_its_own() {
        let site = pithead_sealing::Site::new("pit-7").expect("a site");
        let id = |name: &str| pithead_sealing::DeviceId::new(name).expect("a device");
        let of = |name: &str| Identity {
            site: site.clone(),
            device: id(name),
            stream: pithead_sealing::StreamName::new("can").expect("a stream"),
            run: pithead_sealing::Run::from_parts(1, 1).expect("a run"),
            seq: pithead_sealing::Seq::FIRST,
        };
        let claimed = |name: &str| Peer::at_address(site.clone(), id(name));
        let vouched = |name: &str| Peer { assurance: Assurance::Vouched, ..claimed(name) };
        for peer in [claimed("truck-1"), claimed("pump-1")] {
            let refused = no_downgrade(&peer, &of("truck-1"), &Registered).expect_err("a downgrade");
            assert_eq!(refused.reason, ErrorReason::ModeDowngrade);
        }
        no_downgrade(&claimed("pump-1"), &of("pump-1"), &Registered).expect("its own address");
        no_downgrade(&vouched("truck-1"), &of("truck-1"), &Registered).expect("its own certificate");
        let id = crate::identity::PeerId::from_uri("spiffe://pit-7/gateway/gw-1").expect("a gateway");
        let gateway =
            Peer { id, certificate_sha256: None, assurance: Assurance::Claimed, passed_on_by: None };
        no_downgrade(&gateway, &of("truck-1"), &Registered)
            .expect("custody speaks for what a gateway brings");
    }
}

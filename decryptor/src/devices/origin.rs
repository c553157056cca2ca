//! What a session signature proves of an envelope's sender, and what the registry does about it.

use super::{Devices, Policy};
use crate::unwrap::SessionKey;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::Identity;
use pithead_sealing::envelope::open::Unlocked;
use pithead_sealing::envelope::{Profile, SessionVerdict};
use pithead_sealing::trust::Kid;
use std::borrow::Cow;

/// Who sealed an envelope, as far as its session tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// It does not tell: whoever may submit for the device can have sealed it.
    Unsigned,
    /// It is signed by a key that the registry does not have: no proof, and no contradiction.
    UnknownKey(Kid),
    /// The device's key of this name, whatever became of the key since.
    Signed(Kid),
}

impl Origin {
    /// The word in the sink's lines and in the metrics.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Unsigned => "unsigned",
            Self::UnknownKey(_) => "unknown-key",
            Self::Signed(_) => "signed",
        }
    }

    /// The key that it names, proven only where it is signed.
    #[must_use]
    pub const fn kid(&self) -> Option<Kid> {
        match self {
            Self::Unsigned => None,
            Self::UnknownKey(kid) | Self::Signed(kid) => Some(*kid),
        }
    }
}

/// Why an envelope is set aside for what its session signature says or does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Barred {
    /// The signature does not hold.
    Invalid,
    /// There is none, and this device signs.
    Unsigned,
    /// It holds, and its key was revoked.
    Revoked(Kid),
    /// It is by a key that the registry does not have, and this device signs.
    UnknownKey(Kid),
}

impl Barred {
    /// The reason in the registry of reasons.
    #[must_use]
    pub const fn reason(&self) -> ErrorReason {
        match self {
            Self::Invalid => ErrorReason::SignatureInvalid,
            Self::Unsigned => ErrorReason::SignatureRequired,
            Self::Revoked(_) => ErrorReason::SignatureRevoked,
            Self::UnknownKey(_) => ErrorReason::SignatureKeyUnknown,
        }
    }

    /// For a person.
    #[must_use]
    pub fn detail(&self) -> Cow<'static, str> {
        match self {
            Self::Invalid => "the session signature was not made for this session, device, run and key".into(),
            Self::Unsigned => "this device signs its sessions, and this one is not signed".into(),
            Self::Revoked(kid) => format!("the session is signed by the key {kid}, which was revoked").into(),
            Self::UnknownKey(kid) => format!(
                "the session is signed by the key {kid}, which is not registered for this device; register it with \
                 `pithead-decryptor device add`, then have the gateway send the envelope again"
            )
            .into(),
        }
    }
}

/// What the session signature of an unlocked envelope proves. One verification for each data key and state of the registry.
///
/// # Errors
/// [`Barred::Invalid`].
pub fn prove(
    unlocked: &Unlocked,
    profile: &Profile,
    session: &SessionKey,
    devices: &Devices,
) -> Result<Origin, Barred> {
    let identity = profile.identity();
    let registered = |kid: &Kid| devices.key(&identity.site, &identity.device, kid);
    let kept = session.verdict(devices.generation(), || unlocked.verdict_of_session(registered));
    let kid = profile.signature().map(|claim| claim.kid);
    match (unlocked.verdict_again(kept), kid) {
        (SessionVerdict::Unsigned, _) => Ok(Origin::Unsigned),
        (SessionVerdict::UnknownKey, Some(kid)) => Ok(Origin::UnknownKey(kid)),
        // Whether a key is revoked is asked of the registry as it stands when the envelope is entered.
        (SessionVerdict::Signed | SessionVerdict::SignedByRevoked, Some(kid)) => Ok(Origin::Signed(kid)),
        (SessionVerdict::Invalid, _) | (_, None) => Err(Barred::Invalid),
    }
}

impl Devices {
    /// Whether an envelope of this origin is set aside. `has_signed` tells of a key whether something signed by it was applied.
    #[must_use]
    pub fn bar(
        &self,
        identity: &Identity,
        origin: &Origin,
        has_signed: impl Fn(&Kid) -> bool,
    ) -> Option<Barred> {
        let device = self.get(&identity.site, &identity.device)?;
        let signs = || device.policy == Policy::Required || device.kids().any(|kid| has_signed(&kid));
        match origin {
            Origin::Signed(kid) => match device.revoked(kid) {
                Some(false) => None,
                Some(true) => Some(Barred::Revoked(*kid)),
                // It was taken out of the registry a moment ago.
                None => Some(Barred::UnknownKey(*kid)),
            },
            Origin::UnknownKey(kid) => signs().then_some(Barred::UnknownKey(*kid)),
            Origin::Unsigned => signs().then_some(Barred::Unsigned),
        }
    }
}

//! Who sealed: the session signature, checked against keys that the caller already knows (envelope document, 2.4).

use subtle::ConstantTimeEq;

use super::opening::Unlocked;
use crate::envelope::profile::{ContextFacts, SignatureClaim};
use crate::envelope::signature::DeviceVerifyingKey;
use crate::names::DeviceId;
use crate::trust::Kid;

/// What is known of the origin of an envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SessionVerdict {
    /// Signed by a registered key of this device.
    Signed,
    /// Signed by a key of this device that has been revoked since.
    SignedByRevoked,
    /// Not signed: whoever may submit for the device can have sealed it.
    Unsigned,
    /// Carries a signature by a key that the registry does not know: whether it holds is not known. All that can be judged
    /// without the key is as it should be.
    UnknownKey,
    /// Carries a signature that does not hold, or that its registered key made for another device.
    Invalid,
}

/// A device key as the caller's own registry holds it. Never from a certificate that came with the envelope.
#[derive(Debug, Clone)]
pub struct RegisteredKey {
    /// The device that it was registered for.
    pub device: DeviceId,
    /// The key.
    pub key: DeviceVerifyingKey,
    /// True once it was revoked.
    pub revoked: bool,
}

impl Unlocked {
    /// Judges the session signature for this message; `registered` looks a key up by name in the registry.
    pub fn session_verdict(&self, registered: impl FnOnce(&Kid) -> Option<RegisteredKey>) -> SessionVerdict {
        self.verdict_again(self.verdict_of_session(registered))
    }

    /// Judges the session, with this EDK, context and data key. The answer may be kept with the data key until the registry
    /// changes; what it means for a message, this one included, is said by [`Unlocked::verdict_again`].
    pub fn verdict_of_session(
        &self,
        registered: impl FnOnce(&Kid) -> Option<RegisteredKey>,
    ) -> SessionVerdict {
        let context = self.header.context();
        let carries_any =
            ["kid", "run", "sid", "sig"].iter().any(|key| context.get(&format!("pithead:{key}")).is_some());
        if !carries_any {
            return SessionVerdict::Unsigned;
        }
        let Ok(facts) = ContextFacts::read(context) else { return SessionVerdict::Invalid };
        let Some(claim) = &facts.signature else { return SessionVerdict::Invalid };
        // Whoever copies a signature to a session of their own does not know the data key behind it.
        if !bool::from(self.data_key.session_id().ct_eq(&claim.sid)) {
            return SessionVerdict::Invalid;
        }
        let Some(registered) = registered(&claim.kid) else { return SessionVerdict::UnknownKey };
        let holds = registered.device == facts.device
            && registered.key.kid() == claim.kid
            && registered.key.verifies(self.arn.as_str(), context, &claim.sig);
        match (holds, registered.revoked) {
            (false, _) => SessionVerdict::Invalid,
            (true, false) => SessionVerdict::Signed,
            (true, true) => SessionVerdict::SignedByRevoked,
        }
    }

    /// Applies the verdict kept for this message's session (same EDK hash and context digest) to this message: a signed
    /// session vouches for the messages of its own run alone, and has one EDK.
    pub fn verdict_again(&self, kept: SessionVerdict) -> SessionVerdict {
        match kept {
            SessionVerdict::Unsigned | SessionVerdict::Invalid => kept,
            SessionVerdict::Signed | SessionVerdict::SignedByRevoked | SessionVerdict::UnknownKey => {
                let facts = ContextFacts::read(self.header.context());
                let fits = facts.is_ok_and(|facts| facts.signature.is_some_and(|claim| self.fits(&claim)));
                if fits { kept } else { SessionVerdict::Invalid }
            }
        }
    }

    /// One EDK, and the message id of the run that was signed.
    fn fits(&self, claim: &SignatureClaim) -> bool {
        self.header.edks().len() == 1 && self.header.message_id().run() == Ok(claim.run)
    }
}

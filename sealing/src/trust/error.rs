//! The refusals of trust, each with its code in capitals.
//!
//! The codes are normative (the conformance vectors compare them) and are values of the registry of
//! reasons on the wire. They say which check failed and nothing of what the sender wrote.

macro_rules! trust_errors {
    ($($(#[doc = $doc:literal])+ $variant:ident = $code:literal, $text:literal;)+) => {
        /// Why a root, a statement, an SPKI or a stored state was refused, or no key may be used.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
        #[non_exhaustive]
        pub enum TrustError {
            $($(#[doc = $doc])+ #[error($text)] $variant,)+
        }

        impl TrustError {
            /// Every refusal, in the order of the checks.
            pub const ALL: &[TrustError] = &[$(TrustError::$variant),+];

            /// The code in capitals, the same in every implementation.
            pub fn code(self) -> &'static str {
                match self {
                    $(TrustError::$variant => $code,)+
                }
            }
        }
    };
}

trust_errors! {
    /// An object is longer than 16,384 bytes.
    Size = "SIZE", "a signed object is longer than 16384 bytes";
    /// Not strict deterministic CBOR of the expected form, or over a limit.
    Parse = "PARSE", "not the strict encoding of a signed object, or over a limit";
    /// A root where a statement belongs, or the reverse.
    Type = "TYPE", "the object's type is not the expected one";
    /// The root's structure: keys, kids, roles, thresholds, policy.
    RootKeys = "ROOT_KEYS", "the root's keys, roles or policy are not well formed";
    /// Another authority than the one provisioned.
    Authority = "AUTHORITY", "the object is of another authority";
    /// The root's version is not exactly one above ours.
    RootVersion = "ROOT_VERSION", "the root's version is not the next one";
    /// The root does not follow on ours.
    RootPrev = "ROOT_PREV", "the root does not name the digest of the root before it";
    /// An epoch that does not follow, or a root issued before its predecessor.
    Epoch = "EPOCH", "the epoch does not follow";
    /// Too few signatures of the root keys in force.
    ThresholdOld = "THRESHOLD_OLD", "too few of the present root keys have signed the new root";
    /// Too few signatures of the new root's own root keys.
    ThresholdNew = "THRESHOLD_NEW", "too few of the root's own root keys have signed it";
    /// Too few signatures of statement keys.
    Threshold = "THRESHOLD", "too few statement keys have signed the statement";
    /// The statement is for other sites.
    Audience = "AUDIENCE", "the statement is not for this site";
    /// The statement was made under a root that is not here yet.
    NeedRoot = "NEED_ROOT", "the statement needs a newer root";
    /// An older statement than the stored one.
    Rollback = "ROLLBACK", "the statement is older than the stored one";
    /// Two statements with one sequence number: somebody signs twice. Raise an alarm.
    Equivocation = "EQUIVOCATION", "another statement with the stored one's sequence number";
    /// The next sequence number, but not chained to ours.
    Fork = "FORK", "the next statement does not follow on the stored one";
    /// Times out of order, outside the root's life or longer than policy.
    Validity = "VALIDITY", "times are out of order, outside the root's life or longer than policy";
    /// Issued in the future of a trusted clock.
    NotYetValid = "NOT_YET_VALID", "the statement is issued in the future";
    /// The statement, or the root above it, has expired.
    Expired = "EXPIRED", "expired";
    /// A suite that policy does not allow.
    KeyAlg = "KEY_ALG", "a key's suite is not allowed by policy";
    /// A modulus that policy does not allow.
    KeyBits = "KEY_BITS", "a key's length is not allowed by policy";
    /// A key of the root's denylist is listed as other than revoked.
    KeyDenylisted = "KEY_DENYLISTED", "a key is on the root's denylist";
    /// An ARN with another fingerprint than before, or a fingerprint with another ARN.
    KidRebind = "KID_REBIND", "an ARN or a fingerprint is bound to another one than before";
    /// A status that falls, or a revocation that vanishes.
    KeyTransition = "KEY_TRANSITION", "a key's status may not change so";
    /// No active key that may still seal.
    NoActive = "NO_ACTIVE", "no active key may still be sealed to";
    /// Active keys, but none announced for long enough. Raise an alarm.
    Unannounced = "UNANNOUNCED", "no active key has been announced for long enough";
    /// No SPKI with the fingerprint of the chosen key.
    SpkiMissing = "SPKI_MISSING", "no public key with the stated fingerprint";
    /// The chosen key's SPKI is not the RSA key that the statement describes.
    SpkiParse = "SPKI_PARSE", "the public key is not the RSA key that the statement describes";
    /// There is no key to seal to: none stored, past its seal_until, or denylisted.
    NoKey = "NO_KEY", "there is no key that may be sealed to";
    /// A stored state that is damaged, of a newer format, or of another device.
    State = "STATE", "the stored state cannot be read";
}

impl TrustError {
    /// True if the refusal is evidence of a stolen key or a hostile gateway: raise an alarm.
    pub fn is_alarm(self) -> bool {
        matches!(self, TrustError::Equivocation | TrustError::Unannounced | TrustError::Fork)
    }
}

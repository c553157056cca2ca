//! What a sink is given: one opened envelope, and what is known of its way here.

use crate::content::Content;
use crate::devices::Origin;
use pithead_hop::identity::Assurance;
use pithead_sealing::Identity;
use serde::{Serialize, Serializer};
use std::fmt;
use std::sync::Arc;

/// One gateway's word on how it got the envelope. It counts under the authenticated certificate of who appended it, and
/// never raises the assurance above vouched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hop {
    /// The gateway's name.
    pub gateway: String,
    /// When it took the envelope in, by its own clock, in microseconds since 1970.
    pub received_us: u64,
    /// How it knew its sender.
    #[serde(serialize_with = "spell")]
    pub assurance: Assurance,
    /// SHA-256 of its sender's certificate in hex; empty in network mode.
    pub certificate_sha256: String,
    /// The key was not active any more when this gateway took the envelope in.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub key_not_active: bool,
    /// Other bytes had come under this identity there.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub conflict: bool,
}

/// The word that the sink's lines and the screens use.
#[must_use]
pub const fn word(assurance: Assurance) -> &'static str {
    match assurance {
        Assurance::Claimed => "claimed",
        Assurance::Vouched => "vouched",
        Assurance::Signed => "signed",
    }
}

pub(super) fn spell<S: Serializer>(assurance: &Assurance, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(word(*assurance))
}

/// What is known of an envelope's way here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Custody {
    /// How sure it is that the device named in the identity sent it.
    pub assurance: Assurance,
    /// Oldest first.
    pub hops: Arc<[Hop]>,
    /// When this program took it in, in microseconds since 1970.
    pub received_us: u64,
}

/// One opened envelope.
#[derive(Clone)]
pub struct Delivery {
    /// Under what it is filed, for ever.
    pub identity: Identity,
    /// SHA-256 of the sealed bytes.
    pub envelope_sha256: [u8; 32],
    /// What the seal held.
    pub content: Content,
    /// How it came here.
    pub custody: Custody,
    /// Who sealed it, as its session signature tells.
    pub origin: Origin,
}

impl fmt::Debug for Delivery {
    // No content: plaintext goes to the sink and into no log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("identity", &self.identity)
            .field("plaintext_bytes", &self.content.plaintext_len())
            .field("custody", &self.custody)
            .field("origin", &self.origin)
            .finish_non_exhaustive()
    }
}

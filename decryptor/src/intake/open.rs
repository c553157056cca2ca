//! From an admitted envelope and its data key to what a sink takes.

use super::answer::Again;
use super::scribe::Opened;
use crate::content::{Content, Encoding};
use crate::ledger::record::{Applied, Said};
use crate::sink::{Custody, Delivery};
use crate::unwrap::{Class, Sender, UnwrapError};
use bytes::Bytes;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::Identity;
use pithead_sealing::envelope::open::{Chosen, OpenError, Opening};
use pithead_sealing::envelope::{FormatError, Header, Profile, Unwrapped};
use pithead_sealing::trust::KeyArn;
use std::borrow::Cow;
use std::time::Duration;

/// When somebody has to mend a policy or a key: asking every second would only fill logs.
const OPERATOR_RETRY: Duration = Duration::from_secs(60);

/// An admitted envelope on its way through the pipeline.
#[derive(Debug, Clone)]
pub struct Parcel {
    /// The whole envelope.
    pub sealed: Bytes,
    /// Its header; claims until it is unlocked.
    pub header: Header,
    /// What the header's context says.
    pub profile: Profile,
    /// SHA-256 of the whole envelope.
    pub sha256: [u8; 32],
    /// Its key is not active by the statement in force.
    pub key_not_active: bool,
    /// How it came here.
    pub custody: Custody,
    /// Who asks for the data key.
    pub sender: Sender,
}

impl Parcel {
    /// Under what it is filed.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        self.profile.identity()
    }
}

/// Why an envelope does not go to the sink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stopped {
    /// It has to come again.
    Again(Again),
    /// It is poison.
    Poison {
        /// Why.
        reason: ErrorReason,
        /// For a person.
        detail: Cow<'static, str>,
    },
}

impl Stopped {
    fn poison(reason: ErrorReason, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::Poison { reason, detail: detail.into() }
    }
}

impl From<FormatError> for Stopped {
    fn from(error: FormatError) -> Self {
        Self::poison(pithead_hop::ingest::admit::reason_of_format(&error), error.to_string())
    }
}

impl From<UnwrapError> for Stopped {
    fn from(error: UnwrapError) -> Self {
        let reason = error.reason();
        // The cause may name accounts and endpoints: it is logged here and not told.
        tracing::warn!(event = "unwrap.failed", reason = reason.name(), code = reason.code(), %error);
        match error.class() {
            Class::Poison => Self::poison(reason, error.to_string()),
            Class::Later(retry_after) => Self::Again(Again {
                reason,
                detail: "the data key could not be unwrapped now; send it again".into(),
                retry_after,
            }),
            // Nothing is wrong with the envelope. Under the reason itself the sender would put it aside for good.
            Class::Operator => Self::Again(Again {
                reason: ErrorReason::NotReady,
                detail: format!(
                    "{} {}: the cloud team has to mend a key or its policy; send it again then",
                    reason.code(),
                    reason.name()
                )
                .into(),
                retry_after: OPERATOR_RETRY,
            }),
        }
    }
}

/// Chooses the EDK that policy allows.
pub fn choose(parcel: &Parcel, allowed: impl FnMut(&KeyArn) -> bool) -> Result<Chosen, Stopped> {
    match Opening::of(parcel.header.clone()).choose(allowed) {
        Ok(chosen) => Ok(chosen),
        Err(OpenError::Format(error)) => Err(error.into()),
        Err(_) => Err(UnwrapError::KeyNotAllowed.into()),
    }
}

/// Opens and decodes. Computes for as long as the envelope is large; up to [`INLINE_BYTES`] it may be called on a thread that
/// serves connections.
pub fn open(parcel: &Parcel, chosen: Chosen, data_key: &Unwrapped) -> Result<Opened, Stopped> {
    let body = parcel.sealed.slice(parcel.header.wire_len()..);
    let plaintext = chosen.unlock(data_key)?.open_body(&body)?;
    let encoding = if parcel.profile.encoding().is_some() { Encoding::Zstd } else { Encoding::Identity };
    let sealed_bytes = parcel.sealed.len() as u64;
    let content =
        Content::decode(parcel.profile.content_type().as_str(), encoding, plaintext.into(), sealed_bytes)
            .map_err(|error| Stopped::poison(error.reason(), error.to_string()))?;
    let said = content.batch().and_then(Said::of);
    let delivery = Delivery {
        identity: parcel.identity().clone(),
        envelope_sha256: parcel.sha256,
        content,
        custody: parcel.custody.clone(),
    };
    let applied = Applied::of(&delivery, sealed_bytes, parcel.key_not_active, parcel.profile.statement());
    Ok(Opened { delivery, applied, said })
}

/// Sealed bytes that are opened where they are: some 50 us of work. Above, and for anything compressed, a blocking thread
/// takes it.
pub const INLINE_BYTES: usize = 64 << 10;

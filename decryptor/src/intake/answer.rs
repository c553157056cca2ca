//! How an envelope ends, as everyone who waits for it hears it.

use pithead_hop::backoff;
use pithead_hop::status::Refusal;
use pithead_proto::errors::v1::ErrorReason;
use std::borrow::Cow;
use std::time::Duration;

/// What became of an envelope, durable when it is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// Its plaintext is in the sink, and its identity in the ledger.
    Applied,
    /// Other bytes stand under its identity.
    Conflict {
        /// Whether its bytes are kept beside.
        kept: bool,
    },
    /// Nothing will ever open it, or it is not what it says.
    Refused {
        /// Why.
        reason: ErrorReason,
        /// For a person.
        detail: Cow<'static, str>,
    },
}

/// It was not applied and has to be sent again. Nothing is known of it afterwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Again {
    /// Why.
    pub reason: ErrorReason,
    /// For a person.
    pub detail: Cow<'static, str>,
    /// How long to wait before it makes sense.
    pub retry_after: Duration,
}

impl From<Again> for Refusal {
    fn from(again: Again) -> Self {
        let wait = backoff::spread(again.retry_after, backoff::random());
        Self::new(again.reason, again.detail).retry_after(wait)
    }
}

/// How an envelope ends.
pub type Answer = Result<Done, Again>;

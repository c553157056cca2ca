//! What happens to an admitted envelope.
//!
//! ```text
//! offer ── lines: new? ──┬─ duplicate ─────────────────────────> ticket of the first, or answered at once
//!                        ├─ conflict ───────────────────┐
//!                        └─ new ── take a turn ── carry: unwrap (concurrently) ── wait for the turn ── open ──┐
//!                                                       └────────────────────────────> scribe <──────────────┘
//!                                                          sink ── aside ── ledger ── books ── answer
//! ```
//! - **Order** within a line is kept by turns; a line waits for nobody else's data key.
//! - **Retryable failures** (KMS throttled or away, a denied or disabled key, a full disk) apply nothing: the envelope and
//!   those behind it on its line are answered with "send it again", and the sender, which has them on disk, does.
//! - **Poison** is kept aside with its reason, refused in-band, and its line goes on. Its identity is not taken: nothing of
//!   its header was authentic, and a good copy may still come.
//! - **Everything is bounded**: sealed bytes under way in all ([`pipeline::Pipeline::offer`] refuses beyond), data keys by the cache's
//!   budgets, openers and plaintext bytes by permits, the scribe's queue by its length.

pub mod answer;
pub mod open;
pub mod opener;
pub mod pipeline;
pub mod registry;
pub mod scribe;
pub mod service;
pub mod turn;

#[cfg(test)]
mod tests;

use answer::Again;
use pithead_proto::errors::v1::ErrorReason;
use std::time::Duration;

/// Whoever had it is gone without a word: the disk failed, or the program is stopping.
pub(crate) fn lost() -> Again {
    Again {
        reason: ErrorReason::NotDurable,
        detail: "the decryptor stopped before the envelope was safe; send it again".into(),
        retry_after: pipeline::DRAINING_RETRY,
    }
}

/// One before it on its line has to come again, and so has this one, after it.
fn behind() -> Again {
    Again {
        reason: ErrorReason::NotReady,
        detail: "an envelope before it on its line has to be sent again first".into(),
        retry_after: Duration::from_secs(1),
    }
}

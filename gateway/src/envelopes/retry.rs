//! Sending again what the far end had refused: out of the refused area, through the numbers in force, back into the spool.
//!
//! The entry leaves the area only when the envelope is durable in the spool. A kill in between leaves it in both, and what
//! goes out twice is a duplicate at the far end.

use std::sync::Arc;

use pithead_hop::ingest::{LineRefusal, Outcome};
use pithead_spool::{AppendError, NotDurable};

use super::fate::undecided;
use super::numbers::{Numbers, Offered};
use super::record::Body;
use super::refused::{Refused, TakeError};
use super::spool::EnvelopeSpool;
use crate::clock::{since_boot, wall_ms};

/// Why an envelope was not put back. It stays in the refused area.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RetryError {
    /// The area does not give it, or does not let it go.
    #[error(transparent)]
    Take(#[from] TakeError),
    /// A bound of the device's lines.
    #[error("{0}")]
    Line(#[from] LineRefusal),
    /// Other bytes stand under its number, and there is no room beside them.
    #[error("other bytes stand under its number, and there is no room beside them")]
    NoRoomBeside,
    /// The spool does not take it.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// It did not become durable.
    #[error(transparent)]
    NotDurable(#[from] NotDurable),
    /// The program stops.
    #[error("the gateway stops")]
    Stopping,
}

/// What sends again. Clones are the same.
#[derive(Debug, Clone)]
pub struct Retry {
    /// Where it lies.
    pub refused: Arc<Refused>,
    /// What is known of its line.
    pub numbers: Numbers,
    /// Where it goes.
    pub spool: EnvelopeSpool,
}

impl Retry {
    /// Puts the entry of this name back into the spool. When this returns it waits there, durable.
    ///
    /// # Errors
    /// [`RetryError`].
    pub async fn send_again(&self, name: &str) -> Result<(), RetryError> {
        let (area, wanted) = (self.refused.clone(), name.to_owned());
        let taken = tokio::task::spawn_blocking(move || area.take_out(&wanted)).await;
        let taken = taken.map_err(|_| RetryError::Stopping)??;
        let (tell, told) = undecided();
        let bytes = taken.envelope.len() as u64;
        let failures = self.spool.failures(&taken.head.identity.line());
        match self.numbers.offer_again(&taken.head, taken.conflict, bytes, since_boot(), told, failures)? {
            Offered::Done(Outcome::Conflict { kept: false }) => return Err(RetryError::NoRoomBeside),
            // It waits there already.
            Offered::Done(_) => {}
            Offered::Shared(ticket, _) => ticket.await?,
            // Large ones are not kept beside others.
            Offered::Store(reservation) if taken.large.is_some() && reservation.is_conflict() => {
                return Err(RetryError::NoRoomBeside);
            }
            Offered::Store(reservation) => {
                let (mut head, conflict) = (taken.head.clone(), reservation.is_conflict());
                if let Some(ours) = head.hops.last_mut() {
                    ours.conflict = conflict;
                }
                let share = self.numbers.share_again(&head, bytes);
                let body = match taken.large {
                    Some(total) => Body::Large { total },
                    None if conflict => Body::Conflict(taken.envelope.clone()),
                    None => Body::Envelope(taken.envelope.clone()),
                };
                let ticket = self.spool.append(&head, body, wall_ms(), reservation.failures())?;
                ticket.await?;
                share.keep();
                reservation.stored();
                // Whoever resent the same bytes meanwhile is answered as well.
                tell.decide(Ok(()));
            }
        }
        let let_go = tokio::task::spawn_blocking(move || taken.let_go()).await;
        let_go.map_err(|_| RetryError::Stopping)??;
        Ok(())
    }
}

//! Back into the spool, through the numbers in force: what the far end had refused, out of the refused area, and large envelopes
//! whose record was lost.
//!
//! The entry leaves the area only when the envelope is durable in the spool. A kill in between leaves it in both, and what
//! goes out twice is a duplicate at the far end. Where several gateways share the lanes, the one that owns them alone does this.

use std::io;
use std::sync::Arc;

use pithead_hop::ingest::{LineRefusal, Outcome, SealedFile, UploadStore};
use pithead_sealing::Identity;
use pithead_spool::{AppendError, NotDurable};
use sha2::{Digest as _, Sha256};

use super::copies::{Copies, CopyError};
use super::fate::undecided;
use super::numbers::{Numbers, Offered};
use super::record::{Body, Head};
use super::refused::{Refused, TakeError, TakenOut};
use super::spool::{Elsewhere, EnvelopeSpool};
use crate::clock::{since_boot, wall_ms};

/// Why an envelope was not put back. It stays in the refused area.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RetryError {
    /// The area does not give it, or does not let it go.
    #[error(transparent)]
    Take(#[from] TakeError),
    /// The file of a large one cannot be read.
    #[error("the file of the large envelope in DATA/uploads cannot be read: {0}")]
    Unreadable(#[source] io::Error),
    /// There is no copy of a large one, where there has to be one.
    #[error(transparent)]
    Copy(#[from] CopyError),
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
    /// Another gateway owns the lanes, and the area with them.
    #[error("this gateway stands by: {0}; give the command there")]
    StandingBy(Elsewhere),
    /// The program stops.
    #[error("the gateway stops; give the command again when it runs")]
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
    /// Where the bytes of large ones are.
    pub uploads: UploadStore,
    /// Where copies of them are, if several gateways share the lanes.
    pub copies: Option<Copies>,
}

impl Retry {
    /// Puts the entry of this name back into the spool. When this returns it waits there, durable.
    ///
    /// # Errors
    /// [`RetryError`].
    pub async fn send_again(&self, name: &str) -> Result<(), RetryError> {
        if let Some(elsewhere) = self.spool.elsewhere() {
            return Err(RetryError::StandingBy(elsewhere));
        }
        let (area, wanted) = (self.refused.clone(), name.to_owned());
        let taken = tokio::task::spawn_blocking(move || area.take_out(&wanted)).await;
        let taken = taken.map_err(|_| RetryError::Stopping)??;
        let mut head = taken.head.clone();
        if taken.large.is_some() {
            let file = self.whole_file(&taken).await?;
            self.copy_anew(&mut head, file).await?;
        }
        let (large, envelope) = (taken.large, taken.envelope.clone());
        self.put_back(head, taken.conflict, envelope.len() as u64, |head, conflict| {
            if let Some(ours) = head.hops.last_mut() {
                ours.conflict = conflict;
            }
            match large {
                // Large ones are not kept beside others.
                Some(_) if conflict => None,
                Some(total) => Some(Body::Large { total }),
                None if conflict => Some(Body::Conflict(envelope)),
                None => Some(Body::Envelope(envelope)),
            }
        })
        .await?;
        let let_go = tokio::task::spawn_blocking(move || taken.let_go()).await;
        let_go.map_err(|_| RetryError::Stopping)??;
        Ok(())
    }

    /// Puts a large envelope whose record was lost into the spool; its file is here. When this returns it waits there, durable.
    ///
    /// # Errors
    /// [`RetryError`].
    pub async fn enter_large(&self, mut head: Head, file: SealedFile, total: u64) -> Result<(), RetryError> {
        self.copy_anew(&mut head, file).await?;
        self.put_back(head, false, 0, |_, conflict| (!conflict).then_some(Body::Large { total })).await
    }

    /// Brings the bytes of an envelope here that was acknowledged and whose record was lost, if they lie elsewhere and it is known where.
    ///
    /// # Errors
    /// [`RetryError::Copy`].
    pub async fn bring_owed(&self, identity: &Identity) -> Result<(), RetryError> {
        let Some(copies) = self.copies.as_ref().filter(|_| self.uploads.is_away(identity)) else {
            return Ok(());
        };
        let Some(head) = copies.head_of(identity) else { return Ok(()) };
        let Some(copy) = head.copy.clone() else { return Ok(()) };
        let brought = copies.bring(&head, &copy).await;
        if matches!(brought, Err(CopyError::Lost(_))) {
            // Nothing more will come of it: what there is of it is for a person, here and there.
            copies.keep_damaged(&copy).await;
            let (uploads, lost) = (self.uploads.clone(), identity.clone());
            let aside = tokio::task::spawn_blocking(move || uploads.set_aside(&lost)).await;
            aside.map_err(|_| RetryError::Stopping)?.map_err(RetryError::Unreadable)?;
        }
        Ok(brought?)
    }

    /// A copy of this term, before the record that names it: one of an earlier term may be taken for an orphan by who owned the lanes then.
    async fn copy_anew(&self, head: &mut Head, file: SealedFile) -> Result<(), RetryError> {
        match &self.copies {
            Some(copies) => head.copy = Some(copies.put(file, &head.identity, head.sha256).await?),
            // The next owner would not find it.
            None if self.spool.is_replicated() => return Err(CopyError::NotConfigured.into()),
            None => {}
        }
        Ok(())
    }

    /// Through the numbers in force, durable when this returns. `body` is told whether other bytes stand under the number;
    /// it gives none if these cannot be kept beside them.
    async fn put_back(
        &self,
        mut head: Head,
        conflict: bool,
        bytes: u64,
        body: impl FnOnce(&mut Head, bool) -> Option<Body>,
    ) -> Result<(), RetryError> {
        let (tell, told) = undecided();
        let failures = self.spool.failures(&head.identity.line());
        let copied = self.copies.as_ref().zip(head.copy.clone());
        match self.numbers.offer_again(&head, conflict, bytes, since_boot(), told, failures)? {
            Offered::Done(Outcome::Conflict { kept: false }) => return Err(RetryError::NoRoomBeside),
            // It waits there already, by a record that names another copy.
            Offered::Done(_) => {
                if let Some((copies, copy)) = copied {
                    copies.let_go(&copy);
                }
            }
            Offered::Shared(ticket, _) => ticket.await?,
            Offered::Store(reservation) => {
                let body = body(&mut head, reservation.is_conflict()).ok_or(RetryError::NoRoomBeside)?;
                let share = self.numbers.share_again(&head, bytes);
                let ticket = self.spool.append(&head, body, wall_ms(), reservation.failures())?;
                ticket.await?;
                share.keep();
                reservation.stored();
                if let Some((copies, copy)) = copied {
                    copies.recorded(&copy);
                }
                // Whoever resent the same bytes meanwhile is answered as well.
                tell.decide(Ok(()));
            }
        }
        Ok(())
    }

    /// The file of a large entry, if it is still what was refused: the reason must not go before. Where another gateway has gathered it, it
    /// is fetched.
    async fn whole_file(&self, taken: &TakenOut) -> Result<SealedFile, RetryError> {
        let (head, total) = (&taken.head, taken.large.unwrap_or_default());
        if let (Some(copies), Some(copy)) = (&self.copies, &head.copy)
            && (!self.uploads.is_here(&head.identity) || self.uploads.is_away(&head.identity))
        {
            let (uploads, identity, sha256) = (self.uploads.clone(), head.identity.clone(), head.sha256);
            let placing = tokio::task::spawn_blocking(move || {
                uploads.recorded(&identity, &sha256, total, since_boot())
            });
            placing.await.map_err(|_| RetryError::Stopping)?.map_err(RetryError::Unreadable)?;
            copies.bring(head, copy).await?;
        }
        let (uploads, identity) = (self.uploads.clone(), taken.head.identity.clone());
        let read = tokio::task::spawn_blocking(move || uploads.read(&identity)).await;
        let file =
            read.map_err(|_| RetryError::Stopping)?.map_err(|error| RetryError::Unreadable(error.into()))?;
        let header: [u8; 32] = Sha256::digest(file.header().wire()).into();
        if header != taken.head.sha256 || Some(file.total()) != taken.large {
            let error =
                io::Error::new(io::ErrorKind::InvalidData, "its header is not the one that was refused");
            return Err(RetryError::Unreadable(error));
        }
        Ok(file)
    }
}

//! Large envelopes: judged by their header before room is promised, entered into the log when they are whole.
//!
//! The bytes stay where they were gathered, in `DATA/uploads`; what goes into the spool is a record that names them, with
//! the same head as any other. So a large envelope has its place in its line's lane from the moment that it is whole, is
//! acknowledged when that record is durable, and a start knows it like the others.

use pithead_hop::identity::Peer;
use pithead_hop::ingest::{
    AdmittedHeader, KnownKeys as _, Outcome, SealedFileError, ShortHash, Standing, WholeUpload,
};
use pithead_hop::status::Refusal;
use pithead_sealing::envelope::Profile;
use pithead_spool::NotDurable;

use super::super::fate::undecided;
use super::super::numbers::Offered;
use super::super::record::{Body, Head};
use super::{SpoolIntake, counted_as, mark, refusal_of_sync};
use crate::clock::since_boot;

impl SpoolIntake {
    pub(super) fn judge_header(&self, offered: &AdmittedHeader) -> Result<Option<Outcome>, Refusal> {
        let identity = offered.profile.identity();
        let edks: Vec<[u8; 32]> = offered.profile.edks().iter().map(|(_, hash)| *hash.as_bytes()).collect();
        self.spend(&identity.device, &edks)?;
        let judged =
            self.parts.numbers.judge(identity, ShortHash::from(&offered.header_sha256), since_boot());
        let judged =
            judged.inspect_err(|refusal| self.parts.metrics.refused(Refusal::from(*refusal).reason))?;
        if let Some(outcome) = &judged {
            self.parts.metrics.answered(counted_as(outcome));
        }
        Ok(judged)
    }

    pub(super) async fn complete_upload(&self, peer: &Peer, whole: WholeUpload) -> Result<Outcome, Refusal> {
        let WholeUpload { identity, header_sha256, total } = whole;
        let (uploads, wanted) = (self.parts.uploads.clone(), identity.clone());
        let read = tokio::task::spawn_blocking(move || uploads.read(&wanted)).await;
        let file = read.unwrap_or_else(|error| Err(SealedFileError::Disk(std::io::Error::other(error))));
        let file = match file {
            Ok(file) => file,
            Err(SealedFileError::Disk(error)) => {
                tracing::error!(event = "upload.unreadable", %identity, %error);
                return Err(refusal_of_sync(NotDurable::Closed));
            }
            Err(error) => {
                tracing::error!(event = "upload.damaged", %identity, %error, "it has to be sent again");
                self.release(&identity).await;
                return Err(refusal_of_sync(NotDurable::Closed));
            }
        };
        // It was admitted by this profile when it was opened.
        let profile = Profile::of(file.header())
            .map_err(|error| pithead_hop::ingest::admit::refusal_of_profile(&error))?;
        let key_not_active =
            profile.edks().iter().any(|(arn, _)| self.standing(arn, &identity) == Standing::NotActive);
        if key_not_active {
            self.parts.metrics.key_not_active();
        }
        let mut hops = file.hops().to_vec();
        hops.push(self.hop(peer, key_not_active, false));
        let head = Head { identity: identity.clone(), sha256: header_sha256, hops };

        let (tell, told) = undecided();
        let (body, mark) = (Body::Large { total }, mark(&profile, total));
        let hash = ShortHash::from(&header_sha256);
        let failures = self.parts.spool.failures(&identity.line());
        let offered = self.parts.numbers.offer(&identity, hash, total, since_boot(), told.clone(), failures);
        let offered =
            offered.inspect_err(|refusal| self.parts.metrics.refused(Refusal::from(*refusal).reason))?;
        let (ticket, outcome) = match offered {
            Offered::Done(outcome) => {
                self.parts.metrics.answered(counted_as(&outcome));
                // Its first copy has been passed on, or was no upload: these bytes are nobody's.
                if matches!(outcome, Outcome::Duplicate { .. }) {
                    self.release(&identity).await;
                }
                return Ok(outcome);
            }
            Offered::Shared(ticket, outcome) => (ticket, outcome),
            // Other bytes that are large are not kept beside: their sender keeps them.
            Offered::Store(reservation) if reservation.is_conflict() => {
                return Ok(Outcome::Conflict { kept: false });
            }
            Offered::Store(reservation) => {
                let stored = self.store(head, body, reservation, tell, mark).await;
                stored.inspect_err(|refusal| self.parts.metrics.refused(refusal.reason))?;
                (told, Outcome::Stored)
            }
        };
        match ticket.await {
            Ok(()) => {
                self.parts.uploads.taken(&identity);
                self.parts.metrics.answered(counted_as(&outcome));
                Ok(outcome)
            }
            Err(error) => {
                let refusal = refusal_of_sync(error);
                self.parts.metrics.refused(refusal.reason);
                Err(refusal)
            }
        }
    }

    async fn release(&self, identity: &pithead_sealing::Identity) {
        let (uploads, identity) = (self.parts.uploads.clone(), identity.clone());
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || uploads.release(&identity)).await {
            tracing::error!(event = "upload.not_removed", %error);
        }
    }
}

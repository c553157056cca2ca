//! Large envelopes: judged by their header before room is promised, entered into the log when they are whole.
//!
//! The bytes stay where they were gathered, in `DATA/uploads`; what goes into the spool is a record that names them, with
//! the same head as any other. So a large envelope has its place in its line's lane from the moment that it is whole, is
//! acknowledged when that record is durable, and a start knows it like the others. Where several gateways share the lanes, a copy is put
//! where all of them find it before the record is appended ([`super::super::copies`]).

use pithead_hop::backoff::{random, spread};
use pithead_hop::identity::Peer;
use pithead_hop::ingest::{
    AdmittedHeader, KnownKeys as _, Outcome, SealedFile, SealedFileError, ShortHash, Standing, WholeUpload,
};
use pithead_hop::status::Refusal;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::Identity;
use pithead_sealing::envelope::Profile;
use pithead_spool::NotDurable;

use super::super::copies::{Copies, CopyError};
use super::super::fate::undecided;
use super::super::numbers::Offered;
use super::super::record::{Body, Head, LargeCopy};
use super::{ELSEWHERE_WAIT, FULL_WAIT, SpoolIntake, counted_as, mark, refusal_of_sync};
use crate::clock::since_boot;

impl SpoolIntake {
    pub(super) fn judge_header(
        &self,
        peer: &Peer,
        offered: &AdmittedHeader,
    ) -> Result<Option<Outcome>, Refusal> {
        let identity = offered.profile.identity();
        if peer.passed_on_by.is_some() {
            self.parts.metrics.passed_on_to_us();
        }
        let edks: Vec<[u8; 32]> = offered.profile.edks().iter().map(|(_, hash)| *hash.as_bytes()).collect();
        self.spend(&identity.device, &edks)?;
        self.judge_hash(identity, &offered.header_sha256)
    }

    fn judge_hash(&self, identity: &Identity, header_sha256: &[u8; 32]) -> Result<Option<Outcome>, Refusal> {
        let judged = self.parts.numbers.judge(identity, ShortHash::from(header_sha256), since_boot());
        let judged =
            judged.inspect_err(|refusal| self.parts.metrics.refused(Refusal::from(*refusal).reason))?;
        if let Some(outcome) = &judged {
            self.parts.metrics.answered(counted_as(outcome));
        }
        Ok(judged)
    }

    /// A copy where the other gateways find it, before the record that names it. One that was in line before, and was not answered, need
    /// not be put again.
    async fn copy(
        &self,
        file: SealedFile,
        identity: &Identity,
        header_sha256: [u8; 32],
    ) -> Result<Option<(Copies, LargeCopy)>, Refusal> {
        let Some(copies) = &self.parts.copies else { return Ok(None) };
        match copies.put(file, identity, header_sha256).await {
            Ok(copy) => Ok(Some((copies.clone(), copy))),
            Err(error) => {
                if matches!(
                    &error,
                    CopyError::File(SealedFileError::Damaged { .. } | SealedFileError::Gone(_))
                ) {
                    tracing::error!(event = "upload.damaged", %identity, %error, "it has to be sent again");
                    self.release(identity).await;
                }
                let refusal = refusal_of_copy(&error);
                self.parts.metrics.refused(refusal.reason);
                Err(refusal)
            }
        }
    }

    pub(super) async fn complete_upload(&self, peer: &Peer, whole: WholeUpload) -> Result<Outcome, Refusal> {
        self.is_owner().and_then(|()| self.is_let_in(peer)).inspect_err(|refusal| {
            self.parts.metrics.refused(refusal.reason);
        })?;
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
        let copied = match &self.parts.copies {
            None => None,
            // What is known need not be copied.
            Some(_) => match self.judge_hash(&identity, &header_sha256)? {
                Some(outcome) => {
                    if matches!(outcome, Outcome::Duplicate { .. }) {
                        self.release(&identity).await;
                    }
                    return Ok(outcome);
                }
                None => self.copy(file, &identity, header_sha256).await?,
            },
        };
        let copy = copied.as_ref().map(|(_, copy)| copy.clone());
        let head = Head { identity: identity.clone(), sha256: header_sha256, hops, copy };
        let let_go = || {
            if let Some((copies, copy)) = &copied {
                copies.let_go(copy);
            }
        };

        let (tell, told) = undecided();
        let (body, mark) = (Body::Large { total }, mark(&profile, total));
        let hash = ShortHash::from(&header_sha256);
        let failures = self.parts.spool.failures(&identity.line());
        let offered = self.parts.numbers.offer(&identity, hash, total, since_boot(), told.clone(), failures);
        let offered =
            offered.inspect_err(|refusal| self.parts.metrics.refused(Refusal::from(*refusal).reason))?;
        let (ticket, outcome) = match offered {
            Offered::Done(outcome) => {
                let_go();
                self.parts.metrics.answered(counted_as(&outcome));
                // Its first copy has been passed on, or was no upload: these bytes are nobody's.
                if matches!(outcome, Outcome::Duplicate { .. }) {
                    self.release(&identity).await;
                }
                return Ok(outcome);
            }
            Offered::Shared(ticket, outcome) => {
                let_go();
                (ticket, outcome)
            }
            // Other bytes that are large are not kept beside: their sender keeps them.
            Offered::Store(reservation) if reservation.is_conflict() => {
                let_go();
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
                if let Some((copies, copy)) = &copied {
                    copies.recorded(copy);
                }
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

    async fn release(&self, identity: &Identity) {
        let (uploads, identity) = (self.parts.uploads.clone(), identity.clone());
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || uploads.release(&identity)).await {
            tracing::error!(event = "upload.not_removed", %error);
        }
    }
}

/// It lies here whole, and who brings its last byte again asks once more.
fn refusal_of_copy(error: &CopyError) -> Refusal {
    let (reason, wait) = match error {
        CopyError::Over => (ErrorReason::StandingBy, ELSEWHERE_WAIT),
        CopyError::Stopping => (ErrorReason::Draining, ELSEWHERE_WAIT),
        _ => (ErrorReason::NotDurable, FULL_WAIT),
    };
    Refusal::new(reason, error.to_string()).retry_after(spread(wait, random()))
}

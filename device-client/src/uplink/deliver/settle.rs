//! What becomes of an envelope once it is known: delivered, kept by somebody as a conflict, set aside, or lost and declared.

use std::sync::Arc;

use pithead_hop::ingest::Answer;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::names::{Identity, StreamName};
use pithead_spool::Position;

use super::{Ended, Settled, blocking, call::Call};
use crate::{
    batch::{Gap, GapReason},
    client::FileState,
    outbox::{Waiting, WaitingContent},
};

/// What a file's ticket and a log line say of what the device's own disk has taken.
pub(super) const DAMAGED: &str = "damaged on the device's disk";

impl Call<'_> {
    /// An envelope has its answer.
    pub(super) async fn settle(
        &mut self,
        lane: usize,
        waiting: Waiting,
        answer: Answer,
    ) -> Result<(), Ended> {
        let identity = waiting.identity.clone();
        let mut seen = Settled::default();
        let state = match answer {
            Answer::Stored | Answer::Duplicate { .. } => {
                if matches!(answer, Answer::Stored) {
                    seen.stored += 1
                } else {
                    seen.duplicates += 1
                }
                self.delivery.outbox.delivered(&identity);
                FileState::Delivered { identity: identity.clone() }
            }
            Answer::Conflict { kept } => {
                tracing::warn!(event = "uplink.conflict", %identity, kept);
                self.delivery.desk.new_run(&identity.stream, identity.run);
                // What it declares may not be believed beside another of its number.
                self.delivery.outbox.not_delivered(&identity);
                let reason = "other bytes stand under this number";
                if !kept {
                    let detail = format!("{reason}, and the gateway's area for conflicts is full");
                    return self.refuse(lane, waiting, ErrorReason::Conflict.name(), detail).await;
                }
                seen.conflicts += 1;
                FileState::Refused { identity: identity.clone(), reason: reason.into() }
            }
            Answer::Refused { reason, detail } => {
                let reason = reason.map_or("unknown", ErrorReason::name);
                tracing::warn!(event = "uplink.refused", %identity, reason, detail);
                self.delivery.outbox.not_delivered(&identity);
                return self.refuse(lane, waiting, reason, detail).await;
            }
        };
        // Counted before it is told: who hears of it may look.
        self.settled(lane, waiting.position, &waiting, seen);
        self.delivery.desk.tell_file(&identity, state);
        Ok(())
    }

    /// Nobody takes it: set aside, or, where there is no more room for such, given up and declared.
    pub(super) async fn refuse(
        &mut self,
        lane: usize,
        waiting: Waiting,
        reason: &'static str,
        detail: String,
    ) -> Result<(), Ended> {
        let (area, refused) = (self.delivery.refused.clone(), waiting.clone());
        let told = format!("{reason}: {detail}");
        let kept = blocking(move || match &refused.content {
            WaitingContent::Envelope(bytes) => area.keep(&refused.identity, bytes, reason, &detail),
            WaitingContent::File(path) => area.keep_file(&refused.identity, path, reason, &detail),
        })
        .await?;
        let identity = waiting.identity.clone();
        match kept {
            Ok(()) => {
                self.settled(lane, waiting.position, &waiting, Settled { refused: 1, ..Settled::default() });
            }
            // The area is full, or the disk takes nothing: evidence is not worth the delivery of everything behind it.
            Err(error) => {
                tracing::error!(event = "refused.not_kept", %identity, %error);
                let gaps = vec![gap(&identity, GapReason::Refused)];
                self.lost(lane, waiting.position, gaps, Some(&identity), &told).await?;
            }
        }
        let state = FileState::Refused { identity: identity.clone(), reason: told };
        self.delivery.desk.tell_file(&identity, state);
        Ok(())
    }

    /// The disk has changed a large file, or has lost it.
    pub(super) async fn damaged(
        &mut self,
        lane: usize,
        waiting: Waiting,
        detail: String,
    ) -> Result<(), Ended> {
        let identity = &waiting.identity;
        tracing::error!(event = "outbox.damaged", %identity, detail);
        let gaps = vec![gap(identity, GapReason::OutboxDamaged)];
        self.lost(lane, waiting.position, gaps, Some(identity), &format!("{DAMAGED}: {detail}")).await
    }

    /// It will never arrive anywhere: declared, and settled.
    pub(super) async fn lost(
        &mut self,
        lane: usize,
        position: Position,
        gaps: Vec<Gap>,
        file: Option<&Identity>,
        why: &str,
    ) -> Result<(), Ended> {
        let (outbox, log) = (Arc::clone(&self.delivery.outbox), Arc::clone(&self.lanes[lane].log));
        let lost = gaps.clone();
        let declared = blocking(move || outbox.lose(&log, position, &lost)).await?.map_err(Ended::GiveUp)?;
        if let Some(identity) = file {
            self.lanes[lane].log.leaves(position, identity);
        }
        self.lanes[lane].order.settled(position);
        self.forget(lane);
        // Otherwise the stream's policy was quicker: that is declared, counted and told already.
        if declared {
            let numbers = gaps.iter().map(|gap| gap.to.get() - gap.from.get() + 1).sum();
            let stream = self.lanes[lane].log.stream().clone();
            tracing::error!(event = "outbox.lost", %stream, numbers, why);
            self.delivery.desk.tell_lost(&gaps, why);
            self.count(&stream, Settled { lost: numbers, ..Settled::default() });
        }
        Ok(())
    }

    pub(super) fn settled(&mut self, lane: usize, position: Position, waiting: &Waiting, seen: Settled) {
        let here = &mut self.lanes[lane];
        if matches!(waiting.content, WaitingContent::File(_)) {
            here.log.leaves(position, &waiting.identity);
        }
        here.order.settled(position);
        self.forget(lane);
        self.count(&waiting.identity.stream, seen);
    }

    pub(super) fn forget(&mut self, lane: usize) {
        let here = &mut self.lanes[lane];
        if let Some(position) = here.order.forgettable()
            && let Err(error) = here.log.acknowledge(position)
        {
            // It is sent again after a restart, which is harmless.
            tracing::error!(event = "outbox.not_acknowledged", stream = %here.log.stream(), %error);
        }
    }

    pub(super) fn count(&self, stream: &StreamName, seen: Settled) {
        self.delivery.progress.send_modify(|progress| {
            let settled = progress.streams.entry(stream.clone()).or_default();
            settled.stored += seen.stored;
            settled.duplicates += seen.duplicates;
            settled.conflicts += seen.conflicts;
            settled.refused += seen.refused;
            settled.lost += seen.lost;
        });
    }
}

fn gap(identity: &Identity, reason: GapReason) -> Gap {
    Gap { stream: identity.stream.clone(), run: identity.run, from: identity.seq, to: identity.seq, reason }
}

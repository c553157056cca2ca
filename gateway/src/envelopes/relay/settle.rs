//! What becomes of an envelope when its answer is there: passed on, set aside, or damaged.

use pithead_hop::ingest::send::UploadError;
use pithead_hop::ingest::{Answer, Answered, SealedFileError};
use pithead_hop::trace::TraceParent;
use pithead_hop::trace::span::Kind;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::Line;

use super::super::lanes;
use super::super::record::KIND_LARGE;
use super::super::refused::RefusedError;
use super::alarm::Alarm;
use super::control::Cause;
use super::large::{Large, LargeEnded, LargeError, LargeSent};
use super::progress::Progress;
use super::{Ended, Relay, Sent};
use crate::clock::{since_boot, wall_ms};
use crate::metrics::Outcome as Counted;

/// What was answered together.
#[derive(Debug, Default)]
pub(super) struct Together {
    pub(super) envelopes: u64,
    pub(super) bytes: u64,
    refused: u64,
    /// The calls that brought what is followed.
    links: Vec<TraceParent>,
    /// When the first of it was taken, in microseconds since 1970.
    first_us: Option<u64>,
}

impl Relay {
    /// An attempt at a large envelope has ended: with an answer, with damage, or to be tried again.
    pub(super) async fn take_large(
        &self,
        large: &mut Large,
        line: &Line,
        ended: LargeEnded,
        progress: &mut Progress,
        alarm: &mut Alarm,
    ) -> Result<(), Ended> {
        let answer = match ended {
            LargeEnded::Answered(answer) => answer,
            LargeEnded::Failed(LargeError::Upload(UploadError::Source(error)))
                if progress.is_unreadable(line) =>
            {
                if self.is_elsewhere(large, line) {
                    return self.fetch_anew(large, line, SealedFileError::Disk(error), progress).await;
                }
                return self.lose_large(large, line, SealedFileError::Disk(error), progress).await;
            }
            LargeEnded::Failed(error) => {
                if matches!(error, LargeError::Upload(UploadError::Source(_))) {
                    progress.unreadable(line);
                }
                let reason = error.reason();
                let code = reason.map_or("UNKNOWN", ErrorReason::name);
                tracing::warn!(event = "relay.large_again", %line, reason = code, %error);
                if reason == Some(ErrorReason::UploadsNotSupported) {
                    let detail = "the far end takes inline envelopes only".to_owned();
                    Answer::Refused { reason, detail }
                } else {
                    large.failed(line, error.retry_after());
                    return Ok(());
                }
            }
            LargeEnded::Damaged(error) => {
                if self.is_elsewhere(large, line) {
                    return self.fetch_anew(large, line, error, progress).await;
                }
                return self.lose_large(large, line, error, progress).await;
            }
            LargeEnded::Lost(error) => return self.lose_large(large, line, error, progress).await,
        };
        let Some(sent) = large.settled(line) else { return Ok(()) };
        progress.readable_again(line);
        let counted = match answer {
            Answer::Stored => Counted::Stored,
            Answer::Duplicate { .. } => Counted::Duplicate,
            Answer::Conflict { kept: true } => Counted::Conflict,
            Answer::Conflict { kept: false } => {
                let detail = "other bytes under a used number".to_owned();
                self.set_large_aside(&sent, Some(ErrorReason::Conflict), detail).await?;
                Counted::Refused
            }
            Answer::Refused { reason, detail } => {
                self.set_large_aside(&sent, reason, detail).await?;
                Counted::Refused
            }
        };
        self.metrics.relayed(counted, usize::try_from(sent.total).unwrap_or(usize::MAX));
        self.numbers.passed_on(&sent.head, false, sent.record_bytes);
        self.spool.left(line);
        progress.answered(sent.lane, sent.position);
        progress.release(sent.lane, sent.position, sent.head, counted == Counted::Refused);
        let now = since_boot();
        self.report.change(|report| {
            report.acknowledged += 1;
            report.acknowledged_at = Some(now);
        });
        if let Some(counted) = alarm.note(1, u64::from(counted == Counted::Refused), now) {
            self.too_many_refusals(counted.into()).await;
        }
        Ok(())
    }

    /// Whether the first large envelope of this line has a copy that can be fetched.
    fn is_elsewhere(&self, large: &Large, line: &Line) -> bool {
        self.copies.is_some() && large.first(line).is_some_and(|sent| sent.head.copy.is_some())
    }

    /// This disk has changed it or does not give it, and the store has it as well: what is here goes, and it is fetched. However often:
    /// an envelope of which there is a good copy is not lost to one machine's disk.
    async fn fetch_anew(
        &self,
        large: &mut Large,
        line: &Line,
        error: SealedFileError,
        progress: &mut Progress,
    ) -> Result<(), Ended> {
        let Some(identity) = large.first(line).map(|sent| sent.head.identity.clone()) else { return Ok(()) };
        tracing::error!(event = "upload.damaged", %identity, %error, "it is fetched from the store of large envelopes");
        progress.readable_again(line);
        let (uploads, wanted) = (self.uploads.clone(), identity.clone());
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || uploads.send_away(&wanted)).await {
            tracing::error!(event = "upload.not_removed", %identity, %error);
        }
        large.failed(line, None);
        Ok(())
    }

    /// The disk has changed it, or does not give it: its number is free for a good copy, and what there is of it is set aside for
    /// a person. It was acknowledged, so nothing of it is removed.
    async fn lose_large(
        &self,
        large: &mut Large,
        line: &Line,
        error: impl std::fmt::Display,
        progress: &mut Progress,
    ) -> Result<(), Ended> {
        let Some(sent) = large.settled(line) else { return Ok(()) };
        let identity = sent.head.identity.clone();
        tracing::error!(event = "spool.envelope_damaged", %identity, %error, "its bytes are set aside in uploads/");
        self.metrics.spool_corrupt(1);
        let (uploads, lost) = (self.uploads.clone(), identity.clone());
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || uploads.set_aside(&lost)).await {
            tracing::error!(event = "upload.not_set_aside", %identity, %error);
        }
        if let (Some(copies), Some(copy)) = (&self.copies, &sent.head.copy) {
            // What there is of it in the store is for a person as well.
            copies.keep_damaged(copy).await;
        }
        self.numbers.quarantined_large(&sent.head, sent.record_bytes);
        self.spool.left(line);
        progress.answered(sent.lane, sent.position);
        progress.readable_again(line);
        Ok(())
    }

    pub(super) async fn set_large_aside(
        &self,
        sent: &LargeSent,
        reason: Option<ErrorReason>,
        detail: String,
    ) -> Result<(), RefusedError> {
        let (refused, kept, words) = (self.refused.clone(), sent.clone(), detail.clone());
        let keep = move || refused.keep_large(&kept.head, kept.total, reason, &words, wall_ms());
        kept_aside(tokio::task::spawn_blocking(keep).await)?;
        let reason = reason.map_or("UNKNOWN", ErrorReason::name);
        tracing::warn!(event = "relay.refused", identity = %sent.head.identity, reason, detail);
        Ok(())
    }

    /// The far end has it, or the refused area.
    fn passed_on(&self, sent: &Sent) {
        self.numbers.passed_on(&sent.head, sent.conflict, sent.envelope.len() as u64);
        self.spool.left(&sent.head.identity.line());
    }

    /// It is elsewhere: it may leave the spool.
    pub(super) fn settled(
        &self,
        sent: &Sent,
        counted: Counted,
        progress: &mut Progress,
        together: &mut Together,
    ) {
        self.metrics.relayed(counted, sent.envelope.len());
        self.passed_on(sent);
        progress.answered(sent.lane, sent.position);
        if let Some((trace, sent_us)) = sent.followed {
            together.links.push(trace);
            together.first_us = Some(together.first_us.map_or(sent_us, |first| first.min(sent_us)));
            self.followed.left(&sent.head.identity);
        }
        together.envelopes += 1;
        together.bytes += sent.envelope.len() as u64;
        together.refused += u64::from(counted == Counted::Refused);
    }

    /// All that was answered together is settled.
    pub(super) async fn all_settled(&self, span: &'static str, together: Together, alarm: &mut Alarm) {
        let Together { envelopes, bytes, refused, links, first_us } = together;
        if envelopes == 0 {
            return;
        }
        // From the first of it that was taken: of many devices, so it is nobody's child.
        let mut span = self.followed.spans().linked(span, Kind::Client, links);
        span.began(first_us.unwrap_or(u64::MAX));
        span.number("pithead.envelopes", envelopes);
        span.number("pithead.bytes", bytes);
        span.number("pithead.refused", refused);
        drop(span);
        let now = since_boot();
        self.report.change(|report| {
            report.acknowledged += envelopes;
            report.acknowledged_at = Some(now);
        });
        if let Some(counted) = alarm.note(envelopes, refused, now) {
            self.too_many_refusals(counted.into()).await;
        }
    }

    pub(super) async fn take(
        &self,
        answers: Vec<Answered<Sent>>,
        progress: &mut Progress,
        alarm: &mut Alarm,
    ) -> Result<(), RefusedError> {
        let mut together = Together::default();
        for Answered { token: sent, answer } in answers {
            let counted = match answer {
                Answer::Stored => Counted::Stored,
                Answer::Duplicate { .. } => Counted::Duplicate,
                Answer::Conflict { kept: true } => Counted::Conflict,
                Answer::Conflict { kept: false } => {
                    let detail = "other bytes under a used number, and no room beside them".to_owned();
                    self.set_aside(&sent, Some(ErrorReason::Conflict), detail).await?;
                    Counted::Refused
                }
                Answer::Refused { reason, detail } => {
                    self.set_aside(&sent, reason, detail).await?;
                    Counted::Refused
                }
            };
            self.settled(&sent, counted, progress, &mut together);
        }
        let Together { envelopes, bytes, .. } = together;
        if envelopes > 0 {
            tracing::debug!(event = "relay.answered", envelopes, bytes);
        }
        self.all_settled("relay.batch", together, alarm).await;
        Ok(())
    }

    /// It cannot be sent at all: kept beside with its reason, and its lane goes on.
    pub(super) async fn not_sent(
        &self,
        sent: &Sent,
        reason: ErrorReason,
        detail: String,
        progress: &mut Progress,
    ) -> Result<(), RefusedError> {
        self.set_aside(sent, Some(reason), detail).await?;
        self.metrics.relayed(Counted::Refused, sent.envelope.len());
        self.passed_on(sent);
        progress.reached(sent.lane, sent.position.next());
        progress.answered(sent.lane, sent.position);
        Ok(())
    }

    /// Stands still until somebody has looked. Answers to what is under way still come.
    pub(super) async fn too_many_refusals(&self, cause: Cause) {
        if self.control.orders().paused.is_some() {
            return;
        }
        let control = self.control.clone();
        let paused = tokio::task::spawn_blocking(move || control.pause(cause, wall_ms())).await;
        if let Ok(Err(error)) = paused {
            tracing::error!(event = "relay.orders_not_written", %error);
        }
    }

    /// Durable in the refused area before it may leave the spool. Off the async threads: a far end that refuses everything
    /// would have ingest wait for its syncs.
    async fn set_aside(
        &self,
        sent: &Sent,
        reason: Option<ErrorReason>,
        detail: String,
    ) -> Result<(), RefusedError> {
        let (refused, kept, words) = (self.refused.clone(), sent.clone(), detail.clone());
        let keep = move || refused.keep(&kept.head, kept.conflict, &kept.envelope, reason, &words, wall_ms());
        kept_aside(tokio::task::spawn_blocking(keep).await)?;
        let reason = reason.map_or("UNKNOWN", ErrorReason::name);
        tracing::warn!(event = "relay.refused", identity = %sent.head.identity, reason, detail);
        Ok(())
    }

    pub(super) async fn report_damage(&self, corrupt: &[pithead_spool::CorruptRange]) {
        if let Some(copies) = &self.copies
            && corrupt.iter().any(|range| range.records() > range.heads.len() as u64)
        {
            copies.records_lost().await;
        }
        for range in corrupt {
            let (from, to, records) = (range.from.0, range.to.0, range.records());
            tracing::error!(event = "spool.corrupt", lane = lanes::name(range.lane), from, to, records);
            self.metrics.spool_corrupt(records);
            for head in &range.heads {
                if let Some(identity) = self.numbers.quarantined(head) {
                    if head.kind == KIND_LARGE {
                        // The record is lost, and the bytes are not: they are entered again.
                        self.uploads.owe(&identity);
                    }
                    self.spool.left(&identity.line());
                    tracing::error!(event = "spool.envelope_damaged", %identity);
                }
            }
        }
    }
}

fn kept_aside(joined: Result<Result<(), RefusedError>, tokio::task::JoinError>) -> Result<(), RefusedError> {
    joined.unwrap_or_else(|error| {
        let (path, source) = (std::path::PathBuf::from("refused"), std::io::Error::other(error));
        Err(RefusedError::Io { path, source })
    })
}

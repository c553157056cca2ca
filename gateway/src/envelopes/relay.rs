//! The relay: from the spool to the far end, and out of the spool only what the far end has.
//!
//! One call at a time, with a window of bytes under way. An envelope may leave the spool when the far end has answered it
//! as durable, and not because of anything else that the far end says. When the call ends, whatever has no answer is
//! read from the spool again and goes out again, the same bytes. A far end that is away is the normal state of a mine:
//! the relay comes back with jitter, and nothing else waits for it.
//!
//! What the far end will never take is set aside with its reason, and the queue goes on. When there is no more room to
//! set aside, the relay stands still and says so: nothing is dropped.
//!
//! ```text
//! spool ─ read ─> window ─ send ─> far end
//!                   └─ answered ─> passed on ─ checkpoint of the lines ─> acknowledged in the spool
//! ```

mod progress;
mod report;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pithead_hop::backoff::{Backoff, Policy, random};
use pithead_hop::connect::{ConnectError, ConnectOptions, Connection, Endpoint, connect};
use pithead_hop::ingest::{Answer, Answered, NotTaken, SendError, SendOptions, Sender};
use pithead_proto::errors::v1::ErrorReason;
use pithead_spool::{Position, ReadError, Reader, Record};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::progress::Progress;
pub use self::report::{RelayReport, Report};
use super::numbers::Numbers;
use super::record::{Head, KIND_CONFLICT};
use super::refused::{Refused, RefusedError};
use super::spool::EnvelopeSpool;
use crate::clock::{since_boot, wall_ms};
use crate::health::{Health, Level};
use crate::metrics::{Dimension, Metrics, Outcome as Counted};

/// Read from the spool at a time: some batches of the wire.
const READ_BYTES: usize = 1 << 20;
/// Envelopes under way at most, whatever their size: each costs a place in several tables.
const WINDOW_ENVELOPES: u64 = 16_384;
/// A spool holds nothing larger: one group of it.
const ENVELOPE_BYTES: u64 = 4 << 20;
/// How often a full refused area is looked at again.
const PAUSE: Duration = Duration::from_secs(30);
/// A disk that does not give a record is asked again this often, this many times, before the record counts as damaged.
const UNREADABLE_TRIES: u32 = 5;

/// Where envelopes go.
#[derive(Debug, Clone)]
pub struct Target {
    /// The far end.
    pub endpoint: Endpoint,
    /// The name in its certificate.
    pub name: ServerName<'static>,
    /// Its CA, and our certificate. The newest is used for every connection.
    pub tls: watch::Receiver<Arc<ClientConfig>>,
    /// Bytes that may be under way unanswered.
    pub window_bytes: u64,
}

/// The relay of one gateway.
#[derive(Debug)]
pub struct Relay {
    /// What is to be sent.
    pub spool: EnvelopeSpool,
    /// Told of what has left.
    pub numbers: Numbers,
    /// Where the unwanted go.
    pub refused: Arc<Refused>,
    /// The relay's lamp.
    pub health: Health,
    /// Counters.
    pub metrics: Metrics,
    /// For status pages.
    pub report: RelayReport,
}

/// What an answer is matched to: enough to go on without the envelope, save for its bytes if it is refused.
#[derive(Debug, Clone)]
struct Sent {
    position: Position,
    head: Head,
    conflict: bool,
    envelope: Bytes,
}

/// Why a call is over.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("no connection: {0}")]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Send(#[from] SendError),
    #[error("the spool: {0}")]
    Read(#[from] ReadError),
    #[error("{0}")]
    Refused(#[from] RefusedError),
    #[error("told to stop")]
    Stopped,
}

impl Ended {
    fn reason(&self) -> Option<ErrorReason> {
        match self {
            Self::Connect(error) => Some(error.reason()),
            Self::Send(error) => error.reason(),
            Self::Read(_) => Some(ErrorReason::DiskFailed),
            Self::Refused(RefusedError::Full { .. }) => Some(ErrorReason::SpoolFull),
            Self::Refused(_) => Some(ErrorReason::DiskFailed),
            Self::Stopped => None,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Send(error) => error.retry_after(),
            Self::Refused(_) | Self::Read(_) => Some(PAUSE),
            _ => None,
        }
    }
}

impl Relay {
    /// Sends until it is told to stop; then waits for the answers to what is under way, and writes down what was
    /// answered. Whoever awaits this sets the limit.
    pub async fn run(self, target: Target, stop: CancellationToken) {
        let mut backoff = Backoff::new(Policy::default());
        let mut progress = Progress::new(self.spool.clone(), self.numbers.clone());
        let mut unreadable = 0;
        while !stop.is_cancelled() {
            let before = progress.next();
            let ended = self.call(&target, &mut progress, unreadable >= UNREADABLE_TRIES, &stop).await;
            // A call that brought something forward was a good one: the next failure starts from the beginning.
            if progress.next() > before {
                backoff.reset();
            }
            progress.reclaim_now().await;
            if matches!(ended, Ended::Stopped) {
                break;
            }
            unreadable = if matches!(ended, Ended::Read(_)) { unreadable + 1 } else { 0 };
            self.down(&ended);
            let delay = backoff.next_delay(random(), ended.retry_after());
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = stop.cancelled() => break,
            }
            if matches!(ended, Ended::Refused(_)) {
                // Somebody may have carried refused envelopes away.
                let refused = self.refused.clone();
                if let Ok(Err(error)) = tokio::task::spawn_blocking(move || refused.recount()).await {
                    tracing::warn!(event = "refused.not_counted", %error);
                }
            }
        }
        progress.reclaim_now().await;
        self.metrics.relay_up(false);
    }

    /// One call, from the first record without an answer on.
    async fn call(
        &self,
        target: &Target,
        progress: &mut Progress,
        tolerant: bool,
        stop: &CancellationToken,
    ) -> Ended {
        let opening = async {
            let options = ConnectOptions::default();
            let tls = target.tls.borrow().clone();
            let connection = connect(&target.endpoint, &target.name, tls, &options).await?;
            let mut options = SendOptions::new(concat!("pithead-gateway/", env!("CARGO_PKG_VERSION")));
            options.window.bytes = target.window_bytes;
            options.window.envelopes = WINDOW_ENVELOPES;
            options.window.envelope_bytes = ENVELOPE_BYTES;
            // A relay names no lines: its far end has its own books.
            let sender = Sender::open(connection.clone(), &options, Vec::new()).await?;
            Ok::<(Connection, Sender<Sent>), Ended>((connection, sender))
        };
        let (_connection, mut sender) = tokio::select! {
            opened = opening => match opened {
                Ok(opened) => opened,
                Err(ended) => return ended,
            },
            () = stop.cancelled() => return Ended::Stopped,
        };
        self.up();
        let mut reader = self.spool.reader_at(progress.begin());
        if tolerant {
            reader.skip_unreadable();
        }
        let ended = self.send_and_listen(&mut sender, reader, progress, stop).await;
        self.metrics.relay_window(0);
        self.report.change(|report| report.in_flight_bytes = 0);
        ended
    }

    async fn send_and_listen(
        &self,
        sender: &mut Sender<Sent>,
        mut reader: Reader,
        progress: &mut Progress,
        stop: &CancellationToken,
    ) -> Ended {
        let mut waiting = VecDeque::new();
        loop {
            if let Err(error) = self.fill_window(sender, &mut waiting, progress).await {
                return error.into();
            }
            if waiting.is_empty() {
                // Past what is damaged at the end of what was read.
                progress.reached(reader.position());
            }
            self.metrics.relay_window(usize::try_from(sender.unanswered_bytes()).unwrap_or(usize::MAX));
            self.report.change(|report| report.in_flight_bytes = sender.unanswered_bytes());

            tokio::select! {
                answers = sender.answers() => match answers {
                    Ok(answers) => {
                        if let Err(error) = self.take(answers, progress).await {
                            return error.into();
                        }
                    }
                    Err(error) => return error.into(),
                },
                changed = reader.changed(), if waiting.is_empty() => {
                    // Closed: nothing more comes, and what is under way may still be answered.
                    if changed.is_err() {
                        return self.wind_down(sender, progress).await;
                    }
                    // Off the async threads: a disk may be slow.
                    let read = tokio::task::spawn_blocking(move || {
                        let batch = reader.next_batch(READ_BYTES);
                        (reader, batch)
                    });
                    let batch = match read.await {
                        Ok((same, batch)) => {
                            reader = same;
                            batch
                        }
                        Err(_) => return Ended::Stopped,
                    };
                    match batch {
                        Ok(batch) => {
                            self.report_damage(&batch.corrupt);
                            waiting.extend(batch.records);
                        }
                        Err(error) => return error.into(),
                    }
                }
                () = progress.due() => progress.reclaim_now().await,
                () = stop.cancelled() => return self.wind_down(sender, progress).await,
            }
        }
    }

    /// Whatever fits goes into the window, in order; what does not, waits for answers.
    async fn fill_window(
        &self,
        sender: &mut Sender<Sent>,
        waiting: &mut VecDeque<(Position, Record)>,
        progress: &mut Progress,
    ) -> Result<(), RefusedError> {
        while let Some((position, record)) = waiting.pop_front() {
            let Ok(head) = Head::decode(&record.head) else {
                tracing::error!(event = "spool.foreign_record", position = position.0);
                progress.reached(position.next());
                continue;
            };
            let hops = head.hops.clone();
            let conflict = record.kind == KIND_CONFLICT;
            let sent = Sent { position, head, conflict, envelope: record.body.clone() };
            match sender.send(sent, record.body.clone(), hops) {
                Ok(()) => progress.sent(position),
                Err((sent, NotTaken::TooLarge { max })) => {
                    let detail = format!("the far end takes envelopes of up to {max} bytes");
                    self.set_aside(&sent, Some(ErrorReason::EnvelopeTooLarge), detail).await?;
                    self.metrics.relayed(Counted::Refused, sent.envelope.len());
                    self.numbers.passed_on(&sent.head, sent.conflict, sent.envelope.len() as u64);
                    progress.reached(position.next());
                }
                Err(_) => {
                    waiting.push_front((position, record));
                    break;
                }
            }
        }
        Ok(())
    }

    /// Nothing more is sent; what is under way may still be answered.
    async fn wind_down(&self, sender: &mut Sender<Sent>, progress: &mut Progress) -> Ended {
        sender.finish();
        while sender.unanswered() > 0 {
            match sender.answers().await {
                Ok(answers) => {
                    if let Err(error) = self.take(answers, progress).await {
                        tracing::error!(event = "relay.refused_area", %error);
                        break;
                    }
                }
                Err(_) => break,
            }
        }
        Ended::Stopped
    }

    async fn take(&self, answers: Vec<Answered<Sent>>, progress: &mut Progress) -> Result<(), RefusedError> {
        let now = since_boot();
        let mut bytes = 0;
        let mut count = 0;
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
            self.metrics.relayed(counted, sent.envelope.len());
            self.numbers.passed_on(&sent.head, sent.conflict, sent.envelope.len() as u64);
            progress.answered(sent.position);
            bytes += sent.envelope.len();
            count += 1;
        }
        tracing::debug!(event = "relay.answered", envelopes = count, bytes);
        self.report.change(|report| {
            report.acknowledged += count;
            report.acknowledged_at = Some(now);
        });
        Ok(())
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
        let keep = move || refused.keep(&kept.head, &kept.envelope, reason, &words, wall_ms());
        match tokio::task::spawn_blocking(keep).await {
            Ok(kept) => kept?,
            Err(error) => {
                let (path, source) = (std::path::PathBuf::from("refused"), std::io::Error::other(error));
                return Err(RefusedError::Io { path, source });
            }
        }
        let reason = reason.map_or("UNKNOWN", ErrorReason::name);
        tracing::warn!(event = "relay.refused", identity = %sent.head.identity, reason, detail);
        Ok(())
    }

    fn report_damage(&self, corrupt: &[pithead_spool::CorruptRange]) {
        for range in corrupt {
            let (from, to, records) = (range.from.0, range.to.0, range.records());
            tracing::error!(event = "spool.corrupt", from, to, records);
            self.metrics.spool_corrupt(records);
            for head in &range.heads {
                if let Some(identity) = self.numbers.quarantined(head) {
                    tracing::error!(event = "spool.envelope_damaged", %identity);
                }
            }
        }
    }

    fn up(&self) {
        self.metrics.relay_up(true);
        self.metrics.relay_paused(false);
        self.report.change(|report| {
            report.up = true;
            report.failure = None;
        });
        if self.health.set(Dimension::Relay, Level::Ok, "the far end takes envelopes", since_boot()) {
            tracing::info!(event = "relay.up");
        }
    }

    fn down(&self, ended: &Ended) {
        let (now, reason) = (since_boot(), ended.reason());
        self.metrics.relay_up(false);
        self.metrics.relay_ended(reason);
        let said = ended.to_string();
        let words = match reason {
            // What the far end refused says its code itself.
            Some(reason) if !said.starts_with(&reason.code()) => {
                format!("{} {}: {said}", reason.code(), reason.name())
            }
            _ => said,
        };
        self.report.change(|report| {
            report.up = false;
            report.failure = Some((reason, ended.to_string(), now));
        });
        let paused = matches!(ended, Ended::Refused(RefusedError::Full { .. }));
        self.metrics.relay_paused(paused);
        if paused {
            tracing::error!(event = "relay.paused", why = words);
        }
        if self.health.set(Dimension::Relay, Level::Degraded, words.clone(), now) {
            tracing::warn!(event = "relay.down", why = words);
        }
    }
}

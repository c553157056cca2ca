//! How the client stands, in numbers.

use std::{collections::BTreeMap, sync::atomic::Ordering, time::Duration};

use pithead_hop::connect::Endpoint;
use pithead_sealing::{names::StreamName, trust};

use super::{
    options::Kind,
    stream::{Intake, RecordError},
};
use crate::{
    clock::DeviceClock,
    outbox::Log,
    uplink::{ClockOffset, Progress, Settled, Trouble},
};

/// A picture of a client. Counts are since it was opened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Status {
    /// The gateway that is taking envelopes.
    pub connected: Option<Endpoint>,
    /// Connections made.
    pub connections: u64,
    /// Why nothing is being delivered, while there is no connection.
    pub trouble: Option<Trouble>,
    /// The gateway's clock against the wall clock here, of the last connection. Shown, never trusted.
    pub clock: Option<ClockOffset>,
    /// The keys.
    pub keys: KeyStatus,
    /// The device had lost its numbers when it was opened, and began anew: see
    /// [`OutboxRecovery::sequence_lost`](crate::OutboxRecovery::sequence_lost). True until it is closed.
    pub sequence_lost: bool,
    /// Sessions begun: each is one public-key operation here and one unwrap in the cloud.
    pub sessions: u64,
    /// Heartbeats sealed.
    pub heartbeats: u64,
    /// Stream by stream.
    pub streams: BTreeMap<StreamName, StreamStatus>,
}

/// The keys of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyStatus {
    /// How far the device is from losing its key.
    pub status: trust::Status,
    /// Epoch and sequence of the statement.
    pub version: (u64, u64),
}

/// A picture of a stream. Records here are what the owner gave, or files; envelopes are what they were sealed into.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct StreamStatus {
    /// It carries files.
    pub files: bool,
    /// Records taken, and bytes of their names and data.
    pub recorded: u64,
    /// See `recorded`.
    pub recorded_bytes: u64,
    /// Records refused to the caller's face.
    pub refused: u64,
    /// Why records are refused at the moment, or soon will be.
    pub trouble: Option<RecordError>,
    /// Records and bytes in memory, not sealed yet.
    pub in_memory: u64,
    /// See `in_memory`.
    pub in_memory_bytes: u64,
    /// Envelopes sealed and their bytes.
    pub sealed: u64,
    /// See `sealed`.
    pub sealed_bytes: u64,
    /// Records that are, or were, durable on the device's disk.
    pub held: u64,
    /// Envelopes, and the records and bytes in them, that were given up by policy.
    pub dropped_envelopes: u64,
    /// See `dropped_envelopes`.
    pub dropped_records: u64,
    /// See `dropped_envelopes`.
    pub dropped_bytes: u64,
    /// Envelopes that need not be kept any more, and why.
    pub settled: Settled,
    /// Why the large file in front has no answer, while a gateway is connected: it is tried again, and what lies behind it in
    /// the stream waits for it.
    pub upload_trouble: Option<Trouble>,
    /// How many envelopes this log has ever taken, and how many of them, from the oldest on, are settled: an envelope that was
    /// the last when `end` was read needs no longer be kept when `settled_up_to` has reached it. They go on over restarts.
    pub end: u64,
    /// See `end`.
    pub settled_up_to: u64,
    /// Envelopes on the disk that wait.
    pub waiting: u64,
    /// Bytes on the disk that they take, files included.
    pub waiting_bytes: u64,
    /// How long the oldest has waited, by the wall clock.
    pub oldest: Option<Duration>,
    /// The stream's budget on the disk.
    pub budget_bytes: u64,
}

impl StreamStatus {
    pub(super) fn of(log: &Log, intake: Option<&Intake>, progress: &Progress) -> Self {
        let stats = log.stats();
        let now_ms = u64::try_from(DeviceClock::wall_us() / 1_000).unwrap_or(0);
        let settled = progress.streams.get(log.stream()).copied().unwrap_or_default();
        let (end, settled_up_to) = (log.end().0, log.acknowledged_up_to().0);
        let mut status = Self {
            settled,
            upload_trouble: progress.uploads.get(log.stream()).cloned(),
            end,
            settled_up_to,
            waiting: end.saturating_sub(settled_up_to),
            waiting_bytes: stats.bytes + log.files().bytes(),
            oldest: stats.oldest_ms.map(|oldest| Duration::from_millis(now_ms.saturating_sub(oldest))),
            budget_bytes: log.budget_bytes(),
            ..Self::default()
        };
        if status.waiting == 0 {
            (status.waiting_bytes, status.oldest) = (0, None);
        }
        if let Some(intake) = intake {
            let counters = &intake.counters;
            let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
            let (in_memory, in_memory_bytes) = intake.in_memory();
            status.files = intake.options.kind == Kind::Files;
            status.recorded = read(&counters.recorded);
            status.recorded_bytes = read(&counters.recorded_bytes);
            status.refused = read(&counters.refused);
            status.trouble = intake.trouble();
            (status.in_memory, status.in_memory_bytes) = (in_memory, in_memory_bytes);
            status.sealed = read(&counters.sealed);
            status.sealed_bytes = read(&counters.sealed_bytes);
            status.held = read(&counters.held);
            status.dropped_envelopes = read(&counters.dropped_envelopes);
            status.dropped_records = read(&counters.dropped_records);
            status.dropped_bytes = read(&counters.dropped_bytes);
        }
        status
    }
}

//! A stream, as the control loop sees it: [`Stream::record`] takes a lock, copies the bytes, and returns.
//!
//! ```text
//! record() ─> batch that is being filled ─(full, or linger over)─> ready ─> the thread that seals
//! ```

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use pithead_sealing::{names::StreamName, trust::TrustError};
use tokio::sync::Notify;

use super::{bell::Bell, options::StreamOptions};
use crate::{
    batch::{BatchBuilder, BatchLimits, Gathered, Moment},
    clock::DeviceClock,
    sealer::{Content, SealError},
    state::lock,
};

/// Why a record was not taken. It was counted in [`super::StreamStatus::refused`] and is not kept anywhere.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The stream's budget is used up and its policy is [`super::WhenFull::Reject`], or nothing more can be given up.
    #[error("the stream's budget on the disk is used up")]
    Full,
    /// The disk takes nothing: it failed, or it has no space.
    #[error("the device's disk takes nothing: {0}")]
    Disk(DiskTrouble),
    /// There is no key to seal to: what is recorded waits in memory, and there is no more room.
    #[error("no key to seal to: {0} ({code})", code = .0.code())]
    NoKey(TrustError),
    /// It cannot be sealed.
    #[error("sealing fails: {0}")]
    Seal(Arc<SealError>),
    /// The disk is slower than the records come, and the stream's memory is full.
    #[error("the disk is behind, and the stream's memory is full")]
    Behind,
    /// The record is larger than an envelope of this stream can be. Trying again is useless.
    #[error("a record of {bytes} bytes, and this stream takes {limit}")]
    TooLarge {
        /// Bytes of name and data.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The client is being closed.
    #[error("the client is closed")]
    Closed,
}

impl RecordError {
    /// Whether the same record may be taken later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Full | Self::NoKey(_) | Self::Behind => true,
            Self::Disk(trouble) => trouble.is_retryable(),
            Self::Seal(_) | Self::TooLarge { .. } | Self::Closed => false,
        }
    }
}

/// What is wrong with the device's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DiskTrouble {
    /// It has no space, though the stream's budget is not used up.
    #[error("it is full")]
    NoSpace,
    /// Writing or syncing failed; it is tried again.
    #[error("{0}")]
    Failing(std::io::ErrorKind),
    /// It failed for good; the client must be opened again.
    #[error("it failed; the client must be opened again")]
    Dead,
}

impl DiskTrouble {
    fn is_retryable(self) -> bool {
        match self {
            Self::NoSpace | Self::Failing(_) => true,
            Self::Dead => false,
        }
    }
}

/// What waits for its number and its seal.
#[derive(Debug)]
pub(super) struct Ready {
    /// Counts what became ready on this stream, from 1.
    pub(super) ordinal: u64,
    pub(super) body: Body,
}

#[derive(Debug)]
pub(super) enum Body {
    Batch(Gathered),
    /// It could not be sealed, and says what it says.
    Whole(Whole),
}

/// A plaintext as it is sealed.
#[derive(Debug)]
pub(super) struct Whole {
    pub(super) content: Content,
    pub(super) plaintext: Vec<u8>,
    pub(super) records: u64,
    pub(super) payload_bytes: u64,
}

impl Ready {
    fn bytes(&self) -> usize {
        match &self.body {
            Body::Batch(gathered) => gathered.encoded_bytes(),
            Body::Whole(whole) => whole.plaintext.len(),
        }
    }
}

/// Counts since the client was opened.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) recorded: AtomicU64,
    pub(super) recorded_bytes: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) sealed: AtomicU64,
    pub(super) sealed_bytes: AtomicU64,
    pub(super) held: AtomicU64,
    pub(super) dropped_envelopes: AtomicU64,
    pub(super) dropped_records: AtomicU64,
    pub(super) dropped_bytes: AtomicU64,
}

impl Counters {
    pub(super) fn add(counter: &AtomicU64, more: u64) {
        counter.fetch_add(more, Ordering::Relaxed);
    }
}

/// The memory of a stream: shared between who records and who seals.
#[derive(Debug)]
pub(super) struct Intake {
    pub(super) options: StreamOptions,
    gathering: Mutex<Gathering>,
    pub(super) counters: Counters,
    bell: Arc<Bell>,
    /// Rung when memory has become free.
    pub(super) room: Notify,
    record_limit: u64,
}

#[derive(Debug)]
struct Gathering {
    builder: BatchBuilder,
    /// When the batch has to be sealed, by the monotonic clock.
    due: Option<Duration>,
    ready: VecDeque<Ready>,
    ready_bytes: usize,
    /// The ordinal that was given last.
    given: u64,
    /// Why nothing leaves the memory at the moment.
    trouble: Option<RecordError>,
    closed: bool,
}

/// What the sealing thread sees of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Now,
    At(Duration),
    Nothing,
}

impl Intake {
    pub(super) fn new(options: StreamOptions, inline_bytes: u64, bell: Arc<Bell>) -> Self {
        // Header, tags, gaps and heartbeat are around the records in the envelope.
        let around = 40 * 1024;
        let most = usize::try_from(inline_bytes.saturating_sub(around)).unwrap_or(usize::MAX);
        let limits =
            BatchLimits { records: options.limits.records.max(1), bytes: options.limits.bytes.min(most) };
        let gathering = Gathering {
            builder: BatchBuilder::new(limits),
            due: None,
            ready: VecDeque::new(),
            ready_bytes: 0,
            given: 0,
            trouble: None,
            closed: false,
        };
        Self {
            options,
            gathering: Mutex::new(gathering),
            counters: Counters::default(),
            bell,
            room: Notify::new(),
            record_limit: most as u64,
        }
    }

    fn record(&self, at: Moment, now: Duration, name: &str, data: &[u8]) -> Result<(), RecordError> {
        let bytes = (name.len() + data.len()) as u64;
        if bytes > self.record_limit {
            Counters::add(&self.counters.refused, 1);
            return Err(RecordError::TooLarge { bytes, limit: self.record_limit });
        }
        let mut gathering = lock(&self.gathering);
        if let Err(error) = gathering.admit(self.options.memory_bytes) {
            drop(gathering);
            Counters::add(&self.counters.refused, 1);
            return Err(error);
        }
        let mut wake = false;
        if gathering.builder.push(at, name, data).is_err() {
            gathering.close_batch();
            wake = true;
            gathering.builder.push(at, name, data).expect("an empty batch takes any record");
        }
        if gathering.due.is_none() {
            gathering.due = Some(now + self.options.linger);
            wake = true;
        }
        drop(gathering);
        Counters::add(&self.counters.recorded, 1);
        Counters::add(&self.counters.recorded_bytes, bytes);
        if wake {
            self.bell.ring();
        }
        Ok(())
    }

    /// An ordinal for something that does not go through this memory.
    pub(super) fn skip(&self) -> u64 {
        let mut gathering = lock(&self.gathering);
        gathering.given += 1;
        gathering.given
    }

    /// When the sealing thread has to look again.
    pub(super) fn due(&self, now: Duration) -> Due {
        let gathering = lock(&self.gathering);
        match gathering.due {
            _ if !gathering.ready.is_empty() => Due::Now,
            Some(due) if due <= now => Due::Now,
            Some(due) => Due::At(due),
            None => Due::Nothing,
        }
    }

    /// What is to be sealed next, if something is.
    pub(super) fn take(&self, now: Duration) -> Option<Ready> {
        let mut gathering = lock(&self.gathering);
        if gathering.ready.is_empty() && gathering.due.is_some_and(|due| due <= now) {
            gathering.close_batch();
        }
        let ready = gathering.ready.pop_front()?;
        gathering.ready_bytes -= ready.bytes();
        drop(gathering);
        self.room.notify_waiters();
        Some(ready)
    }

    /// What is ready is one batch, and nothing more comes.
    pub(super) fn is_last(&self) -> bool {
        let gathering = lock(&self.gathering);
        gathering.closed && gathering.builder.is_empty() && gathering.ready.len() == 1
    }

    /// It could not be sealed now: it stays the next.
    pub(super) fn put_back(&self, ready: Ready) {
        let mut gathering = lock(&self.gathering);
        gathering.ready_bytes += ready.bytes();
        gathering.ready.push_front(ready);
    }

    /// Ends the batch that is being filled. Gives the last ordinal that was given.
    pub(super) fn close_batch(&self) -> u64 {
        let mut gathering = lock(&self.gathering);
        gathering.close_batch();
        gathering.given
    }

    /// Nothing leaves the memory, and why; or it does again.
    pub(super) fn set_trouble(&self, trouble: Option<RecordError>) {
        lock(&self.gathering).trouble = trouble;
        self.room.notify_waiters();
    }

    pub(super) fn trouble(&self) -> Option<RecordError> {
        lock(&self.gathering).trouble.clone()
    }

    /// Records and bytes that are not sealed yet.
    pub(super) fn in_memory(&self) -> (u64, u64) {
        let gathering = lock(&self.gathering);
        let ready = gathering.ready.iter().map(|ready| match &ready.body {
            Body::Batch(gathered) => gathered.records() as u64,
            Body::Whole(whole) => whole.records,
        });
        let records = ready.sum::<u64>() + gathering.builder.len() as u64;
        (records, (gathering.ready_bytes + gathering.builder.encoded_bytes()) as u64)
    }

    /// Takes nothing more.
    pub(super) fn close(&self) {
        lock(&self.gathering).closed = true;
        self.room.notify_waiters();
    }
}

impl Gathering {
    fn admit(&self, memory_bytes: usize) -> Result<(), RecordError> {
        if self.closed {
            return Err(RecordError::Closed);
        }
        // What waits for a full disk would be in memory for hours: one batch is the most that a cut may take.
        if let Some(trouble) = self.trouble.as_ref().filter(|_| !self.ready.is_empty()) {
            return Err(trouble.clone());
        }
        if self.ready_bytes + self.builder.encoded_bytes() >= memory_bytes {
            return Err(RecordError::Behind);
        }
        Ok(())
    }

    fn close_batch(&mut self) {
        self.due = None;
        if !self.builder.is_empty() {
            self.given += 1;
            let ready = Ready { ordinal: self.given, body: Body::Batch(self.builder.take()) };
            self.ready_bytes += ready.bytes();
            self.ready.push_back(ready);
        }
    }
}

/// A stream of records. Cheap to clone; all clones are the same stream.
#[derive(Clone, Debug)]
pub struct Stream {
    pub(super) intake: Arc<Intake>,
}

impl Stream {
    /// The stream's name.
    #[must_use]
    pub fn name(&self) -> &StreamName {
        &self.intake.options.name
    }

    /// Takes a record, stamped with the clocks as they stand. Returns at once: it never waits for the disk, the network or
    /// a seal. From here on the record is in memory; it survives a power cut when [`super::Client::sync`] says so, or after
    /// [`StreamOptions::linger`] and one write of the disk.
    ///
    /// # Errors
    /// [`RecordError`]: by policy, for a disk that takes nothing, or because memory is full. The record is the caller's then.
    pub fn record(&self, data: &[u8]) -> Result<(), RecordError> {
        self.record_named("", data)
    }

    /// The same with a name: what the record is, in the device's own terms. It is sealed with the data.
    ///
    /// # Errors
    /// As [`Stream::record`].
    pub fn record_named(&self, name: &str, data: &[u8]) -> Result<(), RecordError> {
        let now = DeviceClock::since_boot();
        let monotonic_us = u64::try_from(now.as_micros()).ok();
        self.intake.record(Moment { wall_us: DeviceClock::wall_us(), monotonic_us }, now, name, data)
    }

    /// The same for a record whose time its owner knows better: microseconds since 1970. It carries no monotonic time.
    ///
    /// # Errors
    /// As [`Stream::record`].
    pub fn record_at(&self, wall_us: i64, name: &str, data: &[u8]) -> Result<(), RecordError> {
        let at = Moment { wall_us, monotonic_us: None };
        self.intake.record(at, DeviceClock::since_boot(), name, data)
    }

    /// Resolves when a record that was refused is worth another try, or would be refused for another reason. For those who read
    /// from somewhere that can wait; a control loop does not. Cancel safe, on any executor.
    pub async fn room(&self) {
        let troubled = self.intake.trouble().is_some();
        loop {
            let mut notified = std::pin::pin!(self.intake.room.notified());
            notified.as_mut().enable();
            let admitted = lock(&self.intake.gathering).admit(self.intake.options.memory_bytes);
            match admitted {
                // Nothing will come, and asking again says so.
                Ok(()) | Err(RecordError::Closed) => return,
                Err(RecordError::Behind) => {}
                Err(_) if !troubled => return,
                Err(_) => {}
            }
            notified.await;
        }
    }
}

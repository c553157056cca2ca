//! Large envelopes on their way: one at a time, beside the window of small ones, each in its place in its line.
//!
//! A line keeps its order: a large envelope begins when everything before it in its lane is answered, and what comes behind
//! it on its own line waits here until it is. Everything else goes on. What waits here is bounded; at the bound nothing more
//! is taken from the lanes until the large one is through.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use pithead_hop::backoff::{Backoff, Policy, random};
use pithead_hop::connect::Connection;
use pithead_hop::ingest::send::{Pace as UploadPace, UploadError, UploadProgress, send_upload};
use pithead_hop::ingest::{Answer, SealedFile, SealedFileError, UploadStore};
use pithead_hop::objects::StoreError;
use pithead_hop::trace::span::{Kind, Span, Spans};
use pithead_hop::trace::{TraceParent, Traced};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::Line;
use pithead_spool::{Lane, Position, Record};
use tokio::time::Instant;

use super::super::copies::{Copies, CopyError};
use super::super::record::Head;
use super::pace::Pace;
use crate::clock::since_boot;

/// Large envelopes that have been read and wait for their turn: each is a few hundred bytes.
const WAITING_MAX: usize = 256;
/// Small envelopes that wait behind a large one of their line, and their bytes: a stream that mixes them is rare.
const BEHIND_MAX: usize = 1_024;
const BEHIND_BYTES: usize = 4 << 20;

/// A large envelope that has left its lane and is not answered.
#[derive(Debug, Clone)]
pub(super) struct LargeSent {
    pub(super) lane: Lane,
    pub(super) position: Position,
    pub(super) head: Head,
    pub(super) total: u64,
    /// Bytes of its record in the log.
    pub(super) record_bytes: u64,
    /// When its record was written, in milliseconds since 1970.
    pub(super) at_ms: u64,
}

/// How an attempt ended.
#[derive(Debug)]
pub(super) enum LargeEnded {
    /// The far end has answered.
    Answered(Answer),
    /// Its file is gone or damaged: a good copy may still come.
    Damaged(SealedFileError),
    /// Its copy elsewhere is gone or damaged, and it is not here: a good copy may still come.
    Lost(CopyError),
    /// It goes out again, later.
    Failed(LargeError),
}

impl LargeEnded {
    /// Its file did not give its bytes: they are not those that were written, or the disk may still give them.
    pub(super) fn of_source(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                Self::Damaged(SealedFileError::Disk(error))
            }
            _ => Self::Failed(LargeError::source_failed(error)),
        }
    }
}

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum LargeError {
    /// On the way over a call, or the file.
    #[error(transparent)]
    Upload(#[from] UploadError),
    /// On the way into a store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its bytes are not here, and the store does not give its copy.
    #[error(transparent)]
    Copy(CopyError),
    /// It cannot be written down how far it is.
    #[error("DATA/relay-parts: {0}")]
    Journal(#[source] io::Error),
}

impl LargeError {
    /// The disk did not give the file: that may pass.
    pub(super) fn source_failed(error: io::Error) -> Self {
        Self::Upload(UploadError::Source(error))
    }

    pub(super) fn reason(&self) -> Option<ErrorReason> {
        match self {
            Self::Upload(error) => error.reason(),
            Self::Store(error) => Some(error.fault.reason()),
            Self::Copy(error) => Some(error.reason()),
            Self::Journal(_) => Some(ErrorReason::DiskFailed),
        }
    }

    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Upload(error) => error.retry_after(),
            Self::Store(_) | Self::Copy(_) | Self::Journal(_) => None,
        }
    }
}

/// Whether an attempt has brought its envelope forward: told by whoever carries it.
pub(super) type Advanced = Arc<dyn Fn() + Send + Sync>;

/// How large envelopes leave: over a call, or into a store.
pub(super) trait LargeWay: Send + Sync {
    /// One attempt, from where the last one came to.
    fn send(&self, sent: LargeSent, advanced: Advanced) -> BoxFuture<'static, LargeEnded>;
}

/// Over a call of the upload service.
pub(super) struct OverCall {
    pub(super) parts: LargeParts,
    pub(super) connection: Connection,
}

impl LargeWay for OverCall {
    fn send(&self, sent: LargeSent, advanced: Advanced) -> BoxFuture<'static, LargeEnded> {
        let Self { parts, connection } = self;
        Box::pin(attempt(parts.clone(), connection.clone(), advanced, sent))
    }
}

/// A small envelope that was taken from its lane.
pub(super) type Small = (Lane, Position, Record);

#[derive(Debug)]
enum Waiting {
    Large(LargeSent),
    Small(Small),
}

/// What it needs of the gateway.
#[derive(Clone)]
pub(super) struct LargeParts {
    pub(super) uploads: UploadStore,
    pub(super) copies: Option<Copies>,
    pub(super) pace: Pace,
    pub(super) spans: Spans,
}

/// See the module above.
pub(super) struct Large {
    way: Arc<dyn LargeWay>,
    /// Lines that have a large envelope here: it, and what came behind it.
    lines: HashMap<Line, VecDeque<Waiting>>,
    /// Lines whose first is a large one, in the order of its coming.
    turns: VecDeque<Line>,
    /// Small ones whose turn has come.
    ready: VecDeque<Small>,
    large: usize,
    behind: (usize, usize),
    under_way: Option<(Line, BoxFuture<'static, LargeEnded>)>,
    backoff: Backoff,
    not_before: Instant,
    /// The far end has got more of one on its disk, on this call.
    advanced: Arc<AtomicBool>,
    /// The same, by the attempt that is under way.
    attempt_advanced: Arc<AtomicBool>,
}

impl Large {
    pub(super) fn new(way: Arc<dyn LargeWay>) -> Self {
        Self {
            way,
            lines: HashMap::new(),
            turns: VecDeque::new(),
            ready: VecDeque::new(),
            large: 0,
            behind: (0, 0),
            under_way: None,
            backoff: Backoff::new(Policy::default()),
            not_before: Instant::now(),
            advanced: Arc::default(),
            attempt_advanced: Arc::default(),
        }
    }

    /// Whether this call has brought any of them forward.
    pub(super) fn has_advanced(&self) -> bool {
        self.advanced.load(Ordering::Relaxed)
    }

    /// True if nothing more may be taken from the lanes.
    pub(super) fn is_full(&self) -> bool {
        self.large >= WAITING_MAX || self.behind.0 >= BEHIND_MAX || self.behind.1 >= BEHIND_BYTES
    }

    /// A large envelope has left its lane.
    pub(super) fn add(&mut self, sent: LargeSent) {
        let line = sent.head.identity.line();
        self.large += 1;
        let waiting = self.lines.entry(line.clone()).or_default();
        waiting.push_back(Waiting::Large(sent));
        if waiting.len() == 1 {
            self.turns.push_back(line);
        }
    }

    /// Keeps a small envelope that must not overtake a large one of its line; gives it back if there is none. One that lies before
    /// the large one was taken before and given back: the large one waits for it, so it waits for none.
    pub(super) fn hold_back(&mut self, line: &Line, small: Small) -> Result<(), Small> {
        let Some(waiting) = self.lines.get_mut(line) else { return Err(small) };
        let is_behind = match waiting.front() {
            Some(Waiting::Large(sent)) => sent.lane == small.0 && sent.position < small.1,
            Some(Waiting::Small(_)) | None => false,
        };
        if !is_behind {
            return Err(small);
        }
        self.behind.0 += 1;
        self.behind.1 += small.2.body.len();
        waiting.push_back(Waiting::Small(small));
        Ok(())
    }

    /// The next small one whose turn has come, by its lane and size.
    pub(super) fn next_ready(&self) -> Option<(Lane, u64)> {
        self.ready.front().map(|(lane, _, record)| (*lane, record.body.len() as u64))
    }

    pub(super) fn take_ready(&mut self) -> Option<Small> {
        self.ready.pop_front()
    }

    pub(super) fn put_back(&mut self, small: Small) {
        self.ready.push_front(small);
    }

    /// Begins the next large one, if there is one and everything before it in its lane is answered.
    pub(super) fn begin(&mut self, is_first: impl Fn(Lane, Position) -> bool) {
        if self.under_way.is_some() || self.not_before > Instant::now() {
            return;
        }
        let Some(at) = self
            .turns
            .iter()
            .position(|line| self.first(line).is_some_and(|sent| is_first(sent.lane, sent.position)))
        else {
            return;
        };
        let Some(line) = self.turns.get(at).cloned() else { return };
        let Some(sent) = self.first(&line).cloned() else { return };
        self.attempt_advanced.store(false, Ordering::Relaxed);
        let (ever, attempt) = (Arc::clone(&self.advanced), Arc::clone(&self.attempt_advanced));
        let advanced: Advanced = Arc::new(move || {
            ever.store(true, Ordering::Relaxed);
            attempt.store(true, Ordering::Relaxed);
        });
        self.under_way = Some((line, self.way.send(sent, advanced)));
    }

    /// Resolves when the one that is under way has ended, with what became of it; pends while there is none. Cancel safe.
    pub(super) async fn ended(&mut self) -> (Line, LargeEnded) {
        match &mut self.under_way {
            Some((line, attempt)) => {
                let ended = attempt.await;
                let line = line.clone();
                self.under_way = None;
                (line, ended)
            }
            None => std::future::pending().await,
        }
    }

    /// The large one of a line whose turn it is.
    pub(super) fn first(&self, line: &Line) -> Option<&LargeSent> {
        match self.lines.get(line)?.front()? {
            Waiting::Large(sent) => Some(sent),
            Waiting::Small(_) => None,
        }
    }

    /// It is whole at its destination, and not yet settled: it is not sent again, and what is behind it waits on.
    pub(super) fn whole(&mut self, line: &Line) -> Option<LargeSent> {
        self.turns.retain(|turn| turn != line);
        self.first(line).cloned()
    }

    /// True if none is under way and none waits for its turn.
    pub(super) fn is_idle(&self) -> bool {
        self.under_way.is_none() && self.turns.is_empty()
    }

    /// When a large one that failed is tried again.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        let waits = self.under_way.is_none() && !self.turns.is_empty() && self.not_before > Instant::now();
        waits.then_some(self.not_before)
    }

    /// The first large one of a line is answered, or lost: what came behind it has its turn.
    pub(super) fn settled(&mut self, line: &Line) -> Option<LargeSent> {
        self.backoff.reset();
        let waiting = self.lines.get_mut(line)?;
        let Some(Waiting::Large(sent)) = waiting.pop_front() else { return None };
        self.large -= 1;
        self.turns.retain(|turn| turn != line);
        while let Some(Waiting::Small(_)) = waiting.front() {
            if let Some(Waiting::Small(small)) = waiting.pop_front() {
                self.behind.0 -= 1;
                self.behind.1 -= small.2.body.len();
                self.ready.push_back(small);
            }
        }
        if waiting.is_empty() {
            self.lines.remove(line);
        } else {
            self.turns.push_back(line.clone());
        }
        Some(sent)
    }

    /// The attempt failed: the same one, or another, is tried later.
    pub(super) fn failed(&mut self, line: &Line, retry_after: Option<Duration>) {
        if self.attempt_advanced.load(Ordering::Relaxed) {
            self.backoff.reset();
        }
        self.not_before = Instant::now() + self.backoff.next_delay(random(), retry_after);
        // Others have their turn first.
        if let Some(at) = self.turns.iter().position(|turn| turn == line)
            && let Some(turn) = self.turns.remove(at)
        {
            self.turns.push_back(turn);
        }
    }
}

impl LargeParts {
    /// The span of an attempt, and the call that brought the envelope, if that is followed.
    pub(super) fn span(&self, sent: &LargeSent) -> (Span, Option<TraceParent>) {
        let identity = &sent.head.identity;
        let brought = self.uploads.trace_of(identity);
        let mut span = self.spans.child("relay.upload", Kind::Client, brought);
        span.text("pithead.envelope", || identity.to_string());
        span.number("pithead.bytes", sent.total);
        (span, brought)
    }

    /// Opens its file; one that another gateway has gathered is fetched first.
    pub(super) async fn open(&self, sent: &LargeSent) -> Result<Arc<SealedFile>, LargeEnded> {
        let head = &sent.head;
        if head.copy.is_some() && !self.uploads.is_here(&head.identity) {
            // It has lost its place to another record of the same envelope.
            let (uploads, of) = (self.uploads.clone(), head.clone());
            let total = sent.total;
            let placing = move || uploads.recorded(&of.identity, &of.sha256, total, since_boot());
            let placed = tokio::task::spawn_blocking(placing)
                .await
                .unwrap_or_else(|error| Err(io::Error::other(error)));
            placed.map_err(|error| LargeEnded::Failed(LargeError::source_failed(error)))?;
        }
        if let Some(copy) = head.copy.as_ref().filter(|_| self.uploads.is_away(&head.identity)) {
            let brought = match &self.copies {
                Some(copies) => copies.bring(head, copy).await,
                None => Err(CopyError::NotConfigured),
            };
            brought.map_err(|error| match error {
                lost @ CopyError::Lost(_) => LargeEnded::Lost(lost),
                error => LargeEnded::Failed(LargeError::Copy(error)),
            })?;
        }
        let (uploads, identity) = (self.uploads.clone(), sent.head.identity.clone());
        match tokio::task::spawn_blocking(move || uploads.read(&identity)).await {
            Ok(Ok(source)) => Ok(Arc::new(source)),
            // Too many open files, say: that passes.
            Ok(Err(SealedFileError::Disk(error))) => {
                Err(LargeEnded::Failed(LargeError::source_failed(error)))
            }
            Ok(Err(error)) => Err(LargeEnded::Damaged(error)),
            Err(error) => Err(LargeEnded::Failed(LargeError::source_failed(io::Error::other(error)))),
        }
    }
}

async fn attempt(
    parts: LargeParts,
    connection: Connection,
    advanced: Advanced,
    sent: LargeSent,
) -> LargeEnded {
    let (mut span, brought) = parts.span(&sent);
    let trace = span.at().or(brought.map(|trace| trace.child(random())));
    let source = match parts.open(&sent).await {
        Ok(source) => source,
        Err(ended) => return ended,
    };
    // Its bytes share the way to the cloud with everything else, slice by slice.
    let toll = Arc::new(tokio::sync::Mutex::new(parts.pace.toll()));
    let paid: UploadPace = Arc::new(move |bytes| {
        let toll = Arc::clone(&toll);
        Box::pin(async move {
            let mut toll = toll.lock().await;
            toll.pay(bytes).await;
            toll.sent(bytes);
        })
    });
    let mut first = None;
    let told = |now: UploadProgress| {
        if now.persisted > *first.get_or_insert(now.persisted) {
            advanced();
        }
    };
    match send_upload(Traced::new(connection, trace), source, sent.head.hops, Some(paid), told).await {
        Ok(answer) => LargeEnded::Answered(answer),
        Err(UploadError::Source(error)) => LargeEnded::of_source(error),
        Err(error) => {
            span.failed(|| error.reason().map_or("UNKNOWN", |reason| reason.name()).to_owned());
            LargeEnded::Failed(error.into())
        }
    }
}

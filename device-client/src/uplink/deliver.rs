//! From the outbox to a gateway, until told to stop.
//!
//! One connection and one `Append` call at a time, and a large file beside it. What has no answer when a call ends goes out
//! again as the same bytes; the far end recognises what it has. Delays between attempts have full jitter, with the far end's
//! RetryInfo as the floor. Only an answer makes the outbox forget.
//!
//! A gateway's Welcome says up to where it holds each line. What this process has sent before and has no answer to need not
//! cross the air again then. What was never sent is sent, whatever the Welcome says: a number that a stranger has used up
//! must come back as a conflict and not pass for a delivery.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use pithead_hop::{
    backoff::{self, Backoff},
    connect::{ConnectError, Connection, Endpoint, Untrusted},
    ingest::{
        Answer, Answered, NotTaken, SendError, SendOptions, Sender,
        send::{LineToSend, PlainFile, UploadError, UploadProgress, send_upload},
    },
};
use pithead_proto::{errors::v1::ErrorReason, ingest::v1 as wire};
use pithead_sealing::names::{Identity, Line, Seq, StreamName};
use pithead_spool::{Position, ReadError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    Uplink,
    follow::{self, Version},
    order::Order,
    refused::{RefusedArea, RefusedError},
};
use crate::{
    batch::{Gap, GapReason},
    client::{Desk, FileState},
    clock::DeviceClock,
    outbox::{Log, Outbox, Read, Waiting, WaitingContent, WaitingReader},
};

/// How much is read of a stream at a time: enough for a request, little enough that sixteen streams stay small.
const READ_BYTES: usize = 256 << 10;
/// Large files on their way at the same time, each of another stream; the gateway takes four of a device.
const UPLOADS_AT_ONCE: usize = 2;

/// How delivery stands. Counts since the client was opened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    /// The gateway that is taking envelopes.
    pub(crate) connected: Option<Endpoint>,
    /// Connections made.
    pub(crate) connections: u64,
    /// By stream.
    pub(crate) streams: BTreeMap<StreamName, Settled>,
    /// Why nothing is being delivered.
    pub(crate) trouble: Option<Trouble>,
    /// Of the last gateway that was reached.
    pub(crate) clock: Option<ClockOffset>,
}

/// Envelopes of a stream that need not be kept any more, by how that came about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settled {
    /// A gateway has it on its disk because of us.
    pub stored: u64,
    /// It was there before.
    pub duplicates: u64,
    /// Of these duplicates, those that did not cross the air again.
    pub resumed: u64,
    /// Other bytes stand under its number, and it is kept beside them at the gateway.
    pub conflicts: u64,
    /// No gateway will take it; it is in the refused area.
    pub refused: u64,
    /// It was damaged on the device's disk, or refused and the refused area was full: declared as a gap.
    pub lost: u64,
}

/// Why nothing is being delivered at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Trouble {
    /// The registry's reason, where there is one.
    pub reason: Option<ErrorReason>,
    /// For a person.
    pub detail: String,
    /// Trying again may help without anybody mending something.
    pub retryable: bool,
    /// When it is tried again, counted from when this was said.
    pub retry_after: Option<Duration>,
}

/// The gateway's clock against the wall clock here: for display, never evidence, and nothing goes by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClockOffset {
    /// How far the gateway's clock is ahead, in microseconds.
    pub ahead_us: i64,
    /// Half the round trip in which it was asked: how wrong that may be.
    pub uncertainty_us: u64,
}

/// An attempt goes on until it ends badly.
pub(super) enum Never {}

enum Ended {
    Connect(ConnectError),
    Call {
        gateway: usize,
        error: SendError,
    },
    Outbox(ReadError),
    Refused(RefusedError),
    /// The runtime is going down.
    Closed,
}

/// What delivery needs, for as long as the client is open.
pub(crate) struct Delivery {
    pub(crate) uplink: Uplink,
    pub(crate) outbox: Arc<Outbox>,
    /// Of the streams that are configured; the others come last.
    pub(crate) priorities: BTreeMap<StreamName, u8>,
    pub(crate) refused: RefusedArea,
    pub(crate) progress: watch::Sender<Progress>,
    pub(crate) desk: Desk,
    pub(crate) window_bytes: u64,
}

impl Delivery {
    /// Delivers what waits and what comes, until `stop`. Then it waits for no more answers: what has none goes out again.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::new(self.uplink.gateways.retry);
        let mut sent = HashMap::new();
        // Where the next attempt begins, and how many in a row went on to another gateway at once.
        let (mut first, mut turned_away) = (0, 0);
        while !stop.is_cancelled() {
            let before = self.settled();
            let Some(ended) = stop.run_until_cancelled(self.attempt(first, &mut sent)).await else { break };
            let Err(ended) = ended;
            self.desk.set_connected(false);
            if self.settled() > before {
                backoff.reset();
                turned_away = 0;
            }
            let (mut trouble, floor) = trouble(&ended);
            first = 0;
            // A gateway that is full or is going away may have a neighbour that is not.
            if let Ended::Call { gateway, error } = &ended
                && error.is_retryable()
                && error.reason().is_some()
                && turned_away + 1 < self.uplink.gateways.endpoints.len()
            {
                turned_away += 1;
                first = gateway + 1;
                self.say(None, Some(trouble));
                continue;
            }
            turned_away = 0;
            if let Ended::Connect(ConnectError::Untrusted(Untrusted::Expired)) = &ended
                && let Some(Err(error)) = stop.run_until_cancelled(self.uplink.ask_for_keys(&self.desk)).await
            {
                follow::tell(&error);
            }
            let delay = backoff.next_delay(backoff::random(), floor);
            tracing::info!(
                event = "uplink.down",
                detail = trouble.detail,
                retry_after_ms = delay.as_millis()
            );
            trouble.retry_after = Some(delay);
            self.say(None, Some(trouble));
            if stop.run_until_cancelled(tokio::time::sleep(delay)).await.is_none() {
                break;
            }
        }
        self.desk.set_connected(false);
        self.say(None, None);
    }

    fn settled(&self) -> u64 {
        self.outbox.logs().map(|log| log.acknowledged_up_to().0).sum()
    }

    fn say(&self, connected: Option<Endpoint>, trouble: Option<Trouble>) {
        self.progress.send_modify(|progress| {
            progress.connected = connected;
            progress.trouble = trouble;
        });
    }

    async fn attempt(&self, first: usize, sent: &mut HashMap<Line, Seq>) -> Result<Never, Ended> {
        let uplink = &self.uplink;
        let (connection, gateway) = uplink.connect(&uplink.tls, first).await.map_err(Ended::Connect)?;
        let outbox = Arc::clone(&self.outbox);
        let lines = blocking(move || outbox.lines_waiting()).await?;
        let lines = lines
            .into_iter()
            .map(|(line, seq)| LineToSend { stream: line.stream, run: line.run, first_unacked: seq })
            .collect();
        let mut options = SendOptions::new(concat!("pithead-device/", env!("CARGO_PKG_VERSION")));
        options.window.bytes = self.window_bytes;
        let (asked_us, asked) = (DeviceClock::wall_us(), Instant::now());
        let mut sender = Sender::open(connection.clone(), &options, lines)
            .await
            .map_err(|error| Ended::Call { gateway, error })?;
        sender.declare(self.outbox.hints().iter().map(hint));
        let clock = offset(asked_us, asked.elapsed(), sender.welcomed().time_us);
        let held = self.held(&sender, sent);
        self.progress.send_modify(|progress| {
            progress.connections += 1;
            progress.clock = Some(clock);
            progress.connected = uplink.gateways.endpoints.get(gateway).cloned();
            progress.trouble = None;
        });
        self.desk.set_connected(true);
        let (hint, _) = watch::channel(None);
        let mut call = Call {
            delivery: self,
            gateway,
            connection: connection.clone(),
            lanes: self.outbox.logs().map(|log| Lane::new(log, &self.priorities)).collect(),
            sender,
            uploads: FuturesUnordered::new(),
            sent,
            held,
            hint: &hint,
        };
        call.hint();
        tokio::select! {
            ended = call.run() => ended,
            never = uplink.follow_keys(connection, &self.desk, &hint) => match never {},
        }
    }

    /// Up to where the gateway holds what was sent before, and was not answered.
    fn held(&self, sender: &Sender<Token>, sent: &HashMap<Line, Seq>) -> HashMap<Line, u64> {
        let lines = sender.welcomed().lines.iter().filter_map(|held| {
            let line =
                Line { device: self.desk.device().clone(), stream: held.stream.clone(), run: held.run };
            let sent = sent.get(&line)?.get();
            Some((line, held.high_water.min(sent)))
        });
        lines.collect()
    }
}

/// The wall clock was read before asking; it may be set meanwhile, so the round trip comes from another clock.
fn offset(asked_us: i64, round_trip: Duration, theirs_us: u64) -> ClockOffset {
    let half_us = u64::try_from(round_trip.as_micros() / 2).unwrap_or(u64::MAX);
    let here_us = asked_us.saturating_add_unsigned(half_us);
    let ahead_us = i64::try_from(theirs_us).unwrap_or(i64::MAX).saturating_sub(here_us);
    ClockOffset { ahead_us, uncertainty_us: half_us }
}

fn trouble(ended: &Ended) -> (Trouble, Option<Duration>) {
    let say = |error: &dyn std::error::Error, retryable, reason| Trouble {
        reason,
        detail: error.to_string(),
        retryable,
        retry_after: None,
    };
    match ended {
        Ended::Connect(error) => (say(error, error.is_retryable(), Some(error.reason())), None),
        Ended::Call { error, .. } => (say(error, error.is_retryable(), error.reason()), error.retry_after()),
        Ended::Outbox(error) => (say(error, true, Some(ErrorReason::DiskFailed)), None),
        Ended::Refused(error) => (say(error, true, Some(ErrorReason::DiskFailed)), None),
        Ended::Closed => {
            let detail = "the runtime is going down".to_owned();
            (Trouble { reason: None, detail, retryable: true, retry_after: None }, None)
        }
    }
}

/// What an answer is matched by.
struct Token {
    lane: usize,
    waiting: Waiting,
}

/// A stream, as a call works on it.
struct Lane {
    log: Arc<Log>,
    priority: u8,
    /// Away while it reads on a thread for blocking work.
    reader: Option<WaitingReader>,
    read: VecDeque<Read>,
    order: Order,
    /// Its front is a large file on its way: what comes after it waits, so that the stream stays in order.
    uploading: bool,
}

impl Lane {
    fn new(log: &Arc<Log>, priorities: &BTreeMap<StreamName, u8>) -> Self {
        Self {
            priority: priorities.get(log.stream()).copied().unwrap_or(0),
            reader: Some(log.waiting()),
            log: Arc::clone(log),
            read: VecDeque::new(),
            order: Order::default(),
            uploading: false,
        }
    }

    fn has_more(&self) -> bool {
        self.reader.as_ref().is_some_and(|reader| reader.position() < self.log.end())
    }

    /// Which lane goes first: the highest priority, and of those the one that has waited longest.
    fn rank(&self) -> Option<(u8, std::cmp::Reverse<u64>)> {
        let at_ms = match self.read.front()? {
            Read::Waiting(waiting) => waiting.at_ms,
            Read::Lost { .. } => 0,
        };
        Some((self.priority, std::cmp::Reverse(at_ms)))
    }
}

type Uploaded = (usize, Waiting, UploadEnd);

enum UploadEnd {
    Answered(Answer),
    /// The file is not what it was.
    Damaged(String),
}

/// One `Append` call over the outbox.
struct Call<'a> {
    delivery: &'a Delivery,
    gateway: usize,
    connection: Connection,
    lanes: Vec<Lane>,
    sender: Sender<Token>,
    uploads: FuturesUnordered<BoxFuture<'static, Uploaded>>,
    /// The newest number of each line that was ever handed over, on this call or another.
    sent: &'a mut HashMap<Line, Seq>,
    held: HashMap<Line, u64>,
    hint: &'a watch::Sender<Option<Version>>,
}

impl Call<'_> {
    async fn run(&mut self) -> Result<Never, Ended> {
        loop {
            let full = self.fill().await?;
            tokio::select! {
                answers = self.sender.answers() => {
                    let gateway = self.gateway;
                    let answers = answers.map_err(|error| Ended::Call { gateway, error })?;
                    self.hint();
                    for Answered { token, answer } in answers {
                        self.settle(token.lane, token.waiting, answer).await?;
                    }
                }
                Some((lane, waiting, end)) = self.uploads.next() => {
                    self.lanes[lane].uploading = false;
                    match end {
                        UploadEnd::Answered(answer) => self.settle(lane, waiting, answer).await?,
                        UploadEnd::Damaged(detail) => {
                            tracing::error!(event = "outbox.damaged", identity = %waiting.identity, detail);
                            let gaps = vec![gap(&waiting.identity, GapReason::OutboxDamaged)];
                            self.lost(lane, waiting.position, gaps, Some(&waiting.identity)).await?;
                        }
                    }
                }
                // With the window full there is no use in looking.
                () = self.delivery.outbox.arrived(), if !full => {}
            }
        }
    }

    /// Which statement the gateway has in force, by its own word.
    fn hint(&self) {
        if let Some(trust) = self.sender.trust() {
            let version = Some((trust.epoch, trust.sequence));
            self.hint.send_if_modified(|hint| std::mem::replace(hint, version) != version);
        }
    }

    /// Hands over what the window takes, in order of rank. True if something had to wait.
    async fn fill(&mut self) -> Result<bool, Ended> {
        loop {
            self.read_more().await?;
            let ready = |lane: &Lane| !lane.uploading && !self.waits_for_upload(lane);
            let ranked = self.lanes.iter().enumerate().filter(|(_, lane)| ready(lane));
            let ranked = ranked.filter_map(|(index, lane)| Some((index, lane.rank()?)));
            let Some((index, _)) = ranked.max_by_key(|(_, rank)| *rank) else { return Ok(false) };
            let lane = &mut self.lanes[index];
            let Some(next) = lane.read.pop_front() else { return Ok(false) };
            lane.order.taken(next.position());
            match next {
                Read::Lost { position, gaps } => self.lost(index, position, gaps, None).await?,
                Read::Waiting(waiting) => {
                    if let Some(waiting) = self.hand_over(index, waiting).await? {
                        let lane = &mut self.lanes[index];
                        lane.order.give_back(waiting.position);
                        lane.read.push_front(Read::Waiting(waiting));
                        return Ok(true);
                    }
                }
            }
        }
    }

    /// Its next is a large file, and as many as may be are on their way.
    fn waits_for_upload(&self, lane: &Lane) -> bool {
        let file =
            |read: &Read| matches!(read, Read::Waiting(Waiting { content: WaitingContent::File(_), .. }));
        self.uploads.len() >= UPLOADS_AT_ONCE && lane.read.front().is_some_and(file)
    }

    async fn read_more(&mut self) -> Result<(), Ended> {
        for lane in &mut self.lanes {
            if !lane.read.is_empty() || lane.uploading || !lane.has_more() {
                continue;
            }
            let Some(mut reader) = lane.reader.take() else { continue };
            let log = Arc::clone(&lane.log);
            let (reader, read) = blocking(move || {
                let read = log.read(&mut reader, READ_BYTES);
                (reader, read)
            })
            .await?;
            lane.reader = Some(reader);
            lane.read.extend(read.map_err(Ended::Outbox)?);
        }
        Ok(())
    }

    /// Gives it back if the window is full.
    async fn hand_over(&mut self, lane: usize, waiting: Waiting) -> Result<Option<Waiting>, Ended> {
        let line = waiting.identity.line();
        if self.held.get(&line).is_some_and(|held| waiting.identity.seq.get() <= *held) {
            self.delivery.progress.send_modify(|progress| {
                progress.streams.entry(line.stream.clone()).or_default().resumed += 1;
            });
            self.settle(lane, waiting, Answer::Duplicate { unverified: true }).await?;
            return Ok(None);
        }
        let bytes = match &waiting.content {
            WaitingContent::Envelope(bytes) => bytes.clone(),
            WaitingContent::File(path) => {
                let upload = upload(
                    self.connection.clone(),
                    path.clone(),
                    lane,
                    waiting.clone(),
                    self.delivery.desk.clone(),
                );
                self.uploads.push(Box::pin(upload));
                self.lanes[lane].uploading = true;
                return Ok(None);
            }
        };
        match self.sender.room_for(bytes.len()) {
            Ok(()) => {
                let newest = self.sent.entry(line).or_insert(waiting.identity.seq);
                *newest = (*newest).max(waiting.identity.seq);
                let token = Token { lane, waiting };
                if self.sender.send(token, bytes, Vec::new()).is_err() {
                    unreachable!("there was room for it a moment ago");
                }
                Ok(None)
            }
            Err(NotTaken::TooLarge { max }) => {
                let detail = format!("{} bytes, and this gateway takes {max}", bytes.len());
                let answer = Answer::Refused { reason: Some(ErrorReason::EnvelopeTooLarge), detail };
                self.settle(lane, waiting, answer).await?;
                Ok(None)
            }
            Err(_) => Ok(Some(waiting)),
        }
    }

    /// An envelope has its answer.
    async fn settle(&mut self, lane: usize, waiting: Waiting, answer: Answer) -> Result<(), Ended> {
        let identity = waiting.identity.clone();
        let mut seen = Settled::default();
        let desk = &self.delivery.desk;
        match answer {
            Answer::Stored | Answer::Duplicate { .. } => {
                if matches!(answer, Answer::Stored) {
                    seen.stored += 1
                } else {
                    seen.duplicates += 1
                }
                self.delivery.outbox.delivered(&identity);
                desk.tell_file(&identity, FileState::Delivered { identity: identity.clone() });
            }
            Answer::Conflict { kept } => {
                tracing::warn!(event = "uplink.conflict", %identity, kept);
                desk.new_run(&identity.stream);
                // What it declares may not be believed beside another of its number.
                self.delivery.outbox.not_delivered(&identity);
                let reason = "other bytes stand under this number";
                if kept {
                    seen.conflicts += 1;
                    desk.tell_file(
                        &identity,
                        FileState::Refused { identity: identity.clone(), reason: reason.into() },
                    );
                } else {
                    let detail = format!("{reason}, and the gateway's area for conflicts is full");
                    return self.refuse(lane, waiting, ErrorReason::Conflict.name(), detail).await;
                }
            }
            Answer::Refused { reason, detail } => {
                let reason = reason.map_or("unknown", ErrorReason::name);
                tracing::warn!(event = "uplink.refused", %identity, reason, detail);
                self.delivery.outbox.not_delivered(&identity);
                return self.refuse(lane, waiting, reason, detail).await;
            }
        }
        self.settled(lane, waiting.position, &waiting, seen);
        Ok(())
    }

    /// Nobody takes it: set aside, or, where there is no more room for such, given up and declared.
    async fn refuse(
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
        self.delivery
            .desk
            .tell_file(&identity, FileState::Refused { identity: identity.clone(), reason: told });
        match kept {
            Ok(()) => {
                self.settled(lane, waiting.position, &waiting, Settled { refused: 1, ..Settled::default() });
                Ok(())
            }
            Err(RefusedError::Full { .. }) => {
                let gaps = vec![gap(&identity, GapReason::Refused)];
                self.lost(lane, waiting.position, gaps, Some(&identity)).await
            }
            Err(error) => Err(Ended::Refused(error)),
        }
    }

    /// It will never arrive anywhere: declared, and settled.
    async fn lost(
        &mut self,
        lane: usize,
        position: Position,
        gaps: Vec<Gap>,
        file: Option<&Identity>,
    ) -> Result<(), Ended> {
        let outbox = Arc::clone(&self.delivery.outbox);
        let numbers = gaps.iter().map(|gap| gap.to.get() - gap.from.get() + 1).sum();
        let stream = self.lanes[lane].log.stream().clone();
        tracing::error!(event = "outbox.lost", %stream, numbers);
        if let Err(error) = blocking(move || outbox.lose(&gaps)).await? {
            // It shows as a hole that nobody explains: worse told, and still visible.
            tracing::error!(event = "outbox.not_declared", %stream, %error);
        }
        if let Some(identity) = file {
            self.lanes[lane].log.leaves(position, identity);
        }
        self.lanes[lane].order.settled(position);
        self.forget(lane);
        self.count(&stream, Settled { lost: numbers, ..Settled::default() });
        Ok(())
    }

    fn settled(&mut self, lane: usize, position: Position, waiting: &Waiting, seen: Settled) {
        let here = &mut self.lanes[lane];
        if matches!(waiting.content, WaitingContent::File(_)) {
            here.log.leaves(position, &waiting.identity);
        }
        here.order.settled(position);
        self.forget(lane);
        self.count(&waiting.identity.stream, seen);
    }

    fn forget(&mut self, lane: usize) {
        let here = &mut self.lanes[lane];
        if let Some(position) = here.order.forgettable()
            && let Err(error) = here.log.acknowledge(position)
        {
            // It is sent again after a restart, which is harmless.
            tracing::error!(event = "outbox.not_acknowledged", stream = %here.log.stream(), %error);
        }
    }

    fn count(&self, stream: &StreamName, seen: Settled) {
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

/// In clear text: the gateway's screens and sets, and nobody's proof.
fn hint(gap: &Gap) -> wire::Gap {
    wire::Gap { stream: gap.stream.to_string(), run: gap.run.get(), from: gap.from.get(), to: gap.to.get() }
}

fn gap(identity: &Identity, reason: GapReason) -> Gap {
    Gap { stream: identity.stream.clone(), run: identity.run, from: identity.seq, to: identity.seq, reason }
}

/// Sends a large file until it has its answer, for as long as the connection lives; on the next one it goes on.
async fn upload(
    connection: Connection,
    path: PathBuf,
    lane: usize,
    waiting: Waiting,
    desk: Desk,
) -> Uploaded {
    let mut backoff = Backoff::new(backoff::Policy::default());
    loop {
        let opening = path.clone();
        let opened =
            blocking(move || std::fs::File::open(opening).map_err(Into::into).and_then(PlainFile::open))
                .await;
        let source = match opened {
            Ok(Ok(source)) => Arc::new(source),
            Ok(Err(error)) => return (lane, waiting, UploadEnd::Damaged(error.to_string())),
            Err(_) => return std::future::pending().await,
        };
        let total = pithead_hop::ingest::send::UploadSource::total(&*source);
        let identity = waiting.identity.clone();
        let tell = |progress: UploadProgress| {
            let state =
                FileState::Uploading { identity: identity.clone(), persisted: progress.persisted, total };
            desk.tell_file(&identity, state);
        };
        let floor = match send_upload(connection.clone(), source, Vec::new(), None, tell).await {
            Ok(answer) => return (lane, waiting, UploadEnd::Answered(answer)),
            Err(UploadError::Source(error)) if is_damage(&error) => {
                return (lane, waiting, UploadEnd::Damaged(error.to_string()));
            }
            Err(error) => {
                tracing::info!(event = "upload.again", identity = %waiting.identity, %error);
                error.retry_after()
            }
        };
        tokio::time::sleep(backoff.next_delay(backoff::random(), floor)).await;
    }
}

fn is_damage(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof | ErrorKind::InvalidData)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Ended> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Ended::Closed)
}

//! The one thread that seals: it owns the keys, the sessions and the numbers.
//!
//! ```text
//! Intake ─> (number, notices) ─> seal ─> write-ahead ─> log ══> durable ─> uplink
//! ```
//!
//! A number is given when an envelope is sealed, so what was sealed stays until it is durable: a write that failed is
//! written again as the same bytes, in the same order, and leaves no hole. It waits for no log and no
//! network: they wake it through the [`Bell`]. What it does wait for are its own small files, when keys move, a run begins, or
//! something is given up.

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future as _,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use pithead_sealing::{
    envelope::{SealedEnvelope, StreamSealer},
    names::{Identity, Run, StreamName},
    trust::{Applied, Bundle, Sha256Digest},
};
use pithead_spool::{AppendError, NotDurable, Position, Record, Room, Ticket};
use tokio::sync::oneshot;

use super::{
    bell::Bell,
    options::{Sync, WhenFull},
    stream::{Body, Counters, DiskTrouble, Due, Intake, Ready, RecordError, Whole},
};
use crate::{
    batch::{Gathered, Moment, Notices},
    clock::DeviceClock,
    keys::{Keys, KeysError},
    outbox::{Head, Log, Outbox},
    sealer::{Content, SealError, Sealer},
    state::lock,
};

/// Bytes of a stream that are sealed and not durable, at most: what one write carries while the next is sealed.
const WRITE_AHEAD_BYTES: usize = 4 * 1024 * 1024;
/// Gathered for an interval, at most: above it they are written early.
const INTERVAL_BYTES: usize = WRITE_AHEAD_BYTES / 2;
/// How often a disk that failed or has no space is tried again: nobody tells when it can be.
const DISK_RETRY: Duration = Duration::from_secs(1);
/// When more is given up, if what was given up has not made room by then.
const DROP_RETRY: Duration = Duration::from_millis(100);
/// When a heartbeat that could not be sealed is tried again.
const HEARTBEAT_RETRY: Duration = Duration::from_secs(1);
/// How often numbers, gaps and operating time are written down while something changes.
const SAVE_EVERY: Duration = Duration::from_secs(60);
/// Commands that wait for the thread: the uplink has one at a time, a flush and a file each one of theirs.
pub(super) const COMMANDS_WAITING: usize = 64;

/// What the thread is asked to do.
#[derive(Debug)]
pub(super) enum Command {
    /// Verify a bundle and take it in.
    Apply { bundle: Bundle, reply: oneshot::Sender<Result<(Applied, Arc<KeyView>), KeysError>> },
    /// A conflict was met on the stream.
    NewRun { stream: StreamName, run: Run },
    /// Seal what was gathered up to now. Answered when it is durable: where each log ends then.
    Settle { reply: oneshot::Sender<Vec<(StreamName, Position)>> },
    /// A large file is going to be sealed.
    BeginFile { stream: StreamName, content: Content, reply: oneshot::Sender<Result<BegunFile, SealError>> },
    /// It was not sealed after all.
    AbandonFile { stream: StreamName },
    /// It is sealed and durable under its name. Answered when its record is.
    EndFile { file: EndedFile, reply: oneshot::Sender<Identity> },
    /// Give up the oldest of a stream for a file of so many bytes.
    MakeRoom { stream: StreamName, bytes: u64, reply: oneshot::Sender<bool> },
    /// Take no more, seal everything, say goodbye, and end. What the disk, its budget or a missing key holds up is waited for
    /// until then, by the monotonic clock. Answered when what could be written is durable.
    Stop { until: Duration, reply: oneshot::Sender<()> },
}

#[derive(Debug)]
pub(super) struct BegunFile {
    pub(super) identity: Identity,
    pub(super) sealer: StreamSealer,
}

#[derive(Debug)]
pub(super) struct EndedFile {
    pub(super) identity: Identity,
    pub(super) payload_bytes: u64,
    pub(super) sealed: SealedFile,
}

#[derive(Debug)]
pub(super) enum SealedFile {
    /// Small enough for an envelope like any other.
    InOnePiece(SealedEnvelope),
    /// In a file beside the log, durable under its name.
    Beside { total: u64 },
}

/// What others may know of the keys, as of the last time they moved.
#[derive(Clone, Debug)]
pub(crate) struct KeyView {
    pub(crate) root_version: u64,
    pub(crate) statement_digest: Option<Sha256Digest>,
    pub(crate) version: (u64, u64),
    pub(super) status: pithead_sealing::trust::Status,
}

impl KeyView {
    pub(super) fn of(keys: &Keys) -> Self {
        Self {
            root_version: keys.trust().root_version(),
            statement_digest: keys.trust().statement().map(|statement| *statement.digest()),
            version: keys.trust().version(),
            status: keys.status(),
        }
    }
}

/// What the thread shares with the rest of the client.
#[derive(Debug)]
pub(super) struct Board {
    pub(super) connected: AtomicBool,
    pub(super) keys: std::sync::Mutex<Arc<KeyView>>,
    pub(super) sessions: std::sync::atomic::AtomicU64,
    pub(super) heartbeats: std::sync::atomic::AtomicU64,
}

pub(super) struct Worker {
    pub(super) sealer: Sealer,
    pub(super) outbox: Arc<Outbox>,
    pub(super) board: Arc<Board>,
    pub(super) bell: Arc<Bell>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) heartbeat_every: Duration,
    /// The stream that heartbeats ride in.
    pub(super) heartbeat_stream: StreamName,
    pub(super) lanes: Vec<Lane>,
    waker: Waker,
    settling: Vec<Settling>,
    heartbeat_at: Duration,
    save_at: Duration,
    /// Until when what is held up is waited for.
    stopping: Option<Duration>,
    stopped: Vec<oneshot::Sender<()>>,
    /// The last batch has said goodbye already.
    said_goodbye: bool,
}

/// One stream, as the thread works on it.
pub(super) struct Lane {
    intake: Arc<Intake>,
    log: Arc<Log>,
    /// Sealed and not durable, in the order of their numbers.
    ahead: VecDeque<Ahead>,
    ahead_bytes: usize,
    /// [`Log::failures`] when the oldest of `ahead` was appended.
    failures: u64,
    /// Up to which ordinal everything is durable.
    durable: u64,
    written_at: Duration,
    /// Somebody waits for it: the interval does not count.
    urgent: bool,
    /// Where the log refuses: what tells that it may not any more.
    blocked: Option<Blocked>,
    wants_new_run: bool,
    /// A file is being sealed under the next number: no run begins meanwhile.
    open_file: bool,
    /// There is no key, or no number: it is tried again when keys move, and now and then.
    held_back: bool,
}

struct Ahead {
    identity: Identity,
    record: Record,
    ordinal: u64,
    records: u64,
    ticket: Option<Ticket>,
    file: Option<oneshot::Sender<Identity>>,
}

/// What could not be sealed now, and why. It stays the next.
struct NotSealed {
    error: SealError,
    ready: Ready,
}

enum Blocked {
    /// For room, and, where room may have been made too small, until then.
    Room(Pin<Box<Room>>, Duration),
    Until(Duration),
}

struct Settling {
    up_to: Vec<(StreamName, u64)>,
    reply: oneshot::Sender<Vec<(StreamName, Position)>>,
}

impl Lane {
    pub(super) fn new(intake: Arc<Intake>, log: Arc<Log>) -> Self {
        let failures = log.failures();
        Self {
            intake,
            log,
            ahead: VecDeque::new(),
            ahead_bytes: 0,
            failures,
            durable: 0,
            written_at: Duration::ZERO,
            urgent: false,
            blocked: None,
            wants_new_run: false,
            open_file: false,
            held_back: false,
        }
    }

    fn name(&self) -> &StreamName {
        self.log.stream()
    }
}

impl Worker {
    #[expect(clippy::too_many_arguments, reason = "one caller, which has just made each of them")]
    pub(super) fn new(
        sealer: Sealer,
        outbox: Arc<Outbox>,
        board: Arc<Board>,
        bell: Arc<Bell>,
        commands: mpsc::Receiver<Command>,
        heartbeat_every: Duration,
        heartbeat_stream: StreamName,
        lanes: Vec<Lane>,
    ) -> Self {
        let now = DeviceClock::since_boot();
        let waker = bell.waker();
        Self {
            sealer,
            outbox,
            board,
            bell,
            commands,
            heartbeat_every,
            heartbeat_stream,
            lanes,
            waker,
            settling: Vec::new(),
            heartbeat_at: now.saturating_add(heartbeat_every),
            save_at: now + SAVE_EVERY,
            stopping: None,
            stopped: Vec::new(),
            said_goodbye: false,
        }
    }

    /// Runs until it is stopped, or until nobody can send one any more. Then everything is on disk, or cannot be.
    pub(super) fn run(mut self) -> Sealer {
        loop {
            self.obey();
            let now = DeviceClock::since_boot();
            self.write_down(now);
            let mut next = self.heartbeat(now).min(self.save_at);
            for index in 0..self.lanes.len() {
                next = next.min(self.work(index, now));
            }
            self.answer_settled();
            if let Some(until) = self.stopping {
                if self.is_done(now >= until) {
                    break;
                }
                // Past it, only what is on its way to the disk is waited for, and that rings.
                if now < until {
                    next = next.min(until);
                }
            }
            self.bell.wait(Some(next.saturating_sub(DeviceClock::since_boot())));
        }
        self.say_goodbye();
        self.sealer
    }

    /// What has been asked.
    fn obey(&mut self) {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Apply { bundle, reply }) => {
                    let applied = self.apply(&bundle);
                    // Whoever asked may have given up; what was taken in stands.
                    let _ = reply.send(applied);
                }
                Ok(Command::NewRun { stream, run }) => {
                    // One is enough for all conflicts with a run, and a run that is over needs none.
                    let in_force =
                        lock(self.outbox.sequence()).next(&stream).is_ok_and(|(now, _)| now == run);
                    if let Some(lane) = self.lane(&stream).filter(|_| in_force) {
                        lane.wants_new_run = true;
                    }
                }
                Ok(Command::Settle { reply }) => {
                    let closed = |lane: &Lane| (lane.name().clone(), lane.intake.close_batch());
                    self.settling.push(Settling { up_to: self.lanes.iter().map(closed).collect(), reply });
                    for lane in &mut self.lanes {
                        lane.urgent = true;
                    }
                }
                Ok(Command::BeginFile { stream, content, reply }) => {
                    let begun = self.begin_file(&stream, &content);
                    let _ = reply.send(begun);
                }
                Ok(Command::AbandonFile { stream }) => {
                    if let Some(lane) = self.lane(&stream) {
                        lane.open_file = false;
                    }
                }
                Ok(Command::EndFile { file, reply }) => self.end_file(file, reply),
                Ok(Command::MakeRoom { stream, bytes, reply }) => {
                    let made = self.lane(&stream).map(|lane| Arc::clone(&lane.log));
                    let made = made.is_some_and(|log| self.give_up(&log, bytes));
                    let _ = reply.send(made);
                }
                Ok(Command::Stop { until, reply }) => {
                    self.stopped.push(reply);
                    self.stop(until);
                }
                Err(mpsc::TryRecvError::Disconnected) => return self.stop(Duration::ZERO),
                Err(mpsc::TryRecvError::Empty) => return,
            }
        }
    }

    /// The earliest of those that were asked for counts.
    fn stop(&mut self, until: Duration) {
        self.stopping = Some(self.stopping.map_or(until, |before| before.min(until)));
        for lane in &mut self.lanes {
            lane.intake.close();
            lane.intake.close_batch();
        }
    }

    fn lane(&mut self, stream: &StreamName) -> Option<&mut Lane> {
        self.lanes.iter_mut().find(|lane| lane.name() == stream)
    }

    fn apply(&mut self, bundle: &Bundle) -> Result<(Applied, Arc<KeyView>), KeysError> {
        let applied = self.sealer.keys_mut().apply(bundle);
        // Roots that verified stand, also in front of a statement that was refused.
        let view = Arc::new(KeyView::of(self.sealer.keys()));
        *lock(&self.board.keys) = Arc::clone(&view);
        for lane in &mut self.lanes {
            lane.held_back = false;
        }
        Ok((applied?, view))
    }

    /// Operating time, numbers and gaps.
    fn write_down(&mut self, now: Duration) {
        if now < self.save_at {
            return;
        }
        self.save_at = now + SAVE_EVERY;
        if let Err(error) = self.sealer.keys_mut().tick() {
            // Operating time that is not written down makes hold-downs longer: on the safe side.
            tracing::warn!(event = "keys.not_saved", %error);
        }
        if let Err(error) = self.outbox.save() {
            tracing::warn!(event = "outbox.not_saved", %error);
        }
        // Time alone can end or begin a key's use.
        *lock(&self.board.keys) = Arc::new(KeyView::of(self.sealer.keys()));
        for lane in &mut self.lanes {
            lane.held_back = false;
        }
    }

    /// Says how far the lines have come, and what was given up, while somebody hears it. Gives when to look again.
    fn heartbeat(&mut self, now: Duration) -> Duration {
        if now < self.heartbeat_at {
            return self.heartbeat_at;
        }
        if self.board.connected.load(Ordering::Relaxed) && self.say() {
            self.board.heartbeats.fetch_add(1, Ordering::Relaxed);
            self.heartbeat_at = now.saturating_add(self.heartbeat_every);
            return self.heartbeat_at;
        }
        // There is nothing to say yet, or no key to say it under, or nobody to hear it. The uplink rings when it connects.
        if self.board.connected.load(Ordering::Relaxed) {
            self.heartbeat_at = now.saturating_add(self.heartbeat_every.min(HEARTBEAT_RETRY));
            return self.heartbeat_at;
        }
        Duration::MAX
    }

    /// Seals a batch without records, if there is something to say.
    fn say(&mut self) -> bool {
        let stream = self.heartbeat_stream.clone();
        let sealed_anything = !lock(self.outbox.sequence()).marks().is_empty();
        if !sealed_anything && !self.outbox.any_undeclared() {
            return false;
        }
        let Some(index) = self.lanes.iter().position(|lane| *lane.name() == stream) else { return false };
        if self.lanes[index].is_blocked() {
            return false;
        }
        // It goes ahead of what still waits in memory, so it speaks for no more than has been sealed.
        let lane = &self.lanes[index];
        let ordinal = lane.ahead.back().map_or(lane.durable, |sealed| sealed.ordinal);
        let ready = Ready { ordinal, body: Body::Batch(Gathered::nothing(moment())) };
        match self.seal(index, ready, true) {
            Ok(()) => true,
            Err(refused) => {
                tracing::warn!(event = "client.no_heartbeat", error = %refused.error);
                false
            }
        }
    }

    /// Takes a stream as far as it goes now. Gives when to look again.
    fn work(&mut self, index: usize, now: Duration) -> Duration {
        self.collect(index);
        self.unblock(index, now);
        self.begin_run_if_wanted(index);
        self.seal_ready(index, now);
        let at = self.write(index, now);
        self.collect(index);
        let lane = &self.lanes[index];
        let due = match lane.intake.due(now) {
            // What is ready and was not taken waits for the disk, for room or for a key, and each of them rings.
            Due::Now | Due::Nothing => Duration::MAX,
            Due::At(due) => due,
        };
        due.min(at).min(lane.blocked_until())
    }

    /// What the disk has answered.
    fn collect(&mut self, index: usize) {
        let lane = &mut self.lanes[index];
        let mut context = Context::from_waker(&self.waker);
        let (mut arrived, mut failed) = (false, None);
        while let Some(front) = lane.ahead.front_mut() {
            let Some(ticket) = &mut front.ticket else { break };
            match Pin::new(ticket).poll(&mut context) {
                Poll::Pending => break,
                Poll::Ready(Ok(_)) => {
                    arrived = true;
                    let durable = lane.ahead.pop_front().expect("there is a front");
                    lane.ahead_bytes -= durable.bytes();
                    lane.durable = durable.ordinal;
                    Counters::add(&lane.intake.counters.held, durable.records);
                    self.sealer.held(&durable.identity);
                    if let Some(reply) = durable.file {
                        let _ = reply.send(durable.identity);
                    }
                    // What was on its way before the log refused says nothing of whether it takes again.
                    if lane.blocked.is_none() && !lane.held_back {
                        lane.intake.set_trouble(None);
                    }
                }
                Poll::Ready(Err(error)) => {
                    // The rest of them failed with it, or would overtake it. All are written again, as they are.
                    for ahead in &mut lane.ahead {
                        ahead.ticket = None;
                    }
                    lane.failures = lane.log.failures();
                    lane.block(error, DeviceClock::since_boot());
                    failed = Some(error);
                    break;
                }
            }
        }
        if arrived {
            self.outbox.rang();
            // What waited for these may go on, in this stream or in another that was looked at before.
            self.bell.ring();
        }
        // The disk is full of others' files: what this stream gives up is written over.
        let lane = &self.lanes[index];
        if failed == Some(NotDurable::Full) && lane.intake.options.when_full == WhenFull::DropOldest {
            let (log, bytes) = (Arc::clone(&lane.log), lane.ahead_bytes as u64);
            self.give_up(&log, bytes);
        }
    }

    /// Looks whether a log that refused may take again.
    fn unblock(&mut self, index: usize, now: Duration) {
        let lane = &mut self.lanes[index];
        let mut context = Context::from_waker(&self.waker);
        let over = match &mut lane.blocked {
            None => false,
            Some(Blocked::Room(room, until)) => *until <= now || room.as_mut().poll(&mut context).is_ready(),
            Some(Blocked::Until(until)) => *until <= now,
        };
        if over {
            lane.blocked = None;
        }
    }

    /// A conflict is answered by a new run, once nothing of the old one is on its way to the disk.
    fn begin_run_if_wanted(&mut self, index: usize) {
        let lane = &mut self.lanes[index];
        if !lane.wants_new_run || !lane.ahead.is_empty() || lane.held_back || lane.open_file {
            return;
        }
        match self.sealer.begin_run(lane.log.stream()) {
            Ok(run) => {
                tracing::info!(event = "client.new_run", stream = %lane.log.stream(), %run);
                lane.wants_new_run = false;
            }
            Err(error) => {
                lane.held_back = true;
                tracing::error!(event = "client.no_new_run", stream = %lane.log.stream(), %error);
            }
        }
    }

    fn seal_ready(&mut self, index: usize, now: Duration) {
        loop {
            let lane = &mut self.lanes[index];
            let waits = lane.is_blocked() || lane.held_back || lane.wants_new_run;
            if waits || lane.ahead_bytes >= WRITE_AHEAD_BYTES {
                return;
            }
            // The very last batch says goodbye as well, once all that it speaks of is durable.
            let last = self.stopping.is_some()
                && *lane.log.stream() == self.heartbeat_stream
                && lane.intake.is_last();
            let late = self.stopping.is_some_and(|until| until <= now);
            if last && !self.is_all_but_done(index, late) {
                return;
            }
            let lane = &self.lanes[index];
            let Some(ready) = lane.intake.take(now) else { return };
            if let Err(refused) = self.seal(index, ready, last) {
                let NotSealed { error, ready } = *refused;
                let lane = &mut self.lanes[index];
                lane.held_back = true;
                lane.intake.put_back(ready);
                tracing::warn!(event = "client.not_sealed", stream = %lane.log.stream(), %error);
                lane.intake.set_trouble(Some(match error {
                    SealError::Key(error) => RecordError::NoKey(error),
                    other => RecordError::Seal(Arc::new(other)),
                }));
                return;
            }
            self.said_goodbye |= last;
            // What has become ready to be written goes before the next is sealed.
            if self.lanes[index].intake.options.sync == Sync::Always {
                self.write(index, now);
            }
        }
    }

    /// Gives it a number, adds what there is to say, and seals. On an error no number is used.
    fn seal(&mut self, index: usize, ready: Ready, heartbeat: bool) -> Result<(), Box<NotSealed>> {
        // A key that is not there is known before the records are put into their final form.
        if let Err(error) = self.sealer.keys().verified_key() {
            return Err(Box::new(NotSealed { error: error.into(), ready }));
        }
        let stream = self.lanes[index].log.stream().clone();
        let ordinal = ready.ordinal;
        let mut gaps = Vec::new();
        let whole = match ready.body {
            Body::Whole(whole) => whole,
            Body::Batch(gathered) => {
                gaps = self.outbox.undeclared();
                let notices = Notices {
                    previous: self.sealer.previous(&stream),
                    gaps: gaps.clone(),
                    heartbeat: if heartbeat { self.sealer.marks_with_next(&stream) } else { Vec::new() },
                };
                let (records, payload_bytes) = (gathered.records() as u64, gathered.payload_bytes());
                let compress = self.lanes[index].intake.options.compress;
                let (content, plaintext) = compressed(Content::batch(), gathered.finish(&notices), compress);
                Whole { content, plaintext, records, payload_bytes }
            }
        };
        let sealed = match self.sealer.seal_next(&stream, &whole.content, &whole.plaintext) {
            Ok(sealed) => sealed,
            Err(error) => {
                let ready = Ready { ordinal, body: Body::Whole(whole) };
                return Err(Box::new(NotSealed { error, ready }));
            }
        };
        self.outbox.carried(&gaps, sealed.identity());
        self.board.sessions.store(self.sealer.sessions_started(), Ordering::Relaxed);
        let records = u32::try_from(whole.records).unwrap_or(u32::MAX);
        let head = Head::of(sealed.identity(), records, whole.payload_bytes);
        let lane = &mut self.lanes[index];
        Counters::add(&lane.intake.counters.sealed, 1);
        Counters::add(&lane.intake.counters.sealed_bytes, sealed.bytes().len() as u64);
        lane.push(Ahead {
            record: Log::record(&sealed, &head, wall_ms()),
            identity: sealed.identity().clone(),
            ordinal,
            records: whole.records,
            ticket: None,
            file: None,
        });
        Ok(())
    }

    /// Hands what is sealed to the log. Gives when to look again.
    fn write(&mut self, index: usize, now: Duration) -> Duration {
        let lane = &mut self.lanes[index];
        if lane.is_blocked() || lane.ahead.iter().all(|ahead| ahead.ticket.is_some()) {
            return Duration::MAX;
        }
        if let Sync::Interval(interval) = lane.intake.options.sync {
            let due = lane.written_at.saturating_add(interval);
            let urgent = lane.urgent || self.stopping.is_some();
            if now < due && lane.ahead_bytes < INTERVAL_BYTES && !urgent {
                return due;
            }
        }
        lane.written_at = now;
        for position in 0..lane.ahead.len() {
            if lane.ahead[position].ticket.is_some() {
                continue;
            }
            if position == 0 {
                lane.failures = lane.log.failures();
            }
            let record = lane.ahead[position].record.clone();
            match lane.log.append(record, lane.failures) {
                Ok(ticket) => lane.ahead[position].ticket = Some(ticket),
                Err(error) => {
                    let bytes = lane.ahead[position].bytes() as u64;
                    self.refused(index, error, bytes, now);
                    break;
                }
            }
        }
        // A ticket has to be asked once to ring.
        self.collect(index);
        self.lanes[index].blocked_until()
    }

    /// The log does not take a record: make room by the stream's policy, or wait for it.
    fn refused(&mut self, index: usize, error: AppendError, bytes: u64, now: Duration) {
        let log = Arc::clone(&self.lanes[index].log);
        let room = |until| Blocked::Room(Box::pin(log.room(bytes)), until);
        let until_retry = Blocked::Until(now + DISK_RETRY);
        let (blocked, trouble) = match error {
            // What failed is appended again first, and its ticket rings.
            AppendError::Overtakes => return,
            // The queue holds this stream's own, and each rings when it is written. Room would be waited for in vain: there may
            // be none on the disk by then, and that is another answer.
            AppendError::QueueFull { .. } if self.lanes[index].is_being_written() => return,
            AppendError::QueueFull { .. } => (room(Duration::MAX), None),
            AppendError::Full { .. } if self.lanes[index].intake.options.when_full == WhenFull::Reject => {
                (room(Duration::MAX), Some(RecordError::Full))
            }
            // Room comes when the segment has been given back, a moment from now; if it was not all of a segment, by more.
            AppendError::Full { .. } if self.give_up(&log, bytes) => {
                (room(now.saturating_add(DROP_RETRY)), None)
            }
            // What could be given up is on its way to the disk, and rings when it is there.
            AppendError::Full { .. } if self.lanes[index].is_being_written() => return,
            AppendError::Full { .. } => (until_retry, Some(RecordError::Full)),
            AppendError::Poisoned => (until_retry, Some(RecordError::Disk(DiskTrouble::Dead))),
            _ => (until_retry, None),
        };
        let lane = &mut self.lanes[index];
        lane.blocked = Some(blocked);
        if trouble.is_some() {
            lane.intake.set_trouble(trouble);
        }
        // A room has to be asked once to ring.
        self.unblock(index, now);
        if self.lanes[index].blocked.is_none() {
            self.bell.ring();
        }
    }

    /// Gives up the oldest of a log. False if there is nothing to give up, or it may not be.
    fn give_up(&mut self, log: &Arc<Log>, bytes: u64) -> bool {
        match self.outbox.drop_oldest(log, bytes) {
            Ok(dropped) if dropped.envelopes.is_empty() => false,
            Ok(dropped) => {
                let (envelopes, records) = (dropped.envelopes.len() as u64, dropped.records);
                tracing::warn!(event = "outbox.dropped", stream = %log.stream(), envelopes, records, bytes = dropped.payload_bytes);
                if let Some(lane) = self.lane(log.stream()) {
                    let counters = &lane.intake.counters;
                    Counters::add(&counters.dropped_envelopes, envelopes);
                    Counters::add(&counters.dropped_records, records);
                    Counters::add(&counters.dropped_bytes, dropped.payload_bytes);
                }
                true
            }
            Err(error) => {
                tracing::error!(event = "outbox.not_dropped", stream = %log.stream(), %error);
                false
            }
        }
    }

    fn begin_file(&mut self, stream: &StreamName, content: &Content) -> Result<BegunFile, SealError> {
        let (identity, sealer) = self.sealer.begin_stream(stream, content)?;
        if let Some(lane) = self.lane(stream) {
            lane.open_file = true;
        }
        self.board.sessions.store(self.sealer.sessions_started(), Ordering::Relaxed);
        Ok(BegunFile { identity, sealer })
    }

    fn end_file(&mut self, file: EndedFile, reply: oneshot::Sender<Identity>) {
        let EndedFile { identity, payload_bytes, sealed } = file;
        self.sealer.used(&identity);
        let Some(lane) = self.lane(&identity.stream) else { return };
        lane.open_file = false;
        let head = Head::of(&identity, 1, payload_bytes);
        let (record, total) = match sealed {
            SealedFile::InOnePiece(envelope) => {
                (Log::record(&envelope, &head, wall_ms()), envelope.bytes().len() as u64)
            }
            SealedFile::Beside { total } => (Log::file_record(total, &head, wall_ms()), total),
        };
        let ordinal = lane.intake.skip();
        Counters::add(&lane.intake.counters.recorded, 1);
        Counters::add(&lane.intake.counters.recorded_bytes, payload_bytes);
        Counters::add(&lane.intake.counters.sealed, 1);
        Counters::add(&lane.intake.counters.sealed_bytes, total);
        lane.push(Ahead { record, identity, ordinal, records: 1, ticket: None, file: Some(reply) });
    }

    fn answer_settled(&mut self) {
        let lanes: BTreeMap<_, _> = self.lanes.iter().map(|lane| (lane.name().clone(), lane)).collect();
        let settled = |settling: &Settling| {
            settling.up_to.iter().all(|(stream, ordinal)| {
                lanes.get(stream).is_none_or(|lane| lane.durable >= *ordinal || lane.has_nothing())
            })
        };
        let (done, waiting) = std::mem::take(&mut self.settling).into_iter().partition(settled);
        self.settling = waiting;
        if self.settling.is_empty() {
            self.lanes.iter_mut().for_each(|lane| lane.urgent = false);
        }
        for Settling { reply, .. } in done {
            let ends = self.outbox.logs().map(|log| (log.stream().clone(), log.end()));
            let _ = reply.send(ends.collect());
        }
    }

    /// Nothing is left to be sealed or written; or nothing that could be, if it is `late`.
    fn is_done(&self, late: bool) -> bool {
        self.lanes.iter().all(|lane| lane.is_done(late))
    }

    /// The same for all but the last batch of a stream.
    fn is_all_but_done(&self, but: usize, late: bool) -> bool {
        let mut lanes = self.lanes.iter().enumerate();
        lanes.all(|(index, lane)| if index == but { lane.ahead.is_empty() } else { lane.is_done(late) })
    }

    /// The last heartbeat, and everything on disk. What cannot be written now is lost, and was never said to be kept.
    fn say_goodbye(&mut self) {
        if !self.said_goodbye && self.say() {
            for index in 0..self.lanes.len() {
                self.write(index, DeviceClock::since_boot());
            }
            for lane in &mut self.lanes {
                while let Some(ahead) = lane.ahead.pop_front() {
                    if ahead.ticket.is_some_and(|ticket| ticket.wait().is_ok()) {
                        self.sealer.held(&ahead.identity);
                        Counters::add(&lane.intake.counters.held, ahead.records);
                    }
                }
            }
        }
        self.outbox.rang();
        self.answer_settled();
        for reply in self.stopped.drain(..) {
            let _ = reply.send(());
        }
    }
}

impl Lane {
    fn push(&mut self, ahead: Ahead) {
        self.ahead_bytes += ahead.bytes();
        self.ahead.push_back(ahead);
    }

    fn is_blocked(&self) -> bool {
        self.blocked.is_some()
    }

    /// When to look again, if nothing rings before.
    fn blocked_until(&self) -> Duration {
        match &self.blocked {
            Some(Blocked::Until(until) | Blocked::Room(_, until)) => *until,
            None => Duration::MAX,
        }
    }

    fn has_nothing(&self) -> bool {
        self.ahead.is_empty() && self.intake.in_memory().0 == 0
    }

    fn is_done(&self, late: bool) -> bool {
        // What is on its way to the disk is waited for all the same: it may be held, and then it is said to be.
        self.has_nothing() || (late && (self.is_blocked() || self.held_back) && !self.is_being_written())
    }

    fn is_being_written(&self) -> bool {
        self.ahead.iter().any(|ahead| ahead.ticket.is_some())
    }

    fn block(&mut self, error: NotDurable, now: Duration) {
        let trouble = match error {
            NotDurable::Full => DiskTrouble::NoSpace,
            NotDurable::Disk { kind } => DiskTrouble::Failing(kind),
            _ => DiskTrouble::Dead,
        };
        tracing::error!(event = "outbox.not_written", stream = %self.log.stream(), %error);
        self.blocked = Some(Blocked::Until(now + DISK_RETRY));
        self.intake.set_trouble(Some(RecordError::Disk(trouble)));
    }
}

impl Ahead {
    fn bytes(&self) -> usize {
        self.record.head.len() + self.record.body.len()
    }
}

#[cfg(feature = "zstd")]
fn compressed(content: Content, plaintext: Vec<u8>, wanted: bool) -> (Content, Vec<u8>) {
    use pithead_sealing::envelope::Encoding;
    if !wanted {
        return (content, plaintext);
    }
    match zstd::bulk::compress(&plaintext, super::ZSTD_LEVEL) {
        Ok(smaller) => (Content { encoding: Some(Encoding::Zstd), ..content }, smaller),
        // Memory for the window was refused: what is not compressed is sealed all the same.
        Err(_) => (content, plaintext),
    }
}

#[cfg(not(feature = "zstd"))]
fn compressed(content: Content, plaintext: Vec<u8>, _: bool) -> (Content, Vec<u8>) {
    (content, plaintext)
}

fn moment() -> Moment {
    let monotonic_us = u64::try_from(DeviceClock::since_boot().as_micros()).ok();
    Moment { wall_us: DeviceClock::wall_us(), monotonic_us }
}

fn wall_ms() -> u64 {
    u64::try_from(DeviceClock::wall_us() / 1_000).unwrap_or(0)
}

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

mod lane;
mod seal;
mod write;

mod say;

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicBool, mpsc},
    task::Waker,
    time::Duration,
};

use pithead_sealing::{
    envelope::{SealedEnvelope, StreamSealer},
    names::{Identity, Run, StreamName},
    trust::{Applied, Bundle, Sha256Digest},
};
use pithead_spool::Position;
use tokio::sync::oneshot;

use super::{bell::Bell, files::Watches, stream::Due};
use crate::{
    clock::DeviceClock,
    keys::{Keys, KeysError},
    outbox::Outbox,
    sealer::{Content, SealError, Sealer},
    state::lock,
};

pub(super) use lane::Lane;

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
    /// Who hears of which file.
    pub(super) watches: Arc<Watches>,
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

struct Settling {
    up_to: Vec<(StreamName, u64)>,
    reply: oneshot::Sender<Vec<(StreamName, Position)>>,
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
}

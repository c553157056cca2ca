//! Which numbers of which line have been taken: in memory, rebuilt from the spool, and remembered past it.
//!
//! The record heads in the spool say what is still here. What has left the spool is known from a checkpoint, which is
//! written *before* records are reclaimed: so a resend is recognised whether the first copy still waits or has long
//! been delivered. SHA-256 stands behind the checkpoint's bytes: a bit that a disk has flipped there could call numbers
//! held that never came, and their envelopes would be acknowledged as duplicates and lost.
//!
//! Lines that were quiet for 30 days are put away on disk ([`super::idle`]), and so are those that were quiet longest while
//! there are too many, so that memory and checkpoint do not grow with every run that ever was. A line comes back when
//! something of it does.
//!
//! What a device holds of the disk is told to [`Shares`] here, where it is known when an envelope comes to stay and goes.
//!
//! Where the gateways of a site share their lanes, the checkpoint lies with them, and the numbers begin anew whenever this gateway
//! becomes their owner ([`Numbers::begin`]): what another one has taken meanwhile is read from there.
//!
//! The checkpoint has room on the disk that nobody else is given: on a disk that is full to the last byte nothing may leave the
//! spool before the checkpoint is written, and nothing would ever make room for it.
//!
//! Other bytes under a used number are kept beside the first, within a bound per device, and remembered by hash for as
//! long as they are in the spool, so that a device that insists is not stored again and again.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use pithead_hop::ingest::lines::{IDLE, Incomplete};
use pithead_hop::ingest::{LineRefusal, Lines, Outcome, ShortHash, Unseen, UploadStore, Verdict};
use pithead_sealing::{DeviceId, Identity, Line, Seq};
use pithead_spool::{Lane, LaneStats, RecordHead};
use sha2::{Digest as _, Sha256};

use super::copies::Waiting;
use super::fate::Fate;
use super::idle::Idle;
use super::lanes::{self, Found};
use super::record::{Head, KIND_CONFLICT, KIND_ENVELOPE, KIND_LARGE};
use super::replicated::Books;
use super::shares::{Share, Shares};
use super::spool::EnvelopeSpool;
use crate::clock::since_boot;
use pithead_hop::program::disk;

/// Conflicts kept per device, besides the bound in bytes.
pub const CONFLICTS_PER_DEVICE: usize = 1_000;

/// Lines in memory: beyond, those that were quiet longest are put away before their 30 days are over. A line costs up to 25
/// kB while its last hashes are kept.
pub const LINES_IN_MEMORY: usize = 16_384;
/// But none that was quiet for less than this.
pub const IDLE_MIN: Duration = Duration::from_secs(3600);
/// Added to the time since boot: a line may have been quiet for longer than the machine is up.
const BEFORE_BOOT: Duration = Duration::from_secs(2 * IDLE.as_secs());
/// Bytes that are kept for the checkpoint, at least: that of a few hundred lines. A larger one keeps twice its own size.
const RESERVE_MIN: usize = 256 << 10;

/// What is to be done with an envelope.
#[derive(Debug)]
pub enum Offered {
    /// It was here before, or cannot be kept: the answer is known.
    Done(Outcome),
    /// The same bytes are on their way to the disk.
    Shared(Fate, Outcome),
    /// Store it; the reservation says how that ended.
    Store(Reservation),
}

/// A number (or a conflict's place) that is taken while the envelope is on its way to the disk. Dropped without
/// [`stored`](Self::stored), it is free again, and its line waits for it.
#[derive(Debug)]
pub struct Reservation {
    numbers: Arc<Inner>,
    line: Line,
    seq: Seq,
    taken: Taken,
    /// The failures of the spool that the line knew of: with one more, what it has under way is lost.
    failures: u64,
    settled: bool,
}

/// What stands for an envelope in flight.
#[derive(Debug, Clone)]
struct UnderWay {
    told: Fate,
    failures: u64,
}

/// What a reservation stands for.
#[derive(Debug, Clone, Copy)]
enum Taken {
    /// A number that was free.
    New,
    /// A number that was passed on, and whose envelope comes back from the refused area.
    Again,
    /// A place beside another, by hash and size.
    Conflict(ShortHash, u64),
}

impl Reservation {
    /// Whether it is kept beside another.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self.taken, Taken::Conflict(..))
    }

    /// The failures of the spool that it may be appended after, and not one more.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// The envelope is durable.
    pub fn stored(self) {
        Self::all_stored([self]);
    }

    /// The envelopes are durable. All of one gateway: the lock is taken once for a whole group.
    pub fn all_stored(reservations: impl IntoIterator<Item = Self>) {
        let mut reservations = reservations.into_iter().peekable();
        let Some(numbers) = reservations.peek().map(|first| first.numbers.clone()) else { return };
        let mut state = numbers.lock();
        for mut one in reservations {
            one.settled = true;
            match one.taken {
                Taken::New => state.lines.stored(&one.line, one.seq),
                Taken::Again => {}
                Taken::Conflict(hash, _) => {
                    if let Some(held) = state.conflict(&one.line, one.seq, hash) {
                        held.ticket = None;
                    }
                }
            }
        }
    }

    /// It will never be stored: the number is free, and nothing waits for it.
    pub fn give_up(mut self) {
        self.settled = true;
        let mut state = self.numbers.lock();
        match self.taken {
            Taken::New => state.lines.failed(&self.line, self.seq),
            Taken::Again => state.lines.passed_on(&self.line, self.seq),
            Taken::Conflict(hash, bytes) => state.forget_conflict(&self.line, self.seq, hash, bytes),
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let mut state = self.numbers.lock();
        match self.taken {
            Taken::New => state.lines.lost(&self.line, self.seq),
            // The refused area still has it.
            Taken::Again => state.lines.passed_on(&self.line, self.seq),
            Taken::Conflict(hash, bytes) => state.forget_conflict(&self.line, self.seq, hash, bytes),
        }
    }
}

/// The lines of the site.
#[derive(Debug, Clone)]
pub struct Numbers(Arc<Known>);

#[derive(Debug)]
struct Known {
    /// Of this start, or of this term: whoever holds an older one settles there, and disturbs nobody.
    now: ArcSwap<Inner>,
    file: PathBuf,
    spool: EnvelopeSpool,
    uploads: UploadStore,
}

/// Where the checkpoint is kept.
#[derive(Debug)]
enum Checkpoint {
    File(PathBuf),
    /// With the data, for the term in which this gateway owns them.
    Shared(Books),
    /// Nowhere: another gateway is the owner.
    Nowhere,
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    checkpoint: Checkpoint,
    conflict_bytes_per_device: u64,
    shares: Shares,
    idle: Arc<Idle>,
    /// Held while lines are put away or the checkpoint is written: no line may be in neither.
    writing: Mutex<()>,
}

impl Inner {
    /// With this line back in memory if it was put away. `now` is the lines' own time.
    fn lock_with(&self, line: &Line, now: Duration) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        if (self.idle.is_empty() && state.leaving.is_empty()) || state.lines.contains(line) {
            return state;
        }
        let found = match state.leaving.remove(line) {
            Some(bytes) => Ok(Some(bytes)),
            None if self.idle.knows(&line.device) => {
                // Not under the lock: it reads through a file.
                drop(state);
                let found = self.idle.find(line);
                state = self.lock();
                found
            }
            None => return state,
        };
        match found.map(|found| found.map(|bytes| state.lines.put_back(&bytes, now))) {
            Ok(None | Some(Ok(_))) => {}
            // Then what of it was delivered long ago is recognised at the far end alone.
            Ok(Some(Err(error))) => {
                tracing::error!(event = "lines.idle_damaged", device = %line.device, %error)
            }
            Err(error) => tracing::error!(event = "lines.idle_unreadable", device = %line.device, %error),
        }
        state
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Checkpoint {
    /// As it was written last. None if there is none.
    fn read(&self) -> io::Result<Option<Vec<u8>>> {
        match self {
            Self::File(path) => match std::fs::read(path) {
                Ok(bytes) => Ok(Some(bytes)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            },
            Self::Shared(books) => books.load(),
            Self::Nowhere => Ok(None),
        }
    }

    /// Replaces it. When this returns it is durable.
    fn write(&self, bytes: Vec<u8>) -> io::Result<()> {
        let path = match self {
            Self::File(path) => path,
            Self::Shared(books) => return books.save(bytes),
            Self::Nowhere => return Err(io::Error::other("another gateway is the owner of the lanes")),
        };
        match disk::replace(path, &bytes) {
            Err(error) if is_full(&error) => {
                std::fs::remove_file(reserve(path)).map_err(|_| error)?;
                disk::replace(path, &bytes)?;
            }
            written => written?,
        }
        self.set_aside_room(bytes.len());
        Ok(())
    }

    /// Keeps room for a checkpoint that is twice as large as the last one. On a disk that has none it is tried again with the
    /// next one.
    fn set_aside_room(&self, checkpoint_bytes: usize) {
        let Self::File(path) = self else { return };
        let (path, bytes) = (reserve(path), RESERVE_MIN.max(2 * checkpoint_bytes));
        if std::fs::metadata(&path).is_ok_and(|kept| kept.len() >= bytes as u64) {
            return;
        }
        // Zeroes that are written: a file that is merely long has no blocks.
        if let Err(error) = std::fs::write(&path, vec![0; bytes]) {
            tracing::warn!(event = "lines.no_reserve", %error);
            // What was written of it is room that the checkpoint may need.
            let _ = std::fs::remove_file(&path);
        }
    }
}

fn reserve(checkpoint: &Path) -> PathBuf {
    checkpoint.with_extension("reserve")
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Time for the lines, of operating time.
fn line_time(now: Duration) -> Duration {
    now + BEFORE_BOOT
}

#[derive(Debug)]
struct State {
    lines: Lines<UnderWay>,
    /// Taken out of `lines`, and not yet durable elsewhere.
    leaving: HashMap<Line, Vec<u8>>,
    conflicts: HashMap<DeviceId, Conflicts>,
}

#[derive(Debug, Default)]
struct Conflicts {
    bytes: u64,
    held: HashMap<(Line, Seq, [u8; 8]), HeldConflict>,
}

#[derive(Debug)]
struct HeldConflict {
    /// While it is on its way to the disk.
    ticket: Option<Fate>,
}

impl State {
    /// For the line's next envelope. What it has under way may have failed, and nobody has got round to saying so here.
    fn under_way(&self, line: &Line, told: Fate, failures: u64) -> UnderWay {
        let failures = self.lines.in_flight(line).map_or(failures, |before| before.failures);
        UnderWay { told, failures }
    }

    fn conflict(&mut self, line: &Line, seq: Seq, hash: ShortHash) -> Option<&mut HeldConflict> {
        self.conflicts.get_mut(&line.device)?.held.get_mut(&(line.clone(), seq, hash.0))
    }

    fn add_conflict(&mut self, line: &Line, seq: Seq, hash: ShortHash, bytes: u64, ticket: Option<Fate>) {
        let conflicts = self.conflicts.entry(line.device.clone()).or_default();
        if conflicts.held.insert((line.clone(), seq, hash.0), HeldConflict { ticket }).is_none() {
            conflicts.bytes += bytes;
        }
    }

    fn forget_conflict(&mut self, line: &Line, seq: Seq, hash: ShortHash, bytes: u64) {
        let Some(conflicts) = self.conflicts.get_mut(&line.device) else { return };
        if conflicts.held.remove(&(line.clone(), seq, hash.0)).is_some() {
            conflicts.bytes = conflicts.bytes.saturating_sub(bytes);
        }
        if conflicts.held.is_empty() {
            self.conflicts.remove(&line.device);
        }
    }
}

impl Numbers {
    /// For each device of which numbers are missing or were declared: how many of each, of the lines in memory.
    #[must_use]
    pub fn unexplained(&self) -> HashMap<DeviceId, (u64, u64)> {
        let inner = self.now();
        let state = inner.lock();
        let all = state.lines.unexplained().filter(|(_, missing, declared)| missing + declared > 0);
        all.map(|(device, missing, declared)| (device.clone(), (missing, declared))).collect()
    }

    /// Rebuilds the lines from the checkpoint and from what is still in the spool. A checkpoint that does not read back
    /// is reported and passed over: then resends of what has been delivered are recognised at the far end alone. Where several gateways
    /// share the lanes, nothing is known before [`begin`](Self::begin).
    ///
    /// # Errors
    /// When the checkpoint exists and the disk does not give it.
    pub fn open(
        checkpoint: PathBuf,
        idle: Idle,
        spool: &EnvelopeSpool,
        conflict_bytes_per_device: u64,
        shares: Shares,
        uploads: &UploadStore,
    ) -> io::Result<Self> {
        let kept = match spool.is_replicated() {
            true => Checkpoint::Nowhere,
            false => Checkpoint::File(checkpoint.clone()),
        };
        let (idle, file) = (Arc::new(idle), checkpoint);
        let (inner, _) = Inner::read(kept, idle, spool, conflict_bytes_per_device, shares, uploads)?;
        let (now, spool, uploads) = (ArcSwap::from_pointee(inner), spool.clone(), uploads.clone());
        Ok(Self(Arc::new(Known { now, file, spool, uploads })))
    }

    /// This gateway has become the owner of the lanes: what is known is what the lanes and their checkpoint say. Blocks, for as long as it
    /// takes to read all heads. Gives what waits of large envelopes that have a copy elsewhere.
    ///
    /// # Errors
    /// When the checkpoint cannot be read; then what was known before still is.
    pub fn begin(&self) -> io::Result<Waiting> {
        self.read_again(match self.0.spool.books() {
            Some(books) => Checkpoint::Shared(books),
            None if self.0.spool.is_replicated() => Checkpoint::Nowhere,
            None => Checkpoint::File(self.0.file.clone()),
        })
    }

    /// It is the owner no more: nothing is known.
    ///
    /// # Errors
    /// None as things are: nothing is read.
    pub fn forget(&self) -> io::Result<()> {
        self.read_again(Checkpoint::Nowhere).map(drop)
    }

    fn read_again(&self, kept: Checkpoint) -> io::Result<Waiting> {
        let Known { now, spool, uploads, .. } = &*self.0;
        let before = now.load_full();
        before.shares.forget_held();
        let (idle, shares) = (before.idle.clone(), before.shares.clone());
        let (inner, waiting) =
            Inner::read(kept, idle, spool, before.conflict_bytes_per_device, shares, uploads)?;
        now.store(Arc::new(inner));
        Ok(waiting)
    }

    fn now(&self) -> Arc<Inner> {
        self.0.now.load_full()
    }
}

impl Inner {
    fn read(
        checkpoint: Checkpoint,
        idle: Arc<Idle>,
        spool: &EnvelopeSpool,
        conflict_bytes_per_device: u64,
        shares: Shares,
        uploads: &UploadStore,
    ) -> io::Result<(Self, Waiting)> {
        let now = line_time(since_boot());
        let mut lines = match checkpoint.read()? {
            Some(bytes) => whole(&bytes)
                .and_then(|bytes| Lines::decode(bytes, Unseen::Elsewhere, now).ok())
                .unwrap_or_else(|| {
                    tracing::error!(event = "lines.checkpoint_damaged", path = %checkpoint);
                    Lines::new(Unseen::Elsewhere)
                }),
            None => Lines::new(Unseen::Elsewhere),
        };
        let mut conflicts = Vec::new();
        let mut recalled = 0_u64;
        let mut large = Vec::new();
        let mut strays = Found::default();
        let lanes = Lane::ALL.into_iter().filter(|_| !matches!(checkpoint, Checkpoint::Nowhere));
        let waiting = lanes.flat_map(|lane| spool.waiting_in(lane).map(move |record| (lane, record)));
        for (lane, record) in waiting {
            let Ok(head) = Head::decode(&record.head) else {
                tracing::error!(
                    event = "spool.foreign_record",
                    lane = lanes::name(lane),
                    position = record.position.0
                );
                continue;
            };
            let (line, hash) = (head.identity.line(), ShortHash::from(&head.sha256));
            if spool.is_stray(lane, &line.stream) {
                strays.watch(line.clone());
            }
            let bytes = u64::from(record.body_bytes);
            match record.kind {
                KIND_ENVELOPE => lines.recall(&line, head.identity.seq, hash, now),
                KIND_CONFLICT => conflicts.push((line, head.identity.seq, hash, bytes)),
                KIND_LARGE => {
                    lines.recall(&line, head.identity.seq, hash, now);
                    match &head.copy {
                        None => uploads.taken(&head.identity),
                        // Here or not: it can be fetched, and there will be room for it.
                        Some(copy) => {
                            uploads.recorded(&head.identity, &head.sha256, copy.total, since_boot())?;
                            large.push(head.clone());
                        }
                    }
                }
                _ => continue,
            }
            shares.hold(&head.identity.device, bytes, since_boot());
            recalled += 1;
        }
        spool.keep_strays(strays);
        let mut state = State { lines, leaving: HashMap::new(), conflicts: HashMap::new() };
        for (line, seq, hash, bytes) in conflicts {
            state.lines.contest(&line);
            state.add_conflict(&line, seq, hash, bytes, None);
        }
        tracing::info!(event = "lines.rebuilt", lines = state.lines.len(), recalled);
        let (state, writing) = (Mutex::new(state), Mutex::new(()));
        checkpoint.set_aside_room(0);
        // What does not read is left out above, and so is what a newer version may have written. Positions that a take-over has left out
        // behind messages that nobody could read count as waiting, so they show here as well.
        let complete = recalled == spool.stats().lanes.iter().map(LaneStats::records).sum::<u64>();
        let inner = Self { state, checkpoint, conflict_bytes_per_device, shares, idle, writing };
        Ok((inner, Waiting { heads: large, complete }))
    }
}

impl std::fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Shared(_) => f.write_str("the lines' checkpoint in JetStream"),
            Self::Nowhere => f.write_str("nowhere"),
        }
    }
}

impl Numbers {
    /// Judges an envelope of `bytes` bytes. If it is to be stored, its number is taken from now on, and whoever resends
    /// it meanwhile waits for `ticket`. `failures` are the spool's, as of now.
    ///
    /// # Errors
    /// A bound of the device's lines; nothing has changed.
    pub fn offer(
        &self,
        identity: &Identity,
        hash: ShortHash,
        bytes: u64,
        now: Duration,
        ticket: Fate,
        failures: u64,
    ) -> Result<Offered, LineRefusal> {
        let (line, seq, now) = (identity.line(), identity.seq, line_time(now));
        let inner = self.now();
        let mut state = inner.lock_with(&line, now);
        let under_way = state.under_way(&line, ticket, failures);
        Ok(match state.lines.offer(&line, seq, hash, now, || under_way.clone())? {
            Verdict::New(_) => Offered::Store(inner.reserve(line, seq, Taken::New, under_way.failures)),
            Verdict::InFlight(first) => Offered::Shared(first.told, Outcome::Duplicate { unverified: false }),
            Verdict::Duplicate { unverified } => Offered::Done(Outcome::Duplicate { unverified }),
            Verdict::Conflict => inner.beside(&mut state, line, seq, hash, bytes, under_way),
        })
    }

    /// What the far end has refused is to go out again: as [`offer`](Self::offer), but a number that was passed on is taken
    /// once more. A duplicate is answered only where the envelope still waits in the spool, or does again.
    ///
    /// # Errors
    /// As [`offer`](Self::offer).
    pub fn offer_again(
        &self,
        head: &Head,
        conflict: bool,
        bytes: u64,
        now: Duration,
        ticket: Fate,
        failures: u64,
    ) -> Result<Offered, LineRefusal> {
        let (line, seq, now) = (head.identity.line(), head.identity.seq, line_time(now));
        let hash = ShortHash::from(&head.sha256);
        let inner = self.now();
        let mut state = inner.lock_with(&line, now);
        let under_way = state.under_way(&line, ticket, failures);
        if conflict {
            return Ok(inner.beside(&mut state, line, seq, hash, bytes, under_way));
        }
        Ok(match state.lines.offer(&line, seq, hash, now, || under_way.clone())? {
            Verdict::New(_) => Offered::Store(inner.reserve(line, seq, Taken::New, under_way.failures)),
            Verdict::InFlight(first) => Offered::Shared(first.told, Outcome::Duplicate { unverified: false }),
            Verdict::Duplicate { unverified } if state.lines.is_here(&line, seq) => {
                Offered::Done(Outcome::Duplicate { unverified })
            }
            Verdict::Duplicate { .. } => {
                // Before the append, not after: the answer to what was appended must find it here.
                state.lines.recall(&line, seq, hash, now);
                Offered::Store(inner.reserve(line, seq, Taken::Again, failures))
            }
            Verdict::Conflict => inner.beside(&mut state, line, seq, hash, bytes, under_way),
        })
    }
}

impl Inner {
    fn reserve(self: &Arc<Self>, line: Line, seq: Seq, taken: Taken, failures: u64) -> Reservation {
        Reservation { numbers: self.clone(), line, seq, taken, failures, settled: false }
    }

    /// Other bytes under a used number: a place beside, if there is one.
    fn beside(
        self: &Arc<Self>,
        state: &mut State,
        line: Line,
        seq: Seq,
        hash: ShortHash,
        bytes: u64,
        under_way: UnderWay,
    ) -> Offered {
        if let Some(held) = state.conflict(&line, seq, hash) {
            let kept = Outcome::Conflict { kept: true };
            return match &held.ticket {
                Some(first) => Offered::Shared(first.clone(), kept),
                None => Offered::Done(kept),
            };
        }
        let held = state.conflicts.get(&line.device);
        let full = held.is_some_and(|conflicts| {
            conflicts.held.len() >= CONFLICTS_PER_DEVICE
                || conflicts.bytes + bytes > self.conflict_bytes_per_device
        });
        if full || bytes > self.conflict_bytes_per_device {
            return Offered::Done(Outcome::Conflict { kept: false });
        }
        let UnderWay { told, failures } = under_way;
        state.add_conflict(&line, seq, hash, bytes, Some(told));
        Offered::Store(self.reserve(line, seq, Taken::Conflict(hash, bytes), failures))
    }
}

impl Numbers {
    /// How a large envelope stands by its header's hash, before its bytes come. Nothing is taken by asking.
    ///
    /// # Errors
    /// As [`offer`](Self::offer).
    pub fn judge(
        &self,
        identity: &Identity,
        hash: ShortHash,
        now: Duration,
    ) -> Result<Option<Outcome>, LineRefusal> {
        let (line, seq, now) = (identity.line(), identity.seq, line_time(now));
        let judged = self.now().lock_with(&line, now).lines.judge(&line, seq, hash, now)?;
        Ok(match judged {
            // What is under way may still fail; the end is judged when it is there.
            None | Some(Verdict::New(_) | Verdict::InFlight(_)) => None,
            Some(Verdict::Duplicate { unverified }) => Some(Outcome::Duplicate { unverified }),
            Some(Verdict::Conflict) => Some(Outcome::Conflict { kept: false }),
        })
    }

    /// Whether the number is taken: here, or passed on.
    #[must_use]
    pub fn holds(&self, identity: &Identity) -> bool {
        let (line, now) = (identity.line(), line_time(since_boot()));
        let view = self.now().lock_with(&line, now).lines.view(&line);
        view.is_some_and(|view| view.held.contains(identity.seq.get()))
    }

    /// The next hop has it: it may leave the spool.
    pub fn passed_on(&self, head: &Head, conflict: bool, bytes: u64) {
        let (line, seq) = (head.identity.line(), head.identity.seq);
        let inner = self.now();
        inner.shares.left(&line.device, bytes);
        let mut state = inner.lock();
        if conflict {
            state.forget_conflict(&line, seq, ShortHash::from(&head.sha256), bytes);
        } else {
            state.lines.passed_on(&line, seq);
        }
    }

    /// Room for an envelope that comes back from the refused area: it was let in once.
    pub fn share_again(&self, head: &Head, bytes: u64) -> Share {
        self.now().shares.take(&head.identity.device, bytes, since_boot())
    }

    /// A record of the spool is damaged: a good copy may still come. Gives whose it was, if that can still be read.
    pub fn quarantined(&self, record: &RecordHead) -> Option<Identity> {
        let head = Head::decode(&record.head).ok()?;
        let (line, seq) = (head.identity.line(), head.identity.seq);
        let bytes = u64::from(record.body_bytes);
        let inner = self.now();
        let mut state = inner.lock();
        // A start may have named it already, and then the reader meets it: it left once.
        let was_here = if record.kind == KIND_CONFLICT {
            // The first bytes under this number are another record: they stay held.
            let hash = ShortHash::from(&head.sha256);
            let was_here = state.conflict(&line, seq, hash).is_some();
            state.forget_conflict(&line, seq, hash, bytes);
            was_here
        } else {
            let was_here = state.lines.is_here(&line, seq);
            state.lines.quarantined(&line, seq);
            was_here
        };
        drop(state);
        if was_here {
            inner.shares.left(&line.device, bytes);
        }
        Some(head.identity)
    }

    /// Whether its envelope is durable here and has not left.
    #[must_use]
    pub fn is_here(&self, identity: &Identity) -> bool {
        self.now().lock().lines.is_here(&identity.line(), identity.seq)
    }

    /// The file of a large envelope is damaged or gone: a good copy may still come. `bytes` are those of its record.
    pub fn quarantined_large(&self, head: &Head, bytes: u64) {
        let (line, seq) = (head.identity.line(), head.identity.seq);
        self.now().lock().lines.quarantined(&line, seq);
        self.now().shares.left(&line.device, bytes);
    }

    /// It was refused for good at the door: the number is used.
    pub fn refused(&self, identity: &Identity, now: Duration) {
        let (line, now) = (identity.line(), line_time(now));
        self.now().lock_with(&line, now).lines.refused(&line, identity.seq, now);
    }

    /// Up to which number nothing need be resent.
    #[must_use]
    pub fn hello(&self, line: &Line, first_unacked: Seq, now: Duration) -> u64 {
        let now = line_time(now);
        self.now().lock_with(line, now).lines.hello(line, first_unacked, now)
    }

    /// The device dropped a range by its own policy. Its word in the clear is a hint, and one that does not fit costs it nothing: a
    /// gateway makes room for holes by letting go of what it has delivered.
    pub fn declare(&self, line: &Line, from: Seq, to: Seq, now: Duration) {
        let now = line_time(now);
        self.now().lock_with(line, now).lines.declare(line, from, to, now);
    }

    /// What a line has seen.
    #[cfg(test)]
    pub(crate) fn view(&self, line: &Line) -> Option<pithead_hop::ingest::lines::LineView> {
        self.now().lock().lines.view(line)
    }

    /// Writes the checkpoint, so that what leaves the spool from here on is still known after a restart. Blocks for a
    /// sync. Gives its size in bytes.
    ///
    /// # Errors
    /// What the disk says; then nothing may be reclaimed.
    pub fn checkpoint(&self) -> io::Result<usize> {
        let inner = self.now();
        let _writing = inner.writing();
        let mut bytes = inner.lock().lines.encode(line_time(since_boot()));
        let digest = Sha256::digest(&bytes);
        bytes.extend_from_slice(&digest);
        let size = bytes.len();
        inner.checkpoint.write(bytes)?;
        Ok(size)
    }
}

impl Numbers {
    /// Puts lines away that were quiet for long; all that were quiet for [`IDLE_MIN`] if there are too many in memory. Blocks
    /// for a sync per device. Gives how many.
    ///
    /// # Errors
    /// What the disk says; then the lines stay in memory.
    pub fn put_idle_away(&self, now: Duration) -> io::Result<usize> {
        self.put_away(line_time(now), LINES_IN_MEMORY)
    }

    fn put_away(&self, now: Duration, in_memory: usize) -> io::Result<usize> {
        let inner = self.now();
        let _writing = inner.writing();
        let mut devices: BTreeMap<DeviceId, Vec<(Line, Vec<u8>)>> = BTreeMap::new();
        {
            let mut state = inner.lock();
            let mut quiet = IDLE;
            loop {
                for (line, bytes) in state.lines.take_idle(now.saturating_sub(quiet), now) {
                    state.leaving.insert(line.clone(), bytes.clone());
                    devices.entry(line.device.clone()).or_default().push((line, bytes));
                }
                if state.lines.len() <= in_memory || quiet <= IDLE_MIN {
                    break;
                }
                quiet = (quiet / 2).max(IDLE_MIN);
            }
        }
        let (mut count, mut failed) = (0, None);
        for (device, lines) in &devices {
            match inner.idle.append(device, lines) {
                Ok(()) => count += lines.len(),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        let mut state = inner.lock();
        let leaving = std::mem::take(&mut state.leaving);
        match failed {
            None => Ok(count),
            Some(error) => {
                // Some may be on disk as well; here they are as good.
                for bytes in leaving.into_values() {
                    let _ = state.lines.put_back(&bytes, now);
                }
                Err(error)
            }
        }
    }

    /// What is missing of the lines in memory.
    #[must_use]
    pub fn incomplete(&self) -> Incomplete {
        self.now().lock().lines.incomplete()
    }

    /// How many lines are in memory.
    #[must_use]
    pub fn in_memory(&self) -> usize {
        self.now().lock().lines.len()
    }
}

impl Inner {
    fn writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A checkpoint without its checksum, if that holds.
fn whole(bytes: &[u8]) -> Option<&[u8]> {
    let (bytes, digest) = bytes.split_last_chunk::<32>()?;
    (Sha256::digest(bytes).as_slice() == digest).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Door, Truck, truck};
    use super::*;

    /// Stored, and passed on as by the relay.
    async fn delivered(door: &Door, envelope: bytes::Bytes) {
        let bytes = envelope.len() as u64;
        assert_eq!(door.take(envelope).await, Outcome::Stored);
        let last = door.spool.waiting().last().unwrap();
        door.numbers.passed_on(&Head::decode(&last.head).unwrap(), false, bytes);
        door.numbers.checkpoint().unwrap();
        door.spool.acknowledge(lanes::USUAL, last.position).unwrap();
    }

    #[tokio::test]
    async fn a_line_that_was_quiet_for_a_month_is_on_disk_alone_and_is_known_when_it_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut sealing = Truck::new();
        let (first, other) = (sealing.seal(1, b"record"), sealing.seal(1, b"other"));
        {
            let door = Door::open(folder.path());
            delivered(&door, first.clone()).await;
            assert_eq!(door.numbers.put_idle_away(since_boot()).unwrap(), 0, "not yet");
            let later = since_boot() + IDLE + Duration::from_secs(1);
            assert_eq!(door.numbers.put_idle_away(later).unwrap(), 1);
            assert_eq!(door.numbers.in_memory(), 0);
            door.numbers.checkpoint().unwrap();
            door.spool.close().unwrap();
        }
        let door = Door::open(folder.path());
        assert_eq!(door.numbers.in_memory(), 0);
        assert_eq!(door.take(first).await, Outcome::Duplicate { unverified: false });
        assert_eq!(door.numbers.in_memory(), 1);
        let line = door.numbers.now().lock().lines.iter().map(|(line, _)| line).next().unwrap();
        assert_eq!(door.numbers.hello(&line, Seq::new(1).unwrap(), since_boot()), 1);
        assert_eq!(door.take(other).await, Outcome::Conflict { kept: true });
        assert_eq!(door.take(sealing.seal(2, b"record")).await, Outcome::Stored);
    }

    #[tokio::test]
    async fn a_line_of_which_something_waits_is_never_put_away() {
        let folder = tempfile::tempdir().unwrap();
        let door = Door::open(folder.path());
        door.take(Truck::new().seal(1, b"record")).await;
        assert_eq!(door.numbers.put_idle_away(since_boot() + 3 * IDLE).unwrap(), 0);
    }

    #[tokio::test]
    async fn with_too_many_lines_those_that_were_quiet_longest_go_first_and_none_that_is_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let door = Door::open(folder.path());
        for run in 1..=4 {
            delivered(&door, Truck::on("can", run).seal(1, b"record")).await;
        }
        let later = line_time(since_boot()) + 2 * IDLE_MIN;
        let in_use = Line { device: truck().device().unwrap().clone(), ..line_of(&door, 4) };
        door.numbers.now().lock().lines.declare(&in_use, Seq::new(9).unwrap(), Seq::new(9).unwrap(), later);
        assert_eq!(door.numbers.put_away(later, 4).unwrap(), 0, "there is room for four");
        assert!(door.numbers.put_away(later, 3).unwrap() >= 1);
        assert!(door.numbers.in_memory() <= 3);
    }

    #[tokio::test]
    async fn what_the_disk_does_not_take_stays_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let door = Door::open(folder.path());
        let envelope = Truck::new().seal(1, b"record");
        delivered(&door, envelope.clone()).await;
        // Something that is no file stands where the device's would be.
        std::fs::create_dir(folder.path().join("idle").join("truck-42~idle")).unwrap();
        let later = since_boot() + 2 * IDLE;
        assert!(door.numbers.put_idle_away(later).is_err());
        assert_eq!(door.numbers.in_memory(), 1);
        assert_eq!(door.take(envelope).await, Outcome::Duplicate { unverified: false });
    }

    fn line_of(door: &Door, run: u64) -> Line {
        let inner = door.numbers.now();
        let state = inner.lock();
        state.lines.iter().map(|(line, _)| line).find(|line| line.run.get() == run).unwrap()
    }
}

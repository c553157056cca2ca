//! Who owns the lanes: standing by, taking over, keeping, and handing over.
//!
//! ```text
//! standing by ── no renewal for a lease, or released, or nobody ──> claim: next epoch, by comparing
//!      ^                                                              └ load: cursors, checkpoint, a fence in each lane
//!      └── not renewed for a lease, fenced, or told to step down <── owner: renewed every second
//! ```
//!
//! Here it is decided as well that a message is gone ([`Shared::settle`]), and where a lane goes on whose end does not read ([`End`]).

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::books::Written;
use super::broker::{Fault, LogState, Value};
use super::cell::{
    self, By, CURSORS, Cell, Cursor, Cursors, Fenced, LINES, LinesHead, NotTaken, OWNER, OwnerRecord, Pause,
    Stored, Unreadable,
};
use super::commit::{self, Published};
use super::group::{self, Group, Message, Stamp};
use super::{GROUP_RECORDS, Index, LANES, LaneState, Place, Shared, Term, keeping, roster};
use crate::envelopes::lanes;
use pithead_hop::bundle::SpoolId;
use pithead_spool::Lane;

/// How often somebody who stands by looks at the owner's record, of the time between two renewals: a few times.
const LOOKS: u32 = 4;
/// How long the end waits for what is queued, and for the hand-over. Whoever stops the program has a limit of his own.
const CLOSING: Duration = Duration::from_secs(15);
/// How many messages at the end of a lane that say nothing are stepped over when it is taken over.
const VOID_MAX: u64 = 10_000;
/// How long somebody who cannot read what lies here leaves it to others, in leases.
const BARRED: u32 = 12;
/// How often, over a second or two, a leader has to say that it does not have what was written, before it counts as gone.
pub(super) const GONE_LOOKS: u32 = 8;
/// How often any replica has to say so after each time that the leader has. One of three is drawn each time, so that one of them is asked
/// none of all 64 times is less likely than one in sixty thousand million: 3 x (2/3)^64.
const REPLICA_LOOKS: u32 = 8;

/// Who takes envelopes for the site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Another gateway does, or nobody.
    StandingBy {
        /// Who, as far as is known.
        owner: Option<Owner>,
        /// Why that is not known, or why the last attempt to take over has failed.
        trouble: Option<String>,
    },
    /// This one does: its lanes are ours, and fenced against everybody else.
    Ours {
        /// Of this term.
        epoch: u64,
    },
}

/// The owner of the lanes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// What the gateway is called.
    pub name: String,
    /// Where devices reach it, if it says so.
    pub address: Option<String>,
    /// Of its term.
    pub epoch: u64,
}

/// A claim that succeeded.
struct Claim {
    by: By,
    /// What left the lanes free: nobody ever had them, they were handed over, or whoever had them fell silent.
    after: &'static str,
    revision: u64,
    beat: u64,
    renewed: Instant,
}

/// Until the engine is closed.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut reins = Reins::default();
    let roster = AbortOnDropHandle::new(tokio::spawn(roster::run(shared.clone())));
    loop {
        let claim = tokio::select! {
            claim = stand_by(&shared, &mut reins) => claim,
            () = shared.closing.cancelled() => break,
        };
        let epoch = claim.by.epoch;
        tracing::info!(event = "spool.claimed", epoch, after = claim.after);
        match own(&shared, claim).await {
            Lost::Closed => break,
            Lost::Fenced(why) => {
                tracing::error!(event = "spool.ownership_lost", epoch, why);
                reins.trouble = Some(why.to_owned());
            }
            Lost::Later(later) => {
                // The owner's record is of an earlier epoch than what it owned: it was lost.
                tracing::error!(event = "spool.ownership_lost", epoch, why = NEWER_EPOCH);
                (reins.epoch, reins.trouble) = (later, Some(NEWER_EPOCH.to_owned()));
            }
            Lost::OtherVersion => {
                tracing::error!(event = "spool.ownership_lost", epoch, why = OTHER_VERSION);
                reins.trouble = Some(OTHER_VERSION.to_owned());
                reins.barred_until = Some(Instant::now() + shared.bounds.lease * BARRED);
            }
        }
    }
    // It has fallen over, or taken leave.
    let _ = roster.await;
    shared.ended.cancel();
}

/// What standing by remembers of the terms before.
#[derive(Debug, Default)]
struct Reins {
    /// Why the last term has ended.
    trouble: Option<String>,
    /// The latest epoch that was seen anywhere.
    epoch: u64,
    /// Others may take over what this one cannot read.
    barred_until: Option<Instant>,
}

enum Lost {
    Closed,
    Fenced(&'static str),
    Later(u64),
    OtherVersion,
}

impl From<NotTaken> for Lost {
    fn from(why: NotTaken) -> Self {
        match why {
            NotTaken::Later(epoch) => Self::Later(epoch),
            NotTaken::OtherVersion => Self::OtherVersion,
        }
    }
}

const NEWER_EPOCH: &str = "the state is of a later epoch than the owner's record, which was lost";
const NO_RANDOM: &str = "the kernel gives no random bytes";
const OTHER_VERSION: &str =
    "another version of this program has written what lies here: run that version on every gateway";

async fn own(shared: &Arc<Shared>, mut claim: Claim) -> Lost {
    let (by, over) = (claim.by, CancellationToken::new());
    let loaded = tokio::select! {
        loaded = load(shared, by, &over) => loaded,
        Fenced = renew(shared, &mut claim, &over) => Err(Lost::Fenced("somebody else took the lanes over")),
        () = shared.closing.cancelled() => Err(Lost::Closed),
    };
    if let Err(lost) = loaded {
        shared.end_term();
        // Whoever can read it takes over at once.
        if matches!(lost, Lost::Closed | Lost::OtherVersion) {
            release(shared, &claim).await;
        }
        return lost;
    }
    shared.standing.send_replace(Standing::Ours { epoch: by.epoch });
    let mut tasks = JoinSet::new();
    for lane in Lane::ALL {
        tasks.spawn(commit::run(shared.clone(), lane, by, over.clone()));
    }
    let keeper = keeping::run(shared.clone(), by, over.clone());
    let lost = {
        let (mut renewing, mut keeping) = (pin!(renew(shared, &mut claim, &over)), pin!(keeper));
        tokio::select! {
            Fenced = &mut renewing => Lost::Fenced("the owner's record was not renewed in time, or is somebody else's"),
            Fenced = &mut keeping => Lost::Fenced("somebody else has written the cursors"),
            () = over.cancelled() => Lost::Fenced("somebody else has appended to a lane, or the gateway has stepped down"),
            () = shared.closing.cancelled() => {
                tokio::select! {
                    _ = tokio::time::timeout(CLOSING, shared.drained()) => {}
                    Fenced = &mut renewing => {}
                    Fenced = &mut keeping => {}
                }
                Lost::Closed
            }
        }
    };
    over.cancel();
    while tasks.join_next().await.is_some() {}
    shared.end_term();
    // With what was found out meanwhile: whoever follows this sees that it is over, however short the next standing by is.
    shared.standing.send_replace(Standing::StandingBy { owner: None, trouble: None });
    let later = shared.later.load(Ordering::Relaxed);
    let lost = match lost {
        Lost::Fenced(_) if later > by.epoch => Lost::Later(later),
        lost => lost,
    };
    if matches!(lost, Lost::Closed) {
        release(shared, &claim).await;
    } else if shared.closing.is_cancelled() {
        return Lost::Closed;
    }
    lost
}

/// Until the claim of this gateway has succeeded.
async fn stand_by(shared: &Shared, reins: &mut Reins) -> Claim {
    let mut seen: Option<(u64, Instant)> = None;
    loop {
        let held = shared.broker.get(OWNER).await;
        match held {
            Ok(held) => {
                let stored = held.as_ref().map(|held| cell::decode::<OwnerRecord>(&held.bytes));
                let revision = held.as_ref().map_or(0, |held| held.revision);
                let at = match seen {
                    Some((same, at)) if same == revision => at,
                    _ => Instant::now(),
                };
                seen = Some((revision, at));
                let silent = at.elapsed() >= shared.bounds.lease;
                let (stored, is_free) = match stored {
                    None => (None, true),
                    Some(Ok(stored)) => {
                        let released = stored.value.released;
                        (Some(stored), released || silent)
                    }
                    // Whoever wrote it may be at work, whatever it is.
                    Some(Err(Unreadable::Damaged)) => (None, silent),
                    Some(Err(Unreadable::OtherVersion)) => {
                        reins.trouble = Some(OTHER_VERSION.to_owned());
                        (None, false)
                    }
                };
                reins.epoch = reins.epoch.max(stored.as_ref().map_or(0, |stored| stored.by.epoch));
                let is_barred = reins.barred_until.is_some_and(|until| Instant::now() < until);
                if is_free
                    && !is_barred
                    && let Some(claim) = claim(shared, held, stored.as_ref(), reins.epoch + 1).await
                {
                    return claim;
                }
                let owner = stored.filter(|stored| !stored.value.released).map(|stored| Owner {
                    name: stored.value.name,
                    address: stored.value.address,
                    epoch: stored.by.epoch,
                });
                let trouble = if is_barred { reins.trouble.clone() } else { reins.trouble.take() };
                say(shared, Standing::StandingBy { owner, trouble });
            }
            Err(fault) => {
                let owner = match &*shared.standing.borrow() {
                    Standing::StandingBy { owner, .. } => owner.clone(),
                    Standing::Ours { .. } => None,
                };
                say(shared, Standing::StandingBy { owner, trouble: Some(fault.to_string()) });
            }
        }
        tokio::time::sleep(shared.bounds.beat / LOOKS).await;
    }
}

fn say(shared: &Shared, standing: Standing) {
    shared.standing.send_if_modified(|held| {
        let is_new = *held != standing;
        *held = standing;
        is_new
    });
}

fn record(shared: &Shared, beat: u64, released: bool) -> OwnerRecord {
    OwnerRecord { beat, name: shared.me.name.clone(), address: shared.me.address.clone(), released }
}

/// Tries once to become the owner after whoever is in `stored`.
async fn claim(
    shared: &Shared,
    held: Option<Value>,
    stored: Option<&Stored<OwnerRecord>>,
    epoch: u64,
) -> Option<Claim> {
    let by = By { epoch, writer: pithead_hop::backoff::random() };
    let revision = held.map_or(0, |held| held.revision);
    let after = match stored {
        None => "nobody",
        Some(stored) if stored.value.released => "handed over",
        Some(_) => "silence",
    };
    let renewed = Instant::now();
    match shared.broker.put(OWNER, revision, cell::encode(by, record(shared, 0, false))).await {
        Ok(revision) => Some(Claim { by, after, revision, beat: 0, renewed }),
        Err(Fault::Unknown(_)) => {
            // It may have been done.
            let held = shared.broker.get(OWNER).await.ok().flatten()?;
            let ours = cell::decode::<OwnerRecord>(&held.bytes).is_ok_and(|stored| stored.by == by);
            ours.then_some(Claim { by, after, revision: held.revision, beat: 0, renewed })
        }
        Err(_) => None,
    }
}

/// Renews the owner's record until somebody else has it, or it could not be renewed for a lease.
async fn renew(shared: &Shared, claim: &mut Claim, over: &CancellationToken) -> Fenced {
    let mut first = true;
    loop {
        if !first {
            tokio::time::sleep(shared.bounds.beat).await;
        }
        first = false;
        // Counted from before it is asked for: whoever stands by counts from when it sees it.
        let (asked, beat) = (Instant::now(), claim.beat + 1);
        let left = shared.bounds.lease.saturating_sub(claim.renewed.elapsed());
        let mut cell = Cell::written(OWNER, claim.revision, claim.by);
        let renewing = cell.replace(&*shared.broker, record(shared, beat, false));
        match tokio::time::timeout(left, renewing).await {
            Ok(Ok(())) => {
                (claim.revision, claim.beat, claim.renewed) = (cell.revision(), beat, asked);
                if let Some(term) = shared.lock().term.as_mut() {
                    term.renewed = asked;
                }
            }
            Ok(Err(Fenced)) | Err(_) => {
                over.cancel();
                return Fenced;
            }
        }
    }
}

/// Hands the lanes over, so that nobody has to wait for a lease.
async fn release(shared: &Shared, claim: &Claim) {
    let mut cell = Cell::written(OWNER, claim.revision, claim.by);
    let releasing = cell.replace(&*shared.broker, record(shared, claim.beat + 1, true));
    match tokio::time::timeout(shared.bounds.lease, releasing).await {
        Ok(Ok(())) => tracing::info!(event = "spool.handed_over", epoch = claim.by.epoch),
        Ok(Err(Fenced)) | Err(_) => tracing::warn!(event = "spool.not_handed_over", epoch = claim.by.epoch),
    }
}

/// Everything that a start needs: the state's keys are ours, each lane is fenced, and where they end is known.
async fn load(shared: &Arc<Shared>, by: By, over: &CancellationToken) -> Result<(), Lost> {
    let broker = &*shared.broker;
    let mut cursors = Cell::take::<Cursors>(broker, CURSORS, by).await?;
    let (lines, head) = Cell::take::<LinesHead>(broker, LINES, by).await?;
    let mut lanes: [LaneState; LANES] = Default::default();
    for lane in Lane::ALL {
        let here = &mut lanes[lane.index()];
        *here = fence(shared, lane, by, &mut cursors).await?;
        let cursor = cursors.1.lanes[lane.index()];
        let place = Place { sequence: cursor.sequence, at_ms: None };
        here.index.note(cursor.position, place);
        (here.cursor, here.saved) = (cursor.position, cursor.position);
        tracing::info!(
            event = "spool.lane_taken_over",
            lane = lanes::name(lane),
            records = here.end - here.cursor,
            position = here.cursor,
        );
    }
    let is_new = cursors.1.spool.is_none();
    let spool = match cursors.1.spool {
        Some(spool) => spool,
        None => SpoolId::draw().map_err(|_| Lost::Fenced(NO_RANDOM))?,
    };
    // Before anything goes by this name: the next owner goes on under it.
    let ends = lanes.each_ref().map(|lane| lane.end);
    write(shared, &mut cursors, |cursors| {
        cursors.spool = Some(spool);
        cursors.lanes.iter_mut().zip(ends).for_each(|(cursor, end)| cursor.end = end);
    })
    .await?;
    if is_new {
        tracing::info!(event = "spool.named", %spool);
    }
    let mut state = shared.lock();
    state.lanes = lanes;
    state.full = false;
    state.term = Some(Term {
        by,
        spool,
        serving: false,
        renewed: Instant::now(),
        over: over.clone(),
        cursors: Some(cursors),
        lines: Arc::new(tokio::sync::Mutex::new(Some(Written::new(lines, head)))),
    });
    Ok(())
}

/// Changes the cursors, and writes them down.
async fn write(
    shared: &Shared,
    (cell, held): &mut (Cell, Cursors),
    change: impl FnOnce(&mut Cursors),
) -> Result<(), Lost> {
    change(held);
    held.number += 1;
    let written = cell.replace(&*shared.broker, *held).await;
    written.map_err(|Fenced| Lost::Fenced("somebody else has written the cursors"))
}

/// Appends a group without records behind whatever stands in a lane: whoever was the owner can append no more. The cursor is moved to
/// the oldest record that is there, should it point before it.
async fn fence(
    shared: &Shared,
    lane: Lane,
    by: By,
    cursors: &mut (Cell, Cursors),
) -> Result<LaneState, Lost> {
    let broker = &*shared.broker;
    let mut pause = Pause::default();
    loop {
        let cursor = &mut cursors.1.lanes[lane.index()];
        if let Ok(state) = broker.state(lane).await
            && let Some(end) = end_of(shared, lane, &state, cursor).await?
            && let Some(oldest) = oldest_of(shared, lane, &state, cursor).await
        {
            if oldest > cursor.position {
                // Only what was acknowledged is ever given back: the cursor was lost, and not the records.
                tracing::error!(
                    event = "spool.cursor_lost",
                    lane = lanes::name(lane),
                    oldest,
                    cursor = cursor.position
                );
                *cursor = Cursor { position: oldest, sequence: state.first, ..*cursor };
            }
            // A log that ends before what was given out in it was begun anew, or has lost its end: what comes now must not count as
            // delivered. One that was ever taken over has at least the message of that.
            let known = end.known.max(cursor.position).max(cursor.end);
            let (first, room) = (end.behind(known), end.unread > 0);
            // Whoever walks begins in this log, and not at a message of a former one.
            cursor.sequence = cursor.sequence.min(state.last);
            let was_owned = cursors.1.spool.is_some();
            let is_younger = end.unread == 0 && (known > end.known || (was_owned && state.last == 0));
            if end.unread > 0 {
                tracing::error!(
                    event = "spool.end_unreadable",
                    lane = lanes::name(lane),
                    messages = end.unread,
                    from = known,
                    to = first,
                    "nobody can read the newest messages: the positions that they may hold are not given out again"
                );
            } else if is_younger {
                tracing::error!(
                    event = "spool.log_younger",
                    lane = lanes::name(lane),
                    end = end.known,
                    cursor = cursor.position
                );
                // Positions come again: what they meant is not what they mean. Written down before the log says nothing of it any more.
                write(shared, cursors, |cursors| cursors.spool = None).await?;
            }
            let stamp = Stamp {
                lane,
                epoch: by.epoch,
                writer: by.writer,
                number: 0,
                expected: state.last,
                first,
                room,
            };
            if commit::publish(broker, &stamp, group::encode(&stamp, &[])).await == Published::Appended {
                let last = state.last + 1;
                let mut index = Index::default();
                index.note(first, Place { sequence: last, at_ms: None });
                return Ok(LaneState {
                    last,
                    end: first,
                    number: 1,
                    index,
                    bytes: state.bytes,
                    max_bytes: state.max_bytes,
                    ..LaneState::default()
                });
            }
        }
        // The former owner was quicker, or the broker is away, or full. Whoever renews finds out if it is for good.
        pause.wait().await;
    }
}

/// Where a lane ends, as far as its messages say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct End {
    /// The position after the newest record of a group that reads.
    known: u64,
    /// How many messages behind that may hold records, and do not read.
    unread: u64,
}

impl End {
    /// A position that none of the messages that do not read can have reached, if the first of them began at `known` or before.
    fn behind(&self, known: u64) -> u64 {
        known.saturating_add(self.unread.saturating_mul(GROUP_RECORDS as u64))
    }
}

/// Where a lane ends. None if the broker does not say.
async fn end_of(
    shared: &Shared,
    lane: Lane,
    log: &LogState,
    cursor: &Cursor,
) -> Result<Option<End>, NotTaken> {
    let oldest = log.first.max(1);
    let (mut sequence, mut unread) = (log.last, 0);
    while sequence >= oldest && log.last - sequence < VOID_MAX {
        let Ok(message) = shared.look_for(lane, sequence).await else { return Ok(None) };
        match message.map(Message::decode) {
            Some(Message::Group(group)) if group.fits(lane, sequence) => {
                return Ok(Some(End { known: group.end(), unread }));
            }
            Some(Message::OtherVersion(_)) => return Err(NotTaken::OtherVersion),
            // Void: nobody was ever told that it is durable.
            Some(Message::Group(_)) => {}
            // Damaged or gone: whoever reads it says so.
            Some(Message::Damaged) | None => unread += 1,
        }
        sequence -= 1;
    }
    // None says. All that are there count, and where the cursor's message is older than those, all since then: its position lies in that one
    // or in a later one. (A cursor that was lost points to the first that there ever was.)
    let from = oldest.min(cursor.sequence.max(1));
    Ok(Some(End { known: 0, unread: (log.last + 1).saturating_sub(from) }))
}

/// The position of the oldest record that is there, if the cursor points to a message that is not; else that of the cursor. None if the
/// broker does not say.
async fn oldest_of(shared: &Shared, lane: Lane, state: &LogState, cursor: &Cursor) -> Option<u64> {
    if state.last == 0 || state.first <= cursor.sequence.max(1) {
        return Some(cursor.position);
    }
    let message = shared.look_for(lane, state.first).await.ok()?;
    let oldest = message.and_then(Group::decode).filter(|group| group.fits(lane, state.first));
    Some(oldest.map_or(cursor.position, |group| group.stamp.first))
}

impl Shared {
    /// A message, from whoever has it; none if it is gone.
    async fn look_for(&self, lane: Lane, sequence: u64) -> Result<Option<Bytes>, Fault> {
        match self.broker.read(lane, sequence).await? {
            Some(message) => Ok(Some(message)),
            None => self.settle(lane, sequence).await,
        }
    }

    /// A message that a replica did not give, or that it is gone. What was acknowledged is stepped over, named as lost and then removed on
    /// every replica on the strength of this, so it takes everybody's word. The leader's, and that several times, as leaders change: a
    /// replica that is behind denies what it has not got yet. And the replicas': a leader whose disk does not give a message denies it too,
    /// while the others have it. Whoever has it is right, since a message never changes. Who does not answer has not denied anything.
    pub(super) async fn settle(&self, lane: Lane, sequence: u64) -> Result<Option<Bytes>, Fault> {
        let mut pause = Pause::default();
        for _ in 0..GONE_LOOKS {
            pause.wait().await;
            let of_leader = self.broker.read_at_leader(lane, sequence).await;
            if let Ok(Some(message)) = of_leader {
                return Ok(Some(message));
            }
            for _ in 0..REPLICA_LOOKS {
                if let Some(message) = self.broker.read_at_replica(lane, sequence).await? {
                    return Ok(Some(message));
                }
            }
            of_leader?;
        }
        Ok(None)
    }

    /// Resolves when nothing waits to be published, and the cursors are written down.
    async fn drained(&self) {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            {
                let state = self.lock();
                if state.queued_records == 0 && state.lanes.iter().all(|lane| lane.saved >= lane.cursor) {
                    return;
                }
            }
            moved.await;
        }
    }
}

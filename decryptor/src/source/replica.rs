//! A replica at work: what it has heard of, in which order it takes it, and what becomes of whom it owes an answer.
//!
//! ```text
//! queue ────> notices ─┐                     ┌─ fetch, open (some bundles ahead)
//! listing ─────────────┴─> board, by lane ───┴─ decide, one after the other ──> output (beside the next) ──> message deleted
//! ```
//! - **Hearing of a bundle is only a hint.** Which ones there are, says the bucket; which are decided, says the ledger. So notices may
//!   come twice, late, out of order or never: what was lost the next listing finds.
//! - **One lane, one bundle at a time**; lanes wait for nobody else's bundle. A bundle that cannot be judged now holds up its own lane
//!   alone, for as long as it takes, as it would hold up its gateway's over a call.
//! - **A message is deleted when the output of its bundle is whole**, whoever has written it.
//! - Entries that others have left without output are finished after a while: by then who decided them is gone, or slow, and it is the
//!   same to the store. One that cannot be written holds up no other.
//! - **Nothing is decided while [`OUTPUTS_MAX`] entries wait for their output**: with a sink that takes none the bundles stay where they
//!   are, and not in books and memory.

use super::board::Board;
use super::books::LaneId;
use super::notice::{Notice, Receipt};
use super::site::{Fetched, Prepared, SiteReplica, Taken, Turns, Waits};
use crate::ledger::objects::ChainError;
use crate::ledger::objects::record::{Decision, Verdict};
use crate::metrics::{Metrics, SiteLabel};
use pithead_hop::bundle::BundleName;
use pithead_hop::program::clock;
use pithead_sealing::Site;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Bundles of one lane that are fetched and opened while the first of them is decided: the store's answers take their time.
const AHEAD: usize = 4;

/// Between two looks that a lane has asked for at least.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// Outputs that are written at once, or are tried again, before lanes wait: as many requests as keep a store busy, and little to do again
/// after a kill.
pub(super) const OUTPUTS_MAX: usize = 64;

/// Entries of others that are left to them, with the messages that wait for it. What is beyond that lets go of its message, and is found by
/// a look.
const LEFT_MAX: usize = 4_096;

/// Bytes of content that whoever has decided writes in a second at least; by that its time grows.
const WRITTEN_PER_SECOND: u64 = 8 << 20;

/// A lane that has decided nothing for so long does not hold back where a quick look begins: whatever comes of it, a full one finds.
const ALIVE: Duration = Duration::from_secs(86_400);

/// How often it looks, and how long it leaves others alone.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Between two looks at the newest part of the bucket.
    pub poll: Duration,
    /// Between two looks at all of it.
    pub sweep: Duration,
    /// How long an entry of another replica may be without output before this one writes it.
    pub grace: Duration,
    /// The longest wait before a bundle is tried again.
    pub retry_max: Duration,
}

#[derive(Debug, Default)]
struct Words {
    now: BTreeMap<&'static str, String>,
    broken: BTreeMap<Site, String>,
}

/// What does not work at the moment, by the part that does not: `source`, `ledger`, `sink`, `kms`. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Failing(Arc<Mutex<Words>>);

impl Failing {
    fn lock(&self) -> MutexGuard<'_, Words> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As it stands.
    #[must_use]
    pub fn now(&self) -> BTreeMap<&'static str, String> {
        let words = self.lock();
        let mut now = words.now.clone();
        if let Some((site, broken)) = words.broken.first_key_value() {
            now.insert("ledger", format!("nothing of site {site} is decided any more: {broken}"));
        }
        now
    }

    /// A part does not work.
    pub fn note(&self, part: &'static str, words: String) {
        self.lock().now.insert(part, words);
    }

    /// These work.
    pub fn clear(&self, parts: &[&'static str]) {
        self.lock().now.retain(|part, _| !parts.contains(part));
    }

    /// The ledger of a site is damaged: that no other site's work takes back.
    pub fn broken(&self, site: &Site, words: String) {
        self.lock().broken.entry(site.clone()).or_insert(words);
    }
}

/// One replica: all of its sites.
#[derive(Debug)]
pub struct Replica {
    sites: BTreeMap<Site, Arc<SiteReplica>>,
    id: [u8; 16],
    board: Mutex<Board>,
    changed: Notify,
    /// A lane of that site has come to the end of what it had room for.
    looks: BTreeMap<Site, Notify>,
    pace: Pace,
    metrics: Arc<Metrics>,
    lanes: TaskTracker,
    outputs: TaskTracker,
    /// Entries whose output this replica is at, and the messages that wait for it.
    writing: Mutex<HashMap<(Site, u64), Vec<Receipt>>>,
    /// How many those are.
    under_way: watch::Sender<usize>,
    /// Entries that are left to whoever has decided them, and the messages that wait for it. They count as nothing under way.
    left: Mutex<HashMap<(Site, u64), Vec<Receipt>>>,
    /// Sites whose ledger is damaged: nothing of them is decided any more.
    broken: Mutex<BTreeSet<Site>>,
    /// Since when each entry has been without output that this replica is not at.
    left_alone: Mutex<HashMap<(Site, u64), Instant>>,
    failing: Failing,
    ledger_broken: CancellationToken,
    stop: CancellationToken,
}

impl Replica {
    /// A replica of these sites, which works until `stop`. `ledger_broken` is cancelled when nothing may be decided any more of any of them.
    #[must_use]
    pub fn new(
        sites: Vec<Arc<SiteReplica>>,
        id: [u8; 16],
        pace: Pace,
        metrics: Arc<Metrics>,
        failing: Failing,
        ledger_broken: CancellationToken,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let sites: BTreeMap<_, _> = sites.into_iter().map(|site| (site.site().clone(), site)).collect();
        Arc::new(Self {
            looks: sites.keys().map(|site| (site.clone(), Notify::new())).collect(),
            sites,
            id,
            board: Mutex::default(),
            changed: Notify::new(),
            pace,
            metrics,
            lanes: TaskTracker::new(),
            outputs: TaskTracker::new(),
            writing: Mutex::default(),
            under_way: watch::Sender::default(),
            left: Mutex::default(),
            broken: Mutex::default(),
            left_alone: Mutex::default(),
            failing,
            ledger_broken,
            stop,
        })
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self) -> MutexGuard<'_, HashMap<(Site, u64), Vec<Receipt>>> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn left(&self) -> MutexGuard<'_, HashMap<(Site, u64), Vec<Receipt>>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_broken(&self, site: &Site) -> bool {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).contains(site)
    }

    /// Nothing of a site is decided any more; others go on.
    fn break_off(&self, site: &Site, error: &ChainError) {
        tracing::error!(event = "ledger.damaged", %error, %site, "nothing of this site is decided any more by this replica");
        self.failing.broken(site, error.to_string());
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        broken.insert(site.clone());
        if broken.len() == self.sites.len() {
            self.ledger_broken.cancel();
        }
        drop(broken);
        // Its lanes find nothing more to do.
        self.board().forget(site);
    }

    fn fails(&self, site: &Site, waits: &Waits) {
        let part = match waits {
            Waits::Again(_) => "kms",
            Waits::Source(_) => "source",
            Waits::Ledger(error) => {
                if error.is_fatal() {
                    return self.break_off(site, error);
                }
                "ledger"
            }
            Waits::Sink(_) | Waits::Changed { .. } => "sink",
        };
        self.failing.note(part, waits.to_string());
    }

    fn works(&self, parts: &[&'static str]) {
        self.failing.clear(parts);
    }

    /// Works until it is told to stop; then finishes the output of what it has decided. Notices end when whoever gives them ends.
    pub async fn run(self: Arc<Self>, mut notices: mpsc::Receiver<Notice>) {
        let mut looks = Vec::new();
        for site in self.sites.values() {
            looks.push(tokio::spawn(Arc::clone(&self).look_at(Arc::clone(site))));
        }
        let mut heard = true;
        loop {
            self.start_lanes();
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                notice = notices.recv(), if heard => match notice {
                    Some(Notice { name, receipt }) => self.hear(name, receipt),
                    None => heard = false,
                },
                () = self.changed.notified() => {}
            }
        }
        for look in looks {
            // It ends with `stop`.
            let _ = look.await;
        }
        self.lanes.close();
        self.lanes.wait().await;
        self.outputs.close();
        self.outputs.wait().await;
        for site in self.sites.values() {
            site.close().await;
        }
    }

    fn hear(&self, name: BundleName, receipt: Option<Receipt>) {
        if !self.sites.contains_key(&name.site) {
            tracing::warn!(event = "bundle.unknown_site", %name, "no [[site]] here is called so");
            return;
        }
        if self.is_broken(&name.site) {
            return;
        }
        // What finds no room lets go of its message, and comes again.
        self.board().add(name, receipt, None);
        self.show();
    }

    fn show(&self) {
        let (board, bucket) = (self.board(), &self.metrics.bucket);
        bucket.waiting.set(i64::try_from(board.names()).unwrap_or(i64::MAX));
        for site in self.sites.keys() {
            let label = SiteLabel { site: site.to_string() };
            bucket.oldest.get_or_create(&label).set(board.oldest(site).unwrap_or(0) as f64 / 1e6);
        }
    }

    fn start_lanes(self: &Arc<Self>) {
        let mut board = self.board();
        board.tidy();
        for ((site, id), lane) in &mut board.lanes {
            let Some(site) = self.sites.get(site).filter(|_| !lane.running && !lane.is_empty()) else {
                continue;
            };
            lane.running = true;
            self.lanes.spawn(Arc::clone(self).run_lane(Arc::clone(site), id.clone()));
        }
    }

    /// The first bundles of a lane; the lane is at rest if there are none.
    fn next_of(&self, site: &Site, id: &LaneId, most: usize) -> Vec<BundleName> {
        let mut board = self.board();
        let next = board.next_of(site, id, most);
        board.runs(site, id, !next.is_empty());
        next
    }

    fn rest(&self, site: &Site, id: &LaneId) {
        self.board().runs(site, id, false);
    }

    fn goes_on(&self, site: &Site, id: &LaneId) {
        if self.board().goes_on(site, id)
            && let Some(looks) = self.looks.get(site)
        {
            looks.notify_one();
        }
    }

    async fn run_lane(self: Arc<Self>, site: Arc<SiteReplica>, id: LaneId) {
        let mut ahead: VecDeque<(BundleName, Fetching)> = VecDeque::new();
        let (mut turns, mut failures) = (Turns::default(), 0_u32);
        let mut under_way = self.under_way.subscribe();
        loop {
            if *under_way.borrow_and_update() >= OUTPUTS_MAX {
                // What is at hand has memory that the outputs may be waiting for.
                ahead.clear();
                tokio::select! {
                    biased;
                    () = self.stop.cancelled() => return self.rest(site.site(), &id),
                    // The sender is here: it does not close.
                    _ = under_way.wait_for(|outputs| *outputs < OUTPUTS_MAX) => {}
                }
            }
            // After a failure, the first alone: whatever it waits for, those behind it may wait for too.
            let next = self.next_of(site.site(), &id, if failures == 0 { AHEAD } else { 1 });
            if next.is_empty() {
                return;
            }
            if self.stop.is_cancelled() {
                return self.rest(site.site(), &id);
            }
            // An earlier one was heard of meanwhile: it comes first.
            if !ahead.iter().zip(&next).all(|((ours, _), next)| ours == next) {
                ahead.clear();
            }
            for name in next.into_iter().skip(ahead.len()) {
                let (site, of, turn) = (Arc::clone(&site), name.clone(), turns.one_more());
                let fetching = tokio::spawn(async move { site.prepare(&of, turn).await });
                ahead.push_back((name, Fetching(fetching)));
            }
            let Some((name, mut fetching)) = ahead.pop_front() else { return self.rest(site.site(), &id) };
            let fetched = tokio::select! {
                biased;
                () = self.stop.cancelled() => return self.rest(site.site(), &id),
                fetched = &mut fetching.0 => fetched.unwrap_or_else(|_| Err(crate::intake::lost().into())),
            };
            let taken = match fetched {
                Ok(Fetched::Prepared(prepared)) => {
                    site.decide(&prepared).await.map(|taken| (taken, Some(*prepared)))
                }
                Ok(Fetched::Not(taken)) => Ok((taken, None)),
                Err(waits) => Err(waits),
            };
            match taken {
                Ok((taken, prepared)) => {
                    failures = 0;
                    self.works(&["source", "kms", "ledger"]);
                    self.settle(&site, &name, taken, prepared);
                    self.goes_on(site.site(), &id);
                }
                Err(waits) => {
                    ahead.clear();
                    failures += 1;
                    self.metrics.bucket.bundle("waited");
                    self.fails(site.site(), &waits);
                    self.board().waits(site.site(), &id);
                    let wait = self.wait_after(&waits, failures);
                    tracing::warn!(event = "bundle.waits", %name, reason = waits.reason().name(), error = %waits, wait_ms = wait.as_millis() as u64);
                    tokio::select! {
                        () = self.stop.cancelled() => return self.rest(site.site(), &id),
                        () = tokio::time::sleep(wait) => {}
                    }
                }
            }
        }
    }

    fn settle(
        self: &Arc<Self>,
        site: &Arc<SiteReplica>,
        name: &BundleName,
        taken: Taken,
        prepared: Option<Prepared>,
    ) {
        match taken {
            Taken::Behind(before) => {
                let before = if self.is_broken(site.site()) { Vec::new() } else { before };
                let mut board = self.board();
                for name in before {
                    board.add(name, None, None);
                }
            }
            Taken::Gone => {
                // Its message stays: it is the one trace of what has been there.
                tracing::error!(event = "bundle.gone", %name, "it was told of, and is not in the bucket; what it held shows as missing");
                self.metrics.bucket.bundle("gone");
                drop(self.board().take(name));
            }
            Taken::Done => {
                if prepared.is_none() {
                    self.metrics.bucket.bundle("already");
                }
                self.board().take(name).into_iter().for_each(Receipt::done);
            }
            Taken::Decided(decision) => {
                let receipts = self.board().take(name);
                let prepared = prepared.filter(|_| self.is_ours(&decision));
                // Whoever else has decided it is at its output, unless he is gone.
                if self.is_ours(&decision) {
                    self.begin_output(site, decision, prepared, receipts);
                } else {
                    self.leave(site, decision, receipts);
                }
            }
        }
        self.show();
    }

    fn is_ours(&self, decision: &Decision) -> bool {
        decision.replica == self.id[..]
    }

    /// Sees to it that the output of an entry is written, and tells the messages off then. One task is at one entry.
    fn begin_output(
        self: &Arc<Self>,
        site: &Arc<SiteReplica>,
        decision: Arc<Decision>,
        prepared: Option<Prepared>,
        mut receipts: Vec<Receipt>,
    ) {
        let key = (site.site().clone(), decision.number);
        let mut writing = self.writing();
        receipts.extend(self.left().remove(&key).into_iter().flatten());
        match writing.entry(key) {
            Entry::Occupied(mut waiting) => waiting.get_mut().extend(receipts),
            Entry::Vacant(place) => {
                place.insert(receipts);
                self.under_way.send_replace(writing.len());
                self.outputs.spawn(Arc::clone(self).write(Arc::clone(site), decision, prepared));
            }
        }
    }

    /// How long an entry is left to whoever has decided it: longer, the more there is to write.
    fn grace_of(&self, decision: &Decision) -> Duration {
        let verdicts = decision.envelopes.iter().filter_map(|judged| judged.verdict.as_ref());
        let bytes = verdicts.map(|verdict| match verdict {
            Verdict::Applied(one) => one.applied.as_ref().map_or(0, |applied| applied.plaintext_bytes),
            Verdict::SetAside(_) | Verdict::Duplicate(_) => 0,
        });
        let seconds = bytes.fold(0, u64::saturating_add) / WRITTEN_PER_SECOND;
        self.pace.grace.saturating_add(Duration::from_secs(seconds))
    }

    /// Leaves the output of an entry to whoever has decided it, until it is there or has been awaited for long enough.
    fn leave(self: &Arc<Self>, site: &Arc<SiteReplica>, decision: Arc<Decision>, receipts: Vec<Receipt>) {
        let key = (site.site().clone(), decision.number);
        let mut writing = self.writing();
        if let Some(waiting) = writing.get_mut(&key) {
            return waiting.extend(receipts);
        }
        let mut left = self.left();
        let room = left.len() < LEFT_MAX;
        match left.entry(key) {
            Entry::Occupied(mut waiting) => waiting.get_mut().extend(receipts),
            Entry::Vacant(place) if room => {
                place.insert(receipts);
                self.outputs.spawn(Arc::clone(self).await_other(Arc::clone(site), decision));
            }
            Entry::Vacant(_) => {}
        }
    }

    async fn await_other(self: Arc<Self>, site: Arc<SiteReplica>, decision: Arc<Decision>) {
        let key = (site.site().clone(), decision.number);
        tokio::select! {
            biased;
            // Let go without a word its messages come again.
            () = self.stop.cancelled() => drop(self.left().remove(&key)),
            () = site.completed(decision.number) => {
                self.left().remove(&key).into_iter().flatten().for_each(Receipt::done);
            }
            () = tokio::time::sleep(self.grace_of(&decision)) => {
                // Unless a look has taken it up.
                let receipts = self.left().remove(&key);
                if let Some(receipts) = receipts {
                    self.begin_output(&site, decision, None, receipts);
                }
            }
        }
    }

    async fn write(
        self: Arc<Self>,
        site: Arc<SiteReplica>,
        decision: Arc<Decision>,
        prepared: Option<Prepared>,
    ) {
        let written = self.written(&site, &decision, prepared).await;
        let receipts = {
            let mut writing = self.writing();
            let receipts = writing.remove(&(site.site().clone(), decision.number));
            self.under_way.send_replace(writing.len());
            receipts.unwrap_or_default()
        };
        // Let go without a word they come again.
        if written {
            receipts.into_iter().for_each(Receipt::done);
        }
    }

    /// Writes the output of an entry until it is whole; false if that is left to another time, or to who comes next.
    async fn written(
        &self,
        site: &SiteReplica,
        decision: &Arc<Decision>,
        mut prepared: Option<Prepared>,
    ) -> bool {
        let mut failures = 0_u32;
        loop {
            let written = match prepared.take() {
                Some(prepared) => site.output(decision, Some(prepared)).await,
                None => site.finish_one(decision).await,
            };
            let Err(waits) = written else {
                self.works(&["sink"]);
                return true;
            };
            failures += 1;
            self.metrics.sink_failures.inc();
            self.fails(site.site(), &waits);
            tracing::error!(event = "sink.failed", site = %site.site(), number = decision.number, error = %waits, "the entry stands; its output is tried again");
            // Somebody has to put the bundle back first; others go on meanwhile.
            if self.stop.is_cancelled() || matches!(waits, Waits::Changed { .. }) {
                return false;
            }
            // At the end of the program it is tried once more, and left to who comes next.
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = tokio::time::sleep(self.wait_after(&waits, failures)) => {}
            }
        }
    }

    /// Longer after each failure, and not the same for all.
    fn wait_after(&self, waits: &Waits, failures: u32) -> Duration {
        let wait = waits.retry_after().saturating_mul(1 << (failures - 1).min(5)).min(self.pace.retry_max);
        pithead_hop::backoff::spread(wait, pithead_hop::backoff::random())
    }

    /// Lists the bucket from time to time, and finishes what others have left.
    async fn look_at(self: Arc<Self>, site: Arc<SiteReplica>) {
        let mut swept: Option<Instant> = None;
        loop {
            let full = swept.is_none_or(|swept| swept.elapsed() >= self.pace.sweep);
            let looked = tokio::select! {
                () = self.stop.cancelled() => return,
                looked = self.look(&site, full) => looked,
            };
            match looked {
                Ok(()) => {
                    self.works(&["source", "ledger"]);
                    if full {
                        swept = Some(Instant::now());
                    }
                }
                Err(waits) => {
                    self.fails(site.site(), &waits);
                    tracing::warn!(event = "source.not_listed", site = %site.site(), error = %waits);
                }
            }
            if self.is_broken(site.site()) {
                return;
            }
            let asked = async {
                tokio::time::sleep(LOOK_PAUSE.min(self.pace.poll)).await;
                match self.looks.get(site.site()) {
                    Some(asked) => asked.notified().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(self.pace.poll) => {}
                () = asked => {}
            }
        }
    }

    async fn look(self: &Arc<Self>, site: &Arc<SiteReplica>, full: bool) -> Result<(), Waits> {
        site.catch_up().await?;
        let since_us = clock::wall_us().saturating_sub(ALIVE.as_micros() as u64);
        let from = if full { None } else { site.frontier(since_us).await };
        let undecided = site.undecided(from).await?;
        if self.is_broken(site.site()) {
            return Ok(());
        }
        for (name, created_us) in undecided {
            // What a full lane has no room for is asked for when it has.
            self.board().add(name, None, Some(created_us));
        }
        self.show();
        self.changed.notify_one();
        self.finish_others(site).await;
        Ok(())
    }

    /// Takes up the output of entries that have been without it for a while and that nobody here is at: of replicas that are gone, and
    /// of bundles that were not what they had been.
    async fn finish_others(self: &Arc<Self>, site: &Arc<SiteReplica>) {
        let left = site.unfinished().await;
        let due: Vec<_> = {
            let writing = self.writing();
            if left.is_empty() && writing.is_empty() {
                self.works(&["sink"]);
            }
            let room = OUTPUTS_MAX.saturating_sub(writing.len());
            let mut alone = self.left_alone.lock().unwrap_or_else(PoisonError::into_inner);
            let mut before = std::mem::take(&mut *alone);
            let mut due = Vec::new();
            for decision in left {
                let key = (site.site().clone(), decision.number);
                if writing.contains_key(&key) {
                    continue;
                }
                let since = before.remove(&key).unwrap_or_else(Instant::now);
                if since.elapsed() >= self.grace_of(&decision) && due.len() < room {
                    due.push(decision);
                } else {
                    alone.insert(key, since);
                }
            }
            // Those of other sites; of this one what is left there has its output by now.
            alone.extend(before.into_iter().filter(|(key, _)| key.0 != *site.site()));
            due
        };
        for decision in due {
            self.begin_output(site, decision, None, Vec::new());
        }
    }
}

/// A bundle being fetched; let go, it stops.
#[derive(Debug)]
struct Fetching(JoinHandle<Result<Fetched, Waits>>);

impl Drop for Fetching {
    fn drop(&mut self) {
        self.0.abort();
    }
}

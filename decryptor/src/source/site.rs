//! One site, as one replica works on it: a bundle is fetched, prepared, decided in the ledger, and its output written.
//!
//! ```text
//! bundle ── fetch ── prepare ──┬── judge ── entry n+1? ──┬─ won ── output ── complete
//!                              └──<── read n+1, enter <──┘ lost
//! ```
//! - **Decision first, output second.** What an entry says is so, whoever dies next. Its output is written by who has decided, or by
//!   any replica that meets a decided bundle without it: the bundle is still there, and opening it gives the same.
//! - **Any step may be done again, by anybody.** Entries, output and what is set aside are created once.
//! - **Order**: bundles of one lane are decided one after the other. Before one is decided, those before it that are in the bucket
//!   are looked for, unless the books show that there can be none.

use super::board::LANE_MAX;
use super::books::{Before, Books, LaneId, places_of};
use super::judge::{self, NotJudged, Ready};
use super::output;
use crate::intake::answer::Again;
use crate::intake::opener::Opener;
use crate::intake::pipeline::lock;
use crate::intake::registry::Registry;
use crate::intake::scribe;
use crate::ledger::objects::record::{BundleName as Named, Decision, SiteBooks, VERSION, Verdict};
use crate::ledger::objects::{Appended, Chain, ChainError, Link, reason_of};
use crate::metrics::{Metrics, Outcome};
use crate::sink::ObjectsSink;
use crate::verify::Beside;
use bytes::Bytes;
use futures_util::stream::{BoxStream, TryChunksError};
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use pithead_hop::bundle::{BUNDLE_MAX, Bundle, BundleError, BundleName, Hour, Index, Part};
use pithead_hop::ingest::IntervalSet;
use pithead_hop::objects::Fault;
use pithead_hop::program::clock;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::Site;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, oneshot, watch};

/// Bundles that one look at the bucket gives at most, by the store's order, which is that of hours.
pub const FOUND_MAX: usize = 65_536;

/// Bundles that it gives of one lane: one more than is remembered, which says that there are more.
const FOUND_OF_LANE: usize = LANE_MAX + 1;

/// Objects that are looked up in the books at a time: a page of a listing.
const PAGE: usize = 1_000;

/// Hours whose folders are listed one by one for bundles that come before one. Where they may be in more, the site is listed from the first
/// of them on: nothing is left out, and it costs a request for each thousand bundles of the site since.
const HOURS_MOST: usize = 48;

/// Folders that are listed at once.
const LISTED_AT_ONCE: usize = 8;

/// How long a bundle waits for the statement that names a key of it, from when it came into the bucket. Keys rotate rarely, and every
/// replica reads the same bundles of them: an hour is for who hands them out.
const KEY_WAIT_US: u64 = 3_600_000_000;

/// When the store did not answer.
const STORE_RETRY: Duration = Duration::from_secs(2);
/// When somebody has to look first.
pub(super) const OPERATOR_RETRY: Duration = Duration::from_secs(60);

/// Where bundles lie.
#[derive(Debug, Clone)]
pub struct Bucket {
    /// The store.
    pub store: Arc<dyn ObjectStore>,
    /// Below which `bundles/` and `large/` are.
    pub root: Path,
}

impl Bucket {
    /// The key of an object whose name below the root is this.
    #[must_use]
    pub fn key(&self, name: &str) -> Path {
        name.split('/').fold(self.root.clone(), Path::join)
    }

    /// The name below the root of an object with this key.
    #[must_use]
    pub fn name(&self, key: &Path) -> Option<String> {
        Some(key.prefix_match(&self.root)?.collect::<Path>().to_string())
    }
}

/// What the sites of one replica share.
#[derive(Debug)]
pub struct Shared {
    /// Where bundles come from.
    pub bucket: Bucket,
    /// Where output, and the ledger beside it, goes.
    pub sink: ObjectsSink,
    /// Opens envelopes.
    pub opener: Opener,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Who this is: 16 random bytes, drawn at the start.
    pub replica: [u8; 16],
    /// Room for bundles in memory, in bytes.
    pub room: Arc<Semaphore>,
    /// As many bytes as `room` had in the beginning.
    pub room_bytes: usize,
    /// Room for plaintext from its judgement to its output, in bytes; what finds none is opened again.
    pub held: Arc<Semaphore>,
    /// Entries after which the books may be written out.
    pub checkpoint_every: u64,
}

/// What became of a bundle.
#[derive(Debug)]
pub enum Taken {
    /// Decided and its output is whole, by this replica or another.
    Done,
    /// Decided; its output is being written, or waits for who decided.
    Decided(Arc<Decision>),
    /// It is not in the bucket any more.
    Gone,
    /// These come before it, in this order.
    Behind(Vec<BundleName>),
}

/// Why a bundle waits, or the site stands still.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Waits {
    /// A part of it cannot be judged now.
    #[error("{}: {}", .0.reason.name(), .0.detail)]
    Again(Again),
    /// The bucket that bundles are in.
    #[error("the source: {0}")]
    Source(object_store::Error),
    /// The ledger.
    #[error("the ledger: {0}")]
    Ledger(#[from] ChainError),
    /// The output.
    #[error("the sink: {0}")]
    Sink(object_store::Error),
    /// The bundle of an entry is not what it was when it was decided.
    #[error("bundle {key} of entry {number} is gone or was replaced; its output cannot be written")]
    Changed {
        /// Which bundle.
        key: String,
        /// Which entry.
        number: u64,
    },
}

impl Waits {
    /// The reason in the registry.
    #[must_use]
    pub fn reason(&self) -> ErrorReason {
        match self {
            Self::Again(again) => again.reason,
            Self::Source(error) => reason_of(error),
            Self::Ledger(error) => error.reason(),
            Self::Sink(_) => ErrorReason::SinkFailed,
            Self::Changed { .. } => ErrorReason::StateDamaged,
        }
    }

    /// How long to wait before it makes sense to try again.
    #[must_use]
    pub fn retry_after(&self) -> Duration {
        match self {
            Self::Again(again) => again.retry_after,
            Self::Source(_) | Self::Sink(_) => STORE_RETRY,
            Self::Ledger(ChainError::TooLarge { .. }) => OPERATOR_RETRY,
            Self::Ledger(error) if !error.is_fatal() => STORE_RETRY,
            Self::Ledger(_) | Self::Changed { .. } => OPERATOR_RETRY,
        }
    }
}

impl From<Again> for Waits {
    fn from(again: Again) -> Self {
        Self::Again(again)
    }
}

/// The row in which the bundles of a lane get memory: each behind the one before it. Were a later one to have what an earlier one waits
/// for, neither would ever be decided.
#[derive(Debug, Default)]
pub struct Turns(Option<oneshot::Receiver<()>>);

impl Turns {
    /// One more place in the row, behind all others.
    pub fn one_more(&mut self) -> Turn {
        let (passed, comes) = oneshot::channel();
        Turn { before: self.0.replace(comes), passed: Some(passed) }
    }
}

/// A place in the row. Let go, it is passed on.
#[derive(Debug, Default)]
pub struct Turn {
    before: Option<oneshot::Receiver<()>>,
    passed: Option<oneshot::Sender<()>>,
}

impl Turn {
    async fn comes(&mut self) {
        if let Some(before) = self.before.take() {
            // The one before never says anything: it goes.
            let _ = before.await;
        }
    }

    fn pass_on(&mut self) {
        self.passed = None;
    }
}

/// A bundle that was fetched and opened, and is not decided.
#[derive(Debug)]
pub struct Prepared {
    name: BundleName,
    named: Named,
    /// The bundle and its envelopes; the reason if it is no bundle at all.
    content: Result<(Bundle, Vec<Ready>), BundleError>,
    /// Held for as long as its bytes are.
    _room: OwnedSemaphorePermit,
}

/// What was fetched of a bundle.
#[derive(Debug)]
pub enum Fetched {
    /// It is to be decided.
    Prepared(Box<Prepared>),
    /// Nothing is to be done, or something else first.
    Not(Taken),
}

/// By first place and hour.
type OfLane = BTreeMap<(u64, Hour), (BundleName, u64)>;

/// Bundles that were found, by lane: of each the lowest places.
#[derive(Debug, Default)]
struct Found {
    lanes: BTreeMap<LaneId, OfLane>,
    names: usize,
}

impl Found {
    fn add(&mut self, (name, created_us): (BundleName, u64)) {
        let lane = self.lanes.entry(LaneId::of(&name)).or_default();
        self.names += usize::from(lane.insert((name.first.0, name.hour), (name, created_us)).is_none());
        if lane.len() > FOUND_OF_LANE {
            lane.pop_last();
            self.names -= 1;
        }
    }

    fn in_order(self) -> Vec<(BundleName, u64)> {
        self.lanes.into_values().flat_map(BTreeMap::into_values).collect()
    }
}

/// One site, as one replica works on it.
#[derive(Debug)]
pub struct SiteReplica {
    shared: Arc<Shared>,
    chain: Chain,
    registry: Arc<std::sync::Mutex<Registry>>,
    /// Held while an entry is made: one site decides one bundle at a time, since each judges by what the one before has made of the
    /// books.
    books: Mutex<Books>,
    /// Every entry up to this number has all of its output, as far as is known here.
    complete_through: watch::Sender<u64>,
}

impl SiteReplica {
    /// Reads the site's ledger.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn open(shared: Arc<Shared>, site: Site) -> Result<Self, ChainError> {
        let sink = &shared.sink;
        let chain = Chain::new(Arc::clone(sink.store()), sink.root(), site);
        let books = read(&chain).await?;
        let registry = Arc::clone(&books.registry);
        let complete_through = watch::Sender::new(books.complete_through());
        let this = Self { shared, chain, registry, books: Mutex::new(books), complete_through };
        this.show(&*this.books.lock().await);
        Ok(this)
    }

    /// The site.
    #[must_use]
    pub fn site(&self) -> &Site {
        self.chain.site()
    }

    /// The lines of its devices, for who looks at them.
    #[must_use]
    pub fn registry(&self) -> Arc<std::sync::Mutex<Registry>> {
        Arc::clone(&self.registry)
    }

    fn show(&self, books: &Books) {
        self.complete_through.send_if_modified(|known| {
            let now = books.complete_through();
            std::mem::replace(known, now) != now
        });
        let site = crate::metrics::SiteLabel { site: self.site().to_string() };
        let number = i64::try_from(books.number()).unwrap_or(i64::MAX);
        self.shared.metrics.bucket.ledger_number.get_or_create(&site).set(number);
        let unfinished = i64::try_from(books.unfinished().count()).unwrap_or(i64::MAX);
        self.shared.metrics.bucket.unfinished.get_or_create(&site).set(unfinished);
    }

    /// Reads what other replicas have decided meanwhile.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn catch_up(&self) -> Result<(), ChainError> {
        let mut books = self.books.lock().await;
        self.follow(&mut books).await
    }

    async fn follow(&self, books: &mut Books) -> Result<(), ChainError> {
        let from = books.number();
        let mut broken = None;
        let result = self
            .chain
            .follow(from, |link| {
                if broken.is_none() {
                    broken = books.apply(&link).err().map(|fault| (link.decision.number, fault));
                }
            })
            .await;
        self.show(books);
        match broken {
            Some((number, fault)) => Err(self.chain.damaged(number, fault)),
            None => result,
        }
    }

    /// Bundles of this site that are in the bucket and not decided, with when the store has made them, in microseconds: the next few
    /// of each lane, in the order of lanes and places. A lane that stands still takes no other's room.
    ///
    /// # Errors
    /// What the store says.
    pub async fn undecided(&self, from: Option<Hour>) -> Result<Vec<(BundleName, u64)>, Waits> {
        let folder = format!("{}{}", BundleName::FOLDER, self.site());
        let mut pages = self.listing(&folder, from).try_chunks(PAGE);
        let mut found = Found::default();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|TryChunksError(_, error)| Waits::Source(error))?;
            let books = self.books.lock().await;
            page.into_iter().filter(|(name, _)| !books.is_decided(name)).for_each(|one| found.add(one));
            if found.names >= FOUND_MAX {
                break;
            }
        }
        Ok(found.in_order())
    }

    /// Bundles below a folder, from an hour on, with when the store has made them.
    fn listing(
        &self,
        folder: &str,
        from: Option<Hour>,
    ) -> BoxStream<'_, object_store::Result<(BundleName, u64)>> {
        let bucket = &self.shared.bucket;
        let prefix = bucket.key(folder);
        self.shared.metrics.bucket.listings.inc();
        let listing = match from {
            Some(hour) => {
                let offset = bucket.key(&format!("{}{}/{hour}", BundleName::FOLDER, self.site()));
                bucket.store.list_with_offset(Some(&prefix), &offset)
            }
            None => bucket.store.list(Some(&prefix)),
        };
        let ours = move |object: object_store::ObjectMeta| {
            // What else lies there is not for us.
            let name = bucket.name(&object.location).and_then(|name| BundleName::parse(&name).ok());
            let name = name.filter(|name| name.site == *self.site());
            let modified = u64::try_from(object.last_modified.timestamp_micros()).unwrap_or(0);
            std::future::ready(Ok(name.map(|name| (name, modified))))
        };
        listing.try_filter_map(ours).boxed()
    }

    /// The bundles that come before this one in its lane and are not decided, in order: the next few.
    async fn before(&self, name: &BundleName) -> Result<Vec<BundleName>, Waits> {
        let site = format!("{}{}", BundleName::FOLDER, self.site());
        let may_be = self.books.lock().await.may_be_before(name);
        let listings = match may_be {
            Before::Nothing => return Ok(Vec::new()),
            Before::Anywhere => vec![(site, None)],
            Before::Since { from, to } => match to.and_then(|to| hours(from, to)) {
                Some(hours) => hours.into_iter().map(|hour| (format!("{site}/{hour}"), None)).collect(),
                None => vec![(site, Some(from))],
            },
        };
        let lane = &LaneId::of(name);
        let listed = futures_util::stream::iter(listings).map(|(folder, from)| async move {
            let earlier = self.listing(&folder, from).try_filter(|(found, _)| {
                let is_earlier = (found.first, found.hour) < (name.first, name.hour);
                std::future::ready(is_earlier && LaneId::of(found) == *lane)
            });
            let mut pages = std::pin::pin!(earlier.try_chunks(PAGE));
            let mut undecided = Found::default();
            while let Some(page) = pages.next().await {
                let page = page.map_err(|TryChunksError(_, error)| Waits::Source(error))?;
                let books = self.books.lock().await;
                page.into_iter()
                    .filter(|(found, _)| !books.is_decided(found))
                    .for_each(|one| undecided.add(one));
            }
            Ok::<_, Waits>(undecided)
        });
        let found: Vec<Found> = listed.buffered(LISTED_AT_ONCE).try_collect().await?;
        let mut before: Vec<_> = found.into_iter().flat_map(Found::in_order).map(|(name, _)| name).collect();
        before.sort_by_key(|name| (name.first, name.hour));
        Ok(before)
    }

    /// How a bundle that is decided stands; none if it is not.
    async fn standing(&self, name: &BundleName) -> Option<Taken> {
        let books = self.books.lock().await;
        books.is_decided(name).then(|| match books.unfinished_of(name) {
            Some(decision) => Taken::Decided(Arc::clone(decision)),
            None => Taken::Done,
        })
    }

    /// Fetches and opens a bundle, unless it is decided or others come before it.
    ///
    /// # Errors
    /// [`Waits`].
    pub async fn prepare(&self, name: &BundleName, turn: Turn) -> Result<Fetched, Waits> {
        if let Some(taken) = self.standing(name).await {
            return Ok(Fetched::Not(taken));
        }
        let Some((room, object, created_us)) = self.fetch(&name.to_string(), turn).await? else {
            // Somebody may have decided it, and removed it since.
            self.catch_up().await?;
            return Ok(Fetched::Not(self.standing(name).await.unwrap_or(Taken::Gone)));
        };
        let size = object.as_ref().map_or_else(|size| *size, |object| object.len() as u64);
        let (object, read) = match object {
            Ok(object) => self.read(name, object).await?,
            Err(bytes) => {
                (Bytes::new(), Err(BundleError::TooLarge { what: "bundle", bytes, most: BUNDLE_MAX }))
            }
        };
        let named = named(name, size, head_of(&object), read.as_ref().ok());
        drop(object);
        let content = match read {
            Ok(bundle) => {
                let is_young = is_young(created_us, clock::wall_us());
                let ready = judge::prepare(&self.shared, &self.registry, &bundle, is_young).await?;
                Ok((bundle, ready))
            }
            Err(error) => Err(error),
        };
        let prepared = Prepared { name: name.clone(), named, content, _room: room };
        Ok(Fetched::Prepared(Box::new(prepared)))
    }

    /// Reads a bundle; if something of it is damaged, what the store gives a second time. What a decision says of it is for good, so
    /// it is to be said of what lies there, and not of what came from there once.
    async fn read(
        &self,
        name: &BundleName,
        object: Bytes,
    ) -> Result<(Bytes, Result<Bundle, BundleError>), Waits> {
        let read = read_as(name, object.clone());
        if is_whole(&read) {
            return Ok((object, read));
        }
        let bucket = &self.shared.bucket;
        let again = bucket.store.get(&bucket.key(&name.to_string())).await.map_err(Waits::Source)?;
        let same_size = again.meta.size == object.len() as u64;
        let again = if same_size { again.bytes().await.map_err(Waits::Source)? } else { Bytes::new() };
        if again == object {
            return Ok((object, read));
        }
        let read = read_as(name, again.clone());
        if is_whole(&read) {
            return Ok((again, read));
        }
        let source = format!("{name} reads differently each time");
        Err(Waits::Source(object_store::Error::Generic { store: "bundle", source: source.into() }))
    }

    /// An object of the source, with its share of the memory; its size alone if it is larger than a bundle may be; and when it came.
    async fn fetch(
        &self,
        name: &str,
        mut turn: Turn,
    ) -> Result<Option<(OwnedSemaphorePermit, Result<Bytes, u64>, u64)>, Waits> {
        let bucket = &self.shared.bucket;
        let found = match bucket.store.get(&bucket.key(name)).await {
            Ok(found) => found,
            // Without its bucket nothing is there, and nothing is gone.
            Err(error) if Fault::of(&error) == Fault::NotFound => return Ok(None),
            Err(error) => return Err(Waits::Source(error)),
        };
        let size = found.meta.size;
        let created_us = u64::try_from(found.meta.last_modified.timestamp_micros()).unwrap_or(0);
        let bytes = usize::try_from(size.min(BUNDLE_MAX)).unwrap_or(usize::MAX).min(self.shared.room_bytes);
        let room = Arc::clone(&self.shared.room).acquire_many_owned(u32::try_from(bytes).unwrap_or(u32::MAX));
        turn.comes().await;
        let room = room.await.map_err(|_| Waits::Again(crate::intake::lost()))?;
        turn.pass_on();
        if size > BUNDLE_MAX {
            return Ok(Some((room, Err(size), created_us)));
        }
        let object = found.bytes().await.map_err(Waits::Source)?;
        self.shared.metrics.bucket.source_bytes.inc_by(object.len() as u64);
        Ok(Some((room, Ok(object), created_us)))
    }

    /// Decides a prepared bundle, or learns how it was decided. It is not known afterwards how it ended if this is dropped; asked
    /// again, it is.
    ///
    /// # Errors
    /// [`Waits`]; nothing was decided, as far as is known.
    pub async fn decide(&self, prepared: &Prepared) -> Result<Taken, Waits> {
        let before = self.before(&prepared.name).await?;
        if !before.is_empty() {
            return Ok(Taken::Behind(before));
        }
        let mut books = self.books.lock().await;
        loop {
            if books.is_decided(&prepared.name) {
                let unfinished = books.unfinished_of(&prepared.name);
                return Ok(unfinished.map_or(Taken::Done, |decision| Taken::Decided(Arc::clone(decision))));
            }
            let decision = self.judged(&mut books, prepared)?;
            match self.chain.append(decision).await? {
                Appended::Won(link) => {
                    self.enter(&mut books, &link)?;
                    self.won(&link.decision);
                    let unfinished = books.unfinished().any(|entry| entry.number == link.decision.number);
                    let checkpoint = books.checkpoint_if_due(self.shared.checkpoint_every);
                    drop(books);
                    if let Some(checkpoint) = checkpoint {
                        self.write_out(&checkpoint).await;
                    }
                    return Ok(if unfinished { Taken::Decided(link.decision) } else { Taken::Done });
                }
                Appended::Lost(link) => {
                    self.shared.metrics.bucket.entries_lost.inc();
                    self.enter(&mut books, &link)?;
                    // Others have been at it: there may be many more.
                    self.follow(&mut books).await?;
                }
            }
        }
    }

    fn enter(&self, books: &mut Books, link: &Link) -> Result<(), ChainError> {
        let entered = books.apply(link);
        self.show(books);
        entered.map_err(|fault| self.chain.damaged(link.decision.number, fault))
    }

    fn judged(&self, books: &mut Books, prepared: &Prepared) -> Result<Decision, Waits> {
        let now_us = clock::wall_us();
        let (envelopes, refused) = match &prepared.content {
            Ok((_, ready)) => {
                let devices = self.shared.opener.devices.load_full();
                let judged = judge::judge(&mut lock(&books.registry), &devices, ready, now_us);
                match judged {
                    Ok(envelopes) => (envelopes, 0),
                    Err(NotJudged::Again(again)) => return Err(again.into()),
                    Err(NotJudged::Prepare) => return Err(Waits::Again(crate::intake::lost())),
                }
            }
            Err(_) => (Vec::new(), ErrorReason::BundleMalformed as i32),
        };
        Ok(Decision {
            version: VERSION,
            site: self.site().to_string(),
            number: books.number() + 1,
            previous: books.digest(),
            replica: Bytes::copy_from_slice(&self.shared.replica),
            decided_us: now_us,
            bundle: Some(prepared.named.clone()),
            envelopes,
            complete_through: books.complete_through(),
            refused,
        })
    }

    fn won(&self, decision: &Decision) {
        let metrics = &self.shared.metrics;
        metrics.bucket.entries_won.inc();
        let bundle = decision.bundle.as_ref().map_or("", |bundle| bundle.key.as_str());
        if decision.refused != 0 {
            let reason = ErrorReason::try_from(decision.refused).unwrap_or(ErrorReason::Unspecified);
            tracing::error!(
                event = "bundle.refused",
                bundle,
                number = decision.number,
                reason = reason.name(),
                "it stays where it is"
            );
            metrics.bucket.bundle("refused");
            return;
        }
        metrics.bucket.bundle("decided");
        for judged in &decision.envelopes {
            match &judged.verdict {
                Some(Verdict::Duplicate(_)) => metrics.envelope(Outcome::Duplicate),
                Some(verdict) => {
                    if let Some(entry) = super::books::entry_of(verdict) {
                        scribe::count(metrics, &entry);
                    }
                }
                None => {}
            }
            if let Some(Verdict::SetAside(aside)) = &judged.verdict {
                let reason = ErrorReason::try_from(aside.reason).unwrap_or(ErrorReason::Unspecified);
                let identity =
                    aside.who.as_ref().and_then(|who| who.identity().ok()).map(|who| who.to_string());
                tracing::warn!(event = "envelope.set_aside", identity, reason = reason.name(), bundle);
            }
        }
    }

    /// Writes the output of the entry that was just made about this bundle.
    ///
    /// # Errors
    /// [`Waits`]; anybody may try again.
    pub async fn output(&self, decision: &Arc<Decision>, prepared: Option<Prepared>) -> Result<(), Waits> {
        if let Some(Prepared { content: Ok((bundle, ready)), _room, .. }) = prepared {
            output::write(&self.shared, decision, &bundle, ready).await?;
        } else {
            let (room, bundle) = self.bundle_of(decision).await?;
            output::write(&self.shared, decision, &bundle, Vec::new()).await?;
            drop(room);
        }
        let mut books = self.books.lock().await;
        books.complete(decision.number);
        self.show(&books);
        Ok(())
    }

    async fn bundle_of(&self, decision: &Decision) -> Result<(OwnedSemaphorePermit, Bundle), Waits> {
        let named = decision.bundle.as_ref();
        let changed = || Waits::Changed {
            key: named.map(|named| named.key.clone()).unwrap_or_default(),
            number: decision.number,
        };
        let named = named.ok_or_else(changed)?;
        let Some((room, Ok(object), _)) = self.fetch(&named.key, Turn::default()).await? else {
            return Err(changed());
        };
        // By its head, which has a sum of every envelope's bytes.
        if head_of(&object) != named.head_sha256 {
            return Err(changed());
        }
        let bundle = Bundle::read(object).map_err(|_| changed())?;
        Ok((room, bundle))
    }

    /// Writes what is missing of the output of one entry.
    ///
    /// # Errors
    /// [`Waits`].
    pub async fn finish_one(&self, decision: &Arc<Decision>) -> Result<(), Waits> {
        if self.shared.sink.is_whole(decision).await.map_err(Waits::Sink)? {
            let mut books = self.books.lock().await;
            books.complete(decision.number);
            self.show(&books);
            return Ok(());
        }
        self.output(decision, None).await
    }

    /// Waits until the books show that this entry, and every one before it, has all of its output.
    pub async fn completed(&self, number: u64) {
        // The sender is here: it does not close.
        let _ = self.complete_through.subscribe().wait_for(|through| *through >= number).await;
    }

    /// Entries whose output may not be whole.
    pub async fn unfinished(&self) -> Vec<Arc<Decision>> {
        self.books.lock().await.unfinished().cloned().collect()
    }

    /// The hour at which a quick look begins: of lanes of which something was decided since.
    pub async fn frontier(&self, since_us: u64) -> Option<Hour> {
        self.books.lock().await.frontier(since_us)
    }

    /// Writes the books out, so that the next start has little to read. Nothing depends on it.
    pub async fn close(&self) {
        let checkpoint = self.books.lock().await.checkpoint();
        if let Some(checkpoint) = checkpoint {
            self.write_out(&checkpoint).await;
        }
    }

    async fn write_out(&self, checkpoint: &SiteBooks) {
        match self.chain.put_books(checkpoint).await {
            Ok(()) => {}
            Err(error @ ChainError::TooLarge { .. }) => {
                tracing::error!(event = "ledger.checkpoint_not_written", site = %self.site(), %error, "each start reads more entries than the one before");
            }
            Err(error) => {
                tracing::warn!(event = "ledger.checkpoint_not_written", site = %self.site(), %error);
            }
        }
    }
}

/// The books of a site, as its ledger has them now.
///
/// # Errors
/// [`ChainError`].
pub async fn read(chain: &Chain) -> Result<Books, ChainError> {
    match look(chain, false).await {
        (books, None) => Ok(books),
        (_, Some(error)) => Err(error),
    }
}

/// What the books say besides the lines, and which of it is not in the sink: of entries whose output is not known to be whole, the sink
/// itself is asked.
///
/// # Errors
/// What the store says.
pub async fn beside(books: &Books, sink: &ObjectsSink) -> object_store::Result<Beside> {
    let (bundles_refused, nameless_set_aside) = (books.bundles_refused(), books.nameless());
    let asked = futures_util::stream::iter(books.unfinished().cloned())
        .map(|entry| async move { sink.is_whole(&entry).await });
    let mut asked = std::pin::pin!(asked.buffered(LISTED_AT_ONCE));
    let mut unwritten = 0;
    while let Some(is_whole) = asked.next().await {
        unwritten += u64::from(!is_whole?);
    }
    Ok(Beside { unwritten, bundles_refused, nameless_set_aside })
}

/// The books of a site as far as its ledger can be read, and why no further; `from_first` passes checkpoints over.
pub async fn look(chain: &Chain, from_first: bool) -> (Books, Option<ChainError>) {
    let mut books = Books::new(chain.site().clone());
    let looked = look_into(chain, from_first, &mut books).await;
    (books, looked.err())
}

async fn look_into(chain: &Chain, from_first: bool, books: &mut Books) -> Result<(), ChainError> {
    let newest = match from_first {
        true => None,
        false => {
            let damaged = |key: &Path, fault| {
                tracing::error!(event = "ledger.checkpoint_damaged", object = %key, %fault, "an older one is taken, or every entry is read");
            };
            chain.newest_books(damaged).await?
        }
    };
    if let Some(newest) = newest {
        let (number, unfinished) = (newest.number, newest.unfinished.clone());
        match books.restore(newest) {
            Ok(()) => {
                for number in unfinished {
                    let link = chain.read(number).await?.ok_or_else(|| chain.missing(number))?;
                    books.unfinished_before(&link.decision);
                }
            }
            Err(fault) => {
                tracing::error!(event = "ledger.checkpoint_damaged", number, %fault, "every entry is read");
                *books = Books::new(chain.site().clone());
            }
        }
    }
    let mut broken = None;
    let followed = chain.follow(books.number(), |link| {
        if broken.is_none() {
            broken = books.apply(&link).err().map(|fault| (link.decision.number, fault));
        }
    });
    followed.await?;
    broken.map_or(Ok(()), |(number, fault)| Err(chain.damaged(number, fault)))
}

fn is_young(created_us: u64, now_us: u64) -> bool {
    created_us.saturating_add(KEY_WAIT_US) > now_us
}

fn read_as(name: &BundleName, object: Bytes) -> Result<Bundle, BundleError> {
    let bundle = Bundle::read(object)?;
    bundle.index().is_of(name).map(|()| bundle)
}

fn is_whole(read: &Result<Bundle, BundleError>) -> bool {
    read.as_ref().is_ok_and(|bundle| !bundle.parts().any(|(_, part)| matches!(part, Part::Damaged(_))))
}

/// The hours from one to another, both included; none if they are more than are listed one by one.
fn hours(from: Hour, to: Hour) -> Option<Vec<Hour>> {
    let all = std::iter::successors(Some(from), |hour| hour.behind()).take_while(|hour| *hour <= to);
    let hours: Vec<_> = all.take(HOURS_MOST + 1).collect();
    (hours.len() <= HOURS_MOST).then_some(hours)
}

/// A bundle as an entry names it.
fn named(name: &BundleName, size: u64, head_sha256: Bytes, bundle: Option<&Bundle>) -> Named {
    let mut places = IntervalSet::new();
    for entry in bundle.iter().flat_map(|bundle| &bundle.index().entries) {
        places.insert(entry.position.0);
    }
    Named {
        key: name.to_string(),
        size,
        head_sha256,
        gateway: name.gateway.as_str().to_owned(),
        spool: Bytes::copy_from_slice(name.spool.bytes()),
        lane: name.lane.index() as u32,
        places: places_of(&places),
    }
}

/// The sum of its index, as it stands in it; none of what is no bundle.
fn head_of(object: &Bytes) -> Bytes {
    let end = Index::front_bytes(object).ok().and_then(|end| usize::try_from(end).ok());
    end.filter(|end| *end <= object.len()).map(|end| object.slice(end - 32..end)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_waits_an_hour_for_a_key_from_when_it_came() {
        assert!(is_young(5, 5) && is_young(5, 5 + KEY_WAIT_US - 1) && !is_young(5, 5 + KEY_WAIT_US));
        // By a clock of the store that is ahead.
        assert!(is_young(9, 5));
    }

    #[test]
    fn hours_are_listed_one_by_one_only_where_all_of_them_are() {
        let hour = |number: u64| Hour::of_us(number * 3_600_000_000);
        assert_eq!(hours(hour(5), hour(5)), Some(vec![hour(5)]));
        assert_eq!(hours(hour(6), hour(5)), Some(Vec::new()));
        assert_eq!(hours(hour(5), hour(52)), Some((5..5 + 48).map(hour).collect()));
        assert_eq!(hours(hour(5), hour(53)), None);
        assert_eq!(hours(hour(5), hour(1_000_000)), None);
    }
}

//! Copies of large envelopes, where several gateways share the lanes: so that what one has acknowledged outlives its machine.
//!
//! The bytes of a large envelope lie in a file of the gateway that gathered it, and the lanes hold a record that names it. Before that
//! record is appended, and so before anybody is told that it is held, the bytes are put into a store that all gateways reach, as one
//! object: the bare envelope as it is on the wire. The file stays what everything works on; who takes over and has none fetches it.
//!
//! # What holds
//!
//! 1. A record that names a copy is appended after the copy is whole and durable in the store, with the SHA-256 of all its bytes.
//! 2. A copy goes when its record cannot come back, since the lane's saved cursor is behind it, and nothing in the refused area mentions
//!    its envelope. Where a gateway dies before that, its successor removes it.
//! 3. A store that is away is a store that is away: who brings an envelope is told to come again, who relays one tries again. That a copy
//!    is gone is believed of the store it was put into alone, which is known by a mark in it ([`marker`](Copies::look)), and not at the
//!    first look: a file system over a network may know a name later than another machine has made it.
//! 4. Nothing is written over. A name is made for one attempt: it has the term, the identity, and something random in it.
//! 5. What is fetched is judged as what a device brings, and by its SHA-256.
//!
//! # Why what nobody names may be removed
//!
//! An owner knows every copy that is wanted: at the beginning of its term it has read all records that wait, and what it puts itself it
//! knows from before the first byte. Anything else of its own term or of an earlier one is an orphan: put by somebody who died before the
//! append, or late by somebody who was the owner. No record can name it any more, because the lanes were fenced before they were read:
//! from then on no former owner can append ([`super::replicated`]). This rests on comparing, as everything there does, and not on time: an
//! owner that does not know yet that it is a former one removes nothing that matters either, since what it has appended it knows, what
//! others append names copies of later terms, and those it leaves alone. (That is why an envelope that comes back from the refused area is
//! put anew.) Where records do not read, their copies cannot be told from orphans: then nothing of earlier terms is removed, and before such
//! records are stepped over it is said in the store beside each copy that it is kept for a person ([`records_lost`](Copies::records_lost)).
//!
//! What the refused area mentions is wanted too. Its entries are replicated ([`super::refused`]), and an owner looks for orphans when its own
//! folder is in line with them: so the copy outlives the machine that set the envelope aside, and is fetched for sending it again.
//!
//! ```text
//! STORE/copies/SET/store                                              which store this is
//! STORE/copies/SET/SITE/DEVICE/EPOCH-STREAM-RUN-SEQ-RANDOM.envelope   a copy
//!                                                 ....envelope.damaged   says that it is kept for a person
//! ```
//!
//! `SET` is what the lanes' streams begin with.

mod bring;
mod put;
mod tidy;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pithead_hop::backoff::random;
use pithead_hop::bundle::CopyName;
use pithead_hop::ingest::{Bringing, Hop, SealedFileError, UploadStore};
use pithead_hop::objects::{Created, Fault, Settings, SettingsError, Store, StoreError};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::Identity;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use super::record::{Head, LargeCopy};
use crate::metrics::{CopyEvent, Metrics};

/// Copies that are put at one time. Each has one part in memory: 8 MiB, and up to 105 MiB for an envelope of 1 TiB.
const PUTS_AT_ONCE: usize = 2;
/// For how long a copy has to be gone, or another than it was, before that is believed.
const GONE_FOR: Duration = Duration::from_secs(120);
/// What says which store it is has 16 digits and an end of line.
const MARK_BYTES: u64 = 64;

/// Why a copy was not made, or not fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CopyError {
    /// It cannot be opened: a folder that is not there, say.
    #[error("the store of large envelopes: {0}")]
    Settings(#[from] SettingsError),
    /// It did not do what was asked.
    #[error("the store of large envelopes: {0}")]
    Store(#[from] StoreError),
    /// What is there is another store, or is empty where it should not be.
    #[error("the store of large envelopes: {0}")]
    Another(String),
    /// A copy is not there, or is not what was put: not yet believed.
    #[error("the copy is doubtful: {0}")]
    Doubtful(String),
    /// The same, and believed.
    #[error("the copy is lost: {0}")]
    Lost(String),
    /// The envelope's file does not give its bytes.
    #[error(transparent)]
    File(#[from] SealedFileError),
    /// The disk does not take what is fetched.
    #[error("what was fetched is not on the disk: {0}")]
    Disk(#[source] io::Error),
    /// No store is configured, and the envelope is in one.
    #[error("large envelopes of lanes that are shared need a store: [spool.jetstream.large] names none here")]
    NotConfigured,
    /// Another gateway is the owner of the lanes, or nobody is.
    #[error("this gateway takes the envelopes no more")]
    Over,
    /// It is not known what the refused area mentions.
    #[error("it is not known what the refused area mentions: {0}")]
    RefusedArea(String),
    /// The program stops.
    #[error("the gateway stops")]
    Stopping,
}

impl CopyError {
    /// The reason in the registry.
    #[must_use]
    pub fn reason(&self) -> ErrorReason {
        match self {
            Self::Settings(SettingsError::Folder { .. })
            | Self::Another(_)
            | Self::Doubtful(_)
            | Self::Lost(_) => ErrorReason::StoreNotFound,
            Self::Settings(_) | Self::NotConfigured => ErrorReason::ConfigInvalid,
            Self::Store(error) => error.fault.reason(),
            Self::File(_) | Self::Disk(_) => ErrorReason::DiskFailed,
            Self::Over => ErrorReason::StandingBy,
            Self::RefusedArea(_) => ErrorReason::PeerUnreachable,
            Self::Stopping => ErrorReason::Draining,
        }
    }

    /// Whether it says something of the store, as opposed to this machine.
    fn is_the_stores(&self) -> bool {
        matches!(self, Self::Settings(_) | Self::Store(_) | Self::Another(_))
    }
}

/// The copies of a site's large envelopes. Clones are the same.
#[derive(Debug, Clone)]
pub struct Copies(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    set: String,
    uploads: UploadStore,
    metrics: Metrics,
    stop: CancellationToken,
    gone_for: Duration,
    /// Opened when it is needed first.
    store: tokio::sync::Mutex<Option<Store>>,
    puts: Semaphore,
    /// What is being fetched, by its name: one at a time, and after a failure it goes on where it was.
    bringing: tokio::sync::Mutex<Option<(String, Bringing)>>,
    state: Mutex<State>,
    /// A term has begun, or something is to be removed.
    work: Notify,
}

#[derive(Debug, Default)]
struct State {
    term: Option<Term>,
    /// What names the store, since it was seen first.
    known: Option<u64>,
    /// Why the store cannot be used, since when that is so.
    trouble: Option<String>,
    /// Names that nobody wants.
    unwanted: VecDeque<String>,
    /// Copies that were not as they should be, since when.
    doubtful: HashMap<String, Instant>,
}

#[derive(Debug)]
struct Term {
    epoch: u64,
    over: CancellationToken,
    /// Whether all records that waited at its beginning could be read.
    complete: bool,
    /// Records were lost, and it is not said in the store yet which copies they may have named.
    unmarked: bool,
    wanted: HashMap<String, Wanted>,
}

#[derive(Debug)]
struct Wanted {
    identity: Identity,
    header_sha256: [u8; 32],
    /// Its custody, where it was found in the lanes.
    hops: Vec<Hop>,
    /// When it is whole.
    copy: Option<LargeCopy>,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Being put.
    UnderWay,
    /// Whole, and no record names it yet.
    Placed,
    /// A record names it.
    Recorded,
}

/// What an owner has found of large envelopes in the lanes.
#[derive(Debug, Default)]
pub struct Waiting {
    /// The heads of those that have a copy.
    pub heads: Vec<Head>,
    /// Whether all records could be read.
    pub complete: bool,
}

/// How the copies are, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Where they are.
    pub url: String,
    /// Copies that are wanted, as far as an owner knows.
    pub copies: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Why the store cannot be used.
    pub trouble: Option<String>,
}

impl Copies {
    /// Of the lanes whose streams begin with `set`. Nothing is asked yet.
    #[must_use]
    pub fn new(
        settings: Settings,
        set: String,
        uploads: UploadStore,
        metrics: Metrics,
        stop: CancellationToken,
    ) -> Self {
        metrics.large_store_up(true);
        Self(Arc::new(Inner {
            settings,
            set,
            uploads,
            metrics,
            stop,
            gone_for: GONE_FOR,
            store: tokio::sync::Mutex::default(),
            puts: Semaphore::new(PUTS_AT_ONCE),
            bringing: tokio::sync::Mutex::default(),
            state: Mutex::default(),
            work: Notify::new(),
        }))
    }

    /// In a folder of its own below this one, for tests; what is gone is believed at the second look.
    #[cfg(test)]
    pub(crate) fn below(folder: &std::path::Path, uploads: &UploadStore, metrics: &Metrics) -> Self {
        let store = folder.join("large-store");
        std::fs::create_dir_all(&store).unwrap();
        let settings = Settings::new(format!("file://{}", store.display()));
        let (set, stop) = ("test".to_owned(), CancellationToken::new());
        let mut copies = Self::new(settings, set, uploads.clone(), metrics.clone(), stop);
        Arc::get_mut(&mut copies.0).unwrap().gone_for = Duration::from_millis(1);
        copies
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This gateway has become the owner of the lanes, and has read what waits there.
    pub fn begin(&self, epoch: u64, waiting: Waiting) {
        let Waiting { heads, complete } = waiting;
        let recorded = |head: Head| {
            let copy = head.copy?;
            let (identity, header_sha256, hops) = (head.identity, head.sha256, head.hops);
            let (name, copy) = (copy.name.clone(), Some(copy));
            Some((name, Wanted { identity, header_sha256, hops, copy, stage: Stage::Recorded }))
        };
        let wanted = heads.into_iter().filter_map(recorded).collect();
        let term = Term { epoch, over: CancellationToken::new(), complete, unmarked: !complete, wanted };
        if let Some(before) = self.lock().term.replace(term) {
            before.over.cancel();
        }
        self.show();
        self.0.work.notify_one();
    }

    /// It is the owner no more.
    pub fn end(&self) {
        let mut state = self.lock();
        state.unwanted.clear();
        state.doubtful.clear();
        if let Some(term) = state.term.take() {
            term.over.cancel();
        }
        drop(state);
        // What was being fetched has room on the disk that nobody else sees.
        if let Ok(mut bringing) = self.0.bringing.try_lock() {
            *bringing = None;
        }
        self.show();
    }

    /// A record that is durable names this copy.
    pub fn recorded(&self, copy: &LargeCopy) {
        let mut state = self.lock();
        let wanted = state.term.as_mut().and_then(|term| term.wanted.get_mut(&copy.name));
        if let Some(wanted) = wanted {
            wanted.stage = Stage::Recorded;
        }
    }

    /// No record names this copy, and none will.
    pub fn let_go(&self, copy: &LargeCopy) {
        let mut state = self.lock();
        let was_wanted = state.term.as_mut().and_then(|term| term.wanted.remove(&copy.name)).is_some();
        if was_wanted {
            state.unwanted.push_back(copy.name.clone());
        }
        drop(state);
        self.show();
        self.0.work.notify_one();
    }

    /// Its record cannot come back, and the refused area has its envelope: that says from now on whether it is kept.
    pub fn was_refused(&self, copy: &LargeCopy) {
        if let Some(term) = &mut self.lock().term {
            term.wanted.remove(&copy.name);
        }
        self.show();
    }

    /// The head of a record that names a copy of this envelope, or is about to, as far as it is known.
    #[must_use]
    pub(super) fn head_of(&self, identity: &Identity) -> Option<Head> {
        let state = self.lock();
        let mut all = state.term.as_ref()?.wanted.values();
        let wanted = all.find(|wanted| wanted.identity == *identity && wanted.copy.is_some())?;
        let (identity, sha256) = (identity.clone(), wanted.header_sha256);
        Some(Head { identity, sha256, hops: wanted.hops.clone(), copy: wanted.copy.clone() })
    }

    /// How they are.
    #[must_use]
    pub fn facts(&self) -> Facts {
        let state = self.lock();
        let copies =
            state.term.iter().flat_map(|term| term.wanted.values()).filter_map(|one| one.copy.as_ref());
        let (mut count, mut bytes) = (0, 0);
        for copy in copies {
            (count, bytes) = (count + 1, bytes + copy.total);
        }
        let (url, trouble) = (self.0.settings.url.clone(), state.trouble.clone());
        Facts { url, copies: count, bytes, trouble }
    }

    /// Why the store cannot be used, if it cannot.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.lock().trouble.clone()
    }

    fn show(&self) {
        let facts = self.facts();
        self.0.metrics.large_copies(facts.copies as u64, facts.bytes);
    }

    /// The term in which this gateway owns the lanes.
    fn term(&self) -> Result<(u64, CancellationToken), CopyError> {
        let state = self.lock();
        let term = state.term.as_ref().filter(|term| !term.over.is_cancelled());
        term.map(|term| (term.epoch, term.over.clone())).ok_or(CopyError::Over)
    }

    async fn store(&self) -> Result<Store, CopyError> {
        let mut held = self.0.store.lock().await;
        if let Some(store) = &*held {
            return Ok(store.clone());
        }
        let store = Store::open(&self.0.settings).await?;
        *held = Some(store.clone());
        Ok(store)
    }

    fn marker_name(&self) -> String {
        format!("{}store", CopyName::folder(&self.0.set))
    }

    /// Which store this is. An empty one is given its mark where `make` says so and nothing speaks against it: neither was it another
    /// one a moment ago, nor does a record name a copy in one.
    async fn marker(&self, store: &Store, make: bool) -> Result<Option<u64>, CopyError> {
        let name = self.marker_name();
        loop {
            match store.read_range(&name, 0..MARK_BYTES).await {
                Ok(bytes) => {
                    let id = mark_of(&bytes).ok_or_else(|| {
                        CopyError::Another(format!("{name} in {store} does not say which store it is"))
                    })?;
                    self.lock().known = Some(id);
                    return Ok(Some(id));
                }
                Err(error) if error.fault == Fault::NotFound => {
                    let is_missed = {
                        let state = self.lock();
                        let recorded =
                            |term: &Term| term.wanted.values().any(|one| one.stage == Stage::Recorded);
                        state.known.is_some() || state.term.as_ref().is_some_and(recorded)
                    };
                    if is_missed {
                        let why = format!(
                            "{store} answers, and is not the one that envelopes were put into: it has no {name}. Is it mounted?"
                        );
                        return Err(CopyError::Another(why));
                    }
                    if !make {
                        return Ok(None);
                    }
                    let mark = Bytes::from(format!("{:016x}\n", random()));
                    // Another one may have been quicker; then its word counts.
                    let _: Created = store.create(&name, [mark]).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Looks whether the store is there.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub async fn look(&self) -> Result<(), CopyError> {
        let looked = async {
            let store = self.store().await?;
            store.list(&CopyName::folder(&self.0.set), 1).await?;
            self.marker(&store, false).await.map(drop)
        };
        let looked = looked.await;
        self.note(&looked);
        looked
    }

    /// Remembers how the store is, by what came of a request.
    fn note<T>(&self, result: &Result<T, CopyError>) {
        let trouble = match result {
            Err(error) if error.is_the_stores() => Some(error.to_string()),
            Err(_) => return,
            Ok(_) => None,
        };
        let before = std::mem::replace(&mut self.lock().trouble, trouble.clone());
        self.0.metrics.large_store_up(trouble.is_none());
        match (before, trouble) {
            (None, Some(error)) => tracing::warn!(event = "large.store_away", error),
            (Some(_), None) => tracing::info!(event = "large.store_back"),
            _ => {}
        }
    }

    fn count(&self, event: CopyEvent) {
        self.0.metrics.large_copy(event);
    }
}

fn mark_of(bytes: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?;
    (text.len() == 16).then(|| u64::from_str_radix(text, 16).ok())?
}

/// Whether a store could hold copies: that it takes an object, shows it, and lets go of it.
///
/// # Errors
/// What it does not do.
pub async fn try_store(settings: &Settings, set: &str) -> Result<Option<u64>, CopyError> {
    let store = Store::open(settings).await?;
    let folder = CopyName::folder(set);
    let name = format!("{folder}probe-{:016x}", random());
    store.create(&name, [Bytes::from_static(b"There for a moment, to see whether it can be.\n")]).await?;
    store.list(&folder, 1).await?;
    store.remove(&name).await?;
    match store.read_range(&format!("{folder}store"), 0..MARK_BYTES).await {
        Ok(bytes) => Ok(mark_of(&bytes)),
        Err(error) if error.fault == Fault::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

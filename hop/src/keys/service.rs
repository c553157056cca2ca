//! The serving half: answers from memory, whether its own source is there or not.
//!
//! The book of a site is a [`watch`] channel; nobody who asks waits for anything, and what changes in the book is said
//! to every watcher at once. A caller is told of its own site alone.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use futures_util::stream::{self, BoxStream};
use pithead_proto::{
    errors::v1::ErrorReason,
    keys::v1::{
        GetKeyBundleRequest, GetKeyBundleResponse, Held as ProtoHeld, WatchKeyBundleRequest,
        WatchKeyBundleResponse,
        key_service_server::{KeyService, KeyServiceServer},
    },
};
use pithead_sealing::{Site, trust::Sha256Digest};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Extensions, Request, Response, Status};

use super::{MESSAGE_MAX, client::Held, served::ServedKeys};
use crate::{
    backoff,
    identity::{Peer, PeerId},
    status::Refusal,
};

/// Longest name of an authority that is looked at, in bytes.
const AUTHORITY_MAX: usize = 256;

/// What a caller is told to wait when there is no statement yet, before jitter.
const KEYS_NOT_READY_WAIT: Duration = Duration::from_secs(10);

/// What a watcher is told to wait when we stop, before jitter.
const DRAINING_WAIT: Duration = Duration::from_secs(2);

/// The book of one site.
#[derive(Debug, Clone)]
pub struct SiteKeys {
    /// The authority that the site is under.
    pub authority: String,
    /// What was verified last; nothing before the first statement was accepted.
    pub keys: watch::Receiver<Option<Arc<ServedKeys>>>,
}

/// Serves `KeyService`. Clones serve the same.
#[derive(Debug, Clone)]
pub struct KeyServer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    sites: ArcSwap<BTreeMap<Site, SiteKeys>>,
    /// One per identity, so no more than there are connections. The number tells a watch from the one that replaced it.
    watches: Mutex<HashMap<PeerId, (u64, CancellationToken)>>,
    next_watch: AtomicU64,
    now_us: fn() -> u64,
    stop: CancellationToken,
}

impl KeyServer {
    /// Serves these sites until `stop`. `now_us` is the clock that callers are shown, such as
    /// [`crate::program::clock::wall_us`].
    pub fn new(sites: BTreeMap<Site, SiteKeys>, now_us: fn() -> u64, stop: CancellationToken) -> Self {
        Self(Arc::new(Inner {
            sites: ArcSwap::from_pointee(sites),
            watches: Mutex::default(),
            next_watch: AtomicU64::new(0),
            now_us,
            stop,
        }))
    }

    /// Serves other sites from now on; watches that are open stay on the book they began with.
    pub fn replace_sites(&self, sites: BTreeMap<Site, SiteKeys>) {
        self.0.sites.store(Arc::new(sites));
    }

    /// How many identities are watching.
    pub fn watchers(&self) -> usize {
        self.0.lock().len()
    }

    /// As a service for tonic's routes.
    pub fn into_service(self) -> KeyServiceServer<Self> {
        KeyServiceServer::new(self)
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX)
    }

    fn find(&self, peer: &Peer, authority: &str, site: &str) -> Result<SiteKeys, Refusal> {
        if authority.is_empty() || authority.len() > AUTHORITY_MAX {
            return Err(Refusal::field("authority", "is not the name of an authority"));
        }
        let site = Site::new(site).map_err(|error| Refusal::field("site", error.to_string()))?;
        if &site != peer.site() {
            return Err(Refusal::new(ErrorReason::SiteMismatch, "a caller is told of its own site alone"));
        }
        let sites = self.0.sites.load();
        let found = sites.get(&site).ok_or_else(|| {
            Refusal::new(ErrorReason::SiteUnknown, format!("site {site} is not served here"))
        })?;
        if found.authority != authority {
            let detail = format!("site {site} is under authority {} here", found.authority);
            return Err(Refusal::new(ErrorReason::AuthorityUnknown, detail));
        }
        Ok(found.clone())
    }
}

impl Inner {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<PeerId, (u64, CancellationToken)>> {
        // Every change is one insert or one remove: nothing is half done if a holder panicked.
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn peer_of(extensions: &Extensions) -> Result<Peer, Refusal> {
    let missing = || Refusal::new(ErrorReason::CertificateRequired, "the caller is not known");
    extensions.get::<Peer>().cloned().ok_or_else(missing)
}

fn held_of(held: Option<ProtoHeld>) -> Result<Held, Refusal> {
    let held = held.unwrap_or_default();
    let statement_digest = match held.statement_digest.as_ref() {
        [] => None,
        digest => {
            let digest: [u8; 32] = digest
                .try_into()
                .map_err(|_| Refusal::field("have.statement_digest", "is neither empty nor 32 bytes"))?;
            Some(Sha256Digest::from_bytes(digest))
        }
    };
    Ok(Held { root_version: held.root_version, statement_digest })
}

fn not_ready() -> Refusal {
    Refusal::new(ErrorReason::KeysNotReady, "no statement was ever accepted here")
        .retry_after(backoff::spread(KEYS_NOT_READY_WAIT, backoff::random()))
}

#[tonic::async_trait]
impl KeyService for KeyServer {
    async fn get_key_bundle(
        &self,
        request: Request<GetKeyBundleRequest>,
    ) -> Result<Response<GetKeyBundleResponse>, Status> {
        let peer = peer_of(request.extensions())?;
        let GetKeyBundleRequest { authority, site, have } = request.into_inner();
        let book = self.find(&peer, &authority, &site)?;
        let held = held_of(have)?;
        let keys = book.keys.borrow().clone().ok_or_else(not_ready)?;
        let newer = keys.newer_than(&held);
        Ok(Response::new(GetKeyBundleResponse {
            unchanged: newer.is_none(),
            bundle: newer.map(|file| file.to_proto()),
            time_us: (self.0.now_us)(),
            trust: Some(keys.version().into()),
        }))
    }

    type WatchKeyBundleStream = BoxStream<'static, Result<WatchKeyBundleResponse, Status>>;

    async fn watch_key_bundle(
        &self,
        request: Request<WatchKeyBundleRequest>,
    ) -> Result<Response<Self::WatchKeyBundleStream>, Status> {
        let peer = peer_of(request.extensions())?;
        let WatchKeyBundleRequest { authority, site, have } = request.into_inner();
        let mut book = self.find(&peer, &authority, &site)?.keys;
        let held = held_of(have)?;
        // The first look is at what is there now, even if the channel was looked at before.
        book.mark_changed();
        let watcher = Watcher { book, held, place: Place::take(self.0.clone(), peer.id), over: false };
        Ok(Response::new(Box::pin(stream::unfold(watcher, Watcher::next))))
    }
}

struct Watcher {
    book: watch::Receiver<Option<Arc<ServedKeys>>>,
    /// What the caller has, or has been sent.
    held: Held,
    place: Place,
    over: bool,
}

impl Watcher {
    async fn next(mut self) -> Option<(Result<WatchKeyBundleResponse, Status>, Self)> {
        if self.over {
            return None;
        }
        let refusal = loop {
            tokio::select! {
                biased;
                () = self.place.replaced.cancelled() => {
                    break Refusal::new(ErrorReason::WatchReplaced, "a newer watch of this identity took the place");
                }
                () = self.place.all.stop.cancelled() => break draining(),
                changed = self.book.changed() => if changed.is_err() {
                    break draining();
                },
            }
            let keys = self.book.borrow_and_update().clone();
            let Some(keys) = keys else { continue };
            let Some((newer, then)) = keys.after(&self.held) else { continue };
            self.held = then;
            if newer.bundle.statement.is_none() {
                // Roots alone: the rest follows at once.
                self.book.mark_changed();
            }
            let answer = WatchKeyBundleResponse {
                bundle: Some(newer.to_proto()),
                time_us: (self.place.all.now_us)(),
                trust: Some(keys.version().into()),
            };
            return Some((Ok(answer), self));
        };
        self.over = true;
        Some((Err(refusal.into()), self))
    }
}

fn draining() -> Refusal {
    Refusal::new(ErrorReason::Draining, "stopping")
        .retry_after(backoff::spread(DRAINING_WAIT, backoff::random()))
}

/// An identity's one watch.
struct Place {
    all: Arc<Inner>,
    id: PeerId,
    number: u64,
    replaced: CancellationToken,
}

impl Place {
    fn take(all: Arc<Inner>, id: PeerId) -> Self {
        let replaced = CancellationToken::new();
        let number = all.next_watch.fetch_add(1, Ordering::Relaxed);
        if let Some((_, older)) = all.lock().insert(id.clone(), (number, replaced.clone())) {
            older.cancel();
        }
        Self { all, id, number, replaced }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut watches = self.all.lock();
        if watches.get(&self.id).is_some_and(|(number, _)| *number == self.number) {
            watches.remove(&self.id);
        }
    }
}

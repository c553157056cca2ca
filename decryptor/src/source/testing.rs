//! A bucket that fails on demand, and bundles of real envelopes to put into it.

#![allow(clippy::unwrap_used)]

use super::site::{Bucket, Shared};
use crate::authority::testing::{START, TestAuthority, TestKey, site};
use crate::books::Books as KeyBooks;
use crate::devices::Watch;
use crate::intake::opener::Opener;
use crate::metrics::Metrics;
use crate::sink::ObjectsSink;
use crate::unwrap::{Budgets, CacheLimits, DataKeys, LocalKeys};
use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt as _, StreamExt as _};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use pithead_hop::bundle::{BundleName, Content, Large, LargeName, Origin, Packer, SpoolId};
use pithead_hop::identity::GatewayName;
use pithead_proto::ingest::v1 as wire;
use pithead_sealing::envelope::{ContentType, Header, KernelEntropy, Session, SessionClock, SessionContext};
use pithead_sealing::trust::VerifiedKey;
use pithead_sealing::{DeviceId, Identity, Run, Seq, StreamName};
use pithead_spool::{Lane, Position};
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};

/// What becomes of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Well,
    /// It never arrives.
    FailsBefore,
    /// It is done, and its answer is lost.
    LostReply,
    /// Whoever asks is killed before it arrives.
    KilledBefore,
    /// Whoever asks is killed when it is done.
    KilledAfter,
}

/// One replica's way to the bucket: what it asks for is done by the real one, or not, and it hears of it, or not.
#[derive(Debug)]
pub(crate) struct Faulty {
    real: Arc<InMemory>,
    fates: Mutex<VecDeque<Fate>>,
    dead: Mutex<bool>,
    /// Nothing is put under a key that has this in it.
    refused: Mutex<Option<&'static str>>,
    asked: std::sync::atomic::AtomicU64,
    pub(crate) died: Notify,
    /// The last fate that was given was met.
    pub(crate) met: Notify,
}

impl Faulty {
    pub(crate) fn new(real: &Arc<InMemory>) -> Arc<Self> {
        let (fates, dead, refused) = (Mutex::default(), Mutex::default(), Mutex::default());
        Arc::new(Self {
            real: Arc::clone(real),
            fates,
            dead,
            refused,
            asked: std::sync::atomic::AtomicU64::default(),
            died: Notify::new(),
            met: Notify::new(),
        })
    }

    /// What becomes of the next requests.
    pub(crate) fn will(&self, fates: impl IntoIterator<Item = Fate>) {
        self.fates.lock().unwrap().extend(fates);
    }

    pub(crate) fn be_well(&self) {
        self.fates.lock().unwrap().clear();
        *self.refused.lock().unwrap() = None;
    }

    /// From here on nothing is put under a key that has this in it.
    pub(crate) fn refuse(&self, part_of_key: &'static str) {
        *self.refused.lock().unwrap() = Some(part_of_key);
    }

    /// From here on nobody hears of anything.
    pub(crate) fn kill(&self) {
        *self.dead.lock().unwrap() = true;
        self.died.notify_one();
    }

    /// Requests so far.
    pub(crate) fn asked(&self) -> u64 {
        self.asked.load(std::sync::atomic::Ordering::Relaxed)
    }

    pub(crate) fn is_dead(&self) -> bool {
        *self.dead.lock().unwrap()
    }

    async fn ask<T>(&self, request: impl Future<Output = Result<T>>) -> Result<T> {
        if *self.dead.lock().unwrap() {
            return std::future::pending().await;
        }
        self.asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        tokio::task::yield_now().await;
        let fate = {
            let mut fates = self.fates.lock().unwrap();
            let fate = fates.pop_front();
            if fate.is_some() && fates.is_empty() {
                self.met.notify_one();
            }
            fate.unwrap_or(Fate::Well)
        };
        match fate {
            Fate::Well => request.await,
            Fate::FailsBefore => Err(lost()),
            Fate::LostReply => request.await.and_then(|_| Err(lost())),
            Fate::KilledBefore => {
                self.kill();
                std::future::pending().await
            }
            Fate::KilledAfter => {
                let _ = request.await;
                self.kill();
                std::future::pending().await
            }
        }
    }

    fn ask_list(
        self: &Arc<Self>,
        listing: BoxStream<'static, Result<ObjectMeta>>,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let this = Arc::clone(self);
        let asked = async move { this.ask(async { Ok(()) }).await.map(|()| listing) };
        asked
            .map(|listing| match listing {
                Ok(listing) => listing,
                Err(error) => futures_util::stream::iter([Err(error)]).boxed(),
            })
            .into_stream()
            .flatten()
            .boxed()
    }
}

fn lost() -> object_store::Error {
    object_store::Error::Generic { store: "test", source: "on demand".into() }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a bucket that fails on demand")
    }
}

/// The trait's own shape of a method's future.
type Asked<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

#[derive(Debug, Clone)]
pub(crate) struct Way(pub(crate) Arc<Faulty>);

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl ObjectStore for Way {
    fn put_opts<'life0, 'life1, 'async_trait>(
        &'life0 self,
        location: &'life1 Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Asked<'async_trait, PutResult>
    where
        'life0: 'async_trait,
        'life1: 'async_trait,
        Self: 'async_trait,
    {
        let refused = self.0.refused.lock().unwrap().is_some_and(|part| location.as_ref().contains(part));
        Box::pin(self.0.ask(async move {
            if refused {
                return Err(lost());
            }
            self.0.real.put_opts(location, payload, opts).await
        }))
    }

    fn put_multipart_opts<'life0, 'life1, 'async_trait>(
        &'life0 self,
        location: &'life1 Path,
        opts: PutMultipartOptions,
    ) -> Asked<'async_trait, Box<dyn MultipartUpload>>
    where
        'life0: 'async_trait,
        'life1: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(self.0.ask(async move { self.0.real.put_multipart_opts(location, opts).await }))
    }

    fn get_opts<'life0, 'life1, 'async_trait>(
        &'life0 self,
        location: &'life1 Path,
        options: GetOptions,
    ) -> Asked<'async_trait, GetResult>
    where
        'life0: 'async_trait,
        'life1: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(self.0.ask(async move { self.0.real.get_opts(location, options).await }))
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        drop(locations);
        panic!("nothing here deletes")
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.ask_list(self.0.real.list(prefix))
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.ask_list(self.0.real.list_with_offset(prefix, offset))
    }

    fn list_with_delimiter<'life0, 'life1, 'async_trait>(
        &'life0 self,
        prefix: Option<&'life1 Path>,
    ) -> Asked<'async_trait, ListResult>
    where
        'life0: 'async_trait,
        'life1: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(self.0.ask(async move { self.0.real.list_with_delimiter(prefix).await }))
    }

    fn copy_opts<'life0, 'life1, 'life2, 'async_trait>(
        &'life0 self,
        from: &'life1 Path,
        to: &'life2 Path,
        options: CopyOptions,
    ) -> Asked<'async_trait, ()>
    where
        'life0: 'async_trait,
        'life1: 'async_trait,
        'life2: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(self.0.ask(async move { self.0.real.copy_opts(from, to, options).await }))
    }
}

/// A site with a key, and what replicas need to open what is sealed to it.
pub(crate) struct World {
    authority: TestAuthority,
    pub(crate) key: TestKey,
    pub(crate) verified: VerifiedKey,
    pub(crate) dir: tempfile::TempDir,
}

/// 2026-11-23T00:00:00Z in microseconds.
pub(crate) const MIDNIGHT_US: u64 = 1_795_392_000_000_000;

impl World {
    pub(crate) async fn new() -> Self {
        let (authority, key, verified) = TestAuthority::with_key().await;
        Self { authority, key, verified, dir: tempfile::tempdir().unwrap() }
    }

    /// Another key of the site.
    pub(crate) fn other_key(&self) -> TestKey {
        self.authority.key(2)
    }

    /// A session of a device, in which batches of records are sealed.
    pub(crate) fn session(&self, device: &str, run: u64) -> Session {
        let content_type = ContentType::new(pithead_proto::batch::v1::CONTENT_TYPE).unwrap();
        let device = DeviceId::new(device).unwrap();
        let stream = StreamName::new("can").unwrap();
        let context = SessionContext::new(site("pit-7"), device, stream, content_type);
        let clock = SessionClock { boot: Duration::ZERO, now: START };
        Session::start(&self.verified, &context, Run::new(run).unwrap(), None, clock, &mut KernelEntropy)
            .unwrap()
    }

    /// A file of a device, sealed, as an object of its own.
    pub(crate) fn file(&self, device: &str, seq: u64, content: &[u8]) -> (Large, Bytes) {
        let content_type = ContentType::new("application/octet-stream").unwrap();
        let context = SessionContext::new(
            site("pit-7"),
            DeviceId::new(device).unwrap(),
            StreamName::new("can").unwrap(),
            content_type,
        );
        let clock = SessionClock { boot: Duration::ZERO, now: START };
        let run = Run::new(7).unwrap();
        let mut session =
            Session::start(&self.verified, &context, run, None, clock, &mut KernelEntropy).unwrap();
        let seq = Seq::new(seq).unwrap();
        let sealed = session.seal(seq, content, Duration::ZERO, &mut KernelEntropy).unwrap().bytes().clone();
        let header = Header::parse(&sealed).unwrap();
        let header_sha256: [u8; 32] = Sha256::digest(header.wire()).into();
        let identity = Identity {
            site: site("pit-7"),
            device: DeviceId::new(device).unwrap(),
            stream: StreamName::new("can").unwrap(),
            run,
            seq,
        };
        let name = LargeName::new(identity, &header_sha256);
        (Large { name, total: sealed.len() as u64, header_sha256 }, sealed)
    }

    /// What a replica shares, over its own way to the bucket.
    pub(crate) fn shared(&self, store: Arc<dyn ObjectStore>, replica: u8) -> Arc<Shared> {
        let keys = KeyBooks::open(self.dir.path(), std::slice::from_ref(&self.key.arn)).unwrap();
        let local = LocalKeys::load([(self.key.arn.clone(), self.key.pem.as_path())]).unwrap();
        self.shared_with(store, replica, keys, Arc::new(local))
    }

    /// The same, with so many bytes for bundles in memory.
    pub(crate) fn shared_in(&self, room: usize, store: Arc<dyn ObjectStore>, replica: u8) -> Arc<Shared> {
        let shared = Arc::into_inner(self.shared(store, replica)).unwrap();
        Arc::new(Shared {
            room: Arc::new(Semaphore::new(room)),
            room_bytes: room,
            held: Arc::new(Semaphore::new(64)),
            ..shared
        })
    }

    pub(crate) fn shared_with(
        &self,
        store: Arc<dyn ObjectStore>,
        replica: u8,
        keys: KeyBooks,
        unwrapper: Arc<dyn crate::unwrap::KeyUnwrapper>,
    ) -> Arc<Shared> {
        let metrics = Arc::new(Metrics::new());
        let (_, devices) = Watch::open(self.authority.folder.path()).unwrap();
        let data_keys = Arc::new(DataKeys::new(unwrapper, CacheLimits::default(), Budgets::default()));
        let opener = Opener::new(
            Arc::new(ArcSwap::from_pointee(keys)),
            data_keys,
            Arc::new(ArcSwap::from_pointee(devices)),
            Arc::clone(&metrics),
        );
        Arc::new(Shared {
            bucket: Bucket { store: Arc::clone(&store), root: Path::from("in") },
            sink: ObjectsSink::new(store, Path::from("cloud")),
            opener,
            metrics,
            replica: [replica; 16],
            room: Arc::new(Semaphore::new(64 << 20)),
            room_bytes: 64 << 20,
            held: Arc::new(Semaphore::new(64 << 20)),
            checkpoint_every: 3,
        })
    }
}

/// A batch of as many records as its number says modulo 3, and one.
pub(crate) fn batch(session: &mut Session, seq: u64, what: &str) -> Bytes {
    use pithead_proto::batch::v1 as wire;
    let records = (0..=seq % 3).map(|index| wire::Record {
        dt_us: 1,
        data: format!("{what} {seq} {index}").into(),
        name: String::new(),
    });
    let batch = wire::Batch { base_us: 1, records: records.collect(), ..wire::Batch::default() };
    let sealed =
        session.seal(Seq::new(seq).unwrap(), &batch.encode_to_vec(), Duration::ZERO, &mut KernelEntropy);
    sealed.unwrap().bytes().clone()
}

/// Custody of an envelope, as a gateway writes it.
pub(crate) fn hops(gateway: &str, received_us: u64) -> Vec<wire::Hop> {
    vec![wire::Hop {
        gateway: gateway.into(),
        received_us,
        assurance: wire::Assurance::Vouched as i32,
        certificate_sha256: Bytes::from(vec![7; 32]),
        ..wire::Hop::default()
    }]
}

/// A bundle: envelopes at their places.
pub(crate) fn bundle(gateway: &str, spool: u8, envelopes: &[(u64, Bytes)]) -> (BundleName, Bytes) {
    let contents: Vec<_> =
        envelopes.iter().map(|(place, envelope)| (*place, Content::Here(envelope.clone()))).collect();
    bundle_of(gateway, spool, contents)
}

/// A bundle: envelopes at their places, all of which came at once.
pub(crate) fn bundle_at(
    gateway: &str,
    spool: u8,
    envelopes: &[(u64, Bytes)],
    received_us: u64,
) -> (BundleName, Bytes) {
    let contents = envelopes.iter().map(|(place, envelope)| (*place, Content::Here(envelope.clone())));
    packed(gateway, spool, contents.collect(), |_| received_us)
}

/// A bundle: envelopes, and the names of large ones, at their places.
pub(crate) fn bundle_of(gateway: &str, spool: u8, contents: Vec<(u64, Content)>) -> (BundleName, Bytes) {
    // A quarter of an hour between two of them, so that they lie in several folders.
    packed(gateway, spool, contents, |place| MIDNIGHT_US + place * 900_000_000)
}

fn packed(
    gateway: &str,
    spool: u8,
    contents: Vec<(u64, Content)>,
    received_us: impl Fn(u64) -> u64,
) -> (BundleName, Bytes) {
    let origin = Origin {
        site: site("pit-7"),
        gateway: GatewayName::new(gateway).unwrap(),
        spool: SpoolId::new([spool; 16]),
        lane: Lane::First,
    };
    let mut packer = Packer::new(origin, 8 << 20);
    for (place, content) in contents {
        packer.push(Position(place), &hops(gateway, received_us(place)), content).unwrap();
    }
    let packed = packer.finish().unwrap();
    let object: Vec<u8> = packed.chunks().flat_map(|chunk| chunk.to_vec()).collect();
    (packed.name, object.into())
}

/// Puts a bundle where gateways put them.
pub(crate) async fn publish(real: &InMemory, (name, object): &(BundleName, Bytes)) {
    put(real, &name.to_string(), object).await;
}

/// Puts an object below the source's root.
pub(crate) async fn put(real: &InMemory, name: &str, object: &Bytes) {
    let key = name.split('/').fold(Path::from("in"), Path::join);
    real.put(&key, object.clone().into()).await.unwrap();
}

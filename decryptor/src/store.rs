//! The buckets of a source and a sink: opened by their settings, and bounded.
//!
//! The client below waits for ever on a peer that accepts and never answers. Here every request ends: it gets the time that its bytes
//! take, and of a body or a listing each step does. What ran out looks like any other failure of the store.

use crate::config;
use crate::ledger::objects::{create, reason_of};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use pithead_hop::objects::{Settings, SettingsError, Store};
use pithead_hop::program::ProgramError;
use pithead_proto::errors::v1::ErrorReason;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// For an answer, beside the time that its bytes take.
const REQUEST: Duration = Duration::from_secs(30);

/// What the way to the store carries at least, in bytes a second.
const SLOWEST: u64 = 1 << 20;

/// The settings of `[source]`.
#[must_use]
pub fn settings_of_source(source: &config::Source) -> Settings {
    settings(source.url(), source.endpoint.as_ref(), source.region.as_ref())
}

/// The settings of `[sink]`.
#[must_use]
pub fn settings_of_sink(sink: &config::Sink) -> Settings {
    settings(sink.url(), sink.endpoint.as_ref(), sink.region.as_ref())
}

fn settings(url: &str, endpoint: Option<&String>, region: Option<&String>) -> Settings {
    Settings { endpoint: endpoint.cloned(), region: region.cloned(), ..Settings::new(url) }
}

/// A bucket, or a part of one.
#[derive(Debug, Clone)]
pub struct Opened {
    /// The client, bounded.
    pub store: Arc<dyn ObjectStore>,
    /// What every key of ours begins with.
    pub root: Path,
}

/// Opens the bucket of `[source]`. Makes no request.
///
/// # Errors
/// What is wrong with its settings, and where.
pub async fn open_source(source: &config::Source) -> std::result::Result<Opened, ProgramError> {
    open("source", settings_of_source(source), source.ca.as_deref()).await
}

/// Opens the bucket of `[sink]`. Makes no request.
///
/// # Errors
/// What is wrong with its settings, and where.
pub async fn open_sink(sink: &config::Sink) -> std::result::Result<Opened, ProgramError> {
    open("sink", settings_of_sink(sink), sink.ca.as_deref()).await
}

async fn open(
    section: &str,
    mut settings: Settings,
    ca: Option<&std::path::Path>,
) -> std::result::Result<Opened, ProgramError> {
    let wrong = |what: String| {
        ProgramError::new(ErrorReason::ConfigInvalid, format!("[{section}]: {what}"))
            .todo(format!("check [{section}] url, endpoint, region and ca"))
    };
    if let Some(ca) = ca {
        let read = std::fs::read(ca);
        settings.ca_pem = Some(read.map_err(|error| wrong(format!("{}: {error}", ca.display())))?);
    }
    let whole = Store::open(&settings).await.map_err(|error: SettingsError| wrong(error.to_string()))?;
    let (store, root) = whole.object("");
    let store: Arc<dyn ObjectStore> = Arc::new(Bounded(Arc::clone(store)));
    Ok(Opened { store, root })
}

/// Where it is tried whether the sink's store creates what it creates once. One object, made once.
const PROBE: &str = "ledger/create-once";

/// Whether the sink's store creates once what is created: without that there is no ledger. At most two requests.
///
/// # Errors
/// That it does not, or what it says.
pub async fn probe(sink: &Opened, url: &str) -> std::result::Result<(), ProgramError> {
    let mark =
        Bytes::from_static(b"There to find out whether this store heeds If-None-Match. It may be removed.\n");
    let key = PROBE.split('/').fold(sink.root.clone(), Path::join);
    for _ in 0..2 {
        match create(&*sink.store, &key, mark.clone()).await {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => return Err(refused("sink", &error)),
        }
    }
    let what = format!("{url} does not heed If-None-Match: a second PUT wrote over the first");
    Err(ProgramError::new(ErrorReason::StoreUnsuitable, what)
        .affects("nothing is applied: two replicas would overwrite each other's entries of the ledger")
        .todo("use a store that supports conditional writes"))
}

/// What a store says, for a person.
#[must_use]
pub fn refused(section: &str, error: &Error) -> ProgramError {
    ProgramError::new(reason_of(error), format!("[{section}]: {error}"))
        .affects("nothing is applied")
        .todo(format!("check [{section}] url, the credentials, and what their policy allows"))
}

/// A store of which every request ends.
#[derive(Debug)]
struct Bounded(Arc<dyn ObjectStore>);

/// The trait's own shape of a method's future.
type Asked<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// A request that carries so many bytes, which ends.
///
/// # Errors
/// The request's, or that nothing came in time.
pub async fn within<T>(bytes: u64, request: impl Future<Output = Result<T>>) -> Result<T> {
    let limit = REQUEST + Duration::from_secs(bytes / SLOWEST);
    match tokio::time::timeout(limit, request).await {
        Ok(answered) => answered,
        Err(_) => Err(ran_out(limit)),
    }
}

fn ran_out(limit: Duration) -> Error {
    let source = format!("nothing within {} s", limit.as_secs());
    Error::Generic { store: "bucket", source: source.into() }
}

/// Each step of it ends.
fn bounded<T: Send + 'static>(steps: BoxStream<'static, Result<T>>) -> BoxStream<'static, Result<T>> {
    let next = |steps: Option<BoxStream<'static, Result<T>>>| async move {
        let mut steps = steps?;
        match tokio::time::timeout(REQUEST, steps.next()).await {
            Ok(step) => step.map(|step| (step, Some(steps))),
            Err(_) => Some((Err(ran_out(REQUEST)), None)),
        }
    };
    futures_util::stream::unfold(Some(steps), next).boxed()
}

impl fmt::Display for Bounded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl ObjectStore for Bounded {
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
        let bytes = payload.content_length() as u64;
        Box::pin(within(bytes, self.0.put_opts(location, payload, opts)))
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
        Box::pin(within(0, self.0.put_multipart_opts(location, opts)))
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
        Box::pin(async move {
            let mut found = within(0, self.0.get_opts(location, options)).await?;
            found.payload = match found.payload {
                GetResultPayload::Stream(body) => GetResultPayload::Stream(bounded::<Bytes>(body)),
                file @ GetResultPayload::File(..) => file,
            };
            Ok(found)
        })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        bounded(self.0.delete_stream(locations))
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        bounded(self.0.list(prefix))
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        bounded(self.0.list_with_offset(prefix, offset))
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
        Box::pin(within(0, self.0.list_with_delimiter(prefix)))
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
        Box::pin(within(0, self.0.copy_opts(from, to, options)))
    }
}

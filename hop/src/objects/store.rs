//! An open store.

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use object_store::aws::AmazonS3Builder;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    BackoffConfig, Certificate, ClientOptions, Error, GetOptions, GetRange, MultipartUpload, ObjectStore,
    ObjectStoreExt as _, PutMode, PutOptions, PutPayload, RetryConfig,
};

use super::credentials::Credentials;
use super::fault::{Fault, StoreError};
use super::folder::Folder;
use super::settings::{Location, Settings, SettingsError};

/// For the TCP connection and TLS.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// What a link carries at least, in bytes a second: a request gets the time that its bytes take at this pace. A link that is
/// slower wants smaller bundles.
const SLOWEST: u64 = 64 << 10;
/// Between tries of a request, with jitter.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MOST: Duration = Duration::from_secs(2);
/// No try begins later than this.
const RETRY_WITHIN: Duration = Duration::from_secs(10);
/// What a region is called where nobody asks for one.
const ANY_REGION: &str = "us-east-1";
/// The object that is there to find out whether the store tells that it is there. There is one at most.
const PROBE: &str = "probe/create-once";

/// A store that is open. Clones are the same one.
#[derive(Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    multipart: Option<Arc<dyn MultipartStore>>,
    folder: Option<Arc<Folder>>,
    prefix: Arc<str>,
    url: Arc<str>,
    request_timeout: Duration,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.url)
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

/// What came of a creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// The object is there, and was not before.
    New,
    /// An object is there, and was before: perhaps of the same bytes, by a request whose answer was lost.
    Taken,
}

/// Why a store is not used.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// It writes over what is there.
    #[error(
        "{0} does not heed If-None-Match: a second PUT wrote over the first. Bundles are created once; with this store a restart \
         could replace what the cloud has not read yet. Use a store that supports conditional writes"
    )]
    WritesOver(String),
    /// It did not say.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// Opens a store. Makes no request; a folder has to be there.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub async fn open(settings: &Settings) -> Result<Self, SettingsError> {
        let location = settings.location()?;
        let url: Arc<str> = settings.url.trim_end_matches('/').into();
        let request_timeout = settings.request_timeout;
        match location {
            Location::Folder(path) => {
                // A folder that something else carries on may be on the other side of a network.
                let (at, opening) = (path.clone(), tokio::task::spawn_blocking(move || Folder::open(path)));
                let opened = opening.await;
                let folder = opened.unwrap_or_else(|error| {
                    Err(SettingsError::Folder { path: at, cause: error.to_string() })
                })?;
                Ok(Self {
                    objects: Arc::new(folder.files.clone()),
                    multipart: None,
                    folder: Some(Arc::new(folder)),
                    prefix: "".into(),
                    url,
                    request_timeout,
                })
            }
            Location::Bucket { bucket, prefix } => {
                let bucket = Arc::new(s3(settings, &bucket).await?);
                let objects = bucket.clone();
                Ok(Self {
                    objects,
                    multipart: Some(bucket),
                    folder: None,
                    prefix: prefix.into(),
                    url,
                    request_timeout,
                })
            }
        }
    }

    /// The client below, and what it calls an object of ours.
    #[must_use]
    pub fn object(&self, name: &str) -> (&Arc<dyn ObjectStore>, Path) {
        (&self.objects, self.path(name))
    }

    fn path(&self, name: &str) -> Path {
        if self.prefix.is_empty() { Path::from(name) } else { Path::from(format!("{}/{name}", self.prefix)) }
    }

    /// A request that carries so many bytes, which ends.
    async fn within<T>(
        &self,
        (what, name, bytes): (&'static str, &str, u64),
        request: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, StoreError> {
        let limit = self.request_timeout + Duration::from_secs(bytes / SLOWEST);
        match tokio::time::timeout(limit, request).await {
            Ok(answered) => answered.map_err(|error| StoreError::of(what, name, &error)),
            Err(_) => Err(StoreError::timed_out(what, name, limit)),
        }
    }

    /// Off the async threads, and only if this is a folder.
    async fn in_folder(
        &self,
        work: impl FnOnce(&Folder) -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
        let Some(folder) = self.folder.clone() else { return Ok(()) };
        let done = tokio::task::spawn_blocking(move || work(&folder)).await;
        done.unwrap_or_else(|source| Err(Error::JoinError { source }))
    }

    /// That the folder is there, if this is one: the client below would make it, and something else may be mounted there tomorrow.
    async fn has_its_folder(&self, what: &'static str, name: &str) -> Result<(), StoreError> {
        let Some(folder) = self.folder.clone() else { return Ok(()) };
        let looking = async {
            let there = tokio::task::spawn_blocking(move || folder.is_there()).await;
            there.map_err(|source| Error::JoinError { source })
        };
        match self.within((what, name, 0), looking).await? {
            true => Ok(()),
            false => Err(StoreError::new(what, name, Fault::NoBucket, "the folder is away")),
        }
    }

    /// Makes an object, or finds that one is there. Never writes over it. Either way the object is durable.
    ///
    /// # Errors
    /// [`StoreError`]; see [`Fault::may_have_happened`].
    pub async fn create(
        &self,
        name: &str,
        chunks: impl IntoIterator<Item = Bytes>,
    ) -> Result<Created, StoreError> {
        let payload = PutPayload::from_iter(chunks);
        let bytes = payload.content_length() as u64;
        let (path, options) = (self.path(name), PutOptions::from(PutMode::Create));
        self.has_its_folder("put", name).await?;
        let put = async {
            match self.objects.put_opts(&path, payload, options).await {
                Ok(_) => Ok(Created::New),
                Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {
                    self.in_folder(move |folder| folder.sync(&path)).await?;
                    Ok(Created::Taken)
                }
                Err(error) => Err(error),
            }
        };
        self.within(("put", name, bytes), put).await
    }

    /// Bytes of an object from one offset to another; fewer where it ends before.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn read_range(&self, name: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let bytes = range.end.saturating_sub(range.start);
        let path = self.path(name);
        let get = async {
            let options = GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
            self.objects.get_opts(&path, options).await?.bytes().await
        };
        self.within(("get", name, bytes), get).await
    }

    /// Bytes of an object.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn size(&self, name: &str) -> Result<u64, StoreError> {
        let path = self.path(name);
        self.within(("head", name, 0), async { Ok(self.objects.head(&path).await?.size) }).await
    }

    /// Whether this store tells that an object is there already. One object, made once, at most two requests.
    ///
    /// # Errors
    /// [`ProbeError`].
    pub async fn probe(&self) -> Result<(), ProbeError> {
        let mark = Bytes::from_static(
            b"There to find out whether this store heeds If-None-Match. It may be removed.\n",
        );
        for _ in 0..2 {
            if self.create(PROBE, [mark.clone()]).await? == Created::Taken {
                return Ok(());
            }
        }
        Err(ProbeError::WritesOver(self.to_string()))
    }

    /// Names and sizes of at most `most` objects below a folder that ends in `/`, in no order.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn list(&self, folder: &str, most: usize) -> Result<Vec<(String, u64)>, StoreError> {
        self.has_its_folder("list", folder).await?;
        let path = self.path(folder);
        let mut listing = self.objects.list(Some(&path));
        let mut found = Vec::new();
        while found.len() < most {
            // A page at a time is asked for, and each has its time.
            let next = async { listing.next().await.transpose() };
            let Some(meta) = self.within(("list", folder, 0), next).await? else { break };
            let (location, prefix) = (meta.location.as_ref(), &*self.prefix);
            let name = match prefix.is_empty() {
                true => Some(location),
                false => location.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('/')),
            };
            found.extend(name.map(|name| (name.to_owned(), meta.size)));
        }
        Ok(found)
    }

    /// Removes an object. One that is not there is no error.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn remove(&self, name: &str) -> Result<(), StoreError> {
        self.has_its_folder("delete", name).await?;
        let path = self.path(name);
        match self.within(("delete", name, 0), self.objects.delete(&path)).await {
            Err(error) if error.fault != Fault::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Names below a folder under which something was begun and is not whole, if this is a folder. What a bucket keeps of that it does
    /// not show in this way, and a rule of the bucket removes it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn unfinished(&self, below: &str) -> Result<Vec<String>, StoreError> {
        let Some(folder) = self.folder.clone() else { return Ok(Vec::new()) };
        let wanted = below.to_owned();
        let looking = async {
            let looked = tokio::task::spawn_blocking(move || folder.unfinished(&wanted)).await;
            looked.unwrap_or_else(|source| Err(Error::JoinError { source }))
        };
        self.within(("list", below, 0), looking).await
    }

    /// Removes what attempts that have ended have left of an object that is not whole, if this is a folder.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn remove_unfinished(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path(name);
        let removing = self.in_folder(move |folder| folder.remove_unfinished(&path));
        self.within(("delete", name, 0), removing).await
    }

    /// For objects that go up in parts, over days and restarts; a folder has no such thing.
    #[must_use]
    pub fn parts(&self) -> Option<Parts> {
        Some(Parts { store: self.clone(), multipart: self.multipart.clone()? })
    }

    /// Begins to write an object piece by piece, in one go: for a folder, which has no parts. For whoever alone writes under this name,
    /// one attempt at a time: what an attempt that was killed has left goes first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn write(&self, name: &str) -> Result<Writer, StoreError> {
        let path = self.path(name);
        self.has_its_folder("put", name).await?;
        let begin = async {
            let unfinished = path.clone();
            self.in_folder(move |folder| folder.remove_unfinished(&unfinished)).await?;
            self.objects.put_multipart(&path).await
        };
        let upload = self.within(("put", name, 0), begin).await?;
        Ok(Writer { store: self.clone(), name: name.to_owned(), bytes: 0, upload })
    }
}

/// An object that is being written. It is there when [`finish`](Self::finish) returns, durable, and not before; what is there by then
/// is replaced.
pub struct Writer {
    store: Store,
    name: String,
    /// What it has so far: at the end all of it is synced.
    bytes: u64,
    upload: Box<dyn MultipartUpload>,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Writer({} {})", self.store, self.name)
    }
}

impl Writer {
    /// The next piece.
    ///
    /// # Errors
    /// [`StoreError`]; then [`abort`](Self::abort) it.
    pub async fn piece(&mut self, piece: Bytes) -> Result<(), StoreError> {
        let bytes = piece.len() as u64;
        self.bytes += bytes;
        let put = self.upload.put_part(piece.into());
        self.store.within(("put", &self.name, bytes), put).await
    }

    /// It is whole.
    ///
    /// # Errors
    /// [`StoreError`]; then [`abort`](Self::abort) it.
    pub async fn finish(&mut self) -> Result<(), StoreError> {
        let complete = self.upload.complete();
        self.store.within(("put", &self.name, self.bytes), complete).await.map(drop)
    }

    /// Leaves nothing of it. What cannot be removed is said by nobody: it is not there under its name.
    pub async fn abort(mut self) {
        let abort = self.upload.abort();
        let _ = self.store.within(("abort", &self.name, 0), abort).await;
    }
}

/// Multipart uploads: an object that comes to be part by part, and is there when it is complete.
#[derive(Clone)]
pub struct Parts {
    store: Store,
    multipart: Arc<dyn MultipartStore>,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Parts({})", self.store)
    }
}

impl Parts {
    /// Begins one. Gives its id.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn begin(&self, name: &str) -> Result<String, StoreError> {
        let path = self.store.path(name);
        self.store.within(("begin", name, 0), self.multipart.create_multipart(&path)).await
    }

    /// Puts a part, counted from 0; a part that is there is replaced. Gives its ETag.
    ///
    /// # Errors
    /// [`StoreError`]; [`Fault::NotFound`] if there is no such upload any more.
    pub async fn put(
        &self,
        name: &str,
        upload: &str,
        number: usize,
        chunks: impl IntoIterator<Item = Bytes>,
    ) -> Result<String, StoreError> {
        let payload = PutPayload::from_iter(chunks);
        let (path, upload, bytes) =
            (self.store.path(name), upload.to_owned(), payload.content_length() as u64);
        let put = self.multipart.put_part(&path, &upload, number, payload);
        Ok(self.store.within(("put part of", name, bytes), put).await?.content_id)
    }

    /// Makes the object of its parts, by their ETags in order.
    ///
    /// # Errors
    /// [`StoreError`]; [`Fault::NotFound`] if there is no such upload any more, perhaps because it was completed and the answer was
    /// lost.
    pub async fn complete(&self, name: &str, upload: &str, etags: &[String]) -> Result<(), StoreError> {
        let (path, upload) = (self.store.path(name), upload.to_owned());
        let parts = etags.iter().map(|etag| PartId { content_id: etag.clone() }).collect();
        self.store
            .within(("complete", name, 0), self.multipart.complete_multipart(&path, &upload, parts))
            .await?;
        Ok(())
    }

    /// Gives up: the store forgets the parts. One that is not there is no error.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn abort(&self, name: &str, upload: &str) -> Result<(), StoreError> {
        let (path, upload) = (self.store.path(name), upload.to_owned());
        match self.store.within(("abort", name, 0), self.multipart.abort_multipart(&path, &upload)).await {
            Err(error) if error.fault != Fault::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

async fn s3(settings: &Settings, bucket: &str) -> Result<object_store::aws::AmazonS3, SettingsError> {
    let mut client = ClientOptions::new()
        .with_connect_timeout(CONNECT_LIMIT)
        // Ours, by the bytes of each request: one for all would be too short for a large one or too long for a small one.
        .with_timeout_disabled()
        .with_read_timeout_disabled()
        .with_allow_http(
            settings.endpoint.as_deref().is_some_and(|endpoint| endpoint.starts_with("http://")),
        );
    if let Some(pem) = &settings.ca_pem {
        let roots =
            Certificate::from_pem_bundle(pem).map_err(|error| SettingsError::Ca(error.to_string()))?;
        if roots.is_empty() {
            return Err(SettingsError::Ca("it is empty".to_owned()));
        }
        for root in roots {
            client = client.with_root_certificate(root);
        }
    }
    let backoff = BackoffConfig { init_backoff: RETRY_FIRST, max_backoff: RETRY_MOST, base: 2.0 };
    let region = settings.region.as_deref().unwrap_or(ANY_REGION);
    let path_style = settings.path_style.unwrap_or(settings.endpoint.is_some());
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(region)
        .with_virtual_hosted_style_request(!path_style)
        // One request for one object: not every store knows the other one.
        .with_disable_bulk_delete(true)
        .with_client_options(client)
        .with_retry(RetryConfig { backoff, max_retries: settings.retries, retry_timeout: RETRY_WITHIN });
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/'));
    }
    builder = match (&settings.credentials, settings.credentials.provider(region).await) {
        (_, Some(provider)) => builder.with_credentials(provider),
        (Credentials::Fixed { id, secret }, None) => {
            builder.with_access_key_id(id).with_secret_access_key(secret.as_str())
        }
        (_, None) => return Err(SettingsError::Client("no source of credentials".to_owned())),
    };
    builder.build().map_err(|error| SettingsError::Client(error.to_string()))
}

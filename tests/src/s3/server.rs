//! The listener: S3's HTTP on loopback, with faults on demand.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::objects::{NotComplete, Object, Objects};

/// Above the largest bundle and the largest part of the largest envelope.
const MAX_REQUEST_BYTES: usize = 128 << 20;
/// S3 wants parts of so many bytes, the last excepted.
const PART_BYTES_MIN: usize = 5 << 20;
/// Keys in a page of a listing.
const PAGE: usize = 1_000;
/// A body that trickles gives so many bytes in so long.
const TRICKLE: (usize, Duration) = (16, Duration::from_millis(50));

/// What the server does instead of answering well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Status 503, `SlowDown`.
    SlowDown,
    /// Status 500, `InternalError`.
    Internal,
    /// Status 403, `AccessDenied`.
    Deny,
    /// Status 404, `NoSuchBucket`.
    NoBucket,
    /// Takes the request and never says a word.
    Hang,
    /// Closes the connection when the request was read, before it is carried out: the request is lost.
    DropRequest,
    /// Carries the request out and closes the connection: the answer is lost.
    DropAnswer,
    /// Answers well, some bytes at a time.
    Trickle,
    /// Answers a creation with 412 although nothing is there: two were made at a time, and the other one failed.
    Taken,
    /// Gives an object with a byte changed.
    Corrupt,
    /// Heeds no `If-None-Match`: a store that bundles are not safe in.
    WritesOver,
}

/// Whom a fault is for, and how many requests it meets.
#[derive(Debug)]
struct Planned {
    fault: Fault,
    method: Option<Method>,
    part_of_key: String,
    /// So many are let through first.
    skip: u32,
    left: Option<u32>,
}

#[derive(Debug, Default)]
struct State {
    buckets: BTreeMap<String, Objects>,
    planned: Vec<Planned>,
    counts: BTreeMap<String, u64>,
    put_bytes: u64,
    created: Vec<String>,
    part_bytes_min: usize,
}

/// A running test S3. It stops when dropped.
#[derive(Debug)]
pub struct TestS3 {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    _stop: DropGuard,
}

impl TestS3 {
    /// Listens on a free port of loopback.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn start() -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let state = State { part_bytes_min: PART_BYTES_MIN, ..State::default() };
        let state = Arc::new(Mutex::new(state));
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(accept(
            listener,
            Arc::clone(&state),
            stop.clone(),
        )));
        Ok(Self { address, state, _stop: stop.drop_guard() })
    }

    /// For `endpoint`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it listens, for a link in between.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The variables that give the AWS credentials chain of a child process something, and nothing to look for on a network.
    #[must_use]
    pub fn environment() -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ACCESS_KEY_ID", "test".into()),
            ("AWS_SECRET_ACCESS_KEY", "test".into()),
            ("AWS_EC2_METADATA_DISABLED", "true".into()),
        ]
    }

    /// From now on, every request meets this fault, until [`heal`](Self::heal).
    pub fn fail(&self, fault: Fault) {
        self.plan(fault, None, "", 0, None);
    }

    /// The next so many requests of this method, for a key that holds this text, meet this fault.
    pub fn fail_next(&self, fault: Fault, times: u32, method: Method, part_of_key: &str) {
        self.plan(fault, Some(method), part_of_key, 0, Some(times));
    }

    /// As [`fail_next`](Self::fail_next) for one request, after so many of its kind were answered well.
    pub fn fail_after(&self, skip: u32, fault: Fault, method: Method, part_of_key: &str) {
        self.plan(fault, Some(method), part_of_key, skip, Some(1));
    }

    fn plan(&self, fault: Fault, method: Option<Method>, part_of_key: &str, skip: u32, left: Option<u32>) {
        let planned = Planned { fault, method, part_of_key: part_of_key.to_owned(), skip, left };
        lock(&self.state).planned.push(planned);
    }

    /// No more faults.
    pub fn heal(&self) {
        lock(&self.state).planned.clear();
    }

    /// Faults that have still to be met.
    #[must_use]
    pub fn planned(&self) -> usize {
        lock(&self.state).planned.len()
    }

    /// Requests of a method so far, failed ones included.
    #[must_use]
    pub fn count(&self, method: &Method) -> u64 {
        lock(&self.state).counts.get(method.as_str()).copied().unwrap_or(0)
    }

    /// Bytes of bodies that were sent, failed requests included.
    #[must_use]
    pub fn put_bytes(&self) -> u64 {
        lock(&self.state).put_bytes
    }

    /// The objects of a bucket by their keys.
    #[must_use]
    pub fn objects(&self, bucket: &str) -> BTreeMap<String, Object> {
        lock(&self.state).buckets.get(bucket).map(|bucket| bucket.objects.clone()).unwrap_or_default()
    }

    /// Keys in the order in which objects came to be there, of all buckets.
    #[must_use]
    pub fn created(&self) -> Vec<String> {
        lock(&self.state).created.clone()
    }

    /// Takes an object away behind everybody's back.
    pub fn remove(&self, bucket: &str, key: &str) {
        if let Some(bucket) = lock(&self.state).buckets.get_mut(bucket) {
            bucket.objects.remove(key);
        }
    }

    /// Forgets the multipart uploads that are open, as a rule of the bucket would.
    pub fn forget_uploads(&self, bucket: &str) {
        if let Some(bucket) = lock(&self.state).buckets.get_mut(bucket) {
            bucket.forget_uploads();
        }
    }

    /// Loses the parts of the multipart uploads that are open, and keeps the uploads.
    pub fn lose_parts(&self, bucket: &str) {
        if let Some(bucket) = lock(&self.state).buckets.get_mut(bucket) {
            bucket.lose_parts();
        }
    }

    /// Puts an object behind everybody's back.
    pub fn put(&self, bucket: &str, key: &str, bytes: impl Into<Bytes>) {
        let mut state = lock(&self.state);
        let objects = &mut state.buckets.entry(bucket.to_owned()).or_default().objects;
        objects.insert(key.to_owned(), Object::new(bytes.into()));
    }

    /// Multipart uploads that were begun and neither completed nor aborted.
    #[must_use]
    pub fn open_uploads(&self, bucket: &str) -> usize {
        lock(&self.state).buckets.get(bucket).map_or(0, Objects::open_uploads)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: TcpListener, state: Arc<Mutex<State>>, stop: CancellationToken) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(stop.clone().run_until_cancelled_owned(connection(stream, Arc::clone(&state))));
    }
}

async fn connection(stream: TcpStream, state: Arc<Mutex<State>>) {
    let service = hyper::service::service_fn(move |request| answer(request, Arc::clone(&state)));
    // An error here is a client that left or a reply that was dropped on purpose: both are what the tests are about.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

type Reply = Response<BoxBody<Bytes, Infallible>>;

#[derive(Debug, thiserror::Error)]
#[error("the reply is dropped on purpose")]
struct Dropped;

/// A request, read.
struct Asked {
    method: Method,
    bucket: String,
    key: String,
    query: BTreeMap<String, String>,
    headers: HeaderMap,
    body: Bytes,
}

async fn answer(request: Request<Incoming>, state: Arc<Mutex<State>>) -> Result<Reply, Dropped> {
    let (head, body) = request.into_parts();
    let body = match Limited::new(body, MAX_REQUEST_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => return Ok(error(StatusCode::BAD_REQUEST, "EntityTooLarge")),
    };
    let path = head.uri.path().trim_start_matches('/');
    let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
    let query = head.uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    let query = query.map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(name), decoded(value))
    });
    let asked = Asked {
        method: head.method,
        bucket: decoded(bucket),
        key: decoded(key),
        query: query.collect(),
        headers: head.headers,
        body,
    };
    let fault = {
        let mut state = lock(&state);
        *state.counts.entry(asked.method.to_string()).or_default() += 1;
        state.put_bytes += asked.body.len() as u64;
        met(&mut state.planned, &asked)
    };
    match fault {
        Some(Fault::SlowDown) => return Ok(error(StatusCode::SERVICE_UNAVAILABLE, "SlowDown")),
        Some(Fault::Internal) => return Ok(error(StatusCode::INTERNAL_SERVER_ERROR, "InternalError")),
        Some(Fault::Deny) => return Ok(error(StatusCode::FORBIDDEN, "AccessDenied")),
        Some(Fault::NoBucket) => return Ok(error(StatusCode::NOT_FOUND, "NoSuchBucket")),
        Some(Fault::Taken) => return Ok(error(StatusCode::PRECONDITION_FAILED, "PreconditionFailed")),
        Some(Fault::Hang) => return std::future::pending().await,
        Some(Fault::DropRequest) => return Err(Dropped),
        Some(Fault::DropAnswer | Fault::Trickle | Fault::Corrupt | Fault::WritesOver) | None => {}
    }
    let reply = {
        let mut state = lock(&state);
        let there = |state: &State| {
            state.buckets.get(&asked.bucket).map(|bucket| bucket.objects.get(&asked.key).cloned())
        };
        let before = there(&state);
        let reply = carried_out(&asked, fault, &mut state);
        let now = there(&state);
        if now != before && now.is_some_and(|object| object.is_some()) {
            state.created.push(asked.key.clone());
        }
        reply
    };
    match fault {
        Some(Fault::DropAnswer) => Err(Dropped),
        Some(Fault::Trickle) => Ok(trickling(reply).await),
        _ => Ok(reply),
    }
}

/// The fault that this request meets, if one.
fn met(planned: &mut Vec<Planned>, asked: &Asked) -> Option<Fault> {
    let at = planned.iter().position(|planned| {
        planned.method.as_ref().is_none_or(|method| *method == asked.method)
            && asked.key.contains(&planned.part_of_key)
    })?;
    let found = planned.get_mut(at)?;
    if found.skip > 0 {
        found.skip -= 1;
        return None;
    }
    let fault = found.fault;
    if let Some(left) = &mut found.left {
        *left -= 1;
        if *left == 0 {
            planned.remove(at);
        }
    }
    Some(fault)
}

fn carried_out(asked: &Asked, fault: Option<Fault>, state: &mut State) -> Reply {
    let least = state.part_bytes_min;
    let bucket = state.buckets.entry(asked.bucket.clone()).or_default();
    let upload = asked.query.get("uploadId");
    match (&asked.method, upload) {
        (&Method::GET, None) if asked.key.is_empty() => listed(asked, bucket),
        (&Method::GET | &Method::HEAD, None) => got(asked, fault, bucket),
        (&Method::PUT, None) => put(asked, fault, bucket),
        (&Method::PUT, Some(id)) => {
            let number = asked.query.get("partNumber").and_then(|number| number.parse().ok());
            let Some(number @ 1..=10_000) = number else {
                return error(StatusCode::BAD_REQUEST, "InvalidArgument");
            };
            match bucket.part(&asked.key, id, number, asked.body.clone()) {
                Some(etag) => reply(StatusCode::OK, Bytes::new(), &[("etag", &etag)]),
                None => error(StatusCode::NOT_FOUND, "NoSuchUpload"),
            }
        }
        (&Method::POST, None) if asked.query.contains_key("uploads") => {
            let id = bucket.begin(&asked.key);
            xml(&format!(
                "<InitiateMultipartUploadResult><Bucket>{}</Bucket><Key>{}</Key><UploadId>{id}</UploadId>\
                 </InitiateMultipartUploadResult>",
                asked.bucket, asked.key
            ))
        }
        (&Method::POST, Some(id)) => {
            let named = parts_named(&String::from_utf8_lossy(&asked.body));
            match bucket.complete(&asked.key, id, &named, least) {
                Ok(etag) => xml(&format!(
                    "<CompleteMultipartUploadResult><Bucket>{}</Bucket><Key>{}</Key><ETag>{etag}</ETag>\
                     </CompleteMultipartUploadResult>",
                    asked.bucket, asked.key
                )),
                Err(NotComplete::NoSuchUpload) => error(StatusCode::NOT_FOUND, "NoSuchUpload"),
                Err(NotComplete::InvalidPart) => error(StatusCode::BAD_REQUEST, "InvalidPart"),
                Err(NotComplete::EntityTooSmall) => error(StatusCode::BAD_REQUEST, "EntityTooSmall"),
            }
        }
        (&Method::DELETE, Some(id)) => match bucket.abort(id) {
            true => reply(StatusCode::NO_CONTENT, Bytes::new(), &[]),
            false => error(StatusCode::NOT_FOUND, "NoSuchUpload"),
        },
        (&Method::DELETE, None) => {
            bucket.objects.remove(&asked.key);
            reply(StatusCode::NO_CONTENT, Bytes::new(), &[])
        }
        _ => error(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
    }
}

fn header<'a>(asked: &'a Asked, name: &str) -> Option<&'a str> {
    asked.headers.get(name).and_then(|value| value.to_str().ok())
}

fn put(asked: &Asked, fault: Option<Fault>, bucket: &mut Objects) -> Reply {
    let on_condition = header(asked, "if-none-match") == Some("*") && fault != Some(Fault::WritesOver);
    if on_condition && bucket.objects.contains_key(&asked.key) {
        return error(StatusCode::PRECONDITION_FAILED, "PreconditionFailed");
    }
    if header(asked, "if-match")
        .is_some_and(|etag| bucket.objects.get(&asked.key).is_none_or(|there| there.etag != etag))
    {
        return error(StatusCode::PRECONDITION_FAILED, "PreconditionFailed");
    }
    let object = Object::new(asked.body.clone());
    let etag = object.etag.clone();
    bucket.objects.insert(asked.key.clone(), object);
    reply(StatusCode::OK, Bytes::new(), &[("etag", &etag)])
}

const MODIFIED: (&str, &str) = ("last-modified", "Fri, 27 Nov 2026 05:00:00 GMT");

fn got(asked: &Asked, fault: Option<Fault>, bucket: &Objects) -> Reply {
    let Some(object) = bucket.objects.get(&asked.key) else {
        return error(StatusCode::NOT_FOUND, "NoSuchKey");
    };
    let all = object.bytes.len();
    let asked_range = header(asked, "range").and_then(|range| {
        let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some((from.parse::<usize>().ok()?, to.parse::<usize>().unwrap_or(usize::MAX)))
    });
    let (status, from, to) = match asked_range {
        Some((from, _)) if from >= all => return error(StatusCode::RANGE_NOT_SATISFIABLE, "InvalidRange"),
        Some((from, to)) => (StatusCode::PARTIAL_CONTENT, from, to.saturating_add(1).min(all)),
        None => (StatusCode::OK, 0, all),
    };
    let mut bytes = object.bytes.slice(from..to);
    if fault == Some(Fault::Corrupt) && !bytes.is_empty() {
        let mut changed = bytes.to_vec();
        let middle = changed.len() / 2;
        changed[middle] ^= 0x20;
        bytes = changed.into();
    }
    let range = format!("bytes {from}-{}/{all}", to.saturating_sub(1));
    let length = (to - from).to_string();
    let mut headers = vec![("etag", object.etag.as_str()), MODIFIED, ("accept-ranges", "bytes")];
    if status == StatusCode::PARTIAL_CONTENT {
        headers.push(("content-range", &range));
    }
    if asked.method == Method::HEAD {
        headers.push(("content-length", &length));
        bytes = Bytes::new();
    }
    reply(status, bytes, &headers)
}

fn listed(asked: &Asked, bucket: &Objects) -> Reply {
    let of = |name: &str| asked.query.get(name).map(String::as_str).unwrap_or_default();
    let (prefix, delimiter) = (of("prefix"), of("delimiter"));
    let behind =
        if of("continuation-token").is_empty() { of("start-after") } else { of("continuation-token") };
    let most = of("max-keys").parse().unwrap_or(PAGE).min(PAGE);
    let (mut contents, mut folders, mut last) = (String::new(), Vec::<String>::new(), None);
    let mut count = 0;
    let mut truncated = false;
    for (key, object) in
        bucket.objects.iter().filter(|(key, _)| key.starts_with(prefix) && key.as_str() > behind)
    {
        if count == most {
            truncated = true;
            break;
        }
        last = Some(key.clone());
        let folder = (!delimiter.is_empty()).then(|| key[prefix.len()..].find(delimiter)).flatten();
        if let Some(end) = folder {
            let folder = key[..prefix.len() + end + delimiter.len()].to_owned();
            if folders.last() != Some(&folder) {
                folders.push(folder);
                count += 1;
            }
            continue;
        }
        count += 1;
        contents.push_str(&format!(
            "<Contents><Key>{key}</Key><LastModified>2026-11-27T05:00:00.000Z</LastModified><ETag>{}</ETag><Size>{}</Size>\
             <StorageClass>STANDARD</StorageClass></Contents>",
            object.etag,
            object.bytes.len()
        ));
    }
    let folders: String = folders
        .iter()
        .map(|folder| format!("<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>"))
        .collect();
    let token = last
        .filter(|_| truncated)
        .map_or(String::new(), |last| format!("<NextContinuationToken>{last}</NextContinuationToken>"));
    xml(&format!(
        "<ListBucketResult><Name>{}</Name><Prefix>{prefix}</Prefix><KeyCount>{count}</KeyCount><MaxKeys>{most}</MaxKeys>\
         <IsTruncated>{truncated}</IsTruncated>{token}{contents}{folders}</ListBucketResult>",
        asked.bucket
    ))
}

/// Number and ETag of each part that a completion names.
fn parts_named(text: &str) -> Vec<(u32, String)> {
    let field = |part: &str, name: &str| {
        let rest = part.split_once(&format!("<{name}>"))?.1;
        Some(rest.split_once(&format!("</{name}>"))?.0.replace("&quot;", "\""))
    };
    let parts = text.split("<Part>").skip(1);
    parts.filter_map(|part| Some((field(part, "PartNumber")?.parse().ok()?, field(part, "ETag")?))).collect()
}

fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(byte) = bytes.get(at) {
        let hex = (*byte == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(value) => {
                out.push(value);
                at += 3;
            }
            None => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn xml(body: &str) -> Reply {
    let text = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{body}");
    reply(StatusCode::OK, text.into(), &[("content-type", "application/xml")])
}

fn error(status: StatusCode, code: &str) -> Reply {
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>on purpose</Message></Error>"
    );
    reply(status, text.into(), &[("content-type", "application/xml")])
}

fn reply(status: StatusCode, body: Bytes, headers: &[(&'static str, &str)]) -> Reply {
    let mut reply = Response::new(Full::new(body).boxed());
    *reply.status_mut() = status;
    for (name, value) in headers {
        if let Ok(value) = http::HeaderValue::from_str(value) {
            reply.headers_mut().insert(*name, value);
        }
    }
    reply
}

/// The same answer, some bytes at a time.
async fn trickling(reply: Reply) -> Reply {
    let (head, body) = reply.into_parts();
    let bytes = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(never) => match never {},
    };
    let (size, pause) = TRICKLE;
    let pieces: Vec<Bytes> = bytes.chunks(size).map(Bytes::copy_from_slice).collect();
    let stream = futures_util::stream::iter(pieces).then(move |piece| async move {
        tokio::time::sleep(pause).await;
        Ok::<_, Infallible>(Frame::data(piece))
    });
    Response::from_parts(head, http_body_util::BodyExt::boxed(StreamBody::new(stream)))
}

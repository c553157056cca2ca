//! One call on its way through: the device's messages to the owner, the owner's to the device.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::Stream;
use pithead_proto::errors::v1::ErrorReason;
use pithead_proto::ingest::v1 as wire;
use pithead_proto::ingest::v1::append_request::Message as Asked;
use pithead_proto::ingest::v1::ingest_service_client::IngestServiceClient;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::mark::{mark, word};
use crate::accept::{REFUSED_LOG_INTERVAL, Seldom};
use crate::backoff::{random, spread};
use crate::connect::Connection;
use crate::identity::{GatewayName, Peer};
use crate::ingest::receive::{draining, unreadable};
use crate::status::{Refusal, Remote};
use crate::trace::{TraceParent, Traced};

/// How long the owner may take to begin an answer, which costs it nothing: beyond, it has no room for another call.
const OPEN: Duration = Duration::from_secs(5);
/// What a device is told to wait whose call came to its end on the way: about what a take-over takes.
const WAIT: Duration = Duration::from_secs(2);

/// What is known of a call that is passed on.
#[derive(Debug, Clone)]
pub struct Passing {
    /// Who passes it on: this gateway.
    pub gateway: GatewayName,
    /// Whose call it is.
    pub sender: Peer,
    /// Who answers it, in words.
    pub owner: Arc<str>,
    /// Which trace it belongs to.
    pub trace: Option<TraceParent>,
    /// Cancelled when it is to end in order: nothing more is read from the device, and what the owner has got it answers. A child of `stop`.
    pub over: CancellationToken,
    /// Cancelled when it is to end now.
    pub cut: CancellationToken,
    /// Cancelled when this gateway stops.
    pub stop: CancellationToken,
    /// What has been passed on.
    pub counted: Arc<Counted>,
}

/// What has been passed on.
#[derive(Debug)]
pub struct Counted {
    envelopes: AtomicU64,
    bytes: AtomicU64,
    refusals: Seldom,
}

impl Default for Counted {
    fn default() -> Self {
        Self {
            envelopes: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            refusals: Seldom::new(REFUSED_LOG_INTERVAL),
        }
    }
}

impl Counted {
    /// Envelopes, and their bytes; resent ones again.
    #[must_use]
    pub fn read(&self) -> (u64, u64) {
        (self.envelopes.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    fn add(&self, envelopes: u64, bytes: u64) {
        self.envelopes.fetch_add(envelopes, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Passing {
    /// The call has come to its end here, and not by the owner's word.
    fn ended(&self, why: fmt::Arguments<'_>) -> Refusal {
        if self.stop.is_cancelled() {
            return draining();
        }
        Refusal::new(
            ErrorReason::StandingBy,
            format!("the call was passed on to {}, and {why}; send again", self.owner),
        )
        .retry_after(spread(WAIT, random()))
    }

    /// What the device is told when the owner has ended the call with an error: the same, if it is the owner's own word.
    fn told(&self, mut status: Status) -> Status {
        let remote = Remote::from_status(&status);
        if remote.reason == Some(ErrorReason::PassingOnRefused) {
            // Between the two of us, and nothing that a device could mend.
            if self.counted.refusals.is_time() {
                tracing::warn!(event = "passing.refused", owner = &*self.owner, error = %remote);
            }
            return self.ended(format_args!("is not taken there")).into();
        }
        if remote.is_answer() {
            // The headers of that answer are not those of ours; the reason is in the details.
            *status.metadata_mut() = MetadataMap::new();
            return status;
        }
        self.ended(format_args!("the way there is no more ({})", remote.detail)).into()
    }
}

/// Passes an `Append` call on. `held` is let go of when the call has ended.
///
/// # Errors
/// What the device is told.
pub async fn append<H>(
    to: Connection,
    requests: Streaming<wire::AppendRequest>,
    passing: Passing,
    held: H,
) -> Result<Answers<wire::AppendResponse, H>, Status> {
    let (request, refusal) = passing.requests(requests);
    let mut client = IngestServiceClient::new(Traced::new(to, passing.trace));
    let answers = passing.begun(client.append(request)).await?;
    Ok(Answers::new(answers, refusal, passing, held))
}

/// Passes a `WriteUpload` call on, as [`append`].
///
/// # Errors
/// What the device is told.
pub async fn write_upload<H>(
    to: Connection,
    requests: Streaming<wire::WriteUploadRequest>,
    passing: Passing,
    held: H,
) -> Result<Answers<wire::WriteUploadResponse, H>, Status> {
    let (request, refusal) = passing.requests(requests);
    let mut client = IngestServiceClient::new(Traced::new(to, passing.trace));
    let answers = passing.begun(client.write_upload(request)).await?;
    Ok(Answers::new(answers, refusal, passing, held))
}

/// Passes a `Submit` call on.
///
/// # Errors
/// What the device is told.
pub async fn submit(
    to: Connection,
    request: wire::SubmitRequest,
    passing: Passing,
) -> Result<wire::SubmitResponse, Status> {
    passing.counted.add(1, request.envelope.len() as u64);
    let mut client = IngestServiceClient::new(Traced::new(to, passing.trace));
    passing.answered(client.submit(passing.marked(request))).await
}

/// Passes an `OpenUpload` call on, with our word on the envelope.
///
/// # Errors
/// What the device is told.
pub async fn open_upload(
    to: Connection,
    mut request: wire::OpenUploadRequest,
    passing: Passing,
) -> Result<wire::OpenUploadResponse, Status> {
    if !request.hops.is_empty() {
        return Err(Refusal::field("hops", "a device has none").into());
    }
    request.hops.push(word(&passing.gateway, &passing.sender));
    passing.counted.add(1, 0);
    let mut client = IngestServiceClient::new(Traced::new(to, passing.trace));
    passing.answered(client.open_upload(passing.marked(request))).await
}

/// Passes a `GetUpload` call on.
///
/// # Errors
/// What the device is told.
pub async fn get_upload(
    to: Connection,
    request: wire::GetUploadRequest,
    passing: Passing,
) -> Result<wire::GetUploadResponse, Status> {
    let mut client = IngestServiceClient::new(Traced::new(to, passing.trace));
    passing.answered(client.get_upload(passing.marked(request))).await
}

/// Passes an `AbortUpload` call on.
///
/// # Errors
/// What the device is told.
pub async fn abort_upload(
    to: Connection,
    request: wire::AbortUploadRequest,
    passing: Passing,
) -> Result<wire::AbortUploadResponse, Status> {
    let mut client = IngestServiceClient::new(Traced::new(to, passing.trace));
    passing.answered(client.abort_upload(passing.marked(request))).await
}

type Refused = Arc<Mutex<Option<Refusal>>>;
type Asking<T> = Result<Response<T>, Status>;

impl Passing {
    /// A request that says whose it is.
    fn marked<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        mark(request.metadata_mut(), &self.gateway, &self.sender);
        request
    }

    /// The same of the device's messages as they come, and where it is said why they were not listened to any longer.
    fn requests<M>(&self, requests: Streaming<M>) -> (Request<Requests<M>>, Refused) {
        let refusal = Refused::default();
        let requests = Requests {
            requests: Some(requests),
            over: Box::pin(self.over.clone().cancelled_owned()),
            refusal: refusal.clone(),
            passing: self.clone(),
        };
        (self.marked(requests), refusal)
    }

    /// The owner's answers, when it has begun to give any.
    async fn begun<T>(
        &self,
        asking: impl Future<Output = Asking<Streaming<T>>>,
    ) -> Result<Streaming<T>, Status> {
        match tokio::time::timeout(OPEN, asking).await {
            Ok(Ok(answers)) => Ok(answers.into_inner()),
            Ok(Err(status)) => Err(self.told(status)),
            Err(_) => Err(self.ended(format_args!("it does not answer")).into()),
        }
    }

    /// The owner's one answer.
    async fn answered<T>(&self, asking: impl Future<Output = Asking<T>>) -> Result<T, Status> {
        tokio::select! {
            answer = asking => match answer {
                Ok(answer) => Ok(answer.into_inner()),
                Err(status) => Err(self.told(status)),
            },
            () = self.cut.cancelled() => Err(self.ended(format_args!("it takes the envelopes no more")).into()),
        }
    }
}

/// A message of a device's call.
trait Message: Sized + Unpin {
    /// As it goes on: with our word on each envelope that it brings.
    fn stamped(self, passing: &Passing) -> Result<Self, Refusal>;
}

impl Message for wire::AppendRequest {
    fn stamped(mut self, passing: &Passing) -> Result<Self, Refusal> {
        let Some(Asked::Batch(batch)) = &mut self.message else { return Ok(self) };
        let hop = word(&passing.gateway, &passing.sender);
        let mut bytes = 0;
        for item in &mut batch.items {
            if !item.hops.is_empty() {
                return Err(Refusal::field("hops", "a device has none"));
            }
            item.hops.push(hop.clone());
            bytes += item.envelope.len() as u64;
        }
        passing.counted.add(batch.items.len() as u64, bytes);
        Ok(self)
    }
}

impl Message for wire::WriteUploadRequest {
    /// Our word came with the header.
    fn stamped(self, passing: &Passing) -> Result<Self, Refusal> {
        passing.counted.add(0, self.data.len() as u64);
        Ok(self)
    }
}

/// The device's messages, each asked for when the owner has room for it.
struct Requests<M> {
    /// None when nothing more is read.
    requests: Option<Streaming<M>>,
    over: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Why the device was not listened to any longer, if that is its own fault.
    refusal: Refused,
    passing: Passing,
}

impl<M: Message> Stream for Requests<M> {
    type Item = M;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<M>> {
        let Some(requests) = &mut self.requests else { return Poll::Ready(None) };
        let next = match Pin::new(requests).poll_next(cx) {
            Poll::Pending => {
                ready!(self.over.as_mut().poll(cx));
                None
            }
            Poll::Ready(_) if self.passing.over.is_cancelled() => None,
            Poll::Ready(next) => next,
        };
        let refusal = match next {
            Some(Ok(request)) => match request.stamped(&self.passing) {
                Ok(request) => return Poll::Ready(Some(request)),
                Err(refusal) => Some(refusal),
            },
            // Gone, or not to be read. In the first case nobody listens to what comes of it.
            Some(Err(status)) => unreadable(&status),
            None => None,
        };
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = refusal;
        self.requests = None;
        Poll::Ready(None)
    }
}

/// The owner's answers, as they are. Dropping it ends the call there.
pub struct Answers<T, H> {
    /// None when it has ended.
    answers: Option<Streaming<T>>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    refusal: Refused,
    passing: Passing,
    held: Option<H>,
}

impl<T, H> Answers<T, H> {
    fn new(answers: Streaming<T>, refusal: Refused, passing: Passing, held: H) -> Self {
        let cut = Box::pin(passing.cut.clone().cancelled_owned());
        Self { answers: Some(answers), cut, refusal, passing, held: Some(held) }
    }

    /// Why a call ends that the owner has ended in good order. None if the device has said all it wants to say.
    fn end(&self) -> Option<Refusal> {
        let refusal = self.refusal.lock().unwrap_or_else(PoisonError::into_inner).take();
        refusal.or_else(|| {
            let over = self.passing.over.is_cancelled();
            over.then(|| self.passing.ended(format_args!("it takes the envelopes no more")))
        })
    }
}

impl<T, H: Unpin> Stream for Answers<T, H> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(answers) = &mut self.answers else { return Poll::Ready(None) };
        let last = match Pin::new(answers).poll_next(cx) {
            Poll::Ready(Some(Ok(answer))) => return Poll::Ready(Some(Ok(answer))),
            Poll::Ready(Some(Err(status))) => Some(Err(self.passing.told(status))),
            Poll::Ready(None) => self.end().map(|refusal| Err(refusal.into())),
            Poll::Pending => {
                ready!(self.cut.as_mut().poll(cx));
                Some(Err(self.passing.ended(format_args!("does not end")).into()))
            }
        };
        (self.answers, self.held) = (None, None);
        Poll::Ready(last)
    }
}

impl<T, H> fmt::Debug for Answers<T, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answers").field("passing", &self.passing).finish_non_exhaustive()
    }
}

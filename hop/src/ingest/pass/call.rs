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
use tonic::{Request, Status, Streaming};

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
) -> Result<Answers<H>, Status> {
    let refusal = Arc::new(Mutex::new(None));
    let mut request = Request::new(Requests {
        requests: Some(requests),
        over: Box::pin(passing.over.clone().cancelled_owned()),
        refusal: refusal.clone(),
        passing: passing.clone(),
    });
    mark(request.metadata_mut(), &passing.gateway, &passing.sender);
    let mut client = IngestServiceClient::new(Traced::new(to, passing.trace));
    let answers = match tokio::time::timeout(OPEN, client.append(request)).await {
        Ok(Ok(answers)) => answers.into_inner(),
        Ok(Err(status)) => return Err(passing.told(status)),
        Err(_) => return Err(passing.ended(format_args!("it does not answer")).into()),
    };
    let cut = Box::pin(passing.cut.clone().cancelled_owned());
    Ok(Answers { answers: Some(answers), cut, refusal, passing, held: Some(held) })
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
    let mut request = Request::new(request);
    mark(request.metadata_mut(), &passing.gateway, &passing.sender);
    let mut client = IngestServiceClient::new(Traced::new(to, passing.trace));
    tokio::select! {
        answer = client.submit(request) => match answer {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) => Err(passing.told(status)),
        },
        () = passing.cut.cancelled() => Err(passing.ended(format_args!("it takes the envelopes no more")).into()),
    }
}

/// The device's messages, each asked for when the owner has room for it.
struct Requests {
    /// None when nothing more is read.
    requests: Option<Streaming<wire::AppendRequest>>,
    over: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Why the device was not listened to any longer, if that is its own fault.
    refusal: Arc<Mutex<Option<Refusal>>>,
    passing: Passing,
}

impl Requests {
    /// With our word on each envelope.
    fn stamp(&self, mut request: wire::AppendRequest) -> Result<wire::AppendRequest, Refusal> {
        let Some(Asked::Batch(batch)) = &mut request.message else { return Ok(request) };
        let hop = word(&self.passing.gateway, &self.passing.sender);
        let mut bytes = 0;
        for item in &mut batch.items {
            if !item.hops.is_empty() {
                return Err(Refusal::field("hops", "a device has none"));
            }
            item.hops.push(hop.clone());
            bytes += item.envelope.len() as u64;
        }
        self.passing.counted.add(batch.items.len() as u64, bytes);
        Ok(request)
    }
}

impl Stream for Requests {
    type Item = wire::AppendRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<wire::AppendRequest>> {
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
            Some(Ok(request)) => match self.stamp(request) {
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
pub struct Answers<H> {
    /// None when it has ended.
    answers: Option<Streaming<wire::AppendResponse>>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    refusal: Arc<Mutex<Option<Refusal>>>,
    passing: Passing,
    held: Option<H>,
}

impl<H> Answers<H> {
    /// Why a call ends that the owner has ended in good order. None if the device has said all it wants to say.
    fn end(&self) -> Option<Refusal> {
        let refusal = self.refusal.lock().unwrap_or_else(PoisonError::into_inner).take();
        refusal.or_else(|| {
            let over = self.passing.over.is_cancelled();
            over.then(|| self.passing.ended(format_args!("it takes the envelopes no more")))
        })
    }
}

impl<H: Unpin> Stream for Answers<H> {
    type Item = Result<wire::AppendResponse, Status>;

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

impl<H> fmt::Debug for Answers<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answers").field("passing", &self.passing).finish_non_exhaustive()
    }
}

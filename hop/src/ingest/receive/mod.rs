//! The receiving half of the contract, as a tonic service over an [`Intake`].
//!
//! An answer goes out when the intake says durable, in the order in which the envelopes came; all that has become durable
//! together is one acknowledgement. What a retry can cure ends the call after the acknowledgements before it, so that
//! nothing overtakes it; what no retry can cure is told in band, and the good ones go on.

mod append;
mod batch;
mod progress;
mod upload;

pub(super) use append::unreadable;

use std::sync::Arc;
use std::time::Duration;

use pithead_proto::errors::v1::ErrorReason;
use pithead_proto::ingest::v1 as wire;
use pithead_proto::ingest::v1::ingest_service_server::{IngestService, IngestServiceServer};
use pithead_sealing::envelope::LastSession;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::admit::{NotAdmitted, admit};
use super::intake::{Intake, Outcome};
use super::limits::IngestLimits;
use super::pass;
use crate::identity::{Peer, Role};
use crate::status::Refusal;
use crate::trace::TraceParent;
use crate::trace::span::Within;

/// Answers that may wait for whoever sends them on. A client that does not read has its envelopes wait.
const ANSWERS_WAITING: usize = 2;

/// How long a client is asked to stay away from a server that stops.
const DRAINING_RETRY: Duration = Duration::from_secs(2);

/// The service. Clones share the intake.
#[derive(Debug)]
pub struct IngestServer<I> {
    intake: Arc<I>,
    limits: IngestLimits,
    stop: CancellationToken,
}

impl<I> Clone for IngestServer<I> {
    fn clone(&self) -> Self {
        Self { intake: Arc::clone(&self.intake), limits: self.limits, stop: self.stop.clone() }
    }
}

impl<I: Intake> IngestServer<I> {
    /// A service that takes envelopes until `stop` is cancelled: then calls are answered to the end of what they have
    /// offered, and end with `DRAINING`.
    pub fn new(intake: Arc<I>, limits: IngestLimits, stop: CancellationToken) -> Self {
        Self { intake, limits, stop }
    }

    /// Whose call it is, if it may send envelopes at all; and what the gateway says of it that passes it on, if one does.
    fn sender<T>(&self, request: &Request<T>) -> Result<(Peer, Option<wire::Hop>), Refusal> {
        let peer = request.extensions().get::<Peer>().ok_or_else(|| {
            Refusal::new(ErrorReason::CertificateRequired, "show a client certificate of the site")
        })?;
        match peer.role() {
            Role::Device(_) | Role::Gateway(_) => {}
            Role::Operator(_) => {
                return Err(Refusal::new(
                    ErrorReason::RoleNotAllowed,
                    "an operator's certificate sends no envelopes",
                ));
            }
            Role::Applicant(_) => {
                return Err(Refusal::new(
                    ErrorReason::RoleNotAllowed,
                    "who is not enrolled sends no envelopes",
                ));
            }
        }
        pass::sender(peer, request.metadata(), self.intake.takes_passed_on())
    }

    fn uploads<T>(&self, request: &Request<T>) -> Result<upload::Uploads<I>, Refusal> {
        let (peer, _) = self.sender(request)?;
        if self.stop.is_cancelled() {
            return Err(draining());
        }
        self.intake.uploads()?;
        Ok(upload::Uploads { intake: Arc::clone(&self.intake), stop: self.stop.clone(), peer })
    }

    /// As tonic's routes take it. Messages above the limit are refused before they are read.
    pub fn into_service(self) -> IngestServiceServer<Self> {
        let request_max = self.request_max();
        IngestServiceServer::new(self).max_decoding_message_size(request_max)
    }

    /// The largest message that is read. What a gateway passes on has its word on each envelope besides.
    pub fn request_max(&self) -> usize {
        let words = if self.intake.takes_passed_on() {
            u64::from(self.limits.window_envelopes) * pass::WORD_BYTES
        } else {
            0
        };
        usize::try_from(self.limits.request.get().saturating_add(words)).unwrap_or(usize::MAX)
    }
}

/// Under which span the parts of this call go.
fn within<T>(request: &Request<T>) -> Within {
    request.extensions().get::<Within>().cloned().unwrap_or_default()
}

/// What is said by a server that stops.
pub(super) fn draining() -> Refusal {
    Refusal::new(ErrorReason::Draining, "stopping; connect again").retry_after(DRAINING_RETRY)
}

/// True for a refusal that ends the call: a retry cures it, or the client program breaks the rules.
fn ends_the_call(refusal: &Refusal) -> bool {
    refusal.is_retryable()
        || matches!(
            refusal.reason,
            ErrorReason::RequestInvalid | ErrorReason::WindowExceeded | ErrorReason::RoleNotAllowed
        )
}

#[tonic::async_trait]
impl<I: Intake> IngestService for IngestServer<I> {
    type AppendStream = append::Answers;

    async fn append(
        &self,
        request: Request<Streaming<wire::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let (peer, _) = self.sender(&request)?;
        if self.stop.is_cancelled() {
            return Err(draining().into());
        }
        let within = within(&request);
        let answers = append::Answers::of(request.into_inner(), |answers| append::Call {
            intake: Arc::clone(&self.intake),
            remembered: I::Call::default(),
            limits: self.limits,
            stop: self.stop.clone(),
            within,
            peer,
            answers,
        });
        Ok(Response::new(answers))
    }

    async fn submit(
        &self,
        request: Request<wire::SubmitRequest>,
    ) -> Result<Response<wire::SubmitResponse>, Status> {
        let (peer, word) = self.sender(&request)?;
        if self.stop.is_cancelled() {
            return Err(draining().into());
        }
        self.intake.ready(&peer)?;
        let within = within(&request);
        let bytes = request.into_inner().envelope;
        let (keys, inline) = (self.intake.keys(), self.limits.inline.get());
        let mut admitted = match admit(
            bytes,
            word.into_iter().collect(),
            &peer,
            keys,
            inline,
            &mut LastSession::default(),
        ) {
            Ok(admitted) => admitted,
            Err(NotAdmitted { refusal, identity }) => {
                if !ends_the_call(&refusal) {
                    self.intake.refused(&peer, identity.as_deref(), &refusal);
                }
                return Err(refusal.into());
            }
        };
        admitted.trace = within.parent();
        let pending = self.intake.offer(&peer, &I::Call::default(), admitted).await?;
        let duplicate = match pending.await? {
            Outcome::Stored => None,
            Outcome::Duplicate { unverified } => Some(wire::Duplicate { unverified }),
            Outcome::Conflict { kept } => return Err(conflict(kept).into()),
            Outcome::Refused(refusal) => return Err(refusal.into()),
        };
        Ok(Response::new(wire::SubmitResponse {
            durability: self.intake.durability() as i32,
            duplicate,
            trust: self.intake.trust(&peer),
        }))
    }

    async fn open_upload(
        &self,
        request: Request<wire::OpenUploadRequest>,
    ) -> Result<Response<wire::OpenUploadResponse>, Status> {
        let uploads = self.uploads(&request)?;
        let trace = request.extensions().get::<TraceParent>().copied();
        Ok(Response::new(uploads.open(request.into_inner(), trace).await?))
    }

    type WriteUploadStream = ReceiverStream<Result<wire::WriteUploadResponse, Status>>;

    async fn write_upload(
        &self,
        request: Request<Streaming<wire::WriteUploadRequest>>,
    ) -> Result<Response<Self::WriteUploadStream>, Status> {
        let uploads = self.uploads(&request)?;
        let (answers, stream) = tokio::sync::mpsc::channel(ANSWERS_WAITING);
        tokio::spawn(uploads.write(request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn get_upload(
        &self,
        request: Request<wire::GetUploadRequest>,
    ) -> Result<Response<wire::GetUploadResponse>, Status> {
        let uploads = self.uploads(&request)?;
        Ok(Response::new(uploads.get(&request.into_inner().upload)?))
    }

    async fn abort_upload(
        &self,
        request: Request<wire::AbortUploadRequest>,
    ) -> Result<Response<wire::AbortUploadResponse>, Status> {
        let uploads = self.uploads(&request)?;
        Ok(Response::new(uploads.abort(&request.into_inner().upload).await?))
    }
}

fn conflict(kept: bool) -> Refusal {
    let detail = if kept {
        "other bytes stand under this identity; both are kept; begin a new run"
    } else {
        "other bytes stand under this identity, and there is no room to keep these; begin a new run"
    };
    Refusal::new(ErrorReason::Conflict, detail).with("kept", kept)
}

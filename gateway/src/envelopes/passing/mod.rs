//! Passing on: a gateway that stands by takes the calls of devices for the one that owns the lanes.
//!
//! A vehicle that reaches one gateway of its site, whichever, hands its envelopes in there.
//!
//! # What holds
//!
//! 1. What a device is told is the owner's word. A gateway that stands by welcomes nobody, acknowledges nothing and refuses no envelope of
//!    its own; it keeps nothing of what it passes on. If the owner is lost on the way, the call ends with `STANDING_BY`, and the device
//!    sends again.
//! 2. A call that another gateway has passed on to here is answered here or refused. It is never passed on again.
//! 3. Calls at one time are bounded, in all and for each device; a call holds one message.
//! 4. When the owner changes, and when this gateway stops, nothing more is read from the device, what the owner has got it answers, and the
//!    call ends after that; after [`GRACE`](owner) in any case.
//!
//! Large envelopes are not passed on: this engine takes none ([`super::spool`]). What another gateway's relay brings is not either: it has
//! the owner's address in the refusal, and a configuration to put it into.
//!
//! ```text
//! device ══> IngestService ── we own the lanes, or the call is passed on to us ──> intake
//!                          └─ another gateway owns them ──> its IngestService, over one connection (owner)
//! ```

mod owner;

#[cfg(test)]
mod tests;

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;
use pithead_hop::identity::Peer;
use pithead_hop::ingest::{IngestServer, pass};
use pithead_hop::trace::TraceParent;
use pithead_proto::ingest::v1 as wire;
use pithead_proto::ingest::v1::ingest_service_server::{IngestService, IngestServiceServer};
use tonic::{Request, Response, Status, Streaming};

pub use owner::{Parts, ToOwner, Way};

use super::intake::SpoolIntake;
use owner::Place;

type Here = IngestServer<SpoolIntake>;

/// The ingest service of a gateway that shares its lanes with others.
#[derive(Debug)]
pub struct PassingOn {
    here: Here,
    owner: ToOwner,
}

impl PassingOn {
    /// In front of our own.
    #[must_use]
    pub fn new(here: Here, owner: ToOwner) -> Self {
        Self { here, owner }
    }

    /// As tonic's routes take it.
    #[must_use]
    pub fn into_service(self) -> IngestServiceServer<Self> {
        let request_max = self.here.request_max();
        IngestServiceServer::new(self).max_decoding_message_size(request_max)
    }

    /// Whose call is to be passed on, and to whom. None if it is answered here, if only with a refusal.
    fn aim<T>(&self, request: &Request<T>) -> Option<(Peer, owner::Aim)> {
        // Only ever once: two gateways that each take the other for the owner must not play with it.
        if pass::is_marked(request.metadata()) {
            return None;
        }
        let sender = request.extensions().get::<Peer>().filter(|peer| peer.device().is_some())?;
        Some((sender.clone(), self.owner.aim()?))
    }
}

/// Counts a call that another gateway has passed on to here, and that is answered here.
fn taken<T>(owner: &ToOwner, marked: bool, answer: Result<T, Status>) -> Result<T, Status> {
    if marked && answer.is_ok() {
        owner.metrics().passed_on_call(Way::Taken);
    }
    answer
}

/// The answers of a call, whoever gives them.
#[derive(Debug)]
pub enum Answers {
    /// We.
    Here(<Here as IngestService>::AppendStream),
    /// The owner.
    Owner(Box<pass::Answers<Place>>),
}

impl Stream for Answers {
    type Item = Result<wire::AppendResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match &mut *self {
            Self::Here(answers) => Pin::new(answers).poll_next(cx),
            Self::Owner(answers) => Pin::new(answers).poll_next(cx),
        }
    }
}

fn trace_of<T>(request: &Request<T>) -> Option<TraceParent> {
    request.extensions().get::<TraceParent>().copied()
}

#[tonic::async_trait]
impl IngestService for PassingOn {
    type AppendStream = Answers;

    async fn append(
        &self,
        request: Request<Streaming<wire::AppendRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let Some((sender, aim)) = self.aim(&request) else {
            let marked = pass::is_marked(request.metadata());
            let answers = taken(&self.owner, marked, self.here.append(request).await)?;
            return Ok(answers.map(Answers::Here));
        };
        let trace = trace_of(&request);
        let (connection, passing, place) = self.owner.begin(aim, sender, trace).await?;
        let answers = pass::append(connection, request.into_inner(), passing, place).await?;
        Ok(Response::new(Answers::Owner(Box::new(answers))))
    }

    async fn submit(
        &self,
        request: Request<wire::SubmitRequest>,
    ) -> Result<Response<wire::SubmitResponse>, Status> {
        let Some((sender, aim)) = self.aim(&request) else {
            let marked = pass::is_marked(request.metadata());
            return taken(&self.owner, marked, self.here.submit(request).await);
        };
        let trace = trace_of(&request);
        let (connection, passing, place) = self.owner.begin(aim, sender, trace).await?;
        let answer = pass::submit(connection, request.into_inner(), passing).await;
        drop(place);
        Ok(Response::new(answer?))
    }

    async fn open_upload(
        &self,
        request: Request<wire::OpenUploadRequest>,
    ) -> Result<Response<wire::OpenUploadResponse>, Status> {
        self.here.open_upload(request).await
    }

    type WriteUploadStream = <Here as IngestService>::WriteUploadStream;

    async fn write_upload(
        &self,
        request: Request<Streaming<wire::WriteUploadRequest>>,
    ) -> Result<Response<Self::WriteUploadStream>, Status> {
        self.here.write_upload(request).await
    }

    async fn get_upload(
        &self,
        request: Request<wire::GetUploadRequest>,
    ) -> Result<Response<wire::GetUploadResponse>, Status> {
        self.here.get_upload(request).await
    }

    async fn abort_upload(
        &self,
        request: Request<wire::AbortUploadRequest>,
    ) -> Result<Response<wire::AbortUploadResponse>, Status> {
        self.here.abort_upload(request).await
    }
}

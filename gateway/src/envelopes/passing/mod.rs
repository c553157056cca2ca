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
//! An upload is several calls, and each counts as one; its bytes lie on the owner's disk alone. When another gateway takes over in the middle,
//! it is opened there anew: what was gathered stays with the former owner for a while, and goes on if that one is the owner again.
//!
//! What another gateway's relay brings is not passed on: it has the owner's address in the refusal, and a configuration to put it into.
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
pub enum Answers<S, T> {
    /// We.
    Here(S),
    /// The owner.
    Owner(Box<pass::Answers<T, Place>>),
}

impl<S, T> Stream for Answers<S, T>
where
    S: Stream<Item = Result<T, Status>> + Unpin,
{
    type Item = Result<T, Status>;

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
    type AppendStream = Answers<<Here as IngestService>::AppendStream, wire::AppendResponse>;

    async fn append(
        &self,
        request: Request<Streaming<wire::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
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
        let Some((sender, aim)) = self.aim(&request) else {
            let marked = pass::is_marked(request.metadata());
            return taken(&self.owner, marked, self.here.open_upload(request).await);
        };
        let trace = trace_of(&request);
        let (connection, passing, _place) = self.owner.begin(aim, sender, trace).await?;
        Ok(Response::new(pass::open_upload(connection, request.into_inner(), passing).await?))
    }

    type WriteUploadStream = Answers<<Here as IngestService>::WriteUploadStream, wire::WriteUploadResponse>;

    async fn write_upload(
        &self,
        request: Request<Streaming<wire::WriteUploadRequest>>,
    ) -> Result<Response<Self::WriteUploadStream>, Status> {
        let Some((sender, aim)) = self.aim(&request) else {
            let marked = pass::is_marked(request.metadata());
            let answers = taken(&self.owner, marked, self.here.write_upload(request).await)?;
            return Ok(answers.map(Answers::Here));
        };
        let trace = trace_of(&request);
        let (connection, passing, place) = self.owner.begin(aim, sender, trace).await?;
        let answers = pass::write_upload(connection, request.into_inner(), passing, place).await?;
        Ok(Response::new(Answers::Owner(Box::new(answers))))
    }

    async fn get_upload(
        &self,
        request: Request<wire::GetUploadRequest>,
    ) -> Result<Response<wire::GetUploadResponse>, Status> {
        let Some((sender, aim)) = self.aim(&request) else {
            let marked = pass::is_marked(request.metadata());
            return taken(&self.owner, marked, self.here.get_upload(request).await);
        };
        let trace = trace_of(&request);
        let (connection, passing, _place) = self.owner.begin(aim, sender, trace).await?;
        Ok(Response::new(pass::get_upload(connection, request.into_inner(), passing).await?))
    }

    async fn abort_upload(
        &self,
        request: Request<wire::AbortUploadRequest>,
    ) -> Result<Response<wire::AbortUploadResponse>, Status> {
        let Some((sender, aim)) = self.aim(&request) else {
            let marked = pass::is_marked(request.metadata());
            return taken(&self.owner, marked, self.here.abort_upload(request).await);
        };
        let trace = trace_of(&request);
        let (connection, passing, _place) = self.owner.begin(aim, sender, trace).await?;
        Ok(Response::new(pass::abort_upload(connection, request.into_inner(), passing).await?))
    }
}

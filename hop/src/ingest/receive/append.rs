//! One `Append` call: one task with two halves, one that reads and offers, one that waits and answers.

use std::future::Future;
use std::sync::Arc;

use futures_util::FutureExt as _;
use pithead_proto::ingest::v1 as wire;
use pithead_proto::ingest::v1::append_request::Message as Asked;
use pithead_proto::ingest::v1::append_response::Message as Told;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::batch::{Item, Offered};
use super::progress::{Collected, Credit};
use super::{draining, ends_the_call};
use crate::identity::Peer;
use crate::ingest::admit::{NotAdmitted, admit};
use crate::ingest::intake::{DeclaredGap, HelloLine, Intake, Outcome};
use crate::ingest::limits::IngestLimits;
use crate::program::clock;
use crate::rarely::Rarely;
use crate::status::Refusal;

/// Batches between the two halves. Their envelopes are bounded by the window; this bounds empty ones.
const BATCHES_WAITING: usize = 1_024;
/// Bytes admitted before the runtime's other tasks get their turn: a quarter of a millisecond of hashing.
const BYTES_PER_TURN: u64 = 256 << 10;

/// Why the reading half ended.
enum Ended {
    /// The client has said all it wants to say.
    InGoodOrder,
    /// The connection or the client's call is gone: nobody listens.
    Gone,
    /// Told to the client after the acknowledgements before it.
    Refused(Refusal),
}

pub(super) struct Call<I> {
    pub(super) intake: Arc<I>,
    pub(super) limits: IngestLimits,
    pub(super) stop: CancellationToken,
    pub(super) peer: Peer,
    pub(super) answers: mpsc::Sender<Result<wire::AppendResponse, Status>>,
}

impl<I: Intake> Call<I> {
    pub(super) async fn run(self, mut requests: Streaming<wire::AppendRequest>) {
        let credit = Credit::default();
        let (offered, waiting) = mpsc::channel(BATCHES_WAITING);
        let mut stop = Rarely::new(self.stop.cancelled());
        let mut unheard = Rarely::new(self.answers.closed());
        let talk = async {
            if let Err(ended) = self.welcome(&mut requests, &mut stop).await {
                return ended;
            }
            // The answering half goes on after the reading half has ended, until everything offered is answered; when
            // it ends first, an envelope failed and nothing more may be offered.
            let mut answering = std::pin::pin!(self.answer(waiting, &credit));
            let ended = tokio::select! {
                biased;
                failed = &mut answering => return failed,
                ended = self.read(&mut requests, &mut stop, offered, &credit) => ended,
            };
            match answering.await {
                Ended::InGoodOrder => ended,
                failed => failed,
            }
        };
        tokio::select! {
            ended = talk => {
                if let Ended::Refused(refusal) = ended {
                    let _ = self.answers.send(Err(refusal.into())).await;
                }
            }
            () = unheard.wait() => {}
        }
    }

    async fn next(
        &self,
        requests: &mut Streaming<wire::AppendRequest>,
        stop: &mut Rarely<impl Future<Output = ()>>,
    ) -> Result<Asked, Ended> {
        let request = tokio::select! {
            biased;
            () = stop.wait() => return Err(Ended::Refused(draining())),
            request = requests.message() => request,
        };
        match request {
            Ok(Some(request)) => request
                .message
                .ok_or_else(|| Ended::Refused(Refusal::field("message", "is neither hello nor batch"))),
            Ok(None) => Err(Ended::InGoodOrder),
            Err(status) => Err(unreadable(&status)),
        }
    }

    async fn welcome(
        &self,
        requests: &mut Streaming<wire::AppendRequest>,
        stop: &mut Rarely<impl Future<Output = ()>>,
    ) -> Result<(), Ended> {
        let asked = tokio::time::timeout(self.limits.hello_timeout.get(), self.next(requests, stop))
            .await
            .unwrap_or_else(|_| Err(Ended::Refused(Refusal::field("hello", "did not come in time"))))?;
        let Asked::Hello(hello) = asked else {
            return Err(Ended::Refused(Refusal::field("hello", "comes first")));
        };
        self.intake.ready(&self.peer).map_err(Ended::Refused)?;
        let lines = self.hello_lines(&hello).map_err(Ended::Refused)?;
        let marks = self.intake.hello(&self.peer, &lines);
        let welcome = wire::Welcome {
            limits: Some(self.limits.to_wire()),
            window_bytes: self.limits.window.get(),
            window_envelopes: self.limits.window_envelopes,
            durability: self.intake.durability() as i32,
            time_us: clock::wall_us(),
            assurance: self.peer.assurance.to_wire() as i32,
            lines: hello
                .lines
                .into_iter()
                .zip(marks)
                .map(|(line, high_water)| wire::welcome::Line {
                    stream: line.stream,
                    run: line.run,
                    high_water,
                })
                .collect(),
        };
        self.tell(Told::Welcome(welcome)).await
    }

    fn hello_lines(&self, hello: &wire::Hello) -> Result<Vec<HelloLine>, Refusal> {
        match self.peer.device() {
            Some(device) => hello.lines.iter().map(|line| HelloLine::from_wire(device, line)).collect(),
            None if hello.lines.is_empty() => Ok(Vec::new()),
            None => Err(Refusal::field("hello.lines", "a relay has none")),
        }
    }

    async fn tell(&self, message: Told) -> Result<(), Ended> {
        let response = wire::AppendResponse { trust: self.intake.trust(&self.peer), message: Some(message) };
        self.answers.send(Ok(response)).await.map_err(|_| Ended::Gone)
    }

    async fn read(
        &self,
        requests: &mut Streaming<wire::AppendRequest>,
        stop: &mut Rarely<impl Future<Output = ()>>,
        offered: mpsc::Sender<Offered>,
        credit: &Credit,
    ) -> Ended {
        let mut turn = 0;
        for number in 1.. {
            let batch = match self.next(requests, stop).await {
                Ok(Asked::Batch(batch)) => batch,
                Ok(Asked::Hello(_)) => return Ended::Refused(Refusal::field("hello", "comes once")),
                Err(ended) => return ended,
            };
            if batch.number != number {
                let detail = format!("is {} where {number} is due", batch.number);
                return Ended::Refused(Refusal::field("batch.number", detail));
            }
            match self.take(batch, credit, &mut turn).await {
                // It closes when the answering half has ended, and that is told there.
                Ok(batch) => drop(offered.send(batch).await),
                Err(refusal) => return Ended::Refused(refusal),
            }
        }
        Ended::InGoodOrder
    }

    async fn take(&self, batch: wire::Batch, credit: &Credit, turn: &mut u64) -> Result<Offered, Refusal> {
        let bytes = batch.items.iter().map(|item| item.envelope.len() as u64).sum();
        credit.take(bytes, batch.items.len() as u64, &self.limits)?;
        self.intake.ready(&self.peer)?;
        self.declare(&batch.gaps)?;
        let mut items = std::collections::VecDeque::with_capacity(batch.items.len());
        for item in batch.items {
            *turn += item.envelope.len() as u64;
            if *turn > BYTES_PER_TURN {
                *turn = 0;
                tokio::task::yield_now().await;
            }
            items.push_back(self.offer(item).await?);
        }
        Ok(Offered::new(batch.number, bytes, items))
    }

    fn declare(&self, gaps: &[wire::Gap]) -> Result<(), Refusal> {
        if gaps.is_empty() {
            return Ok(());
        }
        let device = self.peer.device().ok_or_else(|| Refusal::field("batch.gaps", "a relay has none"))?;
        let gaps: Vec<_> =
            gaps.iter().map(|gap| DeclaredGap::from_wire(device, gap)).collect::<Result<_, _>>()?;
        self.intake.declared(&self.peer, &gaps);
        Ok(())
    }

    /// Admits and offers one envelope. An error ends the call.
    async fn offer(&self, item: wire::Item) -> Result<Item, Refusal> {
        let inline = self.limits.inline.get();
        let refusal = match admit(item.envelope, item.hops, &self.peer, self.intake.keys(), inline) {
            Ok(admitted) => match self.intake.offer(&self.peer, admitted).await {
                Ok(pending) => return Ok(Item::Waiting(pending)),
                Err(refusal) => refusal,
            },
            Err(NotAdmitted { refusal, identity }) => {
                if !ends_the_call(&refusal) {
                    self.intake.refused(&self.peer, identity.as_deref(), &refusal);
                }
                refusal
            }
        };
        if ends_the_call(&refusal) { Err(refusal) } else { Ok(Item::Answered(Outcome::Refused(refusal))) }
    }

    /// Answers until everything offered is answered, or until an envelope fails in a way that a retry can cure.
    async fn answer(&self, mut waiting: mpsc::Receiver<Offered>, credit: &Credit) -> Ended {
        let mut failed = None;
        let mut next = waiting.recv().await;
        while let Some(mut batch) = next.take() {
            let mut collected = Collected::default();
            let mut outcomes = Some(batch.outcomes().await);
            // What one group commit made durable is being told to us right now: let that finish, and it is one answer.
            tokio::task::yield_now().await;
            loop {
                match outcomes.take() {
                    Some(Ok(outcomes)) => collected.batch(batch.number, batch.bytes, outcomes),
                    Some(Err(refusal)) => {
                        failed = Some(refusal);
                        break;
                    }
                    None => {
                        next = Some(batch);
                        break;
                    }
                }
                match waiting.try_recv() {
                    Ok(following) => batch = following,
                    Err(_) => break,
                }
                outcomes = batch.outcomes().now_or_never();
            }
            let ack = collected.into_ack(self.intake.durability(), credit);
            if let Some(ack) = ack
                && let Err(ended) = self.tell(Told::Ack(ack)).await
            {
                return ended;
            }
            if let Some(refusal) = failed {
                return Ended::Refused(refusal);
            }
            if next.is_none() {
                next = waiting.recv().await;
            }
        }
        Ended::InGoodOrder
    }
}

/// A request that could not be read: too large or not a message, which the client should hear; or its connection is gone.
fn unreadable(status: &Status) -> Ended {
    use tonic::Code;
    match status.code() {
        Code::OutOfRange | Code::ResourceExhausted => {
            Ended::Refused(Refusal::field("message", "is larger than `request_bytes` of the Welcome"))
        }
        Code::Internal | Code::InvalidArgument | Code::Unimplemented => {
            tracing::debug!(event = "ingest.unreadable", %status);
            Ended::Refused(Refusal::field("message", "cannot be read"))
        }
        _ => Ended::Gone,
    }
}

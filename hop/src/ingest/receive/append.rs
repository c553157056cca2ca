//! One `Append` call: two halves, one that reads and offers, one that waits and answers, both run by whoever asks for the
//! answers.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, Stream};
use pithead_proto::ingest::v1 as wire;
use pithead_proto::ingest::v1::append_request::Message as Asked;
use pithead_proto::ingest::v1::append_response::Message as Told;
use pithead_sealing::envelope::LastSession;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::batch::{Item, Offered};
use super::progress::{Collected, Credit};
use super::{ANSWERS_WAITING, draining, ends_the_call};
use crate::identity::Peer;
use crate::ingest::admit::{Admitted, NotAdmitted, admit};
use crate::ingest::intake::{DeclaredGap, HelloLine, Intake, Outcome};
use crate::ingest::limits::IngestLimits;
use crate::program::clock;
use crate::rarely::Rarely;
use crate::status::Refusal;
use crate::trace::TraceParent;
use crate::trace::span::Within;

/// Batches between the two halves. Their envelopes are bounded by the window; this bounds empty ones.
const BATCHES_WAITING: usize = 1_024;
/// Gaps in one batch, as many as in a sealed one: each is looked up and noted before the call's other work goes on.
const GAPS_PER_BATCH: usize = 1_024;
/// Bytes admitted before the runtime's other tasks get their turn: a quarter of a millisecond of hashing.
const BYTES_PER_TURN: u64 = 256 << 10;

type Response = Result<wire::AppendResponse, Status>;

/// What a call has to say. Polling it runs the call; dropping it, when nobody listens any more, ends the call wherever it is.
/// A client that does not read its answers is not listened to either, once one of them does not fit its HTTP/2 window.
///
/// Why the call has no task of its own: where a client waits for each answer, one task that wakes another for every envelope
/// costs more than the envelope's hash.
pub struct Answers {
    /// Polled when it was woken, and not because an answer was taken. None when it has ended.
    call: Option<Rarely<BoxFuture<'static, ()>>>,
    said: mpsc::Receiver<Response>,
}

impl Answers {
    pub(super) fn of<I: Intake>(
        requests: Streaming<wire::AppendRequest>,
        call: impl FnOnce(mpsc::Sender<Response>) -> Call<I>,
    ) -> Self {
        let (tell, said) = mpsc::channel(ANSWERS_WAITING);
        Self { call: Some(Rarely::new(call(tell).run(requests).boxed())), said }
    }
}

impl Stream for Answers {
    type Item = Response;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Response>> {
        loop {
            if let Ok(answer) = self.said.try_recv() {
                return Poll::Ready(Some(answer));
            }
            let Some(call) = &mut self.call else { return Poll::Ready(None) };
            if call.poll(cx).is_ready() {
                self.call = None;
            } else if self.said.is_empty() {
                return Poll::Pending;
            }
        }
    }
}

impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answers").finish_non_exhaustive()
    }
}

/// Why the reading half ended.
enum Ended {
    /// The client has said all it wants to say.
    InGoodOrder,
    /// The connection or the client's call is gone: nobody listens.
    Gone,
    /// Told to the client after the acknowledgements before it.
    Refused(Refusal),
}

pub(super) struct Call<I: Intake> {
    pub(super) intake: Arc<I>,
    pub(super) remembered: I::Call,
    pub(super) limits: IngestLimits,
    pub(super) stop: CancellationToken,
    pub(super) within: Within,
    pub(super) peer: Peer,
    pub(super) answers: mpsc::Sender<Response>,
}

impl<I: Intake> Call<I> {
    async fn run(self, mut requests: Streaming<wire::AppendRequest>) {
        let mut stop = Rarely::new(self.stop.cancelled());
        let ended = match self.welcome(&mut requests, &mut stop).await {
            Ok(()) => self.talk(&mut requests, &mut stop).await,
            Err(ended) => ended,
        };
        if let Ended::Refused(refusal) = ended {
            let _ = self.answers.send(Err(refusal.into())).await;
        }
    }

    /// Both halves. The answering half goes on after the reading half has ended, until everything offered is answered; when
    /// it ends first, an envelope failed and nothing more may be offered.
    async fn talk(
        &self,
        requests: &mut Streaming<wire::AppendRequest>,
        stop: &mut Rarely<impl Future<Output = ()>>,
    ) -> Ended {
        let credit = Credit::default();
        let (offered, waiting) = mpsc::channel(BATCHES_WAITING);
        let between = Between::default();
        let mut answering = pin!(self.answer(waiting, &between, &credit));
        let mut reading = pin!(self.read(requests, stop, (offered, &between), &credit));
        let first = poll_fn(|cx| {
            if let Poll::Ready(failed) = answering.as_mut().poll(cx) {
                return Poll::Ready(Err(failed));
            }
            if let Poll::Ready(ended) = reading.as_mut().poll(cx) {
                return Poll::Ready(Ok(ended));
            }
            // What was handed over to a half that has nothing to do is looked at now, and not by waking ourselves. The other
            // ways in which either half waits are its own to be woken from, and giving others their turn is one of them:
            // neither is polled again for that.
            if between.is_looked_for() {
                return answering.as_mut().poll(cx).map(Err);
            }
            Poll::Pending
        });
        match first.await {
            Err(failed) => failed,
            Ok(ended) => match answering.await {
                Ended::InGoodOrder => ended,
                failed => failed,
            },
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
            Err(status) => Err(unreadable(&status).map_or(Ended::Gone, Ended::Refused)),
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
        (offered, between): (mpsc::Sender<Offered>, &Between),
        credit: &Credit,
    ) -> Ended {
        let mut turn = 0;
        let mut last = LastSession::default();
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
            match self.take(batch, credit, &mut turn, &mut last).await {
                // It closes when the answering half has ended, and that is told there.
                Ok(batch) => {
                    let _ = offered.send(batch).await;
                    between.handed_over();
                }
                Err(refusal) => return Ended::Refused(refusal),
            }
        }
        Ended::InGoodOrder
    }

    async fn take(
        &self,
        batch: wire::Batch,
        credit: &Credit,
        turn: &mut u64,
        last: &mut LastSession,
    ) -> Result<Offered, Refusal> {
        let bytes = batch.items.iter().map(|item| item.envelope.len() as u64).sum();
        let mut span = self.within.part("ingest.batch");
        span.number("pithead.envelopes", batch.items.len() as u64);
        span.number("pithead.bytes", bytes);
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
            items.push_back(self.offer(item, last, span.at()).await?);
        }
        Ok(Offered::new(batch.number, bytes, items, span))
    }

    fn declare(&self, gaps: &[wire::Gap]) -> Result<(), Refusal> {
        if gaps.is_empty() {
            return Ok(());
        }
        let device = self.peer.device().ok_or_else(|| Refusal::field("batch.gaps", "a relay has none"))?;
        if gaps.len() > GAPS_PER_BATCH {
            return Err(Refusal::field("batch.gaps", format!("are more than {GAPS_PER_BATCH}")));
        }
        let gaps: Vec<_> =
            gaps.iter().map(|gap| DeclaredGap::from_wire(device, gap)).collect::<Result<_, _>>()?;
        self.intake.declared(&self.peer, &gaps);
        Ok(())
    }

    /// Admits and offers one envelope. An error ends the call.
    async fn offer(
        &self,
        item: wire::Item,
        last: &mut LastSession,
        trace: Option<TraceParent>,
    ) -> Result<Item, Refusal> {
        let inline = self.limits.inline.get();
        let admitted = admit(item.envelope, item.hops, &self.peer, self.intake.keys(), inline, last);
        let refusal = match admitted {
            Ok(admitted) => {
                match self.intake.offer(&self.peer, &self.remembered, Admitted { trace, ..admitted }).await {
                    Ok(pending) => return Ok(Item::Waiting(pending)),
                    Err(refusal) => refusal,
                }
            }
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
    async fn answer(
        &self,
        mut waiting: mpsc::Receiver<Offered>,
        between: &Between,
        credit: &Credit,
    ) -> Ended {
        let mut failed = None;
        let mut next = between.next_of(&mut waiting).await;
        while let Some(mut batch) = next.take() {
            let mut collected = Collected::default();
            let mut outcomes = Some(batch.outcomes().await);
            // What one group commit made durable is being told to us right now: let that finish, and it is one answer.
            if !waiting.is_empty() {
                tokio::task::yield_now().await;
            }
            loop {
                match outcomes.take() {
                    Some(Ok(outcomes)) => collected.batch(batch.number, batch.bytes, outcomes),
                    Some(Err(refusal)) => {
                        batch.span.failed(|| refusal.reason.name().to_owned());
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
                next = between.next_of(&mut waiting).await;
            }
        }
        Ended::InGoodOrder
    }
}

/// What the two halves of a call know of each other. They are polled by one task, one after the other, and so need no wakers
/// between them.
#[derive(Default)]
struct Between {
    /// The answering half waits for a batch.
    idle: AtomicBool,
    /// There has been one since.
    handed_over: AtomicBool,
}

impl Between {
    fn handed_over(&self) {
        self.handed_over.store(true, Ordering::Relaxed);
    }

    fn is_looked_for(&self) -> bool {
        self.handed_over.swap(false, Ordering::Relaxed) && self.idle.load(Ordering::Relaxed)
    }

    /// The next batch, or none when there will be no more.
    async fn next_of(&self, waiting: &mut mpsc::Receiver<Offered>) -> Option<Offered> {
        let next = poll_fn(|_| {
            self.idle.store(true, Ordering::Relaxed);
            match waiting.try_recv() {
                Ok(batch) => Poll::Ready(Some(batch)),
                Err(TryRecvError::Empty) => Poll::Pending,
                Err(TryRecvError::Disconnected) => Poll::Ready(None),
            }
        })
        .await;
        self.idle.store(false, Ordering::Relaxed);
        next
    }
}

/// A request that could not be read: too large or not a message, which the client should hear; or none, and its connection is gone.
pub(in crate::ingest) fn unreadable(status: &Status) -> Option<Refusal> {
    use tonic::Code;
    match status.code() {
        Code::OutOfRange | Code::ResourceExhausted => {
            Some(Refusal::field("message", "is larger than `request_bytes` of the Welcome"))
        }
        Code::Internal | Code::InvalidArgument | Code::Unimplemented => {
            tracing::debug!(event = "ingest.unreadable", %status);
            Some(Refusal::field("message", "cannot be read"))
        }
        _ => None,
    }
}

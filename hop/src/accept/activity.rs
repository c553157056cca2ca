//! Whether anything is asked on a connection, and since when not; and whether what was asked for is taken.
//!
//! A peer that grants no window takes nothing, and yet no write to its socket ever blocks: HTTP/2 keeps the answer and waits.
//! So it is watched here, where answers are handed over: the next piece is asked for when the one before has left. On a connection
//! that a gateway shares among its devices each call is watched by itself, and ends by itself.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper::{
    body::{Body as HttpBody, Frame, SizeHint},
    rt::Executor,
};
use tokio::sync::watch;
use tonic::body::Body;

use super::calls::Timed;

#[derive(Debug, Clone, Copy, Default)]
struct State {
    under_way: usize,
    served: u64,
}

/// The calls of one connection.
#[derive(Debug, Clone)]
pub(super) struct Activity(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: watch::Sender<State>,
    flow: Flow,
}

/// Answers on their way out.
#[derive(Debug, Default)]
struct Flow {
    /// Answers of which a piece was handed over and has not left.
    owed: AtomicUsize,
    /// Pieces that have left, so that progress is seen.
    left: AtomicU64,
}

impl Flow {
    fn handed_over(&self) {
        self.owed.fetch_add(1, Ordering::Relaxed);
    }

    fn has_left(&self) {
        self.owed.fetch_sub(1, Ordering::Relaxed);
        self.left.fetch_add(1, Ordering::Relaxed);
    }

    /// Resolves when answers have waited for the peer for `limit`, and none of them has moved.
    async fn stalled(&self, limit: Duration) {
        let (mut seen, mut still) = (self.left.load(Ordering::Relaxed), 0);
        while still < LOOKS {
            tokio::time::sleep(limit / LOOKS).await;
            let left = self.left.load(Ordering::Relaxed);
            let moves = left != seen || self.owed.load(Ordering::Relaxed) == 0;
            still = if moves { 0 } else { still + 1 };
            seen = left;
        }
    }
}

tokio::task_local! {
    /// Of the one call that a task serves, if each is watched by itself.
    static OF_THIS_CALL: Arc<Flow>;
}

/// Runs the streams of a connection, a task for each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Streams {
    /// Ends the stream whose answer is not taken for so long: what is dropped is reset, and the connection goes on.
    pub(super) each_within: Option<Duration>,
}

impl<F> Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, stream: F) {
        let Some(limit) = self.each_within else {
            tokio::spawn(stream);
            return;
        };
        tokio::spawn(async move {
            let flow = Arc::new(Flow::default());
            tokio::select! {
                biased;
                _ = OF_THIS_CALL.scope(Arc::clone(&flow), stream) => {}
                () = flow.stalled(limit) => {}
            }
        });
    }
}

/// How often within its limit a connection is looked at for progress.
const LOOKS: u32 = 4;

/// Why a connection is quiet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quiet {
    NoFirstRequest,
    Idle,
}

impl Activity {
    pub(super) fn new() -> Self {
        let state = watch::Sender::new(State::default());
        Self(Arc::new(Inner { state, flow: Flow::default() }))
    }

    /// A call begins; it lasts until the guard is dropped.
    pub(super) fn begin(&self) -> Call {
        self.0.state.send_modify(|state| {
            state.under_way += 1;
            state.served += 1;
        });
        Call(self.clone())
    }

    /// Resolves when the first request has not come within `first`, or later none was under way for `idle`.
    pub(super) async fn quiet(&self, first: Duration, idle: Duration) -> Quiet {
        let mut state = self.0.state.subscribe();
        loop {
            let now = *state.borrow_and_update();
            let (limit, quiet) = match now {
                State { under_way: 0, served: 0 } => (first, Quiet::NoFirstRequest),
                State { under_way: 0, .. } => (idle, Quiet::Idle),
                State { .. } => (Duration::MAX, Quiet::Idle),
            };
            if tokio::time::timeout(limit, state.changed()).await.is_err() {
                return quiet;
            }
        }
    }

    /// Resolves when answers have waited for the peer for `limit`, and none of them has moved.
    pub(super) async fn stalled(&self, limit: Duration) {
        self.0.flow.stalled(limit).await;
    }
}

/// A call that is under way.
#[derive(Debug)]
pub(super) struct Call(Activity);

impl Drop for Call {
    fn drop(&mut self) {
        self.0.0.state.send_modify(|state| state.under_way -= 1);
    }
}

/// An answer that is under way until its last byte is taken.
#[derive(Debug)]
pub(super) struct Answer {
    body: Body,
    call: Call,
    timed: Timed,
    /// A piece of it was handed over and has not left.
    owed: bool,
    /// If this call is watched by itself.
    own: Option<Arc<Flow>>,
}

impl Answer {
    /// In the task that serves the call.
    pub(super) fn new(body: Body, call: Call, timed: Timed) -> Self {
        let own = OF_THIS_CALL.try_with(Arc::clone).ok();
        Self { body, call, timed, owed: false, own }
    }

    fn settle(&mut self) {
        if std::mem::take(&mut self.owed) {
            self.flows().for_each(Flow::has_left);
        }
    }

    fn flows(&self) -> impl Iterator<Item = &Flow> {
        std::iter::once(&self.call.0.0.flow).chain(self.own.as_deref())
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.settle();
    }
}

impl HttpBody for Answer {
    type Data = bytes::Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        self.settle();
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) if frame.is_data() => {
                self.owed = true;
                self.flows().for_each(Flow::handed_over);
            }
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_ref() {
                    self.timed.note(trailers);
                }
            }
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accept::calls::Calls;
    use std::pin::pin;
    use tokio::time::Instant;

    #[tokio::test]
    async fn a_call_under_way_is_not_idle_however_long_it_takes() {
        let activity = Activity::new();
        let (first, idle) = (Duration::from_millis(20), Duration::from_millis(40));
        let begin = Instant::now();
        assert_eq!(activity.quiet(first, idle).await, Quiet::NoFirstRequest);
        assert!(begin.elapsed() >= first);

        let call = activity.begin();
        let mut quiet = std::pin::pin!(activity.quiet(first, idle));
        assert!(tokio::time::timeout(idle * 5, quiet.as_mut()).await.is_err(), "a call was under way");
        let ended = Instant::now();
        drop(call);
        assert_eq!(quiet.await, Quiet::Idle);
        assert!(ended.elapsed() >= idle);
    }
    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_handed_over_and_not_taken_stalls_the_connection_and_one_that_moves_does_not() {
        let activity = Activity::new();
        let limit = Duration::from_secs(30);
        let answer = |activity: &Activity| {
            let body = Body::new(http_body_of(["one", "two"]));
            Answer::new(body, activity.begin(), Calls::default().begin("/a.B/C", None, &Default::default()))
        };
        let take = async |answer: &mut Answer| {
            std::future::poll_fn(|cx| Pin::new(&mut *answer).poll_frame(cx)).await
        };
        // Nothing was said yet: nobody has to take anything.
        let mut first = answer(&activity);
        assert!(tokio::time::timeout(limit * 10, activity.stalled(limit)).await.is_err());
        take(&mut first).await.expect("a piece").expect("good");
        let begin = Instant::now();
        activity.stalled(limit).await;
        assert!(begin.elapsed() >= limit && begin.elapsed() <= limit * 2, "{:?}", begin.elapsed());
        // What moves within the limit, however slowly, is not standing still.
        let mut slow = pin!(activity.stalled(limit));
        for _ in 0..2 {
            assert!(tokio::time::timeout(limit / 2, slow.as_mut()).await.is_err());
            take(&mut first).await;
        }
        drop(first);
        assert!(tokio::time::timeout(limit * 10, slow).await.is_err());
        assert_eq!(activity.0.flow.owed.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn on_a_connection_of_many_the_call_ends_whose_answer_is_not_taken_and_the_one_beside_it_goes_on() {
        let limit = Duration::from_secs(30);
        let streams = Streams { each_within: Some(limit) };
        let activity = Activity::new();
        let calls = [limit * 1_000, limit / 2].map(|every| {
            let (all, (serves, ended)) = (activity.clone(), tokio::sync::oneshot::channel::<()>());
            streams.execute(async move {
                let _serves = serves;
                let pieces = http_body_of(["piece"; 20]);
                let timed = Calls::default().begin("/a.B/C", None, &Default::default());
                let mut answer = Answer::new(Body::new(pieces), all.begin(), timed);
                while std::future::poll_fn(|cx| Pin::new(&mut answer).poll_frame(cx)).await.is_some() {
                    tokio::time::sleep(every).await;
                }
            });
            ended
        });
        let begin = Instant::now();
        let [stands, moves] = calls;
        stands.await.expect_err("nothing is said");
        assert!(begin.elapsed() >= limit && begin.elapsed() <= limit * 2, "{:?}", begin.elapsed());
        moves.await.expect_err("nothing is said");
        assert!(begin.elapsed() >= limit * 10, "all of it was taken: {:?}", begin.elapsed());
        assert_eq!(activity.0.flow.owed.load(Ordering::Relaxed), 0);
    }

    /// A body of these pieces.
    fn http_body_of<const N: usize>(
        pieces: [&'static str; N],
    ) -> impl HttpBody<Data = bytes::Bytes, Error = tonic::Status> {
        struct Pieces(std::vec::IntoIter<&'static str>);
        impl HttpBody for Pieces {
            type Data = bytes::Bytes;
            type Error = tonic::Status;

            fn poll_frame(
                mut self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
                Poll::Ready(
                    self.0.next().map(|piece| Ok(Frame::data(bytes::Bytes::from_static(piece.as_bytes())))),
                )
            }
        }
        Pieces(Vec::from(pieces).into_iter())
    }
}

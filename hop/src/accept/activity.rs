//! Whether anything is asked on a connection, and since when not.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::watch;
use tonic::body::Body;

#[derive(Debug, Clone, Copy, Default)]
struct State {
    under_way: usize,
    served: u64,
}

/// The calls of one connection.
#[derive(Debug, Clone)]
pub(super) struct Activity(Arc<watch::Sender<State>>);

/// Why a connection is quiet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quiet {
    NoFirstRequest,
    Idle,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(State::default())))
    }

    /// A call begins; it lasts until the guard is dropped.
    pub(super) fn begin(&self) -> Call {
        self.0.send_modify(|state| {
            state.under_way += 1;
            state.served += 1;
        });
        Call(self.clone())
    }

    /// Resolves when the first request has not come within `first`, or later none was under way for `idle`.
    pub(super) async fn quiet(&self, first: Duration, idle: Duration) -> Quiet {
        let mut state = self.0.subscribe();
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
}

/// A call that is under way.
#[derive(Debug)]
pub(super) struct Call(Activity);

impl Drop for Call {
    fn drop(&mut self) {
        self.0.0.send_modify(|state| state.under_way -= 1);
    }
}

/// An answer that is under way until its last byte is taken.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) body: Body,
    pub(super) _call: Call,
}

impl HttpBody for Answer {
    type Data = bytes::Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
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
}

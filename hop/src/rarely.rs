//! A future that is polled when it was woken, beside others that are woken for every frame.
//!
//! `select!` polls all its branches whenever one of them is woken. A token that tells a program to stop is asked, under a
//! lock that all connections share, several times for every envelope then. Here it is polled when it was woken itself, and
//! not before.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

/// See the module.
pub(crate) struct Rarely<F> {
    /// None when it is over.
    future: Option<Pin<Box<F>>>,
    bell: Arc<Bell>,
    waker: Waker,
}

/// Who is woken when the future is.
struct Bell {
    rung: AtomicBool,
    owner: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.owner.wake();
    }
}

impl<F: Future> Rarely<F> {
    pub(crate) fn new(future: F) -> Self {
        let bell = Arc::new(Bell { rung: AtomicBool::new(true), owner: AtomicWaker::new() });
        Self { future: Some(Box::pin(future)), waker: Waker::from(Arc::clone(&bell)), bell }
    }

    /// Its output, once; from then on it pends for ever. Cancel safe.
    pub(crate) async fn wait(&mut self) -> F::Output {
        poll_fn(|cx| self.poll(cx)).await
    }

    /// The same as a poll.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Some(future) = &mut self.future else { return Poll::Pending };
        // In this order: who rings after the look at the bell finds whom to wake.
        self.bell.owner.register(cx.waker());
        if !self.bell.rung.swap(false, Ordering::Acquire) {
            return Poll::Pending;
        }
        let output = future.as_mut().poll(&mut Context::from_waker(&self.waker));
        if output.is_ready() {
            self.future = None;
        }
        output
    }
}

impl<F> fmt::Debug for Rarely<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rarely").field("over", &self.future.is_none()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::atomic::AtomicUsize;

    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn it_is_polled_when_it_was_woken_and_not_whenever_it_is_waited_for() {
        let (polls, waker) = (Cell::new(0), Cell::new(None));
        let mut rarely = Rarely::new(poll_fn(|cx| {
            polls.set(polls.get() + 1);
            if polls.get() == 2 {
                return Poll::Ready("told");
            }
            waker.set(Some(cx.waker().clone()));
            Poll::Pending
        }));
        for _ in 0..5 {
            assert_eq!(rarely.wait().now_or_never(), None);
        }
        assert_eq!(polls.get(), 1);
        waker.take().unwrap().wake();
        assert_eq!(rarely.wait().now_or_never(), Some("told"));
        assert_eq!(rarely.wait().now_or_never(), None);
    }

    #[test]
    fn its_owner_is_woken_as_often_as_it_is_and_the_owner_of_now() {
        struct Count(AtomicUsize);
        impl Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let owners = [(); 2].map(|()| Arc::new(Count(AtomicUsize::new(0))));
        let woken = || [0, 1].map(|owner: usize| owners[owner].0.load(Ordering::Relaxed));
        let inner = Cell::new(None);
        let mut rarely = Rarely::new(poll_fn(|cx| {
            inner.set(Some(cx.waker().clone()));
            Poll::<()>::Pending
        }));
        for owner in &owners {
            let waker = Waker::from(Arc::clone(owner));
            assert!(rarely.poll(&mut Context::from_waker(&waker)).is_pending());
        }
        assert_eq!(woken(), [0, 0], "nobody is woken by being told to wait");
        inner.take().unwrap().wake();
        assert_eq!(woken(), [0, 1]);
    }
}

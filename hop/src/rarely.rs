//! A future that has something to say once, beside one that is woken for every frame.
//!
//! `select!` polls all its branches whenever one of them is woken. A token that tells a program to stop is asked, under a
//! lock that all connections share, several times for every envelope then. Here it is polled when it was woken itself, and
//! not before.

use std::future::{Future, pending};

use futures_util::stream::{FuturesUnordered, StreamExt as _};

/// See the module.
#[derive(Debug)]
pub(crate) struct Rarely<F>(FuturesUnordered<F>);

impl<F: Future> Rarely<F> {
    pub(crate) fn new(future: F) -> Self {
        Self([future].into_iter().collect())
    }

    /// Its output, once; from then on it pends for ever. Cancel safe.
    pub(crate) async fn wait(&mut self) -> F::Output {
        match self.0.next().await {
            Some(output) => output,
            None => pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::poll_fn, task::Poll};

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
}

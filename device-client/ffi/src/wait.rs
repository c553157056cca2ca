//! Waiting for a future on the caller's thread, with an end that somebody else may set.

use std::{
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
};

use futures_util::future::{Either, select};
use tokio_util::sync::CancellationToken;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        // A wake-up between the question and the parking is kept: the parking returns at once.
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

/// What the future comes to; nothing if `ended` is cancelled before.
pub(crate) fn wait_until<T>(ended: &CancellationToken, future: impl Future<Output = T>) -> Option<T> {
    match block_on(select(pin!(future), pin!(ended.cancelled()))) {
        Either::Left((output, _)) => Some(output),
        Either::Right(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_with_its_future_or_when_somebody_ends_it() {
        let ended = CancellationToken::new();
        assert_eq!(wait_until(&ended, async { 7 }), Some(7));
        let other = ended.clone();
        let ending = thread::spawn(move || other.cancel());
        assert_eq!(wait_until(&ended, std::future::pending::<i32>()), None);
        ending.join().expect("it cancels");
    }
}

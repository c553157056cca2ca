//! How an envelope on its way to the disk ended, for everybody who waits for it: who brought it, and who sent the same
//! bytes meanwhile. One allocation for each envelope.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use pithead_spool::NotDurable;

/// Durable, or why not.
pub type Ending = Result<(), NotDurable>;

/// Resolves when it is decided. Clones resolve alike.
#[derive(Clone)]
#[must_use = "futures do nothing unless awaited"]
pub struct Fate(Arc<Mutex<State>>);

/// Decides it. Dropped undecided, the envelope was never appended: [`NotDurable::Closed`].
pub struct Deciding {
    state: Arc<Mutex<State>>,
    decided: bool,
}

#[derive(Default)]
struct State {
    ending: Option<Ending>,
    /// Nearly always one.
    waiting: Option<Waker>,
    more: Vec<Waker>,
}

/// A fate, and who decides it.
pub fn undecided() -> (Deciding, Fate) {
    let state = Arc::<Mutex<State>>::default();
    (Deciding { state: Arc::clone(&state), decided: false }, Fate(state))
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Deciding {
    /// Wakes everybody who waits.
    pub fn decide(mut self, ending: Ending) {
        self.end(ending);
    }

    fn end(&mut self, ending: Ending) {
        self.decided = true;
        let (waiting, more) = {
            let mut state = lock(&self.state);
            state.ending = Some(ending);
            (state.waiting.take(), std::mem::take(&mut state.more))
        };
        waiting.into_iter().chain(more).for_each(Waker::wake);
    }
}

impl Drop for Deciding {
    fn drop(&mut self) {
        if !self.decided {
            self.end(Err(NotDurable::Closed));
        }
    }
}

impl Future for Fate {
    type Output = Ending;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Ending> {
        let mut state = lock(&self.0);
        if let Some(ending) = state.ending {
            return Poll::Ready(ending);
        }
        let waker = context.waker();
        let State { waiting, more, .. } = &mut *state;
        match waiting {
            None => *waiting = Some(waker.clone()),
            Some(known) if known.will_wake(waker) => {}
            Some(_) if more.iter().any(|known| known.will_wake(waker)) => {}
            Some(_) => more.push(waker.clone()),
        }
        Poll::Pending
    }
}

impl fmt::Debug for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Fate").field(&lock(&self.0).ending).finish()
    }
}

impl fmt::Debug for Deciding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deciding").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[tokio::test]
    async fn everybody_who_waits_is_told_and_who_comes_late_as_well() {
        let (deciding, fate) = undecided();
        let waiting: Vec<_> = (0..3).map(|_| tokio::spawn(fate.clone())).collect();
        tokio::task::yield_now().await;
        assert_eq!(fate.clone().now_or_never(), None);
        deciding.decide(Ok(()));
        for one in waiting {
            assert_eq!(one.await.unwrap(), Ok(()));
        }
        assert_eq!(fate.await, Ok(()));
    }

    #[tokio::test]
    async fn what_was_never_appended_is_not_durable() {
        let (deciding, fate) = undecided();
        let waiting = tokio::spawn(fate);
        tokio::task::yield_now().await;
        drop(deciding);
        assert_eq!(waiting.await.unwrap(), Err(NotDurable::Closed));
    }
}

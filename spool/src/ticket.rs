//! A ticket: the promise that an answer comes when, and only when, the fdatasync of the record's group has returned.

use crate::error::NotDurable;
use crate::record::Position;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

type Answer = Result<Position, NotDurable>;

/// Resolves to the position of the record, or of the first record of a batch, once it is durable. The records of a batch lie
/// one behind the other without a gap.
///
/// A ticket can be awaited on any executor, or waited for. Dropping it does not take the record back.
#[must_use = "the record is durable only when its ticket says so"]
pub struct Ticket(Arc<Slot>);

#[derive(Default)]
pub(crate) struct Slot {
    state: Mutex<SlotState>,
    answered: Condvar,
}

#[derive(Default)]
struct SlotState {
    answer: Option<Answer>,
    waker: Option<Waker>,
    /// Whether a thread is blocked in `wait`: an answer costs a system call only then.
    waiting: bool,
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, SlotState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn answer(&self, answer: Answer) {
        let (waker, waiting) = {
            let mut state = self.lock();
            state.answer = Some(answer);
            (state.waker.take(), state.waiting)
        };
        if waiting {
            self.answered.notify_all();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Ticket {
    pub(crate) fn new() -> (Self, Arc<Slot>) {
        let slot = Arc::<Slot>::default();
        (Self(Arc::clone(&slot)), slot)
    }

    /// Blocks until the answer is there. Not for async tasks: await the ticket instead.
    pub fn wait(self) -> Answer {
        let mut state = self.0.lock();
        loop {
            if let Some(answer) = state.answer {
                return answer;
            }
            state.waiting = true;
            state = self.0.answered.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The answer, if it is already there.
    #[must_use]
    pub fn answer(&self) -> Option<Answer> {
        self.0.lock().answer
    }
}

impl Future for Ticket {
    type Output = Answer;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer> {
        let mut state = self.0.lock();
        if let Some(answer) = state.answer {
            return Poll::Ready(answer);
        }
        match &mut state.waker {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        Poll::Pending
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("answer", &self.answer()).finish()
    }
}

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
struct Slot {
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

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("answer", &self.lock().answer).finish()
    }
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, SlotState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, answer: Answer) {
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

/// The other end of a ticket: whoever makes records durable keeps it, or says why not. Dropped without either, as when its owner
/// falls over, it says [`NotDurable::Closed`].
#[derive(Debug)]
pub struct Promise {
    slot: Arc<Slot>,
    kept: bool,
}

impl Promise {
    /// The record is durable, at `position`.
    pub fn keep(mut self, position: Position) {
        self.kept = true;
        self.slot.answer(Ok(position));
    }

    /// It is not, and this is why.
    pub fn fail(mut self, why: NotDurable) {
        self.kept = true;
        self.slot.answer(Err(why));
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        if !self.kept {
            self.slot.answer(Err(NotDurable::Closed));
        }
    }
}

impl Ticket {
    /// A ticket, and the promise that answers it: for another engine behind the same tickets.
    pub fn promised() -> (Promise, Self) {
        let (ticket, slot) = Self::new();
        (Promise { slot, kept: false }, ticket)
    }

    fn new() -> (Self, Arc<Slot>) {
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

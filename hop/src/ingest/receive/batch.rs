//! One batch between its arrival and its answer.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll};

use crate::ingest::intake::{Outcome, Pending};
use crate::status::Refusal;
use crate::trace::span::Span;

/// An envelope that was offered, or that needs no offer.
pub(super) enum Item {
    Answered(Outcome),
    Waiting(Pending),
}

/// A batch whose envelopes were all offered.
pub(super) struct Offered {
    pub(super) number: u64,
    pub(super) bytes: u64,
    /// Ends when all of it is answered.
    pub(super) span: Span,
    items: VecDeque<Item>,
    answered: Vec<Outcome>,
}

impl Offered {
    pub(super) fn new(number: u64, bytes: u64, items: VecDeque<Item>, span: Span) -> Self {
        let answered = Vec::with_capacity(items.len());
        Self { number, bytes, span, items, answered }
    }

    /// The outcomes of all of it, in order. What was answered stays answered if the future is dropped and made again.
    pub(super) async fn outcomes(&mut self) -> Result<Vec<Outcome>, Refusal> {
        poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Vec<Outcome>, Refusal>> {
        while let Some(item) = self.items.pop_front() {
            let outcome = match item {
                Item::Answered(outcome) => outcome,
                Item::Waiting(mut pending) => match pending.as_mut().poll(cx) {
                    Poll::Ready(Ok(outcome)) => outcome,
                    Poll::Ready(Err(refusal)) if super::ends_the_call(&refusal) => {
                        return Poll::Ready(Err(refusal));
                    }
                    Poll::Ready(Err(refusal)) => Outcome::Refused(refusal),
                    Poll::Pending => {
                        self.items.push_front(Item::Waiting(pending));
                        return Poll::Pending;
                    }
                },
            };
            self.answered.push(outcome);
        }
        Poll::Ready(Ok(std::mem::take(&mut self.answered)))
    }
}

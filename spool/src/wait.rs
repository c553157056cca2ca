//! Waiting without polling: for durable records, and for room.

use crate::error::Closed;
use crate::record::{Lane, Position};
use crate::shared::{Shared, Until};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Resolves when the record at a position is durable and can be read; `Closed` when it never will be.
///
/// Cancel safe: nothing is lost by dropping it.
#[must_use = "futures do nothing unless awaited"]
pub struct Changed(Waiting);

/// Resolves when an append that was refused with `QueueFull` or `Full` is worth another try. Others may be faster, so it
/// promises nothing. Cancel safe.
#[must_use = "futures do nothing unless awaited"]
pub struct Room(Waiting);

struct Waiting {
    shared: Arc<Shared>,
    until: Until,
    id: Option<u64>,
}

impl Changed {
    pub(crate) fn new(shared: Arc<Shared>, lane: Lane, position: Position) -> Self {
        Self(Waiting { shared, until: Until::Durable { lane: lane.index(), position: position.0 }, id: None })
    }

    /// Blocks until it resolves, or until `limit` has passed: then `Ok(false)`.
    pub fn wait_timeout(self, limit: Duration) -> Result<bool, Closed> {
        let over = self.0.block(Some(limit));
        if over { self.0.durable().map(|()| true) } else { Ok(false) }
    }

    /// Blocks until it resolves.
    pub fn wait(self) -> Result<(), Closed> {
        self.0.block(None);
        self.0.durable()
    }
}

impl Room {
    pub(crate) fn new(shared: Arc<Shared>, lane: Lane, records: usize, bytes: u64) -> Self {
        Self(Waiting { shared, until: Until::Room { lane: lane.index(), records, bytes }, id: None })
    }

    /// Blocks until it resolves, or until `limit` has passed: then `false`.
    #[must_use]
    pub fn wait_timeout(self, limit: Duration) -> bool {
        self.0.block(Some(limit))
    }

    /// Blocks until it resolves.
    pub fn wait(self) {
        self.0.block(None);
    }
}

impl Waiting {
    fn block(&self, limit: Option<Duration>) -> bool {
        let since = Instant::now();
        let mut state = self.shared.lock();
        while !state.is_over(&self.shared.options, self.until) {
            match limit {
                None => state = self.shared.moved.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(limit) => {
                    let Some(left) = limit.checked_sub(since.elapsed()).filter(|left| !left.is_zero()) else {
                        return false;
                    };
                    state =
                        self.shared.moved.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
        true
    }

    fn durable(&self) -> Result<(), Closed> {
        let Until::Durable { lane, position } = self.until else { return Ok(()) };
        let there = self.shared.lock().lanes.get(lane).is_some_and(|lane| lane.end > position);
        if there { Ok(()) } else { Err(Closed) }
    }

    fn poll(&mut self, context: &Context<'_>) -> Poll<()> {
        let mut state = self.shared.lock();
        if state.is_over(&self.shared.options, self.until) {
            return Poll::Ready(());
        }
        self.id = Some(state.register(self.id, self.until, context.waker()));
        Poll::Pending
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.shared.lock().forget(id);
        }
    }
}

impl Future for Changed {
    type Output = Result<(), Closed>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll(context).map(|()| self.0.durable())
    }
}

impl Future for Room {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.0.poll(context)
    }
}

impl fmt::Debug for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Changed").field(&self.0.until).finish()
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Room").field(&self.0.until).finish()
    }
}

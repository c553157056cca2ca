//! Which envelopes came in a call that is followed, so that the relay's batches can link to it.
//!
//! In memory, beside the spool and not in it: a restart forgets the links, and an envelope is none the worse for that. At most
//! [`FOLLOWED_MAX`] are remembered; the oldest is forgotten first, and its batch has one link less. Where no spans are exported nothing
//! is ever entered, and asking costs a look at a number.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pithead_hop::trace::TraceParent;
use pithead_hop::trace::span::Spans;
use pithead_sealing::Identity;

/// What waits while the far end is away is not worth more: some 200 bytes each.
pub const FOLLOWED_MAX: usize = 16_384;

/// See the module. Clones are the same; the default one follows nobody.
#[derive(Debug, Clone, Default)]
pub struct Followed {
    spans: Spans,
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    entered: AtomicUsize,
    lists: Mutex<Lists>,
}

#[derive(Debug, Default)]
struct Lists {
    by_identity: HashMap<Identity, TraceParent>,
    /// In the order of their coming, also those that have left.
    order: VecDeque<Identity>,
}

impl Followed {
    /// With spans that go there.
    #[must_use]
    pub fn new(spans: Spans) -> Self {
        Self { spans, inner: Arc::default() }
    }

    /// Where spans go.
    #[must_use]
    pub fn spans(&self) -> &Spans {
        &self.spans
    }

    /// It came in this call.
    pub fn enter(&self, identity: &Identity, trace: TraceParent) {
        self.change(|lists| {
            lists.by_identity.insert(identity.clone(), trace);
            lists.order.push_back(identity.clone());
            if lists.order.len() > FOLLOWED_MAX
                && let Some(oldest) = lists.order.pop_front()
            {
                lists.by_identity.remove(&oldest);
            }
        });
    }

    /// In which call it came, if that is remembered.
    #[must_use]
    pub fn get(&self, identity: &Identity) -> Option<TraceParent> {
        if self.inner.entered.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let lists = self.inner.lists.lock().unwrap_or_else(PoisonError::into_inner);
        lists.by_identity.get(identity).copied()
    }

    /// It has left.
    pub fn left(&self, identity: &Identity) {
        self.change(|lists| {
            lists.by_identity.remove(identity);
        });
    }

    fn change(&self, change: impl FnOnce(&mut Lists)) {
        let mut lists = self.inner.lists.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut lists);
        if lists.by_identity.is_empty() {
            lists.order.clear();
        }
        self.inner.entered.store(lists.by_identity.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelopes::testing;

    fn identity(seq: u64) -> Identity {
        testing::identity("truck-42", seq)
    }

    #[test]
    fn the_oldest_is_forgotten_at_the_bound_and_who_has_left_takes_no_room() {
        let trace = TraceParent::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
        let followed = Followed::default();
        assert_eq!(followed.get(&identity(1)), None);
        (1..=FOLLOWED_MAX as u64 + 1).for_each(|seq| followed.enter(&identity(seq), trace));
        assert_eq!(followed.get(&identity(1)), None);
        assert_eq!(followed.get(&identity(2)), Some(trace));
        (1..=FOLLOWED_MAX as u64 + 1).for_each(|seq| followed.left(&identity(seq)));
        let lists = followed.inner.lists.lock().unwrap();
        assert!(lists.by_identity.is_empty() && lists.order.is_empty());
    }
}

//! The order of a line while its envelopes are unwrapped at different speeds.
//!
//! Envelopes of one line go to the sink in the order in which they were offered; lines do not wait for each other. Each
//! envelope takes a [`Turn`]; it comes when the one before it has been handed on.
//!
//! When an envelope fails in a way that a retry can cure, those behind it on its line must not overtake it: the line is
//! *broken* from there on. What was offered behind it before the break fails too (and is sent again, in order); what is
//! ahead of it goes on; what is offered afterwards begins anew, behind all of them. But not on a call that had a part in what
//! broke: its sender does not know yet, and what it goes on sending would be in the sink before what it has to send again. Such
//! a call gets no turn any more, on any line; it ends with the failure, and the next one sends everything in order.

use pithead_sealing::{Line, Site};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::{oneshot, watch};

type Key = (Site, Line);

/// One call of a sender, as far as order goes. Clones are the same call.
#[derive(Debug, Clone, Default)]
pub struct Call(Arc<AtomicBool>);

impl Call {
    /// Whether something of it, or behind which something of it stood, has to be sent again.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// The turns of all lines that have something under way.
#[derive(Debug, Default)]
pub struct Turns {
    lines: Mutex<HashMap<Key, Entry>>,
}

/// No turn has this number: the line is whole.
const WHOLE: u64 = u64::MAX;

#[derive(Debug)]
struct Entry {
    /// The number from which on the line is broken; what is behind that number fails.
    broken: watch::Sender<u64>,
    /// Whose envelopes are on the line since it was last broken: they fail with it. As many as there are calls.
    calls: Vec<Weak<AtomicBool>>,
    last: oneshot::Receiver<()>,
    out: usize,
    next: u64,
}

impl Entry {
    fn note(&mut self, call: &Call) {
        if self.calls.last().is_some_and(|last| std::ptr::eq(last.as_ptr(), Arc::as_ptr(&call.0))) {
            return;
        }
        self.calls.retain(|known| known.strong_count() > 0);
        let call = Arc::downgrade(&call.0);
        if !self.calls.iter().any(|known| known.ptr_eq(&call)) {
            self.calls.push(call);
        }
    }

    fn fail_calls(&mut self) {
        for call in self.calls.drain(..) {
            if let Some(call) = call.upgrade() {
                call.store(true, Ordering::Release);
            }
        }
    }
}

impl Turns {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next turn on this line; none for a call that has failed.
    pub fn take(self: &Arc<Self>, site: &Site, line: Line, call: &Call) -> Option<Turn> {
        let key = (site.clone(), line);
        let (pass, next) = oneshot::channel();
        // A line breaks under this lock: either this call is known to have failed by then, or its turn breaks with the line.
        let mut lines = self.lock();
        if call.has_failed() {
            return None;
        }
        let (broken, before, number) = match lines.get_mut(&key) {
            None => {
                let broken = watch::Sender::new(WHOLE);
                let calls = vec![Arc::downgrade(&call.0)];
                lines.insert(
                    key.clone(),
                    Entry { broken: broken.clone(), calls, last: next, out: 1, next: 1 },
                );
                (broken, None, 0)
            }
            Some(entry) => {
                if *entry.broken.borrow() != WHOLE {
                    entry.broken = watch::Sender::new(WHOLE);
                }
                entry.note(call);
                entry.out += 1;
                entry.next += 1;
                let before = std::mem::replace(&mut entry.last, next);
                (entry.broken.clone(), Some(before), entry.next - 1)
            }
        };
        drop(lines);
        Some(Turn { turns: Arc::clone(self), key, broken, number, before, pass: Some(pass) })
    }

    /// Lines with something under way.
    #[must_use]
    pub fn lines(&self) -> usize {
        self.lock().len()
    }
}

/// One envelope's place on its line. Dropping it lets the next one go, so it is kept until it has [come](Turn::come), even
/// by an envelope that has failed: else what is offered later could overtake what is still ahead.
#[derive(Debug)]
pub struct Turn {
    turns: Arc<Turns>,
    key: Key,
    broken: watch::Sender<u64>,
    number: u64,
    before: Option<oneshot::Receiver<()>>,
    pass: Option<oneshot::Sender<()>>,
}

impl Turn {
    /// Resolves when everything offered before on this line has been handed on, or has failed. Cancel safe.
    pub async fn come(&mut self) {
        if let Some(before) = &mut self.before {
            // An error means that its holder is gone: handed on as well.
            let _ = before.await;
            self.before = None;
        }
    }

    /// What holds the next one back: to be dropped once this envelope has been handed on, and not before.
    pub fn hand_over(&mut self) -> Option<Held> {
        self.pass.take().map(Held)
    }

    /// Whether one before it has failed: then this one fails too.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        *self.broken.borrow() < self.number
    }

    /// Resolves when one before it fails.
    pub async fn broken(&self) {
        let mut broken = self.broken.subscribe();
        // The sender is ours: it does not end before this does.
        let _ = broken.wait_for(|from| *from < self.number).await;
    }

    /// This envelope will have to come again: so will all that are behind it, and whatever their calls still send.
    pub fn break_line(&self) {
        let mut lines = self.turns.lock();
        // Where the line has begun anew since, it was broken before, and the calls of that time know.
        if let Some(entry) = lines.get_mut(&self.key)
            && entry.broken.same_channel(&self.broken)
        {
            entry.fail_calls();
        }
        self.broken.send_if_modified(|from| {
            let earlier = self.number < *from;
            *from = self.number.min(*from);
            earlier
        });
    }
}

/// Holds the next one on a line back until it is dropped.
#[derive(Debug)]
pub struct Held(#[expect(dead_code, reason = "dropping it is the signal")] oneshot::Sender<()>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.pass = None;
        let mut lines = self.turns.lock();
        if let Some(entry) = lines.get_mut(&self.key) {
            entry.out -= 1;
            if entry.out == 0 {
                lines.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::testing::identity;
    use futures_util::FutureExt as _;

    fn take_on(turns: &Arc<Turns>, device: &str, call: &Call) -> Option<Turn> {
        let identity = identity(device, 1);
        turns.take(&identity.site, identity.line(), call)
    }

    fn take(turns: &Arc<Turns>, device: &str) -> Turn {
        take_on(turns, device, &Call::default()).unwrap()
    }

    #[tokio::test]
    async fn the_second_waits_for_the_first_and_another_line_for_neither() {
        let turns = Arc::new(Turns::default());
        let (mut first, mut second, mut other) = (take(&turns, "a"), take(&turns, "a"), take(&turns, "b"));
        assert!(first.come().now_or_never().is_some());
        assert!(other.come().now_or_never().is_some());
        assert!(second.come().now_or_never().is_none());
        drop(first.hand_over());
        assert!(second.come().now_or_never().is_some());
        drop((first, second, other));
        assert_eq!(turns.lines(), 0);
    }

    #[tokio::test]
    async fn a_break_takes_along_what_is_behind_and_nothing_that_comes_later() {
        let turns = Arc::new(Turns::default());
        let (ahead, first, second) = (take(&turns, "a"), take(&turns, "a"), take(&turns, "a"));
        first.break_line();
        assert!(!ahead.is_broken() && second.is_broken());
        assert!(second.broken().now_or_never().is_some() && ahead.broken().now_or_never().is_none());
        let mut again = take(&turns, "a");
        assert!(!again.is_broken());
        // It still waits until the broken ones are out of the way.
        assert!(again.come().now_or_never().is_none());
        drop((ahead, first, second));
        assert!(again.come().now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_call_that_a_break_has_touched_gets_no_turn_any_more_and_the_next_one_does() {
        let turns = Arc::new(Turns::default());
        let (one, other, stranger) = (Call::default(), Call::default(), Call::default());
        let first = take_on(&turns, "a", &one).unwrap();
        let behind = take_on(&turns, "a", &other).unwrap();
        let elsewhere = take_on(&turns, "b", &stranger).unwrap();
        first.break_line();
        // Also the call whose envelope only stood behind: that one fails a moment later, and nothing may come in between.
        assert!(one.has_failed() && other.has_failed() && !stranger.has_failed());
        assert!(take_on(&turns, "a", &one).is_none() && take_on(&turns, "b", &one).is_none());
        assert!(take_on(&turns, "a", &other).is_none());
        let next = Call::default();
        let again = take_on(&turns, "a", &next).unwrap();
        // What fails of the time before has nothing to do with the new beginning.
        behind.break_line();
        assert!(!again.is_broken() && !next.has_failed() && take_on(&turns, "a", &next).is_some());
        drop((first, behind, elsewhere, again));
        assert_eq!(turns.lines(), 0);
    }

    #[tokio::test]
    async fn calls_that_are_gone_are_not_remembered_on_a_line_that_is_never_idle() {
        let turns = Arc::new(Turns::default());
        let mut held = take(&turns, "a");
        for _ in 0..100 {
            held = take(&turns, "a");
        }
        let identity = identity("a", 1);
        assert!(turns.lock()[&(identity.site.clone(), identity.line())].calls.len() <= 2);
        drop(held);
    }
}

//! The order of a line while its envelopes are unwrapped at different speeds.
//!
//! Envelopes of one line go to the sink in the order in which they were offered; lines do not wait for each other. Each
//! envelope takes a [`Turn`]; it comes when the one before it has been handed on.
//!
//! When an envelope fails in a way that a retry can cure, those behind it on its line must not overtake it: the line is
//! *broken* from there on. What was offered behind it before the break fails too (and is sent again, in order); what is
//! ahead of it goes on; what is offered afterwards begins anew, behind all of them.

use pithead_sealing::{Line, Site};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{oneshot, watch};

type Key = (Site, Line);

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
    last: oneshot::Receiver<()>,
    out: usize,
    next: u64,
}

impl Turns {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next turn on this line.
    pub fn take(self: &Arc<Self>, site: &Site, line: Line) -> Turn {
        let key = (site.clone(), line);
        let (pass, next) = oneshot::channel();
        let mut lines = self.lock();
        let (broken, before, number) = match lines.get_mut(&key) {
            None => {
                let broken = watch::Sender::new(WHOLE);
                lines.insert(key.clone(), Entry { broken: broken.clone(), last: next, out: 1, next: 1 });
                (broken, None, 0)
            }
            Some(entry) => {
                if *entry.broken.borrow() != WHOLE {
                    entry.broken = watch::Sender::new(WHOLE);
                }
                entry.out += 1;
                entry.next += 1;
                let before = std::mem::replace(&mut entry.last, next);
                (entry.broken.clone(), Some(before), entry.next - 1)
            }
        };
        drop(lines);
        Turn { turns: Arc::clone(self), key, broken, number, before, pass: Some(pass) }
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

    /// This envelope will have to come again: so will all that are behind it.
    pub fn break_line(&self) {
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

    fn take(turns: &Arc<Turns>, device: &str) -> Turn {
        let identity = identity(device, 1);
        turns.take(&identity.site, identity.line())
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
}

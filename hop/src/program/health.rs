//! How a program is, in a few dimensions, each with words and an age.
//!
//! Whoever owns a dimension says how it is when that changes; pages, probes and the supervisor only read. A program is ready while
//! none of the dimensions that it needs is down and it is not draining; draining is *not ready* first.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

/// How well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, and somebody should look at it.
    Degraded,
    /// It does not work.
    Down,
}

impl Level {
    /// The word on status pages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Down => "down",
        }
    }
}

/// One dimension as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lamp {
    /// How well.
    pub level: Level,
    /// What that means, in a sentence.
    pub words: String,
    /// Operating time at which the level last changed.
    pub since: Duration,
}

/// The lamps. Clones show the same ones.
#[derive(Debug, Clone)]
pub struct Lamps(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    lamps: Mutex<BTreeMap<&'static str, Lamp>>,
    needed: &'static [&'static str],
    draining: watch::Sender<bool>,
    ready: watch::Sender<bool>,
    /// Counts changes of words and levels.
    changes: watch::Sender<u64>,
}

/// How all of it is, in one sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The worst lamp; down as well while the program is not ready.
    pub level: Level,
    /// What that means.
    pub words: String,
}

impl Lamps {
    /// Everything is down until somebody says otherwise. The program is ready when none of `needed` is.
    #[must_use]
    pub fn new(all: &[&'static str], needed: &'static [&'static str], now: Duration) -> Self {
        let start = || Lamp { level: Level::Down, words: "starting".to_owned(), since: now };
        let lamps = Mutex::new(all.iter().map(|dimension| (*dimension, start())).collect());
        let (draining, ready) = (watch::Sender::new(false), watch::Sender::new(false));
        Self(Arc::new(Inner { lamps, needed, draining, ready, changes: watch::Sender::new(0) }))
    }

    /// Says how a dimension is. True if its level has changed, which is when it is worth a line in the log.
    pub fn set(
        &self,
        dimension: &'static str,
        level: Level,
        words: impl Into<String>,
        now: Duration,
    ) -> bool {
        let words = words.into();
        let mut lamps = self.lamps();
        let before = lamps.get(dimension);
        let changed = before.is_none_or(|lamp| lamp.level != level);
        let reworded = changed || before.is_none_or(|lamp| lamp.words != words);
        let since = before.filter(|_| !changed).map_or(now, |lamp| lamp.since);
        lamps.insert(dimension, Lamp { level, words, since });
        drop(lamps);
        if reworded {
            self.reconsider();
        }
        changed
    }

    /// From now on the program is not ready: whoever balances load goes elsewhere before the port closes.
    pub fn drain(&self) {
        self.0.draining.send_replace(true);
        self.reconsider();
    }

    /// Whether peers can be sent here.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        *self.0.ready.borrow()
    }

    /// Whether the program is stopping.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        *self.0.draining.borrow()
    }

    /// Follows readiness.
    #[must_use]
    pub fn watch_ready(&self) -> watch::Receiver<bool> {
        self.0.ready.subscribe()
    }

    /// Follows every change of a level or of words.
    #[must_use]
    pub fn watch_changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// All dimensions.
    #[must_use]
    pub fn report(&self) -> BTreeMap<&'static str, Lamp> {
        self.lamps().clone()
    }

    /// All of them in one sentence: those that are not well, the worst first.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let lamps = self.report();
        let mut bad: Vec<_> = lamps.iter().filter(|(_, lamp)| lamp.level != Level::Ok).collect();
        bad.sort_by_key(|(_, lamp)| std::cmp::Reverse(lamp.level));
        let worst = bad.first().map_or(Level::Ok, |(_, lamp)| lamp.level);
        let ready = match (self.is_ready(), self.is_draining()) {
            (_, true) => "draining",
            (true, false) => "ready",
            (false, false) => "not ready",
        };
        let said: Vec<String> =
            bad.iter().map(|(name, lamp)| format!("{name} {}: {}", lamp.level.name(), lamp.words)).collect();
        let words = if said.is_empty() {
            format!("{ready}; all is well")
        } else {
            format!("{ready}; {}", said.join("; "))
        };
        Summary { level: if self.is_ready() { worst } else { Level::Down }, words }
    }

    fn reconsider(&self) {
        let lamps = self.report();
        let works = |dimension: &&str| lamps.get(*dimension).is_some_and(|lamp| lamp.level != Level::Down);
        let ready = self.0.needed.iter().all(works) && !self.is_draining();
        self.0.ready.send_if_modified(|is| std::mem::replace(is, ready) != ready);
        self.0.changes.send_modify(|changes| *changes += 1);
    }

    fn lamps(&self) -> MutexGuard<'_, BTreeMap<&'static str, Lamp>> {
        self.0.lamps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lamps() -> Lamps {
        Lamps::new(&["intake", "relay"], &["intake"], Duration::ZERO)
    }

    #[test]
    fn the_summary_says_what_is_not_well_and_the_worst_of_it_first() {
        let lamps = lamps();
        assert_eq!(lamps.summary().level, Level::Down);
        lamps.set("intake", Level::Ok, "listening", Duration::ZERO);
        lamps.set("relay", Level::Ok, "up", Duration::ZERO);
        assert_eq!(lamps.summary(), Summary { level: Level::Ok, words: "ready; all is well".to_owned() });
        lamps.set("intake", Level::Degraded, "the disk is slow", Duration::ZERO);
        lamps.set("relay", Level::Down, "away", Duration::ZERO);
        let words = "ready; relay down: away; intake degraded: the disk is slow".to_owned();
        assert_eq!(lamps.summary(), Summary { level: Level::Down, words });
        lamps.drain();
        assert!(lamps.summary().words.starts_with("draining; "));
        assert!(!lamps.is_ready());
    }

    #[test]
    fn an_age_is_that_of_the_level_and_new_words_are_a_change_all_the_same() {
        let lamps = lamps();
        let mut changes = lamps.watch_changes();
        assert!(lamps.set("relay", Level::Degraded, "away", Duration::from_secs(5)));
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        assert!(!lamps.set("relay", Level::Degraded, "away", Duration::from_secs(6)));
        assert!(!changes.has_changed().unwrap(), "nothing new was said");
        assert!(!lamps.set("relay", Level::Degraded, "still away", Duration::from_secs(7)));
        assert!(changes.has_changed().unwrap());
        assert_eq!(lamps.report()["relay"].since, Duration::from_secs(5));
    }
}

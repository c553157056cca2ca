//! How the gateway is, in four dimensions, each with words and an age.
//!
//! Whoever owns a dimension says how it is when that changes; the admin port and the gRPC health service only read. WAN
//! down is *degraded and ready*: the relay's lamp never makes the gateway unready. Draining is *not ready* first.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::metrics::{Dimension, Metrics};

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
pub struct Health(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    lamps: Mutex<BTreeMap<&'static str, Lamp>>,
    draining: watch::Sender<bool>,
    ready: watch::Sender<bool>,
    metrics: Metrics,
}

const ALL: [Dimension; 4] = [Dimension::Ingest, Dimension::Keys, Dimension::Relay, Dimension::Disk];

impl Health {
    /// Everything is down until somebody says otherwise.
    #[must_use]
    pub fn new(metrics: Metrics, now: Duration) -> Self {
        let start = || Lamp { level: Level::Down, words: "starting".to_owned(), since: now };
        let lamps = ALL.into_iter().map(|dimension| (dimension.name(), start())).collect();
        for dimension in ALL {
            metrics.health(dimension, false);
        }
        let (draining, ready) = (watch::Sender::new(false), watch::Sender::new(false));
        Self(Arc::new(Inner { lamps: Mutex::new(lamps), draining, ready, metrics }))
    }

    /// Says how a dimension is. True if its level has changed, which is when it is worth a line in the log.
    pub fn set(&self, dimension: Dimension, level: Level, words: impl Into<String>, now: Duration) -> bool {
        let mut lamps = self.lamps();
        let before = lamps.get(dimension.name()).map(|lamp| (lamp.level, lamp.since));
        let changed = before.is_none_or(|(was, _)| was != level);
        let since = if changed { now } else { before.map_or(now, |(_, since)| since) };
        lamps.insert(dimension.name(), Lamp { level, words: words.into(), since });
        drop(lamps);
        self.0.metrics.health(dimension, level == Level::Ok);
        self.reconsider();
        changed
    }

    /// From now on the gateway is not ready: whoever balances load goes elsewhere before the port closes.
    pub fn drain(&self) {
        self.0.draining.send_replace(true);
        self.reconsider();
    }

    /// Whether devices can be sent here.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        *self.0.ready.borrow()
    }

    /// Whether the gateway is stopping.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        *self.0.draining.borrow()
    }

    /// Follows readiness.
    #[must_use]
    pub fn watch_ready(&self) -> watch::Receiver<bool> {
        self.0.ready.subscribe()
    }

    /// All dimensions.
    #[must_use]
    pub fn report(&self) -> BTreeMap<&'static str, Lamp> {
        self.lamps().clone()
    }

    fn reconsider(&self) {
        let works = |dimension: Dimension| {
            self.lamps().get(dimension.name()).is_some_and(|lamp| lamp.level != Level::Down)
        };
        let serves = works(Dimension::Ingest) && works(Dimension::Keys) && works(Dimension::Disk);
        let ready = serves && !self.is_draining();
        self.0.ready.send_if_modified(|is| std::mem::replace(is, ready) != ready);
    }

    fn lamps(&self) -> MutexGuard<'_, BTreeMap<&'static str, Lamp>> {
        self.0.lamps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wan_down_is_degraded_and_ready_and_draining_is_not() {
        let health = Health::new(Metrics::new(), Duration::ZERO);
        assert!(!health.is_ready());
        for dimension in [Dimension::Ingest, Dimension::Keys, Dimension::Disk] {
            assert!(health.set(dimension, Level::Ok, "fine", Duration::from_secs(1)));
        }
        assert!(health.is_ready());
        assert!(!health.set(Dimension::Relay, Level::Down, "the far end is away", Duration::from_secs(9)));
        assert!(health.is_ready());
        assert_eq!(health.report()["relay"].since, Duration::ZERO);
        health.set(Dimension::Keys, Level::Degraded, "stale", Duration::from_secs(9));
        assert!(health.is_ready());
        health.drain();
        assert!(!health.is_ready());
    }
}

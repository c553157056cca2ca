//! How the gateway is, in four dimensions, each with words and an age.
//!
//! Whoever owns a dimension says how it is when that changes; the admin port and the gRPC health service only read. WAN
//! down is *degraded and ready*: the relay's lamp never makes the gateway unready. Draining is *not ready* first.

use std::collections::BTreeMap;
use std::time::Duration;

pub use pithead_hop::program::health::{Lamp, Lamps, Level, Summary};
use tokio::sync::watch;

use crate::metrics::{Dimension, Metrics};

/// Without these nobody is to be sent here.
const NEEDED: &[&str] = &["ingest", "keys", "disk"];

/// The lamps. Clones show the same ones.
#[derive(Debug, Clone)]
pub struct Health {
    lamps: Lamps,
    metrics: Metrics,
}

impl Health {
    /// Everything is down until somebody says otherwise.
    #[must_use]
    pub fn new(metrics: Metrics, now: Duration) -> Self {
        Self { lamps: Lamps::new(&Dimension::NAMES, NEEDED, now), metrics }
    }

    /// Says how a dimension is. True if its level has changed, which is when it is worth a line in the log.
    pub fn set(&self, dimension: Dimension, level: Level, words: impl Into<String>, now: Duration) -> bool {
        let changed = self.lamps.set(dimension.name(), level, words, now);
        self.metrics.health(dimension, level == Level::Ok, level == Level::Down);
        self.metrics.ready(self.is_ready());
        changed
    }

    /// From now on the gateway is not ready: whoever balances load goes elsewhere before the port closes.
    pub fn drain(&self) {
        self.lamps.drain();
        self.metrics.ready(false);
    }

    /// Whether devices can be sent here.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.lamps.is_ready()
    }

    /// Whether the gateway is stopping.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.lamps.is_draining()
    }

    /// Follows readiness.
    #[must_use]
    pub fn watch_ready(&self) -> watch::Receiver<bool> {
        self.lamps.watch_ready()
    }

    /// All dimensions.
    #[must_use]
    pub fn report(&self) -> BTreeMap<&'static str, Lamp> {
        self.lamps.report()
    }

    /// All of them in one sentence.
    #[must_use]
    pub fn summary(&self) -> Summary {
        self.lamps.summary()
    }

    /// The lamps themselves, for whoever follows them.
    #[must_use]
    pub fn lamps(&self) -> &Lamps {
        &self.lamps
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

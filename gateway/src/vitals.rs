//! What is looked at once a second and belongs to nobody else: rates, the forecast, the wall clock; and what certificates and the
//! configuration say of their age.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pithead_hop::program::clock;
use pithead_hop::program::disk::Room;
use pithead_hop::tls::Expiries;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::clock::{since_boot, wall_ms};
use crate::envelopes::spool::EnvelopeSpool;
use crate::metrics::Metrics;
use crate::rates::Rates;

/// How often.
const LOOK: Duration = Duration::from_secs(1);

/// See the module. Clones are the same.
#[derive(Debug, Clone)]
pub struct Vitals(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    rates: Rates,
    metrics: Metrics,
    data: PathBuf,
    trusted_clock: bool,
    steps: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    expiries: Expiries,
    loaded_at: Duration,
    last_reload_good: bool,
}

impl Vitals {
    /// Of a gateway that was configured just now. `data` is its data directory.
    #[must_use]
    pub fn new(metrics: Metrics, data: PathBuf, trusted_clock: bool, expiries: Expiries) -> Self {
        metrics.tls(&expiries);
        let state = State { expiries, loaded_at: since_boot(), last_reload_good: true };
        let (rates, steps, state) = (Rates::default(), AtomicU64::new(0), Mutex::new(state));
        Self(Arc::new(Inner { rates, metrics, data, trusted_clock, steps, state }))
    }

    /// What has come and gone lately.
    #[must_use]
    pub fn rates(&self) -> &Rates {
        &self.0.rates
    }

    /// A reload was done, with certificates of these ages; or it was refused, and what was in force is still.
    pub fn reloaded(&self, in_force: Option<Expiries>) {
        self.0.metrics.reloaded(in_force.is_some());
        let mut state = self.lock();
        state.last_reload_good = in_force.is_some();
        if let Some(expiries) = in_force {
            self.0.metrics.tls(&expiries);
            state.expiries = expiries;
            state.loaded_at = since_boot();
        }
    }

    /// Looks, until told to stop.
    pub async fn watch(self, spool: EnvelopeSpool, stop: CancellationToken) {
        let mut before: Option<(Duration, Duration)> = None;
        loop {
            let (at, wall) = (since_boot(), clock::wall());
            // A disk that hangs may hang whoever looks at it: not on a thread that serves.
            let (all, spool) = (self.clone(), spool.clone());
            let looked = tokio::task::spawn_blocking(move || {
                let (stats, available) = (spool.stats(), spool.available_bytes());
                all.0.rates.look(all.0.metrics.totals(&stats, available), at, wall_ms());
            });
            if before.is_some_and(|(then, wall_then)| clock::has_stepped(at, then, wall, wall_then)) {
                self.0.steps.fetch_add(1, Ordering::Relaxed);
                self.0.metrics.clock_stepped();
                tracing::warn!(
                    event = "clock.stepped",
                    "the wall clock was set; times of custody and screens follow it"
                );
            }
            before = Some((at, wall));
            tokio::select! {
                _ = looked => {}
                () = stop.cancelled() => return,
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Brings those metrics up to date that are looked at rather than counted. `issued_at` is when the statement in force was.
    pub fn measure(&self, spool: &EnvelopeSpool, issued_at: u64) {
        let metrics = &self.0.metrics;
        let committing_s = spool.busy_for().map_or(0.0, |busy| busy.as_secs_f64());
        metrics.spool_outlook(committing_s, self.0.rates.lately().full_in_s);
        metrics.clock(self.0.trusted_clock, issued_at.saturating_sub(clock::wall_s()));
        metrics.disk(&self.0.data);
    }

    /// `tls` on the status page.
    #[must_use]
    pub fn tls(&self) -> Value {
        let Expiries { own, client_ca, crl } = self.lock().expiries;
        let now = i64::try_from(clock::wall_s()).unwrap_or(i64::MAX);
        json!({
            "certificate_expires_at_s": own,
            "certificate_expires_in_s": own.map(|end| end.saturating_sub(now)),
            "client_ca_expires_at_s": client_ca,
            "crl_next_update_s": crl,
        })
    }

    /// `clock` on the status page.
    #[must_use]
    pub fn clock(&self, issued_at: u64) -> Value {
        json!({
            "trusted": self.0.trusted_clock,
            "behind_s": issued_at.saturating_sub(clock::wall_s()),
            "steps": self.0.steps.load(Ordering::Relaxed),
        })
    }

    /// `config` on the status page.
    #[must_use]
    pub fn config(&self) -> Value {
        let state = self.lock();
        json!({
            "loaded_s_ago": since_boot().saturating_sub(state.loaded_at).as_secs(),
            "last_reload": if state.last_reload_good { "ok" } else { "refused" },
        })
    }

    /// `disk` on the status page.
    #[must_use]
    pub fn disk(&self) -> Value {
        let room = Room::of(&self.0.data).ok();
        json!({
            "size_bytes": room.map(|room| room.size_bytes),
            "available_bytes": room.map(|room| room.available_bytes),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reload_that_was_refused_leaves_the_ages_of_what_is_in_force() {
        let expiries = Expiries { own: Some(7), client_ca: Some(8), crl: None };
        let metrics = Metrics::new();
        let vitals = Vitals::new(metrics.clone(), PathBuf::from("/"), false, expiries);
        vitals.reloaded(None);
        assert_eq!(vitals.config()["last_reload"], "refused");
        assert_eq!(vitals.tls()["certificate_expires_at_s"], 7);
        let page = metrics.page();
        assert!(page.contains("pithead_config_reloads_total{result=\"refused\"} 1"), "{page}");
        assert!(page.contains("pithead_config_last_reload_successful 0"), "{page}");
        vitals.reloaded(Some(Expiries { own: Some(9), ..expiries }));
        assert_eq!(
            (vitals.config()["last_reload"].clone(), vitals.tls()["certificate_expires_at_s"].clone()),
            ("ok".into(), 9.into())
        );
        let page = metrics.page();
        assert!(
            page.contains("pithead_tls_certificate_expires_timestamp_seconds{certificate=\"own\"} 9"),
            "{page}"
        );
        assert!(page.contains("pithead_config_last_reload_successful 1"), "{page}");
    }
}

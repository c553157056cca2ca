//! How many private operations a sender may cause.
//!
//! Anybody who may submit can mint EDKs, and each new one is a KMS call that is billed and counts against a quota that
//! the account shares with others. A hit in the cache costs nothing here.

use std::time::{Duration, Instant};

use pithead_sealing::{DeviceId, Site};
use serde::{Deserialize, Serialize};

use super::error::{BudgetOf, UnwrapError};

/// Who asks: the device that the context names, and who brought the envelope here.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Sender {
    /// The site of both: names of devices and gateways are a site's own.
    pub site: Site,
    /// The device named in the context.
    pub device: DeviceId,
    /// The authenticated name of the gateway, if one brought it.
    pub gateway: Option<String>,
}

/// `[unwrap.budgets]`: rates (per second) and bursts. A burst is what a sender that was away may catch up with at once.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Budgets {
    /// Per device: a session lasts 15 minutes, so that ten a second is an outbox being drained.
    pub device_per_s: f64,
    /// See [`Budgets::device_per_s`].
    pub device_burst: u32,
    /// Per gateway.
    pub gateway_per_s: f64,
    /// A gateway whose link was down for days.
    pub gateway_burst: u32,
    /// All: half of the 1,000/s that one account and region have for RSA operations.
    pub total_per_s: f64,
    /// See [`Budgets::total_per_s`].
    pub total_burst: u32,
}

impl Default for Budgets {
    fn default() -> Self {
        Self {
            device_per_s: 10.0,
            device_burst: 50,
            gateway_per_s: 50.0,
            gateway_burst: 5_000,
            total_per_s: 500.0,
            total_burst: 500,
        }
    }
}

impl Budgets {
    /// The key of one that would let nobody through, if there is one.
    #[must_use]
    pub fn unfit(&self) -> Option<&'static str> {
        let rates = [
            ("device_per_s", self.device_per_s),
            ("gateway_per_s", self.gateway_per_s),
            ("total_per_s", self.total_per_s),
        ];
        let bursts = [
            ("device_burst", self.device_burst),
            ("gateway_burst", self.gateway_burst),
            ("total_burst", self.total_burst),
        ];
        let rate = rates.into_iter().find(|(_, rate)| !rate.is_finite() || *rate <= 0.0).map(|(key, _)| key);
        rate.or_else(|| bursts.into_iter().find(|(_, burst)| *burst == 0).map(|(key, _)| key))
    }
}

/// Most senders that are remembered. One that is forgotten begins again with a full burst, which the gateway's and
/// the total budget still bound.
pub(super) const MAX_SENDERS: u64 = 100_000;

/// A token bucket. Pure: time is an argument.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    per_s: f64,
    burst: f64,
    tokens: f64,
    at: Instant,
}

impl Bucket {
    pub(super) fn full(per_s: f64, burst: u32, now: Instant) -> Bucket {
        Bucket { per_s, burst: f64::from(burst), tokens: f64::from(burst), at: now }
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + elapsed * self.per_s).min(self.burst);
        self.at = self.at.max(now);
    }

    /// Whether a token is there; else how long until one is.
    fn ready(&mut self, now: Instant) -> Result<(), Duration> {
        self.refill(now);
        if self.tokens >= 1.0 {
            return Ok(());
        }
        let wait = if self.per_s > 0.0 { (1.0 - self.tokens) / self.per_s } else { MAX_WAIT.as_secs_f64() };
        Err(Duration::try_from_secs_f64(wait).unwrap_or(MAX_WAIT).min(MAX_WAIT))
    }
}

const MAX_WAIT: Duration = Duration::from_secs(3600);

/// Takes one token out of each bucket, or none out of any: a sender that is refused for one budget must not drain the
/// others, which are somebody else's too.
pub(super) fn take(buckets: &mut [(BudgetOf, &mut Bucket)], now: Instant) -> Result<(), UnwrapError> {
    for (whose, bucket) in buckets.iter_mut() {
        if let Err(retry_after) = bucket.ready(now) {
            return Err(UnwrapError::Budget { whose: *whose, retry_after });
        }
    }
    for (_, bucket) in buckets {
        bucket.tokens -= 1.0;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_burst_is_served_then_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::full(10.0, 3, start);
        let mut take_at =
            |ms: u64| take(&mut [(BudgetOf::Device, &mut bucket)], start + Duration::from_millis(ms));
        assert!((0..3).all(|_| take_at(0).is_ok()));
        let UnwrapError::Budget { whose, retry_after } = take_at(0).unwrap_err() else {
            panic!("not a budget")
        };
        assert_eq!(whose, BudgetOf::Device);
        assert!((99..=100).contains(&retry_after.as_millis()), "{retry_after:?}");
        assert!(take_at(50).is_err());
        assert!(take_at(101).is_ok());
        assert!(take_at(102).is_err());
        assert!((0..3).all(|_| take_at(10_000).is_ok()), "no more than the burst is saved up");
        assert!(take_at(10_000).is_err());
    }

    #[test]
    fn a_refusal_takes_nothing_from_the_other_budgets() {
        let now = Instant::now();
        let (mut device, mut gateway) = (Bucket::full(1.0, 1, now), Bucket::full(1.0, 2, now));
        let mut ask = || take(&mut [(BudgetOf::Device, &mut device), (BudgetOf::Gateway, &mut gateway)], now);
        assert!(ask().is_ok());
        assert!((0..10).all(|_| ask().is_err()));
        assert!(
            take(&mut [(BudgetOf::Gateway, &mut gateway)], now).is_ok(),
            "the other token is still there"
        );
    }

    #[test]
    fn a_clock_that_steps_back_mints_nothing() {
        let late = Instant::now() + Duration::from_secs(100);
        let mut bucket = Bucket::full(1.0, 1, late);
        assert!(take(&mut [(BudgetOf::Total, &mut bucket)], late).is_ok());
        assert!(take(&mut [(BudgetOf::Total, &mut bucket)], late - Duration::from_secs(50)).is_err());
        assert!(take(&mut [(BudgetOf::Total, &mut bucket)], late).is_err());
    }
}

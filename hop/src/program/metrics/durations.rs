//! How long something took, counted between fixed bounds, without a lock: what is observed for every envelope has to cost nothing.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// For a promise of durability: from a quiet virtual disk (a quarter of a millisecond) to one that is in trouble.
pub const ACK_BOUNDS_S: &[f64] =
    &[0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.0, 8.0];
/// For a call of KMS, which ends after 8 s.
pub const KMS_BOUNDS_S: &[f64] = &[0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0];

/// A histogram of times. Clones count into the same one.
#[derive(Debug, Clone)]
pub struct Durations(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bounds_s: &'static [f64],
    /// One more than there are bounds.
    counts: Box<[AtomicU64]>,
    sum_us: AtomicU64,
}

/// What was counted up to one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Between the bounds, and above the last.
    pub counts: Box<[u64]>,
}

impl Durations {
    /// Between these bounds in seconds, ascending.
    #[must_use]
    pub fn new(bounds_s: &'static [f64]) -> Self {
        let counts = (0..=bounds_s.len()).map(|_| AtomicU64::new(0)).collect();
        Self(Arc::new(Inner { bounds_s, counts, sum_us: AtomicU64::new(0) }))
    }

    /// Something took this long.
    pub fn observe(&self, seconds: f64) {
        let at = self.0.bounds_s.partition_point(|bound| *bound < seconds);
        self.0.counts[at].fetch_add(1, Ordering::Relaxed);
        self.0.sum_us.fetch_add((seconds.max(0.0) * 1e6) as u64, Ordering::Relaxed);
    }

    /// Something took this long.
    pub fn took(&self, time: Duration) {
        self.observe(time.as_secs_f64());
    }

    /// Takes over what another part has counted between the same bounds; `sum_us` is the time of all of it.
    pub fn adopt(&self, counts: &[u64], sum_us: u64) {
        for (here, there) in self.0.counts.iter().zip(counts) {
            here.store(*there, Ordering::Relaxed);
        }
        self.0.sum_us.store(sum_us, Ordering::Relaxed);
    }

    /// As it stands.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { counts: self.0.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect() }
    }

    /// The bounds.
    #[must_use]
    pub fn bounds_s(&self) -> &'static [f64] {
        self.0.bounds_s
    }
}

impl Snapshot {
    /// The time within which this share (0 to 1) of what was counted since `before` was done: the bound above it, since nothing
    /// finer is known. Nothing if nothing was counted; the largest bound for what took longer than all.
    #[must_use]
    pub fn quantile_since(&self, before: &Self, share: f64, bounds_s: &[f64]) -> Option<f64> {
        let counts = self.counts.iter().zip(&before.counts).map(|(now, then)| now.saturating_sub(*then));
        let all: u64 = counts.clone().sum();
        if all == 0 {
            return None;
        }
        let wanted = (all as f64 * share).ceil() as u64;
        let mut seen = 0;
        let at = counts.take_while(|count| {
            seen += count;
            seen < wanted
        });
        let at = at.count();
        bounds_s.get(at).or(bounds_s.last()).copied()
    }
}

impl TypedMetric for Durations {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Durations {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        encode(&mut encoder, self.0.bounds_s, &self.snapshot().counts, self.0.sum_us.load(Ordering::Relaxed))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

/// Histograms by one label. Clones count into the same ones.
#[derive(Debug, Clone)]
pub struct DurationsBy {
    label: &'static str,
    series: Arc<Mutex<Vec<(&'static str, Durations)>>>,
}

impl DurationsBy {
    /// One for each of these values.
    #[must_use]
    pub fn new(label: &'static str, values: &[&'static str], bounds_s: &'static [f64]) -> Self {
        let series = values.iter().map(|value| (*value, Durations::new(bounds_s))).collect();
        Self { label, series: Arc::new(Mutex::new(series)) }
    }

    /// From now on this value is what is counted there.
    pub fn watch(&self, value: &'static str, durations: &Durations) {
        let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, shown)) = series.iter_mut().find(|(known, _)| *known == value) {
            *shown = durations.clone();
        }
    }
}

impl EncodeMetric for DurationsBy {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        for (value, times) in self.series.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let label = [(self.label, *value)];
            times.encode(encoder.encode_family(&label)?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

/// Writes a histogram of these counts.
pub(super) fn encode(
    encoder: &mut MetricEncoder<'_>,
    bounds_s: &[f64],
    counts: &[u64],
    sum_us: u64,
) -> Result<(), fmt::Error> {
    let bounds = bounds_s.iter().copied().chain([f64::INFINITY]);
    let buckets: Vec<(f64, u64)> = bounds.zip(counts.iter().copied()).collect();
    encoder.encode_histogram::<NoLabelSet>(sum_us as f64 / 1e6, counts.iter().sum(), &buckets, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_of_what_came_since_and_of_nothing_there_is_none() {
        let times = Durations::new(&[0.001, 0.01, 0.1]);
        (0..100).for_each(|_| times.observe(0.05));
        let before = times.snapshot();
        let quantile = |share| times.snapshot().quantile_since(&before, share, times.bounds_s());
        assert_eq!(quantile(0.5), None);
        (0..98).for_each(|_| times.observe(0.0005));
        (0..2).for_each(|_| times.observe(7.0));
        assert_eq!(quantile(0.5), Some(0.001));
        assert_eq!(quantile(0.98), Some(0.001));
        assert_eq!(quantile(0.99), Some(0.1), "longer than all bounds is said as the last");
    }

    #[test]
    fn a_time_on_a_bound_lies_below_it() {
        let times = Durations::new(&[0.5, 1.0]);
        [0.5, 0.6, 1.0, 1.1].into_iter().for_each(|seconds| times.observe(seconds));
        assert_eq!(*times.snapshot().counts, [1, 2, 1]);
    }
}

//! What has come and gone lately: rates and latencies of the last minute, the last day minute by minute, and when the disk will
//! be full if it goes on like this.
//!
//! Once a second somebody hands in the totals ([`Rates::look`]); everything here is the difference of two of them. Memory is
//! bounded: a quarter of an hour of seconds, and a day of minutes.
//!
//! ```text
//! seconds  900 samples   rates over the last 60, the forecast over all
//! minutes  1,440 points  what the plots are drawn from
//! ```

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pithead_hop::program::metrics::{ACK_BOUNDS_S, Snapshot};
use serde_json::{Value, json};

/// Rates and latencies are those of this long.
pub const WINDOW: Duration = Duration::from_secs(60);
/// The forecast looks back this far, and at least this far.
pub const FORECAST: Duration = Duration::from_secs(900);
const FORECAST_MIN: Duration = Duration::from_secs(30);
/// What would take longer than this is no forecast.
const FORECAST_MAX_S: f64 = 366.0 * 86_400.0;
/// A sample a second for [`FORECAST`], and one for the second before.
const SAMPLES: usize = 901;
/// A day.
const POINTS: usize = 1_440;
const POINT_EVERY: Duration = Duration::from_secs(60);

/// Everything that is totalled, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Totals {
    /// Envelopes that were made durable.
    pub in_envelopes: u64,
    /// Their bytes.
    pub in_bytes: u64,
    /// Envelopes that the far end has answered.
    pub out_envelopes: u64,
    /// Their bytes.
    pub out_bytes: u64,
    /// How long devices waited for durability.
    pub acks: Snapshot,
    /// Records that wait.
    pub records: u64,
    /// Bytes of the spool that nobody else can have.
    pub used_bytes: u64,
    /// Bytes of the spool that are left.
    pub available_bytes: u64,
    /// The far end takes envelopes.
    pub relay_up: bool,
}

/// One minute of the day.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Its end, in milliseconds since 1970.
    pub at_ms: u64,
    /// Records that waited at its end.
    pub records: u64,
    /// Bytes of the spool that were in use at its end.
    pub used_bytes: u64,
    /// Envelopes per second that came.
    pub in_per_s: f64,
    /// Envelopes per second that went.
    pub out_per_s: f64,
    /// Share of the minute (0 to 1) for which the far end took envelopes.
    pub relay_up: f64,
    /// The time within which 99 of 100 envelopes were durable, in seconds.
    pub ack_p99_s: Option<f64>,
}

/// The last minute, and the forecast.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Lately {
    /// Over how many seconds: fewer than 60 just after the start.
    pub window_s: f64,
    /// Envelopes per second that came, and were made durable.
    pub in_envelopes_per_s: f64,
    /// Bytes per second that came.
    pub in_bytes_per_s: f64,
    /// Envelopes per second that went.
    pub out_envelopes_per_s: f64,
    /// Bytes per second that went.
    pub out_bytes_per_s: f64,
    /// The time within which half of the envelopes were durable, in seconds; nothing if none came.
    pub ack_p50_s: Option<f64>,
    /// The time within which 99 of 100 were.
    pub ack_p99_s: Option<f64>,
    /// Bytes per second by which what is used of the spool grows; negative while it shrinks.
    pub growth_bytes_per_s: f64,
    /// When the spool is full if it goes on like this, in seconds; nothing if it does not grow, or not within a year.
    pub full_in_s: Option<f64>,
}

#[derive(Debug)]
struct Seen {
    at: Duration,
    totals: Totals,
}

#[derive(Debug, Default)]
struct State {
    /// Oldest first.
    seconds: VecDeque<Seen>,
    minutes: VecDeque<Point>,
    /// Where the minute that is under way began, and how many of its looks saw the relay up, of how many.
    minute: Option<Minute>,
}

#[derive(Debug)]
struct Minute {
    began: Duration,
    totals: Totals,
    up: u32,
    looks: u32,
}

/// See the module. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Rates(Arc<Mutex<State>>);

impl Rates {
    /// The totals as they stand, at this operating time; `at_ms` is the wall clock's, for the plots alone.
    pub fn look(&self, totals: Totals, at: Duration, at_ms: u64) {
        let mut state = self.lock();
        let minute = state.minute.get_or_insert_with(|| Minute::at(at, totals.clone()));
        minute.looks += 1;
        minute.up += u32::from(totals.relay_up);
        if at.saturating_sub(minute.began) >= POINT_EVERY {
            let point = minute.ends(&totals, at, at_ms);
            *minute = Minute::at(at, totals.clone());
            if state.minutes.len() == POINTS {
                state.minutes.pop_front();
            }
            state.minutes.push_back(point);
        }
        if state.seconds.len() == SAMPLES {
            state.seconds.pop_front();
        }
        state.seconds.push_back(Seen { at, totals });
    }

    /// The last minute, and the forecast.
    #[must_use]
    pub fn lately(&self) -> Lately {
        let state = self.lock();
        let Some(now) = state.seconds.back() else { return Lately::default() };
        let since = |span: Duration| state.seconds.iter().find(|seen| now.at.saturating_sub(seen.at) <= span);
        let Some(then) = since(WINDOW) else { return Lately::default() };
        let window_s = now.at.saturating_sub(then.at).as_secs_f64();
        if window_s == 0.0 {
            return Lately::default();
        }
        let rate =
            |of: fn(&Totals) -> u64| of(&now.totals).saturating_sub(of(&then.totals)) as f64 / window_s;
        let ack = |share| now.totals.acks.quantile_since(&then.totals.acks, share, ACK_BOUNDS_S);
        let (growth_bytes_per_s, full_in_s) = since(FORECAST).map_or((0.0, None), |then| forecast(then, now));
        Lately {
            window_s,
            in_envelopes_per_s: rate(|totals| totals.in_envelopes),
            in_bytes_per_s: rate(|totals| totals.in_bytes),
            out_envelopes_per_s: rate(|totals| totals.out_envelopes),
            out_bytes_per_s: rate(|totals| totals.out_bytes),
            ack_p50_s: ack(0.5),
            ack_p99_s: ack(0.99),
            growth_bytes_per_s,
            full_in_s,
        }
    }

    /// The last day, minute by minute, oldest first. A minute is there when it is over.
    #[must_use]
    pub fn day(&self) -> Vec<Point> {
        self.lock().minutes.iter().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// By how much what is used of the spool grows, and when nothing of it is left. What is used comes and goes by whole segments,
/// so it says that the spool fills only where more waits than did.
fn forecast(then: &Seen, now: &Seen) -> (f64, Option<f64>) {
    let span = now.at.saturating_sub(then.at);
    if span < FORECAST_MIN {
        return (0.0, None);
    }
    let (before, after) = (&then.totals, &now.totals);
    let growth = (after.used_bytes as f64 - before.used_bytes as f64) / span.as_secs_f64();
    let fills = growth > 0.0 && after.records > before.records;
    let full_in_s = fills.then(|| after.available_bytes as f64 / growth).filter(|s| *s <= FORECAST_MAX_S);
    (growth, full_in_s)
}

impl Minute {
    fn at(began: Duration, totals: Totals) -> Self {
        Self { began, totals, up: 0, looks: 0 }
    }

    fn ends(&self, totals: &Totals, at: Duration, at_ms: u64) -> Point {
        let seconds = at.saturating_sub(self.began).as_secs_f64();
        let per_s = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
        Point {
            at_ms,
            records: totals.records,
            used_bytes: totals.used_bytes,
            in_per_s: per_s(totals.in_envelopes, self.totals.in_envelopes),
            out_per_s: per_s(totals.out_envelopes, self.totals.out_envelopes),
            relay_up: f64::from(self.up) / f64::from(self.looks.max(1)),
            ack_p99_s: totals.acks.quantile_since(&self.totals.acks, 0.99, ACK_BOUNDS_S),
        }
    }
}

impl Lately {
    /// For status pages.
    #[must_use]
    pub fn as_json(&self) -> Value {
        let ms = |seconds: Option<f64>| seconds.map(|seconds| seconds * 1000.0);
        json!({
            "window_s": self.window_s.round() as u64,
            "in_envelopes_per_s": rounded(self.in_envelopes_per_s),
            "in_bytes_per_s": self.in_bytes_per_s.round() as u64,
            "out_envelopes_per_s": rounded(self.out_envelopes_per_s),
            "out_bytes_per_s": self.out_bytes_per_s.round() as u64,
            "ack_p50_ms": ms(self.ack_p50_s),
            "ack_p99_ms": ms(self.ack_p99_s),
        })
    }
}

fn rounded(rate: f64) -> f64 {
    (rate * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use pithead_hop::program::metrics::Durations;

    const MIB: u64 = 1 << 20;

    fn totals(records: u64, used_bytes: u64) -> Totals {
        Totals {
            in_envelopes: 0,
            in_bytes: 0,
            out_envelopes: 0,
            out_bytes: 0,
            acks: Durations::new(ACK_BOUNDS_S).snapshot(),
            records,
            used_bytes,
            available_bytes: 1000 * MIB - used_bytes,
            relay_up: false,
        }
    }

    #[test]
    fn rates_are_those_of_the_last_minute_and_a_quiet_one_has_no_latency() {
        let rates = Rates::default();
        assert_eq!(rates.lately(), Lately::default());
        let acks = Durations::new(ACK_BOUNDS_S);
        for second in 0..=300_u64 {
            // 100 a second for four minutes, then nothing.
            let came = second.min(240) * 100;
            if second <= 240 {
                (0..100).for_each(|number| acks.observe(if number < 2 { 0.05 } else { 0.0007 }));
            }
            let totals =
                Totals { in_envelopes: came, in_bytes: came * 400, acks: acks.snapshot(), ..totals(0, 0) };
            rates.look(totals, Duration::from_secs(second), second * 1000);
            if second == 200 {
                let lately = rates.lately();
                assert_eq!((lately.window_s, lately.in_envelopes_per_s), (60.0, 100.0));
                assert_eq!((lately.in_bytes_per_s, lately.out_bytes_per_s), (40_000.0, 0.0));
                assert_eq!((lately.ack_p50_s, lately.ack_p99_s), (Some(0.001), Some(0.064)));
            }
        }
        let lately = rates.lately();
        assert_eq!((lately.in_envelopes_per_s, lately.ack_p50_s, lately.ack_p99_s), (0.0, None, None));
        let day = rates.day();
        let rates: Vec<f64> = day.iter().map(|point| point.in_per_s).collect();
        assert_eq!(rates, [100.0, 100.0, 100.0, 100.0, 0.0]);
        assert_eq!((day[0].at_ms, day[0].ack_p99_s, day[4].ack_p99_s), (60_000, Some(0.064), None));
    }

    #[test]
    fn a_backlog_that_grows_fills_the_disk_at_a_time_and_one_that_drains_never_does() {
        let rates = Rates::default();
        for second in 0..=600 {
            rates.look(totals(second * 10, second * MIB / 2), Duration::from_secs(second), 0);
            if second == FORECAST_MIN.as_secs() - 1 {
                assert_eq!(rates.lately().full_in_s, None, "too early to tell");
            }
        }
        let lately = rates.lately();
        assert_eq!(lately.growth_bytes_per_s, MIB as f64 / 2.0);
        assert_eq!(lately.full_in_s, Some(1400.0), "700 MiB at half a MiB a second");
        // It drains, for longer than it has grown.
        for second in 601..=1600_u64 {
            let left = 6000_u64.saturating_sub((second - 600) * 20);
            rates.look(totals(left, left * MIB / 20), Duration::from_secs(second), 0);
        }
        assert_eq!(rates.lately().full_in_s, None);
    }

    #[test]
    fn segments_that_come_and_go_while_nothing_more_waits_are_no_forecast() {
        let rates = Rates::default();
        for second in 0..=100 {
            rates.look(totals(3, second * MIB), Duration::from_secs(second), 0);
        }
        assert_eq!(rates.lately().full_in_s, None);
    }

    #[test]
    fn a_day_is_kept_and_no_more() {
        let rates = Rates::default();
        for minute in 0..2_000_u64 {
            let up = Totals { relay_up: minute % 2 == 0, ..totals(minute, 0) };
            rates.look(up, Duration::from_secs(minute * 60), minute);
        }
        let day = rates.day();
        assert_eq!((day.len(), day.last().map(|point| point.at_ms)), (POINTS, Some(1_999)));
        assert!(rates.lock().seconds.len() <= SAMPLES);
    }
}

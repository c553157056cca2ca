//! The running gateway, read once over its admin port: its state, its numbers, who is there. Two readings make rates.

use std::time::Instant;

use pithead_hop::program::ProgramError;
use pithead_hop::program::admin::AdminAddress;
use serde_json::Value;

use super::admin_client;

/// What the gateway said at one moment.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    /// When it was asked.
    pub(super) at: Instant,
    /// `/statusz`
    pub(super) status: Value,
    /// `/metrics`
    pub(super) numbers: Numbers,
    /// `/devices`
    pub(super) devices: Value,
}

impl Reading {
    /// Asks for all of it.
    ///
    /// # Errors
    /// When nobody answers.
    pub(super) fn take(admin: &AdminAddress) -> Result<Self, ProgramError> {
        let at = Instant::now();
        let status = admin_client::statusz(admin)?;
        let numbers = Numbers::parse(&admin_client::get(admin, "/metrics")?);
        let devices = admin_client::devices(admin).unwrap_or_default();
        Ok(Self { at, status, numbers, devices })
    }
}

/// A page of metrics: name, labels, value.
#[derive(Debug, Clone, Default)]
pub(super) struct Numbers(Vec<(String, String, f64)>);

impl Numbers {
    /// Reads the OpenMetrics text. Lines that are none are left out.
    pub(super) fn parse(page: &str) -> Self {
        let line = |line: &str| {
            let line = line.split(" # ").next().unwrap_or(line);
            if line.starts_with('#') {
                return None;
            }
            let (name, value) = line.rsplit_once(' ')?;
            let (name, labels) = name.split_once('{').unwrap_or((name, ""));
            Some((name.to_owned(), labels.trim_end_matches('}').to_owned(), value.parse().ok()?))
        };
        Self(page.lines().filter_map(line).collect())
    }

    /// The sum over all labels; none if there is no such metric.
    pub(super) fn sum(&self, name: &str) -> Option<f64> {
        let mut found = self.0.iter().filter(|(one, ..)| one == name).map(|(.., value)| value).peekable();
        found.peek()?;
        Some(found.sum())
    }

    /// The sum of those with a label; 0 if there is none.
    pub(super) fn with(&self, name: &str, label: &str) -> f64 {
        let found =
            self.0.iter().filter(|(one, labels, _)| one == name && labels.split(',').any(|one| one == label));
        found.map(|(.., value)| value).sum()
    }

    /// Upper bounds and counts of a histogram, in order.
    fn buckets(&self, name: &str) -> Vec<(f64, f64)> {
        let name = format!("{name}_bucket");
        let bound = |labels: &str| {
            let text = labels.split(',').find_map(|label| label.strip_prefix("le=\""))?.trim_end_matches('"');
            if text == "+Inf" { Some(f64::INFINITY) } else { text.parse().ok() }
        };
        let found = self.0.iter().filter(|(one, ..)| *one == name);
        found.filter_map(|(_, labels, count)| Some((bound(labels)?, *count))).collect()
    }
}

/// What came and went between two readings.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rates {
    /// Envelopes a second that devices were acknowledged.
    pub(super) in_envelopes: f64,
    /// Their bytes.
    pub(super) in_bytes: f64,
    /// Envelopes a second that the far end has answered.
    pub(super) out_envelopes: f64,
    /// Their bytes.
    pub(super) out_bytes: f64,
    /// Half of the acknowledgements took at most so many seconds, and 99 of 100; none if there were none.
    pub(super) ack_s: Option<(f64, f64)>,
}

const STORED: &str = "pithead_ingest_stored_bytes_total";
const ACKNOWLEDGED: &str = "pithead_relay_acknowledged_bytes_total";
const DURABLE: &str = "pithead_ingest_durable_seconds";
const ENVELOPES: &str = "pithead_ingest_envelopes_total";
const RELAYED: &str = "pithead_relay_envelopes_total";

impl Rates {
    /// Between two readings; none if they are of one moment, or the gateway has begun anew in between.
    pub(super) fn between(before: &Reading, after: &Reading) -> Option<Self> {
        let took = after.at.saturating_duration_since(before.at).as_secs_f64();
        let up = |reading: &Reading| reading.status["uptime_s"].as_u64();
        if took < 0.05 || up(after) < up(before) {
            return None;
        }
        Some(Self::of(&before.numbers, &after.numbers, took))
    }

    fn of(before: &Numbers, after: &Numbers, took_s: f64) -> Self {
        let rate = |now: f64, then: f64| (now - then).max(0.0) / took_s;
        let sum = |name: &str| rate(after.sum(name).unwrap_or(0.0), before.sum(name).unwrap_or(0.0));
        let stored = "outcome=\"stored\"";
        Self {
            in_envelopes: rate(after.with(ENVELOPES, stored), before.with(ENVELOPES, stored)),
            in_bytes: sum(STORED),
            out_envelopes: sum(RELAYED),
            out_bytes: sum(ACKNOWLEDGED),
            ack_s: quantiles(&before.buckets(DURABLE), &after.buckets(DURABLE)),
        }
    }
}

/// The upper bounds under which half and 99 of 100 of what came in between lie.
fn quantiles(before: &[(f64, f64)], after: &[(f64, f64)]) -> Option<(f64, f64)> {
    let came: Vec<(f64, f64)> = after
        .iter()
        .map(|(bound, count)| {
            let then = before.iter().find(|(one, _)| one == bound).map_or(0.0, |(_, count)| *count);
            (*bound, (count - then).max(0.0))
        })
        .collect();
    let all = came.last().map(|(_, count)| *count).filter(|count| *count > 0.0)?;
    let under = |share: f64| came.iter().find(|(_, count)| *count >= all * share).map(|(bound, _)| *bound);
    Some((under(0.5)?, under(0.99)?))
}

/// Bytes a second that have come in since the start, in the long run; none if nothing has.
pub(super) fn since_start(reading: &Reading) -> Option<f64> {
    let (stored, up) = (reading.numbers.sum(STORED)?, reading.status["uptime_s"].as_f64()?);
    (stored > 0.0 && up >= 1.0).then_some(stored / up)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(stored: u64, bytes: u64, fast: u64, slow: u64) -> Numbers {
        Numbers::parse(&format!(
            "# HELP pithead_ingest_envelopes Envelopes\n\
             pithead_ingest_envelopes_total{{outcome=\"stored\"}} {stored}\n\
             pithead_ingest_envelopes_total{{outcome=\"conflict\"}} 2\n\
             pithead_ingest_stored_bytes_total {bytes} # {{trace_id=\"a\"}} 1.0\n\
             pithead_ingest_durable_seconds_bucket{{le=\"0.001\"}} {fast}\n\
             pithead_ingest_durable_seconds_bucket{{le=\"0.25\"}} {slow}\n\
             pithead_ingest_durable_seconds_bucket{{le=\"+Inf\"}} {slow}\nrubbish\n# EOF\n"
        ))
    }

    #[test]
    fn two_readings_make_rates_and_latencies() {
        let (before, after) = (page(10, 1_000, 5, 10), page(30, 5_000, 22, 30));
        let rates = Rates::of(&before, &after, 2.0);
        assert_eq!((rates.in_envelopes, rates.in_bytes, rates.out_bytes), (10.0, 2_000.0, 0.0));
        assert_eq!(rates.ack_s, Some((0.001, 0.25)));
        assert_eq!(Rates::of(&after, &after, 2.0).ack_s, None);
        assert_eq!(after.with("pithead_ingest_envelopes_total", "outcome=\"conflict\""), 2.0);
        assert_eq!((after.sum("pithead_no_such"), after.sum(STORED)), (None, Some(5_000.0)));
    }

    #[test]
    fn a_gateway_that_has_begun_anew_has_no_rate() {
        let reading = |up: u64, after_ms: u64| Reading {
            at: Instant::now() + std::time::Duration::from_millis(after_ms),
            status: serde_json::json!({ "uptime_s": up }),
            numbers: page(1, 1, 1, 1),
            devices: Value::Null,
        };
        assert!(Rates::between(&reading(9, 0), &reading(10, 1000)).is_some());
        assert!(Rates::between(&reading(9, 0), &reading(0, 1000)).is_none());
        assert!(Rates::between(&reading(9, 0), &reading(9, 0)).is_none());
        assert_eq!(since_start(&reading(10, 0)), Some(0.1));
        assert_eq!(since_start(&reading(0, 0)), None);
    }
}

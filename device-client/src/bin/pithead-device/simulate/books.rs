//! The books of the fleet: what came in and where it is, and whether the two are the same.
//!
//! ```text
//! records:    attempted = recorded + refused            recorded = held (on the vehicle's disk)
//! envelopes:  waiting before + sealed = stored + duplicates + conflicts + refused + lost + dropped + waiting
//! ```
//!
//! An envelope that was given up while it was under way may arrive all the same; then it is on both sides of that, and the
//! books count it as dropped too late. More of those than were dropped is an error like any other.

use std::time::Duration;

use pithead_device_client::client::Status;
use serde_json::{Value, json};

/// Latencies kept, of all vehicles: some hours of a large fleet. Beyond them samples are counted and not kept.
const SAMPLES_MAX: usize = 1_000_000;
/// Vehicles named whose books are wrong.
const NAMED_MAX: usize = 10;

/// One vehicle's, or the sums over all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ledger {
    /// Records and files that were handed to the client.
    pub(super) attempted: u64,
    pub(super) recorded: u64,
    pub(super) refused: u64,
    pub(super) held: u64,
    pub(super) payload_bytes: u64,
    /// Envelopes.
    pub(super) before: u64,
    pub(super) sealed: u64,
    pub(super) sealed_bytes: u64,
    pub(super) stored: u64,
    pub(super) duplicates: u64,
    pub(super) resumed: u64,
    pub(super) conflicts: u64,
    pub(super) refused_envelopes: u64,
    pub(super) lost: u64,
    pub(super) dropped: u64,
    pub(super) dropped_records: u64,
    pub(super) waiting: u64,
    pub(super) heartbeats: u64,
    pub(super) sessions: u64,
    pub(super) connections: u64,
}

impl Ledger {
    /// Of a client that was closed. `before` is what waited when it was opened.
    pub(super) fn of(status: &Status, attempted: u64, before: u64) -> Self {
        let mut ledger = Self {
            attempted,
            before,
            heartbeats: status.heartbeats,
            sessions: status.sessions,
            connections: status.connections,
            ..Self::default()
        };
        for stream in status.streams.values() {
            ledger.recorded += stream.recorded;
            ledger.refused += stream.refused;
            ledger.held += stream.held;
            ledger.payload_bytes += stream.recorded_bytes;
            ledger.sealed += stream.sealed;
            ledger.sealed_bytes += stream.sealed_bytes;
            ledger.stored += stream.settled.stored;
            ledger.duplicates += stream.settled.duplicates;
            ledger.resumed += stream.settled.resumed;
            ledger.conflicts += stream.settled.conflicts;
            ledger.refused_envelopes += stream.settled.refused;
            ledger.lost += stream.settled.lost;
            ledger.dropped += stream.dropped_envelopes;
            ledger.dropped_records += stream.dropped_records;
            ledger.waiting += stream.waiting;
        }
        ledger
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (sum, more) in [
            (&mut self.attempted, other.attempted),
            (&mut self.recorded, other.recorded),
            (&mut self.refused, other.refused),
            (&mut self.held, other.held),
            (&mut self.payload_bytes, other.payload_bytes),
            (&mut self.before, other.before),
            (&mut self.sealed, other.sealed),
            (&mut self.sealed_bytes, other.sealed_bytes),
            (&mut self.stored, other.stored),
            (&mut self.duplicates, other.duplicates),
            (&mut self.resumed, other.resumed),
            (&mut self.conflicts, other.conflicts),
            (&mut self.refused_envelopes, other.refused_envelopes),
            (&mut self.lost, other.lost),
            (&mut self.dropped, other.dropped),
            (&mut self.dropped_records, other.dropped_records),
            (&mut self.waiting, other.waiting),
            (&mut self.heartbeats, other.heartbeats),
            (&mut self.sessions, other.sessions),
            (&mut self.connections, other.connections),
        ] {
            *sum += more;
        }
    }

    /// Envelopes that a gateway has.
    pub(super) fn delivered(&self) -> u64 {
        self.stored + self.duplicates
    }

    /// Envelopes that were given up and arrived all the same.
    pub(super) fn dropped_too_late(&self) -> u64 {
        self.out().saturating_sub(self.before + self.sealed)
    }

    fn out(&self) -> u64 {
        self.delivered() + self.conflicts + self.refused_envelopes + self.lost + self.dropped + self.waiting
    }

    /// What does not balance, in a sentence each.
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.attempted != self.recorded + self.refused {
            let Self { attempted, recorded, refused, .. } = self;
            faults.push(format!(
                "{attempted} records were attempted, {recorded} recorded and {refused} refused"
            ));
        }
        if self.recorded != self.held {
            faults.push(format!(
                "{} records were recorded, and {} are or were on disk",
                self.recorded, self.held
            ));
        }
        let (came, out) = (self.before + self.sealed, self.out());
        if out < came || self.dropped_too_late() > self.dropped {
            faults
                .push(format!("{came} envelopes were sealed or waited before, and {out} are accounted for"));
        }
        faults
    }

    pub(super) fn object(&self) -> Value {
        json!({
            "attempted": self.attempted,
            "recorded": self.recorded,
            "refused": self.refused,
            "held": self.held,
            "payload_bytes": self.payload_bytes,
            "waited_before": self.before,
            "sealed": self.sealed,
            "sealed_bytes": self.sealed_bytes,
            "delivered": self.delivered(),
            "duplicates": self.duplicates,
            "resumed": self.resumed,
            "conflicts": self.conflicts,
            "refused_envelopes": self.refused_envelopes,
            "lost": self.lost,
            "dropped": self.dropped,
            "dropped_records": self.dropped_records,
            "dropped_too_late": self.dropped_too_late(),
            "waiting": self.waiting,
            "heartbeats": self.heartbeats,
            "sessions": self.sessions,
        })
    }
}

/// The sums, and the vehicles whose books are wrong.
pub(super) fn faults(vehicles: &[(String, Ledger)]) -> Vec<String> {
    let wrong = vehicles
        .iter()
        .flat_map(|(name, ledger)| ledger.faults().into_iter().map(move |fault| format!("{name}: {fault}")));
    wrong.take(NAMED_MAX).collect()
}

/// How long samples took from the record to the gateway's acknowledgement of the envelope that it is in.
#[derive(Debug, Default)]
pub(super) struct Latencies {
    /// Of all samples, and of those that were recorded while there was a connection and answered before the next shadow. In
    /// microseconds.
    all: Vec<u32>,
    connected: Vec<u32>,
    /// Samples whose envelope was given up or refused: there is no acknowledgement of them to wait for.
    pub(super) void: u64,
    /// Samples without an acknowledgement at the end.
    pub(super) open: u64,
    /// Samples that were measured and not kept.
    pub(super) beyond: u64,
}

impl Latencies {
    pub(super) fn add(&mut self, took: Duration, connected: bool) {
        if self.all.len() >= SAMPLES_MAX {
            self.beyond += 1;
            return;
        }
        let us = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        self.all.push(us);
        if connected {
            self.connected.push(us);
        }
    }

    pub(super) fn merge(&mut self, other: Self) {
        let room = SAMPLES_MAX.saturating_sub(self.all.len());
        self.beyond += other.beyond + other.all.len().saturating_sub(room) as u64;
        self.all.extend(other.all.into_iter().take(room));
        self.connected.extend(other.connected.into_iter().take(room));
        self.void += other.void;
        self.open += other.open;
    }

    /// Of all samples, and of those with a connection.
    pub(super) fn percentiles(mut self) -> [Option<Percentiles>; 2] {
        [Percentiles::of(&mut self.all), Percentiles::of(&mut self.connected)]
    }
}

/// Nearest rank, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Percentiles {
    pub(super) samples: usize,
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

impl Percentiles {
    fn of(us: &mut [u32]) -> Option<Self> {
        us.sort_unstable();
        let max = *us.last()?;
        let rank = |percent: usize| {
            let at = (us.len() * percent).div_ceil(100).max(1) - 1;
            f64::from(us[at]) / 1e3
        };
        Some(Self {
            samples: us.len(),
            p50: rank(50),
            p90: rank(90),
            p99: rank(99),
            max: f64::from(max) / 1e3,
        })
    }

    pub(super) fn object(&self) -> Value {
        json!({"samples": self.samples, "p50_ms": self.p50, "p90_ms": self.p90, "p99_ms": self.p99, "max_ms": self.max})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn books_balance_or_say_what_is_missing() {
        let good = Ledger {
            attempted: 110,
            recorded: 100,
            refused: 10,
            held: 100,
            before: 2,
            sealed: 20,
            stored: 12,
            duplicates: 3,
            dropped: 4,
            waiting: 3,
            ..Ledger::default()
        };
        assert_eq!(good.faults(), Vec::<String>::new());
        let wrong = |change: fn(&mut Ledger)| {
            let mut ledger = good;
            change(&mut ledger);
            faults(&[("truck-1".into(), good), ("truck-2".into(), ledger)])
        };
        assert!(
            wrong(|ledger| ledger.held -= 1)[0].starts_with("truck-2: 100 records were recorded, and 99")
        );
        assert!(wrong(|ledger| ledger.refused -= 1)[0].contains("110 records were attempted"));
        assert!(
            wrong(|ledger| ledger.stored -= 1)[0]
                .contains("22 envelopes were sealed or waited before, and 21")
        );
        assert!(wrong(|ledger| ledger.stored += 5)[0].contains("and 27 are accounted for"));
        // Given up while it was under way, and delivered: seen, and no fault.
        let late = Ledger { stored: 14, ..good };
        assert_eq!((late.faults().len(), late.dropped_too_late()), (0, 2));
        let mut sum = good;
        sum.add(&good);
        assert_eq!((sum.sealed, sum.delivered(), sum.faults().len()), (40, 30, 0));
    }

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let mut latencies = Latencies::default();
        for ms in (1..=100).rev() {
            latencies.add(Duration::from_millis(ms), ms <= 10);
        }
        let [all, connected] = latencies.percentiles();
        let all = all.expect("there are samples");
        assert_eq!((all.samples, all.p50, all.p90, all.p99, all.max), (100, 50.0, 90.0, 99.0, 100.0));
        assert_eq!(connected.map(|connected| (connected.samples, connected.max)), Some((10, 10.0)));
        assert_eq!(Latencies::default().percentiles(), [None, None]);
    }
}

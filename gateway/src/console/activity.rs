//! What came of each device since this gateway started: when last, in which quarter-hours of the last day, under which key;
//! and how long acknowledgements took.
//!
//! It is told of an envelope when that is durable, once per group commit, under one short lock. Nothing here is on disk: a
//! restart begins anew, and the console says since when.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pithead_hop::ingest::lines::DEVICES_MAX;
use pithead_sealing::trust::KeyArn;
use pithead_sealing::{DeviceId, StreamName};

/// One piece of a coverage strip.
pub const QUARTER: Duration = Duration::from_secs(900);
/// Pieces of a strip: a day.
pub const QUARTERS: u32 = 96;
/// Classes of how long an acknowledgement took.
const CLASSES: usize = 48;
/// The upper end of the first class. Each further one ends a quarter higher, the last but one at 2.9 s.
const FIRST_S: f64 = 0.0001;
const STEP: f64 = 1.25;

/// An envelope that came.
#[derive(Debug, Clone)]
pub struct Mark {
    /// Whose it is.
    pub device: DeviceId,
    /// Its stream.
    pub stream: StreamName,
    /// The key that it is sealed to, as its header names it.
    pub key: Option<KeyArn>,
    /// Its size.
    pub bytes: u64,
}

/// What is known of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Operating time at which its last envelope was durable.
    pub at: Duration,
    /// That envelope's stream.
    pub stream: StreamName,
    /// And size.
    pub bytes: u64,
    /// The key that it is sealed to.
    pub key: Option<KeyArn>,
    /// Envelopes that came since the start.
    pub envelopes: u64,
    /// Bit 0 is the quarter-hour number `quarter`, bit 1 the one before.
    quarters: u128,
    quarter: u64,
}

impl Seen {
    /// The last day in quarter-hours, the newest last: whether something came.
    #[must_use]
    pub fn coverage(&self, now: Duration) -> Vec<bool> {
        let bits = shifted(self.quarters, number(now).saturating_sub(self.quarter));
        (0..QUARTERS).rev().map(|back| bits >> back & 1 == 1).collect()
    }
}

fn number(at: Duration) -> u64 {
    at.as_secs() / QUARTER.as_secs()
}

/// Moves a strip `by` quarters into the past.
fn shifted(bits: u128, by: u64) -> u128 {
    let moved = u32::try_from(by).ok().and_then(|by| bits.checked_shl(by)).unwrap_or(0);
    moved & ((1 << QUARTERS) - 1)
}

/// How many acknowledgements took how long, since the start. The difference of two is what was between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Latencies([u64; CLASSES]);

impl Default for Latencies {
    fn default() -> Self {
        Self([0; CLASSES])
    }
}

impl Latencies {
    fn add(&mut self, took: Duration) {
        let above = (took.as_secs_f64() / FIRST_S).max(1.0).ln() / STEP.ln();
        self.0[(above.ceil() as usize).min(CLASSES - 1)] += 1;
    }

    /// Those since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let mut between = Self::default();
        for (class, count) in between.0.iter_mut().enumerate() {
            *count = self.0[class].saturating_sub(before.0[class]);
        }
        between
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The time that `percent` of them did not exceed, by the end of its class; none if there are none, and none above the last
    /// class.
    #[must_use]
    pub fn percentile(&self, percent: u64) -> Option<Took> {
        let wanted = (self.count() * percent).div_ceil(100);
        let mut seen = 0;
        let class = self.0.iter().position(|count| {
            seen += count;
            wanted > 0 && seen >= wanted
        })?;
        let end = Duration::from_secs_f64(FIRST_S * STEP.powi(i32::try_from(class).unwrap_or(i32::MAX)));
        Some(if class == CLASSES - 1 { Took::Longer(end) } else { Took::Within(end) })
    }
}

/// How long something took, as far as classes tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Took {
    /// Not longer than this.
    Within(Duration),
    /// Longer than any class: at least about this.
    Longer(Duration),
}

/// Shared between the intake and the console. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Activity(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// At most [`DEVICES_MAX`], as many as a site may have: 250 bytes each.
    devices: HashMap<DeviceId, Seen>,
    envelopes: u64,
    bytes: u64,
    latencies: Latencies,
}

impl Activity {
    /// Envelopes that have become durable, with how long each took.
    pub fn came(&self, marks: impl IntoIterator<Item = (Mark, Duration)>, now: Duration) {
        let mut state = self.lock();
        for (mark, took) in marks {
            state.envelopes += 1;
            state.bytes = state.bytes.saturating_add(mark.bytes);
            state.latencies.add(took);
            state.see(mark, now);
        }
    }

    /// Envelopes and bytes that became durable since the start, and how long their acknowledgements took.
    #[must_use]
    pub fn totals(&self) -> (u64, u64, Latencies) {
        let state = self.lock();
        (state.envelopes, state.bytes, state.latencies.clone())
    }

    /// Every device of which something came.
    #[must_use]
    pub fn devices(&self) -> HashMap<DeviceId, Seen> {
        self.lock().devices.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn see(&mut self, mark: Mark, now: Duration) {
        let quarter = number(now);
        let Mark { device, stream, key, bytes } = mark;
        if let Some(seen) = self.devices.get_mut(&device) {
            seen.quarters = shifted(seen.quarters, quarter.saturating_sub(seen.quarter)) | 1;
            (seen.quarter, seen.at, seen.bytes) = (quarter, now, bytes);
            seen.envelopes += 1;
            // What is the same already shares its allocation with all that came before.
            if seen.stream != stream {
                seen.stream = stream;
            }
            if seen.key != key {
                seen.key = key;
            }
        } else if self.devices.len() < DEVICES_MAX {
            let seen = Seen { at: now, stream, bytes, key, envelopes: 1, quarters: 1, quarter };
            self.devices.insert(device, seen);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(device: &str) -> Mark {
        Mark {
            device: DeviceId::new(device).unwrap(),
            stream: StreamName::new("can").unwrap(),
            key: None,
            bytes: 412,
        }
    }

    #[test]
    fn a_strip_shows_the_quarter_hours_in_which_something_came_and_forgets_after_a_day() {
        let activity = Activity::default();
        let at = |quarter: u32| QUARTER * (1_000 + quarter) + Duration::from_secs(3);
        let came = |quarter| activity.came([(mark("truck-1"), Duration::ZERO)], at(quarter));
        came(0);
        came(0);
        came(2);
        let strip = |quarter| {
            let seen = activity.devices().remove(&DeviceId::new("truck-1").unwrap()).unwrap();
            let strip = seen.coverage(at(quarter));
            assert_eq!(strip.len(), 96);
            let covered = strip.iter().enumerate().filter(|(_, came)| **came);
            covered.map(|(index, _)| index).collect::<Vec<_>>()
        };
        assert_eq!(strip(2), [93, 95]);
        assert_eq!(strip(95), [0, 2]);
        assert_eq!(strip(96), [1]);
        assert_eq!(strip(98), [0_usize; 0]);
        assert_eq!(strip(1_000_000), [0_usize; 0]);
        came(1_000_000);
        assert_eq!(strip(1_000_000), [95]);
        assert_eq!(activity.totals().0, 4);
    }

    #[test]
    fn percentiles_are_the_end_of_a_class_a_quarter_above_at_most() {
        let activity = Activity::default();
        assert_eq!(Latencies::default().percentile(50), None);
        let took = |ms: u64| (mark("truck-1"), Duration::from_millis(ms));
        activity.came((1..=100).map(took), Duration::ZERO);
        let before = activity.totals().2;
        for (percent, ms) in [(50, 50.0), (99, 99.0), (1, 1.0)] {
            let Some(Took::Within(end)) = before.percentile(percent) else { panic!("{percent}") };
            let ratio = end.as_secs_f64() * 1000.0 / ms;
            assert!((1.0..=1.25).contains(&ratio), "{percent}: {end:?}");
        }
        activity.came([took(60_000)], Duration::ZERO);
        let between = activity.totals().2.since(&before);
        assert_eq!(between.count(), 1);
        assert!(matches!(between.percentile(50), Some(Took::Longer(_))));
    }

    #[test]
    fn a_device_shows_its_last_envelope_and_no_more_of_it_than_its_header() {
        let activity = Activity::default();
        let key =
            KeyArn::new("arn:aws:kms:ap-southeast-2:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab");
        let (key, video) = (key.unwrap(), StreamName::new("video").unwrap());
        activity.came([(mark("a"), Duration::ZERO)], Duration::from_secs(1));
        let last = Mark { key: Some(key.clone()), stream: video.clone(), bytes: 99, ..mark("a") };
        activity.came([(last, Duration::ZERO)], Duration::from_secs(5));
        let seen = activity.devices().remove(&DeviceId::new("a").unwrap()).unwrap();
        assert_eq!((seen.at, seen.bytes, seen.envelopes), (Duration::from_secs(5), 99, 2));
        assert_eq!((seen.key, seen.stream), (Some(key), video));
    }
}

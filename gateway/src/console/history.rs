//! How things went lately: readings in rings, and when the relay's link was down.
//!
//! | ring | a reading every | kept | bytes |
//! |---|---|---|---|
//! | fine | 1 s | 5 min | 24 kB |
//! | middle | 10 s | 1 h | 29 kB |
//! | coarse | 5 min | 7 days | 161 kB |
//!
//! In memory alone: a restart begins anew, and the console says since when. Fed once a second; pure, so time comes with each
//! reading.

use std::collections::VecDeque;
use std::time::Duration;

use super::activity::Latencies;

/// Where the relay's link stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// The far end takes envelopes.
    Up,
    /// It does not.
    Down,
    /// The relay stands still until somebody says otherwise.
    Paused,
    /// There is no relay here, or it is being reached for the first time.
    Absent,
}

/// One look at the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Operating time.
    pub at: Duration,
    /// Envelopes made durable since the start.
    pub came: u64,
    /// Their bytes.
    pub came_bytes: u64,
    /// Envelopes that the far end has answered since the start.
    pub left: u64,
    /// Their bytes.
    pub left_bytes: u64,
    /// Envelopes that wait.
    pub waiting: u64,
    /// Bytes that they take on disk.
    pub waiting_bytes: u64,
    /// The link.
    pub link: Link,
}

/// A time in which the link was not up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outage {
    /// Operating time of its beginning.
    pub from: Duration,
    /// And of its end, if it has ended.
    pub to: Option<Duration>,
    /// The relay was paused; otherwise its link was down.
    pub paused: bool,
}

/// Envelopes and bytes a second.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Flow {
    /// Envelopes that came.
    pub came: f64,
    /// Bytes that came.
    pub came_bytes: f64,
    /// Envelopes that left.
    pub left: f64,
    /// Bytes that left.
    pub left_bytes: f64,
}

/// Outages that are remembered: a link that flaps every minute is remembered for four hours.
const OUTAGES_MAX: usize = 256;
/// Rates are over this long.
pub const RATE_OVER: Duration = Duration::from_secs(60);
/// The growth behind a forecast is over this long at most: an hour ago may have been another shift.
const GROWTH_OVER: Duration = Duration::from_secs(3600);
/// And at least: what grew for a moment need not go on.
const GROWTH_AT_LEAST: Duration = Duration::from_secs(30);
/// And while the link is up over so long: then most of what waits is only on its way.
const GROWTH_AT_LEAST_UP: Duration = Duration::from_secs(600);
/// And of so many envelopes: a handful more or less is on its way at any time.
const GROWN_AT_LEAST: u64 = 10;
/// How far back latencies are looked at.
const LATENCY_OVER: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Ring {
    every: Duration,
    readings: VecDeque<Reading>,
    most: usize,
}

impl Ring {
    fn new(every_s: u64, kept_s: u64) -> Self {
        let most = usize::try_from(kept_s / every_s).unwrap_or(usize::MAX);
        Self { every: Duration::from_secs(every_s), readings: VecDeque::new(), most }
    }

    fn take(&mut self, reading: Reading) {
        // Half a second of grace: a timer that is a little early must not cost a whole step.
        let due = |last: &Reading| reading.at + Duration::from_millis(500) >= last.at + self.every;
        if !self.readings.back().is_none_or(due) {
            return;
        }
        if self.readings.len() == self.most {
            self.readings.pop_front();
        }
        self.readings.push_back(reading);
    }

    fn span(&self) -> Duration {
        self.every * u32::try_from(self.most).unwrap_or(u32::MAX)
    }
}

/// The readings. One owner feeds it, pages read.
#[derive(Debug)]
pub struct History {
    rings: [Ring; 3],
    last: Option<Reading>,
    outages: VecDeque<Outage>,
    latencies: VecDeque<(Duration, Latencies)>,
}

impl Default for History {
    fn default() -> Self {
        Self {
            rings: [Ring::new(1, 300), Ring::new(10, 3600), Ring::new(300, 7 * 86_400)],
            last: None,
            outages: VecDeque::new(),
            latencies: VecDeque::new(),
        }
    }
}

impl History {
    /// Takes a reading, unless a newer one is here.
    pub fn take(&mut self, reading: Reading, latencies: Latencies) {
        // Two who look at the same time may come in the wrong order.
        if self.last.is_some_and(|last| last.at >= reading.at) {
            return;
        }
        self.rings.iter_mut().for_each(|ring| ring.take(reading));
        self.follow(reading);
        self.last = Some(reading);
        let every = LATENCY_OVER / 6;
        if self.latencies.back().is_none_or(|(at, _)| reading.at >= *at + every) {
            if self.latencies.len() > 6 {
                self.latencies.pop_front();
            }
            self.latencies.push_back((reading.at, latencies));
        }
    }

    fn follow(&mut self, reading: Reading) {
        let now = match reading.link {
            Link::Up | Link::Absent => None,
            Link::Down => Some(false),
            Link::Paused => Some(true),
        };
        let open = self.outages.back_mut().filter(|outage| outage.to.is_none());
        if open.as_ref().map(|outage| outage.paused) == now {
            return;
        }
        if let Some(open) = open {
            open.to = Some(reading.at);
        }
        if let Some(paused) = now {
            if self.outages.len() == OUTAGES_MAX {
                self.outages.pop_front();
            }
            self.outages.push_back(Outage { from: reading.at, to: None, paused });
        }
    }

    /// The newest reading.
    #[must_use]
    pub fn last(&self) -> Option<Reading> {
        self.last
    }

    /// Readings of the last `span`, the oldest first and the newest last, from the ring that reaches so far.
    #[must_use]
    pub fn readings(&self, span: Duration) -> Vec<Reading> {
        let Some(last) = self.last else { return Vec::new() };
        let from = last.at.saturating_sub(span);
        let ring = self.rings.iter().find(|ring| ring.span() >= span).unwrap_or(&self.rings[2]);
        let mut readings: Vec<Reading> =
            ring.readings.iter().filter(|reading| reading.at >= from).copied().collect();
        if readings.last().is_none_or(|newest| newest.at < last.at) {
            readings.push(last);
        }
        readings
    }

    /// When the link was not up, within the last `span`.
    #[must_use]
    pub fn outages(&self, span: Duration) -> Vec<Outage> {
        let from = self.last.map_or(Duration::ZERO, |last| last.at.saturating_sub(span));
        self.outages.iter().filter(|outage| outage.to.is_none_or(|to| to > from)).copied().collect()
    }

    /// What came and left a second, over the last minute or since the start.
    #[must_use]
    pub fn flow(&self) -> Option<Flow> {
        let (from, to) = self.ends(RATE_OVER)?;
        let seconds = (to.at - from.at).as_secs_f64();
        let per_s = |from: u64, to: u64| to.saturating_sub(from) as f64 / seconds;
        Some(Flow {
            came: per_s(from.came, to.came),
            came_bytes: per_s(from.came_bytes, to.came_bytes),
            left: per_s(from.left, to.left),
            left_bytes: per_s(from.left_bytes, to.left_bytes),
        })
    }

    /// How long acknowledgements took lately, of which `now` is the sum since the start.
    #[must_use]
    pub fn latencies(&self, now: &Latencies) -> Latencies {
        self.latencies.front().map_or_else(|| now.clone(), |(_, before)| now.since(before))
    }

    /// How much what waits grows: envelopes and bytes on disk a second. None while that is not known, or while it does not.
    ///
    /// Over the last hour; of a link that is down, since it is down, for what happened before says nothing of it. It is the least that
    /// waited in the later half against the least in the earlier: what comes and goes within a half is no growth.
    #[must_use]
    pub fn growth(&self) -> Option<(f64, f64)> {
        let last = self.last?;
        let since = self.outages.back().filter(|outage| outage.to.is_none()).map(|outage| outage.from);
        let known = since.map_or(GROWTH_OVER, |since| GROWTH_OVER.min(last.at.saturating_sub(since)));
        let readings = self.readings(known);
        let first = readings.first()?;
        let seconds = last.at.saturating_sub(first.at);
        let at_least = if since.is_some() { GROWTH_AT_LEAST } else { GROWTH_AT_LEAST_UP };
        if seconds < at_least {
            return None;
        }
        let middle = readings.partition_point(|reading| reading.at < first.at + seconds / 2);
        let (earlier, later) = readings.split_at(middle);
        let least = |half: &[Reading]| half.iter().map(|reading| reading.waiting).min();
        let grown = least(later)?.checked_sub(least(earlier)?).filter(|grown| *grown >= GROWN_AT_LEAST)?;
        let between = later.first()?.at.saturating_sub(first.at);
        let records = grown as f64 / between.as_secs_f64();
        Some((records, records * last.waiting_bytes as f64 / last.waiting.max(1) as f64))
    }

    /// The two readings that are furthest apart within the last `span`.
    fn ends(&self, span: Duration) -> Option<(Reading, Reading)> {
        let to = self.last?;
        let from = to.at.saturating_sub(span);
        let first = |ring: &Ring| ring.readings.iter().find(|reading| reading.at >= from).copied();
        let from = self.rings.iter().filter_map(first).min_by_key(|reading| reading.at)?;
        (to.at > from.at).then_some((from, to))
    }
}

/// When the disk will be full at the present growth in bytes a second. None if that is beyond ten years, which is nothing that
/// anybody can say.
#[must_use]
pub fn full_in(available: u64, growth_bytes: f64) -> Option<Duration> {
    const BEYOND_S: f64 = 10.0 * 365.0 * 86_400.0;
    let seconds = available as f64 / growth_bytes;
    (growth_bytes > 0.0 && seconds < BEYOND_S).then(|| Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(at_s: u64, waiting: u64, link: Link) -> Reading {
        Reading {
            at: Duration::from_secs(at_s),
            came: at_s * 10,
            came_bytes: at_s * 4_000,
            left: 0,
            left_bytes: 0,
            waiting,
            waiting_bytes: waiting * 500,
            link,
        }
    }

    fn fed(seconds: impl IntoIterator<Item = u64>, of: impl Fn(u64) -> Reading) -> History {
        let mut history = History::default();
        seconds.into_iter().for_each(|at| history.take(of(at), Latencies::default()));
        history
    }

    #[test]
    fn a_week_fits_into_rings_of_a_fixed_size_and_the_newest_reading_is_always_there() {
        let history = fed((0..8 * 86_400).map(|s| s + 7), |s| reading(s, s, Link::Up));
        let newest = 8 * 86_400 + 6;
        for (span, count) in [(300, 300), (3_600, 361), (86_400, 289), (7 * 86_400, 2_017)] {
            let readings = history.readings(Duration::from_secs(span));
            assert!(readings.len().abs_diff(count) <= 1, "{span}: {}", readings.len());
            assert_eq!(readings.last().unwrap().at.as_secs(), newest);
            assert!(readings.windows(2).all(|pair| pair[0].at < pair[1].at));
            assert!(readings[0].at.as_secs() >= newest - span);
        }
        let kept: usize = history.rings.iter().map(|ring| ring.readings.len()).sum();
        assert_eq!(kept, 300 + 360 + 2_016);
    }

    #[test]
    fn a_link_that_goes_and_comes_leaves_an_interval_and_a_pause_is_told_apart() {
        let link = |s| match s {
            10..20 => Link::Down,
            20..25 => Link::Paused,
            40.. => Link::Down,
            _ => Link::Up,
        };
        let history = fed(0..50, |s| reading(s, 0, link(s)));
        let seconds = Duration::from_secs;
        let outage =
            |from, to: Option<u64>, paused| Outage { from: seconds(from), to: to.map(seconds), paused };
        let all = [outage(10, Some(20), false), outage(20, Some(25), true), outage(40, None, false)];
        assert_eq!(history.outages(seconds(300)), all);
        assert_eq!(history.outages(seconds(15)), all[2..]);
    }

    #[test]
    fn rates_are_over_the_last_minute_and_of_a_start_over_what_there_is() {
        assert_eq!(fed([5], |s| reading(s, 0, Link::Up)).flow(), None);
        for seconds in [10, 1_000] {
            let flow = fed(0..seconds, |s| reading(s, 0, Link::Up)).flow().unwrap();
            assert_eq!((flow.came, flow.came_bytes, flow.left), (10.0, 4_000.0, 0.0));
        }
    }

    #[test]
    fn growth_is_since_the_link_went_down_and_unknown_at_first() {
        let waiting =
            |s: u64| if s < 1_000 { reading(s, 5, Link::Up) } else { reading(s, s * 3, Link::Down) };
        assert_eq!(fed(0..1_010, waiting).growth(), None, "ten seconds say nothing");
        let (records, bytes) = fed(0..1_100, waiting).growth().unwrap();
        assert!((records - 3.0).abs() < 0.01 && (bytes - 1_500.0).abs() < 5.0, "{records} {bytes}");
        assert_eq!(fed(0..1_000, |s| reading(s, 5_000 - s, Link::Up)).growth(), None, "it falls");
        let busy = |s: u64| reading(s, [0, 8, 7, 25][s as usize % 4] * s.min(1), Link::Up);
        assert_eq!(fed(0..1_000, busy).growth(), None, "what comes and goes is no growth");
        let grows = |s: u64| reading(s, s * 3, Link::Up);
        assert_eq!(fed(0..500, grows).growth(), None, "what is on its way after a start is no growth");
        assert!(fed(0..700, grows).growth().is_some());
        let (records, _) =
            fed(0..1_000, |s| reading(s, s + [0, 8, 7, 25][s as usize % 4], Link::Up)).growth().unwrap();
        assert!((records - 1.0).abs() < 0.1, "{records}");
    }

    #[test]
    fn the_disk_is_full_when_what_is_left_is_used_up_and_never_when_nothing_grows() {
        assert_eq!(full_in(10_000, 100.0), Some(Duration::from_secs(100)));
        assert_eq!(full_in(0, 100.0), Some(Duration::ZERO));
        assert_eq!(full_in(10_000, 0.0), None);
        assert_eq!(full_in(u64::MAX, 0.1), None);
    }

    #[test]
    fn latencies_are_of_the_last_minute() {
        use super::super::activity::Activity;
        let (mut history, activity) = (History::default(), Activity::default());
        let mark = || super::super::activity::Mark {
            device: pithead_sealing::DeviceId::new("a").unwrap(),
            stream: pithead_sealing::StreamName::new("can").unwrap(),
            key: None,
            bytes: 1,
        };
        for second in 0..600 {
            let at = Duration::from_secs(second);
            let slow = second < 500;
            activity.came([(mark(), Duration::from_millis(if slow { 900 } else { 1 }))], at);
            history.take(reading(second, 0, Link::Up), activity.totals().2);
        }
        let lately = history.latencies(&activity.totals().2);
        assert!((50..=70).contains(&lately.count()), "{}", lately.count());
        let within = super::super::activity::Took::Within;
        assert!(
            lately
                .percentile(99)
                .is_some_and(|took| took == within(Duration::from_secs_f64(0.0001 * 1.25_f64.powi(11))))
        );
    }
}

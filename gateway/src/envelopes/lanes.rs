//! Which lane an envelope waits in: its stream's, by the configuration, and nothing that a client sends.
//!
//! A lane is a log of its own, and the relay empties the first before the second before the third. Order within a line
//! is kept because all of a line's envelopes that wait do so in one lane. That has to hold as well when somebody moves a
//! stream to another lane, or comes from a version with one lane, while envelopes wait: such a line is a *stray*. It
//! goes on in the lane where it waits until nothing of it does; from then on, and for every new run, the configuration
//! counts. So older records go first, and no lane waits for another.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use pithead_sealing::{Line, Seq, StreamName};
use pithead_spool::Lane;

/// How many lanes there are.
pub const LANES: usize = Lane::ALL.len();
/// Where streams wait that the configuration does not name.
pub const USUAL: Lane = Lane::Second;

/// Their names.
pub const NAMES: [&str; LANES] = [name(Lane::First), name(Lane::Second), name(Lane::Third)];

/// A lane's name in the configuration, on pages and as a label.
#[must_use]
pub const fn name(lane: Lane) -> &'static str {
    match lane {
        Lane::First => "first",
        Lane::Second => "second",
        Lane::Third => "third",
    }
}

/// The lanes of streams, and of the lines that wait elsewhere.
#[derive(Debug, Default)]
pub struct Lanes {
    streams: HashMap<StreamName, Lane>,
    strays: Mutex<HashMap<Line, Stray>>,
}

/// Where a line goes on, and how many of its envelopes may still wait there. Counted too high, as after an append that
/// failed, it only stays there longer, at most until the next start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stray {
    lane: Lane,
    waiting: u64,
}

impl Lanes {
    /// As configured.
    #[must_use]
    pub fn new(first: &[StreamName], third: &[StreamName]) -> Self {
        let first = first.iter().map(|stream| (stream.clone(), Lane::First));
        let third = third.iter().map(|stream| (stream.clone(), Lane::Third));
        Self { streams: first.chain(third).collect(), strays: Mutex::default() }
    }

    fn configured(&self, stream: &StreamName) -> Lane {
        self.streams.get(stream).copied().unwrap_or(USUAL)
    }

    /// Lanes that the configuration puts anything into.
    pub fn in_use(&self) -> impl Iterator<Item = Lane> + '_ {
        Lane::ALL.into_iter().filter(|lane| *lane == USUAL || self.streams.values().any(|used| used == lane))
    }

    /// Where the line's next envelope belongs.
    #[must_use]
    pub fn of(&self, line: &Line) -> Lane {
        self.strays().get(line).map_or_else(|| self.configured(&line.stream), |stray| stray.lane)
    }

    /// As [`of`](Self::of), for an envelope that is about to be appended.
    pub(super) fn join(&self, line: &Line) -> Lane {
        match self.strays().get_mut(line) {
            Some(stray) => {
                stray.waiting += 1;
                stray.lane
            }
            None => self.configured(&line.stream),
        }
    }

    /// An envelope of the line waits no more.
    pub(super) fn left(&self, line: &Line) {
        let mut strays = self.strays();
        if let Some(stray) = strays.get_mut(line) {
            stray.waiting = stray.waiting.saturating_sub(1);
            if stray.waiting == 0 {
                strays.remove(line);
            }
        }
    }

    /// True if a line that waits in `lane` is not where the configuration puts it.
    #[must_use]
    pub fn is_stray(&self, lane: Lane, stream: &StreamName) -> bool {
        self.configured(stream) != lane
    }

    /// Takes down which lines are strays.
    pub(super) fn set_strays(&self, found: Found) {
        let strays = found.0.into_iter().filter_map(|(line, lanes)| {
            // A cursor may lag behind what was delivered, so a line that has moved may be seen in its old lane again.
            // Where its newest envelope waits is where it went on.
            let (index, (waiting, _)) =
                lanes.into_iter().enumerate().max_by_key(|(_, (_, newest))| *newest)?;
            let lane = Lane::from_index(index)?;
            self.is_stray(lane, &line.stream).then_some((line, Stray { lane, waiting }))
        });
        *self.strays() = strays.collect();
    }

    /// How many lines are strays.
    #[must_use]
    pub fn strays_len(&self) -> usize {
        self.strays().len()
    }

    fn strays(&self) -> MutexGuard<'_, HashMap<Line, Stray>> {
        self.strays.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a start found of lines that have something in a lane that is not theirs: per lane how many, and the newest.
#[derive(Debug, Default)]
pub struct Found(HashMap<Line, [(u64, Option<Seq>); LANES]>);

impl Found {
    /// Has this line looked for in all lanes.
    pub fn watch(&mut self, line: Line) {
        self.0.entry(line).or_default();
    }

    /// True if there is nothing to look for.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// An envelope waits in `lane`.
    pub(super) fn count(&mut self, lane: Lane, line: &Line, seq: Seq) {
        if let Some(lanes) = self.0.get_mut(line) {
            let (waiting, newest) = &mut lanes[lane.index()];
            *waiting += 1;
            *newest = (*newest).max(Some(seq));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pithead_sealing::{DeviceId, Run};

    fn stream(name: &str) -> StreamName {
        StreamName::new(name).unwrap()
    }

    fn line(name: &str, run: u64) -> Line {
        Line { device: DeviceId::new("truck").unwrap(), stream: stream(name), run: Run::new(run).unwrap() }
    }

    fn seq(number: u64) -> Seq {
        Seq::new(number).unwrap()
    }

    #[test]
    fn a_stream_has_the_lane_that_the_configuration_names_and_else_the_second() {
        let lanes = Lanes::new(&[stream("alarms")], &[stream("can-raw")]);
        assert_eq!(lanes.of(&line("alarms", 1)), Lane::First);
        assert_eq!(lanes.of(&line("can", 1)), Lane::Second);
        assert_eq!(lanes.of(&line("can-raw", 1)), Lane::Third);
        assert_eq!(lanes.in_use().collect::<Vec<_>>(), Lane::ALL);
        assert_eq!(Lanes::default().in_use().collect::<Vec<_>>(), [USUAL]);
    }

    #[test]
    fn a_line_that_waits_elsewhere_goes_on_there_until_nothing_of_it_waits() {
        let lanes = Lanes::new(&[stream("alarms")], &[]);
        let old = line("alarms", 1);
        let mut found = Found::default();
        found.watch(old.clone());
        found.count(Lane::Second, &old, seq(1));
        found.count(Lane::Second, &old, seq(2));
        lanes.set_strays(found);

        assert_eq!(lanes.join(&old), Lane::Second, "three wait");
        assert_eq!(lanes.join(&line("alarms", 2)), Lane::First, "another run is another line");
        lanes.left(&old);
        lanes.left(&old);
        assert_eq!(lanes.of(&old), Lane::Second, "one still waits");
        lanes.left(&old);
        assert_eq!((lanes.of(&old), lanes.strays_len()), (Lane::First, 0));
    }

    #[test]
    fn a_line_that_had_moved_does_not_go_back_to_a_lane_whose_cursor_lags() {
        let lanes = Lanes::new(&[stream("alarms")], &[]);
        let moved = line("alarms", 1);
        let mut found = Found::default();
        found.watch(moved.clone());
        // 1 and 2 were delivered, and a crash has forgotten that; 3 waits where it belongs.
        found.count(Lane::First, &moved, seq(3));
        found.count(Lane::Second, &moved, seq(1));
        found.count(Lane::Second, &moved, seq(2));
        lanes.set_strays(found);
        assert_eq!(lanes.of(&moved), Lane::First);
    }
}

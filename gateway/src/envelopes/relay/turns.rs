//! Whose turn it is: the highest lane that has something, and a small share for those below.
//!
//! While a higher lane sends, every lower one that has something saves up a part of what goes out ahead of it; when that
//! pays for its first envelope, it has a turn. So the third lane moves however much the others have, and what is urgent
//! waits for one envelope of it at most. A lane that has nothing saves nothing up.

use super::super::lanes::LANES;

/// A lower lane gets one byte for so many that go out ahead of it: small enough to leave a thin link to what is urgent,
/// large enough that a lower lane drains in days and not in months.
pub(super) const SHARE: u64 = 16;

/// What each lane has saved up, in bytes times [`SHARE`].
#[derive(Debug, Default)]
pub(super) struct Turns {
    saved: [u64; LANES],
}

impl Turns {
    /// The lane whose turn it is; `first` says how large the first envelope of each lane is, if it has one.
    pub(super) fn next(&self, first: &[Option<u64>; LANES]) -> Option<usize> {
        let has_saved = |lane: &usize| first[*lane].is_some_and(|bytes| self.saved[*lane] >= bytes * SHARE);
        (1..LANES).find(has_saved).or_else(|| (0..LANES).find(|lane| first[*lane].is_some()))
    }

    /// The first envelope of `lane` went out.
    pub(super) fn sent(&mut self, lane: usize, first: &[Option<u64>; LANES]) {
        let bytes = first[lane].unwrap_or(0);
        self.saved[lane] = self.saved[lane].saturating_sub(bytes * SHARE);
        for (saved, first) in self.saved.iter_mut().zip(first).skip(lane + 1) {
            *saved = if first.is_some() { *saved + bytes } else { 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_sent(turns: &mut Turns, first: [Option<u64>; LANES], rounds: usize) -> [u64; LANES] {
        let mut sent = [0; LANES];
        for _ in 0..rounds {
            let lane = turns.next(&first).unwrap();
            turns.sent(lane, &first);
            sent[lane] += first[lane].unwrap();
        }
        sent
    }

    #[test]
    fn the_highest_lane_goes_first_and_each_lower_one_gets_a_sixteenth_of_what_goes_ahead() {
        let sent = bytes_sent(&mut Turns::default(), [Some(1_000), Some(1_000), Some(1_000)], 100_000);
        assert!(sent[0] > 8 * sent[1] && sent[1] >= sent[0] / 17, "{sent:?}");
        assert!(sent[2] >= sent[0] / 17 && sent[2] < sent[0] / 8, "{sent:?}");
    }

    #[test]
    fn a_large_envelope_below_small_ones_waits_for_its_size_and_not_for_ever() {
        let first = [Some(500), None, Some(1_000_000)];
        let sent = bytes_sent(&mut Turns::default(), first, 32_001);
        assert_eq!(sent, [16_000_000, 0, 1_000_000]);
    }

    #[test]
    fn a_lane_that_had_nothing_has_saved_nothing_up() {
        let mut turns = Turns::default();
        bytes_sent(&mut turns, [Some(1_000), None, None], 10_000);
        assert_eq!(turns.next(&[Some(1_000), Some(1), Some(1)]), Some(0));
        assert_eq!(turns.next(&[None, None, Some(1)]), Some(2));
        assert_eq!(turns.next(&[None, None, None]), None);
    }
}

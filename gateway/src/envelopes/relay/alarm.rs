//! Too many refusals: when the far end refuses for good what this site sends, somebody has to look before all of it lies in
//! the refused area. A far end that believes another root, or a site whose envelopes are of a version that it does not
//! know, is mended in the cloud, and then nothing need be retried.
//!
//! Pure: time is an argument.

use std::collections::VecDeque;
use std::time::Duration;

/// How far back is looked.
pub(super) const SPAN: Duration = Duration::from_secs(300);
/// More refusals than this part of the answers, in percent, are too many.
pub(super) const PERCENT: u64 = 1;
/// And not fewer than this: one poisoned envelope on a quiet site is no reason to stand still.
pub(super) const REFUSALS_MIN: u64 = 20;

/// Answers are counted by so much time: the span slides in steps of this.
const STEP: Duration = Duration::from_secs(10);

/// What was answered lately.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counted {
    /// Answers.
    pub(super) answered: u64,
    /// Of them, refusals for good.
    pub(super) refused: u64,
}

/// Answers of the last [`SPAN`].
#[derive(Debug, Default)]
pub(super) struct Alarm {
    steps: VecDeque<(Duration, Counted)>,
    sum: Counted,
}

impl Alarm {
    /// Some answers have come. Gives what is too much, if it is.
    pub(super) fn note(&mut self, answered: u64, refused: u64, now: Duration) -> Option<Counted> {
        while self.steps.front().is_some_and(|(began, _)| *began + SPAN <= now) {
            if let Some((_, old)) = self.steps.pop_front() {
                self.sum.answered -= old.answered;
                self.sum.refused -= old.refused;
            }
        }
        if self.steps.back().is_none_or(|(began, _)| *began + STEP <= now) {
            self.steps.push_back((now, Counted::default()));
        }
        if let Some((_, last)) = self.steps.back_mut() {
            last.answered += answered;
            last.refused += refused;
        }
        self.sum.answered += answered;
        self.sum.refused += refused;
        let over = self.sum.refused >= REFUSALS_MIN && self.sum.refused * 100 > self.sum.answered * PERCENT;
        over.then_some(self.sum)
    }

    /// Somebody has looked: what was counted does not count again.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(1_000 + seconds)
    }

    #[test]
    fn a_few_refusals_are_no_alarm_and_one_in_a_hundred_is_none_either() {
        let mut alarm = Alarm::default();
        assert_eq!(alarm.note(19, 19, at(0)), None, "too few to say anything");
        assert_eq!(alarm.note(1, 1, at(1)), Some(Counted { answered: 20, refused: 20 }));
        let mut alarm = Alarm::default();
        for second in 0..600 {
            assert_eq!(alarm.note(100, 1, at(second)), None, "{second}");
        }
        assert!(alarm.note(100, 30, at(600)).is_some());
    }

    #[test]
    fn what_is_older_than_the_span_does_not_count() {
        let mut alarm = Alarm::default();
        assert_eq!(alarm.note(19, 19, at(0)), None);
        assert_eq!(alarm.note(1, 1, at(300)), None);
        assert_eq!(alarm.sum, Counted { answered: 1, refused: 1 });
        assert!(alarm.steps.len() <= 2);
    }

    #[test]
    fn after_somebody_has_looked_it_counts_from_the_beginning() {
        let mut alarm = Alarm::default();
        assert!(alarm.note(50, 50, at(0)).is_some());
        alarm.forget();
        assert_eq!(alarm.note(1, 1, at(1)), None);
    }
}

//! Numbers that will never come, until the cloud has been told so.
//!
//! A range is written here before its envelopes are given up, and stays until an envelope that declares it, sealed, has
//! been taken by a gateway. Declaring twice is harmless, forgetting to declare is not: after a restart everything that is
//! still in here is declared once more, and an envelope that is itself dropped gives back what it carried.
//!
//! ```text
//! | version u8 = 1 | ranges u16 | per range: stream length u8, stream, run u64, from u64, to u64, reason u8 |     big-endian
//! ```

use pithead_sealing::names::{Identity, Run, Seq, StreamName};

use super::GiveUpError;
use crate::{
    batch::{GAPS_PER_BATCH, Gap, GapReason},
    state::{ClosedStore, StateError, StateStore},
};

const VERSION: u8 = 1;

/// Ranges at most. Drops of one stream in one run are one range, so this is a thousand restarts within one outage; the
/// state of so many is just below [`crate::state::MAX_STATE_BYTES`].
pub(crate) const MAX_RANGES: usize = 1_024;

/// There are as many ranges as can be kept: nothing more may be given up before some were declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_RANGES} ranges wait to be declared")]
pub(crate) struct TooManyGaps;

#[derive(Debug)]
pub(crate) struct Gaps {
    store: Box<dyn StateStore>,
    ranges: Vec<Range>,
    changed: bool,
}

#[derive(Clone, Debug)]
struct Range {
    gap: Gap,
    /// The envelope that declares it, while it is on its way.
    carrier: Option<Identity>,
}

impl Gaps {
    /// What is not declared yet. If neither copy of the state reads back, that is what was lost: the ranges show as holes
    /// that nobody explains, and the device goes on.
    pub(crate) fn open(mut store: Box<dyn StateStore>) -> Result<Self, StateError> {
        let kept = match store.load() {
            Ok(kept) => kept,
            Err(error @ StateError::Damaged { .. }) => {
                tracing::error!(event = "outbox.gaps_lost", %error);
                None
            }
            Err(error) => return Err(error),
        };
        let ranges = kept.and_then(|bytes| decode(&bytes)).unwrap_or_default();
        let ranges = ranges.into_iter().map(|gap| Range { gap, carrier: None }).collect();
        Ok(Self { store, ranges, changed: false })
    }

    /// Takes a range. It counts when it is saved.
    fn add(&mut self, gap: Gap) -> Result<(), TooManyGaps> {
        let follows = |range: &&mut Range| {
            range.gap.stream == gap.stream
                && range.gap.run == gap.run
                && range.gap.reason == gap.reason
                && range.gap.to.next() == Some(gap.from)
        };
        if let Some(range) = self.ranges.iter_mut().rev().find(follows) {
            // What is on its way says less than this; the whole is declared again, which is harmless. Ranges that were kept apart
            // would be one for each segment that is given up, and there is a bound.
            range.gap.to = gap.to;
            range.carrier = None;
        } else if self.ranges.len() < MAX_RANGES {
            self.ranges.push(Range { gap, carrier: None });
        } else {
            return Err(TooManyGaps);
        }
        self.changed = true;
        Ok(())
    }

    /// Takes them all, on disk; or none, if it cannot be written or there are too many.
    pub(crate) fn add_all(&mut self, gaps: &[Gap]) -> Result<(), GiveUpError> {
        let before = (self.ranges.clone(), self.changed);
        let added = gaps
            .iter()
            .try_for_each(|gap| self.add(gap.clone()))
            .map_err(|TooManyGaps| GiveUpError::TooManyGaps);
        let saved = added.and_then(|()| Ok(self.save()?));
        if saved.is_err() {
            (self.ranges, self.changed) = before;
        }
        saved
    }

    pub(crate) fn save(&mut self) -> Result<(), StateError> {
        if self.changed {
            self.store.save(&self.encode())?;
            self.changed = false;
        }
        Ok(())
    }

    /// The same, and lets go of the storage: see [`Sequence::close`](crate::sequence::Sequence::close).
    pub(crate) fn close(&mut self) -> Result<(), StateError> {
        let saved = self.save();
        self.store = Box::new(ClosedStore);
        saved
    }

    /// What the next envelope should declare.
    pub(crate) fn undeclared(&self) -> Vec<Gap> {
        let open = self.ranges.iter().filter(|range| range.carrier.is_none());
        open.take(GAPS_PER_BATCH).map(|range| range.gap.clone()).collect()
    }

    /// All that is not declared for good, for the gateway's own books.
    pub(crate) fn all(&self) -> Vec<Gap> {
        self.ranges.iter().take(GAPS_PER_BATCH).map(|range| range.gap.clone()).collect()
    }

    /// The runs of what was given up.
    pub(crate) fn runs(&self) -> impl Iterator<Item = Run> {
        self.ranges.iter().map(|range| range.gap.run)
    }

    /// There is something that no envelope on its way declares.
    pub(crate) fn any_undeclared(&self) -> bool {
        self.ranges.iter().any(|range| range.carrier.is_none())
    }

    /// That envelope declares those.
    pub(crate) fn carried(&mut self, gaps: &[Gap], by: &Identity) {
        for range in self.ranges.iter_mut().filter(|range| gaps.contains(&range.gap)) {
            range.carrier = Some(by.clone());
        }
    }

    /// A gateway has that envelope: what it declares need not be kept.
    pub(crate) fn delivered(&mut self, carrier: &Identity) {
        let before = self.ranges.len();
        self.ranges.retain(|range| range.carrier.as_ref() != Some(carrier));
        self.changed |= self.ranges.len() < before;
    }

    /// That envelope will not arrive: what it declares is declared by another.
    pub(crate) fn lost(&mut self, carrier: &Identity) {
        for range in self.ranges.iter_mut().filter(|range| range.carrier.as_ref() == Some(carrier)) {
            range.carrier = None;
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&u16::try_from(self.ranges.len()).expect("at most MAX_RANGES").to_be_bytes());
        for Range { gap, .. } in &self.ranges {
            let name = gap.stream.as_str().as_bytes();
            bytes.push(u8::try_from(name.len()).expect("a stream name has at most 32 bytes"));
            bytes.extend_from_slice(name);
            for number in [gap.run.get(), gap.from.get(), gap.to.get()] {
                bytes.extend_from_slice(&number.to_be_bytes());
            }
            bytes.push(match gap.reason {
                GapReason::DroppedByPolicy => 1,
                GapReason::OutboxDamaged => 2,
                GapReason::Refused => 3,
            });
        }
        bytes
    }
}

fn decode(bytes: &[u8]) -> Option<Vec<Gap>> {
    let (head, mut rest) = bytes.split_at_checked(3)?;
    if head[0] != VERSION {
        return None;
    }
    let mut gaps = Vec::new();
    for _ in 0..u16::from_be_bytes([head[1], head[2]]) {
        let (length, tail) = rest.split_first()?;
        let (name, tail) = tail.split_at_checked(usize::from(*length))?;
        let (run, tail) = tail.split_first_chunk()?;
        let (from, tail) = tail.split_first_chunk()?;
        let (to, tail) = tail.split_first_chunk()?;
        let (reason, tail) = tail.split_first()?;
        gaps.push(Gap {
            stream: StreamName::new(std::str::from_utf8(name).ok()?).ok()?,
            run: Run::new(u64::from_be_bytes(*run)).ok()?,
            from: Seq::new(u64::from_be_bytes(*from)).ok()?,
            to: Seq::new(u64::from_be_bytes(*to)).ok()?,
            reason: match reason {
                1 => GapReason::DroppedByPolicy,
                2 => GapReason::OutboxDamaged,
                3 => GapReason::Refused,
                _ => return None,
            },
        });
        rest = tail;
    }
    rest.is_empty().then_some(gaps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{FileStore, MAX_STATE_BYTES, MemoryStore};
    use pithead_sealing::names::{DeviceId, Site};

    fn gap(run: u64, from: u64, to: u64) -> Gap {
        Gap {
            stream: StreamName::new("can").unwrap(),
            run: Run::new(run).unwrap(),
            from: Seq::new(from).unwrap(),
            to: Seq::new(to).unwrap(),
            reason: GapReason::DroppedByPolicy,
        }
    }

    fn carrier(seq: u64) -> Identity {
        Identity {
            site: Site::new("pit-7").unwrap(),
            device: DeviceId::new("truck-7").unwrap(),
            stream: StreamName::new("can").unwrap(),
            run: Run::new(9).unwrap(),
            seq: Seq::new(seq).unwrap(),
        }
    }

    #[test]
    fn ranges_that_follow_each_other_are_one_also_while_they_are_on_their_way() {
        let mut gaps = Gaps::open(Box::<MemoryStore>::default()).unwrap();
        gaps.add(gap(1, 1, 10)).unwrap();
        gaps.add(gap(1, 11, 12)).unwrap();
        assert_eq!(gaps.undeclared(), [gap(1, 1, 12)]);
        gaps.carried(&gaps.undeclared(), &carrier(1));
        gaps.add(gap(1, 13, 20)).unwrap();
        assert_eq!(
            gaps.undeclared(),
            [gap(1, 1, 20)],
            "what is sealed says less, so the whole is said again"
        );
        // An outage of weeks: one drop after the other, each declared in the batch that follows it.
        for drop in 3..3_000 {
            gaps.carried(&gaps.undeclared(), &carrier(drop));
            gaps.add(gap(1, 10 * drop - 9, 10 * drop)).unwrap();
        }
        assert_eq!(gaps.undeclared(), [gap(1, 1, 29_990)]);
    }

    #[test]
    fn a_range_is_kept_until_its_declaration_is_delivered_and_declared_again_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Gaps::open(Box::new(FileStore::new(folder.path(), "gaps"))).unwrap();
        let mut gaps = open();
        gaps.add(gap(1, 1, 10)).unwrap();
        gaps.save().unwrap();
        gaps.carried(&gaps.undeclared(), &carrier(1));
        assert!(!gaps.any_undeclared());
        drop(gaps);
        let mut gaps = open();
        assert_eq!(gaps.undeclared(), [gap(1, 1, 10)]);
        gaps.carried(&gaps.undeclared(), &carrier(2));
        gaps.lost(&carrier(2));
        assert_eq!(gaps.undeclared(), [gap(1, 1, 10)], "its carrier was dropped");
        gaps.carried(&gaps.undeclared(), &carrier(3));
        gaps.delivered(&carrier(2));
        gaps.delivered(&carrier(3));
        gaps.save().unwrap();
        drop(gaps);
        assert!(!open().any_undeclared());
    }

    #[test]
    fn as_many_ranges_as_are_allowed_fit_the_state_and_no_more_are_taken() {
        let longest = StreamName::new(&"s".repeat(32)).unwrap();
        let mut gaps = Gaps::open(Box::<MemoryStore>::default()).unwrap();
        for run in 1..=MAX_RANGES as u64 {
            gaps.add(Gap { stream: longest.clone(), ..gap(run, 1, 1) }).unwrap();
        }
        assert!(gaps.encode().len() <= MAX_STATE_BYTES);
        gaps.save().unwrap();
        assert_eq!(gaps.add(gap(5_000, 1, 1)), Err(TooManyGaps));
        gaps.add(Gap { stream: longest, ..gap(7, 2, 9) }).expect("it follows one that is there");
        assert_eq!(gaps.undeclared().len(), GAPS_PER_BATCH);
    }

    #[test]
    fn a_torn_state_is_none() {
        let mut gaps = Gaps::open(Box::<MemoryStore>::default()).unwrap();
        gaps.add(gap(1, 1, 10)).unwrap();
        let bytes = gaps.encode();
        assert_eq!(decode(&bytes), Some(vec![gap(1, 1, 10)]));
        for cut in 0..bytes.len() {
            assert_eq!(decode(&bytes[..cut]), None, "cut at {cut}");
        }
    }
}

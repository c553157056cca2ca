//! The short hashes of what waits: 8 bytes for an envelope, and little more where the numbers follow each other.
//!
//! A spool may hold millions of envelopes of one line, and all of their hashes are in memory: a map with an entry for each
//! number costs four times as much, and is slower. Where numbers are far apart a block is kept for each of them; how often
//! that can be is bounded by the line's intervals.

use std::collections::BTreeMap;

use super::ShortHash;

/// Numbers of a block: a full one costs 9 bytes an envelope, and a line with a single envelope some 300 bytes more than the map
/// would, half a kilobyte in all.
const BLOCK: u64 = 32;

/// Hashes by number.
#[derive(Debug, Default)]
pub(super) struct Hashes(BTreeMap<u64, Box<Block>>);

#[derive(Debug, Default)]
struct Block {
    /// A bit for each number that is there.
    there: u32,
    hashes: [[u8; 8]; BLOCK as usize],
}

/// The block of a number, its place there, and its bit.
const fn place(seq: u64) -> (u64, usize, u32) {
    let at = seq % BLOCK;
    (seq / BLOCK, at as usize, 1 << at)
}

impl Hashes {
    pub(super) fn insert(&mut self, seq: u64, hash: ShortHash) {
        let (block, at, bit) = place(seq);
        let block = self.0.entry(block).or_default();
        block.there |= bit;
        block.hashes[at] = hash.0;
    }

    pub(super) fn get(&self, seq: u64) -> Option<ShortHash> {
        let (block, at, bit) = place(seq);
        self.0.get(&block).filter(|block| block.there & bit != 0).map(|block| ShortHash(block.hashes[at]))
    }

    pub(super) fn remove(&mut self, seq: u64) -> Option<ShortHash> {
        let (number, at, bit) = place(seq);
        let block = self.0.get_mut(&number).filter(|block| block.there & bit != 0)?;
        let hash = ShortHash(block.hashes[at]);
        block.there &= !bit;
        if block.there == 0 {
            self.0.remove(&number);
        }
        Some(hash)
    }

    pub(super) fn contains(&self, seq: u64) -> bool {
        self.get(seq).is_some()
    }

    /// Whether something of `first..=last` is there.
    pub(super) fn any_within(&self, first: u64, last: u64) -> bool {
        // At most the block at each end has nothing to say of the range: an empty one is not kept.
        self.0.range(first / BLOCK..=last / BLOCK).any(|(number, block)| {
            let begin = number * BLOCK;
            let (low, high) = (first.saturating_sub(begin), (last - begin).min(BLOCK - 1));
            block.there & (u32::MAX << low) & (u32::MAX >> (BLOCK - 1 - high)) != 0
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hash(number: u64) -> ShortHash {
        ShortHash(number.to_be_bytes())
    }

    proptest! {
        #[test]
        fn it_says_what_a_map_says(steps in prop::collection::vec((0..4_u8, 0..200_u64, any::<u64>()), 0..400)) {
            let (mut hashes, mut map) = (Hashes::default(), BTreeMap::new());
            for (what, seq, number) in steps {
                // Also across the edges of blocks, and at the end of what a number can be.
                let seq = if seq % 7 == 0 { u64::MAX - seq } else { seq };
                match what {
                    0 | 1 => {
                        hashes.insert(seq, hash(number));
                        map.insert(seq, hash(number));
                    }
                    2 => prop_assert_eq!(hashes.remove(seq), map.remove(&seq)),
                    _ => prop_assert_eq!(hashes.get(seq), map.get(&seq).copied()),
                }
                prop_assert_eq!(hashes.contains(seq), map.contains_key(&seq));
                prop_assert_eq!(hashes.is_empty(), map.is_empty());
                let last = seq.saturating_add(number % 70);
                prop_assert_eq!(hashes.any_within(seq, last), map.range(seq..=last).next().is_some());
            }
        }
    }

    #[test]
    fn what_follows_each_other_shares_its_block_and_what_is_gone_costs_nothing() {
        let mut hashes = Hashes::default();
        (0..32 * BLOCK).for_each(|seq| hashes.insert(seq, hash(seq)));
        assert_eq!(hashes.0.len(), 32);
        assert_eq!(size_of::<Block>(), 260);
        (0..32 * BLOCK).for_each(|seq| assert_eq!(hashes.remove(seq), Some(hash(seq))));
        assert!(hashes.is_empty());
    }
}

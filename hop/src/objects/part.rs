//! How an object is cut into parts.

/// A part has so many bytes, as long as that makes no more parts than a store takes. S3 wants 5 MiB at least.
pub const PART_BYTES: u64 = 8 << 20;
/// An object has so many parts at most.
const PARTS_MAX: u64 = 10_000;
/// Parts are of whole mebibytes: 10,000 of 105 MiB are the largest envelope, and what memory that one takes.
const PART_STEP: u64 = 1 << 20;

/// How large the parts of an object are.
#[must_use]
pub fn part_bytes(total: u64) -> u64 {
    total.div_ceil(PARTS_MAX).next_multiple_of(PART_STEP).max(PART_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_has_no_more_parts_than_a_store_takes_and_none_is_too_small() {
        for total in [1, 5 << 20, 50 << 30, (80_000 << 20) + 1, 1 << 40] {
            let bytes = part_bytes(total);
            assert!(total.div_ceil(bytes) <= PARTS_MAX, "{total}");
            assert!(
                (PART_BYTES..=105 << 20).contains(&bytes) && bytes.is_multiple_of(PART_STEP),
                "{total}: {bytes}"
            );
        }
        assert_eq!(part_bytes(50 << 30), PART_BYTES);
    }
}

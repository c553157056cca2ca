//! The arithmetic of sizes (envelope document, 1.5): a length can be judged before the first body byte.
//!
//! ```text
//! header + tag = 92 + A + sum over EDKs (6 + P + I + C)
//! envelope     = header + tag + 32 * (N - 1) + 40 + plaintext        N = max(1, ceil(plaintext / FL)) when we seal
//! from a total T:  B = T - H - 40,  N - 1 = B div (FL + 32),  n = B mod (FL + 32),  n <= FL or T is impossible
//! ```

use super::format_error::FormatError;

/// Bytes that a regular frame adds to its content: number, IV, tag.
pub const REGULAR_OVERHEAD: u64 = 32;
/// Bytes that the final frame adds to its content: marker, number, IV, length, tag.
pub const FINAL_OVERHEAD: u64 = 40;

/// Frame length when we seal, in bytes.
pub const FRAME_LENGTH: u32 = 65_536;
/// Smallest frame length that is opened, in bytes.
pub const FRAME_LENGTH_MIN: u32 = 128;
/// Largest frame length that is opened, in bytes: bounds the memory of a streaming opener.
pub const FRAME_LENGTH_MAX: u32 = 1 << 20;

/// Length of header and tag in bytes, for a context of `context` bytes and EDKs of (provider id, provider info,
/// ciphertext) bytes.
pub fn header_len(context: usize, edks: impl IntoIterator<Item = (usize, usize, usize)>) -> usize {
    92 + context + edks.into_iter().map(|(id, info, ciphertext)| 6 + id + info + ciphertext).sum::<usize>()
}

/// What is fixed once the header is known: everything else follows from one length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    header_len: u64,
    frame_length: u64,
}

/// The body that a total length implies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodySize {
    /// Frames, the final one included: at least 1.
    pub frames: u64,
    /// Bytes of content in the final frame.
    pub final_len: u32,
    /// Bytes of plaintext in all frames.
    pub plaintext_len: u64,
}

impl Sizes {
    /// For a header of `header_len` bytes with its tag, and a frame length already known to be in bounds.
    pub(super) fn new(header_len: usize, frame_length: u32) -> Self {
        Self { header_len: header_len as u64, frame_length: u64::from(frame_length) }
    }

    /// Length of the envelope that we seal from `plaintext_len` bytes; none if it has no envelope (2^32 frames).
    pub fn total(&self, plaintext_len: u64) -> Option<u64> {
        let frames = plaintext_len.div_ceil(self.frame_length).max(1);
        if frames > u64::from(u32::MAX) {
            return None;
        }
        plaintext_len.checked_add(self.header_len + REGULAR_OVERHEAD * (frames - 1) + FINAL_OVERHEAD)
    }

    /// The body of an envelope of `total` bytes, by either convention for the final frame.
    ///
    /// # Errors
    /// `truncated` if no body fits, `final-too-long` if the final frame would exceed the frame length, `sequence` if
    /// frames would run out of numbers: no envelope with this header has this length.
    pub fn of_total(&self, total: u64) -> Result<BodySize, FormatError> {
        let body = total.checked_sub(self.header_len + FINAL_OVERHEAD).ok_or(FormatError::Truncated)?;
        let (regular, final_len) =
            (body / (self.frame_length + REGULAR_OVERHEAD), body % (self.frame_length + REGULAR_OVERHEAD));
        if final_len > self.frame_length {
            return Err(FormatError::FinalTooLong {
                length: final_len as u32,
                frame_length: self.frame_length as u32,
            });
        }
        if regular >= u64::from(u32::MAX) {
            return Err(FormatError::Sequence { expected: u32::MAX, found: u32::MAX });
        }
        Ok(BodySize {
            frames: regular + 1,
            final_len: final_len as u32,
            plaintext_len: regular * self.frame_length + final_len,
        })
    }

    /// Offset in the envelope at which frame `index`, from 1, begins.
    pub fn frame_offset(&self, index: u32) -> u64 {
        self.header_len + u64::from(index.saturating_sub(1)) * (self.frame_length + REGULAR_OVERHEAD)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_total_gives_back_the_plaintext_length(
            header in 92usize..700_000,
            frame_length in FRAME_LENGTH_MIN..=FRAME_LENGTH_MAX,
            plaintext in 0u64..1 << 40,
        ) {
            let sizes = Sizes::new(header, frame_length);
            match sizes.total(plaintext) {
                Some(total) => prop_assert_eq!(sizes.of_total(total).map(|body| body.plaintext_len), Ok(plaintext)),
                None => prop_assert!(plaintext > u64::from(u32::MAX) * u64::from(frame_length)),
            }
        }

        #[test]
        fn every_length_is_possible_or_refused_without_overflow(total: u64, frame_length in FRAME_LENGTH_MIN..=FRAME_LENGTH_MAX) {
            let sizes = Sizes::new(445, frame_length);
            if let Ok(body) = sizes.of_total(total) {
                prop_assert_eq!(445 + 32 * (body.frames - 1) + 40 + body.plaintext_len, total);
                prop_assert!(body.final_len <= frame_length);
            }
        }
    }

    #[test]
    fn a_length_between_two_envelopes_is_impossible() {
        let sizes = Sizes::new(445, 128);
        assert_eq!(sizes.of_total(484), Err(FormatError::Truncated));
        assert_eq!(sizes.of_total(485 + 128).map(|body| (body.frames, body.final_len)), Ok((1, 128)));
        for total in 485 + 129..485 + 160 {
            assert_eq!(sizes.of_total(total).map_err(|e| e.class()), Err("final-too-long"));
        }
        assert_eq!(sizes.of_total(485 + 160).map(|body| (body.frames, body.final_len)), Ok((2, 0)));
        assert_eq!(sizes.frame_offset(2), 445 + 160);
    }
}

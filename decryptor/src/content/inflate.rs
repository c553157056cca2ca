//! Inflates `pithead:encoding = zstd` within a limit: one frame, no skippable frames, no dictionary, window at most 8 MiB,
//! nothing behind the frame.

use super::ContentError;
use std::io::Read as _;

/// The most that a batch may inflate to. A batch is sealed from memory, so an honest one is far below.
pub const BATCH_LIMIT_BYTES: u64 = 64 * 1024 * 1024;

/// How many times its sealed size anything else may inflate to.
pub const FILE_LIMIT_FACTOR: u64 = 100;

/// 2^23 = 8 MiB: what a frame may ask its reader to remember.
pub(super) const WINDOW_LOG_MAX: u32 = 23;

const FRAME_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// The limit for an envelope of `sealed_bytes`.
#[must_use]
pub fn limit(is_batch: bool, sealed_bytes: u64) -> u64 {
    if is_batch { BATCH_LIMIT_BYTES } else { sealed_bytes.saturating_mul(FILE_LIMIT_FACTOR) }
}

/// Judges a frame's header (RFC 8878, 3.1.1.1) by as much as there is of it: true once all was there that the rules speak of, at
/// most 13 bytes.
///
/// The library alone would not do. It steps over skippable frames: a place to hide bytes that two readers see differently. And
/// where it is given a frame whole, and room for what comes out, it does not ask for the window.
pub(super) fn judge_head(seen: &[u8]) -> Result<bool, ContentError> {
    const SINGLE_SEGMENT: u8 = 1 << 5;
    let refuse = |what| Err(ContentError::Zstd { what });
    let magic = seen.len().min(FRAME_MAGIC.len());
    if seen[..magic] != FRAME_MAGIC[..magic] {
        return refuse("it does not begin with a zstd frame");
    }
    let Some(descriptor) = seen.get(4) else { return Ok(false) };
    if descriptor & 0b11 != 0 {
        return refuse("it asks for a dictionary");
    }
    let window = if descriptor & SINGLE_SEGMENT == 0 {
        let Some(window) = seen.get(5) else { return Ok(false) };
        let base = 1_u64 << (10 + (window >> 3));
        base + base / 8 * u64::from(window & 7)
    } else {
        // The content is its own window, and its size stands here, little-endian.
        let width = 1 << (descriptor >> 6);
        let Some(size) = seen.get(5..5 + width) else { return Ok(false) };
        let mut bytes = [0; 8];
        bytes[..width].copy_from_slice(size);
        u64::from_le_bytes(bytes).saturating_add(if width == 2 { 256 } else { 0 })
    };
    if window > 1 << WINDOW_LOG_MAX {
        return refuse("its window is over 8 MiB");
    }
    Ok(true)
}

/// Inflates the one frame that `compressed` must be.
pub fn inflate(compressed: &[u8], limit: u64) -> Result<Vec<u8>, ContentError> {
    let refuse = |what| Err(ContentError::Zstd { what });
    if !judge_head(compressed)? {
        return refuse("it ends inside the frame header");
    }
    let mut reader = match zstd::stream::read::Decoder::with_buffer(compressed) {
        Ok(reader) => reader.single_frame(),
        Err(_) => return refuse("the decoder did not start"),
    };
    if reader.window_log_max(WINDOW_LOG_MAX).is_err() {
        return refuse("the window limit was not accepted");
    }
    // What the header promises is not believed: memory grows with what really comes out.
    let mut plain = Vec::new();
    if reader.by_ref().take(limit.saturating_add(1)).read_to_end(&mut plain).is_err() {
        return refuse("the frame is damaged");
    }
    if plain.len() as u64 > limit {
        return Err(ContentError::InflateLimit { limit });
    }
    if !reader.finish().is_empty() {
        return refuse("there are bytes behind the frame");
    }
    Ok(plain)
}

/// Frames made by hand, for the tests of both readers.
#[cfg(test)]
pub(super) mod frames {
    /// A frame of the three bytes `abc`, not compressed, behind this header.
    pub(in crate::content) fn abc(descriptor: u8, header: &[u8]) -> Vec<u8> {
        let block = [3 << 3 | 1, 0, 0];
        [&super::FRAME_MAGIC[..], &[descriptor], header, &block, b"abc"].concat()
    }

    /// Headers that are within the rules.
    pub(in crate::content) fn allowed() -> Vec<Vec<u8>> {
        vec![
            // Content size in one byte, and in eight; it is the window.
            abc(0b0010_0000, &[3]),
            abc(0b1110_0000, &3_u64.to_le_bytes()),
            // A window of exactly 8 MiB, without and with the content size.
            abc(0, &[13 << 3]),
            abc(0b1000_0000, &[13 << 3, 3, 0, 0, 0]),
        ]
    }

    /// Headers that ask for more than 8 MiB, or for a dictionary.
    pub(in crate::content) fn forbidden() -> Vec<Vec<u8>> {
        vec![
            // 9 MiB, and 2^41 and more.
            abc(0, &[13 << 3 | 1]),
            abc(0, &[0xff]),
            // The same of a frame that says how little comes out.
            abc(0b1000_0000, &[13 << 3 | 1, 3, 0, 0, 0]),
            abc(0b1000_0000, &[20 << 3, 3, 0, 0, 0]),
            // The content is the window, and is said to be longer.
            abc(0b1010_0000, &((8_u32 << 20) + 1).to_le_bytes()),
            abc(0b1110_0000, &u64::MAX.to_le_bytes()),
            // A dictionary, by an id of one byte, and by id 0.
            abc(0b0000_0001, &[0, 7]),
            abc(0b0010_0001, &[0, 3]),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn squeeze(plain: &[u8]) -> Vec<u8> {
        zstd::stream::encode_all(plain, 3).unwrap()
    }

    #[test]
    fn one_frame_comes_back_whole() {
        let plain = vec![7_u8; 300_000];
        assert_eq!(inflate(&squeeze(&plain), 300_000).unwrap(), plain);
        assert_eq!(inflate(&squeeze(b""), 0).unwrap(), b"");
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let bomb = squeeze(&vec![0_u8; 10_000_000]);
        assert!(bomb.len() < 10_000);
        assert_eq!(inflate(&bomb, 1_000_000), Err(ContentError::InflateLimit { limit: 1_000_000 }));
    }

    #[test]
    fn a_window_over_8_mib_and_a_dictionary_are_refused_however_little_comes_out() {
        for frame in frames::allowed() {
            assert_eq!(inflate(&frame, 3).unwrap(), b"abc", "{frame:02x?}");
        }
        for frame in frames::forbidden() {
            assert!(matches!(inflate(&frame, 1 << 20), Err(ContentError::Zstd { .. })), "{frame:02x?}");
        }
    }

    #[test]
    fn the_limits_are_those_of_the_envelope_document() {
        assert_eq!((limit(true, 1), limit(true, 1 << 40)), (64 << 20, 64 << 20));
        assert_eq!((limit(false, 7), limit(false, u64::MAX)), (700, u64::MAX));
        let plain = vec![7_u8; 100_000];
        let squeezed = squeeze(&plain);
        assert_eq!(inflate(&squeezed, 100_000).unwrap(), plain, "the limit itself is within it");
        assert_eq!(inflate(&squeezed, 99_999), Err(ContentError::InflateLimit { limit: 99_999 }));
    }

    #[test]
    fn a_second_frame_a_skippable_frame_and_trailing_bytes_are_refused() {
        let good = squeeze(b"telemetry");
        let mut twice = good.clone();
        twice.extend_from_slice(&good);
        let mut trailing = good.clone();
        trailing.push(0);
        let mut skippable = vec![0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 9];
        skippable.extend_from_slice(&good);
        for bad in
            [twice, trailing, skippable, good[..good.len() - 1].to_vec(), b"(\xb5/\xfd".to_vec(), vec![]]
        {
            assert!(matches!(inflate(&bad, 1 << 20), Err(ContentError::Zstd { .. })), "{bad:02x?}");
        }
    }
}

//! Inflates `pithead:encoding = zstd` within a limit: one frame, no skippable frames, no dictionary, window at most 8 MiB,
//! nothing behind the frame.

use super::ContentError;
use std::io::Read as _;

/// The most that a batch may inflate to. A batch is sealed from memory, so an honest one is far below.
pub const BATCH_LIMIT_BYTES: u64 = 64 * 1024 * 1024;

/// How many times its sealed size anything else may inflate to.
pub const FILE_LIMIT_FACTOR: u64 = 100;

/// 2^23 = 8 MiB: what a frame may ask its reader to remember.
const WINDOW_LOG_MAX: u32 = 23;

const FRAME_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// The limit for an envelope of `sealed_bytes`.
#[must_use]
pub fn limit(is_batch: bool, sealed_bytes: u64) -> u64 {
    if is_batch { BATCH_LIMIT_BYTES } else { sealed_bytes.saturating_mul(FILE_LIMIT_FACTOR) }
}

/// Inflates the one frame that `compressed` must be.
pub fn inflate(compressed: &[u8], limit: u64) -> Result<Vec<u8>, ContentError> {
    let refuse = |what| Err(ContentError::Zstd { what });
    // The library would step over skippable frames: a place to hide bytes that two readers see differently.
    if !compressed.starts_with(&FRAME_MAGIC) {
        return refuse("it does not begin with a zstd frame");
    }
    match compressed.get(4) {
        None => return refuse("it ends inside the frame header"),
        Some(descriptor) if descriptor & 0b11 != 0 => return refuse("it asks for a dictionary"),
        Some(_) => {}
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
        return refuse("the frame is damaged, or its window is over 8 MiB");
    }
    if plain.len() as u64 > limit {
        return Err(ContentError::InflateLimit { limit });
    }
    if !reader.finish().is_empty() {
        return refuse("there are bytes behind the frame");
    }
    Ok(plain)
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

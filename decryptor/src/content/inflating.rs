//! Inflates while it writes, by the rules of [`crate::content::inflate`]: one frame, nothing before or behind it, no
//! dictionary, window at most 8 MiB, and a limit.

use std::io::{self, Write};

use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation as _, OutBuffer};

use crate::content::ContentError;
use crate::content::inflate::{WINDOW_LOG_MAX, judge_head};

/// What a pipe is taken to hold at most, for its limit while it runs.
pub(crate) const PIPE_ASSUMED_BYTES: u64 = 1 << 40;

/// One block of zstd is at most this long.
const PIECE: usize = 128 * 1024;

/// Takes compressed bytes and hands plain ones on.
pub(crate) struct Inflating<W> {
    output: W,
    decoder: Decoder<'static>,
    piece: Vec<u8>,
    /// The frame's header, until there is enough of it to be judged; none from then on.
    head: Option<Vec<u8>>,
    ended: bool,
    written: u64,
    limit: u64,
    refused: Option<ContentError>,
}

impl<W: Write> Inflating<W> {
    pub(crate) fn new(output: W, limit: u64) -> Result<Self, ContentError> {
        let not_started = |_| ContentError::Zstd { what: "the decoder did not start" };
        let mut decoder = Decoder::new().map_err(not_started)?;
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX)).map_err(not_started)?;
        Ok(Self {
            output,
            decoder,
            piece: vec![0; PIECE],
            head: Some(Vec::with_capacity(16)),
            ended: false,
            written: 0,
            limit,
            refused: None,
        })
    }

    /// Why the content was refused, if it was.
    pub(crate) fn refused(&self) -> Option<ContentError> {
        self.refused
    }

    /// The content is over: gives the bytes written.
    pub(crate) fn finish(self) -> Result<u64, ContentError> {
        match self.refused {
            Some(error) => Err(error),
            None if self.ended => Ok(self.written),
            None => Err(ContentError::Zstd { what: "it ends before its frame does" }),
        }
    }

    fn refuse(&mut self, error: ContentError) -> io::Error {
        self.refused = Some(error);
        io::Error::new(io::ErrorKind::InvalidData, error)
    }

    fn inflate(&mut self, compressed: &[u8]) -> io::Result<()> {
        let mut input = InBuffer::around(compressed);
        loop {
            if self.ended {
                if input.pos() < compressed.len() {
                    return Err(self.refuse(ContentError::Zstd { what: "there are bytes behind the frame" }));
                }
                return Ok(());
            }
            let mut output = OutBuffer::around(self.piece.as_mut_slice());
            let step = self.decoder.run(&mut input, &mut output);
            let produced = output.pos();
            let Ok(hint) = step else {
                let what = "the frame is damaged";
                return Err(self.refuse(ContentError::Zstd { what }));
            };
            self.written += produced as u64;
            if self.written > self.limit {
                return Err(self.refuse(ContentError::InflateLimit { limit: self.limit }));
            }
            self.output.write_all(&self.piece[..produced])?;
            self.ended = hint == 0;
            if !self.ended && input.pos() == compressed.len() && produced < PIECE {
                return Ok(());
            }
        }
    }
}

impl<W: Write> Write for Inflating<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if let Some(error) = self.refused {
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        let mut rest = buffer;
        // Byte by byte, at most 13 of them: nothing that is forbidden reaches the decoder.
        while let (Some(head), [byte, later @ ..]) = (&mut self.head, rest) {
            head.push(*byte);
            rest = later;
            match judge_head(head) {
                Ok(false) => {}
                Ok(true) => {
                    let head = self.head.take().unwrap_or_default();
                    self.inflate(&head)?;
                }
                Err(error) => return Err(self.refuse(error)),
            }
        }
        if self.head.is_some() {
            return Ok(buffer.len());
        }
        self.inflate(rest)?;
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::content::inflate::frames;

    fn inflated(compressed: &[u8], limit: u64, chunk: usize) -> Result<Vec<u8>, ContentError> {
        let mut plain = Vec::new();
        let mut inflating = Inflating::new(&mut plain, limit).unwrap();
        let fed = compressed.chunks(chunk).try_for_each(|chunk| inflating.write_all(chunk));
        assert_eq!(fed.is_err(), inflating.refused().is_some());
        inflating.finish()?;
        Ok(plain)
    }

    #[test]
    fn a_frame_in_pieces_of_any_size_comes_out_whole() {
        let plain: Vec<u8> = (0..700_000_u32).map(|n| (n / 7) as u8).collect();
        let compressed = zstd::stream::encode_all(plain.as_slice(), 3).unwrap();
        for chunk in [1, 3, 1000, usize::MAX] {
            assert_eq!(inflated(&compressed, 700_000, chunk).unwrap(), plain);
        }
        assert_eq!(inflated(&zstd::stream::encode_all(&b""[..], 3).unwrap(), 0, 1).unwrap(), b"");
    }

    #[test]
    fn what_the_rules_forbid_is_refused_in_any_pieces() {
        let good = zstd::stream::encode_all(&b"telemetry"[..], 3).unwrap();
        let twice = [good.clone(), good.clone()].concat();
        let trailing = [&good[..], &[0]].concat();
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 9][..], &good].concat();
        for bad in
            [&twice, &trailing, &skippable, &good[..good.len() - 1].to_vec(), &good[..3].to_vec(), &vec![]]
        {
            for chunk in [1, usize::MAX] {
                assert!(
                    matches!(inflated(bad, 1 << 20, chunk), Err(ContentError::Zstd { .. })),
                    "{bad:02x?}"
                );
            }
        }
        for frame in frames::forbidden() {
            for chunk in [1, 7, usize::MAX] {
                let refused = inflated(&frame, 1 << 20, chunk);
                assert!(matches!(refused, Err(ContentError::Zstd { .. })), "{frame:02x?}");
            }
        }
        for frame in frames::allowed() {
            for chunk in [1, 7, usize::MAX] {
                assert_eq!(inflated(&frame, 3, chunk).unwrap(), b"abc", "{frame:02x?}");
            }
        }
        let bomb = zstd::stream::encode_all(&vec![0_u8; 10_000_000][..], 3).unwrap();
        assert_eq!(inflated(&bomb, 1 << 20, 100), Err(ContentError::InflateLimit { limit: 1 << 20 }));
    }
}

//! The frames, opened one by one in constant memory: one frame's buffer, at most 1 MiB, grown to what is needed.

use std::fmt;
use std::io::{Read, Write};

use super::OpenError;
use crate::envelope::aead::{MessageCipher, TAG_LEN};
use crate::envelope::format_error::FormatError;
use crate::envelope::frame::{FINAL_HEAD, FrameHead, FrameWalker, Step};
use crate::envelope::header::Header;
use crate::envelope::keys::MessageId;

/// Proof that a body was opened to its final frame and that the input ended there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Complete {
    /// Bytes of plaintext in all.
    pub plaintext_len: u64,
    /// Frames, the final one included.
    pub frames: u32,
}

/// Opens the frames of one envelope as they arrive.
///
/// What [`push`](Self::push) gives is authentic and in order, but not complete: a file made of it must not get its name
/// before [`finish`](Self::finish) says [`Complete`].
pub struct BodyOpener {
    cipher: MessageCipher,
    message_id: MessageId,
    walker: FrameWalker,
    head: Option<FrameHead>,
    /// Content and tag of the frame at hand.
    frame: Vec<u8>,
    filled: usize,
    refused: Option<FormatError>,
}

impl BodyOpener {
    pub(super) fn new(header: &Header, cipher: MessageCipher) -> Self {
        Self {
            cipher,
            message_id: *header.message_id(),
            walker: FrameWalker::new(header.frame_length()),
            head: None,
            frame: Vec::new(),
            filled: 0,
            refused: None,
        }
    }

    /// Takes sealed bytes from the front of `input`. Gives the content of the next frame, perhaps empty, whenever its
    /// tag has been found to hold, and is then to be called again; `None` once `input` is used up.
    ///
    /// # Errors
    /// The class of the first fault in the order of the wire. It is final: every later call answers it again.
    pub fn push(&mut self, input: &mut &[u8]) -> Result<Option<&[u8]>, FormatError> {
        match self.advance(input) {
            Ok(Some(length)) => Ok(Some(&self.frame[..length])),
            Ok(None) => Ok(None),
            Err(error) => Err(*self.refused.insert(error)),
        }
    }

    /// The length of the frame that was completed and opened.
    fn advance(&mut self, input: &mut &[u8]) -> Result<Option<usize>, FormatError> {
        if let Some(error) = self.refused {
            return Err(error);
        }
        while let Some(step) = self.walker.step(input)? {
            match step {
                Step::Head(head) => self.expect(head),
                Step::Piece(piece) => {
                    self.frame[self.filled..self.filled + piece.len()].copy_from_slice(piece);
                    self.filled += piece.len();
                    if let Some(length) = self.opened()? {
                        return Ok(Some(length));
                    }
                }
            }
        }
        Ok(None)
    }

    fn expect(&mut self, head: FrameHead) {
        // Grown to what a frame says it has, itself bounded by the authentic frame length; never shrunk.
        if self.frame.len() < head.rest() {
            self.frame.resize(head.rest(), 0);
        }
        self.filled = 0;
        self.head = Some(head);
    }

    /// Opens the frame at hand if it is all there.
    fn opened(&mut self) -> Result<Option<usize>, FormatError> {
        let Some(head) = self.head.filter(|head| head.rest() == self.filled) else { return Ok(None) };
        self.head = None;
        open_frame(&self.cipher, &self.message_id, &head, &mut self.frame[..self.filled])?;
        Ok(Some(head.content_len as usize))
    }

    /// The input is over.
    ///
    /// # Errors
    /// `truncated` if the final frame is missing or incomplete; an earlier refusal again.
    pub fn finish(self) -> Result<Complete, FormatError> {
        if let Some(error) = self.refused {
            return Err(error);
        }
        self.walker.finish()?;
        Ok(Complete { plaintext_len: self.walker.plaintext_len(), frames: self.walker.frames() })
    }

    /// Opens all frames from `envelope` to `plaintext`, and sees to it that the input ends there. Does not flush or sync.
    ///
    /// # Errors
    /// [`OpenError`]. What was written is authentic as far as it goes and must not be taken for the whole.
    pub fn open_all(
        mut self,
        envelope: &mut impl Read,
        plaintext: &mut impl Write,
    ) -> Result<Complete, OpenError> {
        let mut head = [0; FINAL_HEAD];
        loop {
            // Frame by frame: heads through the walker, content straight into the buffer in which it is opened.
            let want = match (self.head, self.walker.ended()) {
                (Some(frame), _) => &mut self.frame[self.filled..frame.rest()],
                (None, false) => &mut head[..self.walker.wants()],
                // One byte after the end is one too many.
                (None, true) => &mut head[..1],
            };
            let read = match envelope.read(want) {
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(OpenError::Read(error)),
            };
            if read == 0 {
                return Ok(self.finish()?);
            }
            if self.head.is_some() {
                self.walker.passed(read);
                self.filled += read;
                if let Some(length) = self.opened()? {
                    plaintext.write_all(&self.frame[..length]).map_err(OpenError::Write)?;
                }
            } else if let Some(content) = self.push(&mut &head[..read])? {
                // A head yields no content; should it ever, it is authentic.
                plaintext.write_all(content).map_err(OpenError::Write)?;
            }
        }
    }
}

impl fmt::Debug for BodyOpener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyOpener").field("frames", &self.walker.frames()).finish_non_exhaustive()
    }
}

/// Opens a whole body into one allocation, each frame where its plaintext is to stay.
pub(super) fn open_in_memory(
    header: &Header,
    cipher: &MessageCipher,
    mut body: &[u8],
) -> Result<Vec<u8>, FormatError> {
    let mut plaintext = Vec::with_capacity(body.len());
    let mut walker = FrameWalker::new(header.frame_length());
    let mut at_hand = None;
    while let Some(step) = walker.step(&mut body)? {
        match step {
            Step::Head(head) => at_hand = Some(head),
            Step::Piece(piece) => {
                // The body lies in memory whole, so a shorter piece is its cut end, which `finish` refuses.
                if let Some(head) = at_hand.take().filter(|head: &FrameHead| head.rest() == piece.len()) {
                    let start = plaintext.len();
                    plaintext.extend_from_slice(piece);
                    open_frame(cipher, header.message_id(), &head, &mut plaintext[start..])?;
                    plaintext.truncate(start + head.content_len as usize);
                }
            }
        }
    }
    walker.finish()?;
    Ok(plaintext)
}

fn open_frame(
    cipher: &MessageCipher,
    message_id: &MessageId,
    head: &FrameHead,
    frame: &mut [u8],
) -> Result<(), FormatError> {
    let refused = FormatError::FrameTag { frame: head.number };
    let (content, tag) = frame.split_last_chunk_mut::<TAG_LEN>().ok_or(refused)?;
    let aad = head.aad(message_id);
    cipher.open(&head.iv(), aad.as_bytes(), content, tag).map_err(|_| refused)
}

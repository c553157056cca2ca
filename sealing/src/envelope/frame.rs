//! The grammar of the body (envelope document, 1.4), walked in chunks of any size and without a key.
//!
//! ```text
//! regular  u32 number                  IV[12]         content[FL]  tag[16]
//! final    FF FF FF FF   u32 number    IV[12]  u32 n  content[n]   tag[16]      0 <= n <= FL, exactly one, last
//! ```
//!
//! Numbers count from 1, the IV is the number, and every field is judged as soon as its last byte is there: the verdict
//! does not depend on how the input was cut.

use super::aead::{IV_LEN, TAG_LEN};
use super::format_error::FormatError;
use super::keys::MessageId;

/// Stands where the number of a regular frame would: the frame is the final one.
const FINAL_MARKER: u32 = u32::MAX;
pub(super) const REGULAR_HEAD: usize = 4 + IV_LEN;
pub(super) const FINAL_HEAD: usize = 4 + 4 + IV_LEN + 4;

const REGULAR_NAME: &[u8] = b"AWSKMSEncryptionClient Frame";
const FINAL_NAME: &[u8] = b"AWSKMSEncryptionClient Final Frame";
const AAD_MAX: usize = MessageId::LEN + FINAL_NAME.len() + 4 + 8;

/// What a frame says of itself, in order and in bounds, not yet authentic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHead {
    pub(super) number: u32,
    pub(super) is_final: bool,
    pub(super) content_len: u32,
}

impl FrameHead {
    /// Bytes after the head: content and tag.
    pub(super) fn rest(&self) -> usize {
        self.content_len as usize + TAG_LEN
    }

    pub(super) fn iv(&self) -> [u8; IV_LEN] {
        iv(self.number)
    }

    /// What the tag covers besides the content.
    pub(super) fn aad(&self, message_id: &MessageId) -> Aad {
        let name = if self.is_final { FINAL_NAME } else { REGULAR_NAME };
        let mut aad = Aad { bytes: [0; AAD_MAX], len: 0 };
        aad.put(message_id.as_bytes());
        aad.put(name);
        aad.put(&self.number.to_be_bytes());
        aad.put(&u64::from(self.content_len).to_be_bytes());
        aad
    }

    /// Writes the head to the front of `out`: 16 bytes, or 24 for the final frame.
    pub(super) fn write(&self, out: &mut [u8]) {
        if self.is_final {
            out[..4].copy_from_slice(&FINAL_MARKER.to_be_bytes());
            out[4..8].copy_from_slice(&self.number.to_be_bytes());
            out[8..20].copy_from_slice(&self.iv());
            out[20..24].copy_from_slice(&self.content_len.to_be_bytes());
        } else {
            out[..4].copy_from_slice(&self.number.to_be_bytes());
            out[4..16].copy_from_slice(&self.iv());
        }
    }
}

/// Additional authenticated data of one frame, on the stack.
pub(super) struct Aad {
    bytes: [u8; AAD_MAX],
    len: usize,
}

impl Aad {
    fn put(&mut self, part: &[u8]) {
        self.bytes[self.len..self.len + part.len()].copy_from_slice(part);
        self.len += part.len();
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

fn iv(number: u32) -> [u8; IV_LEN] {
    let mut iv = [0; IV_LEN];
    iv[8..].copy_from_slice(&number.to_be_bytes());
    iv
}

/// What a step over the input found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step<'a> {
    /// A frame begins; its content and tag follow.
    Head(FrameHead),
    /// A piece of a frame's content and tag.
    Piece(&'a [u8]),
}

/// Walks the frames of one body.
#[derive(Debug, Clone)]
pub(super) struct FrameWalker {
    frame_length: u32,
    /// The number due next.
    due: u32,
    plaintext_len: u64,
    at: At,
}

#[derive(Debug, Clone)]
enum At {
    Head { seen: [u8; FINAL_HEAD], have: usize, need: usize },
    Rest { left: usize, is_final: bool },
    End,
}

const AT_HEAD: At = At::Head { seen: [0; FINAL_HEAD], have: 0, need: 4 };

impl FrameWalker {
    pub(super) fn new(frame_length: u32) -> Self {
        Self { frame_length, due: 1, plaintext_len: 0, at: AT_HEAD }
    }

    /// Goes on behind `frames` regular frames that were walked before; fewer than 2^32 - 1.
    pub(super) fn behind(frame_length: u32, frames: u32) -> Self {
        let plaintext_len = u64::from(frames) * u64::from(frame_length);
        Self { frame_length, due: frames + 1, plaintext_len, at: AT_HEAD }
    }

    /// Consumes from `input` up to the next thing worth telling; `None` when the input is used up.
    ///
    /// An error is final: the walker must not be asked again.
    pub(super) fn step<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Step<'a>>, FormatError> {
        loop {
            if input.is_empty() {
                return Ok(None);
            }
            match &mut self.at {
                At::Head { seen, have, need } => {
                    let (now, later) = input.split_at((*need - *have).min(input.len()));
                    seen[*have..*have + now.len()].copy_from_slice(now);
                    *have += now.len();
                    *input = later;
                    if have < need {
                        return Ok(None);
                    }
                    match judge(&seen[..*have], self.due, self.frame_length)? {
                        Judged::Need(more) => *need = more,
                        Judged::Head(head) => {
                            self.plaintext_len += u64::from(head.content_len);
                            self.at = At::Rest { left: head.rest(), is_final: head.is_final };
                            return Ok(Some(Step::Head(head)));
                        }
                    }
                }
                At::Rest { left, .. } => {
                    let (now, later) = input.split_at((*left).min(input.len()));
                    *input = later;
                    self.passed(now.len());
                    return Ok(Some(Step::Piece(now)));
                }
                At::End => return Err(FormatError::Trailing),
            }
        }
    }

    /// How many bytes complete what the walker is at: a head's next field, or content and tag. 0 at the end.
    #[cfg(feature = "open")]
    pub(super) fn wants(&self) -> usize {
        match self.at {
            At::Head { have, need, .. } => need - have,
            At::Rest { left, .. } => left,
            At::End => 0,
        }
    }

    /// Notes that `bytes` of content and tag went by without being shown to [`FrameWalker::step`].
    pub(super) fn passed(&mut self, bytes: usize) {
        let At::Rest { left, is_final } = &mut self.at else { return };
        *left -= bytes;
        if *left > 0 {
            return;
        }
        if *is_final {
            self.at = At::End;
        } else {
            self.due += 1;
            self.at = AT_HEAD;
        }
    }

    pub(super) fn ended(&self) -> bool {
        matches!(self.at, At::End)
    }

    /// Frames completely passed.
    pub(super) fn frames(&self) -> u32 {
        if self.ended() { self.due } else { self.due - 1 }
    }

    /// Content in the frames whose heads were seen, in bytes.
    pub(super) fn plaintext_len(&self) -> u64 {
        self.plaintext_len
    }

    /// The input is over: it must have ended with the final frame.
    pub(super) fn finish(&self) -> Result<(), FormatError> {
        if self.ended() { Ok(()) } else { Err(FormatError::Truncated) }
    }
}

enum Judged {
    Need(usize),
    Head(FrameHead),
}

/// Judges as much of a head as is there; asked at 4, then 16, or 8, 20 and 24 bytes.
fn judge(seen: &[u8], due: u32, frame_length: u32) -> Result<Judged, FormatError> {
    let word = |at: usize| u32::from_be_bytes(seen[at..at + 4].try_into().expect("four bytes"));
    let is_final = word(0) == FINAL_MARKER;
    let number_at = if is_final { 4 } else { 0 };
    let iv_at = number_at + 4;
    if seen.len() < iv_at {
        return Ok(Judged::Need(iv_at));
    }
    let found = word(number_at);
    if found != due {
        return Err(FormatError::Sequence { expected: due, found });
    }
    let iv_end = iv_at + IV_LEN;
    if seen.len() < iv_end {
        return Ok(Judged::Need(iv_end));
    }
    if seen[iv_at..iv_end] != iv(due) {
        return Err(FormatError::Iv { frame: due });
    }
    if !is_final {
        return Ok(Judged::Head(FrameHead { number: due, is_final, content_len: frame_length }));
    }
    if seen.len() < FINAL_HEAD {
        return Ok(Judged::Need(FINAL_HEAD));
    }
    let length = word(iv_end);
    if length > frame_length {
        return Err(FormatError::FinalTooLong { length, frame_length });
    }
    Ok(Judged::Head(FrameHead { number: due, is_final, content_len: length }))
}

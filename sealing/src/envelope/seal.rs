//! Sealing: header, then frames, each ciphered on its way to where it goes: no plaintext is copied.

use super::aead::{MessageCipher, TAG_LEN};
use super::context::Context;
use super::edk::Edk;
use super::frame::{FINAL_HEAD, FrameHead, REGULAR_HEAD};
use super::header::HeaderParts;
use super::keys::{DataKey, MessageId, MessageKeys};
use super::session::FILE_LEN_MAX;
use super::sizes::Sizes;

/// All that a message is sealed from, besides its plaintext.
pub(super) struct Material<'a> {
    pub(super) message_id: &'a MessageId,
    pub(super) context: &'a Context,
    pub(super) edks: &'a [Edk],
    pub(super) frame_length: u32,
    pub(super) data_key: &'a DataKey,
}

impl Material<'_> {
    fn header_len(&self) -> usize {
        super::sizes::header_len(self.context.wire_len(), self.edks.iter().map(Edk::field_lens))
    }

    /// Appends header and tag to an empty `out`; gives the cipher for the frames.
    pub(super) fn seal_header(&self, out: &mut Vec<u8>) -> MessageCipher {
        let keys = MessageKeys::derive(self.data_key, self.message_id);
        HeaderParts {
            message_id: self.message_id,
            context: self.context,
            edks: self.edks,
            frame_length: self.frame_length,
            commitment: &keys.commitment,
        }
        .write(out);
        let cipher = keys.cipher();
        let tag = cipher.seal(&[0; 12], out, &mut []);
        out.extend_from_slice(&tag);
        cipher
    }
}

/// How the last frame of a plaintext that fills its frames exactly is written. Readers accept both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LastFrame {
    /// The full frame is the final one: what we write.
    Full,
    /// An empty final frame follows it: what the Python SDK writes.
    #[cfg(feature = "open")]
    Empty,
}

/// Seals a whole message into one allocation; `None` if it is longer than an envelope may be.
pub(super) fn seal_message(material: &Material<'_>, plaintext: &[u8]) -> Option<Vec<u8>> {
    seal_message_as(material, plaintext, LastFrame::Full)
}

pub(super) fn seal_message_as(material: &Material<'_>, plaintext: &[u8], last: LastFrame) -> Option<Vec<u8>> {
    let length = plaintext.len() as u64;
    let total = Sizes::new(material.header_len(), material.frame_length).total(length)?;
    if length > FILE_LEN_MAX {
        return None;
    }
    let mut out = Vec::with_capacity(usize::try_from(total).ok()?);
    let cipher = material.seal_header(&mut out);
    let mut number = 1;
    let mut rest = plaintext;
    let keep = usize::from(last == LastFrame::Full);
    // All but the final frame: while there is more than one frame's content, or just as much where an empty one closes.
    while rest.len() >= material.frame_length as usize + keep {
        let (content, later) = rest.split_at(material.frame_length as usize);
        append(&mut out, &cipher, material.message_id, number, false, content);
        number += 1;
        rest = later;
    }
    append(&mut out, &cipher, material.message_id, number, true, rest);
    Some(out)
}

fn append(
    out: &mut Vec<u8>,
    cipher: &MessageCipher,
    message_id: &MessageId,
    number: u32,
    is_final: bool,
    content: &[u8],
) {
    let head_len = if is_final { FINAL_HEAD } else { REGULAR_HEAD };
    let head = FrameHead { number, is_final, content_len: content.len() as u32 };
    let start = out.len();
    out.resize(start + head_len + content.len(), 0);
    let (head_out, sealed) = out[start..].split_at_mut(head_len);
    head.write(head_out);
    let tag = cipher.seal_into(&head.iv(), head.aad(message_id).as_bytes(), content, sealed);
    out.extend_from_slice(&tag);
}

/// Content of one frame in a buffer with room for the longer head before it and the tag behind it.
pub(super) struct FrameBuffer {
    bytes: Box<[u8]>,
    filled: usize,
}

impl FrameBuffer {
    pub(super) fn new(frame_length: u32) -> Self {
        Self { bytes: vec![0; FINAL_HEAD + frame_length as usize + TAG_LEN].into(), filled: 0 }
    }

    /// Where content goes on.
    pub(super) fn spare(&mut self) -> &mut [u8] {
        let end = self.bytes.len() - TAG_LEN;
        &mut self.bytes[FINAL_HEAD + self.filled..end]
    }

    pub(super) fn advance(&mut self, bytes: usize) {
        self.filled += bytes;
    }

    /// Bytes of content in a full frame.
    pub(super) fn frame_length(&self) -> usize {
        self.bytes.len() - TAG_LEN - FINAL_HEAD
    }

    pub(super) fn is_full(&self) -> bool {
        FINAL_HEAD + self.filled + TAG_LEN == self.bytes.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Seals as regular frame `number` what lies elsewhere, of exactly the frame length, through the empty buffer, and gives
    /// the frame's bytes.
    pub(super) fn seal_full(
        &mut self,
        cipher: &MessageCipher,
        message_id: &MessageId,
        number: u32,
        content: &[u8],
    ) -> &[u8] {
        let head = FrameHead { number, is_final: false, content_len: content.len() as u32 };
        let start = FINAL_HEAD - REGULAR_HEAD;
        head.write(&mut self.bytes[start..FINAL_HEAD]);
        let (sealed, tag) = self.bytes[FINAL_HEAD..].split_at_mut(content.len());
        tag.copy_from_slice(&cipher.seal_into(&head.iv(), head.aad(message_id).as_bytes(), content, sealed));
        &self.bytes[start..]
    }

    /// Seals the content as frame `number`, empties the buffer and gives the frame's bytes.
    pub(super) fn seal(
        &mut self,
        cipher: &MessageCipher,
        message_id: &MessageId,
        number: u32,
        is_final: bool,
    ) -> &[u8] {
        let head = FrameHead { number, is_final, content_len: self.filled as u32 };
        let start = if is_final { 0 } else { FINAL_HEAD - REGULAR_HEAD };
        let end = FINAL_HEAD + self.filled;
        head.write(&mut self.bytes[start..FINAL_HEAD]);
        let tag = cipher.seal(&head.iv(), head.aad(message_id).as_bytes(), &mut self.bytes[FINAL_HEAD..end]);
        self.bytes[end..end + TAG_LEN].copy_from_slice(&tag);
        self.filled = 0;
        &self.bytes[start..end + TAG_LEN]
    }
}

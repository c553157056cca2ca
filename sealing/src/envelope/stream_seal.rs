//! Sealing in constant memory: two frame buffers, whatever the length.
//!
//! A frame is written once it is known whether it is the last: the second buffer is filled before the first is sealed,
//! so that a plaintext which fills its frames exactly ends in a full final frame. Of a piece that is longer than a frame, whole
//! frames are sealed from where they lie, and only the rest is copied.
//!
//! A sealer is not resumed. What was sealed is sent again as the bytes it is; sealing again from some offset would use
//! a nonce twice, and there is no way to ask for it.

use std::fmt;
use std::io::{Read, Write};

use super::aead::MessageCipher;
use super::keys::MessageId;
use super::seal::{FrameBuffer, Material};
use super::session::{FILE_LEN_MAX, SealError};
use crate::names::Identity;

/// What a finished stream amounts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealedStream {
    /// Bytes of plaintext.
    pub plaintext_len: u64,
    /// Bytes of the envelope.
    pub sealed_len: u64,
}

/// Seals one message whose plaintext comes in pieces.
pub struct StreamSealer {
    identity: Identity,
    message_id: MessageId,
    cipher: MessageCipher,
    header: Vec<u8>,
    /// The frame that is being filled.
    filling: FrameBuffer,
    /// A full frame that may still turn out to be the last.
    held: FrameBuffer,
    number: u32,
    plaintext_len: u64,
    sealed_len: u64,
}

impl StreamSealer {
    pub(super) fn new(material: &Material<'_>, identity: Identity) -> Self {
        let mut header = Vec::new();
        let cipher = material.seal_header(&mut header);
        Self {
            identity,
            message_id: *material.message_id,
            cipher,
            sealed_len: header.len() as u64,
            header,
            filling: FrameBuffer::new(material.frame_length),
            held: FrameBuffer::new(material.frame_length),
            number: 1,
            plaintext_len: 0,
        }
    }

    /// What the envelope is filed under.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Header and tag: the first bytes of the envelope, to be written before any frame.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// Takes plaintext from the front of `input`. Gives the next bytes of the envelope, a whole frame, whenever one is
    /// ready, and is then to be called again; `None` once `input` is used up.
    ///
    /// # Errors
    /// [`SealError::TooLong`] past 1 TiB; the envelope cannot be finished.
    pub fn push(&mut self, input: &mut &[u8]) -> Result<Option<&[u8]>, SealError> {
        while !input.is_empty() {
            if self.filling.is_empty() && input.len() > self.filling.frame_length() {
                // More follows, so neither the frame aside nor the next one is the last.
                return if self.held.is_empty() {
                    self.seal_from(input).map(Some)
                } else {
                    Ok(Some(self.seal_held()))
                };
            }
            let spare = self.filling.spare();
            let (now, later) = input.split_at(spare.len().min(input.len()));
            spare[..now.len()].copy_from_slice(now);
            *input = later;
            self.filled(now.len())?;
            if self.filling.is_full() && self.hold() {
                return Ok(Some(self.seal_held()));
            }
        }
        Ok(None)
    }

    /// Seals what is left as the final frame, by way of `write`, which is called once or twice.
    ///
    /// # Errors
    /// What `write` returned.
    pub fn finish<E>(mut self, mut write: impl FnMut(&[u8]) -> Result<(), E>) -> Result<SealedStream, E> {
        if self.filling.is_empty() {
            std::mem::swap(&mut self.filling, &mut self.held);
        } else if !self.held.is_empty() {
            write(self.seal_held())?;
        }
        let frame = self.filling.seal(&self.cipher, &self.message_id, self.number, true);
        let sealed_len = self.sealed_len + frame.len() as u64;
        write(frame)?;
        Ok(SealedStream { plaintext_len: self.plaintext_len, sealed_len })
    }

    /// Seals all of `plaintext` to `envelope`, header included. Reads until the end; does not flush or sync.
    ///
    /// # Errors
    /// [`SealError::Read`], [`SealError::Write`], [`SealError::TooLong`]. What was written is no envelope then, and
    /// every reader says so: it has no final frame.
    pub fn seal_all(
        mut self,
        plaintext: &mut impl Read,
        envelope: &mut impl Write,
    ) -> Result<SealedStream, SealError> {
        envelope.write_all(&self.header).map_err(SealError::Write)?;
        loop {
            let read = match plaintext.read(self.filling.spare()) {
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(SealError::Read(error)),
            };
            if read == 0 {
                return self.finish(|frame| envelope.write_all(frame)).map_err(SealError::Write);
            }
            self.filled(read)?;
            if self.filling.is_full() && self.hold() {
                envelope.write_all(self.seal_held()).map_err(SealError::Write)?;
            }
        }
    }

    fn filled(&mut self, bytes: usize) -> Result<(), SealError> {
        self.filling.advance(bytes);
        self.count(bytes)
    }

    fn count(&mut self, bytes: usize) -> Result<(), SealError> {
        self.plaintext_len += bytes as u64;
        if self.plaintext_len > FILE_LEN_MAX { Err(SealError::TooLong) } else { Ok(()) }
    }

    /// Seals the frame at the front of `input` as a regular one; nothing else waits.
    fn seal_from(&mut self, input: &mut &[u8]) -> Result<&[u8], SealError> {
        let (content, later) = input.split_at(self.filling.frame_length());
        *input = later;
        self.count(content.len())?;
        let frame = self.filling.seal_full(&self.cipher, &self.message_id, self.number, content);
        self.number += 1;
        self.sealed_len += frame.len() as u64;
        Ok(frame)
    }

    /// Puts the full frame aside. True if another was aside already: that one is not the last and is sealed next,
    /// from `filling`, where it now lies.
    fn hold(&mut self) -> bool {
        std::mem::swap(&mut self.filling, &mut self.held);
        !self.filling.is_empty()
    }

    /// Seals the older of two frames as a regular one.
    fn seal_held(&mut self) -> &[u8] {
        let older = if self.filling.is_full() { &mut self.filling } else { &mut self.held };
        let frame = older.seal(&self.cipher, &self.message_id, self.number, false);
        self.number += 1;
        self.sealed_len += frame.len() as u64;
        frame
    }
}

impl fmt::Debug for StreamSealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamSealer")
            .field("identity", &self.identity)
            .field("sealed_len", &self.sealed_len)
            .finish_non_exhaustive()
    }
}

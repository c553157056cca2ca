//! From the bytes of a header to the proof that its fields were sealed.

use std::fmt;
use std::io::Read;

use bytes::Bytes;

use super::OpenError;
use super::body::BodyOpener;
use crate::envelope::aead::MessageCipher;
use crate::envelope::edk::{Edk, Unwrapped};
use crate::envelope::format_error::{EdkFault, FormatError};
use crate::envelope::header::{Header, HeaderReader};
use crate::envelope::keys::{DataKey, MessageKeys};
use crate::trust::KeyArn;

/// An envelope whose header was parsed: version, suite and grammar hold, nothing is authentic.
#[derive(Debug, Clone)]
pub struct Opening {
    header: Header,
}

impl Opening {
    /// Parses the header at the front of `envelope`, which may go on behind it.
    ///
    /// The suite is judged here, before any cache of data keys can be asked: a data key of another suite must never
    /// serve this one (CVE-2026-6550).
    ///
    /// # Errors
    /// As [`Header::parse`].
    pub fn begin(envelope: &Bytes) -> Result<Self, FormatError> {
        Header::parse(envelope).map(Self::of)
    }

    /// Reads exactly the header from `input`, which then stands at the first frame. The input should be buffered: a
    /// header is read in about ten small pieces.
    ///
    /// # Errors
    /// [`OpenError::Format`], [`OpenError::Read`].
    pub fn read_from(input: &mut impl Read) -> Result<Self, OpenError> {
        let mut reader = HeaderReader::new();
        let mut piece = [0; 512];
        loop {
            let wanted = reader.wants().min(piece.len());
            let read = match input.read(&mut piece[..wanted]) {
                Ok(0) => return Err(FormatError::Truncated.into()),
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(OpenError::Read(error)),
            };
            if let Some(header) = reader.push(&mut &piece[..read])? {
                return Ok(Self::of(header));
            }
        }
    }

    /// Goes on from a header that was parsed already.
    pub fn of(header: Header) -> Self {
        Self { header }
    }

    /// The header; claims, not facts.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Applies the policy: chooses the first EDK whose key is allowed. There is no second try with another EDK, so
    /// that an envelope costs one KMS call at most.
    ///
    /// # Errors
    /// [`OpenError::KeyNotAllowed`].
    pub fn choose(self, mut allowed: impl FnMut(&KeyArn) -> bool) -> Result<Chosen, OpenError> {
        let mut candidates = self.header.edks().iter().enumerate();
        let (index, arn) = candidates
            .find_map(|(index, edk)| edk.key_arn().filter(|arn| allowed(arn)).map(|arn| (index, arn)))
            .ok_or(OpenError::KeyNotAllowed)?;
        Ok(Chosen { header: self.header, index, arn })
    }
}

/// An envelope and the EDK that is to be unwrapped for it.
#[derive(Debug, Clone)]
pub struct Chosen {
    header: Header,
    index: usize,
    arn: KeyArn,
}

impl Chosen {
    /// The EDK: its ciphertext is what KMS Decrypt or a private key is given, its hash what a cache is asked for.
    pub fn edk(&self) -> &Edk {
        &self.header.edks()[self.index]
    }

    /// The key that it is for.
    pub fn key_arn(&self) -> &KeyArn {
        &self.arn
    }

    /// The header; claims, not facts.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Goes on with what was unwrapped, now or earlier: compares the digest of this message's context, derives, checks
    /// the commitment, then the header's tag.
    ///
    /// # Errors
    /// Classes `edk` (the EDK is for another context: this message is condemned, not the EDK), `commitment`,
    /// `header-tag`.
    pub fn unlock(self, unwrapped: &Unwrapped) -> Result<Unlocked, FormatError> {
        let data_key = unwrapped.for_context(self.header.context())?.clone();
        let keys = MessageKeys::derive(&data_key, self.header.message_id());
        let cipher = keys.committed(self.header.commitment())?;
        cipher
            .open(&[0; 12], self.header.body(), &mut [], self.header.tag())
            .map_err(|_| FormatError::HeaderTag)?;
        Ok(Unlocked { header: self.header, arn: self.arn, data_key, cipher })
    }
}

/// An envelope whose header is authentic.
#[derive(Debug)]
pub struct Unlocked {
    pub(super) header: Header,
    pub(super) arn: KeyArn,
    pub(super) data_key: DataKey,
    cipher: MessageCipher,
}

impl Unlocked {
    /// The header: facts, as the sealer wrote them. Who the sealer was is said by
    /// [`session_verdict`](Self::session_verdict).
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The key whose EDK was unwrapped.
    pub fn key_arn(&self) -> &KeyArn {
        &self.arn
    }

    /// Opens the frames of an envelope in memory; `body` is all that follows the header. Gives nothing unless all of
    /// it holds.
    ///
    /// # Errors
    /// The class of the first fault in the order of the wire.
    pub fn open_body(&self, body: &[u8]) -> Result<Vec<u8>, FormatError> {
        super::body::open_in_memory(&self.header, &self.cipher, body)
    }

    /// Goes on with the frames of an envelope that comes in pieces.
    pub fn into_body(self) -> BodyOpener {
        BodyOpener::new(&self.header, self.cipher)
    }
}

/// An envelope opened in memory.
pub struct Opened {
    /// The header: facts.
    pub header: Header,
    /// The plaintext, complete.
    pub plaintext: Vec<u8>,
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What was sealed must not end in a log because somebody printed a result.
        f.debug_struct("Opened")
            .field("header", &self.header)
            .field("plaintext_len", &self.plaintext.len())
            .finish_non_exhaustive()
    }
}

/// Opens a whole envelope in memory, when unwrapping is a plain function: `None` from `unwrap` means that the key does
/// not decrypt the EDK.
///
/// # Errors
/// [`OpenError`]; nothing is released.
pub fn open_message(
    envelope: &Bytes,
    allowed: impl FnMut(&KeyArn) -> bool,
    unwrap: impl FnOnce(&KeyArn, &Edk) -> Option<Unwrapped>,
) -> Result<Opened, OpenError> {
    let chosen = Opening::begin(envelope)?.choose(allowed)?;
    let unwrapped = unwrap(chosen.key_arn(), chosen.edk()).ok_or(FormatError::Edk(EdkFault::Unwrap))?;
    let unlocked = chosen.unlock(&unwrapped)?;
    let plaintext = unlocked.open_body(&envelope[unlocked.header.wire_len()..])?;
    Ok(Opened { header: unlocked.header, plaintext })
}

//! The key-less check: grammar, order, truncation and trailing bytes of a whole envelope, in memory or as it arrives.
//!
//! It is the opener's own reading without the tags, and refuses by the same classes. What it cannot see is whether
//! anything was changed; the opener does.

use bytes::Bytes;

use super::format_error::FormatError;
use super::frame::FrameWalker;
use super::header::{Header, HeaderReader};
use super::profile::{LastSession, Profile, ProfileError};
use crate::names::Identity;
use crate::trust::KeyArn;

/// What is known of the structure of a complete envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Structure {
    /// Bytes of header and tag.
    pub header_len: u64,
    /// Frames, the final one included.
    pub frames: u32,
    /// Bytes of content in all frames: what the plaintext will have.
    pub plaintext_len: u64,
    /// Bytes of the whole envelope.
    pub total_len: u64,
}

/// Checks an envelope while it arrives, in chunks of any size, keeping its header and nothing of its body.
///
/// After an error the checker is spent: it answers the same error again.
#[derive(Debug)]
pub struct StructureChecker {
    declared: Option<u64>,
    seen: u64,
    part: Part,
}

#[derive(Debug)]
enum Part {
    Header(HeaderReader),
    Body(Box<Header>, FrameWalker),
    Refused(FormatError),
}

impl Default for StructureChecker {
    fn default() -> Self {
        Self { declared: None, seen: 0, part: Part::Header(HeaderReader::new()) }
    }
}

impl StructureChecker {
    /// For an envelope whose length is not known ahead.
    pub fn new() -> Self {
        Self::default()
    }

    /// For an envelope declared to have `total_len` bytes: a length that its header cannot have is refused as soon as
    /// the header is there, and any other number of bytes later.
    pub fn with_declared_len(total_len: u64) -> Self {
        Self { declared: Some(total_len), ..Self::default() }
    }

    /// Goes on with an envelope of `total_len` bytes whose first `passed` bytes went through a checker like this one: for a
    /// transfer that is taken up again by another process. The frame that `passed` lies in has to be shown again: the next
    /// byte is the one at the offset that comes with the checker.
    ///
    /// # Errors
    /// The class of the length's fault, if the header cannot have it; `truncated` if `passed` ends inside the header.
    pub fn resume(header: Header, total_len: u64, passed: u64) -> Result<(Self, u64), FormatError> {
        let sizes = header.sizes();
        let body = sizes.of_total(total_len)?;
        let in_body = passed.checked_sub(header.wire_len() as u64).ok_or(FormatError::Truncated)?;
        let frame = sizes.frame_offset(2) - sizes.frame_offset(1);
        // The last frame is always shown again: whether it ended is for the walker to say.
        let frames = u32::try_from((in_body / frame).min(body.frames - 1)).unwrap_or(u32::MAX - 1);
        let offset = sizes.frame_offset(frames + 1);
        let walker = FrameWalker::behind(header.frame_length(), frames);
        let part = Part::Body(Box::new(header), walker);
        Ok((Self { declared: Some(total_len), seen: offset, part }, offset))
    }

    /// Takes the next chunk.
    ///
    /// # Errors
    /// The class of the first fault in the order of the wire.
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), FormatError> {
        match self.advance(chunk) {
            Ok(()) => Ok(()),
            Err(error) => {
                self.part = Part::Refused(error);
                Err(error)
            }
        }
    }

    fn advance(&mut self, mut chunk: &[u8]) -> Result<(), FormatError> {
        // What lies past the declared end is never looked at, but it is refused only after what stands before it.
        let room = self.declared.map_or(u64::MAX, |declared| declared - self.seen);
        let excess = chunk.len() as u64 > room;
        if excess {
            chunk = &chunk[..room as usize];
        }
        self.seen += chunk.len() as u64;
        while !chunk.is_empty() {
            match &mut self.part {
                Part::Header(reader) => {
                    if let Some(header) = reader.push(&mut chunk)? {
                        if let Some(declared) = self.declared {
                            header.sizes().of_total(declared)?;
                        }
                        let walker = FrameWalker::new(header.frame_length());
                        self.part = Part::Body(Box::new(header), walker);
                    }
                }
                Part::Body(_, walker) => while walker.step(&mut chunk)?.is_some() {},
                Part::Refused(error) => return Err(*error),
            }
        }
        match &self.part {
            Part::Refused(error) => Err(*error),
            _ if excess => Err(FormatError::Trailing),
            _ => Ok(()),
        }
    }

    /// The header, once it is complete: for admission before the body.
    pub fn header(&self) -> Option<&Header> {
        match &self.part {
            Part::Body(header, _) => Some(header),
            Part::Header(_) | Part::Refused(_) => None,
        }
    }

    /// Bytes taken so far.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// True once the final frame is complete; any further byte would be trailing.
    pub fn is_complete(&self) -> bool {
        matches!(&self.part, Part::Body(_, walker) if walker.ended())
    }

    /// The input is over.
    ///
    /// # Errors
    /// `truncated` if the final frame is not complete or bytes of the declared length are missing; an earlier error again.
    pub fn finish(self) -> Result<(Header, Structure), FormatError> {
        match self.part {
            Part::Header(_) => Err(FormatError::Truncated),
            Part::Refused(error) => Err(error),
            Part::Body(header, walker) => {
                walker.finish()?;
                if self.declared.is_some_and(|declared| declared != self.seen) {
                    return Err(FormatError::Truncated);
                }
                let structure = Structure {
                    header_len: header.wire_len() as u64,
                    frames: walker.frames(),
                    plaintext_len: walker.plaintext_len(),
                    total_len: self.seen,
                };
                Ok((*header, structure))
            }
        }
    }
}

/// Checks a whole envelope in memory. Copies nothing.
///
/// # Errors
/// As [`StructureChecker`].
pub fn check(envelope: Bytes) -> Result<CheckedEnvelope, FormatError> {
    let header = Header::parse(&envelope)?;
    let mut walker = FrameWalker::new(header.frame_length());
    let mut rest = &envelope[header.wire_len()..];
    while walker.step(&mut rest)?.is_some() {}
    walker.finish()?;
    let structure = Structure {
        header_len: header.wire_len() as u64,
        frames: walker.frames(),
        plaintext_len: walker.plaintext_len(),
        total_len: envelope.len() as u64,
    };
    Ok(CheckedEnvelope { bytes: envelope, header, structure })
}

/// An envelope whose structure is sound. There is no other way to one than [`check`].
#[derive(Debug, Clone)]
pub struct CheckedEnvelope {
    bytes: Bytes,
    header: Header,
    structure: Structure,
}

impl CheckedEnvelope {
    /// The envelope, byte for byte as it was checked.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Its header; claims, not facts.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Its structure.
    pub fn structure(&self) -> &Structure {
        &self.structure
    }

    /// Holds it against the profile (envelope document, 2.2 and 2.5). `key_named` says whether any statement accepted
    /// here has ever named the key, whatever its status now: the plaintext is gone, so a retired key refuses nothing.
    ///
    /// # Errors
    /// [`ProfileError`] with the first rule broken.
    pub fn admit(self, key_named: impl FnMut(&KeyArn) -> bool) -> Result<AdmittedEnvelope, ProfileError> {
        let profile = Profile::of(&self.header)?;
        profile.keys_are_named(key_named)?;
        Ok(AdmittedEnvelope { checked: self, profile })
    }

    /// As [`admit`](Self::admit), for an envelope that came after another one, and asking for no key. True if it is of the
    /// same session.
    ///
    /// # Errors
    /// [`ProfileError`] with the first rule broken.
    pub fn admit_after(self, last: &mut LastSession) -> Result<(AdmittedEnvelope, bool), ProfileError> {
        let (profile, same_session) = Profile::after(last, &self.header)?;
        Ok((AdmittedEnvelope { checked: self, profile }, same_session))
    }
}

/// An envelope that a hop may take: sound in structure and within the profile. No constructor but admission.
#[derive(Debug, Clone)]
pub struct AdmittedEnvelope {
    checked: CheckedEnvelope,
    profile: Profile,
}

impl AdmittedEnvelope {
    /// The envelope, byte for byte.
    pub fn bytes(&self) -> &Bytes {
        self.checked.bytes()
    }

    /// What it says of itself.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// What it is filed under.
    pub fn identity(&self) -> &Identity {
        self.profile.identity()
    }

    /// Its header; claims, not facts.
    pub fn header(&self) -> &Header {
        self.checked.header()
    }

    /// Its structure.
    pub fn structure(&self) -> &Structure {
        self.checked.structure()
    }

    /// Takes it apart into the bytes and what they say.
    pub fn into_parts(self) -> (Bytes, Profile) {
        (self.checked.bytes, self.profile)
    }
}

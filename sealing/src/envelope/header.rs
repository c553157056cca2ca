//! The header (envelope document, 1.1): grammar, limits, and nothing else. No field is authentic until the tag holds.
//!
//! ```text
//! 02 | 04 78 | message id[32] | u16 A, context[A] | u16 EDKs { u16 id, u16 info, u16 ciphertext }... |
//! 02 | u32 FL | commitment[32]                                                                   -> header body
//! tag[16]
//! ```
//!
//! Every field is judged as soon as its last byte is there, in the order of the wire, so that the verdict does not
//! depend on how the input was cut. The lengths on the wire bound a header at about 640 KiB; the profile keeps ours
//! under 3 KiB.

use std::ops::Range;

use bytes::Bytes;

use super::aead::TAG_LEN;
use super::context::Context;
use super::edk::Edk;
use super::format_error::{EdkFault, FormatError, HeaderFault};
use super::keys::{MessageId, SUITE};
use super::sizes::{FRAME_LENGTH_MAX, FRAME_LENGTH_MIN, Sizes};

const VERSION: u8 = 2;
const FRAMED: u8 = 2;
/// EDKs that are read at most; one is what we seal.
pub const EDKS_MAX: usize = 3;

/// A header that follows the grammar. Its fields are claims until [`super::open`] has seen the tag hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    wire: Bytes,
    message_id: MessageId,
    context: Context,
    edks: Vec<Edk>,
    frame_length: u32,
    commitment: [u8; 32],
}

impl Header {
    /// Reads the header at the front of `envelope`, which may go on behind it. Copies nothing.
    ///
    /// # Errors
    /// Classes `unsupported-version`, `unsupported-suite`, `malformed-header`, `edk` (none of ours, or of an impossible
    /// length), `truncated`.
    pub fn parse(envelope: &Bytes) -> Result<Self, FormatError> {
        match scan(envelope)? {
            Scan::Need(_) => Err(FormatError::Truncated),
            Scan::Complete(layout) => layout.header(envelope),
        }
    }

    /// Header body and tag exactly as on the wire.
    pub fn wire(&self) -> &Bytes {
        &self.wire
    }

    /// Bytes of header body and tag: where the first frame begins.
    pub fn wire_len(&self) -> usize {
        self.wire.len()
    }

    /// What the tag covers.
    pub fn body(&self) -> &[u8] {
        &self.wire[..self.wire.len() - TAG_LEN]
    }

    /// The tag behind the header body.
    pub fn tag(&self) -> &[u8; TAG_LEN] {
        self.wire.last_chunk().expect("a header ends with its tag")
    }

    /// The message id.
    pub fn message_id(&self) -> &MessageId {
        &self.message_id
    }

    /// The encryption context.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// One to three EDKs, at least one of them of provider `aws-kms-rsa`.
    pub fn edks(&self) -> &[Edk] {
        &self.edks
    }

    /// Bytes of content in a regular frame, 128..=1,048,576.
    pub fn frame_length(&self) -> u32 {
        self.frame_length
    }

    /// The commitment to the data key.
    pub fn commitment(&self) -> &[u8; 32] {
        &self.commitment
    }

    /// The arithmetic of this envelope's sizes.
    pub fn sizes(&self) -> Sizes {
        Sizes::new(self.wire.len(), self.frame_length)
    }
}

/// Gathers a header out of chunks of any size, taking no byte behind it.
#[derive(Debug)]
pub struct HeaderReader {
    seen: Vec<u8>,
    need: usize,
}

impl Default for HeaderReader {
    fn default() -> Self {
        Self { seen: Vec::new(), need: 1 }
    }
}

impl HeaderReader {
    /// A reader that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes from the front of `input` what belongs to the header; gives the header once it is complete.
    ///
    /// # Errors
    /// As [`Header::parse`], but `truncated`: that is the caller's to say when its input ends. An error is final.
    pub fn push(&mut self, input: &mut &[u8]) -> Result<Option<Header>, FormatError> {
        loop {
            let (now, later) = input.split_at((self.need - self.seen.len()).min(input.len()));
            self.seen.extend_from_slice(now);
            *input = later;
            if self.seen.len() < self.need {
                return Ok(None);
            }
            match scan(&self.seen)? {
                Scan::Need(more) => self.need = more,
                Scan::Complete(layout) => {
                    let wire = Bytes::from(std::mem::take(&mut self.seen));
                    return layout.header(&wire).map(Some);
                }
            }
        }
    }

    /// Bytes that are known to be missing; at least 1.
    pub fn wants(&self) -> usize {
        self.need - self.seen.len()
    }
}

/// A header's parts before they are bytes.
pub(super) struct HeaderParts<'a> {
    pub(super) message_id: &'a MessageId,
    pub(super) context: &'a Context,
    pub(super) edks: &'a [Edk],
    pub(super) frame_length: u32,
    pub(super) commitment: &'a [u8; 32],
}

impl HeaderParts<'_> {
    /// Appends the header body; the tag is the caller's to put behind it.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        out.extend_from_slice(&SUITE.to_be_bytes());
        out.extend_from_slice(self.message_id.as_bytes());
        put(out, self.context.as_bytes());
        out.extend_from_slice(&(self.edks.len() as u16).to_be_bytes());
        for edk in self.edks {
            put(out, &edk.provider_id);
            put(out, &edk.provider_info);
            put(out, &edk.ciphertext);
        }
        out.push(FRAMED);
        out.extend_from_slice(&self.frame_length.to_be_bytes());
        out.extend_from_slice(self.commitment);
    }
}

fn put(out: &mut Vec<u8>, field: &[u8]) {
    out.extend_from_slice(&(field.len() as u16).to_be_bytes());
    out.extend_from_slice(field);
}

enum Scan {
    /// The header has at least this many bytes, more than there are.
    Need(usize),
    Complete(Layout),
}

/// Where the fields of a complete header lie.
struct Layout {
    message_id: MessageId,
    context: Range<usize>,
    edks: Vec<[Range<usize>; 3]>,
    frame_length: u32,
    commitment: [u8; 32],
    end: usize,
}

impl Layout {
    fn header(self, envelope: &Bytes) -> Result<Header, FormatError> {
        let edks: Vec<Edk> = self
            .edks
            .into_iter()
            .map(|[id, info, ciphertext]| Edk {
                provider_id: envelope.slice(id),
                provider_info: envelope.slice(info),
                ciphertext: envelope.slice(ciphertext),
            })
            .collect();
        let mut ours = edks.iter().filter(|edk| edk.is_kms_rsa()).peekable();
        if ours.peek().is_none() {
            return Err(EdkFault::NoneOurs.into());
        }
        ours.try_for_each(Edk::check)?;
        Ok(Header {
            context: Context::of_checked(envelope.slice(self.context)),
            wire: envelope.slice(..self.end),
            message_id: self.message_id,
            edks,
            frame_length: self.frame_length,
            commitment: self.commitment,
        })
    }
}

fn scan(bytes: &[u8]) -> Result<Scan, FormatError> {
    match scan_fields(&mut Fields { bytes, at: 0 }) {
        Ok(layout) => Ok(Scan::Complete(layout)),
        Err(Stop::Short(need)) => Ok(Scan::Need(need)),
        Err(Stop::Refused(error)) => Err(error),
    }
}

fn scan_fields(fields: &mut Fields<'_>) -> Result<Layout, Stop> {
    let [version] = fields.array()?;
    if version != VERSION {
        return Err(FormatError::UnsupportedVersion { found: version }.into());
    }
    let suite = fields.u16()?;
    if suite != SUITE {
        return Err(FormatError::UnsupportedSuite { found: suite }.into());
    }
    let message_id = MessageId::from_bytes(fields.array()?);
    let context = fields.counted()?;
    super::context::check(&fields.bytes[context.clone()])?;
    let count = fields.u16()?;
    if !(1..=EDKS_MAX).contains(&usize::from(count)) {
        return Err(HeaderFault::EdkCount { found: count }.into());
    }
    let mut edks = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        edks.push([fields.counted()?, fields.counted()?, fields.counted()?]);
    }
    let [content_type] = fields.array()?;
    if content_type != FRAMED {
        return Err(HeaderFault::ContentType { found: content_type }.into());
    }
    let frame_length = u32::from_be_bytes(fields.array()?);
    if !(FRAME_LENGTH_MIN..=FRAME_LENGTH_MAX).contains(&frame_length) {
        return Err(HeaderFault::FrameLength { found: frame_length }.into());
    }
    let commitment = fields.array()?;
    fields.range(TAG_LEN)?;
    Ok(Layout { message_id, context, edks, frame_length, commitment, end: fields.at })
}

enum Stop {
    Short(usize),
    Refused(FormatError),
}

impl<E: Into<FormatError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Refused(error.into())
    }
}

struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Fields<'_> {
    fn range(&mut self, length: usize) -> Result<Range<usize>, Stop> {
        let end = self.at + length;
        if end > self.bytes.len() {
            return Err(Stop::Short(end));
        }
        let range = self.at..end;
        self.at = end;
        Ok(range)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        let range = self.range(N)?;
        Ok(self.bytes[range].try_into().expect("a range of N bytes"))
    }

    fn u16(&mut self) -> Result<u16, Stop> {
        self.array().map(u16::from_be_bytes)
    }

    fn counted(&mut self) -> Result<Range<usize>, Stop> {
        let length = self.u16()?;
        self.range(usize::from(length))
    }
}

//! The classes by which the reader refuses an envelope (envelope document, section 2.5).
//!
//! [`FormatError::class`] is the stable name: conformance vectors, wire reasons and `PH-` codes are keyed by it. What a
//! variant carries besides is for people.

/// Why bytes are no envelope, or not the envelope that was sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The first byte is not `02`.
    #[error("message format version {found:#04x} is not supported, only 0x02 is")]
    UnsupportedVersion {
        /// The byte found.
        found: u8,
    },
    /// The algorithm suite is not `04 78`.
    #[error("algorithm suite {found:#06x} is not supported, only 0x0478 is")]
    UnsupportedSuite {
        /// The suite found.
        found: u16,
    },
    /// The header does not follow the grammar.
    #[error("malformed header: {0}")]
    MalformedHeader(#[from] HeaderFault),
    /// No encrypted data key of this message yields its data key.
    #[error("encrypted data key: {0}")]
    Edk(#[from] EdkFault),
    /// The data key is not the one that the header commits to.
    #[error("the data key does not match the commitment in the header")]
    Commitment,
    /// The header is not what was sealed.
    #[error("the header's tag does not hold")]
    HeaderTag,
    /// A frame does not carry the number that is due.
    #[error("frame {found} stands where frame {expected} is due")]
    Sequence {
        /// The number due.
        expected: u32,
        /// The number found.
        found: u32,
    },
    /// A frame's IV is not its number.
    #[error("the IV of frame {frame} is not its sequence number")]
    Iv {
        /// The frame, from 1.
        frame: u32,
    },
    /// A frame is not what was sealed.
    #[error("the tag of frame {frame} does not hold")]
    FrameTag {
        /// The frame, from 1.
        frame: u32,
    },
    /// The final frame says, or the declared length implies, more content than a frame may have.
    #[error("the final frame would hold {length} bytes, above the frame length of {frame_length}")]
    FinalTooLong {
        /// Bytes of content it would hold.
        length: u32,
        /// Bytes that a frame of this message may hold.
        frame_length: u32,
    },
    /// The input ended before the end of the final frame.
    #[error("the envelope is cut short: its final frame is missing or incomplete")]
    Truncated,
    /// There is input after the final frame.
    #[error("there are bytes after the final frame")]
    Trailing,
}

impl FormatError {
    /// The stable name of the class, as in the envelope document and the conformance vectors.
    pub const fn class(&self) -> &'static str {
        match self {
            Self::UnsupportedVersion { .. } => "unsupported-version",
            Self::UnsupportedSuite { .. } => "unsupported-suite",
            Self::MalformedHeader(_) => "malformed-header",
            Self::Edk(_) => "edk",
            Self::Commitment => "commitment",
            Self::HeaderTag => "header-tag",
            Self::Sequence { .. } => "sequence",
            Self::Iv { .. } => "iv",
            Self::FrameTag { .. } => "frame-tag",
            Self::FinalTooLong { .. } => "final-too-long",
            Self::Truncated => "truncated",
            Self::Trailing => "trailing",
        }
    }
}

/// What is wrong with a header of class `malformed-header`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderFault {
    /// The context's length and its pair count disagree, or a pair runs past the end, or bytes are left over.
    #[error("the encryption context does not fill its length exactly")]
    ContextLength,
    /// The context has bytes but no pairs, or one byte only.
    #[error("the encryption context has a length but no pairs")]
    ContextCount,
    /// Keys are not in ascending order of their bytes.
    #[error("the encryption context is not sorted")]
    ContextUnsorted,
    /// A key stands twice.
    #[error("the encryption context holds a key twice")]
    ContextDuplicate,
    /// A key or value is not UTF-8.
    #[error("the encryption context is not UTF-8")]
    ContextUtf8,
    /// No encrypted data key, or more than three.
    #[error("{found} encrypted data keys, where 1 to 3 are allowed")]
    EdkCount {
        /// The count found.
        found: u16,
    },
    /// The content type is not `02`, framed.
    #[error("content type {found:#04x} is not framed (0x02)")]
    ContentType {
        /// The byte found.
        found: u8,
    },
    /// The frame length is outside 128..=1,048,576.
    #[error("frame length {found} is outside 128..=1048576")]
    FrameLength {
        /// The frame length found, in bytes.
        found: u32,
    },
}

/// What is wrong in a refusal of class `edk`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EdkFault {
    /// None is of provider `aws-kms-rsa`.
    #[error("none is of provider aws-kms-rsa")]
    NoneOurs,
    /// The ciphertext is not of 256, 384 or 512 bytes.
    #[error("the ciphertext has {found} bytes, where 256, 384 or 512 are possible")]
    CiphertextLength {
        /// Bytes found.
        found: u16,
    },
    /// The key does not unwrap it.
    #[error("it cannot be unwrapped")]
    Unwrap,
    /// What was unwrapped is not of 80 bytes.
    #[error("the unwrapped plaintext is not of 80 bytes")]
    PlaintextLength,
    /// It was made for another encryption context.
    #[error("it is bound to another encryption context")]
    ContextDigest,
}

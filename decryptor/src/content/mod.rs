//! What the seal held: plaintext as the device meant it, and, of a batch, its records and what it says of its line.
//!
//! Everything here is authentic (the opener has checked the last tag before), yet a device may still be broken or hostile to
//! the cloud: sizes, names and numbers are checked as strictly as anybody's.

pub mod batch;
pub mod inflate;
pub(crate) mod inflating;

pub use batch::{Batch, Gap, GapReason, LineEnd, Record};

use crate::sink::Staged;
use bytes::Bytes;
use pithead_proto::errors::v1::ErrorReason;
use std::sync::Arc;

/// How a plaintext is encoded inside its seal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// As it is.
    Identity,
    /// One zstd frame.
    Zstd,
}

/// The content does not keep its word. No retry mends it: the envelope is poison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ContentError {
    /// More than the limit comes out of a small compressed content.
    #[error("the compressed content inflates beyond {limit} bytes")]
    InflateLimit {
        /// The limit that applied.
        limit: u64,
    },
    /// Not one plain zstd frame.
    #[error("the content is not one plain zstd frame: {what}")]
    Zstd {
        /// Which rule it breaks.
        what: &'static str,
    },
    /// Not a batch, or a batch that contradicts itself.
    #[error("the content is not a well-formed batch: {what}")]
    Batch {
        /// Which rule it breaks.
        what: &'static str,
    },
}

impl ContentError {
    /// The reason as the registry has it.
    #[must_use]
    pub const fn reason(&self) -> ErrorReason {
        match self {
            Self::InflateLimit { .. } => ErrorReason::InflateLimit,
            Self::Zstd { .. } | Self::Batch { .. } => ErrorReason::ContentMalformed,
        }
    }
}

/// One opened content, decoded: in memory, or in a file if it is large.
#[derive(Clone)]
pub struct Content {
    content_type: Arc<str>,
    plaintext: Bytes,
    batch: Option<Arc<Batch>>,
    staged: Option<Arc<Staged>>,
}

impl Content {
    /// Decodes what the opener gave: inflates it when the context says so, and parses a batch.
    ///
    /// `sealed_bytes` is the size of the whole envelope, by which the inflated size of anything but a batch is limited.
    pub fn decode(
        content_type: &str,
        encoding: Encoding,
        opened: Bytes,
        sealed_bytes: u64,
    ) -> Result<Self, ContentError> {
        let is_batch = content_type == pithead_proto::batch::v1::CONTENT_TYPE;
        let plaintext = match encoding {
            Encoding::Identity => opened,
            Encoding::Zstd => Bytes::from(inflate::inflate(&opened, inflate::limit(is_batch, sealed_bytes))?),
        };
        let batch = if is_batch { Some(Arc::new(Batch::decode(plaintext.clone())?)) } else { None };
        Ok(Self { content_type: Arc::from(content_type), plaintext, batch, staged: None })
    }

    /// A large content, opened and inflated into a file beside the sink.
    #[must_use]
    pub fn staged(content_type: &str, staged: Staged) -> Self {
        let (content_type, staged) = (Arc::from(content_type), Some(Arc::new(staged)));
        Self { content_type, plaintext: Bytes::new(), batch: None, staged }
    }

    /// A large content that is where a line will name it: nothing of it is here.
    #[must_use]
    pub fn elsewhere(content_type: &str) -> Self {
        Self { content_type: Arc::from(content_type), plaintext: Bytes::new(), batch: None, staged: None }
    }

    /// The media type, as the encryption context has it.
    #[must_use]
    pub fn content_type(&self) -> &str {
        &self.content_type
    }

    /// The file of a large content.
    #[must_use]
    pub fn file(&self) -> Option<&Staged> {
        self.staged.as_deref()
    }

    /// Bytes of what the device sealed, before its compression.
    #[must_use]
    pub fn plaintext_len(&self) -> u64 {
        self.staged.as_ref().map_or(self.plaintext.len() as u64, |staged| staged.len())
    }

    /// What the device sealed, before its compression. Of a large content nothing: it is in [`Content::file`].
    #[must_use]
    pub fn plaintext(&self) -> &Bytes {
        &self.plaintext
    }

    /// The batch, if the content is one.
    #[must_use]
    pub fn batch(&self) -> Option<&Batch> {
        self.batch.as_deref()
    }
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Content")
            .field("content_type", &self.content_type)
            .field("plaintext_bytes", &self.plaintext_len())
            .finish_non_exhaustive()
    }
}

//! The opener, in the one order that is safe (envelope document, 2.7). Compiled in by the feature `open` alone.
//!
//! ```text
//! parse -> policy -> unwrap -> derive -> commitment -> header tag -> frames one by one -> final frame -> end of input
//! Opening::begin    choose    (caller)   `--- Chosen::unlock ----'   `------ Unlocked::open_*, BodyOpener ----------'
//! ```
//!
//! Each step is a value that only the step before it yields, so that no order but this one can be written. The caller's
//! own step, unwrapping, stands between two values and may be asynchronous. Nothing of the header is authentic before
//! [`Unlocked`]; no content is released before its frame's tag holds; nothing is complete before [`Complete`].

mod body;
mod opening;
mod verdict;

pub use body::{BodyOpener, Complete};
pub use opening::{Chosen, Opened, Opening, Unlocked, open_message};
pub use verdict::{RegisteredKey, SessionVerdict};

use super::format_error::FormatError;

/// Why an envelope was not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The bytes are no envelope, or not the one that was sealed.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// No EDK is for a key that the policy allows.
    #[error("no encrypted data key is for an allowed key")]
    KeyNotAllowed,
    /// The envelope could not be read. It may be whole.
    #[error("the envelope could not be read")]
    Read(#[source] std::io::Error),
    /// Plaintext could not be written. The envelope may be whole.
    #[error("the plaintext could not be written")]
    Write(#[source] std::io::Error),
}

impl OpenError {
    /// The stable class of a refusal; `None` where input or output failed and nothing is known of the envelope.
    pub fn class(&self) -> Option<&'static str> {
        match self {
            Self::Format(error) => Some(error.class()),
            Self::KeyNotAllowed => Some("edk"),
            Self::Read(_) | Self::Write(_) => None,
        }
    }
}

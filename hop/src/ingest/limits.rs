//! How much a receiver takes at a time, and what it tells a sender about that.

use pithead_proto::ingest::v1 as wire;
use serde::{Deserialize, Serialize};

use super::lines::STREAMS_PER_DEVICE;
use crate::program::units::{ByteSize, Duration};

/// What a request may need besides one envelope, in bytes: its framing, custody and gaps.
const REQUEST_OVERHEAD: u64 = 64 << 10;

/// The receiver's limits for `Append` and `Submit`. All of them are in the configuration, under these names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IngestLimits {
    /// The largest envelope; above it an upload is due.
    pub inline: ByteSize,
    /// The largest request message.
    pub request: ByteSize,
    /// Unacknowledged envelopes per call, in bytes: what one call can make us hold.
    pub window: ByteSize,
    /// Unacknowledged envelopes per call: each costs a pending answer beside its bytes.
    pub window_envelopes: u32,
    /// How long a call may be open without its Hello.
    pub hello_timeout: Duration,
}

impl Default for IngestLimits {
    /// 1 MiB inline, 4 MiB per request, 8 MiB and 4,096 envelopes unacknowledged, 10 s for the Hello.
    fn default() -> Self {
        Self {
            inline: ByteSize::mib(1),
            request: ByteSize::mib(4),
            window: ByteSize::mib(8),
            window_envelopes: 4_096,
            hello_timeout: Duration::from_secs(10),
        }
    }
}

/// Limits that no sender could live with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LimitsError {
    /// One envelope of the largest size has to fit.
    #[error("`request` has to be at least `inline` and 64KiB")]
    Request,
    /// One envelope of the largest size has to fit.
    #[error("`window` has to be at least `inline`")]
    Window,
    /// At least one envelope has to fit.
    #[error("`window_envelopes` has to be at least 1")]
    WindowEnvelopes,
}

impl LimitsError {
    /// The keys that it is about.
    #[must_use]
    pub fn keys(&self) -> &'static [&'static str] {
        match self {
            Self::Request => &["request", "inline"],
            Self::Window => &["window", "inline"],
            Self::WindowEnvelopes => &["window_envelopes"],
        }
    }
}

impl IngestLimits {
    /// Refuses limits under which the largest envelope could not be sent at all.
    ///
    /// # Errors
    /// [`LimitsError`].
    pub fn check(&self) -> Result<(), LimitsError> {
        if self.request.get() < self.inline.get().saturating_add(REQUEST_OVERHEAD) {
            Err(LimitsError::Request)
        } else if self.window < self.inline {
            Err(LimitsError::Window)
        } else if self.window_envelopes == 0 {
            Err(LimitsError::WindowEnvelopes)
        } else {
            Ok(())
        }
    }

    pub(super) fn to_wire(self) -> wire::Limits {
        wire::Limits {
            inline_bytes: self.inline.get(),
            request_bytes: self.request.get(),
            streams_per_device: STREAMS_PER_DEVICE as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_under_which_nothing_could_be_sent_are_refused() {
        let good = IngestLimits::default();
        assert_eq!(good.check(), Ok(()));
        assert_eq!(IngestLimits { request: good.inline, ..good }.check(), Err(LimitsError::Request));
        assert_eq!(IngestLimits { window: ByteSize::kib(1023), ..good }.check(), Err(LimitsError::Window));
        assert_eq!(IngestLimits { window_envelopes: 0, ..good }.check(), Err(LimitsError::WindowEnvelopes));
    }
}

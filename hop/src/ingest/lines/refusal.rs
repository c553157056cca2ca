//! Why a line takes no more, for now or for good.

use std::time::Duration;

use pithead_proto::errors::v1::ErrorReason;

use super::{DEVICES_MAX, RUNS_PER_HOUR, SEQ_JUMP_MAX, STREAMS_PER_DEVICE};
use crate::status::Refusal;

/// A bound was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LineRefusal {
    /// More than 2^32 beyond the newest number.
    #[error(
        "the number is more than {SEQ_JUMP_MAX} beyond {newest}, the newest of this line; begin a new run"
    )]
    SeqJump {
        /// The line's newest number; 0 if there is none.
        newest: u64,
    },
    /// The line, or all lines of the device together, have too many holes.
    #[error("the line has too many holes that nobody has explained; {}", match .lowest_missing {
        Some(lowest) => format!("send number {lowest} first"),
        None => "begin a new run".to_owned(),
    })]
    TooManyGaps {
        /// The number to send first; none if nothing of the line is missing.
        lowest_missing: Option<u64>,
    },
    /// A lower number of this line was on its way to the disk and did not get there: it comes first.
    #[error("number {first} of this line is not durable; send it again first")]
    Overtakes {
        /// The number that is due.
        first: u64,
    },
    /// One stream more than a device may have.
    #[error("the device has {STREAMS_PER_DEVICE} streams already")]
    TooManyStreams,
    /// One run more than a device may begin now.
    #[error("the device begins more than {RUNS_PER_HOUR} runs an hour")]
    TooManyRuns {
        /// When the next one may begin.
        retry_after: Duration,
    },
    /// One device more than are remembered.
    #[error("{DEVICES_MAX} devices are known already")]
    TooManyDevices,
}

/// How long a sender waits before it sends again what did not get to the disk.
const OVERTAKES_RETRY: Duration = Duration::from_secs(1);
/// How long to wait where only time or an operator helps.
const DEVICES_RETRY: Duration = Duration::from_secs(300);

impl From<LineRefusal> for Refusal {
    fn from(refusal: LineRefusal) -> Self {
        let detail = refusal.to_string();
        match refusal {
            LineRefusal::SeqJump { newest } => Self::new(ErrorReason::SeqJump, detail).with("newest", newest),
            LineRefusal::TooManyGaps { lowest_missing } => {
                let refusal = Self::new(ErrorReason::TooManyGaps, detail);
                match lowest_missing {
                    Some(lowest) => refusal.with("lowest_missing", lowest),
                    None => refusal,
                }
            }
            LineRefusal::Overtakes { first } => {
                Self::new(ErrorReason::NotDurable, detail).with("first", first).retry_after(OVERTAKES_RETRY)
            }
            LineRefusal::TooManyStreams => Self::new(ErrorReason::TooManyStreams, detail),
            LineRefusal::TooManyRuns { retry_after } => {
                Self::new(ErrorReason::TooManyRuns, detail).retry_after(retry_after)
            }
            LineRefusal::TooManyDevices => {
                Self::new(ErrorReason::Throttled, detail).retry_after(DEVICES_RETRY)
            }
        }
    }
}

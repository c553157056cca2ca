//! How the relay goes, for status pages.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pithead_proto::errors::v1::ErrorReason;

use super::control::Pause;

/// A snapshot.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The far end takes envelopes.
    pub up: bool,
    /// Bytes sent and not yet answered.
    pub in_flight_bytes: u64,
    /// Envelopes that were answered since the start.
    pub acknowledged: u64,
    /// Operating time of the last answer.
    pub acknowledged_at: Option<Duration>,
    /// The far end was reached since the start.
    pub was_up: bool,
    /// It stands still because what was refused has no room any more.
    pub refused_area_full: bool,
    /// It stands still until somebody says otherwise.
    pub paused: Option<Pause>,
    /// Why the last call ended, if no other has begun since, and when that was.
    pub failure: Option<(Option<ErrorReason>, String, Duration)>,
}

/// Shared with status pages. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct RelayReport(Arc<Mutex<Report>>);

impl RelayReport {
    /// As it stands.
    #[must_use]
    pub fn get(&self) -> Report {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Report)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

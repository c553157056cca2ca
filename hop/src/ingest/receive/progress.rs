//! What is unacknowledged on one call, and what the next acknowledgement says.

use std::sync::atomic::{AtomicU64, Ordering};

use pithead_proto::errors::v1::ErrorReason;
use pithead_proto::ingest::v1 as wire;
use pithead_proto::ingest::v1::outcome::What;

use crate::ingest::intake::Outcome;
use crate::ingest::limits::IngestLimits;
use crate::status::Refusal;

/// Bytes of a refusal's sentence on the wire: an acknowledgement may carry thousands.
const DETAIL_MAX: usize = 256;

/// The credit of one call. The reading half takes, the answering half gives back.
#[derive(Debug, Default)]
pub(super) struct Credit {
    bytes: AtomicU64,
    envelopes: AtomicU64,
}

impl Credit {
    /// Takes credit for a batch.
    ///
    /// An acknowledgement gives its credit back before it is sent, so a client that counts from what it has received can
    /// never be refused by a race.
    pub(super) fn take(&self, bytes: u64, envelopes: u64, limits: &IngestLimits) -> Result<(), Refusal> {
        let bytes_now = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let envelopes_now = self.envelopes.fetch_add(envelopes, Ordering::Relaxed) + envelopes;
        if bytes_now > limits.window.get() || envelopes_now > u64::from(limits.window_envelopes) {
            let detail = format!("{bytes_now} bytes in {envelopes_now} envelopes are unacknowledged");
            return Err(Refusal::new(ErrorReason::WindowExceeded, detail)
                .with("window_bytes", limits.window.get())
                .with("window_envelopes", limits.window_envelopes));
        }
        Ok(())
    }

    pub(super) fn give_back(&self, bytes: u64, envelopes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.envelopes.fetch_sub(envelopes, Ordering::Relaxed);
    }
}

/// The acknowledgement that is being collected.
#[derive(Debug, Default)]
pub(super) struct Collected {
    through: Option<u64>,
    outcomes: Vec<wire::Outcome>,
    bytes: u64,
    envelopes: u64,
}

impl Collected {
    /// One batch is answered whole.
    pub(super) fn batch(&mut self, number: u64, bytes: u64, outcomes: Vec<Outcome>) {
        self.through = Some(number);
        self.bytes += bytes;
        self.envelopes += outcomes.len() as u64;
        for (index, outcome) in outcomes.into_iter().enumerate() {
            if let Some(what) = what(outcome) {
                let index = u32::try_from(index).unwrap_or(u32::MAX);
                self.outcomes.push(wire::Outcome { batch: number, index, what: Some(what) });
            }
        }
    }

    /// The acknowledgement; its credit is given back.
    pub(super) fn into_ack(self, durability: wire::Durability, credit: &Credit) -> Option<wire::Ack> {
        let through = self.through?;
        credit.give_back(self.bytes, self.envelopes);
        Some(wire::Ack { through, durability: durability as i32, outcomes: self.outcomes })
    }
}

fn what(outcome: Outcome) -> Option<What> {
    match outcome {
        Outcome::Stored => None,
        Outcome::Duplicate { unverified } => Some(What::Duplicate(wire::Duplicate { unverified })),
        Outcome::Conflict { kept } => Some(What::Conflict(wire::Conflict { kept })),
        Outcome::Refused(refusal) => {
            let mut detail = refusal.detail.into_owned();
            detail.truncate(detail.floor_char_boundary(DETAIL_MAX));
            Some(What::Refusal(wire::Refusal { reason: refusal.reason as i32, detail }))
        }
    }
}

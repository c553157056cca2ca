//! One stream, as the thread works on it: what is sealed and not durable, and why the log does not take it at the moment.

use std::{collections::VecDeque, pin::Pin, sync::Arc, time::Duration};

use pithead_sealing::names::{Identity, StreamName};
use pithead_spool::{NotDurable, Record, Room, Ticket};
use tokio::sync::oneshot;

use super::DISK_RETRY;
use crate::{
    client::stream::{DiskTrouble, Intake, Ready, RecordError},
    outbox::Log,
    sealer::SealError,
};

/// One stream, as the thread works on it.
pub(in crate::client) struct Lane {
    pub(super) intake: Arc<Intake>,
    pub(super) log: Arc<Log>,
    /// Sealed and not durable, in the order of their numbers.
    pub(super) ahead: VecDeque<Ahead>,
    pub(super) ahead_bytes: usize,
    /// [`Log::failures`] when the oldest of `ahead` was appended.
    pub(super) failures: u64,
    /// Up to which ordinal everything is durable.
    pub(super) durable: u64,
    pub(super) written_at: Duration,
    /// Somebody waits for it: the interval does not count.
    pub(super) urgent: bool,
    /// Where the log refuses: what tells that it may not any more.
    pub(super) blocked: Option<Blocked>,
    pub(super) wants_new_run: bool,
    /// A file is being sealed under the next number: no run begins meanwhile.
    pub(super) open_file: bool,
    /// There is no key, or no number: it is tried again when keys move, and now and then.
    pub(super) held_back: bool,
}

pub(super) struct Ahead {
    pub(super) identity: Identity,
    pub(super) record: Record,
    pub(super) ordinal: u64,
    pub(super) records: u64,
    pub(super) ticket: Option<Ticket>,
    pub(super) file: Option<oneshot::Sender<Identity>>,
}

/// What could not be sealed now, and why. It stays the next.
pub(super) struct NotSealed {
    pub(super) error: SealError,
    pub(super) ready: Ready,
}

pub(super) enum Blocked {
    /// For room, and, where room may have been made too small, until then.
    Room(Pin<Box<Room>>, Duration),
    Until(Duration),
}

impl Lane {
    pub(in crate::client) fn new(intake: Arc<Intake>, log: Arc<Log>) -> Self {
        let failures = log.failures();
        Self {
            intake,
            log,
            ahead: VecDeque::new(),
            ahead_bytes: 0,
            failures,
            durable: 0,
            written_at: Duration::ZERO,
            urgent: false,
            blocked: None,
            wants_new_run: false,
            open_file: false,
            held_back: false,
        }
    }

    pub(super) fn name(&self) -> &StreamName {
        self.log.stream()
    }

    pub(super) fn push(&mut self, ahead: Ahead) {
        self.ahead_bytes += ahead.bytes();
        self.ahead.push_back(ahead);
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.blocked.is_some()
    }

    /// When to look again, if nothing rings before.
    pub(super) fn blocked_until(&self) -> Duration {
        match &self.blocked {
            Some(Blocked::Until(until) | Blocked::Room(_, until)) => *until,
            None => Duration::MAX,
        }
    }

    pub(super) fn has_nothing(&self) -> bool {
        self.ahead.is_empty() && self.intake.in_memory().0 == 0
    }

    pub(super) fn is_done(&self, late: bool) -> bool {
        // What is on its way to the disk is waited for all the same: it may be held, and then it is said to be.
        self.has_nothing() || (late && (self.is_blocked() || self.held_back) && !self.is_being_written())
    }

    pub(super) fn is_being_written(&self) -> bool {
        self.ahead.iter().any(|ahead| ahead.ticket.is_some())
    }

    pub(super) fn block(&mut self, error: NotDurable, now: Duration) {
        let trouble = match error {
            NotDurable::Full => DiskTrouble::NoSpace,
            NotDurable::Disk { kind } => DiskTrouble::Failing(kind),
            _ => DiskTrouble::Dead,
        };
        tracing::error!(event = "outbox.not_written", stream = %self.log.stream(), %error);
        self.blocked = Some(Blocked::Until(now + DISK_RETRY));
        self.intake.set_trouble(Some(RecordError::Disk(trouble)));
    }
}

impl Ahead {
    pub(super) fn bytes(&self) -> usize {
        self.record.head.len() + self.record.body.len()
    }
}

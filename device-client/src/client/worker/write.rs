//! From sealed to durable: what the log takes, what it refuses, and what is given up for it.

use std::{
    future::Future as _,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use pithead_spool::{AppendError, NotDurable};

use super::{DISK_RETRY, DROP_RETRY, INTERVAL_BYTES, Worker, lane::Blocked};
use crate::{
    client::{
        files::tell_lost,
        options::{Fsync, WhenFull},
        stream::{Counters, DiskTrouble, RecordError},
    },
    clock::DeviceClock,
    outbox::Log,
};

impl Worker {
    /// Hands what is sealed to the log. Gives when to look again.
    pub(super) fn write(&mut self, index: usize, now: Duration) -> Duration {
        let lane = &mut self.lanes[index];
        if lane.is_blocked() || lane.ahead.iter().all(|ahead| ahead.ticket.is_some()) {
            return Duration::MAX;
        }
        if let Fsync::Interval(interval) = lane.intake.options.sync {
            let due = lane.written_at.saturating_add(interval);
            let urgent = lane.urgent || self.stopping.is_some();
            if now < due && lane.ahead_bytes < INTERVAL_BYTES && !urgent {
                return due;
            }
        }
        lane.written_at = now;
        for position in 0..lane.ahead.len() {
            if lane.ahead[position].ticket.is_some() {
                continue;
            }
            if position == 0 {
                lane.failures = lane.log.failures();
            }
            let record = lane.ahead[position].record.clone();
            match lane.log.append(record, lane.failures) {
                Ok(ticket) => lane.ahead[position].ticket = Some(ticket),
                Err(error) => {
                    let bytes = lane.ahead[position].bytes() as u64;
                    self.refused(index, error, bytes, now);
                    break;
                }
            }
        }
        // A ticket has to be asked once to ring.
        self.collect(index);
        self.lanes[index].blocked_until()
    }

    /// The log does not take a record: make room by the stream's policy, or wait for it.
    pub(super) fn refused(&mut self, index: usize, error: AppendError, bytes: u64, now: Duration) {
        let log = Arc::clone(&self.lanes[index].log);
        let room = |until| Blocked::Room(Box::pin(log.room(bytes)), until);
        let until_retry = Blocked::Until(now + DISK_RETRY);
        let (blocked, trouble) = match error {
            // What failed is appended again first, and its ticket rings.
            AppendError::Overtakes => return,
            // The queue holds this stream's own, and each rings when it is written. Room would be waited for in vain: there may
            // be none on the disk by then, and that is another answer.
            AppendError::QueueFull { .. } if self.lanes[index].is_being_written() => return,
            AppendError::QueueFull { .. } => (room(Duration::MAX), None),
            AppendError::Full { .. } if self.lanes[index].intake.options.when_full == WhenFull::Reject => {
                (room(Duration::MAX), Some(RecordError::Full))
            }
            // Room comes when the segment has been given back, a moment from now; if it was not all of a segment, by more.
            AppendError::Full { .. } if self.give_up(&log, bytes) => {
                (room(now.saturating_add(DROP_RETRY)), None)
            }
            // What could be given up is on its way to the disk, and rings when it is there.
            AppendError::Full { .. } if self.lanes[index].is_being_written() => return,
            AppendError::Full { .. } => (until_retry, Some(RecordError::Full)),
            AppendError::Poisoned => (until_retry, Some(RecordError::Disk(DiskTrouble::Dead))),
            _ => (until_retry, None),
        };
        let lane = &mut self.lanes[index];
        lane.blocked = Some(blocked);
        if trouble.is_some() {
            lane.intake.set_trouble(trouble);
        }
        // A room has to be asked once to ring.
        self.unblock(index, now);
        if self.lanes[index].blocked.is_none() {
            self.bell.ring();
        }
    }

    /// Gives up the oldest of a log. False if there is nothing to give up, or it may not be.
    pub(super) fn give_up(&mut self, log: &Arc<Log>, bytes: u64) -> bool {
        match self.outbox.drop_oldest(log, bytes) {
            Ok(dropped) if dropped.envelopes.is_empty() => false,
            Ok(dropped) => {
                let (envelopes, records) = (dropped.envelopes.len() as u64, dropped.records);
                tracing::warn!(event = "outbox.dropped", stream = %log.stream(), envelopes, records, bytes = dropped.payload_bytes);
                tell_lost(
                    &self.board.watches,
                    &dropped.gaps,
                    "given up by the stream's policy, to make room",
                );
                if let Some(lane) = self.lane(log.stream()) {
                    let counters = &lane.intake.counters;
                    Counters::add(&counters.dropped_envelopes, envelopes);
                    Counters::add(&counters.dropped_records, records);
                    Counters::add(&counters.dropped_bytes, dropped.payload_bytes);
                }
                true
            }
            Err(error) => {
                tracing::error!(event = "outbox.not_dropped", stream = %log.stream(), %error);
                false
            }
        }
    }

    /// What the disk has answered.
    pub(super) fn collect(&mut self, index: usize) {
        let lane = &mut self.lanes[index];
        let mut context = Context::from_waker(&self.waker);
        let (mut arrived, mut failed) = (false, None);
        while let Some(front) = lane.ahead.front_mut() {
            let Some(ticket) = &mut front.ticket else { break };
            match Pin::new(ticket).poll(&mut context) {
                Poll::Pending => break,
                Poll::Ready(Ok(_)) => {
                    arrived = true;
                    let durable = lane.ahead.pop_front().expect("there is a front");
                    lane.ahead_bytes -= durable.bytes();
                    lane.durable = durable.ordinal;
                    Counters::add(&lane.intake.counters.held, durable.records);
                    self.sealer.held(&durable.identity);
                    if let Some(reply) = durable.file {
                        let _ = reply.send(durable.identity);
                    }
                    // What was on its way before the log refused says nothing of whether it takes again.
                    if lane.blocked.is_none() && !lane.held_back {
                        lane.intake.set_trouble(None);
                    }
                }
                Poll::Ready(Err(error)) => {
                    // The rest of them failed with it, or would overtake it. All are written again, as they are.
                    for ahead in &mut lane.ahead {
                        ahead.ticket = None;
                    }
                    lane.failures = lane.log.failures();
                    lane.block(error, DeviceClock::since_boot());
                    failed = Some(error);
                    break;
                }
            }
        }
        if arrived {
            self.outbox.rang();
            // What waited for these may go on, in this stream or in another that was looked at before.
            self.bell.ring();
        }
        // The disk is full of others' files: what this stream gives up is written over.
        let lane = &self.lanes[index];
        if failed == Some(NotDurable::Full) && lane.intake.options.when_full == WhenFull::DropOldest {
            let (log, bytes) = (Arc::clone(&lane.log), lane.ahead_bytes as u64);
            self.give_up(&log, bytes);
        }
    }

    /// Looks whether a log that refused may take again.
    pub(super) fn unblock(&mut self, index: usize, now: Duration) {
        let lane = &mut self.lanes[index];
        let mut context = Context::from_waker(&self.waker);
        let over = match &mut lane.blocked {
            None => false,
            Some(Blocked::Room(room, until)) => *until <= now || room.as_mut().poll(&mut context).is_ready(),
            Some(Blocked::Until(until)) => *until <= now,
        };
        if over {
            lane.blocked = None;
        }
    }
}

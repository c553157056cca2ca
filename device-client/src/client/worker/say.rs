//! What the device says of itself, sealed: how far its lines have come, now and then and at the end.

use std::{sync::atomic::Ordering, time::Duration};

use super::{HEARTBEAT_RETRY, Worker};
use crate::{
    batch::{Gathered, Moment},
    client::stream::{Body, Counters, Ready},
    clock::DeviceClock,
    state::lock,
};

impl Worker {
    /// Says how far the lines have come, and what was given up, while somebody hears it. Gives when to look again.
    pub(super) fn heartbeat(&mut self, now: Duration) -> Duration {
        if now < self.heartbeat_at {
            return self.heartbeat_at;
        }
        if self.board.connected.load(Ordering::Relaxed) && self.say() {
            self.board.heartbeats.fetch_add(1, Ordering::Relaxed);
            self.heartbeat_at = now.saturating_add(self.heartbeat_every);
            return self.heartbeat_at;
        }
        // There is nothing to say yet, or no key to say it under, or nobody to hear it. The uplink rings when it connects.
        if self.board.connected.load(Ordering::Relaxed) {
            self.heartbeat_at = now.saturating_add(self.heartbeat_every.min(HEARTBEAT_RETRY));
            return self.heartbeat_at;
        }
        Duration::MAX
    }

    /// Seals a batch without records, if there is something to say.
    pub(super) fn say(&mut self) -> bool {
        let stream = self.heartbeat_stream.clone();
        let sealed_anything = !lock(self.outbox.sequence()).marks().is_empty();
        if !sealed_anything && !self.outbox.any_undeclared() {
            return false;
        }
        let Some(index) = self.lanes.iter().position(|lane| *lane.name() == stream) else { return false };
        if self.lanes[index].is_blocked() {
            return false;
        }
        // It goes ahead of what still waits in memory, so it speaks for no more than has been sealed.
        let lane = &self.lanes[index];
        let ordinal = lane.ahead.back().map_or(lane.durable, |sealed| sealed.ordinal);
        let ready = Ready { ordinal, body: Body::Batch(Gathered::nothing(moment())) };
        match self.seal(index, ready, true) {
            Ok(()) => true,
            Err(refused) => {
                tracing::warn!(event = "client.no_heartbeat", error = %refused.error);
                false
            }
        }
    }

    /// The last heartbeat, and everything on disk. What cannot be written now is lost, and was never said to be kept.
    pub(super) fn say_goodbye(&mut self) {
        if !self.said_goodbye && self.say() {
            for index in 0..self.lanes.len() {
                self.write(index, DeviceClock::since_boot());
            }
            for lane in &mut self.lanes {
                while let Some(ahead) = lane.ahead.pop_front() {
                    if ahead.ticket.is_some_and(|ticket| ticket.wait().is_ok()) {
                        self.sealer.held(&ahead.identity);
                        Counters::add(&lane.intake.counters.held, ahead.records);
                    }
                }
            }
        }
        self.outbox.rang();
        self.answer_settled();
        for reply in self.stopped.drain(..) {
            let _ = reply.send(());
        }
    }
}

fn moment() -> Moment {
    let monotonic_us = u64::try_from(DeviceClock::since_boot().as_micros()).ok();
    Moment { wall_us: DeviceClock::wall_us(), monotonic_us }
}

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

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        sync::{Arc, Mutex, atomic::AtomicU64, mpsc},
    };

    use pithead_sealing::{
        names::{DeviceId, Run, Seq, StreamName},
        trust::Bundle,
    };
    use pithead_spool::Position;

    use super::*;
    use crate::{
        batch::{Gap, GapReason},
        client::{
            options::StreamOptions,
            stream::{Intake, Stream},
            worker::{Board, KeyView, Lane},
        },
        keys::{Keys, testing::case},
        outbox::{MIN_BUDGET_BYTES, Outbox, inline_bytes},
        sealer::Sealer,
    };

    const HOUR: Duration = Duration::from_secs(3_600);

    /// Trust without a key, and the bundle that brings one: the first conformance case.
    fn trust() -> (Keys, Bundle) {
        let (keys, mut bundles) = case("first-statement");
        (keys, bundles.remove(0))
    }

    /// A worker of one stream, which no thread runs: the test takes each step.
    fn worker(folder: &std::path::Path, keys: Keys) -> (Worker, Stream) {
        let can = StreamName::new("can").unwrap();
        let budgets = BTreeMap::from([(can.clone(), MIN_BUDGET_BYTES)]);
        let (outbox, _) = Outbox::open(folder, keys.trust().site(), &budgets).unwrap();
        let (outbox, bell) = (Arc::new(outbox), Arc::default());
        let board = Board {
            connected: true.into(),
            keys: Mutex::new(Arc::new(KeyView::of(&keys))),
            sessions: AtomicU64::new(0),
            heartbeats: AtomicU64::new(0),
            watches: Arc::default(),
        };
        let device = DeviceId::new("truck-7").unwrap();
        let sealer = Sealer::sharing(device, keys, Arc::clone(outbox.sequence()));
        let options = StreamOptions::records(can.clone()).linger(HOUR).budget_bytes(MIN_BUDGET_BYTES);
        let intake = Arc::new(Intake::new(options, inline_bytes(MIN_BUDGET_BYTES), Arc::clone(&bell)));
        let lane = Lane::new(Arc::clone(&intake), Arc::clone(outbox.log(&can).unwrap()));
        let (_, asked) = mpsc::sync_channel(1);
        let worker = Worker::new(sealer, outbox, Arc::new(board), bell, asked, HOUR, can, vec![lane]);
        (worker, Stream { intake })
    }

    /// What is on its way to the disk gets there.
    fn arrive(worker: &mut Worker) {
        while !worker.lanes[0].ahead.is_empty() {
            worker.bell.wait(None);
            worker.collect(0);
        }
    }

    /// The batch has its place before the heartbeat, and is sealed after it. Whoever waited for the batch was told that it was
    /// durable when the heartbeat was.
    #[test]
    fn a_heartbeat_ahead_of_a_batch_that_was_put_back_does_not_pass_it_for_durable() {
        let folder = tempfile::tempdir().unwrap();
        let (keys, bundle) = trust();
        let (mut worker, can) = worker(folder.path(), keys);
        can.record(b"waits for a key").unwrap();
        let batch = can.intake.close_batch();
        worker.work(0, DeviceClock::since_boot());
        let lane = &worker.lanes[0];
        assert!(lane.held_back && lane.ahead.is_empty(), "it was taken, and put back");
        // The key comes, and there is something to say: what an earlier life gave up.
        worker.apply(&bundle).unwrap();
        let (first, last) = (Seq::FIRST, Seq::new(9).unwrap());
        let (stream, run) = (can.name().clone(), Run::new(1).unwrap());
        let gap = Gap { stream, run, from: first, to: last, reason: GapReason::DroppedByPolicy };
        worker.outbox.lose(&worker.lanes[0].log, Position(0), &[gap]).unwrap();
        assert!(worker.say());
        worker.write(0, DeviceClock::since_boot());
        arrive(&mut worker);
        assert_eq!(can.intake.in_memory().0, 1, "the batch is in memory");
        assert!(worker.lanes[0].durable < batch, "and nobody is told that it is on the disk");
        worker.work(0, DeviceClock::since_boot());
        arrive(&mut worker);
        assert_eq!((worker.lanes[0].durable, can.intake.in_memory().0), (batch, 0));
    }
}

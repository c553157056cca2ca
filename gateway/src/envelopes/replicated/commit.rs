//! From a lane's queue into its stream: one message at a time, until it is certain what became of it.

use std::sync::Arc;

use bytes::Bytes;
use pithead_spool::{Lane, NotDurable, Position, Promise, Record};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::broker::{Broker, Fault};
use super::cell::{By, Pause};
use super::group::{self, Group, HEAD_BYTES, Stamp};
use super::{GROUP_RECORDS, MESSAGE_OVERHEAD, Place, Shared};
use crate::envelopes::lanes;

/// How often a log that is shorter than what was acknowledged in it, or denies what stands in it, is looked at again: whoever answers may
/// lag.
const SHORTER_TRIES: u32 = 20;

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Published {
    /// It stands right behind the one that it was to stand behind.
    Appended,
    /// Not, and never will.
    Full,
    /// Somebody else's stands there.
    Fenced,
}

struct Batch {
    stamp: Stamp,
    message: Bytes,
    promises: Vec<Promise>,
    /// Of the queue.
    bytes: u64,
    at_ms: Option<u64>,
}

/// Publishes what is appended to a lane, for as long as the term lasts.
pub(super) async fn run(shared: Arc<Shared>, lane: Lane, by: By, over: CancellationToken) {
    loop {
        let work = shared.work[lane.index()].notified();
        tokio::pin!(work);
        work.as_mut().enable();
        let Some(batch) = shared.next_batch(lane, by) else {
            tokio::select! {
                () = work => continue,
                () = over.cancelled() => return,
            }
        };
        let began = Instant::now();
        let published = tokio::select! {
            published = publish(&*shared.broker, &batch.stamp, batch.message.clone()) => Some(published),
            () = over.cancelled() => None,
        };
        let is_over = published.is_none_or(|published| published == Published::Fenced);
        if is_over {
            // Before anybody is told: whoever comes again must not find a gateway that still takes something.
            over.cancel();
        }
        shared.published(lane, batch, published, began);
        if is_over {
            return;
        }
    }
}

/// Sends a message until it is certain what became of it.
pub(super) async fn publish(broker: &dyn Broker, stamp: &Stamp, message: Bytes) -> Published {
    let Stamp { lane, expected, .. } = *stamp;
    let name = lanes::name(lane);
    let mut pause = Pause::default();
    // An earlier attempt may still be done.
    let mut doubtful = false;
    let (mut shorter, mut denied) = (0, 0);
    loop {
        match broker.append(lane, expected, message.clone()).await {
            Ok(sequence) if sequence == expected + 1 => return Published::Appended,
            Ok(sequence) => {
                tracing::error!(
                    event = "spool.not_compared",
                    lane = name,
                    expected,
                    sequence,
                    "the broker has appended without comparing"
                );
                return Published::Fenced;
            }
            Err(Fault::Mismatch) => match broker.read(lane, expected + 1).await {
                Ok(Some(found)) => {
                    let ours = Group::decode(found).is_some_and(|group| group.is(stamp));
                    return if ours { Published::Appended } else { Published::Fenced };
                }
                Ok(None) => {
                    // On its way, or whoever was asked is behind; or the log has lost what it had, or does not give it.
                    match broker.state(lane).await {
                        Ok(state) if state.last < expected => (shorter, denied) = (shorter + 1, 0),
                        Ok(state) if state.last > expected => (shorter, denied) = (0, denied + 1),
                        Ok(_) => (shorter, denied) = (0, 0),
                        Err(_) => {}
                    }
                    if denied >= SHORTER_TRIES {
                        // Whatever stands there, and be it ours: whoever takes the lane over leaves room for it.
                        tracing::error!(event = "spool.group_gone", lane = name, sequence = expected + 1);
                        return Published::Fenced;
                    }
                    if shorter >= SHORTER_TRIES {
                        tracing::error!(
                            event = "spool.log_shorter",
                            lane = name,
                            expected,
                            "the broker has lost messages that it had acknowledged"
                        );
                        return Published::Fenced;
                    }
                }
                Err(fault) => tracing::debug!(event = "spool.publish_again", lane = name, %fault),
            },
            Err(Fault::Full(words)) if !doubtful => {
                tracing::warn!(event = "spool.broker_full", lane = name, words);
                return Published::Full;
            }
            Err(fault) => {
                doubtful = true;
                tracing::debug!(event = "spool.publish_again", lane = name, %fault);
            }
        }
        pause.wait().await;
    }
}

impl Shared {
    /// What goes out next: as much of what waits as one message holds.
    fn next_batch(&self, lane: Lane, by: By) -> Option<Batch> {
        let mut state = self.lock();
        state.term.as_ref().filter(|term| term.by == by)?;
        let here = &mut state.lanes[lane.index()];
        let (mut count, mut bytes) = (0, 0);
        while let Some(next) = here.queue.get(count) {
            if count == GROUP_RECORDS || HEAD_BYTES + bytes + next.bytes > self.bounds.group_bytes {
                break;
            }
            bytes += next.bytes;
            count += 1;
        }
        if count == 0 {
            return None;
        }
        let stamp = Stamp {
            lane,
            epoch: by.epoch,
            writer: by.writer,
            number: here.number,
            expected: here.last,
            first: here.end,
            room: false,
        };
        here.number += 1;
        here.busy_since = Some(Instant::now());
        let (records, promises): (Vec<Record>, Vec<Promise>) =
            here.queue.drain(..count).map(|one| (one.record, one.promise)).unzip();
        drop(state);
        let at_ms = records.first().map(|record| record.at_ms);
        Some(Batch { stamp, message: group::encode(&stamp, &records), promises, bytes: bytes as u64, at_ms })
    }

    fn published(&self, lane: Lane, batch: Batch, published: Option<Published>, began: Instant) {
        let Batch { stamp, message, promises, bytes, at_ms } = batch;
        let mut state = self.lock();
        state.queued_bytes -= bytes;
        state.queued_records -= promises.len();
        let count = promises.len() as u64;
        let appended = published == Some(Published::Appended);
        if appended {
            state.counters.appended_records += count;
            state.counters.groups += 1;
            state.full = false;
        } else {
            state.counters.failed += 1;
        }
        state.counters.times.add(began.elapsed());
        let here = &mut state.lanes[lane.index()];
        here.busy_since = None;
        let mut given_up = Vec::new();
        if appended {
            here.last = stamp.expected + 1;
            here.end = stamp.first + count;
            here.bytes += message.len() as u64 + MESSAGE_OVERHEAD;
            here.index.note(stamp.first, Place { sequence: here.last, at_ms });
        } else if published == Some(Published::Full) {
            state.full = true;
            given_up = self.give_up(&mut state, lane.index());
        }
        drop(state);
        match published {
            Some(Published::Appended) => {
                (stamp.first..).zip(promises).for_each(|(at, promise)| promise.keep(Position(at)));
            }
            Some(Published::Full) => {
                let given_up = given_up.into_iter().map(|one| one.promise);
                promises.into_iter().chain(given_up).for_each(|promise| promise.fail(NotDurable::Full));
            }
            // Fenced: it does not stand there, and never will. But the caller's question is where to bring it now, and the answer is the
            // same as if it were not known.
            Some(Published::Fenced) | None => {
                promises.into_iter().for_each(|promise| promise.fail(NotDurable::Unknown));
            }
        }
        self.moved.notify_waiters();
    }
}

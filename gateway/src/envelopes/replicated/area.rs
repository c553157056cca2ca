//! The replica of the refused area: what the far end will never take, on as many servers as what waits.
//!
//! People and commands work in the folder of whoever owns the lanes ([`crate::envelopes::refused`]). What lies there lies here as well,
//! so that it outlives its machine: whoever owns the lanes next brings its own folder in line with this.
//!
//! ```text
//! stream PREFIX-refused, one message to a subject:
//!        PREFIX.refused.owner   {"v":1,"epoch":7,"writer":"00c0ffee00c0ffee","area":"5eed5eed5eed5eed"}
//!        PREFIX.refused.NAME    {"v":1,"epoch":7,"writer":"...","number":3,"entry":{...}}, a line feed, the envelope as it came
//! ```
//!
//! NAME is that of the entry's files; a point in it is written `=`, because a point begins another token. Of a large envelope the bytes
//! lie elsewhere, and nothing follows the line feed. *Area* is drawn when there is no `owner`, and handed on: it is the same for as long as
//! nobody makes the stream anew or empties it by hand.
//!
//! # Why nothing is lost, and nothing comes back
//!
//! 1. An entry is here before its record may leave the lane. It is appended if the newest message of the *whole* stream is the one
//!    that its writer takes for it, and then takes the place of what stood under its name. An answer that was lost is never taken for one.
//! 2. An owner begins by replacing `owner` ([`Replica::begin`]). That moves the newest sequence on, so what a former owner has asked for is
//!    done before that, or never. If it is before, the list that is read behind it shows it: its record may still wait in the lane, and
//!    be delivered or refused once more, since the former owner's cursor did not move. An entry too many is a duplicate at the far end.
//! 3. What is let go is removed by its sequence, not by its name: the very message that was taken out. Whoever refuses the envelope
//!    again has put a newer one under the name, which that does not touch, however late it comes; so it needs no fence. It was decided by
//!    what holds for every owner: the envelope is durable in its lane, or a person has carried it away.
//! 4. A leader that was cut off can answer a read with the past. A list ends at the fence of whoever reads it, which such a one
//!    has not got; what it shows beyond what is there is a duplicate.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::broker::{Broker, Fault, LogState};
use super::cell::{self, By, Pause, Unreadable, hexadecimal};
use super::owning::GONE_LOOKS;
use super::{HEADERS_BYTES, MESSAGE_OVERHEAD};
use crate::envelopes::refused::Entry;

#[cfg(test)]
mod tests;

/// Under which name the owner's fence stands. No entry is called that: their names have parts.
const OWNER: &str = "owner";
/// Whoever waits for an answer is told after so long that there is none: the relay says so, and tries again.
const LIMIT: Duration = Duration::from_secs(10);
/// Kept free, so that whoever takes over finds room for its fence.
const RESERVE: u64 = 64 << 10;

/// Where an entry stands in the replica: it was there, so that it is not there any more means that it was let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Of the stream.
    #[serde(with = "hexadecimal")]
    pub(crate) area: u64,
    /// Of its message.
    pub(crate) sequence: u64,
}

/// Why the replica was not written or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplicaError {
    /// Another gateway decides what lies there.
    #[error("this gateway does not own the lanes, nor the refused area with them")]
    NotOurs,
    /// It is of a later term than the owner's record, which was lost.
    #[error("the refused area is of term {0}, later than the owner's record, which was lost")]
    Later(u64),
    /// It has no room.
    #[error("the stream of the refused area is full: {0}")]
    Full(String),
    /// No room would do.
    #[error(
        "a refused envelope is a message of {bytes} bytes, where {most} are taken: raise max_payload of nats-server, and max_msg_size of the stream if it has one"
    )]
    TooLarge {
        /// Of the message.
        bytes: usize,
        /// The largest.
        most: usize,
    },
    /// It is not certain what became of it.
    #[error("JetStream does not answer for the refused area: {0}")]
    Away(String),
}

/// What stands under `owner`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Fence {
    #[serde(with = "hexadecimal")]
    area: u64,
}

/// What stands before the bytes of an envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    /// Of the messages of its writer: none is taken for another one.
    number: u64,
    entry: Entry,
}

/// An entry that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) entry: Entry,
    /// None of a large one.
    pub(crate) envelope: Bytes,
}

/// What stands at a place.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) name: String,
    pub(crate) sequence: u64,
    /// Or why it does not read.
    pub(crate) kept: Result<Kept, &'static str>,
}

/// What became of a message that was to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gone {
    /// Nothing stands under its name.
    Gone,
    /// Another one does, which came later.
    Newer,
}

fn encode(by: By, number: u64, entry: &Entry, envelope: &[u8]) -> Bytes {
    let head = cell::encode(by, Head { number, entry: entry.clone() });
    let mut out = BytesMut::with_capacity(head.len() + 1 + envelope.len());
    out.put_slice(&head);
    // JSON has none of its own.
    out.put_u8(b'\n');
    out.put_slice(envelope);
    out.freeze()
}

fn decode(message: &Bytes) -> Result<(By, u64, Kept), Unreadable> {
    let end = message.iter().position(|byte| *byte == b'\n').ok_or(Unreadable::Damaged)?;
    let head = cell::decode::<Head>(&message[..end])?;
    let Head { number, entry } = head.value;
    Ok((head.by, number, Kept { entry, envelope: message.slice(end + 1..) }))
}

/// The time in which this gateway writes the replica: begun by its fence, over with its term. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Turn {
    by: By,
    area: u64,
    fence: u64,
    /// The newest message, as far as is known here. A message whose answer nobody waited for may stand behind it.
    last: Arc<AtomicU64>,
    number: Arc<AtomicU64>,
}

impl Turn {
    /// Of the stream.
    pub(crate) fn area(&self) -> u64 {
        self.area
    }

    /// Whether an entry of this mark was in the stream before this turn began.
    pub(crate) fn had(&self, mark: Mark) -> bool {
        mark.area == self.area && mark.sequence <= self.fence
    }

    /// The mark of what stands at a sequence.
    pub(crate) fn mark(&self, sequence: u64) -> Mark {
        Mark { area: self.area, sequence }
    }

    fn begun(by: By, area: u64, fence: u64) -> Self {
        Self { by, area, fence, last: Arc::new(AtomicU64::new(fence)), number: Arc::default() }
    }

    /// Appends a message until it is certain that it stands there. What was asked for earlier in this turn, and not waited for, is
    /// stepped over.
    async fn put(
        &self,
        broker: &dyn Broker,
        name: &str,
        number: u64,
        message: Bytes,
    ) -> Result<u64, ReplicaError> {
        let (mut pause, mut foreign) = (Pause::default(), 0);
        loop {
            let last = self.last.load(Ordering::Relaxed);
            match broker.keep(name, last, message.clone()).await {
                Ok(sequence) if sequence == last + 1 => {
                    self.last.store(sequence, Ordering::Relaxed);
                    return Ok(sequence);
                }
                Ok(sequence) => return Err(not_compared(last, sequence)),
                Err(Fault::Mismatch) => match broker.kept_from(last + 1).await {
                    // What stands right behind the newest that is ours, and is ours, shows that nobody else's fence stands between.
                    Ok(Some(found)) if found.sequence == last + 1 => match decode(&found.bytes) {
                        Ok((by, theirs, _)) if by == self.by => {
                            self.last.store(found.sequence, Ordering::Relaxed);
                            if theirs == number {
                                return Ok(found.sequence);
                            }
                            continue;
                        }
                        _ => return Err(ReplicaError::NotOurs),
                    },
                    Ok(Some(_)) => return Err(ReplicaError::NotOurs),
                    Ok(None) => {
                        // On its way, or whoever was asked is behind; or somebody has taken away what stood there.
                        match broker.kept_state().await {
                            Ok(state) if state.last != last => foreign += 1,
                            Ok(_) => foreign = 0,
                            Err(_) => {}
                        }
                        if foreign >= GONE_LOOKS {
                            return Err(ReplicaError::NotOurs);
                        }
                    }
                    Err(fault) => tracing::debug!(event = "refused.replica_again", name, %fault),
                },
                Err(Fault::Full(words)) => return Err(ReplicaError::Full(words)),
                Err(fault) => tracing::debug!(event = "refused.replica_again", name, %fault),
            }
            pause.wait().await;
        }
    }
}

fn not_compared(expected: u64, sequence: u64) -> ReplicaError {
    tracing::error!(
        event = "spool.not_compared",
        lane = "refused",
        expected,
        sequence,
        "the broker has appended without comparing"
    );
    ReplicaError::NotOurs
}

/// Puts the fence of this owner behind whatever stands there.
async fn fence(broker: &dyn Broker, by: By) -> Result<Turn, ReplicaError> {
    let mut pause = Pause::default();
    loop {
        // In this order: what comes in between is noticed by the comparing.
        if let Ok(state) = broker.kept_state().await
            && let Ok(held) = broker.kept(OWNER).await
        {
            let stored = held.as_ref().map(|held| cell::decode::<Fence>(&held.bytes));
            let area = match (stored, held) {
                // Ours, and the answer was lost.
                (Some(Ok(stored)), Some(held)) if stored.by == by => {
                    return Ok(Turn::begun(by, stored.value.area, held.revision));
                }
                (Some(Ok(stored)), _) if stored.by.epoch > by.epoch => {
                    return Err(ReplicaError::Later(stored.by.epoch));
                }
                (Some(Err(Unreadable::OtherVersion)), _) => {
                    let what = "another version of this program has written it".to_owned();
                    return Err(ReplicaError::Away(what));
                }
                (Some(Ok(stored)), _) => stored.value.area,
                (None | Some(Err(Unreadable::Damaged)), _) => pithead_hop::backoff::random(),
            };
            match broker.keep(OWNER, state.last, cell::encode(by, Fence { area })).await {
                Ok(sequence) if sequence == state.last + 1 => return Ok(Turn::begun(by, area, sequence)),
                Ok(sequence) => return Err(not_compared(state.last, sequence)),
                Err(Fault::Full(words)) => return Err(ReplicaError::Full(words)),
                // The former owner was quicker, or the answer was lost.
                Err(fault) => tracing::debug!(event = "refused.replica_again", name = OWNER, %fault),
            }
        }
        pause.wait().await;
    }
}

/// What stands at or behind a sequence; none where the fence of this turn is reached, and nothing that this turn has put is behind it.
async fn next(broker: &dyn Broker, turn: &Turn, from: u64) -> Result<Option<Listed>, ReplicaError> {
    let (mut pause, mut from) = (Pause::default(), from);
    loop {
        match broker.kept_from(from).await {
            // Of this turn; or of another one, as a leader of the past shows it.
            Ok(Some(found)) if found.name == OWNER => {
                from = found.sequence + 1;
                continue;
            }
            Ok(Some(found)) => {
                let kept = match decode(&found.bytes) {
                    Ok((by, _, kept)) => {
                        if by == turn.by {
                            // One whose answer nobody waited for: what comes next stands behind it.
                            turn.last.fetch_max(found.sequence, Ordering::Relaxed);
                        }
                        Ok(kept)
                    }
                    Err(Unreadable::OtherVersion) => Err("another version of this program has written it"),
                    Err(Unreadable::Damaged) => Err("it does not read"),
                };
                return Ok(Some(Listed { name: found.name, sequence: found.sequence, kept }));
            }
            Ok(None) if from > turn.fence => return Ok(None),
            // Whoever was asked is behind: the fence is there.
            Ok(None) => {}
            Err(fault) => tracing::debug!(event = "refused.replica_again", from, %fault),
        }
        pause.wait().await;
    }
}

/// Removes one message, however often that has to be asked for.
async fn remove(broker: &dyn Broker, name: &str, sequence: u64) -> Gone {
    let mut pause = Pause::default();
    loop {
        match broker.let_go(sequence).await {
            Ok(true) => return Gone::Gone,
            Ok(false) => match broker.kept(name).await {
                // An earlier attempt was done; or another one has taken its place.
                Ok(Some(held)) if held.revision > sequence => return Gone::Newer,
                Ok(_) => return Gone::Gone,
                Err(fault) => tracing::debug!(event = "refused.replica_again", name, %fault),
            },
            Err(fault) => tracing::debug!(event = "refused.replica_again", name, %fault),
        }
        pause.wait().await;
    }
}

/// The replica, for whoever owns the lanes. Clones are the same. Everything here blocks, until it is certain, or the term is over, or
/// nobody has answered for long.
#[derive(Clone)]
pub(crate) struct Replica(Arc<Shared>);

impl Replica {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// Whether the term of this turn goes on.
    pub(crate) fn is_current(&self, turn: &Turn) -> bool {
        self.term().is_some_and(|(by, _)| by == turn.by)
    }

    /// Shuts every former owner out. What they have put is there when this returns, or never will be.
    ///
    /// # Errors
    /// [`ReplicaError`].
    pub(crate) fn begin(&self) -> Result<Turn, ReplicaError> {
        let (by, _) = self.term().ok_or(ReplicaError::NotOurs)?;
        let shared = self.0.clone();
        self.ask(by, async move { fence(&*shared.broker, by).await })
    }

    /// What stands at or behind a sequence. None: that was all.
    ///
    /// # Errors
    /// [`ReplicaError`].
    pub(crate) fn next(&self, turn: &Turn, from: u64) -> Result<Option<Listed>, ReplicaError> {
        let (shared, of) = (self.0.clone(), turn.clone());
        self.ask(turn.by, async move { next(&*shared.broker, &of, from).await })
    }

    /// Puts an entry there, in the place of another one of its name. It is durable when this returns.
    ///
    /// # Errors
    /// [`ReplicaError`]: it may be there all the same.
    pub(crate) fn keep(
        &self,
        turn: &Turn,
        name: &str,
        entry: &Entry,
        envelope: &[u8],
    ) -> Result<Mark, ReplicaError> {
        let (shared, of, name) = (self.0.clone(), turn.clone(), name.to_owned());
        let number = turn.number.fetch_add(1, Ordering::Relaxed);
        let message = encode(turn.by, number, entry, envelope);
        let sequence = self.ask(turn.by, async move {
            let most = shared.broker.message_bytes().saturating_sub(HEADERS_BYTES);
            if message.len() > most {
                return Err(ReplicaError::TooLarge { bytes: message.len(), most });
            }
            if let Ok(LogState { bytes, max_bytes: Some(max), .. }) = shared.broker.kept_state().await
                && bytes + message.len() as u64 + MESSAGE_OVERHEAD + RESERVE > max
            {
                return Err(ReplicaError::Full(format!("{bytes} of {max} bytes")));
            }
            of.put(&*shared.broker, &name, number, message).await
        })?;
        Ok(turn.mark(sequence))
    }

    /// Has an entry go from there, if it is still the one of this sequence.
    ///
    /// # Errors
    /// [`ReplicaError`]: it may be gone all the same.
    pub(crate) fn remove(&self, turn: &Turn, name: &str, sequence: u64) -> Result<Gone, ReplicaError> {
        let (shared, name) = (self.0.clone(), name.to_owned());
        self.ask(turn.by, async move { Ok(remove(&*shared.broker, &name, sequence).await) })
    }

    fn term(&self) -> Option<(By, CancellationToken)> {
        let state = self.0.lock();
        let term = state.term.as_ref().filter(|term| !term.over.is_cancelled())?;
        Some((term.by, term.over.clone()))
    }

    /// Has the engine's thread do it, for as long as the term lasts, and not for ever.
    fn ask<T: Send + 'static>(
        &self,
        by: By,
        work: impl Future<Output = Result<T, ReplicaError>> + Send + 'static,
    ) -> Result<T, ReplicaError> {
        let Some((_, over)) = self.term().filter(|(now, _)| *now == by) else {
            return Err(ReplicaError::NotOurs);
        };
        let until = over.clone();
        let limited = async move {
            tokio::select! {
                done = tokio::time::timeout(LIMIT, work) => done.unwrap_or_else(|_| {
                    Err(ReplicaError::Away(format!("nothing is certain after {} s", LIMIT.as_secs())))
                }),
                () = until.cancelled() => Err(ReplicaError::NotOurs),
            }
        };
        let done = self.0.block(limited).unwrap_or(Err(ReplicaError::NotOurs));
        match &done {
            // Somebody else's fence stands there: the lanes are theirs as well.
            Err(ReplicaError::NotOurs) => over.cancel(),
            Err(ReplicaError::Later(epoch)) => {
                self.0.later.fetch_max(*epoch, Ordering::Relaxed);
                over.cancel();
            }
            _ => {}
        }
        done
    }
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replica").finish_non_exhaustive()
    }
}

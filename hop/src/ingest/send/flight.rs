//! The sending half as a state machine: a window of unanswered envelopes, batches, and answers matched to tokens.
//!
//! It is fed and asked; it knows no network and no clock. The far end's word is not trusted: its limits are clamped by
//! ours, and an acknowledgement of what was not sent, or twice, or for less than was promised, is a [`ProtocolError`].

use std::collections::VecDeque;

use bytes::Bytes;
use pithead_proto::errors::v1::ErrorReason;
use pithead_proto::ingest::v1 as wire;
use pithead_proto::ingest::v1::outcome::What;
use prost::Message as _;

/// Bytes of envelopes in one batch, unless one envelope is larger: a receiver answers whole batches, so a batch is about
/// what a slow radio sends in a second.
pub const BATCH_BYTES: u64 = 256 << 10;
/// Envelopes in one batch.
pub const BATCH_ENVELOPES: usize = 256;
/// What a request needs besides its envelopes, in bytes: [`BATCH_ENVELOPES`] gaps, and the custody of one envelope.
const OVERHEAD: u64 = 32 << 10;
/// Tag and length of an item within its batch, in bytes at most.
const ITEM_FRAMING: usize = 8;

/// What we are willing to have under way, and what the far end allows of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Unanswered envelopes, in bytes.
    pub bytes: u64,
    /// Unanswered envelopes.
    pub envelopes: u64,
    /// The largest envelope, in bytes.
    pub envelope_bytes: u64,
}

impl Window {
    /// Ours, narrowed by the Welcome: never widened.
    ///
    /// # Errors
    /// [`ProtocolError::Limits`] for a Welcome under which nothing could be sent.
    pub(super) fn narrowed(self, welcome: &wire::Welcome) -> Result<Self, ProtocolError> {
        let limits = welcome.limits.unwrap_or_default();
        let bytes = self.bytes.min(welcome.window_bytes);
        let narrowed = Self {
            bytes,
            envelopes: self.envelopes.min(welcome.window_envelopes.into()),
            envelope_bytes: self
                .envelope_bytes
                .min(limits.inline_bytes)
                .min(welcome.window_bytes)
                .min(limits.request_bytes.saturating_sub(OVERHEAD)),
        };
        if narrowed.envelopes == 0 || narrowed.envelope_bytes == 0 {
            return Err(ProtocolError::Limits);
        }
        Ok(narrowed)
    }
}

/// The far end does not keep the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// Something else than a Welcome came first, or a second one came.
    #[error("the other end did not open with one Welcome")]
    Welcome,
    /// Under these limits nothing could be sent.
    #[error("the other end's limits allow nothing")]
    Limits,
    /// A message that is neither Welcome nor Ack.
    #[error("the other end sent a message that is not known")]
    Message,
    /// An acknowledgement of a batch that was not sent.
    #[error("the other end acknowledged batch {through} where {sent} were sent")]
    NotSent {
        /// Acknowledged.
        through: u64,
        /// Sent.
        sent: u64,
    },
    /// An acknowledgement below the one before.
    #[error("the other end's acknowledgements run backwards")]
    Backwards,
    /// An acknowledgement that means less than the Welcome promised.
    #[error("the other end's acknowledgement means less than it promised")]
    Durability,
    /// An outcome for what this acknowledgement does not cover, or a second one, or none of the known kinds.
    #[error("the other end answered an envelope that was not asked about, or twice")]
    Outcome,
}

/// How one envelope ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Durable at the far end, by this call.
    Stored,
    /// It was there before.
    Duplicate {
        /// Its bytes could not be compared any more.
        unverified: bool,
    },
    /// Other bytes stand under its identity.
    Conflict {
        /// Whether the far end keeps these beside.
        kept: bool,
    },
    /// The far end will never take it.
    Refused {
        /// Why; none if it is a reason that this version does not know.
        reason: Option<ErrorReason>,
        /// For a person; a program may not read it.
        detail: String,
    },
}

impl Answer {
    /// True if the far end holds the envelope: nobody need send it again.
    pub fn is_held(&self) -> bool {
        match self {
            Self::Stored | Self::Duplicate { .. } | Self::Conflict { kept: true } => true,
            Self::Conflict { kept: false } | Self::Refused { .. } => false,
        }
    }
}

/// The answer to one envelope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered<T> {
    /// What the caller knows the envelope by.
    pub token: T,
    /// How it ended.
    pub answer: Answer,
}

/// Why an envelope was not taken into the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotTaken {
    /// The window is full: wait for answers.
    #[error("the window is full")]
    Full,
    /// Larger than the far end takes; it never will on this call.
    #[error("the envelope is larger than {max} bytes")]
    TooLarge {
        /// The largest one that it takes, in bytes.
        max: u64,
    },
}

#[derive(Debug)]
struct Unanswered<T> {
    number: u64,
    bytes: u64,
    tokens: Vec<T>,
}

/// One call's envelopes between the caller's hand and the far end's answer.
#[derive(Debug)]
pub struct Flight<T> {
    window: Window,
    batch_bytes: u64,
    durability: wire::Durability,
    /// Not in a batch yet.
    queued: VecDeque<(T, wire::Item)>,
    gaps: Vec<wire::Gap>,
    sent: VecDeque<Unanswered<T>>,
    number: u64,
    acked: u64,
    bytes: u64,
    envelopes: u64,
    /// Of `bytes`, those in `queued`.
    queued_bytes: u64,
}

impl<T> Flight<T> {
    /// Nothing under way, within this window. Acknowledgements have to mean at least `durability`.
    pub fn new(window: Window, durability: wire::Durability) -> Self {
        Self {
            window,
            batch_bytes: BATCH_BYTES,
            durability,
            queued: VecDeque::new(),
            gaps: Vec::new(),
            sent: VecDeque::new(),
            number: 0,
            acked: 0,
            bytes: 0,
            envelopes: 0,
            queued_bytes: 0,
        }
    }

    /// Keeps batches within the far end's largest request.
    pub(super) fn within_requests_of(mut self, request_bytes: u64) -> Self {
        self.batch_bytes = BATCH_BYTES.min(request_bytes.saturating_sub(OVERHEAD));
        self
    }

    /// Whether an envelope of this many bytes would be taken now.
    ///
    /// # Errors
    /// [`NotTaken`].
    pub fn room_for(&self, bytes: u64) -> Result<(), NotTaken> {
        if bytes > self.window.envelope_bytes {
            Err(NotTaken::TooLarge { max: self.window.envelope_bytes })
        } else if (self.bytes > 0 && self.bytes + bytes > self.window.bytes)
            || self.envelopes >= self.window.envelopes
        {
            // One that is larger than a window of our own choice goes alone: it must not be refused for that.
            Err(NotTaken::Full)
        } else {
            Ok(())
        }
    }

    /// Takes an envelope. It goes out after everything taken before.
    ///
    /// # Errors
    /// [`NotTaken`], with the token.
    pub fn take(&mut self, token: T, envelope: Bytes, hops: Vec<wire::Hop>) -> Result<(), (T, NotTaken)> {
        let bytes = envelope.len() as u64;
        if let Err(why) = self.room_for(bytes) {
            return Err((token, why));
        }
        self.bytes += bytes;
        self.envelopes += 1;
        self.queued_bytes += bytes;
        self.queued.push_back((token, wire::Item { envelope, hops }));
        Ok(())
    }

    /// Gaps for the next batch. They are a hint: at most [`BATCH_ENVELOPES`] ride on one, and those above are left out.
    pub fn declare(&mut self, gaps: impl IntoIterator<Item = wire::Gap>) {
        let room = BATCH_ENVELOPES.saturating_sub(self.gaps.len());
        self.gaps.extend(gaps.into_iter().take(room));
    }

    /// True if there is something to send.
    pub fn has_batch(&self) -> bool {
        !self.queued.is_empty() || !self.gaps.is_empty()
    }

    /// The next batch, if there is something to send. From now on it is sent.
    pub fn next_batch(&mut self) -> Option<wire::Batch> {
        if !self.has_batch() {
            return None;
        }
        let (mut bytes, mut request, mut items, mut tokens) = (0, 0, Vec::new(), Vec::new());
        while let Some((_, item)) = self.queued.front() {
            // Custody may weigh as much as a small envelope.
            let cost = (item.encoded_len() + ITEM_FRAMING) as u64;
            if !items.is_empty() && (request + cost > self.batch_bytes || items.len() >= BATCH_ENVELOPES) {
                break;
            }
            request += cost;
            bytes += item.envelope.len() as u64;
            if let Some((token, item)) = self.queued.pop_front() {
                tokens.push(token);
                items.push(item);
            }
        }
        self.number += 1;
        self.queued_bytes -= bytes;
        self.sent.push_back(Unanswered { number: self.number, bytes, tokens });
        Some(wire::Batch { number: self.number, items, gaps: std::mem::take(&mut self.gaps) })
    }

    /// Takes an acknowledgement: the answers to everything it covers, in the order in which it was taken.
    ///
    /// # Errors
    /// [`ProtocolError`]; nothing is answered then, and the call is to be ended.
    pub fn acknowledged(&mut self, ack: wire::Ack) -> Result<Vec<Answered<T>>, ProtocolError> {
        if ack.through > self.number {
            return Err(ProtocolError::NotSent { through: ack.through, sent: self.number });
        }
        if ack.through < self.acked {
            return Err(ProtocolError::Backwards);
        }
        match wire::Durability::try_from(ack.durability) {
            Ok(durability)
                if durability != wire::Durability::Unspecified && durability >= self.durability => {}
            Ok(_) | Err(_) => return Err(ProtocolError::Durability),
        }
        let covered = self.sent.partition_point(|batch| batch.number <= ack.through);
        let mut answers: Vec<Vec<Option<Answer>>> =
            self.sent.iter().take(covered).map(|batch| batch.tokens.iter().map(|_| None).collect()).collect();
        for outcome in ack.outcomes {
            let batch = outcome.batch.checked_sub(self.acked + 1).ok_or(ProtocolError::Outcome)?;
            let slot = usize::try_from(batch)
                .ok()
                .and_then(|batch| answers.get_mut(batch))
                .and_then(|batch| batch.get_mut(outcome.index as usize))
                .filter(|slot| slot.is_none())
                .ok_or(ProtocolError::Outcome)?;
            *slot = Some(answer(outcome.what.ok_or(ProtocolError::Outcome)?));
        }
        let mut answered = Vec::new();
        for (batch, answers) in self.sent.drain(..covered).zip(answers) {
            self.bytes -= batch.bytes;
            self.envelopes -= batch.tokens.len() as u64;
            answered.extend(
                batch
                    .tokens
                    .into_iter()
                    .zip(answers)
                    .map(|(token, answer)| Answered { token, answer: answer.unwrap_or(Answer::Stored) }),
            );
        }
        self.acked = ack.through;
        Ok(answered)
    }

    /// Envelopes that have no answer, in the order in which they were taken. They go out again, the same bytes.
    pub fn take_unanswered(&mut self) -> Vec<T> {
        (self.bytes, self.envelopes, self.queued_bytes) = (0, 0, 0);
        let sent = self.sent.drain(..).flat_map(|batch| batch.tokens);
        sent.chain(self.queued.drain(..).map(|(token, _)| token)).collect()
    }

    /// How many envelopes have no answer.
    pub fn unanswered(&self) -> u64 {
        self.envelopes
    }

    /// Bytes of them.
    pub fn unanswered_bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of those that are in no batch yet.
    pub fn queued_bytes(&self) -> u64 {
        self.queued_bytes
    }

    /// The window in force.
    pub fn window(&self) -> Window {
        self.window
    }
}

fn answer(what: What) -> Answer {
    match what {
        What::Duplicate(wire::Duplicate { unverified }) => Answer::Duplicate { unverified },
        What::Conflict(wire::Conflict { kept }) => Answer::Conflict { kept },
        What::Refusal(refusal) => Answer::Refused {
            reason: ErrorReason::try_from(refusal.reason)
                .ok()
                .filter(|reason| *reason != ErrorReason::Unspecified),
            detail: crate::status::printable(&refusal.detail),
        },
    }
}

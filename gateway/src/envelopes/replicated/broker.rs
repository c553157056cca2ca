//! What the engine needs of whoever keeps its messages: logs that are appended to by comparing, and a few keys that are replaced by
//! comparing.
//!
//! Two things stand behind it: JetStream ([`super::nats`]), and for tests a model in memory that loses requests and replies
//! ([`super::model`]).

use std::fmt;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use pithead_spool::Lane;

/// Why a request has not done what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// Something else stands there than was expected: nothing was written by this request.
    #[error("something else stands there than was expected")]
    Mismatch,
    /// There is no room: nothing was written by this request.
    #[error("no room: {0}")]
    Full(String),
    /// No answer, or one that says nothing about what was done: it may have been done, and may yet be.
    #[error("{0}")]
    Unknown(String),
}

/// What is asked for and what comes of it, later.
pub(super) type Asked<'a, T> = BoxFuture<'a, Result<T, Fault>>;

/// How a log stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct LogState {
    /// The sequence of its oldest message.
    pub(super) first: u64,
    /// The sequence of its newest message, or of the newest that ever was; 0 if there was none.
    pub(super) last: u64,
    /// Of all its messages.
    pub(super) bytes: u64,
    /// What it may hold, if the broker bounds it.
    pub(super) max_bytes: Option<u64>,
}

/// A value that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) bytes: Bytes,
    /// What a replacement has to expect.
    pub(super) revision: u64,
}

/// An entry of the refused area, as it stands there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeptMessage {
    pub(super) name: String,
    pub(super) sequence: u64,
    pub(super) bytes: Bytes,
}

/// See the module.
///
/// An append or a replacement that was asked for may be done long after whoever asked has given up waiting. Whether it was is
/// decided by its expectation alone.
pub(super) trait Broker: fmt::Debug + Send + Sync + 'static {
    /// Appends a message to a lane's log if the newest there has the sequence `expected`. Gives its own. Durable on as many replicas as
    /// are configured when it answers.
    fn append(&self, lane: Lane, expected: u64, message: Bytes) -> Asked<'_, u64>;

    /// The message at `sequence`, from whichever replica answers. None says nothing: that replica may be behind.
    fn read(&self, lane: Lane, sequence: u64) -> Asked<'_, Option<Bytes>>;

    /// The message at `sequence`, from one of the replicas, drawn anew each time, the leader among them. None says that this one has not
    /// got it, cannot read it, or is behind. One that does not answer is a fault: nobody else answers in its place.
    fn read_at_replica(&self, lane: Lane, sequence: u64) -> Asked<'_, Option<Bytes>>;

    /// The message at `sequence`, from a leader that has come that far. None says that this leader has it no more, or cannot read it; a
    /// leader that is itself behind does not answer.
    fn read_at_leader(&self, lane: Lane, sequence: u64) -> Asked<'_, Option<Bytes>>;

    /// How a lane's log stands.
    fn state(&self, lane: Lane) -> Asked<'_, LogState>;

    /// Removes all messages before `sequence`.
    fn purge(&self, lane: Lane, sequence: u64) -> Asked<'_, ()>;

    /// Appends a message to the log of the refused area if the newest there has the sequence `expected`, and removes what stood under its
    /// name. Gives its own. Durable as an append is.
    fn keep<'a>(&'a self, name: &'a str, expected: u64, message: Bytes) -> Asked<'a, u64>;

    /// What stands under a name in the refused area, from a leader.
    fn kept<'a>(&'a self, name: &'a str) -> Asked<'a, Option<Value>>;

    /// The oldest message of the refused area that is not before `sequence`, from a leader, which may be one of the past.
    fn kept_from(&self, sequence: u64) -> Asked<'_, Option<KeptMessage>>;

    /// Removes this one message of the refused area. Whether it was there.
    fn let_go(&self, sequence: u64) -> Asked<'_, bool>;

    /// How the log of the refused area stands.
    fn kept_state(&self) -> Asked<'_, LogState>;

    /// What stands under a key.
    fn get<'a>(&'a self, key: &'a str) -> Asked<'a, Option<Value>>;

    /// Replaces what stands under a key, if it is of this revision; 0 if nothing does. Gives the new revision.
    fn put<'a>(&'a self, key: &'a str, revision: u64, value: Bytes) -> Asked<'a, u64>;

    /// Removes what stands under `prefix` and everything below.
    fn forget<'a>(&'a self, prefix: &'a str) -> Asked<'a, ()>;

    /// The most bytes that a message may have.
    fn message_bytes(&self) -> usize;
}

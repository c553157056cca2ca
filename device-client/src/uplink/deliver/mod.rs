//! From the outbox to a gateway, until told to stop.
//!
//! One connection and one `Append` call at a time, and a large file beside it. What has no answer when a call ends goes out
//! again as the same bytes; the far end recognises what it has. Delays between attempts have full jitter, with the far end's
//! RetryInfo as the floor. Only an answer makes the outbox forget.
//!
//! A gateway's Welcome says up to where it holds each line. What this process has sent before and has no answer to need not
//! cross the air again then. What was never sent is sent, whatever the Welcome says: a number that a stranger has used up
//! must come back as a conflict and not pass for a delivery. If the answer "conflict" is lost, the Welcome does not speak for
//! that number either: of a line that has met a conflict a gateway says that it holds nothing, and all of it goes out again.

mod call;
mod file;
mod settle;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::stream::FuturesUnordered;
use pithead_hop::{
    backoff::{self, Backoff},
    connect::{ConnectError, Endpoint, Untrusted},
    ingest::{SendError, SendOptions, Sender, send::LineToSend},
};
use pithead_proto::{errors::v1::ErrorReason, ingest::v1 as wire};
use pithead_sealing::names::{Line, Seq, StreamName};
use pithead_spool::ReadError;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Uplink, follow, refused::RefusedArea};
use crate::{
    batch::Gap,
    client::Desk,
    clock::DeviceClock,
    outbox::{GiveUpError, Outbox},
};
use call::{Call, Lane, Token};

/// How delivery stands. Counts since the client was opened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    /// The gateway that is taking envelopes.
    pub(crate) connected: Option<Endpoint>,
    /// Connections made.
    pub(crate) connections: u64,
    /// By stream.
    pub(crate) streams: BTreeMap<StreamName, Settled>,
    /// Why nothing is being delivered.
    pub(crate) trouble: Option<Trouble>,
    /// By stream: why the large file in front of it has no answer, while there is a connection.
    pub(crate) uploads: BTreeMap<StreamName, Trouble>,
    /// Of the last gateway that was reached.
    pub(crate) clock: Option<ClockOffset>,
}

/// Envelopes of a stream that need not be kept any more, by how that came about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settled {
    /// A gateway has it on its disk because of us.
    pub stored: u64,
    /// It was there before.
    pub duplicates: u64,
    /// Of these duplicates, those that did not cross the air again.
    pub resumed: u64,
    /// Other bytes stand under its number, and it is kept beside them at the gateway.
    pub conflicts: u64,
    /// No gateway will take it; it is in the refused area.
    pub refused: u64,
    /// It was damaged on the device's disk, or refused and the refused area was full: declared as a gap.
    pub lost: u64,
}

/// Why nothing is being delivered at the moment, or a large file is not.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Trouble {
    /// The registry's reason, where there is one.
    pub reason: Option<ErrorReason>,
    /// For a person.
    pub detail: String,
    /// Trying again may help without anybody mending something.
    pub retryable: bool,
    /// When it is tried again, counted from when this was said.
    pub retry_after: Option<Duration>,
}

impl Trouble {
    pub(super) fn of(error: &dyn std::error::Error, retryable: bool, reason: Option<ErrorReason>) -> Self {
        Self { reason, detail: error.to_string(), retryable, retry_after: None }
    }
}

/// The gateway's clock against the wall clock here: for display, never evidence, and nothing goes by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClockOffset {
    /// How far the gateway's clock is ahead, in microseconds.
    pub ahead_us: i64,
    /// Half the round trip in which it was asked: how wrong that may be.
    pub uncertainty_us: u64,
}

/// An attempt goes on until it ends badly.
pub(super) enum Never {}

enum Ended {
    Connect(ConnectError),
    Call {
        gateway: usize,
        error: SendError,
    },
    Outbox(ReadError),
    /// What is lost could not be written down; it is not let go before.
    GiveUp(GiveUpError),
    /// The runtime is going down.
    Closed,
}

/// What delivery needs, for as long as the client is open.
pub(crate) struct Delivery {
    pub(crate) uplink: Uplink,
    pub(crate) outbox: Arc<Outbox>,
    /// Of the streams that are configured; the others come last.
    pub(crate) priorities: BTreeMap<StreamName, u8>,
    pub(crate) refused: RefusedArea,
    pub(crate) progress: watch::Sender<Progress>,
    pub(crate) desk: Desk,
    pub(crate) window_bytes: u64,
}

impl Delivery {
    /// Delivers what waits and what comes, until `stop`. Then it waits for no more answers: what has none goes out again.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::new(self.uplink.gateways.retry);
        let mut sent = HashMap::new();
        // Where the next attempt begins, and how many in a row went on to another gateway at once.
        let (mut first, mut turned_away) = (0, 0);
        while !stop.is_cancelled() {
            let before = self.settled();
            let Some(ended) = stop.run_until_cancelled(self.attempt(first, &mut sent)).await else { break };
            let Err(ended) = ended;
            self.desk.set_connected(false);
            if self.settled() > before {
                backoff.reset();
                turned_away = 0;
            }
            let (mut trouble, floor) = trouble(&ended);
            first = 0;
            // A gateway that is full or is going away may have a neighbour that is not.
            if let Ended::Call { gateway, error } = &ended
                && error.is_retryable()
                && error.reason().is_some()
                && turned_away + 1 < self.uplink.gateways.endpoints.len()
            {
                turned_away += 1;
                first = gateway + 1;
                self.say(None, Some(trouble));
                continue;
            }
            turned_away = 0;
            if let Ended::Connect(ConnectError::Untrusted(Untrusted::Expired)) = &ended
                && let Some(Err(error)) = stop.run_until_cancelled(self.uplink.ask_for_keys(&self.desk)).await
            {
                follow::tell(&error);
            }
            let delay = backoff.next_delay(backoff::random(), floor);
            tracing::info!(
                event = "uplink.down",
                detail = trouble.detail,
                retry_after_ms = delay.as_millis()
            );
            trouble.retry_after = Some(delay);
            self.say(None, Some(trouble));
            if stop.run_until_cancelled(tokio::time::sleep(delay)).await.is_none() {
                break;
            }
        }
        self.desk.set_connected(false);
        self.say(None, None);
    }

    fn settled(&self) -> u64 {
        self.outbox.logs().map(|log| log.acknowledged_up_to().0).sum()
    }

    fn say(&self, connected: Option<Endpoint>, trouble: Option<Trouble>) {
        self.progress.send_modify(|progress| {
            progress.connected = connected;
            progress.trouble = trouble;
            progress.uploads.clear();
        });
    }

    async fn attempt(&self, first: usize, sent: &mut Sent) -> Result<Never, Ended> {
        let uplink = &self.uplink;
        let (connection, gateway) = uplink.connect(&uplink.tls, first).await.map_err(Ended::Connect)?;
        let outbox = Arc::clone(&self.outbox);
        let lines = blocking(move || outbox.lines_waiting()).await?;
        let lines = lines
            .into_iter()
            .map(|(line, seq)| LineToSend { stream: line.stream, run: line.run, first_unacked: seq })
            .collect();
        let mut options = SendOptions::new(concat!("pithead-device/", env!("CARGO_PKG_VERSION")));
        options.window.bytes = self.window_bytes;
        let (asked_us, asked) = (DeviceClock::wall_us(), Instant::now());
        let mut sender = Sender::open(connection.clone(), &options, lines)
            .await
            .map_err(|error| Ended::Call { gateway, error })?;
        sender.declare(self.outbox.hints().iter().map(hint));
        let clock = offset(asked_us, asked.elapsed(), sender.welcomed().time_us);
        let held = self.held(gateway, &sender, sent);
        self.progress.send_modify(|progress| {
            progress.connections += 1;
            progress.clock = Some(clock);
            progress.connected = uplink.gateways.endpoints.get(gateway).cloned();
            progress.trouble = None;
        });
        self.desk.set_connected(true);
        let (hint, _) = watch::channel(None);
        let mut call = Call {
            delivery: self,
            gateway,
            connection: connection.clone(),
            lanes: self.outbox.logs().map(|log| Lane::new(log, &self.priorities)).collect(),
            sender,
            uploads: FuturesUnordered::new(),
            sent,
            held,
            hint: &hint,
        };
        call.hint();
        tokio::select! {
            ended = call.run() => ended,
            never = uplink.follow_keys(connection, &self.desk, &hint) => match never {},
        }
    }

    /// Up to where the gateway holds what was sent before, and was not answered.
    fn held(&self, gateway: usize, sender: &Sender<Token>, sent: &Sent) -> HashMap<Line, u64> {
        let lines = sender.welcomed().lines.iter().filter_map(|held| {
            let line =
                Line { device: self.desk.device().clone(), stream: held.stream.clone(), run: held.run };
            let sent = sent.get(&(gateway, line.clone()))?.get();
            Some((line, held.high_water.min(sent)))
        });
        lines.collect()
    }
}

/// The wall clock was read before asking; it may be set meanwhile, so the round trip comes from another clock.
fn offset(asked_us: i64, round_trip: Duration, theirs_us: u64) -> ClockOffset {
    let half_us = u64::try_from(round_trip.as_micros() / 2).unwrap_or(u64::MAX);
    let here_us = asked_us.saturating_add_unsigned(half_us);
    let ahead_us = i64::try_from(theirs_us).unwrap_or(i64::MAX).saturating_sub(here_us);
    ClockOffset { ahead_us, uncertainty_us: half_us }
}

fn trouble(ended: &Ended) -> (Trouble, Option<Duration>) {
    match ended {
        Ended::Connect(error) => (Trouble::of(error, error.is_retryable(), Some(error.reason())), None),
        Ended::Call { error, .. } => {
            (Trouble::of(error, error.is_retryable(), error.reason()), error.retry_after())
        }
        Ended::Outbox(error) => (Trouble::of(error, true, Some(ErrorReason::DiskFailed)), None),
        Ended::GiveUp(error) => (Trouble::of(error, true, Some(ErrorReason::DiskFailed)), None),
        Ended::Closed => {
            let detail = "the runtime is going down".to_owned();
            (Trouble { reason: None, detail, retryable: true, retry_after: None }, None)
        }
    }
}

/// The newest number of each line that was ever handed to each gateway, on this call or another: what another gateway was given
/// says nothing of this one.
type Sent = HashMap<(usize, Line), Seq>;

/// In clear text: the gateway's screens and sets, and nobody's proof.
fn hint(gap: &Gap) -> wire::Gap {
    wire::Gap { stream: gap.stream.to_string(), run: gap.run.get(), from: gap.from.get(), to: gap.to.get() }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Ended> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Ended::Closed)
}

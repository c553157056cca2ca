//! From the outbox to a gateway, until told to stop.
//!
//! One connection and one `Append` call at a time. What has no answer when a call ends goes out again as the same bytes;
//! the far end recognises what it has. Delays between attempts have full jitter, with the far end's RetryInfo as the
//! floor. Only an answer makes the outbox forget.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::PoisonError,
    time::Duration,
};

use pithead_hop::{
    backoff::{self, Backoff},
    connect::ConnectError,
    ingest::{Answer, Answered, NotTaken, SendError, SendOptions, Sender, send::LineToSend},
    keys::{FetchError, KeyClient, TrustVersion},
    status::Remote,
};
use pithead_proto::{
    errors::v1::ErrorReason,
    ingest::v1::{SubmitRequest, ingest_service_client::IngestServiceClient},
};
use pithead_sealing::{
    envelope::SealedEnvelope,
    names::{Identity, StreamName},
};
use pithead_spool::Position;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Uplink, order::Order, refused::RefusedArea, refused::RefusedError};
use crate::outbox::{ForgetError, Outbox, Waiting, WaitingReader};

/// How much is read from the outbox at a time.
const READ_BYTES: usize = 1 << 20;
/// How long a gateway may take to answer one submitted envelope: several fdatasyncs of a busy disk.
const SUBMIT_LIMIT: Duration = Duration::from_secs(30);

/// How delivery stands. Counts since [`Uplink::deliver`] began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// A gateway is taking envelopes.
    pub connected: bool,
    /// Everything before this position is settled.
    pub settled: Position,
    /// Envelopes that a gateway has on its disk because of us.
    pub stored: u64,
    /// Envelopes that were there before.
    pub duplicates: u64,
    /// Envelopes that a gateway keeps beside others of the same identity.
    pub conflicts: u64,
    /// Envelopes that nobody will take, conflicts that the gateway does not keep among them; see [`RefusedArea`].
    pub refused: u64,
    /// Streams that met a conflict: call `Sealer::begin_run` for each.
    pub need_new_run: BTreeSet<StreamName>,
    /// (epoch, sequence) of the statement in force at the gateway, by what it said last: refresh if it is newer than ours.
    pub trust: Option<(u64, u64)>,
    /// Why the last attempt failed, while not connected.
    pub trouble: Option<Trouble>,
}

/// Why nothing is being delivered at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// The registry's reason, where there is one.
    pub reason: Option<ErrorReason>,
    /// For a person.
    pub detail: String,
    /// Trying again may help without anybody mending something.
    pub retryable: bool,
}

/// Why delivery has ended. The outbox keeps what is not settled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeliverError {
    /// The outbox could not be read.
    #[error("the outbox: {0}")]
    Read(#[from] pithead_spool::ReadError),
    /// An answer could not be taken in.
    #[error("the outbox: {0}")]
    Forget(#[from] ForgetError),
    /// A refused envelope could not be set aside.
    #[error(transparent)]
    Refused(#[from] RefusedError),
    /// The outbox was closed, or the runtime is ending.
    #[error("the outbox was closed")]
    Closed,
}

/// What a gateway answered about one envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receipt {
    /// It is on the gateway's disk.
    Stored,
    /// It was there before; `unverified` if its bytes could not be compared any more.
    Duplicate {
        /// See above.
        unverified: bool,
    },
}

/// Why one envelope was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// No gateway. Nothing was sent.
    #[error("no gateway: {0}")]
    Connect(#[from] ConnectError),
    /// The gateway refused it, or the answer was lost: see [`Remote::is_retryable`], [`Remote::may_have_been_stored`].
    #[error(transparent)]
    Remote(#[from] Remote),
    /// No answer in time. It may have been stored; sending the same bytes again is safe.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
}

impl Uplink {
    /// Sends one envelope and waits until it is on the gateway's disk.
    ///
    /// Dropping the future may leave it stored; sending the same bytes again is safe.
    pub async fn submit(&self, envelope: &SealedEnvelope) -> Result<Receipt, SubmitError> {
        let connection = self.connect(&self.tls).await?;
        let request = SubmitRequest { envelope: envelope.bytes().clone() };
        let mut client = IngestServiceClient::new(connection);
        let answer = tokio::time::timeout(SUBMIT_LIMIT, client.submit(request))
            .await
            .map_err(|_| SubmitError::TimedOut(SUBMIT_LIMIT))?
            .map_err(|status| Remote::from_status(&status))?;
        Ok(match answer.into_inner().duplicate {
            Some(duplicate) => Receipt::Duplicate { unverified: duplicate.unverified },
            None => Receipt::Stored,
        })
    }

    /// Delivers what waits in `outbox`, and what is put there, until `stop`. Then it waits for no more answers: what has
    /// none goes out again next time.
    pub async fn deliver(
        &self,
        outbox: &Outbox,
        refused: &RefusedArea,
        progress: &watch::Sender<Progress>,
        stop: &CancellationToken,
    ) -> Result<(), DeliverError> {
        let mut backoff = Backoff::new(self.gateways.retry);
        progress.send_modify(|progress| progress.settled = outbox.acknowledged_up_to());
        while !stop.is_cancelled() {
            let before = progress.borrow().settled;
            let Some(ended) = stop.run_until_cancelled(self.attempt(outbox, refused, progress)).await else {
                break;
            };
            let (trouble, retry_after) = match ended {
                Err(Ended::Delivery(error)) => {
                    progress.send_modify(|progress| progress.connected = false);
                    return Err(error);
                }
                Err(Ended::Connect(error)) => {
                    (trouble(&error, error.is_retryable(), Some(error.reason())), None)
                }
                Err(Ended::Call(error)) => {
                    (trouble(&error, error.is_retryable(), error.reason()), error.retry_after())
                }
                Ok(never) => match never {},
            };
            if progress.borrow().settled > before {
                backoff.reset();
            }
            let delay = backoff.next_delay(backoff::random(), retry_after);
            tracing::info!(
                event = "uplink.down",
                detail = trouble.detail,
                retry_after_ms = delay.as_millis()
            );
            progress.send_modify(|progress| {
                progress.connected = false;
                progress.trouble = Some(trouble);
            });
            if stop.run_until_cancelled(tokio::time::sleep(delay)).await.is_none() {
                break;
            }
        }
        progress.send_modify(|progress| progress.connected = false);
        Ok(())
    }

    async fn attempt(
        &self,
        outbox: &Outbox,
        refused: &RefusedArea,
        progress: &watch::Sender<Progress>,
    ) -> Result<Never, Ended> {
        let connection = self.connect(&self.tls).await.map_err(Ended::Connect)?;
        let lines = blocking(outbox, Outbox::lines_waiting).await?;
        let lines = lines
            .into_iter()
            .map(|(line, seq)| LineToSend { stream: line.stream, run: line.run, first_unacked: seq })
            .collect();
        let options = SendOptions::new(concat!("pithead-device/", env!("CARGO_PKG_VERSION")));
        let keys = self.key_client(connection.clone());
        let sender = Sender::open(connection, &options, lines).await.map_err(Ended::Call)?;
        progress.send_modify(|progress| {
            progress.connected = true;
            progress.trouble = None;
        });
        let mut call = Call {
            outbox,
            refused,
            progress,
            sender,
            reader: Some(outbox.waiting()),
            read: VecDeque::new(),
            order: Order::default(),
        };
        tokio::select! {
            ended = call.run() => ended,
            never = self.listen_for_keys(keys, progress) => match never {},
        }
    }

    /// Tells of every statement that the gateway has newly in force, also while there is nothing to deliver. What it says
    /// is a hint: [`Uplink::refresh`] asks, and verifies.
    async fn listen_for_keys(&self, mut keys: KeyClient, progress: &watch::Sender<Progress>) -> Never {
        let held = *self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let listening = async {
            let mut watch = keys.watch(&held).await?;
            loop {
                if let Some(TrustVersion { epoch, sequence }) = watch.next().await?.version {
                    progress.send_modify(|progress| progress.trust = Some((epoch, sequence)));
                }
            }
        };
        let ended: Result<Never, FetchError> = listening.await;
        // A courtesy that has ended: every answer says the same. A broken connection ends the call as well.
        let Err(error) = ended;
        tracing::debug!(event = "uplink.watch_ended", %error);
        std::future::pending().await
    }
}

/// An attempt goes on until it ends badly.
enum Never {}

enum Ended {
    Connect(ConnectError),
    Call(SendError),
    Delivery(DeliverError),
}

impl<E: Into<DeliverError>> From<E> for Ended {
    fn from(error: E) -> Self {
        Self::Delivery(error.into())
    }
}

fn trouble(error: &dyn std::error::Error, retryable: bool, reason: Option<ErrorReason>) -> Trouble {
    Trouble { reason, detail: error.to_string(), retryable }
}

/// One `Append` call over the outbox.
struct Call<'a> {
    outbox: &'a Outbox,
    refused: &'a RefusedArea,
    progress: &'a watch::Sender<Progress>,
    sender: Sender<Waiting>,
    /// Away while it reads on a thread for blocking work.
    reader: Option<WaitingReader>,
    read: VecDeque<Waiting>,
    order: Order,
}

impl Call<'_> {
    async fn run(&mut self) -> Result<Never, Ended> {
        loop {
            if self.read.is_empty() {
                self.read_more().await?;
            }
            let held_back = self.fill().await?;
            let changed = self.reader.as_ref().map(WaitingReader::changed).ok_or(DeliverError::Closed)?;
            tokio::select! {
                answers = self.sender.answers() => {
                    let answers = answers.map_err(Ended::Call)?;
                    self.settle(answers).await?;
                }
                // With the window full there is no use in reading on.
                appended = changed, if !held_back => appended.map_err(|_| DeliverError::Closed)?,
            }
        }
    }

    async fn read_more(&mut self) -> Result<(), Ended> {
        let mut reader = self.reader.take().ok_or(DeliverError::Closed)?;
        let read = tokio::task::spawn_blocking(move || {
            let batch = reader.next_batch(READ_BYTES);
            (reader, batch)
        });
        let (reader, batch) = read.await.map_err(|_| DeliverError::Closed)?;
        self.reader = Some(reader);
        self.read.extend(batch?);
        Ok(())
    }

    /// Hands over what the window takes. True if something had to wait.
    async fn fill(&mut self) -> Result<bool, Ended> {
        while let Some(next) = self.read.pop_front() {
            let position = next.position;
            let bytes = next.envelope.bytes().clone();
            match self.sender.room_for(bytes.len()) {
                Ok(()) => {
                    self.order.taken(position);
                    if self.sender.send(next, bytes, Vec::new()).is_err() {
                        unreachable!("there was room for it a moment ago");
                    }
                }
                Err(NotTaken::TooLarge { max }) => {
                    self.order.taken(position);
                    let detail = format!("{} bytes, and this gateway takes {max}", bytes.len());
                    self.set_aside(&next, ErrorReason::EnvelopeTooLarge.name(), detail).await?;
                    self.order.settled(position);
                    self.forget().await?;
                    self.progress.send_modify(|progress| {
                        progress.refused += 1;
                        progress.settled = self.outbox.acknowledged_up_to();
                    });
                }
                Err(_) => {
                    self.read.push_front(next);
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    async fn settle(&mut self, answers: Vec<Answered<Waiting>>) -> Result<(), Ended> {
        let mut seen = Progress::default();
        for Answered { token, answer } in answers {
            let identity: &Identity = token.envelope.identity();
            match answer {
                Answer::Stored => seen.stored += 1,
                Answer::Duplicate { .. } => seen.duplicates += 1,
                Answer::Conflict { kept } => {
                    seen.need_new_run.insert(identity.stream.clone());
                    tracing::warn!(event = "uplink.conflict", %identity, kept);
                    if kept {
                        seen.conflicts += 1;
                    } else {
                        let detail =
                            "other bytes stand under this identity, and the gateway's area is full".into();
                        self.set_aside(&token, ErrorReason::Conflict.name(), detail).await?;
                        seen.refused += 1;
                    }
                }
                Answer::Refused { reason, detail } => {
                    seen.refused += 1;
                    let reason = reason.map_or("unknown", ErrorReason::name);
                    tracing::warn!(event = "uplink.refused", %identity, reason, detail);
                    self.set_aside(&token, reason, detail).await?;
                }
            }
            self.order.settled(token.position);
        }
        self.forget().await?;
        let trust = self.sender.trust().map(|trust| (trust.epoch, trust.sequence));
        self.progress.send_modify(|progress| {
            progress.settled = self.outbox.acknowledged_up_to();
            progress.stored += seen.stored;
            progress.duplicates += seen.duplicates;
            progress.conflicts += seen.conflicts;
            progress.refused += seen.refused;
            progress.need_new_run.extend(seen.need_new_run);
            progress.trust = trust.or(progress.trust);
        });
        Ok(())
    }

    async fn set_aside(&self, waiting: &Waiting, reason: &'static str, detail: String) -> Result<(), Ended> {
        let (area, envelope) = (self.refused.clone(), waiting.envelope.clone());
        let kept = tokio::task::spawn_blocking(move || {
            area.keep(envelope.identity(), envelope.bytes(), reason, &detail)
        });
        Ok(kept.await.map_err(|_| DeliverError::Closed)??)
    }

    async fn forget(&mut self) -> Result<(), Ended> {
        if let Some(position) = self.order.forgettable() {
            blocking(self.outbox, move |outbox| outbox.acknowledge(position)).await??;
        }
        Ok(())
    }
}

async fn blocking<T: Send + 'static>(
    outbox: &Outbox,
    work: impl FnOnce(&Outbox) -> T + Send + 'static,
) -> Result<T, DeliverError> {
    let outbox = outbox.clone();
    tokio::task::spawn_blocking(move || work(&outbox)).await.map_err(|_| DeliverError::Closed)
}

//! The client that a vehicle embeds: records in, sealed envelopes delivered, and an honest account of both.
//!
//! ```text
//! control loop ─ record() ─> memory ─> [seals] ─> outbox ══> [delivers] ══> gateway
//! ```
//!
//! # What holds
//!
//! 1. [`Stream::record`] never waits: not for a disk, a network, a key or a seal. It refuses by the stream's policy, or
//!    because the disk takes nothing, and says so to the caller's face.
//! 2. Nothing touches the disk unsealed, and nothing leaves the process before it is durable.
//! 3. What is durable is delivered, or is declared: what a stream's policy gives up, what the disk has damaged and what no
//!    gateway takes is told to the cloud under a seal. A power cut costs what was in memory: see [`StreamOptions::linger`] and
//!    [`Fsync`]. [`Client::sync`] says when that is nothing.
//! 4. Memory, disk, connections and threads are bounded, and nothing outlives the client: dropping it seals what was
//!    gathered, writes it down and joins its threads.
//! 5. No global state, no logger, no environment variable, no clock that is believed. Log lines are `tracing` events, for
//!    whoever listens.
//!
//! Threads: one that seals, one that delivers (with up to three more for reads of the disk, which end when idle), one for
//! files if there are streams of files, and two for each stream's log.
//!
//! No async runtime is needed: the futures here can be awaited on any executor, and each has a blocking twin.

mod bell;
mod builder;
mod desk;
mod files;
mod handle;
mod options;
mod status;
mod stream;
mod worker;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use pithead_sealing::names::StreamName;
use pithead_spool::Position;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

pub use builder::{ClientBuilder, OpenError, TrustAnchor};
pub use files::{FileError, FileState, FileStream, FileTicket};
pub use options::{DEFAULT_PRIORITY, Fsync, StreamOptions, WhenFull};
pub use status::{KeyStatus, Status, StreamStatus};
pub use stream::{DiskTrouble, RecordError, Stream};
pub(crate) use {desk::Desk, worker::KeyView};

use self::{
    handle::Handle,
    stream::Intake,
    worker::{Board, Command},
};
use crate::{
    clock::DeviceClock,
    outbox::{self, Outbox, OutboxRecovery},
    sealer::{self, Sealer},
    state::lock,
    uplink::{Progress, Trouble},
};

/// Of zstd: a quarter of the size of its fastest for telemetry is not worth a vehicle's processor.
#[cfg(feature = "zstd")]
const ZSTD_LEVEL: i32 = 3;

/// Why not everything has been acknowledged by a gateway. What is not stays in the outbox and goes on its way.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FlushError {
    /// The time is over.
    #[error("{waiting} envelopes wait{}", match .trouble { Some(trouble) => format!(": {}", trouble.detail), None => String::new() })]
    Deadline {
        /// Envelopes on the disk that wait.
        waiting: u64,
        /// Why nothing is being delivered, if nothing is.
        trouble: Option<Trouble>,
    },
    /// Something recorded is not on the device's disk: full, failed, or there is no key to seal to. See
    /// [`StreamStatus::trouble`].
    #[error("not everything is on the device's disk yet")]
    NotHeld,
    /// The client is closed.
    #[error("the client is closed")]
    Closed,
}

/// What could not be written down at the end. Everything that was durable stays so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CloseError {
    /// Trust or numbers.
    #[error(transparent)]
    Sealer(#[from] sealer::CloseError),
    /// The outbox.
    #[error(transparent)]
    Outbox(#[from] outbox::CloseError),
    /// The thread that seals has met a defect of this library, which a log line names. What was durable stays so.
    #[error("the thread that seals has panicked")]
    Panicked,
}

/// A device's client, open. One at a time on a folder.
#[derive(Debug)]
pub struct Client {
    outbox: Arc<Outbox>,
    recovery: OutboxRecovery,
    intakes: HashMap<StreamName, Arc<Intake>>,
    jobs: Option<mpsc::SyncSender<Option<files::Job>>>,
    closing: Arc<AtomicBool>,
    board: Arc<Board>,
    handle: Handle,
    progress: watch::Receiver<Progress>,
    runtime: tokio::runtime::Handle,
    stop: CancellationToken,
    threads: Option<Threads>,
}

#[derive(Debug)]
struct Threads {
    sealing: JoinHandle<Sealer>,
    delivering: JoinHandle<()>,
    files: Option<JoinHandle<()>>,
}

impl Client {
    /// The stream of records of that name, if it was configured.
    #[must_use]
    pub fn stream(&self, name: &str) -> Option<Stream> {
        let name = StreamName::new(name).ok()?;
        let intake =
            self.intakes.get(&name).filter(|intake| intake.options.kind == options::Kind::Records)?;
        Some(Stream { intake: Arc::clone(intake) })
    }

    /// The stream of files of that name, if it was configured.
    #[must_use]
    pub fn files(&self, name: &str) -> Option<FileStream> {
        let name = StreamName::new(name).ok()?;
        let intake = self.intakes.get(&name).filter(|intake| intake.options.kind == options::Kind::Files)?;
        Some(FileStream { intake: Arc::clone(intake), jobs: self.jobs.clone()? })
    }

    /// What opening the outbox found: torn tails after a power cut, or damage.
    #[must_use]
    pub fn recovery(&self) -> &OutboxRecovery {
        &self.recovery
    }

    /// How everything stands. Reads a few bytes of the disk.
    #[must_use]
    pub fn status(&self) -> Status {
        let progress = self.progress.borrow().clone();
        let keys = Arc::clone(&lock(&self.board.keys));
        let streams = self.outbox.logs().map(|log| {
            let intake = self.intakes.get(log.stream()).map(|intake| &**intake);
            (log.stream().clone(), StreamStatus::of(log, intake, &progress))
        });
        Status {
            streams: streams.collect(),
            connected: progress.connected,
            connections: progress.connections,
            trouble: progress.trouble,
            clock: progress.clock,
            keys: KeyStatus { status: keys.status, version: keys.version },
            sequence_lost: self.recovery.sequence_lost,
            sessions: self.board.sessions.load(Ordering::Relaxed),
            heartbeats: self.board.heartbeats.load(Ordering::Relaxed),
        }
    }

    /// Resolves when something about delivery has changed since this was asked last: a connection, an answer, a trouble.
    /// Cancel safe, on any executor.
    pub fn changes(&self) -> Changes {
        Changes { progress: self.progress.clone() }
    }

    /// Seals everything that was recorded before, and resolves when it survives a power cut. Cancel safe, on any executor.
    ///
    /// # Errors
    /// [`FlushError::NotHeld`] at the deadline, [`FlushError::Closed`].
    pub async fn sync(&self, deadline: Duration) -> Result<(), FlushError> {
        self.on_runtime(Waiter::of(self).held(deadline)).await.map(|_| ())
    }

    /// The same, and blocks. Not for async tasks.
    ///
    /// # Errors
    /// As [`Client::sync`].
    pub fn sync_blocking(&self, deadline: Duration) -> Result<(), FlushError> {
        self.blocking(Waiter::of(self).held(deadline)).map(|_| ())
    }

    /// Seals everything that was recorded before, and resolves when a gateway has it on its disk, or when it is settled
    /// otherwise: see [`StreamStatus::settled`]. Files are waited for from when they are `Kept`. Cancel safe, on any executor.
    ///
    /// # Errors
    /// [`FlushError`]; at the deadline, and at once where no retry helps.
    pub async fn flush(&self, deadline: Duration) -> Result<(), FlushError> {
        self.on_runtime(Waiter::of(self).settled(deadline)).await
    }

    /// The same, and blocks. Not for async tasks.
    ///
    /// # Errors
    /// As [`Client::flush`].
    pub fn flush_blocking(&self, deadline: Duration) -> Result<(), FlushError> {
        self.blocking(Waiter::of(self).settled(deadline))
    }

    /// Takes nothing more, seals what was gathered with a last heartbeat, and resolves when a gateway has all that waits,
    /// what was there before included, or when it is settled otherwise. [`Client::close`] is what remains to be done then.
    ///
    /// Cancel safe, on any executor: what was begun goes on.
    ///
    /// # Errors
    /// As [`Client::flush`].
    pub async fn finish(&self, deadline: Duration) -> Result<(), FlushError> {
        self.on_runtime(Waiter::of(self).finished(deadline)).await
    }

    /// Seals what was gathered and a last heartbeat, gives a gateway until `deadline` to take what waits, writes everything
    /// down, and ends. What was not taken goes out at the next opening. Gives how everything stood at the end. Blocks.
    ///
    /// # Errors
    /// What could not be written down.
    pub fn close(mut self, deadline: Duration) -> Result<Status, CloseError> {
        self.end(deadline)?;
        Ok(self.status())
    }

    async fn on_runtime<T: Send + 'static>(
        &self,
        waiting: impl Future<Output = Result<T, FlushError>> + Send + 'static,
    ) -> Result<T, FlushError> {
        // Its timers need the client's own runtime; the caller's may be any.
        let task = Abort(self.runtime.spawn(waiting));
        let mut task = task;
        (&mut task.0).await.unwrap_or(Err(FlushError::Closed))
    }

    fn blocking<T: Send + 'static>(
        &self,
        waiting: impl Future<Output = Result<T, FlushError>> + Send + 'static,
    ) -> Result<T, FlushError> {
        let (told, answer) = mpsc::sync_channel(1);
        self.runtime.spawn(async move {
            // The receiver is on this stack.
            let _ = told.send(waiting.await);
        });
        answer.recv().unwrap_or(Err(FlushError::Closed))
    }

    fn end(&mut self, deadline: Duration) -> Result<(), CloseError> {
        let Some(threads) = self.threads.take() else { return Ok(()) };
        // A file that is being sealed is left, those that wait are not begun; what was kept is kept.
        self.closing.store(true, Ordering::Relaxed);
        // What is not delivered by then is no error of the closing: it is on the disk.
        let _ = self.blocking(Waiter::of(self).finished(deadline));
        // Whatever became of that, the thread is told: nobody else would.
        let (reply, _) = oneshot::channel();
        let _ = self.handle.send(Command::Stop { until: Duration::ZERO, reply });
        let sealer = threads.sealing.join();
        // The files' thread may have been waiting for the one that has ended.
        if let Some(jobs) = self.jobs.take() {
            let _ = jobs.send(None);
        }
        if let Some(files) = threads.files {
            let _ = files.join();
        }
        for intake in self.intakes.values() {
            let (records, bytes) = intake.in_memory();
            if records > 0 {
                let trouble = intake.trouble().map(|trouble| trouble.to_string());
                tracing::error!(event = "client.not_kept", stream = %intake.options.name, records, bytes, trouble);
            }
        }
        self.stop.cancel();
        let _ = threads.delivering.join();
        let closed = self.outbox.close();
        sealer.map_err(|_| CloseError::Panicked)?.close()?;
        Ok(closed?)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Err(error) = self.end(Duration::ZERO) {
            tracing::error!(event = "client.not_closed", %error);
        }
    }
}

/// Hears of changes; see [`Client::changes`].
#[derive(Clone, Debug)]
pub struct Changes {
    progress: watch::Receiver<Progress>,
}

impl Changes {
    /// Resolves at the next change; for ever pending once the client is closed. Cancel safe, on any executor.
    pub async fn changed(&mut self) {
        if self.progress.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

/// Ends a task whose answer nobody waits for any more.
struct Abort<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for Abort<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What waits for delivery, without borrowing the client.
struct Waiter {
    outbox: Arc<Outbox>,
    handle: Handle,
    progress: watch::Receiver<Progress>,
}

impl Waiter {
    fn of(client: &Client) -> Self {
        Self {
            outbox: Arc::clone(&client.outbox),
            handle: client.handle.clone(),
            progress: client.progress.clone(),
        }
    }

    /// Where the logs end when everything recorded before is durable.
    async fn held(self, deadline: Duration) -> Result<Vec<(StreamName, Position)>, FlushError> {
        let asked = self.handle.ask_async(|reply| Command::Settle { reply });
        match tokio::time::timeout(deadline, asked).await {
            Ok(Ok(ends)) => Ok(ends),
            Ok(Err(handle::Ended)) => Err(FlushError::Closed),
            Err(_) => Err(FlushError::NotHeld),
        }
    }

    async fn settled(self, deadline: Duration) -> Result<(), FlushError> {
        let until = after(deadline);
        let (outbox, progress) = (Arc::clone(&self.outbox), self.progress.clone());
        let ends = self.held(deadline).await?;
        wait(&outbox, progress, &ends, until).await
    }

    /// Everything that there is, once nothing more comes.
    async fn finished(mut self, deadline: Duration) -> Result<(), FlushError> {
        let until = after(deadline);
        self.ended(DeviceClock::since_boot().saturating_add(deadline)).await;
        let ends: Vec<_> = self.outbox.logs().map(|log| (log.stream().clone(), log.end())).collect();
        wait(&self.outbox, self.progress, &ends, until).await
    }
}

/// A deadline that no clock holds is none.
fn after(deadline: Duration) -> tokio::time::Instant {
    const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3_600);
    tokio::time::Instant::now() + deadline.min(FOREVER)
}

impl Waiter {
    /// Nothing is left to be sealed. What a full outbox holds up is waited for as long as somebody may make room in it.
    async fn ended(&mut self, until: Duration) {
        let stop = async |until| {
            // A client that has ended needs no more telling.
            let _ = self.handle.ask_async(|reply| Command::Stop { until, reply }).await;
        };
        let mut progress = self.progress.clone();
        let hopeless = async {
            while progress.borrow_and_update().trouble.as_ref().is_none_or(|trouble| trouble.retryable) {
                if progress.changed().await.is_err() {
                    std::future::pending().await
                }
            }
        };
        tokio::select! {
            () = stop(until) => {}
            () = hopeless => stop(Duration::ZERO).await,
        }
    }
}

async fn wait(
    outbox: &Outbox,
    mut progress: watch::Receiver<Progress>,
    ends: &[(StreamName, Position)],
    until: tokio::time::Instant,
) -> Result<(), FlushError> {
    loop {
        let mut waiting = 0;
        // Whether every stream that is waited for is held up by something that no retry cures.
        let mut held_up = true;
        let (trouble, hopeless) = {
            let progress = progress.borrow_and_update();
            let mut trouble = progress.trouble.clone();
            let hopeless = trouble.as_ref().is_some_and(|trouble| !trouble.retryable);
            for (stream, end) in ends {
                let log = outbox.log(stream);
                let left = log.map_or(0, |log| end.0.saturating_sub(log.acknowledged_up_to().0));
                if left > 0 {
                    waiting += left;
                    let upload = progress.uploads.get(stream);
                    held_up &= upload.is_some_and(|upload| !upload.retryable);
                    trouble = trouble.or_else(|| upload.cloned());
                }
            }
            (trouble, hopeless || held_up)
        };
        if waiting == 0 {
            return Ok(());
        }
        if hopeless || tokio::time::timeout_at(until, progress.changed()).await.is_err() {
            return Err(FlushError::Deadline { waiting, trouble });
        }
        if progress.has_changed().is_err() {
            return Err(FlushError::Closed);
        }
    }
}

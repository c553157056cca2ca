//! `send`: records or a file, sealed, kept, and sent until the gateway has them on its disk.
//!
//! ```text
//! stdin ─> lines (1,024 wait at most) ─> batch ─> seal ─> outbox ══> gateway
//! ```
//!
//! A line counts when its envelope is in the outbox: a kill before that loses what was read and not sealed, a kill after
//! it loses nothing. Pressure travels back: a full outbox stops the reading of standard input. Told to stop (SIGTERM,
//! SIGINT), it reads no more, seals what it has read, and leaves the sending of it to the next start.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, BufRead as _, Read as _},
    path::Path,
    time::Duration,
};

use bytes::Bytes;
use indicatif::ProgressBar;
use pithead_device_client::{
    INLINE_LIMIT_BYTES,
    batch::{BatchBuilder, BatchLimits},
    clock::DeviceClock,
    device::{AppendRefused, Device},
    keys::KeysError,
    sealer::Content,
    uplink::{DeliverError, Progress, RefreshError, Uplink},
};
use pithead_hop::program::{ExitCode, ProgramError, stop::Signals};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::{envelope::FileName, names::StreamName};
use pithead_spool::AppendError;
use serde_json::json;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    cli::SendArgs,
    config::Config,
    failure,
    output::{Output, envelope_bar},
};

/// Lines that were read and wait for their batch: enough to fill one while the one before is sealed.
const LINES_WAITING: usize = 1_024;

/// Between two questions about keys on a hint of the gateway's; and after one that brought nothing of what was hinted at. How long an
/// answer may take: nothing is read and sealed meanwhile. A gateway that lies as fast as it can holds up 2 s of every minute.
const HINT_PAUSE: Duration = Duration::from_secs(1);
const VAIN_HINT_PAUSE: Duration = Duration::from_secs(60);
const HINT_LIMIT: Duration = Duration::from_secs(2);

struct Line {
    at_us: i64,
    data: Bytes,
}

#[derive(Default)]
struct Sealed {
    records: u64,
    envelopes: u64,
}

pub(crate) async fn run(file: &Path, arguments: &SendArgs, output: Output) -> Result<ExitCode, ProgramError> {
    let config = Config::load(file)?;
    let mut device = config.open()?;
    let uplink = config.uplink(device.sealer().keys())?.ok_or_else(|| {
        ProgramError::new(ErrorReason::ConfigInvalid, "the device has no [gateway]")
            .todo("enrol it with --gateway and --ca, or seal to a file with `seal`")
    })?;
    let signals = Signals::listen()
        .map_err(|error| ProgramError::new(ErrorReason::Internal, format!("no signals: {error}")))?;
    refresh(&uplink, &mut device).await?;

    let stop = CancellationToken::new();
    let (progress, watched) = watch::channel(Progress::default());
    let delivery: JoinHandle<Result<(), DeliverError>> = tokio::spawn({
        let (uplink, outbox) = (uplink.clone(), device.outbox().clone());
        let (area, stop) = (config.refused_area(), stop.clone());
        async move { uplink.deliver(&outbox, &area, &progress, &stop).await }
    });

    let mut sending = Sending {
        device,
        uplink,
        watched,
        sealed: Sealed::default(),
        not_before: None,
        began_runs: BTreeSet::new(),
        told_to_stop: signals.stop.clone(),
        bar: envelope_bar("sending"),
    };
    let ended = match sending.seal_all(arguments).await {
        Ok(()) => tokio::select! {
            settled = sending.until_settled(arguments.timeout.get()) => settled,
            () = signals.stop.cancelled() => Ok(()),
        },
        Err(error) => Err(error),
    };
    stop.cancel();
    let delivered = delivery.await;
    sending.bar.finish_and_clear();
    let Sending { device, watched, sealed, .. } = sending;
    let progress = watched.borrow().clone();
    let waiting = device.outbox().end().0.saturating_sub(device.outbox().acknowledged_up_to().0);
    output.print(&[
        ("records", json!(sealed.records)),
        ("envelopes", json!(sealed.envelopes)),
        ("sessions", json!(device.sealer().sessions_started())),
        ("acknowledged", json!(progress.stored + progress.duplicates)),
        ("duplicates", json!(progress.duplicates)),
        ("conflicts", json!(progress.conflicts)),
        ("refused", json!(progress.refused)),
        ("waiting", json!(waiting)),
    ]);
    device.close().map_err(|error| ProgramError::new(ErrorReason::DiskFailed, failure::chain(&error)))?;
    if let Ok(Err(error)) = delivered {
        return Err(failure::deliver(&error));
    }
    ended?;
    if waiting > 0 {
        let trouble = progress.trouble.map_or_else(String::new, |trouble| format!(": {}", trouble.detail));
        let reason = ErrorReason::PeerUnreachable;
        return Err(ProgramError::new(reason, format!("{waiting} envelopes wait in the outbox{trouble}"))
            .affects("nothing is lost; they go out the next time the device sends")
            .exit(ExitCode::TRY_AGAIN));
    }
    if progress.refused > 0 {
        let area = config.refused_area().folder().display().to_string();
        return Err(ProgramError::new(
            ErrorReason::RequestInvalid,
            format!("{} envelopes were refused", progress.refused),
        )
        .todo(format!("look at the reasons in {area}")));
    }
    Ok(ExitCode::OK)
}

/// News about keys, if the gateway has any that hold. With a usable key in hand a gateway that is silent, behind another
/// one, or lying is no reason to stop: whatever it says, envelopes go on to the key that was verified.
async fn refresh(uplink: &Uplink, device: &mut Device) -> Result<(), ProgramError> {
    let error = match uplink.refresh(device.sealer_mut().keys_mut()).await {
        Ok(applied) => {
            if applied.roots > 0 || applied.statement.is_some_and(|accepted| accepted.new) {
                let (epoch, sequence) = device.sealer().keys().trust().version();
                tracing::info!(event = "keys.refreshed", epoch, sequence);
            }
            return Ok(());
        }
        Err(error) => error,
    };
    if device.sealer().keys().verified_key().is_err() {
        return Err(failure::refresh(&error));
    }
    if matches!(&error, RefreshError::Keys(KeysError::Trust(_))) {
        tracing::error!(event = "key.alarm", %error, "what the gateway says of keys is refused; the key that was verified stays");
    } else {
        tracing::warn!(event = "keys.not_refreshed", %error);
    }
    Ok(())
}

struct Sending {
    device: Device,
    uplink: Uplink,
    watched: watch::Receiver<Progress>,
    sealed: Sealed,
    /// No hint of the gateway's is followed before.
    not_before: Option<Instant>,
    /// Streams that have begun a new run after a conflict; one is enough for all conflicts with the old.
    began_runs: BTreeSet<StreamName>,
    told_to_stop: CancellationToken,
    bar: ProgressBar,
}

impl Sending {
    async fn seal_all(&mut self, arguments: &SendArgs) -> Result<(), ProgramError> {
        if arguments.file == Path::new("-") {
            let stream = arguments.stream.clone().unwrap_or_else(|| named("records"));
            self.seal_lines(&stream, arguments.linger.get()).await
        } else {
            let stream = arguments.stream.clone().unwrap_or_else(|| named("files"));
            self.seal_file(&stream, arguments).await
        }
    }

    async fn seal_file(&mut self, stream: &StreamName, arguments: &SendArgs) -> Result<(), ProgramError> {
        let path = &arguments.file;
        let unreadable = |error: io::Error| {
            ProgramError::new(ErrorReason::ConfigUnreadable, format!("{}: {error}", path.display()))
        };
        let file = fs::File::open(path).map_err(unreadable)?;
        let len = file.metadata().map_err(unreadable)?.len();
        if len > INLINE_LIMIT_BYTES {
            return Err(failure::append(&AppendRefused::TooLarge { bytes: len, limit: INLINE_LIMIT_BYTES }));
        }
        let mut plaintext = Vec::new();
        // A pipe has no length before it is read. One byte more than fits is enough to be refused.
        file.take(INLINE_LIMIT_BYTES + 1).read_to_end(&mut plaintext).map_err(unreadable)?;
        let mut content = Content::new(arguments.content_type.clone());
        if let Some(name) = path.file_name().and_then(|name| FileName::new(name.to_str()?).ok()) {
            content = content.named(name);
        }
        self.follow_the_gateway().await?;
        self.append(stream, &content, &plaintext).await?;
        self.sealed.records += 1;
        Ok(())
    }

    async fn seal_lines(&mut self, stream: &StreamName, linger: Duration) -> Result<(), ProgramError> {
        let (lines, mut read) = mpsc::channel(LINES_WAITING);
        let reading = tokio::task::spawn_blocking(move || read_lines(&lines));
        let mut batch = BatchBuilder::new(BatchLimits::default());
        let mut due: Option<Instant> = None;
        let told_to_stop = self.told_to_stop.clone();
        let mut told = self.watched.clone();
        loop {
            let line = tokio::select! {
                line = read.recv() => line,
                // A rotation is followed also while there is nothing to seal: the next record goes to the new key.
                Ok(()) = told.changed() => {
                    self.follow_the_keys().await?;
                    continue;
                }
                // What was read is sealed and kept before the end; no more is read.
                () = told_to_stop.cancelled(), if !read.is_closed() => {
                    read.close();
                    continue;
                }
                () = async { tokio::time::sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => {
                    self.flush(stream, &mut batch, false).await?;
                    due = None;
                    continue;
                }
            };
            let Some(line) = line else { break };
            if let Err(data) = batch.push(line.at_us, "", line.data) {
                self.flush(stream, &mut batch, false).await?;
                batch.push(line.at_us, "", data).expect("an empty batch takes any record");
                due = None;
            }
            due.get_or_insert_with(|| Instant::now() + linger);
        }
        if !batch.is_empty() || self.sealed.records > 0 {
            self.flush(stream, &mut batch, true).await?;
        }
        if told_to_stop.is_cancelled() {
            // The reader may wait for standard input for ever.
            return Ok(());
        }
        reading.await.map_err(|error| ProgramError::new(ErrorReason::Internal, error.to_string()))?
    }

    /// Seals what has been gathered. The last batch says, sealed, how far every stream has come: below that a hole is
    /// certain.
    async fn flush(
        &mut self,
        stream: &StreamName,
        batch: &mut BatchBuilder,
        last: bool,
    ) -> Result<(), ProgramError> {
        let records = batch.len() as u64;
        // Before the batch says where the lines stand: a new run would make it speak of a number that never comes.
        self.follow_the_gateway().await?;
        let sealer = self.device.sealer_mut();
        let previous = sealer.previous(stream);
        let heartbeat = if last { sealer.marks_with_next(stream) } else { Vec::new() };
        let plaintext = batch.finish(previous.as_ref(), &heartbeat);
        self.append(stream, &Content::batch(), &plaintext).await?;
        self.sealed.records += records;
        Ok(())
    }

    /// Seals and puts into the outbox, waiting for room if it must.
    async fn append(
        &mut self,
        stream: &StreamName,
        content: &Content,
        plaintext: &[u8],
    ) -> Result<(), ProgramError> {
        loop {
            match self.device.append(stream, content, plaintext) {
                // Delivery sees it when it is durable, and so does the last wait.
                Ok(stored) => {
                    if let Err(error) = stored.durable().await {
                        return Err(ProgramError::new(ErrorReason::DiskFailed, error.to_string()));
                    }
                    self.sealed.envelopes += 1;
                    self.bar.set_length(self.sealed.envelopes);
                    return Ok(());
                }
                Err(AppendRefused::Outbox(AppendError::Full { needed, .. })) => self.room(needed).await?,
                Err(AppendRefused::Outbox(AppendError::QueueFull { .. })) => {
                    self.room(plaintext.len() as u64).await?;
                }
                Err(refused) => return Err(failure::append(&refused)),
            }
        }
    }

    /// Waits until the outbox has room, which it gets only while a gateway takes something.
    async fn room(&mut self, bytes: u64) -> Result<(), ProgramError> {
        let room = self.device.outbox().room(bytes);
        let mut watched = self.watched.clone();
        tokio::select! {
            () = async { room.await; } => Ok(()),
            trouble = hopeless(&mut watched) => Err(trouble),
            () = self.told_to_stop.cancelled() => {
                let what = "told to stop while the outbox was full; what was read last is not sealed";
                Err(ProgramError::new(ErrorReason::OutboxFull, what))
            }
        }
    }

    /// A new run where a conflict was met, and news about keys where the gateway has some.
    async fn follow_the_gateway(&mut self) -> Result<(), ProgramError> {
        if let Err(error) = self.device.sealer_mut().keys_mut().tick() {
            // Operating time that is not written down makes hold-downs longer: on the safe side.
            tracing::warn!(event = "keys.not_saved", %error);
        }
        if !self.watched.has_changed().unwrap_or(false) {
            return Ok(());
        }
        let progress = self.watched.borrow_and_update().clone();
        self.bar.set_position(progress.stored + progress.duplicates + progress.conflicts + progress.refused);
        for stream in progress.need_new_run.iter().filter(|stream| self.began_runs.insert((*stream).clone()))
        {
            self.device
                .sealer_mut()
                .begin_run(stream)
                .map_err(|error| ProgramError::new(ErrorReason::StateDamaged, failure::chain(&error)))?;
        }
        self.follow_the_keys().await
    }

    /// Asks for keys when the gateway says that it has newer ones. It is not believed, and cannot have us ask without end.
    async fn follow_the_keys(&mut self) -> Result<(), ProgramError> {
        let Some(theirs) = self.watched.borrow().trust else { return Ok(()) };
        if theirs <= self.device.sealer().keys().trust().version() {
            return Ok(());
        }
        if self.not_before.is_some_and(|then| Instant::now() < then) {
            return Ok(());
        }
        let asked = tokio::time::timeout(HINT_LIMIT, refresh(&self.uplink, &mut self.device)).await;
        let followed = self.device.sealer().keys().trust().version() >= theirs;
        let pause = if followed { HINT_PAUSE } else { VAIN_HINT_PAUSE };
        self.not_before = Some(Instant::now() + pause);
        // A gateway that does not answer has its limit, and the next hint comes.
        asked.unwrap_or(Ok(()))
    }

    /// Waits until everything in the outbox is settled: at most `limit`, and not at all where no retry helps.
    async fn until_settled(&mut self, limit: Duration) -> Result<(), ProgramError> {
        let end = self.device.outbox().end();
        let mut watched = self.watched.clone();
        let settled = async {
            loop {
                {
                    let progress = watched.borrow_and_update();
                    self.bar.set_position(progress.stored + progress.duplicates);
                    if progress.settled >= end {
                        return Ok(());
                    }
                    if let Some(trouble) = progress.trouble.as_ref().filter(|trouble| !trouble.retryable) {
                        return Err(no_hope(trouble));
                    }
                }
                if watched.changed().await.is_err() {
                    return Ok(());
                }
            }
        };
        // Out of time is no error of its own: what waits is counted and told.
        tokio::time::timeout(limit, settled).await.unwrap_or(Ok(()))
    }
}

async fn hopeless(watched: &mut watch::Receiver<Progress>) -> ProgramError {
    loop {
        if let Some(trouble) =
            watched.borrow_and_update().trouble.as_ref().filter(|trouble| !trouble.retryable)
        {
            return no_hope(trouble);
        }
        if watched.changed().await.is_err() {
            return ProgramError::new(ErrorReason::OutboxFull, "the outbox is full, and delivery has ended");
        }
    }
}

fn no_hope(trouble: &pithead_device_client::uplink::Trouble) -> ProgramError {
    ProgramError::new(trouble.reason.unwrap_or(ErrorReason::PeerUnreachable), trouble.detail.clone())
        .affects("nothing is lost; what is not acknowledged stays in the outbox")
}

fn named(stream: &str) -> StreamName {
    StreamName::new(stream).expect("a stream's name")
}

/// Reads standard input line by line until its end, or until nobody takes lines any more.
fn read_lines(lines: &mpsc::Sender<Line>) -> Result<(), ProgramError> {
    let mut input = io::stdin().lock();
    loop {
        let mut data = Vec::new();
        let read = (&mut input).take(INLINE_LIMIT_BYTES + 1).read_until(b'\n', &mut data);
        match read {
            Ok(0) => return Ok(()),
            Ok(_) => {
                if data.last() == Some(&b'\n') {
                    data.pop();
                }
                let line = Line { at_us: DeviceClock::wall_us(), data: data.into() };
                if lines.blocking_send(line).is_err() {
                    return Ok(());
                }
            }
            Err(error) => {
                return Err(ProgramError::new(
                    ErrorReason::ConfigUnreadable,
                    format!("standard input: {error}"),
                ));
            }
        }
    }
}

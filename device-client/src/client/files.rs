//! Files: sealed once, as a stream, on a thread of their own, so that a file of an hour holds up no record.
//!
//! ```text
//! send_file() ─> jobs ─> (a number) ─> seal to a file, or in memory if it fits an envelope ─> log ══> durable ─> uplink
//! ```

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufWriter, Read, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError},
    },
};

use pithead_sealing::{
    envelope::{ContentType, FileName, SealedEnvelope},
    names::{Identity, StreamName},
};
use tokio::sync::watch;

use super::{
    handle::{Ended, Handle},
    options::WhenFull,
    stream::Intake,
    worker::{BegunFile, Command, EndedFile, SealedFile},
};
use crate::{
    batch::Gap,
    outbox::{Log, inline_bytes},
    sealer::{Content, SealError},
    state::lock,
};

/// Files that wait for the one that is being sealed.
pub(super) const JOBS_WAITING: usize = 16;
/// What is written to the file in one go.
const WRITE_BYTES: usize = 1024 * 1024;
/// The header, and a frame's heads and tags, in the worst case that an envelope of a file has.
const AROUND_BYTES: u64 = 4 * 1024;

/// How a file stands.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum FileState {
    /// It waits for the one before it, or is being sealed: bytes of plaintext so far.
    Sealing {
        /// See above.
        plaintext_bytes: u64,
    },
    /// It is sealed, and on the device's disk; the source is not needed any more.
    Kept {
        /// What it is filed under.
        identity: Identity,
    },
    /// A gateway has so many bytes of it on its disk.
    Uploading {
        /// What it is filed under.
        identity: Identity,
        /// Bytes of the envelope at the gateway.
        persisted: u64,
        /// Bytes of the envelope.
        total: u64,
    },
    /// A gateway has all of it.
    Delivered {
        /// What it is filed under.
        identity: Identity,
    },
    /// It will never be at a gateway: none takes it and it is in the refused area, the stream's policy gave it up, or the device's
    /// disk has damaged it. Its number is accounted for.
    Refused {
        /// What it is filed under.
        identity: Identity,
        /// Why.
        reason: String,
    },
    /// It was not sealed, and used no number.
    Failed(Arc<FileError>),
}

impl FileState {
    /// Nothing more happens to it.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Delivered { .. } | Self::Refused { .. } | Self::Failed(_))
    }
}

/// Why a file was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// It cannot be read.
    #[error("{}: {source}", path.display())]
    Source {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The stream's budget does not hold it, now or, if it is larger than the budget, ever.
    #[error(
        "the stream's budget of {budget} bytes does not hold it: {needed} more are needed, {held} are taken"
    )]
    Full {
        /// Bytes of the envelope, as far as they are known.
        needed: u64,
        /// Bytes of files that wait.
        held: u64,
        /// The budget.
        budget: u64,
    },
    /// The device's disk.
    #[error("the device's disk: {0}")]
    Disk(io::Error),
    /// Sealing.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// Too many files wait to be sealed.
    #[error("{JOBS_WAITING} files wait to be sealed")]
    Busy,
    /// The client is closed.
    #[error("the client is closed")]
    Closed,
}

/// A file on its way. Dropping it takes nothing back.
#[derive(Clone, Debug)]
pub struct FileTicket {
    state: watch::Receiver<FileState>,
}

impl FileTicket {
    /// How it stands.
    #[must_use]
    pub fn state(&self) -> FileState {
        self.state.borrow().clone()
    }

    /// Resolves when it stands otherwise than when this was asked last; with nothing once the client is closed and the last
    /// state stands. Cancel safe, on any executor.
    pub async fn changed(&mut self) -> Option<FileState> {
        self.state.changed().await.ok()?;
        Some(self.state.borrow_and_update().clone())
    }

    /// Resolves when the file is sealed and survives a power cut: the source may go. Cancel safe.
    ///
    /// # Errors
    /// Why it was not taken.
    pub async fn kept(&mut self) -> Result<Identity, Arc<FileError>> {
        loop {
            match self.state.borrow_and_update().clone() {
                FileState::Sealing { .. } => {}
                FileState::Failed(error) => return Err(error),
                FileState::Kept { identity }
                | FileState::Uploading { identity, .. }
                | FileState::Delivered { identity }
                | FileState::Refused { identity, .. } => return Ok(identity),
            }
            if self.state.changed().await.is_err() {
                return Err(Arc::new(FileError::Closed));
            }
        }
    }
}

/// A stream of files. Cheap to clone; all clones are the same stream.
#[derive(Clone, Debug)]
pub struct FileStream {
    pub(super) intake: Arc<Intake>,
    pub(super) jobs: SyncSender<Option<Job>>,
}

impl FileStream {
    /// The stream's name.
    #[must_use]
    pub fn name(&self) -> &StreamName {
        &self.intake.options.name
    }

    /// Seals a file into the outbox, as a stream, and delivers it like everything else, resuming where it was cut. Returns at
    /// once; the ticket tells how it goes. The file must not change until the ticket says `Kept`. `name` stands in clear
    /// text beside the sealed bytes.
    ///
    /// # Errors
    /// [`FileError::Busy`] and [`FileError::Closed`]; everything else comes by the ticket.
    pub fn send_file(
        &self,
        path: &Path,
        content_type: ContentType,
        name: Option<FileName>,
    ) -> Result<FileTicket, FileError> {
        let content = Content::new(content_type);
        let content = match name {
            Some(name) => content.named(name),
            None => content,
        };
        let (told, state) = watch::channel(FileState::Sealing { plaintext_bytes: 0 });
        let job = Job { path: path.to_owned(), content, intake: Arc::clone(&self.intake), told };
        match self.jobs.try_send(Some(job)) {
            Ok(()) => Ok(FileTicket { state }),
            Err(TrySendError::Full(_)) => Err(FileError::Busy),
            Err(TrySendError::Disconnected(_)) => Err(FileError::Closed),
        }
    }
}

/// A file to be sealed.
#[derive(Debug)]
pub(super) struct Job {
    path: PathBuf,
    content: Content,
    intake: Arc<Intake>,
    told: watch::Sender<FileState>,
}

/// Who hears of which envelope. An entry stays until the file is settled.
pub(super) type Watches = Mutex<HashMap<Identity, watch::Sender<FileState>>>;

/// Tells the file's ticket, if somebody holds one.
pub(super) fn tell(watches: &Watches, identity: &Identity, state: FileState) {
    let mut watches = lock(watches);
    let last = state.is_final();
    if let Some(told) = watches.get(identity) {
        told.send_replace(state);
    }
    if last {
        watches.remove(identity);
    }
}

/// Tells the tickets of all files among those numbers that they will never arrive.
pub(super) fn tell_lost(watches: &Watches, gaps: &[Gap], why: &str) {
    lock(watches).retain(|identity, told| {
        let is_lost = gaps.iter().any(|gap| {
            gap.stream == identity.stream
                && gap.run == identity.run
                && (gap.from..=gap.to).contains(&identity.seq)
        });
        if is_lost {
            told.send_replace(FileState::Refused { identity: identity.clone(), reason: why.to_owned() });
        }
        !is_lost
    });
}

/// Seals files one after the other, until it is brought none.
pub(super) struct Files {
    pub(super) jobs: Receiver<Option<Job>>,
    /// The client is being closed: a file that is being sealed is left.
    pub(super) closing: Arc<AtomicBool>,
    pub(super) handle: Handle,
    pub(super) logs: HashMap<StreamName, Arc<Log>>,
    pub(super) watches: Arc<Watches>,
}

impl Files {
    pub(super) fn run(self) {
        while let Ok(Some(job)) = self.jobs.recv() {
            let taken =
                if self.closing.load(Ordering::Relaxed) { Err(FileError::Closed) } else { self.take(&job) };
            match taken {
                Ok(identity) => {
                    // It may have been delivered already.
                    job.told.send_if_modified(|state| {
                        let first = matches!(state, FileState::Sealing { .. });
                        if first {
                            *state = FileState::Kept { identity: identity.clone() };
                        }
                        first
                    });
                }
                Err(error) => {
                    tracing::warn!(event = "client.file_not_kept", stream = %job.intake.options.name, %error);
                    job.told.send_replace(FileState::Failed(Arc::new(error)));
                }
            }
        }
    }

    fn take(&self, job: &Job) -> Result<Identity, FileError> {
        let unreadable = |source| FileError::Source { path: job.path.clone(), source };
        let stream = &job.intake.options.name;
        let log = self.logs.get(stream).ok_or(FileError::Closed)?;
        let file = File::open(&job.path).map_err(unreadable)?;
        let length = file.metadata().map_err(unreadable)?.len();
        let room = self.make_room(job, log, length)?;
        let (content, source) = reading(job, file).map_err(unreadable)?;
        let mut source = Counted { source, read: 0, told: &job.told, closing: &self.closing };
        let begun =
            self.handle.ask(|reply| Command::BeginFile { stream: stream.clone(), content, reply })??;
        let identity = begun.identity.clone();
        lock(&self.watches).insert(identity.clone(), job.told.clone());
        let sealed = self.seal(begun, log, &mut source, room);
        if sealed.is_err() {
            // A client that has ended needs no telling.
            let _ = self.handle.send(Command::AbandonFile { stream: stream.clone() });
        }
        let kept = sealed.and_then(|sealed| {
            let file = EndedFile { identity: identity.clone(), payload_bytes: source.read, sealed };
            Ok(self.handle.ask(|reply| Command::EndFile { file, reply })?)
        });
        kept.map_err(|error| {
            lock(&self.watches).remove(&identity);
            use pithead_sealing::envelope::SealError as Sealing;
            match error {
                FileError::Seal(SealError::Seal(Sealing::Read(_)))
                    if self.closing.load(Ordering::Relaxed) =>
                {
                    FileError::Closed
                }
                FileError::Seal(SealError::Seal(Sealing::Read(source))) => unreadable(source),
                FileError::Seal(SealError::Seal(Sealing::Write(source))) if is_over(&source) => {
                    FileError::Full { needed: length, held: log.files().bytes(), budget: log.budget_bytes() }
                }
                FileError::Seal(SealError::Seal(Sealing::Write(source))) => FileError::Disk(source),
                other => other,
            }
        })
    }

    /// Bytes that the stream's files may still take. What has to go for them goes before anything is sealed.
    fn make_room(&self, job: &Job, log: &Log, length: u64) -> Result<u64, FileError> {
        let budget = log.budget_bytes();
        let needed = length.saturating_add(length / 1_000).saturating_add(AROUND_BYTES);
        loop {
            // What has left needs no room, though it may lie here until its record is gone for good.
            log.sweep();
            let held = log.files().bytes().saturating_sub(log.leaving_bytes());
            // The log beside the files has a place for the record, or for the whole of it if it is small.
            let in_log = if needed <= inline_bytes(budget) { needed } else { AROUND_BYTES };
            if needed <= budget.saturating_sub(held) && log.admits(in_log) {
                return Ok(budget - held);
            }
            let full = FileError::Full { needed, held, budget };
            if job.intake.options.when_full == WhenFull::Reject || needed > budget {
                return Err(full);
            }
            let short = needed.saturating_sub(budget.saturating_sub(held)).max(in_log);
            let (stream, bytes) = (job.intake.options.name.clone(), short);
            if !self.handle.ask(|reply| Command::MakeRoom { stream, bytes, reply })? {
                return Err(full);
            }
        }
    }

    fn seal(
        &self,
        begun: BegunFile,
        log: &Log,
        source: &mut impl Read,
        room: u64,
    ) -> Result<SealedFile, FileError> {
        let BegunFile { identity, sealer } = begun;
        let in_one_piece = inline_bytes(log.budget_bytes());
        let mut sealed = Vec::new();
        // One byte more than fits is enough to see that it does not.
        let mut first = Vec::new();
        source
            .by_ref()
            .take(in_one_piece - AROUND_BYTES + 1)
            .read_to_end(&mut first)
            .map_err(|error| SealError::Seal(pithead_sealing::envelope::SealError::Read(error)))?;
        if first.len() as u64 <= in_one_piece - AROUND_BYTES {
            sealer.seal_all(&mut &*first, &mut sealed).map_err(SealError::from)?;
            return SealedEnvelope::read(sealed.into())
                .map(SealedFile::InOnePiece)
                .map_err(|error| FileError::Disk(io::Error::other(error)));
        }
        let (file, _) = log.files().create(&identity).map_err(FileError::Disk)?;
        let mut writer = BufWriter::with_capacity(WRITE_BYTES, Bounded { file, left: room });
        let written = sealer
            .seal_all(&mut io::Cursor::new(first).chain(source), &mut writer)
            .map_err(|error| FileError::from(SealError::from(error)))
            .and_then(|lengths| {
                writer.flush().map_err(FileError::Disk)?;
                log.files().publish(&identity).map_err(FileError::Disk)?;
                Ok(SealedFile::Beside { total: lengths.sealed_len })
            });
        if written.is_err() {
            log.files().abandon(&identity);
        }
        written
    }
}

impl From<Ended> for FileError {
    fn from(_: Ended) -> Self {
        Self::Closed
    }
}

/// What is sealed: the plaintext, compressed if the stream says so.
fn reading(job: &Job, file: File) -> io::Result<(Content, Box<dyn Read>)> {
    #[cfg(feature = "zstd")]
    if job.intake.options.compress {
        let encoding = Some(pithead_sealing::envelope::Encoding::Zstd);
        let source = zstd::stream::read::Encoder::new(file, super::ZSTD_LEVEL)?;
        return Ok((Content { encoding, ..job.content.clone() }, Box::new(source)));
    }
    Ok((job.content.clone(), Box::new(file)))
}

/// Tells the ticket how much was read.
struct Counted<'a> {
    source: Box<dyn Read>,
    read: u64,
    told: &'a watch::Sender<FileState>,
    closing: &'a AtomicBool,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.closing.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let read = self.source.read(buffer)?;
        let before = self.read;
        self.read += read as u64;
        if before / WRITE_BYTES as u64 != self.read / WRITE_BYTES as u64 {
            self.told.send_replace(FileState::Sealing { plaintext_bytes: self.read });
        }
        Ok(read)
    }
}

/// A file that grew while it was sealed does not take more than there is.
struct Bounded {
    file: File,
    left: u64,
}

/// What [`Bounded`] says.
fn is_over(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::QuotaExceeded && error.get_ref().is_some()
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "the stream's budget"));
        }
        let written = self.file.write(bytes)?;
        self.left -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

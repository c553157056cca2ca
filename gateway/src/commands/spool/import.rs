//! `spool import`: an export, brought into a gateway through its own port.
//!
//! The program is a relay to the gateway that runs: it shows the gateway's own certificate, and every envelope goes through
//! the same admission, numbers, bounds and acknowledgements as if it came from a chained site. So duplicates are harmless,
//! an import that was cut short is given again, and nothing is counted as held before it is on the gateway's disk. `--to`
//! names another far end of the same contract, such as the decryptor.
//!
//! What is above the far end's inline limit goes by an upload, in its place in its line, and is resumed where it broke off.
//!
//! The folder is not trusted: bytes that are not those of their line are not sent, and custody is told as a claim.

mod tally;
mod target;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use indicatif::ProgressBar;
use pithead_hop::backoff::{Backoff, Policy, RETRY_INFO_MAX, random};
use pithead_hop::connect::{ConnectError, ConnectOptions, Connection, Endpoint, connect};
use pithead_hop::ingest::send::{PlainFile, UploadError, UploadProgress, send_upload};
use pithead_hop::ingest::{Answered, Hop, NotTaken, SendError, SendOptions, Sender};
use pithead_hop::program::{ExitCode, ProgramError};
use pithead_proto::errors::v1::ErrorReason;
use sha2::{Digest as _, Sha256};

use self::tally::Tally;
use self::target::Target;
use super::{bytes_bar, internal};
use crate::clock::since_boot;
use crate::config::Config;
use crate::envelopes::carried::{INDEX, Item, Items};

/// Unanswered at a time; the far end narrows it.
const WINDOW_BYTES: u64 = 16 << 20;
/// The largest envelope that is sent inline, whatever the far end takes.
const ENVELOPE_BYTES: u64 = 4 << 20;

/// What is brought in, and where.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The folder that `spool export` filled.
    pub folder: PathBuf,
    /// The gateway's configuration: its port, and its certificate.
    #[command(flatten)]
    pub config: crate::cli::ConfigArg,
    /// Another far end than this gateway, such as the decryptor.
    #[arg(long, value_name = "HOST:PORT")]
    pub to: Option<Endpoint>,
    /// With --to: the CA of its certificate; `relay.ca` if it is not given.
    #[arg(long, value_name = "PEM", requires = "to")]
    pub ca: Option<PathBuf>,
    /// The name in the far end's certificate, if it is not the one that is expected.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Send what had been refused as well.
    #[arg(long)]
    pub refused: bool,
    /// How long to go on while nothing is answered, beyond what the far end asks to wait.
    #[arg(long, default_value = "60s", value_name = "TIME")]
    pub timeout: pithead_hop::program::config::Duration,
    /// How the result is printed.
    #[command(flatten)]
    pub output: crate::cli::OutputArg,
}

/// Brings it in. Ends with 0 if the far end holds all of it, and with 1 if something was refused or is damaged.
///
/// # Errors
/// When the far end cannot be reached (69) or does not take more for now (75); what was answered is printed first, and the
/// same command goes on from there.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<ExitCode, ProgramError> {
    if args.timeout.is_zero() {
        let what = "`--timeout` must be above 0";
        return Err(ProgramError::new(ErrorReason::RequestInvalid, what).exit(ExitCode::USAGE));
    }
    let config = Config::load(&args.config.config)?;
    let target = Target::of(args, &config)?;
    let (items, whole) = open_index(&args.folder)?;
    let mut tally = Tally::of(whole);
    let total = total_bytes(&args.folder, args.refused)?;
    let bar = bytes_bar(total);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(internal)?;
    let mut import =
        Import { args, target, items, again: VecDeque::new(), tally: &mut tally, bar: &bar, moved: 0 };
    let ended = runtime.block_on(import.run());
    bar.finish_and_clear();
    crate::commands::write(out, &tally.told(args.output.output))?;
    ended?;
    Ok(if tally.all_held() { ExitCode::OK } else { ExitCode::FAILED })
}

/// The index, and whether the export came to its end.
fn open_index(folder: &Path) -> Result<(Items, bool), ProgramError> {
    let open = |name: &str| Items::open(&folder.join(name)).map_err(|error| unreadable(folder, &error));
    if let Some(items) = open(INDEX)? {
        return Ok((items, true));
    }
    match open(&format!("{INDEX}.part"))? {
        Some(items) => Ok((items, false)),
        None => Err(unreadable(folder, &io::Error::other("there is no index.jsonl in it"))
            .todo("name the folder that `spool export --to` filled")),
    }
}

fn total_bytes(folder: &Path, refused: bool) -> Result<u64, ProgramError> {
    let (items, _) = open_index(folder)?;
    Ok(items
        .filter_map(|item| item.ok().flatten())
        .filter(|item| refused || item.refused.is_none())
        .map(|item| item.bytes)
        .sum())
}

fn unreadable(folder: &Path, error: &io::Error) -> ProgramError {
    ProgramError::new(ErrorReason::ConfigUnreadable, format!("{}: {error}", folder.display()))
        .exit(ExitCode::FAILED)
}

/// Why a call is over.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Send(#[from] SendError),
    #[error(transparent)]
    Upload(#[from] UploadError),
    /// A far end may be alive and still never say anything.
    #[error("the other end said nothing for {0:?}")]
    Silent(Duration),
}

impl Ended {
    fn is_retryable(&self) -> bool {
        match self {
            Self::Connect(error) => error.is_retryable(),
            Self::Send(error) => error.is_retryable(),
            Self::Upload(error) => error.is_retryable(),
            Self::Silent(_) => true,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        let asked = match self {
            Self::Connect(_) | Self::Silent(_) => None,
            Self::Send(error) => error.retry_after(),
            Self::Upload(error) => error.retry_after(),
        };
        asked.map(|wait| wait.min(RETRY_INFO_MAX))
    }
}

impl From<Ended> for ProgramError {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Connect(error) => error.into(),
            Ended::Send(SendError::Remote(remote)) => remote.into(),
            Ended::Send(error @ (SendError::WelcomeTimeout(_) | SendError::Closed)) => {
                Self::new(ErrorReason::PeerUnreachable, error.to_string())
            }
            Ended::Silent(_) => Self::new(ErrorReason::PeerUnreachable, ended.to_string()),
            Ended::Send(error) => Self::new(ErrorReason::Internal, error.to_string()),
            Ended::Upload(UploadError::Send(error)) => Ended::Send(error).into(),
            Ended::Upload(error) => {
                Self::new(error.reason().unwrap_or(ErrorReason::Internal), error.to_string())
            }
        }
    }
}

/// One import.
struct Import<'a> {
    args: &'a Args,
    target: Target,
    items: Items,
    /// Had no answer when a call ended: goes out again, first.
    again: VecDeque<Item>,
    tally: &'a mut Tally,
    bar: &'a ProgressBar,
    /// Rises with every answer, and with what the far end has of a large envelope: while it does, nobody gives up.
    moved: u64,
}

impl Import<'_> {
    async fn run(&mut self) -> Result<(), ProgramError> {
        let mut backoff = Backoff::new(Policy::default());
        let (mut moved, mut since) = (0, since_boot());
        loop {
            let ended = match self.call().await {
                Ok(()) => return Ok(()),
                Err(ended) => ended,
            };
            if self.moved > moved {
                (moved, since) = (self.moved, since_boot());
                backoff.reset();
            }
            let asked = ended.retry_after();
            let delay = backoff.next_delay(random(), asked);
            let patience = self.args.timeout.get() + asked.unwrap_or_default();
            if !ended.is_retryable() || since_boot().saturating_sub(since) + delay > patience {
                return Err(ProgramError::from(ended)
                    .affects("what is not counted above has no answer")
                    .todo("give the same command again; what is held already is a duplicate then"));
            }
            self.bar.set_message(format!("waiting {} s: {ended}", delay.as_secs()));
            tokio::time::sleep(delay).await;
            self.bar.set_message("");
        }
    }

    /// One call: until everything is answered, or it breaks off.
    async fn call(&mut self) -> Result<(), Ended> {
        let Target { endpoint, name, tls, .. } = &self.target;
        let connection = connect(endpoint, name, Arc::clone(tls), &ConnectOptions::default()).await?;
        let mut options = SendOptions::new(concat!("pithead-gateway-import/", env!("CARGO_PKG_VERSION")));
        options.window.bytes = WINDOW_BYTES;
        options.window.envelope_bytes = ENVELOPE_BYTES;
        // It has no lines of its own, as no relay has.
        let mut sender = Sender::<Item>::open(connection.clone(), &options, Vec::new()).await?;
        loop {
            let large = self.fill_window(&mut sender);
            // What was before it in its line has to be there before it, and what comes behind it waits.
            match large {
                Some(item) if sender.unanswered() == 0 => {
                    self.upload(&connection, item).await?;
                    continue;
                }
                Some(item) => self.again.push_front(item),
                None if sender.unanswered() == 0 => return Ok(()),
                None => {}
            }
            let patience = self.args.timeout.get();
            let answers = match tokio::time::timeout(patience, sender.answers()).await {
                Ok(answers) => answers.map_err(Ended::from),
                Err(_) => Err(Ended::Silent(patience)),
            };
            match answers {
                Ok(answers) => {
                    for Answered { token, answer } in answers {
                        self.bar.inc(token.bytes);
                        self.tally.take(&token, answer);
                        self.moved += 1;
                    }
                }
                Err(error) => {
                    for item in sender.take_unanswered().into_iter().rev() {
                        self.again.push_front(item);
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Until the window is full, or there is nothing more, or one comes that is too large for it.
    fn fill_window(&mut self, sender: &mut Sender<Item>) -> Option<Item> {
        while let Some(item) = self.next() {
            match sender.room_for(usize::try_from(item.bytes).unwrap_or(usize::MAX)) {
                Ok(()) => {}
                Err(NotTaken::TooLarge { .. }) => return Some(item),
                Err(_) => {
                    self.again.push_front(item);
                    return None;
                }
            }
            let (bytes, hops) = match self.load(&item) {
                Ok(loaded) => loaded,
                Err(what) => {
                    self.bar.inc(item.bytes);
                    self.tally.damaged(&item, &what);
                    continue;
                }
            };
            // There is room: it was asked.
            if let Err((item, _)) = sender.send(item, bytes, hops) {
                self.again.push_front(item);
                return None;
            }
        }
        None
    }

    /// One large envelope, from where the far end has it on disk.
    async fn upload(&mut self, connection: &Connection, item: Item) -> Result<(), Ended> {
        let before = self.bar.position();
        let (hops, source) = match self.load_large(&item).await {
            Ok(loaded) => loaded,
            Err(what) => {
                self.bar.inc(item.bytes);
                self.tally.damaged(&item, &what);
                return Ok(());
            }
        };
        let (bar, mut had, mut got) = (self.bar.clone(), None, 0);
        let told = |progress: UploadProgress| {
            bar.set_position(before + progress.sent);
            let had = *had.get_or_insert(progress.persisted);
            got = progress.persisted.saturating_sub(had);
        };
        let sent = send_upload(connection.clone(), Arc::new(source), hops, None, told).await;
        self.moved += got;
        match sent {
            Ok(answer) => {
                self.moved += 1;
                self.tally.take(&item, answer);
            }
            Err(UploadError::Source(error)) => self.tally.damaged(&item, &error.to_string()),
            Err(error) if error.reason() == Some(ErrorReason::UploadsNotSupported) => {
                let detail = "the far end takes no envelopes of that size";
                self.tally.refused(&item, Some(ErrorReason::EnvelopeTooLarge), detail);
            }
            Err(error) => {
                self.bar.set_position(before);
                self.again.push_front(item);
                return Err(error.into());
            }
        }
        self.bar.set_position(before + item.bytes);
        Ok(())
    }

    /// Its custody and its file, if its bytes are those of the line.
    async fn load_large(&self, item: &Item) -> Result<(Vec<Hop>, PlainFile), String> {
        let hops = item.custody(&self.target.by).map_err(|error| error.to_string())?;
        let expected = item.sha256().map_err(|error| error.to_string())?;
        let path = item.path(&self.args.folder).map_err(|error| error.to_string())?;
        let bytes = item.bytes;
        let read = move || {
            let unreadable = |error: io::Error| format!("{}: {error}", path.display());
            let mut file = File::open(&path).map_err(unreadable)?;
            let (mut hash, mut chunk, mut seen) = (Sha256::new(), vec![0; 256 << 10], 0);
            loop {
                let read = file.read(&mut chunk).map_err(unreadable)?;
                if read == 0 {
                    break;
                }
                hash.update(&chunk[..read]);
                seen += read as u64;
            }
            if seen != bytes || expected != <[u8; 32]>::from(hash.finalize()) {
                return Err("its bytes are not those that were exported".to_owned());
            }
            PlainFile::open(file).map_err(|error| error.to_string())
        };
        let file = tokio::task::spawn_blocking(read).await.map_err(|error| error.to_string())??;
        Ok((hops, file))
    }

    fn next(&mut self) -> Option<Item> {
        if let Some(item) = self.again.pop_front() {
            return Some(item);
        }
        loop {
            match self.items.next()? {
                Ok(Some(item)) if item.refused.is_some() && !self.args.refused => self.tally.left_alone += 1,
                Ok(Some(item)) => return Some(item),
                Ok(None) => self.tally.lines_damaged += 1,
                Err(_) => {
                    self.tally.lines_damaged += 1;
                    return None;
                }
            }
        }
    }

    /// The bytes, if they are those of the line.
    fn load(&self, item: &Item) -> Result<(Bytes, Vec<Hop>), String> {
        let hops = item.custody(&self.target.by).map_err(|error| error.to_string())?;
        let expected = item.sha256().map_err(|error| error.to_string())?;
        let path = item.path(&self.args.folder).map_err(|error| error.to_string())?;
        let mut bytes = Vec::new();
        // Why not the whole file: room was made for what the line says, and the folder is not trusted.
        File::open(&path)
            .and_then(|file| file.take(item.bytes.saturating_add(1)).read_to_end(&mut bytes))
            .map_err(|error| format!("{}: {error}", path.display()))?;
        if bytes.len() as u64 != item.bytes || expected != <[u8; 32]>::from(Sha256::digest(&bytes)) {
            return Err("its bytes are not those that were exported".into());
        }
        Ok((bytes.into(), hops))
    }
}

//! `open FILE -o OUT`: one sealed envelope back to its plaintext, with a private key in a file or with KMS.
//!
//! In constant memory. The plaintext grows beside OUT and gets its name only after the final frame has been found to hold
//! and the input has ended there: a file of that name is complete and authentic, always. Refusals end with 1 and their
//! code, and leave nothing.
//!
//! With `--openssl`, the pair of files that openssl makes by hand: see [`openssl`].

mod openssl;

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::num::NonZeroU32;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use pithead_hop::ingest::admit::reason_of_format;
use pithead_hop::program::{ExitCode, ProgramError, disk};
use pithead_proto::batch::v1 as batch;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::envelope::open::{OpenError, Opening, Unlocked};
use pithead_sealing::envelope::{Encoding, FormatError, Profile};
use pithead_sealing::trust::KeyArn;

use crate::content::inflating::{self, Inflating};
use crate::content::{ContentError, inflate};
use crate::kms::{Kms, KmsTimeouts};
use crate::unwrap::{KeyFileError, KeyUnwrapper, KmsUnwrapper, LocalKeys, UnwrapError};

/// Arguments of `open`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The sealed envelope; `-` is standard input
    #[arg(value_name = "FILE", required_unless_present = "openssl", conflicts_with = "openssl")]
    pub file: Option<PathBuf>,
    /// Open what `openssl enc -aes-256-ctr -pass file:` made, and the password's file that `openssl pkeyutl` wrapped (OAEP,
    /// SHA-256). CTR proves nothing: a changed file opens to changed plaintext
    #[arg(long, num_args = 2, value_names = ["DATA", "KEY"])]
    pub openssl: Option<Vec<PathBuf>>,
    /// It was made with `openssl enc -pbkdf2`
    #[arg(long, requires = "openssl")]
    pub pbkdf2: bool,
    /// And with `-iter` so many
    #[arg(long, value_name = "COUNT", default_value = "10000", requires = "pbkdf2")]
    pub iterations: NonZeroU32,
    /// Where the plaintext goes; it replaces what is there, and only when it is complete
    #[arg(short, long = "output", value_name = "OUT")]
    pub output: PathBuf,
    /// Open with this private key (PKCS#8 PEM) and not with KMS
    #[arg(long, value_name = "PEM")]
    pub private_key: Option<PathBuf>,
    /// Open with this key alone, if the envelope names several; with --openssl and KMS, the key
    #[arg(long, value_name = "ARN")]
    pub key: Option<KeyArn>,
}

/// What was opened.
#[derive(Debug, Clone)]
pub struct Report {
    /// Lines for the person in front of it: identity and verdicts.
    pub lines: Vec<(&'static str, String)>,
    /// Bytes written.
    pub written: u64,
}

/// Runs it.
///
/// # Errors
/// The refusal with its code.
#[allow(
    clippy::print_stderr,
    reason = "the answer of a command whose standard output may be somebody's data"
)]
pub async fn run(args: Args) -> Result<(), ProgramError> {
    let report = match (&args.openssl, &args.file) {
        (Some(pair), _) => open_pair(&args, pair).await?,
        (None, Some(file)) => open_envelope(&args, file).await?,
        // The command line has seen to it.
        (None, None) => Err(ProgramError::new(ErrorReason::ConfigInvalid, "nothing to open"))?,
    };
    for (name, value) in &report.lines {
        eprintln!("{name:<10} {value}");
    }
    Ok(())
}

async fn open_pair(args: &Args, pair: &[PathBuf]) -> Result<Report, ProgramError> {
    let [data, key] = pair else {
        return Err(ProgramError::new(ErrorReason::ConfigInvalid, "--openssl takes DATA and KEY"));
    };
    let derivation = if args.pbkdf2 {
        openssl::Derivation::Pbkdf2(args.iterations)
    } else {
        openssl::Derivation::BytesToKey
    };
    let opener = openssl::Opener::choose(args.private_key.as_deref(), args.key.as_ref()).await?;
    let (data, key, output) = (data.clone(), key.clone(), args.output.clone());
    openssl::open(openssl::Pair { data, key, output, derivation }, &opener).await
}

async fn open_envelope(args: &Args, file: &Path) -> Result<Report, ProgramError> {
    let unwrapper: Arc<dyn KeyUnwrapper> = match &args.private_key {
        Some(path) => Arc::new(LocalKeys::for_any_arn(path)?),
        None => Arc::new(KmsUnwrapper::new(Kms::from_environment(KmsTimeouts::default()).await)),
    };
    open(args, file, unwrapper.as_ref()).await
}

/// Opens with any unwrapper.
///
/// # Errors
/// The refusal with its code; there is no OUT then, or the one that was there before.
pub async fn open(args: &Args, file: &Path, unwrapper: &dyn KeyUnwrapper) -> Result<Report, ProgramError> {
    let (mut input, total) = open_input(file)?;
    let paths = Paths { file: file.to_owned(), output: args.output.clone() };
    let opening = Opening::read_from(&mut input).map_err(|error| failed(&paths, error))?;
    let chosen = opening
        .choose(|arn| args.key.as_ref().is_none_or(|only| only == arn) && unwrapper.may_hold(arn))
        .map_err(|error| failed(&paths, error))?;
    let unwrapped = unwrapper.unwrap(chosen.key_arn(), chosen.edk().ciphertext()).await?;
    let unlocked = chosen.unlock(&unwrapped).map_err(|error| refused(&error))?;
    drop(unwrapped);

    // Reading, opening and writing a file of any size: not on a thread that serves the runtime.
    tokio::task::spawn_blocking(move || write_plaintext(&paths, unlocked, input, total))
        .await
        .map_err(|_| ProgramError::new(ErrorReason::Internal, "the opening thread ended early"))?
}

/// What is read and what is written.
struct Paths {
    file: PathBuf,
    output: PathBuf,
}

fn write_plaintext(
    paths: &Paths,
    unlocked: Unlocked,
    input: Input,
    total: Option<u64>,
) -> Result<Report, ProgramError> {
    let mut lines = describe(&unlocked);
    let header = unlocked.header();
    let profile = Profile::of(header).ok();
    let compressed = profile.as_ref().and_then(Profile::encoding) == Some(Encoding::Zstd);
    let is_batch =
        profile.as_ref().is_some_and(|profile| profile.content_type().as_str() == batch::CONTENT_TYPE);
    let header_len = header.wire_len() as u64;

    let bar = progress(total);
    bar.inc(header_len);
    let mut input = Counted { input, bar: &bar, seen: header_len };
    let target = Target::create(&paths.output).map_err(|error| cannot_write(&paths.output, &error))?;
    let mut output = BufWriter::with_capacity(256 * 1024, &target.file);
    let body = unlocked.into_body();
    let (complete, written) = if compressed {
        let limit = match total {
            Some(total) => inflate::limit(is_batch, total),
            // The size of a pipe is known at its end only; the cap meanwhile keeps a bomb from filling the disk.
            None => inflate::limit(is_batch, inflating::PIPE_ASSUMED_BYTES),
        };
        let mut inflating = Inflating::new(&mut output, limit).map_err(|error| content_refused(&error))?;
        let complete = body.open_all(&mut input, &mut inflating);
        // What the content is refused for comes out of the opener as a failed write: it is asked first.
        if let Some(error) = inflating.refused() {
            return Err(content_refused(&error));
        }
        let complete = complete.map_err(|error| failed(paths, error))?;
        let written = inflating.finish().map_err(|error| content_refused(&error))?;
        if !is_batch && written > inflate::limit(false, input.seen) {
            return Err(content_refused(&ContentError::InflateLimit {
                limit: inflate::limit(false, input.seen),
            }));
        }
        (complete, written)
    } else {
        let complete = body.open_all(&mut input, &mut output).map_err(|error| failed(paths, error))?;
        (complete, complete.plaintext_len)
    };
    output.flush().map_err(|error| cannot_write(&paths.output, &error))?;
    drop(output);
    target.keep(&paths.output).map_err(|error| cannot_write(&paths.output, &error))?;
    bar.finish_and_clear();
    lines.push(("plaintext", format!("{written} B in {} frames, complete", complete.frames)));
    Ok(Report { lines, written })
}

fn describe(unlocked: &Unlocked) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    match Profile::of(unlocked.header()) {
        Ok(profile) => {
            lines.push(("identity", profile.identity().to_string()));
            lines.push(("content", profile.content_type().as_str().to_owned()));
            let verdict = match profile.signature() {
                Some(claim) => {
                    format!("the session names the key {}; the signature is not checked here", claim.kid)
                }
                None => "unsigned: whoever may submit for the device can have sealed it".to_owned(),
            };
            lines.push(("sender", verdict));
        }
        // Whoever holds the key may open what is no envelope of ours; it just has no identity here.
        Err(error) => lines.push(("profile", format!("not met: {error}"))),
    }
    lines.push(("key", unlocked.key_arn().to_string()));
    lines
}

/// A file or standard input.
pub(super) type Input = BufReader<Box<dyn Read + Send>>;

/// Opens FILE or standard input, with its length if that is known.
pub(super) fn open_input(path: &Path) -> Result<(Input, Option<u64>), ProgramError> {
    if path == Path::new("-") {
        return Ok((BufReader::new(Box::new(io::stdin())), None));
    }
    let opened = File::open(path).and_then(|file| file.metadata().map(|metadata| (file, metadata)));
    let (file, metadata) = opened.map_err(|error| {
        ProgramError::new(ErrorReason::ConfigUnreadable, format!("cannot read {}: {error}", path.display()))
            .exit(ExitCode::FAILED)
    })?;
    let total = metadata.is_file().then_some(metadata.len());
    Ok((BufReader::new(Box::new(file)), total))
}

fn progress(total: Option<u64>) -> ProgressBar {
    // Drawn on stderr, and only if that is a terminal.
    let style = "{wide_bar} {bytes}/{total_bytes}  {bytes_per_sec}  {eta}";
    match (total, ProgressStyle::with_template(style)) {
        (Some(total), Ok(style)) => ProgressBar::new(total).with_style(style),
        _ => ProgressBar::new_spinner(),
    }
}

struct Counted<'b> {
    input: Input,
    bar: &'b ProgressBar,
    seen: u64,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.seen += read as u64;
        self.bar.inc(read as u64);
        Ok(read)
    }
}

/// The plaintext on its way: a file beside OUT that goes away unless it is kept.
struct Target {
    file: File,
    part: PathBuf,
    kept: bool,
}

impl Target {
    fn create(output: &Path) -> io::Result<Target> {
        let name = output.file_name().ok_or_else(|| io::Error::other("it is not the name of a file"))?;
        let mut part_name = std::ffi::OsString::from(".");
        part_name.push(name);
        part_name.push(format!(".{}.part", std::process::id()));
        let part = output.with_file_name(part_name);
        let mut options = OpenOptions::new();
        // Plaintext is for whoever opened it.
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(&part)?;
        Ok(Target { file, part, kept: false })
    }

    fn keep(mut self, output: &Path) -> io::Result<()> {
        disk::publish(&self.part, output)?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if !self.kept {
            // Nothing can be done about a part that cannot be removed; its name says what it is.
            let _ = std::fs::remove_file(&self.part);
        }
    }
}

/// A refusal of the format, in the registry's words.
pub(crate) fn refused(error: &FormatError) -> ProgramError {
    let affects = "nothing was released";
    ProgramError::new(reason_of_format(error), error.to_string())
        .affects(affects)
        .exit(ExitCode::FAILED)
        .todo(match error {
            FormatError::Truncated => "fetch the envelope again: its end is missing",
            FormatError::Trailing => "cut nothing off: ask where the additional bytes come from",
            FormatError::UnsupportedVersion { .. } | FormatError::UnsupportedSuite { .. } => {
                "check that the file is a sealed envelope"
            }
            _ => "ask the sender for the envelope again; this copy is not what was sealed",
        })
}

fn failed(paths: &Paths, error: OpenError) -> ProgramError {
    match error {
        OpenError::Format(error) => refused(&error),
        OpenError::Write(error) => cannot_write(&paths.output, &error),
        OpenError::Read(error) => {
            let what = format!("cannot read {}: {error}", paths.file.display());
            ProgramError::new(ErrorReason::ConfigUnreadable, what).exit(ExitCode::FAILED)
        }
        OpenError::KeyNotAllowed => UnwrapError::KeyNotAllowed.into(),
        other => ProgramError::new(ErrorReason::Internal, other.to_string()),
    }
}

fn content_refused(error: &ContentError) -> ProgramError {
    ProgramError::new(error.reason(), error.to_string())
        .affects("nothing was released")
        .todo("ask the sender: the seal holds, the content does not")
        .exit(ExitCode::FAILED)
}

fn cannot_write(path: &Path, error: &io::Error) -> ProgramError {
    let reason = match error.kind() {
        io::ErrorKind::StorageFull => ErrorReason::DiskFull,
        _ => ErrorReason::DataDirUnwritable,
    };
    ProgramError::new(reason, format!("cannot write {}: {error}", path.display()))
        .todo("choose another -o, or make room")
}

impl From<UnwrapError> for ProgramError {
    fn from(error: UnwrapError) -> ProgramError {
        let reason = error.reason();
        let program = ProgramError::new(reason, error.to_string()).affects("nothing was opened");
        match reason {
            ErrorReason::KeyNotAllowed => program.todo("see with `inspect` which keys the envelope names"),
            ErrorReason::KmsInvalidCiphertext => {
                program.todo("check that this is the private key of the ARN that `inspect` shows")
            }
            ErrorReason::KmsDenied => {
                program.todo("check credentials, the role's policy and the key's policy")
            }
            ErrorReason::KmsUnreachable => {
                program.todo("check AWS_REGION, AWS_ENDPOINT_URL_KMS and the network")
            }
            ErrorReason::KmsThrottled => program.todo("try again"),
            ErrorReason::KmsKeyDisabled => program.todo("enable the key"),
            ErrorReason::KmsKeyPendingDeletion => program.todo("cancel the key's deletion now"),
            _ => program,
        }
    }
}

impl From<KeyFileError> for ProgramError {
    fn from(error: KeyFileError) -> ProgramError {
        ProgramError::new(ErrorReason::ConfigUnreadable, error.to_string())
    }
}

#[cfg(test)]
mod tests;

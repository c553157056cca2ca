//! `send`: records or a file, sealed, kept, and sent until the gateway has them on its disk.
//!
//! ```text
//! stdin ─> lines (1,024 wait at most) ─> record() ─> outbox ══> gateway
//! ```
//!
//! A line counts when it is in the outbox: a kill before that loses what was read and not sealed, a kill after it loses
//! nothing. Pressure travels back: a full outbox stops the reading of standard input. Told to stop (SIGTERM, SIGINT), it
//! reads no more, seals what it has read, and leaves the sending of it to the next start.

use std::{
    io::{self, BufRead as _, Read as _},
    path::Path,
    time::Duration,
};

use bytes::Bytes;
use indicatif::ProgressBar;
use pithead_device_client::{
    INLINE_LIMIT_BYTES,
    client::{Client, RecordError, Stream, StreamOptions},
    clock::DeviceClock,
    keys::{Keys, KeysError},
    uplink::{RefreshError, Uplink},
};
use pithead_hop::program::{ExitCode, ProgramError};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::{envelope::FileName, names::StreamName};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    cli::SendArgs,
    config::{Config, Kind, no_gateway},
    delivery::{self, Told},
    failure,
    output::{Output, envelope_bar},
};

/// Lines that were read and wait to be recorded.
const LINES_WAITING: usize = 1_024;

struct Line {
    at_us: i64,
    data: Bytes,
}

pub(crate) async fn run(file: &Path, arguments: &SendArgs, output: Output) -> Result<ExitCode, ProgramError> {
    let config = Config::load(file)?;
    let signals = delivery::signals()?;
    let lines = arguments.file == Path::new("-");
    let (kind, default) = if lines { (Kind::Records, "records") } else { (Kind::Files, "files") };
    let stream = arguments.stream.clone().unwrap_or_else(|| named(default));
    let options = with_flags(config.stream(stream, kind)?, arguments)?;
    fetch_keys(&config).await?;
    let name = options.name().to_string();
    let client = config.client(Some(options))?.open().map_err(|error| failure::open(&error))?;
    let bar = envelope_bar("sending");
    let taken = if lines {
        let stream = client.stream(&name).expect("it was configured");
        take_lines(&client, &stream, &signals.stop, &bar).await
    } else {
        take_file(&client, &name, arguments, &signals.stop).await
    };
    let limit = if taken.is_ok() { arguments.timeout.get() } else { Duration::ZERO };
    let ended = delivery::finish(client, limit, &signals.stop, &bar).await?;
    let told = Told::of(&ended.status);
    output.print(&told.fields(ended.status.sessions));
    taken?;
    // What waits in memory when everything ends was never sealed.
    let unsealed = ended.status.streams.values().filter(|stream| stream.in_memory > 0);
    if let Some(trouble) = unsealed.filter_map(|stream| stream.trouble.as_ref()).next() {
        return Err(failure::record(trouble));
    }
    delivery::verdict(&config, &told, ended.trouble)
}

/// What the command line says wins over the file.
fn with_flags(options: StreamOptions, arguments: &SendArgs) -> Result<StreamOptions, ProgramError> {
    let options = match arguments.linger {
        Some(linger) => options.linger(linger.get()),
        None => options,
    };
    if arguments.compress { compressed(options) } else { Ok(options) }
}

#[cfg(feature = "zstd")]
fn compressed(options: StreamOptions) -> Result<StreamOptions, ProgramError> {
    Ok(options.compress())
}

#[cfg(not(feature = "zstd"))]
fn compressed(_: StreamOptions) -> Result<StreamOptions, ProgramError> {
    Err(ProgramError::new(ErrorReason::ConfigInvalid, "this program was built without zstd")
        .todo("leave --compress out")
        .exit(ExitCode::USAGE))
}

/// News about keys, before a client is opened that is the only one who moves them.
pub(crate) async fn fetch_keys(config: &Config) -> Result<(), ProgramError> {
    let mut keys = config.open_keys()?;
    let uplink = config.uplink(&keys)?.ok_or_else(no_gateway)?;
    refresh(&uplink, &mut keys).await
}

/// News about keys, if the gateway has any that hold. With a usable key in hand a gateway that is silent, behind another
/// one, or lying is no reason to stop: whatever it says, envelopes go on to the key that was verified.
async fn refresh(uplink: &Uplink, keys: &mut Keys) -> Result<(), ProgramError> {
    let Err(error) = uplink.refresh(keys).await else { return Ok(()) };
    if keys.verified_key().is_err() {
        return Err(failure::refresh(&error));
    }
    if matches!(&error, RefreshError::Keys(KeysError::Trust(_))) {
        tracing::error!(event = "key.alarm", %error, "what the gateway says of keys is refused; the key that was verified stays");
    } else {
        tracing::warn!(event = "keys.not_refreshed", %error);
    }
    Ok(())
}

async fn take_file(
    client: &Client,
    stream: &str,
    arguments: &SendArgs,
    told_to_stop: &CancellationToken,
) -> Result<(), ProgramError> {
    let path = &arguments.file;
    let name = path.file_name().and_then(|name| FileName::new(name.to_str()?).ok());
    let files = client.files(stream).expect("it was configured");
    let mut ticket =
        files.send_file(path, arguments.content_type.clone(), name).map_err(|error| failure::file(&error))?;
    match told_to_stop.run_until_cancelled(ticket.kept()).await {
        Some(Err(error)) => Err(failure::file(&error)),
        Some(Ok(_)) | None => Ok(()),
    }
}

async fn take_lines(
    client: &Client,
    stream: &Stream,
    told_to_stop: &CancellationToken,
    bar: &ProgressBar,
) -> Result<(), ProgramError> {
    let (lines, mut read) = mpsc::channel(LINES_WAITING);
    let reading = tokio::task::spawn_blocking(move || read_lines(&lines));
    let mut changes = client.changes();
    loop {
        let line = tokio::select! {
            line = read.recv() => line,
            // What was read is sealed and kept before the end; no more is read.
            () = told_to_stop.cancelled(), if !read.is_closed() => {
                read.close();
                continue;
            }
            () = changes.changed(), if !bar.is_hidden() => {
                delivery::show(client, bar);
                continue;
            }
        };
        let Some(line) = line else { break };
        record(client, stream, line, told_to_stop).await?;
    }
    if told_to_stop.is_cancelled() {
        // The reader may wait for standard input for ever.
        return Ok(());
    }
    reading.await.map_err(|error| ProgramError::new(ErrorReason::Internal, error.to_string()))?
}

/// Records a line, waiting for room if it must: room comes only while a gateway takes something.
async fn record(
    client: &Client,
    stream: &Stream,
    line: Line,
    told_to_stop: &CancellationToken,
) -> Result<(), ProgramError> {
    let mut changes = client.changes();
    loop {
        let error = match stream.record_at(line.at_us, "", &line.data) {
            Ok(()) => return Ok(()),
            // News about keys was asked for before; what has no key now gets none by waiting.
            Err(error @ RecordError::NoKey(_)) => return Err(failure::record(&error)),
            Err(error) if !error.is_retryable() => return Err(failure::record(&error)),
            Err(error) => error,
        };
        let trouble = client.status().trouble;
        if let Some(trouble) = trouble.filter(|trouble| !trouble.retryable) {
            return Err(delivery::no_hope(&trouble));
        }
        tokio::select! {
            () = stream.room() => {}
            // Where no retry helps, no room will come.
            () = changes.changed() => {}
            () = told_to_stop.cancelled(), if !matches!(error, RecordError::Behind) => {
                let what = "told to stop while the outbox was full; what was read last is not sealed";
                return Err(ProgramError::new(ErrorReason::OutboxFull, what));
            }
        }
    }
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

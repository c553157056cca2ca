//! `watch`: each file that appears in a folder, sealed into the outbox and sent.
//!
//! ```text
//! DIR/report.csv    looked at, whole? ─> line (16 at most) ─> sealed, Kept ─> DIR/sent/report.csv, or gone, or left
//! DIR/.report.csv   DIR/report.csv.part      somebody is still writing: not looked at
//! DIR/sent/         what was kept, with --after move
//! STATE/watch/      what was kept, with --after keep: a list for each folder
//! ```
//!
//! A file is whole when it was written last at least `--settle` before it got its name (a rename keeps the one time and sets
//! the other), or when it was watched for `--settle` and did not change. A program that renames its files into the folder, or
//! writes them under a name that ends with `.part`, is never misunderstood.
//!
//! The source is touched only when the file is `Kept`: sealed, and durable in the outbox. A kill before that leaves it where it
//! is, and it is dealt with again; a kill between the two sends it twice, under two numbers. What `--after keep` leaves is
//! remembered by place and time of writing, and is sent again only if it has changed.

mod folder;
mod kept;

use std::{collections::BTreeMap, path::Path, time::Duration};

use pithead_device_client::client::{Client, FileError, FileState, FileStream, FileTicket};
use pithead_hop::program::{ExitCode, ProgramError};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::envelope::FileName;
use serde_json::json;
use tokio::time::Instant;

use self::{
    folder::{Candidate, Folder},
    kept::Kept,
};
use crate::{
    cli::{After, WatchArgs},
    config::{Config, Kind},
    delivery::{self, Told},
    failure, moment,
    output::{Output, envelope_bar, print_text},
    send,
};

/// Files between being whole and being kept: the client's own line, and not more memory than that.
const LINE_MAX: usize = 16;
/// How often the folder is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a file that was not taken is left alone: its disk, its reader or the outbox may be well by then.
const RETRY: Duration = Duration::from_secs(5);
/// How long the end waits for a gateway: what it does not have by then goes out the next time.
const GOODBYE: Duration = Duration::from_secs(2);

struct Watch<'a> {
    folder: Folder,
    kept: Kept,
    after: After,
    arguments: &'a WatchArgs,
    output: Output,
    line: BTreeMap<String, (Candidate, FileTicket)>,
    retry_at: BTreeMap<String, Instant>,
    files: u64,
    bytes: u64,
    failed: u64,
}

pub(crate) async fn run(
    file: &Path,
    arguments: &WatchArgs,
    output: Output,
) -> Result<ExitCode, ProgramError> {
    let config = Config::load(file)?;
    let signals = delivery::signals()?;
    let options = config.stream(arguments.stream.clone(), Kind::Files)?;
    let folder = Folder::open(&arguments.dir, arguments.settle.get(), arguments.after == After::Move)
        .map_err(|error| unreadable(&arguments.dir, &error))?;
    let kept = match arguments.after {
        After::Keep => Kept::open(&config.state(), &arguments.dir),
        After::Delete | After::Move => Ok(Kept::none()),
    };
    let kept = kept.map_err(|error| ProgramError::new(ErrorReason::DataDirUnwritable, error.to_string()))?;
    send::fetch_keys(&config).await?;
    let client = config.client(Some(options))?.open().map_err(|error| failure::open(&error))?;
    let stream = client.files(arguments.stream.as_str()).expect("it was configured");
    let mut watch = Watch {
        folder,
        kept,
        after: arguments.after,
        arguments,
        output,
        line: BTreeMap::new(),
        retry_at: BTreeMap::new(),
        files: 0,
        bytes: 0,
        failed: 0,
    };
    let bar = envelope_bar("watching");
    let watched = watch.until(&client, &stream, &signals.stop, &bar).await;
    let tickets = std::mem::take(&mut watch.line);
    drop(stream);
    // A file that is being sealed is left by the closing, and is still there the next time.
    let told_again = tokio_util::sync::CancellationToken::new();
    let ended = delivery::finish(client, GOODBYE, &told_again, &bar).await?;
    for (name, (candidate, ticket)) in tickets {
        watch.look_at(name, candidate, ticket);
    }
    let told = Told::of(&ended.status);
    let mut fields =
        vec![("files", json!(watch.files)), ("bytes", json!(watch.bytes)), ("failed", json!(watch.failed))];
    fields.extend(told.fields(ended.status.sessions).into_iter().filter(|(name, _)| *name != "records"));
    output.print(&fields);
    watched?;
    Ok(ExitCode::OK)
}

impl Watch<'_> {
    /// Until told to stop, or the folder cannot be read any more.
    async fn until(
        &mut self,
        client: &Client,
        stream: &FileStream,
        stop: &tokio_util::sync::CancellationToken,
        bar: &indicatif::ProgressBar,
    ) -> Result<(), ProgramError> {
        loop {
            self.collect();
            let seen =
                self.folder.look(Instant::now()).map_err(|error| unreadable(&self.arguments.dir, &error))?;
            self.kept.forget_all_but(&seen.names).unwrap_or_else(|error| {
                tracing::warn!(event = "watch.not_remembered", %error);
            });
            self.retry_at.retain(|name, _| seen.names.contains(name));
            for candidate in seen.whole {
                self.begin(candidate, stream);
            }
            delivery::show(client, bar);
            // While files are being sealed the next in line waits for nothing else.
            let wait = async {
                match self.line.values_mut().next() {
                    Some((_, ticket)) => {
                        let _ = tokio::time::timeout(LOOK_EVERY, ticket.kept()).await;
                    }
                    None => tokio::time::sleep(LOOK_EVERY).await,
                }
            };
            if stop.run_until_cancelled(wait).await.is_none() {
                return Ok(());
            }
        }
    }

    fn begin(&mut self, candidate: Candidate, stream: &FileStream) {
        let name = &candidate.name;
        let later = self.retry_at.get(name).is_some_and(|at| Instant::now() < *at);
        let known = self.line.contains_key(name) || self.kept.has(&candidate);
        if later || known || self.line.len() >= LINE_MAX {
            return;
        }
        let shown = FileName::new(name).ok();
        match stream.send_file(&self.folder.path(name), self.arguments.content_type.clone(), shown) {
            Ok(ticket) => {
                self.retry_at.remove(name);
                self.line.insert(name.clone(), (candidate, ticket));
            }
            // The client's line is as long as ours, and one more is being sealed: the next look finds room.
            Err(FileError::Busy) => {}
            Err(error) => self.not_taken(&candidate, &error),
        }
    }

    /// What has become of those in the line.
    fn collect(&mut self) {
        for (name, (candidate, ticket)) in std::mem::take(&mut self.line) {
            if matches!(ticket.state(), FileState::Sealing { .. }) {
                self.line.insert(name, (candidate, ticket));
            } else {
                self.look_at(name, candidate, ticket);
            }
        }
    }

    fn look_at(&mut self, name: String, candidate: Candidate, ticket: FileTicket) {
        let identity = match ticket.state() {
            FileState::Kept { identity }
            | FileState::Uploading { identity, .. }
            | FileState::Delivered { identity }
            | FileState::Refused { identity, .. } => identity,
            FileState::Failed(error) => return self.not_taken(&candidate, &error),
            _ => return,
        };
        // What changed while it was sealed is another file, and stays.
        if !self.folder.is_still(&candidate) {
            tracing::warn!(
                event = "watch.changed",
                name,
                "the file changed while it was sealed; it is sent again"
            );
            return self.tell("changed", &name, &identity.to_string());
        }
        let done = match self.after {
            After::Move => self.folder.move_away(&name),
            After::Delete => self.folder.delete(&name),
            After::Keep => self.kept.remember(&candidate),
        };
        self.files += 1;
        self.bytes += candidate.bytes();
        if let Err(error) = done {
            // It is kept, and is taken again later: better twice than never.
            tracing::error!(event = "watch.not_put_away", name, %error);
            self.retry_at.insert(name.clone(), Instant::now() + RETRY);
        }
        self.tell("kept", &name, &identity.to_string());
    }

    fn not_taken(&mut self, candidate: &Candidate, error: &FileError) {
        // Told to close: the file is there the next time.
        if matches!(error, FileError::Closed) {
            return;
        }
        let name = candidate.name.clone();
        if !self.retry_at.contains_key(&name) {
            self.failed += 1;
            let refused = failure::file(error);
            tracing::warn!(
                event = "watch.not_taken",
                name,
                code = refused.reason.code(),
                error = refused.what
            );
            self.tell("failed", &name, &format!("{} {}", refused.reason.code(), refused.what));
        }
        self.retry_at.insert(name, Instant::now() + RETRY);
    }

    /// One line for each event, as it happens.
    fn tell(&self, event: &str, name: &str, what: &str) {
        let at = moment::now_ms() / 1_000;
        print_text(&match self.output {
            Output::Json => {
                let key = if event == "failed" { "error" } else { "identity" };
                format!("{}\n", json!({"event": event, "at": at, "file": name, key: what}))
            }
            Output::Table => format!("{}  {event}  {name}  {what}\n", moment::rfc3339(at)),
        });
    }
}

fn unreadable(dir: &Path, error: &std::io::Error) -> ProgramError {
    ProgramError::new(ErrorReason::ConfigUnreadable, format!("{}: {error}", dir.display()))
        .affects("no file is taken from it; what is in the outbox goes on its way the next time")
        .todo("look at the folder, and at who may read and write it")
}

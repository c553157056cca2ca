//! `spool export`: what waits, and what was refused, as a folder of standard envelopes with an index.
//!
//! Nothing leaves the spool by it. An envelope that the relay delivers meanwhile is recognised by the cloud when it comes
//! again by hand.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use pithead_hop::ingest::SealedFile;
use pithead_hop::program::{ExitCode, ProgramError, human};
use pithead_proto::errors::v1::ErrorReason;
use pithead_spool::{CorruptRange, Lane, Position, Record, Survey, Walk};
use serde_json::json;

use super::{Place, Unread, bytes_bar, first_of, internal, lanes_of, lost_as_json, lost_as_text, lost_of};
use crate::cli::{DataArg, Output};
use crate::envelopes::carried::{Filling, Item};
use crate::envelopes::record::{Body, Head, KIND_CONFLICT, KIND_ENVELOPE};
use crate::envelopes::refused::{self, Entry};
use crate::run::directory::{refused_below, uploads_below};

/// Read at a time.
const READ_BYTES: usize = 4 << 20;
/// Ranges of lost records that are named.
const LOST_NAMED: usize = 1024;

/// What is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// What waits, and what was refused.
    Waiting,
    /// Also what was delivered and is still there.
    All,
    /// What was refused, which lies in a folder whatever the lanes are in.
    Refused,
}

/// What was done.
#[derive(Debug, Default)]
struct Tally {
    written: u64,
    written_bytes: u64,
    had: u64,
    refused: u64,
    /// The names of these files, as they would have them if they waited.
    refused_files: HashSet<String>,
    lost_records: u64,
    lost: Vec<CorruptRange>,
    /// Large envelopes of the spool without a file that could be read: left out, unless they have left.
    unread: Vec<Unread>,
    /// Large envelopes that have left the spool, and of which the record alone is here.
    left: u64,
    /// What was left out, because its bytes cannot be read or are not those that came.
    left_out: Vec<String>,
}

/// Fills `to`. Ends with 1 if something could not be read any more.
///
/// # Errors
/// When there is nothing to read, or what there is says nothing of what waits, or `to` does not take it.
pub fn run(
    to: &Path,
    what: What,
    data: &DataArg,
    output: Output,
    out: &mut dyn Write,
) -> Result<ExitCode, ProgramError> {
    let place = Place::of(data)?;
    let survey = match what {
        What::Waiting | What::All => {
            let survey = place.survey(what == What::All)?;
            Some(survey.ok_or_else(|| place.nothing_to_see())?)
        }
        What::Refused => None,
    };
    let uploads = uploads_below(&place.data);
    let area = refused_below(&place.data);
    let refused = refused::list(&area).map_err(|error| cannot_read(&area, &error))?;
    let cannot_write = |error: io::Error| cannot_write(to, &error);
    let mut filling = Filling::begin(to).map_err(cannot_write)?;
    let mut walks = survey.as_ref().map_or_else(Vec::new, |survey| walks(survey, what == What::All));
    let waiting: u64 = walks.iter().map(|(_, walk)| walk.total()).sum();
    let bar = bytes_bar(waiting + refused.entries.iter().map(|(_, entry)| entry.bytes).sum::<u64>());
    let mut tally = Tally::default();
    let damaged = |name: String| format!("the refused envelope {name}, of which the reason is damaged");
    tally.left_out.extend(refused.unreadable.into_iter().map(damaged));
    // First, because a gateway that runs has written down the reason before its log says that the envelope has left: what is
    // in both places is refused.
    for (name, entry) in refused.entries {
        let path = area.join(format!("{name}.envelope"));
        export_refused(&mut filling, &mut tally, &uploads, &path, &entry).map_err(cannot_write)?;
        bar.inc(entry.bytes);
    }
    let before = bar.position();
    let mut walked = 0;
    for (lane, walk) in &mut walks {
        loop {
            let batch = walk.next_batch(READ_BYTES).map_err(internal)?;
            if batch.is_empty() {
                break;
            }
            for range in &batch.corrupt {
                tally.lost_records += range.records();
                if tally.lost.len() < LOST_NAMED {
                    tally.lost.push(range.clone());
                }
            }
            for (position, record) in batch.records {
                export_record(&mut filling, &mut tally, &uploads, (*lane, position), &record)
                    .map_err(cannot_write)?;
            }
            bar.set_position(before + walked + walk.bytes());
        }
        walked += walk.total();
    }
    filling.finish().map_err(cannot_write)?;
    bar.finish_and_clear();
    let (lost, left) = lost_of(&place.data, std::mem::take(&mut tally.unread));
    tally.left = left;
    tally.left_out.extend(lost.iter().map(ToString::to_string));
    let whole = tally.lost_records == 0 && tally.left_out.is_empty();
    crate::commands::write(out, &told(&tally, to, place.beside(), output))?;
    Ok(if whole { ExitCode::OK } else { ExitCode::FAILED })
}

fn walks(survey: &Survey, all: bool) -> Vec<(Lane, Walk)> {
    lanes_of(survey).map(|lane| (lane, survey.walk(lane, first_of(survey, lane, all)))).collect()
}

fn export_record(
    filling: &mut Filling,
    tally: &mut Tally,
    uploads: &Path,
    (lane, position): (Lane, Position),
    record: &Record,
) -> io::Result<()> {
    let line = |head: &Head, bytes| {
        let conflict = record.kind == KIND_CONFLICT;
        Item::waiting(&head.identity, &head.sha256, bytes, record.at_ms, conflict, &head.hops)
    };
    match (Head::decode(&record.head), record.kind, Body::large_total(record)) {
        (Ok(head), ..) if tally.refused_files.contains(&line(&head, 0).file) => Ok(()),
        (Ok(head), _, Some(total)) => {
            if !put_large(filling, tally, uploads, &head, line(&head, total))? {
                tally.unread.push(Unread { lane, position, identity: head.identity });
            }
            Ok(())
        }
        (Ok(head), KIND_ENVELOPE | KIND_CONFLICT, None) => {
            put(filling, tally, &line(&head, record.body.len() as u64), &mut &record.body[..])
        }
        _ => {
            let what = format!("a record at position {} that no gateway of this version wrote", position.0);
            tally.left_out.push(what);
            Ok(())
        }
    }
}

fn export_refused(
    filling: &mut Filling,
    tally: &mut Tally,
    uploads: &Path,
    path: &Path,
    entry: &Entry,
) -> io::Result<()> {
    let (Some(item), Ok(head)) = (Item::refused(entry), entry.to_head()) else {
        tally.left_out.push(path.display().to_string());
        return Ok(());
    };
    tally.refused += 1;
    tally.refused_files.extend(item.file.rsplit('/').next().map(str::to_owned));
    if entry.large {
        let identity = item.identity();
        if !put_large(filling, tally, uploads, &head, item)? {
            tally.left_out.push(identity);
        }
        return Ok(());
    }
    match File::open(path) {
        Ok(mut file) => put(filling, tally, &item, &mut file),
        // Carried away by somebody between the two looks, or sent again.
        Err(_) => {
            tally.left_out.push(item.identity());
            Ok(())
        }
    }
}

/// A large envelope out of its file, each block of which has a checksum of its own. False if that is damaged or not there.
fn put_large(
    filling: &mut Filling,
    tally: &mut Tally,
    uploads: &Path,
    head: &Head,
    item: Item,
) -> io::Result<bool> {
    if filling.has(&item) {
        tally.had += 1;
        return Ok(true);
    }
    let bytes = item.bytes;
    let whole = match SealedFile::open(uploads, &head.identity) {
        Ok(file) => filling.put_large(item, file)?,
        Err(_) => false,
    };
    if whole {
        tally.written += 1;
        tally.written_bytes += bytes;
    }
    Ok(whole)
}

fn put(filling: &mut Filling, tally: &mut Tally, item: &Item, bytes: &mut dyn io::Read) -> io::Result<()> {
    if filling.has(item) {
        tally.had += 1;
    } else if filling.put(item, bytes)? {
        tally.written += 1;
        tally.written_bytes += item.bytes;
    } else {
        tally.left_out.push(item.identity());
    }
    Ok(())
}

fn told(tally: &Tally, to: &Path, beside: Option<&str>, output: Output) -> String {
    match output {
        Output::Json => crate::commands::json(&json!({
            "to": to.display().to_string(),
            "written": tally.written,
            "written_bytes": tally.written_bytes,
            "there_before": tally.had,
            "refused": tally.refused,
            "large_left": tally.left,
            "lost_records": tally.lost_records,
            "lost": lost_as_json(&tally.lost),
            "left_out": tally.left_out,
            "beside": beside,
        })),
        Output::Table => {
            let mut text = format!(
                "written    {}, {} bytes, to {}\n",
                human::some(tally.written, "envelope", "envelopes"),
                tally.written_bytes,
                to.display()
            );
            if tally.had > 0 {
                text += &format!("there      {} were there before\n", tally.had);
            }
            if tally.refused > 0 {
                text += &format!(
                    "refused    {} of them were refused by the far end: see `refused` there\n",
                    tally.refused
                );
            }
            if tally.left > 0 {
                text += &format!("left       {} large envelopes, and no file of them is here\n", tally.left);
            }
            text += &lost_as_text(&tally.lost);
            for what in &tally.left_out {
                text += &format!("left out   {what}: its bytes cannot be read, or are not those that came\n");
            }
            if let Some(beside) = beside {
                text += &format!("beside     {beside}\n");
            }
            text
        }
    }
}

fn cannot_read(folder: &Path, error: &io::Error) -> ProgramError {
    ProgramError::new(ErrorReason::DiskFailed, format!("cannot read {}: {error}", folder.display()))
        .exit(ExitCode::FAILED)
}

fn cannot_write(to: &Path, error: &io::Error) -> ProgramError {
    let reason = match error.kind() {
        io::ErrorKind::StorageFull => ErrorReason::DiskFull,
        _ => ErrorReason::DataDirUnwritable,
    };
    ProgramError::new(reason, format!("cannot write {}: {error}", to.display()))
        .affects("what was written so far is whole; the spool is as it was")
        .todo("make room or take another disk, and give the same command again: it goes on where it was")
}

//! `spool verify`: every byte of what waits, checked, the files of large envelopes too; what is damaged, named.

use std::io::Write;
use std::path::Path;

use pithead_hop::ingest::SealedFile;
use pithead_hop::program::{ExitCode, ProgramError, human};
use pithead_sealing::Identity;
use pithead_spool::Record;
use serde_json::json;

use super::{Place, Unread, bytes_bar, internal, lost_as_json, lost_as_text, lost_of};
use crate::cli::{DataArg, Output};
use crate::envelopes::record::{Body, Head};
use crate::run::directory::uploads_below;

/// Reads it all. Ends with 1 if something is lost.
///
/// # Errors
/// When there is nothing to read, or what there is says nothing of what waits.
pub fn run(
    folder: Option<&Path>,
    data: &DataArg,
    output: Output,
    out: &mut dyn Write,
) -> Result<ExitCode, ProgramError> {
    let place = match folder {
        Some(folder) => Place { data: folder.to_owned(), config: None },
        None => Place::of(data)?,
    };
    let survey = place.survey(false)?.ok_or_else(|| place.nothing_to_see())?;
    let bytes = survey.bytes();
    let bar = bytes_bar(bytes);
    let mut large = Vec::new();
    let note = |lane, position, record: &Record| {
        if let (Some(_), Ok(head)) = (Body::large_total(record), Head::decode(&record.head)) {
            large.push(Unread { lane, position, identity: head.identity });
        }
    };
    let found = survey.verify_each(|bytes| bar.set_position(bytes), note).map_err(internal)?;
    bar.finish_and_clear();
    let uploads = uploads_below(&place.data);
    let large_found = large.len();
    large.retain(|envelope| !is_whole(&uploads, &envelope.identity));
    let (large_lost, left) = lost_of(&place.data, large);
    let large_lost: Vec<String> = large_lost.iter().map(ToString::to_string).collect();
    let lost = found.corrupt_records + large_lost.len() as u64;
    let text = match output {
        Output::Json => crate::commands::json(&json!({
            "records": found.records,
            "bytes": bytes,
            "lost_records": lost,
            "lost": lost_as_json(&found.corrupt),
            "large": large_found,
            "large_lost": large_lost,
            "large_left": left,
            "damaged_segments": found.damaged_segments,
            "torn_bytes": found.truncated_bytes,
            "torn_records": found.truncated_records,
            "beside": place.beside(),
        })),
        Output::Table => {
            let mut text =
                format!("checked    {}, {bytes} bytes\n", human::some(found.records, "record", "records"));
            if found.truncated_bytes > 0 {
                text += &format!(
                    "torn       {} bytes at the end, never acknowledged to anybody (or being written now)\n",
                    found.truncated_bytes
                );
            }
            if found.damaged_segments > 0 {
                text += &format!(
                    "unreadable {}\n",
                    human::some(found.damaged_segments, "whole segment", "whole segments")
                );
            }
            text += &lost_as_text(&found.corrupt);
            let named: u64 = found.corrupt.iter().map(pithead_spool::CorruptRange::records).sum();
            if named < found.corrupt_records {
                text += &format!(
                    "lost       {} more, not listed\n",
                    human::some(found.corrupt_records - named, "record", "records")
                );
            }
            for identity in &large_lost {
                text += &format!("lost       the file of a large envelope\n             {identity}\n");
            }
            if left > 0 {
                text += &format!(
                    "left       {}, while this was read\n",
                    human::some(left, "large envelope", "large envelopes")
                );
            }
            text += &if lost == 0 {
                "sound\n".to_owned()
            } else {
                format!("{}\n", human::some(lost, "record is lost", "records are lost"))
            };
            if let Some(beside) = place.beside() {
                text += &format!("beside     {beside}\n");
            }
            text
        }
    };
    crate::commands::write(out, &text)?;
    Ok(if lost == 0 { ExitCode::OK } else { ExitCode::FAILED })
}

/// Whether every block of a large envelope fits its checksum.
fn is_whole(uploads: &Path, identity: &Identity) -> bool {
    let read = |mut file: SealedFile| {
        let total = file.total();
        std::io::copy(&mut file, &mut std::io::sink()).is_ok_and(|read| read == total)
    };
    SealedFile::open(uploads, identity).is_ok_and(read)
}

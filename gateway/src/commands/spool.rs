//! `spool stat | verify | export | import`: looking at what waits on disk, and carrying it away.
//!
//! `stat`, `verify` and `export` only look ([`pithead_spool::Survey`]): the gateway may be running, stopped or dead, and its
//! disk may be mounted read-only. `import` goes through a gateway's own port.

pub mod export;
pub mod import;
pub mod verify;

use std::io::Write;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use pithead_hop::ingest::upload::is_gone;
use pithead_hop::program::{ExitCode, ProgramError};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::Identity;
use pithead_spool::{CorruptRange, Lane, Position, RecordHead, Stats, Survey};
use serde_json::{Value, json};

use super::admin_client::statusz;
use crate::cli::{DataArg, Output};
use crate::clock;
use crate::config::Config;
use crate::envelopes::lanes;
use crate::envelopes::record::Head;
use crate::envelopes::spool::{EnvelopeSpool, open_error};
use crate::run::directory::uploads_below;

/// Asks the running gateway; if none runs, or a data directory is named, looks there.
///
/// # Errors
/// When there is neither.
pub fn stat(data: &DataArg, output: Output, out: &mut dyn Write) -> Result<ExitCode, ProgramError> {
    let running = match data.data_dir {
        None => statusz(&Config::load(&data.config.config)?.admin.listen).ok(),
        Some(_) => None,
    };
    let facts = match running {
        Some(status) => status["spool"].clone(),
        None => {
            let survey = survey(&data_dir(data)?)?;
            let mut stats = survey.stats();
            if data.data_dir.is_none() {
                let config = Config::load(&data.config.config)?;
                stats.capacity_bytes = config.spool.max_size.get();
                stats.available_bytes = stats.capacity_bytes.saturating_sub(stats.bytes);
            }
            let mut facts = facts_of(&stats, stats.available_bytes, clock::wall_ms());
            facts["torn_bytes"] = json!(survey.found().truncated_bytes);
            facts["damaged_segments"] = json!(survey.found().damaged_segments);
            facts
        }
    };
    let text = match output {
        Output::Json => super::json(&facts),
        Output::Table => super::table(&facts),
    };
    super::done(out, &text)
}

/// The spool's numbers, for status pages.
pub(crate) fn facts(spool: &EnvelopeSpool, now_ms: u64) -> Value {
    let mut facts = facts_of(&spool.stats(), spool.available_bytes(), now_ms);
    facts["engine"] = json!(if spool.is_replicated() { "jetstream" } else { "embedded" });
    let elsewhere = spool.elsewhere();
    facts["owner_here"] = json!(elsewhere.is_none());
    facts["standing_by"] = json!(elsewhere.map(|elsewhere| elsewhere.to_string()));
    facts
}

fn facts_of(stats: &Stats, available_bytes: u64, now_ms: u64) -> Value {
    let age = |oldest: Option<u64>| oldest.map(|oldest| now_ms.saturating_sub(oldest) / 1000);
    let mut facts = json!({
        "records": stats.records,
        "bytes": stats.bytes,
        "allocated_bytes": stats.allocated_bytes,
        "capacity_bytes": stats.capacity_bytes,
        "available_bytes": available_bytes,
        "oldest_age_s": age(stats.oldest_ms),
        "appended_records": stats.appended_records,
        "syncs": stats.syncs,
        "failed_syncs": stats.failed_syncs,
        "corrupt_records": stats.corrupt_records,
        "disk_full": stats.disk_full,
    });
    // Flat, as the rest is, so that a line of the table is a fact.
    for lane in &stats.lanes {
        let name = lanes::name(lane.lane);
        facts[format!("{name}_lane_records")] = json!(lane.records());
        facts[format!("{name}_lane_bytes")] = json!(lane.bytes);
        facts[format!("{name}_lane_oldest_age_s")] = json!(age(lane.oldest_ms));
    }
    facts
}

/// The data directory that is meant.
fn data_dir(data: &DataArg) -> Result<PathBuf, ProgramError> {
    match &data.data_dir {
        Some(folder) => Ok(folder.clone()),
        None => Ok(Config::load(&data.config.config)?.gateway.data_dir),
    }
}

fn survey(data: &Path) -> Result<Survey, ProgramError> {
    Survey::open(data.join("spool")).map_err(|error| open_error(error).affects("nothing was read"))
}

/// A large envelope that was to be read, and of which the file could not be.
#[derive(Debug)]
struct Unread {
    lane: Lane,
    position: Position,
    identity: Identity,
}

/// Those of `unread` that are lost, and how many have left: a gateway that runs removes the file of a large envelope when its
/// record has left the spool, which a survey from before that does not see. A damaged one leaves as well, and is set aside:
/// that is lost.
fn lost_of(data: &Path, mut unread: Vec<Unread>) -> (Vec<Identity>, u64) {
    if unread.is_empty() {
        return (Vec::new(), 0);
    }
    let before = unread.len();
    // What cannot be looked at again is said to be lost rather than to be elsewhere.
    if let Ok(now) = survey(data) {
        let uploads = uploads_below(data);
        let left = |envelope: &Unread| envelope.position < now.cursor(envelope.lane);
        unread.retain(|envelope| !left(envelope) || !is_gone(&uploads, &envelope.identity));
    }
    let left = (before - unread.len()) as u64;
    (unread.into_iter().map(|envelope| envelope.identity).collect(), left)
}

/// On stderr, and only if that is a terminal.
fn bytes_bar(total: u64) -> ProgressBar {
    let style = "{wide_bar} {bytes}/{total_bytes}  {bytes_per_sec}  {eta}  {msg}";
    match ProgressStyle::with_template(style) {
        Ok(style) => ProgressBar::new(total).with_style(style),
        Err(_) => ProgressBar::new(total),
    }
}

/// What was lost, for programs: `from` and `to` are both lost.
fn lost_as_json(ranges: &[CorruptRange]) -> Value {
    let range = |range: &CorruptRange| {
        json!({
            "lane": lanes::name(range.lane),
            "from": range.from.0,
            "to": range.to.0.saturating_sub(1),
            "records": range.records(),
            "identities": range.heads.iter().filter_map(identity_of).collect::<Vec<_>>(),
        })
    };
    ranges.iter().map(range).collect()
}

/// The same for people.
fn lost_as_text(ranges: &[CorruptRange]) -> String {
    let mut text = String::new();
    for range in ranges {
        let (first, last) = (range.from.0, range.to.0.saturating_sub(1));
        let positions =
            if first == last { format!("position {first}") } else { format!("positions {first} to {last}") };
        text += &format!("lost       the {} lane, {positions}\n", lanes::name(range.lane));
        let named: Vec<String> = range.heads.iter().filter_map(identity_of).collect();
        for identity in &named {
            text += &format!("             {identity}\n");
        }
        let unnamed = range.records().saturating_sub(named.len() as u64);
        if unnamed > 0 {
            text += &format!("             {unnamed} of which nothing can be read\n");
        }
    }
    text
}

fn identity_of(head: &RecordHead) -> Option<String> {
    Head::decode(&head.head).ok().map(|head| head.identity.to_string())
}

fn internal(error: impl std::fmt::Display) -> ProgramError {
    ProgramError::new(ErrorReason::Internal, error.to_string())
}

//! `spool stat | verify | export | import`: looking at what waits on disk, and carrying it away.
//!
//! `stat`, `verify` and `export` only look ([`pithead_spool::Survey`]): the gateway may be running, stopped or dead, and its
//! disk may be mounted read-only. `import` goes through a gateway's own port.
//!
//! They look at what the embedded engine keeps on this disk. Where the lanes are in JetStream, nothing here is no empty spool: it says
//! nothing of what waits, and is an error and not a zero. What the embedded engine has left from before is looked at all the same.

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
use pithead_spool::{CorruptRange, Lane, OpenError, Position, RecordHead, Stats, Survey};
use serde_json::{Value, json};

use super::admin_client::statusz;
use crate::cli::{DataArg, Output};
use crate::clock;
use crate::config::{Config, Engine};
use crate::envelopes::lanes;
use crate::envelopes::record::Head;
use crate::envelopes::spool::{EnvelopeSpool, open_error};
use crate::run::directory::uploads_below;

/// Facts of the lanes, beside those of each lane: the page of a gateway that stands by has zeros there, and knows nothing.
const OF_THE_LANES: [&str; 8] = [
    "records",
    "bytes",
    "allocated_bytes",
    "available_bytes",
    "growth_bytes_per_s",
    "full_in_s",
    "oldest_age_s",
    "disk_full",
];

/// Asks the running gateway; if none runs, or a data directory is named, looks there.
///
/// # Errors
/// When there is neither, or what lies there says nothing of what waits.
pub fn stat(data: &DataArg, output: Output, out: &mut dyn Write) -> Result<ExitCode, ProgramError> {
    let place = Place::of(data)?;
    let asked = place.config.as_ref().map(|config| statusz(&config.admin.listen));
    let facts = match asked {
        Some(Ok(status)) => known_there(status["spool"].clone()),
        not_asked => {
            let survey = match (place.survey(false)?, not_asked) {
                (Some(survey), _) => survey,
                (None, Some(Err(error))) => {
                    let what =
                        "what waits is in JetStream, and gateways that run alone know how much that is";
                    return Err(error.affects(what));
                }
                (None, _) => return Err(place.nothing_to_see()),
            };
            let mut stats = survey.stats();
            if let Some(config) = &place.config {
                stats.capacity_bytes = config.spool.max_size.get();
                stats.available_bytes = stats.capacity_bytes.saturating_sub(stats.bytes);
            }
            let mut facts = facts_of(&stats, stats.available_bytes, clock::wall_ms());
            facts["engine"] = json!("embedded");
            facts["torn_bytes"] = json!(survey.found().truncated_bytes);
            facts["damaged_segments"] = json!(survey.found().damaged_segments);
            facts["beside"] = json!(place.beside());
            facts
        }
    };
    let text = match output {
        Output::Json => super::json(&facts),
        Output::Table => super::table(&facts),
    };
    super::done(out, &text)
}

/// The facts that a running gateway knows: where it stands by, nothing of the lanes.
fn known_there(mut facts: Value) -> Value {
    if facts["owner_here"] == false
        && let Some(facts) = facts.as_object_mut()
    {
        for (name, fact) in facts {
            if name.contains("_lane_") || OF_THE_LANES.contains(&name.as_str()) {
                *fact = Value::Null;
            }
        }
    }
    facts
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

/// What is looked at.
#[derive(Debug)]
struct Place {
    /// The data directory.
    data: PathBuf,
    /// Its gateway's; none where a folder was named, which may be anybody's.
    config: Option<Config>,
}

impl Place {
    fn of(data: &DataArg) -> Result<Self, ProgramError> {
        if let Some(folder) = &data.data_dir {
            return Ok(Self { data: folder.clone(), config: None });
        }
        let config = Config::load(&data.config.config)?;
        Ok(Self { data: config.gateway.data_dir.clone(), config: Some(config) })
    }

    /// Whether its gateway keeps what waits in JetStream.
    fn is_in_jetstream(&self) -> bool {
        self.config.as_ref().is_some_and(|config| config.spool.engine == Engine::Jetstream)
    }

    /// The spool of the embedded engine that lies here. None where nothing of one does, and what waits may be elsewhere. With `all`
    /// what was delivered and is still there counts as well.
    fn survey(&self, all: bool) -> Result<Option<Survey>, ProgramError> {
        let survey = match Survey::open(self.data.join("spool")) {
            Err(OpenError::Missing { .. }) if self.is_in_jetstream() => return Ok(None),
            opened => opened.map_err(|error| open_error(error).affects("nothing was read"))?,
        };
        let is_something = match &self.config {
            Some(_) if self.is_in_jetstream() => {
                let is_left = |lane| first_of(&survey, lane, all) < survey.end(lane);
                survey.found().damaged_segments > 0 || lanes_of(&survey).any(is_left)
            }
            Some(_) => true,
            // A gateway with either engine makes the folder; the lanes in it are made by the embedded one.
            None => survey.lanes() > 0,
        };
        Ok(is_something.then_some(survey))
    }

    /// That nothing lies here says nothing of what waits.
    fn nothing_to_see(&self) -> ProgramError {
        let folder = self.data.join("spool");
        let what = if self.config.is_some() {
            format!("what waits is in JetStream, and nothing of it in {}", folder.display())
        } else {
            format!(
                "no gateway has kept what waits in {}: with [spool] engine = \"jetstream\" it is in JetStream",
                folder.display()
            )
        };
        ProgramError::new(ErrorReason::RequestInvalid, what)
            .affects("nothing was read, and nothing is known of what waits")
            .todo(
                "see `pithead-gateway status` for the gateway that takes the envelopes, and `spool stat` there for how many wait: its relay \
                 takes them out, and no command does (`nats stream backup` is for the servers). What was refused: \
                 `spool export --only-refused`",
            )
            .exit(ExitCode::USAGE)
    }

    /// What a result does not speak of, where there is anything.
    fn beside(&self) -> Option<&'static str> {
        self.is_in_jetstream()
            .then_some("what waits in JetStream is not in this: it is what lies on this disk")
    }
}

fn lanes_of(survey: &Survey) -> impl Iterator<Item = Lane> {
    Lane::ALL.into_iter().take(survey.lanes())
}

/// Where to begin with a lane.
fn first_of(survey: &Survey, lane: Lane, all: bool) -> Position {
    if all { survey.start(lane) } else { survey.cursor(lane) }
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
    if let Ok(now) = Survey::open(data.join("spool")) {
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

#[cfg(test)]
mod tests;

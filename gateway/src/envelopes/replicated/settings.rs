//! What JetStream has to be set to, so that an acknowledgement means what it says; and what is refused at a start because it would
//! not.
//!
//! Streams are made as they have to be where they are missing, and never altered where they are there: whoever set them otherwise
//! may have had a reason, and is told which setting it is.

use async_nats::jetstream::stream::{
    Config, DiscardPolicy, Info, PersistenceMode, RetentionPolicy, StorageType,
};
use pithead_hop::program::{ProgramError, ask};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::Site;
use pithead_spool::{Lane, MAX_HEAD_BYTES};

use super::group::{ENTRY_BYTES, HEAD_BYTES};
use super::{GROUP_BYTES, HEADERS_BYTES};
use crate::envelopes::lanes;

/// What a lane that the configuration puts nothing into is given of the budget: strays go on there.
const UNUSED_LANE_PART: u64 = 16;
/// The state holds a checkpoint and the next one. The largest is that of as many lines as are kept in memory, all with their hashes:
/// 270 MiB.
const STATE_BYTES: u64 = 1 << 30;
/// What is known of a refused envelope stands beside its bytes: a message of 1 KiB more. So a part of the area's bound comes on top.
const REFUSED_PART: u64 = 4;
/// And this, so that one that is bounded to little takes something all the same.
const REFUSED_LEAST: u64 = 1 << 20;

/// The names of a site's streams and subjects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Streams {
    prefix: String,
}

impl Streams {
    /// Below a prefix that is configured, or that of the site.
    pub(crate) fn new(prefix: Option<&str>, site: &Site) -> Self {
        let prefix = prefix.map_or_else(|| format!("pithead-{site}"), str::to_owned);
        // A point would begin another token.
        Self { prefix: prefix.replace('.', "_") }
    }

    pub(super) fn lane(&self, lane: Lane) -> String {
        format!("{}-{}", self.prefix, lanes::name(lane))
    }

    pub(super) fn state(&self) -> String {
        format!("{}-state", self.prefix)
    }

    pub(super) fn lane_subject(&self, lane: Lane) -> String {
        format!("{}.lane.{}", self.prefix, lanes::name(lane))
    }

    pub(super) fn state_subject(&self, key: &str) -> String {
        format!("{}.state.{key}", self.prefix)
    }

    pub(super) fn refused(&self) -> String {
        format!("{}-refused", self.prefix)
    }

    /// Of an entry's name. A point would begin another token, and an empty one is none.
    pub(super) fn refused_subject(&self, name: &str) -> String {
        format!("{}.refused.{}", self.prefix, name.replace('.', "="))
    }

    /// The entry's name of a subject: none has a `=` of its own.
    pub(super) fn refused_name(&self, subject: &str) -> String {
        let own = subject.strip_prefix(&self.refused_subject("")).unwrap_or(subject);
        own.replace('=', ".")
    }

    /// The lanes in their order, the state and the refused area.
    pub(super) fn all(&self) -> Vec<String> {
        Lane::ALL.into_iter().map(|lane| self.lane(lane)).chain([self.state(), self.refused()]).collect()
    }
}

/// What a site's streams have to be.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) streams: Streams,
    pub(crate) replicas: usize,
    /// The budget of all lanes.
    pub(crate) capacity: u64,
    /// Which lanes the configuration puts anything into.
    pub(crate) in_use: [bool; Lane::ALL.len()],
    /// The largest envelope.
    pub(crate) envelope_bytes: u64,
    /// What the refused area may take of envelopes.
    pub(crate) refused_bytes: u64,
}

impl Wanted {
    /// The largest message that has to fit: one envelope with everything that is known of it.
    fn message_bytes(&self) -> u64 {
        self.envelope_bytes + (MAX_HEAD_BYTES + ENTRY_BYTES + HEAD_BYTES + HEADERS_BYTES) as u64
    }

    /// The largest that the stream of the refused area gets.
    fn refused_max_bytes(&self) -> u64 {
        self.refused_bytes + self.refused_bytes / REFUSED_PART + REFUSED_LEAST
    }

    /// How a stream is made.
    pub(super) fn config(&self, name: &str) -> Config {
        let lane = Lane::ALL.into_iter().find(|lane| self.streams.lane(*lane) == name);
        let (subject, max_bytes) = match lane {
            Some(lane) if self.in_use[lane.index()] => (self.streams.lane_subject(lane), self.capacity),
            Some(lane) => (self.streams.lane_subject(lane), self.capacity / UNUSED_LANE_PART),
            None if self.streams.refused() == name => {
                (self.streams.refused_subject(">"), self.refused_max_bytes())
            }
            None => (self.streams.state_subject(">"), STATE_BYTES),
        };
        Config {
            name: name.to_owned(),
            description: Some("made by pithead-gateway".to_owned()),
            subjects: vec![subject],
            max_bytes: i64::try_from(max_bytes).unwrap_or(i64::MAX),
            // The state's values and the entries of the refused area are replaced; a lane keeps everything.
            max_messages_per_subject: if lane.is_some() { -1 } else { 1 },
            max_messages: -1,
            discard: DiscardPolicy::New,
            retention: RetentionPolicy::Limits,
            storage: StorageType::File,
            num_replicas: self.replicas,
            allow_direct: lane.is_some(),
            ..Config::default()
        }
    }
}

/// What is wrong with a stream, and how to put it right.
fn faults(wanted: &Wanted, config: &Config) -> Vec<String> {
    let is_lane = Lane::ALL.into_iter().any(|lane| wanted.streams.lane(lane) == config.name);
    let mut faults = Vec::new();
    let mut fault = |wrong: bool, words: String| {
        if wrong {
            faults.push(words);
        }
    };
    let replicas = config.num_replicas;
    fault(
        replicas < wanted.replicas,
        format!(
            "num_replicas is {replicas}: raise it to {}, or lower [spool.jetstream] replicas",
            wanted.replicas
        ),
    );
    fault(config.storage == StorageType::Memory, "storage is memory: make it anew with file".to_owned());
    fault(
        config.persist_mode == Some(PersistenceMode::Async),
        "persist_mode is async, which acknowledges before it stores: set it to default".to_owned(),
    );
    fault(
        config.discard == DiscardPolicy::Old,
        "discard is old, which drops what was acknowledged when it is full: set it to new".to_owned(),
    );
    let (most, needed) = (config.max_bytes, wanted.config(&config.name).max_bytes);
    fault(
        most > 0 && most < needed,
        format!(
            "max_bytes is {most}: raise it to {needed} (--max-bytes), or lower [spool] max_size if it is a lane's, [relay] refused_size \
             if it is that of the refused area"
        ),
    );
    fault(
        config.retention != RetentionPolicy::Limits,
        "retention is not limits, so that whoever consumes it would remove envelopes: make it anew"
            .to_owned(),
    );
    let age = config.max_age.as_secs_f64();
    fault(age > 0.0, format!("max_age is {age} s, which drops what was acknowledged: set it to 0"));
    fault(
        config.max_messages > 0,
        format!("max_msgs is {}: set it to -1; max_bytes is the bound", config.max_messages),
    );
    let each = config.max_messages_per_subject;
    fault(is_lane && each > 0, format!("max_msgs_per_subject is {each}: set it to -1"));
    fault(!is_lane && each != 1, format!("max_msgs_per_subject is {each}: set it to 1"));
    let (largest, needed) = (config.max_message_size, wanted.message_bytes());
    fault(
        largest > 0 && (largest as u64) < needed,
        format!("max_msg_size is {largest}: set it to -1, or to {needed} at least"),
    );
    fault(config.mirror.is_some(), "it is a mirror: make it anew".to_owned());
    fault(
        config.sources.as_ref().is_some_and(|sources| !sources.is_empty()),
        "it has sources, so that others append to it: remove them".to_owned(),
    );
    fault(config.no_ack, "no_ack is set, so that nothing is answered: unset it".to_owned());
    fault(config.sealed, "it is sealed: make it anew".to_owned());
    fault(
        config.deny_purge,
        "deny_purge is set, so that nothing would ever be given back: make it anew".to_owned(),
    );
    fault(
        config.deny_delete && wanted.streams.refused() == config.name,
        "deny_delete is set, so that nothing would ever be let go: make it anew".to_owned(),
    );
    let subject = wanted.config(&config.name).subjects;
    fault(
        config.subjects != subject,
        format!("its subjects are {}, and have to be {}", config.subjects.join(", "), subject.join(", ")),
    );
    faults
}

/// Refuses what would make an acknowledgement a lie.
///
/// # Errors
/// All that is wrong, each with its setting.
pub(super) fn check<'a>(
    wanted: &Wanted,
    infos: impl Iterator<Item = &'a Info>,
    max_payload: usize,
) -> Result<(), ProgramError> {
    check_configs(wanted, infos.map(|info| &info.config), max_payload)
}

fn check_configs<'a>(
    wanted: &Wanted,
    configs: impl Iterator<Item = &'a Config>,
    max_payload: usize,
) -> Result<(), ProgramError> {
    let mut wrong: Vec<String> = configs
        .flat_map(|config| {
            faults(wanted, config).into_iter().map(|words| format!("stream {}: {words}", config.name))
        })
        .collect();
    let needed = wanted.message_bytes();
    if (max_payload as u64) < needed {
        wrong.push(format!(
            "nats-server's max_payload is {max_payload}: raise it to {needed} at least (4MB is a good value), or lower \
             [ingest.envelopes] inline"
        ));
    }
    let most = wanted.envelope_bytes.saturating_sub(needed.saturating_sub(GROUP_BYTES as u64));
    if needed > GROUP_BYTES as u64 {
        wrong.push(format!(
            "[ingest.envelopes] inline is {}: lower it to {most} at most, or an envelope of that size would never be taken",
            wanted.envelope_bytes
        ));
    }
    refuse(wrong)
}

fn refuse(wrong: Vec<String>) -> Result<(), ProgramError> {
    if wrong.is_empty() {
        return Ok(());
    }
    Err(ProgramError::new(ErrorReason::SpoolUnsafe, wrong.join("; "))
        .affects("an acknowledgement would promise more than JetStream keeps, so no envelope is taken")
        .todo("change these settings; `nats stream edit NAME` changes those of a stream"))
}

/// How a server syncs, as far as it could be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sync {
    /// With every message, before it answers.
    Always,
    /// Now and then.
    Interval(String),
    /// Its monitoring port did not say.
    Unseen(String),
}

/// Asks a server's monitoring port how it syncs. Blocks.
pub(crate) fn sync_of(monitor: &str) -> Sync {
    let answer = match ask::get(monitor, "/jsz") {
        Ok(answer) if answer.status == 200 => answer,
        Ok(answer) => return Sync::Unseen(format!("{monitor}/jsz answers {}", answer.status)),
        Err(error) => return Sync::Unseen(format!("{monitor}: {error}")),
    };
    sync_in(&answer.body).unwrap_or_else(|| Sync::Unseen(format!("{monitor}/jsz does not say how it syncs")))
}

fn sync_in(page: &str) -> Option<Sync> {
    let page: serde_json::Value = serde_json::from_str(page).ok()?;
    let config = page.get("config")?;
    if config.get("sync_always").and_then(serde_json::Value::as_bool) == Some(true) {
        return Some(Sync::Always);
    }
    let every = config.get("sync_interval").and_then(serde_json::Value::as_u64)?;
    Some(Sync::Interval(format!("{} s", every / 1_000_000_000)))
}

/// Refuses servers that acknowledge before they sync, and says of which it could not be seen. Blocks.
///
/// # Errors
/// Those that sync now and then.
pub(crate) fn check_syncs(monitors: &[String]) -> Result<(), ProgramError> {
    let mut wrong = Vec::new();
    for monitor in monitors {
        match sync_of(monitor) {
            Sync::Always => {}
            Sync::Interval(every) => wrong.push(format!(
                "nats-server at {monitor} syncs every {every} and acknowledges before: set jetstream {{ sync_interval: always }}"
            )),
            Sync::Unseen(why) => tracing::warn!(event = "spool.sync_unseen", why),
        }
    }
    if monitors.is_empty() {
        tracing::warn!(
            event = "spool.sync_unseen",
            why = "[spool.jetstream] names no monitor",
            "whether nats-server syncs before it acknowledges cannot be seen from here"
        );
    }
    refuse(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_nats::jetstream::stream::Source;
    use std::time::Duration;

    fn wanted() -> Wanted {
        Wanted {
            streams: Streams::new(None, &Site::new("pit-7").unwrap()),
            replicas: 3,
            capacity: 8 << 30,
            in_use: [false, true, false],
            envelope_bytes: 1 << 20,
            refused_bytes: 1 << 30,
        }
    }

    #[test]
    fn the_streams_of_a_site_are_called_after_it_and_made_so_that_they_are_taken() {
        let wanted = wanted();
        assert_eq!(
            wanted.streams.all(),
            [
                "pithead-pit-7-first",
                "pithead-pit-7-second",
                "pithead-pit-7-third",
                "pithead-pit-7-state",
                "pithead-pit-7-refused",
            ]
        );
        let configs: Vec<Config> = wanted.streams.all().iter().map(|name| wanted.config(name)).collect();
        check_configs(&wanted, configs.iter(), 4 << 20).unwrap();
        assert_eq!(configs[1].max_bytes, 8 << 30);
        assert_eq!(configs[4].max_bytes, (1 << 30) + (256 << 20) + (1 << 20));
        assert_eq!(
            Streams::new(Some("a.b"), &Site::new("pit-7").unwrap()).lane_subject(Lane::Third),
            "a_b.lane.third"
        );
        // A name with points, one of them at the end of its part, is one token.
        let name = "truck.42.~can~0000000000000007~1~0101010101010101";
        let subject = wanted.streams.refused_subject(name);
        assert_eq!(subject, "pithead-pit-7.refused.truck=42=~can~0000000000000007~1~0101010101010101");
        assert_eq!(wanted.streams.refused_name(&subject), name);
    }

    #[test]
    fn every_setting_that_would_make_an_acknowledgement_a_lie_is_refused_by_its_name() {
        let wanted = wanted();
        let name = wanted.streams.lane(Lane::Second);
        type Change = fn(&mut Config);
        let changes: [(&str, Change); 16] = [
            ("max_bytes is 536870912", |config| config.max_bytes = 512 << 20),
            ("num_replicas is 1", |config| config.num_replicas = 1),
            ("storage is memory", |config| config.storage = StorageType::Memory),
            ("persist_mode is async", |config| config.persist_mode = Some(PersistenceMode::Async)),
            ("discard is old", |config| config.discard = DiscardPolicy::Old),
            ("retention is not limits", |config| config.retention = RetentionPolicy::WorkQueue),
            ("max_age is 60 s", |config| config.max_age = Duration::from_secs(60)),
            ("max_msgs is 5", |config| config.max_messages = 5),
            ("max_msgs_per_subject is 2", |config| config.max_messages_per_subject = 2),
            ("max_msg_size is 1000", |config| config.max_message_size = 1_000),
            ("it is a mirror", |config| config.mirror = Some(Source::default())),
            ("it has sources", |config| config.sources = Some(vec![Source::default()])),
            ("no_ack is set", |config| config.no_ack = true),
            ("it is sealed", |config| config.sealed = true),
            ("deny_purge is set", |config| config.deny_purge = true),
            ("its subjects are other", |config| config.subjects = vec!["other".to_owned()]),
        ];
        for (words, change) in changes {
            let mut config = wanted.config(&name);
            change(&mut config);
            let error = check_configs(&wanted, [&config].into_iter(), 4 << 20).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains(&name), "{error}");
        }
        let error = check_configs(&wanted, [].into_iter(), 1 << 20).unwrap_err().to_string();
        assert!(error.contains("max_payload is 1048576"), "{error}");
        let mut state = wanted.config(&wanted.streams.state());
        state.max_messages_per_subject = 10;
        (state.discard, state.max_bytes) = (DiscardPolicy::Old, 1 << 20);
        let error = check_configs(&wanted, [&state].into_iter(), 4 << 20).unwrap_err().to_string();
        for part in ["set it to 1", "discard is old", "max_bytes is 1048576"] {
            assert!(error.contains(part), "{error}");
        }
        let mut refused = wanted.config(&wanted.streams.refused());
        (refused.max_bytes, refused.deny_delete, refused.max_messages_per_subject) = (1 << 30, true, -1);
        let error = check_configs(&wanted, [&refused].into_iter(), 4 << 20).unwrap_err().to_string();
        for part in ["raise it to 1343225856", "[relay] refused_size", "deny_delete is set", "set it to 1"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        let large = Wanted { envelope_bytes: 4 << 20, ..wanted };
        let error = check_configs(&large, [].into_iter(), 8 << 20).unwrap_err().to_string();
        assert!(error.contains("[ingest.envelopes] inline is 4194304"), "{error}");
    }

    #[test]
    fn how_a_server_syncs_is_read_off_its_page() {
        // As nats-server 2.15.1 says it.
        let page =
            r#"{"config":{"max_memory":1,"sync_interval":120000000000,"sync_always":true,"strict":true}}"#;
        assert_eq!(sync_in(page), Some(Sync::Always));
        let page = r#"{"config":{"sync_interval":120000000000}}"#;
        assert_eq!(sync_in(page), Some(Sync::Interval("120 s".to_owned())));
        assert_eq!(sync_in("{}"), None);
        assert!(matches!(sync_of("127.0.0.1:1"), Sync::Unseen(_)));
    }
}

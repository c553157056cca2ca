//! Who else is at the site: each gateway says every few seconds how it is, in one value that all of them write by comparing.
//!
//! ```text
//! gateways   {"v":1,"gateways":{"edge-1":{"run":"00c0ffee00c0ffee","beat":31,"address":"10.1.0.5:7443",...},"edge-2":{...}}}
//! ```
//!
//! It is for people, and for finding out that two gateways serve different truths; who takes envelopes is decided by the owner's record
//! alone. Whether a gateway is there is told by its beat going on, by the clock of whoever looks: nobody's time of day counts.
//!
//! Whoever may write to the streams can write anything here. So names and words are bounded when they are read, and shown as text.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pithead_hop::backoff::random;
use serde::{Deserialize, Serialize};

use super::broker::Fault;
use super::cell::{self, Pause, hexadecimal};
use super::{Replicated, Shared};

/// Where the value stands.
const GATEWAYS: &str = "gateways";
/// Of the value. Fields are added, never changed; a value of another version is left alone.
const VERSION: u32 = 1;
/// Gateways of a site, as many as are written down: a site has a handful.
const GATEWAYS_MAX: usize = 32;
/// Characters of a name, an address or a sentence.
const TEXT_MAX: usize = 256;
/// After so many beats without one it counts as away.
const MISSED: u32 = 4;
/// A gateway that was silent for so long, while somebody looked, is not a gateway of the site any more.
const FORGOTTEN: Duration = Duration::from_secs(24 * 3600);
/// Attempts of one beat against the beats of the others.
const TRIES: u32 = 8;
/// What leaving may take: it is a courtesy.
const LEAVING: Duration = Duration::from_secs(2);

/// The statement that a gateway serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// Of the statement.
    pub epoch: u64,
    /// See `epoch`.
    pub sequence: u64,
    /// SHA-256 of its payload, in hexadecimal digits.
    pub digest: String,
}

/// What a gateway says of itself to the others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    /// Of the program.
    pub version: String,
    /// Whether devices can be sent there.
    pub ready: bool,
    /// How it is, in a sentence.
    pub words: String,
    /// Connections of devices.
    pub connections: u64,
    /// What it serves, if anything.
    pub statement: Option<Served>,
}

/// A gateway of the site, as it was seen from here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// What it is called.
    pub name: String,
    /// Where devices reach it, if it says so.
    pub address: Option<String>,
    /// What it said last.
    pub presence: Presence,
    /// It is this one.
    pub is_here: bool,
    /// It was heard of lately.
    pub is_present: bool,
    /// For how long nothing new was heard of it, as of the last time that anything could be read.
    pub silent_for: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// Drawn at each start.
    #[serde(with = "hexadecimal")]
    run: u64,
    beat: u64,
    address: Option<String>,
    #[serde(flatten)]
    presence: Presence,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Roster {
    v: u32,
    gateways: BTreeMap<String, Entry>,
}

impl Default for Roster {
    fn default() -> Self {
        Self { v: VERSION, gateways: BTreeMap::new() }
    }
}

/// What this gateway knows of the others.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// What it says of itself; nothing before it was told.
    told: Option<Presence>,
    gateways: BTreeMap<String, (Entry, Instant)>,
    /// When the roster was read last.
    read: Option<Instant>,
}

impl Seen {
    /// Takes in what was read. Gives whether another gateway goes by the name of this one: its beat went on under it.
    fn take(&mut self, roster: &Roster, me: &str, run: u64, now: Instant) -> bool {
        let mut namesake = false;
        self.gateways.retain(|name, _| roster.gateways.contains_key(name));
        for (name, entry) in &roster.gateways {
            let before = self.gateways.get(name);
            let is_same = |held: &Entry| (held.run, held.beat) == (entry.run, entry.beat);
            if before.is_none_or(|(held, _)| !is_same(held)) {
                namesake |= name == me
                    && entry.run != run
                    && before.is_some_and(|(held, _)| held.run == run || held.beat < entry.beat);
                self.gateways.insert(name.clone(), (entry.clone(), now));
            }
        }
        self.read = Some(now);
        namesake
    }

    /// The longest silent first, of those that are not this one.
    fn silent(&self, me: &str) -> Vec<(Instant, &str)> {
        let mut silent: Vec<_> = self
            .gateways
            .iter()
            .filter(|(name, _)| *name != me)
            .map(|(name, (_, since))| (*since, name.as_str()))
            .collect();
        silent.sort_unstable();
        silent
    }
}

fn cut(text: &str) -> String {
    text.chars().take(TEXT_MAX).collect()
}

/// What stands there; none if it is of another version, which is not ours to replace.
fn decode(bytes: &[u8]) -> Option<Roster> {
    if cell::version_of(bytes).is_ok_and(|version| version != VERSION) {
        return None;
    }
    let Ok(mut roster) = serde_json::from_slice::<Roster>(bytes) else {
        tracing::error!(event = "spool.state_damaged", of = GATEWAYS);
        return Some(Roster::default());
    };
    roster.gateways.retain(|name, _| name.chars().count() <= TEXT_MAX);
    while roster.gateways.len() > GATEWAYS_MAX {
        roster.gateways.pop_last();
    }
    for entry in roster.gateways.values_mut() {
        entry.address = entry.address.as_deref().map(cut);
        let presence = &mut entry.presence;
        (presence.version, presence.words) = (cut(&presence.version), cut(&presence.words));
        if let Some(statement) = &mut presence.statement {
            statement.digest = cut(&statement.digest);
        }
    }
    Some(roster)
}

/// Says how this gateway is and reads how the others are, until the engine is closed; then takes leave.
pub(super) async fn run(shared: Arc<Shared>) {
    let (run, mut beat) = (random(), 0);
    while !shared.closing.is_cancelled() {
        beat += 1;
        // What is not said now is said with the next beat.
        if let Err(fault) = turn(&shared, run, Some(beat)).await {
            tracing::debug!(event = "spool.state_again", of = GATEWAYS, %fault);
        }
        tokio::select! {
            () = tokio::time::sleep(shared.bounds.roster) => {}
            () = shared.closing.cancelled() => {}
        }
    }
    let _ = tokio::time::timeout(LEAVING, turn(&shared, run, None)).await;
}

/// One beat, or the leave.
async fn turn(shared: &Shared, run: u64, beat: Option<u64>) -> Result<(), Fault> {
    let me = &shared.me.name;
    let mut pause = Pause::default();
    for _ in 0..TRIES {
        let held = shared.broker.get(GATEWAYS).await?;
        let revision = held.as_ref().map_or(0, |held| held.revision);
        let Some(mut roster) = held.map_or_else(|| Some(Roster::default()), |held| decode(&held.bytes))
        else {
            return Ok(());
        };
        let told = {
            let mut seen = shared.seen();
            let now = Instant::now();
            if seen.take(&roster, me, run, now) {
                tracing::error!(
                    event = "spool.same_name",
                    name = me,
                    "another gateway of the site goes by the name of this one"
                );
            }
            let silent = seen.silent(me);
            let others = GATEWAYS_MAX - 1;
            for (at, (since, name)) in silent.iter().enumerate() {
                if now.duration_since(*since) >= FORGOTTEN || silent.len() - at > others {
                    roster.gateways.remove(*name);
                }
            }
            seen.told.clone()
        };
        let entry = beat.zip(told);
        match entry {
            Some((beat, presence)) => {
                let address = shared.me.address.clone();
                roster.gateways.insert(me.clone(), Entry { run, beat, address, presence });
            }
            // Only what is ours is taken away.
            None if roster.gateways.get(me).is_some_and(|entry| entry.run == run) => {
                roster.gateways.remove(me);
            }
            None => return Ok(()),
        }
        // Of plain values; there is nothing in them that could not be written.
        let bytes = serde_json::to_vec(&roster).unwrap_or_default();
        match shared.broker.put(GATEWAYS, revision, bytes.into()).await {
            Ok(_) => {
                shared.seen().take(&roster, me, run, Instant::now());
                return Ok(());
            }
            Err(Fault::Mismatch) => pause.wait().await,
            Err(fault) => return Err(fault),
        }
    }
    Ok(())
}

impl Shared {
    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Replicated {
    /// What the others are told of this gateway from the next beat on.
    pub(crate) fn tell(&self, presence: Presence) {
        let words = cut(&presence.words);
        self.0.seen().told = Some(Presence { words, ..presence });
    }

    /// The gateways of the site, this one among them, by name.
    pub(crate) fn neighbours(&self) -> Vec<Neighbour> {
        let seen = self.0.seen();
        let Some(read) = seen.read else { return Vec::new() };
        let missed = self.0.bounds.roster * MISSED;
        let neighbours = seen.gateways.iter().map(|(name, (entry, since))| {
            let silent_for = read.saturating_duration_since(*since);
            Neighbour {
                name: name.clone(),
                address: entry.address.clone(),
                presence: entry.presence.clone(),
                is_here: *name == self.0.me.name,
                is_present: silent_for < missed,
                silent_for,
            }
        });
        neighbours.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(run: u64, beat: u64) -> Entry {
        let statement = Some(Served { epoch: 1, sequence: 3, digest: "ab".repeat(32) });
        let presence = Presence {
            version: "0.1.0".into(),
            ready: true,
            words: "ready".into(),
            connections: 7,
            statement,
        };
        Entry { run, beat, address: Some("10.1.0.5:7443".into()), presence }
    }

    fn roster(entries: &[(&str, u64, u64)]) -> Roster {
        let gateways = entries.iter().map(|(name, run, beat)| ((*name).to_owned(), entry(*run, *beat)));
        Roster { gateways: gateways.collect(), ..Roster::default() }
    }

    #[test]
    fn the_value_is_fixed_and_reads_back() {
        let one = roster(&[("edge-1", 0xc0_ffee, 31)]);
        let bytes = serde_json::to_vec(&one).unwrap();
        let expected = format!(
            r#"{{"v":1,"gateways":{{"edge-1":{{"run":"0000000000c0ffee","beat":31,"address":"10.1.0.5:7443","version":"0.1.0","ready":true,"words":"ready","connections":7,"statement":{{"epoch":1,"sequence":3,"digest":"{}"}}}}}}}}"#,
            "ab".repeat(32)
        );
        assert_eq!(std::str::from_utf8(&bytes).unwrap(), expected);
        assert_eq!(decode(&bytes), Some(one));
    }

    #[test]
    fn what_a_stranger_wrote_is_bounded_and_what_a_newer_version_wrote_is_left_alone() {
        let mut many = Roster::default();
        for at in 0..100 {
            let mut entry = entry(at, 1);
            entry.presence.words = "x".repeat(10_000);
            entry.address = Some("y".repeat(10_000));
            many.gateways.insert(format!("edge-{at:03}"), entry);
        }
        many.gateways.insert("z".repeat(300), entry(1, 1));
        let read = decode(&serde_json::to_vec(&many).unwrap()).unwrap();
        assert_eq!(read.gateways.len(), GATEWAYS_MAX);
        for (name, entry) in read.gateways {
            assert!(name.len() < 10 && entry.presence.words.len() == TEXT_MAX);
            assert_eq!(entry.address.unwrap().len(), TEXT_MAX);
        }
        assert_eq!(decode(br#"{"v":2,"sites":[]}"#), None);
        assert_eq!(decode(b"{").unwrap(), Roster::default(), "damage is written over");
        assert_eq!(decode(br#"{"v":1,"gateways":7}"#).unwrap(), Roster::default());
    }

    #[test]
    fn a_beat_that_goes_on_under_our_name_is_a_namesakes_and_what_a_restart_has_left_is_not() {
        let mut seen = Seen::default();
        let now = Instant::now();
        assert!(!seen.take(&roster(&[("edge-1", 5, 90)]), "edge-1", 7, now), "the run before this one");
        assert!(!seen.take(&roster(&[("edge-1", 7, 1)]), "edge-1", 7, now));
        assert!(!seen.take(&roster(&[("edge-1", 7, 2), ("edge-2", 9, 1)]), "edge-1", 7, now));
        assert!(seen.take(&roster(&[("edge-1", 5, 91)]), "edge-1", 7, now), "it has written over ours");
    }

    #[test]
    fn the_longest_silent_come_first_and_one_that_was_taken_out_is_forgotten() {
        let (mut seen, now) = (Seen::default(), Instant::now());
        let later = now + Duration::from_secs(9);
        seen.take(&roster(&[("edge-1", 1, 1), ("edge-2", 2, 1), ("edge-3", 3, 1)]), "edge-1", 1, now);
        seen.take(&roster(&[("edge-1", 1, 2), ("edge-2", 2, 2), ("edge-3", 3, 1)]), "edge-1", 1, later);
        assert_eq!(seen.silent("edge-1"), [(now, "edge-3"), (later, "edge-2")]);
        seen.take(&roster(&[("edge-1", 1, 3)]), "edge-1", 1, later);
        assert!(seen.silent("edge-1").is_empty());
    }
}

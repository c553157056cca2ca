//! What the numbers mean, in sentences; and how numbers are said.
//!
//! Pure: facts in, words out. The most urgent sentence comes first. A link that is down is calm news as long as there is room
//! for what comes: the sentence says how much waits, since when, and how long the disk will last.

use std::time::Duration;

use pithead_hop::program::human::count;

use crate::health::Level;

/// Below this a disk that fills is something to look at.
const SOON: Duration = Duration::from_secs(24 * 3600);
/// Below this it is something to do now.
const VERY_SOON: Duration = Duration::from_secs(2 * 3600);
/// An oldest record above this age means that something had piled up.
const PILED_UP: Duration = Duration::from_secs(60);
/// A statement that ends within this is worth a word.
const ENDS_SOON: Duration = Duration::from_secs(14 * 86_400);

/// How much a sentence asks of its reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Nothing.
    Calm,
    /// A look, today.
    Look,
    /// To do something, now.
    Act,
}

impl Urgency {
    /// The word beside the sentence.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Calm => "Nothing to do",
            Self::Look => "Have a look",
            Self::Act => "Act now",
        }
    }
}

/// What is the matter with the relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Relay {
    /// There is none: envelopes are carried away by hand.
    Absent,
    /// The far end takes envelopes.
    Up,
    /// The far end was not reached since the start.
    NotYet,
    /// The link is down.
    Down,
    /// The far end is there and does not take envelopes; the code says why.
    TurnedAway(String),
    /// Somebody has said that it shall stand still.
    PausedByHand,
    /// It stands still because so many of so many were refused.
    PausedByRefusals(u64, u64),
    /// It stands still because something else lies in the store under the name of one of its bundles.
    PausedByForeignBundle,
    /// It stands still because what was refused has no room any more.
    RefusedAreaFull,
}

/// What is the matter with the keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keys {
    /// A statement is in force, and young. It ends in so long, if this machine's clock is right.
    InForce(Duration),
    /// In force, and something else is wrong, which the lamp says.
    Troubled(String),
    /// Nobody has made a newer one for long. It ends in so long.
    Stale(Duration),
    /// Nothing may be sealed to.
    Ended,
    /// There was never one.
    Never,
}

/// What is the matter with the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// There is room.
    Room,
    /// So many percent are left.
    Low(u64),
    /// There is none.
    Full,
    /// It has failed.
    Failed,
}

/// The facts that sentences are made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Situation {
    /// It is stopping.
    pub draining: bool,
    /// What the ingest lamp says, if that is not green.
    pub ingest: Option<(Level, String)>,
    /// The keys.
    pub keys: Keys,
    /// The relay, and since when it is so.
    pub relay: Relay,
    /// How long it has been so.
    pub relay_for: Duration,
    /// The disk.
    pub disk: Disk,
    /// Envelopes that wait.
    pub waiting: u64,
    /// Bytes that they take.
    pub waiting_bytes: u64,
    /// How long the oldest of them has waited.
    pub oldest: Option<Duration>,
    /// When the disk is full at the present growth, if it grows.
    pub full_in: Option<Duration>,
    /// Bytes that there is room for.
    pub room_bytes: u64,
    /// Envelopes a second that go out, less those that come in.
    pub shrinks_per_s: f64,
}

/// Sentences, the most urgent first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meaning {
    /// Of the first.
    pub urgency: Urgency,
    /// What this means.
    pub sentence: String,
    /// What else there is to say.
    pub besides: Vec<String>,
}

/// What the facts mean.
#[must_use]
pub fn meaning(now: &Situation) -> Meaning {
    let parts = [about_draining(now), about_disk(now), about_ingest(now), about_keys(now), about_relay(now)];
    let mut said: Vec<(Urgency, String)> = parts.into_iter().flatten().collect();
    // Stable: of two that are as urgent, what stands further up comes first.
    said.sort_by_key(|(urgency, _)| std::cmp::Reverse(*urgency));
    let mut said = said.into_iter();
    let (urgency, sentence) = said.next().unwrap_or_else(|| (Urgency::Calm, all_is_well(now)));
    Meaning { urgency, sentence, besides: said.map(|(_, sentence)| sentence).collect() }
}

fn about_draining(now: &Situation) -> Option<(Urgency, String)> {
    let words = "This gateway is stopping: devices are sent away and keep their own data, and everything that was acknowledged is on \
                 its disk.";
    now.draining.then(|| (Urgency::Look, words.to_owned()))
}

fn about_disk(now: &Situation) -> Option<(Urgency, String)> {
    match now.disk {
        Disk::Failed => Some((
            Urgency::Act,
            "The disk has failed: nothing is taken that could not be kept, devices keep their own data; mend the disk, then restart \
             the gateway."
                .to_owned(),
        )),
        Disk::Full => Some((
            Urgency::Act,
            format!(
                "The spool is full: nothing that was acknowledged is dropped, and devices keep their own data until there is room; {}.",
                way_out(&now.relay)
            ),
        )),
        // Where the link is down that sentence says how long the disk lasts.
        Disk::Low(_) | Disk::Room if now.relay != Relay::Up => None,
        Disk::Low(percent) => Some((
            if now.full_in.is_some_and(|full| full < VERY_SOON) { Urgency::Act } else { Urgency::Look },
            format!("The spool fills: {percent} % of it {} left, {}.", if percent == 1 { "is" } else { "are" }, lasts(now)),
        )),
        Disk::Room => now.full_in.filter(|full| *full < SOON).map(|full| {
            let urgency = if full < VERY_SOON { Urgency::Act } else { Urgency::Look };
            let words = "More comes in than goes out";
            (urgency, format!("{words}: {} wait{}, {}.", pile(now), verb(now), lasts(now)))
        }),
    }
}

fn about_ingest(now: &Situation) -> Option<(Urgency, String)> {
    // While it stops that is no news.
    let (level, words) = now.ingest.as_ref().filter(|_| !now.draining)?;
    Some(match level {
        Level::Down => {
            (Urgency::Act, format!("Devices cannot hand anything in: {words}; they keep their own data."))
        }
        Level::Ok | Level::Degraded => (Urgency::Look, format!("Devices are served, with trouble: {words}.")),
    })
}

fn about_keys(now: &Situation) -> Option<(Urgency, String)> {
    match &now.keys {
        Keys::InForce(ends) if *ends < ENDS_SOON => Some((
            Urgency::Look,
            format!("The key statement ends in {}: devices seal until then, so bring a newer one before.", span(*ends)),
        )),
        Keys::InForce(_) => None,
        Keys::Troubled(words) => Some((Urgency::Look, format!("The keys want a look: {words}."))),
        Keys::Stale(ends) => Some((
            Urgency::Look,
            format!(
                "The key statement is stale: devices go on sealing for another {}, so bring a newer one before.",
                span(*ends)
            ),
        )),
        Keys::Ended => Some((
            Urgency::Act,
            "No key may be sealed to any more: devices cannot seal anything new until the authority issues a statement, and what is \
             sealed already is still taken and passed on."
                .to_owned(),
        )),
        Keys::Never => Some((
            Urgency::Act,
            "No key statement was ever accepted here, so no device can begin: connect the source in [keys], or carry a bundle in \
             with `pithead-gateway key import`."
                .to_owned(),
        )),
    }
}

fn about_relay(now: &Situation) -> Option<(Urgency, String)> {
    let since = span(now.relay_for);
    let (pile, waits) = (pile(now), waits(now));
    let calm_unless_the_disk_fills = match now.full_in {
        Some(full) if full < VERY_SOON => Urgency::Act,
        Some(full) if full < SOON => Urgency::Look,
        _ if matches!(now.disk, Disk::Low(_)) => Urgency::Look,
        _ => Urgency::Calm,
    };
    let at_least = |urgency: Urgency| calm_unless_the_disk_fills.max(urgency);
    match &now.relay {
        Relay::Up => {
            let piled_up = now.waiting > 0 && now.oldest.is_some_and(|oldest| oldest > PILED_UP);
            let urgent = about_disk(now).is_some();
            (piled_up && !urgent).then(|| (Urgency::Calm, catching_up(now)))
        }
        Relay::Absent => (now.waiting > 0).then(|| {
            let words = "wait to be carried away by hand (`pithead-gateway spool export`)";
            let words = if now.waiting == 1 { words.replacen("wait", "waits", 1) } else { words.to_owned() };
            (
                calm_unless_the_disk_fills,
                format!("This gateway has no link of its own: {pile} {words}, {}.", lasts(now)),
            )
        }),
        Relay::NotYet => Some((
            calm_unless_the_disk_fills,
            format!(
                "The cloud was not reached in the {since} since this gateway started; nothing is lost: devices are served as always, \
                 {waits}, {}.",
                lasts(now)
            ),
        )),
        Relay::Down => Some((
            calm_unless_the_disk_fills,
            format!(
                "The link to the cloud has been down for {since}, and nothing is lost: devices are served as always, {waits}, {}.",
                lasts(now)
            ),
        )),
        Relay::TurnedAway(code) => Some((
            at_least(Urgency::Look),
            format!(
                "The cloud is reached and does not take envelopes, for {since} now; nothing is lost: {waits}, {}; \
                 `pithead-gateway explain {code}` says what to do.",
                lasts(now)
            ),
        )),
        Relay::PausedByHand => Some((
            at_least(Urgency::Look),
            format!(
                "Somebody has paused the relay {since} ago; nothing is lost: {waits}, {}; `pithead-gateway relay \
                 resume` lets it go on.",
                lasts(now)
            ),
        )),
        Relay::PausedByRefusals(refused, answered) => Some((
            Urgency::Act,
            format!(
                "The relay has stopped by itself {since} ago, because the cloud refused {refused} of {answered} envelopes; nothing is \
                 lost: {waits}, {}; look at `pithead-gateway refused list`, then `relay resume`.",
                lasts(now)
            ),
        )),
        Relay::PausedByForeignBundle => Some((
            Urgency::Act,
            format!(
                "The relay has stopped by itself {since} ago, because something else lies in the bucket under the name of one of its \
                 bundles; nothing is lost: {waits}, {}; `pithead-gateway explain PH-5018` says what to do.",
                lasts(now)
            ),
        )),
        Relay::RefusedAreaFull => Some((
            Urgency::Act,
            format!(
                "The relay stands still, because there is no room left for what the cloud refuses; nothing is lost: {waits}, {}; see `pithead-gateway refused list`.",
                lasts(now)
            ),
        )),
    }
}

fn catching_up(now: &Situation) -> String {
    let pile = pile(now);
    if now.shrinks_per_s < 0.1 {
        return format!("The link is up, and {pile} still wait{}, {}.", verb(now), lasts(now));
    }
    let left = Duration::from_secs_f64((now.waiting as f64 / now.shrinks_per_s).min(1e9));
    format!(
        "The link is up and what had piled up is going out: {pile} to go, about {} at this rate.",
        span(left)
    )
}

fn all_is_well(now: &Situation) -> String {
    match (&now.relay, now.waiting) {
        (Relay::Absent, _) => {
            "All is well: what devices send is safe on this disk, and nothing waits to be carried away."
                .to_owned()
        }
        (_, 0) => {
            "All is well: what devices send is safe on this disk and goes on to the cloud, and nothing waits."
                .to_owned()
        }
        (_, _) => format!(
            "All is well: what devices send is safe on this disk and goes on to the cloud; {} {} on the way.",
            // Their segments are mostly of others: those bytes would be no news.
            count(now.waiting),
            if now.waiting == 1 { "envelope is" } else { "envelopes are" }
        ),
    }
}

fn way_out(relay: &Relay) -> &'static str {
    match relay {
        Relay::Up => "it empties as the cloud takes what waits",
        Relay::Absent => "carry it away (`pithead-gateway spool export`)",
        Relay::NotYet | Relay::Down => "it empties when the link is back",
        Relay::TurnedAway(_) => "it empties when the cloud takes envelopes again",
        Relay::PausedByHand | Relay::PausedByRefusals(..) | Relay::PausedByForeignBundle => {
            "`pithead-gateway relay resume` lets it empty"
        }
        Relay::RefusedAreaFull => "make room in the refused area first (`pithead-gateway refused list`)",
    }
}

fn pile(now: &Situation) -> String {
    match now.waiting {
        0 => "nothing".to_owned(),
        1 => format!("1 envelope ({})", bytes(now.waiting_bytes)),
        many => format!("{} envelopes ({})", count(many), bytes(now.waiting_bytes)),
    }
}

fn waits(now: &Situation) -> String {
    match now.waiting {
        0 => "nothing waits yet".to_owned(),
        _ => format!("{} wait{} safely on this disk", pile(now), verb(now)),
    }
}

fn verb(now: &Situation) -> &'static str {
    if now.waiting > 1 { "" } else { "s" }
}

fn lasts(now: &Situation) -> String {
    match now.full_in {
        Some(full) => format!("and at the present rate the disk is full in {}", span(full)),
        None => format!("and there is room for {} more", bytes(now.room_bytes)),
    }
}

/// A length of time as one says it: `45 s`, `34 min`, `3 h 20 min`, `9 days`.
#[must_use]
pub fn span(time: Duration) -> String {
    const YEAR: u64 = 365 * 86_400;
    let s = time.as_secs();
    match s {
        0..120 => format!("{s} s"),
        120..7_200 => format!("{} min", s / 60),
        7_200..36_000 if s / 60 % 60 >= 5 => format!("{} h {} min", s / 3_600, s / 60 % 60 / 5 * 5),
        7_200..172_800 => format!("{} h", s / 3_600),
        _ if s < 2 * YEAR => format!("{} days", s / 86_400),
        _ => format!("{} years", s / YEAR),
    }
}

/// How long an acknowledgement took: `850 µs`, `2.3 ms`, `1.4 s`.
#[must_use]
pub fn short(time: Duration) -> String {
    let us = time.as_micros();
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..10_000 => format!("{:.1} ms", us as f64 / 1e3),
        10_000..1_000_000 => format!("{} ms", us / 1_000),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

/// A size with three digits at most: `412 B`, `14.2 MiB`.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    scaled(bytes as f64)
}

/// The same of a rate.
#[must_use]
pub fn bytes_per_s(bytes: f64) -> String {
    format!("{}/s", scaled(bytes))
}

fn scaled(bytes: f64) -> String {
    let mut value = bytes;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if value < 999.5 || unit == "TiB" {
            let whole = unit == "B" || value >= 99.95;
            return if whole { format!("{value:.0} {unit}") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// Envelopes a second.
#[must_use]
pub fn rate(per_s: f64) -> String {
    if per_s > 0.0 && per_s < 9.95 { format!("{per_s:.1}") } else { count(per_s.round() as u64) }
}

#[cfg(test)]
mod tests;

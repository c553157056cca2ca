//! Everything that one page shows, looked up once and put into plain values.
//!
//! What the gateway does not know has no field here: the devices' outboxes and clocks travel sealed, so nobody on site knows
//! them.

use std::time::Duration;

use pithead_hop::program::recent::Happened;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::trust::{
    Custody, KeyArn, KeyStatus, RootFields, Sha256Digest, StatementFields, Status, cose,
};

use super::activity::{QUARTER, QUARTERS, Took};
use super::devices::{self, Devices};
use super::history::{Flow, Link, Outage, Reading, full_in};
use super::words::{self, Disk, Keys, Meaning, Situation};
use super::{Console, SPANS, Span};
use crate::admin::Facts;
use crate::clock::{since_boot, wall_ms};
use crate::envelopes::relay::Report as RelayReport;
use crate::envelopes::relay::control::Cause;
use crate::envelopes::replicated::Neighbour;
use crate::health::{Lamp, Level};
use crate::metrics::Dimension;

/// What a page is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// How far back plots reach; what fits, if nothing is asked.
    pub span: Option<Span>,
    /// Devices whose names hold this.
    pub device: String,
}

/// A page.
#[derive(Debug, Clone)]
pub struct View {
    /// The site.
    pub site: String,
    /// The gateway.
    pub gateway: String,
    /// Milliseconds since 1970 by this machine's clock.
    pub wall_ms: u64,
    /// How long it has run.
    pub uptime: Duration,
    /// Name, lamp, age.
    pub lamps: Vec<(&'static str, Lamp, Duration)>,
    /// What that means.
    pub meaning: Meaning,
    /// How far back plots reach.
    pub span: Span,
    /// Operating time.
    pub now: Duration,
    /// The readings of that span.
    pub readings: Vec<Reading>,
    /// And when the link was not up.
    pub outages: Vec<Outage>,
    /// Whether there is a relay.
    pub has_relay: bool,
    /// In and out a second, over the last minute.
    pub flow: Option<Flow>,
    /// Acknowledgements of the last minute: how many, and what half of them and 99 % did not exceed.
    pub acks: (u64, Option<Took>, Option<Took>),
    /// Envelopes that wait.
    pub waiting: u64,
    /// Bytes that they take.
    pub waiting_bytes: u64,
    /// How long the oldest has waited.
    pub oldest: Option<Duration>,
    /// Envelopes a second by which that grows.
    pub grows_per_s: Option<f64>,
    /// When the disk is full then.
    pub full_in: Option<Duration>,
    /// Bytes that the spool may take.
    pub capacity_bytes: u64,
    /// Bytes that there is room for.
    pub room_bytes: u64,
    /// Envelopes and bytes that the far end refused.
    pub refused: (u64, u64),
    /// The key in force; none before the first statement.
    pub key: Option<KeyView>,
    /// The gateways that share the site's lanes, and which of them takes envelopes; none where they are not shared.
    pub gateways: Vec<Neighbour>,
    /// See `gateways`.
    pub owner: Option<String>,
    /// The devices.
    pub devices: Devices,
    /// Quarter-hours of a day's strip that lie before the start.
    pub quarters_unknown: usize,
    /// What the devices were filtered by.
    pub filter: String,
    /// The newest first.
    pub events: Vec<Happened>,
}

/// The statement in force and its keys.
#[derive(Debug, Clone)]
pub struct KeyView {
    /// Epoch and sequence.
    pub version: (u64, u64),
    /// Who signs.
    pub authority: String,
    /// Who can cause a signature, if the root says.
    pub custody: Option<Custody>,
    /// The labels of the keys that have signed it, or their names.
    pub signers: Vec<String>,
    /// Seconds since 1970.
    pub issued_at: u64,
    /// Stale after this.
    pub refresh_by: u64,
    /// Ended from here on.
    pub expires_at: u64,
    /// The key that devices seal to, if they may seal.
    pub in_use: Option<(KeyArn, Sha256Digest, u64)>,
    /// Further keys of the statement.
    pub others: Vec<(KeyArn, Sha256Digest, KeyStatus)>,
    /// Devices that sealed within a day under that key; under any.
    pub adopted: (usize, usize),
}

impl View {
    /// Looks everything up.
    #[must_use]
    pub fn of(facts: &Facts, asked: &Asked) -> Self {
        let console: &Console = &facts.console;
        let (now, wall_ms) = (since_boot(), wall_ms());
        let uptime = now.saturating_sub(facts.started);
        let span = asked.span.unwrap_or_else(|| Span::for_uptime(uptime));
        let lamps = facts.health.report();
        let has_relay = facts.control.is_some();
        let numbers = Numbers::of(facts, now);
        let seen = console.activity.devices();
        let (outages, readings, latencies) = {
            let history = console.history();
            let latencies = history.latencies(&console.activity.totals().2);
            (history.outages(span.length()), history.readings(span.length()), latencies)
        };
        let key = key_view(facts, &seen, now);
        let Numbers { reading, flow, growth, full_in, oldest, room_bytes, capacity_bytes, .. } = numbers;
        let held = facts.refused.held();
        let lamps = [Dimension::Ingest, Dimension::Keys, Dimension::Relay, Dimension::Disk]
            .into_iter()
            .filter_map(|dimension| lamps.get(dimension.name()).map(|lamp| (dimension.name(), lamp.clone())))
            .map(|(name, lamp)| (name, lamp.clone(), now.saturating_sub(lamp.since)))
            .collect();
        let day = QUARTER * QUARTERS;
        let unknown = day.saturating_sub(uptime).as_secs() / QUARTER.as_secs();
        Self {
            site: facts.site.to_string(),
            gateway: facts.name.as_str().to_owned(),
            wall_ms,
            uptime,
            lamps,
            meaning: words::meaning(&situation(facts, &numbers, wall_ms / 1000)),
            span,
            now,
            readings,
            outages,
            has_relay,
            flow,
            acks: (latencies.count(), latencies.percentile(50), latencies.percentile(99)),
            waiting: reading.waiting,
            waiting_bytes: reading.waiting_bytes,
            oldest,
            grows_per_s: growth.map(|(records, _)| records),
            full_in,
            capacity_bytes,
            room_bytes,
            refused: (held.records, held.bytes),
            gateways: facts.spool.neighbours(),
            owner: facts.spool.owner(),
            devices: devices::devices(
                &facts.doors.known(),
                &seen,
                &console.unexplained(),
                &asked.device,
                now,
            ),
            key,
            quarters_unknown: usize::try_from(unknown).unwrap_or(0),
            filter: asked.device.clone(),
            events: console.recent.newest_first(),
        }
    }
}

/// The numbers that sentences and figures are made of.
#[derive(Debug, Clone, Copy)]
struct Numbers {
    now: Duration,
    reading: Reading,
    flow: Option<Flow>,
    growth: Option<(f64, f64)>,
    full_in: Option<Duration>,
    oldest: Option<Duration>,
    room_bytes: u64,
    capacity_bytes: u64,
    /// Since when the link is as it is.
    link_since: Duration,
    disk_failed: bool,
    disk_full: bool,
}

impl Numbers {
    fn of(facts: &Facts, now: Duration) -> Self {
        let console = &facts.console;
        console.look(facts, now);
        let history = console.history();
        let reading = history.last().unwrap_or_else(|| console.reading(facts, now));
        let (flow, growth) = (history.flow(), history.growth());
        let open = history.outages(Duration::MAX).last().filter(|outage| outage.to.is_none()).copied();
        drop(history);
        let stats = facts.spool.stats();
        let room_bytes = facts.spool.available_bytes();
        let oldest = |oldest| Duration::from_millis(wall_ms().saturating_sub(oldest));
        Self {
            now,
            reading,
            flow,
            growth,
            full_in: growth.and_then(|(_, bytes)| full_in(room_bytes, bytes)),
            oldest: stats.oldest_ms.map(oldest),
            room_bytes,
            capacity_bytes: stats.capacity_bytes,
            link_since: open.map_or(facts.started, |outage| outage.from),
            disk_failed: stats.lanes.iter().any(|lane| lane.poisoned),
            disk_full: stats.disk_full || room_bytes == 0,
        }
    }
}

/// What everything together means, for status pages and for systemd.
#[must_use]
pub fn meaning(facts: &Facts) -> Meaning {
    words::meaning(&situation(facts, &Numbers::of(facts, since_boot()), wall_ms() / 1000))
}

fn situation(facts: &Facts, numbers: &Numbers, wall_s: u64) -> Situation {
    let lamps = facts.health.report();
    let off = |dimension: Dimension| lamps.get(dimension.name()).filter(|lamp| lamp.level != Level::Ok);
    let disk = match () {
        () if numbers.disk_failed => Disk::Failed,
        () if numbers.disk_full => Disk::Full,
        () if off(Dimension::Disk).is_some() => {
            Disk::Low(numbers.room_bytes.saturating_mul(100) / numbers.capacity_bytes.max(1))
        }
        () => Disk::Room,
    };
    Situation {
        draining: facts.health.is_draining(),
        ingest: off(Dimension::Ingest).map(|lamp| (lamp.level, lamp.words.clone())),
        keys: keys(facts, off(Dimension::Keys), wall_s),
        relay: relay_state(facts.control.is_some(), &facts.relay.get()),
        relay_for: numbers.now.saturating_sub(numbers.link_since),
        disk,
        waiting: numbers.reading.waiting,
        waiting_bytes: numbers.reading.waiting_bytes,
        oldest: numbers.oldest,
        full_in: numbers.full_in,
        room_bytes: numbers.room_bytes,
        shrinks_per_s: numbers.flow.map_or(0.0, |flow| flow.left - flow.came),
    }
}

/// What is the matter with the relay.
fn relay_state(has_relay: bool, report: &RelayReport) -> words::Relay {
    if !has_relay {
        return words::Relay::Absent;
    }
    match (report.paused, &report.failure) {
        (Some(pause), _) => match pause.cause {
            Cause::Hand => words::Relay::PausedByHand,
            Cause::Refusals { answered, refused } => words::Relay::PausedByRefusals(refused, answered),
            Cause::ForeignBundle { .. } => words::Relay::PausedByForeignBundle,
        },
        _ if report.up => words::Relay::Up,
        _ if report.refused_area_full => words::Relay::RefusedAreaFull,
        (None, Some((Some(reason), ..))) if !is_the_link(*reason) => words::Relay::TurnedAway(reason.code()),
        _ if report.was_up => words::Relay::Down,
        _ => words::Relay::NotYet,
    }
}

/// Nobody is there, or whoever is there is about to go: nothing that a look at this gateway would help.
fn is_the_link(reason: ErrorReason) -> bool {
    matches!(
        reason,
        ErrorReason::PeerUnreachable
            | ErrorReason::Draining
            | ErrorReason::StoreUnreachable
            | ErrorReason::StoreThrottled
    )
}

/// Where the relay's link stands, for the history.
pub(super) fn link(has_relay: bool, report: &RelayReport) -> Link {
    match () {
        () if !has_relay => Link::Absent,
        () if report.paused.is_some() => Link::Paused,
        () if report.up => Link::Up,
        // It is being reached for the first time: neither up nor down.
        () if !report.was_up && report.failure.is_none() => Link::Absent,
        () => Link::Down,
    }
}

fn keys(facts: &Facts, off: Option<&Lamp>, wall_s: u64) -> Keys {
    let fields =
        facts.book.current().and_then(|book| StatementFields::read_unverified(book.statement()).ok());
    let Some((fields, _)) = fields else {
        return if facts.history.is_empty() { Keys::Never } else { Keys::Ended };
    };
    let ends = Duration::from_secs(fields.expires_at.as_secs().saturating_sub(wall_s));
    let status = facts.refresh.get().standing.map(|standing| standing.status);
    match status {
        Some(Status::Expired | Status::NoKey) => Keys::Ended,
        Some(Status::Stale) => Keys::Stale(ends),
        Some(Status::Fresh) => match off {
            Some(lamp) => Keys::Troubled(lamp.words.clone()),
            None => Keys::InForce(ends),
        },
        // Before the first visit, what was there before the restart is in force.
        None => Keys::InForce(ends),
    }
}

fn key_view(
    facts: &Facts,
    seen: &std::collections::HashMap<pithead_sealing::DeviceId, super::activity::Seen>,
    now: Duration,
) -> Option<KeyView> {
    let book = facts.book.current()?;
    // Read only: both were verified before they came into the book.
    let (fields, _) = StatementFields::read_unverified(book.statement()).ok()?;
    let root =
        book.newest_root().and_then(|root| RootFields::read_unverified(root).ok()).map(|(root, _)| root);
    let signers = cose::signers_of(book.statement()).unwrap_or_default();
    let label = |kid: &pithead_sealing::trust::Kid| {
        let key = root.as_ref().and_then(|root| root.key(kid));
        key.map(|key| key.label.clone()).filter(|label| !label.is_empty()).unwrap_or_else(|| kid.to_string())
    };
    let in_use = facts.refresh.get().standing.and_then(|standing| standing.in_use);
    let in_use = in_use.and_then(|(arn, fingerprint)| {
        let bits = fields.key(&fingerprint)?.bits;
        Some((arn, fingerprint, bits))
    });
    let others = fields
        .keys
        .iter()
        .filter(|key| in_use.as_ref().is_none_or(|(_, fingerprint, _)| *fingerprint != key.fingerprint))
        .map(|key| (key.arn.clone(), key.fingerprint, key.status))
        .collect();
    let under = devices::adoption(seen, now);
    let current = in_use.as_ref().map(|(arn, ..)| arn.clone());
    let adopted = (under.get(&current).copied().unwrap_or(0), under.values().sum());
    Some(KeyView {
        version: (fields.epoch, fields.sequence),
        authority: fields.authority.clone(),
        custody: root.as_ref().and_then(|root| root.policy.custody),
        signers: signers.iter().map(label).collect(),
        issued_at: fields.issued_at.as_secs(),
        refresh_by: fields.refresh_by.as_secs(),
        expires_at: fields.expires_at.as_secs(),
        in_use,
        others,
        adopted,
    })
}

impl Span {
    /// The shortest that shows all of it, up to a day.
    fn for_uptime(uptime: Duration) -> Self {
        let enough = |span: &&Self| span.length() >= uptime || span.length() >= Duration::from_secs(86_400);
        SPANS.iter().find(enough).copied().unwrap_or(SPANS[0])
    }
}

#[cfg(test)]
mod tests {
    use super::super::words::Relay;
    use super::*;
    use crate::envelopes::relay::control::Pause;

    #[test]
    fn the_relays_state_is_what_its_report_says() {
        let state = |change: &dyn Fn(&mut RelayReport)| {
            let mut report = RelayReport::default();
            change(&mut report);
            (relay_state(true, &report), link(true, &report))
        };
        let failed = |reason| {
            move |report: &mut RelayReport| {
                report.was_up = true;
                report.failure = Some((reason, "why".into(), Duration::ZERO));
            }
        };
        assert_eq!(state(&|_| ()), (Relay::NotYet, Link::Absent), "a start is no outage");
        assert_eq!(state(&|report| report.up = true), (Relay::Up, Link::Up));
        assert_eq!(state(&failed(Some(ErrorReason::PeerUnreachable))), (Relay::Down, Link::Down));
        assert_eq!(state(&failed(None)), (Relay::Down, Link::Down));
        let code = ErrorReason::CertificateInvalid.code();
        assert_eq!(state(&failed(Some(ErrorReason::CertificateInvalid))).0, Relay::TurnedAway(code));
        let pause = |cause| move |report: &mut RelayReport| report.paused = Some(Pause { cause, at_ms: 0 });
        assert_eq!(state(&pause(Cause::Hand)), (Relay::PausedByHand, Link::Paused));
        let refusals = Cause::Refusals { answered: 600, refused: 12 };
        assert_eq!(state(&pause(refusals)).0, Relay::PausedByRefusals(12, 600));
        let full = |report: &mut RelayReport| {
            failed(Some(ErrorReason::SpoolFull))(report);
            report.refused_area_full = true;
        };
        assert_eq!(state(&full), (Relay::RefusedAreaFull, Link::Down));
        let none = RelayReport { up: true, ..RelayReport::default() };
        assert_eq!((relay_state(false, &none), link(false, &none)), (Relay::Absent, Link::Absent));
    }

    #[test]
    fn a_young_gateway_shows_its_whole_life_and_an_old_one_a_day() {
        let shown = |minutes: u64| Span::for_uptime(Duration::from_secs(minutes * 60)).name();
        assert_eq!([0, 5, 6, 60, 61, 100_000].map(shown), ["5min", "5min", "1h", "1h", "24h", "24h"]);
    }
}

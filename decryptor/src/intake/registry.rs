//! The books in memory: hop's lines of every site, and what is known of each line beyond its numbers.
//!
//! Rebuilt at every start from the ledger; moved on by the writing thread when an entry is durable, and only then.

use super::pipeline::{Ticket, lock};
use super::scribe::Books;
use crate::devices::{Barred, DeviceName, Devices, Origin};
use crate::ledger::record::{
    Applied, Checkpoint, Latch, LineFacts, Said, SaidGap, SaidLine, SetAside, SiteLines, Who,
};
use crate::ledger::{Entry, Replay};
use crate::metrics::Metrics;
use arc_swap::ArcSwap;
use pithead_hop::ingest::{Lines, ShortHash, Unseen};
use pithead_hop::program::clock;
use pithead_hop::status::Refusal;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::trust::Kid;
use pithead_sealing::{Identity, Line, Run, Seq, Site, StreamName};
use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// When another envelope under the same identity is being opened: its fate decides.
const BUSY_RETRY: Duration = Duration::from_secs(1);

/// The reason number that the ledger has for a declared gap by policy.
const BY_POLICY: u32 = 1;

/// What an offered envelope is.
#[derive(Debug)]
pub enum Verdict {
    /// Not seen before; claimed under the ticket that was given.
    New,
    /// The same bytes are under way.
    SameUnderWay(Ticket),
    /// The same bytes were applied before.
    Duplicate {
        /// The first one's hash is no longer kept.
        unverified: bool,
    },
    /// Other bytes were applied under this identity.
    Conflict,
    /// Its number cannot be, or not now.
    Refused(Refusal),
}

/// All lines of all sites.
#[derive(Debug, Default)]
pub struct Registry {
    sites: BTreeMap<Site, Lines<Ticket>>,
    facts: BTreeMap<(Site, Line), LineFacts>,
    claimed: HashSet<Identity>,
    /// Device keys that have signed something that was applied, and since when. As many as the cloud ever registered: no other key
    /// signs anything that is applied as signed.
    latches: BTreeMap<DeviceName, BTreeMap<Kid, u64>>,
    /// A damaged checkpoint has taken latches with it: whoever has a registered key counts as one that has signed. A hostile gateway
    /// that waits for such an accident gains nothing by it.
    latches_lost: bool,
    /// The latest time seen: lines want time that never runs backwards.
    latest: Duration,
}

impl Registry {
    fn now(&mut self, us: u64) -> Duration {
        self.latest = self.latest.max(Duration::from_micros(us));
        self.latest
    }

    fn site(&mut self, site: &Site) -> &mut Lines<Ticket> {
        self.sites.entry(site.clone()).or_insert_with(|| Lines::new(Unseen::Missing))
    }

    /// Judges an envelope, and counts it if it was here before. If it is new, its identity is claimed until
    /// [`Registry::withdraw`] or an entry.
    pub fn offer(&mut self, identity: &Identity, sha256: &[u8; 32], now_us: u64, ticket: &Ticket) -> Verdict {
        let verdict = self.claim(identity, sha256, now_us, ticket);
        if matches!(verdict, Verdict::SameUnderWay(_) | Verdict::Duplicate { .. }) {
            self.note_duplicate(identity);
        }
        verdict
    }

    /// The same without counting: for who judges more than once before anything is entered.
    pub fn claim(&mut self, identity: &Identity, sha256: &[u8; 32], now_us: u64, ticket: &Ticket) -> Verdict {
        use pithead_hop::ingest::Verdict as Seen;
        let now = self.now(now_us);
        let line = identity.line();
        let seen = self
            .site(&identity.site)
            .offer(&line, identity.seq, ShortHash::from(sha256), now, || ticket.clone());
        match seen {
            Ok(Seen::New(_)) => {
                self.claimed.insert(identity.clone());
                Verdict::New
            }
            Ok(Seen::InFlight(first)) => Verdict::SameUnderWay(first),
            Ok(Seen::Duplicate { unverified }) => Verdict::Duplicate { unverified },
            // Nothing of the first one is authentic yet: were this a conflict already, poison could push good bytes aside.
            Ok(Seen::Conflict) if self.claimed.contains(identity) => Verdict::Refused(
                Refusal::new(ErrorReason::NotReady, "another envelope under this identity is being opened")
                    .retry_after(BUSY_RETRY),
            ),
            Ok(Seen::Conflict) => Verdict::Conflict,
            Err(refusal) => Verdict::Refused(refusal.into()),
        }
    }

    /// The claim ends with nothing entered.
    pub fn withdraw(&mut self, identity: &Identity) {
        if self.claimed.remove(identity) {
            self.site(&identity.site).failed(&identity.line(), identity.seq);
        }
    }

    /// An entry is durable.
    pub fn enter(&mut self, identity: &Identity, entry: &Entry) {
        let line = identity.line();
        match entry {
            Entry::Applied { applied, said } => {
                self.claimed.remove(identity);
                let lines = self.site(&identity.site);
                lines.stored(&line, identity.seq);
                lines.passed_on(&line, identity.seq);
                self.note_applied(identity, applied, said.as_ref());
            }
            Entry::SetAside(aside) => {
                self.withdraw(identity);
                self.note_aside(identity, aside);
            }
        }
    }

    /// What a start reads back.
    pub fn replay(&mut self, replay: Replay) {
        match replay {
            Replay::Checkpoint(checkpoint) => {
                let lost = self.latches_lost;
                self.restore(*checkpoint);
                self.latches_lost |= lost;
            }
            Replay::Lost => self.latches_lost = true,
            Replay::Entry(entry) => {
                let who = match &*entry {
                    Entry::Applied { applied, .. } => applied.who.as_ref(),
                    Entry::SetAside(aside) => aside.who.as_ref(),
                };
                let Some(identity) = who.and_then(|who| who.identity().ok()) else {
                    tracing::error!(event = "ledger.nameless", "an entry of the ledger names no identity");
                    return;
                };
                match *entry {
                    Entry::Applied { applied, said } => {
                        let now = self.now(applied.received_us);
                        let mut hash = ShortHash([0; 8]);
                        if let Some(first) = applied.sha256.get(..8) {
                            hash.0.copy_from_slice(first);
                        }
                        let line = identity.line();
                        let lines = self.site(&identity.site);
                        lines.unsettle(&line, identity.seq);
                        lines.recall(&line, identity.seq, hash, now);
                        lines.passed_on(&line, identity.seq);
                        self.note_applied(&identity, &applied, said.as_ref());
                    }
                    Entry::SetAside(aside) => {
                        if aside.reason != ErrorReason::Conflict as i32 {
                            self.site(&identity.site).unsettle(&identity.line(), identity.seq);
                        }
                        self.note_aside(&identity, &aside);
                    }
                }
            }
        }
    }

    /// Whether an envelope of this origin is set aside, as the registry of devices and what was applied so far have it.
    #[must_use]
    pub fn bar(&self, devices: &Devices, identity: &Identity, origin: &Origin) -> Option<Barred> {
        let name = DeviceName { site: identity.site.clone(), device: identity.device.clone() };
        let signed = self.latches.get(&name);
        let has_signed = |kid: &Kid| self.latches_lost || signed.is_some_and(|kids| kids.contains_key(kid));
        devices.bar(identity, origin, has_signed)
    }

    /// The device keys that have signed something that was applied, and since when.
    pub fn latches(&self) -> impl Iterator<Item = (&DeviceName, &Kid, u64)> {
        self.latches.iter().flat_map(|(name, kids)| kids.iter().map(move |(kid, since)| (name, kid, *since)))
    }

    fn latch(&mut self, name: DeviceName, kid: Kid, since_us: u64) {
        self.latches.entry(name).or_default().entry(kid).or_insert(since_us);
    }

    /// One envelope more that was here before. Of a line that has nothing applied yet nothing is known that could be worth a
    /// place.
    pub fn note_duplicate(&mut self, identity: &Identity) {
        if let Some(facts) = self.facts.get_mut(&(identity.site.clone(), identity.line())) {
            facts.duplicates += 1;
        }
    }

    fn facts(&mut self, site: &Site, line: &Line) -> &mut LineFacts {
        self.facts.entry((site.clone(), line.clone())).or_default()
    }

    /// Of a line that a device speaks of, sent or not. Kept only where the line has a place among the device's lines, which
    /// are bounded: one seal can name a thousand streams and runs that never were.
    fn facts_spoken_of(&mut self, site: &Site, line: &Line) -> Option<&mut LineFacts> {
        let key = (site.clone(), line.clone());
        if !self.facts.contains_key(&key) {
            let now = self.latest;
            self.site(site).speak_of(line, now).ok()?;
        }
        Some(self.facts.entry(key).or_default())
    }

    fn note_applied(&mut self, identity: &Identity, applied: &Applied, said: Option<&Said>) {
        let facts = self.facts(&identity.site, &identity.line());
        facts.envelopes += 1;
        facts.records += u64::from(applied.records);
        facts.plaintext_bytes += applied.plaintext_bytes;
        facts.signed += u64::from(applied.signed_by().is_some());
        facts.unknown_key += u64::from(applied.unknown_key);
        if facts.first_us == 0 {
            facts.first_us = applied.received_us;
        }
        facts.last_us = facts.last_us.max(applied.received_us);
        if let Some(kid) = applied.signed_by() {
            let name = DeviceName { site: identity.site.clone(), device: identity.device.clone() };
            self.latch(name, kid, applied.received_us);
        }
        let Some(said) = said else { return };
        if let Some(previous) = &said.previous {
            // Any batch of the run may say it, and what an older one says takes nothing back.
            let facts = self.facts(&identity.site, &identity.line());
            let is_older = |known: &SaidLine| {
                (&known.stream, known.run) == (&previous.stream, previous.run) && known.last > previous.last
            };
            if !facts.previous.as_ref().is_some_and(is_older) {
                facts.previous = Some(previous.clone());
            }
        }
        // A device speaks for all of its own streams, and for no other device's.
        for gap in &said.gaps {
            self.note_gap(identity, gap);
        }
        for beat in &said.heartbeat {
            let Some(line) = line_of(identity, &beat.stream, beat.run) else { continue };
            let Some(facts) = self.facts_spoken_of(&identity.site, &line) else { continue };
            facts.heartbeat_last = facts.heartbeat_last.max(beat.last);
            facts.heartbeat_us = facts.heartbeat_us.max(applied.received_us);
        }
    }

    fn note_gap(&mut self, identity: &Identity, gap: &SaidGap) {
        let line = line_of(identity, &gap.stream, gap.run);
        let (Some(line), Ok(from), Ok(to)) = (line, Seq::new(gap.from), Seq::new(gap.to)) else { return };
        let now = self.latest;
        let Some(added) = self.site(&identity.site).declare(&line, from, to, now) else {
            // Then it stays a hole, which is to be looked at and not to be believed.
            tracing::warn!(event = "gap.unnoted", %line, from = gap.from, to = gap.to, "no room to note a declared gap");
            return;
        };
        // A device that was killed says again what it may not have said. The first word counts, or what was damaged would pass
        // for what was dropped.
        if gap.reason == BY_POLICY
            && let Some(facts) = self.facts_spoken_of(&identity.site, &line)
        {
            facts.dropped_by_policy = facts.dropped_by_policy.saturating_add(added);
        }
    }

    fn note_aside(&mut self, identity: &Identity, aside: &SetAside) {
        let line = identity.line();
        if aside.reason == ErrorReason::Conflict as i32 {
            self.facts(&identity.site, &line).conflicts += 1;
            return;
        }
        let now = self.now(aside.received_us);
        if self.site(&identity.site).refused(&line, identity.seq, now) {
            let facts = self.facts(&identity.site, &line);
            facts.refused += 1;
            facts.note_refused(ErrorReason::try_from(aside.reason).unwrap_or(ErrorReason::Unspecified));
        }
    }

    /// Whether something of this identity was applied, or is claimed, whatever its bytes: then another one is not new.
    #[must_use]
    pub fn has_seen(&self, identity: &Identity, sha256: &[u8; 32]) -> bool {
        let lines = self.sites.get(&identity.site);
        lines.is_some_and(|lines| {
            lines.seen(&identity.line(), identity.seq, ShortHash::from(sha256)).is_some()
        })
    }

    /// Whether the identity was applied.
    #[must_use]
    pub fn holds(&self, identity: &Identity) -> bool {
        let view = self.sites.get(&identity.site).and_then(|lines| lines.view(&identity.line()));
        view.is_some_and(|view| view.held.contains(identity.seq.get()))
    }

    /// Lines in memory.
    #[must_use]
    pub fn lines(&self) -> usize {
        self.sites.values().map(Lines::len).sum()
    }

    /// What is known of a line beyond its numbers.
    #[must_use]
    pub fn facts_of(&self, site: &Site, line: &Line) -> Option<&LineFacts> {
        self.facts.get(&(site.clone(), line.clone()))
    }

    /// The sites that anything is known of.
    pub fn sites(&self) -> impl Iterator<Item = (&Site, &Lines<Ticket>)> {
        self.sites.iter()
    }

    /// What is known of each line beyond its numbers.
    pub fn all_facts(&self) -> impl Iterator<Item = (&Site, &Line, &LineFacts)> {
        self.facts.iter().map(|((site, line), facts)| (site, line, facts))
    }

    /// The lines of a site.
    #[must_use]
    pub fn lines_of(&self, site: &Site) -> Option<&Lines<Ticket>> {
        self.sites.get(site)
    }

    /// A device's newest numbers, for its Hello.
    pub fn hello(&mut self, site: &Site, line: &Line, first_unacked: Seq, now_us: u64) -> u64 {
        let now = self.now(now_us);
        self.site(site).hello(line, first_unacked, now)
    }

    /// Everything that is durable, for the ledger.
    #[must_use]
    pub fn checkpoint(&self) -> Checkpoint {
        let sites = self.sites.iter().map(|(site, lines)| SiteLines {
            site: site.to_string(),
            lines: lines.encode(self.latest).into(),
        });
        let facts = self.facts.iter().map(|((site, line), facts)| LineFacts {
            who: Some(Who {
                site: site.to_string(),
                device: line.device.to_string(),
                stream: line.stream.to_string(),
                run: line.run.get(),
                seq: 0,
            }),
            ..facts.clone()
        });
        let latches = self.latches().map(|(name, kid, since)| Latch::of(name, kid, since)).collect();
        Checkpoint {
            sites: sites.collect(),
            facts: facts.collect(),
            mark: bytes::Bytes::new(),
            latches,
            latches_lost: self.latches_lost,
        }
    }

    fn restore(&mut self, checkpoint: Checkpoint) {
        // Times in it count from the same 1970 as ours.
        let now = self.latest.max(Duration::from_micros(clock::wall_us()));
        *self = Self { latest: now, latches_lost: checkpoint.latches_lost, ..Self::default() };
        for site in checkpoint.sites {
            match (Site::new(&site.site), Lines::decode(&site.lines, Unseen::Missing, now)) {
                (Ok(name), Ok(lines)) => {
                    self.sites.insert(name, lines);
                }
                _ => tracing::error!(
                    event = "ledger.checkpoint_damaged",
                    site = site.site,
                    "the lines of a site do not read back"
                ),
            }
        }
        for latch in checkpoint.latches {
            match latch.read() {
                Some((name, kid)) => self.latch(name, kid, latch.since_us),
                None => tracing::error!(
                    event = "ledger.checkpoint_damaged",
                    device = latch.device,
                    "that a device signs does not read back"
                ),
            }
        }
        for mut facts in checkpoint.facts {
            let Some(who) = facts.who.take() else { continue };
            // A line has no number of its own: any will do to parse the rest.
            let Ok(identity) = (Who { seq: 1, ..who }).identity() else { continue };
            self.facts.insert((identity.site.clone(), identity.line()), facts);
        }
    }
}

fn line_of(identity: &Identity, stream: &str, run: u64) -> Option<Line> {
    Some(Line {
        device: identity.device.clone(),
        stream: StreamName::new(stream).ok()?,
        run: Run::new(run).ok()?,
    })
}

/// The registry as the writing thread moves it on.
#[derive(Debug)]
pub struct RegistryBooks {
    registry: Arc<Mutex<Registry>>,
    devices: Arc<ArcSwap<Devices>>,
    metrics: Arc<Metrics>,
}

impl RegistryBooks {
    /// Moves on this registry of lines; `devices` is whose signatures are believed.
    #[must_use]
    pub fn new(
        registry: Arc<Mutex<Registry>>,
        devices: Arc<ArcSwap<Devices>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { registry, devices, metrics }
    }
}

impl Books for RegistryBooks {
    fn entered(&mut self, identity: &Identity, entry: &Entry) {
        let mut registry = lock(&self.registry);
        registry.enter(identity, entry);
        self.metrics.lines.set(i64::try_from(registry.lines()).unwrap_or(i64::MAX));
    }

    fn bar(&mut self, identity: &Identity, origin: &Origin) -> Option<Barred> {
        lock(&self.registry).bar(&self.devices.load(), identity, origin)
    }

    fn withdrawn(&mut self, identity: &Identity) {
        lock(&self.registry).withdraw(identity);
    }

    fn checkpoint(&mut self) -> Checkpoint {
        lock(&self.registry).checkpoint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::testing::{batch, identity};
    use pithead_hop::ingest::lines::RUNS_SPOKEN_OF_BURST;

    #[test]
    fn a_checkpoint_that_was_lost_has_every_registered_device_count_as_one_that_signs() {
        use crate::devices::{Watch, add, testing::key_file};
        let data = tempfile::tempdir().unwrap();
        let (key, _) = key_file(data.path(), "one");
        let own = identity("t", 1);
        let name = DeviceName { site: own.site.clone(), device: own.device.clone() };
        add(data.path(), &name, Some(&key), None).unwrap();
        let (_, devices) = Watch::open(data.path()).unwrap();
        let mut registry = Registry::default();
        assert_eq!(registry.bar(&devices, &own, &Origin::Unsigned), None, "it has not signed yet");
        registry.replay(Replay::Lost);
        assert_eq!(registry.bar(&devices, &own, &Origin::Unsigned), Some(Barred::Unsigned));
        // The next checkpoint carries it on, and nobody else is touched by it.
        let mut again = Registry::default();
        again.replay(Replay::Checkpoint(Box::new(registry.checkpoint())));
        assert_eq!(again.bar(&devices, &own, &Origin::Unsigned), Some(Barred::Unsigned));
        let mut stranger = own.clone();
        stranger.device = pithead_sealing::DeviceId::new("truck-of-nobody").unwrap();
        assert_eq!(again.bar(&devices, &stranger, &Origin::Unsigned), None);
    }

    #[test]
    fn lines_that_a_device_only_speaks_of_are_bounded_and_its_own_are_noted() {
        let mut registry = Registry::default();
        for number in 1..=3_000_u64 {
            let applied = Applied::of(&batch("t", number, 1), 100, false, None);
            let spoken = |kind: u64| kind << 32 | number;
            let gap = SaidGap { stream: "can".into(), run: spoken(7), from: 1, to: 2, reason: BY_POLICY };
            let beat = SaidLine { stream: "can".into(), run: spoken(8), last: 5 };
            let said = Said { gaps: vec![gap], previous: None, heartbeat: vec![beat] };
            let entry = Entry::Applied { applied, said: Some(said) };
            registry.replay(Replay::Entry(Box::new(entry)));
        }
        let most = RUNS_SPOKEN_OF_BURST as usize + 1;
        assert!(registry.facts.len() <= most && registry.lines() <= most, "{} lines", registry.facts.len());
        let own = identity("t", 1);
        assert_eq!(registry.facts_of(&own.site, &own.line()).map(|facts| facts.envelopes), Some(3_000));
        let spoken_of = line_of(&own, "can", 8 << 32 | 1).unwrap();
        assert_eq!(registry.facts_of(&own.site, &spoken_of).map(|facts| facts.heartbeat_last), Some(5));
    }
}

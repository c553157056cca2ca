//! What one site's ledger in the bucket makes of the books, entry by entry: the lines of its devices, as the ledger on disk has
//! them, and which bundles are decided.
//!
//! Of the bundles of a lane their first places are kept, which are their names in it; and, as ranges, the places that they have: a lane
//! in order is one range, whatever it has carried. A bundle is decided by its name alone. Its first place may well be in another one that
//! was decided: a gateway that was killed while a large envelope was under way packs anew what it had put behind that, and goes on in
//! the same bundle with what nobody has seen.

use crate::intake::registry::Registry;
use crate::ledger::objects::Link;
use crate::ledger::objects::record::{
    self, BundleName as Named, Damaged, Decision, LaneBooks, Places, SiteBooks, VERSION, Verdict,
};
use crate::ledger::{Entry, Replay};
use bytes::Bytes;
use pithead_hop::bundle::{BundleName, Hour, SpoolId};
use pithead_hop::identity::GatewayName;
use pithead_hop::ingest::IntervalSet;
use pithead_sealing::Site;
use pithead_spool::Lane;
use prost::Message as _;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

/// Ranges of places that are kept of a lane. A lane in order has one; each large envelope under way, and each place that a damaged
/// disk has lost, makes one more. Beyond that the lowest gap counts as decided: what was in it would have come long ago.
const RANGES_PER_LANE: usize = 4_096;

/// How long a gap of a lane is looked into before later bundles are decided: a large envelope that takes longer to come up is taken when
/// a full look finds it. A place that a damaged disk has lost would be looked for without end.
const GAP_DAYS: u64 = 7;

/// How long it is remembered that a bundle is decided. One that is still in the bucket after that is decided again, and found to be
/// nothing but duplicates.
const REMEMBERED_DAYS: u32 = 180;

/// Entries behind a checkpoint at most, about: a start reads them in some minutes.
const ENTRIES_MOST: u64 = 16_384;

/// Hours by which a gateway's clock may go back and its lane still be in order, without anything decided that shows it.
const CLOCK_HOURS: usize = 2;

const HOUR_US: u64 = 3_600_000_000;
const DAY_US: u64 = 24 * HOUR_US;

/// One lane of one gateway's spool. Its bundles are applied in order; between lanes there is none.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId {
    /// The gateway.
    pub gateway: GatewayName,
    /// Its spool.
    pub spool: SpoolId,
    /// The lane.
    pub lane: Lane,
}

impl LaneId {
    /// The lane of a bundle.
    #[must_use]
    pub fn of(name: &BundleName) -> Self {
        Self { gateway: name.gateway.clone(), spool: name.spool, lane: name.lane }
    }
}

impl fmt::Display for LaneId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.gateway, self.spool, self.lane.index())
    }
}

#[derive(Debug, Clone)]
struct LaneState {
    /// The first place and the hour of each bundle that is decided, and on which day since 1970 it was. The hour is in it because a place
    /// may come again with something else, where a gateway was set back to an older image of its disk; and because whoever may write into
    /// the bucket could else have a name of another hour refused, and with it the bundle that is to come.
    firsts: BTreeMap<(u64, Hour), u32>,
    places: IntervalSet,
    newest: BundleName,
    /// No bundle with a place in a gap is in a folder before this hour.
    gap_since: Option<Hour>,
    /// When something of it was decided last.
    decided_us: u64,
}

/// Where bundles may be that come before one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// There can be none.
    Nothing,
    /// In the folders from this hour on.
    Since {
        /// The first of them.
        from: Hour,
        /// The last of them; none if the gateway's clock has gone back: then a later folder has an earlier place.
        to: Option<Hour>,
    },
    /// Nothing is known of the lane yet.
    Anywhere,
}

/// The books of one site.
#[derive(Debug)]
pub struct Books {
    site: Site,
    /// The lines of its devices. Whoever holds it holds up the judging of this site.
    pub registry: Arc<Mutex<Registry>>,
    lanes: BTreeMap<LaneId, LaneState>,
    number: u64,
    digest: Option<[u8; 32]>,
    complete_through: u64,
    /// Entries behind that number whose output may not be whole.
    unfinished: BTreeMap<u64, Arc<Decision>>,
    /// Objects that were no bundle.
    bundles_refused: u64,
    /// Envelopes that were set aside and name nobody.
    nameless: u64,
    /// Bytes of the last checkpoint, and of the entries behind it, and how many those are.
    checkpoint_bytes: usize,
    entry_bytes: usize,
    entries: u64,
}

impl Books {
    /// Of a site of which nothing is known.
    #[must_use]
    pub fn new(site: Site) -> Self {
        Self {
            site,
            registry: Arc::default(),
            lanes: BTreeMap::new(),
            number: 0,
            digest: None,
            complete_through: 0,
            unfinished: BTreeMap::new(),
            bundles_refused: 0,
            nameless: 0,
            checkpoint_bytes: 0,
            entry_bytes: 0,
            entries: 0,
        }
    }

    /// As a checkpoint has them.
    ///
    /// # Errors
    /// [`Damaged::Message`]: it is not of this version.
    pub fn restore(&mut self, books: SiteBooks) -> Result<(), Damaged> {
        let digest = <[u8; 32]>::try_from(&books.digest[..]).map_err(|_| Damaged::Message)?;
        let checkpoint_bytes = books.encoded_len();
        let mut lanes = BTreeMap::new();
        for lane in &books.lanes {
            let (id, state) = lane_of(lane).ok_or(Damaged::Message)?;
            lanes.insert(id, state);
        }
        let mut registry = Registry::default();
        registry.replay(Replay::Checkpoint(Box::new(books.books.unwrap_or_default())));
        *crate::intake::pipeline::lock(&self.registry) = registry;
        (self.lanes, self.number, self.digest) = (lanes, books.number, Some(digest));
        (self.complete_through, self.unfinished) = (books.complete_through, BTreeMap::new());
        (self.bundles_refused, self.nameless) = (books.bundles_refused, books.nameless);
        (self.checkpoint_bytes, self.entry_bytes, self.entries) = (checkpoint_bytes, 0, 0);
        Ok(())
    }

    /// For a checkpoint; none where there is no entry yet.
    #[must_use]
    pub fn checkpoint(&self) -> Option<SiteBooks> {
        let digest = self.digest?;
        let lanes = self.lanes.iter().map(|(id, state)| LaneBooks {
            gateway: id.gateway.as_str().to_owned(),
            spool: Bytes::copy_from_slice(id.spool.bytes()),
            lane: id.lane.index() as u32,
            firsts: state.firsts.keys().map(|(first, _)| *first).collect(),
            hours: state.firsts.keys().map(|(_, hour)| number_of(*hour)).collect(),
            days: state.firsts.values().copied().collect(),
            places: places_of(&state.places),
            newest: state.newest.to_string(),
            gap_since: state.gap_since.map(|hour| hour.to_string()).unwrap_or_default(),
            decided_us: state.decided_us,
        });
        Some(SiteBooks {
            version: VERSION,
            site: self.site.to_string(),
            number: self.number,
            digest: Bytes::copy_from_slice(&digest),
            complete_through: self.complete_through(),
            lanes: lanes.collect(),
            unfinished: self.unfinished.keys().copied().collect(),
            books: Some(crate::intake::pipeline::lock(&self.registry).checkpoint()),
            bundles_refused: self.bundles_refused,
            nameless: self.nameless,
        })
    }

    /// A checkpoint, if one is due: at every multiple of `every`, as soon as the entries behind the last one have as many bytes as that has,
    /// or are [`ENTRIES_MOST`]. So no more is ever written of books than of entries, however large books have become.
    pub fn checkpoint_if_due(&mut self, every: u64) -> Option<SiteBooks> {
        let enough = self.entry_bytes >= self.checkpoint_bytes || self.entries >= ENTRIES_MOST;
        let checkpoint =
            (enough && self.number.is_multiple_of(every)).then(|| self.checkpoint()).flatten()?;
        (self.checkpoint_bytes, self.entry_bytes, self.entries) = (checkpoint.encoded_len(), 0, 0);
        Some(checkpoint)
    }

    /// The last entry's number.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// What the next entry has to name.
    #[must_use]
    pub fn digest(&self) -> Bytes {
        self.digest.map(|digest| Bytes::copy_from_slice(&digest)).unwrap_or_default()
    }

    /// Takes the next entry in.
    ///
    /// # Errors
    /// [`Damaged`], and nothing has changed: it is not the next.
    pub fn apply(&mut self, link: &Link) -> Result<(), Damaged> {
        let decision = &link.decision;
        if decision.number != self.number + 1 || decision.previous != self.digest() {
            return Err(Damaged::Broken);
        }
        let named = decision.bundle.as_ref().ok_or(Damaged::Message)?;
        // What was decided under a name that this version cannot read is decided all the same.
        if let Ok(name) = BundleName::parse(&named.key) {
            self.decide(name, named, decision.decided_us);
        }
        let mut nameless = 0;
        let mut registry = crate::intake::pipeline::lock(&self.registry);
        for judged in &decision.envelopes {
            match judged.verdict.as_ref().ok_or(Damaged::Message)? {
                Verdict::Duplicate(duplicate) => {
                    if let Some(identity) = duplicate.who.as_ref().and_then(|who| who.identity().ok()) {
                        registry.note_duplicate(&identity);
                    }
                }
                // Of one that was damaged on its way nobody knows whose it is.
                Verdict::SetAside(aside) if aside.who.is_none() => nameless += 1,
                verdict => {
                    if let Some(entry) = entry_of(verdict) {
                        registry.replay(Replay::Entry(Box::new(entry)));
                    }
                }
            }
        }
        drop(registry);
        self.entry_bytes = self.entry_bytes.saturating_add(decision.encoded_len());
        self.entries += 1;
        self.nameless += nameless;
        self.bundles_refused += u64::from(decision.refused != 0);
        (self.number, self.digest) = (decision.number, Some(link.digest));
        self.complete_to(decision.complete_through);
        if record::has_output(decision) && decision.number > self.complete_through {
            self.unfinished.insert(decision.number, Arc::clone(decision));
        }
        Ok(())
    }

    fn decide(&mut self, name: BundleName, named: &Named, decided_us: u64) {
        let first = name.first.0;
        let state = self.lanes.entry(LaneId::of(&name)).or_insert_with(|| LaneState {
            firsts: BTreeMap::new(),
            places: IntervalSet::new(),
            newest: name.clone(),
            gap_since: None,
            decided_us,
        });
        let earlier = name.hour.min(state.newest.hour);
        let day = u32::try_from(decided_us / DAY_US).unwrap_or(u32::MAX);
        state.firsts.insert((first, name.hour), day);
        if day > u32::try_from(state.decided_us / DAY_US).unwrap_or(u32::MAX) {
            state.firsts.retain(|_, decided| day.saturating_sub(*decided) <= REMEMBERED_DAYS);
        }
        state.decided_us = state.decided_us.max(decided_us);
        // A refused one has no places but that of its name.
        state.places.insert(first);
        for range in &named.places {
            if let Some(last) = range.count.checked_sub(1).and_then(|more| range.first.checked_add(more)) {
                state.places.insert_range(range.first, last);
            }
        }
        while state.places.intervals() > RANGES_PER_LANE {
            let (Some(floor), Some(last)) = (state.places.first(), state.places.last()) else { break };
            let Some(gap) = state.places.gaps_within(floor, last).next() else { break };
            state.places.insert_range(gap.first, gap.last);
        }
        if state.places.intervals() > 1 {
            state.gap_since = Some(state.gap_since.map_or(earlier, |since| since.min(earlier)));
        } else {
            state.gap_since = None;
        }
        if name.first >= state.newest.first {
            state.newest = name;
        }
        let horizon = state.newest.hour.begin_us().saturating_sub(GAP_DAYS * DAY_US);
        if state.gap_since.is_some_and(|since| since.begin_us() < horizon) {
            if let (Some(floor), Some(last)) = (state.places.first(), state.places.last()) {
                state.places.insert_range(floor, last);
            }
            state.gap_since = None;
        }
    }

    /// Whether this bundle is decided.
    #[must_use]
    pub fn is_decided(&self, name: &BundleName) -> bool {
        let decided = (name.first.0, name.hour);
        self.lanes.get(&LaneId::of(name)).is_some_and(|state| state.firsts.contains_key(&decided))
    }

    /// Where there may be undecided bundles of its lane that come before it.
    #[must_use]
    pub fn may_be_before(&self, name: &BundleName) -> Before {
        let Some(state) = self.lanes.get(&LaneId::of(name)) else { return Before::Anywhere };
        let follows = state.places.last().and_then(|last| last.checked_add(1)) == Some(name.first.0);
        match state.gap_since {
            // One range, and it begins where that ends.
            None if follows => Before::Nothing,
            since => Before::Since {
                from: since.unwrap_or(state.newest.hour).min(name.hour),
                to: (name.hour >= state.newest.hour).then(|| later(name.hour)),
            },
        }
    }

    /// The hour before which nothing new is to be expected of the lanes of which something was decided since: places and hours of a
    /// lane go up together, as far as its gateway's clock does.
    #[must_use]
    pub fn frontier(&self, since_us: u64) -> Option<Hour> {
        let alive = self.lanes.values().filter(|state| state.decided_us >= since_us);
        alive.map(|state| state.newest.hour).min()
    }

    /// Every entry up to this number has all of its output.
    #[must_use]
    pub fn complete_through(&self) -> u64 {
        self.unfinished.first_key_value().map_or(self.number, |(number, _)| number - 1)
    }

    /// The output of this entry is whole.
    pub fn complete(&mut self, number: u64) {
        self.unfinished.remove(&number);
        self.complete_to(self.complete_through());
    }

    fn complete_to(&mut self, number: u64) {
        if number > self.complete_through {
            self.complete_through = number.min(self.number);
            self.unfinished = self.unfinished.split_off(&(self.complete_through + 1));
        }
    }

    /// From a checkpoint on: entries up to its number whose output may not be whole.
    pub fn unfinished_before(&mut self, decision: &Arc<Decision>) {
        if decision.number <= self.number && record::has_output(decision) {
            self.unfinished.insert(decision.number, Arc::clone(decision));
        }
    }

    /// Entries whose output may not be whole.
    pub fn unfinished(&self) -> impl Iterator<Item = &Arc<Decision>> {
        self.unfinished.values()
    }

    /// Objects that were no bundle.
    #[must_use]
    pub fn bundles_refused(&self) -> u64 {
        self.bundles_refused
    }

    /// Envelopes that were set aside and name nobody.
    #[must_use]
    pub fn nameless(&self) -> u64 {
        self.nameless
    }

    /// Of the entry about this bundle, if its output may not be whole.
    #[must_use]
    pub fn unfinished_of(&self, name: &BundleName) -> Option<&Arc<Decision>> {
        let key = name.to_string();
        self.unfinished.values().find(|entry| entry.bundle.as_ref().is_some_and(|bundle| bundle.key == key))
    }
}

/// An envelope's facts as the ledger on disk has them; none of a duplicate.
#[must_use]
pub fn entry_of(verdict: &Verdict) -> Option<Entry> {
    match verdict {
        Verdict::Applied(one) => {
            Some(Entry::Applied { applied: one.applied.clone()?, said: one.said.clone() })
        }
        Verdict::SetAside(aside) => Some(Entry::SetAside(aside.clone())),
        Verdict::Duplicate(_) => None,
    }
}

/// Ranges, as they are written.
#[must_use]
pub fn places_of(set: &IntervalSet) -> Vec<Places> {
    let range = |range: pithead_hop::ingest::Interval| Places {
        first: range.first,
        count: range.last.saturating_sub(range.first).saturating_add(1),
    };
    set.iter().map(range).collect()
}

/// Some hours later. By so much a clock may have gone back between two bundles of which none is known yet.
fn later(hour: Hour) -> Hour {
    let later = std::iter::successors(Some(hour), |hour| hour.behind()).take(CLOCK_HOURS + 1);
    later.last().unwrap_or(hour)
}

/// Counted from 1970: no hour that has a name is beyond 32 bits.
fn number_of(hour: Hour) -> u32 {
    u32::try_from(hour.begin_us() / HOUR_US).unwrap_or(u32::MAX)
}

fn lane_of(lane: &LaneBooks) -> Option<(LaneId, LaneState)> {
    let id = LaneId {
        gateway: GatewayName::new(&lane.gateway).ok()?,
        spool: SpoolId::new(<[u8; 16]>::try_from(&lane.spool[..]).ok()?),
        lane: Lane::from_index(lane.lane as usize)?,
    };
    let mut places = IntervalSet::new();
    for range in &lane.places {
        places.insert_range(range.first, range.first.checked_add(range.count.checked_sub(1)?)?);
    }
    let gap_since = if lane.gap_since.is_empty() { None } else { Some(Hour::parse(&lane.gap_since).ok()?) };
    let newest = BundleName::parse(&lane.newest).ok()?;
    if lane.firsts.len() != lane.days.len() || lane.firsts.len() != lane.hours.len() {
        return None;
    }
    let hours = lane.hours.iter().map(|hour| Hour::of_us(u64::from(*hour) * HOUR_US));
    let firsts = lane.firsts.iter().copied().zip(hours).zip(lane.days.iter().copied()).collect();
    Some((id, LaneState { firsts, places, newest, gap_since, decided_us: lane.decided_us }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(hour: u64, first: u64) -> BundleName {
        BundleName {
            site: Site::new("pit-7").unwrap(),
            hour: Hour::of_us(hour * 3_600_000_000),
            gateway: GatewayName::new("gw-1").unwrap(),
            spool: SpoolId::new([1; 16]),
            lane: Lane::First,
            first: pithead_spool::Position(first),
        }
    }

    fn decided(books: &mut Books, name: &BundleName, count: u64) {
        let places = vec![Places { first: name.first.0, count }];
        books.decide(name.clone(), &Named { places, ..Named::default() }, 1);
    }

    #[test]
    fn a_gap_is_looked_into_for_a_week_and_no_longer() {
        let mut books = Books::new(Site::new("pit-7").unwrap());
        assert_eq!(books.may_be_before(&name(1_000, 5)), Before::Anywhere);
        decided(&mut books, &name(1_000, 0), 5);
        assert_eq!(books.may_be_before(&name(1_000, 5)), Before::Nothing);
        let hour = |number: u64| Hour::of_us(number * 3_600_000_000);
        let since = |from, to| Before::Since { from: hour(from), to: Some(hour(to)) };
        assert_eq!(books.may_be_before(&name(1_001, 6)), since(1_000, 1_003));
        // Its clock has gone back: what comes before it may be in a later folder.
        assert_eq!(books.may_be_before(&name(900, 6)), Before::Since { from: hour(900), to: None });
        decided(&mut books, &name(1_001, 6), 4);
        for hour in [1_001, 1_168] {
            let next = name(hour, books.lanes.values().next().unwrap().places.last().unwrap() + 1);
            assert_eq!(books.may_be_before(&next), since(1_000, next.hour.begin_us() / 3_600_000_000 + 2));
            decided(&mut books, &next, 1);
        }
        decided(&mut books, &name(1_169, 12), 1);
        assert_eq!(books.may_be_before(&name(1_169, 13)), Before::Nothing);
        // What comes after all is decided none the less.
        assert!(!books.is_decided(&name(1_000, 5)) && books.is_decided(&name(1_001, 6)));
    }

    #[test]
    fn a_place_that_comes_again_in_another_hour_is_another_bundle_also_after_a_checkpoint() {
        let mut books = Books::new(Site::new("pit-7").unwrap());
        let bundle = Named { key: name(1_000, 5).to_string(), ..Named::default() };
        let decision = Decision { number: 1, bundle: Some(bundle), decided_us: 1, ..Decision::default() };
        books.apply(&Link { decision: Arc::new(decision), digest: [1; 32] }).unwrap();
        let mut again = Books::new(Site::new("pit-7").unwrap());
        again.restore(books.checkpoint().unwrap()).unwrap();
        for books in [books, again] {
            assert!(books.is_decided(&name(1_000, 5)));
            // As from an image of the disk that was restored, or from somebody who is to be heard in its place.
            assert!(!books.is_decided(&name(1_001, 5)) && !books.is_decided(&name(999, 5)));
        }
    }

    #[test]
    fn no_more_is_written_of_books_than_of_entries() {
        let mut books = Books::new(Site::new("pit-7").unwrap());
        let (mut written, mut times, mut entries) = (0, 0, 0);
        for number in 1..=4_096 {
            let bundle = Named { key: name(number / 64, number).to_string(), ..Named::default() };
            let decision = Decision {
                number,
                previous: books.digest(),
                bundle: Some(bundle),
                decided_us: 1,
                ..Decision::default()
            };
            entries += decision.encoded_len();
            let link = Link { decision: Arc::new(decision), digest: [number as u8; 32] };
            books.apply(&link).unwrap();
            if let Some(checkpoint) = books.checkpoint_if_due(16) {
                assert!(number.is_multiple_of(16));
                (written, times) = (written + checkpoint.encoded_len(), times + 1);
            }
        }
        assert!(written <= entries && (4..200).contains(&times), "{times}: {written} of {entries}");
    }
}

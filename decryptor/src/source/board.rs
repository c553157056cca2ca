//! What a replica has heard of and not yet done, lane by lane.
//!
//! - **A lane has room for its next few, and takes none from others**: bundles of a lane are decided from the lowest place on, so of what
//!   finds no room the highest goes. A listing finds it again, and is asked for as soon as the lane comes to its end.
//! - **A lane that waits holds no message.** How long it waits nobody knows; who holds its messages has no place for those of others.

use super::books::LaneId;
use super::notice::Receipt;
use pithead_hop::bundle::{BundleName, Hour};
use pithead_sealing::Site;
use std::collections::{BTreeMap, HashMap};

/// Bundles of one lane that are remembered: some seconds of work.
pub(super) const LANE_MAX: usize = 64;

/// Bundles of one site that are remembered; a name is some 200 bytes. A thousand lanes have all of theirs.
const SITE_MAX: usize = 65_536;

#[derive(Debug, Default)]
struct Pending {
    receipts: Vec<Receipt>,
    /// When the store has made it, if a listing has said so.
    created_us: Option<u64>,
}

/// One lane, and whether somebody is at it.
#[derive(Debug, Default)]
pub(super) struct Lane {
    /// By first place and hour, which name a bundle of a lane.
    pending: BTreeMap<(u64, Hour), (BundleName, Pending)>,
    pub(super) running: bool,
    /// Its first bundle cannot be decided now.
    waits: bool,
    /// There are more in the bucket than it had room for.
    more: bool,
}

impl Lane {
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }
}

/// What is known of one site.
#[derive(Debug, Default)]
struct OfSite {
    names: usize,
    /// How many were made when.
    ages: BTreeMap<u64, usize>,
}

impl OfSite {
    fn forget(&mut self, pending: &Pending) {
        self.names -= 1;
        let Some(created_us) = pending.created_us else { return };
        if let Some(many) = self.ages.get_mut(&created_us) {
            *many -= 1;
            if *many == 0 {
                self.ages.remove(&created_us);
            }
        }
    }
}

/// What a replica has heard of and not yet done.
#[derive(Debug, Default)]
pub(super) struct Board {
    pub(super) lanes: HashMap<(Site, LaneId), Lane>,
    sites: HashMap<Site, OfSite>,
}

impl Board {
    /// Remembers a bundle; false if there is no room for it. Its receipt, and that of one that had to go, is let go of then, as it is where
    /// the lane waits: their messages come again.
    pub(super) fn add(
        &mut self,
        name: BundleName,
        receipt: Option<Receipt>,
        created_us: Option<u64>,
    ) -> bool {
        let of_site = self.sites.entry(name.site.clone()).or_default();
        let lane = self.lanes.entry((name.site.clone(), LaneId::of(&name))).or_default();
        let key = (name.first.0, name.hour);
        let full = lane.pending.len() >= LANE_MAX || of_site.names >= SITE_MAX;
        if full && !lane.pending.contains_key(&key) {
            lane.more = true;
            match lane.pending.last_entry() {
                Some(highest) if *highest.key() > key => of_site.forget(&highest.remove().1),
                _ => return false,
            }
        }
        let (_, pending) = lane.pending.entry(key).or_insert_with(|| {
            of_site.names += 1;
            (name, Pending::default())
        });
        if !lane.waits {
            pending.receipts.extend(receipt);
        }
        if let (None, Some(created_us)) = (pending.created_us, created_us) {
            pending.created_us = Some(created_us);
            *of_site.ages.entry(created_us).or_default() += 1;
        }
        true
    }

    /// Forgets a bundle; gives the receipts of its messages.
    pub(super) fn take(&mut self, name: &BundleName) -> Vec<Receipt> {
        let Some(lane) = self.lanes.get_mut(&(name.site.clone(), LaneId::of(name))) else {
            return Vec::new();
        };
        let Some((_, pending)) = lane.pending.remove(&(name.first.0, name.hour)) else { return Vec::new() };
        if let Some(of_site) = self.sites.get_mut(&name.site) {
            of_site.forget(&pending);
        }
        pending.receipts
    }

    /// The first bundles of a lane.
    pub(super) fn next_of(&self, site: &Site, id: &LaneId, most: usize) -> Vec<BundleName> {
        let lane = self.lanes.get(&(site.clone(), id.clone()));
        lane.map(|lane| lane.pending.values().take(most).map(|(name, _)| name.clone()).collect())
            .unwrap_or_default()
    }

    /// Whether somebody is at a lane.
    pub(super) fn runs(&mut self, site: &Site, id: &LaneId, running: bool) {
        if let Some(lane) = self.lanes.get_mut(&(site.clone(), id.clone())) {
            lane.running = running;
        }
    }

    /// A lane waits: it holds no message from here on.
    pub(super) fn waits(&mut self, site: &Site, id: &LaneId) {
        if let Some(lane) = self.lanes.get_mut(&(site.clone(), id.clone())) {
            lane.waits = true;
            lane.pending.values_mut().for_each(|(_, pending)| pending.receipts.clear());
        }
    }

    /// A lane goes on. True if it comes to the end of what it had room for: somebody has to look for the rest.
    pub(super) fn goes_on(&mut self, site: &Site, id: &LaneId) -> bool {
        let Some(lane) = self.lanes.get_mut(&(site.clone(), id.clone())) else { return false };
        lane.waits = false;
        let looks = lane.more && lane.pending.len() <= LANE_MAX / 8;
        lane.more &= !looks;
        looks
    }

    /// Forgets everything about a site.
    pub(super) fn forget(&mut self, site: &Site) {
        self.sites.remove(site);
        self.lanes.retain(|(of, _), _| of != site);
    }

    /// Lanes at which somebody is, or should be.
    pub(super) fn tidy(&mut self) {
        self.lanes.retain(|_, lane| lane.running || !lane.is_empty());
    }

    /// Bundles that are remembered.
    pub(super) fn names(&self) -> usize {
        self.sites.values().map(|site| site.names).sum()
    }

    /// When the oldest of a site was made.
    pub(super) fn oldest(&self, site: &Site) -> Option<u64> {
        Some(*self.sites.get(site)?.ages.first_key_value()?.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pithead_hop::bundle::{Hour, SpoolId};
    use pithead_hop::identity::GatewayName;
    use pithead_spool::Position;
    use std::sync::Arc;
    use tokio::sync::{Semaphore, mpsc};

    fn name(site: &str, gateway: u64, first: u64) -> BundleName {
        BundleName {
            site: Site::new(site).unwrap(),
            hour: Hour::of_us(0),
            gateway: GatewayName::new(&format!("gw-{gateway}")).unwrap(),
            spool: SpoolId::new([1; 16]),
            lane: pithead_spool::Lane::First,
            first: Position(first),
        }
    }

    fn receipt(places: &Arc<Semaphore>) -> Option<Receipt> {
        let place = Arc::clone(places).try_acquire_owned().ok()?;
        let (done, _) = mpsc::channel(1);
        Receipt::of("handle".into(), 1, done, place).1.pop()
    }

    #[test]
    fn a_lane_with_a_thousand_bundles_leaves_room_for_every_other_and_keeps_its_first() {
        let mut board = Board::default();
        // The highest come first.
        for first in (0..10_000).rev() {
            assert!(board.add(name("pit-7", 1, first), None, Some(first)));
        }
        assert!(!board.add(name("pit-7", 1, 10_000), None, None));
        let of_first = LaneId::of(&name("pit-7", 1, 0));
        let site = Site::new("pit-7").unwrap();
        let next: Vec<_> =
            board.next_of(&site, &of_first, usize::MAX).iter().map(|name| name.first.0).collect();
        assert_eq!(next, (0..LANE_MAX as u64).collect::<Vec<_>>());
        assert_eq!((board.names(), board.oldest(&site)), (LANE_MAX, Some(0)));
        assert!(board.add(name("pit-7", 2, 5), None, None) && board.add(name("pit-8", 1, 5), None, None));
        // It comes to its end, and asks for the rest once.
        let asked = (0..LANE_MAX as u64).filter(|first| {
            board.take(&name("pit-7", 1, *first));
            board.goes_on(&site, &of_first)
        });
        assert_eq!(asked.count(), 1);
        assert_eq!((board.names(), board.oldest(&site)), (2, None));
    }

    #[test]
    fn two_bundles_of_one_place_and_different_hours_have_each_its_own_messages() {
        let (mut board, places) = (Board::default(), Arc::new(Semaphore::new(8)));
        let one = name("pit-7", 1, 5);
        let other = BundleName { hour: one.hour.behind().unwrap(), ..one.clone() };
        for name in [&one, &other, &other] {
            assert!(board.add(name.clone(), receipt(&places), None));
        }
        let next = board.next_of(&one.site, &LaneId::of(&one), usize::MAX);
        assert_eq!(next, [one.clone(), other.clone()]);
        assert_eq!((board.take(&one).len(), board.take(&other).len()), (1, 2));
    }

    #[test]
    fn a_full_site_takes_nothing_from_another_one() {
        let mut board = Board::default();
        for gateway in 0..2_000 {
            for first in 0..LANE_MAX as u64 {
                board.add(name("pit-7", gateway, first), None, None);
            }
        }
        assert_eq!(board.names(), SITE_MAX);
        assert!(!board.add(name("pit-7", 3_000, 1), None, None));
        assert!(board.add(name("pit-8", 1, 1), None, None));
    }

    #[test]
    fn a_lane_that_waits_gives_the_places_of_its_messages_back_and_takes_none() {
        let (mut board, places) = (Board::default(), Arc::new(Semaphore::new(8)));
        let (site, id) = (Site::new("pit-7").unwrap(), LaneId::of(&name("pit-7", 1, 0)));
        for first in 0..8 {
            board.add(name("pit-7", 1, first), receipt(&places), None);
        }
        assert_eq!(places.available_permits(), 0);
        board.waits(&site, &id);
        assert_eq!(places.available_permits(), 8);
        board.add(name("pit-7", 1, 3), receipt(&places), None);
        assert_eq!((places.available_permits(), board.names()), (8, 8));
        board.goes_on(&site, &id);
        board.add(name("pit-7", 1, 3), receipt(&places), None);
        assert_eq!(places.available_permits(), 7);
        assert_eq!(board.take(&name("pit-7", 1, 3)).len(), 1);
        // What had to go for a lower one lets go of its message as well.
        for first in 100..200 {
            board.add(name("pit-7", 1, first), receipt(&places), None);
        }
        let free = places.available_permits();
        for first in 20..100 {
            board.add(name("pit-7", 1, first), None, None);
        }
        assert!(places.available_permits() > free);
    }
}

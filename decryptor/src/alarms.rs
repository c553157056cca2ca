//! What a thief at a gateway cannot hide: by which statement a device seals, said inside its seals.
//!
//! - `key.unknown_statement`: a digest that no statement accepted here has. Somebody signs whom we do not know, or envelopes are
//!   made up; or the statement went to the site by hand before it came here.
//! - `key.freeze`: the newest statement that a device has named is more than 45 days older than the newest of its site. Somebody keeps
//!   newer ones from it; or its way is down, and what comes now has waited for long.
//!
//! Evidence, not prevention: the envelope is delivered all the same. Each is told once per device until the program is started again
//! (a device that follows and falls behind once more is told again), whatever anybody sends: names and digests can be made up, so
//! logs are bounded by devices and devices by [`DEVICES`]. Envelopes are counted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use pithead_sealing::trust::UnixTime;
use pithead_sealing::{DeviceId, Identity, Site};

use crate::books::{Books, StatementStanding};
use crate::metrics::{KeyAlarm, KeyAlarmLabel, Metrics};

/// A device this far behind is frozen: statements are issued daily, are stale after 30 days, and a device that is told so fetches.
pub const FREEZE_S: u64 = 45 * 86_400;

/// Devices of a site that are remembered, some 100 bytes each: more than any site has, and no more memory than that for who makes
/// names up. Each site has places of its own, so that a hostile gateway blinds no other.
pub const DEVICES: usize = 65_536;

#[derive(Debug, Default)]
struct Seen {
    /// When the newest statement that it has named was issued.
    newest: UnixTime,
    frozen: bool,
    unknown: bool,
}

#[derive(Debug, Default)]
struct Devices {
    by_site: BTreeMap<Site, BTreeMap<DeviceId, Seen>>,
    full: BTreeSet<Site>,
}

impl Devices {
    fn of(&mut self, identity: &Identity) -> Option<&mut Seen> {
        let site = self.by_site.entry(identity.site.clone()).or_default();
        if !site.contains_key(&identity.device) {
            if site.len() >= DEVICES {
                if self.full.insert(identity.site.clone()) {
                    tracing::error!(
                        event = "key.alarms_full",
                        site = %identity.site,
                        devices = DEVICES,
                        "no more devices are watched one by one"
                    );
                }
                return None;
            }
            site.insert(identity.device.clone(), Seen::default());
        }
        site.get_mut(&identity.device)
    }
}

/// What was told of a device, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// Its statement is not known here.
    UnknownStatement,
    /// It has fallen behind.
    Freeze,
    /// It has followed.
    FreezeOver,
}

/// The alarms on what devices say of their statements.
#[derive(Debug)]
pub struct Alarms {
    metrics: Arc<Metrics>,
    devices: Mutex<Devices>,
}

impl Alarms {
    /// Nothing was seen yet.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, devices: Mutex::default() }
    }

    /// An envelope was authentic, and names this statement (its digest's first 16 bytes); `created` is what it says of its time.
    /// Gives what it has told, if it was the first time.
    pub fn saw(
        &self,
        books: &Books,
        identity: &Identity,
        statement: Option<&[u8; 16]>,
        created: Option<&str>,
    ) -> Option<Told> {
        let digest = statement?;
        // A decryptor that was never given a statement of the site has nothing to compare with.
        let standing = books.standing_of(&identity.site, digest)?;
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        let (site, device) = (&identity.site, &identity.device);
        match standing {
            StatementStanding::Unknown => {
                self.count(KeyAlarm::UnknownStatement);
                let seen = devices.of(identity)?;
                if !std::mem::replace(&mut seen.unknown, true) {
                    self.metrics.unknown_statement_devices.inc();
                    tracing::error!(
                        event = "key.unknown_statement", %site, %device, statement = hex::encode(digest), created,
                        "a device seals by a statement that was never accepted here; its envelopes are delivered all the same"
                    );
                    return Some(Told::UnknownStatement);
                }
                None
            }
            StatementStanding::Known { issued_at, newest } => {
                // What has waited in an outbox names what was new then: the newest that a device has named counts.
                let seen = devices.of(identity);
                let best = seen.as_ref().map_or(issued_at, |seen| seen.newest.max(issued_at));
                let behind_s = newest.since(best);
                let frozen = behind_s > FREEZE_S;
                if frozen {
                    self.count(KeyAlarm::Freeze);
                }
                let seen = seen?;
                seen.newest = best;
                match (std::mem::replace(&mut seen.frozen, frozen), frozen) {
                    (false, true) => {
                        self.metrics.frozen_devices.inc();
                        tracing::error!(
                            event = "key.freeze", %site, %device, behind_days = behind_s / 86_400, created,
                            "a device has not followed its site's statements: somebody may keep them from it"
                        );
                        Some(Told::Freeze)
                    }
                    (true, false) => {
                        self.metrics.frozen_devices.dec();
                        tracing::info!(event = "key.freeze_over", %site, %device);
                        Some(Told::FreezeOver)
                    }
                    (false, false) | (true, true) => None,
                }
            }
        }
    }

    fn count(&self, alarm: KeyAlarm) {
        self.metrics.key_alarms.get_or_create(&KeyAlarmLabel { alarm }).inc();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::authority::testing::{DAY, START, TestAuthority};
    use crate::sink::testing;
    use pithead_sealing::trust::{KeyStatus, Sha256Digest};

    fn identity(device: &str) -> Identity {
        testing::identity(device, 1)
    }

    fn short(digest: &Sha256Digest) -> [u8; 16] {
        digest.as_bytes()[..16].try_into().unwrap()
    }

    /// Books with the statements of `pit-7` that were issued on these days, and their digests.
    async fn books(days: &[u64]) -> (Books, Vec<[u8; 16]>) {
        let authority = TestAuthority::new();
        let (mut books, mut digests) = (Books::default(), Vec::new());
        for day in days {
            let keys = if digests.is_empty() {
                vec![authority.key(1).offered(KeyStatus::Active)]
            } else {
                Vec::new()
            };
            let issued = authority.list(&keys, START.plus(day * DAY)).await.unwrap();
            books.learn(&issued.statement);
            digests.push(short(issued.statement.digest()));
        }
        (books, digests)
    }

    #[tokio::test]
    async fn a_device_is_told_of_once_when_it_is_more_than_45_days_behind_and_once_when_it_has_followed() {
        let (books, digests) = books(&[0, 1, 46]).await;
        let metrics = Arc::new(Metrics::new());
        let alarms = Alarms::new(Arc::clone(&metrics));
        let saw = |device, digest: &[u8; 16]| alarms.saw(&books, &identity(device), Some(digest), None);
        assert_eq!(saw("truck-2", &digests[1]), None, "exactly 45 days");
        let told: Vec<_> = (0..3).map(|_| saw("truck-1", &digests[0])).collect();
        assert_eq!(told, [Some(Told::Freeze), None, None]);
        assert_eq!(saw("truck-3", &digests[0]), Some(Told::Freeze), "each device by itself");
        assert_eq!(metrics.frozen_devices.get(), 2);
        assert_eq!(saw("truck-1", &digests[2]), Some(Told::FreezeOver));
        // What waited in its outbox meanwhile is no news.
        assert_eq!(saw("truck-1", &digests[0]), None);
        assert_eq!(metrics.frozen_devices.get(), 1);
        let text = metrics.text();
        assert!(text.contains("pithead_decryptor_key_alarms_total{alarm=\"freeze\"} 4"), "{text}");
    }

    #[tokio::test]
    async fn a_statement_that_nobody_has_heard_of_is_told_once_per_device() {
        let (books, digests) = books(&[0]).await;
        let metrics = Arc::new(Metrics::new());
        let alarms = Alarms::new(Arc::clone(&metrics));
        let saw = |device, digest: [u8; 16]| alarms.saw(&books, &identity(device), Some(&digest), None);
        assert_eq!(saw("truck-1", [1; 16]), Some(Told::UnknownStatement));
        // Whoever makes digests up fills no log.
        assert_eq!([saw("truck-1", [2; 16]), saw("truck-1", digests[0]), saw("truck-1", [3; 16])], [None; 3]);
        assert_eq!(saw("truck-2", [1; 16]), Some(Told::UnknownStatement));
        assert_eq!(metrics.unknown_statement_devices.get(), 2);
        let text = metrics.text();
        assert!(text.contains("{alarm=\"unknown_statement\"} 4"), "{text}");
        // Nothing is said of an envelope that names none, or where nothing is known.
        assert_eq!(alarms.saw(&books, &identity("truck-3"), None, None), None);
        assert_eq!(alarms.saw(&Books::default(), &identity("truck-3"), Some(&[1; 16]), None), None);
    }

    #[tokio::test]
    async fn names_that_are_made_up_take_no_more_than_their_room() {
        let (books, _) = books(&[0]).await;
        let metrics = Arc::new(Metrics::new());
        let alarms = Alarms::new(Arc::clone(&metrics));
        let told = (0..DEVICES + 10)
            .filter(|n| alarms.saw(&books, &identity(&format!("d{n}")), Some(&[9; 16]), None).is_some())
            .count();
        let devices = alarms.devices.lock().unwrap();
        assert_eq!((told, devices.full.len()), (DEVICES, 1));
        assert_eq!(devices.by_site.values().map(BTreeMap::len).collect::<Vec<_>>(), [DEVICES]);
        let counted =
            metrics.key_alarms.get_or_create(&KeyAlarmLabel { alarm: KeyAlarm::UnknownStatement }).get();
        assert_eq!(counted, (DEVICES + 10) as u64, "counted all the same");
    }
}

//! The devices on the page: what is known of each, the worst first, and not more than a page holds.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use pithead_hop::identity::Assurance;
use pithead_sealing::DeviceId;
use pithead_sealing::trust::KeyArn;

use super::activity::Seen;
use crate::devices::doors::Known;

/// Devices on one page. The rest is found by name.
pub const ROWS_MAX: usize = 200;
/// A device that sealed within this counts for how many have taken a key up.
pub const ADOPTION_OVER: Duration = Duration::from_secs(24 * 3600);

/// One device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its name.
    pub device: DeviceId,
    /// How it is known, if it is connected now.
    pub connected: Option<Assurance>,
    /// Nobody of that name is let in.
    pub revoked: bool,
    /// How long ago it was last connected, or its last envelope came; none if neither was since the start.
    pub last_ago: Option<Duration>,
    /// What came of it.
    pub seen: Option<Seen>,
    /// Numbers that nobody has explained.
    pub missing: u64,
    /// Numbers that it has declared as dropped.
    pub declared: u64,
}

impl Row {
    /// Where it stands: what is missing first, then who has gone quiet, then who was never here, then who is connected, then
    /// who is not let in any more.
    fn rank(&self) -> (u8, Reverse<u64>, Reverse<Duration>) {
        let quiet = Reverse(self.last_ago.unwrap_or_default());
        let place = match () {
            () if self.revoked => 4,
            () if self.missing > 0 => 0,
            () if self.connected.is_some() => 3,
            () if self.last_ago.is_some() => 1,
            () => 2,
        };
        let missing = if self.revoked { 0 } else { self.missing };
        // Among those that are there, one is as good as the other: by name.
        (place, Reverse(missing), if place == 3 { Reverse(Duration::ZERO) } else { quiet })
    }
}

/// What a page shows of the devices.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Devices {
    /// The worst first.
    pub rows: Vec<Row>,
    /// All that are known.
    pub known: usize,
    /// Those of them that the filter leaves.
    pub matching: usize,
    /// Those that are connected.
    pub connected: usize,
    /// Those with missing numbers.
    pub with_missing: usize,
}

/// Puts together what the ports, the intake and the lines know.
#[must_use]
pub fn devices(
    known: &BTreeMap<DeviceId, Known>,
    seen: &HashMap<DeviceId, Seen>,
    unexplained: &HashMap<DeviceId, (u64, u64)>,
    filter: &str,
    now: Duration,
) -> Devices {
    let names: BTreeSet<&DeviceId> = known.keys().chain(seen.keys()).chain(unexplained.keys()).collect();
    let row = |device: &DeviceId| {
        let port = known.get(device).copied().unwrap_or_default();
        let came = seen.get(device);
        let (missing, declared) = unexplained.get(device).copied().unwrap_or_default();
        let came_ago = came.map(|seen| now.saturating_sub(seen.at));
        let last_ago = port.seen_ago.into_iter().chain(came_ago).min();
        Row {
            device: device.clone(),
            connected: port.connected,
            revoked: port.revoked,
            last_ago,
            seen: came.cloned(),
            missing,
            declared,
        }
    };
    let all = names.len();
    let mut rows: Vec<Row> = names.into_iter().map(row).collect();
    let connected = rows.iter().filter(|row| row.connected.is_some()).count();
    let with_missing = rows.iter().filter(|row| row.missing > 0).count();
    let wanted = filter.to_ascii_lowercase();
    rows.retain(|row| row.device.as_str().to_ascii_lowercase().contains(&wanted));
    let matching = rows.len();
    rows.sort_by(|a, b| a.rank().cmp(&b.rank()).then_with(|| a.device.cmp(&b.device)));
    rows.truncate(ROWS_MAX);
    Devices { rows, known: all, matching, connected, with_missing }
}

/// How many devices have sealed lately, by the key of their last envelope.
#[must_use]
pub fn adoption(seen: &HashMap<DeviceId, Seen>, now: Duration) -> BTreeMap<Option<KeyArn>, usize> {
    let mut under: BTreeMap<Option<KeyArn>, usize> = BTreeMap::new();
    for seen in seen.values().filter(|seen| now.saturating_sub(seen.at) <= ADOPTION_OVER) {
        *under.entry(seen.key.clone()).or_default() += 1;
    }
    under
}

#[cfg(test)]
mod tests {
    use super::super::activity::{Activity, Mark};
    use super::*;
    use pithead_sealing::StreamName;

    fn name(text: &str) -> DeviceId {
        DeviceId::new(text).unwrap()
    }

    fn arn(number: u8) -> KeyArn {
        let text = format!(
            "arn:aws:kms:ap-southeast-2:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890{number:02x}"
        );
        KeyArn::new(&text).unwrap()
    }

    fn came(all: &[(&str, u64, u8)]) -> HashMap<DeviceId, Seen> {
        let activity = Activity::default();
        for (device, at_s, key) in all {
            let (device, stream) = (name(device), StreamName::new("can").unwrap());
            let mark = Mark { device, stream, key: Some(arn(*key)), bytes: 9 };
            activity.came([(mark, Duration::ZERO)], Duration::from_secs(*at_s));
        }
        activity.devices()
    }

    const NOW: Duration = Duration::from_secs(1_000_000);

    #[test]
    fn the_worst_comes_first() {
        let there =
            Known { connected: Some(Assurance::Vouched), seen_ago: Some(Duration::ZERO), revoked: false };
        let gone =
            |minutes: u64| Known { seen_ago: Some(Duration::from_secs(minutes * 60)), ..Known::default() };
        let known = BTreeMap::from([
            (name("b-there"), there),
            (name("a-there"), there),
            (name("gone-short"), gone(5)),
            (name("gone-long"), gone(500)),
            (name("never"), Known::default()),
            (name("stolen"), Known { revoked: true, ..gone(1) }),
            (name("holes"), there),
        ]);
        let unexplained =
            HashMap::from([(name("holes"), (3, 0)), (name("worse"), (70, 1)), (name("stolen"), (900, 0))]);
        let all = devices(&known, &HashMap::new(), &unexplained, "", NOW);
        let order: Vec<&str> = all.rows.iter().map(|row| row.device.as_str()).collect();
        let wanted = ["worse", "holes", "gone-long", "gone-short", "never", "a-there", "b-there", "stolen"];
        assert_eq!(order, wanted);
        assert_eq!((all.known, all.matching, all.connected, all.with_missing), (8, 8, 3, 3));
    }

    #[test]
    fn a_fleet_is_cut_to_a_page_and_one_device_is_found_in_it() {
        let known: BTreeMap<_, _> =
            (0..5_000).map(|number| (name(&format!("Truck-{number:04}")), Known::default())).collect();
        let page = devices(&known, &HashMap::new(), &HashMap::new(), "", NOW);
        assert_eq!((page.rows.len(), page.known, page.matching), (ROWS_MAX, 5_000, 5_000));
        let one = devices(&known, &HashMap::new(), &HashMap::new(), "tRuck-4711", NOW);
        assert_eq!((one.rows.len(), one.known, one.matching), (1, 5_000, 1));
        assert_eq!(one.rows[0].device.as_str(), "Truck-4711");
        assert_eq!(devices(&known, &HashMap::new(), &HashMap::new(), "<script>", NOW).matching, 0);
    }

    #[test]
    fn what_came_counts_as_being_there_whoever_brought_it() {
        let seen = came(&[("carried", 999_990, 1)]);
        let rows = devices(&BTreeMap::new(), &seen, &HashMap::new(), "", NOW).rows;
        assert_eq!((rows[0].last_ago, rows[0].connected), (Some(Duration::from_secs(10)), None));
    }

    #[test]
    fn adoption_counts_devices_by_the_key_of_their_last_envelope_within_a_day() {
        let seen = came(&[
            ("a", 900_000, 1),
            ("a", 999_000, 2),
            ("b", 999_000, 2),
            ("c", 999_000, 1),
            ("old", 900_000, 1),
        ]);
        let under = adoption(&seen, NOW);
        assert_eq!(under, BTreeMap::from([(Some(arn(1)), 1), (Some(arn(2)), 2)]));
    }
}

//! What each device may take of the disk, and how fast: so that one that talks too much hurts itself first.
//!
//! Everything that the spool keeps for a device counts: what waits for the relay, its conflicts, and what the far end refused.
//! Large envelopes count in a budget of their own ([`UploadStore`](pithead_hop::ingest::UploadStore)); here they are the few
//! bytes of their record. Bounds, in the order in which they are met as the disk fills:
//!
//! 1. a device holds at most [`Limits::device_bytes`], whoever else holds what;
//! 2. above [`SOFT_PERCENT`] of the spool, those over their fair share (the budget, divided by the devices that hold
//!    something) are told to come back;
//! 3. above [`THIRD_LANE_PERCENT`] nothing more is taken into the third lane, above [`SECOND_LANE_PERCENT`] nothing into the
//!    second, if the configuration puts anything before it: the rest is for what is more urgent;
//! 4. the spool itself is full, and keeps a segment back, so that what was admitted, and what an acknowledgement
//!    has to write, finds room.
//!
//! # For whoever admits
//!
//! ```text
//! ready(device)                        before a body is looked at: in debt, or full whatever comes
//! charge(device, bytes)                for every byte that has come: the rate
//! admit(device, lane, bytes, fill)  -> a Share, taken from now on; dropped, it is given back
//!     share.keep()                     the bytes are durable: they count until left() says otherwise
//! left(device, bytes)                  passed on, damaged, or carried away
//! hold(device, bytes)                  what a start finds, and what moves here from elsewhere
//! ```
//!
//! Pure: time and how full the spool is are arguments.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pithead_sealing::DeviceId;
use pithead_spool::Lane;

use super::bucket::Bucket;

/// Above this part of the spool, in percent, nobody may hold more than a fair share.
pub const SOFT_PERCENT: u64 = 70;
/// Above this part of the spool, in percent, the third lane waits.
pub const THIRD_LANE_PERCENT: u64 = 85;
/// Above this part of the spool, in percent, the second lane waits as well.
pub const SECOND_LANE_PERCENT: u64 = 95;
/// A device may always hold this part of the spool, in percent, where that is more than the configured bound.
pub const DEVICE_PERCENT: u64 = 5;
/// Devices that are remembered, 150 bytes each: as many as a site may have.
const DEVICES_MAX: usize = pithead_hop::ingest::lines::DEVICES_MAX;

/// The bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// What a device may hold.
    pub device_bytes: u64,
    /// Bytes a second that a device may send in the long run.
    pub rate: u64,
    /// And at once.
    pub burst: u64,
    /// Whether the configuration puts streams into the first lane: only then does the second keep room for it.
    pub keeps_for_first: bool,
}

impl Limits {
    /// The bound per device is at least [`DEVICE_PERCENT`] of a spool of this size.
    fn in_spool(mut self, capacity: u64) -> Self {
        self.device_bytes = self.device_bytes.max(capacity / 100 * DEVICE_PERCENT);
        self
    }
}

/// How full the spool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    /// Bytes that are taken, whatever by.
    pub used: u64,
    /// Bytes that may be taken.
    pub capacity: u64,
}

impl Fill {
    fn is_above(self, percent: u64) -> bool {
        u128::from(self.used) * 100 > u128::from(self.capacity) * u128::from(percent)
    }
}

/// Why not now. A retry can cure each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Over {
    /// The device sends faster than it may.
    #[error("this device sends more than {rate} bytes a second")]
    Rate {
        /// What it may.
        rate: u64,
        /// When its debt will be worn off.
        retry_after: Duration,
    },
    /// The device holds as much as any device may.
    #[error("{held} bytes of this device are here, and {limit} may be")]
    Device {
        /// What is here of it.
        held: u64,
        /// What may be.
        limit: u64,
    },
    /// The spool fills, and the device holds more than a fair share.
    #[error("the spool is filling, and this device holds {held} bytes, more than its share of {share}")]
    Share {
        /// What is here of it.
        held: u64,
        /// The budget, divided by the devices that hold something.
        share: u64,
    },
    /// The spool is nearly full, and the rest is kept for lanes before this one.
    #[error("the spool is nearly full, and the rest is kept for what is more urgent")]
    Lane,
}

/// What the devices hold, and how fast they send. Clones are the same.
#[derive(Debug, Clone)]
pub struct Shares(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Of the spool.
    capacity: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limits: Limits,
    devices: HashMap<DeviceId, Held>,
    /// Of all devices.
    bytes: u64,
    /// Devices that hold something.
    holding: u64,
}

#[derive(Debug)]
struct Held {
    bytes: u64,
    /// What has come from it since it is known here, for screens.
    sent: u64,
    /// None while it is full.
    bucket: Option<Bucket>,
}

/// Room that is taken. Dropped without [`keep`](Self::keep), it is given back.
#[derive(Debug)]
#[must_use = "dropped, it is given back"]
pub struct Share {
    shares: Shares,
    device: DeviceId,
    bytes: u64,
}

impl Share {
    /// The bytes are durable here: they count until [`Shares::left`] says otherwise.
    pub fn keep(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shares.left(&self.device, self.bytes);
    }
}

impl Shares {
    /// Nobody holds anything. The bound per device is at least [`DEVICE_PERCENT`] of the spool's `capacity`.
    #[must_use]
    pub fn new(limits: Limits, capacity: u64) -> Self {
        let limits = limits.in_spool(capacity);
        let state = State { limits, devices: HashMap::new(), bytes: 0, holding: 0 };
        Self(Arc::new(Inner { capacity, state: Mutex::new(state) }))
    }

    /// From now on other bounds. What a device holds above a smaller one stays, and nothing more is taken from it until it is
    /// below; what it owes is worn off at the new rate.
    pub fn change(&self, limits: Limits, now: Duration) {
        let mut state = self.lock();
        state.limits = limits.in_spool(self.0.capacity);
        let Limits { rate, burst, .. } = state.limits;
        for bucket in state.devices.values_mut().filter_map(|held| held.bucket.as_mut()) {
            bucket.change(rate, burst, now);
        }
    }

    /// Before anything of a body is looked at: whether the device may send at all now.
    ///
    /// # Errors
    /// [`Over::Rate`], [`Over::Device`].
    pub fn ready(&self, device: &DeviceId, now: Duration) -> Result<(), Over> {
        let state = self.lock();
        let Some(held) = state.devices.get(device) else { return Ok(()) };
        let limits = &state.limits;
        if held.bytes >= limits.device_bytes {
            return Err(Over::Device { held: held.bytes, limit: limits.device_bytes });
        }
        match held.bucket.map_or(Duration::ZERO, |bucket| bucket.wait_for(0, now)) {
            Duration::ZERO => Ok(()),
            retry_after => Err(Over::Rate { rate: limits.rate, retry_after }),
        }
    }

    /// So many bytes have come from the device itself. They are paid for after the fact, so that what has crossed the radio is
    /// not thrown away; while the device is in debt, [`ready`](Self::ready) refuses.
    pub fn charge(&self, device: &DeviceId, bytes: u64, now: Duration) {
        let mut state = self.lock();
        let Limits { rate, burst, .. } = state.limits;
        let held = state.device(device, now);
        held.sent = held.sent.saturating_add(bytes);
        held.bucket.get_or_insert_with(|| Bucket::full(rate, burst, now)).spend(bytes, now);
    }

    /// Takes room for `bytes` of the device in `lane`.
    ///
    /// # Errors
    /// [`Over`]; nothing is taken then.
    pub fn admit(
        &self,
        device: &DeviceId,
        lane: Lane,
        bytes: u64,
        fill: Fill,
        now: Duration,
    ) -> Result<Share, Over> {
        let mut state = self.lock();
        let limits = state.limits;
        let all = state.bytes.max(1);
        let held = state.devices.get(device).map_or(0, |held| held.bytes);
        if held + bytes > limits.device_bytes {
            return Err(Over::Device { held, limit: limits.device_bytes });
        }
        if fill.is_above(SOFT_PERCENT) {
            // What a device takes of the disk is more than its bytes: padding, heads, segments that are not yet given
            // back. They are shared by all in proportion.
            let takes =
                u64::try_from(u128::from(held) * u128::from(fill.used) / u128::from(all)).unwrap_or(u64::MAX);
            let share = fill.capacity / (state.holding + u64::from(held == 0)).max(1);
            if takes > share {
                return Err(Over::Share { held: takes, share });
            }
        }
        let waits = match lane {
            Lane::First => false,
            Lane::Second => limits.keeps_for_first && fill.is_above(SECOND_LANE_PERCENT),
            Lane::Third => fill.is_above(THIRD_LANE_PERCENT),
        };
        if waits {
            return Err(Over::Lane);
        }
        state.add(device, bytes, now);
        Ok(Share { shares: self.clone(), device: device.clone(), bytes })
    }

    /// Takes room that is not asked for: of what was let in once, and moves within.
    pub fn take(&self, device: &DeviceId, bytes: u64, now: Duration) -> Share {
        self.hold(device, bytes, now);
        Share { shares: self.clone(), device: device.clone(), bytes }
    }

    /// Bytes of the device are here, whoever let them in: what a start finds, and what was moved here from elsewhere.
    pub fn hold(&self, device: &DeviceId, bytes: u64, now: Duration) {
        self.lock().add(device, bytes, now);
    }

    /// Bytes of the device are here no more.
    pub fn left(&self, device: &DeviceId, bytes: u64) {
        let mut state = self.lock();
        let Some(held) = state.devices.get_mut(device).filter(|held| held.bytes > 0) else { return };
        let bytes = bytes.min(held.bytes);
        held.bytes -= bytes;
        let (is_empty, forgotten) = (held.bytes == 0, held.bytes == 0 && held.bucket.is_none());
        state.bytes -= bytes;
        state.holding -= u64::from(is_empty);
        if forgotten {
            state.devices.remove(device);
        }
    }

    /// Nothing is here of anybody any more: who owns the lanes begins to count. How fast each may send stays as it is.
    pub fn forget_held(&self) {
        let mut state = self.lock();
        (state.bytes, state.holding) = (0, 0);
        state.devices.values_mut().for_each(|held| held.bytes = 0);
        state.devices.retain(|_, held| held.bucket.is_some());
    }

    /// What is here of a device.
    #[must_use]
    pub fn held(&self, device: &DeviceId) -> u64 {
        self.lock().devices.get(device).map_or(0, |held| held.bytes)
    }

    /// Bytes that each device has sent itself, since it is known here. A device that is forgotten begins again at 0.
    #[must_use]
    pub fn sent(&self) -> Vec<(DeviceId, u64)> {
        let state = self.lock();
        let sent = state.devices.iter().filter(|(_, held)| held.sent > 0);
        sent.map(|(device, held)| (device.clone(), held.sent)).collect()
    }

    /// What a device may hold.
    #[must_use]
    pub fn per_device(&self) -> u64 {
        self.lock().limits.device_bytes
    }

    /// How many devices hold something, and how much the one that holds most.
    #[must_use]
    pub fn holding(&self) -> (u64, u64) {
        let state = self.lock();
        (state.holding, state.devices.values().map(|held| held.bytes).max().unwrap_or(0))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn device(&mut self, device: &DeviceId, now: Duration) -> &mut Held {
        if self.devices.len() >= DEVICES_MAX && !self.devices.contains_key(device) {
            // A full bucket and one that never was are the same.
            self.devices
                .retain(|_, held| held.bytes > 0 || held.bucket.is_some_and(|bucket| !bucket.is_full(now)));
        }
        self.devices.entry(device.clone()).or_insert(Held { bytes: 0, sent: 0, bucket: None })
    }

    fn add(&mut self, device: &DeviceId, bytes: u64, now: Duration) {
        if bytes == 0 {
            return;
        }
        let held = self.device(device, now);
        let is_new = held.bytes == 0;
        held.bytes += bytes;
        self.bytes += bytes;
        self.holding += u64::from(is_new);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const MIB: u64 = 1 << 20;
    const NOW: Duration = Duration::from_secs(1_000);
    const LIMITS: Limits =
        Limits { device_bytes: 2 * GIB, rate: 16 * MIB, burst: 512 * MIB, keeps_for_first: true };

    fn device(name: &str) -> DeviceId {
        DeviceId::new(name).unwrap()
    }

    fn at_percent(percent: u64) -> Fill {
        Fill { used: 10 * GIB / 100 * percent, capacity: 10 * GIB }
    }

    #[test]
    fn a_device_holds_two_gib_or_a_twentieth_of_a_large_spool() {
        let truck = device("truck-1");
        for (capacity, limit) in [(10 * GIB, 2 * GIB), (200 * GIB, 200 * GIB / 100 * 5)] {
            let shares = Shares::new(LIMITS, capacity);
            let fill = Fill { used: 0, capacity };
            shares.admit(&truck, Lane::First, limit, fill, NOW).unwrap().keep();
            let over = shares.admit(&truck, Lane::First, 1, fill, NOW).unwrap_err();
            assert_eq!(over, Over::Device { held: limit, limit });
            assert_eq!(shares.ready(&truck, NOW), Err(over), "and is told before it sends a body");
            shares.admit(&device("truck-2"), Lane::First, 1, fill, NOW).unwrap().keep();
            shares.left(&truck, 10);
            shares.admit(&truck, Lane::First, 10, fill, NOW).unwrap().keep();
        }
    }

    #[test]
    fn room_that_was_not_kept_is_given_back() {
        let shares = Shares::new(LIMITS, 10 * GIB);
        let truck = device("truck-1");
        let share = shares.admit(&truck, Lane::First, 100, at_percent(1), NOW).unwrap();
        assert_eq!(shares.held(&truck), 100);
        drop(share);
        assert_eq!((shares.held(&truck), shares.holding()), (0, (0, 0)));
        assert!(shares.lock().devices.is_empty());
    }

    #[test]
    fn what_anybody_held_is_forgotten_and_the_debt_of_who_sent_too_fast_is_not() {
        let shares = Shares::new(LIMITS, 10 * GIB);
        let (truck, other) = (device("truck-1"), device("truck-2"));
        let on_its_way = shares.admit(&truck, Lane::First, 100, at_percent(1), NOW).unwrap();
        shares.hold(&truck, 50, NOW);
        shares.charge(&other, 600 * MIB, NOW);
        shares.hold(&other, 70, NOW);
        shares.forget_held();
        assert_eq!((shares.held(&truck), shares.held(&other), shares.holding()), (0, 0, (0, 0)));
        drop(on_its_way);
        shares.hold(&truck, 5, NOW);
        assert_eq!((shares.held(&truck), shares.holding()), (5, (1, 5)));
        assert!(matches!(shares.ready(&other, NOW), Err(Over::Rate { .. })));
    }

    #[test]
    fn above_the_soft_limit_whoever_holds_more_than_a_fair_share_waits_first() {
        let shares = Shares::new(LIMITS, 10 * GIB);
        let (greedy, modest) = (device("greedy"), device("modest"));
        shares.hold(&greedy, 800 * MIB, NOW);
        shares.hold(&modest, 100 * MIB, NOW);
        for (percent, refused) in [(70, false), (71, true), (94, true)] {
            let answer = shares.admit(&greedy, Lane::Second, 1, at_percent(percent), NOW);
            assert_eq!(matches!(answer, Err(Over::Share { .. })), refused, "{percent} %: {answer:?}");
            shares.admit(&modest, Lane::Second, 1, at_percent(percent), NOW).unwrap().keep();
            drop(shares.admit(&device("new"), Lane::Second, 1, at_percent(percent), NOW).unwrap());
        }
        // Alone, it has a right to all of it.
        shares.left(&modest, 200 * MIB);
        drop(shares.admit(&greedy, Lane::Second, 1, at_percent(94), NOW).unwrap());
    }

    #[test]
    fn the_last_room_is_for_what_is_urgent_if_anything_is() {
        let truck = device("truck-1");
        let is_taken =
            |shares: &Shares, lane, percent| shares.admit(&truck, lane, 1, at_percent(percent), NOW).is_ok();
        let shares = Shares::new(LIMITS, 10 * GIB);
        assert!(is_taken(&shares, Lane::Third, 85) && !is_taken(&shares, Lane::Third, 86));
        assert!(is_taken(&shares, Lane::Second, 95) && !is_taken(&shares, Lane::Second, 96));
        assert!(is_taken(&shares, Lane::First, 100));
        let nothing_urgent = Shares::new(Limits { keeps_for_first: false, ..LIMITS }, 10 * GIB);
        assert!(is_taken(&nothing_urgent, Lane::Second, 100));
    }

    #[test]
    fn other_bounds_count_from_now_on_and_what_is_here_stays() {
        let shares = Shares::new(LIMITS, 10 * GIB);
        let truck = device("truck-1");
        shares.admit(&truck, Lane::First, 600 * MIB, at_percent(1), NOW).unwrap().keep();
        shares.charge(&truck, 544 * MIB, NOW);
        // 32 MiB of debt, worn off at 1 MiB a second; and no more than a twentieth of the spool, which is more than 1 MiB.
        shares.change(Limits { device_bytes: MIB, rate: MIB, burst: MIB, ..LIMITS }, NOW);
        let limit = 10 * GIB / 100 * 5;
        assert_eq!(shares.ready(&truck, NOW), Err(Over::Device { held: 600 * MIB, limit }));
        shares.left(&truck, 200 * MIB);
        let retry_after = Duration::from_secs(32);
        assert_eq!(shares.ready(&truck, NOW), Err(Over::Rate { rate: MIB, retry_after }));
        assert_eq!(shares.ready(&truck, NOW + retry_after), Ok(()));
        assert_eq!(shares.per_device(), limit);
    }

    #[test]
    fn a_device_sends_its_burst_at_once_and_then_waits_until_its_debt_is_worn_off() {
        let shares = Shares::new(LIMITS, 200 * GIB);
        let truck = device("truck-1");
        shares.charge(&truck, 512 * MIB, NOW);
        assert_eq!(shares.ready(&truck, NOW), Ok(()));
        shares.charge(&truck, 32 * MIB, NOW);
        let retry_after = Duration::from_secs(2);
        assert_eq!(shares.ready(&truck, NOW), Err(Over::Rate { rate: 16 * MIB, retry_after }));
        assert_eq!(shares.ready(&device("truck-2"), NOW), Ok(()));
        assert_eq!(shares.ready(&truck, NOW + retry_after), Ok(()));
    }
}

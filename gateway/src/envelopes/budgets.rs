//! How many new data keys a device may use.
//!
//! Anybody who may submit for a device can mint encrypted data keys (EDKs), and each costs one call to KMS in the cloud.
//! So *new* EDKs are counted per device named in the context, whoever brings them: a bucket of two weeks' worth, refilled
//! at what a device with four streams that rotate every 15 minutes needs, several times over. An EDK among the device's
//! last 256 is not new: resends and a long outbox cost nothing.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use moka::sync::Cache;
use pithead_sealing::DeviceId;

/// New EDKs per device and hour, unless configured otherwise.
pub const REFILL_PER_HOUR: u32 = 120;
/// Two weeks of outbox, sealed offline at the full rate, unless configured otherwise.
pub const CAPACITY: u32 = REFILL_PER_HOUR * 24 * 14;
/// EDKs of a device that are remembered: 16 streams, and as many sessions each.
pub const REMEMBERED: usize = 256;
/// Devices that are remembered at a time, 2 kB to 10 kB each. A site has thousands; only its own CA can name more.
const DEVICES_MAX: u64 = 20_000;

/// How many, at once and in the long run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// New EDKs per device and hour.
    pub per_hour: u32,
    /// At once.
    pub burst: u32,
}

impl Default for Allowance {
    fn default() -> Self {
        Self { per_hour: REFILL_PER_HOUR, burst: CAPACITY }
    }
}

impl Allowance {
    fn token(self) -> Duration {
        Duration::from_secs(3600) / self.per_hour.max(1)
    }

    /// After this long a bucket is full again, and forgetting it changes nothing.
    fn full_again(self) -> Duration {
        self.token().saturating_mul(self.burst)
    }
}

/// SHA-256 of key ARN and ciphertext: which data key an EDK is.
pub type EdkHash = [u8; 32];

/// Too many new data keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more than {} new data keys, refilled by {} an hour", allowance.burst, allowance.per_hour)]
pub struct OverBudget {
    /// What the device may have.
    pub allowance: Allowance,
    /// When one more will be allowed.
    pub retry_after: Duration,
}

/// The budgets of all devices. Clones are the same ones.
#[derive(Debug, Clone)]
pub struct Budgets(Arc<ArcSwap<InForce>>);

#[derive(Debug)]
struct InForce {
    allowance: Allowance,
    devices: Cache<DeviceId, Arc<Mutex<Budget>>>,
}

impl InForce {
    fn new(allowance: Allowance) -> Self {
        // A hundred years are as good as for ever, and what the cache can count.
        let idle = allowance.full_again().min(Duration::from_secs(100 * 365 * 86_400));
        Self { allowance, devices: Cache::builder().max_capacity(DEVICES_MAX).time_to_idle(idle).build() }
    }
}

impl Default for Budgets {
    fn default() -> Self {
        Self::new(Allowance::default())
    }
}

impl Budgets {
    /// Budgets of so much for each device.
    #[must_use]
    pub fn new(allowance: Allowance) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(InForce::new(allowance))))
    }

    /// From now on another allowance. What a device has left it keeps, as far as the new burst goes; what it has used before is
    /// not forgotten.
    pub fn change(&self, allowance: Allowance) {
        let before = self.0.load_full();
        if before.allowance == allowance {
            return;
        }
        let next = InForce::new(allowance);
        for (device, budget) in &before.devices {
            next.devices.insert((*device).clone(), budget);
        }
        self.0.store(Arc::new(next));
    }

    /// Pays for those of an envelope's EDKs that are new for the device, all or none. `now` is operating time.
    ///
    /// # Errors
    /// [`OverBudget`] if the bucket does not hold that many; nothing is paid or remembered then.
    pub fn spend(&self, device: &DeviceId, edks: &[EdkHash], now: Duration) -> Result<(), OverBudget> {
        let in_force = self.0.load();
        let allowance = in_force.allowance;
        let full = || Arc::new(Mutex::new(Budget::full(allowance, now)));
        let budget = in_force.devices.get_with_by_ref(device, full);
        let mut budget = budget.lock().unwrap_or_else(PoisonError::into_inner);
        budget.adapt(allowance, now);
        budget.spend(edks, now)
    }
}

#[cfg(test)]
impl Budgets {
    /// How many data keys of the device are remembered.
    pub(crate) fn remembered(&self, device: &DeviceId) -> usize {
        let budget = self.0.load().devices.get(device);
        budget.map_or(0, |budget| budget.lock().unwrap_or_else(PoisonError::into_inner).recent.len())
    }
}

#[derive(Debug)]
struct Budget {
    allowance: Allowance,
    /// When the bucket would have been empty: time since then, in tokens, is what it holds.
    empty_at: Duration,
    /// Operating time may be younger than a full bucket is old.
    ahead: Duration,
    recent: VecDeque<EdkHash>,
}

impl Budget {
    fn full(allowance: Allowance, now: Duration) -> Self {
        Self { allowance, empty_at: now, ahead: allowance.full_again(), recent: VecDeque::new() }
    }

    /// Time is what is saved, and under another allowance the same number of data keys is another time.
    fn adapt(&mut self, allowance: Allowance, now: Duration) {
        if self.allowance == allowance {
            return;
        }
        let keys = self.saved(now).as_secs_f64() / self.allowance.token().as_secs_f64();
        let keys = keys.min(f64::from(allowance.burst));
        (self.ahead, self.empty_at) = (allowance.token().mul_f64(keys), now);
        self.allowance = allowance;
    }

    fn saved(&self, now: Duration) -> Duration {
        (self.ahead + now.saturating_sub(self.empty_at)).min(self.allowance.full_again())
    }

    fn spend(&mut self, edks: &[EdkHash], now: Duration) -> Result<(), OverBudget> {
        let mut new: Vec<EdkHash> = Vec::new();
        for edk in edks {
            if !self.recent.contains(edk) && !new.contains(edk) {
                new.push(*edk);
            }
        }
        if new.is_empty() {
            return Ok(());
        }
        let saved = self.saved(now);
        let price = self.allowance.token() * u32::try_from(new.len()).unwrap_or(u32::MAX);
        (self.ahead, self.empty_at) = (saved, now);
        if saved < price {
            return Err(OverBudget { allowance: self.allowance, retry_after: price - saved });
        }
        self.ahead = saved - price;
        for edk in new {
            if self.recent.len() == REMEMBERED {
                self.recent.pop_front();
            }
            self.recent.push_back(edk);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edk(number: u64) -> EdkHash {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        bytes
    }

    fn device(name: &str) -> DeviceId {
        DeviceId::new(name).unwrap()
    }

    const START: Duration = Duration::from_secs(5);

    #[test]
    fn two_weeks_of_sessions_are_taken_at_once_and_then_one_every_half_minute() {
        let budgets = Budgets::default();
        let truck = device("truck-1");
        for number in 0..u64::from(CAPACITY) {
            assert_eq!(budgets.spend(&truck, &[edk(number)], START), Ok(()), "{number}");
        }
        let refused = budgets.spend(&truck, &[edk(u64::MAX)], START).unwrap_err();
        assert_eq!(refused.retry_after, Duration::from_secs(30));
        let later = START + refused.retry_after;
        assert_eq!(budgets.spend(&truck, &[edk(u64::MAX)], later), Ok(()));
        assert!(budgets.spend(&truck, &[edk(u64::MAX - 1)], later).is_err());
        // Another device has a bucket of its own.
        assert_eq!(budgets.spend(&device("truck-2"), &[edk(1)], later), Ok(()));
    }

    #[test]
    fn the_last_256_data_keys_cost_nothing_when_they_come_again() {
        let budgets = Budgets::default();
        let truck = device("truck-1");
        let capacity = u64::from(CAPACITY);
        for number in 0..capacity {
            budgets.spend(&truck, &[edk(number)], START).unwrap();
        }
        for number in capacity - REMEMBERED as u64..capacity {
            assert_eq!(budgets.spend(&truck, &[edk(number)], START), Ok(()));
        }
        assert!(budgets.spend(&truck, &[edk(capacity - REMEMBERED as u64 - 1)], START).is_err());
    }

    #[test]
    fn an_envelope_with_three_data_keys_pays_for_three_or_for_none() {
        let mut budget = Budget::full(Allowance::default(), START);
        budget.ahead = budget.allowance.token() * 2;
        assert!(budget.spend(&[edk(1), edk(2), edk(3)], START).is_err());
        assert_eq!(budget.spend(&[edk(1), edk(2), edk(2)], START), Ok(()));
        assert_eq!(budget.ahead, Duration::ZERO);
    }

    #[test]
    fn an_idle_bucket_never_holds_more_than_its_capacity() {
        let allowance = Allowance::default();
        let mut budget = Budget::full(allowance, START);
        let later = START + allowance.full_again() * 3;
        budget.spend(&[edk(1)], later).unwrap();
        assert_eq!(budget.ahead, allowance.full_again() - allowance.token());
    }
    #[test]
    fn another_allowance_counts_at_once_and_forgives_nothing() {
        let budgets = Budgets::new(Allowance { per_hour: 60, burst: 4 });
        let truck = device("truck-1");
        assert_eq!(budgets.spend(&truck, &[edk(1), edk(2), edk(3)], START), Ok(()));
        // One is left; a larger burst is filled at the new rate.
        budgets.change(Allowance { per_hour: 3600, burst: 100 });
        assert_eq!(budgets.spend(&truck, &[edk(1), edk(4)], START), Ok(()), "and an old one costs nothing");
        let refused = budgets.spend(&truck, &[edk(5)], START).unwrap_err();
        assert_eq!((refused.retry_after, refused.allowance.burst), (Duration::from_secs(1), 100));
        assert_eq!(budgets.spend(&truck, &[edk(5)], START + Duration::from_secs(1)), Ok(()));
        // Whoever has saved more than the new burst has that.
        let later = START + Duration::from_secs(3600);
        budgets.change(Allowance { per_hour: 60, burst: 2 });
        assert_eq!(budgets.spend(&truck, &[edk(6), edk(7)], later), Ok(()));
        assert!(budgets.spend(&truck, &[edk(8)], later).is_err());
        assert_eq!(budgets.spend(&device("truck-2"), &[edk(1), edk(2)], later), Ok(()));
    }

    #[test]
    fn a_site_that_allows_other_numbers_has_them_and_the_refusal_says_them() {
        let budgets = Budgets::new(Allowance { per_hour: 60, burst: 2 });
        let truck = device("truck-1");
        assert_eq!(budgets.spend(&truck, &[edk(1), edk(2)], START), Ok(()));
        let refused = budgets.spend(&truck, &[edk(3)], START).unwrap_err();
        assert_eq!(refused.retry_after, Duration::from_secs(60));
        assert!(
            refused.to_string().contains("more than 2 new data keys, refilled by 60 an hour"),
            "{refused}"
        );
    }
}

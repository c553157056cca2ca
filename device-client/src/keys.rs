//! The device's trust, kept on its disk: what it believes, and the key that it may seal to.
//!
//! [`Keys`] is `pithead_sealing::trust::Device` with a memory. Whatever moves that state is written before anybody acts
//! on it, an accepted root in front of a refused statement included. Operating time is written every 10 minutes
//! ([`Keys::tick`]): what a power cut loses of it errs on the safe side.

use pithead_sealing::{
    names::Site,
    trust::{Applied, Bundle, Device, Status, TrustError, VerifiedKey},
};

use crate::{
    clock::DeviceClock,
    state::{StateError, StateStore},
};

/// How often operating time is written down: what a cut may cost, against the wear of a flash cell.
pub const UPTIME_SAVED_EVERY_S: u64 = 600;

/// Why trust could not be opened or moved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    /// Never enrolled: there is no trust record.
    #[error("this device is not enrolled: it holds no trust root")]
    NotEnrolled,
    /// The record's storage failed. What stood before stands.
    #[error("the trust record: {0}")]
    State(#[from] StateError),
    /// A root, a statement or a key was refused.
    #[error("{0} ({code})", code = .0.code())]
    Trust(#[from] TrustError),
    /// The kept record is of another site than the device.
    #[error("the trust record is of site {found}, the device is configured for {expected}")]
    OtherSite {
        /// The site in the record.
        found: Site,
        /// The site in the configuration.
        expected: Site,
    },
}

/// Trust, with its storage and its clock.
#[derive(Debug)]
pub struct Keys {
    device: Device,
    store: Box<dyn StateStore>,
    clock: DeviceClock,
    saved_revision: Option<u64>,
    saved_uptime_s: u64,
}

impl Keys {
    /// Provisions a device with the trust root that its owner gives it by hand, and writes that down. An earlier record
    /// is replaced: enrolling again is how an owner takes a device to another authority.
    pub fn enroll(
        authority: &str,
        site: &Site,
        root: &[u8],
        store: Box<dyn StateStore>,
        clock: DeviceClock,
    ) -> Result<Self, KeysError> {
        let device = Device::provision(authority, site, root, clock.now())?;
        let mut keys = Self { device, store, clock, saved_revision: None, saved_uptime_s: 0 };
        keys.save()?;
        Ok(keys)
    }

    /// Opens the record of an enrolled device.
    pub fn open(site: &Site, mut store: Box<dyn StateStore>, clock: DeviceClock) -> Result<Self, KeysError> {
        let record = store.load()?.ok_or(KeysError::NotEnrolled)?;
        let device = Device::restore(&record)?;
        if device.site() != site {
            return Err(KeysError::OtherSite { found: device.site().clone(), expected: site.clone() });
        }
        let saved_revision = Some(device.revision());
        Ok(Self { device, store, clock, saved_revision, saved_uptime_s: 0 })
    }

    /// Verifies a bundle and takes in what holds. The state is durable before this returns, also when it returns the
    /// refusal of a statement whose roots were accepted.
    pub fn apply(&mut self, bundle: &Bundle) -> Result<Applied, KeysError> {
        let before = self.device.clone();
        let applied = self.device.apply(bundle, self.clock.now());
        if self.saved_revision != Some(self.device.revision())
            && let Err(error) = self.save()
        {
            // Nothing is believed that a restart would not know of.
            self.device = before;
            return Err(error.into());
        }
        Ok(applied?)
    }

    /// The key to seal to now; asked at every session start.
    pub fn verified_key(&self) -> Result<VerifiedKey, TrustError> {
        self.device.verified_key(self.clock.now())
    }

    /// How far the device is from losing its key.
    #[must_use]
    pub fn status(&self) -> Status {
        self.device.status(self.clock.now())
    }

    /// What is believed: root, statement, version.
    #[must_use]
    pub fn trust(&self) -> &Device {
        &self.device
    }

    /// The clock that trust goes by.
    #[must_use]
    pub fn clock(&self) -> &DeviceClock {
        &self.clock
    }

    /// Writes operating time down if [`UPTIME_SAVED_EVERY_S`] have gone by. To be called now and then.
    pub fn tick(&mut self) -> Result<(), StateError> {
        if self.clock.now().uptime_s.saturating_sub(self.saved_uptime_s) >= UPTIME_SAVED_EVERY_S {
            self.save()?;
        }
        Ok(())
    }

    /// Writes the record, operating time included: at shutdown.
    pub fn save(&mut self) -> Result<(), StateError> {
        let now = self.clock.now();
        self.store.save(&self.device.encode(now))?;
        self.saved_revision = Some(self.device.revision());
        self.saved_uptime_s = now.uptime_s;
        Ok(())
    }
}

//! The cloud's own registry of device keys, and what it makes of a session signature (envelope document, 2.4).
//!
//! ```text
//! `device add` ─> DATA/devices.toml ─> Watch ─> Devices ──┐
//! unlocked envelope ─> session verdict, with the data key ┴─> Origin ─> bar (policy, latch) ─┬─> sink, with its word
//!                                                                                            └─> set aside, with its reason
//! ```
//! - **A key comes in by the cloud team's hand alone**, through the file; never in a certificate, and never through a gateway.
//! - **A bad file changes nothing**: what was read before stays in force, and the log says so. A start with a bad file fails: a
//!   registry that is taken for empty would have everything unsigned believed.
//! - **A device that has signed is not believed unsigned.** Its first applied signed envelope latches that, in the ledger's own
//!   entry for it: the latch is as durable as what made it. It goes by the key: as long as the registry has a key of the device
//!   that has signed, revoked or not, the device is latched. `required` in the registry is the same from the beginning.
//! - **A device that nobody registered is as before**: vouched for at best, whether it signs or not.

mod file;
mod origin;
mod watch;

#[cfg(test)]
pub(crate) use file::testing;
pub use file::{Change, DevicesError, FILE, Listed, ListedKey, add, list, read_public_key, remove, revoke};
pub use origin::{Barred, Origin, prove};
pub use watch::Watch;

use pithead_sealing::envelope::DeviceVerifyingKey;
use pithead_sealing::envelope::open::RegisteredKey;
use pithead_sealing::trust::Kid;
use pithead_sealing::{DeviceId, NameError, Site};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

/// Devices in the registry: as many as a site's lines may have.
pub const DEVICES_MAX: usize = 100_000;

/// Keys of one device: the one that signs, the next one, and those that were revoked and are not forgotten yet.
pub const KEYS_PER_DEVICE: usize = 8;

/// A device of a site, as the registry and its commands name it: `pit-7/truck-0042`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceName {
    /// The site.
    pub site: Site,
    /// The device.
    pub device: DeviceId,
}

/// Why a text is not `SITE/DEVICE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceNameError {
    /// No slash, or more than one part on either side.
    #[error("a device is named SITE/DEVICE, such as pit-7/truck-0042")]
    Form,
    /// The site or the device.
    #[error(transparent)]
    Name(#[from] NameError),
}

impl FromStr for DeviceName {
    type Err = DeviceNameError;

    fn from_str(text: &str) -> Result<Self, DeviceNameError> {
        let (site, device) = text.split_once('/').ok_or(DeviceNameError::Form)?;
        Ok(Self { site: site.parse()?, device: device.parse()? })
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.site, self.device)
    }
}

/// What is asked of a device's sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// Unsigned ones are taken until the first signed one was.
    #[default]
    Optional,
    /// Unsigned ones are never taken.
    Required,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Optional => "optional",
            Self::Required => "required",
        })
    }
}

/// A registered device.
#[derive(Debug, Clone)]
pub struct Registered {
    /// What is asked of it.
    pub policy: Policy,
    keys: Vec<(DeviceVerifyingKey, bool)>,
}

impl Registered {
    /// The names of its keys, those that were revoked included.
    pub fn kids(&self) -> impl Iterator<Item = Kid> {
        self.keys.iter().map(|(key, _)| key.kid())
    }

    /// Whether the key of this name was revoked; none if it is not the device's.
    #[must_use]
    pub fn revoked(&self, kid: &Kid) -> Option<bool> {
        self.keys.iter().find(|(key, _)| key.kid() == *kid).map(|(_, revoked)| *revoked)
    }
}

/// The registry as it was read.
#[derive(Debug, Default)]
pub struct Devices {
    generation: u64,
    devices: HashMap<DeviceName, Registered>,
}

impl Devices {
    /// Which reading of the file this is: what was concluded from another one is concluded anew.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// A device, if it is registered.
    #[must_use]
    pub fn get(&self, site: &Site, device: &DeviceId) -> Option<&Registered> {
        self.devices.get(&DeviceName { site: site.clone(), device: device.clone() })
    }

    /// The key of this name, if it is registered for this device.
    #[must_use]
    pub fn key(&self, site: &Site, device: &DeviceId, kid: &Kid) -> Option<RegisteredKey> {
        let (key, revoked) = self.get(site, device)?.keys.iter().find(|(key, _)| key.kid() == *kid)?;
        Some(RegisteredKey { device: device.clone(), key: key.clone(), revoked: *revoked })
    }

    /// Devices in it, and keys that are not revoked.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        let keys = self.devices.values().flat_map(|device| &device.keys);
        (self.devices.len(), keys.filter(|(_, revoked)| !revoked).count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_by_site_and_name() {
        let name: DeviceName = "pit-7/Truck.1".parse().unwrap();
        assert_eq!((name.site.as_str(), name.device.as_str()), ("pit-7", "Truck.1"));
        assert_eq!(name.to_string(), "pit-7/Truck.1");
        for bad in ["truck-1", "pit-7/", "/truck-1", "pit-7/a/b", "pit-7/..", "Pit/truck-1"] {
            assert!(bad.parse::<DeviceName>().is_err(), "{bad}");
        }
    }
}

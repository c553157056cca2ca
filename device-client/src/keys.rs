//! The device's trust, kept on its disk: what it believes, and the key that it may seal to.
//!
//! [`Keys`] is `pithead_sealing::trust::Device` with a memory. Whatever moves that state is written before anybody acts
//! on it, an accepted root in front of a refused statement included. Operating time is written every 10 minutes
//! ([`Keys::tick`]): what a power cut loses of it errs on the safe side.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use pithead_sealing::{
    names::Site,
    trust::{Applied, Bundle, Device, Status, TrustError, VerifiedKey},
};

use crate::{
    clock::DeviceClock,
    state::{FileStore, StateError, StateStore},
};

/// How often operating time is written down: what a cut may cost, against the wear of a flash cell.
pub const UPTIME_SAVED_EVERY_S: u64 = 600;

/// The record's name in a device's folder.
const STORE: &str = "trust";

/// Why trust could not be opened or moved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    /// Never enrolled: there is no trust record.
    #[error("this device is not enrolled: it holds no trust root")]
    NotEnrolled,
    /// The folder cannot be made.
    #[error("{}: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
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

    /// The same in a folder, which is made if it is missing.
    ///
    /// # Errors
    /// As [`Keys::enroll`], and [`KeysError::Folder`].
    pub fn enroll_in(
        folder: &Path,
        authority: &str,
        site: &Site,
        root: &[u8],
        clock: DeviceClock,
    ) -> Result<Self, KeysError> {
        make_folders(folder).map_err(|source| KeysError::Folder { path: folder.to_owned(), source })?;
        Self::enroll(authority, site, root, Box::new(FileStore::new(folder, STORE)), clock)
    }

    /// Opens the record in a folder for one who only asks. While a client or a sealer is open on the folder, what would move
    /// the record is refused with [`StateError::Locked`].
    ///
    /// # Errors
    /// As [`Keys::open`].
    pub fn open_in(folder: &Path, site: &Site, clock: DeviceClock) -> Result<Self, KeysError> {
        Self::open(site, Box::new(FileStore::new(folder, STORE)), clock)
    }

    /// The same for one who is going to move it, and who is then the only one.
    pub(crate) fn open_to_move(folder: &Path, site: &Site, clock: DeviceClock) -> Result<Self, KeysError> {
        let mut store = FileStore::new(folder, STORE);
        // A folder that nobody enrolled has no place for a lock either, and that is told by the loading.
        if folder.is_dir() {
            store.lock()?;
        }
        Self::open(site, Box::new(store), clock)
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

/// Makes a folder and those above it that are missing, and their names durable.
fn make_folders(folder: &Path) -> io::Result<()> {
    // The root of all folders, or an empty path, which is where the process works.
    let Some(above) = folder.parent() else { return Ok(()) };
    let is_named = !above.as_os_str().is_empty();
    let is_new = match fs::create_dir(folder) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound && is_named => {
            make_folders(above)?;
            fs::create_dir(folder).map(|()| true)?
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => false,
        Err(error) => return Err(error),
    };
    match fs::File::open(if is_named { above } else { Path::new(".") }).and_then(|above| above.sync_all()) {
        // What lies above a folder that was given to us may not be ours to read.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !is_new => Ok(()),
        synced => synced,
    }
}

/// Trust out of the conformance cases.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use crate::state::MemoryStore;

    /// A device of this case, and the bundles that it is given.
    pub(crate) fn case(name: &str) -> (Keys, Vec<Bundle>) {
        let cases: serde_json::Value =
            serde_json::from_str(include_str!("../../sealing/tests/vectors/trust.json")).unwrap();
        let case = cases.as_array().unwrap().iter().find(|case| case["name"] == name).unwrap();
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let bytes = |value: &serde_json::Value| hex::decode(value.as_str().unwrap()).unwrap();
        let list = |value: &serde_json::Value| {
            value.as_array().unwrap().iter().map(|one| bytes(one).into()).collect()
        };
        let device = &case["device"];
        let site = Site::new(&text(&device["site"])).unwrap();
        let (store, clock) = (Box::<MemoryStore>::default(), DeviceClock::start());
        let keys =
            Keys::enroll(&text(&device["authority"]), &site, &bytes(&device["root"]), store, clock).unwrap();
        let bundle = |step: &serde_json::Value| Bundle {
            roots: list(&step["roots"]),
            statement: Some(&step["stmt"]).filter(|stmt| !stmt.is_null()).map(|stmt| bytes(stmt).into()),
            spkis: list(&step["spki"]),
        };
        (keys, case["steps"].as_array().unwrap().iter().map(bundle).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_above_are_made_and_what_stands_in_the_way_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for _ in 0..2 {
            make_folders(&at("a/b/c")).unwrap();
        }
        assert!(at("a/b/c").is_dir());
        for always in ["", ".", "/"] {
            make_folders(Path::new(always)).unwrap();
        }
        fs::write(at("file"), b"").unwrap();
        for bad in ["file", "file/below"] {
            assert!(make_folders(&at(bad)).is_err(), "{bad}");
        }
    }
}

//! `DATA/devices.toml`: the registry as people read it and commands change it.
//!
//! ```text
//! version = 1
//! [[device]]
//! name = "pit-7/truck-0042"
//! policy = "optional"                          # or "required"
//! [[device.key]]
//! kid = "<32 hex digits>"                      SHA-256 of the public key, its first 16 bytes
//! public_key = "<base64>"                      SubjectPublicKeyInfo, DER, 91 bytes, P-256
//! added = "2026-11-26T18:00:00Z"
//! revoked = "2026-11-27T06:00:00Z"             if it was
//! ```
//!
//! A change is made by one command at a time (`DATA/devices.lock`), and the file is replaced whole. A person may edit it too:
//! what does not hold together is refused, and names the device.

use super::{DEVICES_MAX, DeviceName, Devices, KEYS_PER_DEVICE, Policy, Registered};
use base64ct::{Base64, Encoding as _};
use pithead_hop::program::{clock, disk};
use pithead_sealing::envelope::DeviceVerifyingKey;
use pithead_sealing::trust::{Kid, UnixTime};
use rustix::fs::{FlockOperation, flock};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// The file in the data directory.
pub const FILE: &str = "devices.toml";
const LOCK: &str = "devices.lock";

const VERSION: u32 = 1;

/// Bytes of the file: every device with two keys.
const FILE_MAX: u64 = 64 << 20;

/// Bytes of a file with one public key, with room for comments around it.
const KEY_FILE_MAX: u64 = 16 << 10;

const HEAD: &str = "# The device keys that this decryptor believes. `pithead-decryptor device add | revoke | remove` change this \
                    file;\n# a running decryptor takes changes in by itself. Keys come here by hand, and never through a \
                    gateway.\n\n";

/// Why the registry was not read or not changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DevicesError {
    /// A file.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It was there, and is not any more.
    #[error("{} is gone; a registry without devices is a file without [[device]]", path.display())]
    Gone {
        /// Which.
        path: PathBuf,
    },
    /// It is not a registry.
    #[error("{} is no registry of devices: {what}", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong, and where.
        what: String,
    },
    /// The file is no public key that signs sessions.
    #[error("{}: {what}", path.display())]
    KeyFile {
        /// Which file.
        path: PathBuf,
        /// What it is not.
        what: &'static str,
    },
    /// The key is registered.
    #[error("the key {kid} is registered for {of}{}", if *revoked { ", and was revoked" } else { "" })]
    Known {
        /// The key.
        kid: Kid,
        /// Whose it is.
        of: DeviceName,
        /// Whether it was revoked.
        revoked: bool,
    },
    /// No such device.
    #[error("{0} is not registered")]
    UnknownDevice(DeviceName),
    /// No such key.
    #[error("the key {0} is not registered")]
    UnknownKey(Kid),
    /// A device has [`KEYS_PER_DEVICE`] keys.
    #[error("{0} has {KEYS_PER_DEVICE} keys; remove those that were revoked long ago")]
    TooManyKeys(DeviceName),
    /// There are [`DEVICES_MAX`] devices.
    #[error("there are {DEVICES_MAX} devices; remove those that are gone")]
    TooManyDevices,
}

pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> DevicesError {
    let path = path.to_owned();
    move |source| DevicesError::Io { path, source }
}

/// The file's content.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    version: u32,
    #[serde(default, rename = "device")]
    devices: Vec<DeviceEntry>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceEntry {
    name: String,
    #[serde(default)]
    policy: Policy,
    #[serde(default, rename = "key")]
    keys: Vec<KeyEntry>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyEntry {
    kid: String,
    public_key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    added: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revoked: Option<String>,
}

/// A registered device as `device list` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    /// `SITE/DEVICE`.
    pub name: String,
    /// What is asked of it.
    pub policy: Policy,
    /// Its keys.
    pub keys: Vec<ListedKey>,
}

/// A registered key.
#[derive(Debug, Clone, Serialize)]
pub struct ListedKey {
    /// Its name.
    pub kid: String,
    /// When it was added.
    pub added: Option<String>,
    /// When it was revoked, if it was.
    pub revoked: Option<String>,
}

/// What a command has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The device has this key from now on.
    Key(Kid),
    /// The device is registered, or its policy is another one.
    Policy,
}

/// Reads the registry. No file is an empty one.
pub(super) fn load(path: &Path) -> Result<Devices, DevicesError> {
    let Some(content) = read(path)? else { return Ok(Devices::default()) };
    check(path, content).map(|devices| Devices { generation: 0, devices })
}

fn read(path: &Path) -> Result<Option<Content>, DevicesError> {
    let malformed = |what: String| DevicesError::Malformed { path: path.to_owned(), what };
    let size = match fs::metadata(path) {
        Ok(meta) => meta.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at(path)(error)),
    };
    if size > FILE_MAX {
        return Err(malformed(format!("it is larger than {} MiB", FILE_MAX >> 20)));
    }
    let bytes = fs::read(path).map_err(at(path))?;
    let text = String::from_utf8(bytes).map_err(|_| malformed("it is not UTF-8".into()))?;
    let content: Content = toml::from_str(&text).map_err(|error| malformed(error.to_string()))?;
    if content.version != VERSION {
        return Err(malformed(format!("version {}, and this program knows {VERSION}", content.version)));
    }
    Ok(Some(content))
}

/// Everything that has to hold, before any of it is believed.
fn check(path: &Path, content: Content) -> Result<HashMap<DeviceName, Registered>, DevicesError> {
    let malformed = |what: String| DevicesError::Malformed { path: path.to_owned(), what };
    if content.devices.len() > DEVICES_MAX {
        return Err(malformed(format!("more than {DEVICES_MAX} devices")));
    }
    let (mut devices, mut kids) = (HashMap::with_capacity(content.devices.len()), HashSet::new());
    for entry in content.devices {
        let name: DeviceName =
            entry.name.parse().map_err(|error| malformed(format!("{:?}: {error}", entry.name)))?;
        if entry.keys.len() > KEYS_PER_DEVICE {
            return Err(malformed(format!("{name} has more than {KEYS_PER_DEVICE} keys")));
        }
        let mut keys = Vec::with_capacity(entry.keys.len());
        for key in entry.keys {
            let read = Base64::decode_vec(&key.public_key)
                .ok()
                .and_then(|der| DeviceVerifyingKey::from_spki_der(&der).ok())
                .ok_or_else(|| malformed(format!("{name}: {} is no P-256 public key", key.kid)))?;
            if read.kid().to_string() != key.kid {
                return Err(malformed(format!("{name}: {} is the kid of another key", key.kid)));
            }
            // A key that two share could not tell them apart.
            if !kids.insert(read.kid()) {
                return Err(malformed(format!("{name}: the key {} stands there twice", key.kid)));
            }
            keys.push((read, key.revoked.is_some()));
        }
        let registered = Registered { policy: entry.policy, keys };
        if devices.insert(name.clone(), registered).is_some() {
            return Err(malformed(format!("{name} stands there twice")));
        }
    }
    Ok(devices)
}

/// Reads a device's public key: PEM with `BEGIN PUBLIC KEY`, P-256. A certificate is not taken, whoever signed it.
pub fn read_public_key(path: &Path) -> Result<(DeviceVerifyingKey, Vec<u8>), DevicesError> {
    let wrong = |what| DevicesError::KeyFile { path: path.to_owned(), what };
    if fs::metadata(path).map_err(at(path))?.len() > KEY_FILE_MAX {
        return Err(wrong("longer than any public key"));
    }
    let pem = zeroize::Zeroizing::new(fs::read(path).map_err(at(path))?);
    let der = SubjectPublicKeyInfoDer::from_pem_slice(&pem)
        .map_err(|_| wrong("no PEM with BEGIN PUBLIC KEY; the device's device.pub is meant"))?;
    let key = DeviceVerifyingKey::from_spki_der(&der).map_err(|_| wrong("not a P-256 public key"))?;
    Ok((key, der.to_vec()))
}

/// One change of the file, by one command at a time.
fn change<T>(
    data_dir: &Path,
    change: impl FnOnce(&mut Vec<DeviceEntry>) -> Result<T, DevicesError>,
) -> Result<T, DevicesError> {
    let lock_path = data_dir.join(LOCK);
    let lock = File::create(&lock_path).map_err(at(&lock_path))?;
    flock(&lock, FlockOperation::LockExclusive).map_err(|error| at(&lock_path)(error.into()))?;
    let path = data_dir.join(FILE);
    let mut content = read(&path)?.unwrap_or(Content { version: VERSION, devices: Vec::new() });
    let done = change(&mut content.devices)?;
    content.devices.sort_by(|a, b| a.name.cmp(&b.name));
    let malformed = |what: String| DevicesError::Malformed { path: path.clone(), what };
    let text = toml::to_string(&content).map_err(|error| malformed(error.to_string()))?;
    // What is written is what will be read: a file that a decryptor would refuse is not made.
    check(&path, content)?;
    disk::replace(&path, format!("{HEAD}{text}").as_bytes()).map_err(at(&path))?;
    Ok(done)
}

fn now() -> String {
    crate::authority::rfc3339(UnixTime(clock::wall_us() / 1_000_000))
}

/// Registers a device, or one more key of it, or changes its policy: whatever is given.
pub fn add(
    data_dir: &Path,
    name: &DeviceName,
    key: Option<&Path>,
    policy: Option<Policy>,
) -> Result<Change, DevicesError> {
    let key = key.map(read_public_key).transpose()?;
    change(data_dir, |devices| {
        if let Some((key, _)) = &key {
            let kid = key.kid();
            for entry in devices.iter() {
                let Some(known) = entry.keys.iter().find(|known| known.kid == kid.to_string()) else {
                    continue;
                };
                let of = entry.name.parse().unwrap_or_else(|_| name.clone());
                return Err(DevicesError::Known { kid, of, revoked: known.revoked.is_some() });
            }
        }
        let text = name.to_string();
        let place = match devices.iter().position(|entry| entry.name == text) {
            Some(place) => place,
            None if devices.len() >= DEVICES_MAX => return Err(DevicesError::TooManyDevices),
            None => {
                devices.push(DeviceEntry { name: text, policy: Policy::default(), keys: Vec::new() });
                devices.len() - 1
            }
        };
        let entry = &mut devices[place];
        entry.policy = policy.unwrap_or(entry.policy);
        let Some((key, der)) = &key else { return Ok(Change::Policy) };
        if entry.keys.len() >= KEYS_PER_DEVICE {
            return Err(DevicesError::TooManyKeys(name.clone()));
        }
        entry.keys.push(KeyEntry {
            kid: key.kid().to_string(),
            public_key: Base64::encode_string(der),
            added: Some(now()),
            revoked: None,
        });
        Ok(Change::Key(key.kid()))
    })
}

/// Marks keys as revoked; all of them, or none if one is not registered. Gives the names of their devices.
pub fn revoke(data_dir: &Path, kids: &[Kid]) -> Result<Vec<String>, DevicesError> {
    change(data_dir, |devices| {
        let mut of = Vec::with_capacity(kids.len());
        for kid in kids {
            let text = kid.to_string();
            let mut entries = devices.iter_mut().flat_map(|entry| {
                let name = entry.name.clone();
                entry.keys.iter_mut().map(move |key| (name.clone(), key))
            });
            let found = entries.find(|(_, key)| key.kid == text);
            let (name, key) = found.ok_or(DevicesError::UnknownKey(*kid))?;
            // The first revocation is the one that counts.
            key.revoked.get_or_insert_with(now);
            of.push(name);
        }
        Ok(of)
    })
}

/// Forgets a device with all of its keys, or one key of it.
pub fn remove(data_dir: &Path, name: &DeviceName, key: Option<&Kid>) -> Result<(), DevicesError> {
    change(data_dir, |devices| {
        let text = name.to_string();
        let place = devices.iter().position(|entry| entry.name == text);
        let place = place.ok_or_else(|| DevicesError::UnknownDevice(name.clone()))?;
        let Some(kid) = key else {
            devices.remove(place);
            return Ok(());
        };
        let (keys, text) = (&mut devices[place].keys, kid.to_string());
        let at = keys.iter().position(|key| key.kid == text).ok_or(DevicesError::UnknownKey(*kid))?;
        keys.remove(at);
        Ok(())
    })
}

/// What stands in the registry, by name.
pub fn list(data_dir: &Path) -> Result<Vec<Listed>, DevicesError> {
    let path = data_dir.join(FILE);
    let Some(content) = read(&path)? else { return Ok(Vec::new()) };
    let listed = content.devices.iter().map(|entry| Listed {
        name: entry.name.clone(),
        policy: entry.policy,
        keys: entry
            .keys
            .iter()
            .map(|key| ListedKey {
                kid: key.kid.clone(),
                added: key.added.clone(),
                revoked: key.revoked.clone(),
            })
            .collect(),
    });
    let listed = listed.collect();
    check(&path, content)?;
    Ok(listed)
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use pithead_sealing::envelope::{DeviceSigningKey, KernelEntropy};

    pub(crate) fn name(device: &str) -> DeviceName {
        format!("pit-7/{device}").parse().unwrap()
    }

    /// A new device key, its public half in a file of the folder.
    pub(crate) fn key_file(folder: &Path, stem: &str) -> (PathBuf, DeviceSigningKey) {
        let key = DeviceSigningKey::generate(&mut KernelEntropy).unwrap();
        let path = folder.join(format!("{stem}.pub"));
        fs::write(&path, key.spki_pem()).unwrap();
        (path, key)
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{key_file, name};
    use super::*;

    #[test]
    fn keys_are_added_revoked_and_forgotten_and_the_file_says_so() {
        let data = tempfile::tempdir().unwrap();
        let (one, first) = key_file(data.path(), "one");
        let (two, second) = key_file(data.path(), "two");
        let truck = name("truck-1");
        assert_eq!(add(data.path(), &truck, Some(&one), None).unwrap(), Change::Key(first.kid()));
        assert_eq!(
            add(data.path(), &truck, Some(&two), Some(Policy::Required)).unwrap(),
            Change::Key(second.kid())
        );
        assert_eq!(revoke(data.path(), &[first.kid()]).unwrap(), ["pit-7/truck-1"]);
        let devices = load(&data.path().join(FILE)).unwrap();
        let registered = devices.get(&truck.site, &truck.device).unwrap();
        assert_eq!(registered.policy, Policy::Required);
        assert_eq!(
            (registered.revoked(&first.kid()), registered.revoked(&second.kid())),
            (Some(true), Some(false))
        );
        assert_eq!(devices.counts(), (1, 1));
        assert!(devices.key(&truck.site, &name("truck-2").device, &second.kid()).is_none());
        let text = fs::read_to_string(data.path().join(FILE)).unwrap();
        for words in ["[[device]]", "name = \"pit-7/truck-1\"", "policy = \"required\"", "[[device.key]]"] {
            assert!(text.contains(words), "{words} is missing from:\n{text}");
        }
        let listed = list(data.path()).unwrap();
        assert_eq!((listed.len(), listed[0].keys.len()), (1, 2));
        assert!(listed[0].keys[0].revoked.is_some() && listed[0].keys[1].revoked.is_none());

        remove(data.path(), &truck, Some(&first.kid())).unwrap();
        assert!(matches!(remove(data.path(), &truck, Some(&first.kid())), Err(DevicesError::UnknownKey(_))));
        remove(data.path(), &truck, None).unwrap();
        assert!(matches!(remove(data.path(), &truck, None), Err(DevicesError::UnknownDevice(_))));
        assert_eq!(load(&data.path().join(FILE)).unwrap().counts(), (0, 0));
    }

    #[test]
    fn what_cannot_be_is_refused_and_changes_nothing() {
        let data = tempfile::tempdir().unwrap();
        let (one, first) = key_file(data.path(), "one");
        add(data.path(), &name("truck-1"), Some(&one), None).unwrap();
        let before = fs::read(data.path().join(FILE)).unwrap();
        let again = add(data.path(), &name("truck-2"), Some(&one), None);
        assert!(matches!(again, Err(DevicesError::Known { revoked: false, .. })), "{again:?}");
        let stranger = key_file(data.path(), "stranger").1.kid();
        let unknown = revoke(data.path(), &[first.kid(), stranger]);
        assert!(matches!(unknown, Err(DevicesError::UnknownKey(kid)) if kid == stranger));
        let no_key = data.path().join("no-key.pem");
        for text in [
            "",
            "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n",
            "-----BEGIN PUBLIC KEY-----\nMAA=\n-----END PUBLIC KEY-----\n",
        ] {
            fs::write(&no_key, text).unwrap();
            let refused = add(data.path(), &name("truck-2"), Some(&no_key), None);
            assert!(matches!(refused, Err(DevicesError::KeyFile { .. })), "{refused:?}");
        }
        assert_eq!(fs::read(data.path().join(FILE)).unwrap(), before);
        for number in 2..=KEYS_PER_DEVICE {
            let (path, _) = key_file(data.path(), &format!("key-{number}"));
            add(data.path(), &name("truck-1"), Some(&path), None).unwrap();
        }
        let (ninth, _) = key_file(data.path(), "ninth");
        let refused = add(data.path(), &name("truck-1"), Some(&ninth), None);
        assert!(matches!(refused, Err(DevicesError::TooManyKeys(_))), "{refused:?}");
    }

    #[test]
    fn a_file_that_does_not_hold_together_is_no_registry() {
        let data = tempfile::tempdir().unwrap();
        let (one, first) = key_file(data.path(), "one");
        add(data.path(), &name("truck-1"), Some(&one), None).unwrap();
        let path = data.path().join(FILE);
        let good = fs::read_to_string(&path).unwrap();
        assert!(load(&path).is_ok());
        let (kid, other) = (first.kid().to_string(), "0".repeat(32));
        let entry = good.split_once("[[device]]").unwrap().1;
        for bad in [
            good.replace(&kid, &other),
            good.replace("public_key = \"M", "public_key = \"N"),
            good.replace("policy = \"optional\"", "policy = \"maybe\""),
            good.replace("version = 1", "version = 2"),
            good.replace("pit-7/truck-1", "pit-7"),
            good.replace("added", "aded"),
            format!("{good}[[device]]{entry}"),
            format!("{good}[[device]]{}", entry.replace("truck-1", "truck-2")),
        ] {
            assert_ne!(bad, good);
            fs::write(&path, &bad).unwrap();
            assert!(matches!(load(&path), Err(DevicesError::Malformed { .. })), "{bad}");
        }
    }

    #[test]
    fn commands_of_one_moment_lose_nothing() {
        let data = tempfile::tempdir().unwrap();
        let files: Vec<_> = (0..8).map(|number| key_file(data.path(), &format!("k{number}")).0).collect();
        std::thread::scope(|scope| {
            for (number, file) in files.iter().enumerate() {
                let (data, name) = (data.path(), name(&format!("truck-{number}")));
                scope.spawn(move || add(data, &name, Some(file), None).unwrap());
            }
        });
        assert_eq!(load(&data.path().join(FILE)).unwrap().counts(), (8, 8));
    }
}

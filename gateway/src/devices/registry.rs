//! The registry of devices, as text that people can read and as what the ports go by.
//!
//! ```toml
//! version = 1
//!
//! [[device]]
//! name = "truck-0042"
//! mode = "mtls"                                # or "network", with addresses = ["10.7.0.42"]
//! added_at = "2026-11-26T18:00:00Z"
//! # revoked_at = "..."                         # then nobody of that name is let in, for good
//!
//! [device.token]                               # given out and not expired long ago; the token itself is nowhere
//! sha256 = "..."
//! expires_at = "..."
//! # key = "..."                                # SHA-256 of the public key that has used it
//!
//! [[device.certificate]]                       # made here and not expired
//! sha256 = "..."
//! serial = "..."
//! not_after = "..."
//!
//! [[revoked_certificate]]                      # not made here, or of a device that may go on with another
//! sha256 = "..."
//! at = "..."
//! ```
//!
//! One name has one mode for good, and a name that was revoked is not given out again: old certificates of it may still be
//! about. Nothing a stranger does makes it grow: tokens and names come from the operator, and one token gets at most
//! [`ISSUES_MAX`] certificates.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use pithead_hop::accept::AddressBook;
use pithead_hop::identity::{PeerId, Role};
use pithead_hop::tls::Denied;
use pithead_sealing::{DeviceId, Site};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// Certificates for one token at most: lost answers, with room.
pub const ISSUES_MAX: u32 = 8;

/// The version of the text.
const VERSION: u32 = 1;

/// How a device is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// By a certificate of the site's CA.
    Mtls,
    /// By its source address, which proves nothing that the network does not prove.
    Network,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mtls => "mtls",
            Self::Network => "network",
        })
    }
}

/// A point in time: seconds since 1970, as `2026-11-26T18:00:00Z` in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp(pub u64);

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = i64::try_from(self.0).unwrap_or(i64::MAX);
        let text = time::OffsetDateTime::from_unix_timestamp(seconds)
            .ok()
            .and_then(|when| when.format(&time::format_description::well_known::Rfc3339).ok());
        f.write_str(text.as_deref().unwrap_or("?"))
    }
}

impl Serialize for Stamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Stamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let when = time::OffsetDateTime::parse(&text, &time::format_description::well_known::Rfc3339)
            .map_err(|_| serde::de::Error::custom("a time is written as 2026-11-26T18:00:00Z"))?;
        u64::try_from(when.unix_timestamp())
            .map(Self)
            .map_err(|_| serde::de::Error::custom("a time before 1970"))
    }
}

/// A SHA-256, in hexadecimal in the text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sha(pub [u8; 32]);

impl Sha {
    /// Of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Sha {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Sha {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sha({self})")
    }
}

impl std::str::FromStr for Sha {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let mut bytes = [0; 32];
        // As openssl prints it, with colons, too.
        let plain: String = text.chars().filter(|c| *c != ':').collect();
        hex::decode_to_slice(plain, &mut bytes).map_err(|_| "a SHA-256 has 64 hexadecimal digits")?;
        Ok(Self(bytes))
    }
}

impl Serialize for Sha {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sha {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A token that was given out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    sha256: Sha,
    /// When it ends.
    pub expires_at: Stamp,
    /// SHA-256 of the SubjectPublicKeyInfo that has used it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Sha>,
    /// Certificates made for it.
    #[serde(default)]
    pub issued: u32,
}

/// A certificate that was made here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Issued {
    /// Of the certificate in DER.
    pub sha256: Sha,
    /// Its number, in hexadecimal.
    pub serial: String,
    /// When it ends.
    pub not_after: Stamp,
    /// When it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Stamp>,
}

/// One device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// How it is known.
    pub mode: Mode,
    /// Since when.
    pub added_at: Stamp,
    /// From when on nobody of that name is let in.
    pub revoked_at: Option<Stamp>,
    /// In network mode, where it comes from.
    pub addresses: Vec<IpAddr>,
    /// The newest token that was given out for it.
    pub token: Option<Token>,
    /// Certificates that were made here for it and have not expired.
    pub certificates: Vec<Issued>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    version: u32,
    #[serde(default, rename = "device", skip_serializing_if = "Vec::is_empty")]
    devices: Vec<TextRecord>,
    #[serde(default, rename = "revoked_certificate", skip_serializing_if = "Vec::is_empty")]
    revoked: Vec<TextRevoked>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TextRecord {
    name: String,
    mode: Mode,
    added_at: Stamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revoked_at: Option<Stamp>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    addresses: Vec<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token: Option<Token>,
    #[serde(default, rename = "certificate", skip_serializing_if = "Vec::is_empty")]
    certificates: Vec<Issued>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TextRevoked {
    sha256: Sha,
    at: Stamp,
}

/// Why a text is no registry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotARegistry {
    /// Not the text, or a field is wrong; the message points at the place.
    #[error("{0}")]
    Text(String),
    /// Of another version.
    #[error("it is of version {0}, this program knows version {VERSION}")]
    Version(u32),
    /// Not a device's name.
    #[error("{0:?} is no device's name")]
    Name(String),
    /// A name twice.
    #[error("device {0} stands in it twice")]
    Twice(DeviceId),
    /// An address of two devices, or of one that is known by its certificate.
    #[error("the address {address} of {device} names another device, or a device that has a certificate")]
    Address {
        /// The address.
        address: IpAddr,
        /// One of them.
        device: DeviceId,
    },
}

/// Why a device is not added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddError {
    /// It is in the registry with a stronger mode.
    #[error("device {0} is registered with a certificate; an address is less, and is not taken for it")]
    Downgrade(DeviceId),
    /// It is in the registry with the other mode.
    #[error("device {0} is registered by its address; give the one with a certificate another name")]
    OtherMode(DeviceId),
    /// Its name was revoked.
    #[error("device {0} was revoked, and a revoked name is not given out again")]
    Revoked(DeviceId),
    /// The address is another device's.
    #[error("the address {0} is that of device {1}")]
    AddressTaken(IpAddr, DeviceId),
}

/// Why a token gets nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Never given out, or replaced by a newer one.
    #[error("this is no token that was given out here")]
    Unknown,
    /// Too late.
    #[error("the token has expired")]
    Expired,
    /// Another key has used it, or this one too often.
    #[error("the token was used already")]
    Used,
    /// The device was revoked since.
    #[error("the device was revoked")]
    Revoked,
}

/// What was revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revoked {
    /// The device's name, with every certificate of it.
    Device,
    /// One certificate.
    Certificate,
}

/// Every device that the operator has named.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registry {
    devices: BTreeMap<DeviceId, Record>,
    /// Beside those of the devices' own lists.
    revoked: BTreeMap<Sha, Stamp>,
}

impl Registry {
    /// Reads the text.
    ///
    /// # Errors
    /// [`NotARegistry`].
    pub fn parse(text: &str) -> Result<Self, NotARegistry> {
        let text: Text = toml::from_str(text).map_err(|error| NotARegistry::Text(error.to_string()))?;
        if text.version != VERSION {
            return Err(NotARegistry::Version(text.version));
        }
        let mut registry = Self::default();
        let mut addresses = BTreeMap::new();
        for record in text.devices {
            let name = DeviceId::new(&record.name).map_err(|_| NotARegistry::Name(record.name.clone()))?;
            for address in &record.addresses {
                let taken = addresses.insert(address.to_canonical(), ()).is_some();
                if taken || record.mode != Mode::Network {
                    return Err(NotARegistry::Address { address: *address, device: name });
                }
            }
            let TextRecord { mode, added_at, revoked_at, addresses, token, certificates, .. } = record;
            let record = Record { mode, added_at, revoked_at, addresses, token, certificates };
            if registry.devices.insert(name.clone(), record).is_some() {
                return Err(NotARegistry::Twice(name));
            }
        }
        registry.revoked = text.revoked.into_iter().map(|one| (one.sha256, one.at)).collect();
        Ok(registry)
    }

    /// The text, for [`Registry::parse`] and for people.
    #[must_use]
    pub fn to_text(&self) -> String {
        let devices = self.devices.iter().map(|(name, record)| TextRecord {
            name: name.to_string(),
            mode: record.mode,
            added_at: record.added_at,
            revoked_at: record.revoked_at,
            addresses: record.addresses.clone(),
            token: record.token.clone(),
            certificates: record.certificates.clone(),
        });
        let revoked = self.revoked.iter().map(|(sha256, at)| TextRevoked { sha256: *sha256, at: *at });
        let text = Text { version: VERSION, devices: devices.collect(), revoked: revoked.collect() };
        let body = toml::to_string(&text).expect("strings, numbers and lists of them");
        format!(
            "# The devices of this site. `pithead-gateway device` writes this file, and replaces it whole.\n{body}"
        )
    }

    /// True if it names nobody and turns nobody away.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.devices.is_empty() && self.revoked.is_empty()
    }

    /// Every device, by name.
    pub fn devices(&self) -> impl Iterator<Item = (&DeviceId, &Record)> {
        self.devices.iter()
    }

    /// What is known of one.
    #[must_use]
    pub fn get(&self, device: &DeviceId) -> Option<&Record> {
        self.devices.get(device)
    }

    /// True if a mere address does not speak for it.
    #[must_use]
    pub fn demands_certificate(&self, device: &DeviceId) -> bool {
        self.devices.get(device).is_some_and(|record| record.mode == Mode::Mtls)
    }

    /// Whether this device is turned away, or whoever shows this certificate.
    #[must_use]
    pub fn revoked(&self, device: &DeviceId, certificate: Option<&[u8; 32]>) -> Option<Revoked> {
        let record = self.devices.get(device);
        if record.is_some_and(|record| record.revoked_at.is_some()) {
            return Some(Revoked::Device);
        }
        let shown = Sha(*certificate?);
        let of_device = record.into_iter().flat_map(|record| &record.certificates);
        let revoked = self.revoked.contains_key(&shown)
            || of_device.filter(|one| one.revoked_at.is_some()).any(|one| one.sha256 == shown);
        revoked.then_some(Revoked::Certificate)
    }

    /// Whom the certificate ports turn away.
    #[must_use]
    pub fn denied(&self, site: &Site) -> Denied {
        let mut denied = Denied::default();
        for (name, record) in &self.devices {
            if record.revoked_at.is_some() {
                denied.names.insert(PeerId { site: site.clone(), role: Role::Device(name.clone()) });
            }
            let revoked = record.certificates.iter().filter(|one| one.revoked_at.is_some());
            denied.certificates.extend(revoked.map(|one| one.sha256.0));
        }
        denied.certificates.extend(self.revoked.keys().map(|sha| sha.0));
        denied
    }

    /// Whom the port that goes by addresses knows.
    #[must_use]
    pub fn addresses(&self, site: &Site) -> AddressBook {
        let live = self
            .devices
            .iter()
            .filter(|(_, record)| record.mode == Mode::Network && record.revoked_at.is_none());
        let devices = live.flat_map(|(name, record)| {
            record.addresses.iter().map(move |address| (address.to_canonical(), name.clone()))
        });
        AddressBook { site: site.clone(), devices: devices.collect() }
    }

    /// Adds a device, or finds that it is there with the same mode. In network mode, it is known at these addresses from
    /// now on.
    ///
    /// # Errors
    /// [`AddError`].
    pub fn add(
        &mut self,
        device: &DeviceId,
        mode: Mode,
        addresses: &[IpAddr],
        now: Stamp,
    ) -> Result<(), AddError> {
        for address in addresses {
            let address = address.to_canonical();
            let other = self.devices.iter().find(|(name, record)| {
                *name != device && record.addresses.iter().any(|one| one.to_canonical() == address)
            });
            if let Some((other, _)) = other {
                return Err(AddError::AddressTaken(address, other.clone()));
            }
        }
        let record = self.devices.entry(device.clone()).or_insert_with(|| Record {
            mode,
            added_at: now,
            revoked_at: None,
            addresses: Vec::new(),
            token: None,
            certificates: Vec::new(),
        });
        if record.revoked_at.is_some() {
            return Err(AddError::Revoked(device.clone()));
        }
        match (record.mode, mode) {
            (Mode::Mtls, Mode::Network) => return Err(AddError::Downgrade(device.clone())),
            (Mode::Network, Mode::Mtls) => return Err(AddError::OtherMode(device.clone())),
            (Mode::Mtls, Mode::Mtls) => {}
            (Mode::Network, Mode::Network) => {
                // An address that is given in two spellings is one.
                let each: BTreeSet<IpAddr> = addresses.iter().map(IpAddr::to_canonical).collect();
                record.addresses = each.into_iter().collect();
            }
        }
        Ok(())
    }

    /// Gives out a token for a device that is there; the one before it is good for nothing from now on.
    pub fn give_token(&mut self, device: &DeviceId, token: &str, expires_at: Stamp) {
        if let Some(record) = self.devices.get_mut(device) {
            let sha256 = Sha::of(token.as_bytes());
            record.token = Some(Token { sha256, expires_at, key: None, issued: 0 });
        }
    }

    /// Takes a token for a key: the first key that comes with it is the only one that it is good for. The answer is whom a
    /// certificate is to be made for.
    ///
    /// Every token is compared, each in constant time: how long it takes says nothing about any of them.
    ///
    /// # Errors
    /// [`TokenError`]; then nothing has changed.
    pub fn redeem(&mut self, token: &str, key: Sha, now: Stamp) -> Result<DeviceId, TokenError> {
        let given = Sha::of(token.as_bytes());
        let mut found = None;
        for (name, record) in &mut self.devices {
            let same = record.token.as_ref().is_some_and(|one| one.sha256.0.ct_eq(&given.0).into());
            if same {
                found = Some((name, record));
            }
        }
        let (name, record) = found.ok_or(TokenError::Unknown)?;
        let token = record.token.as_mut().ok_or(TokenError::Unknown)?;
        if record.revoked_at.is_some() {
            return Err(TokenError::Revoked);
        }
        if token.expires_at <= now {
            return Err(TokenError::Expired);
        }
        if token.key.is_some_and(|used| used != key) || token.issued >= ISSUES_MAX {
            return Err(TokenError::Used);
        }
        token.key = Some(key);
        token.issued += 1;
        Ok(name.clone())
    }

    /// Keeps a certificate that was made here in mind, and forgets those of the device that have expired.
    pub fn issued(&mut self, device: &DeviceId, certificate: Issued, now: Stamp) {
        if let Some(record) = self.devices.get_mut(device) {
            record.certificates.retain(|one| one.not_after > now);
            record.certificates.push(certificate);
        }
    }

    /// Turns a device away for good. A device that is only known by its certificate is entered for that. Its addresses may be
    /// another's from now on; its token stays, so that whoever shows it is told why it gets nothing. True if it was not so
    /// already.
    pub fn revoke(&mut self, device: &DeviceId, now: Stamp) -> bool {
        let record = self.devices.entry(device.clone()).or_insert_with(|| Record {
            mode: Mode::Mtls,
            added_at: now,
            revoked_at: None,
            addresses: Vec::new(),
            token: None,
            certificates: Vec::new(),
        });
        record.addresses.clear();
        if record.revoked_at.is_some() {
            return false;
        }
        record.revoked_at = Some(now);
        true
    }

    /// Turns one certificate away. By its number only if it was made here; then the answer says whose it is, and its token is
    /// gone: with that and the key, whoever has stolen them could get another certificate.
    pub fn revoke_certificate(&mut self, named: &CertificateName, now: Stamp) -> Option<Option<DeviceId>> {
        for (name, record) in &mut self.devices {
            let is_meant = |one: &&mut Issued| match named {
                CertificateName::Sha256(sha) => one.sha256 == *sha,
                CertificateName::Serial(serial) => same_serial(&one.serial, serial),
            };
            if let Some(one) = record.certificates.iter_mut().find(is_meant) {
                one.revoked_at.get_or_insert(now);
                record.token = None;
                return Some(Some(name.clone()));
            }
        }
        match named {
            CertificateName::Sha256(sha) => {
                self.revoked.entry(*sha).or_insert(now);
                Some(None)
            }
            CertificateName::Serial(_) => None,
        }
    }
}

/// As openssl prints it, in capitals, with colons or without leading zeros, or as it stands here.
fn same_serial(one: &str, other: &str) -> bool {
    let plain = |text: &str| {
        let digits: String = text.chars().filter(|c| *c != ':').collect();
        digits.trim_start_matches('0').to_ascii_lowercase()
    };
    plain(one) == plain(other)
}

/// What a person calls a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateName {
    /// Its SHA-256.
    Sha256(Sha),
    /// Its number.
    Serial(String),
}

impl std::str::FromStr for CertificateName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        if let Ok(sha) = text.parse() {
            return Ok(Self::Sha256(sha));
        }
        let digits = text.chars().filter(|c| *c != ':');
        let is_number = digits.clone().all(|c| c.is_ascii_hexdigit()) && (1..=40).contains(&digits.count());
        if is_number {
            Ok(Self::Serial(text.to_owned()))
        } else {
            Err("a certificate is named by its SHA-256 or by its serial number, both in hexadecimal")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Stamp = Stamp(1_800_000_000);
    const LATER: Stamp = Stamp(1_800_003_600);

    fn id(name: &str) -> DeviceId {
        DeviceId::new(name).unwrap()
    }

    fn site() -> Site {
        Site::new("pit-7").unwrap()
    }

    fn sha(byte: u8) -> Sha {
        Sha([byte; 32])
    }

    fn with_token(token: &str) -> Registry {
        let mut registry = Registry::default();
        registry.add(&id("truck-1"), Mode::Mtls, &[], NOW).unwrap();
        registry.give_token(&id("truck-1"), token, LATER);
        registry
    }

    #[test]
    fn what_is_written_reads_back_and_no_token_stands_in_it() {
        let mut registry = with_token("secret");
        registry.add(&id("pump-3"), Mode::Network, &["10.7.0.3".parse().unwrap()], NOW).unwrap();
        registry.redeem("secret", sha(1), NOW).unwrap();
        let certificate =
            Issued { sha256: sha(2), serial: "0a1b".into(), not_after: LATER, revoked_at: None };
        registry.issued(&id("truck-1"), certificate, NOW);
        registry.revoke_certificate(&CertificateName::Sha256(sha(9)), NOW);
        registry.revoke(&id("truck-9"), NOW);
        let text = registry.to_text();
        assert_eq!(Registry::parse(&text).unwrap(), registry);
        assert!(!text.contains("secret"), "{text}");
        assert_eq!(Registry::parse(&Registry::default().to_text()).unwrap(), Registry::default());
    }

    #[test]
    fn a_text_that_says_two_things_is_no_registry() {
        let device = |name: &str, more: &str| {
            format!("[[device]]\nname = \"{name}\"\nadded_at = \"2026-11-26T18:00:00Z\"\n{more}\n")
        };
        let of = |body: String| Registry::parse(&format!("version = 1\n{body}")).unwrap_err();
        let mtls = "mode = \"mtls\"";
        let at = "mode = \"network\"\naddresses = [\"10.0.0.1\"]";
        assert_eq!(of(device("a", mtls) + &device("a", mtls)), NotARegistry::Twice(id("a")));
        assert!(matches!(of(device("a", at) + &device("b", at)), NotARegistry::Address { .. }));
        assert!(matches!(
            of(device("a", "mode = \"mtls\"\naddresses = [\"10.0.0.1\"]")),
            NotARegistry::Address { .. }
        ));
        assert!(matches!(of(device("no name", mtls)), NotARegistry::Name(_)));
        assert!(matches!(of(device("a", "mode = \"mtls\"\nsecret = 1")), NotARegistry::Text(_)));
        assert_eq!(Registry::parse("version = 2").unwrap_err(), NotARegistry::Version(2));
        assert!(matches!(Registry::parse("").unwrap_err(), NotARegistry::Text(_)));
    }

    #[test]
    fn a_token_is_good_for_one_key_again_and_again_within_its_life() {
        let mut registry = with_token("secret");
        assert_eq!(registry.redeem("Secret", sha(1), NOW), Err(TokenError::Unknown));
        assert_eq!(registry.redeem("", sha(1), NOW), Err(TokenError::Unknown));
        assert_eq!(registry.redeem("secret", sha(1), LATER), Err(TokenError::Expired), "expired at its end");
        for _ in 0..ISSUES_MAX {
            assert_eq!(registry.redeem("secret", sha(1), NOW), Ok(id("truck-1")));
            assert_eq!(registry.redeem("secret", sha(2), NOW), Err(TokenError::Used), "another key");
        }
        assert_eq!(registry.redeem("secret", sha(1), NOW), Err(TokenError::Used), "there is an end to it");

        registry.give_token(&id("truck-1"), "newer", LATER);
        assert_eq!(registry.redeem("secret", sha(1), NOW), Err(TokenError::Unknown), "the older one is gone");
        assert_eq!(registry.redeem("newer", sha(2), NOW), Ok(id("truck-1")));
        registry.revoke(&id("truck-1"), NOW);
        assert_eq!(registry.redeem("newer", sha(2), NOW), Err(TokenError::Revoked));
    }

    #[test]
    fn a_name_has_one_mode_and_a_revoked_one_is_not_given_out_again() {
        let mut registry = with_token("secret");
        let address = ["10.7.0.3".parse().unwrap()];
        let refused = registry.add(&id("truck-1"), Mode::Network, &address, NOW);
        assert_eq!(refused, Err(AddError::Downgrade(id("truck-1"))));
        assert!(registry.addresses(&site()).devices.is_empty());
        registry.add(&id("pump-3"), Mode::Network, &address, NOW).unwrap();
        let refused = registry.add(&id("pump-3"), Mode::Mtls, &[], NOW);
        assert_eq!(refused, Err(AddError::OtherMode(id("pump-3"))));
        let mapped = ["::ffff:10.7.0.3".parse().unwrap()];
        let refused = registry.add(&id("pump-4"), Mode::Network, &mapped, NOW);
        assert_eq!(refused, Err(AddError::AddressTaken(address[0], id("pump-3"))));
        assert!(registry.get(&id("pump-4")).is_none(), "a refusal leaves nothing");

        assert!(registry.revoke(&id("pump-3"), NOW) && !registry.revoke(&id("pump-3"), LATER));
        assert!(registry.addresses(&site()).devices.is_empty());
        let refused = registry.add(&id("pump-3"), Mode::Network, &address, NOW);
        assert_eq!(refused, Err(AddError::Revoked(id("pump-3"))));
        registry.add(&id("pump-4"), Mode::Network, &address, NOW).expect("the replacement has its address");
        assert_eq!(registry.addresses(&site()).devices.get(&address[0]), Some(&id("pump-4")));
        assert_eq!(Registry::parse(&registry.to_text()).as_ref(), Ok(&registry));
    }

    #[test]
    fn an_address_in_three_spellings_is_one_and_reads_back() {
        let mut registry = Registry::default();
        let spellings = ["10.7.0.3", "::ffff:10.7.0.3", "10.7.0.3"].map(|text| text.parse().unwrap());
        registry.add(&id("pump-3"), Mode::Network, &spellings, NOW).unwrap();
        assert_eq!(registry.get(&id("pump-3")).unwrap().addresses, [spellings[0]]);
        assert_eq!(Registry::parse(&registry.to_text()).as_ref(), Ok(&registry));
    }

    #[test]
    fn certificates_are_revoked_by_number_or_hash_and_names_by_name() {
        let mut registry = with_token("secret");
        let certificate =
            Issued { sha256: sha(2), serial: "0a1b".into(), not_after: LATER, revoked_at: None };
        registry.issued(&id("truck-1"), certificate, NOW);
        assert_eq!(registry.denied(&site()), Denied::default());
        let named = |text: &str| text.parse::<CertificateName>().unwrap();
        assert_eq!(registry.revoke_certificate(&named("0B"), NOW), None, "no such number");
        assert_eq!(registry.redeem("secret", sha(1), NOW), Ok(id("truck-1")));
        assert_eq!(registry.revoke_certificate(&named("A:1B"), NOW), Some(Some(id("truck-1"))));
        assert_eq!(
            registry.redeem("secret", sha(1), NOW),
            Err(TokenError::Unknown),
            "its token is gone with it"
        );
        assert_eq!(registry.revoke_certificate(&named(&sha(7).to_string()), NOW), Some(None));
        registry.revoke(&id("truck-9"), NOW);
        let denied = registry.denied(&site());
        assert_eq!(denied.certificates, [[2; 32], [7; 32]].into());
        assert_eq!(denied.names.len(), 1);
        assert!("no number".parse::<CertificateName>().is_err());
    }
}

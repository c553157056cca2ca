//! A device's trust: what it holds, and what it may seal to now.
//!
//! The state machine of a vehicle and, for its site, of a gateway. It starts from a provisioned root, moves by
//! [`apply`](Device::apply) alone, and is asked for its [`VerifiedKey`] at every session start. An object that is
//! refused leaves no trace; an object that was accepted before it stands.
//!
//! # Operating time
//! The caller measures the seconds since it made this value ([`Clock::uptime_s`]) and stores
//! [`encode`](Device::encode) every 10 minutes and whenever [`revision`](Device::revision) has moved, also after an
//! error. What operating is lost between two writes makes hold-downs longer and the lower bound of time lower:
//! both err on the safe side.

use std::fmt;

use bytes::Bytes;

use super::announced::Announced;
use super::error::TrustError;
use super::floor::{Floor, Operated};
use super::root::Root;
use super::statement::Statement;
use super::time::{Clock, UnixTime};
use super::verified_key::VerifiedKey;
use super::verify;
use crate::names::Site;

/// How far a device is from losing its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// Sealing, and the statement is young.
    Fresh,
    /// Sealing, but the statement should have been refreshed: the way to the authority is down.
    Stale,
    /// The statement has expired; nothing is sealed.
    Expired,
    /// No statement, or its key is past its time or denylisted; nothing is sealed.
    NoKey,
}

impl Status {
    /// The name in capitals, the same in every implementation.
    pub const fn code(self) -> &'static str {
        match self {
            Status::Fresh => "FRESH",
            Status::Stale => "STALE",
            Status::Expired => "EXPIRED",
            Status::NoKey => "NO_KEY",
        }
    }

    /// Whether sessions may begin.
    pub const fn may_seal(self) -> bool {
        matches!(self, Status::Fresh | Status::Stale)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// The trust of one device, or of a gateway for its site.
#[derive(Debug, Clone)]
pub struct Device {
    pub(in crate::trust) site: Site,
    pub(in crate::trust) root: Root,
    pub(in crate::trust) root_floor: Floor,
    /// Operating seconds before this value was made.
    pub(in crate::trust) operated_before: Operated,
    /// An epoch was raised, and no statement of it has been accepted yet.
    pub(in crate::trust) cosignature_needed: bool,
    pub(in crate::trust) stored: Option<Stored>,
    pub(in crate::trust) revision: u64,
}

/// The accepted statement and what follows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::trust) struct Stored {
    pub(in crate::trust) statement: Statement,
    pub(in crate::trust) key: VerifiedKey,
    pub(in crate::trust) announced: Vec<Announced>,
    pub(in crate::trust) floor: Floor,
}

impl Device {
    /// A new device with the root that it was given by hand, checked against its own threshold.
    ///
    /// Refuses with the codes of a root; `THRESHOLD_NEW` if its own keys have not signed it.
    pub fn provision(authority: &str, site: &Site, root: &[u8], clock: Clock) -> Result<Device, TrustError> {
        let root = verify::first_root(authority, &Bytes::copy_from_slice(root))?;
        let root_floor = Floor { time: root.issued_at, operated: clock.uptime_s };
        Ok(Device {
            site: site.clone(),
            root,
            root_floor,
            operated_before: 0,
            cosignature_needed: false,
            stored: None,
            revision: 0,
        })
    }

    /// The authority that the device was provisioned for.
    pub fn authority(&self) -> &str {
        &self.root.authority
    }

    /// The device's own site: the audience that statements must name.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// The root in force.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Version of the root in force: what a request for newer roots names.
    pub fn root_version(&self) -> u64 {
        self.root.version
    }

    /// The stored statement, whatever its age.
    pub fn statement(&self) -> Option<&Statement> {
        self.stored.as_ref().map(|stored| &stored.statement)
    }

    /// (epoch, sequence) of what is stored; sequence 0 means that there is no statement in this epoch.
    pub fn version(&self) -> (u64, u64) {
        (self.root.epoch, self.statement().map_or(0, |statement| statement.sequence))
    }

    /// True after the epoch was raised and until a statement that the root threshold has co-signed is accepted.
    pub fn needs_cosignature(&self) -> bool {
        self.cosignature_needed
    }

    /// Counts the changes since this value was made: when it has moved, the state wants storing.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Operating seconds in the device's whole life.
    pub fn operated_s(&self, clock: Clock) -> u64 {
        self.operated_before.saturating_add(clock.uptime_s)
    }

    /// The largest time that has certainly passed, by signatures and operating alone. Never by the trusted clock.
    pub fn now_lower_bound(&self, clock: Clock) -> UnixTime {
        let operated = self.operated_s(clock);
        let by_root = self.root_floor.now(operated);
        self.stored.as_ref().map_or(by_root, |stored| by_root.max(stored.floor.now(operated)))
    }

    /// The device's best knowledge of now: the lower bound, or the trusted clock if that is later.
    pub fn now(&self, clock: Clock) -> UnixTime {
        let bound = self.now_lower_bound(clock);
        clock.trusted_now.map_or(bound, |trusted| bound.max(trusted))
    }

    /// The key to seal to, asked for at every session start.
    ///
    /// Refuses with `EXPIRED` past the statement's life, and with `NO_KEY` if there is no statement, the key is past
    /// its `seal_until`, or a root has denylisted it since.
    pub fn verified_key(&self, clock: Clock) -> Result<VerifiedKey, TrustError> {
        let stored = self.stored.as_ref().ok_or(TrustError::NoKey)?;
        stored.key.usable_at(self.now(clock))?;
        if self.root.denies(stored.key.fingerprint()) {
            return Err(TrustError::NoKey);
        }
        Ok(stored.key.clone())
    }

    /// How things stand.
    pub fn status(&self, clock: Clock) -> Status {
        match self.verified_key(clock) {
            Ok(key) if self.now(clock) > key.refresh_by() => Status::Stale,
            Ok(_) => Status::Fresh,
            Err(TrustError::Expired) => Status::Expired,
            Err(_) => Status::NoKey,
        }
    }
}

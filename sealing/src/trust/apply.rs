//! Taking in a bundle: roots one by one, then the statement.
//!
//! Each object is judged against the state that the ones before it made, into a new state that replaces the old one
//! only when everything held. So a root that verified stays even if the statement after it is refused: it may be the
//! very root that takes the statement's signing key away.

use bytes::Bytes;

use super::announced::{self, Wait};
use super::bundle::{Bundle, MAX_ROOTS};
use super::device::{Device, Stored};
use super::digest::Sha256Digest;
use super::error::TrustError;
use super::floor::Floor;
use super::keys::RsaSpki;
use super::meaning;
use super::statement::{KeyStatus, Statement, StatementKey};
use super::time::Clock;
use super::verified_key::{Proven, VerifiedKey};
use super::verify;

/// What a bundle has changed.
#[derive(Debug, Clone, Default)]
pub struct Applied {
    /// Roots accepted.
    pub roots: usize,
    /// The statement accepted, if the bundle had one.
    pub statement: Option<Accepted>,
}

/// An accepted statement.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// The statement. A gateway keeps every one: envelopes may name any key of any of them.
    pub statement: Statement,
    /// It was not the stored one already.
    pub new: bool,
    /// Another key is sealed to from now on: sessions rotate at once.
    pub key_changed: bool,
    /// The root threshold has signed it as well.
    pub cosigned: bool,
}

impl Device {
    /// Verifies a bundle and takes it in.
    ///
    /// An error is the first refusal. What was accepted before it stands: see [`revision`](Device::revision).
    pub fn apply(&mut self, bundle: &Bundle, clock: Clock) -> Result<Applied, TrustError> {
        if bundle.roots.len() > MAX_ROOTS {
            return Err(TrustError::Parse);
        }
        let mut applied = Applied::default();
        for root in &bundle.roots {
            *self = self.with_root(root, clock)?;
            applied.roots += 1;
        }
        if let Some(object) = &bundle.statement {
            let (device, accepted) = self.with_statement(object, &bundle.spkis, clock)?;
            *self = device;
            applied.statement = Some(accepted);
        }
        Ok(applied)
    }

    fn with_root(&self, object: &Bytes, clock: Clock) -> Result<Device, TrustError> {
        let root = verify::next_root(&self.root, object)?;
        let raised = root.epoch > self.root.epoch;
        Ok(Device {
            site: self.site.clone(),
            root_floor: self.root_floor.raised(root.issued_at, self.operated_s(clock)),
            root,
            operated_before: self.operated_before,
            // Whatever a stolen statement key has poisoned (sequence, floor, announcements) goes with the epoch.
            cosignature_needed: raised || self.cosignature_needed,
            stored: if raised { None } else { self.stored.clone() },
            revision: self.revision + 1,
        })
    }

    fn with_statement(
        &self,
        object: &Bytes,
        spkis: &[Bytes],
        clock: Clock,
    ) -> Result<(Device, Accepted), TrustError> {
        let root = &self.root;
        let stored = self.stored.as_ref();
        let now = self.now(clock);
        let operated = self.operated_s(clock);

        let verify::SignedByRoles { statement, cosigned } = verify::statement(root, object)?;
        meaning::addressed(root, &self.site, &statement)?;
        if let Some(stored) = stored {
            meaning::follows(&stored.statement, &statement)?;
        }
        meaning::timely(root, &statement, now, clock.trusted_now.is_some())?;
        meaning::keys(root, stored.map(|stored| &stored.statement), &statement, now)?;

        let wait = match (cosigned, self.cosignature_needed, stored) {
            (true, ..) => Wait::None,
            (false, true, _) => Wait::Forever,
            // A new vehicle: its first statement comes with the enrolment.
            (false, false, None) => Wait::None,
            (false, false, Some(_)) => Wait::HoldDown(root.policy.hold_down_s),
        };
        let before = stored.map_or(&[][..], |stored| &stored.announced);
        let announced = announced::advance(before, &statement, wait, operated);
        let may_seal = |key: &StatementKey| key.status == KeyStatus::Active && key.seal_until > now;
        let chosen = announced::choose(&announced, &statement, may_seal).ok_or(TrustError::Unannounced)?;
        let key = prove(chosen, &statement, spkis)?;

        let issued = Floor { time: statement.issued_at, operated };
        let floor = stored.map_or(issued, |stored| stored.floor.raised(statement.issued_at, operated));
        let accepted = Accepted {
            new: stored.is_none_or(|stored| stored.statement.digest() != statement.digest()),
            key_changed: stored.is_none_or(|stored| stored.key.fingerprint() != key.fingerprint()),
            cosigned,
            statement: statement.clone(),
        };
        let next = Stored { statement, key, announced, floor };
        let changed = stored != Some(&next) || self.cosignature_needed;
        let device = Device {
            cosignature_needed: false,
            stored: Some(next),
            revision: self.revision + u64::from(changed),
            ..self.clone()
        };
        Ok((device, accepted))
    }
}

/// The chosen key with the bytes that the statement's fingerprint vouches for.
pub(in crate::trust) fn prove(
    chosen: &StatementKey,
    statement: &Statement,
    spkis: &[Bytes],
) -> Result<VerifiedKey, TrustError> {
    let found = spkis.iter().find(|der| Sha256Digest::of(der) == chosen.fingerprint);
    let der = found.ok_or(TrustError::SpkiMissing)?;
    let spki = RsaSpki::from_der(der).map_err(|_| TrustError::SpkiParse)?;
    if u64::from(spki.bits()) != chosen.bits {
        return Err(TrustError::SpkiParse);
    }
    Ok(VerifiedKey::new(Proven {
        arn: chosen.arn.clone(),
        fingerprint: chosen.fingerprint,
        spki,
        statement_digest: *statement.digest(),
        epoch: statement.epoch,
        sequence: statement.sequence,
        seal_until: chosen.seal_until,
        refresh_by: statement.refresh_by,
        expires_at: statement.expires_at,
    }))
}

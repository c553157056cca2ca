//! What a device would say: one that was there from the beginning, one that is new today, and one that has missed what took
//! effect only because the root keys had signed it.
//!
//! The old one takes in every root and every statement at the time at which each was issued, operating all the while, and
//! then the new statement; the new one is enrolled with the new statement alone; the third was parked when the root keys signed,
//! and is offered the new one next, since gateways serve no other. All are [`Device`], the code that vehicles run. A device that operates less than all the time may still be waiting for an announcement that this one has
//! sat out: it goes on sealing to the key that it has.

use bytes::Bytes;
use pithead_sealing::Site;
use pithead_sealing::trust::{
    Bundle, Clock, Device, Root, Statement, StatementFields, TrustError, UnixTime, VerifiedKey, verify,
};

use super::error::AuthorityError;

/// The history that devices of one site have seen.
#[derive(Debug)]
pub(super) struct History<'a> {
    pub(super) site: &'a Site,
    pub(super) roots: &'a [Root],
    pub(super) statements: &'a [Statement],
    pub(super) spkis: &'a [Bytes],
    /// No vehicle is left that has not taken a statement of this epoch, and new ones begin with a root of it.
    pub(super) epoch_followed: bool,
    /// No vehicle is left that has not taken what the root keys have signed last.
    pub(super) cosigned_followed: bool,
}

/// Lets all of them take in `statement` at `now`.
///
/// # Errors
/// [`AuthorityError::Refused`] with the code that the device answers. Gives the key that the old device then seals to.
pub(super) fn rehearse(
    history: &History<'_>,
    statement: &Bytes,
    now: UnixTime,
) -> Result<VerifiedKey, AuthorityError> {
    let refused = |error| AuthorityError::Refused { site: history.site.clone(), error };
    let key = there_from_the_start(history, history.statements, statement, now).map_err(refused)?;
    enrolled_today(history, statement, now).map_err(refused)?;
    left_behind(history, statement, now)
        .map_err(|error| AuthorityError::LeftBehind { site: history.site.clone(), error })?;
    Ok(key)
}

/// A vehicle that has not taken the statements which the root keys signed as well, the last ones. A raised epoch has a rule of
/// its own.
fn left_behind(history: &History<'_>, statement: &Bytes, now: UnixTime) -> Result<(), TrustError> {
    let cosigned = |version: u64, object: &Bytes| {
        let root = history.roots.iter().find(|root| root.version == version);
        root.is_some_and(|root| verify::statement(root, object).is_ok_and(|signed| signed.cosigned))
    };
    let (new, _) = StatementFields::read_unverified(statement)?;
    if history.cosigned_followed || cosigned(new.root_version, statement) {
        return Ok(());
    }
    let missed =
        history.statements.iter().rev().take_while(|past| cosigned(past.root_version, past.object()));
    let missed = missed.count();
    let taken = &history.statements[..history.statements.len() - missed];
    match taken.last() {
        Some(last) if missed > 0 && last.epoch == new.epoch => {
            there_from_the_start(history, taken, statement, now).map(drop)
        }
        _ => Ok(()),
    }
}

fn provision(history: &History<'_>, first: Option<&Root>, clock: Clock) -> Result<Device, TrustError> {
    let first = first.ok_or(TrustError::NeedRoot)?;
    Device::provision(&first.authority, history.site, first.object(), clock)
}

fn newer_roots(history: &History<'_>, device: &Device, up_to: u64) -> Vec<Bytes> {
    let newer = |root: &&Root| root.version > device.root_version() && root.version <= up_to;
    history.roots.iter().filter(newer).map(|root| root.object().clone()).collect()
}

fn enrolled_today(history: &History<'_>, statement: &Bytes, now: UnixTime) -> Result<(), TrustError> {
    let clock = Clock::trusted(0, now);
    let epoch = history.roots.last().map(|root| root.epoch);
    let first = history.roots.iter().find(|root| !history.epoch_followed || Some(root.epoch) == epoch);
    let mut device = provision(history, first, clock)?;
    let roots = newer_roots(history, &device, u64::MAX);
    device
        .apply(&Bundle { roots, statement: Some(statement.clone()), spkis: history.spkis.to_vec() }, clock)?;
    device.verified_key(clock).map(drop)
}

fn there_from_the_start(
    history: &History<'_>,
    taken: &[Statement],
    statement: &Bytes,
    now: UnixTime,
) -> Result<VerifiedKey, TrustError> {
    let start = history.roots.first().map_or(now, |root| root.issued_at);
    let at = |time: UnixTime| Clock::trusted(time.since(start), time);
    let mut device = provision(history, history.roots.first(), at(start))?;
    for past in taken {
        let roots = newer_roots(history, &device, past.root_version);
        let bundle = Bundle { roots, statement: Some(past.object().clone()), spkis: history.spkis.to_vec() };
        device.apply(&bundle, at(past.issued_at))?;
    }
    let roots = newer_roots(history, &device, u64::MAX);
    let bundle = Bundle { roots, statement: Some(statement.clone()), spkis: history.spkis.to_vec() };
    device.apply(&bundle, at(now))?;
    device.verified_key(at(now))
}

//! What a signed statement must say before a device acts on it.
//!
//! Signatures come before meaning, so nothing here is reached by somebody without a statement key. The checks are
//! against that somebody all the same: a stolen statement key must not roll back, fork, outlive the root, weaken
//! keys or bring a dead one back. The order is normative, since the code that is answered is.

use super::digest::Sha256Digest;
use super::error::TrustError;
use super::root::Root;
use super::statement::{KeyStatus, Statement, StatementFields};
use super::time::UnixTime;
use crate::names::Site;

/// How far a statement may be issued in the future of a trusted clock.
const SLACK_S: u64 = 300;
/// Lengths of modulus that KMS has and the envelope carries.
const RSA_BITS: [u64; 3] = [2048, 3072, 4096];

/// Whom it is from, whom it is for, and under which root it was made.
pub(in crate::trust) fn addressed(root: &Root, site: &Site, new: &StatementFields) -> Result<(), TrustError> {
    if new.authority != root.authority {
        return Err(TrustError::Authority);
    }
    if !new.sites.contains(site) {
        return Err(TrustError::Audience);
    }
    if new.root_version > root.version {
        return Err(TrustError::NeedRoot);
    }
    if new.epoch != root.epoch {
        return Err(TrustError::Epoch);
    }
    Ok(())
}

/// That it follows on the stored statement. Gaps are allowed: a device may have been away.
pub(in crate::trust) fn follows(stored: &Statement, new: &Statement) -> Result<(), TrustError> {
    if new.sequence < stored.sequence {
        return Err(TrustError::Rollback);
    }
    if new.sequence == stored.sequence && new.digest() != stored.digest() {
        return Err(TrustError::Equivocation);
    }
    if Some(new.sequence) == stored.sequence.checked_add(1) && new.previous != *stored.digest() {
        return Err(TrustError::Fork);
    }
    Ok(())
}

/// That its times are in order, within the root's life, within policy, and now.
pub(in crate::trust) fn timely(
    root: &Root,
    new: &StatementFields,
    now: UnixTime,
    clock_is_trusted: bool,
) -> Result<(), TrustError> {
    let in_order = new.issued_at <= new.refresh_by && new.refresh_by <= new.expires_at;
    let in_roots_life = root.issued_at <= new.issued_at && new.expires_at <= root.expires_at;
    let in_policy = new.expires_at.since(new.issued_at) <= root.policy.max_statement_validity_s;
    if !in_order || !in_roots_life || !in_policy {
        return Err(TrustError::Validity);
    }
    // A lower bound of time proves expiry, never earliness.
    if clock_is_trusted && new.issued_at > now.plus(SLACK_S) {
        return Err(TrustError::NotYetValid);
    }
    if now >= new.expires_at || now >= root.expires_at {
        return Err(TrustError::Expired);
    }
    Ok(())
}

/// That its keys are strong enough, alive, and still the keys that they were.
pub(in crate::trust) fn keys(
    root: &Root,
    stored: Option<&Statement>,
    new: &StatementFields,
    now: UnixTime,
) -> Result<(), TrustError> {
    for key in &new.keys {
        if !root.policy.suites.contains(&key.suite) {
            return Err(TrustError::KeyAlg);
        }
        if key.bits < root.policy.min_rsa_bits || !RSA_BITS.contains(&key.bits) {
            return Err(TrustError::KeyBits);
        }
        if key.status != KeyStatus::Revoked && root.denies(&key.fingerprint) {
            return Err(TrustError::KeyDenylisted);
        }
    }
    if let Some(stored) = stored {
        same_bindings(stored, new)?;
        forward_only(stored, new, |dead| root.denies(dead))?;
    }
    let active = || new.keys.iter().filter(|key| key.status == KeyStatus::Active);
    if active().any(|key| key.not_before > new.issued_at) {
        return Err(TrustError::Validity);
    }
    if !active().any(|key| key.seal_until > now) {
        return Err(TrustError::NoActive);
    }
    Ok(())
}

fn same_bindings(stored: &StatementFields, new: &StatementFields) -> Result<(), TrustError> {
    for key in &new.keys {
        let arn_moved = stored.key_by_arn(&key.arn).is_some_and(|old| old.fingerprint != key.fingerprint);
        let key_moved = stored.key(&key.fingerprint).is_some_and(|old| old.arn != key.arn);
        if arn_moved || key_moved {
            return Err(TrustError::KidRebind);
        }
    }
    Ok(())
}

fn forward_only(
    stored: &StatementFields,
    new: &StatementFields,
    denied: impl Fn(&Sha256Digest) -> bool,
) -> Result<(), TrustError> {
    for old in &stored.keys {
        let allowed = match new.key(&old.fingerprint) {
            Some(key) => key.status >= old.status,
            // A revocation that could be left out would be undone by listing the key anew.
            None => old.status != KeyStatus::Revoked || denied(&old.fingerprint),
        };
        if !allowed {
            return Err(TrustError::KeyTransition);
        }
    }
    Ok(())
}

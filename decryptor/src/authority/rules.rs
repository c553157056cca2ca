//! What is not signed because it could not be taken back (trust document, section 1). Pure.

use pithead_sealing::trust::{KeyArn, KeyStatus, Statement, StatementFields, UnixTime};

use super::error::KeptBack;

/// How long after the last statement that lists a key as active has expired, envelopes sealed under it may still arrive:
/// outboxes, spools and a USB stick in a drawer.
pub(super) const STRAGGLERS_S: u64 = 180 * 86_400;

/// Judges a statement before it is signed; `history` is what was signed for its sites before.
pub(super) fn judge(
    new: &StatementFields,
    history: &[Statement],
    without_standby: bool,
) -> Result<(), KeptBack> {
    let stands_by = new.keys.iter().any(|key| key.status == KeyStatus::Next);
    if !stands_by && !without_standby {
        return Err(KeptBack::NoStandby);
    }
    for key in &new.keys {
        let earliest = last_active_expiry(&key.arn, new, history).map(|expiry| expiry.plus(STRAGGLERS_S));
        if let (Some(promised), Some(earliest)) = (key.decrypt_until, earliest)
            && promised < earliest
        {
            return Err(KeptBack::DecryptUntil { arn: key.arn.clone(), earliest });
        }
    }
    Ok(())
}

/// The last expiry of any statement, the new one included, that lists the key as active.
pub(super) fn last_active_expiry(
    arn: &KeyArn,
    new: &StatementFields,
    history: &[Statement],
) -> Option<UnixTime> {
    let all = history.iter().map(Statement::fields).chain([new]);
    let listing =
        all.filter(|statement| statement.key_by_arn(arn).is_some_and(|key| key.status == KeyStatus::Active));
    listing.map(|statement| statement.expires_at).max()
}

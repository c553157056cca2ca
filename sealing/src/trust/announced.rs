//! Announced before active: how long each key has been listed, in operating seconds.
//!
//! A stolen statement key can list a key of the thief's. It cannot make a running fleet seal to it at once: a key
//! is used only after it has been listed, next or active, without a break for the hold-down, and in that time
//! somebody notices. Time is counted while the vehicle operates, so that a parked one does not wake up with the
//! announcement already over.

use super::digest::Sha256Digest;
use super::floor::Operated;
use super::statement::{KeyStatus, StatementFields, StatementKey};

/// A key listed as next or active in the stored statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::trust) struct Announced {
    pub(in crate::trust) fingerprint: Sha256Digest,
    /// Operating seconds at which it appeared, listed ever since.
    pub(in crate::trust) since: Operated,
    /// It was active and allowed to be used.
    pub(in crate::trust) in_use: bool,
}

/// Why the wait does not apply, if it does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::trust) enum Wait {
    /// Nothing to protect yet, or the root threshold has signed, or policy waits for nothing.
    None,
    /// The ordinary case: announced for this many operating seconds.
    HoldDown(u64),
    /// The first statement of a raised epoch, without the root threshold: nothing that it lists may be used.
    Forever,
}

/// The table after `statement`, given the one before it.
pub(in crate::trust) fn advance(
    before: &[Announced],
    statement: &StatementFields,
    wait: Wait,
    operated: Operated,
) -> Vec<Announced> {
    let listed = statement.keys.iter().filter(|key| key.status.is_listed());
    listed
        .map(|key| {
            let known = before.iter().find(|known| known.fingerprint == key.fingerprint);
            let since = known.map_or(operated, |known| known.since);
            // "Active in the stored statement" lets a key pass only if it was allowed to be used there. Otherwise a
            // thief would list the own key as active beside the good one, and drop the good one a second later.
            let was_in_use = known.is_some_and(|known| known.in_use);
            let allowed = match wait {
                Wait::None => true,
                Wait::HoldDown(seconds) => was_in_use || operated.saturating_sub(since) >= seconds,
                Wait::Forever => false,
            };
            let in_use = key.status == KeyStatus::Active && allowed;
            Announced { fingerprint: key.fingerprint, since, in_use }
        })
        .collect()
}

/// The usable key that became valid last; the first listed of equals.
pub(in crate::trust) fn choose<'s>(
    table: &[Announced],
    statement: &'s StatementFields,
    mut may_seal: impl FnMut(&StatementKey) -> bool,
) -> Option<&'s StatementKey> {
    let usable = statement.keys.iter().filter(|key| {
        may_seal(key) && table.iter().any(|known| known.in_use && known.fingerprint == key.fingerprint)
    });
    usable.reduce(|best, key| if key.not_before > best.not_before { key } else { best })
}

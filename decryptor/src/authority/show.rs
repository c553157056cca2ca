//! `authority show`: what the folder says, verified while it is read.

use pithead_sealing::trust::{Custody, KeyStatus, Role, Root, StatementKey, UnixTime};
use serde::Serialize;

use super::dir::Folder;
use super::error::AuthorityError;

/// An authority at a glance.
#[derive(Debug, Clone, Serialize)]
pub struct Overview {
    /// Its name.
    pub authority: String,
    /// Version of the root in force.
    pub root_version: u64,
    /// SHA-256 of that root's payload: what is read out over the telephone.
    pub root: String,
    /// Its epoch.
    pub epoch: u64,
    /// When it expires, RFC 3339.
    pub root_expires_at: String,
    /// Who can cause a statement's signature.
    pub custody: &'static str,
    /// How long keys are announced, in operating seconds.
    pub hold_down_s: u64,
    /// Root keys that must sign, and root keys.
    pub root_threshold: (u64, usize),
    /// The root keys.
    pub root_keys: Vec<RoleKeyView>,
    /// The keys that sign statements.
    pub statement_keys: Vec<RoleKeyView>,
    /// Each site's last statement.
    pub sites: Vec<SiteView>,
}

/// A key of a role.
#[derive(Debug, Clone, Serialize)]
pub struct RoleKeyView {
    /// Its name: 32 hex digits.
    pub kid: String,
    /// Who holds it.
    pub label: String,
}

/// The last statement of a site.
#[derive(Debug, Clone, Serialize)]
pub struct SiteView {
    /// Which site.
    pub site: String,
    /// Its number.
    pub sequence: u64,
    /// SHA-256 of its payload.
    pub statement: String,
    /// When it was signed, RFC 3339.
    pub issued_at: String,
    /// When devices begin to call it stale.
    pub refresh_by: String,
    /// When it expires.
    pub expires_at: String,
    /// `fresh`, `stale` or `expired`.
    pub state: &'static str,
    /// Its keys.
    pub keys: Vec<KeyView>,
}

/// A key as a statement lists it.
#[derive(Debug, Clone, Serialize)]
pub struct KeyView {
    /// Its full ARN.
    pub arn: String,
    /// `next`, `active`, `retired` or `revoked`.
    pub status: &'static str,
    /// SHA-256 of its SPKI.
    pub fingerprint: String,
    /// Length of its modulus.
    pub bits: u64,
    /// Nothing is sealed to it from then on.
    pub seal_until: String,
    /// The authority promises to be able to decrypt until then.
    pub decrypt_until: Option<String>,
}

impl KeyView {
    /// For display.
    pub fn of(key: &StatementKey) -> KeyView {
        KeyView {
            arn: key.arn.to_string(),
            status: status_name(key.status),
            fingerprint: key.fingerprint.to_string(),
            bits: key.bits,
            seal_until: rfc3339(key.seal_until),
            decrypt_until: key.decrypt_until.map(rfc3339),
        }
    }
}

/// Reads and verifies the whole folder.
///
/// # Errors
/// [`AuthorityError::Damaged`] names the first object that does not verify.
pub fn overview(dir: &Folder, now: UnixTime) -> Result<Overview, AuthorityError> {
    let roots = dir.roots()?;
    let root = roots.last().ok_or_else(|| AuthorityError::Missing(dir.path().into()))?;
    let mut sites = Vec::new();
    for site in dir.sites()? {
        let statements = dir.statements(&site, &roots)?;
        let Some(last) = statements.last() else { continue };
        let state = match now {
            now if now >= last.expires_at => "expired",
            now if now >= last.refresh_by => "stale",
            _ => "fresh",
        };
        sites.push(SiteView {
            site: site.to_string(),
            sequence: last.sequence,
            statement: last.digest().to_string(),
            issued_at: rfc3339(last.issued_at),
            refresh_by: rfc3339(last.refresh_by),
            expires_at: rfc3339(last.expires_at),
            state,
            keys: last.keys.iter().map(KeyView::of).collect(),
        });
    }
    Ok(of_root(root, sites))
}

fn of_role(root: &Root, role: &Role) -> Vec<RoleKeyView> {
    let label = |kid| root.key(kid).map(|key| key.label.clone()).unwrap_or_default();
    role.kids.iter().map(|kid| RoleKeyView { kid: kid.to_string(), label: label(kid) }).collect()
}

fn of_root(root: &Root, sites: Vec<SiteView>) -> Overview {
    Overview {
        authority: root.authority.clone(),
        root_version: root.version,
        root: root.digest().to_string(),
        epoch: root.epoch,
        root_expires_at: rfc3339(root.expires_at),
        custody: custody_name(root.policy.custody),
        hold_down_s: root.policy.hold_down_s,
        root_threshold: (root.root_role.threshold, root.root_role.kids.len()),
        root_keys: of_role(root, &root.root_role),
        statement_keys: of_role(root, &root.statement_role),
        sites,
    }
}

/// Who can cause a signature of the statement role, for people.
pub fn custody_name(custody: Option<Custody>) -> &'static str {
    match custody {
        Some(Custody::OfflineToken) => "offline token",
        Some(Custody::CloudHsm) => "cloud HSM",
        Some(Custody::KeyFile) => "key file",
        None => "not declared",
    }
}

/// `next`, `active`, `retired` or `revoked`.
pub fn status_name(status: KeyStatus) -> &'static str {
    match status {
        KeyStatus::Next => "next",
        KeyStatus::Active => "active",
        KeyStatus::Retired => "retired",
        KeyStatus::Revoked => "revoked",
    }
}

/// RFC 3339 in UTC; the number of seconds where the calendar ends.
pub(crate) fn rfc3339(at: UnixTime) -> String {
    let format = &time::format_description::well_known::Rfc3339;
    let text = i64::try_from(at.as_secs())
        .ok()
        .and_then(|seconds| time::OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|moment| moment.format(format).ok());
    text.unwrap_or_else(|| format!("{} s after 1970", at.as_secs()))
}

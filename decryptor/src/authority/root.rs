//! `authority root draft | sign | accept`: the next root, signed by people who do not meet.
//!
//! ```text
//! draft    DIR and what is to change ─> PAYLOAD                nothing secret; what everybody signs, byte for byte
//! sign     PAYLOAD and a root key    ─> a root with one signature, on the key holder's machine, which has no DIR
//! accept   DIR and those             ─> thresholds of the old root and the new one ─> DIR
//! ```
//!
//! No bundle is written: a statement that is older than the root does not stand under it, so the next one has to be signed
//! first, and what gateways have until then goes on to be good.
//!
//! Which signatures are needed is the verifier's rule and nobody else's: [`accept`] asks the function that devices ask.

use std::time::Duration;

use bytes::Bytes;
use pithead_sealing::Site;
use pithead_sealing::trust::authoring::{Draft, SigningKey};
use pithead_sealing::trust::{
    Custody, Kid, MAX_ROOTS, Role, Root, RootFields, RootKey, Sha256Digest, UnixTime, verify,
};
use serde_json::json;

use super::audit;
use super::cosigning::{gather, payload_of, printable};
use super::dir::AuthorityDir;
use super::error::AuthorityError;
use super::init::MAX_ROOT_LIFE;

/// What the next root is to have otherwise. Everything else is as in the root before.
#[derive(Debug, Clone, Default)]
pub struct RootChange {
    /// How long it lives; as long as the root before, from now on.
    pub life: Option<Duration>,
    /// Root keys that come.
    pub add_root_keys: Vec<RootKey>,
    /// Root keys that go.
    pub remove_root_keys: Vec<Kid>,
    /// How many of them sign a root.
    pub root_threshold: Option<u64>,
    /// The keys of the statement role whose private halves are files or tokens, instead of those before; one of them signs.
    pub statement_keys: Vec<RootKey>,
    /// The same whose private halves are in KMS, which has said so itself.
    pub kms_statement_keys: Vec<RootKey>,
    /// Data keys that are never used again, by fingerprint.
    pub deny: Vec<Sha256Digest>,
    /// Undoes whatever a stolen statement key has signed.
    pub raise_epoch: bool,
    /// Who can cause a statement's signature; what the statement keys show if it is not given.
    pub custody: Option<Custody>,
    /// How long a key is announced, in operating time of the vehicles.
    pub hold_down: Option<Duration>,
    /// Longest life of a statement.
    pub max_statement_validity: Option<Duration>,
}

/// A root that nobody has signed yet.
#[derive(Debug, Clone)]
pub struct RootDraft {
    /// What it says.
    pub fields: RootFields,
    /// What is signed.
    pub payload: Bytes,
    /// SHA-256 of it: what those who sign read to each other.
    pub digest: Sha256Digest,
}

/// A root that is in force now.
#[derive(Debug, Clone)]
pub struct AcceptedRoot {
    /// The root.
    pub root: Root,
    /// Sites that are to be given it, with their next statement.
    pub sites: Vec<Site>,
    /// Devices have forgotten all statements: the next one needs the root keys beside it.
    pub raised_epoch: bool,
}

/// Drafts the root after the one in force.
///
/// # Errors
/// [`AuthorityError::Request`] for a change that cannot be made, [`AuthorityError::Authoring`] with the rule that the root
/// would break.
pub fn draft(dir: &AuthorityDir, change: &RootChange, now: UnixTime) -> Result<RootDraft, AuthorityError> {
    let roots = dir.roots()?;
    let current = roots.last().ok_or_else(|| AuthorityError::Missing(dir.path().into()))?;
    if roots.len() >= MAX_ROOTS {
        return Err(AuthorityError::Request(TOO_MANY));
    }
    let fields = next_root(current, change, now)?;
    plain_text(&fields)?;
    timely(current, &fields, now)?;
    let draft = Draft::root(&fields)?;
    Ok(RootDraft { fields, payload: Bytes::copy_from_slice(draft.payload()), digest: draft.digest() })
}

const TOO_MANY: &str = "an authority has 32 roots at most: that is as many as one bundle carries";
/// How far the clocks of those who draft and accept may be apart.
const CLOCK_SLACK_S: u64 = 300;

fn plain_text(fields: &RootFields) -> Result<(), AuthorityError> {
    printable(&fields.authority, fields.keys.iter().map(|key| key.label.as_str()))
}

/// No statement could stand under a root of the future or of the past, and no later root could undo it.
fn timely(current: &Root, fields: &RootFields, now: UnixTime) -> Result<(), AuthorityError> {
    let wrong = |what| Err(AuthorityError::Request(what));
    if fields.issued_at < current.issued_at {
        return wrong("this machine's clock is behind that of the root in force");
    }
    if fields.issued_at > now.plus(CLOCK_SLACK_S) {
        return wrong(
            "the root is issued in the future: the clock of this machine or of the drafting one is wrong",
        );
    }
    if fields.expires_at <= now || fields.expires_at.since(fields.issued_at) > MAX_ROOT_LIFE.as_secs() {
        return wrong("the root has expired, or lives for more than two years");
    }
    Ok(())
}

/// What a payload says, for whoever is asked to sign it.
///
/// # Errors
/// [`AuthorityError::Authoring`] if it is no root that a device could read.
pub fn read_draft(payload: &[u8]) -> Result<RootDraft, AuthorityError> {
    let (draft, fields) = Draft::root_of_payload(payload)?;
    plain_text(&fields)?;
    if fields.version < 2 {
        // Whoever signs one alone has made an authority of his own.
        return Err(AuthorityError::Request(
            "a first root is made by `authority init` and not by signing a draft",
        ));
    }
    Ok(RootDraft { fields, payload: Bytes::copy_from_slice(payload), digest: draft.digest() })
}

/// Signs a drafted root with one key. A key that goes signs as well: the old root's threshold is asked for.
///
/// # Errors
/// [`AuthorityError::Authoring`].
pub fn sign(draft: &RootDraft, key: &SigningKey) -> Result<Bytes, AuthorityError> {
    let (mut draft, _) = Draft::root_of_payload(&draft.payload)?;
    draft.sign(key)?;
    Ok(draft.finish()?)
}

/// Brings signatures together, and puts the root into force if both thresholds are met.
///
/// # Errors
/// [`AuthorityError::RootRefused`] with `THRESHOLD_OLD` or `THRESHOLD_NEW` while signatures are missing. Unless it is a
/// failed write, the folder is as it was.
pub fn accept(dir: &AuthorityDir, signed: &[Bytes], now: UnixTime) -> Result<AcceptedRoot, AuthorityError> {
    let roots = dir.roots()?;
    let current = roots.last().ok_or_else(|| AuthorityError::Missing(dir.path().into()))?;
    let draft = collect(current, signed)?;
    let root = verify::next_root(current, &draft.finish()?).map_err(AuthorityError::RootRefused)?;
    if roots.len() >= MAX_ROOTS {
        return Err(AuthorityError::Request(TOO_MANY));
    }
    plain_text(&root)?;
    timely(current, &root, now)?;
    let sites = dir.sites()?;
    audit::record(dir, now, "root.accept", facts(&root, &draft))?;
    dir.keep_root(&root)?;
    let raised_epoch = root.epoch > current.epoch;
    Ok(AcceptedRoot { root, sites, raised_epoch })
}

fn next_root(current: &Root, change: &RootChange, now: UnixTime) -> Result<RootFields, AuthorityError> {
    let life = change.life.map_or_else(|| current.expires_at.since(current.issued_at), |life| life.as_secs());
    if life == 0 || life > MAX_ROOT_LIFE.as_secs() {
        return Err(AuthorityError::Request("a root lives for at most two years"));
    }
    let of_role = |role: &Role| -> Vec<RootKey> {
        role.kids.iter().filter_map(|kid| current.key(kid)).cloned().collect()
    };
    let mut root_keys = of_role(&current.root_role);
    for gone in &change.remove_root_keys {
        let before = root_keys.len();
        root_keys.retain(|key| key.spki.kid() != *gone);
        if root_keys.len() == before {
            return Err(AuthorityError::Request("--remove-root-key names no key of the root role"));
        }
    }
    root_keys.extend(change.add_root_keys.iter().cloned());
    let new_statement_keys = [change.statement_keys.as_slice(), &change.kms_statement_keys].concat();
    let replaced = !new_statement_keys.is_empty();
    let statement_keys = if replaced { new_statement_keys } else { of_role(&current.statement_role) };
    let kids = |keys: &[RootKey]| keys.iter().map(|key| key.spki.kid()).collect::<Vec<Kid>>();
    let mut fields = current.fields().clone();
    fields.version += 1;
    fields.epoch += u64::from(change.raise_epoch);
    fields.issued_at = now;
    fields.expires_at = now.plus(life);
    fields.previous = *current.digest();
    fields.root_role = Role {
        threshold: change.root_threshold.unwrap_or(current.root_role.threshold),
        kids: kids(&root_keys),
    };
    let statement_threshold = if replaced { 1 } else { current.statement_role.threshold };
    fields.statement_role = Role { threshold: statement_threshold, kids: kids(&statement_keys) };
    fields.keys = root_keys;
    for key in statement_keys {
        if !fields.keys.iter().any(|known| known.spki.kid() == key.spki.kid()) {
            fields.keys.push(key);
        }
    }
    for fingerprint in &change.deny {
        if !fields.denies(fingerprint) {
            fields.denylist.push(*fingerprint);
        }
    }
    let policy = &mut fields.policy;
    policy.custody = custody(policy.custody, change)?;
    policy.hold_down_s = change.hold_down.map_or(policy.hold_down_s, |time| time.as_secs());
    policy.max_statement_validity_s =
        change.max_statement_validity.map_or(policy.max_statement_validity_s, |time| time.as_secs());
    Ok(fields)
}

/// What the root says of its statement keys. Devices and auditors go by it, so it follows from where the keys are, and is changed
/// together with them.
fn custody(before: Option<Custody>, change: &RootChange) -> Result<Option<Custody>, AuthorityError> {
    let wrong = |what| Err(AuthorityError::Request(what));
    let hsm = Some(Custody::CloudHsm);
    match (change.statement_keys.is_empty(), change.kms_statement_keys.is_empty()) {
        (true, true) if change.custody == hsm && before != hsm => wrong(
            "the statement keys stay the ones that are in files; give those in KMS as well: --statement-key LABEL=kms:ARN",
        ),
        (true, true) => Ok(change.custody.or(before)),
        (true, false) if change.custody.is_some_and(|said| said != Custody::CloudHsm) => {
            wrong("all statement keys are in KMS: leave --custody out, or say cloud-hsm")
        }
        (true, false) => Ok(hsm),
        // One that is a file is enough to sign.
        (false, _) if change.custody.is_none() && before == hsm => wrong(
            "the root before says cloud HSM, and a statement key comes out of a file: say who holds its private half, --custody \
             key-file",
        ),
        (false, false) => Ok(change.custody.or(Some(Custody::KeyFile))),
        (false, true) => Ok(change.custody.or(before)),
    }
}

/// One object with the signatures of all. Each is held against the key that it names, in the new root or the old one.
fn collect(current: &Root, signed: &[Bytes]) -> Result<Draft, AuthorityError> {
    let (draft, fields) = Draft::root_of_payload(&payload_of(signed)?)?;
    gather(draft, signed, |kid| fields.key(kid).or_else(|| current.key(kid)).map(|key| key.spki.clone()))
}

fn role(root: &Root, role: &Role) -> serde_json::Value {
    let label = |kid| root.key(kid).map(|key| key.label.as_str());
    let keys = role.kids.iter().map(|kid| json!({ "kid": kid.to_string(), "label": label(kid) }));
    json!({ "threshold": role.threshold, "keys": keys.collect::<Vec<_>>() })
}

fn facts(root: &Root, draft: &Draft) -> serde_json::Value {
    json!({
        "authority": root.authority, "root_version": root.version, "epoch": root.epoch,
        "root": root.digest().to_string(),
        "signed_by": draft.signed_by().map(ToString::to_string).collect::<Vec<_>>(),
        "root_role": role(root, &root.root_role), "statement_role": role(root, &root.statement_role),
        "custody": super::show::custody_name(root.policy.custody), "hold_down_s": root.policy.hold_down_s, "min_rsa_bits": root.policy.min_rsa_bits,
        "max_statement_validity_s": root.policy.max_statement_validity_s,
        "denylist": root.denylist.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "expires_at": super::show::rfc3339(root.expires_at),
    })
}

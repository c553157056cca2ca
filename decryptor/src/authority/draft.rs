//! `authority statement | rotate | revoke --draft`, `cosign`, `accept`: a statement that root keys sign on machines that never meet.
//!
//! ```text
//! draft    DIR and what is asked    ─> PAYLOAD                 nothing secret; what everybody signs, byte for byte
//! cosign   PAYLOAD and a root key   ─> a statement with one signature, on the key holder's machine, which has no DIR
//! accept   DIR and those            ─> threshold of root keys ─> statement key ─> rehearsal ─> DIR ─> bundles
//! ```
//!
//! People take days, and statements are issued again meanwhile. So a draft has a number that leaves [`ROOM_FOR_REISSUES`] before it
//! (devices allow gaps), and is accepted as long as nothing but re-issues came between.

use bytes::Bytes;
use pithead_sealing::trust::authoring::{Draft, SigningKey};
use pithead_sealing::trust::{Sha256Digest, Statement, StatementFields, StatementKey, UnixTime, verify};

use super::cosigning::{gather, payload_of, printable};
use super::dir::AuthorityDir;
use super::error::AuthorityError;
use super::rules;
use super::signer::StatementSigner;
use super::statement::{
    Ground, Issued, Judged, StatementRequest, finish, next, public_keys, sign_as_statement_key,
};

/// Numbers that a draft leaves for what is issued before it is accepted: more than a year of daily re-issues.
const ROOM_FOR_REISSUES: u64 = 1_000;

/// How much longer a draft promises that a retired key decrypts: each re-issue before it is accepted lists that key as active for
/// longer.
const ROOM_FOR_DECRYPTION_S: u64 = 90 * 86_400;

/// How far the clocks of those who draft and accept may be apart.
const CLOCK_SLACK_S: u64 = 300;

/// A statement that nobody has signed yet.
#[derive(Debug, Clone)]
pub struct StatementDraft {
    /// What it says.
    pub fields: StatementFields,
    /// What is signed.
    pub payload: Bytes,
    /// SHA-256 of it: what those who sign read to each other.
    pub digest: Sha256Digest,
}

/// Drafts the next statement. Nothing is signed; the public keys that it names are kept in the folder.
///
/// # Errors
/// As [`issue`](super::issue), as far as it can be known before the signatures are there.
pub fn draft_statement(
    dir: &AuthorityDir,
    request: &StatementRequest,
    now: UnixTime,
) -> Result<StatementDraft, AuthorityError> {
    let ground = Ground::read(dir, &request.sites)?;
    let mut lasts = ground.histories.iter().map(|history| history.last().map(Statement::digest));
    let first = lasts.next().flatten();
    if lasts.any(|last| last != first) {
        return Err(AuthorityError::Request(
            "the sites have different last statements; draft theirs one at a time",
        ));
    }
    let (mut fields, spkis) = next(dir, &ground, request, now)?;
    if let Some(base) = ground.histories[0].last() {
        fields.sequence += ROOM_FOR_REISSUES;
        for key in fields.keys.iter_mut().filter(|key| !key.status.is_listed()) {
            let retired_by_it = base.key_by_arn(&key.arn).is_some_and(|before| before.status.is_listed());
            if retired_by_it && request.decrypt_until.is_none() {
                key.decrypt_until = key.decrypt_until.map(|until| until.plus(ROOM_FOR_DECRYPTION_S));
            }
        }
    }
    printable(&fields.authority, [])?;
    let draft = Draft::statement(&fields)?;
    for spki in spkis.values() {
        dir.keep_spki(spki)?;
    }
    Ok(StatementDraft { fields, payload: Bytes::copy_from_slice(draft.payload()), digest: draft.digest() })
}

/// What a payload says, for whoever is asked to sign it.
///
/// # Errors
/// [`AuthorityError::Authoring`] if it is no statement that a device could read.
pub fn read_statement_draft(payload: &[u8]) -> Result<StatementDraft, AuthorityError> {
    let (draft, fields) = Draft::statement_of_payload(payload)?;
    printable(&fields.authority, [])?;
    Ok(StatementDraft { fields, payload: Bytes::copy_from_slice(payload), digest: draft.digest() })
}

/// Signs a drafted statement with one root key.
///
/// # Errors
/// [`AuthorityError::Authoring`].
pub fn cosign(draft: &StatementDraft, key: &SigningKey) -> Result<Bytes, AuthorityError> {
    let (mut draft, _) = Draft::statement_of_payload(&draft.payload)?;
    draft.sign(key)?;
    Ok(draft.finish()?)
}

/// Brings the signatures of root keys together, has the statement key sign as well, and issues the statement.
///
/// # Errors
/// [`AuthorityError::Request`] while signatures are missing, or when what the draft stood on has changed. Unless it is a failed
/// write, the folder is as it was.
pub async fn accept_statement(
    dir: &AuthorityDir,
    signer: &dyn StatementSigner,
    signed: &[Bytes],
    now: UnixTime,
) -> Result<Issued, AuthorityError> {
    let drafted = read_statement_draft(&payload_of(signed)?)?;
    let fields = &drafted.fields;
    let ground = Ground::read(dir, &fields.sites)?;
    stands(&ground, fields, now)?;
    let past = ground.past();
    // That no key stands by was said to those who signed.
    rules::judge(fields, &past, true)?;

    let (draft, _) = Draft::statement_of_payload(&drafted.payload)?;
    let root = &ground.root;
    let mut draft = gather(draft, signed, |kid| root.key(kid).map(|key| key.spki.clone()))?;
    let (holders, _) = verify::signers_of(root, &draft.finish()?).map_err(|error| ground.refused(error))?;
    if (holders.len() as u64) < root.root_role.threshold {
        return Err(AuthorityError::Request(
            "the root keys that have signed do not meet the threshold of the root",
        ));
    }
    if !draft.signed_by().any(|kid| *kid == signer.public().kid()) {
        sign_as_statement_key(&ground, &mut draft, signer).await?;
    }
    let request = StatementRequest { no_standby: true, ..StatementRequest::to(fields.sites.clone()) };
    let spkis = public_keys(dir, fields, &past, &request)?;
    finish(dir, &ground, &draft, spkis, &Judged { request: &request, cosigned: true }, now)
}

/// Whether the folder is still what the draft was made from.
fn stands(ground: &Ground, fields: &StatementFields, now: UnixTime) -> Result<(), AuthorityError> {
    let again = |what| Err(AuthorityError::Request(what));
    let root = &ground.root;
    if fields.authority != root.authority || fields.root_version != root.version || fields.epoch != root.epoch
    {
        return again("the draft was made under another root than the one in force: draft it again");
    }
    if fields.issued_at > now.plus(CLOCK_SLACK_S) {
        return again(
            "the draft is of the future: the clock of this machine or of the drafting one is wrong",
        );
    }
    for history in &ground.histories {
        let Some(last) = history.last() else {
            if fields.previous == Sha256Digest::ZERO {
                continue;
            }
            return again("the draft follows a statement that is not in this folder");
        };
        let base = history.statements.iter().rposition(|past| *past.digest() == fields.previous);
        let Some(base) = base else {
            return again("the draft follows a statement that is not in this folder");
        };
        let since = &history.statements[base..];
        if fields.sequence <= last.sequence || since.iter().any(|later| !says_the_same(later, &since[0])) {
            return again("keys were changed since the draft was made: draft it again");
        }
    }
    Ok(())
}

/// Whether two statements list the same keys in the same states: the later one is a re-issue.
pub(super) fn says_the_same(a: &StatementFields, b: &StatementFields) -> bool {
    let said = |key: &StatementKey| (key.arn.clone(), key.fingerprint, key.status);
    a.keys.iter().map(said).eq(b.keys.iter().map(said))
}

#[cfg(test)]
mod tests;

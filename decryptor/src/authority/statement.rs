//! `authority statement`: the next statement of a site, or of several.
//!
//! What the last one listed stays listed: a key leaves a statement by being retired, not by being forgotten on a command
//! line. Offered keys are added, or raised to another status; then the rules, the signature, the rehearsal, the log, the
//! files, in that order.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use pithead_sealing::Site;
use pithead_sealing::trust::authoring::{Draft, SigningKey};
use pithead_sealing::trust::{
    Custody, KeyArn, KeyStatus, MAX_KEYS, Root, RsaSpki, SUITE_RSA_OAEP_SHA256, Sha256Digest, Statement,
    StatementFields, StatementKey, TrustError, UnixTime, VerifiedKey, verify,
};
use serde_json::json;

use super::audit;
use super::dir::{AuthorityDir, write_whole};
use super::error::AuthorityError;
use super::export;
use super::rehearsal::{History, rehearse};
use super::rules;
use super::signer::StatementSigner;

/// A key to be listed.
#[derive(Debug, Clone)]
pub struct OfferedKey {
    /// Its full ARN.
    pub arn: KeyArn,
    /// Its public key; may be left out for a key that is listed already.
    pub spki: Option<RsaSpki>,
    /// Next or active.
    pub status: KeyStatus,
}

/// What the next statement is to say.
#[derive(Debug, Clone)]
pub struct StatementRequest {
    /// Whom it is for.
    pub sites: Vec<Site>,
    /// Keys to be added, or raised to another status.
    pub keys: Vec<OfferedKey>,
    /// Keys that are not sealed to any more.
    pub retire: Vec<KeyArn>,
    /// Keys that are never sealed to again, each with the reason that people are told.
    pub revoke: Vec<(KeyArn, Option<String>)>,
    /// How long it is valid; 180 days, or as long as the root lives.
    pub validity: Option<Duration>,
    /// Sign although no key stands by.
    pub no_standby: bool,
    /// Every vehicle has taken a statement of this epoch, and new ones are provisioned with a root of it: only then is one
    /// without the root keys enough.
    pub epoch_followed: bool,
    /// Every vehicle has taken the last statement that the root keys signed as well: only then is one without them enough.
    pub cosigned_followed: bool,
    /// How long retired keys stay able to decrypt; the earliest that the rules allow if it is not given.
    pub decrypt_until: Option<UnixTime>,
    /// The change request behind it.
    pub ticket: Option<String>,
}

impl StatementRequest {
    /// What the last statement says, for another term.
    #[must_use]
    pub fn to(sites: Vec<Site>) -> Self {
        Self {
            sites,
            keys: Vec::new(),
            retire: Vec::new(),
            revoke: Vec::new(),
            validity: None,
            no_standby: false,
            epoch_followed: false,
            cosigned_followed: false,
            decrypt_until: None,
            ticket: None,
        }
    }
}

/// A statement that was signed, rehearsed and written.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The statement.
    pub statement: Statement,
    /// The key that a device of the first site seals to with it, if it has operated all the time.
    pub in_force: VerifiedKey,
    /// Keys that are active and not announced for long enough yet, as far as operating time can be known here.
    pub not_yet_usable: Vec<KeyArn>,
}

pub(super) const DEFAULT_VALIDITY_S: u64 = 180 * 86_400;
const DEFAULT_REFRESH_S: u64 = 30 * 86_400;

/// What was signed for one site so far.
pub(super) struct SiteHistory {
    pub(super) site: Site,
    pub(super) statements: Vec<Statement>,
}

impl SiteHistory {
    pub(super) fn last(&self) -> Option<&Statement> {
        self.statements.last()
    }
}

/// What the next statement stands on: the folder, read and verified while it is locked.
pub(super) struct Ground {
    pub(super) roots: Vec<Root>,
    pub(super) root: Root,
    pub(super) histories: Vec<SiteHistory>,
}

impl Ground {
    pub(super) fn read(dir: &AuthorityDir, sites: &[Site]) -> Result<Ground, AuthorityError> {
        let roots = dir.roots()?;
        let root = roots.last().cloned().ok_or_else(|| AuthorityError::Missing(dir.path().into()))?;
        complete(dir, &roots)?;
        let histories = histories(dir, &roots, sites)?;
        Ok(Ground { roots, root, histories })
    }

    pub(super) fn past(&self) -> Vec<Statement> {
        self.histories.iter().flat_map(|history| history.statements.iter().cloned()).collect()
    }

    /// For a device that refuses: of the first site.
    pub(super) fn refused(&self, error: TrustError) -> AuthorityError {
        AuthorityError::Refused { site: self.histories[0].site.clone(), error }
    }
}

/// A statement for several sites is written one after the other. A kill or a full disk between two of them would have its number
/// given again at a site that it is for, and that is two truths: what is missing is written first.
fn complete(dir: &AuthorityDir, roots: &[Root]) -> Result<(), AuthorityError> {
    let mut lasts = Vec::new();
    for site in dir.sites()? {
        lasts.extend(dir.last_statement(&site, roots)?);
    }
    for statement in &lasts {
        for site in &statement.sites {
            let there = dir.last_statement(site, roots)?;
            if there.is_none_or(|there| there.sequence < statement.sequence) {
                dir.keep_statement(site, statement)?;
            }
        }
    }
    Ok(())
}

/// How a statement is judged before it leaves.
pub(super) struct Judged<'a> {
    pub(super) request: &'a StatementRequest,
    /// The threshold of root keys has to be met: they were asked.
    pub(super) cosigned: bool,
}

/// Issues the next statement, and writes the bundle of each of its sites. `cosigners` are root keys: after a raised epoch a device
/// believes no statement without their threshold until it has taken one with it, and one that has it needs no announcement.
///
/// # Errors
/// [`AuthorityError`]. Unless it is a failed write, the folder is as it was.
pub async fn issue(
    dir: &AuthorityDir,
    signer: &dyn StatementSigner,
    cosigners: &[SigningKey],
    request: &StatementRequest,
    now: UnixTime,
) -> Result<Issued, AuthorityError> {
    let ground = Ground::read(dir, &request.sites)?;
    let (fields, spkis) = next(dir, &ground, request, now)?;
    let mut draft = Draft::statement(&fields)?;
    sign_as_statement_key(&ground, &mut draft, signer).await?;
    for key in cosigners {
        draft.sign(key)?;
    }
    finish(dir, &ground, &draft, spkis, &Judged { request, cosigned: !cosigners.is_empty() }, now)
}

/// What the next statement says, judged by the rules, and the public keys that go with it.
pub(super) fn next(
    dir: &AuthorityDir,
    ground: &Ground,
    request: &StatementRequest,
    now: UnixTime,
) -> Result<(StatementFields, Spkis), AuthorityError> {
    let fields = next_statement(&ground.root, &ground.histories, request, now)?;
    let past = ground.past();
    rules::judge(&fields, &past, request.no_standby)?;
    let spkis = public_keys(dir, &fields, &past, request)?;
    Ok((fields, spkis))
}

/// Public keys by their fingerprints.
pub(super) type Spkis = BTreeMap<Sha256Digest, RsaSpki>;

/// The signature of the statement role, from a key that the root in force lists and under the custody that it declares. Asked
/// before it signs: a signature of KMS is an act in somebody's log.
pub(super) async fn sign_as_statement_key(
    ground: &Ground,
    draft: &mut Draft,
    signer: &dyn StatementSigner,
) -> Result<(), AuthorityError> {
    let public = signer.public();
    if !ground.root.statement_role.kids.contains(&public.kid()) {
        return Err(ground.refused(TrustError::Threshold));
    }
    if ground.root.policy.custody == Some(Custody::CloudHsm) && signer.custody() != Custody::CloudHsm {
        return Err(AuthorityError::Custody);
    }
    let signature = signer.sign(&draft.to_be_signed(public)).await?;
    draft.attach(public, &signature)?;
    Ok(())
}

/// From signatures to files: the rehearsal, the log, the statement, the bundles.
pub(super) fn finish(
    dir: &AuthorityDir,
    ground: &Ground,
    draft: &Draft,
    spkis: Spkis,
    judged: &Judged<'_>,
    now: UnixTime,
) -> Result<Issued, AuthorityError> {
    let Ground { roots, root, histories } = ground;
    let object = draft.finish()?;
    let signed = verify::statement(root, &object).map_err(|error| ground.refused(error))?;
    if judged.cosigned && !signed.cosigned {
        return Err(AuthorityError::Request(
            "the root keys that have signed do not meet the threshold of the root: --cosign PEM=PASSPHRASE-FILE, once for each",
        ));
    }
    let ders: Vec<Bytes> = spkis.values().map(|spki| Bytes::copy_from_slice(spki.der())).collect();
    let mut in_force = None;
    for history in histories {
        let seen = History {
            site: &history.site,
            roots,
            statements: &history.statements,
            spkis: &ders,
            epoch_followed: judged.request.epoch_followed,
            cosigned_followed: judged.request.cosigned_followed,
        };
        let key = rehearse(&seen, &object, now)?;
        in_force.get_or_insert(key);
    }
    let in_force = in_force.ok_or(AuthorityError::Request("a statement is for at least one site"))?;
    let statement = signed.statement;

    let signed_by: Vec<String> = draft.signed_by().map(ToString::to_string).collect();
    audit::record(dir, now, "statement.sign", facts(&statement, &signed_by, judged.request))?;
    let spkis: Vec<RsaSpki> = spkis.into_values().collect();
    for spki in &spkis {
        dir.keep_spki(spki)?;
    }
    for history in histories {
        dir.keep_statement(&history.site, &statement)?;
    }
    for history in histories {
        let bundle = export::bundle(&history.site, roots, &statement, &spkis);
        write_whole(&dir.bundle_path(&history.site), &bundle)?;
    }
    // What the root keys have signed as well waits for nothing.
    let not_yet_usable =
        if signed.cosigned { Vec::new() } else { not_yet_usable(root, &statement, histories, now) };
    Ok(Issued { statement, in_force, not_yet_usable })
}

/// What a rotation is: the key that stands by becomes active, and the active ones are retired. `to` chooses where several
/// stand by.
///
/// # Errors
/// [`AuthorityError::Request`] if it is not plain which key that is.
pub fn rotation(
    dir: &AuthorityDir,
    sites: &[Site],
    to: Option<&KeyArn>,
) -> Result<(OfferedKey, Vec<KeyArn>), AuthorityError> {
    let roots = dir.roots()?;
    let load =
        |site: &Site| Ok(SiteHistory { site: site.clone(), statements: dir.statements(site, &roots)? });
    let keys = carried_over(&sites.iter().map(load).collect::<Result<Vec<_>, AuthorityError>>()?)?;
    let with = |status: KeyStatus| keys.iter().filter(move |key| key.status == status).map(|key| &key.arn);
    let next = match to {
        Some(arn) => with(KeyStatus::Next).find(|next| *next == arn),
        None => {
            let mut standing_by = with(KeyStatus::Next);
            let first = standing_by.next();
            if standing_by.next().is_some() {
                return Err(AuthorityError::Request("several keys are next; say which one with --to ARN"));
            }
            first
        }
    };
    let next = next.ok_or(AuthorityError::Request(
        "no such key stands by; announce one first: authority statement --next-key ARN=SPKI.pem",
    ))?;
    let activated = OfferedKey { arn: next.clone(), spki: None, status: KeyStatus::Active };
    Ok((activated, with(KeyStatus::Active).cloned().collect()))
}

fn histories(dir: &AuthorityDir, roots: &[Root], asked: &[Site]) -> Result<Vec<SiteHistory>, AuthorityError> {
    let mut sites = asked.to_vec();
    sites.sort();
    sites.dedup();
    if sites.len() != asked.len() || sites.is_empty() || sites.len() > 16 {
        return Err(AuthorityError::Request("a statement is for 1 to 16 different sites"));
    }
    let load = |site: &Site| {
        let statements = dir.statements(site, roots)?;
        Ok(SiteHistory { site: site.clone(), statements })
    };
    asked.iter().map(load).collect()
}

fn next_statement(
    root: &Root,
    histories: &[SiteHistory],
    request: &StatementRequest,
    now: UnixTime,
) -> Result<StatementFields, AuthorityError> {
    let validity_s = match request.validity {
        Some(validity) => validity.as_secs(),
        None => DEFAULT_VALIDITY_S.min(root.expires_at.since(now)).min(root.policy.max_statement_validity_s),
    };
    let expires_at = now.plus(validity_s);
    let (sequence, previous) = link(histories);
    let mut fields = StatementFields {
        authority: root.authority.clone(),
        sites: request.sites.clone(),
        root_version: root.version,
        epoch: root.epoch,
        sequence,
        issued_at: now,
        // A short-lived statement is stale halfway, so that somebody is told before it is gone.
        refresh_by: now.plus(DEFAULT_REFRESH_S.min(validity_s / 2)),
        expires_at,
        previous,
        keys: carried_over(histories)?,
        ticket: request.ticket.clone(),
    };
    for key in &mut fields.keys {
        if key.status.is_listed() {
            key.seal_until = expires_at;
        }
    }
    let past: Vec<Statement> =
        histories.iter().flat_map(|history| history.statements.iter().cloned()).collect();
    let denied = fields.keys.iter().filter(|key| root.denies(&key.fingerprint));
    for arn in denied.map(|key| key.arn.clone()).collect::<Vec<_>>() {
        let reason = Some("denied by the root".to_owned());
        revoke(&mut fields, &arn, reason.as_ref(), &past, request.decrypt_until, now)?;
    }
    for offered in &request.keys {
        offer(&mut fields, offered, now)?;
    }
    for arn in &request.retire {
        retire(&mut fields, arn, &past, request.decrypt_until, now)?;
    }
    for (arn, reason) in &request.revoke {
        revoke(&mut fields, arn, reason.as_ref(), &past, request.decrypt_until, now)?;
    }
    make_room(&mut fields.keys, now);
    if fields.keys.is_empty() {
        return Err(AuthorityError::Request(
            "a first statement needs a key: --key ARN=SPKI.pem or --kms-key ARN",
        ));
    }
    Ok(fields)
}

/// The next number, and the digest of the statement before it.
///
/// Sites whose histories differ have no common predecessor. Their next number leaves a gap: devices allow gaps, and
/// hold only the very next number against its predecessor.
pub(super) fn link(histories: &[SiteHistory]) -> (u64, Sha256Digest) {
    let newest = histories.iter().filter_map(SiteHistory::last).max_by_key(|statement| statement.sequence);
    let Some(newest) = newest else { return (1, Sha256Digest::ZERO) };
    let forked = histories
        .iter()
        .filter_map(SiteHistory::last)
        .any(|last| last.sequence == newest.sequence && last.digest() != newest.digest());
    (newest.sequence + if forked { 2 } else { 1 }, *newest.digest())
}

/// The keys of the last statements, which have to agree: which of two truths about a key is to be carried on is not to
/// be guessed.
fn carried_over(histories: &[SiteHistory]) -> Result<Vec<StatementKey>, AuthorityError> {
    let mut keys: Vec<StatementKey> = Vec::new();
    for history in histories {
        for key in history.last().map(|last| last.keys.as_slice()).unwrap_or_default() {
            match keys.iter().find(|known| known.arn == key.arn || known.fingerprint == key.fingerprint) {
                None => keys.push(key.clone()),
                Some(known)
                    if known.arn == key.arn
                        && known.fingerprint == key.fingerprint
                        && known.status == key.status => {}
                Some(_) => {
                    return Err(AuthorityError::SitesDiffer(histories[0].site.clone(), history.site.clone()));
                }
            }
        }
    }
    Ok(keys)
}

fn offer(fields: &mut StatementFields, offered: &OfferedKey, now: UnixTime) -> Result<(), AuthorityError> {
    if !offered.status.is_listed() {
        return Err(AuthorityError::Request("a key is offered as next or active"));
    }
    let expires_at = fields.expires_at;
    if let Some(known) = fields.keys.iter_mut().find(|key| key.arn == offered.arn) {
        if let Some(spki) = &offered.spki {
            // Another key under a known ARN: signed as asked, and refused by the rehearsal with the device's own code.
            known.fingerprint = spki.fingerprint();
            known.bits = spki.bits().into();
        }
        if known.status != offered.status {
            known.not_before = now;
        }
        known.status = offered.status;
        known.seal_until = expires_at;
        return Ok(());
    }
    let spki = offered.spki.as_ref().ok_or_else(|| AuthorityError::UnknownKey(offered.arn.clone()))?;
    fields.keys.push(StatementKey {
        arn: offered.arn.clone(),
        suite: SUITE_RSA_OAEP_SHA256,
        fingerprint: spki.fingerprint(),
        bits: spki.bits().into(),
        status: offered.status,
        not_before: now,
        seal_until: expires_at,
        decrypt_until: None,
        reason: None,
    });
    Ok(())
}

fn retire(
    fields: &mut StatementFields,
    arn: &KeyArn,
    history: &[Statement],
    decrypt_until: Option<UnixTime>,
    now: UnixTime,
) -> Result<(), AuthorityError> {
    let position = fields.keys.iter().position(|key| key.arn == *arn);
    let position = position.ok_or_else(|| AuthorityError::UnknownKey(arn.clone()))?;
    fields.keys[position].status = fields.keys[position].status.max(KeyStatus::Retired);
    let earliest =
        rules::last_active_expiry(arn, fields, history).map(|expiry| expiry.plus(rules::STRAGGLERS_S));
    let key = &mut fields.keys[position];
    key.seal_until = key.seal_until.min(now);
    key.decrypt_until = decrypt_until.or(earliest).or(key.decrypt_until);
    Ok(())
}

fn revoke(
    fields: &mut StatementFields,
    arn: &KeyArn,
    reason: Option<&String>,
    history: &[Statement],
    decrypt_until: Option<UnixTime>,
    now: UnixTime,
) -> Result<(), AuthorityError> {
    retire(fields, arn, history, decrypt_until, now)?;
    for key in fields.keys.iter_mut().filter(|key| key.arn == *arn) {
        if key.status != KeyStatus::Revoked {
            key.reason = reason.cloned();
        }
        key.status = KeyStatus::Revoked;
    }
    Ok(())
}

/// A statement has room for eight keys. Retired ones leave it when it is full: first those that need not decrypt any more, and
/// then those whose promise ends first. A revoked one stays: it may vanish only into the root's denylist.
fn make_room(keys: &mut Vec<StatementKey>, now: UnixTime) {
    while keys.len() > MAX_KEYS {
        let retired = keys.iter().enumerate().filter(|(_, key)| key.status == KeyStatus::Retired);
        let promise = |key: &StatementKey| key.decrypt_until.map_or(u64::MAX, |until| until.since(now));
        let Some((at, _)) = retired.min_by_key(|(_, key)| promise(key)) else { return };
        keys.remove(at);
    }
}

/// The public key of everything listed: offered now, or kept since it was.
pub(super) fn public_keys(
    dir: &AuthorityDir,
    fields: &StatementFields,
    history: &[Statement],
    request: &StatementRequest,
) -> Result<Spkis, AuthorityError> {
    let offered = request.keys.iter().filter_map(|key| key.spki.clone());
    let mut known: Spkis = offered.map(|spki| (spki.fingerprint(), spki)).collect();
    let listed = history.iter().flat_map(|statement| &statement.keys).chain(&fields.keys);
    for key in listed {
        if let std::collections::btree_map::Entry::Vacant(entry) = known.entry(key.fingerprint) {
            entry.insert(dir.spki(&key.fingerprint)?);
        }
    }
    Ok(known)
}

fn not_yet_usable(
    root: &Root,
    statement: &Statement,
    histories: &[SiteHistory],
    now: UnixTime,
) -> Vec<KeyArn> {
    let listed_since = |history: &SiteHistory, key: &StatementKey| {
        let listing = |statement: &&Statement| {
            statement.key(&key.fingerprint).is_some_and(|key| key.status.is_listed())
        };
        history.statements.iter().rev().take_while(listing).last().map(|first| first.issued_at)
    };
    let waits = |key: &&StatementKey| {
        key.status == KeyStatus::Active
            && histories.iter().any(|history| {
                let was_active = history.last().is_some_and(|last| {
                    last.key(&key.fingerprint).is_some_and(|key| key.status == KeyStatus::Active)
                });
                let announced_s = listed_since(history, key).map_or(0, |since| now.since(since));
                history.last().is_some() && !was_active && announced_s < root.policy.hold_down_s
            })
    };
    statement.keys.iter().filter(waits).map(|key| key.arn.clone()).collect()
}

fn facts(statement: &Statement, signed_by: &[String], request: &StatementRequest) -> serde_json::Value {
    let keys = statement.keys.iter().map(|key| {
        json!({
            "arn": key.arn.as_str(), "fingerprint": key.fingerprint.to_string(), "bits": key.bits,
            "status": super::show::status_name(key.status), "reason": key.reason,
            "decrypt_until": key.decrypt_until.map(super::show::rfc3339),
        })
    });
    json!({
        "authority": statement.authority,
        "sites": statement.sites.iter().map(Site::as_str).collect::<Vec<_>>(),
        "root_version": statement.root_version, "epoch": statement.epoch, "sequence": statement.sequence,
        "expires_at": super::show::rfc3339(statement.expires_at),
        "statement": statement.digest().to_string(), "signed_by": signed_by,
        "keys": keys.collect::<Vec<_>>(), "ticket": statement.ticket,
        "no_standby": request.no_standby, "epoch_followed": request.epoch_followed,
        "cosigned_followed": request.cosigned_followed,
    })
}

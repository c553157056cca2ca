//! The daily re-issue: what a site's last statement says, for another term, and nothing else.
//!
//! Promised:
//! - **No key changes its state here.** What would (the root denies a key that is still listed) is left to a person, and said.
//! - **The folder is locked while something is signed, and not before**: KMS is asked first, so that one which hangs keeps nobody
//!   out. Under the lock the folder is read again: a person may have signed meanwhile.
//! - **A failure changes nothing**: what was signed last goes on being served, and the next try comes by the backoff.
//! - **What has expired stays so until a person looks**: nobody was here for half a year, or this clock is wrong, and vehicles would
//!   take its time from a signature.
//! - **When it is due is read from the statements**, so that a restart issues nothing early, and a statement that a person has signed
//!   counts as well.
//!
//! [`Reissuer`] is fed the time and asked for a turn; it sleeps nowhere. Whoever drives it sleeps until [`Turn::look_again`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use pithead_hop::backoff::{Backoff, Policy};
use pithead_hop::keys::KeyFile;
use pithead_sealing::Site;
use pithead_sealing::trust::authoring::Draft;
use pithead_sealing::trust::{
    KeyArn, KeyStatus, Root, Sha256Digest, Statement, TrustError, UnixTime, verify,
};

use super::dir::{AuthorityDir, Folder, write_whole};
use super::draft::says_the_same;
use super::error::AuthorityError;
use super::export::current_bundle;
use super::signer::{KeyPlace, StatementSigner};
use super::statement::{
    DEFAULT_VALIDITY_S, Ground, Issued, Judged, StatementRequest, finish, next, sign_as_statement_key,
};
use crate::kms::{Kms, KmsError, KmsFault};
use tokio_util::sync::CancellationToken;

/// Delays after failures: soon at first, since a lock and a throttled KMS pass, and then no more than once an hour.
const RETRY: Policy = Policy { first: Duration::from_secs(60), max: Duration::from_secs(3600) };
/// No try comes sooner after a failed one.
const RETRY_FLOOR: Duration = Duration::from_secs(5);

/// Nothing is issued more often, however short its life.
const DUE_FLOOR_S: u64 = 3600;

/// How long the folder goes unread: its owner signs on the command line as well, and clocks are set.
const LOOK_EVERY_S: u64 = 60;

const EXPIRED: &str =
    "the last statement has expired: if this machine's clock is right, issue the next one by hand";

/// The keys of statements, asked of KMS before they are listed again.
#[derive(Debug, Clone)]
pub struct DataKeyCheck {
    /// Which KMS.
    pub kms: Kms,
    /// Keys that are not in it: their private halves are files here.
    pub elsewhere: BTreeSet<KeyArn>,
}

impl DataKeyCheck {
    /// Whether what `statement` says of its next and active keys is still so.
    ///
    /// # Errors
    /// [`AuthorityError::DataKey`], [`AuthorityError::Fingerprint`]: an alarm. [`AuthorityError::Kms`]: nobody knows.
    async fn ask(&self, statement: &Statement) -> Result<(), AuthorityError> {
        let listed = statement.keys.iter().filter(|key| key.status.is_listed());
        for key in listed.filter(|key| !self.elsewhere.contains(&key.arn)) {
            match self.kms.sealing_key(&key.arn).await {
                Ok(spki) if spki.fingerprint() == key.fingerprint => {}
                Ok(_) => return Err(AuthorityError::Fingerprint(key.arn.clone())),
                Err(error) => return Err(unusable(&key.arn, key.status, error)),
            }
        }
        Ok(())
    }
}

/// A call that KMS refuses or does not answer says nothing of the key.
fn unusable(arn: &KeyArn, status: KeyStatus, error: KmsError) -> AuthorityError {
    match error.fault {
        KmsFault::KeyDisabled
        | KmsFault::KeyPendingDeletion
        | KmsFault::KeyNotFound
        | KmsFault::KeyUnsuitable => AuthorityError::DataKey { arn: arn.clone(), status, error },
        _ => AuthorityError::Kms(error),
    }
}

/// How a site stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteStanding {
    /// Which.
    pub site: Site,
    /// Number of its last statement.
    pub sequence: u64,
    /// When that was issued.
    pub issued_at: UnixTime,
    /// When the next is due.
    pub due_at: UnixTime,
    /// The last try has failed, and comes again then.
    pub retry_at: Option<UnixTime>,
}

/// A try that came to nothing.
#[derive(Debug)]
pub struct Failure {
    /// Of which sites; all of the folder if it could not be read.
    pub sites: Vec<Site>,
    /// Why.
    pub error: AuthorityError,
    /// When it is tried again.
    pub retry_at: UnixTime,
}

/// What one look at the folder has come to.
#[derive(Debug)]
pub struct Turn {
    /// Statements that were issued.
    pub issued: Vec<Issued>,
    /// Bundles were written that whoever serves them has not seen.
    pub bundles_changed: bool,
    /// What came to nothing.
    pub failures: Vec<Failure>,
    /// All sites of the folder, as far as it could be read.
    pub standing: Vec<SiteStanding>,
    /// When to look again.
    pub look_again: UnixTime,
}

/// Issues statements again when they are due.
#[derive(Debug)]
pub struct Reissuer {
    folder: PathBuf,
    every_s: u64,
    key: KeyPlace,
    check: Option<DataKeyCheck>,
    /// Failures in a row, by the first site of those that share a statement; the folder's own under none.
    tries: BTreeMap<Option<Site>, (Backoff, UnixTime)>,
    /// As it was seen last.
    standing: Vec<SiteStanding>,
    /// Nothing more is begun.
    stop: CancellationToken,
}

/// What came of one group's turn.
enum Attended {
    /// It is not due, or a person was faster.
    Nothing,
    /// Its bundle was behind its statement.
    Mended,
    /// It was issued again.
    Issued(Box<Issued>),
}

/// The sites that share a last statement.
struct Group {
    sites: Vec<Site>,
    last: Statement,
}

impl Group {
    fn name(&self) -> Option<Site> {
        self.sites.first().cloned()
    }
}

impl Reissuer {
    /// Re-issues what is in the folder, `every` so often. Looks at nothing yet.
    #[must_use]
    pub fn new(folder: PathBuf, every: Duration, key: KeyPlace, check: Option<DataKeyCheck>) -> Self {
        let stop = CancellationToken::new();
        Self {
            folder,
            every_s: every.as_secs(),
            key,
            check,
            tries: BTreeMap::new(),
            standing: Vec::new(),
            stop,
        }
    }

    /// Begins nothing more once `stop` is cancelled, and waits for no answer of KMS about data keys.
    #[must_use]
    pub fn until(self, stop: CancellationToken) -> Self {
        Self { stop, ..self }
    }

    /// One look: what is due is issued again. `random` spreads the retries.
    pub async fn turn(&mut self, now: UnixTime, random: u64) -> Turn {
        let mut turn = Turn {
            issued: Vec::new(),
            bundles_changed: false,
            failures: Vec::new(),
            standing: Vec::new(),
            look_again: now.plus(LOOK_EVERY_S),
        };
        if !self.waits(&None, now) {
            match self.look(now, random, &mut turn).await {
                Ok(standing) => {
                    self.tries.remove(&None);
                    self.standing = standing;
                }
                Err(error) => {
                    let retry_at = self.failed(None, now, random);
                    turn.failures.push(Failure { sites: Vec::new(), error, retry_at });
                }
            }
        }
        turn.standing.clone_from(&self.standing);
        let wanted = turn.standing.iter().map(|site| site.retry_at.unwrap_or(site.due_at));
        let soonest = wanted.filter(|at| *at > now).min();
        turn.look_again = soonest.map_or(turn.look_again, |at| at.min(turn.look_again));
        turn
    }

    async fn look(
        &mut self,
        now: UnixTime,
        random: u64,
        turn: &mut Turn,
    ) -> Result<Vec<SiteStanding>, AuthorityError> {
        let folder = Folder::open(&self.folder)?;
        let roots = folder.roots()?;
        let groups = groups(&folder, &roots)?;
        self.tries.retain(|name, _| name.is_none() || groups.iter().any(|group| group.name() == *name));
        let mut signer = None;
        let mut standing = Vec::new();
        for group in &groups {
            let name = group.name();
            let mut last = group.last.clone();
            if !self.waits(&name, now) && !self.stop.is_cancelled() {
                match self.attend(&folder, &roots, group, &mut signer, now).await {
                    Ok(Attended::Nothing) => drop(self.tries.remove(&name)),
                    Ok(Attended::Mended) => {
                        self.tries.remove(&name);
                        turn.bundles_changed = true;
                    }
                    Ok(Attended::Issued(issued)) => {
                        self.tries.remove(&name);
                        turn.bundles_changed = true;
                        last = issued.statement.clone();
                        turn.issued.push(*issued);
                    }
                    Err(error) => {
                        let retry_at = self.failed(name.clone(), now, random);
                        turn.failures.push(Failure { sites: group.sites.clone(), error, retry_at });
                    }
                }
            }
            let retry_at = self.tries.get(&name).map(|(_, at)| *at);
            standing.extend(group.sites.iter().map(|site| SiteStanding {
                site: site.clone(),
                sequence: last.sequence,
                issued_at: last.issued_at,
                due_at: self.due_at(&last),
                retry_at,
            }));
        }
        Ok(standing)
    }

    async fn attend(
        &self,
        folder: &Folder,
        roots: &[Root],
        group: &Group,
        signer: &mut Option<Box<dyn StatementSigner>>,
        now: UnixTime,
    ) -> Result<Attended, AuthorityError> {
        if self.due_at(&group.last) <= now {
            self.reissue(group, signer, now).await
        } else {
            self.mend(folder, roots, group)
        }
    }

    /// A short-lived one before it is stale.
    fn due_at(&self, last: &Statement) -> UnixTime {
        let fresh_s = last.refresh_by.since(last.issued_at);
        last.issued_at.plus(self.every_s.min(fresh_s).max(DUE_FLOOR_S))
    }

    fn waits(&self, name: &Option<Site>, now: UnixTime) -> bool {
        self.tries.get(name).is_some_and(|(_, not_before)| now < *not_before)
    }

    fn failed(&mut self, name: Option<Site>, now: UnixTime, random: u64) -> UnixTime {
        let (backoff, not_before) = self.tries.entry(name).or_insert_with(|| (Backoff::new(RETRY), now));
        *not_before = now.plus(backoff.next_delay(random, Some(RETRY_FLOOR)).as_secs());
        *not_before
    }

    async fn reissue(
        &self,
        group: &Group,
        signer: &mut Option<Box<dyn StatementSigner>>,
        now: UnixTime,
    ) -> Result<Attended, AuthorityError> {
        if now >= group.last.expires_at {
            return Err(AuthorityError::Request(EXPIRED));
        }
        let signer = match signer {
            Some(signer) => signer,
            None => signer.insert(self.key.open().await?),
        };
        if let Some(check) = &self.check {
            match self.stop.run_until_cancelled(check.ask(&group.last)).await {
                Some(asked) => asked?,
                None => return Ok(Attended::Nothing),
            }
        }
        let dir = AuthorityDir::open(&self.folder)?;
        let ground = Ground::read(&dir, &group.sites)?;
        if ground
            .histories
            .iter()
            .any(|history| history.last().map(Statement::digest) != Some(group.last.digest()))
        {
            // A person has signed since; what is due then is seen at the next look.
            return Ok(Attended::Nothing);
        }
        let request = as_before(&ground, group, now);
        let (fields, spkis) = next(&dir, &ground, &request, now)?;
        if !says_the_same(&fields, &group.last) {
            return Err(ground.refused(TrustError::KeyDenylisted));
        }
        let mut draft = Draft::statement(&fields)?;
        sign_as_statement_key(&ground, &mut draft, signer.as_ref()).await?;
        let judged = Judged { request: &request, cosigned: false };
        let issued = finish(&dir, &ground, &draft, spkis, &judged, now)?;
        Ok(Attended::Issued(Box::new(issued)))
    }

    /// Writes a bundle that a full disk or a kill has kept from being written after its statement was.
    fn mend(&self, folder: &Folder, roots: &[Root], group: &Group) -> Result<Attended, AuthorityError> {
        let behind = |site: &&Site| {
            let written = std::fs::read(folder.bundle_path(site)).ok();
            let written = written.and_then(|content| KeyFile::decode(content.into()).ok());
            written.is_none_or(|file| file.bundle.statement.as_ref() != Some(group.last.object()))
        };
        let behind: Vec<&Site> = group.sites.iter().filter(behind).collect();
        if behind.is_empty() {
            return Ok(Attended::Nothing);
        }
        let dir = AuthorityDir::open(&self.folder)?;
        for site in &behind {
            if dir.last_statement(site, roots)?.is_some_and(|last| last.digest() == group.last.digest()) {
                write_whole(&dir.bundle_path(site), &current_bundle(&dir, site, roots, &group.last)?)?;
            }
        }
        Ok(Attended::Mended)
    }
}

fn groups(folder: &Folder, roots: &[Root]) -> Result<Vec<Group>, AuthorityError> {
    let mut groups: BTreeMap<Sha256Digest, Group> = BTreeMap::new();
    for site in folder.sites()? {
        let Some(last) = folder.last_statement(&site, roots)? else { continue };
        let group = groups.entry(*last.digest()).or_insert_with(|| Group { sites: Vec::new(), last });
        group.sites.push(site);
    }
    Ok(groups.into_values().collect())
}

/// What the last statement said. Its term is that of the last one that the end of its root has not cut short, as far as the root in
/// force allows.
fn as_before(ground: &Ground, group: &Group, now: UnixTime) -> StatementRequest {
    let made_under =
        |statement: &Statement| ground.roots.iter().find(|root| root.version == statement.root_version);
    let whole = |statement: &&Statement| {
        made_under(statement).is_none_or(|root| statement.expires_at < root.expires_at)
    };
    let past = &ground.histories[0].statements;
    let term_s = past
        .iter()
        .rev()
        .find(whole)
        .map_or(DEFAULT_VALIDITY_S, |statement| statement.expires_at.since(statement.issued_at));
    let allowed_s = ground.root.expires_at.since(now).min(ground.root.policy.max_statement_validity_s);
    // Somebody has said already that no vehicle is left behind a raised epoch, if a statement without the root keys was signed
    // under it.
    let without_root_keys =
        |root: &Root| verify::statement(root, group.last.object()).is_ok_and(|signed| !signed.cosigned);
    let epoch_followed =
        group.last.epoch == ground.root.epoch && made_under(&group.last).is_some_and(without_root_keys);
    StatementRequest {
        no_standby: true,
        validity: Some(Duration::from_secs(term_s.min(allowed_s))),
        epoch_followed,
        ..StatementRequest::to(group.sites.clone())
    }
}

#[cfg(test)]
mod tests;

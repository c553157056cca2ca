//! The gateway's own trust, and what it takes for a statement to become what is served.
//!
//! A bundle goes through the same state machine as on a device. On top of that the public keys are compared with what
//! KMS serves, where it can be reached. The order on disk is: the statement into the history, then the new state, and
//! only then is it served: whatever a device seals under can still be admitted after a power cut.
//!
//! A refusal changes nothing, except that roots which verified stand: one of them may be the very root that takes a
//! stolen statement key away.

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use pithead_hop::status::reason_of_trust;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::Site;
use pithead_sealing::trust::{
    Bundle, Clock, Device, KeyArn, KeyStatus, RootFields, Sha256Digest, Statement, Status, TrustError, verify,
};

use super::book::Book;
use super::history::History;
use super::spki_source::{BundleSpkis, SpkiSource, SpkiSourceError};
use super::store::{Found, Kept, Store};
use crate::kms::KmsError;

/// Why the key state cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The provisioned root does not verify.
    #[error("the provisioned trust root is refused: {0}")]
    Root(TrustError),
    /// The state on disk is of another authority or site.
    #[error("the data directory belongs to {authority} at {site}")]
    Foreign {
        /// Whose it is.
        authority: String,
        /// Where.
        site: Site,
    },
    /// The state on disk began with another root than the provisioned one. To go on with it would be to believe the very
    /// root that somebody has just replaced.
    #[error("the data directory began with root {held}, the provisioned one is {provisioned}")]
    AnotherRoot {
        /// The first root on disk.
        held: Sha256Digest,
        /// The provisioned one.
        provisioned: Sha256Digest,
    },
    /// The disk.
    #[error("key state: {0}")]
    Io(#[from] io::Error),
}

/// Why a bundle was not taken. What was in force is still in force.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TakeError {
    /// Trust refuses it.
    #[error("{0} ({code})", code = .0.code())]
    Trust(#[from] TrustError),
    /// KMS serves another public key than the statement says.
    #[error("KMS serves {served} for {key}, the statement says {stated}")]
    Mismatch {
        /// The key.
        key: KeyArn,
        /// The statement's fingerprint.
        stated: Sha256Digest,
        /// That of KMS's answer.
        served: Sha256Digest,
    },
    /// KMS says that the key is not fit to be sealed to.
    #[error(transparent)]
    Unfit(KmsError),
    /// The public key is not in the bundle, and KMS does not give it either.
    #[error("no public key for {key}: not in the bundle; {kms}")]
    Missing {
        /// The key.
        key: KeyArn,
        /// Why KMS does not give it.
        kms: SpkiSourceError,
    },
    /// It could not be made durable.
    #[error("key state: {0}")]
    Disk(#[from] io::Error),
}

impl TakeError {
    /// The reason in the registry.
    #[must_use]
    pub fn reason(&self) -> ErrorReason {
        match self {
            Self::Trust(error) => reason_of_trust(*error),
            Self::Mismatch { .. } => ErrorReason::KmsFingerprint,
            Self::Unfit(error) | Self::Missing { kms: SpkiSourceError::Kms(error), .. } => {
                error.fault.reason()
            }
            Self::Missing { kms: SpkiSourceError::Absent, .. } => ErrorReason::TrustSpkiMissing,
            Self::Disk(_) => ErrorReason::DiskFailed,
        }
    }

    /// Whether it is evidence of a stolen key or of somebody in between.
    #[must_use]
    pub fn is_alarm(&self) -> bool {
        match self {
            Self::Trust(error) => error.is_alarm(),
            Self::Mismatch { .. } => true,
            Self::Unfit(_) | Self::Missing { .. } | Self::Disk(_) => false,
        }
    }
}

/// What a bundle has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Taken {
    /// Roots accepted.
    pub roots: usize,
    /// A statement that was not in force before.
    pub statement: bool,
    /// Devices seal to another key from now on.
    pub key_changed: bool,
}

/// What a start has found of the last known good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Nothing: it begins with the provisioned root.
    Provisioned,
    /// The state of the last run.
    Restored,
    /// There was a state, and it is damaged in both copies: it begins with the provisioned root again.
    Damaged,
}

/// The trust state and its disk.
#[derive(Debug)]
pub struct Keeper {
    device: Device,
    roots: Vec<Bytes>,
    /// The last one accepted, even if a root has withdrawn it since.
    statement: Option<Bytes>,
    spkis: Vec<Bytes>,
    store: Store,
    history: Arc<History>,
    kms: Option<Arc<dyn SpkiSource>>,
    book: Book,
}

impl Keeper {
    /// Opens the state under `folder` (which exists), or begins with the provisioned root. What was in force in the last
    /// run is served from here on, whatever its source does.
    ///
    /// # Errors
    /// [`OpenError`]. A damaged state is no error: see [`Origin`].
    pub fn open(
        folder: &Path,
        authority: &str,
        site: &Site,
        root: Bytes,
        history: Arc<History>,
        kms: Option<Arc<dyn SpkiSource>>,
        book: Book,
    ) -> Result<(Self, Origin), OpenError> {
        let provisioned =
            Device::provision(authority, site, &root, Clock::default()).map_err(OpenError::Root)?;
        let (_, provisioned_digest) = RootFields::read_unverified(&root).map_err(OpenError::Root)?;
        let (store, found) = Store::open(folder)?;
        let fresh = Kept { roots: vec![root.clone()], ..Kept::default() };
        let begin = |origin| (provisioned.clone(), fresh.clone(), origin);
        let (device, kept, origin) = match found {
            Found::Nothing => begin(Origin::Provisioned),
            Found::Damaged => begin(Origin::Damaged),
            Found::Whole(kept) => match Device::restore(&kept.device) {
                Ok(device) if device.authority() != authority || device.site() != site => {
                    return Err(OpenError::Foreign {
                        authority: device.authority().to_owned(),
                        site: device.site().clone(),
                    });
                }
                Ok(device) => {
                    let digests: Vec<_> = kept.roots.iter().filter_map(digest_of_root).collect();
                    match digests.first() {
                        Some(held) if !digests.contains(&provisioned_digest) => {
                            return Err(OpenError::AnotherRoot {
                                held: *held,
                                provisioned: provisioned_digest,
                            });
                        }
                        _ => (device, kept, Origin::Restored),
                    }
                }
                Err(_) => begin(Origin::Damaged),
            },
        };
        if let Some(statement) = device.statement() {
            // Its file may have been lost or damaged since: then every envelope under the key in force would be refused.
            history.keep(statement)?;
        }
        let Kept { roots, spkis, statement, .. } = kept;
        let statement = (!statement.is_empty()).then_some(statement);
        let keeper = Self { device, roots, statement, spkis, store, history, kms, book };
        keeper.publish();
        Ok((keeper, origin))
    }

    /// The state, for questions.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// How far the gateway is from having nothing to serve.
    #[must_use]
    pub fn status(&self, clock: Clock) -> Status {
        self.device.status(clock)
    }

    /// Every root from version 1, the statement in force and its keys: what an export is.
    #[must_use]
    pub fn bundle(&self) -> Bundle {
        let statement = self.device.statement().map(|statement| statement.object().clone());
        Bundle { roots: self.roots.clone(), statement, spkis: self.spkis.clone() }
    }

    /// Verifies a bundle and serves what it brings.
    ///
    /// # Errors
    /// [`TakeError`]: what was in force stays so.
    pub async fn take(&mut self, bundle: Bundle, clock: Clock) -> Result<Taken, TakeError> {
        let bundle = bundle.newer_than(self.device.root_version());
        let mut taken = Taken::default();
        let mut next = self.device.clone();

        let offered = Bundle { roots: bundle.roots, ..Bundle::default() };
        let outcome = next.apply(&offered, clock);
        // Those before the first refusal stand.
        taken.roots = (next.root_version() - self.device.root_version()) as usize;
        if taken.roots > 0 {
            let mut roots = self.roots.clone();
            roots.extend_from_slice(&offered.roots[..taken.roots]);
            self.commit(next.clone(), roots, self.spkis.clone(), clock)?;
        }
        outcome?;

        let Some(object) = bundle.statement else { return Ok(taken) };
        // Signatures first: nobody makes us ask KMS about keys of his choice.
        let statement = verify::statement(next.root(), &object)?.statement;
        // What is here already serves as well: a source that names a key need not bring it again.
        let bundled = bundle.spkis.into_iter().chain(self.spkis.iter().cloned()).collect();
        let spkis = self.public_keys(&statement, bundled).await?;
        let offered = Bundle { roots: vec![], statement: Some(object), spkis: spkis.clone() };
        let applied = next.apply(&offered, clock)?;
        if let Some(accepted) = applied.statement {
            self.history.keep(&accepted.statement)?;
            taken.statement = accepted.new;
            taken.key_changed = accepted.key_changed;
        }
        if next.revision() != self.device.revision() || spkis != self.spkis {
            self.commit(next, self.roots.clone(), spkis, clock)?;
        }
        Ok(taken)
    }

    /// Compares the keys in force with what KMS serves now.
    ///
    /// # Errors
    /// [`TakeError::Mismatch`] and [`TakeError::Unfit`] are for alarms: what is in force stays so. That KMS does not
    /// answer is no error.
    pub async fn compare(&self) -> Result<(), TakeError> {
        match self.device.statement() {
            Some(statement) => self.public_keys(&statement.clone(), self.spkis.clone()).await.map(|_| ()),
            None => Ok(()),
        }
    }

    /// Writes the operating seconds down, so that the time floor keeps moving over restarts.
    ///
    /// # Errors
    /// What the disk says.
    pub fn save(&mut self, clock: Clock) -> io::Result<()> {
        let kept = self.kept(clock);
        self.store.save(&kept)
    }

    /// The public keys of all keys that are announced or active, each with the fingerprint that was stated.
    async fn public_keys(&self, statement: &Statement, bundled: Vec<Bytes>) -> Result<Vec<Bytes>, TakeError> {
        let bundled = BundleSpkis::new(bundled);
        let mut spkis = Vec::new();
        for key in statement.keys.iter().filter(|key| key.status.is_listed()) {
            let from_kms = match &self.kms {
                Some(kms) => kms.spki(key).await,
                None => Err(SpkiSourceError::Absent),
            };
            let kms = match from_kms {
                Ok(der) if Sha256Digest::of(&der) == key.fingerprint => {
                    spkis.push(der);
                    continue;
                }
                Ok(der) => {
                    let (key, stated) = (key.arn.clone(), key.fingerprint);
                    return Err(TakeError::Mismatch { key, stated, served: Sha256Digest::of(&der) });
                }
                Err(SpkiSourceError::Kms(error)) if forbids_sealing(&error) => {
                    return Err(TakeError::Unfit(error));
                }
                Err(error) => error,
            };
            // KMS is away, or is not asked here: the fingerprint proves what the bundle brought.
            match bundled.spki(key).await {
                Ok(der) => spkis.push(der),
                // A key that is only announced may come later.
                Err(_) if key.status == KeyStatus::Next => {}
                Err(_) => return Err(TakeError::Missing { key: key.arn.clone(), kms }),
            }
        }
        Ok(spkis)
    }

    /// Makes it durable, then serves it.
    fn commit(
        &mut self,
        device: Device,
        roots: Vec<Bytes>,
        spkis: Vec<Bytes>,
        clock: Clock,
    ) -> io::Result<()> {
        let statement =
            device.statement().map(|statement| statement.object().clone()).or(self.statement.clone());
        let before = (
            std::mem::replace(&mut self.device, device),
            std::mem::replace(&mut self.roots, roots),
            std::mem::replace(&mut self.statement, statement),
            std::mem::replace(&mut self.spkis, spkis),
        );
        if let Err(error) = self.save(clock) {
            (self.device, self.roots, self.statement, self.spkis) = before;
            return Err(error);
        }
        self.publish();
        Ok(())
    }

    fn kept(&self, clock: Clock) -> Kept {
        Kept {
            device: self.device.encode(clock).into(),
            roots: self.roots.clone(),
            spkis: self.spkis.clone(),
            statement: self.statement.clone().unwrap_or_default(),
        }
    }

    fn publish(&self) {
        self.book.publish(self.device.site(), &self.roots, self.statement.as_ref(), &self.spkis);
    }
}

fn digest_of_root(object: &Bytes) -> Option<Sha256Digest> {
    RootFields::read_unverified(object).ok().map(|(_, digest)| digest)
}

/// A fault that means that what is sealed now could not be opened, as against one of the way to KMS.
fn forbids_sealing(error: &KmsError) -> bool {
    use crate::kms::KmsFault;
    match error.fault {
        KmsFault::Denied | KmsFault::Throttled | KmsFault::Unreachable => false,
        KmsFault::Disabled
        | KmsFault::PendingDeletion
        | KmsFault::NotFound
        | KmsFault::Unsuitable
        | KmsFault::AnotherKey => true,
    }
}

#[cfg(test)]
mod tests;

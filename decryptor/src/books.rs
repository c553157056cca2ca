//! The authority's published statements, as this decryptor believes them: which keys are known, and what gateways are served.
//!
//! - A bundle file is believed by its signatures: the first root by its own threshold, each next one by both, the statement by
//!   the statement keys of the last. What was believed once is kept in `DATA/keys/statements`, so that an envelope under a key
//!   of *any* statement ever accepted here is admitted, whatever the key's status is now (its plaintext is gone elsewhere).
//! - The newest statement per site is served. An older one, another one under the same number, another authority's, or one
//!   that does not verify, is refused, and what was served before stays: a bad reload changes nothing. A site that is served no longer is
//!   measured by what it was served last, and so is every site after a restart: `DATA/keys/served` has a statement for each.
//! - A device asks more of a statement (announcement, validity against its own clock) before it seals; that is its own to judge.
//!   A decryptor that refused to *know* an unannounced key could only lose envelopes by it.

use bytes::Bytes;
use pithead_hop::program::disk;
use pithead_proto::errors::v1::ErrorReason;
use pithead_proto::keys::v1::KeyBundle;
use pithead_sealing::Site;
use pithead_sealing::trust::verify::{self, SignedByRoles};
use pithead_sealing::trust::{
    KeyArn, KeyStatus, MAX_ROOTS, Root, Sha256Digest, Statement, StatementFields, TrustError, UnixTime,
};
use prost::Message as _;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A bundle file is a few kilobytes; this is what the key call takes at most.
const BUNDLE_MAX: u64 = 1 << 20;

/// Why a bundle was not taken in. What was in force stays in force.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BooksError {
    /// A file or folder.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Not a bundle.
    #[error("{} is no key bundle: {what}", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// A root or the statement is not believed.
    #[error("{}: the {object} is refused with {}", path.display(), error.code())]
    Refused {
        /// Which file.
        path: PathBuf,
        /// `root` or `statement`.
        object: &'static str,
        /// The code.
        error: TrustError,
    },
}

impl BooksError {
    /// The reason in the registry.
    #[must_use]
    pub fn reason(&self) -> ErrorReason {
        match self {
            Self::Io { .. } => ErrorReason::ConfigUnreadable,
            Self::Malformed { .. } => ErrorReason::TrustParse,
            Self::Refused { error, .. } => pithead_hop::status::reason_of_trust(*error),
        }
    }
}

/// What is served for one site.
#[derive(Debug, Clone)]
pub struct Published {
    /// The authority's name.
    pub authority: String,
    /// The site.
    pub site: Site,
    /// All roots, ascending from the first in the bundle.
    pub roots: Vec<Bytes>,
    /// The last of them.
    pub root: Root,
    /// The statement in force.
    pub statement: Statement,
    /// The public keys that came with it.
    pub spkis: Vec<Bytes>,
}

impl Published {
    /// Reads a bundle file and verifies it, and changes nothing.
    ///
    /// # Errors
    /// [`BooksError`].
    pub fn read(path: &Path) -> Result<Self, BooksError> {
        let size = fs::metadata(path).map_err(at(path))?.len();
        let malformed = |what| BooksError::Malformed { path: path.to_owned(), what };
        if size > BUNDLE_MAX {
            return Err(malformed("it is larger than 1 MiB"));
        }
        let bytes = Bytes::from(fs::read(path).map_err(at(path))?);
        let bundle = KeyBundle::decode(bytes).map_err(|_| malformed("it is not the protobuf message"))?;
        believe(path, bundle)
    }
}

/// How a statement that a device names stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatementStanding {
    /// It was never accepted here.
    Unknown,
    /// It was.
    Known {
        /// When it was issued.
        issued_at: UnixTime,
        /// When the newest of the site was.
        newest: UnixTime,
    },
}

/// The books. Cheap to read: whoever admits holds an `Arc` of the current ones.
#[derive(Debug, Clone, Default)]
pub struct Books {
    known: BTreeSet<KeyArn>,
    allowed: BTreeSet<KeyArn>,
    /// By the first 16 bytes of its digest: when each statement was issued.
    statements: BTreeMap<[u8; 16], UnixTime>,
    /// When the newest of each site was.
    newest: BTreeMap<Site, UnixTime>,
    served: BTreeMap<Site, Arc<Published>>,
    /// What each site was served last, whether it is served now or not.
    last: BTreeMap<Site, Last>,
}

/// A statement that was served.
#[derive(Debug, Clone)]
struct Last {
    authority: String,
    version: (u64, u64),
    digest: Sha256Digest,
}

impl Last {
    fn of(fields: &StatementFields, digest: &Sha256Digest) -> Self {
        let version = (fields.epoch, fields.sequence);
        Self { authority: fields.authority.clone(), version, digest: *digest }
    }
}

impl Books {
    /// Reads back every statement that was ever accepted here; `allow` are the keys that the configuration names besides.
    pub fn open(data_dir: &Path, allow: &[KeyArn]) -> Result<Self, BooksError> {
        let (all, served) = (statements_folder(data_dir), served_folder(data_dir));
        for folder in [&data_dir.join("keys"), &all, &served] {
            disk::create_folder(folder).map_err(at(folder))?;
        }
        let mut books = Self { allowed: allow.iter().cloned().collect(), ..Self::default() };
        for (_, fields, digest) in kept(&all)? {
            books.note(&fields, &digest);
        }
        for (path, fields, digest) in kept(&served)? {
            match path.file_stem().and_then(|stem| stem.to_str()).map(Site::new) {
                Some(Ok(site)) => drop(books.last.insert(site, Last::of(&fields, &digest))),
                _ => {
                    tracing::warn!(event = "keys.damaged", path = %path.display(), "it is named after no site")
                }
            }
        }
        Ok(books)
    }

    /// The same books with other keys that the configuration names besides.
    #[must_use]
    pub fn allowing(&self, allow: &[KeyArn]) -> Self {
        Self { allowed: allow.iter().cloned().collect(), ..self.clone() }
    }

    fn note(&mut self, fields: &StatementFields, digest: &Sha256Digest) {
        self.known.extend(fields.keys.iter().map(|key| key.arn.clone()));
        let mut short = [0; 16];
        short.copy_from_slice(&digest.as_bytes()[..16]);
        self.statements.insert(short, fields.issued_at);
        for site in &fields.sites {
            let newest = self.newest.entry(site.clone()).or_default();
            *newest = fields.issued_at.max(*newest);
        }
    }

    /// Takes a statement out of the authority's own folder into the books: gateways and devices may have it although no bundle with it
    /// came by here. Nothing is served by it.
    pub fn learn(&mut self, statement: &Statement) {
        self.note(statement.fields(), statement.digest());
    }

    /// Takes in what was read from a bundle file: keeps its statement, and serves it if it is newer. True if something changed.
    pub fn take_in(
        &mut self,
        data_dir: &Path,
        path: &Path,
        published: Published,
    ) -> Result<bool, BooksError> {
        let (statement, site) = (&published.statement, &published.site);
        let refused = |error| Err(BooksError::Refused { path: path.to_owned(), object: "statement", error });
        let served = self.served.get(site);
        if served.is_some_and(|served| served.authority != published.authority) {
            return refused(TrustError::Authority);
        }
        // Whoever had it withdrawn may name another authority's, and not an older one of the same.
        let last = self.last.get(site).filter(|last| last.authority == published.authority);
        if let Some(last) = last {
            match statement.version().cmp(&last.version) {
                Ordering::Less => return refused(TrustError::Rollback),
                Ordering::Equal if *statement.digest() != last.digest => {
                    return refused(TrustError::Equivocation);
                }
                Ordering::Equal
                    if served.is_some_and(|served| served.roots.len() == published.roots.len()) =>
                {
                    return Ok(false);
                }
                _ => {}
            }
        }
        keep(data_dir, statement)?;
        let path = served_folder(data_dir).join(format!("{site}.cose"));
        disk::replace(&path, statement.object()).map_err(at(&path))?;
        self.note(statement.fields(), statement.digest());
        let site = site.clone();
        self.last.insert(site.clone(), Last::of(statement.fields(), statement.digest()));
        self.served.insert(site, Arc::new(published));
        Ok(true)
    }

    /// Serves nothing for that site from now on. What its statements have named stays known: envelopes under those keys are on their
    /// way. True if something was served.
    pub fn withdraw(&mut self, site: &Site) -> bool {
        self.served.remove(site).is_some()
    }

    /// Whether some statement accepted here has named the key (or the configuration does).
    #[must_use]
    pub fn knows(&self, arn: &KeyArn) -> bool {
        self.known.contains(arn) || self.allowed.contains(arn)
    }

    /// Whether no key is known at all: nobody can be told that a key is unknown then.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.known.is_empty() && self.allowed.is_empty()
    }

    /// Whether the statement in force for the site lists the key as active.
    #[must_use]
    pub fn is_active(&self, site: &Site, arn: &KeyArn) -> bool {
        let served = self.served.get(site);
        served
            .and_then(|published| published.statement.key_by_arn(arn))
            .is_some_and(|key| matches!(key.status, KeyStatus::Active))
    }

    /// How the statement with this digest (its first 16 bytes) stands among those of a site that were accepted here; none if there
    /// are none.
    #[must_use]
    pub fn standing_of(&self, site: &Site, digest: &[u8; 16]) -> Option<StatementStanding> {
        let newest = *self.newest.get(site)?;
        Some(match self.statements.get(digest) {
            Some(issued_at) => StatementStanding::Known { issued_at: *issued_at, newest },
            None => StatementStanding::Unknown,
        })
    }

    /// What is served, by site.
    #[must_use]
    pub fn served(&self) -> &BTreeMap<Site, Arc<Published>> {
        &self.served
    }
}

/// Verifies a bundle as far as somebody without a device's state can.
fn believe(path: &Path, bundle: KeyBundle) -> Result<Published, BooksError> {
    let malformed = |what| BooksError::Malformed { path: path.to_owned(), what };
    let refused = |object| move |error| BooksError::Refused { path: path.to_owned(), object, error };
    let site = Site::new(&bundle.site).map_err(|_| malformed("it names no valid site"))?;
    if bundle.roots.len() > MAX_ROOTS {
        return Err(malformed("it has more than 32 roots"));
    }
    let (first, rest) = bundle.roots.split_first().ok_or_else(|| malformed("it has no root"))?;
    let mut root = verify::first_root(&bundle.authority, first).map_err(refused("root"))?;
    for next in rest {
        root = verify::next_root(&root, next).map_err(refused("root"))?;
    }
    let SignedByRoles { statement, .. } =
        verify::statement(&root, &bundle.statement).map_err(refused("statement"))?;
    if statement.authority != bundle.authority {
        return Err(refused("statement")(TrustError::Authority));
    }
    if !statement.sites.contains(&site) {
        return Err(refused("statement")(TrustError::Audience));
    }
    if statement.root_version > root.fields().version {
        return Err(refused("statement")(TrustError::NeedRoot));
    }
    if statement.epoch != root.fields().epoch {
        return Err(refused("statement")(TrustError::Epoch));
    }
    Ok(Published {
        authority: bundle.authority,
        site,
        roots: bundle.roots,
        root,
        statement,
        spkis: bundle.spkis,
    })
}

fn statements_folder(data_dir: &Path) -> PathBuf {
    data_dir.join("keys").join("statements")
}

/// What each site was served last, under its name.
fn served_folder(data_dir: &Path) -> PathBuf {
    data_dir.join("keys").join("served")
}

/// The statements in a folder. Their signatures were verified before they were kept.
fn kept(folder: &Path) -> Result<Vec<(PathBuf, StatementFields, Sha256Digest)>, BooksError> {
    let mut kept = Vec::new();
    for path in disk::complete_files(folder).map_err(at(folder))? {
        if path.extension().is_none_or(|ext| ext != "cose") {
            continue;
        }
        let object = fs::read(&path).map_err(at(&path))?;
        match StatementFields::read_unverified(&object) {
            Ok((fields, digest)) => kept.push((path, fields, digest)),
            Err(error) => {
                tracing::error!(event = "keys.damaged", path = %path.display(), code = error.code(), "a kept statement does not read back");
            }
        }
    }
    Ok(kept)
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> BooksError {
    let path = path.to_owned();
    move |source| BooksError::Io { path, source }
}

/// Keeps an accepted statement, before anything is admitted by it.
fn keep(data_dir: &Path, statement: &Statement) -> Result<(), BooksError> {
    let name = hex::encode(statement.digest().as_bytes());
    let path = statements_folder(data_dir).join(format!("{name}.cose"));
    if path.exists() {
        return Ok(());
    }
    disk::replace(&path, statement.object()).map_err(at(&path))
}

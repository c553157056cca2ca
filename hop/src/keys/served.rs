//! What a server of keys holds for one site: everything it has verified, ready to be handed out.

use bytes::Bytes;
use pithead_sealing::{
    Site,
    trust::{Bundle, MAX_ROOTS, RootFields, Sha256Digest, StatementFields, TrustError},
};

use super::{
    client::Held,
    wire::{KeyFile, TrustVersion},
};

/// Roots, statement and public keys that the server itself has verified and kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedKeys {
    authority: String,
    site: Site,
    /// Ascending without a hole.
    roots: Vec<(u64, Bytes)>,
    statement: Bytes,
    digest: Sha256Digest,
    spkis: Vec<Bytes>,
    version: TrustVersion,
}

impl ServedKeys {
    /// Takes what the caller has **verified**: the roots from the first to the current one, ascending; the statement in
    /// force; the public keys that it names.
    ///
    /// Reads names and numbers out of them, and refuses what cannot be read (`PARSE`), roots with a hole
    /// (`ROOT_VERSION`), another authority (`AUTHORITY`) and a statement that is not for `site` (`AUDIENCE`).
    pub fn new(
        site: Site,
        roots: Vec<Bytes>,
        statement: Bytes,
        spkis: Vec<Bytes>,
    ) -> Result<Self, TrustError> {
        let (fields, digest) = StatementFields::read_unverified(&statement)?;
        if !fields.sites.contains(&site) {
            return Err(TrustError::Audience);
        }
        let mut versioned: Vec<(u64, Bytes)> = Vec::with_capacity(roots.len());
        for root in roots {
            let (root_fields, _) = RootFields::read_unverified(&root)?;
            if root_fields.authority != fields.authority {
                return Err(TrustError::Authority);
            }
            if versioned.last().is_some_and(|(last, _)| last + 1 != root_fields.version) {
                return Err(TrustError::RootVersion);
            }
            versioned.push((root_fields.version, root));
        }
        let version = TrustVersion { epoch: fields.epoch, sequence: fields.sequence };
        Ok(Self { authority: fields.authority, site, roots: versioned, statement, digest, spkis, version })
    }

    /// The authority's name.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The site.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// SHA-256 of the statement's payload.
    pub fn digest(&self) -> &Sha256Digest {
        &self.digest
    }

    /// Which statement it is.
    pub fn version(&self) -> TrustVersion {
        self.version
    }

    /// The newest root's version; 0 if there is none.
    pub fn root_version(&self) -> u64 {
        self.roots.last().map_or(0, |(version, _)| *version)
    }

    /// The statement in force, as it was signed.
    pub fn statement(&self) -> &Bytes {
        &self.statement
    }

    /// The newest root, as it was signed; none if there is none.
    pub fn newest_root(&self) -> Option<&Bytes> {
        self.roots.last().map(|(_, root)| root)
    }

    /// What `held` lacks, or nothing if it lacks nothing.
    ///
    /// Who is more than [`MAX_ROOTS`] roots behind gets the next ones alone: the statement would be of a root that is
    /// not there yet. It applies them and asks again.
    pub fn newer_than(&self, held: &Held) -> Option<KeyFile> {
        self.after(held).map(|(file, _)| file)
    }

    /// What `held` lacks, and what is held when that has been taken.
    pub(super) fn after(&self, held: &Held) -> Option<(KeyFile, Held)> {
        let mut missing: Vec<(u64, Bytes)> =
            self.roots.iter().filter(|(version, _)| *version > held.root_version).cloned().collect();
        if missing.is_empty() && held.statement_digest == Some(self.digest) {
            return None;
        }
        let whole = missing.len() <= MAX_ROOTS;
        missing.truncate(MAX_ROOTS);
        let then = Held {
            root_version: missing.last().map_or(held.root_version, |(version, _)| *version),
            statement_digest: if whole { Some(self.digest) } else { held.statement_digest },
        };
        let roots = missing.into_iter().map(|(_, root)| root).collect();
        let bundle = if whole {
            Bundle { roots, statement: Some(self.statement.clone()), spkis: self.spkis.clone() }
        } else {
            Bundle { roots, ..Bundle::default() }
        };
        Some((KeyFile { authority: self.authority.clone(), site: self.site.clone(), bundle }, then))
    }

    /// Everything, for a file that is carried to a device or another gateway.
    pub fn export(&self) -> KeyFile {
        self.newer_than(&Held::default()).expect("who holds nothing lacks the statement")
    }
}

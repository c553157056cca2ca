//! The export file: a `pithead.keys.v1.KeyBundle`, the same message that the RPC answers with.

use std::path::Path;

use bytes::Bytes;
use pithead_hop::keys::KeyFile;
use pithead_sealing::Site;
use pithead_sealing::trust::{Bundle, Root, RsaSpki, Statement};
use sha2::{Digest as _, Sha256};

use super::dir::{AuthorityDir, Folder, write_new, write_whole};
use super::error::AuthorityError;

/// Everything that a verifier of that site needs, beginning with root 1.
pub(super) fn bundle(site: &Site, roots: &[Root], statement: &Statement, spkis: &[RsaSpki]) -> Vec<u8> {
    // In the order of the statement, so that a bundle has one spelling.
    let named = statement
        .keys
        .iter()
        .filter_map(|key| spkis.iter().find(|spki| spki.fingerprint() == key.fingerprint));
    let bundle = Bundle {
        roots: roots.iter().map(|root| root.object().clone()).collect(),
        statement: Some(statement.object().clone()),
        spkis: named.map(|spki| Bytes::copy_from_slice(spki.der())).collect(),
    };
    KeyFile { authority: statement.authority.clone(), site: site.clone(), bundle }.encode()
}

/// Writes a site's bundle to another place as well.
///
/// # Errors
/// [`AuthorityError::File`].
pub fn copy_bundle(dir: &AuthorityDir, site: &Site, to: &Path) -> Result<(), AuthorityError> {
    let from = dir.bundle_path(site);
    let bundle = std::fs::read(&from).map_err(AuthorityError::file("read", from))?;
    write_whole(to, &bundle)
}

/// What a site is given by hand: the bundle for its gateways and decryptor, and the root that gateways and devices begin with.
#[derive(Debug, Clone)]
pub struct Export {
    /// The bundle's content.
    pub bundle: Vec<u8>,
    /// The statement in it.
    pub statement: Statement,
    /// The first root of the epoch in force: one that begins with an older one believes no statement that the root keys have
    /// not signed as well.
    pub first_root: Root,
}

impl Export {
    /// SHA-256 of the root's file, as `sha256sum` says it.
    #[must_use]
    pub fn root_sha256(&self) -> String {
        hex::encode(Sha256::digest(self.first_root.object()))
    }

    /// Writes both. A root is never written over: whoever was provisioned with another one is not to wonder.
    ///
    /// # Errors
    /// [`AuthorityError::File`].
    pub fn write(&self, bundle: &Path, root: Option<&Path>) -> Result<(), AuthorityError> {
        if let Some(root) = root {
            let there = std::fs::read(root).is_ok_and(|content| content == *self.first_root.object());
            if !there {
                write_new(root, self.first_root.object(), 0o644)?;
            }
        }
        write_whole(bundle, &self.bundle)
    }
}

/// What a site is given by hand, put together from what is signed, every signature verified.
///
/// # Errors
/// [`AuthorityError::Request`] for a site without a statement, [`AuthorityError::Damaged`].
pub fn export(folder: &Folder, site: &Site) -> Result<Export, AuthorityError> {
    let roots = folder.roots()?;
    let statement = folder.last_statement(site, &roots)?.ok_or(AuthorityError::Request(
        "no statement was signed for that site; `authority show` has the sites",
    ))?;
    let bundle = current_bundle(folder, site, &roots, &statement)?;
    let first = roots.iter().find(|root| root.epoch == statement.epoch);
    let first_root = first.cloned().ok_or_else(|| AuthorityError::Missing(folder.path().into()))?;
    Ok(Export { bundle, statement, first_root })
}

/// The bundle that goes with a statement that was signed before. A root that came later is not in it: the statement does not stand
/// under that one.
pub(super) fn current_bundle(
    folder: &Folder,
    site: &Site,
    roots: &[Root],
    statement: &Statement,
) -> Result<Vec<u8>, AuthorityError> {
    let known = roots.iter().position(|root| root.version > statement.root_version);
    let roots = &roots[..known.unwrap_or(roots.len())];
    let spkis = statement.keys.iter().map(|key| folder.spki(&key.fingerprint));
    Ok(bundle(site, roots, statement, &spkis.collect::<Result<Vec<_>, _>>()?))
}

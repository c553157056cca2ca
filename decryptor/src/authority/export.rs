//! The export file: a `pithead.keys.v1.KeyBundle`, the same message that the RPC answers with.

use std::path::Path;

use bytes::Bytes;
use pithead_hop::keys::KeyFile;
use pithead_sealing::Site;
use pithead_sealing::trust::{Bundle, Root, RsaSpki, Statement};

use super::dir::{AuthorityDir, write_whole};
use super::error::AuthorityError;

/// Everything that a verifier of that site needs, beginning with root 1.
pub(super) fn bundle(site: &Site, roots: &[Root], statement: &Statement, spkis: &[RsaSpki]) -> Vec<u8> {
    let named = |spki: &&RsaSpki| statement.key(&spki.fingerprint()).is_some();
    let bundle = Bundle {
        roots: roots.iter().map(|root| root.object().clone()).collect(),
        statement: Some(statement.object().clone()),
        spkis: spkis.iter().filter(named).map(|spki| Bytes::copy_from_slice(spki.der())).collect(),
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

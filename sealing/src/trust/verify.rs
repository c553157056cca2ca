//! Signatures: how many distinct keys of a role have signed, and what that makes of an object.
//!
//! One verification for devices, gateways and tools. A signature counts if its kid is in the role, its
//! header names the algorithm that the root gives that key, and it holds over exactly the bytes received.
//! A key counts once, however often it has signed; signatures of strangers count for nothing and harm nothing.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::cose::{ObjectType, Signed};
use super::digest::Sha256Digest;
use super::error::TrustError;
use super::keys::Kid;
use super::root::{Role, Root, RootFields};
use super::statement::{Statement, StatementFields};

/// The distinct keys of `role` whose signatures hold.
fn signers(root: &RootFields, role: &Role, signed: &Signed<'_>) -> BTreeSet<Kid> {
    let mut holding = BTreeSet::new();
    for signature in &signed.signatures {
        if !role.kids.contains(&signature.kid) || holding.contains(&signature.kid) {
            continue;
        }
        let Some(key) = root.key(&signature.kid) else { continue };
        // The algorithm is the root's choice: a header that differs is an attempt to choose another.
        if key.spki.algorithm().cose() == signature.alg
            && key.spki.verifies(&signed.to_be_signed(signature), signature.signature)
        {
            holding.insert(signature.kid);
        }
    }
    holding
}

fn meets(root: &RootFields, role: &Role, signed: &Signed<'_>) -> bool {
    signers(root, role, signed).len() as u64 >= role.threshold
}

fn read_root<'o>(object: &'o [u8]) -> Result<(Signed<'o>, RootFields, Sha256Digest), TrustError> {
    let signed = Signed::read(object)?;
    signed.expect(ObjectType::Root)?;
    let fields = RootFields::read_payload(signed.payload)?;
    let digest = Sha256Digest::of(signed.payload);
    Ok((signed, fields, digest))
}

/// A root that is provisioned: it cannot be traced to an older one, so it is checked against its own threshold.
pub fn first_root(authority: &str, object: &Bytes) -> Result<Root, TrustError> {
    let (signed, fields, digest) = read_root(object)?;
    if fields.authority != authority {
        return Err(TrustError::Authority);
    }
    if fields.version == 0 {
        return Err(TrustError::RootVersion);
    }
    if fields.version == 1 && fields.previous != Sha256Digest::ZERO {
        return Err(TrustError::RootPrev);
    }
    if !meets(&fields, &fields.root_role, &signed) {
        return Err(TrustError::ThresholdNew);
    }
    Ok(Root::verified(fields, digest, object.clone()))
}

/// The root that follows `current`: signed by the thresholds of both.
pub fn next_root(current: &Root, object: &Bytes) -> Result<Root, TrustError> {
    let (signed, fields, digest) = read_root(object)?;
    if fields.authority != current.authority {
        return Err(TrustError::Authority);
    }
    if Some(fields.version) != current.version.checked_add(1) {
        return Err(TrustError::RootVersion);
    }
    if fields.previous != *current.digest() {
        return Err(TrustError::RootPrev);
    }
    let same_or_next = fields.epoch == current.epoch || Some(fields.epoch) == current.epoch.checked_add(1);
    if !same_or_next || fields.issued_at < current.issued_at {
        return Err(TrustError::Epoch);
    }
    if !meets(current, &current.root_role, &signed) {
        return Err(TrustError::ThresholdOld);
    }
    if !meets(&fields, &fields.root_role, &signed) {
        return Err(TrustError::ThresholdNew);
    }
    Ok(Root::verified(fields, digest, object.clone()))
}

/// A statement whose signatures hold under a root.
#[derive(Debug, Clone)]
pub struct SignedByRoles {
    /// The statement.
    pub statement: Statement,
    /// The root threshold has signed as well.
    pub cosigned: bool,
}

/// Verifies a statement's signatures under `root` and only then reads what it says.
///
/// This is all that somebody without a device's state can know of it (a tool that shows it, the authority's
/// log); a device asks more before it acts on it.
pub fn statement(root: &Root, object: &Bytes) -> Result<SignedByRoles, TrustError> {
    let signed = Signed::read(object)?;
    signed.expect(ObjectType::Statement)?;
    if !meets(root, &root.statement_role, &signed) {
        return Err(TrustError::Threshold);
    }
    let fields = StatementFields::read_payload(signed.payload)?;
    let digest = Sha256Digest::of(signed.payload);
    let statement = Statement::verified(fields, digest, object.clone());
    Ok(SignedByRoles { statement, cosigned: meets(root, &root.root_role, &signed) })
}

/// The keys of `root` whose signatures on `object` hold, whatever the object is: for display. The first list is
/// of the root role, the second of the statement role.
pub fn signers_of(root: &RootFields, object: &[u8]) -> Result<(Vec<Kid>, Vec<Kid>), TrustError> {
    let signed = Signed::read(object)?;
    let of = |role: &Role| signers(root, role, &signed).into_iter().collect();
    Ok((of(&root.root_role), of(&root.statement_role)))
}

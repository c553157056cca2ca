//! What travels: everything that a verifier needs, as plain bytes.
//!
//! The same on the wire, in an export file and in a QR code (a protobuf message, in the proto crate). Nothing in
//! it is believed because of who sent it.

use bytes::Bytes;

use super::root::RootFields;

/// Most roots in one bundle. A device further behind asks again.
pub const MAX_ROOTS: usize = 32;

/// Roots, statement and public keys, not looked at yet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bundle {
    /// Signed roots, ascending; the first follows on the receiver's.
    pub roots: Vec<Bytes>,
    /// The signed statement, if there is one.
    pub statement: Option<Bytes>,
    /// SubjectPublicKeyInfo in DER, found by their hash.
    pub spkis: Vec<Bytes>,
}

impl Bundle {
    /// Drops the roots up to `root_version`: an export begins with version 1, and a device that is offered the
    /// root it already has would have to refuse it. What cannot be read stays, so that applying it says why.
    pub fn newer_than(mut self, root_version: u64) -> Bundle {
        self.roots.retain(|root| {
            RootFields::read_unverified(root).map_or(true, |(fields, _)| fields.version > root_version)
        });
        self
    }
}

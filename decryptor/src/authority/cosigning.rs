//! Signatures of people who do not meet: what travels is a payload that holds nothing secret, and objects with one signature each.
//! Roots and statements go the same way.

use bytes::Bytes;
use pithead_sealing::trust::authoring::Draft;
use pithead_sealing::trust::{Kid, RoleSpki};

use super::error::AuthorityError;

/// Bytes of a label for people.
const LABEL_MAX: usize = 64;

/// Every signature of `signed` on the one draft that all of them have to be over. Each is held against the key that it names,
/// which `key` has to know.
pub(super) fn gather(
    mut all: Draft,
    signed: &[Bytes],
    key: impl Fn(&Kid) -> Option<RoleSpki>,
) -> Result<Draft, AuthorityError> {
    for object in signed {
        let one = Draft::reopen(object)?;
        if one.object_type() != all.object_type() || one.digest() != all.digest() {
            return Err(AuthorityError::Request("the signatures are over different drafts"));
        }
        for (kid, signature) in one.signatures() {
            let key = key(kid)
                .ok_or(AuthorityError::Request("a signature is of a key that the root does not list"))?;
            if !all.signed_by().any(|known| known == kid) {
                all.attach(&key, signature)?;
            }
        }
    }
    Ok(all)
}

/// The payload that the first of them is over.
pub(super) fn payload_of(signed: &[Bytes]) -> Result<Vec<u8>, AuthorityError> {
    let first = signed.first().ok_or(AuthorityError::Request("it is accepted with its signatures"))?;
    Ok(Draft::reopen(first)?.payload().to_vec())
}

/// What is shown on the terminals of people who are to sign it is plain text: a draft comes from somebody else.
pub(super) fn printable<'a>(
    name: &str,
    labels: impl IntoIterator<Item = &'a str>,
) -> Result<(), AuthorityError> {
    let plain = |text: &str| !text.is_empty() && text.bytes().all(|byte| (0x20..=0x7e).contains(&byte));
    if plain(name) && labels.into_iter().all(|label| plain(label) && label.len() <= LABEL_MAX) {
        Ok(())
    } else {
        Err(AuthorityError::Request(
            "a name or a label is empty, too long, or holds what is not printable ASCII",
        ))
    }
}

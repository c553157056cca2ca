//! The authority: who signs the trust root and the key statements. Never a gateway's business.
//!
//! ```text
//! init       ─> root keys, statement key ─> root 1 ──────────────────────────┐
//! root       ─> what changes ─> draft ─> signatures from many machines ─> thresholds, as devices ask ─> DIR
//! statement  ─> what is asked ─> rules (what could not be taken back) ─> draft ─> sign ─> rehearse ─> DIR ─> bundle
//! show       <─ DIR
//! ```
//!
//! Promised:
//! - **Nothing is written that a device would refuse.** A root is verified by the function that devices call; before a
//!   statement leaves, [`rehearsal`] lets a device of every
//!   site take in the whole history and then the new statement.
//! - **Nothing is signed that could not be taken back**, as far as the rules of [`rules`] can see.
//! - **Nothing is signed in secret**: the line in `DIR/audit.log` is on disk before the object is.
//! - Each file appears whole or not at all.
//!
//! Custody here is key files (3); [`StatementSigner`] is where another custody comes in.

mod audit;
mod dir;
mod error;
mod export;
mod init;
mod key_file;
mod rehearsal;
mod root;
mod rules;
mod show;
mod signer;
mod statement;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use dir::{AuthorityDir, write_new};
pub use error::{AuthorityError, KeptBack};
pub use export::copy_bundle;
pub use init::{InitOptions, init};
pub use key_file::{Passphrase, new_key_file, public_pem, read_signing_key};
pub use root::{AcceptedRoot, RootChange, RootDraft, accept, draft, read_draft, sign};
pub(crate) use show::rfc3339;
pub use show::{KeyView, Overview, RoleKeyView, SiteView, overview};
pub use signer::{KeyFileSigner, Signing, StatementSigner};
pub use statement::{Issued, OfferedKey, StatementRequest, issue, rotation};

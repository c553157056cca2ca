//! The authority: who signs the trust root and the key statements. Never a gateway's business.
//!
//! ```text
//! init       ─> root keys, statement key ─> root 1 ──────────────────────────┐
//! root       ─> what changes ─> draft ─> signatures from many machines ─> thresholds, as devices ask ─> DIR
//! statement  ─> what is asked ─> rules (what could not be taken back) ─> draft ─> sign ─> rehearse ─> DIR ─> bundle
//!                                                    └─> signatures of root keys from many machines ─> sign ─> ...
//! reissue    ─> what was said last, when it is due ─> as a statement
//! show, export <─ DIR
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
//! The statement key is a file or in KMS: [`StatementSigner`]. Root keys are files, on whatever machine their holders trust.

mod audit;
mod cosigning;
mod dir;
mod draft;
mod error;
mod export;
mod init;
mod key_file;
mod rehearsal;
mod reissue;
mod root;
mod rules;
mod show;
mod signer;
mod statement;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use dir::{AuthorityDir, Folder, write_new};
pub use draft::{StatementDraft, accept_statement, cosign, draft_statement, read_statement_draft};
pub use error::{AuthorityError, KeptBack};
pub use export::{Export, copy_bundle, export};
pub use init::{InitOptions, init};
pub use key_file::{Passphrase, new_key_file, public_pem, read_signing_key};
pub use reissue::{DataKeyCheck, Failure, Reissuer, SiteStanding, Turn};
pub use root::{AcceptedRoot, RootChange, RootDraft, accept, draft, read_draft, sign};
pub(crate) use show::rfc3339;
pub use show::{KeyView, Overview, RoleKeyView, SiteView, custody_name, overview, status_name};
pub use signer::{KeyFileSigner, KeyPlace, KmsSigner, Signing, StatementSigner};
pub use statement::{Issued, OfferedKey, StatementRequest, issue, rotation};

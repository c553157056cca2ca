//! The reference cloud end of Pithead, and the authority's tool.
//!
//! The envelope path of `run`, one module per station, in the order in which an envelope meets them:
//! [`sites`] (who may call) -> [`books`] (which keys are known) -> [`intake`] (admission is hop's; lines, turns) ->
//! [`unwrap`] (data keys: KMS or a local private key) -> [`devices`] (who signed the session) -> [`content`] (what the opened bytes say) -> [`sink`] (plaintext made
//! durable) -> [`ledger`] (what was applied, for ever) -> acknowledgement.
//!
//! Beside it, [`verify`] says of the ledger what it proves about every stream.
//!
//! The key path: [`authority`] signs roots and statements, with keys in files or in KMS, and issues statements again; [`books`]
//! believes the published bundles, and `run` serves them to gateways. [`alarms`] holds what devices say of their statements
//! against the books.
//!
//! An acknowledgement leaves this program only after the sink's commit and the ledger's entry are both on disk.

pub mod cli;
pub mod commands;
pub mod config;

pub mod authority;
pub mod books;
pub mod publish;
pub mod sites;

pub mod kms;
pub mod unwrap;

pub mod devices;

pub mod alarms;
pub mod aside;
pub mod content;
pub mod intake;
pub mod ledger;
pub mod sink;
pub mod source;
pub mod store;
pub mod verify;

pub mod admin;
pub mod metrics;
pub mod vitals;

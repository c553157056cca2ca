//! The key path: from whoever has a statement to the devices that seal under it.
//!
//! ```text
//! statement_source ─┐
//! spki_source ──────┴─> keeper (verify, compare, history, store) ─> book ─> service
//!                          ^ refresh decides when
//! ```

pub mod statement_source;

pub mod spki_source;

pub mod history;
pub mod store;

pub mod keeper;
pub mod refresh;

pub mod book;
pub mod service;

#[cfg(test)]
pub(crate) mod testing;

//! The other way in: bundles in a bucket, any number of replicas, and no server of ours in the data path.
//!
//! ```text
//! queue ─> notice ─┐
//! listing ─────────┴> replica ─> site: fetch ─> judge ─> ledger/<site>/n+1 ─> out/<site>/.../n.jsonl.zst
//!                                               books <──────────┘
//! ```
//! Modules in the order in which a bundle meets them: [`sqs`] and [`notice`] (it is told of), [`replica`] (its turn), [`site`] (one
//! site's step), [`judge`] (what becomes of its envelopes, by the pipeline's own rules), [`books`] (what entries have said so far),
//! [`output`].
//!
//! What holds, whoever dies at whatever point: every envelope of a bundle is in exactly one entry as what it was when it first came;
//! what is applied is in exactly one output; a line keeps its order; and what is known of a site is what its entries say, in their
//! order, and nothing else.

pub mod notice;
pub mod sqs;

pub mod replica;

mod board;

pub mod site;

pub mod judge;

mod large;

pub mod books;

pub mod output;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

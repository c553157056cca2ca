//! What a device embeds.

#![warn(missing_docs)]

pub mod batch;
pub mod clock;
pub mod state;

//! The client against real ports and a real disk.

#![allow(clippy::unwrap_used, missing_docs)]

mod delivery;
mod files;
mod keeping;
mod keys;
mod uploads;
mod world;

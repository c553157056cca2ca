#![warn(missing_docs)]
//! The device client for programs in C: `include/pithead.h` is made of this crate, comments included.
//!
//! What holds at the border:
//!
//! 1. Nothing unwinds into C: a panic is caught and is `PITHEAD_INTERNAL`.
//! 2. A null pointer, text that is not UTF-8 and a number out of its range are `PITHEAD_BAD_ARGUMENT`, and nothing was done.
//! 3. No global state: an error goes into the object that the caller brings, and two clients in a process know nothing of
//!    each other. No logger, no signal handler, no environment variable, and no TLS provider that the host would have to
//!    install or could get in the way of.
//! 4. The threads of a client take none of the host's signals ([`threads`]).
//! 5. What has been published stays: functions are added and never changed, numbers are never used again, structs that the
//!    library fills grow at their end and are passed with their size, and everything else is behind a handle.
//!
//! The modules stand in the order of the header.

#![allow(non_camel_case_types, reason = "the names are those of the header")]
#![allow(
    clippy::missing_safety_doc,
    reason = "the rules are the same for all, and stand at the top of the header"
)]

mod border;
mod threads;
mod wait;

pub mod error;

pub mod options;

pub mod client;
pub mod stream;

pub mod files;

pub mod buffer;
pub mod sealer;

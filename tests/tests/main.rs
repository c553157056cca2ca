//! The whole system: the real programs, a cloud and wires that fail, and what must be true of them whatever happens.
//!
//! One program of tests, with a module for each subject: what all of them stand on is then compiled and linked once. A module is chosen by
//! its name (`cargo test -p pithead-tests --test system -- kill_loop::`).

#![allow(clippy::unwrap_used)]

mod attacks;
mod authority;
mod backlog;
mod bad_input;
mod bucket;
mod c_abi;
mod carry;
mod cloud_on_s3;
mod custody;
mod demo;
mod device_cli;
mod end_to_end;
mod full;
mod gateway_binary;
mod hostile_gateway;
mod identity;
mod kill;
mod kill_loop;
mod kms_faults;
mod large;
mod large_file;
mod losses;
mod mutations;
mod observed;
mod operator;
mod reference;
mod relay;
mod replicated;
mod rotation;
mod signatures;
mod storm;
mod traces;
mod upload;
mod verify;
mod wan;
mod wires;

//! `pithead-device`: a device on the command line.

mod cli;
mod config;
mod enroll;
mod failure;
mod key;
mod outbox;
mod output;
mod seal;
mod send;
mod signer;
mod upload;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}

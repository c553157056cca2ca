//! `pithead-device`: a device on the command line.

mod cli;
mod config;
mod delivery;
mod enroll;
mod failure;
mod key;
mod moment;
mod netcheck;
mod outbox;
mod output;
mod seal;
mod send;
mod signer;
mod simulate;
mod status;
mod upload;
mod watch;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}

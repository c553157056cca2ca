//! `pithead-decryptor`: parses and delegates.

use clap::Parser as _;
use pithead_decryptor::cli::Cli;
use pithead_hop::program;
use pithead_proto::errors::v1::ErrorReason;
use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    program::install_crypto();
    let cli = Cli::parse();
    if let Err(error) = program::log::init(cli.log_format, program::log::level(cli.verbose, cli.quiet)) {
        return program::ProgramError::new(ErrorReason::ConfigInvalid, error.to_string()).report();
    }
    match cli.run().await {
        Ok(code) => code.into(),
        Err(error) => error.report(),
    }
}

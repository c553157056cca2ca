//! `pithead-gateway`: parses its arguments and delegates.

use std::process::ExitCode;

fn main() -> ExitCode {
    pithead_gateway::cli::main()
}

//! Numbers that the product promises, measured with the real programs. One subcommand each, one JSON object each.

mod kms_calls;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde::Serialize;

/// Measures what the product promises, with the real programs on loopback.
#[derive(Debug, Parser)]
#[command(name = "bench", arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// KMS Decrypt calls for many small records of several devices.
    KmsCalls(kms_calls::Arguments),
}

/// One number with its name.
#[derive(Debug, Serialize)]
struct Measured<T> {
    /// Its name, for ever.
    name: &'static str,
    /// The number.
    value: f64,
    /// Of what.
    unit: &'static str,
    /// What it was measured on.
    #[serde(flatten)]
    facts: T,
}

impl<T: Serialize> Measured<T> {
    /// One JSON object on one line, or a short table.
    #[expect(clippy::print_stdout, reason = "the result of a bench is its output")]
    fn print(&self, json: bool) -> anyhow::Result<()> {
        if json {
            println!("{}", serde_json::to_string(self)?);
            return Ok(());
        }
        println!("{:<16}{} {}", self.name, self.value, self.unit);
        if let serde_json::Value::Object(facts) = serde_json::to_value(&self.facts)? {
            for (name, value) in facts {
                println!("{name:<16}{value}");
            }
        }
        Ok(())
    }
}

#[expect(clippy::print_stderr, reason = "a bench that fails says so")]
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let measured = tokio::runtime::Runtime::new().map_err(anyhow::Error::from).and_then(|runtime| {
        runtime.block_on(async {
            match arguments.command {
                Command::KmsCalls(arguments) => kms_calls::measure(&arguments).await,
            }
        })
    });
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

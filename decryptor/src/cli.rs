//! The command line.

use crate::commands::authority::Output;
use crate::commands::{
    authority, bundle, check, config, device, init, inspect, open, run, site, status, verify,
};
use clap::CommandFactory as _;
use pithead_hop::program::log::LogFormat;
use pithead_hop::program::manual::{self, CompletedShell};
use pithead_hop::program::paint::Paint;
use pithead_hop::program::{ExitCode, ProgramError, explain};
use std::io::IsTerminal as _;
use std::path::PathBuf;

/// The reference cloud end of Pithead, and the authority's tool.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "pithead-decryptor", version, propagate_version = true)]
pub struct Cli {
    /// More in the log; twice for everything
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
    /// Less in the log; twice for errors alone
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub quiet: u8,
    /// How the log is written: `text`, `json`, or `auto` (JSON when stderr is not a terminal)
    #[arg(long, default_value = "auto", global = true)]
    pub log_format: LogFormat,
    /// Paint nothing, as NO_COLOR in the environment does; without a terminal nothing is painted anyway
    #[arg(long, global = true)]
    pub no_color: bool,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// Take envelopes from gateways, open them and make their plaintext durable
    Run(run::Args),
    /// Whether this decryptor would serve and go on serving: configuration, KMS, production readiness, and the running program
    ///
    /// Each line that is not in order says what to do. Exits 0 if all is well, 3 with warnings, 4 if it would not serve, 78 if the
    /// configuration is bad. Before the first start: `pithead-decryptor check --pre`. It writes a small file into the data
    /// directory and beside what the sink writes, to measure the disk, and removes it.
    Check(check::Args),
    /// How the running decryptor is, and what to do; exits 0 if all is well, 3 if something has to be looked at, 4 if it does not
    /// serve, 69 if it does not run
    Status(status::Args),
    /// The version, and that an opener of envelopes is in this build
    Version {
        /// How it is printed
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Open one sealed envelope
    Open(open::Args),
    /// Show what a sealed envelope says in clear; needs no key
    Inspect(inspect::Args),
    /// Look into a bundle out of a bucket, or split it into its envelopes; needs no key
    Bundle(bundle::Args),
    /// Say of each stream what is here, what is missing and how far that is a proof; exits 1 on an unexplained hole
    Verify(verify::Args),
    /// The sites whose gateways may connect
    Site(site::Args),
    /// The device keys whose session signatures are believed
    Device(device::Args),
    /// Make and sign trust roots and key statements
    Authority(Box<authority::Args>),
    /// Say what a code such as PH-1014 means and what to do about it; without one, all of them
    Explain {
        /// PH-1014, 1014 or TRUST_ROLLBACK
        code: Option<String>,
    },
    /// The configuration file
    #[command(subcommand)]
    Config(config::Command),
    /// Make the cloud's end in a folder: a configuration, and if asked its CA and certificate. Says what to do next
    Init(Box<init::Args>),
    /// Completions for a shell, on standard output: `pithead-decryptor completions bash`
    Completions {
        /// Which shell
        #[arg(value_enum)]
        shell: CompletedShell,
    },
    /// Write man pages: `pithead-decryptor man --out /usr/local/share/man/man1`
    Man {
        /// The folder; it is made if its parent exists
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

impl Cli {
    /// Does what it says, and gives the exit code.
    #[allow(clippy::print_stdout, reason = "the answer of a command")]
    pub async fn run(self) -> Result<ExitCode, ProgramError> {
        let paint = Paint::for_screen(std::io::stdout().is_terminal(), self.no_color);
        match self.command {
            Command::Check(args) => return check::run(&args, paint).await,
            Command::Status(args) => return status::run(&args, paint),
            Command::Version { output } => print!("{}", status::version(output)),
            Command::Completions { shell } => {
                print!("{}", String::from_utf8_lossy(&manual::completions(Self::command(), shell)));
            }
            Command::Man { out } => {
                println!("{} pages in {}", manual::man(Self::command(), &out)?, out.display());
            }
            Command::Verify(args) => return verify::run(args).await,
            Command::Run(args) => run::run(args).await?,
            Command::Open(args) => open::run(args).await?,
            Command::Inspect(args) => inspect::run(args).await?,
            Command::Bundle(args) => bundle::run(&args)?,
            Command::Site(args) => site::run(&args)?,
            Command::Device(args) => device::run(&args)?,
            Command::Authority(args) => authority::run(*args).await?,
            Command::Explain { code } => print!("{}", explain::answer(code.as_deref())?),
            Command::Config(command) => print!("{}", config::run(&command)?),
            Command::Init(args) => print!("{}", init::run(&args)?),
        }
        Ok(ExitCode::OK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_reference_says_what_the_program_says() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/cli-decryptor.md");
        pithead_hop::program::reference::keep(page.as_ref(), &manual::reference(Cli::command())).unwrap();
    }
}

//! The command line.

use crate::commands::{authority, device, inspect, open, run, site, verify};
use pithead_hop::program::log::LogFormat;
use pithead_hop::program::{ExitCode, ProgramError, explain};

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
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// Take envelopes from gateways, open them and make their plaintext durable
    Run(run::Args),
    /// Open one sealed envelope
    Open(open::Args),
    /// Show what a sealed envelope says in clear; needs no key
    Inspect(inspect::Args),
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
    /// Print the configuration file with every key, commented
    ConfigTemplate,
}

impl Cli {
    /// Does what it says, and gives the exit code.
    #[allow(clippy::print_stdout, reason = "the answer of a command")]
    pub async fn run(self) -> Result<ExitCode, ProgramError> {
        match self.command {
            Command::Verify(args) => return verify::run(args),
            Command::Run(args) => run::run(args).await?,
            Command::Open(args) => open::run(args).await?,
            Command::Inspect(args) => inspect::run(args).await?,
            Command::Site(args) => site::run(&args)?,
            Command::Device(args) => device::run(&args)?,
            Command::Authority(args) => authority::run(*args).await?,
            Command::Explain { code } => print!("{}", explain::answer(code.as_deref())?),
            Command::ConfigTemplate => print!("{}", crate::config::TEMPLATE),
        }
        Ok(ExitCode::OK)
    }
}

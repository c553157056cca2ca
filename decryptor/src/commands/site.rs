//! `site add NAME --ca PEM` and `site list`.

use crate::config::Config;
use crate::sites::{self, SitesError};
use pithead_hop::program::ProgramError;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::Site;
use std::path::PathBuf;

/// `site ...`
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// Let the gateways and devices of one more site connect
    Add {
        /// The site's name
        name: Site,
        /// PEM file with the CA of the site's certificates
        #[arg(long, value_name = "PEM")]
        ca: PathBuf,
    },
    /// Show the sites that may connect
    List,
}

/// Arguments of `site`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The configuration file
    #[arg(short, long, value_name = "FILE", global = true, default_value = "decryptor.toml")]
    pub config: PathBuf,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

impl From<SitesError> for ProgramError {
    fn from(error: SitesError) -> Self {
        let what = error.to_string();
        match error {
            SitesError::Ca(error) => error.into(),
            SitesError::Known(_) => Self::new(ErrorReason::ConfigInvalid, what)
                .todo("to replace its CA, change the file that `site list` names"),
            SitesError::Io { .. } => {
                Self::new(ErrorReason::DataDirUnwritable, what).todo("check the data directory")
            }
        }
    }
}

/// Runs it.
#[allow(clippy::print_stdout, reason = "the answer of a command")]
pub fn run(args: &Args) -> Result<(), ProgramError> {
    let config = Config::load(&args.config)?;
    match &args.command {
        Command::Add { name, ca } => {
            sites::add(&config, name, ca)?;
            println!("added {name}; a running decryptor takes it in at SIGHUP");
        }
        Command::List => {
            for site in sites::list(&config)? {
                let by = if site.added { "site add" } else { "configuration" };
                println!("{}\t{}\t{by}", site.name, site.ca.display());
            }
        }
    }
    Ok(())
}

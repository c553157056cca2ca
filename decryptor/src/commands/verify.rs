//! `verify`: what the ledger proves about every stream. Reads only; the decryptor may be running.

use crate::commands::authority::Output;
use crate::config::Config;
use crate::intake::registry::Registry;
use crate::ledger::{self, LedgerError};
use crate::verify::{Filter, Report};
use indicatif::{ProgressBar, ProgressStyle};
use pithead_hop::program::{ExitCode, ProgramError};
use pithead_sealing::{DeviceId, Site, StreamName};
use std::path::PathBuf;

/// Arguments of `verify`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The configuration file
    #[arg(short, long, value_name = "FILE", default_value = "decryptor.toml")]
    pub config: PathBuf,
    /// A data directory, instead of the configuration's; it may be read-only
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// This site alone
    #[arg(long)]
    pub site: Option<Site>,
    /// This device alone
    #[arg(long)]
    pub device: Option<DeviceId>,
    /// This stream alone
    #[arg(long)]
    pub stream: Option<StreamName>,
    /// How it is printed
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// Runs it: 0 if nothing is missing that nobody has explained and the ledger is sound, else 1.
///
/// # Errors
/// When there is no ledger to read.
#[allow(clippy::print_stdout, reason = "the answer of a command")]
pub fn run(args: Args) -> Result<ExitCode, ProgramError> {
    let data = match &args.data_dir {
        Some(folder) => folder.clone(),
        None => Config::load(&args.config)?.decryptor.data_dir,
    };
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes}  {eta}") {
        bar.set_style(style);
    }
    let looked = ledger::look(&data.join("ledger"), Registry::default, Registry::replay, |read, total| {
        bar.set_length(total);
        bar.set_position(read);
    })
    .map_err(cannot_read)?;
    bar.finish_and_clear();
    let filter = Filter { site: args.site, device: args.device, stream: args.stream };
    let report = Report { damaged: looked.damaged, ..Report::of(&looked.books, &filter) };
    match args.output {
        Output::Json => println!("{:#}", report.as_json()),
        Output::Table => print!("{}", report.as_text()),
    }
    Ok(if report.is_proof() { ExitCode::OK } else { ExitCode::FAILED })
}

fn cannot_read(error: LedgerError) -> ProgramError {
    let program =
        ProgramError::new(error.reason(), error.to_string()).affects("nothing can be said of the streams");
    match error {
        LedgerError::Moving => program.todo("try again when less arrives"),
        _ => program.todo("name the decryptor's data directory, with --config or --data-dir"),
    }
}

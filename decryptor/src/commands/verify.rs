//! `verify`: what the ledger proves about every stream. Reads only; the decryptor may be running, and so may any number of them.

use crate::commands::authority::Output;
use crate::config::{Config, SourceKind};
use crate::intake::registry::Registry;
use crate::ledger::objects::{Chain, ChainError};
use crate::ledger::{self, LedgerError};
use crate::sink::ObjectsSink;
use crate::source::site;
use crate::store;
use crate::verify::{Beside, Filter, Report};
use indicatif::{ProgressBar, ProgressStyle};
use pithead_hop::program::{ExitCode, ProgramError};
use pithead_sealing::{DeviceId, Site, StreamName};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Arguments of `verify`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The configuration file
    #[arg(short, long, value_name = "FILE", default_value = "decryptor.toml")]
    pub config: PathBuf,
    /// A data directory, instead of the configuration's; it may be read-only
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Of a ledger in a bucket: read every entry from the first, and no checkpoint
    #[arg(long)]
    pub from_first: bool,
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

/// Runs it: 0 if nothing is missing that nobody has explained, the ledger is sound and its output is there, else 1.
///
/// # Errors
/// When there is no ledger to read.
#[allow(clippy::print_stdout, reason = "the answer of a command")]
pub async fn run(args: Args) -> Result<ExitCode, ProgramError> {
    let filter = Filter { site: args.site, device: args.device, stream: args.stream };
    let report = match &args.data_dir {
        Some(folder) => on_disk(folder, &filter)?,
        None => {
            let config = Config::load(&args.config)?;
            match config.source.kind {
                SourceKind::Grpc => on_disk(&config.decryptor.data_dir, &filter)?,
                SourceKind::S3 => in_bucket(&config, &filter, args.from_first).await?,
            }
        }
    };
    match args.output {
        Output::Json => println!("{:#}", report.as_json()),
        Output::Table => print!("{}", report.as_text()),
    }
    Ok(if report.is_proof() { ExitCode::OK } else { ExitCode::FAILED })
}

fn on_disk(data: &Path, filter: &Filter) -> Result<Report, ProgramError> {
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
    Ok(Report { damaged: looked.damaged, ..Report::of(&looked.books, filter) })
}

/// The ledgers of all sites, as every replica together has made them.
async fn in_bucket(config: &Config, filter: &Filter, from_first: bool) -> Result<Report, ProgramError> {
    let sink = store::open_sink(&config.sink).await?;
    let output = ObjectsSink::new(Arc::clone(&sink.store), sink.root.clone());
    let mut whole =
        Report { streams: Vec::new(), latches: Vec::new(), damaged: 0, beside: Beside::default() };
    let asked = |site: &&crate::config::SiteEntry| filter.site.as_ref().is_none_or(|only| *only == site.name);
    for site in config.sites.iter().filter(asked) {
        let chain = Chain::new(Arc::clone(&sink.store), &sink.root, site.name.clone());
        let (books, damage) = site::look(&chain, from_first).await;
        if let Some(error) = damage {
            match &error {
                // What is there before it is told all the same; it is no proof.
                ChainError::Damaged { .. } | ChainError::Missing { .. } => {
                    tracing::error!(event = "ledger.damaged", %error);
                    whole.damaged += 1;
                }
                _ => return Err(ProgramError::from(error).affects("nothing can be said of the streams")),
            }
        }
        let report = Report::of(&crate::intake::pipeline::lock(&books.registry), filter);
        whole.streams.extend(report.streams);
        whole.latches.extend(report.latches);
        let beside = site::beside(&books, &output).await.map_err(|error| {
            ProgramError::from(ChainError::from(error)).affects("nothing can be said of the output")
        })?;
        whole.beside = whole.beside.and(beside);
    }
    whole.streams.sort_by(|a, b| (&a.site, &a.device, &a.stream).cmp(&(&b.site, &b.device, &b.stream)));
    Ok(whole)
}

fn cannot_read(error: LedgerError) -> ProgramError {
    let program =
        ProgramError::new(error.reason(), error.to_string()).affects("nothing can be said of the streams");
    match error {
        LedgerError::Moving => program.todo("try again when less arrives"),
        _ => program.todo("name the decryptor's data directory, with --config or --data-dir"),
    }
}

//! `config check | show | template`.

use crate::config::{Config, SourceKind, TEMPLATE};
use crate::sites;
use crate::unwrap::LocalKeys;
use pithead_hop::program::config::check::Report;
use pithead_hop::program::{ProgramError, files};
use pithead_hop::tls::Pem;
use pithead_proto::errors::v1::ErrorReason;
use std::path::{Path, PathBuf};

/// `config ...`
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// Read the file and every file that it names, look at the data directory, and say what is wrong
    Check(FileArgs),
    /// Show what is in force: the file, the environment and the defaults together
    Show {
        /// Also where each value comes from: a line, a variable, or the default
        #[arg(long)]
        origin: bool,
        #[command(flatten)]
        file: FileArgs,
    },
    /// Print a file with every key and its meaning
    Template,
}

/// Which file, and how the answer is printed.
#[derive(Debug, Clone, clap::Args)]
pub struct FileArgs {
    /// The configuration file
    #[arg(short, long, value_name = "FILE", default_value = "decryptor.toml")]
    config: PathBuf,
    /// For people or for programs
    #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
    output: String,
}

impl FileArgs {
    fn is_json(&self) -> bool {
        self.output == "json"
    }
}

/// Runs it, and gives what is to be printed.
///
/// # Errors
/// The first thing that is wrong, as `run` would say it.
pub fn run(command: &Command) -> Result<String, ProgramError> {
    match command {
        Command::Check(file) => {
            let report = examine(&file.config)?;
            Ok(if file.is_json() { format!("{:#}\n", report.to_json()) } else { report.to_text() })
        }
        Command::Show { origin, file } => {
            // Paths as they are from any folder, since they are relative to the file's.
            let whole = std::path::absolute(&file.config).unwrap_or_else(|_| file.config.clone());
            Config::read(&whole)?.show(*origin, file.is_json())
        }
        Command::Template => Ok(TEMPLATE.to_owned()),
    }
}

/// Reads the file and everything that it names, and looks at the data directory.
///
/// # Errors
/// The first thing that is wrong.
pub fn examine(path: &Path) -> Result<Report, ProgramError> {
    let loaded = Config::read(path)?;
    let config = &loaded.value;
    let located = |error: ProgramError| loaded.locate(error);
    let mut report = Report::new(path);
    let decryptor = &config.decryptor;
    report.data_dir(&decryptor.data_dir, config.uploads.max_size.get(), &["uploads"]).map_err(located)?;
    if config.source.kind == SourceKind::S3 {
        return of_bucket(config, report, located);
    }
    let known = sites::list(config)?;
    if known.is_empty() {
        report.warn("no site is known, and the program does not start without one: `site add NAME --ca PEM`");
        let pem = Pem::read(&decryptor.certificate).map_err(|error| located(error.into()))?;
        report.expiry(&pem);
    } else {
        let tls = super::run::tls(config).map_err(located)?;
        tls.build().map_err(|error| located(error.into()))?;
        for warning in tls.warnings(rustls_pki_types::UnixTime::now()) {
            report.warn(warning);
        }
    }
    let names: Vec<&str> = known.iter().map(|site| site.name.as_str()).collect();
    report.fact("sites", names.join(", "));
    report.private_key(&decryptor.private_key);
    bundles(config, &mut report);
    if let Some(authority) = &config.authority {
        if !authority.dir.is_dir() {
            return Err(located(missing(&authority.dir, "[authority] dir: there is no such folder")));
        }
        for path in authority.statement_key.iter().chain(&authority.statement_passphrase_file) {
            std::fs::metadata(path).map_err(|error| located(missing(path, &error.to_string())))?;
            report.private_key(path);
        }
    }
    unwrap(config, &mut report, located)?;
    report.fact("sink", config.sink.path.display());
    let folder = config.sink.path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    if !folder.is_dir() {
        return Err(located(missing(&config.sink.path, "the folder that it is to lie in does not exist")));
    }
    let files = files::raise_limit();
    if let Some(room) = config.ingest.limits.clone().fit_files(files) {
        report.warn(format!(
            "[ingest.limits] connections are {}, and there are file descriptors for {room}: raise their hard limit",
            config.ingest.limits.connections
        ));
    }
    Ok(report)
}

/// A source in a bucket: no certificates, no ports for gateways, and nothing on this disk but keys. Whether the buckets answer is
/// `check`'s question.
fn of_bucket(
    config: &Config,
    mut report: Report,
    located: impl Fn(ProgramError) -> ProgramError,
) -> Result<Report, ProgramError> {
    let names: Vec<&str> = config.sites.iter().map(|site| site.name.as_str()).collect();
    report.fact("sites", names.join(", "));
    bundles(config, &mut report);
    unwrap(config, &mut report, &located)?;
    for ca in config.source.ca.iter().chain(&config.sink.ca) {
        let pem = Pem::read(ca).map_err(|error| located(error.into()))?;
        pem.certificates().map_err(|error| located(error.into()))?;
    }
    report.fact("source", config.source.url());
    report.fact("queue", config.source.queue.as_deref().unwrap_or("none: the bucket is listed"));
    report.fact("sink", config.sink.url());
    Ok(report)
}

/// Who holds the private keys.
fn unwrap(
    config: &Config,
    report: &mut Report,
    located: impl Fn(ProgramError) -> ProgramError,
) -> Result<(), ProgramError> {
    if !config.unwrap.local.is_empty() {
        let files = config.unwrap.local.iter().map(|key| (key.arn.clone(), key.private_key.as_path()));
        LocalKeys::load(files).map_err(|error| {
            located(
                ProgramError::new(ErrorReason::ConfigInvalid, error.to_string())
                    .todo("check [[unwrap.local]]"),
            )
        })?;
        config.unwrap.local.iter().for_each(|key| report.private_key(&key.private_key));
    }
    report.fact("unwraps", if config.unwrap.kms { "KMS" } else { "keys in files" });
    Ok(())
}

/// A bundle that is not there yet keeps no decryptor from starting: gateways get no keys until it is.
fn bundles(config: &Config, report: &mut Report) {
    for path in &config.keys.bundles {
        if let Err(error) = std::fs::metadata(path) {
            report.warn(format!(
                "{}: {error}: gateways get no keys out of it until it is there",
                path.display()
            ));
        }
    }
}

fn missing(path: &Path, why: &str) -> ProgramError {
    ProgramError::new(ErrorReason::ConfigUnreadable, format!("{}: {why}", path.display()))
        .todo("put it there, or correct the path")
}

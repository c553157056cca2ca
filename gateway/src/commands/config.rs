//! `config check | show | template`.

use std::io::Write;
use std::path::Path;

use pithead_hop::program::config::check::Report;
use pithead_hop::program::{ExitCode, ProgramError, files};

use crate::cli::Output;
use crate::config::{Config, TEMPLATE};
use crate::run::material::Material;

/// Reads the file and everything that it names, and looks at the data directory; says so if all of it is good.
///
/// # Errors
/// The first thing that is wrong, as `run` would say it.
pub fn check(path: &Path, output: Output, out: &mut dyn Write) -> Result<ExitCode, ProgramError> {
    let report = examine(path)?;
    let text = match output {
        Output::Table => report.to_text(),
        Output::Json => super::json(&report.to_json()),
    };
    super::done(out, &text)
}

/// What [`check`] says, for whoever says more.
///
/// # Errors
/// The first thing that is wrong.
pub fn examine(path: &Path) -> Result<Report, ProgramError> {
    let loaded = Config::read(path)?;
    let config = &loaded.value;
    let material = Material::load(config).map_err(|error| loaded.locate(error))?;
    let mut report = Report::new(path);
    report.fact("site", &config.gateway.site);
    report.fact("gateway", &material.name);
    report.fact("authority", &config.trust.authority);
    let refused = config.relay.as_ref().map_or(0, |relay| relay.refused_size.get());
    let budget = [config.spool.max_size.get(), config.uploads.max_size.get(), refused];
    report
        .data_dir(
            &config.gateway.data_dir,
            budget.into_iter().fold(0, u64::saturating_add),
            &["spool", "uploads", "refused"],
        )
        .map_err(|error| loaded.locate(error))?;
    report.private_key(&config.gateway.private_key);
    if let Some(enroll) = &config.enroll {
        report.private_key(&enroll.ca_key);
    }
    for warning in material.warnings() {
        report.warn(warning);
    }
    if let (.., Some(room)) = config.fitted(files::raise_limit()) {
        report.warn(format!(
            "[ingest.limits] and [network.limits] connections are {} together, and there are file descriptors for {room}: raise \
             their hard limit",
            config.asked_connections()
        ));
    }
    // Whether there is a NAT, nobody here can know.
    report.note(format!(
        "at most {} devices at a time from one address ([ingest.limits] connections_per_ip); raise it for a NAT",
        config.ingest.limits.connections_per_ip
    ));
    Ok(report)
}

/// What is in force after environment and defaults; with `origin`, and where each value comes from. Secrets are only ever
/// named by path.
///
/// # Errors
/// What is wrong with the file.
pub fn show(
    path: &Path,
    origin: bool,
    output: Output,
    out: &mut dyn Write,
) -> Result<ExitCode, ProgramError> {
    // Paths as they are from any folder, since they are relative to the file's.
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    super::done(out, &Config::read(&whole)?.show(origin, output == Output::Json)?)
}

/// Every key, commented.
///
/// # Errors
/// When the output cannot be written.
pub fn template(out: &mut dyn Write) -> Result<ExitCode, ProgramError> {
    super::done(out, TEMPLATE)
}

//! `config check | show | template`.

use std::io::Write;
use std::path::Path;

use pithead_hop::program::{ExitCode, ProgramError, files};

use crate::config::{Config, TEMPLATE};
use crate::run::material::Material;

/// Reads the file and everything that it names; says so if all of it is good.
///
/// # Errors
/// The first thing that is wrong, as `run` would say it.
pub fn check(path: &Path, out: &mut dyn Write) -> Result<ExitCode, ProgramError> {
    let config = Config::load(path)?;
    let material = Material::load(&config)?;
    let mut text = format!(
        "{}: good\n  site {}, gateway {}, authority {}\n",
        path.display(),
        config.gateway.site,
        material.name,
        config.trust.authority
    );
    for warning in material.warnings() {
        text += &format!("  warning: {warning}\n");
    }
    if let (.., Some(room)) = config.fitted(files::raise_limit()) {
        text += &format!(
            "  warning: [ingest.limits] and [network.limits] connections are {} together, and there are file descriptors for \
             {room}: raise their hard limit\n",
            config.asked_connections()
        );
    }
    // Whether there is a NAT, nobody here can know.
    text += &format!(
        "  note: at most {} devices at a time from one address ([ingest.limits] connections_per_ip); raise it for a NAT\n",
        config.ingest.limits.connections_per_ip
    );
    super::done(out, &text)
}

/// What is in force after defaults and environment.
///
/// # Errors
/// What is wrong with the file.
pub fn show(path: &Path, out: &mut dyn Write) -> Result<ExitCode, ProgramError> {
    let config = Config::load(path)?;
    // Holds paths and limits; secrets are only ever named by path.
    super::done(out, &format!("{config:#?}\n"))
}

/// Every key, commented.
///
/// # Errors
/// When the output cannot be written.
pub fn template(out: &mut dyn Write) -> Result<ExitCode, ProgramError> {
    super::done(out, TEMPLATE)
}

//! `reload`: the running gateway reads its file again, and says what came of it.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use pithead_hop::program::admin::AdminAddress;
use pithead_hop::program::{ExitCode, ProgramError};
use pithead_proto::errors::v1::ErrorReason;
use serde_json::Value;

use super::admin_client;
use crate::cli::{ConfigArg, Output, OutputArg};
use crate::config::{Admin, Config, ENV_PREFIX};

/// Every live connection is held against the new certificates before there is an answer.
const LIMIT: Duration = Duration::from_secs(60);

/// `reload ...`. A gateway reads the file that it was started with, whichever is named here.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// Where the running gateway listens, if [admin] listen is another in the file by now.
    #[arg(long, value_name = "IP:PORT|unix:PATH")]
    admin: Option<AdminAddress>,
    #[command(flatten)]
    output: OutputArg,
}

/// Gives the order, and waits for what comes of it.
///
/// # Errors
/// When no gateway answers.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<ExitCode, ProgramError> {
    let path = &args.config.config;
    let (admin, fault) = match (&args.admin, Config::load(path)) {
        (Some(admin), loaded) => (admin.clone(), loaded.err()),
        (None, Ok(config)) => (config.admin.listen, None),
        // A file that is wrong is what the gateway has to say something about: it is asked where it is likely to be.
        (None, Err(error)) => (likely(path), Some(error)),
    };
    let outcome = order(&admin).map_err(|error| match fault {
        Some(fault) if error.reason == ErrorReason::PeerUnreachable => ProgramError::from(fault)
            .affects("no gateway was told to reload: none answered")
            .exit(ExitCode::FAILED),
        _ => error,
    })?;
    let text = match args.output.output {
        Output::Json => super::json(&outcome),
        Output::Table => outcome["words"].as_str().unwrap_or_default().to_owned(),
    };
    super::write(out, &text)?;
    if let Some(file) = outcome["file"].as_str()
        && !is_same(path, Path::new(file))
    {
        let what = format!("{} was not read: the gateway that runs goes by {file}", path.display());
        return Err(ProgramError::new(ErrorReason::ConfigInvalid, what)
            .affects("that file was read again, as is said above")
            .todo(format!("change {file}, or start the gateway with -c {}", path.display()))
            .exit(ExitCode::FAILED));
    }
    let waits = outcome["needs_restart"].as_array().is_some_and(|waiting| !waiting.is_empty());
    Ok(match outcome["taken"].as_bool() {
        Some(true) if waits => ExitCode::DEGRADED,
        Some(true) => ExitCode::OK,
        _ => ExitCode::FAILED,
    })
}

/// Gives the order, and gets what came of it, taken or refused.
///
/// # Errors
/// When no gateway answers, or it stops.
pub(super) fn order(admin: &AdminAddress) -> Result<Value, ProgramError> {
    let unreachable = |why: &str| admin_client::unreachable(admin, why);
    let answer = admin_client::request_within(LIMIT, admin, "POST", "/reload")
        .map_err(|error| unreachable(&error.to_string()))?;
    let said = answer.body.trim_end();
    match answer.status {
        200 | 409 => serde_json::from_str(said).map_err(|error| unreachable(&format!("its answer: {error}"))),
        503 => Err(ProgramError::new(ErrorReason::Draining, said).exit(ExitCode::NOT_READY)),
        404 => Err(unreachable("it is of a version that does not know this order")),
        status => Err(unreachable(&format!("status {status}: {said}"))),
    }
}

/// Whether both name one file. What is not there is the same as what has its name.
fn is_same(one: &Path, other: &Path) -> bool {
    let whole = |path: &Path| {
        path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned())
    };
    whole(one) == whole(other)
}

/// [admin] listen of a file that does not load: the variable, what stands there all the same, or the default.
fn likely(path: &Path) -> AdminAddress {
    let variable = std::env::var(format!("{ENV_PREFIX}_ADMIN__LISTEN")).ok();
    let stands = || {
        let text = std::fs::read_to_string(path).ok()?;
        let table: toml::Table = toml::from_str(&text).ok()?;
        Some(table.get("admin")?.get("listen")?.as_str()?.to_owned())
    };
    let address = variable.or_else(stands).and_then(|text| text.parse().ok());
    address.unwrap_or_else(|| Admin::default().listen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_the_same_by_any_name_and_another_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (one, link, other) =
            (folder.path().join("a.toml"), folder.path().join("b.toml"), folder.path().join("c.toml"));
        std::fs::write(&one, "").unwrap();
        std::os::unix::fs::symlink(&one, &link).unwrap();
        assert!(is_same(&one, &link) && is_same(&other, &other) && !is_same(&one, &other));
    }

    #[test]
    fn a_gateway_whose_file_is_wrong_is_asked_where_the_file_says_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway.toml");
        std::fs::write(&path, "[gatewy]\n[admin]\nlisten = \"unix:/run/a.sock\"\n").unwrap();
        assert_eq!(likely(&path).to_string(), "unix:/run/a.sock");
        std::fs::write(&path, "[gateway\n").unwrap();
        assert_eq!(likely(&path), Admin::default().listen);
    }
}

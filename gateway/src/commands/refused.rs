//! `refused list | retry`: what the far end will never take, and sending it again once somebody has mended why.
//!
//! Where several gateways share the lanes, the area is that of whoever owns them. Elsewhere the folder is as it was when that was this
//! gateway, and a list of it says so first.

use std::io::Write;
use std::path::Path;

use pithead_hop::program::{ExitCode, ProgramError};
use pithead_proto::errors::v1::ErrorReason;
use serde_json::{Value, json};

use super::admin_client;
use crate::cli::Output;
use crate::config::{Config, Engine};
use crate::envelopes::refused::{self, Entry, Listed};
use crate::run::directory;

/// Everything in the area, out of the data directory: also while no gateway runs.
///
/// # Errors
/// When the folder cannot be read. Ends with 1 when a reason in it is damaged.
pub fn list(path: &Path, output: Output, out: &mut dyn Write) -> Result<ExitCode, ProgramError> {
    let config = Config::load(path)?;
    let Listed { entries, unreadable } = listed(&config)?;
    let aged = (config.spool.engine == Engine::Jetstream).then(|| aged(&config)).flatten();
    let damaged = |name: &String| json!({ "name": name, "damaged": true });
    let text = match output {
        Output::Json => {
            if let Some(why) = aged {
                tracing::warn!(event = "refused.of_a_term_before", why);
            }
            super::json(&Value::Array(
                entries.iter().map(describe).chain(unreadable.iter().map(damaged)).collect(),
            ))
        }
        Output::Table => {
            let aged = aged.map(|why| format!("{why}\n")).into_iter();
            aged.chain(entries.iter().map(line)).chain(unreadable.iter().map(damaged_line)).collect()
        }
    };
    super::write(out, &text)?;
    Ok(if unreadable.is_empty() { ExitCode::OK } else { ExitCode::FAILED })
}

/// Why what lies here may not be the area as it is, if that is so.
fn aged(config: &Config) -> Option<String> {
    let why = match admin_client::statusz(&config.admin.listen) {
        Ok(status) if status["spool"]["owner_here"] == true => return None,
        Ok(status) => match status["spool"]["standing_by"].as_str() {
            Some(owner) => format!("this gateway stands by: {owner}, and its list is the one that counts"),
            None => "this gateway stands by: the list of the one that takes the envelopes counts".to_owned(),
        },
        Err(_) => "no gateway runs here: another one of the site may have the list that counts".to_owned(),
    };
    Some(format!("{why}; what follows is how it was when this one owned the lanes last"))
}

fn damaged_line(name: &String) -> String {
    format!(
        "damaged {name}\n  its reason does not read; take {name}.envelope to the cloud by hand, if it is there\n"
    )
}

/// Puts entries back into the spool of the running gateway: those that are named, or all. Each leaves the area when it is
/// durable in the spool.
///
/// # Errors
/// When no gateway answers. Of several, the others are tried all the same, and the command ends with 1.
pub fn retry(
    path: &Path,
    names: Vec<String>,
    all: bool,
    out: &mut dyn Write,
) -> Result<ExitCode, ProgramError> {
    let config = Config::load(path)?;
    let names =
        if all { listed(&config)?.entries.into_iter().map(|(name, _)| name).collect() } else { names };
    let mut code = ExitCode::OK;
    for name in names {
        let answer = admin_client::post(&config.admin.listen, &format!("/refused/retry/{name}"));
        let said = match answer {
            Ok(said) => said.trim_end().to_owned(),
            Err(error) if error.exit == ExitCode::PEER_UNAVAILABLE => return Err(error),
            Err(error) => {
                code = ExitCode::FAILED;
                error.what
            }
        };
        super::write(out, &format!("{name}: {said}\n"))?;
    }
    Ok(code)
}

fn listed(config: &Config) -> Result<Listed, ProgramError> {
    let folder = directory::refused_below(&config.gateway.data_dir);
    refused::list(&folder).map_err(|error| {
        ProgramError::new(ErrorReason::DataDirUnwritable, format!("{}: {error}", folder.display()))
            .todo("run it as the user of the gateway, and look at the disk")
    })
}

fn describe((name, entry): &(String, Entry)) -> Value {
    json!({
        "name": name,
        "site": entry.site,
        "device": entry.device,
        "stream": entry.stream,
        "run": entry.run,
        "seq": entry.seq,
        "bytes": entry.bytes,
        "large": entry.large,
        "reason": entry.reason,
        "code": entry.code,
        "detail": entry.detail,
        "refused_at_ms": entry.refused_at_ms,
    })
}

fn line((name, entry): &(String, Entry)) -> String {
    let large = if entry.large {
        "  large: its bytes are in DATA/uploads as long as this entry is here\n"
    } else {
        ""
    };
    format!("{} {} {:>9} B  {name}\n  {}\n{large}", entry.code, entry.reason, entry.bytes, entry.detail)
}

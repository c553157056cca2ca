//! `inspect FILE`: what a sealed envelope says in clear, and whether its structure is sound. Needs no key.
//!
//! Everything shown is a claim: only a holder of the private key can tell whether it was changed. Memory is constant.

use std::io::Read;
use std::path::PathBuf;

use pithead_hop::program::ProgramError;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::envelope::{FormatError, Header, Profile, Structure, StructureChecker};
use serde_json::{Value, json};

use super::authority::Output;
use super::open::{open_input, refused};

/// Arguments of `inspect`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The sealed envelope; `-` is standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// How it is printed
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// What is seen without a key.
#[derive(Debug)]
pub struct Inspection {
    /// The header, if it could be read.
    pub header: Option<Header>,
    /// The structure of the whole, or the first fault in it.
    pub structure: Result<Structure, FormatError>,
}

/// Reads all of `input`.
///
/// # Errors
/// Of reading alone; what is wrong with the envelope is part of the answer.
pub fn inspect(input: &mut impl Read) -> std::io::Result<Inspection> {
    let mut checker = StructureChecker::new();
    let mut header = None;
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let read = match input.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        // The header may be complete in the chunk in which the body's first fault is: it is looked at alone first.
        if header.is_none() && checker.seen() == 0 {
            header = Header::parse(&bytes::Bytes::copy_from_slice(&chunk[..read])).ok();
        }
        if let Err(error) = checker.push(&chunk[..read]) {
            return Ok(Inspection { header, structure: Err(error) });
        }
        header = header.or_else(|| checker.header().cloned());
    }
    match checker.finish() {
        Ok((complete, structure)) => Ok(Inspection { header: Some(complete), structure: Ok(structure) }),
        Err(error) => Ok(Inspection { header, structure: Err(error) }),
    }
}

/// Runs it.
///
/// # Errors
/// The structure's first fault, after what could be read was printed.
#[allow(clippy::print_stdout, reason = "the answer of a command")]
pub async fn run(args: Args) -> Result<(), ProgramError> {
    let (mut input, _) = open_input(&args.file)?;
    let inspection = inspect(&mut input).map_err(|error| {
        ProgramError::new(
            ErrorReason::ConfigUnreadable,
            format!("cannot read {}: {error}", args.file.display()),
        )
    })?;
    let json = as_json(&inspection);
    match args.output {
        Output::Json => println!("{json:#}"),
        Output::Table => print!("{}", as_table(&json)),
    }
    match inspection.structure {
        Ok(_) => Ok(()),
        Err(error) => Err(refused(&error)),
    }
}

/// The answer for programs.
pub fn as_json(inspection: &Inspection) -> Value {
    let structure = match &inspection.structure {
        Ok(structure) => json!({
            "sound": true, "frames": structure.frames, "plaintext_bytes": structure.plaintext_len,
            "total_bytes": structure.total_len,
        }),
        Err(error) => json!({ "sound": false, "class": error.class(), "what": error.to_string() }),
    };
    let Some(header) = &inspection.header else {
        return json!({ "authentic": "unknown", "structure": structure });
    };
    let profile = Profile::of(header);
    let identity = profile.as_ref().ok().map(|profile| {
        let identity = profile.identity();
        json!({
            "site": identity.site.as_str(), "device": identity.device.as_str(), "stream": identity.stream.as_str(),
            "run": identity.run.to_string(), "seq": identity.seq.get(),
        })
    });
    let edks = header.edks().iter().map(|edk| {
        json!({
            "provider": String::from_utf8_lossy(edk.provider_id()), "key": String::from_utf8_lossy(edk.provider_info()),
            "ciphertext_bytes": edk.ciphertext().len(), "hash": edk.hash().to_string(),
        })
    });
    json!({
        "authentic": "unknown",
        "identity": identity,
        "profile": profile.as_ref().map_or_else(|error| json!({ "met": false, "rule": error.code(), "what": error.to_string() }),
            |profile| json!({
                "met": true,
                "signed": profile.signature().is_some(),
                "signing_kid": profile.signature().map(|claim| claim.kid.to_string()),
            })),
        "context": header.context().iter().map(|(key, value)| (key.to_owned(), json!(value))).collect::<serde_json::Map<_, _>>(),
        "edks": edks.collect::<Vec<_>>(),
        "message_id": hex::encode(header.message_id().as_bytes()),
        "header_bytes": header.wire_len(),
        "frame_bytes": header.frame_length(),
        "structure": structure,
    })
}

fn as_table(json: &Value) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    // Writing to a String does not fail. Values come from outside: they are printed escaped, as JSON has them.
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<10} {value}");
    };
    match &json["identity"] {
        Value::Object(identity) => {
            let part = |name: &str| match &identity[name] {
                Value::String(part) => part.clone(),
                other => other.to_string(),
            };
            let parts = ["site", "device", "stream", "run", "seq"].map(part);
            line("identity", &parts.join("/"));
        }
        _ if json["profile"].is_object() => line("identity", "none: the profile is not met"),
        _ => {}
    }
    if let Some(rule) = json["profile"]["what"].as_str() {
        line("profile", rule);
    } else if let Some(signed) = json["profile"]["signed"].as_bool() {
        let kid = json["profile"]["signing_kid"].as_str().unwrap_or_default();
        line(
            "profile",
            &if signed {
                format!("met; carries a session signature that names the key {kid}")
            } else {
                "met; no session signature".to_owned()
            },
        );
    }
    for (key, value) in json["context"].as_object().into_iter().flatten() {
        line("context", &format!("{} = {value}", Value::from(key.as_str())));
    }
    for edk in json["edks"].as_array().into_iter().flatten() {
        line("edk", &format!("{} {} ({} bytes)", edk["provider"], edk["key"], edk["ciphertext_bytes"]));
    }
    if let Some(header) = json["header_bytes"].as_u64() {
        line("sizes", &format!("header {header} B, frames of {} B", json["frame_bytes"]));
    }
    let structure = &json["structure"];
    if structure["sound"] == true {
        line(
            "structure",
            &format!(
                "sound: {} frames, {} B of plaintext, {} B in all",
                structure["frames"], structure["plaintext_bytes"], structure["total_bytes"]
            ),
        );
    } else {
        line("structure", structure["what"].as_str().unwrap_or_default());
    }
    line("authentic", "not known without the private key");
    text
}

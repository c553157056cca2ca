//! `status`: how the running decryptor is, and what to do, with an exit code for scripts. And `version`.

use crate::commands::authority::Output;
use crate::config::Config;
use pithead_hop::program::admin::AdminAddress;
use pithead_hop::program::paint::{Paint, Tone};
use pithead_hop::program::{ExitCode, ProgramError, ask, human};
use pithead_proto::errors::v1::ErrorReason;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Arguments of `status`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The configuration file
    #[arg(short, long, value_name = "FILE", default_value = "decryptor.toml")]
    pub config: PathBuf,
    /// How it is printed
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// `/statusz` of the running decryptor.
///
/// # Errors
/// When nobody answers.
pub fn statusz(admin: &AdminAddress) -> Result<Value, ProgramError> {
    let away = |why: String| {
        ProgramError::new(ErrorReason::PeerUnreachable, format!("no decryptor answers on {admin}: {why}"))
            .todo("check that it runs and that [admin] listen is the same in its configuration")
    };
    let answer = ask::request(admin, "GET", "/statusz").map_err(|error| away(error.to_string()))?;
    if answer.status != 200 {
        return Err(away(format!("status {}", answer.status)));
    }
    serde_json::from_str(&answer.body).map_err(|error| away(error.to_string()))
}

/// Whether it takes envelopes.
pub fn serves(status: &Value) -> bool {
    status["ready"] == true
}

/// What has to be looked at, each with what to do.
#[must_use]
pub fn attention(status: &Value) -> Vec<String> {
    let number = |section: &str, name: &str| status[section][name].as_u64().unwrap_or(0);
    let own = |name: &str| status[name].as_u64().unwrap_or(0);
    let envelopes = |count| human::some(count, "envelope", "envelopes");
    let area = if status["bucket"].is_null() { "in DATA/refused" } else { "below aside/refused of [sink]" };
    let refused = format!(
        "were refused for good: each is {area} with its reason, and `explain` says what to do about that"
    );
    let said = [
        (number("envelopes", "refused"), refused.as_str()),
        (
            number("envelopes", "conflict"),
            "came with other bytes under a number that was used: both are kept; `explain CONFLICT` says what to look for",
        ),
        (
            number("envelopes", "conflict_unkept"),
            "came with other bytes under a number that was used, and there was no room to keep them",
        ),
        (
            number("signatures", "invalid"),
            "had a signature that does not hold: somebody has sealed in a device's name, see `explain SIGNATURE_INVALID`",
        ),
        (
            number("signatures", "unknown_key"),
            "were signed by keys that nobody has registered: `device add` takes them",
        ),
    ];
    let lamps = status["dimensions"].as_object().into_iter().flatten();
    let lamps = lamps.filter(|(_, lamp)| lamp["level"] != "ok");
    let mut attention: Vec<String> =
        lamps.map(|(name, lamp)| format!("{name}: {}", text(&lamp["words"]))).collect();
    let counted = said
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{} since the start {what}", envelopes(count)));
    attention.extend(counted);
    if status["signatures"]["registry_refused"] == true {
        attention.push("the registry of devices is not believed; the one before stays in force: see the log, and mend the file".into());
    }
    for (name, what) in [
        (
            "frozen_devices",
            "still seal by an old statement although there is a newer one: look at their gateway",
        ),
        (
            "unknown_statement_devices",
            "name a statement that was never accepted here: bring its bundle, or find out who made it",
        ),
    ] {
        if own(name) > 0 {
            attention.push(format!("{} {what}", human::some(own(name), "device", "devices")));
        }
    }
    let sites = status["authority"].as_array();
    for site in sites.into_iter().flatten().filter(|site| !site["retry_at"].is_null()) {
        let site = text(&site["site"]);
        attention.push(format!(
            "the statement of {site} could not be issued again; it is tried, and the log says why"
        ));
    }
    attention
}

/// Asks, and prints.
///
/// # Errors
/// When nobody answers.
#[allow(clippy::print_stdout, reason = "the answer of a command")]
pub fn run(args: &Args, paint: Paint) -> Result<ExitCode, ProgramError> {
    let config = Config::load(&args.config)?;
    let mut status = statusz(&config.admin.listen)?;
    let attention = attention(&status);
    let code = match (serves(&status), attention.is_empty()) {
        (true, true) => ExitCode::OK,
        (true, false) => ExitCode::DEGRADED,
        (false, _) => ExitCode::NOT_READY,
    };
    match args.output {
        Output::Json => {
            status["attention"] = json!(attention);
            println!("{status:#}");
        }
        Output::Table => print!("{}", table(&status, &attention, paint)),
    }
    Ok(code)
}

fn text(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn table(status: &Value, attention: &[String], paint: Paint) -> String {
    let (phase, serves) = (text(&status["phase"]), serves(status));
    let tone = if serves { Tone::Good } else { Tone::Bad };
    let mut shown = format!("pithead-decryptor {}: {}\n", text(&status["version"]), paint.word(tone, &phase));
    shown += match (serves, attention.is_empty()) {
        (true, true) => {
            "All is well: what gateways bring is opened, and durable in the sink before they are told so.\n"
        }
        (true, false) => "Envelopes are taken, and something has to be looked at.\n",
        (false, _) => "Nothing is taken from gateways: they keep what they have until it serves.\n",
    };
    for what in attention {
        shown += &format!("  {} {what}\n", paint.word(Tone::Warning, "!"));
    }
    shown.push('\n');
    for (name, lamp) in status["dimensions"].as_object().into_iter().flatten() {
        let tone = match lamp["level"].as_str() {
            Some("ok") => Tone::Good,
            Some("degraded") => Tone::Warning,
            _ => Tone::Bad,
        };
        let level = paint.word(tone, &format!("{:9}", text(&lamp["level"])));
        let age = human::seconds(lamp["for_s"].as_u64().unwrap_or(0));
        shown += &format!("  {name:7} {level} {age:>12}  {}\n", text(&lamp["words"]));
    }
    // What is nested deeper is for programs.
    for (name, value) in status.as_object().into_iter().flatten().filter(|(name, _)| *name != "dimensions") {
        let flat =
            |section: &&serde_json::Map<String, Value>| section.values().all(|value| !value.is_object());
        if let Some(section) = value.as_object().filter(flat) {
            shown += &format!("{}\n", paint.word(Tone::Heading, name));
            for (name, value) in section.iter().filter(|(_, value)| !value.is_null()) {
                shown += &format!("  {:24} {}\n", name.replace('_', " "), fact(name, value));
            }
        }
    }
    shown += &format!("{}\n", paint.word(Tone::Heading, "totals"));
    for (name, value) in status.as_object().into_iter().flatten() {
        if value.is_number() {
            shown += &format!(
                "  {:24} {}\n",
                name.trim_end_matches("_bytes").replace('_', " "),
                fact(name, value)
            );
        }
    }
    for site in status["authority"].as_array().into_iter().flatten() {
        shown += &format!("statement of {}: ", text(&site["site"]));
        // A site whose authority has said nothing yet has none of these.
        let facts = [("", "sequence"), ("issued ", "issued_at"), ("due ", "due_at")].map(|(word, key)| {
            let value = &site[key];
            (!value.is_null()).then(|| format!("{word}{}", text(value)))
        });
        let facts: Vec<String> = facts.into_iter().flatten().collect();
        shown += &if facts.is_empty() { "none yet".to_owned() } else { facts.join(", ") };
        shown.push('\n');
    }
    let peers: Vec<String> = status["peers"].as_array().into_iter().flatten().map(text).collect();
    shown +=
        &format!("connected: {}\n", if peers.is_empty() { "nobody".to_owned() } else { peers.join(", ") });
    shown
}

fn fact(name: &str, value: &Value) -> String {
    match value.as_u64() {
        Some(number) if name.ends_with("_bytes") => human::bytes(number),
        // Nothing lasts for 31 years: from there on it is a moment.
        Some(number) if name.ends_with("_s") && number >= 1_000_000_000 => human::moment(number),
        Some(number) if name.ends_with("_s") => human::seconds(number),
        Some(number) => human::count(number),
        None => text(value),
    }
}

/// What `version` says.
#[must_use]
pub fn version(output: Output) -> String {
    let (version, opener) = (env!("CARGO_PKG_VERSION"), pithead_sealing::OPENER_COMPILED_IN);
    let otlp = pithead_hop::program::traces::COMPILED_IN;
    match output {
        Output::Json => {
            let said =
                json!({ "name": "pithead-decryptor", "version": version, "opener": opener, "otlp": otlp });
            format!("{said:#}\n")
        }
        Output::Table => {
            let say = |is_in| if is_in { "compiled in" } else { "not compiled in" };
            format!("pithead-decryptor {version}\nopener: {}\notlp: {}\n", say(opener), say(otlp))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_has_no_line() {
        let mut status = status(0);
        status["tls"] = json!({ "crl_next_update_s": null, "certificate_expires_at_s": 61 });
        let shown = table(&status, &[], Paint::default());
        assert!(!shown.contains("null") && shown.contains("certificate expires at s"), "{shown}");
        assert!(shown.contains("statement of pit-7: none yet\n"), "{shown}");
        status["authority"][0] =
            json!({ "site": "pit-7", "sequence": 12, "issued_at": "2026-11-27", "due_at": null });
        assert!(
            table(&status, &[], Paint::default()).contains("statement of pit-7: 12, issued 2026-11-27\n")
        );
    }

    fn status(refused: u64) -> Value {
        json!({
            "phase": "serving", "ready": true, "version": "0.1.0",
            "dimensions": { "sink": { "level": "ok", "words": "writes", "for_s": 61 } }, "plaintext_bytes": 2048, "lines": 3,
            "envelopes": { "applied": 12_000, "refused": refused, "oldest_under_way_s": 61 },
            "signatures": { "invalid": 0, "registry_refused": false },
            "authority": [{ "site": "pit-7", "retry_at": null }],
            "peers": [],
        })
    }

    #[test]
    fn what_was_refused_has_to_be_looked_at_and_nothing_else_is_made_up() {
        assert!(attention(&status(0)).is_empty());
        assert!(attention(&json!({})).is_empty());
        let said = attention(&status(2));
        assert_eq!(said.len(), 1);
        assert!(said[0].starts_with("2 envelopes since the start were refused for good"), "{said:?}");
        let mut full = status(0);
        full["dimensions"]["sink"] = json!({ "level": "degraded", "words": "nearly full", "for_s": 1 });
        assert_eq!(attention(&full), ["sink: nearly full"]);
        let mut retried = status(0);
        retried["authority"][0]["retry_at"] = json!("2026-11-27T00:00:00Z");
        assert!(attention(&retried)[0].contains("the statement of pit-7 could not be issued again"));
    }

    #[test]
    fn numbers_are_shown_with_their_units() {
        let shown = table(&status(0), &[], Paint::default());
        assert!(shown.starts_with("pithead-decryptor 0.1.0: serving\nAll is well"), "{shown}");
        assert!(shown.contains("applied                  12,000\n"), "{shown}");
        assert!(shown.contains("oldest under way s       1 min 1 s\n"), "{shown}");
        assert!(shown.contains("plaintext                2.0 KiB\n"), "{shown}");
        assert!(shown.contains("  sink    ok           1 min 1 s  writes\n"), "{shown}");
        assert!(shown.ends_with("connected: nobody\n"), "{shown}");
    }
}

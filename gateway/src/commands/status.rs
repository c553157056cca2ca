//! `status`: how the running gateway is, what that means, and what to do, with an exit code for scripts.

use std::io::Write;
use std::path::Path;

use pithead_hop::program::paint::{Paint, Tone};
use pithead_hop::program::{ExitCode, ProgramError, human};
use serde_json::{Value, json};

use super::admin_client;
use super::meaning::{self, Meaning, text};
use super::reading::Numbers;
use crate::cli::Output;
use crate::config::Config;

/// Asks the admin port.
///
/// # Errors
/// When nobody answers there.
pub fn print(
    path: &Path,
    output: Output,
    paint: Paint,
    out: &mut dyn Write,
) -> Result<ExitCode, ProgramError> {
    let config = Config::load(path)?;
    let mut status = admin_client::statusz(&config.admin.listen)?;
    let numbers = Numbers::parse(&admin_client::get(&config.admin.listen, "/metrics")?);
    let meaning = meaning::of(&status, &numbers);
    let code = code(&status, &meaning);
    let shown = match output {
        Output::Json => {
            status["meaning"] = json!(meaning.sentence);
            status["attention"] = json!(meaning.attention);
            super::json(&status)
        }
        Output::Table => table(&status, &meaning, paint),
    };
    super::write(out, &shown)?;
    Ok(code)
}

fn code(status: &Value, meaning: &Meaning) -> ExitCode {
    let lamps = status["dimensions"].as_object();
    let all_well = lamps.is_some_and(|lamps| lamps.values().all(|lamp| lamp["level"] == "ok"));
    match status["ready"].as_bool() {
        Some(true) if all_well && meaning.attention.is_empty() => ExitCode::OK,
        Some(true) => ExitCode::DEGRADED,
        _ => ExitCode::NOT_READY,
    }
}

/// How a lamp is painted.
pub(super) fn tone(level: &Value) -> Tone {
    match level.as_str() {
        Some("ok") => Tone::Good,
        Some("degraded") => Tone::Warning,
        _ => Tone::Bad,
    }
}

fn table(status: &Value, meaning: &Meaning, paint: Paint) -> String {
    let ready = if status["ready"] == true { "ready" } else { "not ready" };
    let mut shown = format!("{} at {}: {ready}\n", text(&status["gateway"]), text(&status["site"]));
    for (name, lamp) in status["dimensions"].as_object().into_iter().flatten() {
        let (level, words) = (text(&lamp["level"]), text(&lamp["words"]));
        let age = lamp["for_s"].as_u64().map_or_else(|| "-".to_owned(), human::seconds);
        let level = paint.word(tone(&lamp["level"]), &format!("{level:9}"));
        shown += &format!("  {name:7} {level} {age:>12}  {words}\n");
    }
    shown += &format!("\n{}\n", meaning.sentence);
    for what in &meaning.attention {
        shown += &format!("  {} {what}\n", paint.word(Tone::Warning, "!"));
    }
    for gateway in status["gateways"].as_array().into_iter().flatten() {
        shown += &neighbour(gateway, paint);
    }
    let up = status["uptime_s"].as_u64().map_or_else(|| "-".to_owned(), human::seconds);
    shown += &format!("version {}, up {up}\n", text(&status["version"]));
    for section in ["ingest", "keys", "spool", "relay"] {
        shown += &format!("\n{}\n", paint.word(Tone::Heading, section));
        for (name, value) in status[section].as_object().into_iter().flatten() {
            if !value.is_null() {
                let (name, value) = fact(name, value);
                shown += &format!("  {name:24} {value}\n");
            }
        }
    }
    shown
}

/// A gateway of the site, in a line.
fn neighbour(gateway: &Value, paint: Paint) -> String {
    let is = |key: &str| gateway[key] == true;
    let (tone, state) = match (is("present"), is("ready")) {
        (true, true) => (Tone::Good, "ready"),
        (true, false) => (Tone::Warning, "not ready"),
        (false, _) => (Tone::Bad, "away"),
    };
    let mut facts = vec![match gateway["silent_s"].as_u64() {
        Some(silent) if !is("present") => format!("last heard of {} ago", human::seconds(silent)),
        _ => human::some(gateway["connections"].as_u64().unwrap_or(0), "connection", "connections"),
    }];
    if is("takes_envelopes") {
        facts.push("takes the envelopes".to_owned());
    }
    if let Some(statement) = gateway["statement"].as_str() {
        facts.push(format!("statement {}", text(&json!(statement))));
    }
    if is("here") {
        facts.push("this one".to_owned());
    }
    format!(
        "  {:12} {}  {}\n",
        text(&gateway["name"]),
        paint.word(tone, &format!("{state:9}")),
        facts.join(", ")
    )
}

/// Seconds from here on count from 1970: nothing lasts for 31 years.
const MOMENTS_FROM: u64 = 1_000_000_000;

/// A fact as people read it: the unit goes from its name into its value.
fn fact(name: &str, value: &Value) -> (String, String) {
    let Some(number) = value.as_u64() else { return (name.replace('_', " "), text(value)) };
    if let Some(stem) = name.strip_suffix("_s").filter(|_| number >= MOMENTS_FROM) {
        return (stem.replace('_', " "), human::moment(number));
    }
    type Written = fn(u64) -> String;
    let units: [(&str, &str, Written); 4] = [
        ("_bytes_per_s", "", |number| format!("{}/s", human::bytes(number))),
        ("_bytes", "", human::bytes),
        ("_s_ago", "", |number| format!("{} ago", human::seconds(number))),
        ("_s", "", human::seconds),
    ];
    for (ending, instead, show) in units {
        if let Some(stem) = name.strip_suffix(ending) {
            return (format!("{}{instead}", stem.replace('_', " ")), show(number));
        }
    }
    let plain = if name == "bytes" { human::bytes(number) } else { human::count(number) };
    (name.replace('_', " "), plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_says_well_degraded_or_not_ready() {
        let status = |ready: bool, relay: &str| json!({ "ready": ready, "dimensions": { "keys": { "level": "ok" }, "relay": { "level": relay } } });
        let well = Meaning { sentence: String::new(), attention: vec![] };
        assert_eq!(code(&status(true, "ok"), &well), ExitCode::OK);
        assert_eq!(code(&status(true, "degraded"), &well), ExitCode::DEGRADED);
        assert_eq!(code(&status(false, "ok"), &well), ExitCode::NOT_READY);
        assert_eq!(code(&json!({}), &well), ExitCode::NOT_READY);
        let refused = Meaning { sentence: String::new(), attention: vec!["1 envelope was refused".into()] };
        assert_eq!(code(&status(true, "ok"), &refused), ExitCode::DEGRADED);
    }

    #[test]
    fn a_gateway_of_the_site_is_a_line() {
        let paint = Paint::default();
        let mut gateway = json!({
            "name": "edge-2", "present": true, "ready": true, "here": false, "takes_envelopes": true, "silent_s": 1,
            "connections": 12, "statement": "1.7",
        });
        let line = neighbour(&gateway, paint);
        assert_eq!(line, "  edge-2       ready      12 connections, takes the envelopes, statement 1.7\n");
        gateway["present"] = json!(false);
        gateway["takes_envelopes"] = json!(false);
        gateway["silent_s"] = json!(75);
        let line = neighbour(&gateway, paint);
        assert_eq!(line, "  edge-2       away       last heard of 1 min 15 s ago, statement 1.7\n");
    }

    #[test]
    fn facts_have_their_units_in_their_values() {
        for (name, value, shown) in [
            ("capacity_bytes", json!(8_u64 << 30), ("capacity", "8.0 GiB")),
            ("rate_bytes_per_s", json!(2 << 20), ("rate", "2.0 MiB/s")),
            ("refreshed_s_ago", json!(65), ("refreshed", "1 min 5 s ago")),
            ("oldest_age_s", json!(0), ("oldest age", "0 s")),
            ("bytes", json!(12), ("bytes", "12 B")),
            ("records", json!(1234), ("records", "1,234")),
            ("expires_at_s", json!(1_795_731_600), ("expires at", "2026-11-26T22:20:00Z")),
            ("disk_full", json!(false), ("disk full", "false")),
            ("failure", json!("a\nb"), ("failure", "a\u{fffd}b")),
        ] {
            assert_eq!(fact(name, &value), (shown.0.to_owned(), shown.1.to_owned()));
        }
    }
}

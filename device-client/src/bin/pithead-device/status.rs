//! `status`: how the device stands. It only reads, so a client may be working in the folder, and it asks no gateway.
//!
//! Ends with 0 if all is well, 3 if something needs to be looked at, 4 if nothing can be sealed. What needs to be looked at is
//! said in one sentence each.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use pithead_device_client::{StreamSurvey, keys::Keys};
use pithead_hop::{
    identity::end_and_serial,
    program::{ExitCode, ProgramError, human},
    tls::Pem,
};
use pithead_sealing::trust;
use serde_json::{Map, Value, json};

use crate::{
    config::Config,
    failure, key, moment,
    outbox::{self, sum},
    output::{Output, columns, lines},
};

/// Before a certificate ends, people want to be told: a month of shifts, for a vehicle that is rarely at hand.
const CERTIFICATE_WARNING: Duration = Duration::from_secs(30 * 86_400);
/// How full a stream's budget may be before it is said, in percent.
const FULL_PERCENT: u64 = 80;
/// The reason of a refusal is read if its file is at most so long: ours are some hundred bytes.
const REASON_BYTES_MAX: u64 = 64 * 1024;

/// A certificate of the device, or the CA of its gateways.
struct Certificate {
    what: &'static str,
    path: PathBuf,
    ends_s: u64,
    serial: String,
}

/// Envelopes that no gateway takes.
#[derive(Default)]
struct Refused {
    envelopes: u64,
    bytes: u64,
    /// What is written of the newest.
    newest: Option<Value>,
}

pub(crate) fn run(file: &Path, output: Output) -> Result<ExitCode, ProgramError> {
    let config = Config::load(file)?;
    let keys = config.open_keys()?;
    let streams = outbox::survey(&config)?;
    let refused = Refused::in_area(config.refused_area().folder());
    let certificates = certificates(&config)?;
    let attention = attention(&config, &keys, &streams, &refused, &certificates);
    let key_facts = key::facts(&keys);
    let object = json!({
        "site": config.site().to_string(),
        "device": config.id().to_string(),
        "keys": key_facts.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect::<Map<_, _>>(),
        "certificates": certificates.iter().map(Certificate::object).collect::<Vec<_>>(),
        "outbox": outbox::object(&config, &streams),
        "refused": {"envelopes": refused.envelopes, "bytes": refused.bytes, "newest": refused.newest},
        "attention": attention,
    });
    output.print_either(&object, || {
        let mut text =
            lines(&[("site", json!(config.site().to_string())), ("device", json!(config.id().to_string()))]);
        text.push_str(&format!("\nkeys\n{}", lines(&key_facts)));
        if !certificates.is_empty() {
            let rows: Vec<_> = certificates.iter().map(Certificate::row).collect();
            text.push_str(&format!("\ncertificates\n{}", columns(["what", "ends", "in", "file"], &rows)));
        }
        text.push_str(&format!("\noutbox\n{}", outbox::table(&config, &streams)));
        text.push_str(&format!("\nrefused\n{}", refused.lines()));
        if !attention.is_empty() {
            text.push_str("\nto be looked at\n");
            attention.iter().for_each(|what| text.push_str(&format!("- {what}\n")));
        }
        text
    });
    Ok(match keys.status() {
        status if !status.may_seal() => ExitCode::NOT_READY,
        _ if !attention.is_empty() => ExitCode::DEGRADED,
        _ => ExitCode::OK,
    })
}

fn attention(
    config: &Config,
    keys: &Keys,
    streams: &[StreamSurvey],
    refused: &Refused,
    certificates: &[Certificate],
) -> Vec<String> {
    let mut attention = Vec::new();
    match keys.status() {
        trust::Status::Fresh => {}
        trust::Status::Stale => attention.push(
            "the key statement should have been refreshed: the device seals, and has heard nothing new of keys".into(),
        ),
        status => attention.push(format!("nothing can be sealed: {status}")),
    }
    for certificate in certificates {
        if certificate.left() < CERTIFICATE_WARNING {
            attention.push(format!(
                "{} ends at {} (by the clock here, which may be wrong)",
                certificate.what,
                moment::rfc3339(certificate.ends_s)
            ));
        }
    }
    for stream in streams {
        let budget = config.budget(&stream.stream);
        if stream.bytes >= budget / 100 * FULL_PERCENT {
            attention
                .push(format!("stream {} has {} of {budget} bytes waiting", stream.stream, stream.bytes));
        }
    }
    let damaged = sum(streams, |stream| stream.damaged);
    if damaged > 0 {
        let damaged = human::some(damaged, "envelope is", "envelopes are");
        attention.push(format!("{damaged} damaged; `outbox verify` reads every byte"));
    }
    if refused.envelopes > 0 {
        attention.push(format!(
            "{} refused for good; their reasons lie beside them",
            human::some(refused.envelopes, "envelope was", "envelopes were")
        ));
    }
    attention
}

fn certificates(config: &Config) -> Result<Vec<Certificate>, ProgramError> {
    let mut certificates = Vec::new();
    for (what, path) in config.certificate_files() {
        let pem = Pem::read(&path).map_err(|error| failure::tls(&error))?;
        let all = pem.certificates().map_err(|error| failure::tls(&error))?;
        // Of a bundle of CAs the one that ends first is what people have to know.
        let ends = all.iter().filter_map(|der| end_and_serial(der).ok());
        if let Some((ends_s, serial)) = ends.min() {
            certificates.push(Certificate { what, path, ends_s, serial });
        }
    }
    Ok(certificates)
}

impl Certificate {
    fn left(&self) -> Duration {
        Duration::from_millis((self.ends_s.saturating_mul(1_000)).saturating_sub(moment::now_ms()))
    }

    fn object(&self) -> Value {
        json!({
            "what": self.what,
            "file": self.path.display().to_string(),
            "serial": self.serial,
            "ends_at": self.ends_s,
            "ends_at_text": moment::rfc3339(self.ends_s),
            "left_s": self.left().as_secs(),
        })
    }

    fn row(&self) -> [Value; 4] {
        [
            json!(self.what),
            json!(moment::rfc3339(self.ends_s)),
            json!(moment::span(self.left())),
            json!(self.path.display().to_string()),
        ]
    }
}

impl Refused {
    /// What lies in the area. The library keeps it bounded; one that is not there is empty.
    fn in_area(folder: &Path) -> Self {
        let mut refused = Self::default();
        let mut newest: Option<(SystemTime, PathBuf)> = None;
        for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
            let (path, Ok(metadata)) = (entry.path(), entry.metadata()) else { continue };
            let ending = path.extension().and_then(|ending| ending.to_str());
            match (ending, metadata.modified()) {
                (Some("envelope"), _) => {
                    refused.envelopes += 1;
                    refused.bytes += metadata.len();
                }
                (Some("json"), Ok(at))
                    if metadata.len() <= REASON_BYTES_MAX
                        && newest.as_ref().is_none_or(|(newest, _)| at > *newest) =>
                {
                    newest = Some((at, path));
                }
                _ => {}
            }
        }
        refused.newest = newest.and_then(|(at, path)| {
            let mut why: Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
            let at_s = at.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
            let fields = why.as_object_mut()?;
            fields.insert("at".into(), json!(at_s));
            fields.insert("at_text".into(), json!(moment::rfc3339(at_s)));
            Some(why)
        });
        refused
    }

    fn lines(&self) -> String {
        let mut fields = vec![("envelopes", json!(self.envelopes)), ("bytes", json!(self.bytes))];
        if let Some(newest) = &self.newest {
            for (name, key) in
                [("newest", "at_text"), ("envelope", "identity"), ("reason", "reason"), ("detail", "detail")]
            {
                fields.push((name, newest[key].clone()));
            }
        }
        lines(&fields)
    }
}

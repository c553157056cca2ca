//! The authority's log: one JSON line per act, on disk before the act has an effect.
//!
//! A line without its object is an act that was cut short; an object without its line is an alarm.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;

use pithead_sealing::trust::UnixTime;
use serde_json::{Value, json};

use super::dir::AuthorityDir;
use super::error::AuthorityError;
use super::show::rfc3339;

/// Appends one line and syncs it. `facts` is an object; `time` and `act` are put in front.
pub(super) fn record(
    dir: &AuthorityDir,
    now: UnixTime,
    act: &str,
    facts: Value,
) -> Result<(), AuthorityError> {
    let mut line = json!({ "time": rfc3339(now), "act": act });
    if let (Some(line), Value::Object(facts)) = (line.as_object_mut(), facts) {
        line.extend(facts);
    }
    let mut text = line.to_string();
    text.push('\n');
    let path = dir.audit_path();
    (|| {
        let mut log = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
        let before = log.metadata()?.len();
        let written = log.write_all(text.as_bytes()).and_then(|()| log.sync_all());
        if written.is_err() {
            // On a full disk half a line would make the next one unreadable. The error is what matters.
            let _ = log.set_len(before);
        }
        written
    })()
    .map_err(AuthorityError::file("write", path))
}

//! The events that the programs log, found in their sources: name, level, fields.
//!
//! A log line is made by `tracing::LEVEL!(event = "subject.past", field, %field, field = value, "words")` and in no other way, so
//! that this finds all of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context as _, bail};

use crate::binaries::workspace;

/// Where shipped code lies, and what the reader knows it as.
const SOURCES: [(&str, &str); 7] = [
    ("gateway/src", "gateway"),
    ("decryptor/src", "decryptor"),
    ("hop/src", "all"),
    ("spool/src", "all"),
    ("sealing/src", "all"),
    ("device-client/src", "device"),
    ("device-client/ffi/src", "device"),
];

/// An event of one program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// The levels that it is logged at.
    pub levels: BTreeSet<String>,
    /// The fields that any of its lines has.
    pub fields: BTreeSet<String>,
    /// Who logs it.
    pub programs: BTreeSet<&'static str>,
}

/// All of them, by name.
///
/// # Errors
/// A log line that has no event, naming its file.
pub fn all() -> anyhow::Result<BTreeMap<String, Event>> {
    let mut found: BTreeMap<String, Event> = BTreeMap::new();
    for (folder, program) in SOURCES {
        walk(&workspace().join(folder), &mut |path, text| {
            for (level, arguments) in lines(shipped(path, text)) {
                let (name, fields) =
                    read(&arguments).with_context(|| format!("{}: {arguments}", path.display()))?;
                let event = found.entry(name).or_default();
                event.levels.insert(level.to_owned());
                event.fields.extend(fields);
                event.programs.insert(program);
            }
            Ok(())
        })?;
    }
    Ok(found)
}

fn walk(folder: &Path, take: &mut dyn FnMut(&Path, &str) -> anyhow::Result<()>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            walk(&path, take)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            take(&path, &fs::read_to_string(&path)?)?;
        }
    }
    Ok(())
}

/// The part of a source that is compiled into a program.
fn shipped<'a>(path: &Path, text: &'a str) -> &'a str {
    let is_test = path
        .components()
        .any(|part| matches!(part.as_os_str().to_str(), Some("tests" | "tests.rs" | "testing.rs")));
    if is_test { "" } else { text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default() }
}

/// Level and arguments of each log line.
fn lines(text: &str) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    for level in ["error", "warn", "info", "debug", "trace"] {
        let begin = format!("tracing::{level}!(");
        for (at, _) in text.match_indices(&begin) {
            found.push((level, balanced(&text[at + begin.len()..])));
        }
    }
    found
}

/// Up to the parenthesis that closes what is open.
fn balanced(text: &str) -> String {
    let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
    text.chars()
        .take_while(|&letter| {
            if quoted {
                (quoted, escaped) = (escaped || letter != '"', !escaped && letter == '\\');
                return true;
            }
            match letter {
                '"' => quoted = true,
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' if depth == 0 => return false,
                ')' | ']' | '}' => depth -= 1,
                _ => {}
            }
            true
        })
        .collect()
}

/// The arguments, at their own commas.
fn split(arguments: &str) -> Vec<String> {
    let mut parts = Vec::new();
    let mut rest = arguments;
    loop {
        let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
        let end = rest.find(|letter: char| {
            if quoted {
                (quoted, escaped) = (escaped || letter != '"', !escaped && letter == '\\');
                return false;
            }
            match letter {
                '"' => quoted = true,
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' => depth = depth.saturating_sub(1),
                ',' => return depth == 0,
                _ => {}
            }
            false
        });
        let part = rest[..end.unwrap_or(rest.len())].trim();
        if !part.is_empty() {
            parts.push(part.to_owned());
        }
        match end {
            Some(end) => rest = &rest[end + 1..],
            None => return parts,
        }
    }
}

/// The event's name and its fields.
fn read(arguments: &str) -> anyhow::Result<(String, Vec<String>)> {
    let (mut name, mut fields) = (None, Vec::new());
    for part in split(arguments) {
        if part.starts_with('"') {
            // The words behind the fields.
            continue;
        }
        let (field, value) =
            part.split_once('=').map_or((part.as_str(), ""), |(field, value)| (field.trim(), value.trim()));
        let field = field.trim_start_matches(['%', '?']);
        if field == "event" {
            name = Some(value.trim_matches('"').to_owned());
        } else {
            let plain = field
                .chars()
                .all(|letter| letter.is_ascii_lowercase() || letter == '_' || letter.is_ascii_digit());
            if !plain {
                bail!("{field:?} is not the name of a field");
            }
            fields.push(field.to_owned());
        }
    }
    Ok((name.context("a log line without an event")?, fields))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_whatever_its_values_and_words_hold() {
        let text = r#"
            tracing::warn!(
                event = "relay.down", %why, code = reason.map_or("a, \" b)", |one| one.code()), at_ms = f(1, 2),
                "words, with (commas"
            );
            tracing::info!(event = "relay.up");
        "#;
        let read: Vec<_> =
            lines(text).iter().map(|(level, arguments)| (*level, read(arguments).unwrap())).collect();
        let fields = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            read,
            [
                ("warn", ("relay.down".to_owned(), fields(&["why", "code", "at_ms"]))),
                ("info", ("relay.up".to_owned(), vec![])),
            ]
        );
    }

    #[test]
    fn a_line_without_an_event_is_found() {
        assert!(read("%error, \"something\"").is_err());
    }
}

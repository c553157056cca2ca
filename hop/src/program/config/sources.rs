//! Where each key of a configuration came from.
//!
//! A key is written as `ingest.limits.frame`, and in a list of sections as `site[0].name`. What has no entry here is the
//! default.

use std::{collections::BTreeMap, ops::Range};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{ConfigError, Fault, Origin, Place};

/// The origins of all keys that the file or the environment have set, their sections included.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    file: String,
    origins: BTreeMap<String, Origin>,
}

/// What does not go together, although each value by itself is good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    keys: Vec<String>,
    message: String,
    holds_secret: bool,
}

impl Wrong {
    /// Said of this key, or of the section that it is missing in.
    #[must_use]
    pub fn at(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { keys: vec![key.into()], message: message.into(), holds_secret: false }
    }

    /// Said of the first of these keys that somebody has set: the others have their defaults, and no place.
    #[must_use]
    pub fn at_any(keys: &[&str], message: impl Into<String>) -> Self {
        Self {
            keys: keys.iter().map(|key| (*key).to_owned()).collect(),
            message: message.into(),
            holds_secret: false,
        }
    }

    /// Said of a value that holds a secret: its line is not shown.
    #[must_use]
    pub fn of_a_secret(self) -> Self {
        Self { holds_secret: true, ..self }
    }

    /// What is wrong, without its place.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl Sources {
    pub(super) fn of(file: &str, table: &DeTable<'_>, origin: impl Fn(Range<usize>) -> Origin) -> Self {
        let mut origins = BTreeMap::new();
        note_table(&mut origins, "", table, &origin);
        Self { file: file.to_owned(), origins }
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Where a key came from; nothing if it has its default.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Origin> {
        self.origins.get(key)
    }

    /// Where a key came from, in words.
    #[must_use]
    pub fn say(&self, key: &str) -> String {
        self.get(key).map_or_else(|| "default".to_owned(), Origin::to_string)
    }

    /// An error that points at the key, or at the nearest section around it that is there.
    #[must_use]
    pub fn fault(&self, wrong: Wrong) -> ConfigError {
        let set = wrong.keys.iter().find_map(|key| self.get(key));
        let around = || wrong.keys.iter().find_map(|key| around(key).find_map(|section| self.get(section)));
        let nowhere = || Origin::File { file: self.file.clone(), place: None };
        let origin = match set.or_else(around).cloned().unwrap_or_else(nowhere) {
            Origin::File { file, place } if wrong.holds_secret => {
                Origin::File { file, place: place.map(Place::without_value) }
            }
            origin => origin,
        };
        ConfigError::Invalid(Box::new(Fault { origin, message: wrong.message, suggestion: None }))
    }
}

/// The sections around a key, the innermost first.
fn around(key: &str) -> impl Iterator<Item = &str> {
    let mut rest = key;
    std::iter::from_fn(move || {
        rest = &rest[..rest.rfind(['.', '['])?];
        Some(rest)
    })
}

fn note_table(
    origins: &mut BTreeMap<String, Origin>,
    path: &str,
    table: &DeTable<'_>,
    origin: &impl Fn(Range<usize>) -> Origin,
) {
    for (key, value) in table {
        let path = join(path, key.get_ref());
        // Of a section its name has the place, of anything else the value: that is what a caret has to stand under.
        let span = if value.get_ref().is_table() { key.span() } else { value.span() };
        origins.insert(path.clone(), origin(span));
        note_value(origins, &path, value, origin);
    }
}

fn note_value(
    origins: &mut BTreeMap<String, Origin>,
    path: &str,
    value: &Spanned<DeValue<'_>>,
    origin: &impl Fn(Range<usize>) -> Origin,
) {
    match value.get_ref() {
        DeValue::Table(table) => note_table(origins, path, table, origin),
        DeValue::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                let path = format!("{path}[{at}]");
                origins.insert(path.clone(), origin(item.span()));
                note_value(origins, &path, item, origin);
            }
        }
        _ => {}
    }
}

/// The key of something in a section.
pub(super) fn join(section: &str, key: &str) -> String {
    if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") }
}

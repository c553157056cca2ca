//! The configuration file: TOML, every key known, every error pointing at its place.
//!
//! An unknown key is refused (`#[serde(deny_unknown_fields)]` on every section) with a caret under it and the key that
//! was probably meant: a misspelt limit that is silently ignored is found on the day when it was needed. Every key has a
//! twin in the environment, `PITHEAD_SECTION__KEY`, which wins over the file.
//!
//! ```text
//! /etc/pithead/gateway.toml:7:1: unknown field `listn`, expected `listen` or `limits`
//!   7 | listn = "0.0.0.0:7443"
//!     | ^^^^^ did you mean `listen`?
//! ```
//!
//! What was read knows where it came from ([`Sources`]): a fault between two keys points at one of them, and `config show
//! --origin` says of every value which line, which variable or that it is the default.

pub mod change;
pub mod check;
pub mod effective;
pub mod reference;
pub mod sources;
pub mod text;

use std::{fmt, io, ops::Range, path::Path};

use pithead_proto::errors::v1::ErrorReason;
use serde::de::DeserializeOwned;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

pub use self::effective::Effective;
pub use self::sources::{Sources, Wrong};
pub use super::units::{ByteSize, Duration, UnitError};
use super::{ExitCode, ProgramError};
use crate::{accept::Limits, ingest::IngestLimits};

/// Largest configuration file, in bytes. One that is larger is something else.
const FILE_MAX: u64 = 1 << 20;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{file}: cannot be read: {source}")]
    Unreadable {
        /// The file.
        file: String,
        /// What the system says.
        source: io::Error,
    },
    /// The file, or a twin of it in the environment, is wrong.
    #[error("{0}")]
    Invalid(Box<Fault>),
}

impl ConfigError {
    /// The registry's reason.
    pub fn reason(&self) -> ErrorReason {
        match self {
            Self::Unreadable { .. } => ErrorReason::ConfigUnreadable,
            Self::Invalid(_) => ErrorReason::ConfigInvalid,
        }
    }
}

impl From<ConfigError> for ProgramError {
    fn from(error: ConfigError) -> Self {
        let todo = match &error {
            ConfigError::Unreadable { .. } => "check the path and who may read it",
            ConfigError::Invalid(_) => {
                "mend the line that is shown; `config template` prints every key with its meaning"
            }
        };
        ProgramError::new(error.reason(), error.to_string()).todo(todo).exit(ExitCode::CONFIG_INVALID)
    }
}

/// What is wrong, where, and what was probably meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The file and the place, or the variable.
    pub origin: Origin,
    /// What is wrong.
    pub message: String,
    /// The key that was probably meant.
    pub suggestion: Option<String>,
}

/// Where a value came from, if it is not the default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The file, and the place in it if there is one (a missing key has none).
    File {
        /// The file's name.
        file: String,
        /// Where in it.
        place: Option<Place>,
    },
    /// A variable of the environment. Its value is not shown.
    Variable(String),
}

impl fmt::Display for Origin {
    /// `gateway.toml:12`, or the variable's name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file, place: Some(place) } => write!(f, "{file}:{}", place.line),
            Self::File { file, place: None } => f.write_str(file),
            Self::Variable(name) => f.write_str(name),
        }
    }
}

/// A spot in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// Characters that are meant; at least 1.
    pub width: usize,
    /// The line itself.
    pub text: String,
}

impl Place {
    fn of(text: &str, span: Range<usize>) -> Self {
        let mut start = span.start.min(text.len());
        while !text.is_char_boundary(start) {
            start -= 1;
        }
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
        let mut end = span.end.clamp(start, line_end);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        Self {
            line: text[..start].matches('\n').count() + 1,
            column: text[line_start..start].chars().count() + 1,
            width: text[start..end].chars().count().max(1),
            text: text[line_start..line_end].trim_end_matches('\r').to_owned(),
        }
    }

    /// The same spot without the value that stands there: an error goes into logs.
    fn without_value(self) -> Self {
        let key = self.text.split_once('=').map(|(key, _)| format!("{key}= ")).unwrap_or_default();
        let (from, end) = (self.column - 1, key.chars().count());
        let (column, width) = if from < end { (from, self.width.min(end - from)) } else { (end, 3) };
        Self { line: self.line, column: column + 1, width, text: format!("{key}...") }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hint = self.suggestion.as_ref().map(|name| format!("did you mean `{name}`?"));
        match &self.origin {
            Origin::Variable(name) => write!(f, "{name}: {}", self.message)?,
            Origin::File { file, place: None } => write!(f, "{file}: {}", self.message)?,
            Origin::File { file, place: Some(place) } => {
                writeln!(f, "{file}:{}:{}: {}", place.line, place.column, self.message)?;
                let number = place.line.to_string();
                let gutter = " ".repeat(number.len());
                // Tabs stay tabs, so that the caret stands under its spot whatever a tab is worth.
                let indent: String = place
                    .text
                    .chars()
                    .take(place.column - 1)
                    .map(|c| if c == '\t' { c } else { ' ' })
                    .collect();
                let printable: String = place
                    .text
                    .chars()
                    .map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c })
                    .collect();
                writeln!(f, "  {number} | {printable}")?;
                write!(f, "  {gutter} | {indent}{}", "^".repeat(place.width))?;
                if let Some(hint) = hint {
                    write!(f, " {hint}")?;
                }
                return Ok(());
            }
        }
        if let Some(hint) = hint {
            write!(f, "; {hint}")?;
        }
        Ok(())
    }
}

/// What was read, and where each of its keys came from.
#[derive(Debug, Clone)]
pub struct Loaded<T> {
    /// The configuration.
    pub value: T,
    /// Where its keys came from.
    pub sources: Sources,
}

/// Reads `path`, lays the environment's twins over it, and parses it.
///
/// `prefix` is `PITHEAD`: then `PITHEAD_INGEST__LISTEN` stands for `listen` in `[ingest]`. Variables with that prefix
/// and without `__` (such as `PITHEAD_LOG`) are no configuration.
pub fn load<T: DeserializeOwned>(path: &Path, prefix: &str) -> Result<Loaded<T>, ConfigError> {
    let file = path.display().to_string();
    let read = || {
        if std::fs::metadata(path)?.len() > FILE_MAX {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 MiB"));
        }
        std::fs::read_to_string(path)
    };
    let text = read().map_err(|source| ConfigError::Unreadable { file: file.clone(), source })?;
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    parse(&text, &file, prefix, variables)
}

/// [`load`] from text and variables that are in hand.
pub fn parse<T: DeserializeOwned>(
    text: &str,
    file: &str,
    prefix: &str,
    variables: impl IntoIterator<Item = (String, String)>,
) -> Result<Loaded<T>, ConfigError> {
    let mut twins = Twin::of(prefix, variables);
    // A value of the environment has no type of its own: it is taken as TOML if it is that (4096, true, ["a"]), and
    // as plain text otherwise or where TOML did not fit. Each round settles one twin, so this ends.
    for _ in 0..=twins.len() {
        match attempt(text, file, &twins) {
            Ok(loaded) => return Ok(loaded),
            Err(Refused::By(twin, _)) if twins[twin].parsed => twins[twin].parsed = false,
            Err(Refused::By(_, fault) | Refused::File(fault)) => {
                return Err(ConfigError::Invalid(fault));
            }
        }
    }
    unreachable!("every round but the last made one more twin plain text, and a plain one returns")
}

/// Limits under which nothing could be sent, as a fault of `section`.
///
/// # Errors
/// What is wrong, said of its key.
pub fn check_ingest(section: &str, limits: &IngestLimits) -> Result<(), Wrong> {
    limits.check().map_err(|error| {
        let keys: Vec<String> = error.keys().iter().map(|key| format!("{section}.{key}")).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        Wrong::at_any(&keys, format!("[{section}] {error}"))
    })
}

/// Limits of a port under which nobody could be served, as a fault of `section`; `calls` is the section of what one call may
/// bring there.
///
/// # Errors
/// What is wrong, said of its key.
pub fn check_port(section: &str, limits: &Limits, calls: &str, ingest: &IngestLimits) -> Result<(), Wrong> {
    limits
        .check()
        .map_err(|error| Wrong::at(format!("{section}.{}", error.key()), format!("[{section}] {error}")))?;
    if limits.unfinished < ingest.request {
        return Err(Wrong::at_any(
            &[&format!("{section}.unfinished"), &format!("{calls}.request")],
            format!("[{section}] `unfinished` has to be at least [{calls}] `request`"),
        ));
    }
    Ok(())
}

struct Twin {
    variable: String,
    path: Vec<String>,
    value: String,
    parsed: bool,
}

impl Twin {
    fn of(prefix: &str, variables: impl IntoIterator<Item = (String, String)>) -> Vec<Self> {
        let mut twins: Vec<Self> = variables
            .into_iter()
            .filter_map(|(variable, value)| {
                let path: Vec<String> = variable
                    .strip_prefix(prefix)?
                    .strip_prefix('_')?
                    .split("__")
                    .map(str::to_ascii_lowercase)
                    .collect();
                let parsed = DeValue::parse(&value).is_ok_and(|value| !value.get_ref().is_table());
                (path.len() > 1).then_some(Self { variable, path, value, parsed })
            })
            .collect();
        // The environment has no order; errors should.
        twins.sort_by(|a, b| a.variable.cmp(&b.variable));
        twins
    }
}

enum Refused {
    /// By the twin of that index.
    By(usize, Box<Fault>),
    File(Box<Fault>),
}

fn attempt<T: DeserializeOwned>(text: &str, file: &str, twins: &[Twin]) -> Result<Loaded<T>, Refused> {
    // Twins get spans beyond the end of the file, so that an error's span says which of them it is about.
    let base = text.len() + 1;
    let refuse = |error: toml::de::Error| {
        let message = error.message().trim().replace('\n', "; ");
        let suggestion = suggest(&message);
        match error.span() {
            Some(span) if span.start >= base && span.start - base < twins.len() => {
                let twin = span.start - base;
                let origin = Origin::Variable(twins[twin].variable.clone());
                Refused::By(twin, Box::new(Fault { origin, message, suggestion }))
            }
            span => {
                // A missing key has the whole section as its place, which is none.
                let place =
                    span.filter(|_| !message.starts_with("missing field")).map(|span| Place::of(text, span));
                let origin = Origin::File { file: file.to_owned(), place };
                Refused::File(Box::new(Fault { origin, message, suggestion }))
            }
        }
    };
    let mut table = DeTable::parse(text).map_err(refuse)?;
    for (index, twin) in twins.iter().enumerate() {
        let at = base + index..base + index + 1;
        let value =
            if twin.parsed { DeValue::parse(&twin.value).ok().map(Spanned::into_inner) } else { None };
        let value = value.unwrap_or_else(|| DeValue::String(twin.value.as_str().into()));
        if let Err(message) = lay_over(table.get_mut(), &twin.path, value, &at) {
            let origin = Origin::Variable(twin.variable.clone());
            return Err(Refused::File(Box::new(Fault { origin, message, suggestion: None })));
        }
    }
    let origin = |span: Range<usize>| match span.start.checked_sub(base).and_then(|at| twins.get(at)) {
        Some(twin) => Origin::Variable(twin.variable.clone()),
        None => Origin::File { file: file.to_owned(), place: Some(Place::of(text, span)) },
    };
    let sources = Sources::of(file, table.get_ref(), origin);
    let value = T::deserialize(toml::de::Deserializer::from(table)).map_err(refuse)?;
    Ok(Loaded { value, sources })
}

fn lay_over<'i>(
    table: &mut DeTable<'i>,
    path: &'i [String],
    value: DeValue<'i>,
    at: &Range<usize>,
) -> Result<(), String> {
    let [key, rest @ ..] = path else { return Ok(()) };
    if rest.is_empty() {
        // The key of the file goes with its value, or an error about the key would point into the file.
        table.remove(key.as_str());
        table.insert(Spanned::new(at.clone(), key.as_str().into()), Spanned::new(at.clone(), value));
        return Ok(());
    }
    if !table.contains_key(key.as_str()) {
        let section = Spanned::new(at.clone(), DeValue::Table(DeTable::new()));
        table.insert(Spanned::new(at.clone(), key.as_str().into()), section);
    }
    match table.get_mut(key.as_str()).map(Spanned::get_mut) {
        Some(DeValue::Table(section)) => lay_over(section, rest, value, at),
        _ => Err(format!("`{key}` is not a section")),
    }
}

/// The expected name that is nearest to the unknown one in a message of serde's.
fn suggest(message: &str) -> Option<String> {
    if !message.starts_with("unknown field") && !message.starts_with("unknown variant") {
        return None;
    }
    let mut names = message.split('`').skip(1).step_by(2);
    let wrong = names.next()?;
    let distance = |name: &&str| strsim::damerau_levenshtein(&wrong.to_ascii_lowercase(), name);
    let best = names.min_by_key(distance)?;
    // Further away it would be a guess, not help.
    (distance(&best) <= 1 + wrong.chars().count() / 3).then(|| best.to_owned())
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;

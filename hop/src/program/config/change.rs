//! What a file that was read again changes: at once, or at the next start.
//!
//! A key changes at once if the program says so of it ([`Live`]), and if its section is there before and after: a part of
//! the program that does not run cannot take a new value. All else stays as it is and is named. What is in force then is the
//! tree of before with the live keys of the new one; it has to be good by itself, since it is what the program goes on with.

use std::fmt;

use pithead_proto::errors::v1::ErrorReason;
use serde::Serialize;
use toml::Value;

use super::{Effective, Wrong, effective};
use crate::program::ProgramError;

/// The keys that change while the program runs: whole names, or all of a section as `stop.*`.
#[derive(Debug, Clone, Copy)]
pub struct Live(pub &'static [&'static str]);

impl Live {
    /// Whether a key changes while the program runs.
    #[must_use]
    pub fn has(self, key: &str) -> bool {
        self.0.iter().any(|live| match live.strip_suffix('*') {
            Some(section) => key.starts_with(section),
            None => *live == key,
        })
    }
}

/// One key that is another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Its name.
    pub key: String,
    /// Its value before, as TOML; nothing if it had none.
    pub from: Option<String>,
    /// Its value now.
    pub to: Option<String>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |value: &Option<String>| value.clone().unwrap_or_else(|| "not set".to_owned());
        write!(f, "{}: {} -> {}", self.title(), word(&self.from), word(&self.to))
    }
}

impl Change {
    /// `[ingest] listen`, as people say it.
    #[must_use]
    pub fn title(&self) -> String {
        match self.key.rsplit_once('.') {
            Some((section, name)) => format!("[{section}] {name}"),
            None => format!("[[{}]]", self.key),
        }
    }
}

/// What becomes of a new tree.
#[derive(Debug, Clone, PartialEq)]
pub struct Taken {
    /// What is in force then.
    pub in_force: Effective,
    /// What has changed.
    pub changed: Vec<Change>,
    /// What changes at the next start.
    pub needs_restart: Vec<Change>,
}

impl Taken {
    /// The file is good, and its live keys without the others are not: that would be `wrong`.
    #[must_use]
    pub fn refused(&self, wrong: &Wrong) -> ProgramError {
        let waiting: Vec<String> = self.needs_restart.iter().map(Change::title).collect();
        let what = format!(
            "{}: the file goes together only with what needs a restart: {}",
            wrong.message(),
            waiting.join(", ")
        );
        ProgramError::new(ErrorReason::ConfigInvalid, what)
    }
}

/// Lays the live keys of `new` over what is in force.
#[must_use]
pub fn take(in_force: &Effective, new: &Effective, live: Live) -> Taken {
    let (before, after) = (in_force.leaves(), new.leaves());
    let mut keys: Vec<&str> = before.iter().map(|(key, _)| key.as_str()).collect();
    for (key, _) in &after {
        if in_force.get(key).is_none() {
            keys.push(key);
        }
    }
    let mut taken = Taken { in_force: in_force.clone(), changed: Vec::new(), needs_restart: Vec::new() };
    for key in keys {
        let (from, to) = (in_force.get(key), new.get(key));
        // A section that is away on the other side, and an empty one, are no value.
        if from == to || from.or(to).is_none_or(Value::is_table) {
            continue;
        }
        let word = |value: Option<&Value>| value.map(Value::to_string);
        let change = Change { key: key.to_owned(), from: word(from), to: word(to) };
        let section = effective::split(key).0;
        let runs = in_force.section(section).is_some() && new.section(section).is_some();
        if live.has(key) && runs {
            taken.in_force.set(key, to.cloned());
            taken.changed.push(change);
        } else {
            taken.needs_restart.push(change);
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIVE: Live = Live(&["ingest.crls", "relay.rate", "relay.window", "stop.*", "site"]);

    fn tree(text: &str) -> Effective {
        Effective::of(&toml::from_str::<toml::Table>(text).expect("TOML")).expect("a table")
    }

    fn keys(changes: &[Change]) -> Vec<&str> {
        changes.iter().map(|change| change.key.as_str()).collect()
    }

    #[test]
    fn live_keys_change_at_once_and_the_others_are_named_and_stay() {
        let before =
            tree("[ingest]\nlisten = \"a\"\ncrls = []\n[stop]\nrelay = \"10s\"\n[relay]\nwindow = 1\n");
        let after = tree(
            "[ingest]\nlisten = \"b\"\ncrls = [\"x\"]\n[stop]\nrelay = \"20s\"\n[relay]\nwindow = 1\nrate = \"2MiB\"\n",
        );
        let taken = take(&before, &after, LIVE);
        assert_eq!(keys(&taken.changed), ["ingest.crls", "stop.relay", "relay.rate"]);
        assert_eq!(keys(&taken.needs_restart), ["ingest.listen"]);
        assert_eq!(taken.needs_restart[0].to_string(), "[ingest] listen: \"a\" -> \"b\"");
        assert_eq!(taken.in_force.get("ingest.listen").and_then(Value::as_str), Some("a"));
        assert_eq!(taken.in_force.get("relay.rate").and_then(Value::as_str), Some("2MiB"));
        // It needs a restart as long as it is so.
        let again = take(&taken.in_force, &after, LIVE);
        assert_eq!((keys(&again.changed), keys(&again.needs_restart)), (vec![], vec!["ingest.listen"]));
        // And a key that goes back to no value changes as well.
        let back = take(&taken.in_force, &before, LIVE);
        assert_eq!(back.changed[2].to_string(), "[relay] rate: \"2MiB\" -> not set");
        assert_eq!(back.in_force, before);
    }

    #[test]
    fn a_section_that_comes_or_goes_needs_a_restart_whole() {
        let (without, with) =
            (tree("[stop]\nrelay = \"1s\"\n"), tree("[stop]\nrelay = \"1s\"\n[relay]\nrate = \"2MiB\"\n"));
        for (before, after) in [(&without, &with), (&with, &without)] {
            let taken = take(before, after, LIVE);
            assert_eq!((keys(&taken.changed), keys(&taken.needs_restart)), (vec![], vec!["relay.rate"]));
            assert_eq!(taken.in_force, *before);
        }
    }

    #[test]
    fn a_list_of_sections_changes_as_one() {
        let (one, two) =
            (tree("[[site]]\nname = \"a\"\n"), tree("[[site]]\nname = \"a\"\n[[site]]\nname = \"b\"\n"));
        let taken = take(&one, &two, LIVE);
        assert_eq!((keys(&taken.changed), taken.changed[0].title()), (vec!["site"], "[[site]]".to_owned()));
        assert_eq!(taken.in_force, two);
    }
}

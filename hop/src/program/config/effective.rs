//! What is in force: the file, the environment and the defaults together, as a tree of keys.
//!
//! It is made out of the configuration itself, by serialising it: every key is there, in the order of its section and with
//! units as people write them, and none has to be listed anywhere. A key without a value and without a default is not.

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value as Json, json};
use toml::{Table, Value};

use super::{Origin, Sources, sources::join};
use crate::program::ProgramError;
use pithead_proto::errors::v1::ErrorReason;

/// The tree.
#[derive(Debug, Clone, PartialEq)]
pub struct Effective(Table);

impl Effective {
    /// The tree of a configuration.
    ///
    /// # Errors
    /// When a value has no form in TOML, which is a fault of the program.
    pub fn of<T: Serialize>(config: &T) -> Result<Self, ProgramError> {
        match Value::try_from(config) {
            Ok(Value::Table(table)) => Ok(Self(table)),
            Ok(_) => Err(ProgramError::new(ErrorReason::Internal, "the configuration is no table")),
            Err(error) => Err(ProgramError::new(ErrorReason::Internal, format!("configuration: {error}"))),
        }
    }

    /// The configuration of a tree.
    ///
    /// # Errors
    /// What does not parse.
    pub fn typed<T: DeserializeOwned>(&self) -> Result<T, ProgramError> {
        let typed = Value::Table(self.0.clone()).try_into();
        typed.map_err(|error| ProgramError::new(ErrorReason::Internal, format!("configuration: {error}")))
    }

    /// Every key with its value, in order. A list is one value, of sections too.
    #[must_use]
    pub fn leaves(&self) -> Vec<(String, &Value)> {
        let mut found = Vec::new();
        gather(&mut found, "", &self.0);
        found
    }

    /// Every key with its value, those in lists of sections too: `site[0].name`.
    #[must_use]
    pub fn all(&self) -> Vec<(String, &Value)> {
        let mut found = Vec::new();
        gather_all(&mut found, "", &self.0);
        found
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        let (section, name) = split(key);
        self.section(section)?.get(name)
    }

    /// Whether there is such a section. The whole file is the one without a name.
    pub(super) fn section(&self, section: &str) -> Option<&Table> {
        let mut names = section.split('.').filter(|name| !name.is_empty());
        names.try_fold(&self.0, |table, name| table.get(name)?.as_table())
    }

    /// Sets a key of a section that is there, or removes it.
    pub(super) fn set(&mut self, key: &str, value: Option<Value>) {
        let (section, name) = split(key);
        let mut names = section.split('.').filter(|name| !name.is_empty());
        let table = names.try_fold(&mut self.0, |table, name| table.get_mut(name)?.as_table_mut());
        let Some(table) = table else { return };
        match value {
            Some(value) => drop(table.insert(name.to_owned(), value)),
            None => drop(table.remove(name)),
        }
    }

    /// As a file would say it; with `sources`, and where each value comes from.
    #[must_use]
    pub fn to_toml(&self, sources: Option<&Sources>) -> String {
        let mut text = String::new();
        write_table(&mut text, "", &self.0, sources);
        text
    }

    /// As JSON: the sections as objects; with `sources`, a list of keys with their values and origins.
    #[must_use]
    pub fn to_json(&self, sources: Option<&Sources>) -> Json {
        let Some(sources) = sources else { return plain(&Value::Table(self.0.clone())) };
        let entry = |(key, value): (String, &Value)| {
            let origin = match sources.get(&key) {
                None => json!({ "kind": "default" }),
                Some(Origin::Variable(name)) => json!({ "kind": "environment", "variable": name }),
                Some(Origin::File { file, place }) => {
                    json!({ "kind": "file", "file": file, "line": place.as_ref().map(|place| place.line) })
                }
            };
            json!({ "key": key, "value": plain(value), "origin": origin })
        };
        self.all().into_iter().map(entry).collect()
    }

    /// The key whose value is named in a text, a path that could not be read say; the longest such value, since a folder is
    /// named with every file in it.
    #[must_use]
    pub fn named_in(&self, text: &str) -> Option<String> {
        let values = self.all().into_iter().flat_map(|(key, value)| match value {
            Value::Array(items) => {
                items.iter().enumerate().map(|(at, item)| (format!("{key}[{at}]"), item)).collect()
            }
            _ => vec![(key, value)],
        });
        let named = values.filter_map(|(key, value)| {
            let value = value.as_str().filter(|value| value.contains('/') && text.contains(*value))?;
            Some((value.len(), key))
        });
        named.max_by_key(|(length, _)| *length).map(|(_, key)| key)
    }
}

pub(super) fn split(key: &str) -> (&str, &str) {
    key.rsplit_once('.').unwrap_or(("", key))
}

fn is_sections(value: &Value) -> bool {
    value.as_array().is_some_and(|items| !items.is_empty() && items.iter().all(Value::is_table))
}

fn gather<'a>(found: &mut Vec<(String, &'a Value)>, path: &str, table: &'a Table) {
    for (name, value) in table {
        let path = join(path, name);
        match value {
            Value::Table(table) => gather(found, &path, table),
            _ => found.push((path, value)),
        }
    }
}

/// As [`gather`], and into lists of sections.
fn gather_all<'a>(found: &mut Vec<(String, &'a Value)>, path: &str, table: &'a Table) {
    for (name, value) in table {
        let path = join(path, name);
        match value {
            Value::Table(table) => gather_all(found, &path, table),
            Value::Array(items) if is_sections(value) => {
                let tables = items.iter().enumerate().filter_map(|(at, item)| Some((at, item.as_table()?)));
                for (at, table) in tables {
                    gather_all(found, &format!("{path}[{at}]"), table);
                }
            }
            _ => found.push((path, value)),
        }
    }
}

fn write_table(text: &mut String, path: &str, table: &Table, sources: Option<&Sources>) {
    let is_section = |value: &&Value| value.is_table() || is_sections(value);
    let lines: Vec<(String, String)> = table
        .iter()
        .filter(|(_, value)| !is_section(value))
        .map(|(name, value)| (format!("{name} = {value}"), join(path, name)))
        .collect();
    let width = lines.iter().map(|(line, _)| line.chars().count()).max().unwrap_or(0);
    for (line, key) in lines {
        match sources {
            Some(sources) => text.push_str(&format!("{line:width$}  # {}\n", sources.say(&key))),
            None => text.push_str(&format!("{line}\n")),
        }
    }
    let gap = |text: &mut String| {
        if !text.is_empty() {
            text.push('\n');
        }
    };
    // The key of an origin has numbers, `site[0].name`; the header of a section has none.
    let title = |path: &str| {
        let mut plain = path.to_owned();
        while let (Some(from), Some(to)) = (plain.find('['), plain.find(']')) {
            plain.replace_range(from..=to, "");
        }
        plain
    };
    for (name, value) in table.iter().filter(|(_, value)| is_section(value)) {
        let path = join(path, name);
        match value {
            Value::Table(table) => {
                // A section with nothing but sections in it needs no header of its own.
                if table.is_empty() || table.iter().any(|(_, value)| !is_section(&value)) {
                    gap(text);
                    text.push_str(&format!("[{}]\n", title(&path)));
                }
                write_table(text, &path, table, sources);
            }
            Value::Array(items) => {
                for (at, table) in items.iter().enumerate() {
                    gap(text);
                    text.push_str(&format!("[[{}]]\n", title(&path)));
                    if let Some(table) = table.as_table() {
                        write_table(text, &format!("{path}[{at}]"), table, sources);
                    }
                }
            }
            _ => {}
        }
    }
}

fn plain(value: &Value) -> Json {
    match value {
        Value::String(text) => json!(text),
        Value::Integer(number) => json!(number),
        Value::Float(number) => json!(number),
        Value::Boolean(is) => json!(is),
        Value::Datetime(time) => json!(time.to_string()),
        Value::Array(items) => items.iter().map(plain).collect(),
        Value::Table(table) => {
            Json::Object(table.iter().map(|(name, value)| (name.clone(), plain(value))).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::program::{
        config::{Loaded, parse},
        units::{ByteSize, Duration},
    };

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        ingest: Ingest,
        #[serde(default, rename = "site")]
        sites: Vec<Site>,
        relay: Option<Relay>,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Ingest {
        listen: String,
        #[serde(default)]
        limits: Limits,
        /// After a section, so that the order has to be mended.
        #[serde(default)]
        crls: Vec<String>,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Limits {
        window: ByteSize,
        idle: Duration,
    }

    impl Default for Limits {
        fn default() -> Self {
            Self { window: ByteSize::mib(1), idle: Duration::from_secs(60) }
        }
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Site {
        name: String,
        #[serde(default)]
        open: bool,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Relay {
        rate: Option<ByteSize>,
    }

    const TEXT: &str = "# a site\n[ingest]\nlisten = \"/run/a\"\n\n[ingest.limits]\nidle = \"5s\"\n\n[[site]]\nname = \"a\"\n\n\
                        [[site]]\nname = \"b\"\nopen = true\n[relay]\n";

    fn read() -> Loaded<Config> {
        let twins = [("PITHEAD_INGEST__LIMITS__WINDOW".to_owned(), "2048KiB".to_owned())];
        parse(TEXT, "gateway.toml", "PITHEAD", twins).expect("good")
    }

    #[test]
    fn every_value_says_its_line_its_variable_or_that_it_is_the_default() {
        let Loaded { value, sources } = read();
        let shown = Effective::of(&value).expect("a table").to_toml(Some(&sources));
        assert_eq!(
            shown,
            "[ingest]\n\
             listen = \"/run/a\"  # gateway.toml:3\n\
             crls = []          # default\n\n\
             [ingest.limits]\n\
             window = \"2MiB\"  # PITHEAD_INGEST__LIMITS__WINDOW\n\
             idle = \"5s\"      # gateway.toml:6\n\n\
             [[site]]\n\
             name = \"a\"    # gateway.toml:9\n\
             open = false  # default\n\n\
             [[site]]\n\
             name = \"b\"   # gateway.toml:12\n\
             open = true  # gateway.toml:13\n\n\
             [relay]\n"
        );
    }

    #[test]
    fn what_is_shown_reads_back_as_the_same_configuration() {
        let Loaded { value, sources } = read();
        let tree = Effective::of(&value).expect("a table");
        for shown in [tree.to_toml(None), tree.to_toml(Some(&sources))] {
            assert_eq!(parse::<Config>(&shown, "shown", "NONE", []).expect("good").value, value, "{shown}");
        }
        assert_eq!(tree.typed::<Config>().expect("good"), value);
    }

    #[test]
    fn programs_get_the_tree_or_the_keys_with_their_origins() {
        let Loaded { value, sources } = read();
        let tree = Effective::of(&value).expect("a table");
        let plain = tree.to_json(None);
        assert_eq!(plain["ingest"]["limits"]["window"], "2MiB");
        assert_eq!(plain["site"][1]["open"], true);
        let keys = tree.to_json(Some(&sources));
        let of = |key: &str| {
            let keys = keys.as_array().expect("a list");
            keys.iter().find(|entry| entry["key"] == key).expect(key)["origin"].clone()
        };
        assert_eq!(of("ingest.listen"), json!({ "kind": "file", "file": "gateway.toml", "line": 3 }));
        assert_eq!(of("site[1].name"), json!({ "kind": "file", "file": "gateway.toml", "line": 12 }));
        assert_eq!(
            of("ingest.limits.window"),
            json!({ "kind": "environment", "variable": "PITHEAD_INGEST__LIMITS__WINDOW" })
        );
        assert_eq!(of("ingest.crls"), json!({ "kind": "default" }));
    }

    #[test]
    fn a_path_in_an_error_is_found_as_the_key_that_names_it() {
        let Loaded { value, .. } = read();
        let tree = Effective::of(&value).expect("a table");
        assert_eq!(tree.named_in("/run/a: no such file").as_deref(), Some("ingest.listen"));
        assert_eq!(tree.named_in("something else"), None);
    }
}

//! The page about a program's configuration: every key with its type, its default, its twin and whether a reload applies it.
//!
//! Nothing of it is written by hand. The words are the template's; which keys there are, which are required, their types and
//! their defaults are found by asking the parser: with a key taken out, and with a value in it that cannot be right.
//!
//! What a template looks like: `#key = value` is a key that shows its default, `#[section]` a section that is off, and
//! `# words` are about what comes next.

use serde::{Serialize, de::DeserializeOwned};

use super::{ConfigError, Effective, change::Live, parse};

/// What a page is made of.
#[derive(Debug, Clone, Copy)]
pub struct Reference<'a> {
    /// The program.
    pub program: &'a str,
    /// Its template.
    pub template: &'a str,
    /// The prefix of its twins in the environment.
    pub prefix: &'a str,
    /// What a reload applies; nothing for a program that has none.
    pub live: Option<Live>,
    /// Keys that the template leaves out, each because another place speaks of it. A section stands for all in it.
    pub elsewhere: &'a [&'a str],
}

/// One key of the template.
#[derive(Debug)]
struct Key {
    section: String,
    name: String,
    words: String,
    /// The line of the template.
    line: usize,
    /// Commented out, so that it shows its default.
    is_off: bool,
    /// Its value there.
    shown: String,
}

/// A section of the template.
#[derive(Debug)]
struct Section {
    /// As its header has it.
    title: String,
    words: String,
}

/// What the parser says of a key.
#[derive(Debug, PartialEq, Eq)]
enum Default {
    Required,
    NotSet,
    Is(String),
}

impl Reference<'_> {
    /// The page, in Markdown.
    ///
    /// # Errors
    /// What the template does not say, or says wrongly.
    pub fn page<T: Serialize + DeserializeOwned>(&self) -> Result<String, String> {
        let (sections, keys) = self.read();
        self.is_whole::<T>(&keys)?;
        let mut page = format!(
            "# Configuration of {program}\n\n\
             <!-- Made out of the program by a test; UPDATE_REFERENCE=1 has that test make it anew. -->\n\n\
             `{program} config template` prints the file with these words, `config check` says what is wrong with one, and \
             `config show --origin` says where each value comes from. Units are in the values (`\"500ms\"`, `\"5s\"`, `\"15min\"`, \
             `\"12h\"`, `\"30d\"`; `\"64KiB\"`, `\"4MiB\"`, `\"200GiB\"`); a bare number is refused. Paths are relative to the \
             file's own folder. A variable of the environment wins over the file; its value is written as in TOML, or without \
             the quotes.\n",
            program = self.program
        );
        if self.live.is_some() {
            page.push_str(
                "\n`reload`: \"at once\" is in force after SIGHUP; of the others a reload says that they need a restart. A \
                 section that is added or taken away needs one, too.\n",
            );
        }
        for section in &sections {
            page.push_str(&format!("\n## {}\n", section.title));
            if !section.words.is_empty() {
                page.push_str(&format!("\n{}\n", section.words));
            }
            let keys: Vec<&Key> = keys.iter().filter(|key| key.section == path_of(&section.title)).collect();
            if keys.is_empty() {
                continue;
            }
            let reload = if self.live.is_some() { (" reload |", "---|") } else { ("", "") };
            page.push_str(&format!(
                "\n| key | type | default |{} environment | |\n|---|---|---|{}---|---|\n",
                reload.0, reload.1
            ));
            for key in keys {
                page.push_str(&self.row::<T>(key)?);
            }
        }
        Ok(page)
    }

    fn row<T: Serialize + DeserializeOwned>(&self, key: &Key) -> Result<String, String> {
        let Key { name, words, .. } = key;
        let default = match self.default::<T>(key)? {
            Default::Required => "required".to_owned(),
            Default::NotSet => "not set".to_owned(),
            Default::Is(value) => format!("`{value}`"),
        };
        let path = key.path();
        let reload = match self.live {
            Some(live) if live.has(&plain(&path)) || live.has(whole(&path)) => " at once |",
            Some(_) => " restart |",
            None => "",
        };
        // A list of sections has no twin.
        let twin = match path.contains('[') {
            true => String::new(),
            false => format!("`{}_{}`", self.prefix, path.to_ascii_uppercase().replace('.', "__")),
        };
        let kind = self.kind::<T>(key)?;
        // Of what the template says for people, nothing is to be taken for markup.
        let words = words.replace('|', "\\|").replace('<', "\\<");
        Ok(format!("| `{name}` | {kind} | {default} |{reload} {twin} | {words} |\n"))
    }

    fn read(&self) -> (Vec<Section>, Vec<Key>) {
        let (mut sections, mut keys) = (Vec::new(), Vec::new());
        let (mut words, mut title, mut closed) = (Vec::new(), String::new(), true);
        for (number, line) in self.template.lines().enumerate() {
            let is_off = line.starts_with('#') && !line.starts_with("# ") && line.len() > 1;
            let bare = if is_off { &line[1..] } else { line };
            if let Some(word) = line.strip_prefix("# ") {
                // Words behind a key are about the next ones.
                if closed {
                    words.clear();
                }
                closed = false;
                words.push(word.trim());
            } else if bare.starts_with('[') {
                title = bare.to_owned();
                sections.push(Section { title: title.clone(), words: words.join(" ") });
                words.clear();
            } else if let Some((name, value)) = bare.split_once(" = ") {
                closed = true;
                keys.push(Key {
                    section: path_of(&title),
                    name: name.to_owned(),
                    words: words.join(" "),
                    line: number,
                    is_off,
                    shown: value.to_owned(),
                });
            } else {
                words.clear();
            }
        }
        (sections, keys)
    }

    /// Every line on, with another one in the place of the key's.
    fn text(&self, at: usize, line: &str) -> String {
        let on = |text: &str| match text.strip_prefix('#') {
            Some(bare) if !bare.starts_with(' ') => bare.to_owned(),
            _ => text.to_owned(),
        };
        let lines = self.template.lines().enumerate();
        let lines = lines.map(|(number, text)| if number == at { line.to_owned() } else { on(text) });
        lines.map(|line| line + "\n").collect()
    }

    fn parse<T: Serialize + DeserializeOwned>(&self, text: &str) -> Result<T, String> {
        match parse::<T>(text, "template", self.prefix, []) {
            Ok(loaded) => Ok(loaded.value),
            Err(ConfigError::Invalid(fault)) => Err(fault.message),
            Err(other) => Err(other.to_string()),
        }
    }

    /// Every key that the program knows is in the template.
    fn is_whole<T: Serialize + DeserializeOwned>(&self, keys: &[Key]) -> Result<(), String> {
        let whole = self.parse::<T>(&self.text(usize::MAX, ""))?;
        let whole = Effective::of(&whole).map_err(|error| error.to_string())?;
        for (known, _) in whole.all() {
            let left_out = self.elsewhere.iter().any(|other| {
                known == **other || known.strip_prefix(other).is_some_and(|rest| rest.starts_with('.'))
            });
            if !left_out && !keys.iter().any(|key| plain(&key.path()) == plain(&known)) {
                return Err(format!("the template does not have {known}"));
            }
        }
        Ok(())
    }

    /// What the key is when nobody sets it.
    fn default<T: Serialize + DeserializeOwned>(&self, key: &Key) -> Result<Default, String> {
        let without = match self.parse::<T>(&self.text(key.line, "")) {
            Ok(config) => config,
            Err(message) if message.starts_with("missing field") => return Ok(Default::Required),
            Err(message) => return Err(format!("{}: {message}", key.path())),
        };
        let without = Effective::of(&without).map_err(|error| error.to_string())?;
        let path = key.path();
        let value =
            without.all().into_iter().find(|(known, _)| *known == path).map(|(_, value)| value.to_string());
        let Some(value) = value else { return Ok(Default::NotSet) };
        // One that is written in another unit is the same.
        let whole = self.parse::<T>(&self.text(usize::MAX, ""))?;
        let whole = Effective::of(&whole).map_err(|error| error.to_string())?;
        let is_default =
            whole.all().iter().any(|(known, shown)| *known == path && shown.to_string() == value);
        match (key.is_off, is_default) {
            (_, true) => Ok(Default::Is(key.shown.clone())),
            // An empty list says nothing of what stands in one: what is shown is an example.
            (true, false) if value == "[]" => Ok(Default::Is(value)),
            (true, false) => {
                Err(format!("the template says that {path} is {}, and it is {value}", key.shown))
            }
            (false, false) => Ok(Default::Is(value)),
        }
    }

    /// What the parser expects of it, in words.
    fn kind<T: Serialize + DeserializeOwned>(&self, key: &Key) -> Result<String, String> {
        let with =
            |value: &str| self.parse::<T>(&self.text(key.line, &format!("{} = {value}", key.name))).err();
        let expected = |message: &str| {
            let words = ["expected ", "wanted "].into_iter().find_map(|word| message.rsplit_once(word));
            words.map(|(_, what)| what.to_owned())
        };
        let Some(message) = with("true") else { return Ok("true or false".to_owned()) };
        let what = expected(&message).ok_or_else(|| format!("{}: {message}", key.path()))?;
        Ok(match what.as_str() {
            "u8" | "u16" | "u32" | "u64" | "usize" => "number".to_owned(),
            "path string" => "path".to_owned(),
            "a sequence" => "list".to_owned(),
            "socket address" => "IP:PORT".to_owned(),
            what if what.starts_with("a time such as") => "time".to_owned(),
            what if what.starts_with("a size such as") => "size".to_owned(),
            "a string" => "text".to_owned(),
            // Words, each of them good.
            what => {
                let variants = with("\"?\"").filter(|message| message.starts_with("unknown variant"));
                variants
                    .as_deref()
                    .and_then(expected)
                    .unwrap_or_else(|| what.to_owned())
                    .replace(", ", " or ")
            }
        })
    }
}

impl Key {
    fn path(&self) -> String {
        super::sources::join(&self.section, &self.name)
    }
}

/// `[a.b]` is the section a.b, `[[a]]` the first of its kind.
fn path_of(title: &str) -> String {
    match title.strip_prefix("[[").and_then(|title| title.strip_suffix("]]")) {
        Some(title) => format!("{title}[0]"),
        None => title.trim_matches(['[', ']']).to_owned(),
    }
}

/// A key without the numbers of lists.
fn plain(path: &str) -> String {
    path.replace("[0]", "")
}

/// The list that a key is in.
fn whole(path: &str) -> &str {
    path.split('[').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::program::units::{ByteSize, Duration};

    #[derive(Debug, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        ingest: Ingest,
        relay: Option<Relay>,
        #[serde(default, rename = "site")]
        sites: Vec<Site>,
    }

    #[derive(Debug, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Ingest {
        listen: std::net::SocketAddr,
        #[serde(default = "minute")]
        idle: Duration,
        #[serde(default)]
        streams: u32,
        #[serde(default)]
        mode: Mode,
    }

    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Mode {
        #[default]
        Warn,
        Refuse,
    }

    #[derive(Debug, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Relay {
        rate: Option<ByteSize>,
    }

    #[derive(Debug, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Site {
        name: String,
        #[serde(default)]
        open: bool,
    }

    fn minute() -> Duration {
        Duration::from_secs(60)
    }

    const TEMPLATE: &str = "# The whole file.\n\n# The port.\n[ingest]\n# Where.\nlisten = \"1.2.3.4:5\"\n# How long,\n# and how \
                            many.\n#idle = \"1min\"\n#streams = 0\n# What then.\n#mode = \"warn\"\n\n# Leave it out.\n#[relay]\n#rate = \
                            \"2MiB\"\n\n[[site]]\nname = \"a\"\n#open = false\n";

    fn reference(template: &str) -> Reference<'_> {
        let live = Some(Live(&["ingest.idle", "site"]));
        Reference { program: "p", template, prefix: "PITHEAD", live, elsewhere: &[] }
    }

    #[test]
    fn a_page_says_of_each_key_what_the_parser_knows_and_what_the_template_says() {
        let page = reference(TEMPLATE).page::<Config>().expect("a page");
        for row in [
            "## [ingest]\n\nThe port.\n",
            "| `listen` | IP:PORT | required | restart | `PITHEAD_INGEST__LISTEN` | Where. |\n",
            "| `idle` | time | `\"1min\"` | at once | `PITHEAD_INGEST__IDLE` | How long, and how many. |\n",
            "| `streams` | number | `0` | restart | `PITHEAD_INGEST__STREAMS` | How long, and how many. |\n",
            "| `mode` | `warn` or `refuse` | `\"warn\"` | restart | `PITHEAD_INGEST__MODE` | What then. |\n",
            "## [relay]\n\nLeave it out.\n",
            "| `rate` | size | not set | restart | `PITHEAD_RELAY__RATE` |  |\n",
            "## [[site]]\n",
            "| `name` | text | required | at once |  |  |\n",
            "| `open` | true or false | `false` | at once |  |  |\n",
        ] {
            assert!(page.contains(row), "{row}\nin\n{page}");
        }
    }

    #[test]
    fn a_template_that_lies_about_a_default_or_leaves_a_key_out_makes_no_page() {
        let lies = TEMPLATE.replace("#idle = \"1min\"", "#idle = \"2min\"");
        let said = reference(&lies).page::<Config>().unwrap_err();
        assert_eq!(said, "the template says that ingest.idle is \"2min\", and it is \"1min\"");
        let short = TEMPLATE.replace("#streams = 0\n", "");
        assert_eq!(
            reference(&short).page::<Config>().unwrap_err(),
            "the template does not have ingest.streams"
        );
        let elsewhere = Reference { elsewhere: &["ingest.streams"], ..reference(&short) };
        elsewhere.page::<Config>().expect("another place speaks of it");
    }
}

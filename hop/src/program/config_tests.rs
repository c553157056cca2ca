use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::Deserialize;

use super::*;

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    ingest: Ingest,
    #[serde(default)]
    sites: BTreeMap<String, String>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ingest {
    listen: String,
    #[serde(default = "a_minute")]
    idle: Duration,
    #[serde(default = "a_mebibyte")]
    window: ByteSize,
    #[serde(default)]
    streams: u32,
}

fn a_minute() -> Duration {
    Duration::from_secs(60)
}

fn a_mebibyte() -> ByteSize {
    ByteSize::mib(1)
}

fn read(text: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    parse(text, "gateway.toml", "PITHEAD", variables).map(|loaded| loaded.value)
}

fn refusal(text: &str, variables: &[(&str, &str)]) -> String {
    let error = read(text, variables).expect_err("must be refused");
    assert_eq!(error.reason(), ErrorReason::ConfigInvalid);
    error.to_string()
}

const GOOD: &str = "[ingest]\nlisten = \"127.0.0.1:0\"\n";

#[test]
fn a_misspelt_key_gets_a_caret_and_the_right_one() {
    assert_eq!(
        refusal("# site\n[ingest]\n\tlistn = \"x\"\n", &[]),
        "gateway.toml:3:2: unknown field `listn`, expected one of `listen`, `idle`, `window`, `streams`\n\
         \x20 3 | \tlistn = \"x\"\n\
         \x20   | \t^^^^^ did you mean `listen`?"
    );
}

#[test]
fn a_key_like_none_gets_no_guess() {
    assert!(!refusal("[ingest]\nlisten = \"x\"\ntemperature = 1\n", &[]).contains("did you mean"));
}

#[test]
fn a_value_without_its_unit_is_pointed_at_and_told_the_units() {
    let text = refusal("[ingest]\nlisten = \"x\"\nidle = 15\n", &[]);
    assert!(text.starts_with("gateway.toml:3:8: `15` has no unit"), "{text}");
    assert!(text.ends_with("  3 | idle = 15\n    |        ^^"), "{text}");
    let text = refusal("[ingest]\nlisten = \"x\"\nwindow = \"5GB\"\n", &[]);
    assert!(
        text.starts_with("gateway.toml:3:10: `GB` is not a unit here") && text.contains("200GiB"),
        "{text}"
    );
}

#[test]
fn a_missing_key_is_named() {
    let text = refusal("[ingest]\nidle = \"5s\"\n", &[]);
    assert!(text.contains("missing field `listen`"), "{text}");
}

#[test]
fn broken_toml_is_pointed_at() {
    let text = refusal("[ingest]\nlisten = \"x\nidle = \"5s\"\n", &[]);
    assert!(text.starts_with("gateway.toml:2:"), "{text}");
}

#[test]
fn the_environments_twin_wins_and_finds_its_type() {
    let config = read(
        "[ingest]\nlisten = \"file\"\nstreams = 3\n[sites]\na = \"1\"\n",
        &[
            ("PITHEAD_INGEST__LISTEN", "127.0.0.1:7443"),
            ("PITHEAD_INGEST__IDLE", "5s"),
            ("PITHEAD_INGEST__STREAMS", "4096"),
            ("PITHEAD_SITES__B", "2"),
            ("PITHEAD_LOG", "debug"),
            ("OTHER_INGEST__NONSENSE", "1"),
        ],
    )
    .expect("good");
    assert_eq!(config.ingest.listen, "127.0.0.1:7443");
    assert_eq!(config.ingest.idle, Duration::from_secs(5));
    assert_eq!(config.ingest.streams, 4096);
    assert_eq!(config.sites, BTreeMap::from([("a".into(), "1".into()), ("b".into(), "2".into())]));
}

#[test]
fn a_section_may_come_from_the_environment_alone() {
    let config = read("", &[("PITHEAD_INGEST__LISTEN", "\"quoted\"")]).expect("good");
    assert_eq!(config.ingest.listen, "quoted");
}

#[test]
fn a_wrong_twin_is_named_by_its_variable_and_its_value_is_not_shown() {
    let text = refusal(GOOD, &[("PITHEAD_INGEST__LISTN", "hunter2")]);
    assert!(text.starts_with("PITHEAD_INGEST__LISTN: unknown field `listn`"), "{text}");
    assert!(text.ends_with("did you mean `listen`?") && !text.contains("hunter2"), "{text}");
    let text = refusal(GOOD, &[("PITHEAD_INGEST__IDLE", "5")]);
    assert!(text.starts_with("PITHEAD_INGEST__IDLE: "), "{text}");
    let text = refusal(GOOD, &[("PITHEAD_INGEST__LISTEN__DEEPER", "5")]);
    assert_eq!(text, "PITHEAD_INGEST__LISTEN__DEEPER: `listen` is not a section");
}

#[test]
fn a_file_that_is_not_there_is_told_from_one_that_is_wrong() {
    let error = load::<Config>(Path::new("/nowhere/gateway.toml"), "PITHEAD").expect_err("must fail");
    assert_eq!(error.reason(), ErrorReason::ConfigUnreadable);
    let error = ProgramError::from(error);
    assert_eq!(error.exit, ExitCode::CONFIG_INVALID);
    assert!(error.to_string().contains("PH-6002") && error.to_string().contains("/nowhere/gateway.toml"));
}

#[test]
fn umlauts_before_the_spot_do_not_move_the_caret() {
    let text = refusal("ingest = { listen = \"grün\", äh = 1 }\n", &[]);
    let lines: Vec<&str> = text.lines().collect();
    let caret = lines[2].chars().position(|c| c == '^').expect("a caret");
    assert_eq!(lines[1].chars().nth(caret), Some('ä'), "{text}");
}

proptest! {
    #[test]
    fn garbage_is_refused_without_a_panic_and_shows_its_line(text in "(?s).{0,200}") {
        if let Err(error) = read(&text, &[]) {
            prop_assert!(error.to_string().starts_with("gateway.toml"));
        }
    }

    #[test]
    fn a_damaged_file_never_panics(at in 0usize..60, byte: char) {
        let mut text = "[ingest]\nlisten = \"127.0.0.1:0\"\nidle = \"5s\"\nwindow = \"1MiB\"\n".to_owned();
        text.insert(at.min(text.len()), byte);
        let _ = read(&text, &[("PITHEAD_INGEST__STREAMS", "1")]).map_err(|error| error.to_string());
    }
}

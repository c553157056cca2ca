//! Pages of docs/reference that are made out of the programs and their sources. Made anew with `UPDATE_REFERENCE=1`.

use std::{collections::BTreeMap, fs};

use pithead_hop::program::reference::keep;
use pithead_tests::{binaries::workspace, events};

#[test]
fn the_page_of_metrics_is_what_the_programs_declare() {
    let page = format!(
        "# Metrics\n\n\
         Made out of the programs by `UPDATE_REFERENCE=1 cargo nextest run --workspace -E 'test(reference::)'`; a test compares it.\n\n\
         Both programs serve them at `/metrics` of their admin port, in the OpenMetrics text format. Names are those of a scrape; a\n\
         histogram has `_bucket`, `_sum` and `_count` behind its name. Units are in the names: bytes, seconds, and seconds since 1970 for\n\
         `_timestamp_seconds`. A device is never a label. Every series whose labels are listed is there from the start, at 0; \"from the\n\
         first event on\" says where a series appears only once something has happened, so that an alert must not wait for it to be 0.\n\n\
         ## pithead-gateway\n\n{}\n\
         ## pithead-decryptor\n\n{}",
        pithead_gateway::metrics::Metrics::new().reference(),
        pithead_decryptor::metrics::Metrics::new().reference(),
    );
    keep(&workspace().join("docs/reference/metrics.md"), &page).unwrap();
}

#[test]
fn the_page_of_events_is_what_the_programs_log() {
    let found = events::all().unwrap();
    let folder = workspace().join("docs/reference");
    let meanings: BTreeMap<String, String> =
        toml::from_str(&fs::read_to_string(folder.join("events.toml")).unwrap()).unwrap();
    let unexplained: Vec<_> = found.keys().filter(|name| !meanings.contains_key(*name)).collect();
    assert!(unexplained.is_empty(), "say in docs/reference/events.toml what these mean: {unexplained:?}");
    let gone: Vec<_> = meanings.keys().filter(|name| !found.contains_key(*name)).collect();
    assert!(gone.is_empty(), "no program logs these any more: {gone:?}");
    let mut page = String::from(
        "# Events\n\n\
         Made out of the sources and `events.toml` by `UPDATE_REFERENCE=1 cargo nextest run --workspace -E 'test(reference::)'`; a test\n\
         compares it.\n\n\
         Every line of a log is an event: the field `event` has one of these names, which stay, and the fields beside it are those listed\n\
         (not every line of an event has all of them). Levels are upper bounds of attention: `error` wants somebody now, `warn` today,\n\
         `info` tells what happened, `debug` is for whoever looks for something. Payloads, keys and tokens are in none of them.\n\n\
         | event | level | program | fields | what it means |\n|---|---|---|---|---|\n",
    );
    for (name, event) in &found {
        let listed = |names: &mut dyn Iterator<Item = &str>| names.collect::<Vec<_>>().join(", ");
        let levels = listed(&mut event.levels.iter().map(String::as_str));
        let programs = listed(&mut event.programs.iter().copied());
        let fields = listed(&mut event.fields.iter().map(String::as_str));
        page += &format!("| `{name}` | {levels} | {programs} | {fields} | {} |\n", meanings[name]);
    }
    keep(&folder.join("events.md"), &page).unwrap();
}

#[test]
fn an_event_is_named_by_its_subject_and_what_became_of_it_and_gives_nothing_away() {
    for (name, event) in events::all().unwrap() {
        let parts: Vec<&str> = name.split('.').collect();
        let plain = |part: &&str| part.bytes().all(|letter| letter.is_ascii_lowercase() || letter == b'_');
        assert!(parts.len() == 2 && parts.iter().all(plain), "{name}: subject.what_happened");
        for never in [
            "payload",
            "plaintext",
            "token",
            "secret",
            "passphrase",
            "private_key",
            "data_key",
            "key",
            "body",
        ] {
            assert!(!event.fields.contains(never), "{name} would log {never}");
        }
    }
}

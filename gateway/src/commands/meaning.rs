//! What the state of a gateway means, in a sentence, and what to do about what is not as it should be.

use pithead_hop::program::human;
use serde_json::Value;

use super::reading::Numbers;

/// A state in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Meaning {
    /// One sentence.
    pub(super) sentence: String,
    /// What to look at, each with what to do; empty if all is well.
    pub(super) attention: Vec<String>,
}

/// Of `/statusz` and the numbers beside it.
pub(super) fn of(status: &Value, numbers: &Numbers) -> Meaning {
    let mut attention = Vec::new();
    let lamps = status["dimensions"].as_object();
    for (name, lamp) in lamps.into_iter().flatten().filter(|(_, lamp)| lamp["level"] != "ok") {
        // The relay's is said by the sentence above, if it is all.
        if name != "relay" {
            attention.push(format!("{name}: {}", text(&lamp["words"])));
        }
    }
    let refused = status["relay"]["refused_records"].as_u64().unwrap_or(0);
    if refused > 0 {
        attention.push(format!(
            "{} will never be taken by the far end as things are: `refused list` says why; mend that, then `refused retry`",
            human::some(refused, "envelope", "envelopes")
        ));
    }
    let conflicts = numbers.with("pithead_ingest_envelopes_total", "outcome=\"conflict\"") as u64;
    if conflicts > 0 {
        attention.push(format!(
            "{} came with other bytes under a number that was used: both are kept; `explain CONFLICT` says what to look for",
            human::some(conflicts, "envelope", "envelopes")
        ));
    }
    let spool = &status["spool"];
    let corrupt = spool["corrupt_records"].as_u64().unwrap_or(0);
    if corrupt > 0 {
        let lost = human::some(corrupt, "record was", "records were");
        attention.push(if is_in_jetstream(status) {
            format!("{lost} lost in JetStream: `spool.corrupt` in the log says which; see the NATS servers and their disks")
        } else {
            format!("{lost} lost to damage on the disk: `spool verify` names what it was; replace the disk")
        });
    }
    if spool["failed_syncs"].as_u64().unwrap_or(0) > 0 {
        attention
            .push("the disk has failed to sync: look at it and at the system's log, then restart".to_owned());
    }
    Meaning { sentence: sentence(status, &attention), attention }
}

/// Whether what it takes lies in JetStream, and not on its disk.
fn is_in_jetstream(status: &Value) -> bool {
    status["spool"]["engine"] == "jetstream"
}

fn sentence(status: &Value, attention: &[String]) -> String {
    let spool = &status["spool"];
    let waiting = human::some(spool["records"].as_u64().unwrap_or(0), "record waits", "records wait");
    if status["draining"] == true {
        return "It is stopping: devices are sent elsewhere, and what it has taken is made safe.".to_owned();
    }
    if status["ready"] != true {
        let down = status["dimensions"].as_object().into_iter().flatten();
        let why = down
            .filter(|(name, lamp)| *name != "relay" && lamp["level"] == "down")
            .map(|(name, lamp)| format!("{name}: {}", text(&lamp["words"])))
            .collect::<Vec<_>>();
        return format!("Devices are not served, and keep what they have: {}.", why.join("; "));
    }
    // Nothing that follows is known here then.
    if spool["owner_here"] == false {
        let owner = text(&spool["standing_by"]);
        return format!("It stands by: {owner}. How much waits is known where envelopes are taken.");
    }
    let (relay, lamp) = (&status["relay"], &status["dimensions"]["relay"]);
    // What is full takes nothing more, and that is the first thing to know, whatever the relay does.
    if status["spool"]["disk_full"] == true || status["spool"]["available_bytes"] == 0 {
        return format!(
            "The spool is full: devices are told to come back and keep what they have; {waiting} here until the far end takes it."
        );
    }
    if let Some(pause) = relay["paused"].as_str() {
        return format!(
            "The relay stands still ({pause}): devices are served, and {waiting} here; `relay resume` lets it go on."
        );
    }
    if lamp["level"] != "ok" {
        let since =
            lamp["for_s"].as_u64().map_or_else(String::new, |age| format!(" for {}", human::seconds(age)));
        return format!(
            "Nothing goes to the cloud{since} ({}): devices are served, {waiting} here, and nothing is lost while there is room.",
            text(&lamp["words"])
        );
    }
    if attention.is_empty() {
        let place = if is_in_jetstream(status) { "in JetStream" } else { "on this disk" };
        format!("All is well: what devices send is safe {place} before they are told so; {waiting} here.")
    } else {
        format!("Devices are served, {waiting} here, and something has to be looked at.")
    }
}

/// Text that came from elsewhere, without what would steer a terminal.
pub(super) fn text(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(relay: &str, refused: u64) -> Value {
        json!({
            "ready": true, "draining": false,
            "dimensions": {
                "ingest": { "level": "ok", "words": "listening", "for_s": 9 },
                "relay": { "level": relay, "words": "connection refused", "for_s": 180 },
            },
            "spool": { "records": 12, "corrupt_records": 0, "failed_syncs": 0 },
            "relay": { "refused_records": refused },
        })
    }

    #[test]
    fn a_cut_wan_is_calm_and_says_what_waits_and_since_when() {
        let meaning = of(&status("down", 0), &Numbers::default());
        assert_eq!(
            meaning.sentence,
            "Nothing goes to the cloud for 3 min (connection refused): devices are served, 12 records wait here, and nothing is \
             lost while there is room."
        );
        assert!(meaning.attention.is_empty());
        assert!(of(&status("ok", 0), &Numbers::default()).sentence.starts_with("All is well"));
    }

    #[test]
    fn a_gateway_on_jetstream_speaks_of_no_disk_and_one_that_stands_by_of_nothing_that_waits() {
        let mut owner = status("ok", 0);
        owner["spool"]["engine"] = json!("jetstream");
        owner["spool"]["owner_here"] = json!(true);
        let said = of(&owner, &Numbers::default()).sentence;
        assert!(said.contains("safe in JetStream") && said.contains("12 records wait here"), "{said}");
        owner["spool"]["corrupt_records"] = json!(1);
        let attention = of(&owner, &Numbers::default()).attention;
        assert!(
            !attention[0].contains("spool verify") && attention[0].contains("JetStream"),
            "{attention:?}"
        );
        let mut other = owner;
        other["spool"]["owner_here"] = json!(false);
        other["spool"]["standing_by"] = json!("edge-2 takes the envelopes");
        let said = of(&other, &Numbers::default()).sentence;
        assert!(
            said.starts_with("It stands by: edge-2 takes the envelopes.") && !said.contains("wait here"),
            "{said}"
        );
    }

    #[test]
    fn what_was_refused_and_what_conflicts_is_to_be_looked_at() {
        let numbers = Numbers::parse("pithead_ingest_envelopes_total{outcome=\"conflict\"} 3\n");
        let meaning = of(&status("ok", 1), &numbers);
        assert!(meaning.attention[0].starts_with("1 envelope will never be taken"), "{meaning:?}");
        assert!(meaning.attention[1].starts_with("3 envelopes came with other bytes"), "{meaning:?}");
        assert!(meaning.sentence.contains("something has to be looked at"));
    }

    #[test]
    fn who_is_not_ready_says_why_and_who_stops_says_that() {
        let mut down = status("ok", 0);
        down["ready"] = json!(false);
        down["dimensions"]["ingest"] = json!({ "level": "down", "words": "no\u{1b}[2Jkey", "for_s": 1 });
        let said = of(&down, &Numbers::default()).sentence;
        assert!(
            said.starts_with("Devices are not served, and keep what they have: ingest: no\u{fffd}[2Jkey."),
            "{said}"
        );
        down["draining"] = json!(true);
        assert!(of(&down, &Numbers::default()).sentence.starts_with("It is stopping"));
    }
}

//! The device's commands beside a real gateway: what they say, what they end with, and that they lose nothing.
#![allow(clippy::print_stdout)]

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use pithead_tests::{
    certificates::Ca,
    command::{self, Finished, Running},
    device::Device,
    program::{PATIENCE, free_address},
    site::{SITE, Site, SiteOptions},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A condition that only an outsider sees, looked at until it holds.
async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let looking = async {
        while !condition().await {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, looking).await.is_ok(), "never: {what}");
}

async fn json_of(device: &Device, arguments: &[&str]) -> Value {
    let finished = device.run(arguments).await.unwrap();
    finished.json().unwrap_or_else(|error| panic!("{error:#}\n{}", finished.stderr))
}

/// SIGTERM, and how it ended.
async fn told_to_stop(running: Running) -> Finished {
    let pid = i32::try_from(running.pid().unwrap()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
    running.finish().await.unwrap()
}

/// Everything below a folder with its bytes: what a command that only looks leaves as it was.
fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(contents(&entry.path())),
            false => found.push((entry.path(), fs::read(entry.path()).unwrap())),
        }
    }
    found.sort();
    found
}

/// What the decryptor's books say, and what it ends with: 1 if a number is missing that nobody has explained.
async fn verified(site: &Site) -> (Option<i32>, Value) {
    let config = site.decryptor_config().display().to_string();
    let finished = site.decryptor_command(&["verify", "-c", &config, "-o", "json"]).await.unwrap();
    (finished.code, finished.json().unwrap())
}

fn missing(books: &Value) -> u64 {
    let streams = books["streams"].as_array().expect("streams").iter();
    streams.map(|stream| stream["missing"].as_u64().expect("a number")).sum()
}

fn lines(count: usize) -> Vec<String> {
    (0..count).map(|at| format!("record {at}")).collect()
}

/// Seals records into the outbox of a device whose gateway is away.
async fn fill(device: &Device, stream: &str, records: &[String]) {
    let mut sending = device.start_sending_with(stream, &["--timeout", "0s"]).unwrap();
    for record in records {
        sending.record(record).await.unwrap();
    }
    let ended = sending.end().await.unwrap();
    assert_eq!(ended.code, Some(75), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_outbox_stat_look_on_while_a_device_sends_and_change_nothing() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let device = site.enroll("truck-1").await.unwrap();
    let never = json_of(&device, &["outbox", "stat"]).await;
    assert_eq!((&never["envelopes"], &never["streams"]), (&json!(0), &json!([])), "{never}");
    assert_eq!(device.run(&["status"]).await.unwrap().code, Some(4), "there is no key yet");
    device.key().await.unwrap();

    site.stop_gateway().await.unwrap();
    let mut sending = device.start_sending("can").unwrap();
    for record in lines(300) {
        sending.record(&record).await.unwrap();
    }
    sending.flush().await.unwrap();
    let waits = async || {
        let stat = json_of(&device, &["outbox", "stat"]).await;
        stat["records"] == 300 && stat["streams"][0]["stream"] == "can"
    };
    until("300 records wait while the device runs", waits).await;
    let stat = json_of(&device, &["outbox", "stat"]).await;
    let can = &stat["streams"][0];
    assert_eq!((&can["damaged"], &can["budget_bytes"]), (&json!(0), &json!(64 << 20)), "{stat}");
    assert!(
        can["oldest"].as_str().unwrap().ends_with('Z') && can["oldest_age_s"].as_u64().unwrap() < 600,
        "{stat}"
    );
    let status = json_of(&device, &["status"]).await;
    assert_eq!((&status["keys"]["status"], &status["outbox"]["records"]), (&json!("FRESH"), &json!(300)));
    assert_eq!((&status["refused"]["envelopes"], &status["attention"]), (&json!(0), &json!([])), "{status}");
    assert_eq!(status["certificates"][0]["ends_at_text"], "2100-01-01T00:00:00Z");
    assert!(
        status["keys"]["expires_at"].is_u64() && status["keys"]["expires_at_text"].is_string(),
        "{status}"
    );

    let (config, program) = (device.config().display().to_string(), site.programs().device());
    let table = |arguments: &[&str]| {
        let arguments =
            [&["-c", &config], arguments].concat().into_iter().map(str::to_owned).collect::<Vec<_>>();
        let program = program.clone();
        async move { command::run(&program, arguments, &[]).await.unwrap().stdout }
    };
    let shown = table(&["status"]).await;
    for words in ["FRESH", "truck-1", "the device's certificate", "2100-01-01T00:00:00Z", "can"] {
        assert!(shown.contains(words), "{words:?} in\n{shown}");
    }
    assert!(!shown.contains("_text"), "{shown}");

    // The client that runs beside all of this noticed nothing.
    site.start_gateway().await.unwrap();
    let sent = sending.finish().await.unwrap();
    assert_eq!((sent.records, sent.refused, device.outbox().await.unwrap()), (300, 0, 0));
    let before = contents(device.folder());
    device.run(&["status"]).await.unwrap().ok().unwrap();
    device.run(&["outbox", "stat"]).await.unwrap().ok().unwrap();
    device.run(&["outbox", "verify"]).await.unwrap().ok().unwrap();
    device.run(&["netcheck"]).await.unwrap().ok().unwrap();
    assert!(before == contents(device.folder()), "who only looks changes no byte");
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_is_found_and_the_rest_is_drained_and_the_loss_declared() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let device = site.enroll("truck-1").await.unwrap();
    device.key().await.unwrap();
    site.stop_gateway().await.unwrap();
    for part in 0..6 {
        fill(&device, "can", &lines(50 + part)).await;
    }
    device.run(&["outbox", "verify"]).await.unwrap().ok().unwrap();
    let waiting = device.outbox().await.unwrap();
    assert!(waiting >= 6, "{waiting}");

    // In the middle of a record's sealed bytes.
    let log = device.folder().join("outbox/can");
    let files = contents(&log)
        .into_iter()
        .filter(|(path, _)| path.file_name().unwrap().to_string_lossy().starts_with("seg-"));
    let needle = b"pithead:device";
    let (path, mut bytes) = files
        .into_iter()
        .find(|(_, bytes)| bytes.windows(needle.len()).any(|window| window == needle))
        .expect("a segment with an envelope");
    let at = bytes.windows(needle.len()).position(|window| window == needle).unwrap() + 400;
    bytes[at] ^= 0x10;
    fs::write(&path, bytes).unwrap();
    let found = device.run(&["outbox", "verify"]).await.unwrap();
    assert!(found.code == Some(1) && found.refused_with("PH-6008", "STATE_DAMAGED"), "{}", found.stderr);
    let report: Value = found.json().unwrap();
    assert_eq!((&report["damaged"], &report["streams"][0]["damaged"]), (&json!(1), &json!(1)), "{report}");

    let idle = device.run(&["outbox", "drain", "--timeout", "1s"]).await.unwrap();
    assert_eq!(idle.code, Some(75), "nobody is there: {}", idle.stderr);
    site.start_gateway().await.unwrap();
    let drained = device.run(&["outbox", "drain"]).await.unwrap().ok().unwrap();
    let drained: Value = drained.json().unwrap();
    assert_eq!(
        (&drained["records"], &drained["lost"], &drained["waiting"]),
        (&json!(0), &json!(1), &json!(0))
    );
    assert_eq!(device.outbox().await.unwrap(), 0);
    // With nothing in it no gateway is needed, and nothing is said.
    site.stop_gateway().await.unwrap();
    let empty: Value = device.run(&["outbox", "drain"]).await.unwrap().ok().unwrap().json().unwrap();
    assert_eq!((&empty["envelopes"], &empty["acknowledged"]), (&json!(0), &json!(0)), "{empty}");
    site.start_gateway().await.unwrap();
    // What was lost is declared with the next that is said, and no hole is left without a word.
    device.send("can", &lines(1)).await.unwrap();
    site.until_relayed().await.unwrap();
    let (code, books) = verified(&site).await;
    assert_eq!((code, missing(&books)), (Some(0), 0), "{books:#}");
    site.stop().await.unwrap();
}

/// What lies in a folder, without its folders.
fn files_in(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let files = entries.map(Result::unwrap).filter(|entry| entry.file_type().unwrap().is_file());
    let mut names: Vec<_> = files.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_folder_survives_a_kill_loses_no_file_and_sends_none_twice_that_was_put_away() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let device = site.enroll("truck-1").await.unwrap();
    let dir = site.folder().join("watched");
    fs::create_dir(&dir).unwrap();
    let sent = dir.join("sent");
    let watch = |after: &str| {
        let dir = dir.display().to_string();
        device.start(&["watch", &dir, "--stream", "logs", "--settle", "200ms", "--after", after]).unwrap()
    };
    let text = |name: &str| format!("what {name} says");
    let put = |name: &str| fs::write(dir.join(name), text(name)).unwrap();

    let first = watch("move");
    for name in ["a.log", "b.log", ".hidden", "half.part"] {
        put(name);
    }
    until("two files are put away", async || files_in(&sent).len() == 2).await;
    assert_eq!(files_in(&dir), [".hidden", "half.part"], "what is not whole stays");
    // Killed with files in the line, and with the gateway away.
    site.stop_gateway().await.unwrap();
    for number in 0..40 {
        put(&format!("c{number:02}.log"));
    }
    until("some of many are kept without a gateway", async || files_in(&sent).len() > 5).await;
    first.kill().await.unwrap();
    let left = files_in(&dir).len() - 2 + files_in(&sent).len();
    assert_eq!(left, 42, "a file is in one place or the other");

    site.start_gateway().await.unwrap();
    let second = watch("move");
    until("all are put away", async || files_in(&sent).len() == 42).await;
    // A name again, with other content.
    fs::write(dir.join("a.log"), text("a again")).unwrap();
    until("and one of a name that was there before", async || files_in(&sent).len() == 43).await;
    fs::write(dir.join("half.part"), text("half")).unwrap();
    #[expect(clippy::disallowed_methods, reason = "as a program does that writes files here")]
    fs::rename(dir.join("half.part"), dir.join("half.log")).unwrap();
    until("what got its name", async || files_in(&sent).len() == 44).await;
    let ended = told_to_stop(second).await.ok().unwrap();
    let events: Vec<Value> = ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kept = events.iter().filter(|event| event["event"] == "kept").count() as u64;
    let summary = events.last().unwrap();
    assert_eq!((summary["files"].as_u64(), &summary["failed"]), (Some(kept), &json!(0)), "{summary}");
    assert_eq!(files_in(&sent).iter().filter(|name| name.starts_with("a.log")).count(), 2);

    let mut expected: Vec<String> = (0..40).map(|number| text(&format!("c{number:02}.log"))).collect();
    expected.extend(["a.log", "b.log", "a again", "half"].map(text));
    expected.sort();
    device.run(&["outbox", "drain", "--timeout", "60s"]).await.unwrap().ok().unwrap();
    site.until_relayed().await.unwrap();
    let delivered = site.delivered().unwrap();
    let mut arrived: Vec<String> = delivered
        .records_of("truck-1")
        .into_iter()
        .map(|bytes| String::from_utf8(bytes.to_vec()).unwrap())
        .collect();
    arrived.sort();
    // At most one file was between being kept and being put away when the kill came.
    let twice = arrived.len() - expected.len();
    arrived.dedup();
    assert_eq!(arrived, expected);
    assert!(twice <= 16, "{twice} files were sent twice, and the line is 16");

    // What stays is remembered over a restart, until it changes.
    fs::remove_file(dir.join(".hidden")).unwrap();
    put("kept.log");
    for (round, expected) in [(1, 1), (2, 0)] {
        let third = watch("keep");
        if expected == 1 {
            until("it is remembered", async || !files_in(&device.folder().join("watch")).is_empty()).await;
        } else {
            // Longer than it takes to be whole: another file that goes through proves that this one was looked at.
            put("other.log");
            let known =
                || fs::read_dir(device.folder().join("watch")).unwrap().next().unwrap().unwrap().path();
            until("the other is kept", async || fs::read_to_string(known()).unwrap().contains("other.log"))
                .await;
        }
        let ended = told_to_stop(third).await.ok().unwrap();
        let kept = ended.stdout.lines().filter(|line| line.contains("\"kept\"") && line.contains("kept.log"));
        assert_eq!(kept.count(), expected, "round {round}: {}", ended.stdout);
    }
    assert_eq!(files_in(&dir), ["kept.log", "other.log"]);
    site.stop().await.unwrap();
}

/// The steps of the only gateway, each with how it went, and what the command ended with.
async fn checked(device: &Device) -> (Option<i32>, Value, Vec<(String, bool)>) {
    let finished = device.run(&["netcheck", "--timeout", "3s"]).await.unwrap();
    let report: Value = finished.json().unwrap();
    let steps = report["gateways"][0]["steps"].as_array().unwrap().iter();
    let steps = steps.map(|step| (step["step"].as_str().unwrap().to_owned(), step["ok"] == true)).collect();
    (finished.code, report, steps)
}

fn step<'a>(report: &'a Value, name: &str) -> &'a Value {
    let steps = report["gateways"][0]["steps"].as_array().unwrap();
    steps.iter().find(|step| step["step"] == name).unwrap_or_else(|| panic!("{name} in {report:#}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn netcheck_says_which_step_fails_and_what_to_do() {
    let lines = vec![("ingest", "crls = [\"site.crl\"]".to_owned())];
    let mut site = Site::create(SiteOptions { gateway_lines: lines, ..Default::default() }).await.unwrap();
    let stolen = site.identity_of("stolen").unwrap();
    fs::write(site.folder().join("gateway/site.crl"), site.ca.crl(&[&stolen]).unwrap()).unwrap();
    site.start_decryptor().await.unwrap();
    site.start_gateway().await.unwrap();
    let device = site.enroll("truck-1").await.unwrap();
    device.key().await.unwrap();

    let (code, report, steps) = checked(&device).await;
    let names: Vec<&str> = steps.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(code, Some(0), "{report:#}");
    assert_eq!(
        names,
        ["name", "tcp", "tls", "identity", "http2", "welcome", "statement", "limits", "uploads"]
    );
    assert!(steps.iter().all(|(_, ok)| *ok), "{report:#}");
    let tls = step(&report, "tls");
    assert_eq!(
        (&tls["key_exchange"], &tls["ends_at_text"]),
        (&json!("X25519MLKEM768"), &json!("2100-01-01T00:00:00Z"))
    );
    assert_eq!(step(&report, "identity")["name"], format!("spiffe://{SITE}/device/truck-1"));
    let welcome = step(&report, "welcome");
    assert_eq!((&welcome["durability"], &welcome["assurance"]), (&json!("DISK"), &json!("vouched")));
    // One clock on one machine: they differ by no more than the question took.
    let (ahead, within) =
        (welcome["clock_ahead_us"].as_i64().unwrap(), welcome["clock_uncertainty_us"].as_i64().unwrap());
    assert!(ahead.abs() <= within + 1_000, "{welcome}");
    assert_eq!(step(&report, "statement")["compared"], "same");
    assert_eq!(step(&report, "limits")["envelope_bytes"], 1 << 20);
    assert_eq!(step(&report, "uploads")["uploads"], true);

    // A device that has not heard of the statement in force yet.
    let (_, behind, _) = checked(&site.enroll("truck-2").await.unwrap()).await;
    assert_eq!(step(&behind, "statement")["compared"], "newer", "{behind:#}");

    let other = Ca::create("another CA", &site.folder().join("certificates/other-ca.pem")).unwrap();
    let identity = site.identity_of("wary").unwrap();
    let (wary, finished) = site.enroll_as("wary", other.path(), Some(&identity), &[]).await.unwrap();
    finished.ok().unwrap();
    let (code, report, steps) = checked(&wary).await;
    assert_eq!((code, steps.last()), (Some(77), Some(&("tls".to_owned(), false))), "{report:#}");
    let tls = step(&report, "tls");
    assert_eq!(tls["reason"], "PEER_UNTRUSTED");
    assert!(tls["todo"].as_str().unwrap().contains("ca.pem"), "{tls}");

    let (revoked, finished) = site.enroll_as("stolen", site.ca.path(), Some(&stolen), &[]).await.unwrap();
    finished.ok().unwrap();
    let (code, report, steps) = checked(&revoked).await;
    assert_eq!((code, steps.last()), (Some(77), Some(&("identity".to_owned(), false))), "{report:#}");
    assert_eq!(step(&report, "identity")["reason"], "CERTIFICATE_REVOKED");

    let closed = site.enroll("far").await.unwrap();
    let (here, nobody) = (site.gateway_address().to_string(), free_address().unwrap().to_string());
    Site::edit(&closed.config(), &here, &nobody).unwrap();
    let (code, report, steps) = checked(&closed).await;
    assert_eq!((code, steps.last()), (Some(69), Some(&("tcp".to_owned(), false))), "{report:#}");
    assert_eq!(step(&report, "tcp")["reason"], "PEER_UNREACHABLE", "{report:#}");
    // A name that nobody has; a table says the same as JSON.
    Site::edit(&closed.config(), &nobody, "gateway.invalid:7443").unwrap();
    let config = closed.config().display().to_string();
    let table = command::run(&site.programs().device(), ["-c", &config, "netcheck"], &[]).await.unwrap();
    assert_eq!(table.code, Some(69), "{}", table.stdout);
    assert!(
        table.stdout.contains("gateway.endpoints") && table.stdout.contains("failed PH-"),
        "{}",
        table.stdout
    );
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_simulated_fleet_in_and_out_of_coverage_has_books_that_balance_at_both_ends() {
    // The long version is ten minutes of a hundred vehicles that see the mast for a quarter of the time.
    let (vehicles, duration, rate, road) = if pithead_tests::long() {
        (100, 600, 10, "on 20s\noff 60s jitter 30%\n")
    } else {
        (10, 10, 50, "# in sight of the mast, and behind the hill\non 2s\noff 1500ms jitter 30%\n")
    };
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    for number in 0..vehicles {
        // As vehicles are put into service: with the keys to begin with.
        let bundle = site.authority.bundle(SITE).display().to_string();
        site.enroll_with(&format!("truck-{number:02}"), &["--bundle", &bundle]).await.unwrap();
    }
    let (lasts, rate, coverage) = (format!("{duration}s"), rate.to_string(), road);
    let road = site.folder().join("road.txt");
    fs::write(&road, coverage).unwrap();
    let (devices, road) = (site.folder().join("devices").display().to_string(), road.display().to_string());
    let arguments = [
        "-o",
        "json",
        "simulate",
        "--devices",
        &devices,
        "--coverage",
        &road,
        "--rate",
        &rate,
        "--duration",
        &lasts,
        "--seed",
        "7",
        "--file-size",
        "3KiB",
        "--file-every",
        "3s",
    ];
    let running = command::start(&site.programs().device(), arguments, &[], false).unwrap();
    let finished =
        running.finish_within(if pithead_tests::long() { 40 } else { 4 }).await.unwrap().ok().unwrap();
    let report: Value = finished.json().unwrap();
    let ledger = &report["ledger"];
    let count = |name: &str| ledger[name].as_u64().unwrap_or_else(|| panic!("{name} in {report:#}"));
    assert_eq!((&report["vehicles"], &report["balanced"]), (&json!(vehicles), &json!(true)), "{report:#}");
    assert_eq!(
        (count("waiting"), count("lost"), count("dropped"), count("conflicts")),
        (0, 0, 0, 0),
        "{report:#}"
    );
    assert_eq!((count("recorded"), count("sealed")), (count("held"), count("delivered")), "{report:#}");
    // Vehicles, rate and time; a machine under load records less, and says so.
    let most = vehicles as u64 * rate.parse::<u64>().unwrap() * duration;
    assert!((most * 2 / 5..=most + most / 20).contains(&count("recorded")), "{report:#}");
    println!("coverage: {report}");
    let air = &report["air"];
    assert!(air["cut"].as_u64() > Some(10) && air["reconnects"].as_u64() > Some(10), "{report:#}");
    assert!(air["up_bytes"].as_u64() > ledger["sealed_bytes"].as_u64(), "{report:#}");
    let latency = &report["ack_latency"];
    assert!(latency["all"]["samples"].as_u64() > Some(20), "{report:#}");
    assert!(latency["all"]["p99_ms"].as_f64() > latency["connected"]["p50_ms"].as_f64(), "{report:#}");

    // The far end tells the same story: every envelope that was sealed, once, and no hole.
    site.until_relayed().await.unwrap();
    let (code, books) = verified(&site).await;
    assert_eq!((code, missing(&books)), (Some(0), 0), "{books:#}");
    assert!(
        books["streams"].as_array().unwrap().len() >= 2 * vehicles,
        "records and files of each: {books:#}"
    );
    let delivered = site.delivered().unwrap();
    assert_eq!((delivered.repeated(), delivered.disordered()), (0, 0), "applied once, in order");
    // A heartbeat has a number and leaves nothing in a sink of records.
    assert!(delivered.holes() <= count("heartbeats"), "{} of {report:#}", delivered.holes());
    assert_eq!(delivered.records(), count("recorded"), "each record and each file");
    site.stop().await.unwrap();
}

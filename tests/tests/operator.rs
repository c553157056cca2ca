//! What the people who run a site type: check, status, top, drain, with the real programs.

use std::fs;

use pithead_tests::{
    command,
    site::{Custody, Site, SiteOptions},
};
use serde_json::Value;

/// The result of one line of a report.
fn line<'a>(report: &'a Value, check: &str) -> &'a Value {
    let lines = report["checks"].as_array().unwrap();
    lines.iter().find(|line| line["check"] == check).unwrap_or_else(|| panic!("no {check}: {report:#}"))
}

async fn check(site: &Site, more: &[&str]) -> (Option<i32>, Value) {
    let arguments = [&["check", "-o", "json"], more].concat();
    let finished = site.gateway_command(&arguments).await.unwrap();
    let report = finished.json().unwrap();
    (finished.code, report)
}

async fn check_of_the_decryptor(site: &Site, more: &[&str]) -> (Option<i32>, Value) {
    let config = site.decryptor_config().display().to_string();
    let arguments = [&["check", "-o", "json", "-c", &config], more].concat();
    let finished = site.decryptor_command(&arguments).await.unwrap();
    let report = finished.json().unwrap();
    (finished.code, report)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_that_runs_has_no_failure_and_each_line_says_what_was_found() {
    let options = SiteOptions { custody: Custody::Kms, gateway_asks_kms: true, ..SiteOptions::default() };
    let site = Site::start(options).await.unwrap();
    let (code, report) = check(&site, &[]).await;
    // What the machine of a test is like, nobody knows: it may be warned of, and keeps nothing from serving.
    assert!(matches!(code, Some(0 | 3)), "{report:#}");
    assert_eq!(report["failures"], 0, "{report:#}");
    for good in ["file", "files", "key source", "relay", "KMS, active key", "key statement", "clock", "disk"]
    {
        assert!(
            matches!(line(&report, good)["result"].as_str(), Some("ok" | "warning")),
            "{good}: {report:#}"
        );
    }
    for (check, words) in [
        ("key source", "statement 1.1, verified against the root that is here"),
        ("relay", " serves, answered in "),
        ("KMS, active key", "is enabled, and is the one that was stated"),
        ("headroom", "nothing comes in now"),
        ("admin port", "on this machine alone"),
        ("this gateway's certificate", "until 2"),
    ] {
        let line = line(&report, check);
        assert_eq!(line["result"], "ok", "{line:#}");
        assert!(line["words"].as_str().unwrap().contains(words), "{line:#}");
    }
    assert!(!site.gateway_data().join(".check.part").exists());

    let (code, report) = check_of_the_decryptor(&site, &[]).await;
    assert!(matches!(code, Some(0 | 3)), "{report:#}");
    assert_eq!(report["failures"], 0, "{report:#}");
    for good in ["certificates", "bundle", "active key", "statement of pit-7", "decryptor"] {
        assert_eq!(line(&report, good)["result"], "ok", "{good}: {report:#}");
    }

    // The same for people.
    let shown = site.gateway_command(&["check"]).await.unwrap().stdout;
    assert!(shown.starts_with("configuration\n  √ file "), "{shown}");
    assert!(shown.contains("\nconnectivity\n") && shown.contains("\nproduction readiness\n"), "{shown}");
    assert!(shown.contains("\n0 failures, ") && !shown.contains('\u{1b}'), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_first_start_the_ports_are_free_and_a_source_that_is_away_is_a_failure() {
    let mut site = Site::create(SiteOptions::default()).await.unwrap();
    let (code, report) = check(&site, &["--pre", "--timeout", "2s"]).await;
    assert_eq!(code, Some(4), "{report:#}");
    let source = line(&report, "key source");
    assert_eq!((&source["result"], &source["code"]), (&"failure".into(), &"PH-4006".into()), "{source:#}");
    assert!(source["todo"].is_string(), "{source:#}");
    assert_eq!(line(&report, "relay")["result"], "warning", "a WAN that is away is no failure");
    assert_eq!(line(&report, "[ingest] listen")["result"], "ok", "{report:#}");
    assert_eq!(line(&report, "data directory")["words"], "nobody has worked in it");
    assert_eq!(fs::read_dir(site.gateway_data()).unwrap().count(), 0, "a check makes nothing");

    site.start_decryptor().await.unwrap();
    let (code, report) = check(&site, &["--pre"]).await;
    assert!(matches!(code, Some(0 | 3)), "{report:#}");
    assert_eq!(line(&report, "key statement")["result"], "ok", "{report:#}");

    // With a statement on its disk, a gateway goes on without its source.
    site.start_gateway().await.unwrap();
    site.kill_decryptor().await.unwrap();
    let (code, report) = check(&site, &["--timeout", "2s"]).await;
    assert_eq!(code, Some(3), "{report:#}");
    assert_eq!(line(&report, "key source")["result"], "warning", "{report:#}");
    assert_eq!(line(&report, "relay")["result"], "warning", "{report:#}");
    // And the ports are not free any more.
    let (code, report) = check(&site, &["--pre", "--timeout", "2s"]).await;
    assert_eq!(code, Some(4), "{report:#}");
    assert_eq!(line(&report, "[ingest] listen")["code"], "PH-6003", "{report:#}");
    assert_eq!(line(&report, "data directory")["code"], "PH-6005", "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_file_ends_with_78_and_says_where_and_a_missing_disk_is_no_bad_file() {
    let site = Site::create(SiteOptions::default()).await.unwrap();
    Site::edit(&site.gateway_config(), "data_dir", "data_dri").unwrap();
    let (code, report) = check(&site, &[]).await;
    assert_eq!(code, Some(78), "{report:#}");
    let file = line(&report, "file");
    assert!(file["words"].as_str().unwrap().contains("did you mean `data_dir`?"), "{file:#}");
    assert_eq!(file["code"], "PH-6001", "{file:#}");
    Site::edit(&site.gateway_config(), "data_dri", "data_dir").unwrap();

    Site::edit(&site.gateway_config(), "data_dir = \"data\"", "data_dir = \"not-mounted\"").unwrap();
    let (code, report) = check(&site, &["--pre", "--timeout", "2s"]).await;
    assert_eq!(code, Some(4), "{report:#}");
    assert_eq!(line(&report, "disk")["code"], "PH-6004", "{report:#}");
    Site::edit(&site.gateway_config(), "data_dir = \"not-mounted\"", "data_dir = \"data\"").unwrap();

    fs::remove_file(site.folder().join("gateway/gateway.key")).unwrap();
    let (code, report) = check(&site, &["--pre", "--timeout", "2s"]).await;
    assert_eq!(code, Some(78), "{report:#}");
    assert_eq!(line(&report, "files")["code"], "PH-6002", "{report:#}");

    let (code, report) = check_of_the_decryptor(&site, &["--pre"]).await;
    assert!(matches!(code, Some(0 | 3)), "{report:#}");
    fs::remove_file(site.private_key()).unwrap();
    let (code, report) = check_of_the_decryptor(&site, &["--pre"]).await;
    assert_eq!(code, Some(78), "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_drains_not_ready_first_and_the_command_ends_when_it_has_ended() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let device = site.enroll("truck-1").await.unwrap();
    device.send("can", &["one".into()]).await.unwrap();
    let config = site.gateway_config().display().to_string();
    let arguments = ["drain", "--grace", "3s", "-c", &config];
    let drain = command::start(&site.programs().gateway(), arguments, &[], false).unwrap();
    site.gateway()
        .unwrap()
        .until("says that it is not ready and still lives", async |admin| {
            let ready = admin.get("/readyz").await.map(|reply| reply.status);
            ready.is_ok_and(|status| status == 503)
                && admin.get("/livez").await.is_ok_and(|reply| reply.status == 200)
        })
        .await
        .unwrap();
    let status = site.gateway_command(&["status"]).await.unwrap();
    assert_eq!(status.code, Some(4), "{}", status.stdout);
    assert!(status.stdout.contains("It is stopping"), "{}", status.stdout);
    // It goes on serving while it says so.
    device.send("can", &["two".into()]).await.unwrap();

    let drained = drain.finish().await.unwrap().ok().unwrap();
    assert!(drained.stdout.starts_with("stopped in "), "{}", drained.stdout);
    // The lock is free: the next one starts at once.
    site.start_gateway().await.unwrap();
    site.until_relayed().await.unwrap();
    site.stop_gateway().await.unwrap();
    let none = site.gateway_command(&["drain"]).await.unwrap();
    assert_eq!(none.code, Some(69), "{}", none.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_takes_too_long_says_so_and_goes_on() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let slow = site.gateway_command(&["drain", "--grace", "1h", "--timeout", "200ms"]).await.unwrap();
    assert_eq!(slow.code, Some(75), "{}", slow.stderr);
    assert!(slow.stderr.contains("has not ended within 200 ms"), "{}", slow.stderr);
    assert!(!site.gateway().unwrap().admin().get("/readyz").await.is_ok_and(|reply| reply.status == 200));
    // Another one is in more of a hurry.
    site.gateway_command(&["drain"]).await.unwrap().ok().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn top_and_status_say_what_it_means_in_a_pipe_as_well() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let device = site.enroll("truck-1").await.unwrap();
    device.send("can", &["one".into(), "two".into()]).await.unwrap();
    site.until_relayed().await.unwrap();
    let top = site.gateway_command(&["top", "--once"]).await.unwrap().ok().unwrap().stdout;
    assert!(top.contains("All is well") && top.contains("devices by traffic"), "{top}");
    assert!(top.lines().any(|line| line.starts_with("truck-1 ")), "{top}");
    assert!(top.contains("1.0/s") || top.contains("0.0/s"), "{top}");
    assert!(!top.contains('\u{1b}') && top.lines().all(|line| line.chars().count() <= 100), "{top}");
    // Without --once, a pipe gets one frame as well.
    site.gateway_command(&["top"]).await.unwrap().ok().unwrap();

    let status = site.gateway_command(&["status"]).await.unwrap().ok().unwrap().stdout;
    assert!(
        status.contains("All is well") && status.contains("  capacity                 2.0 GiB\n"),
        "{status}"
    );
    site.kill_decryptor().await.unwrap();
    site.gateway()
        .unwrap()
        .until("knows that the far end is away", async |admin| {
            admin.status().await.is_ok_and(|status| status["relay"]["up"] == false)
        })
        .await
        .unwrap();
    let status = site.gateway_command(&["status", "-o", "json"]).await.unwrap();
    assert_eq!(status.code, Some(3), "{}", status.stdout);
    let status: Value = status.json().unwrap();
    assert!(status["meaning"].as_str().unwrap().starts_with("Nothing goes to the cloud for "), "{status:#}");
    let attention = status["attention"].as_array().unwrap();
    let of_relay = attention.iter().any(|what| what.as_str().unwrap().starts_with("relay"));
    assert!(!of_relay, "a WAN that is down is a normal state, and said once: {attention:?}");
    site.stop_gateway().await.unwrap();
    let none = site.gateway_command(&["top"]).await.unwrap();
    assert_eq!(none.code, Some(69), "{}", none.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_decryptor_says_how_it_is_and_warns_of_a_device_that_cannot_sign() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let config = site.decryptor_config().display().to_string();
    let status = site.decryptor_command(&["status", "-c", &config]).await.unwrap().ok().unwrap().stdout;
    assert!(
        status.starts_with("pithead-decryptor ") && status.contains(": serving\nAll is well"),
        "{status}"
    );
    let version: Value =
        site.decryptor_command(&["version", "-o", "json"]).await.unwrap().ok().unwrap().json().unwrap();
    assert_eq!(version["opener"], true);
    let required = site.device_command(&["add", "pit-7/truck-9", "--required"]).await.unwrap().ok().unwrap();
    assert!(
        required.stdout.contains("warning: no key is registered for pit-7/truck-9"),
        "{}",
        required.stdout
    );
    site.kill_decryptor().await.unwrap();
    let none = site.decryptor_command(&["status", "-c", &config]).await.unwrap();
    assert_eq!(none.code, Some(69), "{}", none.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_program_explains_its_codes_completes_itself_and_writes_its_man_pages() {
    let programs = pithead_tests::binaries::Binaries::get().unwrap();
    let folder = tempfile::tempdir().unwrap();
    for program in [programs.gateway(), programs.decryptor(), programs.device()] {
        let run = async |arguments: &[&str]| {
            command::run(&program, arguments.iter().copied(), &[]).await.unwrap().ok().unwrap().stdout
        };
        let explained = run(&["explain", "PH-6012"]).await;
        assert!(explained.starts_with("PH-6012 CLOCK_WRONG"), "{explained}");
        let name = program.file_name().unwrap().to_str().unwrap();
        for shell in ["bash", "zsh", "fish"] {
            assert!(run(&["completions", shell]).await.contains(name));
        }
        let out = folder.path().join(name).display().to_string();
        run(&["man", "--out", &out]).await;
        let page = fs::read_to_string(format!("{out}/{name}.1")).unwrap();
        assert!(page.contains("EXIT CODES") && page.contains("explain"), "{page}");
    }
    // A man page that nobody can render is none. Not every machine has the tool.
    let page = folder.path().join("pithead-gateway/pithead-gateway-check.1");
    match std::process::Command::new("groff").args(["-man", "-Tutf8", "-ww", "-z"]).arg(&page).output() {
        Ok(groff) => assert!(groff.status.success() && groff.stderr.is_empty(), "{groff:?}"),
        Err(_) => eprintln!("groff is missing: the pages were not rendered"),
    }
}

//! The configuration of running programs: read again while devices are served, and what each program says of its file.

use std::{fs, path::Path};

use pithead_tests::{
    command,
    program::PATIENCE,
    site::{Site, SiteOptions},
};
use serde_json::{Value, json};

use crate::identity::{Neighbour, hang_up, watching};

fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{from:?} in\n{text}");
    fs::write(path, text.replace(from, to)).unwrap();
}

fn keys(changes: &Value) -> Vec<&str> {
    changes.as_array().unwrap().iter().map(|change| change["key"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_file_takes_effect_a_bad_one_changes_nothing_and_no_call_fails() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let (to, ca, file) = (site.gateway_address(), site.ca.path().to_owned(), site.gateway_config());
    let (first, second) = (site.identity_of("first").unwrap(), site.identity_of("second").unwrap());
    site.gateway()
        .unwrap()
        .until("has keys", async |admin| admin.metric("pithead_key_sequence").await.unwrap_or(0.0) > 0.0)
        .await
        .unwrap();
    let (live, _open) = watching(to, &ca, &first).await;
    let neighbour = Neighbour::start(to, &ca, &second);
    neighbour.goes_on().await;
    let status = async |site: &mut Site| site.gateway().unwrap().admin().status().await.unwrap();
    assert_eq!(status(&mut site).await["reload"], Value::Null);

    // Good: what can change has changed, what cannot is named.
    edit(&file, "[relay]\n", "[relay]\nrate = \"3MiB\"\n");
    edit(&file, "rate = \"1TiB\"", "rate = \"2TiB\"");
    edit(&file, "connections_per_ip = 8192", "connections_per_ip = 4096");
    edit(&file, "max_size = \"2GiB\"", "max_size = \"3GiB\"");
    let done = site.gateway_command(&["reload", "-o", "json"]).await.unwrap();
    assert_eq!(done.code, Some(3), "{done:?}");
    let outcome: Value = done.json().unwrap();
    assert_eq!(
        keys(&outcome["changed"]),
        ["ingest.per_device.rate", "ingest.limits.connections_per_ip", "relay.rate"]
    );
    assert_eq!(keys(&outcome["needs_restart"]), ["spool.max_size"]);
    let now = status(&mut site).await;
    assert_eq!(now["relay"]["rate_bytes_per_s"], 3 << 20);
    assert_eq!(now["reload"]["taken"], true);
    assert_eq!(now["reload"]["needs_restart"], json!(["[spool] max_size"]));
    assert!(now["reload"]["s_ago"].as_u64().is_some_and(|age| age < 60), "{now}");
    assert!(site.gateway().unwrap().log_text().contains("config.needs_restart"));
    neighbour.goes_on().await;

    // Bad, by order and by signal.
    edit(&file, "[relay]\n", "[relay]\nrat = \"1MiB\"\n");
    let refused = site.gateway_command(&["reload"]).await.unwrap();
    assert_eq!(refused.code, Some(1), "{refused:?}");
    for said in
        ["refused[PH-6001] CONFIG_INVALID", "did you mean `rate`?", "the configuration before stays in force"]
    {
        assert!(refused.stdout.contains(said), "{said} in {refused:?}");
    }
    hang_up(site.gateway().unwrap(), "config.reload_refused").await;
    let now = status(&mut site).await;
    assert_eq!(now["reload"]["taken"], false);
    assert!(
        now["reload"]["failure"].as_str().is_some_and(|why| why.contains("unknown field `rat`")),
        "{now}"
    );
    assert_eq!(now["relay"]["rate_bytes_per_s"], 3 << 20, "what was in force is");
    neighbour.goes_on().await;

    // All of it put back.
    edit(&file, "rat = \"1MiB\"\nrate = \"3MiB\"\n", "");
    edit(&file, "max_size = \"3GiB\"", "max_size = \"2GiB\"");
    let done = site.gateway_command(&["reload"]).await.unwrap().ok().unwrap();
    assert!(done.stdout.contains("[relay] rate: \"3MiB\" -> not set"), "{done:?}");
    assert_eq!(status(&mut site).await["relay"]["rate_bytes_per_s"], Value::Null);
    assert!(!live.connection().is_ended(), "its connection was cut");
    neighbour.end().await;

    site.stop_gateway().await.unwrap();
    let alone = site.gateway_command(&["reload"]).await.unwrap();
    assert_eq!(alone.code, Some(69), "{alone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_way_to_the_cloud_moves_without_a_restart() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    site.take_the_link_out().unwrap();
    let done = site.gateway_command(&["reload", "-o", "json"]).await.unwrap().ok().unwrap();
    let outcome: Value = done.json().unwrap();
    assert_eq!(keys(&outcome["changed"]), ["keys.upstream", "relay.endpoint"]);
    // The way of before is gone, and nobody needs it.
    site.link.cut();
    let device = site.enroll("truck-1").await.unwrap();
    device.send("records", &["one".to_owned()]).await.unwrap();
    site.gateway()
        .unwrap()
        .until("has passed it on", async |admin| {
            admin.status().await.is_ok_and(|status| status["relay"]["acknowledged"].as_u64() >= Some(1))
        })
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_port_may_be_a_socket_and_one_that_was_left_behind_is_replaced() {
    let mut site = Site::create(SiteOptions::default()).await.unwrap();
    let socket = site.folder().join("admin.sock");
    edit(
        &site.gateway_config(),
        &format!("listen = \"{}\"", site.gateway_admin()),
        &format!("listen = \"unix:{}\"", socket.display()),
    );
    site.start_decryptor().await.unwrap();
    let ready = async |site: &Site| {
        let answered = async {
            loop {
                let status = site.gateway_command(&["status", "-o", "json"]).await.unwrap();
                if matches!(status.code, Some(0 | 3)) {
                    return status.json::<Value>().unwrap();
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, answered).await.expect("it answers on its socket")
    };
    site.launch_gateway().unwrap();
    assert_eq!(ready(&site).await["ready"], true);
    site.gateway_command(&["reload"]).await.unwrap().ok().unwrap();
    site.kill_gateway().await.unwrap();
    assert!(socket.exists(), "whoever is killed leaves it behind");
    let alone = site.gateway_command(&["status"]).await.unwrap();
    assert_eq!(alone.code, Some(69), "{alone:?}");
    site.launch_gateway().unwrap();
    assert_eq!(ready(&site).await["ready"], true);
    site.stop_gateway().await.unwrap();
    assert!(!socket.exists(), "whoever ends takes it away");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decryptor_reads_its_file_again_and_says_what_came_of_it() {
    let mut site = Site::create(SiteOptions::default()).await.unwrap();
    site.start_decryptor().await.unwrap();
    let file = site.decryptor_config();
    let reload = async |site: &mut Site| {
        let decryptor = site.decryptor().unwrap();
        hang_up(decryptor, "config.reload").await;
        decryptor.admin().status().await.unwrap()["reload"].clone()
    };
    edit(&file, "poll = \"1s\"", "poll = \"2s\"");
    edit(&file, "[ingest]\n", "[ingest]\nunder_way = \"64MiB\"\n");
    let said = reload(&mut site).await;
    assert_eq!((&said["taken"], &said["changed"]), (&json!(true), &json!(["[keys] poll"])));
    assert_eq!(said["needs_restart"], json!(["[ingest] under_way"]));
    edit(&file, "kms = ", "kmss = ");
    let said = reload(&mut site).await;
    assert_eq!(said["taken"], false);
    assert!(said["failure"].as_str().is_some_and(|why| why.contains("did you mean")), "{said}");
    // It goes on: a gateway gets its keys.
    edit(&file, "kmss = ", "kms = ");
    site.start_gateway().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_program_checks_and_shows_its_file_and_a_wrong_twin_is_named() {
    let site = Site::create(SiteOptions::default()).await.unwrap();
    let device = site.enroll("truck-1").await.unwrap();
    let programs = [
        (site.programs().gateway(), site.gateway_config(), "PITHEAD_INGEST__LISTN", "listen"),
        (site.programs().decryptor(), site.decryptor_config(), "PITHEAD_INGEST__LISTN", "listen"),
        (site.programs().device(), device.config(), "PITHEAD_DEVICE__STAT", "state"),
    ];
    for (program, file, misspelt, meant) in programs {
        let file = file.display().to_string();
        let run = async |words: &[&str], environment: &[(&'static str, String)]| {
            let words = words.iter().copied().chain(["-c", file.as_str()]);
            command::run(&program, words, environment).await.unwrap()
        };
        run(&["config", "check"], &[]).await.ok().unwrap();
        let checked: Value = run(&["config", "check", "-o", "json"], &[]).await.ok().unwrap().json().unwrap();
        assert_eq!(checked["good"], true, "{checked}");
        let template = command::run(&program, ["config", "template"], &[]).await.unwrap().ok().unwrap();
        assert!(template.stdout.starts_with("# "), "{template:?}");

        let shown = run(&["config", "show", "--origin"], &[]).await.ok().unwrap().stdout;
        assert!(shown.contains(&format!("# {file}:")) && shown.contains("# default"), "{shown}");
        // What is shown is a file that says the same.
        let plain = run(&["config", "show"], &[]).await.ok().unwrap().stdout;
        let copy = Path::new(&file).with_file_name("copy.toml");
        fs::write(&copy, &plain).unwrap();
        let copied = command::run(&program, ["config", "show", "-c", &copy.display().to_string()], &[]).await;
        assert_eq!(copied.unwrap().ok().unwrap().stdout, plain);

        let wrong = run(&["config", "check"], &[(misspelt, "x".to_owned())]).await;
        assert_eq!(wrong.code, Some(78), "{wrong:?}");
        let said = format!("{misspelt}: unknown field");
        assert!(
            wrong.stderr.contains(&said) && wrong.stderr.contains(&format!("did you mean `{meant}`?")),
            "{wrong:?}"
        );
        assert!(wrong.refused_with("PH-6001", "CONFIG_INVALID"), "{wrong:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_that_is_not_there_is_said_with_the_line_that_names_it() {
    let site = Site::create(SiteOptions::default()).await.unwrap();
    let file = site.gateway_config();
    edit(&file, "data_dir = \"data\"", "data_dir = \"not-mounted\"");
    let check = site.gateway_command(&["config", "check"]).await.unwrap();
    let run = site.gateway_command(&["run"]).await.unwrap();
    assert_eq!((check.code, run.code), (Some(73), Some(73)), "{check:?} {run:?}");
    let line =
        fs::read_to_string(&file).unwrap().lines().position(|line| line.contains("not-mounted")).unwrap() + 1;
    assert!(check.stderr.contains(&format!("gateway.toml:{line})")), "{check:?}");
}

//! What running programs say of themselves: their metrics are those that are declared, their pages have the documented shape, and
//! the supervisor hears what it is promised.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use pithead_tests::{
    binaries::workspace,
    program::{Admin, PATIENCE, Program},
    site::{KeySource, Site, SiteOptions},
    telemetry::Truck,
};
use serde_json::Value;

fn lines(count: u64) -> Vec<String> {
    Truck::new(1, 1_700_000_000_000_000).take(count as usize).map(|frame| frame.to_candump()).collect()
}

/// A family on the reference page.
#[derive(Debug)]
struct Declared {
    kind: String,
    labels: String,
}

/// The page's tables, by the program's name.
fn declared(program: &str) -> BTreeMap<String, Declared> {
    let page = fs::read_to_string(workspace().join("docs/reference/metrics.md")).unwrap();
    let section = page.split(&format!("## {program}\n")).nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| {
        let (name, rest) = row.split_once("` | ").unwrap();
        let mut cells = rest.split(" | ");
        let mut cell = || cells.next().unwrap().to_owned();
        (name.to_owned(), Declared { kind: cell(), labels: cell() })
    })
    .collect()
}

/// The families of a scrape, with their kinds and the values of their labels.
fn scraped(page: &str) -> BTreeMap<String, (String, BTreeSet<(String, String)>)> {
    let mut families: BTreeMap<String, (String, BTreeSet<(String, String)>)> = BTreeMap::new();
    let mut current = None;
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            let name = match kind {
                "counter" => format!("{name}_total"),
                "info" => format!("{name}_info"),
                _ => name.to_owned(),
            };
            families.insert(name.clone(), (kind.to_owned(), BTreeSet::new()));
            current = Some(name);
        } else if !line.starts_with('#') {
            let name = current.as_ref().expect("a type comes first");
            let (series, _) = line.rsplit_once(' ').unwrap();
            assert!(series.starts_with(name.as_str()), "{line} stands under {name}");
            if let Some((_, labels)) = series.split_once('{') {
                for label in labels.trim_end_matches('}').split("\",") {
                    let (label, value) = label.split_once("=\"").unwrap();
                    let value = value.trim_end_matches('"');
                    families.get_mut(name).unwrap().1.insert((label.to_owned(), value.to_owned()));
                }
            }
        }
    }
    families
}

async fn compare(program: &str, admin: Admin) {
    let page = admin.get("/metrics").await.unwrap().body;
    assert!(page.ends_with("# EOF\n"), "{program} says all of it");
    let (declared, scraped) = (declared(program), scraped(&page));
    for (name, (kind, labels)) in &scraped {
        let on_page =
            declared.get(name).unwrap_or_else(|| panic!("{program} serves {name}, which is not declared"));
        assert_eq!(*kind, on_page.kind, "{name}");
        for (label, value) in labels.iter().filter(|(label, _)| label != "le") {
            assert!(on_page.labels.contains(&format!("`{label}`")), "{name} has a label {label}");
            let listed = on_page.labels.contains(&format!("`{value}`"));
            let open = ["register of errors", "the version", "a site of"]
                .iter()
                .any(|words| on_page.labels.contains(words));
            assert!(listed || open, "{name}{{{label}={value:?}}} is not one of {}", on_page.labels);
        }
    }
    for (name, one) in &declared {
        let later = one.labels.contains("from the first event on");
        assert!(
            later || scraped.contains_key(name),
            "{program} declares {name} and does not serve it:\n{page}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_site_serves_every_metric_that_is_declared_and_no_other() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let truck = site.enroll("truck-1").await.unwrap();
    truck.send("can", &lines(5)).await.unwrap();
    let gateway = site.gateway().unwrap();
    gateway
        .until("has passed on what was sent", async |admin| {
            admin.metric_where("pithead_relay_envelopes_total", "stored").await.is_ok_and(|count| count > 0.0)
        })
        .await
        .unwrap();
    let admin = gateway.admin();
    compare("pithead-gateway", admin).await;
    let page = admin.get("/metrics").await.unwrap().body;
    let label = "rpc_method=\"pithead.ingest.v1.IngestService/Append\"";
    assert!(
        page.lines()
            .any(|line| line.starts_with("rpc_server_call_duration_seconds_count") && line.contains(label)),
        "{page}"
    );
    for (metric, at_least) in [
        ("pithead_spool_sync_duration_seconds_count", 1.0),
        ("pithead_ingest_durable_seconds_count", 1.0),
        ("pithead_ingest_stored_bytes_total", 100.0),
        ("pithead_relay_last_acknowledged_timestamp_seconds", 1.0),
        ("pithead_key_statement_expires_timestamp_seconds", 1.0),
        ("pithead_key_seal_until_timestamp_seconds", 1.0),
        ("pithead_disk_available_bytes", 1.0),
        ("process_resident_memory_bytes", 1.0),
        ("pithead_ready", 1.0),
    ] {
        let value = admin.metric(metric).await.unwrap();
        assert!(value >= at_least, "{metric} is {value}");
    }
    let decryptor = site.decryptor().unwrap().admin();
    compare("pithead-decryptor", decryptor).await;
    let page = decryptor.get("/metrics").await.unwrap().body;
    assert!(page.contains("pithead_key_statement_expires_timestamp_seconds{site=\"pit-7\"}"), "{page}");
    assert!(decryptor.metric("pithead_sink_commit_duration_seconds_count").await.unwrap() >= 1.0);
    site.stop().await.unwrap();
}

/// The paths of an answer: `spool.records`. Of a list the first.
fn paths(value: &Value, at: &str, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
                into.insert(path.clone());
                paths(value, &path, into);
            }
        }
        Value::Array(list) => {
            if let Some(first) = list.first() {
                paths(first, at, into);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The paths that docs/reference/statusz.md tells of for a program.
fn documented(program: &str) -> BTreeSet<String> {
    let page = fs::read_to_string(workspace().join("docs/reference/statusz.md")).unwrap();
    let section = page.split(&format!("## {program}\n")).nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    rows.map(|(path, _)| path.to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_pages_have_the_documented_shape_and_readiness_the_documented_answer() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let truck = site.enroll("truck-1").await.unwrap();
    truck.send("can", &lines(3)).await.unwrap();
    site.gateway()
        .unwrap()
        .until("has rates", async |admin| {
            admin.status().await.is_ok_and(|status| {
                status["rates"]["ack_p99_ms"].is_number() && status["dimensions"]["relay"]["level"] == "ok"
            })
        })
        .await
        .unwrap();
    site.decryptor()
        .unwrap()
        .until("has rates", async |admin| {
            admin.status().await.is_ok_and(|status| status["rates"]["window_s"].is_number())
        })
        .await
        .unwrap();
    for (program, admin) in [
        ("pithead-gateway", site.gateway().unwrap().admin()),
        ("pithead-decryptor", site.decryptor().unwrap().admin()),
    ] {
        let status = admin.status().await.unwrap();
        let mut found = BTreeSet::new();
        paths(&status, "", &mut found);
        let documented = documented(program);
        let undocumented: Vec<_> = found.difference(&documented).collect();
        assert!(
            undocumented.is_empty(),
            "{program}: docs/reference/statusz.md does not tell of {undocumented:?}"
        );
        let gone: Vec<_> = documented.difference(&found).collect();
        assert!(gone.is_empty(), "{program} does not say {gone:?}:\n{status:#}");
        assert_eq!(
            (status["level"].as_str(), status["ready"].as_bool()),
            (Some("ok"), Some(true)),
            "{status:#}"
        );
        assert_eq!(status["words"], "ready; all is well");
        assert_eq!(admin.get("/livez").await.unwrap().status, 200);
        assert_eq!(admin.get("/readyz").await.unwrap().body, "ready\n");
    }
    site.stop().await.unwrap();
}

/// What arrives at a supervisor's socket, until a message says `until`.
async fn heard(socket: &tokio::net::UnixDatagram, until: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let listening = async {
        let mut buffer = [0; 4096];
        loop {
            let length = socket.recv(&mut buffer).await.unwrap();
            let message = String::from_utf8(buffer[..length].to_vec()).unwrap();
            lines.extend(message.lines().map(str::to_owned));
            if message.lines().any(|line| line.contains(until)) {
                return;
            }
        }
    };
    let outcome = tokio::time::timeout(PATIENCE, listening).await;
    assert!(outcome.is_ok(), "never: {until}; heard {lines:?}");
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn the_supervisor_is_told_that_both_programs_are_ready_how_they_are_that_they_live_and_that_they_stop()
{
    // Each is alone: the gateway is ready with the bundle that was carried in.
    let options = SiteOptions { keys: KeySource::Bundle, ..SiteOptions::default() };
    let mut site = Site::create(options).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (program, config, admin) in [
        (site.programs().decryptor(), site.decryptor_config(), site.decryptor_admin()),
        (site.programs().gateway(), site.gateway_config(), site.gateway_admin()),
    ] {
        let path = folder.path().join(program.file_name().unwrap());
        let socket = tokio::net::UnixDatagram::bind(&path).unwrap();
        let environment =
            [("NOTIFY_SOCKET", path.display().to_string()), ("WATCHDOG_USEC", "2000000".to_owned())];
        let log = folder.path().join("program.log");
        let arguments = ["run".as_ref(), "-c".as_ref(), config.as_os_str()];
        let mut running = Program::start(&program, &arguments, &environment, admin, &log).unwrap();
        let first = heard(&socket, "READY=1").await;
        assert!(first.iter().all(|line| !line.starts_with("WATCHDOG")), "{first:?}");
        running.ready().await.unwrap();
        heard(&socket, "STATUS=ready; ").await;
        for _ in 0..4 {
            heard(&socket, "WATCHDOG=1").await;
        }
        let stopped = tokio::spawn(running.stop());
        heard(&socket, "STOPPING=1").await;
        assert!(stopped.await.unwrap().unwrap().success());
    }
    site.stop().await.unwrap();
}

//! A site that relays into a bucket: devices, a gateway and a store, with nobody at the other end.
//!
//! The gateway is killed at random moments under load, the way to the store is cut, a budget is set. `PITHEAD_LONG=1` kills for
//! long, `PITHEAD_SEED` chooses the moments.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use pithead_hop::bundle::{Bundle, BundleName, Part};
use pithead_sealing::envelope::{Header, Profile};
use pithead_tests::{
    link::Link,
    program::free_address,
    random::Random,
    s3::{Fault, TestS3},
    site::{KeySource, SITE, Site, SiteOptions},
};

const BUCKET: &str = "pits";
/// Records come at the pace of a bus.
const TICK: Duration = Duration::from_millis(5);
/// Ticks between two kills, at most: a fifth of a second, so that some hit the gateway while it starts.
const TICKS: u64 = 40;

fn kills() -> u64 {
    if pithead_tests::long() { 120 } else { 12 }
}

/// The gateway of a site without a decryptor, which relays to `endpoint`.
async fn site(endpoint: &str, more: &str) -> Site {
    let lines = vec![
        ("spool.lanes", "first = [\"alarms\"]\nthird = [\"can-raw\"]".to_owned()),
        (
            "relay.store",
            format!(
                "url = \"s3://{BUCKET}/sealed\"\nendpoint = \"{endpoint}\"\ncredentials = \"s3\"\n{more}"
            ),
        ),
    ];
    let options = SiteOptions { keys: KeySource::Bundle, gateway_lines: lines, ..SiteOptions::default() };
    let mut site = Site::create(options).await.unwrap();
    let far = format!("endpoint = \"{}\"\nca = \"cloud-ca.pem\"\n", site.link.address());
    Site::edit(&site.gateway_config(), &far, "kind = \"object_store\"\n").unwrap();
    let credentials = "[default]\naws_access_key_id = test\naws_secret_access_key = test\n";
    std::fs::write(site.gateway_config().with_file_name("s3"), credentials).unwrap();
    site.start_gateway().await.unwrap();
    site
}

/// All that is in the bucket by line, each number once, in the order in which it came to be there; and how often one was there again.
fn lines(s3: &TestS3) -> (BTreeMap<(String, String), Vec<u64>>, usize) {
    let objects = s3.objects(BUCKET);
    let (mut lines, mut seen, mut again) = (BTreeMap::<_, Vec<u64>>::new(), BTreeSet::new(), 0);
    for key in s3.created() {
        let Some(name) = key.strip_prefix("sealed/").filter(|name| name.starts_with("bundles/")) else {
            continue;
        };
        let bundle = Bundle::read(objects[&key].bytes.clone()).unwrap();
        bundle.index().is_of(&BundleName::parse(name).unwrap()).unwrap();
        for (_, part) in bundle.parts() {
            let identity = match part {
                Part::Envelope(envelope) => {
                    Profile::of(&Header::parse(&envelope).unwrap()).unwrap().identity().clone()
                }
                Part::Large(large) => {
                    assert_eq!(objects[&format!("sealed/{}", large.name)].bytes.len() as u64, large.total);
                    large.name.identity.clone()
                }
                Part::Damaged(_) => panic!("damaged"),
            };
            if seen.insert(identity.to_string()) {
                let line = (identity.device.to_string(), format!("{}/{}", identity.stream, identity.run));
                lines.entry(line).or_default().push(identity.seq.get());
            } else {
                again += 1;
            }
        }
    }
    (lines, again)
}

/// Every line is there from its first number on, without a gap and in order. Gives how many envelopes there are.
fn check(lines: &BTreeMap<(String, String), Vec<u64>>) -> u64 {
    for (line, numbers) in lines {
        let expected: Vec<u64> = (1..=numbers.len() as u64).collect();
        assert_eq!(numbers, &expected, "{line:?}");
    }
    lines.values().map(|numbers| numbers.len() as u64).sum()
}

fn records(from: usize, count: usize) -> Vec<String> {
    (from..from + count).map(|at| format!("record {at:06}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_killed_while_bundles_go_up_leaves_every_envelope_there_and_in_order() {
    let seed = match std::env::var("PITHEAD_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => getrandom::u64().unwrap(),
    };
    println!("PITHEAD_SEED={seed}");
    let mut random = Random(seed);
    let s3 = TestS3::start().await.unwrap();
    let mut site = site(&s3.url(), "bundle_size = \"64KiB\"\nbundle_delay = \"20ms\"").await;
    let mut trucks = Vec::new();
    for (number, stream) in (0..).zip(["alarms", "can", "can-raw"]) {
        let device = site.enroll(&format!("truck-{number}")).await.unwrap();
        device.key().await.unwrap();
        let sending = device.start_sending_with(stream, &["--linger", "2ms"]).unwrap();
        trucks.push((device, sending));
    }
    let faults = [
        Fault::DropAnswer,
        Fault::DropRequest,
        Fault::SlowDown,
        Fault::Taken,
        Fault::Trickle,
        Fault::Internal,
    ];
    let mut given = 0;
    for _ in 0..kills() {
        for _ in 0..=random.below(TICKS) {
            for (_, sending) in &mut trucks {
                for line in records(given, 4) {
                    sending.record(&line).await.unwrap();
                }
                sending.flush().await.unwrap();
            }
            given += 4;
            tokio::time::sleep(TICK).await;
        }
        s3.fail_next(faults[random.below(faults.len() as u64) as usize], 1, http::Method::PUT, "bundles/");
        site.kill_gateway().await.unwrap();
        site.launch_gateway().unwrap();
    }
    let mut acknowledged = 0;
    for (_, sending) in trucks {
        let summary = sending.finish().await.unwrap();
        assert_eq!(summary.refused, 0);
        acknowledged += summary.acknowledged;
    }
    s3.heal();
    site.until_relayed().await.unwrap();
    let (lines, again) = lines(&s3);
    assert_eq!(lines.len(), 3);
    assert_eq!((check(&lines), again), (acknowledged, 0));
    println!("killed {} times: {acknowledged} envelopes in {} objects", kills(), s3.objects(BUCKET).len());
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_goes_up_over_kills_and_what_is_beside_it_does_not_wait() {
    let s3 = TestS3::start().await.unwrap();
    let mut site =
        site(&s3.url(), "bundle_size = \"64KiB\"\nbundle_delay = \"20ms\"\nrequest_timeout = \"2s\"").await;
    let device = site.enroll("truck-1").await.unwrap();
    device.key().await.unwrap();
    let (file, sealed) = (site.folder().join("scan.bin"), site.folder().join("scan.sealed"));
    std::fs::write(&file, vec![7; 40 << 20]).unwrap();
    let [file, sealed] = [&file, &sealed].map(|path| path.display().to_string());
    device.run(&["seal", &file, "-O", &sealed]).await.unwrap().ok().unwrap();
    // It stops somewhere in the middle, again and again, until it has passed.
    s3.fail_next(Fault::Hang, 3, http::Method::PUT, "large/");
    device.run(&["upload", &sealed]).await.unwrap().ok().unwrap();
    for _ in 0..4 {
        device.send("can", &records(0, 50)).await.unwrap();
        site.kill_gateway().await.unwrap();
        site.start_gateway().await.unwrap();
    }
    site.until_relayed().await.unwrap();
    let (lines, _) = lines(&s3);
    check(&lines);
    assert_eq!(lines.keys().filter(|(_, line)| !line.starts_with("can/")).count(), 1);
    assert_eq!(lines.keys().filter(|(_, line)| line.starts_with("can/")).count(), 4);
    assert_eq!(s3.open_uploads(BUCKET), 0);
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_is_a_normal_state_and_what_waited_goes_up_when_it_is_back() {
    let s3 = TestS3::start().await.unwrap();
    let link = Link::start(free_address().unwrap(), s3.address()).await.unwrap();
    let mut site =
        site(&format!("http://{}", link.address()), "bundle_delay = \"20ms\"\nrequest_timeout = \"1s\"")
            .await;
    let device = site.enroll("truck-1").await.unwrap();
    let first = device.send("can", &records(0, 500)).await.unwrap();
    site.until_relayed().await.unwrap();
    link.cut();
    let second = device.send("can", &records(500, 500)).await.unwrap();
    let down = async |admin: pithead_tests::program::Admin| {
        admin.metric("pithead_relay_up").await.is_ok_and(|up| up == 0.0)
    };
    site.gateway().unwrap().until("notices", down).await.unwrap();
    assert_eq!(site.gateway().unwrap().admin().get("/readyz").await.unwrap().status, 200);
    let status = site.gateway_command(&["status", "-o", "json"]).await.unwrap();
    assert_eq!(status.code, Some(3), "degraded, and said so: {}{}", status.stdout, status.stderr);
    assert!(
        status.stdout.contains("PH-5016") || status.stdout.contains("STORE_UNREACHABLE"),
        "{}",
        status.stdout
    );
    let check_command = site.gateway_command(&["check"]).await.unwrap();
    for part in ["/pits/sealed/", "STORE_UNREACHABLE"] {
        assert!(check_command.stdout.contains(part), "{}", check_command.stdout);
    }
    link.heal();
    site.until_relayed().await.unwrap();
    let (lines, again) = lines(&s3);
    assert_eq!((check(&lines), again), (first.acknowledged + second.acknowledged, 0));
    let well = site.gateway_command(&["check"]).await.unwrap();
    assert!(well.stdout.contains("takes bundles, and writes over none"), "{}", well.stdout);
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_is_kept_and_a_bundle_is_split_by_the_program() {
    let s3 = TestS3::start().await.unwrap();
    let mut site = site(&s3.url(), "bundle_size = \"64KiB\"\nbundle_delay = \"20ms\"").await;
    let device = site.enroll("truck-1").await.unwrap();
    let paused = site.gateway_command(&["relay", "pause"]).await.unwrap();
    paused.ok().unwrap();
    let lines: Vec<String> = (0..400).map(|at| format!("{at:06}{}", "x".repeat(1_000))).collect();
    let sent = device.send("can", &lines).await.unwrap();
    site.gateway_command(&["relay", "rate", "100KiB"]).await.unwrap().ok().unwrap();
    let (before, began) = (s3.put_bytes(), Instant::now());
    site.gateway_command(&["relay", "resume"]).await.unwrap().ok().unwrap();
    site.until_relayed().await.unwrap();
    let (bytes, took) = (s3.put_bytes() - before, began.elapsed().as_secs_f64());
    // The burst of an idle link is a slice. A machine that is slow passes all the same: it takes longer.
    assert!(bytes as f64 / took < 1.25 * f64::from(100 << 10), "{bytes} bytes in {took} s");
    let (found, _) = self::lines(&s3);
    assert_eq!(check(&found), sent.acknowledged);

    let (key, object) = s3.objects(BUCKET).into_iter().find(|(key, _)| key.ends_with(".bundle")).unwrap();
    assert!(key.contains(&format!("/{SITE}/")));
    let (file, out) = (site.folder().join("a.bundle"), site.folder().join("split"));
    std::fs::write(&file, &object.bytes).unwrap();
    let text = |path: &std::path::Path| path.display().to_string();
    let split =
        site.decryptor_command(&["bundle", "split", &text(&file), "--out", &text(&out)]).await.unwrap();
    split.ok().unwrap();
    let shown = site.decryptor_command(&["bundle", "show", &text(&file), "-o", "json"]).await.unwrap();
    let shown: serde_json::Value = shown.json().unwrap();
    let entries = shown["entries"].as_array().unwrap();
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), entries.len() + 1);
    // A piece is what the device has sealed: the opener takes it.
    let piece = out.join(entries[0]["file"].as_str().unwrap());
    let private = text(&site.private_key());
    let plain = site.folder().join("plain");
    let open = ["open", &text(&piece), "-o", &text(&plain), "--private-key", &private];
    site.decryptor_command(&open).await.unwrap().ok().unwrap();
    let plain = std::fs::read(plain).unwrap();
    assert!(plain.windows(10).any(|window| window == b"000000xxxx"), "{} bytes", plain.len());
    site.stop().await.unwrap();
}

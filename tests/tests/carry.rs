//! A spool that is looked at, carried away and brought in again, with the real programs.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use pithead_tests::{
    client::Client,
    command::Finished,
    device::Device,
    forge::{Claim, Forge},
    kms::{Fault, KmsKey},
    ledger::hash_of,
    program::Admin,
    site::{Custody, NEXT_KEY_ARN, SITE, Site, SiteOptions},
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

fn records(from: usize, count: usize) -> Vec<String> {
    (from..from + count).map(|at| format!("truck 1 record {at:06}")).collect()
}

fn stick(site: &Site) -> PathBuf {
    site.folder().join("stick")
}

async fn spool(site: &Site, arguments: &[&str]) -> Finished {
    site.gateway_command(&[&["spool"], arguments, &["-o", "json"]].concat()).await.unwrap()
}

fn answer(finished: &Finished, code: i32) -> Value {
    assert_eq!(finished.code, Some(code), "{}{}", finished.stdout, finished.stderr);
    finished.json().unwrap()
}

async fn export(site: &Site, code: i32) -> Value {
    let to = stick(site).display().to_string();
    answer(&spool(site, &["export", "--to", &to]).await, code)
}

async fn import(site: &Site, more: &[&str], code: i32) -> Value {
    let from = stick(site).display().to_string();
    answer(&spool(site, &[&["import", &from], more].concat()).await, code)
}

fn index(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("index.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A site whose WAN is down, and a truck that sends in so many steps what then waits.
async fn cut_off(steps: usize) -> (Site, Device) {
    cut_off_with(SiteOptions::default(), steps).await
}

async fn cut_off_with(options: SiteOptions, steps: usize) -> (Site, Device) {
    let mut site = Site::start(options).await.unwrap();
    let device = site.enroll("truck-1").await.unwrap();
    device.send("can", &records(0, 100)).await.unwrap();
    site.until_relayed().await.unwrap();
    site.link.cut();
    let noticed = async |admin: Admin| admin.metric("pithead_relay_up").await.is_ok_and(|up| up == 0.0);
    site.gateway().unwrap().until("notices the cut", noticed).await.unwrap();
    for step in 1..=steps {
        device.send("can", &records(step * 100, 100)).await.unwrap();
    }
    (site, device)
}

/// The machine is dead, and another one takes its place with the same configuration and an empty disk.
async fn replace_the_gateway(site: &mut Site) {
    fs::remove_dir_all(site.gateway_data()).unwrap();
    fs::create_dir(site.gateway_data()).unwrap();
    site.start_gateway().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waited_on_a_killed_gateway_is_carried_to_a_fresh_one_and_delivered_once() {
    let (mut site, device) = cut_off(3).await;
    let waiting = site.gateway().unwrap().admin().metric("pithead_spool_records").await.unwrap();
    site.kill_gateway().await.unwrap();
    let sound = answer(&spool(&site, &["verify"]).await, 0);
    assert_eq!((&sound["lost_records"], sound["records"].as_f64()), (&json!(0), Some(waiting)));
    assert_eq!(answer(&spool(&site, &["stat"]).await, 0)["records"].as_f64(), Some(waiting));

    // Also from a disk that is mounted somewhere, without any configuration.
    let (data, to) = (site.gateway_data().display().to_string(), stick(&site).display().to_string());
    let arguments = ["spool", "export", "--data-dir", &data, "--to", &to, "-o", "json"];
    let gateway = site.programs().gateway();
    let exported = answer(&pithead_tests::command::run(&gateway, arguments, &[]).await.unwrap(), 0);
    assert_eq!(exported["written"].as_f64(), Some(waiting), "{exported:#}");
    // Again: nothing is written twice. And nothing has left the spool.
    let again = export(&site, 0).await;
    assert_eq!((&again["written"], again["there_before"].as_f64()), (&json!(0), Some(waiting)));
    let items = index(&stick(&site));
    let names: BTreeSet<&str> = items.iter().map(|item| item["file"].as_str().unwrap()).collect();
    assert_eq!(names.len(), items.len());
    for item in &items {
        let bytes = fs::read(stick(&site).join(item["file"].as_str().unwrap())).unwrap();
        assert_eq!(item["sha256"], hex::encode(Sha256::digest(&bytes)));
        assert_eq!(
            (&item["hops"][0]["gateway"], &item["hops"][0]["assurance"]),
            (&json!("edge-1"), &json!("vouched"))
        );
    }

    site.link.heal();
    replace_the_gateway(&mut site).await;
    let imported = import(&site, &[], 0).await;
    assert_eq!(imported["stored"].as_f64(), Some(waiting), "{imported:#}");
    site.until_relayed().await.unwrap();
    let duplicates = import(&site, &[], 0).await;
    assert_eq!((duplicates["duplicates"].as_f64(), &duplicates["stored"]), (Some(waiting), &json!(0)));
    // Straight to the cloud it is the same: there they are as well.
    let cloud = site.decryptor_address().to_string();
    let straight = import(&site, &["--to", &cloud], 0).await;
    assert_eq!(straight["duplicates"].as_f64(), Some(waiting), "{straight:#}");

    let delivered = site.delivered().unwrap();
    assert_eq!((delivered.holes(), delivered.repeated()), (0, 0));
    assert_eq!(hash_of(delivered.records_of(device.name())), hash_of(records(0, 400)));
    // Nobody vouches for what has been in a pocket.
    assert_eq!((delivered.with_assurance("vouched"), delivered.with_assurance("claimed")), (100, 300));
    let config = site.decryptor_config().display().to_string();
    site.decryptor_command(&["verify", "-c", &config]).await.unwrap().ok().unwrap();
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_gateway_is_exported_and_what_it_still_delivers_itself_is_delivered_once() {
    let (mut site, device) = cut_off(2).await;
    let exported = export(&site, 0).await;
    assert!(exported["written"].as_u64().unwrap() >= 2, "{exported:#}");
    site.link.heal();
    site.until_relayed().await.unwrap();
    let imported = import(&site, &[], 0).await;
    assert_eq!((&imported["duplicates"], &imported["stored"]), (&exported["written"], &json!(0)));
    let delivered = site.delivered().unwrap();
    assert_eq!((delivered.holes(), delivered.repeated()), (0, 0));
    assert_eq!(hash_of(delivered.records_of(device.name())), hash_of(records(0, 300)));
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_damaged_spool_what_is_lost_is_named_and_the_rest_is_carried_away() {
    let (mut site, _device) = cut_off(3).await;
    let whole = export(&site, 0).await["written"].as_u64().unwrap();
    site.kill_gateway().await.unwrap();
    fs::remove_dir_all(stick(&site)).unwrap();
    // A bit of the last envelope but two, which is not of the last group; its bytes say in clear whose it is.
    let (path, mut bytes) = last_segment(&site);
    let place = find(&bytes, b"pithead:site", 3).unwrap();
    bytes[place] ^= 1;
    fs::write(path, bytes).unwrap();

    let found = answer(&spool(&site, &["verify"]).await, 1);
    assert_eq!(found["lost_records"], 1, "{found:#}");
    let lost = found["lost"][0]["identities"][0].as_str().unwrap().to_owned();
    assert!(lost.starts_with("pit-7/truck-1/can/"), "{lost}");
    let exported = export(&site, 1).await;
    assert_eq!((&exported["written"], &exported["lost_records"]), (&json!(whole - 1), &json!(1)));
    let named = |item: &Value| {
        let part = |name: &str| item[name].as_str().unwrap().to_owned();
        format!("{}/{}/{}/{}/{}", part("site"), part("device"), part("stream"), part("run"), item["seq"])
    };
    assert!(index(&stick(&site)).iter().all(|item| named(item) != lost));
    site.stop().await.unwrap();
}

/// The segment with what waits, and its bytes.
fn last_segment(site: &Site) -> (PathBuf, Vec<u8>) {
    for lane in ["lane-0", "lane-1", "lane-2"] {
        let lane = site.gateway_data().join("spool").join(lane);
        let mut segments: Vec<PathBuf> = fs::read_dir(lane)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("seg-")))
            .collect();
        segments.sort();
        let Some(last) = segments.pop() else { continue };
        let bytes = fs::read(&last).unwrap();
        if find(&bytes, b"pithead:site", 3).is_some() {
            return (last, bytes);
        }
    }
    panic!("no lane has three envelopes");
}

/// Where `what` stands for the `last`-last time.
fn find(bytes: &[u8], what: &[u8], last: usize) -> Option<usize> {
    let mut places: Vec<usize> =
        (0..bytes.len() - what.len()).filter(|at| bytes[*at..].starts_with(what)).collect();
    places.truncate(places.len().checked_sub(last - 1)?);
    places.pop()
}

/// An export that somebody has made by hand: these envelopes of truck-1.
fn put_on(folder: &Path, envelopes: &[(u64, Bytes)]) {
    fs::create_dir_all(folder).unwrap();
    let mut lines = String::new();
    for (seq, bytes) in envelopes {
        let file = format!("{seq}.envelope");
        fs::write(folder.join(&file), bytes).unwrap();
        let item = json!({
            "file": file, "site": SITE, "device": "truck-1", "stream": "forged", "run": "0000000000000001",
            "seq": seq, "sha256": hex::encode(Sha256::digest(bytes)), "bytes": bytes.len(), "received_ms": 5,
        });
        lines += &format!("{item}\n");
    }
    fs::write(folder.join("index.jsonl"), lines).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_on_the_stick_or_refused_by_the_gateway_is_named_and_the_rest_is_held() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let forge = Forge::new(&site.authority).unwrap();
    let stranger = KmsKey::generate(NEXT_KEY_ARN, 2048).unwrap();
    let other = Forge::with_unknown_key(&site.authority, &stranger).unwrap();
    let at = |seq| Claim { seq, ..Claim::of("truck-1") };
    let envelopes = [
        (1, forge.seal(at(1), b"one").unwrap()),
        (2, forge.seal(at(2), b"two").unwrap()),
        (3, other.seal(at(3), b"three").unwrap()),
        (4, forge.seal(at(4), b"four").unwrap()),
    ];
    put_on(&stick(&site), &envelopes);
    let damaged = stick(&site).join("2.envelope");
    let mut bytes = fs::read(&damaged).unwrap();
    bytes[40] ^= 1;
    fs::write(&damaged, &bytes).unwrap();

    let imported = import(&site, &[], 1).await;
    assert_eq!(
        (&imported["stored"], &imported["refused"], &imported["damaged"]),
        (&json!(2), &json!(1), &json!(1))
    );
    let reasons: BTreeSet<&str> =
        imported["not_taken"].as_array().unwrap().iter().map(|one| one["reason"].as_str().unwrap()).collect();
    assert!(
        reasons.contains("DAMAGED") && reasons.iter().any(|reason| reason.ends_with("KEY_UNKNOWN")),
        "{imported:#}"
    );
    site.until_relayed().await.unwrap();
    assert_eq!(site.delivered().unwrap().records_of("truck-1"), [b"one".as_slice(), b"four"]);
    assert_eq!(site.delivered().unwrap().with_assurance("claimed"), 2);

    // The stick's copy is mended; other bytes under a used number are a conflict, and kept.
    put_on(&stick(&site), &[(2, envelopes[1].1.clone()), (4, forge.seal(at(4), b"another four").unwrap())]);
    let imported = import(&site, &[], 0).await;
    assert_eq!((&imported["stored"], &imported["conflicts"]), (&json!(1), &json!(1)), "{imported:#}");

    // A gateway that does not run.
    site.stop_gateway().await.unwrap();
    let from = stick(&site).display().to_string();
    let nobody = spool(&site, &["import", &from, "--timeout", "1s"]).await;
    assert_eq!(nobody.code, Some(69), "{}", nobody.stderr);
    assert!(nobody.refused_with("PH-4006", "PEER_UNREACHABLE"), "{}", nobody.stderr);
    // A folder that is no export.
    let none = spool(&site, &["import", &site.folder().display().to_string()]).await;
    assert_eq!(none.code, Some(1), "{}", none.stderr);
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_far_end_had_refused_is_carried_with_its_reason_and_sent_again_on_demand_alone() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let forge = Forge::new(&site.authority).unwrap();
    let client = Client::of(&site, "truck-1").await.unwrap();
    let poison = forge.poison(Claim::of("truck-1"), b"one").unwrap();
    client.submit(poison.clone()).await.unwrap();
    site.until_relayed().await.unwrap();

    let exported = export(&site, 0).await;
    assert_eq!((&exported["written"], &exported["refused"]), (&json!(1), &json!(1)), "{exported:#}");
    let item = &index(&stick(&site))[0];
    assert_eq!(item["refused"]["reason"], "ENVELOPE_FRAME_TAG", "{item:#}");
    assert_eq!(fs::read(stick(&site).join(item["file"].as_str().unwrap())).unwrap(), poison);
    let left = import(&site, &[], 0).await;
    assert_eq!((&left["left_alone"], &left["duplicates"]), (&json!(1), &json!(0)));
    let again = import(&site, &["--refused"], 0).await;
    assert_eq!(again["duplicates"], 1, "the gateway has had it: {again:#}");
    let cloud = site.decryptor_address().to_string();
    let refused = import(&site, &["--refused", "--to", &cloud], 1).await;
    assert_eq!(refused["refused"], 1, "and the cloud says the same: {refused:#}");
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exported_envelope_is_a_standard_one_and_opens_without_the_gateway() {
    let (mut site, _device) = cut_off(1).await;
    export(&site, 0).await;
    site.stop().await.unwrap();
    let item = &index(&stick(&site))[0];
    let sealed = stick(&site).join(item["file"].as_str().unwrap()).display().to_string();
    let plain = site.folder().join("plain");
    let (key, to) = (site.private_key().display().to_string(), plain.display().to_string());
    let opened = site.decryptor_command(&["open", &sealed, "-o", &to, "--private-key", &key]).await.unwrap();
    let opened = opened.ok().unwrap();
    assert!(opened.stderr.contains(item["run"].as_str().unwrap()), "{}", opened.stderr);
    let plain = fs::read(plain).unwrap();
    assert!(find(&plain, b"truck 1 record 000100", 1).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_envelope_is_carried_in_its_place_and_a_damaged_one_is_named() {
    let (mut site, device) = cut_off(1).await;
    let mut content = vec![0; 3 << 20];
    getrandom::fill(&mut content).unwrap();
    let (plain, sealed) = (site.folder().join("survey.bin"), site.folder().join("survey.sealed"));
    fs::write(&plain, &content).unwrap();
    let [plain, sealed] = [&plain, &sealed].map(|path| path.to_str().unwrap());
    device.run(&["seal", plain, "-O", sealed]).await.unwrap().ok().unwrap();
    device.run(&["upload", sealed]).await.unwrap().ok().unwrap();
    site.kill_gateway().await.unwrap();
    let sound = answer(&spool(&site, &["verify"]).await, 0);
    assert_eq!(sound["large"], 1, "{sound:#}");
    let exported = export(&site, 0).await["written"].clone();
    let items = index(&stick(&site));
    let large = items.iter().find(|item| item["bytes"].as_u64().unwrap() > 3 << 20).unwrap();
    let carried = fs::read(stick(&site).join(large["file"].as_str().unwrap())).unwrap();
    assert_eq!(carried, fs::read(sealed).unwrap());
    assert_eq!(large["sha256"], hex::encode(Sha256::digest(&carried)));

    // The disk of the dead machine rots on: the file is named, and what is on the stick stays.
    let uploads = site.gateway_data().join("uploads");
    let file = fs::read_dir(uploads).unwrap().map(|entry| entry.unwrap().path());
    let file = file.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let mut bytes = fs::read(&file).unwrap();
    bytes[1 << 20] ^= 1;
    fs::write(&file, bytes).unwrap();
    let found = answer(&spool(&site, &["verify"]).await, 1);
    assert_eq!(found["large_lost"].as_array().map(Vec::len), Some(1), "{found:#}");
    assert_eq!(export(&site, 0).await["there_before"], exported);

    site.link.heal();
    replace_the_gateway(&mut site).await;
    assert_eq!(import(&site, &[], 0).await["stored"], exported);
    assert_eq!(import(&site, &[], 0).await["duplicates"], exported);
    site.until_relayed().await.unwrap();
    let delivered = site.delivered().unwrap();
    assert_eq!((delivered.holes(), delivered.repeated()), (0, 0));
    assert!(delivered.records_of(device.name()).contains(&content.as_slice()));

    // Its record is still here, and its file is not: the cloud has it, and nothing is lost.
    site.stop_gateway().await.unwrap();
    site.start_gateway().await.unwrap();
    let all = site.folder().join("all").display().to_string();
    let all = answer(&spool(&site, &["export", "--all", "--to", &all]).await, 0);
    assert_eq!(
        (&all["large_left"], all["left_out"].as_array().map(Vec::len)),
        (&json!(1), Some(0)),
        "{all:#}"
    );
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_far_end_that_takes_an_import_and_never_answers_is_given_up_and_nothing_is_counted_as_held() {
    let (mut site, device) =
        cut_off_with(SiteOptions { custody: Custody::Kms, ..SiteOptions::default() }, 1).await;
    let exported = export(&site, 0).await["written"].clone();
    site.kill_gateway().await.unwrap();
    let cloud = site.decryptor_address().to_string();
    let (kms, from) = (site.kms.as_ref().unwrap(), stick(&site).display().to_string());
    kms.set_fault(Fault::HangAfterAccept);
    // It holds them and waits for its KMS, for longer than we wait for it.
    let ended = spool(&site, &["import", &from, "--to", &cloud, "--timeout", "500ms"]).await;
    assert_eq!(ended.code, Some(69), "{}{}", ended.stdout, ended.stderr);
    assert!(
        ended.stderr.contains("PEER_UNREACHABLE") && ended.stderr.contains("said nothing"),
        "{}",
        ended.stderr
    );
    let told: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((&told["stored"], &told["duplicates"]), (&json!(0), &json!(0)), "{told:#}");
    kms.set_fault(Fault::None);
    let told = import(&site, &["--to", &cloud], 0).await;
    let held = told["stored"].as_u64().unwrap() + told["duplicates"].as_u64().unwrap();
    assert_eq!(json!(held), exported, "{told:#}");
    let delivered = site.delivered().unwrap();
    assert_eq!((delivered.holes(), delivered.repeated()), (0, 0));
    assert_eq!(hash_of(delivered.records_of(device.name())), hash_of(records(0, 200)));
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_envelope_that_the_relay_found_damaged_is_lost_and_not_said_to_have_left() {
    let (mut site, device) = cut_off(1).await;
    let (plain, sealed) = (site.folder().join("survey.bin"), site.folder().join("survey.sealed"));
    fs::write(&plain, vec![7; 3 << 20]).unwrap();
    let [plain, sealed] = [&plain, &sealed].map(|path| path.to_str().unwrap());
    device.run(&["seal", plain, "-O", sealed]).await.unwrap().ok().unwrap();
    device.run(&["upload", sealed]).await.unwrap().ok().unwrap();
    site.kill_gateway().await.unwrap();
    let uploads = fs::read_dir(site.gateway_data().join("uploads")).unwrap();
    let file =
        uploads.map(|entry| entry.unwrap().path()).max_by_key(|path| fs::metadata(path).unwrap().len());
    let file = file.unwrap();
    let mut bytes = fs::read(&file).unwrap();
    bytes[1 << 20] ^= 1;
    fs::write(&file, bytes).unwrap();
    site.start_gateway().await.unwrap();
    site.link.heal();
    site.until_relayed().await.unwrap();
    site.stop_gateway().await.unwrap();
    let to = stick(&site).display().to_string();
    let all = answer(&spool(&site, &["export", "--all", "--to", &to]).await, 1);
    assert_eq!(
        (&all["large_left"], all["left_out"].as_array().map(Vec::len)),
        (&json!(0), Some(1)),
        "{all:#}"
    );
    site.stop().await.unwrap();
}

//! Who sealed: a truck whose sessions the cloud can tell from anybody else's, also from the gateway's own.

use bytes::Bytes;
use pithead_proto::errors::v1::ErrorReason as R;
use pithead_sealing::envelope::{
    Context, DeviceSigningKey, KernelEntropy,
    dangerous::{FixedEdk, FixedMessage},
};
use pithead_tests::{
    certificates::Certificate,
    client::Client,
    device::Device,
    forge::{Claim, Forge},
    ledger::hash_of,
    program::Admin,
    site::{KEY_ARN, SITE, Site, SiteOptions},
};
use serde_json::{Value, json};

fn records(from: usize, count: usize) -> Vec<String> {
    (from..from + count).map(|at| format!("truck 1 record {at:06}")).collect()
}

/// The key that the device signs with, as the device alone has it.
fn key_of(device: &Device) -> DeviceSigningKey {
    let pem = std::fs::read_to_string(device.folder().join("device.key")).unwrap();
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    DeviceSigningKey::from_pkcs8_der(&base64(&body)).unwrap()
}

fn base64(text: &str) -> Vec<u8> {
    use base64ct::{Base64, Encoding as _};
    Base64::decode_vec(text).unwrap()
}

async fn verdict(admin: Admin, verdict: &str) -> f64 {
    admin.metric_where("pithead_decryptor_verdicts_total", &format!("\"{verdict}\"")).await.unwrap()
}

async fn verify(site: &Site) -> Value {
    let config = site.decryptor_config().display().to_string();
    let finished = site.decryptor_command(&["verify", "-c", &config, "-o", "json"]).await.unwrap();
    finished.json().unwrap()
}

/// A sum over all runs of all streams.
fn sum(report: &Value, pointer: &str) -> u64 {
    let streams = report["streams"].as_array().unwrap();
    let runs = streams.iter().flat_map(|stream| stream["runs"].as_array().unwrap());
    runs.map(|run| run.pointer(pointer).and_then(Value::as_u64).unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registered_trucks_records_are_signed_and_a_revoked_key_delivers_nothing_more() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let identity = site.identity_of("truck-1").unwrap();
    let ca = site.ca.path().to_owned();
    let (device, enrolled) = site.enroll_as("truck-1", &ca, Some(&identity), &["-o", "json"]).await.unwrap();
    let told: Value = enrolled.ok().unwrap().json().unwrap();
    let kid = told["signing_kid"].as_str().unwrap().to_owned();
    assert_eq!(key_of(&device).kid().to_string(), kid);
    // It signs from the beginning; as long as nobody has registered it, that is worth nothing and costs nothing.
    device.send("can", &records(0, 100)).await.unwrap();
    site.until_relayed().await.unwrap();
    assert_eq!(site.delivered().unwrap().with_assurance("vouched"), 100);
    assert!(verdict(site.decryptor().unwrap().admin(), "unknown-key").await >= 1.0);

    site.register(&device, &[]).await.unwrap();
    let key: Value = device.run(&["key"]).await.unwrap().ok().unwrap().json().unwrap();
    assert_eq!(key["signing_kid"], json!(kid));
    device.send("can", &records(100, 100)).await.unwrap();
    site.until_relayed().await.unwrap();
    let delivered = site.delivered().unwrap();
    assert_eq!((delivered.with_assurance("vouched"), delivered.with_assurance("signed")), (100, 100));
    let lines = std::fs::read_to_string(site.sink()).unwrap();
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!((&last["verdict"], &last["kid"]), (&json!("signed"), &json!(kid)));

    let revoked = site.device_command(&["revoke", &kid]).await.unwrap().ok().unwrap();
    assert!(revoked.stdout.contains("pit-7/truck-1"), "{}", revoked.stdout);
    site.until_registry_is_read().await.unwrap();
    // The gateway cannot tell and takes it; in the cloud it is set aside, and the gateway keeps it as well.
    device.send("can", &records(200, 100)).await.unwrap();
    site.until_relayed().await.unwrap();
    let after = site.delivered().unwrap();
    assert_eq!(hash_of(after.records_of("truck-1")), hash_of(records(0, 200)), "what was delivered stays");
    assert!(verdict(site.decryptor().unwrap().admin(), "signed-by-revoked").await >= 1.0);
    let kept = site.gateway_command(&["refused", "list"]).await.unwrap().ok().unwrap();
    assert!(kept.stdout.contains("SIGNATURE_REVOKED"), "{}", kept.stdout);
    let report = verify(&site).await;
    assert!(sum(&report, "/refused_for_signature/signed_by_revoked") >= 1, "{report:#}");
    assert!(sum(&report, "/signed") >= 1 && sum(&report, "/unknown_key") >= 1, "{report:#}");
    assert_eq!(report["signers"][0]["kid"], json!(kid), "{report:#}");

    // It was the wrong truck's: the key is believed again, and what was set aside comes.
    let name = format!("{SITE}/truck-1");
    site.device_command(&["remove", &name, "--key", &kid]).await.unwrap().ok().unwrap();
    site.register(&device, &[]).await.unwrap();
    site.gateway_command(&["refused", "retry", "--all"]).await.unwrap().ok().unwrap();
    let all = async |admin: Admin| {
        admin.metric("pithead_decryptor_records_total").await.is_ok_and(|records| records == 300.0)
    };
    site.decryptor().unwrap().until("has what was refused", all).await.unwrap();
    let after = site.delivered().unwrap();
    assert_eq!(hash_of(after.records_of("truck-1")), hash_of(records(0, 300)));
    assert_eq!((after.with_assurance("signed"), after.holes(), after.repeated()), (200, 0, 0));
    site.stop().await.unwrap();
}

/// Somebody who has the gateway's certificate and key, and the site's CA, and reaches the decryptor as the gateway does.
struct Thief {
    client: Client,
    forge: Forge,
}

impl Thief {
    async fn new(site: &Site) -> Self {
        let at = |name: &str| site.folder().join("gateway").join(name);
        let stolen = Certificate { certificate: at("gateway.pem"), key: at("gateway.key") };
        Self { client: connect(site, &stolen).await, forge: Forge::new(&site.authority).unwrap() }
    }

    async fn is_refused(&self, envelope: impl Into<Bytes>) -> R {
        self.client.refusal(envelope).await.unwrap()
    }
}

async fn connect(site: &Site, identity: &Certificate) -> Client {
    let to = site.decryptor_address();
    Client::connect(to, site.cloud_ca.path(), Some(identity)).await.unwrap().unwrap()
}

fn at(run: u64, seq: u64) -> Claim<'static> {
    Claim { run, seq, ..Claim::of("truck-1") }
}

/// Some other bytes of the same length in an envelope.
fn relabelled(envelope: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = envelope.windows(from.len()).position(|window| window == from).expect("it stands there");
    [&envelope[..at], to, &envelope[at + to.len()..]].concat()
}

/// One message with this context under a data key of the thief's own.
fn under_an_own_key(forge: &Forge, context: &Context, run: u64, edks: usize) -> Vec<u8> {
    let mut message_id = [7; 32];
    message_id[16..24].copy_from_slice(&run.to_be_bytes());
    message_id[24..].copy_from_slice(&1_u64.to_be_bytes());
    let edk = |seed| FixedEdk::Wrap {
        provider_info: KEY_ARN.to_owned(),
        spki_der: forge.spki_der().to_vec(),
        oaep_seed: [seed; 32],
    };
    let message = FixedMessage {
        context: context.clone(),
        edks: (1..).take(edks).map(edk).collect(),
        frame_length: 65_536,
        data_key: [0x66; 32],
        message_id,
        empty_final_frame: false,
    };
    message.seal(b"the thief's").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_gateway_is_found_out_whatever_it_makes_up_and_the_truck_goes_on() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let device = site.enroll("truck-1").await.unwrap();
    site.register(&device, &["--optional"]).await.unwrap();
    device.send("can", &records(0, 50)).await.unwrap();
    site.until_relayed().await.unwrap();
    assert_eq!(site.delivered().unwrap().with_assurance("signed"), 50);

    let thief = Thief::new(&site).await;
    // Its own plaintext, sealed to the real key in the truck's name: the downgrade.
    let unsigned = thief.forge.seal(at(1, 1), b"the thief's").unwrap();
    assert_eq!(thief.is_refused(unsigned).await, R::SignatureRequired);
    // The CA certifies whatever the thief likes, also as that truck, and at the decryptor's own port.
    let own = DeviceSigningKey::generate(&mut KernelEntropy).unwrap();
    let stem = site.folder().join("certificates/truck-1-again");
    let certified = site.ca.client(&format!("spiffe://{SITE}/device/truck-1"), &stem).unwrap();
    let as_truck = connect(&site, &certified).await;
    let of_own_key = thief.forge.signed_line(at(2, 1), &own).unwrap().seal(1, b"the thief's").unwrap();
    assert_eq!(as_truck.refusal(of_own_key.clone()).await.unwrap(), R::SignatureKeyUnknown);
    assert_eq!(thief.is_refused(of_own_key).await, R::SignatureKeyUnknown);

    // What it has seen of the truck: an envelope of a signed session, and all that this says in clear.
    let mut line = thief.forge.signed_line(at(3, 1), &key_of(&device)).unwrap();
    let seen = line.seal(1, b"the truck's").unwrap();
    assert_eq!(thief.is_refused(relabelled(&seen, b"truck-1", b"truck-2")).await, R::EnvelopeEdk);
    assert_eq!(thief.is_refused(relabelled(&seen, b"forged", b"FORGED")).await, R::ProfileContext);
    assert_eq!(thief.is_refused(relabelled(&seen, b"forged", b"others")).await, R::EnvelopeEdk);
    let (of_run, of_other) = (
        &[3_u64.to_be_bytes(), 1_u64.to_be_bytes()].concat(),
        &[4_u64.to_be_bytes(), 1_u64.to_be_bytes()].concat(),
    );
    assert_eq!(thief.is_refused(relabelled(&seen, of_run, of_other)).await, R::EnvelopeCommitment);
    for run in [3, 4] {
        let replayed = under_an_own_key(&thief.forge, line.context(), run, 1);
        assert_eq!(thief.is_refused(replayed).await, R::SignatureInvalid, "run {run}");
    }
    assert_eq!(
        thief.is_refused(under_an_own_key(&thief.forge, line.context(), 3, 2)).await,
        R::ProfileContext
    );
    // And the envelope itself is as good as ever, whoever brings it.
    thief.client.submit(seen).await.unwrap();

    // Nothing of it is forgotten: not by a restart, and not by a kill.
    device.send("can", &records(50, 50)).await.unwrap();
    site.until_relayed().await.unwrap();
    for run in [5, 6] {
        site.kill_decryptor().await.unwrap();
        site.start_decryptor().await.unwrap();
        let thief = Thief::new(&site).await;
        let unsigned = thief.forge.seal(at(run, 1), b"the thief's").unwrap();
        assert_eq!(thief.is_refused(unsigned).await, R::SignatureRequired);
        device.send("can", &records(if run == 5 { 100 } else { 150 }, 50)).await.unwrap();
        site.until_relayed().await.unwrap();
    }
    site.stop().await.unwrap();
    site.start_decryptor().await.unwrap();
    let thief = Thief::new(&site).await;
    let unsigned = thief.forge.seal(at(7, 1), b"the thief's").unwrap();
    assert_eq!(thief.is_refused(unsigned).await, R::SignatureRequired);

    let delivered = site.delivered().unwrap();
    let truck: Vec<Vec<u8>> = [vec!["the truck's".to_owned()], records(0, 200)]
        .concat()
        .into_iter()
        .map(String::into_bytes)
        .collect();
    let mut got: Vec<&[u8]> = delivered.records_of("truck-1");
    got.sort();
    assert_eq!(got, truck.iter().map(Vec::as_slice).collect::<Vec<_>>());
    assert_eq!(delivered.with_assurance("signed"), 201);
    let report = verify(&site).await;
    let refused = |what: &str| sum(&report, &format!("/refused_for_signature/{what}"));
    assert_eq!((refused("unsigned"), refused("invalid"), refused("unknown_key")), (4, 2, 2), "{report:#}");
    let mut kept: Vec<String> =
        std::fs::read_dir(site.decryptor_data().join(format!("refused/{SITE}/truck-1")))
            .unwrap()
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.contains(".PH-211"))
            .map(|name| name.rsplit('.').nth(1).unwrap().to_owned())
            .collect();
    kept.sort();
    // The one that came by two ways is one file.
    let expected = ["PH-2110", "PH-2110", "PH-2111", "PH-2111", "PH-2111", "PH-2111", "PH-2113"];
    assert_eq!(kept, expected);
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_cannot_be_read_changes_nothing_and_is_never_taken_for_empty() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let device = site.enroll("truck-1").await.unwrap();
    site.register(&device, &["--required"]).await.unwrap();
    let listed = site.device_command(&["list"]).await.unwrap().ok().unwrap().stdout;
    let kid = key_of(&device).kid().to_string();
    assert!(listed.contains("pit-7/truck-1\trequired") && listed.contains(&kid), "{listed}");
    device.send("can", &records(0, 10)).await.unwrap();
    site.until_relayed().await.unwrap();
    let file = site.decryptor_data().join("devices.toml");
    let good = std::fs::read(&file).unwrap();
    std::fs::write(&file, b"[[device]]\nname = \"pit-7/truck-1\"\n").unwrap();
    let refused = async |admin: Admin| {
        admin.metric("pithead_decryptor_device_registry_refused").await.is_ok_and(|is| is == 1.0)
    };
    site.decryptor().unwrap().until("has seen the bad file", refused).await.unwrap();
    assert!(site.decryptor().unwrap().log_text().contains("devices.refused"));
    device.send("can", &records(10, 10)).await.unwrap();
    site.until_relayed().await.unwrap();
    assert_eq!(site.delivered().unwrap().with_assurance("signed"), 20);
    let thief = Thief::new(&site).await;
    let unsigned = thief.forge.seal(at(1, 1), b"the thief's").unwrap();
    assert_eq!(thief.is_refused(unsigned).await, R::SignatureRequired);
    site.kill_decryptor().await.unwrap();
    let config = site.decryptor_config().display().to_string();
    let start = ["run", "-c", &config];
    let bad = site.decryptor_command(&start).await.unwrap();
    assert!(
        bad.refused_with("PH-6001", "CONFIG_INVALID") && bad.stderr.contains("devices.toml"),
        "{}",
        bad.stderr
    );
    // Gone altogether, and the ledger knows that somebody has signed.
    std::fs::remove_file(&file).unwrap();
    let gone = site.decryptor_command(&start).await.unwrap();
    assert!(
        gone.refused_with("PH-6001", "CONFIG_INVALID") && gone.stderr.contains("is gone"),
        "{}",
        gone.stderr
    );
    std::fs::write(&file, good).unwrap();
    site.start_decryptor().await.unwrap();
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_does_not_sign_says_so_and_its_key_cannot_be_registered() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let device = site.enroll_with("truck-1", &["--no-sign"]).await.unwrap();
    assert!(!device.public_key().exists());
    device.send("can", &records(0, 10)).await.unwrap();
    // A key of another kind: the certificate is good, and signs no sessions.
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let folder = site.folder().to_owned();
    let path = |name: &str| folder.join(name).display().to_string();
    std::fs::write(path("ed25519.key"), pair.serialize_pem()).unwrap();
    std::fs::write(path("ed25519.pub"), pair.public_key_pem()).unwrap();
    let identity = site.identity_of("truck-2").unwrap();
    let other = Certificate { key: folder.join("ed25519.key"), ..identity };
    let ca = site.ca.path().to_owned();
    let (_, enrolled) = site.enroll_as("truck-2", &ca, Some(&other), &[]).await.unwrap();
    let told = enrolled.ok().unwrap().stdout;
    assert!(told.contains("none: the key is no P-256 key"), "{told}");
    let config = std::fs::read_to_string(folder.join("devices/truck-2/device.toml")).unwrap();
    assert!(!config.contains("signing_key"), "{config}");
    for file in [path("ed25519.pub"), path("certificates/truck-1.pem"), path("certificates/truck-1.key")] {
        let refused = site.device_command(&["add", "pit-7/truck-2", "--key", &file]).await.unwrap();
        assert!(refused.refused_with("PH-6001", "CONFIG_INVALID"), "{file}: {}", refused.stderr);
    }
    let nobody = site.device_command(&["revoke", &"0".repeat(32)]).await.unwrap();
    assert!(nobody.stderr.contains("is not registered"), "{}", nobody.stderr);
    site.until_relayed().await.unwrap();
    assert_eq!(site.delivered().unwrap().with_assurance("vouched"), 10);
    assert_eq!(verdict(site.decryptor().unwrap().admin(), "unknown-key").await, 0.0);
    site.stop().await.unwrap();
}

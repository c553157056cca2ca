//! Certificates before they end: the gateway's from the site CA, a device's with another token. And a token that is shown twice.

use std::{fs, fs::Permissions, os::unix::fs::PermissionsExt as _};

use pithead_hop::{
    identity::{PeerId, end_and_serial, spki_sha256},
    tls::Pem,
};
use rustls::pki_types::CertificateDer;

use crate::identity::{Printed, made_by_init};

fn leaf(path: &std::path::Path) -> CertificateDer<'static> {
    Pem::read(path).unwrap().certificates().unwrap().remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_was_used_here_is_known_for_that_and_the_gateway_sees_no_attack() {
    let (mut site, _) = made_by_init().await;
    let printed = Printed::of(&site, "truck-1").await;
    printed.run(&site).await.ok().unwrap();
    let device = site.device("truck-1");
    let before = fs::read(device.folder().join("device.pem")).unwrap();
    let again: serde_json::Value = printed.run(&site).await.ok().unwrap().json().unwrap();
    assert_eq!(again["already_enrolled_as"], "spiffe://pit-7/device/truck-1", "{again}");
    assert!(again["certificate_until_text"].as_str().unwrap().starts_with("20"), "{again}");
    assert_eq!(fs::read(device.folder().join("device.pem")).unwrap(), before);
    let admin = site.gateway().unwrap().admin();
    let refused =
        admin.metric_where("pithead_enrollments_total", "reason=\"ENROLL_TOKEN_USED\"").await.unwrap_or(0.0);
    assert!(refused < 0.1, "the gateway was shown a spent token with another key");

    // Without that mark, as a folder of an older version is: the gateway refuses, and the folder says what it is.
    fs::remove_file(device.folder().join("enroll.done")).unwrap();
    let used = printed.run(&site).await;
    assert!(used.refused_with("PH-4011", "ENROLL_TOKEN_USED"), "{}", used.stderr);
    assert!(used.stderr.contains("enrolled already as spiffe://pit-7/device/truck-1"), "{}", used.stderr);
    assert_eq!(fs::read(device.folder().join("device.pem")).unwrap(), before);
    device.send("can", &["one".into()]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_renews_its_certificate_and_keeps_its_key_its_trust_and_its_file() {
    let (site, _) = made_by_init().await;
    Printed::of(&site, "truck-1").await.run(&site).await.ok().unwrap();
    let device = site.device("truck-1");
    let kept = ["device.key", "device.pub", "device.toml", "ca.pem"];
    let read = |name: &str| fs::read(device.folder().join(name)).unwrap();
    let before: Vec<Vec<u8>> = kept.into_iter().map(read).collect();
    let old = leaf(&device.folder().join("device.pem"));

    let said = site.gateway_command(&["device", "add", "truck-1"]).await.unwrap().ok().unwrap().stdout;
    let line = said.lines().find(|line| line.starts_with("pithead-device renew")).expect(&said);
    let mut words: Vec<&str> = line.split(' ').skip(1).collect();
    let config = device.config().display().to_string();
    let at = words.iter().position(|word| *word == "-c").unwrap();
    words[at + 1] = &config;
    words.extend(["-o", "json"]);
    let renewed = pithead_tests::command::run(&site.programs().device(), words, &[]).await.unwrap();
    let renewed: serde_json::Value = renewed.ok().unwrap().json().unwrap();
    assert_eq!(renewed["device"], "truck-1", "{renewed}");

    let new = leaf(&device.folder().join("device.pem"));
    assert_eq!(PeerId::from_certificate(&new).unwrap(), PeerId::from_certificate(&old).unwrap());
    assert_eq!(spki_sha256(&new).unwrap(), spki_sha256(&old).unwrap(), "the cloud knows it by this");
    assert_ne!(end_and_serial(&new).unwrap().1, end_and_serial(&old).unwrap().1);
    assert_eq!(kept.into_iter().map(read).collect::<Vec<_>>(), before);
    device.send("can", &["one".into()]).await.unwrap();

    // A second one that waits is said to be replaced.
    site.gateway_command(&["device", "add", "truck-2"]).await.unwrap().ok().unwrap();
    let twice = site.gateway_command(&["device", "add", "truck-2"]).await.unwrap().ok().unwrap().stdout;
    assert!(twice.contains("truck-2 was waiting for its enrolment already"), "{twice}");
    assert!(!twice.contains("pithead-device renew"), "{twice}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_renews_its_certificate_and_what_devices_know_it_by_stays_the_same() {
    let (mut site, enroll) = made_by_init().await;
    Printed::of(&site, "truck-1").await.run(&site).await.ok().unwrap();
    let path = site.folder().join("gateway/gateway.pem");
    let old = leaf(&path);
    let idle =
        site.gateway_command(&["certificate", "renew", "--within", "30d"]).await.unwrap().ok().unwrap();
    assert!(idle.stdout.contains("nothing to do within 30d"), "{}", idle.stdout);
    assert_eq!(leaf(&path), old);

    let said = site.gateway_command(&["certificate", "renew"]).await.unwrap().ok().unwrap().stdout;
    assert!(said.contains("is renewed: until 20"), "{said}");
    let new = leaf(&path);
    assert_eq!(leaf(&path.with_extension("pem.before")), old);
    assert_eq!(PeerId::from_certificate(&new).unwrap(), PeerId::from_certificate(&old).unwrap());
    assert_eq!(spki_sha256(&new).unwrap(), spki_sha256(&old).unwrap());
    assert_ne!(end_and_serial(&new).unwrap().1, end_and_serial(&old).unwrap().1);
    let shown = site.gateway_command(&["certificate", "show", "-o", "json"]).await.unwrap().ok().unwrap();
    let shown: serde_json::Value = shown.json().unwrap();
    assert_eq!(shown[0]["until_s"], end_and_serial(&new).unwrap().0, "{shown}");

    // With it, after a start, devices connect and the cloud takes what they send.
    site.stop_gateway().await.unwrap();
    site.start_gateway().await.unwrap();
    site.device("truck-1").send("can", &["one".into()]).await.unwrap();
    site.until_relayed().await.unwrap();

    // As the file was, so is the new one, whatever the hand is that writes it.
    fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
    let strict =
        format!("umask 077; exec {} certificate renew -c \"$0\"", site.programs().gateway().display());
    let config = site.gateway_config();
    let renewed = std::process::Command::new("sh").args(["-c", &strict]).arg(&config).status().unwrap();
    assert!(renewed.success());
    for file in [&path, &path.with_extension("pem.before.2")] {
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o640, "{}", file.display());
    }
    let new = leaf(&path);

    // While the CA changes, the one that signs is not the one that devices know this gateway by.
    let folder = site.folder().join("gateway");
    let (old_ca, old_key) =
        (fs::read(folder.join("site-ca.pem")).unwrap(), fs::read(folder.join("site-ca.key")).unwrap());
    let next = site.folder().join("next");
    crate::identity::init(&site, &next, enroll).await.ok().unwrap();
    let both = [fs::read(next.join("site-ca.pem")).unwrap(), old_ca.clone()].concat();
    fs::write(folder.join("site-ca.pem"), both).unwrap();
    fs::copy(next.join("site-ca.key"), folder.join("site-ca.key")).unwrap();
    let other = site.gateway_command(&["certificate", "renew"]).await.unwrap();
    assert!(
        other.code == Some(78) && other.stderr.contains("another CA"),
        "{} {}",
        other.stdout,
        other.stderr
    );
    assert_eq!(leaf(&path), new);
    fs::write(folder.join("site-ca.pem"), old_ca).unwrap();
    fs::write(folder.join("site-ca.key"), old_key).unwrap();

    // A file that holds the key as well would lose it.
    let alone = fs::read(&path).unwrap();
    fs::write(&path, [alone.clone(), fs::read(folder.join("gateway.key")).unwrap()].concat()).unwrap();
    let joint = site.gateway_command(&["certificate", "renew"]).await.unwrap();
    assert!(joint.code == Some(78) && joint.stderr.contains("holds the private key"), "{}", joint.stderr);
    fs::write(&path, alone).unwrap();

    // The CA's key is elsewhere: nothing changes, and it is said where to go.
    fs::remove_file(site.folder().join("gateway/site-ca.key")).unwrap();
    let elsewhere = site.gateway_command(&["certificate", "renew"]).await.unwrap();
    assert!(elsewhere.code == Some(78), "{} {}", elsewhere.stdout, elsewhere.stderr);
    assert_eq!(leaf(&path), new);
}

//! Who was revoked is refused, and cut.

use std::fs;

use pithead_hop::connect::{CertificateRefused, ConnectError};
use pithead_tests::{client::Client, program::PATIENCE, site::Site};
use sha2::{Digest as _, Sha256};

use crate::identity::{Neighbour, Printed, files_of, in_time, made_by_init, watching};

async fn enrolled(site: &Site, device: &str) {
    Printed::of(site, device).await.run(site).await.ok().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_device_is_cut_within_five_seconds_and_its_neighbour_loses_no_call() {
    let (mut site, _) = made_by_init().await;
    for device in ["stolen", "honest"] {
        enrolled(&site, device).await;
    }
    let token = Printed::of(&site, "doubtful").await;
    token.run(&site).await.ok().unwrap();
    let (to, ca) = (site.gateway_address(), site.folder().join("gateway/site-ca.pem"));
    let neighbour = Neighbour::start(to, &ca, &files_of(&site, "honest"));
    neighbour.goes_on().await;
    let (stolen, mut open) = watching(to, &ca, &files_of(&site, "stolen")).await;
    open.next().await.unwrap();

    site.gateway_command(&["device", "revoke", "stolen"]).await.unwrap().ok().unwrap();
    in_time("the stream is closed", open.next()).await.unwrap_err();
    in_time("the connection is closed", stolen.connection().ended()).await;
    let again = Client::connect(to, &ca, Some(&files_of(&site, "stolen"))).await.unwrap();
    assert_eq!(again.unwrap_err(), ConnectError::CertificateRefused(CertificateRefused::Revoked));
    let key = site.device("stolen").run(&["key"]).await.unwrap();
    assert!(key.refused_with("PH-4003", "CERTIFICATE_REVOKED"), "{}", key.stderr);
    let added = site.gateway_command(&["device", "add", "stolen"]).await.unwrap();
    assert!(added.refused_with("PH-4013", "DEVICE_REVOKED"), "{}", added.stderr);
    let waiting = Printed::of(&site, "lost").await;
    site.gateway_command(&["device", "revoke", "lost"]).await.unwrap().ok().unwrap();
    let late = waiting.run(&site).await;
    assert!(late.refused_with("PH-4013", "DEVICE_REVOKED"), "{}", late.stderr);

    // One certificate of a device that may go on with another: by its SHA-256.
    let files = files_of(&site, "doubtful");
    let (doubtful, _open) = watching(to, &ca, &files).await;
    let der = pithead_hop::tls::Pem::read(&files.certificate).unwrap().certificates().unwrap().remove(0);
    let sha256 = hex::encode(Sha256::digest(&der));
    site.gateway_command(&["device", "revoke", "--certificate", &sha256]).await.unwrap().ok().unwrap();
    in_time("its connection is closed", doubtful.connection().ended()).await;
    // The thief has the key and saw the token: they are good for no other certificate.
    let folder = site.device("doubtful").folder().to_owned();
    fs::copy(folder.join("device.key"), folder.join("enroll.key")).unwrap();
    // Without it the program would say that it is enrolled, and send nothing.
    fs::remove_file(folder.join("enroll.done")).unwrap();
    let thief = token.run(&site).await;
    assert!(thief.refused_with("PH-4009", "ENROLL_TOKEN_INVALID"), "{}", thief.stderr);
    fs::remove_file(folder.join("enroll.key")).unwrap();
    enrolled(&site, "doubtful").await;
    site.device("doubtful").send("can", &["one".into()]).await.unwrap();

    neighbour.end().await;
    let list = site.gateway_command(&["device", "list", "-o", "json"]).await.unwrap();
    let list: serde_json::Value = list.json().unwrap();
    assert_eq!(list["devices"][3]["device"], "stolen");
    assert_eq!(list["devices"][3]["state"], "revoked", "{list}");
    // It stays so over a restart.
    site.stop_gateway().await.unwrap();
    site.start_gateway().await.unwrap();
    let again = Client::connect(to, &ca, Some(&files_of(&site, "stolen"))).await.unwrap();
    assert_eq!(again.unwrap_err(), ConnectError::CertificateRefused(CertificateRefused::Revoked));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_does_not_read_back_forgives_nobody() {
    let (mut site, _) = made_by_init().await;
    for device in ["stolen", "honest"] {
        enrolled(&site, device).await;
    }
    let (to, ca) = (site.gateway_address(), site.folder().join("gateway/site-ca.pem"));
    site.gateway_command(&["device", "revoke", "stolen"]).await.unwrap().ok().unwrap();
    let refused = async || {
        let again = Client::connect(to, &ca, Some(&files_of(&site, "stolen"))).await.unwrap();
        matches!(again, Err(ConnectError::CertificateRefused(CertificateRefused::Revoked)))
    };
    in_time("the revocation is in force", async {
        while !refused().await {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await;
    let registry = site.gateway_data().join("devices.toml");
    let good = fs::read_to_string(&registry).unwrap();
    let admin = pithead_tests::program::Admin(site.gateway_admin());
    let until = async |good: f64| {
        tokio::time::timeout(PATIENCE, async {
            while (admin.metric("pithead_device_registry_good").await.unwrap() - good).abs() > 0.1 {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        })
        .await
        .unwrap();
    };
    until(1.0).await;
    fs::write(&registry, "version = 1\n[[device]]\n").unwrap();
    until(0.0).await;
    assert!(refused().await);
    fs::remove_file(&registry).unwrap();
    fs::write(&registry, &good).unwrap();
    until(1.0).await;
    fs::remove_file(&registry).unwrap();
    until(0.0).await;
    assert!(refused().await, "a file that has gone revokes no revocation");
    let added = site.gateway_command(&["device", "add", "truck-9"]).await.unwrap();
    assert!(added.refused_with("PH-6008", "STATE_DAMAGED"), "{}", added.stderr);
    assert!(!registry.exists(), "no new one in its place");
    let honest = Client::connect(to, &ca, Some(&files_of(&site, "honest"))).await.unwrap();
    honest.unwrap();

    site.stop_gateway().await.unwrap();
    let started = site.gateway_command(&["run"]).await.unwrap();
    assert!(started.refused_with("PH-6008", "STATE_DAMAGED"), "{}", started.stderr);
    fs::write(&registry, "version = 1\n[[device]]\n").unwrap();
    let started = site.gateway_command(&["run"]).await.unwrap();
    assert!(started.refused_with("PH-6008", "STATE_DAMAGED"), "{}", started.stderr);
}

//! Certificates, CAs and revocation lists, read again while devices are served.

use std::fs;

use pithead_hop::connect::{CertificateRefused, ConnectError};
use pithead_tests::{
    certificates::Ca,
    client::Client,
    site::{GATEWAY, SITE, Site, SiteOptions},
};

use crate::identity::{Neighbour, hang_up, in_time, watching};

#[tokio::test(flavor = "multi_thread")]
async fn certificate_ca_and_lists_are_replaced_under_load_and_no_call_fails() {
    let lines = vec![("ingest", "crls = [\"site.crl\"]".to_owned())];
    let mut site = Site::create(SiteOptions { gateway_lines: lines, ..Default::default() }).await.unwrap();
    let crl = site.folder().join("gateway/site.crl");
    fs::write(&crl, site.ca.crl(&[]).unwrap()).unwrap();
    site.start_decryptor().await.unwrap();
    site.start_gateway().await.unwrap();
    let (to, ca) = (site.gateway_address(), site.ca.path().to_owned());
    let (stolen, honest) = (site.identity_of("stolen").unwrap(), site.identity_of("honest").unwrap());
    let (live, _open) = watching(to, &ca, &stolen).await;
    site.gateway()
        .unwrap()
        .until("has keys", async |admin| admin.metric("pithead_key_sequence").await.unwrap_or(0.0) > 0.0)
        .await
        .unwrap();
    let neighbour = Neighbour::start(to, &ca, &honest);
    neighbour.goes_on().await;

    // Another certificate and key.
    let name = format!("spiffe://{SITE}/gateway/{GATEWAY}");
    site.ca.server(Some(&name), &site.folder().join("gateway/gateway")).unwrap();
    hang_up(site.gateway().unwrap(), "tls.reloaded").await;
    neighbour.goes_on().await;
    assert!(!live.connection().is_ended(), "nobody was revoked");

    // Another CA beside the one before: devices of both are let in.
    let newer = Ca::create("newer site CA", &site.folder().join("certificates/newer-ca.pem")).unwrap();
    let moved = newer
        .client(&format!("spiffe://{SITE}/device/moved"), &site.folder().join("certificates/moved"))
        .unwrap();
    let early = Client::connect(to, &ca, Some(&moved)).await.unwrap().unwrap_err();
    assert_eq!(early, ConnectError::CertificateRefused(CertificateRefused::Authority));
    let both = [site.ca.path(), newer.path()].map(|path| fs::read_to_string(path).unwrap()).concat();
    fs::write(site.folder().join("gateway/site-ca.pem"), both).unwrap();
    hang_up(site.gateway().unwrap(), "tls.reloaded").await;
    neighbour.goes_on().await;
    let (moved_live, _also_open) = watching(to, &ca, &moved).await;

    // A list, long past its nextUpdate: it warns, locks nobody out, and revokes.
    fs::write(&crl, site.ca.crl(&[&stolen]).unwrap()).unwrap();
    hang_up(site.gateway().unwrap(), "tls.reloaded").await;
    neighbour.goes_on().await;
    in_time("who is on the list is cut", live.connection().ended()).await;
    let refused = Client::connect(to, &ca, Some(&stolen)).await.unwrap().unwrap_err();
    assert_eq!(refused, ConnectError::CertificateRefused(CertificateRefused::Revoked));
    assert!(site.gateway().unwrap().log_text().contains("is to be renewed"));

    // What is wrong leaves the last good one in force: the list, and whoever it names.
    for (file, bad) in [
        ("gateway/site.crl", "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"),
        ("gateway/gateway.key", "no key"),
        ("gateway/site-ca.pem", ""),
    ] {
        let path = site.folder().join(file);
        let good = fs::read(&path).unwrap();
        fs::write(&path, bad).unwrap();
        hang_up(site.gateway().unwrap(), "tls.reload_refused").await;
        neighbour.goes_on().await;
        let refused = Client::connect(to, &ca, Some(&stolen)).await.unwrap().unwrap_err();
        assert_eq!(refused, ConnectError::CertificateRefused(CertificateRefused::Revoked), "{file}");
        fs::write(&path, good).unwrap();
    }
    assert!(!moved_live.connection().is_ended());

    // A CA that is taken away takes its devices with it.
    fs::copy(site.ca.path(), site.folder().join("gateway/site-ca.pem")).unwrap();
    hang_up(site.gateway().unwrap(), "tls.reloaded").await;
    neighbour.goes_on().await;
    in_time("devices of the CA that has gone are cut", moved_live.connection().ended()).await;

    neighbour.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_is_past_its_time_locks_out_where_the_operator_says_so() {
    let lines = vec![("ingest", "crls = [\"site.crl\"]\ncrl_expiry = \"refuse\"".to_owned())];
    let mut site = Site::create(SiteOptions { gateway_lines: lines, ..Default::default() }).await.unwrap();
    let crl = site.folder().join("gateway/site.crl");
    fs::write(&crl, site.ca.crl_until(&[], 2100).unwrap()).unwrap();
    site.start_decryptor().await.unwrap();
    site.start_gateway().await.unwrap();
    let (to, ca) = (site.gateway_address(), site.ca.path().to_owned());
    let honest = site.identity_of("honest").unwrap();
    let live = Client::connect(to, &ca, Some(&honest)).await.unwrap().expect("a fresh list lets it in");
    fs::write(&crl, site.ca.crl(&[]).unwrap()).unwrap();
    hang_up(site.gateway().unwrap(), "tls.reloaded").await;
    in_time("who would not be let in now is cut", live.connection().ended()).await;
    // The log has one line a second about who was refused: the reason stands there when it is asked for long enough.
    in_time("the log names the reason", async {
        loop {
            let refused = Client::connect(to, &ca, Some(&honest)).await.unwrap().unwrap_err();
            assert_eq!(refused, ConnectError::CertificateRefused(CertificateRefused::Authority));
            if site.gateway().unwrap().log_text().contains("revocation list expired") {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    })
    .await;
}

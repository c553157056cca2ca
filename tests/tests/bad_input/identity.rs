//! Wrong certificates, on both sides of each hop.

use pithead_hop::connect::{ConnectError, Untrusted};
use pithead_tests::{
    client::Client,
    program::Admin,
    site::{GATEWAY, SITE, Site, SiteOptions},
};

use crate::bad_input::{device_is_refused, state};

#[tokio::test(flavor = "multi_thread")]
async fn a_device_refuses_a_gateway_of_another_ca() {
    let site = Site::start(SiteOptions::default()).await.unwrap();
    let identity = site.identity_of("truck-1").unwrap();
    let (device, enrolled) =
        site.enroll_as("truck-1", site.cloud_ca.path(), Some(&identity), &[]).await.unwrap();
    enrolled.ok().unwrap();
    device_is_refused(&device, "PH-4007", "PEER_UNTRUSTED").await;
    let refused =
        Client::connect(site.gateway_address(), site.cloud_ca.path(), Some(&identity)).await.unwrap();
    assert_eq!(refused.unwrap_err(), ConnectError::Untrusted(Untrusted::Authority));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_refuses_a_device_of_another_ca_and_one_without_a_certificate() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let before = state(&mut site).await;
    let stem = site.folder().join("certificates/stranger");
    let foreign = site.cloud_ca.client(&format!("spiffe://{SITE}/device/truck-1"), &stem).unwrap();
    let (stranger, enrolled) = site.enroll_as("stranger", site.ca.path(), Some(&foreign), &[]).await.unwrap();
    enrolled.ok().unwrap();
    device_is_refused(&stranger, "PH-4002", "CERTIFICATE_INVALID").await;

    let (nobody, enrolled) = site.enroll_as("nobody", site.ca.path(), None, &[]).await.unwrap();
    enrolled.ok().unwrap();
    device_is_refused(&nobody, "PH-4001", "CERTIFICATE_REQUIRED").await;
    assert_eq!(state(&mut site).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_names_nobody_in_the_spiffe_form_is_refused() {
    let site = Site::start(SiteOptions::default()).await.unwrap();
    for (name, uri) in [("other", "https://pit-7/device/truck-1"), ("role", "spiffe://pit-7/root/truck-1")] {
        let files = site.ca.client(uri, &site.folder().join("certificates").join(name)).unwrap();
        let (device, enrolled) = site.enroll_as(name, site.ca.path(), Some(&files), &[]).await.unwrap();
        enrolled.ok().unwrap();
        device_is_refused(&device, "PH-4002", "CERTIFICATE_INVALID").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_does_not_know_the_clouds_ca_sends_it_nothing_and_says_why() {
    let mut site = Site::create(SiteOptions::default()).await.unwrap();
    site.start_decryptor().await.unwrap();
    std::fs::copy(site.ca.path(), site.folder().join("gateway/cloud-ca.pem")).unwrap();
    let gateway = site.launch_gateway().unwrap();
    let untrusted = async |admin: Admin| {
        let status = admin.status().await.unwrap_or_default();
        let says =
            |failure: &serde_json::Value| failure.as_str().is_some_and(|text| text.contains("PH-4007"));
        says(&status["keys"]["failure"]) && says(&status["relay"]["failure"])
    };
    gateway.until("says that it does not trust the far end", untrusted).await.unwrap();
    assert_eq!(gateway.admin().get("/readyz").await.unwrap().status, 503, "it has no statement");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cloud_refuses_a_gateway_of_another_ca() {
    let mut site = Site::create(SiteOptions::default()).await.unwrap();
    site.start_decryptor().await.unwrap();
    let name = format!("spiffe://{SITE}/gateway/{GATEWAY}");
    site.cloud_ca.server(Some(&name), &site.folder().join("gateway/gateway")).unwrap();
    let gateway = site.launch_gateway().unwrap();
    let refused = async |admin: Admin| {
        let status = admin.status().await.unwrap_or_default();
        status["relay"]["failure"].as_str().is_some_and(|text| text.contains("PH-4002"))
    };
    gateway.until("says that its certificate is refused", refused).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_with_a_certificate_of_another_site_does_not_start() {
    let site = Site::create(SiteOptions::default()).await.unwrap();
    for (uri, what) in
        [("spiffe://pit-8/gateway/edge-1", "pit-8"), ("spiffe://pit-7/device/truck-1", "no gateway")]
    {
        site.ca.server(Some(uri), &site.folder().join("gateway/gateway")).unwrap();
        for command in [&["run"][..], &["config", "check"]] {
            let refused = site.gateway_command(command).await.unwrap();
            assert!(refused.refused_with("PH-4002", "CERTIFICATE_INVALID"), "{}", refused.stderr);
            assert!(
                refused.stderr.contains(what) && refused.stderr.contains("what to do:"),
                "{}",
                refused.stderr
            );
            assert_eq!(refused.code, Some(77));
        }
    }
}

//! A vehicle whose certificate ends, or is revoked: it goes on to record, and all of it goes out with the next certificate.

use std::{
    fs,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use pithead_device_client::client::Status;
use pithead_proto::errors::v1::ErrorReason;
use pithead_tests::{
    authority::now,
    certificates::Certificate,
    link::Link,
    program::Admin,
    site::{SITE, Site, SiteOptions},
};
use rustix::process::Signal;

use crate::losses::{
    row::balance,
    truck::{NAME, Truck, exact},
};

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// Somebody brings the truck another certificate and key.
fn replace_the_certificate(site: &Site, truck: &Truck) {
    let stem = site.folder().join("certificates/second");
    let Certificate { certificate, key } =
        site.ca.client(&format!("spiffe://{SITE}/device/{NAME}"), &stem).unwrap();
    fs::copy(certificate, truck.device().folder().join("device.pem")).unwrap();
    fs::copy(key, truck.device().folder().join("device.key")).unwrap();
}

/// Locked out with this reason: records while it is, is started again, records, and gets its new certificate at last.
async fn locked_out(site: &mut Site, mut truck: Truck, reason: ErrorReason, scenario: &str) {
    let is_told = |status: &Status| {
        status.connected.is_none()
            && status.trouble.as_ref().is_some_and(|trouble| trouble.reason == Some(reason))
    };
    for _ in 0..2 {
        truck.until("it is told that its certificate is no good", is_told).await;
        truck.record_all(100);
        truck.sync().await;
        truck.close();
        truck.open();
    }
    truck.until("it is told again", is_told).await;
    truck.close();
    assert_eq!(truck.books.acknowledged, 10, "nothing was taken meanwhile");
    replace_the_certificate(site, &truck);
    truck.open();
    truck.record_all(100);
    truck.finish().await;
    let row = balance(site, &truck.books, scenario).await;
    assert_eq!((row.recorded, row.delivered), (400, 400), "{row:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_ends_while_the_truck_works_costs_nothing_but_time() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let radio = Link::start("127.0.0.1:0".parse().unwrap(), site.gateway_address()).await.unwrap();
    let end = now().as_secs() + 10;
    let stem = site.folder().join("certificates/first");
    let short = site.ca.client_until(&format!("spiffe://{SITE}/device/{NAME}"), at(end), &stem).unwrap();
    let (device, enrolled) = site.enroll_as(NAME, site.ca.path(), Some(&short), &[]).await.unwrap();
    enrolled.ok().unwrap();
    device.key().await.unwrap();
    let mut truck = Truck::of(device, &[radio.address()], exact());
    truck.open();
    truck.record_all(100);
    truck.flush().await;
    let left = Duration::from_secs(end + 1).saturating_sub(Duration::from_secs(now().as_secs()));
    // Nobody can turn the gateway's clock.
    tokio::time::sleep(left).await;
    radio.reset();
    locked_out(&mut site, truck, ErrorReason::CertificateInvalid, "certificate expired").await;
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_revoked_under_a_live_connection_costs_nothing_but_time() {
    let lines = vec![("ingest", "crls = [\"site.crl\"]".to_owned())];
    let mut site = Site::create(SiteOptions { gateway_lines: lines, ..Default::default() }).await.unwrap();
    let crl = site.folder().join("gateway/site.crl");
    fs::write(&crl, site.ca.crl(&[]).unwrap()).unwrap();
    site.start_decryptor().await.unwrap();
    site.start_gateway().await.unwrap();
    let mut truck = Truck::start(&site, &[site.gateway_address()], exact()).await;
    truck.record_all(100);
    truck.flush().await;
    let folder = truck.device().folder().to_owned();
    let revoked = Certificate { certificate: folder.join("device.pem"), key: folder.join("device.key") };
    fs::write(&crl, site.ca.crl(&[&revoked]).unwrap()).unwrap();
    let gateway = site.gateway().unwrap();
    gateway.signal(Signal::HUP).unwrap();
    let cut = async |admin: Admin| admin.metric("pithead_connections").await.is_ok_and(|open| open == 0.0);
    gateway.until("has cut the truck", cut).await.unwrap();
    locked_out(&mut site, truck, ErrorReason::CertificateRevoked, "certificate revoked").await;
    site.stop().await.unwrap();
}

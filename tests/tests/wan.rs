//! WAN down is a normal state: for ingest, for keys, for health, and for what waits.

use pithead_tests::{
    device::Device,
    ledger::{Ledger, hash_of},
    program::Admin,
    site::{Site, SiteOptions},
};

fn records(from: usize, count: usize) -> Vec<String> {
    (from..from + count).map(|at| format!("record {at:06}")).collect()
}

async fn relay_is(admin: Admin, up: f64) -> bool {
    admin.metric("pithead_relay_up").await.is_ok_and(|is| is == up)
}

async fn site_with_truck() -> (Site, Device) {
    let site = Site::start(SiteOptions::default()).await.unwrap();
    let device = site.enroll("truck-1").await.unwrap();
    (site, device)
}

/// Ingest goes on, keys are served, readiness stays, and the numbers say what waits.
async fn works_without_wan(site: &mut Site, device: &Device, delivered: u64) {
    let acknowledged = device.send("can", &records(1_000, 1_500)).await.unwrap();
    assert_eq!(acknowledged.acknowledged, acknowledged.envelopes);
    assert_eq!(device.key().await.unwrap().status, "FRESH");
    let admin = site.gateway().unwrap().admin();
    assert_eq!(admin.get("/readyz").await.unwrap().status, 200);
    assert_eq!(admin.metric("pithead_spool_records").await.unwrap() as u64, acknowledged.envelopes);
    assert!(admin.metric("pithead_spool_oldest_seconds").await.unwrap() > 0.0);
    assert_eq!(site.delivered().unwrap().records(), delivered);
    // A device that this gateway has never seen is served from what it has.
    let newcomer = site.enroll("truck-2").await.unwrap();
    assert!(newcomer.key().await.unwrap().fingerprint.is_some());
    let status = site.gateway_command(&["status", "-o", "json"]).await.unwrap();
    assert_eq!(status.code, Some(3), "degraded, and said so: {}{}", status.stdout, status.stderr);
}

async fn all_is_delivered(site: &mut Site, device: &Device, count: usize) {
    site.until_relayed().await.unwrap();
    let delivered = site.delivered().unwrap();
    assert_eq!((delivered.holes(), delivered.repeated()), (0, 0));
    let sent = [records(0, 1_000), records(1_000, count - 1_000)].concat();
    assert_eq!(hash_of(delivered.records_of(device.name())), hash_of(sent));
    // Keys are asked for again by a backoff of their own.
    let all_lamps =
        async |admin: Admin| admin.metric("pithead_healthy").await.is_ok_and(|lamps| lamps == 4.0);
    site.gateway().unwrap().until("is well in every dimension", all_lamps).await.unwrap();
    let status = site.gateway_command(&["status"]).await.unwrap();
    assert_eq!(status.code, Some(0), "all is well again: {}{}", status.stdout, status.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_wan_stops_nothing_on_site_and_healing_delivers_what_waited() {
    let (mut site, device) = site_with_truck().await;
    let first = device.send("can", &records(0, 1_000)).await.unwrap();
    site.until_relayed().await.unwrap();
    site.link.cut();
    site.gateway().unwrap().until("notices the cut", async |admin| relay_is(admin, 0.0).await).await.unwrap();
    works_without_wan(&mut site, &device, 1_000).await;
    site.link.heal();
    site.gateway().unwrap().until("relays again", async |admin| relay_is(admin, 1.0).await).await.unwrap();
    all_is_delivered(&mut site, &device, 2_500).await;
    assert_eq!(first.duplicates, 0);
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_wan_holds_back_and_repeats_nothing() {
    let (mut site, device) = site_with_truck().await;
    let first = device.send("can", &records(0, 1_000)).await.unwrap();
    site.until_relayed().await.unwrap();
    site.link.silence();
    let second = device.send("can", &records(1_000, 1_500)).await.unwrap();
    assert_eq!(site.gateway().unwrap().admin().get("/readyz").await.unwrap().status, 200);
    assert_eq!(site.delivered().unwrap().records(), 1_000);
    site.link.heal();
    all_is_delivered(&mut site, &device, 2_500).await;
    let delivered = site.delivered().unwrap();
    let admin = site.decryptor().unwrap().admin();
    Ledger::draw_up(&[first, second], &delivered, admin).await.unwrap().check().unwrap();
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decryptor_that_is_away_and_comes_back_gets_everything() {
    let (mut site, device) = site_with_truck().await;
    device.send("can", &records(0, 1_000)).await.unwrap();
    site.until_relayed().await.unwrap();
    site.kill_decryptor().await.unwrap();
    site.gateway().unwrap().until("notices", async |admin| relay_is(admin, 0.0).await).await.unwrap();
    works_without_wan(&mut site, &device, 1_000).await;
    site.start_decryptor().await.unwrap();
    all_is_delivered(&mut site, &device, 2_500).await;
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_starts_without_its_wan_serves_what_it_had() {
    let (mut site, device) = site_with_truck().await;
    device.send("can", &records(0, 1_000)).await.unwrap();
    site.until_relayed().await.unwrap();
    let before = device.key().await.unwrap().fingerprint;
    site.link.cut();
    site.stop_gateway().await.unwrap();
    site.start_gateway().await.unwrap();
    works_without_wan(&mut site, &device, 1_000).await;
    assert_eq!(device.key().await.unwrap().fingerprint, before);
    site.link.heal();
    all_is_delivered(&mut site, &device, 2_500).await;
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_never_had_a_statement_says_exactly_what_is_missing() {
    let mut site = Site::create(SiteOptions::default()).await.unwrap();
    site.link.cut();
    let gateway = site.launch_gateway().unwrap();
    let says = async |admin: Admin| {
        admin
            .get("/readyz")
            .await
            .is_ok_and(|reply| reply.status == 503 && reply.body.contains("no statement"))
    };
    gateway.until("says that it has no statement", says).await.unwrap();
    let device = site.enroll("truck-1").await.unwrap();
    let refused = device.run(&["key"]).await.unwrap();
    assert!(refused.refused_with("PH-3022", "KEYS_NOT_READY"), "{}", refused.stderr);
    let shown = site.gateway_command(&["key", "show"]).await.unwrap();
    assert!(shown.refused_with("PH-3022", "KEYS_NOT_READY"), "{}", shown.stderr);
    // It mends itself when the source comes.
    site.link.heal();
    site.start_decryptor().await.unwrap();
    site.gateway().unwrap().ready().await.unwrap();
    assert_eq!(device.key().await.unwrap().status, "FRESH");
    site.stop().await.unwrap();
}

//! What an operator says to the relay, and what becomes of envelopes that the far end refuses: through the commands, on the
//! real programs.

use std::io::{Read as _, Write as _};

use pithead_tests::{
    client::Client,
    forge::{Claim, Forge},
    ledger::hash_of,
    program::Admin,
    site::{Site, SiteOptions},
};

fn records(from: usize, count: usize) -> Vec<String> {
    (from..from + count).map(|at| format!("record {at:06}")).collect()
}

async fn says(site: &Site, arguments: &[&str]) -> String {
    site.gateway_command(arguments).await.unwrap().ok().unwrap().stdout
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_by_hand_outlives_a_kill_stops_no_device_and_ends_when_somebody_says_so() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let device = site.enroll("truck-1").await.unwrap();
    device.send("can", &records(0, 100)).await.unwrap();
    site.until_relayed().await.unwrap();

    says(&site, &["relay", "rate", "3MiB"]).await;
    says(&site, &["relay", "pause"]).await;
    let paused =
        async |admin: Admin| admin.metric_where("pithead_relay_paused", "hand").await.unwrap() == 1.0;
    site.gateway().unwrap().until("stands still", paused).await.unwrap();
    let sent = device.send("can", &records(100, 200)).await.unwrap();
    assert_eq!(sent.acknowledged, sent.envelopes, "devices are served all the same");
    site.kill_gateway().await.unwrap();
    site.start_gateway().await.unwrap();
    site.gateway().unwrap().until("still stands still", paused).await.unwrap();

    let admin = site.gateway().unwrap().admin();
    assert_eq!(admin.get("/readyz").await.unwrap().status, 200, "degraded is ready");
    let status = site.gateway_command(&["relay", "status", "-o", "json"]).await.unwrap();
    assert_eq!(status.code, Some(3), "{}", status.stderr);
    let status: serde_json::Value = status.json().unwrap();
    assert!(status["words"].as_str().unwrap().contains("paused by hand"), "{status}");
    assert_eq!(status["rate_bytes_per_s"], 3 << 20, "{status}");
    assert_eq!(site.delivered().unwrap().records(), 100);

    says(&site, &["relay", "rate", "configured"]).await;
    says(&site, &["relay", "resume"]).await;
    site.until_relayed().await.unwrap();
    let delivered = site.delivered().unwrap();
    assert_eq!((delivered.holes(), delivered.repeated()), (0, 0));
    assert_eq!(hash_of(delivered.records_of("truck-1")), hash_of(records(0, 300)));
    let well = async |admin: Admin| admin.metric("pithead_healthy").await.is_ok_and(|lamps| lamps == 4.0);
    site.gateway().unwrap().until("is well", well).await.unwrap();
    let status = site.gateway_command(&["relay", "status"]).await.unwrap();
    assert_eq!(status.code, Some(0), "{}{}", status.stdout, status.stderr);

    // Told to stop while it stands still, it stops.
    says(&site, &["relay", "pause"]).await;
    site.stop().await.unwrap();
    let nobody = site.gateway_command(&["relay", "resume"]).await.unwrap();
    assert_eq!(nobody.code, Some(69), "{}", nobody.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_envelope_is_listed_sent_again_by_hand_and_back_when_it_is_refused_again() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let forge = Forge::new(&site.authority).unwrap();
    let client = Client::of(&site, "truck-1").await.unwrap();
    let poison = forge.poison(Claim::of("truck-1"), b"one").unwrap();
    client.submit(poison).await.unwrap();
    let refused = async |admin: Admin| admin.metric("pithead_refused_records").await.unwrap() == 1.0;
    site.gateway().unwrap().until("sets it aside", refused).await.unwrap();

    let list = async |site: &Site| -> Vec<serde_json::Value> {
        let list = site.gateway_command(&["refused", "list", "-o", "json"]).await.unwrap();
        list.ok().unwrap().json().unwrap()
    };
    let entries = list(&site).await;
    let name = entries[0]["name"].as_str().unwrap();
    assert_eq!((entries.len(), entries[0]["reason"].as_str()), (1, Some("ENVELOPE_FRAME_TAG")));

    let said = says(&site, &["refused", "retry", name]).await;
    assert!(said.contains("waits in the spool again"), "{said}");
    let twice = async |admin: Admin| {
        let answers = admin.metric_where("pithead_relay_envelopes_total", "refused").await.unwrap();
        answers == 2.0 && admin.metric("pithead_refused_records").await.unwrap() == 1.0
    };
    site.gateway().unwrap().until("is refused again", twice).await.unwrap();
    assert_eq!(list(&site).await.len(), 1);
    let unknown = site.gateway_command(&["refused", "retry", "truck-1~can"]).await.unwrap();
    assert_eq!(unknown.code, Some(1), "{}", unknown.stdout);
    site.until_relayed().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_in_a_browser_cannot_give_orders() {
    let site = Site::start(SiteOptions::default()).await.unwrap();
    let mut stream = std::net::TcpStream::connect(site.gateway_admin()).unwrap();
    let request = "POST /relay/pause HTTP/1.1\r\nHost: localhost\r\nOrigin: https://example.com\r\n\
                   Connection: close\r\nContent-Length: 0\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    let status = Admin(site.gateway_admin()).status().await.unwrap();
    assert_eq!(status["relay"]["paused"], serde_json::Value::Null);
}

//! The real programs over wires that fail: the WAN between gateway and decryptor, and the radio between device and gateway.

use std::time::{Duration, Instant};

use pithead_tests::{
    device::{Device, Sending, Summary},
    ledger::{Ledger, hash_of},
    link::{Link, Swallow},
    site::{Site, SiteOptions},
};

fn records(from: usize, count: usize) -> Vec<String> {
    (from..from + count).map(|at| format!("record {at:06} {:032x}", at * 0x9e37_79b9)).collect()
}

async fn site_with_truck() -> (Site, Device) {
    let site = Site::start(SiteOptions::default()).await.unwrap();
    let device = site.enroll("truck-1").await.unwrap();
    // It has its key from here on, so a fault meets the way of the envelopes.
    device.key().await.unwrap();
    (site, device)
}

/// A device that reaches the gateway over a wire of its own.
async fn over_radio(site: &Site, device: &Device) -> Link {
    let address = site.gateway_address();
    let radio = Link::start("127.0.0.1:0".parse().unwrap(), address).await.unwrap();
    Site::edit(&device.config(), &address.to_string(), &radio.address().to_string()).unwrap();
    radio
}

/// Sends five records every few milliseconds until it is enough. How many that were.
async fn send_until(sending: &mut Sending, enough: impl Fn() -> bool) -> usize {
    let mut given = 0;
    let mut beat = tokio::time::interval(Duration::from_millis(5));
    while !enough() {
        beat.tick().await;
        for record in records(given, 5) {
            sending.record(&record).await.unwrap();
        }
        sending.flush().await.unwrap();
        given += 5;
    }
    given
}

/// Everything that was sent is there once and in order, and every number of the books agrees.
async fn balances(site: &mut Site, device: &Device, summaries: &[Summary], count: usize) -> Ledger {
    site.until_relayed().await.unwrap();
    let delivered = site.delivered().unwrap();
    let admin = site.decryptor().unwrap().admin();
    let ledger = Ledger::draw_up(summaries, &delivered, admin).await.unwrap();
    ledger.check().unwrap();
    assert_eq!(hash_of(delivered.records_of(device.name())), hash_of(records(0, count)));
    ledger
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_open_wan_stops_nothing_on_site_and_what_it_swallowed_goes_out_again() {
    let (mut site, device) = site_with_truck().await;
    let mut summaries = vec![device.send("can", &records(0, 100)).await.unwrap()];
    site.until_relayed().await.unwrap();
    for (round, swallow) in [Swallow::Up, Swallow::Down, Swallow::Both].into_iter().enumerate() {
        let before = site.link.carried().swallowed;
        site.link.half_open(swallow);
        let sent = device.send("can", &records(100 * (round + 1), 100)).await.unwrap();
        assert_eq!(sent.acknowledged, sent.envelopes, "{swallow:?}");
        summaries.push(sent);
        site.link.until(|carried| carried.swallowed > before).await;
        assert_eq!(site.gateway().unwrap().admin().get("/readyz").await.unwrap().status, 200);
        // Somewhere on the way a router starts again: only now do the ends hear that the connection is dead.
        site.link.heal();
        site.link.reset();
        site.until_relayed().await.unwrap();
    }
    let ledger = balances(&mut site, &device, &summaries, 400).await;
    assert!(ledger.resends > 0, "what was applied and not answered came a second time: {ledger:?}");
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_and_late_wan_delivers_everything_once() {
    let (mut site, device) = site_with_truck().await;
    let began = Instant::now();
    site.link.delay(Duration::from_millis(200));
    site.link.throttle(64 << 10);
    let sent = device.send("can", &records(0, 3_000)).await.unwrap();
    let ledger = balances(&mut site, &device, &[sent], 3_000).await;
    assert!(began.elapsed() >= Duration::from_millis(200), "nothing was delayed");
    assert_eq!(ledger.resends, 0, "slow is not broken: nothing went twice");
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flapping_wan_loses_and_repeats_nothing() {
    let (mut site, device) = site_with_truck().await;
    let flapping = site.link.flap(Duration::from_millis(250), Duration::from_millis(50));
    let mut sending = device.start_sending_with("can", &["--linger", "1ms"]).unwrap();
    // Until the relay has come back a few times, whatever its patience.
    let connections = site.link.connections() + 4;
    let given = send_until(&mut sending, || site.link.connections() >= connections).await;
    drop(flapping);
    let sent = sending.finish().await.unwrap();
    balances(&mut site, &device, &[sent], given).await;
    site.stop().await.unwrap();
}

/// Where in a connection something is lost: from its very first byte on, so that each message is hit by one or another, the
/// handshake, the keys, the Hello and the batches among them.
const LOST_AFTER: [usize; 6] = [0, 1_000, 2_000, 3_000, 4_500, 6_000];

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_replies_lost_on_the_wan_are_made_good_and_delivered_once() {
    let (mut site, device) = site_with_truck().await;
    let (mut summaries, mut given) = (Vec::new(), 0);
    for reply in [false, true] {
        for _ in 0..3 {
            site.until_relayed().await.unwrap();
            let lost = site.link.carried().lost;
            if reply {
                site.link.lose_reply(0)
            } else {
                site.link.lose_request(0)
            }
            summaries.push(device.send("can", &records(given, 60)).await.unwrap());
            given += 60;
            site.link.until(|carried| carried.lost > lost).await;
        }
    }
    let ledger = balances(&mut site, &device, &summaries, given).await;
    assert!(ledger.resends > 0, "a lost reply means that its request came twice: {ledger:?}");
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_replies_lost_on_the_radio_are_made_good_and_stored_once() {
    let (mut site, device) = site_with_truck().await;
    let radio = over_radio(&site, &device).await;
    let (mut summaries, mut given) = (Vec::new(), 0);
    for reply in [false, true] {
        for after in LOST_AFTER {
            let mut sending = device.start_sending_with("can", &["--linger", "1ms"]).unwrap();
            if reply {
                radio.lose_reply(after)
            } else {
                radio.lose_request(after)
            }
            for record in records(given, 100) {
                sending.record(&record).await.unwrap();
            }
            given += 100;
            summaries.push(sending.finish().await.unwrap());
            // A call may have said less than that.
            radio.heal();
        }
    }
    assert!(radio.carried().lost > LOST_AFTER.len() as u64, "{:?}", radio.carried());
    balances(&mut site, &device, &summaries, given).await;
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_lost_in_the_middle_of_a_call_makes_a_duplicate_that_is_answered_as_one() {
    let (mut site, device) = site_with_truck().await;
    let radio = over_radio(&site, &device).await;
    let mut sending = device.start_sending_with("can", &["--linger", "1ms"]).unwrap();
    sending.record(&records(0, 1)[0]).await.unwrap();
    sending.flush().await.unwrap();
    let stored = async |admin: pithead_tests::program::Admin| {
        admin.metric("pithead_ingest_envelopes_total").await.is_ok_and(|count| count >= 1.0)
    };
    site.gateway().unwrap().until("has the first", stored).await.unwrap();
    radio.lose_reply(0);
    sending.record(&records(1, 1)[0]).await.unwrap();
    sending.flush().await.unwrap();
    radio.until(|carried| carried.lost == 1).await;
    let sent = sending.finish().await.unwrap();
    assert!(sent.duplicates > 0, "{sent:?}");
    balances(&mut site, &device, &[sent], 2).await;
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flapping_radio_loses_and_repeats_nothing() {
    let (mut site, device) = site_with_truck().await;
    let radio = over_radio(&site, &device).await;
    let flapping = radio.flap(Duration::from_millis(250), Duration::from_millis(50));
    let mut sending = device.start_sending_with("can", &["--linger", "1ms"]).unwrap();
    let given = send_until(&mut sending, || radio.connections() >= 5).await;
    drop(flapping);
    let sent = sending.finish().await.unwrap();
    balances(&mut site, &device, &[sent], given).await;
    site.stop().await.unwrap();
}

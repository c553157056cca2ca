//! A radio that comes and goes, and a cloud that is not there.

use std::time::Duration;

use pithead_tests::{
    link::Link,
    long,
    site::{Site, SiteOptions},
};

use crate::losses::{
    row::balance,
    truck::{Truck, can, exact},
};

/// A number below `below`.
fn draw(below: u64) -> u64 {
    getrandom::u64().unwrap() % below
}

#[tokio::test(flavor = "multi_thread")]
async fn a_radio_that_flaps_with_cuts_in_mid_message_and_lost_requests_and_replies_loses_and_repeats_nothing()
{
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let radio = Link::start("127.0.0.1:0".parse().unwrap(), site.gateway_address()).await.unwrap();
    let mut truck = Truck::start(&site, &[radio.address()], can()).await.with_records_of(300);
    let (faults, least, spread) = if long() { (80, 1_000, 2_000) } else { (12, 250, 500) };
    for fault in 0..faults {
        truck.record_until("it is connected", |truck| truck.client().status().connected.is_some()).await;
        truck.record_for(Duration::from_millis(least + draw(spread))).await;
        let lost = radio.carried().lost;
        // Somewhere in what the connection says next: in the middle of a message, as a rule.
        let after = usize::try_from(draw(20_000)).unwrap();
        match fault % 4 {
            0 => {
                radio.cut();
                truck.record_for(Duration::from_millis(least + draw(spread))).await;
                radio.heal();
            }
            1 => {
                radio.lose_request(after);
                truck.record_until("a request is lost", |_| radio.carried().lost > lost).await;
            }
            2 => {
                radio.lose_reply(after % 200);
                truck.record_until("a reply is lost", |_| radio.carried().lost > lost).await;
            }
            _ => radio.reset(),
        }
    }
    radio.heal();
    truck.finish().await;
    assert!(radio.connections() > faults, "{:?}", radio.carried());
    let row =
        balance(&mut site, &truck.books, "link flapping, cut in mid-message, requests and replies lost")
            .await;
    assert_eq!((row.refused, row.never_promised, row.recorded), (0, 0, row.delivered), "{row:#?}");
    assert!(row.resent_envelopes > 0, "what was stored and not answered came again: {row:#?}");
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_that_is_away_for_the_whole_time_costs_waiting_and_nothing_else() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let mut truck = Truck::start(&site, &[site.gateway_address()], exact()).await;
    site.kill_decryptor().await.unwrap();
    truck.record_all(1_000);
    truck.flush().await;
    truck.close();
    truck.open();
    truck.record_all(1_000);
    truck.finish().await;
    // All of it is the gateway's to keep now, also over a kill.
    assert_eq!(site.delivered().unwrap().records(), 0);
    site.kill_gateway().await.unwrap();
    site.start_gateway().await.unwrap();
    let waits = site.gateway().unwrap().admin().metric("pithead_spool_records").await.unwrap();
    assert_eq!(waits as u64, truck.books.acknowledged);
    site.start_decryptor().await.unwrap();
    let row = balance(&mut site, &truck.books, "decryptor down the whole time").await;
    assert_eq!(row.delivered, 2_000, "{row:#?}");
    site.stop().await.unwrap();
}

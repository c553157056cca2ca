//! A gateway that is replaced by an empty box, and two gateways of one site.

use std::{fs, time::Duration};

use pithead_hop::connect::Endpoint;
use pithead_tests::{
    link::Link,
    long,
    program::Admin,
    site::{Site, SiteOptions},
};
use serde_json::Value;

use crate::losses::{
    row::{Expected, balance, balance_with},
    truck::{PER_ENVELOPE, Truck, can, exact},
};

/// A truck that has delivered a hundred records.
async fn site_with_truck() -> (Site, Truck) {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let mut truck = Truck::start(&site, &[site.gateway_address()], exact()).await;
    truck.record_all(100);
    truck.flush().await;
    site.until_relayed().await.unwrap();
    (site, truck)
}

/// The WAN is down, and a hundred more are acknowledged and lie in the gateway's spool alone.
async fn cut_off() -> (Site, Truck) {
    let (mut site, mut truck) = site_with_truck().await;
    site.link.cut();
    let noticed = async |admin: Admin| admin.metric("pithead_relay_up").await.is_ok_and(|up| up == 0.0);
    site.gateway().unwrap().until("notices the cut", noticed).await.unwrap();
    truck.record_all(100);
    truck.flush().await;
    let waits = site.gateway().unwrap().admin().metric("pithead_spool_records").await.unwrap();
    assert_eq!(waits as u64, 100 / PER_ENVELOPE);
    (site, truck)
}

/// The machine is dead, and another one takes its place, with the same configuration and an empty disk. The truck goes on meanwhile, and
/// after that: a hundred more in all.
async fn replace_the_gateway(site: &mut Site, truck: &mut Truck) {
    truck.record_all(50);
    truck.sync().await;
    fs::remove_dir_all(site.gateway_data()).unwrap();
    fs::create_dir(site.gateway_data()).unwrap();
    site.link.heal();
    site.start_gateway().await.unwrap();
    truck.record_all(50);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_had_passed_everything_on_is_replaced_by_an_empty_one_and_nothing_is_lost() {
    let (mut site, mut truck) = site_with_truck().await;
    site.kill_gateway().await.unwrap();
    replace_the_gateway(&mut site, &mut truck).await;
    truck.finish().await;
    balance(&mut site, &truck.books, "gateway replaced after everything was relayed").await;
    site.stop().await.unwrap();
}

/// What only a gateway had is gone with its disk. That is no loss of the device's, and it is not silent: the cloud names it.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_gateway_takes_into_its_grave_is_a_hole_that_verify_names_to_the_number() {
    let (mut site, mut truck) = cut_off().await;
    site.kill_gateway().await.unwrap();
    replace_the_gateway(&mut site, &mut truck).await;
    truck.finish().await;
    let lost = Expected { envelopes_lost_by_gateway: 100 / PER_ENVELOPE };
    let scenario = "gateway and its disk destroyed before it was relayed";
    let row = balance_with(&mut site, &truck.books, scenario, lost).await;
    assert_eq!((row.lost_by_gateway, row.delivered), (100, 200), "{row:#?}");
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_that_is_carried_to_the_new_box_loses_nothing() {
    let (mut site, mut truck) = cut_off().await;
    site.kill_gateway().await.unwrap();
    let stick = site.folder().join("stick").display().to_string();
    site.gateway_command(&["spool", "export", "--to", &stick]).await.unwrap().ok().unwrap();
    replace_the_gateway(&mut site, &mut truck).await;
    truck.flush().await;
    // The new box is at work already when the stick arrives.
    let imported = site.gateway_command(&["spool", "import", &stick, "-o", "json"]).await.unwrap();
    let imported: Value = imported.ok().unwrap().json().unwrap();
    assert_eq!(imported["stored"].as_u64(), Some(100 / PER_ENVELOPE), "{imported:#}");
    truck.finish().await;
    balance(&mut site, &truck.books, "gateway destroyed, its spool carried over by export and import").await;
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gateways_that_fail_in_turn_under_a_truck_that_records_deliver_each_record_once() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let mut other = site.second_gateway("edge-2").await.unwrap();
    let any = "127.0.0.1:0".parse().unwrap();
    let first = Link::start(any, site.gateway_address()).await.unwrap();
    let second = Link::start(any, other.address()).await.unwrap();
    let mut truck = Truck::start(&site, &[first.address(), second.address()], can()).await;
    let on = |link: &Link| {
        let endpoint = Endpoint::from(link.address());
        move |truck: &Truck| {
            let status = truck.client().status();
            status.connected.as_ref() == Some(&endpoint) && status.trouble.is_none()
        }
    };
    for round in 0..if long() { 40 } else { 4 } {
        truck.record_until("the first takes it", on(&first)).await;
        truck.record_for(Duration::from_millis(150)).await;
        // In mid-stream: at once, or with the answer to what was said last.
        if round % 2 == 0 {
            first.cut();
        } else {
            let lost = first.carried().lost;
            first.lose_reply(0);
            truck.record_until("a reply is lost", |_| first.carried().lost > lost).await;
            first.cut();
        }
        truck.record_until("the second takes over", on(&second)).await;
        truck.record_for(Duration::from_millis(150)).await;
        first.heal();
        // And back, in mid-stream again: the first is preferred.
        second.cut();
        truck.record_until("the first takes it again", on(&first)).await;
        second.heal();
    }
    truck.finish().await;
    let relayed = async |admin: Admin| matches!(admin.metric("pithead_spool_records").await, Ok(0.0));
    other.program().until("has passed everything on", relayed).await.unwrap();
    let stored =
        other.program().admin().metric_where("pithead_ingest_envelopes_total", "\"stored\"").await.unwrap();
    assert!(stored > 0.0, "the second gateway took its part");
    let row = balance(&mut site, &truck.books, "two gateways, fail-over in mid-stream and back").await;
    assert_eq!((row.refused, row.never_promised, row.recorded), (0, 0, row.delivered), "{row:#?}");
    assert!(row.resent_envelopes > 0, "what the first had stored without an answer came again: {row:#?}");
    site.stop().await.unwrap();
}

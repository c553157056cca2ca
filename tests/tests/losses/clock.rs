//! A wall clock that stands at 1970, is right, and is set back: it stamps records, and decides nothing.
//!
//! No test sets the machine's clock. What a client reads from it is one number in each record, which is given here instead
//! (`record_at`). The library reads it in one place, `clock.rs`, and what that gives goes into records, into the age of what
//! waits, and into the offset that `Status` shows. A clock that is set between two records that it stamps itself is tested
//! beside the batch (`device-client/src/batch.rs`), and TLS with a clock at 1970 in `hop/tests/transport/tls.rs`.

use std::collections::HashMap;

use pithead_tests::{
    site::{Site, SiteOptions},
    vehicle,
};
use serde_json::Value;

use crate::losses::{
    row::balance,
    truck::{Truck, exact},
};

const SECOND: i64 = 1_000_000;
const RIGHT: i64 = 1_795_000_000 * SECOND;
const YEAR: i64 = 365 * 86_400 * SECOND;

/// The time of each number, as it lies in the sink.
fn times(site: &Site) -> HashMap<u64, i64> {
    let text = std::fs::read_to_string(site.sink()).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .map(|line| {
            let data = line["data"].as_str().unwrap();
            let data = <base64ct::Base64 as base64ct::Encoding>::decode_vec(data).unwrap();
            (vehicle::number(&data).unwrap(), line["time_us"].as_i64().unwrap())
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_at_1970_that_is_set_right_and_set_back_costs_nothing_and_every_record_keeps_its_time() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let mut truck = Truck::start(&site, &[site.gateway_address()], exact()).await;
    let mut given = HashMap::new();
    // Within one envelope, from one to the next, and over a restart; before 1970 as well.
    let clocks = [0, RIGHT, RIGHT - YEAR, -5 * SECOND, RIGHT + YEAR, 7 * SECOND];
    for round in 0..40_i64 {
        for (step, clock) in (0_i64..).zip(clocks) {
            let at = clock + round * SECOND + step;
            given.insert(truck.record_at(at), at);
        }
        if round % 5 == 4 {
            truck.flush().await;
        }
        if round == 19 {
            truck.close();
            truck.open();
        }
    }
    truck.finish().await;
    let row = balance(&mut site, &truck.books, "clock at 1970, set right, set back").await;
    assert_eq!((row.recorded, row.delivered), (240, 240));
    assert_eq!(times(&site), given);
    let in_order: Vec<u64> = {
        let delivered = site.delivered().unwrap();
        delivered
            .records_of(crate::losses::truck::NAME)
            .iter()
            .map(|data| vehicle::number(data).unwrap())
            .collect()
    };
    assert!(in_order.is_sorted(), "a stream's order is its own, whatever the clock says");
    assert_eq!(site.delivered().unwrap().disordered(), 0);
    site.stop().await.unwrap();
}

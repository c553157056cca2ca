//! A key that changes while the vehicle is cut off.

use std::{collections::BTreeMap, fs};

use pithead_sealing::envelope::Header;
use pithead_tests::{
    link::Link,
    program::Admin,
    site::{KEY_ARN, NEXT_KEY_ARN, SITE, Site, SiteOptions},
};
use serde_json::Value;

use crate::losses::{
    row::balance,
    truck::{Truck, exact},
};

/// Under which key each number of each run waits in the gateway's spool.
async fn keys_in_the_spool(site: &Site) -> BTreeMap<String, BTreeMap<u64, String>> {
    let stick = site.folder().join("stick");
    let to = stick.display().to_string();
    site.gateway_command(&["spool", "export", "--to", &to]).await.unwrap().ok().unwrap();
    let index = fs::read_to_string(stick.join("index.jsonl")).unwrap();
    let items = index.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut keys = BTreeMap::<String, BTreeMap<u64, String>>::new();
    for item in items {
        let envelope = fs::read(stick.join(item["file"].as_str().unwrap())).unwrap();
        let key = Header::parse(&envelope.into()).unwrap().edks()[0].key_arn().unwrap();
        let run = keys.entry(item["run"].as_str().unwrap().to_owned()).or_default();
        run.insert(item["seq"].as_u64().unwrap(), key.to_string());
    }
    keys
}

/// That key, of those numbers.
fn under(key: &str, numbers: impl IntoIterator<Item = u64>) -> BTreeMap<u64, String> {
    numbers.into_iter().map(|number| (number, key.to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_sealed_to_the_old_key_while_cut_off_arrives_and_what_comes_later_goes_to_the_new_one() {
    let options = SiteOptions { standby: true, hold_down: "0s", ..SiteOptions::default() };
    let mut site = Site::start(options).await.unwrap();
    let radio = Link::start("127.0.0.1:0".parse().unwrap(), site.gateway_address()).await.unwrap();
    let mut truck = Truck::start(&site, &[radio.address()], exact()).await;
    truck.record_all(100);
    truck.flush().await;
    site.until_relayed().await.unwrap();

    radio.cut();
    truck.record_all(100);
    truck.sync().await;
    site.authority.act(&["rotate"], &["--site", SITE, "--no-standby"]).await.unwrap().ok().unwrap();
    let rotated = async |admin: Admin| admin.metric("pithead_key_sequence").await.is_ok_and(|at| at == 2.0);
    site.gateway().unwrap().until("has the next statement", rotated).await.unwrap();
    // The truck cannot know: it goes on with the key that it has, over a restart as well.
    truck.record_all(100);
    truck.sync().await;
    let closed = truck.close();
    assert_eq!(closed.waiting, 21, "twenty and a goodbye: {closed:?}");
    truck.open();
    truck.record_all(100);
    truck.sync().await;

    // The WAN is down, so that the gateway's spool shows what comes in.
    site.link.cut();
    radio.heal();
    truck.until("it believes the new statement", |status| status.keys.version == (1, 2)).await;
    truck.record_all(100);
    truck.flush().await;
    let keys = keys_in_the_spool(&site).await;
    let of_two_lives: Vec<_> = keys.into_values().collect();
    let mut second = under(KEY_ARN, 1..=10);
    second.extend(under(NEXT_KEY_ARN, 11..=20));
    assert_eq!(of_two_lives, [under(KEY_ARN, 11..=31), second]);

    site.link.heal();
    truck.finish().await;
    let row = balance(&mut site, &truck.books, "key rotated while offline").await;
    assert_eq!((row.recorded, row.delivered), (500, 500));
    site.stop().await.unwrap();
}

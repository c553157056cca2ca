//! Bad input, at the real programs: each kind gets its own code, says what to do, and changes nothing.

mod envelopes;
mod identity;
mod local;
mod statements;

use pithead_tests::{device::Device, site::Site};

/// What must be the same before and after something was refused.
#[derive(Debug, PartialEq)]
struct State {
    stored: f64,
    waiting: f64,
    records: u64,
    statement: String,
}

async fn state(site: &mut Site) -> State {
    let admin = site.gateway().unwrap().admin();
    State {
        stored: admin.metric_where("pithead_ingest_envelopes_total", "\"stored\"").await.unwrap(),
        waiting: admin.metric("pithead_spool_records").await.unwrap(),
        records: site.delivered().unwrap().records(),
        statement: site.gateway_command(&["key", "show", "-o", "json"]).await.unwrap().stdout,
    }
}

/// The device is refused by the gateway, or refuses it, with this code, and says what to do.
async fn device_is_refused(device: &Device, code: &str, name: &str) {
    let refused = device.run(&["key"]).await.unwrap();
    assert!(refused.refused_with(code, name), "{}", refused.stderr);
    assert_eq!(refused.code, Some(77), "an identity was refused");
    assert!(refused.stderr.contains("what to do:"), "{}", refused.stderr);
    assert_eq!(device.key_offline().await.unwrap().fingerprint, None);
}

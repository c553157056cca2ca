//! Devices that are known by their address alone, on a port of their own.

use std::{fs, net::SocketAddr};

use pithead_hop::{
    keys::{FetchError, Held},
    status::Remote,
};
use pithead_proto::errors::v1::ErrorReason;
use pithead_tests::{
    client::Client,
    device::{Device, Summary},
    program::{Admin, PATIENCE, free_address},
    site::{Site, SiteOptions},
};

use crate::identity::{in_time, keys, reason};

async fn start() -> (Site, SocketAddr) {
    let network = free_address().unwrap();
    let lines = vec![
        ("network", format!("listen = \"{network}\"")),
        ("enroll", "ca_key = \"site-ca.key\"".to_owned()),
    ];
    let mut site = Site::create(SiteOptions { gateway_lines: lines, ..Default::default() }).await.unwrap();
    fs::write(site.folder().join("gateway/site-ca.key"), site.ca.key_pem()).unwrap();
    site.start_decryptor().await.unwrap();
    site.start_gateway().await.unwrap();
    (site, network)
}

/// A device without a certificate that goes to the port for such devices.
async fn by_address(site: &Site, network: SocketAddr, name: &str) -> Device {
    let (device, enrolled) = site.enroll_as(name, site.ca.path(), None, &[]).await.unwrap();
    enrolled.ok().unwrap();
    Site::edit(&device.config(), &site.gateway_address().to_string(), &network.to_string()).unwrap();
    device
}

async fn asked(site: &Site, network: SocketAddr) -> Result<Client, Remote> {
    let client = Client::connect(network, site.ca.path(), None).await.unwrap().unwrap();
    match keys(&client).fetch(&Held::default(), PATIENCE).await {
        Ok(_) => Ok(client),
        Err(FetchError::Remote(remote)) => Err(remote),
        Err(other) => panic!("{other}"),
    }
}

/// Waits until the gateway has read what the command line wrote.
async fn until_known(site: &Site, network: SocketAddr) -> Client {
    in_time("the address is known", async {
        loop {
            if let Ok(client) = asked(site, network).await {
                return client;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_speaks_for_its_own_device_as_a_claim_and_for_no_device_with_a_certificate() {
    let (mut site, network) = start().await;
    let pump = by_address(&site, network, "pump-1").await;
    let unknown = asked(&site, network).await.unwrap_err();
    assert_eq!(reason(&unknown), ErrorReason::AddressUnknown);
    let told = pump.run(&["key"]).await.unwrap();
    assert!(told.refused_with("PH-4008", "ADDRESS_UNKNOWN"), "{}", told.stderr);

    let add = ["device", "add", "pump-1", "--mode", "network", "--address"];
    let many = site.gateway_command(&[&add[..], &["127.0.0.0/8"]].concat()).await.unwrap();
    assert_eq!(many.code, Some(2), "{}", many.stderr);
    site.gateway_command(&[&add[..], &["127.0.0.1/32"]].concat()).await.unwrap().ok().unwrap();
    let client = until_known(&site, network).await;
    let summary = pump.send("can", &["one".into()]).await.unwrap();
    assert_eq!((summary.records, summary.refused), (1, 0));
    site.until_relayed().await.unwrap();
    let delivered = fs::read_to_string(site.sink()).unwrap();
    let lines: Vec<&str> = delivered.lines().filter(|line| line.contains("pump-1")).collect();
    assert!(
        !lines.is_empty() && lines.iter().all(|line| line.contains("\"assurance\":\"claimed\"")),
        "{lines:?}"
    );
    let list = site.gateway_command(&["device", "list", "-o", "json"]).await.unwrap();
    let list: serde_json::Value = list.json().unwrap();
    assert_eq!(list["devices"][0]["assurance"], "claimed", "{list}");
    let status = Admin(site.gateway_admin()).status().await.unwrap();
    assert!(status["ingest"]["claimed"].as_u64() >= Some(1), "{status}");

    // A device that is registered with a certificate, without one: alone, and inside a batch.
    let out = site.folder().join("carried").display().to_string();
    site.gateway_command(&["device", "add", "truck-1", "--out", &out]).await.unwrap().ok().unwrap();
    let truck = by_address(&site, network, "truck-1").await;
    assert_eq!(truck.key().await.unwrap().status, "FRESH", "keys are everybody's");
    let (plain, sealed) = (site.folder().join("note.txt"), site.folder().join("note.envelope"));
    let seal = async |device: &Device| {
        fs::write(&plain, "a note").unwrap();
        let paths = [plain.display().to_string(), sealed.display().to_string()];
        device.run(&["seal", &paths[0], "--out", &paths[1]]).await.unwrap().ok().unwrap();
        fs::read(&sealed).unwrap()
    };
    let envelope = seal(&truck).await;
    in_time("the gateway knows that it has a certificate", async {
        while client.refusal(envelope.clone()).await.unwrap() != ErrorReason::ModeDowngrade {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await;
    let mut sending = truck.start_sending("can").unwrap();
    sending.record("forged").await.unwrap();
    let finished = sending.end().await.unwrap();
    assert_eq!(finished.code, Some(1), "{}", finished.stderr);
    let summary: Summary = finished.json().unwrap();
    assert!(summary.refused > 0 && summary.refused == summary.envelopes, "{summary:?}");
    let weaker = ["device", "add", "truck-1", "--mode", "network", "--address", "127.0.0.2"];
    let weaker = site.gateway_command(&weaker).await.unwrap();
    assert!(weaker.refused_with("PH-4005", "MODE_DOWNGRADE"), "{}", weaker.stderr);
    // One that nobody has registered is merely another one.
    let stranger = by_address(&site, network, "stranger").await;
    stranger.key().await.unwrap();
    assert_eq!(client.refusal(seal(&stranger).await).await.unwrap(), ErrorReason::DeviceMismatch);

    site.gateway_command(&["device", "revoke", "pump-1"]).await.unwrap().ok().unwrap();
    in_time("its connection is closed", client.connection().ended()).await;
    assert_eq!(reason(&asked(&site, network).await.unwrap_err()), ErrorReason::AddressUnknown);
    let delivered = fs::read_to_string(site.sink()).unwrap();
    assert!(!delivered.contains("truck-1"), "nothing of it was taken");
}

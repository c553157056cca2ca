//! The main job: from records on a device to plaintext in the cloud, with the identity under which it came.

use pithead_tests::{
    device::Summary,
    kms::Operation,
    ledger::{Ledger, hash_of},
    site::{Custody, KEY_ARN, SITE, SinkKind, Site, SiteOptions},
    telemetry::Truck,
};

fn records(truck: u64, count: usize) -> Vec<String> {
    Truck::new(truck, 1_700_000_000_000_000).take(count).map(|frame| frame.to_candump()).collect()
}

async fn devices_to_plaintext(options: SiteOptions) -> Site {
    let mut site = Site::start(options).await.unwrap();
    let mut sending = tokio::task::JoinSet::new();
    for number in 1..=3 {
        let device = site.enroll(&format!("truck-{number}")).await.unwrap();
        sending.spawn(async move { device.send("can", &records(number, 2_500)).await });
    }
    let mut summaries = Vec::new();
    while let Some(sent) = sending.join_next().await {
        summaries.push(sent.unwrap().unwrap());
    }
    site.until_relayed().await.unwrap();
    let delivered = site.delivered().unwrap();
    let ledger = Ledger::draw_up(&summaries, &delivered, site.decryptor().unwrap().admin()).await.unwrap();
    ledger.check().unwrap();
    assert_eq!((ledger.devices.records, ledger.devices.sessions), (7_500, 3));
    assert_eq!(ledger.unwraps, 3, "one unwrap per session");
    for number in 1..=3 {
        let name = format!("truck-{number}");
        assert_eq!(hash_of(delivered.records_of(&name)), hash_of(records(number, 2_500)), "{name}");
    }
    site
}

#[tokio::test(flavor = "multi_thread")]
async fn with_kms_the_cloud_gets_what_the_trucks_recorded_for_one_call_per_session() {
    let options = SiteOptions { custody: Custody::Kms, gateway_asks_kms: true, ..SiteOptions::default() };
    let mut site = devices_to_plaintext(options).await;
    let kms = site.kms.as_ref().unwrap();
    assert_eq!(kms.count(Operation::Decrypt), 3);
    assert!(kms.count(Operation::GetPublicKey) > 0, "the gateway compares the key with KMS");
    assert_eq!(site.delivered().unwrap().with_assurance("vouched"), 7_500);
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_private_key_in_a_file_and_a_folder_the_cloud_gets_the_same() {
    let mut site =
        devices_to_plaintext(SiteOptions { sink: SinkKind::Folder, ..SiteOptions::default() }).await;
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_device_shows_the_fingerprint_that_the_authority_signed() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let stated =
        pithead_tests::forge::last_statement(&site.authority).unwrap().keys[0].fingerprint.to_string();
    let device = site.enroll("truck-1").await.unwrap();
    assert_eq!(device.key_offline().await.unwrap().fingerprint, None, "it has met no gateway yet");
    let shown = device.key().await.unwrap();
    assert_eq!((shown.status.as_str(), shown.key.as_deref()), ("FRESH", Some(KEY_ARN)));
    assert_eq!(shown.fingerprint.as_deref(), Some(stated.as_str()));
    // And without anybody to ask, afterwards.
    site.stop().await.unwrap();
    assert_eq!(device.key_offline().await.unwrap().fingerprint, Some(stated));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_delivered_whole_whether_it_fits_an_envelope_or_not_and_one_over_the_budget_is_refused() {
    let mut site =
        Site::start(SiteOptions { sink: SinkKind::Folder, ..SiteOptions::default() }).await.unwrap();
    let device = site.enroll("truck-1").await.unwrap();
    let mut contents = Vec::new();
    for (name, bytes) in [("dump.bin", 700_000), ("large.bin", 5 << 20)] {
        let mut content = vec![0; bytes];
        getrandom::fill(&mut content).unwrap();
        let path = site.folder().join(name);
        std::fs::write(&path, &content).unwrap();
        let sent: Summary =
            device.run(&["send", path.to_str().unwrap()]).await.unwrap().ok().unwrap().json().unwrap();
        assert_eq!((sent.records, sent.envelopes), (1, 2), "the file, and a goodbye");
        contents.push(content);
    }
    site.until_relayed().await.unwrap();
    let delivered = site.delivered().unwrap();
    let mut found = delivered.records_of("truck-1");
    found.sort_by_key(|content| content.len());
    // Beside them lie the goodbyes of a device that has no stream of records.
    found.retain(|content| content.len() > 10_000);
    assert_eq!(found, contents.iter().map(Vec::as_slice).collect::<Vec<_>>());

    Site::edit(&device.config(), "max_bytes = \"64MiB\"", "max_bytes = \"4MiB\"").unwrap();
    let large = site.folder().join("large.bin");
    let refused = device.run(&["send", large.to_str().unwrap()]).await.unwrap();
    assert_eq!(refused.code, Some(1));
    assert!(refused.refused_with("PH-6009", "OUTBOX_FULL"), "{}", refused.stderr);
    assert!(refused.stderr.contains("4194304"), "it names the limit: {}", refused.stderr);
    assert_eq!(device.outbox().await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_site_is_added_to_a_running_decryptor_and_speaks_for_nobody_else() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let config = site.decryptor_config().display().to_string();
    let ca = site.cloud_ca.path().display().to_string();
    let added = site.decryptor_command(&["site", "add", "pit-8", "--ca", &ca, "-c", &config]).await.unwrap();
    added.ok().unwrap();
    let again = site.decryptor_command(&["site", "add", "pit-8", "--ca", &ca, "-c", &config]).await.unwrap();
    assert_eq!(again.code, Some(78), "{}", again.stderr);
    let listed = site.decryptor_command(&["site", "list", "-c", &config]).await.unwrap().ok().unwrap().stdout;
    assert!(listed.contains("pit-8") && listed.contains(SITE), "{listed}");
    site.stop().await.unwrap();
}

//! The authority's acts on a site that works: keys and roots change, and nobody touches the truck.

use pithead_tests::{
    command::{Finished, run},
    kms::KmsKey,
    ledger::hash_of,
    program::Admin,
    site::{KEY_ARN, NEXT_KEY_ARN, SITE, Site, SiteOptions},
};

const THIRD_KEY_ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/33333333-3333-4333-8333-333333333333";

fn records(from: usize, count: usize) -> Vec<String> {
    (from..from + count).map(|at| format!("truck 1 record {at:06}")).collect()
}

/// The gateway has the statement of that number.
async fn has(site: &mut Site, sequence: f64) {
    let there =
        async move |admin: Admin| admin.metric("pithead_key_sequence").await.is_ok_and(|at| at == sequence);
    site.gateway().unwrap().until("has the next statement", there).await.unwrap();
}

/// `authority root ...` on a machine that has no authority's folder.
async fn root(site: &Site, arguments: &[&str]) -> Finished {
    let decryptor = site.programs().decryptor();
    run(&decryptor, [&["authority", "root"], arguments].concat(), &[]).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_a_new_root_and_a_revocation_reach_a_truck_that_nobody_touches() {
    let options = SiteOptions { standby: true, hold_down: "0s", ..SiteOptions::default() };
    let mut site = Site::start(options).await.unwrap();
    let device = site.enroll("truck-1").await.unwrap();
    device.send("can", &records(0, 100)).await.unwrap();
    assert_eq!(device.key().await.unwrap().key.as_deref(), Some(KEY_ARN));

    // The key that stood by takes over.
    let rotate = ["--site", SITE, "--no-standby"];
    site.authority.act(&["rotate"], &rotate).await.unwrap().ok().unwrap();
    has(&mut site, 2.0).await;
    device.send("can", &records(100, 100)).await.unwrap();
    let key = device.key().await.unwrap();
    assert_eq!((key.sequence, key.key.as_deref()), (2, Some(NEXT_KEY_ARN)));

    // Another root: the second root key goes, one that was made elsewhere comes. Three people sign, each with the draft alone.
    let folder = site.folder().to_owned();
    let path = |name: &str| folder.join(name).display().to_string();
    let (carol, public, draft) = (path("carol.pem"), path("carol.pem.pub"), path("root-2.draft"));
    let made = root(&site, &["new-key", "--out", &carol]).await.ok().unwrap();
    assert!(made.stdout.contains("WARNING: it is not encrypted"), "{}", made.stdout);
    let key = std::fs::read(&carol).unwrap();
    let again = root(&site, &["new-key", "--out", &carol]).await;
    assert!(!again.is_ok());
    assert_eq!(std::fs::read(&carol).unwrap(), key, "a key file is never written over");
    let shown = site.authority.act(&["show"], &["-o", "json"]).await.unwrap().ok().unwrap();
    let shown: serde_json::Value = shown.json().unwrap();
    let second = shown["root_keys"].as_array().unwrap().iter().find(|key| key["label"] == "root-2").unwrap();
    let gone = second["kid"].as_str().unwrap();
    let added = format!("carol={public}");
    let arguments = ["--add-root-key", &added, "--remove-root-key", gone, "--out", &draft];
    site.authority.act(&["root", "draft"], &arguments).await.unwrap().ok().unwrap();
    let read = root(&site, &["sign", &draft]).await.ok().unwrap().stdout;
    assert!(
        read.contains("version 2") && read.contains("\"carol\"") && read.contains("nothing was signed"),
        "{read}"
    );
    let fingerprint = read.lines().find_map(|line| line.strip_prefix("fingerprint  ")).unwrap().to_owned();
    let other = "0".repeat(64);
    let arguments = ["sign", &draft, "--key", &carol, "--fingerprint", &other, "--out", &carol];
    let refused = root(&site, &arguments).await;
    assert!(refused.stderr.contains("another fingerprint"), "{}", refused.stderr);
    let arguments = ["sign", &draft, "--key", &carol, "--fingerprint", &fingerprint, "--out", &carol];
    assert!(!root(&site, &arguments).await.is_ok(), "a signature is not written over a key");
    assert_eq!(std::fs::read(&carol).unwrap(), key);
    let mut signatures = Vec::new();
    for (name, key) in [
        ("alice", site.authority.key("root-1").display().to_string()),
        ("bob", site.authority.key("root-2").display().to_string()),
        ("carol", carol),
    ] {
        let out = path(&format!("{name}.signed"));
        let arguments = ["sign", &draft, "--key", &key, "--fingerprint", &fingerprint, "--out", &out];
        root(&site, &arguments).await.ok().unwrap();
        signatures.push(out);
    }
    let signatures: Vec<&str> = signatures.iter().map(String::as_str).collect();
    let too_few = site.authority.act(&["root", "accept"], &signatures[..1]).await.unwrap();
    assert!(too_few.refused_with("PH-1009", "TRUST_THRESHOLD_OLD"), "{}", too_few.stderr);
    site.authority.act(&["root", "accept"], &signatures).await.unwrap().ok().unwrap();
    site.authority.statement(SITE, &["--no-standby".into()]).await.unwrap().ok().unwrap();
    has(&mut site, 3.0).await;
    device.send("can", &records(200, 100)).await.unwrap();
    let told: serde_json::Value = device.run(&["key"]).await.unwrap().ok().unwrap().json().unwrap();
    assert_eq!(told["root_version"], 2, "{told:#}");

    // The key is revoked, and nobody stands by: that is not signed, and says what is to be done, which then works.
    let revoke = vec![NEXT_KEY_ARN, "--site", SITE, "--reason", "stolen", "--no-standby"];
    let refused = site.authority.act(&["revoke"], &revoke).await.unwrap();
    assert!(refused.refused_with("PH-1025", "TRUST_NO_ACTIVE"), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("--to ARN=SPKI.pem") && refused.stderr.contains("--cosign"),
        "{}",
        refused.stderr
    );
    let third = KmsKey::generate(THIRD_KEY_ARN, 2048).unwrap();
    let spki = path("third.pem");
    std::fs::write(&spki, third.spki_pem()).unwrap();
    let (to, alice) = (format!("{THIRD_KEY_ARN}={spki}"), site.authority.key("root-1").display().to_string());
    let carol = path("carol.pem");
    let cosigned = [revoke, vec!["--to", &to, "--cosign", &alice, "--cosign", &carol]].concat();
    site.authority.act(&["revoke"], &cosigned).await.unwrap().ok().unwrap();
    has(&mut site, 4.0).await;
    assert_eq!(device.key().await.unwrap().key.as_deref(), Some(THIRD_KEY_ARN));

    site.until_relayed().await.unwrap();
    let delivered = site.delivered().unwrap();
    assert_eq!((delivered.holes(), delivered.repeated()), (0, 0));
    assert_eq!(hash_of(delivered.records_of(device.name())), hash_of(records(0, 300)));
    site.stop().await.unwrap();
}

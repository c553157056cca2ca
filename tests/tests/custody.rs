//! Who signs statements, and what happens when nobody does: key files, KMS, the daily re-issue, and a gateway that keeps statements
//! back. Nobody touches the truck.

use std::time::Duration;

use pithead_tests::{
    authority::now,
    command::{Finished, run},
    kms::{Fault, KeyState, KmsKey, Operation},
    ledger::hash_of,
    program::Admin,
    site::{Custody, KEY_ARN, KeySource, SITE, Site, SiteOptions},
};

const STATEMENT_KEY_ARN: &str =
    "arn:aws:kms:ap-southeast-2:111122223333:key/9abcdef0-12ab-34cd-56ef-1234567890ab";
const DAY: Duration = Duration::from_secs(86_400);

fn records(from: usize, count: usize) -> Vec<String> {
    (from..from + count).map(|at| format!("truck 1 record {at:06}")).collect()
}

/// The gateway has the statement of that number.
async fn has(site: &mut Site, sequence: f64) {
    let there =
        async move |admin: Admin| admin.metric("pithead_key_sequence").await.is_ok_and(|at| at == sequence);
    let reached = site.gateway().unwrap().until("has the next statement", there).await;
    reached.unwrap_or_else(|error| panic!("{error:#}\n{}", site.log_tails()));
}

async fn failed(admin: Admin, reason: &str) -> f64 {
    let label = format!("\"{reason}\"");
    admin.metric_where("pithead_authority_failures_total", &label).await.unwrap_or(0.0)
}

/// The decryptor is stopped, its file changed, and started.
async fn restart_decryptor(site: &mut Site, changes: &[(&str, &str)]) {
    site.kill_decryptor().await.unwrap();
    for (from, to) in changes {
        Site::edit(&site.decryptor_config(), from, to).unwrap();
    }
    site.start_decryptor().await.unwrap();
}

/// `authority ...` on a machine that has no authority's folder.
async fn elsewhere(site: &Site, arguments: &[&str]) -> Finished {
    let decryptor = site.programs().decryptor();
    run(&decryptor, [&["authority"], arguments].concat(), &[]).await.unwrap()
}

/// Both root keys sign a draft, each with what it says before it.
async fn signed_by_both(site: &Site, act: &[&str], draft: &str) -> Vec<String> {
    let read = elsewhere(site, &[act, &[draft]].concat()).await.ok().unwrap().stdout;
    let fingerprint = read.lines().find_map(|line| line.strip_prefix("fingerprint  ")).unwrap().to_owned();
    let mut signatures = Vec::new();
    for name in ["root-1", "root-2"] {
        let (key, out) = (site.authority.key(name).display().to_string(), format!("{draft}.{name}"));
        let arguments = [draft, "--key", &key, "--fingerprint", &fingerprint, "--out", &out];
        elsewhere(site, &[act, &arguments].concat()).await.ok().unwrap();
        signatures.push(out);
    }
    signatures
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_moves_to_kms_and_goes_on_while_kms_does_not_sign() {
    let options = SiteOptions { custody: Custody::Kms, authority_age: 5 * DAY, ..SiteOptions::default() };
    let mut site = Site::start(options).await.unwrap();
    site.kms.as_ref().unwrap().replace_key(KmsKey::generate_signing(STATEMENT_KEY_ARN).unwrap());
    let environment = site.kms.as_ref().unwrap().environment();
    let device = site.enroll("truck-1").await.unwrap();
    device.send("can", &records(0, 50)).await.unwrap();
    assert_eq!(device.key().await.unwrap().sequence, 1);

    // Root version 2, made three days ago: statements are signed in KMS from now on.
    let then = now().as_secs() - 3 * DAY.as_secs();
    let then = then.to_string();
    let draft = site.folder().join("root-2.draft").display().to_string();
    let named = format!("statement-2=kms:{STATEMENT_KEY_ARN}");
    let arguments = ["--statement-key", &named, "--out", &draft, "--now", &then];
    let drafted =
        site.authority.act_with(&environment, &["root", "draft"], &arguments).await.unwrap().ok().unwrap();
    assert!(drafted.stdout.contains("custody: cloud HSM"), "{}", drafted.stdout);
    let known = site.authority.root().display().to_string();
    let against =
        elsewhere(&site, &["root", "sign", &draft, "--previous", &known]).await.ok().unwrap().stdout;
    assert!(against.contains("change       custody: key file -> cloud HSM"), "{against}");
    assert!(
        against.contains("\"statement-2\" comes") && against.contains("\"statement-1\" goes"),
        "{against}"
    );
    let strange = elsewhere(&site, &["root", "sign", &draft, "--previous", &draft]).await;
    assert!(!strange.is_ok());
    let signatures = signed_by_both(&site, &["root", "sign"], &draft).await;
    let signatures: Vec<&str> = signatures.iter().map(String::as_str).collect();
    let accept = [&signatures[..], &["--now", &then]].concat();
    site.authority.act(&["root", "accept"], &accept).await.unwrap().ok().unwrap();

    // The key file is the root's no more, and nobody signs with it unknowingly.
    let statement = ["--site", SITE, "--no-standby", "--now", &then];
    let forgotten = site.authority.act(&["statement"], &statement).await.unwrap();
    assert!(forgotten.stderr.contains("--statement-kms-key"), "{}", forgotten.stderr);
    let by_kms = [&statement[..], &["--statement-kms-key", STATEMENT_KEY_ARN]].concat();
    site.authority.act_with(&environment, &["statement"], &by_kms).await.unwrap().ok().unwrap();
    has(&mut site, 2.0).await;
    let told: serde_json::Value = device.run(&["key"]).await.unwrap().ok().unwrap().json().unwrap();
    assert_eq!((&told["root_version"], &told["sequence"]), (&2.into(), &2.into()), "{told:#}");
    device.send("can", &records(50, 50)).await.unwrap();
    assert_eq!(site.kms.as_ref().unwrap().count(Operation::Sign), 1);

    // The decryptor is to issue statements again, and KMS refuses to sign: the old one is served, and everything goes on.
    let kms = site.kms.as_ref().unwrap();
    kms.set_fault_of(Operation::Sign, Fault::Deny);
    let section =
        format!("[authority]\ndir = \"../authority\"\nstatement_kms_key = \"{STATEMENT_KEY_ARN}\"\n\n[sink]");
    restart_decryptor(&mut site, &[("[sink]", &section)]).await;
    let refused = async |admin| failed(admin, "KMS_DENIED").await >= 1.0;
    site.decryptor().unwrap().until("was refused a signature", refused).await.unwrap();
    let admin = site.decryptor().unwrap().admin();
    assert_eq!(admin.get("/readyz").await.unwrap().status, 200);
    assert_eq!(admin.metric("pithead_authority_failing_sites").await.unwrap(), 1.0);
    let shown = &admin.status().await.unwrap()["authority"][0];
    assert!(shown["age_s"].as_u64().unwrap() >= 3 * DAY.as_secs(), "{shown:#}");
    assert!(shown["retry_at"].is_string() && shown["site"] == SITE, "{shown:#}");
    assert!(site.decryptor().unwrap().log_text().contains("authority.reissue_failed"));
    device.send("can", &records(100, 50)).await.unwrap();
    assert_eq!(device.key().await.unwrap().sequence, 2);

    // A data key that is disabled is named, and nothing is signed for it.
    let kms = site.kms.as_ref().unwrap();
    kms.set_fault_of(Operation::Sign, Fault::None);
    kms.set_key_state(KEY_ARN, KeyState::Disabled);
    restart_decryptor(&mut site, &[]).await;
    let named = async |admin| failed(admin, "KMS_KEY_DISABLED").await >= 1.0;
    site.decryptor().unwrap().until("names the key", named).await.unwrap();
    let log = site.decryptor().unwrap().log_text();
    assert!(log.lines().any(|line| line.contains("authority.data_key") && line.contains(KEY_ARN)), "{log}");

    site.kms.as_ref().unwrap().set_key_state(KEY_ARN, KeyState::Enabled);
    restart_decryptor(&mut site, &[]).await;
    let again =
        async |admin: Admin| admin.metric("pithead_authority_reissued_total").await.is_ok_and(|at| at == 1.0);
    site.decryptor().unwrap().until("has issued it again", again).await.unwrap();
    // The gateway has lost its connection several times by now, and asks to be told again.
    has(&mut site, 3.0).await;
    let key = device.key().await.unwrap();
    assert_eq!((key.sequence, key.key.as_deref()), (3, Some(KEY_ARN)));
    device.send("can", &records(150, 50)).await.unwrap();
    // And a restart issues nothing early.
    restart_decryptor(&mut site, &[]).await;
    let looked = async |admin: Admin| {
        admin.metric("pithead_authority_statement_due_timestamp_seconds").await.is_ok_and(|due| due > 0.0)
    };
    site.decryptor().unwrap().until("has looked at the folder", looked).await.unwrap();
    assert_eq!(
        site.decryptor().unwrap().admin().metric("pithead_authority_reissued_total").await.unwrap(),
        0.0
    );
    assert_eq!(
        site.kms.as_ref().unwrap().count(Operation::Sign),
        3,
        "one signed by hand, one refused, one due"
    );

    site.until_relayed().await.unwrap();
    let delivered = site.delivered().unwrap();
    assert_eq!((delivered.holes(), delivered.repeated()), (0, 0));
    assert_eq!(hash_of(delivered.records_of(device.name())), hash_of(records(0, 200)));
    assert_eq!(
        site.decryptor()
            .unwrap()
            .admin()
            .metric("pithead_decryptor_unknown_statement_devices")
            .await
            .unwrap(),
        0.0
    );
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_is_issued_again_while_a_gateway_is_connected_and_reaches_it_at_once() {
    let options = SiteOptions { authority_age: Duration::from_secs(3600 - 15), ..SiteOptions::default() };
    let mut site = Site::create(options).await.unwrap();
    let section = "[authority]\ndir = \"../authority\"\nevery = \"1h\"\n\n[sink]";
    // Nobody looks at files in time: what reaches the gateway was pushed.
    for (from, to) in [
        ("[sink]", section),
        ("poll = \"1s\"", "poll = \"1h\""),
        (&format!("bundles = [\"../authority/bundles/{SITE}.pb\"]"), ""),
    ] {
        Site::edit(&site.decryptor_config(), from, to).unwrap();
    }
    site.start_decryptor().await.unwrap();
    site.start_gateway().await.unwrap();
    let device = site.enroll("truck-1").await.unwrap();
    device.send("can", &records(0, 20)).await.unwrap();
    has(&mut site, 2.0).await;
    assert_eq!(device.key().await.unwrap().sequence, 2);
    device.send("can", &records(20, 20)).await.unwrap();
    // The command line works beside it.
    site.authority.statement(SITE, &["--no-standby".into()]).await.unwrap().ok().unwrap();
    site.until_relayed().await.unwrap();
    assert_eq!(site.delivered().unwrap().records(), 40);
    let admin = site.decryptor().unwrap().admin();
    assert_eq!(admin.metric("pithead_decryptor_unknown_statement_devices").await.unwrap(), 0.0);
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn root_keys_cosign_a_revocation_without_meeting_and_an_export_carries_it() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let device = site.enroll("truck-1").await.unwrap();
    device.send("can", &records(0, 20)).await.unwrap();
    let folder = site.folder().to_owned();
    let path = |name: &str| folder.join(name).display().to_string();
    let second = KmsKey::generate(
        "arn:aws:kms:eu-central-1:111122223333:key/22222222-2222-4222-8222-222222222222",
        2048,
    )
    .unwrap();
    std::fs::write(path("second.pem"), second.spki_pem()).unwrap();

    // A key that nobody has announced takes over at once, because the root keys say so: each on a machine of its own.
    let (to, draft) = (format!("{}={}", second.arn(), path("second.pem")), path("revoke.draft"));
    let arguments =
        [KEY_ARN, "--site", SITE, "--reason", "stolen", "--to", &to, "--no-standby", "--draft", &draft];
    let drafted = site.authority.act(&["revoke"], &arguments).await.unwrap().ok().unwrap().stdout;
    assert!(
        drafted.contains("is never sealed to again") && drafted.contains("reason \"stolen\""),
        "{drafted}"
    );
    // The daily one is issued meanwhile.
    site.authority.statement(SITE, &["--no-standby".into()]).await.unwrap().ok().unwrap();
    has(&mut site, 2.0).await;
    let signatures = signed_by_both(&site, &["cosign"], &draft).await;
    let signatures: Vec<&str> = signatures.iter().map(String::as_str).collect();
    let too_few = site.authority.act(&["accept"], &signatures[..1]).await.unwrap();
    assert!(too_few.stderr.contains("threshold"), "{}", too_few.stderr);
    let other = "0".repeat(64);
    let (key, out) = (site.authority.key("root-1").display().to_string(), path("other.signed"));
    let refused =
        elsewhere(&site, &["cosign", &draft, "--key", &key, "--fingerprint", &other, "--out", &out]).await;
    assert!(refused.stderr.contains("another fingerprint"), "{}", refused.stderr);
    site.authority.act(&["accept"], &signatures).await.unwrap().ok().unwrap();
    // Numbers are left free before it, for the daily ones.
    has(&mut site, 1002.0).await;
    assert_eq!(device.key().await.unwrap().key.as_deref(), Some(second.arn()));

    // What a site is given by hand, and what it begins with.
    let (bundle, root) = (path("carried.pb"), path("carried.cose"));
    let export = ["--site", SITE, "--out", &bundle, "--root-out", &root];
    let exported = site.authority.act(&["export"], &export).await.unwrap().ok().unwrap().stdout;
    assert_eq!(std::fs::read(&root).unwrap(), std::fs::read(site.authority.root()).unwrap());
    assert_eq!(std::fs::read(&bundle).unwrap(), std::fs::read(site.authority.bundle(SITE)).unwrap());
    let sum = run(std::path::Path::new("sha256sum"), [&root], &[]).await.unwrap().stdout;
    assert!(exported.contains(sum.split_whitespace().next().unwrap()), "{exported}");
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_kept_on_an_old_statement_and_one_of_a_stranger_are_alarms_and_are_delivered() {
    let options = SiteOptions { keys: KeySource::Bundle, authority_age: 60 * DAY, ..SiteOptions::default() };
    let mut site = Site::start(options).await.unwrap();
    let device = site.enroll("truck-1").await.unwrap();
    device.send("can", &records(0, 20)).await.unwrap();
    site.until_relayed().await.unwrap();
    let admin = site.decryptor().unwrap().admin();
    assert_eq!(
        admin.metric("pithead_decryptor_frozen_devices").await.unwrap(),
        0.0,
        "nothing newer is known"
    );

    // The gateway goes on handing out the statement of two months ago.
    site.authority.statement(SITE, &["--no-standby".into()]).await.unwrap().ok().unwrap();
    let taken =
        async |admin: Admin| admin.metric("pithead_statement_sequence").await.is_ok_and(|at| at == 2.0);
    site.decryptor().unwrap().until("has the newer statement", taken).await.unwrap();
    for part in 1..4 {
        device.send("can", &records(20 * part, 20)).await.unwrap();
    }
    site.until_relayed().await.unwrap();
    assert_eq!(admin.metric("pithead_decryptor_frozen_devices").await.unwrap(), 1.0);
    let counted = admin.metric_where("pithead_decryptor_key_alarms_total", "\"freeze\"").await.unwrap();
    assert!(counted >= 3.0, "{counted}");
    let log = site.decryptor().unwrap().log_text();
    let told: Vec<_> = log.lines().filter(|line| line.contains("key.freeze")).collect();
    assert!(told.len() == 1 && told[0].contains("truck-1"), "once per device: {told:#?}");

    // A decryptor that has never seen the statement of the truck.
    let data = site.decryptor_data().join("keys/statements");
    site.kill_decryptor().await.unwrap();
    std::fs::remove_dir_all(data).unwrap();
    site.start_decryptor().await.unwrap();
    device.send("can", &records(80, 20)).await.unwrap();
    site.until_relayed().await.unwrap();
    let admin = site.decryptor().unwrap().admin();
    assert_eq!(admin.metric("pithead_decryptor_unknown_statement_devices").await.unwrap(), 1.0);
    let log = site.decryptor().unwrap().log_text();
    assert_eq!(log.lines().filter(|line| line.contains("key.unknown_statement")).count(), 1);
    assert_eq!(hash_of(site.delivered().unwrap().records_of(device.name())), hash_of(records(0, 100)));
    site.stop().await.unwrap();
}

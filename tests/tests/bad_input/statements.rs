//! Statements that must not be believed, and public keys that are not the ones stated.

use std::path::PathBuf;

use bytes::Bytes;
use futures_util::future::join_all;
use pithead_sealing::trust::{KeyStatus, Sha256Digest, StatementFields, UnixTime, authoring::SigningKey};
use pithead_tests::{
    authority::{self, sign},
    forge::{last_statement, read_bundle, successor, write_bundle},
    kms::{Fault, KmsKey},
    program::Admin,
    rogue::Rogue,
    site::{Custody, KEY_ARN, KeySource, NEXT_KEY_ARN, SITE, Site, SiteOptions},
};

use crate::bad_input::state;

/// A gateway's data directory with two statements taken, the gateway itself not running, its clock trusted.
async fn site_with_two_statements() -> (Site, PathBuf) {
    let options = SiteOptions {
        keys: KeySource::Bundle,
        gateway_lines: vec![("trust", "trusted_clock = true".into())],
        ..SiteOptions::default()
    };
    let site = Site::create(options).await.unwrap();
    let first = site.folder().join("first.pb");
    std::fs::copy(site.authority.bundle(SITE), &first).unwrap();
    import(&site, &first).await.unwrap();
    site.authority.statement(SITE, &["--no-standby".into()]).await.unwrap().ok().unwrap();
    import(&site, &site.authority.bundle(SITE)).await.unwrap();
    (site, first)
}

async fn import(site: &Site, bundle: &std::path::Path) -> anyhow::Result<String> {
    Ok(site.gateway_command(&["key", "import", bundle.to_str().unwrap()]).await?.ok()?.stdout)
}

async fn is_refused(site: &Site, bundle: &std::path::Path, code: &str, name: &str) {
    let shown =
        async || site.gateway_command(&["key", "show", "-o", "json"]).await.unwrap().ok().unwrap().stdout;
    let history =
        async || site.gateway_command(&["key", "history", "-o", "json"]).await.unwrap().ok().unwrap().stdout;
    let before = (shown().await, history().await);
    let refused = site.gateway_command(&["key", "import", bundle.to_str().unwrap()]).await.unwrap();
    assert!(refused.refused_with(code, name), "{name}: {}{}", refused.stdout, refused.stderr);
    assert_eq!(refused.code, Some(1), "{name}");
    assert_eq!((shown().await, history().await), before, "{name}");
}

/// Another active key than the one that stood there.
fn swap_key(fields: &mut StatementFields, key: &KmsKey) {
    fields.keys[0].arn = key.arn().parse().unwrap();
    fields.keys[0].fingerprint = Sha256Digest::of(key.spki_der());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_statement_that_must_not_be_believed_is_refused_by_its_own_code() {
    let (site, first) = site_with_two_statements().await;
    let last = last_statement(&site.authority).unwrap();
    assert_eq!(last.sequence, 2);
    let stolen = site.authority.stolen_statement_key().unwrap();
    let own = SigningKey::p256(&[7; 32]).unwrap();
    let other = KmsKey::generate(NEXT_KEY_ARN, 2048).unwrap();
    let bundle = site.folder().join("bad.pb");
    let offer = |fields: &StatementFields, key: &SigningKey, spkis: &[&KmsKey]| {
        write_bundle(&site.authority, sign(fields, key).unwrap(), spkis, &bundle).unwrap();
    };

    is_refused(&site, &first, "PH-1014", "TRUST_ROLLBACK").await;

    offer(&successor(&last), &own, &[]);
    is_refused(&site, &bundle, "PH-1011", "TRUST_THRESHOLD").await;

    let mut forked = successor(&last);
    forked.previous = Sha256Digest::of(b"another past");
    offer(&forked, &stolen, &[]);
    is_refused(&site, &bundle, "PH-1016", "TRUST_FORK").await;

    let mut second_truth = last.fields().clone();
    second_truth.ticket = Some("another truth".into());
    offer(&second_truth, &stolen, &[]);
    is_refused(&site, &bundle, "PH-1015", "TRUST_EQUIVOCATION").await;

    let mut unannounced = successor(&last);
    swap_key(&mut unannounced, &other);
    offer(&unannounced, &stolen, &[&other]);
    is_refused(&site, &bundle, "PH-1026", "TRUST_UNANNOUNCED").await;

    let mut rebound = successor(&last);
    rebound.keys[0].fingerprint = Sha256Digest::of(other.spki_der());
    offer(&rebound, &stolen, &[&other]);
    is_refused(&site, &bundle, "PH-1023", "TRUST_KID_REBIND").await;

    let mut elsewhere = successor(&last);
    elsewhere.sites = vec!["pit-8".parse().unwrap()];
    offer(&elsewhere, &stolen, &[]);
    is_refused(&site, &bundle, "PH-1012", "TRUST_AUDIENCE").await;

    let mut no_key = successor(&last);
    no_key.keys[0].status = KeyStatus::Retired;
    offer(&no_key, &stolen, &[]);
    is_refused(&site, &bundle, "PH-1025", "TRUST_NO_ACTIVE").await;

    let mut short = successor(&last);
    short.expires_at = UnixTime(short.issued_at.0 + 1);
    short.refresh_by = short.issued_at;
    offer(&short, &stolen, &[]);
    while authority::now() <= short.expires_at {
        // Time itself is what is waited for: a statement inside the root's life cannot be older than the root.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    is_refused(&site, &bundle, "PH-1019", "TRUST_EXPIRED").await;

    let mut damaged = std::fs::read(site.authority.bundle(SITE)).unwrap();
    let middle = damaged.len() / 2;
    damaged.truncate(middle);
    std::fs::write(&bundle, damaged).unwrap();
    is_refused(&site, &bundle, "PH-6002", "CONFIG_UNREADABLE").await;

    // And what is good is taken after all that.
    offer(&successor(&last), &stolen, &[]);
    import(&site, &bundle).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_key_that_is_not_the_one_stated_is_no_key() {
    let site = Site::create(SiteOptions { keys: KeySource::Bundle, ..SiteOptions::default() }).await.unwrap();
    let other = KmsKey::generate(KEY_ARN, 2048).unwrap();
    let bundle = site.folder().join("bad.pb");
    let statement = last_statement(&site.authority).unwrap().object().clone();
    write_bundle(&site.authority, statement, &[&other], &bundle).unwrap();
    let refused = site.gateway_command(&["key", "import", bundle.to_str().unwrap()]).await.unwrap();
    assert!(refused.refused_with("PH-1027", "TRUST_SPKI_MISSING"), "{}{}", refused.stdout, refused.stderr);
    assert_eq!(refused.code, Some(1));
    let shown = site.gateway_command(&["key", "show"]).await.unwrap();
    assert!(shown.refused_with("PH-3022", "KEYS_NOT_READY"), "{}", shown.stderr);
    import(&site, &site.authority.bundle(SITE)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_gateway_that_is_offered_a_forged_statement_serves_the_last_good_one() {
    let options = SiteOptions { keys: KeySource::Bundle, ..SiteOptions::default() };
    let mut site = Site::start(options).await.unwrap();
    let device = site.enroll("truck-1").await.unwrap();
    let good = device.key().await.unwrap().fingerprint;
    let before = state(&mut site).await;

    let last = last_statement(&site.authority).unwrap();
    let other = KmsKey::generate(NEXT_KEY_ARN, 2048).unwrap();
    let mut forged = successor(&last);
    swap_key(&mut forged, &other);
    let carried_in = site.folder().join("gateway/bundle.pb");
    for (key, code) in [
        (SigningKey::p256(&[9; 32]).unwrap(), "PH-1011"),
        (site.authority.stolen_statement_key().unwrap(), "PH-1026"),
    ] {
        let statement = sign(&forged, &key).unwrap();
        write_bundle(&site.authority, statement, &[&other], &carried_in).unwrap();
        let gateway = site.gateway().unwrap();
        gateway.admin().post("/refresh").await.unwrap();
        let says = async |admin: Admin| {
            let status = admin.status().await.unwrap_or_default();
            status["keys"]["failure"].as_str().is_some_and(|text| text.contains(code))
        };
        gateway.until("refuses the statement", says).await.unwrap();
        assert_eq!(gateway.admin().get("/readyz").await.unwrap().status, 200);
        assert_eq!(device.key().await.unwrap().fingerprint, good);
    }
    assert_eq!(state(&mut site).await, before);
    let log = site.gateway().unwrap().log_text();
    assert!(log.contains("key.alarm"), "an unannounced key is an alarm");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_enrolled_with_a_forged_bundle_believes_nothing() {
    let site = Site::create(SiteOptions::default()).await.unwrap();
    let last = last_statement(&site.authority).unwrap();
    let other = KmsKey::generate(NEXT_KEY_ARN, 2048).unwrap();
    let mut forged = last.fields().clone();
    swap_key(&mut forged, &other);
    let stolen = site.authority.stolen_statement_key().unwrap();
    let own = SigningKey::p256(&[9; 32]).unwrap();
    let cases: [(Bytes, &[&KmsKey], &str, &str); 2] = [
        (sign(&forged, &own).unwrap(), &[&other], "PH-1011", "TRUST_THRESHOLD"),
        (sign(last.fields(), &stolen).unwrap(), &[&other], "PH-1027", "TRUST_SPKI_MISSING"),
    ];
    for (number, (statement, spkis, code, name)) in (1..).zip(cases) {
        let bundle = site.folder().join("bad.pb");
        write_bundle(&site.authority, statement, spkis, &bundle).unwrap();
        let device = format!("truck-{number}");
        let identity = site.identity_of(&device).unwrap();
        let more = ["--bundle", bundle.to_str().unwrap()];
        let (device, refused) =
            site.enroll_as(&device, site.ca.path(), Some(&identity), &more).await.unwrap();
        assert!(refused.refused_with(code, name), "{}", refused.stderr);
        assert_eq!(refused.code, Some(1));
        // Whatever is left of the attempt, it seals nothing.
        let plain = site.folder().join("plain");
        std::fs::write(&plain, b"plain").unwrap();
        let sealed = site.folder().join("sealed");
        let arguments = ["seal", plain.to_str().unwrap(), "-O", sealed.to_str().unwrap()];
        assert!(!device.run(&arguments).await.unwrap().is_ok());
        assert!(!sealed.exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_gateway_can_name_no_other_key_and_cannot_turn_time_back() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let device = site.enroll("truck-1").await.unwrap();
    device.key().await.unwrap();
    let first = last_statement(&site.authority).unwrap();
    site.authority.statement(SITE, &["--no-standby".into()]).await.unwrap().ok().unwrap();
    let second = async |admin: Admin| admin.metric("pithead_key_sequence").await.is_ok_and(|at| at == 2.0);
    site.gateway().unwrap().until("has the second statement", second).await.unwrap();
    let good = device.key().await.unwrap();
    assert_eq!((good.sequence, good.status.as_str()), (2, "FRESH"));
    site.kill_gateway().await.unwrap();

    let rogue = Rogue::start(&site).await.unwrap();
    let last = last_statement(&site.authority).unwrap();
    let thief = KmsKey::generate(NEXT_KEY_ARN, 2048).unwrap();
    let stolen = site.authority.stolen_statement_key().unwrap();
    let own = SigningKey::p256(&[9; 32]).unwrap();
    let with = |change: &dyn Fn(&mut StatementFields)| {
        let mut fields = successor(&last);
        change(&mut fields);
        fields
    };
    let swapped = with(&|fields| swap_key(fields, &thief));
    let forked = with(&|fields| fields.previous = Sha256Digest::of(b"another past"));
    let rebound = with(&|fields| fields.keys[0].fingerprint = Sha256Digest::of(thief.spki_der()));
    let cases = [
        (sign(&swapped, &own).unwrap(), "PH-1011", "TRUST_THRESHOLD"),
        (sign(&swapped, &stolen).unwrap(), "PH-1026", "TRUST_UNANNOUNCED"),
        (sign(&forked, &stolen).unwrap(), "PH-1016", "TRUST_FORK"),
        (sign(&rebound, &stolen).unwrap(), "PH-1023", "TRUST_KID_REBIND"),
        (first.object().clone(), "PH-1014", "TRUST_ROLLBACK"),
        (sign(&successor(&last), &stolen).unwrap(), "PH-1027", "TRUST_SPKI_MISSING"),
    ];
    for (statement, code, name) in cases {
        rogue.serve(statement, &[&thief]);
        let refused = device.run(&["key"]).await.unwrap();
        assert!(refused.refused_with(code, name), "{name}: {}{}", refused.stdout, refused.stderr);
        assert_eq!(refused.code, Some(1), "{name}");
        let held = device.key_offline().await.unwrap();
        assert_eq!((held.sequence, held.fingerprint), (2, good.fingerprint.clone()), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kms_that_serves_another_key_than_was_stated_is_an_alarm_and_changes_nothing() {
    let options = SiteOptions { custody: Custody::Kms, gateway_asks_kms: true, ..SiteOptions::default() };
    // Before the first start: then there is nothing to serve, and the gateway says why.
    let mut site = Site::create(options.clone()).await.unwrap();
    let kms = site.kms.as_ref().unwrap();
    kms.replace_key(KmsKey::generate(KEY_ARN, 2048).unwrap());
    site.start_decryptor().await.unwrap();
    let says = async |admin: Admin| {
        admin.metric("pithead_key_fingerprint_mismatch").await.is_ok_and(|is| is == 1.0)
            && admin
                .get("/readyz")
                .await
                .is_ok_and(|reply| reply.status == 503 && reply.body.contains("PH-5009"))
    };
    site.launch_gateway().unwrap().until("raises the alarm", says).await.unwrap();
    drop(site);

    // After it: the last good one is served, with the alarm.
    let mut site = Site::start(options).await.unwrap();
    let device = site.enroll("truck-1").await.unwrap();
    let good = device.key().await.unwrap().fingerprint;
    site.kms.as_ref().unwrap().replace_key(KmsKey::generate(KEY_ARN, 2048).unwrap());
    site.kill_gateway().await.unwrap();
    site.start_gateway().await.unwrap();
    let alarm =
        async |admin: Admin| admin.metric("pithead_key_fingerprint_mismatch").await.is_ok_and(|is| is == 1.0);
    site.gateway().unwrap().until("raises the alarm", alarm).await.unwrap();
    assert_eq!(device.key().await.unwrap().fingerprint, good);
    assert!(site.gateway().unwrap().log_text().contains("key.fingerprint_mismatch"));
}

fn with_a_kms_to_ask() -> SiteOptions {
    let (custody, keys) = (Custody::Kms, KeySource::Bundle);
    SiteOptions { custody, gateway_asks_kms: true, keys, ..SiteOptions::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kms_that_is_denied_throttled_or_away_at_start_stops_no_gateway_that_has_its_keys() {
    let starts = async |fault: Fault| {
        let mut site = Site::create(with_a_kms_to_ask()).await.unwrap();
        site.kms.as_ref().unwrap().set_fault(fault);
        // The bundle brings the public key, and the fingerprint proves it.
        site.start_gateway().await.unwrap();
        let device = site.enroll("truck-1").await.unwrap();
        assert_eq!(device.key().await.unwrap().status, "FRESH", "{fault:?}");
    };
    join_all([Fault::Deny, Fault::Throttle, Fault::HangAfterAccept].map(starts)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_without_the_public_key_says_what_kms_said() {
    let says_why = async |(fault, code): (Fault, &str)| {
        let mut site = Site::create(with_a_kms_to_ask()).await.unwrap();
        let path = site.folder().join("gateway/bundle.pb");
        let mut bundle = read_bundle(&path).unwrap();
        bundle.bundle.spkis.clear();
        std::fs::write(&path, bundle.encode()).unwrap();
        site.kms.as_ref().unwrap().set_fault(fault);
        let says = async |admin: Admin| {
            admin.get("/readyz").await.is_ok_and(|reply| reply.status == 503 && reply.body.contains(code))
        };
        site.launch_gateway().unwrap().until("says what is missing", says).await.unwrap();
        // When KMS answers again, the key is fetched from there.
        site.kms.as_ref().unwrap().set_fault(Fault::None);
        site.gateway().unwrap().ready().await.unwrap();
        let device = site.enroll("truck-1").await.unwrap();
        assert_eq!(device.key().await.unwrap().status, "FRESH", "{fault:?}");
    };
    let faults =
        [(Fault::Deny, "PH-5001"), (Fault::Throttle, "PH-5002"), (Fault::HangAfterAccept, "PH-5003")];
    join_all(faults.map(says_why)).await;
}

//! Keys and roots change, are lost and stolen, and vehicles sleep; rehearsed with the real programs, months in a moment.
//! Nobody touches a vehicle.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use pithead_sealing::trust::{Sha256Digest, UnixTime, authoring::SigningKey};
use pithead_tests::{
    authority::sign,
    command::{Finished, run},
    device::Device,
    forge::{last_statement, successor, write_bundle},
    kms::KmsKey,
    ledger::hash_of,
    program::Admin,
    rehearsal::{DAY, in_days, operate_device, operate_gateway},
    site::{KEY_ARN, KeySource, NEXT_KEY_ARN, SITE, Site, SiteOptions},
};

const THIRD_KEY_ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/33333333-3333-4333-8333-333333333333";

/// A sequence number that the authority would reach in some billion years.
const FAR_AHEAD: u64 = 1 << 50;

/// What a day at the mine brings.
fn records(day: usize) -> Vec<String> {
    (0..50).map(|at| format!("day {day} record {at:03}")).collect()
}

/// A site whose key has a successor standing by, and a truck that has sent its first records. A key is announced for three
/// operating days before it is used, as by default.
async fn site_with_truck(keys: KeySource) -> (Site, Device) {
    let site = Site::start(SiteOptions { standby: true, keys, ..SiteOptions::default() }).await.unwrap();
    let truck = site.enroll("truck-1").await.unwrap();
    truck.send("can", &records(0)).await.unwrap();
    assert_eq!(truck.key().await.unwrap().key.as_deref(), Some(KEY_ARN));
    (site, truck)
}

/// The gateway has the statement of that epoch and number.
async fn has(site: &mut Site, epoch: u64, sequence: u64) {
    let there = async |admin: Admin| {
        let is = async |name, number: u64| admin.metric(name).await.is_ok_and(|at| at == number as f64);
        is("pithead_key_epoch", epoch).await && is("pithead_key_sequence", sequence).await
    };
    site.gateway().unwrap().until("has the next statement", there).await.unwrap();
}

/// The gateway was at work for so long.
async fn gateway_operates(site: &mut Site, days: u32) {
    site.stop_gateway().await.unwrap();
    operate_gateway(&site.gateway_data(), DAY * days).unwrap();
    site.start_gateway().await.unwrap();
}

/// What the gateway says of its keys.
async fn key_status(site: &Site) -> String {
    let shown = site.gateway_command(&["key", "show", "-o", "json"]).await.unwrap().ok().unwrap();
    let shown: serde_json::Value = shown.json().unwrap();
    shown["status"].as_str().unwrap().to_owned()
}

/// Everything that was sent on those days is in the cloud, once and in order.
async fn all_is_delivered(site: &mut Site, truck: &Device, days: &[usize]) {
    site.until_relayed().await.unwrap();
    let delivered = site.delivered().unwrap();
    assert_eq!((delivered.holes(), delivered.repeated()), (0, 0));
    let sent: Vec<String> = days.iter().flat_map(|day| records(*day)).collect();
    assert_eq!(hash_of(delivered.records_of(truck.name())), hash_of(sent));
}

/// A key file made by the tool, and its public half.
async fn new_key(site: &Site, name: &str) -> (String, String) {
    let path = site.folder().join(format!("{name}.pem")).display().to_string();
    root(site, &["new-key", "--out", &path]).await.ok().unwrap();
    (path.clone(), format!("{path}.pub"))
}

async fn root(site: &Site, arguments: &[&str]) -> Finished {
    let decryptor = site.programs().decryptor();
    run(&decryptor, [&["authority", "root"], arguments].concat(), &[]).await.unwrap()
}

/// The next root, with that change, signed by both holders.
async fn next_root(site: &Site, change: &[&str], now: &str) {
    let path = |name: &str| site.folder().join(name).display().to_string();
    let draft = path("root.draft");
    let arguments = [change, &["--out", &draft, "--now", now]].concat();
    site.authority.act(&["root", "draft"], &arguments).await.unwrap().ok().unwrap();
    let read = root(site, &["sign", &draft]).await.ok().unwrap().stdout;
    let fingerprint = read.lines().find_map(|line| line.strip_prefix("fingerprint  ")).unwrap().to_owned();
    let mut signed = Vec::new();
    for holder in ["root-1", "root-2"] {
        let (key, out) =
            (site.authority.key(holder).display().to_string(), path(&format!("{holder}.signed")));
        let arguments = ["sign", &draft, "--key", &key, "--fingerprint", &fingerprint, "--out", &out];
        root(site, &arguments).await.ok().unwrap();
        signed.push(out);
    }
    let mut accepted: Vec<&str> = signed.iter().map(String::as_str).collect();
    accepted.extend(["--now", now]);
    site.authority.act(&["root", "accept"], &accepted).await.unwrap().ok().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_that_was_announced_takes_over_after_three_days_of_work_and_not_before() {
    let (mut site, truck) = site_with_truck(KeySource::Upstream).await;
    // The truck was parked since; the gateway has worked.
    gateway_operates(&mut site, 4).await;
    let third = KmsKey::generate(THIRD_KEY_ARN, 2048).unwrap();
    let spki = site.folder().join("third.pem");
    std::fs::write(&spki, third.spki_pem()).unwrap();
    let next = format!("{THIRD_KEY_ARN}={}", spki.display());
    let day = in_days(4);
    let arguments = ["--site", SITE, "--next-key", &next, "--now", &day];
    site.authority.act(&["rotate"], &arguments).await.unwrap().ok().unwrap();
    has(&mut site, 1, 2).await;
    // To the truck that was parked the announcement is new: it holds to the key that it knows, which goes on to work.
    let parked = truck.run(&["key"]).await.unwrap();
    assert!(parked.refused_with("PH-1026", "TRUST_UNANNOUNCED"), "{}", parked.stderr);
    truck.send("can", &records(1)).await.unwrap();
    assert_eq!(truck.key_offline().await.unwrap().key.as_deref(), Some(KEY_ARN));
    operate_device(&truck, DAY * 3).unwrap();
    truck.send("can", &records(2)).await.unwrap();
    let key = truck.key().await.unwrap();
    assert_eq!((key.sequence, key.key.as_deref(), key.status.as_str()), (2, Some(NEXT_KEY_ARN), "FRESH"));
    all_is_delivered(&mut site, &truck, &[0, 1, 2]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_revoked_in_an_emergency_is_left_at_once_for_one_that_nobody_announced() {
    let (mut site, truck) = site_with_truck(KeySource::Upstream).await;
    let third = KmsKey::generate(THIRD_KEY_ARN, 2048).unwrap();
    let spki = site.folder().join("third.pem");
    std::fs::write(&spki, third.spki_pem()).unwrap();
    let to = format!("{THIRD_KEY_ARN}={}", spki.display());
    let revoke = vec![KEY_ARN, "--site", SITE, "--reason", "the HSM's operator was bribed", "--to", &to];
    // Without the root keys the key would be held down, and nobody could seal for three days: that is not signed.
    let refused = site.authority.act(&["revoke"], &revoke).await.unwrap();
    assert!(!refused.is_ok() && refused.stderr.contains("--cosign"), "{}{}", refused.stdout, refused.stderr);
    let holders = ["root-1", "root-2"].map(|name| site.authority.key(name).display().to_string());
    let cosigned = [revoke, vec!["--cosign", &holders[0], "--cosign", &holders[1]]].concat();
    site.authority.act(&["revoke"], &cosigned).await.unwrap().ok().unwrap();
    has(&mut site, 1, 2).await;
    let key = truck.key().await.unwrap();
    assert_eq!((key.key.as_deref(), key.status.as_str()), (Some(THIRD_KEY_ARN), "FRESH"));
    // What it has sealed to the old key before is not lost, while that can still decrypt.
    all_is_delivered(&mut site, &truck, &[0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wan_that_is_down_for_ninety_days_leaves_a_site_stale_and_sealing_and_for_401_days_it_ends_it() {
    let (mut site, truck) = site_with_truck(KeySource::Upstream).await;
    site.until_relayed().await.unwrap();
    site.link.cut();
    gateway_operates(&mut site, 90).await;
    operate_device(&truck, DAY * 90).unwrap();
    assert_eq!(truck.key().await.unwrap().status, "STALE");
    assert_eq!(key_status(&site).await, "STALE");
    truck.send("can", &records(1)).await.unwrap();

    gateway_operates(&mut site, 311).await;
    operate_device(&truck, DAY * 311).unwrap();
    let (status, key) = (key_status(&site).await, truck.key_offline().await);
    assert_eq!(status, "EXPIRED");
    let refused = truck.run(&["key"]).await.unwrap();
    assert!(refused.refused_with("PH-1019", "TRUST_EXPIRED"), "{}{key:?}", refused.stderr);
    let mut sending = truck.start_sending("can").unwrap();
    for record in records(2) {
        // It may have ended before the last one: that is what is looked at.
        if sending.record(&record).await.is_err() {
            break;
        }
    }
    let ended = sending.end().await.unwrap();
    assert!(ended.refused_with("PH-1019", "TRUST_EXPIRED"), "{}", ended.stderr);
    // A gateway that restarts is still there, and takes what was sealed in time.
    assert_eq!(site.gateway().unwrap().admin().get("/livez").await.unwrap().status, 200);

    // The WAN heals, the authority has gone on: the same truck seals again.
    let day = in_days(401);
    site.authority.statement(SITE, &["--now".into(), day]).await.unwrap().ok().unwrap();
    site.link.heal();
    site.gateway().unwrap().admin().post("/refresh").await.unwrap();
    has(&mut site, 1, 2).await;
    truck.send("can", &records(3)).await.unwrap();
    assert_eq!(truck.key().await.unwrap().status, "FRESH");
    all_is_delivered(&mut site, &truck, &[0, 1, 3]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truck_that_slept_for_two_hundred_days_wakes_with_its_key_and_follows() {
    let (mut site, truck) = site_with_truck(KeySource::Upstream).await;
    // Meanwhile: twenty statements, a rotation, another root.
    let third = KmsKey::generate(THIRD_KEY_ARN, 2048).unwrap();
    let spki = site.folder().join("third.pem");
    std::fs::write(&spki, third.spki_pem()).unwrap();
    let next = format!("{THIRD_KEY_ARN}={}", spki.display());
    for day in (10..=200).step_by(10) {
        let now = in_days(day);
        match day {
            60 => {
                gateway_operates(&mut site, 60).await;
                let arguments = ["--site", SITE, "--next-key", &next, "--now", &now];
                site.authority.act(&["rotate"], &arguments).await.unwrap().ok().unwrap();
            }
            120 => {
                let (_, public) = new_key(&site, "carol").await;
                next_root(&site, &["--add-root-key", &format!("carol={public}")], &now).await;
                site.authority.statement(SITE, &["--now".into(), now]).await.unwrap().ok().unwrap();
            }
            _ => {
                site.authority.statement(SITE, &["--now".into(), now]).await.unwrap().ok().unwrap();
            }
        }
    }
    has(&mut site, 1, 21).await;
    // It takes the root, which tells it that 120 days have gone by, and the old key until the new one has been announced to
    // it for three days of work.
    truck.send("can", &records(1)).await.unwrap();
    let woken = truck.key_offline().await.unwrap();
    assert_eq!((woken.key.as_deref(), woken.status.as_str()), (Some(KEY_ARN), "STALE"));
    operate_device(&truck, DAY * 3).unwrap();
    truck.send("can", &records(2)).await.unwrap();
    let key: serde_json::Value = truck.run(&["key"]).await.unwrap().ok().unwrap().json().unwrap();
    assert_eq!(
        (&key["sequence"], &key["root_version"], key["key"].as_str()),
        (&21.into(), &2.into(), Some(NEXT_KEY_ARN))
    );
    all_is_delivered(&mut site, &truck, &[0, 1, 2]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truck_that_slept_past_its_statements_end_seals_at_once_if_the_old_key_was_left_beside_the_new_one()
{
    let (mut site, truck) = site_with_truck(KeySource::Upstream).await;
    gateway_operates(&mut site, 60).await;
    let rotate = ["--site", SITE, "--keep-old", "--no-standby", "--now", &in_days(60)];
    site.authority.act(&["rotate"], &rotate).await.unwrap().ok().unwrap();
    has(&mut site, 1, 2).await;
    // A root of day 190 tells the truck, when it wakes, that its statement of 180 days has ended.
    let (_, public) = new_key(&site, "carol").await;
    next_root(&site, &["--add-root-key", &format!("carol={public}")], &in_days(190)).await;
    let statement = ["--no-standby".into(), "--now".into(), in_days(190)];
    site.authority.statement(SITE, &statement).await.unwrap().ok().unwrap();
    has(&mut site, 1, 3).await;
    truck.send("can", &records(1)).await.unwrap();
    let woken = truck.key_offline().await.unwrap();
    assert_eq!((woken.sequence, woken.key.as_deref(), woken.status.as_str()), (3, Some(KEY_ARN), "FRESH"));
    // A truck that has worked all the time has gone over to the new key.
    let other = site.enroll("truck-2").await.unwrap();
    assert_eq!(other.key().await.unwrap().key.as_deref(), Some(NEXT_KEY_ARN));

    // The old key is retired; the sleeper has worked for three days since.
    operate_device(&truck, DAY * 3).unwrap();
    let retire = ["--retire", KEY_ARN, "--no-standby", "--now", &in_days(193)].map(str::to_owned);
    site.authority.statement(SITE, &retire).await.unwrap().ok().unwrap();
    has(&mut site, 1, 4).await;
    truck.send("can", &records(2)).await.unwrap();
    assert_eq!(truck.key().await.unwrap().key.as_deref(), Some(NEXT_KEY_ARN));
    all_is_delivered(&mut site, &truck, &[0, 1, 2]).await;
}

/// Carries the authority's bundle in by hand.
async fn carry_in(site: &Site, bundle: PathBuf) -> Finished {
    site.gateway_command(&["key", "import", bundle.to_str().unwrap()]).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_statement_key_poisons_a_site_and_a_raised_epoch_undoes_all_of_it() {
    let (mut site, truck) = site_with_truck(KeySource::Bundle).await;
    let stolen = site.authority.stolen_statement_key().unwrap();
    let thief = KmsKey::generate(THIRD_KEY_ARN, 2048).unwrap();
    let last = last_statement(&site.authority).unwrap();
    let bundle = site.folder().join("thief.pb");

    // His own key is held down.
    let mut swapped = successor(&last);
    swapped.keys[0].arn = THIRD_KEY_ARN.parse().unwrap();
    swapped.keys[0].fingerprint = Sha256Digest::of(thief.spki_der());
    swapped.keys.truncate(1);
    write_bundle(&site.authority, sign(&swapped, &stolen).unwrap(), &[&thief], &bundle).unwrap();
    let refused = carry_in(&site, bundle.clone()).await;
    assert!(refused.refused_with("PH-1026", "TRUST_UNANNOUNCED"), "{}", refused.stderr);

    // So he takes the numbers and the time away: the last sequence there is, and a day far ahead.
    let root_ends = last.expires_at.0 + 540 * DAY.as_secs();
    let mut poison = successor(&last);
    poison.sequence = FAR_AHEAD;
    poison.issued_at = UnixTime(root_ends);
    poison.refresh_by = UnixTime(root_ends + 1);
    poison.expires_at = UnixTime(root_ends + 2);
    poison.keys.iter_mut().for_each(|key| key.seal_until = UnixTime(root_ends + 2));
    write_bundle(&site.authority, sign(&poison, &stolen).unwrap(), &[], &bundle).unwrap();
    carry_in(&site, bundle.clone()).await.ok().unwrap();
    has(&mut site, 1, FAR_AHEAD).await;
    assert_eq!(truck.key().await.unwrap().sequence, FAR_AHEAD);
    site.authority.statement(SITE, &[]).await.unwrap().ok().unwrap();
    let refused = carry_in(&site, site.authority.bundle(SITE)).await;
    assert!(refused.refused_with("PH-1014", "TRUST_ROLLBACK"), "{}", refused.stderr);

    // The holders of the root keys raise the epoch, name another statement key, and sign the first statement as well.
    let (key, public) = new_key(&site, "statement-2").await;
    next_root(&site, &["--raise-epoch", "--statement-key", &format!("statement-2={public}")], &in_days(0))
        .await;
    let key_file: String = key.clone();
    let alone = site.authority.statement(SITE, &["--statement-key".into(), key_file.clone()]).await.unwrap();
    assert!(!alone.is_ok() && alone.stderr.contains("--cosign"), "{}{}", alone.stdout, alone.stderr);
    let mut arguments = vec!["--statement-key".to_owned(), key_file];
    for holder in ["root-1", "root-2"] {
        arguments.extend(["--cosign".to_owned(), site.authority.key(holder).display().to_string()]);
    }
    site.authority.statement(SITE, &arguments).await.unwrap().ok().unwrap();
    carry_in(&site, site.authority.bundle(SITE)).await.ok().unwrap();
    let sequence = last_of(&site).await;
    has(&mut site, 2, sequence).await;
    let cured = truck.key().await.unwrap();
    assert_eq!(
        (cured.sequence, cured.key.as_deref(), cured.status.as_str()),
        (sequence, Some(KEY_ARN), "FRESH")
    );
    truck.send("can", &records(1)).await.unwrap();

    // The thief's key is nobody's now.
    let mut again = poison.clone();
    again.epoch = 2;
    again.root_version = 2;
    write_bundle(&site.authority, sign(&again, &stolen).unwrap(), &[], &bundle).unwrap();
    let refused = carry_in(&site, bundle).await;
    assert!(refused.refused_with("PH-1011", "TRUST_THRESHOLD"), "{}", refused.stderr);
    all_is_delivered(&mut site, &truck, &[0, 1]).await;
}

/// The number of the last statement, as the authority's tool says it.
async fn last_of(site: &Site) -> u64 {
    let shown = site.authority.act(&["show"], &["-o", "json"]).await.unwrap().ok().unwrap();
    let shown: serde_json::Value = shown.json().unwrap();
    shown["sites"][0]["sequence"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_statement_key_costs_a_root_and_nothing_else() {
    let (mut site, truck) = site_with_truck(KeySource::Upstream).await;
    std::fs::remove_file(site.authority.key("statement-1")).unwrap();
    assert!(!site.authority.statement(SITE, &[]).await.unwrap().is_ok());
    let (key, public) = new_key(&site, "statement-2").await;
    next_root(&site, &["--statement-key", &format!("statement-2={public}")], &in_days(0)).await;
    site.authority.statement(SITE, &["--statement-key".into(), key]).await.unwrap().ok().unwrap();
    has(&mut site, 1, 2).await;
    let key: serde_json::Value = truck.run(&["key"]).await.unwrap().ok().unwrap().json().unwrap();
    assert_eq!(
        (&key["sequence"], &key["root_version"], key["key"].as_str()),
        (&2.into(), &2.into(), Some(KEY_ARN))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gateways_that_say_two_truths_are_found_out_by_the_first_truck_that_meets_both() {
    let (mut site, truck) = site_with_truck(KeySource::Bundle).await;
    let mut other = site.second_gateway("edge-2").await.unwrap();
    // Somebody with the statement key gives each gateway a statement of its own, under one number.
    let stolen: SigningKey = site.authority.stolen_statement_key().unwrap();
    let last = last_statement(&site.authority).unwrap();
    let mut truths = Vec::new();
    for name in ["one", "another"] {
        let mut fields = successor(&last);
        fields.ticket = Some(format!("{name} truth"));
        let bundle = site.folder().join(format!("{name}.pb"));
        write_bundle(&site.authority, sign(&fields, &stolen).unwrap(), &[], &bundle).unwrap();
        truths.push(bundle);
    }
    carry_in(&site, truths[0].clone()).await.ok().unwrap();
    let imported = other.command(&["key", "import", truths[1].to_str().unwrap()]).await.unwrap();
    imported.ok().unwrap();
    let second = async |admin: Admin| admin.metric("pithead_key_sequence").await.is_ok_and(|at| at == 2.0);
    site.gateway().unwrap().until("has its truth", second).await.unwrap();
    other.program().until("has its truth", second).await.unwrap();

    assert_eq!(truck.key().await.unwrap().sequence, 2);
    Site::edit(&truck.config(), &site.gateway_address().to_string(), &other.address().to_string()).unwrap();
    let found_out = truck.run(&["key"]).await.unwrap();
    assert!(found_out.refused_with("PH-1015", "TRUST_EQUIVOCATION"), "{}", found_out.stderr);
    // It goes on with what it had, also through the gateway that it does not believe.
    truck.send("can", &records(1)).await.unwrap();
    // And a gateway that is shown the other's truth raises the alarm itself.
    let refused = carry_in(&site, truths[1].clone()).await;
    assert!(refused.refused_with("PH-1015", "TRUST_EQUIVOCATION"), "{}", refused.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_reaches_a_truck_that_is_connected_and_has_nothing_to_send() {
    let options = SiteOptions { standby: true, hold_down: "0s", ..SiteOptions::default() };
    let mut site = Site::start(options).await.unwrap();
    let truck = site.enroll("truck-1").await.unwrap();
    let mut sending = truck.start_sending("can").unwrap();
    for record in records(0) {
        sending.record(&record).await.unwrap();
    }
    sending.flush().await.unwrap();
    let taken = async |admin: Admin| admin.metric("pithead_connections").await.is_ok_and(|open| open > 0.0);
    site.gateway().unwrap().until("serves the truck", taken).await.unwrap();
    site.until_relayed().await.unwrap();

    site.authority.act(&["rotate"], &["--site", SITE, "--no-standby"]).await.unwrap().ok().unwrap();
    let rotated = Instant::now();
    has(&mut site, 1, 2).await;
    let at_the_gateway = rotated.elapsed();
    // Nothing more is sent: the truck is told, asks, verifies, and writes down what it believes.
    while truck.key_offline().await.unwrap().sequence != 2 {
        assert!(rotated.elapsed() < Duration::from_secs(60), "the truck was never told");
    }
    println!(
        "{at_the_gateway:?} to the gateway (which is told of a new file once a second), then {:?}",
        rotated.elapsed() - at_the_gateway
    );
    for record in records(1) {
        sending.record(&record).await.unwrap();
    }
    sending.finish().await.unwrap();
    assert_eq!(truck.key_offline().await.unwrap().key.as_deref(), Some(NEXT_KEY_ARN));
    all_is_delivered(&mut site, &truck, &[0, 1]).await;
}

//! What a KMS does on its bad days. Nothing is lost, each envelope is delivered once, and KMS is not flooded.

use std::time::Instant;

use pithead_tests::{
    kms::{Fault, KeyState, Operation},
    ledger::Ledger,
    program::Admin,
    site::{Custody, KEY_ARN, Site, SiteOptions},
};

/// Calls that a fault may cost: the first, and retries by a backoff that begins at a second, each asking for the few
/// sessions that wait.
const CALLS_PER_SECOND: f64 = 6.0;

async fn failed_calls(admin: Admin) -> f64 {
    let all = admin.metric("pithead_kms_decrypt_calls_total").await.unwrap_or(0.0);
    all - admin.metric_where("pithead_kms_decrypt_calls_total", "\"ok\"").await.unwrap_or(0.0)
}

/// Two devices send while `breaks` holds; after `mends`, and whatever an operator does then, all of it arrives.
async fn recovers(
    outcome: &str,
    breaks: impl FnOnce(&Site),
    mends: impl FnOnce(&Site),
    operator: impl AsyncFnOnce(&mut Site),
) {
    let mut site =
        Site::start(SiteOptions { custody: Custody::Kms, ..SiteOptions::default() }).await.unwrap();
    let devices = [site.enroll("truck-1").await.unwrap(), site.enroll("truck-2").await.unwrap()];
    let mut summaries = vec![devices[0].send("can", &lines(0)).await.unwrap()];
    site.until_relayed().await.unwrap();
    assert_eq!(site.kms.as_ref().unwrap().count(Operation::Decrypt), 1);

    breaks(&site);
    let began = Instant::now();
    for (number, device) in (1..).zip(&devices) {
        // The gateway's acknowledgement does not wait for the cloud.
        summaries.push(device.send("can", &lines(number)).await.unwrap());
    }
    let decryptor = site.decryptor().unwrap();
    decryptor.until("meets the fault", async |admin| failed_calls(admin).await >= 1.0).await.unwrap();
    let named =
        decryptor.admin().metric_where("pithead_kms_decrypt_calls_total", &format!("\"{outcome}\"")).await;
    assert!(named.unwrap() >= 1.0, "the calls are counted as {outcome}");
    assert_eq!(decryptor.admin().get("/readyz").await.unwrap().status, 200);
    assert_eq!(site.delivered().unwrap().records(), 300, "nothing is delivered that could not be opened");
    mends(&site);
    let kms = site.kms.as_ref().unwrap();
    let (calls, seconds) = (kms.count(Operation::Decrypt) as f64, began.elapsed().as_secs_f64());
    assert!(calls <= 4.0 + CALLS_PER_SECOND * seconds, "{calls} calls in {seconds:.1} s");

    operator(&mut site).await;
    site.until_relayed().await.unwrap();
    let delivered = site.delivered().unwrap();
    let admin = site.decryptor().unwrap().admin();
    let ledger = Ledger::draw_up(&summaries, &delivered, admin).await.unwrap();
    ledger.check().unwrap();
    assert_eq!(ledger.delivered_records, 900);
    let kms = site.kms.as_ref().unwrap();
    let opened = admin.metric_where("pithead_kms_decrypt_calls_total", "\"ok\"").await.unwrap();
    assert_eq!(opened, 3.0, "one good call per session");
    // A connection that is accepted and never answered is no request that KMS could count.
    assert!(kms.count(Operation::Decrypt) <= ledger.kms_calls);
    let refused = site.gateway().unwrap().admin().metric("pithead_refused_records").await.unwrap();
    assert_eq!(refused, 0.0, "nothing was set aside for good");
    site.stop().await.unwrap();
}

fn lines(number: usize) -> Vec<String> {
    (0..300).map(|at| format!("part {number} record {at}")).collect()
}

async fn of_a_fault(outcome: &str, fault: Fault) {
    let mend = |site: &Site| site.kms.as_ref().unwrap().set_fault(Fault::None);
    recovers(outcome, |site| site.kms.as_ref().unwrap().set_fault(fault), mend, async |_| {}).await;
}

/// Nobody asks every second for what a person has to mend: the decryptor says a minute. A restart of the gateway asks at
/// once, and what waits in its spool has to survive it anyway.
async fn restart_gateway(site: &mut Site) {
    site.kill_gateway().await.unwrap();
    site.start_gateway().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn throttled() {
    of_a_fault("throttled", Fault::Throttle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_after_the_connection() {
    of_a_fault("unreachable", Fault::HangAfterAccept).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_after_the_headers() {
    of_a_fault("unreachable", Fault::HangAfterHeaders).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_internal_error() {
    of_a_fault("unreachable", Fault::Internal).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_reply() {
    of_a_fault("unreachable", Fault::DropReply).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn denied_until_the_policy_is_mended() {
    let fault = |fault| move |site: &Site| site.kms.as_ref().unwrap().set_fault(fault);
    recovers("denied", fault(Fault::Deny), fault(Fault::None), restart_gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn disabled_until_it_is_enabled() {
    let state = |state| move |site: &Site| site.kms.as_ref().unwrap().set_key_state(KEY_ARN, state);
    recovers("key_disabled", state(KeyState::Disabled), state(KeyState::Enabled), restart_gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pending_deletion_until_that_is_cancelled() {
    let state = |state| move |site: &Site| site.kms.as_ref().unwrap().set_key_state(KEY_ARN, state);
    recovers(
        "key_pending_deletion",
        state(KeyState::PendingDeletion),
        state(KeyState::Enabled),
        restart_gateway,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn away_when_the_decryptor_starts() {
    let mut site =
        Site::create(SiteOptions { custody: Custody::Kms, ..SiteOptions::default() }).await.unwrap();
    site.kms.as_ref().unwrap().set_fault(Fault::HangAfterAccept);
    site.start_decryptor().await.unwrap();
    site.start_gateway().await.unwrap();
    let device = site.enroll("truck-1").await.unwrap();
    let summary = device.send("can", &lines(0)).await.unwrap();
    let meets = async |admin| failed_calls(admin).await >= 1.0;
    site.decryptor().unwrap().until("meets the fault", meets).await.unwrap();
    site.kms.as_ref().unwrap().set_fault(Fault::None);
    site.until_relayed().await.unwrap();
    let delivered = site.delivered().unwrap();
    let admin = site.decryptor().unwrap().admin();
    Ledger::draw_up(&[summary], &delivered, admin).await.unwrap().check().unwrap();
    site.stop().await.unwrap();
}

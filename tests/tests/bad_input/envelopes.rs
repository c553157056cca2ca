//! Envelopes that are none, or somebody else's, or too much.

use bytes::Bytes;
use pithead_proto::errors::v1::ErrorReason as R;
use pithead_tests::{
    client::Client,
    command,
    forge::{Claim, Forge},
    kms::KmsKey,
    program::Admin,
    site::{KEY_ARN, NEXT_KEY_ARN, SITE, Site, SiteOptions},
};

use crate::bad_input::state;

#[tokio::test(flavor = "multi_thread")]
async fn garbage_a_cut_and_a_trailing_byte_are_told_apart_and_leave_no_trace() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let client = Client::of(&site, "truck-1").await.unwrap();
    let good = Forge::new(&site.authority).unwrap().seal(Claim::of("truck-1"), b"in one piece").unwrap();
    let before = state(&mut site).await;
    let changed = |at: usize, to: u8| {
        let mut bytes = good.to_vec();
        bytes[at] = to;
        Bytes::from(bytes)
    };
    let cases = [
        (Bytes::from_static(b"these bytes are no envelope"), R::EnvelopeUnsupportedVersion),
        (Bytes::new(), R::RequestInvalid),
        (changed(0, 1), R::EnvelopeUnsupportedVersion),
        (changed(2, 0), R::EnvelopeUnsupportedSuite),
        (good.slice(..40), R::EnvelopeTruncated),
        (good.slice(..good.len() - 1), R::EnvelopeTruncated),
        (Bytes::from([good.as_ref(), b"\0"].concat()), R::EnvelopeTrailing),
        (Bytes::from([good.as_ref(), good.as_ref()].concat()), R::EnvelopeTrailing),
    ];
    for (envelope, reason) in cases {
        assert_eq!(client.refusal(envelope.clone()).await.unwrap(), reason, "{} bytes", envelope.len());
    }
    assert_eq!(state(&mut site).await, before);
    // The same connection goes on, and the number was not used up by what could not be read.
    let taken = client.submit(good).await.unwrap();
    assert_eq!(taken.duplicate, None);
    site.until_relayed().await.unwrap();
    assert_eq!(site.delivered().unwrap().records_of("truck-1"), [b"in one piece"]);
    let counted = site.gateway().unwrap().admin().metric("pithead_ingest_refusals_total").await.unwrap();
    assert_eq!(
        counted, 7.0,
        "each refusal of an envelope is counted; an empty field is a fault of the request"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_no_envelope_is_refused_by_the_command_line_too() {
    let site = Site::create(SiteOptions::default()).await.unwrap();
    let good = Forge::new(&site.authority).unwrap().seal(Claim::of("truck-1"), b"a shift of ore").unwrap();
    let mut tampered = good.to_vec();
    let last = tampered.len() - 1;
    tampered[last] ^= 1;
    let cases: [(&[u8], &str, &str); 4] = [
        (b"garbage", "PH-2001", "ENVELOPE_UNSUPPORTED_VERSION"),
        (&good[..good.len() - 1], "PH-2011", "ENVELOPE_TRUNCATED"),
        (&[good.as_ref(), b"x"].concat(), "PH-2012", "ENVELOPE_TRAILING"),
        (&tampered, "PH-2009", "ENVELOPE_FRAME_TAG"),
    ];
    let path = |name: &str| site.folder().join(name).display().to_string();
    let (sealed, opened, key) =
        (path("some.sealed"), path("some.opened"), site.private_key().display().to_string());
    for (bytes, code, name) in cases {
        std::fs::write(&sealed, bytes).unwrap();
        let arguments = ["open", &sealed, "-o", &opened, "--private-key", &key];
        let refused = command::run(&site.programs().decryptor(), arguments, &[]).await.unwrap();
        assert!(refused.refused_with(code, name), "{name}: {}", refused.stderr);
        assert_eq!(refused.code, Some(1));
        assert!(!site.folder().join("some.opened").exists(), "{name}");
    }
    std::fs::write(&sealed, &good).unwrap();
    let shown = site.decryptor_command(&["inspect", &sealed]).await.unwrap().ok().unwrap().stdout;
    assert!(shown.contains("truck-1") && !shown.contains("a shift of ore"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_speaks_for_itself_and_its_site_alone() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let forge = Forge::new(&site.authority).unwrap();
    let client = Client::of(&site, "truck-1").await.unwrap();
    let before = state(&mut site).await;
    let other_device = forge.seal(Claim::of("truck-2"), b"not mine").unwrap();
    assert_eq!(client.refusal(other_device).await.unwrap(), R::DeviceMismatch);
    let other_site = forge.seal(Claim { site: "pit-8", ..Claim::of("truck-1") }, b"not here").unwrap();
    assert_eq!(client.refusal(other_site).await.unwrap(), R::SiteMismatch);
    assert_eq!(state(&mut site).await, before);
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn other_bytes_under_a_used_identity_are_a_conflict_and_the_first_stay() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let forge = Forge::new(&site.authority).unwrap();
    let client = Client::of(&site, "truck-1").await.unwrap();
    let first = forge.seal(Claim::of("truck-1"), b"first").unwrap();
    let second = forge.seal(Claim::of("truck-1"), b"second").unwrap();
    assert_eq!(client.submit(first.clone()).await.unwrap().duplicate, None);
    assert_eq!(client.refusal(second.clone()).await.unwrap(), R::Conflict);
    assert!(client.submit(first).await.unwrap().duplicate.is_some());
    site.until_relayed().await.unwrap();
    // After a restart, and after everything has been passed on, it is still known.
    site.kill_gateway().await.unwrap();
    site.start_gateway().await.unwrap();
    let client = Client::of(&site, "truck-1").await.unwrap();
    assert_eq!(client.refusal(second).await.unwrap(), R::Conflict);
    site.until_relayed().await.unwrap();
    let delivered = site.delivered().unwrap();
    assert_eq!(delivered.records_of("truck-1"), [b"first"]);
    assert_eq!(delivered.repeated(), 0);
    let admin = site.decryptor().unwrap().admin();
    let conflicts = admin.metric_where("pithead_decryptor_envelopes_total", "\"conflict\"").await.unwrap();
    assert!(conflicts >= 1.0, "the cloud is told of it");
    let kept = admin.metric_where("pithead_decryptor_kept_envelopes", "conflicts").await.unwrap();
    assert_eq!(kept, 1.0, "and keeps the other bytes beside");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_no_statement_ever_named_is_unknown() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let before = state(&mut site).await;
    let key = KmsKey::generate(&KEY_ARN.replace("1234abcd", "deadbeef"), 2048).unwrap();
    let forge = Forge::with_unknown_key(&site.authority, &key).unwrap();
    let envelope = forge.seal(Claim::of("truck-1"), b"for nobody").unwrap();
    let client = Client::of(&site, "truck-1").await.unwrap();
    assert_eq!(client.refusal(envelope).await.unwrap(), R::KeyUnknown);
    assert_eq!(state(&mut site).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_has_been_retired_since_is_accepted_and_flagged() {
    let options = SiteOptions { standby: true, hold_down: "0s", ..SiteOptions::default() };
    let mut site = Site::start(options).await.unwrap();
    let late = Forge::new(&site.authority).unwrap().seal(Claim::of("truck-1"), b"sealed in time").unwrap();
    let arguments = ["--key", NEXT_KEY_ARN, "--retire", KEY_ARN, "--no-standby"].map(str::to_owned);
    site.authority.statement(SITE, &arguments).await.unwrap().ok().unwrap();
    let second = async |admin: Admin| admin.metric("pithead_key_sequence").await.is_ok_and(|at| at == 2.0);
    site.gateway().unwrap().until("has the second statement", second).await.unwrap();

    let client = Client::of(&site, "truck-1").await.unwrap();
    client.submit(late).await.unwrap();
    site.until_relayed().await.unwrap();
    assert_eq!(site.delivered().unwrap().records_of("truck-1"), [b"sealed in time"]);
    let line = std::fs::read_to_string(site.sink()).unwrap();
    assert!(line.contains(r#""key_not_active":true"#), "{line}");
    let flagged =
        site.gateway().unwrap().admin().metric("pithead_ingest_key_not_active_total").await.unwrap();
    assert_eq!(flagged, 1.0);
    // Devices have moved on to the next one.
    let device = site.enroll("truck-1").await.unwrap();
    assert_eq!(device.key().await.unwrap().key.as_deref(), Some(NEXT_KEY_ARN));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_envelope_above_the_inline_limit_is_refused() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let forge = Forge::new(&site.authority).unwrap();
    let client = Client::of(&site, "truck-1").await.unwrap();
    let before = state(&mut site).await;
    let oversize = forge.seal(Claim::of("truck-1"), &vec![7; 1 << 20]).unwrap();
    let refused = client.submit(oversize).await.unwrap_err();
    assert_eq!(refused.reason, Some(R::EnvelopeTooLarge));
    assert_eq!(refused.metadata.get("inline_bytes").map(String::as_str), Some("1048576"));
    assert_eq!(state(&mut site).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_cloud_can_see_is_poison_and_holds_up_nothing() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let forge = Forge::new(&site.authority).unwrap();
    let client = Client::of(&site, "truck-1").await.unwrap();
    let at = |seq| Claim { seq, ..Claim::of("truck-1") };
    client.submit(forge.seal(at(1), b"one").unwrap()).await.unwrap();
    // The gateway has no key: a changed tag of the last frame looks good to it.
    let poison = forge.poison(at(2), b"two").unwrap();
    client.submit(poison).await.unwrap();
    client.submit(forge.seal(at(3), b"three").unwrap()).await.unwrap();
    site.until_relayed().await.unwrap();
    assert_eq!(site.delivered().unwrap().records_of("truck-1"), [b"one".as_slice(), b"three"]);
    let decryptor = site.decryptor().unwrap().admin();
    let named =
        decryptor.metric_where("pithead_decryptor_refused_total", "ENVELOPE_FRAME_TAG").await.unwrap();
    assert_eq!(named, 1.0);
    assert_eq!(decryptor.metric_where("pithead_decryptor_kept_envelopes", "refused").await.unwrap(), 1.0);
    let gateway = site.gateway().unwrap().admin();
    assert_eq!(gateway.metric("pithead_refused_records").await.unwrap(), 1.0, "the gateway keeps it too");
    let kept: Vec<_> = std::fs::read_dir(site.gateway_data().join("refused")).unwrap().collect();
    assert_eq!(kept.len(), 2, "the bytes, and why");
}

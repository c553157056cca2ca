//! A certificate for a token.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use pithead_hop::{
    connect::{ConnectError, ConnectOptions, Endpoint, connect},
    identity::PeerId,
    status::Remote,
    tls,
};
use pithead_proto::{
    enroll::v1::{EnrollRequest, EnrollResponse, enroll_service_client::EnrollServiceClient},
    errors::v1::ErrorReason,
};
use pithead_tests::{
    authority::{AUTHORITY, Authority, now},
    certificates::Ca,
    client::Client,
    command,
    device::Device,
    program::PATIENCE,
    site::SITE,
};
use rcgen::{CertificateParams, KeyPair, SanType};
use sha2::{Digest as _, Sha256};

use crate::identity::{Printed, init, made_by_init, reason};

fn is_private(path: &Path) -> bool {
    fs::metadata(path).unwrap().permissions().mode() & 0o777 == 0o600
}

#[tokio::test(flavor = "multi_thread")]
async fn from_an_empty_box_to_the_first_envelope_by_what_the_programs_print() {
    let (mut site, enroll) = made_by_init().await;
    let made = site.folder().join("made");
    assert!(is_private(&made.join("site-ca.key")) && is_private(&made.join("gateway.key")));
    let before = fs::read(made.join("site-ca.key")).unwrap();
    let again = init(&site, &made, enroll).await;
    assert!(again.refused_with("PH-6011", "WOULD_OVERWRITE"), "{}", again.stderr);
    assert_eq!(fs::read(made.join("site-ca.key")).unwrap(), before);

    let printed = Printed::of(&site, "truck-1").await;
    assert_eq!(printed.get("--gateway"), enroll.to_string());
    let enrolled: serde_json::Value = printed.run(&site).await.ok().unwrap().json().unwrap();
    let device = site.device("truck-1");
    assert!(is_private(&device.folder().join("device.key")));
    assert!(!device.folder().join("enroll.key").exists());
    let public = fs::read_to_string(device.folder().join("device.pub")).unwrap();
    assert!(public.starts_with("-----BEGIN PUBLIC KEY-----"), "{public}");
    let pair = KeyPair::from_pem(&fs::read_to_string(device.folder().join("device.key")).unwrap()).unwrap();
    let spki = rcgen::PublicKeyData::subject_public_key_info(&pair);
    assert_eq!(enrolled["signing_kid"], hex::encode(&Sha256::digest(spki)[..16]));

    let summary = device.send("can", &["one".into(), "two".into()]).await.unwrap();
    assert_eq!((summary.records, summary.refused), (2, 0));
    site.until_relayed().await.unwrap();
    let delivered = fs::read_to_string(site.sink()).unwrap();
    let words: Vec<&str> = delivered.lines().filter(|line| line.contains("truck-1")).collect();
    assert!(!words.is_empty() && words.iter().all(|line| line.contains("\"assurance\":\"vouched\"")));

    let list = site.gateway_command(&["device", "list", "-o", "json"]).await.unwrap().ok().unwrap();
    let list: serde_json::Value = list.json().unwrap();
    let row = &list["devices"][0];
    assert_eq!((&row["device"], &row["state"]), (&"truck-1".into(), &"enrolled".into()), "{list}");
    assert!(row["certificate_until"].is_string() && row["seen_s_ago"].is_u64(), "{list}");
    let token = printed.get("--token");
    let registry = fs::read_to_string(site.gateway_data().join("devices.toml")).unwrap();
    assert!(!registry.contains(&token) && registry.contains("truck-1"));
    assert!(!site.gateway().unwrap().log_text().contains(&token), "a token in the log");
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_good_for_one_key_within_its_life() {
    let (mut site, _) = made_by_init().await;
    let printed = Printed::of(&site, "truck-1").await;
    let wrong = printed.with("--token", "00112233445566778899aabbccddeeff").run(&site).await;
    assert!(wrong.refused_with("PH-4009", "ENROLL_TOKEN_INVALID"), "{}", wrong.stderr);
    assert_eq!(wrong.code, Some(77));

    // The answer to the first attempt is lost: what it left is the key, and the token that was used with it.
    let folder = site.device("truck-1").folder().to_owned();
    printed.run(&site).await.ok().unwrap();
    let key = fs::read(folder.join("device.key")).unwrap();
    fs::remove_dir_all(&folder).unwrap();
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("enroll.key"), &key).unwrap();
    printed.run(&site).await.ok().unwrap();
    assert_eq!(fs::read(folder.join("device.key")).unwrap(), key);
    site.device("truck-1").send("can", &["one".into()]).await.unwrap();

    let thief = printed.with("--dir", site.folder().join("devices/thief").display());
    let used = thief.run(&site).await;
    assert!(used.refused_with("PH-4011", "ENROLL_TOKEN_USED"), "{}", used.stderr);

    let late = Printed::of(&site, "truck-2").await;
    let registry = site.gateway_data().join("devices.toml");
    let text = fs::read_to_string(&registry).unwrap();
    let (head, tail) = text.rsplit_once("expires_at = \"").unwrap();
    let (_, rest) = tail.split_once('-').unwrap();
    fs::write(&registry, format!("{head}expires_at = \"2021-{rest}")).unwrap();
    let expired = late.run(&site).await;
    assert!(expired.refused_with("PH-4010", "ENROLL_TOKEN_EXPIRED"), "{}", expired.stderr);

    let admin = site.gateway().unwrap().admin();
    for (result, count) in [
        ("OK", 2.0),
        ("ENROLL_TOKEN_INVALID", 1.0),
        ("ENROLL_TOKEN_USED", 1.0),
        ("ENROLL_TOKEN_EXPIRED", 1.0),
    ] {
        let label = format!("reason=\"{result}\"");
        let counted = admin.metric_where("pithead_enrollments_total", &label).await.unwrap();
        assert!((counted - count).abs() < 0.1, "{result}: {counted}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_root_from_elsewhere_nothing_is_sent_and_a_gateway_cannot_choose_it() {
    let (mut site, _) = made_by_init().await;
    let printed = Printed::of(&site, "truck-1").await;
    let none = printed.without("--root").run(&site).await;
    assert_eq!(none.code, Some(2), "{}", none.stderr);
    assert!(none.stderr.contains("a gateway cannot say whom a device is to believe"), "{}", none.stderr);
    let flipped = printed.with("--fingerprint", "ab".repeat(32)).run(&site).await;
    assert!(flipped.refused_with("PH-4007", "PEER_UNTRUSTED"), "{}", flipped.stderr);
    assert!(flipped.stderr.contains("the token was not shown"), "{}", flipped.stderr);
    let admin = site.gateway().unwrap().admin();
    assert!(admin.metric("pithead_enrollments_total").await.unwrap() < 0.1, "nobody has asked yet");

    let pinned = printed.without("--root").without("--authority");
    let other = pinned.and("--root-fingerprint", "cd".repeat(32)).run(&site).await;
    assert!(other.refused_with("PH-4007", "PEER_UNTRUSTED"), "{}", other.stderr);
    assert!(!site.device("truck-1").config().exists());
    let mistyped = printed.with("--device", "truck-9").run(&site).await;
    assert!(mistyped.refused_with("PH-4007", "PEER_UNTRUSTED"), "{}", mistyped.stderr);
    // The token was used, and its key is still here: the same token is answered again.
    let root = hex::encode(Sha256::digest(fs::read(site.authority.root()).unwrap()));
    pinned.and("--root-fingerprint", root).run(&site).await.ok().unwrap();
    assert_eq!(site.device("truck-1").key().await.unwrap().status, "FRESH");
}

/// What a device's folder says about it, byte for byte, but for the key of an attempt that goes on.
fn contents(device: &Device) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = fs::read_dir(device.folder()).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.is_file() && path.file_name().unwrap() != "enroll.key");
    files.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_enrols_again_goes_on_with_what_it_believes() {
    let (mut site, _) = made_by_init().await;
    let truck = site.device("truck-1");
    Printed::of(&site, "truck-1").await.run(&site).await.ok().unwrap();
    truck.send("can", &["one".into()]).await.unwrap();
    let trust =
        |device: &Device| ["trust.a", "trust.b"].map(|file| fs::read(device.folder().join(file)).ok());
    let (before, key) = (trust(&truck), fs::read(truck.folder().join("device.key")).unwrap());
    Printed::of(&site, "truck-1").await.run(&site).await.ok().unwrap();
    assert_ne!(fs::read(truck.folder().join("device.key")).unwrap(), key, "another key");
    assert_eq!(trust(&truck), before, "and the same trust, operating time and all");
    truck.send("can", &["two".into()]).await.unwrap();

    // It has heard of more than the gateway has: that is not forgotten by enrolling.
    site.link.cut();
    site.authority.statement(SITE, &["--no-standby".into()]).await.unwrap().ok().unwrap();
    let bundle = site.authority.bundle(SITE).display().to_string();
    truck.run(&["key", "--bundle", &bundle]).await.unwrap().ok().unwrap();
    assert_eq!(truck.key_offline().await.unwrap().sequence, 2);
    let before = contents(&truck);
    let older = Printed::of(&site, "truck-1").await.run(&site).await;
    assert!(older.refused_with("PH-1014", "TRUST_ROLLBACK"), "{}", older.stderr);
    assert_eq!(truck.key_offline().await.unwrap().sequence, 2);
    assert_eq!(contents(&truck), before);
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_believes_another_root_is_left_as_it_is_until_its_owner_says_otherwise() {
    let (site, _) = made_by_init().await;
    let other = Authority::init(site.programs(), &site.folder().join("other-authority"), 2048, "3d", now())
        .await
        .unwrap();
    let other_root = other.root().display().to_string();

    // The gateway's bundle is not of the root that was given: nothing is believed, and nothing has changed.
    let truck = site.device("truck-1");
    Printed::of(&site, "truck-1").await.run(&site).await.ok().unwrap();
    let before = contents(&truck);
    let refused = Printed::of(&site, "truck-1").await.with("--root", &other_root).run(&site).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("TRUST_"), "{}", refused.stderr);
    assert_eq!(contents(&truck), before);
    let new = Printed::of(&site, "truck-3").await.with("--root", &other_root).run(&site).await;
    assert!(new.stderr.contains("TRUST_"), "{}", new.stderr);
    assert!(contents(&site.device("truck-3")).is_empty(), "nor is there a device");

    // The bundle is, and the folder believes another.
    let printed = Printed::of(&site, "truck-2").await;
    let truck = site.device("truck-2");
    let folder = truck.folder().display().to_string();
    let by_hand = ["enroll", "--dir", &folder, "--site", SITE, "--device", "truck-2"];
    let by_hand = by_hand.into_iter().chain(["--authority", AUTHORITY, "--root", &other_root]);
    command::run(&site.programs().device(), by_hand, &[]).await.unwrap().ok().unwrap();
    let before = contents(&truck);
    let refused = printed.run(&site).await;
    assert!(refused.refused_with("PH-6011", "WOULD_OVERWRITE"), "{}", refused.stderr);
    assert!(refused.stderr.contains("remove trust.a and trust.b"), "{}", refused.stderr);
    assert_eq!(contents(&truck), before);
    for file in ["trust.a", "trust.b"] {
        let _ = fs::remove_file(truck.folder().join(file));
    }
    printed.run(&site).await.ok().unwrap();
    assert_eq!(truck.key().await.unwrap().status, "FRESH");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_man_in_the_middle_learns_no_token() {
    let (site, _) = made_by_init().await;
    let printed = Printed::of(&site, "truck-1").await;
    // The right names, of the right CA even: what a thief of the CA's key has.
    let folder = site.folder().join("certificates");
    let ca = Ca::create("a CA", &folder.join("middle-ca.pem")).unwrap();
    let files = ca.server(Some(&format!("spiffe://{SITE}/gateway/edge-1")), &folder.join("middle")).unwrap();
    let pem = |path: &Path| tls::Pem::read(path).unwrap();
    let mut config = rustls::ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            pem(&files.certificate).certificates().unwrap(),
            pem(&files.key).private_key().unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let middle = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        // A handshake that the client does not finish carries nothing of what it would have said.
        tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(tcp).await.map(|_| ())
    });
    let refused = printed.with("--gateway", address).run(&site).await;
    assert!(refused.refused_with("PH-4007", "PEER_UNTRUSTED"), "{}", refused.stderr);
    let handshake = tokio::time::timeout(PATIENCE, middle).await.unwrap().unwrap();
    assert!(handshake.is_err(), "the client finished a handshake with a stranger");
    printed.run(&site).await.ok().unwrap();
}

/// A client of the enrolment port that says what it likes.
async fn ask(printed: &Printed, token: &str, request: &[u8]) -> Result<EnrollResponse, Remote> {
    let endpoint: Endpoint = printed.get("--gateway").parse().unwrap();
    let mut fingerprint = [0; 32];
    hex::decode_to_slice(printed.get("--fingerprint"), &mut fingerprint).unwrap();
    let name = endpoint.server_name();
    let options = ConnectOptions::default();
    // The port takes few from one address; the one before may not have gone yet.
    let connected = async {
        loop {
            if let Ok(connection) = connect(&endpoint, &name, tls::pinned(fingerprint), &options).await {
                return connection;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let connection = tokio::time::timeout(PATIENCE, connected).await.unwrap();
    let request = EnrollRequest { token: token.to_owned(), certificate_request: request.to_vec().into() };
    let answer = EnrollServiceClient::new(connection).enroll(request).await;
    answer.map(tonic::Response::into_inner).map_err(|status| Remote::from_status(&status))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_registry_names_the_device_and_not_the_request() {
    let (site, _) = made_by_init().await;
    let printed = Printed::of(&site, "truck-1").await;
    let token = printed.get("--token");
    let pair = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    let other = format!("spiffe://{SITE}/gateway/edge-1");
    params.subject_alt_names = vec![SanType::URI(other.as_str().try_into().unwrap())];
    let request = params.serialize_request(&pair).unwrap().der().to_vec();

    let mut forged = request.clone();
    *forged.last_mut().unwrap() ^= 1;
    for bad in [&forged[..], b"", b"no request", &[0x30; 5000]] {
        let refused = ask(&printed, &token, bad).await.unwrap_err();
        assert_eq!(reason(&refused), ErrorReason::RequestInvalid);
    }
    let answer = ask(&printed, &token, &request).await.unwrap();
    assert_eq!((answer.site.as_str(), answer.device.as_str()), (SITE, "truck-1"));
    let named = PeerId::from_certificate(&answer.certificates[0]).unwrap();
    assert_eq!(named.to_string(), format!("spiffe://{SITE}/device/truck-1"));
    assert_eq!(answer.bundle.unwrap().roots.len(), 1, "roots from version 1 on");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_guesses_is_made_to_wait_and_a_certificate_is_not_asked_for() {
    let (site, _) = made_by_init().await;
    let printed = Printed::of(&site, "truck-1").await;
    let pair = KeyPair::generate().unwrap();
    let request = CertificateParams::default().serialize_request(&pair).unwrap().der().to_vec();
    let mut reasons = Vec::new();
    for guess in 0..40 {
        let refused = ask(&printed, &format!("{guess:032x}"), &request).await.unwrap_err();
        reasons.push(reason(&refused));
        if refused.retry_after.is_some_and(|wait| wait.as_secs() > 60) {
            break;
        }
    }
    // The port's own rate may speak first; the address's wrong attempts have the last word.
    let wrong = reasons.iter().filter(|reason| **reason == ErrorReason::EnrollTokenInvalid).count();
    assert!((1..=10).contains(&wrong), "{reasons:?}");
    assert_eq!(reasons.last(), Some(&ErrorReason::Throttled));

    // The port for devices is another one: there a certificate is demanded.
    let ca = site.folder().join("gateway/site-ca.pem");
    let refused = Client::connect(site.gateway_address(), &ca, None).await.unwrap();
    assert_eq!(refused.unwrap_err(), ConnectError::CertificateRequired);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_air_gapped_device_is_given_its_files_by_hand() {
    let (mut site, _) = made_by_init().await;
    let out = site.folder().join("carried");
    let path = out.display().to_string();
    let added =
        site.gateway_command(&["device", "add", "truck-7", "--out", &path]).await.unwrap().ok().unwrap();
    assert!(is_private(&out.join("device.key")));
    let line = added.stdout.lines().find(|line| line.starts_with("pithead-device enroll")).unwrap();
    let mut printed = Printed(line.split(' ').skip(1).map(str::to_owned).collect());
    for (option, value) in [
        ("--dir", site.device("truck-7").folder().to_owned()),
        ("--root", site.authority.root()),
        ("--ca", out.join("ca.pem")),
        ("--cert", out.join("device.pem")),
        ("--key", out.join("device.key")),
    ] {
        printed = printed.with(option, value.display());
    }
    let enrolled: serde_json::Value = printed.run(&site).await.ok().unwrap().json().unwrap();
    assert_eq!(enrolled["signing_kid"].as_str().map(str::len), Some(32));
    site.device("truck-7").send("can", &["one".into()]).await.unwrap();
    site.until_relayed().await.unwrap();
    let again = site.gateway_command(&["device", "add", "truck-7", "--out", &path]).await.unwrap();
    assert!(again.refused_with("PH-6011", "WOULD_OVERWRITE"), "{}", again.stderr);
}

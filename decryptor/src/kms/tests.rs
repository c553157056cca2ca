//! The client against a peer that answers with canned bytes, or does not.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;

use aws_config::profile::ProfileFileCredentialsProvider;
use aws_sdk_kms::config::{Credentials, SharedCredentialsProvider};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

const ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/00000000-0000-0000-0000-000000000001";

#[derive(Clone, Copy)]
enum Answer {
    Say(u16, &'static str),
    HangAfterAccept,
    HangAfterHeaders,
    Close,
}

struct Peer {
    address: SocketAddr,
    requests: Arc<AtomicU64>,
}

impl Peer {
    /// Gives the answers in turn, the last one for ever.
    async fn start(answers: &'static [Answer]) -> Peer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&requests);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(speak(stream, answers, Arc::clone(&counted)));
            }
        });
        Peer { address, requests }
    }

    async fn kms(&self) -> Kms {
        let timeouts = KmsTimeouts {
            connect: Duration::from_millis(500),
            attempt: Duration::from_millis(600),
            operation: Duration::from_millis(900),
        };
        let credentials = Credentials::new("test", "test", None, None, "test");
        let from = aws_config::defaults(BehaviorVersion::v2026_01_12())
            .endpoint_url(format!("http://{}", self.address))
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .region(Region::from_static("us-east-1"));
        Kms::load(from, timeouts).await
    }
}

async fn speak(mut stream: TcpStream, answers: &'static [Answer], requests: Arc<AtomicU64>) {
    loop {
        if let [Answer::HangAfterAccept] = answers {
            let _ = stream.read_to_end(&mut Vec::new()).await;
            return;
        }
        let mut seen = Vec::new();
        let complete = |seen: &[u8]| {
            let text = String::from_utf8_lossy(seen).to_lowercase();
            let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
            let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
            body.len() >= length.map_or(0, |length| length.trim().parse().unwrap())
        };
        while !complete(&seen) {
            let mut chunk = [0; 4096];
            match stream.read(&mut chunk).await {
                Ok(0) | Err(_) => return,
                Ok(read) => seen.extend_from_slice(&chunk[..read]),
            }
        }
        let number = requests.fetch_add(1, Ordering::Relaxed) as usize;
        let (status, body, whole) = match answers[number.min(answers.len() - 1)] {
            Answer::Say(status, body) => (status, body, true),
            Answer::HangAfterHeaders | Answer::HangAfterAccept => (200, "", false),
            Answer::Close => return,
        };
        let length = if whole { body.len() } else { 512 };
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/x-amz-json-1.1\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
    }
}

fn arn() -> KeyArn {
    KeyArn::new(ARN).unwrap()
}

async fn decrypt_meets(answers: &'static [Answer]) -> (KmsError, Peer, Kms) {
    let peer = Peer::start(answers).await;
    let kms = peer.kms().await;
    let error = kms.decrypt(&arn(), &[7; 256]).await.unwrap_err();
    (error, peer, kms)
}

#[tokio::test]
async fn errors_are_told_apart_by_the_services_code() {
    let cases: [(&'static [Answer], KmsFault); 13] = [
        (
            &[Answer::Say(400, r#"{"__type":"ThrottlingException","message":"Rate exceeded"}"#)],
            KmsFault::Throttled,
        ),
        (&[Answer::Say(429, "")], KmsFault::Throttled),
        (&[Answer::Say(400, r#"{"__type":"LimitExceededException"}"#)], KmsFault::Throttled),
        (&[Answer::Say(400, r#"{"__type":"AccessDeniedException","Message":"no"}"#)], KmsFault::Denied),
        (&[Answer::Say(400, r#"{"__type":"UnrecognizedClientException"}"#)], KmsFault::Denied),
        (&[Answer::Say(400, r#"{"__type":"DisabledException"}"#)], KmsFault::KeyDisabled),
        (&[Answer::Say(400, r#"{"__type":"KMSInvalidStateException"}"#)], KmsFault::KeyPendingDeletion),
        (&[Answer::Say(400, r#"{"__type":"NotFoundException"}"#)], KmsFault::KeyNotFound),
        (&[Answer::Say(400, r#"{"__type":"InvalidKeyUsageException"}"#)], KmsFault::KeyUnsuitable),
        (&[Answer::Say(400, r#"{"__type":"InvalidCiphertextException"}"#)], KmsFault::InvalidCiphertext),
        (&[Answer::Say(400, r#"{"__type":"ValidationException"}"#)], KmsFault::InvalidRequest),
        (&[Answer::Say(500, r#"{"__type":"KMSInternalException"}"#)], KmsFault::Unreachable),
        // A proxy's error page that says nothing of KMS.
        (&[Answer::Say(503, "<html>try later</html>")], KmsFault::Unreachable),
    ];
    for (answers, fault) in cases {
        let (error, peer, kms) = decrypt_meets(answers).await;
        assert_eq!(error.fault, fault, "{error:?}");
        let requests = peer.requests.load(Ordering::Relaxed);
        assert_eq!(
            (requests, kms.calls().total(KmsOperation::Decrypt)),
            (1, 1),
            "{fault:?}: one call is one request"
        );
        let counted: Vec<_> = kms.calls().snapshot().filter(|(.., count)| *count > 0).collect();
        assert_eq!(counted, [(KmsOperation::Decrypt, fault.label(), 1)]);
    }
}

#[tokio::test]
async fn a_peer_that_hangs_or_hangs_up_is_unreachable_in_time() {
    let hanging: [&'static [Answer]; 3] =
        [&[Answer::HangAfterAccept], &[Answer::HangAfterHeaders], &[Answer::Close]];
    for answers in hanging {
        // Far more than the timeouts of the test's client, and far less than one who has none.
        let met = tokio::time::timeout(Duration::from_secs(60), decrypt_meets(answers)).await;
        let (error, _, kms) = met.expect("whoever hangs is not waited for");
        assert_eq!(error.fault, KmsFault::Unreachable, "{error:?}");
        assert_eq!(kms.calls().total(KmsOperation::Decrypt), 1);
    }
}

#[tokio::test]
async fn a_closed_port_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = Peer { address: listener.local_addr().unwrap(), requests: Arc::default() };
    drop(listener);
    let error = peer.kms().await.decrypt(&arn(), &[7; 256]).await.unwrap_err();
    assert_eq!(error.fault, KmsFault::Unreachable, "{error:?}");
    assert!(error.fault.is_retryable());
}

#[tokio::test]
async fn a_plaintext_comes_back() {
    let peer = Peer::start(&[Answer::Say(200, r#"{"KeyId":"x","Plaintext":"cGl0aGVhZA=="}"#)]).await;
    let plaintext = peer.kms().await.decrypt(&arn(), &[7; 256]).await.unwrap();
    assert_eq!(plaintext.as_slice(), b"pithead");
}

#[tokio::test]
async fn no_credentials_is_a_refusal_and_not_an_outage() {
    let timeouts = KmsTimeouts::default();
    let nobody =
        ProfileFileCredentialsProvider::builder().profile_name("pithead-has-no-such-profile").build();
    let from = aws_config::defaults(BehaviorVersion::v2026_01_12())
        .endpoint_url("http://127.0.0.1:9")
        .credentials_provider(nobody)
        .region(Region::from_static("us-east-1"));
    let error = Kms::load(from, timeouts).await.decrypt(&arn(), &[7; 256]).await.unwrap_err();
    assert_eq!(error.fault, KmsFault::Denied, "{error:?}");
}

macro_rules! described {
    ($state:literal, $usage:literal, $algorithms:literal) => {
        Answer::Say(
            200,
            concat!(
                r#"{"KeyMetadata":{"KeyId":"k","Arn":"arn:aws:kms:eu-central-1:111122223333:key/00000000-0000-0000-0000-000000000001","KeyState":""#,
                $state,
                r#"","KeyUsage":""#,
                $usage,
                r#"","EncryptionAlgorithms":"#,
                $algorithms,
                "}}"
            ),
        )
    };
}

#[tokio::test]
async fn a_key_that_devices_must_not_seal_to_is_refused_before_its_public_key_is_asked_for() {
    let cases: [(&'static [Answer], KmsFault); 4] = [
        (&[described!("Disabled", "ENCRYPT_DECRYPT", r#"["RSAES_OAEP_SHA_256"]"#)], KmsFault::KeyDisabled),
        (
            &[described!("PendingDeletion", "ENCRYPT_DECRYPT", r#"["RSAES_OAEP_SHA_256"]"#)],
            KmsFault::KeyPendingDeletion,
        ),
        (&[described!("Enabled", "SIGN_VERIFY", "[]")], KmsFault::KeyUnsuitable),
        (&[described!("Enabled", "ENCRYPT_DECRYPT", r#"["RSAES_OAEP_SHA_1"]"#)], KmsFault::KeyUnsuitable),
    ];
    for (answers, fault) in cases {
        let peer = Peer::start(answers).await;
        let kms = peer.kms().await;
        assert_eq!(kms.sealing_key(&arn()).await.unwrap_err().fault, fault);
        assert_eq!(kms.calls().total(KmsOperation::GetPublicKey), 0);
    }
}

#[tokio::test]
async fn a_public_key_that_is_no_rsa_key_is_unsuitable() {
    let peer = Peer::start(&[
        described!("Enabled", "ENCRYPT_DECRYPT", r#"["RSAES_OAEP_SHA_256"]"#),
        Answer::Say(
            200,
            r#"{"PublicKey":"AAAA","KeyUsage":"ENCRYPT_DECRYPT","EncryptionAlgorithms":["RSAES_OAEP_SHA_256"]}"#,
        ),
    ])
    .await;
    let error = peer.kms().await.sealing_key(&arn()).await.unwrap_err();
    assert_eq!(error.fault, KmsFault::KeyUnsuitable, "{error:?}");
}

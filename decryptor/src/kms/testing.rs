//! A KMS in this process: it signs, describes and hands out public keys over real HTTP, and fails on demand.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_config::{BehaviorVersion, Region};
use aws_sdk_kms::config::{Credentials, SharedCredentialsProvider};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use base64ct::{Base64, Encoding as _};
use p256::ecdsa::signature::hazmat::PrehashSigner as _;
use pithead_sealing::trust::{KeyArn, RsaSpki};
use serde_json::{Value, json};

use super::{Kms, KmsTimeouts};

#[derive(Default)]
struct Content {
    signing: BTreeMap<String, p256::ecdsa::SigningKey>,
    data: BTreeMap<String, (RsaSpki, &'static str)>,
    /// An operation and the code that it answers with.
    fault: Option<(&'static str, &'static str)>,
    /// What `Sign` answers instead of a signature.
    signature: Option<Vec<u8>>,
    calls: Vec<String>,
}

pub(crate) struct FakeKms {
    pub(crate) kms: Kms,
    content: Arc<Mutex<Content>>,
}

impl FakeKms {
    pub(crate) async fn start() -> FakeKms {
        let content = Arc::new(Mutex::new(Content::default()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router =
            axum::Router::new().route("/", axum::routing::post(answer)).with_state(Arc::clone(&content));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let timeouts = KmsTimeouts {
            connect: Duration::from_secs(5),
            attempt: Duration::from_secs(10),
            operation: Duration::from_secs(10),
        };
        let credentials = Credentials::new("test", "test", None, None, "test");
        let from = aws_config::defaults(BehaviorVersion::v2026_01_12())
            .endpoint_url(url)
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .region(Region::from_static("us-east-1"));
        FakeKms { kms: Kms::load(from, timeouts).await, content }
    }

    /// A new ECC_NIST_P256 key.
    pub(crate) fn add_signing_key(&self, arn: &KeyArn, secret: u8) {
        let key = p256::ecdsa::SigningKey::from_slice(&[secret; 32]).unwrap();
        self.content.lock().unwrap().signing.insert(arn.to_string(), key);
    }

    pub(crate) fn set_data_key(&self, arn: &KeyArn, spki: &RsaSpki, state: &'static str) {
        self.content.lock().unwrap().data.insert(arn.to_string(), (spki.clone(), state));
    }

    pub(crate) fn fail(&self, fault: Option<(&'static str, &'static str)>) {
        self.content.lock().unwrap().fault = fault;
    }

    pub(crate) fn answer_signatures_with(&self, der: Vec<u8>) {
        self.content.lock().unwrap().signature = Some(der);
    }

    /// How often an operation was asked for.
    pub(crate) fn calls(&self, operation: &str) -> usize {
        self.content.lock().unwrap().calls.iter().filter(|called| *called == operation).count()
    }
}

fn refused(code: &str) -> (StatusCode, axum::Json<Value>) {
    (StatusCode::BAD_REQUEST, axum::Json(json!({ "__type": code, "message": "as ordered" })))
}

async fn answer(
    State(content): State<Arc<Mutex<Content>>>,
    headers: HeaderMap,
    body: axum::body::Bytes,
) -> impl IntoResponse {
    let target = headers["x-amz-target"].to_str().unwrap();
    let operation = target.strip_prefix("TrentService.").unwrap();
    let asked: Value = serde_json::from_slice(&body).unwrap();
    let arn = asked["KeyId"].as_str().unwrap();
    let mut content = content.lock().unwrap();
    content.calls.push(operation.to_owned());
    if let Some((failing, code)) = content.fault
        && failing == operation
    {
        return refused(code);
    }
    let algorithms = json!(["RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256"]);
    let good = match (operation, content.signing.get(arn), content.data.get(arn)) {
        ("GetPublicKey", Some(key), _) => {
            use p256::pkcs8::EncodePublicKey as _;
            let der = key.verifying_key().to_public_key_der().unwrap();
            json!({ "KeyId": arn, "PublicKey": Base64::encode_string(der.as_bytes()), "KeySpec": "ECC_NIST_P256",
                "KeyUsage": "SIGN_VERIFY", "SigningAlgorithms": ["ECDSA_SHA_256"] })
        }
        ("Sign", Some(key), _) => {
            assert_eq!(
                (&asked["MessageType"], &asked["SigningAlgorithm"]),
                (&json!("DIGEST"), &json!("ECDSA_SHA_256"))
            );
            let digest = Base64::decode_vec(asked["Message"].as_str().unwrap()).unwrap();
            assert_eq!(digest.len(), 32);
            let signature: p256::ecdsa::Signature = key.sign_prehash(&digest).unwrap();
            let der = content.signature.clone().unwrap_or_else(|| signature.to_der().as_bytes().to_vec());
            json!({ "KeyId": arn, "Signature": Base64::encode_string(&der), "SigningAlgorithm": "ECDSA_SHA_256" })
        }
        ("DescribeKey", None, Some((_, state))) => json!({ "KeyMetadata": { "KeyId": "k", "Arn": arn,
            "KeyState": state, "KeyUsage": "ENCRYPT_DECRYPT", "EncryptionAlgorithms": algorithms } }),
        ("GetPublicKey", None, Some((spki, _))) => json!({ "KeyId": arn, "KeyUsage": "ENCRYPT_DECRYPT",
            "PublicKey": Base64::encode_string(spki.der()), "KeySpec": "RSA_2048", "EncryptionAlgorithms": algorithms }),
        _ => return refused("NotFoundException"),
    };
    (StatusCode::OK, axum::Json(good))
}

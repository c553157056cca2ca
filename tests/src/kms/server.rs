//! The listener: AWS JSON 1.1 on loopback, with faults on demand.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use base64ct::{Base64, Encoding as _};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::keys::{KeyState, KmsKey};

/// KMS requests are a few kilobytes; what is larger is no request of ours.
const MAX_REQUEST_BYTES: usize = 64 * 1024;

/// What the server does instead of answering well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// Answers well.
    #[default]
    None,
    /// Accepts the connection and never says a word; on one that stands already, takes the request and says nothing.
    HangAfterAccept,
    /// Sends status and headers, promises a body, and never sends it.
    HangAfterHeaders,
    /// `ThrottlingException`, status 400, as KMS does.
    Throttle,
    /// `AccessDeniedException`.
    Deny,
    /// Status 500, `KMSInternalException`.
    Internal,
    /// Closes the connection after the request was read: the reply is lost.
    DropReply,
}

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// `TrentService.GetPublicKey`
    GetPublicKey,
    /// `TrentService.DescribeKey`
    DescribeKey,
    /// `TrentService.Decrypt`
    Decrypt,
    /// `TrentService.Sign`
    Sign,
}

impl Operation {
    fn from_target(target: &str) -> Option<Self> {
        match target.strip_prefix("TrentService.")? {
            "GetPublicKey" => Some(Self::GetPublicKey),
            "DescribeKey" => Some(Self::DescribeKey),
            "Decrypt" => Some(Self::Decrypt),
            "Sign" => Some(Self::Sign),
            _ => None,
        }
    }
}

/// A key, and what KMS says of it at the moment.
#[derive(Clone, Debug)]
struct Held {
    key: Arc<KmsKey>,
    state: KeyState,
    usage: &'static str,
}

impl Held {
    fn new(key: KmsKey) -> Self {
        let usage = key.usage();
        Self { key: Arc::new(key), state: KeyState::Enabled, usage }
    }
}

#[derive(Debug, Default)]
struct State {
    keys: Vec<Held>,
    fault: Fault,
    faults_of_one: BTreeMap<Operation, Fault>,
    counts: BTreeMap<Operation, u64>,
}

/// A running test KMS. It stops when dropped.
#[derive(Debug)]
pub struct TestKms {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    _stop: DropGuard,
}

impl TestKms {
    /// Listens on a free port of loopback and serves `keys`.
    pub async fn start(keys: Vec<KmsKey>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let keys = keys.into_iter().map(Held::new).collect();
        let state = Arc::new(Mutex::new(State { keys, ..State::default() }));
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(accept(listener, Arc::clone(&state))));
        Ok(Self { address, state, _stop: stop.drop_guard() })
    }

    /// For `AWS_ENDPOINT_URL_KMS`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The variables that make the AWS SDK of a child process talk to this server and to nothing else.
    #[must_use]
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ENDPOINT_URL_KMS", self.url()),
            ("AWS_ACCESS_KEY_ID", "test".into()),
            ("AWS_SECRET_ACCESS_KEY", "test".into()),
            ("AWS_REGION", "ap-southeast-2".into()),
            ("AWS_EC2_METADATA_DISABLED", "true".into()),
        ]
    }

    /// From now on, every request meets this fault.
    pub fn set_fault(&self, fault: Fault) {
        lock(&self.state).fault = fault;
    }

    /// From now on, every request of one operation meets this fault, whatever the others do.
    pub fn set_fault_of(&self, operation: Operation, fault: Fault) {
        lock(&self.state).faults_of_one.insert(operation, fault);
    }

    /// Changes what `DescribeKey` says and `Decrypt` does for one key.
    pub fn set_key_state(&self, arn: &str, key_state: KeyState) {
        self.change_key(arn, |key| key.state = key_state);
    }

    /// Makes a key look as if it had been created for another purpose.
    pub fn set_key_usage(&self, arn: &str, usage: &'static str) {
        self.change_key(arn, |key| key.usage = usage);
    }

    /// Puts another key pair behind an ARN: what a substituted KMS would do.
    pub fn replace_key(&self, key: KmsKey) {
        let mut state = lock(&self.state);
        state.keys.retain(|held| held.key.arn() != key.arn());
        state.keys.push(Held::new(key));
    }

    /// Requests so far, failed ones included.
    #[must_use]
    pub fn count(&self, operation: Operation) -> u64 {
        lock(&self.state).counts.get(&operation).copied().unwrap_or(0)
    }

    fn change_key(&self, arn: &str, change: impl Fn(&mut Held)) {
        let mut state = lock(&self.state);
        state.keys.iter_mut().filter(|held| held.key.arn() == arn).for_each(change);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: TcpListener, state: Arc<Mutex<State>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let state = Arc::clone(&state);
        tokio::spawn(connection(stream, state));
    }
}

async fn connection(stream: TcpStream, state: Arc<Mutex<State>>) {
    if lock(&state).fault == Fault::HangAfterAccept {
        return hang_until_the_peer_leaves(stream).await;
    }
    let service = hyper::service::service_fn(move |request| answer(request, Arc::clone(&state)));
    // An error here is a client that left or a reply that was dropped on purpose: both are what the tests are about.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn hang_until_the_peer_leaves(stream: TcpStream) {
    let mut byte = [0; 1024];
    loop {
        match stream.readable().await.and_then(|()| stream.try_read(&mut byte)) {
            Ok(0) => return,
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => return,
            Ok(_) | Err(_) => {}
        }
    }
}

type Reply = Response<http_body_util::combinators::BoxBody<Bytes, Infallible>>;

#[derive(Debug, thiserror::Error)]
#[error("the reply is dropped on purpose")]
struct Dropped;

async fn answer(request: Request<Incoming>, state: Arc<Mutex<State>>) -> Result<Reply, Dropped> {
    let target =
        request.headers().get("x-amz-target").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let operation = Operation::from_target(target);
    let body = match Limited::new(request.into_body(), MAX_REQUEST_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => {
            return Ok(error(StatusCode::PAYLOAD_TOO_LARGE, "ValidationException", "request too large"));
        }
    };
    let Some(operation) = operation else {
        return Ok(error(
            StatusCode::BAD_REQUEST,
            "UnknownOperationException",
            "not an operation of this server",
        ));
    };
    let (fault, key) = {
        let mut state = lock(&state);
        *state.counts.entry(operation).or_default() += 1;
        let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
        let key = state.keys.iter().find(|held| Some(held.key.arn()) == asked["KeyId"].as_str()).cloned();
        let fault = state.faults_of_one.get(&operation).copied().filter(|fault| *fault != Fault::None);
        (fault.unwrap_or(state.fault), key.map(|key| (key, asked)))
    };
    match fault {
        Fault::None => {}
        // On a connection that was good before.
        Fault::HangAfterAccept => return std::future::pending().await,
        Fault::HangAfterHeaders => return Ok(headers_alone()),
        Fault::Throttle => return Ok(error(StatusCode::BAD_REQUEST, "ThrottlingException", "Rate exceeded")),
        Fault::Deny => return Ok(error(StatusCode::BAD_REQUEST, "AccessDeniedException", "not authorized")),
        Fault::Internal => {
            return Ok(error(StatusCode::INTERNAL_SERVER_ERROR, "KMSInternalException", "internal"));
        }
        Fault::DropReply => return Err(Dropped),
    }
    let Some((key, asked)) = key else {
        return Ok(error(StatusCode::BAD_REQUEST, "NotFoundException", "no such key"));
    };
    Ok(perform(operation, &key, &asked))
}

fn perform(operation: Operation, held: &Held, asked: &Value) -> Reply {
    let Held { key, state, usage } = held;
    let (list, algorithms) = key.algorithms();
    if operation == Operation::DescribeKey {
        return ok(&json!({ "KeyMetadata": {
            "KeyId": key.arn().rsplit('/').next(), "Arn": key.arn(), "KeyState": state.name(),
            "Enabled": *state == KeyState::Enabled, "KeyUsage": usage, "KeySpec": key.spec(),
            list: algorithms,
        }}));
    }
    match state {
        KeyState::Enabled => {}
        KeyState::Disabled => {
            return error(StatusCode::BAD_REQUEST, "DisabledException", "the key is disabled");
        }
        KeyState::PendingDeletion => {
            return error(StatusCode::BAD_REQUEST, "KMSInvalidStateException", "the key is pending deletion");
        }
    }
    if operation == Operation::GetPublicKey {
        return ok(&json!({
            "KeyId": key.arn(), "PublicKey": Base64::encode_string(key.spki_der()), "KeySpec": key.spec(),
            "KeyUsage": usage, list: algorithms,
        }));
    }
    if *usage != (if operation == Operation::Sign { "SIGN_VERIFY" } else { "ENCRYPT_DECRYPT" }) {
        return error(StatusCode::BAD_REQUEST, "InvalidKeyUsageException", "the key is for another use");
    }
    if operation == Operation::Sign {
        return sign(key, asked);
    }
    if asked["EncryptionAlgorithm"].as_str() != Some("RSAES_OAEP_SHA_256") {
        return error(StatusCode::BAD_REQUEST, "ValidationException", "EncryptionAlgorithm is required");
    }
    let ciphertext = asked["CiphertextBlob"].as_str().and_then(|text| Base64::decode_vec(text).ok());
    match ciphertext.and_then(|ciphertext| key.decrypt(&ciphertext)) {
        Some(plaintext) => ok(&json!({
            "KeyId": key.arn(), "Plaintext": Base64::encode_string(&plaintext),
            "EncryptionAlgorithm": "RSAES_OAEP_SHA_256",
        })),
        None => error(StatusCode::BAD_REQUEST, "InvalidCiphertextException", ""),
    }
}

fn sign(key: &KmsKey, asked: &Value) -> Reply {
    let how = (asked["MessageType"].as_str(), asked["SigningAlgorithm"].as_str());
    if how != (Some("DIGEST"), Some("ECDSA_SHA_256")) {
        return error(
            StatusCode::BAD_REQUEST,
            "ValidationException",
            "a DIGEST for ECDSA_SHA_256 is signed here",
        );
    }
    let digest = asked["Message"].as_str().and_then(|text| Base64::decode_vec(text).ok());
    match digest.and_then(|digest| key.sign_digest(&digest)) {
        Some(signature) => ok(&json!({
            "KeyId": key.arn(), "Signature": Base64::encode_string(&signature),
            "SigningAlgorithm": "ECDSA_SHA_256",
        })),
        None => error(StatusCode::BAD_REQUEST, "ValidationException", "not a SHA-256"),
    }
}

fn ok(body: &Value) -> Reply {
    reply(StatusCode::OK, body)
}

fn error(status: StatusCode, kind: &str, message: &str) -> Reply {
    reply(status, &json!({ "__type": kind, "message": message }))
}

fn reply(status: StatusCode, body: &Value) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::from(body.to_string())).boxed());
    *reply.status_mut() = status;
    reply.headers_mut().insert("content-type", http::HeaderValue::from_static("application/x-amz-json-1.1"));
    reply
}

/// A body of a promised length that never comes.
fn headers_alone() -> Reply {
    let never = http_body_util::StreamBody::new(futures_util::stream::pending::<
        Result<hyper::body::Frame<Bytes>, Infallible>,
    >());
    let mut reply = Response::new(never.boxed());
    reply.headers_mut().insert("content-length", http::HeaderValue::from_static("512"));
    reply
}

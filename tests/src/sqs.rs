//! An SQS on loopback: as much of it as a bucket's notifications need, with a clock that runs as fast as a test wants, and failures on
//! demand.
//!
//! It speaks the AWS JSON 1.0 protocol over plain HTTP: `SendMessage`, `ReceiveMessage` (long poll), `DeleteMessage`,
//! `ChangeMessageVisibility`, `GetQueueAttributes`. A message that was received `max_receives` times without being deleted goes to the
//! dead letters when it would be received once more, as a redrive policy has it. It checks no request signature. What a queue may do and
//! this one is told to do: give a message twice, give them in any order, lose the answer to a deletion.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, http::StatusCode, response::IntoResponse};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

#[derive(Debug, Clone)]
struct Message {
    id: u64,
    body: String,
    receives: u32,
    /// Nobody is given it before.
    hidden_until: Instant,
    handle: Option<String>,
}

#[derive(Debug, Default)]
struct Held {
    messages: VecDeque<Message>,
    dead: Vec<String>,
    next: u64,
    counts: BTreeMap<String, u64>,
    lose_deletions: u32,
    max_receives: u32,
    /// What a second of hiding is here.
    second: Duration,
}

#[derive(Debug)]
struct Queue {
    held: Mutex<Held>,
    changed: Notify,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running queue. It stops when dropped.
#[derive(Debug)]
pub struct TestSqs {
    address: SocketAddr,
    queue: Arc<Queue>,
    _stop: DropGuard,
}

impl TestSqs {
    /// Listens on a free port of loopback. `second` is how long a second of hiding lasts here.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn start(second: Duration, max_receives: u32) -> std::io::Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let held = Mutex::new(Held { second, max_receives, ..Held::default() });
        let queue = Arc::new(Queue { held, changed: Notify::new() });
        let stop = CancellationToken::new();
        let routes = Router::new().fallback(answer).with_state(Arc::clone(&queue));
        let serving = async move { axum::serve(listener, routes).await };
        tokio::spawn(stop.clone().run_until_cancelled_owned(serving));
        Ok(Self { address, queue, _stop: stop.drop_guard() })
    }

    /// The queue's address.
    #[must_use]
    pub fn queue_url(&self) -> String {
        format!("http://{}/111122223333/bundles", self.address)
    }

    /// Somebody sends a message.
    pub fn send(&self, body: impl Into<String>) {
        let mut held = self.queue.lock();
        held.next += 1;
        let (id, body) = (held.next, body.into());
        let message = Message { id, body, receives: 0, hidden_until: Instant::now(), handle: None };
        held.messages.push_back(message);
        drop(held);
        self.queue.changed.notify_waiters();
    }

    /// The answers to the next so many deletions are lost, and the deletions with them.
    pub fn lose_deletions(&self, times: u32) {
        self.queue.lock().lose_deletions = times;
    }

    /// The bodies of dead letters.
    #[must_use]
    pub fn dead_letters(&self) -> Vec<String> {
        self.queue.lock().dead.clone()
    }

    /// Messages that anybody would be given now.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let now = Instant::now();
        self.queue.lock().messages.iter().filter(|message| message.hidden_until <= now).count()
    }

    /// How often each message that is left was given to somebody.
    #[must_use]
    pub fn receptions(&self) -> Vec<u32> {
        self.queue.lock().messages.iter().map(|message| message.receives).collect()
    }

    /// Messages that are not deleted and not dead.
    #[must_use]
    pub fn left(&self) -> usize {
        self.queue.lock().messages.len()
    }

    /// Requests of an operation so far.
    #[must_use]
    pub fn count(&self, operation: &str) -> u64 {
        self.queue.lock().counts.get(operation).copied().unwrap_or(0)
    }
}

async fn answer(State(queue): State<Arc<Queue>>, headers: HeaderMap, body: Bytes) -> impl IntoResponse {
    let target = headers.get("x-amz-target").and_then(|target| target.to_str().ok()).unwrap_or_default();
    let operation = target.strip_prefix("AmazonSQS.").unwrap_or_default().to_owned();
    let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
    *queue.lock().counts.entry(operation.clone()).or_default() += 1;
    let answered = match operation.as_str() {
        "SendMessage" => Ok(send(&queue, &asked)),
        "ReceiveMessage" => Ok(receive(&queue, &asked).await),
        "DeleteMessage" => delete(&queue, &asked),
        "ChangeMessageVisibility" => change(&queue, &asked),
        "GetQueueAttributes" => Ok(attributes(&queue)),
        _ => Err("com.amazonaws.sqs#UnsupportedOperation"),
    };
    let (status, json) = match answered {
        Ok(json) => (StatusCode::OK, json),
        Err(code) => (StatusCode::BAD_REQUEST, json!({ "__type": code, "message": "as asked" })),
    };
    (status, [("content-type", "application/x-amz-json-1.0")], json.to_string())
}

fn send(queue: &Queue, asked: &Value) -> Value {
    let mut held = queue.lock();
    held.next += 1;
    let (id, body) = (held.next, asked["MessageBody"].as_str().unwrap_or_default().to_owned());
    held.messages.push_back(Message { id, body, receives: 0, hidden_until: Instant::now(), handle: None });
    drop(held);
    queue.changed.notify_waiters();
    json!({ "MessageId": id.to_string() })
}

async fn receive(queue: &Queue, asked: &Value) -> Value {
    let most = asked["MaxNumberOfMessages"].as_u64().unwrap_or(1) as usize;
    let hidden_s = asked["VisibilityTimeout"].as_u64().unwrap_or(30) as u32;
    let wait = Duration::from_secs(asked["WaitTimeSeconds"].as_u64().unwrap_or(0));
    let until = Instant::now() + wait;
    loop {
        let changed = queue.changed.notified();
        let (found, next) = take(queue, most, hidden_s);
        if !found.is_empty() || Instant::now() >= until {
            return json!({ "Messages": found });
        }
        // Until somebody sends, a message is seen again, or the wait is over.
        let sleep = next.unwrap_or(until).min(until);
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep_until(sleep.into()) => {}
        }
    }
}

fn take(queue: &Queue, most: usize, hidden_s: u32) -> (Vec<Value>, Option<Instant>) {
    let mut held = queue.lock();
    let now = Instant::now();
    let Held { messages, dead, second, max_receives, .. } = &mut *held;
    let hidden = *second * hidden_s;
    messages.retain(|message| {
        let is_dead = message.receives >= *max_receives && message.hidden_until <= now;
        if is_dead {
            dead.push(message.body.clone());
        }
        !is_dead
    });
    let mut found = Vec::new();
    for message in messages.iter_mut().filter(|message| message.hidden_until <= now).take(most) {
        message.receives += 1;
        message.hidden_until = now + hidden;
        let handle = format!("{}/{}", message.id, message.receives);
        message.handle = Some(handle.clone());
        found.push(json!({
            "MessageId": message.id.to_string(),
            "ReceiptHandle": handle,
            "Body": message.body,
            "Attributes": { "ApproximateReceiveCount": message.receives.to_string() },
        }));
    }
    let next = messages.iter().map(|message| message.hidden_until).filter(|until| *until > now).min();
    (found, next)
}

fn delete(queue: &Queue, asked: &Value) -> Result<Value, &'static str> {
    let mut held = queue.lock();
    if held.lose_deletions > 0 {
        held.lose_deletions -= 1;
        return Err("com.amazonaws.sqs#ServiceUnavailable");
    }
    let handle = asked["ReceiptHandle"].as_str().unwrap_or_default().to_owned();
    // An older reception's handle deletes nothing.
    held.messages.retain(|message| message.handle.as_deref() != Some(&handle));
    Ok(json!({}))
}

fn change(queue: &Queue, asked: &Value) -> Result<Value, &'static str> {
    let mut held = queue.lock();
    let handle = asked["ReceiptHandle"].as_str().unwrap_or_default().to_owned();
    let hidden = held.second * asked["VisibilityTimeout"].as_u64().unwrap_or(0) as u32;
    let message = held.messages.iter_mut().find(|message| message.handle.as_deref() == Some(&handle));
    let Some(message) = message else { return Err("com.amazonaws.sqs#ReceiptHandleIsInvalid") };
    message.hidden_until = Instant::now() + hidden;
    drop(held);
    queue.changed.notify_waiters();
    Ok(json!({}))
}

fn attributes(queue: &Queue) -> Value {
    let held = queue.lock();
    let now = Instant::now();
    let (hidden, waiting): (Vec<_>, Vec<_>) =
        held.messages.iter().partition(|message| message.hidden_until > now);
    json!({ "Attributes": {
        "ApproximateNumberOfMessages": waiting.len().to_string(),
        "ApproximateNumberOfMessagesNotVisible": hidden.len().to_string(),
        "RedrivePolicy": format!("{{\"maxReceiveCount\":{}}}", held.max_receives),
    }})
}

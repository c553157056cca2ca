//! AWS SQS: the one file that names its SDK.
//!
//! Four operations: `ReceiveMessage`, `DeleteMessage`, `ChangeMessageVisibility`, and `GetQueueAttributes` for who checks a
//! configuration. What is promised of each call is what is promised of KMS's ([`crate::kms`]): it ends (connect 2 s, one attempt
//! 3 s, all of it 8 s; a long poll has its own wait besides), it is one request, and its errors are told apart by their code.
//!
//! - **A message is hidden from others for as long as its bundle is worked on**, and no longer: a replica that dies lets go of what it
//!   had when the time is over for which it was last hidden, one that stops in order at once. What the service gives to a poll that nobody
//!   waits for any more comes again by itself.
//! - **What is no bundle's is left alone.** It is counted and logged, comes again, and goes to the dead-letter queue by the queue's own
//!   count of receptions: nobody's message is deleted here.
//! - **At most [`HELD_MAX`] messages are held**, so that one replica does not sit on what others could do.

use super::notice::{Held, NotANotice, Notice, Receipt, Told};
use crate::metrics::Metrics;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, ConfigLoader, Region};
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::http::HttpResponse;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sqs::types::{MessageSystemAttributeName, QueueAttributeName};
use pithead_proto::errors::v1::ErrorReason;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Messages that are held at once: as many bundles as a replica opens in some seconds.
pub const HELD_MAX: usize = 1_000;

/// Messages in one answer at most, by the service.
const BATCH: u32 = 10;

/// How long an empty poll lasts: the longest that the service takes.
const WAIT: Duration = Duration::from_secs(20);

/// After a failure, before the next poll.
const RETRY: Duration = Duration::from_secs(2);

/// How often a deletion is tried before the message is left to come again: a duplicate is harmless.
const DELETE_TRIES: u32 = 3;

const CONNECT: Duration = Duration::from_secs(2);
const ATTEMPT: Duration = Duration::from_secs(3);
const OPERATION: Duration = Duration::from_secs(8);

/// What went wrong, as far as the caller acts on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum QueueFault {
    /// Refused by a policy, or there are no credentials that the service takes.
    Denied,
    /// There is no such queue.
    NotFound,
    /// The reception is over: somebody else has the message by now, or it is gone.
    Over,
    /// No answer in time, no connection, throttled, or a fault inside the service.
    Unreachable,
}

/// A call of the queue that failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("SQS: {cause}")]
pub struct QueueError {
    /// What to do about it.
    pub fault: QueueFault,
    cause: String,
}

impl QueueError {
    /// The reason in the registry.
    #[must_use]
    pub fn reason(&self) -> ErrorReason {
        match self.fault {
            QueueFault::Denied => ErrorReason::RoleNotAllowed,
            QueueFault::NotFound | QueueFault::Over => ErrorReason::ConfigInvalid,
            QueueFault::Unreachable => ErrorReason::PeerUnreachable,
        }
    }

    fn from_sdk<E>(error: SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let status = error.raw_response().map(|response| response.status().as_u16());
        let fault = match &error {
            // Without usable credentials the request is never built.
            SdkError::ConstructionFailure(_) => QueueFault::Denied,
            SdkError::TimeoutError(_) | SdkError::ResponseError(_) | SdkError::DispatchFailure(_) => {
                QueueFault::Unreachable
            }
            _ => match (error.code(), status) {
                (_, Some(500..)) => QueueFault::Unreachable,
                (Some(code), _) => Self::fault_of(code),
                (None, Some(401 | 403)) => QueueFault::Denied,
                (None, _) => QueueFault::Unreachable,
            },
        };
        let cause = match (error.code(), error.message()) {
            (Some(code), Some(message)) => format!("{code}: {message}"),
            (Some(code), None) => code.to_owned(),
            _ => crate::kms::chain(&error),
        };
        // One line, whatever was said: it goes into logs and onto terminals.
        Self { fault, cause: cause.split_whitespace().collect::<Vec<_>>().join(" ") }
    }

    fn fault_of(code: &str) -> QueueFault {
        // Some services answer with `com.amazonaws.sqs#Code`, or with the code of the older protocol.
        let code = code.rsplit(['#', '.']).next().unwrap_or(code);
        match code {
            "QueueDoesNotExist" | "NonExistentQueue" => QueueFault::NotFound,
            "ReceiptHandleIsInvalid" | "MessageNotInflight" | "InvalidParameterValue" => QueueFault::Over,
            "AccessDenied"
            | "AccessDeniedException"
            | "InvalidClientTokenId"
            | "UnrecognizedClientException"
            | "SignatureDoesNotMatch"
            | "ExpiredToken"
            | "InvalidSecurity"
            | "KmsAccessDenied" => QueueFault::Denied,
            _ => QueueFault::Unreachable,
        }
    }
}

/// One message, as it was received.
#[derive(Debug, Clone)]
pub struct Message {
    /// The service's name for this reception.
    pub handle: String,
    /// What it says.
    pub body: String,
    /// How often it was received, this time included; 0 if the service does not say.
    pub receptions: u32,
}

/// What the service says of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attributes {
    /// Messages that wait, about.
    pub waiting: u64,
    /// Messages that somebody has received, about.
    pub in_flight: u64,
    /// There is a dead-letter queue behind it.
    pub has_dead_letters: bool,
}

/// A queue. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Queue {
    client: Client,
    polling: Client,
    url: String,
    visibility: Duration,
}

impl Queue {
    /// Reads credentials from the environment as every AWS program does; asks the server that the queue's address names, and no other.
    /// `region` is for an address that names none. A message is hidden from others for `visibility` at a time, which is extended at a
    /// third of it. Talks to nobody yet.
    pub async fn from_environment(url: &str, region: Option<&str>, visibility: Duration) -> Self {
        let load = |extra: Duration| async move {
            let from: ConfigLoader = aws_config::defaults(BehaviorVersion::v2026_01_12());
            let from = match region_of(url).or(region) {
                Some(region) => from.region(Region::new(region.to_owned())),
                None => from,
            };
            let timeouts = TimeoutConfig::builder()
                .connect_timeout(CONNECT)
                .operation_attempt_timeout(ATTEMPT + extra)
                .operation_timeout(OPERATION + extra)
                .build();
            from.retry_config(RetryConfig::disabled()).timeout_config(timeouts).load().await
        };
        let client = |loaded| {
            let config = aws_sdk_sqs::config::Builder::from(&loaded);
            Client::from_conf(config.endpoint_url(server_of(url)).build())
        };
        let (short, polling) = (client(load(Duration::ZERO).await), client(load(WAIT).await));
        Self { client: short, polling, url: url.to_owned(), visibility }
    }

    /// The outer limit holds even where the SDK's own would not reach.
    async fn call<T, E>(
        limit: Duration,
        request: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    ) -> Result<T, QueueError>
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        match tokio::time::timeout(limit + CONNECT, request).await {
            Ok(result) => result.map_err(QueueError::from_sdk),
            Err(_) => {
                Err(QueueError { fault: QueueFault::Unreachable, cause: "no answer in time".to_owned() })
            }
        }
    }

    /// Waits for messages; none if none came. Those that came are hidden from others.
    ///
    /// # Errors
    /// [`QueueError`].
    pub async fn receive(&self) -> Result<Vec<Message>, QueueError> {
        let request = self
            .polling
            .receive_message()
            .queue_url(&self.url)
            .max_number_of_messages(BATCH as i32)
            .wait_time_seconds(WAIT.as_secs() as i32)
            .visibility_timeout(self.visibility.as_secs() as i32)
            .message_system_attribute_names(MessageSystemAttributeName::ApproximateReceiveCount)
            .send();
        let answer = Self::call(OPERATION + WAIT, request).await?;
        let messages = answer.messages.unwrap_or_default().into_iter().filter_map(|message| {
            let receptions = message
                .attributes
                .as_ref()
                .and_then(|all| all.get(&MessageSystemAttributeName::ApproximateReceiveCount)?.parse().ok());
            let body = message.body.unwrap_or_default();
            Some(Message { handle: message.receipt_handle?, body, receptions: receptions.unwrap_or(0) })
        });
        Ok(messages.collect())
    }

    /// Deletes a message.
    ///
    /// # Errors
    /// [`QueueError`]; then it comes again.
    pub async fn delete(&self, handle: &str) -> Result<(), QueueError> {
        let request = self.client.delete_message().queue_url(&self.url).receipt_handle(handle).send();
        Self::call(OPERATION, request).await.map(drop)
    }

    /// Hides a message for so long from now on; for no time at all, it is anybody's at once.
    ///
    /// # Errors
    /// [`QueueError`].
    pub async fn hide(&self, handle: &str, hidden: Duration) -> Result<(), QueueError> {
        let request = self
            .client
            .change_message_visibility()
            .queue_url(&self.url)
            .receipt_handle(handle)
            .visibility_timeout(hidden.as_secs() as i32)
            .send();
        Self::call(OPERATION, request).await.map(drop)
    }

    /// What the service says of the queue.
    ///
    /// # Errors
    /// [`QueueError`].
    pub async fn attributes(&self) -> Result<Attributes, QueueError> {
        let request = self
            .client
            .get_queue_attributes()
            .queue_url(&self.url)
            .attribute_names(QueueAttributeName::ApproximateNumberOfMessages)
            .attribute_names(QueueAttributeName::ApproximateNumberOfMessagesNotVisible)
            .attribute_names(QueueAttributeName::RedrivePolicy)
            .send();
        let answer = Self::call(OPERATION, request).await?;
        let all = answer.attributes.unwrap_or_default();
        let number = |name| all.get(&name).and_then(|text: &String| text.parse().ok()).unwrap_or(0);
        Ok(Attributes {
            waiting: number(QueueAttributeName::ApproximateNumberOfMessages),
            in_flight: number(QueueAttributeName::ApproximateNumberOfMessagesNotVisible),
            has_dead_letters: all.contains_key(&QueueAttributeName::RedrivePolicy),
        })
    }
}

/// The server in the address of a queue.
#[must_use]
pub fn server_of(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    url[host..].find('/').map_or(url, |at| &url[..host + at])
}

/// The region in the address of a queue, where AWS serves it.
fn region_of(url: &str) -> Option<&str> {
    let host = url.strip_prefix("https://")?.split('/').next()?;
    let rest = host.strip_prefix("sqs.")?;
    rest.strip_suffix(".amazonaws.com").or_else(|| rest.strip_suffix(".amazonaws.com.cn"))
}

/// Messages that were received and not deleted, by their handles: as many as there are places.
#[derive(Debug, Default)]
struct Holding(Mutex<HashMap<String, Weak<Held>>>);

impl Holding {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Weak<Held>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Follows a queue: gives its notices on, deletes what is done, and keeps what is not done hidden.
#[derive(Debug)]
pub struct Feed {
    queue: Queue,
    metrics: Arc<Metrics>,
    held: Arc<Holding>,
    places: Arc<Semaphore>,
    done: mpsc::Sender<String>,
    told_off: mpsc::Receiver<String>,
}

impl Feed {
    /// Of this queue.
    #[must_use]
    pub fn new(queue: Queue, metrics: Arc<Metrics>) -> Self {
        // Each message that is held says once that it is done: there is always room.
        let (done, told_off) = mpsc::channel(HELD_MAX);
        let places = Arc::new(Semaphore::new(HELD_MAX));
        Self { queue, metrics, held: Arc::default(), places, done, told_off }
    }

    /// Receives until `stop`; deletes and extends until `end`, when everybody who had notices is gone, and then lets go of what
    /// is left. `read` reads a message; `failing` is told what does not work.
    pub async fn run(
        self,
        read: impl Fn(&str) -> Result<Told, NotANotice> + Send + 'static,
        notices: mpsc::Sender<Notice>,
        failing: impl Fn(Option<&QueueError>) + Send + Sync + 'static,
        stop: CancellationToken,
        end: CancellationToken,
    ) {
        let Self { queue, metrics, held, places, done, told_off } = self;
        let minder = Minder {
            queue: queue.clone(),
            metrics: Arc::clone(&metrics),
            held: Arc::clone(&held),
            calls: TaskTracker::new(),
            extending: TaskTracker::new(),
        };
        let minding = tokio::spawn(minder.run(told_off, end));
        let receiving = async {
            loop {
                let Ok(mut room) = Arc::clone(&places).acquire_many_owned(BATCH).await else { return };
                let messages = match queue.receive().await {
                    Ok(messages) => {
                        failing(None);
                        messages
                    }
                    Err(error) => {
                        tracing::warn!(event = "queue.not_received", %error);
                        failing(Some(&error));
                        tokio::time::sleep(RETRY).await;
                        continue;
                    }
                };
                for message in messages {
                    let Some(place) = room.split(1) else { break };
                    metrics.bucket.message("received");
                    match read(&message.body) {
                        Ok(Told::Bundles(names)) => {
                            let (one, receipts) =
                                Receipt::of(message.handle, names.len(), done.clone(), place);
                            held.lock().insert(one.handle().to_owned(), Arc::downgrade(&one));
                            drop(one);
                            for (name, receipt) in names.into_iter().zip(receipts) {
                                let notice = Notice { name, receipt: Some(receipt) };
                                if notices.send(notice).await.is_err() {
                                    return;
                                }
                            }
                        }
                        Ok(Told::Test) => {
                            let _ = done.try_send(message.handle);
                        }
                        Err(why) => {
                            metrics.bucket.message("foreign");
                            tracing::warn!(
                                event = "queue.foreign_message", %why, receptions = message.receptions,
                                "it is left for the dead-letter queue"
                            );
                        }
                    }
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = receiving => {}
        }
        drop((notices, done));
        // It ends with `end`.
        let _ = minding.await;
    }
}

/// Deletes what is done, and keeps hidden what is not.
struct Minder {
    queue: Queue,
    metrics: Arc<Metrics>,
    held: Arc<Holding>,
    /// Deletions, and what is let go of.
    calls: TaskTracker,
    extending: TaskTracker,
}

impl Minder {
    async fn run(self, mut told_off: mpsc::Receiver<String>, end: CancellationToken) {
        let visibility = self.queue.visibility;
        let mut extend = tokio::time::interval(visibility / 3);
        extend.tick().await;
        loop {
            tokio::select! {
                biased;
                done = told_off.recv() => match done {
                    Some(handle) => self.delete(handle),
                    None => break,
                },
                () = end.cancelled() => break,
                _ = extend.tick() => for handle in self.worked_on() {
                    self.extending.spawn(self.hide(handle, visibility));
                },
            }
        }
        while let Ok(handle) = told_off.try_recv() {
            self.delete(handle);
        }
        // One that arrives behind the letting go would keep a message from everybody for as long as it says.
        self.extending.close();
        self.extending.wait().await;
        // Whoever had a part in these is gone.
        let left: Vec<String> = self.held.lock().drain().map(|(handle, _)| handle).collect();
        for handle in left {
            self.calls.spawn(self.hide(handle, Duration::ZERO));
        }
        self.calls.close();
        self.calls.wait().await;
    }

    /// Messages of which somebody has a part still. What was let go is not kept from others any longer than it is.
    fn worked_on(&self) -> Vec<String> {
        let mut held = self.held.lock();
        held.retain(|_, one| one.strong_count() > 0);
        held.keys().cloned().collect()
    }

    fn delete(&self, handle: String) {
        self.held.lock().remove(&handle);
        let (queue, metrics) = (self.queue.clone(), Arc::clone(&self.metrics));
        self.calls.spawn(async move {
            for attempt in 1..=DELETE_TRIES {
                match queue.delete(&handle).await {
                    Ok(()) => return metrics.bucket.message("deleted"),
                    Err(error) if attempt == DELETE_TRIES || error.fault == QueueFault::Over => {
                        metrics.bucket.message("not_deleted");
                        tracing::warn!(event = "queue.not_deleted", %error, "its bundle is done; it comes again and is found to be");
                        return;
                    }
                    Err(_) => tokio::time::sleep(RETRY).await,
                }
            }
        });
    }

    fn hide(&self, handle: String, hidden: Duration) -> impl Future<Output = ()> + Send + use<> {
        let (queue, metrics, held) = (self.queue.clone(), Arc::clone(&self.metrics), Arc::clone(&self.held));
        async move {
            match queue.hide(&handle, hidden).await {
                Ok(()) => metrics.bucket.message(if hidden.is_zero() { "let_go" } else { "extended" }),
                Err(error) => {
                    metrics.bucket.message("not_extended");
                    tracing::warn!(event = "queue.not_extended", %error, "somebody else may take its bundle up: that is harmless");
                    // It is not ours any more, or has been hidden for as long as the service allows: half a day.
                    if error.fault == QueueFault::Over {
                        held.lock().remove(&handle);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_region_is_read_where_the_address_has_one() {
        assert_eq!(region_of("https://sqs.eu-central-1.amazonaws.com/1111/q"), Some("eu-central-1"));
        assert_eq!(region_of("https://sqs.cn-north-1.amazonaws.com.cn/1111/q"), Some("cn-north-1"));
        assert_eq!(region_of("http://127.0.0.1:9324/1111/q"), None);
    }

    #[test]
    fn the_server_is_the_one_that_the_address_names() {
        for (url, server) in [
            ("https://sqs.eu-central-1.amazonaws.com/1111/q", "https://sqs.eu-central-1.amazonaws.com"),
            ("http://127.0.0.1:9324/1111/q", "http://127.0.0.1:9324"),
            (
                "https://vpce-1.sqs.eu-central-1.vpce.amazonaws.com",
                "https://vpce-1.sqs.eu-central-1.vpce.amazonaws.com",
            ),
        ] {
            assert_eq!(server_of(url), server);
        }
    }

    #[test]
    fn codes_are_told_apart_in_either_protocol() {
        for (code, fault) in [
            ("com.amazonaws.sqs#QueueDoesNotExist", QueueFault::NotFound),
            ("AWS.SimpleQueueService.NonExistentQueue", QueueFault::NotFound),
            ("ReceiptHandleIsInvalid", QueueFault::Over),
            ("AccessDeniedException", QueueFault::Denied),
            ("RequestThrottled", QueueFault::Unreachable),
        ] {
            assert_eq!(QueueError::fault_of(code), fault, "{code}");
        }
    }
}

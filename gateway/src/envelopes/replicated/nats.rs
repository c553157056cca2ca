//! JetStream as the engine's broker. This file alone talks to async-nats.
//!
//! Reads of single messages go to whichever replica answers: a message never changes, and whoever is behind has not got it yet. A server
//! says in the same words that it has no such message and that its disk does not give it: that one is missing is believed when the
//! leader says so and everybody else does ([`super::owning`]).
//! Everything else goes to the stream's leader. A leader that has been cut off and does not know it yet can answer a read with the
//! past; it can append nothing, and nothing here is decided by a read alone.

use std::fmt;
use std::future::IntoFuture as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::jetstream::context::{GetStreamErrorKind, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{
    Config, DeleteMessageErrorKind, DirectGetErrorKind, Info, LastRawMessageErrorKind, Stream,
};
use async_nats::jetstream::{self, Context, Error as ApiError, ErrorCode};
use async_nats::{Client, ConnectOptions};
use bytes::Bytes;
use futures_util::FutureExt as _;
use pithead_hop::program::ProgramError;
use pithead_proto::errors::v1::ErrorReason;
use pithead_spool::Lane;

use super::broker::{Asked, Broker, Fault, KeptMessage, LogState, Value};
use super::settings::{self, Streams, Wanted};

/// How long a request waits for its answer. An election takes a few of these, and a lease has room for two.
const ANSWER: Duration = Duration::from_secs(2);
/// For so long the leader alone is asked for messages after a replica has not answered. Of a machine that is cut off without a word the other
/// servers take it, until they notice, that it answers, and pass one question in three on to it.
const LEADER_ALONE: Duration = Duration::from_secs(60);
/// How long a start waits for a server: those of a site that comes back from a power cut come up side by side.
pub(super) const START: Duration = Duration::from_secs(20);
/// After so long without an answer to anything another server is tried: the one in hand may be cut off from the others.
const DEAF: Duration = Duration::from_secs(3);
const CONNECTING: Duration = Duration::from_secs(3);

/// Where the servers are, and who we are there.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    /// URLs, or hosts with a port.
    pub(crate) servers: Vec<String>,
    /// A `.creds` file.
    pub(crate) credentials: Option<std::path::PathBuf>,
    /// PEM: the CA of the servers' certificates. With it, TLS is demanded.
    pub(crate) ca: Option<std::path::PathBuf>,
    /// What the connection is called on the servers' pages.
    pub(crate) name: String,
}

/// A site's streams.
pub(super) struct JetStream {
    client: Client,
    context: Context,
    names: Streams,
    lanes: [Stream<()>; Lane::ALL.len()],
    /// Whether any replica may be asked for a message.
    direct: [bool; Lane::ALL.len()],
    state: Stream<()>,
    refused: Stream<()>,
    max_payload: usize,
    began: Instant,
    /// When something was answered last, in milliseconds since `began`.
    answered_ms: AtomicU64,
    /// Until when the leader alone is asked for messages.
    leader_until_ms: AtomicU64,
}

fn unreachable(what: String) -> ProgramError {
    ProgramError::new(ErrorReason::PeerUnreachable, what)
        .affects("no envelope can be taken here")
        .todo("see that nats-server runs there, and that [spool.jetstream] names it")
}

async fn client(access: &Access, limit: Duration) -> Result<Client, ProgramError> {
    let mut options = ConnectOptions::new()
        .name(&access.name)
        .connection_timeout(CONNECTING)
        .request_timeout(Some(ANSWER))
        .ping_interval(Duration::from_secs(2))
        .reconnect_delay_callback(|attempts| {
            Duration::from_millis((100 * attempts.min(10)).try_into().unwrap_or(1_000))
        });
    if let Some(path) = &access.credentials {
        options = options.credentials_file(path).await.map_err(|error| {
            ProgramError::new(ErrorReason::ConfigUnreadable, format!("{}: {error}", path.display()))
                .todo("correct [spool.jetstream] credentials")
        })?;
    }
    if let Some(ca) = &access.ca {
        options = options.add_root_certificates(ca.clone()).require_tls(true);
    }
    let began = Instant::now();
    loop {
        match options.clone().connect(access.servers.clone()).await {
            Ok(client) => return Ok(client),
            Err(error) if began.elapsed() > limit => {
                return Err(unreachable(format!("{}: {}", access.servers.join(", "), with_cause(&error))));
            }
            Err(error) => tracing::warn!(event = "spool.broker_away", error = with_cause(&error)),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// What was said, and why.
fn with_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// A connection, and how the streams stand; they are made if they are not there and `create` says so.
pub(super) struct Found {
    client: Client,
    context: Context,
    /// The largest message that the server takes.
    pub(super) max_payload: usize,
    /// By name; none where there is no such stream.
    pub(super) streams: Vec<(String, Option<Box<Info>>)>,
}

impl Found {
    /// Of the streams that are there.
    pub(super) fn infos(&self) -> impl Iterator<Item = &Info> {
        self.streams.iter().filter_map(|(_, info)| info.as_deref())
    }
}

/// Looks at the servers, and at the streams that are there.
pub(super) async fn look(access: &Access, names: &Streams, limit: Duration) -> Result<Found, ProgramError> {
    let client = client(access, limit).await?;
    let mut context = jetstream::new(client.clone());
    context.set_timeout(ANSWER);
    let mut streams = Vec::new();
    for name in names.all() {
        streams.push((name.clone(), info(&context, &name, limit).await?));
    }
    let max_payload = client.max_payload();
    Ok(Found { client, context, max_payload, streams })
}

/// Waits for JetStream as long as for a server: a cluster that has just begun has no leader.
async fn info(context: &Context, name: &str, limit: Duration) -> Result<Option<Box<Info>>, ProgramError> {
    let began = Instant::now();
    loop {
        let error = match context.get_stream(name).await {
            Ok(stream) => return Ok(Some(Box::new(stream.cached_info().clone()))),
            Err(error) => error,
        };
        if let GetStreamErrorKind::JetStream(api) = error.kind()
            && api.error_code() == ErrorCode::STREAM_NOT_FOUND
        {
            return Ok(None);
        }
        if began.elapsed() > limit {
            return Err(unreachable(format!(
                "JetStream does not say how {name} stands: {}",
                with_cause(&error)
            )));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

impl JetStream {
    /// Makes the streams that are not there, and never changes one that is.
    pub(super) async fn open(found: Found, wanted: &Wanted) -> Result<Self, ProgramError> {
        let Found { client, context, max_payload, mut streams } = found;
        for (name, held) in &mut streams {
            if held.is_none() {
                *held = Some(Box::new(create(&context, wanted.config(name)).await?));
            }
        }
        let infos: Vec<Info> = streams.into_iter().filter_map(|(_, held)| held.map(|held| *held)).collect();
        settings::check(wanted, infos.iter(), max_payload)?;
        // One stream may take less than the server does.
        let largest = infos.iter().filter_map(|info| usize::try_from(info.config.max_message_size).ok());
        let max_payload = largest.filter(|largest| *largest > 0).fold(max_payload, usize::min);
        let direct = |lane: Lane| infos.get(lane.index()).is_some_and(|info| info.config.allow_direct);
        let direct = Lane::ALL.map(direct);
        let names = wanted.streams.clone();
        let handle = async |name: String| {
            context.get_stream_no_info(name).await.map_err(|error| unreachable(with_cause(&error)))
        };
        let lanes = [
            handle(names.lane(Lane::First)).await?,
            handle(names.lane(Lane::Second)).await?,
            handle(names.lane(Lane::Third)).await?,
        ];
        let state = handle(names.state()).await?;
        let refused = handle(names.refused()).await?;
        let (began, answered_ms, leader_until_ms) = (Instant::now(), AtomicU64::new(0), AtomicU64::new(0));
        Ok(Self {
            client,
            context,
            names,
            lanes,
            direct,
            state,
            refused,
            max_payload,
            began,
            answered_ms,
            leader_until_ms,
        })
    }

    fn since_began_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    fn answered(&self) {
        self.answered_ms.store(self.since_began_ms(), Ordering::Relaxed);
    }

    /// Nothing came. A server that is cut off from the others answers pings and nothing else.
    async fn unanswered(&self) {
        let (now, last) = (self.since_began_ms(), self.answered_ms.load(Ordering::Relaxed));
        if now.saturating_sub(last) > DEAF.as_millis() as u64 {
            // Once: whoever comes next counts from now.
            self.answered();
            tracing::warn!(event = "spool.broker_deaf", "trying another server");
            if let Err(error) = self.client.force_reconnect().await {
                tracing::debug!(event = "spool.broker_away", %error);
            }
        }
    }

    async fn of_leader(&self, lane: Lane, sequence: u64) -> Result<Option<Bytes>, Fault> {
        let answer = match self.lanes[lane.index()].get_raw_message(sequence).await {
            Ok(message) => Ok(Some(message.payload)),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(fault_of(&error)),
        };
        self.note(answer).await
    }

    /// From one of the replicas, which the servers draw.
    async fn of_replica(&self, lane: Lane, sequence: u64) -> Result<Option<Bytes>, Fault> {
        match self.lanes[lane.index()].direct_get(sequence).await {
            Ok(message) => {
                self.answered();
                Ok(Some(message.payload))
            }
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => {
                self.answered();
                Ok(None)
            }
            // It says nothing of the server in hand: that has passed the question on.
            Err(error) => Err(Fault::Unknown(with_cause(&error))),
        }
    }

    async fn state_of(&self, stream: &Stream<()>) -> Result<LogState, Fault> {
        let answer = match stream.get_info().await {
            Ok(info) => Ok(LogState {
                first: info.state.first_sequence,
                last: info.state.last_sequence,
                bytes: info.state.bytes,
                max_bytes: u64::try_from(info.config.max_bytes).ok().filter(|max| *max > 0),
            }),
            Err(error) => Err(fault_of(&error)),
        };
        self.note(answer).await
    }

    /// The newest message of a subject, from the stream's leader.
    async fn newest_of(&self, stream: &Stream<()>, subject: &str) -> Result<Option<Value>, Fault> {
        let answer = match stream.get_last_raw_message_by_subject(subject).await {
            Ok(message) => Ok(Some(Value { bytes: message.payload, revision: message.sequence })),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(fault_of(&error)),
        };
        self.note(answer).await
    }

    async fn note<T>(&self, answer: Result<T, Fault>) -> Result<T, Fault> {
        match &answer {
            Err(Fault::Unknown(_)) => self.unanswered().await,
            _ => self.answered(),
        }
        answer
    }

    async fn publish(&self, subject: String, message: PublishMessage) -> Result<u64, Fault> {
        let sent = async {
            match self.context.send_publish(subject, message).await {
                Ok(answer) => answer.into_future().await,
                Err(error) => Err(error),
            }
        };
        let answer = match sent.await {
            Ok(answer) => Ok(answer.sequence),
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => Err(Fault::Mismatch),
            Err(error) => Err(fault_of(&error)),
        };
        self.note(answer).await
    }
}

async fn create(context: &Context, config: Config) -> Result<Info, ProgramError> {
    let name = config.name.clone();
    let began = Instant::now();
    loop {
        // Of several gateways that start at once each asks for the same, which is no contradiction.
        match context.create_stream(config.clone()).await {
            Ok(stream) => {
                tracing::info!(event = "spool.stream_made", name, replicas = config.num_replicas);
                return Ok(stream.cached_info().clone());
            }
            Err(error) if began.elapsed() > START => {
                let what = format!("JetStream does not make the stream {name}: {}", with_cause(&error));
                return Err(ProgramError::new(ErrorReason::SpoolUnsafe, what)
                    .affects("no envelope can be taken here")
                    .todo("give JetStream room for it (max_file), and as many servers as [spool.jetstream] replicas"));
            }
            Err(error) => {
                tracing::warn!(event = "spool.stream_not_made", name, error = with_cause(&error));
            }
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// What an error of the server's says about what was asked for.
fn fault_of(error: &(dyn std::error::Error + 'static)) -> Fault {
    let api = error.source().and_then(|source| source.downcast_ref::<ApiError>());
    let words = with_cause(error);
    match api {
        Some(api) if is_full(api) => Fault::Full(words),
        _ => Fault::Unknown(words),
    }
}

/// Of a message that was to be removed. One server says it by its number, a cluster by the words of its store.
fn is_missing(error: &ApiError) -> bool {
    error.error_code() == ErrorCode::SEQUENCE_NOT_FOUND || error.to_string().contains("no message found")
}

/// The stream's own bound, or the account's. The first shares its number with failures of the disk, which say nothing.
fn is_full(error: &ApiError) -> bool {
    let words = error.to_string();
    match error.error_code() {
        ErrorCode::STREAM_STORE_FAILED => words.contains("maximum bytes exceeded"),
        ErrorCode::INSUFFICIENT_RESOURCES => true,
        _ => words.contains("resource limits exceeded") || words.contains("storage resources exceeded"),
    }
}

impl Broker for JetStream {
    fn append(&self, lane: Lane, expected: u64, message: Bytes) -> Asked<'_, u64> {
        async move {
            let message = PublishMessage::build()
                .payload(message)
                .expected_last_sequence(expected)
                .expected_stream(self.names.lane(lane));
            self.publish(self.names.lane_subject(lane), message).await
        }
        .boxed()
    }

    fn read(&self, lane: Lane, sequence: u64) -> Asked<'_, Option<Bytes>> {
        async move {
            if !self.direct[lane.index()]
                || self.since_began_ms() < self.leader_until_ms.load(Ordering::Relaxed)
            {
                return self.of_leader(lane, sequence).await;
            }
            let answer = self.of_replica(lane, sequence).await;
            if answer.is_err() {
                let until = self.since_began_ms() + LEADER_ALONE.as_millis() as u64;
                self.leader_until_ms.store(until, Ordering::Relaxed);
                return self.of_leader(lane, sequence).await;
            }
            answer
        }
        .boxed()
    }

    fn read_at_replica(&self, lane: Lane, sequence: u64) -> Asked<'_, Option<Bytes>> {
        async move {
            match self.direct[lane.index()] {
                true => self.of_replica(lane, sequence).await,
                // Nobody else answers, as the stream is set.
                false => self.of_leader(lane, sequence).await,
            }
        }
        .boxed()
    }

    fn read_at_leader(&self, lane: Lane, sequence: u64) -> Asked<'_, Option<Bytes>> {
        async move {
            let last = self.state(lane).await?.last;
            if last < sequence {
                // Cut off from the others, it may take itself for the leader for some seconds.
                return Err(Fault::Unknown(format!(
                    "the leader is at {last}, and has not got {sequence} yet"
                )));
            }
            self.of_leader(lane, sequence).await
        }
        .boxed()
    }

    fn state(&self, lane: Lane) -> Asked<'_, LogState> {
        async move { self.state_of(&self.lanes[lane.index()]).await }.boxed()
    }

    fn purge(&self, lane: Lane, sequence: u64) -> Asked<'_, ()> {
        async move {
            let purged = self.lanes[lane.index()].purge().sequence(sequence).await;
            self.note(purged.map(|_| ()).map_err(|error| fault_of(&error))).await
        }
        .boxed()
    }

    fn keep<'a>(&'a self, name: &'a str, expected: u64, message: Bytes) -> Asked<'a, u64> {
        async move {
            let message = PublishMessage::build()
                .payload(message)
                .expected_last_sequence(expected)
                .expected_stream(self.names.refused());
            self.publish(self.names.refused_subject(name), message).await
        }
        .boxed()
    }

    fn kept<'a>(&'a self, name: &'a str) -> Asked<'a, Option<Value>> {
        async move { self.newest_of(&self.refused, &self.names.refused_subject(name)).await }.boxed()
    }

    fn kept_from(&self, sequence: u64) -> Asked<'_, Option<KeptMessage>> {
        async move {
            let all = self.names.refused_subject(">");
            let answer = match self.refused.get_first_raw_message_by_subject(all, sequence.max(1)).await {
                Ok(message) => Ok(Some(KeptMessage {
                    name: self.names.refused_name(&message.subject),
                    sequence: message.sequence,
                    bytes: message.payload,
                })),
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
                Err(error) => Err(fault_of(&error)),
            };
            self.note(answer).await
        }
        .boxed()
    }

    fn let_go(&self, sequence: u64) -> Asked<'_, bool> {
        async move {
            let answer = match self.refused.delete_message(sequence).await {
                Ok(true) => Ok(true),
                Ok(false) => Err(Fault::Unknown("it was not removed".to_owned())),
                Err(error) => match error.kind() {
                    DeleteMessageErrorKind::JetStream(api) if is_missing(&api) => Ok(false),
                    _ => Err(Fault::Unknown(with_cause(&error))),
                },
            };
            self.note(answer).await
        }
        .boxed()
    }

    fn kept_state(&self) -> Asked<'_, LogState> {
        async move { self.state_of(&self.refused).await }.boxed()
    }

    fn get<'a>(&'a self, key: &'a str) -> Asked<'a, Option<Value>> {
        async move { self.newest_of(&self.state, &self.names.state_subject(key)).await }.boxed()
    }

    fn put<'a>(&'a self, key: &'a str, revision: u64, value: Bytes) -> Asked<'a, u64> {
        async move {
            let message = PublishMessage::build()
                .payload(value)
                .expected_last_subject_sequence(revision)
                .expected_stream(self.names.state());
            self.publish(self.names.state_subject(key), message).await
        }
        .boxed()
    }

    fn forget<'a>(&'a self, prefix: &'a str) -> Asked<'a, ()> {
        async move {
            let subject = self.names.state_subject(&format!("{prefix}.>"));
            let purged = self.state.purge().filter(subject).await;
            self.note(purged.map(|_| ()).map_err(|error| fault_of(&error))).await
        }
        .boxed()
    }

    fn message_bytes(&self) -> usize {
        self.max_payload
    }
}

impl fmt::Debug for JetStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JetStream").field("state", &self.names.state()).finish_non_exhaustive()
    }
}

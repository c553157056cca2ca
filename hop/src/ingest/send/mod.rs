//! The sending half of the contract: one `Append` call, driven by its owner.
//!
//! ```text
//! let mut sender = Sender::open(connection, &options, lines).await?;
//! loop {
//!     while let Some(envelope) = next_if(|envelope| sender.room_for(envelope.len()).is_ok()) {
//!         sender.send(token, envelope.bytes, hops)?;
//!     }
//!     match sender.answers().await {
//!         Ok(answers) => ...             // each token once, in order
//!         Err(error) => {                // the call is over
//!             let again = sender.take_unanswered();
//!             break;
//!         }
//!     }
//! }
//! ```
//!
//! [`Sender::answers`] is what moves everything, sending as well; it is cancel safe, so it stands in a `select!` beside
//! whatever brings new envelopes.

mod flight;
mod upload;

use std::time::Duration;

use bytes::Bytes;
use pithead_proto::errors::v1::ErrorReason;
use pithead_proto::ingest::v1 as wire;
use pithead_proto::ingest::v1::append_request::Message as Ask;
use pithead_proto::ingest::v1::append_response::Message as Told;
use pithead_proto::ingest::v1::ingest_service_client::IngestServiceClient;
use pithead_proto::keys::v1::TrustVersion;
use pithead_sealing::{Run, Seq, StreamName};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codegen::StdError;
use tonic::{Status, Streaming};

pub use flight::{Answer, Answered, BATCH_BYTES, BATCH_ENVELOPES, Flight, NotTaken, ProtocolError, Window};

pub use upload::{
    Pace, PlainFile, PlainFileError, UPLOAD_CHUNK, UploadError, UploadProgress, UploadSource, send_upload,
};

use crate::identity::Assurance;
use crate::status::Remote;

/// Batches between us and HTTP/2: one on its way, one ready.
const BATCHES_WAITING: usize = 2;

/// How a call is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendOptions {
    /// Name and version of the program, for the far end's log: `pithead-device/0.1.0`.
    pub client: String,
    /// What we are willing to have under way; the far end narrows it.
    pub window: Window,
    /// How long the far end may take to say Welcome.
    pub welcome_timeout: Duration,
}

impl SendOptions {
    /// 8 MiB and 4,096 envelopes unanswered, envelopes up to 1 MiB, 10 s for the Welcome.
    pub fn new(client: impl Into<String>) -> Self {
        Self {
            client: client.into(),
            window: Window { bytes: 8 << 20, envelopes: 4_096, envelope_bytes: 1 << 20 },
            welcome_timeout: Duration::from_secs(10),
        }
    }
}

/// A line that is about to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineToSend {
    /// The stream.
    pub stream: StreamName,
    /// The run.
    pub run: Run,
    /// The lowest number without an acknowledgement.
    pub first_unacked: Seq,
}

/// A line as the far end knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineHeld {
    /// The stream.
    pub stream: StreamName,
    /// The run.
    pub run: Run,
    /// Everything up to here need not be resent; 0 if nothing. Its word alone: whoever keeps a spool reclaims nothing by
    /// it.
    pub high_water: u64,
}

/// What the far end said on opening.
#[derive(Debug, Clone, PartialEq)]
pub struct Welcomed {
    /// What an acknowledgement means.
    pub durability: wire::Durability,
    /// Its clock, in microseconds since 1970; for display, never evidence.
    pub time_us: u64,
    /// How it knows us.
    pub assurance: Assurance,
    /// Of the lines that we named, those that it knows, in our order.
    pub lines: Vec<LineHeld>,
}

/// Why a call is over, or never began.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The far end's refusal, or the connection's end.
    #[error(transparent)]
    Remote(#[from] Remote),
    /// The far end does not keep the contract.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The far end did not say Welcome in time.
    #[error("the other end did not say Welcome within {0:?}")]
    WelcomeTimeout(Duration),
    /// The far end ended the call in good order; what has no answer goes out again on another.
    #[error("the other end ended the call")]
    Closed,
}

impl SendError {
    /// True if another call, later, may succeed.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Remote(remote) => remote.is_retryable(),
            Self::WelcomeTimeout(_) | Self::Closed => true,
            Self::Protocol(_) => false,
        }
    }

    /// How long the far end asks us to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Remote(remote) => remote.retry_after,
            Self::WelcomeTimeout(_) | Self::Closed | Self::Protocol(_) => None,
        }
    }

    /// The registry's reason, where there is one.
    pub fn reason(&self) -> Option<ErrorReason> {
        match self {
            Self::Remote(remote) => remote.reason,
            Self::WelcomeTimeout(_) => Some(ErrorReason::PeerUnreachable),
            Self::Closed | Self::Protocol(_) => None,
        }
    }
}

impl From<Status> for SendError {
    fn from(status: Status) -> Self {
        Self::Remote(Remote::from_status(&status))
    }
}

/// One `Append` call. `T` is what the caller knows an envelope by.
///
/// Dropping it ends the call; what had no answer may or may not be stored, and goes out again.
#[derive(Debug)]
pub struct Sender<T> {
    flight: Flight<T>,
    welcomed: Welcomed,
    trust: Option<TrustVersion>,
    requests: Option<mpsc::Sender<wire::AppendRequest>>,
    responses: Streaming<wire::AppendResponse>,
    finishing: bool,
    over: Option<SendError>,
}

impl<T> Sender<T> {
    /// Opens a call on a connection ([`crate::connect`]): Hello, Welcome. A relay names no lines.
    ///
    /// # Errors
    /// [`SendError`]; nothing was sent.
    pub async fn open<S>(service: S, options: &SendOptions, lines: Vec<LineToSend>) -> Result<Self, SendError>
    where
        S: GrpcService<Body>,
        S::Error: Into<StdError>,
        S::ResponseBody: hyper::body::Body<Data = Bytes> + Send + 'static,
        <S::ResponseBody as hyper::body::Body>::Error: Into<StdError> + Send,
    {
        tokio::time::timeout(options.welcome_timeout, Self::begin(service, options, lines))
            .await
            .unwrap_or(Err(SendError::WelcomeTimeout(options.welcome_timeout)))
    }

    async fn begin<S>(service: S, options: &SendOptions, lines: Vec<LineToSend>) -> Result<Self, SendError>
    where
        S: GrpcService<Body>,
        S::Error: Into<StdError>,
        S::ResponseBody: hyper::body::Body<Data = Bytes> + Send + 'static,
        <S::ResponseBody as hyper::body::Body>::Error: Into<StdError> + Send,
    {
        let (requests, stream) = mpsc::channel(BATCHES_WAITING);
        let hello = wire::Hello {
            client: options.client.clone(),
            features: Vec::new(),
            window_bytes: options.window.bytes,
            lines: lines.iter().map(LineToSend::to_wire).collect(),
        };
        let hello = wire::AppendRequest { message: Some(Ask::Hello(hello)) };
        requests.try_send(hello).map_err(|_| SendError::Closed)?;
        let mut responses =
            IngestServiceClient::new(service).append(ReceiverStream::new(stream)).await?.into_inner();
        let Some(response) = responses.message().await? else { return Err(SendError::Closed) };
        let Some(Told::Welcome(welcome)) = response.message else {
            return Err(ProtocolError::Welcome.into());
        };
        let durability = wire::Durability::try_from(welcome.durability)
            .ok()
            .filter(|durability| *durability != wire::Durability::Unspecified)
            .ok_or(ProtocolError::Durability)?;
        let request_bytes = welcome.limits.unwrap_or_default().request_bytes;
        Ok(Self {
            flight: Flight::new(options.window.narrowed(&welcome)?, durability)
                .within_requests_of(request_bytes),
            welcomed: Welcomed {
                durability,
                time_us: welcome.time_us,
                assurance: Assurance::from_wire(welcome.assurance),
                lines: held(&lines, &welcome.lines),
            },
            trust: response.trust,
            requests: Some(requests),
            responses,
            finishing: false,
            over: None,
        })
    }

    /// What the far end said on opening.
    pub fn welcomed(&self) -> &Welcomed {
        &self.welcomed
    }

    /// The statement in force at the far end, by its last answer.
    pub fn trust(&self) -> Option<&TrustVersion> {
        self.trust.as_ref()
    }

    /// The window in force on this call.
    pub fn window(&self) -> Window {
        self.flight.window()
    }

    /// How many envelopes have no answer yet.
    pub fn unanswered(&self) -> u64 {
        self.flight.unanswered()
    }

    /// Bytes of them.
    pub fn unanswered_bytes(&self) -> u64 {
        self.flight.unanswered_bytes()
    }

    /// Bytes of those that are in no batch yet: what is taken now goes out behind them.
    pub fn queued_bytes(&self) -> u64 {
        self.flight.queued_bytes()
    }

    /// Whether an envelope of this many bytes would be taken now.
    ///
    /// # Errors
    /// [`NotTaken`].
    pub fn room_for(&self, bytes: usize) -> Result<(), NotTaken> {
        self.flight.room_for(bytes as u64)
    }

    /// Takes an envelope. It goes out after everything taken before, when [`Sender::answers`] is polled.
    ///
    /// # Errors
    /// [`NotTaken`], with the token.
    pub fn send(&mut self, token: T, envelope: Bytes, hops: Vec<wire::Hop>) -> Result<(), (T, NotTaken)> {
        self.flight.take(token, envelope, hops)
    }

    /// Ranges that this device dropped by its own policy, as a hint for the gateway's screens.
    pub fn declare(&mut self, gaps: impl IntoIterator<Item = wire::Gap>) {
        self.flight.declare(gaps);
    }

    /// Sends what was taken, and waits for the next answers: each token once, in the order in which they were taken. Never
    /// empty. Pends for ever if nothing is unanswered and the far end is content.
    ///
    /// Cancel safe: nothing is lost if the future is dropped.
    ///
    /// # Errors
    /// [`SendError`]: the call is over, and [`Sender::take_unanswered`] says what goes out again. Asked again, it answers
    /// the same.
    pub async fn answers(&mut self) -> Result<Vec<Answered<T>>, SendError> {
        self.moved(None).await
    }

    /// As [`answers`](Self::answers), and returns without answers as soon as at most `low` bytes wait for a batch: for a
    /// caller who decides late what goes out next.
    ///
    /// Cancel safe, as that is.
    ///
    /// # Errors
    /// As [`answers`](Self::answers).
    pub async fn answers_or_room(&mut self, low: u64) -> Result<Vec<Answered<T>>, SendError> {
        self.moved(Some(low)).await
    }

    async fn moved(&mut self, low: Option<u64>) -> Result<Vec<Answered<T>>, SendError> {
        if let Some(error) = &self.over {
            return Err(error.clone());
        }
        match self.drive(low).await {
            Ok(answered) => Ok(answered),
            Err(error) => {
                // Drops our half of the call: the far end stops waiting for more.
                self.requests = None;
                self.over = Some(error.clone());
                Err(error)
            }
        }
    }

    async fn drive(&mut self, low: Option<u64>) -> Result<Vec<Answered<T>>, SendError> {
        loop {
            if low.is_some_and(|low| self.flight.queued_bytes() <= low) {
                return Ok(Vec::new());
            }
            if self.finishing && !self.flight.has_batch() {
                self.requests = None;
            }
            let Self { flight, requests, responses, .. } = self;
            let response = tokio::select! {
                response = responses.message() => response?,
                permit = room(requests.as_ref()), if flight.has_batch() => {
                    if let (Some(permit), Some(batch)) = (permit, flight.next_batch()) {
                        permit.send(wire::AppendRequest { message: Some(Ask::Batch(batch)) });
                    }
                    continue;
                }
            };
            let Some(response) = response else { return Err(SendError::Closed) };
            if response.trust.is_some() {
                self.trust = response.trust;
            }
            let answered = match response.message {
                Some(Told::Ack(ack)) => self.flight.acknowledged(ack)?,
                Some(Told::Welcome(_)) => return Err(ProtocolError::Welcome.into()),
                None => return Err(ProtocolError::Message.into()),
            };
            if !answered.is_empty() {
                return Ok(answered);
            }
        }
    }

    /// Envelopes that have no answer, in the order in which they were taken. The far end may hold some of them: the same
    /// bytes go out again.
    pub fn take_unanswered(&mut self) -> Vec<T> {
        self.flight.take_unanswered()
    }

    /// Says that nothing more comes. What was taken still goes out and is answered by [`Sender::answers`], which then ends
    /// with [`SendError::Closed`].
    pub fn finish(&mut self) {
        self.finishing = true;
    }
}

/// A place for one batch. Never resolves once the call's request half is over: its response half says why.
async fn room(
    requests: Option<&mpsc::Sender<wire::AppendRequest>>,
) -> Option<mpsc::Permit<'_, wire::AppendRequest>> {
    match requests?.reserve().await {
        Ok(permit) => Some(permit),
        Err(_) => std::future::pending().await,
    }
}

impl LineToSend {
    fn to_wire(&self) -> wire::hello::Line {
        wire::hello::Line {
            stream: self.stream.to_string(),
            run: self.run.get(),
            first_unacked: self.first_unacked.get(),
        }
    }
}

/// What the far end holds of the lines that we named; what it says of others is not listened to.
fn held(asked: &[LineToSend], told: &[wire::welcome::Line]) -> Vec<LineHeld> {
    let known = |line: &LineToSend| {
        told.iter().find(|told| told.stream == line.stream.as_str() && told.run == line.run.get())
    };
    asked
        .iter()
        .filter_map(|line| {
            let high_water = known(line)?.high_water;
            Some(LineHeld { stream: line.stream.clone(), run: line.run, high_water })
        })
        .collect()
}

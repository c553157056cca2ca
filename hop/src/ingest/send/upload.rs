//! The sending half for a large envelope: opened, sent from where it broke off, and answered.
//!
//! One call is one attempt. After an error the caller comes back with the same source, later or to another far end: what is
//! on disk there is not sent again. Sealed bytes are what is resumed, never a seal.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use pithead_proto::errors::v1::ErrorReason;
use pithead_proto::ingest::v1 as wire;
use pithead_proto::ingest::v1::ingest_service_client::IngestServiceClient;
use pithead_sealing::envelope::{FormatError, Header, HeaderReader};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codegen::StdError;

use super::{Answer, ProtocolError, SendError};
use crate::ingest::upload::SealedFile;
use crate::status::{Remote, printable};

/// Bytes in one request: what shares a pipe with small envelopes goes in small pieces.
pub const UPLOAD_CHUNK: usize = 256 << 10;
/// Requests between us and HTTP/2: one on its way, one ready.
const REQUESTS_WAITING: usize = 2;
/// A far end that says nothing for so long, while everything is with it, is given up; it says every 10 s that it still works.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// Where a large envelope's bytes come from. Its calls block, and are made off the async threads.
pub trait UploadSource: Send + Sync + 'static {
    /// The envelope's header, with its tag.
    fn header(&self) -> &Header;
    /// Bytes of the whole envelope.
    fn total(&self) -> u64;
    /// Bytes from `offset` on, at most `max` and not none before the end.
    ///
    /// # Errors
    /// What the disk says; `InvalidData` where it has changed the bytes.
    fn read(&self, offset: u64, max: usize) -> io::Result<Bytes>;
}

impl UploadSource for SealedFile {
    fn header(&self) -> &Header {
        Self::header(self)
    }

    fn total(&self) -> u64 {
        Self::total(self)
    }

    fn read(&self, offset: u64, max: usize) -> io::Result<Bytes> {
        self.read_from(offset, max).map_err(io::Error::from)
    }
}

/// An envelope in a plain file, such as a device keeps and an export holds.
#[derive(Debug)]
pub struct PlainFile {
    file: File,
    header: Header,
    total: u64,
}

/// Why a file is not an envelope that could be sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlainFileError {
    /// What the disk says.
    #[error(transparent)]
    Disk(#[from] io::Error),
    /// It does not begin with an envelope's header, or has a length that no envelope with it has.
    #[error("no sealed envelope: {0}")]
    Format(#[from] FormatError),
}

impl PlainFile {
    /// Reads the header of an envelope in a file. Blocks.
    ///
    /// # Errors
    /// [`PlainFileError`].
    pub fn open(file: File) -> Result<Self, PlainFileError> {
        let total = file.metadata()?.len();
        let mut reader = HeaderReader::new();
        let (mut at, mut buffer) = (0, vec![0; 16 << 10]);
        loop {
            let want = buffer.len().min(usize::try_from(total - at).unwrap_or(usize::MAX));
            if want == 0 {
                return Err(FormatError::Truncated.into());
            }
            let chunk = &mut buffer[..want];
            file.read_exact_at(chunk, at)?;
            at += want as u64;
            if let Some(header) = reader.push(&mut &*chunk)? {
                header.sizes().of_total(total)?;
                return Ok(Self { file, header, total });
            }
        }
    }
}

impl UploadSource for PlainFile {
    fn header(&self) -> &Header {
        &self.header
    }

    fn total(&self) -> u64 {
        self.total
    }

    fn read(&self, offset: u64, max: usize) -> io::Result<Bytes> {
        let length = usize::try_from(self.total.saturating_sub(offset)).unwrap_or(usize::MAX).min(max);
        let mut chunk = vec![0; length];
        self.file.read_exact_at(&mut chunk, offset)?;
        Ok(chunk.into())
    }
}

/// Why an attempt ended without an answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UploadError {
    /// The source does not give its bytes.
    #[error("reading the envelope: {0}")]
    Source(#[source] io::Error),
    /// The far end's refusal, or the connection's end.
    #[error(transparent)]
    Send(#[from] SendError),
    /// It said nothing while it had everything.
    #[error("the other end said nothing for {SILENCE_MAX:?}")]
    Silent,
}

impl UploadError {
    /// True if another attempt, later, may succeed.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Source(_) => false,
            Self::Silent => true,
            // To be opened again, from what is on disk there.
            Self::Send(error) => {
                error.is_retryable()
                    || matches!(
                        error.reason(),
                        Some(
                            ErrorReason::UploadUnknown
                                | ErrorReason::UploadOffset
                                | ErrorReason::UploadFenced
                        )
                    )
            }
        }
    }

    /// How long the far end asks us to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Send(error) => error.retry_after(),
            Self::Source(_) | Self::Silent => None,
        }
    }

    /// The registry's reason, where there is one.
    pub fn reason(&self) -> Option<ErrorReason> {
        match self {
            Self::Send(error) => error.reason(),
            Self::Source(_) => Some(ErrorReason::DiskFailed),
            Self::Silent => Some(ErrorReason::PeerUnreachable),
        }
    }
}

impl From<tonic::Status> for UploadError {
    fn from(status: tonic::Status) -> Self {
        Self::Send(status.into())
    }
}

/// How far an upload has come, in bytes of its envelope.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UploadProgress {
    /// Given to the connection.
    pub sent: u64,
    /// On the far end's disk, by its word.
    pub persisted: u64,
}

/// Asked before so many bytes are sent; they are sent when it resolves. What shares a budget of bytes shares this.
pub type Pace = Arc<dyn Fn(u64) -> BoxFuture<'static, ()> + Send + Sync>;

/// Sends a large envelope from where the far end has it on disk, and gives its answer. `told` hears how far it is.
///
/// Dropping the future ends the attempt; nothing that is on disk there is lost.
///
/// # Errors
/// [`UploadError`]; the same source goes out again.
pub async fn send_upload<S>(
    service: S,
    source: Arc<dyn UploadSource>,
    hops: Vec<wire::Hop>,
    pace: Option<Pace>,
    mut told: impl FnMut(UploadProgress) + Send,
) -> Result<Answer, UploadError>
where
    S: GrpcService<Body> + Clone + Send,
    S::Error: Into<StdError>,
    S::Future: Send,
    S::ResponseBody: hyper::body::Body<Data = Bytes> + Send + 'static,
    <S::ResponseBody as hyper::body::Body>::Error: Into<StdError> + Send,
{
    let mut client = IngestServiceClient::new(service);
    let total = source.total();
    let header = source.header().wire().clone();
    let request = wire::OpenUploadRequest { header, total_size: total, hops };
    let opened = match soon(client.open_upload(request)).await? {
        Ok(opened) => opened.into_inner(),
        Err(status) => return refused_at_the_door(&status),
    };
    let mut progress = UploadProgress { sent: opened.persisted_size, persisted: opened.persisted_size };
    match opened.state() {
        wire::UploadState::Complete => return Ok(Answer::Duplicate { unverified: false }),
        wire::UploadState::Refused => {
            let request = wire::GetUploadRequest { upload: opened.upload };
            let refusal = soon(client.get_upload(request)).await??.into_inner().refusal.unwrap_or_default();
            return Ok(refused(refusal));
        }
        wire::UploadState::Open if progress.persisted <= total => told(progress),
        wire::UploadState::Open | wire::UploadState::Unspecified => {
            return Err(SendError::from(ProtocolError::Message).into());
        }
    }

    let (requests, stream) = mpsc::channel(REQUESTS_WAITING);
    let mut ended = false;
    let mut responses = soon(client.write_upload(ReceiverStream::new(stream))).await??.into_inner();
    // The first request names the upload; one without bytes asks what became of a whole one.
    let mut first = Some(opened.upload);
    // Paid for and not sent yet: an answer that comes in between must not cost the budget twice.
    let mut paid = false;
    loop {
        let next = async {
            if ended || (first.is_none() && progress.sent == total) {
                return std::future::pending().await;
            }
            let room = UPLOAD_CHUNK.min(usize::try_from(total - progress.sent).unwrap_or(usize::MAX));
            if let Some(pace) = pace.as_ref().filter(|_| !paid) {
                pace(room as u64).await;
                paid = true;
            }
            requests.reserve().await.map(|permit| (permit, room)).ok()
        };
        tokio::select! {
            biased;
            response = tokio::time::timeout(SILENCE_MAX, responses.message()) => {
                let response = match response {
                    Ok(response) => response?,
                    // Only while nothing is left to send: a slow pipe is no silence.
                    Err(_) if progress.sent < total => continue,
                    Err(_) => return Err(UploadError::Silent),
                };
                let Some(response) = response else { return Err(SendError::Closed.into()) };
                match response.state() {
                    wire::UploadState::Complete => return Ok(Answer::Stored),
                    wire::UploadState::Refused => return Ok(refused(response.refusal.unwrap_or_default())),
                    // Its word moves nothing but a bar, and still: more than was sent is no far end to believe.
                    wire::UploadState::Open if response.persisted_size <= progress.sent => {
                        progress.persisted = progress.persisted.max(response.persisted_size);
                        told(progress);
                    }
                    wire::UploadState::Open | wire::UploadState::Unspecified => {
                        return Err(SendError::from(ProtocolError::Message).into());
                    }
                }
            }
            next = next => {
                // The far end has ended the call: its answer says why.
                let Some((permit, room)) = next else {
                    ended = true;
                    continue;
                };
                let (reading, offset) = (Arc::clone(&source), progress.sent);
                let data = tokio::task::spawn_blocking(move || reading.read(offset, room))
                    .await
                    .unwrap_or_else(|error| Err(io::Error::other(error)))
                    .map_err(UploadError::Source)?;
                if data.is_empty() && progress.sent < total {
                    return Err(UploadError::Source(io::ErrorKind::UnexpectedEof.into()));
                }
                progress.sent += data.len() as u64;
                paid = false;
                permit.send(wire::WriteUploadRequest {
                    upload: first.take().unwrap_or_default(),
                    offset,
                    crc32c: crc32c::crc32c(&data),
                    data,
                });
                told(progress);
            }
        }
    }
}

/// An answer that comes in time: a far end may be alive and still never say anything.
async fn soon<T>(answer: impl Future<Output = T>) -> Result<T, UploadError> {
    tokio::time::timeout(SILENCE_MAX, answer).await.map_err(|_| UploadError::Silent)
}

fn refused(refusal: wire::Refusal) -> Answer {
    let reason =
        ErrorReason::try_from(refusal.reason).ok().filter(|reason| *reason != ErrorReason::Unspecified);
    // The upload's refusal carries no facts: whether a conflict is kept was said at the door.
    match reason {
        Some(ErrorReason::Conflict) => Answer::Conflict { kept: false },
        reason => Answer::Refused { reason, detail: printable(&refusal.detail) },
    }
}

/// What the far end will never take is an answer; everything else is an attempt that failed.
fn refused_at_the_door(status: &tonic::Status) -> Result<Answer, UploadError> {
    let remote = Remote::from_status(status);
    match remote.reason {
        Some(ErrorReason::Conflict) => {
            Ok(Answer::Conflict { kept: remote.metadata.get("kept").is_some_and(|kept| kept == "true") })
        }
        Some(
            ErrorReason::RequestInvalid
            | ErrorReason::RoleNotAllowed
            | ErrorReason::CertificateRequired
            | ErrorReason::UploadsNotSupported,
        )
        | None => Err(SendError::from(remote).into()),
        Some(_) if remote.is_retryable() || remote.is_connection() => Err(SendError::from(remote).into()),
        reason => Ok(Answer::Refused { reason, detail: remote.detail }),
    }
}

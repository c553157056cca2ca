//! A large file on its way, beside the call.
//!
//! It is tried until it has an answer, for as long as the connection lives; the next one goes on where the gateway has it on
//! disk. What does not answer is told while it lasts ([`Progress::uploads`]), whether or not a retry may cure it: nothing is
//! tried for ever in silence. A gateway that takes no large files at all has given its answer: the file is set aside like
//! anything else that no gateway takes.

use std::{io, path::PathBuf, sync::Arc};

use pithead_hop::{
    backoff::{self, Backoff, Policy},
    connect::Connection,
    ingest::{
        Answer, SendError,
        send::{PlainFile, PlainFileError, UploadError, UploadProgress, UploadSource as _, send_upload},
    },
};
use pithead_proto::errors::v1::ErrorReason;
use tokio::sync::watch;

use super::{Progress, Trouble, blocking};
use crate::{
    client::{Desk, FileState},
    outbox::{Outbox, Waiting},
};

/// How often the disk may refuse a file's bytes in a row before they are taken for damaged: a sector that does not read five
/// times will not read, and everything behind the file waits for it.
const READS_TRIED: u32 = 5;

/// A lane, what was on its way there, and how that ended.
pub(super) type Uploaded = (usize, Waiting, UploadEnd);

pub(super) enum UploadEnd {
    Answered(Answer),
    /// The file is not what it was.
    Damaged(String),
}

/// What an upload needs. It outlives no call, and borrows nothing of it.
pub(super) struct Upload {
    pub(super) connection: Connection,
    pub(super) path: PathBuf,
    pub(super) lane: usize,
    pub(super) waiting: Waiting,
    pub(super) desk: Desk,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) outbox: Arc<Outbox>,
    pub(super) retry: Policy,
}

/// How an attempt failed.
enum Failed {
    Damaged(String),
    /// No file descriptor, no right, a disk that stutters: the file is there.
    NotOpened(io::Error),
    /// The disk does not give the bytes at the moment.
    Unread(io::Error),
    Upload(UploadError),
    /// The runtime is going down.
    Closed,
}

impl Upload {
    /// Sends the file until it has its answer.
    pub(super) async fn run(self) -> Uploaded {
        let mut backoff = Backoff::new(self.retry);
        let mut unread = 0;
        let end = loop {
            let failed = match self.attempt(&mut backoff, &mut unread).await {
                Ok(answer) => break UploadEnd::Answered(answer),
                Err(failed) => failed,
            };
            let (trouble, floor) = match failed {
                Failed::Damaged(detail) => break UploadEnd::Damaged(detail),
                Failed::Unread(error) if unread + 1 >= READS_TRIED => {
                    break UploadEnd::Damaged(error.to_string());
                }
                Failed::NotOpened(error) => {
                    (Some(Trouble::of(&error, true, Some(ErrorReason::DiskFailed))), None)
                }
                Failed::Unread(error) => {
                    unread += 1;
                    (Some(Trouble::of(&error, true, Some(ErrorReason::DiskFailed))), None)
                }
                // The call on the same connection ends by it, and says so.
                Failed::Upload(UploadError::Send(SendError::Remote(remote))) if remote.is_connection() => {
                    (None, remote.retry_after)
                }
                Failed::Upload(error) if error.reason() == Some(ErrorReason::UploadsNotSupported) => {
                    let detail = "this gateway takes no large files".to_owned();
                    break UploadEnd::Answered(Answer::Refused { reason: error.reason(), detail });
                }
                Failed::Upload(error) => {
                    let floor = error.retry_after();
                    (Some(Trouble::of(&error, error.is_retryable(), error.reason())), floor)
                }
                Failed::Closed => return std::future::pending().await,
            };
            let delay = backoff.next_delay(backoff::random(), floor);
            if let Some(trouble) = trouble {
                self.tell(Trouble { retry_after: Some(delay), ..trouble });
            }
            tokio::time::sleep(delay).await;
        };
        self.untell();
        (self.lane, self.waiting, end)
    }

    async fn attempt(&self, backoff: &mut Backoff, unread: &mut u32) -> Result<Answer, Failed> {
        let path = self.path.clone();
        let opened =
            blocking(move || std::fs::File::open(path).map_err(Into::into).and_then(PlainFile::open));
        let source = match opened.await {
            Ok(Ok(source)) => Arc::new(source),
            Ok(Err(PlainFileError::Disk(error))) if is_damage(&error) => {
                return Err(Failed::Damaged(error.to_string()));
            }
            Ok(Err(PlainFileError::Disk(error))) => return Err(Failed::NotOpened(error)),
            Ok(Err(error)) => return Err(Failed::Damaged(error.to_string())),
            Err(_) => return Err(Failed::Closed),
        };
        let (identity, total) = (self.waiting.identity.clone(), source.total());
        let mut first = None;
        let told = |UploadProgress { persisted, .. }: UploadProgress| {
            if persisted > *first.get_or_insert(persisted) {
                // An attempt that brought something forward was a good one.
                backoff.reset();
                *unread = 0;
                self.untell();
            }
            self.desk
                .tell_file(&identity, FileState::Uploading { identity: identity.clone(), persisted, total });
        };
        match send_upload(self.connection.clone(), source, Vec::new(), None, told).await {
            Ok(answer) => Ok(answer),
            Err(UploadError::Source(error)) if is_damage(&error) => Err(Failed::Damaged(error.to_string())),
            Err(UploadError::Source(error)) => Err(Failed::Unread(error)),
            Err(error) => Err(Failed::Upload(error)),
        }
    }

    fn tell(&self, trouble: Trouble) {
        let (identity, reason) =
            (&self.waiting.identity, trouble.reason.map_or("unknown", ErrorReason::name));
        let (detail, retryable) = (&trouble.detail, trouble.retryable);
        if retryable {
            tracing::info!(event = "upload.again", %identity, reason, detail);
        } else {
            tracing::warn!(event = "upload.held_up", %identity, reason, detail);
        }
        self.progress.send_modify(|progress| {
            progress.uploads.insert(identity.stream.clone(), trouble);
        });
        // Another stream's file may go meanwhile: whoever hands over has to look again.
        self.outbox.rang();
    }

    fn untell(&self) {
        self.progress
            .send_if_modified(|progress| progress.uploads.remove(&self.waiting.identity.stream).is_some());
    }
}

fn is_damage(error: &io::Error) -> bool {
    use io::ErrorKind;
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof | ErrorKind::InvalidData)
}

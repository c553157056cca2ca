//! A large file on its way, beside the call.

use std::{path::PathBuf, sync::Arc};

use pithead_hop::{
    backoff::{self, Backoff},
    connect::Connection,
    ingest::{
        Answer,
        send::{PlainFile, PlainFileError, UploadError, UploadProgress, send_upload},
    },
};

use super::blocking;
use crate::{
    client::{Desk, FileState},
    outbox::Waiting,
};

pub(super) type Uploaded = (usize, Waiting, UploadEnd);

pub(super) enum UploadEnd {
    Answered(Answer),
    /// The file is not what it was.
    Damaged(String),
}

/// Sends a large file until it has its answer, for as long as the connection lives; on the next one it goes on.
pub(super) async fn upload(
    connection: Connection,
    path: PathBuf,
    lane: usize,
    waiting: Waiting,
    desk: Desk,
) -> Uploaded {
    let mut backoff = Backoff::new(backoff::Policy::default());
    loop {
        let opening = path.clone();
        let opened =
            blocking(move || std::fs::File::open(opening).map_err(Into::into).and_then(PlainFile::open))
                .await;
        let source = match opened {
            Ok(Ok(source)) => Arc::new(source),
            Ok(Err(error)) if is_damaged(&error) => {
                return (lane, waiting, UploadEnd::Damaged(error.to_string()));
            }
            Ok(Err(error)) => {
                // No file descriptor, no right, a disk that stutters: the file is there.
                tracing::warn!(event = "upload.not_opened", identity = %waiting.identity, %error);
                tokio::time::sleep(backoff.next_delay(backoff::random(), None)).await;
                continue;
            }
            Err(_) => return std::future::pending().await,
        };
        let total = pithead_hop::ingest::send::UploadSource::total(&*source);
        let identity = waiting.identity.clone();
        let tell = |progress: UploadProgress| {
            let state =
                FileState::Uploading { identity: identity.clone(), persisted: progress.persisted, total };
            desk.tell_file(&identity, state);
        };
        let floor = match send_upload(connection.clone(), source, Vec::new(), None, tell).await {
            Ok(answer) => return (lane, waiting, UploadEnd::Answered(answer)),
            Err(UploadError::Source(error)) if is_damage(&error) => {
                return (lane, waiting, UploadEnd::Damaged(error.to_string()));
            }
            Err(error) => {
                tracing::info!(event = "upload.again", identity = %waiting.identity, %error);
                error.retry_after()
            }
        };
        tokio::time::sleep(backoff.next_delay(backoff::random(), floor)).await;
    }
}

fn is_damaged(error: &PlainFileError) -> bool {
    match error {
        PlainFileError::Disk(error) => is_damage(error),
        PlainFileError::Format(_) => true,
        _ => false,
    }
}

fn is_damage(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof | ErrorKind::InvalidData)
}

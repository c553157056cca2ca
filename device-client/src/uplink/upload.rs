//! A large envelope to a gateway: from a file that holds it sealed, resumed for as long as it takes.

use std::sync::Arc;
use std::time::Duration;

use pithead_hop::backoff::{self, Backoff};
use pithead_hop::connect::ConnectError;
use pithead_hop::ingest::Answer;
use pithead_hop::ingest::send::{UploadError, UploadProgress, UploadSource, send_upload};
use pithead_proto::errors::v1::ErrorReason;
use tokio_util::sync::CancellationToken;

use super::Trouble;
use super::Uplink;

/// Why a large envelope was not brought to an answer. What a gateway has on its disk of it stays there for a day, and the
/// next attempt goes on from it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UploadFailed {
    /// The file does not give its bytes, or the gateway does not keep the contract: trying again is useless.
    #[error(transparent)]
    Ended(#[from] UploadError),
    /// Our certificate or the gateway's is wrong: trying again is useless.
    #[error("no gateway: {0}")]
    Connect(#[from] ConnectError),
    /// Told to stop.
    #[error("told to stop{}", match .last { Some(last) => format!("; last: {}", last.detail), None => String::new() })]
    Stopped {
        /// What was in the way last.
        last: Option<Trouble>,
    },
}

impl UploadFailed {
    /// The registry's reason, where there is one.
    #[must_use]
    pub fn reason(&self) -> Option<ErrorReason> {
        match self {
            Self::Ended(error) => error.reason(),
            Self::Connect(error) => Some(error.reason()),
            Self::Stopped { last } => last.as_ref().and_then(|last| last.reason),
        }
    }
}

impl Uplink {
    /// Sends a large envelope until a gateway has all of it on its disk, or says that it will never take it. A cut connection
    /// costs what was on the wire; a device that is switched off goes on where it was, with the same file. `told` hears how
    /// far it is, also after a failed attempt.
    ///
    /// Cancel safe: the next call goes on.
    ///
    /// # Errors
    /// [`UploadFailed`].
    pub async fn upload(
        &self,
        source: Arc<dyn UploadSource>,
        stop: &CancellationToken,
        mut told: impl FnMut(UploadProgress) + Send,
    ) -> Result<Answer, UploadFailed> {
        let mut backoff = Backoff::new(self.gateways.retry);
        let mut persisted = 0;
        let mut last = None;
        loop {
            let attempt = async {
                let (connection, _) = self.connect(&self.tls, 0).await?;
                let progress = |progress: UploadProgress| {
                    if progress.persisted > persisted {
                        // An attempt that brought something forward was a good one.
                        persisted = progress.persisted;
                        backoff.reset();
                    }
                    told(progress);
                };
                Ok(send_upload(connection, Arc::clone(&source), Vec::new(), None, progress).await)
            };
            let (trouble, retry_after): (Trouble, Option<Duration>) =
                match stop.run_until_cancelled(attempt).await {
                    None => return Err(UploadFailed::Stopped { last }),
                    Some(Ok(Ok(answer))) => return Ok(answer),
                    Some(Ok(Err(error))) if !error.is_retryable() => return Err(error.into()),
                    Some(Ok(Err(error))) => (Trouble::of(&error, true, error.reason()), error.retry_after()),
                    Some(Err(error)) if !ConnectError::is_retryable(&error) => return Err(error.into()),
                    Some(Err(error)) => (Trouble::of(&error, true, Some(error.reason())), None),
                };
            tracing::info!(event = "upload.again", detail = trouble.detail);
            last = Some(trouble);
            let delay = backoff.next_delay(backoff::random(), retry_after);
            if stop.run_until_cancelled(tokio::time::sleep(delay)).await.is_none() {
                return Err(UploadFailed::Stopped { last });
            }
        }
    }
}

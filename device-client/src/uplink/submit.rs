//! One envelope, one answer: for those who carry the bytes themselves.

use std::time::Duration;

use pithead_hop::{connect::ConnectError, status::Remote};
use pithead_proto::ingest::v1::{SubmitRequest, ingest_service_client::IngestServiceClient};
use pithead_sealing::envelope::SealedEnvelope;

use super::Uplink;

/// How long a gateway may take to answer one submitted envelope: several fdatasyncs of a busy disk.
const SUBMIT_LIMIT: Duration = Duration::from_secs(30);

/// What a gateway answered about one envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Receipt {
    /// It is on the gateway's disk.
    Stored,
    /// It was there before; `unverified` if its bytes could not be compared any more.
    Duplicate {
        /// See above.
        unverified: bool,
    },
}

/// Why one envelope was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// No gateway. Nothing was sent.
    #[error("no gateway: {0}")]
    Connect(#[from] ConnectError),
    /// The gateway refused it, or the answer was lost: see [`Remote::is_retryable`], [`Remote::may_have_been_stored`].
    #[error(transparent)]
    Remote(#[from] Remote),
    /// No answer in time. It may have been stored; sending the same bytes again is safe.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
}

impl Uplink {
    /// Sends one envelope and waits until it is on the gateway's disk.
    ///
    /// Dropping the future may leave it stored; sending the same bytes again is safe.
    pub async fn submit(&self, envelope: &SealedEnvelope) -> Result<Receipt, SubmitError> {
        let (connection, _) = self.connect(&self.tls, 0).await?;
        let request = SubmitRequest { envelope: envelope.bytes().clone() };
        let mut client = IngestServiceClient::new(connection);
        let answer = tokio::time::timeout(SUBMIT_LIMIT, client.submit(request))
            .await
            .map_err(|_| SubmitError::TimedOut(SUBMIT_LIMIT))?
            .map_err(|status| Remote::from_status(&status))?;
        Ok(match answer.into_inner().duplicate {
            Some(duplicate) => Receipt::Duplicate { unverified: duplicate.unverified },
            None => Receipt::Stored,
        })
    }
}

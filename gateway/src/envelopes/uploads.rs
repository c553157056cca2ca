//! What becomes of large envelopes' files besides being sent: claimed at a start, entered again when their record is lost, given
//! up when nobody goes on with them, let go when their reason was taken out of the refused area. Whoever looks for that looks for what
//! else was taken away there.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use pithead_hop::ingest::{SealedFileError, UploadStore};
use pithead_sealing::Identity;
use sha2::{Digest as _, Sha256};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::numbers::Numbers;
use super::record::Head;
use super::refused::Refused;
use super::retry::{Retry, RetryError};
use crate::clock::since_boot;
use crate::metrics::Metrics;

/// How often it is looked.
const SWEEP: Duration = Duration::from_secs(10);

/// At a start, when the lines are known. What lies in the refused area is kept, and what was passed on and not removed before a
/// kill goes now. (What waits in the spool was claimed with its record.)
///
/// `clean` says that every record of the log could be read. If not, a whole envelope without a record may be one that was
/// acknowledged: it is owed, and [`sweep`] enters it again. Blocks.
///
/// # Errors
/// What the disk says.
pub fn claim(uploads: &UploadStore, numbers: &Numbers, refused: &Refused, clean: bool) -> io::Result<()> {
    for identity in refused.large() {
        uploads.taken(&identity);
    }
    for identity in uploads.undecided() {
        if refused.mentions(&identity)? {
            // Its reason does not read; its bytes are kept all the same.
            uploads.taken(&identity);
        } else if !clean {
            uploads.owe(&identity);
        } else if numbers.holds(&identity) {
            uploads.release(&identity)?;
        }
    }
    Ok(())
}

/// Nobody here answers for what waits any more, since another gateway does, or since the lanes are about to be read again. What lies
/// here is kept for a while: after a short loss of the lanes it is there still, and need not be fetched. What the refused area mentions
/// stays taken. Blocks.
pub fn stand_down(uploads: &UploadStore, refused: &Refused) {
    for identity in uploads.taken_ones() {
        match refused.mentions(&identity) {
            Ok(false) => {}
            // Also where that cannot be seen: it is kept.
            Ok(true) => continue,
            Err(error) => {
                tracing::warn!(event = "refused.not_counted", %error);
                continue;
            }
        }
        if let Err(error) = uploads.untake(&identity, since_boot()) {
            tracing::error!(event = "upload.not_removed", %identity, %error);
        }
    }
}

/// Enters what is owed into the spool once more. What cannot be entered now, because the spool is full or the disk does not
/// give it, stays owed.
pub async fn enter_owed(uploads: &UploadStore, retry: &Retry) {
    if retry.spool.elsewhere().is_some() {
        // Whoever owns the lanes.
        return;
    }
    for identity in uploads.owed() {
        let Some(deciding) = uploads.decide_owed(&identity) else { continue };
        // To its end, also when this program stops: what is durable in the spool must not be owed too.
        let (uploads, retry) = (uploads.clone(), retry.clone());
        let entering = async move {
            let _deciding = deciding;
            match enter_again(&uploads, &retry, &identity).await {
                Ok(()) => {
                    tracing::warn!(event = "upload.entered_again", %identity, "its record in the spool was damaged");
                }
                Err(error) => tracing::error!(event = "upload.not_entered_again", %identity, %error),
            }
        };
        if let Err(error) = tokio::spawn(entering).await {
            tracing::error!(event = "upload.not_entered_again", %error);
        }
    }
}

async fn enter_again(uploads: &UploadStore, retry: &Retry, identity: &Identity) -> Result<(), RetryError> {
    retry.bring_owed(identity).await?;
    let (store, wanted) = (uploads.clone(), identity.clone());
    let read = tokio::task::spawn_blocking(move || match store.read(&wanted) {
        Ok(file) => Ok(file),
        Err(SealedFileError::Disk(error)) => Err(error),
        // For a person to look at: nothing more will come of it here.
        Err(error) => store.set_aside(&wanted).and(Err(error.into())),
    });
    let file = read.await.map_err(|_| RetryError::Stopping)?.map_err(RetryError::Unreadable)?;
    let sha256 = Sha256::digest(file.header().wire()).into();
    let head = Head { identity: identity.clone(), sha256, hops: file.hops().to_vec(), copy: None };
    let total = file.total();
    retry.enter_large(head, file, total).await?;
    uploads.taken(identity);
    Ok(())
}

/// Looks after them until told to stop.
pub async fn sweep(
    uploads: UploadStore,
    refused: Arc<Refused>,
    retry: Retry,
    metrics: Metrics,
    stop: CancellationToken,
) {
    let numbers = retry.numbers.clone();
    let mut entering: Option<JoinHandle<()>> = None;
    loop {
        // Beside the rest: one whose bytes lie elsewhere may take hours to fetch.
        if entering.as_ref().is_none_or(JoinHandle::is_finished) {
            let (uploads, retry) = (uploads.clone(), retry.clone());
            entering = Some(tokio::spawn(async move { enter_owed(&uploads, &retry).await }));
        }
        let (store, area, numbers) = (uploads.clone(), refused.clone(), numbers.clone());
        let looked = tokio::task::spawn_blocking(move || {
            store.expire(since_boot());
            area.look_after();
            for identity in area.let_go_of_large() {
                if numbers.is_here(&identity) {
                    // It waits in the spool again.
                    continue;
                }
                tracing::info!(event = "refused.large_let_go", %identity);
                if let Err(error) = store.release(&identity) {
                    tracing::error!(event = "upload.not_removed", %identity, %error);
                }
            }
            store.stats()
        });
        if let Ok(stats) = looked.await {
            metrics.uploads(&stats);
        }
        tokio::select! {
            () = tokio::time::sleep(SWEEP) => {}
            () = stop.cancelled() => break,
        }
    }
    if let Some(entering) = entering {
        // It has said why, if it fell over.
        let _ = entering.await;
    }
}

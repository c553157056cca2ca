//! What becomes of large envelopes' files besides being sent: claimed at a start, given up when nobody goes on with them, let
//! go when their reason was taken out of the refused area.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use pithead_hop::ingest::UploadStore;
use tokio_util::sync::CancellationToken;

use super::numbers::Numbers;
use super::refused::Refused;
use crate::clock::since_boot;
use crate::metrics::Metrics;

/// How often it is looked.
const SWEEP: Duration = Duration::from_secs(10);

/// At a start, when the lines are known: what lies in the refused area is kept, and what was passed on and not removed before a
/// kill goes now. (What waits in the spool was claimed with its record.) Blocks.
///
/// # Errors
/// What the disk says.
pub fn claim(uploads: &UploadStore, numbers: &Numbers, refused: &Refused) -> io::Result<()> {
    for identity in refused.large() {
        uploads.taken(&identity);
    }
    for identity in uploads.undecided() {
        if numbers.holds(&identity) {
            uploads.release(&identity)?;
        }
    }
    Ok(())
}

/// Looks after them until told to stop.
pub async fn sweep(uploads: UploadStore, refused: Arc<Refused>, metrics: Metrics, stop: CancellationToken) {
    loop {
        let (store, area) = (uploads.clone(), refused.clone());
        let looked = tokio::task::spawn_blocking(move || {
            store.expire(since_boot());
            for identity in area.let_go_of_large() {
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
            () = stop.cancelled() => return,
        }
    }
}

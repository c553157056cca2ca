//! What becomes of large envelopes' files besides being sent: claimed at a start, given up when nobody goes on with them, let
//! go when their reason was taken out of the refused area.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use pithead_hop::ingest::UploadStore;
use pithead_sealing::Identity;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::numbers::Numbers;
use super::record::{Body, Head};
use super::refused::Refused;
use super::spool::EnvelopeSpool;
use crate::clock::{since_boot, wall_ms};
use crate::metrics::Metrics;

/// How often it is looked.
const SWEEP: Duration = Duration::from_secs(10);

/// At a start, when the lines are known. What lies in the refused area is kept, and what was passed on and not removed before a
/// kill goes now. (What waits in the spool was claimed with its record.)
///
/// `clean` says that every record of the log could be read. If not, a whole envelope without a record may be one that was
/// acknowledged: it is entered again, and what the far end has already is a duplicate there. Blocks.
///
/// # Errors
/// What the disk says.
pub fn claim(
    uploads: &UploadStore,
    spool: &EnvelopeSpool,
    numbers: &Numbers,
    refused: &Refused,
    clean: bool,
) -> io::Result<()> {
    for identity in refused.large() {
        uploads.taken(&identity);
    }
    for identity in uploads.undecided() {
        if refused.mentions(&identity)? {
            // Its reason does not read; its bytes are kept all the same.
            uploads.taken(&identity);
        } else if !clean {
            enter_again(uploads, spool, numbers, &identity)?;
        } else if numbers.holds(&identity) {
            uploads.release(&identity)?;
        }
    }
    Ok(())
}

fn enter_again(
    uploads: &UploadStore,
    spool: &EnvelopeSpool,
    numbers: &Numbers,
    identity: &Identity,
) -> io::Result<()> {
    let file = match uploads.read(identity) {
        Ok(file) => file,
        Err(error) => {
            tracing::error!(event = "upload.unreadable", %identity, %error);
            return Ok(());
        }
    };
    let sha256 = Sha256::digest(file.header().wire()).into();
    let head = Head { identity: identity.clone(), sha256, hops: file.hops().to_vec() };
    let failures = spool.failures(&identity.line());
    let appended = spool.append(&head, Body::Large { total: file.total() }, wall_ms(), failures);
    let durable = appended.map_err(io::Error::other)?.wait().map_err(io::Error::other);
    durable?;
    numbers.entered_again(&head);
    uploads.taken(identity);
    tracing::warn!(event = "upload.entered_again", %identity, "its record in the spool may have been damaged");
    Ok(())
}

/// Looks after them until told to stop.
pub async fn sweep(
    uploads: UploadStore,
    refused: Arc<Refused>,
    numbers: Numbers,
    metrics: Metrics,
    stop: CancellationToken,
) {
    loop {
        let (store, area, numbers) = (uploads.clone(), refused.clone(), numbers.clone());
        let looked = tokio::task::spawn_blocking(move || {
            store.expire(since_boot());
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
            () = stop.cancelled() => return,
        }
    }
}

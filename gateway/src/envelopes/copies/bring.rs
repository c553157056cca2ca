//! A large envelope out of the store, to where its file would be: for an owner that did not gather it.

use std::io;
use std::time::Instant;

use pithead_hop::ingest::BringError;
use pithead_hop::objects::Fault;

use super::super::record::{Head, LargeCopy};
use super::{Copies, CopyError};
use crate::metrics::CopyEvent;

/// Bytes of one request. The first has to hold the whole header, which is some kilobytes.
const CHUNK: u64 = 8 << 20;

impl Copies {
    /// Brings the bytes of an envelope that is taken and away. When this returns they are here, durable and checked. One at a time; after a
    /// failure the next call goes on where this one was, as long as the program runs.
    ///
    /// # Errors
    /// [`CopyError::Lost`] when no other call will bring them; anything else may pass.
    pub async fn bring(&self, head: &Head, copy: &LargeCopy) -> Result<(), CopyError> {
        let brought = self.brought(head, copy).await;
        self.note(&brought);
        let identity = &head.identity;
        match &brought {
            Ok(()) => {
                self.lock().doubtful.remove(&copy.name);
                self.count(CopyEvent::Fetched);
                tracing::info!(event = "large.fetched", %identity, name = copy.name, bytes = copy.total);
            }
            Err(error @ CopyError::Lost(_)) => {
                self.lock().doubtful.remove(&copy.name);
                tracing::error!(event = "large.copy_lost", %identity, name = copy.name, %error);
                self.count(CopyEvent::Lost);
            }
            Err(error) => {
                if error.is_the_stores() {
                    // What it said of the copy before counts no more.
                    self.lock().doubtful.remove(&copy.name);
                }
                tracing::warn!(event = "large.not_fetched", %identity, name = copy.name, %error);
            }
        }
        brought
    }

    async fn brought(&self, head: &Head, copy: &LargeCopy) -> Result<(), CopyError> {
        let mut slot = self.0.bringing.lock().await;
        let store = self.store().await?;
        let is_the_store = async || match self.marker(&store, false).await? {
            Some(id) if id == copy.store => Ok(()),
            _ => Err(CopyError::Another(format!("{store} is not the one that {} was put into", copy.name))),
        };
        is_the_store().await?;
        if slot.as_ref().is_none_or(|(name, _)| *name != copy.name) {
            let Some(bringing) = self.0.uploads.bring(&head.identity, head.hops.clone()) else {
                return Ok(());
            };
            *slot = Some((copy.name.clone(), bringing));
        }
        loop {
            let Some((_, bringing)) = &*slot else { return Err(CopyError::Over) };
            let (at, total) = (bringing.at(), bringing.total());
            if at >= total {
                break;
            }
            let end = (at + CHUNK).min(total);
            let bytes = match store.read_range(&copy.name, at..end).await {
                Ok(bytes) if bytes.len() as u64 == end - at => bytes,
                Ok(bytes) => {
                    *slot = None;
                    return Err(
                        self.doubt(copy, format!("it ends at {} of {total} bytes", at + bytes.len() as u64))
                    );
                }
                Err(error) if error.fault == Fault::NotFound => {
                    *slot = None;
                    // It may be the store that has gone, between the two requests.
                    is_the_store().await?;
                    return Err(self.doubt(copy, "it is gone".to_owned()));
                }
                // Nothing stands there: an object that is cut at the end of a part has no such range.
                Err(error) => match store.size(&copy.name).await {
                    Ok(size) if size < end => {
                        *slot = None;
                        return Err(self.doubt(copy, format!("it ends at {size} of {total} bytes")));
                    }
                    _ => return Err(error.into()),
                },
            };
            let Some((name, mut bringing)) = slot.take() else { return Err(CopyError::Over) };
            let putting = tokio::task::spawn_blocking(move || bringing.put(&bytes).map(|()| bringing));
            let bringing = self.judged(copy, putting.await)?;
            *slot = Some((name, bringing));
        }
        let Some((_, bringing)) = slot.take() else { return Err(CopyError::Over) };
        let sha256 = copy.sha256;
        self.judged(copy, tokio::task::spawn_blocking(move || bringing.finish(&sha256)).await)
    }

    fn judged<T>(
        &self,
        copy: &LargeCopy,
        worked: Result<Result<T, BringError>, tokio::task::JoinError>,
    ) -> Result<T, CopyError> {
        match worked.map_err(io::Error::other) {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(BringError::Disk(error))) | Err(error) => Err(CopyError::Disk(error)),
            Ok(Err(error)) => Err(self.doubt(copy, error.to_string())),
        }
    }

    /// It is not what was put. Believed when it is so for a while.
    fn doubt(&self, copy: &LargeCopy, why: String) -> CopyError {
        let since = *self.lock().doubtful.entry(copy.name.clone()).or_insert_with(Instant::now);
        if since.elapsed() < self.0.gone_for { CopyError::Doubtful(why) } else { CopyError::Lost(why) }
    }
}

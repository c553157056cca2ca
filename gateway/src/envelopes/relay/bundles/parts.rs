//! A large envelope on its way into a store, part by part, over days and restarts.
//!
//! In memory is one part. Parts are of one size, that of the first part of an upload to its last, which a store may ask for.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use pithead_hop::bundle::LargeName;
use pithead_hop::ingest::{Answer, SealedFile, SealedFileError};
use pithead_hop::objects::{Fault, PART_BYTES, Parts, Store, StoreError, Writer, part_bytes};
use pithead_proto::errors::v1::ErrorReason;

use super::super::large::{Advanced, LargeEnded, LargeError, LargeParts, LargeSent, LargeWay};
use super::super::pace::Toll;
use super::journal::{Journal, Journals, blocking};

/// Into a store.
pub(super) struct IntoStore {
    pub(super) parts: LargeParts,
    pub(super) store: Store,
    pub(super) journals: Arc<Journals>,
}

impl LargeWay for IntoStore {
    fn send(&self, sent: LargeSent, advanced: Advanced) -> BoxFuture<'static, LargeEnded> {
        let (parts, store, journals) = (self.parts.clone(), self.store.clone(), Arc::clone(&self.journals));
        Box::pin(async move {
            let (mut span, _) = parts.span(&sent);
            match carry(&parts, &store, journals, &sent, &advanced).await {
                Ok(()) => LargeEnded::Answered(Answer::Stored),
                Err(ended) => {
                    if let LargeEnded::Failed(error) = &ended {
                        span.failed(|| error.reason().map_or("UNKNOWN", ErrorReason::name).to_owned());
                    }
                    ended
                }
            }
        })
    }
}

impl From<StoreError> for LargeEnded {
    fn from(error: StoreError) -> Self {
        Self::Failed(error.into())
    }
}

fn journal_failed(error: io::Error) -> LargeEnded {
    LargeEnded::Failed(LargeError::Journal(error))
}

/// Until it is whole there, or anything else has ended the attempt.
async fn carry(
    large: &LargeParts,
    store: &Store,
    journals: Arc<Journals>,
    sent: &LargeSent,
    advanced: &Advanced,
) -> Result<(), LargeEnded> {
    let name = LargeName::new(sent.head.identity.clone(), &sent.head.sha256).to_string();
    let (source, mut toll) = (large.open(sent).await?, large.pace.toll());
    let total = source.total();
    let Some(parts) = store.parts() else { return into_folder(store, &name, &source, toll, advanced).await };

    let (at, of) = (Arc::clone(&journals), name.clone());
    let known = blocking(move || at.load(&of, total)).await.map_err(journal_failed)?;
    let mut journal = match known {
        Some(journal) => journal,
        None => begin(&parts, &journals, &name, total).await?,
    };
    if journal.complete {
        return Ok(());
    }
    loop {
        let number = journal.etags.len();
        let offset = number as u64 * journal.part_bytes();
        if offset >= total {
            break;
        }
        let bytes = journal.part_bytes().min(total - offset);
        let chunks = read(&source, offset, bytes).await?;
        pay(&mut toll, bytes).await;
        let put = parts.put(&name, journal.upload(), number, chunks).await;
        let etag = match put {
            Err(error) if error.fault == Fault::NotFound => {
                return Err(forgotten(journals, name, error).await);
            }
            put => put?,
        };
        journal = blocking(move || journal.part(etag).map(|()| journal)).await.map_err(journal_failed)?;
        advanced();
    }
    match parts.complete(&name, journal.upload(), &journal.etags).await {
        Ok(()) => {}
        // The answer was lost the last time, or somebody has given the upload up.
        Err(error)
            if error.fault == Fault::NotFound && store.size(&name).await.is_ok_and(|size| size == total) =>
        {
            tracing::info!(event = "relay.large_found", name, upload = journal.upload(), %error);
        }
        Err(error) if error.fault == Fault::NotFound => return Err(forgotten(journals, name, error).await),
        // These parts make no object, however often it is asked for: a store has lost one, say.
        Err(error) if error.fault == Fault::Refused => {
            if let Err(error) = parts.abort(&name, journal.upload()).await {
                // A rule of the bucket does it in the end.
                tracing::warn!(event = "relay.parts_not_given_up", name, %error);
            }
            return Err(forgotten(journals, name, error).await);
        }
        Err(error) => return Err(error.into()),
    }
    blocking(move || journal.finish()).await.map_err(journal_failed)
}

async fn begin(
    parts: &Parts,
    journals: &Arc<Journals>,
    name: &str,
    total: u64,
) -> Result<Journal, LargeEnded> {
    let upload = parts.begin(name).await?;
    let (at, of) = (Arc::clone(journals), name.to_owned());
    blocking(move || at.begin(&of, total, part_bytes(total), upload)).await.map_err(journal_failed)
}

/// The store knows nothing of the upload any more, or makes no object of it: it begins anew, later.
async fn forgotten(journals: Arc<Journals>, name: String, error: StoreError) -> LargeEnded {
    match blocking(move || journals.remove(&name)).await {
        Ok(()) => error.into(),
        Err(error) => journal_failed(error),
    }
}

/// A folder has no parts: the whole of it, and from the beginning after a kill.
async fn into_folder(
    store: &Store,
    name: &str,
    source: &Arc<SealedFile>,
    toll: Toll,
    advanced: &Advanced,
) -> Result<(), LargeEnded> {
    let mut writer = store.write(name).await?;
    match whole_into(&mut writer, source, toll, advanced).await {
        Ok(()) => Ok(()),
        Err(ended) => {
            writer.abort().await;
            Err(ended)
        }
    }
}

async fn whole_into(
    writer: &mut Writer,
    source: &Arc<SealedFile>,
    mut toll: Toll,
    advanced: &Advanced,
) -> Result<(), LargeEnded> {
    let (total, mut offset) = (source.total(), 0);
    while offset < total {
        let bytes = PART_BYTES.min(total - offset);
        let chunks = read(source, offset, bytes).await?;
        pay(&mut toll, bytes).await;
        for chunk in chunks {
            writer.piece(chunk).await?;
        }
        offset += bytes;
        advanced();
    }
    writer.finish().await?;
    Ok(())
}

/// The toll is paid slice by slice, so others have their turn in between.
async fn pay(toll: &mut Toll, bytes: u64) {
    toll.pay(bytes).await;
    toll.sent(bytes);
}

/// So many bytes of the envelope, checked block by block.
async fn read(source: &Arc<SealedFile>, offset: u64, bytes: u64) -> Result<Vec<Bytes>, LargeEnded> {
    let source = Arc::clone(source);
    let reading = tokio::task::spawn_blocking(move || {
        let (mut chunks, mut read) = (Vec::new(), 0);
        while read < bytes {
            let most = usize::try_from(bytes - read).unwrap_or(usize::MAX);
            let chunk = source.read_from(offset + read, most)?;
            if chunk.is_empty() {
                return Err(SealedFileError::Disk(io::ErrorKind::UnexpectedEof.into()));
            }
            read += chunk.len() as u64;
            chunks.push(chunk);
        }
        Ok(chunks)
    });
    match reading.await.map_err(io::Error::other) {
        Ok(Ok(chunks)) => Ok(chunks),
        Ok(Err(SealedFileError::Disk(error))) | Err(error) => Err(LargeEnded::of_source(error)),
        Ok(Err(error)) => Err(LargeEnded::Damaged(error)),
    }
}

//! A copy into the store, part by part, with the SHA-256 of what goes there.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pithead_hop::backoff::random;
use pithead_hop::bundle::CopyName;
use pithead_hop::ingest::{SealedFile, SealedFileError};
use pithead_hop::objects::{Parts, Store, Writer, part_bytes};
use pithead_sealing::Identity;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::super::record::LargeCopy;
use super::{Copies, CopyError, Stage, Wanted};
use crate::metrics::CopyEvent;

/// What was begun and is not wanted any more is taken back for so long; then it is left to whoever tidies up.
const GIVE_UP: Duration = Duration::from_secs(2);

/// The file, from its beginning on.
struct Reading {
    file: Arc<SealedFile>,
    hash: Sha256,
    at: u64,
}

impl Reading {
    /// The next so many bytes, checked block by block; fewer at the end.
    async fn next(&mut self, bytes: u64) -> Result<Vec<Bytes>, CopyError> {
        let (file, mut hash, mut at) = (Arc::clone(&self.file), self.hash.clone(), self.at);
        let end = (at + bytes).min(file.total());
        let reading = tokio::task::spawn_blocking(move || {
            let mut chunks = Vec::new();
            while at < end {
                let chunk = file.read_from(at, usize::try_from(end - at).unwrap_or(usize::MAX))?;
                let chunk = chunk.slice(..chunk.len().min(usize::try_from(end - at).unwrap_or(usize::MAX)));
                if chunk.is_empty() {
                    return Err(SealedFileError::Disk(io::ErrorKind::UnexpectedEof.into()));
                }
                hash.update(&chunk);
                at += chunk.len() as u64;
                chunks.push(chunk);
            }
            Ok((chunks, hash, at))
        });
        let read = reading.await.map_err(|error| SealedFileError::Disk(io::Error::other(error)))?;
        let chunks;
        (chunks, self.hash, self.at) = read?;
        Ok(chunks)
    }
}

/// A name that is wanted while its copy is put. Dropped before that is whole, it is wanted no more.
pub(super) struct UnderWay {
    copies: Copies,
    name: String,
    done: bool,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut state = self.copies.lock();
        if let Some(term) = &mut state.term
            && term.wanted.remove(&self.name).is_some()
        {
            // It may be whole all the same: an answer was lost, not the request.
            state.unwanted.push_back(self.name.clone());
        }
        drop(state);
        self.copies.0.work.notify_one();
    }
}

impl Copies {
    /// Puts a copy of a whole envelope into the store. When this returns it is durable there. One that was put in this term, and that no
    /// record came to name, is found again.
    ///
    /// # Errors
    /// [`CopyError`]; whoever brings the envelope may ask again.
    pub async fn put(
        &self,
        file: SealedFile,
        identity: &Identity,
        header_sha256: [u8; 32],
    ) -> Result<LargeCopy, CopyError> {
        let (epoch, over) = self.term()?;
        let stop = self.0.stop.clone();
        if let Some(copy) = self.placed(identity, &header_sha256) {
            return Ok(copy);
        }
        let ended = async {
            tokio::select! {
                () = over.cancelled() => CopyError::Over,
                () = stop.cancelled() => CopyError::Stopping,
            }
        };
        let turn = async { self.0.puts.acquire().await.map_err(|_| CopyError::Stopping) };
        let _turn = until(turn, ended).await?;
        let putting = async {
            let store = self.store().await?;
            let id = self.marker(&store, true).await?;
            let id = id.ok_or_else(|| CopyError::Another(format!("{store} does not keep its mark")))?;
            let name =
                CopyName { set: self.0.set.clone(), epoch, identity: identity.clone(), random: random() };
            let name = name.to_string();
            let mut under_way = self.begin_put(&name, identity, header_sha256, epoch)?;
            let total = file.total();
            let reading = Reading { file: Arc::new(file), hash: Sha256::new(), at: 0 };
            let sha256 = write(&store, &name, reading, &over, &stop).await?;
            // What was written may have gone where something else is mounted by now.
            if self.marker(&store, false).await? != Some(id) {
                return Err(CopyError::Another(format!("{store} was replaced while a copy was put")));
            }
            let copy = LargeCopy { name, sha256, total, store: id };
            let mut state = self.lock();
            let wanted = state.term.as_mut().and_then(|term| term.wanted.get_mut(&copy.name));
            let Some(wanted) = wanted else { return Err(CopyError::Over) };
            (wanted.stage, wanted.copy) = (Stage::Placed, Some(copy.clone()));
            drop(state);
            under_way.done = true;
            Ok(copy)
        };
        let put = putting.await;
        self.note(&put);
        match &put {
            Ok(copy) => {
                self.count(CopyEvent::Put);
                tracing::info!(event = "large.copied", %identity, name = copy.name, bytes = copy.total);
            }
            Err(error) => tracing::warn!(event = "large.not_copied", %identity, %error),
        }
        self.show();
        put
    }

    fn placed(&self, identity: &Identity, header_sha256: &[u8; 32]) -> Option<LargeCopy> {
        let state = self.lock();
        let is_it = |wanted: &&Wanted| {
            wanted.stage == Stage::Placed
                && wanted.identity == *identity
                && wanted.header_sha256 == *header_sha256
        };
        state.term.as_ref()?.wanted.values().find(is_it)?.copy.clone()
    }

    /// Before its first byte goes out: whoever tidies up leaves it alone from now on.
    pub(super) fn begin_put(
        &self,
        name: &str,
        identity: &Identity,
        header_sha256: [u8; 32],
        epoch: u64,
    ) -> Result<UnderWay, CopyError> {
        let mut state = self.lock();
        let term = state.term.as_mut().filter(|term| term.epoch == epoch).ok_or(CopyError::Over)?;
        let identity = identity.clone();
        let hops = Vec::new();
        let wanted = Wanted { identity, header_sha256, hops, copy: None, stage: Stage::UnderWay };
        term.wanted.insert(name.to_owned(), wanted);
        drop(state);
        Ok(UnderWay { copies: self.clone(), name: name.to_owned(), done: false })
    }
}

/// Until it is done, or something else ends it.
async fn until<T>(
    work: impl Future<Output = Result<T, CopyError>>,
    ended: impl Future<Output = CopyError>,
) -> Result<T, CopyError> {
    tokio::select! {
        biased;
        error = ended => Err(error),
        done = work => done,
    }
}

/// Gives the SHA-256 of what was written. What is left half done is taken back.
async fn write(
    store: &Store,
    name: &str,
    reading: Reading,
    over: &CancellationToken,
    stop: &CancellationToken,
) -> Result<[u8; 32], CopyError> {
    let ended = async {
        tokio::select! {
            () = over.cancelled() => CopyError::Over,
            () = stop.cancelled() => CopyError::Stopping,
        }
    };
    let Some(parts) = store.parts() else {
        let mut writer = store.write(name).await?;
        let written = until(whole(&mut writer, reading), ended).await;
        if written.is_err() {
            let _ = tokio::time::timeout(GIVE_UP, writer.abort()).await;
        }
        return written;
    };
    let upload = parts.begin(name).await?;
    let written = until(in_parts(&parts, name, &upload, reading), ended).await;
    if written.is_err() {
        // A rule of the bucket does it in the end.
        let _ = tokio::time::timeout(GIVE_UP, parts.abort(name, &upload)).await;
    }
    written
}

async fn whole(writer: &mut Writer, mut reading: Reading) -> Result<[u8; 32], CopyError> {
    let total = reading.file.total();
    while reading.at < total {
        for chunk in reading.next(part_bytes(total)).await? {
            writer.piece(chunk).await?;
        }
    }
    writer.finish().await?;
    Ok(reading.hash.finalize().into())
}

async fn in_parts(
    parts: &Parts,
    name: &str,
    upload: &str,
    mut reading: Reading,
) -> Result<[u8; 32], CopyError> {
    let (total, mut etags) = (reading.file.total(), Vec::new());
    while reading.at < total {
        let chunks = reading.next(part_bytes(total)).await?;
        etags.push(parts.put(name, upload, etags.len(), chunks).await?);
    }
    parts.complete(name, upload, &etags).await?;
    Ok(reading.hash.finalize().into())
}

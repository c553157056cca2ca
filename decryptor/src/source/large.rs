//! Large envelopes, which lie in the bucket as objects of their own: read as they are opened, in constant memory and on no disk.
//!
//! ```text
//! judged:  object ─> opened to the last frame ─> counted, and let go          entry n+1
//! written: object ─> opened again ──────────────> parts of out/.../n/index.large, then the line that names it
//! ```
//! It is read twice, since nothing may be written before it is decided, and nothing be decided before its last frame was authentic. What
//! is small enough is opened in memory, as it is when a gateway brings it, and is a line like any other.
//!
//! The parts make an object that may be written twice by two replicas: of the same bytes, and before the line that makes it somebody's.

use super::site::{Bucket, Shared, Waits};
use crate::content::Content;
use crate::devices::{Barred, Devices, Origin};
use crate::intake::open::{Parcel, PourError, Poured, Stopped, fits_memory, pour};
use crate::intake::opener::Opener;
use crate::intake::pipeline::lock;
use crate::intake::registry::Registry;
use crate::intake::service::{custody, sender};
use crate::ledger::record::Applied;
use crate::sink::Delivery;
use crate::store::within;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStoreExt as _};
use pithead_hop::bundle::{Entry, Large};
use pithead_hop::identity::Peer;
use pithead_hop::ingest::{AdmittedHeader, KnownKeys, admit_header};
use pithead_hop::objects::Fault;
use pithead_hop::status::Refusal;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::envelope::Header;
use pithead_sealing::envelope::open::Unlocked;
use sha2::{Digest as _, Sha256};
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;

/// Bytes that are asked for to have a header: the largest one is a fifth of it.
const HEAD_BYTES: u64 = 32 << 10;

/// Pieces between the store and whoever opens.
const PIECES: usize = 4;

/// Bytes of a part at least, and parts of an object at most: a store takes 10,000. So a part of a terabyte has 117 MiB, of which two are
/// held.
const PART_BYTES: u64 = 8 << 20;
const PARTS_MOST: u64 = 9_000;

/// Bytes of the largest object that a store takes. What has more of content can be decided, and never be written.
const OBJECT_MOST: u64 = 5 << 40;

/// Why a large envelope is not there to be judged.
#[derive(Debug)]
pub(super) enum NotHere {
    /// It is not what the bundle says of it, or is not admitted: for good.
    Refused(Refusal),
    /// Not now.
    Waits(Waits),
}

impl From<Waits> for NotHere {
    fn from(waits: Waits) -> Self {
        Self::Waits(waits)
    }
}

/// Reads the header of a large envelope and admits it.
pub(super) async fn admitted(
    bucket: &Bucket,
    peer: &Peer,
    keys: &dyn KnownKeys,
    entry: &Entry,
    large: &Large,
) -> Result<Box<Parcel>, NotHere> {
    let key = bucket.key(&large.name.to_string());
    let range = GetRange::Bounded(0..HEAD_BYTES.min(large.total));
    let options = GetOptions { range: Some(range), ..GetOptions::default() };
    let found = match bucket.store.get_opts(&key, options).await {
        Ok(found) => found,
        Err(error) if Fault::of(&error) == Fault::NotFound => {
            // It was whole before the bundle was there: somebody has removed it.
            return Err(refused(
                ErrorReason::StoreNotFound,
                "the object of the large envelope is not in the bucket",
            ));
        }
        Err(error) => return Err(Waits::Source(error).into()),
    };
    if found.meta.size != large.total {
        return Err(refused(ErrorReason::BundleMalformed, "the object is not as long as the bundle says"));
    }
    let head = found.bytes().await.map_err(Waits::Source)?;
    let header = Header::parse(&head)
        .map_err(|error| NotHere::Refused(pithead_hop::ingest::admit::refusal_of_format(&error)))?;
    let header_bytes = head.slice(..header.wire_len().min(head.len()));
    let admitted = admit_header(header_bytes, large.total, entry.hops(), peer, keys);
    let AdmittedHeader { header, profile, header_sha256, key_not_active, hops, .. } = match admitted {
        Ok(admitted) => admitted,
        Err(error) if error.refusal.is_retryable() => {
            let Refusal { reason, detail, retry_after, .. } = error.refusal;
            let retry_after = retry_after.unwrap_or(super::judge::NOT_READY_WAIT);
            return Err(Waits::Again(crate::intake::answer::Again { reason, detail, retry_after }).into());
        }
        Err(error) => return Err(NotHere::Refused(error.refusal)),
    };
    if header_sha256 != large.header_sha256 || *profile.identity() != large.name.identity {
        return Err(refused(
            ErrorReason::BundleMalformed,
            "the object's header is not the one that the bundle names",
        ));
    }
    let (custody, sender) = (custody(peer, &hops), sender(peer, profile.identity()));
    Ok(Box::new(Parcel {
        sealed: header.wire().clone(),
        header,
        profile,
        sha256: header_sha256,
        envelope_sha256: [0; 32],
        large: None,
        key_not_active,
        custody,
        sender,
        trace: None,
    }))
}

fn refused(reason: ErrorReason, detail: &'static str) -> NotHere {
    NotHere::Refused(Refusal::new(reason, detail))
}

/// Whether it is read as it is opened, and not into memory.
pub(super) fn is_streamed(parcel: &Parcel, large: &Large) -> bool {
    let profile = &parcel.profile;
    !fits_memory(profile.content_type().is_batch(), profile.encoding().is_some(), large.total)
}

/// All of a large envelope that fits into memory.
pub(super) async fn whole(shared: &Shared, parcel: &Parcel, large: &Large) -> Result<Parcel, Waits> {
    let bucket = &shared.bucket;
    let found = bucket.store.get(&bucket.key(&large.name.to_string())).await.map_err(Waits::Source)?;
    let sealed = found.bytes().await.map_err(Waits::Source)?;
    shared.metrics.bucket.source_bytes.inc_by(sealed.len() as u64);
    let envelope_sha256 = Sha256::digest(&sealed).into();
    Ok(Parcel { sealed, envelope_sha256, ..parcel.clone() })
}

/// Opens a large envelope to its last frame, for the judgement: its content is counted and let go.
pub(super) async fn judged(
    shared: &Shared,
    registry: &Arc<Mutex<Registry>>,
    parcel: &Parcel,
    large: &Large,
) -> Result<(Applied, Origin), NotOpened> {
    let (registry, identity) = (Arc::clone(registry), parcel.identity().clone());
    let bar = move |devices: &Devices, origin: &Origin| lock(&registry).bar(devices, &identity, origin);
    let poured = streamed(shared, parcel, large, Judging::By(Box::new(bar)), Counted(0)).await?;
    fits_an_object(poured.plain.0)?;
    let delivery = delivery_of(parcel, poured.origin, poured.sealed_sha256);
    let mut applied = Applied::of(&delivery, large.total, parcel.key_not_active, parcel.profile.statement());
    applied.sha256 = Bytes::copy_from_slice(&parcel.sha256);
    applied.plaintext_bytes = poured.plain.0;
    Ok((applied, poured.origin))
}

/// As many bytes as fit into an object of the sink.
fn fits_an_object(plaintext: u64) -> Result<(), Stopped> {
    if plaintext <= OBJECT_MOST {
        return Ok(());
    }
    let detail = format!("a content of {plaintext} bytes; {OBJECT_MOST} are the most that an object has");
    Err(Stopped::Poison { reason: ErrorReason::EnvelopeTooLarge, detail: detail.into() })
}

/// Bytes of each part but the last of so large a content. What it has sealed says nothing of that: content may be compressed.
fn part_bytes(plaintext: u64) -> u64 {
    PART_BYTES.max(plaintext.div_ceil(PARTS_MOST))
}

/// Opens a large envelope that is decided into its object; gives what its line says.
pub(super) async fn written(
    shared: &Shared,
    parcel: &Parcel,
    large: &Large,
    (origin, plaintext): (Origin, u64),
    to: &Path,
) -> Result<Delivery, NotOpened> {
    // One is gathered while the one before is on its way.
    let (pieces, mut plain) = mpsc::channel::<Bytes>(1);
    let part_bytes = usize::try_from(part_bytes(plaintext)).unwrap_or(usize::MAX);
    let uploading = async {
        let store = shared.sink.store();
        let mut upload = store.put_multipart(to).await?;
        while let Some(part) = plain.recv().await {
            let bytes = part.len() as u64;
            shared.metrics.bucket.sink_bytes.inc_by(bytes);
            if let Err(error) = within(bytes, upload.put_part(part.into())).await {
                // It is the first error that counts.
                let _ = within(0, upload.abort()).await;
                return Err(error);
            }
        }
        Ok(upload)
    };
    let pouring = streamed(shared, parcel, large, Judging::Known(origin), Parts::new(pieces, part_bytes));
    let pouring = async {
        let mut poured = pouring.await?;
        // The last part; the channel ends with it.
        let flushed = poured.plain.finish().await;
        Ok::<_, NotOpened>((poured.origin, poured.sealed_sha256, flushed))
    };
    let (uploaded, poured) = tokio::join!(uploading, pouring);
    match (uploaded, poured) {
        (Ok(mut upload), Ok((origin, sealed_sha256, true))) => {
            // A store may copy all of it for that.
            within(plaintext, upload.complete()).await.map_err(Waits::Sink)?;
            Ok(delivery_of(parcel, origin, sealed_sha256))
        }
        (Ok(mut upload), failed) => {
            let _ = within(0, upload.abort()).await;
            Err(failed.err().unwrap_or_else(|| NotOpened::Waits(crate::intake::lost().into())))
        }
        // Without anybody who takes parts the pouring has ended as well.
        (Err(error), _) => Err(Waits::Sink(error).into()),
    }
}

fn delivery_of(parcel: &Parcel, origin: Origin, envelope_sha256: [u8; 32]) -> Delivery {
    Delivery {
        identity: parcel.identity().clone(),
        envelope_sha256,
        content: Content::elsewhere(parcel.profile.content_type().as_str()),
        custody: crate::intake::open::custody(parcel, &origin),
        origin,
    }
}

/// Why a large envelope was not opened.
#[derive(Debug)]
pub(super) enum NotOpened {
    /// It is poison.
    Stopped(Stopped),
    /// Not now.
    Waits(Waits),
}

impl From<Waits> for NotOpened {
    fn from(waits: Waits) -> Self {
        Self::Waits(waits)
    }
}

impl From<Stopped> for NotOpened {
    fn from(stopped: Stopped) -> Self {
        match stopped {
            Stopped::Again(again) => Self::Waits(again.into()),
            poison @ Stopped::Poison { .. } => Self::Stopped(poison),
        }
    }
}

type Bar = Box<dyn FnOnce(&Devices, &Origin) -> Option<Barred> + Send>;
type Judge = Box<dyn FnOnce(&Unlocked) -> Result<Origin, Barred> + Send>;

/// Who says whose it is.
enum Judging {
    /// The signature, and the books.
    By(Bar),
    /// The ledger.
    Known(Origin),
}

async fn streamed<W: Write + Send + 'static>(
    shared: &Shared,
    parcel: &Parcel,
    large: &Large,
    judging: Judging,
    plain: W,
) -> Result<Poured<W>, NotOpened> {
    let opener: &Opener = &shared.opener;
    let chosen = opener.choose(parcel)?;
    let session = opener.data_key(&chosen, &parcel.sender).await?;
    let judge: Judge = match judging {
        Judging::By(bar) => Box::new(opener.judge(&parcel.profile, &session, bar)),
        Judging::Known(origin) => Box::new(move |_| Ok(origin)),
    };
    let bucket = &shared.bucket;
    let found = bucket.store.get(&bucket.key(&large.name.to_string())).await.map_err(Waits::Source)?;
    let (pieces, sealed) = mpsc::channel(PIECES);
    let mut body = found.into_stream();
    let reading = async move {
        while let Some(piece) = body.next().await {
            shared.metrics.bucket.source_bytes.inc_by(piece.as_ref().map_or(0, |piece| piece.len() as u64));
            // Whoever opens it has seen enough.
            if pieces.send(piece).await.is_err() {
                break;
            }
        }
    };
    let (parcel, total) = (parcel.clone(), large.total);
    let opening = opener.blocking_large(move || {
        let sealed = Pieces { pieces: sealed, at: Bytes::new(), fault: None };
        pour(&parcel, total, chosen, session.unwrapped(), judge, sealed, plain)
    });
    let ((), opened) = tokio::join!(reading, opening);
    match opened.map_err(Waits::Again)? {
        Ok(poured) => Ok(poured),
        Err(PourError::Stopped(stopped)) => Err(stopped.into()),
        // An error of the store; or its object has ended before its time, as the frames find.
        Err(PourError::Read(error)) => {
            Err(Waits::Source(object_store::Error::Generic { store: "large", source: Box::new(error) })
                .into())
        }
        Err(PourError::Write(error)) => {
            Err(Waits::Sink(object_store::Error::Generic { store: "large", source: Box::new(error) }).into())
        }
    }
}

/// Pieces of an object, as a thread that may block reads them.
struct Pieces {
    pieces: mpsc::Receiver<object_store::Result<Bytes>>,
    at: Bytes,
    fault: Option<()>,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at.is_empty() {
            match self.pieces.blocking_recv() {
                Some(Ok(piece)) => self.at = piece,
                Some(Err(error)) => {
                    self.fault = Some(());
                    return Err(io::Error::other(error));
                }
                // After a failure the end is none.
                None if self.fault.is_some() => {
                    return Err(io::Error::other("the object ended with a failure"));
                }
                None => return Ok(0),
            }
        }
        let read = self.at.len().min(buffer.len());
        buffer[..read].copy_from_slice(&self.at.split_to(read));
        Ok(read)
    }
}

/// Counts what is written, and lets it go.
struct Counted(u64);

impl Write for Counted {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.0 += buffer.len() as u64;
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Gathers what is written into parts.
struct Parts {
    parts: Option<mpsc::Sender<Bytes>>,
    part_bytes: usize,
    gathered: BytesMut,
}

impl Parts {
    fn new(parts: mpsc::Sender<Bytes>, part_bytes: usize) -> Self {
        Self { parts: Some(parts), part_bytes, gathered: BytesMut::new() }
    }

    /// Hands on what is left; false if nobody takes it.
    async fn finish(&mut self) -> bool {
        let Some(parts) = self.parts.take() else { return false };
        let last = self.gathered.split().freeze();
        last.is_empty() || parts.send(last).await.is_ok()
    }
}

impl Write for Parts {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let take = buffer.len().min(self.part_bytes - self.gathered.len());
        self.gathered.extend_from_slice(&buffer[..take]);
        if self.gathered.len() >= self.part_bytes {
            let part = self.gathered.split().freeze();
            let parts = self.parts.as_ref().ok_or_else(|| io::Error::other("the object is finished"))?;
            parts.blocking_send(part).map_err(|_| io::Error::other("nobody takes the parts any more"))?;
        }
        Ok(take)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_content_has_it_is_as_many_parts_as_a_store_takes_or_refused() {
        let (mib, gib) = (1 << 20, 1 << 30);
        for plaintext in [0, mib, 17 * mib, 70 * gib, 100 * gib, OBJECT_MOST] {
            let parts = plaintext.div_ceil(part_bytes(plaintext));
            assert!(parts <= PARTS_MOST && fits_an_object(plaintext).is_ok(), "{plaintext}: {parts} parts");
        }
        let Err(Stopped::Poison { reason, .. }) = fits_an_object(OBJECT_MOST + 1) else {
            panic!("no object has that")
        };
        assert_eq!(reason, ErrorReason::EnvelopeTooLarge);
    }

    #[tokio::test]
    async fn content_is_cut_into_parts_of_that_size() {
        let (pieces, mut parts) = mpsc::channel(64);
        let mut gathering = Parts::new(pieces, 10);
        let written = tokio::task::spawn_blocking(move || gathering.write_all(&[7; 95]).map(|()| gathering));
        assert!(written.await.unwrap().unwrap().finish().await);
        let mut sizes = Vec::new();
        while let Some(part) = parts.recv().await {
            sizes.push(part.len());
        }
        assert_eq!(sizes, [10, 10, 10, 10, 10, 10, 10, 10, 10, 5]);
    }
}

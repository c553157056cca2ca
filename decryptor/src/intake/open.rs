//! From an admitted envelope and its data key to what a sink takes.

use super::answer::Again;
use super::scribe::Opened;
use crate::content::inflating::Inflating;
use crate::content::{Content, ContentError, Encoding, inflate};
use crate::devices::{Barred, Origin};
use crate::ledger::record::{Applied, Said};
use crate::sink::staged::Staging;
use crate::sink::{Assurance, Custody, Delivery};
use crate::unwrap::{Class, Sender, UnwrapError};
use bytes::Bytes;
use pithead_hop::ingest::{SealedFileError, UploadStore};
use pithead_hop::trace::TraceParent;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::Identity;
use pithead_sealing::envelope::open::{Chosen, OpenError, Opening, Unlocked};
use pithead_sealing::envelope::{FormatError, Header, Profile, Unwrapped};
use pithead_sealing::trust::KeyArn;
use sha2::{Digest as _, Sha256};
use std::borrow::Cow;
use std::io::{self, BufWriter, Read};
use std::path::Path;
use std::time::Duration;

/// When somebody has to mend a policy or a key: asking every second would only fill logs.
const OPERATOR_RETRY: Duration = Duration::from_secs(60);

/// An admitted envelope on its way through the pipeline.
#[derive(Debug, Clone)]
pub struct Parcel {
    /// The whole envelope.
    pub sealed: Bytes,
    /// Its header; claims until it is unlocked.
    pub header: Header,
    /// What the header's context says.
    pub profile: Profile,
    /// What it is compared by: SHA-256 of the whole envelope, or of its header if it came as an upload.
    pub sha256: [u8; 32],
    /// SHA-256 of the whole envelope; of a large one it is found while it is opened.
    pub envelope_sha256: [u8; 32],
    /// The file of a large one; `sealed` is its header alone then.
    pub large: Option<Large>,
    /// Its key is not active by the statement in force.
    pub key_not_active: bool,
    /// How it came here.
    pub custody: Custody,
    /// Who asks for the data key.
    pub sender: Sender,
    /// The span that it came in, if that is followed.
    pub trace: Option<TraceParent>,
}

/// A large envelope in its file.
#[derive(Debug, Clone)]
pub struct Large {
    /// Where it was gathered.
    pub uploads: UploadStore,
    /// Bytes of it.
    pub total: u64,
}

impl Parcel {
    /// Under what it is filed.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        self.profile.identity()
    }
}

/// Why an envelope does not go to the sink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stopped {
    /// It has to come again.
    Again(Again),
    /// It is poison.
    Poison {
        /// Why.
        reason: ErrorReason,
        /// For a person.
        detail: Cow<'static, str>,
    },
}

impl Stopped {
    fn poison(reason: ErrorReason, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::Poison { reason, detail: detail.into() }
    }
}

impl From<Barred> for Stopped {
    fn from(barred: Barred) -> Self {
        Self::poison(barred.reason(), barred.detail())
    }
}

impl From<FormatError> for Stopped {
    fn from(error: FormatError) -> Self {
        Self::poison(pithead_hop::ingest::admit::reason_of_format(&error), error.to_string())
    }
}

impl From<UnwrapError> for Stopped {
    fn from(error: UnwrapError) -> Self {
        let reason = error.reason();
        // The cause may name accounts and endpoints: it is logged here and not told.
        tracing::warn!(event = "unwrap.failed", reason = reason.name(), code = reason.code(), %error);
        match error.class() {
            Class::Poison => Self::poison(reason, error.to_string()),
            Class::Later(retry_after) => Self::Again(Again {
                reason,
                detail: "the data key could not be unwrapped now; send it again".into(),
                retry_after,
            }),
            // Nothing is wrong with the envelope. Under the reason itself the sender would put it aside for good.
            Class::Operator => Self::Again(Again {
                reason: ErrorReason::NotReady,
                detail: format!(
                    "{} {}: the cloud team has to mend a key or its policy; send it again then",
                    reason.code(),
                    reason.name()
                )
                .into(),
                retry_after: OPERATOR_RETRY,
            }),
        }
    }
}

/// Chooses the EDK that policy allows.
pub fn choose(parcel: &Parcel, allowed: impl FnMut(&KeyArn) -> bool) -> Result<Chosen, Stopped> {
    match Opening::of(parcel.header.clone()).choose(allowed) {
        Ok(chosen) => Ok(chosen),
        Err(OpenError::Format(error)) => Err(error.into()),
        Err(_) => Err(UnwrapError::KeyNotAllowed.into()),
    }
}

/// Opens and decodes, after `judge` has let it through. Computes for as long as the envelope is large; up to [`INLINE_BYTES`] it
/// may be called on a thread that serves connections.
pub fn open(
    parcel: &Parcel,
    chosen: Chosen,
    data_key: &Unwrapped,
    judge: impl FnOnce(&Unlocked) -> Result<Origin, Barred>,
) -> Result<Opened, Stopped> {
    let body = parcel.sealed.slice(parcel.header.wire_len()..);
    let unlocked = chosen.unlock(data_key)?;
    let origin = judge(&unlocked)?;
    let plaintext = unlocked.open_body(&body)?;
    let encoding = if parcel.profile.encoding().is_some() { Encoding::Zstd } else { Encoding::Identity };
    let sealed_bytes = parcel.sealed.len() as u64;
    let content =
        Content::decode(parcel.profile.content_type().as_str(), encoding, plaintext.into(), sealed_bytes)
            .map_err(|error| Stopped::poison(error.reason(), error.to_string()))?;
    let said = content.batch().and_then(Said::of);
    let delivery = Delivery {
        identity: parcel.identity().clone(),
        envelope_sha256: parcel.envelope_sha256,
        content,
        custody: custody(parcel, &origin),
        origin,
    };
    Ok(entered(parcel, delivery, sealed_bytes, said))
}

/// What the way here says of the sender, and above all of it the device's own word.
pub fn custody(parcel: &Parcel, origin: &Origin) -> Custody {
    let mut custody = parcel.custody.clone();
    if let Origin::Signed(_) = origin {
        custody.assurance = Assurance::Signed;
    }
    custody
}

fn entered(parcel: &Parcel, delivery: Delivery, sealed_bytes: u64, said: Option<Said>) -> Opened {
    let mut applied = Applied::of(&delivery, sealed_bytes, parcel.key_not_active, parcel.profile.statement());
    applied.sha256 = Bytes::copy_from_slice(&parcel.sha256);
    Opened { delivery, applied, said }
}

/// Opens a large envelope from its file into one beside the sink, frame by frame, in constant memory. Nothing of it has a
/// name before its last frame was authentic. Blocks for as long as it takes.
pub fn open_large(
    parcel: &Parcel,
    large: &Large,
    staging: &Path,
    chosen: Chosen,
    data_key: &Unwrapped,
    judge: impl FnOnce(&Unlocked) -> Result<Origin, Barred>,
) -> Result<Opened, Stopped> {
    let content_type = parcel.profile.content_type();
    let sealed = large.uploads.read(parcel.identity()).map_err(|error| unreadable(parcel, large, &error))?;
    let unwritable = |error: io::Error| Stopped::Again(sink_failed(&error));
    let begun = Staging::begin(staging).map_err(unwritable)?;
    let plain = BufWriter::with_capacity(1 << 20, begun);
    let poured = pour(parcel, large.total, chosen, data_key, judge, sealed, plain);
    let Poured { plain, origin, sealed_sha256 } = poured.map_err(|error| match error {
        PourError::Read(error) => unreadable(parcel, large, &error),
        PourError::Write(error) => unwritable(error),
        PourError::Stopped(stopped) => stopped,
    })?;
    let staged =
        plain.into_inner().map_err(|error| unwritable(error.into_error()))?.finish().map_err(unwritable)?;
    let delivery = Delivery {
        identity: parcel.identity().clone(),
        envelope_sha256: sealed_sha256,
        content: Content::staged(content_type.as_str(), staged),
        custody: custody(parcel, &origin),
        origin,
    };
    Ok(entered(parcel, delivery, large.total, None))
}

/// A large envelope that was opened to its last frame.
#[derive(Debug)]
pub struct Poured<W> {
    /// What took its content.
    pub plain: W,
    /// Who sealed it.
    pub origin: Origin,
    /// SHA-256 of all that was read.
    pub sealed_sha256: [u8; 32],
}

/// Why a large envelope was not opened to its end.
#[derive(Debug)]
pub enum PourError {
    /// Its bytes could not be read.
    Read(io::Error),
    /// Its content could not be written.
    Write(io::Error),
    /// It is poison.
    Stopped(Stopped),
}

impl From<Stopped> for PourError {
    fn from(stopped: Stopped) -> Self {
        Self::Stopped(stopped)
    }
}

/// Opens a large envelope, frame by frame and in constant memory, from where it is to where its content is to be. What was written is
/// worth nothing before this has returned. Blocks for as long as it takes.
pub fn pour<R: Read, W: io::Write>(
    parcel: &Parcel,
    total: u64,
    chosen: Chosen,
    data_key: &Unwrapped,
    judge: impl FnOnce(&Unlocked) -> Result<Origin, Barred>,
    sealed: R,
    mut plain: W,
) -> Result<Poured<W>, PourError> {
    if parcel.profile.content_type().is_batch() {
        let detail = format!("a batch of {total} sealed bytes; {MEMORY_BYTES} are the most");
        return Err(Stopped::poison(ErrorReason::ContentMalformed, detail).into());
    }
    let unlocked = chosen.unlock(data_key).map_err(Stopped::from)?;
    let origin = judge(&unlocked).map_err(Stopped::from)?;
    let body = unlocked.into_body();
    let mut sealed = Hashing { from: sealed, sha256: Sha256::new() };
    let mut header = vec![0; parcel.header.wire_len()];
    sealed.read_exact(&mut header).map_err(PourError::Read)?;
    if parcel.profile.encoding().is_some() {
        let limit = inflate::limit(false, total);
        let mut inflating = Inflating::new(&mut plain, limit).map_err(refused_content)?;
        match (body.open_all(&mut sealed, &mut inflating), inflating.refused()) {
            (_, Some(error)) => return Err(refused_content(error).into()),
            (Ok(_), None) => drop(inflating.finish().map_err(refused_content)?),
            (Err(error), None) => return Err(unopened(error)),
        }
    } else {
        body.open_all(&mut sealed, &mut plain).map_err(unopened)?;
    }
    Ok(Poured { plain, origin, sealed_sha256: sealed.sha256.finalize().into() })
}

fn refused_content(error: ContentError) -> Stopped {
    Stopped::poison(error.reason(), error.to_string())
}

fn sink_failed(error: &io::Error) -> Again {
    tracing::error!(event = "sink.failed", %error, "a large content could not be written beside the sink");
    let detail = "the sink's disk could not take the plaintext";
    Again { reason: ErrorReason::SinkFailed, detail: detail.into(), retry_after: DISK_RETRY }
}

fn unopened(error: OpenError) -> PourError {
    match error {
        OpenError::Format(error) => PourError::Stopped(error.into()),
        OpenError::Write(error) => PourError::Write(error),
        OpenError::Read(error) => PourError::Read(error),
        _ => PourError::Stopped(UnwrapError::KeyNotAllowed.into()),
    }
}

/// The sealed bytes do not read back. The sender has them still: let go of ours, and it sends them again.
fn unreadable(parcel: &Parcel, large: &Large, error: &(dyn std::error::Error + 'static)) -> Stopped {
    if !is_damage(error) {
        tracing::error!(event = "upload.unreadable", identity = %parcel.identity(), %error);
        let detail = "the disk does not give the upload now";
        return Stopped::Again(Again {
            reason: ErrorReason::DiskFailed,
            detail: detail.into(),
            retry_after: DISK_RETRY,
        });
    }
    tracing::error!(event = "upload.damaged", identity = %parcel.identity(), %error, "it has to be sent again");
    if let Err(error) = large.uploads.release(parcel.identity()) {
        tracing::error!(event = "upload.not_removed", %error);
    }
    let detail = "the disk has changed the upload; send it again from the beginning";
    Stopped::Again(Again { reason: ErrorReason::NotDurable, detail: detail.into(), retry_after: DISK_RETRY })
}

/// Whether the bytes are certainly not what was taken in: anything else may pass.
fn is_damage(error: &(dyn std::error::Error + 'static)) -> bool {
    match error.downcast_ref::<SealedFileError>() {
        Some(SealedFileError::Gone(_) | SealedFileError::Damaged { .. }) => true,
        Some(_) => false,
        None => error.downcast_ref::<io::Error>().is_some_and(|error| {
            matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
        }),
    }
}

/// Sums up what is read through it.
struct Hashing<R> {
    from: R,
    sha256: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.sha256.update(&buffer[..read]);
        Ok(read)
    }
}

/// Uploads up to this size are opened in memory, like inline envelopes.
pub const MEMORY_BYTES: u64 = 16 << 20;

/// Whether an upload is opened in memory: by its size, and by what may come out of it. A batch always is; one that is too large is
/// refused when its file is opened.
pub fn fits_memory(is_batch: bool, compressed: bool, total: u64) -> bool {
    let plain = if compressed { inflate::limit(is_batch, total) } else { total };
    total <= MEMORY_BYTES && plain <= inflate::BATCH_LIMIT_BYTES
}

/// After a disk failed: time for somebody to look.
const DISK_RETRY: Duration = Duration::from_secs(15);

/// Sealed bytes that are opened where they are: some 50 us of work. Above, and for anything compressed, a blocking thread
/// takes it.
pub const INLINE_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upload_that_may_inflate_beyond_a_batch_is_opened_from_its_file() {
        let (batch, file, packed, plain) = (true, false, true, false);
        for (is_batch, compressed, total, fits) in [
            (file, plain, MEMORY_BYTES, true),
            (file, plain, MEMORY_BYTES + 1, false),
            // 100 times 671,088 is just under 64 MiB.
            (file, packed, 671_088, true),
            (file, packed, 671_089, false),
            (file, packed, u64::MAX, false),
            (batch, packed, MEMORY_BYTES, true),
            (batch, packed, MEMORY_BYTES + 1, false),
        ] {
            assert_eq!(fits_memory(is_batch, compressed, total), fits, "{is_batch} {compressed} {total}");
        }
    }
}

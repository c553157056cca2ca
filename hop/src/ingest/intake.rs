//! What stands behind the receiving half: the gateway's spool, the decryptor's pipeline.

use std::future::Future;

use futures_util::future::BoxFuture;
use pithead_proto::errors::v1::ErrorReason;
use pithead_proto::ingest::v1 as wire;
use pithead_proto::keys::v1::TrustVersion;
use pithead_sealing::{DeviceId, Identity, Line, Run, Seq, StreamName};

use super::admit::{Admitted, AdmittedHeader, KnownKeys};
use super::upload::{UploadStore, WholeUpload};
use crate::identity::Peer;
use crate::status::Refusal;

/// How an envelope ended, for good. Said only when it is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Stored by this call.
    Stored,
    /// The same identity with the same bytes was here before.
    Duplicate {
        /// The first copy's hash is no longer kept, so the bytes could not be compared.
        unverified: bool,
    },
    /// Other bytes under a used identity.
    Conflict {
        /// Whether they are kept beside.
        kept: bool,
    },
    /// No retry will cure it.
    Refused(Refusal),
}

/// The answer to come. The work behind it goes on whether or not anybody polls it; dropping it cancels nothing but the
/// telling.
///
/// An error is a refusal that a retry can cure: it ends the call, so that nothing overtakes the envelope. (An error with
/// a reason that no retry can cure is told as [`Outcome::Refused`].)
pub type Pending = BoxFuture<'static, Result<Outcome, Refusal>>;

/// Durability of an acknowledgement.
pub use wire::Durability;

/// A line that a device says it is about to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelloLine {
    /// The line.
    pub line: Line,
    /// The lowest number that the device has no acknowledgement for.
    pub first_unacked: Seq,
}

/// A range that a device says it dropped. A hint; only the sealed copy is believed by the cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredGap {
    /// The line.
    pub line: Line,
    /// The first number dropped.
    pub from: Seq,
    /// The last number dropped; not below `from`.
    pub to: Seq,
}

/// Where admitted envelopes go.
///
/// Envelopes of one call are offered one after the other, in the order in which they came, and answered in that order.
pub trait Intake: Send + Sync + 'static {
    /// What the intake remembers of one call, made when the call begins: whether something of it has failed already, for
    /// instance.
    type Call: Default + Send + Sync + 'static;

    /// The keys that statements accepted here have named.
    fn keys(&self) -> &dyn KnownKeys;

    /// The statement in force here for the peer's site; it rides on every answer.
    fn trust(&self, peer: &Peer) -> Option<TrustVersion>;

    /// What an acknowledgement means here.
    fn durability(&self) -> Durability;

    /// Whether a gateway of the same site may pass devices' calls on to this one ([`super::pass`]): where they share what stands behind it.
    fn takes_passed_on(&self) -> bool {
        false
    }

    /// Asked before a call is welcomed and before a batch is looked at: a refusal here (full, not ready, throttled) costs
    /// the least, and ends the call.
    ///
    /// # Errors
    /// A refusal that a retry can cure, with how long to wait.
    fn ready(&self, peer: &Peer) -> Result<(), Refusal>;

    /// Takes one envelope. Returns when its place in the order is fixed; it may wait for room, since that is how pressure
    /// travels back to the sender. A call that is cut drops the future at whatever it awaits: nothing may be left half done
    /// there.
    ///
    /// # Errors
    /// A refusal. One that a retry can cure ends the call; any other is told in band, and the call goes on.
    fn offer(
        &self,
        peer: &Peer,
        call: &Self::Call,
        admitted: Admitted,
    ) -> impl Future<Output = Result<Pending, Refusal>> + Send;

    /// Where large envelopes are gathered.
    ///
    /// # Errors
    /// Why not, if only inline ones are taken, or another one takes them.
    fn uploads(&self) -> Result<&UploadStore, Refusal> {
        Err(uploads_not_supported())
    }

    /// Judges a large envelope by its header, before room is promised and a byte of its body is taken. `None`: it may come.
    /// An outcome: the answer is known, and nothing need be sent.
    ///
    /// # Errors
    /// A refusal, for now or for good.
    fn judge(&self, peer: &Peer, offered: &AdmittedHeader) -> Result<Option<Outcome>, Refusal> {
        let _ = (peer, offered);
        Err(uploads_not_supported())
    }

    /// Decides what becomes of a large envelope that is whole on disk. It is asked again after an error, and after a start;
    /// it may take long, and goes on when the call that asks is cut. With [`Outcome::Stored`] or a duplicate, the file is
    /// the program's: it says [`UploadStore::taken`] or [`UploadStore::release`].
    ///
    /// # Errors
    /// A refusal that a retry can cure.
    fn complete(
        &self,
        peer: &Peer,
        whole: WholeUpload,
    ) -> impl Future<Output = Result<Outcome, Refusal>> + Send {
        let _ = (peer, whole);
        std::future::ready(Err(Refusal::new(ErrorReason::Internal, "nobody takes large envelopes here")))
    }

    /// A device's lines at the beginning of a call. For each, the number up to which nothing need be resent; 0 if none.
    /// As many as were asked, in their order.
    fn hello(&self, peer: &Peer, lines: &[HelloLine]) -> Vec<u64> {
        let _ = peer;
        vec![0; lines.len()]
    }

    /// Ranges that a device says it dropped.
    fn declared(&self, peer: &Peer, gaps: &[DeclaredGap]) {
        let _ = (peer, gaps);
    }

    /// Something was refused for good at admission: to be counted, and where the identity could be read, the number
    /// counts as used.
    fn refused(&self, peer: &Peer, identity: Option<&Identity>, refusal: &Refusal) {
        let _ = (peer, identity, refusal);
    }
}

impl HelloLine {
    pub(super) fn from_wire(device: &DeviceId, line: &wire::hello::Line) -> Result<Self, Refusal> {
        Ok(Self {
            line: line_of(device, &line.stream, line.run, "hello.lines")?,
            first_unacked: Seq::new(line.first_unacked)
                .map_err(|error| Refusal::field("hello.lines.first_unacked", error.to_string()))?,
        })
    }
}

impl DeclaredGap {
    pub(super) fn from_wire(device: &DeviceId, gap: &wire::Gap) -> Result<Self, Refusal> {
        let line = line_of(device, &gap.stream, gap.run, "batch.gaps")?;
        let number = |value| Seq::new(value).map_err(|error| Refusal::field("batch.gaps", error.to_string()));
        let (from, to) = (number(gap.from)?, number(gap.to)?);
        if from > to {
            return Err(Refusal::field("batch.gaps", "begins after its end"));
        }
        Ok(Self { line, from, to })
    }
}

fn line_of(device: &DeviceId, stream: &str, run: u64, field: &'static str) -> Result<Line, Refusal> {
    let stream = StreamName::new(stream).map_err(|error| Refusal::field(field, error.to_string()))?;
    let run = Run::new(run).map_err(|error| Refusal::field(field, error.to_string()))?;
    Ok(Line { device: device.clone(), stream, run })
}

/// What whoever opens an upload is told where only inline envelopes are taken.
fn uploads_not_supported() -> Refusal {
    Refusal::new(ErrorReason::UploadsNotSupported, "this server takes inline envelopes only")
}

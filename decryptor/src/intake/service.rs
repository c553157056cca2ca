//! The pipeline as hop's receiving half sees it.

use super::answer::{Answer, Done};
use super::open::{Large, Parcel, fits_memory};
use super::pipeline::{Offered, Pipeline};
use super::turn::Call;
use crate::books::Books;
use crate::metrics::{Metrics, Outcome as Counted, ReasonLabel};
use crate::sink::{Custody, Hop};
use crate::unwrap::Sender;
use arc_swap::ArcSwap;
use futures_util::FutureExt as _;
use pithead_hop::identity::{Assurance, Peer, Role};
use pithead_hop::ingest::intake::Durability;
use pithead_hop::ingest::{
    Admitted, AdmittedHeader, HelloLine, Intake, KnownKeys, Outcome, Pending, SealedFileError, Standing,
    UploadStore, WholeUpload,
};
use pithead_hop::program::clock;
use pithead_hop::status::Refusal;
use pithead_proto::errors::v1::ErrorReason;
use pithead_proto::keys::v1::TrustVersion;
use pithead_sealing::Identity;
use pithead_sealing::envelope::Profile;
use pithead_sealing::trust::KeyArn;
use sha2::{Digest as _, Sha256};
use std::io::Read as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Whole uploads that are read into memory before the pipeline has counted them: 64 MiB at [`MEMORY_BYTES`](super::open::MEMORY_BYTES) each.
const READ_AT_ONCE: usize = 4;

/// What hop's server hands admitted envelopes to.
#[derive(Debug)]
pub struct Front {
    pipeline: Arc<Pipeline>,
    uploads: UploadStore,
    keys: Known,
    metrics: Arc<Metrics>,
    reading: Semaphore,
}

/// The keys that statements accepted here have named.
#[derive(Debug)]
pub struct Known(pub Arc<ArcSwap<Books>>);

impl KnownKeys for Known {
    fn standing(&self, arn: &KeyArn, identity: &Identity) -> Standing {
        let books = self.0.load();
        if books.is_active(&identity.site, arn) {
            Standing::Active
        } else if books.knows(arn) {
            Standing::NotActive
        } else if books.is_empty() {
            Standing::NotReady
        } else {
            Standing::Unknown
        }
    }
}

impl Front {
    /// In front of this pipeline.
    #[must_use]
    pub fn new(
        pipeline: Arc<Pipeline>,
        uploads: UploadStore,
        books: Arc<ArcSwap<Books>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { pipeline, uploads, keys: Known(books), metrics, reading: Semaphore::new(READ_AT_ONCE) }
    }

    /// A whole upload as the pipeline takes it: in memory if it is small enough, else by its file. Blocks.
    fn parcel_of(
        uploads: UploadStore,
        keys: &Known,
        peer: &Peer,
        whole: &WholeUpload,
    ) -> Result<Parcel, SealedFileError> {
        let trace = uploads.trace_of(&whole.identity);
        let mut file = uploads.read(&whole.identity)?;
        let header = file.header().clone();
        // It was admitted by this profile when it was opened.
        let profile = Profile::of(&header).map_err(|_| SealedFileError::Damaged { at: 0 })?;
        let custody = custody(peer, file.hops());
        let standing = |arn| keys.standing(arn, profile.identity());
        let key_not_active = profile.edks().iter().any(|(arn, _)| standing(arn) == Standing::NotActive);
        let (is_batch, compressed) = (profile.content_type().is_batch(), profile.encoding().is_some());
        let (sealed, envelope_sha256, large) = if fits_memory(is_batch, compressed, whole.total) {
            let mut sealed = Vec::with_capacity(usize::try_from(whole.total).unwrap_or_default());
            file.read_to_end(&mut sealed)?;
            let sha256 = Sha256::digest(&sealed).into();
            (sealed.into(), sha256, None)
        } else {
            (header.wire().clone(), [0; 32], Some(Large { uploads, total: whole.total }))
        };
        let sender = sender(peer, profile.identity());
        Ok(Parcel {
            sealed,
            header,
            profile,
            sha256: whole.header_sha256,
            envelope_sha256,
            large,
            key_not_active,
            custody,
            sender,
            trace,
        })
    }
}

/// Who asks for the data key of an envelope.
pub fn sender(peer: &Peer, identity: &Identity) -> Sender {
    Sender {
        site: identity.site.clone(),
        device: identity.device.clone(),
        gateway: match peer.role() {
            Role::Gateway(name) => Some(name.to_string()),
            Role::Device(_) | Role::Operator(_) | Role::Applicant(_) => None,
        },
    }
}

/// How an envelope came here, by who has brought it.
pub fn custody(peer: &Peer, hops: &[pithead_proto::ingest::v1::Hop]) -> Custody {
    let hops = hops.iter().map(|hop| Hop {
        gateway: hop.gateway.clone(),
        received_us: hop.received_us,
        // A gateway can vouch for what it saw; only a signature proves more, and that is checked here.
        assurance: Assurance::from_wire(hop.assurance).min(Assurance::Vouched),
        certificate_sha256: hex::encode(&hop.certificate_sha256),
        key_not_active: hop.key_not_active,
        conflict: hop.conflict,
    });
    let hops: Arc<[Hop]> = hops.collect();
    // The weakest link: a gateway that took an envelope from an address cannot make more of it.
    let assurance =
        hops.iter().map(|hop| hop.assurance).fold(peer.assurance.min(Assurance::Vouched), Ord::min);
    Custody { assurance, hops, received_us: clock::wall_us() }
}

/// An admitted envelope as the pipeline takes it.
pub fn parcel(peer: &Peer, admitted: Admitted) -> Parcel {
    let sender = sender(peer, admitted.identity());
    let custody = custody(peer, &admitted.hops);
    let (sha256, key_not_active, trace) = (admitted.sha256, admitted.key_not_active, admitted.trace);
    let header = admitted.envelope.header().clone();
    let (sealed, profile) = admitted.envelope.into_parts();
    Parcel {
        sealed,
        header,
        profile,
        sha256,
        envelope_sha256: sha256,
        large: None,
        key_not_active,
        custody,
        sender,
        trace,
    }
}

/// As the sender hears it; `applied` is what this copy of it was.
fn outcome(answer: Answer, applied: Outcome) -> Result<Outcome, Refusal> {
    match answer {
        Ok(Done::Applied) => Ok(applied),
        Ok(Done::Conflict { kept }) => Ok(Outcome::Conflict { kept }),
        Ok(Done::Refused { reason, detail }) => Ok(Outcome::Refused(Refusal::new(reason, detail))),
        Err(again) => Err(again.into()),
    }
}

impl Intake for Front {
    type Call = Call;

    fn keys(&self) -> &dyn KnownKeys {
        &self.keys
    }

    fn trust(&self, peer: &Peer) -> Option<TrustVersion> {
        let books = self.keys.0.load();
        let (epoch, sequence) = books.served().get(peer.site())?.statement.version();
        Some(TrustVersion { epoch, sequence })
    }

    fn durability(&self) -> Durability {
        Durability::Applied
    }

    fn ready(&self, _peer: &Peer) -> Result<(), Refusal> {
        self.pipeline.ready()
    }

    async fn offer(&self, peer: &Peer, call: &Call, admitted: Admitted) -> Result<Pending, Refusal> {
        let answered = match self.pipeline.offer(call, parcel(peer, admitted))? {
            Offered::Duplicate { unverified } => Ok(Outcome::Duplicate { unverified }),
            Offered::UnderWay(ticket) => {
                return Ok(ticket.map(|answer| outcome(answer, Outcome::Stored)).boxed());
            }
            // The first copy came on another call. Should it fail, nothing of this one may be behind it already.
            Offered::SameUnderWay(ticket) => outcome(ticket.await, Outcome::Duplicate { unverified: false }),
        };
        answered.map(|outcome| std::future::ready(Ok(outcome)).boxed())
    }

    fn uploads(&self) -> Result<&UploadStore, Refusal> {
        Ok(&self.uploads)
    }

    fn judge(&self, _peer: &Peer, offered: &AdmittedHeader) -> Result<Option<Outcome>, Refusal> {
        let judged = self.pipeline.judge(offered.profile.identity(), &offered.header_sha256)?;
        Ok(judged.map(|offered| match offered {
            Offered::Duplicate { unverified } => Outcome::Duplicate { unverified },
            Offered::UnderWay(_) | Offered::SameUnderWay(_) => Outcome::Duplicate { unverified: false },
        }))
    }

    async fn complete(&self, peer: &Peer, whole: WholeUpload) -> Result<Outcome, Refusal> {
        let identity = whole.identity.clone();
        let (uploads, keys, peer) = (self.uploads.clone(), Known(Arc::clone(&self.keys.0)), peer.clone());
        let reading = self.reading.acquire().await;
        let parcel = tokio::task::spawn_blocking(move || Self::parcel_of(uploads, &keys, &peer, &whole))
            .await
            .map_err(|error| Refusal::new(ErrorReason::Internal, error.to_string()))?
            .map_err(|error| {
                if let SealedFileError::Disk(error) = &error {
                    tracing::error!(event = "upload.unreadable", %identity, %error);
                    return Refusal::new(ErrorReason::DiskFailed, "the disk does not give the upload now")
                        .retry_after(Duration::from_secs(15));
                }
                tracing::error!(event = "upload.damaged", %identity, %error, "it has to be sent again");
                if let Err(error) = self.uploads.release(&identity) {
                    tracing::error!(event = "upload.not_removed", %error);
                }
                Refusal::new(ErrorReason::NotDurable, "the disk has changed the upload; open it again")
                    .retry_after(Duration::from_secs(1))
            })?;
        // Its sender waits with what follows on its line until this has its answer.
        let offered = self.pipeline.offer(&Call::default(), parcel)?;
        drop(reading);
        let outcome = match offered {
            Offered::Duplicate { unverified } => Outcome::Duplicate { unverified },
            Offered::UnderWay(ticket) => outcome(ticket.await, Outcome::Stored)?,
            Offered::SameUnderWay(ticket) => outcome(ticket.await, Outcome::Duplicate { unverified: false })?,
        };
        if !matches!(outcome, Outcome::Stored | Outcome::Duplicate { .. }) {
            return Ok(outcome);
        }
        // The sink and the ledger have it.
        let uploads = self.uploads.clone();
        match tokio::task::spawn_blocking(move || uploads.release(&identity)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(event = "upload.not_removed", %error),
            Err(error) => tracing::error!(event = "upload.not_removed", %error),
        }
        Ok(outcome)
    }

    fn hello(&self, peer: &Peer, lines: &[HelloLine]) -> Vec<u64> {
        lines.iter().map(|hello| self.pipeline.hello(peer.site(), &hello.line, hello.first_unacked)).collect()
    }

    fn refused(&self, _peer: &Peer, identity: Option<&Identity>, refusal: &Refusal) {
        self.metrics.envelope(Counted::NotAdmitted);
        self.metrics.refused.get_or_create(&ReasonLabel { reason: refusal.reason.name() }).inc();
        let identity = identity.map(ToString::to_string);
        tracing::warn!(event = "envelope.not_admitted", identity, reason = refusal.reason.name(), detail = %refusal.detail);
        if refusal.reason == ErrorReason::KeyUnknown {
            tracing::error!(
                event = "keys.unknown",
                "an envelope names a key that no bundle here has named: is the bundle file current?"
            );
        }
    }
}

//! The pipeline as hop's receiving half sees it.

use super::answer::{Again, Done};
use super::open::Parcel;
use super::pipeline::{Offered, Pipeline};
use crate::books::Books;
use crate::metrics::{Metrics, Outcome as Counted, ReasonLabel};
use crate::sink::{Custody, Hop};
use crate::unwrap::Sender;
use arc_swap::ArcSwap;
use futures_util::FutureExt as _;
use pithead_hop::identity::{Assurance, Peer, Role};
use pithead_hop::ingest::intake::Durability;
use pithead_hop::ingest::{Admitted, HelloLine, Intake, KnownKeys, Outcome, Pending, Standing};
use pithead_hop::program::clock;
use pithead_hop::status::Refusal;
use pithead_proto::errors::v1::ErrorReason;
use pithead_proto::keys::v1::TrustVersion;
use pithead_sealing::Identity;
use pithead_sealing::trust::KeyArn;
use std::sync::Arc;

/// What hop's server hands admitted envelopes to.
#[derive(Debug)]
pub struct Front {
    pipeline: Arc<Pipeline>,
    keys: Known,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Known(Arc<ArcSwap<Books>>);

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
    pub fn new(pipeline: Arc<Pipeline>, books: Arc<ArcSwap<Books>>, metrics: Arc<Metrics>) -> Self {
        Self { pipeline, keys: Known(books), metrics }
    }
}

fn custody(peer: &Peer, hops: &[pithead_proto::ingest::v1::Hop]) -> Custody {
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

fn parcel(peer: &Peer, admitted: Admitted) -> Parcel {
    let identity = admitted.identity();
    let sender = Sender {
        site: identity.site.clone(),
        device: identity.device.clone(),
        gateway: match peer.role() {
            Role::Gateway(name) => Some(name.to_string()),
            Role::Device(_) | Role::Operator(_) => None,
        },
    };
    let custody = custody(peer, &admitted.hops);
    let (sha256, key_not_active) = (admitted.sha256, admitted.key_not_active);
    let header = admitted.envelope.header().clone();
    let (sealed, profile) = admitted.envelope.into_parts();
    Parcel { sealed, header, profile, sha256, key_not_active, custody, sender }
}

fn again(again: Again) -> Refusal {
    let wait = pithead_hop::backoff::spread(again.retry_after, pithead_hop::backoff::random());
    Refusal::new(again.reason, again.detail).retry_after(wait)
}

impl Intake for Front {
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

    async fn offer(&self, peer: &Peer, admitted: Admitted) -> Result<Pending, Refusal> {
        let offered = self.pipeline.offer(parcel(peer, admitted))?;
        Ok(async move {
            let (ticket, same) = match offered {
                Offered::Duplicate { unverified } => return Ok(Outcome::Duplicate { unverified }),
                Offered::UnderWay(ticket) => (ticket, false),
                Offered::SameUnderWay(ticket) => (ticket, true),
            };
            match ticket.await {
                Ok(Done::Applied) if same => Ok(Outcome::Duplicate { unverified: false }),
                Ok(Done::Applied) => Ok(Outcome::Stored),
                Ok(Done::Conflict { kept }) => Ok(Outcome::Conflict { kept }),
                Ok(Done::Refused { reason, detail }) => Ok(Outcome::Refused(Refusal::new(reason, detail))),
                Err(failed) => Err(again(failed)),
            }
        }
        .boxed())
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

//! The judgement of one bundle: what becomes of each of its envelopes, by the books of its site.
//!
//! ```text
//! bundle ── admit ── data keys (all at once) ── open ──> prepared ── judge by the books ──> verdicts, for one entry
//!           hop's    the cache, KMS             the opener's         lines, signatures
//! ```
//! Both halves are those of the pipeline. What differs is the group: here it is the bundle, and it is judged as often as another
//! replica has been quicker, without being opened again. That is sound because books only grow: what was here before stays here, and
//! what has become a duplicate meanwhile is found to be one.
//!
//! A failure that a retry can cure (KMS throttled or away, a denied key, no statement yet, a device that begins too many runs) holds
//! the whole bundle back, and nothing of it is decided: the bucket has it, and nobody else has to send it again.

use super::large::{self, NotHere, NotOpened};
use super::site::{OPERATOR_RETRY, Shared, Waits};
use crate::devices::{Devices, Origin};
use crate::intake::answer::Again;
use crate::intake::open::{self, Parcel, Stopped};
use crate::intake::opener::Opener;
use crate::intake::pipeline::{Ticket, lock};
use crate::intake::registry::{Registry, Verdict as Standing};
use crate::intake::scribe::{Opened, Signers};
use crate::intake::service::{Known, parcel};
use crate::ledger::objects::record::{AppliedEnvelope, Duplicate, Judged, Verdict};
use crate::ledger::record::{Applied, Said, SetAside, Who};
use crate::sink::Delivery;
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use pithead_hop::bundle::{Bundle, ENVELOPE_MAX, Large, Part};
use pithead_hop::identity::{Assurance, Peer, PeerId, Role};
use pithead_hop::ingest::admit;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::Identity;
use pithead_sealing::envelope::LastSession;
use pithead_sealing::envelope::open::Chosen;
use sha2::{Digest as _, Sha256};
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Data keys that are asked for at once for one bundle.
const KEYS_AT_ONCE: usize = 32;

/// What the batches of one bundle may say of their lines, written out: it goes into the entry. A bundle in which every device has just
/// come back from its longest outage says a hundredth of that.
const TOLD_BYTES: usize = 64 << 20;

/// An envelope of a bundle, ready to be judged.
#[derive(Debug)]
pub struct Ready {
    /// Whose it is; what it claims, where it was not opened. None where nobody can tell.
    pub identity: Option<Identity>,
    /// What it is compared by.
    pub sha256: [u8; 32],
    /// Its sealed bytes, to be kept if it ends beside the output; none of a large one, which lies in the bucket already.
    pub sealed: Option<Bytes>,
    /// What it is.
    pub what: What,
}

/// What an envelope is, before the books have judged it.
#[derive(Debug)]
pub enum What {
    /// Authentic.
    Opened(Box<Authentic>),
    /// Something of its identity is here already: it was not opened.
    Seen,
    /// It is not admitted, or will never open.
    Refused {
        /// Why.
        reason: ErrorReason,
        /// For a person.
        detail: Cow<'static, str>,
    },
}

/// What was found in a seal.
#[derive(Debug)]
pub struct Authentic {
    /// Its entry, as soon as it is applied.
    pub applied: Applied,
    /// What the batch says of its lines.
    pub said: Option<Said>,
    /// Who sealed it.
    pub origin: Origin,
    /// What is in it. None where that would be more than is held: then it is opened again for the output.
    pub delivery: Option<Delivery>,
    /// Held for as long as that is.
    _room: Option<OwnedSemaphorePermit>,
}

impl Ready {
    fn refused(
        identity: Option<Identity>,
        sealed: Bytes,
        reason: ErrorReason,
        detail: Cow<'static, str>,
    ) -> Self {
        let sha256 = Sha256::digest(&sealed).into();
        Self { identity, sha256, sealed: Some(sealed), what: What::Refused { reason, detail } }
    }

    /// A large one, of which only what the bundle says is known.
    fn refused_large(large: &Large, reason: ErrorReason, detail: Cow<'static, str>) -> Self {
        let (identity, sha256) = (Some(large.name.identity.clone()), large.header_sha256);
        Self { identity, sha256, sealed: None, what: What::Refused { reason, detail } }
    }
}

/// How far an envelope has come.
enum Step {
    Done(Ready),
    ToOpen(Box<Parcel>),
    Large(Box<Large>, Box<Parcel>),
}

/// Admits the envelopes of a bundle and opens those of which nothing is here. Under a key that nobody here knows, a young bundle waits: the
/// statement that names it may be on its way.
///
/// # Errors
/// One of them cannot be judged now: the bundle waits.
pub async fn prepare(
    shared: &Shared,
    registry: &Arc<Mutex<Registry>>,
    bundle: &Bundle,
    is_young: bool,
) -> Result<Vec<Ready>, Waits> {
    let opener = &shared.opener;
    let held = &shared.held;
    let steps = admit_all(shared, bundle, is_young).await?;
    let (mut large, mut to_open) = (Vec::new(), Vec::new());
    let mut ready: Vec<Option<Ready>> = Vec::with_capacity(steps.len());
    {
        let registry = lock(registry);
        for step in steps {
            match step {
                Step::ToOpen(parcel) if registry.has_seen(parcel.identity(), &parcel.sha256) => {
                    let Parcel { sealed, sha256, .. } = *parcel;
                    let identity = Some(parcel.profile.identity().clone());
                    ready.push(Some(Ready { identity, sha256, sealed: Some(sealed), what: What::Seen }));
                }
                Step::ToOpen(parcel) => {
                    to_open.push((ready.len(), parcel));
                    ready.push(None);
                }
                Step::Large(_, parcel) if registry.has_seen(parcel.identity(), &parcel.sha256) => {
                    let identity = Some(parcel.profile.identity().clone());
                    ready.push(Some(Ready {
                        identity,
                        sha256: parcel.sha256,
                        sealed: None,
                        what: What::Seen,
                    }));
                }
                Step::Large(one, parcel) => {
                    large.push((ready.len(), one, parcel));
                    ready.push(None);
                }
                Step::Done(done) => ready.push(Some(done)),
            }
        }
    }
    let mut told = Told::default();
    // One after the other: each may take minutes.
    for (index, one, parcel) in large {
        ready[index] = Some(open_large(shared, registry, &one, &parcel, &mut told).await?);
    }
    for (index, opened) in open_all(opener, held, registry, to_open, told).await? {
        ready[index] = Some(opened);
    }
    Ok(ready.into_iter().flatten().collect())
}

/// The gateway that has packed it brings what it vouches for, as it would over a call of its own. What binds it to its site is who
/// may write below the site's folder of the bucket.
pub(super) fn packer(bundle: &Bundle) -> Peer {
    let index = bundle.index();
    let id = PeerId { site: index.site.clone(), role: Role::Gateway(index.gateway.clone()) };
    Peer { id, certificate_sha256: None, assurance: Assurance::Vouched, passed_on_by: None }
}

async fn admit_all(shared: &Shared, bundle: &Bundle, is_young: bool) -> Result<Vec<Step>, Waits> {
    let (peer, keys) = (packer(bundle), Known(Arc::clone(&shared.opener.books)));
    let mut last = LastSession::default();
    let mut steps = Vec::with_capacity(bundle.index().entries.len());
    for (entry, part) in bundle.parts() {
        steps.push(match part {
            Part::Damaged(sealed) => {
                let detail = "the bundle's own checksum of it does not hold";
                Step::Done(Ready::refused(None, sealed, ErrorReason::Checksum, detail.into()))
            }
            Part::Envelope(sealed) => {
                match admit(sealed.clone(), entry.hops(), &peer, &keys, ENVELOPE_MAX, &mut last) {
                    Ok(admitted) => Step::ToOpen(Box::new(parcel(&peer, admitted))),
                    Err(error) if error.refusal.is_retryable() => {
                        let retry_after = error.refusal.retry_after.unwrap_or(NOT_READY_WAIT);
                        let (reason, detail) = (error.refusal.reason, error.refusal.detail);
                        return Err(Again { reason, detail, retry_after }.into());
                    }
                    Err(error) if is_young && error.refusal.reason == ErrorReason::KeyUnknown => {
                        return Err(key_to_come(error.refusal.detail).into());
                    }
                    Err(error) => {
                        let identity = error.identity.map(|identity| *identity);
                        let (reason, detail) = (error.refusal.reason, error.refusal.detail);
                        Step::Done(Ready::refused(identity, sealed, reason, detail))
                    }
                }
            }
            Part::Large(one) => match large::admitted(&shared.bucket, &peer, &keys, entry, one).await {
                Ok(parcel) => Step::Large(Box::new(one.clone()), parcel),
                Err(NotHere::Waits(waits)) => return Err(waits),
                Err(NotHere::Refused(refusal)) if is_young && refusal.reason == ErrorReason::KeyUnknown => {
                    return Err(key_to_come(refusal.detail).into());
                }
                Err(NotHere::Refused(refusal)) => {
                    let (reason, detail) = (refusal.reason, refusal.detail);
                    Step::Done(Ready::refused_large(one, reason, detail))
                }
            },
        });
    }
    Ok(steps)
}

/// A large one: in memory if it fits, else as it is read. Its content is read again for the output.
async fn open_large(
    shared: &Shared,
    registry: &Arc<Mutex<Registry>>,
    large: &Large,
    parcel: &Parcel,
    told: &mut Told,
) -> Result<Ready, Waits> {
    let opened = if large::is_streamed(parcel, large) {
        large::judged(shared, registry, parcel, large).await.map(|(applied, origin)| (applied, None, origin))
    } else {
        let parcel = large::whole(shared, parcel, large).await?;
        in_memory(shared, registry, &parcel).await.map_err(NotOpened::from)
    };
    let what = match opened {
        Ok((applied, said, origin)) => {
            shared.opener.saw(&parcel.profile);
            let said = told.take(parcel.identity(), said);
            What::Opened(Box::new(Authentic { applied, said, origin, delivery: None, _room: None }))
        }
        Err(NotOpened::Waits(waits)) => return Err(waits),
        Err(NotOpened::Stopped(Stopped::Again(again))) => return Err(again.into()),
        Err(NotOpened::Stopped(Stopped::Poison { reason, detail })) => What::Refused { reason, detail },
    };
    let (identity, sha256) = (Some(parcel.identity().clone()), parcel.sha256);
    Ok(Ready { identity, sha256, sealed: None, what })
}

async fn in_memory(
    shared: &Shared,
    registry: &Arc<Mutex<Registry>>,
    parcel: &Parcel,
) -> Result<(Applied, Option<Said>, Origin), Stopped> {
    let opener = &shared.opener;
    let chosen = opener.choose(parcel)?;
    let session = opener.data_key(&chosen, &parcel.sender).await?;
    let (registry, identity) = (Arc::clone(registry), parcel.identity().clone());
    let bar = move |devices: &Devices, origin: &Origin| lock(&registry).bar(devices, &identity, origin);
    let judge = opener.judge(&parcel.profile, &session, bar);
    let opened = opener.open(parcel, chosen, session, std::path::Path::new(""), judge).await?;
    Ok((opened.applied, opened.said, opened.delivery.origin))
}

/// The key is one that this replica has not been told of: gateways may have been first. What is set aside for it is set aside by all.
fn key_to_come(detail: Cow<'static, str>) -> Again {
    Again { reason: ErrorReason::KeyUnknown, detail, retry_after: OPERATOR_RETRY }
}

/// When the store of statements is empty.
pub(super) const NOT_READY_WAIT: Duration = Duration::from_secs(10);

type Parcels = Vec<(usize, Box<Parcel>)>;

/// Gets all data keys, many at once, then opens one after the other on a thread that may block.
async fn open_all(
    opener: &Opener,
    held: &Arc<Semaphore>,
    registry: &Arc<Mutex<Registry>>,
    to_open: Parcels,
    mut told: Told,
) -> Result<Vec<(usize, Ready)>, Again> {
    let keyed = to_open.into_iter().map(|(index, parcel)| async move {
        let keyed = async {
            let chosen = opener.choose(&parcel)?;
            let session = opener.data_key(&chosen, &parcel.sender).await?;
            Ok::<_, Stopped>((chosen, session))
        };
        // The first that has to wait ends it for all: the bundle waits, and what KMS does not answer now is not asked a thousand times.
        let keyed = keyed.await;
        match keyed {
            Ok(keyed) => Ok((index, parcel, Ok(keyed))),
            Err(Stopped::Again(again)) => Err(again),
            Err(poison @ Stopped::Poison { .. }) => Ok((index, parcel, Err(poison))),
        }
    });
    let keyed: Vec<_> = futures_util::stream::iter(keyed).buffered(KEYS_AT_ONCE).try_collect().await?;
    let mut jobs = Vec::with_capacity(keyed.len());
    for (index, parcel, keyed) in keyed {
        let work = match keyed {
            Ok((chosen, session)) => {
                let (registry, identity) = (Arc::clone(registry), parcel.identity().clone());
                let judge = opener.judge(&parcel.profile, &session, move |devices: &Devices, origin: &_| {
                    lock(&registry).bar(devices, &identity, origin)
                });
                Ok((chosen, move |parcel: &Parcel, chosen: Chosen| {
                    open::open(parcel, chosen, session.unwrapped(), judge)
                }))
            }
            Err(stopped) => Err(stopped),
        };
        jobs.push((index, parcel, work));
    }
    let held = Arc::clone(held);
    let opened = opener
        .blocking(move || {
            jobs.into_iter()
                .map(|(index, parcel, work)| {
                    let opened = work.and_then(|(chosen, open)| open(&parcel, chosen));
                    let authentic = opened.map(|Opened { delivery, applied, said }| {
                        let bytes = u32::try_from(delivery.content.plaintext().len()).unwrap_or(u32::MAX);
                        let room = Arc::clone(&held).try_acquire_many_owned(bytes).ok();
                        let origin = delivery.origin;
                        let delivery = room.is_some().then_some(delivery);
                        let said = told.take(parcel.identity(), said);
                        Authentic { applied, said, origin, delivery, _room: room }
                    });
                    (index, parcel, authentic)
                })
                .collect::<Vec<_>>()
        })
        .await?;
    let mut ready = Vec::with_capacity(opened.len());
    for (index, parcel, opened) in opened {
        let what = match opened {
            Ok(opened) => {
                opener.saw(&parcel.profile);
                What::Opened(Box::new(opened))
            }
            Err(Stopped::Again(again)) => return Err(again),
            Err(Stopped::Poison { reason, detail }) => What::Refused { reason, detail },
        };
        let Parcel { sealed, sha256, profile, .. } = *parcel;
        let identity = Some(profile.identity().clone());
        ready.push((index, Ready { identity, sha256, sealed: Some(sealed), what }));
    }
    Ok(ready)
}

/// What the batches of one bundle say, counted: of all of them together, small or large.
#[derive(Debug, Default)]
struct Told(usize);

impl Told {
    /// What a batch says, if the entry has room for it. If not, it stays a hole, which is to be looked at and not to be believed.
    fn take(&mut self, identity: &Identity, said: Option<Said>) -> Option<Said> {
        let said = said?;
        let with = self.0.saturating_add(prost::Message::encoded_len(&said));
        if with > TOLD_BYTES {
            tracing::warn!(event = "gap.unnoted", %identity, "the batches of this bundle say more than an entry takes");
            return None;
        }
        self.0 = with;
        Some(said)
    }
}

/// Why a prepared bundle is not decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotJudged {
    /// It waits.
    Again(Again),
    /// Something that was here when it was prepared is here no more: prepare it again.
    Prepare,
}

/// Judges a prepared bundle by the books. Nothing of the books is changed: what an entry says, changes them.
///
/// # Errors
/// [`NotJudged`].
pub fn judge(
    registry: &mut Registry,
    devices: &Devices,
    ready: &[Ready],
    now_us: u64,
) -> Result<Vec<Judged>, NotJudged> {
    let mut claims: HashMap<&Identity, [u8; 32]> = HashMap::new();
    let verdicts = judge_all(registry, devices, ready, now_us, &mut claims);
    for identity in claims.into_keys() {
        registry.withdraw(identity);
    }
    verdicts
}

fn judge_all<'a>(
    registry: &mut Registry,
    devices: &Devices,
    ready: &'a [Ready],
    now_us: u64,
    claims: &mut HashMap<&'a Identity, [u8; 32]>,
) -> Result<Vec<Judged>, NotJudged> {
    // Nobody waits for it: this is the only one who claims here.
    let ticket: Ticket = async { Err(crate::intake::lost()) }.boxed().shared();
    let mut signers = Signers::default();
    let mut verdicts = Vec::with_capacity(ready.len());
    for one in ready {
        let aside = |reason: ErrorReason| {
            let kept = one.sealed.is_some();
            Verdict::SetAside(SetAside {
                who: one.identity.as_ref().map(Who::of),
                sha256: Bytes::copy_from_slice(&one.sha256),
                reason: reason as i32,
                kept,
                received_us: now_us,
            })
        };
        let duplicate =
            |identity, unverified| Verdict::Duplicate(Duplicate { who: Some(Who::of(identity)), unverified });
        let verdict = match (&one.what, &one.identity) {
            (What::Refused { reason, .. }, _) => aside(*reason),
            (What::Opened(_) | What::Seen, None) => aside(ErrorReason::Internal),
            (what, Some(identity)) => match claims.get(identity) {
                Some(first) if *first == one.sha256 => duplicate(identity, false),
                Some(_) => aside(ErrorReason::Conflict),
                None => match registry.claim(identity, &one.sha256, now_us, &ticket) {
                    Standing::Duplicate { unverified } => duplicate(identity, unverified),
                    Standing::SameUnderWay(_) => duplicate(identity, false),
                    Standing::Conflict => aside(ErrorReason::Conflict),
                    Standing::Refused(refusal) if refusal.is_retryable() => {
                        return Err(NotJudged::Again(Again {
                            reason: refusal.reason,
                            detail: refusal.detail,
                            retry_after: refusal.retry_after.unwrap_or(NOT_READY_WAIT),
                        }));
                    }
                    Standing::Refused(refusal) => aside(refusal.reason),
                    Standing::New => {
                        let What::Opened(opened) = what else {
                            registry.withdraw(identity);
                            return Err(NotJudged::Prepare);
                        };
                        let origin = opened.origin;
                        let by_books = registry.bar(devices, identity, &origin);
                        if let Some(barred) = signers.bar(identity, &origin, by_books) {
                            registry.withdraw(identity);
                            aside(barred.reason())
                        } else {
                            claims.insert(identity, one.sha256);
                            let mut applied = opened.applied.clone();
                            applied.received_us = now_us;
                            let said = opened.said.clone();
                            Verdict::Applied(AppliedEnvelope { applied: Some(applied), said })
                        }
                    }
                },
            },
        };
        verdicts.push(Judged { verdict: Some(verdict) });
    }
    Ok(verdicts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::record::SaidGap;
    use crate::sink::testing::identity;

    #[test]
    fn what_all_batches_of_a_bundle_say_together_has_one_bound() {
        let identity = identity("truck-1", 1);
        let says = |bytes: usize| {
            let gap = SaidGap { stream: "x".repeat(bytes), ..SaidGap::default() };
            Some(Said { gaps: vec![gap], ..Said::default() })
        };
        let mut told = Told::default();
        let taken = |told: &mut Told, bytes| told.take(&identity, says(bytes)).is_some();
        assert!(taken(&mut told, TOLD_BYTES / 2));
        assert!(!taken(&mut told, TOLD_BYTES / 2 + 1));
        // What still fits is taken.
        assert!(taken(&mut told, TOLD_BYTES / 4) && told.take(&identity, None).is_none());
        assert!(told.0 <= TOLD_BYTES);
    }
}

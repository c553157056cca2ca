//! The output of an entry, out of its bundle: the same whoever writes it, and whenever.
//!
//! What was opened for the judgement is used where it is still at hand; everything else is opened again, by what the entry says of
//! it: neither the books nor the registry of devices are asked a second time.

use super::judge::{self, Ready, What};
use super::large::{self, NotHere, NotOpened};
use super::site::{Shared, Waits};
use crate::devices::Origin;
use crate::intake::open::{Parcel, Stopped};
use crate::intake::scribe::Opened;
use crate::intake::service::parcel;
use crate::ledger::objects::record::{AppliedEnvelope, Decision, Verdict};
use crate::ledger::record::Applied;
use crate::sink::Delivery;
use crate::sink::objects::Lines;
use bytes::Bytes;
use pithead_hop::bundle::{Bundle, ENVELOPE_MAX, Entry, Large, Part};
use pithead_hop::ingest::{KnownKeys, Standing, admit};
use pithead_sealing::Identity;
use pithead_sealing::envelope::LastSession;
use pithead_sealing::trust::KeyArn;
use std::sync::Arc;

/// Plaintext that is turned into lines at once, on a thread that may block.
const PIECE_BYTES: usize = 4 << 20;

/// Writes what an entry has: what is set aside, then its lines.
///
/// # Errors
/// [`Waits`].
pub async fn write(
    shared: &Arc<Shared>,
    decision: &Arc<Decision>,
    bundle: &Bundle,
    ready: Vec<Ready>,
) -> Result<(), Waits> {
    let mut ready = ready.into_iter().map(Some).collect::<Vec<_>>();
    ready.resize_with(decision.envelopes.len(), || None);
    let mut lines = Writing::begin()?;
    for (index, (((entry, part), judged), ready)) in
        bundle.parts().zip(&decision.envelopes).zip(ready).enumerate()
    {
        match (&judged.verdict, part) {
            (Some(Verdict::SetAside(aside)), Part::Envelope(sealed) | Part::Damaged(sealed))
                if aside.kept =>
            {
                shared.sink.keep(&decision.site, aside, sealed).await.map_err(Waits::Sink)?;
            }
            (Some(Verdict::Applied(verdict)), Part::Envelope(sealed)) => {
                let mut delivery = match opened(ready) {
                    Some(delivery) => delivery,
                    None => reopened(shared, decision, bundle, entry, verdict, sealed).await?,
                };
                delivery.custody.received_us = decision.decided_us;
                lines.add(delivery, None).await?;
            }
            (Some(Verdict::Applied(verdict)), Part::Large(one)) => {
                let (mut delivery, file) =
                    large_again(shared, decision, bundle, entry, verdict, (index, one)).await?;
                delivery.custody.received_us = decision.decided_us;
                lines.add(delivery, file).await?;
            }
            // It was whole when it was judged.
            (Some(Verdict::Applied(_)), Part::Damaged(_)) => return Err(changed(decision)),
            // A large one that is set aside lies where it was, and of a duplicate nothing is to be written.
            (Some(Verdict::SetAside(_) | Verdict::Duplicate(_)) | None, _) => {}
        }
    }
    if let Some(lines) = lines.finish().await? {
        shared.metrics.bucket.sink_bytes.inc_by(lines.len() as u64);
        shared.sink.put_lines(decision, lines).await.map_err(Waits::Sink)?;
    }
    shared.metrics.sink_commits.inc();
    Ok(())
}

/// Lines on their way into one object.
struct Writing {
    lines: Option<Lines>,
    waiting: Vec<(Delivery, Option<String>)>,
    bytes: usize,
    envelopes: usize,
}

impl Writing {
    fn begin() -> Result<Self, Waits> {
        let lines = Some(Lines::begin().map_err(no_memory)?);
        Ok(Self { lines, waiting: Vec::new(), bytes: 0, envelopes: 0 })
    }

    async fn add(&mut self, delivery: Delivery, file: Option<String>) -> Result<(), Waits> {
        self.bytes += delivery.content.plaintext().len();
        self.envelopes += 1;
        self.waiting.push((delivery, file));
        if self.bytes >= PIECE_BYTES { self.press().await } else { Ok(()) }
    }

    async fn press(&mut self) -> Result<(), Waits> {
        let (waiting, lines) = (std::mem::take(&mut self.waiting), self.lines.take());
        let mut lines = lines.ok_or_else(crate::intake::lost)?;
        self.bytes = 0;
        let pressed = tokio::task::spawn_blocking(move || {
            for (delivery, file) in &waiting {
                lines.add(delivery, file.as_deref())?;
            }
            Ok(lines)
        });
        self.lines = Some(pressed.await.map_err(|_| crate::intake::lost())?.map_err(no_memory)?);
        Ok(())
    }

    /// The object; none if there are no lines to write at all.
    async fn finish(mut self) -> Result<Option<Bytes>, Waits> {
        if self.envelopes == 0 {
            return Ok(None);
        }
        self.press().await?;
        let lines = self.lines.ok_or_else(crate::intake::lost)?;
        lines.finish().map(Some).map_err(no_memory)
    }
}

fn opened(ready: Option<Ready>) -> Option<Delivery> {
    match ready?.what {
        What::Opened(authentic) => authentic.delivery,
        What::Seen | What::Refused { .. } => None,
    }
}

fn no_memory(error: std::io::Error) -> Waits {
    Waits::Sink(object_store::Error::Generic { store: "lines", source: Box::new(error) })
}

/// The bundle is not what it was when it was judged.
fn changed(decision: &Decision) -> Waits {
    let key = decision.bundle.as_ref().map(|bundle| bundle.key.clone()).unwrap_or_default();
    Waits::Changed { key, number: decision.number }
}

/// Every key that an entry has let through.
struct Decided;

impl KnownKeys for Decided {
    fn standing(&self, _: &KeyArn, _: &Identity) -> Standing {
        Standing::Active
    }
}

/// Opens an envelope again that the entry says is applied.
async fn reopened(
    shared: &Arc<Shared>,
    decision: &Decision,
    bundle: &Bundle,
    entry: &Entry,
    verdict: &AppliedEnvelope,
    sealed: Bytes,
) -> Result<Delivery, Waits> {
    let changed = || changed(decision);
    let applied = verdict.applied.as_ref().ok_or_else(changed)?;
    let peer = judge::packer(bundle);
    let admitted = admit(sealed, entry.hops(), &peer, &Decided, ENVELOPE_MAX, &mut LastSession::default());
    let parcel = parcel(&peer, admitted.map_err(|_| changed())?);
    // The bundle's own sums tell accidents alone.
    if parcel.sha256 != applied.sha256[..] {
        return Err(changed());
    }
    let origin = origin_of(applied, &parcel);
    match open_again(shared, &parcel, origin).await {
        Ok(opened) => Ok(opened.delivery),
        Err(Stopped::Again(again)) => Err(again.into()),
        Err(Stopped::Poison { .. }) => Err(changed()),
    }
}

/// A large envelope that the entry says is applied: into memory if it fits, else into an object of its own, which its line names.
async fn large_again(
    shared: &Arc<Shared>,
    decision: &Decision,
    bundle: &Bundle,
    entry: &Entry,
    verdict: &AppliedEnvelope,
    (index, one): (usize, &Large),
) -> Result<(Delivery, Option<String>), Waits> {
    let key = one.name.to_string();
    let changed = || Waits::Changed { key: key.clone(), number: decision.number };
    let applied = verdict.applied.as_ref().ok_or_else(changed)?;
    let peer = judge::packer(bundle);
    let parcel = match large::admitted(&shared.bucket, &peer, &Decided, entry, one).await {
        Ok(parcel) => parcel,
        Err(NotHere::Waits(waits)) => return Err(waits),
        Err(NotHere::Refused(_)) => return Err(changed()),
    };
    if parcel.sha256 != applied.sha256[..] {
        return Err(changed());
    }
    let origin = origin_of(applied, &parcel);
    if large::is_streamed(&parcel, one) {
        let to = shared.sink.large_key(decision, index);
        // By what it was found to have when it was judged.
        let known = (origin, applied.plaintext_bytes);
        return match large::written(shared, &parcel, one, known, &to).await {
            Ok(delivery) => Ok((delivery, Some(shared.sink.as_named(&to)))),
            Err(NotOpened::Waits(waits)) => Err(waits),
            Err(NotOpened::Stopped(_)) => Err(changed()),
        };
    }
    let parcel = large::whole(shared, &parcel, one).await?;
    match open_again(shared, &parcel, origin).await {
        Ok(opened) => Ok((opened.delivery, None)),
        Err(Stopped::Again(again)) => Err(again.into()),
        Err(Stopped::Poison { .. }) => Err(changed()),
    }
}

async fn open_again(shared: &Shared, parcel: &Parcel, origin: Origin) -> Result<Opened, Stopped> {
    let chosen = shared.opener.choose(parcel)?;
    let session = shared.opener.data_key(&chosen, &parcel.sender).await?;
    shared.opener.open(parcel, chosen, session, std::path::Path::new(""), move |_| Ok(origin)).await
}

/// Who sealed it, as the entry has it.
fn origin_of(applied: &Applied, parcel: &Parcel) -> Origin {
    match (applied.signed_by(), parcel.profile.signature()) {
        (Some(kid), _) => Origin::Signed(kid),
        (None, Some(claim)) if applied.unknown_key => Origin::UnknownKey(claim.kid),
        (None, _) => Origin::Unsigned,
    }
}

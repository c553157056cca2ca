//! The relay into an object store: from the spool into bundles, and out of the spool only what a bundle in the store has.
//!
//! Nobody answers for envelopes there: a PUT is answered, and with it all that the bundle holds. So records are gathered, lane by
//! lane, until a bundle is full or its oldest record has waited long enough; one bundle at a time is put, the higher lane
//! first, and a lane's bundles in the order of their places. A store refuses no envelope, so nothing is set aside for it but what
//! no bundle can hold.
//!
//! What holds:
//! 1. A record leaves the spool when the bundle that holds it was answered, or was found in the store and compared.
//! 2. A bundle's name is that of its first record's place. After a lost answer or a kill the relay packs from the first record
//!    that it knows no answer for and comes to the same name; it is taken, and what is there says how far it goes ([`found`]). So
//!    nothing is put twice but what lies behind a large envelope when the gateway is killed, and that in whole records.
//!    Gateways that share their lanes come to the same names too: a take-over is to the store what a restart is.
//! 3. Another bundle under the name, or something that is none, is an alarm: the relay stands still until somebody has looked.
//! 4. A large envelope goes up in parts ([`parts`]), and is looked at by nobody before the bundle that names it. What is behind
//!    it on its own line goes in a bundle behind that one; everything else goes on.
//!
//! ```text
//! lanes of the spool ─ read ─> a bundle per lane ─ full or old ─> turns ─ pay ─> PUT if absent ─> passed on ─> acknowledged
//!                                                                                 └ taken: compare, go on behind it
//! ```

mod found;
mod gather;
mod journal;
mod parts;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use pithead_hop::bundle::SpoolId;
use pithead_hop::identity::GatewayName;
use pithead_hop::ingest::Answer;
use pithead_hop::objects::{Created, Settings, Store};
use pithead_hop::program::disk;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::{Line, Site};
use pithead_spool::Lane;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::found::Found;
use self::gather::{Gathered, Outgoing};
use self::journal::Journals;
use self::parts::IntoStore;
use super::alarm::Alarm;
use super::control::{Cause, Orders};
use super::feeds::Feeds;
use super::large::{Large, LargeEnded};
use super::pace::Toll;
use super::progress::Progress;
use super::settle::Together;
use super::{Calling, Ended, Lent, Relay, called_off, is_paused, reached};
use crate::envelopes::lanes;
use crate::envelopes::spool::EnvelopeSpool;
use crate::metrics::Outcome as Counted;

/// Into which store, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct StoreTarget {
    /// Where it is.
    pub settings: Settings,
    /// Bytes of envelopes that make a bundle full.
    pub bundle_bytes: u64,
    /// A bundle that is not full goes out when its oldest record has waited so long.
    pub bundle_delay: Duration,
}

/// What of the gateway stands in a bundle and beside it.
#[derive(Debug, Clone)]
pub struct Sender {
    /// The site of its certificate.
    pub site: Site,
    /// The name in its certificate.
    pub gateway: GatewayName,
    /// What names its spool; none where gateways share one, which is named with it.
    pub spool: Option<SpoolId>,
    /// Where it is written down how far large envelopes are.
    pub journals: PathBuf,
}

impl Sender {
    /// Whose lanes these are, and what names them. Gateways that share them have the site's name for that: whoever owns them next comes
    /// to the same names, as it would after a restart, finds what was put, and goes on behind it. None if they are shared and somebody
    /// else's.
    fn origin(&self, spool: &EnvelopeSpool) -> Option<(GatewayName, SpoolId)> {
        match self.spool {
            Some(own) => Some((self.gateway.clone(), own)),
            // A site's name is good for a gateway's: shorter, and of fewer characters.
            None => Some((GatewayName::new(self.site.as_str()).ok()?, spool.shared_id()?)),
        }
    }
}

/// What names a spool in a store: drawn once, and kept in its folder, so that it goes when the spool goes. What does not read is
/// drawn anew: then what was on its way goes again, under another name. Blocks.
///
/// # Errors
/// When the disk does not give or take it.
pub fn spool_id(spool: &Path) -> io::Result<SpoolId> {
    let path = spool.join("id");
    match std::fs::read_to_string(&path) {
        Ok(text) => match SpoolId::from_hex(text.trim_end()) {
            Ok(id) => return Ok(id),
            Err(error) => tracing::warn!(event = "spool.id_damaged", path = %path.display(), %error),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            tracing::warn!(event = "spool.id_damaged", path = %path.display(), %error);
        }
        Err(error) => return Err(error),
    }
    let id = SpoolId::draw()?;
    disk::replace(&path, format!("{id}\n").as_bytes())?;
    Ok(id)
}

/// Into a store, call by call: one lasts for as long as the store answers.
struct Calls(Sender);

impl Calling for Calls {
    type Target = StoreTarget;

    fn place(target: &StoreTarget) -> String {
        match &target.settings.endpoint {
            Some(endpoint) => format!("{endpoint} {}", target.settings.url),
            None => target.settings.url.clone(),
        }
    }

    fn window_bytes(target: &StoreTarget) -> u64 {
        target.bundle_bytes
    }

    fn call(
        &self,
        relay: &Relay,
        target: &StoreTarget,
        lent: Lent<'_, StoreTarget>,
    ) -> impl Future<Output = Ended> + Send {
        relay.put_into_store(&self.0, target, lent)
    }
}

/// While the store is reached.
struct Call {
    /// This gateway, whosever the spool is.
    own: GatewayName,
    store: Store,
    delay: Duration,
    journals: Arc<Journals>,
    tolerant: Option<Lane>,
    feeds: Feeds,
    large: Large,
    gathered: Gathered,
    toll: Toll,
    under_way: Option<UnderWay>,
}

struct UnderWay {
    bytes: u64,
    put: BoxFuture<'static, (Outgoing, Put)>,
}

/// What came of a PUT.
enum Put {
    /// It is there.
    New,
    /// It, or what was packed from the same place before, was there.
    Found(Found),
    /// It failed, and may be there.
    Failed(Ended),
}

impl Relay {
    /// As [`run`](Self::run), into an object store.
    pub async fn run_into_store(
        self,
        sender: Sender,
        targets: watch::Receiver<StoreTarget>,
        stop: CancellationToken,
    ) {
        self.call_on_and_on(Calls(sender), targets, stop).await;
    }

    async fn put_into_store(
        &self,
        sender: &Sender,
        target: &StoreTarget,
        lent: Lent<'_, StoreTarget>,
    ) -> Ended {
        let Lent { targets, progress, alarm, stop, tolerant, trace: _ } = lent;
        // Its term is over: there is nothing to read.
        let Some(origin) = sender.origin(&self.spool) else { return Ended::Stopped };
        let mut orders = self.control.subscribe();
        let opening = async {
            let store = Store::open(&target.settings).await?;
            // A store that writes over what is there would make a lie of every name: nothing is put before it has shown that
            // it does not.
            store.probe().await?;
            let journals = Journals::open(sender.journals.clone(), Calls::place(target)).await;
            Ok::<_, Ended>((store, Arc::new(journals.map_err(Ended::Journal)?)))
        };
        let (store, journals) = tokio::select! {
            opened = opening => match opened {
                Ok(opened) => opened,
                Err(ended) => return ended,
            },
            ended = called_off(&mut orders, targets, stop) => return ended,
        };
        self.up();
        let way =
            IntoStore { parts: self.large_parts(), store: store.clone(), journals: Arc::clone(&journals) };
        let mut call = Call {
            own: sender.gateway.clone(),
            store,
            delay: target.bundle_delay,
            journals,
            tolerant,
            feeds: Feeds::new(&self.spool, |lane| progress.begin(lane), tolerant),
            large: Large::new(Arc::new(way)),
            gathered: Gathered::new(sender, origin, target.bundle_bytes),
            toll: self.control.pace().toll(),
            under_way: None,
        };
        let mut ended = self.put_and_listen(&mut call, progress, alarm, &mut orders, targets, stop).await;
        if matches!(ended, Ended::Paused | Ended::Moved | Ended::Stopped)
            && let Some(under_way) = call.under_way.take()
        {
            // It ends by itself: every request has its time.
            let (outgoing, put) = under_way.put.await;
            if let Err(error) = self.settle_put(&mut call, outgoing, put, progress, alarm).await {
                ended = error;
            }
        }
        if call.large.has_advanced() {
            progress.brought_forward();
        }
        self.show_in_flight(0);
        ended
    }

    async fn put_and_listen(
        &self,
        call: &mut Call,
        progress: &mut Progress,
        alarm: &mut Alarm,
        orders: &mut watch::Receiver<Orders>,
        targets: &mut watch::Receiver<StoreTarget>,
        stop: &CancellationToken,
    ) -> Ended {
        let mut to_tidy = true;
        loop {
            if let Err(ended) = self.gather(call, progress).await {
                return ended;
            }
            if to_tidy
                && call.large.is_idle()
                && let Some(parts) = call.store.parts()
            {
                to_tidy = false;
                // What the store keeps of large envelopes that are no longer here is paid for until somebody says so.
                tokio::select! {
                    () = call.journals.forget_gone(&parts, &self.uploads) => {}
                    () = is_paused(orders) => return Ended::Paused,
                    () = stop.cancelled() => return Ended::Stopped,
                }
            }
            call.feeds.used_up().for_each(|(lane, position)| progress.reached(lane, position));
            call.large.begin(|lane, position| progress.is_first(lane, position));
            let to_pay = self.put_next(call);
            self.show_in_flight(call.under_way.as_ref().map_or(0, |under_way| under_way.bytes));
            let retry_at = call.large.retry_at();
            let old_at = call.under_way.is_none().then(|| call.gathered.old_at(call.delay)).flatten();
            let Call { feeds, large, toll, under_way, .. } = &mut *call;
            tokio::select! {
                (outgoing, put) = ended_put(under_way) => {
                    call.under_way = None;
                    if let Err(error) = self.settle_put(call, outgoing, put, progress, alarm).await {
                        return error;
                    }
                }
                readable = feeds.readable() => match readable {
                    Ok(lane) => {
                        if let Err(error) = self.read(feeds, lane).await {
                            return error.into();
                        }
                    }
                    Err(_) => return Ended::Stopped,
                },
                (line, ended) = large.ended() => {
                    to_tidy = true;
                    if let Err(error) = self.name_or_take(call, &line, ended, progress, alarm).await {
                        return error;
                    }
                },
                () = reached(retry_at) => {}
                () = reached(old_at) => {}
                () = pay(toll, to_pay) => {}
                () = progress.due() => progress.reclaim_now().await,
                ended = called_off(orders, targets, stop) => return ended,
            }
        }
    }

    /// A large envelope that is whole in the store is named by a bundle, which is looked at; anything else is settled.
    async fn name_or_take(
        &self,
        call: &mut Call,
        line: &Line,
        ended: LargeEnded,
        progress: &mut Progress,
        alarm: &mut Alarm,
    ) -> Result<(), Ended> {
        let Call { own, large, gathered, .. } = call;
        if !matches!(ended, LargeEnded::Answered(_)) {
            return self.take_large(large, line, ended, progress, alarm).await;
        }
        let Some(sent) = large.whole(line) else { return Ok(()) };
        let Err(error) = gathered.add_large(own, line, sent) else { return Ok(()) };
        let (reason, detail) = (Some(ErrorReason::RequestInvalid), error.to_string());
        let refused = LargeEnded::Answered(Answer::Refused { reason, detail });
        self.take_large(large, line, refused, progress, alarm).await
    }

    /// Begins to put the bundle whose turn it is, if none is under way and it is paid for; else gives what is to be paid.
    fn put_next(&self, call: &mut Call) -> Option<u64> {
        if call.under_way.is_some() {
            return None;
        }
        let (lane, bytes) = call.gathered.next(call.delay)?;
        if !call.toll.covers(bytes) {
            return Some(bytes);
        }
        let outgoing = call.gathered.take(lane)?;
        call.toll.sent(bytes);
        let (store, spool) = (call.store.clone(), self.spool.clone());
        let tolerant = call.tolerant == Some(lane);
        let put = Box::pin(async move {
            let name = &outgoing.packed.name;
            let put = match store.create(&name.to_string(), outgoing.packed.chunks()).await {
                Ok(Created::New) => Put::New,
                Ok(Created::Taken) => match found::look(&store, &spool, name, tolerant).await {
                    Ok(found) => Put::Found(found),
                    Err(ended) => Put::Failed(ended),
                },
                Err(error) => Put::Failed(error.into()),
            };
            (outgoing, put)
        });
        call.under_way = Some(UnderWay { bytes, put });
        None
    }

    async fn settle_put(
        &self,
        call: &mut Call,
        outgoing: Outgoing,
        put: Put,
        progress: &mut Progress,
        alarm: &mut Alarm,
    ) -> Result<(), Ended> {
        let name = outgoing.packed.name.to_string();
        let mut together = Together::default();
        match put {
            Put::New => {
                let (records, bytes) = (outgoing.len(), outgoing.packed.total_bytes());
                self.metrics.relay_bundle(false, bytes);
                tracing::debug!(event = "relay.bundle", name, records, bytes);
                for sent in &outgoing.members {
                    self.settled(sent, Counted::Stored, progress, &mut together);
                }
                self.all_settled("relay.bundle", together, alarm).await;
                if let Some(line) = &outgoing.large {
                    let stored = LargeEnded::Answered(Answer::Stored);
                    self.take_large(&mut call.large, line, stored, progress, alarm).await?;
                }
                Ok(())
            }
            Put::Found(Found::Same(there)) => {
                tracing::info!(event = "relay.bundle_found", name, records = there.len());
                self.metrics.relay_bundle(true, 0);
                for mut sent in there {
                    if !progress.is_settled(sent.lane, sent.position) {
                        sent.followed = self.followed_now(&sent.head.identity);
                        self.settled(&sent, Counted::Duplicate, progress, &mut together);
                    }
                }
                self.all_settled("relay.bundle", together, alarm).await;
                if let Some(line) = &outgoing.large {
                    let found = LargeEnded::Answered(Answer::Duplicate { unverified: false });
                    self.take_large(&mut call.large, line, found, progress, alarm).await?;
                }
                // What was packed and is not there, and what was gathered meanwhile, is packed again.
                call.gathered.give_back(outgoing, &mut call.feeds, &mut call.large);
                Ok(())
            }
            Put::Found(Found::Foreign(why)) => {
                let (lane, position) = (outgoing.lane(), outgoing.packed.name.first.0);
                let code = ErrorReason::BundleForeign.code();
                tracing::error!(event = "relay.bundle_foreign", name, code, lane = lanes::name(lane), why);
                self.too_many_refusals(Cause::ForeignBundle { lane: lane.index(), position }).await;
                // Nothing behind it goes out before somebody has looked.
                Err(Ended::Paused)
            }
            Put::Failed(ended) => Err(ended),
        }
    }
}

/// Resolves when the bundle that is under way has been answered. Cancel safe.
async fn ended_put(under_way: &mut Option<UnderWay>) -> (Outgoing, Put) {
    match under_way {
        Some(under_way) => (&mut under_way.put).await,
        None => std::future::pending().await,
    }
}

/// Pays for the next bundle, a slice at a time: another one may be more urgent by then. Cancel safe.
async fn pay(toll: &mut Toll, bytes: Option<u64>) {
    match bytes {
        Some(bytes) => toll.pay(bytes).await,
        None => std::future::pending().await,
    }
}

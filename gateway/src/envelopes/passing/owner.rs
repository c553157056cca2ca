//! The way to the owner: one connection that all calls share, made when the first needs it and let go of when the owner is another one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pithead_hop::backoff::{random, spread};
use pithead_hop::connect::{ConnectOptions, Connection, Endpoint, connect};
use pithead_hop::identity::{GatewayName, Peer, PeerId, Role};
use pithead_hop::ingest::pass::{Counted, Passing};
use pithead_hop::status::Refusal;
use pithead_hop::tls::PeerTls;
use pithead_hop::trace::TraceParent;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::{DeviceId, Site};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::super::replicated::{Owner, Standing};
use super::super::spool::EnvelopeSpool;
use crate::metrics::Metrics;

/// Calls that are passed on at one time: as many as an owner lets a gateway have on a connection, unless it is configured otherwise.
const CALLS_MAX: usize = 2_048;
/// Of one device: an honest one has a call for its envelopes and some single ones. One device must not take the places of the others.
const CALLS_PER_DEVICE: usize = 8;
/// How long a call may take to end after its owner is another one. An owner that is cut off will never end it.
const GRACE: Duration = Duration::from_secs(5);
/// After an attempt to connect that has failed, whoever comes within this gets the same answer.
const PAUSE: Duration = Duration::from_millis(500);
/// What a device is told to wait: about what a take-over takes.
const WAIT: Duration = Duration::from_secs(2);

/// What the owner may have answered of one call and its device has not taken. Answers are small.
const ANSWER_WINDOW: u32 = 64 << 10;

/// In a site's own network a path that is dead is noticed sooner than a lease ends. A device that does not listen to its answers holds up
/// nobody else's: the connection's window has room for those of every call.
fn options() -> ConnectOptions {
    ConnectOptions {
        connect_timeout: Duration::from_secs(3),
        keepalive_interval: Duration::from_secs(2),
        keepalive_timeout: Duration::from_secs(2),
        stream_window: ANSWER_WINDOW,
        connection_window: ANSWER_WINDOW * CALLS_MAX as u32,
    }
}

/// In which direction a call is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    /// By this gateway, to the owner.
    Given,
    /// By another gateway, to this one.
    Taken,
}

impl Way {
    /// Their names.
    pub const NAMES: [&'static str; 2] = ["given", "taken"];
}

/// What the way to the owner is made of.
#[derive(Debug)]
pub struct Parts {
    /// Whose owner it is.
    pub spool: EnvelopeSpool,
    /// The site.
    pub site: Site,
    /// What this gateway is called.
    pub gateway: GatewayName,
    /// What it connects with.
    pub tls: watch::Receiver<PeerTls>,
    /// What is counted.
    pub metrics: Metrics,
    /// Cancelled when this gateway stops.
    pub stop: CancellationToken,
}

/// The way to the owner. Clones are the same.
#[derive(Debug, Clone)]
pub struct ToOwner(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    parts: Parts,
    calls: Mutex<Calls>,
    counted: Arc<Counted>,
    /// Whoever connects holds it: one attempt at a time.
    wire: tokio::sync::Mutex<Option<Wire>>,
}

/// Who has calls under way.
#[derive(Debug, Default)]
struct Calls {
    all: usize,
    of: HashMap<DeviceId, usize>,
}

/// The owner, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Aim {
    owner: Owner,
    at: Endpoint,
}

impl Aim {
    fn of(owner: &Owner) -> Option<Self> {
        let at = owner.address.as_ref()?.parse().ok()?;
        Some(Self { owner: owner.clone(), at })
    }

    fn words(&self) -> String {
        format!("{} at {}", self.owner.name, self.at)
    }
}

/// A connection, or why there is none.
#[derive(Debug)]
struct Wire {
    aim: Aim,
    made: Result<Made, (Instant, Refusal)>,
}

#[derive(Debug, Clone)]
struct Made {
    connection: Connection,
    words: Arc<str>,
    over: CancellationToken,
    cut: CancellationToken,
}

/// A call's place, given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    all: ToOwner,
    device: DeviceId,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut calls = self.all.calls();
        calls.all -= 1;
        let left = calls.of.get_mut(&self.device).map(|count| {
            *count -= 1;
            *count
        });
        if left == Some(0) {
            calls.of.remove(&self.device);
        }
    }
}

impl ToOwner {
    /// Nobody is connected to yet.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let (calls, counted, wire) = (Mutex::default(), Arc::default(), tokio::sync::Mutex::default());
        Self(Arc::new(Inner { parts, calls, counted, wire }))
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.0.parts.metrics
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.0.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls that are passed on now, and the envelopes that ever were, with their bytes.
    #[must_use]
    pub fn now(&self) -> (usize, u64, u64) {
        let (envelopes, bytes) = self.0.counted.read();
        (self.calls().all, envelopes, bytes)
    }

    /// Who answers calls of devices, if it is another gateway that says where it is, and we do not stop.
    pub(super) fn aim(&self) -> Option<Aim> {
        if self.0.parts.stop.is_cancelled() {
            return None;
        }
        let owner = self.0.parts.spool.elsewhere()?.owner?;
        // After a restart the record may be our own still, of a term that is over.
        if owner.name == self.0.parts.gateway.as_str() {
            return None;
        }
        Aim::of(&owner)
    }

    /// Takes a place for a call of this device, and connects if need be.
    pub(super) async fn begin(
        &self,
        aim: Aim,
        sender: Peer,
        trace: Option<TraceParent>,
    ) -> Result<(Connection, Passing, Place), Refusal> {
        let metrics = self.metrics();
        let begun = async {
            let place = self.place(&sender, &aim)?;
            Ok((self.made(aim).await?, place))
        };
        let (made, place) = begun.await.inspect_err(|refusal: &Refusal| metrics.refused(refusal.reason))?;
        metrics.passed_on_call(Way::Given);
        let passing = Passing {
            gateway: self.0.parts.gateway.clone(),
            sender,
            owner: made.words,
            trace,
            over: made.over,
            cut: made.cut,
            stop: self.0.parts.stop.clone(),
            counted: self.0.counted.clone(),
        };
        Ok((made.connection, passing, place))
    }

    fn place(&self, sender: &Peer, aim: &Aim) -> Result<Place, Refusal> {
        let device = sender.device().cloned().ok_or_else(|| {
            Refusal::new(ErrorReason::RoleNotAllowed, format!("{} is no device", sender.id))
        })?;
        let mut calls = self.calls();
        if calls.all >= CALLS_MAX {
            let detail = format!("{CALLS_MAX} calls are passed on to {} already; ask there", aim.words());
            return Err(Refusal::new(ErrorReason::StandingBy, detail).retry_after(spread(WAIT, random())));
        }
        let of_device = calls.of.entry(device.clone()).or_default();
        if *of_device >= CALLS_PER_DEVICE {
            let detail =
                format!("{CALLS_PER_DEVICE} calls of {device} are passed on already; end one of them first");
            return Err(Refusal::new(ErrorReason::Throttled, detail).retry_after(spread(WAIT, random())));
        }
        *of_device += 1;
        calls.all += 1;
        Ok(Place { all: self.clone(), device })
    }

    /// The connection to the owner.
    async fn made(&self, aim: Aim) -> Result<Made, Refusal> {
        let mut wire = self.0.wire.lock().await;
        let mut known = false;
        if let Some(Wire { aim: of, made }) = &*wire
            && *of == aim
        {
            match made {
                Ok(made) if made.connection.takes_calls() && !made.over.is_cancelled() => {
                    return Ok(made.clone());
                }
                Err((at, refusal)) if at.elapsed() < PAUSE => return Err(refusal.clone()),
                Ok(_) => {}
                Err(_) => known = true,
            }
        }
        let made = self.connect(&aim).await.map_err(|why| {
            if !known {
                tracing::warn!(event = "passing.not_connected", owner = aim.owner.name, at = %aim.at, error = why);
            }
            let detail = format!("{} takes the envelopes, and cannot be reached from here: {why}", aim.words());
            Refusal::new(ErrorReason::StandingBy, detail).retry_after(spread(WAIT, random()))
        });
        let answer = made.clone();
        *wire = Some(Wire { aim, made: made.map_err(|refusal| (Instant::now(), refusal)) });
        answer
    }

    async fn connect(&self, aim: &Aim) -> Result<Made, String> {
        let parts = &self.0.parts;
        let name = GatewayName::new(&aim.owner.name).map_err(|error| error.to_string())?;
        let peer = PeerId { site: parts.site.clone(), role: Role::Gateway(name) };
        let tls = parts.tls.borrow().towards(peer).map_err(|error| error.to_string())?;
        let connection = connect(&aim.at, &aim.at.server_name(), tls, &options()).await;
        let connection = connection.map_err(|error| error.to_string())?;
        tracing::info!(event = "passing.began", owner = aim.owner.name, at = %aim.at, epoch = aim.owner.epoch);
        let made = Made {
            connection,
            words: aim.words().into(),
            over: parts.stop.child_token(),
            cut: CancellationToken::new(),
        };
        tokio::spawn(self.clone().follow(aim.clone(), made.clone()));
        Ok(made)
    }

    /// Until the owner is another one, the connection takes no more calls, or we stop: then what is under way on it ends.
    async fn follow(self, aim: Aim, made: Made) {
        let standing = self.0.parts.spool.standing();
        let (before, _) = self.0.counted.read();
        let another = async {
            let Some(mut standing) = standing else { return };
            // Its sender lives as long as the spool.
            let _ = standing.wait_for(|standing| Aim::now(standing).as_ref() != Some(&aim)).await;
        };
        let why = tokio::select! {
            () = made.over.cancelled() => "this gateway stops",
            () = another => "another gateway takes the envelopes, or none",
            () = made.connection.ended() => "the connection has ended",
        };
        made.over.cancel();
        let envelopes = self.0.counted.read().0 - before;
        tracing::info!(event = "passing.ended", owner = aim.owner.name, at = %aim.at, why, envelopes);
        tokio::time::sleep(GRACE).await;
        made.cut.cancel();
    }
}

impl Aim {
    fn now(standing: &Standing) -> Option<Self> {
        match standing {
            Standing::StandingBy { owner, .. } => Self::of(owner.as_ref()?),
            Standing::Ours { .. } => None,
        }
    }
}

//! The open port: our own accept loop in front of tonic's routes.
//!
//! ```text
//! listener -> rate and place for the address -> TLS under a time-out and a handshake permit -> HTTP/2 by ALPN
//!          -> place for the identity -> hyper's HTTP/2 over tonic's routes, until told, aged, idle, stalled, noisy or cut
//! ```
//!
//! tonic's own server has no time-out for a handshake or a first request, announces no stream limit, spins when file
//! descriptors run out, and its graceful stop waits for ever for a client that says nothing. Here everything that a
//! stranger can begin has an end that we set. Certificates and revocation lists are swapped under way
//! ([`AcceptHandle::swap_tls`]), and whoever was revoked is cut ([`AcceptHandle::cut`],
//! [`AcceptHandle::cut_who_is_not_admitted`]). A port knows its clients by certificate, by address, or not at all
//! ([`Door`]).
//!
//! Every request carries its [`Peer`](crate::identity::Peer) and [`RemoteAddress`] in its extensions.

mod activity;
mod asking;
pub mod calls;
mod connection;
mod door;
pub mod limits;
mod live;
mod noise;
mod permits;
mod seldom;
mod stall;
mod stats;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use pithead_proto::errors::v1::ErrorReason;
use rustls_pki_types::UnixTime;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;

pub use connection::RemoteAddress;
pub use door::{AddressBook, Door};
pub use limits::{Limits, LimitsError};
pub use live::Connected;
pub use permits::host_of;
pub use seldom::Seldom;
pub use stats::{AcceptStats, Ended, Handshake, Refused};

use crate::{
    identity::{Peer, PeerId, Role},
    program::ProgramError,
    trace::span::Spans,
};
use connection::Arrival;
use permits::{Arrivals, PerIp, Rate, Roster, Silent};
use stats::Counters;

/// Why there is no port.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Another program listens there.
    #[error("{0} is in use")]
    Taken(SocketAddr),
    /// The address is not this machine's, or not ours to take.
    #[error("cannot listen on {address}: {source}")]
    Impossible {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
}

impl From<BindError> for ProgramError {
    fn from(error: BindError) -> Self {
        let (reason, todo) = match &error {
            BindError::Taken(_) => {
                (ErrorReason::PortTaken, "stop the other program, or listen on another port")
            }
            BindError::Impossible { .. } => (ErrorReason::ConfigInvalid, "check the address to listen on"),
        };
        Self::new(reason, error.to_string()).affects("nobody can connect").todo(todo)
    }
}

/// A port that is bound and not served yet: connections wait in the system's queue.
#[derive(Debug)]
pub struct Acceptor {
    listener: TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
}

/// How serving ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped {
    /// Connections that did not go in time and were cut.
    pub killed: u64,
}

/// A hand on a port that is being served. Clones are the same hand.
#[derive(Debug, Clone)]
pub struct AcceptHandle(Arc<Shared>);

impl AcceptHandle {
    /// New handshakes are judged by this; live connections go on.
    pub fn swap_tls(&self, door: impl Into<Door>) {
        self.0.door.store(Arc::new(door.into()));
    }

    /// Other limits, from now on: rates, places and numbers of connections for whoever comes next, and what holds within one
    /// connection for those that begin. Whoever is there keeps what it has. Inside a tokio runtime.
    pub fn change_limits(&self, limits: Limits) {
        let shared = &self.0;
        let rate = |per_second, burst| Rate { per_second, burst };
        shared.arrivals.change(
            rate(limits.connections_per_second, limits.connection_burst),
            rate(limits.connections_per_second_per_ip, limits.connection_burst_per_ip),
        );
        shared.per_ip.change(limits.connections_per_ip);
        let requests = rate(limits.requests_per_second, limits.request_burst);
        shared.roster.change(limits.connections_per_identity, requests, limits.unfinished.get_usize());
        let before = shared.limits.swap(Arc::new(limits.clone()));
        for (places, before, now) in [
            (&shared.connections, before.connections, limits.connections),
            (&shared.handshakes, before.handshakes, limits.handshakes),
        ] {
            resize(places, before, now);
        }
    }

    /// Cuts the live connections of everybody whom the door in force would not let in now; returns how many. Takes a
    /// fraction of a millisecond for each connection: not for an async thread.
    pub fn cut_who_is_not_admitted(&self) -> usize {
        self.0.live.cut_who_is_not_admitted(&self.0.door.load(), UnixTime::now())
    }

    /// When each device was last connected, since the port was opened; now, if it is.
    pub fn seen(&self) -> BTreeMap<PeerId, Instant> {
        self.0.live.seen()
    }

    /// Every live connection.
    pub fn connections(&self) -> Vec<Connected> {
        self.0.live.list()
    }

    /// Cuts the live connections of whoever is unwanted, revoked ones say; returns how many.
    pub fn cut(&self, unwanted: impl Fn(&Peer) -> bool) -> usize {
        self.0.live.cut(unwanted)
    }

    /// Who is connected, once per connection.
    pub fn peers(&self) -> Vec<Peer> {
        self.0.roster.peers()
    }

    /// Where the spans of calls go that begin from now on.
    pub fn trace(&self, spans: Spans) {
        self.0.spans.store(Arc::new(spans));
    }

    /// How long calls take.
    pub fn calls(&self) -> calls::Calls {
        self.0.calls.clone()
    }

    /// The counters.
    pub fn stats(&self) -> AcceptStats {
        self.0.counters.read()
    }
}

#[derive(Debug)]
struct Shared {
    door: ArcSwap<Door>,
    live: Arc<live::Live>,
    limits: ArcSwap<Limits>,
    connections: Arc<Semaphore>,
    arrivals: Arrivals,
    per_ip: Arc<PerIp>,
    silent: Arc<Silent>,
    handshakes: Arc<Semaphore>,
    roster: Arc<Roster>,
    counters: Counters,
    calls: calls::Calls,
    spans: ArcSwap<Spans>,
    log_next: Seldom,
    gateways_bring_devices: AtomicBool,
}

/// At most one line per this long about strangers that were refused: noise from outside must not fill the disk.
pub const REFUSED_LOG_INTERVAL: Duration = Duration::from_secs(1);

/// What the listener waits after an error such as too many open files, first and at most.
const LISTENER_PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// How long the listener waits for a place that somebody has to leave. It takes one turn of a task.
const ROOM_WITHIN: Duration = Duration::from_millis(500);

impl Shared {
    /// As how many devices this one counts.
    fn devices_of(&self, peer: &Peer) -> u32 {
        match peer.role() {
            Role::Gateway(_) if self.gateways_bring_devices.load(Ordering::Relaxed) => {
                limits::DEVICES_OF_A_GATEWAY
            }
            Role::Gateway(_) | Role::Device(_) | Role::Operator(_) | Role::Applicant(_) => 1,
        }
    }

    fn log_refused(&self, from: SocketAddr, why: &str) {
        if self.log_next.is_time() {
            tracing::info!(event = "accept.refused", %from, why);
        } else {
            tracing::debug!(event = "accept.refused", %from, why);
        }
    }
}

impl Acceptor {
    /// Takes the port. Needs a tokio runtime.
    pub async fn bind(address: SocketAddr, door: impl Into<Door>, limits: Limits) -> Result<Self, BindError> {
        let impossible = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => BindError::Taken(address),
            _ => BindError::Impossible { address, source },
        };
        let listener = TcpListener::bind(address).await.map_err(impossible)?;
        let address = listener.local_addr().map_err(impossible)?;
        let rate = |per_second, burst| Rate { per_second, burst };
        let arrivals = Arrivals::new(
            rate(limits.connections_per_second, limits.connection_burst),
            rate(limits.connections_per_second_per_ip, limits.connection_burst_per_ip),
            Instant::now(),
        );
        let requests = rate(limits.requests_per_second, limits.request_burst);
        let shared = Arc::new(Shared {
            door: ArcSwap::from_pointee(door.into()),
            live: Arc::default(),
            connections: Arc::new(Semaphore::new(places(limits.connections))),
            arrivals,
            per_ip: PerIp::new(limits.connections_per_ip),
            silent: Arc::default(),
            handshakes: Arc::new(Semaphore::new(places(limits.handshakes))),
            roster: Roster::new(limits.connections_per_identity, requests, limits.unfinished.get_usize()),
            counters: Counters::default(),
            calls: calls::Calls::default(),
            spans: ArcSwap::default(),
            log_next: Seldom::new(REFUSED_LOG_INTERVAL),
            gateways_bring_devices: AtomicBool::new(false),
            limits: ArcSwap::from_pointee(limits),
        });
        Ok(Self { listener, address, shared })
    }

    /// The address, with the port that the system chose if none was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Gateways of the site may pass calls of devices on to here: from now on one that connects may ask for as much as many devices.
    pub fn gateways_bring_devices(&self) {
        self.shared.gateways_bring_devices.store(true, Ordering::Relaxed);
    }

    /// A hand on it, for reloads, revocations and metrics.
    pub fn handle(&self) -> AcceptHandle {
        AcceptHandle(self.shared.clone())
    }

    /// Serves until `stop`; then no new connection is taken, every live one is sent GOAWAY and may finish its calls,
    /// and whoever is not gone after `stop_grace` is cut.
    pub async fn serve(self, routes: Routes, stop: CancellationToken) -> Stopped {
        let Self { listener, shared, .. } = self;
        let routes = routes.prepare();
        let tasks = TaskTracker::new();
        let kill = CancellationToken::new();
        let mut pause = LISTENER_PAUSE.0;
        loop {
            let arrived = tokio::select! {
                arrived = listener.accept() => arrived,
                () = stop.cancelled() => break,
            };
            match arrived {
                Ok((tcp, from)) => {
                    pause = LISTENER_PAUSE.0;
                    take(&shared, tcp, from, &routes, &stop, &kill, &tasks).await;
                }
                Err(error) if is_the_peers(&error) => {}
                Err(error) => {
                    // EMFILE, ENFILE, ENOMEM: the connection still waits, and asking again at once would spin.
                    shared.counters.listener_errors.add();
                    tracing::warn!(event = "accept.listener_error", %error, pause_ms = pause.as_millis() as u64);
                    tokio::select! {
                        () = sleep(pause) => {}
                        () = stop.cancelled() => break,
                    }
                    pause = (pause * 2).min(LISTENER_PAUSE.1);
                }
            }
        }
        drop(listener);
        tasks.close();
        let killed = || shared.counters.ended_as(Ended::Killed);
        let before = killed();
        let grace = shared.limits.load().stop_grace.get();
        if timeout(grace, tasks.wait()).await.is_err() {
            kill.cancel();
            tasks.wait().await;
        }
        let killed = killed() - before;
        if killed > 0 {
            tracing::warn!(event = "accept.stop_deadline", killed);
        }
        Stopped { killed }
    }
}

/// As many places as a semaphore can have, and at least one.
fn places(limit: usize) -> usize {
    // tokio counts those that are asked for at once in 32 bits, and a resize asks for the difference.
    limit.clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize))
}

/// More places at once; fewer as those who have them leave.
fn resize(semaphore: &Arc<Semaphore>, before: usize, now: usize) {
    let (before, now) = (places(before), places(now));
    if now >= before {
        semaphore.add_permits(now - before);
        return;
    }
    let semaphore = semaphore.clone();
    tokio::spawn(async move {
        // Whoever waits here is served in its turn, so it ends when enough have left.
        let fewer = u32::try_from(before - now).unwrap_or(u32::MAX);
        if let Ok(left) = semaphore.acquire_many_owned(fewer).await {
            left.forget();
        }
    });
}

async fn take(
    shared: &Arc<Shared>,
    tcp: TcpStream,
    from: SocketAddr,
    routes: &Routes,
    stop: &CancellationToken,
    kill: &CancellationToken,
    tasks: &TaskTracker,
) {
    shared.counters.accepted.add();
    if !shared.arrivals.take(from.ip(), Instant::now()) {
        shared.counters.refused(Refused::Rate);
        shared.log_refused(from, "more new connections than there may be at a time");
        return;
    }
    let Some(place) = shared.per_ip.take(from.ip()) else {
        shared.counters.refused(Refused::PerAddress);
        shared.log_refused(from, "too many connections from this address");
        return;
    };
    let mut permit = shared.connections.clone().try_acquire_owned().ok();
    if permit.is_none() && shared.silent.make_room(Instant::now()) {
        // The one that was cut is gone at its next turn.
        let room = timeout(ROOM_WITHIN, shared.connections.clone().acquire_owned()).await;
        permit = room.ok().and_then(Result::ok);
    }
    let Some(permit) = permit else {
        shared.counters.refused(Refused::Full);
        shared.log_refused(from, "as many connections as there may be");
        return;
    };
    let arrival = Arrival { tcp, from, _place: place };
    let run = connection::run(shared.clone(), arrival, routes.clone(), stop.clone(), kill.clone());
    tasks.spawn(async move {
        run.await;
        drop(permit);
    });
}

/// Errors that tell of one connection that came and went, not of the listener.
fn is_the_peers(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

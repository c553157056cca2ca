//! One connection, from the first byte of its handshake to its end.

use std::{
    future::{Future as _, poll_fn},
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    task::{Poll, ready},
    time::Duration,
};

use http::Request;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use pithead_proto::errors::v1::ErrorReason;
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};
use tokio_util::sync::{CancellationToken, PollSemaphore};
use tonic::service::Routes;
use tower_service::Service as _;

use super::{
    Shared,
    activity::{Activity, Answer, Quiet, Streams},
    asking::Asking,
    door::{Door, Guest, NotKnown},
    live::Connected,
    noise::{Listening, Notes},
    permits::{Cut, IpPlace, RosterPlace},
    stall::Stalling,
    stats::{Ended, Handshake},
};
use crate::{
    backoff,
    identity::Peer,
    rarely::Rarely,
    status::Refusal,
    tls::ALPN_H2,
    trace::{TraceParent, span::Within},
};

/// How long a client that was refused is listened to, and how often: its first request is some hundred bytes.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_READS: usize = 4;

/// What one call's answer may hold that the peer has not taken yet. Answers are small; this is many of them.
const SEND_BUFFER: usize = 64 << 10;

/// The other end's address, in every request's extensions beside its [`Peer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteAddress(pub SocketAddr);

pub(super) struct Arrival {
    pub(super) tcp: TcpStream,
    pub(super) from: SocketAddr,
    pub(super) _place: IpPlace,
}

/// Handshake, then service. Ends when the connection does, or `kill` is cancelled.
pub(super) async fn run(
    shared: Arc<Shared>,
    arrival: Arrival,
    routes: Routes,
    stop: CancellationToken,
    kill: CancellationToken,
) {
    let Arrival { tcp, from, _place } = arrival;
    shared.counters.open.add();
    let _open = Open(shared.clone());
    let limit = shared.limits.load().handshake_timeout.get();
    shared.counters.handshaking.add();
    let go = CancellationToken::new();
    // In a box of its own, which is gone when the handshake is over: a connection lives for hours.
    let shaking = Box::pin(handshake(&shared, tcp, from, &go));
    let handshake = tokio::select! {
        done = timeout(limit, shaking) => done.unwrap_or(Err(NotAdmitted::TimedOut)),
        () = go.cancelled() => Err(NotAdmitted::MadeRoom),
        // Who is still in its handshake has asked for nothing yet.
        () = stop.cancelled() => Err(NotAdmitted::Stopped),
    };
    shared.counters.handshaking.sub();
    let Admitted { stream, guest, chain, door } = match handshake {
        Ok(done) => done,
        Err(why) => {
            shared.counters.handshake(why.outcome());
            if why != NotAdmitted::Stopped {
                shared.log_refused(from, &why.to_string());
            }
            return;
        }
    };
    let Guest { peer, refusal } = guest;
    shared.counters.handshake(Handshake::Ok);
    tracing::debug!(event = "accept.connected", peer = %peer.id, %from);
    let cut = Cut::default();
    let connected = Connected { peer: peer.clone(), from, since: Instant::now() };
    let _live = shared.live.enter(connected, chain.clone(), cut.clone());
    // Entered first: a door that was swapped during the handshake has either been seen here, or its owner has seen us.
    let now = shared.door.load_full();
    if !Arc::ptr_eq(&now, &door) && !now.admits(&peer, &chain, from, UnixTime::now()) {
        shared.counters.ended(Ended::Cut);
        shared.log_refused(from, "revoked during its handshake");
        return;
    }
    let (place, replaced) = shared.roster.enter(&peer, shared.devices_of(&peer), cut.clone(), Instant::now());
    if replaced {
        tracing::info!(event = "accept.replaced", peer = %peer.id, %from);
    }
    let mut forced = Rarely::new(async {
        tokio::select! {
            why = cut.asked() => why,
            () = kill.cancelled() => Ended::Killed,
        }
    });
    let ended = tokio::select! {
        ended = serve(&shared, stream, (peer.clone(), refusal), from, Arc::new(place), routes, stop) => ended,
        ended = forced.wait() => ended,
    };
    shared.counters.ended(ended);
    tracing::debug!(event = "accept.disconnected", peer = %peer.id, %from, ended = ended.name());
}

struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.counters.open.sub();
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum NotAdmitted {
    #[error("{0}")]
    Handshake(String),
    #[error("no HTTP/2 in ALPN")]
    NoAlpn,
    #[error("{0}")]
    NotKnown(NotKnown),
    #[error("no client certificate")]
    NoCertificate,
    #[error("a chain of certificates of more than 16 KiB")]
    LongChain,
    #[error("{0}")]
    Certificate(String),
    #[error("the handshake took too long")]
    TimedOut,
    #[error("it said nothing for long, and the port was full")]
    MadeRoom,
    #[error("stopping")]
    Stopped,
}

impl NotAdmitted {
    fn outcome(&self) -> Handshake {
        match self {
            Self::Handshake(_) => Handshake::Failed,
            Self::NoAlpn => Handshake::NoAlpn,
            Self::NotKnown(_) | Self::NoCertificate | Self::LongChain | Self::Certificate(_) => {
                Handshake::Certificate
            }
            Self::TimedOut => Handshake::TimedOut,
            Self::MadeRoom => Handshake::MadeRoom,
            Self::Stopped => Handshake::Stopped,
        }
    }

    fn of(error: &std::io::Error) -> Self {
        let tls = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
        match tls {
            Some(rustls::Error::NoApplicationProtocol) => Self::NoAlpn,
            Some(rustls::Error::NoCertificatesPresented) => Self::NoCertificate,
            Some(rustls::Error::InvalidCertificate(_) | rustls::Error::InvalidCertRevocationList(_)) => {
                Self::Certificate(error.to_string())
            }
            Some(_) | None => Self::Handshake(error.to_string()),
        }
    }
}

/// A chain is kept as long as its connection, so that it can be judged again: it may not be of any length. Two CAs above a
/// device are below 4 KiB.
const CHAIN_MAX: usize = 16 << 10;

/// A handshake that ended well, and the door that it was judged by.
struct Admitted {
    stream: TlsStream<TcpStream>,
    guest: Guest,
    chain: Arc<[CertificateDer<'static>]>,
    door: Arc<Door>,
}

async fn handshake(
    shared: &Shared,
    tcp: TcpStream,
    from: SocketAddr,
    go: &CancellationToken,
) -> Result<Admitted, NotAdmitted> {
    let failed = |error: std::io::Error| NotAdmitted::Handshake(error.to_string());
    tcp.set_nodelay(true).map_err(failed)?;
    // Whoever says nothing holds a connection, and no permit: those are for what costs us signatures.
    let waiting = shared.silent.wait(go.clone(), Instant::now());
    let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), tcp).await.map_err(failed)?;
    drop(waiting);
    let mut waiting = None;
    let door = shared.door.load_full();
    let mut accepting = pin!(hello.into_stream(door.tls.clone()).into_fallible());
    let mut permits = PollSemaphore::new(shared.handshakes.clone());
    // A permit for each step, and none between them: whoever lets us wait for its half of the handshake lets nobody else wait.
    let accepted = poll_fn(|cx| {
        let permit = ready!(permits.poll_acquire(cx));
        let step = accepting.as_mut().poll(cx);
        drop(permit);
        if step.is_pending() && waiting.is_none() {
            waiting = Some(shared.silent.wait(go.clone(), Instant::now()));
        }
        step
    })
    .await;
    let stream = match accepted {
        Ok(stream) => stream,
        Err((error, tcp)) => {
            let_the_alert_arrive(tcp).await;
            return Err(NotAdmitted::of(&error));
        }
    };
    let session = stream.get_ref().1;
    if session.alpn_protocol() != Some(ALPN_H2) {
        return Err(NotAdmitted::NoAlpn);
    }
    let chain: Arc<[CertificateDer<'static>]> =
        session.peer_certificates().unwrap_or_default().iter().map(|one| one.clone().into_owned()).collect();
    if chain.iter().map(|certificate| certificate.len()).sum::<usize>() > CHAIN_MAX {
        return Err(NotAdmitted::LongChain);
    }
    let guest = door.identify(&chain, from).map_err(NotAdmitted::NotKnown)?;
    Ok(Admitted { stream, guest, chain, door })
}

/// A client of TLS 1.3 has sent its first request before it can know that it is refused. Closing with that unread resets the
/// connection, and the reset may overtake the alert that says why: so what it sends is read for a moment, and thrown away.
async fn let_the_alert_arrive(mut tcp: TcpStream) {
    let reading = async {
        tcp.shutdown().await?;
        let mut unread = [0; 4 << 10];
        for _ in 0..LINGER_READS {
            if tcp.read(&mut unread).await? == 0 {
                break;
            }
        }
        Ok::<(), std::io::Error>(())
    };
    // Whatever comes of it, the connection is over.
    let _ = timeout(LINGER, reading).await;
}

async fn serve(
    shared: &Arc<Shared>,
    stream: TlsStream<TcpStream>,
    (peer, turned_away): (Peer, Option<Refusal>),
    from: SocketAddr,
    place: Arc<RosterPlace>,
    routes: Routes,
    stop: CancellationToken,
) -> Ended {
    // What they are when it begins holds for its life.
    let (limits, of_many) = match (shared.limits.load_full(), shared.devices_of(&peer)) {
        (limits, 1) => (limits, false),
        (limits, _) => (Arc::new(limits.of_a_gateway()), true),
    };
    // Who is let in only to be told so has nothing to stay for.
    let idle = if turned_away.is_some() { limits.first_request.min(limits.idle) } else { limits.idle };
    let activity = Activity::new();
    let notes = Notes::default();
    let (calls, noise, all) = (activity.clone(), notes.clone(), shared.clone());
    let service = service_fn(move |mut request: Request<Incoming>| {
        let all = all.clone();
        let call = calls.begin();
        let trace = TraceParent::of(request.headers());
        let mut timed = all.calls.begin(request.uri().path(), trace, &all.spans.load());
        timed.span.text("pithead.peer", || peer.id.to_string());
        all.counters.requests.add();
        let refused = match (place.request(Instant::now()), &turned_away) {
            (Err(wait), _) => {
                all.counters.throttled.add();
                noise.noise();
                Some(throttled(wait))
            }
            (Ok(()), Some(refusal)) => Some(refusal.clone()),
            (Ok(()), None) => None,
        };
        let mut routes = routes.clone();
        let unfinished = place.unfinished();
        request.extensions_mut().insert(peer.clone());
        request.extensions_mut().insert(RemoteAddress(from));
        // What the call does on the next hop is a part of ours, if we are followed.
        if let Some(trace) = timed.span.at().or(trace) {
            request.extensions_mut().insert(trace);
        }
        if let Some(within) = Within::of(&all.spans.load(), &timed.span) {
            request.extensions_mut().insert(within);
        }
        async move {
            let response = match refused {
                Some(refusal) => tonic::Status::from(refusal).into_http(),
                None => match routes.call(request.map(|body| Asking::new(body, unfinished))).await {
                    Ok(response) => response,
                    Err(never) => match never {},
                },
            };
            // An answer that is an error and nothing else says so in its head.
            if response.headers().get("grpc-status").is_some_and(|status| status != "0") {
                all.counters.requests_refused.add();
            }
            timed.note(response.headers());
            Ok::<_, std::convert::Infallible>(response.map(|body| Answer::new(body, call, timed)))
        }
    });
    let stream = Listening::new(stream, shared.clone(), &limits, notes.clone());
    let mut connection = pin!(
        http2::Builder::new(Streams { each_within: of_many.then(|| limits.write_stall.get()) })
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.max_concurrent_streams)
            .max_local_error_reset_streams(limits.max_local_error_reset_streams)
            .max_pending_accept_reset_streams(limits.max_pending_accept_reset_streams)
            .max_header_list_size(limits.header_list.get_u32())
            .max_frame_size(limits.frame.get_u32())
            .initial_stream_window_size(limits.stream_window.get_u32())
            .initial_connection_window_size(limits.connection_window.get_u32())
            .keep_alive_interval(limits.keepalive_interval.get())
            .keep_alive_timeout(limits.keepalive_timeout.get())
            .max_send_buf_size(SEND_BUFFER)
            .serve_connection(TokioIo::new(Stalling::new(stream, limits.write_stall.get())), service)
    );
    // Why the connection should end, and how long it may take to; at once if that is none.
    let mut enough = Rarely::new(async {
        tokio::select! {
            () = stop.cancelled() => (Ended::Stopped, Some(Duration::MAX)),
            () = sleep(jittered(limits.age.get(), backoff::random())) => {
                (Ended::Aged, Some(limits.age_grace.get()))
            }
            // Where many are on one connection, whoever takes nothing ends alone.
            () = activity.stalled(limits.write_stall.get()), if !of_many => (Ended::Stalled, None),
            quiet = activity.quiet(limits.first_request.get(), idle.get()) => match quiet {
                Quiet::NoFirstRequest => (Ended::NoFirstRequest, None),
                Quiet::Idle => (Ended::Idle, Some(limits.age_grace.get())),
            },
        }
    });
    let (why, grace) = tokio::select! {
        // Only the first of these is decided by the peer; it is asked first.
        biased;
        end = connection.as_mut() => return finished(end, Ended::Closed, &notes),
        enough = enough.wait() => match enough {
            (why, Some(grace)) => (why, grace),
            (why, None) => return why,
        },
    };
    connection.as_mut().graceful_shutdown();
    // One poll sends the GOAWAY; then the peer has its time. After `stop` the acceptor keeps the time for all.
    let mut over = pin!(sleep(grace));
    poll_fn(|cx| match connection.as_mut().poll(cx) {
        Poll::Ready(end) => Poll::Ready(finished(end, why, &notes)),
        Poll::Pending => over.as_mut().poll(cx).map(|()| Ended::Killed),
    })
    .await
}

fn finished(end: hyper::Result<()>, in_good_order: Ended, notes: &Notes) -> Ended {
    match end {
        Ok(()) => in_good_order,
        Err(error) => {
            tracing::debug!(event = "accept.failed", %error);
            match Ended::of(&error, notes.farewell()) {
                // It was told to go, and went, if without a goodbye.
                Ended::Broken => in_good_order.or_broken(),
                other => other,
            }
        }
    }
}

fn throttled(wait: Duration) -> Refusal {
    Refusal::new(ErrorReason::Throttled, "more requests than this identity may make; come back later")
        .retry_after(backoff::spread(wait, backoff::random()))
}

/// A fifth more or less.
fn jittered(age: Duration, random: u64) -> Duration {
    age * 4 / 5 + backoff::spread(age / 5 * 2, random) - age / 5 * 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_spread_around_the_limit() {
        let age = Duration::from_secs(100);
        assert_eq!(jittered(age, 0), Duration::from_secs(80));
        let oldest = jittered(age, u64::MAX);
        assert!(oldest > Duration::from_secs(99) && oldest <= Duration::from_secs(120), "{oldest:?}");
    }
}

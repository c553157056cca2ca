//! One connection, from the first byte of its handshake to its end.

use std::{
    future::{Future as _, poll_fn},
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use http::Request;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use pithead_proto::errors::v1::ErrorReason;
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tower_service::Service as _;

use super::{
    Shared,
    activity::{Activity, Answer, Quiet},
    door::{Door, Guest, NotKnown},
    live::Connected,
    permits::{IpPlace, RosterPlace},
    stall::Stalling,
};
use crate::{backoff, identity::Peer, rarely::Rarely, status::Refusal, tls::ALPN_H2};

/// How long a client that was refused is listened to, and how often: its first request is some hundred bytes.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_READS: usize = 4;

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
    let limit = shared.limits.handshake_timeout.get();
    let handshake = tokio::select! {
        done = timeout(limit, handshake(&shared, tcp, from)) => done,
        // Who is still in its handshake has asked for nothing yet.
        () = stop.cancelled() => return,
    };
    let Admitted { stream, guest, chain, door } = match handshake {
        Ok(Ok(done)) => done,
        Ok(Err(why)) => {
            if why == NotAdmitted::NoAlpn {
                shared.counters.no_alpn.add();
            } else {
                shared.counters.handshake_failed.add();
            }
            shared.log_refused(from, &why.to_string());
            return;
        }
        Err(_) => {
            shared.counters.handshake_timed_out.add();
            shared.log_refused(from, "the handshake took too long");
            return;
        }
    };
    let Guest { peer, refusal } = guest;
    shared.counters.admitted.add();
    tracing::debug!(event = "accept.connected", peer = %peer.id, %from);
    let cut = CancellationToken::new();
    let connected = Connected { peer: peer.clone(), from, since: Instant::now() };
    let _live = shared.live.enter(connected, chain.clone(), cut.clone());
    // Entered first: a door that was swapped during the handshake has either been seen here, or its owner has seen us.
    let now = shared.door.load_full();
    if !Arc::ptr_eq(&now, &door) && !now.admits(&peer, &chain, from, UnixTime::now()) {
        shared.counters.cut.add();
        shared.log_refused(from, "revoked during its handshake");
        return;
    }
    let (place, replaced) = shared.roster.enter(&peer, cut.clone(), Instant::now());
    if replaced {
        shared.counters.replaced.add();
        tracing::info!(event = "accept.replaced", peer = %peer.id, %from);
    }
    let mut forced = Rarely::new(async {
        tokio::select! {
            () = cut.cancelled() => { shared.counters.cut.add(); "cut" }
            () = kill.cancelled() => { shared.counters.killed.add(); "killed" }
        }
    });
    let end = tokio::select! {
        end = serve(&shared, stream, (peer.clone(), refusal), from, Arc::new(place), routes, stop) => end,
        end = forced.wait() => end,
    };
    tracing::debug!(event = "accept.disconnected", peer = %peer.id, %from, end);
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
    #[error("a chain of certificates of more than 16 KiB")]
    LongChain,
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

async fn handshake(shared: &Shared, tcp: TcpStream, from: SocketAddr) -> Result<Admitted, NotAdmitted> {
    let failed = |error: std::io::Error| NotAdmitted::Handshake(error.to_string());
    tcp.set_nodelay(true).map_err(failed)?;
    // Whoever says nothing holds a connection, and no handshake: the permit is for what costs us signatures.
    let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), tcp).await.map_err(failed)?;
    let permit =
        shared.handshakes.acquire().await.map_err(|_| NotAdmitted::Handshake("stopping".to_owned()))?;
    let door = shared.door.load_full();
    let accepted = hello.into_stream(door.tls.clone()).into_fallible().await;
    drop(permit);
    let stream = match accepted {
        Ok(stream) => stream,
        Err((error, tcp)) => {
            let_the_alert_arrive(tcp).await;
            return Err(failed(error));
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
) -> &'static str {
    let limits = &shared.limits;
    let activity = Activity::new();
    let (calls, all) = (activity.clone(), shared.clone());
    let service = service_fn(move |mut request: Request<Incoming>| {
        let all = all.clone();
        let call = calls.begin();
        let refused = match (place.request(Instant::now()), &turned_away) {
            (Err(wait), _) => {
                all.counters.throttled.add();
                Some(throttled(wait))
            }
            (Ok(()), Some(refusal)) => Some(refusal.clone()),
            (Ok(()), None) => None,
        };
        let mut routes = routes.clone();
        request.extensions_mut().insert(peer.clone());
        request.extensions_mut().insert(RemoteAddress(from));
        async move {
            let response = match refused {
                Some(refusal) => tonic::Status::from(refusal).into_http(),
                None => match routes.call(request).await {
                    Ok(response) => response,
                    Err(never) => match never {},
                },
            };
            Ok::<_, std::convert::Infallible>(response.map(|body| Answer { body, _call: call }))
        }
    });
    let mut connection = pin!(
        http2::Builder::new(TokioExecutor::new())
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
            .serve_connection(TokioIo::new(Stalling::new(stream, limits.write_stall.get())), service)
    );
    // Why the connection should end, and how long it may take to; at once if that is none.
    let mut enough = Rarely::new(async {
        tokio::select! {
            () = stop.cancelled() => Some(Duration::MAX),
            () = sleep(jittered(limits.age.get(), backoff::random())) => {
                shared.counters.aged.add();
                Some(limits.age_grace.get())
            }
            quiet = activity.quiet(limits.first_request.get(), limits.idle.get()) => match quiet {
                Quiet::NoFirstRequest => {
                    shared.counters.no_first_request.add();
                    None
                }
                Quiet::Idle => {
                    shared.counters.idle.add();
                    Some(limits.age_grace.get())
                }
            },
        }
    });
    let grace = tokio::select! {
        // Only the first of these is decided by the peer; it is asked first.
        biased;
        end = connection.as_mut() => return finished(shared, end),
        grace = enough.wait() => match grace {
            Some(grace) => grace,
            None => return "no first request",
        },
    };
    connection.as_mut().graceful_shutdown();
    // One poll sends the GOAWAY; then the peer has its time. After `stop` the acceptor keeps the time for all.
    let mut over = pin!(sleep(grace));
    poll_fn(|cx| match connection.as_mut().poll(cx) {
        Poll::Ready(end) => Poll::Ready(finished(shared, end)),
        Poll::Pending => over.as_mut().poll(cx).map(|()| {
            shared.counters.killed.add();
            "killed"
        }),
    })
    .await
}

fn finished(shared: &Shared, end: hyper::Result<()>) -> &'static str {
    match end {
        Ok(()) => "closed",
        Err(error) => {
            shared.counters.failed.add();
            tracing::debug!(event = "accept.failed", %error);
            "failed"
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

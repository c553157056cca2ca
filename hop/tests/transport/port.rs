//! What strangers can do to the open port, and what a healthy client notices of it: nothing.

use std::{io, sync::Arc, time::Duration};

use pithead_hop::{
    accept::{Acceptor, BindError, Ended, Handshake, Limits, Refused},
    connect::{ConnectError, ConnectOptions, Connection, Endpoint, connect},
    keys::{FetchError, Held, KeyClient},
    program::{ExitCode, ProgramError, units},
};
use pithead_proto::errors::v1::ErrorReason;
use rustls_pki_types::ServerName;
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
    time::{Instant, timeout},
};
use tokio_rustls::TlsConnector;

use crate::transport::{
    keys::{Authority, keys_of},
    world::{AUTHORITY, LONG, Server, World, site},
};

const SHORT: units::Duration = units::Duration::from_millis(150);

fn ask(connection: &Connection) -> KeyClient {
    KeyClient::new(connection.clone(), AUTHORITY, site("pit-7"))
}

/// A whole call, answered; the book is empty, and the server says so.
async fn is_served(connection: &Connection) {
    match ask(connection).fetch(&Held::default(), LONG).await {
        Err(FetchError::Remote(remote)) if remote.reason == Some(ErrorReason::KeysNotReady) => {}
        other => panic!("not served: {other:?}"),
    }
}

/// A client that has ended its handshake and says nothing more.
async fn silent(world: &World, server: &Server, name: &str) -> tokio_rustls::client::TlsStream<TcpStream> {
    let tcp = TcpStream::connect(server.address).await.unwrap();
    let connector = TlsConnector::from(world.truck(name).build().unwrap());
    connector.connect(ServerName::try_from("127.0.0.1").unwrap(), tcp).await.unwrap()
}

async fn until_closed(stream: &mut (impl tokio::io::AsyncRead + Unpin)) {
    let end = timeout(LONG, tokio::io::copy(stream, &mut tokio::io::sink())).await.expect("closed in time");
    assert!(end.is_ok() || end.is_err_and(|error| error.kind() != io::ErrorKind::TimedOut));
}

#[tokio::test]
async fn a_port_that_is_taken_says_so_and_what_to_do() {
    let world = World::new();
    let server = world.serve().await;
    let error = Acceptor::bind(server.address, world.server_tls().build().unwrap(), Limits::default())
        .await
        .expect_err("it is taken");
    assert!(matches!(error, BindError::Taken(address) if address == server.address));
    let error = ProgramError::from(error);
    assert_eq!((error.reason, error.exit), (ErrorReason::PortTaken, ExitCode::TRY_AGAIN));
    assert!(error.to_string().contains(&server.address.to_string()));
}

#[tokio::test]
async fn nobody_there_and_nobody_answering_are_unreachable() {
    let world = World::new();
    let tls = world.truck("truck-1").build().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let options = ConnectOptions { connect_timeout: SHORT.get(), ..ConnectOptions::default() };
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let error =
        connect(&Endpoint::from(address), &name, tls.clone(), &options).await.expect_err("nobody answers");
    assert_eq!(error, ConnectError::TimedOut(SHORT.get()));
    drop(listener);
    let error = connect(&Endpoint::from(address), &name, tls, &options).await.expect_err("nobody is there");
    assert_eq!(error, ConnectError::Unreachable(io::ErrorKind::ConnectionRefused));
    assert_eq!(error.reason(), ErrorReason::PeerUnreachable);
    assert!(error.is_retryable());
}

#[tokio::test]
async fn who_says_nothing_is_cut_at_the_handshakes_deadline_and_a_healthy_client_is_served() {
    let world = World::new();
    let limits = Limits { handshake_timeout: SHORT, handshakes: 1, ..Limits::default() };
    let server = world.serve_with(&world.server_tls(), limits).await;
    let mut strangers = Vec::new();
    for _ in 0..8 {
        strangers.push(TcpStream::connect(server.address).await.unwrap());
    }
    server.until(|stats| stats.accepted == 8).await;
    // Eight strangers are in their handshake, and there is one permit: they do not hold it.
    let healthy = server.connect(&world.truck("truck-1")).await.unwrap();
    for stranger in &mut strangers {
        until_closed(stranger).await;
    }
    assert_eq!(server.handle.stats().handshakes(Handshake::TimedOut), 8);
    is_served(&healthy).await;
}

/// The first half of a good handshake, and then nothing.
async fn half_a_handshake(world: &World, server: &Server) -> TcpStream {
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut client = rustls::ClientConnection::new(world.truck("half").build().unwrap(), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    let mut tcp = TcpStream::connect(server.address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut tcp, &hello).await.unwrap();
    // The server's half is here: from now on it waits for ours.
    tcp.readable().await.unwrap();
    tcp
}

#[tokio::test]
async fn who_stops_in_the_middle_of_a_handshake_holds_no_permit_of_it() {
    let world = World::new();
    let limits = Limits { handshakes: 1, ..Limits::default() };
    let server = world.serve_with(&world.server_tls(), limits).await;
    let mut strangers = Vec::new();
    for _ in 0..8 {
        strangers.push(half_a_handshake(&world, &server).await);
    }
    assert_eq!(server.handle.stats().handshaking, 8);
    is_served(&server.connect(&world.truck("truck-1")).await.unwrap()).await;
    assert_eq!(server.handle.stats().handshaking, 8);
}

#[tokio::test]
async fn an_address_that_comes_too_fast_is_turned_away_until_it_has_waited() {
    let world = World::new();
    let limits = Limits { connection_burst_per_ip: 2, connections_per_second_per_ip: 5, ..Limits::default() };
    let server = world.serve_with(&world.server_tls(), limits).await;
    let first = server.connect(&world.truck("a")).await.unwrap();
    let _second = TcpStream::connect(server.address).await.unwrap();
    server.until(|stats| stats.accepted == 2).await;
    assert!(server.connect(&world.truck("b")).await.is_err());
    assert_eq!(server.handle.stats().refused(Refused::Rate), 1);
    is_served(&first).await;
    let later = async {
        while server.connect(&world.truck("b")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LONG, later).await.expect("a fifth of a second is enough");
}

#[tokio::test]
async fn noise_instead_of_tls_ends_that_connection_alone() {
    let world = World::new();
    let server = world.serve().await;
    for noise in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 64], &[0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0]] {
        let mut stranger = TcpStream::connect(server.address).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stranger, noise).await.unwrap();
        until_closed(&mut stranger).await;
    }
    server.until(|stats| stats.handshakes(Handshake::Failed) == 3).await;
    is_served(&server.connect(&world.truck("truck-1")).await.unwrap()).await;
}

#[tokio::test]
async fn who_asks_nothing_after_the_handshake_is_cut() {
    let world = World::new();
    let limits = Limits { first_request: SHORT, ..Limits::default() };
    let server = world.serve_with(&world.server_tls(), limits).await;
    let mut stream = silent(&world, &server, "silent").await;
    until_closed(&mut stream).await;
    server.until(|stats| stats.ended(Ended::NoFirstRequest) == 1 && stats.open == 0).await;
}

#[tokio::test]
async fn an_idle_connection_is_asked_to_go_and_a_watching_one_is_not() {
    let world = World::new();
    let limits = Limits { idle: SHORT, ..Limits::default() };
    let server = world.serve_with(&world.server_tls(), limits).await;
    let watching = server.connect(&world.truck("watching")).await.unwrap();
    let _watch = ask(&watching).watch(&Held::default()).await.unwrap();
    let idle = server.connect(&world.truck("idle")).await.unwrap();
    is_served(&idle).await;
    timeout(LONG, idle.ended()).await.expect("asked to go");
    assert_eq!(idle.end_cause(), None, "in good order");
    assert!(!watching.is_ended());
    server.until(|stats| stats.ended(Ended::Idle) == 1).await;
}

#[tokio::test]
async fn an_old_connection_is_asked_to_go_finishes_its_call_or_is_cut() {
    let world = World::new();
    let limits = Limits { age: SHORT, age_grace: SHORT, ..Limits::default() };
    let server = world.serve_with(&world.server_tls(), limits).await;
    let connection = server.connect(&world.truck("old")).await.unwrap();
    let mut watch = ask(&connection).watch(&Held::default()).await.unwrap();
    let error = timeout(LONG, watch.next()).await.expect("cut in time").expect_err("a watch never finishes");
    assert!(error.is_retryable(), "{error}");
    server.until(|stats| stats.ended(Ended::Killed) == 1 && stats.open == 0).await;
}

#[tokio::test]
async fn stopping_ends_at_its_deadline_though_a_silent_client_is_connected() {
    let world = World::new();
    let limits = Limits { stop_grace: SHORT, ..Limits::default() };
    let server = world.serve_with(&world.server_tls(), limits).await;
    let _tcp = TcpStream::connect(server.address).await.unwrap();
    let mut mute = silent(&world, &server, "mute").await;
    server.until(|stats| stats.handshakes(Handshake::Ok) == 1 && stats.accepted == 2).await;
    let begin = Instant::now();
    server.stop.cancel();
    let stopped = timeout(LONG, server.task).await.expect("it ends").unwrap();
    assert!(begin.elapsed() >= SHORT.get(), "{:?}", begin.elapsed());
    assert_eq!(stopped.killed, 1);
    until_closed(&mut mute).await;
}

#[tokio::test]
async fn stopping_lets_a_watch_say_goodbye_and_kills_nobody() {
    let world = World::new();
    let server = world.serve().await;
    let connection = server.connect(&world.truck("truck-1")).await.unwrap();
    let mut watch = ask(&connection).watch(&Held::default()).await.unwrap();
    server.stop.cancel();
    match timeout(LONG, watch.next()).await.expect("at once") {
        Err(FetchError::Remote(remote)) => {
            assert_eq!(remote.reason, Some(ErrorReason::Draining));
            assert!(remote.is_retryable() && remote.retry_after.is_some());
        }
        other => panic!("not told: {other:?}"),
    }
    assert_eq!(timeout(LONG, server.task).await.expect("it ends").unwrap().killed, 0);
    timeout(LONG, connection.ended()).await.expect("closed");
    let error = ask(&connection).fetch(&Held::default(), LONG).await.expect_err("the connection is gone");
    assert!(error.is_retryable(), "{error}");
}

#[tokio::test]
async fn one_address_has_its_places_and_gets_them_back() {
    let world = World::new();
    let limits = Limits { connections_per_ip: 2, ..Limits::default() };
    let server = world.serve_with(&world.server_tls(), limits).await;
    let first = server.connect(&world.truck("a")).await.unwrap();
    let second = server.connect(&world.truck("b")).await.unwrap();
    let error = server.connect(&world.truck("c")).await.expect_err("the third");
    assert_eq!(error.reason(), ErrorReason::PeerUnreachable);
    assert_eq!(server.handle.stats().refused(Refused::PerAddress), 1);
    is_served(&first).await;
    drop(second);
    server.until(|stats| stats.open == 1).await;
    is_served(&server.connect(&world.truck("c")).await.unwrap()).await;
}

#[tokio::test]
async fn when_the_port_is_full_the_next_is_turned_away_at_once() {
    let world = World::new();
    let limits = Limits { connections: 1, ..Limits::default() };
    let server = world.serve_with(&world.server_tls(), limits).await;
    let only = server.connect(&world.truck("a")).await.unwrap();
    assert!(server.connect(&world.truck("b")).await.is_err());
    assert_eq!(server.handle.stats().refused(Refused::Full), 1);
    is_served(&only).await;
}

#[tokio::test]
async fn a_flapping_radio_loses_its_oldest_connection_not_its_newest() {
    let world = World::new();
    let limits = Limits { connections_per_identity: 2, ..Limits::default() };
    let server = world.serve_with(&world.server_tls(), limits).await;
    let truck = world.truck("truck-1");
    let oldest = server.connect(&truck).await.unwrap();
    let middle = server.connect(&truck).await.unwrap();
    let newest = server.connect(&truck).await.unwrap();
    timeout(LONG, oldest.ended()).await.expect("it made room");
    is_served(&middle).await;
    is_served(&newest).await;
    server.until(|stats| stats.ended(Ended::Replaced) == 1).await;
}

#[tokio::test]
async fn who_asks_too_often_is_told_when_to_come_back() {
    let world = World::new();
    let limits = Limits { request_burst: 3, requests_per_second: 1, ..Limits::default() };
    let server = world.serve_with(&world.server_tls(), limits).await;
    let hasty = server.connect(&world.truck("hasty")).await.unwrap();
    for _ in 0..3 {
        is_served(&hasty).await;
    }
    match ask(&hasty).fetch(&Held::default(), LONG).await {
        Err(FetchError::Remote(remote)) => {
            assert_eq!(remote.reason, Some(ErrorReason::Throttled));
            let wait = remote.retry_after.expect("says when");
            assert!(wait > Duration::ZERO && wait <= Duration::from_millis(1500), "{wait:?}");
        }
        other => panic!("not throttled: {other:?}"),
    }
    is_served(&server.connect(&world.truck("patient")).await.unwrap()).await;
    assert_eq!(server.handle.stats().throttled, 1);
}

#[tokio::test]
async fn a_call_that_was_cut_may_have_been_stored() {
    let world = World::new();
    let server = world.serve().await;
    server.book.send_replace(Some(Arc::new(keys_of(&Authority::new(), 1, 1))));
    let connection = server.connect(&world.truck("truck-1")).await.unwrap();
    let mut watch = ask(&connection).watch(&Held::default()).await.unwrap();
    watch.next().await.unwrap();
    assert_eq!(server.handle.cut(|_| true), 1);
    match timeout(LONG, watch.next()).await.expect("noticed") {
        Err(FetchError::Remote(remote)) => {
            assert!(
                remote.is_connection() && remote.is_retryable() && remote.may_have_been_stored(),
                "{remote:?}"
            );
        }
        other => panic!("not noticed: {other:?}"),
    }
}

#[tokio::test]
async fn a_peer_that_sends_rubbish_over_http_2_ends_its_own_connection() {
    let world = World::new();
    let server = world.serve().await;
    let mut stream = silent(&world, &server, "rude").await;
    let healthy = server.connect(&world.truck("truck-1")).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, &[0xff; 4096]).await.unwrap();
    let mut rest = Vec::new();
    let _ = timeout(LONG, stream.read_to_end(&mut rest)).await.expect("closed");
    server.until(|stats| stats.ended(Ended::ProtocolError) == 1).await;
    is_served(&healthy).await;
}

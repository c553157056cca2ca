//! Attacks from outside, and of those who get in and say nothing.

use std::time::{Duration, Instant};

use pithead_tests::{
    client::Client,
    program::{PATIENCE, Program},
    site::SITE,
};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

use crate::attacks::{
    arena::{Arena, idle_site, site},
    wire::{APPEND, Attacker, shake, tls},
};

/// What some hundred strangers may cost in memory, whatever they do.
const STRANGERS_MIB: u64 = 48;
/// What each of very many may cost while it says nothing: a task, and a buffer of TLS.
const SILENT_KIB: u64 = 24;

/// Attackers and the client beside come from one address: the rate of new connections would turn both away alike. It is proven in
/// process.
const ANY_RATE: [&str; 2] = ["connections_per_second = 1000000", "connection_burst = 1000000"];

#[expect(clippy::print_stdout, reason = "how many there really were")]
fn as_many_as_there_can_be(asked: usize) -> usize {
    // Each costs a file descriptor here and one in the gateway, and other tests may run in this process.
    pithead_hop::program::files::raise_limit();
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let count = asked.min(usize::try_from(files).unwrap_or(usize::MAX).saturating_sub(300));
    println!("{count} of {asked} connections: {files} file descriptors");
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_that_say_nothing_are_cut_at_the_handshakes_deadline() {
    let asked = if pithead_tests::long() { 5_000 } else { 1_000 };
    let count = as_many_as_there_can_be(asked);
    let lines = ["handshake_timeout = \"2s\"", "connections = 8192", ANY_RATE[0], ANY_RATE[1]];
    let mut arena = Arena::open(&lines).await;
    let to = arena.site.gateway_address();
    let mut silent = Vec::new();
    for _ in 0..count {
        silent.push(TcpStream::connect(to).await.unwrap());
    }
    arena.until_shaken("timed_out", count as u64).await;
    for mut stranger in silent {
        assert!(!matches!(stranger.read(&mut [0; 1]).await, Ok(1..)), "nothing is said to it");
    }
    let bound = STRANGERS_MIB.max(16 + count as u64 * SILENT_KIB / 1024);
    arena.closes(&format!("silent TCP x {count}"), bound).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_full_of_silence_makes_room_for_who_speaks() {
    // The client beside keeps its connection: before anybody has been silent for long, there is no room for another.
    let site = site(&["connections = 100", "handshake_timeout = \"1h\""]).await;
    let mut arena = Arena::over(site, false).await;
    let to = arena.site.gateway_address();
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(TcpStream::connect(to).await.unwrap());
    }
    arena.until_counted("pithead_connections_refused_total", "\"full\"", 201).await;
    let identity = arena.site.identity_of("later").unwrap();
    let began = Instant::now();
    while Client::connect(to, arena.site.ca.path(), Some(&identity)).await.unwrap().is_err() {
        assert!(began.elapsed() < PATIENCE, "nobody makes room");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // From now on whoever speaks finds a place, though others come all the time who do not.
    for _ in 0..20 {
        silent.push(TcpStream::connect(to).await.unwrap());
        let client = Client::connect(to, arena.site.ca.path(), Some(&identity)).await.unwrap();
        client.expect("somebody who is silent makes room");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    arena.until_shaken("made_room", 20).await;
    arena.closes("a full port", STRANGERS_MIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_byte_at_a_time_is_cut_at_the_handshakes_deadline() {
    let mut arena = Arena::open(&["handshake_timeout = \"1s\"", "handshakes = 4"]).await;
    let to = arena.site.gateway_address();
    let config = tls(&arena.site, Some(&arena.site.identity_of("slow").unwrap()));
    let count = if pithead_tests::long() { 500 } else { 60 };
    let mut slow = JoinSet::new();
    for number in 0..count {
        let config = config.clone();
        slow.spawn(async move {
            let mut client = rustls::ClientConnection::new(config, ServerName::from(to.ip())).unwrap();
            let mut hello = Vec::new();
            client.write_tls(&mut hello).unwrap();
            let mut tcp = TcpStream::connect(to).await.unwrap();
            // Half of them say all of their hello, and then go on one byte at a time: the server has done its part by then.
            let at_once = if number % 2 == 0 { 0 } else { hello.len() };
            let bytes = hello[..at_once].to_vec();
            if tcp.write_all(&bytes).await.is_err() {
                return;
            }
            for byte in hello[at_once..].iter().chain(std::iter::repeat(&0x17)) {
                if tcp.write_all(&[*byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
    }
    let ended = async { while slow.join_next().await.is_some() {} };
    tokio::time::timeout(PATIENCE, ended).await.expect("all of them are cut");
    // Who goes on with a byte that is no TLS is found out before its time is over.
    arena.until_shaken("timed_out", count / 2).await;
    arena.closes("one byte at a time", STRANGERS_MIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_nothing_after_the_handshake_is_cut() {
    let mut arena = Arena::open(&["first_request = \"1s\""]).await;
    let count = if pithead_tests::long() { 400 } else { 40 };
    let mut silent = Vec::new();
    for number in 0..count {
        let identity = arena.site.identity_of(&format!("silent-{number}")).unwrap();
        silent.push(shake(arena.site.gateway_address(), tls(&arena.site, Some(&identity))).await.unwrap());
    }
    arena.until_ended("no_first_request", count).await;
    drop(silent);
    arena.closes(&format!("silent after TLS x {count}"), STRANGERS_MIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_another_ca_are_refused_and_counted() {
    let mut arena = Arena::open(&ANY_RATE).await;
    let stem = arena.site.folder().join("certificates/foreign");
    let foreign = arena.site.cloud_ca.client(&format!("spiffe://{SITE}/device/healthy"), &stem).unwrap();
    let strangers = [tls(&arena.site, Some(&foreign)), tls(&arena.site, None)];
    let to = arena.site.gateway_address();
    let count = if pithead_tests::long() { 20_000 } else { 400 };
    let mut flood = JoinSet::new();
    for worker in 0..4_u64 {
        let config = strangers[(worker % 2) as usize].clone();
        flood.spawn(async move {
            for _ in 0..count / 4 {
                // In TLS 1.3 the client is done before it hears that it is refused.
                if let Ok(mut stream) = shake(to, config.clone()).await {
                    let _ = stream.read(&mut [0; 1]).await;
                }
            }
        });
    }
    while flood.join_next().await.is_some() {}
    arena.until_shaken("certificate", count).await;
    arena.closes(&format!("bad certificates x {count}"), STRANGERS_MIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn noise_instead_of_tls_is_refused_and_counted() {
    let mut arena = Arena::open(&ANY_RATE).await;
    let to = arena.site.gateway_address();
    let count = if pithead_tests::long() { 20_000 } else { 400 };
    for number in 0..count {
        let noise: &[u8] = match number % 4 {
            0 => b"GET / HTTP/1.1\r\n\r\n",
            1 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            2 => &[0x16, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc],
            _ => &[0xff; 64],
        };
        let mut stranger = TcpStream::connect(to).await.unwrap();
        let _ = stranger.write_all(noise).await;
        // Until it is let go: the rate of new connections is open here, and whoever comes faster than he is refused fills the port.
        let _ = stranger.shutdown().await;
        let mut alert = [0; 64];
        while stranger.read(&mut alert).await.is_ok_and(|read| read > 0) {}
    }
    arena.until_shaken("failed", count).await;
    arena.closes(&format!("noise x {count}"), STRANGERS_MIB).await;
}

fn limit_files(program: &Program, soft: u64) -> Rlimit {
    let pid = Pid::from_raw(i32::try_from(program.pid().unwrap()).unwrap());
    let hard = getrlimit(Resource::Nofile).maximum;
    prlimit(pid, Resource::Nofile, Rlimit { current: Some(soft), maximum: hard }).unwrap()
}

fn open_files(program: &Program) -> u64 {
    std::fs::read_dir(format!("/proc/{}/fd", program.pid().unwrap())).unwrap().count() as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn without_file_descriptors_nothing_spins_and_it_goes_on_when_there_are_some() {
    // The client beside keeps its connection: there is no descriptor for another one.
    let site = site(&["handshake_timeout = \"1h\""]).await;
    let mut arena = Arena::over(site, false).await;
    let to = arena.site.gateway_address();
    let gateway = arena.site.gateway().unwrap();
    // Room for the admin port's own connections, and for a segment.
    limit_files(gateway, open_files(gateway) + 12);
    let mut strangers = Vec::new();
    for _ in 0..40 {
        strangers.push(TcpStream::connect(to).await.unwrap());
    }
    // The admin port has no descriptor either: its own number is asked for when there are some again.
    let (cpu, began) = (gateway.cpu_seconds().unwrap(), Instant::now());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let used = (gateway.cpu_seconds().unwrap() - cpu) / began.elapsed().as_secs_f64();
    assert!(used < 0.3, "{used:.2} of a core while nothing could be accepted");
    drop(strangers);
    arena.until_counted("pithead_listener_errors_total", "", 1).await;
    // Whoever comes now is served: the listener has not given up.
    let identity = arena.site.identity_of("later").unwrap();
    let later = Client::connect(to, arena.site.ca.path(), Some(&identity));
    tokio::time::timeout(PATIENCE, later).await.expect("in time").unwrap().expect("it is let in");
    arena.closes("no file descriptors", STRANGERS_MIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_few_file_descriptors_connections_are_refused_before_the_disk_has_none() {
    let mut site = idle_site(&["handshake_timeout = \"1h\""]).await;
    let (gateway, config) = (site.programs().gateway(), site.gateway_config());
    let starved = [
        "-c".to_owned(),
        "ulimit -n 300 && exec \"$0\" run -c \"$1\"".to_owned(),
        gateway.display().to_string(),
        config.display().to_string(),
    ];
    let log = site.folder().join("gateway.log");
    let program = Program::start("/bin/sh".as_ref(), &starved, &[], site.gateway_admin(), &log).unwrap();
    site.adopt_gateway(program).ready().await.unwrap();
    let mut arena = Arena::over(site, false).await;
    let to = arena.site.gateway_address();
    let mut strangers = Vec::new();
    for _ in 0..400 {
        strangers.push(TcpStream::connect(to).await.unwrap());
    }
    // 300 less the 128 that are kept, less the client beside.
    arena.until_counted("pithead_connections_refused_total", "\"full\"", 400 - 172).await;
    let admin = arena.admin();
    assert!(admin.metric("pithead_connections").await.unwrap() <= 172.0);
    assert_eq!(admin.metric("pithead_listener_errors_total").await.unwrap(), 0.0);
    assert!(arena.site.gateway().unwrap().log_text().contains("accept.few_files"));
    arena.closes("few file descriptors", STRANGERS_MIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_in_time_though_peers_are_connected_that_say_nothing() {
    let mut site =
        idle_site(&["handshake_timeout = \"1h\"", "first_request = \"1h\"", "write_stall = \"1h\""]).await;
    let config = std::fs::read_to_string(site.gateway_config()).unwrap();
    let stop = "[stop]\nintake = \"2s\"\nrelay = \"1s\"\nspool = \"5s\"\nadmin = \"1s\"\n";
    std::fs::write(site.gateway_config(), format!("{config}\n{stop}")).unwrap();
    site.start_gateway().await.unwrap();
    let (to, identity) = (site.gateway_address(), site.identity_of("mute").unwrap());
    let config = tls(&site, Some(&identity));
    let tcp = TcpStream::connect(to).await.unwrap();
    let mut half = TcpStream::connect(to).await.unwrap();
    let mut client = rustls::ClientConnection::new(config.clone(), ServerName::from(to.ip())).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    half.write_all(&hello).await.unwrap();
    let silent = shake(to, config.clone()).await.unwrap();
    let mut calling = Attacker::connect(to, config.clone(), &[(4, 0)]).await;
    calling.open(APPEND, &[]);
    calling.flush().await.unwrap();
    let admin = site.gateway().unwrap();
    let here = async |admin: pithead_tests::program::Admin| {
        admin.metric("pithead_requests_total").await.is_ok_and(|count| count >= 1.0)
            && admin.metric("pithead_connections_handshaking").await.is_ok_and(|count| count >= 2.0)
    };
    admin.until("has all of them", here).await.unwrap();
    site.stop_gateway().await.unwrap();
    drop((tcp, half, silent, calling));
    // Intake ended at its own deadline, and nothing after it at one: it had nothing to wait for.
    let log = std::fs::read_to_string(site.folder().join("gateway.log")).unwrap();
    assert!(log.contains("accept.stop_deadline") && !log.contains("panicked"), "{log}");
    assert!(!log.contains("stop.limit_ran_out"), "{log}");
}

//! Attacks from inside: a device's certificate, and HTTP/2 as no client speaks it.

use std::time::{Duration, Instant};

use crate::attacks::{
    arena::Arena,
    wire::{
        ACK, APPEND, Attacker, CONTINUATION, DATA, END_HEADERS, END_STREAM, GET_KEYS, GOAWAY, HEADERS, PING,
        RST_STREAM, SETTINGS, SUBMIT, WINDOW_UPDATE, tls,
    },
};

/// What a flood may cost in memory while it is on: buffers of some connections, and what the allocator keeps.
const FLOOD_MIB: u64 = 24;

/// More than any bound lets through.
fn many() -> u64 {
    if pithead_tests::long() { 5_000_000 } else { 200_000 }
}

/// How long it is attacked, at least, by one connection after the other.
fn how_long() -> Duration {
    Duration::from_secs(if pithead_tests::long() { 20 } else { 1 })
}

/// Floods again and again, until the gateway has ended each connection in this way.
async fn ended_as(how: &str, name: &str, settings: &[(u16, u32)], each: impl Fn(&mut Attacker, u64)) {
    let mut arena = Arena::open(&[]).await;
    let tls = tls(&arena.site, Some(&arena.site.identity_of("attacker").unwrap()));
    let (began, mut sent, mut rounds) = (Instant::now(), 0, 0);
    while began.elapsed() < how_long() {
        let mut attacker = Attacker::connect(arena.site.gateway_address(), tls.clone(), settings).await;
        sent += attacker.flood(many(), &each).await;
        attacker.until_ended().await;
        rounds += 1;
    }
    arena.until_ended(how, rounds).await;
    arena.closes(&format!("{name} ({sent} in {rounds} connections)"), FLOOD_MIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn made_you_reset_by_a_window_that_overflows_ends_the_connection() {
    ended_as("reset_flood", "MadeYouReset by window overflow", &[], |attacker, _| {
        let stream = attacker.open(GET_KEYS, &[]);
        attacker.frame(WINDOW_UPDATE, 0, stream, &0x7fff_ffff_u32.to_be_bytes());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn made_you_reset_by_a_length_that_is_not_kept_ends_the_connection() {
    ended_as("reset_flood", "MadeYouReset by content-length", &[], |attacker, _| {
        attacker.call(GET_KEYS, &[("content-length", "7")], END_HEADERS | END_STREAM);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rapid_reset_ends_the_connection() {
    ended_as("rapid_reset", "rapid reset", &[], |attacker, _| {
        let stream = attacker.open(GET_KEYS, &[]);
        attacker.frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_without_an_end_end_the_connection() {
    ended_as("header_flood", "CONTINUATION flood", &[], |attacker, round| {
        if round == 0 {
            attacker.call(GET_KEYS, &[], 0);
        }
        // One header that nobody needs, in each.
        attacker.frame(CONTINUATION, 0, 1, b"\x00\x01a\x01b");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_data_without_an_end_ends_the_connection() {
    ended_as("data_flood", "empty DATA flood", &[], |attacker, round| {
        if round == 0 {
            attacker.open(APPEND, &[]);
        }
        attacker.frame(DATA, 0, 1, &[]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_without_an_end_end_the_connection() {
    ended_as("noise", "PING flood", &[], |attacker, round| attacker.frame(PING, 0, 0, &round.to_be_bytes()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_to_pings_that_nobody_sent_end_the_connection_and_fill_no_log() {
    ended_as("noise", "PING ack flood", &[], |attacker, round| {
        attacker.frame(PING, ACK, 0, &round.to_be_bytes())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_without_an_end_end_the_connection() {
    ended_as("noise", "SETTINGS flood", &[], |attacker, round| {
        let window = 65_535 + (round as u32 % 1000);
        attacker.frame(SETTINGS, 0, 0, &[&4_u16.to_be_bytes()[..], &window.to_be_bytes()].concat());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_calls_at_once_are_refused_and_end_the_connection() {
    ended_as("reset_flood", "10,000 streams", &[], |attacker, _| {
        attacker.open(APPEND, &[]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_go_on_while_they_are_throttled_end_the_connection() {
    let mut arena = Arena::open(&[]).await;
    let tls = tls(&arena.site, Some(&arena.site.identity_of("attacker").unwrap()));
    let mut attacker = Attacker::connect(arena.site.gateway_address(), tls, &[]).await;
    let mut asked = 0;
    // A few calls at a time, each whole and answered: nothing that HTTP/2 would mind.
    while !attacker.is_ended() {
        for _ in 0..50 {
            let stream = attacker.open(GET_KEYS, &[]);
            attacker.frame(DATA, END_STREAM, stream, &[0; 5]);
            asked += 1;
        }
        if attacker.flush().await.is_err() {
            break;
        }
        while !attacker.is_ended() && attacker.answers() < asked {
            tokio::task::yield_now().await;
        }
        assert!(asked < 1_000_000, "it may go on for ever");
    }
    arena.until_ended("noise", 1).await;
    arena.until_counted("pithead_requests_throttled_total", "", 10_000).await;
    arena.closes(&format!("throttled requests ({asked})"), FLOOD_MIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn oversize_headers_are_refused_and_counted() {
    let mut arena = Arena::open(&[]).await;
    let tls = tls(&arena.site, Some(&arena.site.identity_of("attacker").unwrap()));
    let mut attacker = Attacker::connect(arena.site.gateway_address(), tls.clone(), &[]).await;
    // Some kilobytes above the limit: the call is refused, and others of this connection would go on.
    let long = "x".repeat(12 << 10);
    let calls = 20;
    for _ in 0..calls {
        attacker.call(GET_KEYS, &[("x-long", &long)], END_HEADERS | END_STREAM);
    }
    attacker.flush().await.unwrap();
    arena.until_counted("pithead_oversize_headers_total", "", calls).await;
    assert!(!attacker.is_ended(), "one call too large is no reason to end the others");
    let (admin, requests) = (arena.admin(), "pithead_requests_total");
    let streams = admin.metric("pithead_streams_total").await.unwrap();
    assert!(
        streams - admin.metric(requests).await.unwrap() >= calls as f64,
        "none of them reached a service"
    );
    // Far above it, by names that stand for more than they take: the connection is over.
    let mut bomb = Attacker::connect(arena.site.gateway_address(), tls, &[]).await;
    let mut block = crate::attacks::wire::headers(GET_KEYS, &[]);
    // A literal of 3 kB that is remembered (index 62), and then named two thousand times in two bytes... each counts in full.
    block.push(0x40);
    block.extend(b"\x01b\x7f\xb9\x16");
    block.extend(vec![b'v'; 3_000]);
    block.extend(vec![0xbe; 2_000]);
    bomb.frame(HEADERS, END_HEADERS | END_STREAM, 1, &block);
    let _ = bomb.flush().await;
    bomb.until_ended().await;
    arena.until_ended("header_flood", 1).await;
    arena.closes("oversize headers", FLOOD_MIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_grants_no_window_is_cut_when_nothing_moves() {
    let mut arena = Arena::open(&["write_stall = \"1s\""]).await;
    let mut readers = Vec::new();
    for number in 0..8 {
        let tls = tls(&arena.site, Some(&arena.site.identity_of(&format!("reader-{number}")).unwrap()));
        // SETTINGS_INITIAL_WINDOW_SIZE 0.
        let mut reader = Attacker::connect(arena.site.gateway_address(), tls, &[(4, 0)]).await;
        let request = pithead_proto::keys::v1::GetKeyBundleRequest {
            authority: pithead_tests::authority::AUTHORITY.into(),
            site: pithead_tests::site::SITE.into(),
            have: None,
        };
        for _ in 0..60 {
            let stream = reader.open(GET_KEYS, &[]);
            reader.frame(DATA, END_STREAM, stream, &message(0, &prost::Message::encode_to_vec(&request)));
        }
        reader.flush().await.unwrap();
        readers.push(reader);
    }
    for reader in &mut readers {
        reader.until_ended().await;
    }
    arena.until_ended("stalled", 8).await;
    arena.closes("zero-window readers", FLOOD_MIB).await;
}

/// A gRPC message: flag, length, bytes.
fn message(flag: u8, bytes: &[u8]) -> Vec<u8> {
    let mut message = vec![flag];
    message.extend((bytes.len() as u32).to_be_bytes());
    message.extend(bytes);
    message
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_messages_that_never_end_hold_no_more_memory_than_an_identity_may() {
    let mut arena = Arena::open(&["requests_per_second = 10000", "request_burst = 10000"]).await;
    let tls = tls(&arena.site, Some(&arena.site.identity_of("attacker").unwrap()));
    let length = 4_u32 << 20;
    let piece = vec![0x5a; 16 << 10];
    let mut flood = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (to, tls, piece) = (arena.site.gateway_address(), tls.clone(), piece.clone());
        flood.spawn(async move {
            let mut attacker = Attacker::connect(to, tls, &[]).await;
            let streams: Vec<u32> = (0..63).map(|_| attacker.open(SUBMIT, &[])).collect();
            for stream in &streams {
                attacker.frame(DATA, 0, *stream, &[&[0][..], &length.to_be_bytes()].concat());
            }
            // It keeps to every window: breaking one is another attack.
            let (mut sent, more) = (5 * streams.len() as u64, piece.len() as u64);
            for _ in 0..15 {
                for stream in &streams {
                    if !attacker.room_for(sent, more).await {
                        return attacker;
                    }
                    attacker.frame(DATA, 0, *stream, &piece);
                    sent += more;
                }
            }
            let _ = attacker.flush().await;
            attacker
        });
    }
    let attackers = flood.join_all().await;
    // 4 x 63 x 15 x 16 KiB would be 59 MiB.
    arena.until_counted("pithead_requests_refused_total", "", 100).await;
    drop(attackers);
    arena.closes("the largest messages, never ended", 16 + FLOOD_MIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_and_oversize_messages_are_refused_and_hold_no_memory() {
    let mut arena = Arena::open(&["requests_per_second = 10000", "request_burst = 10000"]).await;
    let tls = tls(&arena.site, Some(&arena.site.identity_of("attacker").unwrap()));
    let mut attacker = Attacker::connect(arena.site.gateway_address(), tls, &[]).await;
    let garbage: Vec<u8> = (0..2_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let announced = |flag: u8, length: u32| [&[flag][..], &length.to_be_bytes()].concat();
    let kinds: [Vec<u8>; 6] = [
        // No message of ours, the right length.
        message(0, &garbage),
        // No gRPC at all.
        garbage.clone(),
        // Larger than a request may be; the largest that can be said.
        announced(0, 5 << 20),
        announced(0, u32::MAX),
        // Compressed, which nobody has agreed on; and no kind of compression at all.
        message(1, &garbage),
        message(7, &garbage),
    ];
    let rounds = if pithead_tests::long() { 2_000 } else { 30 };
    let mut sent = 0;
    for _ in 0..rounds {
        for body in &kinds {
            for path in [SUBMIT, GET_KEYS] {
                let stream = attacker.open(path, &[]);
                attacker.frame(DATA, END_STREAM, stream, body);
                sent += 1;
            }
        }
        attacker.flush().await.unwrap();
        // One round after the other: calls at once are another attack.
        arena.until_counted("pithead_requests_refused_total", "", sent).await;
    }
    assert!(!attacker.is_ended(), "the connection's other calls are nobody's business");
    assert!(!attacker.heard.lock().unwrap().frames.contains_key(&GOAWAY));
    arena.closes("garbage and oversize messages", FLOOD_MIB).await;
}

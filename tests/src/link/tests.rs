//! Each fault on plain sockets, so that a fault that a whole-system test relies on is known to happen.
#![allow(clippy::unwrap_used)]

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// Long enough for loopback to carry a few bytes, were anybody to let them through.
const A_WHILE: Duration = Duration::from_millis(100);

async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

/// Answers nothing; says how many bytes each of its connections has heard, as they come.
async fn listener() -> (SocketAddr, watch::Receiver<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let heard = watch::Sender::new(0);
    let hears = heard.subscribe();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let heard = heard.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 1024];
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    heard.send_modify(|heard| *heard += count);
                }
            });
        }
    });
    (address, hears)
}

async fn wire() -> Link {
    Link::start("127.0.0.1:0".parse().unwrap(), echo().await).await.unwrap()
}

async fn connected(link: &Link) -> TcpStream {
    TcpStream::connect(link.address()).await.unwrap()
}

async fn says(stream: &mut TcpStream, word: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(word).await?;
    let mut answer = vec![0; word.len()];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

async fn is_quiet(stream: &mut TcpStream) -> bool {
    tokio::time::timeout(A_WHILE, stream.read_u8()).await.is_err()
}

async fn is_reset(link: &Link) -> bool {
    match TcpStream::connect(link.address()).await {
        Ok(mut stream) => says(&mut stream, b"hello").await.is_err(),
        Err(_) => true,
    }
}

#[tokio::test]
async fn a_cut_resets_what_there_is_and_what_comes_and_healing_lets_new_ones_through() {
    let link = wire().await;
    let mut stream = connected(&link).await;
    assert_eq!(says(&mut stream, b"hello").await.unwrap(), b"hello");
    link.cut();
    assert!(says(&mut stream, b"anybody?").await.is_err());
    assert!(is_reset(&link).await);
    link.heal();
    assert_eq!(says(&mut connected(&link).await, b"again").await.unwrap(), b"again");
    assert_eq!(link.connections(), 2);
}

#[tokio::test]
async fn a_reset_ends_what_there_is_and_takes_what_comes() {
    let link = wire().await;
    let mut stream = connected(&link).await;
    assert_eq!(says(&mut stream, b"hello").await.unwrap(), b"hello");
    link.reset();
    assert!(says(&mut stream, b"anybody?").await.is_err());
    assert_eq!(says(&mut connected(&link).await, b"again").await.unwrap(), b"again");
}

#[tokio::test]
async fn silence_holds_everything_back_and_loses_nothing() {
    let link = wire().await;
    let mut stream = connected(&link).await;
    assert_eq!(says(&mut stream, b"hello").await.unwrap(), b"hello");
    link.silence();
    stream.write_all(b"hidden").await.unwrap();
    assert!(is_quiet(&mut stream).await, "nothing may come through");
    link.heal();
    let mut rest = [0; 6];
    stream.read_exact(&mut rest).await.unwrap();
    assert_eq!(&rest, b"hidden");
}

#[tokio::test]
async fn half_open_both_ways_accepts_swallows_for_good_and_tells_nobody() {
    let link = wire().await;
    let mut stream = connected(&link).await;
    link.half_open(Swallow::Both);
    stream.write_all(b"gone").await.unwrap();
    link.until(|carried| carried.swallowed == 4).await;
    let mut other = connected(&link).await;
    other.write_all(b"gone too").await.unwrap();
    link.until(|carried| carried.swallowed == 12).await;
    assert!(is_quiet(&mut stream).await && is_quiet(&mut other).await);
    link.heal();
    // Nothing comes back; what is said from now on is heard.
    assert_eq!(says(&mut stream, b"here").await.unwrap(), b"here");
    assert_eq!((link.carried().up, link.carried().down), (4, 4));
}

#[tokio::test]
async fn half_open_one_way_swallows_requests_or_replies_and_passes_the_others() {
    let (address, mut heard) = listener().await;
    let link = Link::start("127.0.0.1:0".parse().unwrap(), address).await.unwrap();
    let mut stream = connected(&link).await;
    link.half_open(Swallow::Down);
    stream.write_all(b"heard").await.unwrap();
    heard.wait_for(|heard| *heard == 5).await.unwrap();
    link.half_open(Swallow::Up);
    stream.write_all(b"unheard").await.unwrap();
    link.until(|carried| carried.swallowed == 7).await;
    assert_eq!(*heard.borrow(), 5);

    let link = wire().await;
    let mut stream = connected(&link).await;
    link.half_open(Swallow::Down);
    stream.write_all(b"asked").await.unwrap();
    link.until(|carried| carried.swallowed == 5).await;
    assert_eq!(link.carried().up, 5, "the request has gone through");
    assert!(is_quiet(&mut stream).await);
}

#[tokio::test]
async fn a_half_open_wire_does_not_tell_the_far_side_that_the_near_one_has_gone() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let link = Link::start("127.0.0.1:0".parse().unwrap(), listener.local_addr().unwrap()).await.unwrap();
    let near = connected(&link).await;
    let (mut far, _) = listener.accept().await.unwrap();
    link.half_open(Swallow::Both);
    drop(near);
    assert!(is_quiet(&mut far).await);
    link.reset();
    assert!(far.read_u8().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_delay_is_paid_once_a_round_trip_each_way_and_not_per_byte() {
    let link = wire().await;
    let mut stream = connected(&link).await;
    link.delay(Duration::from_secs(5));
    let began = tokio::time::Instant::now();
    assert_eq!(says(&mut stream, &[7; 1_000]).await.unwrap(), [7; 1_000]);
    let took = began.elapsed();
    assert!((Duration::from_secs(10)..Duration::from_secs(11)).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_throttled_wire_carries_its_rate_and_no_more() {
    let (address, mut heard) = listener().await;
    let link = Link::start("127.0.0.1:0".parse().unwrap(), address).await.unwrap();
    let mut stream = connected(&link).await;
    link.throttle(10_000);
    let began = tokio::time::Instant::now();
    stream.write_all(&[7; 50_000]).await.unwrap();
    heard.wait_for(|heard| *heard == 50_000).await.unwrap();
    let took = began.elapsed();
    assert!((Duration::from_millis(4_900)..Duration::from_millis(5_600)).contains(&took), "{took:?}");
}

#[tokio::test]
async fn a_lost_request_never_arrives_and_breaks_the_connection() {
    let (address, heard) = listener().await;
    let link = Link::start("127.0.0.1:0".parse().unwrap(), address).await.unwrap();
    let mut stream = connected(&link).await;
    link.lose_request(0);
    stream.write_all(b"please").await.unwrap();
    assert!(stream.read_u8().await.is_err(), "the connection breaks");
    link.until(|carried| carried.lost == 1).await;
    assert_eq!((*heard.borrow(), link.carried().up), (0, 0));
    // Once.
    connected(&link).await.write_all(b"please").await.unwrap();
    heard.clone().wait_for(|heard| *heard == 6).await.unwrap();
}

#[tokio::test]
async fn a_lost_reply_was_asked_for_and_given_and_never_arrives() {
    let link = wire().await;
    let mut stream = connected(&link).await;
    link.lose_reply(0);
    stream.write_all(b"please").await.unwrap();
    assert!(stream.read_u8().await.is_err(), "the connection breaks");
    assert_eq!((link.carried().up, link.carried().down, link.carried().lost), (6, 0, 1));
    assert_eq!(says(&mut connected(&link).await, b"again").await.unwrap(), b"again");
}

#[tokio::test]
async fn a_message_that_is_lost_further_on_is_torn_where_it_was_asked_for() {
    let (address, mut heard) = listener().await;
    let link = Link::start("127.0.0.1:0".parse().unwrap(), address).await.unwrap();
    let mut stream = connected(&link).await;
    stream.write_all(b"before").await.unwrap();
    heard.wait_for(|heard| *heard == 6).await.unwrap();
    link.lose_request(10);
    stream.write_all(b"whole").await.unwrap();
    heard.wait_for(|heard| *heard == 11).await.unwrap();
    stream.write_all(b"torn in two").await.unwrap();
    assert!(stream.read_u8().await.is_err(), "the connection breaks");
    let carried = link.carried();
    assert_eq!((carried.up, carried.swallowed, carried.lost), (16, 6, 1));
}

#[tokio::test]
async fn a_flapping_wire_breaks_connections_again_and_again_and_is_whole_in_the_end() {
    let link = wire().await;
    let flapping = link.flap(Duration::from_millis(20), Duration::from_millis(5));
    let mut broken = 0;
    while broken < 3 {
        let Ok(mut stream) = TcpStream::connect(link.address()).await else { continue };
        while says(&mut stream, b"hello").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        broken += 1;
    }
    drop(flapping);
    let mut stream = connected(&link).await;
    for _ in 0..50 {
        assert_eq!(says(&mut stream, b"hello").await.unwrap(), b"hello");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn what_is_carried_is_counted_each_way() {
    let (address, mut heard) = listener().await;
    let link = Link::start("127.0.0.1:0".parse().unwrap(), address).await.unwrap();
    connected(&link).await.write_all(&[7; 70_000]).await.unwrap();
    heard.wait_for(|heard| *heard == 70_000).await.unwrap();
    let carried = link.carried();
    assert_eq!((carried.connections, carried.up, carried.down), (1, 70_000, 0));
}

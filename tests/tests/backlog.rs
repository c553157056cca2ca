//! A WAN that is down for so long that a great many envelopes wait, and a gateway that is killed with all of them.
//!
//! Short by default (20,000); `PITHEAD_LONG=1` lets 1,000,000 wait.

use pithead_tests::{
    fleet::Stub,
    forge::Forge,
    ledger::lines_in_order,
    program::Admin,
    site::{KeySource, Site, SiteOptions},
};

const DEVICES: u64 = 4;
/// What a gateway may hold in memory, whatever waits on its disk: its windows, queues and one read, and 64 bytes for the number
/// and the hash of each envelope that waits.
const MEMORY_MAX: u64 = 96 << 20;
const MEMORY_PER_ENVELOPE: u64 = 64;

/// How many wait, and how large each is: in both versions more than the gateway may hold in memory.
fn waiting() -> (u64, usize) {
    if pithead_tests::long() { (1_000_000, 64) } else { (20_000, 8 << 10) }
}

async fn waits(admin: Admin) -> u64 {
    admin.metric("pithead_spool_records").await.unwrap_or(f64::MAX) as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn a_great_backlog_survives_a_kill_and_drains_in_order_within_bounded_memory() {
    let (count, bytes) = waiting();
    // Statements are carried in by hand: at first there is no decryptor at all.
    let options = SiteOptions { keys: KeySource::Bundle, ..SiteOptions::default() };
    let mut site = Site::create(options).await.unwrap();
    site.start_gateway().await.unwrap();
    let forge = Forge::new(&site.authority).unwrap();
    let mut sending = tokio::task::JoinSet::new();
    for number in 0..DEVICES {
        let mut stub = Stub::connect(&site, &forge, &format!("truck-{number}"), 1).await.unwrap();
        let mut noise = vec![0; bytes];
        getrandom::fill(&mut noise).unwrap();
        sending.spawn(async move {
            for from in (1..=count / DEVICES).step_by(5_000) {
                let to = (from + 5_000).min(count / DEVICES + 1);
                stub.next_session().unwrap();
                let text = |seq: u64| [&seq.to_be_bytes()[..], &noise[8..]].concat();
                let sealed: Vec<_> = (from..to).map(|seq| stub.seal(seq, &text(seq)).unwrap()).collect();
                assert_eq!(stub.send(sealed).await.unwrap().stored, to - from);
            }
        });
    }
    while let Some(sent) = sending.join_next().await {
        sent.unwrap();
    }
    let full = site.gateway().unwrap().memory().unwrap();
    assert_eq!(waits(site.gateway().unwrap().admin()).await, count);

    site.kill_gateway().await.unwrap();
    let began = std::time::Instant::now();
    site.start_gateway().await.unwrap();
    let ready = began.elapsed();
    assert_eq!(waits(site.gateway().unwrap().admin()).await, count, "all of it is still there");

    site.start_decryptor().await.unwrap();
    // As long as it moves it may take its time.
    let mut left = count;
    while left > 0 {
        let before = left;
        let moved = async |admin| waits(admin).await < before;
        site.gateway().unwrap().until("passes something on", moved).await.unwrap();
        left = waits(site.gateway().unwrap().admin()).await;
    }
    let drained = site.gateway().unwrap().memory().unwrap();
    let lines = lines_in_order(&site.sink()).unwrap();
    assert_eq!(lines.len() as u64, DEVICES);
    assert!(lines.values().all(|envelopes| *envelopes == count / DEVICES), "{lines:?}");

    println!("{count} envelopes: ready {ready:?} after the kill; memory full {full:?}, drained {drained:?}");
    let bound = MEMORY_MAX + MEMORY_PER_ENVELOPE * count;
    for memory in [full, drained] {
        assert!(memory.peak < bound, "{memory:?} is above {bound} bytes");
    }
    site.stop().await.unwrap();
}

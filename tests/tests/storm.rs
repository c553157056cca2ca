//! 50,000 envelopes, everything sent twice, shuffled: what a fleet does after an outage in which nobody knew what had arrived.

use pithead_tests::{
    fleet::{Answers, Stub},
    forge::Forge,
    ledger::Delivered,
    site::{Site, SiteOptions},
};

const DEVICES: u64 = 5;
const OF_EACH: u64 = 10_000;
/// How far from its place anything is sent: less than the holes that a line may have at once.
const SHUFFLED_WITHIN: usize = 1_000;

/// Every number twice, each block in an order of its own.
fn storm(seed: u64) -> Vec<u64> {
    let mut random = seed;
    let mut below = |bound: usize| {
        // Numerical Recipes' generator: a shuffle needs no better one, and a test needs the same one each time.
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % bound
    };
    let mut numbers: Vec<u64> = (1..=OF_EACH).flat_map(|seq| [seq, seq]).collect();
    for block in numbers.chunks_mut(SHUFFLED_WITHIN) {
        for at in (1..block.len()).rev() {
            block.swap(at, below(at + 1));
        }
    }
    numbers
}

#[tokio::test(flavor = "multi_thread")]
async fn of_fifty_thousand_envelopes_sent_twice_and_shuffled_each_is_delivered_once() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let forge = Forge::new(&site.authority).unwrap();
    let mut sending = tokio::task::JoinSet::new();
    for number in 0..DEVICES {
        let mut stub = Stub::connect(&site, &forge, &format!("truck-{number}"), 1).await.unwrap();
        let sealed: Vec<_> = (1..=OF_EACH)
            .map(|seq| stub.seal(seq, format!("truck {number} number {seq}").as_bytes()).unwrap())
            .collect();
        sending.spawn(async move {
            let order = storm(number).into_iter().map(|seq| sealed[seq as usize - 1].clone());
            stub.send(order).await.unwrap()
        });
    }
    let mut answers = Answers::default();
    while let Some(answered) = sending.join_next().await {
        let answered = answered.unwrap();
        answers.stored += answered.stored;
        answers.duplicates += answered.duplicates;
    }
    let all = DEVICES * OF_EACH;
    assert_eq!(answers, Answers { stored: all, duplicates: all });
    let gateway = site.gateway().unwrap().admin();
    let counted =
        async |outcome| gateway.metric_where("pithead_ingest_envelopes_total", outcome).await.unwrap() as u64;
    assert_eq!((counted("\"stored\"").await, counted("\"duplicate\"").await), (all, all));

    site.until_relayed().await.unwrap();
    let decryptor = site.decryptor().unwrap().admin();
    let entered = async |outcome| {
        decryptor.metric_where("pithead_decryptor_envelopes_total", outcome).await.unwrap() as u64
    };
    assert_eq!((entered("\"applied\"").await, entered("\"duplicate\"").await), (all, 0));
    let delivered = Delivered::from_jsonl(&site.sink()).unwrap();
    assert_eq!((delivered.envelopes(), delivered.repeated(), delivered.holes()), (all, 0, 0));
    for number in 0..DEVICES {
        let texts = delivered.records_of(&format!("truck-{number}"));
        let expected = (1..=OF_EACH).map(|seq| format!("truck {number} number {seq}").into_bytes());
        assert!(texts.into_iter().eq(expected), "truck {number} has other records than it sent");
    }
    site.stop().await.unwrap();
}

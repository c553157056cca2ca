//! Every parser that a stranger's bytes reach, fed with what is good, changed at random: without a nightly compiler, and in CI.
//!
//! It knows nothing of coverage, which the fuzz targets in `fuzz/` have (docs/testing.md); its corpus makes up for some of it:
//! the committed vectors, and messages, certificates and configurations that are good. `PITHEAD_LONG=1` goes on for minutes,
//! `PITHEAD_SEED` begins elsewhere.

mod targets;

use std::time::{Duration, Instant};

use bytes::Bytes;
use pithead_hop::keys::KeyFile;
use pithead_proto::ingest::v1 as wire;
use pithead_sealing::{Site, trust::Bundle};
use prost::Message as _;

const SHORT: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(40);

/// Hexadecimal and base64 out of the vectors: envelopes, roots, statements, keys.
fn from_vectors(text: &str, corpus: &mut Vec<Vec<u8>>) {
    use base64ct::{Base64, Encoding as _};
    fn walk(value: &serde_json::Value, corpus: &mut Vec<Vec<u8>>) {
        match value {
            serde_json::Value::String(text) if text.len() >= 64 && text.len() < 64 << 10 => {
                corpus.extend(hex::decode(text).ok().or_else(|| Base64::decode_vec(text).ok()));
            }
            serde_json::Value::Array(values) => values.iter().for_each(|value| walk(value, corpus)),
            serde_json::Value::Object(values) => values.values().for_each(|value| walk(value, corpus)),
            _ => {}
        }
    }
    walk(&serde_json::from_str(text).unwrap(), corpus);
}

fn corpus() -> Vec<Vec<u8>> {
    let mut corpus = Vec::new();
    from_vectors(include_str!("../../../sealing/tests/vectors/envelope.json"), &mut corpus);
    from_vectors(include_str!("../../../sealing/tests/vectors/trust.json"), &mut corpus);
    corpus.sort();
    corpus.dedup();
    let sealed: Vec<Bytes> = corpus.iter().cloned().map(Bytes::from).collect();
    assert!(sealed.len() > 20, "the vectors are not read: {}", sealed.len());
    for some in sealed.chunks(3) {
        let bundle =
            Bundle { roots: some[1..].to_vec(), statement: Some(some[0].clone()), spkis: some.to_vec() };
        let file =
            KeyFile { authority: "acme-mining/prod".into(), site: Site::new("pit-7").unwrap(), bundle };
        corpus.push(file.encode());
        let hop = wire::Hop {
            gateway: "edge-1".into(),
            assurance: 2,
            certificate_sha256: vec![7; 32].into(),
            ..Default::default()
        };
        let items =
            some.iter().map(|envelope| wire::Item { envelope: envelope.clone(), hops: vec![hop.clone()] });
        let batch = wire::Batch { number: 1, items: items.collect(), gaps: vec![wire::Gap::default()] };
        corpus.push(
            wire::AppendRequest { message: Some(wire::append_request::Message::Batch(batch)) }
                .encode_to_vec(),
        );
        corpus.push(wire::SubmitRequest { envelope: some[0].clone() }.encode_to_vec());
    }
    for uri in ["spiffe://pit-7/device/truck-1", "https://pit-7/a"] {
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = vec![rcgen::SanType::URI(uri.try_into().unwrap())];
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        corpus.push(certificate.der().to_vec());
        corpus.push(certificate.pem().into_bytes());
    }
    let refusal = pithead_hop::status::Refusal::field("envelope", "is empty");
    corpus.push(tonic::Status::from(refusal).details().to_vec());
    corpus.push(b"\"15min\"\n[limits]\nidle = \"1s\"\nconnections = 3\n[envelopes]\ninline = \"4MiB\"\n[uploads]\nopen = 3\n".to_vec());
    corpus.push(include_bytes!("../../../hop/tests/data/v1.bundle").to_vec());
    let bundle =
        pithead_hop::bundle::Index::read(include_bytes!("../../../hop/tests/data/v1.bundle")).unwrap();
    corpus.push(bundle.name().to_string().into_bytes());
    corpus.push(include_bytes!("../../../gateway/src/config.template.toml").to_vec());
    corpus
}

/// A small generator: the same lives from the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // xorshift64*: good enough to change bytes with.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 33) as usize % bound.max(1)
    }
}

/// One of the corpus, changed some times.
fn mutated(corpus: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = corpus[random.below(corpus.len())].clone();
    for _ in 0..=random.below(6) {
        let at = random.below(bytes.len());
        match random.below(9) {
            _ if bytes.is_empty() => bytes.push(random.next() as u8),
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            // Numbers at their ends: lengths, counts and tags live there.
            2 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            3 => bytes.insert(at, random.next() as u8),
            4 => drop(bytes.remove(at)),
            5 => bytes.truncate(at),
            6 => {
                let end = (at + 1 + random.below(64)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, piece);
            }
            7 => {
                let other = &corpus[random.below(corpus.len())];
                let from = random.below(other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            _ => {
                let end = (at + 8).min(bytes.len());
                bytes[at..end].fill(0xff);
            }
        }
    }
    bytes.truncate(64 << 10);
    bytes
}

#[test]
fn what_is_good_is_read_without_a_complaint() {
    for bytes in corpus() {
        for (_, target) in targets::ALL {
            target(&bytes);
        }
    }
}

#[test]
fn no_parser_that_strangers_reach_panics_on_changed_bytes() {
    let corpus = corpus();
    let each = if pithead_tests::long() { LONG } else { SHORT };
    let seed = std::env::var("PITHEAD_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(0x9e37_79b9_7f4a_7c15);
    for (name, target) in targets::ALL {
        let mut random = Random(seed);
        let began = Instant::now();
        let mut count = 0_u64;
        while began.elapsed() < each {
            for _ in 0..64 {
                let bytes = mutated(&corpus, &mut random);
                if let Err(cause) = std::panic::catch_unwind(|| target(&bytes)) {
                    println!("{name} panicked on {}", hex::encode(&bytes));
                    std::panic::resume_unwind(cause);
                }
                count += 1;
            }
        }
        println!("{name}: {count} executions in {:.0} s, seed {seed}", began.elapsed().as_secs_f64());
        assert!(count > 1_000, "{name} is too slow to be worth it: {count}");
    }
}

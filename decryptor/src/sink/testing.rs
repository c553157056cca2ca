//! Deliveries for the tests of both sinks.

use super::{Assurance, Custody, Delivery};
use crate::content::{Content, Encoding};
use crate::devices::Origin;
use bytes::Bytes;
use pithead_sealing::{DeviceId, Identity, Run, Seq, Site, StreamName};
use prost::Message as _;

pub(crate) fn identity(device: &str, seq: u64) -> Identity {
    Identity {
        site: Site::new("pit-7").unwrap(),
        device: DeviceId::new(device).unwrap(),
        stream: StreamName::new("can").unwrap(),
        run: Run::from_parts(3, 1).unwrap(),
        seq: Seq::new(seq).unwrap(),
    }
}

pub(crate) fn delivery(device: &str, seq: u64, content_type: &str, plaintext: &'static [u8]) -> Delivery {
    let mut hash = [0; 32];
    hash[..plaintext.len().min(32)].copy_from_slice(&plaintext[..plaintext.len().min(32)]);
    Delivery {
        identity: identity(device, seq),
        envelope_sha256: hash,
        content: Content::decode(content_type, Encoding::Identity, Bytes::from_static(plaintext), 0).unwrap(),
        custody: Custody { assurance: Assurance::Vouched, hops: [].into(), received_us: 1 },
        origin: Origin::Unsigned,
    }
}

pub(crate) fn batch(device: &str, seq: u64, records: u32) -> Delivery {
    batch_at(device, seq, records, None)
}

pub(crate) fn batch_at(device: &str, seq: u64, records: u32, monotonic_us: Option<u64>) -> Delivery {
    use pithead_proto::batch::v1 as wire;
    let records =
        (0..records).map(|i| wire::Record { dt_us: 10, data: vec![i as u8; 3].into(), name: "n".into() });
    let message =
        wire::Batch { base_us: 1_000, monotonic_us, records: records.collect(), ..Default::default() };
    let plaintext = Bytes::from(message.encode_to_vec());
    Delivery {
        identity: identity(device, seq),
        envelope_sha256: [seq as u8; 32],
        content: Content::decode(wire::CONTENT_TYPE, Encoding::Identity, plaintext, 0).unwrap(),
        custody: Custody { assurance: Assurance::Vouched, hops: [].into(), received_us: 1 },
        origin: Origin::Unsigned,
    }
}

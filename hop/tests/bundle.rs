//! Bundles: what is packed is read, byte for byte and for ever; what is anything else is refused, and nothing panics.

use bytes::Bytes;
use pithead_hop::bundle::{
    Bundle, BundleError, BundleName, Content, ENTRIES_MAX, ENVELOPE_MAX, FRONT_MIN, Index, Large, LargeName,
    Origin, PackError, Packed, Packer, Part, SpoolId,
};
use pithead_hop::identity::GatewayName;
use pithead_hop::ingest::Hop;
use pithead_proto::bundle::v1 as wire;
use pithead_sealing::{DeviceId, Identity, Run, Seq, Site, StreamName};
use pithead_spool::{Lane, Position};
use proptest::prelude::*;
use prost::Message as _;
use sha2::{Digest as _, Sha256};

/// 2026-11-27 05:00 UTC.
const BEGIN_US: u64 = 1_795_755_600_000_000;

fn origin() -> Origin {
    Origin {
        site: Site::new("pit-7").unwrap(),
        gateway: GatewayName::new("edge-1").unwrap(),
        spool: SpoolId::new(*b"0123456789abcdef"),
        lane: Lane::Second,
    }
}

fn hop(received_us: u64) -> Hop {
    let certificate_sha256 = vec![7; 32].into();
    Hop { gateway: "edge-1".into(), received_us, assurance: 2, certificate_sha256, ..Hop::default() }
}

fn large(seq: u64) -> Large {
    let identity = Identity {
        site: Site::new("pit-7").unwrap(),
        device: DeviceId::new("truck-42").unwrap(),
        stream: StreamName::new("lidar").unwrap(),
        run: Run::new(0x3_0000_0001).unwrap(),
        seq: Seq::new(seq).unwrap(),
    };
    let header_sha256 = [0xab; 32];
    Large { name: LargeName::new(identity, &header_sha256), total: 5 << 30, header_sha256 }
}

/// Every field has a value somewhere: two senders, a chained gateway, a gap, a clock that was set back, a conflict, a large one.
fn example() -> Packed {
    let mut packer = Packer::new(origin(), 1 << 20);
    let here = |text: &'static str| Content::Here(Bytes::from_static(text.as_bytes()));
    let earlier = Hop { gateway: "pit-edge".into(), received_us: BEGIN_US - 9, ..Hop::default() };
    let mut push = |position, hops: &[Hop], content| packer.push(Position(position), hops, content).unwrap();
    push(258, &[hop(BEGIN_US)], here("the first"));
    push(259, &[earlier, hop(BEGIN_US + 5)], here("the second, by way of another gateway"));
    push(263, &[Hop { conflict: true, ..hop(BEGIN_US - 1_000_000) }], here("a conflict"));
    push(264, &[Hop { key_not_active: true, ..hop(BEGIN_US + 7) }], Content::Large(large(9)));
    push(265, &[hop(BEGIN_US + 8)], here("the last"));
    packer.finish().unwrap()
}

const COMMITTED: &[u8] = include_bytes!("data/v1.bundle");
const COMMITTED_NAME: &str =
    "bundles/pit-7/2026/11/27/05/edge-1-30313233343536373839616263646566-1-0000000000000102.bundle";

#[test]
fn the_bytes_of_a_bundle_are_fixed() {
    let packed = example();
    assert_eq!(packed.name.to_string(), COMMITTED_NAME);
    assert!(packed.to_bytes() == COMMITTED, "{:02x?}", &packed.to_bytes()[..]);
    assert_eq!((packed.total_bytes(), packed.last), (COMMITTED.len() as u64, Position(265)));
}

#[test]
fn the_committed_bundle_is_read() {
    let bundle = Bundle::read(Bytes::from_static(COMMITTED)).unwrap();
    let index = bundle.index();
    assert_eq!(index.is_of(&BundleName::parse(COMMITTED_NAME).unwrap()), Ok(()));
    let found: Vec<_> = bundle
        .parts()
        .map(|(entry, part)| {
            let what = match part {
                Part::Envelope(envelope) => String::from_utf8(envelope.to_vec()).unwrap(),
                Part::Large(of) => format!("{} {}", of.name, of.total),
                Part::Damaged(_) => "damaged".to_owned(),
            };
            (entry.position.0, entry.received_us.wrapping_sub(BEGIN_US).cast_signed(), entry.conflict, what)
        })
        .collect();
    let far = "large/pit-7/truck-42/lidar/0000000300000001/00000000000000000009-abababababababab.envelope 5368709120";
    let expected = [
        (258, 0, false, "the first"),
        (259, 5, false, "the second, by way of another gateway"),
        (263, -1_000_000, true, "a conflict"),
        (264, 7, false, far),
        (265, 8, false, "the last"),
    ];
    assert_eq!(
        found,
        expected.map(|(position, us, conflict, what)| (position, us, conflict, what.to_owned()))
    );
    assert_eq!(index.entries[0].hops(), [hop(BEGIN_US)]);
    assert_eq!(index.entries[1].hops()[0].received_us, BEGIN_US - 9);
    assert_eq!(index.entries[2].hops(), [Hop { conflict: true, ..hop(BEGIN_US - 1_000_000) }]);
    assert!(index.entries[3].hops()[0].key_not_active);
}

#[test]
fn the_front_alone_says_what_a_bundle_holds() {
    let front = Index::front_bytes(&COMMITTED[..FRONT_MIN]).unwrap() as usize;
    let index = Index::read(&COMMITTED[..front]).unwrap();
    assert_eq!(index.total_bytes(), COMMITTED.len() as u64);
    assert_eq!(&index, Bundle::read(Bytes::from_static(COMMITTED)).unwrap().index());
    assert!(matches!(Index::read(&COMMITTED[..front - 1]), Err(BundleError::Length { .. })));
}

#[test]
fn another_name_than_its_own_is_refused() {
    let index = Index::read(COMMITTED).unwrap();
    for (from, to) in [
        ("pit-7", "pit-8"),
        ("/05/", "/06/"),
        ("edge-1", "edge-2"),
        ("3031", "3032"),
        ("-1-0", "-2-0"),
        ("0102", "0103"),
    ] {
        let name = BundleName::parse(&COMMITTED_NAME.replacen(from, to, 1)).unwrap();
        assert_eq!(index.is_of(&name), Err(BundleError::Name), "{name}");
    }
}

#[test]
fn no_byte_of_the_front_and_no_length_can_be_another() {
    let front = Index::front_bytes(COMMITTED).unwrap() as usize;
    for at in 0..front {
        let mut other = COMMITTED.to_vec();
        other[at] ^= 1;
        assert!(Bundle::read(other.into()).is_err(), "byte {at}");
    }
    for length in 0..COMMITTED.len() {
        assert!(Bundle::read(Bytes::from_static(&COMMITTED[..length])).is_err(), "cut to {length}");
    }
    let more = Bytes::from([COMMITTED, b"x"].concat());
    assert!(matches!(Bundle::read(more), Err(BundleError::Length { .. })));
}

#[test]
fn a_damaged_envelope_is_found_and_hides_no_other() {
    let front = Index::front_bytes(COMMITTED).unwrap() as usize;
    for at in front..COMMITTED.len() {
        let mut other = COMMITTED.to_vec();
        other[at] ^= 0x80;
        let bundle = Bundle::read(other.into()).unwrap();
        let damaged = bundle.parts().filter(|(_, part)| matches!(part, Part::Damaged(_))).count();
        assert_eq!((damaged, bundle.parts().count()), (1, 5), "byte {at}");
    }
}

/// A bundle of this index, well summed, with the envelopes of the committed one behind it.
fn with_index(change: impl FnOnce(&mut wire::BundleIndex)) -> Result<Bundle, BundleError> {
    let front = Index::front_bytes(COMMITTED).unwrap() as usize;
    let mut index = wire::BundleIndex::decode(&COMMITTED[FRONT_MIN..front - 32]).unwrap();
    change(&mut index);
    Bundle::read(summed(&index.encode_to_vec(), &COMMITTED[front..]).into())
}

fn summed(index: &[u8], envelopes: &[u8]) -> Vec<u8> {
    let mut bytes = b"PHBUNDL1".to_vec();
    bytes.extend((index.len() as u32).to_le_bytes());
    bytes.extend(index);
    let sum = Sha256::digest(&bytes);
    bytes.extend(sum);
    bytes.extend(envelopes);
    bytes
}

#[test]
fn an_index_that_no_packer_writes_is_refused_for_what_is_wrong_with_it() {
    assert!(with_index(|_| {}).is_ok());
    type Change = fn(&mut wire::BundleIndex);
    let cases: [(&str, Change); 24] = [
        ("version 2", |index| index.version = 2),
        ("the site is none", |index| index.site = "Pit".into()),
        ("the gateway is none", |index| index.gateway = "a/b".into()),
        ("the spool's name", |index| index.spool = vec![0; 15].into()),
        ("no such lane", |index| index.lane = 3),
        ("1 to 65,536 entries", |index| index.entries.clear()),
        ("a place that is none", |index| index.entries[0].position_delta = 1),
        ("a place that is none", |index| index.entries[4].position_delta = u64::MAX),
        ("a place that is none", |index| index.first_position = u64::MAX - 1),
        ("bytes and its index says", |index| index.entries[0].length += 1),
        ("1 byte to 4 MiB", |index| index.entries[0].length = 0),
        ("1 byte to 4 MiB", |index| index.entries[0].length = (4 << 20) + 1),
        ("out of turn", |index| index.entries[0].custody = 1),
        ("out of turn", |index| index.entries[4].custody = 9),
        ("that no entry names", |index| index.custodies.push(wire::Custody { hops: vec![hop(0), hop(0)] })),
        ("there twice", |index| index.custodies[2] = index.custodies[0].clone()),
        ("1 to 8 hops", |index| index.custodies[0].hops.clear()),
        ("1 to 8 hops", |index| index.custodies[0].hops = vec![hop(0); 9]),
        ("what each entry says", |index| index.custodies[0].hops[0].received_us = 1),
        ("name of no gateway", |index| index.custodies[0].hops[0].gateway = "..".into()),
        ("here and in an object", |index| index.entries[0].large = index.entries[3].large.clone()),
        ("a name that is none", |index| index.entries[3].large.as_mut().unwrap().key = "../etc".into()),
        ("that of its header", |index| {
            index.entries[3].large.as_mut().unwrap().header_sha256 = vec![0; 32].into();
        }),
        ("1 byte to 1 TiB", |index| index.entries[3].large.as_mut().unwrap().total = (1 << 40) + 1),
    ];
    for (why, change) in cases {
        let said = with_index(change).unwrap_err().to_string();
        assert!(said.contains(why), "{said}; expected: {why}");
    }
    let foreign = |index: &mut wire::BundleIndex| {
        let large = index.entries[3].large.as_mut().unwrap();
        large.key = large.key.replace("pit-7", "pit-8");
    };
    assert!(with_index(foreign).unwrap_err().to_string().contains("of another site"));
}

#[test]
fn what_a_reader_does_not_know_is_not_passed_over() {
    let front = Index::front_bytes(COMMITTED).unwrap() as usize;
    let (index, envelopes) = (&COMMITTED[FRONT_MIN..front - 32], &COMMITTED[front..]);
    // Field 15, a number; and a field at its default, spelled out.
    for more in [&[0x78, 1][..], &[0x28, 0]] {
        let other = summed(&[index, more].concat(), envelopes);
        let said = Bundle::read(other.into()).unwrap_err().to_string();
        assert!(said.contains("does not know") || said.contains("otherwise"), "{said}");
    }
}

#[test]
fn an_index_of_nothing_but_entries_makes_no_table() {
    // Two bytes each: four million of them would be half a gigabyte.
    let index = [0x42, 0].repeat(1 << 20);
    let said = Bundle::read(summed(&index, &[]).into()).unwrap_err().to_string();
    assert!(said.contains("65,536"), "{said}");
    let hops = [0x0a, 0].repeat(100_000);
    let index =
        wire::BundleIndex { custodies: vec![wire::Custody::decode(&*hops).unwrap()], ..Default::default() };
    let said = Bundle::read(summed(&index.encode_to_vec(), &[]).into()).unwrap_err().to_string();
    assert!(said.contains("1 to 8 hops"), "{said}");
    let long = [b"PHBUNDL1".as_slice(), &[0xff; 4]].concat();
    assert!(matches!(Bundle::read(long.into()), Err(BundleError::TooLarge { what: "index", .. })));
}

#[test]
fn a_packer_stops_at_its_size_and_takes_one_that_is_larger_alone() {
    let mut packer = Packer::new(origin(), 1_000);
    let of = |bytes| Content::Here(vec![1; bytes].into());
    assert_eq!(packer.push(Position(0), &[hop(1)], of(999)), Ok(()));
    assert!(!packer.is_full());
    assert_eq!(packer.push(Position(1), &[hop(1)], of(2)), Err(PackError::Full));
    assert_eq!(packer.push(Position(1), &[hop(1)], of(1)), Ok(()));
    assert!(packer.is_full());
    let mut packer = Packer::new(origin(), 1_000);
    assert_eq!(packer.push(Position(0), &[hop(1)], of(ENVELOPE_MAX as usize)), Ok(()));
    assert_eq!(packer.push(Position(1), &[hop(1)], of(1)), Err(PackError::Full));
    let bundle = Bundle::read(packer.finish().unwrap().to_bytes()).unwrap();
    assert_eq!(bundle.index().entries.len(), 1);
}

#[test]
fn a_packer_takes_nothing_that_a_reader_refuses() {
    let mut packer = Packer::new(origin(), 1 << 30);
    let of = |bytes| Content::Here(vec![1; bytes].into());
    assert_eq!(packer.push(Position(5), &[], of(1)), Err(PackError::Custody("custody has 1 to 8 hops")));
    let nobody = Hop::default();
    assert!(matches!(packer.push(Position(5), &[nobody], of(1)), Err(PackError::Custody(_))));
    assert_eq!(packer.push(Position(5), &[hop(1)], of(0)), Err(PackError::Size));
    assert_eq!(packer.push(Position(5), &[hop(1)], of(ENVELOPE_MAX as usize + 1)), Err(PackError::Size));
    let foreign = Large { header_sha256: [1; 32], ..large(1) };
    assert_eq!(packer.push(Position(5), &[hop(1)], Content::Large(foreign)), Err(PackError::Name));
    assert!(packer.is_empty() && packer.finish().is_none());
    let mut packer = Packer::new(origin(), 1 << 30);
    packer.push(Position(5), &[hop(1)], of(1)).unwrap();
    assert_eq!(packer.push(Position(5), &[hop(1)], of(1)), Err(PackError::Order));
    assert_eq!(packer.push(Position(4), &[hop(1)], of(1)), Err(PackError::Order));
}

#[test]
fn the_largest_bundles_are_read_as_well() {
    // As many as can be; as much custody as can be; as many bytes as can be.
    let filled = |hops: fn(u64) -> Vec<Hop>, envelope: Bytes| {
        let mut packer = Packer::new(origin(), u64::MAX);
        let full = (0..).find_map(|position| {
            packer.push(Position(position), &hops(position), Content::Here(envelope.clone())).err()
        });
        assert_eq!(full, Some(PackError::Full));
        packer
    };
    let small = Bytes::from_static(b"x");
    let many = filled(|position| vec![hop(position)], small.clone());
    assert_eq!(many.len(), ENTRIES_MAX);
    let custody = filled(|position| (0..8).map(|nth| hop(position * 8 + nth)).collect(), small);
    let bytes = filled(|position| vec![hop(position)], vec![3; ENVELOPE_MAX as usize].into());
    assert_eq!(bytes.len(), 14);
    for packer in [many, custody, bytes] {
        let (entries, packed) = (packer.len(), packer.finish().unwrap());
        let bundle = Bundle::read(packed.to_bytes()).unwrap();
        assert_eq!((bundle.index().entries.len(), bundle.index().name()), (entries, packed.name));
    }
}

#[derive(Debug, Clone)]
struct Spooled {
    skip: u64,
    received_us: u64,
    sender: u8,
    conflict: bool,
    envelope: Option<Vec<u8>>,
}

fn spooled() -> impl Strategy<Value = Spooled> {
    let moment = prop_oneof![3 => 0..10_000_u64, 1 => any::<u64>()];
    let skip = prop_oneof![3 => Just(0_u64), 1 => 0..5_u64, 1 => any::<u32>().prop_map(u64::from)];
    let envelope = proptest::option::weighted(0.8, proptest::collection::vec(any::<u8>(), 1..80));
    (skip, moment, 0..4_u8, any::<bool>(), envelope).prop_map(
        |(skip, received_us, sender, conflict, envelope)| Spooled {
            skip,
            received_us,
            sender,
            conflict,
            envelope,
        },
    )
}

proptest! {
    #[test]
    fn what_is_packed_is_read(records in proptest::collection::vec(spooled(), 1..60), first in 0..1_u64 << 40) {
        let mut packer = Packer::new(origin(), 1 << 20);
        let mut position = first;
        let mut expected = Vec::new();
        for (number, record) in records.iter().enumerate() {
            position += record.skip + u64::from(number > 0);
            let certificate_sha256 = vec![record.sender; 32].into();
            let own = Hop { certificate_sha256, conflict: record.conflict, ..hop(record.received_us) };
            let content = match &record.envelope {
                Some(envelope) => Content::Here(envelope.clone().into()),
                None => Content::Large(large(number as u64 + 1)),
            };
            packer.push(Position(position), std::slice::from_ref(&own), content).unwrap();
            expected.push((position, own, record.envelope.clone()));
        }
        let packed = packer.finish().unwrap();
        let bundle = Bundle::read(packed.to_bytes()).unwrap();
        prop_assert_eq!(bundle.index().is_of(&packed.name), Ok(()));
        prop_assert_eq!(BundleName::parse(&packed.name.to_string()), Ok(packed.name));
        let read = bundle.parts().map(|(entry, part)| {
            let envelope = match part {
                Part::Envelope(envelope) => Some(envelope.to_vec()),
                Part::Damaged(_) => panic!("damaged"),
                Part::Large(_) => None,
            };
            (entry.position.0, entry.hops().remove(0), envelope)
        });
        prop_assert_eq!(read.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_changed_index_is_refused_or_read_and_never_panics(
        at in 0..1_000_usize, to in any::<u8>(), cut in 0..1_000_usize, more in proptest::collection::vec(any::<u8>(), 0..20),
    ) {
        let front = Index::front_bytes(COMMITTED).unwrap() as usize;
        let mut index = COMMITTED[FRONT_MIN..front - 32].to_vec();
        let length = index.len();
        index[at % length] = to;
        let keep = if cut % 3 == 0 { cut % length } else { length };
        index.splice(keep.., more.iter().copied().take(cut % 20));
        if let Ok(bundle) = Bundle::read(summed(&index, &COMMITTED[front..]).into()) {
            prop_assert!(bundle.parts().count() > 0);
        }
    }
}

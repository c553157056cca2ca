//! The stored record: committed bytes, identity, and no damage that goes unnoticed.

use pithead_sealing::trust::KeyStatus::{Active, Next};
use pithead_sealing::trust::{Device, MAX_STATE, Status, TrustError, UnixTime};

use crate::world::*;

/// A device with everything in its record: a second root, a statement, a key that waits.
fn with_everything() -> Device {
    let world = World::new();
    let (mut device, first) = world.enrolled();
    offer_root(&mut device, world.sign_root(&world.after_root(&world.root())), up(600)).unwrap();
    let announced = world.after(&first, vec![key(0, Active), key(1, Next)]);
    offer(&mut device, world.sign(&announced), up(1200)).unwrap();
    device
}

#[test]
fn the_committed_record_is_read_and_written_to_the_byte() {
    let committed = hex::decode(include_str!("../vectors/trust-state-v1.hex").trim()).unwrap();
    let device = with_everything();
    assert_eq!(hex::encode(device.encode(up(1800))), hex::encode(&committed));
    let restored = Device::restore(&committed).unwrap();
    assert_eq!(restored.encode(up(0)), committed);
    assert_eq!((restored.root_version(), restored.version()), (2, (1, 2)));
    assert_eq!(restored.operated_s(up(5)), 1805);
    assert_eq!(restored.now_lower_bound(up(0)), UnixTime(T0 + DAY + 1200));
    assert_eq!(sealing_to(&restored, up(0)), Ok(0));
    assert!(committed.len() < 3072, "{} bytes", committed.len());
}

#[test]
fn a_device_is_the_same_after_a_restart_in_every_state_of_its_life() {
    let world = World::new();
    let (enrolled, _) = world.enrolled();
    let mut raised = enrolled.clone();
    offer_root(&mut raised, world.sign_root(&world.raised_epoch(&world.root())), up(0)).unwrap();
    for device in [world.device(), enrolled, raised, with_everything()] {
        let restored = Device::restore(&device.encode(up(5000))).unwrap();
        assert_eq!(restored.encode(up(0)), device.encode(up(5000)));
        assert_eq!(restored.status(up(0)), device.status(up(5000)));
        assert_eq!(restored.now_lower_bound(up(7)), device.now_lower_bound(up(5007)));
        assert_eq!(restored.needs_cosignature(), device.needs_cosignature());
    }
}

#[test]
fn every_single_bit_of_a_record_matters() {
    let record = with_everything().encode(up(1800));
    for bit in 0..record.len() * 8 {
        let mut flipped = record.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(Device::restore(&flipped).unwrap_err(), TrustError::State, "bit {bit}");
    }
}

#[test]
fn a_cut_lengthened_empty_or_oversized_record_is_refused() {
    let record = with_everything().encode(up(1800));
    for len in 0..record.len() {
        assert_eq!(Device::restore(&record[..len]).unwrap_err(), TrustError::State);
    }
    assert!(Device::restore(&[&record[..], &[0]].concat()).is_err());
    assert!(Device::restore(&vec![0; MAX_STATE + 1]).is_err());
}

#[test]
fn a_record_that_contradicts_itself_is_refused_though_its_digest_is_right() {
    use crate::world::raw::{bstr, head};
    let record = with_everything().encode(up(1800));
    let body_at = 5;
    let body = &record[body_at..record.len() - 34];
    let sealed = |body: &[u8]| {
        let digest = pithead_sealing::trust::Sha256Digest::of(body);
        [head(4, 3), head(0, 1), bstr(body), bstr(digest.as_bytes())].concat()
    };
    assert_eq!(sealed(body), record, "the record is taken apart as it is put together");
    let replaced = |from: &[u8], to: &[u8]| {
        let at = body.windows(from.len()).position(|w| w == from).unwrap();
        sealed(&[&body[..at], to, &body[at + from.len()..]].concat())
    };
    let in_use = |n: u8, since: u64, flag: u64| {
        [bstr(fingerprint(n).as_bytes()), head(0, since), head(0, flag)].concat()
    };
    let floor = |operated: u64| [head(0, T0 + DAY), head(0, operated)].concat();
    let wrong = [
        ("the root's floor lies in the future", replaced(&floor(600), &floor(1801))),
        ("the statement's floor lies in the future", replaced(&floor(1200), &floor(1801))),
        ("another site", replaced(b"\x02\x69pilbara-3", b"\x02\x69pilbara-4")),
        ("another authority", replaced(b"\x70acme-mining/prod", b"\x70acme-mining/test")),
        ("operated less than the floor", replaced(&head(0, 1800), &head(0, 1100))),
        ("a key that waits is in use", replaced(&in_use(1, 1200, 0), &in_use(1, 1200, 1))),
        ("the key in use is not", replaced(&in_use(0, 0, 1), &in_use(0, 0, 0))),
        ("listed in the future", replaced(&in_use(1, 1200, 0), &in_use(1, 1801, 0))),
        ("a flag that is no flag", replaced(&in_use(0, 0, 1), &in_use(0, 0, 2))),
        ("a key that is not listed", replaced(&in_use(1, 1200, 0), &in_use(2, 1200, 0))),
        ("another SPKI", replaced(&data_spki(0, 3072), &data_spki(1, 3072))),
        ("co-signature needed with a statement", replaced(&[6, 0, 7], &[6, 1, 7])),
    ];
    for (what, record) in wrong {
        assert_eq!(Device::restore(&record).unwrap_err(), TrustError::State, "{what}");
    }
}

#[test]
fn a_record_of_a_newer_format_is_refused() {
    let mut record = with_everything().encode(up(0));
    assert_eq!(record[1], 1);
    record[1] = 2;
    assert_eq!(Device::restore(&record).unwrap_err(), TrustError::State);
}

#[test]
fn operating_time_is_carried_in_the_record() {
    let world = World::new();
    let (device, _) = world.enrolled();
    let mut record = device.encode(up(0));
    for _ in 0..5 {
        record = Device::restore(&record).unwrap().encode(up(100 * DAY));
    }
    assert_eq!(Device::restore(&record).unwrap().status(up(0)), Status::Expired);
    assert_eq!(Device::restore(&record).unwrap().now(up(0)), UnixTime(T0 + 500 * DAY));
}

#[test]
fn the_record_keeps_the_signed_objects_as_they_came() {
    let world = World::new();
    let (device, first) = world.enrolled();
    let restored = Device::restore(&device.encode(up(0))).unwrap();
    assert_eq!(restored.root().object(), &world.sign_root(&world.root()));
    assert_eq!(restored.statement().unwrap().object(), &world.sign(&first));
}

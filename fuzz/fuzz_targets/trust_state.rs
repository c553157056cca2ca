//! A stored record is restored to the byte or refused; the digest is put right so that the body is reached.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pithead_sealing::trust::{Clock, Device, Sha256Digest};

fn restore(record: &[u8]) {
    if let Ok(device) = Device::restore(record) {
        assert_eq!(device.encode(Clock::default()), record);
        let _ = device.status(Clock::uptime(u64::MAX));
        let _ = device.verified_key(Clock::default());
    }
}

fuzz_target!(|data: &[u8]| {
    restore(data);
    // [1, body, digest] with a two-byte length, around the same body.
    if let Ok(len) = u16::try_from(data.len())
        && len > 0xff
    {
        let mut record = vec![0x83, 0x01, 0x59];
        record.extend(len.to_be_bytes());
        record.extend(data);
        record.extend([0x58, 0x20]);
        record.extend(Sha256Digest::of(data).as_bytes());
        restore(&record);
    }
});

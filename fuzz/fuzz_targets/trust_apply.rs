//! A device in use is offered statements and roots with correct signatures over arbitrary payloads, at arbitrary times.
//! It never panics, never goes back within an epoch, and a refusal leaves no trace.
#![no_main]

use std::sync::LazyLock;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use pithead_sealing::trust::{Bundle, Clock, Device, UnixTime};

#[path = "../../sealing/tests/trust/world.rs"]
mod world;

use world::{World, raw};

static START: LazyLock<(World, Device)> = LazyLock::new(|| {
    let world = World::new();
    let (device, _) = world.enrolled();
    (world, device)
});

/// Four bytes change a payload that would be accepted: where, how, and to what.
fn changed(mut payload: Vec<u8>, edits: &[u8]) -> Vec<u8> {
    for edit in edits.chunks_exact(4) {
        let at = usize::from(u16::from_be_bytes([edit[0], edit[1]])) % payload.len();
        match edit[2] % 4 {
            0 => payload[at] = edit[3],
            1 => payload.insert(at, edit[3]),
            2 if payload.len() > 1 => drop(payload.remove(at)),
            _ => payload[at] ^= 1 << (edit[3] % 8),
        }
    }
    payload
}

fuzz_target!(|data: &[u8]| {
    let (world, start) = &*START;
    let mut device = start.clone();
    let mut clock = Clock::default();
    let mut statement = world.statement();
    let mut root = world.root();
    for op in data.split(|byte| *byte == 0xff).take(16) {
        let Some((&kind, edits)) = op.split_first() else { continue };
        let mut bundle = Bundle { spkis: world::spkis(), ..Bundle::default() };
        if kind & 1 == 0 {
            let next = world.after(&statement, statement.keys.clone());
            let payload = changed(next.encode(), edits);
            let keys = [&world.signer, &world.holders[0], &world.holders[1]];
            let keys = if kind & 2 == 0 { &keys[..1] } else { &keys[..] };
            bundle.statement = Some(raw::signed(raw::STATEMENT, &payload, keys));
        } else {
            let next = if kind & 2 == 0 { world.after_root(&root) } else { world.raised_epoch(&root) };
            let payload = changed(next.encode(), edits);
            bundle.roots = vec![raw::signed(raw::ROOT, &payload, &[&world.holders[0], &world.holders[1]])];
        }
        clock.uptime_s += u64::from(kind >> 4) * world::DAY;
        clock.trusted_now = (kind & 4 != 0).then_some(UnixTime(world::T0 + u64::from(kind) * world::DAY));
        let before = (device.encode(clock), device.version(), device.root_version());
        match device.apply(&bundle, clock) {
            Ok(applied) => {
                assert_eq!(device.root_version(), before.2 + applied.roots as u64);
                assert!(device.version() >= before.1 || device.version().0 == before.1.0 + 1);
            }
            Err(_) => assert_eq!(device.encode(clock), before.0),
        }
        if let Some(stored) = device.statement() {
            statement = stored.fields().clone();
        }
        root = device.root().fields().clone();
        let record = device.encode(clock);
        device = Device::restore(&record).expect("what was stored is restored");
        clock.uptime_s = 0;
        if let Ok(key) = device.verified_key(clock) {
            assert!(!device.root().denies(key.fingerprint()));
            assert!(world::spkis().contains(&Bytes::copy_from_slice(key.spki_der())));
        }
    }
});

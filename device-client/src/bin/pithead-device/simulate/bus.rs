//! What a haul truck's bus says: J1939 frames at the rates at which engines, gearboxes and brakes broadcast them.
//!
//! ```text
//! frame:  | identifier u32 BE: priority 3 bits, parameter group, source address 8 bits | 8 data bytes |
//! record: name "j1939/F004", after the first frame's group; payload:
//!         | count of the vehicle's records u64 BE, from 1 | frames, as many as fit | FF ... |        FF: not available
//! ```
//!
//! Values are coded as SAE J1939-71 codes them and move as they do on a shift (haul, dump, return), so that what compression
//! makes of them means something.

use std::{cmp::Reverse, collections::BinaryHeap, f64::consts::TAU};

use super::random::Random;

/// A parameter group: its number, its priority, who says it, and how often in milliseconds.
struct Group {
    pgn: u32,
    priority: u32,
    source: u32,
    every_ms: u64,
}

const fn group(pgn: u32, priority: u32, source: u32, every_ms: u64) -> Group {
    Group { pgn, priority, source, every_ms }
}

const ENGINE: u32 = 0x00;
const GEARBOX: u32 = 0x03;
const BRAKES: u32 = 0x0B;
const TYRES: u32 = 0x33;

/// The mix: three quarters of the frames are the engine's and the gearbox's fast ones.
const GROUPS: [Group; 13] = [
    group(0xF004, 3, ENGINE, 20),    // EEC1: torque, engine speed
    group(0xF002, 3, GEARBOX, 20),   // ETC1: shaft speed, clutch slip
    group(0xF003, 3, ENGINE, 50),    // EEC2: pedal, load
    group(0xF001, 6, BRAKES, 100),   // EBC1: brakes
    group(0xFEF1, 6, ENGINE, 100),   // CCVS1: speed
    group(0xFEF2, 6, ENGINE, 100),   // LFE1: fuel rate
    group(0xF005, 6, GEARBOX, 100),  // ETC2: gear
    group(0xFEEF, 6, ENGINE, 500),   // EFL/P1: oil pressure, coolant level
    group(0xFEF6, 6, ENGINE, 500),   // IC1: boost, intake temperature
    group(0xFEEE, 6, ENGINE, 1_000), // ET1: coolant temperature
    group(0xFEF7, 6, ENGINE, 1_000), // VEP1: voltage
    group(0xFECA, 6, ENGINE, 1_000), // DM1: no fault
    group(0xFEF4, 6, TYRES, 10_000), // TIRE: pressures
];

const FRAME_BYTES: usize = 12;
const COUNT_BYTES: usize = 8;
/// `j1939/` and four digits.
const NAME_BYTES: usize = 10;
/// A record is at least its name and its count.
pub(super) const RECORD_BYTES_MIN: u64 = (NAME_BYTES + COUNT_BYTES) as u64;
/// A round: haul, dump, return.
const ROUND_S: f64 = 1_200.0;

/// The bus of one truck.
#[derive(Debug)]
pub(super) struct Bus {
    random: Random,
    /// When each group is due, in milliseconds since the shift began.
    due: BinaryHeap<Reverse<(u64, usize)>>,
    records: u64,
}

impl Bus {
    pub(super) fn new(mut random: Random) -> Self {
        // Each truck is somewhere else on its round.
        let begun_ms = random.below((ROUND_S * 1e3) as u64);
        let due = GROUPS.iter().enumerate();
        let due = due.map(|(index, group)| Reverse((begun_ms + random.below(group.every_ms), index)));
        Self { due: due.collect(), random, records: 0 }
    }

    /// The next record, of `bytes` with its name. Writes the payload into `payload` and gives the name.
    pub(super) fn record(&mut self, bytes: usize, payload: &mut Vec<u8>) -> String {
        self.records += 1;
        payload.clear();
        payload.extend_from_slice(&self.records.to_be_bytes());
        let length = bytes.saturating_sub(NAME_BYTES).max(COUNT_BYTES);
        let mut name = None;
        while length - payload.len() >= FRAME_BYTES {
            let (pgn, frame) = self.frame();
            name.get_or_insert(pgn);
            payload.extend_from_slice(&frame);
        }
        payload.resize(length, 0xFF);
        format!("j1939/{:04X}", name.unwrap_or(GROUPS[0].pgn))
    }

    fn frame(&mut self) -> (u32, [u8; FRAME_BYTES]) {
        let Some(Reverse((at_ms, index))) = self.due.pop() else { unreachable!("every group is due again") };
        let group = &GROUPS[index];
        self.due.push(Reverse((at_ms + group.every_ms, index)));
        let mut frame = [0xFF; FRAME_BYTES];
        frame[..4].copy_from_slice(&(group.priority << 26 | group.pgn << 8 | group.source).to_be_bytes());
        frame[4..].copy_from_slice(&self.data(group.pgn, at_ms as f64 / 1e3));
        (group.pgn, frame)
    }

    fn data(&mut self, pgn: u32, seconds: f64) -> [u8; 8] {
        let phase = (seconds % ROUND_S) / ROUND_S;
        let loaded = phase < 0.55;
        let demand = 0.5 - 0.5 * (phase * TAU * 2.0).cos();
        let noise = self.random.around();
        let rpm = 750.0 + 1_050.0 * demand + 12.0 * noise;
        let speed_kmh = ((if loaded { 22.0 } else { 45.0 }) * demand + 0.3 * noise).max(0.0);
        let torque = if loaded { 30.0 + 65.0 * demand } else { 10.0 + 35.0 * demand };
        let none = 0xFF;
        let [rpm_low, rpm_high] = word(rpm, 0.0, 0.125);
        match pgn {
            0xF004 => [
                0xF1,
                byte(torque, -125.0, 1.0),
                byte(torque + noise, -125.0, 1.0),
                rpm_low,
                rpm_high,
                0x00,
                none,
                none,
            ],
            0xF002 => [0xC0, rpm_low, rpm_high, byte(4.0 * demand, 0.0, 0.4), none, rpm_low, rpm_high, none],
            0xF003 => {
                [0xFC, byte(100.0 * demand, 0.0, 0.4), byte(torque, 0.0, 1.0), none, none, none, none, none]
            }
            0xF001 => [
                0xCF,
                byte(if demand < 0.1 { 30.0 } else { 0.0 }, 0.0, 0.4),
                0xF0,
                none,
                none,
                none,
                none,
                none,
            ],
            0xFEF1 => {
                let [low, high] = word(speed_kmh, 0.0, 1.0 / 256.0);
                [0xF7, low, high, 0xC0, none, none, none, none]
            }
            0xFEF2 => {
                let [low, high] = word(8.0 + 3.4 * torque, 0.0, 0.05);
                [low, high, none, none, none, none, byte(100.0 * demand, 0.0, 0.4), none]
            }
            0xF005 => {
                let gear = byte(1.0 + 5.0 * demand, -125.0, 1.0);
                [gear, none, none, gear, 0x20, 0x44, none, none]
            }
            0xFEEF => [
                none,
                none,
                byte(95.0, 0.0, 0.4),
                byte(200.0 + 200.0 * demand, 0.0, 4.0),
                none,
                none,
                none,
                byte(98.0, 0.0, 0.4),
            ],
            0xFEF6 => [
                none,
                byte(40.0 + 140.0 * demand, 0.0, 2.0),
                byte(38.0 + 9.0 * demand, -40.0, 1.0),
                none,
                none,
                none,
                none,
                none,
            ],
            0xFEEE => {
                let [low, high] = word(88.0 + 9.0 * demand, -273.0, 0.03125);
                [
                    byte(82.0 + 9.0 * demand, -40.0, 1.0),
                    byte(38.0, -40.0, 1.0),
                    low,
                    high,
                    none,
                    none,
                    none,
                    none,
                ]
            }
            0xFEF7 => {
                let [low, high] = word(27.4 + 0.2 * noise, 0.0, 0.05);
                [none, none, none, none, low, high, low, high]
            }
            0xFECA => [0x00, none, 0, 0, 0, 0, none, none],
            _ => [
                byte(f64::from(self.random.below(6) as u32), 0.0, 1.0),
                byte(700.0 + 8.0 * noise, 0.0, 4.0),
                none,
                none,
                none,
                none,
                none,
                none,
            ],
        }
    }
}

/// A physical value as J1939 codes it: offset and resolution, clamped to what a byte says.
fn byte(value: f64, offset: f64, resolution: f64) -> u8 {
    ((value - offset) / resolution).round().clamp(0.0, 250.0) as u8
}

/// The same for two bytes, the low one first.
fn word(value: f64, offset: f64, resolution: f64) -> [u8; 2] {
    (((value - offset) / resolution).round().clamp(0.0, 64_255.0) as u16).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_as_long_as_it_is_asked_for_and_counts_on() {
        let mut bus = Bus::new(Random::of(1, 2));
        let mut payload = Vec::new();
        for (count, bytes) in (1_u64..).zip([100, 100, 18, 19, 30, 31, 4_096]) {
            let name = bus.record(bytes, &mut payload);
            assert_eq!(name.len() + payload.len(), bytes, "{name}");
            assert_eq!(payload[..8], count.to_be_bytes());
            let frames = (bytes - 18) / FRAME_BYTES;
            let rest = &payload[8 + frames * FRAME_BYTES..];
            assert!(rest.iter().all(|byte| *byte == 0xFF), "{rest:?}");
            for frame in payload[8..].chunks_exact(FRAME_BYTES).take(frames) {
                let id = u32::from_be_bytes([frame[0], frame[1], frame[2], frame[3]]);
                assert!(id < 1 << 29 && GROUPS.iter().any(|group| group.pgn == id >> 8 & 0xFFFF), "{id:08X}");
            }
        }
    }

    #[test]
    fn the_fast_groups_are_most_of_the_bus_and_the_slow_ones_are_there() {
        let mut bus = Bus::new(Random::of(3, 4));
        let mut counts = std::collections::BTreeMap::<u32, u32>::new();
        for _ in 0..20_000 {
            *counts.entry(bus.frame().0).or_default() += 1;
        }
        assert_eq!(counts.len(), GROUPS.len());
        let share = |pgn: u32| f64::from(counts[&pgn]) / 20_000.0;
        assert!((0.25..0.35).contains(&share(0xF004)), "{}", share(0xF004));
        assert!((0.05..0.08).contains(&share(0xFEF1)), "{}", share(0xFEF1));
    }
}

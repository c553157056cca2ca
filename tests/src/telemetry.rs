//! What a haul truck says on its bus: J1939 frames, made up or out of a recording.
//!
//! [`Truck`] drives a made-up shift (haul, dump, return) and emits the parameter groups that every engine broadcasts,
//! with values coded as SAE J1939-71 codes them. [`read_candump`] reads a `candump -l` log.

use std::{f64::consts::TAU, io::BufRead};

use anyhow::{Context as _, bail};
use bytes::{BufMut as _, Bytes, BytesMut};

/// One CAN frame with a 29-bit identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Microseconds since 1970.
    pub at_us: i64,
    /// Priority, parameter group and source address.
    pub id: u32,
    /// At most 8 bytes; the rest is zero.
    pub data: [u8; 8],
    /// How many of them count.
    pub len: u8,
}

impl Frame {
    /// Identifier, big-endian, then the data bytes.
    #[must_use]
    pub fn to_bytes(self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(12);
        bytes.put_u32(self.id);
        bytes.put_slice(&self.data[..usize::from(self.len)]);
        bytes.freeze()
    }

    /// The line that `candump -l` writes for it.
    #[must_use]
    pub fn to_candump(self) -> String {
        let (seconds, micros) = (self.at_us.div_euclid(1_000_000), self.at_us.rem_euclid(1_000_000));
        let data = hex::encode_upper(&self.data[..usize::from(self.len)]);
        format!("({seconds}.{micros:06}) can0 {:08X}#{data}", self.id)
    }
}

/// Electronic engine controller 1: torque and engine speed, every 20 ms.
const EEC1: u32 = 0x0CF0_0400;
/// Cruise control and vehicle speed, every 100 ms.
const CCVS: u32 = 0x18FE_F100;
/// Engine temperature 1, every second.
const ET1: u32 = 0x18FE_EE00;
/// Fuel economy, every 100 ms.
const LFE: u32 = 0x18FE_F200;

const TICK_US: i64 = 20_000;
const CYCLE_S: f64 = 1_200.0;

/// A truck on its round. The same number drives the same shift.
#[derive(Clone, Debug)]
pub struct Truck {
    noise: u64,
    tick: i64,
    start_us: i64,
    queued: Vec<Frame>,
}

impl Truck {
    /// Truck number `number`, starting its shift at `start_us`.
    #[must_use]
    pub fn new(number: u64, start_us: i64) -> Self {
        Self { noise: number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1, tick: 0, start_us, queued: Vec::new() }
    }

    /// -1 to 1, by xorshift: even enough for a jitter.
    fn jitter(&mut self) -> f64 {
        self.noise ^= self.noise << 13;
        self.noise ^= self.noise >> 7;
        self.noise ^= self.noise << 17;
        (self.noise >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    }

    fn step(&mut self) {
        let at_us = self.start_us + self.tick * TICK_US;
        let seconds = (self.tick * TICK_US) as f64 / 1e6;
        let phase = (seconds % CYCLE_S) / CYCLE_S;
        let loaded = phase < 0.55;
        let demand = 0.5 - 0.5 * (phase * TAU * 2.0).cos();
        let rpm = 750.0 + 1_050.0 * demand + 15.0 * self.jitter();
        let speed_kmh = (if loaded { 22.0 } else { 45.0 }) * demand + 0.4 * self.jitter();
        let torque = if loaded { 30.0 + 65.0 * demand } else { 10.0 + 35.0 * demand };
        let coolant_c = 82.0 + 9.0 * demand + 0.2 * self.jitter();
        let mut frame = |id, data| self.queued.push(Frame { at_us, id, data, len: 8 });
        if self.tick % 50 == 0 {
            frame(ET1, [coded(coolant_c, -40.0, 1.0) as u8, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]);
        }
        if self.tick % 5 == 0 {
            let [low, high] = coded(speed_kmh, 0.0, 1.0 / 256.0).to_le_bytes();
            frame(CCVS, [0xFF, low, high, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]);
            let [low, high] = coded(8.0 + 3.4 * torque, 0.0, 0.05).to_le_bytes();
            frame(LFE, [low, high, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]);
        }
        let [low, high] = coded(rpm, 0.0, 0.125).to_le_bytes();
        frame(EEC1, [0xF1, coded(torque, -125.0, 1.0) as u8, 0xFF, low, high, 0x00, 0xFF, 0xFF]);
        self.tick += 1;
    }
}

/// A physical value as J1939 codes it: offset and resolution, clamped to what a word can say.
fn coded(value: f64, offset: f64, resolution: f64) -> u16 {
    ((value - offset) / resolution).round().clamp(0.0, 64_255.0) as u16
}

impl Iterator for Truck {
    type Item = Frame;

    fn next(&mut self) -> Option<Frame> {
        if self.queued.is_empty() {
            self.step();
        }
        self.queued.pop()
    }
}

/// Reads a log as `candump -l` writes it: `(1604611942.559073) can1 0CF00400#007D7D000000F07D`.
pub fn read_candump(log: impl BufRead) -> anyhow::Result<Vec<Frame>> {
    let mut frames = Vec::new();
    for (number, line) in log.lines().enumerate() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        frames.push(parse_candump(&line).with_context(|| format!("line {}: {line:?}", number + 1))?);
    }
    Ok(frames)
}

fn parse_candump(line: &str) -> anyhow::Result<Frame> {
    let mut words = line.split_ascii_whitespace();
    let time =
        words.next().and_then(|word| word.strip_prefix('(')?.strip_suffix(')')).context("no (time)")?;
    let (seconds, micros) = time.split_once('.').context("time without microseconds")?;
    if micros.len() != 6 {
        bail!("time with {} decimals, 6 expected", micros.len());
    }
    let _interface = words.next().context("no interface")?;
    let (id, data) = words.next().and_then(|word| word.split_once('#')).context("no ID#DATA")?;
    let bytes = hex::decode(data).context("data")?;
    let mut padded = [0; 8];
    padded.get_mut(..bytes.len()).context("more than 8 data bytes")?.copy_from_slice(&bytes);
    Ok(Frame {
        at_us: seconds.parse::<i64>()? * 1_000_000 + micros.parse::<i64>()?,
        id: u32::from_str_radix(id, 16).context("identifier")?,
        data: padded,
        len: bytes.len() as u8,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_truck_drives_the_same_shift_and_another_one_does_not() {
        let frames = |number| Truck::new(number, 0).take(5_000).collect::<Vec<_>>();
        assert_eq!(frames(1), frames(1));
        assert_ne!(frames(1), frames(2));
    }

    #[test]
    fn what_a_truck_says_reads_back_from_a_log() {
        let frames: Vec<_> = Truck::new(3, 1_700_000_000_000_001).take(200).collect();
        let log: Vec<_> = frames.iter().map(|frame| frame.to_candump()).collect();
        assert_eq!(read_candump(log.join("\n").as_bytes()).expect("well formed"), frames);
    }

    #[test]
    fn engine_speed_stays_within_what_an_engine_does() {
        for frame in Truck::new(7, 0).take(50_000).filter(|frame| frame.id == EEC1) {
            let rpm = f64::from(u16::from_le_bytes([frame.data[3], frame.data[4]])) * 0.125;
            assert!((700.0..1_900.0).contains(&rpm), "{rpm}");
        }
    }

    #[test]
    fn a_recording_is_read_to_the_microsecond_and_its_errors_are_placed() {
        let log =
            "(1604611942.559073) can1 1CEBFF00#1909018406090184\n\n(1604611943.000001) can0 0CF00400#00FF\n";
        let frames = read_candump(log.as_bytes()).expect("well formed");
        assert_eq!(frames[0].at_us, 1_604_611_942_559_073);
        assert_eq!(frames[1].to_bytes().as_ref(), [0x0C, 0xF0, 0x04, 0x00, 0x00, 0xFF]);
        for bad in [
            "1.000000 can0 1#00",
            "(1.0) can0 1#00",
            "(1.000000) can0 1#000102030405060708",
            "(1.000000) can0 x#00",
        ] {
            let error = read_candump(format!("{log}{bad}").as_bytes()).expect_err(bad);
            assert!(format!("{error:#}").starts_with("line 4:"), "{error:#}");
        }
    }
}

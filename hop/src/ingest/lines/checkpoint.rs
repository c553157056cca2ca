//! Lines as bytes, for a checkpoint of all of them and for one that was put away.
//!
//! ```text
//! checkpoint = "PHL" 02, u32 devices, device*            all integers big-endian
//! device     = u8 length, name, u64 credit_ms, u64 credit of runs spoken of_ms, u32 lines, line*
//! line       = u64 run, u8 length, stream, u64 start, u64 newest, u64 idle_ms, u64 settled,
//!              set held, set declared, set refused, u32 count, (u64 seq, hash[8])*
//! set        = u32 count, (u64 first, u64 last)*         ascending, neither overlapping nor adjacent
//! idle line  = "PHI" 02, u8 length, device name, line
//! ```
//!
//! The three sets of a line share no number, and `settled` is at most the count of what is held. Format 01 is read as well: it has
//! neither the second credit nor `settled`, and its sets may overlap.
//!
//! Times are ages, since the clock behind `now` need not survive a restart. Numbers in flight are left out: they are not
//! durable. Of the hashes those of what has left are written; who still has envelopes feeds theirs with
//! [`Lines::recall`] after decoding. Whoever stores the bytes keeps a checksum beside them: what is refused here is what no
//! encoder wrote, not what a disk flipped.

use std::time::Duration;

use pithead_sealing::{DeviceId, Line, Run, StreamName};

use super::device::{Bucket, Device};
use super::line::LineState;
use super::{HASHES_KEPT, Lines, ShortHash, Unseen};
use crate::ingest::intervals::IntervalSet;

const CHECKPOINT: &[u8; 3] = b"PHL";
const IDLE_LINE: &[u8; 3] = b"PHI";

/// Which form the bytes have. Written is the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// Without what is settled.
    First = 1,
    Second = 2,
}

/// Not bytes that [`Lines::encode`] or [`Lines::take_idle`] wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a checkpoint of lines")]
pub struct CheckpointError;

impl<T: Clone> Lines<T> {
    /// All lines as bytes.
    pub fn encode(&self, now: Duration) -> Vec<u8> {
        let mut out = begun(CHECKPOINT);
        let mut devices: Vec<_> = self.devices.iter().collect();
        devices.sort_unstable_by_key(|(name, _)| *name);
        put_count(&mut out, devices.len());
        for (name, device) in devices {
            put_text(&mut out, name.as_str());
            for bucket in [device.bucket, device.spoken_of] {
                put_ms(&mut out, bucket.credit + now.saturating_sub(bucket.at));
            }
            put_count(&mut out, device.len());
            for (line, state) in device.lines(name) {
                put_line(&mut out, &line, state, now);
            }
        }
        out
    }

    /// Lines out of bytes.
    ///
    /// # Errors
    /// [`CheckpointError`].
    pub fn decode(bytes: &[u8], unseen: Unseen, now: Duration) -> Result<Self, CheckpointError> {
        let mut input = Input(bytes);
        let format = input.format(CHECKPOINT)?;
        let mut lines = Self::new(unseen);
        for _ in 0..input.u32()? {
            let name = DeviceId::new(input.text()?).map_err(|_| CheckpointError)?;
            let mut device = Device::new(unseen, now);
            device.bucket = Bucket { credit: input.ms()?, ..device.bucket };
            if format == Format::Second {
                device.spoken_of = Bucket { credit: input.ms()?, ..device.spoken_of };
            }
            for _ in 0..input.u32()? {
                let (line, state) = input.line(&name, format, now)?;
                if device.line(&line).is_some() {
                    return Err(CheckpointError);
                }
                device.put(&line, state);
            }
            if lines.devices.insert(name, device).is_some() {
                return Err(CheckpointError);
            }
        }
        input.finish()?;
        Ok(lines)
    }

    /// Takes lines out of memory that were quiet since `before` and have nothing here: each with the bytes to keep. Before
    /// a line is opened again, [`Lines::put_back`] it.
    pub fn take_idle(&mut self, before: Duration, now: Duration) -> Vec<(Line, Vec<u8>)> {
        let mut taken = Vec::new();
        for (name, device) in &mut self.devices {
            let idle: Vec<Line> =
                device.lines(name).filter(|(_, state)| state.is_idle(before)).map(|(line, _)| line).collect();
            for line in idle {
                let Some(state) = device.remove(&line) else { continue };
                let mut bytes = begun(IDLE_LINE);
                put_text(&mut bytes, name.as_str());
                put_line(&mut bytes, &line, &state, now);
                taken.push((line, bytes));
            }
        }
        taken
    }

    /// Puts a line back that was taken out. A line that has begun again meanwhile stays as it is.
    ///
    /// # Errors
    /// [`CheckpointError`].
    pub fn put_back(&mut self, bytes: &[u8], now: Duration) -> Result<Line, CheckpointError> {
        let mut input = Input(bytes);
        let format = input.format(IDLE_LINE)?;
        let name = DeviceId::new(input.text()?).map_err(|_| CheckpointError)?;
        let (line, mut state) = input.line(&name, format, now)?;
        input.finish()?;
        state.last_used = now;
        let unseen = self.unseen;
        let device = self.devices.entry(name).or_insert_with(|| Device::new(unseen, now));
        if device.line(&line).is_none() {
            device.put(&line, state);
        }
        Ok(line)
    }
}

fn begun(magic: &[u8; 3]) -> Vec<u8> {
    [&magic[..], &[Format::Second as u8]].concat()
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend(u32::try_from(count).unwrap_or(u32::MAX).to_be_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    // Every name of ours has at most 63 bytes.
    out.push(text.len() as u8);
    out.extend(text.as_bytes());
}

fn put_ms(out: &mut Vec<u8>, time: Duration) {
    out.extend(u64::try_from(time.as_millis()).unwrap_or(u64::MAX).to_be_bytes());
}

fn put_set(out: &mut Vec<u8>, set: &IntervalSet) {
    put_count(out, set.intervals());
    for range in set.iter() {
        out.extend(range.first.to_be_bytes());
        out.extend(range.last.to_be_bytes());
    }
}

fn put_line<T: Clone>(out: &mut Vec<u8>, line: &Line, state: &LineState<T>, now: Duration) {
    out.extend(line.run.get().to_be_bytes());
    put_text(out, line.stream.as_str());
    out.extend(state.start.to_be_bytes());
    out.extend(state.newest.to_be_bytes());
    put_ms(out, now.saturating_sub(state.last_used));
    out.extend(state.settled.to_be_bytes());
    put_set(out, &state.durable());
    put_set(out, &state.declared);
    put_set(out, &state.refused);
    // What is spooled is recalled from there; what has left is known from here alone, however much waits behind it.
    put_count(out, state.passed.len());
    for (seq, hash) in &state.passed {
        out.extend(seq.to_be_bytes());
        out.extend(hash.0);
    }
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], CheckpointError> {
        let (head, rest) = self.0.split_first_chunk().ok_or(CheckpointError)?;
        self.0 = rest;
        Ok(*head)
    }

    fn format(&mut self, magic: &[u8; 3]) -> Result<Format, CheckpointError> {
        let [a, b, c, format] = self.array()?;
        match format {
            _ if [a, b, c] != *magic => Err(CheckpointError),
            1 => Ok(Format::First),
            2 => Ok(Format::Second),
            _ => Err(CheckpointError),
        }
    }

    fn u32(&mut self) -> Result<u32, CheckpointError> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, CheckpointError> {
        self.array().map(u64::from_be_bytes)
    }

    fn ms(&mut self) -> Result<Duration, CheckpointError> {
        self.u64().map(Duration::from_millis)
    }

    fn text(&mut self) -> Result<&'a str, CheckpointError> {
        let [length] = self.array()?;
        let (text, rest) = self.0.split_at_checked(length.into()).ok_or(CheckpointError)?;
        self.0 = rest;
        std::str::from_utf8(text).map_err(|_| CheckpointError)
    }

    fn set(&mut self) -> Result<IntervalSet, CheckpointError> {
        let count = self.u32()?;
        let mut set = IntervalSet::new();
        for _ in 0..count {
            let (first, last) = (self.u64()?, self.u64()?);
            let follows =
                set.last().is_none_or(|before| before.checked_add(1).is_some_and(|next| next < first));
            if first == 0 || first > last || !follows {
                return Err(CheckpointError);
            }
            set.insert_range(first, last);
        }
        Ok(set)
    }

    fn line<T: Clone>(
        &mut self,
        device: &DeviceId,
        format: Format,
        now: Duration,
    ) -> Result<(Line, LineState<T>), CheckpointError> {
        let run = Run::new(self.u64()?).map_err(|_| CheckpointError)?;
        let stream = StreamName::new(self.text()?).map_err(|_| CheckpointError)?;
        let start = self.u64()?;
        if start == 0 {
            return Err(CheckpointError);
        }
        let (newest, idle) = (self.u64()?, self.ms()?);
        let settled = if format == Format::Second { self.u64()? } else { 0 };
        let (held, declared, refused) = (self.set()?, self.set()?, self.set()?);
        let sizes = (declared.intervals(), declared.count(), refused.intervals(), refused.count());
        let mut state = LineState::new(start, now).with(held, declared, refused);
        let disjoint = (
            state.declared.intervals(),
            state.declared.count(),
            state.refused.intervals(),
            state.refused.count(),
        );
        if format == Format::Second && (sizes != disjoint || settled > state.held.count()) {
            return Err(CheckpointError);
        }
        (state.newest, state.settled) = (newest, settled);
        state.last_used = now.saturating_sub(idle);
        let hashes = self.u32()?;
        if hashes as usize > HASHES_KEPT {
            return Err(CheckpointError);
        }
        for _ in 0..hashes {
            let (seq, hash) = (self.u64()?, ShortHash(self.array()?));
            if !state.held.contains(seq) {
                return Err(CheckpointError);
            }
            state.passed.push_back((seq, hash));
        }
        Ok((Line { device: device.clone(), stream, run }, state))
    }

    fn finish(self) -> Result<(), CheckpointError> {
        if self.0.is_empty() { Ok(()) } else { Err(CheckpointError) }
    }
}

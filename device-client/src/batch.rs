//! Records under one seal: many small ones cost one header and one place in the line.
//!
//! The bytes are `pithead.batch.v1.Batch` (envelope document, section 2.2). A batch is bounded in bytes and records
//! before it is built, so that its envelope always fits the gateway's inline limit. Records are encoded as they come, so
//! that a batch of a thousand is one buffer and not a thousand.
//!
//! A batch says where the wall clock and where the monotonic clock stood. Within one, the two have moved together: a wall
//! clock that is set ends the batch ([`CLOCK_STEP_US`]), so that a record's monotonic time can be told from its wall time.

use pithead_proto::batch::v1 as wire;
use pithead_sealing::names::{Run, Seq, StreamName};
use prost::{Message as _, encoding};

/// The media type of a batch envelope.
pub use pithead_proto::batch::v1::CONTENT_TYPE;

/// How far wall and monotonic clock may part within a batch: far above what slewing a clock does in the seconds that a batch
/// gathers, far below what anybody means by setting one.
pub const CLOCK_STEP_US: i64 = 100_000;

/// Gaps in one batch at most; the reader takes twice as many.
pub const GAPS_PER_BATCH: usize = 512;

/// The fields of `Batch`, by number.
mod field {
    pub(super) const BASE_US: u32 = 1;
    pub(super) const RECORDS: u32 = 2;
    pub(super) const GAPS: u32 = 3;
    pub(super) const PREVIOUS: u32 = 4;
    pub(super) const HEARTBEAT: u32 = 5;
    pub(super) const MONOTONIC_US: u32 = 6;
}

/// The fields of `Record`, by number.
mod record_field {
    pub(super) const DT_US: u32 = 1;
    pub(super) const DATA: u32 = 2;
    pub(super) const NAME: u32 = 3;
}

/// When a batch is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Records at most.
    pub records: usize,
    /// Bytes of encoded records at most; one record may be larger alone.
    pub bytes: usize,
}

impl Default for BatchLimits {
    /// 16,384 records or 256 KiB: a quarter of the gateway's default inline limit.
    fn default() -> Self {
        Self { records: 16_384, bytes: 256 * 1024 }
    }
}

/// When a record was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Microseconds since 1970 by the wall clock, right or wrong.
    pub wall_us: i64,
    /// Microseconds since the machine was booted; nothing for a record whose time its owner gives.
    pub monotonic_us: Option<u64>,
}

impl Moment {
    /// How far the wall clock is ahead of the monotonic one.
    fn offset_us(self) -> Option<i64> {
        let monotonic = i64::try_from(self.monotonic_us?).unwrap_or(i64::MAX);
        Some(self.wall_us.saturating_sub(monotonic))
    }
}

/// The newest number of a line, as it is told inside a seal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineMark {
    /// The stream.
    pub stream: StreamName,
    /// The run.
    pub run: Run,
    /// The last number that the device holds or held of it; 0 if it sealed none.
    pub last_seq: u64,
}

impl LineMark {
    fn to_wire(&self) -> wire::Line {
        wire::Line { stream: self.stream.to_string(), run: self.run.get(), last_seq: self.last_seq }
    }
}

/// Numbers that will never come, as they are told inside a seal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The stream.
    pub stream: StreamName,
    /// The run.
    pub run: Run,
    /// The first of them.
    pub from: Seq,
    /// The last of them.
    pub to: Seq,
    /// Why.
    pub reason: GapReason,
}

/// Why numbers will never come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum GapReason {
    /// The stream's budget was used up, and its policy drops the oldest.
    DroppedByPolicy,
    /// The outbox was damaged there.
    OutboxDamaged,
    /// The receiver refused them for good, and the refused area was full.
    Refused,
}

impl Gap {
    fn to_wire(&self) -> wire::Gap {
        let reason = match self.reason {
            GapReason::DroppedByPolicy => wire::GapReason::DroppedByPolicy,
            GapReason::OutboxDamaged => wire::GapReason::OutboxDamaged,
            GapReason::Refused => wire::GapReason::Refused,
        };
        wire::Gap {
            stream: self.stream.to_string(),
            run: self.run.get(),
            from: self.from.get(),
            to: self.to.get(),
            reason: reason.into(),
        }
    }
}

/// What a batch says besides its records.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Notices {
    /// In the first batch of a run: the run before it.
    pub previous: Option<LineMark>,
    /// What was dropped and is not declared yet; at most [`GAPS_PER_BATCH`].
    pub gaps: Vec<Gap>,
    /// How far the lines have come, in a batch that claims completeness up to there.
    pub heartbeat: Vec<LineMark>,
}

/// The record does not go into this batch: finish it and begin the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the batch is full")]
pub struct BatchFull;

/// A batch that is being filled.
#[derive(Debug)]
pub struct BatchBuilder {
    limits: BatchLimits,
    encoded: Vec<u8>,
    records: usize,
    payload_bytes: u64,
    base: Moment,
    last_us: i64,
}

impl BatchBuilder {
    /// An empty batch.
    #[must_use]
    pub fn new(limits: BatchLimits) -> Self {
        let base = Moment { wall_us: 0, monotonic_us: None };
        Self { limits, encoded: Vec::new(), records: 0, payload_bytes: 0, base, last_us: 0 }
    }

    /// Adds a record. An empty batch takes any.
    ///
    /// # Errors
    /// [`BatchFull`] when it has to begin another batch: for want of room, or because the clock was set.
    pub fn push(&mut self, at: Moment, name: &str, data: &[u8]) -> Result<(), BatchFull> {
        if self.is_empty() {
            self.begin(at);
        }
        let dt_us = at.wall_us.saturating_sub(self.last_us);
        let bytes = record_len(dt_us, name, data);
        let framed = encoding::key_len(field::RECORDS) + encoding::encoded_len_varint(bytes as u64) + bytes;
        if self.records > 0 && !self.takes(at, framed) {
            return Err(BatchFull);
        }
        encoding::encode_key(field::RECORDS, encoding::WireType::LengthDelimited, &mut self.encoded);
        encoding::encode_varint(bytes as u64, &mut self.encoded);
        encode_record(dt_us, name, data, &mut self.encoded);
        // What a saturated difference loses, the next record must not inherit.
        self.last_us = self.last_us.saturating_add(dt_us);
        self.records += 1;
        self.payload_bytes += (name.len() + data.len()) as u64;
        Ok(())
    }

    fn begin(&mut self, at: Moment) {
        self.base = at;
        self.last_us = at.wall_us;
    }

    fn takes(&self, at: Moment, framed: usize) -> bool {
        let steady = match (self.base.offset_us(), at.offset_us()) {
            (Some(base), Some(now)) => base.abs_diff(now) <= CLOCK_STEP_US.unsigned_abs(),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        steady
            && self.records < self.limits.records
            && self.encoded.len().saturating_add(framed) <= self.limits.bytes
    }

    /// Records so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records
    }

    /// No record yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Bytes so far, as they will be sealed.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        self.encoded.len()
    }

    /// Bytes of names and data so far.
    #[must_use]
    pub fn payload_bytes(&self) -> u64 {
        self.payload_bytes
    }

    /// What was gathered, and an empty builder in its place.
    pub fn take(&mut self) -> Gathered {
        // The next batch is likely to become as long as this one.
        let next = Vec::with_capacity(self.encoded.len());
        let gathered = Gathered {
            base: self.base,
            records: self.records,
            payload_bytes: self.payload_bytes,
            encoded: std::mem::replace(&mut self.encoded, next),
        };
        (self.records, self.payload_bytes) = (0, 0);
        gathered
    }
}

/// The records of a batch, waiting for its number: only who seals knows what else it has to say.
#[derive(Debug)]
pub struct Gathered {
    base: Moment,
    records: usize,
    payload_bytes: u64,
    encoded: Vec<u8>,
}

impl Gathered {
    /// A batch without records, for what is to be said all the same.
    #[must_use]
    pub fn nothing(at: Moment) -> Self {
        Self { base: at, records: 0, payload_bytes: 0, encoded: Vec::new() }
    }

    /// How many records.
    #[must_use]
    pub fn records(&self) -> usize {
        self.records
    }

    /// Bytes of their names and data.
    #[must_use]
    pub fn payload_bytes(&self) -> u64 {
        self.payload_bytes
    }

    /// Bytes in memory.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        self.encoded.len()
    }

    /// The plaintext to seal.
    #[must_use]
    pub fn finish(self, notices: &Notices) -> Vec<u8> {
        let mut plaintext = self.encoded;
        encoding::sfixed64::encode(field::BASE_US, &self.base.wall_us, &mut plaintext);
        if let Some(monotonic_us) = self.base.monotonic_us {
            encoding::fixed64::encode(field::MONOTONIC_US, &monotonic_us, &mut plaintext);
        }
        for gap in &notices.gaps {
            encoding::message::encode(field::GAPS, &gap.to_wire(), &mut plaintext);
        }
        if let Some(previous) = &notices.previous {
            encoding::message::encode(field::PREVIOUS, &previous.to_wire(), &mut plaintext);
        }
        for mark in &notices.heartbeat {
            encoding::message::encode(field::HEARTBEAT, &mark.to_wire(), &mut plaintext);
        }
        debug_assert!(wire::Batch::decode(&*plaintext).is_ok(), "what is encoded here can be decoded");
        plaintext
    }
}

fn record_len(dt_us: i64, name: &str, data: &[u8]) -> usize {
    let present = |yes: bool, bytes: usize| if yes { bytes } else { 0 };
    let counted = |tag, len: usize| encoding::key_len(tag) + encoding::encoded_len_varint(len as u64) + len;
    present(dt_us != 0, encoding::sint64::encoded_len(record_field::DT_US, &dt_us))
        + present(!data.is_empty(), counted(record_field::DATA, data.len()))
        + present(!name.is_empty(), counted(record_field::NAME, name.len()))
}

fn encode_record(dt_us: i64, name: &str, data: &[u8], to: &mut Vec<u8>) {
    if dt_us != 0 {
        encoding::sint64::encode(record_field::DT_US, &dt_us, to);
    }
    for (tag, bytes) in [(record_field::DATA, data), (record_field::NAME, name.as_bytes())] {
        if !bytes.is_empty() {
            encoding::encode_key(tag, encoding::WireType::LengthDelimited, to);
            encoding::encode_varint(bytes.len() as u64, to);
            to.extend_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> wire::Batch {
        wire::Batch::decode(bytes).expect("what the builder encodes can be decoded")
    }

    fn at(wall_us: i64) -> Moment {
        Moment { wall_us, monotonic_us: None }
    }

    fn finish(builder: &mut BatchBuilder) -> wire::Batch {
        decode(&builder.take().finish(&Notices::default()))
    }

    #[test]
    fn times_are_kept_as_differences_and_a_clock_set_back_is_no_error() {
        let mut builder = BatchBuilder::new(BatchLimits::default());
        for at_us in [1_000, 1_500, 400] {
            builder.push(at(at_us), "speed", b"42").expect("there is room");
        }
        let batch = finish(&mut builder);
        assert_eq!(batch.base_us, 1_000);
        assert_eq!(batch.monotonic_us, None);
        assert_eq!(batch.records.iter().map(|record| record.dt_us).collect::<Vec<_>>(), [0, 500, -1_100]);
        assert!(builder.is_empty());
    }

    #[test]
    fn a_wall_clock_that_is_set_begins_another_batch_and_a_slewed_one_does_not() {
        let moment = |wall_us, monotonic_us| Moment { wall_us, monotonic_us: Some(monotonic_us) };
        let mut builder = BatchBuilder::new(BatchLimits::default());
        builder.push(moment(0, 70_000_000), "", b"1970").expect("empty");
        builder.push(moment(1_050_000, 71_000_000), "", b"slewed by 50 ms").expect("there is room");
        let set = moment(1_800_000_000_000_000, 72_000_000);
        assert_eq!(builder.push(set, "", b"the clock was set"), Err(BatchFull));
        let batch = finish(&mut builder);
        assert_eq!((batch.base_us, batch.monotonic_us, batch.records.len()), (0, Some(70_000_000), 2));
        builder.push(set, "", b"the clock was set").expect("it is empty again");
        assert_eq!(builder.push(at(1_800_000_000_000_001), "", b"given"), Err(BatchFull), "of another kind");
        assert_eq!(finish(&mut builder).base_us, set.wall_us);
    }

    #[test]
    fn a_full_batch_refuses_the_record_and_never_exceeds_its_bytes() {
        let limits = BatchLimits { records: 1_000, bytes: 4_096 };
        let mut builder = BatchBuilder::new(limits);
        let record = [7; 100];
        while builder.push(at(0), "", &record).is_ok() {}
        let full = builder.take();
        assert!(full.encoded_bytes() <= limits.bytes && full.encoded_bytes() > limits.bytes - 120);
        assert_eq!(full.payload_bytes(), full.records() as u64 * 100);
        builder.push(at(0), "", &record).expect("it is empty again");
        for _ in 1..limits.records.min(30) {
            builder.push(at(0), "", b"").expect("there is room");
        }
    }

    #[test]
    fn no_more_records_than_allowed() {
        let mut builder = BatchBuilder::new(BatchLimits { records: 3, bytes: 4_096 });
        for _ in 0..3 {
            builder.push(at(0), "", b"x").expect("there is room");
        }
        assert_eq!(builder.push(at(0), "", b"x"), Err(BatchFull));
    }

    #[test]
    fn one_record_larger_than_a_batch_travels_alone() {
        let mut builder = BatchBuilder::new(BatchLimits { records: 10, bytes: 64 });
        builder.push(at(0), "", &[1; 1_000]).expect("an empty batch takes any record");
        assert_eq!(builder.push(at(0), "", b"x"), Err(BatchFull));
        assert_eq!(finish(&mut builder).records.len(), 1);
    }

    #[test]
    fn the_run_before_the_gaps_and_the_heartbeat_ride_inside() {
        let stream = StreamName::new("can").expect("valid");
        let run = Run::new(9).expect("valid");
        let mark = LineMark { stream: stream.clone(), run, last_seq: 41 };
        let gap = Gap {
            stream,
            run,
            from: Seq::new(3).expect("valid"),
            to: Seq::new(7).expect("valid"),
            reason: GapReason::DroppedByPolicy,
        };
        let notices =
            Notices { previous: Some(mark.clone()), gaps: vec![gap.clone()], heartbeat: vec![mark.clone()] };
        let batch = decode(&Gathered::nothing(at(-5)).finish(&notices));
        assert_eq!(batch.base_us, -5);
        assert_eq!(batch.previous, Some(mark.to_wire()));
        assert_eq!(batch.heartbeat, [mark.to_wire()]);
        assert_eq!(batch.gaps, [gap.to_wire()]);
        assert_eq!((batch.gaps[0].from, batch.gaps[0].to, batch.gaps[0].reason), (3, 7, 1));
    }

    proptest::proptest! {
        #[test]
        fn what_is_encoded_by_hand_is_what_prost_decodes(
            records in proptest::collection::vec((proptest::num::i64::ANY, ".{0,20}", proptest::collection::vec(0_u8.., 0..300)), 1..40)
        ) {
            let mut builder = BatchBuilder::new(BatchLimits { records: 100, bytes: 1 << 20 });
            let mut expected = Vec::new();
            let mut last = records[0].0;
            for (wall_us, name, data) in &records {
                builder.push(at(*wall_us), name, data).expect("there is room");
                let dt_us = wall_us.saturating_sub(last);
                last = last.saturating_add(dt_us);
                expected.push(wire::Record { dt_us, data: data.clone().into(), name: name.clone() });
            }
            proptest::prop_assert_eq!(finish(&mut builder).records, expected);
        }
    }
}

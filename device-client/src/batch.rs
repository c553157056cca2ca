//! Records under one seal: many small ones cost one header and one place in the line.
//!
//! The bytes are `pithead.batch.v1.Batch` (envelope document, section 2.2). A batch is bounded in bytes and records
//! before it is built, so that its envelope always fits the gateway's inline limit.

use bytes::Bytes;
use pithead_proto::batch::v1 as wire;
use prost::Message as _;

/// The media type of a batch envelope.
pub use pithead_proto::batch::v1::CONTENT_TYPE;

/// When a batch is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Records at most.
    pub records: usize,
    /// Bytes of encoded plaintext at most; one record may be larger alone.
    pub bytes: usize,
}

impl Default for BatchLimits {
    /// 1,000 records or 256 KiB: a quarter of the gateway's default inline limit.
    fn default() -> Self {
        Self { records: 1_000, bytes: 256 * 1024 }
    }
}

/// The newest number of a line, as it is told inside a seal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineMark {
    /// The stream.
    pub stream: pithead_sealing::names::StreamName,
    /// The run.
    pub run: pithead_sealing::names::Run,
    /// The last number that the device holds or held of it; 0 if it sealed none.
    pub last_seq: u64,
}

impl LineMark {
    fn to_wire(&self) -> wire::Line {
        wire::Line { stream: self.stream.to_string(), run: self.run.get(), last_seq: self.last_seq }
    }
}

/// A batch that is being filled.
#[derive(Debug)]
pub struct BatchBuilder {
    limits: BatchLimits,
    batch: wire::Batch,
    last_us: i64,
    encoded_bytes: usize,
}

impl BatchBuilder {
    /// An empty batch.
    #[must_use]
    pub fn new(limits: BatchLimits) -> Self {
        Self { limits, batch: wire::Batch::default(), last_us: 0, encoded_bytes: 0 }
    }

    /// Adds a record taken at `at_us` (microseconds since 1970). Gives `data` back if the batch is full: finish it
    /// and begin the next. An empty batch takes any record.
    pub fn push(&mut self, at_us: i64, name: &str, data: Bytes) -> Result<(), Bytes> {
        if self.is_empty() {
            self.batch.base_us = at_us;
            self.last_us = at_us;
        }
        let dt_us = at_us.saturating_sub(self.last_us);
        let record = wire::Record { dt_us, data, name: name.to_owned() };
        let bytes = framed_len(&record);
        let full = self.batch.records.len() >= self.limits.records
            || self.encoded_bytes.saturating_add(bytes) > self.limits.bytes;
        if full && !self.is_empty() {
            return Err(record.data);
        }
        // What a saturated difference loses, the next record must not inherit.
        self.last_us = self.last_us.saturating_add(dt_us);
        self.encoded_bytes += bytes;
        self.batch.records.push(record);
        Ok(())
    }

    /// Records so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.batch.records.len()
    }

    /// No record yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.batch.records.is_empty()
    }

    /// The plaintext to seal, and an empty builder in its place. `previous` belongs into the first batch of a run,
    /// `heartbeat` into any batch that claims completeness up to its marks.
    pub fn finish(&mut self, previous: Option<&LineMark>, heartbeat: &[LineMark]) -> Vec<u8> {
        self.encoded_bytes = 0;
        let mut batch = std::mem::take(&mut self.batch);
        batch.previous = previous.map(LineMark::to_wire);
        batch.heartbeat = heartbeat.iter().map(LineMark::to_wire).collect();
        batch.encode_to_vec()
    }
}

/// What a record adds to the batch: tag, length and itself.
fn framed_len(record: &wire::Record) -> usize {
    let len = record.encoded_len();
    1 + prost::length_delimiter_len(len) + len
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> wire::Batch {
        wire::Batch::decode(bytes).expect("what the builder encodes can be decoded")
    }

    #[test]
    fn times_are_kept_as_differences_and_a_clock_set_back_is_no_error() {
        let mut builder = BatchBuilder::new(BatchLimits::default());
        for at_us in [1_000, 1_500, 400] {
            builder.push(at_us, "speed", Bytes::from_static(b"42")).expect("there is room");
        }
        let batch = decode(&builder.finish(None, &[]));
        assert_eq!(batch.base_us, 1_000);
        assert_eq!(batch.records.iter().map(|record| record.dt_us).collect::<Vec<_>>(), [0, 500, -1_100]);
        assert!(builder.is_empty());
    }

    #[test]
    fn a_full_batch_gives_the_record_back_and_never_exceeds_its_bytes() {
        let limits = BatchLimits { records: 1_000, bytes: 4_096 };
        let mut builder = BatchBuilder::new(limits);
        let record = Bytes::from(vec![7; 100]);
        while builder.push(0, "", record.clone()).is_ok() {}
        let refused = builder.push(0, "", record.clone()).expect_err("it was full a moment ago");
        assert_eq!(refused, record);
        let encoded = builder.finish(None, &[]);
        assert!(encoded.len() <= limits.bytes + 16, "{} bytes", encoded.len());
        assert!(encoded.len() > limits.bytes - 120);
        builder.push(0, "", record).expect("it is empty again");
    }

    #[test]
    fn one_record_larger_than_a_batch_travels_alone() {
        let mut builder = BatchBuilder::new(BatchLimits { records: 10, bytes: 64 });
        builder.push(0, "", Bytes::from(vec![1; 1_000])).expect("an empty batch takes any record");
        assert!(builder.push(0, "", Bytes::from_static(b"x")).is_err());
        assert_eq!(decode(&builder.finish(None, &[])).records.len(), 1);
    }

    #[test]
    fn the_run_before_and_the_heartbeat_ride_inside() {
        let mark = LineMark {
            stream: pithead_sealing::names::StreamName::new("can").expect("valid"),
            run: pithead_sealing::names::Run::new(9).expect("valid"),
            last_seq: 41,
        };
        let mut builder = BatchBuilder::new(BatchLimits::default());
        builder.push(5, "", Bytes::new()).expect("there is room");
        let batch = decode(&builder.finish(Some(&mark), std::slice::from_ref(&mark)));
        assert_eq!(batch.previous, Some(mark.to_wire()));
        assert_eq!(batch.heartbeat, [mark.to_wire()]);
    }
}

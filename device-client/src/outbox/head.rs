//! What a record of a log says of itself without its body: which envelope, and how much is in it.
//!
//! ```text
//! head: | device length u8, device | stream length u8, stream | run u64 BE | seq u64 BE | records u32 BE | payload bytes u64 BE |
//! ```
//!
//! So that lines can be told, and drops counted, without reading bodies; and so that a log on a disk that was taken out
//! says whose it is.

use bytes::{BufMut as _, Bytes, BytesMut};
use pithead_sealing::names::{DeviceId, Identity, Line, Run, Seq, StreamName};

/// `Record::kind` of a sealed envelope: the body is the envelope.
pub(crate) const ENVELOPE: u16 = 1;
/// `Record::kind` of an envelope in a file of its own: the body is its length, u64 BE.
pub(crate) const FILE: u16 = 2;

/// A head, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) line: Line,
    pub(crate) seq: Seq,
    /// Records in the envelope; a file is one.
    pub(crate) records: u32,
    /// Bytes of their names and data, or of the file.
    pub(crate) payload_bytes: u64,
}

impl Head {
    pub(crate) fn of(identity: &Identity, records: u32, payload_bytes: u64) -> Self {
        Self { line: identity.line(), seq: identity.seq, records, payload_bytes }
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut head = BytesMut::with_capacity(96);
        for name in [self.line.device.as_str(), self.line.stream.as_str()] {
            head.put_u8(u8::try_from(name.len()).expect("names have at most 63 bytes"));
            head.put_slice(name.as_bytes());
        }
        head.put_u64(self.line.run.get());
        head.put_u64(self.seq.get());
        head.put_u32(self.records);
        head.put_u64(self.payload_bytes);
        head.freeze()
    }

    pub(crate) fn decode(head: &[u8]) -> Option<Self> {
        fn name(bytes: &[u8]) -> Option<(&str, &[u8])> {
            let (length, rest) = bytes.split_first()?;
            let (name, rest) = rest.split_at_checked(usize::from(*length))?;
            Some((std::str::from_utf8(name).ok()?, rest))
        }
        let (device, rest) = name(head)?;
        let (stream, rest) = name(rest)?;
        let (run, rest) = rest.split_first_chunk()?;
        let (seq, rest) = rest.split_first_chunk()?;
        let (records, rest) = rest.split_first_chunk()?;
        let payload_bytes: [u8; 8] = rest.try_into().ok()?;
        let line = Line {
            device: DeviceId::new(device).ok()?,
            stream: StreamName::new(stream).ok()?,
            run: Run::new(u64::from_be_bytes(*run)).ok()?,
        };
        Some(Self {
            line,
            seq: Seq::new(u64::from_be_bytes(*seq)).ok()?,
            records: u32::from_be_bytes(*records),
            payload_bytes: u64::from_be_bytes(payload_bytes),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_reads_back_and_a_torn_one_does_not() {
        let line = Line {
            device: DeviceId::new("truck-7").unwrap(),
            stream: StreamName::new("can").unwrap(),
            run: Run::from_parts(3, 9).unwrap(),
        };
        let head = Head { line, seq: Seq::new(77).unwrap(), records: 50, payload_bytes: 5_000 };
        let bytes = head.encode();
        assert_eq!(Head::decode(&bytes), Some(head));
        for cut in 0..bytes.len() {
            assert_eq!(Head::decode(&bytes[..cut]), None, "cut at {cut}");
        }
    }
}

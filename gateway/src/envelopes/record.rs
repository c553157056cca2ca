//! What a spool record of ours is: the envelope in its body, who it is and how it came in its head. A large envelope is a file
//! of its own, and its record's body says how large it is.
//!
//! The head is a message of its own with a checksum of its own in the spool, so that a damaged body can still be named,
//! and so that a start reads heads alone to know every number, hash and conflict that is still here.

use bytes::Bytes;
use pithead_hop::bundle::CopyName;
use pithead_proto::ingest::v1::Hop;
use pithead_sealing::{DeviceId, Identity, Run, Seq, Site, StreamName};
use pithead_spool::Record;
use prost::Message as _;
use prost::encoding::{self, WireType};

/// An envelope as it came.
pub const KIND_ENVELOPE: u16 = 1;
/// Other bytes under a used identity: kept beside and relayed with the flag.
pub const KIND_CONFLICT: u16 = 2;
/// A large envelope, which lies in `DATA/uploads` under its identity. The hash in its head is that of its own header.
pub const KIND_LARGE: u16 = 3;

/// The body of a [`KIND_LARGE`] as it is stored. Fields are added, never changed.
#[derive(Clone, PartialEq, prost::Message)]
struct StoredLarge {
    #[prost(uint64, tag = "1")]
    total: u64,
}

/// What a record holds besides its head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// An envelope as it came.
    Envelope(Bytes),
    /// Other bytes under a used identity.
    Conflict(Bytes),
    /// A large envelope in its file.
    Large {
        /// Bytes of the whole envelope.
        total: u64,
    },
}

impl Body {
    fn into_parts(self) -> (u16, Bytes) {
        match self {
            Self::Envelope(envelope) => (KIND_ENVELOPE, envelope),
            Self::Conflict(envelope) => (KIND_CONFLICT, envelope),
            Self::Large { total } => (KIND_LARGE, StoredLarge { total }.encode_to_vec().into()),
        }
    }

    /// Bytes of an envelope that its record's body says it has, if the record is a large one's.
    #[must_use]
    pub fn large_total(record: &Record) -> Option<u64> {
        let large = (record.kind == KIND_LARGE).then(|| StoredLarge::decode(record.body.clone()))?;
        large.ok().map(|large| large.total)
    }

    /// Bytes that it takes in the spool.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Envelope(envelope) | Self::Conflict(envelope) => envelope.len(),
            Self::Large { total } => StoredLarge { total: *total }.encoded_len(),
        }
    }

    /// Bytes of the envelope, wherever they lie.
    #[must_use]
    pub fn envelope_bytes(&self) -> u64 {
        match self {
            Self::Envelope(envelope) | Self::Conflict(envelope) => envelope.len() as u64,
            Self::Large { total } => *total,
        }
    }

    /// True if it takes none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A copy of a large envelope as it is stored. Fields are added, never changed.
#[derive(Clone, PartialEq, prost::Message)]
struct StoredCopy {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(bytes = "bytes", tag = "2")]
    sha256: Bytes,
    #[prost(uint64, tag = "3")]
    total: u64,
    #[prost(fixed64, tag = "4")]
    store: u64,
}

/// Where a large envelope lies besides the machine that gathered it, where several gateways share the lanes ([`super::copies`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LargeCopy {
    /// The object's name in the store.
    pub name: String,
    /// Of all its bytes.
    pub sha256: [u8; 32],
    /// How many those are.
    pub total: u64,
    /// What names the store: in another one there is no such object, and that says nothing.
    pub store: u64,
}

impl LargeCopy {
    /// In which term of an owner of the lanes it was put; none is 0.
    #[must_use]
    pub fn term(&self) -> u64 {
        CopyName::parse(&self.name).map_or(0, |name| name.epoch)
    }

    fn stored(&self) -> StoredCopy {
        let sha256 = Bytes::copy_from_slice(&self.sha256);
        StoredCopy { name: self.name.clone(), sha256, total: self.total, store: self.store }
    }

    fn of(stored: StoredCopy) -> Result<Self, NotAHead> {
        let sha256 = stored.sha256.as_ref().try_into().map_err(|_| NotAHead)?;
        Ok(Self { name: stored.name, sha256, total: stored.total, store: stored.store })
    }
}

/// The head as it is stored. Fields are added, never changed.
#[derive(Clone, PartialEq, prost::Message)]
struct StoredHead {
    #[prost(string, tag = "1")]
    site: String,
    #[prost(string, tag = "2")]
    device: String,
    #[prost(string, tag = "3")]
    stream: String,
    #[prost(fixed64, tag = "4")]
    run: u64,
    #[prost(uint64, tag = "5")]
    seq: u64,
    #[prost(bytes = "bytes", tag = "6")]
    sha256: Bytes,
    #[prost(message, repeated, tag = "7")]
    hops: Vec<Hop>,
    #[prost(message, optional, tag = "8")]
    copy: Option<StoredCopy>,
}

/// What is known of a spooled envelope without its bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// What it is filed under.
    pub identity: Identity,
    /// Of its bytes.
    pub sha256: [u8; 32],
    /// Custody, the oldest first; the last is our own.
    pub hops: Vec<Hop>,
    /// Of a large one: where it lies besides this machine, if it does.
    pub copy: Option<LargeCopy>,
}

/// What a head has at most besides its hops: three names of up to 63 bytes, two numbers, a hash, and their tags.
const HEAD_GUESS_BYTES: usize = 256;

fn put_bytes(tag: u32, bytes: &[u8], out: &mut Vec<u8>) {
    encoding::encode_key(tag, WireType::LengthDelimited, out);
    encoding::encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// A record's head that is not one of ours. It cannot happen to a record that the spool served whole, unless another
/// program wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the head of a spooled envelope")]
pub struct NotAHead;

impl Head {
    /// The head's bytes: those of [`StoredHead`], written without making one. It is once per envelope, and the copies of
    /// six texts would be most of it.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let Identity { site, device, stream, run, seq } = &self.identity;
        let copy = self.copy.as_ref().map(LargeCopy::stored);
        let names = [(1, site.as_str()), (2, device.as_str()), (3, stream.as_str())];
        let hops = encoding::message::encoded_len_repeated(7, &self.hops);
        let mut out = Vec::with_capacity(HEAD_GUESS_BYTES + hops);
        for (tag, name) in names {
            put_bytes(tag, name.as_bytes(), &mut out);
        }
        encoding::fixed64::encode(4, &run.get(), &mut out);
        encoding::uint64::encode(5, &seq.get(), &mut out);
        put_bytes(6, &self.sha256, &mut out);
        encoding::message::encode_repeated(7, &self.hops, &mut out);
        if let Some(copy) = &copy {
            encoding::message::encode(8, copy, &mut out);
        }
        out.into()
    }

    /// Reads a head back.
    ///
    /// # Errors
    /// [`NotAHead`].
    pub fn decode(bytes: &Bytes) -> Result<Self, NotAHead> {
        let stored = StoredHead::decode(bytes.clone()).map_err(|_| NotAHead)?;
        let names = (Site::new(&stored.site), DeviceId::new(&stored.device), StreamName::new(&stored.stream));
        let numbers = (Run::new(stored.run), Seq::new(stored.seq));
        let ((Ok(site), Ok(device), Ok(stream)), (Ok(run), Ok(seq))) = (names, numbers) else {
            return Err(NotAHead);
        };
        let sha256 = stored.sha256.as_ref().try_into().map_err(|_| NotAHead)?;
        let copy = stored.copy.map(LargeCopy::of).transpose()?;
        Ok(Self { identity: Identity { site, device, stream, run, seq }, sha256, hops: stored.hops, copy })
    }

    /// The record with this head; `at_ms` is when it came.
    #[must_use]
    pub fn record(&self, body: Body, at_ms: u64) -> Record {
        let (kind, body) = body.into_parts();
        Record::new(kind, at_ms, self.encode(), body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelopes::testing::identity;

    fn head() -> Head {
        let hop = Hop { gateway: "edge-1".into(), received_us: 5, ..Hop::default() };
        Head { identity: identity("truck-42", 9), sha256: [3; 32], hops: vec![hop], copy: None }
    }

    #[test]
    fn a_head_reads_back_as_it_was_written() {
        assert_eq!(Head::decode(&head().encode()), Ok(head()));
        assert_eq!(head().record(Body::Conflict(Bytes::new()), 0).kind, KIND_CONFLICT);
    }

    #[test]
    fn the_body_of_a_large_one_is_fixed_and_says_how_large() {
        let record = head().record(Body::Large { total: 5 << 30 }, 0);
        assert_eq!((record.kind, hex::encode(&record.body)), (KIND_LARGE, "088080808014".to_owned()));
        assert_eq!(Body::large_total(&record), Some(5 << 30));
        assert_eq!(Body::Large { total: 5 << 30 }.len(), record.body.len());
        assert_eq!(Body::large_total(&head().record(Body::Envelope(Bytes::new()), 0)), None);
    }

    #[test]
    fn the_bytes_of_a_head_are_fixed() {
        let expected = "0a057069742d371208747275636b2d34321a0363616e21070000000000000028093220";
        let bytes = hex::encode(head().encode());
        assert_eq!(&bytes[..expected.len()], expected);
        assert_eq!(
            &bytes[expected.len()..],
            format!("{}3a110a06656467652d31110500000000000000", "03".repeat(32))
        );
    }

    #[test]
    fn a_head_is_the_message_that_it_is_read_as() {
        let head = head();
        let stored = StoredHead::decode(head.encode()).unwrap();
        assert_eq!(stored.encode_to_vec(), head.encode());
        assert_eq!(stored.hops, head.hops);
    }

    #[test]
    fn the_copy_of_a_large_one_stands_behind_the_rest_and_reads_back() {
        let copy = LargeCopy { name: "copies/x".into(), sha256: [9; 32], total: 5 << 30, store: 7 };
        let with = Head { copy: Some(copy), ..head() };
        assert_eq!(Head::decode(&with.encode()), Ok(with.clone()));
        let (plain, bytes) = (head().encode(), with.encode());
        let expected =
            format!("423b{}1220{}188080808014210700000000000000", "0a08636f706965732f78", "09".repeat(32));
        assert_eq!(hex::encode(&bytes[plain.len()..]), expected);
        assert_eq!(StoredHead::decode(bytes.clone()).unwrap().encode_to_vec(), bytes);
        // Without its hash it is no copy, and nothing is fetched by it.
        let mut short = StoredHead::decode(bytes).unwrap();
        short.copy.as_mut().unwrap().sha256 = Bytes::new();
        assert_eq!(Head::decode(&short.encode_to_vec().into()), Err(NotAHead));
    }

    #[test]
    fn what_is_no_head_is_refused() {
        assert_eq!(Head::decode(&Bytes::new()), Err(NotAHead));
        assert_eq!(Head::decode(&Bytes::from_static(b"\xff\xff")), Err(NotAHead));
    }
}

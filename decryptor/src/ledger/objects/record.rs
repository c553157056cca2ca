//! What an entry of the ledger in a bucket says, format 1. Fields are only ever added.
//!
//! ```text
//! object: magic (8) | one zstd frame of the protobuf message | SHA-256 of everything before it (32)
//! PHLEDGR1  ledger/<site>/<number, 20 digits>        Decision: what became of every envelope of one bundle
//! PHBOOKS1  checkpoints/<site>/<number, 20 digits>   SiteBooks: everything that the entries up to that number say
//! ```
//! The facts of an envelope are those of the ledger on disk ([`Applied`], [`Said`], [`SetAside`]), so that both are read back into
//! the same books. A duplicate, which has no record there, has one here: the entry accounts for every envelope of its bundle.

use crate::ledger::record::{Applied, Checkpoint, Said, SetAside, Who};
use bytes::Bytes;
use prost::Message;
use sha2::{Digest as _, Sha256};
use std::io;

/// Begins an entry.
pub const DECISION_MAGIC: &[u8; 8] = b"PHLEDGR1";
/// Begins a checkpoint.
pub const BOOKS_MAGIC: &[u8; 8] = b"PHBOOKS1";

/// The version of both messages.
pub const VERSION: u32 = 1;

/// Bytes that an object may have when it is inflated: a checkpoint of 100,000 lines is some 100 MiB. What is more was not
/// written by this program.
const INFLATED_MAX: usize = 1 << 30;

/// Bytes of an object that is written, before it is compressed. Half of what is read, so that nobody ever writes what nobody can read.
pub const WRITTEN_MAX: usize = INFLATED_MAX / 2;

/// One entry: what became of one bundle.
#[derive(Clone, PartialEq, Message)]
pub struct Decision {
    /// 1.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// The site, as in the object's name.
    #[prost(string, tag = "2")]
    pub site: String,
    /// The entry's number, as in the object's name: from 1, without a gap.
    #[prost(uint64, tag = "3")]
    pub number: u64,
    /// SHA-256 of the entry before, the whole object; empty in the first.
    #[prost(bytes = "bytes", tag = "4")]
    pub previous: Bytes,
    /// Who has decided: 16 random bytes, drawn at a replica's start.
    #[prost(bytes = "bytes", tag = "5")]
    pub replica: Bytes,
    /// When, by that replica's clock. Nothing is ordered by it.
    #[prost(fixed64, tag = "6")]
    pub decided_us: u64,
    /// About which bundle.
    #[prost(message, optional, tag = "7")]
    pub bundle: Option<BundleName>,
    /// What became of its envelopes, in its order; empty if it is refused.
    #[prost(message, repeated, tag = "8")]
    pub envelopes: Vec<Judged>,
    /// Every entry up to this number had all of its output when this one was made.
    #[prost(uint64, tag = "9")]
    pub complete_through: u64,
    /// The registry's reason, if the object is no bundle at all; then its bytes stay where they are.
    #[prost(int32, tag = "10")]
    pub refused: i32,
}

/// A bundle, as far as it has to be recognised.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct BundleName {
    /// Its key below the source's URL.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Its bytes.
    #[prost(uint64, tag = "2")]
    pub size: u64,
    /// SHA-256 of its head, as it stands in it; empty if it has none.
    #[prost(bytes = "bytes", tag = "3")]
    pub head_sha256: Bytes,
    /// The gateway that packed it.
    #[prost(string, tag = "4")]
    pub gateway: String,
    /// Its spool.
    #[prost(bytes = "bytes", tag = "5")]
    pub spool: Bytes,
    /// The spool's lane.
    #[prost(uint32, tag = "6")]
    pub lane: u32,
    /// The places in that lane that it has: each range's first, and how many.
    #[prost(message, repeated, tag = "7")]
    pub places: Vec<Places>,
}

/// Places in a lane that follow each other.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Places {
    /// The first.
    #[prost(uint64, tag = "1")]
    pub first: u64,
    /// How many.
    #[prost(uint64, tag = "2")]
    pub count: u64,
}

/// What became of one envelope.
#[derive(Clone, PartialEq, Message)]
pub struct Judged {
    /// One of the three.
    #[prost(oneof = "Verdict", tags = "1, 2, 3")]
    pub verdict: Option<Verdict>,
}

/// What became of one envelope.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Verdict {
    /// Its plaintext is in the entry's output.
    #[prost(message, tag = "1")]
    Applied(AppliedEnvelope),
    /// Its sealed bytes are beside the output.
    #[prost(message, tag = "2")]
    SetAside(SetAside),
    /// Its identity was applied before.
    #[prost(message, tag = "3")]
    Duplicate(Duplicate),
}

/// An envelope whose plaintext is in the output.
#[derive(Clone, PartialEq, Message)]
pub struct AppliedEnvelope {
    /// Who and what.
    #[prost(message, optional, tag = "1")]
    pub applied: Option<Applied>,
    /// What the batch said of its device's lines.
    #[prost(message, optional, tag = "2")]
    pub said: Option<Said>,
}

/// An envelope that was there.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Duplicate {
    /// Its identity.
    #[prost(message, optional, tag = "1")]
    pub who: Option<Who>,
    /// The first one's hash was no longer kept.
    #[prost(bool, tag = "2")]
    pub unverified: bool,
}

/// Everything that the entries up to a number say.
#[derive(Clone, PartialEq, Message)]
pub struct SiteBooks {
    /// 1.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// The site.
    #[prost(string, tag = "2")]
    pub site: String,
    /// The last entry that is in it.
    #[prost(uint64, tag = "3")]
    pub number: u64,
    /// SHA-256 of that entry, the whole object.
    #[prost(bytes = "bytes", tag = "4")]
    pub digest: Bytes,
    /// Every entry up to this number has all of its output.
    #[prost(uint64, tag = "5")]
    pub complete_through: u64,
    /// Lines, facts and latches, as the ledger on disk has them.
    #[prost(message, optional, tag = "6")]
    pub books: Option<Checkpoint>,
    /// Which places of which lanes are decided.
    #[prost(message, repeated, tag = "7")]
    pub lanes: Vec<LaneBooks>,
    /// Entries whose output may not be whole.
    #[prost(uint64, repeated, tag = "8")]
    pub unfinished: Vec<u64>,
    /// Objects that were no bundle.
    #[prost(uint64, tag = "9")]
    pub bundles_refused: u64,
    /// Envelopes that were set aside and name nobody.
    #[prost(uint64, tag = "10")]
    pub nameless: u64,
}

/// What is decided of one lane of one gateway's spool.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct LaneBooks {
    /// The gateway.
    #[prost(string, tag = "1")]
    pub gateway: String,
    /// Its spool.
    #[prost(bytes = "bytes", tag = "2")]
    pub spool: Bytes,
    /// The lane.
    #[prost(uint32, tag = "3")]
    pub lane: u32,
    /// The places that are decided.
    #[prost(message, repeated, tag = "4")]
    pub places: Vec<Places>,
    /// The key of the bundle with the highest first place.
    #[prost(string, tag = "5")]
    pub newest: String,
    /// The folder before which no bundle has a place between those; empty where nothing is between.
    #[prost(string, tag = "6")]
    pub gap_since: String,
    /// When something of it was decided last.
    #[prost(fixed64, tag = "7")]
    pub decided_us: u64,
    /// The first places of the bundles that are decided.
    #[prost(uint64, repeated, tag = "8")]
    pub firsts: Vec<u64>,
    /// On which day since 1970 each of them was.
    #[prost(uint32, repeated, tag = "9")]
    pub days: Vec<u32>,
    /// The hour since 1970 that stands in the name of each.
    #[prost(uint32, repeated, tag = "10")]
    pub hours: Vec<u32>,
}

/// Whether anything has to be written for an entry, besides the entry.
#[must_use]
pub fn has_output(decision: &Decision) -> bool {
    decision.envelopes.iter().any(|judged| match &judged.verdict {
        Some(Verdict::Applied(_)) => true,
        Some(Verdict::SetAside(aside)) => aside.kept,
        Some(Verdict::Duplicate(_)) | None => false,
    })
}

/// An object that is not what its name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damaged {
    /// Something else.
    #[error("it does not begin as one")]
    Magic,
    /// Bytes have changed.
    #[error("its checksum does not hold")]
    Checksum,
    /// It does not inflate, or to more than there may be.
    #[error("it does not inflate")]
    Inflate,
    /// It is not the message.
    #[error("it is not the message, or of a newer version")]
    Message,
    /// It is of another number or site than its name.
    #[error("it is of another number or site than its name says")]
    Misplaced,
    /// It does not name the entry before it.
    #[error("it does not continue the entry before it: one of the two was replaced")]
    Broken,
}

/// Writes an object.
///
/// # Errors
/// When there is no memory for it.
pub fn seal(magic: &[u8; 8], message: &impl Message) -> io::Result<Bytes> {
    let mut object = magic.to_vec();
    // Level 1: names repeat, numbers count up; what a higher level still finds is not worth its time.
    object.extend_from_slice(&zstd::bulk::compress(&message.encode_to_vec(), 1)?);
    let sum = Sha256::digest(&object);
    object.extend_from_slice(&sum);
    Ok(object.into())
}

/// Reads an object back.
///
/// # Errors
/// [`Damaged`].
pub fn open<M: Message + Default>(magic: &[u8; 8], object: &[u8]) -> Result<M, Damaged> {
    let (body, sum) = object.split_at_checked(object.len().saturating_sub(32)).ok_or(Damaged::Magic)?;
    let frame = body.strip_prefix(magic).ok_or(Damaged::Magic)?;
    if Sha256::digest(body)[..] != *sum {
        return Err(Damaged::Checksum);
    }
    let size = zstd::zstd_safe::get_frame_content_size(frame).ok().flatten().unwrap_or(u64::MAX);
    let size = usize::try_from(size).ok().filter(|size| *size <= INFLATED_MAX).ok_or(Damaged::Inflate)?;
    let message = zstd::bulk::decompress(frame, size).map_err(|_| Damaged::Inflate)?;
    M::decode(&message[..]).map_err(|_| Damaged::Message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decision() -> Decision {
        let duplicate = Duplicate { who: Some(Who::default()), unverified: true };
        Decision {
            version: VERSION,
            site: "pit-7".into(),
            number: 3,
            envelopes: vec![Judged { verdict: Some(Verdict::Duplicate(duplicate)) }; 100],
            ..Decision::default()
        }
    }

    #[test]
    fn an_entry_reads_back_and_any_changed_byte_is_seen() {
        let object = seal(DECISION_MAGIC, &decision()).unwrap();
        assert_eq!(open(DECISION_MAGIC, &object), Ok(decision()));
        assert!(object.len() < 120, "what repeats costs next to nothing: {}", object.len());
        assert_eq!(open::<Decision>(BOOKS_MAGIC, &object), Err(Damaged::Magic));
        for at in 8..object.len() {
            let mut changed = object.to_vec();
            changed[at] ^= 1;
            assert_eq!(open::<Decision>(DECISION_MAGIC, &changed), Err(Damaged::Checksum), "{at}");
            assert!(open::<Decision>(DECISION_MAGIC, &object[..at]).is_err());
        }
    }

    /// The message's bytes as they were first written: a ledger of today must be read for ever.
    #[test]
    fn a_decision_has_these_bytes() {
        let applied = AppliedEnvelope { applied: Some(Applied::default()), said: None };
        let aside = SetAside { reason: 2009, kept: true, ..SetAside::default() };
        let name = BundleName {
            key: "b".into(),
            size: 9,
            head_sha256: vec![1].into(),
            gateway: "gw".into(),
            spool: vec![2].into(),
            lane: 1,
            places: vec![Places { first: 5, count: 2 }],
        };
        let decision = Decision {
            version: 1,
            site: "p".into(),
            number: 2,
            previous: vec![3].into(),
            replica: vec![4].into(),
            decided_us: 7,
            bundle: Some(name),
            envelopes: [Verdict::Applied(applied), Verdict::SetAside(aside)]
                .map(|verdict| Judged { verdict: Some(verdict) })
                .into(),
            complete_through: 1,
            refused: 0,
        };
        let committed = "080112017018022201032a01043107000000000000003a170a016210091a0101220267772a010230013a0408051002\
                         42040a020a004207120518d90f20014801";
        assert_eq!(hex::encode(decision.encode_to_vec()), committed);
        assert_eq!(Decision::decode(&decision.encode_to_vec()[..]), Ok(decision));
    }
}

//! The ledger's records as they lie on disk, format 1. Each is one record of the spool log: its kind, and one protobuf
//! message. Fields are only ever added.
//!
//! | kind | message | meaning |
//! |---|---|---|
//! | 1 | [`Applied`] | the sink has committed this envelope |
//! | 2 | [`SetAside`] | refused for good, or a conflict; kept beside, or not |
//! | 3 | [`Mark`] | where the sink's end was after the group |
//! | 4 | [`CheckpointPart`] | a piece of everything known so far |
//!
//! The first [`Applied`] with a `kid` of a device is what latches that the device signs: it needs no record of its own, and is as
//! durable as that envelope. A checkpoint carries the latches on ([`Latch`]). A version from before session signatures were
//! checked reads such a ledger, and forgets the latches with its next checkpoint.
//!
//! An [`Applied`] stands in the record's head (own checksum, readable when the body is damaged) without what the batch said
//! of its lines, which is the body.

use crate::content::{Batch, GapReason, LineEnd};
use crate::devices::{DeviceName, Origin};
use crate::sink::{Assurance, Delivery};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::trust::Kid;
use pithead_sealing::{Identity, NameError, Run, Seq};

/// Kind of [`Applied`].
pub const APPLIED: u16 = 1;
/// Kind of [`SetAside`].
pub const SET_ASIDE: u16 = 2;
/// Kind of [`Mark`].
pub const MARK: u16 = 3;
/// Kind of [`CheckpointPart`].
pub const CHECKPOINT: u16 = 4;

/// Who an envelope is, in the ledger.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Who {
    /// The site.
    #[prost(string, tag = "1")]
    pub site: String,
    /// The device.
    #[prost(string, tag = "2")]
    pub device: String,
    /// The stream.
    #[prost(string, tag = "3")]
    pub stream: String,
    /// The run.
    #[prost(fixed64, tag = "4")]
    pub run: u64,
    /// The number.
    #[prost(uint64, tag = "5")]
    pub seq: u64,
}

impl Who {
    /// As it is written.
    #[must_use]
    pub fn of(identity: &Identity) -> Self {
        Self {
            site: identity.site.to_string(),
            device: identity.device.to_string(),
            stream: identity.stream.to_string(),
            run: identity.run.get(),
            seq: identity.seq.get(),
        }
    }

    /// As it was meant.
    pub fn identity(&self) -> Result<Identity, NameError> {
        Ok(Identity {
            site: self.site.parse()?,
            device: self.device.parse()?,
            stream: self.stream.parse()?,
            run: Run::new(self.run)?,
            seq: Seq::new(self.seq)?,
        })
    }
}

/// An envelope whose plaintext is durable in the sink.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Applied {
    /// Its identity.
    #[prost(message, optional, tag = "1")]
    pub who: Option<Who>,
    /// SHA-256 of its sealed bytes; of one that came as an upload, of its header.
    #[prost(bytes = "bytes", tag = "2")]
    pub sha256: bytes::Bytes,
    /// Sealed bytes.
    #[prost(uint64, tag = "3")]
    pub sealed_bytes: u64,
    /// Plaintext bytes.
    #[prost(uint64, tag = "4")]
    pub plaintext_bytes: u64,
    /// Records in it: of a batch its records, of anything else 1.
    #[prost(uint32, tag = "5")]
    pub records: u32,
    /// 1 claimed, 2 vouched, 3 signed.
    #[prost(uint32, tag = "6")]
    pub assurance: u32,
    /// Its key was retired or revoked when it came.
    #[prost(bool, tag = "7")]
    pub key_not_active: bool,
    /// The first 16 bytes of the digest of the statement that its device went by; empty if it does not say.
    #[prost(bytes = "bytes", tag = "8")]
    pub statement: bytes::Bytes,
    /// When it came, microseconds since 1970 by this program's clock.
    #[prost(fixed64, tag = "9")]
    pub received_us: u64,
    /// The device key that signed its session: 16 bytes, proven; empty if it was not signed.
    #[prost(bytes = "bytes", tag = "10")]
    pub kid: bytes::Bytes,
    /// Its session was signed by a key that was not registered.
    #[prost(bool, tag = "11")]
    pub unknown_key: bool,
}

/// What a batch says of its device's lines; authentic since it was sealed.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Said {
    /// What will never come.
    #[prost(message, repeated, tag = "1")]
    pub gaps: Vec<SaidGap>,
    /// The run before this one on the same stream.
    #[prost(message, optional, tag = "2")]
    pub previous: Option<SaidLine>,
    /// The newest number of each stream.
    #[prost(message, repeated, tag = "3")]
    pub heartbeat: Vec<SaidLine>,
}

/// A declared gap, both ends included.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SaidGap {
    /// The stream.
    #[prost(string, tag = "1")]
    pub stream: String,
    /// The run.
    #[prost(fixed64, tag = "2")]
    pub run: u64,
    /// The first number.
    #[prost(uint64, tag = "3")]
    pub from: u64,
    /// The last number.
    #[prost(uint64, tag = "4")]
    pub to: u64,
    /// 0 unknown, 1 dropped by policy, 2 outbox damaged, 3 refused.
    #[prost(uint32, tag = "5")]
    pub reason: u32,
}

/// A line's newest number; 0 if it has none.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SaidLine {
    /// The stream.
    #[prost(string, tag = "1")]
    pub stream: String,
    /// The run.
    #[prost(fixed64, tag = "2")]
    pub run: u64,
    /// The number.
    #[prost(uint64, tag = "3")]
    pub last: u64,
}

impl Said {
    /// What a batch says; nothing if it says nothing.
    #[must_use]
    pub fn of(batch: &Batch) -> Option<Self> {
        if batch.gaps.is_empty() && batch.previous.is_none() && batch.heartbeat.is_empty() {
            return None;
        }
        let line = |line: &LineEnd| SaidLine {
            stream: line.stream.to_string(),
            run: line.run.get(),
            last: line.last.map_or(0, Seq::get),
        };
        let gaps = batch.gaps.iter().map(|gap| SaidGap {
            stream: gap.stream.to_string(),
            run: gap.run.get(),
            from: gap.from.get(),
            to: gap.to.get(),
            reason: match gap.reason {
                GapReason::Unknown => 0,
                GapReason::DroppedByPolicy => 1,
                GapReason::OutboxDamaged => 2,
                GapReason::Refused => 3,
            },
        });
        Some(Self {
            gaps: gaps.collect(),
            previous: batch.previous.as_ref().map(line),
            heartbeat: batch.heartbeat.iter().map(line).collect(),
        })
    }
}

impl Applied {
    /// The entry of a delivery.
    #[must_use]
    pub fn of(
        delivery: &Delivery,
        sealed_bytes: u64,
        key_not_active: bool,
        statement: Option<&[u8; 16]>,
    ) -> Self {
        Self {
            who: Some(Who::of(&delivery.identity)),
            sha256: bytes::Bytes::copy_from_slice(&delivery.envelope_sha256),
            sealed_bytes,
            plaintext_bytes: delivery.content.plaintext_len(),
            records: delivery
                .content
                .batch()
                .map_or(1, |b| u32::try_from(b.records.len()).unwrap_or(u32::MAX)),
            assurance: match delivery.custody.assurance {
                Assurance::Claimed => 1,
                Assurance::Vouched => 2,
                Assurance::Signed => 3,
            },
            key_not_active,
            statement: statement.map(|digest| bytes::Bytes::copy_from_slice(digest)).unwrap_or_default(),
            received_us: delivery.custody.received_us,
            kid: match delivery.origin {
                Origin::Signed(kid) => bytes::Bytes::copy_from_slice(kid.as_bytes()),
                Origin::Unsigned | Origin::UnknownKey(_) => bytes::Bytes::new(),
            },
            unknown_key: matches!(delivery.origin, Origin::UnknownKey(_)),
        }
    }

    /// The key that signed its session, if it was signed.
    #[must_use]
    pub fn signed_by(&self) -> Option<Kid> {
        <[u8; 16]>::try_from(&self.kid[..]).ok().map(Kid::from_bytes)
    }
}

/// An envelope that did not go to the sink and was answered for good.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SetAside {
    /// Its identity: of a poisoned envelope only what it claims.
    #[prost(message, optional, tag = "1")]
    pub who: Option<Who>,
    /// SHA-256 of its sealed bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub sha256: bytes::Bytes,
    /// The number of the registry's reason.
    #[prost(int32, tag = "3")]
    pub reason: i32,
    /// Whether its bytes are kept.
    #[prost(bool, tag = "4")]
    pub kept: bool,
    /// When it came.
    #[prost(fixed64, tag = "5")]
    pub received_us: u64,
}

/// Where the sink's end was, in the sink's own words.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Mark {
    /// What [`Sink::mark`](crate::sink::Sink::mark) gave.
    #[prost(bytes = "bytes", tag = "1")]
    pub mark: bytes::Bytes,
}

/// A piece of a checkpoint. It counts when all pieces of one number are there.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct CheckpointPart {
    /// Which checkpoint.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// Which piece, from 0.
    #[prost(uint32, tag = "2")]
    pub index: u32,
    /// Of how many.
    #[prost(uint32, tag = "3")]
    pub of: u32,
    /// Its bytes.
    #[prost(bytes = "bytes", tag = "4")]
    pub bytes: bytes::Bytes,
}

/// What the pieces of a checkpoint make together.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Checkpoint {
    /// The lines of each site.
    #[prost(message, repeated, tag = "1")]
    pub sites: Vec<SiteLines>,
    /// What is known of each line beyond its numbers.
    #[prost(message, repeated, tag = "2")]
    pub facts: Vec<LineFacts>,
    /// The sink's mark.
    #[prost(bytes = "bytes", tag = "3")]
    pub mark: bytes::Bytes,
    /// The device keys that have signed something that was applied.
    #[prost(message, repeated, tag = "4")]
    pub latches: Vec<Latch>,
    /// Such keys are not known any more: an earlier checkpoint was damaged.
    #[prost(bool, tag = "5")]
    pub latches_lost: bool,
}

/// A device key that has signed something that was applied.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Latch {
    /// The site.
    #[prost(string, tag = "1")]
    pub site: String,
    /// The device.
    #[prost(string, tag = "2")]
    pub device: String,
    /// The key: 16 bytes.
    #[prost(bytes = "bytes", tag = "3")]
    pub kid: bytes::Bytes,
    /// When its first signed envelope came.
    #[prost(fixed64, tag = "4")]
    pub since_us: u64,
}

impl Latch {
    /// As it is written.
    #[must_use]
    pub fn of(name: &DeviceName, kid: &Kid, since_us: u64) -> Self {
        Self {
            site: name.site.to_string(),
            device: name.device.to_string(),
            kid: bytes::Bytes::copy_from_slice(kid.as_bytes()),
            since_us,
        }
    }

    /// As it was meant.
    #[must_use]
    pub fn read(&self) -> Option<(DeviceName, Kid)> {
        let name = DeviceName { site: self.site.parse().ok()?, device: self.device.parse().ok()? };
        Some((name, Kid::from_bytes(<[u8; 16]>::try_from(&self.kid[..]).ok()?)))
    }
}

/// The lines of one site.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SiteLines {
    /// The site.
    #[prost(string, tag = "1")]
    pub site: String,
    /// Its lines, as hop writes them.
    #[prost(bytes = "bytes", tag = "2")]
    pub lines: bytes::Bytes,
}

/// What is known of a line beyond the numbers it holds: what a verification reports.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct LineFacts {
    /// Site, device, stream and run; the number is 0.
    #[prost(message, optional, tag = "1")]
    pub who: Option<Who>,
    /// Envelopes applied.
    #[prost(uint64, tag = "2")]
    pub envelopes: u64,
    /// Records applied.
    #[prost(uint64, tag = "3")]
    pub records: u64,
    /// Plaintext bytes applied.
    #[prost(uint64, tag = "4")]
    pub plaintext_bytes: u64,
    /// When the first came.
    #[prost(fixed64, tag = "5")]
    pub first_us: u64,
    /// When the last came.
    #[prost(fixed64, tag = "6")]
    pub last_us: u64,
    /// Conflicts, kept or not.
    #[prost(uint64, tag = "7")]
    pub conflicts: u64,
    /// Envelopes refused for good that claimed to be of this line.
    #[prost(uint64, tag = "8")]
    pub refused: u64,
    /// Numbers that the device declared as dropped by policy.
    #[prost(uint64, tag = "9")]
    pub dropped_by_policy: u64,
    /// The run before, if the first batch said.
    #[prost(message, optional, tag = "10")]
    pub previous: Option<SaidLine>,
    /// The newest number by the newest heartbeat; 0 if there was none.
    #[prost(uint64, tag = "11")]
    pub heartbeat_last: u64,
    /// When that heartbeat came; 0 if there was none.
    #[prost(fixed64, tag = "12")]
    pub heartbeat_us: u64,
    /// Resends that were recognised. They have no entries of their own and are written down here alone, so a kill forgets
    /// those since the last checkpoint.
    #[prost(uint64, tag = "13")]
    pub duplicates: u64,
    /// Of the applied envelopes, those whose session was signed by a registered key.
    #[prost(uint64, tag = "14")]
    pub signed: u64,
    /// Of the applied envelopes, those whose session was signed by a key that was not registered.
    #[prost(uint64, tag = "15")]
    pub unknown_key: u64,
    /// Of the refused envelopes, those whose session signature did not hold.
    #[prost(uint64, tag = "16")]
    pub refused_invalid: u64,
    /// Of the refused envelopes, those that were not signed, of a device that signs.
    #[prost(uint64, tag = "17")]
    pub refused_unsigned: u64,
    /// Of the refused envelopes, those that were signed by a key that was revoked.
    #[prost(uint64, tag = "18")]
    pub refused_revoked: u64,
    /// Of the refused envelopes, those that were signed by a key that was not registered, of a device that signs.
    #[prost(uint64, tag = "19")]
    pub refused_unknown_key: u64,
}

impl LineFacts {
    /// Counts one envelope more that was refused, if that was for its session signature.
    pub fn note_refused(&mut self, reason: ErrorReason) {
        match reason {
            ErrorReason::SignatureInvalid => self.refused_invalid += 1,
            ErrorReason::SignatureRequired => self.refused_unsigned += 1,
            ErrorReason::SignatureRevoked => self.refused_revoked += 1,
            ErrorReason::SignatureKeyUnknown => self.refused_unknown_key += 1,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::testing::batch;
    use prost::Message as _;

    /// Format 1 as it was first written: a ledger of today must be read for ever.
    #[test]
    fn an_applied_entry_has_these_bytes() {
        let mut delivery = batch("t", 1, 2);
        delivery.envelope_sha256 = [0xab; 32];
        let entry = Applied::of(&delivery, 600, true, Some(&[9; 16]));
        let committed = format!(
            "0a1a0a057069742d371201741a0363616e2101000000030000002801\
             1220{}18d80420{:02x}2802300238014210{}490100000000000000",
            "ab".repeat(32),
            delivery.content.plaintext().len(),
            "09".repeat(16),
        );
        assert_eq!(hex::encode(entry.encode_to_vec()), committed);
        assert_eq!(Applied::decode(&entry.encode_to_vec()[..]), Ok(entry));
    }

    /// The fields of a signed session, as they were first written.
    #[test]
    fn the_entry_of_a_signed_envelope_and_a_latch_have_these_bytes() {
        let mut delivery = batch("t", 1, 2);
        delivery.envelope_sha256 = [0xab; 32];
        let unsigned = Applied::of(&delivery, 600, false, None);
        let kid = Kid::from_bytes([0x5a; 16]);
        (delivery.origin, delivery.custody.assurance) = (Origin::Signed(kid), Assurance::Signed);
        let signed = Applied::of(&delivery, 600, false, None);
        let before = hex::encode(unsigned.encode_to_vec());
        let committed = format!("{}5210{}", before.replace("3002", "3003"), "5a".repeat(16));
        assert_eq!(hex::encode(signed.encode_to_vec()), committed);
        assert_eq!((signed.signed_by(), unsigned.signed_by()), (Some(kid), None));
        delivery.origin = Origin::UnknownKey(kid);
        let unknown = Applied::of(&delivery, 600, false, None);
        assert!(hex::encode(unknown.encode_to_vec()).ends_with("5801"));
        assert_eq!(unknown.signed_by(), None);
        let name: DeviceName = "pit-7/t".parse().unwrap();
        let latch = Latch::of(&name, &kid, 7);
        let committed = format!("0a057069742d371201741a10{}210700000000000000", "5a".repeat(16));
        assert_eq!(hex::encode(latch.encode_to_vec()), committed);
        assert_eq!(latch.read(), Some((name, kid)));
    }

    #[test]
    fn an_identity_comes_back_as_it_was() {
        let identity = crate::sink::testing::identity("Truck-1", 7);
        assert_eq!(Who::of(&identity).identity(), Ok(identity));
    }
}

//! A group: what one message of a lane's stream holds.
//!
//! JetStream syncs once for each message, whatever its size, so everything that waits goes out in one. All numbers are
//! little-endian; what is not drawn is zero.
//!
//! ```text
//! group  | head 64 | entry 32 | entry | ... | record head | record body | record head | record body | ... |
//!
//! head    0  magic "PHjg"            16  epoch of the writer         48  count u32
//!         4  CRC32C of 8..64         24  writer                      52  length u32, of the whole group
//!         8  version u16 = 1         32  expected                    56  CRC32C of all entries
//!        10  lane u8                 40  first position              60  number u32
//!        11  room u8
//!
//! entry   0  kind u16, 0 u16          8  at_ms                       24  CRC32C of the head
//!         4  length of the head      16  length of the body          28  CRC32C of the body
//! ```
//!
//! *Expected* is the sequence of the message that its writer took for the last one when it wrote this one, and which the broker was
//! told to compare. Where a group does not lie right behind that one, the broker has not compared: the group is void, and whoever
//! meets it says so ([`Group::fits`]). *Writer* is drawn afresh whenever a gateway becomes the owner, *number* counts its groups of this
//! lane: together they tell one's own group from somebody else's, when the answer to a publish was lost. A group without records is
//! what a new owner begins with, to fence whoever was the owner before. *Room* is 1 in one of those, if the newest messages before it did not
//! read: its first position is then further on than they can have reached, and what lies between may hold nothing.

use bytes::{BufMut as _, Bytes, BytesMut};
use pithead_spool::{Lane, Position, Record, RecordHead};

const MAGIC: [u8; 4] = *b"PHjg";
const VERSION: u16 = 1;
/// Of the head.
pub(super) const HEAD_BYTES: usize = 64;
/// Of each entry.
pub(super) const ENTRY_BYTES: usize = 32;

/// Who writes a group, and behind what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) lane: Lane,
    pub(super) epoch: u64,
    pub(super) writer: u64,
    /// Of this writer's groups in this lane.
    pub(super) number: u32,
    /// The sequence before it.
    pub(super) expected: u64,
    /// The position of its first record, or of the next one if it has none.
    pub(super) first: u64,
    /// Whether positions before it were left out, since it is not known what messages there hold.
    pub(super) room: bool,
}

/// A group that was read, of which head and entries are whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) stamp: Stamp,
    entries: Vec<Entry>,
    bytes: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    kind: u16,
    at_ms: u64,
    /// Where its head begins in the group.
    from: usize,
    head_bytes: usize,
    body_bytes: usize,
    head_crc: u32,
    body_crc: u32,
}

/// A record of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// As it was appended.
    Good(Position, Record),
    /// Its bytes have changed; with its head, if that has not.
    Damaged(Position, Option<RecordHead>),
}

/// Bytes that a record takes in a group.
pub(super) fn encoded_bytes(record: &Record) -> usize {
    ENTRY_BYTES + record.head.len() + record.body.len()
}

/// The bytes of a group.
pub(super) fn encode(stamp: &Stamp, records: &[Record]) -> Bytes {
    let length = HEAD_BYTES + records.iter().map(encoded_bytes).sum::<usize>();
    let mut out = BytesMut::with_capacity(length);
    out.put_slice(&MAGIC);
    out.put_u32_le(0);
    out.put_u16_le(VERSION);
    out.put_u8(stamp.lane.index() as u8);
    out.put_u8(stamp.room.into());
    out.put_bytes(0, 4);
    out.put_u64_le(stamp.epoch);
    out.put_u64_le(stamp.writer);
    out.put_u64_le(stamp.expected);
    out.put_u64_le(stamp.first);
    out.put_u32_le(records.len() as u32);
    out.put_u32_le(length as u32);
    out.put_u32_le(0);
    out.put_u32_le(stamp.number);
    for record in records {
        out.put_u16_le(record.kind);
        out.put_u16_le(0);
        out.put_u32_le(record.head.len() as u32);
        out.put_u64_le(record.at_ms);
        out.put_u64_le(record.body.len() as u64);
        out.put_u32_le(crc32c::crc32c(&record.head));
        out.put_u32_le(crc32c::crc32c(&record.body));
    }
    let entries = crc32c::crc32c(&out[HEAD_BYTES..]);
    out[56..60].copy_from_slice(&entries.to_le_bytes());
    let head = crc32c::crc32c(&out[8..HEAD_BYTES]);
    out[4..8].copy_from_slice(&head.to_le_bytes());
    for record in records {
        out.put_slice(&record.head);
        out.put_slice(&record.body);
    }
    out.freeze()
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    number(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    number(bytes, at).map(u64::from_le_bytes)
}

/// What a message of a lane was found to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Message {
    /// A group.
    Group(Group),
    /// A whole one of another version: it is not lost, and not for us.
    OtherVersion(u16),
    /// None of ours, or damaged so that its records cannot be told apart.
    Damaged,
}

impl Message {
    /// Reads a message.
    pub(super) fn decode(bytes: Bytes) -> Self {
        match version_of(&bytes) {
            None => Self::Damaged,
            Some(VERSION) => Group::decode(bytes).map_or(Self::Damaged, Self::Group),
            Some(other) => Self::OtherVersion(other),
        }
    }
}

/// The version of a message whose head is whole: magic, checksum and version stay where they are.
fn version_of(bytes: &[u8]) -> Option<u16> {
    let head = bytes.get(..HEAD_BYTES)?;
    let whole = head[..4] == MAGIC && crc32c::crc32c(&head[8..]) == u32_at(head, 4)?;
    number(head, 8).map(u16::from_le_bytes).filter(|_| whole)
}

impl Group {
    /// Reads a group. None where it is none of ours, of another version, or damaged so that its records cannot be told apart.
    pub(super) fn decode(bytes: Bytes) -> Option<Self> {
        let head = bytes.get(..HEAD_BYTES)?;
        if version_of(&bytes)? != VERSION {
            return None;
        }
        let stamp = Stamp {
            lane: Lane::from_index(usize::from(head[10]))?,
            epoch: u64_at(head, 16)?,
            writer: u64_at(head, 24)?,
            expected: u64_at(head, 32)?,
            first: u64_at(head, 40)?,
            number: u32_at(head, 60)?,
            room: head[11] == 1,
        };
        let count = u32_at(head, 48)? as usize;
        let mut from = HEAD_BYTES + count.checked_mul(ENTRY_BYTES)?;
        let table = bytes.get(HEAD_BYTES..from)?;
        if u32_at(head, 52)? as usize != bytes.len() || crc32c::crc32c(table) != u32_at(head, 56)? {
            return None;
        }
        let mut entries = Vec::with_capacity(count);
        for entry in table.chunks_exact(ENTRY_BYTES) {
            let entry = Entry {
                kind: number(entry, 0).map(u16::from_le_bytes)?,
                at_ms: u64_at(entry, 8)?,
                from,
                head_bytes: u32_at(entry, 4)? as usize,
                body_bytes: usize::try_from(u64_at(entry, 16)?).ok()?,
                head_crc: u32_at(entry, 24)?,
                body_crc: u32_at(entry, 28)?,
            };
            from = from.checked_add(entry.head_bytes)?.checked_add(entry.body_bytes)?;
            entries.push(entry);
        }
        (from == bytes.len()).then_some(Self { stamp, entries, bytes })
    }

    /// The position after its last record.
    pub(super) fn end(&self) -> u64 {
        self.stamp.first + self.entries.len() as u64
    }

    /// Whether it lies where its writer meant it to.
    pub(super) fn fits(&self, lane: Lane, sequence: u64) -> bool {
        self.stamp.lane == lane && self.stamp.expected.checked_add(1) == Some(sequence)
    }

    /// Whether it is that of this writer with this number.
    pub(super) fn is(&self, stamp: &Stamp) -> bool {
        (self.stamp.writer, self.stamp.number) == (stamp.writer, stamp.number)
    }

    /// When its first record was appended.
    pub(super) fn at_ms(&self) -> Option<u64> {
        self.entries.first().map(|entry| entry.at_ms)
    }

    /// Its records from a position on.
    pub(super) fn records(&self, from: u64) -> impl Iterator<Item = Found> + '_ {
        let skip = usize::try_from(from.saturating_sub(self.stamp.first)).unwrap_or(usize::MAX);
        (self.stamp.first..).zip(&self.entries).skip(skip).map(|(position, entry)| {
            let position = Position(position);
            let (head, body) = self.parts(entry);
            let head_is_whole = crc32c::crc32c(&head) == entry.head_crc;
            if head_is_whole && crc32c::crc32c(&body) == entry.body_crc {
                return Found::Good(position, Record::new(entry.kind, entry.at_ms, head, body));
            }
            Found::Damaged(position, head_is_whole.then(|| record_head(position, entry, head)))
        })
    }

    /// The heads of its records from a position on; a damaged body is found when it is read, and what has a damaged head is left
    /// out.
    pub(super) fn heads(&self, from: u64) -> impl Iterator<Item = RecordHead> + '_ {
        let skip = usize::try_from(from.saturating_sub(self.stamp.first)).unwrap_or(usize::MAX);
        (self.stamp.first..).zip(&self.entries).skip(skip).filter_map(|(position, entry)| {
            let (head, _) = self.parts(entry);
            (crc32c::crc32c(&head) == entry.head_crc).then(|| record_head(Position(position), entry, head))
        })
    }

    fn parts(&self, entry: &Entry) -> (Bytes, Bytes) {
        let body = entry.from + entry.head_bytes;
        (self.bytes.slice(entry.from..body), self.bytes.slice(body..body + entry.body_bytes))
    }
}

fn record_head(position: Position, entry: &Entry, head: Bytes) -> RecordHead {
    let mut found = RecordHead::default();
    found.position = position;
    (found.kind, found.at_ms, found.head) = (entry.kind, entry.at_ms, head);
    found.body_bytes = u32::try_from(entry.body_bytes).unwrap_or(u32::MAX);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp {
        lane: Lane::Second,
        epoch: 3,
        writer: 0x1122_3344_5566_7788,
        number: 5,
        expected: 41,
        first: 1_000,
        room: false,
    };

    fn two() -> [Record; 2] {
        [
            Record::new(1, 1_700_000_000_000, &b"who"[..], &b"sealed"[..]),
            Record::new(2, 7, &b""[..], &b"x"[..]),
        ]
    }

    #[test]
    fn a_group_reads_back_as_it_was_written_and_knows_where_it_belongs() {
        let group = Group::decode(encode(&STAMP, &two())).unwrap();
        assert_eq!((group.stamp, group.end(), group.at_ms()), (STAMP, 1_002, Some(1_700_000_000_000)));
        let all: Vec<Found> = group.records(0).collect();
        let [one, other] = two();
        assert_eq!(all, [Found::Good(Position(1_000), one), Found::Good(Position(1_001), other)]);
        assert_eq!(group.records(1_001).count(), 1);
        assert_eq!(group.heads(1_000).map(|head| head.body_bytes).collect::<Vec<_>>(), [6, 1]);
        assert!(
            group.fits(Lane::Second, 42) && !group.fits(Lane::Second, 43) && !group.fits(Lane::First, 42)
        );
        assert!(group.is(&STAMP) && !group.is(&Stamp { number: 6, ..STAMP }));
        let leap = Stamp { room: true, ..STAMP };
        assert_eq!(Group::decode(encode(&leap, &[])).unwrap().stamp, leap);
    }

    #[test]
    fn the_bytes_of_a_group_are_fixed() {
        let bytes = hex::encode(encode(&STAMP, &two()));
        let expected = include_str!("group.hex").split_whitespace().collect::<String>();
        assert_eq!(bytes, expected);
        let fence = Group::decode(encode(&STAMP, &[])).unwrap();
        assert_eq!((fence.end(), fence.at_ms(), fence.records(0).count()), (1_000, None, 0));
    }

    #[test]
    fn every_bit_that_is_flipped_costs_one_record_or_the_group_and_is_never_served() {
        let whole = encode(&STAMP, &two());
        let good: Vec<Found> = Group::decode(whole.clone()).unwrap().records(0).collect();
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let Some(group) = Group::decode(bytes.into()) else { continue };
            let found: Vec<Found> = group.records(0).collect();
            let same = found.iter().zip(&good).filter(|(found, good)| found == good).count();
            let damaged = found.iter().filter(|one| matches!(one, Found::Damaged(..))).count();
            assert_eq!((same, damaged), (1, 1), "bit {bit}");
        }
        for cut in 0..whole.len() {
            assert_eq!(Group::decode(whole.slice(..cut)), None, "{cut}");
        }
    }

    #[test]
    fn a_whole_group_of_another_version_is_told_from_a_damaged_one() {
        let mut bytes = encode(&STAMP, &two()).to_vec();
        assert!(matches!(Message::decode(bytes.clone().into()), Message::Group(_)));
        bytes[8] = 2;
        assert_eq!(Message::decode(bytes.clone().into()), Message::Damaged);
        let sum = crc32c::crc32c(&bytes[8..HEAD_BYTES]);
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(Message::decode(bytes.into()), Message::OtherVersion(2));
        assert_eq!(Message::decode(Bytes::from_static(b"PHjg")), Message::Damaged);
    }

    #[test]
    fn a_damaged_body_is_still_named() {
        let mut bytes = encode(&STAMP, &two()).to_vec();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        let group = Group::decode(bytes.into()).unwrap();
        let found: Vec<Found> = group.records(1_001).collect();
        let [Found::Damaged(Position(1_001), Some(head))] = &found[..] else { panic!("{found:?}") };
        assert_eq!((head.kind, head.at_ms, head.body_bytes), (2, 7, 1));
        assert_eq!(group.heads(0).count(), 2);
    }
}

//! The bytes on disk, drawn in the crate's documentation: segment header, group head, record entry, cursor slot.
//!
//! Everything is little-endian. Decoding is total: any bytes give a value that can only be right, or `None`.

/// What segments, groups and slots are aligned to. A page is written whole and once, so no sector that holds durable bytes is
/// ever written again, and overwriting a recycled segment reads nothing from the disk first.
pub(crate) const PAGE_BYTES: u64 = 4096;
pub(crate) const PAGE: usize = PAGE_BYTES as usize;
const PAGE_BITS: u8 = 12;

pub(crate) const VERSION: u16 = 1;
pub(crate) const SEGMENT_HEADER_BYTES: usize = 64;
pub(crate) const GROUP_HEAD_BYTES: usize = 64;
pub(crate) const ENTRY_BYTES: usize = 48;
pub(crate) const CURSOR_SLOT_BYTES: usize = 64;
/// The cursor file: two slots, a page each.
pub(crate) const CURSOR_FILE_BYTES: u64 = 2 * PAGE_BYTES;

const SEGMENT_MAGIC: [u8; 8] = *b"PHSPOOL\0";
const GROUP_MAGIC: [u8; 4] = *b"PHgr";
const CURSOR_MAGIC: [u8; 4] = *b"PHcu";

pub(crate) const fn page_up(bytes: u64) -> u64 {
    bytes.div_ceil(PAGE_BYTES) * PAGE_BYTES
}

pub(crate) fn crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

fn seeded_crc(salt: u64, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(mix(salt) as u32, bytes)
}

/// One step of splitmix64: spreads a counter over all 64 bits.
pub(crate) const fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Writes fields one behind the other into a block of fixed size.
struct Put<'a>(&'a mut [u8], usize);

impl Put<'_> {
    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0[self.1..self.1 + bytes.len()].copy_from_slice(bytes);
        self.1 += bytes.len();
        self
    }
    fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }
    fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }
    fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

/// The first page of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) lane: u8,
    pub(crate) number: u64,
    pub(crate) salt: u64,
    /// Position of the first record. Everything before it was durable when this header was written.
    pub(crate) first: u64,
    pub(crate) bytes: u64,
}

/// What the first page of a file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderRead {
    Valid(SegmentHeader),
    Newer(u16),
    Damaged,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; PAGE] {
        let mut page = [0; PAGE];
        Put(&mut page, 0)
            .bytes(&SEGMENT_MAGIC)
            .u16(VERSION)
            .bytes(&[self.lane, PAGE_BITS])
            .u32(0)
            .u64(self.number)
            .u64(self.salt)
            .u64(self.first)
            .u64(self.bytes);
        let sum = crc(&page[..SEGMENT_HEADER_BYTES]);
        page[12..16].copy_from_slice(&sum.to_le_bytes());
        page
    }

    pub(crate) fn decode(page: &[u8]) -> HeaderRead {
        if page.len() < SEGMENT_HEADER_BYTES || page[..8] != SEGMENT_MAGIC {
            return HeaderRead::Damaged;
        }
        let mut block: [u8; SEGMENT_HEADER_BYTES] = array(page, 0);
        block[12..16].fill(0);
        if crc(&block) != u32_at(page, 12) {
            return HeaderRead::Damaged;
        }
        let version = u16_at(page, 8);
        if version != VERSION {
            return HeaderRead::Newer(version);
        }
        if page[11] != PAGE_BITS {
            return HeaderRead::Damaged;
        }
        HeaderRead::Valid(Self {
            lane: page[10],
            number: u64_at(page, 16),
            salt: u64_at(page, 24),
            first: u64_at(page, 32),
            bytes: u64_at(page, 40),
        })
    }
}

/// The first 64 bytes of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GroupHead {
    pub(crate) salt: u64,
    /// Position of the group's first record.
    pub(crate) first: u64,
    /// Every position before this one was durable when the group was written.
    pub(crate) durable: u64,
    /// Every position before this one was acknowledged when the group was written.
    pub(crate) cursor: u64,
    pub(crate) count: u32,
    /// Length of the group without its padding.
    pub(crate) bytes: u32,
    /// Length of head, entries and record heads.
    pub(crate) prefix: u32,
    /// Over all entries: ties the group together, so that sectors of an older, cut group at the same place cannot stand in.
    pub(crate) entries_crc: u32,
}

impl GroupHead {
    pub(crate) fn encode(&self, out: &mut [u8]) {
        Put(out, 0)
            .bytes(&GROUP_MAGIC)
            .u32(0)
            .u64(self.salt)
            .u64(self.first)
            .u64(self.durable)
            .u64(self.cursor)
            .u32(self.count)
            .u32(self.bytes)
            .u32(self.prefix)
            .u32(self.entries_crc)
            .u64(0);
        // Not seeded: the salt is among the bytes, and a seed made of it could cancel out a change to it.
        let sum = crc(&out[8..GROUP_HEAD_BYTES]);
        out[4..8].copy_from_slice(&sum.to_le_bytes());
    }

    /// A group head that carries `salt`, or any salt of its own when none is known.
    pub(crate) fn decode(block: &[u8], salt: Option<u64>) -> Option<Self> {
        if block.len() < GROUP_HEAD_BYTES || block[..4] != GROUP_MAGIC {
            return None;
        }
        let own = u64_at(block, 8);
        if salt.is_some_and(|salt| salt != own) || crc(&block[8..GROUP_HEAD_BYTES]) != u32_at(block, 4) {
            return None;
        }
        let head = Self {
            salt: own,
            first: u64_at(block, 16),
            durable: u64_at(block, 24),
            cursor: u64_at(block, 32),
            count: u32_at(block, 40),
            bytes: u32_at(block, 44),
            prefix: u32_at(block, 48),
            entries_crc: u32_at(block, 52),
        };
        let table = GROUP_HEAD_BYTES as u64 + u64::from(head.count) * ENTRY_BYTES as u64;
        let sane = head.count > 0
            && table <= u64::from(head.prefix)
            && head.prefix <= head.bytes
            && head.cursor <= head.durable
            && head.durable <= head.first
            && head.first.checked_add(u64::from(head.count)).is_some();
        sane.then_some(head)
    }

    /// Whether the block says that it is a group head of this segment, valid or not.
    pub(crate) fn claims(block: &[u8], salt: u64) -> bool {
        block.len() >= GROUP_HEAD_BYTES && block[..4] == GROUP_MAGIC && u64_at(block, 8) == salt
    }
}

/// One record's line in the table behind the group head. Its place follows from the record's index alone, so one damaged entry
/// costs one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) position: u64,
    pub(crate) at_ms: u64,
    pub(crate) kind: u16,
    /// Offsets count from the start of the group.
    pub(crate) head_at: u32,
    pub(crate) head_bytes: u32,
    pub(crate) body_at: u32,
    pub(crate) body_bytes: u32,
    pub(crate) head_crc: u32,
    pub(crate) body_crc: u32,
}

impl Entry {
    pub(crate) fn encode(&self, salt: u64, out: &mut [u8]) {
        Put(out, 0)
            .u32(0)
            .u16(self.kind)
            .u16(0)
            .u64(self.position)
            .u64(self.at_ms)
            .u32(self.head_at)
            .u32(self.head_bytes)
            .u32(self.body_at)
            .u32(self.body_bytes)
            .u32(self.head_crc)
            .u32(self.body_crc);
        let sum = seeded_crc(salt, &out[4..ENTRY_BYTES]);
        out[..4].copy_from_slice(&sum.to_le_bytes());
    }

    pub(crate) fn decode(block: &[u8], salt: u64) -> Option<Self> {
        if block.len() < ENTRY_BYTES || seeded_crc(salt, &block[4..ENTRY_BYTES]) != u32_at(block, 0) {
            return None;
        }
        let entry = Self {
            kind: u16_at(block, 4),
            position: u64_at(block, 8),
            at_ms: u64_at(block, 16),
            head_at: u32_at(block, 24),
            head_bytes: u32_at(block, 28),
            body_at: u32_at(block, 32),
            body_bytes: u32_at(block, 36),
            head_crc: u32_at(block, 40),
            body_crc: u32_at(block, 44),
        };
        let sane = entry.head_at.checked_add(entry.head_bytes).is_some()
            && entry.body_at.checked_add(entry.body_bytes).is_some();
        sane.then_some(entry)
    }
}

/// One of the two slots of the cursor file; the valid one with the higher sequence counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CursorSlot {
    pub(crate) sequence: u64,
    /// Every position before this one is acknowledged.
    pub(crate) cursor: u64,
    /// Every position before this one was durable when the slot was written.
    pub(crate) durable: u64,
}

impl CursorSlot {
    pub(crate) fn encode(&self) -> [u8; PAGE] {
        let mut page = [0; PAGE];
        Put(&mut page, 0).bytes(&CURSOR_MAGIC).u32(0).u64(self.sequence).u64(self.cursor).u64(self.durable);
        let sum = crc(&page[8..CURSOR_SLOT_BYTES]);
        page[4..8].copy_from_slice(&sum.to_le_bytes());
        page
    }

    pub(crate) fn decode(page: &[u8]) -> Option<Self> {
        if page.len() < CURSOR_SLOT_BYTES
            || page[..4] != CURSOR_MAGIC
            || crc(&page[8..CURSOR_SLOT_BYTES]) != u32_at(page, 4)
        {
            return None;
        }
        let slot = Self { sequence: u64_at(page, 8), cursor: u64_at(page, 16), durable: u64_at(page, 24) };
        (slot.cursor <= slot.durable).then_some(slot)
    }

    /// Where the slot with this sequence lies: the two take turns, so a torn write never touches the last good one.
    pub(crate) const fn offset(&self) -> u64 {
        (self.sequence % 2) * PAGE_BYTES
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn head() -> GroupHead {
        let (salt, count) = (0x1234_5678_9abc_def0, 2);
        GroupHead { salt, first: 7, durable: 7, cursor: 3, count, bytes: 400, prefix: 200, entries_crc: 9 }
    }

    #[test]
    fn every_single_bit_flip_of_a_segment_header_is_noticed() {
        let header = SegmentHeader { lane: 1, number: 2, salt: 3, first: 4, bytes: 1 << 20 };
        let page = header.encode();
        assert_eq!(SegmentHeader::decode(&page), HeaderRead::Valid(header));
        for bit in 0..SEGMENT_HEADER_BYTES * 8 {
            let mut broken = page;
            broken[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&broken), HeaderRead::Damaged, "bit {bit}");
        }
    }

    #[test]
    fn every_single_bit_flip_of_a_group_head_an_entry_and_a_slot_is_noticed() {
        let mut block = [0; GROUP_HEAD_BYTES];
        head().encode(&mut block);
        assert_eq!(GroupHead::decode(&block, Some(head().salt)), Some(head()));
        for bit in 0..block.len() * 8 {
            let mut broken = block;
            broken[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(GroupHead::decode(&broken, None), None, "bit {bit}");
        }
        let entry = Entry {
            position: 1,
            at_ms: 2,
            kind: 3,
            head_at: 4,
            head_bytes: 5,
            body_at: 6,
            body_bytes: 7,
            head_crc: 8,
            body_crc: 9,
        };
        let mut block = [0; ENTRY_BYTES];
        entry.encode(11, &mut block);
        assert_eq!(Entry::decode(&block, 11), Some(entry));
        for bit in 0..block.len() * 8 {
            let mut broken = block;
            broken[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Entry::decode(&broken, 11), None, "bit {bit}");
        }
        let slot = CursorSlot { sequence: 5, cursor: 6, durable: 7 };
        let page = slot.encode();
        assert_eq!(CursorSlot::decode(&page), Some(slot));
        for bit in 0..CURSOR_SLOT_BYTES * 8 {
            let mut broken = page;
            broken[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(CursorSlot::decode(&broken), None, "bit {bit}");
        }
    }

    #[test]
    fn bytes_of_another_salt_do_not_validate() {
        let mut block = [0; GROUP_HEAD_BYTES];
        head().encode(&mut block);
        assert_eq!(GroupHead::decode(&block, Some(head().salt + 1)), None);
    }

    #[test]
    fn a_newer_version_is_told_from_damage() {
        let mut page = SegmentHeader { lane: 0, number: 0, salt: 0, first: 0, bytes: 8192 }.encode();
        page[8] = 2;
        page[12..16].fill(0);
        let sum = crc(&page[..SEGMENT_HEADER_BYTES]);
        page[12..16].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(SegmentHeader::decode(&page), HeaderRead::Newer(2));
    }
}

//! Going through a segment group by group, and stepping over what is damaged. Recovery and readers share it, so that what one
//! calls damaged the other does not serve.

use crate::format::{ENTRY_BYTES, Entry, GROUP_HEAD_BYTES, GroupHead, PAGE, PAGE_BYTES, crc, page_up};
use crate::fs::FileRef;
use crate::record::{Position, Record, RecordHead};
use crate::shared::Segment;
use bytes::Bytes;
use std::io;

/// The most positions that one damaged place stands for; a larger hole is met in pieces, so that it takes no memory to tell of.
const MAX_DAMAGED: u64 = 65_536;

/// The written part of a segment.
pub(crate) struct Extent<'a> {
    pub(crate) file: &'a FileRef,
    pub(crate) salt: u64,
    /// Groups lie before this offset.
    pub(crate) limit: u64,
    /// Positions before this one are known to be in here.
    pub(crate) known: u64,
    /// Positions from here on belong to a later segment.
    pub(crate) until: u64,
    /// Take what the disk does not give for damaged, instead of passing the error on.
    pub(crate) tolerant: bool,
}

/// A group, or the place where one must have been.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    pub(crate) offset: u64,
    pub(crate) first: u64,
    pub(crate) count: u64,
    /// Without padding; for a damaged one, up to the next group.
    pub(crate) bytes: u64,
    pub(crate) head: Option<GroupHead>,
}

impl Group {
    pub(crate) const fn end(&self) -> u64 {
        self.first + self.count
    }

    pub(crate) const fn end_offset(&self) -> u64 {
        page_up(self.offset + self.bytes)
    }
}

/// One record of a group, as far as it could be read.
pub(crate) enum Found {
    Good { position: u64, record: Record, body_bytes: u32 },
    Damaged { position: u64, head: Option<RecordHead> },
}

impl Found {
    pub(crate) const fn position(&self) -> u64 {
        match self {
            Self::Good { position, .. } | Self::Damaged { position, .. } => *position,
        }
    }
}

impl<'a> Extent<'a> {
    /// Of a segment whose ends are known.
    pub(crate) fn of(segment: &'a Segment, tolerant: bool) -> Self {
        Self {
            file: &segment.file,
            salt: segment.salt,
            limit: segment.end_offset,
            known: segment.end,
            until: segment.end,
            tolerant,
        }
    }

    /// Reads `bytes`; what lies behind the end of the file reads as zeroes, and so does what the disk refuses when tolerant.
    pub(crate) fn read(&self, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; bytes];
        match self.file.read_at(&mut buffer, offset) {
            Ok(()) => return Ok(buffer),
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof && !self.tolerant => {
                return Err(error);
            }
            Err(_) => {}
        }
        for (index, page) in buffer.chunks_mut(PAGE).enumerate() {
            if self.file.read_at(page, offset + index as u64 * PAGE_BYTES).is_err() {
                page.fill(0);
            }
        }
        Ok(buffer)
    }

    fn head_at(&self, offset: u64, expect: u64) -> io::Result<Option<GroupHead>> {
        if offset + PAGE_BYTES > self.limit {
            return Ok(None);
        }
        let block = self.read(offset, GROUP_HEAD_BYTES)?;
        Ok(self.check(&block, offset, expect))
    }

    fn check(&self, block: &[u8], offset: u64, expect: u64) -> Option<GroupHead> {
        GroupHead::decode(block, Some(self.salt)).filter(|head| {
            head.first >= expect && head.first < self.until && offset + u64::from(head.bytes) <= self.limit
        })
    }

    /// The group at `offset`, whose first record should have the position `expect`; or the damaged place there, up to the next
    /// group that is sound. `None` where the segment ends.
    pub(crate) fn group(&self, offset: u64, expect: u64) -> io::Result<Option<Group>> {
        let sound = |offset, head: GroupHead| Group {
            offset,
            first: head.first,
            count: u64::from(head.count),
            bytes: u64::from(head.bytes),
            head: Some(head),
        };
        let mut next = self.head_at(offset, expect)?.map(|head| (offset, head));
        if next.is_none() {
            next = self.scan(offset + PAGE_BYTES, expect)?;
            // Where another process writes while we look, the group may have come between the two looks; a later one proves
            // that it was on disk then.
            if let (Some(_), Some(head)) = (&next, self.head_at(offset, expect)?) {
                next = Some((offset, head));
            }
        }
        let damaged = |first_after: u64, end: u64| Group {
            offset,
            first: expect,
            count: (first_after - expect).min(MAX_DAMAGED),
            bytes: end.saturating_sub(offset),
            head: None,
        };
        Ok(match next {
            Some((at, head)) if head.first == expect => Some(sound(at, head)),
            Some((at, head)) => Some(damaged(head.first, at)),
            None if expect < self.known => Some(damaged(self.known, self.limit)),
            None => None,
        })
    }

    /// Looks for a sound group head page by page. A page inside a record cannot pass for one: the salt is not known outside.
    fn scan(&self, from: u64, expect: u64) -> io::Result<Option<(u64, GroupHead)>> {
        const STEP: u64 = 64 * PAGE_BYTES;
        let mut at = from;
        while at + PAGE_BYTES <= self.limit {
            let bytes = STEP.min(self.limit - at);
            let buffer = self.read(at, bytes as usize)?;
            for (index, page) in buffer.chunks_exact(PAGE).enumerate() {
                let offset = at + index as u64 * PAGE_BYTES;
                if let Some(head) = self.check(page, offset, expect) {
                    return Ok(Some((offset, head)));
                }
            }
            at += bytes;
        }
        Ok(None)
    }

    /// The records of a group. Without bodies, a record is good when its entry and head are.
    pub(crate) fn load(&self, group: &Group, bodies: bool) -> io::Result<Vec<Found>> {
        let length = match &group.head {
            Some(head) if !bodies => u64::from(head.prefix),
            _ => group.bytes,
        };
        let buffer = Bytes::from(self.read(group.offset, length as usize)?);
        Ok((0..group.count).map(|index| self.record(group, &buffer, index, bodies)).collect())
    }

    fn record(&self, group: &Group, buffer: &Bytes, index: u64, bodies: bool) -> Found {
        let position = group.first + index;
        let slice = |at: u32, bytes: u32| {
            let end = at as usize + bytes as usize;
            (end <= buffer.len()).then(|| buffer.slice(at as usize..end))
        };
        let at = GROUP_HEAD_BYTES + index as usize * ENTRY_BYTES;
        let entry = buffer
            .get(at..at + ENTRY_BYTES)
            .and_then(|block| Entry::decode(block, self.salt))
            .filter(|entry| entry.position == position);
        let Some(entry) = entry else { return Found::Damaged { position, head: None } };
        let Some(head) = slice(entry.head_at, entry.head_bytes).filter(|head| crc(head) == entry.head_crc)
        else {
            return Found::Damaged { position, head: None };
        };
        let body = if bodies {
            slice(entry.body_at, entry.body_bytes).filter(|body| crc(body) == entry.body_crc)
        } else {
            Some(Bytes::new())
        };
        match body {
            Some(body) => {
                let record = Record { kind: entry.kind, at_ms: entry.at_ms, head, body };
                Found::Good { position, record, body_bytes: entry.body_bytes }
            }
            None => {
                let (kind, at_ms, body_bytes) = (entry.kind, entry.at_ms, entry.body_bytes);
                let head = RecordHead { position: Position(position), kind, at_ms, head, body_bytes };
                Found::Damaged { position, head: Some(head) }
            }
        }
    }

    /// Whether every byte of the group that counts is as it was written.
    pub(crate) fn is_whole(&self, group: &Group) -> io::Result<bool> {
        let Some(head) = &group.head else { return Ok(false) };
        let table = ENTRY_BYTES * head.count as usize;
        let entries = self.read(group.offset + GROUP_HEAD_BYTES as u64, table)?;
        if crc(&entries) != head.entries_crc {
            return Ok(false);
        }
        Ok(self.load(group, true)?.iter().all(|found| matches!(found, Found::Good { .. })))
    }
}

//! From whatever is in the directory to a spool that serves.
//!
//! A group is written only after the sync of the one before it, so a sound group head proves everything before it to have been
//! durable. What is damaged before such a proof is corruption: stepped over, named, counted. What is damaged after the last one
//! belongs to a group whose sync never returned, which nobody was told about: a torn tail, cut. The proofs are a later group's
//! head, a later segment's header, and the closing mark in the cursor file.
//!
//! Nothing in here fails because of what bytes say (a newer version excepted, which is no damage), and nothing asks for a
//! human: a lane whose last segment is beyond use goes on in a new one.

use crate::cursor::CursorFile;
use crate::error::OpenError;
use crate::format::{GROUP_HEAD_BYTES, GroupHead, HeaderRead, PAGE, PAGE_BYTES, SegmentHeader};
use crate::fs::{FileRef, Fs};
use crate::options::{Options, Verify};
use crate::owner::{Active, Writer};
use crate::read::{CorruptRange, note};
use crate::record::{Lane, Position};
use crate::segment::{Name, damaged_name, segment_name};
use crate::shared::{LaneState, Segment, Spare};
use crate::walk::{Extent, Found, Group};
use std::collections::VecDeque;
use std::path::Path;

/// The most ranges that [`Recovery::corrupt`] names; all are counted.
pub const MAX_NAMED_RANGES: usize = 1024;

/// Unreadable segments kept beside the log for whoever wants to look; the oldest is removed for a new one.
const MAX_DAMAGED_FILES: usize = 2;

/// What `open` found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovery {
    /// Records that are kept and not acknowledged, in all lanes, damaged ones included.
    pub records: u64,
    /// Bytes of torn groups that were cut. Nobody had been told that they were durable.
    pub truncated_bytes: u64,
    /// Records in those groups, as far as their head could be read.
    pub truncated_records: u64,
    /// Records that were durable once and are damaged now, not acknowledged yet; at most [`MAX_NAMED_RANGES`] ranges. With
    /// [`Verify::Heads`], damaged bodies are named when they are read instead.
    pub corrupt: Vec<CorruptRange>,
    /// All such records, named or not.
    pub corrupt_records: u64,
    /// Segments that were unreadable as a whole and are set aside.
    pub damaged_segments: u64,
}

/// A lane, ready to go on.
pub(crate) struct Recovered {
    pub(crate) state: LaneState,
    pub(crate) writer: Writer,
    pub(crate) allocated: u64,
    /// The highest number of a spare's name.
    pub(crate) spare_number: u64,
}

/// A segment file whose header, or first group, can be read.
struct Opened {
    number: u64,
    name: String,
    file: FileRef,
    header: SegmentHeader,
    length: u64,
    damaged: bool,
}

/// The end of a lane as far as it is proven.
struct Tail {
    end: u64,
    end_offset: u64,
    /// Nothing is wrong with what lies before `end_offset`.
    clean: bool,
}

/// What lies in a lane's folder. Finding out changes nothing.
pub(crate) struct Contents {
    cursor_file: CursorFile,
    opened: Vec<Opened>,
    /// Name, number and length of each.
    spares: Vec<(String, u64, u64)>,
    /// Left behind half made.
    unfinished: Vec<String>,
    /// Called segments, and the content is that of another one.
    strangers: Vec<String>,
    /// Number and length of segments of which neither header nor first group can be read.
    unreadable: Vec<(u64, u64)>,
    /// The same of those that were set aside before.
    set_aside: Vec<(u64, u64)>,
    /// The highest number of a segment's name.
    highest: Option<u64>,
}

impl Contents {
    pub(crate) fn of(fs: &dyn Fs, dir: &Path, lane: Lane) -> Result<Self, OpenError> {
        let io = |source| OpenError::from_io(dir, source);
        let mut contents = Self {
            cursor_file: CursorFile::open(fs, dir),
            opened: Vec::new(),
            spares: Vec::new(),
            unfinished: Vec::new(),
            strangers: Vec::new(),
            unreadable: Vec::new(),
            set_aside: Vec::new(),
            highest: None,
        };
        let mut files = fs.list(dir).map_err(io)?;
        files.sort();
        for (name, length) in files {
            match Name::parse(&name) {
                Name::Other => {}
                Name::Unfinished => contents.unfinished.push(name),
                Name::Damaged(number) => contents.set_aside.push((number, length)),
                Name::Spare(number) => contents.spares.push((name, number, length)),
                Name::Segment(number) => {
                    contents.highest = contents.highest.max(Some(number));
                    let path = dir.join(&name);
                    let file = fs.open(&path).map_err(io)?;
                    match identify(&file, number, lane, length) {
                        Identity::Segment { header, damaged } => {
                            contents.opened.push(Opened { number, name, file, header, length, damaged });
                        }
                        Identity::Stranger => contents.strangers.push(name),
                        Identity::Newer(version) => return Err(OpenError::Newer { path, version }),
                        Identity::Unreadable => contents.unreadable.push((number, length)),
                    }
                }
            }
        }
        Ok(contents)
    }

    /// Numbers and salts of the segments: equal twice in a row when nobody took one into use or gave one back meanwhile.
    pub(crate) fn generation(&self) -> Vec<(u64, u64)> {
        self.opened.iter().map(|one| (one.number, one.header.salt)).collect()
    }

    pub(crate) fn allocated(&self) -> u64 {
        let segments = self.opened.iter().map(|one| one.length);
        let others = self.unreadable.iter().chain(&self.set_aside).map(|(_, length)| *length);
        segments.chain(others).chain(self.spares.iter().map(|(_, _, length)| *length)).sum()
    }
}

/// A lane as its bytes show it.
pub(crate) struct Layout {
    pub(crate) segments: VecDeque<Segment>,
    pub(crate) cursor: u64,
    pub(crate) end: u64,
    tail: Option<Tail>,
}

impl Layout {
    /// Lays the segments out and finds where the lane begins and ends. Changes nothing.
    pub(crate) fn of(contents: &Contents, lane: Lane, report: &mut Recovery) -> Self {
        let mark = contents.cursor_file.last();
        let (mut cursor, mut durable) = (mark.cursor, mark.durable);
        let opened = &contents.opened;
        let mut segments = VecDeque::with_capacity(opened.len());
        let mut tail = None;
        for (index, one) in opened.iter().enumerate() {
            let next_first = opened.get(index + 1).map(|next| next.header.first);
            let first = one.header.first;
            durable = durable.max(first);
            let mut extent = Extent {
                file: &one.file,
                salt: one.header.salt,
                limit: one.length,
                known: next_first.unwrap_or(durable),
                until: next_first.unwrap_or(u64::MAX),
                tolerant: true,
            };
            let found = match next_first {
                Some(next) => {
                    let end_offset = last_offset(&extent, first, next, &mut cursor);
                    Tail { end: next, end_offset, clean: !one.damaged }
                }
                None => find_end(&mut extent, first, &mut durable, &mut cursor, report),
            };
            segments.push_back(Segment {
                number: one.number,
                name: one.name.clone(),
                file: FileRef::clone(&one.file),
                salt: one.header.salt,
                first,
                end: found.end.max(first),
                end_offset: found.end_offset,
                bytes: one.length,
                spent: one.damaged || one.length != one.header.bytes,
            });
            tail = Some(found);
        }

        // Positions are never given out twice once they were durable, even when the segment that held them is gone.
        let end = tail.as_ref().map_or(0, |tail| tail.end).max(durable).max(cursor);
        if let Some(last) = segments.back_mut() {
            last.end = end.max(last.first);
        }
        let front = segments.front().map_or(end, |front| front.first);
        // Where no segment is left at all, everything up to the end is lost, and is named.
        if !contents.unreadable.is_empty() || segments.is_empty() {
            report.damaged_segments += contents.unreadable.len() as u64;
            missing(report, lane, cursor, front);
        }
        // What lies before the first segment was given back, on the word of a cursor that was newer than the one that is
        // left.
        cursor = cursor.max(front);
        report.records += end - cursor;
        Self { segments, cursor, end, tail }
    }
}

pub(crate) fn recover(
    fs: &dyn Fs,
    dir: &Path,
    lane: Lane,
    options: &Options,
    report: &mut Recovery,
) -> Result<Recovered, OpenError> {
    let io = |source| OpenError::from_io(dir, source);
    let contents = Contents::of(fs, dir, lane)?;
    let mut allocated: u64 = contents.opened.iter().map(|one| one.length).sum();
    // A stranger was renamed back by a crash: a spare that was being taken into use under its next number.
    for name in contents.unfinished.iter().chain(&contents.strangers) {
        fs.remove(&dir.join(name)).map_err(io)?;
    }
    let (mut spares, mut spare_number) = (VecDeque::new(), 0);
    for (name, number, length) in &contents.spares {
        spare_number = spare_number.max(*number);
        let path = dir.join(name);
        match fs.open(&path) {
            Ok(file) if *length == options.segment_bytes => {
                spares.push_back(Spare { name: name.clone(), file });
                allocated += length;
            }
            Ok(_) | Err(_) => fs.remove(&path).map_err(io)?,
        }
    }
    for (number, _) in &contents.unreadable {
        fs.rename(&dir.join(segment_name(*number)), &dir.join(damaged_name(*number))).map_err(io)?;
    }
    let mut set_aside = [contents.set_aside.as_slice(), &contents.unreadable].concat();
    set_aside.sort_unstable();
    while set_aside.len() > MAX_DAMAGED_FILES {
        let (number, _) = set_aside.remove(0);
        fs.remove(&dir.join(damaged_name(number))).map_err(io)?;
    }
    allocated += set_aside.iter().map(|(_, length)| length).sum::<u64>();

    let Layout { mut segments, cursor, end, tail } = Layout::of(&contents, lane, report);
    let mut active = None;
    if let (Some(last), Some(tail)) = (segments.back_mut(), &tail) {
        let sound = tail.clean && tail.end == end && !last.spent && tail.end_offset < last.bytes;
        // Also when nothing more fits into it: its last group is served from now on.
        if settle(last).is_ok() && sound {
            let (file, offset) = (FileRef::clone(&last.file), last.end_offset);
            active = Some(Active { file, salt: last.salt, offset });
        } else {
            last.spent |= !tail.clean;
        }
    }
    // Why: what was renamed and removed above must not come back behind what is written from now on.
    fs.sync_dir(dir).map_err(io)?;
    verify(&segments, lane, cursor, options.verify, report);

    let room = active
        .as_ref()
        .zip(segments.back())
        .map(|(active, last): (&Active, &Segment)| last.bytes - active.offset);
    let state = LaneState {
        queue: VecDeque::new(),
        next_number: contents.highest.map_or(0, |number| number + 1),
        room,
        spares,
        ..LaneState::found(dir, segments, cursor, end)
    };
    Ok(Recovered {
        state,
        writer: Writer { active, cursor: contents.cursor_file, failing: false },
        allocated,
        spare_number,
    })
}

enum Identity {
    Segment { header: SegmentHeader, damaged: bool },
    Stranger,
    Newer(u16),
    Unreadable,
}

/// Whether the file is still the segment that it was: another process may have taken it into use again since. The header is
/// written before anything else is, so what was read before this says yes had not been overwritten.
pub(crate) fn is_still(segment: &Segment, lane: Lane) -> bool {
    match identify(&segment.file, segment.number, lane, segment.bytes) {
        Identity::Segment { header, .. } => header.salt == segment.salt,
        Identity::Stranger | Identity::Newer(_) => false,
        // A sector that has gone bad says nothing of that; and what it costs is then named, and not passed over.
        Identity::Unreadable => true,
    }
}

/// What a file that is called segment `number` is. When its header is damaged, the first group still says what is needed; it
/// always lies in the second page, where no record's bytes can pass for it.
fn identify(file: &FileRef, number: u64, lane: Lane, length: u64) -> Identity {
    let mut page = [0; PAGE];
    let header = match file.read_at(&mut page, 0) {
        Ok(()) => SegmentHeader::decode(&page),
        Err(_) => HeaderRead::Damaged,
    };
    match header {
        HeaderRead::Valid(header) if header.number == number && usize::from(header.lane) == lane.index() => {
            Identity::Segment { header, damaged: false }
        }
        HeaderRead::Valid(_) => Identity::Stranger,
        HeaderRead::Newer(version) => Identity::Newer(version),
        HeaderRead::Damaged => {
            let mut block = [0; GROUP_HEAD_BYTES];
            let head =
                file.read_at(&mut block, PAGE_BYTES).ok().and_then(|()| GroupHead::decode(&block, None));
            head.map_or(Identity::Unreadable, |GroupHead { salt, first, .. }| Identity::Segment {
                header: SegmentHeader { lane: lane.index() as u8, number, salt, first, bytes: length },
                damaged: true,
            })
        }
    }
}

/// Where the groups of a segment that has a successor end, and the cursor they carry.
fn last_offset(extent: &Extent<'_>, first: u64, end: u64, cursor: &mut u64) -> u64 {
    let (mut offset, mut expect) = (PAGE_BYTES, first);
    while expect < end {
        let Ok(Some(group)) = extent.group(offset, expect) else { break };
        if let Some(head) = &group.head {
            *cursor = (*cursor).max(head.cursor);
        }
        offset = group.end_offset();
        expect = group.end();
    }
    offset.min(extent.limit)
}

/// Where the last segment ends: after the last group that is proven or whole.
fn find_end(
    extent: &mut Extent<'_>,
    first: u64,
    durable: &mut u64,
    cursor: &mut u64,
    report: &mut Recovery,
) -> Tail {
    let mut tail = Tail { end: first, end_offset: PAGE_BYTES, clean: true };
    let mut last: Option<Group> = None;
    while let Ok(Some(group)) = extent.group(tail.end_offset, tail.end) {
        tail.end_offset = group.end_offset();
        tail.end = group.end();
        match &group.head {
            Some(head) => {
                *durable = (*durable).max(head.durable);
                *cursor = (*cursor).max(head.cursor);
            }
            None => tail.clean = false,
        }
        last = Some(group);
    }
    extent.known = *durable;
    match last {
        // Nothing after it proves the last group: it counts if it is whole.
        Some(group) if group.head.is_some() && group.end() > *durable => {
            match strictly(extent).is_whole(&group) {
                Ok(true) => {}
                Ok(false) => {
                    report.truncated_bytes += group.bytes;
                    report.truncated_records += group.count;
                    tail.end = group.first;
                    tail.end_offset = group.offset;
                }
                // A disk that does not answer is no proof of a torn group. It stays, and the lane goes on in a new segment.
                Err(_) => tail.clean = false,
            }
        }
        // A group whose very head is torn leaves no more than that to tell.
        _ => {
            let block = extent.read(tail.end_offset, GROUP_HEAD_BYTES).unwrap_or_default();
            if GroupHead::claims(&block, extent.salt) {
                report.truncated_bytes += PAGE_BYTES;
            }
        }
    }
    tail.end_offset = tail.end_offset.min(extent.limit);
    tail
}

/// The same extent, where what the disk refuses to give is an error and not damage.
const fn strictly<'a>(extent: &Extent<'a>) -> Extent<'a> {
    Extent { tolerant: false, ..*extent }
}

/// Makes sure of the end of the segment that will be written on.
fn settle(segment: &Segment) -> std::io::Result<()> {
    // Why: after a sync that failed and a process that was killed over it, the page cache may show a group that the disk never
    // took, on pages that call themselves clean; no sync would write them. Writing the same bytes again makes them dirty.
    // Harmless whenever it is interrupted, since nothing changes.
    let extent = Extent::of(segment, false);
    let (mut offset, mut expect) = (PAGE_BYTES, segment.first);
    let mut last = None;
    while let Some(group) = extent.group(offset, expect)? {
        offset = group.end_offset();
        expect = group.end();
        last = Some(group);
    }
    if let Some(group) = last {
        let bytes = extent.read(group.offset, (group.end_offset() - group.offset) as usize)?;
        segment.file.write_at(&bytes, group.offset)?;
    }
    // Why: a killed process leaves groups in the page cache that are whole and not on disk. They are served from now on.
    segment.file.sync_data()
}

/// Finds what is damaged among the records that are still to be delivered.
fn verify(segments: &VecDeque<Segment>, lane: Lane, cursor: u64, depth: Verify, report: &mut Recovery) {
    let mut ranges = Vec::new();
    for segment in segments.iter().filter(|segment| segment.end > cursor) {
        let extent = Extent::of(segment, true);
        let (mut offset, mut expect) = (PAGE_BYTES, segment.first);
        while let Ok(Some(group)) = extent.group(offset, expect) {
            offset = group.end_offset();
            expect = group.end();
            if expect <= cursor {
                continue;
            }
            for found in extent.load(&group, depth == Verify::Everything).unwrap_or_default() {
                if let Found::Damaged { position, head } = found
                    && position >= cursor
                {
                    report.corrupt_records += 1;
                    note(&mut ranges, lane, position, head);
                }
            }
        }
    }
    ranges.truncate(MAX_NAMED_RANGES.saturating_sub(report.corrupt.len()));
    report.corrupt.extend(ranges);
}

/// Names positions of which nothing at all is left.
fn missing(report: &mut Recovery, lane: Lane, from: u64, to: u64) {
    if from < to {
        report.corrupt_records += to - from;
        report.corrupt.push(CorruptRange { lane, from: Position(from), to: Position(to), heads: Vec::new() });
    }
}

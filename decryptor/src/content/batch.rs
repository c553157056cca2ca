//! The batch inside a seal: records with their times, and what the device says of its lines (gaps, the run before, heartbeats).

use super::ContentError;
use bytes::Bytes;
use pithead_proto::batch::v1 as wire;
use pithead_sealing::{Run, Seq, StreamName};
use prost::Message as _;
use prost::encoding::decode_varint;

/// Gaps in one batch. A device declares what it dropped since its last batch, as ranges; the ledger keeps them, so the number
/// is bounded.
pub const MAX_GAPS: usize = 1_024;

/// Lines in one heartbeat. A device has at most 16 streams.
pub const MAX_HEARTBEAT_LINES: usize = 16;

/// Records in one batch. As many as fit into 64 MiB would be gigabytes once each of them is a value; an honest batch is sealed
/// every few seconds.
pub const MAX_RECORDS: usize = 1 << 20;

/// A parsed batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// In the order in which they were taken.
    pub records: Vec<Record>,
    /// What the device dropped, or lost, and will never send.
    pub gaps: Vec<Gap>,
    /// In the first batch of a run: the run before, and its last number that the device holds.
    pub previous: Option<LineEnd>,
    /// The newest number of each stream: below it, "none missing" can be proved.
    pub heartbeat: Vec<LineEnd>,
}

/// One record.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    /// Microseconds since 1970 by the device's best clock.
    pub time_us: i64,
    /// Microseconds by the device's monotonic clock; `None` if its batch does not say where that stood.
    pub monotonic_us: Option<u64>,
    /// What the record is, in the device's own terms; may be empty.
    pub name: String,
    /// The record itself.
    pub data: Bytes,
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Record")
            .field("time_us", &self.time_us)
            .field("bytes", &self.data.len())
            .finish_non_exhaustive()
    }
}

/// Numbers that will never come, both ends included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// On which of the device's streams.
    pub stream: StreamName,
    /// In which run.
    pub run: Run,
    /// The first of them.
    pub from: Seq,
    /// The last of them.
    pub to: Seq,
    /// Why.
    pub reason: GapReason,
}

/// Why a device will not send a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GapReason {
    /// A reason that this version does not know.
    Unknown,
    /// Its stream's byte budget and drop policy.
    DroppedByPolicy,
    /// Its outbox was damaged there.
    OutboxDamaged,
    /// It was refused for good, and the refused area was full.
    Refused,
}

/// A line's newest number, as the device has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineEnd {
    /// The stream.
    pub stream: StreamName,
    /// The run.
    pub run: Run,
    /// The last number; `None` if nothing was sealed on it.
    pub last: Option<Seq>,
}

impl Batch {
    /// Parses the plaintext of a batch. Data and names are shared with `plaintext`, not copied.
    pub fn decode(plaintext: Bytes) -> Result<Self, ContentError> {
        let refuse = |what| ContentError::Batch { what };
        let counts = Counts::of(&plaintext).ok_or(refuse("it is not the protobuf message"))?;
        if counts.records > MAX_RECORDS {
            return Err(refuse("it has more than 1,048,576 records"));
        }
        if counts.gaps > MAX_GAPS {
            return Err(refuse("it declares more than 1,024 gaps"));
        }
        if counts.heartbeat > MAX_HEARTBEAT_LINES {
            return Err(refuse("its heartbeat has more than 16 lines"));
        }
        let message = wire::Batch::decode(plaintext).map_err(|_| refuse("it is not the protobuf message"))?;
        let (mut time_us, mut monotonic_us) = (message.base_us, message.monotonic_us);
        let mut records = Vec::with_capacity(message.records.len());
        for record in message.records {
            time_us = time_us.checked_add(record.dt_us).ok_or(refuse("its times overflow"))?;
            if let Some(monotonic_us) = &mut monotonic_us {
                *monotonic_us = monotonic_us
                    .checked_add_signed(record.dt_us)
                    .ok_or(refuse("its monotonic times overflow, or begin before the clock did"))?;
            }
            records.push(Record { time_us, monotonic_us, name: record.name, data: record.data });
        }
        let gaps = message.gaps.into_iter().map(gap).collect::<Result<_, _>>()?;
        let previous = message.previous.map(line_end).transpose()?;
        let heartbeat = message.heartbeat.into_iter().map(line_end).collect::<Result<_, _>>()?;
        Ok(Self { records, gaps, previous, heartbeat })
    }
}

/// How much of what is repeated the message has, counted before anything is allocated for it: an empty one is two bytes on the
/// wire, and some sixty once it is a value.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    records: usize,
    gaps: usize,
    heartbeat: usize,
}

impl Counts {
    /// `None` if it is no protobuf message of today: groups are long gone, and would hide what is in them.
    fn of(mut message: &[u8]) -> Option<Self> {
        const RECORDS: u64 = 2 << 3 | 2;
        const GAPS: u64 = 3 << 3 | 2;
        const HEARTBEAT: u64 = 5 << 3 | 2;
        let mut counts = Self::default();
        while !message.is_empty() {
            let key = decode_varint(&mut message).ok()?;
            match key {
                RECORDS => counts.records += 1,
                GAPS => counts.gaps += 1,
                HEARTBEAT => counts.heartbeat += 1,
                _ => {}
            }
            let length = match key & 7 {
                0 => decode_varint(&mut message).ok().map(|_| 0)?,
                1 => 8,
                2 => usize::try_from(decode_varint(&mut message).ok()?).ok()?,
                5 => 4,
                _ => return None,
            };
            message = message.get(length..)?;
        }
        Some(counts)
    }
}

fn gap(gap: wire::Gap) -> Result<Gap, ContentError> {
    let refuse = |_| ContentError::Batch { what: "a gap names no valid stream, run or number" };
    let reason = match gap.reason() {
        wire::GapReason::Unspecified => GapReason::Unknown,
        wire::GapReason::DroppedByPolicy => GapReason::DroppedByPolicy,
        wire::GapReason::OutboxDamaged => GapReason::OutboxDamaged,
        wire::GapReason::Refused => GapReason::Refused,
    };
    let (from, to) = (Seq::new(gap.from).map_err(refuse)?, Seq::new(gap.to).map_err(refuse)?);
    if from > to {
        return Err(ContentError::Batch { what: "a gap ends before it begins" });
    }
    Ok(Gap {
        stream: StreamName::new(&gap.stream).map_err(refuse)?,
        run: Run::new(gap.run).map_err(refuse)?,
        from,
        to,
        reason,
    })
}

fn line_end(line: wire::Line) -> Result<LineEnd, ContentError> {
    let refuse = |_| ContentError::Batch { what: "a line names no valid stream, run or number" };
    let last = if line.last_seq == 0 { None } else { Some(Seq::new(line.last_seq).map_err(refuse)?) };
    Ok(LineEnd {
        stream: StreamName::new(&line.stream).map_err(refuse)?,
        run: Run::new(line.run).map_err(refuse)?,
        last,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(batch: &wire::Batch) -> Bytes {
        batch.encode_to_vec().into()
    }

    #[test]
    fn times_add_up_and_may_run_backwards() {
        let record = |dt_us| wire::Record { dt_us, data: Bytes::from_static(b"x"), name: String::new() };
        let batch = wire::Batch {
            base_us: 1_000,
            records: vec![record(5), record(-3), record(0)],
            ..Default::default()
        };
        let times: Vec<_> =
            Batch::decode(encoded(&batch)).unwrap().records.iter().map(|r| r.time_us).collect();
        assert_eq!(times, [1_005, 1_002, 1_002]);
        let late = wire::Batch { base_us: i64::MAX, records: vec![record(1)], ..Default::default() };
        assert!(Batch::decode(encoded(&late)).is_err());
    }

    #[test]
    fn a_batch_that_says_where_the_monotonic_clock_stood_gives_each_record_its_own_time() {
        let record = |dt_us| wire::Record { dt_us, ..Default::default() };
        let decode = |base_us, monotonic_us, records| {
            let records: Vec<_> = records;
            let batch = wire::Batch { base_us, monotonic_us, records, ..Default::default() };
            let times = |r: &Record| (r.time_us, r.monotonic_us);
            Batch::decode(encoded(&batch)).map(|batch| batch.records.iter().map(times).collect::<Vec<_>>())
        };
        let times = decode(1_000, Some(40), vec![record(5), record(-3), record(0)]).unwrap();
        assert_eq!(times, [(1_005, Some(45)), (1_002, Some(42)), (1_002, Some(42))]);
        // Where it is not said it is not known; a clock that stood at 0 is one that was said.
        assert_eq!(decode(1_000, None, vec![record(-3)]).unwrap(), [(997, None)]);
        assert_eq!(decode(1_000, Some(0), vec![record(3)]).unwrap(), [(1_003, Some(3))]);
        assert_eq!(decode(0, Some(u64::MAX), vec![record(0)]).unwrap(), [(0, Some(u64::MAX))]);
        assert!(matches!(decode(0, Some(u64::MAX), vec![record(1)]), Err(ContentError::Batch { .. })));
        assert!(matches!(decode(0, Some(2), vec![record(-3)]), Err(ContentError::Batch { .. })));
    }

    #[test]
    fn more_than_a_batch_may_have_is_refused_before_it_is_made() {
        // Two bytes each: a field, length 0. The gaps and lines that are not too many are then refused for what they name.
        let said = |field: u8, count: usize| match Batch::decode([field << 3 | 2, 0].repeat(count).into()) {
            Ok(batch) => Ok(batch.records.len()),
            Err(ContentError::Batch { what }) => Err(what),
            Err(other) => panic!("{other}"),
        };
        assert_eq!(said(2, MAX_RECORDS), Ok(MAX_RECORDS));
        assert_eq!(said(2, MAX_RECORDS + 1), Err("it has more than 1,048,576 records"));
        assert_eq!(said(3, MAX_GAPS), Err("a gap names no valid stream, run or number"));
        assert_eq!(said(3, MAX_GAPS + 1), Err("it declares more than 1,024 gaps"));
        assert_eq!(said(5, MAX_HEARTBEAT_LINES), Err("a line names no valid stream, run or number"));
        assert_eq!(said(5, MAX_HEARTBEAT_LINES + 1), Err("its heartbeat has more than 16 lines"));
    }

    #[test]
    fn what_is_counted_is_what_is_decoded() {
        // Behind fields of every other kind they are counted as well; inside a group nobody counts, so there is none.
        let other = [0x0f << 3, 0x80, 1, 0x0f << 3 | 1, 0, 0, 0, 0, 0, 0, 0, 0, 0x0f << 3 | 5, 0, 0, 0, 0];
        let record = [2 << 3 | 2, 2, 1 << 3, 8];
        let message = [&other[..], &record, &other, &[0x0f << 3 | 2, 4], &record, &record].concat();
        assert_eq!(Counts::of(&message), Some(Counts { records: 2, ..Counts::default() }));
        assert_eq!(Batch::decode(message.into()).unwrap().records.len(), 2);
        for bad in [&[0x0f << 3 | 3, 0x0f << 3 | 4][..], &[2 << 3 | 2, 1], &[2 << 3 | 2], &[0x0f << 3 | 1, 0]]
        {
            assert_eq!(Counts::of(bad), None, "{bad:02x?}");
            assert!(Batch::decode(Bytes::copy_from_slice(bad)).is_err(), "{bad:02x?}");
        }
    }

    #[test]
    fn gaps_that_name_nothing_are_refused() {
        let good = wire::Gap { stream: "can".into(), run: 7, from: 3, to: 9, reason: 1 };
        let parse =
            |gap: wire::Gap| Batch::decode(encoded(&wire::Batch { gaps: vec![gap], ..Default::default() }));
        assert_eq!(parse(good.clone()).unwrap().gaps[0].reason, GapReason::DroppedByPolicy);
        for bad in [
            wire::Gap { stream: "CAN/..".into(), ..good.clone() },
            wire::Gap { run: 0, ..good.clone() },
            wire::Gap { from: 0, ..good.clone() },
            wire::Gap { from: 10, ..good.clone() },
            wire::Gap { to: 1 << 63, ..good.clone() },
        ] {
            assert!(parse(bad).is_err());
        }
        let many = wire::Batch { gaps: vec![good; MAX_GAPS + 1], ..Default::default() };
        assert!(Batch::decode(encoded(&many)).is_err());
    }
}

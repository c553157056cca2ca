//! `spool`: durable appends by group size, beside what the same disk does for the same bytes without a spool.
//!
//! Raw is one thread that writes a group's bytes into a file that was written before, and syncs: the least that "on disk"
//! costs. Plain is the same at the end of a file that grows, where each sync commits the file's new size as well. The
//! three take turns every few groups, so that whatever else the disk does hits all of them.
//!
//! The spool is measured as a busy gateway uses it: while one group is on its way to the disk the next is handed over. The
//! largest group it may write is the measured one, so that a sync carries one group and no more (which is checked).
//! `serial_value` is what one appender gets that hands over nothing before the last group is durable: then every group waits for
//! two threads to wake each other as well. A single record is measured that way only: a group has room for several of them.

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use pithead_spool::{Lane, Options, Position, Record, Spool, Ticket};
use serde::Serialize;

use crate::report::{Row, rounded};

const RECORD_BYTES: usize = 1024;
const HEAD_BYTES: usize = 128;
const GROUPS: [usize; 4] = [1, 16, 64, 256];
/// Groups that one of the three writes before the next one has its turn.
const TURN: usize = 16;
/// What goes through the spool first, so that it writes to segments that were used before: what it does for the rest of its
/// life.
const WARM_BYTES: usize = 160 << 20;
/// The pre-written file is written over from its beginning when its end is reached.
const RAW_FILE_BYTES: u64 = 64 << 20;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// One JSON object per line instead of a table.
    #[arg(long)]
    json: bool,
    /// A folder on the disk that is measured; the folder for temporary files if it is not given.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Turns of each, 16 groups each.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    turns: u64,
}

#[derive(Debug, Serialize)]
struct Facts {
    group: usize,
    record_bytes: usize,
    groups: u64,
    sync_us: f64,
    serial_value: f64,
    serial_ratio: f64,
    plain_value: f64,
    plain_ratio: f64,
}

pub(crate) fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    let folder = match &arguments.dir {
        Some(folder) => tempfile::tempdir_in(folder),
        None => tempfile::tempdir(),
    }?;
    for group in GROUPS {
        row(group, arguments.turns, folder.path())?.print(arguments.json)?;
    }
    Ok(())
}

fn row(group: usize, turns: u64, folder: &Path) -> anyhow::Result<Row<Facts>> {
    let folder_of_spool = folder.join(format!("spool-{group}"));
    Spooled::open(&folder_of_spool, Options::default().max_group_bytes)?.warm()?;
    let mut spooled = Spooled::open(&folder_of_spool, largest_group(group))?;
    let mut raw = Raw::create(&folder.join(format!("raw-{group}")))?;
    let mut plain = Plain::create(&folder.join(format!("plain-{group}")))?;
    let bytes = vec![0xa5; group * RECORD_BYTES];
    let mut took = [Duration::ZERO; 4];
    let before = spooled.spool.stats().groups;
    // The first turn warms all of them and does not count.
    for turn in 0..=turns {
        let begin = Instant::now();
        if group > 1 {
            spooled.groups(group, TURN)?;
        } else {
            (0..TURN).try_for_each(|_| spooled.groups(group, 1))?;
        }
        let spool = begin.elapsed();
        let begin = Instant::now();
        for _ in 0..TURN {
            spooled.groups(group, 1)?;
        }
        let serial = begin.elapsed();
        let begin = Instant::now();
        for _ in 0..TURN {
            raw.group(&bytes)?;
        }
        let written = begin.elapsed();
        let begin = Instant::now();
        for _ in 0..TURN {
            plain.group(&bytes)?;
        }
        if turn > 0 {
            for (sum, one) in took.iter_mut().zip([spool, written, begin.elapsed(), serial]) {
                *sum += one;
            }
        }
    }
    let synced = spooled.spool.stats().groups - before;
    let handed_over = (turns + 1) * 2 * TURN as u64;
    ensure!(
        synced * 100 >= handed_over * 99,
        "{synced} syncs for {handed_over} groups: they were put together"
    );
    let groups = turns * TURN as u64;
    let per_second = |took: Duration| (groups * group as u64) as f64 / took.as_secs_f64();
    let [value, baseline, plain, serial] = took.map(per_second);
    let facts = Facts {
        group,
        record_bytes: RECORD_BYTES,
        groups,
        sync_us: rounded(took[1].as_secs_f64() * 1e6 / groups as f64),
        serial_value: rounded(serial),
        serial_ratio: rounded(serial / baseline),
        plain_value: rounded(plain),
        plain_ratio: rounded(value / plain),
    };
    Ok(Row::alone(format!("spool-append-g{group}"), value, "records/s", facts).against("raw", baseline))
}

/// Room for one group of so many records, and not for two (unless they are single records, for which the least that a spool
/// can be given is room for several).
fn largest_group(records: usize) -> u64 {
    const PAGE: usize = 4096;
    // What the spool adds to each record and to each group (`spool/src/format.rs`).
    const ENTRY_BYTES: usize = 48;
    const GROUP_HEAD_BYTES: usize = 64;
    let bytes = GROUP_HEAD_BYTES + records * (ENTRY_BYTES + RECORD_BYTES);
    bytes.next_multiple_of(PAGE).max(2 * PAGE) as u64
}

/// The spool as the gateway opens it, drained as it fills: its segments are used again.
struct Spooled {
    spool: Spool,
    head: Bytes,
    body: Bytes,
}

impl Spooled {
    fn open(folder: &Path, max_group_bytes: u64) -> anyhow::Result<Self> {
        let mut options = Options::default();
        options.max_group_bytes = max_group_bytes;
        options.create = true;
        let (spool, _) = Spool::open(folder, options)?;
        let (head, body) = (vec![1; HEAD_BYTES].into(), vec![0xa5; RECORD_BYTES - HEAD_BYTES].into());
        Ok(Self { spool, head, body })
    }

    fn warm(&mut self) -> anyhow::Result<()> {
        const GROUP: usize = 1_024;
        self.groups(GROUP, WARM_BYTES / GROUP / RECORD_BYTES)?;
        Ok(self.spool.close()?)
    }

    /// So many groups, each handed over while the one before is on its way; durable when this returns.
    fn groups(&mut self, count: usize, groups: usize) -> anyhow::Result<()> {
        let mut under_way: Option<Ticket> = None;
        for _ in 0..groups {
            let records =
                (0..count).map(|_| Record::new(1, 0, self.head.clone(), self.body.clone())).collect();
            let ticket = self.spool.append_all(Lane::First, records)?;
            if let Some(before) = under_way.replace(ticket) {
                self.durable(before, count)?;
            }
        }
        under_way.map_or(Ok(()), |last| self.durable(last, count))
    }

    fn durable(&self, ticket: Ticket, count: usize) -> anyhow::Result<()> {
        let first = ticket.wait()?;
        self.spool.acknowledge(Lane::First, Position(first.0 + count as u64 - 1))?;
        Ok(())
    }
}

struct Raw {
    file: File,
    at: u64,
}

impl Raw {
    fn create(path: &Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new().create_new(true).write(true).open(path)?;
        let block = vec![0; 1 << 20];
        for at in 0..RAW_FILE_BYTES / block.len() as u64 {
            file.write_all_at(&block, at * block.len() as u64)?;
        }
        file.sync_all().context("writing the raw file")?;
        Ok(Self { file, at: 0 })
    }

    fn group(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        ensure!(bytes.len() as u64 <= RAW_FILE_BYTES, "a group is larger than the file");
        if self.at + bytes.len() as u64 > RAW_FILE_BYTES {
            self.at = 0;
        }
        self.file.write_all_at(bytes, self.at)?;
        self.file.sync_data()?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}

struct Plain(File);

impl Plain {
    fn create(path: &Path) -> anyhow::Result<Self> {
        Ok(Self(OpenOptions::new().create_new(true).append(true).open(path)?))
    }

    fn group(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.0.write_all(bytes)?;
        self.0.sync_data()?;
        Ok(())
    }
}

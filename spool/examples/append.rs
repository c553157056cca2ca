//! How fast records become durable, against what the same disk gives to a bare loop in the same run.
//!
//! `cargo run --release -p pithead-spool --example append -- [DIRECTORY] [SECONDS PER ROW]`
//!
//! Each row appends records of 1 KiB in batches of a group size and waits for each batch. The baseline writes as many bytes in
//! one call, and calls fdatasync, into a file that has been written full of zeroes before. The two take turns, since a shared
//! disk has moods.

#![allow(clippy::print_stdout, reason = "it prints a table")]

use pithead_spool::{Lane, Options, Position, Record, Spool};
use std::error::Error;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const RECORD_BYTES: usize = 1024;
const FILE_BYTES: u64 = 64 * 1024 * 1024;
const TURNS: u32 = 10;

struct Raw {
    file: File,
    at: u64,
}

impl Raw {
    fn create(path: &Path) -> Result<Self, Box<dyn Error>> {
        let file = File::create(path)?;
        let zeroes = vec![0; 1024 * 1024];
        for at in (0..FILE_BYTES).step_by(zeroes.len()) {
            file.write_all_at(&zeroes, at)?;
        }
        file.sync_all()?;
        Ok(Self { file, at: 0 })
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), Box<dyn Error>> {
        if self.at + bytes.len() as u64 > FILE_BYTES {
            self.at = 0;
        }
        self.file.write_all_at(bytes, self.at)?;
        self.file.sync_data()?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}

/// Calls `turn` for `time`; how often it got through.
fn count(
    time: Duration,
    mut turn: impl FnMut() -> Result<(), Box<dyn Error>>,
) -> Result<(u64, Duration), Box<dyn Error>> {
    let (mut turns, since) = (0, Instant::now());
    while since.elapsed() < time {
        turn()?;
        turns += 1;
    }
    Ok((turns, since.elapsed()))
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let dir =
        arguments.next().map_or_else(|| std::env::temp_dir().join("pithead-spool-append"), PathBuf::from);
    let seconds: f64 = arguments.next().map_or(Ok(3.0), |given| given.parse())?;
    let turn = Duration::from_secs_f64(seconds / f64::from(TURNS));
    fs::create_dir_all(&dir)?;
    let spool_dir = dir.join("spool");
    let mut options = Options::default();
    options.create = true;
    options.max_bytes = 1 << 30;
    let (spool, _) = Spool::open(&spool_dir, options)?;
    let mut raw = Raw::create(&dir.join("raw"))?;
    let body = vec![0x5a; RECORD_BYTES];
    let record = Record::new(1, 0, &b""[..], body);

    println!("{:>6} {:>16} {:>16} {:>7}", "group", "records/s", "raw records/s", "ratio");
    for group in [1_usize, 16, 64, 256] {
        let bytes = vec![0x5a; group * RECORD_BYTES];
        let (mut ours, mut theirs) = ((0, Duration::ZERO), (0, Duration::ZERO));
        for _ in 0..TURNS {
            let (turns, took) = count(turn, || raw.append(&bytes))?;
            theirs = (theirs.0 + turns, theirs.1 + took);
            let (turns, took) = count(turn, || {
                let first = spool.append_all(Lane::First, vec![record.clone(); group])?.wait()?;
                spool.acknowledge(Lane::First, Position(first.0 + group as u64 - 1))?;
                Ok(())
            })?;
            ours = (ours.0 + turns, ours.1 + took);
        }
        let rate = |(turns, took): (u64, Duration)| turns as f64 * group as f64 / took.as_secs_f64();
        println!("{group:>6} {:>16.0} {:>16.0} {:>7.2}", rate(ours), rate(theirs), rate(ours) / rate(theirs));
    }
    spool.close()?;
    fs::remove_dir_all(&dir)?;
    Ok(())
}

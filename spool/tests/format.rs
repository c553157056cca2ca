//! The format is fixed by committed bytes: what this crate writes today, and what it must read for ever.
//!
//! `data/v1` is the image of a spool with one lane: three records in two groups, the first acknowledged, closed cleanly. Each
//! file is in hexadecimal, a line of 32 bytes with its offset, lines of zeroes left out. `PITHEAD_BLESS=1` writes it anew, which
//! is a change of the format.
#![allow(clippy::unwrap_used)]

use pithead_spool::{Lane, Options, Position, Record, Spool, Verify};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

const FILES: [&str; 2] = ["lane-0/seg-0000000000000000", "lane-0/cursor"];

fn image() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/v1")
}

fn options() -> Options {
    let mut options = Options::default();
    options.segment_bytes = 32 * 1024;
    options.max_group_bytes = 16 * 1024;
    options.max_bytes = 8 * 32 * 1024;
    options.queue_bytes = 16 * 1024;
    options.salt = 0x0123_4567_89ab_cdef;
    options.verify = Verify::Everything;
    options
}

fn records() -> Vec<Record> {
    vec![
        Record::new(1, 1_700_000_000_001, &b"vehicle-1/1"[..], &b"first"[..]),
        Record::new(2, 1_700_000_000_002, &b"vehicle-1/2"[..], vec![0xab; 5000]),
        Record::new(0xffff, u64::MAX, &b""[..], &b""[..]),
    ]
}

fn to_hex(bytes: &[u8]) -> String {
    let mut text = format!("length {}\n", bytes.len());
    for (index, line) in bytes.chunks(32).enumerate() {
        if line.iter().any(|byte| *byte != 0) {
            write!(text, "{:06x} ", index * 32).unwrap();
            line.iter().for_each(|byte| write!(text, "{byte:02x}").unwrap());
            text.push('\n');
        }
    }
    text
}

fn from_hex(text: &str) -> Vec<u8> {
    let mut lines = text.lines();
    let length = lines.next().unwrap().strip_prefix("length ").unwrap().parse().unwrap();
    let mut bytes = vec![0; length];
    for line in lines {
        let (offset, digits) = line.split_once(' ').unwrap();
        let offset = usize::from_str_radix(offset, 16).unwrap();
        for index in 0..digits.len() / 2 {
            bytes[offset + index] = u8::from_str_radix(&digits[2 * index..2 * index + 2], 16).unwrap();
        }
    }
    bytes
}

fn name(file: &str) -> String {
    format!("{}.hex", file.replace('/', "."))
}

#[test]
fn writing_the_same_records_gives_the_committed_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(dir.path(), options()).unwrap();
    let mut records = records();
    let rest = records.split_off(1);
    spool.append_all(Lane::First, records).unwrap().wait().unwrap();
    spool.acknowledge(Lane::First, Position(0)).unwrap();
    spool.append_all(Lane::First, rest).unwrap().wait().unwrap();
    spool.close().unwrap();
    for file in FILES {
        let written = to_hex(&fs::read(dir.path().join(file)).unwrap());
        let committed = image().join(name(file));
        if std::env::var_os("PITHEAD_BLESS").is_some() {
            fs::create_dir_all(image()).unwrap();
            fs::write(&committed, &written).unwrap();
        }
        // How often the cursor file was written before closing is a matter of timing; that one is only read.
        if !file.ends_with("cursor") {
            assert_eq!(written, fs::read_to_string(&committed).unwrap(), "{file}");
        }
    }
}

#[test]
fn the_committed_bytes_are_read() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("lane-0")).unwrap();
    for file in FILES {
        fs::write(dir.path().join(file), from_hex(&fs::read_to_string(image().join(name(file))).unwrap()))
            .unwrap();
    }
    let (spool, recovery) = Spool::open(dir.path(), options()).unwrap();
    assert_eq!((recovery.records, recovery.corrupt_records, recovery.truncated_bytes), (2, 0, 0));
    assert_eq!(spool.cursor(Lane::First), Position(1));
    let found = spool.reader(Lane::First, Position(0)).next_batch(usize::MAX).unwrap();
    let expected: Vec<(Position, Record)> = (0..).map(Position).zip(records()).collect();
    assert_eq!(found.records, expected);
    let next = spool.append(Lane::First, Record::new(3, 0, vec![], vec![])).unwrap().wait();
    assert_eq!(next, Ok(Position(3)));
}

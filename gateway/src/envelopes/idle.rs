//! Lines that were quiet for long, out of memory and out of the checkpoint: a file per device, only appended to.
//!
//! ```text
//! DATA/idle/<device>~idle    record*
//! record = "PHid", u32 length of line, u8 length of name, name = <run, 16 hex digits>~<stream>, line, hash[8]
//! ```
//!
//! Integers are big-endian; `hash` is the first 8 bytes of SHA-256 of all before it; `line` is what
//! [`Lines::take_idle`](pithead_hop::ingest::Lines::take_idle) gave. The last record of a name counts: a line that was put
//! back and is quiet again is written once more. A record counts when it reads whole: what a crash has left behind the last
//! whole one is cut by the next append. What is damaged in the middle ends the file for readers; then resends of what was
//! delivered long ago are recognised at the far end alone.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pithead_hop::program::disk;
use pithead_sealing::{DeviceId, Line};
use sha2::{Digest as _, Sha256};

const MAGIC: &[u8; 4] = b"PHid";
/// Ends a file's name: a device may be called `.`, and a file may not.
const ENDING: &str = "~idle";
/// No line is larger: three sets of intervals and its hashes.
const LINE_MAX: u32 = 1 << 20;

/// The lines on disk.
#[derive(Debug)]
pub struct Idle {
    folder: PathBuf,
    /// Devices that have a file, and where its last whole record ends, once somebody has looked.
    devices: Mutex<HashMap<DeviceId, Option<u64>>>,
    /// There is such a device. Asked for every envelope.
    any: AtomicBool,
}

impl Idle {
    /// Opens the folder, or begins there.
    ///
    /// # Errors
    /// What the disk says.
    pub fn open(folder: &Path) -> io::Result<Self> {
        disk::create_folder(folder)?;
        let mut devices = HashMap::new();
        for path in disk::complete_files(folder)? {
            let name =
                path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(ENDING));
            if let Some(device) = name.and_then(|name| DeviceId::new(name).ok()) {
                devices.insert(device, None);
            }
        }
        let any = AtomicBool::new(!devices.is_empty());
        Ok(Self { folder: folder.to_owned(), devices: Mutex::new(devices), any })
    }

    /// True if nothing was ever put away.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.any.load(Ordering::Acquire)
    }

    /// Whether anything of the device lies here.
    #[must_use]
    pub fn knows(&self, device: &DeviceId) -> bool {
        self.devices().contains_key(device)
    }

    /// Puts lines of one device away. When this returns they are durable. Blocks.
    ///
    /// # Errors
    /// What the disk says; then they are to be kept elsewhere.
    pub fn append(&self, device: &DeviceId, lines: &[(Line, Vec<u8>)]) -> io::Result<()> {
        let known = self.devices().get(device).copied();
        let path = self.path(device);
        let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
        let end = match known {
            None => 0,
            Some(Some(end)) => end,
            Some(None) => {
                let mut records = Records::new(&file)?;
                while records.next(|_, _| ())?.is_some() {}
                records.at
            }
        };
        let mut bytes = Vec::new();
        for (line, state) in lines {
            put(&mut bytes, line, state);
        }
        // Cut what a crash has left half written: behind it nothing would be found.
        file.set_len(end)?;
        file.seek(SeekFrom::Start(end))?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        if known.is_none() {
            disk::sync_folder(&self.folder)?;
        }
        self.devices().insert(device.clone(), Some(end + bytes.len() as u64));
        self.any.store(true, Ordering::Release);
        Ok(())
    }

    /// What was put away of a line last. Reads through the device's file: only for a line that is not in memory.
    ///
    /// # Errors
    /// What the disk says.
    pub fn find(&self, line: &Line) -> io::Result<Option<Vec<u8>>> {
        if !self.knows(&line.device) {
            return Ok(None);
        }
        let (wanted, mut found) = (name(line), None);
        let file = File::open(self.path(&line.device))?;
        let mut records = Records::new(&file)?;
        while let Some(is) =
            records.next(|name, state| (name == wanted.as_bytes()).then(|| state.to_vec()))?
        {
            found = is.or(found);
        }
        Ok(found)
    }

    fn path(&self, device: &DeviceId) -> PathBuf {
        self.folder.join(format!("{device}{ENDING}"))
    }

    fn devices(&self) -> MutexGuard<'_, HashMap<DeviceId, Option<u64>>> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn name(line: &Line) -> String {
    format!("{}~{}", line.run, line.stream)
}

fn put(out: &mut Vec<u8>, line: &Line, state: &[u8]) {
    let (start, name) = (out.len(), name(line));
    out.extend(MAGIC);
    out.extend((state.len() as u32).to_be_bytes());
    // 16 digits, and a stream of at most 63 bytes.
    out.push(name.len() as u8);
    out.extend(name.as_bytes());
    out.extend(state);
    let hash = Sha256::digest(&out[start..]);
    out.extend(&hash[..8]);
}

/// Goes over the whole records of a file.
struct Records<'a> {
    file: BufReader<&'a File>,
    /// Where the last whole one ended.
    at: u64,
    record: Vec<u8>,
}

impl<'a> Records<'a> {
    fn new(mut file: &'a File) -> io::Result<Self> {
        file.seek(SeekFrom::Start(0))?;
        Ok(Self { file: BufReader::new(file), at: 0, record: Vec::new() })
    }

    /// Shows the next record's name and line. None where nothing whole follows.
    fn next<R>(&mut self, show: impl FnOnce(&[u8], &[u8]) -> R) -> io::Result<Option<R>> {
        let mut head = [0; 9];
        if !whole(self.file.read_exact(&mut head))? {
            return Ok(None);
        }
        let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
        if head[..4] != *MAGIC || length > LINE_MAX {
            return Ok(None);
        }
        let name_end = head.len() + usize::from(head[8]);
        let line_end = name_end + length as usize;
        self.record.clear();
        self.record.extend(head);
        self.record.resize(line_end + 8, 0);
        if !whole(self.file.read_exact(&mut self.record[head.len()..]))? {
            return Ok(None);
        }
        if Sha256::digest(&self.record[..line_end])[..8] != self.record[line_end..] {
            return Ok(None);
        }
        self.at += self.record.len() as u64;
        Ok(Some(show(&self.record[head.len()..name_end], &self.record[name_end..line_end])))
    }
}

/// False at the end of the file.
fn whole(read: io::Result<()>) -> io::Result<bool> {
    match read {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pithead_sealing::{Run, StreamName};

    fn line(device: &str, run: u64) -> Line {
        Line {
            device: DeviceId::new(device).unwrap(),
            stream: StreamName::new("can").unwrap(),
            run: Run::new(run).unwrap(),
        }
    }

    fn put_away(idle: &Idle, run: u64, state: &[u8]) {
        let line = line("truck.42", run);
        idle.append(&line.device.clone(), &[(line, state.to_vec())]).unwrap();
    }

    #[test]
    fn what_was_put_away_last_is_found_also_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let idle = Idle::open(folder.path()).unwrap();
        assert_eq!(idle.find(&line("truck.42", 1)).unwrap(), None);
        put_away(&idle, 1, b"first");
        put_away(&idle, 2, b"other");
        put_away(&idle, 1, b"second");
        for idle in [idle, Idle::open(folder.path()).unwrap()] {
            assert_eq!(idle.find(&line("truck.42", 1)).unwrap().unwrap(), b"second");
            assert_eq!(idle.find(&line("truck.42", 2)).unwrap().unwrap(), b"other");
            assert_eq!(idle.find(&line("truck.42", 3)).unwrap(), None);
            assert!(idle.knows(&line("truck.42", 9).device) && !idle.knows(&line("truck.43", 1).device));
        }
    }

    #[test]
    fn what_a_crash_has_left_half_written_is_cut_and_hides_nothing() {
        let folder = tempfile::tempdir().unwrap();
        put_away(&Idle::open(folder.path()).unwrap(), 1, b"first");
        let path = folder.path().join("truck.42~idle");
        let whole = std::fs::read(&path).unwrap();
        let mut record = Vec::new();
        put(&mut record, &line("truck.42", 2), b"torn");
        for torn in 1..record.len() {
            std::fs::write(&path, [&whole[..], &record[..torn]].concat()).unwrap();
            let idle = Idle::open(folder.path()).unwrap();
            assert_eq!(idle.find(&line("truck.42", 2)).unwrap(), None, "{torn} bytes");
            put_away(&idle, 3, b"after");
            assert_eq!(idle.find(&line("truck.42", 1)).unwrap().unwrap(), b"first");
            assert_eq!(idle.find(&line("truck.42", 3)).unwrap().unwrap(), b"after");
        }
    }

    #[test]
    fn no_flipped_bit_is_taken_for_what_was_put_away() {
        let folder = tempfile::tempdir().unwrap();
        put_away(&Idle::open(folder.path()).unwrap(), 1, b"state");
        let path = folder.path().join("truck.42~idle");
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[at / 8] ^= 1 << (at % 8);
            std::fs::write(&path, flipped).unwrap();
            let idle = Idle::open(folder.path()).unwrap();
            assert_eq!(idle.find(&line("truck.42", 1)).unwrap(), None, "bit {at}");
        }
    }

    #[test]
    fn the_bytes_of_a_record_are_fixed() {
        let mut record = Vec::new();
        put(&mut record, &line("truck.42", 7), b"state");
        let (hash, rest) = (record.split_off(record.len() - 8), record);
        assert_eq!(rest, [b"PHid\0\0\0\x05\x14", &b"0000000000000007~canstate"[..]].concat());
        assert_eq!(hash, Sha256::digest(&rest)[..8]);
    }
}

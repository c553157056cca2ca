//! Files that are larger than a program's memory may be.

use std::{
    fs::File,
    io::{BufReader, BufWriter, Read as _, Write as _},
    path::Path,
};

use sha2::{Digest as _, Sha256};

/// Writes `bytes` bytes that no two places share, and gives their hash.
pub(crate) fn write_file(path: &Path, bytes: u64) -> [u8; 32] {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).unwrap());
    let mut hash = Sha256::new();
    let mut block = vec![0_u8; 1 << 16];
    for at in 0..bytes / block.len() as u64 {
        for (number, word) in (0_u64..).zip(block.chunks_exact_mut(8)) {
            word.copy_from_slice(&(at << 20 | number).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
        }
        hash.update(&block);
        file.write_all(&block).unwrap();
    }
    file.flush().unwrap();
    hash.finalize().into()
}

/// SHA-256 of a file.
pub(crate) fn hash_of_file(path: &Path) -> [u8; 32] {
    let mut file = BufReader::with_capacity(1 << 20, File::open(path).unwrap());
    let (mut hash, mut block) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        let read = file.read(&mut block).unwrap();
        if read == 0 {
            return hash.finalize().into();
        }
        hash.update(&block[..read]);
    }
}

/// The most memory that a process holds until it ends: `VmHWM`, looked at until it is gone.
pub(crate) async fn peak_memory_of(pid: u32) -> u64 {
    let status = format!("/proc/{pid}/status");
    let mut peak = 0;
    loop {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        // A program that has ended has a status without memory in it.
        let Some(line) = line else { return peak };
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        peak = peak.max(kib << 10);
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

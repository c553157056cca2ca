//! The disk alone, for what is held against it.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt as _,
    path::Path,
    time::Instant,
};

/// Microseconds that each of `count` writes of `bytes` with its fdatasync takes, into a file that was written before,
/// ascending.
pub(crate) fn sync_times(folder: &Path, bytes: usize, count: usize) -> anyhow::Result<Vec<u32>> {
    let path = folder.join("bench-disk");
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(&path)?;
    let block = vec![0xa5; bytes];
    for at in 0..count {
        file.write_all_at(&block, (at * bytes) as u64)?;
    }
    file.sync_all()?;
    let mut times = Vec::with_capacity(count);
    for at in 0..count {
        let begin = Instant::now();
        file.write_all_at(&block, (at * bytes) as u64)?;
        file.sync_data()?;
        times.push(begin.elapsed().as_micros() as u32);
    }
    fs::remove_file(&path)?;
    times.sort_unstable();
    Ok(times)
}

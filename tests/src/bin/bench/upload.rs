//! `upload`: one large file from a device to its gateway and on to the sink, beside the disk that it is written to.
//!
//! The bytes are written once at the gateway, sealed, and twice at the decryptor, sealed and open; each hop is a number of its own,
//! held against a plain sequential write with the same syncs (every 8 MiB) of the same size on the same disk.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::Path,
    time::Instant,
};

use anyhow::{Context as _, ensure};
use pithead_tests::site::{SinkKind, Site, SiteOptions};
use serde::Serialize;

use crate::report::Row;

/// What is synced at a time: the gateway syncs an upload as often.
const SYNC_BYTES: usize = 8 << 20;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// One JSON object on one line instead of a table.
    #[arg(long)]
    json: bool,
    /// Size of the file, in MiB.
    #[arg(long, default_value_t = 1_024, value_parser = clap::value_parser!(u64).range(16..=1 << 20))]
    mib: u64,
}

#[derive(Debug, Serialize)]
struct Facts {
    mib: u64,
    seconds: f64,
}

pub(crate) async fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    let bytes = arguments.mib << 20;
    let mut site = Site::start(SiteOptions { sink: SinkKind::Folder, ..SiteOptions::default() }).await?;
    let device = site.enroll("truck-1").await?;
    device.key().await?;
    let (plain, sealed) = (site.folder().join("survey.bin"), site.folder().join("survey.sealed"));
    // Before and after, so that a disk that changes its mind is seen in the middle of the two.
    let before = raw_write(&plain, bytes)?;
    let arguments_of = |command: &'static str, more: &[&Path]| {
        let mut words = vec![command.to_owned()];
        words.extend(more.iter().map(|path| path.display().to_string()));
        words
    };
    let seal = arguments_of("seal", &[&plain, Path::new("-O"), &sealed]);
    device.run(&seal.iter().map(String::as_str).collect::<Vec<_>>()).await?.ok()?;
    fs::remove_file(&plain)?;

    site.link.cut();
    let upload = arguments_of("upload", &[&sealed]);
    let begin = Instant::now();
    device.run(&upload.iter().map(String::as_str).collect::<Vec<_>>()).await?.ok()?;
    let taken = begin.elapsed().as_secs_f64();
    site.link.heal();
    let begin = Instant::now();
    site.until_relayed().await.with_context(|| site.log_tails())?;
    let relayed = begin.elapsed().as_secs_f64();
    let decryptor = site.decryptor().context("no decryptor")?.admin();
    let applied = decryptor.metric_where("pithead_decryptor_envelopes_total", "\"applied\"").await?;
    ensure!(applied == 1.0, "the file has left the gateway, and the sink has {applied} envelopes");
    let after = raw_write(&plain, bytes)?;
    fs::remove_file(&plain)?;
    site.stop().await?;

    let raw = (before + after) / 2.0;
    for (name, seconds) in [("upload-gateway", taken), ("upload-sink", relayed)] {
        let facts = Facts { mib: arguments.mib, seconds };
        let rate = bytes as f64 / 1e6 / seconds;
        Row::alone(name, rate, "MB/s", facts)
            .against("sequential write, fdatasync every 8 MiB", bytes as f64 / 1e6 / raw)
            .print(arguments.json)?;
    }
    Ok(())
}

/// Writes a file of bytes that no two places share, and gives the seconds that it took.
fn raw_write(path: &Path, bytes: u64) -> anyhow::Result<f64> {
    let file = File::create(path).with_context(|| path.display().to_string())?;
    let mut block = vec![0_u8; SYNC_BYTES];
    let mut seconds = 0.0;
    let mut at = 0;
    while at < bytes {
        for (number, word) in (0_u64..).zip(block.chunks_exact_mut(8)) {
            word.copy_from_slice(&(at << 20 | number).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
        }
        let now = block.len().min(usize::try_from(bytes - at).unwrap_or(usize::MAX));
        // Making the bytes is not the disk's time.
        let begin = Instant::now();
        file.write_all_at(&block[..now], at)?;
        file.sync_data()?;
        seconds += begin.elapsed().as_secs_f64();
        at += now as u64;
    }
    (&file).flush()?;
    Ok(seconds)
}

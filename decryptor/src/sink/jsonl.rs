//! One file of JSON lines: a line per record of a batch, a line per envelope otherwise.
//!
//! ```text
//! {"site":"pit-7","device":"truck-1","stream":"can","run":"0000000300000001","seq":9,"index":0,"of":50,"time_us":...,
//!  "name":"...","data":"<base64>","assurance":"signed","verdict":"signed","kid":"<hex>","hops":[...],"received_us":...,
//!  "envelope_sha256":"<hex>"}
//! {"site":..., "seq":10,"index":0,"of":1,"content_type":"text/csv","data":"<base64>", ...}
//! ```
//! A large content is no line: it is a file below `<file>.large/`, and its line has `"file"`, relative to that folder, in
//! place of `"data"`. The file has its name before the line is written.
//!
//! `"time_us"` is by the device's wall clock. Where a batch says where the device's monotonic clock stood, its lines have
//! `"monotonic_us"` too: within a run it orders what a wall clock that was set has put out of order.
//!
//! `"verdict"` is what the session signature says: `signed`, `unsigned`, or `unknown-key` where nobody registered the key.
//! `"kid"` names the key, which is proven only where the verdict is `signed`.
//!
//! A batch without records (a heartbeat) writes no line; the ledger has what it says.
//!
//! **Its own tail.** A group is written, then synced once. A kill in between leaves whole lines that the ledger does not know,
//! and perhaps a torn one. At start the torn line is cut; the whole ones stay, since somebody may have read them, and are
//! remembered by identity: when their envelope comes again, only what is missing of it is written. So no line appears twice.
//! Only what lies behind the mark in the ledger has to be read for that. (A file that was cut or replaced meanwhile is
//! read from its beginning.)

use super::staged::empty_folder;
use super::{Action, Delivery, Hop, Placed, Sink, SinkError, Staged};
use base64ct::{Base64, Encoding as _};
use pithead_hop::program::disk::{create_folder, sync_folder};
use pithead_sealing::Identity;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

/// The sink that appends JSON lines to one file.
#[derive(Debug)]
pub struct JsonLinesSink {
    path: PathBuf,
    file: File,
    /// Bytes that are certainly whole lines.
    length: u64,
    /// What lies behind the ledger's last mark, by identity. Empty after a clean stop; bounded by the group that was under
    /// way at the kill.
    tail: HashMap<Identity, Tail>,
    large: Large,
}

/// The files of large contents: `<file>.large/<site>~<device>~<stream>~<run>~<seq>`.
#[derive(Debug)]
struct Large {
    folder: PathBuf,
    staging: PathBuf,
}

impl Large {
    fn open(path: &Path) -> Result<Self, SinkError> {
        let mut folder = path.as_os_str().to_owned();
        folder.push(".large");
        let folder = PathBuf::from(folder);
        let staging = folder.join(".tmp");
        create_folder(&folder).map_err(SinkError::at(Action::CreateFolder, &folder))?;
        empty_folder(&staging)?;
        Ok(Self { folder, staging })
    }

    /// Gives a large content its name; none if other content has it.
    fn place(&self, identity: &Identity, staged: &Staged) -> Result<Option<String>, SinkError> {
        let Identity { site, device, stream, run, seq } = identity;
        let name = format!("{site}~{device}~{stream}~{run}~{seq:020}");
        let path = self.folder.join(&name);
        if !staged.place(&path)? && !staged.is_in(&path)? {
            return Ok(None);
        }
        sync_folder(&self.folder).map_err(SinkError::at(Action::Sync, &self.folder))?;
        Ok(Some(name))
    }
}

#[derive(Debug)]
struct Tail {
    envelope_sha256: [u8; 32],
    lines: u32,
}

#[derive(Serialize)]
struct JsonLine<'a> {
    site: &'a str,
    device: &'a str,
    stream: &'a str,
    run: String,
    seq: u64,
    index: u32,
    of: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    time_us: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    monotonic_us: Option<u64>,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a str>,
    assurance: &'static str,
    verdict: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    kid: Option<String>,
    hops: &'a [Hop],
    received_us: u64,
    envelope_sha256: String,
}

/// What has to be read back of a line.
#[derive(Deserialize)]
struct TailLine {
    site: String,
    device: String,
    stream: String,
    run: String,
    seq: u64,
    index: u32,
    envelope_sha256: String,
}

impl TailLine {
    fn identity(&self) -> Option<(Identity, [u8; 32])> {
        let mut hash = [0; 32];
        hex::decode_to_slice(&self.envelope_sha256, &mut hash).ok()?;
        let identity = Identity {
            site: self.site.parse().ok()?,
            device: self.device.parse().ok()?,
            stream: self.stream.parse().ok()?,
            run: self.run.parse().ok()?,
            seq: pithead_sealing::Seq::new(self.seq).ok()?,
        };
        Some((identity, hash))
    }
}

impl JsonLinesSink {
    /// Opens or makes the file, cuts a torn last line, and learns what lies behind `mark`: what [`Sink::mark`] gave when the
    /// ledger was last written, or nothing.
    pub fn open(path: &Path, mark: &[u8]) -> Result<Self, SinkError> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(SinkError::at(Action::Open, path))?;
        let size = file.metadata().map_err(SinkError::at(Action::Read, path))?.len();
        let marked = <[u8; 8]>::try_from(mark).map_or(0, u64::from_be_bytes);
        let from = if marked <= size
            && begins_a_line(&mut file, marked).map_err(SinkError::at(Action::Read, path))?
        {
            marked
        } else {
            tracing::warn!(event = "sink.mark_lost", path = %path.display(), marked, size, "the file was cut or replaced since the last start; reading all of it");
            0
        };
        let (tail, length) = read_tail(&mut file, from).map_err(SinkError::at(Action::Read, path))?;
        if length < size {
            tracing::warn!(event = "sink.torn_line", path = %path.display(), cut_bytes = size - length, "cut a torn last line");
            file.set_len(length).map_err(SinkError::at(Action::Truncate, path))?;
        }
        file.seek(SeekFrom::Start(length)).map_err(SinkError::at(Action::Open, path))?;
        // What is remembered will be answered as already there: so it has to be durable, and its name too.
        file.sync_all().map_err(SinkError::at(Action::Sync, path))?;
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let folder = File::open(parent).map_err(SinkError::at(Action::Open, parent))?;
        folder.sync_all().map_err(SinkError::at(Action::Sync, parent))?;
        Ok(Self { path: path.to_owned(), file, length, tail, large: Large::open(path)? })
    }

    /// Forgets what the ledger knows already: those never come here again. What stays is the group that was under way at the
    /// kill.
    pub fn forget(&mut self, mut is_applied: impl FnMut(&Identity) -> bool) {
        self.tail.retain(|identity, _| !is_applied(identity));
    }
}

fn begins_a_line(file: &mut File, position: u64) -> io::Result<bool> {
    if position == 0 {
        return Ok(true);
    }
    let mut before = [0];
    file.seek(SeekFrom::Start(position - 1))?;
    file.read_exact(&mut before)?;
    Ok(before == *b"\n")
}

/// Reads from `from` to the last whole line; gives what it saw and where that line ends.
fn read_tail(file: &mut File, from: u64) -> io::Result<(HashMap<Identity, Tail>, u64)> {
    file.seek(SeekFrom::Start(from))?;
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut tail: HashMap<Identity, Tail> = HashMap::new();
    let mut end = from;
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line)?;
        if read == 0 || line.last() != Some(&b'\n') {
            return Ok((tail, end));
        }
        let parsed = serde_json::from_slice::<TailLine>(&line).ok();
        if let Some((index, (identity, envelope_sha256))) =
            parsed.and_then(|line| Some((line.index, line.identity()?)))
        {
            let entry = tail.entry(identity).or_insert(Tail { envelope_sha256, lines: 0 });
            entry.lines = entry.lines.max(index.saturating_add(1));
        } else {
            // A whole line that is not ours: after a power cut a block may read as zeroes, with later ones intact. It is
            // left for whoever reads the file to report, and nothing is concluded from it.
            tracing::warn!(event = "sink.foreign_line", position = end, "a line is not one of ours");
        }
        end += read as u64;
    }
}

/// Writes the lines of an envelope, without the first `skip` of them; `file` is where a large content is.
pub(super) fn write_lines(
    mut out: impl io::Write,
    delivery: &Delivery,
    file: Option<&str>,
    skip: u32,
) -> io::Result<()> {
    let identity = &delivery.identity;
    let mut line = JsonLine {
        site: identity.site.as_str(),
        device: identity.device.as_str(),
        stream: identity.stream.as_str(),
        run: identity.run.to_string(),
        seq: identity.seq.get(),
        index: 0,
        of: 1,
        time_us: None,
        monotonic_us: None,
        name: "",
        content_type: None,
        data: None,
        file: None,
        assurance: super::delivery::word(delivery.custody.assurance),
        verdict: delivery.origin.word(),
        kid: delivery.origin.kid().map(|kid| kid.to_string()),
        hops: &delivery.custody.hops,
        received_us: delivery.custody.received_us,
        envelope_sha256: hex::encode(delivery.envelope_sha256),
    };
    let Some(batch) = delivery.content.batch() else {
        if let (Some(file), 0) = (file, skip) {
            line.content_type = Some(delivery.content.content_type());
            line.file = Some(file);
            serde_json::to_writer(&mut out, &line)?;
            out.write_all(b"\n")?;
        } else if skip == 0 {
            line.content_type = Some(delivery.content.content_type());
            line.data = Some(Base64::encode_string(delivery.content.plaintext()));
            serde_json::to_writer(&mut out, &line)?;
            out.write_all(b"\n")?;
        }
        return Ok(());
    };
    line.of = u32::try_from(batch.records.len()).unwrap_or(u32::MAX);
    for (index, record) in (0_u32..).zip(&batch.records).skip(skip as usize) {
        line.index = index;
        line.time_us = Some(record.time_us);
        line.monotonic_us = record.monotonic_us;
        line.name = &record.name;
        line.data = Some(Base64::encode_string(&record.data));
        serde_json::to_writer(&mut out, &line)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

impl Sink for JsonLinesSink {
    fn commit(&mut self, group: &[Delivery]) -> Result<Vec<Placed>, SinkError> {
        let mut out = Vec::new();
        let mut placed = Vec::with_capacity(group.len());
        for delivery in group {
            let skip = match self.tail.get(&delivery.identity) {
                Some(tail) if tail.envelope_sha256 != delivery.envelope_sha256 => {
                    placed.push(Placed::Conflict);
                    continue;
                }
                Some(tail) => tail.lines,
                None => 0,
            };
            let before = out.len();
            let file = match delivery.content.file() {
                Some(staged) => match self.large.place(&delivery.identity, staged)? {
                    Some(file) => Some(file),
                    None => {
                        placed.push(Placed::Conflict);
                        continue;
                    }
                },
                None => None,
            };
            write_lines(&mut out, delivery, file.as_deref(), skip)
                .map_err(SinkError::at(Action::Write, &self.path))?;
            placed.push(if skip > 0 && out.len() == before { Placed::Already } else { Placed::New });
        }
        if !out.is_empty() {
            if let Err(error) = self.file.write_all(&out) {
                // A full disk takes half a group: go back to where the lines were whole, and let the group come again.
                let back = self
                    .file
                    .set_len(self.length)
                    .and_then(|()| self.file.seek(SeekFrom::Start(self.length)));
                back.map_err(SinkError::at(Action::Truncate, &self.path))?;
                return Err(SinkError::at(Action::Write, &self.path)(error));
            }
            self.file.sync_data().map_err(SinkError::at(Action::Sync, &self.path))?;
            self.length += out.len() as u64;
        }
        for (delivery, placed) in group.iter().zip(&placed) {
            if *placed != Placed::Conflict {
                self.tail.remove(&delivery.identity);
            }
        }
        Ok(placed)
    }

    fn staging(&self) -> PathBuf {
        self.large.staging.clone()
    }

    fn mark(&self) -> Vec<u8> {
        // While something of the tail is still waited for, the mark stays before it.
        if self.tail.is_empty() { self.length.to_be_bytes().to_vec() } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::testing::{batch, batch_at, delivery};
    use std::fs;

    fn keys(path: &Path) -> Vec<(String, u64, u64)> {
        let text = fs::read_to_string(path).unwrap();
        text.lines()
            .map(|line| {
                let line: serde_json::Value = serde_json::from_str(line).unwrap();
                (
                    line["device"].as_str().unwrap().to_owned(),
                    line["seq"].as_u64().unwrap(),
                    line["index"].as_u64().unwrap(),
                )
            })
            .collect()
    }

    #[test]
    fn a_batch_is_a_line_per_record_and_anything_else_one_line() {
        let out = tempfile::tempdir().unwrap();
        let path = out.path().join("records.jsonl");
        let mut sink = JsonLinesSink::open(&path, &[]).unwrap();
        let group = [batch("t", 1, 2), delivery("t", 2, "text/csv", b"a,b"), batch("t", 3, 0)];
        assert_eq!(sink.commit(&group).unwrap(), [Placed::New; 3]);
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines.len(), 3);
        assert_eq!((lines[1]["index"].as_u64(), lines[1]["of"].as_u64()), (Some(1), Some(2)));
        assert_eq!(lines[1]["time_us"].as_i64(), Some(1_020));
        assert_eq!(lines[1]["data"].as_str(), Some("AQEB"));
        assert_eq!(lines[2]["content_type"].as_str(), Some("text/csv"));
        assert_eq!(lines[2]["data"].as_str(), Some("YSxi"));
        assert_eq!(lines[2]["assurance"].as_str(), Some("vouched"));
        assert_eq!((lines[2]["verdict"].as_str(), lines[2]["kid"].is_null()), (Some("unsigned"), true));
        let kid = pithead_sealing::trust::Kid::from_bytes([0x5a; 16]);
        let signed = Delivery { origin: crate::devices::Origin::Signed(kid), ..batch("t", 4, 1) };
        sink.commit(&[signed]).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let line: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(
            (line["verdict"].as_str(), line["kid"].as_str()),
            (Some("signed"), Some(&"5a".repeat(16)[..]))
        );
    }

    #[test]
    fn a_record_has_its_monotonic_time_where_its_batch_says_it() {
        let out = tempfile::tempdir().unwrap();
        let path = out.path().join("records.jsonl");
        let mut sink = JsonLinesSink::open(&path, &[]).unwrap();
        sink.commit(&[
            batch("t", 1, 1),
            batch_at("t", 2, 2, Some(700)),
            delivery("t", 3, "text/csv", b"a,b"),
        ])
        .unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let times = text.lines().map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            (line["time_us"].as_i64(), line["monotonic_us"].as_u64())
        });
        let expected =
            [(Some(1_010), None), (Some(1_010), Some(710)), (Some(1_020), Some(720)), (None, None)];
        assert_eq!(times.collect::<Vec<_>>(), expected);
        assert_eq!(text.matches("monotonic_us").count(), 2, "left out where it is not known");
    }

    #[test]
    fn killed_at_every_byte_of_a_group_each_record_is_there_once_after_the_resend() {
        let out = tempfile::tempdir().unwrap();
        let path = out.path().join("records.jsonl");
        let mut sink = JsonLinesSink::open(&path, &[]).unwrap();
        sink.commit(&[batch("t", 1, 2)]).unwrap();
        let mark = sink.mark();
        let before = fs::read(&path).unwrap();
        let group = [batch("t", 2, 3), delivery("t", 3, "text/plain", b"x")];
        sink.commit(&group).unwrap();
        let after = fs::read(&path).unwrap();
        let expected = keys(&path);
        assert_eq!(expected.len(), 6);
        for cut in before.len()..=after.len() {
            fs::write(&path, &after[..cut]).unwrap();
            let mut sink = JsonLinesSink::open(&path, &mark).unwrap();
            let placed = sink.commit(&group).unwrap();
            assert_eq!(keys(&path), expected, "cut at {cut}");
            assert_eq!(fs::read(&path).unwrap(), after, "cut at {cut}");
            if cut == after.len() {
                assert_eq!(placed, [Placed::Already; 2]);
            }
            assert_eq!(sink.mark(), (after.len() as u64).to_be_bytes());
        }
    }

    #[test]
    fn other_bytes_under_an_identity_of_the_tail_are_a_conflict() {
        let out = tempfile::tempdir().unwrap();
        let path = out.path().join("records.jsonl");
        JsonLinesSink::open(&path, &[]).unwrap().commit(&[delivery("t", 1, "text/plain", b"x")]).unwrap();
        let mut sink = JsonLinesSink::open(&path, &[]).unwrap();
        assert_eq!(sink.commit(&[delivery("t", 1, "text/plain", b"y")]).unwrap(), [Placed::Conflict]);
        assert!(sink.mark().is_empty());
        assert_eq!(sink.commit(&[delivery("t", 1, "text/plain", b"x")]).unwrap(), [Placed::Already]);
        assert_eq!(keys(&path).len(), 1);
    }

    #[test]
    fn a_file_that_was_rotated_away_is_begun_again() {
        let out = tempfile::tempdir().unwrap();
        let path = out.path().join("records.jsonl");
        let mut sink = JsonLinesSink::open(&path, &1_000_u64.to_be_bytes()).unwrap();
        sink.commit(&[delivery("t", 1, "text/plain", b"x")]).unwrap();
        assert_eq!(keys(&path).len(), 1);
    }
}

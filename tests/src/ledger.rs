//! The books of a whole site: what was sealed, acknowledged and delivered, counted from what the programs left behind.
//!
//! Nothing here comes from a variable of the test's own: the devices' summaries are what their processes printed, the
//! deliveries are what lies in the sink, the calls are what the decryptor's metrics say.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
};

use anyhow::{Context as _, bail};
use base64ct::{Base64, Encoding as _};
use pithead_proto::batch::v1::Batch;
use prost::Message as _;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::{device::Summary, program::Admin};

/// One line: the numbers of one stream in one run of one device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Line {
    /// The device.
    pub device: String,
    /// 16 hex digits; a later run has a larger one.
    pub run: String,
    /// The stream.
    pub stream: String,
}

/// What lies in the sink.
#[derive(Clone, Debug, Default)]
pub struct Delivered {
    /// The records of every envelope, by line and number.
    envelopes: BTreeMap<Line, BTreeMap<u64, BTreeMap<u32, Vec<u8>>>>,
    /// How many records lie there that lay there before.
    repeated: u64,
    /// How many records lie behind a later one of their line. A folder shows no order.
    disordered: u64,
    /// The word on how each came here.
    assurances: BTreeMap<String, u64>,
    /// An envelope without records (a heartbeat) leaves a trace here too.
    shows_empty_envelopes: bool,
}

#[derive(Deserialize)]
struct JsonLine {
    site: String,
    device: String,
    stream: String,
    run: String,
    seq: u64,
    index: u32,
    data: String,
    assurance: String,
}

impl Delivered {
    /// Reads a sink of JSON lines. No file is an empty sink.
    pub fn from_jsonl(path: &Path) -> anyhow::Result<Self> {
        let mut delivered = Self::default();
        let file = match fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(delivered),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        let mut newest: BTreeMap<Line, (u64, u32)> = BTreeMap::new();
        for (number, line) in (1..).zip(BufReader::new(file).lines()) {
            let line = line?;
            let at = || format!("{} line {number}: {line}", path.display());
            let record: JsonLine = serde_json::from_str(&line).with_context(at)?;
            anyhow::ensure!(record.site == crate::site::SITE, "of another site: {}", at());
            let data = Base64::decode_vec(&record.data).ok().with_context(at)?;
            let key = Line { device: record.device, run: record.run, stream: record.stream };
            *delivered.assurances.entry(record.assurance).or_default() += 1;
            let here = (record.seq, record.index);
            let before = newest.entry(key.clone()).or_default();
            delivered.disordered += u64::from(here < *before);
            *before = here.max(*before);
            delivered.add(key, record.seq, record.index, data);
        }
        Ok(delivered)
    }

    /// Reads a folder sink: `<site>/<device>/<stream>/<run>/<seq>.<ext>`; batches are taken apart.
    pub fn from_folder(root: &Path) -> anyhow::Result<Self> {
        let mut delivered = Self { shows_empty_envelopes: true, ..Self::default() };
        let mut files = Vec::new();
        walk(&root.join(crate::site::SITE), &mut files)?;
        for path in files {
            let below = path.strip_prefix(root)?;
            let parts: Vec<&str> = below.iter().filter_map(|part| part.to_str()).collect();
            let [_, device, stream, run, file] = parts.as_slice() else {
                bail!("{} is not a place of the sink", path.display());
            };
            let Some((seq, ext)) = file.split_once('.') else { bail!("{} has no ending", path.display()) };
            let seq = seq.parse().with_context(|| path.display().to_string())?;
            let line = Line { device: (*device).into(), run: (*run).into(), stream: (*stream).into() };
            let content = fs::read(&path)?;
            if ext == "batch.pb" {
                let batch = Batch::decode(content.as_slice()).with_context(|| path.display().to_string())?;
                delivered.envelopes.entry(line.clone()).or_default().entry(seq).or_default();
                for (index, record) in (0..).zip(batch.records) {
                    delivered.add(line.clone(), seq, index, record.data.to_vec());
                }
            } else {
                delivered.add(line, seq, 0, content);
            }
        }
        Ok(delivered)
    }

    fn add(&mut self, line: Line, seq: u64, index: u32, data: Vec<u8>) {
        let records = self.envelopes.entry(line).or_default().entry(seq).or_default();
        if records.insert(index, data).is_some() {
            self.repeated += 1;
        }
    }

    /// Envelopes, each counted once.
    #[must_use]
    pub fn envelopes(&self) -> u64 {
        self.envelopes.values().map(|line| line.len() as u64).sum()
    }

    /// Records, each counted once.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.envelopes.values().flat_map(BTreeMap::values).map(|records| records.len() as u64).sum()
    }

    /// Records that lie there more than once.
    #[must_use]
    pub fn repeated(&self) -> u64 {
        self.repeated
    }

    /// Records that lie behind a later one of their line, in a sink that shows an order.
    #[must_use]
    pub fn disordered(&self) -> u64 {
        self.disordered
    }

    /// The lines, with the numbers that are there.
    pub fn lines(&self) -> impl Iterator<Item = (&Line, impl Iterator<Item = u64>)> {
        self.envelopes.iter().map(|(line, seqs)| (line, seqs.keys().copied()))
    }

    /// Numbers that are missing below the highest of their line, and records that are missing within an envelope.
    #[must_use]
    pub fn holes(&self) -> u64 {
        let in_line = |seqs: &BTreeMap<u64, BTreeMap<u32, Vec<u8>>>| {
            let highest = seqs.last_key_value().map_or(0, |(highest, _)| *highest);
            let missing = highest - seqs.len() as u64;
            let inside = |records: &BTreeMap<u32, Vec<u8>>| {
                let last = records.last_key_value().map_or(0, |(last, _)| u64::from(*last) + 1);
                last - records.len() as u64
            };
            missing + seqs.values().map(inside).sum::<u64>()
        };
        self.envelopes.values().map(in_line).sum()
    }

    /// Everything that one device recorded, in the order in which it did.
    #[must_use]
    pub fn records_of(&self, device: &str) -> Vec<&[u8]> {
        let lines = self.envelopes.iter().filter(|(line, _)| line.device == device);
        lines.flat_map(|(_, seqs)| seqs.values()).flat_map(BTreeMap::values).map(Vec::as_slice).collect()
    }

    /// How many records came with this word on their way here.
    #[must_use]
    pub fn with_assurance(&self, word: &str) -> u64 {
        self.assurances.get(word).copied().unwrap_or(0)
    }
}

/// How many envelopes each line of a sink of JSON lines has, if each line lies there from number 1 on, in order, without a hole
/// and nothing twice; otherwise an error that names the place. Reads as it goes: for sinks that are too large to be held.
pub fn lines_in_order(path: &Path) -> anyhow::Result<BTreeMap<Line, u64>> {
    let mut newest: BTreeMap<Line, u64> = BTreeMap::new();
    let file = fs::File::open(path).with_context(|| path.display().to_string())?;
    for (number, text) in (1..).zip(BufReader::new(file).lines()) {
        let text = text?;
        let record: JsonLine =
            serde_json::from_str(&text).with_context(|| format!("{} line {number}", path.display()))?;
        let line = Line { device: record.device, run: record.run, stream: record.stream };
        let last = newest.entry(line.clone()).or_default();
        let due = *last + 1;
        anyhow::ensure!(
            record.index > 0 && record.seq == *last || record.index == 0 && record.seq == due,
            "{} line {number}: number {} of {line:?}, where {due} is due",
            path.display(),
            record.seq
        );
        *last = record.seq;
    }
    Ok(newest)
}

fn walk(folder: &Path, files: &mut Vec<std::path::PathBuf>) -> anyhow::Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| folder.display().to_string()),
    };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            walk(&path, files)?;
        } else {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}

/// One hash over records in their order, each with its length: what shows that plaintext is what was sent.
#[must_use]
pub fn hash_of<R: AsRef<[u8]>>(records: impl IntoIterator<Item = R>) -> String {
    let mut hash = Sha256::new();
    for record in records {
        let record = record.as_ref();
        hash.update((record.len() as u64).to_be_bytes());
        hash.update(record);
    }
    hex::encode(hash.finalize())
}

/// The books at the end.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// Sums of what the devices' processes said.
    pub devices: Summary,
    /// Envelopes in the sink. JSON lines do not show an envelope without records (a heartbeat); there it is what the running
    /// decryptor has entered since it started.
    pub delivered_envelopes: u64,
    /// Records in the sink.
    pub delivered_records: u64,
    /// Records that lie in the sink more than once.
    pub repeated: u64,
    /// Records that lie in the sink behind a later one of their line.
    pub disordered: u64,
    /// Numbers that are missing in the sink.
    pub holes: u64,
    /// Envelopes that the decryptor has opened and entered, by its metrics since it started.
    pub applied: u64,
    /// Conflicts by the decryptor's metrics.
    pub conflicts: u64,
    /// Envelopes that the decryptor refused for good.
    pub refused: u64,
    /// Resends that the decryptor recognised.
    pub resends: u64,
    /// Private operations begun, by KMS or with a local key.
    pub unwraps: u64,
    /// Calls of KMS Decrypt, retries counted.
    pub kms_calls: u64,
}

impl Ledger {
    /// Draws it up from the devices' summaries, the sink, and the running decryptor.
    pub async fn draw_up(
        summaries: &[Summary],
        delivered: &Delivered,
        decryptor: Admin,
    ) -> anyhow::Result<Self> {
        let mut devices = Summary::default();
        for summary in summaries {
            devices.records += summary.records;
            devices.envelopes += summary.envelopes;
            devices.acknowledged += summary.acknowledged;
            devices.duplicates += summary.duplicates;
            devices.refused += summary.refused;
            devices.sessions += summary.sessions;
        }
        let count = async |name: &str, label: &str| -> anyhow::Result<u64> {
            Ok(decryptor.metric_where(name, label).await? as u64)
        };
        let envelopes = "pithead_decryptor_envelopes_total";
        let applied = count(envelopes, "\"applied\"").await?;
        Ok(Self {
            devices,
            delivered_envelopes: if delivered.shows_empty_envelopes {
                delivered.envelopes()
            } else {
                applied
            },
            delivered_records: delivered.records(),
            repeated: delivered.repeated(),
            disordered: delivered.disordered(),
            holes: delivered.holes(),
            applied,
            conflicts: count(envelopes, "\"conflict").await?,
            refused: count(envelopes, "\"refused\"").await? + count(envelopes, "\"not_admitted\"").await?,
            resends: count(envelopes, "\"duplicate\"").await?,
            unwraps: count("pithead_unwraps_total", "").await?,
            kms_calls: count("pithead_kms_decrypt_calls_total", "").await?,
        })
    }

    /// Every number that is off, in words. None is what a site promises.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut same = |what: &str, is: u64, should: u64| {
            if is != should {
                faults.push(format!("{what}: {is}, and it should be {should}"));
            }
        };
        let devices = &self.devices;
        same("envelopes acknowledged to devices", devices.acknowledged, devices.envelopes);
        same("envelopes delivered", self.delivered_envelopes, devices.envelopes);
        same("records delivered", self.delivered_records, devices.records);
        same("records delivered more than once", self.repeated, 0);
        same("records delivered out of order", self.disordered, 0);
        same("holes", self.holes, 0);
        same("conflicts", self.conflicts, 0);
        same("envelopes refused", devices.refused + self.refused, 0);
        faults
    }

    /// The faults as an error.
    pub fn check(&self) -> anyhow::Result<()> {
        let faults = self.faults();
        if faults.is_empty() {
            return Ok(());
        }
        let mut text = String::from("the ledger does not balance:");
        for fault in faults {
            // Writing to a String does not fail.
            let _ = write!(text, "\n  {fault}");
        }
        bail!("{text}\n{self:#?}")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn line(seq: u64, index: u32, data: &str) -> String {
        let data = Base64::encode_string(data.as_bytes());
        format!(
            r#"{{"site":"pit-7","device":"truck-1","stream":"can","run":"0000000100000001","seq":{seq},"index":{index},"of":2,"data":"{data}","assurance":"vouched"}}"#
        )
    }

    fn read(lines: &[String]) -> Delivered {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl");
        fs::write(&path, lines.join("\n")).unwrap();
        Delivered::from_jsonl(&path).unwrap()
    }

    #[test]
    fn a_missing_number_and_a_missing_record_are_holes_and_a_second_one_is_a_repetition() {
        let whole = read(&[line(1, 0, "a"), line(1, 1, "b"), line(2, 0, "c")]);
        assert_eq!((whole.envelopes(), whole.records(), whole.holes(), whole.repeated()), (2, 3, 0, 0));
        assert_eq!(whole.records_of("truck-1"), [b"a", b"b", b"c"]);
        assert_eq!(whole.with_assurance("vouched"), 3);
        assert_eq!(read(&[line(1, 0, "a"), line(4, 0, "b")]).holes(), 2);
        assert_eq!(read(&[line(1, 1, "b")]).holes(), 1);
        assert_eq!(read(&[line(1, 0, "a"), line(1, 0, "a")]).repeated(), 1);
        assert_eq!(whole.disordered(), 0);
        assert_eq!(read(&[line(2, 0, "b"), line(1, 0, "a"), line(3, 0, "c")]).disordered(), 1);
    }

    #[test]
    fn a_sink_that_is_not_in_order_names_the_place() {
        let check = |lines: &[String]| {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("out.jsonl");
            fs::write(&path, lines.join("\n")).unwrap();
            lines_in_order(&path)
        };
        let counted = check(&[line(1, 0, "a"), line(1, 1, "b"), line(2, 0, "c")]).unwrap();
        assert_eq!(counted.into_values().collect::<Vec<_>>(), [2]);
        for broken in [[line(1, 0, "a"), line(3, 0, "b")], [line(2, 0, "a"), line(1, 0, "b")]] {
            assert!(check(&broken).is_err(), "{broken:?}");
        }
        let twice = check(&[line(1, 0, "a"), line(2, 0, "b"), line(2, 0, "b")]).unwrap_err().to_string();
        assert!(twice.contains("line 3: number 2"), "{twice}");
    }

    #[test]
    fn the_hash_tells_where_one_record_ends_and_the_next_begins() {
        assert_eq!(hash_of(["ab", "c"]), hash_of(["ab", "c"]));
        assert_ne!(hash_of(["ab", "c"]), hash_of(["a", "bc"]));
        assert_ne!(hash_of(["ab", "c"]), hash_of(["c", "ab"]));
    }

    #[test]
    fn a_ledger_that_does_not_balance_says_which_number_is_off() {
        let devices = Summary { records: 9, envelopes: 3, acknowledged: 3, ..Summary::default() };
        let good = Ledger { devices, delivered_envelopes: 3, delivered_records: 9, ..Ledger::default() };
        good.check().unwrap();
        for broken in [
            Ledger { delivered_records: 8, ..good.clone() },
            Ledger { holes: 1, ..good.clone() },
            Ledger { repeated: 1, ..good.clone() },
            Ledger { disordered: 1, ..good.clone() },
            Ledger { conflicts: 1, ..good.clone() },
            Ledger { devices: Summary { acknowledged: 2, ..devices }, ..good.clone() },
        ] {
            assert_eq!(broken.faults().len(), 1, "{broken:?}");
        }
    }
}

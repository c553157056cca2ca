//! How far large envelopes are on their way into a store, over restarts.
//!
//! ```text
//! DATA/relay-parts/<32 hex digits of SHA-256 of the object's name>.parts
//!   {"version":1,"store":"s3://...","name":"large/...","upload":"...","total":...,"part_bytes":...}
//!   1 <ETag of part 1>
//!   2 <ETag of part 2>
//!   complete
//! ```
//!
//! A line is synced before the next request is made. What a kill leaves without its end of line is cut: that part is put again,
//! under the same number, and replaces itself. A number that is there twice was put twice, as when a call ends while its line is
//! still on the way to the disk; the later one counts.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use pithead_hop::bundle::LargeName;
use pithead_hop::ingest::UploadStore;
use pithead_hop::objects::Parts;
use pithead_hop::program::disk;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

const ENDING: &str = "parts";
const VERSION: u32 = 1;
const COMPLETE: &str = "complete";
/// An ETag is some dozen bytes. What is longer, or has an end of line in it, is no ETag.
const ETAG_MAX: usize = 1_024;
/// 10,000 ETags and their head.
const FILE_MAX: u64 = 16 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Begun {
    version: u32,
    store: String,
    name: String,
    upload: String,
    total: u64,
    part_bytes: u64,
}

/// The folder of them. For one store: what was begun in another one is begun anew.
#[derive(Debug)]
pub(super) struct Journals {
    folder: PathBuf,
    store: String,
}

/// One upload.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    begun: Begun,
    pub(super) etags: Vec<String>,
    pub(super) complete: bool,
}

impl Journals {
    pub(super) async fn open(folder: PathBuf, store: String) -> io::Result<Self> {
        let path = folder.clone();
        blocking(move || disk::create_folder(&path)).await?;
        Ok(Self { folder, store })
    }

    fn path(&self, name: &str) -> PathBuf {
        let digest = Sha256::digest(name);
        let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        self.folder.join(hex).with_extension(ENDING)
    }

    /// What was begun under this name, if it goes on in this store. Blocks.
    pub(super) fn load(&self, name: &str, total: u64) -> io::Result<Option<Journal>> {
        let journal = match Journal::load(&self.path(name)) {
            Ok(journal) => journal,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!(event = "relay.parts_damaged", name, %error);
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let Begun { store, name: of, total: bytes, .. } = &journal.begun;
        Ok((*store == self.store && of == name && *bytes == total).then_some(journal))
    }

    /// Writes down that one has begun; what was written under this name before counts no more. Blocks.
    pub(super) fn begin(
        &self,
        name: &str,
        total: u64,
        part_bytes: u64,
        upload: String,
    ) -> io::Result<Journal> {
        let (store, name) = (self.store.clone(), name.to_owned());
        let begun = Begun { version: VERSION, store, name, upload, total, part_bytes };
        let path = self.path(&begun.name);
        let mut line = serde_json::to_vec(&begun)?;
        line.push(b'\n');
        disk::replace(&path, &line)?;
        Journal::load(&path)
    }

    /// Blocks.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        match std::fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Gives up what was begun for envelopes that are no longer here, whole or in parts.
    pub(super) async fn forget_gone(&self, parts: &Parts, uploads: &UploadStore) {
        let (folder, uploads) = (self.folder.clone(), uploads.clone());
        let gone = blocking(move || {
            let mut gone = Vec::new();
            for path in disk::complete_files(&folder)? {
                if path.extension().is_none_or(|ending| ending != ENDING) {
                    continue;
                }
                let journal = Journal::load(&path);
                let name =
                    journal.as_ref().ok().and_then(|journal| LargeName::parse(&journal.begun.name).ok());
                match (journal, name) {
                    (Ok(journal), Some(name)) if !uploads.is_here(&name.identity) => {
                        gone.push((path, Some(journal)))
                    }
                    (Ok(_), Some(_)) => {}
                    _ => gone.push((path, None)),
                }
            }
            Ok(gone)
        });
        let gone = match gone.await {
            Ok(gone) => gone,
            Err(error) => return tracing::warn!(event = "relay.parts_not_read", %error),
        };
        for (path, journal) in gone {
            if let Some(Journal { begun, complete: false, .. }) = &journal
                && begun.store == self.store
                && let Err(error) = parts.abort(&begun.name, &begun.upload).await
            {
                // Tried again with the next call. A rule of the bucket does it in the end.
                tracing::warn!(event = "relay.parts_not_given_up", name = begun.name, %error);
                if error.fault.may_retry() {
                    // It would give the same answer to all of them, and bundles wait.
                    return;
                }
                continue;
            }
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!(event = "relay.parts_not_read", %error);
            }
        }
    }
}

impl Journal {
    fn load(path: &Path) -> io::Result<Self> {
        let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let file = OpenOptions::new().read(true).append(true).open(path)?;
        if file.metadata()?.len() > FILE_MAX {
            return Err(wrong("larger than any"));
        }
        let bytes = std::fs::read(path)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if whole < bytes.len() {
            file.set_len(whole as u64)?;
            file.sync_all()?;
        }
        let text = std::str::from_utf8(&bytes[..whole]).map_err(|_| wrong("not text"))?;
        let mut lines = text.lines();
        let begun = lines.next().ok_or_else(|| wrong("empty"))?;
        let begun: Begun = serde_json::from_str(begun).map_err(|error| wrong(&error.to_string()))?;
        if begun.version != VERSION || begun.part_bytes == 0 {
            return Err(wrong("of another version"));
        }
        let (mut etags, mut complete) = (Vec::<String>::new(), false);
        for line in lines {
            let part = line.split_once(' ').and_then(|(number, etag)| Some((number.parse().ok()?, etag)));
            match part {
                Some((number, etag)) if (1..=etags.len() + 1).contains(&number) => {
                    etags.truncate(number - 1);
                    etags.push(etag.to_owned());
                }
                None if line == COMPLETE => complete = true,
                _ => return Err(wrong("a line that is none")),
            }
        }
        Ok(Self { file, begun, etags, complete })
    }

    pub(super) fn upload(&self) -> &str {
        &self.begun.upload
    }

    pub(super) fn part_bytes(&self) -> u64 {
        self.begun.part_bytes
    }

    fn line(&mut self, line: &str) -> io::Result<()> {
        self.file.write_all(format!("{line}\n").as_bytes())?;
        self.file.sync_data()
    }

    /// The next part is there. Blocks.
    pub(super) fn part(&mut self, etag: String) -> io::Result<()> {
        if etag.is_empty() || etag.len() > ETAG_MAX || etag.contains(['\n', '\r']) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the store gave no ETag for a part"));
        }
        self.line(&format!("{} {etag}", self.etags.len() + 1))?;
        self.etags.push(etag);
        Ok(())
    }

    /// The object is there. Blocks.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        self.line(COMPLETE)?;
        self.complete = true;
        Ok(())
    }
}

/// Off the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str =
        "large/pit-7/truck-42/lidar/0000000300000001/00000000000000000009-0123456789abcdef.envelope";

    async fn open(folder: &Path, store: &str) -> Journals {
        Journals::open(folder.join("relay-parts"), store.to_owned()).await.unwrap()
    }

    #[tokio::test]
    async fn what_was_put_is_known_at_the_next_start_and_a_torn_line_is_put_again() {
        let folder = tempfile::tempdir().unwrap();
        let journals = open(folder.path(), "s3://pits").await;
        assert!(journals.load(NAME, 100).unwrap().is_none());
        let mut journal = journals.begin(NAME, 100, 10, "upload-1".into()).unwrap();
        for etag in ["\"a\"", "\"b\""] {
            journal.part(etag.into()).unwrap();
        }
        let path = journals.path(NAME);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        let mut journal = journals.load(NAME, 100).unwrap().unwrap();
        assert_eq!(
            (journal.etags.as_slice(), journal.upload(), journal.part_bytes()),
            (&["\"a\"".to_owned()][..], "upload-1", 10)
        );
        journal.part("\"b\"".into()).unwrap();
        journal.finish().unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap().lines().skip(1).collect::<Vec<_>>(),
            ["1 \"a\"", "2 \"b\"", "complete"]
        );
        let journal = journals.load(NAME, 100).unwrap().unwrap();
        assert!(journal.complete && journal.etags.len() == 2);
    }

    #[tokio::test]
    async fn a_part_that_two_calls_have_put_is_the_later_one() {
        let folder = tempfile::tempdir().unwrap();
        let journals = open(folder.path(), "s3://pits").await;
        let mut one = journals.begin(NAME, 100, 10, "upload-1".into()).unwrap();
        let mut other = journals.load(NAME, 100).unwrap().unwrap();
        one.part("\"a\"".into()).unwrap();
        other.part("\"again\"".into()).unwrap();
        other.part("\"b\"".into()).unwrap();
        assert_eq!(journals.load(NAME, 100).unwrap().unwrap().etags, ["\"again\"", "\"b\""]);
    }

    #[tokio::test]
    async fn what_was_begun_elsewhere_or_of_another_size_or_does_not_read_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let journals = open(folder.path(), "s3://pits").await;
        let mut journal = journals.begin(NAME, 100, 10, "upload-1".into()).unwrap();
        assert!(journals.load(NAME, 101).unwrap().is_none());
        assert!(open(folder.path(), "s3://others").await.load(NAME, 100).unwrap().is_none());
        assert_eq!(journal.part("two\nlines".into()).unwrap_err().kind(), io::ErrorKind::InvalidData);
        for line in ["3 \"c\"", "0 \"c\"", "rubbish"] {
            let mut journal = journals.begin(NAME, 100, 10, "upload-1".into()).unwrap();
            journal.line(line).unwrap();
            assert!(journals.load(NAME, 100).unwrap().is_none(), "{line}");
        }
    }
}

//! Large envelopes of a stream: a file each beside its log, which never pass through memory as a whole.
//!
//! ```text
//! FOLDER/files/<run, 16 hexadecimal digits>-<seq>.part        being sealed; rubbish after a cut
//! FOLDER/files/<run, 16 hexadecimal digits>-<seq>.envelope    whole and durable, and then a record in the log speaks of it
//! ```

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use pithead_hop::program::disk;
use pithead_sealing::names::{Identity, Run, Seq};

#[derive(Debug)]
pub(crate) struct Files {
    folder: PathBuf,
}

impl Files {
    /// The files beside the log in `log`. The folder is made with the first of them.
    pub(crate) fn open(log: &Path) -> Self {
        Self { folder: log.join("files") }
    }

    pub(crate) fn path(&self, identity: &Identity) -> PathBuf {
        self.path_of(identity.run, identity.seq)
    }

    fn path_of(&self, run: Run, seq: Seq) -> PathBuf {
        self.folder.join(format!("{run}-{seq}.envelope"))
    }

    fn part(&self, identity: &Identity) -> PathBuf {
        self.folder.join(format!("{}-{}.{}", identity.run, identity.seq, disk::UNFINISHED))
    }

    /// A file to seal into, and its path. It is nobody's before [`Files::publish`].
    pub(crate) fn create(&self, identity: &Identity) -> io::Result<(File, PathBuf)> {
        disk::create_folder(&self.folder)?;
        let part = self.part(identity);
        Ok((File::create(&part)?, part))
    }

    /// Makes it durable under its name.
    pub(crate) fn publish(&self, identity: &Identity) -> io::Result<()> {
        disk::publish(&self.part(identity), &self.path(identity))
    }

    /// Removes what was not finished.
    pub(crate) fn abandon(&self, identity: &Identity) {
        self.remove_path(&self.part(identity));
    }

    /// Removes a file that is not needed. One that cannot be removed is tried again by the next opening.
    pub(crate) fn remove(&self, identity: &Identity) {
        self.remove_path(&self.path(identity));
    }

    fn remove_path(&self, path: &Path) {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(event = "outbox.file_not_removed", path = %path.display(), %error);
            }
            Ok(()) | Err(_) => {}
        }
    }

    /// How long a file is; nothing if there is none.
    pub(crate) fn len(&self, identity: &Identity) -> u64 {
        self.len_of(identity.run, identity.seq)
    }

    pub(crate) fn len_of(&self, run: Run, seq: Seq) -> u64 {
        fs::metadata(self.path_of(run, seq)).map_or(0, |metadata| metadata.len())
    }

    /// It is certain that there is none.
    pub(crate) fn is_missing(&self, identity: &Identity) -> bool {
        matches!(fs::metadata(self.path(identity)), Err(error) if error.kind() == io::ErrorKind::NotFound)
    }

    /// Bytes of all files, those that are being sealed among them.
    pub(crate) fn bytes(&self) -> u64 {
        let files = fs::read_dir(&self.folder).into_iter().flatten().filter_map(Result::ok);
        files.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
    }

    /// Removes everything but the files of those envelopes; if the log is `damaged`, only what was not finished.
    pub(crate) fn keep_only(&self, kept: &BTreeSet<Identity>, damaged: bool) {
        let kept: BTreeSet<PathBuf> = kept.iter().map(|identity| self.path(identity)).collect();
        for entry in fs::read_dir(&self.folder).into_iter().flatten().filter_map(Result::ok) {
            let path = entry.path();
            let finished = path.extension().is_some_and(|ending| ending == "envelope");
            if kept.contains(&path) || (finished && damaged) {
                continue;
            }
            self.remove_path(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pithead_sealing::names::{DeviceId, Site, StreamName};
    use std::io::Write as _;

    fn identity(seq: u64) -> Identity {
        Identity {
            site: Site::new("pit-7").unwrap(),
            device: DeviceId::new("truck-7").unwrap(),
            stream: StreamName::new("files").unwrap(),
            run: Run::new(9).unwrap(),
            seq: Seq::new(seq).unwrap(),
        }
    }

    #[test]
    fn what_was_not_finished_and_what_nobody_speaks_of_goes_at_the_next_opening() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::open(folder.path());
        for seq in 1..=3 {
            let (mut file, _) = files.create(&identity(seq)).unwrap();
            file.write_all(&[7; 10]).unwrap();
        }
        files.publish(&identity(1)).unwrap();
        files.publish(&identity(2)).unwrap();
        assert_eq!((files.len(&identity(1)), files.len(&identity(3)), files.bytes()), (10, 0, 30));
        Files::open(folder.path()).keep_only(&BTreeSet::from([identity(2)]), true);
        assert_eq!(
            (files.len(&identity(1)), files.bytes()),
            (10, 20),
            "a damaged log speaks for nobody's absence"
        );
        Files::open(folder.path()).keep_only(&BTreeSet::from([identity(2)]), false);
        assert_eq!((files.len(&identity(1)), files.len(&identity(2)), files.bytes()), (0, 10, 10));
        files.remove(&identity(2));
        files.remove(&identity(2));
        assert_eq!(files.bytes(), 0);
    }
}

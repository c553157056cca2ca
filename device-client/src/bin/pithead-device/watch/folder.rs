//! The folder: what is in it, what of that is whole, and where it goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use pithead_hop::program::disk::{self, UNFINISHED};
use tokio::time::Instant;

/// Names that are looked at in one look; what is beyond them waits until some of them are gone.
const ENTRIES_MAX: usize = 10_000;
/// Where files go that were kept.
const SENT: &str = "sent";
/// Files of one name that may lie there.
const SAME_NAME_MAX: u32 = 10_000;

/// What tells a file from another of its name: which it is, how long it is, and when it was written last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Print {
    pub(super) inode: u64,
    pub(super) bytes: u64,
    /// In nanoseconds since 1970.
    pub(super) written_ns: i128,
}

impl Print {
    fn of(metadata: &Metadata) -> Self {
        let written_ns = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        Self { inode: metadata.ino(), bytes: metadata.len(), written_ns }
    }
}

/// A file that is whole.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) name: String,
    pub(super) print: Print,
}

impl Candidate {
    pub(super) fn bytes(&self) -> u64 {
        self.print.bytes
    }
}

/// What one look has found.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Oldest first.
    pub(super) whole: Vec<Candidate>,
    /// Everything that counts as a file here.
    pub(super) names: BTreeSet<String>,
}

#[derive(Debug)]
pub(super) struct Folder {
    dir: PathBuf,
    settle: Duration,
    /// Since when each file is as it is. Bounded by [`ENTRIES_MAX`].
    since: BTreeMap<String, (Print, Instant)>,
}

impl Folder {
    pub(super) fn open(dir: &Path, settle: Duration, moves: bool) -> io::Result<Self> {
        fs::read_dir(dir)?;
        if moves {
            disk::create_folder(&dir.join(SENT))?;
        }
        Ok(Self { dir: dir.to_owned(), settle, since: BTreeMap::new() })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Looks at what is there.
    pub(super) fn look(&mut self, now: Instant) -> io::Result<Seen> {
        let mut seen = Seen::default();
        let mut since = BTreeMap::new();
        for entry in fs::read_dir(&self.dir)?.take(ENTRIES_MAX) {
            let entry = entry?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
            if is_unfinished(&name) {
                continue;
            }
            // It may be gone again; and a link leads to where nobody promised anything.
            let Ok(metadata) = entry.metadata() else { continue };
            if !metadata.is_file() {
                continue;
            }
            let print = Print::of(&metadata);
            let as_before = self.since.get(&name).filter(|(before, _)| *before == print);
            let first_seen = as_before.map_or(now, |(_, at)| *at);
            if self.was_put_here_whole(&metadata) || now.saturating_duration_since(first_seen) >= self.settle
            {
                seen.whole.push(Candidate { name: name.clone(), print });
            }
            seen.names.insert(name.clone());
            since.insert(name, (print, first_seen));
        }
        self.since = since;
        seen.whole.sort_by(|one, other| {
            (one.print.written_ns, &one.name).cmp(&(other.print.written_ns, &other.name))
        });
        Ok(seen)
    }

    /// It was written last long enough before its name was given to it. Both times are the file system's, so a clock that is
    /// wrong is wrong in both.
    fn was_put_here_whole(&self, metadata: &Metadata) -> bool {
        let ns = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
        let written = ns(metadata.mtime(), metadata.mtime_nsec());
        let named = ns(metadata.ctime(), metadata.ctime_nsec());
        let settle = i128::try_from(self.settle.as_nanos()).unwrap_or(i128::MAX);
        settle > 0 && named - written >= settle
    }

    pub(super) fn is_still(&self, candidate: &Candidate) -> bool {
        let there = fs::symlink_metadata(self.path(&candidate.name));
        there.is_ok_and(|metadata| Print::of(&metadata) == candidate.print)
    }

    /// To `sent`, under its name, or with a number behind it if there is one of that name.
    pub(super) fn move_away(&self, name: &str) -> io::Result<()> {
        let sent = self.dir.join(SENT);
        let free = |number: u32| {
            let to = if number == 0 { sent.join(name) } else { sent.join(format!("{name}.{number}")) };
            (!to.exists()).then_some(to)
        };
        let to = (0..SAME_NAME_MAX).find_map(free).ok_or(io::ErrorKind::AlreadyExists)?;
        disk::publish(&self.path(name), &to)?;
        disk::sync_folder(&self.dir)
    }

    pub(super) fn delete(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))?;
        disk::sync_folder(&self.dir)
    }
}

fn is_unfinished(name: &str) -> bool {
    let ending = Path::new(name).extension();
    name.starts_with('.') || ending.is_some_and(|ending| ending == UNFINISHED)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::{fs::FileTimes, time::SystemTime};

    const SETTLE: Duration = Duration::from_secs(2);

    fn whole(folder: &mut Folder, now: Instant) -> Vec<String> {
        folder.look(now).unwrap().whole.into_iter().map(|candidate| candidate.name).collect()
    }

    #[test]
    fn a_file_is_whole_when_it_did_not_change_for_as_long_as_it_takes() {
        let dir = tempfile::tempdir().unwrap();
        let mut folder = Folder::open(dir.path(), SETTLE, true).unwrap();
        let path = dir.path().join("report.csv");
        fs::write(&path, b"one").unwrap();
        for ignored in [".hidden", "other.part"] {
            fs::write(dir.path().join(ignored), b"x").unwrap();
        }
        let start = Instant::now();
        assert!(whole(&mut folder, start).is_empty());
        fs::write(&path, b"one and two").unwrap();
        assert!(whole(&mut folder, start + SETTLE).is_empty(), "it has grown");
        assert_eq!(whole(&mut folder, start + 2 * SETTLE), ["report.csv"]);
        assert_eq!(folder.look(start + 3 * SETTLE).unwrap().names.len(), 1);
    }

    #[test]
    fn a_file_that_was_renamed_into_the_folder_is_whole_at_once_and_the_oldest_goes_first() {
        let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut folder = Folder::open(dir.path(), SETTLE, true).unwrap();
        for (name, second) in [("b", 100), ("a", 200)] {
            let path = elsewhere.path().join(name);
            let file = fs::File::create(&path).unwrap();
            let written = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
            file.set_times(FileTimes::new().set_modified(written)).unwrap();
            disk::publish(&path, &dir.path().join(name)).unwrap();
        }
        assert_eq!(whole(&mut folder, Instant::now()), ["b", "a"]);
    }

    #[test]
    fn what_was_kept_moves_away_and_never_onto_another() {
        let dir = tempfile::tempdir().unwrap();
        let mut folder = Folder::open(dir.path(), Duration::ZERO, true).unwrap();
        for round in 0..3 {
            fs::write(dir.path().join("log"), format!("{round}")).unwrap();
            let candidate = folder.look(Instant::now()).unwrap().whole.remove(0);
            assert!(folder.is_still(&candidate));
            folder.move_away(&candidate.name).unwrap();
            assert!(!folder.is_still(&candidate));
        }
        for (name, said) in [("log", "0"), ("log.1", "1"), ("log.2", "2")] {
            assert_eq!(fs::read_to_string(dir.path().join("sent").join(name)).unwrap(), said);
        }
    }
}

//! A disk that crashes: the second `Fs`, for tests.
//!
//! It forgets what a disk may forget. Unsynced writes survive a crash sector by sector (512 B), each by chance, in any version
//! that was written since the last sync. Names survive in the order in which they were changed, up to some point. A sync that
//! fails keeps some sectors, drops others, and then calls all of them clean, while reads still show what was written.

use crate::fs::{FileRef, Fs, FsFile, Lock};
use std::collections::{BTreeMap, HashMap};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

const SECTOR: usize = 512;

#[derive(Clone)]
pub(crate) struct CrashFs(Arc<Mutex<Disk>>);

pub(crate) struct Disk {
    files: HashMap<u64, Data>,
    folders: BTreeMap<PathBuf, Folder>,
    next_file: u64,
    random: u64,
    locked: bool,
    /// Power is cut before the n-th write, sync or change of a name from now on.
    pub(crate) cut_after: Option<u64>,
    /// The n-th sync of data from now on fails.
    pub(crate) fail_sync_after: Option<u64>,
    /// Bytes that files can still grow.
    pub(crate) space: Option<u64>,
    /// Whether room can be had without writing into it.
    pub(crate) reserves: bool,
    /// Bytes that were written, to whatever file.
    #[cfg(test)]
    pub(crate) written: u64,
    dead: bool,
    /// Syncs do not return while the flag is up.
    pub(crate) hanging: Arc<(Mutex<bool>, Condvar)>,
    /// Each start of the machine has descriptors of its own.
    boot: u64,
}

#[derive(Default, Clone)]
struct Data {
    seen: Vec<u8>,
    kept: Vec<u8>,
    dirty: BTreeMap<usize, Vec<Vec<u8>>>,
}

#[derive(Default)]
struct Folder {
    seen: BTreeMap<String, u64>,
    kept: BTreeMap<String, u64>,
    pending: Vec<BTreeMap<String, u64>>,
}

struct CrashFile {
    disk: Arc<Mutex<Disk>>,
    id: u64,
    boot: u64,
}

struct CrashLock(Arc<Mutex<Disk>>, u64);

impl Lock for CrashLock {}

impl Drop for CrashLock {
    fn drop(&mut self) {
        let mut disk = self.0.lock().expect("no test panics with the lock held");
        if disk.boot == self.1 {
            disk.locked = false;
        }
    }
}

fn dead() -> io::Error {
    io::Error::other("the power is cut")
}

impl Disk {
    pub(crate) fn random(&mut self, below: u64) -> u64 {
        self.random = crate::format::mix(self.random);
        self.random % below
    }

    /// Counts an operation that a crash could come before.
    fn act(&mut self) -> io::Result<()> {
        if let Some(left) = &mut self.cut_after {
            if *left == 0 {
                self.dead = true;
            } else {
                *left -= 1;
            }
        }
        if self.dead { Err(dead()) } else { Ok(()) }
    }

    /// Counts a sync that could fail.
    fn sync_fails(&mut self) -> bool {
        let fails = self.fail_sync_after == Some(0);
        self.fail_sync_after = if fails { None } else { self.fail_sync_after.map(|left| left - 1) };
        fails
    }

    fn folder(&mut self, path: &Path) -> io::Result<(&mut Folder, String)> {
        let name = path.file_name().and_then(|name| name.to_str()).ok_or(io::ErrorKind::InvalidInput)?;
        let folder =
            self.folders.get_mut(path.parent().unwrap_or(Path::new(""))).ok_or(io::ErrorKind::NotFound)?;
        Ok((folder, name.to_owned()))
    }

    fn change(
        &mut self,
        path: &Path,
        change: impl FnOnce(&mut BTreeMap<String, u64>, String),
    ) -> io::Result<()> {
        let (folder, name) = self.folder(path)?;
        change(&mut folder.seen, name);
        let now = folder.seen.clone();
        folder.pending.push(now);
        Ok(())
    }

    /// The power goes and comes back.
    pub(crate) fn crash(&mut self) {
        let folders: Vec<PathBuf> = self.folders.keys().cloned().collect();
        for path in folders {
            let pending = self.folders.get(&path).map_or(0, |folder| folder.pending.len()) as u64;
            let survives = self.random(pending + 1) as usize;
            if let Some(folder) = self.folders.get_mut(&path) {
                if survives > 0 {
                    folder.kept = folder.pending[survives - 1].clone();
                }
                folder.pending.clear();
                folder.seen = folder.kept.clone();
            }
        }
        let mut files = std::mem::take(&mut self.files);
        let mut ids: Vec<u64> = files.keys().copied().collect();
        ids.sort_unstable();
        for data in ids.iter().filter_map(|id| files.remove(id).map(|data| (*id, data))).collect::<Vec<_>>() {
            let (id, mut data) = data;
            for (sector, versions) in std::mem::take(&mut data.dirty) {
                // The old bytes half of the time, else any version since.
                let choice = self.random(2 * versions.len() as u64) as usize;
                if let Some(version) = versions.get(choice) {
                    data.keep(sector, version);
                }
            }
            data.seen = data.kept.clone();
            self.files.insert(id, data);
        }
        self.kill();
    }

    /// The process is killed: the machine, and what it has in memory, goes on.
    pub(crate) fn kill(&mut self) {
        self.locked = false;
        self.dead = false;
        self.cut_after = None;
        self.fail_sync_after = None;
        self.boot += 1;
    }

    pub(crate) const fn is_dead(&self) -> bool {
        self.dead
    }

    /// Changes the last segment in a folder where it lies.
    #[cfg(test)]
    pub(crate) fn edit(&mut self, folder: &str, change: impl FnOnce(&mut [u8])) {
        let names = &self.folders[Path::new(folder)].seen;
        let (_, id) = names.iter().rfind(|(name, _)| name.starts_with("seg-")).expect("a segment");
        let data = self.files.get_mut(id).expect("a file for each name");
        change(&mut data.seen);
        data.kept = data.seen.clone();
    }

    /// Flips a bit of a file where it lies, and says which file.
    #[cfg(test)]
    pub(crate) fn flip(&mut self) -> String {
        let named: Vec<(String, u64)> = self
            .folders
            .values()
            .flat_map(|folder| folder.seen.iter())
            .filter(|(_, id)| self.files.get(id).is_some_and(|data| !data.seen.is_empty()))
            .map(|(name, id)| (name.clone(), *id))
            .collect();
        let pick = self.random(named.len() as u64) as usize;
        let (name, id) = named[pick].clone();
        let bits = self.files[&id].seen.len() as u64 * 8;
        let bit = self.random(bits);
        let data = self.files.get_mut(&id).expect("picked from the list");
        data.seen[(bit / 8) as usize] ^= 1 << (bit % 8);
        data.kept = data.seen.clone();
        format!("{name} bit {bit}")
    }
}

impl Data {
    fn keep(&mut self, sector: usize, bytes: &[u8]) {
        let at = sector * SECTOR;
        if self.kept.len() < at + bytes.len() {
            self.kept.resize(at + bytes.len(), 0);
        }
        self.kept[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

impl CrashFs {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Disk {
            files: HashMap::new(),
            folders: BTreeMap::from([(PathBuf::from("/spool"), Folder::default())]),
            next_file: 0,
            random: seed,
            locked: false,
            cut_after: None,
            fail_sync_after: None,
            space: None,
            reserves: !seed.is_multiple_of(4),
            #[cfg(test)]
            written: 0,
            dead: false,
            hanging: Arc::default(),
            boot: 0,
        })))
    }

    pub(crate) fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().expect("no test panics with the lock held")
    }

    fn file(&self, id: u64, boot: u64) -> FileRef {
        Arc::new(CrashFile { disk: Arc::clone(&self.0), id, boot })
    }
}

impl Fs for CrashFs {
    fn exists(&self, dir: &Path) -> io::Result<bool> {
        Ok(self.disk().folders.contains_key(dir))
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.act()?;
        disk.folders.entry(dir.to_owned()).or_default();
        Ok(())
    }

    fn lock(&self, _: &Path) -> io::Result<Box<dyn Lock>> {
        let mut disk = self.disk();
        if std::mem::replace(&mut disk.locked, true) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(CrashLock(Arc::clone(&self.0), disk.boot)))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<(String, u64)>> {
        let disk = self.disk();
        let folder = disk.folders.get(dir).ok_or(io::ErrorKind::NotFound)?;
        let length = |id: &u64| disk.files.get(id).map_or(0, |data| data.seen.len() as u64);
        Ok(folder.seen.iter().map(|(name, id)| (name.clone(), length(id))).collect())
    }

    fn create(&self, path: &Path) -> io::Result<FileRef> {
        let mut disk = self.disk();
        disk.act()?;
        disk.next_file += 1;
        let id = disk.next_file;
        disk.files.insert(id, Data::default());
        disk.change(path, |names, name| {
            names.insert(name, id);
        })?;
        let boot = disk.boot;
        drop(disk);
        Ok(self.file(id, boot))
    }

    fn open(&self, path: &Path) -> io::Result<FileRef> {
        let mut disk = self.disk();
        if disk.dead {
            return Err(dead());
        }
        let (folder, name) = disk.folder(path)?;
        let id = *folder.seen.get(&name).ok_or(io::ErrorKind::NotFound)?;
        let boot = disk.boot;
        drop(disk);
        Ok(self.file(id, boot))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.act()?;
        let (folder, old) = disk.folder(from)?;
        let id = *folder.seen.get(&old).ok_or(io::ErrorKind::NotFound)?;
        disk.change(to, |names, name| {
            names.remove(&old);
            names.insert(name, id);
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.act()?;
        let (folder, name) = disk.folder(path)?;
        let id = *folder.seen.get(&name).ok_or(io::ErrorKind::NotFound)?;
        let freed = disk.files.get(&id).map_or(0, |data| data.seen.len() as u64);
        disk.space = disk.space.map(|space| space + freed);
        disk.change(path, |names, name| {
            names.remove(&name);
        })
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.act()?;
        let folder = disk.folders.get_mut(dir).ok_or(io::ErrorKind::NotFound)?;
        folder.kept = folder.seen.clone();
        folder.pending.clear();
        Ok(())
    }
}

impl CrashFile {
    fn disk(&self) -> io::Result<MutexGuard<'_, Disk>> {
        let disk = self.disk.lock().expect("no test panics with the lock held");
        // A descriptor of a process that is gone does nothing any more.
        if disk.boot == self.boot { Ok(disk) } else { Err(dead()) }
    }
}

impl FsFile for CrashFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let disk = self.disk()?;
        if disk.dead {
            return Err(dead());
        }
        let data = disk.files.get(&self.id).ok_or(io::ErrorKind::NotFound)?;
        let at = offset as usize;
        let found = data.seen.get(at..at + buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(found);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut disk = self.disk()?;
        if disk.dead {
            return Err(dead());
        }
        let cut = disk.act();
        #[cfg(test)]
        {
            disk.written += bytes.len() as u64;
        }
        let Disk { files, space, .. } = &mut *disk;
        let data = files.get_mut(&self.id).ok_or(io::ErrorKind::NotFound)?;
        let at = offset as usize;
        let growth = (at + bytes.len()).saturating_sub(data.seen.len());
        if let Some(space) = space {
            *space = space.checked_sub(growth as u64).ok_or(io::ErrorKind::StorageFull)?;
        }
        data.seen.resize(data.seen.len() + growth, 0);
        data.seen[at..at + bytes.len()].copy_from_slice(bytes);
        for sector in at / SECTOR..(at + bytes.len()).div_ceil(SECTOR) {
            let end = ((sector + 1) * SECTOR).min(data.seen.len());
            let version = data.seen[sector * SECTOR..end].to_vec();
            data.dirty.entry(sector).or_default().push(version);
        }
        // The write during which the power goes has reached the disk in part.
        cut
    }

    fn write_slices_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut at = offset;
        for slice in slices {
            self.write_at(slice, at)?;
            at += slice.len() as u64;
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        // Not under the disk's lock: whoever lets it go on has to get at it.
        let hanging = Arc::clone(&self.disk()?.hanging);
        let (flag, lowered) = &*hanging;
        let up = flag.lock().expect("no test panics with the lock held");
        drop(lowered.wait_while(up, |up| *up).expect("no test panics with the lock held"));
        let mut disk = self.disk()?;
        disk.act()?;
        let fails = disk.sync_fails();
        let mut data = disk.files.remove(&self.id).ok_or(io::ErrorKind::NotFound)?;
        for (sector, versions) in std::mem::take(&mut data.dirty) {
            if let (Some(version), true) = (versions.last(), !fails || disk.random(2) == 0) {
                data.keep(sector, version);
            }
        }
        disk.files.insert(self.id, data);
        if fails { Err(io::Error::other("the n-th sync fails")) } else { Ok(()) }
    }

    fn reserve(&self, bytes: u64) -> io::Result<bool> {
        let mut disk = self.disk()?;
        if !disk.reserves {
            return Ok(false);
        }
        disk.act()?;
        if disk.sync_fails() {
            return Err(io::Error::other("the n-th sync fails"));
        }
        let Disk { files, space, .. } = &mut *disk;
        let data = files.get_mut(&self.id).ok_or(io::ErrorKind::NotFound)?;
        let growth = bytes.saturating_sub(data.seen.len() as u64);
        if let Some(space) = space {
            *space = space.checked_sub(growth).ok_or(io::ErrorKind::StorageFull)?;
        }
        for bytes_of in [&mut data.seen, &mut data.kept] {
            bytes_of.resize(bytes_of.len().max(bytes as usize), 0);
        }
        Ok(true)
    }
}

//! State in two files, written in turn.
//!
//! `NAME.a` and `NAME.b` each hold one copy:
//!
//! ```text
//!  0        8            16      20      24
//!  | magic  | generation | length| crc32c| payload ... |
//!  | PTHSLOT1 | u64 BE   | u32 BE| u32 BE|             |
//! ```
//!
//! The checksum covers generation, length and payload. A save writes the copy that is *not* the newest and syncs it
//! before it counts, so a power cut can only damage the copy that nobody relies on yet. The newest copy that reads
//! back whole wins. No rename: some flash file systems reorder it against the data.
//!
//! One process writes: `NAME.lock` is locked from [`FileStore::lock`], or from the first save, for as long as the store
//! lives. Two writers with a memory each of which copy is the newest would put the older state on top of the newer one.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use super::{MAX_STATE_BYTES, StateError, StateStore};

const MAGIC: &[u8; 8] = b"PTHSLOT1";
const HEAD_BYTES: usize = 24;

/// State in a folder of the file system.
#[derive(Debug)]
pub struct FileStore {
    base: PathBuf,
    /// Which copy is the newest, and its generation; nothing before the first load or if there is none.
    newest: Option<(Copy, u64)>,
    lock: Option<File>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copy {
    A,
    B,
}

impl Copy {
    fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    fn ending(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }
}

impl FileStore {
    /// The state called `name` in `folder`, which must exist.
    #[must_use]
    pub fn new(folder: &Path, name: &str) -> Self {
        Self { base: folder.join(name), newest: None, lock: None }
    }

    /// Makes this store the one that writes. A save does it as well, and is refused if the state has been moved by another
    /// process since it was loaded here: whoever means to write for long locks before loading.
    ///
    /// # Errors
    /// [`StateError::Locked`] while another store writes, in this process or another.
    pub fn lock(&mut self) -> Result<(), StateError> {
        if self.lock.is_none() {
            let path = self.path("lock");
            let io = |source| StateError::Io { path: path.clone(), source };
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(io)?;
            match file.try_lock() {
                Ok(()) => self.lock = Some(file),
                Err(TryLockError::WouldBlock) => return Err(StateError::Locked { path: self.base.clone() }),
                Err(TryLockError::Error(error)) => return Err(io(error)),
            }
        }
        Ok(())
    }

    /// The name with an ending more; a dot in the name is no ending.
    fn path(&self, ending: &str) -> PathBuf {
        let mut path = self.base.clone().into_os_string();
        path.push(".");
        path.push(ending);
        path.into()
    }

    fn read(&self, copy: Copy) -> Result<Found, StateError> {
        let path = self.path(copy.ending());
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(source) => return Err(StateError::Io { path, source }),
        };
        let mut bytes = Vec::new();
        let limit = (HEAD_BYTES + MAX_STATE_BYTES + 1) as u64;
        match file.take(limit).read_to_end(&mut bytes) {
            Ok(_) => Ok(decode(&bytes)
                .map_or(Found::Pieces, |(generation, state)| Found::Whole { generation, state })),
            Err(source) => Err(StateError::Io { path, source }),
        }
    }

    fn write(&self, copy: Copy, bytes: &[u8]) -> io::Result<()> {
        let path = self.path(copy.ending());
        let new = !path.exists();
        let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(&path)?;
        file.write_all(bytes)?;
        file.set_len(bytes.len() as u64)?;
        file.sync_all()?;
        // A new file's name is in its folder's data, which has a sync of its own.
        if new && let Some(folder) = path.parent() {
            fs::File::open(folder)?.sync_all()?;
        }
        Ok(())
    }
}

impl StateStore for FileStore {
    fn load(&mut self) -> Result<Option<Vec<u8>>, StateError> {
        let mut newest: Option<(Copy, u64, Vec<u8>)> = None;
        let mut pieces = false;
        for copy in [Copy::A, Copy::B] {
            match self.read(copy)? {
                Found::Whole { generation, state }
                    if newest.as_ref().is_none_or(|(_, at, _)| *at < generation) =>
                {
                    newest = Some((copy, generation, state));
                }
                Found::Whole { .. } | Found::Nothing => {}
                Found::Pieces => pieces = true,
            }
        }
        match newest {
            Some((copy, generation, state)) => {
                self.newest = Some((copy, generation));
                Ok(Some(state))
            }
            None if pieces => Err(StateError::Damaged { path: self.base.clone() }),
            None => Ok(None),
        }
    }

    fn save(&mut self, state: &[u8]) -> Result<(), StateError> {
        if state.len() > MAX_STATE_BYTES {
            return Err(StateError::TooLarge { bytes: state.len() });
        }
        let unlocked = self.lock.is_none();
        self.lock()?;
        if unlocked || self.newest.is_none() {
            // Never overwrite a copy without knowing whether it is the one to keep. Damage of both is no reason
            // to refuse: whoever saves has decided to begin anew.
            let loaded = self.newest;
            match self.load() {
                Ok(_) | Err(StateError::Damaged { .. }) => {}
                Err(error) => return Err(error),
            }
            // What was loaded may have been moved by another process before the lock was ours.
            if loaded.is_some() && loaded != self.newest {
                return Err(StateError::Moved { path: self.base.clone() });
            }
        }
        let (copy, generation) = match self.newest {
            Some((newest, generation)) => (newest.other(), generation + 1),
            None => (Copy::A, 1),
        };
        let written = self.write(copy, &encode(generation, state));
        written.map_err(|source| StateError::Io { path: self.path(copy.ending()), source })?;
        self.newest = Some((copy, generation));
        Ok(())
    }
}

/// What one of the two files holds.
#[derive(Debug)]
enum Found {
    Nothing,
    /// A power cut or a bad sector left it in pieces.
    Pieces,
    Whole {
        generation: u64,
        state: Vec<u8>,
    },
}

fn encode(generation: u64, state: &[u8]) -> Vec<u8> {
    let length = u32::try_from(state.len()).expect("bounded by MAX_STATE_BYTES");
    let mut bytes = Vec::with_capacity(HEAD_BYTES + state.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&generation.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&checksum(&bytes[8..20], state).to_be_bytes());
    bytes.extend_from_slice(state);
    bytes
}

/// Generation and state, if every byte is as it was written.
fn decode(bytes: &[u8]) -> Option<(u64, Vec<u8>)> {
    let (head, payload) = bytes.split_at_checked(HEAD_BYTES)?;
    let field = |from: usize| head[from..from + 4].try_into().ok().map(u32::from_be_bytes);
    let generation = u64::from_be_bytes(head[8..16].try_into().ok()?);
    let whole = &head[..8] == MAGIC
        && usize::try_from(field(16)?).is_ok_and(|length| length == payload.len())
        && field(20)? == checksum(&head[8..20], payload);
    whole.then(|| (generation, payload.to_vec()))
}

fn checksum(head: &[u8], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(head), payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(folder: &tempfile::TempDir) -> FileStore {
        FileStore::new(folder.path(), "trust")
    }

    #[test]
    fn what_was_saved_last_is_loaded_by_the_next_process() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(store(&folder).load().unwrap(), None);
        for state in [b"one".as_slice(), b"two, and longer", b"3"] {
            store(&folder).save(state).unwrap();
            assert_eq!(store(&folder).load().unwrap().as_deref(), Some(state));
        }
    }

    #[test]
    fn a_save_cut_at_any_byte_leaves_the_old_state_or_the_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = store(&folder);
        writer.save(b"first").unwrap();
        writer.save(b"second").unwrap();
        let a = folder.path().join("trust.a");
        let old = fs::read(&a).unwrap();
        let new = encode(3, b"third");
        for cut in 0..=new.len() {
            let mut torn = new[..cut].to_vec();
            torn.extend_from_slice(old.get(cut..).unwrap_or_default());
            fs::write(&a, &torn).unwrap();
            let loaded = store(&folder).load().unwrap().unwrap();
            let expected: &[u8] = if torn == new { b"third" } else { b"second" };
            assert_eq!(loaded, expected, "cut at {cut}");
        }
    }

    #[test]
    fn any_flipped_bit_of_the_newest_copy_brings_the_one_before_it_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = store(&folder);
        writer.save(b"first").unwrap();
        writer.save(b"second").unwrap();
        let b = folder.path().join("trust.b");
        let whole = fs::read(&b).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&b, flipped).unwrap();
            assert_eq!(store(&folder).load().unwrap().as_deref(), Some(b"first".as_slice()), "bit {bit}");
        }
    }

    #[test]
    fn when_neither_copy_reads_back_it_says_so_and_a_save_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        store(&folder).save(b"first").unwrap();
        fs::write(folder.path().join("trust.a"), b"PTHSLOT1 garbage").unwrap();
        assert!(matches!(store(&folder).load(), Err(StateError::Damaged { .. })));
        store(&folder).save(b"anew").unwrap();
        assert_eq!(store(&folder).load().unwrap().as_deref(), Some(b"anew".as_slice()));
    }

    #[test]
    fn one_store_writes_and_another_neither_overtakes_it_nor_puts_old_state_on_top() {
        let folder = tempfile::tempdir().unwrap();
        store(&folder).save(b"first").unwrap();
        let (mut one, mut two) = (store(&folder), store(&folder));
        one.load().unwrap();
        two.load().unwrap();
        one.save(b"newer").unwrap();
        assert!(matches!(two.save(b"old"), Err(StateError::Locked { .. })));
        drop(one);
        assert!(matches!(two.save(b"old"), Err(StateError::Moved { .. })));
        assert_eq!(store(&folder).load().unwrap().as_deref(), Some(b"newer".as_slice()));
    }

    #[test]
    fn a_dot_in_a_name_keeps_two_states_apart() {
        let folder = tempfile::tempdir().unwrap();
        let mut trust = FileStore::new(folder.path(), "truck.trust");
        trust.save(b"trust").unwrap();
        FileStore::new(folder.path(), "truck.sequence").save(b"sequence").unwrap();
        assert_eq!(trust.load().unwrap().as_deref(), Some(b"trust".as_slice()));
    }

    #[test]
    fn the_bytes_of_a_copy_are_fixed() {
        let bytes = encode(7, b"pit");
        assert_eq!(hex::encode(&bytes), "505448534c4f543100000000000000070000000325dee3b1706974");
    }

    #[test]
    fn a_state_that_is_too_large_is_refused_and_the_old_one_stands() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = store(&folder);
        writer.save(b"first").unwrap();
        let refused = writer.save(&vec![0; MAX_STATE_BYTES + 1]);
        assert!(matches!(refused, Err(StateError::TooLarge { bytes }) if bytes == MAX_STATE_BYTES + 1));
        assert_eq!(store(&folder).load().unwrap().as_deref(), Some(b"first".as_slice()));
    }
}

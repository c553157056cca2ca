//! Small state that must survive a power cut: the trust record, and where the lines stand.
//!
//! A [`StateStore`] replaces its whole content atomically: after a cut at any moment, [`StateStore::load`] gives what
//! the last finished [`StateStore::save`] wrote, or what the one under way was writing, and nothing in between.
//!
//! [`FileStore`] is for a file system, [`MemoryStore`] for tests and for devices that are enrolled anew at each
//! start; an embedder with a storage of its own (EEPROM, a settings service) implements the trait.

#[cfg(feature = "client")]
mod closed;
mod file;

use std::{
    fmt, io,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

#[cfg(feature = "client")]
pub(crate) use closed::ClosedStore;
pub use file::FileStore;

/// Atomic storage for one small value, at most [`MAX_STATE_BYTES`].
pub trait StateStore: Send + fmt::Debug {
    /// What was saved last, or nothing if nothing ever was.
    fn load(&mut self) -> Result<Option<Vec<u8>>, StateError>;

    /// Replaces the content. When this returns `Ok`, it is durable; on an error, the content before it stands.
    fn save(&mut self, state: &[u8]) -> Result<(), StateError>;
}

/// The largest state that is kept: a trust record is about 3 kB, the lines of 16 streams less than 1 kB.
pub const MAX_STATE_BYTES: usize = 64 * 1024;

/// Why state could not be loaded or saved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The storage failed. What was saved before stands.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is something, and none of it reads back whole.
    #[error("{}: neither copy of the state reads back; restore the file or enrol again", path.display())]
    Damaged {
        /// The file, without the ending of a copy.
        path: PathBuf,
    },
    /// Another process writes this state.
    #[error("{}: another process has it open for writing", path.display())]
    Locked {
        /// The file, without the ending of a copy.
        path: PathBuf,
    },
    /// Another process has written it since it was loaded here; nothing was saved.
    #[error("{}: another process has moved it meanwhile; open it again", path.display())]
    Moved {
        /// The file, without the ending of a copy.
        path: PathBuf,
    },
    /// Larger than [`MAX_STATE_BYTES`].
    #[error("{bytes} bytes of state are more than the {MAX_STATE_BYTES} that are kept")]
    TooLarge {
        /// How large it is.
        bytes: usize,
    },
}

/// Keeps the state in memory. It is gone with the process.
#[derive(Debug, Default)]
pub struct MemoryStore(Option<Vec<u8>>);

impl StateStore for MemoryStore {
    fn load(&mut self) -> Result<Option<Vec<u8>>, StateError> {
        Ok(self.0.clone())
    }

    fn save(&mut self, state: &[u8]) -> Result<(), StateError> {
        if state.len() > MAX_STATE_BYTES {
            return Err(StateError::TooLarge { bytes: state.len() });
        }
        self.0 = Some(state.to_vec());
        Ok(())
    }
}

/// A lock whose holder panicked is taken all the same: what it guards is valid after every statement.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

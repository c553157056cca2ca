//! A device on a disk: trust, numbers, and the outbox, in one folder.
//!
//! ```text
//! FOLDER/trust.a  trust.b         what is believed (two slots)
//! FOLDER/sequence.a  sequence.b   where the lines stand (two slots)
//! FOLDER/trust.lock sequence.lock held by the one process that writes
//! FOLDER/outbox/                  sealed envelopes that wait (a spool)
//! ```
//!
//! [`Device::append`] is the whole envelope path of the device: seal as the next number, put into the outbox, hand out a
//! [`Stored`]. The envelope may leave when that has resolved; the uplink sees to it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use pithead_sealing::{
    envelope::KernelEntropy,
    names::{DeviceId, Identity, Site, StreamName},
};
use pithead_spool::{AppendError, NotDurable, Options, Position, Recovery, Ticket};

use crate::{
    INLINE_LIMIT_BYTES,
    clock::DeviceClock,
    keys::{Keys, KeysError},
    outbox::{self, Outbox},
    sealer::{self, Content, SealError, Sealer},
    sequence::{Sequence, SequenceError},
    state::FileStore,
};

/// Why a device could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The folder cannot be made or used.
    #[error("{}: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Its trust.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// Its numbers.
    #[error(transparent)]
    Sequence(#[from] SequenceError),
    /// Its outbox.
    #[error("the outbox: {0}")]
    Outbox(#[from] pithead_spool::OpenError),
}

/// Why an envelope was not taken. Nothing was stored, and no number was used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppendRefused {
    /// It could not be sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The outbox did not take it: full, or its disk failed. See [`AppendError::is_retryable`].
    #[error("the outbox: {0}")]
    Outbox(#[from] AppendError),
    /// The envelope would be larger than a gateway takes in one piece.
    #[error("the envelope would have {bytes} bytes, the limit for one piece is {limit}; split it")]
    TooLarge {
        /// How large the envelope would be.
        bytes: u64,
        /// [`INLINE_LIMIT_BYTES`].
        limit: u64,
    },
}

/// An envelope on its way to the disk.
#[derive(Debug)]
#[must_use = "the envelope is kept only when this has resolved"]
pub struct Stored {
    /// What it is filed under.
    pub identity: Identity,
    ticket: Ticket,
}

impl Stored {
    /// Blocks until it survives a power cut. Not for async tasks: await [`Stored::durable`] there.
    pub fn wait(self) -> Result<Position, NotDurable> {
        self.ticket.wait()
    }

    /// Resolves when it survives a power cut. Cancel safe: dropping the future takes nothing back.
    pub async fn durable(self) -> Result<Position, NotDurable> {
        self.ticket.await
    }
}

/// A device, open for writing. One process at a time: the outbox is locked.
#[derive(Debug)]
pub struct Device {
    sealer: Sealer,
    outbox: Outbox,
    recovery: Recovery,
}

impl Device {
    /// Enrols a device in `folder`: the trust root is what it believes from now on.
    pub fn enroll(folder: &Path, authority: &str, site: &Site, root: &[u8]) -> Result<Keys, OpenError> {
        let error = |source| OpenError::Folder { path: folder.to_owned(), source };
        fs::create_dir_all(folder).map_err(error)?;
        let store = Box::new(trust_store(folder));
        Ok(Keys::enroll(authority, site, root, store, DeviceClock::start())?)
    }

    /// Opens the trust record alone, for those who only ask about keys. While a [`Device`] is open on the folder, what
    /// would move the record is refused with [`crate::state::StateError::Locked`].
    pub fn open_keys(folder: &Path, site: &Site, clock: DeviceClock) -> Result<Keys, OpenError> {
        Ok(Keys::open(site, Box::new(trust_store(folder)), clock)?)
    }

    /// Opens an enrolled device and begins a run. What the outbox holds from before is sent as the bytes it was.
    pub fn open(
        folder: &Path,
        site: &Site,
        device: DeviceId,
        options: Options,
        clock: DeviceClock,
    ) -> Result<Self, OpenError> {
        let mut trust = trust_store(folder);
        // A folder that nobody enrolled has no place for a lock either, and that is told by the loading.
        if folder.is_dir() {
            trust.lock().map_err(KeysError::from)?;
        }
        let keys = Keys::open(site, Box::new(trust), clock)?;
        let (spool, recovery) = Outbox::recover(&folder.join("outbox"), options)?;
        let store = Box::new(FileStore::new(folder, "sequence"));
        let sequence = Sequence::open(store, outbox::lines(&spool), &mut KernelEntropy)?;
        let sequence = Arc::new(Mutex::new(sequence));
        let outbox = Outbox::new(spool, Arc::clone(&sequence));
        Ok(Self { sealer: Sealer::sharing(device, keys, sequence), outbox, recovery })
    }

    /// Seals `plaintext` as the next number of `stream` and puts it into the outbox.
    pub fn append(
        &mut self,
        stream: &StreamName,
        content: &Content,
        plaintext: &[u8],
    ) -> Result<Stored, AppendRefused> {
        let bytes = self.sealer.sealed_len(stream, content, plaintext.len() as u64)?.unwrap_or(u64::MAX);
        if bytes > INLINE_LIMIT_BYTES {
            return Err(AppendRefused::TooLarge { bytes, limit: INLINE_LIMIT_BYTES });
        }
        let envelope = self.sealer.prepare(stream, content, plaintext)?;
        let at_ms = u64::try_from(DeviceClock::wall_us() / 1_000).unwrap_or(0);
        let ticket = self.outbox.append(&envelope, at_ms)?;
        // Only now: a refusal above leaves no hole.
        self.sealer.commit(envelope.identity());
        Ok(Stored { identity: envelope.identity().clone(), ticket })
    }

    /// Trust, numbers and sealing.
    #[must_use]
    pub fn sealer(&self) -> &Sealer {
        &self.sealer
    }

    /// Trust, numbers and sealing, to change them.
    pub fn sealer_mut(&mut self) -> &mut Sealer {
        &mut self.sealer
    }

    /// What waits to be sent.
    #[must_use]
    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// What opening the outbox found: a torn tail after a power cut, or damage.
    #[must_use]
    pub fn recovery(&self) -> &Recovery {
        &self.recovery
    }

    /// Writes everything down and lets go of the folder.
    pub fn close(self) -> Result<(), CloseError> {
        self.sealer.close()?;
        Ok(self.outbox.close()?)
    }
}

/// What could not be written down at the end. Everything that was durable stays so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CloseError {
    /// Trust or numbers.
    #[error(transparent)]
    Sealer(#[from] sealer::CloseError),
    /// The outbox.
    #[error(transparent)]
    Outbox(#[from] outbox::CloseError),
}

fn trust_store(folder: &Path) -> FileStore {
    FileStore::new(folder, "trust")
}

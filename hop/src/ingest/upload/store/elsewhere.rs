//! Large envelopes whose bytes lie elsewhere: where several machines share what waits, another one may have gathered them.
//!
//! Such a one has its place in the budget as if its bytes were here, so that there is room for them when they are fetched: nothing that
//! comes later may take it. It is taken as any other that waits to be passed on, and only reading it needs its bytes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use pithead_proto::ingest::v1::Hop;
use pithead_sealing::Identity;
use pithead_sealing::envelope::{Header, HeaderReader};
use sha2::{Digest as _, Sha256};

use super::super::layout::{HeaderHash, Meta, Paths, header_hash};
use super::super::part::{PartFile, PutError};
use super::{Phase, Upload, UploadStore};

/// Bytes that are fetched between two syncs.
const SYNC_BYTES: u64 = 8 << 20;

/// Why fetched bytes are not the envelope.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BringError {
    /// They are another envelope's, or none's: as good as gone.
    #[error("what was fetched is not the envelope: {0}")]
    Damaged(String),
    /// This disk does not take them; or the envelope is wanted no more. It may be tried again.
    #[error(transparent)]
    Disk(#[from] io::Error),
}

impl From<PutError> for BringError {
    fn from(error: PutError) -> Self {
        match error {
            PutError::Beyond => Self::Damaged("bytes are left out".to_owned()),
            PutError::Structure(error) => Self::Damaged(error.to_string()),
            PutError::Disk(error) => Self::Disk(error),
        }
    }
}

impl UploadStore {
    /// The log has a record of it: it is taken, and has its place, whether its bytes are here or elsewhere. What is here of it counts only
    /// if it is whole and of this header; anything else goes. Blocks.
    ///
    /// # Errors
    /// What the disk says; then nothing has changed.
    pub fn recorded(
        &self,
        identity: &Identity,
        header_sha256: &HeaderHash,
        total: u64,
        now: Duration,
    ) -> io::Result<()> {
        if let Some(there) = self.get(identity) {
            let is_it = there.header == *header_sha256 && there.total == total;
            if is_it && matches!(there.phase(), Phase::Whole | Phase::Taken) {
                self.taken(identity);
                return Ok(());
            }
            self.end(&there, Paths::remove)?;
        }
        let paths = Paths::new(&self.0.folder, identity);
        let upload = Upload::new(identity.clone(), *header_sha256, total, paths, Phase::Taken, total, now);
        upload.lock().away = true;
        self.lock().insert(identity.clone(), upload);
        Ok(())
    }

    /// Whether it waits, and its bytes are not here.
    pub fn is_away(&self, identity: &Identity) -> bool {
        self.get(identity).is_some_and(|upload| {
            let state = upload.lock();
            state.away && is_kept(&state.phase)
        })
    }

    /// Those that are taken, and those whose bytes are elsewhere.
    pub fn taken_ones(&self) -> Vec<Identity> {
        let taken = |upload: &&Arc<Upload>| {
            let state = upload.lock();
            state.phase == Phase::Taken || state.away
        };
        self.lock().values().filter(taken).map(|upload| upload.identity.clone()).collect()
    }

    /// Nobody here answers for it any more. What is here of it is kept for as long as an upload may make no progress, since it may be
    /// taken again; a place without bytes goes at once. Blocks.
    ///
    /// # Errors
    /// What the disk says.
    pub fn untake(&self, identity: &Identity, now: Duration) -> io::Result<()> {
        let Some(upload) = self.get(identity) else { return Ok(()) };
        let is_away = {
            let mut state = upload.lock();
            if state.phase == Phase::Taken && !state.away {
                (state.phase, state.owed, state.progress) = (Phase::Whole, false, now);
            }
            state.away
        };
        if is_away { self.end(&upload, Paths::remove) } else { Ok(()) }
    }

    /// What is here of it is damaged, and it lies elsewhere as well: it goes from here, and keeps its place. Blocks.
    ///
    /// # Errors
    /// What the disk says.
    pub fn send_away(&self, identity: &Identity) -> io::Result<()> {
        let Some(upload) = self.get(identity) else { return Ok(()) };
        let mut part = upload.part();
        if upload.phase() != Phase::Taken {
            return Ok(());
        }
        *part = None;
        upload.lock().away = true;
        upload.paths.remove()
    }

    /// Begins to bring the bytes of one that is away, from its first on; `hops` is its custody. What an earlier attempt has left here is
    /// written over. None if it is not away.
    pub fn bring(&self, identity: &Identity, hops: Vec<Hop>) -> Option<Bringing> {
        let upload = self.get(identity).filter(|_| self.is_away(identity))?;
        Some(Bringing { upload, hops, file: None, hash: Sha256::new(), at: 0 })
    }
}

/// A large envelope whose bytes are being brought here. Dropped, what is here of it is nobody's until it is begun again or wanted no more.
#[derive(Debug)]
pub struct Bringing {
    upload: Arc<Upload>,
    hops: Vec<Hop>,
    file: Option<PartFile>,
    hash: Sha256,
    at: u64,
}

impl Bringing {
    /// Where the next bytes begin.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Bytes of the whole envelope.
    pub fn total(&self) -> u64 {
        self.upload.total
    }

    fn is_wanted(&self) -> Result<(), BringError> {
        if is_kept(&self.upload.phase()) {
            Ok(())
        } else {
            Err(BringError::Disk(io::ErrorKind::NotFound.into()))
        }
    }

    /// The next bytes; the first have to hold the whole header. Judged as those that a device brings. Blocks.
    ///
    /// # Errors
    /// [`BringError`]; then begin anew.
    pub fn put(&mut self, bytes: &[u8]) -> Result<(), BringError> {
        let upload = Arc::clone(&self.upload);
        // Whoever takes it away removes its files under this lock, and none is made after that.
        let _part = upload.part();
        self.is_wanted()?;
        if self.file.is_none() {
            let header = header_of(bytes)?;
            if header_hash(&header) != upload.header {
                return Err(BringError::Damaged("it has another header".to_owned()));
            }
            let meta = Meta { total: upload.total, header, hops: self.hops.clone() };
            self.file = Some(PartFile::create(&upload.paths, &meta)?);
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        file.put(self.at, bytes)?;
        self.hash.update(bytes);
        self.at += bytes.len() as u64;
        if file.unsynced() >= SYNC_BYTES {
            file.sync()?;
        }
        Ok(())
    }

    /// All bytes were put: if their SHA-256 is this one, they are the envelope, and are here for whoever reads it. Blocks.
    ///
    /// # Errors
    /// [`BringError`].
    pub fn finish(self, sha256: &[u8; 32]) -> Result<(), BringError> {
        let upload = Arc::clone(&self.upload);
        let _part = upload.part();
        self.is_wanted()?;
        let Self { file, hash, .. } = self;
        if hash.finalize().as_slice() != sha256 {
            return Err(BringError::Damaged("its bytes have another SHA-256".to_owned()));
        }
        let Some(file) = file.filter(PartFile::is_whole) else {
            return Err(BringError::Damaged("it ends too early".to_owned()));
        };
        file.publish()?;
        upload.lock().away = false;
        Ok(())
    }
}

/// It waits, by its record or because that is lost.
fn is_kept(phase: &Phase) -> bool {
    matches!(phase, Phase::Taken | Phase::Whole)
}

fn header_of(mut bytes: &[u8]) -> Result<Header, BringError> {
    match HeaderReader::new().push(&mut bytes) {
        Ok(Some(header)) => Ok(header),
        Ok(None) => Err(BringError::Damaged("its header does not end".to_owned())),
        Err(error) => Err(BringError::Damaged(error.to_string())),
    }
}

//! The checkpoint of the lines lies with the data, in pieces: whoever takes over knows what was delivered.
//!
//! All pieces are written before the key says where they are, and the key is written by comparing: so it is there as a whole or not at
//! all, and whoever was the owner before cannot replace it.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::Mutex;

use super::broker::Fault;
use super::cell::{By, Cell, LINES, LinesHead, Pause, Pieces};
use super::owning::GONE_LOOKS;
use super::{HEADERS_BYTES, Shared};

/// Small enough to be one message among others.
const PIECE_BYTES: usize = 512 << 10;

/// Prefixes that wait to be removed: of a term of hours in which nothing can be removed, the last ones.
const STALE_MAX: usize = 64;
/// Attempts of a former owner behind its last checkpoint that are looked for, when there is no room.
const FORMER_ATTEMPTS: u64 = 16;

/// What stands, and what is to be removed.
pub(super) struct Written {
    cell: Cell,
    head: LinesHead,
    /// The number of the last attempt of this term.
    attempt: u64,
    stale: VecDeque<String>,
    /// What former owners have left was removed.
    former: bool,
}

/// Shared by all who write the checkpoint in a term.
pub(super) type Head = Arc<Mutex<Option<Written>>>;

impl Written {
    pub(super) fn new(cell: Cell, head: LinesHead) -> Self {
        Self { cell, head, attempt: head.number, stale: VecDeque::new(), former: false }
    }

    fn leave(&mut self, prefix: String) {
        if self.stale.len() >= STALE_MAX {
            self.stale.pop_front();
        }
        self.stale.push_back(prefix);
    }

    /// What former owners may have begun and not finished, once in a term.
    fn leave_former(&mut self, epoch: u64) {
        let Some(held) = self.head.data.filter(|held| held.epoch < epoch && !self.former) else { return };
        self.former = true;
        let attempts = held.number + 1..=held.number + FORMER_ATTEMPTS;
        attempts.for_each(|number| self.leave(Pieces { number, ..held }.prefix()));
        let epochs = (held.epoch + 1..epoch).rev().take(STALE_MAX / 2);
        epochs.for_each(|epoch| self.leave(format!("{LINES}.{epoch}")));
    }
}

/// Where the checkpoint lies, for one term.
#[derive(Clone)]
pub(crate) struct Books {
    shared: Arc<Shared>,
    by: By,
    head: Head,
}

fn fenced() -> io::Error {
    io::Error::other("this gateway is not the owner of the lanes any more")
}

impl Books {
    pub(super) fn new(shared: Arc<Shared>, by: By, head: Head) -> Self {
        Self { shared, by, head }
    }

    /// The checkpoint that was written last, by whomever. Blocks.
    ///
    /// # Errors
    /// When the broker does not give it.
    pub(crate) fn load(&self) -> io::Result<Option<Vec<u8>>> {
        let this = self.clone();
        self.shared.block(async move { this.read().await }).unwrap_or_else(|| Err(fenced()))
    }

    /// Writes one. When this returns it is what a take-over finds. Blocks.
    ///
    /// # Errors
    /// When another gateway has taken over meanwhile.
    pub(crate) fn save(&self, bytes: Vec<u8>) -> io::Result<()> {
        let this = self.clone();
        self.shared.block(async move { this.write(bytes.into()).await }).unwrap_or_else(|| Err(fenced()))
    }

    async fn read(&self) -> io::Result<Option<Vec<u8>>> {
        let head = self.head.lock().await;
        let Some(pieces) = head.as_ref().and_then(|written| written.head.data) else { return Ok(None) };
        let mut whole = BytesMut::new();
        for piece in 0..pieces.pieces {
            let key = pieces.key(piece);
            let (mut pause, mut missed) = (Pause::default(), 0);
            let value = loop {
                match self.shared.broker.get(&key).await {
                    Ok(Some(value)) => break Some(value),
                    // The key that names it was written after it. A leader that does not have it may be one of the past.
                    Ok(None) if missed == GONE_LOOKS => break None,
                    Ok(None) => missed += 1,
                    Err(fault) if self.is_over() => return Err(io::Error::other(fault)),
                    Err(_) => {}
                }
                pause.wait().await;
            };
            // Without it the rest does not count, which its checksum says as well.
            let Some(value) = value else { break };
            whole.extend_from_slice(&value.bytes);
        }
        Ok(Some(whole.to_vec()))
    }

    async fn write(&self, bytes: Bytes) -> io::Result<()> {
        let mut head = self.head.lock().await;
        let Some(written) = head.as_mut() else { return Err(fenced()) };
        let size = PIECE_BYTES.min(self.shared.broker.message_bytes().saturating_sub(HEADERS_BYTES));
        // Never the number of an attempt before: some of its pieces may stand there, and others may yet be removed.
        written.attempt += 1;
        let (epoch, number) = (self.by.epoch, written.attempt);
        let data =
            Pieces { epoch, number, pieces: bytes.len().div_ceil(size) as u64, bytes: bytes.len() as u64 };
        for (piece, from) in (0..).zip((0..bytes.len()).step_by(size)) {
            let value = bytes.slice(from..bytes.len().min(from + size));
            if let Err(error) = self.write_piece(&data.key(piece), value).await {
                written.leave(data.prefix());
                if error.kind() == io::ErrorKind::StorageFull {
                    // What a former owner did not finish takes room as well.
                    written.leave_former(self.by.epoch);
                    self.tidy(written).await;
                }
                return Err(error);
            }
        }
        let next = LinesHead { number, data: Some(data) };
        let replacing = written.cell.replace(&*self.shared.broker, next);
        tokio::select! {
            replaced = replacing => replaced.map_err(|_| fenced())?,
            () = self.over() => return Err(fenced()),
        }
        written.leave_former(self.by.epoch);
        if let Some(old) = std::mem::replace(&mut written.head, next).data {
            written.leave(old.prefix());
        }
        self.tidy(written).await;
        Ok(())
    }

    /// Removes what is wanted no more. What was refused is tried again after the next checkpoint.
    async fn tidy(&self, written: &mut Written) {
        let mut left = VecDeque::new();
        for prefix in std::mem::take(&mut written.stale) {
            if let Err(fault) = self.shared.broker.forget(&prefix).await {
                tracing::debug!(event = "spool.purge_again", %fault);
                left.push_back(prefix);
            }
        }
        written.stale = left;
    }

    /// Nobody else writes under this key, so there is nothing to compare with: it stands there, or not yet.
    async fn write_piece(&self, key: &str, value: Bytes) -> io::Result<()> {
        let mut pause = Pause::default();
        loop {
            if self.is_over() {
                return Err(fenced());
            }
            match self.shared.broker.put(key, 0, value.clone()).await {
                Ok(_) => return Ok(()),
                Err(Fault::Mismatch) => {
                    match self.shared.broker.get(key).await {
                        Ok(Some(held)) if held.bytes == value => return Ok(()),
                        Ok(Some(_)) => {
                            let what = format!("something that is not ours stands under {key}");
                            return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
                        }
                        // Whoever answered is behind, or nobody did.
                        Ok(None) | Err(_) => {}
                    }
                }
                Err(Fault::Full(words)) => return Err(io::Error::new(io::ErrorKind::StorageFull, words)),
                Err(Fault::Unknown(_)) => {}
            }
            pause.wait().await;
        }
    }

    fn is_over(&self) -> bool {
        let state = self.shared.lock();
        state.term.as_ref().is_none_or(|term| term.by != self.by || term.over.is_cancelled())
    }

    async fn over(&self) {
        let over =
            self.shared.lock().term.as_ref().filter(|term| term.by == self.by).map(|term| term.over.clone());
        if let Some(over) = over {
            over.cancelled().await;
        }
    }
}

impl std::fmt::Debug for Books {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Books").field("by", &self.by).finish_non_exhaustive()
    }
}

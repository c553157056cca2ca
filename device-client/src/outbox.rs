//! Sealed envelopes that the gateway has not acknowledged yet, on the device's disk.
//!
//! Nothing leaves the process before its record here is durable, and what is sent again is the same bytes: sealing
//! again under a used number would be another envelope. After a power cut at any moment the outbox holds every envelope
//! whose ticket had resolved and whose acknowledgement had not arrived.
//!
//! It is one lane of a spool. A record's head says which envelope it is, so that lines can be told without reading bodies:
//!
//! ```text
//! head: | device length u8, device | stream length u8, stream | run u64 BE | seq u64 BE |    body: the envelope
//! ```
//!
//! Acknowledging forgets. Before an acknowledgement can take away the newest envelope of a line, the sequence state that
//! remembers where the line stood is written; this is done once per [`FORGET_EVERY`] envelopes, when nothing waits any
//! more, or when room is short.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use pithead_sealing::{
    envelope::SealedEnvelope,
    names::{DeviceId, Line, Run, Seq, StreamName},
};
use pithead_spool::{
    AcknowledgeError, AppendError, Lane, OpenError, Options, Position, ReadError, Record, Recovery, Spool,
    Ticket,
};

use crate::{
    INLINE_LIMIT_BYTES,
    sequence::{Sequence, SequenceError},
};

/// `Record::kind` of a sealed envelope.
const ENVELOPE: u16 = 1;

/// The one lane of an outbox.
const LANE: Lane = Lane::First;

/// Acknowledged envelopes after which the outbox forgets, if others still wait: what a crash makes the device send
/// again, against a write of the sequence state for every acknowledgement.
pub const FORGET_EVERY: u64 = 1_024;

/// Lines that a gateway is told of when a call begins: every stream in the newest runs. Of older runs it learns from the
/// envelopes themselves.
pub const LINES_NAMED: usize = 64;

/// Why an acknowledgement was not taken in. The envelopes stay and are sent again, which is harmless.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForgetError {
    /// The sequence state could not be written.
    #[error(transparent)]
    Sequence(#[from] SequenceError),
    /// That position holds nothing durable.
    #[error(transparent)]
    Position(#[from] AcknowledgeError),
}

/// An envelope that waits.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// Where it lies; what [`Outbox::acknowledge`] takes.
    pub position: Position,
    /// The envelope, as it was sealed.
    pub envelope: SealedEnvelope,
}

/// The outbox of a device. Cheap to clone; all clones are the same outbox.
#[derive(Clone, Debug)]
pub struct Outbox {
    spool: Arc<Spool>,
    sequence: Arc<Mutex<Sequence>>,
    /// First position that is not acknowledged, ahead of the spool's own cursor.
    acknowledged: Arc<Mutex<Position>>,
}

impl Outbox {
    /// Opens the spool in `folder`, and tells which lines it holds envelopes of.
    pub(crate) fn recover(folder: &Path, options: Options) -> Result<(Arc<Spool>, Recovery), OpenError> {
        let (spool, recovery) = Spool::open(folder, options)?;
        Ok((Arc::new(spool), recovery))
    }

    pub(crate) fn new(spool: Arc<Spool>, sequence: Arc<Mutex<Sequence>>) -> Self {
        let acknowledged = Arc::new(Mutex::new(spool.cursor(LANE)));
        Self { spool, sequence, acknowledged }
    }

    /// Takes an envelope. It may be sent when the ticket has resolved.
    pub fn append(&self, envelope: &SealedEnvelope, at_ms: u64) -> Result<Ticket, AppendError> {
        let head = encode_head(&envelope.identity().line(), envelope.identity().seq);
        self.spool.append(LANE, Record::new(ENVELOPE, at_ms, head, envelope.bytes().clone()))
    }

    /// Resolves when an append that was refused because too much waits for the disk is worth another try.
    pub fn room(&self, bytes: u64) -> pithead_spool::Room {
        self.spool.room(LANE, 1, bytes)
    }

    /// Everything that is not acknowledged, from the oldest on, and then what is appended later.
    #[must_use]
    pub fn waiting(&self) -> WaitingReader {
        WaitingReader { reader: self.spool.reader(LANE, self.acknowledged_up_to()) }
    }

    /// The lines that have something waiting, each with its lowest waiting number; at most [`LINES_NAMED`]. Reads
    /// record heads.
    #[must_use]
    pub fn lines_waiting(&self) -> BTreeMap<Line, Seq> {
        let mut lines = BTreeMap::new();
        for (line, seq) in envelopes(&self.spool, self.acknowledged_up_to()) {
            if lines.len() >= LINES_NAMED && !lines.contains_key(&line) {
                break;
            }
            let lowest = lines.entry(line).or_insert(seq);
            *lowest = (*lowest).min(seq);
        }
        lines
    }

    /// The first position that is not acknowledged.
    #[must_use]
    pub fn acknowledged_up_to(&self) -> Position {
        *lock(&self.acknowledged)
    }

    /// The position after the last durable envelope: when the acknowledgements reach it, nothing waits.
    #[must_use]
    pub fn end(&self) -> Position {
        self.spool.end(LANE)
    }

    /// Everything up to and with `position` has been answered for good and need not be kept. Blocks for a disk write
    /// now and then.
    pub fn acknowledge(&self, position: Position) -> Result<(), ForgetError> {
        let mut acknowledged = lock(&self.acknowledged);
        *acknowledged = (*acknowledged).max(position.next());
        let since = acknowledged.0 - self.spool.cursor(LANE).0.min(acknowledged.0);
        let short_of_room = || self.spool.admit(LANE, 1, INLINE_LIMIT_BYTES).is_err();
        if since >= FORGET_EVERY || *acknowledged >= self.end() || short_of_room() {
            self.forget(*acknowledged)?;
        }
        Ok(())
    }

    /// Envelopes and bytes that wait, and the room there is.
    #[must_use]
    pub fn stats(&self) -> pithead_spool::Stats {
        self.spool.stats()
    }

    /// Forgets what was acknowledged and lets go of the folder.
    pub fn close(&self) -> Result<(), CloseError> {
        let acknowledged = *lock(&self.acknowledged);
        self.forget(acknowledged)?;
        Ok(self.spool.close()?)
    }

    fn forget(&self, acknowledged: Position) -> Result<(), ForgetError> {
        if acknowledged > self.spool.cursor(LANE) {
            lock(&self.sequence).save()?;
            self.spool.acknowledge(LANE, Position(acknowledged.0 - 1))?;
        }
        Ok(())
    }
}

/// What could not be written down at the end. Everything that was durable stays so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CloseError {
    /// Acknowledged envelopes will be sent again, which is harmless.
    #[error(transparent)]
    Forget(#[from] ForgetError),
    /// The spool's closing mark.
    #[error(transparent)]
    Spool(#[from] pithead_spool::CloseError),
}

/// Reads what waits, in order.
#[derive(Debug)]
pub struct WaitingReader {
    reader: pithead_spool::Reader,
}

impl WaitingReader {
    /// The next envelopes, of at most `max_bytes` but at least one if there is one; empty if nothing more waits.
    /// Damaged records are stepped over: the numbers in them are a hole that the cloud sees. Reads and checks the bytes.
    pub fn next_batch(&mut self, max_bytes: usize) -> Result<Vec<Waiting>, ReadError> {
        loop {
            let batch = self.reader.next_batch(max_bytes)?;
            let ended = batch.is_empty();
            let waiting: Vec<_> = batch
                .into_iter()
                .filter(|(_, record)| record.kind == ENVELOPE)
                .filter_map(|(position, record)| {
                    let envelope = SealedEnvelope::read(record.body).ok()?;
                    Some(Waiting { position, envelope })
                })
                .collect();
            if ended || !waiting.is_empty() {
                return Ok(waiting);
            }
        }
    }

    /// Resolves when [`WaitingReader::next_batch`] has something to return.
    pub fn changed(&self) -> pithead_spool::Changed {
        self.reader.changed()
    }

    /// Goes back to `position`: what was read from there on is sent again.
    pub fn seek(&mut self, position: Position) {
        self.reader.seek(position);
    }
}

/// The lines that a spool still knows of, delivered or not.
pub(crate) fn lines(spool: &Spool) -> impl Iterator<Item = (Line, Seq)> {
    envelopes(spool, spool.start(LANE))
}

fn envelopes(spool: &Spool, from: Position) -> impl Iterator<Item = (Line, Seq)> {
    spool
        .heads(LANE, from)
        .filter(|record| record.kind == ENVELOPE)
        .filter_map(|record| decode_head(&record.head))
}

fn encode_head(line: &Line, seq: Seq) -> Bytes {
    let mut head = BytesMut::with_capacity(64);
    for name in [line.device.as_str(), line.stream.as_str()] {
        head.put_u8(u8::try_from(name.len()).expect("names have at most 63 bytes"));
        head.put_slice(name.as_bytes());
    }
    head.put_u64(line.run.get());
    head.put_u64(seq.get());
    head.freeze()
}

fn decode_head(head: &[u8]) -> Option<(Line, Seq)> {
    fn name(bytes: &[u8]) -> Option<(&str, &[u8])> {
        let (length, rest) = bytes.split_first()?;
        let (name, rest) = rest.split_at_checked(usize::from(*length))?;
        Some((std::str::from_utf8(name).ok()?, rest))
    }
    let (device, rest) = name(head)?;
    let (stream, rest) = name(rest)?;
    let (run, rest) = rest.split_first_chunk()?;
    let seq: [u8; 8] = rest.try_into().ok()?;
    let line = Line {
        device: DeviceId::new(device).ok()?,
        stream: StreamName::new(stream).ok()?,
        run: Run::new(u64::from_be_bytes(*run)).ok()?,
    };
    Some((line, Seq::new(u64::from_be_bytes(seq)).ok()?))
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_reads_back_and_a_torn_one_does_not() {
        let line = Line {
            device: DeviceId::new("truck-7").unwrap(),
            stream: StreamName::new("can").unwrap(),
            run: Run::from_parts(3, 9).unwrap(),
        };
        let seq = Seq::new(77).unwrap();
        let head = encode_head(&line, seq);
        assert_eq!(decode_head(&head), Some((line, seq)));
        for cut in 0..head.len() {
            assert_eq!(decode_head(&head[..cut]), None, "cut at {cut}");
        }
    }
}

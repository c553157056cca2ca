//! Which number comes next: runs, and where each stream stands.
//!
//! A *run* is drawn anew every time this state is opened for writing (envelope document, section 2.1): a start counter
//! that only rises, and 32 random bits, so that neither a restored image nor a cloned disk repeats a number. The counter
//! is on disk before the first number of its run is given out.
//!
//! Numbers are dense from 1 within (stream, run). A number is given for good only when something was sealed under it
//! ([`Sequence::commit`]), so that a seal that failed leaves no hole; and it is *held* when the sealed bytes are durable
//! ([`Sequence::held`]). What is claimed to anybody, in a heartbeat or of the run before, is what is held: a number that a
//! power cut has taken out of the memory was never promised, and must not look like a loss.
//!
//! # When the state is lost
//!
//! If neither copy of it reads back, the device goes on with a fresh run ([`Sequence::began_anew`] says so). That is safe: a run
//! is not known by its counter alone but by 32 random bits as well, for this very reason, and it begins above every run that
//! the caller still knows of (the outbox, what was given up), so that runs stay in order as far as anybody can tell. What is
//! lost with the state is only what `previous` could have claimed of streams whose outbox is empty: how far their last run had
//! come. Nobody tells the cloud then that its tail is complete, and `verify` counts it as a run whose end is not told. To refuse
//! instead would cost every record until somebody stands beside the vehicle, and there is nothing that he could do better: the
//! numbers are nowhere else. State that *is* whole and of another version is another thing: a newer program has written it,
//! and writing over it would lose for good what that program could go on with.
//!
//! The state also remembers the newest line of each stream, because the first batch of a run names the run before it and
//! the last number that the device holds of it. Bytes (all integers big-endian):
//!
//! ```text
//! | version u8 = 1 | start counter u32 | streams u8 | per stream: name length u8, name, run u64, last seq u64 |
//! ```

use std::collections::BTreeMap;

use pithead_sealing::{
    envelope::{Entropy, EntropyError},
    names::{Line, Run, Seq, StreamName},
};

use crate::{
    batch::LineMark,
    state::{StateError, StateStore},
};

const VERSION: u8 = 1;

/// A device has at most this many streams (envelope document, section 2.2).
pub const STREAMS_PER_DEVICE: usize = 16;

/// Why there is no number.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SequenceError {
    /// The storage failed.
    #[error("the sequence state: {0}")]
    State(#[from] StateError),
    /// The kept state is whole, and of no version that this program knows: a newer one has written it.
    #[error(
        "the sequence state was written by a newer program: install that again, or remove sequence.a and sequence.b from the \
         device's folder, which begins a new run and forgets how far the last one had come"
    )]
    Malformed,
    /// No random bits for a new run.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
    /// A device has at most [`STREAMS_PER_DEVICE`] streams.
    #[error("a device has at most {STREAMS_PER_DEVICE} streams")]
    TooManyStreams,
    /// 2^32 openings, or 2^63 envelopes on a line.
    #[error("the numbers are used up")]
    UsedUp,
}

/// The sequence state of a device, open for writing.
#[derive(Debug)]
pub struct Sequence {
    store: Box<dyn StateStore>,
    counter: u32,
    run: Run,
    streams: BTreeMap<StreamName, Standing>,
    saved: Vec<u8>,
    anew: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Standing {
    run: Run,
    /// The last number that was given for good; 0 if nothing was sealed on it yet.
    given: u64,
    /// The last one that is durable, and all before it.
    held: u64,
    /// The line before this run's, if any.
    previous: Option<(Run, u64)>,
}

impl Standing {
    /// The newest line of which something is held.
    fn newest_line(&self) -> Option<(Run, u64)> {
        (self.held > 0).then_some((self.run, self.held)).or(self.previous)
    }
}

impl Sequence {
    /// Opens the state and begins a run. `held` are the lines of the envelopes that the outbox still holds: they may be
    /// newer than what was written down before a power cut.
    ///
    /// # Errors
    /// [`SequenceError`]. Damage is none: see the module.
    pub fn open(
        store: Box<dyn StateStore>,
        held: impl IntoIterator<Item = (Line, Seq)>,
        entropy: &mut dyn Entropy,
    ) -> Result<Self, SequenceError> {
        Self::open_above(store, held, [], entropy)
    }

    /// The same, above other runs as well: of these nothing is held any more, and nothing is claimed.
    pub(crate) fn open_above(
        mut store: Box<dyn StateStore>,
        held: impl IntoIterator<Item = (Line, Seq)>,
        gone: impl IntoIterator<Item = Run>,
        entropy: &mut dyn Entropy,
    ) -> Result<Self, SequenceError> {
        let mut anew = false;
        let (counter, mut known) = match store.load() {
            Ok(Some(bytes)) => decode(&bytes).ok_or(SequenceError::Malformed)?,
            Ok(None) => (0, BTreeMap::new()),
            Err(StateError::Damaged { .. }) => {
                anew = true;
                (0, BTreeMap::new())
            }
            Err(error) => return Err(error.into()),
        };
        for (line, seq) in held {
            let newest = known.entry(line.stream).or_insert((line.run, 0));
            *newest = (*newest).max((line.run, seq.get()));
        }
        // An outbox that outlived a lost sequence state: never count below a run that was used.
        let used = known.values().map(|(run, _)| *run).chain(gone);
        let counter = used.map(|run| run.counter()).fold(counter, u32::max);
        let counter = counter.checked_add(1).ok_or(SequenceError::UsedUp)?;
        let run = draw(counter, entropy)?;
        let streams = known
            .into_iter()
            .map(|(stream, previous)| (stream, Standing { run, given: 0, held: 0, previous: Some(previous) }))
            .collect();
        let mut sequence = Self { store, counter, run, streams, saved: Vec::new(), anew };
        sequence.save()?;
        Ok(sequence)
    }

    /// Neither copy of the state read back when this was opened: how far the last run had come is known of those streams alone
    /// that the caller knew of.
    #[must_use]
    pub fn began_anew(&self) -> bool {
        self.anew
    }

    /// The line and number that the next envelope of `stream` will have. Nothing is used up by asking.
    pub fn next(&mut self, stream: &StreamName) -> Result<(Run, Seq), SequenceError> {
        if !self.streams.contains_key(stream) && self.streams.len() >= STREAMS_PER_DEVICE {
            return Err(SequenceError::TooManyStreams);
        }
        let fresh = Standing { run: self.run, given: 0, held: 0, previous: None };
        let standing = self.streams.entry(stream.clone()).or_insert(fresh);
        let seq = standing.given.checked_add(1).and_then(|next| Seq::new(next).ok());
        Ok((standing.run, seq.ok_or(SequenceError::UsedUp)?))
    }

    /// An envelope was sealed under that number and is going to be kept: the number is used.
    pub fn commit(&mut self, stream: &StreamName, run: Run, seq: Seq) {
        if let Some(standing) = self.streams.get_mut(stream).filter(|standing| standing.run == run) {
            standing.given = standing.given.max(seq.get());
        }
    }

    /// Everything up to that number of the run is durable, here or with whoever took it.
    pub fn held(&mut self, stream: &StreamName, run: Run, seq: Seq) {
        if let Some(standing) = self.streams.get_mut(stream).filter(|standing| standing.run == run) {
            standing.held = standing.held.max(seq.get());
        }
    }

    /// Begins a new run for one stream: after a conflict, or when its outbox was cut or repaired. To be called when all
    /// that was sealed on the run before is held: the rest is not spoken of any more.
    pub fn begin_run(
        &mut self,
        stream: &StreamName,
        entropy: &mut dyn Entropy,
    ) -> Result<Run, SequenceError> {
        self.counter = self.counter.checked_add(1).ok_or(SequenceError::UsedUp)?;
        let run = draw(self.counter, entropy)?;
        if let Some(standing) = self.streams.get_mut(stream) {
            let previous = standing.newest_line();
            *standing = Standing { run, given: 0, held: 0, previous };
        }
        self.run = run;
        self.save()?;
        Ok(run)
    }

    /// What the first batch of a run tells of the run before it: nothing once something was sealed on the new one.
    #[must_use]
    pub fn previous(&self, stream: &StreamName) -> Option<LineMark> {
        let standing = self.streams.get(stream).filter(|standing| standing.given == 0)?;
        let (run, last_seq) = standing.previous?;
        Some(LineMark { stream: stream.clone(), run, last_seq })
    }

    /// Run and last held number of every stream of this opening: a heartbeat.
    #[must_use]
    pub fn marks(&self) -> Vec<LineMark> {
        let sealed = self.streams.iter().filter(|(_, standing)| standing.held > 0);
        sealed
            .map(|(stream, standing)| LineMark {
                stream: stream.clone(),
                run: standing.run,
                last_seq: standing.held,
            })
            .collect()
    }

    /// The same with `stream` as it stands once its next envelope is there: what that envelope itself may claim, if all
    /// before it is held.
    pub fn marks_with_next(&mut self, stream: &StreamName) -> Vec<LineMark> {
        let mut marks = self.marks();
        let complete = self.streams.get(stream).is_none_or(|standing| standing.given == standing.held);
        if complete && let Ok((run, seq)) = self.next(stream) {
            marks.retain(|mark| mark.stream != *stream);
            marks.push(LineMark { stream: stream.clone(), run, last_seq: seq.get() });
        }
        marks
    }

    /// Writes down where the lines stand, if that has changed: now and then, and at shutdown. What a cut loses of it makes the
    /// next run claim less of the one before than it could, never more.
    pub fn save(&mut self) -> Result<(), SequenceError> {
        let state = self.encode();
        if state != self.saved {
            self.store.save(&state)?;
            self.saved = state;
        }
        Ok(())
    }

    /// The same, and lets go of the storage, whoever still knows this one: a read of the disk that hangs at the end does, and the next
    /// opening must not wait for that. Nothing is written any more.
    #[cfg(feature = "client")]
    pub(crate) fn close(&mut self) -> Result<(), SequenceError> {
        let saved = self.save();
        self.store = Box::new(crate::state::ClosedStore);
        saved
    }

    fn encode(&self) -> Vec<u8> {
        let lines: Vec<_> = self
            .streams
            .iter()
            .filter_map(|(stream, standing)| standing.newest_line().map(|(run, last)| (stream, run, last)))
            .collect();
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&self.counter.to_be_bytes());
        bytes.push(u8::try_from(lines.len()).expect("at most STREAMS_PER_DEVICE"));
        for (stream, run, last_seq) in lines {
            let name = stream.as_str().as_bytes();
            bytes.push(u8::try_from(name.len()).expect("a stream name has at most 32 bytes"));
            bytes.extend_from_slice(name);
            bytes.extend_from_slice(&run.get().to_be_bytes());
            bytes.extend_from_slice(&last_seq.to_be_bytes());
        }
        bytes
    }
}

fn draw(counter: u32, entropy: &mut dyn Entropy) -> Result<Run, SequenceError> {
    let mut random = [0; 4];
    entropy.fill(&mut random)?;
    Run::from_parts(counter, u32::from_be_bytes(random)).map_err(|_| SequenceError::UsedUp)
}

type Known = BTreeMap<StreamName, (Run, u64)>;

fn decode(bytes: &[u8]) -> Option<(u32, Known)> {
    let (head, mut rest) = bytes.split_at_checked(6)?;
    if head[0] != VERSION {
        return None;
    }
    let counter = u32::from_be_bytes(head[1..5].try_into().ok()?);
    let mut known = BTreeMap::new();
    for _ in 0..head[5] {
        let (length, tail) = rest.split_first()?;
        let (name, tail) = tail.split_at_checked(usize::from(*length))?;
        let (run, tail) = tail.split_first_chunk()?;
        let (last_seq, tail) = tail.split_first_chunk()?;
        let stream = StreamName::new(std::str::from_utf8(name).ok()?).ok()?;
        known.insert(stream, (Run::new(u64::from_be_bytes(*run)).ok()?, u64::from_be_bytes(*last_seq)));
        rest = tail;
    }
    rest.is_empty().then_some((counter, known))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{FileStore, MemoryStore};
    use pithead_sealing::{envelope::KernelEntropy, names::DeviceId};

    fn stream(name: &str) -> StreamName {
        StreamName::new(name).expect("valid")
    }

    fn reopen(folder: &tempfile::TempDir) -> Sequence {
        let store = Box::new(FileStore::new(folder.path(), "sequence"));
        Sequence::open(store, [], &mut KernelEntropy).expect("opens")
    }

    fn take(sequence: &mut Sequence, name: &str) -> (Run, u64) {
        let (run, seq) = sequence.next(&stream(name)).expect("a number");
        sequence.commit(&stream(name), run, seq);
        sequence.held(&stream(name), run, seq);
        (run, seq.get())
    }

    #[test]
    fn every_opening_is_a_run_of_its_own_and_numbers_begin_at_one() {
        let folder = tempfile::tempdir().unwrap();
        let mut runs = Vec::new();
        for _ in 0..3 {
            let mut sequence = reopen(&folder);
            let (run, first) = take(&mut sequence, "can");
            assert_eq!((first, take(&mut sequence, "can")), (1, (run, 2)));
            runs.push(run);
        }
        assert!(runs.is_sorted() && runs[0] != runs[1] && runs[1] != runs[2]);
    }

    #[test]
    fn a_number_that_was_not_committed_is_given_again() {
        let mut sequence = Sequence::open(Box::<MemoryStore>::default(), [], &mut KernelEntropy).unwrap();
        let first = sequence.next(&stream("can")).unwrap();
        assert_eq!(sequence.next(&stream("can")).unwrap(), first);
        assert_eq!(sequence.marks(), []);
    }

    #[test]
    fn the_run_before_is_named_until_something_was_sealed_on_the_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let mut sequence = reopen(&folder);
        let (old, _) = take(&mut sequence, "can");
        take(&mut sequence, "can");
        sequence.save().unwrap();
        drop(sequence);
        // An opening that seals nothing must not hide the run that did.
        drop(reopen(&folder));
        let mut sequence = reopen(&folder);
        let previous = sequence.previous(&stream("can")).expect("there was a run before");
        assert_eq!((previous.run, previous.last_seq), (old, 2));
        take(&mut sequence, "can");
        assert_eq!(sequence.previous(&stream("can")), None);
    }

    #[test]
    fn what_the_outbox_holds_counts_when_the_state_was_lost_or_is_older() {
        let run = Run::from_parts(41, 7).unwrap();
        let line = Line { device: DeviceId::new("truck-7").unwrap(), stream: stream("can"), run };
        let held = [(line.clone(), Seq::new(8).unwrap()), (line, Seq::new(9).unwrap())];
        let mut sequence = Sequence::open(Box::<MemoryStore>::default(), held, &mut KernelEntropy).unwrap();
        let previous = sequence.previous(&stream("can")).unwrap();
        assert_eq!((previous.run, previous.last_seq), (run, 9));
        assert_eq!(take(&mut sequence, "can").0.counter(), 42);
    }

    #[test]
    fn a_conflict_begins_a_new_run_from_one_and_names_the_old() {
        let mut sequence = Sequence::open(Box::<MemoryStore>::default(), [], &mut KernelEntropy).unwrap();
        let (old, _) = take(&mut sequence, "can");
        let new = sequence.begin_run(&stream("can"), &mut KernelEntropy).unwrap();
        assert_ne!(old, new);
        assert_eq!(sequence.previous(&stream("can")).map(|mark| (mark.run, mark.last_seq)), Some((old, 1)));
        assert_eq!(take(&mut sequence, "can"), (new, 1));
    }

    #[cfg(feature = "client")]
    #[test]
    fn what_is_closed_can_be_opened_again_while_somebody_still_knows_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut sequence = reopen(&folder);
        let (run, _) = take(&mut sequence, "can");
        sequence.close().unwrap();
        let again = reopen(&folder);
        assert_eq!(again.previous(&stream("can")).unwrap().run, run);
        drop(sequence);
    }

    #[test]
    fn what_is_claimed_is_what_is_held_and_not_what_was_given_out() {
        let folder = tempfile::tempdir().unwrap();
        let mut sequence = reopen(&folder);
        let (run, _) = take(&mut sequence, "can");
        let (_, second) = sequence.next(&stream("can")).unwrap();
        sequence.commit(&stream("can"), run, second);
        assert_eq!(sequence.marks().iter().map(|mark| mark.last_seq).collect::<Vec<_>>(), [1]);
        assert_eq!(sequence.marks_with_next(&stream("can")), sequence.marks(), "the one before is not held");
        sequence.save().unwrap();
        drop(sequence);
        let sequence = reopen(&folder);
        let previous = sequence.previous(&stream("can")).unwrap();
        assert_eq!((previous.run, previous.last_seq), (run, 1), "the second went with the power");
    }

    /// Every opening used to end with an error, for ever.
    #[test]
    fn a_lost_state_is_said_and_the_next_run_is_above_all_that_is_still_known() {
        let folder = tempfile::tempdir().unwrap();
        let mut sequence = reopen(&folder);
        assert!(!sequence.began_anew(), "there never was one");
        take(&mut sequence, "can");
        drop(sequence);
        for copy in ["sequence.a", "sequence.b"] {
            std::fs::write(folder.path().join(copy), b"PTHSLOT1 and no more").unwrap();
        }
        let run = Run::from_parts(41, 7).unwrap();
        let line = Line { device: DeviceId::new("truck-7").unwrap(), stream: stream("can"), run };
        let store = Box::new(FileStore::new(folder.path(), "sequence"));
        let mut sequence = Sequence::open(store, [(line, Seq::new(8).unwrap())], &mut KernelEntropy).unwrap();
        assert!(sequence.began_anew());
        assert_eq!(sequence.previous(&stream("can")).map(|mark| (mark.run, mark.last_seq)), Some((run, 8)));
        assert_eq!(take(&mut sequence, "can").0.counter(), 42);
        drop(sequence);
        let mut sequence = reopen(&folder);
        assert!(!sequence.began_anew(), "what was written then is whole");
        assert_eq!(take(&mut sequence, "can").0.counter(), 43);
    }

    #[test]
    fn a_state_of_a_newer_program_is_not_written_over() {
        let newer = [VERSION + 1, 0, 0, 0, 9, 0, 1, 2, 3];
        let folder = tempfile::tempdir().unwrap();
        FileStore::new(folder.path(), "sequence").save(&newer).unwrap();
        let open = || {
            let store = Box::new(FileStore::new(folder.path(), "sequence"));
            Sequence::open(store, [], &mut KernelEntropy).map(|_| ())
        };
        for _ in 0..2 {
            let refused = open().unwrap_err();
            assert!(matches!(refused, SequenceError::Malformed), "{refused}");
            assert!(refused.to_string().contains("remove sequence.a and sequence.b"), "{refused}");
        }
        assert_eq!(FileStore::new(folder.path(), "sequence").load().unwrap().unwrap(), newer);
    }

    #[test]
    fn a_seventeenth_stream_is_refused() {
        let mut sequence = Sequence::open(Box::<MemoryStore>::default(), [], &mut KernelEntropy).unwrap();
        for number in 0..STREAMS_PER_DEVICE {
            take(&mut sequence, &format!("s{number}"));
        }
        assert!(matches!(sequence.next(&stream("one-more")), Err(SequenceError::TooManyStreams)));
        take(&mut sequence, "s3");
    }

    #[test]
    fn any_truncated_state_is_malformed_and_the_whole_one_reads_back() {
        let mut sequence = Sequence::open(Box::<MemoryStore>::default(), [], &mut KernelEntropy).unwrap();
        take(&mut sequence, "can");
        take(&mut sequence, "gps");
        let bytes = sequence.encode();
        assert_eq!(decode(&bytes).map(|(counter, known)| (counter, known.len())), Some((1, 2)));
        for cut in 0..bytes.len() {
            assert_eq!(decode(&bytes[..cut]), None, "cut at {cut}");
        }
        assert_eq!(decode(&[bytes, vec![0]].concat()), None);
    }
}

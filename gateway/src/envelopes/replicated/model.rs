//! A broker in memory, for tests: it keeps what it is told to, compares, and loses requests and replies. Of three replicas some may be
//! unable to read a message.
//!
//! Whatever is asked for and lost is done at once, later, or never: later means after anybody else's requests, as a message that was
//! held up in a network is.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};

use bytes::Bytes;
use futures_util::FutureExt as _;
use pithead_spool::Lane;

use super::broker::{Asked, Broker, Fault, KeptMessage, LogState, Value};

/// A request that was held up.
#[derive(Debug, Clone)]
enum Held {
    Append(Lane, u64, Bytes),
    Put(String, u64, Bytes),
    Keep(String, u64, Bytes),
    LetGo(u64),
}

/// The refused area: a log of which each name keeps its newest message.
#[derive(Debug, Default)]
struct Area {
    last: u64,
    messages: BTreeMap<u64, (String, Bytes)>,
    max_bytes: Option<u64>,
    /// The leader that is read from has not got so many of the newest messages yet.
    behind: u64,
}

impl Area {
    fn bytes(&self) -> u64 {
        self.messages.values().map(|(_, message)| message.len() as u64).sum()
    }

    /// What the leader that is read from has.
    fn seen(&self) -> impl Iterator<Item = (u64, &String, &Bytes)> {
        let seen = self.last.saturating_sub(self.behind);
        self.messages.range(..=seen).map(|(sequence, (name, message))| (*sequence, name, message))
    }
}

#[derive(Debug, Default)]
struct Log {
    first: u64,
    last: u64,
    messages: BTreeMap<u64, Bytes>,
}

/// How many have each message.
const REPLICAS: usize = 3;

/// How a replica answers for a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::envelopes) enum At {
    /// With the message.
    Reads,
    /// That there is none: its disk does not give it.
    CannotRead,
    /// Not at all.
    Silent,
}

/// A message that not all replicas read.
#[derive(Debug)]
struct Ill {
    /// The first is the leader's.
    at: [At; REPLICAS],
    /// They are asked in turn, the leader first.
    asked: usize,
}

#[derive(Debug, Default)]
struct State {
    logs: [Log; 3],
    /// By lane and sequence.
    ill: BTreeMap<(usize, u64), Ill>,
    area: Area,
    keys: HashMap<String, Value>,
    revision: u64,
    held: Vec<Held>,
    /// What is lost of a hundred requests, and of a hundred replies.
    loses: (u64, u64),
    random: u64,
    /// Nobody is answered.
    away: bool,
    /// A log takes so many bytes.
    max_bytes: Option<u64>,
    /// It does not compare: what no broker may do.
    careless: bool,
    /// The replica that is asked has not got so many of the newest messages yet.
    behind: u64,
    /// So has the one that takes itself for the leader.
    stale_leader: bool,
    /// The values together take so many bytes.
    state_bytes: Option<usize>,
    /// Nothing is purged.
    keeps: bool,
}

/// See the module. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(in crate::envelopes) struct Model(Arc<Mutex<State>>);

static BY_FOLDER: LazyLock<Mutex<HashMap<PathBuf, Model>>> = LazyLock::new(Mutex::default);

impl State {
    fn below(&mut self, bound: u64) -> u64 {
        // SplitMix64.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn append(&mut self, lane: Lane, expected: u64, message: &Bytes) -> Result<u64, Fault> {
        let (max_bytes, careless) = (self.max_bytes, self.careless);
        let log = &mut self.logs[lane.index()];
        if log.last != expected && !careless {
            return Err(Fault::Mismatch);
        }
        let held: usize = log.messages.values().map(Bytes::len).sum();
        if max_bytes.is_some_and(|max| (held + message.len()) as u64 > max) {
            return Err(Fault::Full("maximum bytes exceeded".to_owned()));
        }
        log.last += 1;
        log.messages.insert(log.last, message.clone());
        Ok(log.last)
    }

    /// What the replica says that is drawn next.
    fn at_replica(&mut self, lane: Lane, sequence: u64) -> Result<Option<Bytes>, Fault> {
        let at = self.ill.get_mut(&(lane.index(), sequence)).map_or(At::Reads, |ill| {
            ill.asked += 1;
            ill.at[(ill.asked - 1) % REPLICAS]
        });
        let (log, behind) = (&self.logs[lane.index()], self.behind);
        answered(at, log.messages.get(&sequence).filter(|_| sequence + behind <= log.last))
    }

    fn at_leader(&self, lane: Lane, sequence: u64) -> Result<Option<Bytes>, Fault> {
        let log = &self.logs[lane.index()];
        if self.stale_leader && sequence + self.behind > log.last {
            return Err(Fault::Unknown("the leader is behind".to_owned()));
        }
        let at = self.ill.get(&(lane.index(), sequence)).map_or(At::Reads, |ill| ill.at[0]);
        answered(at, log.messages.get(&sequence))
    }

    fn put(&mut self, key: &str, revision: u64, bytes: &Bytes) -> Result<u64, Fault> {
        if self.keys.get(key).map_or(0, |value| value.revision) != revision {
            return Err(Fault::Mismatch);
        }
        let held: usize =
            self.keys.iter().filter(|(held, _)| *held != key).map(|(_, value)| value.bytes.len()).sum();
        if self.state_bytes.is_some_and(|most| held + bytes.len() > most) {
            return Err(Fault::Full("maximum bytes exceeded".to_owned()));
        }
        self.revision += 1;
        let value = Value { bytes: bytes.clone(), revision: self.revision };
        self.keys.insert(key.to_owned(), value);
        Ok(self.revision)
    }

    fn keep(&mut self, name: &str, expected: u64, message: &Bytes) -> Result<u64, Fault> {
        let careless = self.careless;
        let area = &mut self.area;
        if area.last != expected && !careless {
            return Err(Fault::Mismatch);
        }
        if area.max_bytes.is_some_and(|max| area.bytes() + message.len() as u64 > max) {
            return Err(Fault::Full("maximum bytes exceeded".to_owned()));
        }
        area.messages.retain(|_, (held, _)| held != name);
        area.last += 1;
        area.messages.insert(area.last, (name.to_owned(), message.clone()));
        Ok(area.last)
    }

    fn let_go(&mut self, sequence: u64) -> bool {
        self.area.messages.remove(&sequence).is_some()
    }

    fn take_up(&mut self, held: Held) {
        // Nobody waits for the answer any more.
        drop(match held {
            Held::Append(lane, expected, message) => self.append(lane, expected, &message),
            Held::Put(key, revision, bytes) => self.put(&key, revision, &bytes),
            Held::Keep(name, expected, message) => self.keep(&name, expected, &message),
            Held::LetGo(sequence) => Ok(u64::from(self.let_go(sequence))),
        });
    }

    /// Does it, or loses it.
    fn ask<T>(
        &mut self,
        again: Option<Held>,
        act: impl FnOnce(&mut Self) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let lost = || Err(Fault::Unknown("lost".to_owned()));
        if !self.held.is_empty() && self.below(4) == 0 {
            let at = self.below(self.held.len() as u64) as usize;
            let late = self.held.swap_remove(at);
            self.take_up(late);
        }
        if self.away {
            return lost();
        }
        if self.below(100) < self.loses.0 {
            if self.below(2) == 0 {
                self.held.extend(again);
            }
            return lost();
        }
        let answer = act(self);
        if self.below(100) < self.loses.1 { lost() } else { answer }
    }
}

fn answered(at: At, message: Option<&Bytes>) -> Result<Option<Bytes>, Fault> {
    match at {
        At::Reads => Ok(message.cloned()),
        At::CannotRead => Ok(None),
        At::Silent => Err(Fault::Unknown("a replica does not answer".to_owned())),
    }
}

impl Model {
    /// The one that belongs to a folder, so that a test that opens the folder again finds it.
    pub(in crate::envelopes) fn of(folder: &Path) -> Self {
        BY_FOLDER.lock().unwrap().entry(folder.to_owned()).or_default().clone()
    }

    /// Loses so many of a hundred requests, and so many replies.
    pub(super) fn loses(&self, requests: u64, replies: u64, seed: u64) {
        let mut state = self.lock();
        (state.loses, state.random) = ((requests, replies), seed);
    }

    /// A number below this one, as the seed has it.
    pub(super) fn below(&self, bound: u64) -> u64 {
        self.lock().below(bound)
    }

    /// A message arrives, and nobody waits to hear what became of it.
    pub(super) fn arrive(&self, lane: Lane, expected: u64, message: &Bytes) {
        drop(self.lock().append(lane, expected, message));
    }

    /// A message is held up: it arrives after somebody else's request, or never.
    pub(super) fn hold_up(&self, lane: Lane, expected: u64, message: Bytes) {
        self.lock().held.push(Held::Append(lane, expected, message));
    }

    /// Whether anybody is answered.
    pub(in crate::envelopes) fn away(&self, away: bool) {
        self.lock().away = away;
    }

    /// What a log takes.
    pub(super) fn bound(&self, max_bytes: Option<u64>) {
        self.lock().max_bytes = max_bytes;
    }

    /// Whether it appends whatever is expected.
    pub(super) fn careless(&self, careless: bool) {
        self.lock().careless = careless;
    }

    /// What the values together may take.
    pub(super) fn state_holds(&self, bytes: Option<usize>) {
        self.lock().state_bytes = bytes;
    }

    /// Whether anything is purged.
    pub(super) fn purges(&self, purges: bool) {
        self.lock().keeps = !purges;
    }

    /// The keys under which something stands.
    pub(super) fn keys(&self) -> Vec<String> {
        self.lock().keys.keys().cloned().collect()
    }

    /// What stands under a key.
    pub(super) fn value(&self, key: &str) -> Option<Bytes> {
        self.lock().keys.get(key).map(|value| value.bytes.clone())
    }

    /// Somebody has removed a key.
    pub(super) fn forget_key(&self, key: &str) {
        self.lock().keys.remove(key);
    }

    /// Somebody has made the state anew.
    pub(super) fn lose_state(&self) {
        self.lock().keys.clear();
    }

    /// Somebody has made a log anew.
    pub(super) fn begin_anew(&self, lane: Lane) {
        self.lock().logs[lane.index()] = Default::default();
    }

    /// A log has lost everything behind this message.
    pub(super) fn cut_to(&self, lane: Lane, last: u64) {
        let mut state = self.lock();
        let log = &mut state.logs[lane.index()];
        log.messages.retain(|sequence, _| *sequence <= last);
        log.last = last;
    }

    /// What somebody wrote under a key without asking.
    pub(super) fn set_value(&self, key: &str, bytes: &'static [u8]) {
        let mut state = self.lock();
        state.revision += 1;
        let value = Value { bytes: Bytes::from_static(bytes), revision: state.revision };
        state.keys.insert(key.to_owned(), value);
    }

    /// The replica that is asked lacks so many of the newest messages; with `leader`, so does the leader.
    pub(super) fn behind(&self, messages: u64, leader: bool) {
        let mut state = self.lock();
        (state.behind, state.stale_leader) = (messages, leader);
    }

    /// How each replica answers for a message from now on, the leader first.
    pub(in crate::envelopes) fn answer_for(&self, lane: Lane, sequence: u64, at: [At; REPLICAS]) {
        self.lock().ill.insert((lane.index(), sequence), Ill { at, asked: 0 });
    }

    /// What stands in a log.
    pub(super) fn messages(&self, lane: Lane) -> Vec<(u64, Bytes)> {
        self.lock().logs[lane.index()].messages.clone().into_iter().collect()
    }

    /// Another's message, or a changed one.
    pub(in crate::envelopes) fn set(&self, lane: Lane, sequence: u64, message: Option<Bytes>) {
        let mut state = self.lock();
        let log = &mut state.logs[lane.index()];
        log.last = log.last.max(sequence);
        match message {
            Some(message) => drop(log.messages.insert(sequence, message)),
            None => drop(log.messages.remove(&sequence)),
        }
    }

    /// What the refused area takes.
    pub(super) fn area_holds(&self, bytes: Option<u64>) {
        self.lock().area.max_bytes = bytes;
    }

    /// Whoever is asked for the refused area lacks so many of the newest messages.
    pub(super) fn area_behind(&self, messages: u64) {
        self.lock().area.behind = messages;
    }

    /// What stands in the refused area, by name.
    pub(super) fn area(&self) -> BTreeMap<String, (u64, Bytes)> {
        let state = self.lock();
        let held = state.area.messages.iter();
        held.map(|(sequence, (name, message))| (name.clone(), (*sequence, message.clone()))).collect()
    }

    /// Somebody has made the stream of the refused area anew.
    pub(super) fn lose_area(&self) {
        self.lock().area = Area::default();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn answer<T: Send + 'static>(
        &self,
        again: Option<Held>,
        act: impl FnOnce(&mut State) -> Result<T, Fault>,
    ) -> Asked<'_, T> {
        let answer = self.lock().ask(again, act);
        async move {
            tokio::task::yield_now().await;
            answer
        }
        .boxed()
    }
}

impl Broker for Model {
    fn append(&self, lane: Lane, expected: u64, message: Bytes) -> Asked<'_, u64> {
        let again = Held::Append(lane, expected, message.clone());
        self.answer(Some(again), move |state| state.append(lane, expected, &message))
    }

    fn read(&self, lane: Lane, sequence: u64) -> Asked<'_, Option<Bytes>> {
        self.answer(None, move |state| {
            let answer = state.at_replica(lane, sequence);
            if answer.is_err() { state.at_leader(lane, sequence) } else { answer }
        })
    }

    fn read_at_replica(&self, lane: Lane, sequence: u64) -> Asked<'_, Option<Bytes>> {
        self.answer(None, move |state| state.at_replica(lane, sequence))
    }

    fn read_at_leader(&self, lane: Lane, sequence: u64) -> Asked<'_, Option<Bytes>> {
        self.answer(None, move |state| state.at_leader(lane, sequence))
    }

    fn state(&self, lane: Lane) -> Asked<'_, LogState> {
        self.answer(None, move |state| {
            let (log, max_bytes) = (&state.logs[lane.index()], state.max_bytes);
            let bytes = log.messages.values().map(|message| message.len() as u64).sum();
            let first = log.messages.keys().next().copied().unwrap_or(log.last + 1).max(log.first);
            Ok(LogState { first, last: log.last, bytes, max_bytes })
        })
    }

    fn purge(&self, lane: Lane, sequence: u64) -> Asked<'_, ()> {
        self.answer(None, move |state| {
            if state.keeps {
                return Err(Fault::Unknown("not allowed".to_owned()));
            }
            let log = &mut state.logs[lane.index()];
            log.messages = log.messages.split_off(&sequence);
            log.first = log.first.max(sequence);
            Ok(())
        })
    }

    fn keep<'a>(&'a self, name: &'a str, expected: u64, message: Bytes) -> Asked<'a, u64> {
        let again = Held::Keep(name.to_owned(), expected, message.clone());
        self.answer(Some(again), move |state| state.keep(name, expected, &message))
    }

    fn kept<'a>(&'a self, name: &'a str) -> Asked<'a, Option<Value>> {
        self.answer(None, move |state| {
            let found = state.area.seen().find(|(_, held, _)| *held == name);
            Ok(found.map(|(revision, _, bytes)| Value { bytes: bytes.clone(), revision }))
        })
    }

    fn kept_from(&self, sequence: u64) -> Asked<'_, Option<KeptMessage>> {
        self.answer(None, move |state| {
            let found = state.area.seen().find(|(at, ..)| *at >= sequence);
            Ok(found.map(|(sequence, name, bytes)| KeptMessage {
                name: name.clone(),
                sequence,
                bytes: bytes.clone(),
            }))
        })
    }

    fn let_go(&self, sequence: u64) -> Asked<'_, bool> {
        self.answer(Some(Held::LetGo(sequence)), move |state| Ok(state.let_go(sequence)))
    }

    fn kept_state(&self) -> Asked<'_, LogState> {
        self.answer(None, move |state| {
            let (first, bytes) = (state.area.messages.keys().next().copied(), state.area.bytes());
            let (last, max_bytes) = (state.area.last, state.area.max_bytes);
            Ok(LogState { first: first.unwrap_or(last + 1), last, bytes, max_bytes })
        })
    }

    fn get<'a>(&'a self, key: &'a str) -> Asked<'a, Option<Value>> {
        self.answer(None, move |state| Ok(state.keys.get(key).cloned()))
    }

    fn put<'a>(&'a self, key: &'a str, revision: u64, value: Bytes) -> Asked<'a, u64> {
        let again = Held::Put(key.to_owned(), revision, value.clone());
        self.answer(Some(again), move |state| state.put(key, revision, &value))
    }

    fn forget<'a>(&'a self, prefix: &'a str) -> Asked<'a, ()> {
        self.answer(None, move |state| {
            let below = format!("{prefix}.");
            state.keys.retain(|key, _| key != prefix && !key.starts_with(&below));
            Ok(())
        })
    }

    fn message_bytes(&self) -> usize {
        1 << 20
    }
}

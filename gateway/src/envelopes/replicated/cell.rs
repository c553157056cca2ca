//! A value under a key that one owner writes at a time, each by comparing with what it wrote before.
//!
//! ```text
//! owner         {"v":1,"epoch":7,"writer":"00c0ffee00c0ffee","beat":12,"name":"edge-1","address":"10.1.0.5:7443","released":false}
//! cursors       {"v":1,"epoch":7,"writer":"...","number":3,"lanes":[{"position":9,"sequence":4,"end":12},...],"spool":"0123..."}
//! lines         {"v":1,"epoch":7,"writer":"...","number":2,"data":{"epoch":7,"number":2,"pieces":3,"bytes":1200000}}
//! lines.7.2.0   a piece of the lines' checkpoint; lines.7.2.1 ...
//! ```
//!
//! *Writer* is drawn afresh for each term of each owner, so an owner whose answer was lost knows its own value when it reads it. Fields
//! are added, never changed; a value of another version is not read.

use std::time::Duration;

use bytes::Bytes;
use pithead_hop::backoff::{Backoff, Policy, random};
use pithead_hop::bundle::SpoolId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::broker::{Broker, Fault};

/// Of all values here.
const VERSION: u32 = 1;
/// Between two attempts at one thing: from the time of an answer on a quiet network to what an election of leaders takes.
const AGAIN: Policy = Policy { first: Duration::from_millis(20), max: Duration::from_millis(500) };

/// Who holds the key.
pub(super) const OWNER: &str = "owner";
/// How far delivery is.
pub(super) const CURSORS: &str = "cursors";
/// Where the lines' checkpoint is.
pub(super) const LINES: &str = "lines";

/// Who wrote a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct By {
    pub(super) epoch: u64,
    #[serde(with = "hexadecimal")]
    pub(super) writer: u64,
}

/// A value as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stored<T> {
    v: u32,
    #[serde(flatten)]
    pub(super) by: By,
    #[serde(flatten)]
    pub(super) value: T,
}

/// Why a value cannot be written any more: somebody else has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fenced;

/// Why a value cannot be taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotTaken {
    /// It is of this epoch, which is later than ours.
    Later(u64),
    /// See [`Unreadable::OtherVersion`].
    OtherVersion,
}

/// The owner's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OwnerRecord {
    pub(super) beat: u64,
    pub(super) name: String,
    pub(super) address: Option<String>,
    pub(super) released: bool,
}

/// How far delivery is in a lane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cursor {
    /// The first position that is not acknowledged.
    pub(super) position: u64,
    /// A message at or before the one that holds it.
    pub(super) sequence: u64,
    /// Where the lane ended when this was written: positions before it were given out.
    #[serde(default)]
    pub(super) end: u64,
}

/// How far delivery is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cursors {
    pub(super) number: u64,
    pub(super) lanes: [Cursor; 3],
    /// What names the positions in an object store. It lies beside the cursors because it goes when they go: whoever begins to count
    /// anew draws another one.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "spool_id")]
    pub(super) spool: Option<SpoolId>,
}

/// Where the lines' checkpoint is, if there is one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LinesHead {
    pub(super) number: u64,
    pub(super) data: Option<Pieces>,
}

/// The pieces of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pieces {
    pub(super) epoch: u64,
    pub(super) number: u64,
    pub(super) pieces: u64,
    pub(super) bytes: u64,
}

impl Pieces {
    /// The key of a piece.
    pub(super) fn key(&self, piece: u64) -> String {
        format!("{}.{piece}", self.prefix())
    }

    /// What all pieces stand below.
    pub(super) fn prefix(&self) -> String {
        format!("{LINES}.{}.{}", self.epoch, self.number)
    }
}

pub(super) mod hexadecimal {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(in super::super) fn serialize<S: Serializer>(number: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{number:016x}"))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        let text = String::deserialize(from)?;
        u64::from_str_radix(&text, 16).map_err(D::Error::custom)
    }
}

mod spool_id {
    use pithead_hop::bundle::SpoolId;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(id: &Option<SpoolId>, to: S) -> Result<S::Ok, S::Error> {
        match id {
            Some(id) => to.collect_str(id),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SpoolId>, D::Error> {
        let text = String::deserialize(from)?;
        SpoolId::from_hex(&text).map(Some).map_err(D::Error::custom)
    }
}

pub(super) fn encode<T: Serialize>(by: By, value: T) -> Bytes {
    // Of plain values; there is nothing in them that could not be written.
    serde_json::to_vec(&Stored { v: VERSION, by, value }).unwrap_or_default().into()
}

/// Why a value does not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// Another version of this program wrote it: it is not ours to replace.
    OtherVersion,
    /// It is none of ours, or damaged.
    Damaged,
}

/// Reads a value.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<Stored<T>, Unreadable> {
    if version_of(bytes)? != VERSION {
        return Err(Unreadable::OtherVersion);
    }
    serde_json::from_slice(bytes).map_err(|_| Unreadable::Damaged)
}

/// The version of a value of any kind.
pub(super) fn version_of(bytes: &[u8]) -> Result<u32, Unreadable> {
    #[derive(Deserialize)]
    struct Versioned {
        v: u32,
    }
    serde_json::from_slice::<Versioned>(bytes).map(|value| value.v).map_err(|_| Unreadable::Damaged)
}

/// Waits between two attempts.
#[derive(Debug)]
pub(super) struct Pause(Backoff);

impl Default for Pause {
    fn default() -> Self {
        Self(Backoff::new(AGAIN))
    }
}

impl Pause {
    pub(super) async fn wait(&mut self) {
        tokio::time::sleep(self.0.next_delay(random(), None)).await;
    }
}

/// A key that this writer has written, and what it has to expect there.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    key: &'static str,
    revision: u64,
    by: By,
}

impl Cell {
    /// Of a value that this writer has written, with the revision that it got.
    pub(super) fn written(key: &'static str, revision: u64, by: By) -> Self {
        Self { key, revision, by }
    }

    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// Takes a key over: from now on nobody else can write who does not take it over again. Gives what stood there. Goes on until it is
    /// done.
    pub(super) async fn take<T>(broker: &dyn Broker, key: &'static str, by: By) -> Result<(Self, T), NotTaken>
    where
        T: Serialize + DeserializeOwned + Default + Clone,
    {
        let mut pause = Pause::default();
        loop {
            match broker.get(key).await {
                Ok(held) => {
                    let revision = held.as_ref().map_or(0, |held| held.revision);
                    let stored = match held.map(|held| decode::<T>(&held.bytes)).transpose() {
                        Ok(stored) => stored,
                        Err(Unreadable::OtherVersion) => return Err(NotTaken::OtherVersion),
                        Err(Unreadable::Damaged) => {
                            tracing::error!(event = "spool.state_damaged", of = key);
                            None
                        }
                    };
                    let mut cell = Self { key, revision, by };
                    match stored {
                        // Ours, and the answer was lost.
                        Some(stored) if stored.by == by => return Ok((cell, stored.value)),
                        Some(stored) if stored.by.epoch > by.epoch => {
                            return Err(NotTaken::Later(stored.by.epoch));
                        }
                        stored => {
                            let value = stored.map(|stored| stored.value).unwrap_or_default();
                            match broker.put(key, revision, encode(by, value.clone())).await {
                                Ok(revision) => {
                                    cell.revision = revision;
                                    return Ok((cell, value));
                                }
                                // Whoever was the owner is still at it, or the answer was lost: look again.
                                Err(fault) => tracing::debug!(event = "spool.state_again", of = key, %fault),
                            }
                        }
                    }
                }
                Err(fault) => tracing::debug!(event = "spool.state_again", of = key, %fault),
            }
            pause.wait().await;
        }
    }

    /// Replaces what stands there. Goes on until it is certain that it is done, or that somebody else has the key.
    pub(super) async fn replace<T>(&mut self, broker: &dyn Broker, value: T) -> Result<(), Fenced>
    where
        T: Serialize + DeserializeOwned + Clone + PartialEq,
    {
        let mut pause = Pause::default();
        loop {
            match broker.put(self.key, self.revision, encode(self.by, value.clone())).await {
                Ok(revision) => {
                    self.revision = revision;
                    return Ok(());
                }
                Err(Fault::Mismatch) => {
                    if let Ok(held) = broker.get(self.key).await {
                        let revision = held.as_ref().map_or(0, |held| held.revision);
                        let stored = held.and_then(|held| decode::<T>(&held.bytes).ok());
                        match stored {
                            Some(stored) if stored.by == self.by && stored.value == value => {
                                self.revision = revision;
                                return Ok(());
                            }
                            // Another one of ours. Either whoever answered has not seen the newest, or one that nobody waited for any
                            // more was written after all: nobody but us writes under this name, so the newer one is to be replaced.
                            Some(stored) if stored.by == self.by => {
                                self.revision = self.revision.max(revision)
                            }
                            _ => return Err(Fenced),
                        }
                    }
                }
                Err(fault) => tracing::debug!(event = "spool.state_again", of = self.key, %fault),
            }
            pause.wait().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::Model;
    use super::*;

    const BY: By = By { epoch: 7, writer: 0xc0_ffee };

    #[test]
    fn the_values_are_fixed() {
        let owner = OwnerRecord {
            beat: 12,
            name: "edge-1".into(),
            address: Some("10.1.0.5:7443".into()),
            released: false,
        };
        let lanes = [Cursor { position: 9, sequence: 4, end: 12 }, Cursor::default(), Cursor::default()];
        let named = Cursors { number: 3, lanes, spool: Some(SpoolId::new(*b"0123456789abcdef")) };
        let pieces = Pieces { epoch: 7, number: 2, pieces: 3, bytes: 1_200_000 };
        let data = Some(pieces);
        for (bytes, expected) in [
            (
                encode(BY, owner.clone()),
                r#"{"v":1,"epoch":7,"writer":"0000000000c0ffee","beat":12,"name":"edge-1","address":"10.1.0.5:7443","released":false}"#,
            ),
            (
                encode(BY, Cursors { number: 3, lanes, spool: None }),
                r#"{"v":1,"epoch":7,"writer":"0000000000c0ffee","number":3,"lanes":[{"position":9,"sequence":4,"end":12},{"position":0,"sequence":0,"end":0},{"position":0,"sequence":0,"end":0}]}"#,
            ),
            (
                encode(BY, named),
                r#"{"v":1,"epoch":7,"writer":"0000000000c0ffee","number":3,"lanes":[{"position":9,"sequence":4,"end":12},{"position":0,"sequence":0,"end":0},{"position":0,"sequence":0,"end":0}],"spool":"30313233343536373839616263646566"}"#,
            ),
            (
                encode(BY, LinesHead { number: 2, data }),
                r#"{"v":1,"epoch":7,"writer":"0000000000c0ffee","number":2,"data":{"epoch":7,"number":2,"pieces":3,"bytes":1200000}}"#,
            ),
        ] {
            assert_eq!(std::str::from_utf8(&bytes).unwrap(), expected);
        }
        let read = decode::<OwnerRecord>(&encode(BY, owner.clone())).unwrap();
        assert_eq!((read.by, read.value), (BY, owner));
        for cursors in [named, Cursors { spool: None, ..named }] {
            assert_eq!(decode::<Cursors>(&encode(BY, cursors)).unwrap().value, cursors);
        }
        let before = br#"{"v":1,"epoch":7,"writer":"0","number":3,"lanes":[{"position":9,"sequence":4},{"position":0,"sequence":0},{"position":0,"sequence":0}]}"#;
        let read = decode::<Cursors>(before).unwrap().value;
        assert_eq!((read.lanes[0].position, read.lanes[0].end, read.spool), (9, 0, None));
        assert!(
            decode::<OwnerRecord>(
                br#"{"v":2,"epoch":7,"writer":"0","beat":1,"name":"","address":null,"released":false}"#
            )
            .is_err_and(|error| error == Unreadable::OtherVersion)
        );
        assert_eq!(decode::<OwnerRecord>(b"{").err(), Some(Unreadable::Damaged));
        assert_eq!(decode::<OwnerRecord>(br#"{"v":1}"#).err(), Some(Unreadable::Damaged));
        assert_eq!(pieces.key(1), "lines.7.2.1");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_takes_a_key_over_shuts_the_one_before_out_and_knows_what_stood_there() {
        let model = Model::default();
        for seed in 0..200 {
            model.loses(20, 20, seed);
            let epoch = 2 * seed;
            let (mut old, _) = Cell::take::<Cursors>(&model, CURSORS, By { epoch, writer: 1 }).await.unwrap();
            let told = Cursors { number: seed + 1, ..Cursors::default() };
            old.replace(&model, told).await.unwrap();
            let (mut new, found) =
                Cell::take::<Cursors>(&model, CURSORS, By { epoch: epoch + 1, writer: 2 }).await.unwrap();
            assert_eq!(found, told);
            assert_eq!(old.replace(&model, Cursors::default()).await, Err(Fenced));
            new.replace(&model, told).await.unwrap();
        }
        assert_eq!(
            Cell::take::<Cursors>(&model, CURSORS, BY).await.err(),
            Some(NotTaken::Later(399)),
            "an epoch of the past"
        );
        model.set_value(CURSORS, br#"{"v":2}"#);
        let taken = Cell::take::<Cursors>(&model, CURSORS, By { epoch: 1_000, writer: 3 }).await;
        assert_eq!(taken.err(), Some(NotTaken::OtherVersion), "what a newer version wrote stays");
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_nobody_waited_for_does_not_stop_the_next_one() {
        let model = Model::default();
        let (mut cell, _) = Cell::take::<Cursors>(&model, CURSORS, BY).await.unwrap();
        let late = cell.clone().replace(&model, Cursors { number: 1, ..Cursors::default() }).await;
        assert_eq!(late, Ok(()), "the one whose answer was dropped");
        let next = Cursors { number: 2, ..Cursors::default() };
        let replacing = tokio::time::timeout(Duration::from_secs(60), cell.replace(&model, next)).await;
        assert_eq!(replacing, Ok(Ok(())));
    }
}

//! What people say to the relay: stand still, go on, not faster than this. It survives a restart.
//!
//! ```text
//! DATA/relay    {"paused":{"cause":"hand","at_ms":1795464000000},"rate_bytes_per_s":2097152}      whole or absent
//! ```
//!
//! Without the file the relay goes, at the rate of the configuration. A file that does not read is reported, and counts as
//! none: a gateway that nobody looks at goes on delivering. An order is in force when it was given, also if the disk does
//! not take it; then whoever gave it is told.

use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use pithead_hop::program::disk;
use pithead_hop::program::units::{ByteSize, UnitError};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::alarm::Counted;
use super::pace::Pace;

/// Why the relay stands still until somebody says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "cause")]
pub enum Cause {
    /// Somebody has said so.
    Hand,
    /// The far end refuses too much for good.
    Refusals {
        /// Answers that were looked at.
        answered: u64,
        /// Refusals among them.
        refused: u64,
    },
    /// Another bundle, or something that is none, lies in the store under the name of one of ours.
    ForeignBundle {
        /// Of this lane, from 0.
        lane: usize,
        /// The place that it is named by.
        position: u64,
    },
}

impl From<Counted> for Cause {
    fn from(Counted { answered, refused }: Counted) -> Self {
        Self::Refusals { answered, refused }
    }
}

/// Since when it stands still, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// Why.
    #[serde(flatten)]
    pub cause: Cause,
    /// Milliseconds since 1970 by this machine's clock.
    pub at_ms: u64,
}

impl Pause {
    /// What it means, and what to do.
    #[must_use]
    pub fn words(&self) -> String {
        match self.cause {
            Cause::Hand => "paused by hand; `relay resume` lets it go on".to_owned(),
            Cause::Refusals { answered, refused } => format!(
                "paused: the far end refused {refused} of {answered} envelopes within 5 minutes; see `refused list`, \
                 then `relay resume`"
            ),
            Cause::ForeignBundle { lane, position } => format!(
                "paused: something else lies in the store under the name of the bundle from place {position} of lane {lane}; \
                 `explain PH-5018` says what to do, then `relay resume`"
            ),
        }
    }
}

/// A rate in the file: 0 is none at all, against one in the configuration.
const NO_BOUND: u64 = 0;

/// As it stands in the file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Orders {
    /// It stands still.
    pub paused: Option<Pause>,
    /// A rate by hand, in bytes a second; 0 is no bound. None: what the configuration says.
    #[serde(rename = "rate_bytes_per_s")]
    pub rate: Option<u64>,
}

/// A rate that somebody sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    /// So many bytes a second.
    Bytes(u64),
    /// No bound.
    Unbounded,
    /// What the configuration says.
    Configured,
}

/// Why a text is no [`Rate`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RateError {
    /// Neither a size nor one of the words.
    #[error("{0}, `none` or `configured`")]
    Unit(#[from] UnitError),
    /// Nothing at all would go out, and nobody would know why.
    #[error("a rate of 0; `pithead-gateway relay pause` has the relay stand still")]
    Zero,
}

impl FromStr for Rate {
    type Err = RateError;

    /// A size for bytes a second, `none`, or `configured`.
    fn from_str(text: &str) -> Result<Self, RateError> {
        match text {
            "none" => Ok(Self::Unbounded),
            "configured" => Ok(Self::Configured),
            size => match size.parse::<ByteSize>()?.get() {
                0 => Err(RateError::Zero),
                bytes => Ok(Self::Bytes(bytes)),
            },
        }
    }
}

/// Whether the file says what is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    Yes,
    No,
}

/// The relay's controls. Clones are the same ones.
#[derive(Debug, Clone)]
pub struct Control(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    file: PathBuf,
    configured: Mutex<Option<u64>>,
    orders: watch::Sender<Orders>,
    pace: Pace,
    /// One order after the other, so that the file says what is in force.
    giving: Mutex<Written>,
}

impl Control {
    /// As it was left; at first as configured. Inside a tokio runtime.
    ///
    /// # Errors
    /// When the file is there and the disk does not give it.
    pub fn open(file: PathBuf, configured: Option<u64>) -> io::Result<Self> {
        let orders = match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::error!(event = "relay.orders_damaged", path = %file.display(), %error);
                Orders::default()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Orders::default(),
            Err(error) => return Err(error),
        };
        let inner = Inner {
            file,
            configured: Mutex::new(configured),
            pace: Pace::new(in_force(orders, configured)),
            orders: watch::Sender::new(orders),
            giving: Mutex::new(Written::Yes),
        };
        Ok(Self(Arc::new(inner)))
    }

    /// The pace for all who send over the way to the cloud.
    #[must_use]
    pub fn pace(&self) -> &Pace {
        &self.0.pace
    }

    /// What was ordered.
    #[must_use]
    pub fn orders(&self) -> Orders {
        *self.0.orders.borrow()
    }

    /// Follows the orders. Whoever sends stands still while `paused` is there, the relay of envelopes and any other.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Orders> {
        self.0.orders.subscribe()
    }

    /// Stands still, unless it does. Blocks for a sync. True if that is new.
    ///
    /// # Errors
    /// When the disk does not take it: it is in force, and forgotten at the next start.
    pub fn pause(&self, cause: Cause, at_ms: u64) -> io::Result<bool> {
        self.give(|orders| {
            // Somebody's word stands above what the relay found by itself, and a second word changes nothing.
            let new = orders.paused.is_none_or(|held| cause == Cause::Hand && held.cause != Cause::Hand);
            if new {
                orders.paused = Some(Pause { cause, at_ms });
            }
        })
    }

    /// Goes on. Blocks for a sync. True if it stood still.
    ///
    /// # Errors
    /// As [`pause`](Self::pause).
    pub fn resume(&self) -> io::Result<bool> {
        self.give(|orders| orders.paused = None)
    }

    /// Another rate. Blocks for a sync. True if that is new.
    ///
    /// # Errors
    /// As [`pause`](Self::pause).
    pub fn set_rate(&self, rate: Rate) -> io::Result<bool> {
        self.give(|orders| {
            orders.rate = match rate {
                Rate::Bytes(bytes) => Some(bytes.max(1)),
                Rate::Unbounded => Some(NO_BOUND),
                Rate::Configured => None,
            };
        })
    }

    /// What the configuration says is another rate now. One that was set by hand stands above it.
    pub fn configure(&self, rate: Option<u64>) {
        let _turn = self.0.giving.lock().unwrap_or_else(PoisonError::into_inner);
        *self.0.configured.lock().unwrap_or_else(PoisonError::into_inner) = rate;
        self.0.pace.set(in_force(self.orders(), rate));
    }

    fn give(&self, change: impl FnOnce(&mut Orders)) -> io::Result<bool> {
        let mut written = self.0.giving.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.orders();
        let mut orders = before;
        change(&mut orders);
        let new = orders != before;
        // Why not on `new` alone: an order that is repeated because the disk did not take it must get there now.
        if !new && *written == Written::Yes {
            return Ok(false);
        }
        let result = match serde_json::to_vec(&orders) {
            Ok(bytes) => disk::replace(&self.0.file, &bytes),
            Err(error) => Err(error.into()),
        };
        *written = if result.is_ok() { Written::Yes } else { Written::No };
        let configured = *self.0.configured.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.pace.set(in_force(orders, configured));
        self.0.orders.send_replace(orders);
        result.map(|()| new)
    }
}

fn in_force(orders: Orders, configured: Option<u64>) -> Option<u64> {
    match orders.rate {
        Some(NO_BOUND) => None,
        Some(bytes) => Some(bytes),
        None => configured,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pause_and_a_rate_by_hand_outlive_the_program() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("relay");
        let open = || Control::open(file.clone(), Some(1_000)).unwrap();
        let control = open();
        assert_eq!((control.pace().rate(), control.orders().paused), (Some(1_000), None));
        assert!(control.pause(Cause::Hand, 5).unwrap());
        assert!(!control.pause(Cause::Hand, 6).unwrap(), "it stands still already");
        assert!(control.set_rate(Rate::Bytes(50)).unwrap());
        let again = open();
        assert_eq!(again.orders().paused, Some(Pause { cause: Cause::Hand, at_ms: 5 }));
        assert_eq!(again.pace().rate(), Some(50));
        assert!(again.set_rate(Rate::Unbounded).unwrap());
        assert_eq!(open().pace().rate(), None);
        assert!(again.set_rate(Rate::Configured).unwrap() && again.resume().unwrap());
        let last = open();
        assert_eq!((last.pace().rate(), last.orders().paused), (Some(1_000), None));
    }

    #[tokio::test]
    async fn another_rate_of_the_configuration_counts_unless_somebody_has_set_one() {
        let folder = tempfile::tempdir().unwrap();
        let control = Control::open(folder.path().join("relay"), Some(1_000)).unwrap();
        control.configure(Some(2_000));
        assert_eq!(control.pace().rate(), Some(2_000));
        control.set_rate(Rate::Bytes(50)).unwrap();
        control.configure(None);
        assert_eq!(control.pace().rate(), Some(50));
        control.set_rate(Rate::Configured).unwrap();
        assert_eq!(control.pace().rate(), None);
    }

    #[tokio::test]
    async fn the_bytes_of_the_file_are_fixed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("relay");
        let control = Control::open(file.clone(), None).unwrap();
        control.pause(Cause::Refusals { answered: 900, refused: 30 }, 1_795_464_000_000).unwrap();
        control.set_rate(Rate::Bytes(2 << 20)).unwrap();
        let expected = r#"{"paused":{"cause":"refusals","answered":900,"refused":30,"at_ms":1795464000000},"rate_bytes_per_s":2097152}"#;
        assert_eq!(std::fs::read_to_string(&file).unwrap(), expected);
    }

    #[tokio::test]
    async fn the_word_of_a_person_stands_above_what_the_relay_found() {
        let folder = tempfile::tempdir().unwrap();
        let control = Control::open(folder.path().join("relay"), None).unwrap();
        let found = Cause::Refusals { answered: 20, refused: 20 };
        assert!(control.pause(found, 1).unwrap() && control.pause(Cause::Hand, 2).unwrap());
        assert!(!control.pause(found, 3).unwrap());
        assert_eq!(control.orders().paused.unwrap().cause, Cause::Hand);
    }

    #[tokio::test]
    async fn a_file_that_does_not_read_counts_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("relay");
        std::fs::write(&file, b"{\"paused\":").unwrap();
        let control = Control::open(file, Some(7)).unwrap();
        assert_eq!((control.orders(), control.pace().rate()), (Orders::default(), Some(7)));
    }

    #[tokio::test]
    async fn an_order_that_the_disk_does_not_take_is_in_force_and_said() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("missing").join("relay");
        let control = Control::open(file.clone(), None).unwrap();
        assert!(control.pause(Cause::Hand, 1).is_err());
        assert!(control.orders().paused.is_some());
        // Said again, it is not called kept before the disk has it.
        assert!(control.pause(Cause::Hand, 2).is_err());
        std::fs::create_dir(file.parent().unwrap()).unwrap();
        assert!(!control.pause(Cause::Hand, 3).unwrap());
        assert_eq!(Control::open(file, None).unwrap().orders(), control.orders());
    }

    #[test]
    fn a_rate_of_nothing_is_no_rate() {
        assert_eq!("0KiB".parse::<Rate>(), Err(RateError::Zero));
        assert_eq!("1B".parse::<Rate>(), Ok(Rate::Bytes(1)));
        assert_eq!("none".parse::<Rate>(), Ok(Rate::Unbounded));
        let wrong = "fast".parse::<Rate>().unwrap_err().to_string();
        assert!(wrong.ends_with("`none` or `configured`"), "{wrong}");
    }
}

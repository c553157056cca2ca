//! `[[stream]]`: what the owner decides about a stream.

use pithead_device_client::{
    MIN_BUDGET_BYTES,
    client::{Fsync, StreamOptions, WhenFull},
    sequence::STREAMS_PER_DEVICE,
};
use pithead_hop::program::{
    config::{self, Wrong},
    units::{ByteSize, Duration},
};
use pithead_sealing::names::StreamName;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// The longest interval between two writes: what waits for it is in memory, and a cut takes it.
const INTERVAL_MAX: Duration = Duration::from_secs(3_600);

/// What a stream carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Many small ones, batched under one seal.
    Records,
    /// Each an envelope of its own.
    Files,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StreamSection {
    #[serde(with = "config::text")]
    pub(super) name: StreamName,
    pub(super) kind: Kind,
    priority: Option<u8>,
    #[serde(default, deserialize_with = "budget")]
    budget: Option<ByteSize>,
    #[serde(default)]
    when_full: Full,
    #[serde(default)]
    sync: Syncing,
    linger: Option<Duration>,
    #[serde(default)]
    compress: bool,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Full {
    #[default]
    Reject,
    DropOldest,
}

#[derive(Clone, Copy, Debug, Default)]
struct Syncing(Option<Duration>);

impl<'de> Deserialize<'de> for Syncing {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "always" {
            return Ok(Self(None));
        }
        let interval: Duration = text.parse().map_err(|_| {
            D::Error::custom("sync is \"always\", or a time between two writes such as \"1s\"")
        })?;
        if interval.is_zero() || interval > INTERVAL_MAX {
            return Err(D::Error::custom(format!(
                "the time between two writes is above 0 and at most {INTERVAL_MAX}; for none write \"always\""
            )));
        }
        Ok(Self(Some(interval)))
    }
}

impl Serialize for Syncing {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            None => serializer.serialize_str("always"),
            Some(interval) => serializer.collect_str(&interval),
        }
    }
}

fn budget<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ByteSize>, D::Error> {
    let budget = ByteSize::deserialize(deserializer)?;
    let least = ByteSize::from_bytes(MIN_BUDGET_BYTES);
    if budget < least {
        return Err(D::Error::custom(format!("a stream's budget is at least {least}")));
    }
    Ok(Some(budget))
}

impl StreamSection {
    pub(super) fn budget(&self, default: ByteSize) -> ByteSize {
        self.budget.unwrap_or(default)
    }

    /// As the library takes it. `default` is the budget of a stream that says nothing of one.
    pub(super) fn options(&self, default: ByteSize) -> StreamOptions {
        let mut options = plain(self.name.clone(), self.kind)
            .budget_bytes(self.budget(default).get())
            .when_full(match self.when_full {
                Full::Reject => WhenFull::Reject,
                Full::DropOldest => WhenFull::DropOldest,
            })
            .sync(match self.sync.0 {
                None => Fsync::Always,
                Some(interval) => Fsync::Interval(interval.get()),
            });
        if let Some(priority) = self.priority {
            options = options.priority(priority);
        }
        if let Some(linger) = self.linger {
            options = options.linger(linger.get());
        }
        #[cfg(feature = "zstd")]
        if self.compress {
            options = options.compress();
        }
        options
    }
}

/// A stream that nothing is decided about.
pub(super) fn plain(name: StreamName, kind: Kind) -> StreamOptions {
    match kind {
        Kind::Records => StreamOptions::records(name),
        Kind::Files => StreamOptions::files(name),
    }
}

/// What no single value shows.
pub(super) fn check(streams: &[StreamSection]) -> Result<(), Wrong> {
    if streams.len() > STREAMS_PER_DEVICE {
        let what = format!("{} streams, and a device has at most {STREAMS_PER_DEVICE}", streams.len());
        return Err(Wrong::at(format!("stream[{STREAMS_PER_DEVICE}].name"), what));
    }
    for (index, stream) in streams.iter().enumerate() {
        let name = &stream.name;
        let wrong = |key: &str, what: String| Err(Wrong::at(format!("stream[{index}].{key}"), what));
        if streams[..index].iter().any(|other| other.name == *name) {
            return wrong("name", format!("[[stream]] {name} is there twice"));
        }
        if stream.kind == Kind::Files && stream.linger.is_some() {
            let what = format!("[[stream]] {name}: files have no linger; only records wait to share a seal");
            return wrong("linger", what);
        }
        if cfg!(not(feature = "zstd")) && stream.compress {
            let what =
                format!("[[stream]] {name}: this program was built without zstd: nothing is compressed");
            return wrong("compress", what);
        }
    }
    Ok(())
}

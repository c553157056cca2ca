//! The last events of a program, for a screen that has no log at hand.
//!
//! A layer of `tracing` that keeps what a person would look for first: events with an `event` name, of level info and above.
//! The rule of the log holds here as well: no payloads, keys or tokens are in them. Bounded in every direction, since a
//! stranger can cause events: so many events, so many fields, so many characters; and of an event that repeats and repeats the
//! last entry counts, so that one kind alone does not push the others out.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use super::clock::wall_us;

/// Events that are kept: a bad day, as far as one reads back on a screen.
pub const EVENTS_MAX: usize = 200;
/// Entries of one name in a row; from there on the last of them counts.
const IN_A_ROW: usize = 8;
/// Fields of an event that are kept: more than any event of ours has.
const FIELDS_MAX: usize = 12;
/// Characters of a value that are kept: an error with its causes.
const VALUE_MAX: usize = 240;

/// Something that has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happened {
    /// When it did, or did last: milliseconds since 1970.
    pub at_ms: u64,
    /// How bad it is.
    pub level: Level,
    /// Its stable name, `relay.down`.
    pub name: String,
    /// What goes with it. The event's own words, if it has any, are called `message`.
    pub fields: Vec<(&'static str, String)>,
    /// How often it has happened since the entry before it; more than once only at the end of a row of the same.
    pub times: u64,
}

/// The last of them. Clones are the same ones.
#[derive(Debug, Clone, Default)]
pub struct Recent(Arc<Mutex<VecDeque<Happened>>>);

impl Recent {
    /// The newest first.
    #[must_use]
    pub fn newest_first(&self) -> Vec<Happened> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().rev().cloned().collect()
    }

    fn keep(&self, happened: Happened) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let row = all.iter().rev().take_while(|one| one.name == happened.name).take(IN_A_ROW).count();
        if let Some(last) = all.back_mut().filter(|_| row == IN_A_ROW) {
            let times = last.times.saturating_add(1);
            *last = Happened { times, ..happened };
            return;
        }
        if all.len() == EVENTS_MAX {
            all.pop_front();
        }
        all.push_back(happened);
    }
}

impl<S: Subscriber> Layer<S> for Recent {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let level = *event.metadata().level();
        if level > Level::INFO {
            return;
        }
        let mut read = Read::default();
        event.record(&mut read);
        let Some(name) = read.name else { return };
        self.keep(Happened { at_ms: wall_us() / 1000, level, name, fields: read.fields, times: 1 });
    }
}

#[derive(Default)]
struct Read {
    name: Option<String>,
    fields: Vec<(&'static str, String)>,
}

impl Read {
    fn take(&mut self, field: &Field, value: &str) {
        let mut value: String = value.chars().take(VALUE_MAX + 1).collect();
        if let Some((cut, _)) = value.char_indices().nth(VALUE_MAX) {
            value.truncate(cut);
            value.push('…');
        }
        if field.name() == "event" {
            self.name = Some(value);
        } else if self.fields.len() < FIELDS_MAX {
            self.fields.push((field.name(), value));
        }
    }
}

impl Visit for Read {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.take(field, &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::layer::SubscriberExt as _;

    fn told(tell: impl FnOnce()) -> Vec<Happened> {
        let recent = Recent::default();
        let subscriber = tracing_subscriber::registry().with(recent.clone());
        tracing::subscriber::with_default(subscriber, tell);
        recent.newest_first()
    }

    #[test]
    fn what_has_a_name_is_kept_with_its_fields_and_the_rest_is_not() {
        let all = told(|| {
            tracing::info!(event = "relay.up", after_s = 7, "and words");
            tracing::info!("nameless");
            tracing::debug!(event = "too.fine");
            tracing::warn!(event = "relay.down", why = %"the wire");
        });
        let names: Vec<&str> = all.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["relay.down", "relay.up"]);
        assert_eq!(all[0].fields, [("why", "the wire".to_owned())]);
        assert_eq!(all[0].level, Level::WARN);
        let mut fields = all[1].fields.clone();
        fields.sort_unstable();
        assert_eq!(fields, [("after_s", "7".to_owned()), ("message", "and words".to_owned())]);
    }

    #[test]
    fn an_event_that_repeats_is_counted_and_pushes_nothing_out() {
        let all = told(|| {
            tracing::info!(event = "key.activated");
            for number in 0..10_000 {
                tracing::warn!(event = "ingest.conflict", number);
            }
        });
        assert_eq!(all.len(), IN_A_ROW + 1);
        assert_eq!((all[0].times, all[0].fields[0].1.as_str()), (10_001 - IN_A_ROW as u64, "9999"));
        assert_eq!((all[1].times, all[1].fields[0].1.as_str()), (1, "6"));
        assert_eq!(all[IN_A_ROW].name, "key.activated");
    }

    #[test]
    fn there_is_an_end_to_events_and_to_what_they_say() {
        let long = "ä".repeat(10_000);
        let all = told(|| {
            for number in 0..EVENTS_MAX as u64 {
                tracing::info!(event = if number % 2 == 0 { "even" } else { "odd" }, number);
            }
            tracing::info!(event = "last", why = long.as_str());
        });
        assert_eq!(all.len(), EVENTS_MAX);
        assert_eq!(all[0].fields[0].1.chars().count(), VALUE_MAX + 1);
        assert!(all[0].fields[0].1.ends_with('…'));
        assert_eq!(all.last().unwrap().fields[0].1, "1", "the oldest has gone");
    }
}

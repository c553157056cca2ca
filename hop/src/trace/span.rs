//! Spans: what took how long, and under what.
//!
//! **Nothing waits for them.** A span that has ended goes into a queue of [`QUEUE`]; at that bound it is dropped and counted, so that
//! an exporter that is away costs memory up to there and nothing else. Where no exporter was asked for ([`Spans::default`]) no span
//! is ever made, and asking for one costs a look at an option.
//!
//! **Who is followed.** A call that brings a `traceparent` with the flag "sampled" is followed as its child, one without that flag
//! is not, and of the calls that bring none as many are as the configuration says. What happens within a followed call is followed.
//! Where many calls come together (the relay's batches) there is no parent: the span of such a batch is in a trace of its own and
//! **links** to those of whoever was followed.
//!
//! What is in them: methods, numbers, sizes, reasons, and names as the log says them too. Never payloads, keys or tokens.
//!
//! How they leave the program is [`program::traces`](crate::program::traces)'s.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;

use super::TraceParent;
use crate::backoff::random;
use crate::program::clock::wall_us;

/// Spans that have ended and wait for the exporter: a few hundred bytes each, so some 4 MiB; at a thousand a second it is away for
/// eight seconds before one is lost.
pub const QUEUE: usize = 8_192;

/// Links of one span. A batch of a relay holds 256 envelopes; whoever looks for one finds it by its own trace.
pub const LINKS_MAX: usize = 64;

/// On which side of a call a span is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Whoever answers.
    Server,
    /// Whoever asks.
    Client,
    /// Neither.
    Internal,
}

/// What is said of a span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A name.
    Text(String),
    /// A number.
    Number(u64),
}

/// A span that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its trace, and itself: what its children carry.
    pub at: TraceParent,
    /// The span that it is a part of, in the same trace.
    pub parent: Option<TraceParent>,
    /// What took so long.
    pub name: &'static str,
    /// On which side.
    pub kind: Kind,
    /// Microseconds since 1970 when it began.
    pub began_us: u64,
    /// And when it ended.
    pub ended_us: u64,
    /// What is said of it.
    pub attributes: Vec<(&'static str, Value)>,
    /// Spans of other traces that it served.
    pub links: Vec<TraceParent>,
    /// Why it is a failure, if it is one.
    pub failed: Option<String>,
}

/// What became of spans.
#[derive(Debug, Default)]
pub struct SpanCounts {
    exported: AtomicU64,
    dropped: AtomicU64,
    refused: AtomicU64,
}

impl SpanCounts {
    /// Taken by the collector.
    pub fn exported(&self) -> u64 {
        self.exported.load(Ordering::Relaxed)
    }

    /// Lost, since the queue was full or the program had no more time.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Refused by the collector.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// The collector has taken so many.
    pub fn add_exported(&self, spans: usize) {
        self.exported.fetch_add(spans as u64, Ordering::Relaxed);
    }

    /// So many are lost.
    pub fn add_dropped(&self, spans: usize) {
        self.dropped.fetch_add(spans as u64, Ordering::Relaxed);
    }

    /// The collector will never take so many.
    pub fn add_refused(&self, spans: usize) {
        self.refused.fetch_add(spans as u64, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Outlet {
    queue: mpsc::Sender<Ended>,
    /// Of 2^64 calls without a trace so many are followed.
    share: u64,
    counts: Arc<SpanCounts>,
}

/// Where spans go. Clones go the same way; the default one goes nowhere.
#[derive(Debug, Clone, Default)]
pub struct Spans(Option<Arc<Outlet>>);

/// Spans, and where they come out. Of the calls that bring no trace, this share is followed.
#[must_use]
pub fn queue(share: f64) -> (Spans, mpsc::Receiver<Ended>, Arc<SpanCounts>) {
    let (queue, ended) = mpsc::channel(QUEUE);
    let counts = Arc::new(SpanCounts::default());
    // A float that is out of range becomes the nearest number.
    let share = (share * 2f64.powi(64)) as u64;
    (Spans(Some(Arc::new(Outlet { queue, share, counts: counts.clone() }))), ended, counts)
}

impl Spans {
    /// Of a call that has come in, with what it says of its own trace.
    #[must_use]
    pub fn call(&self, method: &'static str, said: Option<TraceParent>) -> Span {
        match said {
            Some(parent) => self.child(method, Kind::Server, Some(parent)),
            None => self.root(method, Kind::Server),
        }
    }

    /// A part of what is followed; nothing if `parent` is not.
    #[must_use]
    pub fn child(&self, name: &'static str, kind: Kind, parent: Option<TraceParent>) -> Span {
        match (&self.0, parent) {
            (Some(outlet), Some(parent)) if parent.is_sampled() => {
                Span::begin(outlet, parent.child(random()), Some(parent), name, kind)
            }
            _ => Span::default(),
        }
    }

    /// The beginning of a trace, for the share that is followed.
    #[must_use]
    pub fn root(&self, name: &'static str, kind: Kind) -> Span {
        match &self.0 {
            Some(outlet) if random() <= outlet.share => {
                Span::begin(outlet, TraceParent::fresh(), None, name, kind)
            }
            _ => Span::default(),
        }
    }

    /// The beginning of a trace that is always followed: of what happens once in minutes.
    #[must_use]
    pub fn always(&self, name: &'static str, kind: Kind) -> Span {
        match &self.0 {
            Some(outlet) => Span::begin(outlet, TraceParent::fresh(), None, name, kind),
            None => Span::default(),
        }
    }

    /// Of what served several at once: links to each of them, in a trace of its own; nothing if nobody is followed.
    #[must_use]
    pub fn linked(&self, name: &'static str, kind: Kind, mut links: Vec<TraceParent>) -> Span {
        match &self.0 {
            Some(outlet) if !links.is_empty() => {
                links.truncate(LINKS_MAX);
                let mut span = Span::begin(outlet, TraceParent::fresh(), None, name, kind);
                span.with(|open| open.ended.links = links);
                span
            }
            _ => Span::default(),
        }
    }
}

/// A span that is under way, if it is one that is followed. It ends when it is dropped.
#[derive(Default)]
pub struct Span(Option<Box<Open>>);

struct Open {
    outlet: Arc<Outlet>,
    ended: Ended,
}

impl Span {
    fn begin(
        outlet: &Arc<Outlet>,
        at: TraceParent,
        parent: Option<TraceParent>,
        name: &'static str,
        kind: Kind,
    ) -> Self {
        let ended = Ended {
            at,
            parent,
            name,
            kind,
            began_us: wall_us(),
            ended_us: 0,
            attributes: Vec::new(),
            links: Vec::new(),
            failed: None,
        };
        Self(Some(Box::new(Open { outlet: outlet.clone(), ended })))
    }

    fn with(&mut self, change: impl FnOnce(&mut Open)) {
        if let Some(open) = &mut self.0 {
            change(open);
        }
    }

    /// What its children carry, here and behind the next hop; none if it is not followed.
    #[must_use]
    pub fn at(&self) -> Option<TraceParent> {
        self.0.as_ref().map(|open| open.ended.at)
    }

    /// Says a name of it. Asked for only if it is followed.
    pub fn text(&mut self, key: &'static str, value: impl FnOnce() -> String) {
        self.with(|open| open.ended.attributes.push((key, Value::Text(value()))));
    }

    /// Says a number of it.
    pub fn number(&mut self, key: &'static str, value: u64) {
        self.with(|open| open.ended.attributes.push((key, Value::Number(value))));
    }

    /// It began earlier than it was asked for.
    pub fn began(&mut self, at_us: u64) {
        self.with(|open| open.ended.began_us = at_us);
    }

    /// It is a failure.
    pub fn failed(&mut self, why: impl FnOnce() -> String) {
        self.with(|open| open.ended.failed = Some(why()));
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some(open) = self.0.take() else { return };
        let Open { outlet, mut ended } = *open;
        // A clock that was set back in between makes no span of less than nothing.
        ended.ended_us = wall_us().max(ended.began_us);
        if outlet.queue.try_send(ended).is_err() {
            outlet.counts.add_dropped(1);
        }
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Span").field(&self.0.as_ref().map(|open| &open.ended)).finish()
    }
}

/// Under which span the parts of a call go: in a request's extensions, if its call is followed.
#[derive(Debug, Clone, Default)]
pub struct Within {
    spans: Spans,
    parent: Option<TraceParent>,
}

impl Within {
    /// Of a call's span; nothing if that is not followed.
    #[must_use]
    pub fn of(spans: &Spans, call: &Span) -> Option<Self> {
        call.at().map(|at| Self { spans: spans.clone(), parent: Some(at) })
    }

    /// A part of it.
    #[must_use]
    pub fn part(&self, name: &'static str) -> Span {
        self.spans.child(name, Kind::Internal, self.parent)
    }

    /// The call's own span.
    #[must_use]
    pub fn parent(&self) -> Option<TraceParent> {
        self.parent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn said(text: &str) -> Option<TraceParent> {
        Some(TraceParent::parse(text).unwrap())
    }

    #[test]
    fn a_call_that_says_its_trace_is_a_part_of_it_and_one_that_is_not_sampled_is_not_followed() {
        let (spans, mut ended, _) = queue(0.0);
        assert_eq!(spans.call("a", said(&SAID.replace("-01", "-00"))).at(), None);
        let call = spans.call("a", said(SAID));
        let part = Within::of(&spans, &call).unwrap().part("b");
        drop(part);
        drop(call);
        let (b, a) = (ended.try_recv().unwrap(), ended.try_recv().unwrap());
        assert_eq!((a.name, a.parent, a.kind), ("a", said(SAID), Kind::Server));
        assert_eq!((b.name, b.parent, b.kind), ("b", Some(a.at), Kind::Internal));
        assert_eq!(b.at.trace(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert!(b.at != a.at && b.ended_us >= b.began_us && ended.try_recv().is_err());
    }

    #[test]
    fn of_calls_without_a_trace_the_share_that_was_asked_for_is_followed() {
        let (none, ..) = queue(0.0);
        let (all, mut ended, _) = queue(1.0);
        let (half, ..) = queue(0.5);
        for _ in 0..100 {
            assert_eq!(none.call("a", None).at(), None);
            assert!(all.call("a", None).at().is_some());
        }
        let followed = (0..1_000).filter(|_| half.call("a", None).at().is_some()).count();
        assert!((300..700).contains(&followed), "{followed}");
        let (one, other) = (ended.try_recv().unwrap(), ended.try_recv().unwrap());
        assert_ne!(one.at.trace(), other.at.trace());
        assert_eq!(one.parent, None);
    }

    #[test]
    fn what_serves_many_links_to_each_within_a_bound_and_nobody_is_not_linked() {
        let (spans, mut ended, _) = queue(1.0);
        drop(spans.linked("batch", Kind::Client, Vec::new()));
        assert!(ended.try_recv().is_err());
        drop(spans.linked("batch", Kind::Client, vec![said(SAID).unwrap(); LINKS_MAX + 1]));
        let batch = ended.try_recv().unwrap();
        assert_eq!((batch.links.len(), batch.parent), (LINKS_MAX, None));
        assert_ne!(batch.at.trace(), batch.links[0].trace());
    }

    #[test]
    fn a_full_queue_costs_spans_and_nothing_else() {
        let (spans, mut ended, counts) = queue(1.0);
        (0..QUEUE + 3).for_each(|_| drop(spans.root("a", Kind::Internal)));
        assert_eq!(counts.dropped(), 3);
        ended.close();
        drop(spans.root("a", Kind::Internal));
        assert_eq!(counts.dropped(), 4);
    }

    #[test]
    fn without_an_exporter_there_is_no_span_whatever_a_call_says() {
        let spans = Spans::default();
        let mut call = spans.call("a", said(SAID));
        call.text("never", || panic!("asked for what is not followed"));
        assert!(call.at().is_none() && Within::of(&spans, &call).is_none());
    }
}

//! Metrics, declared once: under the name that a scrape shows, with type, labels and help.
//!
//! ```text
//! pithead_spool_sync_duration_seconds     what a scrape shows is what the declaration says, so that a search finds it
//! ```
//!
//! A counter's name ends in `_total`, a size's in `_bytes`, a time's in `_seconds`; what a name says is what the text format
//! says of its unit. Labels have few values, which the declaration names: a device is never one. A family of which a value is
//! only known when something happens is on the page from then on ([`Label::is_from_first_event`]); all others always.
//!
//! The declarations are also the reference page ([`Catalogue::reference`]), so that the two cannot differ.

mod calls;
mod common;
mod durations;
mod port;
mod process;

use std::fmt::{self, Write as _};
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry, Unit};

pub use calls::RpcMetrics;
pub use common::{
    ClockMetrics, ConfigMetrics, DiskMetrics, HealthMetrics, SITE, TlsMetrics, TraceMetrics, UploadMetrics,
};
pub use durations::{ACK_BOUNDS_S, Durations, DurationsBy, KMS_BOUNDS_S, Snapshot};
pub use port::PortMetrics;
pub use process::ProcessMetrics;

/// A gauge that is no whole number.
pub type Float = Gauge<f64, AtomicU64>;

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only ever grows, from the start of the program.
    Counter,
    /// A state.
    Gauge,
    /// How long something took, by how often.
    Histogram,
    /// Says something of the program by its labels.
    Info,
}

impl Kind {
    /// As the text format calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Info => "info",
        }
    }
}

/// Which values a label has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Values {
    /// These, all of them on the page from the start.
    Of(&'static [&'static str]),
    /// Some of these, from the first event on.
    Some(&'static [&'static str]),
    /// The name of a value of `ErrorReason`, from the first event on.
    Reason,
    /// The same, or `OK`; that one from the start.
    OkOrReason,
    /// What the words say, from the first event on.
    Words(&'static str),
    /// What the words say, and there is one from the start.
    One(&'static str),
}

/// A label of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// Its values.
    pub values: Values,
}

impl Label {
    /// A label of these values.
    #[must_use]
    pub const fn of(name: &'static str, values: &'static [&'static str]) -> Self {
        Self { name, values: Values::Of(values) }
    }

    /// A label of these values or others.
    #[must_use]
    pub const fn new(name: &'static str, values: Values) -> Self {
        Self { name, values }
    }

    /// Whether a series is on the page only when something has happened.
    #[must_use]
    pub const fn is_from_first_event(&self) -> bool {
        matches!(self.values, Values::Some(_) | Values::Reason | Values::Words(_))
    }
}

/// One declaration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// As a scrape shows it, without a histogram's `_bucket`, `_sum` and `_count`.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Its labels.
    pub labels: Vec<Label>,
    /// What it says.
    pub help: &'static str,
}

/// The metrics of a program.
#[derive(Debug, Default)]
pub struct Catalogue {
    registry: Registry,
    declared: Vec<Declared>,
}

impl Catalogue {
    /// Declares anything that the page can show. Clones of the metric share its values.
    pub fn declare<M: Metric + Clone>(
        &mut self,
        kind: Kind,
        name: &'static str,
        labels: &[Label],
        help: &'static str,
        metric: M,
    ) -> M {
        let base = match kind {
            Kind::Counter => name.strip_suffix("_total").unwrap_or(name),
            Kind::Info => name.strip_suffix("_info").unwrap_or(name),
            Kind::Gauge | Kind::Histogram => name,
        };
        debug_assert_eq!(base == name, matches!(kind, Kind::Gauge | Kind::Histogram), "{name}");
        debug_assert!(self.declared.iter().all(|other| other.name != name), "{name} is declared twice");
        match unit_of(base) {
            Some((base, unit)) => self.registry.register_with_unit(base, help, unit, metric.clone()),
            None => self.registry.register(base, help, metric.clone()),
        }
        self.declared.push(Declared { name, kind, labels: labels.to_vec(), help });
        metric
    }

    /// A number that only grows.
    pub fn counter(&mut self, name: &'static str, help: &'static str) -> Counter {
        self.declare(Kind::Counter, name, &[], help, Counter::default())
    }

    /// A whole number that comes and goes.
    pub fn gauge(&mut self, name: &'static str, help: &'static str) -> Gauge {
        self.declare(Kind::Gauge, name, &[], help, Gauge::default())
    }

    /// A number that comes and goes.
    pub fn float(&mut self, name: &'static str, help: &'static str) -> Float {
        self.declare(Kind::Gauge, name, &[], help, Float::default())
    }

    /// Counters by labels.
    pub fn counters<L>(
        &mut self,
        name: &'static str,
        labels: &[Label],
        help: &'static str,
    ) -> Family<L, Counter>
    where
        L: EncodeLabelSet + Clone + std::hash::Hash + Eq + fmt::Debug + Send + Sync + 'static,
    {
        self.declare(Kind::Counter, name, labels, help, Family::default())
    }

    /// Whole numbers by labels.
    pub fn gauges<L>(&mut self, name: &'static str, labels: &[Label], help: &'static str) -> Family<L, Gauge>
    where
        L: EncodeLabelSet + Clone + std::hash::Hash + Eq + fmt::Debug + Send + Sync + 'static,
    {
        self.declare(Kind::Gauge, name, labels, help, Family::default())
    }

    /// Numbers by labels.
    pub fn floats<L>(&mut self, name: &'static str, labels: &[Label], help: &'static str) -> Family<L, Float>
    where
        L: EncodeLabelSet + Clone + std::hash::Hash + Eq + fmt::Debug + Send + Sync + 'static,
    {
        self.declare(Kind::Gauge, name, labels, help, Family::default())
    }

    /// How long something takes, counted between these bounds in seconds.
    pub fn durations(
        &mut self,
        name: &'static str,
        bounds_s: &'static [f64],
        help: &'static str,
    ) -> Durations {
        self.declare(Kind::Histogram, name, &[], help, Durations::new(bounds_s))
    }

    /// The same by a label, whose values are known.
    pub fn durations_by(
        &mut self,
        name: &'static str,
        label: Label,
        bounds_s: &'static [f64],
        help: &'static str,
    ) -> DurationsBy {
        let values = match label.values {
            Values::Of(values) => values,
            _ => &[],
        };
        let metric = DurationsBy::new(label.name, values, bounds_s);
        self.declare(Kind::Histogram, name, &[label], help, metric)
    }

    /// The program's version.
    pub fn build(&mut self, name: &'static str, version: &'static str) {
        let labels = [Label::new("version", Values::One("the version of this program"))];
        self.declare(Kind::Info, name, &labels, "The version of this program", Shared::of(version));
    }

    /// Everything that was declared, in order.
    #[must_use]
    pub fn declared(&self) -> &[Declared] {
        &self.declared
    }

    /// The page in the OpenMetrics text format.
    #[must_use]
    pub fn page(&self) -> String {
        let mut page = String::new();
        // Writing into a String cannot fail.
        let _ = text::encode(&mut page, &self.registry);
        page
    }

    /// The declarations as a table in Markdown.
    #[must_use]
    pub fn reference(&self) -> String {
        let mut page = String::from("| name | type | labels | what it says |\n|---|---|---|---|\n");
        let mut sorted: Vec<&Declared> = self.declared.iter().collect();
        sorted.sort_by_key(|one| one.name);
        for one in sorted {
            let labels: Vec<String> = one.labels.iter().map(in_words).collect();
            // Writing into a String cannot fail.
            let _ = writeln!(
                page,
                "| `{}` | {} | {} | {} |",
                one.name,
                one.kind.name(),
                labels.join("; "),
                one.help
            );
        }
        page
    }
}

fn in_words(label: &Label) -> String {
    let name = label.name;
    let listed =
        |values: &[&str]| values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", ");
    match label.values {
        Values::Of(values) => format!("`{name}`: {}", listed(values)),
        Values::Some(values) => format!("`{name}`, from the first event on: {}", listed(values)),
        Values::Reason => {
            format!("`{name}`, from the first event on: a name in the [register of errors](../errors.md)")
        }
        Values::OkOrReason => format!("`{name}`: `OK`, or a name in the [register of errors](../errors.md)"),
        Values::Words(words) => format!("`{name}`, from the first event on: {words}"),
        Values::One(words) => format!("`{name}`: {words}"),
    }
}

/// The unit that a name ends in, and the name without it.
fn unit_of(base: &'static str) -> Option<(&'static str, Unit)> {
    if let Some(base) = base.strip_suffix("_bytes") {
        return Some((base, Unit::Bytes));
    }
    let base = base.strip_suffix("_seconds")?;
    Some((base, Unit::Seconds))
}

/// An `Info` that can be cloned.
#[derive(Debug, Clone)]
struct Shared(std::sync::Arc<Info<[(&'static str, &'static str); 1]>>);

impl Shared {
    fn of(version: &'static str) -> Self {
        Self(std::sync::Arc::new(Info::new([("version", version)])))
    }
}

impl prometheus_client::encoding::EncodeMetric for Shared {
    fn encode(&self, encoder: prometheus_client::encoding::MetricEncoder<'_>) -> Result<(), fmt::Error> {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> prometheus_client::metrics::MetricType {
        prometheus_client::metrics::MetricType::Info
    }
}

/// One label with a value out of a short list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct One {
    /// The label.
    pub name: &'static str,
    /// The value.
    pub value: &'static str,
}

impl One {
    /// This label with this value.
    #[must_use]
    pub const fn new(name: &'static str, value: &'static str) -> Self {
        Self { name, value }
    }
}

impl EncodeLabelSet for One {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        [(self.name, self.value)].encode(encoder)
    }
}

/// Moves a counter to where another part's own has come to.
pub fn advance(counter: &Counter, to: u64) {
    counter.inc_by(to.saturating_sub(counter.get()));
}

/// As a gauge holds it.
#[must_use]
pub fn as_gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_shows_the_names_that_were_declared() {
        let mut catalogue = Catalogue::default();
        catalogue.counter("pithead_things_total", "Things").inc();
        catalogue.counter("pithead_sent_bytes_total", "Sent").inc_by(7);
        catalogue.gauge("pithead_room_bytes", "Room").set(3);
        catalogue.float("pithead_full_in_seconds", "Full in").set(f64::INFINITY);
        catalogue.gauge("pithead_rate_limit_bytes_per_second", "Limit").set(5);
        catalogue.build("pithead_thing_build_info", "1.2.3");
        let kinds =
            catalogue.counters::<One>("pithead_kinds_total", &[Label::of("kind", &["a", "b"])], "Kinds");
        kinds.get_or_create(&One::new("kind", "a")).inc();
        let took = catalogue.durations("pithead_took_seconds", &[0.5, 1.0], "Took");
        took.observe(0.7);
        let page = catalogue.page();
        for line in [
            "pithead_things_total 1",
            "pithead_sent_bytes_total 7",
            "pithead_room_bytes 3",
            "pithead_full_in_seconds inf",
            "pithead_rate_limit_bytes_per_second 5",
            "pithead_thing_build_info{version=\"1.2.3\"} 1",
            "pithead_kinds_total{kind=\"a\"} 1",
            "pithead_took_seconds_bucket{le=\"1.0\"} 1",
            "pithead_took_seconds_bucket{le=\"+Inf\"} 1",
            "pithead_took_seconds_count 1",
            "# UNIT pithead_sent_bytes bytes",
        ] {
            assert!(page.contains(line), "{line} is missing from:\n{page}");
        }
        assert!(
            catalogue.reference().contains("| `pithead_kinds_total` | counter | `kind`: `a`, `b` | Kinds |")
        );
    }
}

//! What both programs say of themselves in the same words.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::{Catalogue, Label, One, Values, as_gauge};
use crate::ingest::UploadStats;
use crate::program::disk::Room;
use crate::tls::Expiries;
use crate::trace::span::SpanCounts;

const DIMENSION: &str = "dimension";

/// The lamps.
#[derive(Debug, Clone)]
pub struct HealthMetrics {
    ready: Gauge,
    well: Family<One, Gauge>,
    down: Family<One, Gauge>,
}

impl HealthMetrics {
    /// Declares them for these dimensions.
    pub fn declare(all: &mut Catalogue, dimensions: &'static [&'static str]) -> Self {
        let labels = [Label::of(DIMENSION, dimensions)];
        let declared = Self {
            ready: all.gauge("pithead_ready", "1 while /readyz says so"),
            well: all.gauges(
                "pithead_healthy",
                &labels,
                "1 if this dimension of health is well, 0 if degraded or down",
            ),
            down: all.gauges(
                "pithead_health_down",
                &labels,
                "1 if this dimension of health does not work at all",
            ),
        };
        dimensions.iter().for_each(|dimension| declared.show(dimension, false, false));
        declared
    }

    /// Of one dimension.
    pub fn show(&self, dimension: &'static str, well: bool, down: bool) {
        let label = One::new(DIMENSION, dimension);
        self.well.get_or_create(&label).set(i64::from(well));
        self.down.get_or_create(&label).set(i64::from(down));
    }

    /// Of all together.
    pub fn ready(&self, ready: bool) {
        self.ready.set(i64::from(ready));
    }
}

const RESULT: &str = "result";

/// Reloads of the configuration.
#[derive(Debug, Clone)]
pub struct ConfigMetrics {
    reloads: Family<One, Counter>,
    last_good: Gauge,
    good_at: Gauge,
}

impl ConfigMetrics {
    /// Declares them. What the program has started with is in force since `now_s`.
    pub fn declare(all: &mut Catalogue, now_s: u64) -> Self {
        let declared = Self {
            reloads: all.counters(
                "pithead_config_reloads_total",
                &[Label::of(RESULT, &["ok", "refused"])],
                "Reloads that were asked for, by result",
            ),
            last_good: all
                .gauge("pithead_config_last_reload_successful", "0 if the last reload was refused, else 1"),
            good_at: all.gauge(
                "pithead_config_last_reload_success_timestamp_seconds",
                "When what is in force was read, since 1970; the start counts",
            ),
        };
        for result in ["ok", "refused"] {
            drop(declared.reloads.get_or_create(&One::new(RESULT, result)));
        }
        declared.last_good.set(1);
        declared.good_at.set(as_gauge(now_s));
        declared
    }

    /// A reload was done, or refused.
    pub fn reloaded(&self, good: bool, now_s: u64) {
        let result = if good { "ok" } else { "refused" };
        self.reloads.get_or_create(&One::new(RESULT, result)).inc();
        self.last_good.set(i64::from(good));
        if good {
            self.good_at.set(as_gauge(now_s));
        }
    }
}

const CERTIFICATE: &str = "certificate";

/// When certificates and revocation lists run out.
#[derive(Debug, Clone)]
pub struct TlsMetrics {
    expires: Family<One, Gauge>,
    crl: Gauge,
}

impl TlsMetrics {
    /// Declares them.
    pub fn declare(all: &mut Catalogue) -> Self {
        let declared = Self {
            expires: all.gauges(
                "pithead_tls_certificate_expires_timestamp_seconds",
                &[Label::of(CERTIFICATE, &["own", "client_ca"])],
                "When this program's own certificate, or the CA of its clients, ends, since 1970; of several the first",
            ),
            crl: all.gauge(
                "pithead_tls_crl_next_update_timestamp_seconds",
                "When the first revocation list is to be renewed, since 1970; 0 without lists",
            ),
        };
        declared.show(&Expiries::default());
        declared
    }

    /// Of what is in force now.
    pub fn show(&self, expiries: &Expiries) {
        let seconds = |at: Option<i64>| at.unwrap_or(0);
        self.expires.get_or_create(&One::new(CERTIFICATE, "own")).set(seconds(expiries.own));
        self.expires.get_or_create(&One::new(CERTIFICATE, "client_ca")).set(seconds(expiries.client_ca));
        self.crl.set(seconds(expiries.crl));
    }
}

/// A file system.
#[derive(Debug, Clone)]
pub struct DiskMetrics {
    size: Gauge,
    available: Gauge,
}

impl DiskMetrics {
    /// Declares those of the data directory.
    pub fn data(all: &mut Catalogue) -> Self {
        Self {
            size: all.gauge("pithead_disk_size_bytes", "Size of the file system of the data directory"),
            available: all.gauge(
                "pithead_disk_available_bytes",
                "What this program may still take of the file system of the data directory",
            ),
        }
    }

    /// Declares those of a sink.
    pub fn sink(all: &mut Catalogue) -> Self {
        Self {
            size: all.gauge("pithead_sink_size_bytes", "Size of the file system of the sink"),
            available: all.gauge(
                "pithead_sink_available_bytes",
                "What this program may still take of the file system of the sink",
            ),
        }
    }

    /// Looks. What cannot be looked at is 0. Touches the disk: not for an async thread.
    pub fn measure(&self, folder: &Path) {
        let room = Room::of(folder).unwrap_or_default();
        self.size.set(as_gauge(room.size_bytes));
        self.available.set(as_gauge(room.available_bytes));
    }
}

const OUTCOME: &str = "outcome";

/// Spans, where they are exported.
#[derive(Debug, Clone)]
pub struct TraceMetrics {
    spans: Family<One, Counter>,
    counts: Arc<OnceLock<Arc<SpanCounts>>>,
}

impl TraceMetrics {
    /// Declares them.
    pub fn declare(all: &mut Catalogue) -> Self {
        let declared = Self {
            spans: all.counters(
                "pithead_trace_spans_total",
                &[Label::of(OUTCOME, &["exported", "dropped", "refused"])],
                "Spans by what became of them: taken by the collector, lost since more ended than it took, refused by it; 0 without [traces]",
            ),
            counts: Arc::default(),
        };
        declared.show(&SpanCounts::default());
        declared
    }

    /// Shows these from now on; once.
    pub fn follow(&self, counts: Arc<SpanCounts>) {
        // A program has one exporter.
        let _ = self.counts.set(counts);
    }

    /// Brings them up to date.
    pub fn measure(&self) {
        if let Some(counts) = self.counts.get() {
            self.show(counts);
        }
    }

    fn show(&self, counts: &SpanCounts) {
        for (outcome, now) in
            [("exported", counts.exported()), ("dropped", counts.dropped()), ("refused", counts.refused())]
        {
            self.spans.get_or_create(&One::new(OUTCOME, outcome)).inner().store(now, Ordering::Relaxed);
        }
    }
}

/// The wall clock.
#[derive(Debug, Clone)]
pub struct ClockMetrics {
    steps: Counter,
}

impl ClockMetrics {
    /// Declares them.
    pub fn declare(all: &mut Catalogue) -> Self {
        Self {
            steps: all.counter(
                "pithead_clock_steps_total",
                "How often the wall clock was seen to jump by more than a second against operating time",
            ),
        }
    }

    /// It has jumped.
    pub fn stepped(&self) {
        self.steps.inc();
    }
}

/// Large envelopes.
#[derive(Debug, Clone)]
pub struct UploadMetrics {
    open: Gauge,
    waiting: Gauge,
    bytes: Gauge,
    capacity: Gauge,
}

impl UploadMetrics {
    /// Declares them.
    pub fn declare(all: &mut Catalogue) -> Self {
        Self {
            open: all.gauge("pithead_uploads_open", "Large envelopes whose bytes are still coming"),
            waiting: all.gauge("pithead_uploads_waiting", "Large envelopes that are whole and not passed on"),
            bytes: all.gauge("pithead_uploads_bytes", "Bytes that large envelopes hold or were promised"),
            capacity: all.gauge("pithead_uploads_capacity_bytes", "Bytes that large envelopes may take"),
        }
    }

    /// As they stand.
    pub fn show(&self, stats: &UploadStats) {
        self.open.set(as_gauge(stats.open as u64));
        self.waiting.set(as_gauge(stats.taken as u64));
        self.bytes.set(as_gauge(stats.bytes));
        self.capacity.set(as_gauge(stats.capacity));
    }
}

/// A label of sites, of which the configuration names few.
pub const SITE: Label = Label::new("site", Values::Words("a site of the configuration"));

//! Every metric of the gateway, declared once, with its help.
//!
//! Prefix `pithead_`, base units, bounded labels. A device is never a label: a fleet would be a million series. Sizes come
//! with their capacity, and what waits with the age of its oldest.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use pithead_hop::accept::{AcceptStats, Ended, Handshake, Refused};
use pithead_hop::ingest::UploadStats;
use pithead_proto::errors::v1::ErrorReason;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text};
use prometheus_client::metrics::{
    counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info,
};
use prometheus_client::registry::{Registry, Unit};

type Float = Gauge<f64, AtomicU64>;

/// What became of an envelope that a device offered, or that the far end was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// New, and durable.
    Stored,
    /// Here before.
    Duplicate,
    /// Other bytes under a used identity.
    Conflict,
    /// Not taken.
    Refused,
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        let name = match self {
            Self::Stored => "stored",
            Self::Duplicate => "duplicate",
            Self::Conflict => "conflict",
            Self::Refused => "refused",
        };
        EncodeLabelValue::encode(&name, encoder)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: Outcome,
}

/// A reason of the registry, or `OK`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Reason(Option<ErrorReason>);

impl EncodeLabelValue for Reason {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        EncodeLabelValue::encode(&self.0.map_or("OK", ErrorReason::name), encoder)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: Reason,
}

/// The dimensions of health.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dimension {
    /// Devices can hand envelopes in.
    Ingest,
    /// There is a statement in force, and it is young.
    Keys,
    /// The far end takes envelopes.
    Relay,
    /// The spool's disk works and has room.
    Disk,
}

impl Dimension {
    /// Its name in status pages and labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Keys => "keys",
            Self::Relay => "relay",
            Self::Disk => "disk",
        }
    }
}

impl EncodeLabelValue for Dimension {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        EncodeLabelValue::encode(&self.name(), encoder)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DimensionLabel {
    dimension: Dimension,
}

/// Why the relay stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PauseCause {
    /// Somebody has said so.
    Hand,
    /// The far end refuses too much.
    Refusals,
    /// There is no room for what the far end refuses.
    RefusedAreaFull,
}

impl PauseCause {
    const ALL: [Self; 3] = [Self::Hand, Self::Refusals, Self::RefusedAreaFull];
}

impl EncodeLabelValue for PauseCause {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        let name = match self {
            Self::Hand => "hand",
            Self::Refusals => "refusals",
            Self::RefusedAreaFull => "refused_area_full",
        };
        EncodeLabelValue::encode(&name, encoder)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PauseLabel {
    cause: PauseCause,
}

/// Why a connection was refused or ended: a name out of a short list of the accept layer's.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HowLabel {
    how: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LaneLabel {
    lane: &'static str,
}

/// The metrics. Clones count into the same ones.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    taking_over: Mutex<()>,
    ingest: Family<OutcomeLabel, Counter>,
    ingest_bytes: Counter,
    ingest_refusals: Family<ReasonLabel, Counter>,
    ack_seconds: Histogram,
    keys_not_active: Counter,
    connections: Gauge,
    connections_handshaking: Gauge,
    connections_accepted: Counter,
    connections_refused: Family<HowLabel, Counter>,
    handshakes: Family<HowLabel, Counter>,
    connections_ended: Family<HowLabel, Counter>,
    listener_errors: Counter,
    streams: Counter,
    requests: Counter,
    requests_refused: Counter,
    requests_throttled: Counter,
    oversize_headers: Counter,
    noise_frames: Counter,
    spool_records: Gauge,
    spool_bytes: Gauge,
    spool_capacity_bytes: Gauge,
    spool_oldest_seconds: Float,
    lane_records: Family<LaneLabel, Gauge>,
    lane_bytes: Family<LaneLabel, Gauge>,
    lane_oldest_seconds: Family<LaneLabel, Float>,
    spool_corrupt: Counter,
    spool_failed_syncs: Gauge,
    relay_up: Gauge,
    relay_connects: Family<ReasonLabel, Counter>,
    relayed: Family<OutcomeLabel, Counter>,
    relayed_bytes: Counter,
    relay_window_bytes: Gauge,
    relay_paused: Family<PauseLabel, Gauge>,
    relay_rate_bytes: Gauge,
    lines_in_memory: Gauge,
    devices_holding: Gauge,
    device_most_bytes: Gauge,
    device_capacity_bytes: Gauge,
    refused_records: Gauge,
    refused_bytes: Gauge,
    refused_capacity_bytes: Gauge,
    uploads_open: Gauge,
    uploads_waiting: Gauge,
    uploads_bytes: Gauge,
    uploads_capacity_bytes: Gauge,
    key_refreshes: Family<ReasonLabel, Counter>,
    key_epoch: Gauge,
    key_sequence: Gauge,
    key_root_version: Gauge,
    key_expires: Gauge,
    key_refresh_age_seconds: Float,
    key_statements_known: Gauge,
    kms_lookups: Family<ReasonLabel, Counter>,
    fingerprint_mismatch: Gauge,
    enrollments: Family<ReasonLabel, Counter>,
    registry_good: Gauge,
    healthy: Family<DimensionLabel, Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registers all of them.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("pithead");
        macro_rules! metric {
            ($name:literal, $help:literal) => {
                metric!($name, $help, Default::default())
            };
            ($name:literal, $help:literal, $make:expr) => {{
                let metric = $make;
                registry.register($name, $help, Clone::clone(&metric));
                metric
            }};
        }
        macro_rules! sized {
            ($name:literal, $help:literal, $unit:ident) => {
                sized!($name, $help, $unit, Default::default())
            };
            ($name:literal, $help:literal, $unit:ident, $make:expr) => {{
                let metric = $make;
                registry.register_with_unit($name, $help, Unit::$unit, Clone::clone(&metric));
                metric
            }};
        }
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("gateway_build", "The version of this program", build);
        // 0.25 ms to 2 s: from a quiet virtual disk to one that is in trouble.
        let ack = || {
            Histogram::new([0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.25, 1.0, 2.0])
        };
        let inner = Inner {
            ingest: metric!("ingest_envelopes", "Envelopes that were answered, by what became of them"),
            ingest_bytes: sized!("ingest_stored", "Bytes of envelopes that were made durable", Bytes),
            ingest_refusals: metric!("ingest_refusals", "Envelopes that were not taken, by the reason given"),
            ack_seconds: sized!(
                "ingest_durable",
                "From an admitted envelope to its fdatasync",
                Seconds,
                ack()
            ),
            keys_not_active: metric!(
                "ingest_key_not_active",
                "Envelopes taken under a key that is not active any more"
            ),
            connections: metric!("connections", "Connections that are open on the listener for devices"),
            connections_handshaking: metric!("connections_handshaking", "Of them, those in their handshake"),
            connections_accepted: metric!("connections_accepted", "Connections taken from the listener"),
            connections_refused: metric!(
                "connections_refused",
                "Connections turned away before their handshake, by reason"
            ),
            handshakes: metric!("handshakes", "Handshakes that ended, by how"),
            connections_ended: metric!(
                "connections_ended",
                "Connections that ended after a good handshake, by how"
            ),
            listener_errors: metric!(
                "listener_errors",
                "Errors of the listener itself, such as no more file descriptors"
            ),
            streams: metric!(
                "streams",
                "Calls that peers began, those included that HTTP/2 refused by itself"
            ),
            requests: metric!("requests", "Calls that reached a service, or were throttled"),
            requests_refused: metric!(
                "requests_refused",
                "Calls answered with an error at once: bad messages, refusals, the rate of an identity"
            ),
            requests_throttled: metric!(
                "requests_throttled",
                "Calls turned away by the rate of their identity"
            ),
            oversize_headers: metric!("oversize_headers", "Calls whose headers were larger than allowed"),
            noise_frames: metric!(
                "noise_frames",
                "HTTP/2 frames that ask for nothing: PING, SETTINGS, RST_STREAM, empty DATA and the like"
            ),
            spool_records: metric!("spool_records", "Records that wait for the relay"),
            spool_bytes: sized!("spool_allocated", "Bytes of the spool's files, spares included", Bytes),
            spool_capacity_bytes: sized!("spool_capacity", "Bytes that the spool may take", Bytes),
            spool_oldest_seconds: sized!(
                "spool_oldest",
                "Age of the oldest record that waits for the relay",
                Seconds
            ),
            lane_records: metric!("spool_lane_records", "Records that wait for the relay, by lane"),
            lane_bytes: sized!("spool_lane", "Bytes of the segments that hold what waits, by lane", Bytes),
            lane_oldest_seconds: sized!(
                "spool_lane_oldest",
                "Age of the oldest record that waits for the relay, by lane",
                Seconds
            ),
            spool_corrupt: metric!("spool_corrupt_records", "Records lost to damage on the disk"),
            spool_failed_syncs: metric!("spool_failed_syncs", "Syncs that the disk failed since the start"),
            relay_up: metric!("relay_up", "1 while the far end takes envelopes"),
            relay_connects: metric!(
                "relay_calls_ended",
                "Calls to the far end that ended or failed, by reason"
            ),
            relayed: metric!("relay_envelopes", "Envelopes that the far end answered, by its answer"),
            relayed_bytes: sized!(
                "relay_acknowledged",
                "Bytes of envelopes that the far end has acknowledged",
                Bytes
            ),
            relay_window_bytes: sized!("relay_in_flight", "Bytes sent and not yet answered", Bytes),
            relay_paused: metric!(
                "relay_paused",
                "1 while the relay stands still, by who or what has it stand"
            ),
            relay_rate_bytes: sized!(
                "relay_rate",
                "What the relay may send in a second, 0 if any amount",
                Bytes
            ),
            lines_in_memory: metric!(
                "lines_in_memory",
                "Lines whose numbers are in memory and in the checkpoint"
            ),
            devices_holding: metric!(
                "devices_holding",
                "Devices of which something waits, or lies in the refused area"
            ),
            device_most_bytes: sized!("device_held_most", "What the device holds that holds most", Bytes),
            device_capacity_bytes: sized!("device_held_capacity", "What a device may hold", Bytes),
            refused_records: metric!("refused_records", "Envelopes in the refused area"),
            refused_bytes: sized!("refused", "Bytes in the refused area", Bytes),
            refused_capacity_bytes: sized!("refused_capacity", "Bytes that the refused area may take", Bytes),
            uploads_open: metric!("uploads_open", "Large envelopes whose bytes are still coming"),
            uploads_waiting: metric!("uploads_waiting", "Large envelopes that are whole and not passed on"),
            uploads_bytes: sized!("uploads", "Bytes that large envelopes hold or were promised", Bytes),
            uploads_capacity_bytes: sized!("uploads_capacity", "Bytes that large envelopes may take", Bytes),
            key_refreshes: metric!("key_refreshes", "Attempts to refresh the key statement, by result"),
            key_epoch: metric!("key_epoch", "Epoch of the trust root in force"),
            key_sequence: metric!(
                "key_sequence",
                "Sequence number of the statement in force, 0 if there is none"
            ),
            key_root_version: metric!("key_root_version", "Version of the trust root in force"),
            key_expires: sized!("key_expires_at", "When the statement in force expires, since 1970", Seconds),
            key_refresh_age_seconds: sized!(
                "key_refresh_age",
                "Since the source last answered well",
                Seconds
            ),
            key_statements_known: metric!("key_statements_known", "Statements ever accepted here"),
            kms_lookups: metric!("kms_lookups", "Lookups of public keys at KMS, by result"),
            fingerprint_mismatch: metric!(
                "key_fingerprint_mismatch",
                "1 while KMS serves another key than was stated"
            ),
            enrollments: metric!("enrollments", "Attempts to enrol a device, by result"),
            registry_good: metric!(
                "device_registry_good",
                "1 while the registry of devices reads back, 0 while an older one is in force"
            ),
            healthy: metric!("healthy", "1 if this dimension of health is well, 0 if degraded or worse"),
            registry,
            taking_over: Mutex::default(),
        };
        Self(Arc::new(inner))
    }

    /// The page in the OpenMetrics text format.
    #[must_use]
    pub fn page(&self) -> String {
        let mut page = String::new();
        // Writing into a String cannot fail.
        let _ = text::encode(&mut page, &self.0.registry);
        page
    }

    pub(crate) fn answered(&self, outcome: Outcome) {
        self.0.ingest.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    pub(crate) fn stored(&self, bytes: usize, took_seconds: f64) {
        self.0.ingest_bytes.inc_by(bytes as u64);
        self.0.ack_seconds.observe(took_seconds);
    }

    pub(crate) fn refused(&self, reason: ErrorReason) {
        self.0.ingest_refusals.get_or_create(&ReasonLabel { reason: Reason(Some(reason)) }).inc();
    }

    pub(crate) fn enrolled(&self, refused: Option<ErrorReason>) {
        self.0.enrollments.get_or_create(&ReasonLabel { reason: Reason(refused) }).inc();
    }

    pub(crate) fn registry_good(&self, good: bool) {
        self.0.registry_good.set(i64::from(good));
    }

    pub(crate) fn key_not_active(&self) {
        self.0.keys_not_active.inc();
    }

    /// Takes over what the accept layer has counted. Every reason is on the page from the start, at 0.
    pub(crate) fn port(&self, stats: &AcceptStats) {
        let all = &self.0;
        // Two pages at a time would each add what is new.
        let _one = all.taking_over.lock().unwrap_or_else(PoisonError::into_inner);
        all.connections.set(as_gauge(stats.open));
        all.connections_handshaking.set(as_gauge(stats.handshaking));
        let plain = [
            (&all.connections_accepted, stats.accepted),
            (&all.listener_errors, stats.listener_errors),
            (&all.streams, stats.streams),
            (&all.requests, stats.requests),
            (&all.requests_refused, stats.requests_refused),
            (&all.requests_throttled, stats.throttled),
            (&all.oversize_headers, stats.oversize_headers),
            (&all.noise_frames, stats.noise_frames),
        ];
        for (counter, count) in plain {
            advance(counter, count);
        }
        for why in Refused::ALL {
            let label = HowLabel { how: why.name() };
            advance(&all.connections_refused.get_or_create(&label), stats.refused(why));
        }
        for outcome in Handshake::ALL {
            let label = HowLabel { how: outcome.name() };
            advance(&all.handshakes.get_or_create(&label), stats.handshakes(outcome));
        }
        for how in Ended::ALL {
            advance(&all.connections_ended.get_or_create(&HowLabel { how: how.name() }), stats.ended(how));
        }
    }

    pub(crate) fn spool(
        &self,
        records: u64,
        allocated: u64,
        capacity: u64,
        oldest_s: f64,
        failed_syncs: u64,
    ) {
        self.0.spool_records.set(as_gauge(records));
        self.0.spool_bytes.set(as_gauge(allocated));
        self.0.spool_capacity_bytes.set(as_gauge(capacity));
        self.0.spool_oldest_seconds.set(oldest_s);
        self.0.spool_failed_syncs.set(as_gauge(failed_syncs));
    }

    pub(crate) fn spool_lane(&self, lane: &'static str, records: u64, bytes: u64, oldest_s: f64) {
        let label = LaneLabel { lane };
        self.0.lane_records.get_or_create(&label).set(as_gauge(records));
        self.0.lane_bytes.get_or_create(&label).set(as_gauge(bytes));
        self.0.lane_oldest_seconds.get_or_create(&label).set(oldest_s);
    }

    pub(crate) fn spool_corrupt(&self, records: u64) {
        self.0.spool_corrupt.inc_by(records);
    }

    pub(crate) fn relay_up(&self, up: bool) {
        self.0.relay_up.set(i64::from(up));
    }

    pub(crate) fn relay_ended(&self, reason: Option<ErrorReason>) {
        self.0.relay_connects.get_or_create(&ReasonLabel { reason: Reason(reason) }).inc();
    }

    pub(crate) fn relayed(&self, outcome: Outcome, bytes: usize) {
        self.0.relayed.get_or_create(&OutcomeLabel { outcome }).inc();
        self.0.relayed_bytes.inc_by(bytes as u64);
    }

    pub(crate) fn relay_window(&self, bytes: usize) {
        self.0.relay_window_bytes.set(bytes as i64);
    }

    pub(crate) fn relay_paused(&self, by: Option<PauseCause>) {
        for cause in PauseCause::ALL {
            self.0.relay_paused.get_or_create(&PauseLabel { cause }).set(i64::from(by == Some(cause)));
        }
    }

    pub(crate) fn relay_rate(&self, bytes_per_second: Option<u64>) {
        self.0.relay_rate_bytes.set(as_gauge(bytes_per_second.unwrap_or(0)));
    }

    pub(crate) fn lines_in_memory(&self, count: usize) {
        self.0.lines_in_memory.set(as_gauge(count as u64));
    }

    pub(crate) fn devices_holding(&self, devices: u64, most: u64, capacity: u64) {
        self.0.devices_holding.set(as_gauge(devices));
        self.0.device_most_bytes.set(as_gauge(most));
        self.0.device_capacity_bytes.set(as_gauge(capacity));
    }

    pub(crate) fn refused_area(&self, records: u64, bytes: u64, capacity: u64) {
        self.0.refused_records.set(as_gauge(records));
        self.0.refused_bytes.set(as_gauge(bytes));
        self.0.refused_capacity_bytes.set(as_gauge(capacity));
    }

    pub(crate) fn uploads(&self, stats: &UploadStats) {
        self.0.uploads_open.set(as_gauge(stats.open as u64));
        self.0.uploads_waiting.set(as_gauge(stats.taken as u64));
        self.0.uploads_bytes.set(as_gauge(stats.bytes));
        self.0.uploads_capacity_bytes.set(as_gauge(stats.capacity));
    }

    pub(crate) fn key_refresh(&self, result: Option<ErrorReason>) {
        self.0.key_refreshes.get_or_create(&ReasonLabel { reason: Reason(result) }).inc();
    }

    pub(crate) fn key_in_force(&self, root_version: u64, epoch: u64, sequence: u64, expires_at: u64) {
        self.0.key_root_version.set(as_gauge(root_version));
        self.0.key_epoch.set(as_gauge(epoch));
        self.0.key_sequence.set(as_gauge(sequence));
        self.0.key_expires.set(as_gauge(expires_at));
    }

    pub(crate) fn key_refresh_age(&self, seconds: f64) {
        self.0.key_refresh_age_seconds.set(seconds);
    }

    pub(crate) fn statements_known(&self, count: usize) {
        self.0.key_statements_known.set(as_gauge(count as u64));
    }

    pub(crate) fn kms_lookup(&self, fault: Option<ErrorReason>) {
        self.0.kms_lookups.get_or_create(&ReasonLabel { reason: Reason(fault) }).inc();
    }

    pub(crate) fn fingerprint_mismatch(&self, differs: bool) {
        self.0.fingerprint_mismatch.set(i64::from(differs));
    }

    pub(crate) fn health(&self, dimension: Dimension, well: bool) {
        self.0.healthy.get_or_create(&DimensionLabel { dimension }).set(i64::from(well));
    }
}

/// Moves a counter to where another part's own has come to.
fn advance(counter: &Counter, to: u64) {
    counter.inc_by(to.saturating_sub(counter.get()));
}

fn as_gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_on_the_page_with_its_help_and_counts() {
        let metrics = Metrics::new();
        metrics.answered(Outcome::Stored);
        metrics.clone().answered(Outcome::Stored);
        metrics.refused(ErrorReason::KeyUnknown);
        metrics.key_refresh(None);
        metrics.port(&AcceptStats::default());
        let page = metrics.page();
        assert!(page.contains("pithead_connections_ended_total{how=\"rapid_reset\"} 0"), "{page}");
        assert!(page.contains("pithead_connections_refused_total{how=\"rate\"} 0"), "{page}");
        assert!(page.contains("pithead_ingest_envelopes_total{outcome=\"stored\"} 2"), "{page}");
        assert!(page.contains("pithead_ingest_refusals_total{reason=\"KEY_UNKNOWN\"} 1"), "{page}");
        assert!(page.contains("pithead_key_refreshes_total{reason=\"OK\"} 1"), "{page}");
        assert!(page.contains("# HELP pithead_spool_oldest_seconds Age of the oldest record"), "{page}");
        assert!(!page.contains("device=\""));
    }
}

//! Every metric of the gateway, declared once, with its help: `docs/reference/metrics.md` is made of this.
//!
//! Prefix `pithead_`, base units, bounded labels. A device is never a label: a fleet would be a million series. Sizes come
//! with their capacity, and what waits with the age of its oldest. What both programs have is declared in
//! [`pithead_hop::program::metrics`].

use std::fmt;
use std::sync::Arc;

use pithead_hop::accept::AcceptStats;
use pithead_hop::accept::calls::Calls;
use pithead_hop::ingest::UploadStats;
use pithead_hop::program::clock::wall_s;
use pithead_hop::program::metrics::{
    ACK_BOUNDS_S, Catalogue, ClockMetrics, ConfigMetrics, Declared, DiskMetrics, Durations, Float,
    HealthMetrics, Label, One, PortMetrics, ProcessMetrics, RpcMetrics, TlsMetrics, TraceMetrics,
    UploadMetrics, Values, advance, as_gauge,
};
use pithead_hop::tls::Expiries;
use pithead_hop::trace::span::SpanCounts;
use pithead_proto::errors::v1::ErrorReason;
use pithead_spool::{SYNC_BOUNDS_S, Stats};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge};

use crate::envelopes::lanes;
use crate::envelopes::passing::Way;
use crate::rates::Totals;

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

impl Outcome {
    const ALL: [Self; 4] = [Self::Stored, Self::Duplicate, Self::Conflict, Self::Refused];
    const NAMES: [&'static str; 4] = ["stored", "duplicate", "conflict", "refused"];
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        EncodeLabelValue::encode(&Self::NAMES[*self as usize], encoder)
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
    /// Their names.
    pub const NAMES: [&'static str; 4] = ["ingest", "keys", "relay", "disk"];

    /// Its name in status pages and labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
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
    /// Another bundle lies under the name of one of ours.
    ForeignBundle,
}

impl PauseCause {
    const ALL: [Self; 4] = [Self::Hand, Self::Refusals, Self::RefusedAreaFull, Self::ForeignBundle];
    const NAMES: [&'static str; 4] = ["hand", "refusals", "refused_area_full", "foreign_bundle"];
}

/// What has become of a copy of a large envelope, in a store that several gateways share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CopyEvent {
    /// It was put, whole.
    Put,
    /// It was fetched by a gateway that had not gathered it.
    Fetched,
    /// It was removed, since nobody needs it any more.
    Removed,
    /// It was removed, and nobody had ever named it.
    Orphan,
    /// It was gone, or another than was put.
    Lost,
}

impl CopyEvent {
    const NAMES: [&'static str; 5] = ["put", "fetched", "removed", "orphan", "lost"];
}

const EVENT: &str = "event";
const CAUSE: &str = "cause";
const RESULT: &str = "result";
const BUNDLE_RESULTS: [&str; 2] = ["put", "found"];
const LANE: &str = "lane";
const WAY: &str = "way";

/// What is in force of the key path, for its gauges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InForce {
    /// Version of the trust root.
    pub root_version: u64,
    /// When the trust root ends, in seconds since 1970.
    pub root_expires_at: u64,
    /// Epoch of the statement.
    pub epoch: u64,
    /// Its sequence number.
    pub sequence: u64,
    /// When it was issued, is to be replaced, and ends; zeros if there is none.
    pub issued_at: u64,
    /// See `issued_at`.
    pub refresh_by: u64,
    /// See `issued_at`.
    pub expires_at: u64,
    /// Until when the last of its active keys may be sealed to.
    pub seal_until: u64,
}

/// The metrics. Clones count into the same ones.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    all: Catalogue,
    ingest: Family<OutcomeLabel, Counter>,
    ingest_bytes: Counter,
    ingest_refusals: Family<ReasonLabel, Counter>,
    acks: Durations,
    keys_not_active: Counter,
    declared_gaps: Counter,
    port: PortMetrics,
    rpc: RpcMetrics,
    spool_records: Gauge,
    spool_backlog: Gauge,
    spool_allocated: Gauge,
    spool_capacity: Gauge,
    spool_available: Gauge,
    spool_oldest: Float,
    spool_full_in: Float,
    lane_records: Family<One, Gauge>,
    lane_bytes: Family<One, Gauge>,
    lane_oldest: Family<One, Float>,
    spool_queued_records: Gauge,
    spool_queued_bytes: Gauge,
    spool_appended: Counter,
    spool_groups: Counter,
    spool_syncs: Counter,
    spool_failed_syncs: Counter,
    spool_sync_times: Durations,
    spool_committing: Float,
    spool_failed_lanes: Gauge,
    spool_corrupt: Counter,
    relay_up: Gauge,
    owner: Gauge,
    gateways: Gauge,
    passed_on_calls: Family<One, Counter>,
    passed_on_envelopes: Family<One, Counter>,
    passed_on_bytes: Counter,
    passing_on: Gauge,
    relay_connects: Family<ReasonLabel, Counter>,
    relayed: Family<OutcomeLabel, Counter>,
    relayed_bytes: Counter,
    relay_bundles: Family<One, Counter>,
    relay_bundle_bytes: Counter,
    relay_in_flight: Gauge,
    relay_window: Gauge,
    relay_acknowledged_at: Float,
    relay_paused: Family<One, Gauge>,
    relay_rate: Gauge,
    lines_in_memory: Gauge,
    lines_incomplete: Gauge,
    missing_numbers: Gauge,
    devices_holding: Gauge,
    device_most: Gauge,
    device_capacity: Gauge,
    refused_records: Gauge,
    refused_bytes: Gauge,
    refused_capacity: Gauge,
    uploads: UploadMetrics,
    large_store_up: Gauge,
    large_copies: Gauge,
    large_copies_bytes: Gauge,
    large_copy_events: Family<One, Counter>,
    key_refreshes: Family<ReasonLabel, Counter>,
    key_epoch: Gauge,
    key_sequence: Gauge,
    key_root_version: Gauge,
    key_root_expires: Gauge,
    key_issued: Gauge,
    key_refresh_by: Gauge,
    key_expires: Gauge,
    key_seal_until: Gauge,
    key_refresh_age: Float,
    key_statements_known: Gauge,
    kms_lookups: Family<ReasonLabel, Counter>,
    fingerprint_mismatch: Gauge,
    split_view: Gauge,
    enrollments: Family<ReasonLabel, Counter>,
    registry_good: Gauge,
    health: HealthMetrics,
    tls: TlsMetrics,
    config: ConfigMetrics,
    disk: DiskMetrics,
    clock: ClockMetrics,
    clock_trusted: Gauge,
    clock_behind: Gauge,
    traces: TraceMetrics,
    process: ProcessMetrics,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Declares all of them.
    #[must_use]
    pub fn new() -> Self {
        let mut all = Catalogue::default();
        let all_of = &mut all;
        let outcomes = [Label::of("outcome", &Outcome::NAMES)];
        let reasons = [Label::new("reason", Values::Reason)];
        let ok_or_reasons = [Label::new("reason", Values::OkOrReason)];
        let by_lane = [Label::of(LANE, &lanes::NAMES)];
        let ways = [Label::of(WAY, &Way::NAMES)];
        all_of.build("pithead_gateway_build_info", env!("CARGO_PKG_VERSION"));
        let inner = Inner {
            ingest: all_of.counters(
                "pithead_ingest_envelopes_total",
                &outcomes,
                "Envelopes that were answered, by what became of them",
            ),
            ingest_bytes: all_of.counter(
                "pithead_ingest_stored_bytes_total",
                "Bytes of envelopes that were made durable",
            ),
            ingest_refusals: all_of.counters(
                "pithead_ingest_refusals_total",
                &reasons,
                "Envelopes that were not taken, by the reason given",
            ),
            acks: all_of.durations(
                "pithead_ingest_durable_seconds",
                ACK_BOUNDS_S,
                "From an admitted envelope to its fdatasync: what a device waits for its acknowledgement",
            ),
            keys_not_active: all_of.counter(
                "pithead_ingest_key_not_active_total",
                "Envelopes taken under a key that is not active any more",
            ),
            declared_gaps: all_of.counter(
                "pithead_ingest_declared_gap_numbers_total",
                "Numbers that devices said they had dropped: a hint, which the decryptor believes only if it is sealed",
            ),
            port: PortMetrics::declare(all_of),
            rpc: RpcMetrics::declare(all_of),
            spool_records: all_of.gauge("pithead_spool_records", "Records that wait for the relay"),
            spool_backlog: all_of.gauge(
                "pithead_spool_backlog_bytes",
                "Bytes of the segments that hold what waits for the relay",
            ),
            spool_allocated: all_of.gauge(
                "pithead_spool_allocated_bytes",
                "Bytes of the spool's files, spares included",
            ),
            spool_capacity: all_of.gauge("pithead_spool_capacity_bytes", "Bytes that the spool may take"),
            spool_available: all_of.gauge(
                "pithead_spool_available_bytes",
                "Bytes that devices can still hand in",
            ),
            spool_oldest: all_of.float(
                "pithead_spool_oldest_seconds",
                "Age of the oldest record that waits for the relay",
            ),
            spool_full_in: all_of.float(
                "pithead_spool_full_in_seconds",
                "When the spool is full if it goes on as in the last quarter of an hour; infinite if it does not grow",
            ),
            lane_records: all_of.gauges(
                "pithead_spool_lane_records",
                &by_lane,
                "Records that wait for the relay, by lane",
            ),
            lane_bytes: all_of.gauges(
                "pithead_spool_lane_bytes",
                &by_lane,
                "Bytes of the segments that hold what waits, by lane",
            ),
            lane_oldest: all_of.floats(
                "pithead_spool_lane_oldest_seconds",
                &by_lane,
                "Age of the oldest record that waits for the relay, by lane",
            ),
            spool_queued_records: all_of.gauge(
                "pithead_spool_queued_records",
                "Records on their way to the disk",
            ),
            spool_queued_bytes: all_of.gauge("pithead_spool_queued_bytes", "Their bytes"),
            spool_appended: all_of.counter(
                "pithead_spool_appended_records_total",
                "Records that became durable",
            ),
            spool_groups: all_of.counter(
                "pithead_spool_groups_total",
                "Group commits; records by groups is how many share a sync",
            ),
            spool_syncs: all_of.counter("pithead_spool_syncs_total", "Syncs of group commits"),
            spool_failed_syncs: all_of.counter(
                "pithead_spool_failed_syncs_total",
                "Syncs that the disk failed: nobody whose envelope was in one was acknowledged",
            ),
            spool_sync_times: all_of.durations(
                "pithead_spool_sync_duration_seconds",
                &SYNC_BOUNDS_S,
                "How long the fdatasync of a group commit took",
            ),
            spool_committing: all_of.float(
                "pithead_spool_committing_seconds",
                "For how long the thread that writes has been at one piece of work, 0 if it waits for some: a disk that hangs",
            ),
            spool_failed_lanes: all_of.gauge(
                "pithead_spool_failed_lanes",
                "Lanes that take nothing until a restart, because the disk has failed twice in a row",
            ),
            spool_corrupt: all_of.counter(
                "pithead_spool_corrupt_records_total",
                "Records lost to damage on the disk",
            ),
            relay_up: all_of.gauge("pithead_relay_up", "1 while the far end takes envelopes"),
            owner: all_of.gauge(
                "pithead_spool_owner",
                "1 while this gateway takes the site's envelopes, where several share them in JetStream",
            ),
            gateways: all_of.gauge(
                "pithead_site_gateways",
                "Gateways that share the site's lanes and were heard of lately, this one among them; 1 where they are not shared",
            ),
            passed_on_calls: all_of.counters(
                "pithead_passed_on_calls_total",
                &ways,
                "Calls of devices that were passed on to the gateway that takes the site's envelopes: given by this one, or taken \
                 by it",
            ),
            passed_on_envelopes: all_of.counters(
                "pithead_passed_on_envelopes_total",
                &ways,
                "Envelopes in those calls; one that was sent again counts again",
            ),
            passed_on_bytes: all_of.counter(
                "pithead_passed_on_bytes_total",
                "Bytes of envelopes that this gateway has passed on to the one that takes them",
            ),
            passing_on: all_of.gauge(
                "pithead_passing_on_calls",
                "Calls of devices that this gateway passes on now",
            ),
            relay_connects: all_of.counters(
                "pithead_relay_calls_ended_total",
                &ok_or_reasons,
                "Calls to the far end that ended or failed, by reason",
            ),
            relayed: all_of.counters(
                "pithead_relay_envelopes_total",
                &outcomes,
                "Envelopes that the far end answered, by its answer",
            ),
            relayed_bytes: all_of.counter(
                "pithead_relay_acknowledged_bytes_total",
                "Bytes of envelopes that the far end has acknowledged",
            ),
            relay_bundles: all_of.counters(
                "pithead_relay_bundles_total",
                &[Label::of(RESULT, &BUNDLE_RESULTS)],
                "Bundles that an object store has: put now, or found there after a lost answer or a restart",
            ),
            relay_bundle_bytes: all_of.counter(
                "pithead_relay_bundle_bytes_total",
                "Bytes of the bundles that were put, with their indexes",
            ),
            relay_in_flight: all_of.gauge("pithead_relay_in_flight_bytes", "Bytes sent and not yet answered"),
            relay_window: all_of.gauge(
                "pithead_relay_window_bytes",
                "Bytes that may be sent and not yet answered; 0 without a relay",
            ),
            relay_acknowledged_at: all_of.float(
                "pithead_relay_last_acknowledged_timestamp_seconds",
                "When the far end last acknowledged something, since 1970; 0 if never since the start",
            ),
            relay_paused: all_of.gauges(
                "pithead_relay_paused",
                &[Label::of(CAUSE, &PauseCause::NAMES)],
                "1 while the relay stands still, by who or what has it stand",
            ),
            relay_rate: all_of.gauge(
                "pithead_relay_rate_limit_bytes_per_second",
                "What the relay may send in a second, 0 if any amount",
            ),
            lines_in_memory: all_of.gauge(
                "pithead_lines_in_memory",
                "Lines whose numbers are in memory and in the checkpoint",
            ),
            lines_incomplete: all_of.gauge(
                "pithead_lines_incomplete",
                "Lines in memory of which numbers are missing that nobody has declared; they may still come",
            ),
            missing_numbers: all_of.gauge("pithead_missing_numbers", "Those numbers, of all lines together"),
            devices_holding: all_of.gauge(
                "pithead_devices_holding",
                "Devices of which something waits, or lies in the refused area",
            ),
            device_most: all_of.gauge(
                "pithead_device_held_most_bytes",
                "What the device holds that holds most",
            ),
            device_capacity: all_of.gauge("pithead_device_held_capacity_bytes", "What a device may hold"),
            refused_records: all_of.gauge("pithead_refused_records", "Envelopes in the refused area"),
            refused_bytes: all_of.gauge("pithead_refused_bytes", "Bytes in the refused area"),
            refused_capacity: all_of.gauge(
                "pithead_refused_capacity_bytes",
                "Bytes that the refused area may take",
            ),
            uploads: UploadMetrics::declare(all_of),
            large_store_up: all_of.gauge(
                "pithead_large_store_up",
                "1 while the store for copies of large envelopes can be used, 0 while it cannot; 0 without one",
            ),
            large_copies: all_of.gauge(
                "pithead_large_copies",
                "Copies of large envelopes that lie there and are wanted, at the gateway that takes the site's envelopes",
            ),
            large_copies_bytes: all_of.gauge("pithead_large_copies_bytes", "Their bytes"),
            large_copy_events: all_of.counters(
                "pithead_large_copy_events_total",
                &[Label::of(EVENT, &CopyEvent::NAMES)],
                "Copies of large envelopes that were put, fetched after a take-over, removed when they were relayed, removed because \
                 nobody had ever named them, or found to be lost",
            ),
            key_refreshes: all_of.counters(
                "pithead_key_refreshes_total",
                &ok_or_reasons,
                "Attempts to refresh the key statement, by result",
            ),
            key_epoch: all_of.gauge("pithead_key_epoch", "Epoch of the trust root in force"),
            key_sequence: all_of.gauge(
                "pithead_key_sequence",
                "Sequence number of the statement in force, 0 if there is none",
            ),
            key_root_version: all_of.gauge("pithead_key_root_version", "Version of the trust root in force"),
            key_root_expires: all_of.gauge(
                "pithead_trust_root_expires_timestamp_seconds",
                "When the trust root in force ends, since 1970",
            ),
            key_issued: all_of.gauge(
                "pithead_key_statement_issued_timestamp_seconds",
                "When the statement in force was issued, since 1970; 0 if there is none",
            ),
            key_refresh_by: all_of.gauge(
                "pithead_key_statement_refresh_by_timestamp_seconds",
                "From when on the statement in force is stale, since 1970; 0 if there is none",
            ),
            key_expires: all_of.gauge(
                "pithead_key_statement_expires_timestamp_seconds",
                "When the statement in force ends, since 1970; 0 if there is none",
            ),
            key_seal_until: all_of.gauge(
                "pithead_key_seal_until_timestamp_seconds",
                "Until when devices may seal to an active key of it, since 1970; 0 if there is none",
            ),
            key_refresh_age: all_of.float(
                "pithead_key_refresh_age_seconds",
                "Since the source last answered well",
            ),
            key_statements_known: all_of.gauge(
                "pithead_key_statements_known",
                "Statements ever accepted here",
            ),
            kms_lookups: all_of.counters(
                "pithead_kms_lookups_total",
                &ok_or_reasons,
                "Lookups of public keys at KMS, by result",
            ),
            fingerprint_mismatch: all_of.gauge(
                "pithead_key_fingerprint_mismatch",
                "1 while KMS serves another key than was stated",
            ),
            split_view: all_of.gauge(
                "pithead_key_split_view",
                "1 while another gateway of the site serves another statement under a number that was accepted here",
            ),
            enrollments: all_of.counters(
                "pithead_enrollments_total",
                &ok_or_reasons,
                "Attempts to enrol a device, by result",
            ),
            registry_good: all_of.gauge(
                "pithead_device_registry_good",
                "1 while the registry of devices reads back, 0 while an older one is in force",
            ),
            health: HealthMetrics::declare(all_of, &Dimension::NAMES),
            tls: TlsMetrics::declare(all_of),
            config: ConfigMetrics::declare(all_of, wall_s()),
            disk: DiskMetrics::data(all_of),
            clock: ClockMetrics::declare(all_of),
            clock_trusted: all_of.gauge(
                "pithead_clock_trusted",
                "1 if the configuration vouches for the machine's clock",
            ),
            clock_behind: all_of.gauge(
                "pithead_clock_behind_seconds",
                "How far the wall clock stands before the issue of the statement in force: more than 0 is a wrong clock",
            ),
            traces: TraceMetrics::declare(all_of),
            process: ProcessMetrics::declare(all_of),
            all,
        };
        inner.start();
        Self(Arc::new(inner))
    }

    /// The page in the OpenMetrics text format.
    #[must_use]
    pub fn page(&self) -> String {
        self.0.process.measure();
        self.0.traces.measure();
        self.0.all.page()
    }

    /// What is declared.
    #[must_use]
    pub fn declared(&self) -> &[Declared] {
        self.0.all.declared()
    }

    /// The declarations as the reference page shows them.
    #[must_use]
    pub fn reference(&self) -> String {
        self.0.all.reference()
    }

    pub(crate) fn answered(&self, outcome: Outcome) {
        self.0.ingest.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    pub(crate) fn stored(&self, bytes: u64, took_seconds: f64) {
        self.0.ingest_bytes.inc_by(bytes);
        self.0.acks.observe(took_seconds);
    }

    pub(crate) fn refused(&self, reason: ErrorReason) {
        self.0.ingest_refusals.get_or_create(&ReasonLabel { reason: Reason(Some(reason)) }).inc();
    }

    pub(crate) fn gap_declared(&self, numbers: u64) {
        self.0.declared_gaps.inc_by(numbers);
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

    /// Takes over what the accept layer has counted.
    pub(crate) fn port(&self, stats: &AcceptStats) {
        self.0.port.take(stats);
    }

    /// Shows the calls of one more port.
    pub(crate) fn calls_of(&self, port: Calls) {
        self.0.rpc.watch(port);
    }

    /// The spool as it stands; `available` is what devices can still count on, `now_ms` the wall clock.
    pub(crate) fn spool(&self, stats: &Stats, available: u64, now_ms: u64) {
        let all = &self.0;
        let age_s =
            |oldest: Option<u64>| oldest.map_or(0.0, |oldest| now_ms.saturating_sub(oldest) as f64 / 1000.0);
        all.spool_records.set(as_gauge(stats.records));
        all.spool_backlog.set(as_gauge(stats.bytes));
        all.spool_allocated.set(as_gauge(stats.allocated_bytes));
        all.spool_capacity.set(as_gauge(stats.capacity_bytes));
        all.spool_available.set(as_gauge(available));
        all.spool_oldest.set(age_s(stats.oldest_ms));
        all.spool_queued_records.set(as_gauge(stats.queued_records as u64));
        all.spool_queued_bytes.set(as_gauge(stats.queued_bytes));
        advance(&all.spool_appended, stats.appended_records);
        advance(&all.spool_groups, stats.groups);
        advance(&all.spool_syncs, stats.syncs);
        advance(&all.spool_failed_syncs, stats.failed_syncs);
        all.spool_sync_times.adopt(&stats.sync_times.counts, stats.sync_times.sum_us);
        all.spool_failed_lanes.set(as_gauge(stats.lanes.iter().filter(|lane| lane.poisoned).count() as u64));
        for lane in &stats.lanes {
            let label = One::new(LANE, lanes::name(lane.lane));
            all.lane_records.get_or_create(&label).set(as_gauge(lane.records()));
            all.lane_bytes.get_or_create(&label).set(as_gauge(lane.bytes));
            all.lane_oldest.get_or_create(&label).set(age_s(lane.oldest_ms));
        }
    }

    /// What the spool's writing thread is at, and when the spool will be full.
    pub(crate) fn spool_outlook(&self, committing_s: f64, full_in_s: Option<f64>) {
        self.0.spool_committing.set(committing_s);
        self.0.spool_full_in.set(full_in_s.unwrap_or(f64::INFINITY));
    }

    pub(crate) fn spool_corrupt(&self, records: u64) {
        self.0.spool_corrupt.inc_by(records);
    }

    pub(crate) fn relay_up(&self, up: bool) {
        self.0.relay_up.set(i64::from(up));
    }

    pub(crate) fn owner(&self, owner: bool) {
        self.0.owner.set(i64::from(owner));
    }

    fn way(way: Way) -> One {
        One::new(WAY, Way::NAMES[way as usize])
    }

    pub(crate) fn passed_on_call(&self, way: Way) {
        self.0.passed_on_calls.get_or_create(&Self::way(way)).inc();
    }

    /// An envelope in a call that another gateway has passed on to this one.
    pub(crate) fn passed_on_to_us(&self) {
        self.0.passed_on_envelopes.get_or_create(&Self::way(Way::Taken)).inc();
    }

    /// How many calls are passed on now, and what has been in all.
    pub(crate) fn passing_on(&self, calls: usize, envelopes: u64, bytes: u64) {
        self.0.passing_on.set(as_gauge(calls as u64));
        advance(&self.0.passed_on_envelopes.get_or_create(&Self::way(Way::Given)), envelopes);
        advance(&self.0.passed_on_bytes, bytes);
    }

    pub(crate) fn relay_ended(&self, reason: Option<ErrorReason>) {
        self.0.relay_connects.get_or_create(&ReasonLabel { reason: Reason(reason) }).inc();
    }

    pub(crate) fn relayed(&self, outcome: Outcome, bytes: usize) {
        self.0.relayed.get_or_create(&OutcomeLabel { outcome }).inc();
        self.0.relayed_bytes.inc_by(bytes as u64);
        self.0.relay_acknowledged_at.set(wall_s() as f64);
    }

    pub(crate) fn relay_bundle(&self, found: bool, bytes: u64) {
        let result = BUNDLE_RESULTS[usize::from(found)];
        self.0.relay_bundles.get_or_create(&One::new(RESULT, result)).inc();
        self.0.relay_bundle_bytes.inc_by(bytes);
    }

    pub(crate) fn relayed_bytes(&self) -> u64 {
        self.0.relayed_bytes.get()
    }

    pub(crate) fn relay_in_flight(&self, bytes: usize) {
        self.0.relay_in_flight.set(as_gauge(bytes as u64));
    }

    pub(crate) fn relay_window(&self, bytes: u64) {
        self.0.relay_window.set(as_gauge(bytes));
    }

    pub(crate) fn relay_paused(&self, by: Option<PauseCause>) {
        for cause in PauseCause::ALL {
            let label = One::new(CAUSE, PauseCause::NAMES[cause as usize]);
            self.0.relay_paused.get_or_create(&label).set(i64::from(by == Some(cause)));
        }
    }

    pub(crate) fn relay_rate(&self, bytes_per_second: Option<u64>) {
        self.0.relay_rate.set(as_gauge(bytes_per_second.unwrap_or(0)));
    }

    pub(crate) fn lines(&self, in_memory: usize, incomplete: u64, missing: u64) {
        self.0.lines_in_memory.set(as_gauge(in_memory as u64));
        self.0.lines_incomplete.set(as_gauge(incomplete));
        self.0.missing_numbers.set(as_gauge(missing));
    }

    pub(crate) fn devices_holding(&self, devices: u64, most: u64, capacity: u64) {
        self.0.devices_holding.set(as_gauge(devices));
        self.0.device_most.set(as_gauge(most));
        self.0.device_capacity.set(as_gauge(capacity));
    }

    pub(crate) fn refused_area(&self, records: u64, bytes: u64, capacity: u64) {
        self.0.refused_records.set(as_gauge(records));
        self.0.refused_bytes.set(as_gauge(bytes));
        self.0.refused_capacity.set(as_gauge(capacity));
    }

    pub(crate) fn uploads(&self, stats: &UploadStats) {
        self.0.uploads.show(stats);
    }

    pub(crate) fn large_store_up(&self, up: bool) {
        self.0.large_store_up.set(i64::from(up));
    }

    pub(crate) fn large_copies(&self, copies: u64, bytes: u64) {
        self.0.large_copies.set(as_gauge(copies));
        self.0.large_copies_bytes.set(as_gauge(bytes));
    }

    pub(crate) fn large_copy(&self, event: CopyEvent) {
        let label = One::new(EVENT, CopyEvent::NAMES[event as usize]);
        self.0.large_copy_events.get_or_create(&label).inc();
    }

    pub(crate) fn traces(&self, counts: Arc<SpanCounts>) {
        self.0.traces.follow(counts);
    }

    pub(crate) fn key_refresh(&self, result: Option<ErrorReason>) {
        self.0.key_refreshes.get_or_create(&ReasonLabel { reason: Reason(result) }).inc();
    }

    pub(crate) fn key_in_force(&self, now: &InForce) {
        let all = &self.0;
        all.key_root_version.set(as_gauge(now.root_version));
        all.key_root_expires.set(as_gauge(now.root_expires_at));
        all.key_epoch.set(as_gauge(now.epoch));
        all.key_sequence.set(as_gauge(now.sequence));
        all.key_issued.set(as_gauge(now.issued_at));
        all.key_refresh_by.set(as_gauge(now.refresh_by));
        all.key_expires.set(as_gauge(now.expires_at));
        all.key_seal_until.set(as_gauge(now.seal_until));
    }

    pub(crate) fn key_refresh_age(&self, seconds: f64) {
        self.0.key_refresh_age.set(seconds);
    }

    pub(crate) fn statements_known(&self, count: usize) {
        self.0.key_statements_known.set(as_gauge(count as u64));
    }

    pub(crate) fn kms_lookup(&self, fault: Option<ErrorReason>) {
        self.0.kms_lookups.get_or_create(&ReasonLabel { reason: Reason(fault) }).inc();
    }

    /// Those that share the lanes; none where they are not shared.
    pub(crate) fn gateways(&self, present: usize) {
        self.0.gateways.set(as_gauge(present.max(1) as u64));
    }

    pub(crate) fn split_view(&self, split: bool) {
        self.0.split_view.set(i64::from(split));
    }

    pub(crate) fn fingerprint_mismatch(&self, differs: bool) {
        self.0.fingerprint_mismatch.set(i64::from(differs));
    }

    pub(crate) fn health(&self, dimension: Dimension, well: bool, down: bool) {
        self.0.health.show(dimension.name(), well, down);
    }

    pub(crate) fn ready(&self, ready: bool) {
        self.0.health.ready(ready);
    }

    pub(crate) fn tls(&self, expiries: &Expiries) {
        self.0.tls.show(expiries);
    }

    /// A reload of the configuration was done, or refused.
    pub fn reloaded(&self, good: bool) {
        self.0.config.reloaded(good, wall_s());
    }

    pub(crate) fn disk(&self, data: &std::path::Path) {
        self.0.disk.measure(data);
    }

    pub(crate) fn clock_stepped(&self) {
        self.0.clock.stepped();
    }

    pub(crate) fn clock(&self, trusted: bool, behind_s: u64) {
        self.0.clock_trusted.set(i64::from(trusted));
        self.0.clock_behind.set(as_gauge(behind_s));
    }

    /// The totals that rates are made of.
    pub(crate) fn totals(&self, stats: &Stats, available_bytes: u64) -> Totals {
        let all = &self.0;
        let of = |outcome| all.relayed.get_or_create(&OutcomeLabel { outcome }).get();
        Totals {
            in_envelopes: all.acks.snapshot().counts.iter().sum(),
            in_bytes: all.ingest_bytes.get(),
            out_envelopes: Outcome::ALL.into_iter().map(of).sum(),
            out_bytes: all.relayed_bytes.get(),
            acks: all.acks.snapshot(),
            records: stats.records,
            used_bytes: stats.capacity_bytes.saturating_sub(available_bytes),
            available_bytes,
            relay_up: all.relay_up.get() == 1,
        }
    }
}

impl Inner {
    /// What has happened never is on the page all the same, at 0: an alert can ask whether it has.
    fn start(&self) {
        for outcome in Outcome::ALL {
            let label = OutcomeLabel { outcome };
            drop(self.ingest.get_or_create(&label));
            drop(self.relayed.get_or_create(&label));
        }
        let ok = ReasonLabel { reason: Reason(None) };
        for family in [&self.relay_connects, &self.key_refreshes, &self.kms_lookups, &self.enrollments] {
            drop(family.get_or_create(&ok));
        }
        for cause in PauseCause::NAMES {
            drop(self.relay_paused.get_or_create(&One::new(CAUSE, cause)));
        }
        for result in BUNDLE_RESULTS {
            drop(self.relay_bundles.get_or_create(&One::new(RESULT, result)));
        }
        for lane in lanes::NAMES {
            let label = One::new(LANE, lane);
            drop(self.lane_records.get_or_create(&label));
            drop(self.lane_bytes.get_or_create(&label));
            drop(self.lane_oldest.get_or_create(&label));
        }
        for event in CopyEvent::NAMES {
            drop(self.large_copy_events.get_or_create(&One::new(EVENT, event)));
        }
        for way in Way::NAMES {
            let label = One::new(WAY, way);
            drop(self.passed_on_calls.get_or_create(&label));
            drop(self.passed_on_envelopes.get_or_create(&label));
        }
        self.spool_full_in.set(f64::INFINITY);
    }
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
        assert!(page.contains("pithead_relay_paused{cause=\"hand\"} 0"), "{page}");
        assert!(page.contains("pithead_spool_lane_oldest_seconds{lane=\"third\"} 0"), "{page}");
        assert!(!page.contains("device=\""));
    }

    #[test]
    fn a_name_says_its_unit_and_a_counter_that_it_only_grows() {
        for one in Metrics::new().declared() {
            let name = one.name;
            let plain = name.starts_with("process_") || name.starts_with("rpc_");
            assert!(plain || name.starts_with("pithead_"), "{name}");
            assert!(
                !one.help.is_empty() && !one.help.ends_with('.'),
                "{name}: the page ends its help with a full stop"
            );
        }
    }
}

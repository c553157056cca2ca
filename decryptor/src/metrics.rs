//! Every metric of this program, declared once, with its help: `docs/reference/metrics.md` is made of this.
//!
//! A device id is never a label. What both programs have is declared in [`pithead_hop::program::metrics`].

use pithead_hop::accept::AcceptStats;
use pithead_hop::program::clock::wall_s;
use pithead_hop::program::metrics::{
    Catalogue, ClockMetrics, ConfigMetrics, Declared, DiskMetrics, Durations, DurationsBy, Float,
    HealthMetrics, KMS_BOUNDS_S, Label, PortMetrics, ProcessMetrics, RpcMetrics, SITE, TlsMetrics,
    TraceMetrics, UploadMetrics, Values,
};
use pithead_hop::program::pulse::Pulse;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use std::fmt::{self, Write as _};

use crate::kms::{KmsFault, KmsOperation};

/// How long a group takes: from a quiet disk to one in trouble.
const COMMIT_BOUNDS_S: &[f64] =
    &[0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096];

/// The dimensions of health.
pub const DIMENSIONS: [&str; 4] = ["intake", "keys", "sink", "disk"];

/// What became of an envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Opened, made durable and entered into the ledger.
    Applied,
    /// Here before, the same bytes.
    Duplicate,
    /// Other bytes under a used identity, kept beside.
    Conflict,
    /// Other bytes under a used identity, and no room to keep them.
    ConflictUnkept,
    /// Never to be opened; the sender is told, and the bytes are kept with the reason.
    Refused,
    /// Refused by the admission, before anything was done.
    NotAdmitted,
    /// To be sent again: KMS or the sink could not, now.
    Retry,
}

impl Outcome {
    const ALL: [Self; 7] = [
        Self::Applied,
        Self::Duplicate,
        Self::Conflict,
        Self::ConflictUnkept,
        Self::Refused,
        Self::NotAdmitted,
        Self::Retry,
    ];
    const NAMES: [&'static str; 7] =
        ["applied", "duplicate", "conflict", "conflict_unkept", "refused", "not_admitted", "retry"];
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        encoder.write_str(Self::NAMES[*self as usize])
    }
}

/// Labels of the envelope counter.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabel {
    /// What became of it.
    pub outcome: Outcome,
}

/// A reason of the registry, by its name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    /// `KMS_THROTTLED`.
    pub reason: &'static str,
}

/// How one KMS Decrypt ended: `ok`, or the name of a reason in small letters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KmsLabel {
    /// `ok`, `throttled`, `denied`, `unreachable`, `invalid_ciphertext`, ...
    pub outcome: &'static str,
}

/// What the session signature of an envelope says.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct VerdictLabel {
    /// Applied: `signed`, `unsigned`, `unknown-key`. Refused: `invalid`, `unsigned-refused`, `signed-by-revoked`,
    /// `unknown-key-refused`.
    pub verdict: &'static str,
}

const VERDICTS: [&str; 7] = [
    "signed",
    "unsigned",
    "unknown-key",
    "invalid",
    "unsigned-refused",
    "signed-by-revoked",
    "unknown-key-refused",
];

const AREAS: [&str; 2] = ["refused", "conflicts"];

/// Which of the two areas beside the sink.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AreaLabel {
    /// `refused` or `conflicts`.
    pub area: &'static str,
}

/// What a device's words about its statement give rise to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyAlarm {
    /// Its statement is more than 45 days older than the newest.
    Freeze,
    /// Its statement was never accepted here.
    UnknownStatement,
}

impl EncodeLabelValue for KeyAlarm {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        encoder.write_str(match self {
            Self::Freeze => "freeze",
            Self::UnknownStatement => "unknown_statement",
        })
    }
}

/// Labels of the counter of key alarms.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KeyAlarmLabel {
    /// Which.
    pub alarm: KeyAlarm,
}

/// A site of the authority's folder.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SiteLabel {
    /// Its name.
    pub site: String,
}

/// What became of a bundle, by its label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct BundleLabel {
    /// `decided`, `refused`, `waited`, ...
    pub outcome: &'static str,
}

/// What can become of a bundle that this replica has taken.
const BUNDLES: [&str; 5] = ["decided", "refused", "already", "waited", "gone"];

/// What can become of a message of the queue.
pub const MESSAGES: [&str; 7] =
    ["received", "deleted", "foreign", "not_deleted", "extended", "not_extended", "let_go"];

/// What a source in a bucket has besides. Nothing moves where gateways are served.
#[derive(Debug)]
pub struct BucketMetrics {
    bundles: Family<BundleLabel, Counter>,
    messages: Family<BundleLabel, Counter>,
    /// Bundles that are known and not decided.
    pub waiting: Gauge,
    /// When the oldest bundle that is not decided was created, by the store's clock, by site; 0 if there is none.
    pub oldest: Family<SiteLabel, Float>,
    /// Bytes of bundles fetched.
    pub source_bytes: Counter,
    /// Bytes of output written.
    pub sink_bytes: Counter,
    /// Requests that list the bucket.
    pub listings: Counter,
    /// Entries of the ledger that this replica has made.
    pub entries_won: Counter,
    /// Entries of the ledger that another replica had made when this one was about to.
    pub entries_lost: Counter,
    /// The last entry that is known, by site.
    pub ledger_number: Family<SiteLabel, Gauge>,
    /// Entries whose output may not be whole, by site.
    pub unfinished: Family<SiteLabel, Gauge>,
}

impl BucketMetrics {
    fn declare(r: &mut Catalogue) -> Self {
        Self {
            bundles: r.counters(
                "pithead_bundles_total",
                &[Label::of("outcome", &BUNDLES)],
                "Bundles that this replica has taken, by what became of them",
            ),
            messages: r.counters(
                "pithead_queue_messages_total",
                &[Label::of("outcome", &MESSAGES)],
                "Messages of the queue, by what became of them",
            ),
            waiting: r.gauge("pithead_bundles_waiting", "Bundles that this replica knows of and that are not decided"),
            oldest: r.floats(
                "pithead_bundle_oldest_timestamp_seconds",
                &[SITE],
                "When the oldest bundle that is not decided was created, since 1970, by listing; 0 if there is none",
            ),
            source_bytes: r.counter("pithead_bundle_bytes_total", "Bytes of bundles and large envelopes fetched"),
            sink_bytes: r.counter("pithead_sink_object_bytes_total", "Bytes of output objects written"),
            listings: r.counter("pithead_bucket_listings_total", "Listings of the bucket begun"),
            entries_won: r.counter("pithead_ledger_entries_won_total", "Entries of the ledger that this replica has made"),
            entries_lost: r.counter(
                "pithead_ledger_entries_lost_total",
                "Entries of the ledger that another replica had made when this one was about to",
            ),
            ledger_number: r.gauges(
                "pithead_ledger_number",
                &[SITE],
                "Number of the last entry of the site's ledger that this replica knows",
            ),
            unfinished: r.gauges(
                "pithead_ledger_unfinished",
                &[SITE],
                "Entries of the site's ledger whose output may not be whole yet",
            ),
        }
    }

    /// Counts a bundle.
    pub fn bundle(&self, outcome: &'static str) {
        self.bundles.get_or_create(&BundleLabel { outcome }).inc();
    }

    /// Counts a message of the queue.
    pub fn message(&self, outcome: &'static str) {
        self.messages.get_or_create(&BundleLabel { outcome }).inc();
    }

    /// How old the oldest bundle of a site is that is not decided, in seconds; 0 if there is none.
    #[must_use]
    pub fn oldest_for(&self, site: &SiteLabel, now_s: u64) -> u64 {
        let created_s = self.oldest.get_or_create(site).get() as u64;
        if created_s == 0 { 0 } else { now_s.saturating_sub(created_s) }
    }

    /// Bundles counted so far.
    #[must_use]
    pub fn bundles_with(&self, outcome: &'static str) -> u64 {
        self.bundles.get_or_create(&BundleLabel { outcome }).get()
    }

    /// Messages counted so far.
    #[must_use]
    pub fn messages_with(&self, outcome: &'static str) -> u64 {
        self.messages.get_or_create(&BundleLabel { outcome }).get()
    }
}

/// All of them. Clones of the parts share their values.
#[derive(Debug)]
pub struct Metrics {
    all: Catalogue,
    /// Envelopes by outcome.
    pub envelopes: Family<OutcomeLabel, Counter>,
    /// Envelopes that were refused for good, by reason.
    pub refused: Family<ReasonLabel, Counter>,
    /// Envelopes by what their session signature says.
    pub verdicts: Family<VerdictLabel, Counter>,
    /// Devices in the registry of device keys.
    pub devices_registered: Gauge,
    /// Device keys in the registry that are not revoked.
    pub device_keys: Gauge,
    /// 1 while the registry's file is not believed and what was read before is in force.
    pub device_registry_refused: Gauge,
    /// Records delivered to the sink (records of batches, and one for any other envelope).
    pub records: Counter,
    /// Sealed bytes of applied envelopes.
    pub sealed_bytes: Counter,
    /// Plaintext bytes of applied envelopes.
    pub plaintext_bytes: Counter,
    /// Calls of KMS Decrypt by outcome.
    pub kms_decrypt_calls: Family<KmsLabel, Counter>,
    /// Data keys asked of the cache, and found there.
    pub data_key_hits: Counter,
    /// Private operations begun, wherever the private key is.
    pub unwraps: Counter,
    /// Data keys in the cache.
    pub data_keys_held: Gauge,
    port: PortMetrics,
    /// Calls that are served.
    pub rpc: RpcMetrics,
    /// Calls of KMS by operation.
    pub kms_times: DurationsBy,
    /// Private operations that came to nothing.
    pub unwrap_failures: Counter,
    /// Data keys that were not asked for because a budget was used up.
    pub over_budget: Counter,
    /// Groups that the sink made durable.
    pub sink_commits: Counter,
    /// Groups that the sink could not make durable.
    pub sink_failures: Counter,
    /// How long a group took, sink and ledger together.
    pub commit_seconds: Durations,
    /// The sink's part of it.
    pub sink_commit_seconds: Durations,
    /// The file system of the sink.
    pub sink_room: DiskMetrics,
    /// The file system of the data directory.
    pub disk: DiskMetrics,
    /// Large envelopes.
    pub uploads: UploadMetrics,
    /// The lamps.
    pub health: HealthMetrics,
    /// Certificates.
    pub tls: TlsMetrics,
    /// Reloads.
    pub config: ConfigMetrics,
    /// The wall clock.
    pub clock: ClockMetrics,
    /// Spans.
    pub traces: TraceMetrics,
    process: ProcessMetrics,
    /// What the writing thread is at.
    pub writing: Pulse,
    committing: Float,
    /// Envelopes between admission and acknowledgement.
    pub under_way: Gauge,
    /// Sealed bytes between admission and acknowledgement.
    pub under_way_bytes: Gauge,
    /// When the oldest envelope under way was admitted (0 if there is none), seconds since 1970.
    pub oldest_under_way: Float,
    /// Envelopes kept beside the sink.
    pub kept_envelopes: Family<AreaLabel, Gauge>,
    /// Their bytes.
    pub kept_bytes: Family<AreaLabel, Gauge>,
    /// Lines in memory.
    pub lines: Gauge,
    /// Of them, those of which numbers are missing that nobody has declared.
    pub lines_with_holes: Gauge,
    /// Those numbers.
    pub hole_numbers: Gauge,
    /// Numbers that devices have declared in their seals.
    pub gap_numbers: Gauge,
    /// Of them, those dropped by policy.
    pub policy_gap_numbers: Gauge,
    /// When each site's statement was issued.
    pub statement_issued: Family<SiteLabel, Gauge>,
    /// From when on it is stale.
    pub statement_refresh_by: Family<SiteLabel, Gauge>,
    /// When it ends.
    pub statement_expires: Family<SiteLabel, Gauge>,
    /// Sequence of the statement in force.
    pub statement_sequence: Gauge,
    /// Envelopes whose device's statement is unknown or old.
    pub key_alarms: Family<KeyAlarmLabel, Counter>,
    /// Devices that have not followed their site's statements.
    pub frozen_devices: Gauge,
    /// Devices that have named a statement which was never accepted here.
    pub unknown_statement_devices: Gauge,
    /// When each site's last statement was issued.
    pub authority_issued: Family<SiteLabel, Gauge>,
    /// When each site's next is due.
    pub authority_due: Family<SiteLabel, Gauge>,
    /// Statements issued again.
    pub authority_reissued: Counter,
    /// Tries that came to nothing.
    pub authority_failures: Family<ReasonLabel, Counter>,
    /// Sites whose last try came to nothing.
    pub authority_failing: Gauge,
    /// A source in a bucket.
    pub bucket: BucketMetrics,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Declares them.
    #[must_use]
    pub fn new() -> Self {
        let mut all = Catalogue::default();
        let r = &mut all;
        let reasons = [Label::new("reason", Values::Reason)];
        r.build("pithead_decryptor_build_info", env!("CARGO_PKG_VERSION"));
        let declared = Self {
            envelopes: r.counters(
                "pithead_decryptor_envelopes_total",
                &[Label::of("outcome", &Outcome::NAMES)],
                "Envelopes by what became of them",
            ),
            refused: r.counters(
                "pithead_decryptor_refused_total",
                &reasons,
                "Envelopes refused for good, by reason",
            ),
            verdicts: r.counters(
                "pithead_decryptor_verdicts_total",
                &[Label::of("verdict", &VERDICTS)],
                "Envelopes opened, by what their session signature says",
            ),
            devices_registered: r.gauge(
                "pithead_decryptor_devices_registered",
                "Devices in the registry of device keys",
            ),
            device_keys: r.gauge(
                "pithead_decryptor_device_keys",
                "Device keys in the registry that are not revoked",
            ),
            device_registry_refused: r.gauge(
                "pithead_decryptor_device_registry_refused",
                "1 while devices.toml is not believed and what was read before is in force",
            ),
            records: r.counter("pithead_decryptor_records_total", "Records delivered to the sink"),
            sealed_bytes: r.counter(
                "pithead_decryptor_sealed_bytes_total",
                "Sealed bytes of applied envelopes",
            ),
            plaintext_bytes: r.counter(
                "pithead_decryptor_plaintext_bytes_total",
                "Plaintext bytes of applied envelopes",
            ),
            kms_decrypt_calls: r.counters(
                "pithead_kms_decrypt_calls_total",
                &[Label::of("outcome", &KmsFault::OUTCOMES)],
                "Calls of KMS Decrypt by outcome, retries counted",
            ),
            kms_times: r.durations_by(
                "pithead_kms_call_duration_seconds",
                Label::of("operation", &KmsOperation::LABELS),
                KMS_BOUNDS_S,
                "How long a call of KMS took, whatever came of it",
            ),
            data_key_hits: r.counter(
                "pithead_data_key_hits_total",
                "Data keys that were found in the cache",
            ),
            unwraps: r.counter(
                "pithead_unwraps_total",
                "Private operations begun, by KMS or with a local key; by records, the bill",
            ),
            unwrap_failures: r.counter("pithead_unwrap_failures_total", "Private operations that failed"),
            over_budget: r.counter(
                "pithead_unwraps_over_budget_total",
                "Data keys that were not unwrapped because a budget of new ones was used up",
            ),
            data_keys_held: r.gauge("pithead_data_keys_held", "Data keys in the cache"),
            port: PortMetrics::declare(r),
            rpc: RpcMetrics::declare(r),
            sink_commits: r.counter("pithead_sink_commits_total", "Groups that the sink made durable"),
            sink_failures: r.counter(
                "pithead_sink_failures_total",
                "Groups that the sink could not make durable",
            ),
            commit_seconds: r.durations(
                "pithead_commit_seconds",
                COMMIT_BOUNDS_S,
                "Time of one group: sink and ledger",
            ),
            sink_commit_seconds: r.durations(
                "pithead_sink_commit_duration_seconds",
                COMMIT_BOUNDS_S,
                "Of it, the sink's",
            ),
            sink_room: DiskMetrics::sink(r),
            disk: DiskMetrics::data(r),
            uploads: UploadMetrics::declare(r),
            health: HealthMetrics::declare(r, &DIMENSIONS),
            tls: TlsMetrics::declare(r),
            config: ConfigMetrics::declare(r, wall_s()),
            clock: ClockMetrics::declare(r),
            traces: TraceMetrics::declare(r),
            process: ProcessMetrics::declare(r),
            writing: Pulse::default(),
            committing: r.float(
                "pithead_decryptor_committing_seconds",
                "For how long the thread that writes has been at one group, 0 if it waits for one: a disk that hangs",
            ),
            under_way: r.gauge(
                "pithead_decryptor_under_way",
                "Envelopes between admission and acknowledgement",
            ),
            under_way_bytes: r.gauge("pithead_decryptor_under_way_bytes", "Their sealed bytes"),
            oldest_under_way: r.float(
                "pithead_decryptor_oldest_under_way_timestamp_seconds",
                "When the oldest envelope under way was admitted, since 1970; 0 if there is none",
            ),
            kept_envelopes: r.gauges(
                "pithead_decryptor_kept_envelopes",
                &[Label::of("area", &AREAS)],
                "Envelopes kept beside the sink",
            ),
            kept_bytes: r.gauges(
                "pithead_decryptor_kept_bytes",
                &[Label::of("area", &AREAS)],
                "Bytes of the envelopes kept beside the sink",
            ),
            lines: r.gauge("pithead_decryptor_lines", "Lines (device, stream, run) in memory"),
            lines_with_holes: r.gauge(
                "pithead_decryptor_lines_with_holes",
                "Of them, those of which numbers are missing that nobody has declared",
            ),
            hole_numbers: r.gauge("pithead_decryptor_hole_numbers", "Those numbers"),
            gap_numbers: r.gauge(
                "pithead_decryptor_gap_numbers",
                "Numbers that did not come and that their devices have declared, in their seals",
            ),
            policy_gap_numbers: r.gauge(
                "pithead_decryptor_policy_gap_numbers",
                "Of them, those that were dropped by a policy of the device",
            ),
            statement_sequence: r.gauge(
                "pithead_statement_sequence",
                "Sequence of the newest statement served",
            ),
            statement_issued: r.gauges(
                "pithead_key_statement_issued_timestamp_seconds",
                &[SITE],
                "When the statement that is served for the site was issued, since 1970",
            ),
            statement_refresh_by: r.gauges(
                "pithead_key_statement_refresh_by_timestamp_seconds",
                &[SITE],
                "From when on the statement that is served for the site is stale, since 1970",
            ),
            statement_expires: r.gauges(
                "pithead_key_statement_expires_timestamp_seconds",
                &[SITE],
                "When the statement that is served for the site ends, since 1970",
            ),
            key_alarms: r.counters(
                "pithead_decryptor_key_alarms_total",
                &[Label::of("alarm", &["freeze", "unknown_statement"])],
                "Envelopes whose device names a statement that is unknown here, or seals by one 45 days behind the newest",
            ),
            frozen_devices: r.gauge(
                "pithead_decryptor_frozen_devices",
                "Devices whose statement is more than 45 days behind the newest of their site",
            ),
            unknown_statement_devices: r.gauge(
                "pithead_decryptor_unknown_statement_devices",
                "Devices that have named a statement which was never accepted here, since the start",
            ),
            authority_issued: r.gauges(
                "pithead_authority_statement_issued_timestamp_seconds",
                &[SITE],
                "When the last statement of the site was issued, since 1970",
            ),
            authority_due: r.gauges(
                "pithead_authority_statement_due_timestamp_seconds",
                &[SITE],
                "When the next statement of the site is due, since 1970",
            ),
            authority_reissued: r.counter(
                "pithead_authority_reissued_total",
                "Statements that were issued again",
            ),
            authority_failures: r.counters(
                "pithead_authority_failures_total",
                &reasons,
                "Tries to issue a statement again that came to nothing, by reason",
            ),
            authority_failing: r.gauge(
                "pithead_authority_failing_sites",
                "Sites whose statement could not be issued again at the last try",
            ),
            bucket: BucketMetrics::declare(r),
            all,
        };
        declared.start();
        declared
    }

    /// What has happened never is on the page all the same, at 0: an alert can ask whether it has.
    fn start(&self) {
        for outcome in Outcome::ALL {
            drop(self.envelopes.get_or_create(&OutcomeLabel { outcome }));
        }
        for verdict in VERDICTS {
            drop(self.verdicts.get_or_create(&VerdictLabel { verdict }));
        }
        for outcome in KmsFault::OUTCOMES {
            drop(self.kms_decrypt_calls.get_or_create(&KmsLabel { outcome }));
        }
        for area in AREAS {
            drop(self.kept_envelopes.get_or_create(&AreaLabel { area }));
            drop(self.kept_bytes.get_or_create(&AreaLabel { area }));
        }
        for outcome in BUNDLES {
            drop(self.bucket.bundles.get_or_create(&BundleLabel { outcome }));
        }
        for outcome in MESSAGES {
            drop(self.bucket.messages.get_or_create(&BundleLabel { outcome }));
        }
        for alarm in [KeyAlarm::Freeze, KeyAlarm::UnknownStatement] {
            drop(self.key_alarms.get_or_create(&KeyAlarmLabel { alarm }));
        }
    }

    /// Counts an envelope.
    pub fn envelope(&self, outcome: Outcome) {
        self.envelopes.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// Counts what the session signature of an envelope says.
    pub fn verdict(&self, verdict: &'static str) {
        self.verdicts.get_or_create(&VerdictLabel { verdict }).inc();
    }

    /// How many envelopes had that verdict.
    #[must_use]
    pub fn envelopes_judged(&self, verdict: &'static str) -> u64 {
        self.verdicts.get_or_create(&VerdictLabel { verdict }).get()
    }

    /// How many envelopes had that outcome.
    #[must_use]
    pub fn envelopes_with(&self, outcome: Outcome) -> u64 {
        self.envelopes.get_or_create(&OutcomeLabel { outcome }).get()
    }

    /// Takes over what the accept layer has counted.
    pub(crate) fn port(&self, stats: &AcceptStats) {
        self.port.take(stats);
    }

    /// Counts one call of KMS Decrypt.
    pub fn kms_decrypt_call(&self, outcome: &'static str) {
        self.kms_decrypt_calls.get_or_create(&KmsLabel { outcome }).inc();
    }

    /// The text that Prometheus reads.
    #[must_use]
    pub fn text(&self) -> String {
        self.process.measure();
        self.traces.measure();
        self.committing.set(self.writing.busy_for().map_or(0.0, |busy| busy.as_secs_f64()));
        self.all.page()
    }

    /// What is declared.
    #[must_use]
    pub fn declared(&self) -> &[Declared] {
        self.all.declared()
    }

    /// The declarations as the reference page shows them.
    #[must_use]
    pub fn reference(&self) -> String {
        self.all.reference()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_that_demo_and_bench_read_stay() {
        let metrics = Metrics::new();
        metrics.kms_decrypt_call("ok");
        metrics.envelope(Outcome::Applied);
        metrics.records.inc_by(50);
        let text = metrics.text();
        for line in [
            "pithead_kms_decrypt_calls_total{outcome=\"ok\"} 1",
            "pithead_decryptor_envelopes_total{outcome=\"applied\"} 1",
            "pithead_decryptor_records_total 50",
        ] {
            assert!(text.contains(line), "{line} is missing from:\n{text}");
        }
    }
}

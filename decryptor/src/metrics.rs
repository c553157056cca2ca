//! Every metric of this program, declared once. A device id is never a label.

use pithead_hop::accept::{AcceptStats, Ended, Handshake, Refused};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::fmt::{self, Write as _};
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};

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

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        encoder.write_str(match self {
            Self::Applied => "applied",
            Self::Duplicate => "duplicate",
            Self::Conflict => "conflict",
            Self::ConflictUnkept => "conflict_unkept",
            Self::Refused => "refused",
            Self::NotAdmitted => "not_admitted",
            Self::Retry => "retry",
        })
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

/// Why a connection was refused or ended: a name out of a short list of the accept layer's.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct HowLabel {
    /// `rate`, `certificate`, `idle`, `rapid_reset`, ...
    pub how: &'static str,
}

/// What the accept layer counts.
#[derive(Debug)]
struct Port {
    taking_over: Mutex<()>,
    handshaking: Gauge,
    accepted: Counter,
    refused: Family<HowLabel, Counter>,
    handshakes: Family<HowLabel, Counter>,
    ended: Family<HowLabel, Counter>,
    listener_errors: Counter,
    streams: Counter,
    requests: Counter,
    requests_refused: Counter,
    throttled: Counter,
    oversize_headers: Counter,
    noise_frames: Counter,
}

/// All of them. Clones of the parts share their values.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
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
    /// Connections of gateways and devices.
    pub connections: Gauge,
    port: Port,
    /// Groups that the sink made durable.
    pub sink_commits: Counter,
    /// Groups that the sink could not make durable.
    pub sink_failures: Counter,
    /// How long a group took, sink and ledger together.
    pub commit_seconds: Histogram,
    /// Envelopes between admission and acknowledgement.
    pub under_way: Gauge,
    /// Sealed bytes between admission and acknowledgement.
    pub under_way_bytes: Gauge,
    /// When the oldest envelope under way was admitted (0 if there is none), seconds since 1970.
    pub oldest_under_way: Gauge<f64, AtomicU64>,
    /// Envelopes kept beside the sink.
    pub kept_envelopes: Family<AreaLabel, Gauge>,
    /// Their bytes.
    pub kept_bytes: Family<AreaLabel, Gauge>,
    /// Lines in memory.
    pub lines: Gauge,
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
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Declares and registers them.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("pithead");
        let r = &mut registry;
        macro_rules! declare {
            ($make:expr, $name:literal, $help:literal) => {{
                let metric = $make;
                r.register($name, $help, metric.clone());
                metric
            }};
            ($make:expr, $name:literal, $unit:expr, $help:literal) => {{
                let metric = $make;
                r.register_with_unit($name, $help, $unit, metric.clone());
                metric
            }};
        }
        Self {
            envelopes: declare!(Family::default(), "decryptor_envelopes", "Envelopes by what became of them"),
            refused: declare!(
                Family::default(),
                "decryptor_refused",
                "Envelopes refused for good, by reason"
            ),
            verdicts: declare!(
                Family::default(),
                "decryptor_verdicts",
                "Envelopes opened, by what their session signature says"
            ),
            devices_registered: declare!(
                Gauge::default(),
                "decryptor_devices_registered",
                "Devices in the registry of device keys"
            ),
            device_keys: declare!(
                Gauge::default(),
                "decryptor_device_keys",
                "Device keys in the registry that are not revoked"
            ),
            device_registry_refused: declare!(
                Gauge::default(),
                "decryptor_device_registry_refused",
                "1 while devices.toml is not believed and what was read before is in force"
            ),
            records: declare!(Counter::default(), "decryptor_records", "Records delivered to the sink"),
            sealed_bytes: declare!(
                Counter::default(),
                "decryptor_sealed",
                Unit::Bytes,
                "Sealed bytes of applied envelopes"
            ),
            plaintext_bytes: declare!(
                Counter::default(),
                "decryptor_plaintext",
                Unit::Bytes,
                "Plaintext bytes of applied envelopes"
            ),
            kms_decrypt_calls: declare!(
                Family::default(),
                "kms_decrypt_calls",
                "Calls of KMS Decrypt by outcome, retries counted"
            ),
            data_key_hits: declare!(
                Counter::default(),
                "data_key_hits",
                "Data keys that were found in the cache"
            ),
            unwraps: declare!(
                Counter::default(),
                "unwraps",
                "Private operations begun, by KMS or with a local key"
            ),
            data_keys_held: declare!(Gauge::default(), "data_keys_held", "Data keys in the cache"),
            connections: declare!(Gauge::default(), "connections", "Connections of gateways and devices"),
            port: Port {
                taking_over: Mutex::default(),
                handshaking: declare!(
                    Gauge::default(),
                    "connections_handshaking",
                    "Of them, those in their handshake"
                ),
                accepted: declare!(
                    Counter::default(),
                    "connections_accepted",
                    "Connections taken from the listener"
                ),
                refused: declare!(
                    Family::default(),
                    "connections_refused",
                    "Connections turned away before their handshake, by reason"
                ),
                handshakes: declare!(Family::default(), "handshakes", "Handshakes that ended, by how"),
                ended: declare!(
                    Family::default(),
                    "connections_ended",
                    "Connections that ended after a good handshake, by how"
                ),
                listener_errors: declare!(
                    Counter::default(),
                    "listener_errors",
                    "Errors of the listener itself, such as no more file descriptors"
                ),
                streams: declare!(
                    Counter::default(),
                    "streams",
                    "Calls that peers began, those included that HTTP/2 refused by itself"
                ),
                requests: declare!(
                    Counter::default(),
                    "requests",
                    "Calls that reached a service, or were throttled"
                ),
                requests_refused: declare!(
                    Counter::default(),
                    "requests_refused",
                    "Calls answered with an error at once: bad messages, refusals, the rate of an identity"
                ),
                throttled: declare!(
                    Counter::default(),
                    "requests_throttled",
                    "Calls turned away by the rate of their identity"
                ),
                oversize_headers: declare!(
                    Counter::default(),
                    "oversize_headers",
                    "Calls whose headers were larger than allowed"
                ),
                noise_frames: declare!(
                    Counter::default(),
                    "noise_frames",
                    "HTTP/2 frames that ask for nothing: PING, SETTINGS, RST_STREAM, empty DATA and the like"
                ),
            },
            sink_commits: declare!(Counter::default(), "sink_commits", "Groups that the sink made durable"),
            sink_failures: declare!(
                Counter::default(),
                "sink_failures",
                "Groups that the sink could not make durable"
            ),
            commit_seconds: declare!(
                Histogram::new(exponential_buckets(0.0005, 2.0, 14)),
                "commit",
                Unit::Seconds,
                "Time of one group: sink and ledger"
            ),
            under_way: declare!(
                Gauge::default(),
                "decryptor_under_way",
                "Envelopes between admission and acknowledgement"
            ),
            under_way_bytes: declare!(
                Gauge::default(),
                "decryptor_under_way",
                Unit::Bytes,
                "Their sealed bytes"
            ),
            oldest_under_way: declare!(
                Gauge::default(),
                "decryptor_oldest_under_way_timestamp",
                Unit::Seconds,
                "When the oldest envelope under way was admitted; 0 if there is none"
            ),
            kept_envelopes: declare!(
                Family::default(),
                "decryptor_kept_envelopes",
                "Envelopes kept beside the sink"
            ),
            kept_bytes: declare!(
                Family::default(),
                "decryptor_kept",
                Unit::Bytes,
                "Bytes of the envelopes kept beside the sink"
            ),
            lines: declare!(Gauge::default(), "decryptor_lines", "Lines (device, stream, run) in memory"),
            statement_sequence: declare!(
                Gauge::default(),
                "statement_sequence",
                "Sequence of the newest statement served"
            ),
            key_alarms: declare!(
                Family::default(),
                "decryptor_key_alarms",
                "Envelopes whose device names a statement that is unknown here, or seals by one 45 days behind the newest"
            ),
            frozen_devices: declare!(
                Gauge::default(),
                "decryptor_frozen_devices",
                "Devices whose statement is more than 45 days behind the newest of their site"
            ),
            unknown_statement_devices: declare!(
                Gauge::default(),
                "decryptor_unknown_statement_devices",
                "Devices that have named a statement which was never accepted here, since the start"
            ),
            authority_issued: declare!(
                Family::default(),
                "authority_statement_issued_timestamp",
                Unit::Seconds,
                "When the last statement of the site was issued"
            ),
            authority_due: declare!(
                Family::default(),
                "authority_statement_due_timestamp",
                Unit::Seconds,
                "When the next statement of the site is due"
            ),
            authority_reissued: declare!(
                Counter::default(),
                "authority_reissued",
                "Statements that were issued again"
            ),
            authority_failures: declare!(
                Family::default(),
                "authority_failures",
                "Tries to issue a statement again that came to nothing, by reason"
            ),
            authority_failing: declare!(
                Gauge::default(),
                "authority_failing_sites",
                "Sites whose statement could not be issued again at the last try"
            ),
            registry,
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

    /// Takes over what the accept layer has counted. Every reason is on the page from the start, at 0.
    pub(crate) fn port(&self, stats: &AcceptStats) {
        let port = &self.port;
        // Two pages at a time would each add what is new.
        let _one = port.taking_over.lock().unwrap_or_else(PoisonError::into_inner);
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.connections.set(gauge(stats.open));
        port.handshaking.set(gauge(stats.handshaking));
        let plain = [
            (&port.accepted, stats.accepted),
            (&port.listener_errors, stats.listener_errors),
            (&port.streams, stats.streams),
            (&port.requests, stats.requests),
            (&port.requests_refused, stats.requests_refused),
            (&port.throttled, stats.throttled),
            (&port.oversize_headers, stats.oversize_headers),
            (&port.noise_frames, stats.noise_frames),
        ];
        for (counter, count) in plain {
            advance(counter, count);
        }
        for why in Refused::ALL {
            advance(&port.refused.get_or_create(&HowLabel { how: why.name() }), stats.refused(why));
        }
        for outcome in Handshake::ALL {
            let label = HowLabel { how: outcome.name() };
            advance(&port.handshakes.get_or_create(&label), stats.handshakes(outcome));
        }
        for how in Ended::ALL {
            advance(&port.ended.get_or_create(&HowLabel { how: how.name() }), stats.ended(how));
        }
    }

    /// Counts one call of KMS Decrypt.
    pub fn kms_decrypt_call(&self, outcome: &'static str) {
        self.kms_decrypt_calls.get_or_create(&KmsLabel { outcome }).inc();
    }

    /// The text that Prometheus reads.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

/// Moves a counter to where another part's own has come to.
pub(crate) fn advance(counter: &Counter, to: u64) {
    counter.inc_by(to.saturating_sub(counter.get()));
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

//! How long calls take, by method and by how they ended: from the request to the last of the answer.
//!
//! The methods that are told apart are ours and those of the standard services beside them; whatever else a stranger asks for is
//! one more, so that nobody makes the table grow. A stream lasts as long as it is open.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use http::HeaderMap;
use pithead_proto::errors::v1::ErrorReason;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use crate::status::Remote;
use crate::trace::TraceParent;
use crate::trace::span::{Span, Spans};

/// Methods that are told apart.
pub const METHODS: [&str; 13] = [
    "pithead.ingest.v1.IngestService/Append",
    "pithead.ingest.v1.IngestService/Submit",
    "pithead.ingest.v1.IngestService/OpenUpload",
    "pithead.ingest.v1.IngestService/WriteUpload",
    "pithead.ingest.v1.IngestService/GetUpload",
    "pithead.ingest.v1.IngestService/AbortUpload",
    "pithead.keys.v1.KeyService/GetKeyBundle",
    "pithead.keys.v1.KeyService/WatchKeyBundle",
    "pithead.enroll.v1.EnrollService/Enroll",
    "grpc.health.v1.Health/Check",
    "grpc.health.v1.Health/Watch",
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "_OTHER",
];
const OTHER: usize = METHODS.len() - 1;

/// The names of gRPC's codes, by number.
pub const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];
const CANCELLED: usize = 1;
const UNKNOWN: usize = 2;
/// Those that say that this end did not do what it should; the others are an answer.
const OUR_FAULT: [&str; 6] =
    ["UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"];
/// What is said in the best of order, though its code is one of those: try elsewhere.
const IN_ORDER: [ErrorReason; 2] = [ErrorReason::Draining, ErrorReason::StandingBy];
/// Where an answer carries its reason.
const DETAILS: &str = "grpc-status-details-bin";

/// Between which times in seconds calls are counted: the bounds that OpenTelemetry's conventions name.
pub const BOUNDS_S: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
const BUCKETS: usize = BOUNDS_S.len() + 1;

/// Calls of one method that ended alike.
#[derive(Debug, Default)]
pub struct CallTimes {
    counts: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
}

impl CallTimes {
    /// How many, between the bounds and above the last.
    pub fn counts(&self) -> [u64; BUCKETS] {
        std::array::from_fn(|at| self.counts[at].load(Ordering::Relaxed))
    }

    /// How long all of them together took, in microseconds.
    pub fn sum_us(&self) -> u64 {
        self.sum_us.load(Ordering::Relaxed)
    }
}

/// The calls of a port, or of several. Clones count into the same ones.
#[derive(Debug, Clone)]
pub struct Calls(Arc<[[CallTimes; CODES.len()]; METHODS.len()]>);

impl Default for Calls {
    fn default() -> Self {
        Self(Arc::new(std::array::from_fn(|_| std::array::from_fn(|_| CallTimes::default()))))
    }
}

impl Calls {
    /// (method, code, calls) of everything that has happened.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &'static str, &CallTimes)> {
        let all = METHODS.iter().zip(self.0.iter());
        all.flat_map(|(method, codes)| {
            CODES.iter().zip(codes).map(move |(code, times)| (*method, *code, times))
        })
        .filter(|(.., times)| times.counts.iter().any(|count| count.load(Ordering::Relaxed) > 0))
    }

    /// A call of this path begins: `/package.Service/Method`. Probes and strangers' methods are counted, and have no spans.
    pub(super) fn begin(&self, path: &str, trace: Option<TraceParent>, spans: &Spans) -> Timed {
        let method = path.strip_prefix('/').and_then(|path| METHODS.iter().position(|known| *known == path));
        let method = method.unwrap_or(OTHER);
        let name = METHODS[method];
        let mut span = if name.starts_with("pithead.") { spans.call(name, trace) } else { Span::default() };
        if let Some((service, method)) = name.split_once('/') {
            span.text("rpc.system", || "grpc".to_owned());
            span.text("rpc.service", || service.to_owned());
            span.text("rpc.method", || method.to_owned());
        }
        Timed { calls: self.clone(), method, began: Instant::now(), code: None, reason: None, trace, span }
    }
}

/// A call that is timed until this is dropped. One that its caller left has said nothing.
#[derive(Debug)]
pub(super) struct Timed {
    calls: Calls,
    method: usize,
    began: Instant,
    code: Option<usize>,
    /// Of a call that is followed.
    reason: Option<ErrorReason>,
    trace: Option<TraceParent>,
    pub(super) span: Span,
}

impl Timed {
    /// The head or the trailers of the answer, whichever says how it ended.
    pub(super) fn note(&mut self, headers: &HeaderMap) {
        if let Some(status) = headers.get("grpc-status") {
            let code = status.to_str().ok().and_then(|code| code.parse::<usize>().ok());
            self.code = Some(code.filter(|code| *code < CODES.len()).unwrap_or(UNKNOWN));
            if self.span.at().is_some() {
                self.reason = reason_of(headers);
            }
        }
    }
}

/// The reason that an answer of ours gives.
fn reason_of(headers: &HeaderMap) -> Option<ErrorReason> {
    let mut details = HeaderMap::new();
    details.insert(DETAILS, headers.get(DETAILS)?.clone());
    let details = MetadataMap::from_headers(details).get_bin(DETAILS)?.to_bytes().ok()?;
    Remote::from_status(&Status::with_details(Code::Unknown, "", details)).reason
}

impl Drop for Timed {
    fn drop(&mut self) {
        let took = self.began.elapsed();
        let code = self.code.unwrap_or(CANCELLED);
        if let Some(trace) = &self.trace {
            let (trace, took_ms) = (trace.trace(), took.as_millis() as u64);
            tracing::debug!(
                event = "call.ended",
                trace,
                method = METHODS[self.method],
                status = CODES[code],
                took_ms
            );
        }
        self.span.number("rpc.grpc.status_code", code as u64);
        if let Some(reason) = self.reason {
            self.span.text("pithead.reason", || reason.name().to_owned());
        }
        let is_in_order = self.reason.is_some_and(|reason| IN_ORDER.contains(&reason));
        if OUR_FAULT.contains(&CODES[code]) && !is_in_order {
            self.span.failed(|| self.reason.map_or(CODES[code], ErrorReason::name).to_owned());
        }
        let times = &self.calls.0[self.method][code];
        let at = BOUNDS_S.partition_point(|bound| *bound < took.as_secs_f64());
        times.counts[at].fetch_add(1, Ordering::Relaxed);
        times.sum_us.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pithead_proto::FILE_DESCRIPTOR_SET;
    use prost::Message as _;

    #[test]
    fn every_method_of_ours_is_told_apart() {
        let set = prost_types::FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
        let mut ours = 0;
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    let name = format!("{}.{}/{}", file.package(), service.name(), method.name());
                    assert!(METHODS.contains(&name.as_str()), "{name} would be counted as another");
                    ours += 1;
                }
            }
        }
        assert_eq!(ours, 9);
    }

    #[test]
    fn a_call_is_counted_by_how_it_ended_and_a_strangers_methods_are_one() {
        let calls = Calls::default();
        let mut ended = calls.begin("/pithead.ingest.v1.IngestService/Submit", None, &Spans::default());
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "8".parse().unwrap());
        ended.note(&trailers);
        drop(ended);
        for path in ["/a.B/C", "/a.B/D", "nothing", ""] {
            drop(calls.begin(path, None, &Spans::default()));
        }
        let seen: Vec<_> = calls
            .iter()
            .map(|(method, code, times)| (method, code, times.counts().iter().sum::<u64>()))
            .collect();
        assert_eq!(
            seen,
            [("pithead.ingest.v1.IngestService/Submit", "RESOURCE_EXHAUSTED", 1), ("_OTHER", "CANCELLED", 4),]
        );
    }

    #[test]
    fn a_span_says_the_method_and_how_it_ended_and_probes_have_none() {
        let (spans, mut ended, _) = crate::trace::span::queue(1.0);
        let calls = Calls::default();
        drop(calls.begin("/grpc.health.v1.Health/Check", None, &spans));
        drop(calls.begin("/a.B/C", None, &spans));
        assert!(ended.try_recv().is_err());
        for (code, failed) in [("8", None), ("13", Some("INTERNAL"))] {
            let mut call = calls.begin("/pithead.ingest.v1.IngestService/Submit", None, &spans);
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", code.parse().unwrap());
            call.note(&trailers);
            drop(call);
            let span = ended.try_recv().unwrap();
            assert_eq!(
                (span.name, span.failed.as_deref()),
                ("pithead.ingest.v1.IngestService/Submit", failed)
            );
            assert!(
                span.attributes.contains(&("rpc.method", crate::trace::span::Value::Text("Submit".into())))
            );
        }
    }

    #[test]
    fn a_failed_call_says_its_reason_and_one_that_is_sent_elsewhere_is_no_failure() {
        use crate::status::Refusal;
        use crate::trace::span::Value;
        let (spans, mut ended, _) = crate::trace::span::queue(1.0);
        let calls = Calls::default();
        for (reason, failed) in [
            (ErrorReason::KmsUnreachable, Some("KMS_UNREACHABLE")),
            (ErrorReason::NotDurable, Some("NOT_DURABLE")),
            (ErrorReason::Draining, None),
            (ErrorReason::StandingBy, None),
            (ErrorReason::SpoolFull, None),
        ] {
            let mut call = calls.begin("/pithead.ingest.v1.IngestService/Submit", None, &spans);
            let answer = Status::from(Refusal::new(reason, "of a test")).into_http::<()>();
            call.note(answer.headers());
            drop(call);
            let span = ended.try_recv().unwrap();
            assert_eq!(span.failed.as_deref(), failed);
            assert!(span.attributes.contains(&("pithead.reason", Value::Text(reason.name().to_owned()))));
        }
        // What is no reason of ours is its code.
        let mut call = calls.begin("/pithead.ingest.v1.IngestService/Submit", None, &spans);
        let mut headers = HeaderMap::new();
        headers.insert("grpc-status", "13".parse().unwrap());
        headers.insert(DETAILS, "no base64 !".parse().unwrap());
        call.note(&headers);
        drop(call);
        assert_eq!(ended.try_recv().unwrap().failed.as_deref(), Some("INTERNAL"));
    }
}

//! The exporter of spans: OTLP over gRPC, in batches, out of the queue of [`trace::span`](crate::trace::span).
//!
//! One task, and nobody waits for it. While the collector is away the batch in hand is tried again, with jitter; what ends meanwhile
//! waits in the queue, and is dropped and counted where that is full. A collector that refuses a batch for good is not asked again.
//! When the program stops, what waits is sent once more and no more, within the time that whoever stops it has.
//!
//! The messages and the client are those of `opentelemetry-proto`. OpenTelemetry's SDK is not between: its queue drops without a count, its
//! exporter is steered by variables of the environment, and its spans are found by a thread's context, which a call here has not got.

use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Link, SpanKind};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::accept::Seldom;
use crate::backoff::{Backoff, Policy, random};
use crate::trace::span::{Ended, Kind, SpanCounts, Value};

/// Spans in one request: about 150 KiB, far below the 4 MiB that a collector takes.
const BATCH: usize = 512;
/// How long a batch is waited for that is not full.
const BATCH_AFTER: Duration = Duration::from_secs(1);
/// How long the collector may take for a batch, and for a connection.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// A collector that restarts is back within seconds.
const AGAIN: Policy = Policy { first: Duration::from_millis(250), max: Duration::from_secs(15) };
/// How often it is said that spans are lost or wait.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// See the module.
pub(super) struct Exporter {
    client: TraceServiceClient<Channel>,
    about: Resource,
    counts: Arc<SpanCounts>,
    seldom: Seldom,
    /// Lost before it was last said.
    said: u64,
    away: bool,
}

/// What the collector made of a batch.
enum Outcome {
    Taken,
    /// It may take it later.
    Away(String),
    /// It never will.
    Refused(String),
}

impl Exporter {
    /// To that collector. Nothing is connected yet; inside a tokio runtime.
    pub(super) fn new(to: Uri, about: Vec<(&'static str, String)>, counts: Arc<SpanCounts>) -> Self {
        let endpoint = Endpoint::from(to).connect_timeout(CONNECT_LIMIT).timeout(ANSWER_LIMIT);
        let attributes = about.into_iter().map(|(key, value)| attribute(key, Value::Text(value))).collect();
        Self {
            client: TraceServiceClient::new(endpoint.connect_lazy()),
            about: Resource { attributes, ..Resource::default() },
            counts,
            seldom: Seldom::new(SAY_EVERY),
            said: 0,
            away: false,
        }
    }

    /// Sends what comes, until told to stop or until nobody is left who could send any; then what waits.
    pub(super) async fn run(mut self, mut ended: mpsc::Receiver<Ended>, stop: CancellationToken) {
        let mut batch = Vec::new();
        while !stop.is_cancelled() {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                many = ended.recv_many(&mut batch, BATCH) => if many == 0 { return },
            }
            tokio::select! {
                () = fill(&mut batch, &mut ended) => {}
                () = tokio::time::sleep(BATCH_AFTER) => {}
                () = stop.cancelled() => break,
            }
            if !self.deliver(&batch, &stop).await {
                break;
            }
            batch.clear();
        }
        // What ends from here on is not asked for any more.
        ended.close();
        loop {
            if batch.is_empty() && ended.recv_many(&mut batch, BATCH).await == 0 {
                return;
            }
            let spans = batch.len();
            match self.send(&batch).await {
                Outcome::Taken => {}
                Outcome::Refused(_) => self.counts.add_refused(spans),
                Outcome::Away(error) => {
                    let lost = spans + ended.len();
                    self.counts.add_dropped(lost);
                    tracing::warn!(event = "traces.lost", spans = lost, error, "the program stops");
                    return;
                }
            }
            batch.clear();
        }
    }

    /// Until the collector has taken or refused it; false if the program stops before.
    async fn deliver(&mut self, batch: &[Ended], stop: &CancellationToken) -> bool {
        let mut backoff = Backoff::new(AGAIN);
        loop {
            let outcome = tokio::select! {
                outcome = self.send(batch) => outcome,
                () = stop.cancelled() => return false,
            };
            match outcome {
                Outcome::Taken => {
                    if std::mem::take(&mut self.away) {
                        tracing::info!(event = "traces.back", "the collector takes spans again");
                    }
                    self.say_lost();
                    return true;
                }
                Outcome::Refused(error) => {
                    self.counts.add_refused(batch.len());
                    if self.seldom.is_time() {
                        tracing::warn!(event = "traces.refused", spans = batch.len(), error);
                    }
                    return true;
                }
                Outcome::Away(error) => {
                    self.away = true;
                    if self.seldom.is_time() {
                        self.said = self.counts.dropped();
                        tracing::warn!(
                            event = "traces.away",
                            error,
                            dropped = self.said,
                            "spans wait, up to their bound"
                        );
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next_delay(random(), None)) => {}
                () = stop.cancelled() => return false,
            }
        }
    }

    fn say_lost(&mut self) {
        let dropped = self.counts.dropped();
        if dropped > self.said && self.seldom.is_time() {
            tracing::warn!(
                event = "traces.lost",
                spans = dropped - self.said,
                "more ended than the collector took"
            );
            self.said = dropped;
        }
    }

    async fn send(&mut self, batch: &[Ended]) -> Outcome {
        let scope = InstrumentationScope {
            name: "pithead".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..InstrumentationScope::default()
        };
        let spans = ScopeSpans {
            scope: Some(scope),
            spans: batch.iter().map(span).collect(),
            schema_url: String::new(),
        };
        let spans = ResourceSpans {
            resource: Some(self.about.clone()),
            scope_spans: vec![spans],
            schema_url: String::new(),
        };
        let asked = self.client.export(ExportTraceServiceRequest { resource_spans: vec![spans] });
        match tokio::time::timeout(ANSWER_LIMIT, asked).await {
            Ok(Ok(answer)) => {
                let rejected = answer.into_inner().partial_success.map_or(0, |part| part.rejected_spans);
                let rejected = usize::try_from(rejected).unwrap_or(0).min(batch.len());
                self.counts.add_refused(rejected);
                self.counts.add_exported(batch.len() - rejected);
                Outcome::Taken
            }
            Ok(Err(status)) if is_for_later(status.code()) => Outcome::Away(said(&status)),
            Ok(Err(status)) => Outcome::Refused(said(&status)),
            Err(_) => Outcome::Away(format!("no answer within {} s", ANSWER_LIMIT.as_secs())),
        }
    }
}

/// Until it is full. Cancel safe.
async fn fill(batch: &mut Vec<Ended>, ended: &mut mpsc::Receiver<Ended>) {
    while batch.len() < BATCH {
        if ended.recv_many(batch, BATCH - batch.len()).await == 0 {
            return;
        }
    }
}

/// What a status says, without what lies under it.
fn said(status: &tonic::Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

/// As the specification of OTLP has it.
fn is_for_later(code: Code) -> bool {
    matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
    )
}

fn attribute(key: &str, value: Value) -> KeyValue {
    let value = match value {
        Value::Text(text) => any_value::Value::StringValue(text),
        Value::Number(number) => any_value::Value::IntValue(i64::try_from(number).unwrap_or(i64::MAX)),
    };
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn span(ended: &Ended) -> Span {
    let kind = match ended.kind {
        Kind::Server => SpanKind::Server,
        Kind::Client => SpanKind::Client,
        Kind::Internal => SpanKind::Internal,
    };
    let link = |link: &crate::trace::TraceParent| Link {
        trace_id: link.trace_id().to_vec(),
        span_id: link.span_id().to_vec(),
        ..Link::default()
    };
    let failed = |why: &String| Status { message: why.clone(), code: StatusCode::Error as i32 };
    Span {
        trace_id: ended.at.trace_id().to_vec(),
        span_id: ended.at.span_id().to_vec(),
        parent_span_id: ended.parent.map(|parent| parent.span_id().to_vec()).unwrap_or_default(),
        // The first byte is that of the trace's context: it is followed.
        flags: 1,
        name: ended.name.to_owned(),
        kind: kind as i32,
        start_time_unix_nano: ended.began_us.saturating_mul(1_000),
        end_time_unix_nano: ended.ended_us.saturating_mul(1_000),
        attributes: ended.attributes.iter().map(|(key, value)| attribute(key, value.clone())).collect(),
        links: ended.links.iter().map(link).collect(),
        status: ended.failed.as_ref().map(failed),
        ..Span::default()
    }
}

//! The exporter of spans: OTLP over gRPC, in batches, out of the queue of [`trace::span`](crate::trace::span).
//!
//! One task, and nobody waits for it. While the collector is away the batch in hand is tried again, with jitter; what ends meanwhile
//! waits in the queue, and is dropped and counted where that is full. A collector that refuses a batch for good is not asked again.
//! When the program stops, what waits is sent once more and no more, within the time that whoever stops it has; what was not taken by
//! then is counted and said.
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
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codegen::{Body as HttpBody, Bytes, StdError};
use tonic::transport::{Channel, Endpoint};
use tonic_types::StatusExt as _;

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
/// How long what waits is sent for when the program stops: whoever stops it hears what was lost, and need not cut it off.
const LAST: Duration = super::traces::FLUSH.saturating_sub(Duration::from_millis(500));
/// How often it is said that spans are lost or wait.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// See the module.
pub(super) struct Exporter<C> {
    client: TraceServiceClient<C>,
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
    /// It may take it later, and not before so long.
    Away(String, Option<Duration>),
    /// It never will.
    Refused(String),
}

impl Exporter<Channel> {
    /// To that collector. Nothing is connected yet; inside a tokio runtime.
    pub(super) fn new(to: Uri, about: Vec<(&'static str, String)>, counts: Arc<SpanCounts>) -> Self {
        let endpoint = Endpoint::from(to).connect_timeout(CONNECT_LIMIT).timeout(ANSWER_LIMIT);
        Self::by(endpoint.connect_lazy(), about, counts)
    }
}

impl<C> Exporter<C>
where
    C: GrpcService<Body>,
    C::Error: Into<StdError>,
    C::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <C::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
{
    /// By that connection.
    fn by(connection: C, about: Vec<(&'static str, String)>, counts: Arc<SpanCounts>) -> Self {
        let attributes = about.into_iter().map(|(key, value)| attribute(key, Value::Text(value))).collect();
        Self {
            client: TraceServiceClient::new(connection),
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
        let end = Instant::now() + LAST;
        loop {
            if batch.is_empty() && ended.recv_many(&mut batch, BATCH).await == 0 {
                return;
            }
            let spans = batch.len();
            let late = || Outcome::Away("no answer in the time that is left".to_owned(), None);
            match tokio::time::timeout_at(end, self.send(&batch)).await.unwrap_or_else(|_| late()) {
                Outcome::Taken => {}
                Outcome::Refused(_) => self.counts.add_refused(spans),
                Outcome::Away(error, _) => {
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
            let not_before = match outcome {
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
                Outcome::Away(error, not_before) => {
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
                    not_before
                }
            };
            tokio::select! {
                () = tokio::time::sleep(backoff.next_delay(random(), not_before)) => {}
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
            Ok(Err(status)) => of_status(&status),
            Err(_) => Outcome::Away(format!("no answer within {} s", ANSWER_LIMIT.as_secs()), None),
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

/// As the specification of OTLP has it: a collector whose resources are exhausted means this batch, for good, unless it says when to
/// come again.
fn of_status(status: &tonic::Status) -> Outcome {
    let not_before = status.get_details_retry_info().and_then(|retry| retry.retry_delay);
    let is_for_later = match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => true,
        Code::ResourceExhausted => not_before.is_some(),
        _ => false,
    };
    if is_for_later { Outcome::Away(said(status), not_before) } else { Outcome::Refused(said(status)) }
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

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
    use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
        TraceService, TraceServiceServer,
    };
    use tonic::{Request, Response, Status};
    use tonic_types::ErrorDetails;

    use super::*;
    use crate::trace::span::{QUEUE, Spans, queue};

    /// What a collector says to a batch; to all that come after the last of these, that it has taken it.
    enum Says {
        No(Status),
        Nothing,
    }

    #[derive(Default)]
    struct Mind {
        says: Mutex<VecDeque<Says>>,
        /// How many spans, and when.
        came: Mutex<Vec<(usize, Instant)>>,
    }

    struct Collector(Arc<Mind>);

    #[tonic::async_trait]
    impl TraceService for Collector {
        async fn export(
            &self,
            request: Request<ExportTraceServiceRequest>,
        ) -> Result<Response<ExportTraceServiceResponse>, Status> {
            let scopes = request.into_inner().resource_spans.into_iter().flat_map(|one| one.scope_spans);
            let spans = scopes.map(|scope| scope.spans.len()).sum();
            self.0.came.lock().unwrap().push((spans, Instant::now()));
            let says = self.0.says.lock().unwrap().pop_front();
            match says {
                None => Ok(Response::new(ExportTraceServiceResponse::default())),
                Some(Says::No(status)) => Err(status),
                Some(Says::Nothing) => std::future::pending().await,
            }
        }
    }

    /// An exporter and its collector, without a wire between them: the clock of these tests goes on when nothing else does.
    struct Rig {
        spans: Spans,
        counts: Arc<SpanCounts>,
        mind: Arc<Mind>,
        exporter: Exporter<TraceServiceServer<Collector>>,
        ended: mpsc::Receiver<Ended>,
        stop: CancellationToken,
    }

    impl Rig {
        fn new(says: impl IntoIterator<Item = Says>) -> Self {
            let (spans, ended, counts) = queue(1.0);
            let mind = Arc::new(Mind { says: Mutex::new(says.into_iter().collect()), ..Mind::default() });
            let collector = TraceServiceServer::new(Collector(mind.clone()));
            let exporter = Exporter::by(collector, Vec::new(), counts.clone());
            Self { spans, counts, mind, exporter, ended, stop: CancellationToken::new() }
        }

        fn end(&self, spans: usize) {
            (0..spans).for_each(|_| drop(self.spans.root("a", Kind::Internal)));
        }

        /// Runs the exporter, and stops it after so long. How long it took from there on.
        async fn run(self, stop_after: Duration) -> (Duration, Arc<SpanCounts>, Arc<Mind>) {
            let Self { spans, counts, mind, exporter, ended, stop } = self;
            let stopped = async {
                tokio::time::sleep(stop_after).await;
                stop.cancel();
                Instant::now()
            };
            let (stopped, ()) = tokio::join!(stopped, exporter.run(ended, stop.clone()));
            drop(spans);
            (stopped.elapsed(), counts, mind)
        }
    }

    fn said(counts: &SpanCounts) -> (u64, u64, u64) {
        (counts.exported(), counts.dropped(), counts.refused())
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_just_ended_is_sent_when_the_program_stops_and_no_batch_is_waited_for() {
        for stop_after in [Duration::ZERO, BATCH_AFTER / 2] {
            let rig = Rig::new([]);
            rig.end(3);
            let (took, counts, mind) = rig.run(stop_after).await;
            assert_eq!((took, said(&counts)), (Duration::ZERO, (3, 0, 0)), "{stop_after:?}");
            assert_eq!(mind.came.lock().unwrap().len(), 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_mute_collector_has_not_taken_when_the_program_has_to_end_is_counted() {
        let rig = Rig::new((0..9).map(|_| Says::Nothing));
        rig.end(QUEUE);
        let (took, counts, _) = rig.run(BATCH_AFTER / 2).await;
        assert_eq!((took, said(&counts)), (LAST, (0, QUEUE as u64, 0)));
        assert!(LAST < crate::program::traces::FLUSH);
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_is_waited_for_as_long_as_it_is_not_full() {
        let rig = Rig::new([]);
        let began = Instant::now();
        rig.end(3);
        let (_, counts, mind) = rig.run(2 * BATCH_AFTER).await;
        assert_eq!(said(&counts), (3, 0, 0));
        assert_eq!(*mind.came.lock().unwrap(), [(3, began + BATCH_AFTER)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_collector_that_is_exhausted_has_refused_unless_it_says_when_to_come_again() {
        let exhausted = || Status::resource_exhausted("no room");
        let rig = Rig::new([Says::No(exhausted())]);
        rig.end(BATCH);
        let (_, counts, mind) = rig.run(Duration::from_secs(60)).await;
        assert_eq!((said(&counts), mind.came.lock().unwrap().len()), ((0, 0, BATCH as u64), 1));

        let delay = Duration::from_secs(20);
        let later = Status::with_error_details(
            Code::ResourceExhausted,
            "no room",
            ErrorDetails::with_retry_info(Some(delay)),
        );
        let rig = Rig::new([Says::No(later)]);
        rig.end(BATCH);
        let (_, counts, mind) = rig.run(Duration::from_secs(60)).await;
        let came = mind.came.lock().unwrap();
        assert_eq!((said(&counts), came.len()), ((BATCH as u64, 0, 0), 2));
        let waited = came[1].1 - came[0].1;
        assert!(waited >= delay && waited <= delay + AGAIN.first, "{waited:?}");
    }

    #[test]
    fn what_else_a_collector_says_is_for_later_or_for_good_as_its_code_is() {
        let is_away = |code| matches!(of_status(&Status::new(code, "")), Outcome::Away(..));
        assert!([Code::Unavailable, Code::Aborted, Code::DataLoss, Code::Cancelled].into_iter().all(is_away));
        assert!(![Code::InvalidArgument, Code::Unimplemented, Code::Internal].into_iter().any(is_away));
    }
}

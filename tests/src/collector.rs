//! A collector of spans: what takes OTLP over gRPC, on loopback, and remembers everything.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::sync::DropGuard;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

pub use opentelemetry_proto::tonic::trace::v1::Span;

/// How long spans are waited for: a batch is sent within a second or so.
const PATIENCE: Duration = Duration::from_secs(30);

/// A span, and who sent it.
#[derive(Clone, Debug)]
pub struct Received {
    /// `service.name`.
    pub service: String,
    /// The span.
    pub span: Span,
}

impl Received {
    /// A name that is said of it.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        text(&self.span.attributes, key)
    }
}

fn text<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a str> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        any_value::Value::StringValue(text) => Some(text),
        _ => None,
    }
}

/// A running collector. It ends when it is dropped.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    received: watch::Receiver<Vec<Received>>,
    _stop: DropGuard,
}

struct Taking(watch::Sender<Vec<Received>>);

#[tonic::async_trait]
impl TraceService for Taking {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for from in request.into_inner().resource_spans {
            let about = from.resource.map(|resource| resource.attributes).unwrap_or_default();
            let service = text(&about, "service.name").unwrap_or_default().to_owned();
            let spans = from.scope_spans.into_iter().flat_map(|scope| scope.spans);
            let spans = spans.map(|span| Received { service: service.clone(), span });
            self.0.send_modify(|received| received.extend(spans));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Starts one on a free port.
    pub async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("a port for the collector")?;
        let address = listener.local_addr()?;
        let (sender, received) = watch::channel(Vec::new());
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let server = Server::builder().add_service(TraceServiceServer::new(Taking(sender)));
        tokio::spawn(server.serve_with_incoming_shutdown(TcpIncoming::from(listener), stopped));
        Ok(Self { address, received, _stop: stop.drop_guard() })
    }

    /// `[traces]` of a program that sends its spans here.
    #[must_use]
    pub fn section(&self, sample: f64) -> String {
        section(self.address, sample)
    }

    /// Everything that has come, as soon as `enough` says so.
    pub async fn until(
        &mut self,
        what: &str,
        enough: impl Fn(&[Received]) -> bool,
    ) -> anyhow::Result<Vec<Received>> {
        let come = tokio::time::timeout(PATIENCE, self.received.wait_for(|all| enough(all))).await;
        let come = come.map(|all| all.map(|all| all.clone()));
        if let Ok(all) = come {
            return all.context("the collector is gone");
        }
        let all = self.received.borrow();
        let all: Vec<_> = all.iter().map(|one| format!("{}: {}", one.service, one.span.name)).collect();
        anyhow::bail!("{what} did not come; these did: {all:#?}")
    }
}

/// `[traces]` of a program that sends its spans to that address, whoever is there.
#[must_use]
pub fn section(to: SocketAddr, sample: f64) -> String {
    format!("\n[traces]\nendpoint = \"http://{to}\"\nsample = {sample:?}\n")
}

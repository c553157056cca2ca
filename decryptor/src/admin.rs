//! Health and metrics over HTTP, on loopback: `/livez`, `/readyz`, `/statusz`, `/metrics`.

use crate::authority::{SiteStanding, rfc3339};
use crate::kms::{KmsCalls, KmsOperation};
use crate::metrics::{KmsLabel, Metrics, Outcome, advance};
use crate::unwrap::DataKeys;
use arc_swap::ArcSwap;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use pithead_hop::accept::{AcceptHandle, BindError};
use pithead_hop::program::clock;
use pithead_sealing::trust::UnixTime;
use serde_json::{Value, json};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Where the program stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Reading its books.
    Starting = 0,
    /// Taking envelopes.
    Serving = 1,
    /// Finishing what it has.
    Stopping = 2,
    /// The disk cannot be believed any more.
    Failed = 3,
}

impl Phase {
    const fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
        }
    }
}

/// What the pages are drawn from.
#[derive(Debug)]
pub struct Status {
    phase: AtomicU8,
    metrics: Arc<Metrics>,
    data_keys: Arc<DataKeys>,
    kms: Option<Arc<KmsCalls>>,
    accept: AcceptHandle,
    sink: String,
    authority: OnceLock<Arc<ArcSwap<Vec<SiteStanding>>>>,
}

impl Status {
    /// Of a program that is starting.
    #[must_use]
    pub fn new(
        metrics: Arc<Metrics>,
        data_keys: Arc<DataKeys>,
        kms: Option<Arc<KmsCalls>>,
        accept: AcceptHandle,
        sink: String,
    ) -> Arc<Self> {
        Arc::new(Self {
            phase: AtomicU8::new(Phase::Starting as u8),
            metrics,
            data_keys,
            kms,
            accept,
            sink,
            authority: OnceLock::new(),
        })
    }

    /// Shows how the authority's sites stand as well.
    pub fn show_authority(&self, standing: Arc<ArcSwap<Vec<SiteStanding>>>) {
        // Set once, by whoever starts the program.
        let _ = self.authority.set(standing);
    }

    /// Moves on.
    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// Where it stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Starting,
            1 => Phase::Serving,
            2 => Phase::Stopping,
            _ => Phase::Failed,
        }
    }

    /// Takes over the counters that other parts keep for themselves.
    fn gather(&self) {
        let counters = self.data_keys.counters();
        advance(&self.metrics.data_key_hits, counters.hits());
        advance(&self.metrics.unwraps, counters.unwraps());
        for (operation, outcome, count) in self.kms.iter().flat_map(|calls| calls.snapshot()) {
            if operation == KmsOperation::Decrypt {
                advance(&self.metrics.kms_decrypt_calls.get_or_create(&KmsLabel { outcome }), count);
            }
        }
        self.metrics.data_keys_held.set(i64::try_from(self.data_keys.held()).unwrap_or(i64::MAX));
        self.metrics.port(&self.accept.stats());
    }

    fn json(&self) -> Value {
        self.gather();
        let metrics = &self.metrics;
        let envelopes = |outcome| metrics.envelopes_with(outcome);
        let peers: Vec<String> = self.accept.peers().iter().map(|peer| peer.id.to_string()).collect();
        json!({
            "program": "pithead-decryptor",
            "version": env!("CARGO_PKG_VERSION"),
            "phase": self.phase().word(),
            "sink": self.sink,
            "envelopes": {
                "applied": envelopes(Outcome::Applied),
                "duplicate": envelopes(Outcome::Duplicate),
                "conflict": envelopes(Outcome::Conflict),
                "conflict_unkept": envelopes(Outcome::ConflictUnkept),
                "refused": envelopes(Outcome::Refused),
                "not_admitted": envelopes(Outcome::NotAdmitted),
                "retry": envelopes(Outcome::Retry),
                "under_way": metrics.under_way.get(),
                "oldest_under_way_s": metrics.oldest_under_way.get(),
            },
            "signatures": {
                "signed": metrics.envelopes_judged("signed"),
                "unsigned": metrics.envelopes_judged("unsigned"),
                "unknown_key": metrics.envelopes_judged("unknown-key"),
                "invalid": metrics.envelopes_judged("invalid"),
                "unsigned_refused": metrics.envelopes_judged("unsigned-refused"),
                "signed_by_revoked": metrics.envelopes_judged("signed-by-revoked"),
                "unknown_key_refused": metrics.envelopes_judged("unknown-key-refused"),
                "devices_registered": metrics.devices_registered.get(),
                "registry_refused": metrics.device_registry_refused.get() > 0,
            },
            "records": metrics.records.get(),
            "sealed_bytes": metrics.sealed_bytes.get(),
            "plaintext_bytes": metrics.plaintext_bytes.get(),
            "unwraps": metrics.unwraps.get(),
            "data_key_hits": metrics.data_key_hits.get(),
            "data_keys_held": metrics.data_keys_held.get(),
            "kms_decrypt_calls": self.kms.as_ref().map(|calls| calls.total(KmsOperation::Decrypt)),
            "lines": metrics.lines.get(),
            "statement_sequence": metrics.statement_sequence.get(),
            "authority": self.authority.get().map(|standing| authority_json(&standing.load())),
            "frozen_devices": metrics.frozen_devices.get(),
            "unknown_statement_devices": metrics.unknown_statement_devices.get(),
            "peers": peers,
        })
    }
}

fn authority_json(standing: &[SiteStanding]) -> Value {
    let now = UnixTime(clock::wall_s());
    let site = |site: &SiteStanding| {
        json!({
            "site": site.site.as_str(), "sequence": site.sequence, "issued_at": rfc3339(site.issued_at),
            "age_s": now.since(site.issued_at), "due_at": rfc3339(site.due_at),
            "retry_at": site.retry_at.map(rfc3339),
        })
    };
    standing.iter().map(site).collect()
}

async fn livez(State(status): State<Arc<Status>>) -> impl IntoResponse {
    match status.phase() {
        Phase::Failed => (StatusCode::SERVICE_UNAVAILABLE, "failed\n"),
        Phase::Starting | Phase::Serving | Phase::Stopping => (StatusCode::OK, "ok\n"),
    }
}

async fn readyz(State(status): State<Arc<Status>>) -> impl IntoResponse {
    match status.phase() {
        Phase::Serving => (StatusCode::OK, "ready\n"),
        Phase::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
        Phase::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
        Phase::Failed => (StatusCode::SERVICE_UNAVAILABLE, "failed\n"),
    }
}

async fn statusz(State(status): State<Arc<Status>>) -> impl IntoResponse {
    Json(status.json())
}

async fn metrics(State(status): State<Arc<Status>>) -> impl IntoResponse {
    status.gather();
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], status.metrics.text())
}

/// The bound admin port.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    address: SocketAddr,
}

impl Admin {
    /// Takes the port.
    pub async fn bind(address: SocketAddr) -> Result<Self, BindError> {
        let impossible = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => BindError::Taken(address),
            _ => BindError::Impossible { address, source },
        };
        let listener = TcpListener::bind(address).await.map_err(impossible)?;
        let address = listener.local_addr().map_err(impossible)?;
        Ok(Self { listener, address })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop`.
    pub async fn serve(self, status: Arc<Status>, stop: CancellationToken) -> io::Result<()> {
        let pages = Router::new()
            .route("/livez", get(livez))
            .route("/readyz", get(readyz))
            .route("/statusz", get(statusz))
            .route("/metrics", get(metrics))
            .with_state(status);
        axum::serve(self.listener, pages).with_graceful_shutdown(stop.cancelled_owned()).await
    }
}
